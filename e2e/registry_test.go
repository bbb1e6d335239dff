package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestRegistryHasABadDay: nothing is stopped, the row says what to do, and the
// update is made once the registry is well again.
func TestRegistryHasABadDay(t *testing.T) {
	const manifests = "/manifests/"
	zeros := "sha256:" + strings.Repeat("0", 64)
	for _, tt := range []struct {
		name   string
		config string
		ail    func(r *rig) (heal func())
		reason string
		detail string
	}{
		{
			name:   "it is down",
			ail:    func(r *rig) func() { r.reg.Down(); return r.reg.Up },
			reason: "registry-unavailable", detail: "refused",
		},
		{
			name:   "it breaks connections",
			ail:    func(r *rig) func() { return r.reg.Fail("", manifests, 0, stage.Drop()) },
			reason: "registry-unavailable",
		},
		{
			name:   "it answers 500",
			ail:    func(r *rig) func() { return r.reg.Fail("", manifests, 0, stage.Status(500)) },
			reason: "registry-unavailable", detail: "500",
		},
		{
			name:   "it shows a login page",
			ail:    func(r *rig) func() { return r.reg.Fail("", "", 0, stage.LoginPage()) },
			reason: "registry-unavailable",
		},
		{
			name:   "it shows a login page for manifests that are read",
			ail:    func(r *rig) func() { return r.reg.Fail("GET", manifests, 0, stage.LoginPage()) },
			reason: "registry-unavailable",
		},
		{
			name:   "it sends half a manifest and says that is all",
			ail:    func(r *rig) func() { return r.reg.Fail("GET", manifests, 0, stage.TruncateJSON()) },
			reason: "registry-unavailable",
		},
		{
			name:   "it breaks off in a manifest",
			ail:    func(r *rig) func() { return r.reg.Fail("GET", manifests, 0, stage.Truncate()) },
			reason: "registry-unavailable",
		},
		{
			name:   "it names a digest that it has not got",
			ail:    func(r *rig) func() { return r.reg.Fail("", manifests, 0, stage.DigestHeader(zeros)) },
			reason: "registry-unavailable|not-found",
		},
		{
			name:   "it names a digest that is none",
			ail:    func(r *rig) func() { return r.reg.Fail("", manifests, 0, stage.DigestHeader("sha256:../../etc")) },
			reason: "registry-unavailable",
		},
		{
			name: "it sends another manifest than it was asked for",
			ail: func(r *rig) func() {
				return r.reg.Fail("GET", manifests+"sha256", 0, stage.Rewrite(func(h http.Header, b []byte) []byte {
					h.Del("Content-Length")
					return append(b, '\n')
				}))
			},
			reason: "registry-unavailable",
		},
		{
			name:   "it lists half of the tags",
			config: strings.Replace(settings, "health:", "policy: minor\n  health:", 1),
			ail:    func(r *rig) func() { return r.reg.Fail("GET", "/tags/list", 0, stage.TruncateJSON()) },
			reason: "registry-unavailable",
		},
		{
			name:   "it lists no tags",
			config: strings.Replace(settings, "health:", "policy: minor\n  health:", 1),
			ail: func(r *rig) func() {
				return r.reg.Fail("GET", "/tags/list", 0, stage.Rewrite(func(h http.Header, _ []byte) []byte {
					h.Del("Content-Length")
					return fmt.Appendf(nil, `{"name":"acme/%s","tags":[]}`, r.name)
				}))
			},
			reason: "tag-list-incomplete",
		},
		{
			name:   "it asks for patience",
			ail:    func(r *rig) func() { return r.reg.Fail("", "", 0, stage.TooMany("3600")) },
			reason: "rate-limited", detail: "until 2",
		},
		{
			name:   "it asks for patience and does not say for how long",
			ail:    func(r *rig) func() { return r.reg.Fail("", "", 0, stage.TooMany("")) },
			reason: "rate-limited",
		},
		{
			name:   "it wants credentials",
			ail:    func(r *rig) func() { return r.reg.Fail("", "", 0, stage.Status(401)) },
			reason: "unauthorized", detail: "docker login",
		},
		{
			name:   "it does not let us",
			ail:    func(r *rig) func() { return r.reg.Fail("", manifests, 0, stage.Status(403)) },
			reason: "unauthorized",
		},
		{
			name:   "it has lost the repository",
			ail:    func(r *rig) func() { return r.reg.Fail("", "/v2/.+", 0, stage.Status(404)) },
			reason: "not-found",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{config: tt.config, tag: "1.0"})
			digest := r.push("1.0", stage.Image{Version: "v2"})
			calls := r.through(stage.Hooks{})
			heal := tt.ail(r)
			for _, got := range []row{r.check(1), r.once(1)} {
				require.Contains(t, strings.Split(tt.reason, "|"), got.Reason, "%+v", got)
				require.Equal(t, "none", got.Decision)
				require.Contains(t, got.Detail, tt.detail)
				require.Contains(t, got.Detail, r.reg.Host, "the detail names the host")
			}
			require.Empty(t, calls.Calls())
			r.untouched()
			heal()
			require.Equal(t, "committed", r.once(0).Outcome)
			r.updated("v2", digest)
		})
	}
}

// TestRegistryThatHangs is not waited for without end.
func TestRegistryThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	r.push("latest", stage.Image{Version: "v2"})
	heal := r.reg.Fail("", "", 0, stage.Hang())
	began := time.Now()
	got := r.check(1)
	require.Equal(t, "registry-unavailable", got.Reason)
	require.Less(t, time.Since(began), 50*time.Second)
	r.untouched()

	// SIGTERM does not wait for it either.
	daemon := r.u.Start("run")
	daemon.WaitLog("updaterd starts", 10*time.Second)
	require.Zero(t, daemon.Stop(5*time.Second))
	r.untouched()
	heal()
	require.Equal(t, "committed", r.once(0).Outcome)
}

// TestRegistryWithOddAnswersThatAreRight is understood.
func TestRegistryWithOddAnswersThatAreRight(t *testing.T) {
	for _, tt := range []struct {
		name string
		ail  func(*rig)
	}{
		{"no digest in the header", func(r *rig) { r.reg.Fail("", "/manifests/", 0, stage.DigestHeader("")) }},
		{"no HEAD", func(r *rig) { r.reg.Fail("HEAD", "/manifests/", 0, stage.Status(405)) }},
		{"slow", func(r *rig) { r.reg.Fail("", "", 0, stage.Slow(700*time.Millisecond)) }},
		{"one broken connection", func(r *rig) { r.reg.Fail("HEAD", "/manifests/", 1, stage.Drop()) }},
		{"one 503", func(r *rig) { r.reg.Fail("HEAD", "/manifests/", 1, stage.Status(503)) }},
		{"patience for a second", func(r *rig) { r.reg.Fail("HEAD", "/manifests/", 1, stage.TooMany("1")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{})
			digest := r.push("latest", stage.Image{Version: "v2"})
			tt.ail(r)
			require.Equal(t, "committed", r.once(0).Outcome)
			r.updated("v2", digest)
		})
	}
}

// TestRegistryFailsDuringThePull: between the decision and the swap.
func TestRegistryFailsDuringThePull(t *testing.T) {
	for _, tt := range []struct {
		name string
		ail  func(*rig) func()
	}{
		{"it goes down before the pull", func(r *rig) func() { r.reg.Down(); return r.reg.Up }},
		{"it breaks off in a layer", func(r *rig) func() { return r.reg.Fail("GET", "/blobs/", 0, stage.Truncate()) }},
		{"it sends another layer", func(r *rig) func() {
			return r.reg.Fail("GET", "/blobs/", 0, stage.Rewrite(func(_ http.Header, b []byte) []byte { b[len(b)/2] ^= 1; return b }))
		}},
		{"it asks for patience", func(r *rig) func() { return r.reg.Fail("", "", 0, stage.TooMany("60")) }},
		{"the image is deleted", func(r *rig) func() { return r.reg.Fail("", "/manifests/", 0, stage.Status(404)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{policy: "always"})
			digest := r.push("latest", stage.Image{Version: "v2", Ballast: 1 << 20})
			var heal func()
			tr := aside(at{match: path("/images/create")}, func() { heal = tt.ail(r) })
			r.through(tr.Hooks)
			got := r.once(1)
			within(t, time.Second, "the pull", tr.sprung)
			require.Equal(t, "none", got.Outcome, "%+v", got)
			require.Contains(t, []string{"surroundings", "rate-limited", "not-found"}, got.Reason, "%+v", got)
			require.Equal(t, "none", got.Decision)
			r.untouched()

			heal()
			got = r.check(1)
			require.Equal(t, "surroundings", got.Reason)
			require.Contains(t, got.Detail, "tried again after")
			require.Zero(t, r.u.Run("forget", r.name).Code)
			require.Equal(t, "committed", r.once(0).Outcome)
			r.updated("v2", digest)
		})
	}
}

// TestCredentials: those of the configuration and those of docker login are
// used for asking, and given to the engine for the pull.
func TestCredentials(t *testing.T) {
	for _, from := range []string{"configuration", "docker login"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			reg := stage.NewRegistry(t, stage.RegistryOptions{TLS: true, Bearer: true, Username: "robot", Password: "s3cr3t-word"})
			d := stage.OpenDocker(t)
			name := d.Name("web")
			t.Cleanup((&rig{t: t, d: d, reg: reg, name: name}).sweep)
			ref := reg.Ref("acme/" + name + ":1")
			reg.Push("acme/"+name+":1", stage.Image{Version: "v1"})
			auth := base64.URLEncoding.EncodeToString([]byte(`{"username":"robot","password":"s3cr3t-word"}`))
			body, err := d.ImagePull(t.Context(), ref, image.PullOptions{RegistryAuth: auth})
			require.NoError(t, err)
			readAll(t, body)
			body.Close()
			d.Run(stage.Spec{Name: name, Config: container.Config{Image: ref}})
			reg.Push("acme/"+name+":1", stage.Image{Version: "v2"})

			password := filepath.Join(t.TempDir(), "password")
			require.NoError(t, os.WriteFile(password, []byte("s3cr3t-word\n"), 0o600))
			config := fmt.Sprintf("%sregistries:\n  - host: %s\n    ca: %s\n", settings, reg.Host, reg.CA)
			u := stage.NewUpdaterd(t, d.Scoped(), config)
			login := filepath.Join(t.TempDir(), "docker")
			require.NoError(t, os.Mkdir(login, 0o700))
			u.Env = append(u.Env, "DOCKER_CONFIG="+login)

			res := u.Run("check", "-o", "json")
			require.Equal(t, 1, res.Code)
			got := parseRows(t, res.Stdout)[0]
			require.Equal(t, "unauthorized", got.Reason, "%+v", got)
			require.Contains(t, got.Detail, "docker login "+reg.Host)

			if from == "configuration" {
				u.WriteConfig(config + "    username: robot\n    password-file: " + password + "\n")
			} else {
				require.NoError(t, os.WriteFile(filepath.Join(login, "config.json"),
					fmt.Appendf(nil, `{"auths":{"https://%s":{"auth":"%s"}}}`, reg.Host, base64.StdEncoding.EncodeToString([]byte("robot:s3cr3t-word"))), 0o600))
			}
			res = u.Run("run", "--once", "-o", "json")
			require.Zero(t, res.Code)
			require.Equal(t, "committed", parseRows(t, res.Stdout)[0].Outcome)
			require.Contains(t, d.Inspect(name).Config.Env, "APP_VERSION=v2")
			for _, args := range [][]string{{"config", "show"}, {"history", "-o", "json"}, {"check"}} {
				res := u.Run(args...)
				require.NotContains(t, res.Stdout+res.Stderr, "s3cr3t-word")
			}
			// Wrong from now on.
			require.NoError(t, os.WriteFile(password, []byte("wrong"), 0o600))
			require.NoError(t, os.WriteFile(filepath.Join(login, "config.json"),
				fmt.Appendf(nil, `{"auths":{"%s":{"auth":"%s"}}}`, reg.Host, base64.StdEncoding.EncodeToString([]byte("robot:wrong"))), 0o600))
			res = u.Run("check", "-o", "json")
			require.Equal(t, 1, res.Code)
			require.Equal(t, "unauthorized", parseRows(t, res.Stdout)[0].Reason)
		})
	}
}

// TestOneQuestionForManyContainers: one request per reference and pass.
func TestOneQuestionForManyContainers(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	for range 4 {
		r.d.Run(stage.Spec{Name: r.d.Name("more"), Config: container.Config{Image: r.ref}})
	}
	r.reg.ResetRequests()
	rows := parseRows(t, r.u.Run("check", "-o", "json").Stdout)
	require.Len(t, rows, 5)
	require.Equal(t, 1, r.reg.Count("HEAD", ""))
	require.Equal(t, 0, r.reg.Count("GET", "/v2/acme/"))
}

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestSettingsDecide: what the settings on a container, in a rule and in the
// defaults make of an update that is there.
func TestSettingsDecide(t *testing.T) {
	with := func(lines ...string) string {
		return strings.Replace(settings, "stop-timeout: 2s", "stop-timeout: 2s\n  "+strings.Join(lines, "\n  "), 1)
	}
	labelled := strings.Replace(settings, "watch: all", "watch: labelled", 1)
	for _, tt := range []struct {
		name   string
		config string
		labels map[string]string
		rows   int
		reason string
		detail string
		code   int
	}{
		{name: "mode hold on the container", labels: map[string]string{"mode": "hold"}, reason: "held"},
		{name: "mode monitor in the defaults", config: with("mode: monitor"), reason: "monitor"},
		{name: "mode approve", config: with("mode: approve"), reason: "needs-approval"},
		{name: "a rule", config: settings + "rules: [{match: {name: \"web-*\"}, mode: hold}]\n", reason: "held"},
		{name: "a label before a rule", config: settings + "rules: [{match: {name: \"web-*\"}, mode: hold}]\n", labels: map[string]string{"mode": "monitor"}, reason: "monitor"},
		{name: "the first rule that fits", config: settings + "rules: [{match: {image: \"ghcr.io/*\"}, mode: monitor}, {match: {labels: {team: \"b*\"}}, mode: hold}, {match: {name: \"*\"}, mode: monitor}]\n", labels: map[string]string{".team": "blue"}, reason: "held"},
		{name: "a window that is shut", labels: map[string]string{"window": shut()}, reason: "outside-window", detail: "opens at"},
		{name: "a digest that is too young", labels: map[string]string{"min-age": "1d"}, reason: "too-young", detail: "must be 24h0m0s old"},
		{name: "a value that is none", labels: map[string]string{"policy": "semver:^^1"}, reason: "invalid-settings", detail: "updaterd.policy", code: 1},
		{name: "a duration that is none", labels: map[string]string{"min-age": "soon"}, reason: "invalid-settings", detail: "updaterd.min-age", code: 1},
		{name: "a label that is no setting", labels: map[string]string{"polcy": "minor"}, reason: "invalid-settings", detail: "updaterd.polcy", code: 1},
		{name: "a test image from a label", labels: map[string]string{"health.test.image": "acme/test"}, reason: "invalid-settings", detail: "health.test", code: 1},
		{name: "watched by a label", config: labelled, labels: map[string]string{"enable": "true", "mode": "hold"}, reason: "held"},
		{name: "watched by a rule", config: labelled + "rules: [{match: {name: \"web-*\"}, enable: true, mode: hold}]\n", reason: "held"},
		{name: "not watched", config: labelled, rows: -1},
		{name: "unwatched by a label", labels: map[string]string{"enable": "false"}, rows: -1},
		{name: "depends on itself", labels: map[string]string{"depends-on": "NAME"}, reason: "invalid-settings", detail: "depends on itself", code: 1},
		{name: "depends on what is not there", labels: map[string]string{"depends-on": "nobody"}, reason: "invalid-settings", detail: "nobody", code: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{config: tt.config, change: func(s *stage.Spec) {
				s.Config.Labels = map[string]string{}
				for k, v := range tt.labels {
					if name, bare := strings.CutPrefix(k, "."); bare {
						s.Config.Labels[name] = v
					} else {
						s.Config.Labels["updaterd."+k] = strings.ReplaceAll(v, "NAME", s.Name)
					}
				}
			}})
			r.push("latest", stage.Image{Version: "v2"})
			if tt.rows < 0 {
				require.Equal(t, "[]\n", r.u.Run("check", "-o", "json").Stdout)
				require.Equal(t, "[]\n", r.u.Run("run", "--once", "-o", "json").Stdout)
				r.untouched()
				return
			}
			got := r.check(tt.code)
			require.Equal(t, tt.reason, got.Reason, "%+v", got)
			require.Contains(t, got.Detail, tt.detail)
			if tt.reason == "update" {
				return
			}
			require.Equal(t, "none", got.Decision)
			if tt.code == 0 {
				require.NotNil(t, got.Candidate, "the candidate is told whatever the decision")
			}
			p := r.through(stage.Hooks{})
			require.Equal(t, "none", r.once(tt.code).Outcome)
			require.Empty(t, p.Calls())
			r.untouched()
		})
	}
}

// shut is a window of ten minutes that opens in two hours.
func shut() string {
	from := time.Now().UTC().Add(2 * time.Hour)
	return fmt.Sprintf("%s-%s UTC", from.Format("15:04"), from.Add(10*time.Minute).Format("15:04"))
}

// TestMinAge counts from when updaterd first saw the digest.
func TestMinAge(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{change: func(s *stage.Spec) { s.Config.Labels = map[string]string{"updaterd.min-age": "4s"} }})
	digest := r.push("latest", stage.Image{Version: "v2"})
	require.Equal(t, "too-young", r.once(0).Reason)
	seen := time.Now()
	r.untouched()
	stage.Eventually(t, 20*time.Second, "the digest to be old enough", func() bool { return r.once(0).Outcome == "committed" })
	require.Greater(t, time.Since(seen), 3*time.Second)
	r.updated("v2", digest)
}

// TestPolicies: the tag that is written afterwards, and what else is kept.
func TestPolicies(t *testing.T) {
	for _, tt := range []struct {
		name   string
		policy string
		tag    string
		tags   []string
		want   string // "" for none
		reason string
	}{
		{"patch", "patch", "1.4.1", []string{"1.4.2", "1.5.0", "2.0.0", "1.4.3-rc.1", "1.4.9-alpine"}, "1.4.2", "update"},
		{"minor", "minor", "1.4.1", []string{"1.4.2", "1.10.0", "1.9.0", "2.0.0", "1.11"}, "1.10.0", "update"},
		{"major", "major", "v1.4", []string{"v1.5", "v3.0", "4.0"}, "v3.0", "update"},
		{"semver", "semver:^1.4 <1.6", "1.4.1-alpine", []string{"1.5.9-alpine", "1.5.9", "1.6.0-alpine"}, "1.5.9-alpine", "update"},
		{"newest", "newest", "2024.01.05", []string{"2024.02.01", "2023.12.31"}, "2024.02.01", "update"},
		{"nothing newer", "minor", "1.4.1", []string{"1.3.0", "2.0.0"}, "", "up-to-date"},
		{"only lower ones", "semver:<1.4", "1.4.1", []string{"1.3.0"}, "", "downgrade"},
		{"none in range", "semver:^7", "1.4.1", []string{"1.3.0"}, "", "no-candidate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{tag: tt.tag, policy: "unless-stopped", change: func(s *stage.Spec) {
				s.Config.Labels = map[string]string{
					"updaterd.policy": tt.policy, "com.docker.compose.project": "shop", "com.docker.compose.service": "web",
					"com.docker.compose.config-hash": "0123", "com.docker.compose.image": "sha256:old",
				}
				s.Config.Env = []string{"MINE=1"}
			}})
			digests := map[string]string{}
			for _, tag := range tt.tags {
				digests[tag] = r.push(tag, stage.Image{Version: tag})
			}
			got := r.check(0)
			require.Equal(t, tt.reason, got.Reason, "%+v", got)
			require.Equal(t, tt.policy, got.Policy)
			if tt.want == "" {
				require.Equal(t, "none", r.once(0).Outcome)
				r.untouched()
				return
			}
			want := strings.TrimSuffix(r.ref, tt.tag) + tt.want
			require.Equal(t, want, got.Candidate.Image)
			require.Equal(t, digests[tt.want], got.Candidate.Digest)
			require.Equal(t, "committed", r.once(0).Outcome)
			c := r.updated(tt.want, digests[tt.want])
			require.Equal(t, want, c.Config.Image)
			require.Equal(t, "shop", c.Config.Labels["com.docker.compose.project"])
			require.Equal(t, "0123", c.Config.Labels["com.docker.compose.config-hash"])
			require.Contains(t, c.Config.Env, "MINE=1")
			require.Equal(t, "up-to-date", r.once(0).Reason)
		})
	}
}

// TestBadTagIsTakenBack: no local tag of the bad version stays.
func TestBadTagIsTakenBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{tag: "1.0", change: func(s *stage.Spec) { s.Config.Labels = map[string]string{"updaterd.policy": "minor"} }})
	r.pushBad("1.1", "bad")
	require.Equal(t, "restored", r.once(1).Outcome)
	require.Equal(t, r.ref, r.asItWas().Config.Image)
	require.Equal(t, []string{r.ref}, r.tags(strings.TrimSuffix(r.ref, ":1.0")), "the tag of the bad version is still there")
	require.Equal(t, "rejected", r.check(0).Reason)
	digest := r.push("1.2", stage.Image{Version: "1.2"})
	require.Equal(t, "committed", r.once(0).Outcome)
	r.updated("1.2", digest)
}

// TestReferencesThatNameADigest, and those that name nothing of a registry.
func TestReferencesThatNameADigest(t *testing.T) {
	// Pulled by it, so that the image has no other name.
	pinned := func(r *rig) string {
		require.NoError(r.t, r.d.RemoveImage(r.t.Context(), r.ref))
		ref := r.ref + "@" + r.first
		r.d.Pull(ref)
		return ref
	}
	const oneName = "Podman shows a container under one name of its image, whichever it was made by"
	for _, tt := range []struct {
		name   string
		config string
		image  func(r *rig) string
		reason string
		podman string // why it does not apply there
	}{
		{"a pin is respected", settings, pinned, "pinned", ""},
		{"a pin that follows its tag", strings.Replace(settings, "health:", "pin: follow\n  health:", 1), pinned, "update",
			"Podman forgets the tag of a reference with a digest"},
		{"a digest alone cannot follow", strings.Replace(settings, "health:", "pin: follow\n  health:", 1),
			func(r *rig) string { return strings.Replace(pinned(r), ":latest@", "@", 1) }, "pinned", ""},
		{"an image id", settings, func(r *rig) string { return r.before.Image }, "pinned", oneName},
		{"an image built here", settings, func(r *rig) string {
			tag := "acme-local/" + r.name + ":dev"
			require.NoError(r.t, r.d.ImageTag(r.t.Context(), r.before.Image, tag))
			return tag
		}, "local-image", "Podman gives digests to images that were built here too, so they are looked for at their registry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.reason == "local-image" {
				stage.NotOn(t, engine.Docker29, "the containerd image store gives digests to images built here too, so they are looked for at their registry")
			}
			if tt.podman != "" {
				stage.NotOn(t, engine.Podman, tt.podman)
			}
			t.Parallel()
			r := newRig(t, start{config: tt.config})
			r.d.Remove(r.name)
			ref := tt.image(r)
			r.d.Run(stage.Spec{Name: r.name, Config: container.Config{Image: ref}})
			r.before = r.d.WaitRunning(r.name, 10*time.Second)
			digest := r.push("latest", stage.Image{Version: "v2"})
			got := r.check(0)
			if tt.reason == "local-image" {
				defer func() { require.NoError(t, errOf(r.d.ImageRemove(t.Context(), ref, removeImage))) }()
			}
			require.Equal(t, tt.reason, got.Reason, "%+v", got)
			if tt.reason != "update" {
				require.Equal(t, "none", r.once(0).Outcome)
				require.Equal(t, r.before.ID, r.alone().ID)
				return
			}
			require.Equal(t, "committed", r.once(0).Outcome)
			require.Equal(t, r.ref+"@"+digest, r.updated("v2", digest).Config.Image)
		})
	}
}

// TestWriteDigest: what updaterd wrote itself is no pin.
func TestWriteDigest(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{config: strings.Replace(settings, "health:", "write: digest\n  health:", 1)})
	if onPodman() {
		r.push("latest", stage.Image{Version: "v2"})
		got := r.once(1)
		require.Equal(t, "invalid-settings", got.Reason, "%+v", got)
		require.Contains(t, got.Detail, "take write: digest away")
		r.untouched()
		t.Attr("refused", "Podman forgets the tag of a reference with a digest")
		return
	}
	for _, version := range []string{"v2", "v3"} {
		digest := r.push("latest", stage.Image{Version: version})
		got := r.once(0)
		require.Equal(t, "committed", got.Outcome, "%+v", got)
		require.Equal(t, r.ref+"@"+digest, r.updated(version, digest).Config.Image)
	}
	require.Equal(t, "up-to-date", r.once(0).Reason)
}

// TestRolledBackByAPerson: that sticks, until a newer image comes.
func TestRolledBackByAPerson(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{tag: "1.0", change: func(s *stage.Spec) { s.Config.Labels = map[string]string{"updaterd.policy": "minor"} }})
	r.push("1.1", stage.Image{Version: "1.1"})
	require.Equal(t, "committed", r.once(0).Outcome)
	r.d.Remove(r.name)
	id := r.d.Run(stage.Spec{Name: r.name, Config: container.Config{Image: r.ref, Labels: map[string]string{"updaterd.policy": "minor"}}})
	got := r.once(0)
	require.Equal(t, "rolled-back", got.Reason, "%+v", got)
	require.Equal(t, id, r.alone().ID)
	r.push("1.2", stage.Image{Version: "1.2"})
	require.Equal(t, "committed", r.once(0).Outcome)
}

// TestReload: the file is used from the next pass on, a broken one is refused
// and the old one stays.
func TestReload(t *testing.T) {
	held := strings.Replace(settings, "health:", "mode: hold\n  health:", 1)
	for _, tt := range []struct {
		name  string
		write func(t *testing.T, u *stage.Updaterd, d *stage.Daemon, config string)
	}{
		{"an editor that renames", func(t *testing.T, u *stage.Updaterd, _ *stage.Daemon, config string) { u.WriteConfig(config) }},
		{"an editor that writes in place", func(t *testing.T, u *stage.Updaterd, _ *stage.Daemon, config string) {
			require.NoError(t, os.WriteFile(u.Config, []byte(config), 0o600))
		}},
		{"a symbolic link that is swapped", func(t *testing.T, u *stage.Updaterd, _ *stage.Daemon, config string) {
			// As Kubernetes does: the file is a link through ..data.
			data := filepath.Join(filepath.Dir(u.Config), "..data")
			dir, err := os.MkdirTemp(filepath.Dir(u.Config), "..")
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "updaterd.yaml"), []byte(config), 0o600))
			require.NoError(t, os.Symlink(filepath.Base(dir), data+".tmp"))
			require.NoError(t, os.Rename(data+".tmp", data))
		}},
		{"SIGHUP", func(t *testing.T, u *stage.Updaterd, d *stage.Daemon, config string) {
			require.NoError(t, os.WriteFile(u.Config, []byte(config), 0o600))
			d.Signal(syscall.SIGHUP)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{config: held})
			if strings.Contains(tt.name, "link") {
				tt.write(t, r.u, nil, held)
				require.NoError(t, os.Remove(r.u.Config))
				require.NoError(t, os.Symlink("..data/updaterd.yaml", r.u.Config))
			}
			digest := r.push("latest", stage.Image{Version: "v2"})
			daemon := r.u.Start("run")
			daemon.WaitLog("reason=held", 20*time.Second)
			tt.write(t, r.u, daemon, "schedule: [never]\nmode: off\n")
			daemon.WaitLog("configuration refused, the old one stays", 10*time.Second)
			require.Contains(t, daemon.Logs(), "schedule")
			asked := r.reg.Count("HEAD", "/manifests/")
			stage.Eventually(t, 20*time.Second, "another pass", func() bool { return r.reg.Count("HEAD", "/manifests/") > asked })
			r.untouched()
			tt.write(t, r.u, daemon, settings)
			daemon.WaitLog("phase=committed", 20*time.Second)
			require.Zero(t, daemon.Stop(10*time.Second))
			r.updated("v2", digest)
		})
	}
}

// TestReloadDoesNotReachAChangeUnderWay: it keeps its settings, also when
// updaterd is killed and started with others.
func TestReloadDoesNotReachAChangeUnderWay(t *testing.T) {
	t.Parallel()
	patient := strings.Replace(settings, "stable: 500ms", "stable: 6s", 1)
	r := newRig(t, start{config: patient})
	r.push("latest", stage.Image{Version: "v2", Behave: stage.Behaviour{Exit: ptr(3), ExitAfter: 4 * time.Second}})
	daemon := r.u.Start("run")
	daemon.WaitLog("phase=judging", 20*time.Second)
	r.u.WriteConfig(settings)
	daemon.WaitLog("configuration read again", 10*time.Second)
	daemon.WaitLog("change is over", 20*time.Second)
	require.Contains(t, daemon.Logs(), "phase=restored")
	require.Zero(t, daemon.Stop(10*time.Second))
	r.asItWas()
	require.Equal(t, "rejected", r.check(0).Reason)
}

// TestReloadOfThePartsThatNeedAStart: another engine, within the same process.
func TestReloadOfThePartsThatNeedAStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{config: settings + "docker: [{name: one, endpoint: \"unix:///nowhere/docker.sock\"}]\n"})
	digest := r.push("latest", stage.Image{Version: "v2"})
	daemon := r.u.Start("run")
	daemon.WaitLog("backend cannot be asked", 20*time.Second)
	r.u.WriteConfig(settings)
	daemon.WaitLog("phase=committed", 30*time.Second)
	require.Zero(t, daemon.Stop(10*time.Second))
	r.updated("v2", digest)
}

// TestDependsOn: what it depends on is updated first, and if that is bad it waits.
func TestDependsOn(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{}) // the database
	name := r.d.Name("app")
	ref := r.reg.Ref("acme/" + name + ":latest")
	r.reg.Push("acme/"+name+":latest", stage.Image{Version: "v1"})
	id := r.d.Run(stage.Spec{Name: name, Config: container.Config{Image: ref, Labels: map[string]string{"updaterd.depends-on": r.name}}})
	r.reg.Push("acme/"+name+":latest", stage.Image{Version: "v2"})
	r.pushBad("latest", "bad")
	outcome := func() map[string]row {
		rows := map[string]row{}
		for _, row := range parseRows(t, r.u.Run("run", "--once", "-o", "json").Stdout) {
			rows[strings.TrimPrefix(row.Workload, "local/")] = row
		}
		return rows
	}
	got := outcome()
	require.Equal(t, "restored", got[r.name].Outcome)
	require.Equal(t, "waiting", got[name].Reason, "%+v", got[name])
	require.Equal(t, id, r.d.Inspect(name).ID)
	r.push("latest", stage.Image{Version: "fixed"})
	got = outcome()
	require.Equal(t, "committed", got[r.name].Outcome)
	require.Equal(t, "committed", got[name].Outcome)
	require.Contains(t, r.d.Inspect(name).Config.Env, "APP_VERSION=v2")
}

package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// settings are the configuration of most tests: passes as often as can be, and
// verdicts as soon as can be.
const settings = `
schedule: "@every 1s"
jitter: 0s
watch: all
defaults:
  health: {timeout: 10s, stable: 500ms}
  stop-timeout: 2s
`

// rig is one container that runs an image of a registry, and an updaterd that
// watches it: what nearly every test begins with.
type rig struct {
	t   *testing.T
	d   *stage.Docker
	reg *stage.Registry
	u   *stage.Updaterd
	// name is the container's, ref its image's.
	name, ref string
	// spec is what the container was made from.
	spec stage.Spec
	// before is the container as it was.
	before container.InspectResponse
	// first is the digest of the image that it runs.
	first string
}

// start says how a rig differs from a plain one.
type start struct {
	engine   *stage.Docker   // the shared one
	registry *stage.Registry // one of its own
	tag      string          // "latest"
	config   string          // settings
	image    stage.Image     // a good one of version v1
	policy   string          // restart policy "no"
	change   func(*stage.Spec)
	waitFor  func(container.InspectResponse) bool // until it runs
}

func newRig(t *testing.T, s start) *rig {
	t.Helper()
	if s.engine == nil {
		s.engine = stage.OpenDocker(t)
	}
	if s.registry == nil {
		s.registry = stage.NewRegistry(t, stage.RegistryOptions{})
	}
	if s.tag == "" {
		s.tag = "latest"
	}
	if s.config == "" {
		s.config = settings
	}
	if s.image.Version == "" {
		s.image.Version = "v1"
	}
	r := &rig{t: t, d: s.engine, reg: s.registry, name: s.engine.Name("web")}
	r.ref = r.reg.Ref("acme/" + r.name + ":" + s.tag)
	r.first = r.push(s.tag, s.image)
	spec := stage.Spec{Name: r.name, Config: container.Config{Image: r.ref}}
	spec.Host.RestartPolicy.Name = container.RestartPolicyMode(s.policy)
	if s.policy == "on-failure" {
		spec.Host.RestartPolicy.MaximumRetryCount = 5
	}
	if s.change != nil {
		s.change(&spec)
	}
	t.Cleanup(r.sweep)
	r.spec = spec
	r.d.Run(spec)
	if s.waitFor == nil {
		s.waitFor = func(c container.InspectResponse) bool { return c.State.Running && !c.State.Restarting }
	}
	r.before = r.d.Wait(r.name, 20*time.Second, "as the test wants it", s.waitFor)
	r.u = stage.NewUpdaterd(t, r.d.Scoped(), s.config)
	return r
}

// push publishes an image in the repository of the rig's container.
func (r *rig) push(tag string, what stage.Artifact) string {
	r.t.Helper()
	return r.reg.Push("acme/"+r.name+":"+tag, what)
}

// pushBad publishes an image that exits at once.
func (r *rig) pushBad(tag, version string) string {
	r.t.Helper()
	return r.push(tag, stage.Image{Version: version, Behave: stage.Exit(3)})
}

// through has updaterd reach the engine by a proxy with these hooks.
func (r *rig) through(h stage.Hooks) *stage.Proxy {
	r.t.Helper()
	p := r.d.Proxy(h)
	r.u.Env[0] = "DOCKER_HOST=" + p.Host
	return p
}

// sweep takes the tags that updaterd keeps by design off a shared engine.
func (r *rig) sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), stage.Patience)
	defer cancel()
	if r.d.Engine != nil {
		return
	}
	list, err := r.d.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", stage.Label+"="+r.d.Mark))})
	if err != nil {
		r.t.Errorf("clean up the engine: %v", err)
	}
	for _, c := range list {
		if r.t.Failed() {
			r.t.Logf("left on the engine: %s %s of %s: %s", c.ID[:12], c.Names, c.Image, c.Status)
		}
		// It is removed again, and with errors seen, by the stage.
		_ = r.d.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}
	for _, tag := range r.tags("updaterd.local/*/" + r.name) {
		if err := r.d.RemoveImage(ctx, tag); err != nil {
			r.t.Errorf("clean up the engine: %v", err)
		}
	}
}

// tags are the engine's tags in repositories that match.
func (r *rig) tags(repository string) []string {
	r.t.Helper()
	images, err := r.d.Images(context.WithoutCancel(r.t.Context()), image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", repository))})
	require.NoError(r.t, err)
	prefix, suffix, _ := strings.Cut(repository, "*")
	var tags []string
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if repo := tag[:strings.LastIndex(tag, ":")]; strings.HasPrefix(repo, prefix) && strings.HasSuffix(repo, suffix) {
				tags = append(tags, tag)
			}
		}
	}
	return tags
}

// row is one of `check -o json` or `run --once -o json`.
type row struct {
	Backend   string  `json:"backend"`
	Workload  string  `json:"workload"`
	Image     string  `json:"image"`
	Digest    *string `json:"digest"`
	Policy    string  `json:"policy"`
	Decision  string  `json:"decision"`
	Candidate *struct {
		Image  string `json:"image"`
		Digest string `json:"digest"`
	} `json:"candidate"`
	Reason  string `json:"reason"`
	Detail  string `json:"detail"`
	Outcome string `json:"outcome"`
}

func parseRows(t *testing.T, out string) []row {
	t.Helper()
	var rows []row
	require.NoError(t, json.Unmarshal([]byte(out), &rows), out)
	return rows
}

// check returns the container's row, after requiring the exit code.
func (r *rig) check(code int) row {
	r.t.Helper()
	return r.only(r.u.Run("check", "-o", "json"), code)
}

// once makes one pass and returns the container's row.
func (r *rig) once(code int) row {
	r.t.Helper()
	return r.only(r.u.Run("run", "--once", "-o", "json"), code)
}

func (r *rig) only(res stage.Result, code int) row {
	r.t.Helper()
	rows := parseRows(r.t, res.Stdout)
	require.Len(r.t, rows, 1, res.Stdout)
	require.Equal(r.t, "local/"+r.name, rows[0].Workload)
	require.Equal(r.t, code, res.Code, "%+v", rows[0])
	return rows[0]
}

// updated requires the whole of the promise's first half: healthy on the new
// image, and nothing else.
func (r *rig) updated(version, digest string) container.InspectResponse {
	r.t.Helper()
	c := r.alone()
	require.NotEqual(r.t, r.before.ID, c.ID, "it is still the original")
	require.Contains(r.t, c.Config.Env, "APP_VERSION="+version)
	i := r.d.Image(c.Image)
	require.True(r.t, slices.ContainsFunc(i.RepoDigests, func(s string) bool { return strings.HasSuffix(s, "@"+digest) }),
		"it runs %s, wanted %s", i.RepoDigests, digest)
	require.True(r.t, c.State.Running && !c.State.Restarting, "%+v", c.State)
	require.JSONEq(r.t, said(r.t, r.before.HostConfig), said(r.t, c.HostConfig))
	require.Empty(r.t, r.tags("updaterd.local/kept/"+r.name))
	require.LessOrEqual(r.t, len(r.tags("updaterd.local/previous/"+r.name)), 1, "more than `keep`")
	return c
}

// asItWas requires the promise's second half: the original container itself.
func (r *rig) asItWas() container.InspectResponse {
	r.t.Helper()
	c := r.alone()
	require.Equal(r.t, r.before.ID, c.ID, "it is not the original")
	require.Equal(r.t, r.before.Name, c.Name)
	require.Equal(r.t, r.before.Image, c.Image)
	require.Equal(r.t, r.before.Config, c.Config)
	require.JSONEq(r.t, said(r.t, r.before.HostConfig), said(r.t, c.HostConfig))
	require.Equal(r.t, r.before.Mounts, c.Mounts)
	require.Equal(r.t, r.before.State.Running, c.State.Running, "%+v", c.State)
	require.Equal(r.t, r.before.Image, r.d.Image(r.before.Config.Image).ID, "the local tag stands for another image")
	require.Empty(r.t, r.tags("updaterd.local/kept/"+r.name))
	return c
}

// untouched requires that it was not even stopped.
func (r *rig) untouched() {
	r.t.Helper()
	require.Equal(r.t, r.before.State.StartedAt, r.asItWas().State.StartedAt, "it was started anew")
}

// alone requires that there is one container, with the right name.
func (r *rig) alone() container.InspectResponse {
	r.t.Helper()
	require.Equal(r.t, []string{r.name}, r.d.Names(), "one container, with the right name")
	return r.d.Inspect(r.name)
}

// said is what a value says as JSON, without the keys that say nothing: an
// engine shows an empty list as null in one container and as [] in the next.
func said(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(b, &m))
	for key, value := range m {
		if list, ok := value.([]any); value == nil || ok && len(list) == 0 {
			delete(m, key)
		}
	}
	b, err = json.Marshal(m)
	require.NoError(t, err)
	return string(b)
}

// event is one of `history -o json`.
type event struct {
	Workload, Event, Change, Verdict, Why, Who, Logs string
	From, To                                         *struct{ Image, Digest string }
}

func (r *rig) history() []event {
	r.t.Helper()
	res := r.u.Run("history", "-o", "json")
	require.Zero(r.t, res.Code)
	var events []event
	require.NoError(r.t, json.Unmarshal([]byte(res.Stdout), &events))
	return events
}

// at is where in the calls to the engine something is to happen.
type at struct {
	after bool
	match func(stage.Call) bool
}

func (a at) String() string {
	if a.after {
		return "after"
	}
	return "before"
}

// call matches the n-th changing call.
func call(n int) func(stage.Call) bool { return func(c stage.Call) bool { return c.N == n } }

// path matches calls by a part of "METHOD /path?query".
func path(part string) func(stage.Call) bool {
	return func(c stage.Call) bool { return strings.Contains(c.String()+"?"+c.Query.Encode(), part) }
}

// trap does something once, when a call comes by. The call that sprang it
// fails as it does when the connection breaks.
type trap struct {
	stage.Hooks
	// sprung is closed when it is over.
	sprung chan struct{}
}

func newTrap(where at, do func()) *trap {
	tr := &trap{sprung: make(chan struct{})}
	var once sync.Once
	hook := func(c stage.Call) error {
		if !where.match(c) {
			return nil
		}
		sprang := false
		once.Do(func() {
			do()
			close(tr.sprung)
			sprang = true
		})
		if sprang {
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	if where.after {
		tr.After = hook
	} else {
		tr.Before = hook
	}
	return tr
}

// aside is a trap whose call goes on as if nothing had happened.
func aside(where at, do func()) *trap {
	tr := &trap{sprung: make(chan struct{})}
	var once sync.Once
	hook := func(c stage.Call) error {
		if where.match(c) {
			once.Do(func() {
				do()
				close(tr.sprung)
			})
		}
		return nil
	}
	if where.after {
		tr.After = hook
	} else {
		tr.Before = hook
	}
	return tr
}

// runKilled starts updaterd and kills it at that call. It reports whether it
// came to that before the program ended by itself.
func (r *rig) runKilled(where at, args ...string) bool {
	r.t.Helper()
	victim := make(chan *stage.Daemon, 1)
	tr := newTrap(where, func() { (<-victim).Kill() })
	r.through(tr.Hooks)
	d := r.u.Start(args...)
	victim <- d
	select {
	case <-d.Done():
	case <-time.After(stage.Patience):
		r.t.Fatal("updaterd neither ended nor made the call")
	}
	r.through(stage.Hooks{})
	select {
	case <-tr.sprung:
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}

// within fails t when ch is not closed after timeout or stage.Patience, whichever
// is longer.
func within(t *testing.T, timeout time.Duration, what string, ch <-chan struct{}) {
	t.Helper()
	timeout = max(timeout, stage.Patience)
	select {
	case <-ch:
	case <-time.After(timeout):
		t.Fatalf("waited %s in vain for %s", timeout, what)
	}
}

// removeImage takes a tag away even if a container runs by it.
var removeImage = image.RemoveOptions{Force: true}

func errOf[T any](_ T, err error) error { return err }

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/go-connections/nat"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
	"golang.org/x/sys/unix"
)

// selfSettings are those of an updaterd in a container.
const selfSettings = settings + `
state: /state
`

// own is an updaterd in a container, which watches that container.
type own struct {
	t    *testing.T
	d    *stage.Docker
	reg  *stage.Registry
	name string
	ref  string
	port int
	// registry is where reg is on this machine's loopback.
	registry string
	// before is the container as it was, first the digest of its image.
	before container.InspectResponse
	first  string
	// proxy is how it reaches the engine; see Hooks.
	proxy *stage.Proxy
	// state is its volume, seen from here.
	state string
	// u are commands beside it, on the same state.
	u *stage.Updaterd

	mu     sync.Mutex
	netns  map[string]bool // network namespaces that the registry can be reached in
	wrong  []string        // calls of who did not lead
	makers []string        // who made the changing calls: container names, each once in a row
}

// ownImage is an image with the real program.
func (o *own) image(version string, cmd ...string) stage.Image {
	if len(cmd) == 0 {
		cmd = []string{"run"}
	}
	return stage.Image{
		Updaterd: true, Version: version, Cmd: cmd, Expose: []string{},
		// A helper has none of the original's labels, only the image's.
		Labels: map[string]string{stage.Label: o.d.Mark, "updaterd.policy": "digest", "com.docker.compose.project": "builder"},
	}
}

// newOwn starts one. hooks are called as the proxy's, after its own.
func newOwn(t *testing.T, hooks stage.Hooks, change func(*stage.Spec)) *own {
	t.Helper()
	o := &own{t: t, d: stage.OpenDocker(t), reg: stage.NewRegistry(t, stage.RegistryOptions{}), netns: map[string]bool{}}
	o.registry = o.reg.Host
	o.name = o.d.Name("updaterd")
	o.ref = o.reg.Ref("acme/" + o.name + ":latest")
	o.first = o.push(o.image("v1"))
	t.Cleanup(o.sweep)

	o.d.MakeVolume(o.name + "-state")
	v, err := o.d.VolumeInspect(t.Context(), o.name+"-state")
	require.NoError(t, err)
	o.state = v.Mountpoint
	o.u = stage.NewUpdaterd(t, o.d.Scoped(), selfSettings)
	o.u.Env = append(o.u.Env, "UPDATERD_STATE="+o.state)

	o.proxy = o.d.Proxy(stage.Hooks{
		Before: func(c stage.Call) error {
			if c.Path == "/containers/json" {
				// Before it can ask the registry, it asks which containers there are.
				if err := o.reach(c.Pid); err != nil {
					return err
				}
			}
			o.witness(c)
			if hooks.Before != nil {
				return hooks.Before(c)
			}
			return nil
		},
		After: hooks.After,
	})
	o.port = stage.FreePort(t)
	spec := stage.Spec{Name: o.name, Config: container.Config{Image: o.ref, ExposedPorts: nat.PortSet{stage.Port: {}}}}
	spec.Host = container.HostConfig{
		PortBindings: stage.Publish(o.port),
		Binds: []string{
			strings.TrimPrefix(o.proxy.Host, "unix://") + ":/var/run/docker.sock",
			o.u.Config + ":/etc/updaterd/updaterd.yaml:ro",
			o.name + "-state:/state",
		},
	}
	spec.Host.RestartPolicy.Name = container.RestartPolicyAlways
	if change != nil {
		change(&spec)
	}
	o.d.Run(spec)
	o.before = o.d.WaitRunning(o.name, 20*time.Second)
	return o
}

func (o *own) push(what stage.Artifact) string {
	o.t.Helper()
	return o.reg.Push("acme/"+o.name+":latest", what)
}

// sweep takes all containers away while nobody can make new ones, and the tags
// that updaterd keeps by design.
func (o *own) sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := o.d.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", stage.Label+"="+o.d.Mark))})
	if err != nil {
		o.t.Errorf("clean up the engine: %v", err)
	}
	for _, c := range list {
		if o.t.Failed() {
			if r, err := o.d.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true}); err == nil {
				text, _ := io.ReadAll(r)
				r.Close()
				o.t.Logf("left on the engine: %s %s (%s), which said:\n%s", c.Names, c.Image, c.Status, text)
			}
		}
		// It is removed again, and with errors seen, by the stage.
		_ = o.d.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true})
	}
	images, err := o.d.Images(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", "updaterd.local/*/"+o.name))})
	if err != nil {
		o.t.Errorf("clean up the engine: %v", err)
	}
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if strings.Contains(tag, o.name) {
				_ = o.d.RemoveImage(ctx, tag)
			}
		}
	}
}

// reach makes the registry, which is on this machine's loopback, reachable on
// that of the process's network.
func (o *own) reach(pid int) error {
	if pid == 0 {
		return fmt.Errorf("who asks cannot be told")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil || o.netns[ns] {
		return err
	}
	if err := reachable(o.t, pid, o.registry); err != nil {
		return err
	}
	o.netns[ns] = true
	return nil
}

// reachable makes what listens at an address of this machine's loopback reachable on
// that of a process's network, until the test ends.
func reachable(t *testing.T, pid int, address string) error {
	l, err := listenIn(pid, address)
	if err != nil {
		return err
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", address)
				if err != nil {
					return
				}
				defer out.Close()
				go io.Copy(out, in) //nolint:errcheck // Ends with the connection.
				io.Copy(in, out)    //nolint:errcheck // Likewise.
			}()
		}
	}()
	return nil
}

// listenIn listens in the network of another process.
func listenIn(pid int, addr string) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			done <- result{err: err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: err}
			return
		}
		l, err := net.Listen("tcp", addr)
		done <- result{l, err}
	}()
	r := <-done
	return r.l, r.err
}

// witness writes down calls that change something and were made by a process
// that does not hold the lock of the lead: two would be fighting.
func (o *own) witness(c stage.Call) {
	if c.N == 0 {
		return
	}
	who := o.whose(c.Pid)
	o.mu.Lock()
	if len(o.makers) == 0 || o.makers[len(o.makers)-1] != who {
		o.makers = append(o.makers, who)
	}
	o.mu.Unlock()
	if who == "helper" && kind(c) == "remove container" {
		return // it may be itself that it removes, when all is over
	}
	leader := 0
	for range 10 {
		leader = flockedBy(filepath.Join(o.state, "local.lock"))
		if leader == c.Pid || syscall.Kill(c.Pid, 0) != nil {
			return // or it was killed just now
		}
		// The kernel's list is no snapshot of them all. Who asks waits for us.
		time.Sleep(10 * time.Millisecond)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wrong = append(o.wrong, fmt.Sprintf("%s by %s, pid %d, while pid %d leads", c, who, c.Pid, leader))
}

// whose says which container a process is the first of: "old", "new" or "helper".
func (o *own) whose(pid int) string {
	list, err := o.d.ContainerList(context.Background(), container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", stage.Label+"="+o.d.Mark))})
	if err != nil {
		return err.Error()
	}
	for _, c := range list {
		i, err := o.d.ContainerInspect(context.Background(), c.ID)
		if err != nil || i.State.Pid != pid {
			continue
		}
		switch {
		case c.Labels["updaterd-swap.finishes"] != "":
			return "helper"
		case c.ID == o.before.ID:
			return "old"
		}
		return "new"
	}
	return "nobody"
}

// flockedBy is the process that has locked the file; 0 when none has.
func flockedBy(path string) int {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF
		f := strings.Fields(line)
		if len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], ":"+strconv.FormatUint(st.Ino, 10)) {
			pid, _ := strconv.Atoi(f[4])
			return pid
		}
	}
	return 0
}

// settles waits until one updaterd runs under the name, from the image of that
// version, with the change written down as over, and nothing is left; and
// requires that it is the whole of what was, and that nobody fought.
func (o *own) settles(version string) container.InspectResponse {
	o.t.Helper()
	var now string
	over := func() bool {
		names := o.d.Names()
		now = fmt.Sprint(names)
		if !slices.Equal(names, []string{o.name}) {
			return false
		}
		c, err := o.d.ContainerInspect(o.t.Context(), o.name)
		if err != nil {
			return false
		}
		now = fmt.Sprintf("%v %s running=%t", names, c.Config.Env, c.State.Running)
		// It leads again, so the change is over.
		return c.State.Running && !c.State.Restarting && slices.Contains(c.Config.Env, "APP_VERSION="+version) &&
			flockedBy(filepath.Join(o.state, "local.lock")) == c.State.Pid
	}
	deadline := time.Now().Add(stage.Patience)
	for !over() {
		if time.Now().After(deadline) {
			o.t.Fatalf("waited in vain for one updaterd %s that leads: %s", version, now)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c := o.d.Inspect(o.name)
	require.JSONEq(o.t, said(o.t, o.before.HostConfig), said(o.t, c.HostConfig))
	require.ElementsMatch(o.t, o.before.Mounts, c.Mounts)
	require.Equal(o.t, o.before.NetworkSettings.Ports, c.NetworkSettings.Ports, "the published port")
	require.NotEmpty(o.t, c.NetworkSettings.Ports[stage.Port])
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Empty(o.t, o.wrong, "two are fighting")
	return c
}

// row is what check says of the container, by a process beside it.
func (o *own) row() row {
	o.t.Helper()
	rows := parseRows(o.t, o.u.Run("check", "-o", "json").Stdout)
	require.Len(o.t, rows, 1)
	require.Equal(o.t, "local/"+o.name, rows[0].Workload)
	return rows[0]
}

// events is the history, newest first.
func (o *own) events() []event {
	o.t.Helper()
	res := o.u.Run("history", "-o", "json")
	require.Zero(o.t, res.Code)
	var events []event
	require.NoError(o.t, json.Unmarshal([]byte(res.Stdout), &events))
	return events
}

func (o *own) last() event {
	o.t.Helper()
	events := o.events()
	require.NotEmpty(o.t, events)
	return events[0]
}

// updates are the images that updaterd is to update itself to.
var updates = map[string]struct {
	cmd []string
	bad bool
}{
	"good":            {cmd: []string{"run"}},
	"exits at once":   {cmd: []string{"version"}, bad: true},
	"dies at a start": {cmd: []string{"run", "--config", "/nowhere.yaml"}, bad: true},
}

// waits until something shows in the history. Each look is a process of its own, so
// there are not as many as there could be.
func (o *own) waits(what string, shows func() bool) {
	o.t.Helper()
	stage.Eventually(o.t, stage.Patience, what, func() bool {
		time.Sleep(300 * time.Millisecond)
		return shows()
	})
}

// ends requires the end that an update must come to.
func (o *own) ends(bad bool) {
	o.t.Helper()
	// After a bad one it will look as it did before.
	o.waits("the end of the change", func() bool { return len(o.events()) > 0 })
	if last := o.last(); !bad && last.Verdict == "unclear" && strings.Contains(last.Why, "does not answer") {
		// This machine's engine is slow at times, which speaks for no image: what
		// was is there again, and it is tried again later.
		o.t.Logf("the engine did not answer in time: %s", last.Why)
		bad = true
	}
	if !bad {
		c := o.settles("v2")
		require.NotEqual(o.t, o.before.ID, c.ID)
		return
	}
	c := o.settles("v1")
	require.Equal(o.t, o.before.ID, c.ID, "the very container")
	require.Equal(o.t, o.before.Config, c.Config)
}

func TestUpdaterdUpdatesItself(t *testing.T) {
	for name, update := range updates {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOwn(t, stage.Hooks{}, nil)
			stage.Eventually(t, 20*time.Second, "the first pass", func() bool {
				return strings.Contains(o.d.Logs(o.name), `msg="pass over"`)
			})
			digest := o.push(o.image("v2", update.cmd...))
			o.ends(update.bad)
			last := "old"
			if update.bad {
				require.Len(t, o.events(), 1)
				require.Equal(t, "restored", o.last().Event)
				require.Equal(t, "bad", o.last().Verdict)
				require.Equal(t, "rejected", o.row().Reason)
			} else {
				last = "new"
				require.Len(t, o.events(), 1)
				require.Equal(t, "updated", o.last().Event)
				i := o.d.Image(o.d.Inspect(o.name).Image)
				require.True(t, slices.ContainsFunc(i.RepoDigests, func(s string) bool { return strings.HasSuffix(s, "@"+digest) }))
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			require.Contains(t, [][]string{{"old", "helper"}, {"old", "helper", last}}, o.makers, "one hands over to the next, and does nothing more")
		})
	}
}

// TestUpdaterdIsToldToRollItselfBack: whoever says so hears that a helper goes on, from a
// daemon that ends in the middle.
func TestUpdaterdIsToldToRollItselfBack(t *testing.T) {
	t.Parallel()
	o := newOwn(t, stage.Hooks{}, nil)
	stage.Eventually(t, 20*time.Second, "the first pass", func() bool {
		return strings.Contains(o.d.Logs(o.name), `msg="pass over"`)
	})
	o.push(o.image("v2"))
	o.ends(false)
	if o.last().Event != "updated" {
		return // this machine's engine was slow, and there is nothing to go back to
	}
	stage.Eventually(t, stage.Patience, "the socket of the new one", func() bool { return o.u.Run("status").Code == 0 })

	res := o.u.Run("rollback", o.name, "-o", "json")
	require.Equal(t, 1, res.Code, "its end is not to be seen: %s", res.Stderr)
	rows := parseRows(t, res.Stdout)
	require.Len(t, rows, 1, res.Stderr)
	require.Equal(t, "open", rows[0].Outcome, res.Stdout)
	require.Equal(t, "in-progress", rows[0].Reason)
	require.Contains(t, rows[0].Detail, "the helper that replaces updaterd itself goes on with it")

	o.waits("the end of the change", func() bool { return o.last().Event != "rollback-asked" })
	if last := o.last(); last.Verdict != "unclear" {
		require.Equal(t, "rolled-back", last.Event)
		o.settles("v1")
	}
}

// TestUpdaterdUpdatesItselfByItsHealthCheck: what stands by is well, to the engine
// that asks it, and to the gate.
func TestUpdaterdUpdatesItselfByItsHealthCheck(t *testing.T) {
	t.Parallel()
	o := newOwn(t, stage.Hooks{}, nil)
	checked := func(version string, test ...string) stage.Image {
		i := o.image(version)
		i.Healthcheck = &v1.HealthConfig{Test: test, Interval: 300 * time.Millisecond, Timeout: 5 * time.Second, Retries: 2}
		return i
	}
	o.push(checked("v2", "CMD", "/updaterd", "status"))
	o.d.WaitHealthy(o.settles("v2").ID, 20*time.Second)
	require.Equal(t, "updated", o.last().Event)
	o.push(checked("v3", "CMD", "/updaterd", "status", "--config", "/nowhere.yaml"))
	stage.Eventually(t, stage.Patience, "the bad one to be tried", func() bool {
		return len(o.events()) == 2
	})
	o.settles("v2")
	require.Equal(t, "restored", o.last().Event)
	require.Equal(t, "bad", o.last().Verdict)
}

// together answers no question until so many different ones are asked at once, as
// one pass does; a pass of which some were answered before gets no answer.
func together(n int) stage.Fault {
	var mu sync.Mutex
	waiting := map[string]int{}
	open := make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		mu.Lock()
		waiting[r.URL.Path]++
		if len(waiting) == n {
			select {
			case <-open:
			default:
				close(open)
			}
		}
		mu.Unlock()
		select {
		case <-open:
			next.ServeHTTP(w, r)
			return
		case <-time.After(2 * time.Second):
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}
		mu.Lock()
		defer mu.Unlock()
		if waiting[r.URL.Path]--; waiting[r.URL.Path] == 0 {
			delete(waiting, r.URL.Path)
		}
	}
}

// TestUpdaterdUpdatesItselfAlone: another container is updated in the same pass,
// and neither while the other's change is under way.
func TestUpdaterdUpdatesItselfAlone(t *testing.T) {
	t.Parallel()
	o := newOwn(t, stage.Hooks{}, nil)
	web := o.d.Name("web")
	ref := o.reg.Ref("acme/" + web + ":latest")
	o.reg.Push("acme/"+web+":latest", stage.Image{Version: "v1"})
	o.d.Run(stage.Spec{Name: web, Config: container.Config{Image: ref}})
	before := o.d.WaitRunning(web, 20*time.Second)

	// Both come in one pass.
	o.reg.Down()
	o.reg.Fail("HEAD", "/manifests/latest", 0, together(2))
	o.push(o.image("v2"))
	o.reg.Push("acme/"+web+":latest", stage.Image{Version: "v2"})
	o.reg.Up()

	stage.Eventually(t, stage.Patience, "both to be new", func() bool {
		if !slices.Equal(o.d.Names(), slices.Sorted(slices.Values([]string{o.name, web}))) {
			return false
		}
		return slices.Contains(o.d.Inspect(web).Config.Env, "APP_VERSION=v2") && slices.Contains(o.d.Inspect(o.name).Config.Env, "APP_VERSION=v2")
	})
	ids := map[string]string{before.ID: web, o.before.ID: o.name}
	var order []string
	for _, c := range o.proxy.Calls() {
		for id, name := range ids {
			about := strings.Contains(c.Path, id) || strings.HasPrefix(c.Query.Get("name"), name+".updaterd-")
			if about && (len(order) == 0 || order[len(order)-1] != name) {
				order = append(order, name)
			}
		}
	}
	require.Equal(t, []string{web, o.name}, order, "itself last, and one after the other")
}

// TestUpdaterdIsKilledWhileItUpdatesItself kills, at each call that changes
// something, the process that makes it, or all that stand by.
func TestUpdaterdIsKilledWhileItUpdatesItself(t *testing.T) {
	for name, update := range updates {
		if name == "exits at once" {
			continue // as the other bad one, from where updaterd sees it
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls []stage.Call
			o := newOwn(t, stage.Hooks{}, nil)
			o.push(o.image("v2", update.cmd...))
			o.ends(update.bad)
			calls = o.proxy.Calls()
			count := map[string]int{}
			for k, c := range calls {
				what := kind(c)
				count[what]++
				n := count[what]
				if update.bad && strings.Contains(what, "image") || update.bad && strings.Contains(what, "tag") {
					continue // as in any other update
				}
				t.Logf("%2d %s %d", c.N, what, n)
				for _, victim := range []string{"who calls", "who stands by"} {
					if victim == "who stands by" && k%3 != 1 {
						continue
					}
					after := victim == "who stands by" || k%4 != 3
					where := at{after: after, match: nth(what, n)}
					t.Run(fmt.Sprintf("%s %s %d, %s", where, what, n, victim), func(t *testing.T) {
						t.Parallel()
						var o *own
						ready := make(chan struct{})
						tr := newOwnTrap(where, func(c stage.Call) {
							<-ready
							if victim == "who calls" {
								slay(c.Pid)
								return
							}
							for _, b := range o.running() {
								if b.State.Pid != c.Pid {
									slay(b.State.Pid)
								}
							}
						}, victim == "who calls")
						o = newOwn(t, tr.Hooks, nil)
						close(ready)
						o.push(o.image("v2", update.cmd...))
						// Not every update makes the same calls: the engine starts a bad one again
						// and again, and the one of two that comes first removes what is left.
						stage.Eventually(t, stage.Patience, "the call, or the end", func() bool {
							select {
							case <-tr.sprung:
								return true
							case <-time.After(300 * time.Millisecond):
								return len(o.events()) > 0
							}
						})
						o.ends(update.bad)
					})
				}
			}
		})
	}
}

// TestTheHelperIsRemoved removes the helper for good, wherever one of the two
// updaterds runs and can go on.
func TestTheHelperIsRemoved(t *testing.T) {
	for _, row := range []struct {
		what string
		n    int
		bad  bool
	}{
		{"start", 1, false},  // its own
		{"update", 1, false}, // the old one runs, without its restart policy
		{"start", 2, false},  // the new one runs, under its name for the time being
		{"rename to name updaterd-old", 1, false},
		{"rename to name", 1, false},
		{"untag kept", 1, false}, // the gate has passed
		{"remove container", 1, false},
		{"start", 1, true},
		{"update", 1, true},
		{"start the old one", 1, true}, // it runs again
	} {
		name := fmt.Sprintf("after %s %d", row.what, row.n)
		if row.bad {
			name += ", bad"
		}
		t.Run(name, func(t *testing.T) {
			if row.what == "update" {
				stage.NotOn(t, engine.Podman, noChange)
			}
			t.Parallel()
			var o *own
			ready := make(chan struct{})
			match := nth(row.what, row.n)
			if row.what == "start the old one" {
				match = func(c stage.Call) bool {
					select {
					case <-ready:
						return c.Path == "/containers/"+o.before.ID+"/start"
					default:
						return false
					}
				}
			}
			tr := newOwnTrap(at{after: true, match: match}, func(stage.Call) {
				<-ready
				_ = o.d.ContainerRemove(context.Background(), o.name+".updaterd-finish", container.RemoveOptions{Force: true})
			}, false)
			o = newOwn(t, tr.Hooks, nil)
			close(ready)
			cmd := []string{"run"}
			if row.bad {
				cmd = updates["dies at a start"].cmd
			}
			o.push(o.image("v2", cmd...))
			within(t, stage.Patience, "the call", tr.sprung)
			o.ends(row.bad)
		})
	}
}

// TestNobodyIsLeft removes the helper for good while no updaterd runs: then a
// person has to stop the new one, which may hold the port, and start the old one,
// as the page on self-updates says, and that is all they have to do.
func TestNobodyIsLeft(t *testing.T) {
	for _, row := range []struct {
		what  string
		stop  bool   // the new one has been started
		start string // the old one
		bad   bool
	}{
		{"stop", false, "%s", false},
		{"stop", false, "%s", true},
		{"rename to name updaterd-old", true, "%s.updaterd-old", true},
		{"rename to name", true, "%s.updaterd-old", true},
	} {
		name := "after " + row.what
		if row.bad {
			name += ", bad"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var o *own
			ready := make(chan struct{})
			tr := newOwnTrap(at{after: true, match: nth(row.what, 1)}, func(stage.Call) {
				<-ready
				_ = o.d.ContainerRemove(context.Background(), o.name+".updaterd-finish", container.RemoveOptions{Force: true})
			}, false)
			o = newOwn(t, tr.Hooks, nil)
			close(ready)
			cmd := []string{"run"}
			if row.bad {
				cmd = updates["dies at a start"].cmd
			}
			o.push(o.image("v2", cmd...))
			within(t, stage.Patience, "the call", tr.sprung)
			for _, c := range o.d.Containers() {
				if row.stop && c.ID != o.before.ID {
					require.NoError(t, o.d.ContainerStop(t.Context(), c.ID, container.StopOptions{}))
				}
			}
			// Podman's port forwarder outlives the container that was stopped.
			stage.Eventually(t, 20*time.Second, "the old one to start", func() bool {
				return o.d.ContainerStart(t.Context(), fmt.Sprintf(row.start, o.name), container.StartOptions{}) == nil
			})
			o.ends(row.bad)
		})
	}
}

// running are the containers that run.
func (o *own) running() []container.InspectResponse {
	list, err := o.d.ContainerList(context.Background(), container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", stage.Label+"="+o.d.Mark))})
	if err != nil {
		return nil
	}
	var found []container.InspectResponse
	for _, c := range list {
		if b, err := o.d.ContainerInspect(context.Background(), c.ID); err == nil && b.State.Running && b.State.Pid > 0 {
			found = append(found, b)
		}
	}
	return found
}

// slay ends a process as kill -9 and waits until it is gone. An engine then
// goes by the restart policy, which it does not after "docker kill".
func slay(pid int) {
	if pid <= 0 || syscall.Kill(pid, syscall.SIGKILL) != nil {
		return
	}
	for range 500 {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// newOwnTrap is newTrap for what must know whose call it was. breaks is whether
// the call then fails.
func newOwnTrap(where at, do func(stage.Call), breaks bool) *trap {
	tr := &trap{sprung: make(chan struct{})}
	var once sync.Once
	hook := func(c stage.Call) error {
		if !where.match(c) {
			return nil
		}
		sprang := false
		once.Do(func() {
			do(c)
			close(tr.sprung)
			sprang = true
		})
		if sprang && breaks {
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

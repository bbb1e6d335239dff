package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// judged makes a rig whose update is in the gate, with the daemon that waits
// there, and what the gate will say after about three seconds.
func judged(t *testing.T, bad bool, s start) (*rig, *stage.Daemon, string) {
	t.Helper()
	s.config = strings.Replace(settings, "stable: 500ms", "stable: 4s", 1)
	r := newRig(t, s)
	next := stage.Image{Version: "v2"}
	if bad {
		next.Behave = stage.Behaviour{Exit: ptr(3), ExitAfter: 3 * time.Second}
	}
	digest := r.push("latest", next)
	daemon := r.u.Start("run")
	daemon.WaitLog("phase=judging", time.Minute)
	return r, daemon, digest
}

// over waits for the end of the change and of the daemon.
func over(r *rig, daemon *stage.Daemon, phase string) {
	r.t.Helper()
	daemon.WaitLog(`msg="change is over"`, 40*time.Second)
	require.Contains(r.t, daemon.Logs(), `phase=`+phase)
	require.Zero(r.t, daemon.Stop(20*time.Second))
}

// TestSomebodyInterferes in the middle of a swap.
func TestSomebodyInterferes(t *testing.T) {
	t.Run("removes the new container", func(t *testing.T) {
		t.Parallel()
		r, daemon, _ := judged(t, false, start{policy: "always"})
		r.d.Remove(r.name)
		over(r, daemon, "restored")
		r.asItWas()
		got := r.check(1)
		require.Equal(t, "surroundings", got.Reason)
		// A removal by force stops it first, and a look may come in between.
		require.Regexp(t, "somebody (removed|stopped) it", got.Detail)
	})
	t.Run("renames the new container", func(t *testing.T) {
		t.Parallel()
		r, daemon, _ := judged(t, false, start{policy: "always"})
		require.NoError(t, r.d.ContainerRename(t.Context(), r.name, r.name+"-mine"))
		over(r, daemon, "restored")
		r.asItWas()
		require.Contains(t, r.check(1).Detail, "somebody renamed it to "+r.name+"-mine")
	})
	t.Run("makes another container in its place", func(t *testing.T) {
		t.Parallel()
		r, daemon, _ := judged(t, false, start{policy: "always"})
		// Held meanwhile, or the original could have its name back in between.
		daemon.Signal(syscall.SIGSTOP)
		r.d.Remove(r.name)
		id := r.d.Run(stage.Spec{Name: r.name, Config: container.Config{Image: r.ref, Env: []string{"MINE=1"}}})
		daemon.Signal(syscall.SIGCONT)
		over(r, daemon, "superseded")
		c := r.d.Inspect(r.name)
		require.Equal(t, id, c.ID, "it is somebody's own")
		require.True(t, c.State.Running)
		require.NotContains(t, r.d.Names(), r.name+".updaterd-new")
		for _, name := range r.d.Names() {
			require.False(t, name != r.name && r.d.Inspect(name).State.Running, "%s runs beside it", name)
		}
	})
	t.Run("removes the new container and the old one", func(t *testing.T) {
		t.Parallel()
		r, daemon, _ := judged(t, false, start{})
		r.d.Remove(r.before.ID)
		r.d.Remove(r.name)
		daemon.WaitLog(`msg="change is over"`, 40*time.Second)
		require.Zero(t, daemon.Stop(10*time.Second))
		// Somebody wanted both gone, or made a mistake: a copy, or nothing.
		require.LessOrEqual(t, len(r.d.Names()), 1)
	})
	t.Run("prunes the old container, and the new one is good", func(t *testing.T) {
		t.Parallel()
		r, daemon, digest := judged(t, false, start{policy: "always"})
		r.d.Remove(r.before.ID)
		over(r, daemon, "committed")
		r.updated("v2", digest)
	})
	t.Run("prunes the old container and images, and the new one is bad", func(t *testing.T) {
		t.Parallel()
		r, daemon, _ := judged(t, true, start{policy: "on-failure", change: func(s *stage.Spec) {
			s.Config.Env = []string{"MINE=1"}
			s.Config.Labels = map[string]string{"shop": "1"}
		}})
		r.d.Remove(r.before.ID)
		if r.d.Engine != nil {
			_, err := r.d.ImagesPrune(t.Context(), filters.NewArgs())
			require.NoError(t, err)
		}
		over(r, daemon, "restored")
		c := r.alone()
		require.True(t, c.State.Running)
		require.Equal(t, r.before.Image, c.Image)
		require.Equal(t, r.ref, c.Config.Image)
		require.JSONEq(t, said(t, r.before.HostConfig), said(t, c.HostConfig))
		require.Contains(t, c.Config.Env, "MINE=1")
		require.Contains(t, c.Config.Env, "APP_VERSION=v1")
		require.Equal(t, "1", c.Config.Labels["shop"])
		require.Equal(t, r.before.Image, r.d.Image(r.ref).ID)
		told := r.history()
		require.Contains(t, told[0].Why, "copy")
		require.Equal(t, "rejected", r.check(0).Reason)
	})
	t.Run("stops the old container before the swap", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		r.push("latest", stage.Image{Version: "v2"})
		tr := aside(at{after: true, match: nth("create", 1)}, func() {
			if err := r.d.ContainerStop(context.Background(), r.name, container.StopOptions{}); err != nil {
				t.Error(err)
			}
		})
		r.through(tr.Hooks)
		require.Equal(t, "superseded", r.once(0).Outcome)
		c := r.alone()
		require.Equal(t, r.before.ID, c.ID)
		require.False(t, c.State.Running, "somebody stopped it")
		require.Equal(t, container.RestartPolicyMode("always"), c.HostConfig.RestartPolicy.Name)
	})
	t.Run("changes the old container before the swap", func(t *testing.T) {
		stage.NotOn(t, engine.Podman, noChange)
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		r.push("latest", stage.Image{Version: "v2"})
		tr := aside(at{after: true, match: nth("create", 1)}, func() {
			_, err := r.d.ContainerUpdate(context.Background(), r.name, container.UpdateConfig{RestartPolicy: container.RestartPolicy{Name: "unless-stopped"}})
			if err != nil {
				t.Error(err)
			}
		})
		r.through(tr.Hooks)
		require.Equal(t, "superseded", r.once(0).Outcome)
		c := r.alone()
		require.Equal(t, r.before.State.StartedAt, c.State.StartedAt, "it was touched")
		require.Equal(t, container.RestartPolicyMode("unless-stopped"), c.HostConfig.RestartPolicy.Name)
	})
	t.Run("recreates the container before the swap", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		r.push("latest", stage.Image{Version: "v2"})
		var id string
		tr := aside(at{after: true, match: nth("create", 1)}, func() {
			r.d.Remove(r.name)
			id = r.d.Run(stage.Spec{Name: r.name, Config: container.Config{Image: r.ref}})
		})
		r.through(tr.Hooks)
		require.Equal(t, "superseded", r.once(0).Outcome)
		c := r.alone()
		require.Equal(t, id, c.ID)
		require.True(t, c.State.Running)
	})
	t.Run("removes the container before the swap", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{})
		r.push("latest", stage.Image{Version: "v2"})
		tr := aside(at{after: true, match: nth("create", 1)}, func() { r.d.Remove(r.name) })
		r.through(tr.Hooks)
		r.u.Run("run", "--once")
		require.Empty(t, r.d.Names(), "what somebody removed came back")
	})
	t.Run("moves the tag back while the new container is made", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		digest := r.push("latest", stage.Image{Version: "v2"})
		tr := aside(at{match: nth("create", 1)}, func() {
			if err := r.d.ImageTag(context.Background(), r.before.Image, r.ref); err != nil {
				t.Error(err)
			}
		})
		r.through(tr.Hooks)
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
	t.Run("moves the tag back, and updaterd is killed before it can see what it made", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		digest := r.push("latest", stage.Image{Version: "v2"})
		tagged, created := nth("tag", 1), nth("create", 1)
		require.True(t, r.runKilled(at{after: true, match: func(c stage.Call) bool {
			if tagged(c) {
				if err := r.d.ImageTag(context.Background(), r.before.Image, r.ref); err != nil {
					t.Error(err)
				}
			}
			return created(c)
		}}, "run", "--once"))
		require.Equal(t, r.before.Image, r.d.Inspect(r.name+".updaterd-new").Image, "it was made of the wrong image")
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
	t.Run("prunes the new container before the swap", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		r.push("latest", stage.Image{Version: "v2"})
		first := "update"
		if onPodman() {
			first = "stop"
		}
		tr := aside(at{match: nth(first, 1)}, func() { r.d.Remove(r.name + ".updaterd-new") })
		r.through(tr.Hooks)
		require.NotEqual(t, "committed", r.once(1).Outcome)
		r.asItWas()
	})
}

// TestNewContainerCannotHaveWhatItNeeds: no fault of the image, so it is not
// rejected.
func TestNewContainerCannotHaveWhatItNeeds(t *testing.T) {
	t.Parallel()
	port := stage.FreePort(t)
	r := newRig(t, start{policy: "always", change: func(s *stage.Spec) { s.Host.PortBindings = stage.Publish(port) }})
	r.push("latest", stage.Image{Version: "v2"})
	// Taken as soon as the old one has let it go, and given back after.
	var thief string
	tr := aside(at{match: nth("start", 1)}, func() {
		thief = r.d.Run(stage.Spec{Config: container.Config{Image: r.ref}, Host: container.HostConfig{PortBindings: stage.Publish(port)}})
	})
	tr.After = func(c stage.Call) error {
		if kind(c) == "start" && c.Status >= 400 {
			r.d.Remove(thief)
		}
		return nil
	}
	r.through(tr.Hooks)
	got := r.once(1)
	require.Equal(t, "restored", got.Outcome, "%+v", got)
	require.Contains(t, got.Detail, fmt.Sprint(port))
	r.asItWas()
	got = r.check(1)
	require.Equal(t, "surroundings", got.Reason)
	require.Contains(t, got.Detail, "updaterd forget")
}

// TestTakenWhenRestoring: a restore that the engine refuses stays open, is
// retried and loud, and succeeds once the way is free.
func TestTakenWhenRestoring(t *testing.T) {
	for _, what := range []string{"name", "port", "address"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			port := stage.FreePort(t)
			s := start{policy: "no"} // an engine that starts it anew would mix up the calls
			d := stage.StartDocker(t, engine.Options{})
			s.engine = d
			mine := d.Engine.Spare
			ip := mine.Addr().Next().Next().Next().String()
			switch what {
			case "port":
				s.change = func(s *stage.Spec) { s.Host.PortBindings = stage.Publish(port) }
			case "address":
				d.MakeNetwork("mine", network.CreateOptions{IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: mine.String()}}}})
				s.change = func(s *stage.Spec) {
					s.Host.NetworkMode = "mine"
					s.Network.EndpointsConfig = map[string]*network.EndpointSettings{"mine": {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: ip}}}
				}
			}
			r := newRig(t, s)
			r.pushBad("latest", "bad")
			taken := make(chan string, 1)
			steal := func(spec stage.Spec) {
				spec.Config.Image = r.before.Image // the tag stands for the bad one now
				taken <- d.Run(spec)
			}
			// The new one has been stopped, and the original is about to be back.
			tr := aside(at{match: nth("start", 2)}, func() {
				switch what {
				case "port":
					steal(stage.Spec{Name: "thief", Host: container.HostConfig{PortBindings: stage.Publish(port)}})
				case "address":
					steal(stage.Spec{
						Name: "thief", Host: container.HostConfig{NetworkMode: "mine"},
						Network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"mine": {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: ip}}}},
					})
				}
			})
			if what == "name" {
				tr = aside(at{match: nth("rename to name", 2)}, func() { steal(stage.Spec{Name: r.name}) })
			}
			r.through(tr.Hooks)
			daemon := r.u.Start("run")
			within(t, 40*time.Second, "the restore", tr.sprung)
			thief := <-taken
			if what == "name" {
				// Somebody's container has the name: it is theirs now.
				over(r, daemon, "superseded")
				require.Equal(t, thief, d.Inspect(r.name).ID)
				require.True(t, d.Inspect(r.name).State.Running)
				require.Contains(t, daemon.Logs(), r.name+".updaterd-old")
				require.Equal(t, r.before.ID, d.Inspect(r.name+".updaterd-old").ID, "the original is kept for whoever wants it")
				return
			}
			daemon.WaitLog("restore does not succeed, the workload may be down", 20*time.Second)
			if what != "address" || !onPodman() { // it does not tell who holds one
				daemon.WaitLog("thief holds it", 20*time.Second)
			}
			require.Equal(t, "in-progress", func() string {
				rows := parseRows(t, r.u.Run("check", "-o", "json", r.name).Stdout)
				return rows[0].Reason
			}())
			d.Remove(thief)
			daemon.WaitLog(`msg="change is over"`, 60*time.Second)
			require.Contains(t, daemon.Logs(), "phase=restored")
			require.Zero(t, daemon.Stop(20*time.Second))
			r.asItWas()
			require.Equal(t, "rejected", r.check(0).Reason)
		})
	}
}

// TestTwoUpdaterdWithTwoStates: the second leaves the first one's live swap alone.
func TestTwoUpdaterdWithTwoStates(t *testing.T) {
	t.Parallel()
	r, daemon, digest := judged(t, false, start{policy: "always"})
	other := stage.NewUpdaterd(t, r.d.Scoped(), settings)
	p := r.d.Proxy(stage.Hooks{})
	other.Env[0] = "DOCKER_HOST=" + p.Host
	second := other.Start("run")
	second.WaitLog("pass over", 20*time.Second)
	require.Empty(t, p.Calls(), "it touched another's swap")
	require.Equal(t, 1, strings.Count(second.Logs(), "change of another updaterd is left alone"), "once, however often it looks")
	over(r, daemon, "committed")
	r.updated("v2", digest)
	stage.Eventually(t, 10*time.Second, "the second to see it", func() bool {
		rows := parseRows(t, other.Run("check", "-o", "json").Stdout)
		return len(rows) == 1 && rows[0].Reason == "up-to-date"
	})
	require.Zero(t, second.Stop(10*time.Second))
	require.Empty(t, p.Calls())
	r.updated("v2", digest)
}

// TestTwoUpdaterdAtOnce with two states, from the same moment on.
func TestTwoUpdaterdAtOnce(t *testing.T) {
	for _, bad := range []bool{false, true} {
		t.Run(map[bool]string{false: "good", true: "bad"}[bad], func(t *testing.T) {
			t.Parallel()
			s := story{"always", bad}
			r, digest := s.begin(t, nil)
			other := stage.NewUpdaterd(t, r.d.Scoped(), settings)
			one, two := r.u.Start("run", "--once"), other.Start("run", "--once")
			one.Wait(time.Minute)
			two.Wait(time.Minute)
			r.u.Run("run", "--once")
			s.holds(r, digest)
		})
	}
}

// TestStateDirectoryIsFull: nothing new is begun, and what was begun goes back.
func TestStateDirectoryIsFull(t *testing.T) {
	fill := func(t *testing.T, dir string) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, "ballast"))
		if err != nil {
			return // as full as can be
		}
		_, _ = io.Copy(f, io.LimitReader(zeros{}, 1<<20)) // until it is full
		require.NoError(t, f.Close())
	}
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		digest := r.push("latest", stage.Image{Version: "v2"})
		// Full before there is a journal: one that is there has room of its own.
		r.u.State = stage.SmallDir(t, 64<<10)
		fill(t, r.u.State)
		res := r.u.Run("run", "--once", "-o", "json")
		require.Equal(t, 1, res.Code)
		require.Contains(t, res.Stdout+res.Stderr, "no space left")
		r.untouched()
		require.NoError(t, os.Remove(filepath.Join(r.u.State, "ballast")))
		r.u.Run("forget", r.name)
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
	t.Run("in the gate", func(t *testing.T) {
		for _, bad := range []bool{false, true} {
			t.Run(map[bool]string{false: "good", true: "bad"}[bad], func(t *testing.T) {
				t.Parallel()
				state := stage.SmallDir(t, 256<<10)
				s := story{"always", bad}
				r, digest := s.begin(t, nil)
				r.u.State = state
				tr := aside(at{after: true, match: nth("start", 1)}, func() { fill(t, state) })
				r.through(tr.Hooks)
				r.u.Run("run", "--once")
				within(t, time.Second, "the start", tr.sprung)
				require.NoError(t, os.Remove(filepath.Join(state, "ballast")))
				r.u.Run("run", "--once")
				s.settled(r, digest)
			})
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestEngineHasAFullDisk: the pull fails, and nothing was stopped.
func TestEngineHasAFullDisk(t *testing.T) {
	t.Parallel()
	d := stage.StartDocker(t, engine.Options{DataSize: 48 << 20})
	r := newRig(t, start{engine: d, policy: "always"})
	r.push("latest", stage.Image{Version: "big", Ballast: 64 << 20})
	got := r.once(1)
	require.Equal(t, "surroundings", got.Reason, "%+v", got)
	require.Contains(t, got.Detail, "no space left")
	require.Equal(t, "none", got.Outcome)
	r.untouched()
	digest := r.push("latest", stage.Image{Version: "small"})
	require.Equal(t, "committed", r.once(0).Outcome)
	r.updated("small", digest)
}

// TestJournalIsLostInMidSwap: what the engine shows is enough, and what was
// lost is said.
func TestJournalIsLostInMidSwap(t *testing.T) {
	spoil := map[string]func(t *testing.T, file string){
		"deleted": func(t *testing.T, file string) { require.NoError(t, os.Remove(file)) },
		"cut short": func(t *testing.T, file string) {
			info, err := os.Stat(file)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(file, info.Size()/2))
		},
		"empty": func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 0)) },
		"overwritten": func(t *testing.T, file string) {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			for i := range b {
				b[i] ^= 0x5a
			}
			require.NoError(t, os.WriteFile(file, b, 0o600))
		},
	}
	for how, spoil := range spoil {
		for _, bad := range []bool{false, true} {
			for _, where := range []string{"create", "stop", "start", "rename to name", "rename to name updaterd-new"} {
				if !bad && where == "rename to name updaterd-new" || how != "deleted" && where != "rename to name" {
					continue
				}
				s := story{"always", bad}
				t.Run(fmt.Sprintf("%s after %s, %s", how, where, s), func(t *testing.T) {
					t.Parallel()
					r, digest := s.begin(t, nil)
					require.True(t, r.runKilled(at{after: true, match: nth(where, 1)}, "run", "--once"))
					spoil(t, journalOf(t, r.u.State))
					res := r.u.Run("run", "--once")
					if how != "deleted" {
						require.Contains(t, res.Stderr, "journal", "it does not say what was lost")
					}
					r.u.Run("run", "--once")
					s.settled(r, digest)
				})
			}
		}
	}
}

// journalOf is the database in a state directory.
func journalOf(t *testing.T, state string) string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(state, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, ".db") {
			found = append(found, path)
		}
		return err
	}))
	require.Len(t, found, 1)
	return found[0]
}

// TestWebhooks are called once for each event that they ask for, without secrets.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	got := map[string][]map[string]any{}
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var m map[string]any
		if err := json.NewDecoder(req.Body).Decode(&m); err != nil || req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %v", req.Method, req.Header.Get("Content-Type"), err)
		}
		mu.Lock()
		defer mu.Unlock()
		got[req.URL.Path] = append(got[req.URL.Path], m)
	}))
	defer hook.Close()
	secret := filepath.Join(t.TempDir(), "hook")
	require.NoError(t, os.WriteFile(secret, []byte(hook.URL+"/all?token=s3cr3t-word\n"), 0o600))
	r := newRig(t, start{config: fmt.Sprintf("%snotify:\n  - url-file: %s\n  - {url: %q, on: [updated]}\n  - {url: \"http://127.0.0.1:1/\"}\n", settings, secret, hook.URL+"/updated")})
	bad := r.push("latest", stage.Image{Version: "bad", Behave: stage.Behaviour{Exit: ptr(3), Log: "password=hunter2"}})
	res := r.u.Run("run", "--once")
	require.Equal(t, 1, res.Code)
	require.NotContains(t, res.Stdout+res.Stderr, "s3cr3t-word")
	digest := r.push("latest", stage.Image{Version: "v2"})
	require.Zero(t, r.u.Run("run", "--once").Code)
	r.u.Run("run", "--once")

	mu.Lock()
	defer mu.Unlock()
	require.Len(t, got["/all"], 2)
	require.Len(t, got["/updated"], 1)
	m := got["/all"][0]
	require.Equal(t, "restored", m["event"])
	require.Equal(t, "local", m["backend"])
	require.Equal(t, "local/"+r.name, m["workload"])
	require.Equal(t, "bad", m["verdict"])
	require.Equal(t, map[string]any{"image": r.ref, "digest": r.first}, m["from"])
	require.Equal(t, map[string]any{"image": r.ref, "digest": bad}, m["to"])
	require.Contains(t, m["why"], "exited with code 3")
	require.NotEmpty(t, m["change"])
	require.NotContains(t, fmt.Sprint(m), "hunter2", "log lines are nobody's business there")
	require.Equal(t, "updated", got["/updated"][0]["event"])
	require.Equal(t, digest, got["/updated"][0]["to"].(map[string]any)["digest"])
}

// TestStopped by SIGTERM.
func TestStopped(t *testing.T) {
	t.Run("in a slow pull, which is broken off", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always"})
		digest := r.push("latest", stage.Image{Version: "v2", Ballast: 1 << 20})
		var heal func()
		pulls := aside(at{match: nth("pull", 1)}, func() { heal = r.reg.Fail("GET", "/blobs/", 0, stage.Hang()) })
		r.through(pulls.Hooks)
		daemon := r.u.Start("run")
		within(t, 20*time.Second, "the pull", pulls.sprung)
		require.Zero(t, daemon.Stop(10*time.Second))
		r.untouched()
		require.Empty(t, r.history())
		heal()
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
	t.Run("once, in a slow pull", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{})
		r.push("latest", stage.Image{Version: "v2", Ballast: 1 << 20})
		pulls := aside(at{match: nth("pull", 1)}, func() { r.reg.Fail("GET", "/blobs/", 0, stage.Hang()) })
		r.through(pulls.Hooks)
		once := r.u.Start("run", "--once")
		within(t, 20*time.Second, "the pull", pulls.sprung)
		require.Equal(t, 1, once.Stop(10*time.Second), "interrupted")
		r.untouched()
	})
	t.Run("in the gate, which is gone on with", func(t *testing.T) {
		t.Parallel()
		r, daemon, digest := judged(t, false, start{policy: "always"})
		began := time.Now()
		require.Zero(t, daemon.Stop(10*time.Second))
		require.Less(t, time.Since(began), 2500*time.Millisecond, "it waited for the gate")
		require.Equal(t, "in-progress", r.check(0).Reason)
		got := r.once(0)
		require.Equal(t, "committed", got.Outcome, "%+v", got)
		r.updated("v2", digest)
	})
	t.Run("in the gate, and the image turns bad meanwhile", func(t *testing.T) {
		t.Parallel()
		r, daemon, _ := judged(t, true, start{})
		require.Zero(t, daemon.Stop(10*time.Second))
		r.d.Wait(r.name, 20*time.Second, "ended", func(c container.InspectResponse) bool { return !c.State.Running })
		require.Equal(t, "restored", r.once(1).Outcome)
		r.asItWas()
		require.Equal(t, "rejected", r.check(0).Reason)
	})
	t.Run("in the swap, which is finished", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, start{policy: "always", image: stage.Image{Behave: stage.Behaviour{StopAfter: time.Second}}})
		digest := r.push("latest", stage.Image{Version: "v2"})
		var daemon *stage.Daemon
		ready := make(chan struct{})
		stops := aside(at{match: nth("stop", 1)}, func() {
			<-ready
			daemon.Signal(15)
		})
		r.through(stops.Hooks)
		daemon = r.u.Start("run")
		close(ready)
		within(t, 20*time.Second, "the stop", stops.sprung)
		require.Zero(t, daemon.Wait(15*time.Second))
		require.True(t, r.d.Inspect(r.name).State.Running, "the swap was left half done")
		require.NotEqual(t, r.before.ID, r.d.Inspect(r.name).ID)
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
}

// TestNobodyReadsWhatItPrints: the pager was left, or the journal of systemd broke.
// It may not end in the midst of a swap, with nothing in service.
func TestNobodyReadsWhatItPrints(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{policy: "always"})
	digest := r.push("latest", stage.Image{Version: "v2"})
	require.Equal(t, 1, r.u.Unread("run", "--once"), "it could not print its rows")
	r.updated("v2", digest)
	require.Equal(t, 1, r.u.Unread("history"))
}

// TestMoreThanOneAtOnce: independent changes go on side by side, and one bad
// one does not hinder the others.
func TestMoreThanOneAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{policy: "always"})
	var names []string
	for i := range 4 {
		name := r.d.Name("more")
		names = append(names, name)
		tag := fmt.Sprintf("acme/%s:latest", name)
		r.reg.Push(tag, stage.Image{Version: "v1"})
		r.d.Run(stage.Spec{Name: name, Config: container.Config{Image: r.reg.Ref(tag)}})
		next := stage.Image{Version: "v2"}
		if i == 0 {
			next.Behave = stage.Exit(3)
		}
		r.reg.Push(tag, next)
	}
	r.push("latest", stage.Image{Version: "v2"})
	res := r.u.Run("run", "--once", "-o", "json")
	require.Equal(t, 1, res.Code)
	outcomes := map[string]int{}
	for _, row := range parseRows(t, res.Stdout) {
		outcomes[row.Outcome]++
	}
	require.Equal(t, map[string]int{"committed": 4, "restored": 1}, outcomes)
	require.Len(t, r.d.Names(), 5)
	require.Contains(t, r.d.Inspect(names[0]).Config.Env, "APP_VERSION=v1")
	for _, name := range append(names[1:], r.name) {
		require.Contains(t, r.d.Inspect(name).Config.Env, "APP_VERSION=v2")
		require.True(t, r.d.Inspect(name).State.Running)
	}
}

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// beside is a rig whose container is known by an alias in a network of its own,
// and is started first.
func beside(t *testing.T, s start) (r *rig, net string) {
	t.Helper()
	s.engine = stage.OpenDocker(t)
	net = s.engine.Name("net")
	s.engine.MakeNetwork(net, network.CreateOptions{})
	s.change = func(c *stage.Spec) {
		c.Config.Labels = map[string]string{"updaterd.start-first": "true"}
		c.Host.NetworkMode = container.NetworkMode(net)
		c.Network.EndpointsConfig = map[string]*network.EndpointSettings{net: {Aliases: []string{"shop"}}}
	}
	return newRig(t, s), net
}

// noExec is why updaterd runs no command in a container.
const noExec = "HAProxy up to 2.8 takes apart the request that starts a command in a container"

// noChange is why a container's restart policy stays what it is.
const noChange = "Podman 4 cannot change a container that exists (docker update)"

// noNames is why customers cannot find a container by its name or alias.
const noNames = "Podman's networks resolve no names without packages that are not tested here"

// customers go through a reverse proxy, which knows a container in this network
// by this name; the address is theirs.
func customers(t stage.TB, d *stage.Docker, reg *stage.Registry, net, name string) string {
	t.Helper()
	front, port := d.Name("front"), stage.FreePort(t)
	reg.Push("acme/"+front+":1", stage.Image{Version: "front"})
	d.Run(stage.Spec{
		Name: front,
		Config: container.Config{
			Image: reg.Ref("acme/" + front + ":1"), Env: []string{"APP_ROUTES=/=http://" + name + ":8080"},
			Labels: map[string]string{stage.Label: "a customer's"}, // not the test's business
		},
		// Nobody else to ask, and to wait for, about a name that is gone.
		Host: container.HostConfig{NetworkMode: container.NetworkMode(net), PortBindings: stage.Publish(port), DNS: []string{"127.0.0.1"}},
	})
	t.Cleanup(func() {
		err := d.ContainerRemove(context.WithoutCancel(t.Context()), front, container.RemoveOptions{Force: true})
		require.NoError(t, err)
	})
	return fmt.Sprintf("http://127.0.0.1:%d/", port)
}

// TestStartFirst: somebody answers by the alias all the while, although the new
// one takes long to get ready. A bad one leaves the original as if it had never
// been.
func TestStartFirst(t *testing.T) {
	stage.NotOn(t, engine.Podman, noNames)
	const slow = 4 * time.Second
	check := stage.Check(200*time.Millisecond, 100)
	for _, tt := range []struct {
		name string
		next stage.Image
		good bool
	}{
		{"good", stage.Image{Version: "v2", Behave: stage.Behaviour{ListenAfter: slow}, Healthcheck: check}, true},
		{"exits", stage.Image{Version: "v2", Behave: stage.Exit(3)}, false},
		{"never healthy", stage.Image{Version: "v2", Behave: stage.Behaviour{Hang: true}, Healthcheck: stage.Check(200*time.Millisecond, 3)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r, net := beside(t, start{policy: "unless-stopped"})
			gap := stage.MeasureGap(t, customers(t, r.d, r.reg, net, "shop"))
			digest := r.push("latest", tt.next)
			if !tt.good {
				require.Equal(t, "restored", r.once(1).Outcome)
				gap.Again(t)
				seen := gap.Stop()
				t.Log(seen)
				require.Equal(t, []string{"v1"}, seen.Bodies)
				r.untouched()
				require.Equal(t, "rejected", r.check(0).Reason)
				return
			}
			require.Equal(t, "committed", r.once(0).Outcome)
			gap.Again(t)
			seen := gap.Stop()
			t.Log(seen)
			require.Equal(t, []string{"v1", "v2"}, seen.Bodies)
			require.Less(t, seen.Longest, slow, "nobody answered while the new one got ready")
			// The moment in which the original goes is long on a busy machine.
			require.Less(t, seen.Failed*5, seen.Good)
			now := r.updated("v2", digest)
			require.Contains(t, now.NetworkSettings.Networks[net].Aliases, "shop")
			require.Len(t, now.NetworkSettings.Networks, 1)
		})
	}
}

// TestStartFirstWhereItCannotBe is refused, and says why.
func TestStartFirstWhereItCannotBe(t *testing.T) {
	t.Parallel()
	port := stage.FreePort(t)
	r := newRig(t, start{change: func(c *stage.Spec) {
		c.Config.Labels = map[string]string{"updaterd.start-first": "true"}
		c.Host.PortBindings = stage.Publish(port)
	}})
	r.push("latest", stage.Image{Version: "v2"})
	calls := r.through(stage.Hooks{})
	for _, got := range []row{r.check(0), r.once(0)} {
		require.Equal(t, "unsupported", got.Reason)
		require.Contains(t, got.Detail, fmt.Sprintf("start-first: it publishes port 8080/tcp as %d", port))
	}
	require.Empty(t, calls.Calls())
	r.untouched()
}

// TestStartFirstKilledAtEveryCall: whatever a crash leaves of it, the next one
// makes good, and the original serves until then.
func TestStartFirstKilledAtEveryCall(t *testing.T) {
	for _, bad := range []bool{false, true} {
		begin := func(t *testing.T) (*rig, string) {
			r, _ := beside(t, start{policy: "unless-stopped"})
			if bad {
				// Not one in a loop, with which not every update makes the same calls, and
				// not one that others have, which then stays.
				return r, r.push("latest", stage.Image{Version: r.name, Behave: stage.Behaviour{Hang: true}, Healthcheck: stage.Check(100*time.Millisecond, 1)})
			}
			return r, r.push("latest", stage.Image{Version: "v2"})
		}
		holds := func(r *rig, digest string) {
			r.t.Helper()
			if bad {
				r.untouched()
			} else {
				r.updated("v2", digest)
			}
		}
		t.Run(fmt.Sprintf("bad %v", bad), func(t *testing.T) {
			t.Parallel()
			r, digest := begin(t)
			p := r.through(stage.Hooks{})
			r.u.Run("run", "--once")
			holds(r, digest)
			calls := p.Calls()
			require.Greater(t, len(calls), 6)
			count := map[string]int{}
			for _, c := range calls {
				what := kind(c)
				count[what]++
				n := count[what]
				t.Run(fmt.Sprintf("%s %d", what, n), func(t *testing.T) {
					t.Parallel()
					r, digest := begin(t)
					require.True(t, r.runKilled(at{after: true, match: nth(what, n)}, "run", "--once"), "there was no such call")
					r.u.Run("run", "--once")
					holds(r, digest)
					rows := parseRows(t, r.u.Run("run", "--once", "-o", "json").Stdout)
					require.Len(t, rows, 1)
					require.Equal(t, "none", rows[0].Outcome)
					holds(r, digest)
				})
			}
		})
	}
}

// TestStoppedContainers: what does not run is left alone, or is updated without being
// started. What restarts over and over is updated and started.
func TestStoppedContainers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		state container.ContainerState
		// bring brings a container that was started into that state.
		bring func(*testing.T, *rig)
	}{
		{"exited", container.StateExited, func(t *testing.T, r *rig) {
			require.NoError(t, r.d.ContainerStop(t.Context(), r.name, container.StopOptions{}))
		}},
		{"paused", container.StatePaused, func(t *testing.T, r *rig) {
			require.NoError(t, r.d.ContainerPause(t.Context(), r.name))
		}},
		{"created", container.StateCreated, func(t *testing.T, r *rig) {
			r.d.Remove(r.name)
			r.d.Create(r.spec)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{policy: "always"})
			tt.bring(t, r)
			r.before = r.d.Wait(r.name, 10*time.Second, tt.name, func(c container.InspectResponse) bool { return c.State.Status == tt.state })
			// Nobody would know: it exits at once.
			digest := r.push("latest", stage.Image{Version: "v2", Behave: stage.Exit(3)})
			calls := r.through(stage.Hooks{})
			got := r.once(0)
			require.Equal(t, "not-running", got.Reason)
			require.Contains(t, got.Detail, string(tt.state))
			require.Empty(t, calls.Calls())
			r.untouched()

			r.u.WriteConfig(settings + "  include-stopped: true\n")
			require.Equal(t, "committed", r.once(0).Outcome)
			now := r.alone()
			require.NotEqual(t, r.before.ID, now.ID)
			require.Equal(t, container.StateCreated, now.State.Status, "it was started")
			require.Contains(t, r.d.Image(now.Image).RepoDigests[0], digest)
			require.JSONEq(t, said(t, r.before.HostConfig), said(t, now.HostConfig))
			for _, c := range calls.Calls() {
				require.NotContains(t, []string{"start", "unpause"}, kind(c))
			}
			require.Equal(t, "up-to-date", r.once(0).Reason)
			require.Equal(t, now.ID, r.alone().ID)
		})
	}
	looping := start{policy: "always", image: stage.Image{Version: "v1", Behave: stage.Behaviour{Exit: ptr(1), ExitAfter: 20 * time.Millisecond}},
		config:  settings + "  include-stopped: true\n",
		waitFor: func(c container.InspectResponse) bool { return c.RestartCount > 5 && c.State.Restarting }}
	const noLoops = "Podman stops nothing between two starts of a crash loop, so such a container is left alone"
	t.Run("restarting, and healed", func(t *testing.T) {
		stage.NotOn(t, engine.Podman, noLoops)
		t.Parallel()
		r := newRig(t, looping)
		digest := r.push("latest", stage.Image{Version: "v2"})
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
	t.Run("restarting, and no better", func(t *testing.T) {
		stage.NotOn(t, engine.Podman, noLoops)
		t.Parallel()
		r := newRig(t, looping)
		r.pushBad("latest", "v2")
		got := r.once(1)
		require.Equal(t, "restored", got.Outcome, "%+v", got)
		c := r.alone()
		require.Equal(t, r.before.ID, c.ID)
		require.Equal(t, r.before.HostConfig.RestartPolicy, c.HostConfig.RestartPolicy)
		require.True(t, c.State.Running || c.State.Restarting)
	})
}

// TestRemovedWhenItStops: a container that was run with --rm is refused, or
// replaced with no way back but a copy. Its anonymous volume keeps its data.
func TestRemovedWhenItStops(t *testing.T) {
	image := stage.Image{Volumes: []string{"/data"}, Env: []string{"APP_FILES=/data"}}
	podman := onPodman()
	begin := func(t *testing.T) (*rig, string) {
		port := stage.FreePort(t)
		r := newRig(t, start{image: image, change: func(c *stage.Spec) {
			c.Host.AutoRemove = true
			if podman && t.Name() != "TestRemovedWhenItStops/refused" {
				c.Host.Binds = []string{c.Name + "-data:/data"} // refused with an anonymous one
			}
			c.Host.PortBindings = stage.Publish(port)
		}})
		url := fmt.Sprintf("http://127.0.0.1:%d/files/value", port)
		stage.Eventually(t, 20*time.Second, "the app to listen", func() bool {
			_, err := stage.Get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/", port))
			return err == nil
		})
		put(t, url, "kept")
		return r, url
	}
	kept := func(t *testing.T, url string) {
		t.Helper()
		stage.Eventually(t, 20*time.Second, "what was written to the volume", func() bool {
			body, err := stage.Get(t.Context(), url)
			return err == nil && body == "kept"
		})
	}
	// same requires all of it but for the volume, which is named now.
	same := func(r *rig, c container.InspectResponse) {
		r.t.Helper()
		require.NotEqual(r.t, r.before.ID, c.ID)
		require.True(r.t, c.State.Running, "%+v", c.State)
		require.Equal(r.t, r.before.Mounts[0].Name, c.Mounts[0].Name)
		if !podman {
			require.Len(r.t, c.HostConfig.Mounts, 1)
			c.HostConfig.Mounts = nil
		}
		require.JSONEq(r.t, said(r.t, r.before.HostConfig), said(r.t, c.HostConfig))
	}
	allow := settings + "  no-rollback: true\n"
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		r, _ := begin(t)
		r.push("latest", stage.Image{Version: "v2"})
		got := r.once(0)
		require.Equal(t, "unsupported", got.Reason)
		require.Contains(t, got.Detail, "HostConfig.AutoRemove")
		require.Contains(t, got.Detail, "updaterd.no-rollback=true")
		if podman {
			r.u.WriteConfig(allow)
			require.Contains(t, r.once(0).Detail, "Podman would remove its anonymous volume")
		}
		r.untouched()
	})
	t.Run("good", func(t *testing.T) {
		t.Parallel()
		r, url := begin(t)
		r.u.WriteConfig(allow)
		next := image
		next.Version = "v2"
		r.push("latest", next)
		require.Equal(t, "committed", r.once(0).Outcome)
		c := r.alone()
		same(r, c)
		require.Contains(t, c.Config.Env, "APP_VERSION=v2")
		kept(t, url)
	})
	for name, bad := range map[string]stage.Image{
		"exits at once": {Behave: stage.Exit(7)},
		"exits later":   {Behave: stage.Behaviour{Exit: ptr(7), ExitAfter: 300 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, url := begin(t)
			r.u.WriteConfig(allow)
			bad.Version = "v2"
			r.push("latest", bad)
			got := r.once(1)
			require.Equal(t, "restored", got.Outcome, "%+v", got)
			told := r.history()
			require.Len(t, told, 1)
			require.Equal(t, "bad", told[0].Verdict)
			require.Contains(t, told[0].Why, "exited with code 7")
			require.Contains(t, told[0].Why, "--rm, so what is back is a copy of it")
			kept(t, url)
			c := r.alone()
			same(r, c)
			require.Equal(t, r.before.Image, c.Image)
			require.Equal(t, r.before.Image, r.d.Image(r.ref).ID, "the local tag stands for another image")
			require.Equal(t, "rejected", r.once(0).Reason)
			require.Equal(t, c.ID, r.alone().ID)
		})
	}
}

// TestTagMovedLocally: what somebody has pulled already is not pulled again.
func TestTagMovedLocally(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	digest := r.push("latest", stage.Image{Version: "v2"})
	r.d.Pull(r.ref)
	calls := r.through(stage.Hooks{})
	require.Equal(t, "committed", r.once(0).Outcome)
	for _, c := range calls.Calls() {
		require.NotEqual(t, "pull", kind(c))
	}
	r.updated("v2", digest)
}

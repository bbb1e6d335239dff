package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// smoke is a rig whose updates must pass a test.
type smoke struct {
	*rig
	// image is what the test runs.
	image string
}

// newSmoke makes one; what is the test's image, as it is once the workload runs.
func newSmoke(t *testing.T, s start, what *stage.Image) smoke {
	t.Helper()
	r := smoke{rig: newRig(t, s)}
	r.image = r.reg.Ref("acme/" + r.name + "-test:1")
	what.Version = "test"
	// Its container is seen where the workload's are, if one is left.
	what.Labels = map[string]string{stage.Label: r.d.Mark}
	r.reg.Push("acme/"+r.name+"-test:1", what)
	r.u.WriteConfig(r.config("20s"))
	return r
}

// config names the test in the file.
func (r smoke) config(timeout string) string {
	return strings.Replace(settings, "stable: 500ms", fmt.Sprintf("stable: 500ms, test: {image: %q, timeout: %s}", r.image, timeout), 1)
}

// ran requires that a test was run so many times since p.
func (r smoke) ran(times int, p *stage.Proxy) {
	r.t.Helper()
	n := 0
	for _, c := range p.Calls() {
		if c.Path == "/containers/create" && c.Query.Get("name") == r.name+".updaterd-test" {
			n++
		}
	}
	require.Equal(r.t, times, n, "runs of the test")
}

// asks is a test's image that asks the workload for a page.
func asks(page string) *stage.Image {
	return &stage.Image{Cmd: []string{"get", "http://$UPDATERD_ADDRESS:$APP_PORT/" + page}, Env: []string{"APP_PORT=8080"}}
}

// broken is an image that is healthy, but fails on /order.
func broken(version string) stage.Image {
	return stage.Image{Version: version, Env: []string{"APP_BROKEN=/order"}}
}

// TestSmokeReaches: a test finds the workload at UPDATERD_ADDRESS, whatever
// network that is on.
func TestSmokeReaches(t *testing.T) {
	for _, where := range []string{"a network of its own", "two networks", "the default bridge", "the host's network", "another container's network", "no network"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			d, reg := stage.OpenDocker(t), stage.NewRegistry(t, stage.RegistryOptions{})
			what := asks("order")
			r := newSmoke(t, start{engine: d, registry: reg, change: func(s *stage.Spec) {
				switch where {
				case "a network of its own", "two networks":
					own := d.Name("own")
					d.MakeNetwork(own, network.CreateOptions{})
					s.Host.NetworkMode = container.NetworkMode(own)
				case "the host's network":
					what.Env = []string{fmt.Sprintf("APP_PORT=%d", stage.FreePort(t))}
					s.Host.NetworkMode, s.Config.Env = "host", what.Env
				case "another container's network":
					vpn := d.Name("vpn")
					reg.Push("acme/"+vpn+":1", stage.Image{Version: "vpn"})
					d.Run(stage.Spec{Name: vpn, Config: container.Config{
						Image: reg.Ref("acme/" + vpn + ":1"), Env: []string{"APP_PORT=9090"},
					}})
					s.Host.NetworkMode = container.NetworkMode("container:" + vpn)
				case "no network":
					s.Host.NetworkMode = "none"
				}
			}}, what)
			if where == "two networks" {
				second := d.Name("second")
				d.MakeNetwork(second, network.CreateOptions{})
				require.NoError(t, d.NetworkConnect(t.Context(), second, r.name, nil))
			}
			r.push("latest", stage.Image{Version: "v2"})
			p := r.through(stage.Hooks{})
			res := r.u.Run("run", "--once", "-o", "json")
			require.Zero(t, res.Code)
			for _, got := range parseRows(t, res.Stdout) {
				if got.Workload == "local/"+r.name {
					require.Equal(t, "committed", got.Outcome, "%+v", got)
				}
			}
			r.ran(1, p)
			require.NotContains(t, strings.Join(d.Names(), " "), ".updaterd-")
			require.Contains(t, d.Inspect(r.name).Config.Env, "APP_VERSION=v2")
		})
	}
}

// TestSmokeStartFirst: the test is of the new container, while the original still
// serves beside it. One that fails leaves the original as if nothing had been.
func TestSmokeStartFirst(t *testing.T) {
	for _, bad := range []bool{false, true} {
		t.Run(fmt.Sprintf("bad %v", bad), func(t *testing.T) {
			t.Parallel()
			d := stage.OpenDocker(t)
			// The one that the test must not meet would answer it the other way.
			old, next := broken("v1"), stage.Image{Version: "v2"}
			if bad {
				old, next = stage.Image{Version: "v1"}, broken("v2")
			}
			r := newSmoke(t, start{engine: d, image: old, change: func(s *stage.Spec) {
				own := d.Name("own")
				d.MakeNetwork(own, network.CreateOptions{})
				s.Host.NetworkMode = container.NetworkMode(own)
				s.Config.Labels = map[string]string{"updaterd.start-first": "true"}
			}}, asks("order"))
			digest := r.push("latest", next)
			p := r.through(stage.Hooks{})
			if bad {
				require.Equal(t, "restored", r.once(1).Outcome)
				r.untouched()
			} else {
				require.Equal(t, "committed", r.once(0).Outcome)
				r.updated("v2", digest)
			}
			r.ran(1, p)
		})
	}
}

// TestSmokeGroup: where containers move together, one whose test fails takes all
// of them back, and is the only one to blame.
func TestSmokeGroup(t *testing.T) {
	t.Parallel()
	d, reg := stage.OpenDocker(t), stage.NewRegistry(t, stage.RegistryOptions{})
	vpn := d.Name("vpn")
	var vpnRef string
	r := newSmoke(t, start{engine: d, registry: reg, change: func(s *stage.Spec) {
		vpnRef = "acme/" + vpn + ":1"
		reg.Push(vpnRef, stage.Image{Version: "vpn1", Env: []string{"APP_PORT=9090"}})
		d.Run(stage.Spec{Name: vpn, Config: container.Config{Image: reg.Ref(vpnRef)}})
		s.Host.NetworkMode = container.NetworkMode("container:" + vpn)
	}}, asks("order"))
	// Only what is named so is tested.
	r.u.WriteConfig(settings + fmt.Sprintf("rules: [{match: {name: %q}, health: {test: {image: %q}}}]\n", r.name, r.image))
	before := d.Inspect(vpn)
	reg.Push(vpnRef, stage.Image{Version: "vpn2", Env: []string{"APP_PORT=9090"}})
	r.push("latest", broken("v2"))
	p := r.through(stage.Hooks{})
	res := r.u.Run("run", "--once", "-o", "json")
	require.Equal(t, 1, res.Code)
	r.ran(1, p)
	require.ElementsMatch(t, []string{vpn, r.name}, d.Names())
	require.Equal(t, before.ID, d.Inspect(vpn).ID)
	require.Equal(t, r.before.ID, d.Inspect(r.name).ID)
	for _, e := range r.history() {
		if e.Workload == "local/"+r.name {
			require.Equal(t, "bad", e.Verdict, "%+v", e)
			require.Contains(t, e.Why, "health.test failed")
		} else {
			require.NotEqual(t, "bad", e.Verdict, "%+v", e)
		}
	}
	// What was not to blame goes on without it.
	r.u.Run("run", "--once")
	r.ran(2, p)
	require.Contains(t, d.Inspect(vpn).Config.Env, "APP_VERSION=vpn2")
	require.Equal(t, r.before.Image, d.Inspect(r.name).Image)
	require.ElementsMatch(t, []string{vpn, r.name}, d.Names())
}

func TestSmokePasses(t *testing.T) {
	t.Parallel()
	r := newSmoke(t, start{}, asks("order"))
	digest := r.push("latest", stage.Image{Version: "v2"})
	p := r.through(stage.Hooks{})
	require.Equal(t, "committed", r.once(0).Outcome)
	r.ran(1, p)
	r.updated("v2", digest)
	require.Equal(t, "none", r.once(0).Outcome)
	r.ran(1, p)
}

// TestSmokeFails: what a test fails is put back and rejected, and its output is
// kept for who asks why.
func TestSmokeFails(t *testing.T) {
	t.Parallel()
	r := newSmoke(t, start{}, asks("order"))
	r.push("latest", broken("v2"))
	require.Equal(t, "restored", r.once(1).Outcome)
	r.asItWas()
	last := r.history()[0]
	require.Equal(t, "bad", last.Verdict)
	require.Contains(t, last.Why, "health.test failed with exit code 1")
	require.Contains(t, last.Logs, "out of order")
	require.Equal(t, "rejected", r.once(0).Reason)
	r.asItWas()

	digest := r.push("latest", stage.Image{Version: "v3"})
	require.Equal(t, "committed", r.once(0).Outcome)
	r.updated("v3", digest)
}

func TestSmokeHangs(t *testing.T) {
	t.Parallel()
	r := newSmoke(t, start{}, &stage.Image{Behave: stage.Behaviour{Log: "waiting for ever", IgnoreTerm: true}})
	r.u.WriteConfig(r.config("2s"))
	r.push("latest", stage.Image{Version: "v2"})
	require.Equal(t, "restored", r.once(1).Outcome)
	r.asItWas()
	last := r.history()[0]
	require.Equal(t, "bad", last.Verdict)
	require.Contains(t, last.Why, "health.test ran longer than 2s")
	require.Contains(t, last.Logs, "waiting for ever")
	require.Equal(t, "rejected", r.once(0).Reason)
}

// TestSmokeImageMissing: a test that cannot be run later is found out while
// nothing is disturbed.
func TestSmokeImageMissing(t *testing.T) {
	t.Parallel()
	r := newSmoke(t, start{}, asks("order"))
	r.image = strings.Replace(r.image, "-test:1", "-test:2", 1)
	r.u.WriteConfig(r.config("20s"))
	digest := r.push("latest", stage.Image{Version: "v2"})
	got := r.once(1)
	require.Equal(t, "surroundings", got.Reason)
	require.Contains(t, got.Detail, "health.test.image "+r.image+" is not on the engine and cannot be pulled: ")
	r.untouched()
	r.u.WriteConfig(settings)
	require.Zero(t, r.u.Run("forget", r.name).Code)
	require.Equal(t, "committed", r.once(0).Outcome)
	r.updated("v2", digest)
}

// TestSmokeKilled kills updaterd at every call that a test takes. The next one
// runs it again, or goes on without its record, and leaves nothing of the first.
func TestSmokeKilled(t *testing.T) {
	for _, where := range []string{"create", "start", "wait", "remove container"} {
		for _, tt := range []struct {
			name      string
			bad, lost bool
		}{
			{name: "good"}, {name: "bad", bad: true}, {name: "its record lost", lost: true},
		} {
			t.Run(where+", "+tt.name, func(t *testing.T) {
				t.Parallel()
				what, next, timeout := asks("order"), stage.Image{Version: "v2"}, "20s"
				if tt.bad {
					next = broken("v2")
				}
				if tt.bad && where == "wait" {
					what, timeout = &stage.Image{}, "5s" // it still runs when the next updaterd comes
				}
				r := newSmoke(t, start{policy: "always"}, what)
				r.u.WriteConfig(r.config(timeout))
				digest := r.push("latest", next)
				var made atomic.Bool // calls come side by side
				killed := r.runKilled(at{after: where != "wait", match: func(c stage.Call) bool {
					if c.N > 0 && c.Query.Get("name") == r.name+".updaterd-test" {
						made.Store(true)
					}
					return made.Load() && c.N > 0 && kind(c) == where
				}}, "run", "--once")
				require.True(t, killed, "there was no such call")
				_, err := r.d.ContainerInspect(t.Context(), r.name+".updaterd-test")
				require.Equal(t, where == "remove container", errdefs.IsNotFound(err), "what is left of it: %v", err)
				if tt.lost {
					require.NoError(t, os.Remove(filepath.Join(r.u.State, "local.db")))
				}
				r.u.Run("run", "--once")
				if tt.bad {
					r.asItWas()
					require.Equal(t, "bad", r.history()[0].Verdict)
					return
				}
				r.updated("v2", digest)
			})
		}
	}
}

// TestSmokeFromLabels: who may label a container may not make updaterd run any
// image, unless the file says so.
func TestSmokeFromLabels(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		t.Run(fmt.Sprintf("allowed %v", allowed), func(t *testing.T) {
			t.Parallel()
			image := ""
			reg := stage.NewRegistry(t, stage.RegistryOptions{})
			r := newSmoke(t, start{registry: reg, change: func(s *stage.Spec) {
				image = reg.Ref("acme/" + s.Name + "-test:1")
				s.Config.Labels = map[string]string{"updaterd.health.test.image": image}
			}}, asks("order"))
			require.Equal(t, image, r.image)
			r.push("latest", broken("v2"))
			p := r.through(stage.Hooks{})
			if !allowed {
				r.u.WriteConfig(settings)
				require.Equal(t, "invalid-settings", r.once(1).Reason)
				r.ran(0, p)
				r.untouched()
				return
			}
			r.u.WriteConfig(settings + "allow-label-tests: true\n")
			require.Equal(t, "restored", r.once(1).Outcome)
			r.ran(1, p)
			r.asItWas()
		})
	}
}

// TestSmokeStopsWithUpdaterd: a test that runs when updaterd is to end is broken
// off and taken away, and run again by the next.
func TestSmokeStopsWithUpdaterd(t *testing.T) {
	t.Parallel()
	r := newSmoke(t, start{}, &stage.Image{})
	r.u.WriteConfig(r.config("5s"))
	r.push("latest", stage.Image{Version: "v2"})
	d := r.u.Start("run")
	r.d.WaitRunning(r.name+".updaterd-test", 30*time.Second)
	require.Zero(t, d.Stop(20*time.Second))
	_, err := r.d.ContainerInspect(t.Context(), r.name+".updaterd-test")
	require.True(t, errdefs.IsNotFound(err), "%v", err)

	p := r.through(stage.Hooks{})
	r.u.Run("run", "--once")
	r.ran(1, p)
	r.asItWas()
	require.Contains(t, r.history()[0].Why, "health.test ran longer than 5s")
}

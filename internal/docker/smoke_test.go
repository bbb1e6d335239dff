package docker

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	imagetypes "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// TestBeside: where a test's container is put, and what it is told.
func TestBeside(t *testing.T) {
	on := func(mode container.NetworkMode, networks map[string]*network.EndpointSettings) *box {
		return &box{InspectResponse: container.InspectResponse{
			ContainerJSONBase: &container.ContainerJSONBase{
				ID: "0123456789ab", Name: "/web", HostConfig: &container.HostConfig{NetworkMode: mode, PublishAllPorts: true},
			},
			Config:          &container.Config{Hostname: "web"},
			NetworkSettings: &container.NetworkSettings{Networks: networks},
		}}
	}
	at := func(id, address string) *network.EndpointSettings {
		return &network.EndpointSettings{NetworkID: id, IPAddress: address, MacAddress: "02:42:0a:00:00:02", Aliases: []string{"web"}}
	}
	for _, tt := range []struct {
		name    string
		b       *box
		api     string
		mode    string
		create  []string
		connect []string
		address string
	}{
		{"the default bridge", on("default", map[string]*network.EndpointSettings{"bridge": at("b", "172.17.0.2")}),
			"1.41", "bridge", []string{"bridge"}, nil, "172.17.0.2"},
		{"a network of its own", on("shop", map[string]*network.EndpointSettings{"shop": at("s", "10.0.0.2")}),
			"1.41", "shop", []string{"shop"}, nil, "10.0.0.2"},
		{"several networks on an engine that creates with one", on("shop", map[string]*network.EndpointSettings{
			"back": at("a", "10.0.1.2"), "shop": at("s", "10.0.0.2"), "top": at("t", "10.0.2.2"),
		}), "1.43", "shop", []string{"shop"}, []string{"back", "top"}, "10.0.0.2"},
		{"several networks on an engine that creates with all", on("shop", map[string]*network.EndpointSettings{
			"back": at("a", "10.0.1.2"), "shop": at("s", "10.0.0.2"),
		}), "1.44", "shop", []string{"back", "shop"}, nil, "10.0.0.2"},
		{"a network named by its id", on("5b0f00", map[string]*network.EndpointSettings{
			"back": at("a", "10.0.1.2"), "shop": at("5b0f00abcdef", "10.0.0.2"),
		}), "1.41", "shop", []string{"shop"}, []string{"back"}, "10.0.0.2"},
		{"its first network is not one of them any more", on("gone", map[string]*network.EndpointSettings{"shop": at("s", "10.0.0.2")}),
			"1.41", "shop", []string{"shop"}, nil, "10.0.0.2"},
		{"only an address of version 6", on("six", map[string]*network.EndpointSettings{"six": {NetworkID: "6", GlobalIPv6Address: "fd00::2"}}),
			"1.41", "six", []string{"six"}, nil, "fd00::2"},
		{"an address in another network only", on("dhcp", map[string]*network.EndpointSettings{"back": at("a", "10.0.1.2"), "dhcp": at("d", "")}),
			"1.44", "dhcp", []string{"back", "dhcp"}, nil, "10.0.1.2"},
		{"no address", on("dhcp", map[string]*network.EndpointSettings{"dhcp": at("d", "")}), "1.41", "dhcp", []string{"dhcp"}, nil, ""},
		{"the host's network", on("host", map[string]*network.EndpointSettings{"host": at("h", "")}),
			"1.41", "container:0123456789ab", nil, nil, "127.0.0.1"},
		{"no network", on("none", map[string]*network.EndpointSettings{"none": at("n", "")}),
			"1.41", "container:0123456789ab", nil, nil, "127.0.0.1"},
		{"another container's network", on("container:fedcba", nil), "1.44", "container:0123456789ab", nil, nil, "127.0.0.1"},
		{"networking switched off", on("default", nil), "1.41", "container:0123456789ab", nil, nil, "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := updater.Part{
				Workload: "local/web", To: updater.Image{Ref: "acme/web:1", Digest: "sha256:ab"},
				Settings: updater.Settings{Health: updater.Health{Test: updater.Test{Image: "acme/test", Command: []string{"go"}}}},
			}
			got := beside(tt.b, p, "sha256:cd", tt.api)
			require.Equal(t, tt.mode, string(got.Host.NetworkMode))
			var create, connect []string
			for name, e := range got.Networking.EndpointsConfig {
				create = append(create, name)
				require.Equal(t, &network.EndpointSettings{}, e, "no address and no name of the workload's")
			}
			for _, n := range got.Connect {
				connect = append(connect, n.Network)
				require.Equal(t, &network.EndpointSettings{}, n.Endpoint)
			}
			slices.Sort(create)
			require.Equal(t, tt.create, create)
			require.Equal(t, tt.connect, connect)
			require.Equal(t, []string{"UPDATERD_WORKLOAD=local/web", "UPDATERD_IMAGE=acme/web:1@sha256:ab", "UPDATERD_ADDRESS=" + tt.address}, got.Config.Env)
			require.Equal(t, "sha256:cd", got.Config.Image)
			require.Equal(t, []string{"go"}, []string(got.Config.Cmd))
			require.Empty(t, got.Config.Hostname)
			require.False(t, got.Host.PublishAllPorts)
			require.Equal(t, container.RestartPolicyDisabled, got.Host.RestartPolicy.Name)
		})
	}
	pinned := beside(on("none", nil), updater.Part{To: updater.Image{Ref: "acme/web@sha256:ab", Digest: "sha256:ab"}}, "", "1.41")
	require.Contains(t, pinned.Config.Env, "UPDATERD_IMAGE=acme/web@sha256:ab")
}

// smokeRig is a rig whose registry also holds images of tests.
type smokeRig struct {
	*rig
	h *Host
}

// with brings a workload as far as its new image running, with this test to pass.
func (r smokeRig) with(t *testing.T, name string, test updater.Test, edit func(*container.Config, *container.HostConfig)) updater.Change {
	t.Helper()
	c := r.begin(t, name, command("web"), edit)
	c.Parts[0].Settings.Health.Test = test
	require.NoError(t, r.apply(t, r.h, &c))
	return c
}

// gone requires that nothing of a workload's test is left.
func (r smokeRig) gone(t *testing.T, name string) {
	t.Helper()
	_, err := r.cli.ContainerInspect(t.Context(), r.name(name)+suffixTest)
	require.True(t, cerrdefs.IsNotFound(err), "%s is left: %v", r.name(name)+suffixTest, err)
}

// testing waits until the container of a workload's test runs.
func (r smokeRig) testing(t *testing.T, name string) container.InspectResponse {
	t.Helper()
	var c container.InspectResponse
	require.Eventually(t, func() bool {
		var err error
		c, err = r.cli.ContainerInspect(context.Background(), r.name(name)+suffixTest)
		return err == nil && c.State.Running
	}, 20*time.Second, 10*time.Millisecond)
	return c
}

// during runs a test and does something while it runs.
func (r smokeRig) during(t *testing.T, ctx context.Context, c updater.Change, do func()) (updater.Result, error) {
	t.Helper()
	type outcome struct {
		r   updater.Result
		err error
	}
	over := make(chan outcome, 1)
	go func() {
		got, err := r.h.Test(ctx, c, 0)
		over <- outcome{got, err}
	}()
	do()
	select {
	case o := <-over:
		return o.r, o.err
	case <-time.After(time.Minute):
		t.Fatal("the test comes to no end")
		return updater.Result{}, nil
	}
}

func TestSmoke(t *testing.T) {
	plain := newRig(t)
	r := smokeRig{plain, plain.backend(t)}
	r.image(t, "tests", command("smoke", "8080"))
	r.image(t, "fails", command("exit", "3"))
	r.image(t, "hangs", command("hang"))
	test := func(tag string) updater.Test {
		return updater.Test{Image: r.repo + ":" + tag, Timeout: 30 * time.Second}
	}

	t.Run("it reaches the workload on every kind of network", func(t *testing.T) {
		for _, n := range []string{"front", "back"} {
			// In the engine's own range: a firewall may keep others apart.
			_, err := r.cli.NetworkCreate(t.Context(), r.name(n), network.CreateOptions{})
			require.NoError(t, err)
			t.Cleanup(func() {
				r.clean(context.Background())
				_ = r.cli.NetworkRemove(context.Background(), r.name(n))
			})
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		_, free, _ := net.SplitHostPort(l.Addr().String())
		require.NoError(t, l.Close())
		vpn := r.begin(t, "vpn", command("serve"), nil) // only to share its network
		require.NotEmpty(t, vpn.ID)
		for _, tt := range []struct {
			mode, port string
			more       string // a second network
			loopback   bool
		}{
			{mode: r.name("front"), port: "8080", more: r.name("back")},
			{mode: "bridge", port: "8080"},
			{mode: "host", port: free, loopback: true},
			{mode: "none", port: "8080", loopback: true},
			{mode: "container:" + r.name("vpn"), port: "8080", loopback: true},
		} {
			t.Run(strings.TrimPrefix(tt.mode, r.prefix+"-"), func(t *testing.T) {
				kind := "net-" + strings.Map(func(c rune) rune {
					if c == ':' {
						return '-'
					}
					return c
				}, strings.TrimPrefix(tt.mode, r.prefix+"-"))
				r.image(t, kind, command("web", tt.port))
				r.pull(t, kind)
				r.run(t, kind, r.repo+":"+kind, func(_ *container.Config, h *container.HostConfig) {
					h.NetworkMode = container.NetworkMode(tt.mode)
				})
				if tt.more != "" {
					require.NoError(t, r.cli.NetworkConnect(t.Context(), tt.more, r.name(kind), nil))
				}
				b, err := r.h.inspect(t.Context(), r.name(kind))
				require.NoError(t, err)
				r.pull(t, "tests")
				p := updater.Part{Workload: "local/" + r.name(kind), To: updater.Image{Ref: r.repo + ":" + kind}}
				p.Settings.Health.Test = updater.Test{Command: []string{"smoke", tt.port}}
				spec := beside(b, p, r.local(t, "tests"), r.cli.ClientVersion())
				spec.Config.Labels = map[string]string{labelTests: "x"}
				seen := make(chan container.InspectResponse, 1)
				go func() { seen <- r.attached(kind) }()
				got, err := r.h.runTest(t.Context(), r.name(kind), spec, 30*time.Second)
				require.NoError(t, err)
				require.Zero(t, got.ExitCode, got.Output)
				// Podman does not show which network was the first, nor calls its
				// bridge so.
				answers := []string{loopback}
				if !tt.loopback {
					answers = nil
					for _, e := range b.NetworkSettings.Networks {
						answers = append(answers, e.IPAddress)
					}
				}
				for i, address := range answers {
					require.NotEmpty(t, address)
					answers[i] = fmt.Sprintf("local/%s %s:%s %s\nit answers", r.name(kind), r.repo, kind, address)
				}
				require.Contains(t, answers, got.Output)
				if tt.more != "" {
					require.Len(t, (<-seen).NetworkSettings.Networks, 2, "it is on all networks of the workload")
				}
				r.gone(t, kind)
			})
		}
	})

	t.Run("it passes, and leaves nothing", func(t *testing.T) {
		r.image(t, "volume", func(c *v1.Config) {
			c.Cmd, c.Volumes = []string{"smoke", "8080"}, map[string]struct{}{"/data": {}}
		})
		c := r.with(t, "passes", test("volume"), nil)
		volumes := r.anonymous(t)
		require.NoError(t, r.h.fetchTest(t.Context(), c, 0, quiet))
		got, err := r.h.Test(t.Context(), c, 0)
		require.NoError(t, err)
		require.Zero(t, got.ExitCode, got.Output)
		require.Equal(t, fmt.Sprintf("local/%s %s:passes@%s 127.0.0.1\nit answers", r.name("passes"), r.repo, c.Parts[0].To.Digest), got.Output)
		r.gone(t, "passes")
		require.Equal(t, volumes, r.anonymous(t), "its anonymous volume has gone with it")
	})

	t.Run("it fails with the code and the last words of the program", func(t *testing.T) {
		c := r.with(t, "unhappy", test("fails"), nil)
		got, err := r.h.Test(t.Context(), c, 0)
		require.NoError(t, err)
		require.Equal(t, updater.Result{ExitCode: 3, Output: "exiting as told"}, got)
		r.gone(t, "unhappy")
		again, err := r.h.Test(t.Context(), c, 0)
		require.NoError(t, err)
		require.Equal(t, got, again, "it may be run again")
	})

	t.Run("a command replaces that of the image", func(t *testing.T) {
		other := test("hangs")
		other.Command = []string{"exit", "7"}
		got, err := r.h.Test(t.Context(), r.with(t, "command", other, nil), 0)
		require.NoError(t, err)
		require.Equal(t, 7, got.ExitCode)
	})

	t.Run("it is ended at its timeout", func(t *testing.T) {
		slow := test("hangs")
		slow.Timeout = time.Second
		c := r.with(t, "slow", slow, nil)
		began := time.Now()
		got, err := r.h.Test(t.Context(), c, 0)
		require.NoError(t, err)
		require.Equal(t, updater.Result{TimedOut: true, Output: "hanging as told"}, got)
		require.Less(t, time.Since(began), 15*time.Second)
		r.gone(t, "slow")
	})

	t.Run("one that is broken off leaves nothing", func(t *testing.T) {
		c := r.with(t, "broken", test("hangs"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := r.during(t, ctx, c, func() {
			r.testing(t, "broken")
			cancel()
		})
		require.ErrorIs(t, err, context.Canceled)
		r.gone(t, "broken")
	})

	t.Run("its container is no workload and no trace", func(t *testing.T) {
		c := r.with(t, "hidden", test("hangs"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		_, _ = r.during(t, ctx, c, func() {
			defer cancel()
			r.testing(t, "hidden")
			all, err := r.h.Workloads(t.Context())
			require.NoError(t, err)
			require.False(t, slices.ContainsFunc(all, func(w updater.Workload) bool { return strings.HasSuffix(w.Name, suffixTest) }))
			lost, err := r.h.Traces(t.Context(), map[string]bool{c.ID: true})
			require.NoError(t, err)
			require.False(t, slices.ContainsFunc(lost, func(l updater.Change) bool { return strings.HasPrefix(l.Unit, c.Unit) }))
		})
	})

	t.Run("what a crash leaves of it is taken away by the next run, and by the end", func(t *testing.T) {
		c := r.with(t, "crash", test("tests"), nil)
		require.NoError(t, r.h.fetchTest(t.Context(), c, 0, quiet))
		left := 0
		for n := 1; ; n++ {
			died := r.crashAt(n, true)
			_, err := r.backend(t).Test(t.Context(), c, 0)
			r.failNth(0, false)
			if died() == "" {
				require.NoError(t, err)
				break
			}
			found, err := r.cli.ContainerInspect(t.Context(), r.name("crash")+suffixTest)
			if err == nil {
				left++
				require.Equal(t, c.ID, found.Config.Labels[labelTests])
			}
			next := r.backend(t)
			if n%2 == 0 {
				require.NoError(t, next.removeTests(t.Context(), r.name("crash")))
				r.gone(t, "crash")
			}
			got, err := next.Test(t.Context(), c, 0)
			require.NoError(t, err, "after a crash at call %d", n)
			require.Zero(t, got.ExitCode, got.Output)
			r.gone(t, "crash")
		}
		require.Equal(t, 3, left, "create, start and wait leave it")
	})

	t.Run("a container of somebody else's with its name is refused and left alone", func(t *testing.T) {
		c := r.with(t, "taken", test("tests"), nil)
		id := r.run(t, "taken"+suffixTest, r.repo+":taken", nil)
		for _, err := range []error{
			r.h.fetchTest(t.Context(), c, 0, quiet),
			errOf(r.h.Test(t.Context(), c, 0)),
		} {
			refused(t, err, updater.Unsupported, r.name("taken")+suffixTest)
		}
		require.NoError(t, r.h.removeTests(t.Context(), r.name("taken")), "the end of a change does not depend on it")
		still, err := r.cli.ContainerInspect(t.Context(), id)
		require.NoError(t, err)
		require.True(t, still.State.Running)
	})

	t.Run("what is not the new image's doing is no verdict on it", func(t *testing.T) {
		for what, do := range map[string]func(name string){
			"the test is killed": func(name string) {
				require.NoError(t, r.cli.ContainerKill(t.Context(), r.name(name)+suffixTest, "KILL"))
			},
			"the test is removed":     func(name string) { r.remove(t, r.name(name)+suffixTest) },
			"the workload is removed": func(name string) { r.remove(t, r.name(name)) },
			"the workload is stopped": func(name string) {
				require.NoError(t, r.cli.ContainerStop(t.Context(), r.name(name), container.StopOptions{}))
			},
			"the workload is paused": func(name string) {
				require.NoError(t, r.cli.ContainerPause(t.Context(), r.name(name)))
			},
		} {
			t.Run(what, func(t *testing.T) {
				name := strings.ReplaceAll(what, " ", "-")
				hangs := test("hangs")
				hangs.Timeout = 3 * time.Second
				c := r.with(t, name, hangs, func(_ *container.Config, h *container.HostConfig) {
					// Podman removes no container whose network another one shares.
					h.NetworkMode = "bridge"
					h.RestartPolicy.Name = container.RestartPolicyUnlessStopped
				})
				got, err := r.during(t, t.Context(), c, func() {
					r.testing(t, name)
					do(name)
				})
				if what == "the workload is stopped" && r.h.isPodman() {
					require.True(t, got.TimedOut, "it does not show that somebody did, and not the program")
				} else {
					require.Error(t, err, "%+v", got)
				}
				r.gone(t, name)
			})
		}
	})

	t.Run("a test that cannot be started is no verdict either", func(t *testing.T) {
		r.image(t, "nothing", func(c *v1.Config) { c.Entrypoint = []string{"/nope"} })
		c := r.with(t, "unstartable", test("nothing"), nil)
		_, err := r.h.Test(t.Context(), c, 0)
		require.ErrorContains(t, err, "starting container "+r.name("unstartable")+suffixTest)
		r.gone(t, "unstartable")
	})

	t.Run("a workload that has stopped is not tested", func(t *testing.T) {
		c := r.with(t, "stopped", test("tests"), nil)
		require.NoError(t, r.cli.ContainerKill(t.Context(), r.name("stopped"), "KILL"))
		_, err := r.h.Test(t.Context(), c, 0)
		require.ErrorContains(t, err, "nothing to test")
	})
}

// attached is the container of a workload's test once it is on all its networks:
// when it runs.
func (r *rig) attached(name string) container.InspectResponse {
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(5 * time.Millisecond) {
		c, err := r.cli.ContainerInspect(context.Background(), r.name(name)+suffixTest)
		if err == nil && c.State.Running {
			return c
		}
	}
	return container.InspectResponse{NetworkSettings: &container.NetworkSettings{}}
}

// anonymous are the engine's volumes that have no name.
func (r *rig) anonymous(t *testing.T) []string {
	t.Helper()
	all, err := r.cli.VolumeList(t.Context(), volume.ListOptions{Filters: filters.NewArgs(filters.Arg("dangling", "true"))})
	require.NoError(t, err)
	var names []string
	for _, v := range all.Volumes {
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return names
}

func errOf[T any](_ T, err error) error { return err }

// TestSmokeImage: which image a test runs.
func TestSmokeImage(t *testing.T) {
	plain := newRig(t)
	r := smokeRig{plain, plain.backend(t)}
	// A registry that is down does not answer for a repository of its own name.
	dead := "127.0.0.1:1/" + r.prefix
	pulls := func() func() int32 {
		var n atomic.Int32
		count := func(call string, done bool) error {
			if strings.Contains(call, "/images/create") && !done {
				n.Add(1)
			}
			return nil
		}
		r.fail.Store(&count)
		return n.Load
	}
	wants := func(ref string) updater.Change {
		c := r.change("web", "web", "web", "")
		c.Parts[0].Settings.Health.Test = updater.Test{Image: ref, Timeout: 20 * time.Second}
		return c
	}

	t.Run("none is asked for", func(t *testing.T) {
		n := pulls()
		require.NoError(t, r.h.fetchTest(t.Context(), wants(""), 0, quiet))
		require.Zero(t, n())
	})
	t.Run("a tag is pulled each time", func(t *testing.T) {
		r.image(t, "tests", command("exit", "0"))
		require.NoError(t, r.h.fetchTest(t.Context(), wants(r.repo+":tests"), 0, quiet))
		before := r.local(t, "tests")
		r.image(t, "tests", command("exit", "1"))
		n := pulls()
		require.NoError(t, r.h.fetchTest(t.Context(), wants(r.repo+":tests"), 0, quiet))
		require.EqualValues(t, 1, n())
		require.NotEqual(t, before, r.local(t, "tests"))
	})
	t.Run("a digest that is here is not pulled", func(t *testing.T) {
		digest := r.image(t, "pinned", command("exit", "2"))
		n := pulls()
		for range 2 {
			require.NoError(t, r.h.fetchTest(t.Context(), wants(r.repo+"@"+digest), 0, quiet))
		}
		require.EqualValues(t, 1, n())
	})
	t.Run("the one that is here must do if the registry is down", func(t *testing.T) {
		r.image(t, "here", command("exit", "3"))
		r.pull(t, "here")
		require.NoError(t, r.cli.ImageTag(t.Context(), r.repo+":here", dead+":here"))
		require.NoError(t, r.h.fetchTest(t.Context(), wants(dead+":here"), 0, quiet))
	})
	t.Run("it is neither here nor to be had", func(t *testing.T) {
		err := r.h.fetchTest(t.Context(), wants(dead+":nowhere"), 0, quiet)
		refused(t, err, updater.Surroundings, dead+":nowhere")
		err = r.h.fetchTest(t.Context(), wants(r.repo+":missing"), 0, quiet)
		refused(t, err, updater.Surroundings, r.repo+":missing is not on the engine")
	})
	t.Run("it is no reference", func(t *testing.T) {
		refused(t, r.h.fetchTest(t.Context(), wants("Not A Reference"), 0, quiet), updater.InvalidSettings, "health.test.image")
	})
	t.Run("credentials are sent", func(t *testing.T) {
		asked := ""
		h, err := New(Options{Name: "local", Endpoint: r.host, Owner: "me", Credential: func(_ context.Context, ref string) (updater.Credential, error) {
			asked = ref
			return updater.Credential{Username: "u", Password: "p"}, nil
		}, wrap: func(next http.RoundTripper) http.RoundTripper { return next }})
		require.NoError(t, err)
		defer h.Close()
		require.NoError(t, h.fetchTest(t.Context(), wants(r.repo+":tests"), 0, quiet))
		require.Equal(t, r.repo+":tests", asked)
	})
	t.Run("a prune between prepare and test costs another pull", func(t *testing.T) {
		c := r.begin(t, "web", command("web"), nil)
		c.Parts[0].Settings.Health.Test = updater.Test{Image: r.repo + ":pruned", Timeout: 20 * time.Second}
		r.image(t, "pruned", command("smoke", "8080"))
		require.NoError(t, r.apply(t, r.h, &c))
		if r.local(t, "pruned") != "" {
			_, err := r.cli.ImageRemove(t.Context(), r.repo+":pruned", imagetypes.RemoveOptions{Force: true})
			require.NoError(t, err)
		}
		got, err := r.h.Test(t.Context(), c, 0)
		require.NoError(t, err)
		require.Zero(t, got.ExitCode, got.Output)
	})
}

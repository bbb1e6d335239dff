package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestTheWritableLayerOfAProcess(t *testing.T) {
	layer := strings.Repeat("ab", 32)
	for name, c := range map[string]struct{ mounts, upper string }{
		"overlay2": {
			"700 600 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A:/var/lib/docker/overlay2/l/B,upperdir=/var/lib/docker/overlay2/" + layer + "/diff,workdir=/var/lib/docker/overlay2/" + layer + "/work\n" +
				"701 700 0:51 / /proc rw - proc proc rw\n", layer + "/diff"},
		"overlay2 of many layers, mounted from its directory": {
			"700 600 0:50 / / rw - overlay overlay rw,lowerdir=l/A:l/B,upperdir=" + layer + "/diff,workdir=" + layer + "/work\n", layer + "/diff"},
		"an overlay mounted elsewhere": {"700 600 0:50 / /mnt rw - overlay overlay rw,upperdir=/x/" + layer + "/diff\n", ""},
		"a host":                       {"25 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n", ""},
		"nonsense":                     {"- \n\n / - overlay\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.upper, mountedUpper(strings.NewReader(c.mounts)))
		})
	}
	var b box
	b.ContainerJSONBase = &container.ContainerJSONBase{}
	b.GraphDriver.Data = map[string]string{"UpperDir": "/var/lib/docker/overlay2/" + layer + "/diff"}
	require.Equal(t, layer+"/diff", upperOf(&b))
	b.GraphDriver.Data = nil
	require.Empty(t, upperOf(&b), "two that are not known are not the same")
}

func TestWhereAPathInAContainerLies(t *testing.T) {
	b := &box{}
	b.ContainerJSONBase = &container.ContainerJSONBase{HostConfig: &container.HostConfig{
		Tmpfs: map[string]string{"/var/lib/updaterd/cache/": ""},
	}}
	b.Mounts = []container.MountPoint{
		{Type: mount.TypeVolume, Name: "state", Destination: "/var/lib/updaterd"},
		{Type: mount.TypeBind, Source: "/etc/u.yaml", Destination: "/etc/updaterd/updaterd.yaml"},
		{Type: mount.TypeTmpfs, Destination: "/run"},
	}
	for path, mounted := range map[string]bool{
		"/var/lib/updaterd":           true,
		"/var/lib/updaterd/state":     true,
		"/var/lib/updaterd2":          false,
		"/var/lib":                    false,
		"/var/lib/updaterd/cache/x":   false,
		"/etc/updaterd/updaterd.yaml": true,
		"/etc/updaterd/other":         false,
		"/run/updaterd":               false,
		"/updaterd":                   false,
	} {
		require.Equal(t, mounted, mountOf(b, path) != nil, path)
	}
	b.Mounts = append(b.Mounts, container.MountPoint{Type: mount.TypeBind, Source: "/", Destination: "/"})
	require.NotNil(t, mountOf(b, "/updaterd"))
	require.Nil(t, mountOf(b, "/var/lib/updaterd/cache/x"))
}

var itsSelf = Self{Finish: []string{"/app", "hang"}, Env: []string{"UPDATERD_STATE=/state"}, State: "/state", Files: []string{"/app"}}

// TestAHelperIsTheContainerButFor holds every kind of container that can be
// replaced against the helper that would finish its update.
func TestAHelperIsTheContainerButFor(t *testing.T) {
	dirs, err := filepath.Glob("testdata/recreate/*")
	require.NoError(t, err)
	tried := 0
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			s, _, _ := readRow(t, dir)
			same, err := recreate(s, s.Image, "", nil)
			got, helperErr := helper(s, itsSelf, "c-1", "me")
			if err != nil {
				require.Error(t, helperErr)
				return
			}
			require.NoError(t, helperErr)
			tried++

			img, err := readTemplate(s.Image)
			require.NoError(t, err)
			require.Equal(t, img.ID, got.Config.Image, "not what the tag stands for by now")
			require.Equal(t, []string{"/app"}, []string(got.Config.Entrypoint))
			require.Equal(t, []string{"hang", "c-1"}, []string(got.Config.Cmd))
			require.Equal(t, append(same.Config.Env, "UPDATERD_STATE=/state"), got.Config.Env)
			require.Equal(t, same.Config.User, got.Config.User)
			require.Equal(t, []string{"NONE"}, got.Config.Healthcheck.Test)
			require.Empty(t, got.Config.Hostname)
			require.Empty(t, got.Config.ExposedPorts)
			for key, value := range got.Config.Labels {
				switch key {
				case labelFinishes:
					require.Equal(t, "c-1", value)
				case labelOwner:
					require.Equal(t, "me", value)
				default:
					require.Empty(t, value, key)
					require.Contains(t, img.Config.Labels, key)
				}
			}
			for key := range img.Config.Labels {
				if strings.HasPrefix(key, "updaterd.") || strings.HasPrefix(key, "com.docker.compose.") {
					require.Contains(t, got.Config.Labels, key, "the image's would say what the helper is")
				}
			}

			require.Equal(t, container.RestartPolicyOnFailure, got.Host.RestartPolicy.Name)
			require.Zero(t, got.Host.RestartPolicy.MaximumRetryCount)
			require.Empty(t, got.Host.PortBindings)
			require.False(t, got.Host.PublishAllPorts)
			for _, p := range []*container.HostConfig{got.Host, same.Host} {
				p.RestartPolicy, p.PortBindings, p.PublishAllPorts, p.ContainerIDFile = container.RestartPolicy{}, nil, false, ""
			}
			require.Equal(t, same.Host, got.Host, "all else is what it needs to reach the engine, or may do")

			require.Len(t, got.Networking.EndpointsConfig, len(same.Networking.EndpointsConfig))
			for name, e := range same.Networking.EndpointsConfig {
				requireBare(t, e, got.Networking.EndpointsConfig[name])
			}
			require.Len(t, got.Connect, len(same.Connect))
			for i, c := range same.Connect {
				require.Equal(t, c.Network, got.Connect[i].Network)
				requireBare(t, c.Endpoint, got.Connect[i].Endpoint)
			}
		})
	}
	require.Greater(t, tried, 50)
}

// requireBare: a helper is in the network, by no name and address of the original's.
func requireBare(t *testing.T, same, got *network.EndpointSettings) {
	t.Helper()
	require.Nil(t, got.IPAMConfig)
	require.Empty(t, got.Aliases)
	require.Empty(t, got.MacAddress)
	require.Equal(t, same.DriverOpts, got.DriverOpts)
	require.Equal(t, same.Links, got.Links)
}

// be makes h believe that this is what its process sees.
func (h *Host) be(me identity) {
	h.self, h.ownID = func() identity { return me }, ""
}

// itself makes h believe that it runs in the container.
func (r *rig) itself(t *testing.T, h *Host, name string) *box {
	t.Helper()
	b, err := h.inspect(t.Context(), r.name(name))
	require.NoError(t, err)
	require.NotNil(t, b)
	h.be(identity{ids: []string{b.ID[:12]}, upper: upperOf(b)})
	h.oneself = &itsSelf
	return b
}

// keeping gives a container a volume for its state.
func (r *rig) keeping(c *container.Config, h *container.HostConfig) {
	h.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: r.prefix + "-state", Target: "/state"}}
	h.RestartPolicy.Name = container.RestartPolicyAlways
}

func selfRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	t.Cleanup(func() {
		r.clean(context.Background())
		require.NoError(t, r.cli.VolumeRemove(context.Background(), r.prefix+"-state", true))
	})
	return r
}

func TestReplacingItself(t *testing.T) {
	r := selfRig(t)
	h := r.backend(t)
	for name, row := range map[string]struct {
		edit    func(*container.Config, *container.HostConfig)
		prepare func(t *testing.T, name string)
		refused string // "" when it can be
	}{
		"ok": {edit: r.keeping},
		"state in the container": {
			refused: "/state lies inside of it",
		},
		"state in memory": {
			edit: func(_ *container.Config, h *container.HostConfig) {
				h.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/state"}}
			},
			refused: "/state lies inside of it",
		},
		"removed when it stops": {
			edit: func(c *container.Config, h *container.HostConfig) {
				r.keeping(c, h)
				h.RestartPolicy.Name, h.AutoRemove = "", true
			},
			refused: "HostConfig.AutoRemove",
		},
		"a program that was copied in": {
			edit: r.keeping,
			prepare: func(t *testing.T, name string) {
				var b bytes.Buffer
				w := tar.NewWriter(&b)
				require.NoError(t, w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: 1}))
				_, err := w.Write([]byte("x"))
				require.NoError(t, err)
				require.NoError(t, w.Close())
				require.NoError(t, r.cli.CopyToContainer(t.Context(), r.name(name), "/", &b, container.CopyToContainerOptions{}))
			},
			refused: "/app was copied into it",
		},
		"the helper's name taken": {
			edit:    r.keeping,
			prepare: func(t *testing.T, name string) { r.run(t, name+suffixFinish, r.repo+":"+name, nil) },
			refused: "has a name that its helper needs",
		},
	} {
		t.Run(name, func(t *testing.T) {
			name := strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "'", "")
			c := r.begin(t, name, command("serve"), row.edit)
			if row.prepare != nil {
				row.prepare(t, name)
			}
			r.itself(t, h, name)
			c.Parts[0].Settings.NoRollback = true // it helps here as little
			err := h.Plan(t.Context(), &c, nil)
			if row.refused != "" {
				refused(t, err, updater.Unsupported, row.refused)
				return
			}
			require.NoError(t, err)
			require.True(t, c.Alone)
		})
	}
	t.Run("of a helper no container is its own", func(t *testing.T) {
		c := r.begin(t, "finishing", command("serve"), nil)
		r.itself(t, h, "finishing")
		h.finishing = true
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		require.False(t, c.Alone)
	})
}

// TestWhoIsItselfInASharedNetwork: a container in the network of another has that
// one's host name files, so that both look the same from inside.
func TestWhoIsItselfInASharedNetwork(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	r.image(t, "app", command("serve"))
	r.pull(t, "app")
	vpn := r.run(t, "vpn", r.repo+":app", nil)
	r.run(t, "own", r.repo+":app", func(_ *container.Config, h *container.HostConfig) {
		h.NetworkMode = container.NetworkMode("container:" + vpn)
	})
	r.run(t, "else", r.repo+":app", nil)
	own := r.itself(t, h, "own")
	upper := upperOf(own)
	for name, row := range map[string]struct {
		upper string
		is    map[string]bool
	}{
		"the layer tells":       {"told", map[string]bool{"own": true, "vpn": false, "else": false}},
		"the layer is not seen": {"", map[string]bool{"else": false}},
	} {
		t.Run(name, func(t *testing.T) {
			seen := row.upper
			if seen == "told" {
				if upper == "" {
					t.Log("this engine shows no layers: what is proved is that it is refused")
					return
				}
				seen = upper
			}
			h.be(identity{ids: []string{vpn}, upper: seen})
			for _, container := range []string{"own", "vpn", "else"} {
				b, err := h.inspect(t.Context(), r.name(container))
				require.NoError(t, err)
				is, err := h.selfPart(t.Context(), b)
				if want, known := row.is[container]; known {
					require.NoError(t, err)
					require.Equal(t, want, is, container)
				} else {
					refused(t, err, updater.Unsupported, "cannot tell")
				}
			}
		})
	}
}

// helpers are the helpers' containers.
func (r *rig) helpers(t *testing.T) []container.Summary {
	t.Helper()
	all, err := r.cli.ContainerList(t.Context(), container.ListOptions{All: true})
	require.NoError(t, err)
	var found []container.Summary
	for _, c := range all {
		if strings.HasPrefix(nameOf(c), r.prefix) && c.Labels[labelFinishes] != "" {
			found = append(found, c)
		}
	}
	return found
}

func (r *rig) helper(t *testing.T) container.Summary {
	t.Helper()
	found := r.helpers(t)
	require.Len(t, found, 1)
	return found[0]
}

// handed begins an update of itself up to where it is handed over.
func (r *rig) handed(t *testing.T, h *Host, name string) updater.Change {
	t.Helper()
	c := r.begin(t, name, command("serve", "new"), r.keeping)
	r.itself(t, h, name)
	require.NoError(t, h.Plan(t.Context(), &c, nil))
	require.NoError(t, h.Prepare(t.Context(), c, func(updater.Progress) {}))
	c.Phase, c.Disturbed = updater.Applying, true
	return c
}

func TestHandingOver(t *testing.T) {
	r := selfRig(t)
	h := r.backend(t)
	c := r.handed(t, h, "web")
	apply := func(c updater.Change) error {
		_, err := h.Apply(t.Context(), c)
		return err
	}

	require.ErrorIs(t, apply(c), updater.ErrHandedOver)
	first := r.helper(t)
	require.Equal(t, r.name("web")+suffixFinish, nameOf(first))
	require.Equal(t, container.StateRunning, first.State)
	require.Equal(t, map[string]string{labelFinishes: c.ID, labelOwner: "me"}, first.Labels)
	b, err := h.inspect(t.Context(), first.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"hang", c.ID}, b.Args)
	require.Contains(t, b.Config.Env, "UPDATERD_STATE=/state")
	require.Equal(t, r.prefix+"-state", b.Mounts[0].Name)
	own, err := h.inspect(t.Context(), r.name("web"))
	require.NoError(t, err)
	require.True(t, own.State.Running, "it did not stop itself")
	workloads, err := h.Workloads(t.Context())
	require.NoError(t, err)
	for _, w := range workloads {
		require.NotContains(t, w.Name, suffixFinish)
	}

	t.Run("again, with the helper there", func(t *testing.T) {
		require.ErrorIs(t, apply(c), updater.ErrHandedOver)
		require.Equal(t, first.ID, r.helper(t).ID)
	})
	t.Run("again, when somebody stopped it", func(t *testing.T) {
		none := 0
		require.NoError(t, r.cli.ContainerStop(t.Context(), first.ID, container.StopOptions{Timeout: &none}))
		require.ErrorIs(t, apply(c), updater.ErrHandedOver)
		require.Equal(t, first.ID, r.helper(t).ID)
		require.Equal(t, container.StateRunning, r.helper(t).State)
	})
	t.Run("again, when somebody removed it", func(t *testing.T) {
		r.remove(t, first.ID)
		require.ErrorIs(t, apply(c), updater.ErrHandedOver)
		require.Equal(t, container.StateRunning, r.helper(t).State)
	})
	t.Run("with that of another change there", func(t *testing.T) {
		other := c
		other.ID = c.ID + "-2"
		require.ErrorIs(t, apply(other), updater.ErrHandedOver)
		require.Equal(t, other.ID, r.helper(t).Labels[labelFinishes])
		require.ErrorIs(t, apply(c), updater.ErrHandedOver)
		require.Equal(t, c.ID, r.helper(t).Labels[labelFinishes])
	})
	t.Run("going back is for the old one itself", func(t *testing.T) {
		back := c
		back.Phase = updater.Restoring
		_, err := h.Restore(t.Context(), back)
		require.NoError(t, err)
		require.Equal(t, []string{r.name("web") + suffixFinish}, r.leftovers(t, "web"), "the helper ends by itself")
		still, err := h.inspect(t.Context(), r.name("web"))
		require.NoError(t, err)
		require.Equal(t, own.ID, still.ID)
		require.Equal(t, own.State.StartedAt, still.State.StartedAt)
	})
	t.Run("what has ended is swept away when its change is over", func(t *testing.T) {
		id := r.helper(t).ID
		_, err := h.Traces(t.Context(), map[string]bool{})
		require.NoError(t, err)
		require.Equal(t, id, r.helper(t).ID, "it still runs")
		none := 0
		require.NoError(t, r.cli.ContainerStop(t.Context(), id, container.StopOptions{Timeout: &none}))
		_, err = h.Traces(t.Context(), map[string]bool{c.ID: true})
		require.NoError(t, err)
		require.Equal(t, id, r.helper(t).ID, "its change is open")
		_, err = r.backendOf(t, "another").Traces(t.Context(), map[string]bool{})
		require.NoError(t, err)
		require.Equal(t, id, r.helper(t).ID, "it is another's")
		_, err = h.Traces(t.Context(), map[string]bool{})
		require.NoError(t, err)
		require.Empty(t, r.helpers(t))
	})
}

// TestWhichEffectsAreHandedOver: those that would end the container that this
// process runs in, and no others.
func TestWhichEffectsAreHandedOver(t *testing.T) {
	r := selfRig(t)
	h := r.backend(t)
	c := r.handed(t, h, "web")
	made := r.name("web") + suffixNew
	effects := map[string]func(c updater.Change) error{
		"apply": func(c updater.Change) error { _, err := h.Apply(t.Context(), c); return err },
		"restore": func(c updater.Change) error {
			c.Phase = updater.Restoring
			_, err := h.Restore(t.Context(), c)
			return err
		},
		"commit": func(c updater.Change) error {
			c.Phase = updater.Committing
			return h.Commit(t.Context(), c)
		},
	}
	require.ErrorIs(t, effects["apply"](c), updater.ErrHandedOver)
	require.ErrorIs(t, effects["commit"](c), updater.ErrHandedOver, "it would remove itself")

	// The helper's part, up to where the new one runs.
	h.finishing = true
	applied, err := h.Apply(t.Context(), c)
	require.NoError(t, err)
	c.Mark = applied.Mark
	h.finishing = false
	b, err := h.inspect(t.Context(), r.name("web"))
	require.NoError(t, err)
	require.NotEmpty(t, b.label(labelReplaces), made)
	h.be(identity{ids: []string{b.ID}})

	// Now it is the new one that goes on, the helper being gone for good.
	require.NoError(t, effects["apply"](c))
	require.ErrorIs(t, effects["restore"](c), updater.ErrHandedOver, "it would stop itself")
	c.Mark = nil
	require.ErrorIs(t, effects["restore"](c), updater.ErrHandedOver, "also when nobody knows the mark any more")
	require.NoError(t, effects["commit"](c))
	now, err := h.inspect(t.Context(), r.name("web"))
	require.NoError(t, err)
	require.Equal(t, b.ID, now.ID)
	require.True(t, now.State.Running)

	require.NoError(t, h.DismissHelper(t.Context(), c.ID))
	require.Empty(t, r.helpers(t))
	require.NoError(t, h.DismissHelper(t.Context(), c.ID), "again")
}

func TestAHelperThatFails(t *testing.T) {
	r := selfRig(t)
	h := r.backend(t)
	c := r.handed(t, h, "web")
	fails := itsSelf
	fails.Finish = []string{"/app", "exit", "3"}
	h.oneself = &fails

	require.ErrorIs(t, errOf(h.Apply(t.Context(), c)), updater.ErrHandedOver)
	require.Eventually(t, func() bool {
		b, err := h.inspect(t.Context(), r.name("web")+suffixFinish)
		return err == nil && b != nil && b.RestartCount >= mostHelpers
	}, 20*time.Second, 50*time.Millisecond)
	err := errOf(h.Apply(t.Context(), c))
	require.NotErrorIs(t, err, updater.ErrHandedOver)
	require.ErrorContains(t, err, "fails again and again: exiting as told")
	require.Empty(t, r.helpers(t))

	// One that ends as if all were done, without having done it.
	for range mostHelpers {
		require.ErrorIs(t, errOf(h.Apply(t.Context(), c)), updater.ErrHandedOver)
		r.remove(t, r.name("web")+suffixFinish)
	}
	require.ErrorContains(t, errOf(h.Apply(t.Context(), c)), "does it find the journal?")
	require.ErrorIs(t, errOf(h.Apply(t.Context(), c)), updater.ErrHandedOver, "whoever insists")

	// One whose program has gone from the image.
	require.NoError(t, h.DismissHelper(t.Context(), c.ID))
	fails.Finish = []string{"/nowhere"}
	err = errOf(h.Apply(t.Context(), c))
	require.ErrorContains(t, err, "starting the helper")
	var fault *updater.Fault
	require.NotErrorAs(t, err, &fault, "the new image is not to blame")
	require.Empty(t, r.helpers(t))
	own, err := h.inspect(t.Context(), r.name("web"))
	require.NoError(t, err)
	require.True(t, own.State.Running)
}

// TestAHelperThatIsBeingRemoved when it is to be started is made anew.
func TestAHelperThatIsBeingRemoved(t *testing.T) {
	r := selfRig(t)
	first := r.backend(t)
	c := r.handed(t, first, "web")
	var shown []byte // of the helper, in the middle of its removal
	removed := false
	h, err := New(Options{Name: "local", Endpoint: r.host, Owner: "me", wrap: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			answer := func(code int, body []byte) (*http.Response, error) {
				return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
			}
			switch {
			case !removed && req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/start"):
				removed = true
				b := r.inspect(t, "web"+suffixFinish)
				b.State.Status = container.StateRemoving
				raw, err := json.Marshal(b)
				require.NoError(t, err)
				shown = raw
				r.remove(t, r.name("web")+suffixFinish)
				return answer(http.StatusConflict, []byte(`{"message": "container is marked for removal and cannot be started"}`))
			case shown != nil && req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/json"):
				raw := shown
				shown = nil
				return answer(http.StatusOK, raw)
			}
			return next.RoundTrip(req)
		})
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	h.self, h.oneself = first.self, first.oneself
	require.ErrorIs(t, errOf(h.Apply(t.Context(), c)), updater.ErrHandedOver)
	require.True(t, removed)
	require.Equal(t, container.StateRunning, r.helper(t).State)
	require.NoError(t, h.DismissHelper(t.Context(), c.ID))
}

// TestACrashWhileHandingOver dies at each call of the hand-over, and comes back.
func TestACrashWhileHandingOver(t *testing.T) {
	r := selfRig(t)
	h := r.backend(t)
	c := r.handed(t, h, "web")
	for _, done := range []bool{false, true} {
		for n := 1; ; n++ {
			victim := r.backend(t)
			victim.self, victim.oneself = h.self, h.oneself
			call := r.crashAt(n, done)
			_ = errOf(victim.Apply(t.Context(), c))
			r.failNth(0, false)
			if call() == "" {
				require.Greater(t, n, 2, "a create and a start")
				break
			}
			again := r.backend(t)
			again.self, again.oneself = h.self, h.oneself
			require.ErrorIs(t, errOf(again.Apply(t.Context(), c)), updater.ErrHandedOver, call())
			require.Equal(t, container.StateRunning, r.helper(t).State, call())
			require.NoError(t, again.DismissHelper(t.Context(), c.ID))
		}
		require.NoError(t, h.DismissHelper(t.Context(), c.ID))
	}
}

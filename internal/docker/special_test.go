package docker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// kind is a container that is updated otherwise than most.
type kind struct {
	name     string
	settings updater.Settings
	edit     func(*container.Config, *container.HostConfig)
	// ready brings what was started into the state that it is updated in.
	ready func(*testing.T, *rig, string)
}

func (k kind) idle() bool { return k.settings.IncludeStopped }

// kinds are the special ones, in networks of this name.
func kinds(net string) []kind {
	return []kind{
		{name: "start-first", settings: updater.Settings{StartFirst: true}, edit: func(_ *container.Config, h *container.HostConfig) {
			h.NetworkMode = container.NetworkMode(net)
			h.RestartPolicy.Name = container.RestartPolicyAlways
		}},
		{name: "rm", settings: updater.Settings{NoRollback: true}, edit: func(c *container.Config, h *container.HostConfig) {
			h.AutoRemove = true
			c.Volumes = map[string]struct{}{"/data": {}}
		}},
		{name: "created", settings: updater.Settings{IncludeStopped: true}},
		{name: "exited", settings: updater.Settings{IncludeStopped: true}, ready: func(t *testing.T, r *rig, name string) {
			require.NoError(t, r.cli.ContainerStop(t.Context(), name, container.StopOptions{}))
		}, edit: func(_ *container.Config, h *container.HostConfig) { h.RestartPolicy.Name = container.RestartPolicyAlways }},
		{name: "paused", settings: updater.Settings{IncludeStopped: true}, ready: func(t *testing.T, r *rig, name string) {
			require.NoError(t, r.cli.ContainerPause(t.Context(), name))
		}},
	}
}

// start makes a container of this kind.
func (k kind) start(t *testing.T, r *rig, name, ref string) container.InspectResponse {
	t.Helper()
	edit := func(c *container.Config, h *container.HostConfig) {
		if k.edit != nil {
			k.edit(c, h)
		}
	}
	if k.name == "created" {
		created, err := r.cli.ContainerCreate(t.Context(), &container.Config{Image: ref, StopSignal: "SIGKILL"},
			&container.HostConfig{NetworkMode: "none"}, nil, nil, r.name(name))
		require.NoError(t, err)
		require.NotEmpty(t, created.ID)
	} else {
		r.run(t, name, ref, edit)
	}
	if k.ready != nil {
		k.ready(t, r, r.name(name))
	}
	return r.inspect(t, name)
}

func (r *rig) inspect(t *testing.T, name string) container.InspectResponse {
	t.Helper()
	c, err := r.cli.ContainerInspect(t.Context(), r.name(name))
	require.NoError(t, err)
	return c
}

// asItWas requires the original, in the state that it was in.
func asItWas(t *testing.T, before, now container.InspectResponse) {
	t.Helper()
	require.Equal(t, before.ID, now.ID, "it is not the original")
	require.Equal(t, before.Name, now.Name)
	require.Equal(t, before.State.Status, now.State.Status)
	require.Equal(t, before.State.StartedAt, now.State.StartedAt, "it was started")
	require.Equal(t, before.HostConfig.RestartPolicy, now.HostConfig.RestartPolicy)
	require.Equal(t, networksOf(before), networksOf(now))
}

func networksOf(c container.InspectResponse) map[string]string {
	all := map[string]string{}
	for name, e := range c.NetworkSettings.Networks {
		all[name] = e.NetworkID + " " + e.IPAddress
	}
	return all
}

// TestSpecialOnes: each kind is updated as it should be, and comes back as it
// should.
func TestSpecialOnes(t *testing.T) {
	base := baseImage(t)
	r := newRigOn(t, base)
	r.freeSubnet(t, "net")
	h := r.backend(t)
	for _, k := range kinds(r.name("net")) {
		for _, good := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, good %v", k.name, good), func(t *testing.T) {
				name := strings.ReplaceAll(t.Name()[len("TestSpecialOnes/"):], ",_good_", "-")
				r.image(t, name, command("serve"))
				r.pull(t, name)
				before := k.start(t, r, name, r.repo+":"+name)
				to := command("serve", "new")
				if !good && !k.idle() {
					to = command("exit", "3")
				}
				c := r.change(name, name, name, r.image(t, name, to))
				c.Parts[0].Settings = k.settings
				c.Parts[0].Settings.Keep = 1
				err := r.apply(t, h, &c)
				var fault *updater.Fault
				switch {
				case !good && err != nil:
					require.ErrorAs(t, err, &fault)
					require.Equal(t, updater.Bad, fault.Verdict)
				default:
					require.NoError(t, err)
				}
				require.Equal(t, k.idle(), c.Parts[0].Idle)

				switch k.name {
				case "start-first":
					asItWas(t, before, r.inspect(t, name))
					require.Zero(t, c.Gap)
				case "rm":
					_, err := r.cli.ContainerInspect(t.Context(), before.ID)
					require.True(t, cerrdefs.IsNotFound(err), "the engine removes it: %v", err)
				default:
					aside, err := r.cli.ContainerInspect(t.Context(), before.ID)
					require.NoError(t, err)
					require.Equal(t, before.State.Status, aside.State.Status)
					require.Equal(t, container.StateCreated, r.inspect(t, name).State.Status, "the new one was started")
				}

				if good {
					if !k.idle() {
						o, err := h.Observe(t.Context(), c, 0, updater.NewSide)
						require.NoError(t, err)
						require.True(t, o.Running && !o.Undone, "%+v", o)
					}
					require.NoError(t, h.Commit(t.Context(), c))
					now := r.inspect(t, name)
					require.NotEqual(t, before.ID, now.ID)
					require.NotEqual(t, before.Image, now.Image)
					require.Equal(t, !k.idle(), now.State.Running)
					require.Equal(t, before.HostConfig.RestartPolicy, now.HostConfig.RestartPolicy)
					require.Equal(t, before.HostConfig.AutoRemove, now.HostConfig.AutoRemove)
					_, err = r.cli.ContainerInspect(t.Context(), before.ID)
					require.True(t, cerrdefs.IsNotFound(err), "%v", err)
				} else {
					if !k.idle() && fault == nil {
						require.Eventually(t, func() bool {
							o, err := h.Observe(t.Context(), c, 0, updater.NewSide)
							return err == nil && !o.Running && !o.Restarting && !o.Gone && o.ExitCode == 3 || o.Restarts > 0
						}, 10*time.Second, 20*time.Millisecond, "the exit code is not told")
					}
					c.Verdict = updater.Bad
					got, err := r.restore(t, h, c)
					require.NoError(t, err)
					if k.name == "rm" {
						require.True(t, got.Copy)
						require.Contains(t, got.Why, "--rm")
						now := r.inspect(t, name)
						require.True(t, now.State.Running)
						require.True(t, now.HostConfig.AutoRemove)
						require.Equal(t, before.Image, now.Image)
						require.Equal(t, before.Mounts[0].Name, now.Mounts[0].Name, "the volume that nobody named")
						o, err := h.Observe(t.Context(), c, 0, updater.OldSide)
						require.NoError(t, err)
						require.True(t, o.Running, "%+v", o)
					} else {
						require.Equal(t, updater.Restoration{}, got)
						asItWas(t, before, r.inspect(t, name))
					}
					require.Equal(t, before.Image, r.local(t, name), "the local tag")
				}
				require.Empty(t, r.leftovers(t, name))
				found, err := h.Traces(t.Context(), nil)
				require.NoError(t, err)
				require.False(t, slices.ContainsFunc(found, func(f updater.Change) bool { return f.Unit == c.Unit }))
			})
		}
	}
}

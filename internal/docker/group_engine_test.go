package docker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	imagetypes "github.com/docker/docker/api/types/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// family are containers that use vpn, each in its way, and one of them through
// another.
type family struct {
	*rig
	names   []string          // in start order
	digests map[string]string // of a newer image for each
}

// newFamily runs them, each on an image of its own name. There is a "link" among
// them where the engine has links.
func newFamily(t *testing.T) family {
	t.Helper()
	f := family{rig: newRig(t), digests: map[string]string{}}
	begin := func(name string, edit func(*container.Config, *container.HostConfig)) error {
		f.image(t, name, func(c *v1.Config) { c.Cmd, c.Labels = []string{"serve"}, map[string]string{"of": name} })
		f.pull(t, name)
		f.digests[name] = f.image(t, name, func(c *v1.Config) {
			c.Cmd, c.Labels = []string{"serve"}, map[string]string{"of": name, "newer": "yes"}
		})
		if _, err := f.tryRun(t, name, f.repo+":"+name, restarting(edit)); err != nil {
			return err
		}
		f.names = append(f.names, name)
		return nil
	}
	require.NoError(t, begin("vpn", func(c *container.Config, h *container.HostConfig) {
		h.NetworkMode = "bridge"
		c.Volumes = map[string]struct{}{"/secret": {}}
	}))
	require.NoError(t, begin("app", func(_ *container.Config, h *container.HostConfig) {
		h.NetworkMode, h.IpcMode = container.NetworkMode("container:"+f.name("vpn")), "shareable"
	}))
	require.NoError(t, begin("data", func(_ *container.Config, h *container.HostConfig) {
		h.VolumesFrom = []string{f.name("vpn") + ":ro"}
	}))
	err := begin("link", func(_ *container.Config, h *container.HostConfig) {
		h.NetworkMode, h.Links = "bridge", []string{f.name("vpn") + ":tunnel"}
	})
	require.True(t, err == nil || strings.Contains(err.Error(), "link is not supported"), "%v", err)
	require.NoError(t, begin("side", func(_ *container.Config, h *container.HostConfig) {
		h.PidMode, h.IpcMode = container.PidMode("container:"+f.name("app")), container.IpcMode("container:"+f.name("app"))
	}))
	return f
}

// link is a part of a test that is about the one with a link.
func (f family) link(t *testing.T, part func(t *testing.T)) {
	t.Helper()
	t.Run("a link", func(t *testing.T) {
		if !slices.Contains(f.names, "link") {
			doesNotApply(t, "this engine has no links")
		}
		part(t)
	})
}

// restarting has a container started again until somebody stops it.
func restarting(edit func(*container.Config, *container.HostConfig)) func(*container.Config, *container.HostConfig) {
	return func(c *container.Config, h *container.HostConfig) {
		h.RestartPolicy.Name = container.RestartPolicyUnlessStopped
		if edit != nil {
			edit(c, h)
		}
	}
}

// member runs a container on the image of its name.
func (r *rig) member(t *testing.T, name string, edit func(*container.Config, *container.HostConfig)) string {
	t.Helper()
	return r.run(t, name, r.repo+":"+name, restarting(edit))
}

// wish is one for several at once.
func (r *rig) wish(digests map[string]string, of ...string) updater.Change {
	var c updater.Change
	for _, n := range of {
		one := r.change(n, n, n, digests[n])
		one.Parts, one.ID = append(c.Parts, one.Parts...), cmp.Or(c.ID, one.ID)
		c = one
	}
	return c
}

func goesAlong(string) (updater.Settings, error) { return updater.Settings{Keep: 1}, nil }

// carry makes a change from the wish to its end.
func (r *rig) carry(t *testing.T, c updater.Change, good bool) updater.Change {
	t.Helper()
	p := &process{rig: r, host: r.backend(t), journal: &c}
	require.NoError(t, p.host.Plan(t.Context(), p.journal, goesAlong))
	require.NoError(t, p.goOn(t, good))
	return *p.journal
}

// looks are what can be seen of each, and ids what they are.
func (r *rig) looks(t *testing.T, names []string) (looks, ids []string) {
	t.Helper()
	for _, n := range names {
		looks, ids = append(looks, r.look(t, n)), append(ids, r.inspect(t, n).ID)
	}
	return looks, ids
}

// lives requires that a container runs and uses what runs now.
func (r *rig) lives(t *testing.T, name string) {
	t.Helper()
	c := r.inspect(t, name)
	require.True(t, c.State.Running, name)
	for _, ref := range references(c.HostConfig) {
		used, err := r.cli.ContainerInspect(t.Context(), ref)
		require.NoError(t, err, "%s uses %s, which does not exist", name, ref)
		require.True(t, used.State.Running, "%s uses %s", name, used.Name)
		require.NotContains(t, used.Name, ".updaterd", "%s uses what was set aside", name)
		require.LessOrEqual(t, used.State.StartedAt, c.State.StartedAt, "%s was started before %s", name, used.Name)
	}
}

func (r *rig) allLive(t *testing.T, names []string) {
	t.Helper()
	for _, n := range names {
		r.lives(t, n)
		require.Empty(t, r.leftovers(t, n))
	}
}

func TestGroupOfEveryKind(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	secret := f.inspect(t, "vpn").Mounts[0].Name
	before, ids := f.looks(t, f.names)

	c := f.carry(t, f.wish(f.digests, "vpn"), false)
	require.Equal(t, updater.Restored, c.Phase)
	for i, p := range c.Parts {
		require.Equal(t, "local/"+f.name(f.names[i]), p.Workload, "in start order")
		require.Equal(t, i == 0, p.Changes())
	}
	after, now := f.looks(t, f.names)
	require.Equal(t, ids, now, "the originals")
	require.Equal(t, before, after)
	f.allLive(t, f.names)

	newer := []string{"vpn"}
	for round := range 2 {
		if round == 1 {
			newer = slices.DeleteFunc([]string{"app", "link"}, func(n string) bool { return !slices.Contains(f.names, n) })
			f.image(t, "vpn", func(c *v1.Config) { c.Cmd = []string{"serve"} }) // nobody asks for it
		}
		require.Equal(t, updater.Committed, f.carry(t, f.wish(f.digests, newer...), true).Phase)
		after, _ = f.looks(t, f.names)
		for i, n := range f.names {
			if newer := f.inspect(t, n).Config.Labels["newer"] == "yes"; newer {
				require.NotEqual(t, before[i], after[i])
			} else {
				require.Equal(t, before[i], after[i], n)
			}
		}
		f.allLive(t, f.names)
	}
	for _, n := range f.names {
		newer := n == "vpn" || n == "app" || n == "link"
		require.Equal(t, newer, f.inspect(t, n).Config.Labels["newer"] == "yes", n)
	}
	require.Equal(t, secret, f.inspect(t, "vpn").Mounts[0].Name, "the volume is kept")
	data := f.inspect(t, "data")
	require.Equal(t, secret, data.Mounts[0].Name, "and passed on")
	require.False(t, data.Mounts[0].RW)
	f.link(t, func(t *testing.T) {
		require.Equal(t, []string{"/" + f.name("vpn") + ":/" + f.name("link") + "/tunnel"}, f.inspect(t, "link").HostConfig.Links)
	})

	// It no longer moves along, so the name that a person wrote is free again.
	require.Equal(t, updater.Committed, f.carry(t, f.wish(f.digests, "data"), true).Phase)
	data = f.inspect(t, "data")
	require.Equal(t, []string{f.name("vpn") + ":ro"}, data.HostConfig.VolumesFrom)
	require.Equal(t, secret, data.Mounts[0].Name)
	require.Empty(t, data.Config.Labels[labelVolumesFrom])
	f.allLive(t, f.names)
}

func TestGroupWhoseOriginalsWerePrunedComesBackAsCopies(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	before, ids := f.looks(t, f.names)
	secret := f.inspect(t, "vpn").Mounts[0].Name
	h := f.backend(t)
	c := f.wish(f.digests, "vpn")
	require.NoError(t, h.Plan(t.Context(), &c, goesAlong))
	require.NoError(t, h.Prepare(t.Context(), c, quiet))
	c.Phase, c.Disturbed = updater.Applying, true
	applied, err := h.Apply(t.Context(), c)
	require.NoError(t, err)
	c.Mark = applied.Mark
	f.prune(t, f.name("vpn")+suffixOld) // it alone: the others cannot live without it
	restoration, err := f.restore(t, h, c)
	require.NoError(t, err)
	require.True(t, restoration.Copy)
	// But for its volume, which had no name.
	after, now := f.looks(t, f.names)
	require.Equal(t, before[1:], after[1:])
	for i, n := range f.names { // volumes can be had without the container that they came from
		require.Equal(t, n == "data", ids[i] == now[i], n)
	}
	require.Equal(t, secret, f.inspect(t, "data").Mounts[0].Name)
	f.allLive(t, f.names)
	f.link(t, func(t *testing.T) { f.lives(t, "link") })
}

func TestDependentsWhoseTagMovedOnGoAlongAsTheyAre(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprintf("the tag is gone %v", gone), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if gone && isPodmanRun() {
				doesNotApply(t, "Podman removes the containers of an image together with its last name, or keeps the name")
			}
			r.image(t, "vpn", func(*v1.Config) {})
			r.image(t, "app", func(c *v1.Config) { c.Labels = map[string]string{"app": "one"} })
			r.pull(t, "vpn")
			r.pull(t, "app")
			r.member(t, "vpn", nil)
			r.member(t, "app", func(_ *container.Config, h *container.HostConfig) {
				h.NetworkMode = container.NetworkMode("container:" + r.name("vpn"))
			})
			next := r.image(t, "vpn", func(c *v1.Config) { c.Labels = map[string]string{"vpn": "two"} })
			r.image(t, "app", func(c *v1.Config) { c.Labels = map[string]string{"app": "two"} })
			if gone {
				_, err := r.cli.ImageRemove(t.Context(), r.repo+":app", imagetypes.RemoveOptions{Force: true})
				require.NoError(t, err)
			} else {
				r.pull(t, "app")
			}
			local, before := r.local(t, "app"), r.look(t, "app")
			for _, good := range []bool{false, true} {
				r.carry(t, r.wish(map[string]string{"vpn": next}, "vpn"), good)
				require.Equal(t, before, r.look(t, "app"))
				r.allLive(t, []string{"vpn"})
				r.lives(t, "app")
				for _, left := range r.leftovers(t, "app") {
					require.True(t, (isDocker29Run() || isPodmanRun()) && !gone, "%s is left", left)
					kept, err := r.cli.ImageInspect(t.Context(), left)
					require.NoError(t, err)
					require.Equal(t, []string{left}, kept.RepoTags, "its last name, which that engine does not take")
					require.Equal(t, kept.ID, r.inspect(t, "app").Image)
				}
				if !gone {
					require.Equal(t, local, r.local(t, "app"), "the tag is somebody's own")
				}
			}
			require.Equal(t, "two", r.inspect(t, "vpn").Config.Labels["vpn"])
		})
	}
}

func TestAStoppedDependentStaysSoAndCanBeStartedAfterwards(t *testing.T) {
	t.Parallel()
	f := newFamily(t)
	stopped := f.names[3:] // the last ones
	require.Contains(t, stopped, "side")
	for _, n := range slices.Backward(stopped) {
		require.NoError(t, f.cli.ContainerStop(t.Context(), f.name(n), container.StopOptions{}))
	}
	for _, good := range []bool{false, true} {
		c := f.carry(t, f.wish(f.digests, "vpn"), good)
		for i, n := range f.names {
			require.Equal(t, i >= 3, c.Parts[i].Idle, n)
		}
		for _, n := range stopped {
			require.False(t, f.inspect(t, n).State.Running, n)
		}
		f.allLive(t, f.names[:3])
	}
	for _, n := range stopped {
		require.NoError(t, f.cli.ContainerStart(t.Context(), f.name(n), container.StartOptions{}))
	}
	f.allLive(t, f.names)
	f.link(t, func(t *testing.T) { f.lives(t, "link") })
}

// TestWhatComposeRestartsIsOnlyRestarted: web is restarted with db, side lives in
// web, and both db and side have an update.
func TestWhatComposeRestartsIsOnlyRestarted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	digests := map[string]string{}
	names := []string{"db", "web", "side"}
	service := func(name, needs string) map[string]string {
		return map[string]string{labelProject: r.prefix, labelService: name, labelDependsOn: needs}
	}
	for _, n := range names {
		r.image(t, n, func(*v1.Config) {})
		r.pull(t, n)
		digests[n] = r.image(t, n, func(c *v1.Config) { c.Labels = map[string]string{"newer": "yes"} })
	}
	r.member(t, "db", func(c *container.Config, _ *container.HostConfig) { c.Labels = service("db", "") })
	r.member(t, "web", func(c *container.Config, _ *container.HostConfig) {
		c.Labels = service("web", "db:service_started:true")
	})
	r.member(t, "side", func(c *container.Config, h *container.HostConfig) {
		c.Labels = service("side", "")
		h.NetworkMode = container.NetworkMode("container:" + r.name("web"))
	})
	_, ids := r.looks(t, names)
	started := r.inspect(t, "web").State.StartedAt
	for _, row := range []struct {
		wish []string
		good bool
		new  []string
	}{
		{[]string{"db"}, false, nil},
		{[]string{"db", "side"}, false, nil},
		{[]string{"db", "side"}, true, []string{"db", "side"}},
	} {
		r.carry(t, r.wish(digests, row.wish...), row.good)
		r.allLive(t, names)
		require.Equal(t, ids[1], r.inspect(t, "web").ID, "it is the same container")
		now := r.inspect(t, "web").State.StartedAt
		require.NotEqual(t, started, now, "and was restarted")
		started = now
		require.LessOrEqual(t, r.inspect(t, "db").State.StartedAt, now, "after what it depends on")
		for i, n := range names {
			require.Equal(t, ids[i] == r.inspect(t, n).ID, !slices.Contains(row.new, n), n)
		}
	}
}

func TestGroupsThatCannotBeMovedAreRefusedBeforeAnythingIsStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.image(t, "vpn", func(*v1.Config) {})
	r.image(t, "app", func(*v1.Config) {})
	r.pull(t, "vpn")
	r.pull(t, "app")
	digests := map[string]string{
		"vpn": r.image(t, "vpn", func(c *v1.Config) { c.Labels = map[string]string{"newer": "yes"} }),
		"app": r.image(t, "app", func(c *v1.Config) { c.Labels = map[string]string{"newer": "yes"} }),
	}
	in := func(c *container.Config, h *container.HostConfig) {
		h.NetworkMode = container.NetworkMode("container:" + r.name("vpn"))
	}
	r.member(t, "vpn", nil)
	r.member(t, "app", in)
	h := r.backend(t)

	r.run(t, "job", r.repo+":app", func(c *container.Config, h *container.HostConfig) {
		in(c, h)
		c.Labels = map[string]string{labelProject: "p", labelService: "app", labelOneOff: "True"}
	})
	c := r.wish(digests, "vpn")
	refused(t, h.Plan(t.Context(), &c, goesAlong), updater.Unsupported, r.name("job"))
	require.NoError(t, r.cli.ContainerStop(t.Context(), r.name("job"), container.StopOptions{}))
	c = r.wish(digests, "vpn")
	if err := h.Plan(t.Context(), &c, goesAlong); isPodmanRun() {
		refused(t, err, updater.Unsupported, r.name("job"))
	} else {
		require.NoError(t, err)
	}
	r.remove(t, r.name("job"))

	c = r.wish(digests, "vpn")
	require.NoError(t, h.Plan(t.Context(), &c, goesAlong))
	r.run(t, "late", r.repo+":app", in)
	before, ids := r.looks(t, []string{"vpn", "app", "late"})
	refused(t, h.Prepare(t.Context(), c, quiet), updater.InProgress, r.name("late"))
	c.Phase = updater.Restoring
	_, err := h.Restore(t.Context(), c)
	require.NoError(t, err)
	after, now := r.looks(t, []string{"vpn", "app", "late"})
	require.Equal(t, before, after)
	require.Equal(t, ids, now)
	r.remove(t, r.name("late"))

	require.NoError(t, r.cli.ContainerStop(t.Context(), r.name("vpn"), container.StopOptions{}))
	c = r.wish(digests, "app")
	refused(t, h.Plan(t.Context(), &c, goesAlong), updater.NotRunning, r.name("vpn")+", which does not run")
	require.True(t, r.inspect(t, "app").State.Running)
}

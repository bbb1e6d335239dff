package docker

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/docker/docker/api/types/container"
	imagetypes "github.com/docker/docker/api/types/image"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// family are containers that use vpn, each in its way, and one of them through
// another; in start order.
var family = []string{"vpn", "app", "data", "link", "side"}

// newFamily runs them, each on an image of its own name, and returns the digest
// of a newer image for each.
func newFamily(t *testing.T) (*rig, map[string]string) {
	t.Helper()
	r := newRig(t)
	digests := map[string]string{}
	for _, n := range family {
		r.image(t, n, func(c *v1.Config) { c.Cmd, c.Labels = []string{"serve"}, map[string]string{"of": n} })
		r.pull(t, n)
		digests[n] = r.image(t, n, func(c *v1.Config) {
			c.Cmd, c.Labels = []string{"serve"}, map[string]string{"of": n, "newer": "yes"}
		})
	}
	r.member(t, "vpn", func(c *container.Config, h *container.HostConfig) {
		h.NetworkMode = "bridge"
		c.Volumes = map[string]struct{}{"/secret": {}}
	})
	r.member(t, "app", func(_ *container.Config, h *container.HostConfig) {
		h.NetworkMode, h.IpcMode = container.NetworkMode("container:"+r.name("vpn")), "shareable"
	})
	r.member(t, "data", func(_ *container.Config, h *container.HostConfig) { h.VolumesFrom = []string{r.name("vpn") + ":ro"} })
	r.member(t, "link", func(_ *container.Config, h *container.HostConfig) {
		h.NetworkMode, h.Links = "bridge", []string{r.name("vpn") + ":tunnel"}
	})
	r.member(t, "side", func(_ *container.Config, h *container.HostConfig) {
		h.PidMode, h.IpcMode = container.PidMode("container:"+r.name("app")), container.IpcMode("container:"+r.name("app"))
	})
	return r, digests
}

// member runs a container on the image of its name.
func (r *rig) member(t *testing.T, name string, edit func(*container.Config, *container.HostConfig)) string {
	t.Helper()
	return r.run(t, name, r.repo+":"+name, func(c *container.Config, h *container.HostConfig) {
		h.RestartPolicy.Name = container.RestartPolicyUnlessStopped
		if edit != nil {
			edit(c, h)
		}
	})
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
	r, digests := newFamily(t)
	secret := r.inspect(t, "vpn").Mounts[0].Name
	before, ids := r.looks(t, family)

	c := r.carry(t, r.wish(digests, "vpn"), false)
	require.Equal(t, updater.Restored, c.Phase)
	for i, p := range c.Parts {
		require.Equal(t, "local/"+r.name(family[i]), p.Workload, "in start order")
		require.Equal(t, i == 0, p.Changes())
	}
	after, now := r.looks(t, family)
	require.Equal(t, ids, now, "the originals")
	require.Equal(t, before, after)
	r.allLive(t, family)

	for round := range 2 {
		wish := r.wish(digests, "vpn")
		if round == 1 {
			wish = r.wish(digests, "app", "link")
			r.image(t, "vpn", func(c *v1.Config) { c.Cmd = []string{"serve"} }) // nobody asks for it
		}
		require.Equal(t, updater.Committed, r.carry(t, wish, true).Phase)
		after, _ = r.looks(t, family)
		for i, n := range family {
			if newer := r.inspect(t, n).Config.Labels["newer"] == "yes"; newer {
				require.NotEqual(t, before[i], after[i])
			} else {
				require.Equal(t, before[i], after[i], n)
			}
		}
		r.allLive(t, family)
	}
	for _, n := range family {
		newer := n == "vpn" || n == "app" || n == "link"
		require.Equal(t, newer, r.inspect(t, n).Config.Labels["newer"] == "yes", n)
	}
	require.Equal(t, secret, r.inspect(t, "vpn").Mounts[0].Name, "the volume is kept")
	data := r.inspect(t, "data")
	require.Equal(t, secret, data.Mounts[0].Name, "and passed on")
	require.False(t, data.Mounts[0].RW)
	require.Equal(t, []string{"/" + r.name("vpn") + ":/" + r.name("link") + "/tunnel"}, r.inspect(t, "link").HostConfig.Links)

	// It no longer moves along, so the name that a person wrote is free again.
	require.Equal(t, updater.Committed, r.carry(t, r.wish(digests, "data"), true).Phase)
	data = r.inspect(t, "data")
	require.Equal(t, []string{r.name("vpn") + ":ro"}, data.HostConfig.VolumesFrom)
	require.Equal(t, secret, data.Mounts[0].Name)
	require.Empty(t, data.Config.Labels[labelVolumesFrom])
	r.allLive(t, family)
}

func TestGroupWhoseOriginalsWerePrunedComesBackAsCopies(t *testing.T) {
	t.Parallel()
	r, digests := newFamily(t)
	before, ids := r.looks(t, family)
	secret := r.inspect(t, "vpn").Mounts[0].Name
	h := r.backend(t)
	c := r.wish(digests, "vpn")
	require.NoError(t, h.Plan(t.Context(), &c, goesAlong))
	require.NoError(t, h.Prepare(t.Context(), c, quiet))
	c.Phase, c.Disturbed = updater.Applying, true
	applied, err := h.Apply(t.Context(), c)
	require.NoError(t, err)
	c.Mark = applied.Mark
	r.remove(t, r.name("vpn")+suffixOld) // it alone: the others cannot live without it
	restoration, err := r.restore(t, h, c)
	require.NoError(t, err)
	require.True(t, restoration.Copy)
	// But for its volume, which had no name.
	after, now := r.looks(t, family)
	require.Equal(t, before[1:], after[1:])
	for i, n := range family { // volumes can be had without the container that they came from
		require.Equal(t, n == "data", ids[i] == now[i], n)
	}
	require.Equal(t, secret, r.inspect(t, "data").Mounts[0].Name)
	r.allLive(t, family)
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
	r, digests := newFamily(t)
	require.NoError(t, r.cli.ContainerStop(t.Context(), r.name("side"), container.StopOptions{}))
	require.NoError(t, r.cli.ContainerStop(t.Context(), r.name("link"), container.StopOptions{}))
	for _, good := range []bool{false, true} {
		c := r.carry(t, r.wish(digests, "vpn"), good)
		for _, n := range []string{"side", "link"} {
			require.False(t, r.inspect(t, n).State.Running, n)
			require.True(t, c.Parts[4].Idle)
		}
		r.allLive(t, []string{"vpn", "app", "data"})
	}
	for _, n := range []string{"link", "side"} {
		require.NoError(t, r.cli.ContainerStart(t.Context(), r.name(n), container.StartOptions{}))
	}
	r.allLive(t, family)
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

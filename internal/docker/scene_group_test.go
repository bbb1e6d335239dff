package docker

import (
	"slices"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// trio is a group of three under one restart policy.
type trio struct {
	uses   [3]int // in whose namespace each lives; -1: in its own
	idle   [3]bool
	dies   int // whose new image exits as soon as it is started; -1: nobody's
	policy container.RestartPolicyMode
}

// crew is an engine with the containers of a trio's change.
type crew struct {
	old, new half
	pruned   [3]bool // somebody removed the original; its image was kept
	copied   [3]bool // the original is a copy
	stranger [3]bool // somebody's container has the name
	// bare: the images kept for copies were removed as well.
	bare bool
}

// half are the originals, or the new ones.
type half struct {
	side [3]side
	// cut: it lives in the namespace of an earlier life of what it uses.
	cut [3]bool
}

func (g trio) start() crew {
	var c crew
	for i := range 3 {
		c.old.side[i] = side{place: asName, running: !g.idle[i], started: true, policy: g.policy}
		c.new.side[i] = side{place: asNew, policy: g.policy}
	}
	return c
}

func (g trio) scenes(c crew) []scene {
	all := make([]scene, 3)
	for i := range all {
		s := scene{
			old: c.old.side[i], new: c.new.side[i], copyable: c.pruned[i] && !c.bare, idle: g.idle[i], other: c.stranger[i],
			wanted: container.RestartPolicy{Name: g.policy},
		}
		if u := g.uses[i]; u >= 0 {
			s.stranded = all[u].stranded || all[u].other && !all[u].old.running
			s.orphaned = !s.stranded && s.old.there() && !c.copied[i] && (!c.old.side[u].there() || c.copied[u])
			s.copyable = s.copyable || s.orphaned && !c.bare
		}
		all[i] = s
	}
	stay(all)
	return all
}

// start starts one container; false: the engine refuses, since what it uses does
// not run.
func (h *half) start(g trio, i int, dies bool) bool {
	if u := g.uses[i]; u >= 0 && !h.side[u].running {
		return false
	}
	if s := &h.side[i]; !s.running {
		s.started, s.running = true, !dies || risesAlone(s.policy)
		h.cut[i] = false
		for d, u := range g.uses {
			if u == i && h.side[d].running {
				h.cut[d] = true
			}
		}
	}
	return true
}

// call is one call to the engine; false when that refuses it.
type call func(*crew) bool

// calls are those of a step with one container.
func (g trio) calls(i int, st step) []call {
	always := func(f func(*crew)) []call {
		return []call{func(c *crew) bool { f(c); return true }}
	}
	switch st {
	case swap:
		return g.swap()
	case stopOld:
		return always(func(c *crew) { c.old.side[i].running = false })
	case renameOld:
		return always(func(c *crew) { c.old.side[i].place = asOld })
	case renameNew:
		return always(func(c *crew) { c.new.side[i].place = asName })
	case hideNew:
		return always(func(c *crew) { c.new.side[i].place = asNew })
	case stopNew:
		return always(func(c *crew) { c.new.side[i].running = false })
	case startNew:
		return []call{
			func(c *crew) bool { return c.new.start(g, i, g.dies == i) },
			func(c *crew) bool { c.new.side[i].place = asName; return true },
		}
	case showOld:
		return always(func(c *crew) { c.old.side[i].place = asName })
	case dropOld:
		return always(func(c *crew) { c.old.side[i], c.pruned[i] = side{place: gone}, true })
	case copyOld:
		return []call{func(c *crew) bool {
			// What it uses must be there to be named.
			if u := g.uses[i]; u >= 0 && !c.old.side[u].there() {
				return false
			}
			c.old.side[i] = side{place: asName, policy: g.policy}
			c.pruned[i], c.copied[i] = false, true
			return true
		}}
	case restorePolicy:
		return always(func(c *crew) { c.old.side[i].policy = g.policy })
	case startOld:
		return []call{func(c *crew) bool { return c.old.start(g, i, false) }}
	case removeNew:
		return always(func(c *crew) { c.new.side[i] = side{place: gone} })
	}
	return nil
}

// swap is the one step that is taken with all at once.
func (g trio) swap() []call {
	var all []call
	add := func(f func(*crew) bool) { all = append(all, f) }
	for i := range 3 {
		add(func(c *crew) bool {
			if s := &c.old.side[i]; !g.idle[i] && risesAlone(s.policy) {
				s.policy = container.RestartPolicyDisabled
			}
			return true
		})
	}
	for i := range 3 {
		add(func(c *crew) bool { c.old.side[2-i].running = false; return true })
	}
	for i := range 3 {
		add(func(c *crew) bool { return g.idle[i] || c.new.start(g, i, g.dies == i) })
	}
	for i := range 3 {
		add(func(c *crew) bool {
			if s := &c.old.side[i]; s.place == asName {
				s.place = asOld
			}
			return true
		})
	}
	for i := range 3 {
		add(func(c *crew) bool { c.new.side[i].place = asName; return true })
	}
	return all
}

// restart is what an engine does that is killed and started again, but for what
// it refuses to start.
func (g trio) restart(c *crew) {
	for _, h := range []*half{&c.old, &c.new} {
		ran := h.side
		for i := range h.side {
			h.side[i].running = false
		}
		for i, s := range ran {
			if s.there() && s.started && (risesAlone(s.policy) || s.policy == container.RestartPolicyUnlessStopped && s.running) {
				h.start(g, i, h == &c.new && g.dies == i)
			}
		}
	}
}

// prune takes away all that does not run.
func (g trio) prune(c *crew) {
	for i := range 3 {
		g.removeOld(c, i)
		if !c.new.side[i].running {
			c.new.side[i] = side{place: gone}
		}
	}
}

// removeOld takes away an original that does not run.
func (g trio) removeOld(c *crew, i int) {
	if s := &c.old.side[i]; s.there() && !s.running {
		*s, c.pruned[i], c.copied[i] = side{place: gone}, true, false
	}
}

func forEachTrio(t *testing.T, f func(*testing.T, trio)) {
	inFirst, inChain, lastIdle := [3]int{-1, 0, 0}, [3]int{-1, 0, 1}, [3]bool{2: true}
	const no, always = container.RestartPolicyDisabled, container.RestartPolicyAlways
	for name, g := range map[string]trio{
		"all well":                              {inChain, [3]bool{}, -1, no},
		"all well, and risen by an engine":      {inFirst, [3]bool{}, -1, always},
		"all well, started again by an engine":  {inChain, [3]bool{}, -1, container.RestartPolicyUnlessStopped},
		"the first dies":                        {inFirst, [3]bool{}, 0, no},
		"the first dies, and is restarted":      {inChain, [3]bool{}, 0, always},
		"one in the middle dies":                {inChain, [3]bool{}, 1, no},
		"one beside another dies":               {inFirst, [3]bool{}, 1, no},
		"the last dies":                         {inChain, [3]bool{}, 2, no},
		"one did not run":                       {inFirst, lastIdle, -1, no},
		"one did not run, and the first dies":   {inChain, lastIdle, 0, no},
		"one did not run, until an engine came": {inChain, lastIdle, -1, always},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, g)
		})
	}
}

// reachable are all the states that crashes, engine restarts and prunes can
// leave behind, however often they strike, in a swap or in going back.
func (g trio) reachable(t *testing.T) []crew {
	seen := map[crew]bool{g.start(): true}
	queue := []crew{g.start()}
	add := func(c crew) {
		if !seen[c] {
			seen[c] = true
			queue = append(queue, c)
		}
	}
	for i := 0; i < len(queue); i++ {
		require.Less(t, i, 1_000_000)
		for _, next := range []func([]scene) (int, step){forwardAll, backwardAll} {
			c := queue[i]
			part, st := next(g.scenes(c))
			for _, call := range g.calls(part, st) {
				if !call(&c) {
					break
				}
				add(c)
			}
		}
		c := queue[i]
		g.restart(&c)
		add(c)
		c = queue[i]
		g.prune(&c)
		add(c)
		for part := range 3 {
			if g.policy == container.RestartPolicyAlways {
				break // there are enough states
			}
			c = queue[i]
			g.removeOld(&c, part)
			add(c)
			c = queue[i] // a person removes it by force
			c.new.side[part] = side{place: gone}
			add(c)
		}
	}
	return queue
}

// walk takes steps until next says that it is over, or the engine refuses a call.
func (g trio) walk(t *testing.T, c *crew, next func([]scene) (int, step)) (end step, refused bool) {
	for range 3 * mostSteps {
		i, st := next(g.scenes(*c))
		todo := g.calls(i, st)
		if todo == nil {
			return st, false
		}
		for _, call := range todo {
			if !call(c) {
				return st, true
			}
			for i := range 3 {
				require.True(t, c.old.side[i].there() || c.new.side[i].there() || c.pruned[i], "a container was lost at %q", st)
			}
		}
	}
	require.Fail(t, "no end is reached", "%+v", *c)
	return "", false
}

// sound requires that one half serves as it should.
func (g trio) sound(t *testing.T, h half, from crew) {
	for i, s := range h.side {
		require.Equal(t, asName, s.place, "%d from %+v", i, from)
		if !g.idle[i] {
			require.True(t, s.running, "%d does not run, from %+v", i, from)
		}
		require.Equal(t, g.policy, s.policy, "%d from %+v", i, from)
		require.False(t, h.cut[i], "%d lives in what has ended, from %+v", i, from)
	}
}

func TestGoingBackWithAGroupEndsWellFromWhateverCrashesLeave(t *testing.T) {
	forEachTrio(t, func(t *testing.T, g trio) {
		states := g.reachable(t)
		require.Greater(t, len(states), 300)
		for _, from := range states {
			end := from
			st, refused := g.walk(t, &end, backwardAll)
			require.False(t, refused, "the engine refuses to %s, from %+v", st, from)
			require.Equal(t, done, st, "from %+v", from)
			g.sound(t, end.old, from)
			for i := range 3 {
				require.Equal(t, side{place: gone}, end.new.side[i], "from %+v", from)
				if g.idle[i] && !from.old.side[i].running { // else an engine started it
					require.False(t, end.old.side[i].running, "%d was started, from %+v", i, from)
				}
			}
		}
	})
}

// What a stranger has put behind itself cannot be started, nor can what lives in
// that.
func TestAStrangerInAGroupIsLeftAloneAndTheOthersComeBack(t *testing.T) {
	g := trio{uses: [3]int{-1, 0, 1}, dies: -1, policy: container.RestartPolicyDisabled}
	for _, from := range g.reachable(t) {
		for i := range 3 {
			end := from
			end.stranger[i] = true
			if end.old.side[i].place == asName { // a person took it away first
				end.old.side[i], end.pruned[i] = side{place: gone}, true
			}
			if end.new.side[i].place == asName {
				end.new.side[i] = side{place: gone}
			}
			st, refused := g.walk(t, &end, backwardAll)
			require.False(t, refused, "the engine refuses to %s, from %+v", st, from)
			require.Equal(t, done, st, "from %+v", from)
			for j, s := range g.scenes(end) {
				switch {
				case i == j:
					require.Equal(t, superseded, backward(s))
					require.False(t, s.new.there(), "from %+v", from)
				case j > i && !s.old.running:
					require.Equal(t, superseded, backward(s), "%d from %+v", j, from)
					require.True(t, s.old.place == asName || !s.old.there(), "%d from %+v", j, from)
				default:
					require.Equal(t, done, backward(s), "%d from %+v", j, from)
					require.True(t, s.old.running && s.old.place == asName, "%d from %+v", j, from)
				}
			}
		}
	}
}

// Where one cannot go back, all end on the new side, since the others would live
// in what has gone.
func TestWithoutAWayBackAGroupStays(t *testing.T) {
	forEachTrio(t, func(t *testing.T, g trio) {
		for _, from := range g.reachable(t) {
			end, lost, hopeless := from, false, false
			end.bare = true
			for i := range 3 {
				lost = lost || !g.idle[i] && !from.old.side[i].there()
				n := from.new.side[i]
				hopeless = hopeless || !n.there() || from.copied[i] || // nobody can bring back what has gone on both sides
					n.place == asName && !n.running && !g.idle[i] // or live in what has ended
			}
			if !lost || hopeless || g.dies >= 0 {
				continue
			}
			st, refused := g.walk(t, &end, backwardAll)
			require.False(t, refused, "the engine refuses to %s, from %+v", st, from)
			for i, s := range g.scenes(end) {
				require.Equal(t, kept, backward(s), "%d from %+v", i, from)
				require.False(t, s.old.running, "both run, %d from %+v", i, from)
				require.False(t, end.new.cut[i], "%d lives in what has ended, from %+v", i, from)
				if from.new.side[i].place == asNew && !g.idle[i] {
					require.True(t, s.new.running, "%d from %+v", i, from)
				}
			}
		}
	})
}

func TestGoingOnWithAGroupEndsInServiceOrWithTheWayBackOpen(t *testing.T) {
	forEachTrio(t, func(t *testing.T, g trio) {
		for _, from := range g.reachable(t) {
			end := from
			st, refused := g.walk(t, &end, forwardAll)
			switch {
			case refused: // that is an error, so the driver goes back
				require.Equal(t, swap, st, "from %+v", from)
			case st == done:
				for i := range 3 {
					require.Equal(t, asName, end.new.side[i].place, "from %+v", from)
					require.False(t, end.old.side[i].running, "both run, from %+v", from)
					require.NotEqual(t, asName, end.old.side[i].place, "from %+v", from)
					require.False(t, end.new.cut[i], "%d lives in what has ended, from %+v", i, from)
				}
			default:
				require.Contains(t, []step{undone, unprepared, superseded}, st, "from %+v", from)
			}
		}
	})
}

// lost reports whether one that is to be started lives in what exits.
func (g trio) lost() bool {
	return g.dies >= 0 && !risesAlone(g.policy) && slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool {
		return g.uses[i] == g.dies && !g.idle[i]
	})
}

func TestASwapOfAGroupThatNothingDisturbsIsDone(t *testing.T) {
	forEachTrio(t, func(t *testing.T, g trio) {
		c := g.start()
		st, refused := g.walk(t, &c, forwardAll)
		if g.lost() {
			require.True(t, refused, "nothing can live in what has ended")
			return
		}
		require.False(t, refused)
		require.Equal(t, done, st)
		if g.dies < 0 {
			g.sound(t, c.new, g.start())
		}
	})
}

func TestWhoCannotBeStartedAnyMore(t *testing.T) {
	one := func(name string, h container.HostConfig) (piece, boxes) {
		b := &box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
			ID: "id-" + name, Name: "/" + name, HostConfig: &h, State: &container.State{},
		}}}
		return piece{Part: updater.Part{Replace: true}, origin: origin{ID: "id-" + name, Name: name}}, boxes{old: b}
	}
	for name, row := range map[string]struct {
		change             func(vpn, app *boxes)
		orphaned, stranded []bool // of vpn, app, side and data
	}{
		"all are there":         {func(*boxes, *boxes) {}, []bool{false, false, false, false}, []bool{false, false, false, false}},
		"the first has gone":    {func(vpn, _ *boxes) { vpn.old = nil }, []bool{false, true, false, false}, []bool{false, false, false, false}},
		"the first is a copy":   {func(vpn, _ *boxes) { vpn.copied = true }, []bool{false, true, false, false}, []bool{false, false, false, false}},
		"copies use copies":     {func(vpn, app *boxes) { vpn.copied, app.copied = true, true }, []bool{false, false, true, false}, []bool{false, false, false, false}},
		"a stranger before it":  {func(vpn, _ *boxes) { vpn.other = vpn.old }, []bool{false, false, false, false}, []bool{false, true, true, false}},
		"a stranger, it gone":   {func(vpn, _ *boxes) { vpn.other, vpn.old = vpn.old, nil }, []bool{false, false, false, false}, []bool{false, true, true, false}},
		"a stranger, it runs":   {func(vpn, _ *boxes) { vpn.other, vpn.old.State.Running = vpn.old, true }, []bool{false, false, false, false}, []bool{false, false, false, false}},
		"a stranger in between": {func(_, app *boxes) { app.other = app.old }, []bool{false, false, false, false}, []bool{false, false, true, false}},
	} {
		t.Run(name, func(t *testing.T) {
			vpn, vpnBoxes := one("vpn", container.HostConfig{})
			app, appBoxes := one("app", container.HostConfig{NetworkMode: "container:id-vpn"})
			side, sideBoxes := one("side", container.HostConfig{PidMode: "container:id-app"})
			data, dataBoxes := one("data", container.HostConfig{VolumesFrom: []string{"vpn"}})
			row.change(&vpnBoxes, &appBoxes)
			orphaned, stranded := lostOnes([]piece{vpn, app, side, data}, []boxes{vpnBoxes, appBoxes, sideBoxes, dataBoxes})
			require.Equal(t, row.orphaned, orphaned)
			require.Equal(t, row.stranded, stranded)
		})
	}
}

func TestWhatDidNotRunIsNotStartedWhereThereIsNoWayBack(t *testing.T) {
	s := scene{idle: true, old: side{place: gone}, new: side{place: asNew}}
	require.Equal(t, renameNew, backward(s))
	s.new.place = asName
	require.Equal(t, kept, backward(s))
}

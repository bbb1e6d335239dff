package docker

import (
	"fmt"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
)

// model is an engine with the two containers of one change, as far as a scene
// shows them.
type model struct {
	old, new side
	wanted   container.RestartPolicyMode
	// dies: the new image exits as soon as it is started.
	dies bool
	// pruned: somebody removed the original, or the engine; its image was kept.
	pruned bool
	// What the change is: of one that did not run, of one that the engine removes
	// when it ends, or of one that goes on beside the new one.
	idle, fleeting, overlap bool
}

func (m model) scene() scene {
	return scene{
		old: m.old, new: m.new, copyable: m.pruned, idle: m.idle, fleeting: m.fleeting, overlap: m.overlap,
		wanted: container.RestartPolicy{Name: m.wanted},
	}
}

func (m *model) startNew() {
	m.new.started, m.new.running = true, !m.dies || risesAlone(m.new.policy)
}

// calls are the engine calls of a step, each of which may be the last before a
// crash.
func (m model) calls(st step) []func(*model) {
	stopOldCall := func(m *model) { m.old.running = false }
	renameOldCall := func(m *model) { m.old.place = asOld }
	renameNewCall := func(m *model) { m.new.place = asName }
	vanish := func(m *model) { m.old, m.pruned = side{place: gone}, true }
	switch st {
	case swap:
		switch {
		case m.idle:
			return []func(*model){renameOldCall, renameNewCall}
		case m.fleeting:
			return []func(*model){
				stopOldCall, (*model).startNew, vanish,
				func(m *model) {
					if m.new.there() { // or it has ended already
						renameNewCall(m)
					}
				},
			}
		case m.overlap:
			return []func(*model){(*model).startNew}
		}
		return []func(*model){
			func(m *model) {
				if risesAlone(m.old.policy) {
					m.old.policy = container.RestartPolicyDisabled
				}
			},
			stopOldCall, (*model).startNew, renameOldCall, renameNewCall,
		}
	case stopOld:
		return []func(*model){stopOldCall}
	case awaitOld:
		return []func(*model){vanish}
	case renameOld:
		return []func(*model){renameOldCall}
	case renameNew:
		return []func(*model){renameNewCall}
	case hideNew:
		return []func(*model){func(m *model) { m.new.place = asNew }}
	case stopNew:
		return []func(*model){func(m *model) { m.new.running = false }}
	case startNew:
		return []func(*model){(*model).startNew, renameNewCall}
	case showOld:
		return []func(*model){func(m *model) { m.old.place = asName }}
	case copyOld:
		return []func(*model){func(m *model) { m.old, m.pruned = side{place: asName, started: false, policy: m.wanted}, false }}
	case restorePolicy:
		return []func(*model){func(m *model) { m.old.policy = m.wanted }}
	case startOld:
		return []func(*model){func(m *model) { m.old.running, m.old.started = true, true }}
	case removeNew:
		return []func(*model){func(m *model) { m.new = side{place: gone} }}
	}
	return nil
}

// restart is what an engine does that is killed and started again: all stop, and
// those rise again whose policy says so. A container that was stopped counts
// as failed for on-failure, since a signal ended it.
func (m *model) restart() {
	if m.fleeting {
		m.old, m.new, m.pruned = side{place: gone}, side{place: gone}, true
		return
	}
	for _, s := range []*side{&m.old, &m.new} {
		ran := s.running
		s.running = s.there() && s.started &&
			(risesAlone(s.policy) || s.policy == container.RestartPolicyUnlessStopped && ran)
		if s == &m.new && m.dies && !risesAlone(s.policy) {
			s.running = false
		}
	}
}

func forEachStart(t *testing.T, f func(*testing.T, model)) {
	for _, policy := range []container.RestartPolicyMode{
		container.RestartPolicyDisabled, container.RestartPolicyAlways,
		container.RestartPolicyUnlessStopped, container.RestartPolicyOnFailure,
	} {
		for _, dies := range []bool{false, true} {
			t.Run(fmt.Sprintf("policy %s, new image dies %v", policy, dies), func(t *testing.T) {
				f(t, model{
					old:    side{place: asName, running: true, started: true, policy: policy},
					new:    side{place: asNew, policy: policy},
					wanted: policy, dies: dies,
				})
			})
		}
	}
}

// reachable are all the states that crashes, engine restarts and a prune can
// leave behind, however often they strike, in a swap or in going back.
func reachable(t *testing.T, start model) []model {
	seen := map[model]bool{start: true}
	queue := []model{start}
	add := func(m model) {
		if !seen[m] {
			seen[m] = true
			queue = append(queue, m)
		}
	}
	for i := 0; i < len(queue); i++ {
		require.Less(t, i, 10000)
		for _, next := range []step{forward(queue[i].scene()), backward(queue[i].scene())} {
			m := queue[i]
			for _, call := range m.calls(next) {
				call(&m)
				add(m)
			}
		}
		m := queue[i]
		m.restart()
		add(m)
		if m = queue[i]; m.fleeting && m.new.started && !m.new.running {
			m.new = side{place: gone}
			add(m)
		}
		if m = queue[i]; m.overlap && m.new.running && m.old.place == asName {
			// The commit had begun, and the record of it was lost.
			m.old.place = asOld
			add(m)
		}
		if m = queue[i]; m.old.there() && !m.old.running {
			m.old, m.pruned = side{place: gone}, true
			add(m)
		}
	}
	return queue
}

// walk takes steps until next says that it is over.
func walk(t *testing.T, m *model, next func(scene) step) step {
	for range mostSteps {
		st := next(m.scene())
		todo := m.calls(st)
		if todo == nil {
			return st
		}
		for _, call := range todo {
			call(m)
		}
		require.True(t, m.old.there() || m.new.there() || m.pruned, "a container was lost at %q", st)
	}
	t.Fatalf("no end is reached: %+v", *m)
	return ""
}

func TestGoingBackEndsWellFromWhateverCrashesLeave(t *testing.T) {
	forEachStart(t, func(t *testing.T, start model) {
		states := reachable(t, start)
		require.Greater(t, len(states), 10)
		for _, m := range states {
			if !m.old.there() && !m.pruned {
				continue
			}
			end := m
			require.Equal(t, done, walk(t, &end, backward), "from %+v", m)
			require.Equal(t, side{place: gone}, end.new, "from %+v", m)
			require.Equal(t, asName, end.old.place, "from %+v", m)
			require.True(t, end.old.running, "from %+v", m)
			require.Equal(t, start.wanted, end.old.policy, "from %+v", m)
		}
	})
}

func TestGoingOnEndsInServiceOrWithTheWayBackOpen(t *testing.T) {
	forEachStart(t, func(t *testing.T, start model) {
		for _, m := range reachable(t, start) {
			end := m
			switch walk(t, &end, forward) {
			case done:
				require.Equal(t, asName, end.new.place, "from %+v", m)
				require.False(t, end.old.running, "both run, from %+v", m)
				require.NotEqual(t, asName, end.old.place, "from %+v", m)
			case undone, unprepared, superseded:
			default:
				t.Fatalf("from %+v", m)
			}
		}
	})
}

func TestASwapThatNothingDisturbsIsDone(t *testing.T) {
	forEachStart(t, func(t *testing.T, m model) {
		require.Equal(t, done, walk(t, &m, forward))
		require.True(t, m.dies || m.new.running)
		require.Equal(t, asOld, m.old.place)
	})
}

// forEachSpecial are the starts of the changes that are not like the others.
func forEachSpecial(t *testing.T, f func(*testing.T, model)) {
	for _, policy := range []container.RestartPolicyMode{container.RestartPolicyDisabled, container.RestartPolicyAlways, container.RestartPolicyUnlessStopped} {
		with := func(edit func(*model)) model {
			m := model{
				old:    side{place: asName, running: true, started: true, policy: policy},
				new:    side{place: asNew, policy: policy},
				wanted: policy,
			}
			edit(&m)
			return m
		}
		for name, m := range map[string]model{
			"created":                    with(func(m *model) { m.idle, m.old.running, m.old.started = true, false, false }),
			"exited":                     with(func(m *model) { m.idle, m.old.running = true, false }),
			"paused":                     with(func(m *model) { m.idle = true }),
			"with --rm":                  with(func(m *model) { m.fleeting = true }),
			"with --rm, the new one bad": with(func(m *model) { m.fleeting, m.dies = true, true }),
			"start-first":                with(func(m *model) { m.overlap = true }),
			"start-first, bad":           with(func(m *model) { m.overlap, m.dies = true, true }),
		} {
			if m.fleeting && policy != container.RestartPolicyDisabled {
				continue // no engine takes both
			}
			t.Run(fmt.Sprintf("%s, policy %s", name, policy), func(t *testing.T) { f(t, m) })
		}
	}
}

func TestGoingBackWithASpecialOne(t *testing.T) {
	forEachSpecial(t, func(t *testing.T, start model) {
		states := reachable(t, start)
		require.GreaterOrEqual(t, len(states), 3)
		for _, m := range states {
			if start.idle {
				require.False(t, m.new.started, "it was not to be started: %+v", m)
			}
			if !m.old.there() && !m.pruned {
				continue
			}
			end := m
			require.Equal(t, done, walk(t, &end, backward), "from %+v", m)
			require.Equal(t, side{place: gone}, end.new, "from %+v", m)
			require.Equal(t, asName, end.old.place, "from %+v", m)
			require.Equal(t, start.wanted, end.old.policy, "from %+v", m)
			switch {
			case !start.idle:
				require.True(t, end.old.running, "from %+v", m)
			case m.old.there():
				// Only an engine that is started again does anything to it.
				require.Equal(t, m.old.running, end.old.running, "from %+v", m)
				require.Equal(t, m.old.started, end.old.started, "from %+v", m)
			default:
				require.False(t, end.old.started, "the copy was started, from %+v", m)
			}
		}
	})
}

func TestGoingOnWithASpecialOne(t *testing.T) {
	forEachSpecial(t, func(t *testing.T, start model) {
		for _, m := range reachable(t, start) {
			end := m
			switch walk(t, &end, forward) {
			case done:
				switch {
				case start.overlap && end.old.there() && end.new.place == asNew:
					require.True(t, end.new.running, "from %+v", m)
					require.Equal(t, m.old, end.old, "the original was disturbed, from %+v", m)
				case start.idle:
					require.Equal(t, asName, end.new.place, "from %+v", m)
					require.False(t, end.new.started, "from %+v", m)
				default:
					require.Equal(t, asName, end.new.place, "from %+v", m)
					require.False(t, end.old.running, "both run, from %+v", m)
				}
			case undone, unprepared, superseded:
			default:
				t.Fatalf("from %+v", m)
			}
		}
		end := start
		st := walk(t, &end, forward)
		switch {
		case start.dies && start.wanted != container.RestartPolicyAlways:
			require.Contains(t, []step{undone, unprepared, done}, st)
		default:
			require.Equal(t, done, st, "nothing disturbed it")
		}
		if start.overlap {
			require.Equal(t, start.old, end.old)
		}
	})
}

func TestWhatSomebodyElseDecidedIsLeftAlone(t *testing.T) {
	service := side{place: asName, running: true, started: true, policy: container.RestartPolicyDisabled}
	aside := side{place: asOld, started: true}
	created := side{place: asNew}
	for name, row := range map[string]struct {
		scene       scene
		forth, back step
	}{
		"their container has the name, ours was only created":              {scene{new: created, other: true, old: side{place: gone}}, superseded, removeNew},
		"their container has the name, ours runs behind":                   {scene{new: side{place: asNew, running: true, started: true}, old: aside, other: true}, superseded, stopNew},
		"their container has the name, ours has gone":                      {scene{new: side{place: gone}, old: aside, other: true}, superseded, superseded},
		"the original was removed before it was stopped":                   {scene{new: created, old: side{place: gone}, wary: true, handsOff: true}, superseded, removeNew},
		"all have gone before anything was applied":                        {scene{new: side{place: gone}, old: side{place: gone}, wary: true}, superseded, superseded},
		"all were pruned after a crash":                                    {scene{new: side{place: gone}, old: side{place: gone}, copyable: true}, unprepared, copyOld},
		"the original was pruned after a crash had stopped it":             {scene{new: created, old: side{place: gone}, copyable: true}, undone, copyOld},
		"the original was stopped before anything was applied":             {scene{new: created, old: side{place: asName, started: true}, wary: true, handsOff: true}, superseded, removeNew},
		"the original was renamed and runs":                                {scene{new: created, old: side{place: elsewhere, running: true, started: true}}, superseded, removeNew},
		"the new one was removed while the original runs":                  {scene{new: side{place: gone}, old: service}, unprepared, done},
		"the new one serves, original and its record have gone":            {scene{new: service, old: side{place: gone}}, done, kept},
		"the new one is all there is, and stands behind":                   {scene{new: side{place: asNew, started: true}, old: side{place: gone}}, undone, startNew},
		"going back had begun: the new one was stopped behind":             {scene{new: side{place: asNew, started: true}, old: aside}, undone, showOld},
		"an idle one and its record have gone: the new one is not started": {scene{idle: true, new: side{place: asNew}, old: side{place: gone}}, renameNew, renameNew},
		"an idle one was removed before anything was applied":              {scene{idle: true, new: created, old: side{place: gone}, wary: true, handsOff: true}, superseded, removeNew},
		"one with --rm was stopped by somebody, and so has gone":           {scene{fleeting: true, new: created, old: side{place: gone}, wary: true, handsOff: true}, superseded, removeNew},
		"one with --rm was stopped by us before a crash":                   {scene{fleeting: true, new: created, old: side{place: gone}, copyable: true}, swap, copyOld},
		"the original was removed beside the new one, which serves":        {scene{overlap: true, new: side{place: asNew, running: true, started: true}, old: side{place: gone}}, renameNew, renameNew},
		"nothing was disturbed, and a person stopped the original since":   {scene{new: side{place: gone}, old: side{place: asName, started: true}, handsOff: true}, unprepared, done},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, row.back, backward(row.scene))
			if row.forth == undone && !row.scene.old.there() {
				return // what forward says then does not matter: nothing asks
			}
			require.Equal(t, row.forth, forward(row.scene))
		})
	}
}

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
	// pruned: somebody removed the original; its image was kept.
	pruned bool
}

func (m model) scene() scene {
	return scene{
		old: m.old, new: m.new, copyable: m.pruned,
		wanted: container.RestartPolicy{Name: m.wanted},
	}
}

func (m *model) startNew() {
	m.new.started, m.new.running = true, !m.dies || risesAlone(m.new.policy)
}

// calls are the engine calls of a step, each of which may be the last before a
// crash.
func calls(st step) []func(*model) {
	stopOldCall := func(m *model) { m.old.running = false }
	renameOldCall := func(m *model) { m.old.place = asOld }
	renameNewCall := func(m *model) { m.new.place = asName }
	switch st {
	case swap:
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
	case renameOld:
		return []func(*model){renameOldCall}
	case renameNew:
		return []func(*model){renameNewCall}
	case hideNew:
		return []func(*model){func(m *model) { m.new.place = asNew }}
	case stopNew:
		return []func(*model){func(m *model) { m.new.running = false }}
	case startNew:
		return []func(*model){(*model).startNew}
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
			for _, call := range calls(next) {
				call(&m)
				add(m)
			}
		}
		m := queue[i]
		m.restart()
		add(m)
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
		todo := calls(st)
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

func TestWhatSomebodyElseDecidedIsLeftAlone(t *testing.T) {
	service := side{place: asName, running: true, started: true, policy: container.RestartPolicyDisabled}
	aside := side{place: asOld, started: true}
	created := side{place: asNew}
	for name, row := range map[string]struct {
		scene       scene
		forth, back step
	}{
		"their container has the name, ours was only created":            {scene{new: created, other: true, old: side{place: gone}}, superseded, removeNew},
		"their container has the name, ours runs behind":                 {scene{new: side{place: asNew, running: true, started: true}, old: aside, other: true}, superseded, stopNew},
		"their container has the name, ours has gone":                    {scene{new: side{place: gone}, old: aside, other: true}, superseded, superseded},
		"the original was removed before it was stopped":                 {scene{new: created, old: side{place: gone}, wary: true, handsOff: true}, superseded, removeNew},
		"all have gone before anything was applied":                      {scene{new: side{place: gone}, old: side{place: gone}, wary: true}, superseded, superseded},
		"all were pruned after a crash":                                  {scene{new: side{place: gone}, old: side{place: gone}, copyable: true}, unprepared, copyOld},
		"the original was pruned after a crash had stopped it":           {scene{new: created, old: side{place: gone}, copyable: true}, undone, copyOld},
		"the original was stopped before anything was applied":           {scene{new: created, old: side{place: asName, started: true}, wary: true, handsOff: true}, superseded, removeNew},
		"the original was renamed and runs":                              {scene{new: created, old: side{place: elsewhere, running: true, started: true}}, superseded, removeNew},
		"the new one was removed while the original runs":                {scene{new: side{place: gone}, old: service}, unprepared, done},
		"the new one serves, original and its record have gone":          {scene{new: service, old: side{place: gone}}, done, kept},
		"the new one is all there is, and stands behind":                 {scene{new: side{place: asNew, started: true}, old: side{place: gone}}, undone, startNew},
		"going back had begun: the new one was stopped behind":           {scene{new: side{place: asNew, started: true}, old: aside}, undone, showOld},
		"nothing was disturbed, and a person stopped the original since": {scene{new: side{place: gone}, old: side{place: asName, started: true}, handsOff: true}, unprepared, done},
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

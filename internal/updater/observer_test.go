package updater_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// watcher remembers what it sees.
type watcher struct {
	mu     sync.Mutex
	said   []updater.Decision
	passes []updater.Passed
	phases []updater.Phase
}

func (w *watcher) Decided(_ updater.Workload, d updater.Decision) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, d)
}

func (w *watcher) decisions() []updater.Decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said)
}

func (w *watcher) Passed(p updater.Passed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.passes = append(w.passes, p)
}

func (w *watcher) Postponed(updater.Workload, updater.Decision) {}

func (w *watcher) Progressed(updater.Change, updater.Progress) {}

func (w *watcher) Moved(c updater.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phases = append(w.phases, c.Phase)
}

// observed is an updater in a world, and what it shows.
func (w *world) observed() (*updater.Updater, *watcher) {
	seen := &watcher{}
	rules := w.rules()
	rules.Observer = updater.Observers{seen}
	place := updater.Place{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: &backendtest.State{Disk: w.disk}}
	return updater.New([]updater.Place{place}, rules, discard()), seen
}

func TestWhatHappensIsObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		u, seen := w.observed()
		_, err := u.Check(context.Background(), nil)
		require.NoError(t, err)
		require.Empty(t, seen.said, "a check is nobody's pass")
		require.Empty(t, seen.passes)

		_, err = u.Once(context.Background(), nil)
		require.NoError(t, err)
		require.Equal(t, []updater.Phase{updater.Preparing, updater.Applying, updater.Judging, updater.Committing, updater.Committed}, seen.phases)
		require.Len(t, seen.said, 1)
		require.Equal(t, updater.Update, seen.said[0].Reason)
		require.Len(t, seen.passes, 1)
		p := seen.passes[0]
		require.NoError(t, p.Err)
		require.False(t, p.Part)
		require.Equal(t, "local", p.Backend)
		require.Equal(t, map[updater.Reason]int{updater.Update: 1}, p.Decided)
		require.Less(t, p.Took, time.Minute)
	})
}

func TestALookAtSomeIsObservedAsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		u, seen := w.observed()
		_, err := u.Once(context.Background(), []string{"web"})
		require.NoError(t, err)
		require.True(t, seen.passes[0].Part)
	})
}

package updater_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// led is a state that another process leads for good.
type led struct{ *backendtest.State }

func (led) Lead(context.Context, func(context.Context, updater.Journal) error) error {
	return updater.ErrLed
}

// TestFinishWaitsForNothingWhenTheChangeIsOver: a daemon that finds the lead free
// while a helper is started again goes on itself, and keeps the lead.
func TestFinishWaitsForNothingWhenTheChangeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		state := &backendtest.State{Disk: w.disk}
		c := updater.Change{ID: "c-1", Backend: "local", Unit: "local/web", Phase: updater.Judging, Since: time.Now(),
			Parts: []updater.Part{{Workload: "local/web", Replace: true}}}
		require.NoError(t, state.Save(t.Context(), c))
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: led{state}}}, w.rules(), discard())

		began, over := time.Now(), make(chan error, 1)
		go func() { over <- u.Finish(t.Context(), c.ID) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Empty(t, over, "the change is open")
		c.Phase, c.Ended = updater.Committed, time.Now()
		require.NoError(t, state.Save(t.Context(), c))
		require.NoError(t, <-over)
		require.Less(t, time.Since(began), time.Minute+time.Second)
	})
}

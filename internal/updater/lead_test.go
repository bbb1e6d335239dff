package updater_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// patient is a state that another process leads until a time, and that waits for it.
type patient struct {
	*backendtest.State
	until time.Time
}

func (p patient) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	select {
	case <-time.After(time.Until(p.until)):
		return p.State.Lead(ctx, do)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestAStandbyTakesOver(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		state := patient{&backendtest.State{Disk: w.disk}, time.Now().Add(time.Hour)}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: state}}, w.rules(), discard())
		stop := w.background(u)
		time.Sleep(time.Second)
		require.False(t, u.Glance().Ready, "it may yet get the lead")
		time.Sleep(59 * time.Minute)
		require.True(t, u.Glance().Ready, "a standby is ready")
		w.told()
		time.Sleep(2 * time.Minute)
		w.told(updater.EventUpdated)
		stop()
	})
}

func TestAStandbyCanBeStopped(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		state := patient{&backendtest.State{Disk: w.disk}, time.Now().Add(time.Hour)}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: state}}, w.rules(), discard())
		began := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, stop)
		require.NoError(t, u.Run(ctx))
		require.Equal(t, time.Minute, time.Since(began))
	})
}

// TestTheLeadIsAskedForAgain: a daemon that lost it stands by, and takes up what it
// left open.
func TestTheLeadIsAskedForAgain(t *testing.T) {
	inWorld(t, backendtest.Slow, func(t *testing.T, w *world) {
		state := &backendtest.State{Disk: w.disk}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: state}}, w.rules(), discard())
		stop := w.background(u)
		defer stop()
		time.Sleep(2 * time.Second) // the gate waits for it
		open, err := state.Open(t.Context())
		require.NoError(t, err)
		require.Len(t, open, 1)
		w.disk.Depose()
		time.Sleep(time.Hour)
		w.told(updater.EventUpdated)
		w.holds(newDigest, "after the lead was lost")
	})
}

// TestAPersonIsToldThatTheLeadWasLost, for --once makes one pass and no second.
func TestAPersonIsToldThatTheLeadWasLost(t *testing.T) {
	inWorld(t, backendtest.Slow, func(t *testing.T, w *world) {
		state := &backendtest.State{Disk: w.disk}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: state}}, w.rules(), discard())
		time.AfterFunc(2*time.Second, w.disk.Depose)
		_, err := u.Once(t.Context(), nil)
		require.ErrorIs(t, err, updater.ErrLost)
	})
}

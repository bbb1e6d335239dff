package updater_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/updater"
)

const (
	oldDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000001"
	newDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000002"
)

// world is a host, a disk and a registry that survive the processes that are
// run in them.
type world struct {
	t        *testing.T
	host     *backendtest.Host
	disk     *backendtest.Disk
	registry *backendtest.Registry
	notified *notifier
	settings updater.Settings
	// on, when set, is told of every step that a process makes in this world,
	// before it is made and after.
	on func(what string, done bool)
}

func newWorld(t *testing.T, b backendtest.Behaviour) *world {
	w := &world{t: t, host: backendtest.NewHost(), disk: &backendtest.Disk{}, registry: &backendtest.Registry{}, notified: &notifier{},
		settings: updater.Settings{
			Enabled: true, Mode: updater.ModeUpdate, Policy: policy.Spec{Policy: "digest"}, Pin: updater.PinRespect, Keep: 1,
			Health: updater.Health{Stable: 10 * time.Second},
		}}
	w.host.Image(oldDigest, backendtest.Good)
	w.host.Image(newDigest, b)
	w.host.Run("web", "web:1", oldDigest, "always")
	w.registry.Publish("web:1", newDigest)
	return w
}

// process is an updater in a world. It dies at its nth step (0: never): from
// then on its goroutines end wherever they would change something.
func (w *world) process(dieAt int) (*updater.Updater, *death) {
	d := &death{at: dieAt, on: w.on}
	backend := &backendtest.Process{Host: w.host, ID: "local", Step: d.step}
	state := &backendtest.State{Disk: w.disk, Step: d.step}
	return updater.New([]updater.Place{{Backend: backend, State: state}}, w.rules(), discard()), d
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func (w *world) rules() updater.Rules {
	return updater.Rules{
		Settings: func(updater.Workload) (updater.Settings, error) { return w.settings, nil },
		Schedule: cron.Every(time.Minute), Parallel: 4, Registry: w.registry, Notifier: w.notified,
	}
}

func (w *world) once() []updater.Row {
	u, _ := w.process(0)
	rows, err := u.Once(context.Background(), nil)
	require.NoError(w.t, err)
	return rows
}

// holds checks the promise: one container, under its name, running, as
// configured, on the image given.
func (w *world) holds(digest string, msg string) {
	w.t.Helper()
	all := w.host.Containers()
	require.Len(w.t, all, 1, "%s: left over: %v", msg, all)
	require.Equal(w.t, "web", all[0].Name, msg)
	require.True(w.t, all[0].Running, "%s: it does not run", msg)
	require.Equal(w.t, "always", all[0].Restart, msg)
	require.Equal(w.t, "config of web", all[0].Config, msg)
	require.Equal(w.t, digest, all[0].Digest, msg)
	open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
	require.NoError(w.t, err)
	require.Empty(w.t, open, "%s: changes left open", msg)
}

func (w *world) record(id string) updater.Record {
	w.t.Helper()
	all, err := (&backendtest.State{Disk: w.disk}).Recall(context.Background())
	require.NoError(w.t, err)
	return all[id]
}

// death ends a process at one of its steps, and at all that come after it.
type death struct {
	mu    sync.Mutex
	at    int
	steps int
	dead  bool
	what  string

	turn sync.Mutex // steps come side by side; what a test does at one comes alone
	on   func(what string, done bool)
}

func (d *death) step(what string, done bool) error {
	d.mu.Lock()
	d.steps++
	if d.at != 0 && d.steps >= d.at {
		if !d.dead {
			d.what = fmt.Sprintf("%s (done: %v)", what, done)
		}
		d.dead = true
	}
	dead := d.dead
	d.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
	if d.on != nil {
		d.turn.Lock()
		defer d.turn.Unlock()
		d.on(what, done)
	}
	return nil
}

type notifier struct {
	mu      sync.Mutex
	entries []updater.Entry
}

func (n *notifier) Notify(_ context.Context, e updater.Entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries = append(n.entries, e)
}

func (n *notifier) all() []updater.Entry {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.entries)
}

func (n *notifier) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries = nil
}

// TestCrashAtEveryStep kills updaterd before and after every write to the
// journal and every call to the engine, then kills the one that recovers, with
// the journal kept and with the journal lost. The second death comes at every
// step for one image of each kind (good, found bad while it is judged, never
// started, never pulled), and at some, other ones each time, for the rest.
func TestCrashAtEveryStep(t *testing.T) {
	for behaviour, every := range map[backendtest.Behaviour]int{
		backendtest.Good: 1, backendtest.Exits: 1, backendtest.PortTaken: 3, backendtest.CannotPull: 2,
		backendtest.Unhealthy: 5, backendtest.CannotStart: 5, backendtest.OOM: 5,
		backendtest.Crashes: 7, backendtest.TurnsSick: 7, backendtest.Hangs: 11, backendtest.Flaps: 11,
	} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, journal lost %v", behaviour, lost), func(t *testing.T) {
				t.Parallel()
				first, scenarios := 1, 0
				for more := true; more; first++ {
					more = false
					for second := 1 + first%every; ; second += every {
						died, again := crashTwice(t, behaviour, first, second, lost)
						scenarios++
						more = more || died
						if !died || !again {
							break
						}
					}
				}
				require.Greater(t, first, 8, "the crashes must have come somewhere")
				t.Logf("%d scenarios", scenarios)
			})
		}
	}
}

// crashTwice reports whether the first and the second process came to die.
func crashTwice(t *testing.T, b backendtest.Behaviour, first, second int, lost bool) (died, again bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, b)
		u, d := w.process(first)
		_, _ = u.Once(t.Context(), nil)
		died = d.dead
		if lost {
			w.disk.Lose()
		}
		u, d2 := w.process(second)
		_, _ = u.Once(t.Context(), nil)
		again = d2.dead
		if lost {
			w.disk.Lose()
		}
		w.once()
		w.once() // a pass that was refused anew may have to come first

		when := fmt.Sprintf("died at %d: %s, then at %d: %s", first, d.what, second, d2.what)
		want := oldDigest
		if b == backendtest.Good {
			want = newDigest
		}
		w.holds(want, when)
		if lost {
			return
		}
		m := w.record("local/web")
		switch b {
		case backendtest.Good:
			require.Equal(t, newDigest, m.Committed.Digest, when)
			require.Empty(t, m.Rejected, when)
			require.Nil(t, m.Retry, when)
		case backendtest.PortTaken, backendtest.CannotPull:
			require.Empty(t, m.Rejected, when)
			require.NotNil(t, m.Retry, when)
			require.Equal(t, newDigest, m.Retry.Digest, when)
			require.Equal(t, 1, m.Retry.Attempts, when)
		default:
			require.Len(t, m.Rejected, 1, when)
			require.Equal(t, newDigest, m.Rejected[0].Digest, when)
			require.Equal(t, updater.Rejected, m.Rejected[0].Reason, when)
		}
	})
	return died, again
}

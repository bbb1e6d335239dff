package updater_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// web is the row of the one workload there is, in a pass as `run --once` makes
// it.
func (w *world) web() updater.Row {
	w.t.Helper()
	rows := w.once()
	require.Len(w.t, rows, 1)
	return rows[0]
}

// daemon runs an updater until the returned function is called, which waits
// for its end.
func (w *world) daemon() (u *updater.Updater, stop func()) {
	u, _ = w.process(0)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	return u, func() {
		cancel()
		require.NoError(w.t, <-ended)
	}
}

func (w *world) history() (events []updater.Event) {
	w.t.Helper()
	all, err := (&backendtest.State{Disk: w.disk}).History(context.Background(), 0)
	require.NoError(w.t, err)
	for _, e := range slices.Backward(all) {
		events = append(events, e.Event)
	}
	return events
}

func (n *notifier) events() (events []updater.Event) {
	for _, e := range n.all() {
		events = append(events, e.Event)
	}
	return events
}

// told checks that history and the notifications say the same, once each. Only
// that going back does not succeed is told before it is history.
func (w *world) told(want ...updater.Event) {
	w.t.Helper()
	require.Equal(w.t, want, w.history(), "history")
	var ends []updater.Event
	for _, e := range w.notified.all() {
		if !e.Open {
			ends = append(ends, e.Event)
		}
	}
	require.Equal(w.t, want, ends, "notifications")
}

func (w *world) find(name string) (c backendtest.Container, ok bool) {
	for _, c := range w.host.Containers() {
		if c.Name == name {
			return c, true
		}
	}
	return c, false
}

// inWorld plays in a world whose time is its own.
func inWorld(t *testing.T, b backendtest.Behaviour, play func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { play(t, newWorld(t, b)) })
}

// TestOutcomes has a row for every way in which a change can end.
func TestOutcomes(t *testing.T) {
	hook := func(command string) updater.Hook {
		return updater.Hook{Command: []string{command}, Timeout: time.Minute}
	}
	tests := []struct {
		name    string
		image   backendtest.Behaviour
		world   func(w *world)
		outcome updater.Outcome
		detail  string
		digest  string
		events  []updater.Event
		next    updater.Reason // of the pass after
		ran     []string
	}{
		{name: "a good image is committed", image: backendtest.Good, outcome: updater.OutcomeCommitted, digest: newDigest, events: []updater.Event{updater.EventUpdated}, next: updater.UpToDate},
		{name: "a slow one too", image: backendtest.Slow, outcome: updater.OutcomeCommitted, digest: newDigest, events: []updater.Event{updater.EventUpdated}, next: updater.UpToDate},
		{name: "one that takes an hour to pull too", image: backendtest.SlowPull, outcome: updater.OutcomeCommitted, digest: newDigest, events: []updater.Event{updater.EventUpdated}, next: updater.UpToDate},
		{name: "one that exits is put back", image: backendtest.Exits, outcome: updater.OutcomeRestored, detail: "it exited with code 1", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one that exits after 3 s is put back", image: backendtest.Crashes, outcome: updater.OutcomeRestored, detail: "it exited with code 1", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one that is unhealthy is put back", image: backendtest.Unhealthy, outcome: updater.OutcomeRestored, detail: "its health check fails", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one that turns unhealthy is put back", image: backendtest.TurnsSick, outcome: updater.OutcomeRestored, detail: "its health check fails", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one that hangs is put back", image: backendtest.Hangs, outcome: updater.OutcomeRestored, detail: "its health check has not passed yet", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one that flaps is put back", image: backendtest.Flaps, outcome: updater.OutcomeRestored, detail: "did not stay healthy for 10s", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one killed for want of memory is put back", image: backendtest.OOM, outcome: updater.OutcomeRestored, detail: "OOM", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one that cannot start is put back", image: backendtest.CannotStart, outcome: updater.OutcomeRestored, detail: "no such file", events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "one whose port is taken is put back and tried again later", image: backendtest.PortTaken, outcome: updater.OutcomeRestored, detail: "port is already allocated", events: []updater.Event{updater.EventRestored}, next: updater.Surroundings},
		{name: "one that cannot be pulled is tried again later", image: backendtest.CannotPull, outcome: updater.OutcomeNone, detail: "cannot be pulled", events: []updater.Event{updater.EventRefused}, next: updater.Surroundings},
		{name: "one for another platform, as pulling shows, is refused", image: backendtest.Foreign, outcome: updater.OutcomeNone, detail: "not built for linux/amd64", events: []updater.Event{updater.EventRefused}, next: updater.Surroundings},
		{name: "one that is the same, as pulling shows, is nothing to tell", image: backendtest.Same, outcome: updater.OutcomeNone, detail: "is the same", next: updater.UpToDate},

		{name: "hooks run on their sides, in order", image: backendtest.Good,
			world:   func(w *world) { w.settings.PreUpdate, w.settings.PostUpdate = hook("backup"), hook("migrate") },
			outcome: updater.OutcomeCommitted, digest: newDigest, events: []updater.Event{updater.EventUpdated}, next: updater.UpToDate, ran: []string{"old: backup", "new: migrate"}},
		{name: "a failing pre-update cancels", image: backendtest.Good, world: func(w *world) { w.settings.PreUpdate = hook("false") },
			outcome: updater.OutcomeNone, detail: "pre-update failed with exit code 1: no", events: []updater.Event{updater.EventRefused}, next: updater.Surroundings, ran: []string{"old: false"}},
		{name: "a pre-update that hangs cancels", image: backendtest.Good, world: func(w *world) { w.settings.PreUpdate = hook("sleep") },
			outcome: updater.OutcomeNone, detail: "pre-update ran longer than 1m0s", events: []updater.Event{updater.EventRefused}, next: updater.Surroundings, ran: []string{"old: sleep"}},
		{name: "a failing post-update condemns the image", image: backendtest.Good, world: func(w *world) { w.settings.PostUpdate = hook("false") },
			outcome: updater.OutcomeRestored, detail: "post-update failed with exit code 1", events: []updater.Event{updater.EventRestored}, next: updater.Rejected, ran: []string{"new: false"}},
		{name: "a post-update that hangs condemns the image", image: backendtest.Good, world: func(w *world) { w.settings.PostUpdate = hook("sleep") },
			outcome: updater.OutcomeRestored, detail: "post-update ran longer than 1m0s", events: []updater.Event{updater.EventRestored}, next: updater.Rejected, ran: []string{"new: sleep"}},
		{name: "one that ends while a long post-update runs is put back", image: backendtest.TurnsSick, world: func(w *world) {
			w.settings.Health.Stable = 2 * time.Second
			w.settings.PostUpdate = updater.Hook{Command: []string{"sleep"}}
		}, outcome: updater.OutcomeRestored, detail: "its health check fails", events: []updater.Event{updater.EventRestored}, next: updater.Rejected, ran: []string{"new: sleep"}},
		{name: "a bad image gets no post-update", image: backendtest.Exits, world: func(w *world) { w.settings.PostUpdate = hook("migrate") },
			outcome: updater.OutcomeRestored, events: []updater.Event{updater.EventRestored}, next: updater.Rejected, ran: nil},

		{name: "what was unhealthy before is restored when it is back", image: backendtest.Exits, world: func(w *world) { w.host.Image(oldDigest, backendtest.Unhealthy) },
			outcome: updater.OutcomeRestored, events: []updater.Event{updater.EventRestored}, next: updater.Rejected},
		{name: "what was unhealthy before may get well", image: backendtest.Good, world: func(w *world) { w.host.Image(oldDigest, backendtest.Unhealthy) },
			outcome: updater.OutcomeCommitted, digest: newDigest, events: []updater.Event{updater.EventUpdated}, next: updater.UpToDate},
		{name: "what was healthy and is not when it is back has failed", image: backendtest.Exits, world: func(w *world) {
			w.on = func(what string, done bool) {
				if what == "start old" {
					w.host.Image(oldDigest, backendtest.Unhealthy)
				}
			}
		}, outcome: updater.OutcomeFailed, detail: "it is back but not healthy as it had been: its health check fails", events: []updater.Event{updater.EventFailed}, next: updater.Rejected},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, tt.image, func(t *testing.T, w *world) {
				if tt.world != nil {
					tt.world(w)
				}
				r := w.web()
				require.Equal(t, tt.outcome, r.Outcome, r.Detail)
				require.Contains(t, r.Detail, tt.detail)
				switch tt.outcome {
				case updater.OutcomeRestored, updater.OutcomeFailed:
					require.True(t, r.Trouble())
				case updater.OutcomeCommitted:
					require.False(t, r.Trouble())
				case updater.OutcomeNone:
					require.Equal(t, "none", r.Decision)
					require.Equal(t, r.Reason == updater.Surroundings, r.Trouble())
				}
				want := tt.digest
				if want == "" {
					want = oldDigest
				}
				w.holds(want, "afterwards")
				w.told(tt.events...)
				require.Equal(t, tt.ran, w.host.Ran())
				if tt.image == backendtest.Same {
					return // the engine knows by now, this one does not
				}

				w.on = nil
				again := w.web()
				require.Equal(t, tt.next, again.Reason, again.Detail)
				require.Equal(t, updater.OutcomeNone, again.Outcome)
				w.told(tt.events...)
			})
		})
	}
}

func TestRejection(t *testing.T) {
	const third, index = "sha256:0000000000000000000000000000000000000000000000000000000000000003", "sha256:0000000000000000000000000000000000000000000000000000000000000004"
	rejected := func(t *testing.T, play func(w *world)) {
		t.Helper()
		inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
			require.Equal(t, updater.OutcomeRestored, w.web().Outcome)
			m := w.record("local/web")
			require.Len(t, m.Rejected, 1)
			require.Equal(t, newDigest, m.Rejected[0].Digest)
			require.Equal(t, "it exited with code 1", m.Rejected[0].Why)
			play(w)
		})
	}
	t.Run("a tag pushed again is a new chance", func(t *testing.T) {
		rejected(t, func(w *world) {
			w.host.Image(third, backendtest.Good)
			w.registry.Publish("web:1", third)
			require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
			w.holds(third, "the fix")
			w.registry.Publish("web:1", newDigest)
			require.Equal(t, updater.Rejected, w.web().Reason, "going back to the bad one is not")
		})
	})
	t.Run("another index around the same image is not", func(t *testing.T) {
		rejected(t, func(w *world) {
			w.host.Image(index, backendtest.Good)
			w.registry.Wrap(index, newDigest)
			w.registry.Publish("web:1", index)
			require.Equal(t, updater.Rejected, w.web().Reason)
		})
	})
	t.Run("it lasts for ever", func(t *testing.T) {
		rejected(t, func(w *world) {
			_, stop := w.daemon()
			time.Sleep(100 * 24 * time.Hour / 50)
			stop()
			w.told(updater.EventRestored)
		})
	})
	t.Run("a person lifts it", func(t *testing.T) {
		rejected(t, func(w *world) {
			w.host.Image(newDigest, backendtest.Good) // it was not the image after all
			u, _ := w.process(0)
			lifted, err := u.Say(t.Context(), updater.Saying{Verb: updater.SayForget, Workloads: []string{"web"}})
			require.NoError(t, err)
			require.Len(t, lifted[0].Rejected, 1)
			require.Equal(t, newDigest, lifted[0].Rejected[0].Digest)
			require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
			require.Equal(t, []updater.Event{updater.EventRestored, updater.EventForgotten, updater.EventUpdated}, w.history())
			require.Equal(t, w.history(), w.notified.events())
		})
	})
}

func TestUnclearAttemptsAreTriedAgainLater(t *testing.T) {
	inWorld(t, backendtest.PortTaken, func(t *testing.T, w *world) {
		_, stop := w.daemon()
		begin := time.Now()
		var tried []time.Duration
		for range 4 * 24 * 60 {
			time.Sleep(time.Minute)
			if n := len(w.history()); n > len(tried) {
				tried = append(tried, time.Since(begin).Round(time.Hour))
			}
		}
		require.Equal(t, []time.Duration{0, 1 * time.Hour, 3 * time.Hour, 7 * time.Hour, 15 * time.Hour, 31 * time.Hour, 55 * time.Hour, 79 * time.Hour}, tried)
		w.host.Image(newDigest, backendtest.Good)
		time.Sleep(24 * time.Hour)
		stop()
		w.holds(newDigest, "the port is free")
		require.Nil(t, w.record("local/web").Retry)
	})
}

func TestARollBackByHandSticks(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.host.Remove("web")
		w.host.Run("web", "web:1", oldDigest, "always")
		for range 3 {
			r := w.web()
			require.Equal(t, updater.RolledBack, r.Reason)
			require.Equal(t, updater.OutcomeNone, r.Outcome)
			require.False(t, r.Trouble())
		}
		w.holds(oldDigest, "what the person chose")
		require.Equal(t, []updater.Event{updater.EventUpdated, updater.EventRolledBack}, w.history())

		u, _ := w.process(0)
		lifted, err := u.Say(t.Context(), updater.Saying{Verb: updater.SayForget, Workloads: []string{"local/web"}})
		require.NoError(t, err)
		require.Len(t, lifted[0].Rejected, 1)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
	})
}

// steps counts the steps of a whole update.
func steps(t *testing.T, b backendtest.Behaviour) (all []string) {
	t.Helper()
	inWorld(t, b, func(t *testing.T, w *world) {
		w.on = func(what string, done bool) { all = append(all, fmt.Sprintf("%s, done %v", what, done)) }
		w.once()
	})
	require.Greater(t, len(all), 10)
	return all
}

// atEveryStep plays an update of each kind once for each of its steps. At that
// step, and only once, happen is called.
func atEveryStep(t *testing.T, only string, play func(t *testing.T, w *world, b backendtest.Behaviour, at func(happen func()))) {
	for _, b := range []backendtest.Behaviour{backendtest.Good, backendtest.Exits, backendtest.TurnsSick, backendtest.PortTaken} {
		t.Run(string(b), func(t *testing.T) {
			for i, what := range steps(t, b) {
				if !strings.HasPrefix(what, only) {
					continue
				}
				t.Run(fmt.Sprintf("%d %s", i, what), func(t *testing.T) {
					inWorld(t, b, func(t *testing.T, w *world) {
						play(t, w, b, func(happen func()) {
							n := 0
							w.on = func(string, bool) {
								if n++; n == i+1 {
									happen()
								}
							}
						})
					})
				})
			}
		})
	}
}

func ended(b backendtest.Behaviour) string {
	if b == backendtest.Good {
		return newDigest
	}
	return oldDigest
}

// TestFullDiskAtEveryWrite fills the journal's disk at each step in turn.
func TestFullDiskAtEveryWrite(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		var full time.Time
		at(func() { w.disk.SetFull(true); full = time.Now() })
		swapped := false
		inner := w.on
		w.on = func(what string, done bool) {
			inner(what, done)
			swapped = swapped || what == "rename new" && done
			if what == "start old" && !full.IsZero() && !swapped {
				require.Less(t, time.Since(full), time.Second, "going back waits for the journal")
			}
		}
		w.once()
		web, ok := w.find("web")
		require.True(t, ok)
		require.True(t, web.Running, "it runs whatever the journal does")
		require.Equal(t, "config of web", web.Config)
		require.Equal(t, "always", web.Restart)
		if web.Digest == newDigest {
			require.Equal(t, backendtest.Good, b, "a bad image stays")
		}
		require.Len(t, w.host.Containers(), 1, "left over")

		// While it is full nothing goes forward, and nothing is disturbed.
		w.on = func(what string, _ bool) { require.NotEqual(t, "stop", what) }
		if full.IsZero() || web.Digest == oldDigest {
			w.once()
		}
		w.on = nil
		w.disk.SetFull(false)
		w.once()
		w.once()
		time.Sleep(2 * time.Hour) // what was unclear is tried again
		w.once()
		w.holds(ended(b), "the disk is free again")
	})
}

// TestOneFailedWrite lets one write to the journal fail. What is known of an
// image survives that.
func TestOneFailedWrite(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		var once bool
		at(func() { w.disk.SetFull(true); once = true })
		inner := w.on
		var journal bool
		w.on = func(what string, done bool) {
			// The disk has room again as soon as a write has failed, that is
			// when the next thing begins.
			if once && journal {
				w.disk.SetFull(false)
			}
			inner(what, done)
			journal = !done && (strings.HasPrefix(what, "save") || what == "remember" || what == "note")
		}
		w.once()
		w.disk.SetFull(false)
		w.on = nil
		m := w.record("local/web")
		require.True(t, m.Committed.Digest == newDigest || len(m.Rejected) == 1 || m.Retry != nil || b == backendtest.Good, "nothing is remembered: %+v", m)
		time.Sleep(2 * time.Hour)
		w.once()
		w.holds(ended(b), "in the end")
		m = w.record("local/web")
		switch b {
		case backendtest.Good:
			require.Equal(t, newDigest, m.Committed.Digest)
		case backendtest.PortTaken:
			require.NotNil(t, m.Retry)
		default:
			require.Len(t, m.Rejected, 1)
		}
	})
}

func TestDiskFullDuringRestoreAndLaterFree(t *testing.T) {
	inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
		w.on = func(what string, done bool) {
			if what == "start old" {
				w.disk.SetFull(true)
			}
		}
		_, stop := w.daemon()
		time.Sleep(30 * time.Minute)
		require.Equal(t, []updater.Event{updater.EventRestored}, w.notified.events(), "people are told at once, and once")
		require.Empty(t, w.history())
		w.on = nil
		w.disk.SetFull(false)
		time.Sleep(30 * time.Minute)
		stop()
		// "start old" had filled the disk only on the way back of the one change.
		w.holds(oldDigest, "afterwards")
		w.told(updater.EventRestored)
		require.Len(t, w.record("local/web").Rejected, 1, "the verdict was kept for as long as the disk was full")
	})
}

// TestACommitThatWasBegunIsNotTurnedRound: the process dies after the original
// has been dropped, and the next one finds its disk full.
func TestACommitThatWasBegunIsNotTurnedRound(t *testing.T) {
	all := steps(t, backendtest.Good)
	for _, what := range []string{"remove old, done false", "remove old, done true"} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				u, d := w.process(slices.Index(all, what) + 1)
				_, _ = u.Once(t.Context(), nil)
				require.True(t, d.dead)
				w.disk.SetFull(true)
				require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
				web, _ := w.find("web")
				require.Equal(t, newDigest, web.Digest)
				w.disk.SetFull(false)
				w.once()
				w.holds(newDigest, "afterwards")
				require.Equal(t, []updater.Event{updater.EventUpdated}, w.history())
				require.Equal(t, newDigest, w.record("local/web").Committed.Digest)
			})
		})
	}
}

// TestEngineDownAtEveryStep takes the engine away at each step in turn, for ten
// minutes, with and without the containers.
func TestEngineDownAtEveryStep(t *testing.T) {
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprintf("containers killed %v", kill), func(t *testing.T) {
			atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
				at(func() {
					if kill {
						w.host.Kill()
					} else {
						w.host.Down(true)
					}
				})
				_, stop := w.daemon()
				time.Sleep(10 * time.Minute)
				w.host.Boot()
				time.Sleep(3 * time.Hour)
				stop()
				w.holds(ended(b), "the engine is back")
				m := w.record("local/web")
				if b == backendtest.Good || b == backendtest.PortTaken {
					require.Empty(t, m.Rejected, "the image is not to blame")
				} else {
					require.Len(t, m.Rejected, 1)
				}
				w.told(w.history()...)
			})
		})
	}
}

// TestEngineDownWhileAPersonWaits: `run --once` gives up after a while, says
// so, and the next one finishes.
func TestEngineDownWhileAPersonWaits(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		var down time.Time
		at(func() { w.host.Down(true); down = time.Now() })
		rows := w.once()
		require.Len(t, rows, 1)
		w.on = nil
		open, err := (&backendtest.State{Disk: w.disk}).Open(t.Context())
		require.NoError(t, err)
		if len(open) > 0 {
			require.Less(t, time.Since(down), 20*time.Minute)
			require.True(t, rows[0].Trouble(), "%+v", rows[0])
			require.Equal(t, updater.OutcomeFailed, rows[0].Outcome)

			rows = w.once() // still down
			require.True(t, slices.ContainsFunc(rows, updater.Row.Trouble))
			require.True(t, slices.ContainsFunc(rows, func(r updater.Row) bool { return r.Workload == "local/web" && r.Outcome == updater.OutcomeFailed }), "%+v", rows)
		}
		w.host.Down(false)
		w.once()
		time.Sleep(2 * time.Hour)
		w.once()
		w.holds(ended(b), "the engine is back")
	})
}

// TestARestoreThatFailsBlocksTheWorkload: no new change on top of one that is
// not over; and whoever asks is told, as are those who are told of failures.
func TestARestoreThatFailsBlocksTheWorkload(t *testing.T) {
	inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
		broken := true
		backend := &backendtest.Process{Host: w.host, ID: "local", Step: func(what string, done bool) error {
			if what == "remove new" && broken && !done {
				return fmt.Errorf("device or resource busy")
			}
			return nil
		}}
		begun := 0
		state := &backendtest.State{Disk: w.disk, Step: func(what string, done bool) error {
			if what == "save preparing" && !done {
				begun++
			}
			return nil
		}}
		once := func() updater.Row {
			rows, err := updater.New([]updater.Place{{Backend: backend, State: state}}, w.rules(), discard()).Once(t.Context(), nil)
			require.NoError(t, err)
			require.Len(t, rows, 1)
			return rows[0]
		}
		r := once()
		require.Equal(t, updater.OutcomeFailed, r.Outcome)
		web, _ := w.find("web")
		require.True(t, web.Running)

		r = once()
		require.Equal(t, updater.InProgress, r.Reason)
		require.Equal(t, updater.OutcomeFailed, r.Outcome)
		require.Equal(t, 1, begun)
		require.Empty(t, w.history())

		rows, err := w.check()
		require.NoError(t, err)
		require.Equal(t, updater.InProgress, rows[0].Reason)
		require.Contains(t, rows[0].Detail, "going back does not succeed")
		require.Contains(t, rows[0].Detail, "device or resource busy")
		require.True(t, rows[0].Trouble(), "nobody should take that for well")
		require.NotEmpty(t, w.notified.all())
		for _, e := range w.notified.all() {
			require.Equal(t, updater.EventFailed, e.Event)
			require.True(t, e.Open)
			require.Contains(t, e.Why, "it exited with code 1; going back does not succeed")
		}
		w.notified.forget()

		broken = false
		r = once()
		require.Equal(t, updater.Rejected, r.Reason)
		require.Equal(t, updater.OutcomeRestored, r.Outcome, "what was ended first is news")
		w.holds(oldDigest, "afterwards")
		w.told(updater.EventRestored)
	})
}

// TestStopAtEveryStep ends the process in good order (SIGTERM) at each step;
// the next one goes on.
func TestStopAtEveryStep(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var stopped time.Time
		at(func() { cancel(); stopped = time.Now() })
		u, _ := w.process(0)
		_, err := u.Once(ctx, nil)
		require.NoError(t, err)
		require.False(t, stopped.IsZero())
		require.LessOrEqual(t, time.Since(stopped), 5*time.Second, "it takes too long to stop")
		web, ok := w.find("web")
		require.True(t, ok)
		require.True(t, web.Running, "no effect is left half-done")
		w.on = nil
		w.once()
		w.once()
		w.holds(ended(b), "the next process")
		w.told(w.notified.events()...)
		require.Len(t, w.notified.events(), 1)
	})
}

func TestStop(t *testing.T) {
	stopAfter := func(t *testing.T, w *world, d time.Duration) updater.Row {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		u, _ := w.process(0)
		rows, err := u.Once(ctx, nil)
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, updater.OutcomeOpen, rows[0].Outcome)
		require.True(t, rows[0].Trouble())
		return rows[0]
	}
	t.Run("a pull is broken off and leaves nothing", func(t *testing.T) {
		inWorld(t, backendtest.SlowPull, func(t *testing.T, w *world) {
			began := time.Now()
			stopAfter(t, w, 10*time.Minute)
			require.Equal(t, 10*time.Minute, time.Since(began))
			w.holds(oldDigest, "after the stop")
			w.told()
			require.Nil(t, w.record("local/web").Retry, "a stop is nobody's fault")
		})
	})
	t.Run("a pre-update is broken off and leaves nothing", func(t *testing.T) {
		for range 200 { // which of two contexts ends first is chance
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				w.settings.PreUpdate = updater.Hook{Command: []string{"sleep"}}
				stopAfter(t, w, time.Minute)
				w.holds(oldDigest, "after the stop")
				w.told()
			})
		}
	})
	t.Run("a stop while it prepares begins no swap", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancel(t.Context())
			w.on = func(what string, done bool) {
				require.NotEqual(t, "stop", what)
				if what == "create" && done {
					cancel()
				}
			}
			u, _ := w.process(0)
			_, err := u.Once(ctx, nil)
			require.NoError(t, err)
			w.holds(oldDigest, "after the stop")
		})
	})
	t.Run("a gate is left open and taken up", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			stopAfter(t, w, 5*time.Second)
			open, err := (&backendtest.State{Disk: w.disk}).Open(t.Context())
			require.NoError(t, err)
			require.Len(t, open, 1)
			require.Equal(t, updater.Judging, open[0].Phase)
			w.told()
			began := time.Now()
			r := w.web()
			require.Equal(t, updater.OutcomeCommitted, r.Outcome)
			require.Equal(t, updater.UpToDate, r.Reason)
			require.Equal(t, 10*time.Second, time.Since(began), "stable counts from the start of the new process")
			w.holds(newDigest, "afterwards")
			w.told(updater.EventUpdated)
		})
	})
	t.Run("a post-update is broken off and run again", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.settings.PostUpdate = updater.Hook{Command: []string{"sleep"}}
			stopAfter(t, w, time.Minute)
			require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
			require.Equal(t, []string{"new: sleep", "new: sleep"}, w.host.Ran())
			w.told(updater.EventUpdated)
		})
	})
	t.Run("a gate taken up after the containers were killed blames nobody", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.host.Remove("web")
			w.host.Run("web", "web:1", oldDigest, "no")
			stopAfter(t, w, 5*time.Second)
			w.host.Kill()
			w.host.Boot()
			r := w.web()
			require.Equal(t, updater.OutcomeRestored, r.Outcome, r.Detail)
			require.Equal(t, updater.Surroundings, r.Reason)
			require.Empty(t, w.record("local/web").Rejected)
		})
	})
}

// TestLeadLostAtEveryStep: another process may go on, so this one stops at
// once, and what it left is taken up.
func TestLeadLostAtEveryStep(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		var lost bool
		var after []string
		at(func() { w.disk.Depose(); lost = true })
		inner := w.on
		w.on = func(what string, done bool) {
			if lost && !done && what != "pull" && what != "create" { // these disturb nothing
				after = append(after, what)
			}
			inner(what, done)
		}
		u, _ := w.process(0)
		_, _ = u.Once(t.Context(), nil)
		require.Empty(t, after, "it goes on after its lead is lost")
		w.on = nil
		w.once()
		w.once()
		time.Sleep(2 * time.Hour)
		w.once()
		w.holds(ended(b), "the next leader")
	})
}

// TestSomebodyReplacesItAtEveryStep: theirs stays as it is, whatever we were at.
func TestSomebodyReplacesItAtEveryStep(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		w.registry.Publish("theirs:9", oldDigest)
		at(func() {
			w.host.Remove("web")
			w.host.Run("web", "theirs:9", oldDigest, "no")
		})
		r := w.web()
		w.on = nil
		w.once()
		theirs, ok := w.find("web")
		require.True(t, ok, "%+v", w.host.Containers())
		require.Equal(t, "theirs:9", theirs.Ref)
		require.Equal(t, "no", theirs.Restart)
		require.True(t, theirs.Running)
		for _, c := range w.host.Containers() {
			if c.Name != "web" {
				require.Equal(t, "web.updaterd-old", c.Name, "only the original may be left")
				require.False(t, c.Running)
			}
		}
		open, err := (&backendtest.State{Disk: w.disk}).Open(t.Context())
		require.NoError(t, err)
		require.Empty(t, open)
		require.Equal(t, w.history(), w.notified.events(), "%+v", r)
	})
}

// TestSupersededIsReported at the steps at which it is told apart.
func TestSupersededIsReported(t *testing.T) {
	for _, what := range []string{"create", "update restart policy", "rename new", "rename new back"} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
				w.on = func(step string, done bool) {
					if step == what && !done {
						w.host.Remove("web")
						w.host.Run("web", "theirs:9", oldDigest, "no")
						w.registry.Publish("theirs:9", oldDigest)
						what = ""
					}
				}
				r := w.web()
				require.Contains(t, []updater.Outcome{updater.OutcomeSuperseded, updater.OutcomeNone}, r.Outcome, r.Detail)
				require.Len(t, w.history(), 1)
				w.told(w.history()...)
				if step := w.record("local/web").Rejected; len(step) > 0 {
					require.Contains(t, step[0].Why, "it exited with code 1", "the verdict outlives who superseded it")
				}
			})
		})
	}
}

// TestSomebodyRemovesItAtEveryStep: nothing is made up, and nothing is left.
func TestSomebodyRemovesItAtEveryStep(t *testing.T) {
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		at(func() { w.host.Remove("web") })
		rows := w.once()
		require.LessOrEqual(t, len(rows), 1)
		w.on = nil
		w.once()
		all := w.host.Containers()
		require.LessOrEqual(t, len(all), 1, "%+v", all)
		if len(all) == 1 {
			require.Equal(t, "web", all[0].Name)
			require.True(t, all[0].Running)
			require.Equal(t, "always", all[0].Restart)
		}
		open, err := (&backendtest.State{Disk: w.disk}).Open(t.Context())
		require.NoError(t, err)
		require.Empty(t, open)
	})
}

// TestSomebodyRemovesTheNewOneBeforeTheCommit: what ran before is still there, so
// that it comes back, also after a crash.
func TestSomebodyRemovesTheNewOneBeforeTheCommit(t *testing.T) {
	all := steps(t, backendtest.Good)
	for name, crash := range map[string]bool{"in the midst": false, "and the process dies": true} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				w.on = func(what string, done bool) {
					if what == "save committing" && done {
						w.host.Remove("web")
						w.on = nil
					}
				}
				if crash {
					u, d := w.process(slices.Index(all, "save committing, done true") + 1)
					_, _ = u.Once(t.Context(), nil)
					require.True(t, d.dead)
				}
				r := w.web()
				require.Equal(t, updater.OutcomeRestored, r.Outcome, r.Detail)
				w.holds(oldDigest, "afterwards")
				w.told(updater.EventRestored)
				require.Empty(t, w.record("local/web").Rejected, "nobody found the image bad")
				require.NotNil(t, w.record("local/web").Retry)
			})
		})
	}
}

// TestOriginalPruned: a prune by cron takes the stopped original at each step.
func TestOriginalPruned(t *testing.T) {
	copies := 0
	atEveryStep(t, "", func(t *testing.T, w *world, b backendtest.Behaviour, at func(func())) {
		took := false
		at(func() {
			_, took = w.find("web.updaterd-old")
			w.host.Remove("web.updaterd-old")
		})
		r := w.web()
		w.on = nil
		if r.Outcome == updater.OutcomeRestored && took {
			copies++
			require.Contains(t, r.Detail, "a copy of it")
			w.told(updater.EventRestored)
			require.Contains(t, w.notified.all()[0].Why, "a copy of it")
			if b != backendtest.PortTaken {
				require.Len(t, w.record("local/web").Rejected, 1)
			}
		}
		w.once()
		time.Sleep(2 * time.Hour)
		w.once()
		w.holds(ended(b), r.Detail)
	})
	require.NotZero(t, copies)
}

// TestACopyIsNoStranger: the process dies after the copy was made and before
// that was written down.
func TestACopyIsNoStranger(t *testing.T) {
	all := steps(t, backendtest.Exits)
	for _, step := range []string{"rename old back, done true", "start old, done true", "remove new, done true", "save restored, done false"} {
		t.Run(step, func(t *testing.T) {
			inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
				w.on = func(what string, done bool) {
					if what == "rename new back" {
						w.host.Remove("web.updaterd-old")
					}
				}
				u, d := w.process(slices.Index(all, step) + 1)
				_, _ = u.Once(t.Context(), nil)
				require.True(t, d.dead)
				w.on = nil
				r := w.web()
				require.Equal(t, updater.OutcomeRestored, r.Outcome)
				w.holds(oldDigest, "the copy")
				require.Contains(t, w.notified.all()[0].Why, "a copy of it")
			})
		})
	}
}

// TestWhatAPersonRemovedIsNotMadeUp: it is gone before the swap, so there is
// nothing to go back to.
func TestWhatAPersonRemovedIsNotMadeUp(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.on = func(what string, done bool) {
			if what == "update restart policy" && !done {
				w.host.Remove("web")
			}
		}
		require.Equal(t, updater.OutcomeSuperseded, w.web().Outcome)
		require.Empty(t, w.host.Containers())
		w.told(updater.EventSuperseded)
		require.Nil(t, w.record("local/web").Retry, "nobody is to blame")
	})
}

// TestPreparingIsDecidedAnewAfterACrash: what was right then may not be now.
func TestPreparingIsDecidedAnewAfterACrash(t *testing.T) {
	all := steps(t, backendtest.Good)
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		u, d := w.process(slices.Index(all, "create, done true") + 1)
		_, _ = u.Once(t.Context(), nil)
		require.True(t, d.dead)
		w.settings.Mode = updater.ModeHold
		require.Equal(t, updater.Held, w.web().Reason)
		w.holds(oldDigest, "it was put on hold meanwhile")
		w.told()
	})
}

func TestARestoreIsInsistedOn(t *testing.T) {
	inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
		began := time.Now()
		w.on = func(what string, done bool) {
			if what == "start old" && !done && time.Since(began) < 20*time.Second {
				w.host.Down(true)
				time.AfterFunc(10*time.Second, func() { w.host.Down(false) })
			}
		}
		require.Equal(t, updater.OutcomeRestored, w.web().Outcome, "while the person waits")
		w.holds(oldDigest, "afterwards")
		require.Less(t, time.Since(began), time.Minute)
		rows, err := w.check()
		require.NoError(t, err)
		require.False(t, rows[0].Trouble(), "it is over")
	})
}

func TestAnOutageDuringTheGateBlamesNobody(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.host.Remove("web")
		w.host.Run("web", "web:1", oldDigest, "no") // so that the engine does not start it again
		_, stop := w.daemon()
		time.Sleep(5 * time.Second)
		w.host.Kill()
		time.Sleep(time.Minute)
		w.host.Boot()
		time.Sleep(10 * time.Minute)
		stop()
		w.told(updater.EventRestored)
		m := w.record("local/web")
		require.Empty(t, m.Rejected)
		require.NotNil(t, m.Retry)
		web, _ := w.find("web")
		require.True(t, web.Running)
		require.Equal(t, oldDigest, web.Digest)
	})
}

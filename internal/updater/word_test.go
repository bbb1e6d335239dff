package updater_test

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

const otherDigest = "sha256:0000000000000000000000000000000000000000000000000000000000000003"

// say says something about web, as ann.
func (w *world) say(v updater.Verb, edits ...func(*updater.Saying)) ([]updater.Told, error) {
	w.t.Helper()
	u, _ := w.process(0)
	s := updater.Saying{Verb: v, Word: updater.Word{Who: "ann"}}
	if v != updater.SayPause && v != updater.SayResume {
		s.Workloads = []string{"web"}
	}
	for _, edit := range edits {
		edit(&s)
	}
	return u.Say(w.t.Context(), s)
}

// said requires that it did, or did not, change anything.
func (w *world) said(changed bool, v updater.Verb, edits ...func(*updater.Saying)) updater.Told {
	w.t.Helper()
	told, err := w.say(v, edits...)
	require.NoError(w.t, err)
	require.Len(w.t, told, 1)
	require.Equal(w.t, changed, told[0].Changed)
	return told[0]
}

func lasts(d time.Duration) func(*updater.Saying) {
	return func(s *updater.Saying) { s.Until = time.Now().Add(d) }
}

func (w *world) reason() updater.Reason {
	w.t.Helper()
	rows, err := w.check("web")
	require.NoError(w.t, err)
	return rows[0].Reason
}

func TestHoldAndRelease(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.said(false, updater.SayRelease)
		w.said(true, updater.SayHold)
		w.said(false, updater.SayHold)
		require.Equal(t, updater.Held, w.web().Reason)
		w.said(true, updater.SayRelease)
		w.said(false, updater.SayRelease)

		until := time.Now().Add(time.Hour)
		require.Equal(t, until, *w.said(true, updater.SayHold, lasts(time.Hour)).Until)
		require.Nil(t, w.said(true, updater.SayHold).Until, "the last word counts")
		w.said(true, updater.SayHold, lasts(time.Hour))
		r := w.web()
		require.Equal(t, updater.Held, r.Reason)
		require.WithinDuration(t, time.Now().Add(time.Hour), *r.Until, 0)
		time.Sleep(time.Hour)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.told(updater.EventHeld, updater.EventReleased, updater.EventHeld, updater.EventHeld, updater.EventHeld, updater.EventUpdated)

		all, err := (&backendtest.State{Disk: w.disk}).History(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, "ann", all[1].Who)
		require.Equal(t, "local/web", all[1].Workload)
		require.False(t, all[1].At.IsZero())
	})
}

func TestPauseIsOfEverything(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("db", backendtest.Good)
		w.said(false, updater.SayResume)
		w.said(true, updater.SayPause, func(s *updater.Saying) { s.Why = "the fair" })
		w.said(false, updater.SayPause)
		for _, r := range w.once() {
			require.Equal(t, updater.Paused, r.Reason)
			require.Contains(t, r.Detail, "by ann: the fair")
		}
		w.said(true, updater.SayResume)
		for _, r := range w.once() {
			require.Equal(t, updater.OutcomeCommitted, r.Outcome)
		}
		require.Equal(t, []updater.Event{updater.EventPaused, updater.EventResumed}, w.history()[:2])
	})
}

// TestAPauseIsSeen at a glance, whoever began it, until it ends or lapses.
func TestAPauseIsSeen(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		u, stop := w.daemon()
		time.Sleep(time.Minute)
		paused := func() *updater.Word { return u.Glance().Places[0].Paused }
		require.Nil(t, paused())

		w.said(true, updater.SayPause, func(s *updater.Saying) { s.Why = "the fair" }) // another process
		time.Sleep(time.Minute)
		require.Equal(t, "ann", paused().Who)
		require.Equal(t, "the fair", paused().Why)

		told, err := u.Say(t.Context(), updater.Saying{Verb: updater.SayResume})
		require.NoError(t, err)
		require.True(t, told[0].Changed)
		synctest.Wait()
		require.Nil(t, paused())

		_, err = u.Say(t.Context(), updater.Saying{Verb: updater.SayPause, Word: updater.Word{Until: time.Now().Add(time.Second)}})
		require.NoError(t, err)
		synctest.Wait()
		require.NotNil(t, paused())
		time.Sleep(time.Second)
		require.Nil(t, paused(), "it has lapsed, and nothing has looked since")
		stop()
	})
}

func TestApproveAndReject(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		require.Equal(t, updater.NeedsApproval, w.web().Reason)
		told := w.said(true, updater.SayApprove, lasts(time.Hour))
		require.Equal(t, newDigest, told.Image.Digest)
		require.Equal(t, updater.Update, w.reason())
		time.Sleep(time.Hour)
		require.Equal(t, updater.NeedsApproval, w.reason())

		w.said(true, updater.SayReject)
		w.said(false, updater.SayReject)
		require.Equal(t, updater.Rejected, w.reason())
		// The last word counts.
		w.said(true, updater.SayApprove)
		w.said(false, updater.SayApprove)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.told(updater.EventApproved, updater.EventRejected, updater.EventApproved, updater.EventUpdated)
		_, err := w.say(updater.SayApprove)
		require.ErrorIs(t, err, updater.ErrNot, "there is nothing to approve")
	})
}

func TestApprovalIsOfOneDigest(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		w.said(true, updater.SayApprove, func(s *updater.Saying) { s.Digest = otherDigest })
		require.Equal(t, updater.NeedsApproval, w.reason())
	})
}

// TestAnApprovalSaysWhatItDoesNotDo: whoever gives it would else wait for nothing.
func TestAnApprovalSaysWhatItDoesNotDo(t *testing.T) {
	for name, c := range map[string]struct {
		is     backendtest.Behaviour
		before func(*world)
		mode   updater.Mode
		digest string
		want   string
	}{
		"nothing, where it is what was waited for": {is: backendtest.Good, mode: updater.ModeApprove},
		"its mode asks for none":                   {is: backendtest.Good, mode: updater.ModeUpdate, want: "its mode is update, which waits for no approval"},
		"its mode is not to touch it":              {is: backendtest.Good, mode: updater.ModeMonitor, want: "its mode is monitor, so it is not put there; to have it now: updaterd update local/web"},
		"its mode is to leave it":                  {is: backendtest.Good, mode: updater.ModeHold, want: "it is not put there yet: its mode is hold"},
		"it is held":                               {is: backendtest.Good, mode: updater.ModeApprove, before: func(w *world) { w.said(true, updater.SayHold) }, want: "it is not put there yet: held since"},
		"everything is paused":                     {is: backendtest.Good, mode: updater.ModeApprove, before: func(w *world) { w.said(true, updater.SayPause) }, want: "it is not put there yet: everything is paused since"},
		"a person's rejection is lifted by it":     {is: backendtest.Good, mode: updater.ModeApprove, before: func(w *world) { w.said(true, updater.SayReject) }},
		"what was found bad stays so": {is: backendtest.Exits, mode: updater.ModeApprove, before: func(w *world) {
			w.said(true, updater.SayApprove)
			require.Equal(w.t, updater.OutcomeRestored, w.web().Outcome)
		}, want: "to let it be tried again: updaterd forget local/web"},
		"what was found bad, named by its digest": {is: backendtest.Exits, mode: updater.ModeUpdate, digest: newDigest, before: func(w *world) {
			require.Equal(w.t, updater.OutcomeRestored, w.web().Outcome)
		}, want: "it is still rejected since"},
		"what was rolled back stays so": {is: backendtest.Good, mode: updater.ModeUpdate, before: func(w *world) {
			require.Equal(w.t, updater.OutcomeCommitted, w.web().Outcome)
			w.said(true, updater.SayRollback)
			require.Equal(w.t, updater.OutcomeCommitted, w.web().Outcome)
		}, want: "it is still rolled-back since"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, c.is, func(t *testing.T, w *world) {
				w.settings.Keep, w.settings.Mode = 1, c.mode
				if c.before != nil {
					c.before(w)
				}
				for range 2 { // also where it was approved already
					told, err := w.say(updater.SayApprove, func(s *updater.Saying) { s.Digest = c.digest })
					require.NoError(t, err)
					if c.want == "" {
						require.Empty(t, told[0].Note)
					} else {
						require.Contains(t, told[0].Note, c.want)
					}
				}
			})
		})
	}
}

// TestAnApprovalIsWithdrawn by a rejection that is forgotten. To forget alone does not
// withdraw it: what gets another chance is to be tried.
func TestAnApprovalIsWithdrawn(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		require.Empty(t, w.said(false, updater.SayForget).Note)
		w.said(true, updater.SayApprove)
		require.Equal(t, "the approval of "+newDigest+" by ann stands; to withdraw it: updaterd reject local/web --digest "+newDigest+", then updaterd forget local/web",
			w.said(false, updater.SayForget).Note)
		require.Equal(t, updater.Update, w.reason())
		w.said(true, updater.SayReject, func(s *updater.Saying) { s.Digest = newDigest })
		require.Equal(t, updater.Rejected, w.reason())
		require.Empty(t, w.said(true, updater.SayForget).Note)
		require.Equal(t, updater.NeedsApproval, w.web().Reason)

		w.said(true, updater.SayApprove, lasts(time.Hour))
		time.Sleep(time.Hour)
		require.Empty(t, w.said(false, updater.SayForget).Note, "it has lapsed")
	})
	inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		w.said(true, updater.SayApprove)
		require.Equal(t, updater.OutcomeRestored, w.web().Outcome)
		require.Empty(t, w.said(true, updater.SayForget).Note)
		require.Equal(t, updater.Update, w.reason(), "it was approved")
	})
}

func TestUpdateNow(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.MinAge = 100 * time.Hour
		require.Equal(t, updater.TooYoung, w.web().Reason)
		w.said(true, updater.SayUpdate)
		w.said(false, updater.SayUpdate)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		require.Nil(t, w.record("local/web").Asked)
		w.told(updater.EventUpdateAsked, updater.EventUpdated)

		// What there is nothing to do for is not asked for later.
		w.said(true, updater.SayUpdate)
		require.Equal(t, updater.UpToDate, w.web().Reason)
		require.Nil(t, w.record("local/web").Asked)
	})
	inWorld(t, backendtest.PortTaken, func(t *testing.T, w *world) {
		w.said(true, updater.SayUpdate)
		require.Equal(t, updater.OutcomeRestored, w.web().Outcome)
		require.Equal(t, updater.Surroundings, w.web().Reason, "it was tried, and is not tried without end")
	})
}

func TestUpdateOfAllAsksOnlyWhereThereIsSomething(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("other", "")
		told, err := w.say(updater.SayUpdate, func(s *updater.Saying) { s.Workloads = nil })
		require.NoError(t, err)
		require.Len(t, told, 1)
		require.Equal(t, "local/web", told[0].Workload)
	})
}

func TestRollback(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Keep = 1
		_, err := w.say(updater.SayRollback)
		require.ErrorIs(t, err, updater.ErrNot)
		require.ErrorContains(t, err, "no earlier image of it is kept")
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)

		told := w.said(true, updater.SayRollback, func(s *updater.Saying) { s.Why = "it is slow" })
		require.Equal(t, oldDigest, told.Image.Digest)
		w.said(false, updater.SayRollback)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.holds(oldDigest, "what a person went back to")
		w.told(updater.EventUpdated, updater.EventRollbackAsked, updater.EventRolledBack)

		r := w.web()
		require.Equal(t, updater.RolledBack, r.Reason, "it sticks")
		require.Contains(t, r.Detail, "by ann: it is slow")
		_, err = w.say(updater.SayRollback)
		require.ErrorIs(t, err, updater.ErrNot, "going back twice is not going forward")
		w.said(false, updater.SayRollback, func(s *updater.Saying) { s.Digest = oldDigest })

		w.said(true, updater.SayForget)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.holds(newDigest, "what a person let have another chance")
	})
}

// The tag stands for the newer image by then.
func TestRollbackWritesTheDigestWhereDigestsAreWritten(t *testing.T) {
	for write, want := range map[updater.Write]string{updater.WriteTag: "web:1", updater.WriteDigest: "web:1@" + oldDigest} {
		t.Run(string(write), func(t *testing.T) {
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				w.settings.Keep, w.settings.Write = 1, write
				require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
				w.said(true, updater.SayRollback)
				require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
				web, _ := w.find("web")
				require.Equal(t, oldDigest, web.Digest)
				require.Equal(t, want, web.Ref)
			})
		})
	}
}

func TestRollbackToABadImageIsPutBack(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Keep = 1
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.host.Image(oldDigest, backendtest.Exits)
		w.said(true, updater.SayRollback)
		require.Equal(t, updater.OutcomeRestored, w.web().Outcome)
		w.holds(newDigest, "what ran")
		require.Equal(t, updater.UpToDate, w.web().Reason)
		_, err := w.say(updater.SayRollback)
		require.ErrorIs(t, err, updater.ErrNot, "that one was found bad")
	})
}

// TestDaemonActsByAWordAtOnce, and not when its next pass comes.
func TestDaemonActsByAWordAtOnce(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		u, stop := w.daemon()
		time.Sleep(time.Minute)
		say := func(v updater.Verb) {
			_, err := u.Say(t.Context(), updater.Saying{Verb: v, Workloads: []string{"web"}})
			require.NoError(t, err)
			time.Sleep(40 * time.Second)
		}
		say(updater.SayApprove)
		w.holds(newDigest, "approved")
		say(updater.SayRollback)
		w.holds(oldDigest, "rolled back")
		stop()
	})
}

// TestDaemonHeedsAWordThatAnotherProcessWrote, a standby or a command, long before its
// next pass.
func TestDaemonHeedsAWordThatAnotherProcessWrote(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode, w.settings.Keep = updater.ModeApprove, 1
		u, _ := w.process(0)
		rules := w.rules()
		rules.Schedule = cron.Every(24 * time.Hour)
		u.Reload(rules)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		time.Sleep(time.Minute)
		asked := w.registry.Asked()
		w.said(true, updater.SayApprove)
		time.Sleep(time.Minute)
		w.holds(newDigest, "approved")
		w.said(true, updater.SayRollback)
		time.Sleep(time.Minute)
		w.holds(oldDigest, "rolled back")
		time.Sleep(time.Hour)
		require.Less(t, w.registry.Asked(), asked+20, "each is heard once")
		cancel()
		require.NoError(t, <-ended)
	})
}

// traced counts how often the backend is asked what changes left.
type traced struct {
	*backendtest.Process
	n *atomic.Int32
}

func (b traced) Traces(ctx context.Context, known map[string]bool) ([]updater.Change, error) {
	b.n.Add(1)
	return b.Process.Traces(ctx, known)
}

// TestListeningForWordsAsksNoBackend: that is a pass's to do.
func TestListeningForWordsAsksNoBackend(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		var asked atomic.Int32
		rules := w.rules()
		rules.Schedule = cron.Every(24 * time.Hour)
		u := updater.New([]updater.Place{{
			Backend: traced{&backendtest.Process{Host: w.host, ID: "local"}, &asked}, State: &backendtest.State{Disk: w.disk},
		}}, rules, discard())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		time.Sleep(time.Minute)
		began := asked.Load()
		require.NotZero(t, began, "at its start")
		time.Sleep(time.Hour)
		require.Equal(t, began, asked.Load())
		cancel()
		require.NoError(t, <-ended)
	})
}

// lagging is a state whose leader learns of what others write a second later.
type lagging struct{ *backendtest.State }

func (l lagging) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	return l.State.Lead(ctx, func(ctx context.Context, j updater.Journal) error {
		return do(ctx, &lateJournal{Journal: j})
	})
}

type lateJournal struct {
	updater.Journal

	mu  sync.Mutex
	at  time.Time
	was map[string]updater.Record
}

func (j *lateJournal) Recall(ctx context.Context) (map[string]updater.Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if time.Since(j.at) < time.Second {
		return maps.Clone(j.was), nil
	}
	now, err := j.Journal.Recall(ctx)
	j.was, j.at = now, time.Now()
	return maps.Clone(now), err
}

// TestAWordIsKnownToTheLookThatFollows, also where the leader's journal is brought up
// to date by a watch.
func TestAWordIsKnownToTheLookThatFollows(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		seen := &watcher{}
		rules := w.rules()
		rules.Observer, rules.Schedule = updater.Observers{seen}, cron.Every(24*time.Hour)
		place := updater.Place{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: lagging{&backendtest.State{Disk: w.disk}}}
		u := updater.New([]updater.Place{place}, rules, discard())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		synctest.Wait()
		before := len(seen.decisions())
		told, err := u.Say(t.Context(), updater.Saying{Verb: updater.SayUpdate, Workloads: []string{"web"}})
		require.NoError(t, err)
		synctest.Wait()
		d := seen.decisions()[before]
		require.Equal(t, updater.Update, d.Reason)
		require.False(t, d.AsOf.Before(told[0].At))
		time.Sleep(time.Minute)
		w.holds(newDigest, "asked for")
		cancel()
		require.NoError(t, <-ended)
	})
}

// heldRegistry is one that answers when it is let.
type heldRegistry struct {
	*backendtest.Registry
	answers <-chan struct{}
}

func (r heldRegistry) As(updater.Logins) updater.Registry { return r }

func (r heldRegistry) Resolve(ctx context.Context, ref string) (string, error) {
	select {
	case <-r.answers:
	case <-ctx.Done():
	}
	return r.Registry.Resolve(ctx, ref)
}

// TestADecisionSaysAsOfWhen: a word that comes in the middle of a look is not in it,
// and whoever waits for what comes of it can tell.
func TestADecisionSaysAsOfWhen(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Mode = updater.ModeApprove
		w.said(true, updater.SayReject)
		u, seen := w.observed()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		synctest.Wait()

		answers := make(chan struct{})
		rules := w.rules()
		rules.Observer, rules.Registry = updater.Observers{seen}, heldRegistry{w.registry, answers}
		u.Reload(rules)
		say := func(v updater.Verb) updater.Told {
			told, err := u.Say(t.Context(), updater.Saying{Verb: v, Workloads: []string{"web"}})
			require.NoError(t, err)
			synctest.Wait()
			return told[0]
		}
		say(updater.SayForget) // and the look that follows waits for the registry
		time.Sleep(time.Millisecond)
		asked := say(updater.SayUpdate)
		before := len(seen.decisions())
		close(answers)
		synctest.Wait()
		all := seen.decisions()[before:]
		require.Equal(t, updater.NeedsApproval, all[0].Reason)
		require.True(t, all[0].AsOf.Before(asked.At))
		require.Equal(t, updater.Update, all[1].Reason)
		require.False(t, all[1].AsOf.Before(asked.At))
		time.Sleep(40 * time.Second)
		w.holds(newDigest, "it was asked for")
		cancel()
		require.NoError(t, <-ended)
	})
}

// TestAHoldShowsWhateverTheReason: also where there is nothing to hold back.
func TestAHoldShowsWhateverTheReason(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		held := func() (updater.Reason, *updater.Hold) {
			t.Helper()
			rows, err := w.check("web")
			require.NoError(t, err)
			return rows[0].Reason, rows[0].Hold
		}
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		reason, hold := held()
		require.Equal(t, updater.UpToDate, reason)
		require.Nil(t, hold)

		w.said(true, updater.SayHold, lasts(time.Hour))
		reason, hold = held()
		require.Equal(t, updater.UpToDate, reason, "it still is")
		require.Equal(t, updater.Held, hold.Reason)
		require.Contains(t, hold.Detail, "by ann")
		require.WithinDuration(t, time.Now().Add(time.Hour), hold.Until, 0)
		w.said(true, updater.SayPause)
		_, hold = held()
		require.Equal(t, updater.Paused, hold.Reason)
		w.said(true, updater.SayResume)
		time.Sleep(time.Hour)
		_, hold = held()
		require.Nil(t, hold, "it has lapsed")

		w.settings.Mode = updater.ModeHold
		_, hold = held()
		require.Equal(t, &updater.Hold{Reason: updater.Held, Detail: "its mode is hold"}, hold)

		w.said(true, updater.SayHold)
		u, seen := w.observed()
		_, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, updater.Held, seen.decisions()[0].Hold.Reason, "whoever watches is told")
	})
}

// TestWordsThatMakeNoSense change nothing.
func TestWordsThatMakeNoSense(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		of := func(names ...string) func(*updater.Saying) {
			return func(s *updater.Saying) { s.Workloads = names }
		}
		digest := func(d string) func(*updater.Saying) {
			return func(s *updater.Saying) { s.Digest = d }
		}
		for name, c := range map[string]struct {
			verb updater.Verb
			edit func(*updater.Saying)
			want error
		}{
			"an unknown verb":               {"restart", of("web"), updater.ErrSaying},
			"nothing to hold":               {updater.SayHold, of(), updater.ErrSaying},
			"a pause of one":                {updater.SayPause, of("web"), updater.ErrSaying},
			"a hold that lapsed":            {updater.SayHold, lasts(-time.Second), updater.ErrSaying},
			"a release that lapses":         {updater.SayRelease, lasts(time.Second), updater.ErrSaying},
			"a digest to hold":              {updater.SayHold, digest(otherDigest), updater.ErrSaying},
			"no digest":                     {updater.SayApprove, digest("1234"), updater.ErrSaying},
			"half a digest, as tables show": {updater.SayApprove, digest(newDigest[:19]), updater.ErrSaying},
			"one of another kind":           {updater.SayReject, digest("md5:" + newDigest[7:39]), updater.ErrSaying},
			"a digest of two":               {updater.SayApprove, func(s *updater.Saying) { s.Digest = otherDigest; s.Workloads = []string{"web", "db"} }, updater.ErrSaying},
			"a workload that is not there":  {updater.SayHold, of("web", "nobody"), updater.ErrUnknownWorkload},
			"no name":                       {updater.SayForget, of(""), updater.ErrUnknownWorkload},
			"everything as if a workload":   {updater.SayHold, of(updater.Everything), updater.ErrUnknownWorkload},
			"a look at what is not there":   {updater.SayCheck, of("nobody"), updater.ErrUnknownWorkload},
			"back to what never ran":        {updater.SayRollback, digest(otherDigest), updater.ErrNot},
			"an update of what is not here": {updater.SayUpdate, of("nobody"), updater.ErrUnknownWorkload},
		} {
			_, err := w.say(c.verb, c.edit)
			require.ErrorIs(t, err, c.want, name)
		}
		require.Empty(t, w.history())
		w.host.Down(true)
		_, err := w.say(updater.SayHold)
		require.ErrorIs(t, err, updater.ErrNot, "nobody knows whether it is there")
	})
}

// TestWordsNeedTheJournal: nothing is said to be remembered that is not.
func TestWordsNeedTheJournal(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		full := errors.New("disk full")
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: broken{&backendtest.State{Disk: w.disk}, full}}}, w.rules(), discard())
		for _, v := range updater.Verbs() {
			s := updater.Saying{Verb: v, Workloads: []string{"web"}}
			if v == updater.SayPause || v == updater.SayResume {
				s.Workloads = nil
			}
			if _, err := u.Say(t.Context(), s); v != updater.SayRelease && v != updater.SayResume && v != updater.SayForget && v != updater.SayRollback && v != updater.SayCheck {
				require.ErrorIs(t, err, full, v)
			}
		}
		require.Empty(t, w.history())
	})
}

// broken is a state whose journal can be read only.
type broken struct {
	*backendtest.State
	err error
}

func (b broken) Journal() updater.Journal { return readOnly{b.State.Journal(), b.err} }

type readOnly struct {
	updater.Journal
	err error
}

func (r readOnly) Note(context.Context, updater.Entry) error { return r.err }
func (r readOnly) Remember(context.Context, map[string]func(*updater.Record)) error {
	return r.err
}

// TestCrashAtEveryStepOfARollback: whoever dies where, it ends where the person
// wanted to be, and stays there.
func TestCrashAtEveryStepOfARollback(t *testing.T) {
	died := true
	for step := 1; died; step++ {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
			w.said(true, updater.SayRollback)
			u, d := w.process(step)
			_, _ = u.Once(t.Context(), nil)
			died = d.dead
			w.once()
			w.once()
			w.holds(oldDigest, d.what)
			m := w.record("local/web")
			require.Nil(t, m.Asked, d.what)
			require.Equal(t, oldDigest, m.Committed.Digest, d.what)
			require.Len(t, m.Rejected, 1, d.what)
			require.Equal(t, updater.RolledBack, m.Rejected[0].Reason, d.what)
			require.Equal(t, newDigest, m.Rejected[0].Digest, d.what)
			require.Equal(t, updater.RolledBack, w.web().Reason, d.what)
		})
	}
}

package updater_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// stuck is a host that hangs in one kind of call, the first time only if once.
type stuck struct {
	*backendtest.Process
	mu    sync.Mutex
	in    string
	once  bool
	deaf  bool // it does not even heed that it is broken off
	freed chan struct{}
}

func (s *stuck) hang(ctx context.Context, in string) error {
	s.mu.Lock()
	hangs := s.in == in
	if hangs && s.once {
		s.in = ""
	}
	s.mu.Unlock()
	if !hangs {
		return nil
	}
	if s.deaf {
		<-s.freed
		return errors.New("let go")
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *stuck) Traces(ctx context.Context, known map[string]bool) ([]updater.Change, error) {
	if err := s.hang(ctx, "traces"); err != nil {
		return nil, err
	}
	return s.Process.Traces(ctx, known)
}

func (s *stuck) Prepare(ctx context.Context, c updater.Change, report func(updater.Progress)) error {
	if err := s.hang(ctx, "prepare"); err != nil {
		return err
	}
	return s.Process.Prepare(ctx, c, report)
}

func (s *stuck) Apply(ctx context.Context, c updater.Change) (updater.Applied, error) {
	if err := s.hang(ctx, "apply"); err != nil {
		return updater.Applied{}, err
	}
	return s.Process.Apply(ctx, c)
}

func (s *stuck) Commit(ctx context.Context, c updater.Change) error {
	if err := s.hang(ctx, "commit"); err != nil {
		return err
	}
	return s.Process.Commit(ctx, c)
}

func (s *stuck) Restore(ctx context.Context, c updater.Change) (updater.Restoration, error) {
	if err := s.hang(ctx, "restore"); err != nil {
		return updater.Restoration{}, err
	}
	return s.Process.Restore(ctx, c)
}

// on is an updater of a world whose host hangs.
func (s *stuck) on(w *world) *updater.Updater {
	s.Process = &backendtest.Process{Host: w.host, ID: "local", Step: func(string, bool) error { return nil }}
	s.freed = make(chan struct{})
	state := &backendtest.State{Disk: w.disk, Step: func(string, bool) error { return nil }}
	return updater.New([]updater.Place{{Backend: s, State: state}}, w.rules(), discard())
}

func TestAnEffectThatHangsIsBrokenOff(t *testing.T) {
	for in, want := range map[string]struct {
		behaviour backendtest.Behaviour
		outcome   updater.Outcome
		digest    string
		took      time.Duration // at least, and no more than a minute longer
	}{
		"prepare": {backendtest.Good, updater.OutcomeNone, oldDigest, 10 * time.Minute},
		"apply":   {backendtest.Good, updater.OutcomeRestored, oldDigest, 2*time.Minute + 90*time.Second},
		"commit":  {backendtest.Good, updater.OutcomeCommitted, newDigest, 2*time.Minute + 90*time.Second},
		"restore": {backendtest.Exits, updater.OutcomeRestored, oldDigest, 2*time.Minute + 90*time.Second},
	} {
		t.Run(in, func(t *testing.T) {
			inWorld(t, want.behaviour, func(t *testing.T, w *world) {
				w.settings.StopTimeout = 90 * time.Second
				began := time.Now()
				u := (&stuck{in: in, once: true}).on(w)
				rows, err := u.Once(t.Context(), nil)
				require.NoError(t, err)
				require.Equal(t, want.outcome, rows[0].Outcome, rows[0].Detail)
				w.holds(want.digest, in)
				require.GreaterOrEqual(t, time.Since(began), want.took)
				require.Less(t, time.Since(began), want.took+time.Minute)
				if want.behaviour == backendtest.Good {
					require.Empty(t, w.record("local/web").Rejected, "a host that hangs is no verdict on an image")
				}
				require.Empty(t, u.Glance().Steps)
			})
		})
	}
}

func TestALongPullIsFine(t *testing.T) {
	inWorld(t, backendtest.SlowPull, func(t *testing.T, w *world) {
		u, _ := w.process(0)
		over := make(chan []updater.Row)
		go func() {
			rows, _ := u.Once(t.Context(), nil)
			over <- rows
		}()
		for range 59 {
			time.Sleep(time.Minute)
			synctest.Wait()
			require.NotEmpty(t, u.Glance().Steps)
			require.Empty(t, updater.Overdue(u.Glance().Steps, time.Now()))
		}
		require.Equal(t, updater.OutcomeCommitted, (<-over)[0].Outcome)
	})
}

func TestWhatDoesNotHeedItsLimitIsOverdue(t *testing.T) {
	for in, limit := range map[string]time.Duration{
		"prepare": 10 * time.Minute, "apply": 2*time.Minute + 90*time.Second, "commit": 2*time.Minute + 90*time.Second,
	} {
		t.Run(in, func(t *testing.T) {
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				w.settings.StopTimeout = 90 * time.Second
				s := &stuck{in: in, once: true, deaf: true}
				u := s.on(w)
				stop := w.background(u)
				for began := time.Now(); len(overdue(u)) == 0; {
					require.Less(t, time.Since(began), limit+3*time.Minute, "nobody would notice")
					time.Sleep(time.Second)
				}
				late := overdue(u)
				require.Len(t, late, 1)
				require.Equal(t, in+" of local/web on local", late[0].String())
				require.Greater(t, time.Since(late[0].Since), limit)
				close(s.freed)
				time.Sleep(time.Second)
				require.Empty(t, overdue(u))
				stop()
			})
		})
	}
}

func overdue(u *updater.Updater) []updater.Step { return updater.Overdue(u.Glance().Steps, time.Now()) }

func TestGlance(t *testing.T) {
	t.Run("ready once the host was asked, whether it answered or not", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.host.Down(true)
			s := &stuck{in: "traces", once: true}
			u := s.on(w)
			require.False(t, u.Glance().Ready, "it has not even begun")
			stop := w.background(u)
			synctest.Wait()
			require.False(t, u.Glance().Ready, "it waits for an answer")
			require.Empty(t, overdue(u))
			time.Sleep(11 * time.Minute)
			g := u.Glance()
			require.True(t, g.Ready)
			require.Error(t, g.Places[0].Trouble)
			w.host.Down(false)
			time.Sleep(2 * time.Minute)
			require.NoError(t, u.Glance().Places[0].Trouble)
			stop()
		})
	})
	t.Run("what goes on, and what comes next", func(t *testing.T) {
		inWorld(t, backendtest.SlowPull, func(t *testing.T, w *world) {
			u, stop := w.daemon()
			time.Sleep(90 * time.Second)
			g := u.Glance()
			require.True(t, g.Ready)
			require.Len(t, g.Places, 1)
			p := g.Places[0]
			require.Equal(t, []string{"local/web"}, p.Changing)
			require.Equal(t, 1, p.Watched)
			require.WithinRange(t, p.LastPass, time.Now().Add(-time.Minute), time.Now())
			require.WithinRange(t, p.NextPass, time.Now(), time.Now().Add(time.Minute))
			require.NotEmpty(t, g.Steps)
			stop()
		})
	})
}

package updater_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// itself is a world in which updaterd runs in a container called self, which has
// an update, beside web, which has one too. In every container of updaterd that
// runs there is a daemon, which dies with it; who hands over starts a helper.
// Whatever dies otherwise is started again, after a pause.
type itself struct {
	*world
	ctx   context.Context
	pause time.Duration
	dieAt int // the step of whatever process at which that dies; 0: none

	mu        sync.Mutex
	steps     int
	died      string                        // where
	daemons   map[string]context.CancelFunc // by id of the container
	helping   bool
	finishing bool // a helper leads
	handed    int
}

// inItself plays until everything has had time to settle, and ends all.
func inItself(t *testing.T, b backendtest.Behaviour, dieAt int, pause time.Duration, then func(t *testing.T, w *itself)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &itself{world: newWorld(t, backendtest.Good), ctx: ctx, dieAt: dieAt, pause: pause, daemons: map[string]context.CancelFunc{}}
		w.run("self", b)
		w.supervise()
		time.Sleep(15 * time.Minute)
		then(t, w)
		cancel()
		synctest.Wait()
	})
}

// alive is a process that may die; its id is that of its container, "" for a
// helper.
type alive struct {
	*itself
	id   string
	end  context.CancelFunc
	dead bool
}

func (w *itself) begin(id string) (*updater.Updater, *alive, context.Context) {
	ctx, cancel := context.WithCancel(w.ctx)
	a := &alive{itself: w, id: id, end: cancel}
	backend := &backendtest.Process{Host: w.host, ID: "local", Step: a.step, Self: id}
	return updater.New([]updater.Place{{Backend: backend, State: a}}, w.rules(), discard()), a, ctx
}

// step dies when its time has come, and looks after the rest of the host.
func (a *alive) step(what string, done bool) error {
	a.mu.Lock()
	if a.id != "" && a.daemons[a.id] == nil {
		a.dead = true // its container was stopped
	}
	a.steps++
	if a.steps == a.dieAt {
		a.dead, a.died = true, fmt.Sprintf("%q of %q (done: %v)", what, a.id, done)
	}
	dead := a.dead
	if !dead && what == "hand over" && done {
		a.handed++
		a.help()
	}
	a.mu.Unlock()
	if dead {
		a.end()
		runtime.Goexit()
	}
	if done {
		a.supervise()
		a.checkAlone(what)
	}
	return nil
}

// State of a process: Journal and Lead of the disk, with a lead that says when it
// is held by a helper.
func (a *alive) Journal() updater.Journal {
	return &backendtest.State{Disk: a.disk, Step: a.step}
}

func (a *alive) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	err := (&backendtest.State{Disk: a.disk, Step: a.step}).Lead(ctx, func(ctx context.Context, j updater.Journal) error {
		if a.id == "" {
			a.setFinishing(true)
			defer a.setFinishing(false)
		}
		return do(ctx, j)
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.finishing && errors.Is(err, updater.ErrLed) {
		return fmt.Errorf("%w: %w", err, updater.ErrFinishing)
	}
	return err
}

func (w *itself) setFinishing(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.finishing = on
}

// supervise starts and kills daemons as their containers are started and stopped.
func (w *itself) supervise() {
	runs := map[string]bool{}
	for _, c := range w.host.Containers() {
		if c.Running && strings.HasPrefix(c.Name, "self") {
			runs[c.ID] = true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, kill := range w.daemons {
		if !runs[id] {
			delete(w.daemons, id)
			kill()
		}
	}
	for id := range runs {
		if w.daemons[id] == nil {
			ctx, kill := context.WithCancel(w.ctx)
			w.daemons[id] = kill
			go w.keep(ctx, func() bool {
				u, a, own := w.begin(id)
				defer context.AfterFunc(ctx, a.end)()
				if err := u.Run(own); err != nil && ctx.Err() == nil && !a.dead && !errors.Is(err, updater.ErrLed) {
					w.t.Errorf("daemon: %v", err)
				}
				return false
			})
		}
	}
}

// help starts a helper for the change that is handed over, unless there is one.
func (w *itself) help() {
	if w.helping {
		return
	}
	open, err := (&backendtest.State{Disk: w.disk}).Open(w.ctx)
	require.NoError(w.t, err)
	i := slices.IndexFunc(open, func(c updater.Change) bool { return c.Alone })
	require.GreaterOrEqual(w.t, i, 0)
	w.helping = true
	go w.keep(w.ctx, func() bool {
		u, a, ctx := w.begin("")
		over := false
		func() { // a process that dies ends the goroutine
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				err := u.Finish(ctx, open[i].ID)
				over = err == nil && !a.dead
			}()
			<-ended
		}()
		if over {
			w.mu.Lock()
			w.helping = false
			w.mu.Unlock()
		}
		return over
	})
}

// keep runs a program again and again until it is content.
func (w *itself) keep(ctx context.Context, program func() bool) {
	for ctx.Err() == nil && !program() {
		select {
		case <-time.After(w.pause):
		case <-ctx.Done():
		}
	}
}

// checkAlone: while updaterd itself is changed, nothing else is.
func (w *itself) checkAlone(when string) {
	open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
	require.NoError(w.t, err)
	if slices.ContainsFunc(open, func(c updater.Change) bool { return c.Alone }) {
		require.Len(w.t, open, 1, when)
	}
}

// settled checks that there is one updaterd, on the image given, which went on
// with the rest.
func (w *itself) settled(digest string) {
	w.t.Helper()
	when := fmt.Sprintf("died at %d: %s", w.dieAt, w.died)
	all := w.host.Containers()
	require.Len(w.t, all, 2, "%s: %+v", when, all)
	for i, name := range []string{"self", "web"} {
		require.Equal(w.t, name, all[i].Name, when)
		require.True(w.t, all[i].Running, "%s: %s", when, name)
		require.Equal(w.t, "always", all[i].Restart, "%s: %s", when, name)
	}
	require.Equal(w.t, digest, all[0].Digest, when)
	require.Equal(w.t, newDigest, all[1].Digest, "%s: the rest of the pass", when)
	w.mu.Lock()
	defer w.mu.Unlock()
	require.False(w.t, w.helping, when)
	require.Len(w.t, w.daemons, 1, when)
	open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
	require.NoError(w.t, err)
	require.Empty(w.t, open, when)
}

// TestUpdaterdUpdatesItself: the daemon hands over, a helper goes on, and the
// daemon that is there afterwards goes on with everything.
func TestUpdaterdUpdatesItself(t *testing.T) {
	for b, want := range map[backendtest.Behaviour]string{
		backendtest.Good: newOf("self"), backendtest.Unhealthy: oldDigest, backendtest.CannotStart: oldDigest,
	} {
		t.Run(string(b), func(t *testing.T) {
			inItself(t, b, 0, time.Second, func(t *testing.T, w *itself) {
				w.settled(want)
				require.Equal(t, 1, w.handed)
				require.Equal(t, "local/web", w.notified.all()[0].Workload, "the rest of the pass goes first")
				require.Len(t, w.notified.all(), 2)
				if b != backendtest.Good {
					require.Len(t, w.record("local/self").Rejected, 1)
				}
			})
		})
	}
}

// TestCrashOfUpdaterdItselfAtEveryStep: whichever process dies, and whoever comes
// first afterwards.
func TestCrashOfUpdaterdItselfAtEveryStep(t *testing.T) {
	for b, want := range map[backendtest.Behaviour]string{backendtest.Good: newOf("self"), backendtest.Unhealthy: oldDigest, backendtest.CannotStart: oldDigest} {
		for _, pause := range []time.Duration{50 * time.Millisecond, time.Second, 5 * time.Second} {
			t.Run(fmt.Sprintf("%s, started again after %s", b, pause), func(t *testing.T) {
				t.Parallel()
				n := 1
				for more := true; more; n++ {
					inItself(t, b, n, pause, func(t *testing.T, w *itself) {
						w.settled(want)
						more = w.died != ""
					})
				}
				require.Greater(t, n, 30)
			})
		}
	}
}

// inside is an updater whose process runs in the container called self.
func (w *world) inside() *updater.Updater {
	backend := &backendtest.Process{Host: w.host, ID: "local", Self: w.host.ID("self"), Step: func(what string, done bool) error {
		if w.on != nil {
			w.on(what, done)
		}
		return nil
	}}
	return updater.New([]updater.Place{{Backend: backend, State: &backendtest.State{Disk: w.disk}}}, w.rules(), discard())
}

// background runs an updater until the returned function is called.
func (w *world) background(u *updater.Updater) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(w.t, <-ended)
	}
}

func TestAlone(t *testing.T) {
	digest := func(w *world, name string) string {
		c, _ := w.find(name)
		return c.Digest
	}
	t.Run("it waits for what is under way, and holds up nobody meanwhile", func(t *testing.T) {
		inWorld(t, backendtest.Hangs, func(t *testing.T, w *world) {
			w.settings.Health.Timeout = 20 * time.Minute
			w.run("late", "")
			w.run("self", "")
			var handed atomic.Bool
			w.on = func(what string, done bool) {
				if what == "hand over" {
					handed.Store(true)
				}
			}
			stop := w.background(w.inside())
			defer stop()
			time.Sleep(90 * time.Second) // web is being judged
			w.host.Image(newOf("self"), backendtest.Good)
			w.registry.Publish("self:1", newOf("self"))
			time.Sleep(90 * time.Second) // self waits
			w.host.Image(newOf("late"), backendtest.Good)
			w.registry.Publish("late:1", newOf("late"))
			time.Sleep(5 * time.Minute)
			require.Equal(t, newOf("late"), digest(w, "late"))
			require.False(t, handed.Load(), "web is still being judged")
			time.Sleep(20 * time.Minute)
			require.True(t, handed.Load())
		})
	})
	t.Run("nothing begins while it is under way", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.registry.Publish("web:1", oldDigest)
			w.run("self", backendtest.SlowPull)
			stop := w.background(w.inside())
			defer stop()
			time.Sleep(time.Minute)
			w.registry.Publish("web:1", newDigest)
			time.Sleep(58 * time.Minute)
			require.Equal(t, oldDigest, digest(w, "web"))
		})
	})
	t.Run("--once leaves it, and check does not", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("self", backendtest.Good)
			rows, err := w.inside().Check(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.Update, w.row(rows, "local/self").Reason)
			rows, err = w.inside().Once(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.Waiting, w.row(rows, "local/self").Reason)
			require.Equal(t, updater.OutcomeNone, w.row(rows, "local/self").Outcome)
			require.Contains(t, w.row(rows, "local/self").Detail, "when it runs as a daemon")
			require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/web").Outcome)
			require.Equal(t, oldDigest, digest(w, "self"))
		})
	})
	t.Run("what it lives in, and what lives in it, moves with it", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("vpn", backendtest.Good)
			w.run("self", "", "vpn")
			rows, err := w.inside().Once(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.Waiting, w.row(rows, "local/vpn").Reason)
			require.Equal(t, oldDigest, digest(w, "vpn"))
		})
	})
	t.Run("what depends on it waits for it, and it does not wait for that", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("self", backendtest.Good)
			w.run("vpn", backendtest.CannotPull)
			w.host.Remove("self")
			w.host.Run("self", "self:1", oldDigest, "always", "vpn")
			rules := w.settingsOf(map[string]func(*updater.Settings){"web": func(s *updater.Settings) { s.DependsOn = []string{"self"} }})
			u := w.inside()
			u.Reload(rules)
			stop := w.background(u)
			time.Sleep(30 * time.Second)
			require.Equal(t, []updater.Event{updater.EventRefused, updater.EventRefused}, w.history())
			stop()
		})
	})
}

// handedOver plays in a world in which a change of self was handed over, whose id
// is given.
func handedOver(t *testing.T, play func(t *testing.T, w *world, id string)) {
	t.Helper()
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.registry.Publish("web:1", oldDigest)
		w.run("self", backendtest.Good)
		ctx, cancel := context.WithCancel(t.Context())
		w.on = func(what string, done bool) {
			if what == "hand over" && done {
				cancel()
			}
		}
		require.NoError(t, w.inside().Run(ctx))
		w.on = nil
		open, err := (&backendtest.State{Disk: w.disk}).Open(t.Context())
		require.NoError(t, err)
		require.Len(t, open, 1)
		require.Equal(t, updater.Applying, open[0].Phase)
		play(t, w, open[0].ID)
	})
}

func TestFinish(t *testing.T) {
	updated := func(t *testing.T, w *world) {
		self, _ := w.find("self")
		require.Equal(t, newOf("self"), self.Digest)
		require.Len(t, w.host.Containers(), 2)
		open, err := (&backendtest.State{Disk: w.disk}).Open(t.Context())
		require.NoError(t, err)
		require.Empty(t, open)
	}
	t.Run("it takes that change to its end, and begins nothing", func(t *testing.T) {
		handedOver(t, func(t *testing.T, w *world, id string) {
			w.registry.Publish("web:1", newDigest)
			journal := &backendtest.State{Disk: w.disk}
			other := updater.Change{ID: "other", Backend: "local", Unit: "local/web", Phase: updater.Judging, Parts: []updater.Part{{Workload: "local/web", Replace: true}}}
			require.NoError(t, journal.Save(t.Context(), other))
			u, _ := w.process(0)
			require.NoError(t, u.Finish(t.Context(), id))
			open, err := journal.Open(t.Context())
			require.NoError(t, err)
			require.Equal(t, []updater.Change{other}, open, "what else is open is for the daemon")
			other.Phase = updater.Superseded
			require.NoError(t, journal.Save(t.Context(), other))
			updated(t, w)
			web, _ := w.find("web")
			require.Equal(t, oldDigest, web.Digest)
			require.Equal(t, []updater.Event{updater.EventUpdated}, w.notified.events())
			require.NoError(t, u.Finish(t.Context(), id), "it is over")
			require.NoError(t, u.Finish(t.Context(), "nobody's"))
		})
	})
	t.Run("it waits until it may lead", func(t *testing.T) {
		handedOver(t, func(t *testing.T, w *world, id string) {
			go func() {
				_ = (&backendtest.State{Disk: w.disk}).Lead(t.Context(), func(context.Context, updater.Journal) error {
					time.Sleep(time.Hour)
					return nil
				})
			}()
			synctest.Wait()
			began := time.Now()
			u, _ := w.process(0)
			require.NoError(t, u.Finish(t.Context(), id))
			require.Greater(t, time.Since(began), time.Hour)
			updated(t, w)
		})
	})
	t.Run("it is content when whoever leads has ended the change", func(t *testing.T) {
		handedOver(t, func(t *testing.T, w *world, id string) {
			_, stop := w.daemon() // in a container of its own
			defer stop()
			synctest.Wait()
			u, _ := w.process(0)
			began := time.Now()
			require.NoError(t, u.Finish(t.Context(), id))
			require.Less(t, time.Since(began), time.Minute)
			updated(t, w)
		})
	})
	t.Run("it is to be called again when it was stopped", func(t *testing.T) {
		handedOver(t, func(t *testing.T, w *world, id string) {
			u, _ := w.process(0)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			require.ErrorContains(t, u.Finish(ctx, id), "was left open")
			require.NoError(t, u.Finish(t.Context(), id))
			updated(t, w)
		})
	})
	t.Run("it finds a change whose record was lost", func(t *testing.T) {
		handedOver(t, func(t *testing.T, w *world, id string) {
			w.disk.Lose()
			u, _ := w.process(0)
			require.NoError(t, u.Finish(t.Context(), id))
			self, _ := w.find("self")
			require.Equal(t, oldDigest, self.Digest)
			require.True(t, self.Running)
			require.Len(t, w.host.Containers(), 2)
		})
	})
	t.Run("an engine that cannot be asked is no end", func(t *testing.T) {
		handedOver(t, func(t *testing.T, w *world, id string) {
			w.disk.Lose()
			w.host.Down(true)
			u, _ := w.process(0)
			require.Error(t, u.Finish(t.Context(), id))
		})
	})
}

// finished is a state that another process leads, to finish the update of updaterd
// itself, until a time.
type finished struct {
	*backendtest.State
	until time.Time
}

func (f finished) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	if time.Now().Before(f.until) {
		return fmt.Errorf("%w: pid 7: %w", updater.ErrLed, updater.ErrFinishing)
	}
	return f.State.Lead(ctx, do)
}

func TestTheDaemonStandsByWhileAnotherFinishes(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		state := finished{&backendtest.State{Disk: w.disk}, time.Now().Add(time.Hour)}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: state}}, w.rules(), discard())
		stop := w.background(u)
		time.Sleep(59 * time.Minute)
		w.told()
		time.Sleep(2 * time.Minute)
		w.told(updater.EventUpdated)
		stop()

		_, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		state.until = time.Now().Add(time.Hour)
		u = updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: state}}, w.rules(), discard())
		_, err = u.Once(t.Context(), nil)
		require.ErrorIs(t, err, updater.ErrLed, "a person is told at once")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, u.Run(ctx), "it can be stopped meanwhile")
	})
}

// TestWhatIsLeftOpenComesBeforeUpdaterdItself, once both are taken up.
func TestWhatIsLeftOpenComesBeforeUpdaterdItself(t *testing.T) {
	handedOver(t, func(t *testing.T, w *world, id string) {
		w.registry.Publish("web:1", newDigest)
		// A change of web that is being judged, from another journal.
		elsewhere := &backendtest.State{Disk: &backendtest.Disk{}}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: elsewhere}}, w.rules(), discard())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := u.Once(ctx, []string{"web"})
		require.NoError(t, err)
		open, err := elsewhere.Open(t.Context())
		require.NoError(t, err)
		require.Len(t, open, 1)
		journal := &backendtest.State{Disk: w.disk}
		require.NoError(t, journal.Save(t.Context(), open[0]))

		handed := false
		w.on = func(what string, _ bool) {
			if what == "hand over" {
				handed = true
				open, err := journal.Open(t.Context())
				require.NoError(t, err)
				require.Len(t, open, 1, "only updaterd itself")
			}
		}
		stop := w.background(w.inside())
		time.Sleep(30 * time.Second)
		stop()
		require.True(t, handed)
		web, _ := w.find("web")
		require.Equal(t, newDigest, web.Digest)
	})
}

package updater

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUnknownWorkload: a person named a workload that is not watched.
var ErrUnknownWorkload = errors.New("unknown workload")

// Place is a backend and the journal of what is done there.
type Place struct {
	Backend Backend
	State   State
}

// Rules are what a person may change while updaterd runs. A pass uses those
// that were in force when it began.
type Rules struct {
	// Settings are the effective settings of a workload. Its error says what
	// is wrong with those written on it.
	Settings func(Workload) (Settings, error)
	Schedule Schedule
	// Jitter is the longest random pause before a scheduled pass.
	Jitter time.Duration
	// Parallel is how many independent changes may be under way at once in a
	// backend.
	Parallel int
	Registry Registry
	Notifier Notifier
	// Observer may be nil.
	Observer Observer
}

// Schedule says when passes begin. robfig/cron's schedules satisfy it.
type Schedule interface {
	Next(time.Time) time.Time
}

// Updater keeps the workloads of its places up to date.
type Updater struct {
	places []Place
	log    *slog.Logger

	steps steps  // under way
	calls []call // by place

	mu     sync.Mutex
	rules  Rules
	reload chan struct{} // closed when rules are replaced
	works  []*work       // by place: what goes on there while this process leads; nil else
	waits  []bool        // by place: this process waits for the lead, as a standby does
	aside  bool          // another process finishes the update of updaterd itself
}

// New returns an Updater. It starts nothing.
func New(places []Place, rules Rules, log *slog.Logger) *Updater {
	u := &Updater{places: places, rules: rules, log: log, reload: make(chan struct{}), works: make([]*work, len(places)), waits: make([]bool, len(places)), calls: make([]call, len(places))}
	for i := range u.calls {
		u.calls[i].rung = make(chan struct{}, 1)
	}
	return u
}

// Reload replaces the rules: passes that begin later go by them, a change
// under way keeps the settings it was decided with.
func (u *Updater) Reload(r Rules) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rules = r
	close(u.reload)
	u.reload = make(chan struct{})
}

// current is what is in force, and a channel that closes when it no longer is.
func (u *Updater) current() (Rules, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.rules, u.reload
}

// Row is what a pass says of one workload.
type Row struct {
	Backend  string `json:"backend"`
	Workload string `json:"workload"`
	// Image is as the workload writes it, Digest what runs, nil when unknown.
	Image  string  `json:"image"`
	Digest *string `json:"digest"`
	Policy string  `json:"policy"`
	// Decision is "update" or "none".
	Decision  string        `json:"decision"`
	Candidate *RowCandidate `json:"candidate"`
	Reason    Reason        `json:"reason"`
	Detail    string        `json:"detail"`
	// Until is when the reason passes by itself, where that is known.
	Until *time.Time `json:"until,omitempty"`
	// Hold is what keeps it as it is, whatever the reason.
	Hold *Hold `json:"hold,omitempty"`
	// Outcome is empty in a check.
	Outcome Outcome `json:"outcome,omitempty"`

	trouble  bool   // a change of it cannot end, or its image was found bad just now
	manifest string // of the candidate, for this platform; "" when unknown
}

// RowCandidate is the image that the policy names.
type RowCandidate struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
}

// Outcome is what became of a decision.
type Outcome string

// The outcomes.
const (
	OutcomeNone       Outcome = "none"       // nothing attempted, or refused before anything was disturbed
	OutcomeCommitted  Outcome = "committed"  // healthy on the new image
	OutcomeRestored   Outcome = "restored"   // the original is back
	OutcomeFailed     Outcome = "failed"     // attempted, and neither
	OutcomeSuperseded Outcome = "superseded" // somebody else changed it meanwhile
	OutcomeOpen       Outcome = "open"       // interrupted; the next start goes on with it
)

// Trouble reports whether a row is one that a script should stop at: something
// failed, was restored, could not be asked or was interrupted.
func (r Row) Trouble() bool {
	switch r.Outcome {
	case OutcomeRestored, OutcomeFailed, OutcomeOpen:
		return true
	case OutcomeCommitted:
		return false
	}
	switch r.Reason {
	case BackendUnavailable, RegistryUnavailable, Unauthorized, NotFound, RateLimited, TagListIncomplete,
		InvalidSettings, Surroundings:
		return true
	}
	return r.trouble
}

// takeOverPause is the pause before a lead that another process took over is
// asked for again.
const takeOverPause = 2 * time.Second

// Run keeps everything up to date until ctx ends, then finishes what must be
// finished and returns nil. It returns an error only if a place is led by
// somebody else whom its state does not wait for, or its state cannot be used. It
// stands by while another process finishes the update of updaterd itself, and where
// it has lost the lead.
func (u *Updater) Run(ctx context.Context) error {
	for standing := false; ; standing = true {
		err := u.lead(ctx, true, u.passes)
		if !errors.Is(err, ErrHandedOver) && !errors.Is(err, ErrFinishing) {
			return err
		}
		u.standBy()
		if !standing {
			u.log.Info("standing by while another process finishes the update of updaterd itself", "reason", err)
		}
		if !sleep(ctx, takeOverPause) {
			return nil
		}
	}
}

// passes makes passes through one place, as the schedule says.
func (u *Updater) passes(w *work, stop context.Context) {
	rules, reloaded := u.current()
	var last time.Time // when the last pass was over
	next := upcoming(rules, last, time.Now())
	heed := time.NewTicker(heedEvery)
	defer heed.Stop()
	for {
		w.recover(stop, "")
		w.comes(next)
		if stop.Err() == nil && !time.Now().Before(next) {
			rules.Registry.NewPass()
			w.pass(stop, rules, nil)
			last = time.Now()
			next = upcoming(rules, last, last)
			w.comes(next)
			u.log.Debug("pass comes next", "backend", w.backend.Name(), "at", next)
		}
		t := time.NewTimer(time.Until(next))
		for idle := true; idle; {
			idle = false
			select {
			case <-stop.Done():
				t.Stop()
				w.wait()
				return
			case <-t.C:
			case <-w.call.rung:
				names, all := w.call.take()
				if all {
					next = time.Now()
					break
				}
				rules.Registry.NewPass()
				w.pass(stop, rules, names)
			case <-heed.C:
				names := w.unheard(stop)
				if idle = len(names) == 0; idle {
					break
				}
				rules.Registry.NewPass()
				w.pass(stop, rules, names)
			case <-reloaded:
				rules, reloaded = u.current()
				next = upcoming(rules, last, time.Now())
			}
		}
		t.Stop()
	}
}

// heedEvery is how soon a word is acted on that another process wrote: one that stands
// by, or a command. What is asked for at once would else wait for the next pass, and
// lapse.
const heedEvery = 30 * time.Second

// Finish takes the open change with this id to its end, in place of a process
// that handed it over or of one that was killed. It waits until it may lead, and
// returns nil when the change is over or there is none; whoever calls it is to
// call it again after an error.
func (u *Updater) Finish(ctx context.Context, id string) error {
	var unknown error // whether it is open somewhere
	for _, place := range u.places {
		open, err := place.open(ctx, id)
		if open {
			return u.finish(ctx, place, id)
		}
		unknown = errors.Join(unknown, err)
	}
	return unknown
}

func (u *Updater) finish(ctx context.Context, place Place, id string) error {
	for {
		rules, _ := u.current()
		led := New([]Place{place}, rules, u.log).lead(ctx, false, func(w *work, stop context.Context) {
			w.recover(stop, id)
			w.wait()
		})
		if led != nil && !errors.Is(led, ErrLed) {
			return led
		}
		// Whoever leads may be at it, and keep the lead when it is over.
		open, err := place.open(ctx, id)
		switch {
		case err != nil || !open:
			return err
		case led == nil:
			return fmt.Errorf("change %s was left open", id)
		case !sleep(ctx, finishPause):
			return led
		}
	}
}

// open reports whether a change is not over here: by the journal, or by what it
// left on the backend if its record was lost.
func (p Place) open(ctx context.Context, id string) (bool, error) {
	open, err := p.State.Journal().Open(ctx)
	known := map[string]bool{}
	for _, c := range open {
		known[c.ID] = true
	}
	if known[id] {
		return true, nil
	}
	traces, lost := p.Backend.Traces(ctx, known)
	if slices.ContainsFunc(traces, func(c Change) bool { return c.ID == id }) {
		return true, nil
	}
	return false, errors.Join(err, lost)
}

// finishPause is short: whoever handed over lets go at once.
const finishPause = 100 * time.Millisecond

// upcoming is when the next pass begins, given when the last one was over (zero:
// none yet) and when the question is asked. An interval counts from the last
// pass, so that reloading often does not put passes off for ever, and the first
// one comes at once; a time of day is waited for.
func upcoming(r Rules, last, now time.Time) time.Time {
	next := r.Schedule.Next(now)
	// What is counted from a second later ends a second later in an interval.
	if shift := r.Schedule.Next(now.Add(time.Second)).Sub(next); shift < time.Second/2 || shift > 3*time.Second/2 {
		return next.Add(jitter(r.Jitter))
	}
	if last.IsZero() {
		return now
	}
	return r.Schedule.Next(last).Add(jitter(r.Jitter))
}

func jitter(most time.Duration) time.Duration {
	if most <= 0 {
		return 0
	}
	return rand.N(most)
}

// Once finishes open changes, makes one pass, carries every change to its end
// and returns a row per watched workload, or per workload named.
func (u *Updater) Once(ctx context.Context, names []string) ([]Row, error) {
	rules, _ := u.current()
	rules.Registry.NewPass()
	if len(names) > 0 {
		// A name that is not watched is a mistake in the call: nothing is to
		// happen then, not even to the other names.
		if _, err := u.check(ctx, rules, names); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	rows := []Row{}
	err := u.lead(ctx, false, func(w *work, stop context.Context) {
		w.once = true // before anything is begun
		w.recover(stop, "")
		w.wait()
		p := w.pass(stop, rules, names)
		w.wait()
		mu.Lock()
		defer mu.Unlock()
		rows = append(rows, p.rows(names)...)
	})
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Workload, b.Workload) })
	return rows, err
}

// Check looks and decides, and changes nothing, not even the journal.
func (u *Updater) Check(ctx context.Context, names []string) ([]Row, error) {
	rules, _ := u.current()
	rules.Registry.NewPass()
	return u.check(ctx, rules, names)
}

func (u *Updater) check(ctx context.Context, rules Rules, names []string) ([]Row, error) {
	passes := make([]*pass, len(u.places))
	var wg sync.WaitGroup
	for i, place := range u.places {
		wg.Go(func() {
			w := newWork(place, place.State.Journal(), rules, u.log, &u.steps)
			passes[i] = w.look(ctx, rules, names)
		})
	}
	wg.Wait()
	rows := []Row{}
	found := map[string]bool{}
	unasked := false
	for _, p := range passes {
		rows = append(rows, p.rows(names)...)
		unasked = unasked || p.unavailable != nil
		for _, n := range names {
			found[n] = found[n] || p.found[n]
		}
	}
	slices.SortFunc(rows, func(a, b Row) int { return strings.Compare(a.Workload, b.Workload) })
	var wrong []error
	for _, n := range names {
		if !found[n] && !unasked {
			wrong = append(wrong, unknown(n))
		}
	}
	return rows, errors.Join(wrong...)
}

// names reports whether a name that a person gave means the workload id of a
// backend: its id, or what comes after the backend's name.
func names(name, backend, id string) bool {
	return name == id || backend+"/"+name == id
}

// lead calls do for every place at once, each while this process leads it, and
// returns when all have returned. A place that cannot be led ends them all, and
// so does a change that another process goes on with: the error is ErrHandedOver
// then. With again, a place whose lead was lost is led anew, as soon as it may be.
func (u *Updater) lead(ctx context.Context, again bool, do func(w *work, stop context.Context)) error {
	stop, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var together crowd
	errs := make([]error, len(u.places))
	var wg sync.WaitGroup
	for i, place := range u.places {
		wg.Go(func() {
			for {
				errs[i] = u.leadPlace(stop, i, &together, func() { cancel(ErrHandedOver) }, do)
				if !again || !errors.Is(errs[i], ErrLost) || stop.Err() != nil {
					break
				}
				u.show(i, nil)
				u.log.Warn("lead lost, standing by", "backend", place.Backend.Name(), "err", errs[i])
			}
			if errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	if cause := context.Cause(stop); errors.Is(cause, ErrHandedOver) {
		errs = append(errs, cause)
	}
	return errors.Join(errs...)
}

// standbyAfter is how long a lead takes to be had at most when nobody has it.
const standbyAfter = 5 * time.Second

// leadPlace calls do for one place while this process leads it; nil when stop
// ended before it did.
func (u *Updater) leadPlace(stop context.Context, i int, together *crowd, leave func(), do func(w *work, stop context.Context)) error {
	place, led := u.places[i], false
	waits := time.AfterFunc(standbyAfter, func() { u.waiting(i) })
	defer waits.Stop()
	err := place.State.Lead(stop, func(lead context.Context, j Journal) error {
		led = true
		rules, _ := u.current()
		w := newWork(place, j, rules, u.log, &u.steps)
		u.show(i, w)
		w.call, w.lead, w.crowd, w.leave = &u.calls[i], lead, together, leave
		end, done := both(lead, stop)
		defer done()
		do(w, end)
		return nil
	})
	if !led && stop.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

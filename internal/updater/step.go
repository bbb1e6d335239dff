package updater

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// What each call to a backend or its journal may take. A call that takes longer
// is broken off, and its error says so; one that does not heed even that is
// overdue, and a watchdog is to end the process: the journal makes that safe.
const (
	// effectLimit is what an effect may take for every part, besides the time
	// that the part itself is given to stop.
	effectLimit = 2 * time.Minute
	// quietLimit is how long Prepare may go without a report. A long pull is
	// fine as long as it moves; the pull itself gives up sooner than this.
	quietLimit = 10 * time.Minute
	// lookLimit is for a call that looks at everything, or remembers
	// everything: thousands of workloads on a slow machine.
	lookLimit = 10 * time.Minute
	// partLimit is for a look at one part, commandLimit for what is around a
	// command: finding the container, starting it, taking away what it left.
	partLimit, commandLimit = 2 * time.Minute, 5 * time.Minute
	// overdueAfter is what a call that was broken off is given to tidy up.
	overdueAfter = time.Minute
)

// Step is a call to a backend, or to its journal, that is under way.
type Step struct {
	Backend string
	// Workload is the unit of the change that it is for; "" where it is for none.
	Workload string
	What     string // "apply", "look", ...
	Since    time.Time
	// Until is when it must be over, broken off or not.
	Until time.Time
}

func (s Step) String() string {
	return strings.TrimSuffix(s.What+" of "+s.Workload, " of ") + " on " + s.Backend
}

// Overdue are the steps that must be over by now and are not: they hang, in a
// way that their own limits do not end.
func Overdue(steps []Step, now time.Time) []Step {
	return slices.DeleteFunc(slices.Clone(steps), func(s Step) bool { return !now.After(s.Until) })
}

// steps are those under way in a process. The zero steps is ready for use, from
// several goroutines.
type steps struct {
	mu      sync.Mutex
	running map[*Step]struct{}
}

// begin notes a step that may take up to limit from now. more gives it as much
// again from when it is called; end takes it out.
func (s *steps) begin(backend, workload, what string, limit time.Duration) (more, end func()) {
	now := time.Now()
	step := &Step{Backend: backend, Workload: workload, What: what, Since: now, Until: now.Add(limit + overdueAfter)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.running = map[*Step]struct{}{}
	}
	s.running[step] = struct{}{}
	more = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		step.Until = time.Now().Add(limit + overdueAfter)
	}
	end = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.running, step)
	}
	return more, end
}

// underWay is a copy, oldest first.
func (s *steps) underWay() []Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Step
	for step := range s.running {
		all = append(all, *step)
	}
	slices.SortFunc(all, func(a, b Step) int { return a.Since.Compare(b.Since) })
	return all
}

// call makes one step, and breaks it off at its limit.
func (s *steps) call(ctx context.Context, backend, workload, what string, limit time.Duration, do func(context.Context) error) error {
	_, end := s.begin(backend, workload, what, limit)
	defer end()
	slow := fmt.Errorf("it took longer than %s and was broken off", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, slow)
	defer cancel()
	return because(ctx, slow, do(ctx))
}

// because puts into words that an error comes of a limit.
func because(ctx context.Context, slow, err error) error {
	if err == nil || !errors.Is(context.Cause(ctx), slow) {
		return err
	}
	return fmt.Errorf("%w: %w", slow, err)
}

// effect is what Apply, Commit and Restore of a change may take.
func effect(c Change) time.Duration {
	limit := effectLimit * time.Duration(max(1, len(c.Parts)))
	for _, p := range c.Parts {
		limit += p.stopping()
	}
	return limit
}

// command is what running a command may take, given its own timeout. One that
// has none may take a day.
func command(timeout time.Duration) time.Duration {
	return cmp.Or(timeout, 24*time.Hour) + commandLimit
}

// bounded is a backend each of whose calls has an end.
type bounded struct {
	Backend
	steps *steps
}

func (b bounded) call(ctx context.Context, workload, what string, limit time.Duration, do func(context.Context) error) error {
	return b.steps.call(ctx, b.Name(), workload, what, limit, do)
}

func (b bounded) Workloads(ctx context.Context) (all []Workload, err error) {
	err = b.call(ctx, "", "look", lookLimit, func(ctx context.Context) error {
		all, err = b.Backend.Workloads(ctx)
		return err
	})
	return all, err
}

func (b bounded) Traces(ctx context.Context, known map[string]bool) (found []Change, err error) {
	err = b.call(ctx, "", "look for traces", lookLimit, func(ctx context.Context) error {
		found, err = b.Backend.Traces(ctx, known)
		return err
	})
	return found, err
}

func (b bounded) Plan(ctx context.Context, c *Change, join func(string) (Settings, error)) error {
	return b.call(ctx, c.Unit, "plan", lookLimit, func(ctx context.Context) error {
		return b.Backend.Plan(ctx, c, join)
	})
}

func (b bounded) Prepare(ctx context.Context, c Change, report func(Progress)) error {
	more, end := b.steps.begin(b.Name(), c.Unit, "prepare", quietLimit)
	defer end()
	slow := fmt.Errorf("nothing moved for %s, so it was broken off", quietLimit)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(quietLimit, func() { cancel(slow) })
	defer quiet.Stop()
	err := b.Backend.Prepare(ctx, c, func(p Progress) {
		quiet.Reset(quietLimit)
		more()
		report(p)
	})
	return because(ctx, slow, err)
}

func (b bounded) Apply(ctx context.Context, c Change) (a Applied, err error) {
	err = b.call(ctx, c.Unit, "apply", effect(c), func(ctx context.Context) error {
		a, err = b.Backend.Apply(ctx, c)
		return err
	})
	return a, err
}

func (b bounded) Observe(ctx context.Context, c Change, part int, s Side) (o Observation, err error) {
	err = b.call(ctx, c.Unit, "observe", partLimit, func(ctx context.Context) error {
		o, err = b.Backend.Observe(ctx, c, part, s)
		return err
	})
	return o, err
}

func (b bounded) Exec(ctx context.Context, c Change, part int, s Side, h Hook) (r Result, err error) {
	err = b.call(ctx, c.Unit, "run a command", command(h.Timeout), func(ctx context.Context) error {
		r, err = b.Backend.Exec(ctx, c, part, s, h)
		return err
	})
	return r, err
}

func (b bounded) Test(ctx context.Context, c Change, part int) (r Result, err error) {
	err = b.call(ctx, c.Unit, "test", command(c.Parts[part].Settings.Health.Test.Timeout), func(ctx context.Context) error {
		r, err = b.Backend.Test(ctx, c, part)
		return err
	})
	return r, err
}

func (b bounded) Commit(ctx context.Context, c Change) error {
	return b.call(ctx, c.Unit, "commit", effect(c), func(ctx context.Context) error {
		return b.Backend.Commit(ctx, c)
	})
}

func (b bounded) Restore(ctx context.Context, c Change) (r Restoration, err error) {
	err = b.call(ctx, c.Unit, "restore", effect(c), func(ctx context.Context) error {
		r, err = b.Backend.Restore(ctx, c)
		return err
	})
	return r, err
}

// boundedJournal is a journal each of whose calls has an end.
type boundedJournal struct {
	Journal
	backend string
	steps   *steps
}

func (j boundedJournal) call(ctx context.Context, workload, what string, do func(context.Context) error) error {
	return j.steps.call(ctx, j.backend, workload, what, lookLimit, do)
}

func (j boundedJournal) Open(ctx context.Context) (open []Change, err error) {
	err = j.call(ctx, "", "read the journal", func(ctx context.Context) error {
		open, err = j.Journal.Open(ctx)
		return err
	})
	return open, err
}

func (j boundedJournal) Save(ctx context.Context, c Change) error {
	return j.call(ctx, c.Unit, "journal", func(ctx context.Context) error { return j.Journal.Save(ctx, c) })
}

func (j boundedJournal) Recall(ctx context.Context) (all map[string]Record, err error) {
	err = j.call(ctx, "", "read the memory", func(ctx context.Context) error {
		all, err = j.Journal.Recall(ctx)
		return err
	})
	return all, err
}

func (j boundedJournal) Remember(ctx context.Context, edits map[string]func(*Record)) error {
	return j.call(ctx, "", "remember", func(ctx context.Context) error { return j.Journal.Remember(ctx, edits) })
}

func (j boundedJournal) Note(ctx context.Context, e Entry) error {
	return j.call(ctx, "", "note", func(ctx context.Context) error { return j.Journal.Note(ctx, e) })
}

var (
	_ Backend = bounded{}
	_ Journal = boundedJournal{}
)

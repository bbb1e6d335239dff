package updater

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

const (
	// lookEvery is the pause between two looks of a gate: short against the
	// shortest useful stable time, long against what a look costs an engine.
	lookEvery = 500 * time.Millisecond
	// restoredStable is how long a restored workload must stay up to count as
	// healthy. Shorter than a change's, for it has proven itself before.
	restoredStable = 2 * time.Second
	// The back-off of an effect that the backend did not do.
	firstPause, lastPause = time.Second, 5 * time.Minute
	// onceTries bounds those attempts where a person waits for the end: about
	// a minute. What stays open is gone on with at the next start.
	onceTries = 7
	// stuckAfter is the attempt with which an effect counts as stuck, after half a
	// minute: the restart of an engine is over by then, and nobody's concern.
	stuckAfter = 6
)

// driver carries changes of one backend through their phases. It is the only
// caller of what changes the world.
type driver struct {
	backend  Backend
	journal  Journal
	notifier Notifier
	observer Observer
	log      *slog.Logger
	// once: somebody waits, so give up after onceTries instead of never.
	once bool
	// leave is called when another process goes on with a change.
	leave func()
	// yield is called, perhaps more than once, when a change waits for what may
	// never come.
	yield func()
}

// drive takes a change from the phase it is in to its end, and returns it as
// it then is. A new change and one found in the journal after a crash take the
// same way; resumed tells the gate that nobody watched in between.
//
// lead is what effects run under: it ends when this process may no longer
// change the backend. stop ends when the process is to end: preparing is then
// broken off, waiting in a gate stops and is taken up again at the next start,
// and an effect that has begun is finished. A change that is not over when
// drive returns stays open in the journal.
func (d *driver) drive(lead, stop context.Context, c Change, resumed bool) Change {
	log := d.log.With("workload", c.Unit, "change", c.ID)
	if resumed {
		log.Info("change taken up", "phase", c.Phase)
		if c.Phase == Preparing {
			// Its window, its age and its candidate were right then. Nothing
			// was disturbed, so it is cheaper to decide anew than to be sure.
			c = goBack(c, "", "broken off before anything was stopped")
		}
	}
	for !c.Phase.Final() && lead.Err() == nil {
		log.Info("change moves on", told(c)...)
		d.observer.Moved(c)
		if err := d.journal.Save(lead, c); err != nil {
			switch {
			case lead.Err() != nil:
				log.Warn("change left open", "phase", c.Phase)
				return c
			case c.Phase == Restoring:
				// Going back never waits for it.
				log.Error("journal cannot be written, going back all the same", "err", err)
			case c.Phase == Committing && resumed:
				// It is in the journal already, and the original may be gone.
				log.Error("journal cannot be written, going on with the commit that was begun", "err", err)
			default:
				// Going forward needs the journal.
				c.Reason = Surroundings
				c = goBack(c, Unclear, fmt.Sprintf("the journal cannot be written: %v", err))
				continue
			}
		}
		next, ok := d.step(lead, stop, c, resumed, log)
		if !ok {
			log.Warn("change left open", "phase", c.Phase)
			return next
		}
		c, resumed = next, false
	}
	if c.Phase.Final() {
		c = d.finish(lead, c, log)
	}
	return c
}

// step makes the effect of the phase a change is in and returns the change in
// its next phase; false when it must stay where it is.
func (d *driver) step(lead, stop context.Context, c Change, resumed bool, log *slog.Logger) (Change, bool) {
	switch c.Phase {
	case Preparing:
		return d.prepare(lead, stop, c, log), true

	case Applying:
		applied, err := d.backend.Apply(lead, c)
		switch {
		case errors.Is(err, ErrHandedOver):
			d.leave()
			return c, false
		case errors.Is(err, ErrSuperseded):
			c.Superseded = true
			return goBack(c, "", err.Error()), true
		case err != nil:
			v, culprit := blame(err)
			c.Culprit = culprit
			return goBack(c, v, err.Error()), true
		}
		c.Mark, c.Gap, c.Phase = applied.Mark, applied.Gap, Judging
		return c, true

	case Judging:
		r := d.judge(lead, stop, c, NewSide, resumed)
		if r.verdict == Good {
			r = d.tests(lead, stop, c)
		}
		if r.verdict == Good {
			r = d.hooks(lead, stop, c, NewSide, "post-update", Bad)
		}
		if r.verdict == Good && slices.ContainsFunc(c.Parts, Part.runsCommands) {
			// They may have taken long, and nobody looked meanwhile.
			r = d.judge(lead, stop, c.stableAtOnce(), NewSide, false)
		}
		switch r.verdict {
		case "":
			if r.why != "" {
				c.Why = r.said(c)
			}
			return c, false
		case Good:
		default:
			if r.movedOff {
				c.Superseded, c.Reason, c.Culprit = true, RolledBack, r.part
				return goBack(c, "", r.said(c)), true
			}
			c.Logs, c.LogsOf, c.Culprit = r.logs, r.part, r.part
			return goBack(c, r.verdict, r.said(c)), true
		}
		c.Verdict, c.Why, c.Phase = Good, "", Committing
		return c, true

	case Committing:
		// From here on there is no going back, unless the backend says that it has
		// dropped nothing: a commit that was broken off may have dropped the
		// original already.
		var removed error
		ok := d.insist(lead, stop, log, "commit does not succeed", &c, func() error {
			err := d.backend.Commit(lead, c)
			if errors.Is(err, ErrSuperseded) {
				removed = err
				return nil
			}
			return err
		})
		if !ok {
			return c, false
		}
		if removed != nil {
			return goBack(c, Unclear, removed.Error()), true
		}
		c.Phase = Committed
		return c, true

	case Restoring:
		return d.restore(lead, stop, c, resumed, log)
	}
	log.Error("change is in a phase that this version does not know; it is left as it is", "phase", c.Phase)
	return c, false
}

// prepare does all that disturbs nothing, and the pre-update hook.
func (d *driver) prepare(lead, stop context.Context, c Change, log *slog.Logger) Change {
	ctx, cancel := both(lead, stop)
	defer cancel()
	err := d.backend.Prepare(ctx, c, func(p Progress) {
		log.Debug("preparing", "step", p.Step, "done", p.Done, "total", p.Total)
		d.observer.Progressed(c, p)
	})
	if err == nil && ctx.Err() == nil {
		r := d.hooks(lead, stop, c, OldSide, "pre-update", Unclear)
		switch r.verdict {
		case Good:
			c.Phase, c.Disturbed = Applying, true
			return c
		case Unclear:
			c.Reason = Surroundings
			return goBack(c, Unclear, r.said(c))
		}
	}
	if err == nil || ctx.Err() != nil {
		return goBack(c, "", "broken off before anything was stopped")
	}
	if errors.Is(err, ErrSame) {
		c.Reason = UpToDate
		return goBack(c, "", err.Error())
	}
	if r, ok := errors.AsType[*Refusal](err); ok {
		c.Reason = r.Reason
		return goBack(c, Unclear, r.Detail)
	}
	v, culprit := blame(err)
	c.Reason, c.Culprit = Surroundings, culprit
	if v == Bad {
		c.Reason = Rejected
	}
	return goBack(c, v, err.Error())
}

// restore goes back, and checks that what is back is as well as it was.
func (d *driver) restore(lead, stop context.Context, c Change, resumed bool, log *slog.Logger) (Change, bool) {
	var superseded, kept bool
	why := "somebody had removed the original"
	ok := d.insist(lead, stop, log, "restore does not succeed, the workload may be down", &c, func() error {
		r, err := d.backend.Restore(lead, c)
		c.Parts = slices.Clone(c.Parts)
		for i, p := range c.Parts { // also of what stands beside somebody else's
			if ref, ok := r.Refs[p.Workload]; ok {
				c.Parts[i].Back = ref
			}
		}
		if errors.Is(err, ErrSuperseded) {
			superseded = true
			if !strings.Contains(c.Why, err.Error()) {
				c.Why = join(c.Why, err.Error())
			}
			return nil
		}
		c.Copy, kept = c.Copy || r.Copy, r.Kept
		if r.Why != "" {
			why = r.Why
		}
		return err
	})
	if !ok {
		return c, false
	}

	switch {
	case superseded || c.Superseded:
		c.Phase = Superseded
	case kept:
		c.Phase, c.Why = Failed, join(c.Why, "no way back is left, so the new side stays")
	case !c.Disturbed:
		c.Phase = Refused
	default:
		r := d.judge(lead, stop, c, OldSide, resumed)
		switch r.verdict {
		case "":
			return c, false
		case Good:
			c.Phase = Restored
		default:
			c.Phase, c.Logs, c.LogsOf = Failed, r.logs, r.part
			c.Why = join(c.Why, "it is back but not healthy as it had been: "+r.said(c))
		}
	}
	if c.Copy {
		c.Why = join(c.Why, why+", so what is back is a copy of it")
	}
	return c, true
}

// finish makes the end of a change durable and tells people. If the journal
// cannot be written the change stays open there: the next pass settles it, or
// the next start repeats its last effect, which changes nothing, and ends it.
func (d *driver) finish(lead context.Context, c Change, log *slog.Logger) Change {
	c.Ended = time.Now()
	pause := firstPause
	for try := 1; ; try++ {
		err := d.settle(lead, c)
		if err == nil {
			break
		}
		if try == 3 || !sleep(lead, pause) {
			log.Error("end of the change cannot be written to the journal", "err", err)
			break
		}
		pause *= 2
	}
	level := slog.LevelInfo
	switch c.Phase {
	case Restored, Refused, Superseded:
		level = slog.LevelWarn
	case Failed:
		level = slog.LevelError
	}
	log.Log(lead, level, "change is over", told(c)...)
	d.observer.Moved(c)
	for _, e := range c.Entries() {
		d.notifier.Notify(lead, e)
	}
	return c
}

// settle writes what is to be remembered of a change that is over, and its
// end. Doing so again changes nothing, so a crash in between repeats the phase
// before: rejecting twice is rejecting once.
func (d *driver) settle(ctx context.Context, c Change) error {
	edits := map[string]func(*Record){}
	for _, p := range c.Parts {
		v := c.verdictOn(p)
		brokenOff := c.Phase == Refused && c.Verdict == "" && c.Reason == ""
		answered := p.Asked != nil && !brokenOff
		off := c.Phase == Superseded && c.Reason == RolledBack && p.Changes() && (c.Culprit == "" || c.Culprit == p.Workload)
		if v == "" && p.Back == "" && !c.suspects(p) && !answered && !off {
			continue
		}
		edits[p.Workload] = func(m *Record) {
			m.learn(p.To, v, c.Why, c.Ended)
			if p.Back != "" {
				m.wrote(p.Back)
			}
			if c.suspects(p) {
				m.Apart = p.To.Digest
			}
			if off { // a person's word sticks, in the middle of an update as well
				m.reject(Rejection{Image: p.To, Reason: RolledBack, Why: c.Why, At: c.Ended})
			}
			if c.Phase == Committed && p.Changes() {
				m.moved(p, c.Ended)
			}
			if answered {
				m.answered(c.Since)
			}
		}
	}
	if len(edits) > 0 {
		if err := d.journal.Remember(ctx, edits); err != nil {
			return fmt.Errorf("remembering the verdict: %w", err)
		}
	}
	return d.journal.Save(ctx, c)
}

// ruling is what was found of a change. The verdict is "" when nothing was,
// because it was stopped first.
type ruling struct {
	verdict Verdict
	why     string
	part    string // the workload that it is about
	// movedOff: somebody else decided.
	movedOff bool
	logs     string
}

// said is the sentence, with the workload that it is about where the change has
// several.
func (r ruling) said(c Change) string {
	if len(c.Parts) > 1 && r.part != "" {
		return r.part + ": " + r.why
	}
	return r.why
}

// judge looks at one side of all parts until there is a verdict: good when every
// part is. Of what keeps its image, only what was healthy before is judged. A backend
// that cannot be asked is waited for: it speaks neither for nor against the
// image.
func (d *driver) judge(lead, stop context.Context, c Change, side Side, resumed bool) ruling {
	ctx, cancel := both(lead, stop)
	defer cancel()
	gates := make([]gate, len(c.Parts))
	for i, p := range c.Parts {
		gates[i] = gate{timeout: p.Settings.Health.Timeout, stable: p.Settings.Health.Stable}
		if side == OldSide {
			gates[i].stable = min(gates[i].stable, restoredStable)
		}
		if resumed {
			gates[i].interrupted()
		}
	}
	failures := 0
	for {
		r, waits, err := d.lookAt(ctx, c, side, gates)
		switch {
		case ctx.Err() != nil:
			return ruling{}
		case err != nil:
			failures++
			if failures == 1 {
				d.log.Warn("workload cannot be looked at, waiting", "workload", c.Unit, "change", c.ID, "err", err)
			}
			if d.once && failures > onceTries {
				return ruling{}
			}
			for i := range gates {
				gates[i].interrupted()
			}
			if !sleep(ctx, pauseAfter(failures)) {
				return ruling{}
			}
			continue
		}
		failures = 0
		if r.verdict != "" {
			return r
		}
		d.observer.Progressed(c, Progress{Step: "judging", Note: r.said(c)})
		if waits {
			if d.once {
				return r // there is no telling how long
			}
			d.yield()
		}
		if !sleep(ctx, lookEvery) {
			return ruling{}
		}
	}
}

// lookAt looks once at one side of all parts, and says whether all that is open
// only waits for copies to be wanted. One part that is not good decides, first of
// all one whose image is to blame. One that was not healthy before says nothing
// unless it has another image: an ailing neighbour must not condemn what it lives
// in. While one ends and starts again, nothing after it is found anything but good:
// what lives in it ends with it.
func (d *driver) lookAt(ctx context.Context, c Change, side Side, gates []gate) (r ruling, waits bool, err error) {
	all := ruling{verdict: Good}
	open, waiting := 0, 0
	var off ruling
	unsteady := ""
	for i, p := range c.Parts {
		if p.Idle || !p.Healthy && (side == OldSide || !p.Changes()) {
			continue
		}
		o, err := d.backend.Observe(ctx, c, i, side)
		if err != nil {
			return ruling{}, false, err
		}
		if o.MovedOff != "" {
			part := p.Workload
			if off.movedOff {
				part = "" // not it alone
			}
			off = ruling{verdict: Unclear, movedOff: true, part: part, why: o.MovedOff}
			continue
		}
		v, why := gates[i].judge(o, time.Now())
		switch {
		case unsteady != "" && v != "" && v != Good:
			v, why = "", fmt.Sprintf("%s: %s ends and starts again", why, unsteady)
		case v == "" && o.Waits == "" && (!o.Running || o.Restarting || o.Restarts > 0):
			unsteady = p.Workload
		}
		switch v {
		case Good:
		case "":
			open++
			if o.Waits != "" {
				waiting++
				why = o.Waits
			}
			if all.verdict == Good || all.verdict == "" {
				all = ruling{why: why, part: p.Workload}
			}
		default:
			if all.verdict == "" || all.verdict == Good || v == Bad && all.verdict != Bad {
				all = ruling{verdict: v, why: why, part: p.Workload, logs: o.Logs}
			}
		}
	}
	if off.movedOff {
		return off, false, nil
	}
	return all, all.verdict == "" && open == waiting, nil
}

// hooks runs one kind of hook of every part that is replaced, in order, until
// one fails. That one's verdict is onFailure.
func (d *driver) hooks(lead, stop context.Context, c Change, side Side, kind string, onFailure Verdict) ruling {
	ctx, cancel := both(lead, stop)
	defer cancel()
	for i, p := range c.Parts {
		h := p.Settings.PostUpdate
		if side == OldSide {
			h = p.Settings.PreUpdate
		}
		if len(h.Command) == 0 || p.Idle || !p.Replace {
			continue
		}
		r, err := d.backend.Exec(ctx, c, i, side, h)
		if f := failing(ctx, kind, h.Timeout, r, err, onFailure); f.verdict != Good {
			f.part = p.Workload
			return f
		}
	}
	return ruling{verdict: Good}
}

// tests runs the test of every part that is replaced, in order, until one fails.
func (d *driver) tests(lead, stop context.Context, c Change) ruling {
	ctx, cancel := both(lead, stop)
	defer cancel()
	for i, p := range c.Parts {
		t := p.Settings.Health.Test
		if t.Image == "" || p.Idle || !p.Replace {
			continue
		}
		r, err := d.backend.Test(ctx, c, i)
		if f := failing(ctx, "health.test", t.Timeout, r, err, Bad); f.verdict != Good {
			f.part, f.logs = p.Workload, r.Output
			return f
		}
	}
	return ruling{verdict: Good}
}

// failing judges how a command ended. Its verdict is "" when ctx ended first.
func failing(ctx context.Context, what string, limit time.Duration, r Result, err error, onFailure Verdict) ruling {
	switch {
	case ctx.Err() != nil:
		return ruling{}
	case err != nil:
		return ruling{verdict: Unclear, why: fmt.Sprintf("%s could not be run: %v", what, err)}
	case r.TimedOut:
		return ruling{verdict: onFailure, why: fmt.Sprintf("%s ran longer than %s%s", what, limit, colon(r.Output))}
	case r.ExitCode != 0:
		return ruling{verdict: onFailure, why: fmt.Sprintf("%s failed with exit code %d%s", what, r.ExitCode, colon(r.Output))}
	}
	return ruling{verdict: Good}
}

// insist repeats an effect of a change, with a growing pause, until the backend has
// done it; false when it was stopped first, or gave up because somebody waits. The
// change says meanwhile why it is stuck.
func (d *driver) insist(lead, stop context.Context, log *slog.Logger, message string, c *Change, effect func() error) bool {
	ctx, cancel := both(lead, stop)
	defer cancel()
	for try := 1; ; try++ {
		err := effect()
		if err == nil {
			c.Stuck = ""
			return true
		}
		if errors.Is(err, ErrHandedOver) {
			d.leave()
			return false
		}
		log.Error(message, "attempt", try, "err", err)
		if try >= stuckAfter && c.Stuck != err.Error() {
			c.Stuck = err.Error()
			d.tellStuck(lead, *c, log)
		}
		if d.once && try >= onceTries || !sleep(ctx, pauseAfter(try)) {
			return false
		}
	}
}

// tellStuck has others learn of a change that cannot end: a look finds it in the
// journal, and if it cannot go back, so that nothing may be in service, people are
// told before it is over.
func (d *driver) tellStuck(lead context.Context, c Change, log *slog.Logger) {
	if err := d.journal.Save(lead, c); err != nil {
		log.Warn("journal cannot be written, so a check does not tell why the change is stuck", "err", err)
	}
	if c.Phase != Restoring {
		return
	}
	for _, p := range c.Parts {
		d.notifier.Notify(lead, Entry{
			At: time.Now(), Backend: c.Backend, Workload: p.Workload, Event: EventFailed, Change: c.ID,
			From: p.From, To: p.To, Open: true, Why: join(c.Why, c.underWay()+"; it is tried again"),
		})
	}
}

// goBack turns a change round.
func goBack(c Change, v Verdict, why string) Change {
	c.Phase, c.Verdict, c.Why = Restoring, v, why
	return c
}

// join puts a further sentence behind what is known.
func join(why, more string) string {
	if why == "" {
		return more
	}
	return why + "; " + more
}

// blame is whom an effect's error speaks against: the verdict, and the workload
// where it is known.
func blame(err error) (v Verdict, workload string) {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f.Verdict, f.Workload
	}
	return Unclear, ""
}

// both is a context that ends with either; with stop at once, so that nothing
// is begun after it.
func both(lead, stop context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(stop)
	release := context.AfterFunc(lead, cancel)
	return ctx, func() { release(); cancel() }
}

// sleep reports whether the whole pause passed.
func sleep(ctx context.Context, pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pauseAfter is the pause after so many failures in a row.
func pauseAfter(failures int) time.Duration {
	if failures > 9 {
		return lastPause
	}
	return min(firstPause<<(failures-1), lastPause)
}

// told is what a log line says of a change: what is known of it.
func told(c Change) []any {
	attrs := []any{"phase", c.Phase}
	if i := slices.IndexFunc(c.Parts, Part.Changes); i >= 0 {
		p := c.Parts[i]
		to := p.To.Ref
		if !strings.Contains(to, p.To.Digest) {
			to += "@" + p.To.Digest
		}
		attrs = append(attrs, "from", p.From.Ref, "to", to)
	}
	if len(c.Parts) > 1 {
		attrs = append(attrs, "parts", len(c.Parts))
	}
	if c.Verdict != "" {
		attrs = append(attrs, "verdict", c.Verdict)
	}
	if c.Why != "" {
		attrs = append(attrs, "reason", c.Why)
	}
	if c.Gap != 0 && c.Phase.Final() {
		attrs = append(attrs, "gap", c.Gap.Round(time.Millisecond))
	}
	return attrs
}

package updater

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// work is what one process does in one place: passes, and the changes they
// started, which go on while later passes look.
type work struct {
	backend Backend
	journal Journal
	log     *slog.Logger
	lead    context.Context // what effects run under; set by Updater.lead
	once    bool            // somebody waits for the end

	changes sync.WaitGroup // under way

	mu       sync.Mutex
	notifier Notifier
	slots    chan struct{}     // one per change that may be under way
	busy     map[string]string // by unit: the id of the change under way, "" while one waits for its turn
	ended    map[string]Change // by unit: how the last change of this process ended
	told     map[string]Reason // by workload: the reason that was last logged
}

func newWork(place Place, j Journal, rules Rules, log *slog.Logger) *work {
	w := &work{
		backend: place.Backend, journal: j, log: log.With("backend", place.Backend.Name()),
		busy: map[string]string{}, ended: map[string]Change{}, told: map[string]Reason{},
	}
	w.adopt(rules)
	return w
}

// adopt takes over what a reload may have changed.
func (w *work) adopt(rules Rules) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notifier = rules.Notifier
	if cap(w.slots) != max(rules.Parallel, 1) {
		w.slots = make(chan struct{}, max(rules.Parallel, 1))
	}
}

func (w *work) wait() { w.changes.Wait() }

// recover takes up every open change that is not under way in this process:
// those of the journal, and those that left traces on the backend alone. What
// was under way when it began is left out, for it may end meanwhile.
func (w *work) recover(stop context.Context) {
	busy := w.busyNow()
	open, err := w.journal.Open(stop)
	if err != nil {
		w.log.Error("journal cannot be read; recovering from what the backend shows", "err", err)
	}
	known := map[string]bool{}
	for _, c := range open {
		known[c.ID] = true
	}
	for _, id := range busy {
		known[id] = true
	}
	traces, err := w.backend.Traces(stop, known)
	if err != nil {
		w.log.Warn("backend cannot be asked for traces of changes", "err", err)
	}
	for _, c := range append(open, traces...) {
		if busy[c.Unit] == c.ID || w.settled(c) || !w.begin(c) {
			continue
		}
		w.changes.Go(func() { w.end(w.driver().drive(w.lead, stop, c, true)) })
	}
}

func (w *work) driver() *driver {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &driver{backend: w.backend, journal: w.journal, notifier: w.notifier, log: w.log, once: w.once}
}

// settled reports whether a change is over in this process. If its end could
// not be written at the time, that is made up for.
func (w *work) settled(c Change) bool {
	w.mu.Lock()
	ended := w.ended[c.Unit]
	w.mu.Unlock()
	if ended.ID != c.ID || !ended.Phase.Final() {
		return false
	}
	if err := w.driver().settle(w.lead, ended); err != nil {
		w.log.Error("end of the change cannot be written to the journal", "workload", c.Unit, "change", c.ID, "err", err)
	}
	return true
}

// reserve marks a unit as waiting for its turn; false when it is busy already.
func (w *work) reserve(unit string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.busy[unit]; ok {
		return false
	}
	w.busy[unit] = ""
	return true
}

// release gives up a unit whose turn did not come.
func (w *work) release(unit string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[unit] == "" {
		delete(w.busy, unit)
	}
}

// begin marks a unit as busy with a change; false when it is with another.
func (w *work) begin(c Change) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[c.Unit] != "" {
		return false
	}
	w.busy[c.Unit] = c.ID
	return true
}

func (w *work) end(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, c.Unit)
	w.ended[c.Unit] = c
}

func (w *work) isBusy(unit string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.busy[unit]
	return ok
}

func (w *work) busyNow() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.busy)
}

// pass is one round over the watched workloads of one place.
type pass struct {
	*work
	rules Rules
	// act: changes are carried out, and what was learnt is remembered.
	act   bool
	items []*item
	// found are the names a person gave that mean something here.
	found map[string]bool
	// unavailable is why the backend could not be asked.
	unavailable error
	// open are the changes that the journal held, by unit, and busy the units
	// with one under way in this process, both from before the workloads were
	// listed: a change that ends meanwhile leaves a list that is out of date.
	open map[string]Change
	busy map[string]string
}

// item is one watched workload in a pass. Its goroutine owns it: decision may
// be read once decided is closed, the rest once done is.
type item struct {
	workload Workload
	settings Settings
	memory   Record
	needs    []*item // what it depends on
	// aside: nobody asked for it, but something that was asked for depends on
	// it. It is decided on, and neither carried out nor shown.
	aside    bool
	decision Decision
	decided  chan struct{}

	late    *Decision // what became of the decision when its turn came
	outcome *Change   // the change as it ended, if one was begun
	stopped bool      // updaterd was told to stop meanwhile
	done    chan struct{}
}

// look lists and decides, and changes nothing.
func (w *work) look(ctx context.Context, rules Rules, names []string) *pass {
	p := &pass{work: w, rules: rules}
	p.run(ctx, names, func(f func()) { go f() })
	for _, it := range p.items {
		<-it.done
	}
	return p
}

// pass lists, decides, and starts the changes decided on, which go on after it
// has returned. Every decision stands when it returns.
func (w *work) pass(stop context.Context, rules Rules, names []string) *pass {
	began := time.Now()
	w.adopt(rules)
	p := &pass{work: w, rules: rules, act: true}
	p.run(stop, names, w.changes.Go)
	updates := 0
	listed := map[string]bool{}
	for _, it := range p.items {
		<-it.decided
		listed[it.workload.ID] = true
		if it.decision.Update {
			updates++
		}
	}
	if p.unavailable == nil {
		w.mu.Lock()
		maps.DeleteFunc(w.told, func(id string, _ Reason) bool { return !listed[id] })
		w.mu.Unlock()
	}
	w.log.Info("pass over", "workloads", len(p.items), "updates", updates, "took", time.Since(began).Round(time.Millisecond))
	return p
}

// run fills the pass and starts a goroutine per workload, so that one slow
// registry holds up nobody else's change. How many questions are under way at
// once is the registry's to bound, by host.
func (p *pass) run(ctx context.Context, names []string, start func(func())) {
	p.found = map[string]bool{}
	p.open = map[string]Change{}
	p.busy = p.busyNow()
	open, err := p.journal.Open(ctx)
	if err != nil {
		p.log.Error("journal cannot be read", "err", err)
	}
	for _, c := range open {
		p.open[c.Unit] = c
	}
	workloads, err := p.backend.Workloads(ctx)
	if err != nil {
		p.unavailable = err
		if p.act {
			p.log.Error("backend cannot be asked", "err", err)
		}
		return
	}
	memory, err := p.journal.Recall(ctx)
	if err != nil {
		p.log.Error("memory cannot be read", "err", err)
	}
	p.choose(workloads, memory, names)

	for _, it := range p.items {
		start(func() {
			defer close(it.done)
			p.decide(ctx, it)
			if p.act && it.decision.Update && !it.aside {
				p.carryOut(ctx, it)
			}
		})
	}
}

// choose makes the items: the watched workloads, or those of them that a
// person named, with what they depend on found among all.
func (p *pass) choose(workloads []Workload, memory map[string]Record, named []string) {
	backend := p.backend.Name()
	byID := map[string]*item{}
	exists := map[string]bool{}
	// A workload in the middle of a change may be absent from the backend's list.
	for unit := range p.open {
		exists[unit] = true
		for _, n := range named {
			if names(n, backend, unit) {
				p.found[n] = true
			}
		}
	}
	for unit := range p.busy {
		exists[unit] = true
	}
	for _, w := range workloads {
		exists[w.ID] = true
		s, err := p.rules.Settings(w)
		if err == nil && !s.Enabled {
			continue
		}
		it := &item{workload: w, settings: s, memory: memory[w.ID], decided: make(chan struct{}), done: make(chan struct{})}
		if err != nil {
			it.decision = Decision{Reason: InvalidSettings, Detail: err.Error()}
		}
		byID[w.ID] = it
		it.aside = len(named) > 0
		for _, n := range named {
			if names(n, backend, w.ID) {
				it.aside, p.found[n] = false, true
			}
		}
		if !it.aside {
			p.items = append(p.items, it)
		}
	}
	// What is depended on joins in, and so does what that depends on.
	for i := 0; i < len(p.items); i++ {
		it := p.items[i]
		for _, n := range it.settings.DependsOn {
			known := func(id string) bool { return names(n, backend, id) }
			if it.decision.Reason == "" && !slices.ContainsFunc(slices.Collect(maps.Keys(exists)), known) {
				it.decision = Decision{Reason: InvalidSettings, Detail: fmt.Sprintf("depends-on: there is no workload %q here; correct the name, or take it away", n)}
			}
		}
		for _, n := range slices.Concat(it.settings.DependsOn, it.workload.DependsOn) {
			for id, need := range byID {
				if !names(n, backend, id) {
					continue
				}
				it.needs = append(it.needs, need)
				if need.aside && !slices.Contains(p.items, need) {
					p.items = append(p.items, need)
				}
			}
		}
	}
	for _, it := range p.items {
		if path := cycle(it, it, map[*item]bool{}); path != nil {
			it.decision = Decision{Reason: InvalidSettings, Detail: "it depends on itself: " + strings.Join(path, " needs ")}
		}
	}
}

// cycle is the path by which it needs itself, from at on; nil if it does not.
func cycle(at, it *item, seen map[*item]bool) []string {
	if seen[at] {
		return nil
	}
	seen[at] = true
	for _, need := range at.needs {
		if need == it {
			return []string{at.workload.ID, it.workload.ID}
		}
		if path := cycle(need, it, seen); path != nil {
			return append([]string{at.workload.ID}, path...)
		}
	}
	return nil
}

// decide looks at one workload and decides. It only reads, but for what a
// pass that acts remembers.
func (p *pass) decide(ctx context.Context, it *item) {
	defer close(it.decided)
	defer p.tell(it)
	id := it.workload.ID
	if it.decision.Reason != "" {
		return // its settings are wrong
	}
	_, open := p.open[id]
	if _, was := p.busy[id]; was || open || p.isBusy(id) {
		it.decision = Decision{Reason: InProgress, Detail: "a change of it is under way"}
		return
	}
	f := look(ctx, p.rules.Registry, it.workload, it.settings, it.memory, time.Now())
	if ctx.Err() != nil {
		it.stopped = true
		it.decision = Decision{Candidate: f.candidate, Reason: InProgress, Detail: "interrupted"}
		return
	}
	p.learn(ctx, it, f)
	it.decision = decide(it.workload, it.settings, f, it.memory, time.Now())
	if it.decision.Update {
		// What cannot be done faithfully is refused before anything is touched.
		c := p.wish(it)
		if err := p.backend.Plan(ctx, &c); err != nil {
			it.decision = refused(it.decision, err)
			return
		}
		if p.act && !it.aside && !p.reserve(id) {
			it.decision = Decision{Candidate: f.candidate, Reason: InProgress, Detail: "a change of it is under way"}
			return
		}
	}
	if !it.decision.Update || p.act {
		return
	}
	if waits := it.waitsFor(); waits != "" {
		it.decision = Decision{Candidate: it.decision.Candidate, Reason: Waiting, Detail: waits}
	}
}

// learn remembers what looking taught.
func (p *pass) learn(ctx context.Context, it *item, f finding) {
	now := time.Now()
	edit := notice(it.workload, f, it.memory, now)
	if edit == nil {
		return
	}
	off := movedOff(it.workload, it.memory)
	was := it.memory.Committed
	it.memory.Seen = maps.Clone(it.memory.Seen)
	edit(&it.memory)
	if !p.act {
		return
	}
	id := it.workload.ID
	if err := p.journal.Remember(ctx, map[string]func(*Record){id: edit}); err != nil {
		p.log.Error("memory cannot be written", "workload", id, "err", err)
		return
	}
	if !off {
		return
	}
	e := Entry{At: now, Backend: p.backend.Name(), Workload: id, Event: EventRolledBack,
		From: was, To: Image{Ref: it.workload.Image, Digest: it.workload.Runs.Digest()}}
	if err := p.journal.Note(ctx, e); err != nil {
		p.log.Error("history cannot be written", "workload", id, "err", err)
	}
	p.rules.Notifier.Notify(ctx, e)
}

// wish is the change that a decision asks for.
func (p *pass) wish(it *item) Change {
	w := it.workload
	return Change{
		// The time first, so that ids sort by age wherever they show up.
		ID:      time.Now().UTC().Format("20060102T150405") + "-" + strings.ToLower(rand.Text()[:8]),
		Backend: p.backend.Name(), Unit: w.ID, Settings: it.settings, Phase: Preparing, Since: time.Now(),
		Parts: []Part{{
			Workload: w.ID,
			From:     Image{Ref: w.Image, Digest: w.Runs.Digest(), Manifest: w.Runs.Manifest, Config: w.Runs.Config},
			To:       *it.decision.Candidate,
			Replace:  true,
		}},
	}
}

// refused turns a decision round because of what Plan said.
func refused(d Decision, err error) Decision {
	if errors.Is(err, ErrSuperseded) {
		return Decision{Candidate: d.Candidate, Reason: NotRunning, Detail: err.Error()}
	}
	r := asRefusal(err, BackendUnavailable)
	return Decision{Candidate: d.Candidate, Reason: r.Reason, Detail: r.Detail}
}

// waitsFor says which of what it depends on comes first; "" when nothing does.
// It blocks until that is decided, which cannot be forever: cycles are refused.
func (it *item) waitsFor() string {
	for _, need := range it.needs {
		<-need.decided
		if need.decision.Update || need.decision.Reason == InProgress || need.decision.Reason == Waiting {
			return need.workload.ID + ", which it depends on, comes first"
		}
	}
	return ""
}

// carryOut takes a decision to its end, when its turn comes: after what it
// depends on, and when a slot is free.
func (p *pass) carryOut(stop context.Context, it *item) {
	defer p.release(it.workload.ID)
	defer func() { it.stopped = it.stopped || stop.Err() != nil }()
	give := func(r Reason, detail string) {
		it.late = &Decision{Candidate: it.decision.Candidate, Reason: r, Detail: detail}
	}
	for _, need := range it.needs {
		<-need.decided
		if need.decision.Update {
			<-need.done
			if need.outcome == nil || need.outcome.Phase != Committed {
				give(Waiting, need.workload.ID+", which it depends on, was to come first and was not updated")
				return
			}
		} else if need.decision.Reason == InProgress {
			give(Waiting, need.workload.ID+", which it depends on, comes first")
			return
		}
	}
	p.mu.Lock()
	slots := p.slots
	p.mu.Unlock()
	select {
	case slots <- struct{}{}:
	case <-stop.Done():
		return
	}
	defer func() { <-slots }()

	// Time has passed: a person may have spoken, the window may have shut.
	memory, err := p.journal.Recall(stop)
	if err != nil {
		give(Surroundings, fmt.Sprintf("the journal cannot be read: %v", err))
		return
	}
	f := finding{candidate: it.decision.Candidate, detail: it.decision.Detail}
	again := decide(it.workload, it.settings, f, memory[it.workload.ID], time.Now())
	if !again.Update {
		it.late = &again
		return
	}
	c := p.wish(it)
	if err := p.backend.Plan(stop, &c); err != nil {
		again = refused(again, err)
		it.late = &again
		return
	}
	// Plan took what is there now for what is to come back. That it is still
	// what was decided on is looked at afterwards: what changes later, effects
	// see for themselves.
	if why := p.outdated(stop, it); why != "" {
		give(InProgress, why)
		return
	}
	if !p.begin(c) {
		give(InProgress, "a change of it is under way")
		return
	}
	c = p.driver().drive(p.lead, stop, c, false)
	p.end(c)
	it.outcome = &c
}

// outdated says why a decision no longer fits the workload; "" if it does.
func (p *pass) outdated(ctx context.Context, it *item) string {
	workloads, err := p.backend.Workloads(ctx)
	if err != nil {
		return fmt.Sprintf("it cannot be looked at again: %v", err)
	}
	was := it.workload
	image := Image{Digest: was.Runs.Digest(), Manifest: was.Runs.Manifest, Config: was.Runs.Config}
	for _, w := range workloads {
		same := w.Runs.Is(image) || w.Runs.Digest() == image.Digest
		if w.ID == was.ID && same && w.Image == was.Image && maps.Equal(w.Written, was.Written) {
			return ""
		}
	}
	return "somebody changed it since it was looked at; the next pass decides anew"
}

// tell logs a decision when its reason is another than in the last pass.
func (p *pass) tell(it *item) {
	if !p.act || p.once {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if id := it.workload.ID; p.told[id] != it.decision.Reason {
		p.told[id] = it.decision.Reason
		p.log.Info("decided", "workload", id, "reason", it.decision.Reason, "detail", it.decision.Detail)
	}
}

// rows are what the pass says, one per watched workload, or per workload that a
// person named; to be asked for when everything it started is over.
func (p *pass) rows(named []string) []Row {
	rows := []Row{}
	if p.unavailable != nil {
		r := Row{Backend: p.backend.Name(), Workload: p.backend.Name(), Decision: "none",
			Reason: BackendUnavailable, Detail: p.unavailable.Error()}
		if p.act {
			r.Outcome = OutcomeNone
		}
		rows = append(rows, r)
	}
	listed := map[string]bool{}
	for _, it := range p.items {
		if !it.aside {
			listed[it.workload.ID] = true
			rows = append(rows, p.row(it))
		}
	}
	// A workload in the middle of a change may be absent from the backend's list.
	for _, c := range p.lasting() {
		wanted := len(named) == 0 || slices.ContainsFunc(named, func(n string) bool { return names(n, p.backend.Name(), c.Unit) })
		if wanted && !listed[c.Unit] {
			rows = append(rows, p.absent(c))
		}
	}
	return rows
}

// lasting are the changes that a workload which is not listed can still be known
// by: those that this process carried, and those that the journal held.
func (p *pass) lasting() []Change {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := maps.Clone(p.open)
	maps.Copy(all, p.ended)
	return slices.Collect(maps.Values(all))
}

// absent is the row of a workload that is known by its change only.
func (p *pass) absent(c Change) Row {
	r := Row{Backend: p.backend.Name(), Workload: c.Unit, Policy: c.Settings.Policy.Policy, Decision: "none",
		Reason: InProgress, Detail: "a change of it is under way"}
	if len(c.Parts) > 0 {
		r.Image = c.Parts[0].From.Ref
		r.Candidate = &RowCandidate{Image: c.Parts[0].To.Ref, Digest: c.Parts[0].To.Digest}
	}
	switch {
	case c.Phase == Superseded:
		r.Reason = NotRunning
	case c.Phase.Final() && c.Verdict == Bad:
		r.Reason = Rejected
	case c.Phase.Final() && c.Verdict == Unclear:
		r.Reason = Surroundings
	case c.Phase == Committed:
		r.Reason = UpToDate
	}
	if p.act {
		p.report(&r, c, false)
	}
	return r
}

func (p *pass) row(it *item) Row {
	w, d := it.workload, it.decision
	if it.late != nil {
		d = *it.late
	}
	r := Row{
		Backend: w.Backend, Workload: w.ID, Image: w.Image, Policy: it.settings.Policy.Policy,
		Decision: "none", Reason: d.Reason, Detail: d.Detail,
	}
	if d.Update {
		r.Decision = "update"
	}
	digest := w.Runs.Digest()
	if c := d.Candidate; c != nil {
		r.Candidate = &RowCandidate{Image: c.Ref, Digest: c.Digest}
		if slices.Contains(w.Runs.Digests, c.Digest) {
			digest = c.Digest // one image may have several; show the one that matches
		}
	}
	if digest != "" {
		r.Digest = &digest
	}
	if !p.act {
		return r
	}
	p.mu.Lock()
	ended, recovered := p.ended[w.ID]
	p.mu.Unlock()
	switch {
	case it.outcome != nil:
		p.report(&r, *it.outcome, it.stopped)
	case recovered && r.Decision == "none":
		// What was open from before was ended first, and is news.
		detail := r.Detail
		p.report(&r, ended, it.stopped)
		r.Detail = detail
	case it.stopped:
		r.Outcome = OutcomeOpen
	default:
		r.Outcome = OutcomeNone
	}
	return r
}

// report writes into a row how a change ended.
func (p *pass) report(r *Row, c Change, stopped bool) {
	switch {
	case c.Phase == Committed:
		r.Outcome = OutcomeCommitted
	case c.Phase == Restored:
		r.Outcome = OutcomeRestored
	case c.Phase == Superseded:
		r.Outcome = OutcomeSuperseded
	case c.Phase == Refused && c.Verdict == "" && c.Reason == "" && stopped:
		r.Outcome = OutcomeOpen // broken off; the next pass decides anew
	case c.Phase == Refused:
		r.Outcome = OutcomeNone
		if c.Reason != "" {
			r.Reason, r.Decision = c.Reason, "none"
		}
	case !c.Phase.Final() && stopped:
		r.Outcome = OutcomeOpen
	default:
		r.Outcome = OutcomeFailed
	}
	if c.Why != "" {
		r.Detail = c.Why
	}
}

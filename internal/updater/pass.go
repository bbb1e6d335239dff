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

	"github.com/distribution/reference"
)

// work is what one process does in one place: passes, and the changes they
// started, which go on while later passes look.
type work struct {
	backend Backend
	journal Journal
	log     *slog.Logger
	call    *call           // what a person wants looked at; set by Updater.lead
	lead    context.Context // what effects run under; set by Updater.lead
	leave   func()          // lets go of every lead; set by Updater.lead
	once    bool            // somebody waits for the end

	changes sync.WaitGroup // under way
	crowd   *crowd         // the same in all places of this process

	mu       sync.Mutex
	notifier Notifier
	observer Observer
	slots    chan struct{}        // one per change that may be under way
	busy     map[string]string    // by workload: the id of the change under way, "" while one waits for its turn
	ended    map[string]Change    // by workload: how the last change of this process ended
	told     map[string]news      // by workload: what was last logged
	heard    map[string]time.Time // by workload: the newest word that asks for something, as a pass knew it
	sight    Sight                // what there is to be seen of it all
	next     *listing             // the one that is about to begin; nil: none is

	lists chan struct{} // holds what may list anew: one at a time
}

// listing is what a backend lists, once done is closed.
type listing struct {
	done      chan struct{}
	workloads []Workload
	err       error
}

// listAnew lists what runs, as it is after the call. Those who ask while a list is
// being made share the next one: a hundred changes on thousands of workloads would
// otherwise each hold them all.
func (w *work) listAnew(ctx context.Context) ([]Workload, error) {
	w.mu.Lock()
	l := w.next
	mine := l == nil
	if mine {
		l = &listing{done: make(chan struct{})}
		w.next = l
	}
	w.mu.Unlock()
	if mine {
		w.lists <- struct{}{}
		w.mu.Lock()
		w.next = nil // who asks from here on may know of what this list will miss
		w.mu.Unlock()
		l.workloads, l.err = w.backend.Workloads(ctx)
		<-w.lists
		close(l.done)
	}
	<-l.done
	return l.workloads, l.err
}

func newWork(place Place, j Journal, rules Rules, log *slog.Logger, s *steps) *work {
	w := &work{
		backend: bounded{place.Backend, s}, journal: boundedJournal{j, place.Backend.Name(), s}, log: log.With("backend", place.Backend.Name()), crowd: &crowd{},
		busy: map[string]string{}, ended: map[string]Change{}, told: map[string]news{}, heard: map[string]time.Time{}, lists: make(chan struct{}, 1),
	}
	w.adopt(rules)
	return w
}

// adopt takes over what a reload may have changed.
func (w *work) adopt(rules Rules) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notifier, w.observer = rules.Notifier, rules.Observer
	if w.observer == nil {
		w.observer = Observers(nil)
	}
	if cap(w.slots) != max(rules.Parallel, 1) {
		w.slots = make(chan struct{}, max(rules.Parallel, 1))
	}
}

// watching is who observes now.
func (w *work) watching() Observer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.observer
}

func (w *work) wait() { w.changes.Wait() }

// recover takes up every open change that is not under way in this process:
// those of the journal, and those that left traces on the backend alone. What
// was under way when it began is left out, for it may end meanwhile. With only,
// all but the change of that id are left out.
func (w *work) recover(stop context.Context, only string) {
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
	w.looked(err)
	all := append(open, traces...)
	slices.SortStableFunc(all, func(a, b Change) int { // what must be alone comes last
		switch {
		case a.Alone == b.Alone:
			return 0
		case a.Alone:
			return 1
		}
		return -1
	})
	for _, c := range all {
		if only != "" && c.ID != only || busy[c.Unit] == c.ID || w.settled(c) || !w.begin(c) {
			continue
		}
		turn := w.crowd.enter(c.Alone, true)
		w.changes.Go(func() {
			if !turn(stop) {
				w.end(c)
				return
			}
			out := sync.OnceFunc(w.crowd.leave)
			defer out()
			w.carry(stop, c, true, out)
		})
	}
}

// carry takes a change that was begun to its end. yield gives up its slot and its
// place in the crowd: updaterd's own change must not wait for what may never come.
func (w *work) carry(stop context.Context, c Change, resumed bool, yield func()) Change {
	d := w.driver()
	d.yield = yield
	c = d.drive(w.lead, stop, c, resumed)
	w.end(c)
	return c
}

func (w *work) driver() *driver {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &driver{backend: w.backend, journal: w.journal, notifier: w.notifier, observer: w.observer, log: w.log, once: w.once, leave: w.leave}
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

// reserve marks a workload as waiting for its turn; false when it is busy already.
func (w *work) reserve(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.busy[id]; ok {
		return false
	}
	w.busy[id] = ""
	return true
}

// release gives up a workload whose turn did not come.
func (w *work) release(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[id] == "" {
		delete(w.busy, id)
	}
}

// begin marks every part of a change as busy with it; false when one is with
// another. A part that waits for its turn in another pass loses it.
func (w *work) begin(c Change) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range c.takes() {
		if w.busy[what] != "" {
			return false
		}
	}
	for _, what := range c.takes() {
		w.busy[what] = c.ID
	}
	return true
}

func (w *work) end(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range c.takes() {
		delete(w.busy, what)
	}
	for _, p := range c.Parts {
		w.ended[p.Workload] = c
	}
}

func (w *work) isBusy(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.busy[id]
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
	// known are all workloads that were listed, watched or not.
	known  map[string]*member
	memory map[string]Record
	asOf   time.Time // when memory was read
	// found are the names a person gave that mean something here.
	found map[string]bool
	// unavailable is why the backend could not be asked.
	unavailable error
	// open are the changes that the journal held, by workload, and busy the
	// workloads with one under way in this process, both from before the workloads
	// were listed: a change that ends meanwhile leaves a list that is out of date.
	open map[string]Change
	busy map[string]string
}

// member is a workload that may have to move along with another.
type member struct {
	workload Workload
	settings Settings
	invalid  error // why its settings are not to be had
}

// item is one watched workload in a pass. Its goroutine owns it: decision may
// be read once decided is closed, the rest once done is.
type item struct {
	*member
	memory Record
	needs  []*item // what it depends on
	// aside: nobody asked for it, but something that was asked for depends on
	// it. It is decided on, and neither carried out nor shown.
	aside    bool
	decision Decision
	// moves are the workloads that an update of it moves, itself among them, and
	// related those of the same group that it leaves.
	moves, related []string
	alone          bool // nothing else may be under way then
	// apart: it failed together with others, and is to show by itself who is to blame.
	apart   bool
	decided chan struct{}

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
	reasons := map[Reason]int{}
	for _, it := range p.items {
		<-it.decided
		listed[it.workload.ID] = true
		if it.decision.Update {
			updates++
		}
		if !it.aside {
			reasons[it.decision.Reason]++
		}
	}
	if p.unavailable == nil && len(names) == 0 {
		w.mu.Lock()
		maps.DeleteFunc(w.told, func(id string, _ news) bool { return !listed[id] })
		w.mu.Unlock()
	}
	if len(names) == 0 {
		w.saw(len(p.items), updates, p.unavailable)
	} else {
		w.looked(p.unavailable)
	}
	w.watching().Passed(Passed{Backend: w.backend.Name(), Began: began, Took: time.Since(began), Decided: reasons, Part: len(names) > 0, Err: p.unavailable})
	w.log.Info("pass over", "workloads", len(p.items), "updates", updates, "took", time.Since(began).Round(time.Millisecond))
	return p
}

// deciders is how many workloads are decided on at once for each registry: several
// times the requests that may be under way to it, for some have the same image. A
// goroutine for each of thousands of workloads would cost more memory than all else.
const deciders = 64

// run fills the pass and has everything decided on, each registry's images by
// goroutines of its own, so that a slow one holds up nobody else's change. How many
// questions are under way at once is the registry's to bound, by host.
func (p *pass) run(ctx context.Context, names []string, start func(func())) {
	p.found = map[string]bool{}
	p.open = map[string]Change{}
	p.busy = p.busyNow()
	open, err := p.journal.Open(ctx)
	if err != nil {
		p.log.Error("journal cannot be read", "err", err)
	}
	for _, c := range open {
		for _, what := range c.takes() {
			p.open[what] = c
		}
	}
	workloads, err := p.backend.Workloads(ctx)
	if err != nil {
		p.unavailable = err
		if p.act {
			p.log.Error("backend cannot be asked", "err", err)
		}
		return
	}
	p.asOf = time.Now()
	p.memory, err = p.journal.Recall(ctx)
	if err != nil {
		p.log.Error("memory cannot be read", "err", err)
	} else {
		p.recalls(p.memory)
	}
	p.choose(workloads, names)
	p.hear()

	byRegistry := map[string][]*item{}
	for _, it := range p.items {
		r := registryOf(it.workload.Image)
		byRegistry[r] = append(byRegistry[r], it)
	}
	for _, items := range byRegistry {
		queue := make(chan *item, len(items))
		for _, it := range items {
			queue <- it
		}
		close(queue)
		for range min(len(items), deciders) {
			start(func() {
				for it := range queue {
					p.decide(ctx, it)
					p.goOn(ctx, it, start)
				}
			})
		}
	}
}

// registryOf names the registry of an image; "" when it is no reference.
func registryOf(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return ""
	}
	return reference.Domain(named)
}

// goOn does what follows from a decision; what takes its time, in a goroutine of its
// own, for it waits for decisions that are yet to be made.
func (p *pass) goOn(ctx context.Context, it *item, start func(func())) {
	if !it.decision.Update || it.aside {
		close(it.done)
		return
	}
	start(func() {
		defer close(it.done)
		if p.act {
			p.carryOut(ctx, it)
		} else {
			p.foresee(it)
		}
	})
}

// hear notes which words this pass goes by.
func (p *pass) hear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range p.items {
		if n := it.memory.newest(); !n.IsZero() && !it.aside {
			p.heard[it.workload.ID] = n
		}
	}
}

// unheard are the workloads with a word that asks for something and that no pass of
// this process knew yet. Each is told once.
func (w *work) unheard(ctx context.Context) []string {
	memory, err := w.journal.Recall(ctx)
	if err != nil {
		return nil // a pass says so
	}
	w.recalls(memory)
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.heard, func(id string, _ time.Time) bool { return memory[id].newest().IsZero() })
	var names []string
	for id, m := range memory {
		// Not later: whoever wrote it may have another clock.
		if n := m.newest(); !n.IsZero() && !n.Equal(w.heard[id]) && id != Everything {
			w.heard[id] = n
			names = append(names, id)
		}
	}
	slices.Sort(names)
	return names
}

// choose makes the items: the watched workloads, or those of them that a
// person named, with what they depend on found among all.
func (p *pass) choose(workloads []Workload, named []string) {
	backend := p.backend.Name()
	byID := map[string]*item{}
	exists := map[string]bool{}
	p.known = map[string]*member{}
	// A workload in the middle of a change may be absent from the backend's list.
	for id := range p.open {
		exists[id] = true
		for _, n := range named {
			if names(n, backend, id) {
				p.found[n] = true
			}
		}
	}
	for id := range p.busy {
		exists[id] = true
	}
	for _, w := range workloads {
		exists[w.ID] = true
		s, err := p.rules.Settings(w)
		m := &member{w, s, err}
		p.known[w.ID] = m
		if err == nil && !s.Enabled {
			continue
		}
		it := &item{member: m, memory: recall(p.memory, w.ID), decided: make(chan struct{}), done: make(chan struct{})}
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
	defer func() {
		it.decision.Hold, it.decision.AsOf = hold(it.settings, it.memory, time.Now()), p.asOf
		p.tell(it)
		if p.act && !it.aside && !it.stopped {
			p.watching().Decided(it.workload, it.decision)
		}
	}()
	id := it.workload.ID
	if it.decision.Reason != "" {
		return // its settings are wrong
	}
	c, open := p.open[id]
	if _, was := p.busy[id]; was || open || p.isBusy(id) {
		it.decision = Decision{Reason: InProgress, Detail: c.underWay()}
		return
	}
	f := p.search(ctx, it)
	if ctx.Err() != nil {
		it.stopped = true
		it.decision = Decision{Candidate: f.candidate, Reason: InProgress, Detail: "interrupted"}
		return
	}
	p.learn(ctx, it, f)
	it.decision = decide(it.workload, it.settings, f, it.memory, time.Now())
	p.answer(ctx, it)
	if it.decision.Update {
		// What cannot be done faithfully is refused before anything is touched.
		c := p.wish(it)
		if err := p.backend.Plan(ctx, &c, p.join(p.memory)); err != nil {
			it.decision = refused(it.decision, err)
			return
		}
		for _, what := range c.Touches {
			if _, open := p.open[what]; open || p.busy[what] != "" {
				it.decision = Decision{Candidate: f.candidate, Reason: InProgress, Detail: "a change of " + what + " is under way"}
				return
			}
		}
		it.related, it.alone, it.moves = c.Related, c.Alone, c.Touches
		it.apart = it.memory.Apart != "" && it.memory.Apart == it.decision.Candidate.Digest
		var along []string
		for _, part := range c.Parts {
			it.moves = append(it.moves, part.Workload)
			if part.Workload != id {
				along = append(along, part.Workload)
			}
		}
		if len(along) > 0 { // whoever reads a check is to know what else goes down
			it.decision.Detail += "; along with it: " + strings.Join(along, ", ")
		}
		if p.act && !it.aside && !p.reserve(id) {
			it.decision = Decision{Candidate: f.candidate, Reason: InProgress, Detail: "a change of it is under way"}
			return
		}
	}
}

// search finds what a workload should run: what a person asked to go back to,
// else what the registry says.
func (p *pass) search(ctx context.Context, it *item) finding {
	now := time.Now()
	if asked := it.memory.ask(now); asked.back() {
		back := asked.Back
		if it.settings.writes(it.workload) == WriteDigest {
			back.Ref = bare(back.Ref) + "@" + back.Digest // the tag may stand for another by now
		}
		return finding{candidate: &back}
	}
	return look(ctx, p.rules.Registry, it.workload, it.settings, it.memory, now)
}

// answer drops what a person asked for when it is not going to be done.
func (p *pass) answer(ctx context.Context, it *item) {
	asked := it.memory.Asked
	if asked == nil || !p.act || it.aside || it.decision.Update {
		return
	}
	if asked.holds(time.Now()) {
		switch it.decision.Reason {
		case BackendUnavailable, RegistryUnavailable, RateLimited, InProgress, NotRunning:
			return // it may still be, before the ask lapses
		}
	}
	id := it.workload.ID
	if err := p.journal.Remember(ctx, map[string]func(*Record){id: func(m *Record) { m.answered(asked.At) }}); err != nil {
		p.log.Error("memory cannot be written", "workload", id, "err", err)
	}
}

// foresee says of a decision that nobody carries out what it would wait for.
func (p *pass) foresee(it *item) {
	team := p.team(it)
	if loop := p.entangled(team); loop != "" {
		it.late = &Decision{Candidate: it.decision.Candidate, Reason: InvalidSettings, Detail: entangled(it, loop)}
	} else if waits := waitsFor(team); waits != "" {
		it.late = &Decision{Candidate: it.decision.Candidate, Reason: Waiting, Detail: waits}
	}
}

func entangled(it *item, loop string) string {
	return "it depends on itself: " + it.workload.ID + " needs " + loop + ", which moves together with it"
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

// wish is the change that the decisions of a team ask for. It goes by the first.
func (p *pass) wish(team ...*item) Change {
	c := Change{
		// The time first, so that ids sort by age wherever they show up.
		ID:      time.Now().UTC().Format("20060102T150405") + "-" + strings.ToLower(rand.Text()[:8]),
		Backend: p.backend.Name(), Unit: team[0].workload.ID, Phase: Preparing, Since: time.Now(),
	}
	for _, it := range team {
		w, s, asked := it.workload, it.settings, it.memory.ask(time.Now())
		// What an update broke may have stopped, and is to come back all the same.
		s.IncludeStopped = s.IncludeStopped || asked.back()
		c.Parts = append(c.Parts, Part{
			Workload: w.ID, Settings: s, Replace: true, Asked: asked,
			From: Image{Ref: w.Image, Digest: w.Runs.Digest(), Manifest: w.Runs.Manifest, Config: w.Runs.Config},
			To:   *it.decision.Candidate,
		})
	}
	return c
}

// join returns what says whether a workload may move along with others, watched
// or not, and by which settings. Nobody asked for an update of it, so what a
// person said about leaving it alone counts, and what was said about updates
// does not.
func (p *pass) join(memory map[string]Record) func(id string) (Settings, error) {
	return func(id string) (Settings, error) {
		m, ok := p.known[id]
		refuse := func(r Reason, format string, args ...any) (Settings, error) {
			return Settings{}, &Refusal{Reason: r, Detail: id + ", which must move along, " + fmt.Sprintf(format, args...)}
		}
		_, open := p.open[id]
		hold, pause := memory[id].Hold, memory[Everything].Hold
		now := time.Now()
		switch {
		case open || p.busy[id] != "":
			return refuse(InProgress, "has a change under way")
		case !ok:
			return refuse(InProgress, "has come since the workloads were listed; the next pass knows it")
		case m.invalid != nil:
			return refuse(InvalidSettings, "has settings that cannot be used: %v", m.invalid)
		case m.settings.Mode == ModeHold:
			return refuse(Held, "has the mode hold")
		case pause.holds(now):
			return refuse(Paused, "is paused with everything since %s%s", stamp(pause.At), said(*pause))
		case hold.holds(now):
			return refuse(Held, "is held since %s%s", stamp(hold.At), said(*hold))
		case m.settings.Mode == ModeMonitor:
			return refuse(Monitor, "has the mode monitor, so it is not touched")
		case !m.settings.Window.Open(now):
			return refuse(OutsideWindow, "has the window %s; it opens at %s", m.settings.Window, stamp(m.settings.Window.Next(now)))
		}
		return m.settings, nil
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

// team are those that move together with one that is to be updated: whose
// updates move a workload in common. It blocks until all that may be among them
// are decided on, which waits for nothing but registries and the backend.
func (p *pass) team(it *item) []*item {
	team := []*item{it}
	for i := 0; i < len(team); i++ {
		near := slices.Concat(team[i].moves, team[i].related)
		for _, other := range p.items {
			if slices.Contains(team, other) || other.aside || !slices.Contains(near, other.workload.ID) {
				continue
			}
			<-other.decided
			if it.apart || other.apart {
				continue
			}
			shared := slices.ContainsFunc(other.moves, func(id string) bool { return slices.Contains(team[i].moves, id) })
			if other.decision.Update && shared {
				team = append(team, other)
			}
		}
	}
	slices.SortFunc(team, func(a, b *item) int { return strings.Compare(a.workload.ID, b.workload.ID) })
	return team
}

// needsOf are what a team depends on, outside of itself.
func needsOf(team []*item) []*item {
	var needs []*item
	for _, it := range team {
		for _, need := range it.needs {
			if !slices.Contains(team, need) && !slices.Contains(needs, need) {
				needs = append(needs, need)
			}
		}
	}
	return needs
}

// entangled says how a team would have to wait for itself: something it depends
// on moves together with what depends on it. "" when it does not.
func (p *pass) entangled(team []*item) string { return p.path(team, team) }

// path says by which of what it depends on one team waits for another; "" when it
// does not.
func (p *pass) path(from, to []*item) string {
	seen := map[*item]bool{}
	var follow func(at []*item) string
	follow = func(at []*item) string {
		for _, need := range needsOf(at) {
			<-need.decided
			if seen[need] || !need.decision.Update {
				continue
			}
			seen[need] = true
			if slices.Contains(to, need) {
				return need.workload.ID
			}
			others := p.team(need)
			for _, o := range others {
				if slices.Contains(to, o) {
					return o.workload.ID
				}
			}
			if found := follow(others); found != "" {
				return need.workload.ID + " needs " + found
			}
		}
		return ""
	}
	return follow(from)
}

// letOthers waits until what else this pass carries out is over, but for what
// must be alone too, or waits for such: when updaterd itself has been replaced,
// the rest of a pass would have to wait for the next.
func (p *pass) letOthers(stop context.Context) {
	var lonely, others []*item
	for _, it := range p.items {
		<-it.decided
		switch {
		case it.alone:
			lonely = append(lonely, it)
		case it.decision.Update && !it.aside:
			others = append(others, it)
		}
	}
	for _, it := range others {
		team := p.team(it)
		if slices.ContainsFunc(team, func(t *item) bool { return t.alone }) || p.path(team, lonely) != "" {
			continue
		}
		select {
		case <-it.done:
		case <-stop.Done():
			return
		}
	}
}

// waitsFor says which of what a team depends on comes first; "" when nothing
// does. It blocks until that is decided.
func waitsFor(team []*item) string {
	for _, need := range needsOf(team) {
		<-need.decided
		if need.decision.Update || need.decision.Reason == InProgress {
			return need.workload.ID + ", which it depends on, comes first"
		}
	}
	return ""
}

// carryOut takes a decision to its end, when its turn comes: together with what
// moves with it, after what it depends on, and when a slot is free.
func (p *pass) carryOut(stop context.Context, it *item) {
	defer p.release(it.workload.ID)
	defer func() {
		it.stopped = it.stopped || stop.Err() != nil
		if it.late != nil && it.late.AsOf.IsZero() {
			it.late.Hold, it.late.AsOf = it.decision.Hold, p.asOf
		}
		if it.late != nil && !it.stopped {
			p.watching().Postponed(it.workload, *it.late)
		}
	}()
	give := func(r Reason, detail string) {
		it.late = &Decision{Candidate: it.decision.Candidate, Reason: r, Detail: detail}
	}
	team := p.team(it)
	if first := team[0]; first != it {
		<-first.done
		it.outcome = first.outcome
		if first.late != nil {
			give(first.late.Reason, first.late.Detail)
		}
		return
	}
	if loop := p.entangled(team); loop != "" {
		give(InvalidSettings, entangled(it, loop))
		return
	}
	for _, need := range needsOf(team) {
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
	giveUp := func() {}
	alone := slices.ContainsFunc(team, func(t *item) bool { return t.alone })
	if alone && p.once {
		give(Waiting, "updaterd updates itself when it runs as a daemon, not with --once")
		return
	}
	if alone {
		p.letOthers(stop)
	} else {
		p.mu.Lock()
		slots := p.slots
		p.mu.Unlock()
		select {
		case slots <- struct{}{}:
		case <-stop.Done():
			return
		}
		giveUp = sync.OnceFunc(func() { <-slots })
		defer giveUp()
	}
	if !p.crowd.enter(alone, false)(stop) {
		return
	}
	out := sync.OnceFunc(p.crowd.leave)
	defer out()

	// Time has passed: a person may have spoken, the window may have shut.
	asOf := time.Now()
	memory, err := p.journal.Recall(stop)
	if err != nil {
		give(Surroundings, fmt.Sprintf("the journal cannot be read: %v", err))
		return
	}
	for _, t := range team {
		f := finding{candidate: t.decision.Candidate, detail: t.decision.Detail}
		again := decide(t.workload, t.settings, f, recall(memory, t.workload.ID), time.Now())
		if !again.Update {
			again.Hold, again.AsOf = hold(it.settings, recall(memory, it.workload.ID), time.Now()), asOf
			if t != it {
				again.Detail = t.workload.ID + ": " + again.Detail
			}
			it.late = &again
			return
		}
	}
	c := p.wish(team...)
	if err := p.backend.Plan(stop, &c, p.join(memory)); err != nil {
		again := refused(it.decision, err)
		it.late = &again
		return
	}
	// Plan took what is there now for what is to come back. That it is still
	// what was decided on is looked at afterwards: what changes later, effects
	// see for themselves.
	if why := p.outdated(stop, c); why != "" {
		give(InProgress, why)
		return
	}
	if c.Alone && !alone {
		give(InProgress, "it moves updaterd itself by now; the next pass decides anew")
		return
	}
	if stop.Err() != nil {
		return
	}
	if !p.begin(c) {
		give(InProgress, "a change of it, or of what must move along, is under way")
		return
	}
	c = p.carry(stop, c, false, func() { giveUp(); out() })
	it.outcome = &c
}

// outdated says why the parts of a change no longer are what was listed; "" if
// they are.
func (p *pass) outdated(ctx context.Context, c Change) string {
	workloads, err := p.listAnew(ctx)
	if err != nil {
		return fmt.Sprintf("it cannot be looked at again: %v", err)
	}
	for _, part := range c.Parts {
		m := p.known[part.Workload]
		if m == nil {
			return part.Workload + " has come since the workloads were listed; the next pass decides anew"
		}
		was := m.workload
		image := Image{Digest: was.Runs.Digest(), Manifest: was.Runs.Manifest, Config: was.Runs.Config}
		fits := slices.ContainsFunc(workloads, func(w Workload) bool {
			same := w.Runs.Is(image) || w.Runs.Digest() == image.Digest
			return w.ID == was.ID && same && w.Image == was.Image && maps.Equal(w.Written, was.Written)
		})
		if !fits {
			return "somebody changed " + part.Workload + " since it was looked at; the next pass decides anew"
		}
	}
	return ""
}

// tell logs a decision when its reason is another than in the last pass; what waits for
// its owner also when it is another fault.
func (p *pass) tell(it *item) {
	if !p.act || p.once {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d, level := it.decision, slog.LevelInfo
	now := news{reason: d.Reason}
	if never(it.workload, d) {
		now.fault, level = d.Detail, slog.LevelWarn
	}
	if id := it.workload.ID; p.told[id] != now {
		p.told[id] = now
		p.log.Log(context.Background(), level, "decided", "workload", id, "reason", d.Reason, "detail", d.Detail)
	}
}

// news is what makes a decision worth a line in the log. Other details than a fault's
// change from pass to pass.
type news struct {
	reason Reason
	fault  string
}

// never reports whether a workload that its owner wants updated cannot be, until they
// change something.
func never(w Workload, d Decision) bool {
	_, own := w.Written["enable"]
	return d.Reason == InvalidSettings || d.Reason == Unsupported && own
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
	for id, c := range p.lasting() {
		wanted := len(named) == 0 || slices.ContainsFunc(named, func(n string) bool { return names(n, p.backend.Name(), id) })
		if wanted && !listed[id] && c.about(id).Settings.Enabled {
			rows = append(rows, p.absent(c.about(id), c))
		}
	}
	return rows
}

// lasting are the changes that a workload which is not listed can still be known
// by: those that this process carried, and those that the journal held.
func (p *pass) lasting() map[string]Change {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := maps.Clone(p.open)
	maps.Copy(all, p.ended)
	return all
}

// absent is the row of a workload that is known by its change only.
func (p *pass) absent(part Part, c Change) Row {
	r := Row{Backend: p.backend.Name(), Workload: part.Workload, Image: part.From.Ref, Policy: part.Settings.Policy.Policy,
		Decision: "none", Reason: InProgress, Detail: c.underWay(), trouble: c.Stuck != ""}
	if part.Changes() {
		r.Candidate = &RowCandidate{Image: part.To.Ref, Digest: part.To.Digest}
	}
	switch {
	case c.Phase == Superseded:
		r.Reason = NotRunning
	case c.Phase.Final() && c.verdictOn(part) == Bad:
		r.Reason = Rejected
	case c.Phase.Final() && c.verdictOn(part) == Unclear:
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
		Decision: "none", Reason: d.Reason, Detail: d.Detail, Hold: d.Hold,
		trouble: d.Reason == InProgress && p.open[w.ID].Stuck != "",
	}
	if !d.Until.IsZero() {
		r.Until = &d.Until
	}
	if d.Update {
		r.Decision = "update"
	}
	digest := w.Runs.Digest()
	if c := d.Candidate; c != nil {
		r.Candidate, r.manifest = &RowCandidate{Image: c.Ref, Digest: c.Digest}, c.Manifest
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
		// What was open from before was ended first, and is news; so is what
		// became of it along with another's update, which is no reason of its own.
		own := r
		p.report(&r, ended, it.stopped)
		r.Detail = own.Detail
		if !ended.about(w.ID).Changes() {
			r.Reason = own.Reason
		}
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
		r.Outcome, r.trouble = OutcomeNone, c.Verdict == Bad
		if c.Reason != "" {
			r.Reason, r.Decision = c.Reason, "none"
		}
	case !c.Phase.Final() && (stopped || c.Phase == Judging && c.Why != ""):
		r.Outcome = OutcomeOpen
	default:
		r.Outcome = OutcomeFailed
	}
	if c.Why != "" {
		r.Detail = c.Why
	}
}

package updater

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Verb is what a person says to updaterd.
type Verb string

// The verbs.
const (
	SayHold     Verb = "hold"     // these workloads stay as they are
	SayRelease  Verb = "release"  // they no longer need to
	SayApprove  Verb = "approve"  // this digest may be put there
	SayReject   Verb = "reject"   // this digest may not
	SayForget   Verb = "forget"   // what was rejected gets another chance, and what is waited for is tried at once
	SayPause    Verb = "pause"    // no new change of anything begins
	SayResume   Verb = "resume"   // it may again
	SayUpdate   Verb = "update"   // now, whatever is waited for
	SayRollback Verb = "rollback" // to the image before, now
	SayCheck    Verb = "check"    // look now
)

// Verbs are all of them.
func Verbs() []Verb {
	return []Verb{SayHold, SayRelease, SayApprove, SayReject, SayForget, SayPause, SayResume, SayUpdate, SayRollback, SayCheck}
}

// ErrSaying: what was said makes no sense, whatever the state of things.
var ErrSaying = errors.New("it cannot be said so")

// ErrNot: what was said makes sense, and cannot be done as things are.
var ErrNot = errors.New("it cannot be done now")

// Saying is one thing that a person says, of one workload, of several or of all.
type Saying struct {
	Verb Verb
	// Workloads are their names or ids. None: all that are watched, which only
	// update and check take; pause and resume are about everything and take none.
	Workloads []string
	// Digest is what approve, reject and rollback are about. Empty: the candidate;
	// the image before.
	Digest string
	// Word is who says so and why, and when it lapses, where it can: hold, pause,
	// approve, reject. At is filled in.
	Word
}

// Told is what became of a Saying for one workload, or for everything in one
// backend.
type Told struct {
	Backend  string `json:"backend"`
	Workload string `json:"workload,omitempty"`
	// Changed is false when it was so already.
	Changed bool `json:"changed"`
	// At is when it was written: a decision as of then goes by it.
	At time.Time `json:"at"`
	// Until is when it lapses, where it does.
	Until *time.Time `json:"until,omitempty"`
	// Image is what it is about.
	Image *RowCandidate `json:"image,omitempty"`
	// Note is what is in the way of it all the same, or what it is not needed for, in
	// a sentence; "" when nothing is to be said.
	Note string `json:"note,omitempty"`
	// Rejected and Retry are what forget lifted.
	Rejected []Rejection `json:"rejected,omitempty"`
	Retry    *Retry      `json:"retry,omitempty"`
}

// askLasts is how long something asked for at once may wait for its turn: for a
// change under way, for a registry that is down, for updaterd to be started.
const askLasts = time.Hour

// Say makes a person's word part of what is remembered, in every journal that it
// concerns, and of the history. It works beside a daemon, and beside the process
// that leads: whoever leads acts by it. Saying a thing twice is saying it once.
// All names must be known (ErrUnknownWorkload) and all of it must make sense
// (ErrSaying, ErrNot), or nothing is remembered. The Updater that is told looks
// at once, if it runs.
func (u *Updater) Say(ctx context.Context, s Saying) ([]Told, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	s.At = time.Now()
	plans, err := u.meant(ctx, s)
	if err != nil {
		return nil, err
	}
	if len(plans) == 0 && s.Verb != SayCheck {
		return []Told{}, nil
	}
	told := []Told{}
	for _, p := range plans {
		t, err := u.remember(ctx, s, p)
		if err == nil && t.Changed {
			u.arrive(ctx, s, p)
		}
		t.At = time.Now()
		if err != nil {
			return told, fmt.Errorf("%s of %s: %w", s.Verb, cmp.Or(p.workload, "everything on "+p.place.Backend.Name()), err)
		}
		told = append(told, t)
	}
	u.Look(s.Workloads...)
	return told, nil
}

// check says what is wrong with a saying by itself.
func (s Saying) check() error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrSaying, s.Verb, fmt.Sprintf(format, args...))
	}
	everything := s.Verb == SayPause || s.Verb == SayResume
	lapses := s.Verb == SayHold || s.Verb == SayPause || s.Verb == SayApprove || s.Verb == SayReject
	aboutOne := s.Verb == SayApprove || s.Verb == SayReject || s.Verb == SayRollback
	switch {
	case !slices.Contains(Verbs(), s.Verb):
		return fmt.Errorf("%w: there is no %q", ErrSaying, s.Verb)
	case everything && len(s.Workloads) > 0:
		return wrong("it is about everything; name no workload, or hold and release those")
	case !everything && len(s.Workloads) == 0 && s.Verb != SayUpdate && s.Verb != SayCheck:
		return wrong("name a workload")
	case s.Digest != "" && !aboutOne:
		return wrong("it takes no digest")
	case s.Digest != "" && len(s.Workloads) > 1:
		return wrong("a digest is about one workload")
	case s.Digest != "" && digest.Digest(s.Digest).Validate() != nil:
		// One that was cut off, as tables show it, would be remembered and mean nothing.
		return wrong("%q is no digest; write it whole, as -o json shows it: sha256: and 64 digits", s.Digest)
	case !s.Until.IsZero() && !lapses:
		return wrong("it does not lapse")
	case !s.Until.IsZero() && !s.Until.After(time.Now()):
		return wrong("it would have lapsed already")
	}
	return nil
}

// saying is a Saying for one workload.
type saying struct {
	place    Place
	workload string // "": everything
	image    Image  // what it is about
	done     bool   // it is so already
	settings Settings
}

// meant finds the workloads that are meant, and for each the image that it is
// about. It changes nothing.
func (u *Updater) meant(ctx context.Context, s Saying) ([]saying, error) {
	rules, _ := u.current()
	var waiting map[string]bool // of all, those that there is something for
	if s.Verb == SayUpdate && len(s.Workloads) == 0 {
		rows, err := u.Check(ctx, nil)
		if err != nil {
			return nil, err
		}
		waiting = map[string]bool{}
		for _, r := range rows {
			waiting[r.Workload] = r.Candidate != nil && r.Reason != UpToDate
		}
	}
	var all []saying
	found := map[string]bool{}
	var unasked, wrong []error
	for _, place := range u.places {
		if s.Verb == SayPause || s.Verb == SayResume {
			all = append(all, saying{place: place})
			continue
		}
		memory, err := place.State.Journal().Recall(ctx)
		if err != nil {
			return nil, err
		}
		backend := place.Backend.Name()
		ids, settings := map[string]Workload{}, map[string]Settings{}
		for id := range memory {
			// What an engine does not show now may be held and forgotten as well.
			if id != Everything && s.Verb.ofMemory() {
				ids[id] = Workload{ID: id, Backend: backend}
			}
		}
		workloads, err := place.Backend.Workloads(ctx)
		if err != nil {
			unasked = append(unasked, err)
		}
		for _, w := range workloads {
			set, err := rules.Settings(w)
			if s.Verb == SayHold || s.Verb == SayRelease || err != nil || set.Enabled {
				ids[w.ID], settings[w.ID] = w, set
			}
		}
		for _, id := range slices.Sorted(maps.Keys(ids)) {
			mine := waiting[id]
			for _, n := range s.Workloads {
				if names(n, backend, id) {
					mine, found[n] = true, true
				}
			}
			if !mine || s.Verb == SayCheck {
				continue
			}
			one := saying{place: place, workload: id, settings: settings[id]}
			if one.image, err = u.about(ctx, s, ids[id], memory[id]); err != nil {
				wrong = append(wrong, err)
			}
			one.done = s.Verb == SayRollback && slices.Contains(ids[id].Runs.Digests, one.image.Digest)
			all = append(all, one)
		}
	}
	for _, n := range s.Workloads {
		switch {
		case found[n]:
		case len(unasked) > 0:
			wrong = append(wrong, fmt.Errorf("%w: whether there is a workload %q: %w", ErrNot, n, errors.Join(unasked...)))
		default:
			wrong = append(wrong, unknown(n))
		}
	}
	return all, errors.Join(wrong...)
}

// ofMemory reports whether it can be said of a workload that is only remembered.
func (v Verb) ofMemory() bool { return v == SayHold || v == SayRelease || v == SayForget }

func unknown(name string) error {
	return fmt.Errorf("%w: no watched workload is called %q; updaterd check lists them, and the label updaterd.enable=true makes it one", ErrUnknownWorkload, name)
}

// about is the image that a saying is about.
func (u *Updater) about(ctx context.Context, s Saying, w Workload, m Record) (Image, error) {
	switch s.Verb {
	case SayRollback:
		return m.before(w, s.Digest, s.At)
	case SayApprove, SayReject:
		if s.Digest != "" {
			return Image{Ref: w.Image, Digest: s.Digest}, nil
		}
		rows, err := u.Check(ctx, []string{w.ID})
		if err != nil {
			return Image{}, err
		}
		for _, r := range rows {
			if r.Workload == w.ID && r.Candidate != nil && r.Reason != UpToDate {
				about := Image{Ref: r.Candidate.Image, Digest: r.Candidate.Digest}
				if s.Verb == SayApprove {
					about.Manifest = r.manifest // a rejection may go by it, but not a person's
				}
				return about, nil
			}
			if r.Workload == w.ID {
				return Image{}, fmt.Errorf("%w: %s of %s: there is no new image (%s: %s)", ErrNot, s.Verb, w.ID, r.Reason, r.Detail)
			}
		}
		return Image{}, fmt.Errorf("%w: %s of %s: it is not there", ErrNot, s.Verb, w.ID)
	}
	return Image{}, nil
}

// before is the image to go back to: that of a digest, or else the last one that
// does not run and was not found bad or left.
func (m Record) before(w Workload, digest string, now time.Time) (Image, error) {
	if digest != "" && slices.Contains(w.Runs.Digests, digest) {
		return Image{Ref: w.Image, Digest: digest}, nil // it is back already
	}
	for _, i := range slices.Backward(m.Previous) {
		if digest == i.Digest || digest == "" && !w.Runs.Is(i) && m.rejection(i, now) == nil {
			return i, nil
		}
	}
	if a := m.ask(now); a.back() && digest == "" {
		return a.Back, nil
	}
	what := "no earlier image of it is kept"
	if digest != "" {
		what = "no image " + digest + " of it is kept"
	}
	return Image{}, fmt.Errorf("%w: rollback of %s: %s; the setting keep says how many are", ErrNot, w.ID, what)
}

// remember writes one saying into the journal and the history, in the order in
// which a crash between them leaves a line about something that was not done, and
// never something done without a line.
func (u *Updater) remember(ctx context.Context, s Saying, one saying) (Told, error) {
	j, backend := one.place.State.Journal(), one.place.Backend.Name()
	t := Told{Backend: backend, Workload: one.workload}
	if !s.Until.IsZero() {
		t.Until = &s.Until
	}
	if one.image.Digest != "" {
		t.Image = &RowCandidate{Image: one.image.Ref, Digest: one.image.Digest}
	}
	if one.done {
		return t, nil
	}
	id := cmp.Or(one.workload, Everything)
	memory, err := j.Recall(ctx)
	if err != nil {
		return t, err
	}
	was := memory[id]
	now := was.clone()
	event := s.edit(&now, one.image)
	now.paused = memory[Everything].Hold
	t.Note = s.note(one, now, event != "")
	if event == "" {
		return t, nil
	}
	t.Changed = true
	var entries []Entry
	e := Entry{At: s.At, Backend: backend, Workload: one.workload, Event: event, Who: s.Who, Why: s.Why, To: one.image}
	if s.Verb == SayForget {
		t.Rejected, t.Retry = was.Rejected, was.Retry
		for _, r := range was.Rejected {
			e.To, e.Why = r.Image, r.Why
			entries = append(entries, e)
		}
	} else {
		entries = append(entries, e)
	}
	for _, e := range entries {
		if err := j.Note(ctx, e); err != nil {
			return t, err
		}
	}
	if err := j.Remember(ctx, map[string]func(*Record){id: func(m *Record) { s.edit(m, one.image) }}); err != nil {
		return t, err
	}
	rules, _ := u.current()
	for _, e := range entries {
		rules.Notifier.Notify(ctx, e)
	}
	return t, nil
}

// note is what a saying does not do by itself, or is not needed for, given what is
// remembered once it is said; "" when there is nothing to add. It is pure.
func (s Saying) note(one saying, m Record, changed bool) string {
	switch s.Verb {
	case SayApprove:
	case SayForget:
		// What is approved is not forgotten along: a digest that gets another chance is
		// to be tried, and not to wait for a person again.
		for _, digest := range slices.Sorted(maps.Keys(m.Approved)) {
			if a := m.Approved[digest]; a.holds(s.At) && !changed {
				return fmt.Sprintf("the approval of %s%s stands; to withdraw it: updaterd reject %s --digest %s, then updaterd forget %s",
					digest, by(a.Who), one.workload, digest, one.workload)
			}
		}
		return ""
	default:
		return ""
	}
	if r := m.rejection(one.image, s.At); r != nil {
		return fmt.Sprintf("it is still %s since %s%s%s: %s; to let it be tried again: updaterd forget %s", r.Reason, stamp(r.At), by(r.Who), until(r.Until), r.Why, one.workload)
	}
	if h := hold(one.settings, m, s.At); h != nil {
		return "it is not put there yet: " + h.Detail
	}
	switch one.settings.Mode {
	case ModeUpdate:
		return "its mode is update, which waits for no approval"
	case ModeMonitor:
		return "its mode is monitor, so it is not put there; to have it now: updaterd update " + one.workload
	}
	return ""
}

// arriveWithin is how long what was written is waited for in the journal that passes
// go by.
const arriveWithin = 3 * time.Second

// arrive waits until what was said is to be read in the journal that passes of this
// process go by, which may be one that a watch brings up to date: the look that
// follows would else not know of it. It gives up where the word has been acted on, or
// overruled, meanwhile.
func (u *Updater) arrive(ctx context.Context, s Saying, one saying) {
	var w *work
	u.mu.Lock()
	for i, place := range u.places {
		if place.Backend.Name() == one.place.Backend.Name() {
			w = u.works[i]
		}
	}
	u.mu.Unlock()
	if w == nil {
		return // whoever leads finds it
	}
	for until := time.Now().Add(arriveWithin); ; {
		memory, err := w.journal.Recall(ctx)
		m := memory[cmp.Or(one.workload, Everything)].clone()
		if err != nil || s.edit(&m, one.image) == "" || !time.Now().Before(until) || !sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}

// clone is a copy whose maps and lists an edit may change.
func (m Record) clone() Record {
	m.Rejected, m.Approved = slices.Clone(m.Rejected), maps.Clone(m.Approved)
	return m
}

// edit makes a saying part of a record and returns the event that it is; "" when
// the record said so already. It is pure.
func (s Saying) edit(m *Record, about Image) Event {
	now := s.At
	lapse := func(w *Word) bool { return w.holds(now) && w.Until.Equal(s.Until) && (s.Why == "" || s.Why == w.Why) }
	word := s.Word
	switch s.Verb {
	case SayHold, SayPause:
		if lapse(m.Hold) {
			return ""
		}
		m.Hold = &word
		if s.Verb == SayPause {
			return EventPaused
		}
		return EventHeld
	case SayRelease, SayResume:
		held := m.Hold.holds(now)
		m.Hold = nil
		switch {
		case !held:
			return ""
		case s.Verb == SayResume:
			return EventResumed
		}
		return EventReleased
	case SayApprove:
		was, ok := m.Approved[about.Digest]
		kept := slices.DeleteFunc(slices.Clone(m.Rejected), func(r Rejection) bool { return r.Who != "" && r.Digest == about.Digest && r.Reason == Rejected })
		if ok && lapse(&was) && len(kept) == len(m.Rejected) {
			return ""
		}
		m.Rejected = kept // the last word counts
		if len(kept) == 0 {
			m.Rejected = nil
		}
		maps.DeleteFunc(m.Approved, func(_ string, w Word) bool { return !w.holds(now) })
		if m.Approved == nil {
			m.Approved = map[string]Word{}
		}
		m.Approved[about.Digest] = word
		return EventApproved
	case SayReject:
		r := Rejection{Image: about, Reason: Rejected, Why: cmp.Or(s.Why, "a person does not want it"), At: now, Who: s.Who, Until: s.Until}
		if was := m.rejection(about, now); was != nil && was.Until.Equal(s.Until) && (s.Why == "" || was.Why == s.Why) {
			return ""
		}
		delete(m.Approved, about.Digest)
		if len(m.Approved) == 0 {
			m.Approved = nil
		}
		m.reject(r)
		return EventRejected
	case SayForget:
		if len(m.Rejected) == 0 && m.Retry == nil {
			return ""
		}
		m.Rejected, m.Retry = nil, nil
		return EventForgotten
	case SayUpdate, SayRollback:
		if a := m.ask(now); a != nil && a.Back.Digest == about.Digest {
			return ""
		}
		word.Until = now.Add(askLasts)
		m.Asked = &Ask{Word: word, Back: about}
		if s.Verb == SayRollback {
			return EventRollbackAsked
		}
		return EventUpdateAsked
	}
	return ""
}

// History is what happened everywhere, newest first.
func (u *Updater) History(ctx context.Context) ([]Entry, error) {
	var all []Entry
	for _, place := range u.places {
		some, err := place.State.Journal().History(ctx, 0)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	slices.SortStableFunc(all, func(a, b Entry) int { return b.At.Compare(a.At) })
	return all, nil
}

// Look has a running Updater look at these workloads at once, or at all, instead
// of waiting for its next pass. It returns before it has. Names that mean nothing
// are nothing to look at.
func (u *Updater) Look(names ...string) {
	for i := range u.calls {
		u.calls[i].ring(names)
	}
}

// call is what a place is to look at before its next pass.
type call struct {
	rung chan struct{} // holds one while something is

	mu    sync.Mutex
	all   bool
	names map[string]bool
}

func (c *call) ring(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(names) == 0 {
		c.all = true
	}
	if c.names == nil {
		c.names = map[string]bool{}
	}
	for _, n := range names {
		c.names[n] = true
	}
	select {
	case c.rung <- struct{}{}:
	default: // it has been, and nobody came yet
	}
}

// take is what was asked for since the last time.
func (c *call) take() (names []string, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names, all = slices.Sorted(maps.Keys(c.names)), c.all || len(c.names) == 0
	c.names, c.all = nil, false
	return names, all
}

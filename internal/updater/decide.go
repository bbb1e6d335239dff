package updater

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Decision says what is to become of one workload in one pass, and why.
type Decision struct {
	Update bool
	// Candidate is what the policy names, whenever one was found, whatever the
	// decision.
	Candidate *Image
	Reason    Reason
	// Detail is the reason in a sentence.
	Detail string
	// Until is when the reason will pass by itself; zero if it will not, or
	// nobody knows.
	Until time.Time
	// Hold is what keeps the workload as it is, whatever the reason; nil when nothing
	// does.
	Hold *Hold
	// AsOf is when what is remembered was read: a word said later is not in it.
	AsOf time.Time
}

// Hold is a person's word that a workload stays as it is, whether or not there is
// an update for it.
type Hold struct {
	Reason Reason    `json:"reason"` // Held, or Paused with everything
	Detail string    `json:"detail"` // since when, by whom and why
	Until  time.Time `json:"until,omitzero"`
}

// hold is what keeps a workload as it is; nil when nothing does. It is pure.
func hold(s Settings, m Record, now time.Time) *Hold {
	switch {
	case m.paused.holds(now):
		return &Hold{Paused, fmt.Sprintf("everything is paused since %s%s", stamp(m.paused.At), said(*m.paused)), m.paused.Until}
	case s.Mode == ModeHold:
		return &Hold{Reason: Held, Detail: "its mode is hold"}
	case m.Hold.holds(now):
		return &Hold{Held, fmt.Sprintf("held since %s%s", stamp(m.Hold.At), said(*m.Hold)), m.Hold.Until}
	}
	return nil
}

// decide is pure: everything it goes by is handed in. A change of the same
// unit that is under way is the caller's to see.
func decide(w Workload, s Settings, f finding, m Record, now time.Time) Decision {
	d := Decision{Candidate: f.candidate}
	say := func(r Reason, until time.Time, format string, args ...any) Decision {
		d.Reason, d.Until, d.Detail = r, until, fmt.Sprintf(format, args...)
		return d
	}
	asked := m.ask(now)
	skip := w.Skip
	if skip != nil && skip.Reason == NotRunning && (s.IncludeStopped || asked.back()) || adopted(w, s) {
		skip = nil
	}
	if skip != nil && (skip.Reason == NotRunning || skip.Reason == Mixed || skip.Reason == BackendUnavailable) {
		// Whatever the registry holds: what does not run, or not in one version, or
		// cannot be looked at, is not up to date either.
		return say(skip.Reason, time.Time{}, "%s", skip.Detail)
	}
	if f.refusal != nil {
		return say(f.refusal.Reason, time.Time{}, "%s", f.refusal.Detail)
	}
	c := *f.candidate
	if w.Runs.Is(c) {
		switch {
		case bare(c.Ref) == bare(w.Image):
		case !slices.Contains(w.Runs.Digests, c.Digest):
			return say(UpToDate, time.Time{}, "%s is the same image for %s", bare(c.Ref), w.Runs.Platform)
		default:
			return say(UpToDate, time.Time{}, "%s is the same image under another tag", bare(c.Ref))
		}
		return say(UpToDate, time.Time{}, "it runs what %s stands for", bare(c.Ref))
	}
	if skip != nil {
		return say(skip.Reason, time.Time{}, "%s", skip.Detail)
	}
	if h := hold(s, m, now); h != nil {
		return say(h.Reason, h.Until, "%s", h.Detail)
	}
	if s.Mode == ModeMonitor && asked == nil {
		return say(Monitor, time.Time{}, "%s is there; its mode is monitor, so it is not touched", bare(c.Ref))
	}
	if r := m.rejection(c, now); r != nil {
		return say(r.Reason, r.Until, "%s since %s%s%s: %s; lift it with: updaterd forget %s", r.Reason, stamp(r.At), by(r.Who), until(r.Until), r.Why, w.ID)
	}
	if asked != nil {
		d.Update = true
		return say(Update, time.Time{}, "asked for at %s%s", stamp(asked.At), said(asked.Word))
	}
	if r := m.Retry; r != nil && r.Digest == c.Digest && now.Before(r.After) {
		return say(Surroundings, r.After, "attempt %d failed, the image is not to blame: %s; tried again after %s, or at once after: updaterd forget %s",
			r.Attempts, r.Why, stamp(r.After), w.ID)
	}
	seen, ok := m.Seen[c.Digest]
	if !ok {
		seen = now
	}
	if ripe := seen.Add(s.MinAge); now.Before(ripe) {
		return say(TooYoung, ripe, "first seen %s, must be %s old: at %s", stamp(seen), s.MinAge, stamp(ripe))
	}
	if a, ok := m.Approved[c.Digest]; s.Mode == ModeApprove && !(ok && a.holds(now)) {
		why := "nobody has approved " + c.Digest
		if ok {
			why = fmt.Sprintf("the approval of %s%s lapsed at %s", c.Digest, by(a.Who), stamp(a.Until))
		}
		return say(NeedsApproval, time.Time{}, "its mode is approve, and %s; approve it with: updaterd approve %s", why, w.ID)
	}
	if !s.Window.Open(now) {
		next := s.Window.Next(now)
		return say(OutsideWindow, next, "its window is %s; it opens at %s", s.Window, stamp(next))
	}
	d.Update = true
	if f.detail != "" {
		return say(Update, time.Time{}, "%s", f.detail)
	}
	return say(Update, time.Time{}, "%s now stands for %s", bare(c.Ref), c.Digest)
}

// bare is a reference without its digest.
func bare(ref string) string {
	name, _, _ := strings.Cut(ref, "@")
	return name
}

func stamp(t time.Time) string { return t.Format(time.RFC3339) }

// said is by whom, for how long and why a word was given.
func said(w Word) string { return by(w.Who) + until(w.Until) + colon(w.Why) }

func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " until " + stamp(t)
}

// rejection finds the rejection that speaks against an image: the same
// digest, or another index around the same image for this platform.
func (m Record) rejection(c Image, now time.Time) *Rejection {
	for i, r := range m.Rejected {
		if !r.Until.IsZero() && !now.Before(r.Until) {
			continue // a person's, and it has lapsed
		}
		if r.Digest == c.Digest || r.Manifest != "" && r.Manifest == c.Manifest {
			return &m.Rejected[i]
		}
	}
	return nil
}

// seenKept bounds how many first sights are kept: a tag that flaps between a
// few digests keeps the age of each.
const seenKept = 20

// notice is what a pass learns of a workload by looking: nil when nothing new.
// It is pure; the edit it returns is applied to the record in the journal, or
// by a pass that must not write (check) to its own copy.
func notice(w Workload, f finding, m Record, now time.Time) func(*Record) {
	var edits []func(*Record)
	if f.candidate != nil && f.refusal == nil && !w.Runs.Is(*f.candidate) {
		if digest := f.candidate.Digest; m.Seen[digest].IsZero() {
			edits = append(edits, func(m *Record) { m.see(digest, now) })
		}
	}
	if f.tags > 0 {
		if next := m.Tags.next(f.repository, f.tags, now); next != nil && (m.Tags == nil || *next != *m.Tags) {
			edits = append(edits, func(m *Record) { m.Tags = next })
		}
	}
	if movedOff(w, m) {
		edits = append(edits, func(m *Record) { m.rollBack(w, now) })
	}
	if edits == nil {
		return nil
	}
	return func(m *Record) {
		for _, edit := range edits {
			edit(m)
		}
	}
}

// movedOff reports whether somebody moved the workload off the image that
// updaterd had put there. A person's roll-back must stick.
func movedOff(w Workload, m Record) bool {
	known := len(w.Runs.Digests) > 0 || w.Runs.Manifest != "" || w.Runs.Config != ""
	if !known && w.Namespace != "" && strings.Contains(m.Committed.Ref, "@") {
		// Nothing of it runs now, but what will is written in the cluster.
		return bare(w.Image) != bare(m.Committed.Ref)
	}
	return m.Committed.Digest != "" && known && !w.Runs.Is(m.Committed)
}

func (m *Record) rollBack(w Workload, now time.Time) {
	if !movedOff(w, *m) {
		return // the record has changed since the look
	}
	m.reject(Rejection{Image: m.Committed, Reason: RolledBack, At: now,
		Why: fmt.Sprintf("somebody moved it off %s, which updaterd had put there", m.Committed.Ref)})
	m.Committed = Image{}
}

func (m *Record) see(digest string, now time.Time) {
	if !m.Seen[digest].IsZero() {
		return
	}
	if m.Seen == nil {
		m.Seen = map[string]time.Time{}
	}
	m.Seen[digest] = now
	for len(m.Seen) > seenKept {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(m.Seen)), func(a, b string) int {
			return m.Seen[a].Compare(m.Seen[b])
		})
		delete(m.Seen, oldest)
	}
}

// learn is what to remember of an image that was tried.
func (m *Record) learn(to Image, v Verdict, why string, now time.Time) {
	if v != "" && m.Apart == to.Digest {
		m.Apart = ""
	}
	switch v {
	case Good:
		m.Committed, m.Retry = to, nil
		m.wrote(to.Ref)
		m.Seen, m.Approved = nil, nil
	case Bad:
		m.reject(Rejection{Image: to, Reason: Rejected, Why: why, At: now})
	case Unclear:
		m.postpone(to.Digest, why, now)
	}
}

// wroteKept is how many references are known as updaterd's own: as many as a cluster
// keeps revisions to go back to (revisionHistoryLimit), and some.
const wroteKept = 20

// wrote remembers a reference as updaterd's own.
func (m *Record) wrote(ref string) {
	if !strings.Contains(ref, "@") || slices.Contains(m.Wrote, ref) {
		return
	}
	m.Wrote = append(slices.Clone(m.Wrote), ref)
	m.Wrote = m.Wrote[max(0, len(m.Wrote)-wroteKept):]
}

// previousKept bounds how many earlier images are remembered where all are kept.
const previousKept = 20

// moved is what to remember of a part whose change was committed. Doing so again,
// after a crash, changes nothing.
func (m *Record) moved(p Part, now time.Time) {
	keep := p.Settings.Keep
	if keep == KeepAll {
		keep = previousKept
	}
	m.Previous = slices.DeleteFunc(m.Previous, func(i Image) bool { return i.Digest == p.From.Digest })
	if p.From.Digest != "" {
		m.Previous = append(m.Previous, p.From)
	}
	if over := len(m.Previous) - keep; over > 0 {
		m.Previous = slices.Clone(m.Previous[over:])
	}
	if p.Asked.back() {
		m.reject(Rejection{Image: p.From, Reason: RolledBack, At: now, Who: p.Asked.Who,
			Why: "it was rolled back" + by(p.Asked.Who) + colon(p.Asked.Why)})
	}
}

// answered drops what was asked for before a change began that is over.
func (m *Record) answered(began time.Time) {
	if m.Asked != nil && !m.Asked.At.After(began) {
		m.Asked = nil
	}
}

func (m *Record) reject(r Rejection) {
	for i, old := range m.Rejected {
		if old.Digest == r.Digest {
			m.Rejected[i] = r
			return
		}
	}
	m.Rejected = append(m.Rejected, r)
}

// The back-off after an attempt that failed without the image being to blame.
const (
	firstRetry = time.Hour
	lastRetry  = 24 * time.Hour
)

// postpone is what to remember after an unclear attempt: tried again after an
// hour, then doubling up to a day. An attempt whose end is repeated after a
// crash counts once: there is no second attempt while the pause lasts.
func (m *Record) postpone(digest, why string, now time.Time) {
	attempts := 1
	if m.Retry != nil && m.Retry.Digest == digest {
		if now.Before(m.Retry.After) {
			return
		}
		attempts = m.Retry.Attempts + 1
	}
	wait := lastRetry
	if attempts <= 5 { // 1, 2, 4, 8, 16 hours
		wait = firstRetry << (attempts - 1)
	}
	m.Retry = &Retry{Digest: digest, Attempts: attempts, After: now.Add(wait), Why: why}
}

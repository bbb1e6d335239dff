package updater

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"
)

// Change is one unit that moves together: a container, a group of containers,
// a pod template. It is what the journal keeps, so every field survives a
// crash; a field that would be wrong afterwards has no place in it.
type Change struct {
	ID      string `json:"id"`
	Backend string `json:"backend"`
	// Unit is the workload that the change is named by: the first one that
	// asked for it. No workload is part of two open changes.
	Unit  string `json:"unit"`
	Parts []Part `json:"parts"` // in start order
	// Alone: the process that carries the change out is itself part of it. No
	// other change may be under way then; see ErrHandedOver.
	Alone bool `json:"alone,omitempty"`
	// Related are workloads outside of the change that belong to the same group
	// as a part of it. Plan fills it in; only deciding needs it.
	Related []string `json:"-"`
	// Touches are things on the backend that the change writes and that have other
	// workloads in them, such as a pod template. Wishes that touch the same become
	// one change, and only one change touches a thing at a time. Plan fills it in.
	Touches []string `json:"touches,omitempty"`

	// Origin and Mark are the backend's own: what was there before (from
	// Plan), and what Apply made.
	Origin json.RawMessage `json:"origin,omitempty"`
	Mark   json.RawMessage `json:"mark,omitempty"`

	Phase   Phase   `json:"phase"`
	Verdict Verdict `json:"verdict,omitempty"`
	// Culprit is the part that the verdict bad speaks of; "" when that is unknown.
	Culprit string `json:"culprit,omitempty"`
	// Why is the sentence that goes with the verdict or the refusal, Reason its
	// word where there is one, Logs the last lines that the part LogsOf wrote.
	Why    string `json:"why,omitempty"`
	Reason Reason `json:"reason,omitempty"`
	Logs   string `json:"logs,omitempty"`
	LogsOf string `json:"logs-of,omitempty"`
	// Disturbed is set before Apply is first called: from then on what runs may
	// have been touched, and going back is verified.
	Disturbed bool `json:"disturbed,omitempty"`
	// Superseded: somebody else decided. Restore then only takes away what the
	// change made, and starts nothing.
	Superseded bool `json:"superseded,omitempty"`
	// Stuck is why the effect of its phase does not succeed, when that was tried more
	// than once or twice; "" as soon as it does.
	Stuck string `json:"stuck,omitempty"`
	// Copy says that an original had gone and what was restored is a copy.
	Copy bool `json:"copy,omitempty"`

	Since time.Time     `json:"since"`          // decided
	Ended time.Time     `json:"ended,omitzero"` // zero while open
	Gap   time.Duration `json:"gap,omitempty"`  // in service, from stop request to start response; 0 when unknown
}

// Part is one workload of a change.
type Part struct {
	Workload string `json:"workload"`
	From     Image  `json:"from"`
	// To is From where the workload only goes along with another: it is made
	// anew on the image that it has.
	To Image `json:"to"`
	// Replace is false for a part that is only restarted.
	Replace bool `json:"replace"`
	// Idle: it did not run before and is not started, so there is nothing to
	// judge.
	Idle bool `json:"idle,omitempty"`
	// Settings are frozen when the change is decided on.
	Settings Settings `json:"settings"`
	// Asked is the person's word that it goes by; nil where it goes by none.
	Asked *Ask `json:"asked,omitempty"`
	// Healthy says whether it was healthy before: a part that was not counts as
	// restored when it is back.
	Healthy bool `json:"healthy"`
	// StopTimeout is how long its own configuration gives it to stop; 0 when that
	// is unknown. Settings.StopTimeout goes before it.
	StopTimeout time.Duration `json:"stop-timeout,omitempty"`
	// Back is the reference that going back wrote, where it is not From's.
	Back string `json:"back,omitempty"`
}

// stopping is how long the part may take to stop. What nobody knows is taken for
// what engines give.
func (p Part) stopping() time.Duration {
	const engines = 10 * time.Second
	return cmp.Or(p.Settings.StopTimeout, p.StopTimeout, engines)
}

// Changes reports whether the part gets another image.
func (p Part) Changes() bool { return p.Replace && p.To != p.From }

// verdictOn is what the change's end says of the image that one part got. A bad
// part's fellows are not to blame. A part that kept its image cannot be: then
// all that got another are.
func (c Change) verdictOn(p Part) Verdict {
	if !p.Changes() {
		return ""
	}
	if c.suspects(p) {
		return ""
	}
	if c.Verdict != Bad || p.Workload == c.Culprit {
		return c.Verdict
	}
	for _, other := range c.Parts {
		if other.Workload == c.Culprit && other.Changes() {
			return ""
		}
	}
	return Bad
}

// suspects reports whether a part got one of several images that were written
// into one thing together, which turned out bad. Its containers may fail by each
// other's doing, so no image is rejected; each is tried alone next.
func (c Change) suspects(p Part) bool {
	changed := 0
	for _, other := range c.Parts {
		if other.Changes() {
			changed++
		}
	}
	return c.Verdict == Bad && len(c.Touches) > 0 && changed > 1 && p.Changes()
}

// runsCommands reports whether something is run in or beside the part after it
// has passed the gate.
func (p Part) runsCommands() bool {
	return p.Replace && !p.Idle && (p.Settings.Health.Test.Image != "" || len(p.Settings.PostUpdate.Command) > 0)
}

// stableAtOnce is the change with parts that need be healthy only once.
func (c Change) stableAtOnce() Change {
	c.Parts = slices.Clone(c.Parts)
	for i := range c.Parts {
		c.Parts[i].Settings.Health.Stable = 0
	}
	return c
}

// underWay says of a workload that it is part of the change, which is open, and what
// keeps that from its end.
func (c Change) underWay() string {
	const text = "a change of it is under way"
	switch {
	case c.Stuck == "":
		return text
	case c.Phase == Restoring:
		return "going back does not succeed, so it may be down: " + c.Stuck
	}
	return text + " and does not succeed: " + c.Stuck
}

// takes are the names of all that no other change may be about at the same time.
func (c Change) takes() []string {
	names := slices.Clone(c.Touches)
	for _, p := range c.Parts {
		names = append(names, p.Workload)
	}
	return names
}

// about is the part of the change that a workload is; the zero Part if it is none.
func (c Change) about(workload string) Part {
	if i := slices.IndexFunc(c.Parts, func(p Part) bool { return p.Workload == workload }); i >= 0 {
		return c.Parts[i]
	}
	return Part{}
}

// Phase is where a change stands. One that ends in -ing is journaled before
// its effect, any other after it.
type Phase string

// The phases.
const (
	Preparing  Phase = "preparing"
	Applying   Phase = "applying"
	Judging    Phase = "judging"
	Committing Phase = "committing"
	Restoring  Phase = "restoring"

	Committed  Phase = "committed"  // healthy on the new image
	Restored   Phase = "restored"   // exactly as it was
	Failed     Phase = "failed"     // it is back, but not healthy as it had been
	Refused    Phase = "refused"    // found impossible before anything was disturbed
	Superseded Phase = "superseded" // somebody else decided; hands off
)

// Final reports whether a change in this phase is over.
func (p Phase) Final() bool {
	switch p {
	case Committed, Restored, Failed, Refused, Superseded:
		return true
	}
	return false
}

// Verdict is what the gate found.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "good"
	Bad     Verdict = "bad"     // the image is to blame: it is rejected
	Unclear Verdict = "unclear" // the surroundings are, or nothing is known: tried again later
)

// Side tells the two sides of a change apart.
type Side string

// The sides.
const (
	OldSide Side = "old"
	NewSide Side = "new"
)

// Fault is an error of an effect that says whom to blame. Any other error of
// an effect is Unclear.
type Fault struct {
	Verdict Verdict
	// Workload is the part that could not be started; "" when it is not known.
	Workload string
	Err      error
}

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

package updater

import (
	"encoding/json"
	"time"
)

// Change is one unit that moves together: a container, a group of containers,
// a pod template. It is what the journal keeps, so every field survives a
// crash; a field that would be wrong afterwards has no place in it.
type Change struct {
	ID      string `json:"id"`
	Backend string `json:"backend"`
	// Unit is what can have only one open change at a time: on a Docker host
	// the workload's id.
	Unit     string   `json:"unit"`
	Parts    []Part   `json:"parts"`    // in start order
	Settings Settings `json:"settings"` // frozen when decided

	// Origin and Mark are the backend's own: what was there before (from
	// Plan), and what Apply made.
	Origin json.RawMessage `json:"origin,omitempty"`
	Mark   json.RawMessage `json:"mark,omitempty"`

	Phase   Phase   `json:"phase"`
	Verdict Verdict `json:"verdict,omitempty"`
	// Why is the sentence that goes with the verdict or the refusal, Reason its
	// word where there is one, Logs the last lines the condemned image wrote.
	Why    string `json:"why,omitempty"`
	Reason Reason `json:"reason,omitempty"`
	Logs   string `json:"logs,omitempty"`
	// Healthy says whether the workload was healthy before: one that was not
	// counts as restored when it is back.
	Healthy bool `json:"healthy"`
	// Disturbed is set before Apply is first called: from then on what runs may
	// have been touched, and going back is verified.
	Disturbed bool `json:"disturbed,omitempty"`
	// Superseded: somebody else decided. Restore then only takes away what the
	// change made, and starts nothing.
	Superseded bool `json:"superseded,omitempty"`
	// Copy says that the original had gone and what was restored is a copy.
	Copy bool `json:"copy,omitempty"`

	Since time.Time     `json:"since"`          // decided
	Ended time.Time     `json:"ended,omitzero"` // zero while open
	Gap   time.Duration `json:"gap,omitempty"`  // in service, from stop request to start response; 0 when unknown
}

// Part is one workload of a change.
type Part struct {
	Workload string `json:"workload"`
	From     Image  `json:"from"`
	To       Image  `json:"to"`
	// Replace is false for a part that is only restarted.
	Replace bool `json:"replace"`
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
	Err     error
}

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

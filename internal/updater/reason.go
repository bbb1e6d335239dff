package updater

import "fmt"

// Reason says in one word why a workload gets the decision it gets. The words
// are part of the command line's contract: scripts compare them.
type Reason string

// The reasons.
const (
	InvalidSettings     Reason = "invalid-settings"     // a setting on the workload cannot be understood or honoured
	NotRunning          Reason = "not-running"          // created, exited, paused or restarting
	ManagedElsewhere    Reason = "managed-elsewhere"    // another controller owns it and would put it back
	Unsupported         Reason = "unsupported"          // it cannot be replaced faithfully; the detail names the field
	Pinned              Reason = "pinned"               // a person wrote a digest or an image id
	LocalImage          Reason = "local-image"          // built here: no registry knows it
	Mixed               Reason = "mixed"                // its copies run different images
	BackendUnavailable  Reason = "backend-unavailable"  // the engine or the API server cannot be asked
	RegistryUnavailable Reason = "registry-unavailable" // the registry cannot be asked, or talks nonsense
	Unauthorized        Reason = "unauthorized"         // the registry wants other credentials
	NotFound            Reason = "not-found"            // the registry has no such repository or tag, or hides it
	RateLimited         Reason = "rate-limited"         // the registry asks for patience
	TagListIncomplete   Reason = "tag-list-incomplete"  // the tag list is suspiciously short
	PlatformMissing     Reason = "platform-missing"     // the candidate has no image for this platform
	NoCandidate         Reason = "no-candidate"         // no tag fits the policy
	Downgrade           Reason = "downgrade"            // only lower versions fit, and allow-downgrade is off
	UpToDate            Reason = "up-to-date"           // it runs the candidate
	InProgress          Reason = "in-progress"          // a change of it is under way
	Paused              Reason = "paused"               // a person paused everything
	Held                Reason = "held"                 // a person wants it left as it is
	Monitor             Reason = "monitor"              // mode monitor: told, not touched
	Rejected            Reason = "rejected"             // the candidate was found bad on this workload
	RolledBack          Reason = "rolled-back"          // a person moved the workload off the candidate
	Surroundings        Reason = "surroundings"         // the last attempt failed without the image being to blame; tried again later
	TooYoung            Reason = "too-young"            // first seen less than min-age ago
	NeedsApproval       Reason = "needs-approval"       // mode approve, and nobody has
	OutsideWindow       Reason = "outside-window"       // its window is shut
	Waiting             Reason = "waiting"              // something it depends on comes first
	Update              Reason = "update"               // it is to be updated
)

// Refusal is an error that says what cannot be done, and why, in the words a
// person sees. Backends return it from Plan and Prepare, registries for
// answers that are no answer.
type Refusal struct {
	Reason Reason
	Detail string // one sentence: what, and what to do about it
	Err    error  // the cause, if there is one
}

func (r *Refusal) Error() string {
	if r.Err != nil {
		return fmt.Sprintf("%s: %s: %v", r.Reason, r.Detail, r.Err)
	}
	return fmt.Sprintf("%s: %s", r.Reason, r.Detail)
}

func (r *Refusal) Unwrap() error { return r.Err }

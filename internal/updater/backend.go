package updater

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// Errors that backends return and the driver tells apart. They come wrapped.
var (
	// ErrSame: the digest differs, the image for this platform does not.
	ErrSame = errors.New("the image for this platform is the same")
	// ErrSuperseded: the workload is now neither what was nor what we made.
	ErrSuperseded = errors.New("somebody else changed the workload")
	// ErrHandedOver: the effect would end this very process, so another one has
	// been started that goes on with the change as soon as it may lead. This one
	// is to let go of the lead at once.
	ErrHandedOver = errors.New("another process goes on with the change")
)

// Backend is a place where workloads run. Every method may be called at any
// time, by several goroutines for different units, and again with the same
// Change after a crash, even if the first call was broken off half-way: each
// is idempotent. Every call is bounded (step.go): its ctx ends when it takes
// too long, and it is to return soon then. An error that is neither a *Refusal, a *Fault, ErrSame nor
// ErrSuperseded means that the backend could not be asked or did not do it;
// calling again later is right. All block until done or ctx ends. A part is
// named by its index in Change.Parts.
//
// internal/backendtest holds every implementation to this contract.
type Backend interface {
	// Name is the backend's name in the configuration, the first segment of
	// its workloads' ids.
	Name() string

	// Workloads lists what runs here, watched or not, sorted by id, leaving
	// out what updaterd itself made for a change under way. A workload
	// that is in the middle of a change may be absent.
	Workloads(ctx context.Context) ([]Workload, error)

	// Plan widens a wish, one part for each workload that is to get another
	// image, to all that must move together. It puts the parts in start order,
	// fills in Origin, Alone, Related and every part's Idle, Healthy and StopTimeout. join is
	// asked for the settings of each workload that is added; its error refuses the
	// whole. Plan only reads, and not from the journal. A *Refusal says what cannot
	// be done faithfully.
	Plan(ctx context.Context, c *Change, join func(workload string) (Settings, error)) error

	// Prepare disturbs nothing that runs: it pulls by digest, verifies, and
	// creates what can be created beforehand. report is called with what it
	// does, often, and never after Prepare has returned. ErrSame: nothing to
	// do. A *Refusal: it cannot be done after all. It is broken off when it
	// reports nothing for ten minutes.
	Prepare(ctx context.Context, c Change, report func(Progress)) error

	// Apply puts the new image to work and returns when that is accepted, not
	// when it is healthy. ErrSuperseded: somebody else changed the workload
	// since Plan; nothing of theirs was touched. A *Fault with verdict Bad: an
	// image cannot start, and it is the image's fault.
	Apply(ctx context.Context, c Change) (Applied, error)

	// Observe looks once at one side of a part and waits for nothing (a probe is
	// given at most 5 s). A side that is gone is Observation.Gone, not an error;
	// an error means that the backend could not be asked. The two sides of a part
	// that is only restarted are one.
	Observe(ctx context.Context, c Change, part int, s Side) (Observation, error)

	// Exec runs a hook in one side's container and waits for its end, at most
	// its timeout. A command that ran and failed is a Result, not an error.
	Exec(ctx context.Context, c Change, part int, s Side, h Hook) (Result, error)

	// Test runs the health.test of a part once beside its new side, where it can
	// reach it, and waits for its end, at most its timeout. It takes away what an
	// earlier run left, and leaves nothing; so do Commit and Restore. A test that
	// ran and failed is a Result, not an error.
	Test(ctx context.Context, c Change, part int) (Result, error)

	// Commit drops what Restore would need. ErrSuperseded: somebody removed a new
	// side, and nothing has been dropped yet, so that Restore can still go back.
	Commit(ctx context.Context, c Change) error

	// Restore goes back, from every phase: all that was there is there again
	// and started, and nothing that the change made is left. After Commit it
	// leaves the new side alone. It returns when the old side has been
	// started, not when it is healthy. ErrSuperseded: somebody else's workload
	// stands there now; what the change made is gone.
	Restore(ctx context.Context, c Change) (Restoration, error)

	// Traces finds, from what changes leave on the backend itself, those that
	// are not among known (change ids) and were broken off: changes whose
	// record was lost. Each comes with the phase from which it is safe to go
	// on. A live change of another updaterd is not among them.
	Traces(ctx context.Context, known map[string]bool) ([]Change, error)
}

// Applied is what Apply did.
type Applied struct {
	Mark json.RawMessage // the backend's own; kept in Change.Mark
	Gap  time.Duration   // from stop request to start response; 0 when unknown
}

// Restoration is what Restore did.
type Restoration struct {
	// Copy: an original had gone, and this is a copy made from its record.
	Copy bool
	// Why an original had gone, as a sentence; "": somebody removed it.
	Why string
	// Refs are the references that were written where they are not the ones of
	// before, by workload: a tag that has moved is pinned to what it stood for.
	Refs map[string]string
	// Kept: there was no way back (original and record gone): the new side
	// stays, said loudly.
	Kept bool
}

// Progress is what a change is busy with.
type Progress struct {
	Step  string `json:"step"`            // "pulling", "creating", "judging", ...
	Done  int64  `json:"done,omitempty"`  // bytes
	Total int64  `json:"total,omitempty"` // bytes; 0 when unknown
	// Note is what a gate still waits for.
	Note string `json:"note,omitempty"`
}

// Result is how a command ended.
type Result struct {
	ExitCode int
	Output   string // the last 4 KiB
	TimedOut bool
}

// Observation is one look at one side of a change.
type Observation struct {
	// Gone: this side does not exist (any more).
	Gone bool
	// MovedOff says what somebody else put in the place of the image that the change
	// brought; "" where it is still there.
	MovedOff string
	// Undone: the side exists, but a Restore of it had already begun, or somebody did
	// what Fault says; only Restore may touch it now.
	Undone bool
	// Running: its process runs now, and is not being restarted.
	Running bool
	// Restarting: the engine is about to start it again after an exit.
	Restarting bool
	Paused     bool
	ExitCode   int
	OOMKilled  bool
	// Restarts counts the engine's own restarts since Apply (or Restore) started it.
	Restarts int
	// Started is when the process that runs now started, by the backend's
	// clock: compared only with itself.
	Started time.Time
	// Health is the engine's own verdict.
	Health EngineHealth
	// HealthLog is the output of the last failed health check.
	HealthLog string
	// Pending is what a rollout that goes on by itself still waits for; "" when it
	// is complete.
	Pending string
	// Progress counts what a rollout has reached. The time for becoming healthy
	// starts anew when there is more of it than ever.
	Progress int
	// Waits says why there is nothing to judge and no time to count: no copy of it
	// is wanted now. Such a change stays open, and others need not wait for it.
	Waits string
	// Probe is why the configured probe fails; "" when it passes or there is none.
	Probe string
	// Fault, when set, is an error of the engine about this side (for instance
	// State.Error), and Blame whom it speaks against. One that is unclear says
	// nothing while the side runs, and is what to blame when time runs out.
	Fault string
	Blame Verdict
	// Timeout is the backend's own value for health.timeout of this side.
	Timeout time.Duration
	// Logs are the last lines it wrote, at most 4 KiB; filled in when
	// it is not well.
	Logs string
}

// EngineHealth is an engine's own verdict on a container.
type EngineHealth string

// The engine's verdicts.
const (
	HealthNone      EngineHealth = "" // it has no check
	HealthStarting  EngineHealth = "starting"
	HealthHealthy   EngineHealth = "healthy"
	HealthUnhealthy EngineHealth = "unhealthy"
)

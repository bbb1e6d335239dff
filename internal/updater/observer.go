package updater

import "time"

// Observer sees what passes and changes do, for those who count or tell it. Its
// methods are called by many goroutines, from the midst of what they report, so
// they return at once and fail on their own.
type Observer interface {
	// Decided: a pass that acts has decided about a watched workload.
	Decided(Workload, Decision)
	// Passed: such a pass is over. Its changes may go on.
	Passed(Passed)
	// Postponed: when the turn of a decision for an update came, it was not
	// carried out after all, for the reason of this one.
	Postponed(Workload, Decision)
	// Moved: a change has entered its phase, or was taken up in it after a crash.
	Moved(Change)
	// Progressed: a change is at this within its phase. It comes often.
	Progressed(Change, Progress)
}

// Passed is one pass in one backend.
type Passed struct {
	Backend string
	Began   time.Time
	Took    time.Duration
	// Decided are the reasons by the number of workloads that got them.
	Decided map[Reason]int
	// Part: a person named some workloads, so Decided is of those alone.
	Part bool
	// Err is why the backend could not be asked, nil when it could.
	Err error
}

// Observers are several as one. None at all observe nothing.
type Observers []Observer

// Decided implements [Observer].
func (o Observers) Decided(w Workload, d Decision) {
	for _, each := range o {
		each.Decided(w, d)
	}
}

// Passed implements [Observer].
func (o Observers) Passed(p Passed) {
	for _, each := range o {
		each.Passed(p)
	}
}

// Moved implements [Observer].
func (o Observers) Moved(c Change) {
	for _, each := range o {
		each.Moved(c)
	}
}

// Postponed implements [Observer].
func (o Observers) Postponed(w Workload, d Decision) {
	for _, each := range o {
		each.Postponed(w, d)
	}
}

// Progressed implements [Observer].
func (o Observers) Progressed(c Change, p Progress) {
	for _, each := range o {
		each.Progressed(c, p)
	}
}

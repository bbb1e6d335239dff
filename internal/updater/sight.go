package updater

import (
	"maps"
	"slices"
	"time"
)

// Sight is what there is to be seen of the work in one place, at a moment.
type Sight struct {
	Backend string
	// Looked: the backend was asked at least once, whether it answered or not.
	Looked bool
	// Trouble is why the backend could not be asked the last time; nil when it
	// could.
	Trouble error
	// Watched and Updates are the workloads of the last pass, and how many of
	// them it decided to update; LastPass is when it was over, zero while none is.
	Watched, Updates int
	LastPass         time.Time
	NextPass         time.Time
	// Paused is the person's word that no change begins here; nil when there is none.
	// What another process wrote is seen half a minute later.
	Paused *Word
	// Changing are the workloads that are part of a change under way, sorted.
	Changing []string
}

// Glance is what an Updater is at, at a moment.
type Glance struct {
	// Ready: every place is led by this process and was looked at once, or was
	// not to be had for a reason that lies outside of it, or waits for its lead as a
	// standby does. Also when standing by.
	Ready bool
	// StandingBy: another process finishes the update of updaterd itself.
	StandingBy bool
	Places     []Sight
	// Steps are the calls under way, oldest first.
	Steps []Step
}

// Glance is for whoever watches Run from outside. It never blocks for long.
func (u *Updater) Glance() Glance {
	u.mu.Lock()
	works, waits, aside := slices.Clone(u.works), slices.Clone(u.waits), u.aside
	u.mu.Unlock()
	g := Glance{Ready: true, StandingBy: aside, Steps: u.steps.underWay()}
	for i, w := range works {
		if w == nil {
			g.Ready = g.Ready && waits[i]
			continue
		}
		s := w.seen()
		g.Ready = g.Ready && s.Looked
		g.Places = append(g.Places, s)
	}
	g.Ready = g.Ready || aside
	return g
}

// show lets Glance see what goes on in a place.
func (u *Updater) show(place int, w *work) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.works[place], u.waits[place], u.aside = w, false, false
}

// waiting lets Glance see that another process leads in a place, and that this one
// is there to take over.
func (u *Updater) waiting(place int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waits[place] = u.works[place] == nil
}

// standBy lets Glance see that another process is at work.
func (u *Updater) standBy() {
	u.mu.Lock()
	defer u.mu.Unlock()
	clear(u.works)
	u.aside = true
}

func (w *work) seen() Sight {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.sight
	s.Backend = w.backend.Name()
	under := map[string]bool{}
	for workload, id := range w.busy {
		if id != "" {
			under[workload] = true
		}
	}
	if !s.Paused.holds(time.Now()) {
		s.Paused = nil
	}
	s.Changing = slices.Sorted(maps.Keys(under))
	return s
}

// looked notes that the backend was asked, and what came of it.
func (w *work) looked(trouble error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sight.Looked, w.sight.Trouble = true, trouble
}

// saw notes what a pass found. Before any pass the backend was looked at.
func (w *work) saw(watched, updates int, trouble error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sight.Looked, w.sight.Trouble, w.sight.LastPass = true, trouble, time.Now()
	if trouble == nil {
		w.sight.Watched, w.sight.Updates = watched, updates
	}
}

// recalls notes what is remembered of everything.
func (w *work) recalls(memory map[string]Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sight.Paused = memory[Everything].Hold
}

// comes notes when the next pass begins.
func (w *work) comes(next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sight.NextPass = next
}

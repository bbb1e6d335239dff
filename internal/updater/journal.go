package updater

import (
	"context"
	"errors"
	"time"
)

// ErrLed: another process carries out changes on this backend. The error that
// wraps it names the process.
var ErrLed = errors.New("another updaterd is at work here")

// ErrFinishing, which comes with ErrLed: the other process is one that finishes
// the update of updaterd itself, and ends when that is over.
var ErrFinishing = errors.New("it is finishing the update of updaterd itself")

// ErrLost: the lead was lost while this process had it. Another one may go on by
// now, and this one may ask for the lead again.
var ErrLost = errors.New("the lead was lost")

// State is where a backend's journal lives, and who may write it.
type State interface {
	// Lead calls do while this process alone may change the backend, and returns
	// when do has returned. If another process leads, how long it is waited for is
	// the state's own matter: not at all where whoever holds the lead is alive for
	// certain, longer where only time can tell. Then the error wraps ErrLed and
	// names it. ctx ends the waiting and nothing else: the context of do ends when
	// the lead is lost, so that an effect which has begun is finished; the error
	// wraps ErrLost then. A journal that is missing or broken is no error: going
	// back must never wait for it. Its methods fail then, and what was lost has
	// been logged.
	Lead(ctx context.Context, do func(context.Context, Journal) error) error
	// Journal is the same journal beside whoever leads, for looking and for a
	// person's word.
	Journal() Journal
}

// Journal is what must survive. Every write is durable on return, and atomic.
// All methods are safe for concurrent use, also by several processes.
type Journal interface {
	// Open returns the changes that are not over, oldest first.
	Open(ctx context.Context) ([]Change, error)
	// Save keeps c, which replaces what was kept under its ID. A change
	// that is over leaves the open ones and enters the history, in one step.
	Save(ctx context.Context, c Change) error
	// Recall returns what is remembered, by workload id.
	Recall(ctx context.Context) (map[string]Record, error)
	// Remember edits what is remembered, in one transaction for workloads that
	// can be parts of one change.
	// An edit gets the zero Record for a workload never heard of, and may be
	// called more than once.
	Remember(ctx context.Context, edits map[string]func(*Record)) error
	// Note adds an entry to the history.
	Note(ctx context.Context, e Entry) error
	// History returns the newest entries, newest first; limit 0 is all that
	// are kept.
	History(ctx context.Context, limit int) ([]Entry, error)
}

// Record is what is remembered of one workload between passes.
type Record struct {
	// Rejected are the images never to be tried again here.
	Rejected []Rejection `json:"rejected,omitempty"`
	// Committed is what updaterd itself last put there.
	Committed Image `json:"committed,omitzero"`
	// Wrote are the references with a digest that updaterd wrote, oldest first: a
	// person who goes back to one of them pins nothing.
	Wrote []string `json:"wrote,omitempty"`
	// Apart is a digest that failed together with others, and is tried alone.
	Apart string `json:"apart,omitempty"`
	// Hold is a person's word that the workload stays as it is.
	Hold *Word `json:"hold,omitempty"`
	// Approved are the digests that a person approved.
	Approved map[string]Word `json:"approved,omitempty"`
	// Seen is when each candidate's digest was first seen.
	Seen map[string]time.Time `json:"seen,omitempty"`
	// Retry is when a digest whose last attempt was unclear may be tried again.
	Retry *Retry `json:"retry,omitempty"`
	// Tags is the length of the last tag list that was believed.
	Tags *TagCount `json:"tags,omitempty"`
	// Previous are the images that updaterd moved it off, newest last, as many as
	// are kept for going back.
	Previous []Image `json:"previous,omitempty"`
	// Asked is what a person wants done at once, until it is done.
	Asked *Ask `json:"asked,omitempty"`

	// paused is the hold of Everything, which Recall's reader lays over each record.
	paused *Word
}

// Everything is the id under which a journal remembers what was said of a whole
// backend. No workload is called so.
const Everything = "*"

// recall is what is remembered of one workload, and of everything.
func recall(memory map[string]Record, id string) Record {
	m := memory[id]
	m.paused = memory[Everything].Hold
	return m
}

// Rejection is one image found bad on one workload.
type Rejection struct {
	Image
	Reason Reason    `json:"reason"` // Rejected, or RolledBack
	Why    string    `json:"why"`
	At     time.Time `json:"at"`
	Who    string    `json:"who,omitempty"`  // the person who said so; "": no person did
	Until  time.Time `json:"until,omitzero"` // when it lapses; zero: never
}

// Word is what a person said, and when.
type Word struct {
	Who   string    `json:"who,omitempty"`
	Why   string    `json:"why,omitempty"`
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"` // when it lapses; zero: never
}

// holds reports whether the word has been given and has not lapsed.
func (w *Word) holds(now time.Time) bool {
	return w != nil && (w.Until.IsZero() || now.Before(w.Until))
}

// by names the person, where the name is known.
func by(who string) string {
	if who == "" {
		return ""
	}
	return " by " + who
}

// Ask is a person's word that something is to be done at once: what would
// otherwise be waited for (a window, an age, an approval, the pause after an
// attempt) is not.
type Ask struct {
	Word
	// Back is the image to go back to; the zero Image: it is to be updated.
	Back Image `json:"back,omitzero"`
}

// back reports whether it is about going back.
func (a *Ask) back() bool { return a != nil && a.Back.Digest != "" }

// ask is what is asked for now; nil when nothing is.
func (m Record) ask(now time.Time) *Ask {
	if m.Asked == nil || !m.Asked.holds(now) {
		return nil
	}
	return m.Asked
}

// newest is when the newest of the words was said that ask for something.
func (m Record) newest() time.Time {
	var at time.Time
	if m.Asked != nil {
		at = m.Asked.At
	}
	for _, w := range m.Approved {
		if w.At.After(at) {
			at = w.At
		}
	}
	return at
}

// Retry is the patience that an unclear attempt calls for.
type Retry struct {
	Digest   string    `json:"digest"`
	Attempts int       `json:"attempts"`
	After    time.Time `json:"after"`
	Why      string    `json:"why"`
}

// TagCount is the length of a tag list, and when a shorter one was first seen.
type TagCount struct {
	Repository string    `json:"repository"`
	Count      int       `json:"count"`
	ShortSince time.Time `json:"short-since,omitzero"`
}

// Entry is one line of the history.
type Entry struct {
	At       time.Time     `json:"at"`
	Backend  string        `json:"backend"`
	Workload string        `json:"workload"`
	Event    Event         `json:"event"`
	Change   string        `json:"change,omitempty"` // id of the change
	Who      string        `json:"who,omitempty"`    // the person by whose word it happened
	From     Image         `json:"from,omitzero"`
	To       Image         `json:"to,omitzero"`
	Verdict  Verdict       `json:"verdict,omitempty"`
	Why      string        `json:"why,omitempty"`
	Logs     string        `json:"logs,omitempty"`
	Took     time.Duration `json:"took,omitempty"` // nanoseconds
	Gap      time.Duration `json:"gap,omitempty"`  // nanoseconds in service
	// Open: the change is not over, so this is told and is no history.
	Open bool `json:"open,omitempty"`
}

// Event is what happened.
type Event string

// The events.
const (
	EventUpdated    Event = "updated"
	EventRestored   Event = "restored"
	EventFailed     Event = "failed"
	EventRefused    Event = "refused"
	EventSuperseded Event = "superseded"
	EventForgotten  Event = "forgotten"   // a person lifted a rejection
	EventRolledBack Event = "rolled-back" // a person moved off what updaterd had put there
	EventRecreated  Event = "recreated"   // made anew on its own image, along with another's update
	EventRestarted  Event = "restarted"   // along with another's update

	// These are told, and not kept in the history, unless a person is behind them.
	EventFound            Event = "found"             // a candidate that does not run was first seen
	EventAwaitingApproval Event = "awaiting-approval" // it waits for a person
	EventRejected         Event = "rejected"          // the image was found bad: it comes with restored, failed or refused; or a person said so: then it is history
	EventRegistryTrouble  Event = "registry-trouble"  // a registry has given no answer for long
	EventRegistryWell     Event = "registry-well"     // of which that was told, and which answers again

	// What a person said.
	EventHeld          Event = "held"
	EventReleased      Event = "released"
	EventApproved      Event = "approved"
	EventPaused        Event = "paused"
	EventResumed       Event = "resumed"
	EventUpdateAsked   Event = "update-asked"
	EventRollbackAsked Event = "rollback-asked"
)

// Entries are the lines that a change that is over leaves in the history: one
// for every workload in it. One that was broken off before anything was
// disturbed, and will simply be decided anew, leaves none.
func (c Change) Entries() []Entry {
	if c.Phase == Refused && c.Verdict == "" {
		return nil
	}
	event := map[Phase]Event{
		Committed: EventUpdated, Restored: EventRestored, Failed: EventFailed,
		Refused: EventRefused, Superseded: EventSuperseded,
	}[c.Phase]
	var entries []Entry
	for _, p := range c.Parts {
		e := Entry{
			At: c.Ended, Backend: c.Backend, Workload: p.Workload, Event: event, Change: c.ID,
			From: p.From, To: p.To, Verdict: c.verdictOn(p), Why: c.Why,
			Took: c.Ended.Sub(c.Since), Gap: c.Gap,
		}
		if p.Workload == c.LogsOf || len(c.Parts) == 1 {
			e.Logs = c.Logs
		}
		switch {
		case c.Phase == Committed && !p.Replace:
			e.Event, e.Why = EventRestarted, "along with "+c.Unit
		case c.Phase == Committed && !p.Changes():
			e.Event, e.Why = EventRecreated, "along with "+c.Unit
		case c.Phase == Committed && p.Asked.back():
			e.Event = EventRolledBack
		}
		if p.Asked != nil {
			e.Who = p.Asked.Who
		}
		entries = append(entries, e)
	}
	return entries
}

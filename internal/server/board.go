package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// Workload is a watched workload, as the last pass saw it.
type Workload struct {
	ID      string `json:"id"`
	Backend string `json:"backend"`
	// Image is as the workload writes it, Digest what runs; "" when unknown.
	Image  string `json:"image"`
	Digest string `json:"digest,omitempty"`
	// Decision is "update" or "none".
	Decision  string                `json:"decision"`
	Candidate *updater.RowCandidate `json:"candidate,omitempty"`
	Reason    updater.Reason        `json:"reason"`
	Detail    string                `json:"detail"`
	// Until is when the reason passes by itself, where that is known.
	Until *time.Time `json:"until,omitempty"`
	// Hold is what keeps it as it is, whatever the reason.
	Hold *updater.Hold `json:"hold,omitempty"`
	// At is when it was decided, AsOf when what it goes by was read: a word said
	// later is not in it.
	At   time.Time `json:"at"`
	AsOf time.Time `json:"as_of,omitzero"`
	// Change is the id of the change under way.
	Change string `json:"change,omitempty"`
}

// For reports whether it is so for this reason: that of its decision, or what
// keeps it as it is besides.
func (w Workload) For(reason updater.Reason) bool {
	return w.Reason == reason || w.Hold != nil && w.Hold.Reason == reason
}

// Change is a change that is under way, or has just ended.
type Change struct {
	ID      string          `json:"id"`
	Backend string          `json:"backend"`
	Unit    string          `json:"unit"` // the workload that it is named by
	Phase   updater.Phase   `json:"phase"`
	Verdict updater.Verdict `json:"verdict,omitempty"`
	Why     string          `json:"why,omitempty"`
	Since   time.Time       `json:"since"`
	Ended   *time.Time      `json:"ended,omitempty"`
	Gap     float64         `json:"gap_seconds,omitempty"`
	Parts   []Part          `json:"parts"`
	// Alone: it replaces updaterd itself, and another process goes on with it.
	Alone bool `json:"alone,omitempty"`
	// Progress is what it is at within its phase.
	Progress *updater.Progress `json:"progress,omitempty"`
}

// Part is one workload of a change.
type Part struct {
	Workload string `json:"workload"`
	From     *Image `json:"from,omitempty"`
	To       *Image `json:"to,omitempty"`
}

// Image is an image as people name it.
type Image struct {
	Image  string `json:"image"`
	Digest string `json:"digest,omitempty"`
}

func imageOf(i updater.Image) *Image {
	if i.Ref == "" && i.Digest == "" {
		return nil
	}
	return &Image{i.Ref, i.Digest}
}

func changeOf(c updater.Change) Change {
	out := Change{
		ID: c.ID, Backend: c.Backend, Unit: c.Unit, Phase: c.Phase, Verdict: c.Verdict, Why: c.Why,
		Since: c.Since, Gap: c.Gap.Seconds(), Parts: []Part{}, Alone: c.Alone,
	}
	if !c.Ended.IsZero() {
		out.Ended = &c.Ended
	}
	for _, p := range c.Parts {
		out.Parts = append(out.Parts, Part{p.Workload, imageOf(p.From), imageOf(p.To)})
	}
	return out
}

// Entry is one line of the history.
type Entry struct {
	At       time.Time       `json:"at"`
	Backend  string          `json:"backend"`
	Workload string          `json:"workload"`
	Event    updater.Event   `json:"event"`
	From     *Image          `json:"from"`
	To       *Image          `json:"to"`
	Verdict  updater.Verdict `json:"verdict,omitempty"`
	Why      string          `json:"why"`
	Logs     string          `json:"logs,omitempty"` // the last lines of a condemned image
	Took     float64         `json:"took_seconds"`
	Gap      float64         `json:"gap_seconds"` // in service; 0 when unknown
	Change   string          `json:"change,omitempty"`
	Who      string          `json:"who,omitempty"` // the person by whose word it happened
}

// EntryOf is a line of the history as people get it.
func EntryOf(e updater.Entry) Entry {
	return Entry{
		At: e.At, Backend: e.Backend, Workload: e.Workload, Event: e.Event, From: imageOf(e.From), To: imageOf(e.To),
		Verdict: e.Verdict, Why: e.Why, Logs: e.Logs, Took: e.Took.Seconds(), Gap: e.Gap.Seconds(), Change: e.Change, Who: e.Who,
	}
}

// The types of events on the stream.
const (
	EventWorkload = "workload" // a Workload: it was decided on
	EventChange   = "change"   // a Change: it has entered its phase
	EventProgress = "progress" // a Change, at something within its phase
	EventPass     = "pass"     // a Pass: one is over
	EventHistory  = "history"  // an Entry, without log lines
)

// Pass is a pass that is over.
type Pass struct {
	Backend   string    `json:"backend"`
	Began     time.Time `json:"began"`
	Took      float64   `json:"took_seconds"`
	Workloads int       `json:"workloads"`
	Error     string    `json:"error,omitempty"`
}

// Bounds of the event stream. A client that does not read loses its place at
// once; it cannot hold anybody up, nor fill the memory.
const (
	mostClients = 256
	// mostWaiting bounds the events of one client: a pass over thousands of workloads
	// tells of them all at once. What waits is shared among the clients.
	mostWaiting = 8192
	// progressEvery bounds how often a change says what it is at.
	progressEvery = 250 * time.Millisecond
)

// Board is what goes on, kept for those who look. It implements
// [updater.Observer] and [updater.Notifier]. It never blocks.
type Board struct {
	mu        sync.Mutex
	workloads map[string]Workload
	changes   map[string]Change    // under way, by id
	told      map[string]time.Time // by change: when its progress was last told
	clients   map[*client]struct{}
	last      uint64 // number of the last event
}

// client is one reader of the stream. The board's mutex guards waiting and slow.
type client struct {
	waiting [][]byte
	slow    bool          // too much waited: it hears no more
	some    chan struct{} // holds one when there is something new
}

var (
	_ updater.Observer = (*Board)(nil)
	_ updater.Notifier = (*Board)(nil)
)

// NewBoard returns an empty one.
func NewBoard() *Board {
	return &Board{workloads: map[string]Workload{}, changes: map[string]Change{}, told: map[string]time.Time{}, clients: map[*client]struct{}{}}
}

// Decided implements [updater.Observer].
func (b *Board) Decided(w updater.Workload, d updater.Decision) {
	row := Workload{ID: w.ID, Backend: w.Backend, Image: w.Image, Digest: w.Runs.Digest(), Decision: "none", Reason: d.Reason, Detail: d.Detail, Hold: d.Hold, At: time.Now(), AsOf: d.AsOf}
	if d.Update {
		row.Decision = "update"
	}
	if c := d.Candidate; c != nil {
		row.Candidate = &updater.RowCandidate{Image: c.Ref, Digest: c.Digest}
		if slices.Contains(w.Runs.Digests, c.Digest) {
			row.Digest = c.Digest // one image may have several; show the one that matches
		}
	}
	if !d.Until.IsZero() {
		row.Until = &d.Until
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.workloads[w.ID] = row
	b.publish(EventWorkload, b.withChange(row))
}

// Postponed implements [updater.Observer].
func (b *Board) Postponed(w updater.Workload, d updater.Decision) { b.Decided(w, d) }

// Passed implements [updater.Observer].
func (b *Board) Passed(p updater.Passed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := Pass{Backend: p.Backend, Began: p.Began, Took: p.Took.Seconds()}
	for _, n := range p.Decided {
		out.Workloads += n
	}
	switch {
	case p.Err != nil:
		out.Error = p.Err.Error()
	case !p.Part:
		maps.DeleteFunc(b.workloads, func(_ string, w Workload) bool {
			return w.Backend == p.Backend && w.At.Before(p.Began) && b.withChange(w).Change == ""
		})
	}
	b.publish(EventPass, out)
}

// Moved implements [updater.Observer].
func (b *Board) Moved(c updater.Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := changeOf(c)
	if !c.Phase.Final() {
		b.changes[c.ID] = out
		b.publish(EventChange, out)
		return
	}
	delete(b.changes, c.ID)
	delete(b.told, c.ID)
	for _, p := range c.Parts {
		if row, ok := b.workloads[p.Workload]; ok && p.Changes() && c.Phase == updater.Committed {
			// Until the next pass looks.
			row.Image, row.Digest, row.At = p.To.Ref, p.To.Digest, c.Ended
			row.Decision, row.Reason, row.Detail, row.Until = "none", updater.UpToDate, "it was just put there", nil
			b.workloads[p.Workload] = row
		} else if ok && p.Changes() {
			row.Decision, row.At, row.Until = "none", c.Ended, nil
			row.Detail = fmt.Sprintf("%s: %s", c.Phase, c.Why)
			row.Reason = cmp.Or(c.Reason, map[updater.Verdict]updater.Reason{updater.Bad: updater.Rejected, updater.Unclear: updater.Surroundings}[c.Verdict], row.Reason)
			b.workloads[p.Workload] = row
		}
	}
	b.publish(EventChange, out)
}

// Progressed implements [updater.Observer].
func (b *Board) Progressed(c updater.Change, p updater.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out, ok := b.changes[c.ID]
	if !ok {
		return
	}
	was := out.Progress
	out.Progress = &p
	b.changes[c.ID] = out
	if was != nil && was.Step == p.Step && time.Since(b.told[c.ID]) < progressEvery {
		return
	}
	b.told[c.ID] = time.Now()
	b.publish(EventProgress, out)
}

// Notify implements [updater.Notifier]: it tells those who listen.
func (b *Board) Notify(_ context.Context, e updater.Entry) {
	e.Logs = "" // not everybody may read them
	b.mu.Lock()
	defer b.mu.Unlock()
	b.publish(EventHistory, EntryOf(e))
}

// publish gives an event to all who listen. mu is held.
func (b *Board) publish(kind string, data any) {
	b.last++
	if len(b.clients) == 0 {
		return
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return // nothing that is published here can fail
	}
	message := fmt.Appendf(nil, "id: %d\nevent: %s\ndata: %s\n\n", b.last, kind, raw)
	for c := range b.clients {
		if len(c.waiting) < mostWaiting {
			c.waiting = append(c.waiting, message)
		} else {
			delete(b.clients, c)
			c.waiting, c.slow = nil, true
		}
		select {
		case c.some <- struct{}{}:
		default:
		}
	}
}

// take is what has come for a client; false when it was too slow.
func (b *Board) take(c *client) ([][]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := c.waiting
	c.waiting = nil
	return all, !c.slow
}

// listen returns a new reader of the stream, nil when there are too many; leave
// is to be called when it is done.
func (b *Board) listen() (c *client, leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.clients) >= mostClients {
		return nil, nil
	}
	c = &client{some: make(chan struct{}, 1)}
	b.clients[c] = struct{}{}
	return c, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.clients, c)
	}
}

// withChange fills in the change under way. mu is held.
func (b *Board) withChange(w Workload) Workload {
	for id, c := range b.changes {
		if slices.ContainsFunc(c.Parts, func(p Part) bool { return p.Workload == w.ID }) {
			w.Change = id
		}
	}
	return w
}

// Workloads are those of the last passes, by id. One that is known by its change
// only is among them.
func (b *Board) Workloads() []Workload {
	b.mu.Lock()
	defer b.mu.Unlock()
	changing := map[string]string{}
	all := maps.Clone(b.workloads)
	for id, c := range b.changes {
		for _, p := range c.Parts {
			changing[p.Workload] = id
			if _, ok := all[p.Workload]; !ok && p.From != nil {
				all[p.Workload] = Workload{ID: p.Workload, Backend: c.Backend, Image: p.From.Image, Digest: p.From.Digest, Decision: "none",
					Reason: updater.InProgress, Detail: "a change of it is under way", At: c.Since}
			}
		}
	}
	list := []Workload{}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		w := all[id]
		w.Change = changing[id]
		list = append(list, w)
	}
	return list
}

// reasons are the workloads of each backend by the reason of their last decision.
func (b *Board) reasons() map[string]map[updater.Reason]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]map[updater.Reason]int{}
	for _, w := range b.workloads {
		if all[w.Backend] == nil {
			all[w.Backend] = map[updater.Reason]int{}
		}
		all[w.Backend][w.Reason]++
	}
	return all
}

// Changes are those under way, oldest first.
func (b *Board) Changes() []Change {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.changes), func(x, y Change) int {
		return cmp.Or(x.Since.Compare(y.Since), cmp.Compare(x.ID, y.ID))
	})
}

// Package notify tells people what happened, by webhooks and by the services that
// shoutrrr knows. docs/notifications.md is what they are told about it.
//
// A Notifier only keeps messages, in an outbox that survives restarts (see Store),
// so nothing that happens waits for a receiver. Each message has a key of what it
// says, and is kept once. Run delivers what is kept, receiver by receiver, and
// takes it out when it was taken: a crash in between sends it again. What became
// of changes is also in the history, from where Run makes up for what a crash kept
// out of the outbox.
package notify

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/journal"
	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// keepTimeout bounds what keeping a message may take of a pass.
	keepTimeout = 3 * time.Second
	// mostWaiting bounds what waits for one receiver; the oldest make room.
	mostWaiting = 1000
	// troubleAfter is how long a registry must have given no answer.
	troubleAfter = time.Hour
)

// Store is where messages wait, and what was told. journal.Outbox is one.
type Store interface {
	Put(ctx context.Context, mail []journal.Mail, drop []string, most int) (dropped int, err error)
	Told(ctx context.Context) (map[string]time.Time, error)
	Waiting(ctx context.Context, receiver string, n int) ([]journal.Letter, error)
	Done(ctx context.Context, letters []journal.Letter) error
	Discard(ctx context.Context, but []string) (int, error)
	Deliver(ctx context.Context, do func(context.Context)) (bool, error)
	Stamp() string
}

// Notifier keeps what is to be told, and delivers it. It implements
// [updater.Notifier] and [updater.Observer].
type Notifier struct {
	store Store
	host  string
	log   *slog.Logger
	// history is what happened lately, for what a crash kept out of the store.
	history func(context.Context) ([]updater.Entry, error)

	mu       sync.Mutex
	senders  []*sender
	changed  chan struct{} // closed when there are other receivers
	told     map[string]time.Time
	kept     chan struct{} // holds one when there is something new
	found    map[string][]journal.Mail
	settled  map[string][]string // by backend: keys of troubles that are over
	missed   bool                // something could not be kept
	ill      map[string]time.Time
	recalled bool
}

var (
	_ updater.Notifier = (*Notifier)(nil)
	_ updater.Observer = (*Notifier)(nil)
)

// New returns a Notifier that keeps what it tells in store. history gives what
// happened lately; it may be nil. It starts nothing, and without receivers touches
// nothing.
func New(store Store, history func(context.Context) ([]updater.Entry, error), log *slog.Logger) *Notifier {
	host, err := os.Hostname()
	if err != nil {
		host = "" // then messages go without
	}
	return &Notifier{
		store: store, history: history, host: host, log: log,
		changed: make(chan struct{}), kept: make(chan struct{}, 1),
		told: map[string]time.Time{}, ill: map[string]time.Time{},
		found: map[string][]journal.Mail{}, settled: map[string][]string{},
	}
}

// Tell sets who is told. What waits for a receiver that is still among them is
// delivered to it.
func (n *Notifier) Tell(receivers []Receiver) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.senders = nil
	seen := map[string]bool{}
	for _, r := range receivers {
		if !seen[r.key()] { // the configuration was checked: it is listed twice to no end
			n.senders = append(n.senders, newSender(r))
		}
		seen[r.key()] = true
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// current are the senders, and a channel that closes when there are others.
func (n *Notifier) current() ([]*sender, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.senders, n.changed
}

// Postponed implements [updater.Observer].
func (n *Notifier) Postponed(updater.Workload, updater.Decision) {}

// Progressed implements [updater.Observer].
func (n *Notifier) Progressed(updater.Change, updater.Progress) {}

// Notify implements [updater.Notifier].
func (n *Notifier) Notify(ctx context.Context, e updater.Entry) {
	if senders, _ := n.current(); len(senders) == 0 {
		return
	}
	var drop []string
	if e.Event == updater.EventForgotten {
		// It may be tried again: what is then found out is news again.
		drop = n.about(ctx, e.Workload)
	}
	n.keep(ctx, n.mail(e), drop)
}

// mail is what an entry says: for a bad image also that it is rejected.
func (n *Notifier) mail(e updater.Entry) []journal.Mail {
	mail := []journal.Mail{n.letter(e)}
	if e.Verdict == updater.Bad {
		rejected := e
		rejected.Event = updater.EventRejected
		mail = append(mail, n.letter(rejected))
	}
	return mail
}

// letter is one entry for all who want it.
func (n *Notifier) letter(e updater.Entry) journal.Mail {
	m := journal.Mail{Once: once(e), At: e.At, For: map[string]json.RawMessage{}}
	senders, _ := n.current()
	for _, s := range senders {
		if !s.wants(e.Event) {
			continue
		}
		body := messageOf(e, n.host)
		if !s.Logs {
			body.Logs = ""
		}
		raw, err := json.Marshal(body)
		if err != nil { // a year beyond 9999
			n.log.Error("message cannot be written", "workload", e.Workload, "event", e.Event, "err", err)
			continue
		}
		m.For[s.key()] = raw
	}
	return m
}

// once is the key of what an entry says. A change's end is told once, and one that
// is nobody's fault once for each digest, however often it is tried.
func once(e updater.Entry) string {
	about := e.Change
	switch {
	case e.Open: // how it ends is told, too
		about += " open"
	case e.Event == updater.EventFound, e.Event == updater.EventAwaitingApproval:
		about = e.To.Digest
	case e.Verdict == updater.Unclear && e.Event != updater.EventFailed:
		about = e.To.Digest + " " + string(e.Verdict)
	case e.Change == "":
		about = e.To.Digest + " " + e.At.UTC().Format(time.RFC3339Nano)
	}
	return key(e.Workload, string(e.Event), about)
}

// key is one of the store's: the workload comes first, so that all about it is
// found by its beginning.
func key(parts ...string) string { return strings.Join(parts, "\x00") }

// about are the keys about a workload that another try of its image may bring up
// again.
func (n *Notifier) about(ctx context.Context, workload string) []string {
	ctx, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	told, err := n.store.Told(ctx)
	if err != nil {
		return nil // then it is told once less
	}
	var keys []string
	for k := range told {
		if rest, ok := strings.CutPrefix(k, workload+"\x00"); ok && strings.HasSuffix(rest, " "+string(updater.Unclear)) {
			keys = append(keys, k)
		}
	}
	return keys
}

// keep puts mail into the store.
func (n *Notifier) keep(ctx context.Context, mail []journal.Mail, drop []string) {
	if len(mail) == 0 && len(drop) == 0 {
		return
	}
	// What has happened is kept also by a process that is to end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	dropped, err := n.store.Put(ctx, mail, drop, mostWaiting)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range drop {
		delete(n.told, k)
	}
	if err != nil {
		n.missed = true
		n.log.ErrorContext(ctx, "message cannot be kept; what became of changes is told later, from the history", "err", err)
		return
	}
	for _, m := range mail {
		if len(n.told) > 20_000 { // only a shortcut: the store knows
			clear(n.told)
		}
		n.told[m.Once] = m.At
	}
	if dropped > 0 {
		n.log.WarnContext(ctx, "oldest messages were dropped: too many wait for a receiver that takes none", "messages", dropped)
	}
	select {
	case n.kept <- struct{}{}:
	default:
	}
}

// Decided implements [updater.Observer]: it collects what a pass has to tell.
func (n *Notifier) Decided(w updater.Workload, d updater.Decision) {
	if senders, _ := n.current(); len(senders) == 0 {
		return
	}
	n.recall()
	now := time.Now()
	n.registries(w, d, now)
	if d.Candidate == nil || !found(w, d) {
		return
	}
	e := updater.Entry{
		At: now, Backend: w.Backend, Workload: w.ID, Event: updater.EventFound, Why: d.Detail,
		From: updater.Image{Ref: w.Image, Digest: w.Runs.Digest()}, To: *d.Candidate,
	}
	n.collect(e)
	if d.Reason == updater.NeedsApproval {
		e.Event = updater.EventAwaitingApproval
		n.collect(e)
	}
}

// found reports whether a decision is about an image that is there and does not
// run, and that nobody has spoken against.
func found(w updater.Workload, d updater.Decision) bool {
	switch d.Reason {
	case updater.UpToDate, updater.InProgress, updater.Rejected, updater.RolledBack, updater.Downgrade,
		updater.NoCandidate, updater.PlatformMissing, updater.Pinned, updater.NotRunning:
		return false
	}
	return !w.Runs.Is(*d.Candidate)
}

// collect keeps a message until the pass is over, if it is not known yet.
func (n *Notifier) collect(e updater.Entry) {
	m := n.letter(e)
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, known := n.told[m.Once]; !known {
		n.found[e.Backend] = append(n.found[e.Backend], m)
	}
}

// Passed implements [updater.Observer]: what the pass had to tell is kept, all in
// one go.
func (n *Notifier) Passed(p updater.Passed) {
	n.mu.Lock()
	mail, drop := n.found[p.Backend], n.settled[p.Backend]
	delete(n.found, p.Backend)
	delete(n.settled, p.Backend)
	n.mu.Unlock()
	n.keep(context.Background(), mail, drop)
}

// Moved implements [updater.Observer]. How a change ends is told by Notify.
func (n *Notifier) Moved(updater.Change) {}

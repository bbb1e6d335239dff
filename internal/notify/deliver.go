package notify

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/journal"
	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// collectFor is how long messages are collected for who gets several in one,
	// unless something failed.
	collectFor = 5 * time.Second
	// firstPause to lastPause is the growing pause after a delivery that failed.
	firstPause, lastPause = 15 * time.Second, 15 * time.Minute
	// giveUpAfter is how old a message may get.
	giveUpAfter = 72 * time.Hour
	// lookEvery is how often messages are looked for that another process kept,
	// such as `updaterd forget`.
	lookEvery = 15 * time.Second
	// grace is what a delivery under way is given when the process is to end.
	grace = 3 * time.Second
)

// born is the key of when the store was new: what happened before was told by
// others, or nobody wanted it.
const born = "\x00born"

// eventTest is the event of what Test sends.
const eventTest updater.Event = "test"

// Run delivers what is kept until ctx ends. While another process does, it waits.
func (n *Notifier) Run(ctx context.Context) {
	for ctx.Err() == nil {
		senders, changed := n.current()
		if len(senders) == 0 {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		did, err := n.store.Deliver(ctx, func(ctx context.Context) { n.serve(ctx, senders, changed) })
		if err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "messages cannot be delivered", "err", err)
		}
		if !did {
			sleep(ctx, lookEvery)
		}
	}
}

// serve delivers to these until ctx ends or there are others.
func (n *Notifier) serve(ctx context.Context, senders []*sender, changed <-chan struct{}) {
	n.begin(ctx, senders)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pokes := make([]chan struct{}, len(senders))
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel() // before the wait
	for i, s := range senders {
		pokes[i] = make(chan struct{}, 1)
		all.Go(func() { n.attend(ctx, s, pokes[i]) })
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	stamp := n.store.Stamp()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			return
		case <-n.kept:
		case <-tick.C:
			n.mu.Lock()
			missed := n.missed
			n.mu.Unlock()
			if missed {
				n.catchUp(ctx)
			}
			now := n.store.Stamp()
			if now == stamp {
				continue
			}
			stamp = now
		}
		for _, p := range pokes {
			select {
			case p <- struct{}{}:
			default:
			}
		}
	}
}

// begin is what comes before any delivery.
func (n *Notifier) begin(ctx context.Context, senders []*sender) {
	n.catchUp(ctx)
	var keys []string
	for _, s := range senders {
		keys = append(keys, s.key())
	}
	gone, err := n.store.Discard(ctx, keys)
	if err != nil {
		n.log.WarnContext(ctx, "messages for receivers that are no longer configured cannot be taken out", "err", err)
	}
	if gone > 0 {
		n.log.WarnContext(ctx, "messages were dropped: their receivers are no longer configured", "messages", gone)
	}
}

// catchUp keeps what the history has and the store does not know: a crash, or a
// full disk, came in between.
func (n *Notifier) catchUp(ctx context.Context) {
	if n.history == nil {
		return
	}
	told, err := n.store.Told(ctx)
	if err != nil {
		n.log.WarnContext(ctx, "what was told cannot be read", "err", err)
		return
	}
	since, known := told[born]
	if !known {
		n.keep(ctx, []journal.Mail{{Once: born, At: time.Now()}}, nil)
		return
	}
	entries, err := n.history(ctx)
	if err != nil {
		n.log.WarnContext(ctx, "history cannot be read, so it is not known whether all of it was told", "err", err)
		return
	}
	n.mu.Lock()
	n.missed = false // if it happens again now, it is set again
	n.mu.Unlock()
	var mail []journal.Mail
	for i := len(entries) - 1; i >= 0; i-- { // the newest come first
		e := entries[i]
		if e.At.Before(since) || time.Since(e.At) > giveUpAfter {
			continue
		}
		for _, m := range n.mail(e) {
			if _, known := told[m.Once]; !known {
				mail = append(mail, m)
			}
		}
	}
	if len(mail) > 0 {
		n.log.InfoContext(ctx, "messages are made up for from the history", "messages", len(mail))
		n.keep(ctx, mail, nil)
	}
}

// attend delivers to one receiver until ctx ends.
func (n *Notifier) attend(ctx context.Context, s *sender, poke <-chan struct{}) {
	failures := 0
	for {
		wait := time.Duration(-1) // until poked
		switch left, err := n.next(ctx, s, collectFor); {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = min(firstPause<<min(failures, 10), lastPause)
			failures++
			n.log.WarnContext(ctx, "message was not delivered, it is tried again", "receiver", s.shown(), "in", wait, "err", err)
		case left:
			failures = 0
			continue
		default:
			failures = 0
		}
		if wait >= 0 { // who takes nothing is not asked more often when there is more
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-poke:
		}
	}
}

// next makes one delivery, after waiting for what comes along with it; false when
// nothing waits.
func (n *Notifier) next(ctx context.Context, s *sender, collect time.Duration) (bool, error) {
	letters, err := n.store.Waiting(ctx, s.key(), mostAtOnce)
	if err != nil || len(letters) == 0 {
		return false, err
	}
	if !s.single() && len(letters) < mostAtOnce && !urgent(letters) && collect > 0 {
		if !sleep(ctx, collect) {
			return false, nil
		}
		if letters, err = n.store.Waiting(ctx, s.key(), mostAtOnce); err != nil || len(letters) == 0 {
			return false, err
		}
	}
	var ids []string
	var messages []Message
	for i, l := range letters {
		var m Message
		err := json.Unmarshal(l.Body, &m)
		if old := time.Since(l.At) > giveUpAfter; err != nil || old {
			if i > 0 {
				letters = letters[:i]
				break
			}
			n.log.WarnContext(ctx, "message is given up", "receiver", s.shown(), "workload", m.Workload, "event", m.Event, "at", l.At, "err", err)
			return true, n.store.Done(ctx, letters[:1])
		}
		messages, ids = append(messages, m), append(ids, l.ID)
	}
	sending, cancel := lasting(ctx, grace)
	defer cancel()
	sent, err := s.deliver(sending, n.host, ids, messages)
	if errors.Is(err, errNever) {
		n.log.WarnContext(ctx, "message is given up", "receiver", s.shown(), "workload", messages[0].Workload, "event", messages[0].Event, "err", err)
		err = nil
	}
	if err != nil {
		return true, err
	}
	// Also when the process is to end: they were taken.
	done, cancel := lasting(ctx, grace)
	defer cancel()
	return true, n.store.Done(done, letters[:sent])
}

// urgent reports whether something failed.
func urgent(letters []journal.Letter) bool {
	for _, l := range letters {
		var m Message
		if json.Unmarshal(l.Body, &m) == nil && m.Event == updater.EventFailed {
			return true
		}
	}
	return false
}

// Flush delivers what is kept, each receiver tried once, for at most that long. It
// is for a process that is about to end: what is left is delivered by the next. If
// another process delivers, that one does it.
func (n *Notifier) Flush(ctx context.Context, most time.Duration) {
	senders, _ := n.current()
	if len(senders) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), most)
	defer cancel()
	_, err := n.store.Deliver(ctx, func(ctx context.Context) {
		n.begin(ctx, senders)
		var all sync.WaitGroup
		for _, s := range senders {
			all.Go(func() {
				for {
					left, err := n.next(ctx, s, 0)
					if err != nil {
						n.log.Warn("message was not delivered; it waits for the next updaterd", "receiver", s.shown(), "err", err)
					}
					if err != nil || !left || ctx.Err() != nil {
						return
					}
				}
			})
		}
		all.Wait()
	})
	if err != nil {
		n.log.Warn("messages cannot be delivered; they wait for the next updaterd", "err", err)
	}
}

// Tested is what became of a test of one receiver.
type Tested struct {
	Receiver string
	Err      error
}

// Test tells every receiver that it is a test, at once and past the store.
func (n *Notifier) Test(ctx context.Context) []Tested {
	senders, _ := n.current()
	results := make([]Tested, len(senders))
	var all sync.WaitGroup
	for i, s := range senders {
		all.Go(func() {
			now := time.Now()
			m := Message{Event: eventTest, Host: n.host, At: now, Why: "this is a test of updaterd's messages; nothing has happened"}
			_, err := s.deliver(ctx, n.host, []string{"test-" + now.UTC().Format("20060102T150405.000")}, []Message{m})
			results[i] = Tested{s.shown(), err}
		})
	}
	all.Wait()
	return results
}

// lasting is a context that ends a while after another.
func lasting(ctx context.Context, longer time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(longer, cancel)
		context.AfterFunc(lasting, func() { t.Stop() })
	})
	return lasting, func() { stop(); cancel() }
}

// sleep reports whether the whole pause passed.
func sleep(ctx context.Context, pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/journal"
	"github.com/updaterd/updaterd/internal/updater"
)

const secret = "s3cr3t"

func entry() updater.Entry {
	return updater.Entry{
		At:      time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Backend: "local", Workload: "local/web", Event: updater.EventRestored, Change: "c1",
		From:    updater.Image{Ref: "app:1", Digest: "sha256:1", Manifest: "sha256:m1"},
		To:      updater.Image{Ref: "app:1", Digest: "sha256:2"},
		Verdict: updater.Bad, Why: "it exited with code 1", Logs: "password=hunter2",
		Took: 12500 * time.Millisecond, Gap: 40 * time.Millisecond,
	}
}

// now is an entry of now: old ones are given up.
func now(event updater.Event, change string) updater.Entry {
	e := entry()
	e.At, e.Event, e.Change, e.Verdict = time.Now(), event, change, updater.Good
	return e
}

// lines is a log that is read while it is written.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

// box is a receiver, its notifier and the directory of its outbox.
type box struct {
	*Notifier
	dir string
	log *lines
}

func open(t *testing.T, dir string, history []updater.Entry, receivers ...Receiver) box {
	t.Helper()
	l := &lines{}
	log := slog.New(slog.NewTextHandler(l, nil))
	n := New(journal.NewOutbox(dir, log), func(context.Context) ([]updater.Entry, error) { return history, nil }, log)
	n.host = "nas"
	n.Tell(receivers)
	return box{n, dir, l}
}

// heard is one request that a webhook got.
type heard struct {
	path, body string
	header     http.Header
}

// webhook remembers what it was sent, and answers as it is told.
type webhook struct {
	*httptest.Server
	mu     sync.Mutex
	got    []heard
	status int
}

func newWebhook(t *testing.T) *webhook {
	t.Helper()
	w := &webhook{status: http.StatusNoContent}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got = append(w.got, heard{r.URL.Path, string(body), r.Header})
		rw.WriteHeader(w.status)
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *webhook) answer(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = status
}

func (w *webhook) heard() []heard {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got
}

// events are what a webhook was told, in order.
func (w *webhook) events(t *testing.T) (events []string) {
	t.Helper()
	for _, h := range w.heard() {
		var m Message
		require.NoError(t, json.Unmarshal([]byte(h.body), &m))
		events = append(events, string(m.Event)+" "+m.Change)
	}
	return events
}

func (b box) flush(t *testing.T) { b.Flush(t.Context(), 10*time.Second) }

func TestTheMessageIsTheDocumentedOne(t *testing.T) {
	w := newWebhook(t)
	b := open(t, t.TempDir(), nil, Receiver{Address: w.URL + "/" + secret, On: []updater.Event{updater.EventRestored}})
	n, err := newSender(Receiver{Address: w.URL + "/" + secret}).deliver(t.Context(), "nas", []string{"1"}, []Message{func() Message {
		m := messageOf(entry(), b.host)
		m.Logs = ""
		return m
	}()})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	got := w.heard()[0]
	require.Equal(t, "/"+secret, got.path)
	require.Equal(t, "application/json", got.header.Get("Content-Type"))
	require.Empty(t, got.header.Get("webhook-signature"), "nobody gave a secret")

	// The example in the documents is this very message.
	page, err := os.ReadFile("../../docs/notifications.md")
	require.NoError(t, err)
	_, example, found := strings.Cut(string(page), "```json\n")
	require.True(t, found)
	example, _, _ = strings.Cut(example, "```")
	require.JSONEq(t, example, got.body)
}

func TestWhatIsNotKnownIsLeftOut(t *testing.T) {
	body, err := json.Marshal(messageOf(updater.Entry{Event: updater.EventForgotten, Workload: "local/web"}, ""))
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(body, &fields))
	for _, key := range []string{"from", "to", "change", "why", "took_seconds", "gap_seconds", "logs", "host"} {
		require.NotContains(t, fields, key)
	}
}

func TestEachIsToldWhatItWants(t *testing.T) {
	all, some, none := newWebhook(t), newWebhook(t), newWebhook(t)
	b := open(t, t.TempDir(), nil,
		Receiver{Address: all.URL},
		Receiver{Address: some.URL, On: []updater.Event{updater.EventRejected}, Logs: true},
		Receiver{Address: none.URL, On: []updater.Event{updater.EventUpdated}},
	)
	e := entry()
	e.At = time.Now()
	b.Notify(t.Context(), e)
	b.flush(t)
	require.Equal(t, []string{"restored c1", "rejected c1"}, all.events(t))
	require.Equal(t, []string{"rejected c1"}, some.events(t))
	require.Empty(t, none.events(t))
	require.NotContains(t, all.heard()[0].body, "hunter2", "log lines are for who is to have them")
	require.Contains(t, some.heard()[0].body, "hunter2")

	b.Notify(t.Context(), now(updater.EventFailed, "c2"))
	b.flush(t)
	require.Equal(t, []string{"failed c2"}, none.events(t), "a failure is told to all")
}

func TestOnceIsOnce(t *testing.T) {
	unclear := func(change, digest string) updater.Entry {
		e := now(updater.EventRestored, change)
		e.Verdict, e.To.Digest = updater.Unclear, digest
		return e
	}
	failed := func(change string) updater.Entry {
		e := unclear(change, "sha256:2")
		e.Event = updater.EventFailed
		return e
	}
	stuck := failed("c1")
	stuck.Open = true
	forgotten := now(updater.EventForgotten, "")
	for _, row := range []struct {
		name string
		tell []updater.Entry
		want []string
	}{
		{"the same end of a change", []updater.Entry{now(updater.EventUpdated, "c1"), now(updater.EventUpdated, "c1")}, []string{"updated c1"}},
		{"two changes are two", []updater.Entry{now(updater.EventUpdated, "c1"), now(updater.EventUpdated, "c2")}, []string{"updated c1", "updated c2"}},
		{"what is nobody's fault, however often it is tried", []updater.Entry{unclear("c1", "sha256:2"), unclear("c2", "sha256:2")}, []string{"restored c1"}},
		{"another digest is news", []updater.Entry{unclear("c1", "sha256:2"), unclear("c2", "sha256:3")}, []string{"restored c1", "restored c2"}},
		{"a failure is told every time", []updater.Entry{failed("c1"), failed("c2")}, []string{"failed c1", "failed c2"}},
		{"one that is not over, once, and how it ends", []updater.Entry{stuck, stuck, failed("c1")}, []string{"failed c1", "failed c1"}},
		{"it is news again when a person has spoken", []updater.Entry{unclear("c1", "sha256:2"), forgotten, unclear("c2", "sha256:2")}, []string{"restored c1", "forgotten ", "restored c2"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWebhook(t)
			dir := t.TempDir()
			for _, e := range row.tell {
				// A restart in between changes nothing.
				b := open(t, dir, nil, Receiver{Address: w.URL})
				b.Notify(t.Context(), e)
				b.flush(t)
			}
			require.Equal(t, row.want, w.events(t))
		})
	}
}

func TestWhatIsNotTakenWaits(t *testing.T) {
	w := newWebhook(t)
	w.answer(http.StatusForbidden)
	dir := t.TempDir()
	b := open(t, dir, nil, Receiver{Address: w.URL + "/" + secret + "?token=" + secret})
	b.Notify(t.Context(), now(updater.EventUpdated, "c1"))
	b.flush(t)
	require.Contains(t, b.log.String(), "it answered 403")
	require.Contains(t, b.log.String(), "receiver="+w.URL)
	require.NotContains(t, b.log.String(), secret)

	// The next process delivers it, as the same message.
	before := w.heard()[0]
	w.answer(http.StatusOK)
	again := open(t, dir, nil, Receiver{Address: w.URL + "/" + secret + "?token=" + secret, Secret: "x"})
	again.flush(t)
	again.flush(t)
	require.Len(t, w.heard(), 2)
	require.Equal(t, before.body, w.heard()[1].body)
	require.Empty(t, again.log.String())
}

func TestADeadReceiverHoldsUpNobody(t *testing.T) {
	alive := newWebhook(t)
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // then the server sees when the client has gone
		<-r.Context().Done()
	}))
	t.Cleanup(hung.Close)
	b := open(t, t.TempDir(), nil, Receiver{Address: hung.URL}, Receiver{Address: alive.URL})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); b.Run(ctx) }()
	for i := range 20 {
		began := time.Now()
		b.Notify(t.Context(), now(updater.EventUpdated, fmt.Sprint("c", i)))
		require.Less(t, time.Since(began), 3*time.Second)
	}
	require.Eventually(t, func() bool { return len(alive.heard()) == 20 }, 20*time.Second, 20*time.Millisecond)
	cancel()
	select {
	case <-ended:
	case <-time.After(grace + 10*time.Second):
		t.Fatal("it does not end")
	}
}

func TestTheHistoryMakesUpForACrash(t *testing.T) {
	w := newWebhook(t)
	dir := t.TempDir()
	old := now(updater.EventUpdated, "c0")
	old.At = time.Now().Add(-time.Hour)
	b := open(t, dir, []updater.Entry{old}, Receiver{Address: w.URL})
	b.flush(t)
	require.Empty(t, w.heard(), "what happened before there was anybody to tell is nobody's business")

	known, lost := now(updater.EventUpdated, "c1"), now(updater.EventUpdated, "c2")
	b.Notify(t.Context(), known)
	again := open(t, dir, []updater.Entry{lost, known, old}, Receiver{Address: w.URL})
	again.flush(t)
	require.Equal(t, []string{"updated c1", "updated c2"}, w.events(t))
	open(t, dir, []updater.Entry{lost, known, old}, Receiver{Address: w.URL}).flush(t)
	require.Len(t, w.heard(), 2)
}

func TestAReceiverThatIsGoneIsForgotten(t *testing.T) {
	dead, alive := newWebhook(t), newWebhook(t)
	dead.answer(500)
	dir := t.TempDir()
	b := open(t, dir, nil, Receiver{Address: dead.URL}, Receiver{Name: "chat", Address: dead.URL + "/chat"})
	b.Notify(t.Context(), now(updater.EventUpdated, "c1"))
	// One is taken away, one moves.
	again := open(t, dir, nil, Receiver{Name: "chat", Address: alive.URL})
	again.flush(t)
	require.Equal(t, []string{"updated c1"}, alive.events(t))
	require.Contains(t, again.log.String(), "no longer configured")
	left, err := journal.NewOutbox(dir, slog.New(slog.DiscardHandler)).Discard(t.Context(), nil)
	require.NoError(t, err)
	require.Zero(t, left)
}

func TestWhatAWebhookWillNeverTakeIsGivenUp(t *testing.T) {
	w := newWebhook(t)
	w.answer(http.StatusUnprocessableEntity)
	b := open(t, t.TempDir(), nil, Receiver{Address: w.URL})
	b.Notify(t.Context(), now(updater.EventUpdated, "c1"))
	b.Notify(t.Context(), now(updater.EventUpdated, "c2"))
	b.flush(t)
	b.flush(t)
	require.Equal(t, []string{"updated c1", "updated c2"}, w.events(t))
	require.Contains(t, b.log.String(), "it answered 422")
}

func TestWhatIsTooOldIsGivenUp(t *testing.T) {
	w := newWebhook(t)
	b := open(t, t.TempDir(), nil, Receiver{Address: w.URL})
	b.Notify(t.Context(), entry())
	b.Notify(t.Context(), now(updater.EventUpdated, "c2"))
	b.flush(t)
	require.Equal(t, []string{"updated c2"}, w.events(t))
	require.Contains(t, b.log.String(), "message is given up")
}

func TestManyInOneMessage(t *testing.T) {
	w := newWebhook(t)
	text, err := ParseTemplate(`{{len .Messages}}: {{range .Messages}}{{.Change}} {{end}}`)
	require.NoError(t, err)
	b := open(t, t.TempDir(), nil, Receiver{Name: "batch", Address: w.URL + "/batch", Batch: true}, Receiver{Name: "text", Address: w.URL + "/text", Text: text})
	for i := range 30 {
		b.Notify(t.Context(), now(updater.EventUpdated, fmt.Sprint("c", i)))
	}
	b.flush(t)
	sizes := map[string][]int{}
	for _, h := range w.heard() {
		n := 0
		if h.path == "/batch" {
			var body struct{ Events []Message }
			require.NoError(t, json.Unmarshal([]byte(h.body), &body))
			n = len(body.Events)
		} else {
			_, err := fmt.Sscanf(h.body, "%d:", &n)
			require.NoError(t, err)
			require.Equal(t, "text/plain; charset=utf-8", h.header.Get("Content-Type"))
		}
		sizes[h.path] = append(sizes[h.path], n)
	}
	require.Equal(t, map[string][]int{"/batch": {25, 5}, "/text": {25, 5}}, sizes)
}

func TestAMessageIsNoLongerThanAChatTakes(t *testing.T) {
	w := newWebhook(t)
	text, err := ParseTemplate(`{{range .Messages}}{{.Change}} {{.Why}} {{end}}`)
	require.NoError(t, err)
	b := open(t, t.TempDir(), nil, Receiver{Address: w.URL, Text: text})
	for i := range 8 {
		e := now(updater.EventUpdated, fmt.Sprint("c", i))
		e.Why = strings.Repeat("é", 600)
		b.Notify(t.Context(), e)
	}
	b.flush(t)
	all := ""
	for _, h := range w.heard() {
		require.LessOrEqual(t, len(h.body), mostText)
		all += h.body
	}
	require.Len(t, w.heard(), 4)
	for i := range 8 {
		require.Equal(t, 1, strings.Count(all, fmt.Sprint("c", i, " ")))
	}
}

// pass is a pass that decided so about a workload.
func (b box) pass(reason updater.Reason, digest string, at time.Time) {
	w := updater.Workload{ID: "local/web", Backend: "local", Image: "ghcr.io/acme/app:1", Runs: updater.Running{Digests: []string{"sha256:1"}}}
	d := updater.Decision{Reason: reason, Detail: "because"}
	if digest != "" {
		d.Candidate = &updater.Image{Ref: "ghcr.io/acme/app:1", Digest: digest}
	}
	if at.IsZero() {
		b.Decided(w, d)
	} else { // the same without the clock
		b.recall()
		b.registries(w, d, at)
	}
	b.Passed(updater.Passed{Backend: "local"})
}

func TestWhatAPassFindsIsToldOnce(t *testing.T) {
	w := newWebhook(t)
	dir := t.TempDir()
	for range 3 { // also over restarts
		b := open(t, dir, nil, Receiver{Address: w.URL})
		b.pass(updater.Monitor, "sha256:2", time.Time{})
		b.pass(updater.NeedsApproval, "sha256:3", time.Time{})
		b.pass(updater.NeedsApproval, "sha256:3", time.Time{})
		b.pass(updater.UpToDate, "sha256:1", time.Time{})
		b.pass(updater.Rejected, "sha256:4", time.Time{})
		b.flush(t)
	}
	require.Equal(t, []string{"found ", "found ", "awaiting-approval "}, w.events(t))
	require.Contains(t, w.heard()[2].body, "sha256:3")
}

func TestRegistryTroubleThatLasts(t *testing.T) {
	w := newWebhook(t)
	dir := t.TempDir()
	start := time.Now()
	step := func(reason updater.Reason, digest string, after time.Duration, want int, msg string) {
		t.Helper()
		b := open(t, dir, nil, Receiver{Address: w.URL}) // each pass by another process
		b.pass(reason, digest, start.Add(after))
		b.flush(t)
		require.Len(t, w.heard(), want, msg)
	}
	step(updater.RegistryUnavailable, "", 0, 0, "trouble that passes is nobody's")
	step(updater.RegistryUnavailable, "", 59*time.Minute, 0, "nor is it yet")
	step(updater.RateLimited, "", 61*time.Minute, 1, "it lasts")
	step(updater.RegistryUnavailable, "", 3*time.Hour, 1, "and is told once")
	step(updater.Held, "sha256:2", 4*time.Hour, 2, "it answers, which is told")
	step(updater.Held, "sha256:2", 5*time.Hour, 2, "once")
	step(updater.RegistryUnavailable, "", 5*time.Hour, 2, "new trouble begins anew")
	step(updater.Held, "sha256:2", 5*time.Hour+time.Minute, 2, "nobody heard of that")
	step(updater.RegistryUnavailable, "", 6*time.Hour, 2, "nor of this, yet")
	step(updater.RegistryUnavailable, "", 8*time.Hour, 3, "but it lasts")
	step(updater.Unauthorized, "", 9*time.Hour, 4, "the registry answers, but not about this repository")
	step(updater.Unauthorized, "", 11*time.Hour, 5, "which lasts, too")
	var m Message
	require.NoError(t, json.Unmarshal([]byte(w.heard()[0].body), &m))
	require.Equal(t, updater.EventRegistryTrouble, m.Event)
	require.Contains(t, m.Why, "ghcr.io has given no answer since")
	require.NoError(t, json.Unmarshal([]byte(w.heard()[1].body), &m))
	require.Equal(t, updater.EventRegistryWell, m.Event)
	require.Contains(t, m.Why, "ghcr.io answers again; it had given no answer since "+start.UTC().Format(time.RFC3339))
	require.NoError(t, json.Unmarshal([]byte(w.heard()[4].body), &m))
	require.Contains(t, m.Why, "ghcr.io/acme/app has given no answer")
}

func TestNobodyToTellTouchesNothing(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, nil)
	b.Notify(t.Context(), entry())
	b.pass(updater.Monitor, "sha256:2", time.Time{})
	b.flush(t)
	require.Empty(t, b.Test(t.Context()))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestADiskThatIsFull(t *testing.T) {
	w := newWebhook(t)
	e := now(updater.EventUpdated, "c1")
	b := open(t, t.TempDir(), []updater.Entry{e}, Receiver{Address: w.URL})
	b.flush(t)
	full := &full{Store: b.store}
	b.store = full
	full.err = errors.New("no space left on device")
	e.At = time.Now()
	b.history = func(context.Context) ([]updater.Entry, error) { return []updater.Entry{e}, nil }
	b.Notify(t.Context(), e)
	require.Contains(t, b.log.String(), "no space left on device")
	full.err = nil
	b.flush(t)
	require.Equal(t, []string{"updated c1"}, w.events(t))
}

type full struct {
	Store
	err error
}

func (f *full) Put(ctx context.Context, mail []journal.Mail, drop []string, most int) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Store.Put(ctx, mail, drop, most)
}

// TestRunTellsWhatAnotherProcessKept, and takes other receivers.
func TestRunTellsWhatComes(t *testing.T) {
	first, second := newWebhook(t), newWebhook(t)
	dir := t.TempDir()
	b := open(t, dir, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); b.Run(ctx) }()
	b.Tell([]Receiver{{Address: first.URL}})
	b.Notify(t.Context(), now(updater.EventUpdated, "c1"))
	require.Eventually(t, func() bool { return len(first.heard()) == 1 }, 10*time.Second, 10*time.Millisecond)

	// A command beside the daemon leaves it to that.
	other := open(t, dir, nil, Receiver{Address: second.URL})
	other.flush(t)
	require.Empty(t, second.heard())

	b.Tell([]Receiver{{Address: second.URL, On: []updater.Event{updater.EventUpdated}}})
	b.Notify(t.Context(), now(updater.EventUpdated, "c2"))
	require.Eventually(t, func() bool { return len(second.heard()) == 1 }, 10*time.Second, 10*time.Millisecond)
	require.Len(t, first.heard(), 1)
	cancel()
	<-ended
}

func TestATestIsTold(t *testing.T) {
	good, bad := newWebhook(t), newWebhook(t)
	bad.answer(http.StatusNotFound)
	b := open(t, t.TempDir(), nil, Receiver{Name: "good", Address: good.URL}, Receiver{Address: bad.URL + "/" + secret})
	results := b.Test(t.Context())
	require.Equal(t, "good", results[0].Receiver)
	require.NoError(t, results[0].Err)
	require.Equal(t, []string{"test "}, good.events(t))
	require.Equal(t, bad.URL, results[1].Receiver)
	require.ErrorContains(t, results[1].Err, "it answered 404")
}

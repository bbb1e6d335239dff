// Package server lets people look at a running updaterd and speak to it: HTTP with
// JSON, on a unix socket and on TCP. openapi.yaml describes it, and a test holds it
// against the routes below. It knows updaterd by the small interfaces that it
// declares, and changes nothing itself: a person's word goes to Updater.Say.
package server

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// Updater is what the server asks of updaterd.
type Updater interface {
	// Say passes on what a person said.
	Say(ctx context.Context, s updater.Saying) ([]updater.Told, error)
	// Glance is what is to be seen from outside.
	Glance() updater.Glance
	// History is all that happened, newest first.
	History(ctx context.Context) ([]updater.Entry, error)
}

// Options are what a Server is made of.
type Options struct {
	Version string
	Updater Updater
	Board   *Board
	// Tokens let in on TCP. None: reading only, and on loopback only.
	Tokens []Token
	// Hosts are the names that we are called by on TCP, besides those of loopback.
	Hosts []string
	Log   *slog.Logger
}

// Server answers requests.
type Server struct {
	options  Options
	handler  http.Handler
	pages    *template.Template
	sessions sessions
}

// New returns a Server. It starts nothing.
func New(o Options) *Server {
	s := &Server{options: o, pages: pages()}
	mux := http.NewServeMux()
	for _, r := range slices.Concat(s.routes(), s.pageRoutes()) {
		mux.HandleFunc(r.method+" "+r.path, r.handle)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "no-route", "there is nothing at "+r.URL.Path+"; /v1/openapi.yaml says what there is")
	})
	s.handler = s.guard(mux)
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// route is one line of openapi.yaml.
type route struct {
	method, path string
	handle       http.HandlerFunc
}

func (s *Server) routes() []route {
	all := []route{
		{"GET", "/v1/status", s.status},
		{"GET", "/v1/workloads", s.workloads},
		{"GET", "/v1/workloads/{id...}", s.workload},
		{"GET", "/v1/changes", s.changes},
		{"GET", "/v1/changes/{id}", s.change},
		{"GET", "/v1/history", s.history},
		{"GET", "/v1/events", s.events},
		{"GET", "/v1/openapi.yaml", s.openapi},
	}
	for _, verb := range updater.Verbs() {
		all = append(all, route{"POST", "/v1/" + string(verb), s.say(verb)})
	}
	return all
}

//go:embed openapi.yaml
var description []byte

func (s *Server) openapi(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(description) // whoever asked has gone
}

// Problem is the answer to a request that was not served.
type Problem struct {
	Error string `json:"error"`
	// Code is for programs: it does not change.
	Code string `json:"code"`
}

func refuse(w http.ResponseWriter, status int, code, text string) {
	answer(w, status, Problem{text, code})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // whoever asked has gone
}

// Status is what updaterd is at.
type Status struct {
	Version string `json:"version"`
	// Ready: every backend is led by this process, or cannot be asked for a reason
	// that lies outside of it.
	Ready      bool      `json:"ready"`
	StandingBy bool      `json:"standing_by"`
	Backends   []Backend `json:"backends"`
	// Hanging are the steps that should be over and are not.
	Hanging []string `json:"hanging,omitempty"`
}

// Backend is a place where workloads run.
type Backend struct {
	Name    string `json:"name"`
	Trouble string `json:"trouble,omitempty"` // why it cannot be asked
	Watched int    `json:"watched"`
	Updates int    `json:"updates"` // that the last pass decided on
	// Reasons are the watched workloads by the reason of their last decision.
	Reasons  map[updater.Reason]int `json:"reasons"`
	LastPass *time.Time             `json:"last_pass,omitempty"`
	NextPass *time.Time             `json:"next_pass,omitempty"`
	Changing []string               `json:"changing"` // workloads with a change under way
	// Paused is the person's word that no change begins here.
	Paused *updater.Word `json:"paused,omitempty"`
}

// Healthy reports whether all is as it should be with updaterd itself.
func (s Status) Healthy() bool {
	return s.Ready && len(s.Hanging) == 0 && !slices.ContainsFunc(s.Backends, func(b Backend) bool { return b.Trouble != "" })
}

// Pauses tell people that no change begins, since when and by whom: one line where it
// is so everywhere.
func (s Status) Pauses() []string {
	var lines []string
	everywhere := !slices.ContainsFunc(s.Backends, func(b Backend) bool { return b.Paused == nil })
	for _, b := range s.Backends {
		switch {
		case b.Paused == nil:
		case everywhere:
			lines = append(lines, PausedSince(*b.Paused))
		default:
			lines = append(lines, b.Name+" "+PausedSince(*b.Paused))
		}
	}
	return slices.Compact(lines)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.statusNow())
}

func (s *Server) statusNow() Status {
	g := s.options.Updater.Glance()
	out := Status{Version: s.options.Version, Ready: g.Ready, StandingBy: g.StandingBy, Backends: []Backend{}}
	reasons := s.options.Board.reasons()
	for _, step := range updater.Overdue(g.Steps, time.Now()) {
		out.Hanging = append(out.Hanging, step.String())
	}
	for _, p := range g.Places {
		b := Backend{Name: p.Backend, Watched: p.Watched, Updates: p.Updates, Changing: append([]string{}, p.Changing...), Paused: p.Paused, Reasons: reasons[p.Backend]}
		if b.Reasons == nil {
			b.Reasons = map[updater.Reason]int{} // an object, also when it is empty
		}
		if p.Trouble != nil {
			b.Trouble = p.Trouble.Error()
		}
		if !p.LastPass.IsZero() {
			b.LastPass = &p.LastPass
		}
		if !p.NextPass.IsZero() {
			b.NextPass = &p.NextPass
		}
		out.Backends = append(out.Backends, b)
	}
	return out
}

// named reports whether a name that a person gave means a workload.
func named(name, backend, id string) bool { return name == id || backend+"/"+name == id }

func (s *Server) workloads(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	all := s.options.Board.Workloads()
	all = slices.DeleteFunc(all, func(x Workload) bool {
		return q.Has("backend") && x.Backend != q.Get("backend") ||
			q.Has("reason") && !slices.ContainsFunc(q["reason"], func(one string) bool { return x.For(updater.Reason(one)) }) ||
			q.Has("name") && !slices.ContainsFunc(q["name"], func(n string) bool { return named(n, x.Backend, x.ID) })
	})
	answer(w, http.StatusOK, all)
}

func (s *Server) workload(w http.ResponseWriter, r *http.Request) {
	for _, x := range s.options.Board.Workloads() {
		if named(r.PathValue("id"), x.Backend, x.ID) {
			answer(w, http.StatusOK, x)
			return
		}
	}
	refuse(w, http.StatusNotFound, "unknown-workload", fmt.Sprintf("no watched workload is called %q, or no pass has seen it yet", r.PathValue("id")))
}

func (s *Server) changes(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, append([]Change{}, s.options.Board.Changes()...))
}

func (s *Server) change(w http.ResponseWriter, r *http.Request) {
	for _, c := range s.options.Board.Changes() {
		if c.ID == r.PathValue("id") {
			answer(w, http.StatusOK, c)
			return
		}
	}
	refuse(w, http.StatusNotFound, "unknown-change", "no such change is under way; /v1/history?change=ID has those that are over")
}

// mostEntries is the largest page of the history.
const mostEntries = 1000

func (s *Server) history(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit := 50
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > mostEntries {
			refuse(w, http.StatusBadRequest, "bad-request", fmt.Sprintf("limit: %q is no number from 1 to %d", text, mostEntries))
			return
		}
		limit = n
	}
	skip := 0
	if text := q.Get("offset"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			refuse(w, http.StatusBadRequest, "bad-request", fmt.Sprintf("offset: %q is no number from 0", text))
			return
		}
		skip = n
	}
	if text := q.Get("since"); text != "" {
		if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
			refuse(w, http.StatusBadRequest, "bad-request", fmt.Sprintf("since: %q is no time; write it as 2026-03-01T12:00:00Z", text))
			return
		}
	}
	all, err := s.options.Updater.History(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	entries := []Entry{}
	for _, e := range all {
		if !Asked(q, e) {
			continue
		}
		if skip > 0 {
			skip--
			continue
		}
		if len(entries) == limit {
			break
		}
		if !who(r).write {
			e.Logs = "" // they may hold secrets of the workload
		}
		entries = append(entries, EntryOf(e))
	}
	answer(w, http.StatusOK, entries)
}

// Asked reports whether a query of the history asks for an entry. A time in it
// that is none asks for all.
func Asked(q url.Values, e updater.Entry) bool {
	since, err := time.Parse(time.RFC3339Nano, q.Get("since"))
	switch {
	case len(q["workload"]) > 0 && !slices.ContainsFunc(q["workload"], func(n string) bool { return named(n, e.Backend, e.Workload) }),
		len(q["event"]) > 0 && !slices.Contains(q["event"], string(e.Event)),
		len(q["change"]) > 0 && q.Get("change") != e.Change,
		err == nil && !e.At.After(since):
		return false
	}
	return true
}

// Words is the body of a request that says something.
type Words struct {
	Workloads []string   `json:"workloads,omitempty"`
	Digest    string     `json:"digest,omitempty"`
	Why       string     `json:"why,omitempty"`
	Until     *time.Time `json:"until,omitempty"`
	// Who is believed of root on the unix socket only, who speaks for others.
	Who string `json:"who,omitempty"`
}

// mostWords bounds a body: a thousand names and a long sentence.
const mostWords = 256 << 10

// sayLimit is what saying something may take: a candidate may have to be asked
// for first.
const sayLimit = 2 * time.Minute

func (s *Server) say(verb updater.Verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		// A page of another origin can send no such type without being asked first.
		if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
			refuse(w, http.StatusUnsupportedMediaType, "bad-request", "the body must be application/json")
			return
		}
		var words Words
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, mostWords))
		d.DisallowUnknownFields()
		err := d.Decode(&words)
		if err == nil {
			_, err = d.Token()
			if errors.Is(err, io.EOF) {
				err = nil
			} else if err == nil {
				err = errors.New("there is more after it")
			}
		}
		if err != nil {
			status := http.StatusBadRequest
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				status = http.StatusRequestEntityTooLarge
			}
			refuse(w, status, "bad-request", "the body cannot be understood: "+err.Error())
			return
		}
		p := who(r)
		said := updater.Saying{Verb: verb, Workloads: words.Workloads, Digest: words.Digest, Word: updater.Word{Who: p.name, Why: words.Why}}
		if p.root {
			said.Who = cmp.Or(words.Who, p.name)
		}
		if words.Until != nil {
			said.Until = *words.Until
		}
		// The server's own limits are for answers that come at once. One that has
		// begun is finished, whether or not somebody still waits for it.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sayLimit + time.Minute))
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), sayLimit)
		defer cancel()
		told, err := s.options.Updater.Say(ctx, said)
		if err != nil {
			s.fail(w, err)
			return
		}
		s.options.Log.Info("a person said", "verb", verb, "who", said.Who, "workloads", strings.Join(words.Workloads, " "))
		answer(w, http.StatusOK, told)
	}
}

// fail answers with an error of updaterd.
func (s *Server) fail(w http.ResponseWriter, err error) {
	status, code := http.StatusInternalServerError, "trouble"
	for _, c := range failures() {
		if errors.Is(err, c.err) {
			status, code = c.status, c.code
			break
		}
	}
	refuse(w, status, code, err.Error())
}

type failure struct {
	err    error
	status int
	code   string
}

func failures() []failure {
	return []failure{
		{updater.ErrUnknownWorkload, http.StatusNotFound, "unknown-workload"},
		{updater.ErrSaying, http.StatusBadRequest, "bad-request"},
		{updater.ErrNot, http.StatusConflict, "not-now"},
	}
}

// beatEvery is how often a silent stream says that it is there.
const beatEvery = 15 * time.Second

// events streams what goes on, as server-sent events.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	c, leave := s.options.Board.listen()
	if c == nil {
		refuse(w, http.StatusServiceUnavailable, "busy", fmt.Sprintf("%d already listen; try again later", mostClients))
		return
	}
	defer leave()
	control := http.NewResponseController(w)
	send := func(messages ...[]byte) bool {
		for _, message := range messages {
			// Longer than any of the server's own limits, and not for ever.
			if err := control.SetWriteDeadline(time.Now().Add(beatEvery)); err != nil {
				return false
			}
			if _, err := w.Write(message); err != nil {
				return false
			}
		}
		return control.Flush() == nil
	}
	w.Header().Set("Content-Type", "text/event-stream")
	if !send([]byte(": events of updaterd\n\n")) {
		return
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		messages := [][]byte{[]byte(": \n\n")}
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
		case <-c.some:
			var ok bool
			if messages, ok = s.options.Board.take(c); !ok {
				return // too slow; whoever it is connects again
			}
		}
		if !send(messages...) {
			return
		}
	}
}

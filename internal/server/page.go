package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

//go:embed page.html page.css page.js
var files embed.FS

// pageRoutes are those for people with a browser. They show what the API shows, and
// every button is one of its words.
func (s *Server) pageRoutes() []route {
	return []route{
		{"GET", "/{$}", s.listPage},
		{"GET", "/workloads/{id...}", s.onePage},
		{"POST", "/do", s.do},
		{"GET", "/login", s.loginPage},
		{"POST", "/login", s.login},
		{"POST", "/logout", s.logout},
		{"GET", "/page.css", file("page.css", "text/css; charset=utf-8")},
		{"GET", "/page.js", file("page.js", "text/javascript; charset=utf-8")},
	}
}

func file(name, kind string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		content, err := files.ReadFile(name)
		if err != nil { // it is embedded
			refuse(w, http.StatusInternalServerError, "trouble", err.Error())
			return
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(content) // whoever asked has gone
	}
}

// isPage reports whether a path is for a browser, and anonymous whether it is for
// one that is not logged in, too.
func isPage(path string) (page, anonymous bool) {
	switch path {
	case "/login", "/page.css", "/page.js":
		return true, true
	}
	return path == "/" || path == "/do" || path == "/logout" || strings.HasPrefix(path, "/workloads/"), false
}

// pagePolicy lets a page load what is ours, and nothing else.
const pagePolicy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// pages are all of page.html. It is embedded, so one that cannot be read is a defect
// that every test of this package finds.
func pages() *template.Template {
	return template.Must(template.New("").Funcs(template.FuncMap{"short": shortDigest}).ParseFS(files, "page.html"))
}

// render writes a page. A template that fails is a defect, and shows none of it.
func (s *Server) render(w http.ResponseWriter, status int, name string, data any) {
	var page bytes.Buffer
	if err := s.pages.ExecuteTemplate(&page, name, data); err != nil {
		s.options.Log.Error("page cannot be made", "page", name, "err", err)
		refuse(w, http.StatusInternalServerError, "trouble", "the page cannot be made")
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "same-origin")
	w.WriteHeader(status)
	_, _ = w.Write(page.Bytes()) // whoever asked has gone
}

// frame is what every page has.
type frame struct {
	Title, Who    string
	Write         bool
	Here          string // this page's address, to come back to
	Problem, Back string
	Said          []string // what became of what was said a moment ago
}

func (s *Server) frame(r *http.Request, title string) frame {
	p := who(r)
	name := ""
	var said []string
	if one, ok := s.sessions.find(r, time.Now()); ok { // who can log out
		name = p.name
		if time.Since(one.at) < saidShows {
			said = one.said
		}
	}
	return frame{Said: said, Title: title + " - updaterd", Who: name, Write: p.write, Here: r.URL.RequestURI()}
}

// pageRow is a workload as a page shows it.
type pageRow struct {
	Workload
	Besides              *updater.Hold // what holds it, where that is not the reason
	Runs, New, NewDigest string
	Tone, When, Age      string
}

func rowFor(w Workload, now time.Time) pageRow {
	r := pageRow{Workload: w, Runs: shortDigest(w.Digest), Age: age(now.Sub(w.At))}
	if c := w.Candidate; c != nil && c.Digest != w.Digest {
		r.New, r.NewDigest = c.Image, shortDigest(c.Digest)
	}
	if h := w.Hold; h != nil && h.Reason != w.Reason {
		r.Besides = h
	}
	if w.Until != nil {
		r.When = moment(*w.Until)
	}
	switch w.Reason {
	case updater.UpToDate:
		r.Tone = "good"
	case updater.Rejected, updater.RolledBack, updater.InvalidSettings, updater.BackendUnavailable, updater.RegistryUnavailable,
		updater.Unauthorized, updater.NotFound, updater.RateLimited, updater.TagListIncomplete, updater.Surroundings:
		r.Tone = "bad"
	default:
		r.Tone = "wait"
	}
	return r
}

func shortDigest(d string) string {
	const kept = len("sha256:") + 12
	return d[:min(len(d), kept)]
}

// age is a time that has passed, in its largest unit.
func age(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
}

// rowsPerPage bounds what a browser has to lay out at once.
const rowsPerPage = 200

func (s *Server) listPage(w http.ResponseWriter, r *http.Request) {
	type reason struct {
		Name  string
		Count int
	}
	q := r.URL.Query()
	data := struct {
		frame
		Status                  Status
		Changes                 []Change
		Query, Reason           string
		Reasons                 []reason
		Rows                    []pageRow
		Found, All, Page, Pages int
		Before, After           string
		Paused                  bool
		Pauses                  []string
		Twice                   bool // some are counted by their reason and their hold
	}{frame: s.frame(r, "Workloads"), Status: s.statusNow(), Changes: s.options.Board.Changes(), Query: q.Get("q"), Reason: q.Get("reason")}
	data.Pauses = data.Status.Pauses()
	data.Paused = len(data.Pauses) > 0
	counts := map[string]int{}
	var found []Workload
	for _, x := range s.options.Board.Workloads() {
		data.All++
		counts[string(x.Reason)]++
		words := []string{x.ID, x.Image, string(x.Reason), x.Detail}
		if h := x.Hold; h != nil {
			words = append(words, string(h.Reason), h.Detail)
			if h.Reason != x.Reason {
				counts[string(h.Reason)]++
				data.Twice = true
			}
		}
		data.Paused = data.Paused || x.For(updater.Paused)
		if (data.Reason == "" || x.For(updater.Reason(data.Reason))) && strings.Contains(strings.ToLower(strings.Join(words, " ")), strings.ToLower(data.Query)) {
			found = append(found, x)
		}
	}
	for name, n := range counts {
		data.Reasons = append(data.Reasons, reason{name, n})
	}
	slices.SortFunc(data.Reasons, func(a, b reason) int { return cmp.Compare(a.Name, b.Name) })
	data.Found = len(found)
	data.Pages = max(1, (len(found)+rowsPerPage-1)/rowsPerPage)
	data.Page, _ = strconv.Atoi(q.Get("page")) // what is no number is the first
	data.Page = min(max(data.Page, 1), data.Pages)
	page := func(n int) string {
		if n < 1 || n > data.Pages {
			return ""
		}
		q.Set("page", strconv.Itoa(n))
		return "/?" + q.Encode()
	}
	data.Before, data.After = page(data.Page-1), page(data.Page+1)
	now := time.Now()
	for _, x := range found[(data.Page-1)*rowsPerPage : min(data.Page*rowsPerPage, len(found))] {
		data.Rows = append(data.Rows, rowFor(x, now))
	}
	s.render(w, http.StatusOK, "list", data)
}

// button is something that a person may say about one workload, asked twice.
type button struct {
	Verb                   updater.Verb
	Label, Confirm, Digest string
}

func buttons(r pageRow) []button {
	var all []button
	if r.New != "" {
		d := r.Candidate.Digest
		all = append(all,
			button{updater.SayApprove, "Approve", "Yes, approve " + r.NewDigest, d},
			button{updater.SayUpdate, "Update now", "Yes, update " + r.ID + " now", ""},
			button{updater.SayReject, "Reject", "Yes, keep " + r.NewDigest + " away", d})
	}
	return append(all,
		button{updater.SayRollback, "Roll back", "Yes, put " + r.ID + " back on the image before", ""},
		button{updater.SayHold, "Hold", "Yes, leave " + r.ID + " as it is", ""},
		button{updater.SayRelease, "Release", "Yes, release " + r.ID, ""},
		button{updater.SayForget, "Forget", "Yes, give what was rejected another chance", ""},
		button{updater.SayCheck, "Check now", "Yes, look at " + r.ID + " now", ""})
}

// timeline bounds what one workload's page shows of its history.
const timeline = 100

func (s *Server) onePage(w http.ResponseWriter, r *http.Request) {
	data := struct {
		frame
		Row     pageRow
		Changes []Change
		Buttons []button
		Entries []Entry
	}{frame: s.frame(r, r.PathValue("id"))}
	for _, x := range s.options.Board.Workloads() {
		if x.ID == r.PathValue("id") {
			data.Row = rowFor(x, time.Now())
		}
	}
	if data.Row.ID == "" {
		data.Problem, data.Back = fmt.Sprintf("No watched workload is called %q.", r.PathValue("id")), "/"
		s.render(w, http.StatusNotFound, "problem", data)
		return
	}
	data.Buttons = buttons(data.Row)
	for _, c := range s.options.Board.Changes() {
		if slices.ContainsFunc(c.Parts, func(p Part) bool { return p.Workload == data.Row.ID }) {
			data.Changes = append(data.Changes, c)
		}
	}
	all, err := s.options.Updater.History(r.Context())
	if err != nil {
		data.Problem, data.Back = err.Error(), "/"
		s.render(w, http.StatusInternalServerError, "problem", data)
		return
	}
	for _, e := range all {
		if e.Workload != data.Row.ID || len(data.Entries) == timeline {
			continue
		}
		if !data.Write {
			e.Logs = ""
		}
		data.Entries = append(data.Entries, EntryOf(e))
	}
	s.render(w, http.StatusOK, "one", data)
}

// mostForm bounds a form.
const mostForm = 16 << 10

// do says what a button says, and goes back to its page.
func (s *Server) do(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, mostForm)
	back := r.PostFormValue("back")
	if u, err := url.Parse(back); err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(u.Path, "/") || strings.HasPrefix(back, "//") || strings.Contains(back, `\`) {
		back = "/"
	}
	said := updater.Saying{
		Verb: updater.Verb(r.PostFormValue("verb")), Digest: r.PostFormValue("digest"),
		Word: updater.Word{Who: who(r).name, Why: r.PostFormValue("why")},
	}
	if id := r.PostFormValue("workload"); id != "" {
		said.Workloads = []string{id}
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(sayLimit + time.Minute))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), sayLimit)
	defer cancel()
	told, err := s.options.Updater.Say(ctx, said)
	if err != nil {
		status := http.StatusInternalServerError
		for _, f := range failures() {
			if errors.Is(err, f.err) {
				status = f.status
			}
		}
		f := s.frame(r, "Not done")
		f.Problem, f.Back = err.Error(), back
		s.render(w, status, "problem", f)
		return
	}
	s.options.Log.Info("a person said", "verb", said.Verb, "who", said.Who, "workloads", strings.Join(said.Workloads, " "))
	s.sessions.tell(r, Answer(said.Verb, told), time.Now())
	http.Redirect(w, r, back, http.StatusSeeOther)
}

// sessions are who is logged in. They end with the process, and after a while.
type sessions struct {
	mu   sync.Mutex
	open map[[sha256.Size]byte]session
}

type session struct {
	person person
	until  time.Time
	said   []string // what became of what was said last
	at     time.Time
}

const (
	// saidShows is how long pages show what was said: over their next renewal or two.
	saidShows     = 30 * time.Second
	sessionCookie = "updaterd"
	sessionLasts  = 12 * time.Hour
	mostSessions  = 1000
)

// begin opens a session and returns what its cookie holds.
func (s *sessions) begin(p person, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[[sha256.Size]byte]session{}
	}
	oldest := [sha256.Size]byte{}
	for key, one := range s.open {
		if !now.Before(one.until) {
			delete(s.open, key)
		} else if o, ok := s.open[oldest]; !ok || one.until.Before(o.until) {
			oldest = key
		}
	}
	if len(s.open) >= mostSessions {
		delete(s.open, oldest)
	}
	secret := rand.Text()
	s.open[sha256.Sum256([]byte(secret))] = session{person: p, until: now.Add(sessionLasts)}
	return secret
}

func (s *sessions) find(r *http.Request, now time.Time) (session, bool) {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return session{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.open[sha256.Sum256([]byte(c.Value))]
	return one, ok && now.Before(one.until)
}

// tell keeps what became of what was said, for the next page of the same session.
func (s *sessions) tell(r *http.Request, said []string, now time.Time) {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sha256.Sum256([]byte(c.Value))
	if one, ok := s.open[key]; ok {
		one.said, one.at = said, now
		s.open[key] = one
	}
}

func (s *sessions) end(r *http.Request) {
	if c, err := r.Cookie(sessionCookie); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, sha256.Sum256([]byte(c.Value)))
	}
}

func (s *Server) loginPage(w http.ResponseWriter, _ *http.Request) {
	s.render(w, http.StatusOK, "login", frame{Title: "Log in - updaterd"})
}

// login exchanges a token for a cookie that scripts cannot read and other sites
// cannot send.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, mostForm)
	p, ok := s.holder(r.PostFormValue("token"))
	if !ok {
		s.render(w, http.StatusUnauthorized, "login", frame{Title: "Log in - updaterd", Problem: "No such token."})
		return
	}
	http.SetCookie(w, s.cookie(r, s.sessions.begin(p, time.Now()), int(sessionLasts.Seconds())))
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	s.sessions.end(r)
	http.SetCookie(w, s.cookie(r, "", -1))
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

func (s *Server) cookie(r *http.Request, value string, lasts int) *http.Cookie {
	return &http.Cookie{Name: sessionCookie, Value: value, Path: "/", MaxAge: lasts, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode}
}

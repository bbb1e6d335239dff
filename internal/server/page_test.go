package server

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// form sends a form as a browser does.
func form(s *Server, path string, values url.Values, edits ...func(*http.Request)) (code int, body string, h http.Header) {
	edits = append([]func(*http.Request){
		header("Content-Type", "application/x-www-form-urlencoded"), header("Origin", "http://localhost:9714"), header("Sec-Fetch-Site", "same-origin"),
		func(r *http.Request) {
			r.Body = http.NoBody
			r.PostForm, r.Form = values, values
		},
	}, edits...)
	w := ask(s, "POST", path, edits...)
	return w.Code, w.Body.String(), w.Header()
}

// logIn returns what sends the cookie that a token was exchanged for.
func logIn(t *testing.T, s *Server, token string) func(*http.Request) {
	t.Helper()
	code, _, h := form(s, "/login", url.Values{"token": {token}})
	require.Equal(t, 303, code)
	set := h.Get("Set-Cookie")
	require.Contains(t, set, "; HttpOnly; SameSite=Strict")
	require.NotContains(t, set, token)
	value, _, _ := strings.Cut(set, ";")
	return header("Cookie", value)
}

func TestLoggingIn(t *testing.T) {
	k := &keeper{}
	s, b := newServer(k, tokens()...)
	b.Decided(updater.Workload{ID: "local/web", Backend: "local", Image: "web:1"}, updater.Decision{Reason: updater.UpToDate})
	code, body, h := form(s, "/login", url.Values{"token": {writeToken + "x"}})
	require.Equal(t, 401, code)
	require.Contains(t, body, "No such token.")
	require.Empty(t, h.Get("Set-Cookie"))

	reader, writer := logIn(t, s, readToken), logIn(t, s, writeToken)
	hold := url.Values{"verb": {"hold"}, "workload": {"local/web"}, "back": {"/workloads/local/web"}}
	for _, path := range []string{"/", "/workloads/local/web", "/v1/workloads"} {
		require.Equal(t, 200, ask(s, "GET", path, reader).Code, path)
	}
	require.NotContains(t, ask(s, "GET", "/workloads/local/web", reader).Body.String(), `action="/do"`, "no buttons for who may not")
	code, _, _ = form(s, "/do", hold, reader)
	require.Equal(t, 403, code)

	code, _, h = form(s, "/do", hold, writer)
	require.Equal(t, 303, code)
	require.Equal(t, "/workloads/local/web", h.Get("Location"))
	require.Len(t, k.said, 1)
	require.Equal(t, "bob", k.said[0].Who)

	for name, edit := range map[string]func(*http.Request){
		"another site":         header("Origin", "http://evil.example.com"),
		"another site, called": header("Sec-Fetch-Site", "cross-site"),
		"nowhere":              func(r *http.Request) { r.Header.Del("Origin"); r.Header.Del("Sec-Fetch-Site") },
	} {
		code, _, _ = form(s, "/do", hold, writer, edit)
		require.Equal(t, 403, code, name)
	}
	require.Len(t, k.said, 1)

	code, _, h = form(s, "/logout", nil, writer)
	require.Equal(t, 303, code)
	require.Contains(t, h.Get("Set-Cookie"), "Max-Age=0")
	require.Equal(t, 303, ask(s, "GET", "/", writer).Code, "a cookie that was kept is worth nothing")
	require.Equal(t, 200, ask(s, "GET", "/", reader).Code)
	code, _, _ = form(s, "/logout", nil, reader)
	require.Equal(t, 303, code, "who may read may leave")
}

func TestSessionsEnd(t *testing.T) {
	var s sessions
	now := time.Now()
	find := func(value string, at time.Time) bool {
		r, err := http.NewRequest("GET", "/", nil)
		require.NoError(t, err)
		r.AddCookie(&http.Cookie{Name: sessionCookie, Value: value})
		_, ok := s.find(r, at)
		return ok
	}
	first := s.begin(person{name: "ann"}, now)
	require.True(t, find(first, now.Add(sessionLasts-1)))
	require.False(t, find(first, now.Add(sessionLasts)))
	require.False(t, find(first+"x", now))
	for i := range mostSessions {
		s.begin(person{}, now.Add(time.Duration(i+1)))
	}
	require.Len(t, s.open, mostSessions)
	require.False(t, find(first, now), "the oldest goes first")
}

// TestAHoldIsSeenWhateverTheReason: in both pages, in the filter, and in the API.
func TestAHoldIsSeenWhateverTheReason(t *testing.T) {
	s, b := newServer(&keeper{})
	decide := func(name string, reason updater.Reason, h *updater.Hold) {
		b.Decided(updater.Workload{ID: "local/" + name, Backend: "local"}, updater.Decision{Reason: reason, Hold: h})
	}
	hold := &updater.Hold{Reason: updater.Held, Detail: "held since noon by ann"}
	decide("free", updater.UpToDate, nil)
	decide("kept", updater.UpToDate, hold)
	decide("waits", updater.Held, hold)
	for _, path := range []string{"/?q=kept", "/workloads/local/kept"} {
		page := ask(s, "GET", path).Body.String()
		require.Contains(t, page, `<span class="state good">up-to-date</span> <span class="state wait">held</span>`, path)
		require.Contains(t, page, "; held since noon by ann", path)
	}
	page := ask(s, "GET", "/?reason=held").Body.String()
	require.Contains(t, page, "<p>2 of 3</p>")
	require.Contains(t, page, `<option value="held" selected>held (2)</option>`)
	require.Contains(t, page, `<option value="up-to-date">up-to-date (2)</option>`)
	require.Contains(t, page, "it is shown for both", "why the numbers are more than there are workloads")
	require.Equal(t, 1, strings.Count(ask(s, "GET", "/?q=waits").Body.String(), `<span class="state wait">held</span>`), "once is enough")
	require.Contains(t, ask(s, "GET", "/?q=by+ann").Body.String(), "<p>2 of 3</p>")

	var held []Workload
	require.NoError(t, json.Unmarshal(ask(s, "GET", "/v1/workloads?reason=held").Body.Bytes(), &held))
	require.Len(t, held, 2)
	require.Equal(t, updater.UpToDate, held[0].Reason)
	require.Equal(t, hold, held[0].Hold)

	writer, w := newServer(&keeper{}, tokens()...)
	w.Decided(updater.Workload{ID: "local/kept", Backend: "local"}, updater.Decision{Reason: updater.UpToDate, Hold: &updater.Hold{Reason: updater.Paused}})
	require.Contains(t, ask(writer, "GET", "/", logIn(t, writer, writeToken)).Body.String(), "Resume everything", "also where nothing waits")
}

// TestAPauseOfEverythingIsOnThePage, also where nothing is watched.
func TestAPauseOfEverythingIsOnThePage(t *testing.T) {
	k := &keeper{paused: &updater.Word{Who: "ann", Why: "<forgot me>", At: time.Now()}}
	s, _ := newServer(k, tokens()...)
	page := ask(s, "GET", "/", logIn(t, s, writeToken)).Body.String()
	require.Contains(t, page, "No change begins: paused since")
	require.Contains(t, page, "by ann until updaterd resume: &lt;forgot me&gt;")
	require.Contains(t, page, "Resume everything")
	require.NotContains(t, page, "Pause everything")
	var status Status
	require.NoError(t, json.Unmarshal(ask(s, "GET", "/v1/status", bearer(readToken)).Body.Bytes(), &status))
	require.Equal(t, "ann", status.Backends[0].Paused.Who)

	k.paused = nil
	page = ask(s, "GET", "/", logIn(t, s, writeToken)).Body.String()
	require.NotContains(t, page, "No change begins")
	require.Contains(t, page, "Pause everything")
}

// TestAButtonSaysWhatItDid, to who pressed it and for a while.
func TestAButtonSaysWhatItDid(t *testing.T) {
	k := &keeper{note: "it is still <rejected>"}
	s, b := newServer(k, tokens()...)
	b.Decided(updater.Workload{ID: "local/web", Backend: "local"}, updater.Decision{Reason: updater.Rejected})
	writer, other := logIn(t, s, writeToken), logIn(t, s, readToken)
	const path = "/workloads/local/web"
	require.NotContains(t, ask(s, "GET", path, writer).Body.String(), `class="said"`)
	code, _, _ := form(s, "/do", url.Values{"verb": {"approve"}, "workload": {"local/web"}, "back": {path}}, writer)
	require.Equal(t, 303, code)
	for _, page := range []string{path, "/"} {
		require.Contains(t, ask(s, "GET", page, writer).Body.String(), `<p class="said" role="status">Approved: local/web, until it is in place<br>But it is still &lt;rejected&gt;.</p>`)
		require.NotContains(t, ask(s, "GET", page, other).Body.String(), `class="said"`, "another person's page")
	}
	form(s, "/do", url.Values{"verb": {"check"}, "back": {"/"}}, writer)
	require.Contains(t, ask(s, "GET", "/", writer).Body.String(), ">Looked at now.</p>", "the last one")
	for key, one := range s.sessions.open { // a while later
		one.at = one.at.Add(-saidShows)
		s.sessions.open[key] = one
	}
	require.NotContains(t, ask(s, "GET", path, writer).Body.String(), `class="said"`)
}

// TestPagesShowWhatTheyAreGiven, and nothing of it becomes markup.
func TestPagesShowWhatTheyAreGiven(t *testing.T) {
	const evil = `<script>alert(1)</script>"'>`
	k := &keeper{entries: []updater.Entry{{At: time.Now(), Backend: "local", Workload: "local/web", Event: updater.EventRestored, Why: evil, Logs: evil, Who: evil}}}
	s, b := newServer(k, tokens()...)
	to := updater.Image{Ref: "web:2" + evil, Digest: "sha256:0123456789abcdef"}
	until := time.Now().Add(time.Hour)
	b.Decided(updater.Workload{ID: "local/web", Backend: "local", Image: evil}, updater.Decision{Reason: updater.OutsideWindow, Detail: evil, Candidate: &to, Until: until})
	writer := logIn(t, s, writeToken)
	for _, path := range []string{"/", "/?q=" + url.QueryEscape(evil), "/workloads/local/web", "/workloads/" + url.PathEscape(evil)} {
		w := ask(s, "GET", path, writer)
		require.NotContains(t, w.Body.String(), "<script>", path)
		require.Contains(t, w.Header().Get("Content-Security-Policy"), "default-src 'none'")
	}
	one := ask(s, "GET", "/workloads/local/web", writer).Body.String()
	for _, want := range []string{"outside-window", "passes at " + until.Local().Format("2006-01-02 15:04:05"), "sha256:0123456789ab", "Yes, approve", "Yes, put local/web back", "The last lines that it wrote"} {
		require.Contains(t, one, want)
	}
	require.NotContains(t, ask(s, "GET", "/workloads/local/web", logIn(t, s, readToken)).Body.String(), "The last lines that it wrote")
	for _, path := range []string{"/page.css", "/page.js", "/login"} {
		require.Equal(t, 200, ask(s, "GET", path).Code)
	}
}

func TestListFindsAndPages(t *testing.T) {
	s, b := newServer(&keeper{})
	for i := range 2000 {
		reason := updater.UpToDate
		if i%100 == 0 {
			reason = updater.Held
		}
		b.Decided(updater.Workload{ID: fmt.Sprintf("local/w%04d", i), Backend: "local", Image: "web:1"}, updater.Decision{Reason: reason})
	}
	page := ask(s, "GET", "/").Body.String()
	require.Less(t, len(page), 150_000)
	require.Contains(t, page, "2000 of 2000, page 1 of 10")
	require.Equal(t, rowsPerPage, strings.Count(page, `scope="row"`))
	require.Contains(t, page, `rel="next"`)
	page = ask(s, "GET", "/?reason=held").Body.String()
	require.Contains(t, page, "20 of 2000")
	page = ask(s, "GET", "/?q=W0777&page=9").Body.String()
	require.Contains(t, page, "1 of 2000")
	require.Contains(t, page, "local/w0777")
	require.Contains(t, ask(s, "GET", "/?q=nothing").Body.String(), "Nothing fits")
}

// TestButtonsLeadBackToOurPages only.
func TestButtonsLeadBackToOurPages(t *testing.T) {
	for _, back := range []string{"https://evil.example.com/", "//evil.example.com", `/\evil.example.com`, "", "javascript:alert(1)"} {
		s, _ := newServer(&keeper{}, tokens()...)
		_, _, h := form(s, "/do", url.Values{"verb": {"check"}, "back": {back}}, logIn(t, s, writeToken))
		require.Equal(t, "/", h.Get("Location"), back)
	}
	s, _ := newServer(&keeper{err: fmt.Errorf("%w: no earlier image", updater.ErrNot)}, tokens()...)
	code, body, _ := form(s, "/do", url.Values{"verb": {"rollback"}, "workload": {"web"}, "back": {"/workloads/local/web"}}, logIn(t, s, writeToken))
	require.Equal(t, 409, code)
	require.Contains(t, body, "no earlier image")
	require.Contains(t, body, `href="/workloads/local/web"`)
}

// TestColoursCanBeRead in light and in dark, by the contrast that WCAG asks for:
// 4.5 for text, 3 for the edge of a field.
func TestColoursCanBeRead(t *testing.T) {
	css, err := os.ReadFile("page.css")
	require.NoError(t, err)
	luminance := func(hex string) float64 {
		if len(hex) == 4 {
			hex = string([]byte{'#', hex[1], hex[1], hex[2], hex[2], hex[3], hex[3]})
		}
		sum := 0.0
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			n, err := strconv.ParseUint(hex[1+2*i:3+2*i], 16, 8)
			require.NoError(t, err, hex)
			v := float64(n) / 255
			if v <= 0.03928 {
				v /= 12.92
			} else {
				v = math.Pow((v+0.055)/1.055, 2.4)
			}
			sum += weight * v
		}
		return sum
	}
	contrast := func(a, b string) float64 {
		x, y := luminance(a), luminance(b)
		return (max(x, y) + 0.05) / (min(x, y) + 0.05)
	}
	colours := func(of string) (light, dark string) {
		m := regexp.MustCompile(of + ` light-dark\((#[0-9a-f]+), (#[0-9a-f]+)\)`).FindSubmatch(css)
		require.NotNil(t, m, of)
		return string(m[1]), string(m[2])
	}
	light, dark := colours("background:")
	for of, least := range map[string]float64{"; color:": 4.5, "--good:": 4.5, "--wait:": 4.5, "--bad:": 4.5, "--link:": 4.5, "border: 1px solid": 3} {
		l, d := colours(of)
		require.GreaterOrEqual(t, contrast(l, light), least, "%s in light", of)
		require.GreaterOrEqual(t, contrast(d, dark), least, "%s in dark", of)
	}
}

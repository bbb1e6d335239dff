package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	readToken  = "read-0123456789abcdef"
	writeToken = "write-0123456789abcdef"
)

// keeper is an updaterd that remembers what it was told.
type keeper struct {
	said    []updater.Saying
	err     error
	entries []updater.Entry
	paused  *updater.Word
	note    string
}

func (k *keeper) Say(_ context.Context, s updater.Saying) ([]updater.Told, error) {
	if k.err != nil {
		return nil, k.err
	}
	k.said = append(k.said, s)
	return []updater.Told{{Backend: "local", Workload: "local/web", Changed: true, Note: k.note}}, nil
}

func (k *keeper) Glance() updater.Glance {
	return updater.Glance{Ready: true, Places: []updater.Sight{{Backend: "local", Looked: true, Watched: 1, Paused: k.paused}}}
}

func (k *keeper) History(context.Context) ([]updater.Entry, error) { return k.entries, k.err }

func tokens() []Token {
	return []Token{{"ann", sha256.Sum256([]byte(readToken)), false}, {"bob", sha256.Sum256([]byte(writeToken)), true}}
}

func newServer(k *keeper, tokens ...Token) (*Server, *Board) {
	b := NewBoard()
	return New(Options{Version: "v1", Updater: k, Board: b, Tokens: tokens, Hosts: []string{"updaterd.example.com"}, Log: slog.New(slog.DiscardHandler)}), b
}

// ask makes a request over TCP, from loopback.
func ask(s *Server, method, target string, edits ...func(*http.Request)) *httptest.ResponseRecorder {
	body := io.Reader(nil)
	if method == "POST" {
		body = strings.NewReader(`{"workloads":["web"]}`)
	}
	r := httptest.NewRequest(method, target, body)
	r.Host, r.RemoteAddr = "localhost:9714", "127.0.0.1:1234"
	if method == "POST" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, edit := range edits {
		edit(r)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func host(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }

func from(address string) func(*http.Request) {
	return func(r *http.Request) { r.RemoteAddr = address }
}

func bearer(token string) func(*http.Request) { return header("Authorization", "Bearer "+token) }

// TestWhoMayDoWhat over TCP.
func TestWhoMayDoWhat(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tokens []Token
		method string
		target string
		edits  []func(*http.Request)
		want   int
	}{
		{"without tokens anybody here reads", nil, "GET", "/v1/workloads", nil, 200},
		{"without tokens nobody says anything", nil, "POST", "/v1/hold", nil, 403},
		{"without tokens nobody reads from elsewhere", nil, "GET", "/v1/workloads", []func(*http.Request){from("192.0.2.1:80")}, 401},
		{"without tokens a token is none", nil, "GET", "/v1/workloads", []func(*http.Request){bearer(writeToken)}, 401},
		{"with tokens one is needed to read", tokens(), "GET", "/v1/workloads", nil, 401},
		{"with tokens one is needed to write", tokens(), "POST", "/v1/hold", nil, 401},
		{"one that may read reads", tokens(), "GET", "/v1/workloads", []func(*http.Request){bearer(readToken), from("192.0.2.1:80")}, 200},
		{"one that may read does not write", tokens(), "POST", "/v1/hold", []func(*http.Request){bearer(readToken)}, 403},
		{"one that may write writes", tokens(), "POST", "/v1/hold", []func(*http.Request){bearer(writeToken)}, 200},
		{"one that may write reads", tokens(), "GET", "/v1/history", []func(*http.Request){bearer(writeToken)}, 200},
		{"a wrong one does nothing", tokens(), "GET", "/v1/workloads", []func(*http.Request){bearer(readToken + "x")}, 401},
		{"half a one does nothing", tokens(), "GET", "/v1/workloads", []func(*http.Request){bearer(readToken[:10])}, 401},
		{"an empty one does nothing", tokens(), "GET", "/v1/workloads", []func(*http.Request){bearer("")}, 401},
		{"another scheme does nothing", tokens(), "GET", "/v1/workloads", []func(*http.Request){header("Authorization", "Basic "+readToken)}, 401},
		{"the scheme may be written in any way", tokens(), "GET", "/v1/workloads", []func(*http.Request){header("Authorization", "bearer "+readToken)}, 200},
		{"a token in the address is none", tokens(), "GET", "/v1/workloads?token=" + readToken, nil, 401},

		{"a name of ours is ours", nil, "GET", "/v1/status", []func(*http.Request){host("updaterd.example.com")}, 200},
		{"however it is written", nil, "GET", "/v1/status", []func(*http.Request){host("Updaterd.Example.COM:443")}, 200},
		{"an address of loopback is ours", nil, "GET", "/v1/status", []func(*http.Request){host("[::1]:9714")}, 200},
		{"a name of another that leads here is not", nil, "GET", "/v1/status", []func(*http.Request){host("evil.example.com:9714")}, 421},
		{"nor with a token", tokens(), "GET", "/v1/status", []func(*http.Request){host("evil.example.com"), bearer(writeToken)}, 421},
		{"nor one that begins like ours", nil, "GET", "/v1/status", []func(*http.Request){host("localhost.example.com")}, 421},
		{"no name is none of ours", nil, "GET", "/v1/status", []func(*http.Request){host("")}, 421},

		{"our own page may ask", tokens(), "POST", "/v1/hold", []func(*http.Request){bearer(writeToken), header("Origin", "http://localhost:9714"), header("Sec-Fetch-Site", "same-origin")}, 200},
		{"a page of another origin may not write", tokens(), "POST", "/v1/hold", []func(*http.Request){bearer(writeToken), header("Origin", "http://evil.example.com")}, 403},
		{"nor one of another port", tokens(), "POST", "/v1/hold", []func(*http.Request){bearer(writeToken), header("Origin", "http://localhost:1")}, 403},
		{"nor read", nil, "GET", "/v1/workloads", []func(*http.Request){header("Origin", "null")}, 403},
		{"nor one that the browser calls so", nil, "GET", "/v1/workloads", []func(*http.Request){header("Sec-Fetch-Site", "cross-site")}, 403},
		{"a form of a page is no JSON", tokens(), "POST", "/v1/hold", []func(*http.Request){bearer(writeToken), header("Content-Type", "text/plain")}, 415},

		{"two slashes lead around nothing", tokens(), "POST", "//v1/hold", nil, 401},
		{"nor do dots", tokens(), "POST", "/v1/x/../hold", nil, 401},
		{"nor what is written in percent", tokens(), "POST", "/v1/%68old", nil, 401},
		{"nor another method", tokens(), "PUT", "/v1/hold", nil, 401},
		{"nor one that may only read", tokens(), "BREW", "/v1/workloads", []func(*http.Request){bearer(readToken)}, 403},
		{"what is nowhere needs a token too", tokens(), "GET", "/x", nil, 401},
		{"a page leads to where one logs in", tokens(), "GET", "/", nil, 303},
		{"and so does that of a workload", tokens(), "GET", "/workloads/local/web", nil, 303},
		{"a button needs more", tokens(), "POST", "/do", nil, 401},
		{"logging in needs a name of ours", tokens(), "GET", "/login", []func(*http.Request){host("evil.example.com")}, 421},
		{"and an origin of ours", tokens(), "POST", "/login", []func(*http.Request){header("Origin", "http://evil.example.com")}, 403},
		{"what is nowhere is nowhere", nil, "GET", "/v1/../etc/passwd", nil, 307},
		{"and says so", nil, "GET", "/etc/passwd", nil, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &keeper{}
			s, _ := newServer(k, tt.tokens...)
			w := ask(s, tt.method, tt.target, tt.edits...)
			require.Equal(t, tt.want, w.Code, w.Body.String())
			require.Equal(t, w.Code == 200 && tt.method == "POST", len(k.said) == 1, "only then was something said")
			if w.Code == 200 && tt.method == "POST" {
				require.Equal(t, "bob", k.said[0].Who)
			}
			require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
			require.Empty(t, w.Header().Get("Access-Control-Allow-Origin"))
		})
	}
}

func TestManyWrongTokens(t *testing.T) {
	k := &keeper{}
	s, _ := newServer(k, tokens()...)
	for i := range 1000 {
		require.Equal(t, 401, ask(s, "POST", "/v1/hold", bearer(fmt.Sprintf("%s%d", writeToken, i))).Code)
	}
	require.Empty(t, k.said)
	require.Equal(t, 200, ask(s, "POST", "/v1/hold", bearer(writeToken)).Code, "the right one is let in all the same")
}

func TestBodies(t *testing.T) {
	for body, want := range map[string]int{
		`{"workloads":["web"]}`:            200,
		`{}`:                               200,
		`{"until":"2026-03-01T12:00:00Z"}`: 200,
		``:                                 400,
		`{"workload":["web"]}`:             400,
		`{"workloads":"web"}`:              400,
		`{} {}`:                            400,
		`{"why":"` + strings.Repeat("x", mostWords) + `"}`: 413,
	} {
		k := &keeper{}
		s, _ := newServer(k, tokens()...)
		w := ask(s, "POST", "/v1/hold", bearer(writeToken), func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(body)) })
		require.Equal(t, want, w.Code, "%.40s: %s", body, w.Body)
		require.Equal(t, want == 200, len(k.said) == 1)
	}
}

// TestErrorsKeepTheirMeaning, for programs and for the client.
func TestErrorsKeepTheirMeaning(t *testing.T) {
	for err, code := range map[error]int{
		updater.ErrUnknownWorkload: 404, updater.ErrSaying: 400, updater.ErrNot: 409, errors.New("disk full"): 500,
	} {
		k := &keeper{err: fmt.Errorf("%w: because", err)}
		s, _ := newServer(k)
		c := dial(t, s)
		_, got := c.Say(t.Context(), updater.Saying{Verb: updater.SayHold, Workloads: []string{"web"}})
		require.EqualError(t, got, k.err.Error())
		if code != 500 {
			require.ErrorIs(t, got, err)
		}
	}
}

// dial serves s on a unix socket.
func dial(t *testing.T, s *Server) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	h := &http.Server{Handler: s, ConnContext: ConnContext, WriteTimeout: time.Second}
	go func() { _ = h.Serve(l) }()
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return NewClient(socket)
}

func TestSocketSaysWhoItIs(t *testing.T) {
	k := &keeper{}
	s, _ := newServer(k)
	c := dial(t, s)
	until := time.Now().Add(time.Hour).UTC()
	_, err := c.Say(t.Context(), updater.Saying{Verb: updater.SayHold, Workloads: []string{"web"}, Word: updater.Word{Why: "so", Until: until}})
	require.NoError(t, err)
	require.Len(t, k.said, 1)
	require.NotEmpty(t, k.said[0].Who)
	require.Equal(t, []string{"web"}, k.said[0].Workloads)
	require.True(t, until.Equal(k.said[0].Until))

	status, err := c.Status(t.Context())
	require.NoError(t, err)
	require.True(t, status.Healthy())

	_, err = NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	require.ErrorIs(t, err, ErrNobody)
}

// TestDaemonThatEndsWhileItIsAsked is none that listens: the journal tells as well,
// and hears as well, also what was heard before.
func TestDaemonThatEndsWhileItIsAsked(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	_, err = NewClient(socket).History(t.Context(), nil)
	require.ErrorIs(t, err, ErrNobody)
	_, err = NewClient(socket).Say(t.Context(), updater.Saying{Verb: updater.SayPause})
	require.ErrorIs(t, err, ErrNobody)
}

func TestLogLinesAreForWhoMayWrite(t *testing.T) {
	k := &keeper{entries: []updater.Entry{{Workload: "local/web", Backend: "local", Event: updater.EventRestored, Logs: "password: x"}}}
	s, b := newServer(k, tokens()...)
	require.NotContains(t, ask(s, "GET", "/v1/history", bearer(readToken)).Body.String(), "password")
	require.Contains(t, ask(s, "GET", "/v1/history", bearer(writeToken)).Body.String(), "password")
	c, leave := b.listen()
	defer leave()
	b.Notify(t.Context(), k.entries[0])
	told, ok := b.take(c)
	require.True(t, ok)
	require.Len(t, told, 1)
	require.NotContains(t, string(told[0]), "password")
}

func TestHistoryFilters(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	k := &keeper{}
	for i := range 60 {
		e := updater.Entry{At: at.Add(-time.Duration(i) * time.Minute), Backend: "local", Workload: "local/web", Event: updater.EventUpdated, Change: fmt.Sprint(i)}
		if i%2 == 1 {
			e.Workload, e.Event = "local/db", updater.EventHeld
		}
		k.entries = append(k.entries, e)
	}
	s, _ := newServer(k)
	for query, want := range map[string]int{
		"": 50, "?limit=3": 3, "?limit=1000": 60, "?offset=55": 5, "?workload=web": 30, "?workload=local/db&limit=5": 5,
		"?workload=web&workload=db&limit=60": 60, "?event=held": 30, "?change=7": 1, "?since=2026-03-01T11:57:00Z": 3, "?workload=nobody": 0,
	} {
		var got []Entry
		w := ask(s, "GET", "/v1/history"+query)
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got), query)
		require.Len(t, got, want, query)
	}
	for _, query := range []string{"limit=0", "limit=x", "limit=1001", "offset=-1", "since=yesterday"} {
		require.Equal(t, 400, ask(s, "GET", "/v1/history?"+query).Code, query)
	}
}

// TestBoard follows a workload through an update.
func TestBoard(t *testing.T) {
	s, b := newServer(&keeper{})
	w := updater.Workload{ID: "local/web", Backend: "local", Image: "web:1", Runs: updater.Running{Digests: []string{"sha256:1"}}}
	to := updater.Image{Ref: "web:1", Digest: "sha256:2"}
	get := func(path string, v any) {
		t.Helper()
		require.NoError(t, json.Unmarshal(ask(s, "GET", path).Body.Bytes(), v))
	}
	began := time.Now()
	b.Decided(w, updater.Decision{Update: true, Reason: updater.Update, Candidate: &to})
	c := updater.Change{ID: "c1", Backend: "local", Unit: w.ID, Phase: updater.Preparing,
		Parts: []updater.Part{{Workload: w.ID, From: updater.Image{Ref: "web:1", Digest: "sha256:1"}, To: to, Replace: true}}}
	b.Moved(c)
	b.Progressed(c, updater.Progress{Step: "pulling", Done: 1, Total: 2})
	b.Passed(updater.Passed{Backend: "local", Began: began})

	var one Workload
	get("/v1/workloads/local/web", &one)
	require.Equal(t, "update", one.Decision)
	require.Equal(t, "c1", one.Change)
	var change Change
	get("/v1/changes/c1", &change)
	require.Equal(t, &updater.Progress{Step: "pulling", Done: 1, Total: 2}, change.Progress)
	require.Equal(t, "sha256:2", change.Parts[0].To.Digest)
	var none []Workload
	get("/v1/workloads?reason=held", &none)
	require.Empty(t, none)

	c.Phase, c.Verdict, c.Ended = updater.Committed, updater.Good, time.Now()
	b.Moved(c)
	one = Workload{} // what is left out is empty
	get("/v1/workloads/web", &one)
	require.Equal(t, updater.UpToDate, one.Reason)
	require.Equal(t, "sha256:2", one.Digest)
	require.Empty(t, one.Change)
	require.Equal(t, 404, ask(s, "GET", "/v1/changes/c1").Code)
	require.Equal(t, "[]\n", ask(s, "GET", "/v1/changes").Body.String())

	// What a whole pass did not see has gone; one in part says nothing.
	later := time.Now().Add(time.Second)
	b.Passed(updater.Passed{Backend: "local", Began: later, Part: true})
	b.Passed(updater.Passed{Backend: "local", Began: later, Err: errors.New("down")})
	b.Passed(updater.Passed{Backend: "other", Began: later})
	require.Len(t, b.Workloads(), 1)
	b.Passed(updater.Passed{Backend: "local", Began: later})
	require.Empty(t, b.Workloads())
	require.Equal(t, 404, ask(s, "GET", "/v1/workloads/web").Code)
}

func TestEvents(t *testing.T) {
	s, b := newServer(&keeper{})
	c := dial(t, s)
	var got []string
	err := c.Events(t.Context(), func() {
		go b.Passed(updater.Passed{Backend: "local"})
	}, func(e Event) bool {
		got = append(got, e.Type+string(e.Data))
		return false
	})
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.True(t, strings.HasPrefix(got[0], `pass{"backend":"local"`), got[0])
}

// TestAPassOverThousandsIsHeard by who listens, whole.
func TestAPassOverThousandsIsHeard(t *testing.T) {
	s, b := newServer(&keeper{})
	heard := 0
	require.NoError(t, dial(t, s).Events(t.Context(), func() {
		go func() {
			for i := range 4000 {
				b.Decided(updater.Workload{ID: fmt.Sprintf("local/web-%d", i), Backend: "local"}, updater.Decision{Reason: updater.UpToDate})
			}
		}()
	}, func(Event) bool {
		heard++
		return heard < 4000
	}))
}

// TestSlowListenersAreLetGo, and hold up nobody.
func TestSlowListenersAreLetGo(t *testing.T) {
	_, b := newServer(&keeper{})
	slow, _ := b.listen()
	for range mostWaiting + 10 {
		b.Passed(updater.Passed{Backend: "local"})
	}
	waiting, ok := b.take(slow)
	require.False(t, ok)
	require.Empty(t, waiting, "nor the memory")
	require.Empty(t, b.clients)
}

func TestListenersAreBounded(t *testing.T) {
	s, b := newServer(&keeper{})
	var all []func()
	for range mostClients {
		_, leave := b.listen()
		all = append(all, leave)
	}
	require.Equal(t, 503, ask(s, "GET", "/v1/events").Code)
	all[0]()
	c, leave := b.listen()
	require.NotNil(t, c)
	leave()
}

// TestStreamsEndWithTheirClients, and leave nothing behind.
func TestStreamsEndWithTheirClients(t *testing.T) {
	s, b := newServer(&keeper{})
	web := httptest.NewServer(s)
	defer web.Close()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "GET", web.URL+"/v1/events", nil)
		require.NoError(t, err)
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		_, err = bufio.NewReader(answer.Body).ReadString('\n')
		require.NoError(t, err)
		cancel()
		require.NoError(t, answer.Body.Close())
	}
	web.Close() // waits for those that are served
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.clients)
}

// TestDescriptionFitsTheRoutes holds openapi.yaml against what there is.
func TestDescriptionFitsTheRoutes(t *testing.T) {
	var doc struct {
		Paths      map[string]map[string]any `yaml:"paths"`
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `yaml:"properties"`
			} `yaml:"schemas"`
			RequestBodies map[string]struct {
				Content map[string]struct {
					Schema struct {
						Properties map[string]any `yaml:"properties"`
					} `yaml:"schema"`
				} `yaml:"content"`
			} `yaml:"requestBodies"`
		} `yaml:"components"`
	}
	require.NoError(t, yaml.Unmarshal(description, &doc))
	var described, routed []string
	for path, methods := range doc.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	s, _ := newServer(&keeper{})
	for _, r := range s.routes() {
		routed = append(routed, r.method+" "+strings.ReplaceAll(r.path, "...}", "}"))
	}
	require.ElementsMatch(t, routed, described)

	keys := func(v any) (all []string) {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			all = append(all, name)
		}
		slices.Sort(all)
		return all
	}
	named := func(m map[string]any) (all []string) {
		for k := range m {
			all = append(all, k)
		}
		slices.Sort(all)
		return all
	}
	for name, v := range map[string]any{
		"Problem": Problem{}, "Status": Status{}, "Backend": Backend{}, "Workload": Workload{}, "Change": Change{}, "Part": Part{},
		"Image": Image{}, "Entry": Entry{}, "Pass": Pass{}, "Progress": updater.Progress{}, "Told": updater.Told{}, "Hold": updater.Hold{},
	} {
		require.Equal(t, keys(v), named(doc.Components.Schemas[name].Properties), name)
	}
	require.Equal(t, keys(Words{}), named(doc.Components.RequestBodies["Words"].Content["application/json"].Schema.Properties))
	require.Equal(t, string(description), ask(s, "GET", "/v1/openapi.yaml").Body.String())
}

// pipes is a listener whose connections are pipes, so that a minute on them passes
// in no time.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9714} }

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	p <- addressed{there}
	return here, nil
}

// addressed is a pipe from loopback.
type addressed struct{ net.Conn }

func (addressed) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// TestAMinuteOfTwoHundredListeners is over without a trace: no goroutine, as the
// bubble tells, no place on the board, and no memory.
func TestAMinuteOfTwoHundredListeners(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var began, ended uint64
	synctest.Test(t, func(t *testing.T) {
		s, b := newServer(&keeper{})
		l := make(pipes)
		web := &http.Server{Handler: s, WriteTimeout: 30 * time.Second, ReadTimeout: 15 * time.Second}
		go func() { _ = web.Serve(l) }()
		client := &http.Client{Transport: &http.Transport{DialContext: l.dial, DisableKeepAlives: true}}
		began = heap()
		ctx, cancel := context.WithCancel(t.Context())
		var heard atomic.Int64
		for range 200 {
			r, err := http.NewRequestWithContext(ctx, "GET", "http://localhost/v1/events", nil)
			require.NoError(t, err)
			answer, err := client.Do(r)
			require.NoError(t, err)
			go func() {
				defer answer.Body.Close()
				lines := bufio.NewScanner(answer.Body)
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "data:") {
						heard.Add(1)
					}
				}
			}()
		}
		for range 60 {
			b.Decided(updater.Workload{ID: "local/web", Backend: "local"}, updater.Decision{Reason: updater.UpToDate})
			time.Sleep(time.Second) // the bubble's
		}
		require.Equal(t, int64(200*60), heard.Load(), "nobody missed anything, or was cut off")
		cancel()
		synctest.Wait()
		b.mu.Lock()
		require.Empty(t, b.clients)
		b.mu.Unlock()
		close(l)
		require.NoError(t, web.Close())
		ended = heap()
	})
	require.Less(t, ended, began+2<<20, "bytes of the heap")
	t.Logf("heap: %d kB before, %d kB after", began>>10, ended>>10)
}

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

const (
	readToken  = "5f0c3b1e9a7d4c62-read"
	writeToken = "5f0c3b1e9a7d4c62-write"
)

// steered is a rig with a daemon whose next pass is far away, so that whatever
// happens is a person's doing, and with its API.
type steered struct {
	*rig
	daemon  *stage.Daemon
	address string
	// client and scheme are how it is reached over TCP.
	client *http.Client
	scheme string
}

func newSteered(t *testing.T) *steered {
	t.Helper()
	s := newSteerable(t, "")
	s.steer()
	return s
}

// steer starts the daemon.
func (s *steered) steer() {
	s.t.Helper()
	s.daemon = s.u.Start("run")
	s.daemon.WaitLog("pass over", 30*time.Second)
}

// newSteerable is one whose daemon has yet to be started; more goes below its
// configuration, which ends with api.
func newSteerable(t *testing.T, more string) *steered {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	dir := t.TempDir()
	for name, token := range map[string]string{"read": "ann: " + readToken, "write": "bob: " + writeToken} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(token+"\n"), 0o600))
	}
	r := newRig(t, start{config: fmt.Sprintf(`
schedule: "@every 1h"
jitter: 0s
watch: all
defaults:
  mode: approve
  health: {timeout: 10s, stable: 500ms}
  stop-timeout: 2s
api:
  socket: %s/s
  listen: %s
  read-tokens: %s/read
  write-tokens: %s/write
%s`, dir, address, dir, dir, more)})
	return &steered{rig: r, address: address, client: http.DefaultClient, scheme: "http"}
}

// call makes a request over TCP and returns the status and the body.
func (s *steered) call(method, path, token, body string, edits ...func(*http.Request)) (int, string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.scheme+"://"+s.address+path, strings.NewReader(body))
	require.NoError(s.t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, edit := range edits {
		edit(r)
	}
	answer, err := s.client.Do(r)
	require.NoError(s.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(s.t, err)
	return answer.StatusCode, string(text)
}

// say says something over TCP, of the rig's container or of everything.
func (s *steered) say(verb, body string) {
	s.t.Helper()
	code, text := s.call("POST", "/v1/"+verb, writeToken, strings.ReplaceAll(body, "WEB", s.name))
	require.Equal(s.t, 200, code, text)
}

// runs waits until the daemon says that this digest runs.
func (s *steered) runs(digest string) {
	s.t.Helper()
	stage.Eventually(s.t, 30*time.Second, s.name+" to run "+digest, func() bool {
		_, text := s.call("GET", "/v1/workloads/"+s.name, readToken, "")
		return strings.Contains(text, `"digest":"`+digest+`","decision":"none"`)
	})
}

// reason waits until the daemon gives this reason.
func (s *steered) reason(want string) {
	s.t.Helper()
	var got struct{ Reason, Detail string }
	stage.Eventually(s.t, 30*time.Second, s.name+" to be "+want, func() bool {
		code, text := s.call("GET", "/v1/workloads/local/"+s.name, readToken, "")
		return code == 200 && json.Unmarshal([]byte(text), &got) == nil && got.Reason == want
	})
}

// events connects to the stream and returns its lines.
func (s *steered) events(ctx context.Context) (*bufio.Reader, io.Closer) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "GET", s.scheme+"://"+s.address+"/v1/events", nil)
	require.NoError(s.t, err)
	r.Header.Set("Authorization", "Bearer "+readToken)
	answer, err := s.client.Do(r)
	require.NoError(s.t, err)
	require.Equal(s.t, 200, answer.StatusCode)
	return bufio.NewReader(answer.Body), answer.Body
}

// TestDaemonIsSteered by every route and every command, on one engine.
func TestDaemonIsSteered(t *testing.T) {
	t.Parallel()
	counted := fmt.Sprintf("127.0.0.1:%d", stage.FreePort(t))
	s := newSteerable(t, fmt.Sprintf("metrics: {listen: %q}\n", counted))
	s.steer()
	run := func(code int, args ...string) stage.Result {
		t.Helper()
		res := s.u.Run(args...)
		require.Equal(t, code, res.Code, res.Stderr)
		return res
	}
	web := `{"workloads":["WEB"]}`

	t.Run("it says what it is at", func(t *testing.T) {
		require.Contains(t, run(0, "status").Stdout, ": well")
		var status struct{ Backends []struct{ Watched int } }
		require.NoError(t, json.Unmarshal([]byte(run(0, "status", "-o", "json").Stdout), &status))
		require.Equal(t, 1, status.Backends[0].Watched)
		require.Contains(t, run(0, "workloads").Stdout, "up-to-date")
		require.Contains(t, run(0, "workloads", s.name).Stdout, "up-to-date")
		run(2, "workloads", "nobody")
		for path, want := range map[string]string{
			"/v1/status": `"ready":true`, "/v1/workloads": s.name, "/v1/workloads/" + s.name: `"up-to-date"`, "/v1/workloads?reason=held": "[]",
			"/v1/changes": "[]", "/v1/history": "[]", "/v1/openapi.yaml": "openapi: 3",
		} {
			code, text := s.call("GET", path, readToken, "")
			require.Equal(t, 200, code, path)
			require.Contains(t, text, want, path)
		}
	})

	t.Run("it lets in who may come in", func(t *testing.T) {
		set := func(name, value string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set(name, value) }
		}
		host := func(r *http.Request) { r.Host = "evil.example.com" }
		for name, c := range map[string]struct {
			method, path, token string
			edit                func(*http.Request)
			want                int
		}{
			"no token":                     {"GET", "/v1/workloads", "", nil, 401},
			"no token to write":            {"POST", "/v1/hold", "", nil, 401},
			"a wrong token":                {"POST", "/v1/hold", writeToken + "x", nil, 401},
			"a read-only token":            {"POST", "/v1/hold", readToken, nil, 403},
			"a foreign host":               {"GET", "/v1/workloads", readToken, host, 421},
			"a foreign host that may":      {"POST", "/v1/hold", writeToken, host, 421},
			"a foreign origin":             {"POST", "/v1/hold", writeToken, set("Origin", "https://evil.example.com"), 403},
			"a form":                       {"POST", "/v1/hold", writeToken, set("Content-Type", "application/x-www-form-urlencoded"), 415},
			"a path with dots":             {"POST", "/v1/../v1/hold", "", nil, 401},
			"a path with slashes":          {"POST", "//v1//hold", "", nil, 401},
			"a path with percents":         {"POST", "/v1/%2e%2e/v1/hold", readToken, nil, 403},
			"another method":               {"DELETE", "/v1/workloads", readToken, nil, 403},
			"a method that it has not":     {"PUT", "/v1/hold", writeToken, nil, 404},
			"a workload that is not there": {"GET", "/v1/workloads/nobody", readToken, nil, 404},
			"a change that is not there":   {"GET", "/v1/changes/c1", readToken, nil, 404},
		} {
			var edits []func(*http.Request)
			if c.edit != nil {
				edits = append(edits, c.edit)
			}
			code, text := s.call(c.method, c.path, c.token, strings.ReplaceAll(web, "WEB", s.name), edits...)
			require.Equal(t, c.want, code, "%s: %s", name, text)
		}
		for i := range 1000 {
			code, _ := s.call("POST", "/v1/hold", fmt.Sprint(writeToken, i), web)
			require.Equal(t, 401, code)
		}
		require.Empty(t, s.history(), "none of it did anything")
		info, err := os.Stat(filepath.Join(filepath.Dir(s.socket()), "s"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	})

	follower := s.u.Start("history", "--follow", "-o", "json")
	second := s.push("latest", stage.Image{Version: "v2"})
	t.Run("persons say what is to be", func(t *testing.T) {
		s.say("check", `{}`)
		s.reason("needs-approval")
		run(0, "hold", s.name, "-m", "holidays")
		s.reason("held")
		s.say("release", web)
		s.reason("needs-approval")
		s.say("pause", `{"why":"the fair"}`)
		s.reason("paused")
		run(0, "resume")
		s.reason("needs-approval")
		s.say("reject", web)
		s.reason("rejected")
		s.say("forget", web)
		s.reason("needs-approval")
		s.untouched()
		code, text := s.call("POST", "/v1/hold", writeToken, `{"workloads":["nobody"]}`)
		require.Equal(t, 404, code)
		require.Contains(t, text, "unknown-workload")
		code, _ = s.call("POST", "/v1/rollback", writeToken, strings.ReplaceAll(web, "WEB", s.name))
		require.Equal(t, 409, code, "there is nothing to go back to")
	})

	t.Run("an approved image is put there at once, and that can be watched", func(t *testing.T) {
		stream, end := s.events(t.Context())
		s.say("approve", fmt.Sprintf(`{"workloads":["WEB"],"digest":%q}`, second))
		seen := ""
		for !strings.Contains(seen, `"phase":"committed"`) {
			line, err := stream.ReadString('\n')
			require.NoError(t, err)
			seen += line
		}
		require.NoError(t, end.Close())
		for _, want := range []string{"event: history", "event: workload", `"phase":"applying"`, `"phase":"judging"`, "event: progress"} {
			require.Contains(t, seen, want)
		}
		s.updated("v2", second)
		s.reason("up-to-date")
	})

	t.Run("back and forth by command", func(t *testing.T) {
		res := run(0, "rollback", s.name, "-o", "json")
		require.Equal(t, "committed", s.only(res, 0).Outcome)
		require.Contains(t, res.Stderr, "local/"+s.name+": applying\n", "piped, a line for each phase")
		s.updated("v1", s.first)
		s.say("check", web)
		s.reason("rolled-back")
		require.Equal(t, "rolled-back", s.only(run(1, "update", s.name, "-o", "json"), 1).Reason, "asking does not lift that")
		run(0, "forget", s.name)
		require.Equal(t, "committed", s.only(run(0, "update", s.name, "-o", "json"), 0).Outcome)
		s.updated("v2", second)
		require.Equal(t, "up-to-date", s.only(run(0, "update", s.name, "-o", "json"), 0).Reason)
		require.Contains(t, run(0, "update").Stdout, "nothing to update")
		s.say("rollback", web)
		s.runs(s.first)
		s.say("forget", web)
		s.reason("needs-approval")
		s.say("update", web)
		s.runs(second)
	})

	t.Run("what condemned an image can be read by who may", func(t *testing.T) {
		s.pushBad("latest", "bad")
		require.Equal(t, "restored", s.only(run(1, "update", s.name, "-o", "json"), 1).Outcome)
		require.NotEmpty(t, run(0, "logs", s.name).Stdout)
		_, text := s.call("GET", "/v1/history?event=restored", writeToken, "")
		require.Contains(t, text, `"logs"`)
		_, text = s.call("GET", "/v1/history?event=restored", readToken, "")
		require.NotContains(t, text, `"logs"`)
		require.NotEmpty(t, run(0, "history", "--logs", s.name).Stdout)
		run(1, "logs", "nobody")
	})

	t.Run("all of it is history, with who", func(t *testing.T) {
		follower.WaitLog(`"event":"restored"`, 10*time.Second)
		require.Contains(t, follower.Logs(), `"who":"bob"`)
		who := map[string]string{}
		for _, e := range s.history() {
			who[e.Event] += e.Who + " "
		}
		require.Contains(t, who["approved"], "bob")
		require.NotEmpty(t, strings.TrimSpace(who["held"]), "whoever runs this")
		require.Contains(t, who["rolled-back"], "bob")
		require.Len(t, strings.Fields(who["paused"]), 1)
	})

	t.Run("two hundred listeners leave nothing behind", func(t *testing.T) {
		// What lives on the heap is what is found there just after a collection: the least
		// that is ever seen.
		counts := func() (heap, goroutines float64) {
			t.Helper()
			answer, err := http.Get("http://" + counted + "/metrics")
			require.NoError(t, err)
			defer answer.Body.Close()
			text, err := io.ReadAll(answer.Body)
			require.NoError(t, err)
			for name, n := range map[string]*float64{"go_memstats_heap_alloc_bytes": &heap, "go_goroutines": &goroutines} {
				m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(text)
				require.NotNil(t, m, name)
				*n, err = strconv.ParseFloat(string(m[1]), 64)
				require.NoError(t, err)
			}
			return heap, goroutines
		}
		before, running := counts()
		for range 50 {
			heap, _ := counts()
			before = min(before, heap)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var all sync.WaitGroup
		for range 200 {
			stream, end := s.events(ctx)
			all.Go(func() {
				_, _ = io.Copy(io.Discard, stream) // until it is closed
				_ = end.Close()
			})
		}
		for range 20 {
			s.say("hold", web)
			s.say("release", web)
		}
		cancel()
		all.Wait()
		stage.Eventually(t, 3*time.Minute, "the heap and the goroutines to be as they were", func() bool {
			heap, goroutines := counts()
			return heap < before+2<<20 && goroutines < running+20
		})
	})

	require.Zero(t, s.daemon.Stop(20*time.Second))
	run(1, "status")
	require.NoFileExists(t, s.socket())
	run(0, "hold", s.name)
	require.Contains(t, run(0, "workloads").Stdout, "held")
}

// TestSocketOfADaemonThatWasKilled is taken over, and one that is served is not.
func TestSocketOfADaemonThatWasKilled(t *testing.T) {
	t.Parallel()
	s := newSteered(t)
	s.daemon.Kill()
	require.FileExists(t, s.socket())
	require.Equal(t, 1, s.u.Run("status").Code)
	again := s.u.Start("run")
	again.WaitLog("pass over", 30*time.Second)
	require.Zero(t, s.u.Run("status").Code)
	res := s.u.Run("run")
	require.Equal(t, 1, res.Code)
	require.Zero(t, s.u.Run("status").Code, "the first is still there")
	require.Zero(t, again.Stop(20*time.Second))
}

func (s *steered) socket() string {
	s.t.Helper()
	text, err := os.ReadFile(s.u.Config)
	require.NoError(s.t, err)
	return regexp.MustCompile(`socket: (\S+)`).FindStringSubmatch(string(text))[1]
}

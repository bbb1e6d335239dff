package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// receiver is a webhook that remembers what it took, and refuses as long as it is
// told to.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	events []string
	bodies []string
	closed bool
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return // it was killed in the middle
		}
		var m struct{ Event string }
		_ = json.Unmarshal(body, &m)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.closed {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		r.events = append(r.events, m.Event)
		r.bodies = append(r.bodies, string(body))
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) close(closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = closed
}

func (r *receiver) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.events...)
}

// TestMessagesSurviveAKill: what nobody took is told after a kill -9, once.
func TestMessagesSurviveAKill(t *testing.T) {
	t.Parallel()
	hook := newReceiver(t)
	hook.close(true)
	r := newRig(t, start{config: settings + fmt.Sprintf("notify: [{url: %q, on: [found, updated, restored, rejected]}]\n", hook.URL+"/s3cr3t-word")})
	digest := r.push("latest", stage.Image{Version: "v2"})
	daemon := r.u.Start("run")
	require.Eventually(t, func() bool { return len(r.history()) == 1 }, time.Minute, 100*time.Millisecond)
	daemon.Kill()
	require.Empty(t, hook.took())

	hook.close(false)
	for range 2 { // the second finds nothing left to tell
		daemon = r.u.Start("run")
		daemon.WaitLog("pass over", 20*time.Second)
		require.Eventually(t, func() bool { return len(hook.took()) >= 2 }, 30*time.Second, 50*time.Millisecond)
		require.Zero(t, daemon.Stop(15*time.Second))
	}
	require.Equal(t, []string{"found", "updated"}, hook.took())
	require.Contains(t, hook.bodies[1], digest)
	state, err := os.ReadFile(filepath.Join(r.u.State, "_messages.db"))
	require.NoError(t, err)
	require.NotContains(t, string(state), "s3cr3t-word", "the address is not kept")
}

// TestABadImageIsToldOnce, with what it wrote for who is to have that.
func TestABadImageIsToldOnce(t *testing.T) {
	t.Parallel()
	hook := newReceiver(t)
	r := newRig(t, start{config: settings + fmt.Sprintf("notify:\n  - {name: plain, url: %q, on: [restored, rejected]}\n  - {name: logs, url: %[1]q, on: [restored], logs: true, template: '{{range .Messages}}{{.Event}} {{.Logs}}{{end}}'}\n", hook.URL)})
	r.push("latest", stage.Image{Version: "bad", Behave: stage.Behaviour{Exit: ptr(3), Log: "password=hunter2"}})
	require.Equal(t, 1, r.u.Run("run", "--once").Code)
	r.u.Run("run", "--once")
	r.u.Run("run", "--once")
	hook.mu.Lock()
	defer hook.mu.Unlock()
	require.Len(t, hook.bodies, 3)
	withLogs := 0
	for _, body := range hook.bodies {
		if strings.Contains(body, "hunter2") {
			withLogs++
			require.True(t, strings.HasPrefix(body, "restored "), body)
		}
	}
	require.Equal(t, 1, withLogs)
}

func TestNotifyTest(t *testing.T) {
	t.Parallel()
	hook := newReceiver(t)
	u := stage.NewUpdaterd(t, "unix:///nonexistent.sock", fmt.Sprintf("notify:\n  - {name: good, url: %q}\n  - url: http://127.0.0.1:1/s3cr3t-word\n", hook.URL))
	res := u.Run("notify", "test")
	require.Equal(t, 1, res.Code)
	require.Contains(t, res.Stdout, "good: taken\n")
	require.Contains(t, res.Stdout, "http://127.0.0.1:1: NOT taken: ")
	require.Contains(t, res.Stdout, "connection refused")
	require.NotContains(t, res.Stdout+res.Stderr, "s3cr3t-word")
	require.Equal(t, []string{"test"}, hook.took())

	u.WriteConfig("{}\n")
	res = u.Run("notify", "test")
	require.Equal(t, 1, res.Code)
	require.Contains(t, res.Stderr, "there is nobody to tell")
}

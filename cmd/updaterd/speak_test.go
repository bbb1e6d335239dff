package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
)

// played is a daemon of which only the API is there.
type played struct {
	t      *testing.T
	socket string
	board  *server.Board
	leads  string
	// sights are what is to be seen; nil: that it has looked once.
	sights    []updater.Sight
	glance    *updater.Glance // all that is to be seen; nil: sights
	entries   []updater.Entry
	complaint *trigger // stderr; nil: one that triggers nothing
	// say is what a word does.
	say func(updater.Saying) []updater.Told
}

func play(t *testing.T) *played {
	t.Helper()
	d := &played{t: t, socket: filepath.Join(t.TempDir(), "s"), board: server.NewBoard(), leads: "local"}
	d.serve(server.New(server.Options{Updater: d, Board: d.board, Log: slog.New(slog.DiscardHandler)}))
	return d
}

// serve answers on the socket until the test or the returned function ends it.
func (d *played) serve(h http.Handler) (end func()) {
	d.t.Helper()
	l, err := net.Listen("unix", d.socket)
	require.NoError(d.t, err)
	s := &http.Server{Handler: h, ConnContext: server.ConnContext, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	end = func() { _ = s.Close() }
	d.t.Cleanup(end)
	return end
}

func (d *played) Say(_ context.Context, s updater.Saying) ([]updater.Told, error) {
	return d.say(s), nil
}
func (d *played) History(context.Context) ([]updater.Entry, error) { return d.entries, nil }
func (d *played) Glance() updater.Glance {
	if d.glance != nil {
		return *d.glance
	}
	if d.sights != nil {
		return updater.Glance{Ready: true, Places: d.sights}
	}
	return updater.Glance{Ready: true, Places: []updater.Sight{{Backend: d.leads, Looked: true}}}
}

// run is one command line beside it.
func (d *played) run(args ...string) (code int, stdout, stderr string) {
	d.t.Helper()
	file := filepath.Join(filepath.Dir(d.socket), "updaterd.yaml")
	require.NoError(d.t, os.WriteFile(file, fmt.Appendf(nil, "state: %s\napi: {socket: %q}\ndocker: [{name: local, endpoint: \"unix:///nowhere/docker.sock\"}]\n",
		d.t.TempDir(), d.socket), 0o600))
	var out bytes.Buffer
	complaint := d.complaint
	if complaint == nil {
		complaint = &trigger{}
	}
	p := program{stdin: bytes.NewReader(nil), stdout: &out, stderr: complaint, version: "v1"}
	code = p.main(d.t.Context(), append([]string{"-c", file}, args...))
	return code, out.String(), complaint.String()
}

func web(reason updater.Reason, asOf time.Time) (updater.Workload, updater.Decision) {
	return updater.Workload{ID: "local/web", Backend: "local", Image: "web:1"},
		updater.Decision{Reason: reason, Update: reason == updater.Update, Candidate: &updater.Image{Ref: "web:1", Digest: "sha256:2"}, AsOf: asOf}
}

// TestALookFromBeforeAWordIsNoAnswerToIt: one that was under way when it was said
// tells of its decision afterwards.
func TestALookFromBeforeAWordIsNoAnswerToIt(t *testing.T) {
	d := play(t)
	d.say = func(s updater.Saying) []updater.Told {
		require.Equal(t, updater.SayUpdate, s.Verb)
		before := time.Now()
		at := before.Add(time.Millisecond)
		d.board.Decided(web(updater.NeedsApproval, before))
		d.board.Decided(web(updater.Update, at.Add(time.Millisecond)))
		c := updater.Change{ID: "c1", Backend: "local", Unit: "local/web", Phase: updater.Preparing, Since: at.Add(2 * time.Millisecond),
			Parts: []updater.Part{{Workload: "local/web", To: updater.Image{Ref: "web:1", Digest: "sha256:2"}, Replace: true}}}
		d.board.Moved(c)
		c.Phase, c.Verdict, c.Ended = updater.Committed, updater.Good, time.Now()
		d.board.Moved(c)
		return []updater.Told{{Backend: "local", Workload: "local/web", Changed: true, At: at}}
	}
	code, stdout, stderr := d.run("update", "web")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "committed")
	require.NotContains(t, stdout, "needs-approval")
}

// TestAnUpdateThatWasUnderWayIsTheOneAskedFor: how it ends is told, unless a look
// finds that there is more to do.
func TestAnUpdateThatWasUnderWayIsTheOneAskedFor(t *testing.T) {
	d := play(t)
	c := updater.Change{ID: "c1", Backend: "local", Unit: "local/web", Phase: updater.Judging, Since: time.Now().Add(-time.Minute),
		Parts: []updater.Part{{Workload: "local/web", To: updater.Image{Ref: "web:1", Digest: "sha256:2"}, Replace: true}}}
	d.board.Moved(c)
	d.say = func(s updater.Saying) []updater.Told {
		at := time.Now()
		switch s.Verb {
		case updater.SayUpdate:
			d.board.Decided(web(updater.InProgress, at))
			c.Phase, c.Verdict, c.Why, c.Ended = updater.Restored, updater.Bad, "it exited", at
			d.board.Moved(c)
		case updater.SayCheck:
			d.board.Decided(web(updater.Rejected, at))
			return nil
		}
		return []updater.Told{{Backend: "local", Workload: "local/web", Changed: true, At: at}}
	}
	code, stdout, _ := d.run("update", "web", "-o", "json")
	require.Equal(t, 1, code)
	require.Contains(t, stdout, `"outcome": "restored"`)
	require.Contains(t, stdout, `"reason": "rejected"`)
}

// TestWhatAnotherLeadsIsNotWaitedFor: its end is not to be seen from here.
func TestWhatAnotherLeadsIsNotWaitedFor(t *testing.T) {
	d := play(t)
	d.leads = "another"
	d.say = func(updater.Saying) []updater.Told {
		return []updater.Told{{Backend: "local", Workload: "local/web", Changed: true, At: time.Now()}}
	}
	code, stdout, _ := d.run("update", "web")
	require.Equal(t, 1, code, "it is not done yet")
	require.Contains(t, stdout, "another updaterd leads on local and takes it up")
}

// TestADaemonThatEndsBetweenTwoQuestions: the command then works as without one.
func TestADaemonThatEndsBetweenTwoQuestions(t *testing.T) {
	for name, last := range map[string]http.HandlerFunc{
		"before the second": nil,
		"at the second":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, args := range [][]string{{"workloads", "-o", "json"}, {"history", "-o", "json"}, {"pause", "-o", "json"}} {
				d := &played{t: t, socket: filepath.Join(t.TempDir(), "s"), board: server.NewBoard(), leads: "local"}
				api := server.New(server.Options{Updater: d, Board: d.board, Log: slog.New(slog.DiscardHandler)})
				var end func()
				end = d.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch {
					case r.URL.Path != "/v1/status":
						last(w, r)
						return
					case last == nil:
						defer end()
					}
					api.ServeHTTP(w, r)
				}))
				code, stdout, stderr := d.run(args...)
				require.Zero(t, code, "%s: %s", args, stderr)
				require.Empty(t, stderr)
				want := map[string]string{"workloads": "backend-unavailable", "history": "[]", "pause": `"changed": true`}[args[0]]
				require.Contains(t, stdout, want)
			}
		})
	}
}

// TestStatusShowsAPause: one that was forgotten would else look like a daemon that is
// well and has nothing to do.
func TestStatusShowsAPause(t *testing.T) {
	word := updater.Word{Who: "ann", Why: "forgot me", At: time.Now()}
	d := play(t)
	d.sights = []updater.Sight{{Backend: "local", Looked: true, Paused: &word}}
	code, stdout, stderr := d.run("status")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "updaterd : well, "+server.PausedSince(word)+"\n")
	require.Contains(t, stdout, "by ann until updaterd resume: forgot me\n")

	d.sights = append(d.sights, updater.Sight{Backend: "far", Looked: true, Paused: &word})
	_, stdout, _ = d.run("status")
	require.Equal(t, 1, strings.Count(stdout, "paused since"), "one word, one line")
	d.sights[1].Paused = nil
	_, stdout, _ = d.run("status")
	require.Contains(t, stdout, "well, local paused since")
}

// TestStatusCountsReasons: a daemon that is well may watch workloads that it can never
// update.
func TestStatusCountsReasons(t *testing.T) {
	d := play(t)
	_, stdout, _ := d.run("status")
	require.Contains(t, stdout, "updaterd : well\n\nBACKEND", "nothing is watched yet")
	for name, reason := range map[string]updater.Reason{"a": updater.UpToDate, "b": updater.UpToDate, "c": updater.InvalidSettings, "d": updater.Held} {
		d.board.Decided(updater.Workload{ID: "local/" + name, Backend: "local"}, updater.Decision{Reason: reason})
	}
	code, stdout, _ := d.run("status")
	require.Zero(t, code)
	require.Contains(t, stdout, "updaterd : well\nworkloads: 2 up-to-date, 1 held, 1 invalid-settings\n\nBACKEND")
	_, stdout, _ = d.run("status", "-o", "json")
	require.Contains(t, stdout, `"invalid-settings": 1`)
}

// TestWorkloadsOfADaemonThatHasNotLooked are not known to be none.
func TestWorkloadsOfADaemonThatHasNotLooked(t *testing.T) {
	past := time.Now()
	for name, c := range map[string]struct {
		glance updater.Glance
		want   string
	}{
		"it has, and there are none": {updater.Glance{Ready: true, Places: []updater.Sight{{Backend: "local", Looked: true, LastPass: past}}}, "Nothing is watched: label"},
		"before its first pass":      {updater.Glance{Ready: true, Places: []updater.Sight{{Backend: "local", Looked: true}}}, "the daemon has not looked yet; ask again in a moment"},
		"before it leads":            {updater.Glance{}, "the daemon has not looked yet; ask again in a moment"},
		"beside one that leads":      {updater.Glance{Ready: true}, "the daemon stands by while another updaterd leads"},
		"beside its own update":      {updater.Glance{Ready: true, StandingBy: true}, "the daemon stands by while another process finishes"},
	} {
		t.Run(name, func(t *testing.T) {
			d := play(t)
			d.glance = &c.glance
			code, stdout, stderr := d.run("workloads")
			require.Zero(t, code, stderr)
			require.Contains(t, stdout, c.want)
			code, stdout, _ = d.run("workloads", "-o", "json")
			require.Zero(t, code)
			require.Equal(t, "[]\n", stdout)
			code, _, stderr = d.run("workloads", "web")
			if c.want == "Nothing is watched: label" {
				require.Equal(t, 2, code)
				require.Contains(t, stderr, "the daemon has seen no watched workload")
			} else {
				require.Equal(t, 1, code, "whether it is there is not known")
				require.Contains(t, stderr, c.want)
			}
		})
	}
}

// TestADaemonThatEndsInTheMiddle, as it does when it replaces itself: another process goes
// on with the change.
func TestADaemonThatEndsInTheMiddle(t *testing.T) {
	for alone, want := range map[bool]string{
		true:  "a change of it is under way (applying); the helper that replaces updaterd itself goes on with it",
		false: "a change of it is under way (applying); the next start of the daemon, which has ended, goes on with it",
	} {
		t.Run(fmt.Sprint(alone), func(t *testing.T) {
			d := &played{t: t, socket: filepath.Join(t.TempDir(), "s"), board: server.NewBoard(), leads: "local"}
			end := d.serve(server.New(server.Options{Updater: d, Board: d.board, Log: slog.New(slog.DiscardHandler)}))
			d.say = func(updater.Saying) []updater.Told {
				at := time.Now()
				d.board.Decided(web(updater.Update, at.Add(time.Millisecond)))
				d.board.Moved(updater.Change{ID: "c1", Backend: "local", Unit: "local/web", Phase: updater.Applying, Since: at.Add(2 * time.Millisecond), Alone: alone,
					Parts: []updater.Part{{Workload: "local/web", To: updater.Image{Ref: "web:1", Digest: "sha256:2"}, Replace: true}}})
				return []updater.Told{{Backend: "local", Workload: "local/web", Changed: true, At: at}}
			}
			// It ends once the command has heard that the change is under way.
			code, stdout, stderr := d.runUntil("applying", end, "rollback", "web")
			require.Equal(t, 1, code)
			require.Contains(t, stdout, want)
			require.Contains(t, stdout, "open")
			require.NotContains(t, stderr, "not waited for")
		})
	}
}

// runUntil is one command line beside it, during which then is called once, when this was
// told on stderr.
func (d *played) runUntil(told string, then func(), args ...string) (code int, stdout, stderr string) {
	d.complaint = &trigger{told: told, then: then}
	defer func() { d.complaint = nil }()
	return d.run(args...)
}

// trigger is stderr, and calls a function when something is told there.
type trigger struct {
	bytes.Buffer
	told string
	then func()
}

func (c *trigger) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if then := c.then; then != nil && strings.Contains(c.String(), c.told) {
		c.then = nil
		then()
	}
	return n, err
}

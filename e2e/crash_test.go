package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// story is an update that is broken off.
type story struct {
	policy string // restart policy
	bad    bool   // the new image
}

func (s story) String() string {
	if s.bad {
		return "bad image under " + s.policy
	}
	return "good image under " + s.policy
}

// begin makes a rig with an update that is due, and returns its digest.
func (s story) begin(t *testing.T, engine *stage.Docker) (*rig, string) {
	t.Helper()
	r := newRig(t, start{policy: s.policy, engine: engine})
	if s.bad {
		return r, r.pushBad("latest", "v2")
	}
	return r, r.push("latest", stage.Image{Version: "v2"})
}

// end requires what must be once a pass has gone through, and that another one
// leaves it so.
func (s story) end(r *rig, digest string) {
	r.t.Helper()
	s.holds(r, digest)
	rows := parseRows(r.t, r.u.Run("run", "--once", "-o", "json").Stdout)
	require.Len(r.t, rows, 1)
	require.Equal(r.t, "none", rows[0].Outcome)
	if s.bad {
		// An update that was broken off just when the image had exited may have
		// ended without a verdict: then it is tried again in an hour.
		require.Contains(r.t, []string{"rejected", "surroundings"}, rows[0].Reason)
	} else {
		require.Equal(r.t, "up-to-date", rows[0].Reason)
	}
	s.holds(r, digest)
}

func (s story) holds(r *rig, digest string) {
	r.t.Helper()
	if s.bad {
		r.asItWas()
		return
	}
	r.updated("v2", digest)
}

// loops reports whether the engine starts the new container again and again, so
// that not every update makes the same calls.
func (s story) loops() bool { return s.bad && s.policy != "no" }

// calls are the changing calls of the update when nothing goes wrong.
func (s story) calls(t *testing.T) []stage.Call {
	r, digest := s.begin(t, nil)
	p := r.through(stage.Hooks{})
	code := 0
	if s.bad {
		code = 1
	}
	r.once(code)
	s.holds(r, digest)
	calls := p.Calls()
	require.Greater(t, len(calls), 5)
	for _, c := range calls {
		t.Logf("%2d %s", c.N, kind(c))
	}
	return calls
}

// kind is a call without its ids: "rename to .updaterd-old".
func kind(c stage.Call) string {
	parts := strings.Split(strings.Trim(c.Path, "/"), "/")
	last := parts[len(parts)-1]
	switch {
	case c.Method == http.MethodDelete && parts[0] == "containers":
		return "remove container"
	case c.Method == http.MethodDelete && strings.HasPrefix(c.Path, "/images/updaterd.local/"):
		return "untag " + parts[2]
	case c.Method == http.MethodDelete:
		return "remove image"
	case c.Path == "/images/create":
		return "pull"
	case last == "tag" && strings.HasPrefix(c.Query.Get("repo"), "updaterd.local/"):
		return "tag " + strings.Split(c.Query.Get("repo"), "/")[1]
	case last == "tag":
		return "tag"
	case last == "rename":
		_, suffix, _ := strings.Cut(c.Query.Get("name"), ".")
		return strings.TrimSpace("rename to name " + suffix)
	}
	return last
}

// nth matches the n-th call of a kind. One of these serves one run.
func nth(what string, n int) func(stage.Call) bool {
	var mu sync.Mutex
	seen := map[int]bool{}
	return func(c stage.Call) bool {
		if c.N == 0 || kind(c) != what {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		seen[c.N] = true
		return len(seen) == n
	}
}

// TestKilledAtEveryCall kills updaterd at each call that changes something on
// the engine, and lets the next one put things right. All calls are tried under
// one restart policy, some under the others.
func TestKilledAtEveryCall(t *testing.T) {
	for i, policy := range []string{"always", "no", "unless-stopped", "on-failure"} {
		for _, bad := range []bool{false, true} {
			s := story{policy, bad}
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				count := map[string]int{}
				for k, c := range s.calls(t) {
					what := kind(c)
					count[what]++
					n := count[what]
					if i > 0 && k%4 != i-1 {
						continue
					}
					for _, after := range []bool{true, false} {
						// Before a call is after the one before it and after a write to
						// the journal, where there is one between.
						if !after && (i > 0 || !strings.Contains("pull update rename to name updaterd-new tag previous", what)) {
							continue
						}
						where := at{after: after, match: nth(what, n)}
						t.Run(fmt.Sprintf("%s %s %d", where, what, n), func(t *testing.T) {
							t.Parallel()
							r, digest := s.begin(t, nil)
							killed := r.runKilled(where, "run", "--once")
							require.True(t, killed || s.loops(), "there was no such call")
							r.u.Run("run", "--once")
							s.end(r, digest)
						})
					}
				}
			})
		}
	}
}

// TestKilledAgainAndAgain kills updaterd in the swap, and then each of those
// that come to put things right, each at one call later than the one before.
func TestKilledAgainAndAgain(t *testing.T) {
	for _, policy := range []string{"always", "no"} {
		for _, bad := range []bool{false, true} {
			for _, first := range []string{"stop", "rename to name updaterd-old", "remove container"} {
				if policy == "no" && first != "rename to name updaterd-old" || policy == "always" && first != "stop" && first != "remove container" {
					continue
				}
				s := story{policy, bad}
				t.Run(fmt.Sprintf("%s, first after %s", s, first), func(t *testing.T) {
					t.Parallel()
					r, digest := s.begin(t, nil)
					require.True(t, r.runKilled(at{after: true, match: nth(first, 1)}, "run", "--once"))
					for n := 1; r.runKilled(at{after: n%2 == 0, match: call(n)}, "run", "--once"); n++ {
						require.Less(t, n, 60, "it comes to no end")
					}
					s.end(r, digest)
				})
			}
		}
	}
}

// TestEngineKilledAtEveryCall lets many updates come to a different call each,
// kills the engine (and in the second half every updaterd), starts it again,
// and requires the promise of all.
func TestEngineKilledAtEveryCall(t *testing.T) {
	for _, both := range []bool{false, true} {
		name := "updaterd lives"
		if both {
			name = "updaterd is killed as well"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := stage.StartDocker(t, engine.Options{})
			type update struct {
				story
				name   string
				r      *rig
				digest string
				daemon *stage.Daemon
				there  chan struct{}
			}
			var all []*update
			dead := make(chan struct{})
			for _, policy := range []string{"always", "no"} {
				for _, bad := range []bool{false, true} {
					// Not more, or those who come first give up the call that they wait in.
					for _, what := range []string{"update", "stop", "start", "rename to name"} {
						s := story{policy, bad}
						if policy == "no" && (what == "update" || what == "stop") {
							continue
						}
						if what == "update" && onPodman() {
							continue // noChange: the call is never made
						}
						u := &update{story: s, name: fmt.Sprintf("%s, after %s", s, what), there: make(chan struct{})}
						// Each has a mark of its own, so that it sees its own container only.
						view := *d
						view.Mark = d.Name("mark")
						u.r, u.digest = s.begin(t, &view)
						// So many passes each second would be all that the machine does.
						u.r.u.WriteConfig(strings.Replace(settings, "@every 1s", "@every 10s", 1))
						var once sync.Once
						match := nth(what, 1)
						u.r.through(stage.Hooks{After: func(c stage.Call) error {
							select {
							case <-dead:
								return nil
							default:
							}
							if !match(c) {
								return nil
							}
							once.Do(func() { close(u.there) })
							<-dead
							panic(http.ErrAbortHandler)
						}})
						all = append(all, u)
					}
				}
			}
			for _, u := range all {
				u.daemon = u.r.u.Start("run")
			}
			for _, u := range all {
				within(t, 60*time.Second, u.name, u.there)
			}
			require.NoError(t, d.Engine.Kill())
			if both {
				for _, u := range all {
					u.daemon.Kill()
				}
			}
			close(dead)
			require.NoError(t, d.Engine.Up(t.Context()))
			for _, u := range all {
				if both {
					u.daemon = u.r.u.Start("run")
				}
			}
			for _, u := range all {
				t.Run(u.name, func(t *testing.T) {
					u.r.t = t
					stage.Eventually(t, 60*time.Second, "the end of the change", func() bool {
						return strings.Contains(u.daemon.Logs(), `msg="change is over"`) && !strings.Contains(lastChange(u.daemon.Logs()), "moves on")
					})
					require.Zero(t, u.daemon.Stop(20*time.Second))
					u.settled(u.r, u.digest)
				})
			}
		})
	}
}

// lastChange is the last line of a log that tells of a change.
func lastChange(log string) string {
	last := ""
	for line := range strings.Lines(log) {
		if strings.Contains(line, `msg="change `) {
			last = line
		}
	}
	return last
}

// settled requires one of the two ends. After the death of an engine either is
// right for a good image: what it did to the new container is not the image's
// fault, nor is it known to be well.
func (s story) settled(r *rig, digest string) {
	r.t.Helper()
	c := r.alone()
	if c.ID == r.before.ID {
		r.asItWas()
		return
	}
	require.False(r.t, s.bad, "the bad image stays")
	r.updated("v2", digest)
}

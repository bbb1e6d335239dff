package updater_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/updater"
)

// run starts another container, in the namespaces of those it uses, with an
// update waiting for it if the image behaves at all.
func (w *world) run(name string, b backendtest.Behaviour, uses ...string) {
	w.host.Run(name, name+":1", oldDigest, "always", uses...)
	w.registry.Publish(name+":1", oldDigest)
	if b != "" {
		digest := newOf(name)
		w.host.Image(digest, b)
		w.registry.Publish(name+":1", digest)
	}
}

// newOf is the digest of the update of a container that was started with run.
func newOf(name string) string { return "sha256:new-of-" + name }

func (w *world) row(rows []updater.Row, id string) updater.Row {
	w.t.Helper()
	i := slices.IndexFunc(rows, func(r updater.Row) bool { return r.Workload == id })
	require.GreaterOrEqual(w.t, i, 0, "no row for %s in %+v", id, rows)
	return rows[i]
}

func (w *world) check(names ...string) ([]updater.Row, error) {
	u, _ := w.process(0)
	return u.Check(context.Background(), names)
}

func TestRowsAsJSON(t *testing.T) {
	inWorld(t, backendtest.Exits, func(t *testing.T, w *world) {
		w.host.Run("current", "current:1", oldDigest, "always")
		w.registry.Publish("current:1", oldDigest)
		w.host.Run("homemade", "homemade:dev", "", "always")
		w.host.Run("stopped", "current:1", oldDigest, "no")
		w.host.Stop("stopped")
		u, _ := w.process(0)
		rules := w.rules()
		rules.Settings = func(x updater.Workload) (updater.Settings, error) {
			if x.Name == "odd" {
				return updater.Settings{}, errors.New("label updaterd.policy: no such policy")
			}
			return w.settings, nil
		}
		w.host.Run("odd", "odd:1", oldDigest, "always")
		u.Reload(rules)

		golden := func(rows []updater.Row, err error) string {
			require.NoError(t, err)
			raw, err := json.Marshal(rows)
			require.NoError(t, err)
			return string(raw)
		}
		const old, new = `"` + oldDigest + `"`, `"` + newDigest + `"`
		row := func(name, image, digest, policy, decision, candidate, reason, detail, outcome string) string {
			if outcome != "" {
				outcome = `,"outcome":"` + outcome + `"`
			}
			return fmt.Sprintf(`{"backend":"local","workload":"local/%s","image":%q,"digest":%s,"policy":%q,"decision":%q,"candidate":%s,"reason":%q,"detail":%q%s}`,
				name, image, digest, policy, decision, candidate, reason, detail, outcome)
		}
		rows := func(outcome, webs, web string) string {
			return "[" +
				row("current", "current:1", old, "digest", "none", `{"image":"current:1","digest":`+old+`}`, "up-to-date", "it runs what current:1 stands for", outcome) + "," +
				row("homemade", "homemade:dev", "null", "digest", "none", "null", "not-found", "homemade:dev is not there", outcome) + "," +
				row("odd", "odd:1", old, "", "none", "null", "invalid-settings", "label updaterd.policy: no such policy", outcome) + "," +
				row("stopped", "current:1", old, "digest", "none", `{"image":"current:1","digest":`+old+`}`, "not-running", "it has exited", outcome) + "," +
				row("web", "web:1", old, "digest", "update", `{"image":"web:1","digest":`+new+`}`, "update", web, webs) + "]"
		}
		require.Equal(t, rows("", "", "web:1 now stands for "+newDigest), golden(u.Check(t.Context(), nil)))
		require.Equal(t, rows("none", "restored", "it exited with code 1"), golden(u.Once(t.Context(), nil)))
	})
}

func TestNoRowsAreAnEmptyList(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Enabled = false
		require.NotNil(t, w.once())
		rows, err := w.check()
		require.NoError(t, err)
		require.NotNil(t, rows)
		require.Empty(t, rows)
	})
}

func TestTrouble(t *testing.T) {
	for reason, want := range map[updater.Reason]bool{
		updater.UpToDate: false, updater.Update: false, updater.Held: false, updater.Monitor: false, updater.Rejected: false,
		updater.RolledBack: false, updater.Pinned: false, updater.OutsideWindow: false, updater.TooYoung: false, updater.NeedsApproval: false,
		updater.NotRunning: false, updater.LocalImage: false, updater.Unsupported: false, updater.NoCandidate: false, updater.Waiting: false,
		updater.BackendUnavailable: true, updater.RegistryUnavailable: true, updater.Unauthorized: true, updater.NotFound: true,
		updater.RateLimited: true, updater.TagListIncomplete: true, updater.InvalidSettings: true, updater.Surroundings: true,
	} {
		require.Equal(t, want, updater.Row{Reason: reason, Outcome: updater.OutcomeNone}.Trouble(), reason)
	}
	for outcome, want := range map[updater.Outcome]bool{
		updater.OutcomeNone: false, updater.OutcomeCommitted: false, updater.OutcomeSuperseded: false,
		updater.OutcomeRestored: true, updater.OutcomeFailed: true, updater.OutcomeOpen: true,
	} {
		require.Equal(t, want, updater.Row{Reason: updater.Update, Outcome: outcome}.Trouble(), outcome)
	}
}

// TestCheckWritesNothing: not to the journal, not to the engine.
func TestCheckWritesNothing(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		w.host.Remove("web") // a roll-back by hand would be worth a note
		w.host.Run("web", "web:1", oldDigest, "always")
		w.run("db", backendtest.Good)
		w.on = func(what string, _ bool) { t.Errorf("it does: %s", what) }
		rows, err := w.check()
		require.NoError(t, err)
		require.Equal(t, updater.RolledBack, w.row(rows, "local/web").Reason, "it sees what a pass would")
		require.Equal(t, updater.Update, w.row(rows, "local/db").Reason)
	})
}

func TestCheckBesideADaemon(t *testing.T) {
	inWorld(t, backendtest.Hangs, func(t *testing.T, w *world) {
		_, stop := w.daemon()
		defer stop()
		time.Sleep(30 * time.Second)
		rows, err := w.check("web")
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, updater.InProgress, rows[0].Reason)
		require.Equal(t, "none", rows[0].Decision)
		time.Sleep(time.Minute)
		rows, err = w.check("web")
		require.NoError(t, err)
		require.Equal(t, updater.Rejected, rows[0].Reason)

		u, _ := w.process(0)
		_, err = u.Once(t.Context(), nil)
		require.ErrorIs(t, err, updater.ErrLed)
		require.ErrorIs(t, u.Run(t.Context()), updater.ErrLed)
	})
}

func TestCheckOfAWorkloadThatIsAbsentInMidSwap(t *testing.T) {
	all := steps(t, backendtest.Good)
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		u, d := w.process(slices.Index(all, "rename old, done true") + 1)
		_, _ = u.Once(t.Context(), nil)
		require.True(t, d.dead)
		for _, names := range [][]string{nil, {"web"}, {"local/web"}} {
			rows, err := w.check(names...)
			require.NoError(t, err)
			require.Len(t, rows, 1, "%v", names)
			require.Equal(t, updater.InProgress, rows[0].Reason)
			require.Equal(t, "local/web", rows[0].Workload)
			require.Nil(t, rows[0].Digest)
		}
		require.Equal(t, updater.OutcomeCommitted, w.row(w.once(), "local/web").Outcome)
	})
}

func TestNames(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("db", backendtest.Good)
		w.run("other", "")
		w.host.Run("unwatched", "web:1", oldDigest, "always")
		rules := w.rules()
		rules.Settings = func(x updater.Workload) (updater.Settings, error) {
			s := w.settings
			s.Enabled = x.Name != "unwatched"
			return s, nil
		}
		w.on = func(what string, _ bool) { t.Errorf("it does: %s", what) }
		u, _ := w.process(0)
		u.Reload(rules)
		for _, names := range [][]string{{"nobody"}, {"db", "nobody"}, {"unwatched"}, {"elsewhere/db"}, {"local"}, {""}} {
			_, err := u.Check(t.Context(), names)
			require.ErrorIs(t, err, updater.ErrUnknownWorkload, "%v", names)
			rows, err := u.Once(t.Context(), names)
			require.ErrorIs(t, err, updater.ErrUnknownWorkload, "%v", names)
			require.Empty(t, rows)
			_, err = u.Say(t.Context(), updater.Saying{Verb: updater.SayForget, Workloads: names[len(names)-1:]})
			require.ErrorIs(t, err, updater.ErrUnknownWorkload, "%v", names)
		}
		rows, err := u.Check(t.Context(), []string{"db", "local/db", "other"})
		require.NoError(t, err)
		require.Len(t, rows, 2)

		lifted, err := u.Say(t.Context(), updater.Saying{Verb: updater.SayForget, Workloads: []string{"other"}})
		require.NoError(t, err, "nothing to lift is no mistake")
		require.Equal(t, []updater.Told{{Backend: "local", Workload: "local/other", At: time.Now()}}, lifted)

		w.on = nil
		u, _ = w.process(0)
		rows, err = u.Once(t.Context(), []string{"local/db"})
		require.NoError(t, err)
		require.Len(t, rows, 1)
		require.Equal(t, updater.OutcomeCommitted, rows[0].Outcome)
		web, _ := w.find("web")
		require.Equal(t, oldDigest, web.Digest, "nobody spoke of it")
	})
}

func TestBackendUnavailable(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.host.Down(true)
		rows, err := w.check("web")
		require.NoError(t, err, "whether it exists cannot be known")
		require.Equal(t, []updater.Row{{Backend: "local", Workload: "local", Decision: "none", Reason: updater.BackendUnavailable, Detail: "the engine does not answer"}}, rows)
		rows = w.once()
		require.Equal(t, []updater.Row{{Backend: "local", Workload: "local", Decision: "none", Reason: updater.BackendUnavailable, Detail: "the engine does not answer", Outcome: updater.OutcomeNone}}, rows)
		require.True(t, rows[0].Trouble())
	})
}

func TestOneBackendDownStopsNoOther(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		away := backendtest.NewHost()
		away.Down(true)
		u := updater.New([]updater.Place{
			{Backend: &backendtest.Process{Host: away, ID: "away"}, State: &backendtest.State{Disk: &backendtest.Disk{}}},
			{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: &backendtest.State{Disk: w.disk}},
		}, w.rules(), discard())
		rows, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, updater.BackendUnavailable, w.row(rows, "away").Reason)
		require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/web").Outcome)
	})
}

func TestASlowRegistryHoldsUpNobodyElse(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("slow", backendtest.Good)
		w.registry.Delay("slow:1", time.Hour)
		_, stop := w.daemon()
		time.Sleep(15 * time.Second)
		web, _ := w.find("web")
		require.Equal(t, newDigest, web.Digest)
		w.told(updater.EventUpdated)
		time.Sleep(2 * time.Hour)
		stop()
		slow, _ := w.find("slow")
		require.Equal(t, "sha256:new-of-slow", slow.Digest)
	})
}

func TestOneWorkloadsTroubleStopsNoOther(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("bad", backendtest.Exits)
		w.run("absent", backendtest.CannotPull)
		w.run("mute", backendtest.Good)
		w.registry.Fail("mute:1", errors.New("connection refused"))
		rows := w.once()
		require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/web").Outcome)
		require.Equal(t, updater.OutcomeRestored, w.row(rows, "local/bad").Outcome)
		require.Equal(t, updater.Surroundings, w.row(rows, "local/absent").Reason)
		require.Equal(t, updater.RegistryUnavailable, w.row(rows, "local/mute").Reason)
		w.registry.Fail("mute:1", nil)
		require.Equal(t, updater.OutcomeCommitted, w.row(w.once(), "local/mute").Outcome)
	})
}

func TestParallel(t *testing.T) {
	for _, parallel := range []int{-1, 1, 3, 100} {
		t.Run(fmt.Sprint(parallel), func(t *testing.T) {
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				for i := range 9 {
					w.run(fmt.Sprintf("c%d", i), backendtest.Good)
				}
				var mu sync.Mutex
				now, most := 0, 0
				w.on = func(what string, done bool) {
					mu.Lock()
					defer mu.Unlock()
					switch {
					case what == "save preparing" && !done:
						now++
						most = max(most, now)
					case what == "save committed" && done:
						now--
					}
				}
				u, _ := w.process(0)
				rules := w.rules()
				rules.Parallel = parallel
				u.Reload(rules)
				rows, err := u.Once(t.Context(), nil)
				require.NoError(t, err)
				for _, r := range rows {
					require.Equal(t, updater.OutcomeCommitted, r.Outcome)
				}
				require.Equal(t, min(max(parallel, 1), 10), most)
			})
		})
	}
}

// TestWhatWaitsForItsTurnIsNotBegunTwice: there are more passes than turns.
func TestWhatWaitsForItsTurnIsNotBegunTwice(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Health.Stable = 90 * time.Second
		for i := range 5 {
			w.run(fmt.Sprintf("c%d", i), backendtest.Good)
		}
		begun := 0
		w.on = func(what string, done bool) {
			if what == "save preparing" && done {
				begun++
			}
		}
		u, _ := w.process(0)
		rules := w.rules()
		rules.Parallel = 1
		u.Reload(rules)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, u.Run(ctx))
		require.Equal(t, 6, begun)
		require.Len(t, w.history(), 6)
	})
}

func TestWhatChangedWhileItWaitedIsDecidedAnew(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("a", backendtest.Slow)
		w.on = func(what string, done bool) {
			if what == "save committed" && done { // of a or of web, whichever came first
				for _, name := range []string{"a", "web"} {
					if c, _ := w.find(name); c.Digest == oldDigest {
						w.host.Remove(name)
						w.host.Run(name, "theirs:9", oldDigest, "no")
					}
				}
			}
		}
		u, _ := w.process(0)
		rules := w.rules()
		rules.Parallel = 1
		u.Reload(rules)
		rows, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		updated, theirs := 0, 0
		for _, r := range rows {
			c, _ := w.find(r.Workload[len("local/"):])
			if c.Ref == "theirs:9" {
				theirs++
				require.Equal(t, updater.OutcomeNone, r.Outcome)
				require.Contains(t, r.Detail, "somebody changed "+r.Workload+" since")
			} else {
				updated++
			}
		}
		require.Equal(t, 1, updated)
		require.Equal(t, 1, theirs, "what a person put there is left alone")
	})
}

func TestASpokenWordReachesWhatWaitsForItsTurn(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.run("a", backendtest.Good)
		w.on = func(what string, done bool) {
			if what == "save judging" && done {
				w.on = nil
				hold := func(m *updater.Record) { m.Hold = &updater.Word{Why: "holidays", At: time.Now()} }
				_ = (&backendtest.State{Disk: w.disk}).Remember(context.Background(), map[string]func(*updater.Record){"local/a": hold, "local/web": hold})
			}
		}
		u, _ := w.process(0)
		rules := w.rules()
		rules.Parallel = 1
		u.Reload(rules)
		rows, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		require.ElementsMatch(t, []updater.Outcome{updater.OutcomeCommitted, updater.OutcomeNone}, []updater.Outcome{rows[0].Outcome, rows[1].Outcome})
		require.Contains(t, []updater.Reason{rows[0].Reason, rows[1].Reason}, updater.Held)
	})
}

// dependent makes web need db and db need disk, the last by what the platform
// says of it.
func (w *world) dependent() updater.Rules {
	rules := w.rules()
	rules.Settings = func(x updater.Workload) (updater.Settings, error) {
		s := w.settings
		switch x.Name {
		case "web":
			s.DependsOn = []string{"db"}
		case "db":
			s.DependsOn = []string{"local/disk"}
		}
		return s, nil
	}
	return rules
}

func TestDependsOn(t *testing.T) {
	t.Run("what is needed comes first", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("disk", backendtest.Slow)
			w.run("db", backendtest.Good)
			u, _ := w.process(0)
			u.Reload(w.dependent())
			rows, err := u.Check(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.Update, w.row(rows, "local/disk").Reason)
			require.Equal(t, updater.Waiting, w.row(rows, "local/db").Reason)
			require.Equal(t, updater.Waiting, w.row(rows, "local/web").Reason)
			require.Contains(t, w.row(rows, "local/web").Detail, "local/db, which it depends on, comes first")

			_, err = u.Once(t.Context(), nil)
			require.NoError(t, err)
			require.Len(t, w.notified.all(), 3)
			for i, id := range []string{"local/disk", "local/db", "local/web"} {
				e := w.notified.all()[i]
				require.Equal(t, id, e.Workload)
				require.Equal(t, updater.EventUpdated, e.Event)
				if i > 0 {
					require.False(t, e.At.Add(-e.Took).Before(w.notified.all()[i-1].At), "begun before what it needs was over")
				}
			}
		})
	})
	t.Run("it waits when what it needs is put back, and for no longer", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("disk", backendtest.Exits)
			w.run("db", backendtest.Good)
			w.run("else", backendtest.Good)
			u, _ := w.process(0)
			u.Reload(w.dependent())
			rows, err := u.Once(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.OutcomeRestored, w.row(rows, "local/disk").Outcome)
			for _, id := range []string{"local/db", "local/web"} {
				r := w.row(rows, id)
				require.Equal(t, updater.Waiting, r.Reason)
				require.Equal(t, updater.OutcomeNone, r.Outcome)
				require.Equal(t, "none", r.Decision)
				require.NotNil(t, r.Candidate)
			}
			require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/else").Outcome)
			rows, err = u.Once(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.Rejected, w.row(rows, "local/disk").Reason)
			require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/web").Outcome)
		})
	})
	t.Run("it waits for a change that an earlier pass began", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.settings.Health.Timeout = 10 * time.Minute
			w.run("disk", "")
			w.run("db", backendtest.Hangs)
			w.registry.Publish("web:1", oldDigest)
			u, _ := w.process(0)
			u.Reload(w.dependent())
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			go func() {
				time.Sleep(90 * time.Second)
				w.registry.Publish("web:1", newDigest)
			}()
			require.NoError(t, u.Run(ctx))
			w.told(updater.EventRestored, updater.EventUpdated)
			require.Equal(t, "local/db", w.notified.all()[0].Workload)
		})
	})
	t.Run("a circle is a mistake", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("disk", backendtest.Good)
			w.run("db", backendtest.Good)
			w.run("else", backendtest.Good)
			w.run("self", backendtest.Good)
			w.run("typo", backendtest.Good)
			rules := w.rules()
			rules.Settings = func(x updater.Workload) (updater.Settings, error) {
				s := w.settings
				s.DependsOn = map[string][]string{"web": {"db"}, "db": {"disk"}, "disk": {"web"}, "else": {"web"}, "self": {"self"}, "typo": {"dbb"}}[x.Name]
				return s, nil
			}
			u, _ := w.process(0)
			u.Reload(rules)
			rows, err := u.Once(t.Context(), nil)
			require.NoError(t, err)
			require.Equal(t, updater.InvalidSettings, w.row(rows, "local/web").Reason)
			require.Equal(t, "it depends on itself: local/web needs local/db needs local/disk needs local/web", w.row(rows, "local/web").Detail)
			require.Equal(t, updater.InvalidSettings, w.row(rows, "local/db").Reason)
			require.Equal(t, updater.InvalidSettings, w.row(rows, "local/disk").Reason)
			require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/else").Outcome)
			require.Equal(t, "it depends on itself: local/self needs local/self", w.row(rows, "local/self").Detail)
			require.Equal(t, updater.InvalidSettings, w.row(rows, "local/typo").Reason)
			require.Contains(t, w.row(rows, "local/typo").Detail, `there is no workload "dbb" here`)
		})
	})
	t.Run("one that is named alone waits for what it needs all the same", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("disk", backendtest.Good)
			w.run("db", backendtest.Good)
			u, _ := w.process(0)
			u.Reload(w.dependent())
			rows, err := u.Once(t.Context(), []string{"web"})
			require.NoError(t, err)
			require.Len(t, rows, 1, "what it needs was not asked for")
			require.Equal(t, updater.Waiting, rows[0].Reason)
			require.Equal(t, updater.OutcomeNone, rows[0].Outcome)
			rows, err = u.Once(t.Context(), []string{"web", "db", "disk"})
			require.NoError(t, err)
			require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/web").Outcome)
		})
	})
}

// slowList is a backend whose answer is a while under way.
type slowList struct {
	*backendtest.Process
	takes time.Duration
}

func (s slowList) Workloads(ctx context.Context) ([]updater.Workload, error) {
	all, err := s.Process.Workloads(ctx)
	time.Sleep(s.takes)
	return all, err
}

// TestManyChangesAtOnceShareTheirLooks: what each change looks at before it begins is
// no older than the change, and is listed for all that begin together.
func TestManyChangesAtOnceShareTheirLooks(t *testing.T) {
	const many = 50
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		for i := range many - 1 {
			w.host.Run(fmt.Sprintf("web-%d", i), "web:1", oldDigest, "always")
		}
		rules := w.rules()
		rules.Parallel = many
		var lists atomic.Int32
		u := updater.New([]updater.Place{{
			Backend: countedList{slowList{&backendtest.Process{Host: w.host, ID: "local"}, time.Second}, &lists},
			State:   &backendtest.State{Disk: w.disk},
		}}, rules, discard())
		rows, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, rows, many)
		for _, r := range rows {
			require.Equal(t, updater.OutcomeCommitted, r.Outcome, r.Detail)
		}
		require.LessOrEqual(t, lists.Load(), int32(4), "one for the pass, and those of the changes: while one is made, the others wait for the next")
	})
}

// countedList counts how often it is asked what runs.
type countedList struct {
	slowList
	n *atomic.Int32
}

func (c countedList) Workloads(ctx context.Context) ([]updater.Workload, error) {
	c.n.Add(1)
	return c.slowList.Workloads(ctx)
}

// slowState is a journal whose answers are a while under way.
type slowState struct {
	*backendtest.State
	takes time.Duration
}

func (s slowState) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	return s.State.Lead(ctx, func(ctx context.Context, _ updater.Journal) error { return do(ctx, s) })
}

func (s slowState) Open(ctx context.Context) ([]updater.Change, error) {
	all, err := s.State.Open(ctx)
	time.Sleep(s.takes)
	return all, err
}

// TestChangesThatEndDuringALook: passes are so frequent and answers so slow
// that every change begins and ends while somebody looks.
func TestChangesThatEndDuringALook(t *testing.T) {
	for _, b := range []backendtest.Behaviour{backendtest.Good, backendtest.Crashes, backendtest.Exits} {
		for list := time.Duration(0); list < 40*time.Second; list += 3 * time.Second {
			for journal := time.Duration(0); journal < 40*time.Second; journal += 3 * time.Second {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, b)
					w.settings.Health.Stable = 5 * time.Second
					rules := w.rules()
					rules.Schedule = cron.Every(time.Second)
					u := updater.New([]updater.Place{{
						Backend: slowList{&backendtest.Process{Host: w.host, ID: "local"}, list},
						State:   slowState{&backendtest.State{Disk: w.disk}, journal},
					}}, rules, discard())
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
					defer cancel()
					require.NoError(t, u.Run(ctx))
					w.holds(ended(b), "in the end")
					if b == backendtest.Good {
						w.told(updater.EventUpdated)
					} else {
						w.told(updater.EventRestored)
						require.Nil(t, w.record("local/web").Retry)
					}
				})
			}
		}
	}
}

func TestReload(t *testing.T) {
	t.Run("a change under way keeps its settings", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			u, stop := w.daemon()
			time.Sleep(5 * time.Second)
			later := w.rules()
			later.Settings = func(updater.Workload) (updater.Settings, error) {
				s := w.settings
				s.Health.Stable = time.Hour
				return s, nil
			}
			u.Reload(later)
			time.Sleep(6 * time.Second)
			stop()
			w.holds(newDigest, "stable was 10 s when it was decided")
		})
	})
	t.Run("a change taken up keeps its settings", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			_, stop := w.daemon()
			time.Sleep(5 * time.Second)
			stop()
			w.settings.Health.Stable = time.Hour
			began := time.Now()
			w.once()
			require.Equal(t, 10*time.Second, time.Since(began))
		})
	})
	t.Run("a new schedule is heeded at once", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.settings.Mode = updater.ModeMonitor
			u, _ := w.process(0)
			rules := w.rules()
			rules.Schedule = cron.Every(24 * time.Hour)
			u.Reload(rules)
			ctx, cancel := context.WithTimeout(t.Context(), 25*time.Hour)
			defer cancel()
			go func() {
				time.Sleep(time.Hour)
				require.Equal(t, 1, w.registry.Asked())
				u.Reload(w.rules()) // every minute
				time.Sleep(time.Hour)
				require.InDelta(t, 61, w.registry.Asked(), 2)
				cancel()
			}()
			require.NoError(t, u.Run(ctx))
		})
	})
	t.Run("reloading often does not put passes off", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.settings.Mode = updater.ModeMonitor
			u, stop := w.daemon()
			for range 60 {
				time.Sleep(10 * time.Second)
				u.Reload(w.rules())
			}
			stop()
			require.InDelta(t, 10, w.registry.Asked(), 1)
		})
	})
	t.Run("what is watched is decided anew in the next pass", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.settings.Enabled = false
			u, stop := w.daemon()
			time.Sleep(5 * time.Minute)
			require.Zero(t, w.registry.Asked())
			rules, s := w.rules(), w.settings
			s.Enabled = true
			rules.Settings = func(updater.Workload) (updater.Settings, error) { return s, nil }
			u.Reload(rules)
			time.Sleep(2 * time.Minute)
			stop()
			w.holds(newDigest, "it is watched now")
		})
	})
}

func TestSchedule(t *testing.T) {
	daily, err := cron.ParseStandard("0 3 * * *")
	require.NoError(t, err)
	tests := []struct {
		name     string
		schedule updater.Schedule
		jitter   time.Duration
		startsAt time.Duration // after midnight, when all synctest days begin
		first    time.Duration
	}{
		{"an interval begins at once", cron.Every(15 * time.Minute), 0, 0, 0},
		{"an interval begins at once, whatever the jitter", cron.Every(15 * time.Minute), time.Minute, 0, 0},
		{"a time of day is waited for", daily, 0, 0, 3 * time.Hour},
		{"a time of day that is past is waited for until tomorrow", daily, 0, 4 * time.Hour, 23 * time.Hour},
		{"a time of day just ahead is waited for", daily, 0, 3*time.Hour - 500*time.Millisecond, 500 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
				time.Sleep(tt.startsAt)
				w.settings.Mode = updater.ModeMonitor
				u, _ := w.process(0)
				rules := w.rules()
				rules.Schedule, rules.Jitter = tt.schedule, tt.jitter
				rules.Registry = firstAsked{w.registry, new(time.Time)}
				u.Reload(rules)
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Hour)
				defer cancel()
				require.NoError(t, u.Run(ctx))
				require.Equal(t, tt.first, rules.Registry.(firstAsked).at.Sub(began).Round(100*time.Millisecond))
			})
		})
	}
	t.Run("jitter puts off by no more than it says", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.settings.Mode = updater.ModeMonitor
			u, _ := w.process(0)
			rules := w.rules()
			rules.Jitter = time.Minute
			u.Reload(rules)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Minute)
			defer cancel()
			require.NoError(t, u.Run(ctx))
			require.Greater(t, w.registry.Asked(), 150)
			require.Less(t, w.registry.Asked(), 290)
		})
	})
}

// firstAsked notes when a registry was asked first.
type firstAsked struct {
	*backendtest.Registry
	at *time.Time
}

func (f firstAsked) As(updater.Logins) updater.Registry { return f }

func (f firstAsked) Resolve(ctx context.Context, ref string) (string, error) {
	if f.at.IsZero() {
		*f.at = time.Now()
	}
	return f.Registry.Resolve(ctx, ref)
}

func TestMinAgeCountsFromTheFirstPassThatSawIt(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.MinAge = 24 * time.Hour
		require.Equal(t, updater.TooYoung, w.web().Reason)
		time.Sleep(23 * time.Hour)
		r := w.web()
		require.Equal(t, updater.TooYoung, r.Reason)
		require.Equal(t, newDigest, r.Candidate.Digest)
		rows, err := w.check()
		require.NoError(t, err)
		require.Equal(t, updater.TooYoung, rows[0].Reason)
		time.Sleep(time.Hour)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
	})
}

func TestTheWindowIsHeededWhenTheTurnComes(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		var err error
		w.settings.Window, err = updater.ParseWindow("02:00-02:01 UTC")
		require.NoError(t, err)
		w.settings.Health.Stable = 5 * time.Minute
		w.run("a", backendtest.Good)
		u, _ := w.process(0)
		rules := w.rules()
		rules.Parallel = 1
		u.Reload(rules)
		rows, err := u.Once(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, updater.OutsideWindow, rows[0].Reason)
		time.Sleep(2 * time.Hour)
		rows, err = u.Once(t.Context(), nil)
		require.NoError(t, err)
		require.ElementsMatch(t, []updater.Reason{updater.Update, updater.OutsideWindow}, []updater.Reason{rows[0].Reason, rows[1].Reason})
		require.Len(t, w.history(), 1, "the change under way is carried to its end")
	})
}

func TestATagsPolicyMovesTheTag(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.settings.Policy = policy.Spec{Policy: "minor"}
		w.host.Remove("web")
		w.host.Run("web", "web:1.0", oldDigest, "always")
		w.registry.Publish("web:1.0", oldDigest)
		w.registry.Publish("web:1.1", newDigest)
		w.registry.Publish("web:2.0", newDigest)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		web, _ := w.find("web")
		require.Equal(t, "web:1.1", web.Ref)
		require.Equal(t, updater.UpToDate, w.web().Reason)

		w.settings.Write = updater.WriteDigest
		const third = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
		w.host.Image(third, backendtest.Good)
		w.registry.Publish("web:1.1", third)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
		web, _ = w.find("web")
		require.Equal(t, "web:1.1@"+third, web.Ref)
		require.Equal(t, updater.UpToDate, w.web().Reason, "what updaterd wrote is no pin")
		w.registry.Publish("web:1.2", newDigest)
		require.Equal(t, updater.OutcomeCommitted, w.web().Outcome)
	})
}

// TestContainersThatComeAndGo under ever new names are not remembered for ever.
func TestContainersThatComeAndGo(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		w.registry.Publish("job:1", oldDigest)
		_, stop := w.daemon()
		job := 0
		heap := func(passes int) int {
			for range passes {
				w.host.Remove(fmt.Sprintf("job%d", job))
				job++
				w.host.Run(fmt.Sprintf("job%d", job), "job:1", oldDigest, "no")
				time.Sleep(time.Minute)
			}
			synctest.Wait()
			var m runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int(m.HeapAlloc)
		}
		before := heap(500)
		after := heap(3000)
		stop()
		require.Less(t, after-before, 100<<10, "bytes of heap more after 3000 passes")
	})
}

// spoken is a log that keeps what was said of decisions.
type spoken struct {
	slog.Handler
	mu  sync.Mutex
	all []string
}

func (s *spoken) Handle(_ context.Context, r slog.Record) error {
	if r.Message != "decided" {
		return nil
	}
	line := r.Level.String()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "workload" {
			line += " " + a.Value.String()
		}
		return true
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, line)
	return nil
}

func (s *spoken) Enabled(context.Context, slog.Level) bool { return true }
func (s *spoken) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *spoken) take() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, s.all = s.all, nil
	return all
}

// TestWhatCanNeverBeUpdatedIsAWarning, once for each fault and not in each pass.
func TestWhatCanNeverBeUpdatedIsAWarning(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		log := &spoken{}
		u := updater.New([]updater.Place{{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: &backendtest.State{Disk: w.disk}}}, w.rules(), slog.New(log))
		var fault atomic.Pointer[error]
		faulty := func(text string) {
			err := errors.New(text)
			fault.Store(&err)
		}
		faulty("polcy: is not a setting")
		rules := w.rules()
		rules.Settings = func(updater.Workload) (updater.Settings, error) {
			if err := fault.Load(); err != nil {
				return updater.Settings{}, *err
			}
			return w.settings, nil
		}
		w.settings.Mode = updater.ModeMonitor
		u.Reload(rules)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		look := func() []string {
			for range 2 {
				u.Look()
				synctest.Wait()
			}
			return log.take()
		}
		require.Equal(t, []string{"WARN invalid-settings polcy: is not a setting"}, look())
		require.Empty(t, look())
		faulty("mode: is no mode")
		require.Equal(t, []string{"WARN invalid-settings mode: is no mode"}, look(), "another fault")
		fault.Store(nil)
		require.Equal(t, []string{"INFO monitor web:1 is there; its mode is monitor, so it is not touched"}, look())
		cancel()
		require.NoError(t, <-ended)
	})
}

package updater_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// newGroup is a world with one group: box and app live in the network of vpn.
// An image that does not behave at all is no update.
func newGroup(t *testing.T, vpn, app, box backendtest.Behaviour) *world {
	w := newWorld(t, backendtest.Good)
	w.host.Remove("web")
	w.run("vpn", vpn)
	w.run("app", app, "vpn")
	w.run("box", box, "vpn")
	return w
}

func inGroup(t *testing.T, vpn, app, box backendtest.Behaviour, play func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { play(t, newGroup(t, vpn, app, box)) })
}

// groupHolds checks the promise for a group: three containers, each as it was
// configured, running, in what it lives in, and started after that. updated are
// those on their new images.
func (w *world) groupHolds(msg string, updated ...string) {
	w.t.Helper()
	w.groupStands(msg)
	for _, c := range w.host.Containers() {
		want := oldDigest
		if slices.Contains(updated, c.Name) {
			want = newOf(c.Name)
		}
		require.Equal(w.t, want, c.Digest, "%s: %s", msg, c.Name)
	}
}

// groupStands is groupHolds for whatever images.
func (w *world) groupStands(msg string) {
	w.t.Helper()
	all := w.host.Containers()
	require.Len(w.t, all, 3, "%s: left over: %v", msg, all)
	for i, name := range []string{"app", "box", "vpn"} {
		c := all[i]
		require.Equal(w.t, name, c.Name, msg)
		require.True(w.t, c.Running, "%s: %s does not run", msg, name)
		require.False(w.t, c.Cut, "%s: %s lives in what has ended", msg, name)
		require.Equal(w.t, "always", c.Restart, "%s: %s", msg, name)
		require.Equal(w.t, "config of "+name, c.Config, "%s: %s", msg, name)
		var uses []string
		if name != "vpn" {
			uses = []string{"vpn"}
		}
		require.Equal(w.t, uses, c.Uses, "%s: %s", msg, name)
	}
	open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
	require.NoError(w.t, err)
	require.Empty(w.t, open, "%s: changes left open", msg)
}

func (w *world) digests() (digests []string) {
	for _, c := range w.host.Containers() {
		if !strings.Contains(c.Name, ".updaterd-") {
			digests = append(digests, c.Digest)
		}
	}
	return digests
}

// groupTold checks what history and notifications say, once each, as "event
// workload".
func (w *world) groupTold(want ...string) {
	w.t.Helper()
	all, err := (&backendtest.State{Disk: w.disk}).History(context.Background(), 0)
	require.NoError(w.t, err)
	var history, notified []string
	for _, e := range slices.Backward(all) {
		history = append(history, string(e.Event)+" "+strings.TrimPrefix(e.Workload, "local/"))
	}
	for _, e := range w.notified.all() {
		notified = append(notified, string(e.Event)+" "+strings.TrimPrefix(e.Workload, "local/"))
	}
	require.Equal(w.t, want, history, "history")
	require.Equal(w.t, want, notified, "notifications")
}

// TestCrashOfAGroupAtEveryStep is TestCrashAtEveryStep for a group of three, of
// which two have an update: one is good, and the other behaves in every way.
// Afterwards all are on their new images or all are as they were, and what was
// not to blame is carried once the other is known to be bad. The first death
// comes at every step for a good and a bad image, with the journal kept, and at
// every seventh for the rest.
func TestCrashOfAGroupAtEveryStep(t *testing.T) {
	for behaviour, every := range map[backendtest.Behaviour]int{
		backendtest.Good: 37, backendtest.Exits: 71, backendtest.PortTaken: 101, backendtest.CannotPull: 61,
		backendtest.Unhealthy: 101, backendtest.CannotStart: 101, backendtest.OOM: 101,
		backendtest.Crashes: 101, backendtest.TurnsSick: 101, backendtest.Hangs: 151, backendtest.Flaps: 151,
	} {
		for i, part := range []string{"vpn", "app"} {
			for _, lost := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s of %s, journal lost %v", behaviour, part, lost), func(t *testing.T) {
					t.Parallel()
					stride := 7
					if !lost && (behaviour == backendtest.Good || behaviour == backendtest.Exits) {
						stride = 1
					}
					if behaviour == backendtest.Hangs || behaviour == backendtest.Flaps {
						stride = 31 // many looks
					}
					first, scenarios := 1+i%stride, 0
					for more := true; more; first += stride {
						more = false
						for second := 1 + first%every; ; second += every {
							died, again := crashGroupTwice(t, part, behaviour, first, second, lost)
							scenarios++
							more = more || died
							if !died || !again {
								break
							}
						}
					}
					require.Greater(t, first, 8, "the crashes must have come somewhere")
					t.Logf("%d scenarios", scenarios)
				})
			}
		}
	}
}

// crashGroupTwice reports whether the first and the second process came to die.
func crashGroupTwice(t *testing.T, part string, b backendtest.Behaviour, first, second int, lost bool) (died, again bool) {
	images := map[string]backendtest.Behaviour{"vpn": backendtest.Good, "app": backendtest.Good}
	images[part] = b
	fellow := map[string]string{"vpn": "app", "app": "vpn"}[part]
	inGroup(t, images["vpn"], images["app"], "", func(t *testing.T, w *world) {
		u, d := w.process(first)
		_, _ = u.Once(t.Context(), nil)
		died = d.dead
		if lost {
			w.disk.Lose()
		}
		u, d2 := w.process(second)
		_, _ = u.Once(t.Context(), nil)
		again = d2.dead
		if lost {
			w.disk.Lose()
		}
		when := fmt.Sprintf("died at %d: %s, then at %d: %s", first, d.what, second, d2.what)
		// A change that is put back leaves all as it found them.
		var before []string
		w.on = func(what string, done bool) {
			switch {
			case done && strings.HasPrefix(what, "save preparing"):
				before = w.digests()
			case !done && strings.HasPrefix(what, "save restored") && before != nil:
				require.Equal(t, before, w.digests(), when)
			}
		}
		for range 3 { // a pass that was refused anew, or blamed one of two, may have to come first
			w.once()
			w.groupStands(when)
			if b != backendtest.Good {
				c, _ := w.find(part)
				require.Equal(t, oldDigest, c.Digest, "%s: a bad image stays on %s", when, part)
			}
		}
		switch b {
		case backendtest.Good:
			w.groupHolds(when, "vpn", "app")
		case backendtest.PortTaken, backendtest.CannotPull:
			w.groupHolds(when)
		default:
			w.groupHolds(when, fellow)
		}
		if lost {
			return
		}
		m, other, along := w.record("local/"+part), w.record("local/"+fellow), w.record("local/box")
		require.Empty(t, along.Rejected, "%s: the image that it kept", when)
		require.Nil(t, along.Retry, when)
		require.Zero(t, along.Committed, when)
		require.Empty(t, other.Rejected, "%s: %s is not to blame", when, fellow)
		switch b {
		case backendtest.Good:
			require.Equal(t, newOf(part), m.Committed.Digest, when)
			require.Equal(t, newOf(fellow), other.Committed.Digest, when)
			require.Empty(t, m.Rejected, when)
			require.Nil(t, m.Retry, when)
		case backendtest.PortTaken, backendtest.CannotPull:
			require.Empty(t, m.Rejected, when)
			for _, r := range []*updater.Retry{m.Retry, other.Retry} {
				require.NotNil(t, r, when)
				require.Equal(t, 1, r.Attempts, when)
			}
		default:
			require.Len(t, m.Rejected, 1, when)
			require.Equal(t, newOf(part), m.Rejected[0].Digest, when)
			require.Equal(t, newOf(fellow), other.Committed.Digest, when)
		}
	})
	return died, again
}

// TestOutcomesOfAGroup has a row for every way in which a change of several
// parts can end.
func TestOutcomesOfAGroup(t *testing.T) {
	const good, none = backendtest.Good, backendtest.Behaviour("")
	hook := func(command string) updater.Hook {
		return updater.Hook{Command: []string{command}, Timeout: time.Minute}
	}
	test := func(command string) func(*world) {
		return func(w *world) {
			w.settings.Health.Test = updater.Test{Image: "smoke:1", Command: []string{command}, Timeout: 30 * time.Second}
		}
	}
	tests := []struct {
		name          string
		vpn, app, box backendtest.Behaviour
		world         func(w *world)
		outcome       updater.Outcome // of vpn
		detail        string
		updated       []string
		told          []string
		rejected      []string
		postponed     []string
		ran           []string
	}{
		{name: "those that live in what is updated are made anew on their images", vpn: good, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn"}, told: []string{"updated vpn", "recreated app", "recreated box"}},
		{name: "updates of several are one change", vpn: good, app: good, box: good, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn", "app", "box"}, told: []string{"updated vpn", "updated app", "updated box"}},
		{name: "a slow part is waited for", vpn: backendtest.Slow, app: backendtest.Slow, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn", "app"}, told: []string{"updated vpn", "updated app", "recreated box"}},
		{name: "one bad part brings all back, and is alone to blame", vpn: good, app: backendtest.Unhealthy, outcome: updater.OutcomeRestored,
			detail: "local/app: its health check fails", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"app"}},
		{name: "the other bad part too", vpn: backendtest.Exits, app: good, outcome: updater.OutcomeRestored,
			detail: "local/vpn: it exited", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"vpn"}},
		{name: "one that ends again and again is to blame, and not what ends with it", vpn: backendtest.Loops, app: good, outcome: updater.OutcomeRestored,
			detail: "local/vpn: it was restarted 3 times", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"vpn"}},
		{name: "one that turns sick when the others are well", vpn: good, app: good, box: backendtest.TurnsSick, outcome: updater.OutcomeRestored,
			detail: "local/box: its health check fails", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"box"}},
		{name: "one that never gets well is waited for when the others are", vpn: good, app: backendtest.Hangs, outcome: updater.OutcomeRestored,
			detail: "local/app: its health check has not passed yet", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"app"}},
		{name: "one that cannot start", vpn: good, app: backendtest.CannotStart, box: good, outcome: updater.OutcomeRestored,
			detail: "no such file", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"app"}},
		{name: "one whose port is taken puts all off", vpn: good, app: backendtest.PortTaken, outcome: updater.OutcomeRestored,
			detail: "port is already allocated", told: []string{"restored vpn", "restored app", "restored box"}, postponed: []string{"vpn", "app"}},
		{name: "one that cannot be pulled puts all off, and nothing is disturbed", vpn: good, app: backendtest.CannotPull, outcome: updater.OutcomeNone,
			detail: "cannot be pulled", told: []string{"refused vpn", "refused app", "refused box"}, postponed: []string{"vpn", "app"}},
		{name: "one that is the same, as pulling shows, moves along", vpn: good, app: backendtest.Same, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn", "app"}, told: []string{"updated vpn", "updated app", "recreated box"}},
		{name: "all the same, as pulling shows, is nothing to tell", vpn: backendtest.Same, app: backendtest.Same, outcome: updater.OutcomeNone,
			detail: "is the same"},
		{name: "a part that kept its image is not to blame, so all that changed are", vpn: good, app: good,
			world: func(w *world) { w.sickenWhenMoved("box") }, outcome: updater.OutcomeRestored,
			detail: "local/box: its health check fails", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"app", "vpn"}},
		{name: "one that was not well before, and keeps its image, speaks against nobody", vpn: good,
			world: func(w *world) { w.host.Image(oldDigest, backendtest.Unhealthy) }, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn"}, told: []string{"updated vpn", "recreated app", "recreated box"}},

		{name: "hooks run in every part, in order", vpn: good, app: good,
			world: func(w *world) { w.settings.PreUpdate, w.settings.PostUpdate = hook("backup"), hook("migrate") }, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn", "app"}, told: []string{"updated vpn", "updated app", "recreated box"},
			ran: []string{"old vpn: backup", "old app: backup", "old box: backup", "new vpn: migrate", "new app: migrate", "new box: migrate"}},
		{name: "a failing pre-update cancels for all", vpn: good, app: good, world: func(w *world) { w.settings.PreUpdate = hook("false") }, outcome: updater.OutcomeNone,
			detail: "local/vpn: pre-update failed with exit code 1: no", told: []string{"refused vpn", "refused app", "refused box"}, postponed: []string{"vpn", "app"}, ran: []string{"old vpn: false"}},
		{name: "a failing post-update condemns its part", vpn: good, app: good, world: func(w *world) { w.settings.PostUpdate = hook("false") }, outcome: updater.OutcomeRestored,
			detail: "local/vpn: post-update failed with exit code 1: no", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"vpn"}, ran: []string{"new vpn: false"}},
		{name: "the test runs for every part, after the gate and before post-update", vpn: good, app: good,
			world: func(w *world) { test("look")(w); w.settings.PostUpdate = hook("migrate") }, outcome: updater.OutcomeCommitted,
			updated: []string{"vpn", "app"}, told: []string{"updated vpn", "updated app", "recreated box"},
			ran: []string{"test vpn: smoke:1 look", "test app: smoke:1 look", "test box: smoke:1 look", "new vpn: migrate", "new app: migrate", "new box: migrate"}},
		{name: "a bad part gets no test", vpn: good, app: backendtest.Exits, world: test("look"), outcome: updater.OutcomeRestored,
			told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"app"}},
		{name: "a failing test condemns its part", vpn: good, app: good, world: test("false"), outcome: updater.OutcomeRestored,
			detail: "local/vpn: health.test failed with exit code 1: no", told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"vpn"}, ran: []string{"test vpn: smoke:1 false"}},
		{name: "a test that cannot be run blames nobody", vpn: good, app: good, world: test("broken"), outcome: updater.OutcomeRestored,
			detail: "local/vpn: health.test could not be run: the engine cannot run it", told: []string{"restored vpn", "restored app", "restored box"}, postponed: []string{"vpn", "app"}, ran: []string{"test vpn: smoke:1 broken"}},

		{name: "what was unhealthy before is restored when it is back", vpn: backendtest.Exits, world: func(w *world) { w.host.Image(oldDigest, backendtest.Unhealthy) },
			outcome: updater.OutcomeRestored, told: []string{"restored vpn", "restored app", "restored box"}, rejected: []string{"vpn"}},
		{name: "one that was healthy and is not when it is back has failed", vpn: backendtest.Exits, world: func(w *world) {
			w.on = func(what string, done bool) {
				if what == "start old vpn" {
					w.host.Image(oldDigest, backendtest.Unhealthy)
				}
			}
		}, outcome: updater.OutcomeFailed, detail: "it is back but not healthy as it had been: local/vpn: its health check fails",
			told: []string{"failed vpn", "failed app", "failed box"}, rejected: []string{"vpn"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inGroup(t, tt.vpn, tt.app, tt.box, func(t *testing.T, w *world) {
				if tt.world != nil {
					tt.world(w)
				}
				rows := w.once()
				r := w.row(rows, "local/vpn")
				require.Equal(t, tt.outcome, r.Outcome, r.Detail)
				require.Contains(t, r.Detail, tt.detail)
				for name, b := range map[string]backendtest.Behaviour{"app": tt.app, "box": tt.box} {
					if b != none {
						require.Equal(t, tt.outcome, w.row(rows, "local/"+name).Outcome, "what moves together ends together")
					}
				}
				w.groupHolds("afterwards", tt.updated...)
				w.groupTold(tt.told...)
				require.Equal(t, tt.ran, w.host.Ran())
				var rejected, postponed []string
				for _, name := range []string{"vpn", "app", "box"} {
					m := w.record("local/" + name)
					for _, rejection := range m.Rejected {
						require.Equal(t, newOf(name), rejection.Digest)
						rejected = append(rejected, name)
					}
					if m.Retry != nil {
						postponed = append(postponed, name)
					}
					if slices.Contains(tt.updated, name) {
						require.Equal(t, newOf(name), m.Committed.Digest)
					} else {
						require.Zero(t, m.Committed)
					}
				}
				require.ElementsMatch(t, tt.rejected, rejected, "rejected")
				require.Equal(t, tt.postponed, postponed, "postponed")
			})
		})
	}
}

// sickenWhenMoved turns the image that a container keeps unhealthy once it was
// made anew, and well again for what is put back.
func (w *world) sickenWhenMoved(name string) {
	w.on = func(what string, done bool) {
		switch {
		case what == "start "+name && !done:
			w.host.Image(oldDigest, backendtest.Unhealthy)
		case what == "stop new "+name && !done:
			w.host.Image(oldDigest, backendtest.Good)
		}
	}
}

// settingsOf gives containers settings of their own, by name.
func (w *world) settingsOf(own map[string]func(*updater.Settings)) updater.Rules {
	rules := w.rules()
	rules.Settings = func(x updater.Workload) (updater.Settings, error) {
		s := w.settings
		if edit := own[x.Name]; edit != nil {
			edit(&s)
		}
		if s.Mode == "odd" {
			return updater.Settings{}, fmt.Errorf("label updaterd.mode: no such mode")
		}
		return s, nil
	}
	return rules
}

func (w *world) onceBy(rules updater.Rules, names ...string) []updater.Row {
	w.t.Helper()
	u, _ := w.process(0)
	u.Reload(rules)
	rows, err := u.Once(context.Background(), names)
	require.NoError(w.t, err)
	return rows
}

func (w *world) checkBy(rules updater.Rules, names ...string) []updater.Row {
	w.t.Helper()
	u, _ := w.process(0)
	u.Reload(rules)
	rows, err := u.Check(context.Background(), names)
	require.NoError(w.t, err)
	return rows
}

// TestOneThatMustStayKeepsItsGroup: what must move along and must not is named.
func TestOneThatMustStayKeepsItsGroup(t *testing.T) {
	mode := func(m updater.Mode) func(*updater.Settings) {
		return func(s *updater.Settings) { s.Mode = m }
	}
	tests := []struct {
		name   string
		app    func(*updater.Settings)
		world  func(w *world)
		reason updater.Reason
		detail string
	}{
		{name: "one with the mode hold", app: mode(updater.ModeHold), reason: updater.Held, detail: "local/app, which must move along, has the mode hold"},
		{name: "one with the mode monitor", app: mode(updater.ModeMonitor), reason: updater.Monitor, detail: "local/app, which must move along, has the mode monitor"},
		{name: "one with settings that mean nothing", app: mode("odd"), reason: updater.InvalidSettings, detail: "local/app, which must move along, has settings that cannot be used: label updaterd.mode"},
		{name: "one outside of its window", app: func(s *updater.Settings) { s.Window, _ = updater.ParseWindow("03:00-03:01 UTC") },
			reason: updater.OutsideWindow, detail: "local/app, which must move along, has the window"},
		{name: "one that a person holds", world: func(w *world) {
			hold := func(m *updater.Record) { m.Hold = &updater.Word{Why: "exams", At: time.Now()} }
			_ = (&backendtest.State{Disk: w.disk}).Remember(context.Background(), map[string]func(*updater.Record){"local/app": hold})
		}, reason: updater.Held, detail: "local/app, which must move along, is held since 2000-01-01T00:00:00Z: exams"},
		{name: "one that nobody watches moves along", app: func(s *updater.Settings) { s.Enabled = false }},
		{name: "but not if it has the mode hold", app: func(s *updater.Settings) { s.Enabled, s.Mode = false, updater.ModeHold },
			reason: updater.Held, detail: "local/app, which must move along, has the mode hold"},
		{name: "one whose updates want an approval moves along", app: mode(updater.ModeApprove)},
		{name: "one whose updates must be older moves along", app: func(s *updater.Settings) { s.MinAge = time.Hour }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inGroup(t, backendtest.Good, "", "", func(t *testing.T, w *world) {
				if tt.world != nil {
					tt.world(w)
				}
				rules := w.settingsOf(map[string]func(*updater.Settings){"app": tt.app})
				if tt.reason == "" {
					require.Equal(t, updater.Update, w.row(w.checkBy(rules), "local/vpn").Reason)
					require.Equal(t, updater.OutcomeCommitted, w.row(w.onceBy(rules), "local/vpn").Outcome)
					w.groupHolds("afterwards", "vpn")
					return
				}
				for _, rows := range [][]updater.Row{w.checkBy(rules), w.onceBy(rules)} {
					r := w.row(rows, "local/vpn")
					require.Equal(t, "none", r.Decision)
					require.Equal(t, tt.reason, r.Reason, r.Detail)
					require.Contains(t, r.Detail, tt.detail)
				}
				w.groupHolds("afterwards")
				w.groupTold()
			})
		})
	}
}

// TestAWordAboutWhatMovesAlongIsHeardWhenItsTurnComes, however late that is.
func TestAWordAboutWhatMovesAlongIsHeardWhenItsTurnComes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		happen func(w *world)
		reason updater.Reason
		detail string
	}{
		{"a hold", func(w *world) {
			hold := func(m *updater.Record) { m.Hold = &updater.Word{Why: "exams", At: time.Now()} }
			_ = (&backendtest.State{Disk: w.disk}).Remember(context.Background(), map[string]func(*updater.Record){"local/app": hold})
		}, updater.Held, "local/app, which must move along, is held"},
		{"another in its place", func(w *world) {
			w.host.Remove("app")
			w.host.Run("app", "theirs:9", oldDigest, "always", "vpn")
		}, updater.InProgress, "somebody changed local/app since"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inGroup(t, backendtest.Good, "", "", func(t *testing.T, w *world) {
				w.run("another", backendtest.Good)
				w.registry.Delay("vpn:1", time.Second) // another goes first
				rules := w.rules()
				rules.Parallel = 1
				w.on = func(what string, done bool) {
					if what == "save judging" && done {
						w.on = nil
						tt.happen(w)
					}
				}
				rows := w.onceBy(rules)
				require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/another").Outcome)
				r := w.row(rows, "local/vpn")
				require.Equal(t, tt.reason, r.Reason, r.Detail)
				require.Contains(t, r.Detail, tt.detail)
				require.Equal(t, updater.OutcomeNone, r.Outcome)
				vpn, _ := w.find("vpn")
				require.Equal(t, oldDigest, vpn.Digest)
			})
		})
	}
}

// TestTeams: whose updates move something in common are one change, and others
// are not.
func TestTeams(t *testing.T) {
	changes := func(w *world) (all [][]string) {
		w.t.Helper()
		entries, err := (&backendtest.State{Disk: w.disk}).History(context.Background(), 0)
		require.NoError(w.t, err)
		byID := map[string][]string{}
		for _, e := range entries {
			byID[e.Change] = append(byID[e.Change], strings.TrimPrefix(e.Workload, "local/")+" "+string(e.Event))
		}
		for _, c := range byID {
			slices.Sort(c)
			all = append(all, c)
		}
		slices.SortFunc(all, slices.Compare)
		return all
	}
	t.Run("siblings that share only what they live in are separate", func(t *testing.T) {
		inGroup(t, "", backendtest.Good, backendtest.Exits, func(t *testing.T, w *world) {
			vpn, _ := w.find("vpn")
			rows := w.once()
			require.Equal(t, updater.OutcomeCommitted, w.row(rows, "local/app").Outcome)
			require.Equal(t, updater.OutcomeRestored, w.row(rows, "local/box").Outcome)
			require.Equal(t, [][]string{{"app updated"}, {"box restored"}}, changes(w))
			w.groupHolds("afterwards", "app")
			still, _ := w.find("vpn")
			require.Equal(t, vpn, still, "nobody touched it")
		})
	})
	t.Run("one with two to live in brings them together", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("a", backendtest.Good)
			w.run("b", backendtest.Good)
			w.run("c", "", "a", "b")
			w.once()
			require.Equal(t, [][]string{{"a updated", "b updated", "c recreated"}, {"web updated"}}, changes(w))
		})
	})
	t.Run("what must be restarted only is", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("tail", "")
			w.host.Follow("tail", "web")
			before, _ := w.find("tail")
			w.settings.PostUpdate = updater.Hook{Command: []string{"migrate"}, Timeout: time.Minute}
			w.settings.Health.Test = updater.Test{Image: "smoke:1", Timeout: time.Minute}
			w.once()
			require.Equal(t, [][]string{{"tail restarted", "web updated"}}, changes(w))
			require.Equal(t, []string{"test web: smoke:1", "new web: migrate"}, w.host.Ran(), "hooks and tests are for what is replaced")
			after, _ := w.find("tail")
			require.Equal(t, before.ID, after.ID)
			require.Greater(t, after.Begun, before.Begun, "it was started anew")
			require.False(t, after.Cut)
		})
	})
	t.Run("and so is what follows and has an update of its own, in one change", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("tail", backendtest.Good)
			w.host.Follow("tail", "web")
			w.once()
			require.Equal(t, [][]string{{"tail updated", "web updated"}}, changes(w))
		})
	})
	t.Run("what was restarted for a bad one is restarted for the one put back", func(t *testing.T) {
		inWorld(t, backendtest.Unhealthy, func(t *testing.T, w *world) {
			w.run("tail", "")
			w.host.Follow("tail", "web")
			w.once()
			require.Equal(t, [][]string{{"tail restored", "web restored"}}, changes(w))
			tail, _ := w.find("tail")
			require.False(t, tail.Cut)
		})
	})
	t.Run("what did not run is not started", func(t *testing.T) {
		for b, outcome := range map[backendtest.Behaviour]updater.Outcome{backendtest.Good: updater.OutcomeCommitted, backendtest.Unhealthy: updater.OutcomeRestored} {
			inGroup(t, b, "", "", func(t *testing.T, w *world) {
				w.host.Stop("box")
				require.Equal(t, outcome, w.row(w.once(), "local/vpn").Outcome)
				box, _ := w.find("box")
				require.False(t, box.Running)
				require.Equal(t, []string{"vpn"}, box.Uses)
				require.Len(t, w.host.Containers(), 3)
			})
		}
	})
	t.Run("a circle is a mistake", func(t *testing.T) {
		inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
			w.run("a", backendtest.Good)
			w.host.Follow("a", "web")
			w.host.Follow("web", "a")
			for _, rows := range [][]updater.Row{w.checkBy(w.rules()), w.once()} {
				for _, id := range []string{"local/a", "local/web"} {
					require.Equal(t, updater.InvalidSettings, w.row(rows, id).Reason)
					require.Contains(t, w.row(rows, id).Detail, "they need each other")
				}
			}
			w.told()
		})
	})
	t.Run("one that is named alone goes without what it lives in", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Good, backendtest.Good, func(t *testing.T, w *world) {
			rows := w.onceBy(w.rules(), "app")
			require.Len(t, rows, 1)
			require.Equal(t, updater.OutcomeCommitted, rows[0].Outcome)
			w.groupHolds("afterwards", "app")
			require.Equal(t, [][]string{{"app updated"}}, changes(w))
		})
	})
	t.Run("those that live in one that is named alone keep their images", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Good, backendtest.Good, func(t *testing.T, w *world) {
			rows := w.onceBy(w.rules(), "vpn")
			require.Len(t, rows, 1)
			w.groupHolds("afterwards", "vpn")
			require.Equal(t, [][]string{{"app recreated", "box recreated", "vpn updated"}}, changes(w))
		})
	})
	t.Run("one that is refused when the turn of its team comes holds back all", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Good, "", func(t *testing.T, w *world) {
			w.run("another", backendtest.Good)
			w.registry.Delay("vpn:1", time.Second)
			rules := w.rules()
			rules.Parallel = 1
			w.on = func(what string, done bool) {
				if what == "save judging" && done {
					w.on = nil
					hold := func(m *updater.Record) { m.Hold = &updater.Word{Why: "exams", At: time.Now()} }
					_ = (&backendtest.State{Disk: w.disk}).Remember(context.Background(), map[string]func(*updater.Record){"local/vpn": hold})
				}
			}
			rows := w.onceBy(rules)
			for _, id := range []string{"local/app", "local/vpn"} {
				require.Equal(t, updater.Held, w.row(rows, id).Reason)
				require.Equal(t, updater.OutcomeNone, w.row(rows, id).Outcome)
			}
			require.Equal(t, [][]string{{"another updated"}}, changes(w))
		})
	})
	t.Run("one of which a change is under way holds back the group", func(t *testing.T) {
		inGroup(t, "", backendtest.Slow, "", func(t *testing.T, w *world) {
			_, stop := w.daemon()
			time.Sleep(20 * time.Second) // app is being judged
			w.host.Image(newOf("vpn"), backendtest.Good)
			w.registry.Publish("vpn:1", newOf("vpn"))
			rows, err := w.check("vpn")
			require.NoError(t, err)
			require.Equal(t, updater.InProgress, rows[0].Reason, "as a pass would say")
			time.Sleep(5 * time.Minute)
			stop()
			require.Equal(t, [][]string{{"app recreated", "box recreated", "vpn updated"}, {"app updated"}}, changes(w))
			w.groupHolds("afterwards", "vpn", "app")
		})
	})
}

// TestDependsOnOfTeams: depends-on is heeded between changes of several parts,
// and means nothing inside of one.
func TestDependsOnOfTeams(t *testing.T) {
	needs := func(w *world, on map[string][]string) updater.Rules {
		own := map[string]func(*updater.Settings){}
		for name, list := range on {
			own[name] = func(s *updater.Settings) { s.DependsOn = list }
		}
		return w.settingsOf(own)
	}
	t.Run("inside of a change it is no wait", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Good, "", func(t *testing.T, w *world) {
			rules := needs(w, map[string][]string{"app": {"vpn"}})
			for _, r := range w.checkBy(rules) {
				require.NotEqual(t, updater.Waiting, r.Reason, r)
			}
			w.onceBy(rules)
			w.groupHolds("afterwards", "vpn", "app")
		})
	})
	t.Run("a whole team waits for what one of it depends on", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Good, "", func(t *testing.T, w *world) {
			w.run("db", backendtest.Slow)
			rules := needs(w, map[string][]string{"vpn": {"db"}})
			rows := w.checkBy(rules)
			for _, id := range []string{"local/app", "local/vpn"} {
				require.Equal(t, updater.Waiting, w.row(rows, id).Reason)
				require.Equal(t, "local/db, which it depends on, comes first", w.row(rows, id).Detail)
			}
			w.onceBy(rules)
			w.groupTold("updated db", "updated vpn", "updated app", "recreated box")
		})
	})
	t.Run("what depends on one of a team waits for the whole", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Exits, "", func(t *testing.T, w *world) {
			w.run("db", backendtest.Good)
			rules := needs(w, map[string][]string{"db": {"vpn"}})
			rows := w.onceBy(rules)
			require.Equal(t, updater.Waiting, w.row(rows, "local/db").Reason, "vpn was put back")
		})
	})
	t.Run("a circle of two teams is a mistake of both, and holds up nobody else", func(t *testing.T) {
		inGroup(t, backendtest.Good, backendtest.Good, "", func(t *testing.T, w *world) {
			w.run("db", backendtest.Good)
			w.run("else", backendtest.Good)
			w.run("after", backendtest.Good)
			rules := needs(w, map[string][]string{"vpn": {"db"}, "db": {"app"}, "after": {"db"}})
			for _, rows := range [][]updater.Row{w.checkBy(rules), w.onceBy(rules)} {
				for _, id := range []string{"local/app", "local/vpn", "local/db"} {
					require.Equal(t, updater.InvalidSettings, w.row(rows, id).Reason, id)
					require.Contains(t, w.row(rows, id).Detail, "it depends on itself")
				}
				require.Equal(t, updater.Waiting, w.row(rows, "local/after").Reason)
				require.Equal(t, updater.Update, w.row(rows, "local/else").Reason)
			}
			w.groupTold("updated else")
		})
	})
}

// TestWhatIsSaidOfWhatMovesAlong in the rows of a pass and in the history.
func TestWhatIsSaidOfWhatMovesAlong(t *testing.T) {
	inGroup(t, backendtest.Good, backendtest.Exits, "", func(t *testing.T, w *world) {
		w.once()
		all, err := (&backendtest.State{Disk: w.disk}).History(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, all, 3)
		for _, e := range all {
			require.Equal(t, "local/app: it exited with code 1", e.Why)
			if e.Workload == "local/app" {
				require.Equal(t, updater.Bad, e.Verdict)
				require.Equal(t, "cannot go on", e.Logs)
			} else {
				require.Empty(t, e.Verdict, "it is not to blame")
				require.Empty(t, e.Logs, "these are the lines of another")
			}
		}
		w.once()
		all, err = (&backendtest.State{Disk: w.disk}).History(t.Context(), 3)
		require.NoError(t, err)
		for _, e := range all {
			if e.Workload == "local/vpn" {
				require.Equal(t, updater.EventUpdated, e.Event)
			} else {
				require.Equal(t, updater.EventRecreated, e.Event)
				require.Equal(t, "along with local/vpn", e.Why)
				require.Equal(t, e.From, e.To)
			}
		}
	})
}

// TestAGroupAtEveryStep lets something happen at each step of a change of a group,
// good and bad, and looks what the next passes make of it.
func TestAGroupAtEveryStep(t *testing.T) {
	for _, tt := range []struct {
		name   string
		happen func(w *world, stop func())
		// stranger is what a person put in the place of one of them: it stays, and
		// what lives in it cannot be helped.
		stranger string
	}{
		{name: "updaterd is told to stop", happen: func(_ *world, stop func()) { stop() }},
		{name: "the lead is lost", happen: func(w *world, _ func()) { w.disk.Depose() }},
		{name: "the engine is away for ten seconds", happen: func(w *world, _ func()) {
			w.host.Down(true)
			time.AfterFunc(10*time.Second, func() { w.host.Down(false) })
		}},
		{name: "the power is cut", happen: func(w *world, _ func()) {
			w.host.Kill()
			time.AfterFunc(10*time.Second, w.host.Boot)
		}},
		{name: "the disk is full for a minute", happen: func(w *world, _ func()) {
			w.disk.SetFull(true)
			time.AfterFunc(time.Minute, func() { w.disk.SetFull(false) })
		}},
		{name: "the original of what they live in is pruned", happen: func(w *world, _ func()) { w.host.Remove("vpn.updaterd-old") }},
		{name: "the original of one of them is pruned", happen: func(w *world, _ func()) { w.host.Remove("app.updaterd-old") }},
		{name: "somebody replaces one of them", stranger: "box", happen: func(w *world, _ func()) {
			w.host.Remove("box")
			w.host.Run("box", "theirs:9", oldDigest, "no")
		}},
	} {
		for _, b := range []backendtest.Behaviour{backendtest.Good, backendtest.TurnsSick} {
			t.Run(fmt.Sprintf("%s, %s image", tt.name, b), func(t *testing.T) {
				t.Parallel()
				n := 1
				for more := true; more; n++ {
					inGroup(t, backendtest.Good, b, "", func(t *testing.T, w *world) {
						w.registry.Publish("theirs:9", oldDigest)
						ctx, stop := context.WithCancel(t.Context())
						defer stop()
						step, at := 0, ""
						w.on = func(what string, done bool) {
							if step++; step == n {
								at = fmt.Sprintf("at %d: %s (done: %v)", n, what, done)
								tt.happen(w, stop)
							}
						}
						u, _ := w.process(0)
						_, err := u.Once(ctx, nil)
						if !errors.Is(err, updater.ErrLost) {
							require.NoError(t, err, at)
						}
						more = at != ""
						w.on = nil
						for range 3 {
							time.Sleep(time.Hour + time.Minute) // what was unclear is tried again
							w.once()
						}
						if tt.stranger != "" && more {
							w.standsBeside(tt.stranger, at)
							return
						}
						switch b {
						case backendtest.Good:
							w.groupHolds(at, "vpn", "app")
						default:
							w.groupHolds(at, "vpn")
						}
					})
				}
				require.Greater(t, n, 40)
			})
		}
	}
}

// standsBeside checks that a stranger was left alone, and that the others run,
// each in what it lives in, all in their places.
func (w *world) standsBeside(stranger, when string) {
	w.t.Helper()
	for _, name := range []string{"app", "box", "vpn"} {
		c, ok := w.find(name)
		require.True(w.t, ok, "%s: %s", when, name)
		require.True(w.t, c.Running, "%s: %s", when, name)
		require.False(w.t, c.Cut, "%s: %s", when, name)
		require.Equal(w.t, name == stranger, c.Ref == "theirs:9", "%s: %s", when, name)
		require.Equal(w.t, map[bool]string{true: "no", false: "always"}[name == stranger], c.Restart, "%s: %s", when, name)
	}
	for _, c := range w.host.Containers() {
		if !slices.Contains([]string{"app", "box", "vpn"}, c.Name) {
			require.Equal(w.t, stranger+".updaterd-old", c.Name, "%s: only its original may be left", when)
			require.False(w.t, c.Running, when)
		}
	}
	open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
	require.NoError(w.t, err)
	require.Empty(w.t, open, when)
}

// TestAllThatIsBackIsVerified: one that only moved along too.
func TestAllThatIsBackIsVerified(t *testing.T) {
	inGroup(t, backendtest.Exits, "", "", func(t *testing.T, w *world) {
		const own = "sha256:own"
		w.host.Image(own, backendtest.Good)
		w.host.Remove("box")
		w.host.Run("box", "box:1", own, "always", "vpn")
		w.registry.Publish("box:1", own)
		w.on = func(what string, _ bool) {
			if what == "start old box" {
				w.host.Image(own, backendtest.Unhealthy)
			}
		}
		r := w.row(w.once(), "local/vpn")
		require.Equal(t, updater.OutcomeFailed, r.Outcome)
		require.Contains(t, r.Detail, "it is back but not healthy as it had been: local/box: its health check fails")
	})
}

// TestNoWorkloadIsPartOfTwoChanges, even where one waits so long that a later pass
// begins another.
func TestNoWorkloadIsPartOfTwoChanges(t *testing.T) {
	inGroup(t, backendtest.Good, "", "", func(t *testing.T, w *world) {
		w.run("db", backendtest.SlowPull)
		journal := &backendtest.State{Disk: w.disk}
		w.on = func(what string, done bool) {
			open, err := journal.Open(t.Context())
			require.NoError(t, err)
			in := map[string]string{}
			for _, c := range open {
				for _, p := range c.Parts {
					require.Empty(t, in[p.Workload], "%s is part of two changes", p.Workload)
					in[p.Workload] = c.ID
				}
			}
		}
		u, _ := w.process(0)
		u.Reload(w.settingsOf(map[string]func(*updater.Settings){"vpn": func(s *updater.Settings) { s.DependsOn = []string{"db"} }}))
		stop := w.background(u)
		time.Sleep(30 * time.Minute) // vpn waits for db
		w.host.Image(newOf("app"), backendtest.SlowPull)
		w.registry.Publish("app:1", newOf("app"))
		time.Sleep(45 * time.Minute) // db is over, app is under way
		vpn, _ := w.find("vpn")
		require.Equal(t, oldDigest, vpn.Digest)
		time.Sleep(time.Hour)
		stop()
		for _, name := range []string{"vpn", "app"} {
			c, _ := w.find(name)
			require.Equal(t, newOf(name), c.Digest, name)
		}
	})
}

// TestACheckNamesWhatMovesAlong: an update of one takes down those that share with it.
func TestACheckNamesWhatMovesAlong(t *testing.T) {
	inWorld(t, backendtest.Good, func(t *testing.T, w *world) {
		detail := func() string {
			rows, err := w.check("web")
			require.NoError(t, err)
			require.Equal(t, updater.Update, rows[0].Reason)
			return rows[0].Detail
		}
		require.NotContains(t, detail(), "along with it")
		w.run("side", "", "web")
		w.run("far", "", "side")
		w.run("other", "")
		require.Contains(t, detail(), "; along with it: local/side, local/far")
	})
}

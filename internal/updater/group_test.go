package updater_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

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
	w.notified.mu.Lock()
	defer w.notified.mu.Unlock()
	for _, e := range w.notified.entries {
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
// every third for the rest.
func TestCrashOfAGroupAtEveryStep(t *testing.T) {
	for behaviour, every := range map[backendtest.Behaviour]int{
		backendtest.Good: 7, backendtest.Exits: 19, backendtest.PortTaken: 29, backendtest.CannotPull: 17,
		backendtest.Unhealthy: 41, backendtest.CannotStart: 41, backendtest.OOM: 41,
		backendtest.Crashes: 41, backendtest.TurnsSick: 41, backendtest.Hangs: 61, backendtest.Flaps: 61,
	} {
		for i, part := range []string{"vpn", "app"} {
			for _, lost := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s of %s, journal lost %v", behaviour, part, lost), func(t *testing.T) {
					t.Parallel()
					stride := 3
					if !lost && (behaviour == backendtest.Good || behaviour == backendtest.Exits) {
						stride = 1
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

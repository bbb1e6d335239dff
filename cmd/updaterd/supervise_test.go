package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
)

func TestStatusLine(t *testing.T) {
	at := time.Date(2026, 3, 1, 4, 0, 0, 0, time.UTC)
	seen := func(edit func(*updater.Sight)) updater.Glance {
		s := updater.Sight{Backend: "local", Looked: true, Watched: 12, LastPass: at, NextPass: at.Add(time.Hour)}
		edit(&s)
		return updater.Glance{Ready: true, Places: []updater.Sight{s}}
	}
	for want, c := range map[string]struct {
		glance   updater.Glance
		refused  error
		stopping bool
	}{
		"starting": {},
		"local is " + server.PausedSince(updater.Word{Who: "ann", At: at}) + "; 12 workloads watched, 0 with an update; next pass at 2026-03-01 05:00:00 UTC": {
			glance: seen(func(s *updater.Sight) { s.Paused = &updater.Word{Who: "ann", At: at} }),
		},
		"12 workloads watched, 0 with an update; next pass at 2026-03-01 05:00:00 UTC": {
			glance: seen(func(*updater.Sight) {}),
		},
		"12 workloads watched, 2 with an update; changing a, b, c and 1 more; next pass at 2026-03-01 05:00:00 UTC": {
			glance: seen(func(s *updater.Sight) { s.Updates, s.Changing = 2, []string{"a", "b", "c", "d"} }),
		},
		"local cannot be asked: no such socket; 12 workloads watched, 0 with an update; next pass at 2026-03-01 05:00:00 UTC": {
			glance: seen(func(s *updater.Sight) { s.Trouble = errors.New("no such\nsocket") }),
		},
		"next pass at 2026-03-01 05:00:00 UTC; CONFIGURATION REFUSED, the old one stays: f:1: policy: no": {
			glance:  seen(func(s *updater.Sight) { s.LastPass = time.Time{} }),
			refused: errors.New("f:1: policy: no"),
		},
		"standing by while another process finishes the update of updaterd itself": {
			glance: updater.Glance{Ready: true, StandingBy: true},
		},
		"stopping": {glance: seen(func(*updater.Sight) {}), stopping: true},
		"stopping as soon as the effect that has begun on web is over": {
			glance: seen(func(s *updater.Sight) { s.Changing = []string{"web"} }), stopping: true,
		},
	} {
		require.Equal(t, want, statusLine(c.glance, c.refused, c.stopping))
	}
}

// manager is a service manager that hears what a supervisor says.
type manager struct {
	heard []string
	*supervisor
	glance func(now time.Time) updater.Glance
}

func newManager(watchdog time.Duration) *manager {
	m := &manager{supervisor: &supervisor{watchdog: watchdog, log: slog.New(slog.DiscardHandler)}}
	m.notify = func(state string) error {
		if !strings.HasPrefix(state, "STATUS=") {
			m.heard = append(m.heard, state)
		}
		return nil
	}
	m.supervisor.glance = func() updater.Glance { return m.glance(time.Now()) }
	return m
}

// during is what is heard while a daemon that looks like this runs.
func (m *manager) during(d time.Duration, stopping bool, glance func(now time.Time) updater.Glance) []string {
	m.heard, m.glance = nil, glance
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	stop, stopped := context.WithCancel(context.Background())
	if stopping {
		stopped()
	}
	m.watch(ctx, stop)
	stopped()
	return m.heard
}

func still(g updater.Glance) func(time.Time) updater.Glance {
	return func(time.Time) updater.Glance { return g }
}

func TestWatchdog(t *testing.T) {
	const pings = 60 / 20
	step := func(limit time.Duration) updater.Glance {
		return updater.Glance{Ready: true, Steps: []updater.Step{{What: "apply", Until: time.Now().Add(limit)}}}
	}
	synctest.Test(t, func(t *testing.T) {
		m := newManager(time.Minute)
		require.Equal(t, []string{"WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"}, m.during(time.Minute-time.Millisecond, false, still(updater.Glance{})), "before it is ready")
		require.Equal(t, append([]string{"READY=1"}, repeat("WATCHDOG=1", pings)...), m.during(time.Minute-time.Millisecond, false, still(updater.Glance{Ready: true})), "ready once")
		require.Equal(t, repeat("WATCHDOG=1", 10*pings), m.during(10*time.Minute-time.Millisecond, false, still(step(time.Hour))), "a long step within its limit")
		require.Equal(t, repeat("WATCHDOG=1", pings), m.during(10*time.Minute-time.Millisecond, false, still(step(time.Minute-time.Millisecond))), "none once it hangs")
		require.Equal(t, repeat("WATCHDOG=1", pings), m.during(time.Minute-time.Millisecond, false, still(updater.Glance{Ready: true})), "it came free")
	})
}

func TestAStartOrStopWaitsForWhatIsWithinItsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(0)
		within := updater.Glance{Steps: []updater.Step{{What: "look", Until: time.Now().Add(time.Hour)}}}
		require.Equal(t, repeat("EXTEND_TIMEOUT_USEC=30000000", 5), m.during(5*time.Second-time.Millisecond, false, still(within)))
		within.Ready = true
		require.Equal(t, []string{"READY=1"}, m.during(5*time.Second-time.Millisecond, false, still(within)))
		require.Equal(t, repeat("EXTEND_TIMEOUT_USEC=30000000", 5), m.during(5*time.Second-time.Millisecond, true, still(within)))
		hung := updater.Glance{Ready: true, Steps: []updater.Step{{What: "apply", Until: time.Now().Add(-time.Second)}}}
		require.Empty(t, m.during(5*time.Second-time.Millisecond, true, still(hung)), "one that hangs is not waited for")
	})
}

func TestReloadIsHeard(t *testing.T) {
	m := newManager(0)
	m.supervisor.reload(func() error { return nil })
	require.Empty(t, m.heard, "before it is ready it does not say that it is")
	m.ready = true
	m.supervisor.reload(func() error { return errors.New("broken") })
	require.Equal(t, []string{"RELOADING=1", "READY=1"}, m.heard)
	require.EqualError(t, m.refused, "broken")
	m.supervisor.reload(func() error { return nil })
	require.NoError(t, m.refused)
}

func repeat(s string, n int) []string {
	return strings.Split(strings.TrimSuffix(strings.Repeat(s+"\n", n), "\n"), "\n")
}

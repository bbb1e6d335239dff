package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
)

// supervisor tells systemd about the daemon: that it is ready, what it is at,
// and, in time for the watchdog, that no step of it hangs. Elsewhere nobody
// listens, and it does nothing.
type supervisor struct {
	notify   func(state string) error // nil: nobody listens
	watchdog time.Duration            // how often systemd wants to hear; 0: it does not

	mu      sync.Mutex
	log     *slog.Logger
	glance  func() updater.Glance // at what runs now; nil while nothing does
	refused error                 // the configuration that is not used
	ready   bool                  // as last told

	// Only watch goes about with these.
	status string    // as last told
	pinged time.Time // when the watchdog was last answered
	hangs  bool      // that it is not was logged
}

// newSupervisor returns one that speaks to the service manager that started this
// process, if any.
func newSupervisor() *supervisor {
	s := &supervisor{log: slog.New(slog.DiscardHandler)}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return s
	}
	s.notify = func(state string) error {
		_, err := daemon.SdNotify(false, state)
		return err
	}
	// Without a number that makes sense nobody waits for an answer.
	s.watchdog, _ = daemon.SdWatchdogEnabled(false)
	return s
}

const (
	// beat is how often the supervisor looks. It costs a lock and a comparison.
	beat = time.Second
	// extension is what a start or a stop asks for while a step is under way
	// within its limits; renewed at every beat.
	extension = 30 * time.Second
)

// watch speaks to systemd until ctx ends; stop ends when the daemon is to. It
// does not depend on anything that could hang but what it looks at: if that
// does, the watchdog is not answered either.
func (s *supervisor) watch(ctx, stop context.Context) {
	if s.notify == nil {
		return
	}
	t := time.NewTicker(beat)
	defer t.Stop()
	for {
		s.look(time.Now(), stop.Err() != nil)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// look tells what there is to tell now.
func (s *supervisor) look(now time.Time, stopping bool) {
	s.mu.Lock()
	glance, refused, log, ready := s.glance, s.refused, s.log, s.ready
	s.mu.Unlock()
	var g updater.Glance
	if glance != nil {
		g = glance()
	}
	if g.Ready && !ready {
		ready = true
		s.mu.Lock()
		s.ready = true
		s.mu.Unlock()
		s.tell(log, daemon.SdNotifyReady)
	}
	if status := statusLine(g, refused, stopping); status != s.status {
		s.status = status
		s.tell(log, "STATUS="+status)
	}
	late := updater.Overdue(g.Steps, now)
	if len(late) > 0 {
		if !s.hangs {
			log.Error("step hangs, the watchdog is not answered any more", "step", late[0].String(), "since", late[0].Since)
		}
		s.hangs = true
		return
	}
	s.hangs = false
	if s.watchdog > 0 && now.Sub(s.pinged) >= s.watchdog/3 {
		s.pinged = now
		s.tell(log, daemon.SdNotifyWatchdog)
	}
	if len(g.Steps) > 0 && (stopping || !ready) {
		s.tell(log, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
	}
}

func (s *supervisor) tell(log *slog.Logger, state string) {
	if s.notify == nil {
		return
	}
	if err := s.notify(state); err != nil {
		log.Debug("service manager cannot be told", "err", err)
	}
}

// runs says what runs from now on.
func (s *supervisor) runs(u *updater.Updater, log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.glance, s.log = u.Glance, log
}

// reload wraps the reading of a configuration: whoever asked for it waits until
// it is over, and sees in the status if it was refused.
func (s *supervisor) reload(read func() error) {
	s.mu.Lock()
	log, ready := s.log, s.ready
	s.mu.Unlock()
	if ready { // before that, nobody waits for it
		s.tell(log, daemon.SdNotifyReloading)
		defer s.tell(log, daemon.SdNotifyReady)
	}
	err := read()
	s.mu.Lock()
	s.refused = err
	s.mu.Unlock()
}

// statusLine is what `systemctl status` shows.
func statusLine(g updater.Glance, refused error, stopping bool) string {
	var said []string
	changing, watched, updates := []string{}, 0, 0
	var next time.Time
	passed := false
	for _, p := range g.Places {
		if p.Trouble != nil {
			said = append(said, fmt.Sprintf("%s cannot be asked: %s", p.Backend, printable(p.Trouble.Error())))
		}
		watched += p.Watched
		updates += p.Updates
		if p.Paused != nil {
			said = append(said, p.Backend+" is "+printable(server.PausedSince(*p.Paused)))
		}
		passed = passed || !p.LastPass.IsZero()
		changing = append(changing, p.Changing...)
		if !p.NextPass.IsZero() && (next.IsZero() || p.NextPass.Before(next)) {
			next = p.NextPass
		}
	}
	const most = 3
	names := strings.Join(changing[:min(most, len(changing))], ", ")
	if more := len(changing) - most; more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	switch {
	case stopping && names != "":
		return "stopping as soon as the effect that has begun on " + names + " is over"
	case stopping:
		return "stopping"
	case g.StandingBy:
		said = append(said, "standing by while another process finishes the update of updaterd itself")
	case !g.Ready:
		said = append(said, "starting")
	case passed:
		said = append(said, fmt.Sprintf("%d workloads watched, %d with an update", watched, updates))
	}
	if names != "" {
		said = append(said, "changing "+names)
	}
	if !next.IsZero() && g.Ready {
		said = append(said, "next pass at "+next.Format("2006-01-02 15:04:05 MST"))
	}
	if refused != nil {
		said = append(said, "CONFIGURATION REFUSED, the old one stays: "+printable(refused.Error()))
	}
	return strings.Join(said, "; ")
}

package updater

import (
	"cmp"
	"fmt"
	"time"
)

// Bounds of the gate. A container that the engine has started three times
// anew within one gate is in a loop: engines double their pause from 100 ms,
// so the third restart comes within a second of the first exit of a program
// that cannot run.
const (
	maxRestarts    = 3
	defaultTimeout = 60 * time.Second
	// killed is the exit code of a program that got SIGKILL.
	killed = 137
)

// gate judges one side of a change from looks at it. It is pure: the looks
// and their times are handed in. The zero gate with its settings is ready.
type gate struct {
	timeout time.Duration // 0: the backend's own
	stable  time.Duration

	began   time.Time // first look since the clock started; zero: none yet
	healthy time.Time // healthy since; zero: it is not
	started time.Time // start of the process that was healthy
	ever    bool      // it was healthy at least once since the clock started
	// base are the engine's restarts that came before the clock was started anew.
	base int
	// progress is the most that a rollout has reached.
	progress int
	exit     *int // the last exit code that was seen; nil: none
	// killed: it was found killed by the last look.
	killed bool
	// gap: nobody watched just before the next look (updaterd or the engine
	// was down), so an exit may be the engine's doing.
	gap bool
}

// interrupted starts the clock anew after a time in which nobody could look.
func (g *gate) interrupted() {
	g.began, g.healthy, g.ever, g.gap = time.Time{}, time.Time{}, false, true
}

// judge takes one look into account. The verdict is "" while it is open; why
// says what condemned it, or what it still waits for.
func (g *gate) judge(o Observation, now time.Time) (v Verdict, why string) {
	gap := g.gap
	if o.Waits != "" {
		g.began, g.healthy, g.ever, g.progress = time.Time{}, time.Time{}, false, 0
		return "", o.Waits
	}
	if o.Progress > g.progress {
		g.progress = o.Progress
		if !g.began.IsZero() {
			g.began = now
		}
	}
	if g.began.IsZero() {
		g.began, g.gap = now, false
		if gap {
			g.base = o.Restarts
		}
	}
	g.base = min(g.base, o.Restarts) // engines count from 0 again after a start by hand
	if !o.Running {
		g.exit = &o.ExitCode // engines show 0 for what runs again
	} else {
		g.killed = false
	}
	timeout := g.timeout
	if timeout == 0 {
		timeout = o.Timeout
	}
	if timeout == 0 {
		timeout = defaultTimeout
	}

	switch {
	case o.Undone:
		return Unclear, cmp.Or(o.Fault, "going back had already begun")
	case o.Gone:
		return Unclear, "somebody removed it while it was being judged"
	case o.Fault != "" && o.Blame == Bad:
		return Bad, o.Fault
	case o.Fault != "" && !o.Running && !o.Restarting:
		return Unclear, o.Fault
	case o.OOMKilled:
		return Bad, "it was killed for want of memory (OOM)"
	case o.Restarts-g.base >= maxRestarts:
		return Bad, fmt.Sprintf("it was restarted %d times", o.Restarts-g.base) + g.lastExit()
	case !o.Running && !o.Restarting && !o.Paused:
		if gap && engineMayHaveEnded(o.ExitCode) {
			return Unclear, fmt.Sprintf("it was found stopped (exit code %d) after a time in which the engine or updaterd was down", o.ExitCode)
		}
		if o.ExitCode == killed && !g.killed {
			// Who removes a container by force kills it first, and an engine may
			// tell the exit before it tells that memory was wanting.
			g.killed = true
			return "", "it was killed, which somebody may have done who is about to remove it"
		}
		return Bad, fmt.Sprintf("it exited with code %d", o.ExitCode)
	case o.Health == HealthUnhealthy:
		return Bad, "its health check fails" + colon(o.HealthLog)
	}

	missing := ""
	switch {
	case o.Paused:
		missing = "it is paused"
	case o.Restarting:
		missing = fmt.Sprintf("it is being restarted after exit code %d", o.ExitCode)
	case o.Health == HealthStarting:
		missing = "its health check has not passed yet" + colon(o.HealthLog)
	case o.Pending != "":
		missing = o.Pending
	case o.Probe != "":
		missing = "its probe fails: " + o.Probe
	}
	if missing != "" || !o.Started.Equal(g.started) {
		g.healthy = time.Time{}
	}
	if missing == "" && g.healthy.IsZero() {
		g.healthy, g.started, g.ever = now, o.Started, true
	}
	if missing == "" && now.Sub(g.healthy) >= g.stable {
		return Good, fmt.Sprintf("healthy for %s", g.stable)
	}

	waited := now.Sub(g.began)
	switch {
	case missing != "" && o.Paused && waited >= timeout:
		return Unclear, missing
	case missing != "" && o.Fault != "" && waited >= timeout:
		return Unclear, fmt.Sprintf("%s, for %s: %s", missing, waited.Round(time.Second), o.Fault)
	case missing != "" && waited >= timeout && waited >= g.patience(timeout):
		return Bad, fmt.Sprintf("%s, and did not stay healthy for %s within %s", missing, g.stable, waited.Round(time.Second))
	case missing != "" && waited >= timeout && !g.ever:
		return Bad, fmt.Sprintf("%s, %s after its start", missing, timeout)
	case missing == "" && waited >= g.patience(timeout):
		return Bad, fmt.Sprintf("it did not stay healthy for %s within %s", g.stable, waited.Round(time.Second))
	case missing == "":
		missing = fmt.Sprintf("healthy since %s, must be for %s", now.Sub(g.healthy).Round(time.Second), g.stable)
	}
	return "", missing
}

// lastExit tells the last exit code, if it was seen: a program that exits and is
// started again may look alive each time.
func (g *gate) lastExit() string {
	if g.exit == nil {
		return ""
	}
	return fmt.Sprintf(", last exit code %d", *g.exit)
}

// patience is how long a side may take to become and stay healthy.
func (g *gate) patience(timeout time.Duration) time.Duration { return timeout + 3*g.stable }

// engineMayHaveEnded reports whether an exit code may come from an engine that
// stopped or lost its containers: 255 is what Docker writes for a process it
// lost, 137 and 143 are its signals, and a program that ends well on SIGTERM
// gives 0.
func engineMayHaveEnded(code int) bool {
	switch code {
	case 0, 137, 143, 255:
		return true
	}
	return false
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

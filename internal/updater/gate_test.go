package updater

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A gateStep is what the gate sees from a moment on (seconds after the change
// was applied), until the next step.
type gateStep struct {
	at  float64
	see Observation
	// gap: nobody could look just before.
	gap bool
}

var gateEpoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func after(seconds float64) time.Time {
	return gateEpoch.Add(time.Duration(seconds * float64(time.Second)))
}

// watch looks every half second, as the driver does, until the gate has a
// verdict or the steps have been over for ten minutes.
func watch(g *gate, steps []gateStep) (v Verdict, why string, at float64) {
	for now := 0.0; now < 600; now += 0.5 {
		var see Observation
		for i := range steps {
			if steps[i].at > now {
				break
			}
			see = steps[i].see
			if steps[i].gap {
				g.interrupted()
				steps[i].gap = false
			}
		}
		if v, why = g.judge(see, after(now)); v != "" {
			return v, why, now
		}
	}
	return v, why, 600
}

func TestGate(t *testing.T) {
	var (
		up       = Observation{Running: true, Started: after(0)}
		again    = Observation{Running: true, Started: after(7)}
		healthy  = Observation{Running: true, Started: after(0), Health: HealthHealthy}
		starting = Observation{Running: true, Started: after(0), Health: HealthStarting, HealthLog: "connection refused"}
		sick     = Observation{Running: true, Started: after(0), Health: HealthUnhealthy, HealthLog: "status 500"}
		deaf     = Observation{Running: true, Started: after(0), Probe: "connection refused"}
		paused   = Observation{Running: true, Paused: true, Started: after(0)}
		loop     = func(n int) Observation { return Observation{Restarting: true, Restarts: n, ExitCode: 3} }
		exited   = func(code int) Observation { return Observation{ExitCode: code} }
		rolls    = func(n int) Observation {
			return Observation{Running: true, Progress: n, Pending: fmt.Sprintf("%d of 3 pods", n)}
		}
		heldUp    = Observation{Running: true, Pending: "0 of 3 pods", Fault: "exceeded quota", Blame: Unclear}
		condemned = Observation{Running: true, Pending: "1 of 3 pods", Fault: "exec format error", Blame: Bad}
		unwanted  = Observation{Running: true, Waits: "it is scaled to 0"}
		restarts  = func(n int) Observation { o := up; o.Restarts = n; return o }
	)
	flapping := func(from, to, every float64) (steps []gateStep) {
		for at := from; at < to; at += 2 * every {
			steps = append(steps, gateStep{at: at, see: up}, gateStep{at: at + every, see: deaf})
		}
		return steps
	}
	tests := []struct {
		name  string
		gate  gate // timeout 60 s and stable 10 s unless given
		steps []gateStep
		want  Verdict
		why   string
		at    float64
	}{
		{name: "a rollout that goes on has time as long as it goes on", steps: []gateStep{
			{see: rolls(1)}, {at: 50, see: rolls(2)}, {at: 100, see: rolls(3)}, {at: 150, see: up}}, want: Good, at: 160},
		{name: "a rollout that does not go on is bad by the time its pods are not ready", steps: []gateStep{{see: rolls(1)}, {at: 50, see: rolls(2)}},
			want: Bad, why: "2 of 3 pods, 1m0s after its start", at: 110},
		{name: "a rollout that goes back and forth does not go on", steps: []gateStep{{see: rolls(2)}, {at: 20, see: rolls(1)}, {at: 40, see: rolls(2)}}, want: Bad, at: 60},
		{name: "a rollout held up by its surroundings is unclear when time is up", steps: []gateStep{{see: heldUp}}, want: Unclear, why: "exceeded quota", at: 60},
		{name: "surroundings that come right in time are forgotten", steps: []gateStep{{see: heldUp}, {at: 30, see: up}}, want: Good, at: 40},
		{name: "a rollout whose image is to blame is bad at once", steps: []gateStep{{see: rolls(1)}, {at: 5, see: condemned}}, want: Bad, why: "exec format error", at: 5},
		{name: "where nothing is wanted no time is counted", steps: []gateStep{{see: unwanted}, {at: 500, see: rolls(1)}, {at: 555, see: up}}, want: Good, at: 565},
		{name: "running without a check for stable is good", steps: []gateStep{{see: up}}, want: Good, why: "healthy for 10s", at: 10},
		{name: "healthy for stable is good", steps: []gateStep{{see: healthy}}, want: Good, at: 10},
		{name: "stable counts from the first health, not from the start", steps: []gateStep{{see: starting}, {at: 20, see: healthy}}, want: Good, at: 30},
		{name: "healthy just within timeout may still prove stable", steps: []gateStep{{see: starting}, {at: 59, see: healthy}}, want: Good, at: 69},
		{name: "stable of nothing is good at once", gate: gate{timeout: time.Minute, stable: -1}, steps: []gateStep{{see: up}}, want: Good, at: 0},

		{name: "an exit with code 0 at once is bad", steps: []gateStep{{see: exited(0)}}, want: Bad, why: "it exited with code 0", at: 0},
		{name: "an exit with code 1 at once is bad", steps: []gateStep{{see: exited(1)}}, want: Bad, why: "it exited with code 1", at: 0},
		{name: "an exit after nine good seconds is bad", steps: []gateStep{{see: up}, {at: 9, see: exited(1)}}, want: Bad, at: 9},
		{name: "killed and still there at the next look is bad", steps: []gateStep{{see: up}, {at: 4, see: exited(137)}, {at: 4.5, see: exited(137)}}, want: Bad, at: 4.5},
		{name: "killed and then gone is unclear", steps: []gateStep{{see: up}, {at: 4, see: exited(137)}, {at: 4.5, see: Observation{Gone: true}}}, want: Unclear, why: "removed", at: 4.5},
		{name: "killed, and for want of memory as is told later", steps: []gateStep{{see: up}, {at: 4, see: exited(137)}, {at: 4.5, see: Observation{OOMKilled: true, ExitCode: 137}}}, want: Bad, why: "(OOM)", at: 4.5},
		{name: "two restarts are forgiven when it then stays up", steps: []gateStep{{see: loop(1)}, {at: 1, see: loop(2)}, {at: 2, see: restarts(2)}}, want: Good, at: 12},
		{name: "the third restart is bad at once", steps: []gateStep{{see: loop(1)}, {at: 1, see: loop(2)}, {at: 2, see: restarts(3)}}, want: Bad, why: "it was restarted 3 times", at: 2},
		{name: "a restart that takes for ever is bad at the timeout", steps: []gateStep{{see: loop(1)}}, want: Bad, why: "it is being restarted after exit code 3", at: 60},
		{name: "killed for want of memory is bad", steps: []gateStep{{see: up}, {at: 4, see: Observation{OOMKilled: true, ExitCode: 137}}}, want: Bad, why: "(OOM)", at: 4},
		{name: "unhealthy at once is bad at once", steps: []gateStep{{see: sick}}, want: Bad, why: "its health check fails: status 500", at: 0},
		{name: "unhealthy after 5 s is bad", steps: []gateStep{{see: healthy}, {at: 5, see: sick}}, want: Bad, at: 5},
		{name: "health still starting at the timeout is bad", steps: []gateStep{{see: starting}}, want: Bad, why: "its health check has not passed yet: connection refused, 1m0s after its start", at: 60},
		{name: "a failing probe is bad at the timeout", steps: []gateStep{{see: deaf}}, want: Bad, why: "its probe fails: connection refused", at: 60},
		{name: "a failed probe starts stable anew", steps: []gateStep{{see: up}, {at: 5, see: deaf}, {at: 6, see: up}}, want: Good, at: 16},
		{name: "a restart unseen by the probe starts stable anew", steps: []gateStep{{see: up}, {at: 8, see: again}}, want: Good, at: 18},
		{name: "flapping is bad past timeout and three times stable", steps: flapping(0, 600, 4), want: Bad, why: "did not stay healthy for 10s within 1m30s", at: 90},
		{name: "flapping that settles in time is good", steps: append(flapping(0, 64, 4), gateStep{at: 64, see: up}), want: Good, at: 74},
		{name: "once healthy, failing at the timeout is waited for", steps: []gateStep{{see: up}, {at: 5, see: deaf}, {at: 70, see: up}}, want: Good, at: 80},

		{name: "paused to the timeout is unclear", steps: []gateStep{{see: paused}}, want: Unclear, why: "it is paused", at: 60},
		{name: "paused for a while starts stable anew", steps: []gateStep{{see: up}, {at: 5, see: paused}, {at: 30, see: up}}, want: Good, at: 40},

		{name: "an image the engine cannot start is bad", steps: []gateStep{{see: Observation{Fault: "exec format error", Blame: Bad}}}, want: Bad, why: "exec format error", at: 0},
		{name: "a port that is taken is unclear", steps: []gateStep{{see: Observation{Fault: "port is already allocated", Blame: Unclear, ExitCode: 128}}}, want: Unclear, why: "port is already allocated", at: 0},
		{name: "a fault of the surroundings while it runs is no matter", steps: []gateStep{{see: Observation{Running: true, Fault: "a disk is slow", Blame: Unclear}}}, want: Good, at: 10},
		{name: "gone is unclear", steps: []gateStep{{see: up}, {at: 3, see: Observation{Gone: true}}}, want: Unclear, why: "somebody removed it", at: 3},
		{name: "going back begun is unclear, even if it exited", steps: []gateStep{{see: Observation{Undone: true, ExitCode: 1}}}, want: Unclear, why: "going back had already begun", at: 0},

		{name: "found killed after a gap is unclear", steps: []gateStep{{see: up}, {at: 3, gap: true, see: exited(137)}}, want: Unclear, why: "was down", at: 3},
		{name: "found lost by the engine after a gap is unclear", steps: []gateStep{{see: up}, {at: 3, gap: true, see: exited(255)}}, want: Unclear, at: 3},
		{name: "found ended by a signal after a gap is unclear", steps: []gateStep{{see: up}, {at: 3, gap: true, see: exited(143)}}, want: Unclear, at: 3},
		{name: "found failed by itself after a gap is bad", steps: []gateStep{{see: up}, {at: 3, gap: true, see: exited(1)}}, want: Bad, at: 3},
		{name: "killed in plain sight after a gap is bad", steps: []gateStep{{see: up}, {at: 3, gap: true, see: up}, {at: 4, see: exited(137)}, {at: 4.5, see: exited(137)}}, want: Bad, at: 4.5},
		{name: "a gap starts stable anew", steps: []gateStep{{see: up}, {at: 8, gap: true, see: up}}, want: Good, at: 18},
		{name: "a gap starts the timeout anew", steps: []gateStep{{see: starting}, {at: 50, gap: true, see: starting}}, want: Bad, at: 110},
		{name: "restarts in a gap do not count", steps: []gateStep{{see: up}, {at: 3, gap: true, see: restarts(7)}, {at: 5, see: restarts(9)}}, want: Good, at: 13},
		{name: "three restarts after a gap do", steps: []gateStep{{see: up}, {at: 3, gap: true, see: restarts(7)}, {at: 5, see: restarts(10)}}, want: Bad, why: "it was restarted 3 times", at: 5},
		{name: "restarts counted from 0 again after a gap count", steps: []gateStep{{gap: true, see: restarts(7)}, {at: 2, see: restarts(0)}, {at: 4, see: loop(3)}}, want: Bad, at: 4},
		{name: "restarts before the first look count", steps: []gateStep{{see: restarts(3)}}, want: Bad, at: 0},

		{name: "without a setting the backend's timeout holds", gate: gate{stable: 10 * time.Second},
			steps: []gateStep{{see: Observation{Running: true, Health: HealthStarting, Timeout: 2 * time.Minute}}}, want: Bad, at: 120},
		{name: "a setting beats the backend's timeout", gate: gate{timeout: 30 * time.Second, stable: 10 * time.Second},
			steps: []gateStep{{see: Observation{Running: true, Health: HealthStarting, Timeout: 2 * time.Minute}}}, want: Bad, at: 30},
		{name: "without any it is a minute", gate: gate{stable: 10 * time.Second}, steps: []gateStep{{see: starting}}, want: Bad, at: 60},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := tt.gate
			switch g.stable {
			case 0:
				g = gate{timeout: time.Minute, stable: 10 * time.Second}
			case -1:
				g.stable = 0
			}
			v, why, at := watch(&g, tt.steps)
			require.Equal(t, tt.want, v, why)
			require.Contains(t, why, tt.why)
			require.InDelta(t, tt.at, at, 0.01, "when: %s", why)
		})
	}
}

func TestGateSaysWhatItWaitsFor(t *testing.T) {
	g := gate{timeout: time.Minute, stable: 10 * time.Second}
	v, why := g.judge(Observation{Running: true}, after(0))
	require.Empty(t, v)
	require.Contains(t, why, "must be for 10s")
}

// drawLook is any look that a backend might report.
func drawLook(t *rapid.T, name string) Observation {
	return Observation{
		Gone:       rapid.IntRange(0, 30).Draw(t, name+" gone") == 7,
		Undone:     rapid.IntRange(0, 30).Draw(t, name+" undone") == 7,
		Running:    rapid.IntRange(0, 9).Draw(t, name+" running") != 9,
		Restarting: rapid.IntRange(0, 9).Draw(t, name+" restarting") == 9,
		Paused:     rapid.IntRange(0, 9).Draw(t, name+" paused") == 9,
		ExitCode:   rapid.SampledFrom([]int{0, 1, 137, 143, 255}).Draw(t, name+" exit code"),
		OOMKilled:  rapid.IntRange(0, 30).Draw(t, name+" oom") == 7,
		Restarts:   rapid.IntRange(0, 3).Draw(t, name+" restarts"),
		Started:    after(float64(rapid.IntRange(0, 1).Draw(t, name+" started"))),
		Health:     rapid.SampledFrom([]EngineHealth{HealthNone, HealthHealthy, HealthHealthy, HealthStarting, HealthUnhealthy}).Draw(t, name+" health"),
		Probe:      rapid.SampledFrom([]string{"", "", "", "refused"}).Draw(t, name+" probe"),
		Fault:      rapid.SampledFrom([]string{"", "", "", "", "", "fault"}).Draw(t, name+" fault"),
		Blame:      rapid.SampledFrom([]Verdict{Bad, Unclear}).Draw(t, name+" blame"),
	}
}

// well is what healthy means: running, the engine content, the probe passing.
func well(o Observation) bool {
	return o.Running && !o.Restarting && !o.Paused && !o.Gone && !o.Undone && !o.OOMKilled &&
		(o.Health == HealthNone || o.Health == HealthHealthy) && o.Probe == ""
}

func TestGateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := gate{
			timeout: time.Duration(rapid.IntRange(1, 20).Draw(t, "timeout")) * time.Second,
			stable:  time.Duration(rapid.IntRange(0, 5).Draw(t, "stable")) * time.Second,
		}
		const every = 500 * time.Millisecond
		type look struct {
			at time.Time
			o  Observation
		}
		var since []look // looks since the clock was last started anew
		now := gateEpoch
		last := drawLook(t, "first")
		for i := 0; ; i++ {
			if rapid.IntRange(0, 3).Draw(t, fmt.Sprintf("new at %d", i)) == 0 {
				last = drawLook(t, fmt.Sprint(i))
			}
			if rapid.IntRange(0, 40).Draw(t, fmt.Sprintf("gap at %d", i)) == 7 {
				g.interrupted()
				since = nil
				now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, fmt.Sprintf("gap of %d", i))) * time.Second)
			}
			since = append(since, look{now, last})
			v, why := g.judge(last, now)
			switch v {
			case Good:
				for j := len(since) - 1; ; j-- {
					if !well(since[j].o) || !since[j].o.Started.Equal(last.Started) {
						t.Fatalf("good (%s) although it was not well %s ago", why, now.Sub(since[j].at))
					}
					if now.Sub(since[j].at) >= g.stable {
						break
					}
					if j == 0 {
						t.Fatalf("good (%s) after %s of looks", why, now.Sub(since[0].at))
					}
				}
			case Bad:
				if last.Gone || last.Undone || last.Paused && last.Running && !last.OOMKilled && last.Fault == "" &&
					last.Health != HealthUnhealthy && last.Restarts < maxRestarts {
					t.Fatalf("bad (%s) from %+v", why, last)
				}
			}
			if v != "" {
				if why == "" {
					t.Fatalf("%s without a reason", v)
				}
				return
			}
			if waited := now.Sub(since[0].at); waited > g.timeout+3*g.stable+every {
				t.Fatalf("no verdict after %s", waited)
			}
			now = now.Add(every)
		}
	})
}

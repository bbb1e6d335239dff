package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/updaterd/updaterd/e2e/stage"
)

// fleet is many small containers, ten on each reference.
type fleet struct {
	t    stage.TB
	d    *stage.Docker
	reg  *stage.Registry
	u    *stage.Updaterd
	refs int
	// ids are the containers as they are now, by name.
	ids map[string]string
}

const fleetSettings = `
schedule: "@every 1s"
jitter: 0s
watch: all
parallel: 16
defaults:
  keep: 0
  stop-timeout: 2s
  health: {timeout: 2m, stable: 200ms}
`

func newFleet(t stage.TB, n int) *fleet {
	t.Helper()
	f := &fleet{t: t, d: stage.OpenDocker(t), reg: stage.NewRegistry(t, stage.RegistryOptions{}), refs: (n + 9) / 10, ids: map[string]string{}}
	f.push("v1")
	for i := range f.refs {
		f.d.Pull(f.reg.Ref(f.ref(i)))
	}
	var g errgroup.Group
	g.SetLimit(4)
	for i := range n {
		name := f.d.Name(fmt.Sprintf("many-%03d", i))
		f.ids[name] = ""
		g.Go(func() error {
			c, err := f.d.ContainerCreate(t.Context(),
				&container.Config{Image: f.reg.Ref(f.ref(i % f.refs)), Labels: map[string]string{stage.Label: f.d.Mark, "mine": name}},
				&container.HostConfig{NetworkMode: "none"}, nil, nil, name)
			if err != nil {
				return err
			}
			return f.d.ContainerStart(t.Context(), c.ID, container.StartOptions{})
		})
	}
	require.NoError(t, g.Wait())
	for _, c := range f.d.Containers() {
		f.ids[c.Names[0][1:]] = c.ID
	}
	f.u = stage.NewUpdaterd(t, f.d.Scoped(), fleetSettings)
	return f
}

func (f *fleet) ref(i int) string { return fmt.Sprintf("acme/many-%02d:stable", i) }

func (f *fleet) push(version string) {
	f.t.Helper()
	for i := range f.refs {
		f.reg.Push(f.ref(i), stage.Image{Version: fmt.Sprintf("%s of %d", version, i)})
	}
}

// moved reports whether all are new ones, and nothing else is there.
func (f *fleet) moved() bool {
	now := f.d.Containers()
	return len(now) == len(f.ids) && !slices.ContainsFunc(now, func(c container.Summary) bool {
		before, ok := f.ids[c.Names[0][1:]]
		return !ok || before == c.ID || c.State != container.StateRunning
	})
}

// carried requires that all are new ones, each with what its own had.
func (f *fleet) carried() {
	f.t.Helper()
	require.True(f.t, f.moved())
	for _, c := range f.d.Containers() {
		name := c.Names[0][1:]
		require.Equal(f.t, name, c.Labels["mine"])
		f.ids[name] = c.ID
	}
	require.Len(f.t, slices.Collect(maps.Keys(f.ids)), len(f.d.Containers()))
}

var goroutine = regexp.MustCompile(`(?m)^(?:updaterd: )?goroutine \d+ `)

// TestManyAtOnce updates many containers at once, again and again: what that
// takes of files, threads and goroutines is given back.
func TestManyAtOnce(t *testing.T) {
	f := newFleet(t, 40)
	daemon := f.u.Start()
	stage.Eventually(t, time.Minute, "a first pass", func() bool { return strings.Contains(daemon.Logs(), "pass over") })
	var open, threads []int64
	for _, version := range []string{"v2", "v3", "v4"} {
		f.push(version)
		stage.Eventually(t, 3*time.Minute, "all to be updated", f.moved)
		f.carried()
		n := strings.Count(daemon.Logs(), "pass over")
		stage.Eventually(t, time.Minute, "a pass with nothing new", func() bool { return strings.Count(daemon.Logs(), "pass over") > n+1 })
		open, threads = append(open, int64(files(t, daemon.Pid))), append(threads, status(daemon.Pid, "Threads"))
		t.Logf("after %s: %d open files, %d threads, %s own memory, %s at most", version, open[len(open)-1], threads[len(threads)-1],
			mb(status(daemon.Pid, "RssAnon")), mb(status(daemon.Pid, "VmHWM")))
	}
	// Connections to the engine come and go; each update takes more than these.
	require.LessOrEqual(t, open[2], open[0]+16)
	require.LessOrEqual(t, threads[2], threads[0]+8)
	daemon.Signal(syscall.SIGQUIT)
	require.Equal(t, 2, daemon.Wait(20*time.Second), "a Go program that is told to quit says where it is")
	running := len(goroutine.FindAllString(daemon.Logs(), -1))
	t.Logf("%d goroutines", running)
	require.Positive(t, running)
	require.Less(t, running, 80)
}

// BenchmarkMany updates 200 containers in one pass.
func BenchmarkMany(b *testing.B) {
	tables := newTables(b)
	const n = 200
	for b.Loop() {
		f := newFleet(quiet{b}, n)
		f.push("v2")
		began := time.Now()
		p := f.u.Start("run", "--once", "-o", "json")
		var peak, open int64
		for over := false; !over; {
			peak = max(peak, status(p.Pid, "VmHWM"))
			select {
			case <-p.Done():
				over = true
			case <-time.After(20 * time.Millisecond):
				open = max(open, int64(openFiles(p.Pid)))
			}
		}
		took := time.Since(began)
		require.Zero(b, p.Wait(time.Second), p.Logs())
		require.Equal(b, n, strings.Count(p.Logs(), `"outcome": "committed"`)+strings.Count(p.Logs(), `"outcome":"committed"`))
		f.carried()
		t := tables.add(fmt.Sprintf("%d containers updated in one pass, 16 at once, health.stable 200 ms.", n),
			"", "whole pass", "for each", "peak memory", "open files at most")
		t.row("run --once", took.Round(time.Second/10).String(), ms(took/n), mb(peak), fmt.Sprint(open))
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(float64(peak)/1e6, "peak-MB")
	}
}

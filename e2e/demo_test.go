package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/play"
	"github.com/updaterd/updaterd/e2e/stage"
)

// demo is a run of `make demo`'s program.
type demo struct {
	cmd  *exec.Cmd
	out  *output
	temp string
}

// output is written by the demo while the test reads it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func startDemo(t *testing.T, d *stage.Docker, args ...string) demo {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "demo")
	b, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/demo").CombinedOutput()
	require.NoError(t, err, "%s", b)
	// That of t would make the path of a socket too long.
	temp, err := os.MkdirTemp("", "demo-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(temp)) })
	o := &output{}
	run := demo{cmd: exec.Command(bin, args...), out: o, temp: temp}
	run.cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host, "TMPDIR="+run.temp)
	run.cmd.Stdout, run.cmd.Stderr = io.MultiWriter(o, t.Output()), io.MultiWriter(o, t.Output())
	require.NoError(t, run.cmd.Start())
	t.Cleanup(func() { _ = run.cmd.Process.Kill() })
	return run
}

// leavesNothing compares what the machine holds of demos with what it held.
func (r demo) leavesNothing(t *testing.T, d *stage.Docker, before []string) {
	t.Helper()
	files, err := os.ReadDir(r.temp)
	require.NoError(t, err)
	require.Empty(t, files)
	require.Equal(t, before, staged(t, d))

	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, p := range processes {
		// Those that ended meanwhile, and those of others, cannot be read.
		if environ, err := os.ReadFile(p); err == nil {
			require.NotContains(t, string(environ), "TMPDIR="+r.temp, "a process is left: %s", p)
		}
	}
}

// staged lists all on the engine that any stage made.
func staged(t *testing.T, d *stage.Docker) []string {
	t.Helper()
	ctx, f := t.Context(), filters.NewArgs(filters.Arg("label", stage.Label))
	all := []string{}
	containers, err := d.ContainerList(ctx, container.ListOptions{All: true, Filters: f})
	require.NoError(t, err)
	for _, c := range containers {
		all = append(all, fmt.Sprint("container ", c.Names))
	}
	images, err := d.ImageList(ctx, image.ListOptions{All: true, Filters: f})
	require.NoError(t, err)
	for _, i := range images {
		all = append(all, fmt.Sprint("image ", i.ID, i.RepoTags))
	}
	networks, err := d.NetworkList(ctx, network.ListOptions{Filters: f})
	require.NoError(t, err)
	for _, n := range networks {
		all = append(all, "network "+n.Name)
	}
	volumes, err := d.VolumeList(ctx, volume.ListOptions{Filters: f})
	require.NoError(t, err)
	for _, v := range volumes.Volumes {
		all = append(all, "volume "+v.Name)
	}
	slices.Sort(all)
	return all
}

func TestDemoTellsATrueStoryAndLeavesNothing(t *testing.T) {
	d := stage.OpenDocker(t)
	before := staged(t, d)
	run := startDemo(t, d)
	require.NoError(t, run.cmd.Wait())
	run.leavesNothing(t, d, before)

	out := run.out.String()
	require.NotContains(t, out, "\x1b", "no colours where there is no terminal")
	for _, line := range strings.Split(out, "\n") {
		require.LessOrEqual(t, len([]rune(line)), 80, "%q", line)
	}
	recorded, err := os.ReadFile("../docs/demo.txt")
	require.NoError(t, err)
	require.Equal(t, play.Headings(out), play.Headings(string(recorded)), "record it anew: make demo > docs/demo.txt 2>&1")
}

func TestDemoThatIsBrokenOffLeavesNothing(t *testing.T) {
	for name, at := range map[string]string{
		"before updaterd runs":    "$ curl",
		"in the middle of a swap": "phase=applying",
	} {
		t.Run(name, func(t *testing.T) {
			d := stage.OpenDocker(t)
			before := staged(t, d)
			run := startDemo(t, d)
			stage.Eventually(t, time.Minute, at, func() bool { return strings.Contains(run.out.String(), at) })
			require.NoError(t, run.cmd.Process.Signal(syscall.SIGINT))

			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			context.AfterFunc(ctx, func() { _ = run.cmd.Process.Kill() })
			err := run.cmd.Wait()
			var exit *exec.ExitError
			require.True(t, errors.As(err, &exit), "%v", err)
			require.Equal(t, 130, exit.ExitCode())
			run.leavesNothing(t, d, before)
		})
	}
}

func TestDemoThatIsKeptShowsThePage(t *testing.T) {
	d := stage.OpenDocker(t)
	before := staged(t, d)
	run := startDemo(t, d, "-keep")
	last := regexp.MustCompile(`log in with +(\S+)\n +the page +(http://\S+/)\n$`)
	var told []string
	stage.Eventually(t, 2*time.Minute, "the page's address, as the last line", func() bool {
		told = last.FindStringSubmatch(run.out.String())
		return told != nil
	})
	// It can be steered there, and goes on meanwhile.
	ask := func(method, path, body string) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, told[2]+path, strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+told[1])
		r.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, answer.StatusCode, "%s", text)
		return string(text)
	}
	require.Contains(t, ask("GET", "v1/workloads", ""), `"rejected"`)
	require.Contains(t, ask("POST", "v1/hold", `{"workloads":["`+webOf(t, d, before)+`"]}`), `"changed":true`)

	require.NoError(t, run.cmd.Process.Signal(syscall.SIGINT))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	context.AfterFunc(ctx, func() { _ = run.cmd.Process.Kill() })
	require.NoError(t, run.cmd.Wait(), "that is how it ends")
	require.Contains(t, run.out.String(), "removed again")
	run.leavesNothing(t, d, before)
}

// webOf is the name of the demo's container.
func webOf(t *testing.T, d *stage.Docker, before []string) string {
	t.Helper()
	for _, one := range staged(t, d) {
		if name, ok := strings.CutPrefix(one, "container [/"); ok && !slices.Contains(before, one) {
			return strings.TrimSuffix(name, "]")
		}
	}
	t.Fatal("the demo has no container")
	return ""
}

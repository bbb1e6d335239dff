package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/play"
	"github.com/updaterd/updaterd/e2e/stage"
)

// demo is a run of what `make demo-cluster` runs.
type demo struct {
	cmd  *exec.Cmd
	out  string // the file that it prints to
	temp string // where it keeps its files
}

func startDemo(t *testing.T) demo {
	t.Helper()
	bin := t.TempDir()
	b, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./cmd/demo", "./cmd/cluster").CombinedOutput()
	require.NoError(t, err, "%s", b)
	// That of t would make the path of a socket too long.
	temp, err := os.MkdirTemp("", "demo-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(temp)) })
	e2e, err := filepath.Abs("..")
	require.NoError(t, err)
	out, err := os.Create(filepath.Join(bin, "out"))
	require.NoError(t, err)
	defer out.Close()

	run := demo{cmd: exec.Command(filepath.Join(bin, "cluster"), "run", filepath.Join(bin, "demo")), out: out.Name(), temp: temp}
	run.cmd.Env = append(os.Environ(), "UPDATERD_E2E="+e2e, "TMPDIR="+temp)
	run.cmd.Stdout, run.cmd.Stderr = out, out
	require.NoError(t, run.cmd.Start())
	t.Cleanup(func() {
		_ = run.cmd.Process.Kill() // It may have ended already.
		if t.Failed() {
			t.Logf("it printed:\n%s", run.printed(t))
		}
	})
	return run
}

func (r demo) printed(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(r.out)
	require.NoError(t, err)
	return string(b)
}

// leavesNothing: no file, and no process.
func (r demo) leavesNothing(t *testing.T) {
	t.Helper()
	files, err := os.ReadDir(r.temp)
	require.NoError(t, err)
	require.Empty(t, files)
	processes, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	for _, p := range processes {
		// Those that ended meanwhile, and those of others, cannot be read.
		if environ, err := os.ReadFile(p); err == nil {
			require.NotContains(t, string(environ), "TMPDIR="+r.temp, "a process is left: %s", p)
		}
	}
}

func TestDemoTellsATrueStoryAndLeavesNothing(t *testing.T) {
	t.Parallel()
	run := startDemo(t)
	require.NoError(t, run.cmd.Wait())
	run.leavesNothing(t)

	out := run.printed(t)
	require.NotContains(t, out, "\x1b", "no colours where there is no terminal")
	_, told, ok := strings.Cut(out, "KUBECONFIG=")
	require.True(t, ok)
	for line := range strings.Lines(told[strings.Index(told, "\n"):]) {
		require.LessOrEqual(t, len([]rune(line)), 81, "%q", line)
	}
	recorded, err := os.ReadFile("../../docs/demo-cluster.txt")
	require.NoError(t, err)
	require.Equal(t, play.Headings(out), play.Headings(string(recorded)), "record it anew: make demo-cluster > docs/demo-cluster.txt 2>&1")
}

func TestDemoThatIsBrokenOffLeavesNothing(t *testing.T) {
	for name, at := range map[string]string{
		"before updaterd runs":       "$ kubectl",
		"in the middle of a rollout": "phase=judging",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := startDemo(t)
			stage.Eventually(t, 2*time.Minute, at, func() bool { return strings.Contains(run.printed(t), at) })
			require.NoError(t, run.cmd.Process.Signal(syscall.SIGINT))
			require.Error(t, run.cmd.Wait())
			require.Equal(t, 128+int(syscall.SIGTERM), run.cmd.ProcessState.ExitCode(), "that is what the demo is told")
			run.leavesNothing(t)
		})
	}
}

package stage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// Updaterd is an installation of the real program: a configuration file, a
// state directory and an environment.
type Updaterd struct {
	// Bin is the program: $UPDATERD_BIN, or built from this repository.
	Bin string
	// Config is the path of the configuration file.
	Config string
	// State is the state directory, as $STATE_DIRECTORY.
	State string
	// Env is added to the environment, which is otherwise this process's without
	// what updaterd would read.
	Env []string
	// Timeout is how long Run lets a command take; twice the Patience.
	Timeout time.Duration

	t TB
}

// Result is what a finished command left.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// NewUpdaterd makes an installation with the configuration and with DOCKER_HOST
// set to host. Where the engine is shared give it Docker.Scoped, so that it sees
// no containers but the test's.
func NewUpdaterd(t TB, host, config string) *Updaterd {
	t.Helper()
	require.NotNil(t, shared.self, "call stage.Main from TestMain")
	bin, err := shared.self()
	require.NoError(t, err)
	dir := t.TempDir()
	u := &Updaterd{
		Bin: bin, Config: filepath.Join(dir, "updaterd.yaml"), State: filepath.Join(dir, "state"),
		Env: []string{"DOCKER_HOST=" + host}, Timeout: 2 * Patience, t: t,
	}
	require.NoError(t, os.Mkdir(u.State, 0o700))
	u.WriteConfig(config)
	return u
}

// WriteConfig replaces the configuration file, as editors do.
func (u *Updaterd) WriteConfig(config string) {
	u.t.Helper()
	require.NoError(u.t, os.WriteFile(u.Config+".new", []byte(config), 0o600))
	require.NoError(u.t, os.Rename(u.Config+".new", u.Config))
}

func (u *Updaterd) command(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, u.Bin, args...)
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(key, "UPDATERD_") || strings.HasPrefix(key, "DOCKER_") || key == "STATE_DIRECTORY" || key == "NOTIFY_SOCKET" {
			continue
		}
		cmd.Env = append(cmd.Env, kv)
	}
	cmd.Env = append(cmd.Env, "UPDATERD_CONFIG="+u.Config, "STATE_DIRECTORY="+u.State)
	cmd.Env = append(cmd.Env, u.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// It has ended when its process has, whoever still holds its output.
	cmd.WaitDelay = time.Second
	return cmd
}

// Run runs a command to its end, whatever that is. One that takes longer than
// Timeout fails the test.
func (u *Updaterd) Run(args ...string) Result {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), u.Timeout)
	defer cancel()
	cmd := u.command(ctx, args)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		u.t.Fatalf("updaterd %s did not end within %s; it said:\n%s%s", strings.Join(args, " "), u.Timeout, &stdout, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		require.NoError(u.t, err)
	}
	r := Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	u.t.Logf("updaterd %s: exit %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	return r
}

// Unread runs a command of which nobody reads what it prints any more, as after
// "updaterd ... 2>&1 | head -1", and returns its exit code, -1 after a signal.
func (u *Updaterd) Unread(args ...string) int {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), u.Timeout)
	defer cancel()
	r, w, err := os.Pipe()
	require.NoError(u.t, err)
	require.NoError(u.t, r.Close())
	defer w.Close()
	cmd := u.command(ctx, args)
	cmd.Stdout, cmd.Stderr = w, w
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) {
		require.NoError(u.t, err)
	}
	require.NoError(u.t, ctx.Err(), "updaterd %s did not end", strings.Join(args, " "))
	return cmd.ProcessState.ExitCode()
}

// Daemon is an updaterd that runs beside the test.
type Daemon struct {
	Pid  int
	cmd  *exec.Cmd
	out  *lines
	done chan struct{}
	t    TB
}

// Start begins a command, "run" if no other is given, whose output goes to the
// test's log. It is killed when the test ends.
func (u *Updaterd) Start(args ...string) *Daemon {
	u.t.Helper()
	if len(args) == 0 {
		args = []string{"run"}
	}
	d := &Daemon{
		cmd: u.command(context.Background(), args), out: &lines{t: u.t, prefix: "updaterd: "},
		done: make(chan struct{}), t: u.t,
	}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	require.NoError(u.t, d.cmd.Start())
	d.Pid = d.cmd.Process.Pid
	go func() {
		defer close(d.done)
		_ = d.cmd.Wait() // The state tells; see Code.
	}()
	u.t.Cleanup(func() {
		d.Kill()
		d.out.mute()
	})
	return d
}

// Kill ends it as kill -9 does and returns when it is gone. It may be called
// from anywhere, twice, and when it has ended already.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}

// Signal sends a signal.
func (d *Daemon) Signal(s syscall.Signal) {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(s))
}

// Stop sends SIGTERM and returns the exit code; it fails the test if that takes
// longer than timeout.
func (d *Daemon) Stop(timeout time.Duration) int {
	d.t.Helper()
	d.Signal(syscall.SIGTERM)
	return d.Wait(timeout)
}

// Wait returns the exit code, -1 after a signal; it fails the test if the end
// takes longer than timeout.
func (d *Daemon) Wait(timeout time.Duration) int {
	d.t.Helper()
	select {
	case <-d.done:
		return d.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		d.t.Fatalf("updaterd did not end within %s", timeout)
		return -1
	}
}

// Done is closed when it has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Logs is all it wrote so far.
func (d *Daemon) Logs() string { return d.out.String() }

// WaitLog waits until it has written text.
func (d *Daemon) WaitLog(text string, timeout time.Duration) {
	d.t.Helper()
	Eventually(d.t, timeout, "updaterd to log "+text, func() bool { return strings.Contains(d.Logs(), text) })
}

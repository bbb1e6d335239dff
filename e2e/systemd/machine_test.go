//go:build systemd

package systemd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/program"
	"github.com/updaterd/updaterd/e2e/stage"
)

// machine is a Debian with systemd that runs, in a container. What is changed in it
// is gone with it.
type machine struct {
	t   *testing.T
	pid int // of its systemd, as we see it
}

// tools installs what makes and boots the system.
func tools(t *testing.T) {
	t.Helper()
	for program, pkg := range map[string]string{"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"} {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		for _, args := range [][]string{{"-q", "update"}, {"-qy", "--no-install-recommends", "install", pkg}} {
			cmd := exec.Command("apt-get", args...)
			cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
	}
}

// system is the directory of a Debian with systemd and rpm, made once on a machine.
func system(t *testing.T) string {
	t.Helper()
	cache, err := program.Cache("systemd")
	require.NoError(t, err)
	dir := filepath.Join(cache, "bookworm-rpm")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tools(t)
	half := dir + ".new"
	require.NoError(t, os.RemoveAll(half))
	out, err := exec.Command("debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,rpm", "bookworm", half).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.Rename(half, dir))
	return dir
}

// boot starts a machine that sees the socket of an engine, and the directory of the
// packages at /dists.
func boot(t *testing.T, socket, dists string) *machine {
	t.Helper()
	root := system(t)
	tools(t)
	var console bytes.Buffer
	cmd := exec.Command("systemd-nspawn", "-q", "-D", root, "--ephemeral", "--register=no", "--keep-unit", "--boot",
		"--bind="+socket+":/run/docker.sock", "--bind-ro="+dists+":/dists", "--console=pipe")
	cmd.Stdout, cmd.Stderr = &console, &console
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it powers the machine off
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("console:\n%s", console.String())
		}
	})
	m := &machine{t: t}
	stage.Eventually(t, time.Minute, "the machine has booted", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil {
			return false
		}
		m.pid, err = strconv.Atoi(strings.TrimSpace(string(children)))
		if err != nil {
			return false
		}
		state, _ := m.try("systemctl", "is-system-running")
		return strings.TrimSpace(state) == "running"
	})
	return m
}

// try runs a command in the machine.
func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-a", "env", "-i",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// run runs a command in the machine that must succeed.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	require.NoError(m.t, err, "%v:\n%s\n%s", args, out, m.log())
	return out
}

// write writes a file in the machine.
func (m *machine) write(path, content string) {
	m.t.Helper()
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(m.pid), "-a", "sh", "-c", `mkdir -p "$(dirname "$1")" && cat >"$1"`, "sh", path)
	cmd.Stdin = strings.NewReader(content)
	out, err := cmd.CombinedOutput()
	require.NoError(m.t, err, "%s", out)
}

// log is what the service wrote.
func (m *machine) log() string {
	out, _ := m.try("journalctl", "-u", "updaterd", "--no-pager", "-o", "short-precise")
	return out
}

// property is one of the unit.
func (m *machine) property(name string) string {
	m.t.Helper()
	out, err := m.try("systemctl", "show", "updaterd", "--value", "-p", name)
	require.NoError(m.t, err, out)
	return strings.TrimSpace(out)
}

// eventually waits for something of the machine.
func (m *machine) eventually(timeout time.Duration, what string, ok func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(timeout)
	for !ok() {
		require.True(m.t, time.Now().Before(deadline), "%s: not within %s\n%s", what, timeout, m.log())
		time.Sleep(200 * time.Millisecond) // each look is processes of its own, in the machine
	}
}

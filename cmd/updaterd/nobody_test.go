package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/server"
)

// asNobody runs the test as a user whom permissions hold for, and reports whether this
// is the process in which it is to run.
func asNobody(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		return true
	}
	dir, err := os.MkdirTemp("", "updaterd-nobody-") // that of t is root's alone
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o777))
	content, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	binary := filepath.Join(dir, "test")
	require.NoError(t, os.WriteFile(binary, content, 0o755))
	cmd := exec.CommandContext(t.Context(), binary, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+t.Name())
	return false
}

// TestASocketThatMayNotBeOpenedHidesNoOther: the daemon may listen on the next one.
func TestASocketThatMayNotBeOpenedHidesNoOther(t *testing.T) {
	if !asNobody(t) {
		return
	}
	closed := func() string {
		dir := filepath.Join(t.TempDir(), "d")
		require.NoError(t, os.Mkdir(dir, 0o700))
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		require.NoError(t, err)
		require.NoError(t, os.Chmod(dir, 0))
		t.Cleanup(func() {
			require.NoError(t, os.Chmod(dir, 0o700))
			require.NoError(t, l.Close())
		})
		return filepath.Join(dir, "s")
	}
	first, second := closed(), closed()
	none := filepath.Join(t.TempDir(), "s")
	open := play(t).socket
	for name, c := range map[string]struct {
		sockets []string
		err     error
		told    string
	}{
		"the next one answers":                       {[]string{first, open}, nil, ""},
		"the first one answers":                      {[]string{open, second}, nil, ""},
		"nobody on the next one":                     {[]string{first, none}, server.ErrForbidden, first},
		"nobody on the first one":                    {[]string{none, second}, server.ErrForbidden, second},
		"neither may be opened: the service's is it": {[]string{first, second}, server.ErrForbidden, second},
		"nobody on the only one":                     {[]string{"", none}, server.ErrNobody, none},
		"there is none":                              {[]string{""}, server.ErrNobody, "no updaterd listens"},
	} {
		t.Run(name, func(t *testing.T) {
			_, status, err := answering(t.Context(), c.sockets)
			require.ErrorIs(t, err, c.err)
			if c.err == nil {
				require.True(t, status.Ready)
				return
			}
			require.ErrorContains(t, err, c.told)
		})
	}
}

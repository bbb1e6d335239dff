//go:build systemd

package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestRPM plays the life of the rpm, in a Debian, whose rpm does what everybody's does:
// files, scripts and what an administrator changed.
func TestRPM(t *testing.T) {
	dists := os.Getenv("UPDATERD_DISTS")
	require.NotEmpty(t, dists, "run it with make test-systemd")
	m := boot(t, strings.TrimPrefix(stage.StartDocker(t, engine.Options{}).Host, "unix://"), dists)
	one := func(which, pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dists, which, pattern))
		require.NoError(t, err)
		require.Len(t, found, 1)
		return found[0]
	}
	rpm := func(which string) string { return "/dists/" + which + "/" + filepath.Base(one(which, "*.rpm")) }
	running := func(not string) {
		t.Helper()
		m.eventually(time.Minute, "it runs", func() bool {
			now := m.property("MainPID")
			return now != "0" && now != not && m.property("ActiveState") == "active"
		})
	}

	require.Contains(t, m.run("rpm", "-K", "--nosignature", rpm("dist-new")), "digests OK")
	// It holds what the deb holds, but for where zsh looks.
	contents, err := exec.Command("dpkg-deb", "--fsys-tarfile", one("dist-new", "*.deb")).Output()
	require.NoError(t, err)
	list := exec.Command("tar", "-tf", "-")
	list.Stdin = strings.NewReader(string(contents))
	out, err := list.Output()
	require.NoError(t, err)
	var deb []string
	for path := range strings.Lines(string(out)) {
		if path = strings.TrimPrefix(strings.TrimSpace(path), "."); path != "" && !strings.HasSuffix(path, "/") {
			deb = append(deb, strings.Replace(path, "/zsh/vendor-completions/", "/zsh/site-functions/", 1))
		}
	}
	slices.Sort(deb)
	require.Equal(t, deb, slices.Sorted(strings.FieldsSeq(m.run("rpm", "-qp", "--list", rpm("dist-new")))))

	m.run("rpm", "--install", rpm("dist-old"))
	require.Equal(t, "updaterd v0.0.1\n", m.run("updaterd", "version"))
	require.Contains(t, m.run("id", "updaterd"), "(docker)")
	require.Equal(t, "enabled\n", m.run("systemctl", "is-enabled", "updaterd"), "as the machine's presets have it")
	require.NotEqual(t, "active", m.property("ActiveState"), "an rpm starts nothing")
	m.run("chgrp", "docker", "/run/docker.sock")
	m.run("systemctl", "start", "updaterd")
	running("0")

	m.write("/etc/updaterd/updaterd.yaml", fast)
	pid := m.property("MainPID")
	m.run("rpm", "--upgrade", rpm("dist-new"))
	running(pid)
	require.Equal(t, "updaterd v0.0.2\n", m.run("updaterd", "version"))
	require.Equal(t, fast, m.run("cat", "/etc/updaterd/updaterd.yaml"))
	m.eventually(time.Minute, "it is well", func() bool {
		_, err := m.try("updaterd", "status")
		return err == nil
	})

	m.run("rpm", "--erase", "updaterd")
	require.NotEqual(t, "active", m.property("ActiveState"))
	_, err = m.try("test", "-e", "/usr/bin/updaterd")
	require.Error(t, err)
	require.Equal(t, fast, m.run("cat", "/etc/updaterd/updaterd.yaml.rpmsave"), "what an administrator wrote is kept")
	m.run("test", "-e", "/var/lib/updaterd/local.db")
}

//go:build systemd

package systemd

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

func TestMain(m *testing.M) { os.Exit(stage.Main(m)) }

// fast is a configuration whose passes come often, and verdicts soon.
const fast = `
state: /var/lib/updaterd
schedule: "@every 1s"
jitter: 0s
watch: labelled
defaults:
  health: {timeout: 30s, stable: 500ms}
`

// TestService plays one life of the package, each part on what the one before left.
func TestService(t *testing.T) {
	dists := os.Getenv("UPDATERD_DISTS")
	require.NotEmpty(t, dists, "run it with make test-systemd")
	d := stage.StartDocker(t, engine.Options{})
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	m := boot(t, strings.TrimPrefix(d.Host, "unix://"), dists)
	deb := func(which string) string {
		found, err := filepath.Glob(filepath.Join(dists, which, "*_"+runtime.GOARCH+".deb"))
		require.NoError(t, err)
		require.Len(t, found, 1)
		return "/dists/" + which + "/" + filepath.Base(found[0])
	}
	part := func(name string, play func(t *testing.T)) {
		if t.Failed() {
			return // it needs what the one before left
		}
		t.Run(name, func(t *testing.T) {
			outer := m.t
			m.t = t
			defer func() { m.t = outer }()
			play(t)
		})
	}
	version := func() string { return m.run("updaterd", "version") }
	active := func() bool { return m.property("ActiveState") == "active" }
	// again waits until systemd has started another process.
	again := func(pid string) {
		m.eventually(time.Minute, "another one runs", func() bool {
			now := m.property("MainPID")
			return now != "0" && now != pid && active()
		})
	}

	name := d.Name("web")
	ref := reg.Ref("acme/" + name + ":latest")
	// slow takes a while to stop, so that there is a middle of a swap.
	push := func(version string, how stage.Behaviour) string {
		return reg.Push("acme/"+name+":latest", stage.Image{Version: version, Behave: how})
	}

	part("the deb is installed and the service started", func(t *testing.T) {
		m.run("dpkg", "--install", deb("dist-old"))
		require.Equal(t, "updaterd v0.0.1\n", version())
		require.Equal(t, "enabled\n", m.run("systemctl", "is-enabled", "updaterd"))
		m.eventually(time.Minute, "it is active", active)
		require.Contains(t, m.run("id", "updaterd"), "(docker)")
	})

	part("ready, although the engine cannot be asked, and says so", func(t *testing.T) {
		m.run("chgrp", "0", "/run/docker.sock")
		m.run("systemctl", "restart", "updaterd")
		require.True(t, active())
		m.eventually(20*time.Second, "the status names the trouble", func() bool {
			return strings.Contains(m.property("StatusText"), "local cannot be asked")
		})
		m.run("chgrp", "docker", "/run/docker.sock")
	})

	part("the unit is sound, and hardened", func(t *testing.T) {
		// Debian's minimal system keeps no manual pages, which dpkg left out.
		out, err := m.try("systemd-analyze", "verify", "/usr/lib/systemd/system/updaterd.service")
		if err != nil {
			require.Equal(t, 1, len(strings.Split(strings.TrimSpace(out), "\n")), out)
			require.Contains(t, out, "man updaterd(1)")
		}
		// The threshold is in tenths.
		m.run("systemd-analyze", "security", "updaterd.service", "--threshold=20", "--no-pager")
	})

	part("a container is updated, and commands by hand see it", func(t *testing.T) {
		first := push("v1", stage.Behaviour{})
		d.Run(stage.Spec{Name: name, Config: container.Config{Image: ref, Labels: map[string]string{"updaterd.enable": "true"}}})
		d.WaitRunning(name, 20*time.Second)
		m.write("/etc/updaterd/updaterd.yaml", fast)
		m.run("systemctl", "reload", "updaterd")
		require.Contains(t, m.run("updaterd", "check"), name)
		second := push("v2", stage.Behaviour{})
		require.NotEqual(t, first, second)
		m.eventually(time.Minute, "it is updated", func() bool {
			return strings.Contains(m.run("updaterd", "history"), "updated")
		})
		m.eventually(20*time.Second, "the status counts it", func() bool {
			return strings.Contains(m.property("StatusText"), "1 workloads watched")
		})
		// What root's commands touch stays the service's.
		require.Empty(t, m.run("find", "/var/lib/updaterd", "!", "-user", "updaterd"))
		// Members of the group need not be root.
		m.run("useradd", "-G", "updaterd,docker", "alice")
		require.Contains(t, m.run("runuser", "-u", "alice", "--", "updaterd", "history"), "updated")
		require.Contains(t, m.run("runuser", "-u", "alice", "--", "updaterd", "check"), name)
		m.run("runuser", "-u", "alice", "--", "updaterd", "forget", name)
		// And whoever is not may not.
		m.run("useradd", "mallory")
		out, err := m.try("runuser", "-u", "mallory", "--", "updaterd", "history")
		require.Error(t, err, out)
		require.Contains(t, out, "/run/updaterd/updaterd.sock may not be opened")
	})

	part("lines have their levels", func(t *testing.T) {
		push("v3", stage.Exit(3))
		m.eventually(time.Minute, "it is put back", func() bool {
			return strings.Contains(m.run("journalctl", "-u", "updaterd", "-p", "warning", "--no-pager"), `msg="change is over"`)
		})
		require.NotContains(t, m.run("journalctl", "-u", "updaterd", "-p", "warning", "--no-pager"), `msg="pass over"`)
	})

	part("a broken configuration makes the reload fail, and the old one stays", func(t *testing.T) {
		pid := m.property("MainPID")
		m.write("/etc/updaterd/updaterd.yaml", fast+"policies: wrong\n")
		out, err := m.try("systemctl", "reload", "updaterd")
		require.Error(t, err, out)
		m.eventually(20*time.Second, "the status names it", func() bool {
			return strings.Contains(m.property("StatusText"), "CONFIGURATION REFUSED")
		})
		require.Contains(t, m.log(), "policies")
		require.Equal(t, pid, m.property("MainPID"))
		m.write("/etc/updaterd/updaterd.yaml", fast)
		m.run("systemctl", "reload", "updaterd")
		m.eventually(20*time.Second, "the status is fine again", func() bool {
			return !strings.Contains(m.property("StatusText"), "REFUSED")
		})
	})

	part("systemd hands over secrets", func(t *testing.T) {
		m.write("/etc/updaterd/secrets/hook", "http://127.0.0.1:9/\n")
		m.run("chmod", "-R", "go=", "/etc/updaterd/secrets")
		m.write("/etc/systemd/system/updaterd.service.d/secrets.conf", "[Service]\nLoadCredential=hook:/etc/updaterd/secrets/hook\n")
		m.write("/etc/updaterd/updaterd.yaml", fast+"notify: [{url-file: $CREDENTIALS_DIRECTORY/hook, on: [failed]}]\n")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "restart", "updaterd")
		m.run("systemctl", "reload", "updaterd")
		require.Contains(t, m.run("updaterd", "check"), name, "by hand, as root")
	})

	// runs waits until a version runs, alone and for good.
	runs := func(t *testing.T, version string) {
		t.Helper()
		d.Wait(name, time.Minute, "it runs "+version, func(c container.InspectResponse) bool {
			return c.State.Running && slices.Contains(c.Config.Env, "APP_VERSION="+version)
		})
		m.eventually(time.Minute, "no change is under way", func() bool {
			return active() && !strings.Contains(m.property("StatusText"), "changing") && len(d.Containers()) == 1
		})
	}
	// middle waits for the middle of the swap that an image begins: the old
	// container, which takes a while to stop, is stopping.
	slow := stage.Behaviour{StopAfter: 6 * time.Second}
	middle := func(version string) {
		before := strings.Count(m.log(), "phase=applying")
		push(version, slow)
		m.eventually(time.Minute, "the swap to "+version+" has begun", func() bool {
			return strings.Count(m.log(), "phase=applying") > before
		})
	}

	part("a kill -9 in the middle of a swap is recovered from", func(t *testing.T) {
		push("v4", slow)
		runs(t, "v4")
		middle("v5")
		pid := m.property("MainPID")
		m.run("sh", "-c", "kill -9 "+pid)
		again(pid)
		runs(t, "v5")
		require.Contains(t, m.log(), `msg="change taken up"`)
	})

	part("a daemon that hangs is ended by the watchdog", func(t *testing.T) {
		m.write("/etc/systemd/system/updaterd.service.d/watchdog.conf", "[Service]\nWatchdogSec=6s\nTimeoutAbortSec=5s\n")
		m.run("systemctl", "daemon-reload")
		m.run("systemctl", "restart", "updaterd")
		pid := m.property("MainPID")
		// That nothing happens cannot be waited for: this is more than twice what the
		// watchdog waits.
		time.Sleep(13 * time.Second)
		require.Equal(t, pid, m.property("MainPID"), "one that answers stays")
		m.run("sh", "-c", "kill -STOP "+pid)
		again(pid)
		require.Contains(t, m.log(), "Watchdog timeout")
		require.Contains(t, m.log(), "goroutine ", "where it hung")
		m.run("rm", "/etc/systemd/system/updaterd.service.d/watchdog.conf")
		m.run("systemctl", "daemon-reload")
	})

	part("a crash of its own is no reason to stay down", func(t *testing.T) {
		pid := m.property("MainPID")
		m.run("sh", "-c", "kill -ABRT "+pid)
		again(pid)
	})

	part("a stop finishes the effect that has begun", func(t *testing.T) {
		middle("v6")
		m.run("systemctl", "stop", "updaterd")
		require.Equal(t, "success", m.property("Result"))
		d.Wait(name, time.Second, "what it was at is finished", func(c container.InspectResponse) bool {
			return c.State.Running && slices.Contains(c.Config.Env, "APP_VERSION=v6")
		})
		m.run("systemctl", "start", "updaterd")
		runs(t, "v6")
	})

	part("a wrong configuration at the start is not tried again and again", func(t *testing.T) {
		m.write("/etc/updaterd/updaterd.yaml", fast+"policies: wrong\n")
		out, err := m.try("systemctl", "restart", "updaterd")
		require.Error(t, err, out)
		require.Equal(t, "failed", m.property("ActiveState"))
		// That systemd does not try again can only be seen by giving it the time: this
		// is more than RestartSec.
		time.Sleep(7 * time.Second)
		require.Equal(t, "failed", m.property("ActiveState"))
		require.Equal(t, "2", m.property("ExecMainStatus"))
		m.write("/etc/updaterd/updaterd.yaml", fast)
		m.run("systemctl", "start", "updaterd")
		require.True(t, active())
	})

	part("an upgrade starts the new one, and keeps what was configured", func(t *testing.T) {
		pid := m.property("MainPID")
		m.run("dpkg", "--install", "--force-confold", deb("dist-new"))
		require.Equal(t, "updaterd v0.0.2\n", version())
		require.True(t, active())
		require.NotEqual(t, pid, m.property("MainPID"))
		require.Contains(t, m.run("cat", "/etc/updaterd/updaterd.yaml"), "@every 1s")
		require.Contains(t, m.run("updaterd", "history"), "updated", "what was remembered")

		m.run("systemctl", "disable", "--now", "updaterd")
		m.run("dpkg", "--install", "--force-confold", deb("dist-old"))
		require.False(t, active(), "what an administrator stopped stays so")
		_, err := m.try("systemctl", "is-enabled", "updaterd")
		require.Error(t, err)
		m.run("systemctl", "enable", "--now", "updaterd")
	})

	part("a removal ends it, and a purge leaves nothing", func(t *testing.T) {
		m.run("dpkg", "--remove", "updaterd")
		_, err := m.try("systemctl", "is-active", "updaterd")
		require.Error(t, err)
		m.run("test", "-e", "/var/lib/updaterd/local.db")
		m.run("test", "-e", "/etc/updaterd/updaterd.yaml")
		m.run("dpkg", "--purge", "updaterd")
		out, _ := m.try("find", "/var/lib/updaterd", "/etc/updaterd/updaterd.yaml", "/usr/bin/updaterd", "/usr/lib/systemd/system/updaterd.service")
		require.NotContains(t, out, "\n/", out)
		require.Equal(t, "running", d.Inspect(name).State.Status, "the containers run on")
	})
}

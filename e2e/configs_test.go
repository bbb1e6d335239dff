package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestComposeFilesThatWeOffer has the real Compose read the files that we offer.
func TestComposeFilesThatWeOffer(t *testing.T) {
	read := func(path string) string {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(content)
	}
	d := stage.OpenDocker(t)
	c := d.NewCompose(stage.NewRegistry(t, stage.RegistryOptions{}), read("../configs/compose.yaml"))
	c.Env = append(c.Env, "DOCKER_GID=123", "UPDATERD_IMAGE=registry.example.com/updaterd:1")
	plain := c.Run("config")
	require.Contains(t, plain, "- \"123\"")
	require.Contains(t, plain, "source: /var/run/docker.sock")

	proxy := read("../configs/compose.socket-proxy.yaml")
	c.Write("compose.socket-proxy.yaml", proxy)
	behind := c.Run("-f", filepath.Join(c.Dir, "compose.socket-proxy.yaml"), "config", "--format", "json", "updaterd")
	require.NotContains(t, behind, `"group_add"`)
	require.Contains(t, behind, `"DOCKER_HOST": "tcp://socket-proxy:2375"`)
	require.NotRegexp(t, `"updaterd": \{[^}]*/var/run/docker.sock`, behind)

	// It allows what the page says, and nothing else.
	allowed := regexp.MustCompile(`'-allow[A-Z]+=[^']+'`)
	require.Equal(t, allowed.FindAllString(read("../docs/socket-proxy.md"), -1), allowed.FindAllString(proxy, -1))
}

// TestComposeFilesRun as they are, but for where this machine has its engine and its
// registry: updaterd is healthy, and keeps what stands beside it up to date; with a
// socket proxy as well, which lets through what the file says and nothing else.
func TestComposeFilesRun(t *testing.T) {
	stage.NotOn(t, engine.Podman, "Podman takes no health check from an image in the OCI's format")
	t.Run("compose.yaml", func(t *testing.T) {
		t.Parallel()
		o := newOffered(t)
		o.up(`
services:
  updaterd:
    network_mode: host
    volumes: !override ["` + o.socket + `:/var/run/docker.sock", "state:/var/lib/updaterd"]
`)
		o.updates()
		require.Len(t, o.Containers(), 2)
	})
	t.Run("compose.socket-proxy.yaml", func(t *testing.T) {
		t.Parallel()
		o := newOffered(t)
		proxy, err := os.ReadFile("../configs/compose.socket-proxy.yaml")
		require.NoError(t, err)
		o.Write("compose.socket-proxy.yaml", string(proxy))
		// A stand-in that understands the same flags.
		o.reg.Push("acme/socket-proxy:1", stage.Image{Version: "1"})
		o.Env = append(o.Env, "SOCKET_PROXY_IMAGE="+o.reg.Ref("acme/socket-proxy:1"))
		o.up(`
services:
  socket-proxy:
    volumes: !override ["`+o.socket+`:/var/run/docker.sock:ro"]
    labels: {`+stage.Label+`: "${MARK}"}
`, "compose.socket-proxy.yaml")
		updaterd := o.d.Inspect(o.Container("updaterd"))
		require.NoError(t, reachable(t, updaterd.State.Pid, o.reg.Host))
		o.updates()
		require.Len(t, o.Containers(), 3)
		require.NotContains(t, o.d.Logs(o.Container("updaterd")), "engine endpoint is forbidden")
		for _, m := range updaterd.Mounts {
			require.NotContains(t, m.Destination, "docker.sock")
		}
		require.NotContains(t, o.d.Logs(o.Container("socket-proxy")), "forbidden: ")
	})
}

// offered is the project of the Compose file that we offer.
type offered struct {
	*stage.Compose
	t      *testing.T
	d      *stage.Docker
	reg    *stage.Registry
	socket string
}

func newOffered(t *testing.T) *offered {
	t.Helper()
	d := stage.OpenDocker(t)
	o := &offered{t: t, d: d, reg: stage.NewRegistry(t, stage.RegistryOptions{}), socket: strings.TrimPrefix(d.Scoped(), "unix://")}
	file, err := os.ReadFile("../configs/compose.yaml")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(filepath.Dir(o.socket), 0o755))
	require.NoError(t, os.Chmod(o.socket, 0o666)) // there is no group to be in
	o.push("1.27.0")
	o.Compose = d.NewCompose(o.reg, string(file))
	o.Env = append(o.Env, "DOCKER_GID=65534", "WEB_IMAGE="+o.reg.Ref("acme/web:1.27.0"),
		"UPDATERD_IMAGE="+release(t, o.reg, stage.NewUpdaterd(t, d.Host, "").Bin, "v0.0.1"))
	return o
}

func (o *offered) push(tag string) {
	o.t.Helper()
	o.reg.Push("acme/web:"+tag, stage.Image{Version: tag})
}

// up starts it all, with these files laid over and at last what this machine needs.
func (o *offered) up(override string, over ...string) {
	o.t.Helper()
	o.Write("mine.yaml", `
services:
  updaterd:
    environment: {UPDATERD_SCHEDULE: "@every 1s", UPDATERD_JITTER: 0s, UPDATERD_DEFAULTS_HEALTH_STABLE: 500ms}
    labels: {`+stage.Label+`: "${MARK}"}
    healthcheck: {interval: 300ms}
  web:
    labels: {`+stage.Label+`: "${MARK}"}
`)
	o.Write("here.yaml", override)
	var args []string
	for _, file := range append(over, "mine.yaml", "here.yaml") {
		args = append(args, "-f", filepath.Join(o.Dir, file))
	}
	o.Up(args...)
}

// updates waits for an update to the end.
func (o *offered) updates() {
	o.t.Helper()
	o.d.WaitHealthy(o.Container("updaterd"), time.Minute)
	o.push("1.27.1")
	o.d.Wait(o.Container("web"), time.Minute, "updated", func(i container.InspectResponse) bool {
		return i.State.Running && i.Config.Image == o.reg.Ref("acme/web:1.27.1")
	})
	stage.Eventually(o.t, time.Minute, "the change to be over", func() bool {
		return strings.Contains(o.d.Logs(o.Container("updaterd")), "phase=committed")
	})
}

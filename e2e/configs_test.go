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
	c.Env = append(c.Env, "DOCKER_GID=123")
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

// TestComposeFileRuns as it is, but for where this machine has its engine and its
// registry: updaterd is healthy, and keeps what stands beside it up to date.
func TestComposeFileRuns(t *testing.T) {
	stage.NotOn(t, engine.Podman, "Podman takes no health check from an image in the OCI's format")
	t.Parallel()
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	push := func(tag string) string { return reg.Push("acme/web:"+tag, stage.Image{Version: tag}) }
	push("1.27.0")
	file, err := os.ReadFile("../configs/compose.yaml")
	require.NoError(t, err)
	c := d.NewCompose(reg, string(file))
	socket := strings.TrimPrefix(d.Scoped(), "unix://")
	require.NoError(t, os.Chmod(filepath.Dir(socket), 0o755))
	require.NoError(t, os.Chmod(socket, 0o666)) // there is no group to be in
	c.Write("compose.override.yaml", `
services:
  updaterd:
    network_mode: host
    volumes: !override ["`+socket+`:/var/run/docker.sock", "state:/var/lib/updaterd"]
    environment: {UPDATERD_SCHEDULE: "@every 1s", UPDATERD_JITTER: 0s, UPDATERD_DEFAULTS_HEALTH_STABLE: 500ms}
    labels: {`+stage.Label+`: "${MARK}"}
    healthcheck: {interval: 300ms}
  web:
    labels: {`+stage.Label+`: "${MARK}"}
`)
	c.Env = append(c.Env, "DOCKER_GID=65534", "WEB_IMAGE="+reg.Ref("acme/web:1.27.0"),
		"UPDATERD_IMAGE="+release(t, reg, stage.NewUpdaterd(t, d.Host, "").Bin, "v0.0.1"))
	c.Up("-f", filepath.Join(c.Dir, "compose.override.yaml"))
	d.WaitHealthy(c.Container("updaterd"), time.Minute)
	push("1.27.1")
	d.Wait(c.Container("web"), time.Minute, "updated", func(i container.InspectResponse) bool {
		return i.State.Running && i.Config.Image == reg.Ref("acme/web:1.27.1")
	})
	stage.Eventually(t, time.Minute, "the change to be over", func() bool {
		return strings.Contains(d.Logs(c.Container("updaterd")), "phase=committed")
	})
	require.Len(t, c.Containers(), 2)
}

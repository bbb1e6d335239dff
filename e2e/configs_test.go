package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

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

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestAPushIsLookedAtAtOnce when the registry tells of it, and only then.
func TestAPushIsLookedAtAtOnce(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-word-of-some-length"
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte(secret+"\n"), 0o600))
	address := freePort(t)
	r := newRig(t, start{config: fmt.Sprintf("%swebhooks:\n  listen: %q\n  senders:\n    - {name: registry, kind: distribution, secret-file: %s}\n    - {name: hub, kind: docker-hub, secret-file: %[3]s}\n",
		strings.Replace(settings, "@every 1s", "@every 1h", 1), address, file)})
	daemon := r.u.Start("run")
	daemon.WaitLog("pass over", 20*time.Second)
	digest := r.push("latest", stage.Image{Version: "v2"})

	host, repository, _ := strings.Cut(r.ref, "/")
	repository, tag, _ := strings.Cut(repository, ":")
	post := func(token, host, repository string) int {
		body := fmt.Sprintf(`{"events":[{"action":"push","target":{"repository":%q,"tag":%q},"request":{"host":%q}}]}`, repository, tag, host)
		req, err := http.NewRequest(http.MethodPost, "http://"+address+"/webhooks/registry", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", token)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		return resp.StatusCode
	}
	require.Equal(t, http.StatusUnauthorized, post("Bearer wrong", host, repository))
	require.Equal(t, http.StatusAccepted, post("Bearer "+secret, host, repository+"-unwatched"))
	resp, err := http.Post("http://"+address+"/webhooks/hub/"+secret, "application/json", strings.NewReader(`{"push_data":{"tag":"1"},"repository":{"repo_name":"acme/unwatched"}}`))
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	require.Empty(t, r.history())

	require.Equal(t, http.StatusAccepted, post("Bearer "+secret, host, repository))
	require.Eventually(t, func() bool { return len(r.history()) == 1 }, time.Minute, 200*time.Millisecond)
	r.updated("v2", digest)
	require.NotContains(t, daemon.Logs(), secret)
	require.NotContains(t, daemon.Logs(), "/webhooks/")
	require.Zero(t, daemon.Stop(10*time.Second))
}

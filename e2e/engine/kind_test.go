package engine

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheProxyAllowsWhatThePageSays(t *testing.T) {
	got, err := proxyConfig(`
      - '-listenip=0.0.0.0'
      - '-allowHEAD=/_ping'
      - '-allowPOST=/v1\.[0-9]+/containers/[a-z0-9]+/(start|stop)'
`, "/engine.sock", "/front.sock")
	require.NoError(t, err)
	require.Contains(t, got, `bind "unix@/front.sock"`)
	require.Contains(t, got, `server engine "unix@/engine.sock"`)
	require.Contains(t, got, `http-request allow if { method HEAD } { path -m reg '^/_ping$' }
    http-request allow if { method POST } { path -m reg '^/v1\.[0-9]+/containers/[a-z0-9]+/(start|stop)$' }
    http-request deny deny_status 403
`)
	require.NotContains(t, got, "listenip")

	_, err = proxyConfig("nothing", "", "")
	require.Error(t, err, "a proxy that forbids everything proves nothing")
	page, err := os.ReadFile("../../docs/socket-proxy.md")
	require.NoError(t, err)
	_, err = proxyConfig(string(page), "", "")
	require.NoError(t, err)
}

func TestUnknownKind(t *testing.T) {
	_, err := Get(t.Context(), "18.09", "", nil)
	require.ErrorContains(t, err, "choose one of [20.10 29 podman proxy]")
}

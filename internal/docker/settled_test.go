package docker

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSettledAcrossAnEngineRestart: an update of a container that an engine
// restart broke off was taken for superseded, and left the original stopped.
func TestSettledAcrossAnEngineRestart(t *testing.T) {
	hash := func(hostConfig string) string { return settled(&box{raw: []byte(`{"HostConfig":` + hostConfig + `}`)}) }
	before := hash(`{"Dns":null,"CapAdd":["NET_ADMIN"],"Memory":0,"RestartPolicy":{"Name":"always"}}`)
	require.Equal(t, before, hash(`{"Dns":[],"CapAdd":["NET_ADMIN"],"Memory":0,"RestartPolicy":{"Name":"no"}}`))
	require.NotEqual(t, before, hash(`{"Dns":null,"CapAdd":["NET_ADMIN"],"Memory":67108864,"RestartPolicy":{"Name":"always"}}`))
	require.NotEqual(t, before, hash(`{"Dns":["1.1.1.1"],"CapAdd":["NET_ADMIN"],"Memory":0}`))
}

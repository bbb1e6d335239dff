package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVariablesAreReadAsPeopleWriteThem: for Compose, for a shell, and on Windows.
func TestVariablesAreReadAsPeopleWriteThem(t *testing.T) {
	for name, file := range map[string]string{
		"plain":       "WATCHTOWER_POLL_INTERVAL=60\nWATCHTOWER_CLEANUP=true\n",
		"in quotes":   "WATCHTOWER_POLL_INTERVAL=\"60\"\nWATCHTOWER_CLEANUP='true'\n",
		"for a shell": "# mine\n\nexport WATCHTOWER_POLL_INTERVAL=60\n  export WATCHTOWER_CLEANUP=true\nPATH\n",
		"on Windows":  "\ufeffWATCHTOWER_POLL_INTERVAL=60\r\nWATCHTOWER_CLEANUP=true\r\n",
	} {
		var out, complaint bytes.Buffer
		p := program{stdin: strings.NewReader(file), stdout: &out, stderr: &complaint}
		require.Zero(t, p.main(t.Context(), []string{"migrate", "watchtower", "--env-file", "-"}), complaint.String())
		require.Contains(t, out.String(), "'@every 1m0s'", name)
		require.Contains(t, out.String(), "keep: 0", name)
		require.NotContains(t, out.String(), "#", name)
	}
}

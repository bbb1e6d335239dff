package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/updater"
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

// TestLabelsOfWatchtowerThatAreHeeded: migrate says of each what a container with it gets.
func TestLabelsOfWatchtowerThatAreHeeded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "updaterd.yaml")
	require.NoError(t, os.WriteFile(file, []byte("watch: all\ncompat: [watchtower]\n"), 0o600))
	cfg, err := config.Load(file, nil)
	require.NoError(t, err)
	for _, label := range []string{
		"enable=true", "enable=maybe", "monitor-only=true", "monitor-only=yes", "no-pull=true", "no-pull=2", "depends-on=/db,cache", "depends-on=,",
		"stop-signal=SIGHUP", "stop-signal=no such", "scope=prod", "lifecycle.pre-check=x", "lifecycle.post-check=x", "lifecycle.pre-update=x", "lifecycle.pre-update=",
		"lifecycle.post-update=x", "lifecycle.pre-update-timeout=1", "lifecycle.pre-update-timeout=1m", "lifecycle.post-update-timeout=-1", "frobnicate=x",
	} {
		t.Run(label, func(t *testing.T) {
			label = "com.centurylinklabs.watchtower." + label
			name, value, _ := strings.Cut(label, "=")
			_, refused := cfg.Settings(updater.Workload{ID: "local/web", Backend: "local", Image: "web:1", Labels: map[string]string{name: value}})
			var out, complaint bytes.Buffer
			p := program{stdin: strings.NewReader(""), stdout: &out, stderr: &complaint}
			require.Zero(t, p.main(t.Context(), []string{"migrate", "watchtower", "-l", label}), complaint.String())
			told := strings.NewReplacer("\n# ", " ", "\n#   ", " ").Replace(out.String())
			if refused == nil {
				require.Contains(t, told, name+": is heeded by compat")
			} else {
				require.Contains(t, told, refused.Error())
				require.NotContains(t, told, "is heeded")
			}
		})
	}
}

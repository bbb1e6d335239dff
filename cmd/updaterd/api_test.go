package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/server"
)

// TestASocketForAGroupThatItCannotBeGivenTo: commands of who runs the daemon, and of
// root, must work all the same, and nobody else's: its own group may be wider than the
// one that was named. Who named a socket is to hear of it.
func TestASocketForAGroupThatItCannotBeGivenTo(t *testing.T) {
	if !asNobody(t) {
		return
	}
	socket := filepath.Join(t.TempDir(), "s")
	var log bytes.Buffer
	w := &wiring{board: server.NewBoard(), log: slog.New(slog.NewTextHandler(&log, nil))}

	end, err := w.api(config.API{Socket: socket, Group: "root", Fallback: true})
	require.NoError(t, err)
	t.Cleanup(end)
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	info, err := os.Stat(socket)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	end()
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "api.group")
	require.Contains(t, log.String(), "Group=root")

	_, err = w.api(config.API{Socket: socket, Group: "root"})
	require.ErrorIs(t, err, errGroup)
	require.ErrorIs(t, err, os.ErrPermission)
	require.NoFileExists(t, socket)
}

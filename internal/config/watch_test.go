package config

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// soon is far less than lookEvery, so that only a notification can be as
// quick, and far more than one takes.
const soon = lookEvery / 3

func TestWatchSeesEveryWayToChangeAFile(t *testing.T) {
	write := func(t *testing.T, path, text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	tests := []struct {
		name   string
		lay    func(t *testing.T, dir string) (path string)
		change func(t *testing.T, dir string)
	}{
		{
			"written in place",
			func(t *testing.T, dir string) string { write(t, dir+"/c", "1"); return dir + "/c" },
			func(t *testing.T, dir string) { write(t, dir+"/c", "2") },
		},
		{
			"replaced, as editors do",
			func(t *testing.T, dir string) string { write(t, dir+"/c", "1"); return dir + "/c" },
			func(t *testing.T, dir string) {
				write(t, dir+"/c.new", "2")
				require.NoError(t, os.Rename(dir+"/c.new", dir+"/c"))
			},
		},
		{
			"removed",
			func(t *testing.T, dir string) string { write(t, dir+"/c", "1"); return dir + "/c" },
			func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/c")) },
		},
		{
			"made at last",
			func(t *testing.T, dir string) string { return dir + "/c" },
			func(t *testing.T, dir string) { write(t, dir+"/c", "2") },
		},
		{
			"swapped through a link to a directory, as Kubernetes does",
			func(t *testing.T, dir string) string {
				require.NoError(t, os.Mkdir(dir+"/..1", 0o700))
				require.NoError(t, os.Mkdir(dir+"/..2", 0o700))
				write(t, dir+"/..1/c", "1")
				write(t, dir+"/..2/c", "2")
				require.NoError(t, os.Symlink("..1", dir+"/..data"))
				require.NoError(t, os.Symlink("..data/c", dir+"/c"))
				return dir + "/c"
			},
			func(t *testing.T, dir string) {
				require.NoError(t, os.Symlink("..2", dir+"/..tmp"))
				require.NoError(t, os.Rename(dir+"/..tmp", dir+"/..data"))
				require.NoError(t, os.RemoveAll(dir+"/..1"))
			},
		},
		{
			"written behind a link",
			func(t *testing.T, dir string) string {
				require.NoError(t, os.Mkdir(dir+"/real", 0o700))
				require.NoError(t, os.Mkdir(dir+"/etc", 0o700))
				write(t, dir+"/real/c", "1")
				require.NoError(t, os.Symlink(dir+"/real/c", dir+"/etc/c"))
				return dir + "/etc/c"
			},
			func(t *testing.T, dir string) { write(t, dir+"/real/c", "2") },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := tt.lay(t, dir)
			calls, stop := watching(t, path)
			// Neither a neighbour nor a touch is a change.
			write(t, filepath.Join(dir, "neighbour"), "x")
			if _, err := os.Stat(path); err == nil {
				require.NoError(t, os.Chtimes(path, time.Now(), time.Now()))
			}
			tt.change(t, dir)
			select {
			case <-calls:
			case <-time.After(soon):
				require.Fail(t, "the change was not seen")
			}
			stop()
			require.Empty(t, calls, "one change was reported twice")
		})
	}
}

// watching begins to watch and returns once changes are seen; stop ends it.
func watching(t *testing.T, path string) (calls chan struct{}, stop func()) {
	t.Helper()
	calls = make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(t.Context())
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- watch(ctx, path, func() { close(begun) }, func() { calls <- struct{}{} }) }()
	<-begun
	return calls, func() {
		cancel()
		require.NoError(t, <-done)
	}
}

func TestWatchWantsAFile(t *testing.T) {
	require.Error(t, Watch(t.Context(), "", func() {}))
}

package journal

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/updater"
)

// BenchmarkFullHistory is what a pass asks of a journal that is as large as it
// gets in practice.
func BenchmarkFullHistory(b *testing.B) {
	f := New(b.TempDir(), "local", discard())
	require.NoError(b, f.write(b.Context(), func(tx *bbolt.Tx) error {
		for i := range historyLimit {
			if _, err := add(tx, updater.Entry{
				At: time.Unix(int64(i), 0), Backend: "local", Workload: "local/web", Event: updater.EventUpdated, Change: "0123456789abcdef",
				From: updater.Image{Ref: "ghcr.io/acme/web:1.4.0", Digest: "sha256:" + string(make([]byte, 64))},
			}); err != nil {
				return err
			}
		}
		return nil
	}))
	j := f.Journal()
	edits := map[string]func(*updater.Record){"local/web": func(*updater.Record) {}}
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := j.Open(b.Context())
			require.NoError(b, err)
		}
	})
	b.Run("remember nothing new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			require.NoError(b, j.Remember(b.Context(), edits))
		}
	})
	b.Run("save", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			require.NoError(b, j.Save(b.Context(), change("web", updater.Applying)))
		}
	})
	b.Run("sound", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			file, err := openLocked(b.Context(), f.path, 0)
			require.NoError(b, err)
			info, err := file.Stat()
			require.NoError(b, err)
			require.NoError(b, sound(file, info.Size()))
			release(file)
		}
	})
}

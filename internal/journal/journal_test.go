package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

func newFile(t *testing.T, dir string) *File {
	t.Helper()
	return New(dir, "local", discard())
}

// logged is a log to look into.
func logged() (*slog.Logger, *bytes.Buffer) {
	var out bytes.Buffer
	return slog.New(slog.NewTextHandler(&out, nil)), &out
}

func change(id string, phase updater.Phase) updater.Change {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := updater.Change{
		ID: id, Backend: "local", Unit: "local/" + id, Phase: phase, Since: at,
		Parts:  []updater.Part{{Workload: "local/" + id, Replace: true}},
		Origin: json.RawMessage(`{"id":"` + id + `"}`),
	}
	if phase.Final() {
		c.Ended = at.Add(time.Minute)
	}
	return c
}

func hold(r *updater.Record) { r.Hold = &updater.Word{Who: "ann"} }

func TestJournal(t *testing.T) {
	t.Run("beside a leader", func(t *testing.T) {
		backendtest.RunJournal(t, func(t *testing.T) updater.Journal {
			return newFile(t, filepath.Join(t.TempDir(), "state")).Journal()
		})
	})
	t.Run("of the leader", func(t *testing.T) {
		backendtest.RunJournal(t, func(t *testing.T) updater.Journal {
			return lead(t, newFile(t, t.TempDir()))
		})
	})
}

// lead leads until the test ends.
func lead(t *testing.T, f *File) updater.Journal {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	leading := make(chan updater.Journal)
	ended := make(chan error, 1)
	go func() {
		ended <- f.Lead(ctx, func(_ context.Context, j updater.Journal) error {
			leading <- j
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		stop()
		require.NoError(t, <-ended)
	})
	select {
	case j := <-leading:
		return j
	case err := <-ended:
		ended <- nil
		require.FailNow(t, "it does not lead", "%v", err)
		return nil
	}
}

func TestWhatOneWritesAnotherReads(t *testing.T) {
	dir := t.TempDir()
	leader := lead(t, newFile(t, dir))
	beside := newFile(t, dir).Journal()
	require.NoError(t, leader.Save(t.Context(), change("web", updater.Applying)))
	changes, err := beside.Open(t.Context())
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.NoError(t, beside.Remember(t.Context(), map[string]func(*updater.Record){"local/web": hold}))
	records, err := leader.Recall(t.Context())
	require.NoError(t, err)
	require.NotNil(t, records["local/web"].Hold)
}

func TestBackendsShareNothing(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	a, b := New(dir, "a", log), New(dir, "b", log)
	require.NoError(t, a.Journal().Save(t.Context(), change("web", updater.Applying)))
	changes, err := b.Journal().Open(t.Context())
	require.NoError(t, err)
	require.Empty(t, changes)
	lead(t, a)
	lead(t, b)
}

func TestReadingMakesNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	j := newFile(t, dir).Journal()
	_, err := j.Open(t.Context())
	require.NoError(t, err)
	_, err = j.Recall(t.Context())
	require.NoError(t, err)
	_, err = j.History(t.Context(), 0)
	require.NoError(t, err)
	require.NoFileExists(t, dir)
	require.NoDirExists(t, dir)

	require.NoError(t, os.Mkdir(dir, 0o700))
	_, err = j.Open(t.Context())
	require.NoError(t, err)
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestOnlyTheOwnerMayRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "state")
	_, err := Owner(dir)
	require.NoError(t, err)
	lead(t, newFile(t, dir))
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), info.Mode().Perm())
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 3)
	for _, file := range files {
		info, err := file.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), file.Name())
	}
}

func TestWhatACommandMakesBelongsToTheService(t *testing.T) {
	if os.Getuid() != 0 {
		require.Empty(t, os.Getenv("CI"), "root is needed to make a directory of another user")
		t.Skip("root is needed to make a directory of another user")
	}
	for name, mode := range map[string]struct{ dir, file fs.FileMode }{
		"for its owner alone":   {0o700, 0o600},
		"for its group as well": {0o770, 0o660},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.Chown(dir, 4321, 4322))
			require.NoError(t, os.Chmod(dir, mode.dir))
			_, err := Owner(dir)
			require.NoError(t, err)
			lead(t, newFile(t, dir))
			files, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, files, 3)
			for _, file := range files {
				info, err := file.Info()
				require.NoError(t, err)
				require.Equal(t, mode.file, info.Mode().Perm(), file.Name())
				require.EqualValues(t, 4321, info.Sys().(*syscall.Stat_t).Uid, file.Name())
				require.EqualValues(t, 4322, info.Sys().(*syscall.Stat_t).Gid, file.Name())
			}
		})
	}
}

func TestHistoryIsBounded(t *testing.T) {
	f := newFile(t, t.TempDir())
	j := f.Journal()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	require.NoError(t, j.Save(t.Context(), change("old", updater.Restored)))
	// The bulk in one transaction: ten thousand would take as many fsyncs.
	require.NoError(t, f.write(t.Context(), func(tx *bbolt.Tx) error {
		for i := range historyLimit {
			if _, err := add(tx, updater.Entry{At: at.Add(time.Duration(i) * time.Hour), Workload: "local/web", Why: fmt.Sprint(i)}); err != nil {
				return err
			}
		}
		return prune(tx)
	}))
	entries, err := j.History(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, entries, historyLimit)

	last := at.Add(historyLimit * time.Hour)
	require.NoError(t, j.Note(t.Context(), updater.Entry{At: last, Why: "newest"}))
	entries, err = j.History(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, entries, historyLimit)
	require.Equal(t, "newest", entries[0].Why)
	require.NotEqual(t, "0", entries[historyLimit-1].Why, "the oldest has gone")

	info, err := os.Stat(f.path)
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(8<<20))
}

func TestTheFileDoesNotGrowWithUse(t *testing.T) {
	f := newFile(t, memoryDir(t))
	j := f.Journal()
	c := change("web", updater.Applying)
	c.Origin = json.RawMessage(`"` + strings.Repeat("x", 20_000) + `"`)
	for range 300 {
		c.Phase = updater.Applying
		require.NoError(t, j.Save(t.Context(), c))
		c.Phase = updater.Committed
		require.NoError(t, j.Save(t.Context(), c))
	}
	info, err := os.Stat(f.path)
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(256<<10))
}

func TestAnEditThatChangesNothingWritesNothing(t *testing.T) {
	f := newFile(t, t.TempDir())
	j := f.Journal()
	edits := map[string]func(*updater.Record){
		"local/web": func(r *updater.Record) { r.Committed.Digest = "sha256:1" },
		"local/db":  func(*updater.Record) {},
	}
	require.NoError(t, j.Remember(t.Context(), edits))
	before, err := os.ReadFile(f.path)
	require.NoError(t, err)
	require.NoError(t, j.Remember(t.Context(), edits))
	after, err := os.ReadFile(f.path)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestFieldsOfANewerVersionDoNoHarm(t *testing.T) {
	f := newFile(t, t.TempDir())
	require.NoError(t, f.write(t.Context(), func(tx *bbolt.Tx) error {
		return putRaw(tx, recordsBucket, []byte("local/web"), []byte(`{"mood":"sunny","hold":{"who":"ann","at":"2026-03-01T12:00:00Z"}}`))
	}))
	records, err := f.Journal().Recall(t.Context())
	require.NoError(t, err)
	require.Equal(t, "ann", records["local/web"].Hold.Who)
}

func TestANewerSchemaIsLeftAlone(t *testing.T) {
	log, out := logged()
	f := New(t.TempDir(), "local", log)
	require.NoError(t, f.write(t.Context(), func(tx *bbolt.Tx) error {
		return put(tx, metaBucket, []byte(schemaKey), schema+1)
	}))
	before, err := os.ReadFile(f.path)
	require.NoError(t, err)

	failing := func(j updater.Journal) {
		t.Helper()
		_, err := j.Open(t.Context())
		require.ErrorContains(t, err, "a newer updaterd wrote it (schema 2, this one understands 1)")
		require.ErrorContains(t, err, f.path)
		require.ErrorContains(t, j.Save(t.Context(), change("web", updater.Applying)), "a newer updaterd")
	}
	failing(f.Journal())
	led := false
	require.NoError(t, f.Lead(t.Context(), func(_ context.Context, j updater.Journal) error {
		led = true
		failing(j)
		return nil
	}))
	require.True(t, led, "going back must not wait")
	require.Contains(t, out.String(), "level=ERROR")
	after, err := os.ReadFile(f.path)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestAChangeNeedsAnId(t *testing.T) {
	require.ErrorContains(t, newFile(t, t.TempDir()).Journal().Save(t.Context(), updater.Change{}), "no id")
}

func TestAPanicOfAnEditIsTheCallers(t *testing.T) {
	dir := t.TempDir()
	j := lead(t, newFile(t, dir))
	require.NoError(t, j.Save(t.Context(), change("web", updater.Applying)))
	require.PanicsWithValue(t, "a bug", func() {
		_ = j.Remember(t.Context(), map[string]func(*updater.Record){"local/web": func(*updater.Record) { panic("a bug") }})
	})
	// Neither locked nor moved aside.
	changes, err := j.Open(t.Context())
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.NoError(t, j.Save(t.Context(), change("web", updater.Committed)))
}

func TestACancelledCallEnds(t *testing.T) {
	f := newFile(t, t.TempDir())
	require.NoError(t, f.Journal().Note(t.Context(), updater.Entry{}))
	held, err := openLocked(t.Context(), f.path, os.O_RDWR)
	require.NoError(t, err)
	defer release(held)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Journal().Note(ctx, updater.Entry{}) }()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}

func TestOwner(t *testing.T) {
	t.Run("it stays the same", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "state")
		first, err := Owner(dir)
		require.NoError(t, err)
		require.Len(t, first, 32)
		second, err := Owner(dir)
		require.NoError(t, err)
		require.Equal(t, first, second)
		other, err := Owner(t.TempDir())
		require.NoError(t, err)
		require.NotEqual(t, first, other)
	})
	t.Run("those who race for it agree", func(t *testing.T) {
		for range 50 {
			dir := memoryDir(t)
			ids := make(chan string)
			for range 4 {
				go func() {
					id, err := Owner(dir)
					if err != nil {
						t.Error(err)
					}
					ids <- id
				}()
			}
			first := <-ids
			for range 3 {
				require.Equal(t, first, <-ids)
			}
		}
	})
	for name, content := range map[string]string{
		"an empty file":  "",
		"half an id":     "0123456789abcdef\n",
		"no line's end":  "0123456789abcdef0123456789abcdef",
		"something else": strings.Repeat("z", 32) + "\n",
	} {
		t.Run(name+" is replaced", func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.WriteFile(filepath.Join(dir, "owner"), []byte(content), 0o600))
			id, err := Owner(dir)
			require.NoError(t, err)
			again, err := Owner(dir)
			require.NoError(t, err)
			require.Equal(t, id, again)
		})
	}
	t.Run("where none can be kept the error says what to do", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		_, err := Owner(filepath.Join(file, "state"))
		require.ErrorContains(t, err, "id of this installation")
	})
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/updater"
)

// filled returns the bytes of a database with branch pages, overflow pages,
// free pages and buckets within a page's value.
func filled(t testing.TB) []byte {
	t.Helper()
	f := New(t.TempDir(), "local", discard())
	require.NoError(t, f.write(t.Context(), func(tx *bbolt.Tx) error {
		for i := range 400 {
			if err := putRaw(tx, recordsBucket, fmt.Appendf(nil, "local/%d", i), fmt.Appendf(nil, `{"committed":{"image":"app:%d","digest":"sha256:%064d"}}`, i, i)); err != nil {
				return err
			}
			if _, err := add(tx, updater.Entry{At: time.Unix(int64(i), 0), Workload: "local/web"}); err != nil {
				return err
			}
		}
		return nil
	}))
	j := f.Journal()
	c := change("big", updater.Applying)
	c.Origin = json.RawMessage(`"` + strings.Repeat("x", 20_000) + `"`)
	for _, id := range []string{"big", "bigger"} {
		c.ID = id
		require.NoError(t, j.Save(t.Context(), c))
	}
	require.NoError(t, j.Save(t.Context(), change("big", updater.Restored)))
	content, err := os.ReadFile(f.path)
	require.NoError(t, err)
	return content
}

// use does everything with the journal in content that can be done. It fails
// the test if the damage does any harm: a panic, a wait without end, a leader
// that cannot go on.
func use(t *testing.T, dir string, content []byte) (set bool) {
	t.Helper()
	f := newFile(t, dir)
	require.NoError(t, os.WriteFile(f.path, content, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	beside := f.Journal()
	_, openErr := beside.Open(ctx)
	_, recallErr := beside.Recall(ctx)
	_, historyErr := beside.History(ctx, 0)
	after, err := os.ReadFile(f.path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, after), "looking changes nothing")

	require.NoError(t, f.Lead(ctx, func(ctx context.Context, j updater.Journal) error {
		_, err := j.Open(ctx)
		require.NoError(t, err)
		require.NoError(t, j.Save(ctx, change("new", updater.Applying)))
		require.NoError(t, j.Remember(ctx, map[string]func(*updater.Record){"local/1": hold}))
		require.NoError(t, j.Note(ctx, updater.Entry{At: time.Unix(1<<35, 0), Why: "new"}))
		require.NoError(t, j.Save(ctx, change("bigger", updater.Committed)))
		entries, err := j.History(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, "new", entries[0].Why)
		records, err := j.Recall(ctx)
		require.NoError(t, err)
		require.NotNil(t, records["local/1"].Hold)
		return nil
	}))
	aside, err := filepath.Glob(f.path + ".corrupt-*")
	require.NoError(t, err)
	if len(aside) == 0 && (openErr != nil || recallErr != nil || historyErr != nil) {
		require.Fail(t, "an error beside the leader, but nothing set aside", "%v %v %v", openErr, recallErr, historyErr)
	}
	for _, path := range append(aside, f.path) {
		require.NoError(t, os.Remove(path))
	}
	return len(aside) > 0
}

func TestNoDamageDoesHarm(t *testing.T) {
	whole := filled(t)
	// What is on t.TempDir may be a slow disk; these are thousands of fsyncs.
	dir := memoryDir(t)
	require.False(t, use(t, dir, whole), "an undamaged file stays")

	t.Run("every length it may be cut to", func(t *testing.T) {
		for length := 0; length < len(whole); length += 2039 {
			if used := usedPages(whole) * pageSize; length < used {
				require.True(t, use(t, dir, whole[:length]), "cut to %d bytes", length)
			}
		}
	})
	t.Run("every page zeroed, filled or in another's place", func(t *testing.T) {
		for page := range usedPages(whole) {
			for _, with := range [][]byte{
				make([]byte, pageSize), bytes.Repeat([]byte{0xFF}, pageSize),
				whole[3*pageSize : 4*pageSize], whole[(page/2)*pageSize : (page/2+1)*pageSize],
			} {
				content := bytes.Clone(whole)
				copy(content[page*pageSize:], with)
				use(t, dir, content)
			}
		}
	})
	t.Run("bytes anywhere, above all in the headers", func(t *testing.T) {
		seed := time.Now().UnixNano()
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(uint64(seed), 0))
		for range 150 {
			content := bytes.Clone(whole)
			for range 1 + random.IntN(4) {
				at := random.IntN(usedPages(whole)) * pageSize
				if random.IntN(4) == 0 {
					at += random.IntN(pageSize)
				} else {
					at += random.IntN(128) // page header and first elements
				}
				content[at] = byte(random.Uint32())
			}
			if random.IntN(2) == 0 {
				mend(content) // then bbolt's own checksums find nothing wrong
			}
			use(t, dir, content)
		}
	})
}

func TestAValueThatRottedIsFound(t *testing.T) {
	content := filled(t)
	at := bytes.LastIndex(content, []byte(`"image":"app:77"`))
	require.Positive(t, at)
	content[at+len(`"image":"app:`)] = '8'
	require.NoError(t, sound(bytes.NewReader(content), int64(len(content))), "no page is out of order")
	require.True(t, use(t, t.TempDir(), content))
}

// usedPages is the number of pages below bbolt's high water mark.
func usedPages(content []byte) int {
	w := walk{r: bytes.NewReader(content)}
	m, err := w.meta()
	if err != nil {
		return 0
	}
	return int(m.pages)
}

// mend makes the checksums of the meta pages right.
func mend(content []byte) {
	for page := range 2 {
		body := content[page*pageSize+pageHeader:]
		hash := fnv.New64a()
		hash.Write(body[:metaSum])
		binary.NativeEndian.PutUint64(body[metaSum:], hash.Sum64())
	}
}

// memoryDir is a directory in memory where there is one.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "journal")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func TestDamageIsSetAsideLoudly(t *testing.T) {
	log, out := logged()
	f := New(t.TempDir(), "local", log)
	require.NoError(t, f.Journal().Save(t.Context(), change("web", updater.Applying)))
	require.NoError(t, os.Truncate(f.path, 5000))

	_, err := f.Journal().Open(t.Context())
	require.ErrorContains(t, err, f.path)
	require.ErrorContains(t, err, "damaged")
	require.ErrorContains(t, err, "`updaterd run` sets it aside")
	require.Error(t, f.Journal().Save(t.Context(), change("web", updater.Judging)))
	require.FileExists(t, f.path)

	require.NoError(t, f.Lead(t.Context(), func(context.Context, updater.Journal) error {
		return nil
	}))
	aside, err := filepath.Glob(f.path + ".corrupt-*")
	require.NoError(t, err)
	require.Len(t, aside, 1)
	for _, what := range []string{"level=ERROR", aside[0], "rejections", "holds", "history"} {
		require.Contains(t, out.String(), what)
	}
	_, err = f.Journal().Open(t.Context())
	require.NoError(t, err)
}

func TestDamageThatComesLaterIsSetAsideToo(t *testing.T) {
	for name, then := range map[string]func(context.Context, updater.Journal) error{
		"found by a write": func(ctx context.Context, j updater.Journal) error {
			return j.Save(ctx, change("web", updater.Judging))
		},
		"found by a read": func(ctx context.Context, j updater.Journal) error {
			changes, err := j.Open(ctx)
			require.Empty(t, changes)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFile(t, t.TempDir())
			j := lead(t, f)
			require.NoError(t, j.Save(t.Context(), change("web", updater.Applying)))
			require.NoError(t, os.WriteFile(f.path, []byte("spoilt"), 0o600))
			require.NoError(t, then(t.Context(), j))
			require.NoError(t, j.Save(t.Context(), change("web", updater.Committed)))
			entries, err := f.Journal().History(t.Context(), 0)
			require.NoError(t, err)
			require.Len(t, entries, 1)
		})
	}
}

func TestAFileThatBecomesADirectoryStopsNothing(t *testing.T) {
	log, out := logged()
	f := New(t.TempDir(), "local", log)
	require.NoError(t, os.Mkdir(f.path, 0o700))
	led := false
	require.NoError(t, f.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
		led = true
		require.ErrorContains(t, j.Save(ctx, change("web", updater.Applying)), f.path)
		return nil
	}))
	require.True(t, led)
	require.Contains(t, out.String(), "level=ERROR")
}

func TestDamageThatCannotBeSetAsideReadsAsEmpty(t *testing.T) {
	log, out := logged()
	dir := t.TempDir()
	f := New(dir, "local", log)
	require.NoError(t, os.WriteFile(f.path, []byte("spoilt"), 0o600))
	led := false
	require.NoError(t, f.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
		led = true
		return nil
	}))
	require.True(t, led)

	// A directory with an immutable name in it cannot be had everywhere; a name
	// too long for a file system can.
	long := New(dir, strings.Repeat("n", 240), log)
	require.NoError(t, os.WriteFile(long.path, []byte("spoilt"), 0o600))
	out.Reset()
	require.NoError(t, long.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
		changes, err := j.Open(ctx)
		require.NoError(t, err)
		require.Empty(t, changes)
		err = j.Save(ctx, change("web", updater.Applying))
		require.ErrorContains(t, err, "damaged")
		require.ErrorContains(t, err, "setting it aside")
		return nil
	}))
	require.Contains(t, out.String(), "cannot be set aside")
	require.FileExists(t, long.path)
}

// FuzzSound: bbolt comes to no grief on whatever passes.
func FuzzSound(f *testing.F) {
	whole := filled(f)
	whole = whole[:usedPages(whole)*pageSize]
	f.Add(uint32(0), []byte{})
	f.Add(uint32(3*pageSize+8), []byte{1, 0})
	f.Add(uint32(2*pageSize+10), []byte{0xFF, 0xFF})
	f.Add(uint32(16), []byte("\xED\xDA\x0C\xED"))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		content := bytes.Clone(whole)
		copy(content[int(at)%len(content):], patch)
		mend(content)
		if sound(bytes.NewReader(content), int64(len(content))) != nil {
			return
		}
		path := filepath.Join(memoryDir(t), "local.db")
		require.NoError(t, os.WriteFile(path, content, 0o600))
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: pageSize, Timeout: time.Second})
		require.NoError(t, err)
		require.NoError(t, db.View(func(tx *bbolt.Tx) error {
			_, _ = walkAll(tx)
			return nil
		}))
		require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
			for range 20 {
				b, err := tx.CreateBucketIfNotExists([]byte("fuzz"))
				if err != nil {
					return nil // a bucket's name may have become a value's
				}
				seq, _ := b.NextSequence()
				if err := b.Put(fmt.Append(nil, seq), make([]byte, 3000)); err != nil {
					return err
				}
			}
			return nil
		}))
		require.NoError(t, db.Close())
	})
}

// walkAll goes through everything, whatever the buckets are called.
func walkAll(tx *bbolt.Tx) (n int, err error) {
	err = tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			n += len(k) + len(v)
			return nil
		})
	})
	return n, err
}

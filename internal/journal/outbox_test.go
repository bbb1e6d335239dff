package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func outbox(t *testing.T) (*Outbox, string) {
	t.Helper()
	dir := t.TempDir()
	return NewOutbox(dir, slog.New(slog.DiscardHandler)), dir
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func mail(once, text string, receivers ...string) Mail {
	m := Mail{Once: once, At: noon, For: map[string]json.RawMessage{}}
	for _, r := range receivers {
		m.For[r] = json.RawMessage(`"` + text + `"`)
	}
	return m
}

func waiting(t *testing.T, o *Outbox, receiver string) (texts []string) {
	t.Helper()
	letters, err := o.Waiting(t.Context(), receiver, 1000)
	require.NoError(t, err)
	for _, l := range letters {
		texts = append(texts, string(l.Body))
	}
	return texts
}

func keep(t *testing.T, o *Outbox, most int, all ...Mail) int {
	t.Helper()
	dropped, err := o.Put(t.Context(), all, nil, most)
	require.NoError(t, err)
	return dropped
}

func TestWhatIsPutWaits(t *testing.T) {
	o, dir := outbox(t)
	require.Empty(t, waiting(t, o, "a"))
	require.NoFileExists(t, filepath.Join(dir, "_messages.db"), "looking makes no file")
	before := o.Stamp()
	keep(t, o, 10, mail("1", "one", "a", "b"), mail("2", "two", "a"))
	require.NotEqual(t, before, o.Stamp())

	again := NewOutbox(dir, slog.New(slog.DiscardHandler)) // as after a restart
	require.Equal(t, []string{`"one"`, `"two"`}, waiting(t, again, "a"))
	require.Equal(t, []string{`"one"`}, waiting(t, again, "b"))
	letters, err := again.Waiting(t.Context(), "a", 1)
	require.NoError(t, err)
	require.NoError(t, again.Done(t.Context(), letters))
	require.NoError(t, again.Done(t.Context(), letters), "taking out twice is taking out once")
	require.Equal(t, []string{`"two"`}, waiting(t, o, "a"))
	require.Equal(t, []string{`"one"`}, waiting(t, o, "b"))
}

func TestOnceIsOnce(t *testing.T) {
	o, dir := outbox(t)
	keep(t, o, 10, mail("key", "first", "a"), mail("key", "in the same call", "a"))
	keep(t, NewOutbox(dir, slog.New(slog.DiscardHandler)), 10, mail("key", "after a restart", "a"), mail("", "without a key", "a"), mail("", "without a key", "a"))
	require.Equal(t, []string{`"first"`, `"without a key"`, `"without a key"`}, waiting(t, o, "a"))
	told, err := o.Told(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]time.Time{"key": noon}, told)

	_, err = o.Put(t.Context(), []Mail{mail("key", "anew", "a")}, []string{"key", "unknown"}, 10)
	require.NoError(t, err)
	require.Contains(t, waiting(t, o, "a"), `"anew"`, "a key that was dropped is new")
}

func TestAReceiverWhoTakesNothingFillsNoDisk(t *testing.T) {
	o, _ := outbox(t)
	dropped := 0
	for i := range 8 {
		dropped += keep(t, o, 5, mail(fmt.Sprint(i), fmt.Sprint(i), "dead", "dea", "deadx"))
	}
	require.Equal(t, 9, dropped)
	require.Equal(t, []string{`"3"`, `"4"`, `"5"`, `"6"`, `"7"`}, waiting(t, o, "dead"), "the newest stay")
}

func TestKeysAreBounded(t *testing.T) {
	o, _ := outbox(t)
	for batch := range 12 {
		var all []Mail
		for i := range 1000 {
			m := mail(fmt.Sprintf("%d-%d", batch, i), "x")
			m.At = noon.Add(time.Duration(batch) * time.Hour)
			all = append(all, m)
		}
		keep(t, o, 5, all...)
	}
	told, err := o.Told(t.Context())
	require.NoError(t, err)
	require.Len(t, told, toldLimit)
	require.NotContains(t, told, "0-0")
	require.Contains(t, told, "11-999")
}

func TestNobodysLettersAreDiscarded(t *testing.T) {
	o, _ := outbox(t)
	keep(t, o, 10, mail("1", "one", "a", "b", "gone"))
	n, err := o.Discard(t.Context(), []string{"a", "b"})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Empty(t, waiting(t, o, "gone"))
	require.Len(t, waiting(t, o, "a"), 1)
}

func TestOneDelivers(t *testing.T) {
	o, dir := outbox(t)
	other := NewOutbox(dir, slog.New(slog.DiscardHandler))
	did, err := o.Deliver(t.Context(), func(ctx context.Context) {
		did, err := other.Deliver(ctx, func(context.Context) { t.Error("two deliver") })
		require.NoError(t, err)
		require.False(t, did)
	})
	require.NoError(t, err)
	require.True(t, did)
	did, err = other.Deliver(t.Context(), func(context.Context) {})
	require.NoError(t, err)
	require.True(t, did)
}

func TestADamagedOutboxIsSetAside(t *testing.T) {
	o, dir := outbox(t)
	keep(t, o, 10, mail("1", "one", "a"))
	path := filepath.Join(dir, "_messages.db")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	for i := range data {
		data[i] ^= 0x55
	}
	require.NoError(t, os.WriteFile(path, data, 0o600))
	keep(t, o, 10, mail("2", "two", "a"))
	require.Equal(t, []string{`"two"`}, waiting(t, o, "a"))
	aside, err := filepath.Glob(path + ".corrupt-*")
	require.NoError(t, err)
	require.Len(t, aside, 1)
}

// TestPutSurvivesAKill: what Put has returned for is there after a kill -9, whole.
func TestPutSurvivesAKill(t *testing.T) {
	if dir := os.Getenv("OUTBOX_TEST_DIR"); dir != "" {
		o := NewOutbox(dir, slog.New(slog.DiscardHandler))
		for i := 0; ; i++ {
			if _, err := o.Put(t.Context(), []Mail{mail(fmt.Sprint(i), fmt.Sprint(i), "a", "b")}, nil, 1<<20); err != nil {
				os.Exit(3)
			}
			fmt.Println(i)
		}
	}
	for range 3 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^TestPutSurvivesAKill$")
		cmd.Env = append(os.Environ(), "OUTBOX_TEST_DIR="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		last := -1
		for last < 20 {
			_, err := fmt.Fscanln(out, &last)
			require.NoError(t, err)
		}
		require.NoError(t, cmd.Process.Kill())
		for { // what it had said already
			var n int
			if _, err := fmt.Fscanln(out, &n); err != nil {
				break
			}
			last = n
		}
		_ = cmd.Wait() // it was killed
		o := NewOutbox(dir, slog.New(slog.DiscardHandler))
		a, b := waiting(t, o, "a"), waiting(t, o, "b")
		require.GreaterOrEqual(t, len(a), last+1)
		require.Equal(t, a, b, "all receivers or none")
	}
}

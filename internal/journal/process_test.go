package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// The test binary is also the other process that these tests need: called
// with this in the environment, it acts a part instead of running tests.
const partVariable = "UPDATERD_JOURNAL_TEST_PART"

func TestMain(m *testing.M) {
	parts := map[string]func(require.TestingT, string){
		"save": partSave, "edit": partEdit, "lead": partLead, "finish": partFinish, "linger": partLinger,
		"owner": partOwner, "full": partFull,
	}
	if part := parts[os.Getenv(partVariable)]; part != nil {
		part(fatal{}, os.Args[1])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fatal is what tests are to require in another process.
type fatal struct{}

func (fatal) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format, args...) }
func (fatal) FailNow()                          { os.Exit(1) }

// play starts a process that acts part in dir. Its standard input ends with
// the test.
func play(t *testing.T, part, dir string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), partVariable+"="+part)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

// partSave saves one change after the other, and says so after each.
func partSave(t require.TestingT, dir string) {
	f := New(dir, "local", discard())
	require.NoError(t, f.Lead(context.Background(), func(ctx context.Context, j updater.Journal) error {
		for i := 0; ; i++ {
			c := change(fmt.Sprintf("%d-%d", os.Getpid(), i), updater.Applying)
			c.Origin = json.RawMessage(`"` + strings.Repeat("x", i%7*3000) + `"`)
			require.NoError(t, j.Save(ctx, c))
			fmt.Println("open", c.ID)
			require.NoError(t, j.Remember(ctx, map[string]func(*updater.Record){
				c.Unit: func(r *updater.Record) { r.Committed.Digest = c.ID },
			}))
			fmt.Println("record", c.Unit)
			if i%3 > 0 {
				c.Phase, c.Ended = updater.Committed, c.Since.Add(time.Second)
				require.NoError(t, j.Save(ctx, c))
				fmt.Println("over", c.ID)
			}
		}
	}))
}

func TestAfterAKillEveryCompletedWriteIsThere(t *testing.T) {
	dir := memoryDir(t)
	log, out := logged()
	f := New(dir, "local", log)
	state := map[string]string{} // by id of a change: the last word said about it
	records := map[string]bool{}
	for range 20 {
		cmd, said := play(t, "save", dir)
		for range 1 + rand.IntN(60) {
			hear(t, said, state, records)
		}
		require.NoError(t, cmd.Process.Kill())
		for hear(nil, said, state, records) { // what it still said before it died
		}
		_ = cmd.Wait()

		// Before anything else, beside a leader that is no more.
		checkSaved(t, f.Journal(), state, records)
		require.NoError(t, f.Lead(t.Context(), func(_ context.Context, j updater.Journal) error {
			checkSaved(t, j, state, records)
			return nil
		}))
	}
	require.NotContains(t, out.String(), "ERROR", "a kill is no damage")
	require.NotEmpty(t, state)
}

// hear takes one line that partSave says. It reports false at the end, or at
// half a line.
func hear(t *testing.T, said *bufio.Reader, state map[string]string, records map[string]bool) bool {
	line, err := said.ReadString('\n')
	if err != nil {
		if t != nil {
			require.NoError(t, err, "the other process has ended early")
		}
		return false
	}
	what, id, _ := strings.Cut(strings.TrimSpace(line), " ")
	if what == "record" {
		records[id] = true
	} else {
		state[id] = what
	}
	return true
}

func checkSaved(t *testing.T, j updater.Journal, state map[string]string, records map[string]bool) {
	t.Helper()
	changes, err := j.Open(t.Context())
	require.NoError(t, err)
	open := map[string]bool{}
	for _, c := range changes {
		open[c.ID] = true
	}
	entries, err := j.History(t.Context(), 0)
	require.NoError(t, err)
	over := map[string]int{}
	for _, e := range entries {
		over[e.Change]++
	}
	for id, what := range state {
		// The process may have been killed between a write and its word.
		switch {
		case what == "over":
			require.False(t, open[id], id)
			require.Equal(t, 1, over[id], id)
		case over[id] > 0:
			require.False(t, open[id], id)
			require.Equal(t, 1, over[id], id)
		default:
			require.True(t, open[id], id)
		}
	}
	remembered, err := j.Recall(t.Context())
	require.NoError(t, err)
	for id := range records {
		require.NotEmpty(t, remembered[id].Committed.Digest, id)
	}
}

const editsOfAPart = 30

// partEdit counts in one record.
func partEdit(t require.TestingT, dir string) {
	j := New(dir, "local", discard()).Journal()
	for range editsOfAPart {
		require.NoError(t, j.Remember(context.Background(), map[string]func(*updater.Record){
			"local/web": func(r *updater.Record) {
				if r.Retry == nil {
					r.Retry = &updater.Retry{}
				}
				r.Retry.Attempts++
			},
		}))
	}
}

func TestProcessesLoseNoEditOfEachOther(t *testing.T) {
	for range 3 { // each time they race for making the file, too
		dir := filepath.Join(memoryDir(t), "state")
		var all []*exec.Cmd
		for range 3 {
			cmd, _ := play(t, "edit", dir)
			all = append(all, cmd)
		}
		j := New(dir, "local", discard()).Journal()
		for range 10 {
			_, err := j.Recall(t.Context())
			require.NoError(t, err)
		}
		for _, cmd := range all {
			require.NoError(t, cmd.Wait())
		}
		records, err := j.Recall(t.Context())
		require.NoError(t, err)
		require.Equal(t, 3*editsOfAPart, records["local/web"].Retry.Attempts)
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, files, 1, "nothing is left over: %v", files)
	}
}

// partLead leads, and has a child of its own which outlives it.
func partLead(t require.TestingT, dir string) { leadOn(t, New(dir, "local", discard())) }

// partFinish does so as the process that finishes the update of updaterd itself.
func partFinish(t require.TestingT, dir string) {
	f := New(dir, "local", discard())
	f.Finishing = true
	leadOn(t, f)
}

func leadOn(t require.TestingT, f *File) {
	require.NoError(t, f.Lead(context.Background(), func(context.Context, updater.Journal) error {
		child := exec.Command(os.Args[0], f.dir)
		child.Env = append(os.Environ(), partVariable+"=linger")
		child.Stdin, child.Stdout = os.Stdin, os.Stdout
		require.NoError(t, child.Start())
		return child.Wait()
	}))
}

// partLinger ends with its standard input.
func partLinger(require.TestingT, string) {
	fmt.Println("here")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestOneLeads(t *testing.T) {
	dir := t.TempDir()
	f := New(dir, "local", discard())
	cmd, said := play(t, "lead", dir)
	line, err := said.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "here\n", line)

	err = f.Lead(t.Context(), func(context.Context, updater.Journal) error {
		t.Error("two lead")
		return nil
	})
	require.ErrorIs(t, err, updater.ErrLed)
	require.ErrorContains(t, err, fmt.Sprintf("another updaterd is at work here: pid %d holds %s", cmd.Process.Pid, filepath.Join(dir, "local.lock")))
	require.NoError(t, f.Journal().Note(t.Context(), updater.Entry{}), "a person's word is heard beside it")

	require.NoError(t, cmd.Process.Kill())
	_, err = cmd.Process.Wait()
	require.NoError(t, err)
	// Its child lives on and does not hold the lock.
	require.NoError(t, f.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
		content, err := os.ReadFile(f.lock)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%d\n", os.Getpid()), string(content))
		return j.Note(ctx, updater.Entry{})
	}))
}

func TestOthersStandByWhileOneFinishes(t *testing.T) {
	dir := t.TempDir()
	f := New(dir, "local", discard())
	// A daemon led here until a moment ago: what it wrote is shorter.
	require.NoError(t, f.Lead(t.Context(), func(context.Context, updater.Journal) error { return nil }))

	cmd, said := play(t, "finish", dir)
	line, err := said.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "here\n", line)
	err = f.Lead(t.Context(), nil)
	require.ErrorIs(t, err, updater.ErrLed)
	require.ErrorIs(t, err, updater.ErrFinishing)
	require.ErrorContains(t, err, fmt.Sprintf("pid %d holds %s", cmd.Process.Pid, filepath.Join(dir, "local.lock")))

	// Killed: whoever leads next is no finishing one, and does not pass for it.
	require.NoError(t, cmd.Process.Kill())
	_, err = cmd.Process.Wait()
	require.NoError(t, err)
	require.NoError(t, f.Lead(t.Context(), func(ctx context.Context, _ updater.Journal) error {
		err := New(dir, "local", discard()).Lead(ctx, nil)
		require.ErrorIs(t, err, updater.ErrLed)
		require.NotErrorIs(t, err, updater.ErrFinishing)
		return nil
	}))
}

func TestWhoHoldsALockFile(t *testing.T) {
	for name, c := range map[string]struct {
		content  string
		pid      int
		finishes bool
	}{
		"a daemon":                               {"123\n", 123, false},
		"a finishing process":                    {"7 finishing\n", 7, true},
		"a daemon, not yet cut":                  {"123\nishing\n", 123, false},
		"nobody yet":                             {"", 0, false},
		"something else":                         {"who knows\n", 0, false},
		"a later version that says what we know": {"8 finishing\nmore\n", 8, true},
	} {
		t.Run(name, func(t *testing.T) {
			lock, err := os.Create(filepath.Join(t.TempDir(), "lock"))
			require.NoError(t, err)
			defer lock.Close()
			_, err = lock.WriteString(c.content)
			require.NoError(t, err)
			pid, finishes := holder(lock)
			require.Equal(t, c.pid, pid)
			require.Equal(t, c.finishes, finishes)
		})
	}
}

// TestADaemonIsToldWhoHasJustTakenOver asks in the moment between the lock and
// the signature: the daemon would end itself if it took the old one for true.
func TestADaemonIsToldWhoHasJustTakenOver(t *testing.T) {
	dir := t.TempDir()
	f := New(dir, "local", discard())
	require.NoError(t, f.Lead(t.Context(), func(context.Context, updater.Journal) error { return nil }))
	lock, err := os.OpenFile(f.lock, os.O_RDWR, 0)
	require.NoError(t, err)
	defer release(lock)
	require.NoError(t, tryLock(lock, syscall.LOCK_EX))
	synctest.Test(t, func(t *testing.T) {
		signed := make(chan error, 1)
		go func() {
			time.Sleep(settlePause / 2)
			signed <- (&File{Finishing: true}).sign(lock)
		}()
		require.ErrorIs(t, f.Lead(t.Context(), nil), updater.ErrFinishing)
		require.NoError(t, <-signed)
	})
}

func partOwner(t require.TestingT, dir string) {
	id, err := Owner(dir)
	require.NoError(t, err)
	fmt.Println(id)
}

func TestProcessesThatRaceForTheOwnerAgree(t *testing.T) {
	for range 5 {
		dir := filepath.Join(t.TempDir(), "state")
		_, a := play(t, "owner", dir)
		_, b := play(t, "owner", dir)
		first, err := a.ReadString('\n')
		require.NoError(t, err)
		second, err := b.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, first, second)
	}
}

// sufferFull goes through what must hold when there is no room: an error that
// says what to do, all that was written before still there, and all well once
// there is room again.
func sufferFull(t require.TestingT, dir, advice string, fill, relieve func()) {
	ctx := context.Background()
	log, _ := logged()
	f := New(dir, "local", log)
	big := func(i int) updater.Change {
		c := change(fmt.Sprint(i), updater.Applying)
		c.Origin = json.RawMessage(`"` + strings.Repeat("x", 15_000) + `"`)
		return c
	}

	// From the first moment on.
	fill()
	led := false
	require.NoError(t, f.Lead(ctx, func(ctx context.Context, j updater.Journal) error {
		led = true
		require.ErrorContains(t, j.Save(ctx, big(0)), advice)
		changes, err := j.Open(ctx)
		require.NoError(t, err)
		require.Empty(t, changes)
		relieve()
		require.NoError(t, j.Save(ctx, big(0)), "without a new start")
		return nil
	}))
	require.True(t, led)

	// With a journal that is in use.
	require.NoError(t, f.Lead(ctx, func(ctx context.Context, j updater.Journal) error {
		fill()
		saved := 1
		var err error
		for ; saved < 10_000; saved++ {
			if err = j.Save(ctx, big(saved)); err != nil {
				break
			}
		}
		require.ErrorContains(t, err, advice)
		require.ErrorContains(t, err, f.path)
		require.Error(t, j.Save(ctx, big(saved)), "still")
		changes, err := j.Open(ctx)
		require.NoError(t, err)
		require.Len(t, changes, saved)

		relieve()
		for i := range saved + 5 {
			c := big(i)
			require.NoError(t, j.Save(ctx, c))
			c.Phase, c.Ended = updater.Restored, c.Since
			require.NoError(t, j.Save(ctx, c))
		}
		entries, err := j.History(ctx, 0)
		require.NoError(t, err)
		require.Len(t, entries, saved+5)
		return nil
	}))
	aside, err := filepath.Glob(f.path + ".corrupt-*")
	require.NoError(t, err)
	require.Empty(t, aside, "a full disk is no damage")
}

// partFull suffers a limit on the size of files, which everybody can have.
func partFull(t require.TestingT, dir string) {
	var was syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	limit := func(size uint64) {
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: min(size, was.Max), Max: was.Max}))
	}
	size := uint64(6_000)
	sufferFull(t, dir, "raise the limit on file sizes",
		func() { limit(size); size = 100_000 },
		func() { limit(was.Cur) })
	fmt.Println("suffered")
}

func TestAFullDisk(t *testing.T) {
	t.Run("a limit on file sizes", func(t *testing.T) {
		_, said := play(t, "full", t.TempDir())
		line, err := said.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "suffered\n", line)
	})

	// A real full file system takes the right to mount one.
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=512k"); err != nil {
		t.Logf("no small file system can be mounted here (%v): the limit on file sizes stands for it", err)
		return
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(small, 0)) })
	t.Run("a full file system", func(t *testing.T) {
		filler := filepath.Join(small, "filler")
		dir := filepath.Join(small, "state")
		leave := 0
		sufferFull(t, dir, "free space in "+dir, func() {
			file, err := os.Create(filler)
			require.NoError(t, err)
			defer file.Close()
			n, err := file.Write(make([]byte, 1<<20))
			require.ErrorIs(t, err, syscall.ENOSPC)
			require.NoError(t, file.Truncate(int64(n-leave)))
			leave = 100_000
		}, func() { require.NoError(t, os.Remove(filler)) })
	})
	t.Run("a file system that has become read-only", func(t *testing.T) {
		require.NoError(t, syscall.Mount("", small, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
		dir := filepath.Join(small, "state")
		log, out := logged()
		led := false
		require.NoError(t, New(dir, "local", log).Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			led = true
			entries, err := j.History(ctx, 0)
			require.NoError(t, err)
			require.NotEmpty(t, entries)
			require.ErrorContains(t, j.Note(ctx, updater.Entry{}), "make "+dir+" writable")
			return nil
		}))
		require.True(t, led)
		require.Contains(t, out.String(), "journal cannot be written")
		require.ErrorContains(t, New(dir, "never", log).Lead(t.Context(), nil), "make "+dir+" writable")
	})
}

func TestTheLeadEndsWhenItsLockFileGoes(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"removed":  os.Remove,
		"replaced": func(path string) error { return os.Rename(path, path+".old") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it takes until the next look
			f := newFile(t, t.TempDir())
			err := f.Lead(t.Context(), func(ctx context.Context, _ updater.Journal) error {
				require.NoError(t, spoil(f.lock))
				if name == "replaced" {
					require.NoError(t, os.WriteFile(f.lock, nil, 0o600))
				}
				<-ctx.Done()
				return ctx.Err()
			})
			require.ErrorContains(t, err, f.lock+" was removed or replaced")
			require.NoError(t, t.Context().Err())
		})
	}
}

func TestTheLockEndsWithDo(t *testing.T) {
	f := newFile(t, t.TempDir())
	for range 3 {
		require.ErrorIs(t, f.Lead(t.Context(), func(ctx context.Context, _ updater.Journal) error {
			require.ErrorIs(t, f.Lead(ctx, nil), updater.ErrLed)
			return io.ErrUnexpectedEOF
		}), io.ErrUnexpectedEOF)
	}
}

func TestAnotherUserIsToldWhatToDo(t *testing.T) {
	if os.Getuid() == 0 {
		// Root may read everything, so this is played by nobody.
		dir := t.TempDir()
		state := filepath.Join(dir, "state")
		require.NoError(t, New(state, "local", discard()).Journal().Note(t.Context(), updater.Entry{}))
		binary := filepath.Join(dir, "test")
		copyFile(t, os.Args[0], binary)
		for path := dir; path != filepath.Clean(os.TempDir()); path = filepath.Dir(path) {
			info, err := os.Stat(path)
			require.NoError(t, err)
			if info.Mode().Perm()&0o005 != 0o005 {
				require.NoError(t, os.Chmod(path, info.Mode().Perm()|0o055))
				t.Cleanup(func() { _ = os.Chmod(path, info.Mode().Perm()) })
			}
		}
		cmd := exec.Command(binary, "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "UPDATERD_JOURNAL_TEST_STATE="+state)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	state := os.Getenv("UPDATERD_JOURNAL_TEST_STATE")
	if state == "" {
		state = t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(state, "local.db"), []byte("x"), 0))
	}
	f := New(state, "local", slog.New(slog.DiscardHandler))
	_, err := f.Journal().Open(t.Context())
	require.ErrorIs(t, err, os.ErrPermission)
	require.ErrorContains(t, err, f.path)
	require.ErrorContains(t, err, "run this as root")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, content, 0o755))
}

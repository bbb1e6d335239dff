package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/updater"
)

// watchEvery is how often the leader looks whether its lock file is still the
// one that others would find.
const watchEvery = 5 * time.Second

// settlePause is what a process that has just locked the lock file is given to
// write into it who it is.
const settlePause = 50 * time.Millisecond

// finishing is what a finishing process writes behind its pid.
const finishing = "finishing"

// Lead implements [updater.State]. It waits for nobody: the lock goes with the
// process that holds it, so one that is held has a living holder. A damaged
// journal is moved to <backend>.db.corrupt-<time> and a new one begun, also
// when the damage shows only later. If that cannot be done (a full disk, say),
// do is called all the same: its journal then reads as empty and fails to
// write. A journal that a newer updaterd wrote is left alone; then all its
// methods fail.
func (f *File) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	lock, err := f.lead(ctx)
	if err != nil {
		return err
	}
	defer release(lock)
	ctx = context.WithoutCancel(ctx) // nothing is waited for any more

	b := book{file: f, leading: true}
	if _, err := view(ctx, b, "checking the journal", f.readAll); err != nil {
		f.log.ErrorContext(ctx, "journal cannot be read: nothing will be updated until it can", "err", err)
	} else if err := b.update(ctx, "opening the journal", func(*bbolt.Tx) error { return errUnchanged }); err != nil {
		f.log.ErrorContext(ctx, "journal cannot be written: nothing will be updated until it can", "err", err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		f.watch(ctx, lock, cancel)
	}()
	err = do(ctx, b)
	var lost *lostError
	if cause := context.Cause(ctx); errors.As(cause, &lost) {
		err = errors.Join(lost, err)
	}
	cancel(nil)
	<-watched
	return err
}

// lead locks the lock file and writes into it who we are, for others to name.
func (f *File) lead(ctx context.Context) (*os.File, error) {
	if err := makeDir(f.dir); err != nil {
		return nil, remedy(f.dir, fmt.Errorf("making the state directory: %w", err))
	}
	for {
		lock, err := os.OpenFile(f.lock, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, syscall.EROFS) {
			// It can be locked all the same. Where there is none and none can be
			// made, no earlier process has led here, so nothing awaits recovery.
			lock, err = os.Open(f.lock)
			if errors.Is(err, fs.ErrNotExist) {
				err = &fs.PathError{Op: "create", Path: f.lock, Err: syscall.EROFS}
			}
		}
		if err != nil {
			return nil, remedy(f.dir, fmt.Errorf("opening the lock file: %w", err))
		}
		share(lock)
		err = tryLock(lock, syscall.LOCK_EX)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err := f.led(ctx, lock)
			lock.Close()
			return nil, err
		}
		if err != nil {
			lock.Close()
			return nil, err
		}
		same, err := isAt(lock, f.lock)
		if !same {
			release(lock)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		if err := f.sign(lock); err != nil {
			// It is a courtesy to whoever comes second.
			f.log.Warn("pid cannot be written into the lock file", "err", err)
		}
		return lock, nil
	}
}

// sign writes who we are into the lock file.
func (f *File) sign(lock *os.File) error {
	text := strconv.Itoa(os.Getpid())
	if f.Finishing {
		text += " " + finishing
	}
	text += "\n"
	// First over the old one and then cut: on a full disk an old block can
	// still be written, while a new one cannot be had.
	if _, err := lock.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return lock.Truncate(int64(len(text)))
}

// led is the error for a lock file that another process has locked.
func (f *File) led(ctx context.Context, lock *os.File) error {
	pid, finishes := holder(lock)
	if !finishes {
		// What stands there may be of the one before: whoever takes over from a
		// daemon is asked about by that daemon a moment later.
		select {
		case <-ctx.Done():
		case <-time.After(settlePause):
		}
		pid, finishes = holder(lock)
	}
	who := "a process"
	if pid != 0 {
		who = fmt.Sprintf("pid %d", pid)
	}
	if finishes {
		return fmt.Errorf("%w: %s holds %s: %w", updater.ErrLed, who, f.lock, updater.ErrFinishing)
	}
	return fmt.Errorf("%w: %s holds %s; stop it first (looking, and a person's word, work beside it)", updater.ErrLed, who, f.lock)
}

// holder is who has locked the file, as it says itself: its pid, 0 if it does
// not, and whether it is a finishing one. Only the first line counts, since what
// was longer before is cut later.
func holder(lock *os.File) (pid int, finishes bool) {
	content, err := io.ReadAll(io.NewSectionReader(lock, 0, 32))
	if err != nil {
		return 0, false
	}
	line, _, _ := bytes.Cut(content, []byte("\n"))
	number, role, _ := strings.Cut(string(line), " ")
	if pid, err = strconv.Atoi(number); err != nil {
		return 0, false
	}
	return pid, role == finishing
}

// watch ends the lead when the lock file has been removed or replaced: then
// the next process would lock another file, and there would be two leaders.
func (f *File) watch(ctx context.Context, lock *os.File, lost context.CancelCauseFunc) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if same, err := isAt(lock, f.lock); !same && (err == nil || errors.Is(err, fs.ErrNotExist)) {
			lost(&lostError{path: f.lock})
			return
		}
	}
}

// lostError says why the context of Lead's do ended.
type lostError struct{ path string }

func (e *lostError) Error() string {
	return e.path + " was removed or replaced while it was locked: leave the state directory alone while updaterd runs"
}

func (e *lostError) Unwrap() error { return updater.ErrLost }

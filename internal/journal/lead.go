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
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/updater"
)

// watchEvery is how often the leader looks whether its lock file is still the
// one that others would find.
const watchEvery = 5 * time.Second

// Lead implements [updater.State]. Besides what that promises: a damaged
// journal is moved to <backend>.db.corrupt-<time> and a new one begun, also
// when the damage shows only later. If that cannot be done (a full disk, say),
// do is called all the same: its journal then reads as empty and fails to
// write. A journal that a newer updaterd wrote is left alone; then all its
// methods fail.
func (f *File) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	lock, err := f.lead()
	if err != nil {
		return err
	}
	defer release(lock)

	b := book{file: f, leading: true}
	if _, err := view(ctx, b, "checking the journal", readAll); err != nil {
		if ctx.Err() != nil {
			return err
		}
		f.log.ErrorContext(ctx, "journal cannot be read: nothing will be updated until it can", "err", err)
	} else if err := b.update(ctx, "opening the journal", func(*bbolt.Tx) error { return errUnchanged }); err != nil {
		if ctx.Err() != nil {
			return err
		}
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

// lead locks the lock file and writes our pid into it, for others to name.
func (f *File) lead() (*os.File, error) {
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
		err = tryLock(lock, syscall.LOCK_EX)
		if errors.Is(err, syscall.EWOULDBLOCK) {
			who := holder(lock)
			lock.Close()
			return nil, fmt.Errorf("%w: %s holds %s; stop it first (looking, and a person's word, work beside it)", updater.ErrLed, who, f.lock)
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
		if err := writePid(lock); err != nil {
			// The pid is a courtesy to whoever comes second.
			f.log.Warn("pid cannot be written into the lock file", "err", err)
		}
		return lock, nil
	}
}

func writePid(lock *os.File) error {
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	// First over the old one and then cut: on a full disk an old block can
	// still be written, while a new one cannot be had.
	if _, err := lock.WriteAt(pid, 0); err != nil {
		return err
	}
	return lock.Truncate(int64(len(pid)))
}

// holder names the process that has locked the file.
func holder(lock *os.File) string {
	content, err := io.ReadAll(io.NewSectionReader(lock, 0, 32))
	if err == nil {
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(content))); err == nil {
			return fmt.Sprintf("pid %d", pid)
		}
	}
	return "a process"
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
	return e.path + " was removed or replaced while it was locked: leave the state directory alone while updaterd runs, and start it again"
}

package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// patience bounds the wait for another process's transaction. Those take
// milliseconds; one that takes longer is stopped or on a dying disk.
const patience = 10 * time.Second

// damage is an error that means: what is in the file cannot be trusted.
type damage struct{ err error }

func (d *damage) Error() string { return "the journal is damaged: " + d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

func isDamage(err error) bool {
	var d *damage
	return errors.As(err, &d)
}

// errUnchanged ends a write transaction that has nothing to write.
var errUnchanged = errors.New("nothing to write")

// view returns what do makes of a read transaction, or nothing if there is no
// database yet.
func view[T any](ctx context.Context, b book, doing string, do func(*bbolt.Tx) (T, error)) (T, error) {
	f := b.file
	var got, none T
	look := func() error {
		got = none // what was seen before the damage is not the whole
		return f.read(ctx, func(tx *bbolt.Tx) (err error) {
			got, err = do(tx)
			return err
		})
	}
	err := look()
	if b.leading && isDamage(err) {
		err = f.setAside(ctx, err)
		if isDamage(err) {
			f.log.ErrorContext(ctx, "journal is damaged and cannot be set aside: taken as empty", "err", b.explain(doing, err))
			return none, nil
		}
		if err == nil {
			err = look()
		}
	}
	if err != nil {
		return none, b.explain(doing, err)
	}
	return got, nil
}

// update calls do with a write transaction. do may be called more than once.
func (b book) update(ctx context.Context, doing string, do func(*bbolt.Tx) error) error {
	f := b.file
	err := f.write(ctx, do)
	if b.leading && isDamage(err) {
		if err := f.setAside(ctx, err); err != nil {
			return b.explain(doing, err)
		}
		err = f.write(ctx, do)
	}
	return b.explain(doing, err)
}

func (f *File) read(ctx context.Context, do func(*bbolt.Tx) error) error {
	ctx, done, err := f.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.readInTurn(ctx, do)
}

func (f *File) readInTurn(ctx context.Context, do func(*bbolt.Tx) error) error {
	file, err := openLocked(ctx, f.path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return transact(file, access{}, func(tx *bbolt.Tx) error {
		if err := f.understand(tx); err != nil {
			return err
		}
		return do(tx)
	})
}

func (f *File) write(ctx context.Context, do func(*bbolt.Tx) error) error {
	ctx, done, err := f.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := makeDir(f.dir); err != nil {
		return err
	}
	for {
		file, err := openLocked(ctx, f.path, os.O_RDWR)
		if errors.Is(err, fs.ErrNotExist) {
			if err := f.create(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		err = transact(file, access{write: true}, func(tx *bbolt.Tx) error {
			if err := f.understand(tx); err != nil {
				return err
			}
			return do(tx)
		})
		if errors.Is(err, errUnchanged) {
			return nil
		}
		return err
	}
}

// enter waits for this process's turn. The context it returns ends when
// patience does.
func (f *File) enter(ctx context.Context) (context.Context, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errBusy)
	return ctx, func() { cancel(); <-f.turn }, nil
}

var errBusy = fmt.Errorf("another process has kept it locked for %v: see that no updaterd is stopped in the middle of its work", patience)

// create makes an empty database where there is none. It is made under
// another name and renamed, so that the file under its own name is whole from
// its first moment; of two processes at it, the one that is second finds the
// first one's.
func (f *File) create(ctx context.Context) error {
	file, err := openLocked(ctx, f.path+".new", os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(f.path); err == nil {
		_ = os.Remove(file.Name()) // under the lock; a stray one does no harm
		release(file)
		return nil
	}
	if err := file.Truncate(0); err != nil {
		release(file)
		return err
	}
	return transact(file, access{write: true, fresh: true, after: func() error {
		// Still under the lock: afterwards it could be another's turn to
		// truncate this file.
		return rename(f.path+".new", f.path)
	}}, f.begin)
}

// setAside moves a damaged database out of the way and says what that means.
// Its error is a *damage if the file stays where it is. Only the leader does
// this: a person who merely looks should not make the daemon forget.
func (f *File) setAside(ctx context.Context, cause error) error {
	ctx, done, err := f.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	// A shared lock keeps writers out and lets the check below in.
	hold, err := openLocked(ctx, f.path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer release(hold)
	if err := f.readInTurn(ctx, func(tx *bbolt.Tx) error { _, err := f.readAll(tx); return err }); !isDamage(err) {
		return err // another goroutine was here first, or it cannot be read at all
	}
	aside := asideName(f.path, time.Now())
	if err := rename(f.path, aside); err != nil {
		return fmt.Errorf("%w; setting it aside: %w", cause, err)
	}
	f.log.ErrorContext(ctx, "journal was damaged and has been set aside: a new one begins",
		"moved-to", aside, "err", cause,
		"lost", f.loses, "kept", f.keeps)
	return nil
}

// access is how transact opens a database.
type access struct {
	write bool
	fresh bool         // the file is empty and becomes a database
	after func() error // called between commit and unlock
}

// transact calls do in one transaction on file, which the caller has locked,
// and closes file. Whatever happens in bbolt is an error afterwards.
func transact(file *os.File, a access, do func(*bbolt.Tx) error) (err error) {
	// A page that cannot be read (a bad disk, a file cut short by somebody
	// while it is mapped) is a fault of memory, which would end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		// bbolt panics on pages that contradict each other. sound has looked at
		// them, but not with bbolt's eyes, and going back must not end with the
		// process. Its Close could now wait for ever for a lock that the panic
		// left taken, so the mapping is left behind.
		release(file)
		if own, ok := p.(callersPanic); ok {
			panic(own.value)
		}
		err = &damage{fmt.Errorf("bbolt: %v", p)}
	}()

	if !a.fresh {
		info, err := file.Stat()
		if err == nil && !info.Mode().IsRegular() {
			err = errors.New("not a regular file: move it away")
		}
		if err == nil {
			err = sound(file, info.Size())
		}
		if err != nil {
			release(file)
			return err
		}
	}
	db, err := bbolt.Open(file.Name(), 0o600, &bbolt.Options{
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return file, nil },
		ReadOnly: !a.write,
		PageSize: pageSize,
		Timeout:  time.Second, // the lock is ours already
		// The list of free pages is kept in the file: without it, each opening
		// would walk the whole tree, in a goroutine whose panics nobody can
		// recover.
		NoFreelistSync: false,
		// The array hands out the lowest free page, which keeps the file small;
		// the map is for files of many gigabytes.
		FreelistType: bbolt.FreelistArrayType,
		NoStatistics: true,
	})
	if err != nil { // bbolt has closed the file
		if errors.Is(err, berrors.ErrInvalid) || errors.Is(err, berrors.ErrChecksum) || errors.Is(err, berrors.ErrVersionMismatch) {
			return &damage{err}
		}
		return err
	}
	if a.write {
		err = db.Update(do)
	} else {
		err = db.View(do)
	}
	if err == nil && a.after != nil {
		err = a.after()
	}
	if closeErr := db.Close(); err == nil {
		err = closeErr
	}
	return err
}

// callersPanic tells a panic of the caller's own code from one of bbolt's.
type callersPanic struct{ value any }

func callersOwn(do func()) {
	defer func() {
		if p := recover(); p != nil {
			panic(callersPanic{p})
		}
	}()
	do()
}

// openLocked opens the file at path and locks it: shared for os.O_RDONLY,
// else exclusive. It waits for the lock until ctx ends.
//
// flock(2) is called here, since bbolt is to work under this very lock on this
// very file; locking libraries keep their descriptors to themselves.
func openLocked(ctx context.Context, path string, flag int) (*os.File, error) {
	how := syscall.LOCK_EX
	if flag&os.O_RDWR == 0 {
		how = syscall.LOCK_SH
	}
	for {
		file, err := os.OpenFile(path, flag, 0o600)
		if err != nil {
			return nil, err
		}
		if flag&os.O_CREATE != 0 {
			share(file)
		}
		for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
			if err = tryLock(file, how); !errors.Is(err, syscall.EWOULDBLOCK) {
				break
			}
			select {
			case <-time.After(wait):
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
			break
		}
		if err != nil {
			file.Close()
			return nil, err
		}
		// While we waited, the file may have been renamed away.
		same, err := isAt(file, path)
		if same {
			return file, nil
		}
		release(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// tryLock locks file, or returns syscall.EWOULDBLOCK. The lock goes with the
// process, however that ends; children do not get it, as Go opens all files
// close-on-exec.
func tryLock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if err == nil || errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if !errors.Is(err, syscall.EINTR) {
			return &fs.PathError{Op: "lock", Path: file.Name(), Err: err}
		}
	}
}

// isAt reports whether file is the one at path.
func isAt(file *os.File, path string) (bool, error) {
	there, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	here, err := file.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(here, there), nil
}

// release unlocks and closes file. Closing alone would not do: a mapping that
// a panic left behind keeps the lock. Both can only fail if file is closed.
func release(file *os.File) {
	_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
	_ = file.Close()
}

// makeDir makes the state directory, for its owner alone.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// share gives a file to those whom the state directory belongs to: to the
// directory's owner, if root has made the file, and to its group, which may do
// with the file what it may do in the directory. So a command run by hand leaves
// nothing that a service of another user could not open. A file that cannot be
// shared works for whoever made it; the others are told what to do when they
// cannot open it.
func share(file *os.File) {
	dir, err := os.Stat(filepath.Dir(file.Name()))
	if err != nil {
		return
	}
	info, err := file.Stat()
	if err != nil {
		return
	}
	to, ok := dir.Sys().(*syscall.Stat_t)
	is, ok2 := info.Sys().(*syscall.Stat_t)
	if !ok || !ok2 {
		return
	}
	uid, gid := -1, -1
	if is.Uid == 0 && to.Uid != 0 {
		uid = int(to.Uid)
	}
	group := dir.Mode().Perm() & 0o060
	if group != 0 && is.Gid != to.Gid || uid != -1 {
		gid = int(to.Gid)
	}
	if uid != -1 || gid != -1 {
		_ = file.Chown(uid, gid)
	}
	if mode := info.Mode().Perm() | group; mode != info.Mode().Perm() {
		_ = file.Chmod(mode)
	}
}

// rename renames durably.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil // the file system has no such thing (some network ones)
	}
	return err
}

// explain names the file in err, and what to do about it.
func (b book) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err = fmt.Errorf("%s: %s: %w", doing, b.file.path, err)
	if isDamage(err) && !b.leading {
		return fmt.Errorf("%w: `updaterd run` sets it aside and begins a new one", err)
	}
	return remedy(b.file.dir, err)
}

// remedy adds to err what to do about it in dir.
func remedy(dir string, err error) error {
	// bbolt passes some causes on as text only.
	is := func(no syscall.Errno) bool {
		return errors.Is(err, no) || strings.HasSuffix(err.Error(), no.Error())
	}
	switch {
	case is(syscall.ENOSPC), is(syscall.EDQUOT):
		return fmt.Errorf("%w: free space in %s", err, dir)
	case is(syscall.EFBIG):
		return fmt.Errorf("%w: raise the limit on file sizes (ulimit -f)", err)
	case is(syscall.EROFS):
		return fmt.Errorf("%w: make %s writable, or set `state:` to a directory that is", err, dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run this as %s", err, owner(dir))
	}
	return err
}

// owner names who may use the nearest directory from dir upwards that can be
// looked at.
func owner(dir string) string {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil && dir != filepath.Dir(dir) {
			continue
		}
		if err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 {
				return fmt.Sprintf("root, or as the user with id %d, who owns %s", s.Uid, dir)
			}
		}
		return "root"
	}
}

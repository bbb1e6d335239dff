package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/updaterd/updaterd/e2e/cluster/control"
	"github.com/updaterd/updaterd/e2e/program"
)

const (
	// inside is the variable that tells a process the directory of the machine that it
	// is the first of.
	inside     = "UPDATERD_NODE"
	dirPattern = "updaterd-node-*"
)

// Alone runs this program, a test's, on a machine of its own: as the first process of
// namespaces for processes, mounts and networks, in which run is called. Whatever
// ends it, the kernel then ends all that it started, shims and containers too, and
// takes away mounts and interfaces; files and cgroups are removed here, or, if this
// process is killed, by the next call. There is no network but loopback, so the
// programs that a node needs are made ready before. Call it from TestMain.
func Alone(run func() int) (code int) {
	if dir := os.Getenv(inside); dir != "" {
		if err := furnish(dir); err != nil {
			fmt.Fprintln(os.Stderr, "a machine for a node:", err)
			return 1
		}
		return run()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := alone(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "a machine for a node:", err)
		return 1
	}
	return code
}

func alone(ctx context.Context) (code int, err error) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return 0, errors.New("a real node needs Linux and root")
	}
	if len(cgroups()) == 0 {
		return 0, errors.New("a real node needs cgroups, and none are mounted")
	}
	sources, err := control.Sources(ctx)
	if err != nil {
		return 0, err
	}
	if _, err := control.Get(ctx, sources, os.Stderr); err != nil {
		return 0, err
	}
	if _, err := Get(ctx, filepath.Dir(sources), os.Stderr); err != nil {
		return 0, err
	}
	if err := sweep(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", dirPattern)
	if err != nil {
		return 0, err
	}
	lock, err := hold(dir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	defer func() { err = errors.Join(err, clear(dir)) }()
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+dir, "TMPDIR="+filepath.Join(dir, "tmp"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  unix.SIGKILL,
	}
	// Pdeathsig fires when the thread that forked ends, so keep it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var exit *exec.ExitError
	if err = cmd.Run(); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// furnish makes the namespaces a machine.
func furnish(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Where the kubelet, CNI and containerd write whatever they are told.
	for _, path := range []string{"/run", "/var/lib", "/var/log"} {
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", path, err)
		}
	}
	// The kubelet sets them, and they are the whole machine's.
	for _, key := range []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		path, played := filepath.Join("/proc/sys", key), filepath.Join(dir, filepath.Base(key))
		was, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(played, was, 0o644); err != nil {
			return err
		}
		if err := unix.Mount(played, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("play %s: %w", path, err)
		}
	}
	for _, root := range cgroups() {
		if err := os.Mkdir(filepath.Join(root, filepath.Base(dir)), 0o755); err != nil {
			return fmt.Errorf("make a cgroup: %w", err)
		}
		// Version 2 wants to be told what is to be counted below.
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		for _, c := range strings.Fields(string(controllers)) {
			if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return fmt.Errorf("have %s in cgroups: %w", c, err)
			}
		}
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"}, {"address", "add", Address + "/32", "dev", "lo"}, {"address", "add", service + "/32", "dev", "lo"},
	} {
		if out, err := exec.Command(program.Path("ip"), args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// cgroups are the directories at which cgroups are mounted.
func cgroups() (roots []string) {
	mounts, _ := os.ReadFile("/proc/self/mounts") // Without it, there are none.
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 2 && (fields[2] == "cgroup" || fields[2] == "cgroup2") {
			roots = append(roots, fields[1])
		}
	}
	return roots
}

// hold takes the lock of a directory, by which a sweep knows that it has an owner.
func hold(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// sweep clears what killed ones left.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := hold(dir)
		if err != nil {
			continue // It is in use.
		}
		err = clear(dir)
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// clear removes the cgroups and files of a machine whose processes have ended.
func clear(dir string) error {
	var errs []error
	for _, root := range cgroups() {
		errs = append(errs, removeCgroup(filepath.Join(root, filepath.Base(dir))))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// removeCgroup removes one with all below it. That a process has ended may come to be
// known there a little later.
func removeCgroup(path string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		var all []string
		err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, path := range slices.Backward(all) {
			if err = os.Remove(path); err != nil {
				break
			}
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Package stage is what the tests of the built program play on: Docker Engines
// that may be killed, registries that misbehave, images of a small HTTP app that
// does so too, and the real updaterd.
//
// Functions that take a TB fail it rather than return errors, and clean up after
// themselves when it ends. A package that uses any of this calls Main from its
// TestMain.
package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"golang.org/x/sys/unix"
)

// TB is the part of testing.TB that a stage needs, so that a program which is
// no test can have one too.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	FailNow()
	Failed() bool
	Cleanup(func())
	TempDir() string
	Context() context.Context
}

// shared is what is made at most once in a process because it takes seconds:
// the binaries, and the engine for tests that need none of their own. It is a
// variable because tests have no other common parent than the process.
var shared struct {
	dir     string
	engine  engine.Shared
	app     func() (string, error)
	self    func() (string, error)
	compose func() (string, error)
}

// Main runs the tests and removes what they shared. Call it from TestMain.
func Main(m *testing.M) int {
	return With(m.Run)
}

// With calls run, and removes afterwards what was shared by those on stage. It
// returns what run does, or 1 when something could not be removed.
func With(run func() int) (code int) {
	dir, err := os.MkdirTemp("", "updaterd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared.dir = dir
	shared.app = sync.OnceValues(func() (string, error) {
		out := filepath.Join(dir, "app")
		return out, goBuild(out, "./app", moduleDir)
	})
	shared.self = sync.OnceValues(func() (string, error) {
		if path := os.Getenv("UPDATERD_BIN"); path != "" {
			return filepath.Abs(path)
		}
		out := filepath.Join(dir, "updaterd")
		return out, goBuild(out, "./cmd/updaterd", func() (string, error) {
			dir, err := moduleDir()
			return filepath.Dir(dir), err
		})
	})
	shared.compose = sync.OnceValues(ComposeBin)
	defer func() {
		if err := errors.Join(shared.engine.Close(), os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "clean up:", err)
			code = max(code, 1)
		}
	}()
	return run()
}

// moduleDir is where this module's go.mod is, whichever module the tests are in.
func moduleDir() (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/updaterd/updaterd/e2e")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the module of the tests: %w\n%s", err, problems.Bytes())
	}
	return strings.TrimSpace(string(b)), nil
}

func goBuild(out, pkg string, dir func() (string, error)) error {
	in, err := dir()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Dir = in
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return nil
}

// Patience is how long is waited for anything at least, however little a test
// allows: on a busy machine everything takes its time, and where nothing is broken
// nobody waits longer than it takes.
const Patience = 3 * time.Minute

// Eventually calls ok every 10 ms until it is true; it fails t after timeout or
// Patience, whichever is longer, or when t is broken off, saying what was waited
// for.
func Eventually(t TB, timeout time.Duration, what string, ok func() bool) {
	t.Helper()
	timeout = max(timeout, Patience)
	deadline := time.Now().Add(timeout)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", timeout, what)
		}
		if err := t.Context().Err(); err != nil {
			t.Fatalf("waited for %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// FreePort is a TCP port on loopback that nothing listens on. A fixed port, not
// one that the engine chooses, is what stays the same when a container is
// replaced.
func FreePort(t TB) int {
	t.Helper()
	for range 100 {
		// Below those that a system and an engine give to whoever asks for any.
		port := 15000 + rand.N(15000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	require.FailNow(t, "no free port")
	return 0
}

// SmallDir is a directory on a file system of so many bytes (a multiple of the
// page size, 4096). It needs root.
func SmallDir(t TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)), "a small disk needs root")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// lines logs what is written to it, line by line, until the test has ended.
type lines struct {
	t      TB
	prefix string

	mu   sync.Mutex
	all  strings.Builder
	rest string
	over bool
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.Write(p)
	l.rest += string(p)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(p), nil
		}
		l.rest = rest
		if !l.over {
			l.t.Logf("%s%s", l.prefix, line)
		}
	}
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// mute ends the logging: a test must not be written to once it is over.
func (l *lines) mute() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

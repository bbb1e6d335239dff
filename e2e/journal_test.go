package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
	"golang.org/x/sys/unix"
)

// writes counts the transactions that updaterd has written to its journal: it
// opens the database for each, so the kernel tells when one is over.
type writes struct {
	mu    sync.Mutex
	fd    int
	count int
}

func watchWrites(t *testing.T, dir string) *writes {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE)
	require.NoError(t, err)
	return &writes{fd: fd}
}

// soFar returns how many there were.
func (w *writes) soFar() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return w.count
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:16]))
			name := string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:size], "\x00"))
			if strings.HasSuffix(name, ".db") || strings.HasSuffix(name, ".db.new") {
				w.count++
			}
			rest = rest[size:]
		}
	}
}

// until looks often, for the kernel tells of several writes as one if nobody
// looks between, and returns when enough says so or d has ended.
func (w *writes) until(d *stage.Daemon, enough func(count int) bool) {
	tick := time.NewTicker(100 * time.Microsecond)
	defer tick.Stop()
	for !enough(w.soFar()) {
		select {
		case <-tick.C:
		case <-d.Done():
			return
		}
	}
}

// TestKilledAfterEveryJournalWrite kills updaterd after each write to the
// journal, before it can make another call to the engine.
func TestKilledAfterEveryJournalWrite(t *testing.T) {
	for _, bad := range []bool{false, true} {
		s := story{"always", bad}
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			r, digest := s.begin(t, nil)
			w := watchWrites(t, r.u.State)
			d := r.u.Start("run", "--once")
			w.until(d, func(int) bool { return false })
			s.holds(r, digest)
			all := w.soFar()
			require.Greater(t, all, 5, "preparing, applying, judging, committing or restoring, and the end at least")
			for n := 1; n <= all; n++ {
				t.Run(fmt.Sprintf("write %d of %d", n, all), func(t *testing.T) {
					t.Parallel()
					r, digest := s.begin(t, nil)
					w := watchWrites(t, r.u.State)
					victim := make(chan *stage.Daemon, 1)
					kill := sync.OnceFunc(func() { (<-victim).Kill() })
					r.through(stage.Hooks{Before: func(stage.Call) error {
						if w.soFar() >= n {
							kill()
						}
						return nil
					}})
					d := r.u.Start("run", "--once")
					victim <- d
					// Of two writes with no call between, the first is caught by looking often.
					w.until(d, func(count int) bool { return count >= n })
					// The kernel may tell of two writes as one, so a run may show fewer
					// than the first did.
					if n <= all/2 {
						require.GreaterOrEqual(t, w.soFar(), n, "it ended before")
					}
					kill()
					<-d.Done()
					r.through(stage.Hooks{})
					r.u.Run("run", "--once")
					s.end(r, digest)
				})
			}
		})
	}
}

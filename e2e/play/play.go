// Package play performs stories: programs that do something for real, prove each
// sentence that they print, and leave nothing behind.
package play

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/updaterd/updaterd/e2e/stage"
)

// Play is the stage's TB for a program that is no test: what fails it is kept
// instead of printed, and what it made is removed when it is over.
type Play struct {
	Screen *Screen

	ctx   context.Context
	limit time.Duration
	timer *time.Timer // ends ctx at the limit

	mu       sync.Mutex
	stays    bool // it has told all, and goes on until it is ended
	cleanups []func()
	why      []string // why it failed
	details  []string // what was logged, for who wants to know more
}

var _ stage.TB = (*Play)(nil)

// Perform tells a story to standard output, within limit, and returns what the
// program is to exit with: 0 when all held, 1 when something did not, and as the
// signal says when it was broken off. done is the last sentence.
func Perform(limit time.Duration, tell func(*Play), done string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	timer := time.AfterFunc(limit, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	// All signals until the end are taken: there is always something to remove.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	caught := make(chan syscall.Signal, 1)
	go func() {
		s := (<-signals).(syscall.Signal)
		caught <- s
		cancel(nil)
	}()

	p := &Play{Screen: newScreen(os.Stdout), ctx: ctx, limit: limit, timer: timer}
	p.perform(func() { tell(p) })

	select {
	case signal := <-caught:
		if p.stayed() {
			break
		}
		fmt.Fprintln(os.Stderr, "demo: broken off; what it had made is removed")
		return 128 + int(signal)
	default:
	}
	if why := p.Why(); why != "" {
		fmt.Fprintf(os.Stderr, "\ndemo: this did not hold: %s\n\nWhat happened behind the scenes:\n%s", why, p.Details())
		return 1
	}
	p.Screen.Held("%s", done)
	p.Screen.print("\n")
	return 0
}

// Stay leaves all as it is, however long that may be, until a signal says that
// this was enough. There is nothing to tell afterwards.
func (p *Play) Stay() {
	p.mu.Lock()
	p.stays = p.timer.Stop() && p.ctx.Err() == nil
	p.mu.Unlock()
	if !p.stayed() {
		p.Fatalf("the story came to its end") // it was broken off just before
	}
	<-p.ctx.Done()
}

func (p *Play) stayed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stays
}

// perform runs the play and then its cleanups, the last one first. A play that
// has failed does not go on; its cleanups all run.
func (p *Play) perform(act func()) {
	p.scene(act)
	for {
		p.mu.Lock()
		if len(p.cleanups) == 0 {
			p.mu.Unlock()
			return
		}
		last := len(p.cleanups) - 1
		cleanup := p.cleanups[last]
		p.cleanups = p.cleanups[:last]
		p.mu.Unlock()
		p.scene(cleanup)
	}
}

// scene runs f in a goroutine of its own, which FailNow can end.
func (p *Play) scene(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A bug must not leave containers behind either.
		defer func() {
			if r := recover(); r != nil {
				p.Errorf("panic: %v", r)
			}
		}()
		f()
	}()
	<-done
}

// Why is what did not hold, "" when all did.
func (p *Play) Why() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.why, "\n")
}

// Details is what was logged.
func (p *Play) Details() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.details, "")
}

func (p *Play) Helper()                  {}
func (p *Play) Name() string             { return "demo" }
func (p *Play) Context() context.Context { return p.ctx }

// Logf keeps a line, and shows it when it is one that updaterd wrote.
func (p *Play) Logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	p.mu.Lock()
	p.details = append(p.details, strings.TrimRight(line, "\n")+"\n")
	p.mu.Unlock()
	if said, ok := strings.CutPrefix(line, "updaterd: "); ok {
		p.Screen.updaterd(said)
	}
}

func (p *Play) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(context.Cause(p.ctx), context.DeadlineExceeded) && len(p.why) == 0 {
		p.why = append(p.why, fmt.Sprintf("it was over within %s; what it was at:", p.limit))
	}
	p.why = append(p.why, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (p *Play) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	p.FailNow()
}

func (p *Play) FailNow() { runtime.Goexit() }

func (p *Play) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.why) > 0
}

func (p *Play) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = slices.Concat(p.cleanups, []func(){f})
}

func (p *Play) TempDir() string {
	dir, err := os.MkdirTemp("", "updaterd-demo-")
	if err != nil {
		p.Fatalf("make a directory: %v", err)
	}
	p.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			p.Errorf("remove a directory: %v", err)
		}
	})
	return dir
}

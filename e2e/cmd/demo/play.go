package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/updaterd/updaterd/e2e/stage"
)

// play is the stage's TB for a program that is no test: what fails it is kept
// instead of printed, and what it made is removed when it is over.
type play struct {
	ctx    context.Context
	screen *screen

	mu       sync.Mutex
	cleanups []func()
	why      []string // why it failed
	details  []string // what was logged, for who wants to know more
}

var _ stage.TB = (*play)(nil)

// perform runs the play and then its cleanups, the last one first. A play that
// has failed does not go on; its cleanups all run.
func (p *play) perform(act func()) {
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
func (p *play) scene(f func()) {
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
func (p *play) Why() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.why, "\n")
}

// Details is what was logged.
func (p *play) Details() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.details, "")
}

func (p *play) Helper()                  {}
func (p *play) Name() string             { return "demo" }
func (p *play) Context() context.Context { return p.ctx }

// Logf keeps a line, and shows it when it is one that updaterd wrote.
func (p *play) Logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	p.mu.Lock()
	p.details = append(p.details, strings.TrimRight(line, "\n")+"\n")
	p.mu.Unlock()
	if said, ok := strings.CutPrefix(line, "updaterd: "); ok {
		p.screen.updaterd(said)
	}
}

func (p *play) Errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.ctx.Err(), context.DeadlineExceeded) && len(p.why) == 0 {
		p.why = append(p.why, fmt.Sprintf("it was over within %s; what it was at:", limit))
	}
	p.why = append(p.why, strings.TrimSpace(fmt.Sprintf(format, args...)))
}

func (p *play) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	p.FailNow()
}

func (p *play) FailNow() { runtime.Goexit() }

func (p *play) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.why) > 0
}

func (p *play) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = slices.Concat(p.cleanups, []func(){f})
}

func (p *play) TempDir() string {
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

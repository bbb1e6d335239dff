package program

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Child is a program under way.
type Child struct {
	*os.Process
	// Done is closed when it has ended.
	Done <-chan struct{}

	name, log string
	err       error // how it ended
}

// Start starts a program that writes what it says behind what is in the file log.
// It gets end when this process ends, however that may: a killed test run leaves
// nothing running.
func Start(cmd *exec.Cmd, log string, end syscall.Signal) (*Child, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	// Its own process group, so that a Ctrl-C meant for us does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: end}
	done := make(chan struct{})
	c := &Child{Done: done, name: filepath.Base(cmd.Path), log: log}
	started := make(chan error)
	go func() {
		// Pdeathsig fires when the thread that forked ends, so keep it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		c.Process = cmd.Process
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	return c, nil
}

// Await waits until ready says that the program is.
func (c *Child) Await(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		last := ready(once)
		cancel()
		if last == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-c.Done:
			return fmt.Errorf("%s ended at once (%v); it said:\n%s", c.name, c.err, Tail(c.log, 20))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready (%w, %v); it said:\n%s", c.name, context.Cause(ctx), last, Tail(c.log, 20))
		}
	}
}

// End ends the program as kill -9 does, and returns when it has gone.
func (c *Child) End() {
	_ = c.Kill() // It may have ended already.
	<-c.Done
}

// Tail is the last lines of a log.
func Tail(log string, lines int) string {
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

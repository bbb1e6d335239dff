// Engine runs a command with an engine: `engine run CMD...` sets DOCKER_HOST to
// an engine that answers, or to a private one that it starts, installing dockerd
// if need be, and ends afterwards. `engine run --engine=29 CMD...` starts a
// private one of that kind in any case; see engine.Kinds. The engines that CMD
// itself starts are then of that kind too.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/updaterd/updaterd/e2e/engine"
)

func main() {
	flags := flag.NewFlagSet("engine run", flag.ExitOnError)
	kind := flags.String("engine", "", fmt.Sprintf("the kind of engine, one of %v; empty: what answers, or the dockerd at hand", engine.Kinds()))
	if len(os.Args) > 1 && os.Args[1] == "run" {
		_ = flags.Parse(os.Args[2:]) // It exits.
	}
	if flags.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: engine run [--engine=KIND] CMD [ARG...]")
		flags.PrintDefaults()
		os.Exit(2)
	}
	code, err := run(engine.Kind(*kind), flags.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
	}
	os.Exit(code)
}

func run(kind engine.Kind, argv []string) (code int, err error) {
	// From here on a signal ends the command, not us: we have to clean up.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	var host, front string
	if kind == engine.AtHand {
		host = engine.Find(ctx)
		front = cmp.Or(os.Getenv(engine.FrontEnv), host)
	}
	if named := os.Getenv("DOCKER_HOST"); named != "" && named != host && kind == engine.AtHand {
		fmt.Fprintln(os.Stderr, "engine: the one at DOCKER_HOST does not answer:", named)
	}
	if host != "" {
		fmt.Fprintln(os.Stderr, "engine: using", host)
	} else {
		stopped := make(chan struct{})
		var caught os.Signal
		go func() {
			defer close(stopped)
			select {
			case caught = <-signals:
				cancel()
			case <-ctx.Done():
			}
		}()
		home := os.Getenv("UPDATERD_E2E")
		bin, err := engine.Get(ctx, kind, filepath.Join(home, "engines"), os.Stderr)
		if err != nil {
			return 1, err
		}
		// So that engines which the command starts are of the same kind.
		if bin != "" {
			os.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		}
		if kind != engine.AtHand {
			os.Setenv(engine.KindEnv, string(kind))
		}
		os.Setenv(engine.AllowedEnv, filepath.Join(home, "../docs/socket-proxy.md"))
		startCtx, started := context.WithCancel(ctx)
		private, err := engine.Start(startCtx, engine.Options{})
		started()
		if err != nil {
			return 1, err
		}
		defer func() {
			if stopErr := private.Stop(); stopErr != nil {
				code, err = max(code, 1), errors.Join(err, stopErr)
				return
			}
			fmt.Fprintln(os.Stderr, "engine: ended the private one, and removed its files")
		}()
		cancel()
		<-stopped
		if caught != nil {
			return 128 + int(caught.(syscall.Signal)), nil
		}
		host, front = private.Host, private.Front
		fmt.Fprintln(os.Stderr, "engine: started a private one at", host)
	}

	cmd := exec.Command(argv[0], argv[1:]...)
	about, err := engine.About(context.Background(), host)
	if err != nil {
		return 1, err
	}
	if front != host {
		about += ", behind HAProxy"
	}
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, engine.FrontEnv+"="+front, engine.AboutEnv+"="+about)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A group of its own, so that a signal reaches all that the command started,
	// and once.
	// And should we be killed, it is told to end: see engine.Start.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var kill <-chan time.Time
	for {
		select {
		case s := <-signals:
			_ = syscall.Kill(-cmd.Process.Pid, s.(syscall.Signal))
			if kill == nil {
				kill = time.After(30 * time.Second)
			}
		case <-kill:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		case err := <-done:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
					return 128 + int(w.Signal()), nil
				}
				return exit.ExitCode(), nil
			}
			if err != nil {
				return 1, err
			}
			return 0, nil
		}
	}
}

//go:build !man

// Updaterd keeps containers up to date, and puts them back when an update is
// bad.
//
//	updaterd run              the daemon
//	updaterd run --once       one pass, every change carried to its end
//	updaterd check            look and decide, change nothing
//	updaterd explain IMAGE    every tag, and why it was taken or dropped
//	updaterd status           whether the daemon is well: a health check
//	updaterd workloads        what is watched, as the daemon sees it
//	updaterd logs             what a condemned image wrote
//	updaterd update           update now, whatever is waited for
//	updaterd rollback         go back to the image before
//	updaterd hold, release    leave a workload as it is, and no longer
//	updaterd approve, reject  say yes or no to an image
//	updaterd forget WORKLOAD  lift the rejection of an image
//	updaterd pause, resume    begin no change of anything, and again
//	updaterd history          what happened
//	updaterd notify test      tell everybody that it is a test
//	updaterd config check     what is wrong with the configuration
//	updaterd config show      the effective values, and where they come from
//	updaterd migrate          the configuration that equals a Watchtower, WUD or Diun
//	updaterd version
//
// Exit codes: 0 fine; 1 something failed, was restored, could not be asked, or
// was interrupted; 2 the call or the configuration is wrong.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	_ "time/tzdata" // windows name time zones; a container FROM scratch has none
)

// version is set by the build.
var version = "unknown"

func main() {
	staySmall()

	// The first signal asks to stop, a second one ends the process as usual:
	// the journal makes even that safe.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	// Whoever reads what is printed may go away: a head, a pager, systemd's journal.
	// Unasked for, the signal would end the process in the midst of an effect; like
	// this the write fails, and nothing else.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	p := program{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ(), version: version, hangups: hangups}
	os.Exit(p.main(ctx, os.Args[1:]))
}

// staySmall uses a few processors only, unless $GOMAXPROCS says otherwise: each
// that Go may use keeps memory of its own, and updaterd waits for others nearly
// all the time. docs/performance.md has what it saves.
func staySmall() {
	const processors = 4
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) > processors {
		runtime.GOMAXPROCS(processors)
	}
}

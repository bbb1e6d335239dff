package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/updater"
)

// The exit codes, which scripts go by.
const (
	exitFine    = 0
	exitTrouble = 1 // something failed, was restored, could not be asked, or was interrupted
	exitUsage   = 2 // the call or the configuration is wrong
)

// program is one call of updaterd. Tests make their own.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string
	version        string
	hangups        <-chan os.Signal // SIGHUP: read the configuration again

	// leaseWait is how long the lead of a cluster is waited for; negative: as long as
	// it takes.
	leaseWait time.Duration

	// wrap, when set, is put around the state of every backend; for tests.
	wrap func(updater.State) updater.State
}

// errTrouble ends a command with exitTrouble when what it printed says it all.
var errTrouble = errors.New("trouble")

// usageError marks an error of the call.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// main runs one command line and returns the exit code.
func (p program) main(ctx context.Context, args []string) int {
	root := p.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errTrouble):
		return exitTrouble
	case unread(err):
		return exitTrouble
	}
	if problems, ok := errors.AsType[config.Problems](err); ok {
		// Each line begins with the file and the line, as editors understand it.
		p.complain(problems.Error())
		return exitUsage
	}
	p.complain(fmt.Sprintf("updaterd: %v", err))
	if _, ok := errors.AsType[usageError](err); ok || errors.Is(err, updater.ErrUnknownWorkload) || errors.Is(err, updater.ErrSaying) {
		return exitUsage
	}
	return exitTrouble
}

// unread reports whether a command only failed because nobody reads any more what it
// prints, as in "updaterd history | head -1", of which no more is to be said. A
// connection that broke is another error.
func unread(err error) bool {
	file, ok := errors.AsType[*fs.PathError](err)
	return ok && file.Op == "write" && errors.Is(file.Err, syscall.EPIPE)
}

// shared are the flags of every command.
type shared struct {
	config string
}

func (p program) command() *cobra.Command {
	var s shared
	root := &cobra.Command{
		Use:   "updaterd",
		Short: "Keeps containers up to date, and puts them back when an update is bad",
		Long: `updaterd moves containers to newer images by policy and watches their health.
A workload that it touches ends up either healthy on the new image, or exactly
as it was.

Exit codes: 0 fine; 1 something failed, was restored, could not be asked, or was
interrupted; 2 the call or the configuration is wrong.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       p.version,
		Args:          cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return usageError{errors.New("name a command")}
		},
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetVersionTemplate("updaterd {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.PersistentFlags().StringVarP(&s.config, "config", "c", "",
		"configuration `FILE` (default $UPDATERD_CONFIG, else "+config.DefaultFile+" if it exists)")
	root.AddCommand(
		p.runCommand(&s), p.checkCommand(&s), p.statusCommand(&s), p.workloadsCommand(&s), p.logsCommand(&s), p.explainCommand(&s),
		p.historyCommand(&s), p.notifyCommand(&s), p.configCommand(&s), p.migrateCommand(), p.versionCommand(), p.finishCommand(&s),
	)
	root.AddCommand(p.sayings(&s)...)
	wrongCalls(root)
	return root
}

// wrongCalls makes errors of the arguments errors of the call, in every command.
func wrongCalls(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrongCalls(sub)
	}
}

// load reads the configuration.
func (p program) load(s *shared) (*config.Config, error) {
	return config.Load(config.Find(s.config, p.environ), p.environ)
}

func (p program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(p.stdout, "updaterd %s\n", p.version)
			return err
		},
	}
}

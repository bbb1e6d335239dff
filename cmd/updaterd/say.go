package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
)

// sayCommand is one command by which a person says something.
type sayCommand struct {
	verb        updater.Verb
	use, short  string
	long        string
	lapses      bool // --for
	about       bool // --digest
	everything  bool // it takes no workload
	all, atOnce bool // without a workload it is about all; its end is waited for
}

func sayCommands() []sayCommand {
	return []sayCommand{
		{verb: updater.SayHold, use: "hold WORKLOAD...", short: "Leave workloads as they are", lapses: true,
			long: "Leave workloads as they are until `updaterd release`. A change under way is finished."},
		{verb: updater.SayRelease, use: "release WORKLOAD...", short: "End the hold of workloads",
			long: "End what `updaterd hold` began. The setting `mode: hold` is not touched by it."},
		{verb: updater.SayApprove, use: "approve WORKLOAD...", short: "Approve the image that waits for it", lapses: true, about: true,
			long: "Approve the candidate of workloads whose mode is approve. It is for that digest alone.\nWhat was found bad by itself stays rejected until `updaterd forget`; the answer says so.\nTo withdraw an approval, reject the image and then forget that."},
		{verb: updater.SayReject, use: "reject WORKLOAD...", short: "Keep an image away from workloads", lapses: true, about: true,
			long: "Keep the candidate away from workloads, until `updaterd forget` or `updaterd approve`.\nThe next image gets its chance."},
		{verb: updater.SayForget, use: "forget WORKLOAD...", short: "Lift the rejections of workloads, so that their images are tried again",
			long: "Lift the rejections of workloads, so that their images are tried again in the next\npass, and end the pause after an attempt that was nobody's fault."},
		{verb: updater.SayPause, use: "pause", short: "Begin no change of anything", lapses: true, everything: true,
			long: "Begin no new change of anything, until `updaterd resume`. A change under way is\nfinished, and one that went wrong is put back."},
		{verb: updater.SayResume, use: "resume", short: "End the pause of everything", everything: true,
			long: "End what `updaterd pause` began."},
		{verb: updater.SayUpdate, use: "update [WORKLOAD...]", short: "Update now, whatever is waited for", all: true, atOnce: true,
			long: "Update workloads to their candidates now, and wait for the end: no window, no age, no\napproval and no pause after a failed attempt is waited for, and mode monitor does not\nstop it. What is held, paused or rejected stays so. Without a name: all that have an\nupdate."},
		{verb: updater.SayRollback, use: "rollback WORKLOAD...", short: "Go back to the image before, now", about: true, atOnce: true,
			long: "Go back to the image that ran before the last update, as far as the setting keep\nkeeps it, and wait for the end. It is a change like any other: it is judged, and put\nback if the old image is bad by now. The image moved off is then rejected there\n(rolled-back), until `updaterd forget`."},
	}
}

// sayings makes the commands.
func (p program) sayings(s *shared) []*cobra.Command {
	var all []*cobra.Command
	for _, def := range sayCommands() {
		c := &cobra.Command{Use: def.use, Short: def.short, Long: def.long, Args: cobra.MinimumNArgs(1)}
		c.Long += "\nIt works with and without a daemon."
		switch {
		case def.everything:
			c.Args = cobra.NoArgs
		case def.all:
			c.Args = cobra.ArbitraryArgs
		}
		if !def.everything {
			c.ValidArgsFunction = p.completeWorkloads(s)
		}
		o := outputFlag(c)
		said := updater.Saying{Verb: def.verb}
		var lasts string
		c.Flags().StringVarP(&said.Why, "message", "m", "", "why, for the history")
		if def.lapses {
			c.Flags().StringVar(&lasts, "for", "", "`DURATION` (12h, 3d) after which it lapses by itself")
		}
		if def.about {
			c.Flags().StringVar(&said.Digest, "digest", "", "the `DIGEST` that is meant, whole, with sha256:")
		}
		c.RunE = func(c *cobra.Command, args []string) error {
			said, now := said, time.Now()
			said.Workloads, said.Who = args, p.person()
			if lasts != "" {
				d, err := config.ParseDuration(lasts)
				if err != nil || d == 0 {
					return usageError{fmt.Errorf("--for: %q is no time to last; write it as 12h or 3d", lasts)}
				}
				said.Until = now.Add(d)
			}
			cfg, err := p.load(s)
			if err != nil {
				return err
			}
			return p.say(c.Context(), cfg, *o, def, said)
		}
		all = append(all, c)
	}
	return all
}

// say passes on what a person said: to the daemon, or where none listens, or none any
// more, to the journal.
func (p program) say(ctx context.Context, cfg *config.Config, o output, def sayCommand, s updater.Saying) error {
	err := p.tell(ctx, cfg, o, def, s)
	if errors.Is(err, server.ErrNobody) {
		return p.note(ctx, cfg, o, def, s)
	}
	return err
}

// tell tells the daemon what a person said; the error is server.ErrNobody when none
// has heard it.
func (p program) tell(ctx context.Context, cfg *config.Config, o output, def sayCommand, s updater.Saying) error {
	daemon, status, err := daemonOf(ctx, cfg)
	if err != nil {
		return err
	}
	if def.atOnce && len(status.Backends) > 0 {
		rows, err := p.follow(ctx, daemon, status.Backends, s, p.teller())
		if err != nil && len(rows) == 0 {
			return err
		}
		return p.printDone(ctx, o, def, rows, err)
	}
	told, err := daemon.Say(ctx, s)
	if err != nil {
		return err
	}
	if err := p.printTold(o, def, told, stateOf(cfg)); err != nil || !def.atOnce {
		return err
	}
	_, err = fmt.Fprintln(p.stderr, "This daemon stands by. The one that leads takes it up within half a minute; updaterd history tells how it ends.")
	return err
}

// note writes what a person said into the journal, and does what was asked for at
// once.
func (p program) note(ctx context.Context, cfg *config.Config, o output, def sayCommand, s updater.Saying) error {
	as := looks
	if def.atOnce {
		as = acts
	}
	w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), as)
	if err != nil {
		return err
	}
	defer w.close()
	told, err := w.updater.Say(ctx, s)
	w.flush(ctx)
	if err != nil {
		return err
	}
	if !def.atOnce {
		return p.printTold(o, def, told, stateOf(cfg))
	}
	var ids []string
	for _, t := range told {
		ids = append(ids, t.Workload)
	}
	if len(ids) == 0 {
		return p.printTold(o, def, told, stateOf(cfg))
	}
	rows, err := w.updater.Once(ctx, ids)
	w.flush(ctx)
	if errors.Is(err, updater.ErrLed) {
		// The one that leads finds it in the journal.
		if err := p.printTold(o, def, told, stateOf(cfg)); err != nil {
			return err
		}
		_, err := fmt.Fprintln(p.stderr, "The daemon takes it up within half a minute.")
		return err
	}
	if err != nil && len(rows) == 0 {
		return err
	}
	return p.printDone(ctx, o, def, rows, err)
}

// printDone prints what became of what was asked for at once. err is what came in
// between.
func (p program) printDone(ctx context.Context, o output, def sayCommand, rows []updater.Row, err error) error {
	if len(rows) == 0 && o == asTable {
		_, failed := fmt.Fprintf(p.stdout, "There is nothing to %s.\n", def.verb)
		return errors.Join(failed, err)
	}
	if err := errors.Join(p.printRows(o, rows, true), err); err != nil {
		return err
	}
	if ctx.Err() != nil || slices.ContainsFunc(rows, undone) {
		return errTrouble
	}
	return nil
}

// undone reports whether what a person asked for at once was not done.
func undone(r updater.Row) bool {
	return r.Trouble() || r.Outcome != updater.OutcomeCommitted && r.Reason != updater.UpToDate
}

// printTold prints what became of what a person said.
func (p program) printTold(o output, def sayCommand, told []updater.Told, state string) error {
	if o == asJSON {
		return printJSON(p.stdout, told)
	}
	for _, line := range server.Answer(def.verb, told) {
		if _, err := fmt.Fprintln(p.stdout, printable(line)); err != nil {
			return err
		}
	}
	if def.verb == updater.SayForget && !slices.ContainsFunc(told, func(t updater.Told) bool { return t.Changed }) {
		_, err := fmt.Fprintf(p.stdout, "What is remembered is in %s.\n", state)
		return err
	}
	return nil
}

// person is who runs this command, for the history; "" where that is not known.
// Behind sudo it is whoever called that.
func (p program) person() string {
	if who := os.Getenv("SUDO_USER"); who != "" {
		return who
	}
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

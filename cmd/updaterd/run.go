package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/updater"
	"github.com/updaterd/updaterd/internal/webhook"
)

func (p program) runCommand(s *shared) *cobra.Command {
	var once bool
	var leaseWait time.Duration
	c := &cobra.Command{
		Use:   "run [--once [WORKLOAD...]]",
		Short: "Keep workloads up to date",
		Long: `Keep workloads up to date: the daemon. It first finishes what a crash left open.
The configuration is read again on SIGHUP and when its file changes; a broken
one is refused and the old one stays. SIGTERM stops it: an effect that has
begun is finished, and what waits for a verdict is taken up at the next start.

With --once: finish open changes, make one pass as the schedule would make it,
carry every change to its end, and print a row per watched workload. In a cluster
it takes the same Lease as a daemon: one that died is waited out, one that lives is
waited for as long as --lease-wait says.`,
		ValidArgsFunction: p.completeWorkloads(s),
	}
	o := outputFlag(c)
	c.Flags().BoolVar(&once, "once", false, "make one pass and end")
	c.Flags().DurationVar(&leaseWait, "lease-wait", time.Minute, "with --once: how long to wait while another updaterd leads in a cluster")
	c.Args = func(c *cobra.Command, args []string) error {
		switch {
		case len(args) > 0 && !once:
			return errors.New("workloads can only be named with --once")
		case c.Flags().Changed("output") && !once:
			return errors.New("-o needs --once: the daemon only logs")
		case c.Flags().Changed("lease-wait") && !once:
			return errors.New("--lease-wait needs --once: the daemon waits as long as it takes")
		case leaseWait < 0:
			return errors.New("--lease-wait: it cannot be negative")
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if !once {
			p.leaseWait = -1
			return p.daemon(c.Context(), s)
		}
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		p.leaseWait = leaseWait
		w, err := p.wire(cfg, p.logger(cfg.Log), acts)
		if err != nil {
			return err
		}
		defer w.close()
		rows, err := w.updater.Once(c.Context(), args)
		w.flush(c.Context())
		if err != nil && len(rows) == 0 {
			return err // there was no pass
		}
		if err == nil && c.Context().Err() == nil {
			err = w.writable(c.Context())
		}
		if err := errors.Join(p.printRows(*o, rows, true), err); err != nil {
			return err
		}
		if c.Context().Err() != nil || slices.ContainsFunc(rows, updater.Row.Trouble) {
			return errTrouble
		}
		return nil
	}
	return c
}

// writable reports why an update could not have been begun, whether or not there was
// one: a journal that cannot be written has been logged, which nobody reads who goes
// by exit codes.
func (w *wiring) writable(ctx context.Context) error {
	unchanged := map[string]func(*updater.Record){updater.Everything: func(*updater.Record) {}}
	var all []error
	for _, place := range w.places {
		if err := place.State.Journal().Remember(ctx, unchanged); err != nil {
			all = append(all, fmt.Errorf("nothing can be updated on %s: %w", place.Backend.Name(), err))
		}
	}
	return errors.Join(all...)
}

// daemon runs until ctx ends. Passes go by the newest configuration that was
// whole; one that names other backends, or another state directory, needs the
// parts put together anew, which is a stop and a start within the process.
func (p program) daemon(ctx context.Context, s *shared) error {
	file := config.Find(s.config, p.environ)
	changed := make(chan struct{}, 1)
	if file != "" {
		// Begun before the first load, so that no change falls in between.
		go func() {
			_ = config.Watch(ctx, file, func() {
				select {
				case changed <- struct{}{}:
				default: // one is waiting already
				}
			})
		}()
	}
	cfg, err := config.Load(file, p.environ)
	if err != nil {
		return err
	}
	sup := newSupervisor()
	watched, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	go sup.watch(watched, ctx)
	for {
		next, err := p.serve(ctx, cfg, file, changed, sup)
		if err != nil || next == nil {
			return err
		}
		cfg = next
	}
}

// lastWords bounds what telling people may delay a stop, or a start with another
// configuration.
const lastWords = 3 * time.Second

// serve runs one wiring until ctx ends (nil) or a configuration comes that
// needs another wiring, which it returns.
func (p program) serve(ctx context.Context, cfg *config.Config, file string, changed <-chan struct{}, sup *supervisor) (*config.Config, error) {
	log := p.logger(cfg.Log)
	w, err := p.wire(cfg, log, acts)
	if err != nil {
		return nil, err
	}
	defer w.close()
	log.Info("updaterd starts", "version", p.version, "config", file, "state", cfg.State, "schedule", cfg.Schedule.String(), "watch", cfg.Watch)

	if w.metrics != nil {
		end, err := listen("metrics.listen", cfg.Metrics, config.TLS{}, w.metrics.Handler(w.updater.Glance), log)
		if err != nil {
			return nil, err
		}
		defer end()
	}

	closeAPI, err := w.api(cfg.API)
	if err != nil {
		return nil, err
	}
	defer closeAPI()

	if cfg.Webhooks.Listen != "" {
		h := webhook.New(senders(cfg.Webhooks), log)
		end, err := listen("webhooks.listen", cfg.Webhooks.Listen, cfg.Webhooks.TLS, h, log)
		if err != nil {
			return nil, err
		}
		hearing, deaf := context.WithCancel(ctx)
		heard := make(chan struct{})
		go func() {
			defer close(heard)
			h.Run(hearing, w.announced)
		}()
		defer func() {
			end()
			deaf()
			<-heard
		}()
	}

	telling, hush := context.WithCancel(context.WithoutCancel(ctx))
	told := make(chan struct{})
	go func() {
		defer close(told)
		w.notifier.Run(telling)
	}()
	// After the last effect, and with a moment for what that had to tell.
	defer func() {
		hush()
		<-told
		w.notifier.Flush(ctx, lastWords)
	}()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	sup.runs(w.updater, log)
	// Until a change that goes on after ctx has ended is over, it is watched.
	watching, unwatch := context.WithCancel(context.WithoutCancel(ctx))
	defer unwatch()
	w.follow(watching)
	go func() { ended <- w.updater.Run(ctx) }()

	var next *config.Config
	for {
		select {
		case err := <-ended:
			if err == nil && next == nil {
				log.Info("updaterd ends")
			}
			return next, err
		case <-p.hangups:
		case <-changed:
		}
		if next != nil {
			continue // already stopping for another
		}
		sup.reload(func() error {
			read, err := config.Load(file, p.environ)
			if err != nil {
				p.refuse(log, file, err)
				return err
			}
			if rewired(cfg, read) {
				log.Info("configuration names other parts, starting anew", "config", file)
				next = read
				stop()
				return nil
			}
			rules, err := w.rules(read)
			if err != nil {
				p.refuse(log, file, err)
				return err
			}
			w.updater.Reload(rules)
			cfg = read
			log.Info("configuration read again", "config", file)
			return nil
		})
	}
}

// refuse tells of a configuration that is not used, one line per problem.
func (p program) refuse(log *slog.Logger, file string, err error) {
	log.Error("configuration refused, the old one stays", "config", file, "err", err)
}

// rewired reports whether going from one configuration to another takes other
// parts than a running updater can exchange.
func rewired(a, b *config.Config) bool {
	return a.State != b.State || a.Log != b.Log || a.Metrics != b.Metrics || !reflect.DeepEqual(a.Docker, b.Docker) ||
		!reflect.DeepEqual(a.API, b.API) || !reflect.DeepEqual(a.Webhooks, b.Webhooks) || !reflect.DeepEqual(a.Kubernetes, b.Kubernetes)
}

func (p program) checkCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:               "check [WORKLOAD...]",
		Short:             "Look and decide, change nothing",
		Long:              "Look and decide, and change nothing. It works beside a daemon.",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: p.completeWorkloads(s),
	}
	o := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
		if err != nil {
			return err
		}
		defer w.close()
		rows, err := w.updater.Check(c.Context(), args)
		if err != nil {
			return err
		}
		if err := p.printRows(*o, rows, false); err != nil {
			return err
		}
		if c.Context().Err() != nil || slices.ContainsFunc(rows, updater.Row.Trouble) {
			return errTrouble
		}
		return nil
	}
	return c
}

// quiet keeps a command that prints an answer from telling what it does.
func quiet(l config.Log) config.Log {
	if l.Level == "info" {
		l.Level = "warn"
	}
	return l
}

// printRows prints what a pass says.
func (p program) printRows(o output, rows []updater.Row, outcome bool) error {
	if o == asJSON {
		if rows == nil {
			rows = []updater.Row{} // a list, also when it is empty
		}
		return printJSON(p.stdout, rows)
	}
	header := []string{"WORKLOAD", "IMAGE", "RUNS", "DECISION", "CANDIDATE", "REASON"}
	if outcome {
		header = append(header, "OUTCOME")
	}
	header = append(header, "DETAIL")
	var lines [][]string
	for _, r := range rows {
		candidate, runs := "", ""
		if r.Candidate != nil {
			candidate = describe(updater.Image{Ref: r.Candidate.Image, Digest: r.Candidate.Digest})
		}
		if r.Digest != nil {
			runs = short(*r.Digest)
		}
		reason, detail := string(r.Reason), r.Detail
		if h := r.Hold; h != nil && h.Reason != r.Reason {
			reason += ", " + string(h.Reason)
			detail += "; " + h.Detail
		}
		line := []string{r.Workload, r.Image, runs, r.Decision, candidate, reason}
		if outcome {
			line = append(line, string(r.Outcome))
		}
		lines = append(lines, append(line, detail))
	}
	if len(lines) == 0 {
		_, err := fmt.Fprintln(p.stdout, "Nothing is watched: label a container updaterd.enable=true (in a cluster: annotate a workload updaterd.dev/enable=true), or set watch: all.")
		return err
	}
	return printTable(p.stdout, header, lines)
}

// completeWorkloads offers the watched workloads to the shell.
func (p program) completeWorkloads(s *shared) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		cfg, err := p.load(s)
		if err != nil {
			return nil, none
		}
		w, err := p.wire(cfg, slog.New(slog.DiscardHandler), looks)
		if err != nil {
			return nil, none
		}
		defer w.close()
		var ids []string
		for _, place := range w.places {
			workloads, err := place.Backend.Workloads(c.Context())
			if err != nil {
				continue // nothing to offer from there
			}
			for _, one := range workloads {
				if settings, err := cfg.Settings(one); err != nil || settings.Enabled {
					ids = append(ids, one.ID)
				}
			}
		}
		return ids, none
	}
}

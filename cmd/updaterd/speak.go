package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
)

// serviceSocket and serviceState are where the service of the packages has its
// socket and its state: a shell does not have the variables that systemd sets.
const (
	serviceSocket = "/run/updaterd/updaterd.sock"
	serviceState  = "/var/lib/updaterd"
)

// daemonOf finds the daemon of a configuration; the error is server.ErrNobody
// when none listens, and server.ErrForbidden when one may.
func daemonOf(ctx context.Context, cfg *config.Config) (*server.Client, server.Status, error) {
	sockets := []string{cfg.API.Socket}
	if cfg.API.Fallback && cfg.State == serviceState {
		sockets = append(sockets, serviceSocket)
	}
	return answering(ctx, sockets)
}

// answering is the first daemon that answers on one of these sockets. One that may not
// be opened hides whether anybody listens on it, so the next one is tried, and only then
// is the last of them told: where no daemon answers, nobody may say that there is none.
func answering(ctx context.Context, sockets []string) (*server.Client, server.Status, error) {
	none := server.ErrNobody
	for _, s := range sockets {
		if s == "" {
			continue
		}
		c := server.NewClient(s)
		status, err := c.Status(ctx)
		switch {
		case errors.Is(err, server.ErrForbidden):
			none = err
		case !errors.Is(err, server.ErrNobody):
			return c, status, err
		case !errors.Is(none, server.ErrForbidden):
			none = err
		}
	}
	return nil, server.Status{}, none
}

// follow says something over the socket and waits until what was asked for is over
// for every workload of the backends that this daemon leads. It shows on progress what
// goes on.
func (p program) follow(ctx context.Context, c *server.Client, led []server.Backend, s updater.Saying, progress *teller) ([]updater.Row, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows := map[string]updater.Row{}
	waiting := map[string]time.Time{} // since when it is written what was said
	under := map[string]server.Change{}
	var failed error
	say := func(s updater.Saying) []updater.Told {
		told, err := c.Say(ctx, s)
		if err != nil {
			failed = err
			cancel()
		}
		return told
	}
	decided := func(w server.Workload) {
		if said, ok := waiting[w.ID]; !ok || w.AsOf.Before(said) {
			return // it was looked at before, and goes by what was known then
		}
		r := rowOf(w)
		r.Outcome = cmp.Or(rows[w.ID].Outcome, updater.OutcomeNone)
		rows[w.ID] = r
		// What is under way comes first; then it is looked at again.
		if w.Decision == "none" && w.Reason != updater.InProgress {
			delete(waiting, w.ID)
		}
	}
	err := c.Events(ctx, func() {
		for _, t := range say(s) {
			if !slices.ContainsFunc(led, func(b server.Backend) bool { return b.Name == t.Backend }) {
				rows[t.Workload] = updater.Row{Backend: t.Backend, Workload: t.Workload, Decision: "none", Outcome: updater.OutcomeNone, Reason: updater.Waiting,
					Detail: "another updaterd leads on " + t.Backend + " and takes it up; updaterd history tells how it ends"}
				continue
			}
			waiting[t.Workload] = t.At
			if s.Verb == updater.SayRollback && !t.Changed {
				// It is back, or on its way: a look tells.
				say(updater.Saying{Verb: updater.SayCheck, Workloads: []string{t.Workload}})
			}
		}
		if len(waiting) == 0 {
			cancel()
		}
	}, func(e server.Event) bool {
		switch e.Type {
		case server.EventWorkload:
			var w server.Workload
			if json.Unmarshal(e.Data, &w) == nil {
				decided(w)
			}
		case server.EventChange, server.EventProgress:
			var change server.Change
			if json.Unmarshal(e.Data, &change) != nil {
				break
			}
			for _, part := range change.Parts {
				said, ok := waiting[part.Workload]
				if !ok {
					continue
				}
				progress.tell(change)
				switch {
				case !change.Phase.Final():
					under[part.Workload] = change
				case change.Since.Before(said):
					if s.Verb == updater.SayUpdate { // it is what was asked for, unless a look finds more
						rows[part.Workload] = ended(rows[part.Workload], part, change)
					}
					say(updater.Saying{Verb: updater.SayCheck, Workloads: []string{part.Workload}})
				default:
					rows[part.Workload] = ended(rows[part.Workload], part, change)
					delete(waiting, part.Workload)
				}
			}
		}
		return len(waiting) > 0
	})
	progress.end()
	if failed != nil {
		return nil, failed
	}
	if err != nil && ctx.Err() == nil { // the daemon has ended
		for id, change := range under {
			if _, ok := waiting[id]; ok {
				rows[id] = handed(rows[id], id, change)
				delete(waiting, id)
			}
		}
	}
	all := []updater.Row{}
	for _, r := range rows {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b updater.Row) int { return strings.Compare(a.Workload, b.Workload) })
	if len(waiting) == 0 {
		return all, nil
	}
	return all, fmt.Errorf("not waited for to the end (updaterd history tells it): %w", cmp.Or(err, context.Cause(ctx)))
}

// rowOf is a workload of the API as a row.
func rowOf(w server.Workload) updater.Row {
	r := updater.Row{Backend: w.Backend, Workload: w.ID, Image: w.Image, Decision: w.Decision, Candidate: w.Candidate, Reason: w.Reason, Detail: w.Detail, Until: w.Until, Hold: w.Hold}
	if w.Digest != "" {
		r.Digest = &w.Digest
	}
	return r
}

// ended writes into a row how its change ended.
func ended(r updater.Row, part server.Part, c server.Change) updater.Row {
	r.Backend, r.Workload = c.Backend, part.Workload
	if r.Reason == "" || r.Reason == updater.InProgress { // what was decided was not seen
		r.Decision, r.Reason, r.Detail = "update", updater.Update, ""
		if part.To != nil {
			r.Candidate = &updater.RowCandidate{Image: part.To.Image, Digest: part.To.Digest}
		}
	}
	r.Outcome = map[updater.Phase]updater.Outcome{
		updater.Committed: updater.OutcomeCommitted, updater.Restored: updater.OutcomeRestored,
		updater.Failed: updater.OutcomeFailed, updater.Superseded: updater.OutcomeSuperseded,
	}[c.Phase]
	if r.Outcome == "" {
		r.Outcome, r.Decision = updater.OutcomeNone, "none"
	}
	r.Detail = cmp.Or(c.Why, r.Detail)
	return r
}

// handed writes into a row that its change was under way when the daemon ended, and that
// another process goes on with it.
func handed(r updater.Row, id string, c server.Change) updater.Row {
	for _, part := range c.Parts {
		if part.Workload == id {
			r = ended(r, part, c)
		}
	}
	r.Decision, r.Reason, r.Outcome = "none", updater.InProgress, updater.OutcomeOpen
	who := "the next start of the daemon, which has ended,"
	if c.Alone {
		who = "the helper that replaces updaterd itself"
	}
	r.Detail = fmt.Sprintf("a change of it is under way (%s); %s goes on with it, and updaterd history tells how it ends", c.Phase, who)
	return r
}

// teller shows what changes are at: on a terminal in one line that changes, else a
// line for each phase.
type teller struct {
	w        io.Writer
	terminal bool
	phase    map[string]updater.Phase
	open     bool // a line of the terminal is
}

func (p program) teller() *teller {
	t := &teller{w: p.stderr, phase: map[string]updater.Phase{}}
	if f, ok := p.stderr.(*os.File); ok {
		info, err := f.Stat()
		t.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return t
}

func (t *teller) tell(c server.Change) {
	moved := t.phase[c.ID] != c.Phase
	t.phase[c.ID] = c.Phase
	if !t.terminal && !moved {
		return
	}
	text := c.Unit + ": " + string(c.Phase)
	if q := c.Progress; q != nil && t.terminal {
		switch {
		case q.Total > 0:
			text += fmt.Sprintf(", %s %s of %s", q.Step, megabytes(q.Done), megabytes(q.Total))
		case q.Note != "":
			text += ", " + q.Note
		default:
			text += ", " + q.Step
		}
	}
	if c.Phase.Final() && c.Why != "" {
		text += ": " + c.Why
	}
	text = printable(text)
	switch {
	case !t.terminal:
		fmt.Fprintln(t.w, text)
	case c.Phase.Final():
		fmt.Fprintf(t.w, "\r\x1b[K%s\n", text)
		t.open = false
	default:
		const width = 78 // what a narrow terminal shows without a second line
		if r := []rune(text); len(r) > width {
			text = string(r[:width-1]) + "…"
		}
		fmt.Fprintf(t.w, "\r\x1b[K%s", text)
		t.open = true
	}
}

func (t *teller) end() {
	if t.open {
		fmt.Fprintln(t.w)
		t.open = false
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func (p program) statusCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Say whether the daemon is well, and what it is at",
		Long: `Say whether the daemon is well, and what it is at. The exit code is 0 when it
answers, leads or stands by, can ask its backends, and nothing hangs; else 1. That
makes it a health check.`,
		Args: cobra.NoArgs,
	}
	o := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), 10*time.Second)
		defer cancel()
		_, status, err := daemonOf(ctx, cfg)
		if err != nil {
			return fmt.Errorf("%w: is the daemon running, with this configuration?", err)
		}
		if *o == asJSON {
			err = printJSON(p.stdout, status)
		} else {
			err = p.printStatus(status)
		}
		if err == nil && !status.Healthy() {
			err = errTrouble
		}
		return err
	}
	return c
}

func (p program) printStatus(s server.Status) error {
	word := "well"
	switch {
	case len(s.Hanging) > 0:
		word = "hangs: " + strings.Join(s.Hanging, ", ")
	case s.StandingBy:
		word = "standing by"
	case !s.Ready:
		word = "starting"
	case !s.Healthy():
		word = "in trouble"
	}
	word = strings.Join(append([]string{word}, s.Pauses()...), ", ")
	lines := fmt.Sprintf("updaterd %s: %s\n", s.Version, printable(word))
	if counts := reasons(s); counts != "" {
		lines += "workloads: " + counts + "\n"
	}
	if _, err := fmt.Fprintln(p.stdout, lines); err != nil {
		return err
	}
	at := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.Local().Format(time.DateTime)
	}
	var rows [][]string
	for _, b := range s.Backends {
		rows = append(rows, []string{b.Name, fmt.Sprint(b.Watched), fmt.Sprint(b.Updates), strings.Join(b.Changing, " "), at(b.LastPass), at(b.NextPass), b.Trouble})
	}
	return printTable(p.stdout, []string{"BACKEND", "WATCHED", "UPDATES", "CHANGING", "LAST PASS", "NEXT PASS", "TROUBLE"}, rows)
}

// unseen says why a daemon that has this many backends does not know what is watched;
// "" when it does.
func unseen(s server.Status, backends int) string {
	switch {
	case s.StandingBy:
		return "the daemon stands by while another process finishes the update of updaterd itself, and has not looked; updaterd check does"
	case slices.ContainsFunc(s.Backends, func(b server.Backend) bool { return b.Trouble == "" && b.LastPass == nil }), !s.Ready:
		return "the daemon has not looked yet; ask again in a moment, or let updaterd check look"
	case len(s.Backends) < backends:
		return "the daemon stands by while another updaterd leads, and has not looked; updaterd check does"
	}
	return ""
}

// reasons are how many workloads there are for each reason, most first.
func reasons(s server.Status) string {
	counts := map[updater.Reason]int{}
	for _, b := range s.Backends {
		for r, n := range b.Reasons {
			counts[r] += n
		}
	}
	order := slices.SortedFunc(maps.Keys(counts), func(a, b updater.Reason) int {
		return cmp.Or(counts[b]-counts[a], strings.Compare(string(a), string(b)))
	})
	var words []string
	for _, r := range order {
		words = append(words, fmt.Sprintf("%d %s", counts[r], r))
	}
	return strings.Join(words, ", ")
}

func (p program) workloadsCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:   "workloads [WORKLOAD...]",
		Short: "List what is watched, as the daemon sees it",
		Long: `List what is watched, with the reason of the last decision, as the daemon sees it.
Without a daemon it looks itself, as check does, which always asks the registries.`,
		ValidArgsFunction: p.completeWorkloads(s),
	}
	o := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		daemon, status, err := daemonOf(c.Context(), cfg)
		var all []server.Workload
		if err == nil {
			all, err = daemon.Workloads(c.Context(), args...)
		}
		var rows []updater.Row
		switch {
		case err == nil:
			if blind := unseen(status, len(cfg.Docker)+len(cfg.Kubernetes)); blind != "" && len(all) == 0 && (len(args) > 0 || *o == asTable) {
				if len(args) > 0 {
					return fmt.Errorf("%s: not known: %s", strings.Join(args, ", "), blind)
				}
				_, err := fmt.Fprintf(p.stdout, "Not known: %s.\n", blind)
				return err
			}
			for _, w := range all {
				rows = append(rows, rowOf(w))
			}
			for _, n := range args {
				if !slices.ContainsFunc(rows, func(r updater.Row) bool { return isCalled(n, r.Backend, r.Workload) }) {
					return fmt.Errorf("%w: the daemon has seen no watched workload %q", updater.ErrUnknownWorkload, n)
				}
			}
		case errors.Is(err, server.ErrNobody): // or none any more
			w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
			if err != nil {
				return err
			}
			defer w.close()
			if rows, err = w.updater.Check(c.Context(), args); err != nil {
				return err
			}
		default:
			return err
		}
		return p.printRows(*o, rows, false)
	}
	return c
}

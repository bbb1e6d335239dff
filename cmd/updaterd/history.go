package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
)

func (p program) historyCommand(s *shared) *cobra.Command {
	var limit int
	var logs, follow bool
	c := &cobra.Command{
		Use:               "history [WORKLOAD...]",
		Short:             "Print what happened, newest first",
		Long:              "Print what happened, newest first. It works beside a daemon, and without an engine;\nwhat happened in a cluster is kept there, so its API server must answer.",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: p.completeWorkloads(s),
	}
	o := outputFlag(c)
	c.Flags().IntVarP(&limit, "limit", "n", 50, "how many entries at most; 0: all that are kept")
	c.Flags().BoolVar(&logs, "logs", false, "print the last lines that condemned an image as well")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "oldest first, and then what happens, until it is ended")
	c.RunE = func(c *cobra.Command, args []string) error {
		if limit < 0 {
			return usageError{errors.New("--limit: it cannot be negative")}
		}
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		if follow {
			return p.followHistory(c.Context(), cfg, *o, args, limit)
		}
		entries, err := p.entries(c.Context(), cfg, url.Values{"workload": args}, limit)
		if err != nil {
			return err
		}
		nobody := p.nobody(c.Context(), cfg, args, entries)
		if len(entries) > 0 || nobody == nil || *o == asJSON {
			return errors.Join(p.printHistory(*o, entries, logs, stateOf(cfg)), nobody)
		}
		return nobody
	}
	return c
}

// nobody is an error for each name that nothing is known of: nothing has happened to it,
// and it is certain that there is no such workload. entries are the newest ones.
func (p program) nobody(ctx context.Context, cfg *config.Config, asked []string, entries []server.Entry) error {
	var quiet []string
	for _, n := range asked {
		var older []server.Entry
		if !slices.ContainsFunc(entries, func(e server.Entry) bool { return isCalled(n, e.Backend, e.Workload) }) {
			older, _ = p.entries(ctx, cfg, url.Values{"workload": {n}}, 1) // what cannot be asked is not certain
			if len(older) == 0 {
				quiet = append(quiet, n)
			}
		}
	}
	if len(quiet) == 0 {
		return nil
	}
	there, certain := p.there(ctx, cfg)
	if !certain {
		return nil
	}
	var wrong []error
	for _, n := range quiet {
		if !there(n) {
			wrong = append(wrong, fmt.Errorf("%w: nothing has happened to %q that %s knows of, and no watched workload is called so", updater.ErrUnknownWorkload, n, stateOf(cfg)))
		}
	}
	return errors.Join(wrong...)
}

// there says which workloads there are, by name; certain is false where some cannot be
// known.
func (p program) there(ctx context.Context, cfg *config.Config) (there func(name string) bool, certain bool) {
	daemon, status, err := daemonOf(ctx, cfg)
	if err == nil {
		all, err := daemon.Workloads(ctx)
		looked := len(status.Backends) == len(cfg.Docker)+len(cfg.Kubernetes) &&
			!slices.ContainsFunc(status.Backends, func(b server.Backend) bool { return b.Trouble != "" || b.LastPass == nil })
		return func(n string) bool {
			return slices.ContainsFunc(all, func(w server.Workload) bool { return isCalled(n, w.Backend, w.ID) })
		}, err == nil && looked
	}
	w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
	if err != nil {
		return nil, false
	}
	defer w.close()
	ids := map[string]string{} // by id, the backend
	for _, place := range w.places {
		backend := place.Backend.Name()
		listed, err := place.Backend.Workloads(ctx)
		memory, forgot := place.State.Journal().Recall(ctx)
		if err != nil || forgot != nil {
			return nil, false
		}
		for _, one := range listed {
			ids[one.ID] = backend
		}
		for id := range memory {
			ids[id] = backend
		}
	}
	return func(n string) bool {
		for id, backend := range ids {
			if isCalled(n, backend, id) {
				return true
			}
		}
		return false
	}, true
}

// isCalled reports whether a name that a person gave means a workload.
func isCalled(name, backend, id string) bool { return name == id || backend+"/"+name == id }

// stateOf says where what happened is kept, for people.
func stateOf(cfg *config.Config) string {
	var all []string
	if len(cfg.Docker) > 0 {
		all = append(all, cfg.State)
	}
	for _, k := range cfg.Kubernetes {
		all = append(all, "cluster "+k.Name)
	}
	return strings.Join(all, ", ")
}

// entries is what happened, newest first, by the query of the API: from the daemon,
// or where none listens from the journal. With a limit of 0 it is all.
func (p program) entries(ctx context.Context, cfg *config.Config, query url.Values, limit int) ([]server.Entry, error) {
	daemon, _, err := daemonOf(ctx, cfg)
	if err == nil {
		var all []server.Entry
		if all, err = toldEntries(ctx, daemon, query, limit); err == nil {
			return all, nil
		}
	}
	if !errors.Is(err, server.ErrNobody) {
		return nil, err
	}
	w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
	if err != nil {
		return nil, err
	}
	defer w.close()
	kept, err := w.updater.History(ctx)
	if err != nil {
		return nil, err
	}
	all := []server.Entry{}
	for _, e := range kept {
		if server.Asked(query, e) {
			all = append(all, server.EntryOf(e))
		}
	}
	if limit > 0 && len(all) > limit {
		all = all[:limit]
	}
	return all, nil
}

// toldEntries are those of a daemon, which gives a page at a time.
func toldEntries(ctx context.Context, daemon *server.Client, query url.Values, limit int) ([]server.Entry, error) {
	const page = 1000
	all := []server.Entry{}
	for {
		want := page
		if limit > 0 {
			want = min(page, limit-len(all))
		}
		query.Set("limit", fmt.Sprint(want))
		query.Set("offset", fmt.Sprint(len(all)))
		some, err := daemon.History(ctx, query)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		if len(some) < want || len(all) == limit {
			return all, nil
		}
	}
}

// followHistory prints what happens as it happens, over restarts of the daemon.
func (p program) followHistory(ctx context.Context, cfg *config.Config, o output, names []string, limit int) error {
	var last time.Time
	seen := map[string]bool{} // of the moment of the last
	for {
		query := url.Values{"workload": names}
		if !last.IsZero() {
			query.Set("since", last.Add(-time.Nanosecond).Format(time.RFC3339Nano))
			limit = 0
		}
		entries, err := p.entries(ctx, cfg, query, limit)
		if ctx.Err() != nil {
			return nil // it was ended
		}
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(entries) {
			key := fmt.Sprint(e.At.UnixNano(), e.Workload, e.Event, e.Change, e.To)
			if e.To != nil {
				key += e.To.Digest
			}
			if e.At.After(last) {
				last = e.At
				clear(seen)
			}
			if seen[key] {
				continue
			}
			seen[key] = true
			if err := p.printLine(o, e); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followEvery):
		}
	}
}

// followEvery is the pause between two looks at the history.
const followEvery = time.Second

// printLine prints one entry, whatever comes after it.
func (p program) printLine(o output, e server.Entry) error {
	if o == asJSON {
		line := json.NewEncoder(p.stdout)
		line.SetEscapeHTML(false)
		return line.Encode(e)
	}
	words := []string{e.At.Local().Format(time.DateTime), e.Workload, string(e.Event), describeImage(e.To)}
	if e.Who != "" {
		words = append(words, "by "+e.Who)
	}
	_, err := fmt.Fprintln(p.stdout, strings.TrimSuffix(printable(strings.Join(words, "  ")+": "+e.Why), ": "))
	return err
}

func (p program) logsCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:   "logs CHANGE|WORKLOAD",
		Short: "Print the last lines that a condemned image wrote",
		Long: `Print the last lines that the image of a change wrote before it was put back, at
most 4 KiB. The change is named by its id (history -o json), or by a workload: then
it is the last one of it that left any.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeWorkloads(s),
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		entries, err := p.entries(c.Context(), cfg, url.Values{"change": args}, 0)
		if err == nil && len(entries) == 0 {
			entries, err = p.entries(c.Context(), cfg, url.Values{"workload": args}, 0)
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Logs == "" {
				continue
			}
			for line := range strings.Lines(e.Logs) {
				if _, err := fmt.Fprintln(p.stdout, printable(line)); err != nil {
					return err
				}
			}
			return nil
		}
		return fmt.Errorf("no lines are kept of %q: name a change, or a workload, whose image was put back; updaterd history lists them", args[0])
	}
	return c
}

func (p program) printHistory(o output, entries []server.Entry, logs bool, state string) error {
	if o == asJSON {
		return printJSON(p.stdout, entries)
	}
	if len(entries) == 0 {
		_, err := fmt.Fprintf(p.stdout, "Nothing has happened yet that %s knows of.\n", state)
		return err
	}
	var rows [][]string
	for _, e := range entries {
		rows = append(rows, []string{
			e.At.Local().Format(time.DateTime), e.Workload, string(e.Event), describeImage(e.From), describeImage(e.To),
			rounded(seconds(e.Took)), rounded(seconds(e.Gap)), e.Who, e.Why,
		})
	}
	if err := printTable(p.stdout, []string{"AT", "WORKLOAD", "EVENT", "FROM", "TO", "TOOK", "GAP", "WHO", "WHY"}, rows); err != nil || !logs {
		return err
	}
	for _, e := range entries {
		if e.Logs == "" {
			continue
		}
		if _, err := fmt.Fprintf(p.stdout, "\n%s %s: the last lines of %s\n", e.At.Local().Format(time.DateTime), e.Workload, describeImage(e.To)); err != nil {
			return err
		}
		if err := p.printLogs(e.Logs); err != nil {
			return err
		}
	}
	return nil
}

func describeImage(i *server.Image) string {
	if i == nil {
		return ""
	}
	return describe(updater.Image{Ref: i.Image, Digest: i.Digest})
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func describe(i updater.Image) string {
	switch {
	case i.Digest == "":
		return i.Ref
	case i.Ref == "":
		return short(i.Digest)
	}
	// What holds its digest says it once.
	if name, pinned, _ := strings.Cut(i.Ref, "@"); pinned == i.Digest {
		return name + "@" + short(i.Digest)
	}
	return i.Ref + " " + short(i.Digest)
}

func rounded(d time.Duration) string {
	switch {
	case d == 0:
		return ""
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

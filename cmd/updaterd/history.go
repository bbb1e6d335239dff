package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/updater"
)

// happening is one line of the history as JSON.
type happening struct {
	At       time.Time       `json:"at"`
	Backend  string          `json:"backend"`
	Workload string          `json:"workload"`
	Event    updater.Event   `json:"event"`
	From     *imageAndDigest `json:"from"`
	To       *imageAndDigest `json:"to"`
	Verdict  updater.Verdict `json:"verdict,omitempty"`
	Why      string          `json:"why"`
	Logs     string          `json:"logs,omitempty"` // the last lines of a condemned image
	Took     float64         `json:"took_seconds"`
	Gap      float64         `json:"gap_seconds"` // in service; 0 when unknown
	Change   string          `json:"change,omitempty"`
	Who      string          `json:"who,omitempty"` // the person by whose word it happened
}

type imageAndDigest struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
}

func (p program) historyCommand(s *shared) *cobra.Command {
	var limit int
	var logs bool
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
	c.RunE = func(c *cobra.Command, args []string) error {
		if limit < 0 {
			return usageError{errors.New("--limit: it cannot be negative")}
		}
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
		if err != nil {
			return err
		}
		defer w.close()
		var entries []updater.Entry
		for _, place := range w.places {
			some, err := place.State.Journal().History(c.Context(), 0)
			if err != nil {
				return err
			}
			entries = append(entries, some...)
		}
		if len(args) > 0 {
			entries = slices.DeleteFunc(entries, func(e updater.Entry) bool {
				return !slices.ContainsFunc(args, func(name string) bool { return name == e.Workload || e.Backend+"/"+name == e.Workload })
			})
		}
		slices.SortStableFunc(entries, func(a, b updater.Entry) int { return b.At.Compare(a.At) })
		if limit > 0 && len(entries) > limit {
			entries = entries[:limit]
		}
		return p.printHistory(*o, entries, logs, stateOf(cfg))
	}
	return c
}

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

func (p program) printHistory(o output, entries []updater.Entry, logs bool, state string) error {
	if o == asJSON {
		all := []happening{}
		for _, e := range entries {
			all = append(all, happening{
				At: e.At, Backend: e.Backend, Workload: e.Workload, Event: e.Event, From: named(e.From), To: named(e.To),
				Verdict: e.Verdict, Why: e.Why, Logs: e.Logs, Took: e.Took.Seconds(), Gap: e.Gap.Seconds(), Change: e.Change, Who: e.Who,
			})
		}
		return printJSON(p.stdout, all)
	}
	if len(entries) == 0 {
		_, err := fmt.Fprintf(p.stdout, "Nothing has happened yet that %s knows of.\n", state)
		return err
	}
	var rows [][]string
	for _, e := range entries {
		rows = append(rows, []string{
			e.At.Local().Format(time.DateTime), e.Workload, string(e.Event), describe(e.From), describe(e.To),
			rounded(e.Took), rounded(e.Gap), e.Who, e.Why,
		})
	}
	if err := printTable(p.stdout, []string{"AT", "WORKLOAD", "EVENT", "FROM", "TO", "TOOK", "GAP", "WHO", "WHY"}, rows); err != nil || !logs {
		return err
	}
	for _, e := range entries {
		if e.Logs == "" {
			continue
		}
		if _, err := fmt.Fprintf(p.stdout, "\n%s %s: the last lines of %s\n", e.At.Local().Format(time.DateTime), e.Workload, describe(e.To)); err != nil {
			return err
		}
		if err := p.printLogs(e.Logs); err != nil {
			return err
		}
	}
	return nil
}

func named(i updater.Image) *imageAndDigest {
	if i.Ref == "" && i.Digest == "" {
		return nil
	}
	return &imageAndDigest{i.Ref, i.Digest}
}

func describe(i updater.Image) string {
	switch {
	case i.Digest == "":
		return i.Ref
	case i.Ref == "":
		return short(i.Digest)
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

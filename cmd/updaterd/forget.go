package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (p program) forgetCommand(s *shared) *cobra.Command {
	return &cobra.Command{
		Use:   "forget WORKLOAD",
		Short: "Lift the rejections of a workload, so that its images are tried again",
		Long: `Lift the rejections of a workload, so that its images are tried again in the next
pass, and end the pause after an attempt that was nobody's fault. It works beside
a daemon.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: p.completeWorkloads(s),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := p.load(s)
			if err != nil {
				return err
			}
			w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
			if err != nil {
				return err
			}
			defer w.close()
			lifted, err := w.updater.Forget(c.Context(), args[0])
			w.flush(c.Context())
			if err != nil {
				return err
			}
			if len(lifted.Rejected) == 0 && lifted.Retry == nil {
				_, err := fmt.Fprintf(p.stdout, "There is nothing to forget of %s (state: %s).\n", args[0], cfg.State)
				return err
			}
			if r := lifted.Retry; r != nil {
				if _, err := fmt.Fprintf(p.stdout, "Tried again in the next pass: %s (%s)\n", short(r.Digest), printable(r.Why)); err != nil {
					return err
				}
			}
			for _, r := range lifted.Rejected {
				if _, err := fmt.Fprintf(p.stdout, "Forgotten: %s (%s: %s)\n", describe(r.Image), r.Reason, printable(r.Why)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

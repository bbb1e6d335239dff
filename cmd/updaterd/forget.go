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
			w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), false)
			if err != nil {
				return err
			}
			defer w.close()
			lifted, err := w.updater.Forget(c.Context(), args[0])
			if err != nil {
				return err
			}
			if len(lifted) == 0 {
				_, err := fmt.Fprintf(p.stdout, "Nothing was rejected on %s.\n", args[0])
				return err
			}
			for _, r := range lifted {
				if _, err := fmt.Fprintf(p.stdout, "Forgotten: %s (%s: %s)\n", describe(r.Image), r.Reason, printable(r.Why)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (p program) notifyCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:   "notify",
		Short: "Try whether people are told",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return usageError{errors.New("name a command: test")}
		},
	}
	c.AddCommand(&cobra.Command{
		Use:   "test",
		Short: "Tell everybody that it is a test",
		Long: `Send a message to every entry of notify in the configuration, whatever events it
wants, and say which of them took it. It works beside a daemon, which is asked
nothing, and ends with 1 if any did not take it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := p.load(s)
			if err != nil {
				return err
			}
			w, err := p.wire(cfg, p.logger(quiet(cfg.Log)), looks)
			if err != nil {
				return err
			}
			defer w.close()
			results := w.notifier.Test(c.Context())
			if len(results) == 0 {
				return errors.New("there is nobody to tell: write notify into the configuration, as docs/notifications.md says")
			}
			var bad error
			for _, r := range results {
				said := "taken"
				if r.Err != nil {
					said, bad = "NOT taken: "+printable(r.Err.Error()), errTrouble
				}
				if _, err := fmt.Fprintf(p.stdout, "%s: %s\n", r.Receiver, said); err != nil {
					return err
				}
			}
			return bad
		},
	})
	return c
}

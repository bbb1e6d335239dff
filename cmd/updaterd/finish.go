package main

import (
	"github.com/spf13/cobra"
)

// finishCommand is what the daemon starts, in a container of its own, to go on
// when the container that the daemon runs in is to be replaced: nobody can stop
// himself and then go on. The engine starts it again unless it ends with 0, which
// it does when the change is over and its own container is all that is left.
func (p program) finishCommand(s *shared) *cobra.Command {
	return &cobra.Command{
		Use:    "finish CHANGE",
		Short:  "Take the update of updaterd itself to its end",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := p.load(s)
			if err != nil {
				return err
			}
			log := p.logger(cfg.Log)
			w, err := p.wire(cfg, log, finishes)
			if err != nil {
				return err
			}
			defer w.close()
			log.Info("helper starts", "change", args[0], "version", p.version, "config", cfg.File, "state", cfg.State)
			err = w.updater.Finish(c.Context(), args[0])
			w.flush(c.Context())
			if err != nil {
				return err
			}
			if c.Context().Err() != nil {
				log.Warn("helper was told to stop, its next start goes on", "change", args[0])
				return errTrouble
			}
			log.Info("helper ends", "change", args[0])
			for _, h := range w.hosts {
				// A container that cannot be removed now is removed by the daemon,
				// which sees that the change is over.
				if err := h.DismissHelper(c.Context(), args[0]); err != nil {
					log.Warn("container of the helper stays for now", "err", err)
				}
			}
			return nil
		},
	}
}

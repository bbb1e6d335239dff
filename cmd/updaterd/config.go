package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
)

func (p program) configCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Check or show the configuration",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_ = c.Help()
			return usageError{errors.New("name a command: check or show")}
		},
	}
	c.AddCommand(p.configCheckCommand(s), p.configShowCommand(s))
	return c
}

func (p program) configCheckCommand(s *shared) *cobra.Command {
	return &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say everything that is wrong with a configuration",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			file := config.Find(s.config, p.environ)
			if len(args) > 0 {
				file = args[0]
			}
			if _, err := config.Load(file, p.environ); err != nil {
				return err
			}
			if file == "" {
				file = "no file, the defaults"
			}
			_, err := fmt.Fprintf(p.stdout, "%s: fine\n", file)
			return err
		},
	}
}

func (p program) configShowCommand(s *shared) *cobra.Command {
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the effective values, and where each came from",
		Args:  cobra.NoArgs,
	}
	o := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		values := cfg.Show()
		if *o == asJSON {
			return printJSON(p.stdout, values)
		}
		var rows [][]string
		for _, v := range values {
			rows = append(rows, []string{v.Key, v.Value, v.Source})
		}
		return printTable(p.stdout, []string{"KEY", "VALUE", "FROM"}, rows)
	}
	return c
}

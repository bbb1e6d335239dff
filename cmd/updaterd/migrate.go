package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/migrate"
)

func (p program) migrateCommand() *cobra.Command {
	var env, labels []string
	var files []string
	c := &cobra.Command{
		Use:   "migrate PROGRAM [-- FLAG...]",
		Short: "Print the configuration that equals another program's",
		Long: `Print the configuration that equals a setup of ` + strings.Join(migrate.Programs(), ", ") + `, given its flags (after --),
its variables, and the labels on a container. What has no equal is listed behind
it, as comments. It reads nothing else and changes nothing.`,
		Example: `  updaterd migrate watchtower -- --interval 300 --cleanup --label-enable
  updaterd migrate wud --env-file wud.env
  updaterd migrate diun -l diun.enable=true -l diun.watch_repo=true`,
		Args:      cobra.MinimumNArgs(1),
		ValidArgs: migrate.Programs(),
	}
	c.Flags().StringArrayVarP(&env, "env", "e", nil, "a variable of the program, `NAME=VALUE`")
	c.Flags().StringArrayVar(&files, "env-file", nil, "a `FILE` of variables, one NAME=VALUE a line; - is stdin")
	c.Flags().StringArrayVarP(&labels, "label", "l", nil, "a label on a container, `NAME=VALUE`")
	c.RunE = func(_ *cobra.Command, args []string) error {
		s := migrate.Setup{Args: args[1:], Env: map[string]string{}, Labels: map[string]string{}}
		for _, file := range files {
			if err := p.readVariables(file, s.Env); err != nil {
				return usageError{err}
			}
		}
		for into, list := range map[*map[string]string][]string{&s.Env: env, &s.Labels: labels} {
			for _, text := range list {
				name, value, ok := strings.Cut(text, "=")
				if !ok || name == "" {
					return usageError{fmt.Errorf("%q is no NAME=VALUE", text)}
				}
				(*into)[name] = value
			}
		}
		if args[0] == "watchtower" {
			s.Faults = config.WatchtowerFaults(s.Labels)
		}
		equal, ours, err := migrate.From(args[0], s)
		if err != nil {
			return usageError{err}
		}
		if _, err := fmt.Fprint(p.stdout, equal); err != nil {
			return err
		}
		if len(ours) > 0 {
			_, err = fmt.Fprintf(p.stdout, "\n# On the container:\n#   %s\n", strings.Join(ours, "\n#   "))
		}
		return err
	}
	return c
}

// readVariables reads a file as Compose does, and shells: a value may be in quotes.
func (p program) readVariables(path string, into map[string]string) error {
	in := p.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("reading the variables: %w", err)
		}
		defer file.Close()
		in = file
	}
	lines := bufio.NewScanner(io.LimitReader(in, 1<<20))
	for lines.Scan() {
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "\ufeff"))
		line = strings.TrimSpace(strings.TrimPrefix(line, "export "))
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			continue // one that the shell would hand on
		}
		if q := strings.TrimSpace(value); len(q) > 1 && q[0] == q[len(q)-1] && strings.Contains(`"'`, q[:1]) {
			value = q[1 : len(q)-1]
		}
		into[strings.TrimSpace(name)] = value
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the variables of %s: %w", path, err)
	}
	return nil
}

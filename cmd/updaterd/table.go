package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// output is the value of -o.
type output string

const (
	asTable output = "table"
	asJSON  output = "json"
)

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "table|json" }

// Set accepts what -o may be.
func (o *output) Set(s string) error {
	switch output(s) {
	case asTable, asJSON:
		*o = output(s)
		return nil
	}
	return fmt.Errorf("it is %s or %s", asTable, asJSON)
}

// outputFlag adds -o to a command.
func outputFlag(c *cobra.Command) *output {
	o := asTable
	c.Flags().VarP(&o, "output", "o", "how to print")
	// The function cannot fail: the flag was defined on the line above.
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return &o
}

// printJSON prints v for scripts: indented, and with < > & as they are.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printTable prints rows under a header. What comes from outside cannot break
// out of its cell.
func printTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = printable(cell); cells[i] == "" {
				cells[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(t, strings.Join(cells, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// printable keeps control characters (terminal escapes among them) out of a
// table: log lines and labels are written by strangers.
func printable(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }), " ")
}

// short is a digest as people read it.
func short(digest string) string {
	const kept = len("sha256:") + 12
	if strings.HasPrefix(digest, "sha256:") && len(digest) > kept {
		return digest[:kept]
	}
	return digest
}

// printLogs prints lines that a stranger's program wrote, indented.
func (p program) printLogs(logs string) error {
	for line := range strings.Lines(logs) {
		if _, err := fmt.Fprintf(p.stdout, "    %s\n", printable(line)); err != nil {
			return err
		}
	}
	return nil
}

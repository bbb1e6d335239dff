// Matrix makes the table of what was tested on which engine out of test runs.
//
// `matrix record FILE` reads what `go test -json` says, keeps it in FILE, shows
// what failed, and ends with 1 if anything did. `matrix write PAGE FILE...` puts
// a table into PAGE, between its two marks, with a column for each file.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "record":
		f, err := os.Create(args[1])
		if err != nil {
			return err
		}
		defer f.Close()
		r, err := read(io.TeeReader(os.Stdin, f))
		if err != nil {
			return err
		}
		r.show(os.Stderr)
		return r.verdict()
	case len(args) > 2 && args[0] == "write":
		var runs []results
		for _, name := range args[2:] {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			r, err := read(f)
			f.Close()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			runs = append(runs, r)
		}
		page, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		text, err := insert(string(page), table(runs))
		if err != nil {
			return fmt.Errorf("%s: %w", args[1], err)
		}
		return os.WriteFile(args[1], []byte(text), 0o644)
	}
	return errors.New("use matrix record FILE, or matrix write PAGE with a FILE for each engine")
}

const (
	begin = "<!-- Made by make test-engines. -->\n"
	end   = "<!-- The end of what is made. -->\n"
)

// insert puts text between the marks of a page.
func insert(page, text string) (string, error) {
	head, rest, ok := strings.Cut(page, begin)
	_, tail, found := strings.Cut(rest, end)
	if !ok || !found {
		return "", fmt.Errorf("the marks %q and %q are not both there", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return head + begin + text + end + tail, nil
}

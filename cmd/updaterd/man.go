//go:build man

// With the tag man, this package is another program: it writes a manual page for
// every command into a directory, so that the daemon need not carry what renders
// them.
//
//	go run -tags man ./cmd/updaterd DIR
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra/doc"
)

func main() {
	if err := writeManual(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(exitTrouble)
	}
}

func writeManual(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("name one directory to write to")
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	root := program{}.command()
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Source: "updaterd", Manual: "updaterd"}
	// Pages made of the same source are the same to the byte.
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		date := time.Unix(epoch, 0).UTC()
		header.Date = &date
	}
	return doc.GenManTree(root, header, args[0])
}

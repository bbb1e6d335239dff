package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/updaterd/updaterd/internal/config"
)

// logger is how the daemon and its commands log: to stderr. Where systemd reads
// that, each line begins with its level, as sd-daemon(3) has it.
func (p program) logger(c config.Log) *slog.Logger {
	var level slog.Level
	// The configuration was checked; an unknown level would be info.
	_ = level.UnmarshalText([]byte(c.Level))
	handler := func(w io.Writer, o *slog.HandlerOptions) slog.Handler {
		o.Level = level
		if c.Format == "json" {
			return slog.NewJSONHandler(w, o)
		}
		return slog.NewTextHandler(w, o)
	}
	if p.journald() {
		return slog.New(newJournald(p.stderr, handler))
	}
	return slog.New(handler(p.stderr, &slog.HandlerOptions{}))
}

// journald reports whether what is written to stderr goes to systemd's journal.
func (p program) journald() bool {
	if p.stderr != os.Stderr {
		return false
	}
	// Without the answer lines go out as they would to anybody.
	is, err := journal.StderrIsJournalStream()
	return err == nil && is
}

// complain tells of an error that ends the process.
func (p program) complain(text string) {
	prefix := ""
	if p.journald() {
		prefix = priority(slog.LevelError)
	}
	for line := range strings.Lines(text + "\n") {
		fmt.Fprint(p.stderr, prefix, line)
	}
}

// journald is a handler for systemd's journal, which shows time and level itself.
// It keeps one handler for each priority, since only whoever formats a record
// knows where its line begins. The lines are for people; fields of the journal's
// own would be hidden from them unless they asked.
type journald map[string]slog.Handler // by priority

func newJournald(w io.Writer, handler func(io.Writer, *slog.HandlerOptions) slog.Handler) journald {
	j := journald{}
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		j[priority(level)] = handler(prefixed{w, priority(level)}, &slog.HandlerOptions{
			ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
				if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
					return slog.Attr{}
				}
				return a
			},
		})
	}
	return j
}

// priority is a level as syslog counts it.
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

func (j journald) of(l slog.Level) slog.Handler { return j[priority(l)] }

func (j journald) Enabled(ctx context.Context, l slog.Level) bool { return j.of(l).Enabled(ctx, l) }

func (j journald) Handle(ctx context.Context, r slog.Record) error {
	return j.of(r.Level).Handle(ctx, r)
}

func (j journald) WithAttrs(attrs []slog.Attr) slog.Handler {
	return j.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (j journald) WithGroup(name string) slog.Handler {
	return j.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (j journald) each(do func(slog.Handler) slog.Handler) journald {
	all := journald{}
	for p, h := range j {
		all[p] = do(h)
	}
	return all
}

// prefixed writes a prefix before each line. slog writes a record at once, and as
// one line.
type prefixed struct {
	w      io.Writer
	prefix string
}

func (p prefixed) Write(line []byte) (int, error) {
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

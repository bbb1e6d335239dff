package main

import (
	"bytes"
	"io"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/config"
)

func TestJournaldGetsLevels(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newJournald(&out, func(w io.Writer, o *slog.HandlerOptions) slog.Handler {
		o.Level = slog.LevelInfo
		return slog.NewTextHandler(w, o)
	})).With("backend", "local")
	log.Debug("not asked for")
	log.Info("decided", "workload", "local/web", "detail", "two\nlines")
	log.Warn("change is over")
	log.WithGroup("g").Error("failed", "time", "kept")
	require.Equal(t, `<6>msg=decided backend=local workload=local/web detail="two\nlines"
<4>msg="change is over" backend=local
<3>msg=failed backend=local g.time=kept
`, out.String())
}

func TestOthersGetNoPrefix(t *testing.T) {
	var out bytes.Buffer
	p := program{stderr: &out}
	p.logger(config.Log{Level: "info", Format: "json"}).Info("hello")
	p.complain("updaterd: two\nlines")
	require.Regexp(t, `^\{"time":"[^"]+","level":"INFO","msg":"hello"\}
updaterd: two
lines
$`, out.String())
}

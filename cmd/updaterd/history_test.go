package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestAnImageInATable(t *testing.T) {
	digest, other := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	for name, tt := range map[string]struct {
		image updater.Image
		want  string
	}{
		"a tag, and what it stood for": {updater.Image{Ref: "web:1", Digest: digest}, "web:1 sha256:aaaaaaaaaaaa"},
		"one that holds its digest":    {updater.Image{Ref: "web:1@" + digest, Digest: digest}, "web:1@sha256:aaaaaaaaaaaa"},
		"one that holds another":       {updater.Image{Ref: "web:1@" + other, Digest: digest}, "web:1@" + other + " sha256:aaaaaaaaaaaa"},
		"no digest":                    {updater.Image{Ref: "web:1"}, "web:1"},
		"no reference":                 {updater.Image{Digest: digest}, "sha256:aaaaaaaaaaaa"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tt.want, describe(tt.image)) })
	}
}

// TestHistoryOfANameThatNothingIsKnownOf is a mistake in the call, where that is certain.
func TestHistoryOfANameThatNothingIsKnownOf(t *testing.T) {
	past := time.Now().Add(-time.Minute)
	looked := []updater.Sight{{Backend: "local", Looked: true, LastPass: past}}
	for name, c := range map[string]struct {
		sights []updater.Sight
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"one that has a history":           {looked, []string{"old"}, 0, "updated", ""},
		"one that is watched":              {looked, []string{"web"}, 0, "Nothing has happened yet", ""},
		"one that is neither":              {looked, []string{"nope"}, 2, "", `unknown workload: nothing has happened to "nope"`},
		"one of two":                       {looked, []string{"old", "nope"}, 2, "updated", `"nope"`},
		"one for scripts":                  {looked, []string{"nope", "-o", "json"}, 2, "[]\n", `"nope"`},
		"before the first look":            {[]updater.Sight{{Backend: "local"}}, []string{"nope"}, 0, "Nothing has happened yet", ""},
		"where the backend does not speak": {[]updater.Sight{{Backend: "local", LastPass: past, Trouble: errors.New("no")}}, []string{"nope"}, 0, "Nothing has happened yet", ""},
		"where another process leads":      {[]updater.Sight{}, []string{"nope"}, 0, "Nothing has happened yet", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := play(t)
			d.sights = c.sights
			d.board.Decided(updater.Workload{ID: "local/web", Backend: "local"}, updater.Decision{Reason: updater.UpToDate})
			d.entries = []updater.Entry{{At: past, Backend: "local", Workload: "local/old", Event: updater.EventUpdated}}
			code, stdout, stderr := d.run(append([]string{"history"}, c.args...)...)
			require.Equal(t, c.code, code, stderr)
			require.Contains(t, stdout, c.stdout)
			require.Contains(t, stderr, c.stderr)
			require.Equal(t, c.stderr == "", stderr == "")
		})
	}
}

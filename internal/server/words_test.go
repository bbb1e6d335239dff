package server

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// TestAnswers: what people read of what became of their words.
func TestAnswers(t *testing.T) {
	image := &updater.RowCandidate{Image: "web:1", Digest: "sha256:" + strings.Repeat("2", 64)}
	until := time.Now().Add(time.Hour)
	web := func(edit func(*updater.Told)) []updater.Told {
		told := updater.Told{Backend: "local", Workload: "local/web", Changed: true}
		edit(&told)
		return []updater.Told{told}
	}
	for name, c := range map[string]struct {
		verb updater.Verb
		told []updater.Told
		want []string
	}{
		"nothing that it is about": {updater.SayUpdate, nil, []string{"There is nothing to update."}},
		"a look":                   {updater.SayCheck, nil, []string{"Looked at now."}},
		"an approval":              {updater.SayApprove, web(func(t *updater.Told) { t.Image = image }), []string{"Approved: local/web (web:1 sha256:222222222222), until it is in place"}},
		"an approval that something is in the way of": {updater.SayApprove, web(func(t *updater.Told) { t.Image, t.Note = image, "it is still rejected" }),
			[]string{"Approved: local/web (web:1 sha256:222222222222), until it is in place", "But it is still rejected."}},
		"a hold without an end":         {updater.SayHold, web(func(*updater.Told) {}), []string{"Held: local/web, until updaterd release local/web"}},
		"one that was so already":       {updater.SayHold, web(func(t *updater.Told) { t.Changed = false }), []string{"Held already: local/web, until updaterd release local/web"}},
		"a hold that lapses":            {updater.SayHold, web(func(t *updater.Told) { t.Until = &until }), []string{"Held: local/web, until " + moment(until)}},
		"a pause without an end":        {updater.SayPause, web(func(t *updater.Told) { t.Workload = "" }), []string{"Paused: everything on local, until updaterd resume"}},
		"a rejection":                   {updater.SayReject, web(func(t *updater.Told) { t.Image = image }), []string{"Rejected: local/web (web:1 sha256:222222222222), until updaterd forget local/web"}},
		"what does not last":            {updater.SayUpdate, web(func(*updater.Told) {}), []string{"To be updated: local/web"}},
		"a release of what is not held": {updater.SayRelease, web(func(t *updater.Told) { t.Changed = false }), []string{"Not held: local/web"}},
		"what was forgotten": {updater.SayForget, web(func(t *updater.Told) {
			t.Rejected = []updater.Rejection{{Image: updater.Image{Ref: "web:1", Digest: image.Digest}, Reason: updater.Rejected, Why: "it exited"}}
			t.Retry = &updater.Retry{Digest: image.Digest, Why: "no node"}
		}), []string{"Tried again in the next pass: sha256:222222222222 (no node)", "Forgotten: web:1 sha256:222222222222 (rejected: it exited)"}},
		"nothing to forget": {updater.SayForget, web(func(t *updater.Told) { t.Changed = false }), []string{"There is nothing to forget of local/web."}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, Answer(c.verb, c.told)) })
	}
}

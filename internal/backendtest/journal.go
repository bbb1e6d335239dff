package backendtest

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// RunJournal holds an implementation of [updater.Journal] to its contract.
// open returns an empty one.
func RunJournal(t *testing.T, open func(t *testing.T) updater.Journal) {
	for name, test := range map[string]func(*testing.T, updater.Journal){
		"a new journal holds nothing":                               journalEmpty,
		"a change comes back as it was saved":                       journalWhole,
		"saving again replaces what was kept under the id":          journalReplace,
		"open changes come oldest first":                            journalOrder,
		"a change that is over leaves the open ones for history":    journalFinish,
		"a change finished twice is in history once":                journalTwice,
		"an edit gets the zero record of a workload never heard of": journalUnheard,
		"an edit keeps what it does not touch":                      journalEdit,
		"a record emptied is forgotten":                             journalForget,
		"history is newest first and as long as asked":              journalHistory,
		"what goes in and comes out is nobody else's":               journalOwn,
		"many may use it at once":                                   journalConcurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// journalChange is a change with every field filled in that a journal must
// keep.
func journalChange(id string, at time.Time) updater.Change {
	image := func(tag string) updater.Image {
		return updater.Image{Ref: "app:" + tag, Digest: "sha256:" + tag, Manifest: "sha256:m" + tag, Config: "sha256:c" + tag}
	}
	return updater.Change{
		ID: id, Backend: "local", Unit: "local/" + id,
		Parts: []updater.Part{
			{
				Workload: "local/" + id, From: image("1"), To: image("2"), Replace: true, Healthy: true,
				Settings: updater.Settings{
					Enabled: true, Mode: updater.ModeUpdate, Pin: updater.PinFollow,
					DependsOn: []string{"local/db"}, Keep: updater.KeepAll,
					Health: updater.Health{
						Probe: "http://:8080/", Timeout: time.Minute, Stable: 10 * time.Second,
						Test: updater.Test{Image: "smoke:1", Command: []string{"/smoke"}, Timeout: time.Minute},
					},
					PreUpdate: updater.Hook{Command: []string{"backup", "--all"}, Timeout: time.Minute},
				},
			},
			{Workload: "local/" + id + "-sidecar", From: image("1"), To: image("1"), Idle: true},
		},
		Alone: true, Culprit: "local/" + id,
		Origin: json.RawMessage(`{"id":"abc","name":"/web <&>"}`),
		Mark:   json.RawMessage(`["def"]`),
		Phase:  updater.Applying,
		Since:  at, Gap: 30 * time.Millisecond,
	}
}

func journalTime() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC) }

func finished(c updater.Change, phase updater.Phase, why string) updater.Change {
	c.Phase, c.Why, c.Ended = phase, why, c.Since.Add(time.Minute)
	return c
}

func journalEmpty(t *testing.T, j updater.Journal) {
	changes, err := j.Open(t.Context())
	require.NoError(t, err)
	require.Empty(t, changes)
	records, err := j.Recall(t.Context())
	require.NoError(t, err)
	require.Empty(t, records)
	entries, err := j.History(t.Context(), 0)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.NoError(t, j.Remember(t.Context(), nil))
}

func journalWhole(t *testing.T, j updater.Journal) {
	want := journalChange("web", journalTime())
	require.NoError(t, j.Save(t.Context(), want))
	got, err := j.Open(t.Context())
	require.NoError(t, err)
	require.Equal(t, asJSON(t, []updater.Change{want}), asJSON(t, got))
}

func journalReplace(t *testing.T, j updater.Journal) {
	c := journalChange("web", journalTime())
	require.NoError(t, j.Save(t.Context(), c))
	c.Phase, c.Verdict, c.Mark = updater.Restoring, updater.Bad, nil
	require.NoError(t, j.Save(t.Context(), c))
	got, err := j.Open(t.Context())
	require.NoError(t, err)
	require.Equal(t, asJSON(t, []updater.Change{c}), asJSON(t, got))
}

func journalOrder(t *testing.T, j updater.Journal) {
	for id, age := range map[string]time.Duration{"a": 1, "b": 3, "c": 2} {
		require.NoError(t, j.Save(t.Context(), journalChange(id, journalTime().Add(-age*time.Hour))))
	}
	got, err := j.Open(t.Context())
	require.NoError(t, err)
	var ids []string
	for _, c := range got {
		ids = append(ids, c.ID)
	}
	require.Equal(t, []string{"b", "c", "a"}, ids)
}

func journalFinish(t *testing.T, j updater.Journal) {
	var want []updater.Entry
	for i, phase := range []updater.Phase{updater.Committed, updater.Restored, updater.Failed, updater.Refused, updater.Superseded} {
		c := journalChange(string(phase), journalTime().Add(time.Duration(i)*time.Hour))
		require.NoError(t, j.Save(t.Context(), c))
		c = finished(c, phase, "because")
		require.NoError(t, j.Save(t.Context(), c))
		want = append(want, c.Entries()...)

		changes, err := j.Open(t.Context())
		require.NoError(t, err)
		require.Empty(t, changes)
		entries, err := j.History(t.Context(), 0)
		require.NoError(t, err)
		require.ElementsMatch(t, jsonEach(t, want), jsonEach(t, entries))
	}
	require.NotEmpty(t, want)
}

func journalTwice(t *testing.T, j updater.Journal) {
	before := updater.Entry{At: journalTime(), Backend: "local", Workload: "local/web", Event: updater.EventForgotten}
	require.NoError(t, j.Note(t.Context(), before))
	c := finished(journalChange("web", journalTime()), updater.Restored, "it exited with code 1")
	require.NoError(t, j.Save(t.Context(), c))
	require.NoError(t, j.Save(t.Context(), c))
	c.Ended = c.Ended.Add(time.Second) // after a crash the clock has moved on
	require.NoError(t, j.Save(t.Context(), c))

	entries, err := j.History(t.Context(), 0)
	require.NoError(t, err)
	require.ElementsMatch(t, jsonEach(t, append(c.Entries(), before)), jsonEach(t, entries))
}

func journalUnheard(t *testing.T, j updater.Journal) {
	require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){
		"local/web": func(r *updater.Record) {
			require.Zero(t, *r)
			r.Committed.Digest = "sha256:1"
		},
	}))
	records, err := j.Recall(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]updater.Record{"local/web": {Committed: updater.Image{Digest: "sha256:1"}}}, records)
}

func journalEdit(t *testing.T, j updater.Journal) {
	at := journalTime()
	want := updater.Record{
		Rejected:  []updater.Rejection{{Image: updater.Image{Ref: "app:2", Digest: "sha256:2"}, Reason: updater.Rejected, Why: "unhealthy", At: at}},
		Committed: updater.Image{Ref: "app:1", Digest: "sha256:1"},
		Hold:      &updater.Word{Who: "ann", Why: "holidays", At: at, Until: at.Add(time.Hour)},
		Previous:  []updater.Image{{Ref: "app:0", Digest: "sha256:0"}},
		Asked:     &updater.Ask{Word: updater.Word{Who: "ann", At: at}, Back: updater.Image{Ref: "app:0", Digest: "sha256:0"}},
		Approved:  map[string]updater.Word{"sha256:3": {Who: "ann", At: at}},
		Seen:      map[string]time.Time{"sha256:3": at},
		Retry:     &updater.Retry{Digest: "sha256:3", Attempts: 2, After: at.Add(time.Hour), Why: "the port was taken"},
		Tags:      &updater.TagCount{Repository: "app", Count: 12, ShortSince: at},
	}
	other := updater.Record{Committed: updater.Image{Digest: "sha256:9"}}
	require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){
		"local/web": func(r *updater.Record) { *r = want },
		"local/db":  func(r *updater.Record) { *r = other },
	}))
	require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){
		"local/web": func(r *updater.Record) {
			require.Equal(t, want, *r)
			r.Hold = nil
		},
	}))
	want.Hold = nil
	records, err := j.Recall(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]updater.Record{"local/web": want, "local/db": other}, records)
}

func journalForget(t *testing.T, j updater.Journal) {
	edit := func(do func(*updater.Record)) {
		require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){"local/web": do}))
	}
	edit(func(r *updater.Record) { r.Hold = &updater.Word{At: journalTime()} })
	edit(func(r *updater.Record) { r.Hold = nil })
	edit(func(r *updater.Record) { require.Zero(t, *r) })
	records, err := j.Recall(t.Context())
	require.NoError(t, err)
	require.Empty(t, records)
}

func journalHistory(t *testing.T, j updater.Journal) {
	// Two at the same moment: the later one noted is the newer.
	for i, at := range []time.Duration{0, 1, 1, 2} {
		require.NoError(t, j.Note(t.Context(), updater.Entry{
			At: journalTime().Add(at), Workload: "local/web", Event: updater.EventUpdated, Why: fmt.Sprint(i),
		}))
	}
	for limit, want := range map[int][]string{0: {"3", "2", "1", "0"}, 1: {"3"}, 3: {"3", "2", "1"}, 9: {"3", "2", "1", "0"}} {
		entries, err := j.History(t.Context(), limit)
		require.NoError(t, err)
		var got []string
		for _, e := range entries {
			got = append(got, e.Why)
		}
		require.Equal(t, want, got, "limit %d", limit)
	}
}

func journalOwn(t *testing.T, j updater.Journal) {
	c := journalChange("web", journalTime())
	want := asJSON(t, c)
	require.NoError(t, j.Save(t.Context(), c))
	c.Parts[0].Workload, c.Origin[0] = "spoilt", '!'
	require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){
		"local/web": func(r *updater.Record) { r.Seen = map[string]time.Time{"sha256:1": journalTime()} },
	}))
	for range 2 {
		changes, err := j.Open(t.Context())
		require.NoError(t, err)
		require.Len(t, changes, 1)
		require.Equal(t, want, asJSON(t, changes[0]))
		changes[0].Parts[0].Workload, changes[0].Origin[0] = "spoilt", '!'

		records, err := j.Recall(t.Context())
		require.NoError(t, err)
		require.Len(t, records["local/web"].Seen, 1)
		records["local/web"].Seen["sha256:2"] = journalTime()
	}
}

func journalConcurrent(t *testing.T, j updater.Journal) {
	var all sync.WaitGroup
	const each, workers = 5, 4
	for w := range workers {
		all.Go(func() {
			for i := range each {
				c := journalChange(fmt.Sprintf("%d-%d", w, i), journalTime())
				report(t, j.Save(t.Context(), c))
				report(t, j.Remember(t.Context(), map[string]func(*updater.Record){
					"local/web": func(r *updater.Record) {
						if r.Retry == nil {
							r.Retry = &updater.Retry{}
						}
						r.Retry.Attempts++
					},
				}))
				_, err := j.Recall(t.Context())
				report(t, err)
				report(t, j.Save(t.Context(), finished(c, updater.Committed, "")))
			}
		})
	}
	all.Wait()
	records, err := j.Recall(t.Context())
	require.NoError(t, err)
	require.Equal(t, each*workers, records["local/web"].Retry.Attempts, "no edit is lost")
	entries, err := j.History(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, entries, 2*each*workers)
}

// report is for goroutines, which may not end the test.
func report(t *testing.T, err error) {
	if err != nil {
		t.Error(err)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	return string(raw)
}

func jsonEach(t *testing.T, entries []updater.Entry) []string {
	t.Helper()
	var all []string
	for _, e := range entries {
		all = append(all, asJSON(t, e))
	}
	return all
}

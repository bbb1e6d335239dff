package updater

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func window(t require.TestingT, s string) Window {
	w, err := ParseWindow(s)
	require.NoError(t, err)
	return w
}

// TestDecide has a row for every reason that Decide gives, and for which of
// two wins.
func TestDecide(t *testing.T) {
	now := after(0) // a Sunday, 12:00 UTC
	candidate := Image{Ref: "web:1", Digest: digestB, Manifest: "sha256:mb", Config: "sha256:cb"}
	word := Word{Who: "ann", Why: "holidays", At: now.Add(-time.Hour)}
	rejected := Rejection{Image: Image{Ref: "web:1", Digest: digestB}, Reason: Rejected, Why: "it exited with code 1", At: now}
	retry := &Retry{Digest: digestB, Attempts: 2, After: now.Add(time.Hour), Why: "the port was taken"}
	runs := func(edit func(*Running)) func(*Workload) { return func(w *Workload) { edit(&w.Runs) } }
	skip := func(r Reason) func(*Workload) {
		return func(w *Workload) { w.Skip = &Refusal{Reason: r, Detail: "because"} }
	}
	tests := []struct {
		name     string
		workload func(*Workload)
		settings func(*Settings)
		finding  func(*finding)
		memory   Record
		want     Reason
		detail   string
		until    time.Time
	}{
		{name: "another digest is an update", want: Update, detail: "web:1 now stands for " + digestB},
		{name: "what a tag stands for is said of the tag", finding: func(f *finding) { f.candidate = &Image{Ref: "web:1@" + digestB, Digest: digestB} },
			want: Update, detail: "web:1 now stands for " + digestB},
		{name: "the policy's sentence is the detail", finding: func(f *finding) { f.detail = "1.4.2 is the highest" }, want: Update, detail: "1.4.2 is the highest"},
		{name: "the digest that runs is up to date", workload: runs(func(r *Running) { r.Digests = []string{digestB} }), want: UpToDate, detail: "it runs what web:1 stands for"},
		{name: "one of several digests of what runs is up to date", workload: runs(func(r *Running) { r.Digests = []string{digestA, digestB} }), want: UpToDate},
		{name: "another index around the same manifest is up to date", workload: runs(func(r *Running) { r.Manifest = "sha256:mb" }), want: UpToDate},
		{name: "the same config is up to date", workload: runs(func(r *Running) { r.Config = "sha256:cb" }), want: UpToDate},
		{name: "a digest of the platform's own is up to date", workload: runs(func(r *Running) { r.Digests, r.Manifest = nil, digestB }), want: UpToDate},
		{name: "nothing known of what runs is an update", workload: runs(func(r *Running) { *r = Running{} }), want: Update},
		{name: "empty knowledge on both sides is not the same", workload: runs(func(r *Running) { *r = Running{} }),
			finding: func(f *finding) { f.candidate = &Image{Ref: "web:1", Digest: digestB} }, want: Update},
		{name: "the same image under another tag is up to date", workload: func(w *Workload) { w.Image, w.Runs.Digests = "web:0", []string{digestB} }, want: UpToDate, detail: "under another tag"},
		{name: "the same image for this platform under another tag is up to date", workload: func(w *Workload) { w.Image, w.Runs.Manifest = "web:0", "sha256:mb" }, want: UpToDate, detail: "web:1 is the same image for"},
		{name: "a digest behind the same tag is not another tag", workload: func(w *Workload) { w.Runs.Digests = []string{digestB} },
			finding: func(f *finding) { f.candidate = &Image{Ref: "web:1@" + digestB, Digest: digestB} }, want: UpToDate, detail: "it runs what web:1 stands for"},

		{name: "a refusal of looking is the reason", finding: func(f *finding) { f.refusal = &Refusal{Reason: RateLimited, Detail: "try later"} }, want: RateLimited, detail: "try later"},
		{name: "no candidate needs no candidate", finding: func(f *finding) { *f = finding{refusal: &Refusal{Reason: NoCandidate, Detail: "no tag fits"}} }, want: NoCandidate},
		{name: "what is not running is not", workload: skip(NotRunning), want: NotRunning, detail: "because"},
		{name: "what is not running is not up to date either", workload: func(w *Workload) { skip(NotRunning)(w); w.Runs.Digests = []string{digestB} }, want: NotRunning},
		{name: "what is not running is not, whatever the registry says", workload: skip(NotRunning), finding: func(f *finding) { *f = finding{refusal: &Refusal{Reason: RegistryUnavailable}} }, want: NotRunning},
		{name: "what is not running is updated where that is asked for", workload: skip(NotRunning), settings: func(s *Settings) { s.IncludeStopped = true }, want: Update},
		{name: "what is not running is up to date where it would be updated", workload: func(w *Workload) { skip(NotRunning)(w); w.Runs.Digests = []string{digestB} },
			settings: func(s *Settings) { s.IncludeStopped = true }, want: UpToDate},
		{name: "what is not running is still refused by the registry", workload: skip(NotRunning), settings: func(s *Settings) { s.IncludeStopped = true },
			finding: func(f *finding) { *f = finding{refusal: &Refusal{Reason: RegistryUnavailable}} }, want: RegistryUnavailable},
		{name: "stopped ones asked for are no others", workload: skip(Mixed), settings: func(s *Settings) { s.IncludeStopped = true }, want: Mixed},
		{name: "copies that differ are mixed", workload: func(w *Workload) { skip(Mixed)(w); w.Runs.Digests = []string{digestB} }, want: Mixed},
		{name: "what cannot be looked at is not up to date either", workload: func(w *Workload) { skip(BackendUnavailable)(w); w.Runs.Digests = []string{digestB} }, want: BackendUnavailable, detail: "because"},
		{name: "what cannot be replaced is refused", workload: skip(Unsupported), want: Unsupported},
		{name: "what cannot be replaced need not be when it is up to date", workload: func(w *Workload) { skip(Unsupported)(w); w.Runs.Digests = []string{digestB} }, want: UpToDate},

		{name: "mode hold holds", settings: func(s *Settings) { s.Mode = ModeHold }, want: Held, detail: "its mode is hold"},
		{name: "a person's word holds", memory: Record{Hold: &word}, want: Held, detail: "held since 2026-03-01T11:00:00Z by ann: holidays"},
		{name: "a hold speaks before a rejection", memory: Record{Hold: &word, Rejected: []Rejection{rejected}}, want: Held},
		{name: "mode monitor does not touch", settings: func(s *Settings) { s.Mode = ModeMonitor }, want: Monitor},
		{name: "up to date speaks before a hold", workload: runs(func(r *Running) { r.Digests = []string{digestB} }), memory: Record{Hold: &word}, want: UpToDate},

		{name: "a hold that has lapsed holds no more", memory: Record{Hold: &Word{Until: now}}, want: Update},
		{name: "a hold that lapses says when", memory: Record{Hold: &Word{Who: "ann", Until: now.Add(time.Hour)}}, want: Held, detail: "by ann until 2026-03-01T13:00:00Z", until: now.Add(time.Hour)},
		{name: "a pause of everything speaks before a hold", memory: Record{Hold: &word, paused: &word}, want: Paused, detail: "everything is paused since 2026-03-01T11:00:00Z by ann: holidays"},
		{name: "a pause that lapses says when", memory: Record{paused: &Word{Until: now.Add(time.Minute)}}, want: Paused, until: now.Add(time.Minute)},
		{name: "a pause that has lapsed pauses no more", memory: Record{paused: &Word{Until: now}}, want: Update},

		{name: "what is asked for waits for no window, age, approval or pause",
			settings: func(s *Settings) { s.Mode, s.MinAge, s.Window = ModeApprove, time.Hour, window(t, "02:00-05:00 UTC") },
			memory:   Record{Asked: &Ask{Word: word}, Retry: retry}, want: Update, detail: "asked for at 2026-03-01T11:00:00Z by ann: holidays"},
		{name: "what is asked for is done where it would only be told", settings: func(s *Settings) { s.Mode = ModeMonitor }, memory: Record{Asked: &Ask{Word: word}}, want: Update},
		{name: "asking lapses", settings: func(s *Settings) { s.Mode = ModeMonitor }, memory: Record{Asked: &Ask{Word: Word{Until: now}}}, want: Monitor},
		{name: "asking does not lift a hold", memory: Record{Asked: &Ask{Word: word}, Hold: &word}, want: Held},
		{name: "asking does not lift a pause", memory: Record{Asked: &Ask{Word: word}, paused: &word}, want: Paused},
		{name: "asking does not lift a rejection", memory: Record{Asked: &Ask{Word: word}, Rejected: []Rejection{rejected}}, want: Rejected},
		{name: "what stopped can be rolled back", workload: skip(NotRunning), memory: Record{Asked: &Ask{Word: word, Back: candidate}}, want: Update},
		{name: "what stopped is not updated because somebody asks", workload: skip(NotRunning), memory: Record{Asked: &Ask{Word: word}}, want: NotRunning},

		{name: "a rejected digest is not tried again", memory: Record{Rejected: []Rejection{rejected}}, want: Rejected, detail: "it exited with code 1; lift it with: updaterd forget local/web"},
		{name: "a rejected image in another index is not tried again",
			memory: Record{Rejected: []Rejection{{Image: Image{Digest: digestA, Manifest: "sha256:mb"}, Reason: Rejected}}}, want: Rejected},
		{name: "a rejection without a manifest speaks against no other digest",
			memory: Record{Rejected: []Rejection{{Image: Image{Digest: digestA}, Reason: Rejected}}}, finding: func(f *finding) { f.candidate.Manifest = "" }, want: Update},
		{name: "the second of two rejections counts too", memory: Record{Rejected: []Rejection{{Image: Image{Digest: digestA}}, rejected}}, want: Rejected},
		{name: "what a person rolled back stays so", memory: Record{Rejected: []Rejection{{Image: candidate, Reason: RolledBack}}}, want: RolledBack},
		{name: "a rejection speaks before a pause", memory: Record{Rejected: []Rejection{rejected}, Retry: retry}, want: Rejected},

		{name: "an attempt in trouble pauses", memory: Record{Retry: retry}, want: Surroundings, detail: "the port was taken", until: now.Add(time.Hour)},
		{name: "a pause that is over is over", memory: Record{Retry: &Retry{Digest: digestB, After: now}}, want: Update},
		{name: "a pause is for one digest", memory: Record{Retry: &Retry{Digest: digestA, After: now.Add(time.Hour)}}, want: Update},

		{name: "never seen is too young", settings: func(s *Settings) { s.MinAge = time.Hour }, want: TooYoung, until: now.Add(time.Hour)},
		{name: "seen not long enough ago is too young", settings: func(s *Settings) { s.MinAge = time.Hour }, memory: Record{Seen: map[string]time.Time{digestB: now.Add(time.Second - time.Hour)}}, want: TooYoung, until: now.Add(time.Second)},
		{name: "seen long enough ago is old enough", settings: func(s *Settings) { s.MinAge = time.Hour }, memory: Record{Seen: map[string]time.Time{digestB: now.Add(-time.Hour)}}, want: Update},
		{name: "a digest seen long ago says nothing of another", settings: func(s *Settings) { s.MinAge = time.Hour }, memory: Record{Seen: map[string]time.Time{digestA: now.Add(-time.Hour * 99)}}, want: TooYoung, until: now.Add(time.Hour)},
		{name: "a pause speaks before age", settings: func(s *Settings) { s.MinAge = time.Hour }, memory: Record{Retry: retry}, want: Surroundings, until: now.Add(time.Hour)},

		{name: "mode approve waits for a person", settings: func(s *Settings) { s.Mode = ModeApprove }, want: NeedsApproval, detail: digestB},
		{name: "an approved digest is an update", settings: func(s *Settings) { s.Mode = ModeApprove }, memory: Record{Approved: map[string]Word{digestB: word}}, want: Update},
		{name: "an approval that has lapsed is none", settings: func(s *Settings) { s.Mode = ModeApprove },
			memory: Record{Approved: map[string]Word{digestB: {Who: "ann", Until: now}}}, want: NeedsApproval, detail: "by ann lapsed at 2026-03-01T12:00:00Z"},
		{name: "an approval that will lapse counts", settings: func(s *Settings) { s.Mode = ModeApprove },
			memory: Record{Approved: map[string]Word{digestB: {Until: now.Add(1)}}}, want: Update},
		{name: "a person's rejection lapses", memory: Record{Rejected: []Rejection{{Image: candidate, Reason: Rejected, Who: "ann", Until: now}}}, want: Update},
		{name: "a person's rejection says when it lapses", memory: Record{Rejected: []Rejection{{Image: candidate, Reason: Rejected, Who: "ann", Until: now.Add(time.Hour)}}},
			want: Rejected, detail: "by ann until 2026-03-01T13:00:00Z", until: now.Add(time.Hour)},
		{name: "another digest's approval says nothing", settings: func(s *Settings) { s.Mode = ModeApprove }, memory: Record{Approved: map[string]Word{digestA: word}}, want: NeedsApproval},
		{name: "age speaks before approval", settings: func(s *Settings) { s.Mode, s.MinAge = ModeApprove, time.Hour }, want: TooYoung, until: now.Add(time.Hour)},

		{name: "outside its window it waits", settings: func(s *Settings) { s.Window = window(t, "02:00-05:00 UTC") }, want: OutsideWindow, detail: "it opens at 2026-03-02T02:00:00Z", until: now.Add(14 * time.Hour)},
		{name: "in its window it goes", settings: func(s *Settings) { s.Window = window(t, "Sun 11:00-13:00 UTC") }, want: Update},
		{name: "approval speaks before the window", settings: func(s *Settings) { s.Mode, s.Window = ModeApprove, window(t, "02:00-05:00 UTC") }, want: NeedsApproval},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := Workload{ID: "local/web", Image: "web:1", Runs: Running{Digests: []string{digestA}, Manifest: "sha256:ma", Platform: Platform{OS: "linux", Architecture: "amd64"}}}
			s := Settings{Mode: ModeUpdate}
			c := candidate
			f := finding{candidate: &c}
			if tt.workload != nil {
				tt.workload(&w)
			}
			if tt.settings != nil {
				tt.settings(&s)
			}
			if tt.finding != nil {
				tt.finding(&f)
			}
			d := decide(w, s, f, tt.memory, now)
			require.Equal(t, tt.want, d.Reason, d.Detail)
			require.Equal(t, tt.want == Update, d.Update)
			require.Contains(t, d.Detail, tt.detail)
			require.Equal(t, f.candidate, d.Candidate, "whatever the decision")
			require.WithinDuration(t, tt.until, d.Until, 0)
		})
	}
}

func TestRejectionsOfDigestAndManifest(t *testing.T) {
	var m Record
	m.reject(Rejection{Image: Image{Digest: digestA}, Why: "first"})
	m.reject(Rejection{Image: Image{Digest: digestB}, Why: "other"})
	m.reject(Rejection{Image: Image{Digest: digestA}, Why: "second"})
	require.Len(t, m.Rejected, 2, "one per digest")
	require.Equal(t, "second", m.rejection(Image{Digest: digestA}, after(0)).Why)
}

func TestPostponeDoublesUpToADay(t *testing.T) {
	var m Record
	now := after(0)
	for i, hours := range []time.Duration{1, 2, 4, 8, 16, 24, 24, 24} {
		m.postpone(digestB, "the port was taken", now)
		require.Equal(t, i+1, m.Retry.Attempts)
		require.Equal(t, now.Add(hours*time.Hour), m.Retry.After)

		was := *m.Retry
		m.postpone(digestB, "the same end, repeated after a crash", now.Add(time.Minute))
		require.Equal(t, was, *m.Retry, "counted once")
		now = m.Retry.After
	}
	m.postpone(digestA, "another digest begins anew", now)
	require.Equal(t, 1, m.Retry.Attempts)
	m.learn(Image{Digest: digestA}, Good, "", now)
	require.Nil(t, m.Retry, "success ends it")
}

func TestNotice(t *testing.T) {
	now := after(0)
	w := Workload{ID: "local/web", Image: "web:1", Runs: Running{Digests: []string{digestA}}}
	found := func(digest string) finding { return finding{candidate: &Image{Ref: "web:1", Digest: digest}} }
	learn := func(w Workload, f finding, m Record) Record {
		if edit := notice(w, f, m, now); edit != nil {
			edit(&m)
		}
		return m
	}

	t.Run("what runs teaches nothing", func(t *testing.T) { require.Nil(t, notice(w, found(digestA), Record{}, now)) })
	t.Run("a first sight is dated", func(t *testing.T) {
		require.Equal(t, now, learn(w, found(digestB), Record{}).Seen[digestB])
	})
	t.Run("a second sight is not", func(t *testing.T) {
		require.Nil(t, notice(w, found(digestB), Record{Seen: map[string]time.Time{digestB: now.Add(-time.Hour)}}, now))
	})
	t.Run("a candidate that cannot run here is not seen", func(t *testing.T) {
		f := found(digestB)
		f.refusal = &Refusal{Reason: PlatformMissing}
		require.Nil(t, notice(w, f, Record{}, now))
	})
	t.Run("moving off what updaterd committed is a roll-back", func(t *testing.T) {
		committed := Image{Ref: "web:1", Digest: digestB, Manifest: "sha256:mb"}
		m := learn(w, found(digestB), Record{Committed: committed})
		require.Equal(t, []Rejection{{Image: committed, Reason: RolledBack, At: now, Why: "somebody moved it off web:1, which updaterd had put there"}}, m.Rejected)
		require.Zero(t, m.Committed, "once")
		require.Equal(t, RolledBack, decide(w, Settings{}, found(digestB), m, now).Reason)
		require.Len(t, learn(w, found(digestB), m).Rejected, 1)
	})
	t.Run("running what updaterd committed is none", func(t *testing.T) {
		require.Empty(t, learn(w, found(digestB), Record{Committed: Image{Digest: digestA}}).Rejected)
	})
	t.Run("an engine that knows no digest shows no roll-back", func(t *testing.T) {
		blind := w
		blind.Runs = Running{}
		require.Empty(t, learn(blind, found(digestB), Record{Committed: Image{Digest: digestA}}).Rejected)
	})
	t.Run("what was committed in another index is what runs", func(t *testing.T) {
		other := w
		other.Runs.Manifest = "sha256:ma"
		require.Empty(t, learn(other, found(digestB), Record{Committed: Image{Digest: digestB, Manifest: "sha256:ma"}}).Rejected)
	})
	t.Run("a tag list of the same length teaches nothing", func(t *testing.T) {
		f := found(digestA)
		f.repository, f.tags = "web", 7
		require.Nil(t, notice(w, f, Record{Tags: &TagCount{Repository: "web", Count: 7}}, now))
		require.Equal(t, 7, learn(w, f, Record{}).Tags.Count)
	})
	t.Run("first sights are bounded, the newest stay", func(t *testing.T) {
		var m Record
		for i := range 10 * seenKept {
			m.see(fmt.Sprint(i), now.Add(time.Duration(i)*time.Second))
		}
		require.Len(t, m.Seen, seenKept)
		require.Contains(t, m.Seen, fmt.Sprint(10*seenKept-1))
		require.NotContains(t, m.Seen, "0")
	})
	t.Run("the edit is applied to what the journal holds by then", func(t *testing.T) {
		edit := notice(w, found(digestB), Record{Committed: Image{Digest: digestB}}, now)
		m := Record{Committed: Image{Digest: digestA}, Seen: map[string]time.Time{digestB: now.Add(-time.Hour)}}
		edit(&m)
		require.Equal(t, Record{Committed: Image{Digest: digestA}, Seen: map[string]time.Time{digestB: now.Add(-time.Hour)}}, m)
	})
}

// TestDecideNeverGoesAgainstAnybodysWord draws everything that decide goes by.
func TestDecideNeverGoesAgainstAnybodysWord(t *testing.T) {
	windows := []Window{{}, window(t, "02:00-05:00 UTC"), window(t, "Mon-Fri 22:00-04:00 Europe/Berlin")}
	digests := []string{"sha256:1", "sha256:2", "sha256:3"}
	manifests := []string{"", "sha256:m1", "sha256:m2"}
	rapid.Check(t, func(t *rapid.T) {
		image := func(name string) Image {
			return Image{Ref: "web:1", Digest: rapid.SampledFrom(digests).Draw(t, name), Manifest: rapid.SampledFrom(manifests).Draw(t, name+" manifest")}
		}
		now := after(float64(rapid.IntRange(0, 14*24*3600).Draw(t, "now")))
		w := Workload{ID: "local/web", Image: "web:1"}
		if running := image("running"); rapid.Bool().Draw(t, "known") {
			w.Runs = Running{Digests: []string{running.Digest}, Manifest: running.Manifest}
		}
		if skip := rapid.SampledFrom([]Reason{"", "", "", NotRunning, Unsupported, Mixed}).Draw(t, "skip"); skip != "" {
			w.Skip = &Refusal{Reason: skip}
		}
		c := image("candidate")
		f := finding{candidate: &c}
		if rapid.IntRange(0, 5).Draw(t, "refused") == 0 {
			f.refusal = &Refusal{Reason: PlatformMissing}
		}
		s := Settings{
			Mode:   rapid.SampledFrom([]Mode{ModeUpdate, ModeUpdate, ModeApprove, ModeMonitor, ModeHold}).Draw(t, "mode"),
			MinAge: time.Duration(rapid.IntRange(0, 3).Draw(t, "min-age")) * time.Hour,
			Window: rapid.SampledFrom(windows).Draw(t, "window"),
		}
		var m Record
		for i := range rapid.IntRange(0, 2).Draw(t, "rejections") {
			m.reject(Rejection{Image: image(fmt.Sprintf("rejected %d", i)), Reason: rapid.SampledFrom([]Reason{Rejected, RolledBack}).Draw(t, fmt.Sprintf("as %d", i))})
		}
		if rapid.IntRange(0, 5).Draw(t, "hold") == 0 {
			m.Hold = &Word{}
		}
		if rapid.IntRange(0, 2).Draw(t, "pause") == 0 {
			m.Retry = &Retry{Digest: image("paused").Digest, After: now.Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "pause for")) * time.Hour)}
		}
		if rapid.Bool().Draw(t, "approved") {
			m.Approved = map[string]Word{image("approved digest").Digest: {}}
		}
		if rapid.Bool().Draw(t, "seen") {
			m.Seen = map[string]time.Time{image("seen digest").Digest: now.Add(-time.Duration(rapid.IntRange(0, 4).Draw(t, "seen ago")) * time.Hour)}
		}

		d := decide(w, s, f, m, now)
		if d.Reason == "" || d.Detail == "" && w.Skip == nil && f.refusal == nil {
			t.Fatalf("no reason: %+v", d)
		}
		if d.Update != (d.Reason == Update) {
			t.Fatalf("%+v", d)
		}
		if !d.Until.IsZero() && !d.Until.After(now) {
			t.Fatalf("until %s has passed at %s", d.Until, now)
		}
		if !d.Update {
			return
		}
		_, approved := m.Approved[c.Digest]
		seen, ok := m.Seen[c.Digest]
		if !ok {
			seen = now
		}
		for _, against := range []struct {
			what string
			is   bool
		}{
			{"refused", f.refusal != nil}, {"skipped", w.Skip != nil}, {"held", s.Mode == ModeHold || m.Hold != nil}, {"monitored", s.Mode == ModeMonitor},
			{"not approved", s.Mode == ModeApprove && !approved}, {"too young", now.Sub(seen) < s.MinAge}, {"outside the window", !s.Window.Open(now)},
			{"paused", m.Retry != nil && m.Retry.Digest == c.Digest && now.Before(m.Retry.After)},
			{"what runs", len(w.Runs.Digests) > 0 && (w.Runs.Digests[0] == c.Digest || c.Manifest != "" && w.Runs.Manifest == c.Manifest)},
		} {
			if against.is {
				t.Fatalf("an update although it is %s", against.what)
			}
		}
		for _, r := range m.Rejected {
			if r.Digest == c.Digest || r.Manifest != "" && r.Manifest == c.Manifest {
				t.Fatalf("an update although it is %s", r.Reason)
			}
		}
	})
}

func TestWhatItsOwnerIsToldOf(t *testing.T) {
	own := map[string]string{"enable": "true"}
	for name, c := range map[string]struct {
		written map[string]string
		reason  Reason
		want    bool
	}{
		"a label that is mistyped":                           {nil, InvalidSettings, true},
		"what somebody wants updated and cannot be":          {own, Unsupported, true},
		"one of all that are watched that cannot be":         {nil, Unsupported, false},
		"what cannot be updated today":                       {own, Held, false},
		"what somebody wants updated and runs its candidate": {own, UpToDate, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, never(Workload{Written: c.written}, Decision{Reason: c.reason}))
		})
	}
}

package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func mustParse(t testing.TB, s Spec) Rule {
	t.Helper()
	rule, err := Parse(s)
	require.NoError(t, err)
	return rule
}

func TestSelectOnEdges(t *testing.T) {
	huge := strings.Repeat("9", 60)
	for name, c := range map[string]struct {
		spec    Spec
		current string
		tags    string
		want    string
		reason  Reason
		detail  string // part of it
		why     map[string]string
	}{
		"digest stays on its tag": {Spec{Policy: "digest"}, "1.2", "1.2 1.3 latest", "1.2", UpToDate, "",
			map[string]string{"1.2": "what runs", "1.3": "another tag; digest stays on its own"}},
		"digest stays on a tag the list lacks":     {Spec{Policy: "digest"}, "1.2", "1.3", "1.2", UpToDate, "", nil},
		"digest without a tag":                     {Spec{Policy: "digest"}, "", "1.3", "", NoCandidate, "no tag", nil},
		"an empty list keeps what fits":            {Spec{Policy: "minor"}, "1.2.3", "", "1.2.3", UpToDate, "does not list 1.2.3", nil},
		"an empty list has nothing for latest":     {Spec{Policy: "minor"}, "latest", "", "", NoCandidate, "list of tags is empty", nil},
		"no tag at all takes any version":          {Spec{Policy: "minor"}, "", "1.2.3 1.3.0", "1.3.0", Update, "a missing tag", nil},
		"a commit takes any version":               {Spec{Policy: "minor"}, "1a2b3c4", "1.2.3 1.3.0-rc1", "1.2.3", Update, "", map[string]string{"1.3.0-rc1": "pre-release"}},
		"a word takes any version":                 {Spec{Policy: "minor"}, "develop", "1.2.3 1.3.0", "1.3.0", Update, "", nil},
		"an unknown word takes its own first":      {Spec{Policy: "minor"}, "acme", "1.2.3 1.2.0-acme 1.3.0", "1.2.0-acme", Update, "", nil},
		"an unknown word takes plain ones then":    {Spec{Policy: "minor"}, "acme", "1.2.3 1.3.0 1.4.0-slim", "1.3.0", Update, "", map[string]string{"1.4.0-slim": "other variant: -slim, you run acme"}},
		"an unknown word in front of a version":    {Spec{Policy: "minor"}, "acme", "1.2.3 acme-1.2.0 acme-1.1.0 other-1.2.0", "acme-1.2.0", Update, "", map[string]string{"other-1.2.0": "other prefix: other-, you run acme"}},
		"latest does not guess between variants":   {Spec{Policy: "minor"}, "latest", "1.2.3-slim 1.2.3-alpine", "", NoCandidate, "*-slim, *-alpine", map[string]string{"1.2.3-slim": "one of several kinds: latest does not say which"}},
		"latest takes the only variant":            {Spec{Policy: "minor"}, "latest", "1.2.3-slim 1.2.4-slim", "1.2.4-slim", Update, "", nil},
		"latest takes release- for a version":      {Spec{Policy: "minor"}, "latest", "release-1.2 release-1.3 main-7", "release-1.3", Update, "", nil},
		"latest prefers versions to dates":         {Spec{Policy: "newest"}, "latest", "20240101 1.2", "1.2", Update, "", nil},
		"latest takes dates where there are only":  {Spec{Policy: "newest"}, "latest", "20240101 20240201", "20240201", Update, "", nil},
		"of equal versions the more precise":       {Spec{Policy: "newest"}, "latest", "17 17.0 17.0.0 16.9.9", "17.0.0", Update, "", nil},
		"of equal versions the one without v":      {Spec{Policy: "newest"}, "latest", "v1.2.0 1.2.0", "1.2.0", Update, "", nil},
		"a v is taken where there are only":        {Spec{Policy: "newest"}, "latest", "v1.2.0 1.1.0", "v1.2.0", Update, "", nil},
		"of equal versions the one that runs":      {Spec{Policy: "newest"}, "1.02", "1.2 1.02 1.1", "1.02", UpToDate, "", nil},
		"padding is kept where there is a choice":  {Spec{Policy: "newest"}, "2024.08", "2024.9 2024.09", "2024.09", Update, "", nil},
		"padding is no obstacle":                   {Spec{Policy: "newest"}, "2024.09", "2024.10 2024.9", "2024.10", Update, "", nil},
		"a tag that runs but is not listed stays":  {Spec{Policy: "minor"}, "1.5.0", "1.4.0 1.3.0 2.0.0", "1.5.0", UpToDate, "does not list 1.5.0", map[string]string{"1.4.0": "lower than 1.5.0", "2.0.0": "outside 1.x"}},
		"an excluded tag that runs is not chosen":  {Spec{Policy: "minor", Exclude: `^1\.5\.0$`}, "1.5.0", "1.5.0 1.4.0", "", Downgrade, "best is 1.4.0", map[string]string{"1.5.0": "matched by exclude", "1.4.0": "lower than 1.5.0"}},
		"an excluded tag that runs is left":        {Spec{Policy: "minor", Exclude: `^1\.5\.0$`}, "1.5.0", "1.5.0 1.5.1", "1.5.1", Update, "", nil},
		"downgrade when only lower tags fit":       {Spec{Policy: "semver:^1"}, "2.0.0", "1.9.0 1.8.0 2.0.0 3.0.0", "", Downgrade, "allow-downgrade", map[string]string{"2.0.0": "outside ^1"}},
		"downgrade when it is allowed":             {Spec{Policy: "semver:^1", AllowDowngrade: true}, "2.0.0", "1.9.0 1.8.0 2.0.0", "1.9.0", Update, "lower than 2.0.0", nil},
		"allowed downgrade does not prefer it":     {Spec{Policy: "semver:^1", AllowDowngrade: true}, "1.8.0", "1.9.0 1.8.0 1.7.0", "1.9.0", Update, "", nil},
		"nothing in range":                         {Spec{Policy: "semver:^5"}, "1.2.3", "1.2.3 1.3.0 2.0.0-rc1", "", NoCandidate, "of 3, 2: outside ^5, 1: pre-release", nil},
		"numbers beyond 64 bits are compared":      {Spec{Policy: "newest"}, "1." + huge, "1." + huge + " 1.1" + huge, "1.1" + huge, Update, "", nil},
		"numbers beyond 64 bits in a range":        {Spec{Policy: "semver:^1"}, "1.0", "1." + huge + " " + huge + ".0 1.1", "1." + huge, Update, "", map[string]string{huge + ".0": "outside ^1"}},
		"numbers beyond 64 bits in a pre-release":  {Spec{Policy: "semver:>=1-0"}, "1.0.0-rc." + huge, "1.0.0-rc.1" + huge, "1.0.0-rc.1" + huge, Update, "", nil},
		"candidate to its release":                 {Spec{Policy: "patch"}, "1.2.3-rc.1", "1.2.3 1.2.3-rc.2 1.2.3-rc.10", "1.2.3", Update, "", nil},
		"candidate to the next":                    {Spec{Policy: "patch"}, "1.2.3-rc.1", "1.2.2 1.2.3-rc.2 1.2.3-rc.10", "1.2.3-rc.10", Update, "", nil},
		"candidate to that of a later version":     {Spec{Policy: "minor"}, "1.2.3-rc.1", "1.2.3 1.3.0-rc.1", "1.3.0-rc.1", Update, "", nil},
		"candidate is not offered a beta":          {Spec{Policy: "minor"}, "1.2.3-rc.1", "1.3.0-beta.9", "1.2.3-rc.1", UpToDate, "", map[string]string{"1.3.0-beta.9": "pre-release less mature than rc"}},
		"candidate is not offered nightly builds":  {Spec{Policy: "minor"}, "1.2.3-rc.1", "1.3.0-nightly", "1.2.3-rc.1", UpToDate, "", map[string]string{"1.3.0-nightly": "pre-release of another kind: nightly, you run rc"}},
		"release is offered no pre-release":        {Spec{Policy: "major"}, "1.0.0", "1.1.0-rc.1 1.1.0rc1 1.1.0b1 1.1.0a1 1.1.0-alpha 1.1.0-beta2 1.1.0-dev 1.1.0-nightly 1.1.0-SNAPSHOT 1.1.0-pre 1.1.0.dev3 1.1.0-M1 1.1.0_rc1", "1.0.0", UpToDate, "", map[string]string{"1.1.0-SNAPSHOT": "pre-release", "1.1.0.dev3": "pre-release"}},
		"snapshot to its release":                  {Spec{Policy: "major"}, "1.1.0-SNAPSHOT", "1.1.0 1.1.0-SNAPSHOT", "1.1.0", Update, "", nil},
		"nightly to nightly by date":               {Spec{Policy: "newest"}, "1.1.0-nightly.20240901.1a2b3c4", "1.1.0-nightly.20240904.9f8e7d6 1.1.0-nightly.20240901.1a2b3c4", "1.1.0-nightly.20240904.9f8e7d6", Update, "", nil},
		"a range that asks for candidates":         {Spec{Policy: "semver:>=1.1.0-rc2"}, "1.0.0", "1.1.0-rc1 1.1.0-rc10 1.1.0-rc9 1.1.0-beta3", "1.1.0-rc10", Update, "", map[string]string{"1.1.0-rc1": "pre-release outside >=1.1.0-rc2"}},
		"a candidate of 2 is not below 2":          {Spec{Policy: "semver:<2"}, "1.0.0-rc.1", "1.5.0 2.0.0-rc.1", "1.5.0", Update, "", map[string]string{"2.0.0-rc.1": "outside <2"}},
		"two segments in a range of three":         {Spec{Policy: "semver:^1.4.0"}, "1.4", "1.5 1.3 2.0 1.5.1", "1.5", Update, "", map[string]string{"1.5.1": "3 segments, you run 2", "2.0": "outside ^1.4.0"}},
		"four segments in a range":                 {Spec{Policy: "semver:~1.4.2"}, "1.4.2.9", "1.4.2.10 1.4.3.1 1.5.0.1", "1.4.3.1", Update, "", nil},
		"patch of two segments stays":              {Spec{Policy: "patch"}, "3.7", "3.8 3.7 3.7.1", "3.7", UpToDate, "", map[string]string{"3.8": "outside 3.7"}},
		"patch of two segments moves the revision": {Spec{Policy: "patch"}, "3.7-r3", "3.7-r10 3.8-r1", "3.7-r10", Update, "", nil},
		"patch of four segments moves the last":    {Spec{Policy: "patch"}, "1.2.3.4", "1.2.4.1 1.3.0.0", "1.2.4.1", Update, "", nil},
		"3.7 to 3.10, not to 3.8.1":                {Spec{Policy: "minor"}, "3.7", "3.8 3.8.1 3.10", "3.10", Update, "", map[string]string{"3.8.1": "3 segments, you run 2"}},
		"alpine is not alpine3.20":                 {Spec{Policy: "major"}, "1.2.3-alpine", "1.2.4 1.2.4-slim 1.2.4-alpine3.20", "1.2.3-alpine", UpToDate, "", map[string]string{"1.2.4-slim": "other variant: -slim, you run -alpine"}},
		"alpine3.19 may become alpine3.20":         {Spec{Policy: "patch"}, "1.2.3-alpine3.19", "1.2.3-alpine3.20 1.2.3-alpine3.20.1", "1.2.3-alpine3.20", Update, "", nil},
		"architectures are names":                  {Spec{Policy: "major"}, "1.0-arm32v7", "2.0-arm64v8 2.0-arm32v6 1.1-arm32v7 2.0-x86-64-v3", "1.1-arm32v7", Update, "", map[string]string{"2.0-arm32v6": "other variant: -arm32v6, you run -arm32v7"}},
		"timestamps":                               {Spec{Policy: "newest"}, "2024-10-01T12-00-00Z", "2024-10-01T12-00-01Z 2024-9-30T12-00-00Z 2024-10-02", "2024-10-01T12-00-01Z", Update, "", nil},
		"dates of days":                            {Spec{Policy: "newest"}, "20241001", "20241002 20240901 2024100112", "20241002", Update, "", map[string]string{"2024100112": "a date of another length"}},
		"a date in a range of dates":               {Spec{Policy: "semver:>=20240101 <20250101"}, "20240301", "20240401 20250101", "20240401", Update, "", nil},
		"calendar versions":                        {Spec{Policy: "minor"}, "2024.9.1", "2024.10.0 2025.1.0", "2024.10.0", Update, "", nil},
		"underscores are part of the shape":        {Spec{Policy: "major"}, "REL_16_4", "REL_16_10 REL_17_1 REL-17-1", "REL_17_1", Update, "", nil},
		"alphabetical is by bytes":                 {Spec{Policy: "alphabetical"}, "1.1", "1.9 1.10 1.2", "1.9", Update, "", nil},
		"alphabetical does not go down in version": {Spec{Policy: "alphabetical"}, "1.10", "1.9 1.10", "1.10", UpToDate, "", map[string]string{"1.9": "lower than 1.10"}},
		"alphabetical by words":                    {Spec{Policy: "alphabetical"}, "beta", "alpha beta gamma latest edge", "gamma", Update, "", map[string]string{"latest": "no version", "alpha": "lower than beta"}},
		"alphabetical by words keeps the rest":     {Spec{Policy: "alphabetical"}, "jammy-slim", "noble noble-slim noble-full", "noble-slim", Update, "", nil},
		"alphabetical from latest to words":        {Spec{Policy: "alphabetical"}, "latest", "jammy noble focal latest", "noble", Update, "", nil},
		"alphabetical is no way out of a variant":  {Spec{Policy: "alphabetical"}, "alpine", "bookworm perl stable slim", "", NoCandidate, "", nil},
		"alphabetical keeps the variant":           {Spec{Policy: "alphabetical"}, "2024-01-01-slim", "2024-02-01-slim 2024-03-01 2024-03-01-full", "2024-02-01-slim", Update, "", nil},
		"extract compares what it yields":          {Spec{Policy: "minor", Include: `^build-(\d+)-v(.+)$`, Extract: "$2"}, "build-9-v1.2.0", "build-1-v1.3.0 build-2-v2.0.0 build-3-v1.3.0-rc1 other", "build-1-v1.3.0", Update, "", map[string]string{"other": "not matched by include", "build-3-v1.3.0-rc1": "pre-release", "build-2-v2.0.0": "outside 1.x"}},
		"extract reorders":                         {Spec{Policy: "newest", Include: `^(\d+)-(\d+)-(\d+)$`, Extract: "$3.$2.$1"}, "30-09-2024", "01-10-2024 31-08-2024", "01-10-2024", Update, "", nil},
		"extract locks the variant of its yield":   {Spec{Policy: "minor", Include: `^x(.+)$`, Extract: "$1"}, "x1.0-alpine", "x1.1-alpine x1.2", "x1.1-alpine", Update, "", map[string]string{"x1.2": "other variant: none, you run -alpine"}},
		"extract that drops the variant frees it":  {Spec{Policy: "minor", Include: `^([\d.]+)`, Extract: "$1"}, "1.0-alpine", "1.1-slim", "1.1-slim", Update, "", nil},
		"extract that yields nothing":              {Spec{Policy: "minor", Include: `^(\d+\.\d+)?`, Extract: "$1"}, "1.0", "1.1 stable", "1.1", Update, "", map[string]string{"stable": "extract yields nothing"}},
		"extract of equal yields stays":            {Spec{Policy: "minor", Include: `^([\d.]+)-`, Extract: "$1"}, "1.0-b", "1.0-a 1.0-b 1.0-c", "1.0-b", UpToDate, "", nil},
		"extract from a tag it does not match":     {Spec{Policy: "semver:*", Include: `^release-(.*)$`, Extract: "$1"}, "v2.1.0", "release-2.0.0 release-2.2.0 release-1.9.0", "release-2.2.0", Update, "", map[string]string{"release-2.0.0": "lower than v2.1.0"}},
		"extract from such a tag, never down":      {Spec{Policy: "semver:*", Include: `^release-(.*)$`, Extract: "$1"}, "v2.1.0", "release-2.0.0", "", Downgrade, "", nil},
		"signatures":                               {Spec{Policy: "newest"}, "latest", strings.Join([]string{"sha256-" + strings.Repeat("0", 64), "sha256-" + strings.Repeat("a", 64) + ".sig", "sha256-" + strings.Repeat("b", 64) + ".att", "sha256-" + strings.Repeat("c", 64) + ".sbom", "sha512-" + strings.Repeat("1", 121)}, " "), "", NoCandidate, "5: signature", nil},
		"commits":                                  {Spec{Policy: "newest"}, "1.0", "1a2b3c4 sha-1a2b3c4 1d4d7b6ab55c0b4e2ae8b3b7a2a30d8d7a6cd1e6 git-1234567 g1a2b3c4", "1.0", UpToDate, "", map[string]string{"1a2b3c4": "commit hash", "sha-1a2b3c4": "commit hash", "git-1234567": "commit hash"}},
		"no tags":                                  {Spec{Policy: "newest"}, "1.0", "<none> .5 1.1", "1.1", Update, "", map[string]string{"<none>": "not a legal tag", ".5": "not a legal tag"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := mustParse(t, c.spec).Select(c.current, strings.Fields(c.tags))
			require.Equal(t, c.want, got.Tag, got.Detail)
			require.Equal(t, c.reason, got.Reason, got.Detail)
			require.Contains(t, got.Detail, c.detail)
			for tag, why := range c.why {
				found := false
				for _, row := range got.Tags {
					if row.Tag == tag {
						found = true
						require.Equal(t, why, row.Why)
					}
				}
				require.True(t, found, tag)
			}
		})
	}
}

func TestSelectListsTheSelectedThenTheEligibleThenTheDropped(t *testing.T) {
	got := mustParse(t, Spec{Policy: "semver:^1"}).Select("1.9.0", []string{
		"1.8.0", "2.0.0", "1.11.0", "1.10.0", "latest", "1.9.0", "", "1.11.0", "1.12.0-rc1"})
	require.Equal(t, Selection{
		Tag: "1.11.0", Reason: Update, Detail: "1.11.0 is newer than 1.9.0",
		Tags: []TagVerdict{
			{"1.11.0", Selected, "the best that fits"},
			{"1.10.0", Eligible, "fits, but 1.11.0 comes first"},
			{"1.9.0", Eligible, "what runs; 1.11.0 is newer"},
			{"latest", Dropped, "no version"},
			{"2.0.0", Dropped, "outside ^1"},
			{"1.12.0-rc1", Dropped, "pre-release"},
			{"1.8.0", Dropped, "lower than 1.9.0"},
		},
	}, got)
	text, err := json.Marshal(got.Tags[0])
	require.NoError(t, err)
	require.JSONEq(t, `{"tag":"1.11.0","verdict":"selected","why":"the best that fits"}`, string(text))
}

// manyTags returns n tags like those of a repository with a long history.
func manyTags(n int) []string {
	variants := []string{"", "-alpine", "-alpine3.20", "-slim", "-bookworm", "-rc1", "-ls12", "-debian-12-r3"}
	tags := make([]string, 0, n)
	for i := 0; len(tags) < n; i++ {
		for _, v := range variants {
			tags = append(tags, fmt.Sprintf("%d.%d.%d%s", i%23, i%17, i, v))
		}
	}
	return tags[:n]
}

func BenchmarkSelect(b *testing.B) {
	for _, spec := range []Spec{
		{Policy: "minor"}, {Policy: "semver:>=1.4 <23"}, {Policy: "newest"},
		{Policy: "major", Include: `^(\d+\.\d+\.\d+)-alpine$`, Extract: "$1"},
	} {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%s/extract=%t/%d", spec.Policy, spec.Extract != "", n), func(b *testing.B) {
				rule, tags := mustParse(b, spec), manyTags(n)
				b.ReportAllocs()
				for b.Loop() {
					rule.Select("1.2.3-alpine", tags)
				}
			})
		}
	}
}

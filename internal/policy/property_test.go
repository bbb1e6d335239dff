package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/Masterminds/semver/v3"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// made is a tag with what it was made of, so that the properties need none of
// the code under test to know what a tag means.
type made struct {
	tag     string
	prefix  string
	version []int
	pre     string
	preNum  int
	variant string // without its numbers
	numbers []int  // of the variant
}

func drawMade(t *rapid.T, label string) made {
	m := made{
		prefix:  rapid.SampledFrom([]string{"", "", "", "v", "release-"}).Draw(t, label+" prefix"),
		version: rapid.SliceOfN(rapid.IntRange(0, 12), 1, 4).Draw(t, label+" version"),
		pre:     rapid.SampledFrom([]string{"", "", "", "", "rc", "beta", "nightly"}).Draw(t, label+" pre"),
	}
	m.tag = m.prefix
	for i, n := range m.version {
		if i > 0 {
			m.tag += "."
		}
		m.tag += fmt.Sprintf(rapid.SampledFrom([]string{"%d", "%d", "%02d"}).Draw(t, label+" padding"), n)
	}
	if m.pre != "" {
		m.preNum = rapid.IntRange(0, 12).Draw(t, label+" number")
		m.tag += fmt.Sprintf(rapid.SampledFrom([]string{"-%s.%d", "-%s%d", "%s%d"}).Draw(t, label+" style"), m.pre, m.preNum)
	}
	number := func() int {
		n := rapid.IntRange(0, 120).Draw(t, label+" of variant")
		m.numbers = append(m.numbers, n)
		return n
	}
	switch m.variant = rapid.SampledFrom([]string{"", "", "-alpine", "-alpineN.N", "-slim", "-lsN", "-debian-N-rN", "-arm64v8", "-arm32v7"}).Draw(t, label+" variant"); m.variant {
	case "-alpineN.N":
		m.tag += fmt.Sprintf("-alpine%d.%d", number(), number())
	case "-lsN":
		m.tag += fmt.Sprintf("-ls%d", number())
	case "-debian-N-rN":
		m.tag += fmt.Sprintf("-debian-%d-r%d", number(), number())
	default:
		m.tag += m.variant
	}
	return m
}

// compareMade orders two tags of the same kind.
func compareMade(a, b made) int {
	if c := slices.Compare(a.version, b.version); c != 0 {
		return c
	}
	if a.pre != b.pre {
		switch {
		case a.pre == "":
			return 1
		case b.pre == "":
			return -1
		}
		return strings.Compare(a.pre, b.pre) // beta before rc
	}
	if a.preNum != b.preNum {
		return a.preNum - b.preNum
	}
	return slices.Compare(a.numbers, b.numbers)
}

func drawSpec(t *rapid.T) Spec {
	s := Spec{
		Policy: rapid.SampledFrom([]string{"patch", "minor", "major", "newest", "alphabetical",
			"semver:*", "semver:^1", "semver:^1.4", "semver:~2.3", "semver:>=1.2 <5", "semver:<3 || >=7", "semver:>=2-0", "semver:^3.0-rc1", "semver:!=4"}).Draw(t, "policy"),
		Include:        rapid.SampledFrom([]string{"", "", "", `\d`, `^v?\d`, `alpine`, `^[^-]*$`}).Draw(t, "include"),
		Exclude:        rapid.SampledFrom([]string{"", "", "", `5`, `slim`, `^1`}).Draw(t, "exclude"),
		AllowDowngrade: rapid.SampledFrom([]bool{false, false, true}).Draw(t, "allow"),
	}
	if rapid.IntRange(0, 3).Draw(t, "extracts") == 0 {
		s.Include, s.Extract = `^(?:v|release-)?([\d.]+)(.*)$`, rapid.SampledFrom([]string{"$1", "$1$2", "$2"}).Draw(t, "extract")
	}
	return s
}

func drawJunk(t *rapid.T) string {
	return rapid.SampledFrom([]string{"latest", "stable", "alpine", "latest-alpine", "edge", "nightly", "jammy", "noble", "develop",
		"20240101", "20240102", "2024-10-01T12-00-00Z", "1a2b3c4", "8412345", "sha-1a2b3c4", "main-1a2b3c4-1700000000",
		"sha256-" + strings.Repeat("ab", 32) + ".sig", "1.2.3-14-g1a2b3c4", "99999999999999999999999.1", ".bad", "b4000", "php8.2-apache"}).Draw(t, "junk")
}

// rounds of rapid's 100 checks: what goes down must first run what does not
// fit, which is rare.
const rounds = 8

func TestSelectNeverSurprises(t *testing.T) {
	for range rounds {
		rapid.Check(t, checkSelectNeverSurprises)
	}
}

func checkSelectNeverSurprises(t *rapid.T) {
	spec := drawSpec(t)
	rule, err := Parse(spec)
	require.NoError(t, err)

	var cur made
	known := map[string]made{}
	if rapid.IntRange(0, 4).Draw(t, "runs junk") > 0 {
		cur = drawMade(t, "current")
		known[cur.tag] = cur
	} else {
		cur.tag = drawJunk(t)
	}
	var tags []string
	for range rapid.IntRange(0, 25).Draw(t, "tags") {
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			tags = append(tags, drawJunk(t))
		case 1, 2: // a sibling of what runs
			m := drawMade(t, "sibling")
			if cur.version != nil {
				next := cur
				next.version = slices.Clone(cur.version)
				i := rapid.IntRange(0, len(next.version)-1).Draw(t, "segment")
				next.version[i] = rapid.IntRange(0, 14).Draw(t, "its value")
				written := make([]string, len(next.version))
				for i, n := range next.version {
					written[i] = fmt.Sprint(n)
				}
				start := len(cur.prefix)
				end := start
				for end < len(cur.tag) && strings.IndexByte("0123456789.", cur.tag[end]) >= 0 {
					end++
				}
				next.tag = cur.prefix + strings.Join(written, ".") + cur.tag[end:]
				m = next
			}
			known[m.tag] = m
			tags = append(tags, m.tag)
		default:
			m := drawMade(t, "tag")
			known[m.tag] = m
			tags = append(tags, m.tag)
		}
	}
	if rapid.Bool().Draw(t, "listed") {
		tags = append(tags, cur.tag)
	}

	got := rule.Select(cur.tag, tags)

	// Never a tag that is neither in the list nor what runs.
	if got.Tag != "" && got.Tag != cur.tag {
		require.Contains(t, tags, got.Tag)
		require.Equal(t, Update, got.Reason)
	}
	require.Equal(t, got.Tag == "", got.Reason == NoCandidate || got.Reason == Downgrade)
	require.NotEmpty(t, got.Detail)

	// Every distinct tag once; one selected, and that is the one.
	seen := map[string]bool{}
	for _, row := range got.Tags {
		require.False(t, seen[row.Tag])
		seen[row.Tag] = true
		require.Contains(t, tags, row.Tag)
		require.NotEmpty(t, row.Why)
		require.Equal(t, row.Tag == got.Tag, row.Verdict == Selected)
	}
	for _, tag := range tags {
		require.True(t, seen[tag])
	}

	// Whatever the order, and however often a tag is listed.
	shuffled := rapid.Permutation(append(slices.Clone(tags), tags...)).Draw(t, "another order")
	require.Equal(t, got, rule.Select(cur.tag, shuffled))

	// What was selected is selected again.
	if got.Tag != "" {
		again := rule.Select(got.Tag, tags)
		require.Equal(t, got.Tag, again.Tag, "selecting again: %s", again.Detail)
		require.Equal(t, UpToDate, again.Reason)
	}
	if got.Tag == "" || got.Tag == cur.tag {
		return
	}

	// Filters hold.
	if spec.Exclude != "" {
		require.NotRegexp(t, spec.Exclude, got.Tag)
	}
	if spec.Include != "" {
		require.Regexp(t, spec.Include, got.Tag)
	}
	next, ok := known[got.Tag]
	if !ok || spec.Extract != "" {
		return
	}
	// Never outside the range.
	if text, found := strings.CutPrefix(spec.Policy, "semver:"); found && len(next.version) <= 3 {
		constraint, err := semver.NewConstraint(text)
		require.NoError(t, err)
		constraint.IncludePrerelease = next.pre != ""
		v := semver.MustParse(strings.Trim(strings.Join(strings.Fields(fmt.Sprint(next.version)), "."), "[]"))
		require.True(t, constraint.Check(v), "%s is outside %s", next.tag, text)
	}
	asks := strings.Contains(spec.Policy, "-")
	if cur.version == nil {
		require.True(t, next.pre == "" || asks, "a pre-release for a word")
		return
	}
	// Never another variant, prefix or number of segments.
	require.Equal(t, cur.prefix, next.prefix)
	require.Equal(t, cur.variant, next.variant)
	require.Len(t, next.version, len(cur.version))
	// Never an unwanted pre-release.
	require.True(t, next.pre == "" || asks || cur.pre != "" && (next.pre == cur.pre || cur.pre == "beta" && next.pre == "rc"))
	// Never lower.
	if !spec.AllowDowngrade {
		require.GreaterOrEqual(t, compareMade(next, cur), 0, "%s is below %s", next.tag, cur.tag)
	}
	// The segments above stay.
	keep := map[string]int{"patch": 2, "minor": 1}[spec.Policy]
	keep = min(keep, len(cur.version))
	require.Equal(t, cur.version[:keep], next.version[:keep])
}

// TestSelectMissesNothing: without filters, the best sibling is the one.
func TestSelectMissesNothing(t *testing.T) {
	for range rounds {
		rapid.Check(t, checkSelectMissesNothing)
	}
}

func checkSelectMissesNothing(t *rapid.T) {
	cur := drawMade(t, "current")
	best := cur
	known := map[string]made{cur.tag: cur}
	tags := []string{cur.tag}
	for range rapid.IntRange(0, 20).Draw(t, "tags") {
		m := drawMade(t, "tag")
		if rapid.Bool().Draw(t, "sibling") {
			start := len(m.prefix)
			m.prefix, m.tag = cur.prefix, cur.prefix+m.tag[start:]
		}
		tags = append(tags, m.tag)
		known[m.tag] = m
		if m.prefix == cur.prefix && m.variant == cur.variant && len(m.version) == len(cur.version) &&
			(m.pre == "" || m.pre == cur.pre || m.pre == "rc" && cur.pre == "beta") && compareMade(m, best) > 0 {
			best = m
		}
	}
	rule, err := Parse(Spec{Policy: "newest"})
	require.NoError(t, err)
	got := rule.Select(cur.tag, tags)
	// Another tag may be written differently and be the same version.
	require.Zero(t, compareMade(known[got.Tag], best), "%s, not %s", got.Tag, best.tag)
}

func TestCompareNaturalOrdersEverything(t *testing.T) {
	text := rapid.StringMatching(`[0-3a.\-]{0,8}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := text.Draw(t, "a"), text.Draw(t, "b"), text.Draw(t, "c")
		require.Equal(t, compareNatural(a, b), -compareNatural(b, a))
		require.Equal(t, a == b, compareNatural(a, b) == 0)
		if compareNatural(a, b) <= 0 && compareNatural(b, c) <= 0 {
			require.LessOrEqual(t, compareNatural(a, c), 0)
		}
		if x, y := naturalKey(a), naturalKey(b); x < y {
			require.Negative(t, compareNatural(a, b))
		}
	})
}

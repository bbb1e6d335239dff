package policy

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/Masterminds/semver/v3"
)

// inRange is the policy semver:<range>. Masterminds/semver reads the range and
// answers for one to three segments; what else a tag has (a fourth segment, a
// variant) is no part of the question.
type inRange struct {
	text    string
	asked   *semver.Constraints // as written
	lenient *semver.Constraints // the same, for workloads that run a pre-release
	pre     bool                // the range names a pre-release
}

// parseSemver compiles a range, or says what is wrong with it.
func parseSemver(text string) (strategy, string) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, `it needs a range: write "semver:^1.4", or "semver:*" for any version`
	}
	for _, word := range rangeWords(text) {
		if isFlavour(word) {
			return nil, fmt.Sprintf("a range names no variant, and %q reads as a pre-release there; leave it out: a workload stays on its variant anyway", word)
		}
	}
	canonical := canonicalRange(text)
	asked, err := semver.NewConstraint(canonical)
	if err != nil {
		return nil, fmt.Sprintf(`not a range (%s); write for example "^1.4", "~1.4.2", ">=1.4 <3" or "1.x || 2.x", each version with one to three numbers`, err)
	}
	lenient, err := semver.NewConstraint(canonical)
	if err != nil {
		return nil, err.Error()
	}
	lenient.IncludePrerelease = true
	return &inRange{text: text, asked: asked, lenient: lenient, pre: len(prereleasesIn(canonical)) > 0}, ""
}

// prereleasesIn returns what a range has after the "-" of its versions.
func prereleasesIn(text string) []string {
	var found []string
	for _, m := range regexp.MustCompile(`[0-9xX*]-([0-9A-Za-z][0-9A-Za-z.-]*)`).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// rangeWords returns the words among the pre-releases of a range.
func rangeWords(text string) []string {
	var words []string
	for _, pre := range prereleasesIn(text) {
		words = append(words, strings.FieldsFunc(pre, func(r rune) bool { return r == '-' })...)
	}
	return words
}

// canonicalRange writes pre-releases in a range as those of tags are written
// before they are compared: "-RC1" and "-rc1" as "-rc.1". Otherwise rc10 would
// come before rc9.
func canonicalRange(text string) string {
	re := regexp.MustCompile(`([0-9xX*]-)([A-Za-z]+)([0-9]*)`)
	return re.ReplaceAllStringFunc(text, func(s string) string {
		m := re.FindStringSubmatch(s)
		word := prereleaseWord(m[2], m[3] != "")
		if word == "" {
			return s
		}
		if m[3] == "" {
			return m[1] + word
		}
		return m[1] + word + "." + trimZeros(m[3])
	})
}

// refuses drops what is outside the range. A pre-release that the range did
// not ask for gets here only for a workload that runs one; then the release it
// leads up to must be in the range as well, so that 2.0.0-rc.1 is not in <2.
func (p *inRange) refuses(_, next *shape) string {
	v := semver.New(next.small(0), next.small(1), next.small(2), "", "")
	fits := false
	switch {
	case next.pre == "":
		fits = p.asked.Check(v)
	case p.pre:
		fits = p.asked.Check(semver.New(v.Major(), v.Minor(), v.Patch(), next.prerelease(), ""))
	default:
		fits = p.lenient.Check(v) && p.lenient.Check(semver.New(v.Major(), v.Minor(), v.Patch(), next.prerelease(), ""))
	}
	if fits {
		return ""
	}
	if next.pre != "" && p.pre && p.lenient.Check(v) {
		return "pre-release outside " + p.text
	}
	return "outside " + p.text
}

func (*inRange) compare(a, b *shape) int { return compareVersions(a, b) }

func (p *inRange) ownsPrereleases() bool { return p.pre }

// small returns segment i for the range, 0 where there is none. A number that
// is too large for the library becomes the largest it knows: no range can name
// a larger one, so the answer is the same.
func (s *shape) small(i int) uint64 {
	if i >= s.segments {
		return 0
	}
	n, err := strconv.ParseUint(s.numbers[i], 10, 64)
	if err != nil {
		return math.MaxUint64
	}
	return n
}

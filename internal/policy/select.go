package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Selection is what a Rule says about one workload.
type Selection struct {
	Tag    string       // the tag it should run, "" for none; what it runs when nothing newer fits
	Reason Reason       // why
	Detail string       // one sentence for people
	Tags   []TagVerdict // every distinct tag of the list: the selected one, the eligible ones, best first, then the dropped
}

// TagVerdict is what became of one tag.
type TagVerdict struct {
	Tag     string  `json:"tag"`
	Verdict Verdict `json:"verdict"`
	Why     string  `json:"why"` // a short phrase for people
}

// Reason says in one word why a Selection is what it is.
type Reason string

// The reasons of a Selection.
const (
	UpToDate    Reason = "up-to-date"   // what runs is the best that fits
	Update      Reason = "update"       // another tag should run
	NoCandidate Reason = "no-candidate" // no tag fits, nor does what runs
	Downgrade   Reason = "downgrade"    // only lower tags fit, and going down was not allowed
)

// Verdict says in one word what became of a tag.
type Verdict string

// The verdicts on a tag.
const (
	Selected Verdict = "selected" // the tag to run
	Eligible Verdict = "eligible" // fits, but is not the best
	Dropped  Verdict = "dropped"  // does not fit
)

// candidate is one tag under judgement.
type candidate struct {
	shape
	tag   string
	why   string // why it is dropped, "" while it is not
	cause string // why without the particulars, to count by
	rank  int    // how near it is to a tag that says little; see wish.rank
}

func (c *candidate) drop(cause, particulars string) {
	c.cause, c.why = cause, cause+particulars
}

// running is what the workload runs, as far as its tag tells.
type running struct {
	candidate
	comparable bool // its shape binds the candidates
	word       bool // it is bound as a word, not as a version
	hint       wish // for what is not comparable: what its tag still says
}

// Select says which of tags a workload that runs current should run. It does
// not depend on the order of tags; duplicates and empty tags are ignored.
// current counts as what runs even when tags does not have it. current may be
// empty: then nothing is known, and any version may be selected.
//
// Selecting again from the selected tag selects that tag.
func (r Rule) Select(current string, tags []string) Selection {
	if r.by == nil {
		return selectDigest(current, tags)
	}
	names := distinct(tags)
	cur := r.running(current)
	_, listed := slices.BinarySearch(names, current)
	curFits := cur.comparable && cur.why == "" && r.refusal(&cur, &cur.shape) == ""

	list := make([]candidate, len(names))
	for i, name := range names {
		list[i] = r.read(name)
	}
	dropCommitsOfDigits(list, &cur)
	var wishes []*candidate
	for i := range list {
		c := &list[i]
		r.judge(&cur, c)
		if c.why == "" && !cur.comparable {
			wishes = append(wishes, c)
		}
	}
	variants := settle(&cur, wishes)

	// Never down, and the best of the rest.
	var best, lower *candidate
	for i := range list {
		c := &list[i]
		if c.why != "" {
			continue
		}
		if r.isLower(&cur, c) && !r.spec.AllowDowngrade {
			c.drop("lower", " than "+current)
			if lower == nil || r.better(&cur, c, lower) < 0 {
				lower = c
			}
			continue
		}
		if best == nil || r.better(&cur, c, best) < 0 {
			best = c
		}
	}
	stays := curFits && (best == nil || r.by.compare(&best.shape, &cur.shape) <= 0 &&
		(listed || !r.spec.AllowDowngrade))

	s := Selection{}
	absent := ""
	if !listed && cur.comparable {
		absent = fmt.Sprintf("; the registry does not list %s", current)
	}
	switch {
	case stays:
		s.Tag, s.Reason = current, UpToDate
		s.Detail = "nothing newer than " + current + " fits" + absent
	case best != nil:
		s.Tag, s.Reason = best.tag, Update
		s.Detail = r.updateDetail(&cur, best) + absent
	case lower != nil:
		s.Reason = Downgrade
		s.Detail = fmt.Sprintf("%s does not fit, and what fits is lower (the best is %s); set allow-downgrade to go there%s", current, lower.tag, absent)
	case len(variants) > 0:
		s.Reason = NoCandidate
		s.Detail = fmt.Sprintf("tags of several kinds fit (%s), and %s does not say which; run one of them, or set include", strings.Join(variants, ", "), orNone(current))
	default:
		s.Reason = NoCandidate
		s.Detail = "no tag fits" + tally(list) + absent
	}
	s.Tags = r.verdicts(&cur, list, s.Tag)
	return s
}

func orNone(tag string) string {
	if tag == "" {
		return "a missing tag"
	}
	return tag
}

func (r Rule) updateDetail(cur *running, best *candidate) string {
	switch {
	case !cur.comparable && cur.isVersion():
		return fmt.Sprintf("%s is the best tag that fits", best.tag)
	case !cur.comparable:
		return fmt.Sprintf("%s is the best tag that fits; %s is no version, so nothing is below it", best.tag, orNone(cur.tag))
	case r.isLower(cur, best):
		return fmt.Sprintf("%s is the best tag that fits; it is lower than %s, and allow-downgrade is set", best.tag, cur.tag)
	}
	return fmt.Sprintf("%s is newer than %s", best.tag, cur.tag)
}

// running reads the tag that runs.
func (r Rule) running(current string) running {
	cur := running{candidate: r.read(current)}
	cur.tag = current
	switch {
	case current == "" || !isLegal(current) || isAttached(current):
		cur.shape = shape{}
		return cur
	case cur.text == "":
		// A filter dropped it, and there is no value to compare with. Its own
		// tag still says what not to go below; it says nothing about the shape
		// of what extract makes of other tags.
		cur.shape = parse(current)
		cur.comparable = r.spec.Extract == "" && cur.isVersion()
		if r.spec.Extract != "" {
			return cur
		}
	case isCommit(cur.text):
		cur.shape = shape{}
		return cur
	default:
		cur.comparable = cur.isVersion()
	}
	if !cur.comparable {
		if _, movable := movableWord(cur.text); movable && r.movesWords() {
			cur.comparable, cur.word = true, true
			if cur.cause == noVersion {
				cur.why, cur.cause = "", ""
			}
		} else {
			cur.hint = readWish(cur.text)
		}
	}
	return cur
}

const noVersion = "no version"

func (r Rule) movesWords() bool {
	_, ok := r.by.(alphabetical)
	return ok
}

// read applies to one tag what does not depend on the tag that runs.
func (r Rule) read(tag string) candidate {
	c := candidate{tag: tag}
	if !isLegal(tag) {
		c.drop("not a legal tag", "")
		return c
	}
	if isAttached(tag) {
		c.drop("signature, attestation or bill of materials", "")
		return c
	}
	value := tag
	if r.include != nil {
		if r.spec.Extract == "" {
			if !r.include.MatchString(tag) {
				c.drop("not matched by include", "")
				return c
			}
		} else {
			m := r.include.FindStringSubmatchIndex(tag)
			if m == nil {
				c.drop("not matched by include", "")
				return c
			}
			value = string(r.include.ExpandString(nil, r.spec.Extract, tag, m))
		}
	}
	if r.exclude != nil && r.exclude.MatchString(tag) {
		c.drop("matched by exclude", "")
	}
	if value == "" {
		c.drop("extract yields nothing", "")
		return c
	}
	if c.why == "" && isCommit(value) {
		c.drop("commit hash", "")
	}
	c.shape = parse(value)
	if c.why == "" && !c.isVersion() {
		c.drop(noVersion, "")
	}
	return c
}

// dropCommitsOfDigits drops numbers that are as long as the commit hashes in
// the list: one in 27 short hashes happens to have no letter, and 8412345 must
// not become the successor of 16.
func dropCommitsOfDigits(list []candidate, cur *running) {
	var hashes [129]bool
	any := false
	for i := range list {
		if c := &list[i]; isHash(c.text) && c.text[0] != 'g' {
			hashes[len(c.text)], any = true, true
		}
	}
	if !any || leadingDigits(cur.text) == cur.text && cur.text != "" && hashes[min(len(cur.text), 128)] {
		return
	}
	for i := range list {
		c := &list[i]
		if c.why == "" && c.segments == 1 && len(c.text) < len(hashes) && hashes[len(c.text)] &&
			len(c.numbers[0]) == len(c.text) && !isDate(c.text) {
			c.drop("commit hash", " (as long as the others here)")
		}
	}
}

// judge drops a candidate that must not follow what runs, other than for being
// lower.
func (r Rule) judge(cur *running, c *candidate) {
	if c.cause == noVersion && r.movesWords() && (cur.word || !cur.comparable) {
		rest, movable := movableWord(c.text)
		if curRest, _ := movableWord(cur.text); movable && (!cur.word || rest == curRest) {
			c.why, c.cause = "", ""
			return
		}
	}
	if c.why != "" {
		return
	}
	if cur.word {
		c.drop("a version, you run a word", "")
		return
	}
	if cur.comparable {
		if cause, particulars := otherShape(&cur.shape, &c.shape); cause != "" {
			c.drop(cause, particulars)
			return
		}
	}
	if why := r.refusal(cur, &c.shape); why != "" {
		c.drop(why, "")
	}
}

// refusal applies the policy itself, and the rule on pre-releases.
func (r Rule) refusal(cur *running, next *shape) string {
	if next.pre != "" {
		runsOne := cur.comparable && cur.pre != ""
		switch {
		case r.by.ownsPrereleases():
			// A range that names one says which are wanted, whatever runs.
			// Were that to change with what runs, so would the selected tag.
		case !runsOne:
			return "pre-release"
		case next.pre == cur.pre:
		case !onLadder(next.pre) || !onLadder(cur.pre):
			return "pre-release of another kind: " + next.pre + ", you run " + cur.pre
		case next.pre < cur.pre:
			return "pre-release less mature than " + cur.pre
		}
	}
	if !cur.comparable {
		return r.by.refuses(&shape{}, next)
	}
	return r.by.refuses(&cur.shape, next)
}

// isLower reports whether c is below what runs. By the alphabet 1.9 comes after
// 1.10; it is lower all the same.
func (r Rule) isLower(cur *running, c *candidate) bool {
	switch {
	case cur.comparable && r.by.compare(&c.shape, &cur.shape) < 0:
		return true
	case !cur.isVersion() || !c.isVersion():
		return false
	case cur.comparable:
		return compareVersions(&c.shape, &cur.shape) < 0
	}
	return cur.dated == c.dated && compareSegments(&c.shape, &cur.shape) < 0
}

// better orders candidates, the better one first. It leaves no ties: of tags
// that are equal it prefers the one that runs, then the more precise one, then
// the one written like what runs.
func (r Rule) better(cur *running, a, b *candidate) int {
	if c := r.by.compare(&b.shape, &a.shape); c != 0 {
		return c
	}
	if a.tag == b.tag {
		return 0
	}
	if a.tag == cur.tag {
		return -1
	}
	if b.tag == cur.tag {
		return 1
	}
	if c := cmp.Compare(b.segments, a.segments); c != 0 {
		return c
	}
	if a.prefix != b.prefix && !cur.comparable {
		if c := cmp.Compare(len(a.prefix), len(b.prefix)); c != 0 {
			return c
		}
	}
	padded := len(leadingZero(cur.numbers)) > 0
	if pa, pb := len(leadingZero(a.numbers)) > 0, len(leadingZero(b.numbers)) > 0; pa != pb {
		if pa == padded {
			return -1
		}
		return 1
	}
	return compareNatural(b.tag, a.tag)
}

// leadingZero returns the first number that is padded with zeros, or "".
func leadingZero(numbers []string) string {
	for _, n := range numbers {
		if len(n) > 1 && n[0] == '0' {
			return n
		}
	}
	return ""
}

// otherShape says why next is no sibling of cur, or "".
func otherShape(cur, next *shape) (cause, particulars string) {
	switch {
	case cur.prefix != next.prefix:
		return "other prefix", ": " + orWord(next.prefix) + ", you run " + orWord(cur.prefix)
	case cur.variant != next.variant:
		return "other variant", ": " + orWord(next.written) + ", you run " + orWord(cur.written)
	case cur.dated == 0 && next.dated != 0:
		return "a date, you run a version", ""
	case cur.dated != 0 && next.dated == 0:
		return "a version, you run a date", ""
	case cur.dated != next.dated:
		return "a date of another length", ""
	case cur.segments != next.segments:
		noun := " segments, you run "
		if next.segments == 1 {
			noun = " segment, you run "
		}
		return strconv.Itoa(next.segments) + noun + strconv.Itoa(cur.segments), ""
	}
	return "", ""
}

func orWord(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// verdicts lists every tag: the selected one, the eligible ones, best first,
// then the dropped from high to low.
func (r Rule) verdicts(cur *running, list []candidate, selected string) []TagVerdict {
	type entry struct {
		*candidate
		key uint64
	}
	order := make([]entry, len(list))
	for i := range list {
		order[i] = entry{&list[i], naturalKey(list[i].tag)}
	}
	slices.SortFunc(order, func(a, b entry) int {
		switch x, y := a.why == "", b.why == ""; {
		case a.candidate == b.candidate:
			return 0
		case a.tag == selected:
			return -1
		case b.tag == selected:
			return 1
		case x && y:
			return r.better(cur, a.candidate, b.candidate)
		case x:
			return -1
		case y:
			return 1
		case a.key != b.key:
			return cmp.Compare(b.key, a.key)
		}
		return compareNatural(b.tag, a.tag)
	})
	rows := make([]TagVerdict, len(order))
	for i, c := range order {
		row := TagVerdict{Tag: c.tag, Verdict: Dropped, Why: c.why}
		switch {
		case c.tag == selected && c.tag == cur.tag:
			row.Verdict, row.Why = Selected, "what runs, and nothing newer fits"
		case c.tag == selected:
			row.Verdict, row.Why = Selected, "the best that fits"
		case c.why == "" && c.tag == cur.tag:
			row.Verdict, row.Why = Eligible, "what runs; "+selected+" is newer"
		case c.why == "":
			row.Verdict, row.Why = Eligible, "fits, but "+selected+" comes first"
		}
		rows[i] = row
	}
	return rows
}

// tally says for people what most tags were dropped for.
func tally(list []candidate) string {
	if len(list) == 0 {
		return ": the list of tags is empty"
	}
	counts := map[string]int{}
	for i := range list {
		counts[list[i].cause]++
	}
	causes := make([]string, 0, len(counts))
	for cause := range counts {
		causes = append(causes, cause)
	}
	slices.SortFunc(causes, func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
	})
	const shown = 3
	var b strings.Builder
	fmt.Fprintf(&b, "; of %d, ", len(list))
	for i, cause := range causes {
		if i == shown {
			b.WriteString(", ...")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d: %s", counts[cause], cause)
	}
	return b.String()
}

// distinct returns the tags in order, each once, without the empty one.
func distinct(tags []string) []string {
	names := slices.Clone(tags)
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) > 0 && names[0] == "" {
		names = names[1:]
	}
	return names
}

package policy

import (
	"cmp"
	"slices"
	"strings"
)

// wish is what a tag without a version still says: latest says nothing,
// latest-alpine and alpine say "-alpine", jammy says "-jammy".
type wish struct {
	variant string // numbers as "#"
	written string // as people write it
	prefix  string // the same, written before a version: "amd64-"
	strict  bool   // the variant is a known one, so tags without it will not do
}

// readWish reads a tag that is no version.
func readWish(text string) wish {
	var kept []string
	strict := false
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == '-' || r == '_' }) {
		if isMoving(part) || isHash(part) || prereleaseWord(part, false) != "" {
			continue
		}
		kept = append(kept, part)
		strict = strict || isFlavour(part)
	}
	if len(kept) == 0 {
		return wish{}
	}
	name := strings.Join(kept, "-")
	return wish{variant: shapeOf("-" + name), written: "-" + name, prefix: name + "-", strict: strict}
}

// The ranks of candidates for a workload whose tag is no version. Those of the
// lowest rank that any candidate has are kept. Versions come before dates, for
// images that have both (alpine: 3.20, and 20240923 for edge) mean versions.
const (
	asWished = iota
	asWishedDated
	asWishedBefore // amd64-1.2.3, release-1.2.3
	plain
	plainDated
	someFamily // of one kind; several are ambiguous
	someWord
	unwanted
)

// rank says how near a candidate is to the wish.
func (w wish) rank(s *shape) int {
	if !s.isVersion() {
		if w.variant != "" {
			return unwanted
		}
		if rest, _ := movableWord(s.text); rest != "" {
			return unwanted
		}
		return someWord
	}
	bare := s.prefix == "" || s.prefix == "v" || s.prefix == "V"
	dated := 0
	if s.dated > 0 {
		dated = 1
	}
	before := strings.TrimRight(s.prefix, "v")
	switch {
	case bare && s.variant == w.variant:
		return asWished + dated
	case w.variant == "" && s.variant == "" && isReleased(strings.TrimRight(before, "-_.")):
		return asWishedBefore
	case w.variant == "":
		return someFamily
	case before == w.prefix && s.variant == "":
		return asWishedBefore
	case before == w.prefix:
		return someFamily
	case !w.strict && bare && s.variant == "":
		return plain + dated
	}
	return unwanted
}

// settle keeps, of the candidates for a workload whose tag is no version, those
// of the best rank. Where that leaves several kinds it keeps none and returns
// the kinds.
func settle(cur *running, list []*candidate) []string {
	best := unwanted
	for _, c := range list {
		c.rank = cur.hint.rank(&c.shape)
		best = min(best, c.rank)
	}
	type kind struct{ prefix, variant string }
	var kinds []kind
	if best == someFamily {
		seen := map[kind]bool{}
		for _, c := range list {
			if k := (kind{c.prefix, c.variant}); c.rank == best && !seen[k] {
				seen[k] = true
				kinds = append(kinds, k)
			}
		}
		slices.SortFunc(kinds, func(a, b kind) int {
			return cmp.Or(cmp.Compare(len(a.variant), len(b.variant)), strings.Compare(a.variant, b.variant), strings.Compare(a.prefix, b.prefix))
		})
		// The others may all be variants of one: RELEASE.<time>.fips of
		// RELEASE.<time>. That one it is.
		base := kinds[0]
		if !slices.ContainsFunc(kinds[1:], func(k kind) bool {
			rest, found := strings.CutPrefix(k.variant, base.variant)
			return k.prefix != base.prefix || !found || rest == "" || !isSeparator(rest[0])
		}) {
			kinds = nil
			for _, c := range list {
				if c.rank == best && c.variant != base.variant {
					c.rank = unwanted
				}
			}
		}
	}
	runs := orWord(cur.hint.written)
	if cur.tag != "" {
		runs = cur.tag
	}
	for _, c := range list {
		switch {
		case c.rank == best && best != unwanted && len(kinds) == 0:
		case c.rank == best && best != unwanted:
			c.drop("one of several kinds", ": "+runs+" does not say which")
		case !c.isVersion():
			c.drop(noVersion, "")
		case c.dated > 0 && c.variant == cur.hint.variant:
			c.drop("a date, and there are versions", "")
		case strings.TrimLeft(c.prefix, "vV") == "" && c.variant != cur.hint.variant:
			c.drop("other variant", ": "+orWord(c.written)+", you run "+runs)
		default:
			c.drop("other prefix", ": "+orWord(c.prefix)+", you run "+runs)
		}
	}
	var names []string
	for _, k := range kinds {
		if len(names) == 5 {
			names = append(names, "...")
			break
		}
		names = append(names, k.prefix+"*"+k.variant)
	}
	return names
}

// movableWord reports whether a tag is a word that another may follow by the
// alphabet (jammy, noble-slim), and what comes after the word. A word that
// names a variant or whatever is current is none.
func movableWord(text string) (rest string, ok bool) {
	if text == "" || isCommit(text) || !isLetter(text[0]) {
		return "", false
	}
	end := tokenEnd(text, 0)
	word := text[:end]
	if strings.ContainsAny(word, "0123456789") || isMoving(word) || isFlavour(word) && !isCodename(word) {
		return "", false
	}
	return text[end:], true
}

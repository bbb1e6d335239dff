package policy

// level is the policies patch, minor and major: the highest tag that leaves
// the first segments as they are.
type level struct {
	name string
	keep int // how many leading segments stay
}

// refuses drops what changes a segment that stays. A workload without a
// version has no segments to keep.
func (l level) refuses(cur, next *shape) string {
	if !cur.isVersion() {
		return ""
	}
	keep := min(l.keep, cur.segments)
	for i := range keep {
		if compareNumbers(cur.number(i), next.number(i)) != 0 {
			outside := "outside "
			for j := range keep {
				outside += cur.numbers[j] + "."
			}
			if keep == cur.segments {
				return outside[:len(outside)-1]
			}
			return outside + "x"
		}
	}
	return ""
}

func (level) compare(a, b *shape) int { return compareVersions(a, b) }

func (level) ownsPrereleases() bool { return false }

package policy

import (
	"cmp"
	"strings"
)

// compareVersions orders by version, then pre-release (any comes before its
// release), then the numbers of the variant. Missing segments count as zero.
func compareVersions(a, b *shape) int {
	if c := compareSegments(a, b); c != 0 {
		return c
	}
	if c := comparePrereleases(a, b); c != 0 {
		return c
	}
	return compareLists(a.numbers[a.segments:], b.numbers[b.segments:])
}

func compareSegments(a, b *shape) int {
	for i := range max(a.segments, b.segments) {
		if c := compareNumbers(a.number(i), b.number(i)); c != 0 {
			return c
		}
	}
	return 0
}

// comparePrereleases orders as semantic versioning does: by name, then by
// number, and more numbers come later. But builds that lead up to no release
// (dev, nightly) come before all that do.
func comparePrereleases(a, b *shape) int {
	switch {
	case a.pre == "" && b.pre == "":
		return 0
	case a.pre == "":
		return 1
	case b.pre == "":
		return -1
	}
	if a.pre != b.pre {
		if x := onLadder(a.pre); x != onLadder(b.pre) {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a.pre, b.pre)
	}
	return compareLists(a.preNums, b.preNums)
}

func compareLists(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if c := compareNumbers(a[i], b[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// compareNumbers orders digits as numbers of any size; "" is zero.
func compareNumbers(a, b string) int {
	for len(a) > 0 && a[0] == '0' {
		a = a[1:]
	}
	for len(b) > 0 && b[0] == '0' {
		b = b[1:]
	}
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

// compareNatural orders any two texts, their numbers as numbers. It is for
// display, and for ties.
func compareNatural(a, b string) int {
	i, j := 0, 0
	for i < len(a) && j < len(b) {
		if isDigit(a[i]) && isDigit(b[j]) {
			x, y := leadingDigits(a[i:]), leadingDigits(b[j:])
			if c := compareNumbers(x, y); c != 0 {
				return c
			}
			i, j = i+len(x), j+len(y)
			continue
		}
		if c := cmp.Compare(a[i], b[j]); c != 0 {
			return c
		}
		i, j = i+1, j+1
	}
	if c := cmp.Compare(len(a)-i, len(b)-j); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

// naturalKey returns the beginning of a text as a number: where two of them
// differ, they order the texts as compareNatural does, much faster.
func naturalKey(s string) uint64 {
	const most = 1<<16 - 1
	key, room := uint64(0), 64
	for i := 0; i < len(s); {
		if !isDigit(s[i]) {
			if room < 8 {
				break
			}
			room -= 8
			key |= uint64(s[i]) << room
			i++
			continue
		}
		if room < 24 {
			if room >= 8 {
				key |= uint64('0') << (room - 8) // a number, whichever
			}
			break
		}
		value := uint64(0)
		for ; i < len(s) && isDigit(s[i]); i++ {
			value = min(value*10+uint64(s[i]-'0'), most)
		}
		room -= 24
		key |= (uint64('0')<<16 | value) << room
		if value == most {
			break
		}
	}
	return key
}

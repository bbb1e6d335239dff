package policy

import (
	"strings"
)

// shape is a tag, or what extract made of one, taken apart:
//
//	v3.13.0rc2-alpine3.20     prefix "v", version 3.13.0, pre-release rc 2,
//	                          variant "-alpine#.#" with the numbers 3 and 20
//
// Two tags are comparable when prefix, number of segments and variant agree.
type shape struct {
	text     string   // all of it
	prefix   string   // what is before the version, commit hashes as "*"
	numbers  []string // the segments, then the numbers of the variant; digits as written
	segments int      // how many of numbers are the version; 0: no version
	dated    int      // how many digits the first segment has if it is a date or a timestamp, else 0
	pre      string   // the pre-release's name, canonical: "rc", "beta", "dev", ...
	preNums  []string // its numbers
	variant  string   // what follows the version and pre-release, numbers as "#", commit hashes as "*"
	written  string   // the same with its digits
}

func (s *shape) isVersion() bool { return s.segments > 0 }

// number returns segment i, "" (which counts as zero) where there is none.
func (s *shape) number(i int) string {
	if i >= s.segments {
		return ""
	}
	return s.numbers[i]
}

// prerelease returns the pre-release as a semantic version writes it.
func (s *shape) prerelease() string {
	if len(s.preNums) == 0 {
		return s.pre
	}
	var b strings.Builder
	b.WriteString(s.pre)
	for _, n := range s.preNums {
		b.WriteByte('.')
		b.WriteString(trimZeros(n))
	}
	return b.String()
}

// parse takes a tag apart. Everything parses: what has no version is a word.
func parse(text string) shape {
	s := shape{text: text}
	at := versionStart(text)
	if at < 0 {
		return s
	}
	s.prefix = hideHashes(text[:at])

	// The version: numbers with dots between them.
	runs := 0
	for i := at; i < len(text); i++ {
		if isDigit(text[i]) && !isDigit(text[i-min(i, 1)]) || i == at {
			runs++
		}
	}
	s.numbers = make([]string, 0, runs)
	for {
		end := at
		for end < len(text) && isDigit(text[end]) {
			end++
		}
		s.numbers = append(s.numbers, text[at:end])
		at = end
		if at+1 >= len(text) || text[at] != '.' || !isDigit(text[at+1]) {
			break
		}
		at++
	}
	s.segments = len(s.numbers)
	if n := s.numbers[0]; isDate(n) || isTimestamp(n) {
		s.dated = len(n)
	}
	if at < len(text) {
		s.parseRest(text[at:])
	}
	return s
}

// parseRest reads what follows the version: a pre-release and a variant, in
// either order.
func (s *shape) parseRest(rest string) {
	variant, written := make([]byte, 0, 128), make([]byte, 0, 128)
	keep := func(shape, as string) {
		variant = append(variant, shape...)
		written = append(written, as...)
	}
	number := func(separator, digits string) {
		variant = append(append(variant, separator...), '#')
		written = append(append(written, separator...), digits...)
	}
	afterPre := false // nothing but the pre-release since
	start := true     // of a token, or right after the version
	for at := 0; at < len(rest); {
		sep := at
		for at < len(rest) && isSeparator(rest[at]) {
			at++
		}
		separator := rest[sep:at]
		if separator != "" {
			start = true
		}
		if at == len(rest) {
			keep(separator, separator)
			break
		}
		if separator != "" {
			if n := machineName(rest[at:]); n > 0 {
				keep(rest[sep:at+n], rest[sep:at+n])
				at, afterPre, start = at+n, false, false
				continue
			}
			end := tokenEnd(rest, at)
			if token := rest[at:end]; isHash(token) {
				if !afterPre { // "-dev-1a2b3c4": the commit is that of the pre-release
					keep(separator, separator)
					keep("*", token)
				}
				at = end
				continue
			} else if afterPre && leadingDigits(token) == token {
				s.preNums = append(s.preNums, token)
				at = end
				continue
			}
		}

		from := at
		if isDigit(rest[at]) {
			for at < len(rest) && isDigit(rest[at]) {
				at++
			}
			number(separator, rest[from:at])
			s.numbers = append(s.numbers, rest[from:at])
			afterPre, start = false, false
			continue
		}
		for at < len(rest) && !isDigit(rest[at]) && !isSeparator(rest[at]) {
			at++
		}
		numbered := at < len(rest) && isDigit(rest[at])
		ends := at == len(rest) || numbered || isSeparator(rest[at])
		if start && ends && s.pre == "" {
			if word := prereleaseWord(rest[from:at], numbered); word != "" {
				s.pre = word
				if numbered {
					num := at
					for at < len(rest) && isDigit(rest[at]) {
						at++
					}
					s.preNums = append(s.preNums, rest[num:at])
				}
				afterPre, start = true, false
				continue
			}
		}
		keep(rest[sep:at], rest[sep:at])
		afterPre, start = false, false
	}
	// Mostly the text itself will do, and costs nothing.
	if s.written = rest; string(written) != rest {
		s.written = string(written)
	}
	if s.variant = s.written; string(variant) != s.written {
		s.variant = string(variant)
	}
	// The build of Windows must be that of the host, so its number is a name.
	if strings.Contains(s.variant, "nanoserver") || strings.Contains(s.variant, "windowsservercore") || strings.Contains(s.variant, "ltsc#") {
		s.variant, s.numbers = s.written, s.numbers[:s.segments]
	}
}

// versionStart returns where the version begins, or -1. That is the first part
// between dashes that begins with a digit or with a "v" and a digit
// (bookworm-20241001, RELEASE.2024-10-01), else the first digit (php8.2, b4000).
// Names of architectures and commit hashes are passed over.
func versionStart(text string) int {
	first := -1 // the first digit anywhere
	for at := 0; at < len(text); {
		if n := machineName(text[at:]); n > 0 {
			at += n
		} else if end := dashEnd(text, at); isHash(text[at:end]) {
			at = end
		} else {
			if startsVersion(text[at:]) {
				return skipV(text, at)
			}
			for i := at; i < end; i++ {
				if isDigit(text[i]) {
					if first < 0 {
						first = i
					}
					break
				}
				if text[i] == '.' && i > at && isLetter(text[i-1]) && startsVersion(text[i+1:]) {
					return skipV(text, i+1)
				}
			}
			at = end
		}
		for at < len(text) && isSeparator(text[at]) {
			at++
		}
	}
	if first >= 0 {
		// latest-alpine3.20 names a variant, and no version.
		switch word, _, _ := strings.Cut(text[:first], "-"); word {
		case "latest", "stable", "lts", "current", "mainline", "default":
			return -1
		}
	}
	return first
}

func startsVersion(s string) bool {
	return len(s) > 0 && isDigit(s[0]) || len(s) > 1 && (s[0] == 'v' || s[0] == 'V') && isDigit(s[1])
}

func skipV(text string, at int) int {
	if !isDigit(text[at]) {
		at++
	}
	return at
}

// dashEnd returns where the part of text that begins at at ends, dots included.
func dashEnd(text string, at int) int {
	for at < len(text) && text[at] != '-' && text[at] != '_' {
		at++
	}
	return at
}

// tokenEnd returns where the part of text that begins at at ends.
func tokenEnd(text string, at int) int {
	for at < len(text) && !isSeparator(text[at]) {
		at++
	}
	return at
}

// hideHashes writes "*" for the commit hashes in a prefix (main-1a2b3c4-).
func hideHashes(prefix string) string {
	if len(prefix) < 8 {
		return prefix
	}
	var b strings.Builder
	for at := 0; at < len(prefix); {
		end := tokenEnd(prefix, at)
		if isHash(prefix[at:end]) {
			b.WriteByte('*')
		} else {
			b.WriteString(prefix[at:end])
		}
		for at = end; at < len(prefix) && isSeparator(prefix[at]); at++ {
			b.WriteByte(prefix[at])
		}
	}
	return b.String()
}

// shapeOf writes a variant's numbers as "#".
func shapeOf(variant string) string {
	v := parse("0" + variant)
	return v.variant
}

// isLegal reports whether a registry could have a tag of that name (OCI
// distribution specification, "Pulling manifests").
func isLegal(tag string) bool {
	if tag == "" || len(tag) > 128 || tag[0] == '.' || tag[0] == '-' {
		return false
	}
	for i := 0; i < len(tag); i++ {
		if c := tag[i]; !isDigit(c) && !isLetter(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// isAttached reports whether a tag is one of those that stand in for the
// referrers of an image: "sha256-<64 hex digits>", with cosign's .sig, .att and
// .sbom or without (the fallback of the OCI distribution specification).
func isAttached(tag string) bool {
	for _, algorithm := range [...]struct {
		name   string
		digits int
	}{{"sha256-", 64}, {"sha512-", 128}} {
		rest, found := strings.CutPrefix(tag, algorithm.name)
		// A tag has at most 128 characters, so that of a sha512 is cut off.
		digits := min(algorithm.digits, 128-len(algorithm.name))
		if !found || len(rest) < digits {
			continue
		}
		hex := true
		for i := range digits {
			hex = hex && isHex(rest[i])
		}
		if hex && (len(rest) == digits || isSeparator(rest[digits])) {
			return true
		}
	}
	for _, end := range [...]string{".sig", ".att", ".sbom"} {
		if strings.HasSuffix(tag, end) {
			return true
		}
	}
	return false
}

// isCommit reports whether a tag is nothing but a commit hash.
func isCommit(tag string) bool {
	for _, prefix := range [...]string{"sha-", "sha_", "git-", "commit-", "rev-"} {
		if rest, found := strings.CutPrefix(tag, prefix); found && isHexRun(rest) {
			return true
		}
	}
	return isHash(tag) || (len(tag) == 40 || len(tag) == 64) && isHexRun(tag)
}

// isHash reports whether a token looks like a commit: 7 to 64 hex digits,
// letters and figures both, perhaps after the "g" of git describe.
func isHash(token string) bool {
	if len(token) > 0 && token[0] == 'g' {
		token = token[1:]
	}
	if len(token) < 7 || len(token) > 64 {
		return false
	}
	letters, digits := 0, 0
	for i := 0; i < len(token); i++ {
		switch c := token[i]; {
		case isDigit(c):
			digits++
		case c >= 'a' && c <= 'f':
			letters++
		default:
			return false
		}
	}
	// 20241001b2 is a date and a beta.
	return letters > 0 && digits > 0 && !(isDate(leadingDigits(token)) && len(token) < 16)
}

// isHexRun reports whether s has 7 to 64 hex digits and nothing else.
func isHexRun(s string) bool {
	if len(s) < 7 || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isHex(s[i]) {
			return false
		}
	}
	return true
}

// isDate reports whether digits begin with a day written as YYYYMMDD.
func isDate(digits string) bool {
	if len(digits) < 8 || len(digits) > 17 || digits[:2] != "19" && digits[:2] != "20" {
		return false
	}
	month, day := digits[4:6], digits[6:8]
	return month >= "01" && month <= "12" && day >= "01" && day <= "31"
}

// isTimestamp reports whether digits are seconds or milliseconds since 1970,
// between 2001 and 2033.
func isTimestamp(digits string) bool {
	return (len(digits) == 10 || len(digits) == 13) && digits[0] == '1'
}

func isDigit(c byte) bool     { return c >= '0' && c <= '9' }
func isLetter(c byte) bool    { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isHex(c byte) bool       { return isDigit(c) || c >= 'a' && c <= 'f' }
func isSeparator(c byte) bool { return c == '-' || c == '_' || c == '.' }

func leadingDigits(s string) string {
	end := 0
	for end < len(s) && isDigit(s[end]) {
		end++
	}
	return s[:end]
}

// trimZeros writes a number without leading zeros.
func trimZeros(digits string) string {
	for len(digits) > 1 && digits[0] == '0' {
		digits = digits[1:]
	}
	return digits
}

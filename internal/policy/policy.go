// Package policy says which tag of a repository a workload should run.
//
// It is pure: tags in, a [Selection] out, no clock, no network. A [Spec] is
// what people write, [Parse] checks and compiles it into a [Rule], and
// [Rule.Select] applies that to a list of tags. Every tag of the list comes
// back with a verdict and a short reason, so that a surprise can be explained.
//
// Each policy has its own file (digest.go, semver.go, levels.go, newest.go,
// alphabetical.go). What all policies keep to (variants, segments, prefixes,
// pre-releases, never down) is in select.go, and how a tag is taken apart is in
// tag.go.
package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Spec is a policy as people write it.
type Spec struct {
	// Policy is "digest", "semver:<range>", "patch", "minor", "major",
	// "newest" or "alphabetical".
	Policy string
	// Include and Exclude are regular expressions on tags (RE2, found anywhere
	// in the tag unless anchored). Empty means none.
	Include, Exclude string
	// Extract is a template over the groups of Include ("$1.$2", "${name}").
	// What it yields is compared in the place of the tag. Empty means none.
	Extract string
	// AllowDowngrade lets a lower tag be selected when it is the best that
	// fits.
	AllowDowngrade bool
}

// Rule is a compiled Spec. The zero Rule is the digest policy. A Rule does not
// change and may be shared.
type Rule struct {
	spec             Spec
	include, exclude *regexp.Regexp
	by               strategy // nil for digest
}

// strategy is what one policy adds to the rules that all policies keep to.
type strategy interface {
	// refuses says in a few words why next may not follow cur, or "" when it
	// may. cur has no version when nothing is known about what runs; it is
	// equal to next when the question is whether what runs fits.
	refuses(cur, next *shape) string
	// compare orders two tags that passed the common rules: below zero when a
	// is lower than b.
	compare(a, b *shape) int
	// ownsPrereleases reports whether refuses alone decides which pre-releases
	// are wanted, because the policy as written names one.
	ownsPrereleases() bool
}

// FieldError is one fault in a Spec.
type FieldError struct {
	Key     string // "policy", "include", "exclude" or "extract"
	Value   string // as written
	Problem string // what is wrong, and the remedy
}

// Error returns the key, the value and the remedy on one line.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%s %q: %s", e.Key, e.Value, e.Problem)
}

// Parse checks and compiles a Spec. Its error joins every fault found; each is
// a [*FieldError] that names the key.
func Parse(s Spec) (Rule, error) {
	r := Rule{spec: s}
	var faults []error
	fault := func(key, value, problem string) {
		faults = append(faults, &FieldError{Key: key, Value: value, Problem: problem})
	}

	by, problem := parsePolicy(s.Policy)
	if problem != "" {
		fault("policy", s.Policy, problem)
	}
	r.by = by

	includeFine := true
	if s.Include != "" {
		var err error
		if r.include, err = regexp.Compile(s.Include); err != nil {
			includeFine = false
			fault("include", s.Include, patternProblem(err))
		}
	}
	if s.Exclude != "" {
		var err error
		if r.exclude, err = regexp.Compile(s.Exclude); err != nil {
			fault("exclude", s.Exclude, patternProblem(err))
		}
	}
	switch {
	case s.Extract == "" || !includeFine:
	case r.include == nil:
		fault("extract", s.Extract, "it is a template over the groups of include; set include as well")
	default:
		if problem := templateProblem(s.Extract, r.include); problem != "" {
			fault("extract", s.Extract, problem)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return Rule{}, err
	}
	return r, nil
}

// parsePolicy returns the strategy of a policy, nil for digest, or what is
// wrong with it.
func parsePolicy(s string) (strategy, string) {
	const known = "digest, semver:<range>, patch, minor, major, newest, alphabetical"
	name, arg, hasArg := strings.Cut(s, ":")
	name = strings.TrimSpace(name)
	if hasArg && name == "semver" {
		return parseSemver(arg)
	}
	var by strategy
	switch name {
	case "digest":
	case "semver":
		return nil, `it needs a range: write "semver:^1.4", or "semver:*" for any version`
	case "patch":
		by = level{name: name, keep: 2}
	case "minor":
		by = level{name: name, keep: 1}
	case "major":
		by = level{name: name, keep: 0}
	case "newest":
		by = newest{}
	case "alphabetical":
		by = alphabetical{}
	case "":
		return nil, "it is empty; write one of " + known
	default:
		return nil, "no such policy; write one of " + known
	}
	if hasArg {
		return nil, fmt.Sprintf("%s takes no argument; write %q, or \"semver:<range>\" for a range", name, name)
	}
	return by, ""
}

// patternProblem words an error of the regular expression compiler.
func patternProblem(err error) string {
	return strings.TrimPrefix(err.Error(), "error parsing regexp: ") +
		"; correct the regular expression (RE2: no look-around, no back-references)"
}

// templateProblem says what is wrong with a template over the groups of re. It
// reads "$" as [regexp.Regexp.Expand] does, which yields nothing for a group
// that does not exist instead of complaining.
func templateProblem(template string, re *regexp.Regexp) string {
	refers := false
	for rest := template; ; {
		_, after, found := strings.Cut(rest, "$")
		if !found {
			break
		}
		rest = after
		if strings.HasPrefix(rest, "$") {
			rest = rest[1:]
			continue
		}
		name, brace := "", strings.HasPrefix(rest, "{")
		if brace {
			end := strings.IndexByte(rest, '}')
			if end < 0 {
				return `a "${" is never closed; write "${1}" or "${name}"`
			}
			name, rest = rest[1:end], rest[end+1:]
		} else {
			end := 0
			for end < len(rest) && (isLetter(rest[end]) || isDigit(rest[end]) || rest[end] == '_') {
				end++
			}
			name, rest = rest[:end], rest[end:]
		}
		if name == "" {
			return `a "$" without a group; write "$1" or "${name}", and "$$" for a dollar sign`
		}
		if !hasGroup(re, name) {
			hint := ""
			if digits := leadingDigits(name); digits != "" && digits != name {
				hint = fmt.Sprintf("; for group %s followed by %q write \"${%s}%s\"", digits, name[len(digits):], digits, name[len(digits):])
			}
			return fmt.Sprintf("include has no group %q; it has %s%s", name, groups(re), hint)
		}
		refers = true
	}
	if !refers {
		return `it refers to no group of include, so all tags would be equal; write "$1" or "${name}"`
	}
	return ""
}

// hasGroup reports whether re has a group of that number or name.
func hasGroup(re *regexp.Regexp, name string) bool {
	if leadingDigits(name) == name {
		n := 0
		for i := 0; i < len(name); i++ {
			if n = n*10 + int(name[i]-'0'); n > re.NumSubexp() {
				return false
			}
		}
		return true
	}
	return re.SubexpIndex(name) >= 0
}

// groups lists the groups of re for people.
func groups(re *regexp.Regexp) string {
	if re.NumSubexp() == 0 {
		return "none: put brackets around the part to compare"
	}
	var b strings.Builder
	for i, name := range re.SubexpNames() {
		if i == 0 {
			continue
		}
		if i > 1 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "$%d", i)
		if name != "" {
			fmt.Fprintf(&b, " (${%s})", name)
		}
	}
	return b.String()
}

// String returns the policy as written.
func (r Rule) String() string {
	if r.spec.Policy == "" {
		return "digest"
	}
	return r.spec.Policy
}

// NeedsTags reports whether Select looks at the list of tags at all. It does
// not for the digest policy, so the registry need not be asked for it.
func (r Rule) NeedsTags() bool { return r.by != nil }

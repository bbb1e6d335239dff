package config

import (
	"regexp"
	"strings"
)

// glob is a pattern for names: * stands for any text, slashes included, and ?
// for any one character. All else stands for itself, capitals too.
type glob struct {
	pattern string
	re      *regexp.Regexp
}

func newGlob(pattern string) glob {
	expr := regexp.QuoteMeta(pattern)
	expr = strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(expr)
	// Quoted, every pattern is a valid expression; RE2 takes linear time.
	return glob{pattern, regexp.MustCompile(`(?s)\A` + expr + `\z`)}
}

func (g glob) fits(s string) bool { return g.re.MatchString(s) }

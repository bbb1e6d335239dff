package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong, where it is, and what to do about it.
type Problem struct {
	// File is the configuration file, "environment", or the id of the workload
	// on which the key is written.
	File string
	// Line counts from 1; 0 when there is none.
	Line int
	// Key is the path in the file ("rules[0].match.name"), the variable, or
	// "label updaterd.policy". Empty: the file as a whole.
	Key string
	// Text says what is wrong and, after a semicolon, the remedy.
	Text string
}

// Error is "file:line: key: what is wrong; remedy".
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	return b.String() + ": " + p.Text
}

// Problems are all that is wrong, a line each.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// oneLine is Problems as the detail of one workload: on one line, and without
// the workload's id, which stands beside it already.
type oneLine struct {
	id       string
	problems Problems
}

func (o oneLine) Error() string {
	texts := make([]string, len(o.problems))
	for i, p := range o.problems {
		texts[i] = p.Error()
		if p.File == o.id {
			texts[i] = p.Key + ": " + p.Text
		}
	}
	return strings.Join(texts, "; also ")
}

func (o oneLine) Unwrap() error { return o.problems }

// sorted puts problems in the order in which a person mends them, each once: a
// bad key of the defaults is found again below every rule.
func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	return slices.Compact(ps)
}

// err is ps as an error, nil when there are none.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps.sorted()
}

// meant suggests the known word that a mistyped one is closest to, as
// "; did you mean x?", or lists the known ones when none is close.
func meant(word string, known []string) string {
	best, distance := "", 0
	for _, k := range known {
		d := editDistance(strings.ToLower(word), k)
		if best == "" || d < distance {
			best, distance = k, d
		}
	}
	if best != "" && distance <= 1+len(best)/4 {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return "; known are " + strings.Join(known, ", ")
}

// editDistance is Levenshtein's, in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

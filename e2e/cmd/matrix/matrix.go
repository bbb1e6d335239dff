package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Key, Value string // of an "attr"
}

// test is what became of one test.
type test struct {
	name    string // "TestSwap/policy_always"
	outcome string // "pass", "fail", "skip"; "" when it did not end
	output  []string
	attrs   map[string]string
}

// results are one run of the suites on one engine.
type results struct {
	engine string // what it says of itself
	tests  map[string]*test
	broken []string // packages that failed, or were not built
	built  []string // what the compiler said
}

// read reads a run. Lines that are no events are an error: something else than
// the tests spoke.
func read(r io.Reader) (results, error) {
	res := results{tests: map[string]*test{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return results{}, fmt.Errorf("%q is no line of go test -json: %w", lines.Text(), err)
		}
		if e.Test == "" {
			switch e.Action {
			case "fail", "build-fail":
				res.broken = append(res.broken, cmp.Or(e.Package, e.ImportPath))
			case "build-output":
				res.built = append(res.built, e.Output)
			}
			continue
		}
		key := e.Package + " " + e.Test
		t := res.tests[key]
		if t == nil {
			t = &test{name: e.Test, attrs: map[string]string{}}
			res.tests[key] = t
		}
		switch e.Action {
		case "output":
			t.output = append(t.output, e.Output)
		case "attr":
			t.attrs[e.Key] = e.Value
			if e.Key == "engine" {
				res.engine = e.Value
			}
		case "pass", "fail", "skip":
			t.outcome = e.Action
		}
	}
	return res, lines.Err()
}

// verdict is what is wrong with a run: what failed, and what was left out
// without a reason.
func (r results) verdict() error {
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(r.tests)) {
		t := r.tests[key]
		switch {
		case t.outcome == "fail" && !strings.Contains(t.name, "/"):
			errs = append(errs, fmt.Errorf("%s failed", t.name))
		case t.outcome == "":
			errs = append(errs, fmt.Errorf("%s did not end", t.name))
		case t.outcome == "skip" && t.attrs["does-not-apply"] == "":
			errs = append(errs, fmt.Errorf("%s was skipped without a reason", t.name))
		}
	}
	for _, p := range slices.Compact(slices.Sorted(slices.Values(r.broken))) {
		errs = append(errs, fmt.Errorf("package %s failed", p))
	}
	if r.engine == "" {
		errs = append(errs, errors.New("no test said on which engine it ran"))
	}
	return errors.Join(errs...)
}

// show writes what was said by the tests that failed.
func (r results) show(w io.Writer) {
	for _, line := range r.built {
		fmt.Fprint(w, line)
	}
	for _, key := range slices.Sorted(maps.Keys(r.tests)) {
		t := r.tests[key]
		if t.outcome == "fail" || t.outcome == "" {
			fmt.Fprintf(w, "=== %s\n%s", t.name, strings.Join(t.output, ""))
		}
	}
	count := map[string]int{}
	for _, t := range r.tests {
		count[t.outcome]++
	}
	fmt.Fprintf(w, "%s: %d passed, %d failed, %d do not apply\n", r.engine, count["pass"], count["fail"]+count[""], count["skip"])
}

// table has a row for each test that touches an engine, and one for each of its
// parts that did not simply pass everywhere; the reasons are below.
func table(runs []results) string {
	type cell struct{ text, why string }
	rows := map[string][]cell{} // by the test's name
	top := func(name string) string { t, _, _ := strings.Cut(name, "/"); return t }
	for i, r := range runs {
		touches, parts, open := map[string]bool{}, map[string]int{}, map[string]bool{}
		for key, t := range r.tests {
			pkg, _, _ := strings.Cut(key, " ")
			if t.attrs["engine"] != "" {
				touches[pkg+" "+top(t.name)] = true
			}
			if t.outcome == "" {
				open[pkg+" "+top(t.name)] = true
			}
			if !hasParts(r, key) && t.outcome == "pass" {
				parts[pkg+" "+top(t.name)]++
			}
		}
		set := func(name string, c cell) {
			if rows[name] == nil {
				rows[name] = make([]cell, len(runs))
			}
			rows[name][i] = c
		}
		for key, t := range r.tests {
			pkg, _, _ := strings.Cut(key, " ")
			if !touches[pkg+" "+top(t.name)] {
				continue
			}
			switch why, refused := t.attrs["does-not-apply"], t.attrs["refused"]; {
			case why != "":
				set(t.name, cell{"–", why})
			case refused != "":
				set(t.name, cell{"refused", refused})
			case t.outcome == "":
			case t.outcome != "pass" && !hasFailedParts(r, key):
				set(t.name, cell{"**failed**", ""})
			}
		}
		for key := range touches {
			_, name, _ := strings.Cut(key, " ")
			t := r.tests[key]
			if t == nil || rows[name] != nil && rows[name][i].text != "" {
				continue
			}
			text := "passed"
			switch {
			case open[key]:
				text = "did not end"
			case t.outcome != "pass":
				text = "**failed**"
			}
			if n := parts[key]; n > 1 && !open[key] {
				text += fmt.Sprintf(" (%d)", n)
			}
			set(name, cell{text, ""})
		}
	}

	var b strings.Builder
	b.WriteString("| test |")
	for _, r := range runs {
		fmt.Fprintf(&b, " %s |", r.engine)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(runs)) + "\n")
	var reasons []string
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(&b, "| %s |", title(name))
		for i, c := range rows[name] {
			text := c.text
			if text == "" {
				text = runs[i].plain(name)
			}
			if c.why != "" {
				n := slices.Index(reasons, c.why)
				if n < 0 {
					n = len(reasons)
					reasons = append(reasons, c.why)
				}
				text += fmt.Sprintf(" (%s)", letter(n))
			}
			fmt.Fprintf(&b, " %s |", text)
		}
		b.WriteString("\n")
	}
	if len(reasons) > 0 {
		b.WriteString("\n")
	}
	for n, why := range reasons {
		fmt.Fprintf(&b, "- (%s) %s\n", letter(n), why)
	}
	return b.String()
}

// plain is what became of a test of which nothing special is to be told.
func (r results) plain(name string) string {
	for _, t := range r.tests {
		if t.name == name && t.outcome == "pass" {
			return "passed"
		}
	}
	return "not run"
}

func letter(n int) string {
	if n < 26 {
		return string(rune('a' + n))
	}
	return string(rune('a'+n/26-1)) + string(rune('a'+n%26))
}

func hasParts(r results, key string) bool {
	for other := range r.tests {
		if strings.HasPrefix(other, key+"/") {
			return true
		}
	}
	return false
}

func hasFailedParts(r results, key string) bool {
	for other, t := range r.tests {
		if strings.HasPrefix(other, key+"/") && t.outcome == "fail" {
			return true
		}
	}
	return false
}

// title is a test's name as a sentence: "TestKilledAtEveryCall/bad_image" is
// "killed at every call: bad image".
func title(name string) string {
	first, rest, _ := strings.Cut(strings.TrimPrefix(name, "Test"), "/")
	first = regexp.MustCompile(`([A-Z])([A-Z][a-z])`).ReplaceAllString(first, "$1 $2")
	first = regexp.MustCompile(`([a-z0-9])([A-Z])`).ReplaceAllString(first, "$1 $2")
	words := strings.Fields(first)
	for i, w := range words {
		if len(w) == 1 || w != strings.ToUpper(w) { // an abbreviation stays
			words[i] = strings.ToLower(w)
		}
	}
	out := strings.Join(words, " ")
	if rest != "" {
		out += ": " + strings.ReplaceAll(strings.ReplaceAll(rest, "_", " "), "/", ": ")
	}
	return strings.ReplaceAll(out, "|", `\|`)
}

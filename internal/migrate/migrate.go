// Package migrate says what configuration of updaterd equals the setup of another
// program: Watchtower, WUD (What's up Docker) or Diun.
//
// Each program has a table of what it can be told: flags, variables or labels, and
// what each amounts to here. What is not in the table, and what has no equal, is
// told; nothing is left out in silence. All of it is pure: texts in, text out.
package migrate

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/robfig/cron/v3"
	"go.yaml.in/yaml/v3"
)

// Setup is what another program was told.
type Setup struct {
	// Args are its command line, without the program's name.
	Args []string
	// Env are its variables. Those of anybody else are left alone.
	Env map[string]string
	// Labels are those that it reads on one container.
	Labels map[string]string
	// Faults are why some of the labels are not heeded as they are, where those of the
	// program are heeded at all.
	Faults map[string]string
}

// Programs are those whose setups are understood.
func Programs() []string { return slices.Sorted(maps.Keys(programs())) }

// programs are the readers, by name.
func programs() map[string]func(Setup) *answer {
	return map[string]func(Setup) *answer{"watchtower": watchtower, "wud": wud, "diun": diun}
}

// From returns the configuration that equals a setup, as YAML with a comment for
// each thing that has no equal, and the labels that equal those of the setup,
// sorted. The program must be one of Programs.
func From(program string, s Setup) (config string, labels []string, err error) {
	read, ok := programs()[program]
	if !ok {
		return "", nil, fmt.Errorf("%q is no program whose setup is understood; name one of %s", program, strings.Join(Programs(), ", "))
	}
	return read(s).text()
}

// answer is the configuration as it is found.
type answer struct {
	config map[string]any    // by dotted path
	rules  []map[string]any  // in order
	labels map[string]string // by setting
	notes  []string
}

func newAnswer() *answer { return &answer{config: map[string]any{}, labels: map[string]string{}} }

func (a *answer) set(key string, value any) { a.config[key] = value }
func (a *answer) rule(r map[string]any)     { a.rules = append(a.rules, r) }
func (a *answer) note(what, format string, args ...any) {
	a.notes = append(a.notes, what+": "+fmt.Sprintf(format, args...))
}

// unknown tells of what no table has.
func (a *answer) unknown(what string) {
	a.note(what, "is not known here; see what it does, and whether you need it")
}

// check takes out what could not be read here, and tells of it: what is printed is
// taken as it is.
func (a *answer) check() {
	if s, ok := a.config["schedule"].(string); ok {
		if _, err := cron.ParseStandard(s); err != nil {
			delete(a.config, "schedule")
			a.note("its schedule", "%q is none here: %v", s, err)
		}
	}
	for _, key := range []string{"include", "exclude"} {
		if _, err := regexp.Compile(a.labels[key]); err != nil {
			a.note("its pattern of tags", "%q cannot be read here (RE2 has no look-around and no back-references); write "+key+" anew", a.labels[key])
			delete(a.labels, key)
			if key == "include" {
				delete(a.labels, "extract") // which is of its groups
			}
		}
	}
}

// text writes the answer.
func (a *answer) text() (string, []string, error) {
	a.check()
	root := map[string]any{}
	for path, value := range a.config {
		at := root
		keys := strings.Split(path, ".")
		for _, k := range keys[:len(keys)-1] {
			below, ok := at[k].(map[string]any)
			if !ok {
				below = map[string]any{}
				at[k] = below
			}
			at = below
		}
		at[keys[len(keys)-1]] = value
	}
	if len(a.rules) > 0 {
		root["rules"] = a.rules
	}
	var out bytes.Buffer
	if len(root) > 0 {
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		if err := e.Encode(root); err != nil {
			return "", nil, fmt.Errorf("writing the configuration: %w", err)
		}
	}
	if len(a.notes) > 0 {
		out.WriteString("\n# What has no equal, or needs your hand:\n")
		slices.Sort(a.notes)
		for _, n := range slices.Compact(a.notes) {
			fmt.Fprintf(&out, "#   %s\n", plain(n))
		}
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(a.labels)) {
		labels = append(labels, "updaterd."+k+"="+a.labels[k])
	}
	return out.String(), labels, nil
}

// plain is a text on one line of a comment, without what no YAML may hold.
func plain(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' }), " ")
}

// option is one thing that a program can be told.
type option struct {
	value bool // a flag that takes a value
	do    func(a *answer, what, value string)
}

// Options of which there are many alike.
func says(why string) option {
	return option{value: true, do: func(a *answer, what, _ string) { a.note(what, "%s", why) }}
}

func saysFlag(why string) option {
	return option{do: func(a *answer, what, value string) {
		if on(value) {
			a.note(what, "%s", why)
		}
	}}
}

// is sets a key where a switch is on.
func is(key string, value any) option {
	return option{do: func(a *answer, _, text string) {
		if on(text) {
			a.set(key, value)
		}
	}}
}

// on reads a switch as these programs do.
func on(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "1", "t", "true", "y", "yes", "on":
		return true
	}
	return false
}

// words splits a list at commas and spaces.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// document is the configuration file while it is taken apart. It works on the
// nodes of the YAML library, which know their lines, and collects all that is
// wrong instead of stopping at the first.
type document struct {
	file     string
	problems Problems
	// credentials is the directory of the secrets that systemd hands to the unit.
	credentials string
}

func (d *document) problem(line int, key, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, line, key, fmt.Sprintf(format, args...)})
}

// open parses data and returns its one mapping, nil when there is none.
func (d *document) open(data []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var first, second yaml.Node
	switch err := decoder.Decode(&first); {
	case errors.Is(err, io.EOF):
		d.problem(0, "", "is empty; write at least one key, or {} for nothing but defaults")
		return nil
	case err != nil:
		d.syntax(data, err)
		return nil
	}
	if err := decoder.Decode(&second); err == nil {
		d.problem(second.Line, "", "holds a second YAML document; keep one, without a line of ---")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(data, err)
	}
	if len(first.Content) == 0 || first.Content[0].Tag == "!!null" {
		d.problem(first.Line, "", "is empty; write at least one key, or {} for nothing but defaults")
		return nil
	}
	return first.Content[0]
}

// syntax reports that the file is no YAML. The library stops at the first
// fault, and finds tabs only by what they break, so those come by their line.
func (d *document) syntax(data []byte, err error) {
	tabs := false
	for i, line := range bytes.Split(data, []byte("\n")) {
		indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
		if bytes.ContainsRune(indent, '\t') && len(indent) < len(bytes.TrimRight(line, "\r")) {
			d.problem(i+1, "", "is indented with a tab; YAML takes spaces only")
			tabs = true
		}
	}
	if tabs {
		return
	}
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 0
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		if regexp.MustCompile(`^did not find expected (node content|key|'|<document start>)`).MatchString(text) {
			// The library's parser, unlike its scanner, counts from 0, and what
			// is missing at the end is missing in a line after it.
			line = min(line+1, 1+bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")))
		}
	} else {
		line = lineless(data) // it leaves out the first line's number
	}
	remedy := "look at the indentation, quotes and colons of this line and the one above"
	if m := regexp.MustCompile(`^unknown anchor '(.*)' referenced$`).FindStringSubmatch(text); m != nil {
		// It has no line in any line. Mostly it is a pattern.
		line = 1 + bytes.Count(data[:max(0, bytes.Index(data, []byte("*"+m[1])))], []byte("\n"))
		remedy = "put a pattern that begins with * in quotes"
	} else if strings.Contains(text, "alphabetic or numeric character") {
		remedy = "put a pattern that begins with * in quotes"
	}
	d.problem(line, "", "is no YAML: %s; %s", text, remedy)
}

// lineless is the line of a fault for which the library names none: the first
// one with bytes that are no text, and without such bytes the first of all.
func lineless(data []byte) int {
	for i, line := range bytes.Split(data, []byte("\n")) {
		if !utf8.Valid(line) || bytes.ContainsFunc(line, func(c rune) bool { return c < ' ' && c != '\t' && c != '\r' || c == 0x7f }) {
			return i + 1
		}
	}
	return 1
}

// names are the keys that a mapping may have.
type names struct {
	leaves   []string          // by dotted path; read as one value
	sections []string          // read by their own code
	short    map[string]string // a name that may hold the value of a longer one: pre-update
	refused  map[string]string // and what to do instead
}

// field is one key of a mapping.
type field struct {
	key, value *yaml.Node
}

// line is where to look for what is wrong with the field.
func (f field) line() int {
	if f.value.Kind == yaml.ScalarNode {
		return f.value.Line
	}
	return f.key.Line
}

// mapping takes a mapping apart into its fields, by their dotted path below
// it. Maps within it and keys with dots come to the same. Unknown, repeated
// and empty keys are reported, at the path at; so is a node that is no mapping,
// for which it returns nil.
func (d *document) mapping(n *yaml.Node, line int, at string, known names) map[string]field {
	if n = d.resolve(n, at); n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		where := "is"
		if at == "" {
			where = "the file is"
		}
		d.problem(line, at, "%s %s; write keys and values, one \"key: value\" to a line", where, kindOf(n))
		return nil
	}
	fields := map[string]field{}
	d.flatten(n, at, "", known, fields)
	return fields
}

func (d *document) flatten(n *yaml.Node, at, prefix string, known names, fields map[string]field) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		name := prefix + key.Value
		path := join(at, name)
		if key.Kind != yaml.ScalarNode || key.Value == "" {
			d.problem(key.Line, at, "has a key that is no name; write \"key: value\"")
			continue
		}
		if key.Tag == "!!merge" {
			d.problem(key.Line, at, "has a merge key (<<); write the keys out")
			continue
		}
		value := d.resolve(n.Content[i+1], path)
		if value == nil {
			continue
		}
		below := slices.ContainsFunc(known.leaves, func(l string) bool { return strings.HasPrefix(l, name+".") })
		long := known.short[name]
		switch {
		case known.refused[name] != "":
			d.problem(key.Line, path, "%s", known.refused[name])
			continue
		case slices.Contains(known.leaves, name), slices.Contains(known.sections, name):
		case long != "" && value.Kind != yaml.MappingNode:
			name = long
		case below && value.Tag != "!!null":
			if value.Kind != yaml.MappingNode {
				d.problem(key.Line, path, "is %s; write a map of %s", kindOf(value), strings.Join(beneath(known.leaves, name), ", "))
				continue
			}
			d.flatten(value, at, name+".", known, fields)
			continue
		case !below:
			d.problem(key.Line, path, "is not a key%s", meant(key.Value, siblings(known, prefix)))
			continue
		}
		if before, twice := fields[name]; twice {
			d.problem(key.Line, path, "is written twice, first in line %d; keep one", before.key.Line)
			continue
		}
		if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
			d.problem(key.Line, path, "has no value; give it one or remove the key")
			continue
		}
		fields[name] = field{key, value}
	}
}

// list is the entries of a sequence.
func (d *document) list(f field, at, what string) []*yaml.Node {
	if f.value.Kind != yaml.SequenceNode {
		d.problem(f.key.Line, at, "is %s; write a list of %s, each begun with a dash", kindOf(f.value), what)
		return nil
	}
	return f.value.Content
}

// resolve follows an alias. One level of them is enough to say a thing once,
// and keeps the size of what is read in bounds; nil when there is more.
func (d *document) resolve(n *yaml.Node, at string) *yaml.Node {
	if n.Kind != yaml.AliasNode {
		return n
	}
	if n.Alias == nil || aliased(n.Alias) {
		d.problem(n.Line, at, "is an alias (*%s) of something that holds aliases; write it out", n.Value)
		return nil
	}
	target := *n.Alias
	target.Line = n.Line
	return &target
}

func aliased(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || slices.ContainsFunc(n.Content, aliased)
}

// join is the path of a key below another.
func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

// beneath are the last words of the leaves below a name.
func beneath(leaves []string, name string) []string {
	var words []string
	for _, l := range leaves {
		if after, ok := strings.CutPrefix(l, name+"."); ok {
			words = append(words, after)
		}
	}
	return words
}

// siblings are the keys that may be written beside each other below a prefix.
func siblings(known names, prefix string) []string {
	var words []string
	for _, name := range slices.Concat(known.leaves, known.sections) {
		if after, ok := strings.CutPrefix(name, prefix); ok {
			first, _, _ := strings.Cut(after, ".")
			words = append(words, first)
		}
	}
	slices.Sort(words)
	return slices.Compact(words)
}

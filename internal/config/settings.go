package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"go.yaml.in/yaml/v3"

	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/updater"
)

// rule is settings for the workloads that it fits.
type rule struct {
	match  map[string]glob // by key of match; a label's as "labels.NAME"
	values map[string]written
	start  updater.Settings // these over the defaults, not settled
}

// matchNames are the keys of match.
func matchNames() names {
	return names{leaves: []string{"backend", "namespace", "kind", "name", "image"}, sections: []string{"labels"}}
}

// kinds are those of workloads in a cluster; on a Docker host they have none.
func kinds() []string { return []string{"cronjob", "daemonset", "deployment", "statefulset"} }

func (c *Config) readRules(d *document, f field) {
	keys := c.table.keys
	known := c.table.names
	known.sections = []string{"match"}
	entries(d, f, "rules", "rules", known, func(at string, line int, fields map[string]field) {
		r := rule{match: map[string]glob{}, values: decode(d, fields, at, keys)}
		if m, ok := fields["match"]; ok {
			r.readMatch(d, m, at+".match")
		} else {
			d.problem(line, at, "has no match; say which workloads it is for, or write what is for all below defaults")
		}
		for _, name := range slices.Sorted(maps.Keys(r.match)) {
			from := place{source: fmt.Sprintf("%s:%d", d.file, line)}
			c.show(at+".match."+name, written{text: r.match[name].pattern, from: from}, false)
		}
		for _, k := range keys {
			if w, ok := r.values[k.name]; ok {
				w.from.source += fmt.Sprintf(" (%s)", at)
				r.values[k.name] = w
				c.show(at+"."+k.name, w, k.secret)
			}
		}
		layers := layers{r.values, c.defaults}
		r.start = c.table.lay(c.start, r.values)
		_, problems := settle(r.start, layers)
		d.problems = append(d.problems, problems...)
		c.rules = append(c.rules, r)
	})
}

func (r *rule) readMatch(d *document, f field, at string) {
	fields := d.mapping(f.value, f.key.Line, at, matchNames())
	read := func(name string, f field) {
		s, err := raw{node: f.value}.scalar("a pattern such as \"web-*\"", "!!str")
		if err == nil && s == "" {
			err = errors.New("is empty and would fit nothing; write a pattern such as \"web-*\"")
		}
		if err == nil && name == "kind" && !slices.ContainsFunc(kinds(), newGlob(s).fits) {
			err = fmt.Errorf("%q is no kind of workload%s", s, meant(s, kinds()))
		}
		if err != nil {
			d.problem(f.line(), join(at, name), "%v", err)
			return
		}
		r.match[name] = newGlob(s)
	}
	for _, name := range matchNames().leaves {
		if f, ok := fields[name]; ok {
			read(name, f)
		}
	}
	if labels, ok := fields["labels"]; ok {
		r.readLabels(d, labels, at, read)
	}
	if len(f.value.Content) == 0 {
		d.problem(f.key.Line, at, "is empty and would fit everything; write what is for all below defaults")
	}
}

// readLabels walks the one map whose keys are anybody's: names of labels, with
// their dots and capitals.
func (r *rule) readLabels(d *document, f field, at string, read func(string, field)) {
	if f.value.Kind != yaml.MappingNode {
		d.problem(f.key.Line, at+".labels", "is %s; write a map of label names and patterns", kindOf(f.value))
		return
	}
	for i := 0; i+1 < len(f.value.Content); i += 2 {
		key, value := f.value.Content[i], f.value.Content[i+1]
		name := "labels." + key.Value
		if _, twice := r.match[name]; twice {
			d.problem(key.Line, join(at, name), "is written twice; keep one")
			continue
		}
		if value = d.resolve(value, join(at, name)); value != nil {
			read(name, field{key, value})
		}
	}
}

// fits reports whether every key of the rule's match fits the workload.
func (r rule) fits(w updater.Workload) bool {
	for name, g := range r.match {
		var fits bool
		switch name {
		case "backend":
			fits = g.fits(w.Backend)
		case "namespace":
			fits = g.fits(w.Namespace)
		case "kind":
			fits = g.fits(w.Kind)
		case "name":
			fits = g.fits(w.Name)
		case "image":
			fits = slices.ContainsFunc(spellings(w.Image), g.fits)
		default:
			value, has := w.Labels[strings.TrimPrefix(name, "labels.")]
			fits = has && g.fits(value)
		}
		if !fits {
			return false
		}
	}
	return true
}

// spellings are the ways to write the reference of an image, any of which a
// pattern may fit: as it is written, as Docker shortens it, and in full, each
// with its tag and without.
func spellings(image string) []string {
	all := []string{image}
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return all // an image id
	}
	bare := reference.TrimNamed(named)
	tagged := reference.TagNameOnly(bare)
	if t, ok := named.(reference.Tagged); ok {
		if withTag, err := reference.WithTag(bare, t.Tag()); err == nil {
			tagged = withTag
		}
	}
	for _, ref := range []reference.Named{bare, tagged} {
		all = append(all, ref.String(), reference.FamiliarString(ref))
	}
	return all
}

// layers are values of settings, each layer over the next one.
type layers []map[string]written

// of is the value that holds. An empty image undoes the test below it, whose
// command would otherwise be left without anything to run in.
func (l layers) of(name string) written {
	for _, layer := range l {
		if w, ok := layer[name]; ok {
			return w
		}
		if image, ok := layer["health.test.image"]; ok && image.value == "" && name == "health.test.command" {
			return written{from: image.from}
		}
	}
	return written{}
}

// lay returns settings with a layer over them: what [layers.of] says, without
// asking for each.
func (t table) lay(below updater.Settings, above map[string]written) updater.Settings {
	if image, ok := above["health.test.image"]; ok && image.value == "" {
		below.Health.Test.Command = nil
	}
	put(&below, t.keys, above)
	return below
}

// settle makes settings of what was laid together, and checks what only shows
// then. values are what it was laid of.
func settle(s updater.Settings, values layers) (updater.Settings, Problems) {
	// The zero Hook is none, whatever its timeout would be.
	for _, h := range []*updater.Hook{&s.PreUpdate, &s.PostUpdate} {
		if len(h.Command) == 0 {
			*h = updater.Hook{}
		}
	}
	var problems Problems
	if t := &s.Health.Test; t.Image == "" { // nor is there a test without an image
		if len(t.Command) > 0 {
			problems = append(problems, values.of("health.test.command").from.problem(errors.New(noImage)))
		}
		*t = updater.Test{}
	}
	_, err := policy.Parse(s.Policy)
	for _, err := range unjoin(err) {
		var fe *policy.FieldError
		if !errors.As(err, &fe) {
			problems = append(problems, values.of("policy").from.problem(err))
			continue
		}
		from := values.of(fe.Key).from
		problems = append(problems, from.problem(fmt.Errorf("%q: %s", fe.Value, fe.Problem)))
	}
	return s, problems
}

// noImage is what is wrong with the other settings of a test then.
const noImage = "is for a test that has no image; name one as health.test.image in the configuration file, or take it away"

// unjoin are the errors that errors.Join put together.
func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// Settings are the effective settings of a workload: what is written on it,
// over the first rule whose every match key fits, over the defaults. Its error
// wraps a Problems that names every bad key written on the workload, and says
// them on one line.
func (c *Config) Settings(w updater.Workload) (updater.Settings, error) {
	own, problems := c.onWorkload(w)
	values, start := layers{own, c.defaults}, c.start
	if r := c.rule(w); r != nil {
		values, start = layers{own, r.values, c.defaults}, r.start
	}
	s, more := settle(c.table.lay(start, own), values)
	problems = append(append(problems, more...), c.table.foreign(w, values)...)
	// Below defaults, the time is there for the rules that name an image.
	if limit, ok := own["health.test.timeout"]; ok && s.Health.Test.Image == "" {
		problems = append(problems, limit.from.problem(errors.New(noImage)))
	}
	if len(problems) > 0 {
		return s, oneLine{w.ID, problems.sorted()}
	}
	return s, nil
}

// foreign reports settings that the workload's kind of backend cannot honour,
// unless they say what holds without them.
func (t table) foreign(w updater.Workload, values layers) Problems {
	here := dockerOnly
	if w.Namespace != "" {
		here = clusterOnly
	}
	var problems Problems
	for _, k := range t.keys {
		if k.only == "" || k.only == here {
			continue
		}
		v := values.of(k.name)
		if reflect.DeepEqual(v.value, t.builtin[k.name]) {
			continue
		}
		problems = append(problems, v.from.problem(fmt.Errorf("can be honoured %s only; take it away, or write it in a rule that fits nothing else", k.only)))
	}
	return problems
}

// Explain lists the effective settings of a workload and where each came from.
// A setting on the workload that Settings refuses is not in effect, and not
// here.
func (c *Config) Explain(w updater.Workload) []Value {
	own, _ := c.onWorkload(w) // reported by Settings
	values := layers{own, c.defaults}
	if r := c.rule(w); r != nil {
		values = layers{own, r.values, c.defaults}
	}
	var all []Value
	for _, k := range c.table.keys {
		v := values.of(k.name)
		all = append(all, Value{k.name, v.text, v.from.source})
	}
	return all
}

// rule is the first rule that fits, nil when none does.
func (c *Config) rule(w updater.Workload) *rule {
	for i := range c.rules {
		if c.rules[i].fits(w) {
			return &c.rules[i]
		}
	}
	return nil
}

// onWorkload reads what is written on a workload: labels on a Docker host,
// annotations in a cluster.
func (c *Config) onWorkload(w updater.Workload) (map[string]written, Problems) {
	label := "label updaterd."
	if w.Namespace != "" {
		label = "annotation updaterd.dev/"
	}
	keys, known := c.table.keys, c.table.names
	values := map[string]written{}
	var problems Problems
	var noTest bool
	for _, name := range slices.Sorted(maps.Keys(w.Written)) {
		from := place{file: w.ID, key: label + name, source: label + name}
		text := strings.TrimSpace(w.Written[name])
		long := name
		if l, ok := known.short[name]; ok {
			long = l
		}
		i := slices.Index(known.leaves, long) // in the order of the table
		if i < 0 {
			err := errors.New("is not a setting" + meant(name, siblingsInFull(known)))
			if below := beneath(known.leaves, name); len(below) > 0 {
				err = fmt.Errorf("is not a setting by itself; write one of %s.%s", name, strings.Join(below, ", "+name+"."))
			}
			if refused := known.refused[name]; refused != "" {
				err = errors.New(strings.Replace(refused, "write it at the top, not indented", "write it in the configuration file", 1))
			}
			problems = append(problems, from.problem(err))
			continue
		}
		if before, twice := values[long]; twice {
			problems = append(problems, from.problem(fmt.Errorf("says the same as %s; keep one", before.from.key)))
			continue
		}
		v, err := keys[i].read(raw{text: text})
		if long == "health.test.image" && text != "" && !c.labelTests {
			// Who may label a container could otherwise run anything here.
			err = errors.New("names an image to run, which only the configuration file may; write it there, or allow-label-tests: true at its top")
		}
		if err != nil {
			problems = append(problems, from.problem(err))
			noTest = noTest || long == "health.test.image"
			continue
		}
		values[long] = written{v, text, from}
	}
	var theirs map[string]written
	if values["enable"].value != false { // the way out of compat that it names itself
		var more Problems
		theirs, more = c.compat.read(w, keys)
		problems = append(problems, more...)
	}
	for name, v := range theirs {
		if _, own := values[name]; !own {
			values[name] = v
		}
	}
	if noTest { // what stands beside a refused image would be refused for want of one
		delete(values, "health.test.command")
		delete(values, "health.test.timeout")
	}
	return values, problems
}

// siblingsInFull are all names of settings, as a label has them.
func siblingsInFull(known names) []string {
	all := slices.Clone(known.leaves)
	for brief := range known.short {
		all = append(all, brief)
	}
	slices.Sort(all)
	return all
}

// Package config reads what people write for updaterd: the YAML file, the
// environment, and the settings on a workload.
//
// [Load] takes the file apart on the YAML library's nodes, which know their
// lines, checks every value where it stands, and collects all [Problems]. What
// can also come from the environment is then merged by viper: environment over
// file over defaults, each value carrying where it came from. Lists (docker, kubernetes,
// registries, notify, rules) exist in the file only and stay with the nodes,
// because viper lowercases the keys of maps, and label names are such keys.
//
// [Config.Settings] lays the settings of one workload over each other: what is
// written on it, the first rule that fits, the defaults. [Config.Explain] says
// where each came from. [Watch] tells when the file has changed.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/viper"

	"github.com/updaterd/updaterd/internal/updater"
)

// DefaultFile is read when it exists and no other file is named.
const DefaultFile = "/etc/updaterd/updaterd.yaml"

// maxFile is the most that is read of any file: a configuration beyond a
// mebibyte is another kind of file.
const maxFile = 1 << 20

// What Config.Watch may be.
const (
	WatchLabelled = "labelled" // only workloads with enable: true
	WatchAll      = "all"      // all but those with enable: false
)

// Config is a configuration that was checked as a whole. It does not change
// and may be shared; a reload makes another.
type Config struct {
	// File is what was read; "" for defaults and environment only.
	File string
	// Schedule says when passes begin, Jitter by how much at most each is late.
	Schedule Schedule
	Jitter   time.Duration
	// Watch is WatchLabelled or WatchAll.
	Watch string
	// State is the directory of the journal, and of the lock beside it.
	State string
	// Parallel is how many independent changes may be under way in a backend.
	Parallel int
	Log      Log
	// Docker are the hosts to watch, Kubernetes the clusters. Never both empty.
	Docker     []Docker
	Kubernetes []Kubernetes
	Registries []Registry
	Notify     []Notify
	// Metrics is the address to serve metrics on; "" is nowhere.
	Metrics string
	API     API
	// Webhooks are what registries may tell us by.
	Webhooks Webhooks

	table      table              // made once: settings are asked for by the thousand
	defaults   map[string]written // by setting, every one present
	start      updater.Settings   // what defaults say, not settled
	rules      []rule
	compat     compat
	labelTests bool // what is written on a workload may name the image of its test
	shown      []Value
}

// Log says what is logged, and how.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
}

// written is a value with where it was written.
type written struct {
	value any
	text  string
	from  place
}

// place is where something is written.
type place struct {
	file   string // as Problem.File
	line   int
	key    string // as Problem.Key
	source string // as Value.Source
}

func (p place) problem(err error) Problem { return Problem{p.file, p.line, p.key, err.Error()} }

// Find says which file a command reads: that of its flag, else that of
// $UPDATERD_CONFIG, else DefaultFile if there is one, else none ("").
func Find(flag string, environ []string) string {
	if flag != "" {
		return flag
	}
	if file := variables(environ)["UPDATERD_CONFIG"]; file != "" {
		return file
	}
	if _, err := os.Stat(DefaultFile); errors.Is(err, os.ErrNotExist) {
		return ""
	}
	return DefaultFile // one that cannot be looked at is for Load to report
}

// Load reads and checks the file at path ("": none), and the variables of
// environ, which is shaped like os.Environ(). It also reads the files that the
// configuration names: certificates, keys, secrets. Its error is a Problems
// with all that is wrong.
func Load(path string, environ []string) (*Config, error) {
	d := &document{file: path}
	var data []byte
	if path != "" {
		var err error
		if data, err = readAtMost(path); err != nil {
			d.problem(0, "", "cannot be read: %v; name a file that can, or none", err)
			return nil, d.problems.err()
		}
	}
	return load(d, data, environ)
}

func load(d *document, data []byte, environ []string) (*Config, error) {
	c := &Config{File: d.file, table: newTable()}
	vars := variables(environ)
	d.credentials = cmp.Or(vars["CREDENTIALS_DIRECTORY"], serviceCredentials)

	var fields map[string]field
	if d.file != "" {
		if root := d.open(data); root != nil {
			fields = d.mapping(root, root.Line, "", fileNames())
		}
	}
	defaults := map[string]field{}
	if f, ok := fields["defaults"]; ok {
		defaults = d.mapping(f.value, f.key.Line, "defaults", c.table.names)
	}

	m := merge{viper: viper.New(), document: d, vars: vars, known: map[string]bool{}}
	top := fileKeys()
	layer(m, top, "", fields, nil)
	m.fallback("state", defaultState(vars))
	merged := effective(m, top, "")
	put(c, top, merged)
	if w := merged["state"]; w.from.line > 0 {
		c.State = d.beside(c.State)
		w.text = c.State
		merged["state"] = w
	}
	c.API.settle(d, merged, c.State, vars)
	c.Webhooks.settle(d, merged)
	for _, k := range top {
		c.show(k.name, merged[k.name], k.secret)
	}

	settings := c.table.keys
	layer(m, settings, "defaults.", defaults, c.table.names.short)
	watch := merged["watch"]
	m.fallback("defaults.enable", written{c.Watch == WatchAll, fmt.Sprint(c.Watch == WatchAll), place{
		source: fmt.Sprintf("watch: %s (%s)", c.Watch, watch.from.source),
	}})
	c.defaults = effective(m, settings, "defaults.")
	for _, k := range settings {
		c.show("defaults."+k.name, c.defaults[k.name], k.secret)
	}
	m.strangers()

	c.start = c.table.lay(updater.Settings{}, c.defaults)
	if _, problems := settle(c.start, layers{c.defaults}); len(problems) > 0 {
		d.problems = append(d.problems, problems...)
	}
	c.lists(d, fields, vars)
	if err := d.problems.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// merge is where file, environment and defaults meet. viper decides which of
// them holds: what is Set (environment) over what is merged (file) over the
// defaults. The values it is given are already checked and know where they
// came from, so it neither reads the environment of the process nor the file.
type merge struct {
	viper    *viper.Viper
	document *document
	vars     map[string]string
	known    map[string]bool // variables
}

// layer hands viper all that is written under the names of a table.
func layer[T any](m merge, keys []key[T], prefix string, fields map[string]field, short map[string]string) {
	file := map[string]any{}
	for name, w := range decode(m.document, fields, strings.TrimSuffix(prefix, "."), keys) {
		file[prefix+name] = w
	}
	// viper's only error here is for a nil map.
	if err := m.viper.MergeConfigMap(file); err != nil {
		m.document.problem(0, "", "cannot be merged: %v; this is a defect of updaterd, please report it", err)
	}
	for _, k := range keys {
		if !k.optional {
			v, err := k.read(raw{text: k.builtin})
			if err != nil { // a test reads them all
				m.document.problem(0, prefix+k.name, "has a bad default: %v; this is a defect of updaterd, please report it", err)
			}
			m.fallback(prefix+k.name, written{v, k.builtin, place{key: prefix + k.name, source: "default"}})
		}
		m.environment(prefix+k.name, prefix+k.name, k.read)
		for brief, long := range short {
			if long == k.name {
				m.environment(prefix+brief, prefix+long, k.read)
			}
		}
	}
}

func (m merge) fallback(name string, w written) { m.viper.SetDefault(name, w) }

// environment hands viper the variable of the key called name, if it is set,
// as the value of the key called target. An empty variable counts as none:
// that is what compose files and unit files leave of one that is not set.
func (m merge) environment(name, target string, read func(raw) (any, error)) {
	variable := Variable(name)
	m.known[variable] = true
	text := strings.TrimSpace(m.vars[variable])
	if text == "" {
		return
	}
	from := place{file: "environment", key: variable, source: "environment " + variable}
	v, err := read(raw{text: text})
	if err != nil {
		m.document.problems = append(m.document.problems, from.problem(err))
		return
	}
	m.viper.Set(target, written{v, text, from})
}

// effective asks viper what holds.
func effective[T any](m merge, keys []key[T], prefix string) map[string]written {
	all := map[string]written{}
	for _, k := range keys {
		w, _ := m.viper.Get(prefix + k.name).(written)
		all[k.name] = w
	}
	return all
}

// strangers reports variables with our prefix that are no key: a typing error
// in one would otherwise silently leave the default.
func (m merge) strangers() {
	// What Kubernetes and Docker's links set for a service that is itself
	// called updaterd is none of ours.
	service := regexp.MustCompile(`^UPDATERD_(NAME|ENV_.*|SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|PORT_START|PORT_END|ADDR|START|END))?)?)$`)
	for variable := range m.vars {
		if !strings.HasPrefix(variable, "UPDATERD_") || m.known[variable] ||
			variable == "UPDATERD_CONFIG" || service.MatchString(variable) {
			continue
		}
		text := "names no key of the file" + meantVariable(variable, m.known)
		for _, list := range []string{"UPDATERD_DOCKER", "UPDATERD_KUBERNETES", "UPDATERD_REGISTRIES", "UPDATERD_NOTIFY", "UPDATERD_RULES"} {
			if variable == list || strings.HasPrefix(variable, list+"_") {
				text = "would be part of a list, and lists come from the file only; write it there"
			}
		}
		m.document.problems = append(m.document.problems, Problem{File: "environment", Key: variable, Text: text})
	}
}

func meantVariable(variable string, known map[string]bool) string {
	best, distance := "", 0
	for k := range known {
		if d := editDistance(variable, k); best == "" || d < distance || d == distance && k < best {
			best, distance = k, d
		}
	}
	if distance <= 4 {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return "; unset it, or write it as the path in capitals, such as " + Variable("defaults.min-age")
}

// Variable is the environment variable that overrides a key of the file: its
// path in capitals, dots and dashes as underscores, after UPDATERD_.
func Variable(key string) string {
	return "UPDATERD_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}

func variables(environ []string) map[string]string {
	vars := map[string]string{}
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok {
			vars[name] = value
		}
	}
	return vars
}

// defaultState is where state lies when nobody says: the directory that
// systemd made for the unit, else the user's own.
func defaultState(vars map[string]string) written {
	from := func(name, dir string) written {
		return written{dir, dir, place{file: "environment", key: name, source: "environment " + name}}
	}
	// systemd joins several by colons.
	if first, _, _ := strings.Cut(vars["STATE_DIRECTORY"], ":"); first != "" {
		return from("STATE_DIRECTORY", first)
	}
	// A relative one is to be ignored, says the XDG Base Directory Specification.
	if dir := vars["XDG_STATE_HOME"]; filepath.IsAbs(dir) {
		return from("XDG_STATE_HOME", filepath.Join(dir, "updaterd"))
	}
	if dir := vars["HOME"]; filepath.IsAbs(dir) {
		return from("HOME", filepath.Join(dir, ".local", "state", "updaterd"))
	}
	return written{"/var/lib/updaterd", "/var/lib/updaterd", place{source: "default"}}
}

// decode reads the fields of a mapping by a table. What cannot be read is
// reported and left out.
func decode[T any](d *document, fields map[string]field, at string, keys []key[T]) map[string]written {
	all := map[string]written{}
	for _, k := range keys {
		f, ok := fields[k.name]
		if !ok {
			continue
		}
		from := place{d.file, f.line(), join(at, k.name), fmt.Sprintf("%s:%d", d.file, f.line())}
		r := raw{node: f.value}
		v, err := k.read(r)
		if err != nil {
			d.problems = append(d.problems, from.problem(err))
			continue
		}
		all[k.name] = written{v, r.String(), from}
	}
	return all
}

// put hands checked values on.
func put[T any](t *T, keys []key[T], values map[string]written) {
	for _, k := range keys {
		if w, ok := values[k.name]; ok && w.value != nil {
			k.put(t, w.value)
		}
	}
}

// serviceCredentials is where systemd puts the secrets of our unit. Commands run
// by hand find them there.
const serviceCredentials = "/run/credentials/updaterd.service"

// beside is a path as the file means it: a relative one begins where the file
// lies, so that it does not depend on where updaterd was started, and one that
// begins with $CREDENTIALS_DIRECTORY, in the directory of LoadCredential=.
func (d *document) beside(path string) string {
	for _, variable := range []string{"$CREDENTIALS_DIRECTORY/", "${CREDENTIALS_DIRECTORY}/"} {
		if name, ok := strings.CutPrefix(path, variable); ok {
			return filepath.Join(d.credentials, name)
		}
	}
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(d.file), path)
}

// readPath takes the path of a file or directory.
func readPath(r raw) (string, error) {
	s, err := r.scalar("a path", "!!str")
	if err != nil {
		return "", err
	}
	if s == "" || s == "~" || strings.HasPrefix(s, "~/") || strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%q is no path here; write it out from the root, or relative to this file", s)
	}
	return s, nil
}

// readAtMost reads a small file. It may be a pipe.
func readAtMost(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unpath(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, unpath(err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return data, nil
}

// readNamed reads a file that the configuration names. It must be a regular
// one: opening a pipe would wait for its writer.
func readNamed(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unpath(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	return readAtMost(path)
}

// unpath leaves out the path, which the error around it names.
func unpath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// lists reads the parts of the file that are lists.
func (c *Config) lists(d *document, fields map[string]field, vars map[string]string) {
	names := map[string]string{} // of backends
	cluster, clustered := fields["kubernetes"]
	// With either in the file, only what is listed is watched.
	if hosts, listed := fields["docker"]; listed || !clustered {
		c.Docker = c.readDocker(d, hosts, listed, vars, names)
	}
	if clustered {
		c.readKubernetes(d, cluster, names)
	}
	if f, ok := fields["registries"]; ok {
		c.readRegistries(d, f)
	}
	if f, ok := fields["notify"]; ok {
		c.readNotify(d, f)
	}
	c.readSenders(d, fields["webhooks.senders"])
	if f, ok := fields["rules"]; ok {
		c.readRules(d, f)
	}
}

// entries walks a list of mappings.
func entries(d *document, f field, at, what string, known names, each func(at string, line int, fields map[string]field)) {
	for i, n := range d.list(f, at, what) {
		at := fmt.Sprintf("%s[%d]", at, i)
		if fields := d.mapping(n, n.Line, at, known); fields != nil {
			each(at, n.Line, fields)
		}
	}
}

// Value is one effective value, for people.
type Value struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	// Source is "default", "FILE:LINE", "environment NAME" or "label KEY".
	Source string `json:"source"`
}

// Show lists every effective value and where it came from. Secrets are
// "(set)".
func (c *Config) Show() []Value { return slices.Clone(c.shown) }

func (c *Config) show(name string, w written, secret bool) {
	text := w.text
	if secret && text != "" {
		text = "(set)"
	}
	c.shown = append(c.shown, Value{name, text, w.from.source})
}

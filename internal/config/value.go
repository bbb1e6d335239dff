package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	shellquote "github.com/kballard/go-shellquote"
	"github.com/moby/sys/signal"
	"go.yaml.in/yaml/v3"

	"github.com/updaterd/updaterd/internal/updater"
)

// raw is a value that nobody has checked: a node of the file, or, from the
// environment, a label and the table of defaults, a text.
type raw struct {
	node *yaml.Node // nil: text
	text string
}

// A reader makes a checked value of a raw one. Its error says what is wrong
// and the remedy, without naming the key.
type reader[T any] func(raw) (T, error)

// scalar is r as a text, if it is one of the YAML tags; what is what the key
// wants, for the error.
func (r raw) scalar(what string, tags ...string) (string, error) {
	if r.node == nil {
		return r.text, nil
	}
	if r.node.Kind == yaml.ScalarNode {
		if slices.Contains(tags, r.node.Tag) {
			return r.node.Value, nil
		}
		if slices.Contains(tags, "!!str") && strings.HasPrefix(r.node.Tag, "!!") {
			return "", fmt.Errorf("%s is %s in YAML; put it in quotes: %q", r.node.Value, kindOf(r.node), r.node.Value)
		}
	}
	return "", fmt.Errorf("is %s; write %s", kindOf(r.node), what)
}

// kindOf names what a node is.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!str":
		return "text"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	case "!!null":
		return "empty"
	case "!!timestamp":
		return "a date"
	}
	return "of type " + n.Tag
}

// String is the value on one line, for people.
func (r raw) String() string {
	if r.node == nil {
		return r.text
	}
	if r.node.Kind == yaml.ScalarNode {
		return r.node.Value
	}
	if words, err := r.words(); err == nil {
		return inline(words)
	}
	return kindOf(r.node)
}

// inline writes a list as JSON, which is also how a label would hold it.
func inline(words []string) string {
	if len(words) == 0 {
		return ""
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)                  // people read it
	if err := e.Encode(words); err != nil { // strings always encode
		return strings.Join(words, " ")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// words is r as a list of texts.
func (r raw) words() ([]string, error) {
	if r.node == nil || r.node.Kind != yaml.SequenceNode {
		return nil, errors.New("is no list")
	}
	var words []string // none for an empty list, as for an empty text
	for i, n := range r.node.Content {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		w, err := raw{node: n}.scalar("a text", "!!str")
		if err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
		words = append(words, w)
	}
	return words, nil
}

// readText takes any text; an empty one is none.
func readText(r raw) (string, error) { return r.scalar("a text", "!!str") }

// readFlag takes true and false and no other word for them, so that a typing
// error cannot switch something off.
func readFlag(r raw) (bool, error) {
	s, err := r.scalar("true or false", "!!bool")
	if err != nil {
		if r.node.Kind == yaml.ScalarNode {
			err = fmt.Errorf("%q is %s; write true or false, without quotes", r.node.Value, kindOf(r.node))
		}
		return false, err
	}
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither; write true or false", s)
}

// readCount takes a whole number within bounds, both included.
func readCount(lowest, highest int) reader[int] {
	return func(r raw) (int, error) {
		want := fmt.Sprintf("a whole number from %d to %d", lowest, highest)
		s, err := r.scalar(want, "!!int")
		if err != nil {
			return 0, err
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < lowest || n > highest {
			return 0, fmt.Errorf("%q is out of range; write %s", s, want)
		}
		return n, nil
	}
}

// readKeep takes a number of images, or "all".
func readKeep(r raw) (int, error) {
	const want = "a whole number from 0 up, or all"
	s, err := r.scalar(want, "!!int", "!!str")
	if err != nil {
		return 0, err
	}
	if s == "all" {
		return updater.KeepAll, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no number of images; write %s", s, want)
	}
	return n, nil
}

// readChoice takes one of some words.
func readChoice[T ~string](words ...T) reader[T] {
	return func(r raw) (T, error) {
		known := make([]string, len(words))
		for i, w := range words {
			known[i] = string(w)
		}
		s, err := r.scalar("one of "+strings.Join(known, ", "), "!!str")
		if err != nil {
			return "", err
		}
		if !slices.Contains(known, s) {
			return "", fmt.Errorf("%q is not a choice; write one of %s", s, strings.Join(known, ", "))
		}
		return T(s), nil
	}
}

// readWrite takes tag, digest, or auto for the backend's own way.
func readWrite(r raw) (updater.Write, error) {
	w, err := readChoice[updater.Write]("auto", updater.WriteTag, updater.WriteDigest)(r)
	if w == "auto" {
		w = updater.WriteDefault
	}
	return w, err
}

// readDuration takes what ParseDuration takes.
func readDuration(r raw) (time.Duration, error) {
	s, err := r.scalar("a duration such as 90s, 15m, 12h, 3d or 1w", "!!str", "!!int", "!!float")
	if err != nil {
		return 0, err
	}
	return ParseDuration(s)
}

// readAutoDuration also takes auto, which leaves it to the workload (0).
func readAutoDuration(r raw) (time.Duration, error) {
	if s, err := r.scalar("", "!!str"); err == nil && s == "auto" {
		return 0, nil
	}
	d, err := readDuration(r)
	if err == nil && d == 0 {
		err = errors.New("cannot be 0; write auto to leave it to the workload, or a duration such as 90s")
	}
	return d, err
}

// readLimit takes a duration that is not 0.
func readLimit(r raw) (time.Duration, error) {
	d, err := readDuration(r)
	if err == nil && d == 0 {
		err = errors.New("cannot be 0; write a duration such as 90s")
	}
	return d, err
}

// ParseDuration reads Go's durations ("1h30m", "90s", "1.5h") and also days of
// 24 hours and weeks ("1w2d", "1d12h"). A number without a unit is an error,
// except 0; so is a negative duration.
func ParseDuration(s string) (time.Duration, error) {
	const remedy = "write it as 90s, 15m, 12h, 3d, 1w or 1d12h"
	rest := strings.TrimPrefix(s, "+")
	if strings.HasPrefix(rest, "-") {
		return 0, fmt.Errorf("%q is negative; write a duration from 0 up", s)
	}
	if rest == "0" {
		return 0, nil
	}
	if _, err := strconv.ParseFloat(rest, 64); err == nil {
		return 0, fmt.Errorf("%q has no unit; %s", s, remedy)
	}
	var total time.Duration
	if rest == "" {
		return 0, fmt.Errorf("%q is no duration; %s", s, remedy)
	}
	for rest != "" {
		digits := strings.IndexFunc(rest, func(c rune) bool { return c != '.' && (c < '0' || c > '9') })
		if digits <= 0 {
			return 0, fmt.Errorf("%q is no duration; %s", s, remedy)
		}
		end := digits
		for end < len(rest) && rest[end] != '.' && (rest[end] < '0' || rest[end] > '9') {
			end++
		}
		number, unit := rest[:digits], rest[digits:end]
		rest = rest[end:]
		times := time.Duration(1)
		switch unit {
		case "d":
			unit, times = "h", 24
		case "w":
			unit, times = "h", 24*7
		}
		d, err := time.ParseDuration(number + unit)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration; %s", s, remedy)
		}
		if d > math.MaxInt64/times || total > math.MaxInt64-d*times {
			return 0, fmt.Errorf("%q is longer than 292 years; %s", s, remedy)
		}
		total += d * times
	}
	return total, nil
}

// readWindow takes what updater.ParseWindow takes.
func readWindow(r raw) (updater.Window, error) {
	s, err := r.scalar("a window such as \"Mon-Fri 02:00-05:00 Europe/Berlin\"", "!!str")
	if err != nil {
		return updater.Window{}, err
	}
	w, err := updater.ParseWindow(s)
	if err != nil { // the key already says that it is a window
		err = errors.New(strings.TrimPrefix(err.Error(), "window "))
	}
	return w, err
}

// readList takes a list of texts, or one text with commas.
func readList(r raw) ([]string, error) {
	const want = "a list of names, or one text with commas"
	words, err := r.words()
	if err != nil {
		if r.node != nil && r.node.Kind == yaml.SequenceNode {
			return nil, err
		}
		s, err := r.scalar(want, "!!str")
		if err != nil {
			return nil, err
		}
		if s == "" {
			return nil, nil
		}
		words = strings.Split(s, ",")
	}
	for i, w := range words {
		words[i] = strings.TrimSpace(w)
		if words[i] == "" {
			return nil, fmt.Errorf("entry %d is empty; write %s", i+1, want)
		}
	}
	return words, nil
}

// readCommand takes a list of texts, or one text: a JSON array, or words with
// quotes as a shell would read them. No shell runs it, so a word that only a
// shell would understand is an error and not silently an argument.
func readCommand(r raw) ([]string, error) {
	const want = "a list such as [\"pg_dump\", \"-f\", \"/backup/db\"]"
	words, err := r.words()
	if err != nil {
		if r.node != nil && r.node.Kind == yaml.SequenceNode {
			return nil, err
		}
		s, err := r.scalar(want, "!!str")
		if err != nil {
			return nil, err
		}
		if words, err = splitCommand(s); err != nil {
			return nil, err
		}
	}
	return words, noEmptyProgram(words)
}

// noEmptyProgram refuses what no engine could start.
func noEmptyProgram(words []string) error {
	if len(words) > 0 && words[0] == "" {
		return errors.New("begins with an empty word; write a list such as [\"pg_dump\", \"-f\", \"/backup/db\"]")
	}
	return nil
}

// splitCommand takes one text apart: what every command is that is not written
// as a list of the file.
func splitCommand(s string) ([]string, error) {
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "[") {
		var words []string
		if err := json.Unmarshal([]byte(s), &words); err != nil {
			return nil, fmt.Errorf("is no JSON array of texts: %w; write it as [\"pg_dump\", \"-f\", \"/backup/db\"]", err)
		}
		if len(words) == 0 {
			return nil, nil // as an empty text
		}
		return words, nil
	}
	if s == "" {
		return nil, nil
	}
	words, err := shellquote.Split(s)
	if err != nil {
		return nil, fmt.Errorf("cannot be taken apart into words: %w; mend the quotes, or write a JSON array", err)
	}
	for _, w := range words {
		switch w {
		case "|", "||", "&", "&&", ";", "<", ">", ">>", "2>&1":
			return nil, fmt.Errorf("holds %q, but no shell runs it; write it as [\"sh\", \"-c\", \"...\"]", w)
		}
	}
	return words, nil
}

// readSignal takes the name or the number of a signal that an engine can send; an
// empty text is none.
func readSignal(r raw) (string, error) {
	s, err := r.scalar("a signal such as SIGTERM", "!!str", "!!int")
	if err != nil || s == "" {
		return "", err
	}
	if n, err := signal.ParseSignal(s); err != nil || !signal.ValidSignalForPlatform(n) {
		return "", fmt.Errorf("%q is no signal; write one such as SIGTERM or SIGRTMIN+3, or its number", s)
	}
	return strings.ToUpper(s), nil
}

// readImage takes the reference of an image; an empty one is none.
func readImage(r raw) (string, error) {
	const want = "an image such as ghcr.io/acme/smoke-test:1"
	s, err := r.scalar(want, "!!str")
	if err != nil || s == "" {
		return "", err
	}
	if _, err := reference.ParseNormalizedNamed(s); err != nil {
		return "", fmt.Errorf("%q is no image: %w; write %s", s, err, want)
	}
	return s, nil
}

// readProbe takes the address of a probe. The host may be empty: it is the
// container's own address then. The command of an exec probe comes out as a
// JSON array whichever way it is written, so that no backend splits it anew and
// by rules of its own.
func readProbe(r raw) (string, error) {
	const remedy = "write it as http://:8080/healthz, https://:8443/, tcp://:5432 or exec:pg_isready -q"
	s, err := r.scalar("a probe", "!!str")
	if err != nil || s == "" {
		return "", err
	}
	if command, ok := strings.CutPrefix(s, "exec:"); ok {
		words, err := splitCommand(command)
		switch {
		case err != nil:
			return "", err
		case len(words) == 0:
			return "", errors.New("has no command; " + remedy)
		}
		return "exec:" + inline(words), noEmptyProgram(words)
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%q is no probe; %s", s, remedy)
	}
	port, err := strconv.Atoi(u.Port())
	bad := err != nil || port < 1 || port > 65535
	switch {
	case u.Scheme == "tcp" && (u.Path != "" || u.RawQuery != ""):
		return "", fmt.Errorf("%q has more than an address; %s", s, remedy)
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "tcp":
		return "", fmt.Errorf("%q is no probe; %s", s, remedy)
	case bad:
		return "", fmt.Errorf("%q has no port from 1 to 65535; %s", s, remedy)
	}
	return s, nil
}

// readListen takes an address to listen on, host and port; "" is none. The host
// is an address or a name of this machine, or left out for all of them.
func readListen(r raw) (string, error) {
	const want = "write host and port, such as 127.0.0.1:9713, or nothing to turn it off"
	s, err := r.scalar("an address such as 127.0.0.1:9713", "!!str", "!!int")
	if err != nil || s == "" {
		return "", err
	}
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		return "", fmt.Errorf("%s is a port without a host; write \"127.0.0.1:%s\", or another host that is to listen", s, s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || strings.ContainsAny(host, "/ ") {
		return "", fmt.Errorf("%q is no address to listen on; %s", s, want)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q has no port from 1 to 65535; %s", s, want)
	}
	return s, nil
}

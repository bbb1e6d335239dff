package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/updaterd/updaterd/internal/updater"
)

// compat says whose labels are heeded besides our own, so that who comes from
// another program need not label every container anew.
type compat struct {
	watchtower bool
	// scope is Watchtower's: only containers with this scope are looked at; "none"
	// are those without one, "" is all.
	scope string
}

// readCompat takes a list of the programs whose labels are heeded.
func readCompat(r raw) (compat, error) {
	words, err := readList(r)
	if err != nil {
		return compat{}, err
	}
	var c compat
	for _, w := range words {
		name, scope, scoped := strings.Cut(w, ":")
		switch {
		case name != "watchtower" || scoped && scope == "":
			return compat{}, fmt.Errorf("%q is no program whose labels are known; write watchtower, or watchtower:SCOPE", w)
		case c.watchtower:
			return compat{}, errors.New("names watchtower twice; keep one")
		}
		c = compat{watchtower: true, scope: scope}
	}
	return c, nil
}

const watchtowerLabel = "com.centurylinklabs.watchtower."

// read reads the labels of the other programs on a workload, as the settings
// that they amount to. What has no equal is a problem: nothing is guessed.
func (c compat) read(w updater.Workload, keys []key[updater.Settings]) (map[string]written, Problems) {
	if !c.watchtower || w.Namespace != "" {
		return nil, nil
	}
	texts := map[string]string{} // by setting
	from := map[string]place{}
	var problems Problems
	for _, label := range slices.Sorted(maps.Keys(w.Labels)) {
		name, theirs := strings.CutPrefix(label, watchtowerLabel)
		if !theirs {
			continue
		}
		at := place{file: w.ID, key: "label " + label, source: "label " + label}
		setting, text, err := watchtower(name, strings.TrimSpace(w.Labels[label]))
		if err != nil {
			problems = append(problems, at.problem(err))
			continue
		}
		// no-pull comes after monitor-only, and is stronger.
		if setting != "" {
			texts[setting], from[setting] = text, at
		}
	}
	if c.scope != "" && !c.inScope(w) {
		texts["enable"] = "false"
		from["enable"] = place{file: w.ID, key: "compat", source: "compat: watchtower:" + c.scope}
	}
	values := map[string]written{}
	for _, k := range keys {
		text, ok := texts[k.name]
		if !ok {
			continue
		}
		v, err := k.read(raw{text: text})
		if err != nil {
			problems = append(problems, from[k.name].problem(err))
			continue
		}
		values[k.name] = written{v, text, from[k.name]}
	}
	return values, problems
}

// WatchtowerFaults are those of a container's labels that compat: [watchtower] refuses,
// and why.
func WatchtowerFaults(labels map[string]string) map[string]string {
	_, problems := compat{watchtower: true}.read(updater.Workload{Labels: labels}, newTable().keys)
	faults := map[string]string{}
	for _, p := range problems {
		faults[strings.TrimPrefix(p.Key, "label ")] = p.Text
	}
	return faults
}

func (c compat) inScope(w updater.Workload) bool {
	scope := w.Labels[watchtowerLabel+"scope"]
	if c.scope == "none" {
		return scope == "" || scope == "none"
	}
	return scope == c.scope
}

// watchtower is the setting that one of Watchtower's labels amounts to, as one
// would write it; "" when to none.
func watchtower(name, text string) (setting, value string, err error) {
	// on is the setting of a switch, where it is on.
	on := func(setting, value string) (string, string, error) {
		is, err := strconv.ParseBool(text)
		if err != nil || !is {
			return "", "", flagError(err)
		}
		return setting, value, nil
	}
	switch name {
	case "enable":
		is, err := strconv.ParseBool(text)
		return "enable", strconv.FormatBool(is), flagError(err)
	case "monitor-only":
		return on("mode", "monitor")
	case "no-pull":
		// Watchtower then only looks whether a newer image is on this host already.
		return on("mode", "hold")
	case "depends-on":
		var names []string
		for n := range strings.SplitSeq(text, ",") {
			names = append(names, strings.TrimPrefix(strings.TrimSpace(n), "/"))
		}
		return "depends-on", strings.Join(names, ","), nil
	case "stop-signal":
		return "stop-signal", text, nil
	case "scope":
		return "", "", nil
	case "lifecycle.pre-update", "lifecycle.post-update":
		if text == "" {
			return "", "", nil
		}
		return strings.TrimPrefix(name, "lifecycle.") + ".command", inline([]string{"sh", "-c", text}), nil
	case "lifecycle.pre-update-timeout", "lifecycle.post-update-timeout":
		minutes, err := strconv.Atoi(text)
		if err != nil || minutes < 0 {
			return "", "", errors.New("is no number of minutes; write a whole number")
		}
		if minutes == 0 { // without end
			minutes = 24 * 60
		}
		return strings.TrimSuffix(strings.TrimPrefix(name, "lifecycle."), "-timeout") + ".timeout", strconv.Itoa(minutes) + "m", nil
	case "lifecycle.pre-check", "lifecycle.post-check":
		return "", "", errors.New("has no equal: nothing is run in a container that is only looked at; take it away, or take this container out of compat with updaterd.enable=false")
	}
	return "", "", errors.New("is a label of Watchtower that is not known here; write what it is for as a setting of updaterd, and take it away")
}

func flagError(err error) error {
	if err == nil {
		return nil
	}
	return errors.New("is neither true nor false; write one of them")
}

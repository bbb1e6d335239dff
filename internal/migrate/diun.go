package migrate

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// diun reads a setup of Diun, which is told by variables and labels. A file of its own
// says the same as its variables, see its documentation.
func diun(s Setup) *answer {
	a := newAnswer()
	a.set("watch", "labelled")
	// It only tells.
	a.set("defaults.mode", "monitor")
	docker := regexp.MustCompile(`^DIUN_PROVIDERS_DOCKER(?:_(.+))?$`)
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		value := s.Env[name]
		switch m := docker.FindStringSubmatch(name); {
		case m != nil:
			switch m[1] {
			case "":
			case "ENDPOINT":
				a.set("docker", []map[string]any{{"name": "local", "endpoint": value}})
			case "WATCHBYDEFAULT":
				if on(value) {
					a.set("watch", "all")
				}
			case "WATCHSTOPPED":
				if on(value) {
					a.set("defaults.include-stopped", true)
				}
			case "TLSVERIFY", "TLSCERTSPATH", "APIVERSION":
				a.note(name, "is tls.ca, tls.cert and tls.key of the entry of docker:; the version is negotiated")
			default:
				a.unknown(name)
			}
		case name == "DIUN_WATCH_SCHEDULE":
			a.cron(name, value, 6)
		case name == "DIUN_WATCH_JITTER":
			a.set("jitter", value)
		case name == "DIUN_WATCH_FIRSTCHECKNOTIF", name == "DIUN_WATCH_WORKERS", name == "DIUN_WATCH_COMPAREDIGEST",
			name == "DIUN_WATCH_RUNONSTARTUP", strings.HasPrefix(name, "DIUN_DB_"), strings.HasPrefix(name, "DIUN_WATCH_HEALTHCHECKS_"):
			a.note(name, "means nothing here, leave it out")
		case strings.HasPrefix(name, "DIUN_NOTIF_"):
			a.note(name, "%s", messages)
		case strings.HasPrefix(name, "DIUN_REGOPTS_"):
			a.note(name, "credentials are in Docker's config.json, or in registries: with a password-file; see docs/registries.md")
		case strings.HasPrefix(name, "DIUN_DEFAULTS_"):
			a.note(name, "is a setting below defaults:, see the labels")
		case strings.HasPrefix(name, "DIUN_PROVIDERS_"):
			a.note(name, "is a place where nothing runs that could be updated, or one that is not watched; see docs/configuration.md")
		case name == "LOG_LEVEL":
			logLevel(a, name, value)
		case name == "LOG_JSON":
			if on(value) {
				a.set("log.format", "json")
			}
		case strings.HasPrefix(name, "DIUN_"):
			a.unknown(name)
		}
	}
	repo := on(s.Labels["diun.watch_repo"])
	for _, label := range slices.Sorted(maps.Keys(s.Labels)) {
		value, what := s.Labels[label], "label "+label
		switch label {
		case "diun.enable":
			a.labels["enable"] = yes(value)
		case "diun.watch_repo":
			if repo && a.labels["policy"] == "" {
				a.labels["policy"] = "newest"
			}
		case "diun.sort_tags":
			switch value {
			case "semver":
				a.labels["policy"] = "major"
			case "lexicographical":
				a.labels["policy"] = "alphabetical"
			case "reverse", "default":
			default:
				a.note(what, "%q has no equal; choose a policy", value)
			}
		case "diun.include_tags":
			a.labels["include"] = either(value)
		case "diun.exclude_tags":
			a.labels["exclude"] = either(value)
		case "diun.max_tags":
			a.note(what, "all tags are looked at, in one list")
		case "diun.platform":
			a.note(what, "the platform is the one that the container runs on")
		case "diun.notify_on", "diun.regopt", "diun.hub_link":
			a.note(what, "is not told container by container here")
		default:
			if strings.HasPrefix(label, "diun.metadata.") {
				a.note(what, "means nothing here, leave it out")
			} else if strings.HasPrefix(label, "diun.") {
				a.unknown(what)
			}
		}
	}
	if !repo && a.labels["policy"] != "" {
		delete(a.labels, "policy")
		a.note("label diun.sort_tags", "means nothing without diun.watch_repo")
	}
	return a
}

// either is one regular expression for a list with semicolons.
func either(list string) string {
	var all []string
	for re := range strings.SplitSeq(list, ";") {
		if re = strings.TrimSpace(re); re != "" {
			all = append(all, re)
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	for i, re := range all {
		all[i] = "(?:" + re + ")"
	}
	return strings.Join(all, "|")
}

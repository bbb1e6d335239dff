package migrate

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// wud reads a setup of WUD, which is told by variables and labels.
func wud(s Setup) *answer {
	a := newAnswer()
	a.set("schedule", "0 * * * *")
	a.set("watch", "all")
	a.set("defaults.policy", "major")
	acts := false
	sockets := map[string]map[string]string{} // by watcher
	watcher := regexp.MustCompile(`^WUD_WATCHER_([A-Z0-9]+)_(.+)$`)
	docker := regexp.MustCompile(`^WUD_TRIGGER_DOCKER(?:COMPOSE)?_([A-Z0-9]+)_(.+)$`)
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		value := s.Env[name]
		switch m := watcher.FindStringSubmatch(name); {
		case m != nil:
			if sockets[m[1]] == nil {
				sockets[m[1]] = map[string]string{}
			}
			sockets[m[1]][m[2]] = value
		case docker.MatchString(name):
			m := docker.FindStringSubmatch(name)
			acts = true
			switch m[2] {
			case "PRUNE":
				if !on(value) {
					a.set("defaults.keep", "all")
				}
			case "DRYRUN":
				if on(value) {
					a.set("defaults.mode", "monitor")
				}
			case "AUTO":
				if !on(value) {
					a.set("defaults.mode", "approve")
				}
			case "THRESHOLD":
				switch value {
				case "minor", "patch":
					a.set("defaults.policy", value)
				case "all", "major":
				default:
					a.note(name, "%q has no equal; choose a policy for each container", value)
				}
			default:
				a.note(name, "has no equal: a compose file is not changed, and a tag in it stays as you wrote it")
			}
		case strings.HasPrefix(name, "WUD_TRIGGER_"):
			a.note(name, "%s", messages)
		case strings.HasPrefix(name, "WUD_REGISTRY_"):
			a.note(name, "credentials are in Docker's config.json, or in registries: with a password-file; see docs/registries.md")
		case name == "WUD_LOG_LEVEL":
			logLevel(a, name, value)
		case name == "WUD_LOG_FORMAT":
			jsonLog(a, value)
		case strings.HasPrefix(name, "WUD_AUTH_"), strings.HasPrefix(name, "WUD_SERVER_"):
			a.note(name, "is of its page; see docs/page.md")
		case strings.HasPrefix(name, "WUD_STORE_"):
			a.note(name, "what is remembered is in the directory that state: names; the two cannot read each other's")
		case strings.HasPrefix(name, "WUD_"):
			a.unknown(name)
		}
	}
	if !acts {
		a.set("defaults.mode", "monitor")
		a.note("no trigger docker", "WUD only tells then, and so does mode: monitor")
	}
	var hosts []map[string]any
	for _, name := range slices.Sorted(maps.Keys(sockets)) {
		host := map[string]any{"name": strings.ToLower(name)}
		port := "2375"
		for _, key := range slices.Sorted(maps.Keys(sockets[name])) {
			value, what := sockets[name][key], "WUD_WATCHER_"+name+"_"+key
			switch key {
			case "SOCKET":
				host["endpoint"] = "unix://" + value
			case "PORT":
				port = value
			case "HOST":
				host["endpoint"] = "tcp://" + value
			case "CRON":
				a.cron(what, value, 6)
			case "JITTER":
				a.note(what, "is jitter: at the top of the file, as a duration")
			case "WATCHBYDEFAULT":
				if !on(value) {
					a.set("watch", "labelled")
				}
			case "WATCHALL":
				if on(value) {
					a.set("defaults.include-stopped", true)
				}
			case "WATCHEVENTS", "WATCHATSTART", "WATCHDIGEST":
				a.note(what, "means nothing here, leave it out")
			case "CAFILE", "CERTFILE", "KEYFILE":
				a.note(what, "is tls.ca, tls.cert or tls.key of the entry of docker:")
			default:
				a.unknown(what)
			}
		}
		if e, ok := host["endpoint"].(string); ok {
			if strings.HasPrefix(e, "tcp://") {
				host["endpoint"] = e + ":" + port
			}
			hosts = append(hosts, host)
		}
	}
	if len(hosts) > 0 {
		a.set("docker", hosts)
	}
	for _, label := range slices.Sorted(maps.Keys(s.Labels)) {
		value, what := s.Labels[label], "label "+label
		switch label {
		case "wud.watch":
			a.labels["enable"] = yes(value)
		case "wud.tag.include":
			a.labels["include"] = value
		case "wud.tag.exclude":
			a.labels["exclude"] = value
		case "wud.tag.transform":
			from, to, ok := strings.Cut(value, "=>")
			if !ok || a.labels["include"] != "" {
				a.note(what, "is include and extract in one here; write them by hand")
				continue
			}
			a.labels["include"], a.labels["extract"] = strings.TrimSpace(from), strings.TrimSpace(to)
		case "wud.watch.digest":
			if on(value) {
				a.labels["policy"] = "digest"
			}
		case "wud.display.name", "wud.display.icon", "wud.link.template":
			a.note(what, "means nothing here, leave it out")
		case "wud.trigger.include", "wud.trigger.exclude":
			a.note(what, "what may be done is mode: of each container; who is told is the same for all")
		default:
			if strings.HasPrefix(label, "wud.") {
				a.unknown(what)
			}
		}
	}
	return a
}

func yes(s string) string {
	if on(s) {
		return "true"
	}
	return "false"
}

package migrate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

const messages = "messages are a list called notify: here; write the address into a file that updaterd's user may read and others may not, and name that with url-file"

// watchtowerFlags are Watchtower's, by their long names; its variables are
// WATCHTOWER_ and the name in capitals, but for those in watchtowerVariables.
func watchtowerFlags() map[string]option {
	secret := says("secrets come from files here; see docs/registries.md and docs/notifications.md")
	server := saysFlag("it is another interface; see docs/api.md")
	nothing := saysFlag("means nothing here, leave it out")
	return map[string]option{
		"interval": {value: true, do: func(a *answer, what, v string) {
			seconds, err := strconv.Atoi(v)
			if err != nil || seconds <= 0 {
				a.note(what, "%q is no number of seconds", v)
				return
			}
			a.set("schedule", "@every "+(time.Duration(seconds)*time.Second).String())
		}},
		"schedule":        {value: true, do: func(a *answer, what, v string) { a.cron(what, v, 6) }},
		"label-enable":    is("watch", "labelled"),
		"monitor-only":    is("defaults.mode", "monitor"),
		"no-pull":         is("defaults.mode", "hold"),
		"cleanup":         is("defaults.keep", 0),
		"include-stopped": is("defaults.include-stopped", true),
		"rolling-restart": is("parallel", 1),
		"stop-timeout": {value: true, do: func(a *answer, what, v string) {
			if _, err := time.ParseDuration(v); err != nil {
				a.note(what, "%q is no duration", v)
				return
			}
			a.set("defaults.stop-timeout", v)
		}},
		"log-level":          {value: true, do: logLevel},
		"debug":              is("log.level", "debug"),
		"trace":              is("log.level", "debug"),
		"log-format":         {value: true, do: func(a *answer, _, v string) { jsonLog(a, v) }},
		"scope":              {value: true, do: func(a *answer, _, v string) { a.set("compat", []string{"watchtower:" + v}) }},
		"disable-containers": {value: true, do: func(a *answer, _, v string) { a.each(words(v), map[string]any{"enable": false}) }},
		"host": {value: true, do: func(a *answer, _, v string) {
			a.set("docker", []map[string]any{{"name": "local", "endpoint": v}})
		}},
		"enable-lifecycle-hooks": {do: func(a *answer, what, v string) {
			if !on(v) {
				a.note(what, "hooks on labels are run here in any case; take the labels away if you do not want them")
			}
		}},
		"label-take-precedence": {do: func(a *answer, what, v string) {
			if !on(v) {
				a.note(what, "what is written on a container always goes first here")
			}
		}},
		"run-once":               saysFlag("run `updaterd run --once` in its place"),
		"update-on-start":        saysFlag("with an interval, the first pass always comes at once; with times of day, run `updaterd run --once`"),
		"include-restarting":     saysFlag("a container in a crash loop is left alone (reason not-running)"),
		"revive-stopped":         saysFlag("what did not run is not started: it is updated, and stays stopped"),
		"remove-volumes":         saysFlag("volumes are never removed"),
		"no-restart":             saysFlag("a container that is updated runs on the new image; use mode: monitor to be told only"),
		"health-check":           saysFlag("is the command `updaterd status`"),
		"tlsverify":              saysFlag("write tls.ca, tls.cert and tls.key at the entry of docker:"),
		"api-version":            says("the version is negotiated"),
		"no-startup-message":     nothing,
		"no-color":               nothing,
		"warn-on-head-failure":   says("trouble with a registry is a reason that check and the log show"),
		"notifications":          says(messages),
		"notification-url":       says(messages),
		"notifications-level":    says("which events are told is `on:` of each entry of notify:"),
		"notification-template":  says("write it anew, see docs/notifications.md"),
		"notifications-hostname": says("messages name the backend; call it as you like with docker: [{name: ...}]"),
		"notification-report":    nothing,
		"http-api-update":        server, "http-api-metrics": server, "http-api-token": secret, "http-api-periodic-polls": server,
		"repo-user": secret, "repo-pass": secret,
	}
}

func watchtower(s Setup) *answer {
	a := newAnswer()
	a.set("compat", []string{"watchtower"})
	a.set("watch", "all")
	a.set("schedule", "@every 24h0m0s")
	a.set("defaults.keep", "all")
	flags := watchtowerFlags()
	short := map[string]string{"i": "interval", "s": "schedule", "c": "cleanup", "d": "debug", "e": "label-enable", "t": "stop-timeout",
		"H": "host", "R": "run-once", "m": "monitor-only", "n": "notifications", "x": "disable-containers", "S": "include-stopped", "v": "tlsverify", "a": "api-version"}
	variables := map[string]string{"WATCHTOWER_POLL_INTERVAL": "interval", "WATCHTOWER_TIMEOUT": "stop-timeout", "DOCKER_HOST": "host",
		"DOCKER_TLS_VERIFY": "tlsverify", "DOCKER_API_VERSION": "api-version", "REPO_USER": "repo-user", "REPO_PASS": "repo-pass", "NO_COLOR": "no-color",
		"WATCHTOWER_LIFECYCLE_HOOKS": "enable-lifecycle-hooks"}

	// A flag goes before the variable, and comes later.
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		flag, ok := variables[name]
		if rest, theirs := strings.CutPrefix(name, "WATCHTOWER_"); !ok && theirs {
			flag, ok = strings.ToLower(strings.ReplaceAll(rest, "_", "-")), true
		}
		if !ok {
			continue
		}
		if o, known := flags[flag]; known {
			o.do(a, name, s.Env[name])
		} else {
			a.unknownOf(name, flag)
		}
	}
	var named []string
	for i := 0; i < len(s.Args); i++ {
		arg := s.Args[i]
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			named = append(named, strings.TrimPrefix(arg, "/"))
			continue
		}
		flag, value, has := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !strings.HasPrefix(arg, "--") {
			if len(flag) > 1 && !has { // -i300
				if o := flags[short[flag[:1]]]; o.value {
					flag, value, has = flag[:1], flag[1:], true
				} else { // -cd
					for _, one := range flag[1:] {
						s.Args = slices.Insert(s.Args, i+1, "-"+string(one))
					}
					flag = flag[:1]
				}
			}
			if long, ok := short[flag]; ok {
				flag = long
			}
		}
		o, known := flags[flag]
		switch {
		case !known:
			a.unknownOf("--"+flag, flag)
			// What stands behind it is its value rather than a container, and may
			// be a secret.
			if !has && i+1 < len(s.Args) && !strings.HasPrefix(s.Args[i+1], "-") {
				i++
			}
			continue
		case o.value && !has && i+1 < len(s.Args):
			i++
			value = s.Args[i]
		case !o.value && !has:
			value = "true"
		}
		o.do(a, "--"+flag, value)
	}
	if len(named) > 0 { // only these
		a.set("watch", "labelled")
		a.each(named, map[string]any{"enable": true})
	}
	if tz := s.Env["TZ"]; tz != "" {
		if cron, ok := a.config["schedule"].(string); ok && !strings.HasPrefix(cron, "@every") {
			a.set("schedule", "CRON_TZ="+tz+" "+cron)
		}
	}
	for _, label := range slices.Sorted(maps.Keys(s.Labels)) {
		if fault := s.Faults[label]; fault != "" {
			a.note("label "+label, "%s", fault)
		} else if strings.HasPrefix(label, "com.centurylinklabs.watchtower") {
			a.note("label "+label, "is heeded by compat: [watchtower], and need not be changed")
		}
	}
	return a
}

// unknownOf tells of an option that no table has; those of messages are many.
func (a *answer) unknownOf(what, flag string) {
	if strings.HasPrefix(flag, "notification") {
		a.note(what, "%s", messages)
		return
	}
	a.unknown(what)
}

// each makes a rule for each container of a list.
func (a *answer) each(names []string, settings map[string]any) {
	for _, n := range names {
		r := maps.Clone(settings)
		r["match"] = map[string]any{"name": strings.TrimPrefix(n, "/")}
		a.rule(r)
	}
}

// cron sets the schedule from an expression with up to this many fields, of which
// a sixth, the first, is seconds.
func (a *answer) cron(what, v string, most int) {
	zone := ""
	fields := strings.Fields(v)
	if len(fields) > 0 && (strings.HasPrefix(fields[0], "TZ=") || strings.HasPrefix(fields[0], "CRON_TZ=")) {
		_, name, _ := strings.Cut(fields[0], "=")
		zone, fields = "CRON_TZ="+name+" ", fields[1:]
	}
	if len(fields) == 6 && most == 6 {
		if fields[0] != "0" {
			a.note(what, "passes begin at whole minutes here: the seconds (%s) were left out", fields[0])
		}
		fields = fields[1:]
	}
	for i, f := range fields {
		fields[i] = strings.ReplaceAll(f, "?", "*")
	}
	if len(fields) != 5 && !(len(fields) > 0 && strings.HasPrefix(fields[0], "@")) {
		a.note(what, "%q is no schedule that is understood", v)
		return
	}
	a.set("schedule", zone+strings.Join(fields, " "))
}

func logLevel(a *answer, what, v string) {
	switch strings.ToLower(v) {
	case "debug", "trace":
		a.set("log.level", "debug")
	case "info":
	case "warn", "warning":
		a.set("log.level", "warn")
	case "error", "fatal", "panic":
		a.set("log.level", "error")
	default:
		a.note(what, "%s", fmt.Sprintf("%q is no level", v))
	}
}

func jsonLog(a *answer, v string) {
	if strings.EqualFold(v, "json") {
		a.set("log.format", "json")
	}
}

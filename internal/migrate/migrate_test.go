package migrate

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

func TestConfigurations(t *testing.T) {
	for _, c := range []struct {
		name, program string
		setup         Setup
		config        string   // as YAML
		labels        []string // in full
		notes         []string // parts, one for each note
	}{
		{name: "Watchtower as it comes", program: "watchtower",
			config: `{compat: [watchtower], watch: all, schedule: "@every 24h0m0s", defaults: {keep: all}}`},
		{name: "Watchtower by flags", program: "watchtower",
			setup:  Setup{Args: strings.Fields("--interval 300 --cleanup --label-enable --stop-timeout=30s --include-stopped --rolling-restart --debug --scope prod")},
			config: `{compat: ["watchtower:prod"], watch: labelled, schedule: "@every 5m0s", parallel: 1, log: {level: debug}, defaults: {keep: 0, stop-timeout: 30s, include-stopped: true}}`},
		{name: "Watchtower by short flags", program: "watchtower", setup: Setup{Args: []string{"-cde", "-i", "60", "-t20s"}},
			config: `{compat: [watchtower], watch: labelled, schedule: "@every 1m0s", log: {level: debug}, defaults: {keep: 0, stop-timeout: 20s}}`},
		{name: "Watchtower by variables, and a flag that goes before one", program: "watchtower",
			setup: Setup{Args: []string{"--schedule", "0 0 4 * * *"}, Env: map[string]string{"WATCHTOWER_POLL_INTERVAL": "60", "WATCHTOWER_MONITOR_ONLY": "true",
				"WATCHTOWER_CLEANUP": "false", "TZ": "Europe/Berlin", "PATH": "/bin", "DOCKER_HOST": "tcp://h:2375"}},
			config: `{compat: [watchtower], watch: all, schedule: "CRON_TZ=Europe/Berlin 0 4 * * *", docker: [{name: local, endpoint: "tcp://h:2375"}], defaults: {keep: all, mode: monitor}}`},
		{name: "Watchtower for some containers only", program: "watchtower", setup: Setup{Args: []string{"web", "/db"}},
			config: `{compat: [watchtower], watch: labelled, schedule: "@every 24h0m0s", defaults: {keep: all}, rules: [{match: {name: web}, enable: true}, {match: {name: db}, enable: true}]}`},
		{name: "Watchtower without some containers", program: "watchtower", setup: Setup{Env: map[string]string{"WATCHTOWER_DISABLE_CONTAINERS": "a,b"}},
			config: `{compat: [watchtower], watch: all, schedule: "@every 24h0m0s", defaults: {keep: all}, rules: [{match: {name: a}, enable: false}, {match: {name: b}, enable: false}]}`},
		{name: "what Watchtower can and we cannot", program: "watchtower",
			setup: Setup{Args: []string{"--remove-volumes", "--frobnicate", "--notification-slack-hook-url", "https://hunter2", "--run-once", "--schedule", "30 0 4 * * *"},
				Env: map[string]string{"WATCHTOWER_HTTP_API_TOKEN": "hunter2"}},
			config: `{compat: [watchtower], watch: all, schedule: "0 4 * * *", defaults: {keep: all}}`,
			notes: []string{"--frobnicate: is not known", "--notification-slack-hook-url: messages are", "--remove-volumes: volumes are never removed", "--run-once: run `updaterd run --once`",
				"--schedule: passes begin at whole minutes", "WATCHTOWER_HTTP_API_TOKEN: secrets come from files"}},
		{name: "a secret behind switches", program: "watchtower", setup: Setup{Args: strings.Fields("--http-api-update --http-api-token hunter2 --http-api-metrics --http-api-periodic-polls web")},
			config: `{compat: [watchtower], watch: labelled, schedule: "@every 24h0m0s", defaults: {keep: all}, rules: [{match: {name: web}, enable: true}]}`,
			notes:  []string{"--http-api-metrics: it is another", "--http-api-periodic-polls: it is another", "--http-api-token: secrets come", "--http-api-update: it is another"}},
		{name: "what cannot be read is not printed", program: "watchtower", setup: Setup{Args: []string{"--schedule", "0 61 4 * * *", "--stop-timeout", "soon"}},
			config: `{compat: [watchtower], watch: all, defaults: {keep: all}}`,
			notes:  []string{`--stop-timeout: "soon" is no duration`, `its schedule: "61 4 * * *" is none here`}},
		{name: "a zone that is none", program: "watchtower", setup: Setup{Args: []string{"--schedule", "0 0 4 * * *"}, Env: map[string]string{"TZ": "Middle/Earth"}},
			config: `{compat: [watchtower], watch: all, defaults: {keep: all}}`,
			notes:  []string{`its schedule: "CRON_TZ=Middle/Earth 0 4 * * *" is none here`}},
		{name: "patterns of another kind", program: "wud",
			setup:  Setup{Env: map[string]string{"WUD_TRIGGER_DOCKER_LOCAL_PRUNE": "true"}, Labels: map[string]string{"wud.tag.include": `^(?!.*rc)`, "wud.tag.exclude": `beta`}},
			config: `{watch: all, schedule: "0 * * * *", defaults: {policy: major}}`,
			labels: []string{"updaterd.exclude=beta"},
			notes:  []string{`its pattern of tags: "^(?!.*rc)" cannot be read here`}},
		{name: "WUD that only tells", program: "wud",
			setup: Setup{Env: map[string]string{"WUD_WATCHER_LOCAL_CRON": "0 1 * * *", "WUD_WATCHER_LOCAL_WATCHBYDEFAULT": "false", "WUD_WATCHER_LOCAL_SOCKET": "/var/run/docker.sock", "WUD_LOG_LEVEL": "debug",
				"WUD_WATCHER_FAR_HOST": "far", "WUD_WATCHER_FAR_PORT": "2376"},
				Labels: map[string]string{"wud.watch": "true", "wud.tag.include": `^\d+\.\d+$`}},
			config: `{watch: labelled, schedule: "0 1 * * *", log: {level: debug}, defaults: {policy: major, mode: monitor}, docker: [{name: far, endpoint: "tcp://far:2376"}, {name: local, endpoint: "unix:///var/run/docker.sock"}]}`,
			labels: []string{"updaterd.enable=true", `updaterd.include=^\d+\.\d+$`},
			notes:  []string{"no trigger docker: WUD only tells"}},
		{name: "WUD that updates", program: "wud",
			setup: Setup{Env: map[string]string{"WUD_TRIGGER_DOCKER_LOCAL_PRUNE": "true", "WUD_TRIGGER_DOCKER_LOCAL_THRESHOLD": "minor", "WUD_TRIGGER_SMTP_A_PASS": "hunter2"},
				Labels: map[string]string{"wud.tag.transform": `^v(\d+)$ => $1`, "wud.watch.digest": "true", "wud.odd": "x"}},
			config: `{watch: all, schedule: "0 * * * *", defaults: {policy: minor}}`,
			labels: []string{"updaterd.extract=$1", `updaterd.include=^v(\d+)$`, "updaterd.policy=digest"},
			notes:  []string{"WUD_TRIGGER_SMTP_A_PASS: messages are", "label wud.odd: is not known"}},
		{name: "Diun", program: "diun",
			setup: Setup{Env: map[string]string{"DIUN_WATCH_SCHEDULE": "0 */6 * * *", "DIUN_WATCH_JITTER": "30s", "DIUN_PROVIDERS_DOCKER": "true", "DIUN_NOTIF_MAIL_PASSWORD": "hunter2"},
				Labels: map[string]string{"diun.enable": "true", "diun.watch_repo": "true", "diun.sort_tags": "semver", "diun.include_tags": "^1;^2", "diun.max_tags": "10"}},
			config: `{watch: labelled, schedule: "0 */6 * * *", jitter: 30s, defaults: {mode: monitor}}`,
			labels: []string{"updaterd.enable=true", "updaterd.include=(?:^1)|(?:^2)", "updaterd.policy=major"},
			notes:  []string{"DIUN_NOTIF_MAIL_PASSWORD: messages are", "label diun.max_tags: all tags"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, labels, err := From(c.program, c.setup)
			require.NoError(t, err)
			require.YAMLEq(t, c.config, text)
			require.Equal(t, c.labels, labels)
			var notes []string
			for line := range strings.Lines(text) {
				if note, ok := strings.CutPrefix(line, "#   "); ok {
					notes = append(notes, note)
				}
			}
			require.Len(t, notes, len(c.notes), text)
			for i, part := range c.notes {
				require.Contains(t, notes[i], part)
			}
			require.NotContains(t, text, "hunter2", "no secret is printed")
		})
	}
	_, _, err := From("ouroboros", Setup{})
	require.ErrorContains(t, err, "diun, watchtower, wud")
}

// FuzzFrom holds that whatever a setup says, what comes is YAML.
func FuzzFrom(f *testing.F) {
	f.Add("--interval\n300\n-cd", "WATCHTOWER_SCHEDULE", "0 0 4 * * *")
	f.Add("-", "WUD_WATCHER_A_HOST", "x")
	f.Add("--x=\n\x00", "DIUN_WATCH_JITTER", "\n# \x01")
	f.Fuzz(func(t *testing.T, args, name, value string) {
		for _, program := range Programs() {
			text, _, err := From(program, Setup{Args: strings.Split(args, "\n"), Env: map[string]string{name: value}, Labels: map[string]string{name: value}})
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := yaml.Unmarshal([]byte(text), &v); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
		}
	})
}

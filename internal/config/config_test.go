package config

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/updater"
)

// from loads a configuration from a file in a directory of its own.
func from(t testing.TB, text string, environ ...string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "updaterd.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	for name, secret := range map[string]string{"long": "a secret of some length", "short": "a short one\n"} {
		if strings.Contains(text, "secret-file: "+name) {
			require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte(secret), 0o600))
		}
	}
	return Load(path, environ)
}

// builtIn are the settings that nobody wrote anything about.
func builtIn() updater.Settings {
	return updater.Settings{
		Mode:   updater.ModeUpdate,
		Policy: policy.Spec{Policy: "digest"},
		Pin:    updater.PinRespect,
		Health: updater.Health{Stable: 10 * time.Second},
		Keep:   1,

		CronJobGate: updater.GateNone,
	}
}

func TestNothingWrittenIsTheDefaults(t *testing.T) {
	c, err := Load("", []string{"HOME=/home/ann"})
	require.NoError(t, err)
	require.Equal(t, "@every 15m", c.Schedule.String())
	require.Equal(t, 30*time.Second, c.Jitter)
	require.Equal(t, WatchLabelled, c.Watch)
	require.Equal(t, "/home/ann/.local/state/updaterd", c.State)
	require.Equal(t, 4, c.Parallel)
	require.Equal(t, Log{"info", "text"}, c.Log)
	require.Equal(t, []Docker{{Name: "local"}}, c.Docker)
	require.Empty(t, c.Registries)
	require.Empty(t, c.Notify)
	s, err := c.Settings(updater.Workload{ID: "local/web"})
	require.NoError(t, err)
	require.Equal(t, builtIn(), s)

	empty, err := from(t, "{}\n", "HOME=/home/ann")
	require.NoError(t, err)
	empty.File = ""
	require.Equal(t, c.Show(), empty.Show())
}

func TestEverythingWrittenIsTaken(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"token": "secret\n", "hook": "https://example.com/hook?token=x\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	path := filepath.Join(dir, "updaterd.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`
schedule: "CRON_TZ=Europe/Berlin 0 4 * * *"
jitter: 1m
watch: all
state: state
parallel: 2
log: {level: debug, format: json}
docker:
  - name: one
    endpoint: unix:///run/one.sock
  - {name: two, endpoint: "tcp://two:2375"}
registries:
  - host: Registry.example.com:5000
    plain-http: true
    username: robot
    password-file: token
notify:
  - name: chat
    url-file: hook
    secret-file: token
    logs: true
    batch: true
    on: [updated, rolled-back]
  - url: http://example.com/
defaults:
  enable: true
  mode: approve
  policy: "semver:^1"
  include: '^(\d+)\.(\d+)$'
  exclude: rc
  extract: "$1.$2.0"
  allow-downgrade: true
  pin: follow
  write: digest
  min-age: 1w2d
  window: "Sat 22:00-04:00 UTC"
  depends-on: [db, cache]
  health:
    probe: "http://:8080/healthz"
    timeout: 90s
    stable: 0
    test: {image: "ghcr.io/acme/smoke:1", command: [smoke, "a b"], timeout: 2m}
  pre-update: {command: [pg_dump, -f, "a b"], timeout: 5m}
  post-update: "curl -f 'http://x y'"
  stop-timeout: 20s
  keep: all
  start-first: true
  include-stopped: true
  no-rollback: true
  adopt: true
  init-containers: true
  cronjob-gate: next-run
`), 0o600))
	c, err := Load(path, nil)
	require.NoError(t, err)
	require.Equal(t, "CRON_TZ=Europe/Berlin 0 4 * * *", c.Schedule.String())
	require.Equal(t, "2024-03-05T03:00:00Z", c.Schedule.Next(time.Date(2024, 3, 5, 0, 0, 0, 0, time.UTC)).UTC().Format(time.RFC3339))
	require.Equal(t, time.Minute, c.Jitter)
	require.Equal(t, WatchAll, c.Watch)
	require.Equal(t, filepath.Join(dir, "state"), c.State)
	require.Equal(t, 2, c.Parallel)
	require.Equal(t, Log{"debug", "json"}, c.Log)
	require.Equal(t, []Docker{{Name: "one", Endpoint: "unix:///run/one.sock"}, {Name: "two", Endpoint: "tcp://two:2375"}}, c.Docker)
	require.Equal(t, []Registry{{
		Host: "registry.example.com:5000", PlainHTTP: true, Username: "robot", PasswordFile: filepath.Join(dir, "token"),
	}}, c.Registries)
	require.Equal(t, []Notify{
		{
			Name: "chat", URL: "https://example.com/hook?token=x", Secret: "secret", Logs: true, Batch: true,
			On: []updater.Event{updater.EventUpdated, updater.EventRolledBack},
		},
		{
			URL: "http://example.com/",
			On:  []updater.Event{updater.EventUpdated, updater.EventRestored, updater.EventFailed, updater.EventAwaitingApproval, updater.EventRegistryTrouble, updater.EventRegistryWell},
		},
	}, c.Notify)

	s, err := c.Settings(updater.Workload{ID: "one/web"})
	require.ErrorContains(t, err, "defaults.adopt: can be honoured in clusters only")
	window, err := updater.ParseWindow("Sat 22:00-04:00 UTC")
	require.NoError(t, err)
	require.Equal(t, updater.Settings{
		Enabled: true,
		Mode:    updater.ModeApprove,
		Policy: policy.Spec{
			Policy: "semver:^1", Include: `^(\d+)\.(\d+)$`, Exclude: "rc", Extract: "$1.$2.0", AllowDowngrade: true,
		},
		Pin:       updater.PinFollow,
		Write:     updater.WriteDigest,
		MinAge:    9 * 24 * time.Hour,
		Window:    window,
		DependsOn: []string{"db", "cache"},
		Health: updater.Health{
			Probe: "http://:8080/healthz", Timeout: 90 * time.Second,
			Test: updater.Test{Image: "ghcr.io/acme/smoke:1", Command: []string{"smoke", "a b"}, Timeout: 2 * time.Minute},
		},
		PreUpdate:   updater.Hook{Command: []string{"pg_dump", "-f", "a b"}, Timeout: 5 * time.Minute},
		PostUpdate:  updater.Hook{Command: []string{"curl", "-f", "http://x y"}, Timeout: time.Minute},
		StopTimeout: 20 * time.Second,
		Keep:        updater.KeepAll,
		StartFirst:  true, IncludeStopped: true, NoRollback: true,
		Adopt: true, InitContainers: true, CronJobGate: updater.GateNextRun,
	}, s)

	// A password that was changed is the new one at the next use.
	password, err := c.Registries[0].Password()
	require.NoError(t, err)
	require.Equal(t, "secret", password)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "token"), []byte("newer"), 0o600))
	password, err = c.Registries[0].Password()
	require.NoError(t, err)
	require.Equal(t, "newer", password)

	// Nothing secret is shown.
	for _, v := range c.Show() {
		require.NotContains(t, v.Value, "token=")
		require.NotContains(t, v.Value, "example.com/")
	}
}

func TestEveryProblemHasItsPlaceAndRemedy(t *testing.T) {
	tests := []struct {
		name string
		text string
		want string // after "FILE"
	}{
		{"an unknown key", "scedule: x", `:1: scedule: is not a key; did you mean schedule?`},
		{"an unknown key like none", "frobnicate: x", `:1: frobnicate: is not a key; known are allow-label-tests, api, compat, defaults, docker, jitter, kubernetes, log, metrics, notify, parallel, registries, rules, schedule, state, watch, webhooks`},
		{"an underscore in a key", "defaults:\n  min_age: 1d", `:2: defaults.min_age: is not a key; did you mean min-age?`},
		{"an unknown key in a map", "defaults:\n  health:\n    timeot: 1s", `:3: defaults.health.timeot: is not a key; did you mean timeout?`},
		{"an unknown key in a list", "docker:\n  - name: a\n    endpont: x", `:3: docker[0].endpont: is not a key; did you mean endpoint?`},
		{"an unknown key in match", "rules:\n  - match:\n      imgae: x", `:3: rules[0].match.imgae: is not a key; did you mean image?`},
		{"an unknown key that is only a little like one", "networks: x", `:1: networks: is not a key; known are allow-label-tests, api, compat, defaults, docker, jitter, kubernetes, log, metrics, notify, parallel, registries, rules, schedule, state, watch, webhooks`},
		{"capitals in a key", "Schedule: x", `:1: Schedule: is not a key; did you mean schedule?`},
		{"a setting at the top", "policy: minor", `:1: policy: is a setting of workloads; write it below defaults, as defaults.policy, or in a rule`},
		{"a key of the file in a rule", "rules:\n  - match: {name: x}\n    parallel: 3", `:3: rules[0].parallel: belongs to the whole file; write it at the top, not indented`},
		{"no cluster", "kubernetes: []", `:1: kubernetes: lists nothing; list a cluster, or remove the key`},
		{"who may name a test, in a rule", "rules:\n  - match: {name: x}\n    allow-label-tests: true", `:3: rules[0].allow-label-tests: belongs to the whole file; write it at the top, not indented`},
		{"no YAML in the first line", "a: b: c", `:1: is no YAML: mapping values are not allowed in this context; look at the indentation, quotes and colons of this line and the one above`},
		{"no YAML in the second line", "a: 1\nb: }\n", `:2: is no YAML: did not find expected node content; look at the indentation, quotes and colons of this line and the one above`},
		{"no YAML at the end", "a: [1", `:1: is no YAML: did not find expected ',' or ']'; look at the indentation, quotes and colons of this line and the one above`},
		{"no text in the second line", "a: 1\nb: \x01\n", `:2: is no YAML: control characters are not allowed; look at the indentation, quotes and colons of this line and the one above`},
		{"a key written twice", "watch: all\njitter: 1s\nwatch: all", `:3: watch: is written twice, first in line 1; keep one`},
		{"a key written as a map and with a dot", "defaults:\n  health: {timeout: 1m}\n  health.timeout: 2m", `:3: defaults.health.timeout: is written twice, first in line 2; keep one`},
		{"a key written short and long", "defaults:\n  pre-update: [a]\n  pre-update.command: [b]", `:3: defaults.pre-update.command: is written twice, first in line 2; keep one`},
		{"a key without a value", "watch:", `:1: watch: has no value; give it one or remove the key`},
		{"a key that is a list", "? [a]\n: b", `:1: has a key that is no name; write "key: value"`},
		{"a merge key", "defaults: {<<: {keep: 2}}", `:1: defaults: has a merge key (<<); write the keys out`},
		{"an alias of aliases", "defaults: {policy: &p minor}\nrules:\n  - &r {match: {name: a}, policy: *p}\n  - *r", `:4: rules[1]: is an alias (*r) of something that holds aliases; write it out`},

		{"an empty file", "", `: is empty; write at least one key, or {} for nothing but defaults`},
		{"a file of comments", "# watch: all\n", `: is empty; write at least one key, or {} for nothing but defaults`},
		{"a file that is a list", "- a", `:1: the file is a list; write keys and values, one "key: value" to a line`},
		{"two documents", "watch: all\n---\nwatch: all", `:2: holds a second YAML document; keep one, without a line of ---`},
		{"a tab", "log:\n\tlevel: info", `:2: is indented with a tab; YAML takes spaces only`},
		{"no YAML", "watch: all\n  jitter: 1s", `:2: is no YAML: mapping values are not allowed in this context; look at the indentation, quotes and colons of this line and the one above`},
		{"a pattern without quotes", "rules:\n  - match:\n      name: *-web", `:3: is no YAML: unknown anchor '-web' referenced; put a pattern that begins with * in quotes`},
		{"a star without quotes", "rules:\n  - match: {name: *}", `:2: is no YAML: did not find expected alphabetic or numeric character; put a pattern that begins with * in quotes`},

		{"a number for a text", "defaults: {policy: 1.4}", `:1: defaults.policy: 1.4 is a number in YAML; put it in quotes: "1.4"`},
		{"a text for a number", "parallel: four", `:1: parallel: is text; write a whole number from 1 to 256`},
		{"a number out of range", "parallel: 0", `:1: parallel: "0" is out of range; write a whole number from 1 to 256`},
		{"a fraction for a whole number", "parallel: 1.5", `:1: parallel: is a number; write a whole number from 1 to 256`},
		{"a map for a text", "watch: {a: b}", `:1: watch: is a map; write one of labelled, all`},
		{"a list for a map", "defaults: [a]", `:1: defaults: is a list; write keys and values, one "key: value" to a line`},
		{"a text for a map", "log: debug", `:1: log: is text; write a map of level, format`},
		{"a map for a list", "docker:\n  name: a", `:1: docker: is a map; write a list of Docker hosts, each begun with a dash`},
		{"a text in a list of maps", "rules:\n  - web", `:2: rules[0]: is text; write keys and values, one "key: value" to a line`},
		{"a word that is no choice", "watch: labeled", `:1: watch: "labeled" is not a choice; write one of labelled, all`},
		{"yes for true", "defaults: {enable: yes}", `:1: defaults.enable: "yes" is text; write true or false, without quotes`},
		{"a quoted true", "defaults: {enable: 'true'}", `:1: defaults.enable: "true" is text; write true or false, without quotes`},
		{"a duration without a unit", "jitter: 30", `:1: jitter: "30" has no unit; write it as 90s, 15m, 12h, 3d, 1w or 1d12h`},
		{"a negative duration", "jitter: -5s", `:1: jitter: "-5s" is negative; write a duration from 0 up`},
		{"no time for health", "defaults: {health: {timeout: 0}}", `:1: defaults.health.timeout: cannot be 0; write auto to leave it to the workload, or a duration such as 90s`},
		{"no time for a command", "defaults: {pre-update: {command: [a], timeout: 0s}}", `:1: defaults.pre-update.timeout: cannot be 0; write a duration such as 90s`},
		{"a schedule that is only an interval", "schedule: 5m", `:1: schedule: "5m" is how long, and not when; write it as "@every 5m"`},
		{"a schedule that is none", "schedule: often", `:1: schedule: "often" is no schedule: expected exactly 5 fields, found 1: [often]; write it as "@every 15m", "@daily" or "CRON_TZ=Europe/Berlin 0 4 * * *"`},
		{"a policy that is none", "defaults: {policy: latest}", `:1: defaults.policy: "latest": no such policy; write one of digest, semver:<range>, patch, minor, major, newest, alphabetical`},
		{"a pattern of tags that is none", "rules:\n  - match: {name: a}\n    include: '('", ":3: rules[0].include: \"(\": missing closing ): `(`; correct the regular expression (RE2: no look-around, no back-references)"},
		{"a template without groups", "defaults: {extract: $1}", `:1: defaults.extract: "$1": it is a template over the groups of include; set include as well`},
		{"a window that is none", "defaults: {window: at night}", `:1: defaults.window: "at night": no times; write it as "Mon-Fri 02:00-05:00 Europe/Berlin"`},
		{"a signal that is none", "defaults:\n  stop-signal: SIGFOO", `:2: defaults.stop-signal: "SIGFOO" is no signal; write one such as SIGTERM or SIGRTMIN+3, or its number`},
		{"a signal beyond the last", "rules: [{match: {name: a}, stop-signal: 65}]", `:1: rules[0].stop-signal: "65" is no signal; write one such as SIGTERM or SIGRTMIN+3, or its number`},
		{"a signal with its end left out", "defaults: {stop-signal: SIGRTMIN+}", `:1: defaults.stop-signal: "SIGRTMIN+" is no signal; write one such as SIGTERM or SIGRTMIN+3, or its number`},
		{"fewer than no images", "defaults: {keep: -1}", `:1: defaults.keep: "-1" is no number of images; write a whole number from 0 up, or all`},
		{"a probe without a port", "defaults: {health: {probe: 'http://web/'}}", `:1: defaults.health.probe: "http://web/" has no port from 1 to 65535; write it as http://:8080/healthz, https://:8443/, tcp://:5432 or exec:pg_isready -q`},
		{"an exec probe for a shell", "defaults: {health: {probe: 'exec:a | b'}}", `:1: defaults.health.probe: holds "|", but no shell runs it; write it as ["sh", "-c", "..."]`},
		{"a test that is only an image", "defaults: {health: {test: smoke}}", `:1: defaults.health.test: is text; write a map of image, command, timeout`},
		{"a test in no image", "defaults: {health.test: {image: 'acme/Smoke'}}", `:1: defaults.health.test.image: "acme/Smoke" is no image: invalid reference format: repository name (acme/Smoke) must be lowercase; write an image such as ghcr.io/acme/smoke-test:1`},
		{"a test with a command and no image", "defaults:\n  health.test:\n    command: [smoke]", `:3: defaults.health.test.command: is for a test that has no image; name one as health.test.image in the configuration file, or take it away`},
		{"a rule with a command and no image", "rules:\n  - match: {name: x}\n    health.test.command: smoke", `:3: rules[0].health.test.command: is for a test that has no image; name one as health.test.image in the configuration file, or take it away`},
		{"no time for a test", "defaults: {health.test: {image: a, timeout: 0}}", `:1: defaults.health.test.timeout: cannot be 0; write a duration such as 90s`},
		{"less than no time for a test", "defaults: {health.test: {image: a, timeout: -1s}}", `:1: defaults.health.test.timeout: "-1s" is negative; write a duration from 0 up`},
		{"a command for a shell", "defaults: {pre-update: a && b}", `:1: defaults.pre-update.command: holds "&&", but no shell runs it; write it as ["sh", "-c", "..."]`},
		{"a command with a number", "defaults: {pre-update: [sleep, 5]}", `:1: defaults.pre-update.command: entry 2 5 is a number in YAML; put it in quotes: "5"`},
		{"an empty name in a list", "defaults: {depends-on: ['']}", `:1: defaults.depends-on: entry 1 is empty; write a list of names, or one text with commas`},
		{"a path from a home", "state: ~/state", `:1: state: "~/state" is no path here; write it out from the root, or relative to this file`},

		{"a rule without match", "rules:\n  - policy: minor", `:2: rules[0]: has no match; say which workloads it is for, or write what is for all below defaults`},
		{"a rule with an empty match", "rules:\n  - match: {}", `:2: rules[0].match: is empty and would fit everything; write what is for all below defaults`},
		{"an empty pattern", "rules:\n  - match: {name: ''}", `:2: rules[0].match.name: is empty and would fit nothing; write a pattern such as "web-*"`},
		{"a label that is a number", "rules:\n  - match:\n      labels: {A.b: 3}", `:3: rules[0].match.labels.A.b: 3 is a number in YAML; put it in quotes: "3"`},

		{"no host", "docker: []", `:1: docker: lists nothing, so nothing would be watched; list a host, or remove the key for the one at DOCKER_HOST`},
		{"a host without a name", "docker:\n  - endpoint: tcp://a:1", `:2: docker[0]: has no name; write one, such as name: local`},
		{"a name with a slash", "docker:\n  - name: a/b", `:2: docker[0].name: "a/b" is no name; write letters, digits, dots, dashes and underscores, 63 at most`},
		{"two hosts of one name", "docker:\n  - {name: a, endpoint: 'tcp://a:1'}\n  - {name: a, endpoint: 'tcp://b:1'}", `:3: docker[1].name: "a" is listed before (FILE:2); keep one`},
		{"one engine twice", "docker:\n  - {name: a, endpoint: 'tcp://a:1'}\n  - {name: b, endpoint: 'tcp://a:1'}", `:3: docker[1].endpoint: "tcp://a:1" is listed before (FILE:2); keep one`},
		{"ssh", "docker: [{name: a, endpoint: 'ssh://a'}]", `:1: docker[0].endpoint: "ssh://a": ssh is not spoken; forward the socket (ssh -L) and write it as unix:///var/run/docker.sock or tcp://HOST:2376`},
		{"a certificate without its key", "docker: [{name: a, endpoint: 'tcp://a:1', tls: {cert: x}}]", `:1: docker[0].tls.cert: needs tls.key; name the key of the certificate`},
		{"a certificate that is not there", "docker: [{name: a, endpoint: 'tcp://a:1', tls: {ca: /nowhere/ca.pem}}]", `:1: docker[0].tls.ca: /nowhere/ca.pem cannot be read: no such file or directory; mend the path or the permissions`},
		{"TLS on a socket", "docker: [{name: a, endpoint: 'unix:///x', tls: {ca: ca.pem}}]", `:1: docker[0].tls: is for tcp:// endpoints; remove it, or write the endpoint as tcp://HOST:2376`},

		{"a registry with a scheme", "registries: [{host: 'https://ghcr.io'}]", `:1: registries[0].host: "https://ghcr.io" is no host; write the host alone, such as ghcr.io or registry.example.com:5000`},
		{"Docker Hub by another name", "registries: [{host: index.docker.io}]", `:1: registries[0].host: "index.docker.io": images of Docker Hub begin with docker.io; write docker.io`},
		{"a registry without a host", "registries: [{plain-http: true}]", `:1: registries[0]: has no host; write one, such as host: registry.example.com:5000`},
		{"a registry twice", "registries: [{host: a.io}, {host: A.io}]", `:1: registries[1].host: "a.io" is listed before (FILE:1); keep one`},
		{"a password in the file", "registries: [{host: a.io, password: x}]", `:1: registries[0].password: does not belong in this file; put the password in a file of its own and name that with password-file`},
		{"a user without a password", "registries: [{host: a.io, username: x}]", `:1: registries[0].username: needs password-file; name the file that holds the password`},
		{"a password without a user", "registries: [{host: a.io, password-file: /dev/null}]", `:1: registries[0].password-file: needs username; write whose password it is`},
		{"a password file that is not there", "registries: [{host: a.io, username: x, password-file: /nowhere/p}]", `:1: registries[0].password-file: /nowhere/p cannot be read: no such file or directory; mend the path or the permissions`},
		{"a password file that is a device", "registries: [{host: a.io, username: x, password-file: /dev/zero}]", `:1: registries[0].password-file: /dev/zero cannot be read: it is not a regular file; mend the path or the permissions`},

		{"an API for everybody", "api: {listen: ':9714'}", `:1: api.listen: :9714 is reached from elsewhere, and nobody would need a token; write api.read-tokens or api.write-tokens, or listen on 127.0.0.1`},
		{"an API for everybody whose tokens cannot be read", "api: {listen: '0.0.0.0:9714', read-tokens: /nowhere/tokens}", `:1: api.read-tokens: /nowhere/tokens cannot be read: no such file or directory; mend the path or the permissions`},
		{"an API for a group that is none", "api: {group: no-such-group}", `:1: api.group: "no-such-group" is no group here; make it with: groupadd --system no-such-group, or name another`},
		{"a port alone", "metrics: {listen: 9713}", `:1: metrics.listen: 9713 is a port without a host; write "127.0.0.1:9713", or another host that is to listen`},
		{"a port alone, in quotes", "metrics: {listen: '9713'}", `:1: metrics.listen: 9713 is a port without a host; write "127.0.0.1:9713", or another host that is to listen`},
		{"a kind of workload that is none", "rules: [{match: {kind: pod}, mode: hold}]", `:1: rules[0].match.kind: "pod" is no kind of workload; known are cronjob, daemonset, deployment, statefulset`},
		{"a kind in capitals", "rules: [{match: {kind: Deployment}, mode: hold}]", `:1: rules[0].match.kind: "Deployment" is no kind of workload; did you mean deployment?`},
		{"a pattern that no kind fits", "rules: [{match: {kind: 'Cron*'}, mode: hold}]", `:1: rules[0].match.kind: "Cron*" is no kind of workload; known are cronjob, daemonset, deployment, statefulset`},
		{"an API without a port", "api: {listen: localhost}", `:1: api.listen: "localhost" is no address to listen on; write host and port, such as 127.0.0.1:9713, or nothing to turn it off`},
		{"hosts without an API", "api: {hosts: [web]}", `:1: api.hosts: means nothing without api.listen; write an address to listen on, or remove it`},
		{"a host with a port", "api: {listen: 'localhost:1', hosts: ['web:1']}", `:1: api.hosts: "web:1" is no name of a host; write it without scheme and port`},
		{"half a certificate", "api: {listen: 'localhost:1', tls: {cert: a}}", `:1: api.tls.cert: needs api.tls.key; name the key of the certificate`},
		{"no tokens", "api: {listen: 'localhost:1', write-tokens: /dev/null}", `:1: api.write-tokens: /dev/null cannot be read: it is not a regular file; mend the path or the permissions`},
		{"a socket too deep", "api: {socket: /" + strings.Repeat("a", 107) + "}", `:1: api.socket: /` + strings.Repeat("a", 107) + ` is longer than the 107 bytes that the path of a socket may have; name a shorter one`},

		{"nobody to tell", "notify:\n  - on: [failed]", `:2: notify[0]: has no address; write url, or url-file to keep its token out of this file`},
		{"two addresses", "notify: [{url: 'http://a', url-file: /dev/null}]", `:1: notify[0]: has both url and url-file; keep one`},
		{"an address that is none", "notify: [{url: 'ftp://token@a'}]", `:1: notify[0].url: begins with the name of no service that is known; write https://..., or an address as docs/notifications.md has them`},
		{"an address that is none of its service", "notify: [{url: 'telegram://t0ken'}]", `:1: notify[0].url: is no address of telegram as its page has it (docs/notifications.md)`},
		{"a secret in the file", "notify: [{url: 'http://a', secret: s}]", `:1: notify[0].secret: does not belong in this file; put the secret in a file of its own and name that with secret-file`},
		{"a batch for a service", "notify: [{url: 'ntfy://ntfy.sh/t', batch: true}]", `:1: notify[0].batch: is for webhooks, whose address begins with https://; remove it`},
		{"a title for a webhook", "notify: [{url: 'http://a', title: x}]", `:1: notify[0].title: is for services, whose messages have a title; remove it, or write it into the template`},
		{"a batch with a template", "notify: [{url: 'http://a', batch: true, template: x}]", `:1: notify[0].batch: means nothing with a template, which is given all that there is; remove it`},
		{"a template that is none", "notify:\n  - url: 'http://a'\n    template: '{{end}}'", `:3: notify[0].template: is no template of a message: message:1: unexpected {{end}}; docs/notifications.md says what there is`},
		{"a template of what there is not", "notify:\n  - url: 'http://a'\n    template: |\n      x\n      {{.Foo}}", `:3: notify[0].template: is no template of a message: message:2:2: executing "message" at <.Foo>: can't evaluate field Foo in type notify.Bundle; docs/notifications.md says what there is`},
		{"a template of what there is not always", "notify: [{url: 'http://a', template: '{{range .Messages}}{{.To.Image}}{{end}}'}]", `:1: notify[0].template: is no template of a message: message:1:24: executing "message" at <.To.Image>: nil pointer evaluating *notify.Image.Image; docs/notifications.md says what there is`},
		{"one place twice", "notify:\n  - url: 'http://a'\n  - url: 'http://a'", `:3: notify[1]: has the address of another (notify[0]); keep one, or give them names`},
		{"webhooks from nobody", "webhooks: {listen: '127.0.0.1:1'}", `: webhooks.listen: has nobody to listen to; list who may post there below webhooks.senders, or remove it`},
		{"webhooks on nothing", "webhooks:\n  listen: here\n  senders: []", `:2: webhooks.listen: "here" is no address to listen on; write host and port, such as 127.0.0.1:9713, or nothing to turn it off`},
		{"half a certificate for webhooks", "webhooks: {listen: 'localhost:1', tls: {key: a}, senders: [{name: hub, kind: ghcr, secret-file: long}]}", `:1: webhooks.tls.key: needs webhooks.tls.cert; name the certificate of the key`},
		{"a certificate for no webhooks", "webhooks: {tls: {cert: a}}", ":1: webhooks.tls.cert: needs webhooks.tls.key; name the key of the certificate\nFILE:1: webhooks.tls.cert: means nothing without webhooks.listen; write an address to listen on, or remove it"},
		{"a sender that proves nothing", "webhooks:\n  senders:\n    - {name: hub, kind: docker-hub}", `:3: webhooks.senders[0].secret-file: is not there; name the file that holds what it proves itself by; nobody is believed without`},
		{"a sender of no kind", "webhooks: {senders: [{name: hub, kind: hub, secret-file: long}]}", `:1: webhooks.senders[0].kind: "hub" is not a choice; write one of docker-hub, ghcr, harbor, gitea, distribution`},
		{"a sender's secret in the file", "webhooks: {senders: [{name: hub, kind: ghcr, secret: x, secret-file: long}]}", `:1: webhooks.senders[0].secret: does not belong in this file; put the secret in a file of its own and name that with secret-file`},
		{"a secret that can be guessed", "webhooks: {senders: [{name: hub, kind: ghcr, secret-file: short}]}", `:1: webhooks.senders[0].secret-file: holds a secret of less than 16 characters, which can be guessed; make one with: openssl rand -hex 32`},
		{"another name for GitHub", "webhooks: {senders: [{name: hub, kind: ghcr, secret-file: long, registry: a.io}]}", `:1: webhooks.senders[0].registry: means nothing for ghcr, which is always the same; remove it`},
		{"a sender twice", "webhooks:\n  senders:\n    - {name: a, kind: ghcr, secret-file: long}\n    - {name: a, kind: gitea, secret-file: long}", `:4: webhooks.senders[1].name: "a" is listed before (FILE:3); keep one`},
		{"an event that is none", "notify: [{url: 'http://a', on: [updatd]}]", `:1: notify[0].on: "updatd" is no event; did you mean updated?`},
		{"no event", "notify: [{url: 'http://a', on: []}]", `:1: notify[0].on: names no event, so nothing would be told; name some of updated, restored, failed, refused, superseded, forgotten, rolled-back, recreated, restarted, found, awaiting-approval, rejected, registry-trouble, registry-well, held, released, approved, paused, resumed, update-asked, rollback-asked, or remove the key`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := from(t, tt.text)
			require.Nil(t, c)
			var problems Problems
			require.ErrorAs(t, err, &problems)
			file := problems[0].File
			require.Equal(t, file+strings.ReplaceAll(tt.want, "FILE", file), err.Error())
		})
	}
}

func TestAllProblemsComeAtOnceInOrder(t *testing.T) {
	_, err := from(t, `
jitter: 5
defaults:
  policy: lates
  keep: none
rules:
  - match: {nam: x}
    min-age: old
  - match: {name: y}
notify:
  - url: nowhere
`, "UPDATERD_PARALLEL=many", "UPDATERD_SCHEDUL=@daily")
	var problems Problems
	require.ErrorAs(t, err, &problems)
	var keys []string
	for _, p := range problems {
		keys = append(keys, p.Key)
		require.NotContains(t, p.Text, "defect")
	}
	require.ElementsMatch(t, []string{
		"UPDATERD_PARALLEL", "UPDATERD_SCHEDUL", "jitter", "defaults.policy", "defaults.keep",
		"rules[0].match.nam", "rules[0].min-age", "notify[0].url",
	}, keys)
}

func TestAFileThatCannotBeRead(t *testing.T) {
	_, err := Load("/nowhere/updaterd.yaml", nil)
	require.EqualError(t, err, "/nowhere/updaterd.yaml: cannot be read: no such file or directory; name a file that can, or none")
	_, err = Load(t.TempDir(), nil)
	require.ErrorContains(t, err, "is a directory")
	_, err = from(t, strings.Repeat("#", maxFile+1))
	require.ErrorContains(t, err, "more than 1048576 bytes")
}

func TestFileAliasesThatAreSimple(t *testing.T) {
	c, err := from(t, `
defaults:
  health: &h {timeout: 90s}
  window: &w "02:00-03:00 UTC"
rules:
  - match: {name: a}
    health: *h
    window: *w
`)
	require.NoError(t, err)
	s, err := c.Settings(updater.Workload{Name: "a"})
	require.NoError(t, err)
	require.Equal(t, 90*time.Second, s.Health.Timeout)
	require.Equal(t, "02:00-03:00 UTC", s.Window.String())
}

func TestFind(t *testing.T) {
	require.Equal(t, "flag.yaml", Find("flag.yaml", []string{"UPDATERD_CONFIG=env.yaml"}))
	require.Equal(t, "env.yaml", Find("", []string{"UPDATERD_CONFIG=env.yaml"}))
	want := ""
	if _, err := os.Stat(DefaultFile); err == nil {
		want = DefaultFile
	}
	require.Equal(t, want, Find("", []string{"UPDATERD_CONFIG="}))
}

func TestStateLiesWhere(t *testing.T) {
	tests := []struct {
		name          string
		file          string
		environ       []string
		state, source string
	}{
		{"its own variable says, before all", "state: /file", []string{"UPDATERD_STATE=/own", "STATE_DIRECTORY=/systemd"}, "/own", "environment UPDATERD_STATE"},
		{"the file says", "state: /file", []string{"STATE_DIRECTORY=/systemd"}, "/file", "FILE:1"},
		{"systemd says", "{}", []string{"STATE_DIRECTORY=/systemd", "XDG_STATE_HOME=/xdg"}, "/systemd", "environment STATE_DIRECTORY"},
		{"systemd says first", "{}", []string{"STATE_DIRECTORY=/systemd:/other"}, "/systemd", "environment STATE_DIRECTORY"},
		{"the user's directories say", "{}", []string{"XDG_STATE_HOME=/xdg", "HOME=/home/ann"}, "/xdg/updaterd", "environment XDG_STATE_HOME"},
		{"a relative one says nothing", "{}", []string{"XDG_STATE_HOME=xdg", "HOME=/home/ann"}, "/home/ann/.local/state/updaterd", "environment HOME"},
		{"nobody says", "{}", nil, "/var/lib/updaterd", "default"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := from(t, tt.file, tt.environ...)
			require.NoError(t, err)
			require.Equal(t, tt.state, c.State)
			require.Equal(t, Value{"state", tt.state, strings.ReplaceAll(tt.source, "FILE", c.File)}, shown(t, c.Show(), "state"))
		})
	}
}

func shown(t *testing.T, values []Value, key string) Value {
	t.Helper()
	for _, v := range values {
		if v.Key == key {
			return v
		}
	}
	require.Fail(t, "not shown: "+key)
	return Value{}
}

func TestEnvironmentOverridesOneKeyAndNothingElse(t *testing.T) {
	c, err := from(t, "defaults:\n  min-age: 1d\n  health: {timeout: 90s, stable: 5s}\n",
		"UPDATERD_DEFAULTS_HEALTH_TIMEOUT=2m", "UPDATERD_DEFAULTS_DEPENDS_ON=db, cache",
		"UPDATERD_DEFAULTS_PRE_UPDATE=[\"a\", \"b c\"]", "UPDATERD_DEFAULTS_ENABLE=true",
		"UPDATERD_LOG_LEVEL=debug", "UPDATERD_DEFAULTS_MIN_AGE=", "UPDATERD_CONFIG=/elsewhere",
		"UPDATERD_PORT_8080_TCP=tcp://10.0.0.1:8080", "UPDATERD_SERVICE_HOST=10.0.0.1", "UPDATERD_SERVICE_PORT_HTTP=8080",
		"UPDATERDX=1", "malformed")
	require.NoError(t, err)
	s, err := c.Settings(updater.Workload{})
	require.NoError(t, err)
	want := builtIn()
	want.Enabled = true
	want.MinAge = 24 * time.Hour
	want.Health = updater.Health{Timeout: 2 * time.Minute, Stable: 5 * time.Second}
	want.DependsOn = []string{"db", "cache"}
	want.PreUpdate = updater.Hook{Command: []string{"a", "b c"}, Timeout: time.Minute}
	require.Equal(t, want, s)
	require.Equal(t, "debug", c.Log.Level)

	for key, source := range map[string]string{
		"defaults.health.timeout":     "environment UPDATERD_DEFAULTS_HEALTH_TIMEOUT",
		"defaults.health.stable":      c.File + ":3",
		"defaults.min-age":            c.File + ":2",
		"defaults.keep":               "default",
		"defaults.pre-update.command": "environment UPDATERD_DEFAULTS_PRE_UPDATE",
		"log.level":                   "environment UPDATERD_LOG_LEVEL",
		"docker[0].endpoint":          "default",
	} {
		require.Equal(t, source, shown(t, c.Show(), key).Source, key)
	}
}

func TestEnvironmentIsCheckedAsTheFileIs(t *testing.T) {
	tests := []struct{ name, variable, want string }{
		{"a bad value", "UPDATERD_JITTER=5", `UPDATERD_JITTER: "5" has no unit; write it as 90s, 15m, 12h, 3d, 1w or 1d12h`},
		{"a bad number", "UPDATERD_PARALLEL=x", `UPDATERD_PARALLEL: "x" is out of range; write a whole number from 1 to 256`},
		{"a bad flag", "UPDATERD_DEFAULTS_ENABLE=1", `UPDATERD_DEFAULTS_ENABLE: "1" is neither; write true or false`},
		{"a bad policy", "UPDATERD_DEFAULTS_POLICY=latest", `UPDATERD_DEFAULTS_POLICY: "latest": no such policy; write one of digest, semver:<range>, patch, minor, major, newest, alphabetical`},
		{"a typing error", "UPDATERD_DEFAULT_POLICY=minor", `UPDATERD_DEFAULT_POLICY: names no key of the file; did you mean UPDATERD_DEFAULTS_POLICY?`},
		{"small letters", "UPDATERD_defaults_policy=minor", `UPDATERD_defaults_policy: names no key of the file; unset it, or write it as the path in capitals, such as UPDATERD_DEFAULTS_MIN_AGE`},
		{"a list", "UPDATERD_DOCKER_ENDPOINT=x", `UPDATERD_DOCKER_ENDPOINT: would be part of a list, and lists come from the file only; write it there`},
		{"a secret", "UPDATERD_REGISTRIES=x", `UPDATERD_REGISTRIES: would be part of a list, and lists come from the file only; write it there`},
		{"Docker's own", "DOCKER_HOST=ssh://x", `DOCKER_HOST: "ssh://x": ssh is not spoken; forward the socket (ssh -L) and write it as unix:///var/run/docker.sock or tcp://HOST:2376`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load("", []string{tt.variable})
			require.EqualError(t, err, "environment: "+tt.want)
		})
	}
}

func TestDockerHost(t *testing.T) {
	const host = "DOCKER_HOST=tcp://engine:2375"
	tests := []struct {
		name, file, environ string
		want                []Docker
	}{
		{"without a list, it is watched", "{}", host, []Docker{{Name: "local", Endpoint: "tcp://engine:2375"}}},
		{"without it, the default socket is", "{}", "", []Docker{{Name: "local"}}},
		{"with a list, only that is", "docker: [{name: a, endpoint: 'tcp://a:1'}]", host, []Docker{{Name: "a", Endpoint: "tcp://a:1"}}},
		{"an entry without an endpoint has it", "docker: [{name: a}]", host, []Docker{{Name: "a", Endpoint: "tcp://engine:2375"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := from(t, tt.file, tt.environ)
			require.NoError(t, err)
			require.Equal(t, tt.want, c.Docker)
		})
	}
}

// The example and the docs are held to the tables in the code.

func TestTheExampleIsWhatIsBuiltIn(t *testing.T) {
	const path = "../../configs/updaterd.yaml"
	c, err := Load(path, nil)
	require.NoError(t, err)
	written, err := Load("", nil)
	require.NoError(t, err)
	for _, k := range settingKeys() {
		require.Equal(t, written.defaults[k.name].value, c.defaults[k.name].value, k.name)
		if !k.optional {
			require.Contains(t, c.defaults[k.name].from.source, path+":", k.name+" is not in the example")
		}
	}
	for _, k := range fileKeys() {
		require.Equal(t, shown(t, written.Show(), k.name).Value, shown(t, c.Show(), k.name).Value)
		if !k.optional {
			require.Contains(t, shown(t, c.Show(), k.name).Source, path+":", k.name+" is not in the example")
		}
	}
}

func TestTheExampleIsRightWhereItIsCommentedOut(t *testing.T) {
	data, err := os.ReadFile("../../configs/updaterd.yaml")
	require.NoError(t, err)
	var lines []string
	block := false
	for line := range strings.SplitSeq(string(data), "\n") {
		switch {
		case regexp.MustCompile(`^# (state|docker|kubernetes|registries|notify|rules):( |$)`).MatchString(line):
			block = true
		case !strings.HasPrefix(line, "#"):
			block = false
		}
		if block {
			line = strings.TrimPrefix(line, "# ")
		}
		lines = append(lines, strings.Replace(line, "  # enable: true", "  enable: true", 1))
	}
	text := strings.Join(lines, "\n")
	requireOnlyMissingFiles(t, text)
	for _, name := range allNames() {
		last := name[strings.LastIndex(name, ".")+1:]
		require.Regexp(t, `(?m)^[ #-]*`+regexp.QuoteMeta(last)+`:( |$)`, text, name)
	}
}

// requireOnlyMissingFiles loads a text whose only fault may be that the files
// it names do not exist here.
func requireOnlyMissingFiles(t *testing.T, text string) {
	t.Helper()
	_, err := from(t, text)
	var problems Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			require.Contains(t, p.Text, "cannot be read: no such file or directory", p.Error())
		}
	}
}

// allNames are the names of all keys, as the tables of the docs have them.
func allNames() []string {
	var all []string
	for _, n := range []names{
		fileNames(), namesOf(dockerKeys()), namesOf(kubernetesKeys()), namesOf(registryKeys()), namesOf(notifyKeys()), namesOf(senderKeys()), settingNames(), matchNames(),
	} {
		all = append(append(all, n.leaves...), n.sections...)
	}
	return all
}

func TestTheDocsNameEveryKeyAndItsDefault(t *testing.T) {
	data, err := os.ReadFile("../../docs/configuration.md")
	require.NoError(t, err)
	docs := string(data)
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z.-]+)` \\| (.*?) \\|").FindAllStringSubmatch(docs, -1) {
		rows[m[1]] = m[2]
	}
	known := allNames()
	for _, name := range known {
		require.Contains(t, rows, name)
	}
	for name := range rows {
		require.Contains(t, known, name)
	}
	check := func(name, builtin string, optional bool) {
		switch {
		case optional:
		case builtin == "":
			require.Equal(t, "none", rows[name], name)
		default:
			require.Equal(t, "`"+builtin+"`", rows[name], name)
		}
	}
	for _, k := range settingKeys() {
		check(k.name, k.builtin, k.optional)
	}
	for _, k := range fileKeys() {
		check(k.name, k.builtin, k.optional)
	}
	for _, k := range registryKeys() {
		check(k.name, k.builtin, k.optional)
	}
	for _, k := range notifyKeys() {
		check(k.name, k.builtin, k.optional)
	}
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(docs, -1) {
		requireOnlyMissingFiles(t, m[1])
	}
}

func TestTheReadmesExampleIsRightAsItIs(t *testing.T) {
	data, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(data), -1)
	require.NotEmpty(t, examples)
	for _, m := range examples {
		_, err := from(t, m[1])
		require.NoError(t, err)
	}
}

func TestNoTwoKeysShareAVariable(t *testing.T) {
	seen := map[string]string{}
	var all []string
	all = append(all, fileNames().leaves...)
	for _, name := range siblingsInFull(settingNames()) {
		all = append(all, "defaults."+name)
	}
	for _, name := range all {
		require.Empty(t, seen[Variable(name)], name)
		seen[Variable(name)] = name
	}
}

// FuzzLoad: no text breaks it; what it refuses has a place and a remedy, and
// what it accepts gives settings.
func FuzzLoad(f *testing.F) {
	example, err := os.ReadFile("../../configs/updaterd.yaml")
	require.NoError(f, err)
	f.Add(string(example), "minor")
	for _, s := range []string{
		"", "{}", "- a", "a: &a [*a]", "a: b\n---\n", "defaults: {<<: {a: b}}", "rules: [{match: {name: '*'}, keep: all}]",
		"docker: [{name: a, endpoint: 'unix:///x'}]", "kubernetes: [{name: a, namespaces: ['*'], selector: 'a in (b,c)'}]", "schedule: TZ=", "defaults: {pre-update: 'a \"b'}", "? a\n: b", "\t", "\xff",
		"rules: [{match: {labels: {a: b, a: c}}}]", "notify: [{url: 'http://[::1', on: failed}]", "%YAML 1.1\n--- !!set {a}",
		"allow-label-tests: true\ndefaults: {health: {probe: 'exec:a \"b', test: {image: A, command: b}}}",
	} {
		f.Add(s, "semver:^1")
	}
	f.Fuzz(func(t *testing.T, text, label string) {
		c, err := load(&document{file: "fuzz.yaml"}, []byte(text), []string{"UPDATERD_DEFAULTS_INCLUDE=" + label})
		var problems Problems
		if err != nil {
			require.Nil(t, c)
			require.ErrorAs(t, err, &problems)
			require.NotEmpty(t, problems)
			for _, p := range problems {
				require.Contains(t, p.Text, "; ", "no remedy: %s", p.Error())
				require.NotContains(t, p.Text, "defect")
				if p.File == "fuzz.yaml" {
					require.True(t, p.Line > 0 || p.Key == "", p.Error())
				}
			}
			return
		}
		require.True(t, len(c.Docker)+len(c.Kubernetes) > 0)
		w := updater.Workload{ID: "local/web", Name: "web", Image: label, Written: map[string]string{
			"policy": label, "health.test.image": label, "health.test.command": label,
		}}
		if _, err := c.Settings(w); err != nil {
			require.ErrorAs(t, err, &problems)
		}
		require.NotEmpty(t, c.Explain(w))
		require.False(t, c.Schedule.Next(time.Unix(1e9, 0)).IsZero())
	})
}

func TestPathsOfCredentials(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ghcr"), []byte("secret\n"), 0o600))
	for _, path := range []string{"$CREDENTIALS_DIRECTORY/ghcr", "${CREDENTIALS_DIRECTORY}/ghcr"} {
		file := filepath.Join(t.TempDir(), "updaterd.yaml")
		require.NoError(t, os.WriteFile(file, []byte("registries: [{host: ghcr.io, username: x, password-file: '"+path+"'}]"), 0o600))
		c, err := Load(file, []string{"CREDENTIALS_DIRECTORY=" + dir})
		require.NoError(t, err)
		password, err := c.Registries[0].Password()
		require.NoError(t, err)
		require.Equal(t, "secret", password)

		_, err = Load(file, nil)
		require.ErrorContains(t, err, "/run/credentials/updaterd.service/ghcr cannot be read", "by hand, it is looked for where the service has it")
	}
}

func TestTokensOfTheAPI(t *testing.T) {
	load := func(read, write string) (*Config, error) {
		dir := t.TempDir()
		text := "api:\n  listen: 0.0.0.0:9714\n"
		for name, tokens := range map[string]string{"read-tokens": read, "write-tokens": write} {
			if tokens != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(tokens), 0o600))
				text += "  " + name + ": " + name + "\n"
			}
		}
		file := filepath.Join(dir, "updaterd.yaml")
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return Load(file, nil)
	}
	const ann, bob = "0123456789abcdef-ann", "0123456789abcdef-bob"
	c, err := load("# who may look\nann: "+ann+"\n", "\nbob:"+bob)
	require.NoError(t, err)
	require.Equal(t, []Token{{"ann", sha256.Sum256([]byte(ann)), false}, {"bob", sha256.Sum256([]byte(bob)), true}}, c.API.Tokens)
	for _, v := range c.Show() {
		require.NotContains(t, v.Value, "0123456789abcdef")
	}
	for tokens, want := range map[string]string{
		"# nobody": "holds no token", ann: "line 1 of", "a: b c": "is no token", "x: y\nann: short": "line 1 of", "ann: short": "fewer than 16 characters",
		"a: " + ann + "\nb: " + ann: "the token of b is there twice",
	} {
		_, err := load(tokens, "")
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "0123456789abcdef")
	}
}

func TestSocketOfTheAPI(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		environ    []string
		want       string
		fallback   bool
	}{
		{"by default it is with the state", "state: /s", nil, "/s/updaterd.sock", true},
		{"of a service it is where services have theirs", "state: /s", []string{"RUNTIME_DIRECTORY=/run/updaterd:/run/b"}, "/run/updaterd/updaterd.sock", true},
		{"it is where one says", "{state: /s, api: {socket: /x.sock}}", []string{"RUNTIME_DIRECTORY=/run/updaterd"}, "/x.sock", false},
		{"it can be none", "{state: /s, api: {socket: off}}", nil, "", false},
		{"nobody asked for one whose path is too long", "state: /" + strings.Repeat("s", 100), nil, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "updaterd.yaml")
			require.NoError(t, os.WriteFile(file, []byte(tt.text), 0o600))
			c, err := Load(file, tt.environ)
			require.NoError(t, err)
			require.Equal(t, tt.want, c.API.Socket)
			require.Equal(t, tt.fallback, c.API.Fallback)
		})
	}
}

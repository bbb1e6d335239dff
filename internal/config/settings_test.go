package config

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestSettingsAreLaidOverEachOther(t *testing.T) {
	c, err := from(t, `
defaults:
  policy: patch
  health: {timeout: 1m, stable: 1s}
  include: x
rules:
  - match: {name: "web-*"}
    policy: minor
    health.timeout: 2m
  - match: {name: "web-1"}
    policy: major
    keep: 5
`, "UPDATERD_DEFAULTS_MIN_AGE=1d")
	require.NoError(t, err)
	w := updater.Workload{ID: "local/web-1", Name: "web-1", Written: map[string]string{"health.timeout": "3m", "include": ""}}
	s, err := c.Settings(w)
	require.NoError(t, err)
	require.Equal(t, "minor", s.Policy.Policy, "the first rule that fits")
	require.Equal(t, 1, s.Keep, "and no other")
	require.Equal(t, 3*time.Minute, s.Health.Timeout, "the label before the rule")
	require.Equal(t, time.Second, s.Health.Stable, "the defaults below")
	require.Empty(t, s.Policy.Include, "an empty text undoes one")

	values := c.Explain(w)
	require.Len(t, values, len(settingKeys()))
	for key, want := range map[string]Value{
		"policy":         {"policy", "minor", c.File + ":8 (rules[0])"},
		"health.timeout": {"health.timeout", "3m", "label updaterd.health.timeout"},
		"health.stable":  {"health.stable", "1s", c.File + ":4"},
		"min-age":        {"min-age", "1d", "environment UPDATERD_DEFAULTS_MIN_AGE"},
		"keep":           {"keep", "1", "default"},
		"enable":         {"enable", "false", "watch: labelled (default)"},
	} {
		require.Equal(t, want, shown(t, values, key))
	}
}

func TestEnabled(t *testing.T) {
	tests := []struct {
		name, file, label string
		enabled           bool
	}{
		{"labelled, and no label", "watch: labelled", "", false},
		{"labelled, with a label", "watch: labelled", "true", true},
		{"all, and no label", "watch: all", "", true},
		{"all, but not this one", "watch: all", "false", false},
		{"labelled, enabled by a rule", "rules: [{match: {name: web}, enable: true}]", "", true},
		{"labelled, enabled by a rule for another", "rules: [{match: {name: db}, enable: true}]", "", false},
		{"enabled by a rule, but not by its label", "rules: [{match: {name: web}, enable: true}]", "false", false},
		{"all, disabled by a rule", "watch: all\nrules: [{match: {name: web}, enable: false}]", "", false},
		{"all, disabled by defaults, enabled by a label", "watch: all\ndefaults: {enable: false}", "true", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := from(t, tt.file)
			require.NoError(t, err)
			w := updater.Workload{Name: "web", Written: map[string]string{}}
			if tt.label != "" {
				w.Written["enable"] = tt.label
			}
			s, err := c.Settings(w)
			require.NoError(t, err)
			require.Equal(t, tt.enabled, s.Enabled)
		})
	}
}

func TestLabelsOfEveryKind(t *testing.T) {
	c, err := Load("", nil)
	require.NoError(t, err)
	s, err := c.Settings(updater.Workload{Written: map[string]string{
		"policy": " minor ", "health.timeout": "90s", "health.stable": "5s", "health.probe": "http://:8080/healthz",
		"enable": "true", "mode": "monitor", "keep": "2", "depends-on": "db, cache", "write": "digest",
		"pre-update": `pg_dump -f "a b"`, "pre-update.timeout": "5m", "post-update.command": `["sh", "-c", "a && b"]`,
		"stop-timeout": "auto", "window": "always", "min-age": "0", "start-first": "true",
		"include-stopped": "true", "no-rollback": "true",
	}})
	require.NoError(t, err)
	want := builtIn()
	want.Enabled = true
	want.Mode = updater.ModeMonitor
	want.Policy.Policy = "minor"
	want.Write = updater.WriteDigest
	want.Keep = 2
	want.DependsOn = []string{"db", "cache"}
	want.Health = updater.Health{Probe: "http://:8080/healthz", Timeout: 90 * time.Second, Stable: 5 * time.Second}
	want.PreUpdate = updater.Hook{Command: []string{"pg_dump", "-f", "a b"}, Timeout: 5 * time.Minute}
	want.PostUpdate = updater.Hook{Command: []string{"sh", "-c", "a && b"}, Timeout: time.Minute}
	want.StartFirst, want.IncludeStopped, want.NoRollback = true, true, true
	require.Equal(t, want, s)
}

func TestTheTestThatMustPass(t *testing.T) {
	const (
		image   = "health.test.image"
		command = "health.test.command"
		timeout = "health.test.timeout"
		refused = "label updaterd.health.test.image: names an image to run, which only the configuration file may; write it there, or allow-label-tests: true at its top"
	)
	type labels = map[string]string
	smoke := updater.Test{Image: "smoke:1", Timeout: 30 * time.Second}
	with := func(change func(*updater.Test)) updater.Test {
		test := smoke
		change(&test)
		return test
	}
	tests := []struct {
		name, file string
		labels     labels
		want       updater.Test
		problem    string
	}{
		{"nobody wants one", "{}", nil, updater.Test{}, ""},
		{"a time alone is none", "defaults: {health.test.timeout: 1m}", nil, updater.Test{}, ""},
		{"an image is enough", "defaults: {health.test.image: 'smoke:1'}", nil, smoke, ""},
		{"an image with a digest", "defaults: {health.test.image: 'a.io:5000/b@sha256:" + strings.Repeat("0a", 32) + "'}", nil,
			with(func(t *updater.Test) { t.Image = "a.io:5000/b@sha256:" + strings.Repeat("0a", 32) }), ""},
		{"a rule for this one", "rules: [{match: {name: web}, health: {test: {image: 'smoke:1', command: ['a b', c], timeout: 1m}}}]", nil,
			updater.Test{Image: "smoke:1", Command: []string{"a b", "c"}, Timeout: time.Minute}, ""},
		{"a rule for another", "rules: [{match: {name: db}, health.test.image: 'smoke:1'}]", nil, updater.Test{}, ""},
		{"a rule with the command for the image of defaults", "defaults: {health.test.image: 'smoke:1'}\nrules: [{match: {name: web}, health.test.command: a b}]", nil,
			with(func(t *updater.Test) { t.Command = []string{"a", "b"} }), ""},
		{"a rule undoes the test, command and all", "defaults: {health.test: {image: 'smoke:1', command: a}}\nrules: [{match: {name: web}, health.test.image: ''}]", nil,
			updater.Test{}, ""},
		{"a rule undoes the test, and a label commands", "defaults: {health.test: {image: 'smoke:1', command: a}}\nrules: [{match: {name: web}, health.test.image: ''}]", labels{command: "b"},
			updater.Test{}, "label updaterd.health.test.command: " + noImage},

		{"a label with a command and a time", "defaults: {health.test.image: 'smoke:1'}", labels{command: `a "b c"`, timeout: "5s"},
			updater.Test{Image: "smoke:1", Command: []string{"a", "b c"}, Timeout: 5 * time.Second}, ""},
		{"a label with the image's own command", "defaults: {health.test: {image: 'smoke:1', command: a}}", labels{command: "[]"}, smoke, ""},
		{"a label with a command and no image", "{}", labels{command: "a"}, updater.Test{}, "label updaterd.health.test.command: " + noImage},
		{"a label with a time and no image", "{}", labels{timeout: "1m"}, updater.Test{}, "label updaterd.health.test.timeout: " + noImage},
		{"a label with an image", "{}", labels{image: "evil"}, updater.Test{}, refused},
		{"a label with all of a test is refused for its image alone", "{}", labels{image: "evil", command: "a", timeout: "1m"}, updater.Test{}, refused},
		{"a label with another image than the file's", "defaults: {health.test.image: 'smoke:1'}", labels{image: "evil"}, updater.Test{}, refused},
		{"a label with the file's own image", "defaults: {health.test.image: 'smoke:1'}", labels{image: "smoke:1"}, updater.Test{}, refused},
		{"a label that undoes the test", "defaults: {health.test: {image: 'smoke:1', command: a}}", labels{image: ""}, updater.Test{}, ""},

		{"a label with an image, where that is allowed", "allow-label-tests: true", labels{image: "smoke:1"}, smoke, ""},
		{"a label with all of a test, where that is allowed", "allow-label-tests: true", labels{image: "smoke:1", command: `["a"]`, timeout: "1m"},
			updater.Test{Image: "smoke:1", Command: []string{"a"}, Timeout: time.Minute}, ""},
		{"a label before the file, where that is allowed", "allow-label-tests: true\ndefaults: {health.test: {image: other, command: a}}", labels{image: "smoke:1"},
			with(func(t *updater.Test) { t.Command = []string{"a"} }), ""},
		{"a label with an image that is none, where that is allowed", "allow-label-tests: true", labels{image: "a b", command: "c"}, updater.Test{},
			`label updaterd.health.test.image: "a b" is no image: invalid reference format; write an image such as ghcr.io/acme/smoke-test:1`},
		{"a label that allows itself", "{}", labels{"allow-label-tests": "true"}, updater.Test{},
			"label updaterd.allow-label-tests: belongs to the whole file; write it in the configuration file"},
		{"a label with half a key", "{}", labels{"health.test": "smoke"}, updater.Test{},
			"label updaterd.health.test: is not a setting by itself; write one of health.test.image, health.test.command, health.test.timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := from(t, tt.file)
			require.NoError(t, err)
			w := updater.Workload{ID: "local/web", Name: "web", Written: tt.labels}
			s, err := c.Settings(w)
			if tt.problem != "" {
				require.EqualError(t, err, tt.problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, s.Health.Test)
			require.Equal(t, tt.want.Image, shown(t, c.Explain(w), image).Value)
			require.Equal(t, inline(tt.want.Command), inline(asCommand(t, shown(t, c.Explain(w), command).Value)))
		})
	}
}

// asCommand reads a command as it is shown.
func asCommand(t *testing.T, text string) []string {
	t.Helper()
	words, err := readCommand(raw{text: text})
	require.NoError(t, err)
	return words
}

func TestTheEnvironmentMayNameATest(t *testing.T) {
	c, err := Load("", []string{"UPDATERD_DEFAULTS_HEALTH_TEST_IMAGE=smoke:1", "UPDATERD_DEFAULTS_HEALTH_TEST_COMMAND=a b"})
	require.NoError(t, err)
	s, err := c.Settings(updater.Workload{Name: "web"})
	require.NoError(t, err)
	require.Equal(t, updater.Test{Image: "smoke:1", Command: []string{"a", "b"}, Timeout: 30 * time.Second}, s.Health.Test)

	c, err = Load("", []string{"UPDATERD_ALLOW_LABEL_TESTS=true"})
	require.NoError(t, err)
	s, err = c.Settings(updater.Workload{Name: "web", Written: map[string]string{"health.test.image": "smoke:1"}})
	require.NoError(t, err)
	require.Equal(t, "smoke:1", s.Health.Test.Image)
}

func TestEveryBadLabelIsNamed(t *testing.T) {
	c, err := from(t, "rules: [{match: {name: web}, include: '(\\d+)', extract: $1}]")
	require.NoError(t, err)
	tests := []struct {
		name    string
		written map[string]string
		want    []string // after "local/web: label updaterd."
	}{
		{"an unknown one", map[string]string{"polcy": "minor"}, []string{"polcy: is not a setting; did you mean policy?"}},
		{"capitals", map[string]string{"Policy": "minor"}, []string{"Policy: is not a setting; did you mean policy?"}},
		{"an empty one", map[string]string{"": "minor"}, []string{": is not a setting; known are"}},
		{"two bad values", map[string]string{"keep": "many", "min-age": "5", "mode": "update"}, []string{
			`keep: "many" is no number of images; write a whole number from 0 up, or all`,
			`min-age: "5" has no unit; write it as 90s, 15m, 12h, 3d, 1w or 1d12h`,
		}},
		{"a policy that is none", map[string]string{"policy": "newset"}, []string{`policy: "newset": no such policy; write one of`}},
		{"an empty policy", map[string]string{"policy": ""}, []string{`policy: "": it is empty; write one of`}},
		{"a pattern that the rule's template does not fit", map[string]string{"include": "x"}, nil},
		{"a key of the file", map[string]string{"parallel": "3"}, []string{"parallel: belongs to the whole file; write it in the configuration file"}},
		{"a window that is none", map[string]string{"window": "Foo"}, []string{`window: "Foo": `}},
		{"one thing in two ways", map[string]string{"pre-update": "a", "pre-update.command": "b"}, []string{"pre-update.command: says the same as label updaterd.pre-update; keep one"}},
		{"a command with an open quote", map[string]string{"pre-update": "a 'b"}, []string{"pre-update: cannot be taken apart into words: Unterminated single-quoted string; mend the quotes, or write a JSON array"}},
		{"a command that is half JSON", map[string]string{"pre-update": `["a"`}, []string{"pre-update: is no JSON array of texts: unexpected end of JSON input; write it as"}},
		{"a signal that is none", map[string]string{"stop-signal": "SIGFOO"}, []string{`stop-signal: "SIGFOO" is no signal; write one such as SIGTERM or SIGRTMIN+3, or its number`}},
		{"a probe that is none", map[string]string{"health.probe": "exec:"}, []string{"health.probe: has no command; write it as"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.Settings(updater.Workload{ID: "local/web", Name: "web", Written: tt.written})
			var problems Problems
			require.ErrorAs(t, err, &problems)
			if tt.want == nil { // the rule cannot stand with the label: it is named by its line
				require.ErrorContains(t, err, c.File+":1: rules[0].extract: ")
				return
			}
			require.Len(t, problems, len(tt.want))
			for i, want := range tt.want {
				require.True(t, strings.HasPrefix(problems[i].Error(), "local/web: label updaterd."+want), problems[i].Error())
			}
		})
	}
}

func TestBadLabelsAreOneLineOfDetail(t *testing.T) {
	c, err := Load("", nil)
	require.NoError(t, err)
	_, err = c.Settings(updater.Workload{ID: "local/web", Written: map[string]string{"polcy": "minor", "no-rollback": "yes"}})
	require.EqualError(t, err, "label updaterd.no-rollback: \"yes\" is neither; write true or false"+
		"; also label updaterd.polcy: is not a setting; did you mean policy?")
}

func TestAnnotationsAreCalledSo(t *testing.T) {
	c, err := Load("", nil)
	require.NoError(t, err)
	w := updater.Workload{ID: "k/prod/deployment/web/app", Namespace: "prod", Written: map[string]string{"keep": "x", "policy": "minor"}}
	_, err = c.Settings(w)
	require.ErrorContains(t, err, "annotation updaterd.dev/keep: ")
	require.Equal(t, "annotation updaterd.dev/policy", shown(t, c.Explain(w), "policy").Source)
}

func TestRulesFit(t *testing.T) {
	web := updater.Workload{
		Backend: "local", Name: "web-1", Image: "ghcr.io/acme/web:1.4",
		Labels: map[string]string{"com.docker.compose.project": "shop", "Tier": "front"},
	}
	with := func(image string) updater.Workload {
		w := web
		w.Image = image
		return w
	}
	const digest = "@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	tests := []struct {
		name, match string
		workload    updater.Workload
		fits        bool
	}{
		{"a name", `{name: web-1}`, web, true},
		{"a pattern of names", `{name: "web-*"}`, web, true},
		{"a pattern is for the whole name", `{name: "eb-*"}`, web, false},
		{"a question mark is one character", `{name: "web-?"}`, web, true},
		{"and not none", `{name: "web-1?"}`, web, false},
		{"a dot is a dot", `{name: "web.1"}`, web, false},
		{"capitals differ", `{name: WEB-1}`, web, false},
		{"a backend", `{backend: "lo*"}`, web, true},
		{"another backend", `{backend: other}`, web, false},
		{"any namespace, and there is none", `{namespace: "?*"}`, web, false},
		{"every key must fit", `{backend: local, name: other}`, web, false},
		{"every key fits", `{backend: local, name: "web*", image: "ghcr.io/*"}`, web, true},
		{"a label", `{labels: {com.docker.compose.project: shop}}`, web, true},
		{"a label whose name has capitals", `{labels: {Tier: "f*"}}`, web, true},
		{"and has to have them", `{labels: {tier: "f*"}}`, web, false},
		{"a label that is not there", `{labels: {missing: "*"}}`, web, false},
		{"one label of two", `{labels: {Tier: front, com.docker.compose.project: other}}`, web, false},

		{"an image with any tag", `{image: "ghcr.io/acme/*"}`, web, true},
		{"an image without its tag", `{image: ghcr.io/acme/web}`, web, true},
		{"an image with its tag", `{image: "ghcr.io/acme/web:1.*"}`, web, true},
		{"an image with another tag", `{image: "ghcr.io/acme/web:2.*"}`, web, false},
		{"a star crosses slashes", `{image: "ghcr.io/*"}`, web, true},
		{"another repository", `{image: "ghcr.io/acme/we"}`, web, false},
		{"Docker Hub as written", `{image: nginx}`, with("nginx"), true},
		{"Docker Hub with the tag that is meant", `{image: "nginx:latest"}`, with("nginx"), true},
		{"Docker Hub in full", `{image: "docker.io/library/nginx:latest"}`, with("nginx"), true},
		{"Docker Hub in full, without a tag", `{image: docker.io/library/nginx}`, with("nginx"), true},
		{"all of Docker Hub", `{image: "docker.io/*"}`, with("grafana/grafana:11.0"), true},
		{"short, and written in full", `{image: "grafana/*"}`, with("docker.io/grafana/grafana:11.0"), true},
		{"with a digest behind the tag", `{image: "nginx:1.27"}`, with("nginx:1.27" + digest), true},
		{"with a digest and no tag", `{image: nginx}`, with("nginx" + digest), true},
		{"as an image id", `{image: "sha256:*"}`, with(digest[1:]), true},
		{"a registry with a port", `{image: "localhost:5000/app"}`, with("localhost:5000/app:1"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := from(t, "rules: [{match: "+tt.match+", mode: hold}]")
			require.NoError(t, err)
			s, err := c.Settings(tt.workload)
			require.NoError(t, err)
			require.Equal(t, tt.fits, s.Mode == updater.ModeHold)
		})
	}
}

// FuzzGlob holds patterns to a matcher that is slow and plain.
func FuzzGlob(f *testing.F) {
	f.Add("web-*", "web-1")
	f.Add("*a?b*", "xxaybzz")
	f.Add("a.c", "abc")
	f.Add("[*", "[x\n")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 12 || len(s) > 30 {
			return
		}
		// The characters of a broken text are its own business.
		p, text := []rune(strings.ToValidUTF8(pattern, "!")), []rune(strings.ToValidUTF8(s, "!"))
		require.Equal(t, plainly(p, text), newGlob(string(p)).fits(string(text)))
		require.True(t, newGlob("*").fits(s))
	})
}

func plainly(pattern, s []rune) bool {
	if len(pattern) == 0 {
		return len(s) == 0
	}
	switch {
	case pattern[0] == '*':
		return plainly(pattern[1:], s) || len(s) > 0 && plainly(pattern, s[1:])
	case len(s) == 0:
		return false
	}
	return (pattern[0] == '?' || pattern[0] == s[0]) && plainly(pattern[1:], s[1:])
}

func TestSignalsThatAnEngineCanSend(t *testing.T) {
	for written, want := range map[string]string{
		"SIGTERM": "SIGTERM", "sigint": "SIGINT", "QUIT": "QUIT", "usr1": "USR1", "3": "3", "37": "37",
		"SIGRTMIN": "SIGRTMIN", "SIGRTMIN+3": "SIGRTMIN+3", "rtmax-14": "RTMAX-14", "RTMAX": "RTMAX", "": "",
	} {
		c, err := from(t, "{}")
		require.NoError(t, err)
		s, err := c.Settings(updater.Workload{Name: "web", Written: map[string]string{"enable": "true", "stop-signal": written}})
		require.NoError(t, err, written)
		require.Equal(t, want, s.StopSignal)
	}
	for _, written := range []string{"SIGFOO", "0", "-9", "65", "32", "TERM+1", "SIGRTMIN+16", "SIGSIGTERM", "KILL;reboot"} {
		c, err := from(t, "{}")
		require.NoError(t, err)
		_, err = c.Settings(updater.Workload{Name: "web", Written: map[string]string{"enable": "true", "stop-signal": written}})
		require.ErrorContains(t, err, "is no signal", written)
	}
}

// A pass asks for the settings of every workload.
func BenchmarkSettings(b *testing.B) {
	c, err := from(b, "defaults:\n  policy: minor\nrules:\n  - match: {name: \"web-*\"}\n    min-age: 1d\n")
	require.NoError(b, err)
	for _, bb := range []struct {
		name    string
		written map[string]string
	}{
		{"nothing written on it", nil},
		{"two labels on it", map[string]string{"enable": "true", "policy": "major"}},
	} {
		w := updater.Workload{ID: "local/web-1", Name: "web-1", Written: bb.written}
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, err := c.Settings(w)
				require.NoError(b, err)
			}
		})
	}
}

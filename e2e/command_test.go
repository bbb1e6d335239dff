package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
	"golang.org/x/sys/unix"
)

// installation is an updaterd without an engine.
func installation(t *testing.T, config string) *stage.Updaterd {
	t.Helper()
	return stage.NewUpdaterd(t, "unix://"+filepath.Join(t.TempDir(), "no.sock"), config)
}

// TestRowsInJSON: scripts read these, so every key and its place stays.
func TestRowsInJSON(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	said := func(args ...string) string {
		res := r.u.Run(args...)
		require.Zero(t, res.Code)
		// The reference before the name, which is in it.
		return strings.NewReplacer(r.first, "DIGEST-1", r.ref, "IMAGE", r.name, "NAME").Replace(res.Stdout)
	}
	require.Equal(t, `[
  {
    "backend": "local",
    "workload": "local/NAME",
    "image": "IMAGE",
    "digest": "DIGEST-1",
    "policy": "digest",
    "decision": "none",
    "candidate": {
      "image": "IMAGE",
      "digest": "DIGEST-1"
    },
    "reason": "up-to-date",
    "detail": "it runs what IMAGE stands for"
  }
]
`, said("check", "-o", "json"))

	digest := r.push("latest", stage.Image{Version: "v2"})
	want := `[
  {
    "backend": "local",
    "workload": "local/NAME",
    "image": "IMAGE",
    "digest": "DIGEST-1",
    "policy": "digest",
    "decision": "update",
    "candidate": {
      "image": "IMAGE",
      "digest": "DIGEST-2"
    },
    "reason": "update",
    "detail": "IMAGE now stands for DIGEST-2"
  }
]
`
	two := func(s string) string { return strings.ReplaceAll(s, digest, "DIGEST-2") }
	require.Equal(t, want, two(said("check", "-o", "json")))
	require.Equal(t, want, two(said("check", "--output=json", r.name)))
	require.Equal(t, want, two(said("check", "-o", "json", "local/"+r.name)))
	require.Equal(t, strings.Replace(want, `DIGEST-2"
  }
]`, `DIGEST-2",
    "outcome": "committed"
  }
]`, 1), two(said("run", "--once", "-o", "json")))

	var events []map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.u.Run("history", "-o", "json").Stdout), &events))
	require.Len(t, events, 1)
	require.Equal(t, "updated", events[0]["event"])
	require.Equal(t, map[string]any{"image": r.ref, "digest": r.first}, events[0]["from"])
	require.Equal(t, map[string]any{"image": r.ref, "digest": digest}, events[0]["to"])
	require.Positive(t, events[0]["gap_seconds"])
	require.Positive(t, events[0]["took_seconds"])

	table := r.u.Run("check")
	require.Zero(t, table.Code)
	require.Regexp(t, `(?m)^WORKLOAD +IMAGE +RUNS +DECISION +CANDIDATE +REASON +DETAIL$`, table.Stdout)
	require.Contains(t, table.Stdout, "local/"+r.name)
	require.Contains(t, r.u.Run("history").Stdout, "updated")
	require.Contains(t, r.u.Run("history", r.name).Stdout, "updated")
	nobody := r.u.Run("history", "-o", "json", "another")
	require.Equal(t, 2, nobody.Code)
	require.Equal(t, "[]\n", nobody.Stdout)
	require.Contains(t, nobody.Stderr, `no watched workload is called so`)
}

// TestExitCodes: 0 fine, 1 trouble, 2 the call or the configuration is wrong.
func TestExitCodes(t *testing.T) {
	d := stage.OpenDocker(t)
	for _, tt := range []struct {
		name   string
		config string
		args   []string
		code   int
		stdout string // "" for none
		stderr string
	}{
		{"no command", "", nil, 2, "Usage:", "name a command"},
		{"help", "", []string{"--help"}, 0, "Usage:", ""},
		{"an unknown command", "", []string{"upgrade"}, 2, "", "upgrade"},
		{"an unknown flag", "", []string{"check", "--fast"}, 2, "", "--fast"},
		{"an output that is none", "", []string{"check", "-o", "yaml"}, 2, "", "table or json"},
		{"an unknown workload to check", "", []string{"check", "nobody"}, 2, "", `"nobody"`},
		{"an unknown workload to run", "", []string{"run", "--once", "nobody"}, 2, "", `"nobody"`},
		{"an unknown workload to forget", "", []string{"forget", "nobody"}, 2, "", `"nobody"`},
		{"nothing to forget", "", []string{"forget"}, 2, "", "requires at least 1 arg"},
		{"a workload for the daemon", "", []string{"run", "web"}, 2, "", "--once"},
		{"an output for the daemon", "", []string{"run", "-o", "json"}, 2, "", "--once"},
		{"version", "", []string{"version"}, 0, "updaterd ", ""},
		{"arguments for version", "", []string{"version", "2"}, 2, "", "version"},
		{"nothing watched", "", []string{"check"}, 0, "Nothing is watched", ""},
		{"nothing watched as JSON", "", []string{"check", "-o", "json"}, 0, "[]\n", ""},
		{"nothing watched in a pass", "", []string{"run", "--once", "-o", "json"}, 0, "[]\n", ""},
		{"no history", "", []string{"history", "-o", "json"}, 0, "[]\n", ""},
		{"a negative limit", "", []string{"history", "-n", "-1"}, 2, "", "--limit"},
		{"a wrong configuration to check", "polcy: digest\n", []string{"check"}, 2, "", "updaterd.yaml:1"},
		{"a wrong configuration to run", "schedule: sometimes\n", []string{"run"}, 2, "", "schedule"},
		{"a wrong configuration to run once", "schedule: sometimes\n", []string{"run", "--once"}, 2, "", "schedule"},
		{"a wrong configuration to config check", "jitter: [1]\nwatch: some\nstat: /tmp\n", []string{"config", "check"}, 2, "", "updaterd.yaml:3"},
		{"a configuration that is fine", "watch: all\n", []string{"config", "check"}, 0, "fine", ""},
		{"a configuration that is not there", "", []string{"-c", "/nowhere/updaterd.yaml", "check"}, 2, "", "/nowhere/updaterd.yaml"},
		{"config alone", "", []string{"config"}, 2, "Usage:", "check or show"},
		{"explain without an image", "", []string{"explain"}, 2, "", "accepts 1 arg"},
		{"explain of nonsense", "", []string{"explain", "No Such Image"}, 2, "", "NAME:TAG"},
		{"explain by a policy that is none", "", []string{"explain", "nginx:1", "--policy", "best", "--tags", "/dev/null"}, 2, "", "best"},
		{"explain with a pattern that is none", "", []string{"explain", "nginx:1", "--policy", "minor", "--include", "(", "--tags", "/dev/null"}, 2, "", "("},
		{"explain with tags that are not there", "", []string{"explain", "nginx:1", "--tags", "/nowhere/tags"}, 2, "", "/nowhere/tags"},
		{"completion", "", []string{"completion", "bash"}, 0, "complete", ""},
		{"an engine that does not answer", "docker: [{name: gone, endpoint: \"unix:///nowhere/docker.sock\"}]\n", []string{"check"}, 1, "backend-unavailable", ""},
		{"an engine that does not answer in a pass", "docker: [{name: gone, endpoint: \"unix:///nowhere/docker.sock\"}]\n", []string{"run", "--once"}, 1, "backend-unavailable", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.config == "" {
				tt.config = "{}\n"
			}
			u := stage.NewUpdaterd(t, d.Scoped(), tt.config)
			res := u.Run(tt.args...)
			require.Equal(t, tt.code, res.Code)
			require.Contains(t, res.Stdout, tt.stdout)
			if tt.stdout == "" {
				require.Empty(t, res.Stdout)
			}
			require.Contains(t, res.Stderr, tt.stderr)
			if tt.stderr == "" {
				require.Empty(t, strings.TrimSpace(regexp.MustCompile(`(?m)^time=.*$`).ReplaceAllString(res.Stderr, "")))
			}
			require.NotContains(t, res.Stderr, "goroutine ")
		})
	}
}

// TestAllMistakesOfAConfigurationAtOnce, each with its line and its remedy.
func TestAllMistakesOfAConfigurationAtOnce(t *testing.T) {
	t.Parallel()
	u := installation(t, `schedule: "@every 15m"
jitter: fast
wacth: all
parallel: 0
defaults:
  policy: "semver:^^1"
  health: {stable: -1s}
  include: "("
rules:
  - match: {image: "x"}
    mode: sometimes
`)
	res := u.Run("config", "check")
	require.Equal(t, 2, res.Code)
	for _, want := range []string{":2: jitter", ":3: wacth", "watch", ":4: parallel", ":6: ", ":7: ", ":8: ", ":11: "} {
		require.Contains(t, res.Stderr, want)
	}
}

// TestConfigShowSaysWhereEachValueIsFrom.
func TestConfigShowSaysWhereEachValueIsFrom(t *testing.T) {
	t.Parallel()
	u := installation(t, "jitter: 1m\ndefaults: {policy: minor}\n")
	u.Env = append(u.Env, "UPDATERD_DEFAULTS_MIN_AGE=2d", "UPDATERD_JITTER=3s")
	var values []struct{ Key, Value, Source string }
	res := u.Run("config", "show", "-o", "json")
	require.Zero(t, res.Code)
	require.NoError(t, json.Unmarshal([]byte(res.Stdout), &values), res.Stdout)
	got := map[string]string{}
	for _, v := range values {
		got[v.Key] = v.Value + " " + filepath.Base(v.Source)
	}
	require.Contains(t, got["defaults.policy"], "minor updaterd.yaml:2")
	require.Contains(t, got["jitter"], "3s environment UPDATERD_JITTER")
	require.Contains(t, got["defaults.min-age"], "environment UPDATERD_DEFAULTS_MIN_AGE")
	require.Contains(t, got["parallel"], "4 default")
	u.Env = append(u.Env, "UPDATERD_PARALLEL=many")
	res = u.Run("config", "check")
	require.Equal(t, 2, res.Code)
	require.Contains(t, res.Stderr, "UPDATERD_PARALLEL")
}

// TestExplain gives a verdict on every tag.
func TestExplain(t *testing.T) {
	t.Parallel()
	u := installation(t, "{}\n")
	tags := filepath.Join(t.TempDir(), "tags")
	require.NoError(t, os.WriteFile(tags, []byte("1.4.1\n1.4.2\n\n1.5.0\r\n2.0.0\n1.5.0-alpine\nlatest\n"), 0o600))
	type explanation struct {
		Image, Policy string
		Selected      *string
		Reason        string
		Tags          []struct{ Tag, Verdict, Why string }
	}
	explain := func(image string, args ...string) explanation {
		res := u.Run(append([]string{"explain", image, "-o", "json", "--tags", tags}, args...)...)
		require.Zero(t, res.Code)
		var keys map[string]json.RawMessage
		require.NoError(t, json.Unmarshal([]byte(res.Stdout), &keys))
		require.Len(t, keys, 5)
		require.Contains(t, keys, "selected")
		var e explanation
		require.NoError(t, json.Unmarshal([]byte(res.Stdout), &e))
		return e
	}
	e := explain("acme/web:1.4.1", "--policy", "minor")
	require.Equal(t, "acme/web:1.4.1", e.Image)
	require.Equal(t, "minor", e.Policy)
	require.Equal(t, "1.5.0", *e.Selected)
	verdicts := map[string]string{}
	for _, tag := range e.Tags {
		verdicts[tag.Tag] = tag.Verdict
		require.NotEmpty(t, tag.Why)
	}
	require.Equal(t, map[string]string{"1.4.1": "eligible", "1.4.2": "eligible", "1.5.0": "selected", "2.0.0": "dropped",
		"1.5.0-alpine": "dropped", "latest": "dropped"}, verdicts)

	e = explain("acme/web:1.5.0", "--policy", "minor")
	require.Equal(t, "1.5.0", *e.Selected, "also when it runs already")
	require.Equal(t, "up-to-date", e.Reason)
	e = explain("acme/web:latest", "--policy", "semver:<2")
	require.Equal(t, "1.5.0", *e.Selected)
	e = explain("acme/web:3.0.0", "--policy", "semver:<3")
	require.Nil(t, e.Selected)
	require.Equal(t, "downgrade", e.Reason)
	e = explain("acme/web:3.0.0", "--policy", "semver:<3", "--allow-downgrade")
	require.Equal(t, "2.0.0", *e.Selected)
	e = explain("acme/web:1.4.1", "--policy", "minor", "--exclude", `^1\.5`)
	require.Equal(t, "1.4.2", *e.Selected)
	e = explain("acme/web:1.4.1", "--policy", "semver:^9")
	require.Nil(t, e.Selected)
	require.Contains(t, u.Run("explain", "acme/web:1.4.1", "--policy", "patch", "--tags", tags).Stdout, "selected  1.4.2")

	// From standard input, and from a registry.
	cmd := exec.Command(u.Bin, "explain", "acme/web:1.4.1", "--policy", "patch", "--tags", "-")
	cmd.Stdin = strings.NewReader("1.4.9\n1.4.1\n")
	cmd.Env = []string{"UPDATERD_CONFIG=" + u.Config, "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "selected  1.4.9")
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	for _, tag := range []string{"1.0", "1.1", "2.0"} {
		reg.Push("acme/web:"+tag, stage.Image{Version: tag})
	}
	require.Contains(t, u.Run("explain", reg.Ref("acme/web:1.0"), "--policy", "minor").Stdout, "selected  1.1")
	reg.Down()
	res := u.Run("explain", reg.Ref("acme/web:1.0"), "--policy", "minor")
	require.Equal(t, 1, res.Code)
	require.Contains(t, res.Stderr, reg.Host)
}

// TestSecondRunOnOneStateDirectory ends at once and names the first.
func TestSecondRunOnOneStateDirectory(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	daemon := r.u.Start("run")
	daemon.WaitLog("pass over", 20*time.Second)
	for _, args := range [][]string{{"run"}, {"run", "--once"}} {
		res := r.u.Run(args...)
		require.Equal(t, 1, res.Code)
		require.Contains(t, res.Stderr, fmt.Sprint(daemon.Pid))
	}
	// The others work beside it.
	require.Equal(t, "up-to-date", r.check(0).Reason)
	require.Zero(t, r.u.Run("history").Code)
	require.Zero(t, r.u.Run("forget", r.name).Code)
	require.Zero(t, daemon.Stop(10*time.Second))
	r.once(0)
	r.untouched()

	// A first that was killed does not stand in the way.
	daemon = r.u.Start("run")
	daemon.WaitLog("pass over", 20*time.Second)
	daemon.Kill()
	r.once(0)
}

// TestAStateThatCannotBeWritten is told by the exit code, also when there is nothing to
// write: nobody reads the log of a timer.
func TestAStateThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	r.u.State = stage.SmallDir(t, 1<<20)
	r.once(0)
	require.NoError(t, unix.Mount("", r.u.State, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	res := r.u.Run("run", "--once", "-o", "json")
	require.Equal(t, 1, res.Code)
	require.Equal(t, "up-to-date", parseRows(t, res.Stdout)[0].Reason)
	require.Contains(t, res.Stderr, "updaterd: nothing can be updated on local: ")
	require.Contains(t, res.Stderr, "make "+r.u.State+" writable")
	require.Equal(t, "up-to-date", r.check(0).Reason, "which writes nothing")
	r.untouched()
	require.NoError(t, unix.Mount("", r.u.State, "", unix.MS_REMOUNT, ""))
	r.once(0)
}

// TestCheckChangesNothing: neither on the engine nor in the state directory.
func TestCheckChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	r.push("latest", stage.Image{Version: "v2"})
	p := r.through(stage.Hooks{})
	require.Equal(t, "update", r.check(0).Reason)
	require.Empty(t, p.Calls())
	files, err := os.ReadDir(r.u.State)
	require.NoError(t, err)
	require.Empty(t, files)
	r.untouched()
	// It needs no state directory at all.
	require.NoError(t, os.Remove(r.u.State))
	require.Equal(t, "update", r.check(0).Reason)
}

// TestCheckBesideAChangeUnderWay says that it is.
func TestCheckBesideAChangeUnderWay(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{change: func(s *stage.Spec) { s.Config.Labels = map[string]string{"updaterd.health.stable": "4s"} }})
	digest := r.push("latest", stage.Image{Version: "v2"})
	daemon := r.u.Start("run")
	daemon.WaitLog("phase=judging", 20*time.Second)
	got := r.check(0)
	require.Equal(t, "in-progress", got.Reason, "%+v", got)
	daemon.WaitLog("phase=committed", 20*time.Second)
	require.Zero(t, daemon.Stop(10*time.Second))
	r.updated("v2", digest)
}

// TestCompletionScripts are made for each shell, and offer what is watched.
func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		res := r.u.Run("completion", shell)
		require.Zero(t, res.Code)
		require.Greater(t, len(res.Stdout), 500)
	}
	require.Contains(t, r.u.Run("__complete", "check", "").Stdout, "local/"+r.name)
	require.Contains(t, r.u.Run("__complete", "check", "-o", "").Stdout, "json")
}

// TestUnknownNameAmongKnownOnes: nothing happens then, to none of them.
func TestUnknownNameAmongKnownOnes(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	r.push("latest", stage.Image{Version: "v2"})
	res := r.u.Run("run", "--once", r.name, "nobody")
	require.Equal(t, 2, res.Code)
	require.Contains(t, res.Stderr, "nobody")
	r.untouched()
}

// TestOnceWithNames leaves the others alone.
func TestOnceWithNames(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	other := r.d.Name("other")
	id := r.d.Run(stage.Spec{Name: other, Config: container.Config{Image: r.ref}})
	r.push("latest", stage.Image{Version: "v2"})
	res := r.u.Run("run", "--once", "-o", "json", r.name)
	require.Zero(t, res.Code)
	require.Len(t, parseRows(t, res.Stdout), 1)
	require.Contains(t, r.d.Inspect(r.name).Config.Env, "APP_VERSION=v2")
	require.Equal(t, id, r.d.Inspect(other).ID)
	require.True(t, r.d.Inspect(other).State.Running)
	rows := parseRows(t, r.u.Run("run", "--once", "-o", "json").Stdout)
	require.Len(t, rows, 2)
	require.Contains(t, r.d.Inspect(other).Config.Env, "APP_VERSION=v2")
}

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/versions"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// theirs are labels of Watchtower's, and nothing of ours.
func theirs(labels map[string]string) func(*stage.Spec) {
	return func(s *stage.Spec) {
		s.Config.Labels = map[string]string{}
		for name, value := range labels {
			s.Config.Labels["com.centurylinklabs.watchtower."+name] = value
		}
	}
}

const compat = "compat: [watchtower]\n" + settings

// TestWatchtowersLabelsDecide what is looked at, and what becomes of an update.
func TestWatchtowersLabelsDecide(t *testing.T) {
	labelled := strings.Replace(compat, "watch: all", "watch: labelled", 1)
	scoped := func(scope string) string {
		return strings.Replace(compat, "[watchtower]", `["watchtower:`+scope+`"]`, 1)
	}
	for _, tt := range []struct {
		name   string
		config string
		labels map[string]string
		// reason is that of the row; "" where it is updated, "unwatched" for no row.
		reason, detail string
		code           int
	}{
		{name: "enabled", config: labelled, labels: map[string]string{"enable": "true"}},
		{name: "not enabled", config: labelled, reason: "unwatched"},
		{name: "disabled", labels: map[string]string{"enable": "false"}, reason: "unwatched"},
		{name: "without compat", config: settings, labels: map[string]string{"enable": "false", "monitor-only": "true"}},
		{name: "monitor-only", labels: map[string]string{"monitor-only": "true"}, reason: "monitor"},
		{name: "no-pull", labels: map[string]string{"no-pull": "true"}, reason: "held"},
		{name: "in scope", config: scoped("mine"), labels: map[string]string{"scope": "mine"}},
		{name: "in another scope", config: scoped("mine"), labels: map[string]string{"scope": "theirs"}, reason: "unwatched"},
		{name: "in no scope", config: scoped("mine"), reason: "unwatched"},
		{name: "in no scope, as it is to be", config: scoped("none"), labels: map[string]string{"scope": "none"}},
		{name: "a scope where none counts", labels: map[string]string{"scope": "theirs"}},
		{name: "what has no equal", labels: map[string]string{"lifecycle.pre-check": "app exit 0"}, reason: "invalid-settings", detail: "lifecycle.pre-check", code: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.config == "" {
				tt.config = compat
			}
			r := newRig(t, start{config: tt.config, change: theirs(tt.labels)})
			digest := r.push("latest", stage.Image{Version: "v2"})
			p := r.through(stage.Hooks{})
			switch tt.reason {
			case "":
				require.Equal(t, "committed", r.once(0).Outcome)
				c := r.updated("v2", digest)
				for name, value := range r.before.Config.Labels {
					require.Equal(t, value, c.Config.Labels[name], "they are there the next time: %s", name)
				}
				return
			case "unwatched":
				require.Equal(t, "[]\n", r.u.Run("run", "--once", "-o", "json").Stdout)
			default:
				got := r.once(tt.code)
				require.Equal(t, tt.reason, got.Reason, "%+v", got)
				require.Contains(t, got.Detail, tt.detail)
			}
			require.Empty(t, p.Calls(), "not even pulled")
			r.untouched()
		})
	}
}

// noted is what a container noted down in the directory that it shares with us.
func noted(t *testing.T, dir, name string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	return strings.Fields(string(text))
}

// with is several changes of a container as one.
func with(all ...func(*stage.Spec)) func(*stage.Spec) {
	return func(s *stage.Spec) {
		for _, change := range all {
			change(s)
		}
	}
}

func notes(dir string) func(*stage.Spec) {
	return func(s *stage.Spec) { s.Host.Binds = []string{dir + ":/notes"} }
}

// TestWatchtowersHooks run in the old container and in the new, by its shell.
func TestWatchtowersHooks(t *testing.T) {
	stage.NotOn(t, engine.Proxied, noExec)
	for _, tt := range []struct {
		name      string
		pre, post string
		outcome   string
		noted     []string
		code      int
	}{
		{name: "both pass", pre: "app note /notes/hooks before", post: "app note /notes/hooks after", outcome: "committed", noted: []string{"before", "after"}},
		{name: "the first fails, which cancels", pre: "app exit 3", post: "app note /notes/hooks after", outcome: "none", code: 1},
		{name: "the second fails, which puts it back", pre: "app note /notes/hooks before", post: "app exit 4", outcome: "restored", noted: []string{"before"}, code: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			r := newRig(t, start{config: compat, image: stage.Image{Shell: true}, change: with(theirs(map[string]string{
				"lifecycle.pre-update": tt.pre, "lifecycle.post-update": tt.post, "lifecycle.post-update-timeout": "1",
			}), notes(dir))})
			digest := r.push("latest", stage.Image{Version: "v2", Shell: true})
			got := r.once(tt.code)
			require.Equal(t, tt.outcome, got.Outcome, "%+v", got)
			require.Equal(t, tt.noted, noted(t, dir, "hooks"))
			switch tt.outcome {
			case "committed":
				r.updated("v2", digest)
			case "none":
				r.untouched()
				require.Equal(t, "surroundings", r.check(1).Reason, "it is tried again")
			default:
				r.asItWas()
				require.Equal(t, "rejected", r.check(0).Reason)
			}
		})
	}
}

// TestWatchtowersStopSignal is what the old container gets, and what the new one is
// told apart from: its own is still the image's.
func TestWatchtowersStopSignal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	app := stage.Behaviour{Signals: "/notes/signals"}
	r := newRig(t, start{config: compat, image: stage.Image{Behave: app}, change: with(theirs(map[string]string{"stop-signal": "SIGUSR1"}), notes(dir))})
	digest := r.push("latest", stage.Image{Version: "v2", Behave: app})
	if v, err := r.d.ServerVersion(t.Context()); versions.LessThan(v.APIVersion, "1.42") {
		require.NoError(t, err)
		got := r.once(1)
		require.Equal(t, "invalid-settings", got.Reason, "%+v", got)
		require.Contains(t, got.Detail, "stop-signal: API "+v.APIVersion+" cannot express it")
		r.untouched()
		return
	}
	require.Equal(t, "committed", r.once(0).Outcome)
	c := r.updated("v2", digest)
	require.Equal(t, []string{"SIGUSR1"}, noted(t, dir, "signals"))
	require.Empty(t, c.Config.StopSignal)
}

// TestWatchtowersDependencies are updated first, and one that is not keeps those
// behind it waiting.
func TestWatchtowersDependencies(t *testing.T) {
	t.Parallel()
	web := ""
	// No two of these tests, nor two of these containers, share an image.
	image := func(version, of string) stage.Image { return stage.Image{Version: version, Env: []string{"OF=" + of}} }
	r := newRig(t, start{config: compat, image: image("v1", "db"), change: func(s *stage.Spec) { web = s.Name }})
	db := r.name
	app := r.d.Name("app") // in the order of their names it would be the first
	ref := r.reg.Ref("acme/" + app + ":latest")
	push := func(version string) { r.reg.Push("acme/"+app+":latest", image(version, "app")) }
	push("v1")
	spec := stage.Spec{Name: app, Config: container.Config{Image: ref}}
	theirs(map[string]string{"depends-on": "/" + web})(&spec)
	r.d.Run(spec)
	before := r.d.WaitRunning(app, 20*time.Second)

	r.pushBad("latest", "bad")
	push("v2")
	res := r.u.Run("run", "--once", "-o", "json")
	require.Equal(t, 1, res.Code)
	for _, row := range parseRows(t, res.Stdout) {
		if row.Workload == "local/"+app {
			require.Equal(t, "none", row.Outcome, "%+v", row)
		}
	}
	require.Equal(t, before.ID, r.d.Inspect(app).ID)

	r.push("latest", image("v3", "db"))
	p := r.through(stage.Hooks{})
	require.Zero(t, r.u.Run("run", "--once").Code)
	for _, name := range []string{db, app} {
		require.NotContains(t, r.d.Inspect(name).Config.Env, "APP_VERSION=v1", name)
	}
	ids := map[string]string{r.before.ID: db, before.ID: app}
	var order []string
	for _, c := range p.Calls() {
		for id, name := range ids {
			if strings.HasPrefix(c.Path, "/containers/"+id+"/stop") && !slices.Contains(order, name) {
				order = append(order, name)
			}
		}
	}
	require.Equal(t, []string{db, app}, order)
}

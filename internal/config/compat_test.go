package config

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestWatchtowersLabels(t *testing.T) {
	const wt = "com.centurylinklabs.watchtower."
	hook := func(command string, timeout time.Duration) updater.Hook {
		return updater.Hook{Command: []string{"sh", "-c", command}, Timeout: timeout}
	}
	for _, c := range []struct {
		name, file string
		labels     map[string]string
		own        map[string]string
		want       func(*updater.Settings)
		problem    string
	}{
		{name: "they mean nothing without compat", file: "watch: all", labels: map[string]string{wt + "enable": "false"},
			want: func(s *updater.Settings) { s.Enabled = true }},
		{name: "enabled where only labelled ones are watched", labels: map[string]string{wt + "enable": "true"},
			want: func(s *updater.Settings) { s.Enabled = true }},
		{name: "disabled where all are watched", file: "watch: all", labels: map[string]string{wt + "enable": "false"},
			want: func(s *updater.Settings) {}},
		{name: "our own label goes first", labels: map[string]string{wt + "enable": "true"}, own: map[string]string{"enable": "false"},
			want: func(s *updater.Settings) {}},
		{name: "only told of", labels: map[string]string{wt + "monitor-only": "true"},
			want: func(s *updater.Settings) { s.Mode = updater.ModeMonitor }},
		{name: "a switch that is off says nothing", file: "defaults: {mode: approve}", labels: map[string]string{wt + "monitor-only": "false", wt + "no-pull": "0"},
			want: func(s *updater.Settings) { s.Mode = updater.ModeApprove }},
		{name: "never pulled", labels: map[string]string{wt + "no-pull": "true", wt + "monitor-only": "true"},
			want: func(s *updater.Settings) { s.Mode = updater.ModeHold }},
		{name: "dependencies", labels: map[string]string{wt + "depends-on": "/db, cache"},
			want: func(s *updater.Settings) { s.DependsOn = []string{"db", "cache"} }},
		{name: "a stop signal", labels: map[string]string{wt + "stop-signal": "SIGHUP"},
			want: func(s *updater.Settings) { s.StopSignal = "SIGHUP" }},
		{name: "hooks, with a shell", labels: map[string]string{wt + "lifecycle.pre-update": "dump >/b && ok", wt + "lifecycle.post-update": "warm", wt + "lifecycle.post-update-timeout": "5"},
			want: func(s *updater.Settings) {
				s.PreUpdate, s.PostUpdate = hook("dump >/b && ok", time.Minute), hook("warm", 5*time.Minute)
			}},
		{name: "a hook without end", labels: map[string]string{wt + "lifecycle.pre-update": "x", wt + "lifecycle.pre-update-timeout": "0"},
			want: func(s *updater.Settings) { s.PreUpdate = hook("x", 24*time.Hour) }},
		{name: "a rule gives way to what is on the container", file: "rules: [{match: {name: web}, mode: update}]", labels: map[string]string{wt + "monitor-only": "true"},
			want: func(s *updater.Settings) { s.Mode = updater.ModeMonitor }},
		{name: "another's scope", file: "watch: all", labels: map[string]string{wt + "scope": "other"},
			want: func(s *updater.Settings) { s.Enabled = true }},
		{name: "a hook that has no equal", labels: map[string]string{wt + "lifecycle.pre-check": "x"}, problem: "label " + wt + "lifecycle.pre-check: has no equal"},
		{name: "a hook that has no equal, on one taken out of compat", file: "watch: all", labels: map[string]string{wt + "lifecycle.pre-check": "x"}, own: map[string]string{"enable": "false"},
			want: func(*updater.Settings) {}},
		{name: "a switch that is neither", labels: map[string]string{wt + "enable": "yes"}, problem: "label " + wt + "enable: is neither true nor false"},
		{name: "minutes that are none", labels: map[string]string{wt + "lifecycle.pre-update-timeout": "1m"}, problem: "is no number of minutes"},
		{name: "a label that nobody knows", labels: map[string]string{wt + "frobnicate": "x"}, problem: "is not known here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := c.file
			if c.name != "they mean nothing without compat" {
				file = "compat: [watchtower]\n" + file
			}
			cfg, err := from(t, file)
			require.NoError(t, err)
			s, err := cfg.Settings(updater.Workload{ID: "local/web", Backend: "local", Name: "web", Image: "web:1", Labels: c.labels, Written: c.own})
			if c.problem != "" {
				require.ErrorContains(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			want := builtIn()
			c.want(&want)
			require.Equal(t, want, s)
		})
	}
}

func TestWatchtowersScope(t *testing.T) {
	for _, c := range []struct {
		compat, scope string
		watched       bool
	}{
		{"watchtower", "", true},
		{"watchtower", "prod", true},
		{"watchtower:prod", "prod", true},
		{"watchtower:prod", "test", false},
		{"watchtower:prod", "", false},
		{"watchtower:none", "", true},
		{"watchtower:none", "none", true},
		{"watchtower:none", "prod", false},
	} {
		cfg, err := from(t, "watch: all\ncompat: ["+c.compat+"]")
		require.NoError(t, err)
		w := updater.Workload{ID: "local/web", Labels: map[string]string{}}
		if c.scope != "" {
			w.Labels["com.centurylinklabs.watchtower.scope"] = c.scope
		}
		s, err := cfg.Settings(w)
		require.NoError(t, err)
		require.Equal(t, c.watched, s.Enabled, "%+v", c)
	}
	for _, bad := range []string{"diun", "watchtower:", "watchtower, watchtower"} {
		_, err := from(t, "compat: ["+bad+"]")
		require.ErrorContains(t, err, "compat", bad)
	}
}

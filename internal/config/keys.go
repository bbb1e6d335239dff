package config

import (
	"fmt"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// key is one line of a table of keys: how it is called, what it is when nobody
// writes it, how it is read, and where it goes.
type key[T any] struct {
	name string // dotted path
	// builtin is the default as one would write it. optional: without a default.
	builtin  string
	optional bool
	secret   bool // never shown
	// only is the one kind of backend that can honour it; "": any.
	only string
	read func(raw) (any, error)
	put  func(*T, any)
}

// with makes a key from a reader and the place of what it reads.
func with[T, V any](name, builtin string, read reader[V], at func(*T) *V) key[T] {
	return key[T]{
		name:    name,
		builtin: builtin,
		read:    func(r raw) (any, error) { return read(r) },
		put:     func(t *T, v any) { *at(t) = v.(V) },
	}
}

// without makes a key that has no default.
func without[T, V any](name string, read reader[V], at func(*T) *V) key[T] {
	k := with(name, "", read, at)
	k.optional = true
	return k
}

// The kinds of backend, as a key's only has them.
const (
	dockerOnly  = "on Docker hosts"
	clusterOnly = "in clusters"
)

// on makes a key one that only one kind of backend can honour.
func on[T any](only string, k key[T]) key[T] {
	k.only = only
	return k
}

// settingKeys is the table of settings: what may be written below defaults, in
// a rule and on a workload. It is the one place where defaults are kept.
// configs/updaterd.yaml and docs/configuration.md follow it, and a test holds
// them to it.
func settingKeys() []key[updater.Settings] {
	type s = updater.Settings
	return []key[s]{
		// The default of enable depends on watch; see Load.
		without("enable", readFlag, func(s *s) *bool { return &s.Enabled }),
		with("mode", "update", readChoice(updater.ModeUpdate, updater.ModeApprove, updater.ModeMonitor, updater.ModeHold),
			func(s *s) *updater.Mode { return &s.Mode }),
		with("policy", "digest", readText, func(s *s) *string { return &s.Policy.Policy }),
		with("include", "", readText, func(s *s) *string { return &s.Policy.Include }),
		with("exclude", "", readText, func(s *s) *string { return &s.Policy.Exclude }),
		with("extract", "", readText, func(s *s) *string { return &s.Policy.Extract }),
		with("allow-downgrade", "false", readFlag, func(s *s) *bool { return &s.Policy.AllowDowngrade }),
		with("pin", "respect", readChoice(updater.PinRespect, updater.PinFollow), func(s *s) *updater.Pin { return &s.Pin }),
		with("write", "auto", readWrite, func(s *s) *updater.Write { return &s.Write }),
		with("min-age", "0s", readDuration, func(s *s) *time.Duration { return &s.MinAge }),
		with("window", "always", readWindow, func(s *s) *updater.Window { return &s.Window }),
		on(dockerOnly, with("depends-on", "", readList, func(s *s) *[]string { return &s.DependsOn })),
		on(dockerOnly, with("health.probe", "", readProbe, func(s *s) *string { return &s.Health.Probe })),
		with("health.timeout", "auto", readAutoDuration, func(s *s) *time.Duration { return &s.Health.Timeout }),
		with("health.stable", "10s", readDuration, func(s *s) *time.Duration { return &s.Health.Stable }),
		with("health.test.image", "", readImage, func(s *s) *string { return &s.Health.Test.Image }),
		with("health.test.command", "", readCommand, func(s *s) *[]string { return &s.Health.Test.Command }),
		with("health.test.timeout", "30s", readLimit, func(s *s) *time.Duration { return &s.Health.Test.Timeout }),
		on(dockerOnly, with("pre-update.command", "", readCommand, func(s *s) *[]string { return &s.PreUpdate.Command })),
		with("pre-update.timeout", "1m", readLimit, func(s *s) *time.Duration { return &s.PreUpdate.Timeout }),
		on(dockerOnly, with("post-update.command", "", readCommand, func(s *s) *[]string { return &s.PostUpdate.Command })),
		with("post-update.timeout", "1m", readLimit, func(s *s) *time.Duration { return &s.PostUpdate.Timeout }),
		on(dockerOnly, with("stop-timeout", "auto", readAutoDuration, func(s *s) *time.Duration { return &s.StopTimeout })),
		on(dockerOnly, with("stop-signal", "", readSignal, func(s *s) *string { return &s.StopSignal })),
		on(dockerOnly, with("keep", "1", readKeep, func(s *s) *int { return &s.Keep })),
		on(dockerOnly, with("start-first", "false", readFlag, func(s *s) *bool { return &s.StartFirst })),
		on(dockerOnly, with("include-stopped", "false", readFlag, func(s *s) *bool { return &s.IncludeStopped })),
		on(dockerOnly, with("no-rollback", "false", readFlag, func(s *s) *bool { return &s.NoRollback })),
		on(clusterOnly, with("adopt", "false", readFlag, func(s *s) *bool { return &s.Adopt })),
		on(clusterOnly, with("init-containers", "false", readFlag, func(s *s) *bool { return &s.InitContainers })),
		on(clusterOnly, with("cronjob-gate", "none", readChoice(updater.GateNone, updater.GateNextRun), func(s *s) *updater.Gate { return &s.CronJobGate })),
	}
}

// table is the table of settings with what is made of it.
type table struct {
	keys    []key[updater.Settings]
	names   names
	builtin map[string]any // by setting
}

func newTable() table {
	t := table{keys: settingKeys(), names: settingNames(), builtin: map[string]any{}}
	for _, k := range t.keys {
		t.builtin[k.name] = readDefault(k).value
	}
	return t
}

// settingNames says what may be written where settings are.
func settingNames() names {
	n := namesOf(settingKeys())
	n.short = map[string]string{"pre-update": "pre-update.command", "post-update": "post-update.command"}
	n.refused = map[string]string{}
	for _, k := range fileKeys() {
		n.refused[k.name] = "belongs to the whole file; write it at the top, not indented"
	}
	return n
}

// fileKeys are the keys at the top of the file.
func fileKeys() []key[Config] {
	type c = Config
	return []key[c]{
		with("schedule", "@every 15m", readSchedule, func(c *c) *Schedule { return &c.Schedule }),
		with("jitter", "30s", readDuration, func(c *c) *time.Duration { return &c.Jitter }),
		with("watch", WatchLabelled, readChoice(WatchLabelled, WatchAll), func(c *c) *string { return &c.Watch }),
		// The default of state depends on the environment; see Load.
		without("state", readPath, func(c *c) *string { return &c.State }),
		with("parallel", "4", readCount(1, 256), func(c *c) *int { return &c.Parallel }),
		with("compat", "", readCompat, func(c *c) *compat { return &c.compat }),
		with("allow-label-tests", "false", readFlag, func(c *c) *bool { return &c.labelTests }),
		with("log.level", "info", readChoice("debug", "info", "warn", "error"), func(c *c) *string { return &c.Log.Level }),
		with("log.format", "text", readChoice("text", "json"), func(c *c) *string { return &c.Log.Format }),
		with("api.socket", "auto", readSocket, func(c *c) *string { return &c.API.Socket }),
		with("api.group", "", readText, func(c *c) *string { return &c.API.Group }),
		with("api.listen", "", readListen, func(c *c) *string { return &c.API.Listen }),
		with("api.hosts", "", readList, func(c *c) *[]string { return &c.API.Hosts }),
		without("api.tls.cert", readPath, func(c *c) *string { return &c.API.TLS.Cert }),
		without("api.tls.key", readPath, func(c *c) *string { return &c.API.TLS.Key }),
		without("api.read-tokens", readPath, func(c *c) *string { return &c.API.readTokens }),
		without("api.write-tokens", readPath, func(c *c) *string { return &c.API.writeTokens }),
		with("webhooks.listen", "", readListen, func(c *c) *string { return &c.Webhooks.Listen }),
		without("webhooks.tls.cert", readPath, func(c *c) *string { return &c.Webhooks.TLS.Cert }),
		without("webhooks.tls.key", readPath, func(c *c) *string { return &c.Webhooks.TLS.Key }),
		with("metrics.listen", "", readListen, func(c *c) *string { return &c.Metrics }),
	}
}

// fileNames says what may be written at the top of the file.
func fileNames() names {
	n := namesOf(fileKeys())
	n.sections = []string{"docker", "kubernetes", "registries", "notify", "defaults", "rules", "webhooks.senders"}
	n.refused = map[string]string{}
	settings := settingNames()
	for _, name := range append(siblings(settings, ""), settings.leaves...) {
		n.refused[name] = fmt.Sprintf("is a setting of workloads; write it below defaults, as defaults.%s, or in a rule", name)
	}
	return n
}

func namesOf[T any](keys []key[T]) names {
	var n names
	for _, k := range keys {
		n.leaves = append(n.leaves, k.name)
	}
	return n
}

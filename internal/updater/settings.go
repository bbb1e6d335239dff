package updater

import (
	"time"

	"github.com/updaterd/updaterd/internal/policy"
)

// Settings are the effective settings of one workload: what is written on it,
// over the first rule that fits, over the defaults, over what is built in.
// They are frozen into a Change when it is decided on, so a reload does not
// reach a change under way.
type Settings struct {
	Enabled bool        `json:"enabled"` // whether updaterd looks at it at all
	Mode    Mode        `json:"mode"`
	Policy  policy.Spec `json:"policy"`
	Pin     Pin         `json:"pin"`
	// Write is how references are written; WriteDefault leaves it to the backend.
	Write      Write         `json:"write"`
	MinAge     time.Duration `json:"min-age"`
	Window     Window        `json:"window"`
	DependsOn  []string      `json:"depends-on,omitempty"` // names or ids on the same backend
	Health     Health        `json:"health"`
	PreUpdate  Hook          `json:"pre-update"`
	PostUpdate Hook          `json:"post-update"`
	// StopTimeout overrides the workload's own; 0 keeps that.
	StopTimeout time.Duration `json:"stop-timeout"`
	// StopSignal overrides the workload's own; "" keeps that. Docker only.
	StopSignal string `json:"stop-signal,omitempty"`
	// Keep is how many previous images stay for going back by hand; KeepAll
	// never removes one.
	Keep           int  `json:"keep"`
	StartFirst     bool `json:"start-first"`
	IncludeStopped bool `json:"include-stopped"`
	NoRollback     bool `json:"no-rollback"`
	// Adopt updates what another controller would put back; cluster only.
	Adopt bool `json:"adopt,omitempty"`
	// InitContainers lets plain init containers get another image; cluster only.
	InitContainers bool `json:"init-containers,omitempty"`
	// CronJobGate says what judges an updated CronJob; cluster only.
	CronJobGate Gate `json:"cronjob-gate,omitempty"`
}

// KeepAll as Settings.Keep keeps every previous image.
const KeepAll = -1

// Mode says what updaterd may do with a workload that has an update.
type Mode string

// The modes.
const (
	ModeUpdate  Mode = "update"
	ModeApprove Mode = "approve"
	ModeMonitor Mode = "monitor"
	ModeHold    Mode = "hold"
)

// Pin says what a digest that a person wrote means.
type Pin string

// The kinds of pin.
const (
	PinRespect Pin = "respect" // it is left alone
	PinFollow  Pin = "follow"  // it moves with its tag
)

// Write says how updaterd writes a reference.
type Write string

// The ways to write a reference.
const (
	WriteDefault Write = "" // the backend's: digest in a cluster, tag on Docker
	WriteTag     Write = "tag"
	WriteDigest  Write = "digest"
)

// Gate says what judges an updated CronJob.
type Gate string

// The gates of a CronJob.
const (
	GateNone    Gate = "none"     // nothing: it is committed at once
	GateNextRun Gate = "next-run" // the next Job that is made after the change
)

// Health says what a changed workload must pass.
type Health struct {
	// Probe is asked besides the engine's own verdict: "http://:8080/healthz",
	// "tcp://:5432", `exec:["pg_isready","-q"]`. Empty: none.
	Probe string `json:"probe,omitempty"`
	// Timeout is the time from start until first healthy; 0 leaves it to the
	// backend, which knows the image's HEALTHCHECK.
	Timeout time.Duration `json:"timeout"`
	// Stable is how long it must then stay healthy.
	Stable time.Duration `json:"stable"`
	// Test is run once beside a part that is healthy, before the gate passes.
	Test Test `json:"test,omitzero"`
}

// Test is a program in an image of its own that looks at an updated workload
// from outside, over its networks. It passes with exit code 0. The zero Test is
// none.
type Test struct {
	Image string `json:"image,omitempty"`
	// Command replaces the image's own; empty keeps that.
	Command []string      `json:"command,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Hook is a command run in the workload's container. The zero Hook is none.
type Hook struct {
	Command []string      `json:"command,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// writes is how references are written on a workload.
func (s Settings) writes(w Workload) Write {
	if s.Write == WriteDefault {
		return w.Write
	}
	return s.Write
}

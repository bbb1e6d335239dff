package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The back-off between attempts is that of a kubelet, but twenty times as fast.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 15 * time.Second
	// A container that has ended is seen so before it is started again.
	seen = 60 * time.Millisecond
)

// container is one of a pod. All times are when something is due; the zero Time is
// never.
type container struct {
	spec *corev1.Container
	// init: one of the initContainers; sidecar: one that goes on running.
	init, sidecar bool

	status corev1.ContainerStatus
	image  *image
	app    app
	// up is when the process that runs was started.
	up time.Time
	// due is when the next attempt to start it is made.
	due time.Time
	// failures in a row, of one kind: to pull, or to stay up.
	failures int
	// over: it ended and is not started again.
	over      bool
	log, last []string
}

func newContainer(spec *corev1.Container, init bool) *container {
	c := &container{spec: spec, init: init, due: time.Now()}
	c.sidecar = init && spec.RestartPolicy != nil && *spec.RestartPolicy == corev1.ContainerRestartPolicyAlways
	c.status = corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: new(bool)}
	c.wait("PodInitializing", "")
	return c
}

func (c *container) wait(reason, message string) {
	c.status.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	c.status.Ready, c.status.Started = false, new(bool)
}

func (c *container) waiting() string {
	if w := c.status.State.Waiting; w != nil {
		return w.Reason
	}
	return ""
}

func (c *container) pause() time.Duration {
	return min(firstPause<<min(c.failures, 10), lastPause)
}

// step brings the container to where it is at now, and says when to look again.
func (c *container) step(ctx context.Context, p *pod, now time.Time) (next time.Time) {
	switch {
	case c.over:
		return time.Time{}
	case c.status.State.Running != nil:
		return c.live(p, now)
	case c.status.State.Terminated != nil:
		return c.ended(p, now)
	case now.Before(c.due):
		return c.due
	}
	return c.begin(ctx, p, now)
}

// begin tries to start it.
func (c *container) begin(ctx context.Context, p *pod, now time.Time) time.Time {
	later := func(reason, message string) time.Time {
		c.wait(reason, message)
		c.due = now.Add(c.pause())
		c.failures++
		return c.due
	}
	switch c.waiting() {
	case "PodInitializing":
		c.wait("ContainerCreating", "")
	case "ErrImagePull":
		// What failed is seen for a moment, and then that it waits.
		return later("ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: ErrImagePull: %s", c.spec.Image, c.status.State.Waiting.Message))
	}
	img, err := p.node.image(ctx, p, c.spec)
	if err != nil {
		if c.spec.ImagePullPolicy == corev1.PullNever {
			return later("ErrImageNeverPull", err.Error())
		}
		c.wait("ErrImagePull", err.Error())
		c.due = now.Add(seen)
		return c.due
	}
	c.image = img
	env, err := p.env(ctx, c.spec)
	if err == nil {
		err = p.refusesRoot(c.spec, img)
	}
	if err != nil {
		return later("CreateContainerConfigError", err.Error())
	}
	c.status.Image, c.status.ImageID = img.shown(c.spec.Image), img.id(p.node.Runtime)
	if c.status.LastTerminationState.Terminated != nil || c.status.ContainerID != "" {
		c.status.RestartCount++
	}
	c.status.ContainerID = "containerd://" + randomID()
	args := slices.Concat(c.spec.Command, c.spec.Args)
	if len(c.spec.Command) == 0 {
		args = img.args
		if len(c.spec.Args) > 0 && len(img.args) > 0 {
			args = append(img.args[:1:1], c.spec.Args...)
		}
	}
	if c.app, err = behaviour(args, slices.Concat(img.env, env)); err != nil {
		c.status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: 128, Reason: "StartError", Message: err.Error(), ContainerID: c.status.ContainerID,
			StartedAt: metav1.Unix(0, 0), FinishedAt: metav1.NewTime(now),
		}
		return later("RunContainerError", err.Error())
	}
	c.last, c.log = c.log, c.app.log
	c.up = now
	c.status.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now)}}
	return c.live(p, now)
}

// live is what becomes of one that runs.
func (c *container) live(p *pod, now time.Time) time.Time {
	var next time.Time
	at := func(t time.Time) bool {
		if t.After(now) {
			if next.IsZero() || t.Before(next) {
				next = t
			}
			return false
		}
		return true
	}
	if c.app.exit != nil && at(c.up.Add(c.app.exitAfter)) {
		c.end(now, int32(*c.app.exit), "")
		return now.Add(seen)
	}
	if limit := c.spec.Resources.Limits.Memory(); c.app.eatMemory && !limit.IsZero() && limit.Cmp(resource.MustParse("1Gi")) < 0 && at(c.up.Add(seen)) {
		c.end(now, 137, "OOMKilled")
		return now.Add(seen)
	}
	listens := !c.app.hang && at(c.up.Add(c.app.listenAfter))
	healthy := listens
	if after := c.app.unhealthyAfter; after != nil && at(c.up.Add(*after)) {
		healthy = false
	}
	// The patience of a probe, from when what it asks began to be wrong.
	patience := func(probe *corev1.Probe) time.Duration {
		return time.Duration(probe.FailureThreshold*probe.PeriodSeconds) * time.Second
	}
	started := true
	if probe := c.spec.StartupProbe; probe != nil {
		if started = healthy; !started && at(c.up.Add(patience(probe))) {
			c.end(now, 0, "")
			return now.Add(seen)
		}
	}
	if probe := c.spec.LivenessProbe; probe != nil && started && !healthy {
		since := c.up.Add(time.Duration(probe.InitialDelaySeconds) * time.Second)
		if after := c.app.unhealthyAfter; listens && after != nil {
			since = c.up.Add(max(*after, since.Sub(c.up)))
		}
		if at(since.Add(patience(probe))) {
			c.end(now, 0, "")
			return now.Add(seen)
		}
	}
	c.status.Started = &started
	c.status.Ready = started
	if probe := c.spec.ReadinessProbe; probe != nil {
		c.status.Ready = started && healthy && at(c.up.Add(time.Duration(probe.InitialDelaySeconds)*time.Second))
	}
	if c.init && !c.sidecar {
		c.status.Ready = false
	}
	return next
}

// end lets the process that runs end.
func (c *container) end(now time.Time, code int32, reason string) {
	if reason == "" {
		if reason = "Completed"; code != 0 {
			reason = "Error"
		}
	}
	c.status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, Reason: reason, ContainerID: c.status.ContainerID,
		StartedAt: metav1.NewTime(c.up), FinishedAt: metav1.NewTime(now),
	}}
	c.status.Ready, c.status.Started = false, new(bool)
	c.due = now.Add(seen)
}

// ended decides whether one that has ended is started again.
func (c *container) ended(p *pod, now time.Time) time.Time {
	if now.Before(c.due) {
		return c.due
	}
	over := c.status.State.Terminated
	policy := p.spec().RestartPolicy
	if c.init && !c.sidecar && policy == corev1.RestartPolicyAlways {
		policy = corev1.RestartPolicyOnFailure
	}
	if c.sidecar {
		policy = corev1.RestartPolicyAlways
	}
	if policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && over.ExitCode == 0 {
		c.over = true
		c.status.Ready = c.init && over.ExitCode == 0
		return time.Time{}
	}
	if over.FinishedAt.Sub(over.StartedAt.Time) > 2*lastPause {
		c.failures = 0
	}
	c.status.LastTerminationState.Terminated = over
	if c.failures++; c.failures > 1 {
		pause := min(firstPause<<min(c.failures-2, 10), lastPause)
		c.wait("CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", pause, c.spec.Name, p.key()))
		c.due = now.Add(pause)
		return c.due
	}
	// The first is started again at once.
	c.wait("ContainerCreating", "")
	c.due = now
	return now
}

// stop ends one that runs, because its pod shall end, once it may.
func (c *container) stop(asked time.Time, grace time.Duration, now time.Time) (next time.Time) {
	if c.status.State.Running == nil {
		return time.Time{}
	}
	due, code := asked.Add(min(c.app.stopAfter, grace)), int32(0)
	if c.app.ignoreTerm || c.app.stopAfter > grace {
		due, code = asked.Add(grace), 137
	}
	if now.Before(due) {
		return due
	}
	c.end(now, code, "")
	return time.Time{}
}

func randomID() string {
	b := make([]byte, 32)
	rand.Read(b) //nolint:errcheck // It never fails.
	return hex.EncodeToString(b)
}

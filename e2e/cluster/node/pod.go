package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod plays one pod from when it is bound to a node until it is gone. Its fields
// are owned by run, but for what stands below mu.
type pod struct {
	node *Node
	// namespace and name never change.
	namespace, name string
	end             context.CancelFunc
	news            chan *corev1.Pod // the newest that is not yet seen

	now               *corev1.Pod
	inits, containers []*container
	started           metav1.Time
	ip                string
	conditions        []corev1.PodCondition
	reported          *corev1.PodStatus
	asked             time.Time // when it was asked to end
	mounted, finished bool

	mu   sync.Mutex
	logs map[string]logs
}

// logs are what a container wrote, now and in its last life.
type logs struct{ now, last []string }

func newPod(n *Node, p *corev1.Pod) *pod {
	a := &pod{
		node: n, namespace: p.Namespace, name: p.Name, news: make(chan *corev1.Pod, 1), now: p, started: metav1.Now(), logs: map[string]logs{},
	}
	for i := range p.Spec.InitContainers {
		a.inits = append(a.inits, newContainer(&p.Spec.InitContainers[i], true))
	}
	for i := range p.Spec.Containers {
		a.containers = append(a.containers, newContainer(&p.Spec.Containers[i], false))
	}
	return a
}

func (p *pod) spec() *corev1.PodSpec { return &p.now.Spec }

func (p *pod) key() string {
	return fmt.Sprintf("%s_%s(%s)", p.now.Name, p.now.Namespace, p.now.UID)
}

// tell hands over the newest state of the pod.
func (p *pod) tell(now *corev1.Pod) {
	for {
		select {
		case p.news <- now:
			return
		default:
		}
		select {
		case <-p.news:
		default:
		}
	}
}

// run plays the pod until it is gone or ctx ends.
func (p *pod) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p.now = <-p.news:
		case <-timer.C:
		}
		if p.node.lost() {
			timer.Reset(time.Second)
			continue
		}
		next, gone := p.step(ctx, time.Now())
		p.keepLogs()
		err := p.report(ctx)
		if err == nil && gone {
			err = p.remove(ctx)
		}
		switch {
		case apierrors.IsNotFound(err) || err == nil && gone:
			return
		case err != nil:
			// The API server is away, or was asked too much.
			if ctx.Err() == nil && !unreachable(err) {
				slog.Warn("fake kubelet", "pod", p.now.Name, "err", err)
			}
			timer.Reset(200 * time.Millisecond)
		case !next.IsZero():
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
	}
}

// step brings all containers to where they are at now; gone means that the pod
// has ended and is to be removed.
func (p *pod) step(ctx context.Context, now time.Time) (next time.Time, gone bool) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if p.now.DeletionTimestamp != nil {
		return p.stopAll(now)
	}
	if p.finished {
		return next, false
	}
	if !p.mounted {
		if err := p.mount(ctx); err != nil {
			return now.Add(time.Second), false
		}
		p.mounted = true
		p.ip = p.node.fleet.address()
	}
	for _, c := range p.inits {
		sooner(c.step(ctx, p, now))
		switch {
		case c.sidecar && *c.status.Started:
			continue
		case !c.sidecar && c.over && c.status.State.Terminated.ExitCode == 0:
			continue
		case !c.sidecar && c.over:
			p.finished = true // It failed, and the pod with it.
		}
		return next, false
	}
	over := true
	for _, c := range p.containers {
		sooner(c.step(ctx, p, now))
		over = over && c.over
	}
	if over {
		for _, c := range p.inits {
			if c.sidecar && c.status.State.Running != nil {
				c.end(now, 0, "")
				c.over = true
			}
		}
		p.finished = true
		return time.Time{}, false
	}
	return next, false
}

func (p *pod) stopAll(now time.Time) (next time.Time, gone bool) {
	if p.asked.IsZero() {
		p.asked = now
	}
	grace := 30 * time.Second
	if s := p.now.DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	for _, c := range append(p.inits[:len(p.inits):len(p.inits)], p.containers...) {
		if due := c.stop(p.asked, grace, now); !due.IsZero() {
			next = due
		}
	}
	return next, next.IsZero()
}

func (p *pod) remove(ctx context.Context) error {
	return p.node.fleet.client.CoreV1().Pods(p.now.Namespace).Delete(ctx, p.now.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &p.now.UID},
	})
}

// mount looks for what the pod's volumes need.
func (p *pod) mount(ctx context.Context) error {
	for _, v := range p.spec().Volumes {
		if s := v.Secret; s != nil && (s.Optional == nil || !*s.Optional) {
			if _, err := p.secret(ctx, s.SecretName); err != nil {
				return err
			}
		}
		if c := v.ConfigMap; c != nil && (c.Optional == nil || !*c.Optional) {
			if _, err := p.configMap(ctx, c.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pod) secret(ctx context.Context, name string) (*corev1.Secret, error) {
	s, err := p.node.fleet.client.CoreV1().Secrets(p.now.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("secret %q not found", name)
	}
	return s, err
}

func (p *pod) configMap(ctx context.Context, name string) (*corev1.ConfigMap, error) {
	c, err := p.node.fleet.client.CoreV1().ConfigMaps(p.now.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("configmap %q not found", name)
	}
	return c, err
}

// env is the environment that the pod gives a container.
func (p *pod) env(ctx context.Context, c *corev1.Container) ([]string, error) {
	var env []string
	optional := func(b *bool) bool { return b != nil && *b }
	for _, from := range c.EnvFrom {
		if r := from.SecretRef; r != nil && !optional(r.Optional) {
			if _, err := p.secret(ctx, r.Name); err != nil {
				return nil, err
			}
		}
		if r := from.ConfigMapRef; r != nil && !optional(r.Optional) {
			if _, err := p.configMap(ctx, r.Name); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range c.Env {
		value := e.Value
		if from := e.ValueFrom; from != nil && from.SecretKeyRef != nil && !optional(from.SecretKeyRef.Optional) {
			s, err := p.secret(ctx, from.SecretKeyRef.Name)
			if err != nil {
				return nil, err
			}
			b, ok := s.Data[from.SecretKeyRef.Key]
			if !ok {
				return nil, fmt.Errorf("couldn't find key %s in Secret %s/%s", from.SecretKeyRef.Key, p.now.Namespace, s.Name)
			}
			value = string(b)
		}
		if from := e.ValueFrom; from != nil && from.ConfigMapKeyRef != nil && !optional(from.ConfigMapKeyRef.Optional) {
			m, err := p.configMap(ctx, from.ConfigMapKeyRef.Name)
			if err != nil {
				return nil, err
			}
			s, ok := m.Data[from.ConfigMapKeyRef.Key]
			if !ok {
				return nil, fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", from.ConfigMapKeyRef.Key, p.now.Namespace, m.Name)
			}
			value = s
		}
		env = append(env, e.Name+"="+value)
	}
	return env, nil
}

// refusesRoot says why an image's user is not let in, if it is not.
func (p *pod) refusesRoot(c *corev1.Container, i *image) error {
	var strict, user bool
	if s := p.spec().SecurityContext; s != nil {
		strict, user = s.RunAsNonRoot != nil && *s.RunAsNonRoot, s.RunAsUser != nil
	}
	if s := c.SecurityContext; s != nil {
		if s.RunAsNonRoot != nil {
			strict = *s.RunAsNonRoot
		}
		user = user || s.RunAsUser != nil
	}
	switch {
	case !strict || user:
		return nil
	case i.user == "" || i.user == "0":
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", p.key(), c.Name)
	case strings.Trim(i.user, "0123456789") != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", i.user, p.key(), c.Name)
	}
	return nil
}

// status is how things stand.
func (p *pod) status() *corev1.PodStatus {
	s := &corev1.PodStatus{
		ObservedGeneration: p.now.Generation, StartTime: &p.started,
		HostIP: "127.0.0.1", HostIPs: []corev1.HostIP{{IP: "127.0.0.1"}},
	}
	if p.ip != "" {
		s.PodIP, s.PodIPs = p.ip, []corev1.PodIP{{IP: p.ip}}
	}
	initialized := true
	for _, c := range p.inits {
		s.InitContainerStatuses = append(s.InitContainerStatuses, *c.status.DeepCopy())
		initialized = initialized && (c.sidecar && *c.status.Started || c.over && c.status.State.Terminated.ExitCode == 0)
	}
	var unready []string
	pending, failed, done := !initialized, false, true
	for _, c := range p.containers {
		s.ContainerStatuses = append(s.ContainerStatuses, *c.status.DeepCopy())
		if !c.status.Ready {
			unready = append(unready, c.spec.Name)
		}
		if c.status.State.Waiting != nil && c.status.LastTerminationState.Terminated == nil {
			pending = true
		}
		failed = failed || c.over && c.status.State.Terminated.ExitCode != 0
		done = done && c.over
	}
	for _, c := range p.inits {
		if c.sidecar && !c.status.Ready {
			unready = append(unready, c.spec.Name)
		}
		failed = failed || !c.sidecar && c.over && c.status.State.Terminated.ExitCode != 0
	}
	reason, message := "", ""
	if len(unready) > 0 {
		reason, message = "ContainersNotReady", fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	}
	switch {
	case p.finished && failed:
		s.Phase, reason = corev1.PodFailed, "PodFailed"
	case p.finished && done:
		s.Phase, reason = corev1.PodSucceeded, "PodCompleted"
	case pending:
		s.Phase = corev1.PodPending
	default:
		s.Phase = corev1.PodRunning
	}
	contained := len(unready) == 0 && initialized
	ready := contained
	for _, gate := range p.spec().ReadinessGates {
		open := false
		for _, c := range p.now.Status.Conditions {
			open = open || c.Type == gate.ConditionType && c.Status == corev1.ConditionTrue
		}
		if !open {
			ready = false
			if contained {
				reason, message = "ReadinessGatesNotReady", fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType)
			}
		}
	}
	p.condition(corev1.PodReadyToStartContainers, p.mounted, "", "")
	p.condition(corev1.PodInitialized, initialized, "ContainersNotInitialized", "")
	p.condition(corev1.ContainersReady, contained, reason, message)
	p.condition(corev1.PodReady, ready, reason, message)
	s.Conditions = append([]corev1.PodCondition(nil), p.conditions...)
	return s
}

// condition sets one, which keeps its time while it stays.
func (p *pod) condition(kind corev1.PodConditionType, is bool, reason, message string) {
	next := corev1.PodCondition{
		Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		LastTransitionTime: metav1.Now(), ObservedGeneration: p.now.Generation,
	}
	if is {
		next.Status, next.Reason, next.Message = corev1.ConditionTrue, "", ""
	}
	for i, c := range p.conditions {
		if c.Type == kind {
			if c.Status == next.Status {
				next.LastTransitionTime = c.LastTransitionTime
			}
			p.conditions[i] = next
			return
		}
	}
	p.conditions = append(p.conditions, next)
}

// report writes the status, if it is another than last time.
func (p *pod) report(ctx context.Context) error {
	status := p.status()
	if equality.Semantic.DeepEqual(status, p.reported) {
		return nil
	}
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.now.UID}, "status": status})
	if err != nil {
		return err
	}
	_, err = p.node.fleet.client.CoreV1().Pods(p.now.Namespace).Patch(ctx, p.now.Name, types.StrategicMergePatchType, b, metav1.PatchOptions{}, "status")
	if err == nil {
		p.reported = status
	}
	return err
}

func (p *pod) keepLogs() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range append(p.inits[:len(p.inits):len(p.inits)], p.containers...) {
		p.logs[c.spec.Name] = logs{c.log, c.last}
	}
}

// unreachable: there was no answer at all.
func unreachable(err error) bool {
	var status apierrors.APIStatus
	return !errors.As(err, &status)
}

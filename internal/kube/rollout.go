package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

// ownTimeout is how long a rollout may go without progress where the object says
// nothing: what a Deployment has built in (progressDeadlineSeconds).
const ownTimeout = 600 * time.Second

// rollout says what a rollout still waits for, as kubectl rollout status computes
// it; "" when it is complete. waits says why there is nothing that could be waited
// for.
func (o *owner) rollout() (pending, waits string) {
	switch {
	case o.kind == "cronjob":
		return "", ""
	case o.paused:
		return "", "its rollout is paused"
	case o.observed < o.Generation:
		return "the cluster has not taken notice of it yet", ""
	case o.desired == 0 && o.kind == "daemonset":
		return "", "no node is one for it"
	case o.desired == 0:
		return "", "no pod of it is wanted: it is scaled to 0"
	}
	switch o.kind {
	case "deployment":
		switch {
		case o.updated < o.desired:
			return fmt.Sprintf("%d of %d pods are on the new template", o.updated, o.desired), ""
		case o.total == o.updated+1:
			return "1 old pod is still there", ""
		case o.total > o.updated:
			return fmt.Sprintf("%d old pods are still there", o.total-o.updated), ""
		case o.available < o.updated:
			return fmt.Sprintf("%d of %d new pods are available", o.available, o.updated), ""
		}
	case "statefulset":
		switch {
		case o.partition >= o.desired:
			return "", fmt.Sprintf("its partition (%d) keeps every pod on the old template", o.partition)
		case o.ready < o.desired:
			return fmt.Sprintf("%d of %d pods are ready", o.ready, o.desired), ""
		case o.partition > 0 && o.updated < o.desired-o.partition:
			return fmt.Sprintf("%d of %d pods beyond the partition are on the new template", o.updated, o.desired-o.partition), ""
		case o.partition > 0:
			return "", ""
		case o.updated < o.desired, o.updateRevision != o.currentRevision:
			// When the template of before is back, the revisions are the same at once.
			return fmt.Sprintf("%d of %d pods are on the new template", o.updated, o.desired), ""
		}
	case "daemonset":
		switch {
		case o.updated < o.desired:
			return fmt.Sprintf("%d of %d pods are on the new template", o.updated, o.desired), ""
		case o.available < o.desired:
			return fmt.Sprintf("%d of %d new pods are available", o.available, o.desired), ""
		}
	}
	return "", ""
}

// blamed is what the pods of a template say of one of its containers.
type blamed struct {
	// fault is what goes wrong, and verdict whom it speaks against; "" when nothing
	// does.
	fault   string
	verdict updater.Verdict
	// missing: nodes do not find the image, which the registry is to confirm.
	missing bool
	// logs is what a container that ended left as its message.
	logs string
	// restarted is when one was last restarted.
	restarted time.Time
	// ready counts the pods that are.
	ready int
	// against says what speaks against the image and does not condemn it yet; "" when
	// nothing does.
	against string
}

// blame looks at the pods that were made with these images, for the container
// named. One pod is enough where what it says is certain: the container cannot be
// started, was killed for want of memory, or restarted more than once. An exit that
// came once may be anything, so it takes two pods that are not ready again. Everything else is the
// surroundings' doing, and only counts when time runs out. What ended before since
// and runs again is history: pods that stay through a rollout have had their own.
func blame(o *owner, pods []*pod, images map[string]string, name string, since time.Time) blamed {
	var b blamed
	exits, unready, around := 0, 0, ""
	last, missing := "", ""
	c, _ := o.container(name)
	for _, p := range pods {
		if !p.is(images) {
			continue
		}
		if p.gone() {
			if why := p.evicted(); why != "" && around == "" {
				around = "pod " + p.Name + " was ended by the cluster: " + why
			}
			continue
		}
		if p.readyNow() {
			b.ready++
		}
		s := p.of(name)
		if s == nil {
			if why := unscheduled(p); why != "" {
				around = why
			}
			continue
		}
		e := evidence(p.since(*s, since), c.init)
		if e.logs != "" {
			b.logs = e.logs
		}
		if e.at.After(b.restarted) {
			b.restarted = e.at
		}
		switch {
		case e.certain != "":
			b.fault, b.verdict = "pod "+p.Name+": "+e.certain, updater.Bad
			return b
		case e.missing != "":
			missing = "pod " + p.Name + ": " + e.missing
		case e.exit != "" && p.readyNow():
			// It came up again by itself.
		case e.exit != "":
			exits++
			last = "pod " + p.Name + ": " + e.exit
			b.against = "its pod " + p.Name + " " + strings.TrimPrefix(e.exit, "it ")
		case e.around != "":
			around = "pod " + p.Name + ": " + e.around
		case s.State.Running != nil && !s.Ready && !c.init:
			unready++
			b.against = "its pod " + p.Name + " runs and is not ready"
		case !p.readyNow() && !c.init:
			if why := notItsFault(p, name); why != "" {
				around = "pod " + p.Name + ": " + why
			}
		}
	}
	switch {
	case exits >= 2:
		b.fault, b.verdict = fmt.Sprintf("%d pods ended, such as %s", exits, last), updater.Bad
	case missing != "":
		b.fault, b.verdict, b.missing = missing, updater.Bad, true
	case exits+unready > 0:
		// Not enough to condemn it now, and enough when time runs out.
	case o.failure != "":
		b.fault, b.verdict = "pods cannot be made: "+o.failure, updater.Unclear
	case around != "":
		b.fault, b.verdict = around, updater.Unclear
	}
	return b
}

// since is a container's status without what was over by then.
func (p *pod) since(s corev1.ContainerStatus, then time.Time) corev1.ContainerStatus {
	if !p.CreationTimestamp.Time.Before(then) {
		return s
	}
	if last := s.LastTerminationState.Terminated; last != nil && last.FinishedAt.Time.Before(then) && s.State.Running != nil {
		s.LastTerminationState, s.RestartCount = corev1.ContainerState{}, 0
	}
	s.RestartCount = min(s.RestartCount, 1) // how many of them came after it is not known
	return s
}

// sign is what the status of one container speaks of.
type sign struct {
	certain string // the image is to blame
	missing string // the image is not found
	exit    string // it may be: it ran and ended once
	around  string // the surroundings are
	logs    string
	at      time.Time // of the last end
}

// evidence reads the status of one container.
func evidence(s corev1.ContainerStatus, init bool) (e sign) {
	ended := s.State.Terminated
	if ended == nil {
		ended = s.LastTerminationState.Terminated
	}
	if ended != nil {
		e.logs, e.at = tail(ended.Message), ended.FinishedAt.Time
		lost := ended.Reason == "ContainerStatusUnknown" || ended.Reason == "Unknown" // the node's doing
		switch {
		case lost:
			e.around = "its end was lost by the node"
		case ended.Reason == "OOMKilled":
			e.certain = "it was killed for want of memory (OOM)"
		case cannotStart(ended.Message):
			e.certain = "it cannot be started: " + ended.Message
		case init && ended.ExitCode == 0:
		case s.RestartCount > 1:
			e.certain = fmt.Sprintf("it was restarted %d times, last exit code %d", s.RestartCount, ended.ExitCode)
		default:
			e.exit = fmt.Sprintf("it exited with code %d", ended.ExitCode)
		}
	}
	w := s.State.Waiting
	if w == nil || e.certain != "" {
		return e
	}
	said := strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
	switch w.Reason {
	case "ContainerCreating", "PodInitializing", "":
	case "CrashLoopBackOff":
		if s.RestartCount > 1 && e.around == "" {
			e.certain = fmt.Sprintf("it was restarted %d times", s.RestartCount)
		}
	case "InvalidImageName":
		e.certain = said
	case "ErrImagePull", "ImagePullBackOff":
		switch {
		case strings.Contains(w.Message, "no match for platform"), strings.Contains(w.Message, "no matching manifest"):
			e.certain = "its image does not exist for this platform: " + said
		case noSuchImage(w.Message):
			e.missing = "its image does not exist: " + said
		default:
			e.around = "its image cannot be pulled: " + said
		}
	case "CreateContainerConfigError":
		if strings.Contains(w.Message, "runAsNonRoot") {
			e.certain = said
		} else {
			e.around = said
		}
	default: // CreateContainerError, RunContainerError, ErrImageNeverPull, ...
		if cannotStart(w.Message) {
			e.certain = "it cannot be started: " + w.Message
		} else {
			e.around = said
		}
	}
	return e
}

// tail keeps the end of what a container said.
func tail(s string) string {
	const most = 4 << 10
	if len(s) > most {
		s = s[len(s)-most:]
	}
	return s
}

// cannotStart reports whether a runtime's message is about the image's own program.
func cannotStart(message string) bool {
	m := strings.ToLower(message)
	if strings.Contains(m, "mount") {
		return false // a volume that is not there is the surroundings' doing
	}
	for _, s := range []string{"exec format error", "executable file not found", "no such file or directory: unknown", "exec: no such file"} {
		if strings.Contains(m, s) {
			return true
		}
	}
	// `exec: "/app": stat /app: no such file or directory`
	return strings.Contains(m, `exec: "`) && (strings.Contains(m, "no such file or directory") || strings.Contains(m, "permission denied"))
}

// noSuchImage reports whether a pull failed because what was asked has no such
// manifest. What may as well be a missing right is not among it.
func noSuchImage(message string) bool {
	m := strings.ToLower(message)
	for _, s := range []string{"authoriz", "denied", "forbidden", "credential", "no such host"} {
		if strings.Contains(m, s) {
			return false
		}
	}
	if strings.Contains(m, "manifest unknown") {
		return true
	}
	// containerd says "not found" of a blob as well, which a mirror may have lost. Only
	// a reference that does not resolve is one that does not exist.
	_, rest, resolving := strings.Cut(m, "failed to resolve ")
	what, _, missing := strings.Cut(rest, ": not found")
	return resolving && missing && !strings.Contains(what, "://")
}

// unscheduled says why a pod has no node; "" when it has one.
func unscheduled(p *pod) string {
	for _, c := range p.status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "pod " + p.Name + " finds no node: " + c.Message
		}
	}
	return ""
}

// notItsFault says what else keeps a pod from being ready than the container named;
// "" when nothing does.
func notItsFault(p *pod, name string) string {
	if p.condition(corev1.ContainersReady) {
		if p.gates {
			return "its readiness gates are not passed"
		}
		return "its node is not ready"
	}
	for _, s := range p.status.ContainerStatuses {
		if s.Name != name && !s.Ready {
			return "another container, " + s.Name + ", is not ready"
		}
	}
	return ""
}

// liveEvery is how long the watches are believed about a change before its object is
// read: a watch that hears nothing any more looks like a rollout that stays healthy.
// Shorter than the default stable time, so that no such change is committed.
const liveEvery = 5 * time.Second

// glance is what this process last read live of a change's object.
type glance struct {
	generation int64
	at         time.Time
}

// see returns the object of a change and the pods of its namespace: from the
// watches when they are known to be no older than what this process has seen of the
// change, a short while ago, else from the API server. The object is nil when it has
// gone.
func (c *Cluster) see(ctx context.Context, ch updater.Change, org origin) (*owner, []*pod, error) {
	k, _ := kindNamed(org.Kind)
	c.mu.Lock()
	seen, known := c.seen[ch.ID]
	c.mu.Unlock()
	if w := c.kept(k.resource, org.Namespace); w != nil && known && time.Since(seen.at) < liveEvery {
		if o, ok, _ := w.store.GetByKey(org.Namespace + "/" + org.Name); ok {
			if o := o.(*owner); o.UID == org.UID && o.Generation >= seen.generation {
				pods, err := c.pods(ctx, o, false)
				return o, pods, err
			}
		}
	}
	o, err := c.get(ctx, org.Namespace, org.Kind, org.Name)
	if err != nil || o == nil {
		return nil, nil, err
	}
	c.saw(ch, o.Generation)
	// The object tells whether its pods are well; the pods are many, so that once
	// this process has seen them live their watch will do, to say who is to blame.
	pods, err := c.pods(ctx, o, !known)
	return o, pods, err
}

// saw keeps what generation of a change's object this process has seen live.
func (c *Cluster) saw(ch updater.Change, generation int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// What ended otherwise than by Commit is not kept for ever.
	maps.DeleteFunc(c.seen, func(_ string, g glance) bool { return time.Since(g.at) > time.Hour })
	c.seen[ch.ID] = glance{max(c.seen[ch.ID].generation, generation), time.Now()}
}

func (c *Cluster) forget(ch updater.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.seen, ch.ID)
}

// Observe implements updater.Backend.
func (c *Cluster) Observe(ctx context.Context, ch updater.Change, part int, side updater.Side) (updater.Observation, error) {
	org, m, err := records(ch)
	if err != nil {
		return updater.Observation{}, err
	}
	at, err := c.parse(ch.Parts[part].Workload)
	if err != nil {
		return updater.Observation{}, err
	}
	o, pods, err := c.see(ctx, ch, org)
	switch {
	case err != nil:
		return updater.Observation{}, err
	case o == nil || o.UID != org.UID:
		return updater.Observation{Gone: true}, nil
	}
	ct, ok := o.container(at.container)
	if !ok {
		return updater.Observation{Gone: true}, nil
	}
	ob := updater.Observation{Running: true, Timeout: o.deadline}
	if ob.Timeout == 0 {
		ob.Timeout = ownTimeout
	}
	if side == updater.NewSide {
		ours, err := c.ours(ch, m)
		if err != nil {
			return updater.Observation{}, err
		}
		if ct.image != ours[ct.name] {
			return updater.Observation{MovedOff: fmt.Sprintf("somebody moved it to %s while it was being updated", ct.image)}, nil
		}
	}
	pending, waits := o.rollout()
	if side == updater.OldSide && (o.kind == "cronjob" || waits != "") {
		return ob, nil // it is back, and nothing of it is to run now
	}
	if o.kind == "cronjob" {
		return c.observeRun(ctx, o, ct, m, ob)
	}
	images := map[string]string{}
	for _, ct := range o.containers {
		images[ct.name] = ct.image
	}
	var since time.Time // all pods of a new image are new
	if side == updater.OldSide {
		since = ch.Since
	}
	b := blame(o, pods, images, ct.name, since)
	if b.missing {
		b.fault, b.verdict = c.confirm(ctx, o, ct, pods, b.fault)
	}
	if side == updater.OldSide && standing(pods, ch, org) >= int(o.desired) {
		// As many as are wanted run what ran before. That the controller makes them
		// anew, because the reference is pinned now, is no matter of health.
		pending = ""
	}
	if pending != "" && b.against != "" {
		pending += "; " + b.against
	}
	ob.Pending, ob.Waits = pending, waits
	ob.Fault, ob.Blame, ob.Logs, ob.Started = b.fault, b.verdict, b.logs, b.restarted
	ob.Progress = 1 + int(o.updated) + b.ready
	if side == updater.OldSide && ob.Pending == "" && ob.Blame == updater.Unclear {
		ob.Fault, ob.Blame = "", ""
	}
	if ob.Pending != "" && ob.Fault == "" && !speaksAgainst(o, pods, images, ct.name) {
		ob.Fault, ob.Blame = "nothing is known that speaks against the image", updater.Unclear
	}
	return ob, nil
}

// confirm says whether an image that nodes do not find is to blame for it: only if the
// registry itself has no such thing. What nodes pull through may be out of date.
func (c *Cluster) confirm(ctx context.Context, o *owner, ct container, pods []*pod, fault string) (string, updater.Verdict) {
	if c.exists == nil {
		return fault, updater.Bad
	}
	// By workload: what one's credentials are shown is no answer to another's.
	key := o.address() + " " + ct.image
	c.mu.Lock()
	was, ok := c.asked[key]
	c.mu.Unlock()
	if !ok || time.Since(was.at) >= askAgain {
		was = existence{at: time.Now()}
		was.there, was.err = c.exists(ctx, ct.image, c.logins(o, pods))
		if ctx.Err() != nil {
			return fault, updater.Unclear
		}
		c.mu.Lock()
		maps.DeleteFunc(c.asked, func(_ string, e existence) bool { return time.Since(e.at) >= askAgain })
		c.asked[key] = was
		c.mu.Unlock()
	}
	switch {
	case was.err != nil:
		return fmt.Sprintf("%s; the registry cannot be asked whether that is so: %v", fault, was.err), updater.Unclear
	case was.there:
		return fault + "; but the registry has it: see what the nodes pull through (a mirror, a cache)", updater.Unclear
	}
	return fault + "; the registry has it no more", updater.Bad
}

// askAgain is the pause before a registry is asked again whether it has an image.
const askAgain = 30 * time.Second

// existence is whether a registry had an image.
type existence struct {
	at    time.Time
	there bool
	err   error
}

// standing counts the pods that are ready on the images of before, however these are
// written.
func standing(pods []*pod, ch updater.Change, org origin) (n int) {
	for _, p := range pods {
		old := !p.gone() && p.readyNow()
		for _, part := range ch.Parts {
			name := part.Workload[strings.LastIndexByte(part.Workload, '/')+1:]
			image := p.images[name]
			old = old && (alike(image, org.Before[name]) || alike(image, org.Before[name]+"@"+part.From.Digest))
		}
		if old {
			n++
		}
	}
	return n
}

// podsOf are the pods of one object.
func podsOf(all []*pod, o *owner) (pods []*pod) {
	address := o.address()
	for _, p := range all {
		if p.owner == address {
			pods = append(pods, p)
		}
	}
	return pods
}

// speaksAgainst reports whether a pod has a container that ran and ended, or runs
// and is not ready.
func speaksAgainst(o *owner, pods []*pod, images map[string]string, name string) bool {
	c, _ := o.container(name)
	for _, p := range pods {
		s := p.of(name)
		if s == nil || p.gone() || !p.is(images) {
			continue
		}
		if e := evidence(*s, c.init); e.exit != "" || e.certain != "" || s.State.Running != nil && !s.Ready && !c.init {
			return true
		}
	}
	return false
}

// observeRun looks at the first Job that a CronJob made after the change.
func (c *Cluster) observeRun(ctx context.Context, o *owner, ct container, m mark, ob updater.Observation) (updater.Observation, error) {
	objects, err := c.list(ctx, jobResource(), o.Namespace, "", &batchv1.JobList{})
	if err != nil {
		return updater.Observation{}, fmt.Errorf("cluster %s: listing jobs: %w", c.name, err)
	}
	var first *batchv1.Job
	for _, object := range objects {
		j := object.(*batchv1.Job)
		ref := metav1.GetControllerOf(j)
		if ref == nil || ref.UID != o.UID || j.CreationTimestamp.Time.Before(m.At.Truncate(time.Second)) || imageIn(j.Spec.Template.Spec, ct) != ct.image {
			continue
		}
		if first == nil || j.CreationTimestamp.Time.Before(first.CreationTimestamp.Time) {
			first = j
		}
	}
	if first == nil {
		ob.Waits = "the next run decides, and has not begun"
		return ob, nil
	}
	ob.Started = first.CreationTimestamp.Time
	for _, cond := range first.Status.Conditions {
		if cond.Status != corev1.ConditionTrue {
			continue
		}
		switch cond.Type {
		case batchv1.JobComplete, batchv1.JobSuccessCriteriaMet:
			return ob, nil
		case batchv1.JobFailed, batchv1.JobFailureTarget:
			return c.failedRun(ctx, o, ct, first, cond, ob)
		}
	}
	ob.Waits = "its run " + first.Name + " is under way"
	return ob, nil
}

// failedRun tells a run that failed by its image from one that failed by its
// surroundings.
func (c *Cluster) failedRun(ctx context.Context, o *owner, ct container, j *batchv1.Job, cond batchv1.JobCondition, ob updater.Observation) (updater.Observation, error) {
	ob.Running, ob.Blame = false, updater.Unclear
	ob.Fault = fmt.Sprintf("its run %s failed: %s", j.Name, cond.Message)
	pods, err := c.pods(ctx, o, true)
	if err != nil {
		return updater.Observation{}, err
	}
	for _, p := range pods {
		s := p.of(ct.name)
		if p.job != j.Name || s == nil || p.gone() {
			continue
		}
		e := evidence(*s, true)
		if e.missing != "" {
			ob.Fault, ob.Blame = c.confirm(ctx, o, ct, pods, ob.Fault+": "+e.missing)
		}
		if e.certain != "" || e.exit != "" {
			ob.Blame, ob.Logs = updater.Bad, e.logs
			ob.Fault += ": " + e.certain + e.exit
			break
		}
	}
	return ob, nil
}

func imageIn(spec corev1.PodSpec, c container) string {
	list := spec.Containers
	if c.field == inInitContainers {
		list = spec.InitContainers
	}
	for _, other := range list {
		if other.Name == c.name {
			return other.Image
		}
	}
	return ""
}

// records are what a change keeps of its own here.
func records(ch updater.Change) (origin, mark, error) {
	var o origin
	if err := json.Unmarshal(ch.Origin, &o); err != nil {
		return o, mark{}, fmt.Errorf("reading the origin of change %s: %w", ch.ID, err)
	}
	var m mark
	if len(ch.Mark) > 0 {
		if err := json.Unmarshal(ch.Mark, &m); err != nil {
			return o, m, fmt.Errorf("reading the mark of change %s: %w", ch.ID, err)
		}
	}
	return o, m, nil
}

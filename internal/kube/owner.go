package kube

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/updaterd/updaterd/internal/updater"
)

// Field names of a pod's containers, as the API writes them.
const (
	inContainers     = "containers"
	inInitContainers = "initContainers"
)

// kind is one of the kinds of objects that have a pod template.
type kind struct {
	name     string // as workload ids have it
	title    string // as owner references have it
	resource Resource
	object   func() runtime.Object
	list     func() runtime.Object
}

// kinds are those whose workloads are looked at.
func kinds() []kind {
	return []kind{
		{"deployment", "Deployment", Resource{appsv1.SchemeGroupVersion, "deployments"},
			func() runtime.Object { return &appsv1.Deployment{} }, func() runtime.Object { return &appsv1.DeploymentList{} }},
		{"statefulset", "StatefulSet", Resource{appsv1.SchemeGroupVersion, "statefulsets"},
			func() runtime.Object { return &appsv1.StatefulSet{} }, func() runtime.Object { return &appsv1.StatefulSetList{} }},
		{"daemonset", "DaemonSet", Resource{appsv1.SchemeGroupVersion, "daemonsets"},
			func() runtime.Object { return &appsv1.DaemonSet{} }, func() runtime.Object { return &appsv1.DaemonSetList{} }},
		{"cronjob", "CronJob", Resource{batchv1.SchemeGroupVersion, "cronjobs"},
			func() runtime.Object { return &batchv1.CronJob{} }, func() runtime.Object { return &batchv1.CronJobList{} }},
	}
}

func kindNamed(name string) (kind, bool) {
	for _, k := range kinds() {
		if k.name == name {
			return k, true
		}
	}
	return kind{}, false
}

// container is one container of a pod template.
type container struct {
	name, image string
	digest      string // that the image names; "" when it names none
	malformed   error  // why the image is no reference
	field       string // inContainers or inInitContainers
	// init: it runs before the others and ends. A sidecar is written among the
	// init containers and lives as long as the others.
	init bool
	// applied names who applied its image server-side, written who last wrote it,
	// where that was another way; "" when the API server does not say.
	applied, written string
}

// owner is an object with a pod template, whatever its kind, reduced to what is
// gone by. The caches hold nothing else of it.
type owner struct {
	metav1.ObjectMeta
	kind       string
	containers []container
	arch       string // that its nodes must have; "": any
	// pullSecrets are the names of what its template pulls by, account its
	// ServiceAccount's.
	pullSecrets []string
	account     string
	selector    string // of its pods; "" when it has none
	// touched is when an updaterd last wrote it, by the API server's clock.
	touched time.Time

	// unlisted says why it cannot be seen how it is now; "" when it can.
	unlisted     string
	paused       bool // a Deployment is paused, a CronJob suspended
	onDelete     bool // its pods are only replaced when somebody deletes them
	orderedReady bool // a StatefulSet makes its pods one after the other
	partition    int32
	deadline     time.Duration // without progress; 0: it has none
	grace        time.Duration // that its pods are given to stop

	desired, total, updated, ready, available int32
	observed                                  int64
	currentRevision, updateRevision           string
	failure                                   string // why pods cannot be made
}

// read reduces an object. Of one that is reduced already nothing is taken.
func read(object any) (*owner, error) {
	o := &owner{}
	var template corev1.PodTemplateSpec
	prefix := []string{"f:spec", "f:template", "f:spec"}
	switch w := object.(type) {
	case *owner:
		return w, nil
	case *appsv1.Deployment:
		o.ObjectMeta, o.kind, template = w.ObjectMeta, "deployment", w.Spec.Template
		o.selector = selects(w.Spec.Selector)
		o.paused = w.Spec.Paused
		o.desired = or(w.Spec.Replicas, 1)
		o.deadline = time.Duration(or(w.Spec.ProgressDeadlineSeconds, 600)) * time.Second
		s := w.Status
		o.total, o.updated, o.ready, o.available, o.observed = s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas, s.ObservedGeneration
		for _, c := range s.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
				o.failure = c.Message
			}
		}
	case *appsv1.StatefulSet:
		o.ObjectMeta, o.kind, template = w.ObjectMeta, "statefulset", w.Spec.Template
		o.selector = selects(w.Spec.Selector)
		o.onDelete = w.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType
		o.orderedReady = w.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
		if r := w.Spec.UpdateStrategy.RollingUpdate; r != nil {
			o.partition = or(r.Partition, 0)
		}
		o.desired = or(w.Spec.Replicas, 1)
		s := w.Status
		o.total, o.updated, o.ready, o.available, o.observed = s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas, s.ObservedGeneration
		o.currentRevision, o.updateRevision = s.CurrentRevision, s.UpdateRevision
	case *appsv1.DaemonSet:
		o.ObjectMeta, o.kind, template = w.ObjectMeta, "daemonset", w.Spec.Template
		o.selector = selects(w.Spec.Selector)
		o.onDelete = w.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType
		s := w.Status
		o.desired, o.total, o.updated, o.ready, o.available, o.observed =
			s.DesiredNumberScheduled, s.CurrentNumberScheduled, s.UpdatedNumberScheduled, s.NumberReady, s.NumberAvailable, s.ObservedGeneration
	case *batchv1.CronJob:
		o.ObjectMeta, o.kind, template = w.ObjectMeta, "cronjob", w.Spec.JobTemplate.Spec.Template
		o.paused = w.Spec.Suspend != nil && *w.Spec.Suspend
		prefix = append([]string{"f:spec", "f:jobTemplate"}, prefix...)
	default:
		return nil, fmt.Errorf("%T is no object with a pod template", object)
	}
	o.arch = template.Spec.NodeSelector[corev1.LabelArchStable]
	o.pullSecrets, o.account = secretNames(template.Spec.ImagePullSecrets), cmp.Or(template.Spec.ServiceAccountName, "default")
	for _, e := range o.ManagedFields {
		if e.Manager == manager && e.Subresource == "" && e.Time != nil && e.Time.After(o.touched) {
			o.touched = e.Time.Time
		}
	}
	by := imageWriters(o.ManagedFields, prefix)
	add := func(field string, c corev1.Container) {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		w := by[field+"/"+c.Name]
		digest, err := parseImage(c.Image)
		o.containers = append(o.containers, container{
			name: c.Name, image: c.Image, digest: digest, malformed: err, field: field, init: field == inInitContainers && !sidecar,
			applied: w.applied, written: w.written,
		})
	}
	for _, c := range template.Spec.Containers {
		add(inContainers, c)
	}
	for _, c := range template.Spec.InitContainers {
		add(inInitContainers, c)
	}
	if s := template.Spec.TerminationGracePeriodSeconds; s != nil {
		o.grace = time.Duration(*s) * time.Second
	}
	o.ManagedFields = nil
	delete(o.Annotations, corev1.LastAppliedConfigAnnotation) // the whole object once more
	return o, nil
}

// selects is a selector as the API takes it; "" for none.
func selects(s *metav1.LabelSelector) string {
	if s == nil {
		return ""
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return "" // the API server has taken it, so that there is none
	}
	return selector.String()
}

func or(p *int32, otherwise int32) int32 {
	if p == nil {
		return otherwise
	}
	return *p
}

func (o *owner) container(name string) (container, bool) {
	for _, c := range o.containers {
		if c.name == name {
			return c, true
		}
	}
	return container{}, false
}

// images are the images of some containers.
func (o *owner) images(of map[string]string) map[string]string {
	now := map[string]string{}
	for name := range of {
		if c, ok := o.container(name); ok {
			now[name] = c.image
		}
	}
	return now
}

// address is how the object is called in ids: namespace/kind/name.
func (o *owner) address() string { return o.Namespace + "/" + o.kind + "/" + o.Name }

// pod is a pod, reduced to what is gone by.
type pod struct {
	metav1.ObjectMeta
	owner  string // the address of its owner; "" when it has none of a known kind
	job    string // the Job that it belongs to
	images map[string]string
	gates  bool // something outside of it has a say in whether it is ready
	status corev1.PodStatus
	// pullSecrets are the names of what it pulls by: its ServiceAccount's among them.
	pullSecrets []string
}

func readPod(object any) (*pod, error) {
	switch p := object.(type) {
	case *pod:
		return p, nil
	case *corev1.Pod:
		r := &pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
				CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp,
			},
			images:      map[string]string{},
			pullSecrets: secretNames(p.Spec.ImagePullSecrets),
			gates:       len(p.Spec.ReadinessGates) > 0,
			status: corev1.PodStatus{
				Phase: p.Status.Phase, Reason: p.Status.Reason, Message: p.Status.Message, Conditions: conditions(p.Status.Conditions),
				ContainerStatuses: trim(p.Status.ContainerStatuses), InitContainerStatuses: trim(p.Status.InitContainerStatuses), PodIPs: p.Status.PodIPs,
			},
		}
		for _, c := range p.Spec.InitContainers {
			r.images[c.Name] = c.Image
		}
		for _, c := range p.Spec.Containers {
			r.images[c.Name] = c.Image
		}
		if ref := metav1.GetControllerOf(p); ref != nil {
			r.owner, r.job = ownerOf(p.Namespace, *ref, p.Labels)
		}
		return r, nil
	}
	return nil, fmt.Errorf("%T is no pod", object)
}

// conditions keeps those of a pod that are gone by.
func conditions(all []corev1.PodCondition) []corev1.PodCondition {
	kept := make([]corev1.PodCondition, 0, 3) // most pods have three of them
	for _, c := range all {
		switch c.Type {
		case corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled, corev1.DisruptionTarget:
			kept = append(kept, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
		}
	}
	return kept
}

// trim keeps of statuses what is gone by.
func trim(all []corev1.ContainerStatus) []corev1.ContainerStatus {
	var kept []corev1.ContainerStatus
	for _, s := range all {
		kept = append(kept, corev1.ContainerStatus{
			Name: s.Name, State: s.State, LastTerminationState: s.LastTerminationState, Ready: s.Ready, RestartCount: s.RestartCount, ImageID: s.ImageID,
		})
	}
	return kept
}

// ownerOf is the address of the object whose template a pod was made from. What
// stands in between is told by how the controllers name it: a ReplicaSet is called
// by its Deployment and the hash of the template, a CronJob's Job by the CronJob and
// the minute.
func ownerOf(namespace string, ref metav1.OwnerReference, labels map[string]string) (address, job string) {
	switch ref.Kind {
	case "ReplicaSet":
		if name, ok := strings.CutSuffix(ref.Name, "-"+labels[appsv1.DefaultDeploymentUniqueLabelKey]); ok {
			return namespace + "/deployment/" + name, ""
		}
	case "StatefulSet":
		return namespace + "/statefulset/" + ref.Name, ""
	case "DaemonSet":
		return namespace + "/daemonset/" + ref.Name, ""
	case "Job":
		i := strings.LastIndexByte(ref.Name, '-')
		if i > 0 && strings.Trim(ref.Name[i+1:], "0123456789") == "" {
			return namespace + "/cronjob/" + ref.Name[:i], ref.Name
		}
	}
	return "", ""
}

// gone reports whether a pod is on its way out, or was ended by something that
// has nothing to do with what runs in it.
func (p *pod) gone() bool {
	if p.DeletionTimestamp != nil {
		return true
	}
	return p.evicted() != ""
}

// evicted says what ended a pod from outside; "" when nothing did.
func (p *pod) evicted() string {
	for _, c := range p.status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return c.Reason
		}
	}
	if p.status.Phase == corev1.PodFailed && p.status.Reason != "" {
		return p.status.Reason
	}
	return ""
}

// is reports whether a pod was made with these images.
func (p *pod) is(images map[string]string) bool {
	for name, image := range images {
		if !alike(p.images[name], image) {
			return false
		}
	}
	return true
}

func (p *pod) readyNow() bool {
	return p.condition(corev1.PodReady)
}

func (p *pod) condition(t corev1.PodConditionType) bool {
	for _, c := range p.status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// of is the status of one container; nil when there is none yet.
func (p *pod) of(name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.status.ContainerStatuses, p.status.InitContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// place is a workload id taken apart.
type place struct {
	namespace, kind, name, container string
}

func (p place) address() string { return p.namespace + "/" + p.kind + "/" + p.name }

// parse takes a workload's id apart.
func (c *Cluster) parse(id string) (place, error) {
	s := strings.Split(id, "/")
	if len(s) != 5 || s[0] != c.name {
		return place{}, fmt.Errorf("%s is no workload of cluster %s: an id is %s/namespace/kind/name/container", id, c.name, c.name)
	}
	if _, ok := kindNamed(s[2]); !ok {
		return place{}, fmt.Errorf("%s: %q is none of deployment, statefulset, daemonset, cronjob", id, s[2])
	}
	return place{s[1], s[2], s[3], s[4]}, nil
}

// origin is what a change keeps in Change.Origin: the object as it was decided on.
type origin struct {
	Namespace, Kind, Name string
	UID                   types.UID
	ResourceVersion       string
	// Fields say among which containers each container is, Before its image.
	Fields, Before map[string]string
	OrderedReady   bool `json:",omitempty"`
	// Touched is when an updaterd had last written it. A write of an old leader that
	// comes late must not repeat what the new one has taken back.
	Touched time.Time `json:",omitzero"`
}

// mark is what a change keeps in Change.Mark: what the API server answered.
type mark struct {
	Generation int64
	Images     map[string]string
	At         time.Time // by the API server's clock, where that is known
}

func (o origin) address() string { return o.Namespace + "/" + o.Kind + "/" + o.Name }

// said is what the parts of a change say of containers, by container name.
func (c *Cluster) said(ch updater.Change, of func(updater.Part) string) (map[string]string, error) {
	all := map[string]string{}
	for _, p := range ch.Parts {
		at, err := c.parse(p.Workload)
		if err != nil {
			return nil, err
		}
		all[at.container] = of(p)
	}
	return all, nil
}

package rig

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/updaterd/updaterd/e2e/stage"
)

// Space is a namespace of a test's own, with a registry.
type Space struct {
	*Cluster
	// Name is the namespace's.
	Name     string
	Registry *stage.Registry

	t stage.TB
}

var spaces atomic.Int32

// NewSpace makes one. It is deleted with all in it when t ends.
func (c *Cluster) NewSpace(t stage.TB) *Space {
	t.Helper()
	return c.NamedSpace(t, fmt.Sprintf("space-%d", spaces.Add(1)))
}

// NamedSpace is NewSpace with a name for people.
func (c *Cluster) NamedSpace(t stage.TB, name string) *Space {
	t.Helper()
	s := &Space{Cluster: c, t: t, Name: name, Registry: stage.NewRegistry(t, stage.RegistryOptions{})}
	_, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.Name}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			s.logState(ctx)
		}
		// What is in it goes by itself.
		if err := c.Client.CoreV1().Namespaces().Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete the namespace: %v", err)
		}
	})
	// No pod is admitted before its account is there.
	stage.Eventually(t, time.Minute, "the namespace's service account", func() bool {
		_, err := c.Client.CoreV1().ServiceAccounts(s.Name).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	return s
}

// For is the same space for a test within the one that it was made for.
func (s *Space) For(t stage.TB) *Space {
	within := *s
	within.t = t
	return &within
}

// logState writes to the test's log how things stand.
func (s *Space) logState(ctx context.Context) {
	pods, err := s.Client.CoreV1().Pods(s.Name).List(ctx, metav1.ListOptions{})
	if err != nil {
		s.t.Logf("list pods: %v", err)
		return
	}
	for _, p := range pods.Items {
		s.t.Logf("pod %s: %s", p.Name, p.Status.Phase)
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			state := "waiting"
			switch {
			case c.State.Running != nil:
				state = "running"
			case c.State.Terminated != nil:
				state = "terminated: " + c.State.Terminated.Reason
			case c.State.Waiting != nil:
				state += ": " + c.State.Waiting.Reason + ": " + c.State.Waiting.Message
			}
			s.t.Logf("  %s: %s, ready %v, %d restarts, %s", c.Name, state, c.Ready, c.RestartCount, c.ImageID)
		}
	}
}

// Ref is the reference of "web:1" on the space's registry.
func (s *Space) Ref(ref string) string { return s.Registry.Ref(ref) }

// Push publishes an image and returns its digest.
func (s *Space) Push(ref string, what stage.Artifact) string {
	s.t.Helper()
	return s.Registry.Push(ref, what)
}

// Good publishes a good image of this version.
func (s *Space) Good(ref, version string) string {
	s.t.Helper()
	return s.Push(ref, stage.Image{Version: version})
}

// Crashing publishes an image that exits at once.
func (s *Space) Crashing(ref, version string) string {
	s.t.Helper()
	return s.Push(ref, stage.Image{Version: version, Behave: stage.Exit(3)})
}

// Pod is a template with one container "app" that runs ref, found ready by its
// health, and asked for it often.
func (s *Space) Pod(ref string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		Containers:                    []corev1.Container{Container("app", s.Ref(ref))},
		TerminationGracePeriodSeconds: new(int64),
	}}
}

// Container is one whose app is found ready by its health.
func Container(name, image string) corev1.Container {
	return corev1.Container{
		Name: name, Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}},
	}
}

// PullSecret makes, or changes, a Secret to pull from a registry by.
func (s *Space) PullSecret(name string, of *stage.Registry, user, password string) {
	s.t.Helper()
	s.Apply(s.Kubectl("create", "secret", "docker-registry", name, "--docker-server="+of.Host,
		"--docker-username="+user, "--docker-password="+password, "--dry-run=client", "-o", "yaml"))
}

// Spec says how a workload differs from a plain one.
type Spec struct {
	Name        string // "web"
	Image       string // "web:1" on the space's registry
	Replicas    int32  // 1
	Annotations map[string]string
	Labels      map[string]string
	// Change is called with the workload before it is made: a *appsv1.Deployment,
	// *appsv1.StatefulSet, *appsv1.DaemonSet or *batchv1.CronJob.
	Change func(metav1.Object)
	// Pod changes its template.
	Pod func(*corev1.PodSpec)
}

func (s *Space) template(spec *Spec) (metav1.ObjectMeta, *metav1.LabelSelector, corev1.PodTemplateSpec) {
	spec.Name, spec.Image, spec.Replicas = cmp.Or(spec.Name, "web"), cmp.Or(spec.Image, "web:1"), cmp.Or(spec.Replicas, 1)
	app := map[string]string{"app": spec.Name}
	pod := s.Pod(spec.Image)
	pod.Labels = app
	if spec.Pod != nil {
		spec.Pod(&pod.Spec)
	}
	return metav1.ObjectMeta{Name: spec.Name, Annotations: spec.Annotations, Labels: spec.Labels}, &metav1.LabelSelector{MatchLabels: app}, pod
}

// Deployment makes one; its patience without progress is 5 s.
func (s *Space) Deployment(spec Spec) {
	s.t.Helper()
	meta, selector, pod := s.template(&spec)
	patience := int32(5)
	d := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{
		Replicas: &spec.Replicas, Selector: selector, Template: pod, ProgressDeadlineSeconds: &patience,
	}}
	if spec.Change != nil {
		spec.Change(d)
	}
	_, err := s.Client.AppsV1().Deployments(s.Name).Create(s.t.Context(), d, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

// StatefulSet makes one.
func (s *Space) StatefulSet(spec Spec) {
	s.t.Helper()
	meta, selector, pod := s.template(&spec)
	w := &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{
		Replicas: &spec.Replicas, Selector: selector, Template: pod,
	}}
	if spec.Change != nil {
		spec.Change(w)
	}
	_, err := s.Client.AppsV1().StatefulSets(s.Name).Create(s.t.Context(), w, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

// DaemonSet makes one, which runs on two of the usual nodes.
func (s *Space) DaemonSet(spec Spec) {
	s.t.Helper()
	meta, selector, pod := s.template(&spec)
	w := &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: pod}}
	if spec.Change != nil {
		spec.Change(w)
	}
	_, err := s.Client.AppsV1().DaemonSets(s.Name).Create(s.t.Context(), w, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

// CronJob makes one that is never due by itself.
func (s *Space) CronJob(spec Spec) {
	s.t.Helper()
	meta, _, pod := s.template(&spec)
	pod.Labels = nil
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].ReadinessProbe = nil
	w := &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{
		Schedule: "0 0 30 2 *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: pod, BackoffLimit: new(int32)}},
	}}
	if spec.Change != nil {
		spec.Change(w)
	}
	_, err := s.Client.BatchV1().CronJobs(s.Name).Create(s.t.Context(), w, metav1.CreateOptions{})
	require.NoError(s.t, err)
}

// Backend is the name that the cluster has for updaterd.
const Backend = "prod"

// ID is the id of the container "app" of "deployment/web".
func (s *Space) ID(which string) string { return Backend + "/" + s.Name + "/" + which + "/app" }

// Kubectl runs kubectl in the namespace.
func (s *Space) Kubectl(args ...string) string {
	s.t.Helper()
	return s.Cluster.Kubectl(s.t, "", append([]string{"-n", s.Name}, args...)...)
}

// Apply has kubectl apply a manifest in the namespace.
func (s *Space) Apply(manifest string, args ...string) string {
	s.t.Helper()
	return s.Cluster.Kubectl(s.t, manifest, append([]string{"-n", s.Name, "apply", "-f", "-"}, args...)...)
}

// Workload is one of the four kinds, with what all of them have.
type Workload struct {
	metav1.ObjectMeta
	Template corev1.PodTemplateSpec
	// Done: all pods that shall be there are of the newest template, and ready.
	Done bool
	// Stuck: a Deployment whose progress deadline is over.
	Stuck bool
}

// Get looks at "deployment/web".
func (s *Space) Get(which string) Workload {
	s.t.Helper()
	kind, name, _ := strings.Cut(which, "/")
	ctx := context.WithoutCancel(s.t.Context())
	switch kind {
	case "deployment":
		d, err := s.Client.AppsV1().Deployments(s.Name).Get(ctx, name, metav1.GetOptions{})
		require.NoError(s.t, err)
		w := Workload{ObjectMeta: d.ObjectMeta, Template: d.Spec.Template}
		st, want := d.Status, *d.Spec.Replicas
		w.Done = st.ObservedGeneration >= d.Generation && st.UpdatedReplicas == want && st.Replicas == want && st.AvailableReplicas == want
		for _, c := range st.Conditions {
			w.Stuck = w.Stuck || c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded"
		}
		return w
	case "statefulset":
		d, err := s.Client.AppsV1().StatefulSets(s.Name).Get(ctx, name, metav1.GetOptions{})
		require.NoError(s.t, err)
		st, want := d.Status, *d.Spec.Replicas
		return Workload{ObjectMeta: d.ObjectMeta, Template: d.Spec.Template, Done: st.ObservedGeneration >= d.Generation &&
			st.CurrentRevision == st.UpdateRevision && st.ReadyReplicas == want && st.Replicas == want}
	case "daemonset":
		d, err := s.Client.AppsV1().DaemonSets(s.Name).Get(ctx, name, metav1.GetOptions{})
		require.NoError(s.t, err)
		st := d.Status
		return Workload{ObjectMeta: d.ObjectMeta, Template: d.Spec.Template, Done: st.ObservedGeneration >= d.Generation &&
			st.DesiredNumberScheduled > 0 && st.UpdatedNumberScheduled == st.DesiredNumberScheduled && st.NumberAvailable == st.DesiredNumberScheduled}
	case "cronjob":
		d, err := s.Client.BatchV1().CronJobs(s.Name).Get(ctx, name, metav1.GetOptions{})
		require.NoError(s.t, err)
		return Workload{ObjectMeta: d.ObjectMeta, Template: d.Spec.JobTemplate.Spec.Template, Done: true}
	}
	s.t.Fatalf("%s: no such kind", which)
	return Workload{}
}

// Image is that of a workload's container in its template.
func (w Workload) Image(container string) string {
	for _, c := range append(w.Template.Spec.InitContainers[:len(w.Template.Spec.InitContainers):len(w.Template.Spec.InitContainers)], w.Template.Spec.Containers...) {
		if c.Name == container {
			return c.Image
		}
	}
	return ""
}

// Patience is how long something in a cluster may take on a machine that has much
// else to do.
const Patience = time.Minute

// WaitDone waits until the workload's rollout is done, and looks at it.
func (s *Space) WaitDone(which string) Workload {
	s.t.Helper()
	var w Workload
	stage.Eventually(s.t, Patience, which+" rolled out", func() bool {
		w = s.Get(which)
		return w.Done
	})
	return w
}

// Pods are those of the workload's labels, without those that are to go.
func (s *Space) Pods(name string) []corev1.Pod {
	s.t.Helper()
	list, err := s.Client.CoreV1().Pods(s.Name).List(context.WithoutCancel(s.t.Context()), metav1.ListOptions{LabelSelector: labels.Set{"app": name}.String()})
	require.NoError(s.t, err)
	var pods []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	return pods
}

// WaitPod waits for a pod of the workload that is ok, and returns it.
func (s *Space) WaitPod(name, what string, ok func(corev1.Pod) bool) corev1.Pod {
	s.t.Helper()
	var found corev1.Pod
	stage.Eventually(s.t, Patience, "a pod of "+name+" "+what, func() bool {
		for _, p := range s.Pods(name) {
			if ok(p) {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// Ready says whether a pod is.
func Ready(p corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Digests are those of the images that the workload's ready pods run in their first
// container, as their imageIDs say.
func (s *Space) Digests(name string) []string {
	s.t.Helper()
	seen := map[string]bool{}
	var digests []string
	for _, p := range s.Pods(name) {
		if !Ready(p) {
			continue
		}
		id := p.Status.ContainerStatuses[0].ImageID
		id = id[strings.LastIndex(id, "@")+1:]
		if !seen[id] {
			seen[id] = true
			digests = append(digests, id)
		}
	}
	return digests
}

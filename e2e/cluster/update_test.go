package cluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// workload is one called web that runs web:latest, and an updaterd that watches it:
// what nearly every test begins with.
type workload struct {
	*rig.Space
	t *testing.T
	u *rig.Updaterd
	// which is "deployment/web", first the digest that it runs.
	which, first string
	// before is the workload as it was.
	before rig.Workload
}

func newWorkload(t *testing.T, kind string, spec rig.Spec) *workload {
	t.Helper()
	return newWorkloadIn(t, rig.Shared(t).NewSpace(t), kind, spec)
}

func newWorkloadIn(t *testing.T, s *rig.Space, kind string, spec rig.Spec) *workload {
	t.Helper()
	w := &workload{Space: s, t: t, which: kind + "/web"}
	if spec.Image == "" {
		spec.Image = "web:latest"
	}
	w.first = w.Good(spec.Image, "1")
	kinds[kind](w.Space, spec)
	w.before = w.WaitDone(w.which)
	w.u = w.Updaterd(rig.Settings)
	return w
}

// updated requires the whole of the promise's first half: all pods are ready on the
// image that was decided on, and nothing but that was changed.
func (w *workload) updated(digest string) {
	w.t.Helper()
	now := w.WaitDone(w.which)
	require.Equal(w.t, w.Ref("web:latest")+"@"+digest, now.Image("app"))
	require.Equal(w.t, []string{digest}, w.Digests("web"))
	w.onlyTheImage(now)
}

// asItWas requires the promise's second half: all pods are ready on the image that
// they ran before, by the very reference or pinned to it, and nothing else is
// another.
func (w *workload) asItWas() {
	w.t.Helper()
	now := w.WaitDone(w.which)
	require.Contains(w.t, []string{w.Ref("web:latest"), w.Ref("web:latest") + "@" + w.first}, now.Image("app"))
	require.Equal(w.t, []string{w.first}, w.Digests("web"))
	w.onlyTheImage(now)
}

func (w *workload) onlyTheImage(now rig.Workload) {
	w.t.Helper()
	require.Equal(w.t, w.before.UID, now.UID)
	for key := range now.Annotations {
		require.NotContains(w.t, key, "updaterd", "it writes nothing on workloads")
	}
	was, is := w.before.Template.DeepCopy(), now.Template.DeepCopy()
	was.Spec.Containers[0].Image, is.Spec.Containers[0].Image = "", ""
	require.Equal(w.t, was, is)
}

// untouched requires that not even a patch was made.
func (w *workload) untouched() {
	w.t.Helper()
	require.Equal(w.t, w.before.Generation, w.Get(w.which).Generation)
	w.asItWas()
}

func TestGoodUpdate(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorkload(t, kind, rig.Spec{Replicas: 2})
			require.Equal(t, "up-to-date", w.u.Once(w.which, 0).Reason)
			w.untouched()
			digest := w.Good("web:latest", "2")
			require.Equal(t, "committed", w.u.Once(w.which, 0).Outcome)
			w.updated(digest)
			require.Equal(t, "good", w.u.History()[0].Verdict)

			generation := w.Get(w.which).Generation
			require.Equal(t, "up-to-date", w.u.Once(w.which, 0).Reason, "what it wrote is no pin to itself")
			require.Equal(t, generation, w.Get(w.which).Generation)
		})
	}
}

func TestBadUpdate(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorkload(t, kind, rig.Spec{Replicas: 2})
			w.Crashing("web:latest", "2")
			require.Equal(t, "restored", w.u.Once(w.which, 1).Outcome)
			w.asItWas()
			require.Equal(t, "bad", w.u.History()[0].Verdict)

			generation := w.Get(w.which).Generation
			require.Equal(t, "rejected", w.u.Once(w.which, 0).Reason)
			require.Equal(t, generation, w.Get(w.which).Generation)
			w.asItWas()
		})
	}
}

// TestSurroundings: what the image is not to blame for rejects nothing.
// TestImagesThatAPolicyRewrites: admission has the pods pull from a mirror, so that none
// has the image of its template.
func TestImagesThatAPolicyRewrites(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Kubectl("label", "namespace", s.Name, "mirrored="+s.Name)
	t.Cleanup(func() {
		s.Kubectl("delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", s.Name)
	})
	s.Apply(fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: %[1]s}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}
  failurePolicy: Fail
  reinvocationPolicy: Never
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: '[JSONPatch{op: "replace", path: "/spec/containers/0/image", value: object.spec.containers[0].image.replace(%[2]q, %[3]q)}]'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: %[1]s}
spec:
  policyName: %[1]s
  matchResources:
    namespaceSelector: {matchLabels: {mirrored: %[1]s}}
`, s.Name, s.Ref("web"), s.Ref("hub/web")))
	stage.Eventually(t, time.Minute, "the policy to be followed", func() bool {
		pod := s.Pod("web:latest")
		pod.Name = "asked"
		made, err := s.Client.CoreV1().Pods(s.Name).Create(t.Context(), &corev1.Pod{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err == nil && made.Spec.Containers[0].Image == s.Ref("hub/web:latest")
	})
	s.Good("hub/web:latest", "1")
	w := newWorkloadIn(t, s, "deployment", rig.Spec{Replicas: 2})
	require.Equal(t, s.Ref("hub/web:latest"), s.Pods("web")[0].Spec.Containers[0].Image)
	require.Equal(t, "up-to-date", w.u.Once(w.which, 0).Reason)

	w.Good("hub/web:latest", "2")
	digest := w.Good("web:latest", "2")
	require.Equal(t, "committed", w.u.Once(w.which, 0).Outcome)
	w.updated(digest)
	require.Equal(t, "up-to-date", w.u.Once(w.which, 0).Reason)

	w.first = digest
	w.Crashing("hub/web:latest", "3")
	w.Crashing("web:latest", "3")
	require.Equal(t, "restored", w.u.Once(w.which, 1).Outcome)
	w.asItWas()
	require.Equal(t, "bad", w.u.History()[0].Verdict)
}

func TestSurroundings(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	first := s.Good("web:1.0.0", "1")
	s.Deployment(rig.Spec{Image: "web:1.0.0"})
	s.WaitDone("deployment/web")
	// A quota that is reached as soon as a rollout wants one pod more.
	s.Apply(`{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}, "spec": {"hard": {"pods": "1"}}}`)
	stage.Eventually(t, rig.Patience, "the quota to count", func() bool {
		return strings.Contains(s.Kubectl("get", "resourcequota", "full", "-o", "jsonpath={.status.used.pods}"), "1")
	})
	u := s.Updaterd(rig.Settings + "  policy: minor\n")
	s.Good("web:1.1.0", "2")
	require.Equal(t, "restored", u.Once("deployment/web", 1).Outcome)
	require.Equal(t, s.Ref("web:1.0.0"), s.WaitDone("deployment/web").Image("app"))
	require.Equal(t, []string{first}, s.Digests("web"))
	last := u.History()[0]
	require.Equal(t, "unclear", last.Verdict)
	require.Contains(t, last.Why, "exceeded quota")
	require.Equal(t, "surroundings", u.Check("deployment/web", 1).Reason)
}

func TestCronJob(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Good("web:latest", "1")
	s.CronJob(rig.Spec{Image: "web:latest"})
	s.CronJob(rig.Spec{Name: "asleep", Image: "web:latest"})
	s.Kubectl("patch", "cronjob", "asleep", "-p", `{"spec":{"suspend":true}}`)
	u := s.Updaterd(rig.Settings + "  policy: digest\n")
	digest := s.Good("web:latest", "2")
	require.Equal(t, "committed", u.Once("cronjob/web", 0).Outcome)
	require.Equal(t, s.Ref("web:latest")+"@"+digest, s.Get("cronjob/web").Image("app"))
	require.Equal(t, s.Ref("web:latest"), s.Get("cronjob/asleep").Image("app"))
}

// TestDaemon: an updaterd that runs all the time does the same, and asks the API
// server nothing while there is nothing new.
func TestDaemon(t *testing.T) {
	t.Parallel()
	w := newWorkload(t, "deployment", rig.Spec{Replicas: 3})
	d := w.u.Start()
	passes := func(n int) {
		asked := func() int { return w.Registry.Count("", "/manifests/latest$") }
		from := asked()
		stage.Eventually(t, rig.Patience, "passes", func() bool { return asked() >= from+n })
	}
	stage.Eventually(t, rig.Patience, "its watches", func() bool {
		return slices.ContainsFunc(w.u.Way.Proxy.Calls(), func(c rig.Call) bool { return c.Verb == "watch" && c.Resource == "configmaps" })
	})
	passes(2)
	w.u.Way.Proxy.Forget()
	passes(3)
	for _, c := range w.u.Way.Proxy.Calls() {
		require.Contains(t, []string{"leases", ""}, c.Resource, "in a steady pass: %s", c)
	}
	w.untouched()

	good := w.Good("web:latest", "2")
	d.WaitLog("phase=committed", rig.Patience)
	w.updated(good)
	w.first = good
	w.Crashing("web:latest", "3")
	d.WaitLog("phase=restored", rig.Patience)
	w.asItWas()
	require.Zero(t, d.Stop(rig.Patience))
}

// TestInitContainers: a sidecar is judged like a container, others are left alone.
func TestInitContainers(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Good("web:latest", "1")
	always := corev1.ContainerRestartPolicyAlways
	s.Deployment(rig.Spec{Pod: func(p *corev1.PodSpec) {
		s.Good("side:latest", "1")
		s.Good("init:latest", "1")
		p.InitContainers = []corev1.Container{
			{Name: "init", Image: s.Ref("init:latest"), Command: []string{"/app", "exit", "0"}},
			{Name: "side", Image: s.Ref("side:latest"), RestartPolicy: &always},
		}
		p.Containers[0].Image = s.Ref("web:latest")
	}})
	s.WaitDone("deployment/web")
	u := s.Updaterd(rig.Settings)
	s.Good("init:latest", "2")
	s.Crashing("side:latest", "2")
	u.Run("run", "--once")
	w := s.WaitDone("deployment/web")
	require.Equal(t, s.Ref("init:latest"), w.Image("init"))
	require.NotContains(t, s.Digests("web"), "")
	require.Equal(t, "bad", u.History()[0].Verdict)
	side := s.Good("side:latest", "3")
	u.Run("run", "--once")
	require.Equal(t, s.Ref("side:latest")+"@"+side, s.WaitDone("deployment/web").Image("side"))
}

package kube

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

func FuzzImageID(f *testing.F) {
	for _, s := range []string{"docker-pullable://a/b@" + fakeDigest("a"), "sha256:ab", "fake://x", "@", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := parseImageID(s)
		require.Equal(t, ok, id.repo+id.config != "")
	})
}

func TestWhatAnImageIDSays(t *testing.T) {
	d := fakeDigest("a")
	for in, want := range map[string]imageID{
		"registry.example/shop/web@" + d:              {repo: d, name: "registry.example/shop/web"}, // containerd, CRI-O
		"docker-pullable://registry.example/web@" + d: {repo: d, name: "registry.example/web"},      // dockershim
		d:                                   {config: d},
		d[len("sha256:"):]:                  {config: d}, // CRI-O's own id
		"docker://" + d:                     {config: d}, // never pulled
		"localhost:5000/a/b@" + d:           {repo: d, name: "localhost:5000/a/b"},
		"":                                  {},
		"nginx:1.25":                        {},
		"fake://registry.example/web:1":     {},
		"registry.example/web@sha256:short": {},
		"docker-pullable://registry.example/web@sha256:": {},
	} {
		got, ok := parseImageID(in)
		require.Equal(t, want, got, in)
		require.Equal(t, want != imageID{}, ok, in)
	}
}

// podWith is a pod of an object, whose container app has a status.
func podWith(name, image string, s corev1.ContainerStatus) *pod {
	s.Name = "app"
	well := corev1.ConditionFalse
	if s.Ready {
		well = corev1.ConditionTrue
	}
	p := &pod{ObjectMeta: metav1.ObjectMeta{Name: name}, images: map[string]string{"app": image}}
	p.status.ContainerStatuses = []corev1.ContainerStatus{s}
	p.status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: well}, {Type: corev1.ContainersReady, Status: well}}
	return p
}

func TestWhatRuns(t *testing.T) {
	a, b := fakeDigest("a"), fakeDigest("b")
	run := func(ready bool, id string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Ready: ready, ImageID: id}
	}
	const image = "web:1"
	leaving := podWith("z", image, run(true, "web@"+b))
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	for name, tt := range map[string]struct {
		image string
		pods  []*pod
		want  updater.Running
		mixed bool
	}{
		"a digest in the template is the truth, whatever pods say": {image: "web:1@" + b, pods: []*pod{podWith("x", "web:1@"+b, run(true, "web@"+a))},
			want: updater.Running{Digests: []string{b}}},
		"pods that agree": {image: image, pods: []*pod{podWith("x", image, run(true, "web@"+a)), podWith("y", image, run(true, "mirror/web@"+a))},
			want: updater.Running{Digests: []string{a}, Manifest: a}},
		"the image's own id": {image: image, pods: []*pod{podWith("x", image, run(true, a))}, want: updater.Running{Config: a}},
		"ready pods that differ are mixed": {image: image, pods: []*pod{podWith("x", image, run(true, "web@"+a)), podWith("y", image, run(true, "web@"+b))},
			want: updater.Running{Digests: []string{a, b}}, mixed: true},
		"what is not ready does not count beside what is": {image: image, pods: []*pod{podWith("x", image, run(true, "web@"+a)), podWith("y", image, run(false, "web@"+b))},
			want: updater.Running{Digests: []string{a}, Manifest: a}},
		"what is not ready is all there is": {image: image, pods: []*pod{podWith("y", image, run(false, "web@"+b))},
			want: updater.Running{Digests: []string{b}, Manifest: b}},
		"pods of another template do not count": {image: image, pods: []*pod{podWith("x", "web:0", run(true, "web@"+a))}},
		"pods that a webhook gave a mirror": {image: image, pods: []*pod{podWith("x", "mirror:5000/hub/web:1", run(true, "mirror:5000/hub/web@"+a))},
			want: updater.Running{Digests: []string{a}, Manifest: a}},
		"pods that a webhook gave a digest": {image: image, pods: []*pod{podWith("x", "web:1@"+a, run(true, "web@"+a))},
			want: updater.Running{Digests: []string{a}, Manifest: a}},
		"another image by the same last name, beside the template's own": {image: image, pods: []*pod{podWith("x", "other/web:1", run(true, "other/web@"+b)), podWith("y", image, run(true, "web@"+a))},
			want: updater.Running{Digests: []string{a}, Manifest: a}},
		"another name before the same tag": {image: image, pods: []*pod{podWith("x", "mirror/cobweb:1", run(true, "mirror/cobweb@"+b))}},
		"pods that leave do not count":     {image: image, pods: []*pod{leaving}},
		"nothing runs":                     {image: image},
	} {
		t.Run(name, func(t *testing.T) {
			got, mixed := running(&owner{}, container{name: "app", image: tt.image, digest: digestIn(tt.image)}, tt.pods)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.mixed, mixed != "", mixed)
		})
	}
}

func TestBlame(t *testing.T) {
	const image = "web:2"
	waits := func(reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	ended := func(restarts int32, t corev1.ContainerStateTerminated) corev1.ContainerStatus {
		return corev1.ContainerStatus{RestartCount: restarts, LastTerminationState: corev1.ContainerState{Terminated: &t},
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}
	}
	exit := corev1.ContainerStateTerminated{ExitCode: 3, Reason: "Error"}
	starts := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	one := func(s corev1.ContainerStatus) []*pod { return []*pod{podWith("a", image, s)} }
	leaving := podWith("b", image, ended(5, exit))
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	evicted := podWith("c", image, ended(1, corev1.ContainerStateTerminated{ExitCode: 137}))
	evicted.status.Phase, evicted.status.Reason = corev1.PodFailed, "Evicted"
	drained := podWith("d", image, ended(1, exit))
	drained.status.Conditions = append(drained.status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI"})
	homeless := &pod{ObjectMeta: metav1.ObjectMeta{Name: "e"}, images: map[string]string{"app": image}}
	homeless.status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/3 nodes are available"}}
	nodeLost := podWith("f", image, corev1.ContainerStatus{Ready: true, State: starts})
	nodeLost.status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue}}
	neighbour := podWith("g", image, corev1.ContainerStatus{Ready: true, State: starts})
	neighbour.status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}
	neighbour.status.ContainerStatuses = append(neighbour.status.ContainerStatuses, corev1.ContainerStatus{Name: "side"})

	for name, tt := range map[string]struct {
		pods    []*pod
		failure string
		want    updater.Verdict
		says    string
	}{
		"a pod that is well says nothing":                  {pods: one(corev1.ContainerStatus{Ready: true, State: starts})},
		"one that only starts says nothing":                {pods: one(waits("ContainerCreating", ""))},
		"restarted more than once":                         {pods: one(ended(2, exit)), want: updater.Bad, says: "restarted 2 times, last exit code 3"},
		"an exit that came once may be anything":           {pods: one(ended(1, exit))},
		"two pods that exited once each":                   {pods: []*pod{podWith("a", image, ended(1, exit)), podWith("b", image, ended(1, exit))}, want: updater.Bad, says: "2 pods ended"},
		"killed for want of memory":                        {pods: one(ended(1, corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"})), want: updater.Bad, says: "OOM"},
		"not a program":                                    {pods: one(waits("RunContainerError", "exec /app: exec format error")), want: updater.Bad, says: "exec format error"},
		"no such entrypoint":                               {pods: one(waits("CreateContainerError", `runc create failed: exec: "/nope": stat /nope: no such file or directory: unknown`)), want: updater.Bad},
		"no such entrypoint, told by an end":               {pods: one(ended(1, corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: `exec: "/nope": executable file not found in $PATH`})), want: updater.Bad},
		"root where none is allowed":                       {pods: one(waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")), want: updater.Bad},
		"no such manifest":                                 {pods: one(waits("ErrImagePull", "manifest unknown")), want: updater.Bad},
		"no such manifest, as containerd says it":          {pods: one(waits("ImagePullBackOff", `failed to resolve reference "web:2": web:2: not found`)), want: updater.Bad},
		"a blob that is missing":                           {pods: one(waits("ErrImagePull", `failed to pull and unpack image "web:2": failed to copy: httpReadSeeker: failed open: content at https://mirror.example/v2/web/blobs/sha256:ab not found: not found`)), want: updater.Unclear, says: "cannot be pulled"},
		"no image for this platform":                       {pods: one(waits("ErrImagePull", "no match for platform in manifest: not found")), want: updater.Bad},
		"a registry that is down":                          {pods: one(waits("ImagePullBackOff", "dial tcp 10.0.0.1:443: connect: connection refused")), want: updater.Unclear, says: "connection refused"},
		"a registry that wants credentials":                {pods: one(waits("ErrImagePull", "pull access denied, repository does not exist or may require authorization: not found")), want: updater.Unclear},
		"a name that does not resolve":                     {pods: one(waits("ErrImagePull", "lookup registry.example: no such host: not found")), want: updater.Unclear},
		"a missing ConfigMap":                              {pods: one(waits("CreateContainerConfigError", `configmap "app" not found`)), want: updater.Unclear},
		"no node takes it":                                 {pods: []*pod{homeless}, want: updater.Unclear, says: "0/3 nodes"},
		"a quota":                                          {failure: "exceeded quota: pods", want: updater.Unclear, says: "exceeded quota"},
		"a node that was lost":                             {pods: []*pod{nodeLost}, want: updater.Unclear, says: "node is not ready"},
		"an end that the node lost":                        {pods: one(ended(1, corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown"})), want: updater.Unclear},
		"a neighbour in the pod":                           {pods: []*pod{neighbour}, want: updater.Unclear, says: "another container, side"},
		"evicted":                                          {pods: []*pod{evicted}, want: updater.Unclear, says: "Evicted"},
		"drained":                                          {pods: []*pod{drained}, want: updater.Unclear, says: "EvictionByEvictionAPI"},
		"what leaves is not looked at":                     {pods: []*pod{leaving}},
		"pods of the old template are not looked at":       {pods: []*pod{podWith("a", "web:1", ended(5, exit))}},
		"a bad one condemns beside one without a node":     {pods: []*pod{homeless, podWith("a", image, ended(2, exit))}, want: updater.Bad},
		"one that fails its probe is not a node's trouble": {pods: []*pod{homeless, podWith("a", image, corev1.ContainerStatus{State: starts})}},
	} {
		t.Run(name, func(t *testing.T) {
			o := &owner{containers: []container{{name: "app", image: image}}, failure: tt.failure}
			b := blame(o, tt.pods, map[string]string{"app": image}, "app", time.Time{})
			require.Equal(t, tt.want, b.verdict, b.fault)
			require.Contains(t, b.fault, tt.says)
		})
	}
}

func TestWhatWasOverBeforeIsHistory(t *testing.T) {
	then := time.Now()
	end := func(at time.Time, restarts int32, s corev1.ContainerState) *pod {
		return podWith("a", "web:1", corev1.ContainerStatus{Ready: true, RestartCount: restarts, State: s, LastTerminationState: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, FinishedAt: metav1.NewTime(at)}}})
	}
	runs := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	loops := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	o := &owner{containers: []container{{name: "app", image: "web:1"}}}
	judge := func(pods ...*pod) updater.Verdict {
		return blame(o, pods, map[string]string{"app": "web:1"}, "app", then).verdict
	}
	before, after := then.Add(-time.Hour), then.Add(time.Second)
	require.Empty(t, judge(end(before, 40, runs), end(before, 40, runs)), "pods that stayed, with a past")
	require.Empty(t, judge(end(after, 41, runs)), "one that ended once since")
	down := func(p *pod) *pod {
		p.status.Conditions, p.status.ContainerStatuses[0].Ready = nil, false
		return p
	}
	require.Equal(t, updater.Bad, judge(down(end(after, 41, runs)), down(end(after, 3, loops))), "two that ended since")
	require.Empty(t, judge(end(after, 41, runs), end(after, 3, runs)), "two that ended since and are ready again")
	fresh := end(after, 2, runs)
	fresh.CreationTimestamp = metav1.NewTime(after)
	require.Equal(t, updater.Bad, judge(fresh), "a new one that restarted twice")
}

func TestInitContainersEndAndSidecarsDoNot(t *testing.T) {
	done := corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}
	require.Equal(t, sign{}, evidence(done, true))
	require.NotEmpty(t, evidence(done, false).exit)
}

func TestRollout(t *testing.T) {
	deploy := owner{kind: "deployment", desired: 3, total: 3, updated: 3, ready: 3, available: 3}
	set := owner{kind: "statefulset", desired: 3, total: 3, updated: 3, ready: 3, currentRevision: "b", updateRevision: "b"}
	daemon := owner{kind: "daemonset", desired: 2, updated: 2, available: 2}
	with := func(o owner, edit func(*owner)) owner { edit(&o); return o }
	for name, tt := range map[string]struct {
		o       owner
		pending string
		waits   string
	}{
		"a deployment that is done":                    {o: deploy},
		"what has not been noticed":                    {o: with(deploy, func(o *owner) { o.Generation, o.observed = 3, 2 }), pending: "taken notice"},
		"pods that are to be made":                     {o: with(deploy, func(o *owner) { o.updated = 1 }), pending: "1 of 3 pods are on the new template"},
		"old pods that are to go":                      {o: with(deploy, func(o *owner) { o.total = 4 }), pending: "1 old pod is"},
		"pods that are to become available":            {o: with(deploy, func(o *owner) { o.available = 2 }), pending: "2 of 3 new pods are available"},
		"Recreate: none yet":                           {o: with(deploy, func(o *owner) { o.updated, o.total, o.available = 0, 0, 0 }), pending: "0 of 3"},
		"scaled to zero, by an autoscaler or a person": {o: with(deploy, func(o *owner) { o.desired, o.total, o.updated, o.available = 0, 0, 0, 0 }), waits: "scaled to 0"},
		"paused":                                   {o: with(deploy, func(o *owner) { o.paused, o.updated = true, 0 }), waits: "paused"},
		"a set that is done":                       {o: set},
		"a set that waits for a pod":               {o: with(set, func(o *owner) { o.ready = 2 }), pending: "2 of 3 pods are ready"},
		"a set between revisions":                  {o: with(set, func(o *owner) { o.currentRevision, o.updated = "a", 2 }), pending: "2 of 3"},
		"a set that goes back":                     {o: with(set, func(o *owner) { o.updated = 2 }), pending: "2 of 3 pods are on the new template"},
		"a partition that is reached":              {o: with(set, func(o *owner) { o.partition, o.updated, o.currentRevision = 2, 1, "a" })},
		"a partition that is not":                  {o: with(set, func(o *owner) { o.partition, o.updated, o.currentRevision = 1, 1, "a" }), pending: "1 of 2 pods beyond the partition"},
		"a partition that keeps all":               {o: with(set, func(o *owner) { o.partition, o.updated = 3, 0 }), waits: "partition (3)"},
		"a daemon set that is done":                {o: daemon},
		"a daemon set with nodes to go":            {o: with(daemon, func(o *owner) { o.updated = 1 }), pending: "1 of 2"},
		"a daemon set with a pod that is not well": {o: with(daemon, func(o *owner) { o.available = 1 }), pending: "1 of 2 new pods are available"},
		"a daemon set without nodes":               {o: owner{kind: "daemonset"}, waits: "no node"},
		"a cron job":                               {o: owner{kind: "cronjob"}},
	} {
		t.Run(name, func(t *testing.T) {
			pending, waits := tt.o.rollout()
			require.Equal(t, tt.pending == "", pending == "", pending)
			require.Contains(t, pending, tt.pending)
			require.Equal(t, tt.waits == "", waits == "", waits)
			require.Contains(t, waits, tt.waits)
		})
	}
}

func TestWhoManagesAnImage(t *testing.T) {
	fields := func(manager string, op metav1.ManagedFieldsOperationType) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{Manager: manager, Operation: op, FieldsV1: metav1.NewFieldsV1(
			`{"f:spec":{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"app\"}":{".":{},"f:image":{}}}}}}}`)}
	}
	yes := true
	for name, tt := range map[string]struct {
		edit func(*appsv1.Deployment)
		want string // in the refusal; "": none
	}{
		"nobody": {edit: func(*appsv1.Deployment) {}},
		"a person with kubectl": {edit: func(d *appsv1.Deployment) {
			d.ManagedFields = []metav1.ManagedFieldsEntry{fields("kubectl-set", "Update")}
		}},
		"updaterd itself": {edit: func(d *appsv1.Deployment) {
			d.ManagedFields = []metav1.ManagedFieldsEntry{fields("updaterd", "Update")}
		}},
		"a server-side apply": {edit: func(d *appsv1.Deployment) {
			d.ManagedFields = []metav1.ManagedFieldsEntry{fields("terraform", "Apply")}
		}, want: "terraform"},
		"Argo CD, by its annotation": {edit: func(d *appsv1.Deployment) { d.Annotations["argocd.argoproj.io/tracking-id"] = "x" }, want: "Argo CD"},
		"Argo CD, by its manager": {edit: func(d *appsv1.Deployment) {
			d.ManagedFields = []metav1.ManagedFieldsEntry{fields("argocd-controller", "Update")}
		}, want: "Argo CD"},
		"Flux's kustomize controller": {edit: func(d *appsv1.Deployment) { d.Labels = map[string]string{"kustomize.toolkit.fluxcd.io/name": "shop"} }, want: "Flux"},
		"Flux's kustomize, switched off": {edit: func(d *appsv1.Deployment) {
			d.Labels = map[string]string{"kustomize.toolkit.fluxcd.io/name": "shop"}
			d.Annotations["kustomize.toolkit.fluxcd.io/reconcile"] = "disabled"
		}},
		"Flux's helm controller": {edit: func(d *appsv1.Deployment) { d.Labels = map[string]string{"helm.toolkit.fluxcd.io/name": "shop"} }, want: "Flux"},
		"an operator": {edit: func(d *appsv1.Deployment) {
			d.OwnerReferences = []metav1.OwnerReference{{Kind: "Shop", Name: "eu", Controller: &yes}}
		}, want: "Shop eu"},
		"a rollout that is paused": {edit: func(d *appsv1.Deployment) { d.Spec.Paused = true }, want: "paused"},
		"a status written by a controller": {edit: func(d *appsv1.Deployment) {
			e := fields("argocd-controller", "Update")
			e.Subresource = "status"
			d.ManagedFields = []metav1.ManagedFieldsEntry{e}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			d := deployment("web", 1, "app=web:1")
			tt.edit(d)
			o, err := read(d)
			require.NoError(t, err)
			require.Empty(t, o.ManagedFields, "they are not kept")
			r := managedElsewhere(o, o.containers[0])
			if tt.want == "" {
				require.Nil(t, r)
				return
			}
			require.Equal(t, updater.ManagedElsewhere, r.Reason)
			require.Contains(t, r.Detail, tt.want)
		})
	}
}

func TestThePatch(t *testing.T) {
	fields := map[string]string{"app": inContainers, "side": inContainers, "setup": inInitContainers}
	p, err := imagePatch("u1", "42", fields, map[string]string{"side": "side:2", "app": "web:2", "setup": "setup:2"})
	require.NoError(t, err)
	require.JSONEq(t, `{"metadata":{"uid":"u1","resourceVersion":"42"},"spec":{"template":{"spec":{
		"containers":[{"name":"app","image":"web:2"},{"name":"side","image":"side:2"}],
		"initContainers":[{"name":"setup","image":"setup:2"}]}}}}`, string(p))
	p, err = cronPatch(p)
	require.NoError(t, err)
	require.JSONEq(t, `{"metadata":{"uid":"u1","resourceVersion":"42"},"spec":{"jobTemplate":{"spec":{"template":{"spec":{
		"containers":[{"name":"app","image":"web:2"},{"name":"side","image":"side:2"}],
		"initContainers":[{"name":"setup","image":"setup:2"}]}}}}}}`, string(p))
}

func TestWhoseAPodIs(t *testing.T) {
	for name, tt := range map[string]struct {
		ref    metav1.OwnerReference
		labels map[string]string
		want   string
	}{
		"of a deployment":             {metav1.OwnerReference{Kind: "ReplicaSet", Name: "web-abc"}, map[string]string{"pod-template-hash": "abc"}, "shop/deployment/web"},
		"of a replica set by itself":  {metav1.OwnerReference{Kind: "ReplicaSet", Name: "web"}, nil, ""},
		"of a stateful set":           {metav1.OwnerReference{Kind: "StatefulSet", Name: "db"}, nil, "shop/statefulset/db"},
		"of a daemon set":             {metav1.OwnerReference{Kind: "DaemonSet", Name: "log"}, nil, "shop/daemonset/log"},
		"of a cron job's run":         {metav1.OwnerReference{Kind: "Job", Name: "night-29000001"}, nil, "shop/cronjob/night"},
		"of a job that a person made": {metav1.OwnerReference{Kind: "Job", Name: "by-hand"}, nil, ""},
	} {
		got, _ := ownerOf("shop", tt.ref, tt.labels)
		require.Equal(t, tt.want, got, name)
	}
}

func TestSettingsWrittenOnAWorkload(t *testing.T) {
	d := deployment("web", 1, "app=web:1", "side=side:1")
	d.Labels = map[string]string{"updaterd.dev/enable": "true", "app": "web"}
	d.Annotations = map[string]string{"updaterd.dev/policy": "minor", "side.updaterd.dev/mode": "hold", "side.updaterd.dev/policy": "patch", "other.dev/policy": "x"}
	o, err := read(d)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"enable": "true", "policy": "minor"}, written(o, "app"))
	require.Equal(t, map[string]string{"enable": "true", "policy": "patch", "mode": "hold"}, written(o, "side"))
}

func TestTheJobOfATest(t *testing.T) {
	ch := wish(t, "deployment/web/app web:1 web:2")
	ch.Parts[0].Settings.Health.Test = updater.Test{Image: "smoke:1", Command: []string{"check", "/"}, Timeout: 1500 * time.Millisecond}
	d := deployment("web", 1, "app=web:2")
	d.UID = "u1"
	o, err := read(d)
	require.NoError(t, err)
	j := testJob(ch, 0, o, []string{"10.0.0.1", "10.0.0.2"})
	require.Equal(t, "updaterd-test-20260102t030405-abcdefgh-0", j.Name)
	require.LessOrEqual(t, len(j.Name), 63)
	require.EqualValues(t, 0, *j.Spec.BackoffLimit)
	require.EqualValues(t, 2, *j.Spec.ActiveDeadlineSeconds)
	require.Equal(t, []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "u1"}}, j.OwnerReferences)
	require.False(t, *j.Spec.Template.Spec.AutomountServiceAccountToken)
	require.Equal(t, map[string]string{testLabel: "20260102t030405-abcdefgh"}, j.Spec.Template.Labels)
	require.Contains(t, j.Spec.Template.Spec.Containers[0].Env, corev1.EnvVar{Name: "UPDATERD_POD_IPS", Value: "10.0.0.1,10.0.0.2"})
	require.Equal(t, []string{"check", "/"}, j.Spec.Template.Spec.Containers[0].Args)
	require.Equal(t, batchv1.SchemeGroupVersion, jobResource().GroupVersion)
}

func TestAMountThatFailsIsNoFaultOfTheImage(t *testing.T) {
	for message, want := range map[string]bool{
		`exec: "/app": stat /app: no such file or directory: unknown`:                                                    true,
		`error mounting "/var/lib/kubelet/pods/1/volume-subpaths/c/app/0" to rootfs: no such file or directory: unknown`: false,
	} {
		require.Equal(t, want, cannotStart(message), message)
	}
}

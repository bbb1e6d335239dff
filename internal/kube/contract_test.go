package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// fakeDigest makes up a digest for a tag.
func fakeDigest(of string) string {
	sum := sha256.Sum256([]byte(of))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// template is a pod template of containers, each "name=image".
func template(containers ...string) corev1.PodTemplateSpec {
	var p corev1.PodTemplateSpec
	for _, c := range containers {
		name, image, _ := strings.Cut(c, "=")
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name, Image: image, Env: []corev1.EnvVar{{Name: "A", Value: name}}})
	}
	return p
}

func named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: "shop", Annotations: map[string]string{"team": "web"}}
}

func deployment(name string, replicas int32, containers ...string) *appsv1.Deployment {
	return &appsv1.Deployment{ObjectMeta: named(name), Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: metav1.AddLabelToSelector(&metav1.LabelSelector{}, "app", name), Template: template(containers...)}}
}

func statefulSet(name string, replicas int32, containers ...string) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{ObjectMeta: named(name), Spec: appsv1.StatefulSetSpec{Replicas: &replicas, Selector: metav1.AddLabelToSelector(&metav1.LabelSelector{}, "app", name), Template: template(containers...)}}
}

func daemonSet(name string, containers ...string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: named(name), Spec: appsv1.DaemonSetSpec{Selector: metav1.AddLabelToSelector(&metav1.LabelSelector{}, "app", name), Template: template(containers...)}}
}

// wish is the change that moves containers to other references; parts are
// "kind/name/container from to".
func wish(t *testing.T, parts ...string) updater.Change {
	t.Helper()
	ch := updater.Change{ID: "20260102T030405-abcdefgh", Backend: "prod", Phase: updater.Preparing}
	for _, p := range parts {
		f := strings.Fields(p)
		require.Len(t, f, 3)
		to := updater.Image{Ref: f[2] + "@" + fakeDigest(f[2]), Digest: fakeDigest(f[2])}
		from := updater.Image{Ref: f[1], Digest: digestOf(f[1])}
		ch.Parts = append(ch.Parts, updater.Part{Workload: "prod/shop/" + f[0], From: from, To: to, Replace: true})
	}
	ch.Unit = ch.Parts[0].Workload
	return ch
}

// look says of an object what a person can see of it, without versions.
func (s *server) look(resource, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.objects[resource+"/shop/"+name]
	if !ok {
		return ""
	}
	meta := dig(m, "metadata")
	return toJSON([]any{dig(meta, "labels"), dig(meta, "annotations"), m["spec"]})
}

func TestContract(t *testing.T) {
	for kind, object := range map[string]func(name, image string) any{
		"deployment":  func(name, image string) any { return deployment(name, 3, "app="+image, "side=reg.example/side:1") },
		"statefulset": func(name, image string) any { return statefulSet(name, 3, "app="+image, "side=reg.example/side:1") },
		"daemonset":   func(name, image string) any { return daemonSet(name, "app="+image, "side=reg.example/side:1") },
	} {
		t.Run(kind, func(t *testing.T) {
			s := newServer(t)
			resource := kind + "s"
			backendtest.Run(t, backendtest.Harness{
				Backend: func(t *testing.T) updater.Backend { return s.cluster(t) },
				Start: func(t *testing.T, name string, to backendtest.Behaviour) updater.Change {
					s.put(resource, object(name, "reg.example/app:1"))
					tag := map[backendtest.Behaviour]string{
						backendtest.Good: "2", backendtest.Exits: "2-crash", backendtest.Unhealthy: "2-crash", backendtest.CannotStart: "2-noexec",
					}[to]
					return wish(t, kind+"/"+name+"/app reg.example/app:1 reg.example/app:"+tag)
				},
				NoGroups:  "the containers of a pod template are changed by one patch, and what is not changed is no part",
				NoTraces:  "the journal is in the cluster as well",
				Look:      func(_ *testing.T, name string) string { return s.look(resource, name) },
				Leftovers: func(*testing.T, string) []string { return nil },
				Remove:    func(_ *testing.T, name string) { s.remove(resource, name) },
				Replace: func(_ *testing.T, name string) {
					s.remove(resource, name)
					s.put(resource, object(name, "reg.example/theirs:1"))
				},
				Fail: func(n int, done bool) func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.fail, s.done, s.struck = n, done, false
					return func() bool {
						s.mu.Lock()
						defer s.mu.Unlock()
						return s.struck
					}
				},
			})
		})
	}
}

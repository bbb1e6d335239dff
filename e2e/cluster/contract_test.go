package cluster

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/kube"
	"github.com/updaterd/updaterd/internal/updater"
)

// contract is a namespace in which the contract is run for one kind.
type contract struct {
	*rig.Space
	kind  string
	proxy *rig.Proxy
	good  string // the digest of app:1
}

// TestContract: a real cluster keeps the contract of a backend.
func TestContract(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := &contract{Space: rig.Shared(t).NewSpace(t), kind: kind}
			c.proxy = c.NewProxy(t, rig.Hooks{})
			c.good = c.Good("app:1", "1")
			backendtest.Run(t, backendtest.Harness{
				Backend:   c.backend,
				Start:     c.start,
				NoGroups:  "the containers of a pod template are changed by one patch, and what is not changed is no part",
				NoTraces:  "the journal is in the cluster as well",
				Look:      c.look,
				Leftovers: func(*testing.T, string) []string { return nil },
				Remove:    func(_ *testing.T, name string) { c.Kubectl("delete", kind, name) },
				Replace: func(_ *testing.T, name string) {
					c.Kubectl("delete", kind, name)
					c.Good("theirs:1", "theirs")
					kinds[kind](c.Space, rig.Spec{Name: name, Image: "theirs:1"})
				},
				Fail: c.fail,
			})
		})
	}
}

func (c *contract) backend(t *testing.T) updater.Backend {
	t.Helper()
	config := c.Config()
	config.Host = c.proxy.URL
	b, err := kube.New(kube.Options{Name: rig.Backend, REST: config, Namespaces: []string{c.Name}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// start runs a workload on a good image, whose liveness is asked for as well.
func (c *contract) start(t *testing.T, name string, to backendtest.Behaviour) updater.Change {
	t.Helper()
	next := map[backendtest.Behaviour]stage.Image{
		backendtest.Good:        {Version: "2"},
		backendtest.Exits:       {Version: "2", Behave: stage.Exit(1)},
		backendtest.Unhealthy:   {Version: "2", Behave: stage.Behaviour{Unhealthy: true}},
		backendtest.CannotStart: {Version: "2", Entrypoint: []string{"/nope"}},
	}
	image, ok := next[to]
	require.True(t, ok, "no image is %s", to)
	digest := c.Push("app:2-"+string(to), image)
	kinds[c.kind](c.Space, rig.Spec{Name: name, Image: "app:1", Replicas: 2, Pod: func(p *corev1.PodSpec) {
		p.Containers[0].LivenessProbe = p.Containers[0].ReadinessProbe
	}})
	c.WaitDone(c.kind + "/" + name)
	id := c.ID(c.kind + "/" + name)
	return updater.Change{
		ID: time.Now().UTC().Format("20060102T150405-") + strings.ToLower(rand.Text()[:8]), Backend: rig.Backend, Unit: id, Phase: updater.Preparing,
		Parts: []updater.Part{{
			Workload: id, Replace: true,
			From: updater.Image{Ref: c.Ref("app:1"), Digest: c.good},
			To:   updater.Image{Ref: c.Ref("app:2-"+string(to)) + "@" + digest, Digest: digest},
		}},
	}
}

// look says what a person wrote, without what controllers note.
func (c *contract) look(t *testing.T, name string) string {
	t.Helper()
	var meta metav1.ObjectMeta
	var spec any
	var err error
	switch c.kind {
	case "deployment":
		var d *appsv1.Deployment
		d, err = c.Client.AppsV1().Deployments(c.Name).Get(t.Context(), name, metav1.GetOptions{})
		meta, spec = d.ObjectMeta, d.Spec
	case "statefulset":
		var d *appsv1.StatefulSet
		d, err = c.Client.AppsV1().StatefulSets(c.Name).Get(t.Context(), name, metav1.GetOptions{})
		meta, spec = d.ObjectMeta, d.Spec
	case "daemonset":
		var d *appsv1.DaemonSet
		d, err = c.Client.AppsV1().DaemonSets(c.Name).Get(t.Context(), name, metav1.GetOptions{})
		meta, spec = d.ObjectMeta, d.Spec
	}
	if apierrors.IsNotFound(err) {
		return ""
	}
	require.NoError(t, err)
	notes := map[string]string{}
	maps.Copy(notes, meta.Annotations)
	delete(notes, "deployment.kubernetes.io/revision")
	delete(notes, appsv1.DeprecatedTemplateGeneration)
	b, err := json.Marshal([]any{meta.Labels, notes, spec})
	require.NoError(t, err)
	return string(b)
}

func (c *contract) fail(n int, done bool) func() bool {
	var struck atomic.Bool
	if n == 0 {
		c.proxy.Hook(rig.Hooks{})
		return struck.Load
	}
	c.proxy.Forget()
	c.proxy.Hook(at{n, done}.once(func(rig.Call) error {
		struck.Store(true)
		return &rig.Refusal{Code: 500}
	}))
	return struck.Load
}

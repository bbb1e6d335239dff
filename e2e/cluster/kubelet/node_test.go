//go:build node

package kubelet

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/updaterd/updaterd/e2e/cluster/control"
	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
	"github.com/updaterd/updaterd/internal/updater"
)

func TestMain(m *testing.M) {
	// These tests mostly wait. What the caller says comes after this.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(Alone(func() int { return stage.Main(m) }))
}

const (
	// patience is how long something may take, on a machine with much else to do.
	patience = 5 * time.Minute
	// deadline is how long, in seconds, a rollout may go without progress that is to go
	// well, and soon one that is not.
	deadline, soon = 120, 30
)

// shop is a namespace that updaterd watches from within the cluster, with only the
// rights that are shipped, by the manifests that are shipped.
type shop struct {
	*rig.Space
	t    *testing.T
	node *Node
	// outside are settings for who asks from there: check, history.
	outside string
}

// open has a real node, and updaterd on it. private is another registry.
func open(t *testing.T, private *stage.Registry) *shop {
	t.Helper()
	sources, err := control.Sources(t.Context())
	require.NoError(t, err)
	programs, err := Get(t.Context(), filepath.Dir(sources), os.Stderr)
	require.NoError(t, err)
	planes, err := control.Get(t.Context(), sources, os.Stderr)
	require.NoError(t, err)
	plane, err := control.Start(t.Context(), planes)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, plane.Stop()) })
	client, err := kubernetes.NewForConfig(plane.Config())
	require.NoError(t, err)
	cluster := &rig.Cluster{Plane: plane, Client: client}
	s := &shop{Space: cluster.NamedSpace(t, "shop"), t: t}
	s.Registry = stage.NewRegistry(t, stage.RegistryOptions{Address: Address})
	s.Push("pause:1", stage.Image{Version: "pause", Behave: stage.Behaviour{Hang: true}})
	s.node, err = Start(t.Context(), plane, programs, s.Ref("pause:1"), s.Registry.Host, private.Host)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the node said at last:\n%s", s.node.Logs())
			t.Log(s.Kubectl("get", "events", "--field-selector=source=updaterd"))
			t.Log(s.Kubectl("-n", "updaterd", "logs", "deployment/updaterd", "--tail=200"))
		}
		s.node.Stop()
	})
	settings := fmt.Sprintf(`metrics: {listen: ":9713"}
schedule: "@every 1s"
jitter: 0s
parallel: 20
defaults: {health: {stable: 2s}}
registries:
  - {host: %q, plain-http: true}
  - {host: %q, plain-http: true}
rules:
  - match: {name: tested}
    health.test: {image: %q, command: [get, "http://${UPDATERD_POD_IPS}:8080/page"]}
kubernetes:
  - name: prod
    namespaces: [shop]
`, s.Registry.Host, private.Host, s.Ref("smoke:1"))
	s.outside = settings + fmt.Sprintf("    kubeconfig: %s\n    state-namespace: updaterd\n", plane.Kubeconfig)
	s.install(settings)
	return s
}

// run has a subtest with the shop, beside the others.
func (s *shop) run(name string, test func(s *shop)) {
	s.t.Run(name, func(t *testing.T) {
		t.Parallel()
		within := *s
		within.Space, within.t = s.For(t), t
		test(&within)
	})
}

// install does what the page on clusters says.
func (s *shop) install(settings string) {
	s.t.Helper()
	manifests, err := filepath.Abs("../../../configs/kubernetes")
	require.NoError(s.t, err)
	s.Push("updaterd:test", stage.Image{Version: "updaterd", Updaterd: true})
	dir, err := filepath.EvalSymlinks(s.t.TempDir())
	require.NoError(s.t, err)
	base, err := filepath.Rel(dir, manifests)
	require.NoError(s.t, err)
	overlay := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [%q]
images: [{name: ghcr.io/updaterd/updaterd, newName: %q, newTag: test}]
patches:
  - target: {kind: ConfigMap, name: updaterd}
    patch: |
      - op: replace
        path: /data/updaterd.yaml
        value: %s
`, base, s.Ref("updaterd"), quoted(s.t, settings))
	require.NoError(s.t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600))
	for _, granted := range []string{"watch", "overlays/delete", "overlays/jobs", "overlays/secrets"} {
		s.Kubectl("apply", "-k", filepath.Join(manifests, granted))
	}
	s.Cluster.Kubectl(s.t, "", "apply", "-k", dir)
	s.Cluster.Kubectl(s.t, "", "-n", "updaterd", "rollout", "status", "deployment/updaterd", "--timeout=3m")
}

// quoted is a string as YAML has it on one line.
func quoted(t *testing.T, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	require.NoError(t, err)
	return string(b)
}

// spec is of a workload that updaterd looks at: name, with the image name:1.
func (s *shop) spec(name string) rig.Spec {
	return rig.Spec{
		Name: name, Image: name + ":1",
		Annotations: map[string]string{"updaterd.dev/enable": "true"},
		Change: func(o metav1.Object) {
			if d, ok := o.(*appsv1.Deployment); ok {
				*d.Spec.ProgressDeadlineSeconds = deadline
			}
		},
	}
}

// told waits for so many Events on a workload, and returns what the last says.
func (s *shop) told(name, reason string, times int) string {
	s.t.Helper()
	var message string
	stage.Eventually(s.t, patience, name+" to have the Event "+reason, func() bool {
		events, err := s.Client.CoreV1().Events(s.Name).List(s.t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason + ",involvedObject.name=" + name})
		require.NoError(s.t, err)
		for _, e := range events.Items {
			message = e.Message
		}
		return len(events.Items) >= times
	})
	s.t.Log(reason+":", message)
	return message
}

// runs waits until all pods of a workload run this and are ready.
func (s *shop) runs(which, digest string) {
	s.t.Helper()
	_, name, _ := strings.Cut(which, "/")
	stage.Eventually(s.t, patience, which+" to run "+digest, func() bool {
		return s.Get(which).Done && slices.Equal(s.Digests(name), []string{digest})
	})
}

// says waits until `check` has this reason for a workload.
func (s *shop) says(which string, reason updater.Reason) {
	s.t.Helper()
	asks := stage.NewUpdaterd(s.t, "", s.outside)
	asks.Env = nil // It is to find no Docker.
	stage.Eventually(s.t, patience, which+" to be "+string(reason), func() bool {
		var rows []rig.Row
		r := asks.Run("check", "-o", "json", s.ID(which))
		require.NoError(s.t, json.Unmarshal([]byte(r.Stdout), &rows), r.Stderr)
		require.Len(s.t, rows, 1)
		return rows[0].Reason == string(reason)
	})
}

// nodes meet it when they pull, and updaterd does not, which has decided by then.
func nodes(how stage.Fault) stage.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.UserAgent(), "containerd") {
			how(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// TestOnARealNode: what the other tests try with played nodes is so with a real
// kubelet and containerd.
func TestOnARealNode(t *testing.T) {
	private := stage.NewRegistry(t, stage.RegistryOptions{Address: Address, Username: "robot", Password: "s3cret"})
	s := open(t, private)

	for name, tt := range map[string]struct {
		bad stage.Image
		// meet is what nodes meet when they pull it.
		meet stage.Fault
		// blamed: the image is rejected.
		blamed bool
		reason updater.Reason
		says   string
	}{
		"crashes":    {bad: stage.Image{Behave: stage.Exit(3)}, blamed: true, reason: updater.Rejected, says: "code 3"},
		"unready":    {bad: stage.Image{Behave: stage.Behaviour{Unhealthy: true}}, blamed: true, reason: updater.Rejected, says: "runs and is not ready"},
		"eats":       {bad: stage.Image{Behave: stage.Behaviour{EatMemory: true}}, blamed: true, reason: updater.Rejected, says: "want of memory"},
		"no-program": {bad: stage.Image{Entrypoint: []string{"/nothing"}}, blamed: true, reason: updater.Rejected, says: "cannot be started"},
		"no-right":   {bad: stage.Image{Entrypoint: []string{"/app"}, Files: map[string]string{"/app": "no program"}}, blamed: true, reason: updater.Rejected, says: "cannot be started"},
		"gone":       {meet: s.lose(), blamed: true, reason: updater.NotFound, says: "its image does not exist"},
		"stale":      {meet: stage.Status(http.StatusNotFound), reason: updater.Surroundings, says: "its image does not exist"},
		"outage":     {meet: stage.Status(http.StatusServiceUnavailable), reason: updater.Surroundings, says: "its image cannot be pulled"},
		"cut-off":    {meet: stage.Drop(), reason: updater.Surroundings, says: "its image cannot be pulled"},
		"refused":    {meet: stage.Status(http.StatusUnauthorized), reason: updater.Surroundings, says: "its image cannot be pulled"},
	} {
		s.run(name, func(s *shop) {
			which := "deployment/" + name
			first := s.Good(name+":1", "1")
			spec := s.spec(name)
			spec.Change = func(o metav1.Object) { *o.(*appsv1.Deployment).Spec.ProgressDeadlineSeconds = soon }
			spec.Pod = func(p *corev1.PodSpec) {
				p.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			}
			s.Deployment(spec)
			s.runs(which, first)
			if tt.meet != nil {
				s.Registry.Fail("", "^/v2/"+name+"/(manifests|blobs)/", 0, nodes(tt.meet))
			}
			tt.bad.Version = "2"
			s.Push(name+":1", tt.bad)
			require.Contains(s.t, s.told(name, "UpdateRestored", 1), tt.says)
			s.runs(which, first)
			if tt.blamed {
				s.told(name, "UpdateRejected", 1)
			}
			s.says(which, tt.reason)
		})
	}

	for which, made := range map[string]func(*rig.Space, rig.Spec){
		"deployment/good": (*rig.Space).Deployment, "statefulset/set": (*rig.Space).StatefulSet, "daemonset/daemon": (*rig.Space).DaemonSet,
	} {
		s.run(which, func(s *shop) {
			_, name, _ := strings.Cut(which, "/")
			first := s.Good(name+":1", "1")
			spec := s.spec(name)
			spec.Replicas = 2
			made(s.Space, spec)
			s.runs(which, first)
			second := s.Good(name+":1", "2")
			s.told(name, "UpdateCommitted", 1)
			s.runs(which, second)
			s.Crashing(name+":1", "3")
			s.told(name, "UpdateRestored", 1)
			s.runs(which, second)
			s.says(which, updater.Rejected)
		})
	}

	s.run("a tag that is missing from the start", func(s *shop) {
		const which = "deployment/absent"
		s.Deployment(s.spec("absent"))
		s.WaitPod("absent", "whose image is not there", func(p corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
				strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Reason, "ImagePull")
		})
		s.says(which, updater.NotRunning)
		d := s.Good("absent:1", "1")
		s.runs(which, d)
		s.says(which, updater.UpToDate)
		require.Equal(s.t, s.Ref("absent:1"), s.Get(which).Image("app"), "it was left alone")
	})

	s.run("pods that run different images", func(s *shop) {
		const which = "deployment/mixed"
		first := s.Good("mixed:1", "1")
		spec := s.spec("mixed")
		spec.Replicas = 2
		spec.Annotations["updaterd.dev/mode"] = "monitor"
		spec.Pod = func(p *corev1.PodSpec) { p.Containers[0].ImagePullPolicy = corev1.PullAlways }
		s.Deployment(spec)
		s.runs(which, first)
		second := s.Good("mixed:1", "2")
		s.says(which, updater.Monitor)
		s.Kubectl("delete", "pod", s.Pods("mixed")[0].Name, "--wait=false")
		stage.Eventually(s.t, patience, "one of each", func() bool {
			return s.Get(which).Done && len(s.Digests("mixed")) == 2
		})
		s.says(which, updater.Mixed)
		s.Kubectl("delete", "pod", "-l", "app=mixed", "--wait=false")
		s.runs(which, second)
		s.says(which, updater.UpToDate)
	})

	s.run("an image that another repository has by another digest", func(s *shop) {
		const which = "deployment/twin"
		other := s.Push("copy:1", stage.Image{Version: "twin", OCI: true})
		s.Deployment(rig.Spec{Name: "copy", Image: "copy:1"})
		s.runs("deployment/copy", other)
		own := s.Push("twin:1", stage.Image{Version: "twin"})
		require.NotEqual(s.t, other, own)
		s.Deployment(s.spec("twin"))
		s.WaitDone(which)
		require.Equal(s.t, []string{other}, s.Digests("twin"), "the node has it from there")
		second := s.Good("twin:1", "2")
		s.says(which, updater.Unsupported)
		require.Equal(s.t, s.Ref("twin:1"), s.Get(which).Image("app"), "there is no way back to it")

		s.Kubectl("annotate", which, "updaterd.dev/pin=follow")
		s.Kubectl("set", "image", which, "app="+s.Ref("twin:1@"+own))
		s.told("twin", "UpdateCommitted", 1)
		s.runs(which, second)
	})

	s.run("what only its pull secret opens", func(s *shop) {
		const which = "deployment/closed"
		s.PullSecret("regcred", private, "robot", "s3cret")
		first := private.Push("closed:1", stage.Image{Version: "1"})
		spec := s.spec("closed")
		spec.Pod = func(p *corev1.PodSpec) {
			p.Containers[0].Image = private.Ref("closed:1")
			p.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "regcred"}}
		}
		s.Deployment(spec)
		s.runs(which, first)
		second := private.Push("closed:1", stage.Image{Version: "2"})
		s.told("closed", "UpdateCommitted", 1)
		s.runs(which, second)
		private.Push("closed:1", stage.Image{Version: "3", Behave: stage.Exit(3)})
		s.told("closed", "UpdateRestored", 1)
		s.runs(which, second)
		s.says(which, updater.Rejected)
	})

	s.run("a test that must pass", func(s *shop) {
		const which = "deployment/tested"
		s.Good("smoke:1", "smoke")
		s.Good("tested:1", "1")
		s.Deployment(s.spec("tested"))
		s.WaitDone(which)
		second := s.Good("tested:1", "2")
		s.told("tested", "UpdateCommitted", 1)
		s.runs(which, second)
		s.Push("tested:1", stage.Image{Version: "3", Env: []string{"APP_BROKEN=/page"}})
		require.Contains(s.t, s.told("tested", "UpdateRestored", 1), "health.test failed with exit code 1")
		s.runs(which, second)
		s.says(which, updater.Rejected)
		jobs, err := s.Client.BatchV1().Jobs(s.Name).List(s.t.Context(), metav1.ListOptions{})
		require.NoError(s.t, err)
		require.Empty(s.t, jobs.Items)
	})

	s.run("not one request fails", (*shop).serves)
}

// lose has the image that is asked for by its digest gone by then, from the registry
// and for good.
func (s *shop) lose() stage.Fault {
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		repo, digest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
		once.Do(func() {
			s.Registry.Delete(repo + "@" + digest)
			s.Registry.Delete(repo + ":1")
		})
		next.ServeHTTP(w, r)
	}
}

// serves updates a web app of three, well and badly, while a client asks every ready
// endpoint in turn.
func (s *shop) serves() {
	// As any app that is to be updated without a gap: it goes on serving for a while
	// when it is told to end, so that who has its address from before is served.
	image := func(version string, b stage.Behaviour) stage.Image {
		b.StopAfter = 10 * time.Second
		return stage.Image{Version: version, Behave: b}
	}
	const which = "deployment/site"
	first := s.Push("site:1", image("v1", stage.Behaviour{}))
	spec := s.spec("site")
	spec.Replicas = 3
	spec.Pod = func(p *corev1.PodSpec) { *p.TerminationGracePeriodSeconds = 30 }
	s.Deployment(spec)
	_, err := s.Client.CoreV1().Services(s.Name).Create(s.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "site"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "site"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	require.NoError(s.t, err)
	s.runs(which, first)

	c := s.client()
	c.gets(s.t, "v1")
	second := s.Push("site:1", image("v2", stage.Behaviour{}))
	s.told("site", "UpdateCommitted", 1)
	s.runs(which, second)
	c.gets(s.t, "v2")
	s.Push("site:1", image("v3", stage.Exit(3)))
	s.told("site", "UpdateRejected", 1)
	s.runs(which, second)
	s.Kubectl("patch", which, "-p", fmt.Sprintf(`{"spec": {"progressDeadlineSeconds": %d}}`, soon))
	s.Push("site:1", image("v4", stage.Behaviour{Unhealthy: true}))
	s.told("site", "UpdateRejected", 2)
	s.runs(which, second)
	c.end(s.t)
}

// client asks every ready endpoint in turn.
type client struct {
	stop func()

	mu     sync.Mutex
	got    map[string]int
	failed []string
}

func (s *shop) client() *client {
	ctx, cancel := context.WithCancel(s.t.Context())
	c := &client{got: map[string]int{}}
	done := make(chan struct{})
	c.stop = func() { cancel(); <-done }
	s.t.Cleanup(c.stop)
	asks := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			slices, err := s.Client.DiscoveryV1().EndpointSlices(s.Name).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=site"})
			if err != nil {
				c.note(ctx, "", err)
				return
			}
			for _, slice := range slices.Items {
				for _, e := range slice.Endpoints {
					if e.Conditions.Ready == nil || *e.Conditions.Ready {
						body, err := ask(ctx, asks, "http://"+e.Addresses[0]+":8080/")
						c.note(ctx, body, err)
					}
				}
			}
		}
	}()
	return c
}

func ask(ctx context.Context, c *http.Client, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(b), err
}

func (c *client) note(ctx context.Context, body string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.failed = append(c.failed, err.Error())
	default:
		c.got[body]++
	}
}

// gets waits until a request was answered by this version.
func (c *client) gets(t *testing.T, version string) {
	t.Helper()
	stage.Eventually(t, patience, "an answer by "+version, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.got[version] > 0
	})
}

func (c *client) end(t *testing.T) {
	t.Helper()
	c.stop()
	t.Logf("answers by version: %v", c.got)
	require.Empty(t, c.failed)
	require.Positive(t, c.got["v1"]+c.got["v2"])
	require.Zero(t, c.got["v3"])
	require.Zero(t, c.got["v4"])
}

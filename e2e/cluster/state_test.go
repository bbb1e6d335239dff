package cluster

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// manifests is where the shipped ones are.
const manifests = "../../configs/kubernetes"

// enabled are the annotations of a workload that is updated quickly.
func enabled() map[string]string {
	return map[string]string{"updaterd.dev/enable": "true", "updaterd.dev/health.stable": "1s"}
}

// installation is an updaterd that gets at a space by a kubeconfig, and keeps its
// state in a namespace.
func installation(t *testing.T, s *rig.Space, kubeconfig, state string) *stage.Updaterd {
	t.Helper()
	return stage.NewUpdaterd(t, "", fmt.Sprintf(`
schedule: "@every 1s"
jitter: 0
registries: [{host: %q, plain-http: true}]
kubernetes:
  - {name: prod, kubeconfig: %q, namespaces: [%s], state-namespace: %s}
`, strings.SplitN(s.Ref("x:1"), "/", 2)[0], kubeconfig, s.Name, state))
}

func TestOneRunAndWhatIsKeptAndTold(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Good("web:1", "1")
	s.Deployment(rig.Spec{Annotations: enabled()})
	s.WaitDone("deployment/web")
	u := installation(t, s, s.Kubeconfig, s.Name)
	id := "prod/" + s.Name + "/deployment/web/app"

	s.Good("web:1", "2")
	r := u.Run("run", "--once")
	require.Equal(t, 0, r.Code)
	require.Contains(t, s.Kubectl("describe", "deployment/web"), "UpdateCommitted")

	s.Crashing("web:1", "3")
	require.Equal(t, 1, u.Run("run", "--once").Code)
	told := s.Kubectl("describe", "deployment/web")
	for _, reason := range []string{"UpdateStarted", "UpdateCommitted", "UpdateRestored", "UpdateRejected"} {
		require.Contains(t, told, reason)
	}
	require.NotContains(t, told, "UpdateRefused")
	s.WaitDone("deployment/web")

	history := u.Run("history").Stdout
	require.Contains(t, history, "updated")
	require.Contains(t, history, "restored")
	require.Contains(t, u.Run("check").Stdout, "rejected")
	require.Contains(t, u.Run("forget", id).Stdout, "Forgotten")
	require.Contains(t, u.Run("check").Stdout, " update ")
	kept := s.Kubectl("get", "configmaps", "-l", "updaterd.dev/backend=prod", "-o", "name")
	require.Equal(t, 1, strings.Count(kept, "configmap/"), kept)
}

// TestOneLeads: the others stand by, and a person is told who leads.
func TestOneLeads(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Good("web:1", "1")
	s.Deployment(rig.Spec{Annotations: enabled()})
	s.WaitDone("deployment/web")
	first, second := installation(t, s, s.Kubeconfig, s.Name), installation(t, s, s.Kubeconfig, s.Name)
	leader := first.Start()
	leader.WaitLog("leading", rig.Patience)
	standby := second.Start()

	r := second.Run("run", "--once", "--lease-wait", "3s")
	require.Equal(t, 1, r.Code)
	require.Contains(t, r.Stderr, "another updaterd is at work here")
	require.Contains(t, r.Stderr, "lease "+s.Name+"/updaterd-prod")
	require.NotContains(t, standby.Logs(), "leading")

	leader.Kill() // nobody releases the Lease
	standby.WaitLog("leading", rig.Patience)
	s.Good("web:1", "2")
	standby.WaitLog("phase=committed", rig.Patience)
	require.Equal(t, 0, standby.Stop(time.Minute))
}

// TestAStandbyIsReady, and alive, though another one leads, and though the API
// server is away.
func TestAStandbyIsReady(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Good("web:1", "1")
	leader := installation(t, s, s.Kubeconfig, s.Name).Start()
	leader.WaitLog("leading", rig.Patience)
	away := false
	var mu sync.Mutex
	way := s.Through(rig.Hooks{Before: func(rig.Call) error {
		mu.Lock()
		defer mu.Unlock()
		if away {
			return rig.ErrDrop
		}
		return nil
	}})
	u := installation(t, s, way.Kubeconfig, s.Name)
	address := free(t)
	config, err := os.ReadFile(u.Config)
	require.NoError(t, err)
	u.WriteConfig(string(config) + fmt.Sprintf("metrics: {listen: %q}\n", address))
	standby := u.Start()
	well := func(path string) bool {
		r, err := http.Get("http://" + address + path)
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	}
	stage.Eventually(t, rig.Patience, "the standby to be ready", func() bool { return well("/readyz") })
	mu.Lock()
	away = true
	mu.Unlock()
	for range 20 {
		time.Sleep(200 * time.Millisecond)
		require.True(t, well("/readyz"))
		require.True(t, well("/livez"))
	}
	require.NotContains(t, standby.Logs(), "leading")
	require.Equal(t, 0, standby.Stop(time.Minute))
}

// free is an address that nobody listens at.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// TestTheShippedRights suffice for all that updaterd does, and none of them is
// there for nothing: what the Roles grant is what was asked for.
func TestTheShippedRights(t *testing.T) {
	c := rig.Own(t)
	c.Kubectl(t, "", "apply", "-k", manifests)
	s := c.NewSpace(t)
	for _, dir := range []string{"watch", "overlays/delete", "overlays/jobs", "overlays/secrets"} {
		s.Kubectl("apply", "-k", filepath.Join(manifests, dir))
	}
	way := s.ThroughAs(token(t, c, "updaterd", "updaterd"), rig.Hooks{})
	u := installation(t, s, way.Kubeconfig, "updaterd")

	s.Good("web:1", "1")
	s.Good("set:1", "1")
	closed := stage.NewRegistry(t, stage.RegistryOptions{Username: "robot", Password: "s3cret"})
	closed.Push("task:1", stage.Image{Version: "task", Behave: stage.Exit(0)})
	s.Push("smoke:1", stage.Image{Version: "smoke", Behave: stage.Exit(0)})

	config, err := os.ReadFile(u.Config)
	require.NoError(t, err)
	u.WriteConfig(string(config) + fmt.Sprintf("rules: [{match: {name: web}, health.test.image: %q}]\n", s.Ref("smoke:1")))
	s.Deployment(rig.Spec{Annotations: enabled()})
	s.StatefulSet(rig.Spec{Name: "set", Image: "set:1", Replicas: 2, Annotations: enabled()})
	s.DaemonSet(rig.Spec{Name: "daemon", Image: "web:1", Annotations: enabled()})
	// A private image whose only credentials are its ServiceAccount's, and no pod tells.
	s.PullSecret("regcred", closed, "robot", "s3cret")
	s.Kubectl("patch", "serviceaccount", "default", "-p", `{"imagePullSecrets":[{"name":"regcred"}]}`)
	s.CronJob(rig.Spec{Name: "task", Pod: func(p *corev1.PodSpec) { p.Containers[0].Image = closed.Ref("task:1") },
		Annotations: map[string]string{"updaterd.dev/enable": "true", "updaterd.dev/cronjob-gate": "next-run"}})
	for _, which := range []string{"deployment/web", "statefulset/set", "daemonset/daemon"} {
		s.WaitDone(which)
	}
	daemon := u.Start()
	daemon.WaitLog("leading", rig.Patience)
	s.Good("web:1", "2")
	s.Crashing("set:1", "2")
	for _, name := range []string{"web", "daemon"} {
		stage.Eventually(t, 2*time.Minute, name+" updated", func() bool { return strings.Contains(eventsOf(s, name), "UpdateCommitted") })
	}
	stage.Eventually(t, 2*time.Minute, "the set put back", func() bool { return strings.Contains(eventsOf(s, "set"), "UpdateRestored") })
	require.Contains(t, u.Run("forget", "prod/"+s.Name+"/statefulset/set/app").Stdout, "Forgotten")
	// A command has no watches and lists; the daemon does too, where they break.
	require.Contains(t, u.Run("check").Stdout, "prod/"+s.Name+"/deployment/web/app")
	s.Kubectl("create", "job", "--from=cronjob/task", "task-1")
	stage.Eventually(t, 2*time.Minute, "the task judged", func() bool { return strings.Contains(eventsOf(s, "task"), "UpdateCommitted") })
	require.Equal(t, 0, daemon.Stop(time.Minute))
	s.WaitDone("statefulset/set")
	u.Run("check") // lists, where a daemon may have had its watches tell it all
	require.NotContains(t, daemon.Logs(), "right is missing")
	require.NotContains(t, daemon.Logs(), "right is not granted")

	used := map[string]bool{}
	for _, call := range way.Calls() {
		require.NotEqual(t, 403, call.Status, "%s %s", call.Verb, call.Path)
		used[call.Verb+" "+strings.SplitN(call.Resource, "/", 2)[0]] = true
	}
	for _, role := range []struct{ namespace, name string }{{"updaterd", "updaterd-state"}, {s.Name, "updaterd"}, {s.Name, "updaterd-delete"}, {s.Name, "updaterd-jobs"}, {s.Name, "updaterd-secrets"}} {
		r, err := c.Client.RbacV1().Roles(role.namespace).Get(t.Context(), role.name, metav1.GetOptions{})
		require.NoError(t, err)
		for _, right := range rights(r.Rules) {
			require.True(t, used[right], "%s of the role %s is granted and was not needed; used were %v", right, role.name, sorted(used))
		}
	}
}

// TestMissingRightsAreSaid at start, each with what it costs.
func TestMissingRightsAreSaid(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Kubectl("create", "serviceaccount", "updaterd")
	way := s.ThroughAs(token(t, s.Cluster, s.Name, "updaterd"), rig.Hooks{})
	d := installation(t, s, way.Kubeconfig, s.Name).Start()
	d.WaitLog("update leases.coordination.k8s.io in namespace "+s.Name, rig.Patience)
	for _, said := range []string{"patch deployments.apps in namespace " + s.Name, "Deployments are not updated", "overlay=delete", "overlay=jobs", "overlay=secrets"} {
		d.WaitLog(said, rig.Patience)
	}
	require.Equal(t, 1, strings.Count(d.Logs(), "patch deployments.apps in namespace"))
	require.Equal(t, 0, d.Stop(time.Minute))
}

func TestTheShippedManifestsAreTaken(t *testing.T) {
	t.Parallel()
	c := rig.Shared(t)
	s := c.NewSpace(t)
	dirs, err := filepath.Glob(filepath.Join(manifests, "overlays", "*"))
	require.NoError(t, err)
	require.Greater(t, len(dirs), 3)
	for _, dir := range append(dirs, filepath.Join(manifests, "watch")) {
		if filepath.Base(dir) == "servicemonitor" {
			continue // its kind is the Prometheus Operator's
		}
		s.Kubectl("apply", "--dry-run=server", "-k", dir)
		content, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
		require.NoError(t, err)
		require.Contains(t, string(content), "kubectl apply", "%s does not say how it is applied", dir)
	}
	out := c.Kubectl(t, "", "apply", "--dry-run=client", "-k", manifests)
	require.Contains(t, out, "deployment.apps/updaterd")
}

// token is one for a service account, as a pod of it has.
func token(t *testing.T, c *rig.Cluster, namespace, account string) string {
	t.Helper()
	r, err := c.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	require.NoError(t, err)
	return r.Status.Token
}

func eventsOf(s *rig.Space, name string) string {
	return s.Kubectl("get", "events", "--field-selector", "involvedObject.name="+name, "-o", "custom-columns=R:.reason", "--no-headers")
}

func rights(rules []rbacv1.PolicyRule) (all []string) {
	for _, rule := range rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				all = append(all, verb+" "+resource)
			}
		}
	}
	return all
}

func sorted(set map[string]bool) (all []string) {
	for s := range set {
		all = append(all, s)
	}
	slices.Sort(all)
	return all
}

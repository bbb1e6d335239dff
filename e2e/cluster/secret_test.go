package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// asAccount is a way of a service account that has the rights of the shipped Role, keeps
// its state in the space, and may read the Secrets named.
func asAccount(t *testing.T, s *rig.Space, secrets ...string) *rig.Through {
	t.Helper()
	s.Kubectl("create", "serviceaccount", "updaterd")
	s.Kubectl("apply", "-k", manifests+"/watch")
	s.Kubectl("create", "role", "state", "--verb=get,list,watch,create,update", "--resource=configmaps,leases.coordination.k8s.io")
	names := []string{"updaterd", "state"}
	if len(secrets) > 0 {
		s.Kubectl(append([]string{"create", "role", "secrets", "--verb=get", "--resource=secrets"}, resourceNames(secrets)...)...)
		names = append(names, "secrets")
	}
	for _, role := range names {
		s.Kubectl("create", "rolebinding", "account-"+role, "--role="+role, "--serviceaccount="+s.Name+":updaterd")
	}
	return s.ThroughAs(token(t, s.Cluster, s.Name, "updaterd"), rig.Hooks{})
}

func resourceNames(names []string) (args []string) {
	for _, n := range names {
		args = append(args, "--resource-name="+n)
	}
	return args
}

// from has a pod run an image, pulled by these Secrets.
func from(image string, secrets ...string) func(*corev1.PodSpec) {
	return func(p *corev1.PodSpec) {
		p.Containers[0].Image = image
		for _, s := range secrets {
			p.ImagePullSecrets = append(p.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
		}
	}
}

// none: no pod of it is wanted.
func none(o metav1.Object) { o.(*appsv1.Deployment).Spec.Replicas = new(int32) }

func TestPrivateImages(t *testing.T) {
	t.Parallel()
	const password = "correct horse"
	s := rig.Shared(t).NewSpace(t)
	closed := stage.NewRegistry(t, stage.RegistryOptions{Username: "robot", Password: password})
	closed.Push("web:1", stage.Image{Version: "1"})
	s.Good("open:1", "1")
	s.PullSecret("right", closed, "robot", password)
	s.PullSecret("wrong", closed, "robot", "battery staple")
	s.PullSecret("unreadable", closed, "robot", password)
	way := asAccount(t, s, "right", "wrong", "gone")

	private := closed.Ref("web:1")
	s.Deployment(rig.Spec{Name: "mine", Pod: from(private, "right")})
	s.Deployment(rig.Spec{Name: "second", Pod: from(private, "gone", "wrong", "right"), Change: none})
	s.Deployment(rig.Spec{Name: "theirs", Pod: from(private, "wrong"), Change: none})
	s.Deployment(rig.Spec{Name: "nobodys", Pod: from(private), Change: none})
	s.Deployment(rig.Spec{Name: "hidden", Pod: from(private, "unreadable"), Change: none})
	s.Deployment(rig.Spec{Name: "public", Pod: from(s.Ref("open:1"), "unreadable")})
	// A ServiceAccount's, which only its pods tell.
	s.Kubectl("create", "serviceaccount", "pulls")
	s.Kubectl("patch", "serviceaccount", "pulls", "-p", `{"imagePullSecrets":[{"name":"right"}]}`)
	s.Deployment(rig.Spec{Name: "account", Pod: func(p *corev1.PodSpec) { from(private)(p); p.ServiceAccountName = "pulls" }})
	for _, name := range []string{"mine", "public", "account"} {
		s.WaitDone("deployment/" + name)
	}

	u := s.UpdaterdBy(way, rig.Settings, "")
	daemon := u.Start()
	daemon.WaitLog("leading", rig.Patience)
	digest := closed.Push("web:1", stage.Image{Version: "2"})
	open := s.Good("open:1", "2")
	for name, want := range map[string]string{"mine": digest, "public": open, "account": digest, "second": digest} {
		stage.Eventually(t, 2*time.Minute, name+" to be updated", func() bool {
			return strings.HasSuffix(s.Get("deployment/"+name).Image("app"), "@"+want)
		})
	}
	s.Kubectl("scale", "deployment/second", "--replicas=1") // so that it can be judged
	for _, name := range []string{"mine", "public", "account", "second"} {
		stage.Eventually(t, 2*time.Minute, name+" committed", func() bool { return strings.Contains(eventsOf(s, name), "UpdateCommitted") })
	}

	// And those who may not read it have been told nothing.
	for name, said := range map[string]string{"theirs": "Secret " + s.Name + "/wrong", "nobodys": "no such thing", "hidden": "Secret " + s.Name + "/unreadable may not be read"} {
		row := u.Check("deployment/"+name, 1)
		require.Equal(t, "unauthorized", row.Reason, "%s: %+v", name, row)
		require.Contains(t, row.Detail, said, name)
		require.Nil(t, row.Candidate, name)
		require.Equal(t, private, s.Get("deployment/"+name).Image("app"))
	}
	daemon.WaitLog("get secrets unreadable in namespace "+s.Name, rig.Patience)
	require.Equal(t, 1, strings.Count(daemon.Logs(), "get secrets unreadable"))

	// When nothing is new, nobody asks the API server.
	quiet := func() bool {
		way.Forget()
		before := strings.Count(daemon.Logs(), "pass over")
		stage.Eventually(t, rig.Patience, "three passes", func() bool { return strings.Count(daemon.Logs(), "pass over") >= before+3 })
		for _, call := range way.Calls() {
			if call.Resource != "leases" && call.Verb != "watch" {
				t.Log(call, call.Status)
				return false
			}
		}
		return true
	}
	stage.Eventually(t, 2*time.Minute, "passes without a request", quiet)

	require.Equal(t, 0, daemon.Stop(time.Minute))
	kept := s.Kubectl("get", "configmaps,events,deployments", "-o", "yaml")
	for what, text := range map[string]string{"log": daemon.Logs(), "cluster": kept, "history": fmt.Sprint(u.History()), "check": u.Run("check").Stdout} {
		require.NotContains(t, text, password, what)
		require.NotContains(t, text, "battery staple", what)
	}
}

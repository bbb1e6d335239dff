package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/e2e/cluster/node"
	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// app is how a pod's first container is, once anything is known.
func app(p corev1.Pod) corev1.ContainerStatus {
	if len(p.Status.ContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return p.Status.ContainerStatuses[0]
}

// TestPlayedNodes: what the nodes show of an image, or of a pod, is what a
// kubelet shows.
func TestPlayedNodes(t *testing.T) {
	yes := true
	waits := func(reason, message string) func(corev1.Pod) bool {
		return func(p corev1.Pod) bool {
			w := app(p).State.Waiting
			return w != nil && w.Reason == reason && strings.Contains(w.Message, message)
		}
	}
	for name, tt := range map[string]struct {
		image stage.Image
		pod   func(*corev1.PodSpec)
		want  func(corev1.Pod) bool
	}{
		"a good image is ready": {
			want: rig.Ready,
		},
		"one that exits at once is started again and again": {
			image: stage.Image{Behave: stage.Exit(3)},
			want: func(p corev1.Pod) bool {
				c := app(p)
				return waits("CrashLoopBackOff", "back-off")(p) && c.RestartCount > 1 && c.LastTerminationState.Terminated.ExitCode == 3 && p.Status.Phase == corev1.PodRunning
			},
		},
		"one that exits later was ready before": {
			image: stage.Image{Behave: stage.Behaviour{ExitAfter: 500 * time.Millisecond}},
			want: func(p corev1.Pod) bool {
				return app(p).RestartCount > 0 && rig.Ready(p)
			},
		},
		"one that never listens runs and is not ready": {
			image: stage.Image{Behave: stage.Behaviour{Hang: true}},
			want: func(p corev1.Pod) bool {
				return app(p).State.Running != nil && !rig.Ready(p) && p.Status.Phase == corev1.PodRunning
			},
		},
		"one that listens late is ready late": {
			image: stage.Image{Behave: stage.Behaviour{ListenAfter: time.Second}},
			want: func(p corev1.Pod) bool {
				if !rig.Ready(p) {
					return false
				}
				for _, c := range p.Status.Conditions {
					if c.Type == corev1.PodReady {
						return c.LastTransitionTime.Sub(app(p).State.Running.StartedAt.Time) >= time.Second
					}
				}
				return false
			},
		},
		"one that fails its liveness probe is started again": {
			image: stage.Image{Behave: stage.Behaviour{UnhealthyAfter: time.Second}},
			pod: func(p *corev1.PodSpec) {
				p.Containers[0].LivenessProbe = p.Containers[0].ReadinessProbe
			},
			want: func(p corev1.Pod) bool {
				return app(p).RestartCount > 0
			},
		},
		"one that eats its memory is killed": {
			image: stage.Image{Behave: stage.Behaviour{EatMemory: true}},
			pod: func(p *corev1.PodSpec) {
				p.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
			},
			want: func(p corev1.Pod) bool {
				l := app(p).LastTerminationState.Terminated
				return l != nil && l.Reason == "OOMKilled" && l.ExitCode == 137
			},
		},
		"one that is not there cannot be pulled": {
			pod:  func(p *corev1.PodSpec) { p.Containers[0].Image += "-missing" },
			want: waits("ImagePullBackOff", "-missing: not found"),
		},
		"a registry that is away is another matter": {
			pod:  func(p *corev1.PodSpec) { p.Containers[0].Image = "127.0.0.1:1/web:1" },
			want: waits("ErrImagePull", "connection refused"),
		},
		"one for another platform cannot be pulled": {
			image: stage.Image{Platform: stage.Foreign()},
			want:  waits("ImagePullBackOff", "no match for platform in manifest"),
		},
		"one without the entrypoint cannot be started": {
			image: stage.Image{Entrypoint: []string{"/nope"}},
			want:  waits("RunContainerError", `exec: "/nope": stat /nope: no such file or directory`),
		},
		"one that runs as root is refused where none may": {
			pod: func(p *corev1.PodSpec) {
				p.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes}
			},
			want: waits("CreateContainerConfigError", "image will run as root"),
		},
		"a Secret that is not there": {
			pod: func(p *corev1.PodSpec) {
				p.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}}}}
			},
			want: waits("CreateContainerConfigError", `secret "db" not found`),
		},
		"a volume whose ConfigMap is not there": {
			pod: func(p *corev1.PodSpec) {
				p.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}}}}}
			},
			want: func(p corev1.Pod) bool {
				return p.Spec.NodeName != "" && waits("PodInitializing", "")(p) && p.Status.Phase == corev1.PodPending
			},
		},
		"a node that is not there": {
			pod: func(p *corev1.PodSpec) { p.NodeSelector = map[string]string{"disk": "ssd"} },
			want: func(p corev1.Pod) bool {
				for _, c := range p.Status.Conditions {
					if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
						return true
					}
				}
				return false
			},
		},
		"an init container runs before": {
			pod: func(p *corev1.PodSpec) {
				p.InitContainers = []corev1.Container{{Name: "init", Image: p.Containers[0].Image, Command: []string{"/app", "exit", "0"}}}
			},
			want: func(p corev1.Pod) bool {
				return rig.Ready(p) && p.Status.InitContainerStatuses[0].State.Terminated.Reason == "Completed"
			},
		},
		"an init container that fails keeps the others from starting": {
			pod: func(p *corev1.PodSpec) {
				p.InitContainers = []corev1.Container{{Name: "init", Image: p.Containers[0].Image, Command: []string{"/app", "exit", "1"}}}
			},
			want: func(p corev1.Pod) bool {
				return len(p.Status.InitContainerStatuses) > 0 && p.Status.InitContainerStatuses[0].RestartCount > 0 && waits("PodInitializing", "")(p) && p.Status.Phase == corev1.PodPending
			},
		},
		"a sidecar goes on running": {
			pod: func(p *corev1.PodSpec) {
				always := corev1.ContainerRestartPolicyAlways
				p.InitContainers = []corev1.Container{{Name: "side", Image: p.Containers[0].Image, RestartPolicy: &always}}
			},
			want: func(p corev1.Pod) bool {
				return rig.Ready(p) && p.Status.InitContainerStatuses[0].State.Running != nil && p.Status.InitContainerStatuses[0].Ready
			},
		},
		"the environment of the pod counts before that of the image": {
			pod: func(p *corev1.PodSpec) {
				p.Containers[0].Env = []corev1.EnvVar{{Name: "APP_EXIT_CODE", Value: "4"}}
			},
			want: func(p corev1.Pod) bool {
				l := app(p).LastTerminationState.Terminated
				return l != nil && l.ExitCode == 4
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := rig.Shared(t).NewSpace(t)
			tt.image.Version = "1"
			s.Push("web:1", tt.image)
			s.Deployment(rig.Spec{Pod: tt.pod})
			s.WaitPod("web", "as it should be", tt.want)
		})
	}
}

// TestImageIDs: a runtime shows the digest of what was asked for, of what is for the
// platform, or of its configuration.
func TestImageIDs(t *testing.T) {
	c := rig.Own(t)
	extra, err := node.Start(t.Context(), c.Config(),
		node.Spec{Name: "crio", Runtime: node.CRIO}, node.Spec{Name: "loaded", Runtime: node.Sideloaded})
	require.NoError(t, err)
	t.Cleanup(extra.Stop)
	s := c.NewSpace(t)
	index := s.Push("web:1", stage.Index{Images: []stage.Image{{Version: "1"}, {Version: "1", Platform: stage.Foreign()}}})
	own, err := stage.Image{Version: "1"}.Build(s.Registry.Host)
	require.NoError(t, err)
	manifest, err := own.Digest()
	require.NoError(t, err)
	config, err := own.ConfigName()
	require.NoError(t, err)
	foreign, err := stage.Image{Version: "1", Platform: stage.Foreign()}.Build(s.Registry.Host)
	require.NoError(t, err)
	other, err := foreign.Digest()
	require.NoError(t, err)
	require.NotEqual(t, manifest, other)

	for host, want := range map[string]string{
		"one":     s.Ref("web") + "@" + index,
		"foreign": s.Ref("web") + "@" + index,
		"crio":    s.Ref("web") + "@" + manifest.String(),
		"loaded":  config.String(),
	} {
		s.Deployment(rig.Spec{Name: host, Pod: func(p *corev1.PodSpec) {
			p.NodeSelector = map[string]string{corev1.LabelHostname: host}
			p.Tolerations = []corev1.Toleration{{Key: node.Foreign, Operator: corev1.TolerationOpExists}}
		}})
		pod := s.WaitPod(host, "ready", rig.Ready)
		require.Equal(t, want, app(pod).ImageID)
		require.Equal(t, s.Ref("web:1"), app(pod).Image)
	}
}

// TestPulls: an image at hand is not pulled again unless the policy says so, and a
// pull secret is used where there is one.
func TestPulls(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	first := s.Good("web:1", "1")
	s.Deployment(rig.Spec{Name: "keeps", Pod: func(p *corev1.PodSpec) { p.NodeName = "one" }})
	s.WaitDone("deployment/keeps")
	second := s.Good("web:1", "1 rebuilt")
	require.NotEqual(t, first, second)
	s.Kubectl("rollout", "restart", "deployment/keeps")
	s.WaitDone("deployment/keeps")
	require.Equal(t, []string{first}, s.Digests("keeps"))
	s.Deployment(rig.Spec{Name: "pulls", Pod: func(p *corev1.PodSpec) {
		p.NodeName, p.Containers[0].ImagePullPolicy = "one", corev1.PullAlways
	}})
	s.WaitDone("deployment/pulls")
	require.Equal(t, []string{second}, s.Digests("pulls"))

	private := stage.NewRegistry(t, stage.RegistryOptions{Username: "ci", Password: "secret"})
	private.Push("web:1", stage.Image{Version: "1"})
	s.Deployment(rig.Spec{Name: "private", Pod: func(p *corev1.PodSpec) {
		p.Containers[0].Image = private.Ref("web:1")
		p.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "regcred"}}
	}})
	s.WaitPod("private", "that cannot pull", func(p corev1.Pod) bool {
		w := app(p).State.Waiting
		return w != nil && w.Reason == "ImagePullBackOff" && strings.Contains(w.Message, "pull access denied")
	})
	s.Kubectl("create", "secret", "docker-registry", "regcred", "--docker-server="+private.Host, "--docker-username=ci", "--docker-password=secret")
	s.WaitDone("deployment/private")
}

// TestRollouts: the controllers see of the played nodes what they see of real ones.
func TestRollouts(t *testing.T) {
	t.Run("a good image becomes available, and a bad one trips the deadline", func(t *testing.T) {
		t.Parallel()
		s := rig.Shared(t).NewSpace(t)
		s.Good("web:1", "1")
		s.Deployment(rig.Spec{Replicas: 3})
		s.WaitDone("deployment/web")
		digest := s.Good("web:2", "2")
		s.Kubectl("set", "image", "deployment/web", "app="+s.Ref("web:2"))
		s.WaitDone("deployment/web")
		require.Equal(t, []string{digest}, s.Digests("web"))

		s.Crashing("web:3", "3")
		s.Kubectl("set", "image", "deployment/web", "app="+s.Ref("web:3"))
		stage.Eventually(t, rig.Patience, "the deadline", func() bool { return s.Get("deployment/web").Stuck })
		require.Equal(t, []string{digest}, s.Digests("web"), "the old pods serve")
		s.Kubectl("rollout", "undo", "deployment/web")
		s.WaitDone("deployment/web")
		require.Contains(t, s.Kubectl("logs", "deployment/web"), "app 2 starts")
	})
	t.Run("a stuck StatefulSet comes back when its broken pod is deleted", func(t *testing.T) {
		t.Parallel()
		s := rig.Shared(t).NewSpace(t)
		digest := s.Good("web:1", "1")
		s.StatefulSet(rig.Spec{Replicas: 2})
		s.WaitDone("statefulset/web")
		s.Crashing("web:2", "2")
		s.Kubectl("set", "image", "statefulset/web", "app="+s.Ref("web:2"))
		broken := s.WaitPod("web", "that crashes", func(p corev1.Pod) bool {
			return app(p).RestartCount > 1
		})
		require.Equal(t, "web-1", broken.Name)
		s.Kubectl("set", "image", "statefulset/web", "app="+s.Ref("web:1"))
		s.Kubectl("delete", "pod", "web-1")
		s.WaitDone("statefulset/web")
		require.Equal(t, []string{digest}, s.Digests("web"))
	})
	t.Run("a DaemonSet has a pod on each node", func(t *testing.T) {
		t.Parallel()
		s := rig.Shared(t).NewSpace(t)
		s.Good("web:1", "1")
		s.DaemonSet(rig.Spec{})
		s.WaitDone("daemonset/web")
		require.Len(t, s.Pods("web"), 2)
	})
	t.Run("Jobs end as their pods do", func(t *testing.T) {
		t.Parallel()
		s := rig.Shared(t).NewSpace(t)
		s.Good("web:1", "1")
		for code, condition := range map[int]batchv1.JobConditionType{0: batchv1.JobComplete, 2: batchv1.JobFailed} {
			name := fmt.Sprintf("job-%d", code)
			s.CronJob(rig.Spec{Name: name, Pod: func(p *corev1.PodSpec) {
				p.Containers[0].Args = []string{"exit", fmt.Sprint(code)}
			}})
			s.Kubectl("create", "job", name, "--from=cronjob/"+name)
			stage.Eventually(t, rig.Patience, string(condition), func() bool {
				j, err := s.Client.BatchV1().Jobs(s.Name).Get(t.Context(), name, metav1.GetOptions{})
				require.NoError(t, err)
				for _, c := range j.Status.Conditions {
					if c.Type == condition {
						return c.Status == corev1.ConditionTrue
					}
				}
				return false
			})
		}
	})
}

// TestServerRestarts: the API server may go and come back, and what runs goes on.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	c := rig.Own(t)
	s := c.NewSpace(t)
	s.Good("web:1", "1")
	s.Deployment(rig.Spec{})
	s.WaitDone("deployment/web")
	c.KillServer()
	require.NoError(t, c.StartServer(t.Context()))
	s.Good("web:2", "2")
	s.Kubectl("set", "image", "deployment/web", "app="+s.Ref("web:2"))
	s.WaitDone("deployment/web")
}

// TestProxy: what goes through a Proxy is counted, named and spoilt.
func TestProxy(t *testing.T) {
	t.Parallel()
	s := rig.Shared(t).NewSpace(t)
	s.Good("web:1", "1")
	s.Deployment(rig.Spec{})
	through := s.Through(rig.Hooks{})
	through.Kubectl(t, "annotate", "deployment/web", "a=b")
	changes := through.Proxy.Changes()
	require.Len(t, changes, 1)
	require.Equal(t, "patch deployments web", changes[0].String())
	require.Equal(t, s.Name, changes[0].Namespace)
	require.Equal(t, 200, changes[0].Status)

	through.Proxy.Hook(rig.Hooks{Before: func(c rig.Call) error {
		if c.Verb == "patch" {
			return &rig.Refusal{Code: 409}
		}
		return nil
	}})
	_, err := through.TryKubectl(t, "annotate", "--overwrite", "deployment/web", "a=c")
	require.ErrorContains(t, err, "Conflict")
	require.Equal(t, "b", s.Get("deployment/web").Annotations["a"])
}

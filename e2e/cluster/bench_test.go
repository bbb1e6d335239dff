package cluster

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/updaterd/updaterd/e2e/cluster/control"
	"github.com/updaterd/updaterd/e2e/cluster/node"
	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// The benchmark measures the built program in a cluster of 5,000 Deployments with
// 10,000 pods, beside what the same costs without it where that is something. It
// does not fail for being slow.
const (
	benchDeployments = 5000
	benchReplicas    = 2
	// benchLive are those of them whose pods are played, so that they can change.
	benchLive = 100
	// The others run the images of so many repositories.
	benchRepositories = 500
	benchParallel     = 20
	benchStable       = time.Second
	benchPasses       = 5
	benchRestores     = 5
	// still is the node of the pods that stay as they are, and its taint: no other gets there.
	still = "still"
)

// quiet keeps what updaterd logs out of the results.
type quiet struct{ *testing.B }

func (quiet) Logf(string, ...any) {}

func BenchmarkCluster(b *testing.B) {
	t := quiet{b}
	var found strings.Builder
	b.Cleanup(func() { fmt.Printf("\n%s\n", &found) })
	for b.Loop() {
		s := rig.Own(t, node.Spec{Name: still, Still: true, Taint: still}).NewSpace(t)
		fill(t, s)
		u := s.Updaterd(fmt.Sprintf("schedule: \"@every 5s\"\njitter: 0s\nwatch: all\nparallel: %d\ndefaults:\n  health: {stable: %s}\n", benchParallel, benchStable))
		p := u.Start()
		found.WriteString("A pass with nothing new\n" + benchNothingNew(t, s, u, p))
		found.WriteString("\nMany changes at once\n" + benchMany(t, s, p))
		found.WriteString("\nFrom a failing pod to the patch that puts the image back\n" + benchRestore(t, s, u, p))
		require.Zero(b, p.Stop(time.Minute))
	}
}

// fill makes the Deployments: some by their controllers, and the others as copies of
// what became of one of these, written into etcd.
func fill(t quiet, s *rig.Space) {
	t.Helper()
	for i := range benchLive {
		s.Good(live(i), "1")
		s.Deployment(rig.Spec{Name: fmt.Sprintf("live-%d", i), Image: live(i), Replicas: benchReplicas, Change: patient})
	}
	for i := range benchLive {
		waitDone(t, s, fmt.Sprintf("live-%d", i))
	}
	for i := range benchRepositories {
		s.Good(fmt.Sprintf("still-%d:1", i), "1")
	}
	var originals []metav1.Object
	read := func(kind, name string) {
		r, err := s.Record(t.Context(), "/registry/"+kind+"/"+s.Name+"/"+name)
		require.NoError(t, err)
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(r.Value, nil, nil)
		require.NoError(t, err)
		originals = append(originals, o.(metav1.Object))
	}
	read("deployments", "live-0")
	sets, err := s.Client.AppsV1().ReplicaSets(s.Name).List(t.Context(), metav1.ListOptions{LabelSelector: "app=live-0"})
	require.NoError(t, err)
	require.Len(t, sets.Items, 1)
	read("replicasets", sets.Items[0].Name)
	pods := s.Pods("live-0")
	require.Len(t, pods, benchReplicas)
	for _, p := range pods {
		read("pods", p.Name)
	}
	var records []control.Record
	for i := range benchDeployments - benchLive {
		records = append(records, copies(t, s, originals, fmt.Sprintf("still-%d", i), fmt.Sprintf("still-%d:1", i%benchRepositories))...)
	}
	// Controllers that saw a Deployment before what belongs to it would make that anew.
	s.KillControllers()
	require.NoError(t, s.Put(t.Context(), records))
	stage.Eventually(t, 5*time.Minute, "the API server to have seen all", func() bool {
		seen := metav1.ListOptions{ResourceVersion: "0"}
		d, err := s.Client.AppsV1().Deployments(s.Name).List(t.Context(), seen)
		require.NoError(t, err)
		p, err := s.Client.CoreV1().Pods(s.Name).List(t.Context(), seen)
		require.NoError(t, err)
		return len(d.Items) == benchDeployments && len(p.Items) == benchDeployments*benchReplicas
	})
	require.NoError(t, s.StartControllers(t.Context()))
}

// patient gives a Deployment the time that Kubernetes gives it by default: a busy
// machine is no bad image.
func patient(o metav1.Object) { *o.(*appsv1.Deployment).Spec.ProgressDeadlineSeconds = 600 }

// waitDone is rig.Space.WaitDone with the patience for a hundred at once.
func waitDone(t quiet, s *rig.Space, name string) {
	t.Helper()
	stage.Eventually(t, 5*time.Minute, name+" rolled out", func() bool { return s.Get("deployment/" + name).Done })
}

// live is the image of one whose pods are played.
func live(i int) string { return fmt.Sprintf("live-%d:1", i) }

// copies are of a Deployment and what belongs to it, each behind its owner, under
// another name and with another image.
func copies(t quiet, s *rig.Space, originals []metav1.Object, name, image string) []control.Record {
	t.Helper()
	was := originals[0].GetName()
	app := map[string]string{"app": name}
	uids := map[types.UID]types.UID{}
	template := func(meta *metav1.ObjectMeta, spec *corev1.PodSpec) {
		meta.Labels["app"] = name
		spec.Containers[0].Image = s.Ref(image)
	}
	var records []control.Record
	for _, original := range originals {
		o := original.(runtime.Object).DeepCopyObject().(metav1.Object)
		o.SetName(name + strings.TrimPrefix(original.GetName(), was))
		uids[original.GetUID()] = uuid.NewUUID()
		o.SetUID(uids[original.GetUID()])
		owners := o.GetOwnerReferences()
		for i, owner := range owners {
			owners[i].Name, owners[i].UID = name+strings.TrimPrefix(owner.Name, was), uids[owner.UID]
		}
		o.SetOwnerReferences(owners)
		var resource string
		var kind schema.GroupVersionKind
		switch o := o.(type) {
		case *appsv1.Deployment:
			resource, kind = "deployments", appsv1.SchemeGroupVersion.WithKind("Deployment")
			o.Spec.Selector.MatchLabels = app
			template(&o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec)
		case *appsv1.ReplicaSet:
			resource, kind = "replicasets", appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
			o.Labels["app"], o.Spec.Selector.MatchLabels["app"] = name, name
			template(&o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec)
		case *corev1.Pod:
			resource, kind = "pods", corev1.SchemeGroupVersion.WithKind("Pod")
			template(&o.ObjectMeta, &o.Spec)
			o.Spec.NodeName = still
			ran := &o.Status.ContainerStatuses[0]
			repository, _, _ := strings.Cut(s.Ref(image), ":1")
			_, digest, _ := strings.Cut(ran.ImageID, "@")
			ran.Image, ran.ImageID = s.Ref(image), repository+"@"+digest
		}
		o.(runtime.Object).GetObjectKind().SetGroupVersionKind(kind)
		var value bytes.Buffer
		require.NoError(t, protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o.(runtime.Object), &value))
		records = append(records, control.Record{Key: []byte("/registry/" + resource + "/" + s.Name + "/" + o.GetName()), Value: value.Bytes()})
	}
	return records
}

var passOver = regexp.MustCompile(`pass over.* workloads=(\d+) .*took=(\S+)`)

// afterPass waits for the end of the nth pass and returns what it took.
func afterPass(t quiet, p *stage.Daemon, n int) time.Duration {
	t.Helper()
	stage.Eventually(t, 10*time.Minute, fmt.Sprintf("the end of pass %d", n), func() bool {
		return strings.Count(p.Logs(), "pass over") >= n
	})
	m := passOver.FindAllStringSubmatch(p.Logs(), -1)[n-1]
	require.Equal(t, strconv.Itoa(benchDeployments), m[1], "or this measures something else")
	took, err := time.ParseDuration(m[2])
	require.NoError(t, err)
	return took
}

func benchNothingNew(t quiet, s *rig.Space, u *rig.Updaterd, p *stage.Daemon) string {
	t.Helper()
	var first, whole, beyond []time.Duration
	first = append(first, afterPass(t, p, 1))
	asked := 0
	s.Registry.ResetRequests()
	u.Way.Forget()
	began := time.Now()
	for n := range benchPasses {
		took := afterPass(t, p, n+2)
		requests := s.Registry.Requests("", "")
		s.Registry.ResetRequests()
		asked = len(requests)
		from, to := requests[0].At, requests[0].At
		for _, r := range requests {
			if r.At.Before(from) {
				from = r.At
			}
			if r.At.After(to) {
				to = r.At
			}
		}
		whole, beyond = append(whole, took), append(beyond, took-to.Sub(from))
	}
	counted, leases, others := time.Since(began), 0, 0
	for _, c := range u.Way.Calls() {
		switch {
		case c.Resource == "leases":
			leases++
		case c.Verb != "watch":
			others++
		}
	}
	t.ReportMetric(float64(median(beyond).Milliseconds()), "ms/pass-beyond-registry")
	t.ReportMetric(float64(others)/benchPasses, "api-requests/pass")
	t.ReportMetric(float64(memory(p, "VmHWM"))/1e6, "MB-peak")
	return table(
		"first pass, with what is read at the start", spread(first),
		"later passes", spread(whole),
		"of these, beyond the registry's time", spread(beyond),
		"requests to the registry in each", strconv.Itoa(asked),
		fmt.Sprintf("requests to the API server in %d passes, %s", benchPasses, counted.Round(time.Second)), fmt.Sprintf("%d renewals of the Lease, %d others", leases, others),
		"memory: peak", mb(memory(p, "VmHWM")),
		"memory: resident afterwards", mb(memory(p, "VmRSS")),
		"memory: of that, its own", mb(memory(p, "RssAnon")),
	)
}

// benchMany has an update for all that can change, and then makes the same rollouts
// without updaterd.
func benchMany(t quiet, s *rig.Space, p *stage.Daemon) string {
	t.Helper()
	for i := range benchLive {
		s.Good(fmt.Sprintf("live-%d:2", i), "2")
		s.Good(fmt.Sprintf("live-%d:3", i), "3")
	}
	// Behind the end of a pass, so that the next one sees all of them.
	afterPass(t, p, strings.Count(p.Logs(), "pass over")+1)
	for i := range benchLive {
		s.Registry.Tag(fmt.Sprintf("live-%d:2", i), "1")
	}
	moves := func(what string) []time.Time {
		var at []time.Time
		for line := range strings.Lines(p.Logs()) {
			if clock, ok := strings.CutPrefix(line, "time="); ok && strings.Contains(line, what) {
				clock, _, _ = strings.Cut(clock, " ")
				when, err := time.Parse(time.RFC3339, clock)
				require.NoError(t, err)
				at = append(at, when)
			}
		}
		return at
	}
	stage.Eventually(t, 10*time.Minute, "all changes to be over", func() bool { return strings.Count(p.Logs(), "change is over") >= benchLive })
	require.Len(t, moves("phase=committed"), benchLive, "or this measures something else")
	ours := moves("phase=committed")[benchLive-1].Sub(moves("phase=preparing")[0])

	var g errgroup.Group
	g.SetLimit(benchParallel)
	began := time.Now()
	for i := range benchLive {
		g.Go(func() error {
			name := fmt.Sprintf("live-%d", i)
			patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"app","image":%q}]}}}}`, s.Ref(name+":3"))
			_, err := s.Client.AppsV1().Deployments(s.Name).Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
			if err != nil {
				return err
			}
			waitDone(t, s, name)
			time.Sleep(benchStable) // What is to be judged is watched for that long.
			return nil
		})
	}
	require.NoError(t, g.Wait())
	bare := time.Since(began)
	t.ReportMetric(ours.Seconds(), "s/100-changes")
	return table(
		fmt.Sprintf("%d Deployments of %d pods, %d at once, each healthy for %s", benchLive, benchReplicas, benchParallel, benchStable), ours.Round(10*time.Millisecond).String(),
		"floor: the same by bare patches, waited for", bare.Round(10*time.Millisecond).String(),
		"memory: peak so far", mb(memory(p, "VmHWM")),
	)
}

// benchRestore has one Deployment fail, again and again.
func benchRestore(t quiet, s *rig.Space, u *rig.Updaterd, p *stage.Daemon) string {
	t.Helper()
	s.Good("victim:1", "good")
	s.Deployment(rig.Spec{Name: "victim", Image: "victim:1", Change: patient})
	waitDone(t, s, "victim")
	var ended, sure []time.Duration
	for n := range benchRestores {
		// The patches to it, as they come by: one to the bad image, one back.
		patches := make(chan time.Time, 2)
		u.Way.Hook(rig.Hooks{Before: func(c rig.Call) error {
			if c.Verb == "patch" && c.Resource == "deployments" && c.Name == "victim" && !c.Dry() {
				select {
				case patches <- c.At:
				default:
				}
			}
			return nil
		}})
		watch, err := s.Client.CoreV1().Pods(s.Name).Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=victim"})
		require.NoError(t, err)
		good := s.Get("deployment/victim").Generation
		s.Push("victim:1", stage.Image{Version: fmt.Sprintf("bad %d", n), Behave: stage.Exit(3)})
		var failed, certain time.Time
		for e := range watch.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok || len(p.Status.ContainerStatuses) == 0 {
				continue
			}
			c := p.Status.ContainerStatuses[0]
			if failed.IsZero() && (c.State.Terminated != nil || c.LastTerminationState.Terminated != nil) && !rig.Ready(*p) && p.DeletionTimestamp == nil {
				failed = time.Now()
			}
			if c.RestartCount >= 2 {
				certain = time.Now()
				break
			}
		}
		watch.Stop()
		require.False(t, certain.IsZero(), "the watch lasted")
		for i := range 2 {
			select {
			case at := <-patches:
				if i == 1 {
					ended, sure = append(ended, at.Sub(failed)), append(sure, at.Sub(certain))
				}
			case <-time.After(time.Minute):
				t.Fatalf("no patch %d", i+1)
			}
		}
		stage.Eventually(t, time.Minute, "the good image to be back", func() bool {
			w := s.Get("deployment/victim")
			return w.Generation == good+2 && w.Done
		})
		stage.Eventually(t, time.Minute, "the change to be over", func() bool { return strings.Count(p.Logs(), "phase=restored") > n })
	}
	t.ReportMetric(float64(median(sure).Milliseconds()), "ms/to-restore")
	return table(
		fmt.Sprintf("since the container ended first, %d times", benchRestores), spread(ended),
		"since its second restart, which is what makes it certain", spread(sure),
	)
}

func memory(p *stage.Daemon, field string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
	if err != nil {
		return 0 // It has gone.
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		return 0
	}
	return n * 1024
}

func median(d []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(d))[len(d)/2]
}

// spread is the median, with the least and the most.
func spread(d []time.Duration) string {
	if len(d) == 1 {
		return fmt.Sprintf("%d ms", d[0].Milliseconds())
	}
	return fmt.Sprintf("%d ms (%d to %d)", median(d).Milliseconds(), slices.Min(d).Milliseconds(), slices.Max(d).Milliseconds())
}

func mb(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/1e6) }

// table is of pairs: what, and how much.
func table(cells ...string) string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for i := 0; i < len(cells); i += 2 {
		fmt.Fprintf(t, "  %s\t%s\n", cells[i], cells[i+1])
	}
	t.Flush() //nolint:errcheck // A strings.Builder takes all.
	return b.String()
}

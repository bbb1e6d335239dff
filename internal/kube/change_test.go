package kube

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

func nobody(string) (updater.Settings, error) {
	return updater.Settings{}, errors.New("nobody moves along")
}

func silent(updater.Progress) {}

// apply plans a change and carries it to where it is judged.
func apply(t *testing.T, c *Cluster, ch updater.Change) updater.Change {
	t.Helper()
	require.NoError(t, c.Plan(t.Context(), &ch, nobody))
	require.NoError(t, c.Prepare(t.Context(), ch, silent))
	ch.Phase, ch.Disturbed = updater.Applying, true
	a, err := c.Apply(t.Context(), ch)
	require.NoError(t, err)
	ch.Mark, ch.Phase = a.Mark, updater.Judging
	return ch
}

func goBack(t *testing.T, c *Cluster, ch updater.Change) (updater.Restoration, error) {
	t.Helper()
	ch.Phase = updater.Restoring
	return c.Restore(t.Context(), ch)
}

// writes are the requests that changed something since a moment.
func (s *server) writes(since int) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests[since:] {
		if !strings.HasPrefix(r, http.MethodGet) && !strings.Contains(r, "dryRun") && !strings.Contains(r, "accessreviews") {
			all = append(all, r)
		}
	}
	return all
}

// images are those of an object's containers, by name.
func (s *server) images(resource, name string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]string{}
	list, _ := dig(s.objects[resource+"/shop/"+name], "spec", "template", "spec")["containers"].([]any)
	for _, c := range list {
		all[c.(map[string]any)["name"].(string)], _ = c.(map[string]any)["image"].(string)
	}
	return all
}

// set writes the image of a container as a person would.
func (s *server) set(t *testing.T, name, container, image string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := toMap(s.objects["deployments/shop/"+name])
	list := dig(m, "spec", "template", "spec")["containers"].([]any)
	for _, c := range list {
		if c.(map[string]any)["name"] == container {
			c.(map[string]any)["image"] = image
		}
	}
	s.store("deployments/shop/"+name, m, "kubectl-set")
	s.control()
}

func (s *server) scale(name string, replicas int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := toMap(s.objects["deployments/shop/"+name])
	dig(m, "spec")["replicas"] = replicas
	s.store("deployments/shop/"+name, m, "")
	s.control()
}

const (
	app1, app2   = "reg.example/app:1", "reg.example/app:2"
	side1, side2 = "reg.example/side:1", "reg.example/side:2"
)

func web(t *testing.T) (*server, *Cluster) {
	s := newServer(t)
	s.put("deployments", deployment("web", 3, "app="+app1, "side="+side1))
	return s, s.cluster(t)
}

// follow has the watches run until the test ends.
func follow(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-ended) })
}

func TestASteadyPassMakesNoRequests(t *testing.T) {
	s, c := web(t)
	follow(t, c)
	require.Eventually(t, c.Synced, 10*time.Second, 10*time.Millisecond)

	s.mu.Lock()
	began := len(s.requests)
	s.mu.Unlock()
	all, err := c.Workloads(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "prod/shop/deployment/web/app", all[0].ID)
	require.Equal(t, []string{fakeDigest(app1)}, all[0].Runs.Digests)
	require.Equal(t, updater.WriteDigest, all[0].Write)
	s.mu.Lock()
	require.Len(t, s.requests, began)
	s.mu.Unlock()

	s.set(t, "web", "app", app2)
	require.Eventually(t, func() bool {
		all, err := c.Workloads(t.Context())
		return err == nil && all[0].Image == app2 && len(all[0].Runs.Digests) == 1 && all[0].Runs.Digests[0] == fakeDigest(app2)
	}, 10*time.Second, 10*time.Millisecond)
	s.mu.Lock()
	require.Len(t, s.requests, began, "the watch told it")
	s.mu.Unlock()
}

func TestTheFirstLookReadsWhatTheWatchesRead(t *testing.T) {
	s, c := web(t)
	s.denied["list cronjobs"] = true // nobody waits for a watch that is refused
	follow(t, c)
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.watched != nil
	}, 10*time.Second, time.Millisecond)
	soon, cancel := context.WithTimeout(t.Context(), lookLimit/2)
	defer cancel()
	all, err := c.Workloads(soon)
	require.NoError(t, err)
	require.Len(t, all, 2)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if !strings.Contains(r, "cronjobs") {
			require.Contains(t, r, "watch=true", "nothing is listed besides")
		}
	}
}

func TestAWatchedRolloutIsJudgedWithoutRequests(t *testing.T) {
	s, c := web(t)
	follow(t, c)
	require.Eventually(t, c.Synced, 10*time.Second, 10*time.Millisecond)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2))
	require.Eventually(t, func() bool {
		s.mu.Lock()
		began := len(s.requests)
		s.mu.Unlock()
		o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
		s.mu.Lock()
		defer s.mu.Unlock()
		return err == nil && o.Pending == "" && o.Fault == "" && len(s.requests) == began
	}, 10*time.Second, 10*time.Millisecond)
}

// TestAnotherProcessAsksForThePodsOfTheChange alone, of a namespace that may have
// thousands.
func TestAnotherProcessAsksForThePodsOfTheChange(t *testing.T) {
	s, c := web(t)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2))
	s.mu.Lock()
	s.requests = nil
	s.mu.Unlock()
	_, err := s.cluster(t).Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	s.mu.Lock()
	asked := slices.Clone(s.requests)
	s.mu.Unlock()
	require.Contains(t, asked, "GET /api/v1/namespaces/shop/pods?labelSelector=app%3Dweb")
}

func TestAWatchThatHearsNothingIsNoVerdict(t *testing.T) {
	s, c := web(t)
	follow(t, c)
	require.Eventually(t, c.Synced, 10*time.Second, 10*time.Millisecond)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2))
	s.mu.Lock()
	s.denied["get deployments"] = true // the watches go on as if all were well
	s.mu.Unlock()
	c.mu.Lock()
	long := c.seen[ch.ID]
	long.at = long.at.Add(-liveEvery)
	c.seen[ch.ID] = long
	c.mu.Unlock()
	_, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
	require.ErrorContains(t, err, "reading shop/deployment/web")
}

func TestAllImagesOfATemplateAreOnePatch(t *testing.T) {
	s, c := web(t)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2, "deployment/web/side "+side1+" "+side2))
	require.Equal(t, []string{"prod/shop/deployment/web"}, ch.Touches)
	require.Len(t, s.writes(0), 1)
	require.Equal(t, map[string]string{"app": app2 + "@" + fakeDigest(app2), "side": side2 + "@" + fakeDigest(side2)}, s.images("deployments", "web"))
	one := wish(t, "deployment/web/side "+side1+" "+side2)
	s.put("deployments", deployment("other", 1, "app="+app1, "side="+side1))
	one.Parts[0].Workload = "prod/shop/deployment/other/side"
	require.NoError(t, c.Plan(t.Context(), &one, nobody))
	require.Equal(t, []string{"prod/shop/deployment/other/app"}, one.Related)
}

func TestAConflictIsReadAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(t *testing.T, s *server)
		wrong     error
	}{
		"scaled by others":       {meanwhile: func(_ *testing.T, s *server) { s.scale("web", 5) }},
		"another image":          {meanwhile: func(t *testing.T, s *server) { s.set(t, "web", "app", "reg.example/app:9") }, wrong: updater.ErrSuperseded},
		"a neighbour's image":    {meanwhile: func(t *testing.T, s *server) { s.set(t, "web", "side", side2) }},
		"the very image already": {meanwhile: func(t *testing.T, s *server) { s.set(t, "web", "app", app2+"@"+fakeDigest(app2)) }},
		"removed":                {meanwhile: func(_ *testing.T, s *server) { s.remove("deployments", "web") }, wrong: updater.ErrSuperseded},
		"another by the same name": {meanwhile: func(_ *testing.T, s *server) {
			s.remove("deployments", "web")
			s.put("deployments", deployment("web", 3, "app="+app1, "side="+side1))
		}, wrong: updater.ErrSuperseded},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := web(t)
			ch := wish(t, "deployment/web/app "+app1+" "+app2)
			require.NoError(t, c.Plan(t.Context(), &ch, nobody))
			tt.meanwhile(t, s)
			theirs := s.images("deployments", "web")
			ch.Phase, ch.Disturbed = updater.Applying, true
			_, err := c.Apply(t.Context(), ch)
			if tt.wrong != nil {
				require.ErrorIs(t, err, tt.wrong)
				require.Equal(t, theirs, s.images("deployments", "web"))
				return
			}
			require.NoError(t, err)
			require.Equal(t, app2+"@"+fakeDigest(app2), s.images("deployments", "web")["app"])
		})
	}
}

func TestWhatAdmissionMakesOfAnImageIsOurs(t *testing.T) {
	s, c := web(t)
	s.admit = func(object string) string {
		return strings.ReplaceAll(object, "reg.example/app:2@", "mirror.example/app:2@")
	}
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	ch = apply(t, c, ch)
	crashed := ch
	crashed.Mark = nil
	for _, ch := range []updater.Change{ch, crashed} {
		a, err := s.cluster(t).Apply(t.Context(), ch) // again, after a crash
		require.NoError(t, err)
		ch.Mark = a.Mark
		o, err := s.cluster(t).Observe(t.Context(), ch, 0, updater.NewSide)
		require.NoError(t, err)
		require.Empty(t, o.MovedOff+o.Pending+o.Fault)
	}
	_, err := goBack(t, s.cluster(t), crashed)
	require.NoError(t, err)
	require.Equal(t, app1, s.images("deployments", "web")["app"])
}

func TestALostLeadWritesNothingMore(t *testing.T) {
	s, c := web(t)
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	require.NoError(t, c.Plan(t.Context(), &ch, nobody))
	s.scale("web", 5) // so that the first patch meets a conflict
	ctx, lose := context.WithCancel(t.Context())
	s.before = func(string, string) { lose() }
	_, err := c.Apply(ctx, ch)
	require.Error(t, err)
	require.Equal(t, app1, s.images("deployments", "web")["app"])
}

func TestALateWriteOfAnOldLeaderRepeatsNothing(t *testing.T) {
	s, c := web(t)
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	require.NoError(t, c.Plan(t.Context(), &ch, nobody))
	ch.Phase, ch.Disturbed = updater.Applying, true
	taken := false
	s.before = func(string, string) {
		if taken {
			return
		}
		taken = true // what follows is done by another leader, while the patch is on its way
		other := s.cluster(t)
		a, err := other.Apply(t.Context(), ch)
		require.NoError(t, err)
		back := ch
		back.Mark = a.Mark
		_, err = goBack(t, other, back)
		require.NoError(t, err)
	}
	_, err := c.Apply(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.Equal(t, app1, s.images("deployments", "web")["app"])
}

// TestAPatchOnItsWayComesTooLate: its answer was never heard, so it is gone back from
// a workload that still has its old image, before the API server has the patch.
func TestAPatchOnItsWayComesTooLate(t *testing.T) {
	for name, tt := range map[string]struct {
		fail int // the write of going back that fails the first time
		done bool
	}{
		"all goes well":                       {},
		"the first write is not done":         {fail: 1},
		"the first write is done, and broken": {fail: 1, done: true},
		"the last write is not done":          {fail: 2},
		"the last write is done, and broken":  {fail: 2, done: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := web(t)
			ch := wish(t, "deployment/web/app "+app1+" "+app2)
			require.NoError(t, c.Plan(t.Context(), &ch, nobody))
			ch.Phase, ch.Disturbed = updater.Applying, true
			was := s.look("deployments", "web")
			taken := false
			s.before = func(string, string) {
				if taken {
					return
				}
				taken = true
				s.mu.Lock()
				s.fail, s.done = tt.fail, tt.done
				s.mu.Unlock()
				_, err := goBack(t, s.cluster(t), ch)
				if tt.fail > 0 {
					require.Error(t, err)
					_, err = goBack(t, s.cluster(t), ch)
				}
				require.NoError(t, err)
			}
			_, err := c.Apply(t.Context(), ch)
			require.ErrorIs(t, err, updater.ErrSuperseded)
			require.Equal(t, was, s.look("deployments", "web"), "image, labels and all")
		})
	}
}

func TestGoingBackPinsATagThatHasMoved(t *testing.T) {
	s, c := web(t)
	old := fakeDigest("old")
	ch := wish(t, "deployment/web/app "+app1+" "+app1) // the same tag, rebuilt
	ch.Parts[0].From.Digest = old
	ch = apply(t, c, ch)
	r, err := goBack(t, c, ch)
	require.NoError(t, err)
	require.Equal(t, app1+"@"+old, s.images("deployments", "web")["app"])
	require.Equal(t, map[string]string{"prod/shop/deployment/web/app": app1 + "@" + old}, r.Refs)

	again, err := goBack(t, c, ch)
	require.NoError(t, err)
	require.Equal(t, r, again)
}

func TestWhatStandsAsBeforeIsBack(t *testing.T) {
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	org := origin{Before: map[string]string{"app": app1}}
	up := corev1.ContainerStatus{Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	pods := []*pod{
		podWith("as-before", app1, up), podWith("pinned", app1+"@"+fakeDigest(app1), up),
		podWith("new", app2+"@"+fakeDigest(app2), up), podWith("moved", app1+"@"+fakeDigest("moved"), up),
		podWith("not-ready", app1, corev1.ContainerStatus{}),
	}
	require.Equal(t, 2, standing(pods, ch, org))
}

// TestAWayBackThatLeadsNowhereIsNotEntered: a node that has one image from two
// repositories tells the digest of either.
func TestAWayBackThatLeadsNowhereIsNotEntered(t *testing.T) {
	const elsewhere = "mirror.example/app"
	for name, tt := range map[string]struct {
		from   string
		there  bool
		err    error
		asked  int
		reason updater.Reason
		says   string
	}{
		"its own repository's":                    {},
		"another's, which its own has as well":    {from: elsewhere, there: true, asked: 1},
		"another's, which its own does not have":  {from: elsewhere, asked: 1, reason: updater.Unsupported, says: "could not be put back"},
		"another's, and the registry cannot tell": {from: elsewhere, err: errors.New("connection refused"), asked: 1, reason: updater.RegistryUnavailable, says: "cannot be asked"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			s.from = tt.from
			s.put("deployments", deployment("web", 3, "app="+app1))
			c := s.cluster(t)
			asked := 0
			c.exists = func(_ context.Context, ref string, by updater.Logins) (bool, error) {
				require.Equal(t, app1+"@"+fakeDigest(app1), ref)
				require.NotNil(t, by)
				asked++
				return tt.there, tt.err
			}
			ch := wish(t, "deployment/web/app "+app1+" "+app2)
			err := c.Plan(t.Context(), &ch, nobody)
			require.Equal(t, tt.asked, asked)
			if tt.reason == "" {
				require.NoError(t, err)
				return
			}
			refused(t, err, tt.reason, tt.says)
		})
	}
}

func TestGoingBackAsksWhetherATagHasMoved(t *testing.T) {
	for moved, want := range map[string]string{fakeDigest(app1): app1, fakeDigest("new"): app1 + "@" + fakeDigest(app1)} {
		s, c := web(t)
		c.moved = func(_ context.Context, ref string, _ updater.Logins) (string, error) {
			require.Equal(t, app1, ref)
			return moved, nil
		}
		ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2))
		_, err := goBack(t, c, ch)
		require.NoError(t, err)
		require.Equal(t, want, s.images("deployments", "web")["app"])
	}
}

func TestTheirsWinsOnlyForWhatWasWritten(t *testing.T) {
	s, c := web(t)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2, "deployment/web/side "+side1+" "+side2))
	s.scale("web", 4)
	o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.Empty(t, o.Fault)
	s.set(t, "web", "app", "reg.example/app:9")
	o, err = s.cluster(t).Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.Contains(t, o.MovedOff, "somebody moved it to reg.example/app:9")
	o, err = s.cluster(t).Observe(t.Context(), ch, 1, updater.NewSide)
	require.NoError(t, err)
	require.Empty(t, o.MovedOff)
	_, err = goBack(t, c, ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.Equal(t, map[string]string{"app": "reg.example/app:9", "side": side1}, s.images("deployments", "web"))
}

func TestAStuckStatefulSetIsFreed(t *testing.T) {
	s := newServer(t)
	s.put("statefulsets", statefulSet("db", 3, "app="+app1))
	c := s.cluster(t)
	ch := apply(t, c, wish(t, "statefulset/db/app "+app1+" reg.example/app:2-crash"))
	o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.Equal(t, updater.Bad, o.Blame, o.Fault)
	began := len(s.requests)
	_, err = goBack(t, c, ch)
	require.NoError(t, err)
	writes := s.writes(began)
	require.Len(t, writes, 2)
	require.Contains(t, writes[0], "PATCH")
	require.Contains(t, writes[1], "DELETE /api/v1/namespaces/shop/pods/db-")
	o, err = c.Observe(t.Context(), ch, 0, updater.OldSide)
	require.NoError(t, err)
	require.Empty(t, o.Pending)
	require.Empty(t, o.Fault)
}

func TestAStatefulSetThatCouldNotBeFreedIsRefused(t *testing.T) {
	s := newServer(t)
	s.denied["delete pods"] = true
	s.put("statefulsets", statefulSet("db", 3, "app="+app1))
	parallel := statefulSet("cache", 3, "app="+app1)
	parallel.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	s.put("statefulsets", parallel)
	c := s.cluster(t)
	ch := wish(t, "statefulset/db/app "+app1+" "+app2)
	refused(t, c.Plan(t.Context(), &ch, nobody), updater.Unsupported, "overlay delete")
	ch = wish(t, "statefulset/cache/app "+app1+" "+app2)
	require.NoError(t, c.Plan(t.Context(), &ch, nobody), "its pods are made side by side, so none is in the way")
}

func refused(t *testing.T, err error, reason updater.Reason, says string) {
	t.Helper()
	var r *updater.Refusal
	require.ErrorAs(t, err, &r)
	require.Equal(t, reason, r.Reason)
	require.Contains(t, r.Detail, says)
}

func TestWhatAClusterCannotHonourIsRefused(t *testing.T) {
	_, c := web(t)
	for key, s := range map[string]updater.Settings{
		"health.probe":    {Health: updater.Health{Probe: "tcp://:1"}},
		"depends-on":      {DependsOn: []string{"db"}},
		"pre-update":      {PreUpdate: updater.Hook{Command: []string{"a"}}},
		"post-update":     {PostUpdate: updater.Hook{Command: []string{"a"}}},
		"stop-timeout":    {StopTimeout: time.Second},
		"start-first":     {StartFirst: true},
		"include-stopped": {IncludeStopped: true},
		"no-rollback":     {NoRollback: true},
	} {
		ch := wish(t, "deployment/web/app "+app1+" "+app2)
		ch.Parts[0].Settings = s
		refused(t, c.Plan(t.Context(), &ch, nobody), updater.InvalidSettings, key+" cannot be honoured in a cluster")
	}
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	ch.Parts[0].Settings.IncludeStopped = true
	ch.Parts[0].Asked = &updater.Ask{Back: ch.Parts[0].To}
	require.NoError(t, c.Plan(t.Context(), &ch, nobody), "a person's way back is made with it")
	ch = wish(t, "deployment/web/app "+app1+" "+app2)
	ch.Parts[0].To.Ref = app1
	refused(t, c.Plan(t.Context(), &ch, nobody), updater.InvalidSettings, "write: digest")
	ch = wish(t, "deployment/web/app reg.example/app:0 "+app2)
	refused(t, c.Plan(t.Context(), &ch, nobody), updater.InProgress, "somebody changed it")
	ch = wish(t, "deployment/gone/app "+app1+" "+app2)
	require.ErrorIs(t, c.Plan(t.Context(), &ch, nobody), updater.ErrSuperseded)
}

func TestInitContainersAreAskedFor(t *testing.T) {
	s := newServer(t)
	d := deployment("web", 1, "app="+app1)
	always := corev1.ContainerRestartPolicyAlways
	d.Spec.Template.Spec.InitContainers = []corev1.Container{{Name: "setup", Image: side1}, {Name: "proxy", Image: side1, RestartPolicy: &always}}
	s.put("deployments", d)
	c := s.cluster(t)
	ch := wish(t, "deployment/web/setup "+side1+" "+side2)
	refused(t, c.Plan(t.Context(), &ch, nobody), updater.Unsupported, "init-containers: true")
	ch.Parts[0].Settings.InitContainers = true
	require.NoError(t, c.Plan(t.Context(), &ch, nobody))
	ch = wish(t, "deployment/web/proxy "+side1+" "+side2)
	require.NoError(t, c.Plan(t.Context(), &ch, nobody), "a sidecar is like any container")
	apply(t, c, ch)
	require.Contains(t, s.look("deployments", "web"), `"image":"`+side2+"@"+fakeDigest(side2)+`","name":"proxy"`)
}

func TestNothingIsJudgedWhereNothingIsWanted(t *testing.T) {
	s, c := web(t)
	s.scale("web", 0)
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	ch = apply(t, c, ch)
	require.False(t, ch.Parts[0].Healthy)
	o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.Contains(t, o.Waits, "scaled to 0")
	o, err = c.Observe(t.Context(), ch, 0, updater.OldSide)
	require.NoError(t, err)
	require.Empty(t, o.Waits, "going back waits for nothing")
	s.scale("web", 2)
	o, err = s.cluster(t).Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.Empty(t, o.Waits)
	require.Empty(t, o.Pending)
}

func TestAPullThatFailsIsTheSurroundings(t *testing.T) {
	_, c := web(t)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" reg.example/app:2-unreachable"))
	o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.NotEmpty(t, o.Pending)
	require.Equal(t, updater.Unclear, o.Blame)
	require.True(t, o.Running, "time is to run out first")
	require.Contains(t, o.Fault, "connection refused")
}

func TestAReadinessProbeThatFailsSpeaksAgainstTheImage(t *testing.T) {
	_, c := web(t)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" reg.example/app:2-notready", "deployment/web/side "+side1+" "+side2))
	o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
	require.NoError(t, err)
	require.Contains(t, o.Pending, "runs and is not ready")
	require.Empty(t, o.Fault)
	o, err = c.Observe(t.Context(), ch, 1, updater.NewSide)
	require.NoError(t, err)
	require.Equal(t, updater.Unclear, o.Blame, "and not against another of the pod")
}

func cron(name, image string) *batchv1.CronJob {
	return &batchv1.CronJob{ObjectMeta: named(name), Spec: batchv1.CronJobSpec{Schedule: "0 3 * * *",
		JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template("app=" + image)}}}}
}

func TestACronJobHasNothingToJudge(t *testing.T) {
	s := newServer(t)
	s.put("cronjobs", cron("night", app1))
	off := cron("off", app1)
	yes := true
	off.Spec.Suspend = &yes
	s.put("cronjobs", off)
	c := s.cluster(t)
	ch := apply(t, c, wish(t, "cronjob/night/app "+app1+" "+app2))
	require.True(t, ch.Parts[0].Idle)
	require.Contains(t, s.look("cronjobs", "night"), app2+"@"+fakeDigest(app2))
	_, err := goBack(t, c, ch)
	require.NoError(t, err)
	require.NotContains(t, s.look("cronjobs", "night"), app2)
	o, err := c.Observe(t.Context(), ch, 0, updater.OldSide)
	require.NoError(t, err)
	require.Equal(t, updater.Observation{Running: true, Timeout: ownTimeout}, o, "it is back")
	all, err := c.Workloads(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Nil(t, all[0].Skip)
	require.Equal(t, updater.NotRunning, all[1].Skip.Reason)
}

func TestTheNextRunOfACronJobDecides(t *testing.T) {
	for tag, want := range map[string]updater.Verdict{"2": "", "2-exit": updater.Bad, "2-unreachable": updater.Unclear} {
		t.Run(tag, func(t *testing.T) {
			s := newServer(t)
			s.put("cronjobs", cron("night", app1))
			c := s.cluster(t)
			ch := wish(t, "cronjob/night/app "+app1+" reg.example/app:"+tag)
			ch.Parts[0].Settings.CronJobGate = updater.GateNextRun
			ch = apply(t, c, ch)
			require.False(t, ch.Parts[0].Idle)
			o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
			require.NoError(t, err)
			require.Contains(t, o.Waits, "has not begun")

			s.mu.Lock()
			uid := dig(s.objects["cronjobs/shop/night"], "metadata")["uid"].(string)
			s.mu.Unlock()
			yes := true
			ref := ch.Parts[0].To.Ref
			s.put("jobs", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "night-29000001", Namespace: "shop",
				OwnerReferences: []metav1.OwnerReference{{Kind: "CronJob", Name: "night", UID: as[pod1](map[string]any{"metadata": map[string]any{"uid": uid}}).UID, Controller: &yes}}},
				Spec: batchv1.JobSpec{Template: template("app=" + ref)}})
			o, err = c.Observe(t.Context(), ch, 0, updater.NewSide)
			require.NoError(t, err)
			require.Empty(t, o.Waits)
			require.Equal(t, want, o.Blame, o.Fault)
			require.Equal(t, want == "", o.Running)
		})
	}
}

func TestAChangeIsDatedByTheAPIServersClock(t *testing.T) {
	s := newServer(t)
	s.ahead = -time.Hour
	s.put("cronjobs", cron("night", app1))
	ch := apply(t, s.cluster(t), wish(t, "cronjob/night/app "+app1+" "+app2))
	_, m, err := records(ch)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(s.ahead), m.At, time.Minute, "else the runs of the next hour would not count")
}

func TestATestIsAJobThatLeavesNothing(t *testing.T) {
	for image, want := range map[string]int{"reg.example/smoke:1": 0, "reg.example/smoke:1-exit": 1} {
		t.Run(image, func(t *testing.T) {
			s, c := web(t)
			ch := wish(t, "deployment/web/app "+app1+" "+app2)
			ch.Parts[0].Settings.Health.Test = updater.Test{Image: image, Timeout: 10 * time.Second}
			ch = apply(t, c, ch)
			// What a crash left is taken away first.
			s.put("jobs", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: testName(ch, 0), Namespace: "shop"}, Spec: batchv1.JobSpec{Template: template("test=reg.example/smoke:1-exit")}})
			r, err := c.Test(t.Context(), ch, 0)
			require.NoError(t, err)
			require.Equal(t, want, r.ExitCode)
			require.Empty(t, s.look("jobs", testName(ch, 0)))
			s.put("jobs", &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: testName(ch, 0), Namespace: "shop"}, Spec: batchv1.JobSpec{Template: template("test=reg.example/smoke:1")}})
			require.NoError(t, c.Commit(t.Context(), ch))
			require.Empty(t, s.look("jobs", testName(ch, 0)), "a crash in between leaves nothing either")
		})
	}
}

func TestATestThatCouldNotBeWatchedOrRemovedIsRefused(t *testing.T) {
	for _, verb := range []string{"create", "get", "delete"} {
		s, c := web(t)
		s.denied[verb+" jobs"] = true
		ch := wish(t, "deployment/web/app "+app1+" "+app2)
		require.NoError(t, c.Plan(t.Context(), &ch, nobody), "without a test it needs no Jobs")
		ch.Parts[0].Settings.Health.Test = updater.Test{Image: "reg.example/smoke:1", Timeout: 10 * time.Second}
		refused(t, c.Plan(t.Context(), &ch, nobody), updater.InvalidSettings, "health.test needs the right to "+verb+" jobs")
	}
}

func TestAnotherLeadersTestIsNotRemoved(t *testing.T) {
	s, c := web(t)
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	ch.Parts[0].Settings.Health.Test = updater.Test{Image: "reg.example/smoke:1", Timeout: 10 * time.Second}
	ch = apply(t, c, ch)
	theirs := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: testName(ch, 0), Namespace: "shop"}, Spec: batchv1.JobSpec{Template: template("test=reg.example/smoke:1")}}
	taken := false
	s.before = func(method, _ string) {
		if method != http.MethodDelete || taken {
			return
		}
		taken = true // while the request to remove it is on its way
		s.remove("jobs", theirs.Name)
		s.put("jobs", theirs)
	}
	_, err := c.Test(t.Context(), ch, 0)
	require.NoError(t, err)
	require.True(t, taken)
	require.NotEmpty(t, s.look("jobs", theirs.Name))
}

func TestATestThatNeverRanSaysNothing(t *testing.T) {
	_, c := web(t)
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	ch.Parts[0].Settings.Health.Test = updater.Test{Image: "reg.example/smoke:1-unreachable", Timeout: 10 * time.Second}
	_, err := c.Test(t.Context(), apply(t, c, ch), 0)
	require.ErrorContains(t, err, "connection refused")
}

func TestAKindThatMayNotBeListedAnyMoreIsNotGone(t *testing.T) {
	s, c := web(t)
	before, err := c.Workloads(t.Context())
	require.NoError(t, err)
	s.denied["list deployments"] = true
	for range 2 {
		all, err := c.Workloads(t.Context())
		require.NoError(t, err)
		require.Len(t, all, len(before))
		for _, w := range all {
			require.NotNil(t, w.Skip, w.ID)
			require.Equal(t, updater.BackendUnavailable, w.Skip.Reason)
			require.Contains(t, w.Skip.Detail, "deployments may not be listed any more")
		}
	}
	s.denied["list deployments"] = false
	after, err := c.Workloads(t.Context())
	require.NoError(t, err)
	require.Nil(t, after[0].Skip)
}

func TestAKindThatMayNotBeWatchedAnyMoreIsNotGone(t *testing.T) {
	s, c := web(t)
	follow(t, c)
	require.Eventually(t, c.Synced, 10*time.Second, 10*time.Millisecond)
	skipped := func() (all []bool) {
		workloads, err := c.Workloads(t.Context())
		require.NoError(t, err)
		for _, w := range workloads {
			all = append(all, w.Skip != nil && w.Skip.Reason == updater.BackendUnavailable)
		}
		return all
	}
	require.Equal(t, []bool{false, false}, skipped())
	deny := func(denied bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.denied["list deployments"] = denied
		s.cut("deployments")
	}
	deny(true)
	require.Eventually(t, func() bool { return slices.Equal(skipped(), []bool{true, true}) }, 30*time.Second, 10*time.Millisecond)
	deny(false)
	require.Eventually(t, func() bool { return slices.Equal(skipped(), []bool{false, false}) }, time.Minute, 10*time.Millisecond)
}

// TestAContainerThatSomebodyRemoved in mid-change is their decision; what else was
// written is taken back.
func TestAContainerThatSomebodyRemoved(t *testing.T) {
	s, c := web(t)
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2, "deployment/web/side "+side1+" "+side2))
	s.mu.Lock()
	spec := dig(s.objects["deployments/shop/web"], "spec", "template", "spec")
	for _, one := range spec["containers"].([]any) {
		if one.(map[string]any)["name"] == "app" {
			spec["containers"] = []any{one}
		}
	}
	s.store("deployments/shop/web", toMap(s.objects["deployments/shop/web"]), "kubectl")
	s.mu.Unlock()
	o, err := c.Observe(t.Context(), ch, 1, updater.NewSide)
	require.NoError(t, err)
	require.True(t, o.Gone)
	_, err = goBack(t, c, ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.ErrorContains(t, err, "somebody removed the container side")
	require.Equal(t, map[string]string{"app": app1}, s.images("deployments", "web"))
}

func TestWhatNodesDoNotFindIsAskedOfTheRegistry(t *testing.T) {
	away := errors.New("connection refused")
	for name, tt := range map[string]struct {
		there bool
		err   error
		want  updater.Verdict
		says  string
	}{
		"the registry has it no more": {want: updater.Bad, says: "has it no more"},
		"a mirror is out of date":     {there: true, want: updater.Unclear, says: "but the registry has it"},
		"the registry cannot say":     {err: away, want: updater.Unclear, says: "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := web(t)
			asked := 0
			c.exists = func(_ context.Context, ref string, by updater.Logins) (bool, error) {
				require.Equal(t, app2+"-lost@"+fakeDigest(app2+"-lost"), ref)
				require.NotNil(t, by)
				asked++
				return tt.there, tt.err
			}
			ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2+"-lost"))
			for range 3 {
				o, err := c.Observe(t.Context(), ch, 0, updater.NewSide)
				require.NoError(t, err)
				require.Equal(t, tt.want, o.Blame, o.Fault)
				require.Contains(t, o.Fault, tt.says)
			}
			require.Equal(t, 1, asked)
		})
	}
}

// TestWhatOneWorkloadIsShownIsNoAnswerToAnother: their credentials may differ, and many
// a registry calls missing what it hides.
func TestWhatOneWorkloadIsShownIsNoAnswerToAnother(t *testing.T) {
	_, c := web(t)
	verdict := func(name string) updater.Verdict {
		o, err := read(pulls(name, name))
		require.NoError(t, err)
		c.exists = func(_ context.Context, _ string, by updater.Logins) (bool, error) {
			return slices.Contains(by.(logins).template, "mine"), nil
		}
		_, v := c.confirm(t.Context(), o, o.containers[0], nil, "not found")
		return v
	}
	require.Equal(t, updater.Bad, verdict("theirs"))
	require.Equal(t, updater.Unclear, verdict("mine"), "it has the right to it, and it is there")
}

func TestAKindThatMayNotBeListedIsLeftOut(t *testing.T) {
	s, c := web(t)
	s.denied["list cronjobs"] = true
	all, err := c.Workloads(t.Context())
	require.NoError(t, err)
	require.Len(t, all, 2)
	s.denied["list pods"] = true
	_, err = c.Workloads(t.Context())
	require.ErrorContains(t, err, "listing pods")
}

func TestATestThatCannotBeRemovedKeepsNothingOnTheNewImage(t *testing.T) {
	s, c := web(t)
	ch := wish(t, "deployment/web/app "+app1+" "+app2)
	ch.Parts[0].Settings.Health.Test = updater.Test{Image: "reg.example/smoke:1", Timeout: 10 * time.Second}
	ch = apply(t, c, ch)
	s.denied["delete jobs"] = true
	_, err := goBack(t, c, ch)
	require.ErrorContains(t, err, "removing the Job")
	require.Equal(t, app1, s.images("deployments", "web")["app"])
}

func TestATestThatTheClusterEndedSaysNothing(t *testing.T) {
	late := batchv1.JobCondition{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: batchv1.JobReasonDeadlineExceeded}
	failed := batchv1.JobCondition{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: batchv1.JobReasonBackoffLimitExceeded}
	s, c := web(t)
	_, err := c.testResult(t.Context(), "shop", "test", late, false)
	require.Error(t, err, "its time ran out before its image was there")
	r, err := c.testResult(t.Context(), "shop", "test", late, true)
	require.NoError(t, err)
	require.True(t, r.TimedOut)
	s.put("pods", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "test-1", Namespace: "shop", Labels: map[string]string{batchv1.JobNameLabel: "test"}},
		Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", ContainerStatuses: []corev1.ContainerStatus{{
			Name: "test", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137}},
		}}},
	})
	_, err = c.testResult(t.Context(), "shop", "test", failed, true)
	require.ErrorContains(t, err, "Evicted")
}

func TestAStatefulSetIsFreedOnceItsTemplateIsNoticed(t *testing.T) {
	s := newServer(t)
	s.put("statefulsets", statefulSet("db", 3, "app="+app1))
	c := s.cluster(t)
	ch := apply(t, c, wish(t, "statefulset/db/app "+app1+" "+app2))
	org, m, err := records(ch)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.NoError(t, c.free(ctx, org, map[string]string{"app": "none"}, m.Generation))
	err = c.free(ctx, org, map[string]string{"app": "none"}, m.Generation+1)
	require.ErrorIs(t, err, context.DeadlineExceeded, "no pod is stuck now, and one may be made from the bad template yet")
}

func TestGoingBackAgainKnowsItsOwnPin(t *testing.T) {
	s, c := web(t)
	now, down := fakeDigest("new"), error(nil)
	c.moved = func(context.Context, string, updater.Logins) (string, error) { return now, down }
	ch := apply(t, c, wish(t, "deployment/web/app "+app1+" "+app2))
	r, err := goBack(t, c, ch)
	require.NoError(t, err)
	pin := app1 + "@" + fakeDigest(app1)
	require.Equal(t, pin, s.images("deployments", "web")["app"])

	now, down = "", errors.New("the registry is down")
	again, err := goBack(t, c, ch) // after a crash, before its end was journaled
	require.NoError(t, err)
	require.Equal(t, r, again)
	require.Equal(t, pin, s.images("deployments", "web")["app"])
}

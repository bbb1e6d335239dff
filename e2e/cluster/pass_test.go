package cluster

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/kube"
	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/registry"
	"github.com/updaterd/updaterd/internal/updater"
)

// passes are an updater's passes over one namespace of a real cluster. What it
// remembers is in memory, so that nothing is tried here but what moves workloads.
type passes struct {
	*rig.Space
	t        *testing.T
	proxy    *rig.Proxy
	cluster  *kube.Cluster
	disk     *backendtest.Disk
	settings updater.Settings
}

type nobody struct{}

func (nobody) Notify(context.Context, updater.Entry) {}

type never struct{}

func (never) Next(t time.Time) time.Time { return t.Add(time.Hour) }

func newPasses(t *testing.T) *passes {
	t.Helper()
	p := &passes{Space: rig.Shared(t).NewSpace(t), t: t, disk: &backendtest.Disk{}, settings: updater.Settings{
		Enabled: true, Mode: updater.ModeUpdate, Policy: policy.Spec{Policy: "digest"}, Pin: updater.PinRespect,
		CronJobGate: updater.GateNone, Health: updater.Health{Stable: time.Second},
	}}
	p.proxy = p.NewProxy(t, rig.Hooks{})
	config := p.Config()
	config.Host = p.proxy.URL
	var err error
	p.cluster, err = kube.New(kube.Options{Name: rig.Backend, REST: config, Namespaces: []string{p.Name}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.cluster.Close()) })
	return p
}

// pass makes one, and returns its rows by workload, the namespace left out.
func (p *passes) pass() map[string]updater.Row {
	p.t.Helper()
	log := slog.New(slog.DiscardHandler)
	r, err := registry.New(registry.Options{Log: log, UserAgent: "updaterd/test"})
	require.NoError(p.t, err)
	u := updater.New([]updater.Place{{Backend: p.cluster, State: &backendtest.State{Disk: p.disk}}}, updater.Rules{
		Settings: func(updater.Workload) (updater.Settings, error) { return p.settings, nil },
		Schedule: never{}, Parallel: 4, Registry: r, Notifier: nobody{},
	}, log)
	rows, err := u.Once(p.t.Context(), nil)
	require.NoError(p.t, err)
	by := map[string]updater.Row{}
	for _, row := range rows {
		by[strings.TrimPrefix(row.Workload, rig.Backend+"/"+p.Name+"/")] = row
	}
	return by
}

func (p *passes) record(which string) updater.Record {
	p.t.Helper()
	all, err := (&backendtest.State{Disk: p.disk}).Recall(p.t.Context())
	require.NoError(p.t, err)
	return all[p.ID(which)]
}

// each plays on all kinds whose pods run all the time.
func each(t *testing.T, play func(t *testing.T, p *passes, which string, make func(rig.Spec))) {
	for kind, of := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			p := newPasses(t)
			play(t, p, kind+"/web", func(s rig.Spec) { of(p.Space, s) })
		})
	}
}

// TestARebuiltTagRollsOut: by its digest, and once.
func TestARebuiltTagRollsOut(t *testing.T) {
	each(t, func(t *testing.T, p *passes, which string, make func(rig.Spec)) {
		p.Good("web:1", "1")
		make(rig.Spec{Replicas: 2})
		p.WaitDone(which)
		require.Equal(t, updater.UpToDate, p.pass()[which+"/app"].Reason)
		digest := p.Good("web:1", "1 rebuilt")
		row := p.pass()[which+"/app"]
		require.Equal(t, updater.OutcomeCommitted, row.Outcome, row.Detail)
		require.Equal(t, p.Ref("web:1")+"@"+digest, p.WaitDone(which).Image("app"))
		require.Equal(t, []string{digest}, p.Digests("web"))
		require.Equal(t, updater.UpToDate, p.pass()[which+"/app"].Reason, "what updaterd wrote is no pin")

		digest = p.Good("web:1", "1 rebuilt again")
		require.Equal(t, updater.OutcomeCommitted, p.pass()[which+"/app"].Outcome)
		require.Equal(t, p.Ref("web:1")+"@"+digest, p.WaitDone(which).Image("app"))
	})
}

// TestABadImageIsTakenBack: pinned to what ran, because the tag has moved, and it is
// not tried again.
func TestABadImageIsTakenBack(t *testing.T) {
	for name, bad := range map[string]stage.Behaviour{"crashes": stage.Exit(3), "is never ready": {Hang: true}} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, p *passes, which string, make func(rig.Spec)) {
				p.settings.Health.Timeout = 5 * time.Second
				old := p.Good("web:1", "1")
				make(rig.Spec{Replicas: 3})
				p.WaitDone(which)
				p.Push("web:1", stage.Image{Version: "2", Behave: bad})
				row := p.pass()[which+"/app"]
				require.Equal(t, updater.OutcomeRestored, row.Outcome, row.Detail)
				require.Equal(t, p.Ref("web:1")+"@"+old, p.WaitDone(which).Image("app"))
				require.Equal(t, []string{old}, p.Digests("web"))
				require.Len(t, p.record(which).Rejected, 1, row.Detail)
				require.Equal(t, updater.Rejected, p.pass()[which+"/app"].Reason)

				digest := p.Good("web:1", "3")
				row = p.pass()[which+"/app"]
				require.Equal(t, updater.OutcomeCommitted, row.Outcome, "what updaterd pinned is no pin of a person's: %s", row.Detail)
				require.Equal(t, p.Ref("web:1")+"@"+digest, p.WaitDone(which).Image("app"))
			})
		})
	}
}

// TestAPersonsRollBackSticks: by kubectl rollout undo, and by applying the old
// manifest again.
func TestAPersonsRollBackSticks(t *testing.T) {
	t.Parallel()
	p := newPasses(t)
	first := p.Good("web:1", "1")
	manifest := `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {app: web}},
		template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: app, image: "` + p.Ref("web:1") + `"}]}}}}`
	p.Apply(manifest)
	p.WaitDone("deployment/web")
	p.settings.Policy.Policy = "major"
	for i, undo := range []func(){
		func() { p.Kubectl("rollout", "undo", "deployment/web") },
		func() { p.Apply(manifest) },
	} {
		p.Good([]string{"web:2", "web:3"}[i], []string{"2", "3"}[i])
		row := p.pass()["deployment/web/app"]
		require.Equal(t, updater.OutcomeCommitted, row.Outcome, row.Detail)
		p.WaitDone("deployment/web")
		undo()
		require.Equal(t, p.Ref("web:1"), p.WaitDone("deployment/web").Image("app"))
		require.Equal(t, []string{first}, p.Digests("web"))
		require.Equal(t, updater.RolledBack, p.pass()["deployment/web/app"].Reason)
		require.Equal(t, updater.RolledBack, p.pass()["deployment/web/app"].Reason, "it sticks")
		require.Equal(t, p.Ref("web:1"), p.Get("deployment/web").Image("app"))
	}
}

// TestImagesOfOnePodThatFailTogetherAreTriedAlone, and the one to blame is rejected.
func TestImagesOfOnePodThatFailTogetherAreTriedAlone(t *testing.T) {
	t.Parallel()
	p := newPasses(t)
	p.Good("web:1", "1")
	p.Good("side:1", "1")
	p.Deployment(rig.Spec{Replicas: 2, Pod: func(s *corev1.PodSpec) {
		s.Containers = append(s.Containers, corev1.Container{Name: "side", Image: p.Ref("side:1")})
	}})
	p.WaitDone("deployment/web")
	digest := p.Good("web:1", "2")
	p.Crashing("side:1", "2")
	p.proxy.Forget()
	rows := p.pass()
	require.Equal(t, updater.OutcomeRestored, rows["deployment/web/app"].Outcome, rows["deployment/web/app"].Detail)
	require.Equal(t, updater.OutcomeRestored, rows["deployment/web/side"].Outcome)
	require.Empty(t, p.record("deployment/web").Rejected)
	for range 3 { // whichever is tried first
		rows = p.pass()
	}
	require.Equal(t, updater.UpToDate, rows["deployment/web/app"].Reason)
	require.Equal(t, updater.Rejected, rows["deployment/web/side"].Reason)
	require.Equal(t, []string{digest}, p.Digests("web"))
}

// TestASteadyPassAsksNothing of the API server: watches tell what there is.
func TestASteadyPassAsksNothing(t *testing.T) {
	t.Parallel()
	p := newPasses(t)
	p.Good("web:1", "1")
	p.Deployment(rig.Spec{Replicas: 2})
	p.StatefulSet(rig.Spec{Name: "db"})
	p.WaitDone("deployment/web")
	p.WaitDone("statefulset/db")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.cluster.Run(ctx) }()
	defer func() { stop(); require.NoError(t, <-ended) }()
	stage.Eventually(t, rig.Patience, "the watches to have caught up", p.cluster.Synced)
	asked := func() int { return len(p.proxy.Calls()) }
	before := asked()
	require.Equal(t, updater.UpToDate, p.pass()["deployment/web/app"].Reason)
	require.Equal(t, updater.UpToDate, p.pass()["statefulset/db/app"].Reason)
	require.Equal(t, before, asked())

	digest := p.Good("web:1", "2")
	require.Equal(t, updater.OutcomeCommitted, p.pass()["deployment/web/app"].Outcome)
	require.Equal(t, []string{digest}, p.Digests("web"))
}

// TestATestThatMustPass is a Job that leaves nothing.
func TestATestThatMustPass(t *testing.T) {
	for _, passes := range []bool{true, false} {
		t.Run(map[bool]string{true: "passes", false: "fails"}[passes], func(t *testing.T) {
			t.Parallel()
			p := newPasses(t)
			old := p.Good("web:1", "1")
			code := 1
			if passes {
				code = 0
			}
			p.Push("smoke:1", stage.Image{Version: "s", Behave: stage.Exit(code)})
			p.settings.Health.Test = updater.Test{Image: p.Ref("smoke:1"), Timeout: 30 * time.Second}
			p.Deployment(rig.Spec{Replicas: 2})
			p.WaitDone("deployment/web")
			digest := p.Good("web:1", "2")
			p.proxy.Forget()
			row := p.pass()["deployment/web/app"]
			var job string
			for _, c := range p.proxy.Changes() {
				if c.Verb == "create" && c.Resource == "jobs" {
					job = string(c.Body)
				}
			}
			require.Contains(t, job, "UPDATERD_POD_IPS")
			if passes {
				require.Equal(t, updater.OutcomeCommitted, row.Outcome, row.Detail)
			} else {
				require.Equal(t, updater.OutcomeRestored, row.Outcome, row.Detail)
				require.Contains(t, row.Detail, "health.test failed with exit code 1")
				digest = old
			}
			p.WaitDone("deployment/web")
			require.Equal(t, []string{digest}, p.Digests("web"))
			stage.Eventually(t, rig.Patience, "the Job to be gone", func() bool {
				left, err := p.Client.BatchV1().Jobs(p.Name).List(t.Context(), metav1.ListOptions{})
				return err == nil && len(left.Items) == 0
			})
		})
	}
}

// TestTheNextRunOfACronJobDecides, and until then the change is open.
func TestTheNextRunOfACronJobDecides(t *testing.T) {
	for name, tt := range map[string]struct {
		code int
		want updater.Outcome
	}{"a run that ends well": {0, updater.OutcomeCommitted}, "a run that fails": {4, updater.OutcomeRestored}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPasses(t)
			p.settings.CronJobGate = updater.GateNextRun
			p.Push("night:1", stage.Image{Version: "1", Behave: stage.Exit(0)})
			p.CronJob(rig.Spec{Name: "night", Image: "night:1"})
			p.Push("night:1", stage.Image{Version: "2", Behave: stage.Exit(tt.code)})
			row := p.pass()["cronjob/night/app"]
			require.Equal(t, updater.OutcomeOpen, row.Outcome, row.Detail)
			require.Contains(t, row.Detail, "has not begun")
			p.Kubectl("create", "job", "by-hand", "--from=cronjob/night")
			stage.Eventually(t, rig.Patience, "the run to end", func() bool {
				j, err := p.Client.BatchV1().Jobs(p.Name).Get(t.Context(), "by-hand", metav1.GetOptions{})
				require.NoError(t, err)
				for _, c := range j.Status.Conditions {
					if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
						return true
					}
				}
				return false
			})
			row = p.pass()["cronjob/night/app"]
			require.Equal(t, tt.want, row.Outcome, row.Detail)
		})
	}
}

// TestNothingWantedIsNoVerdict: a change of what is scaled to 0 is open until it is
// not.
func TestNothingWantedIsNoVerdict(t *testing.T) {
	t.Parallel()
	p := newPasses(t)
	p.Good("web:1", "1")
	p.Deployment(rig.Spec{})
	p.WaitDone("deployment/web")
	require.Equal(t, updater.UpToDate, p.pass()["deployment/web/app"].Reason)
	p.Kubectl("scale", "deployment/web", "--replicas=0")
	stage.Eventually(t, rig.Patience, "its pods to go", func() bool { return len(p.Pods("web")) == 0 })
	digest := p.Good("web:1", "2")
	row := p.pass()["deployment/web/app"]
	require.Equal(t, updater.OutcomeOpen, row.Outcome, row.Detail)
	require.Contains(t, row.Detail, "scaled to 0")
	p.Kubectl("scale", "deployment/web", "--replicas=2")
	row = p.pass()["deployment/web/app"]
	require.Equal(t, updater.OutcomeCommitted, row.Outcome, row.Detail)
	require.Equal(t, []string{digest}, p.Digests("web"))
}

// TestSomebodyElsesImageIsLeftAlone, whenever it comes, and what others do besides is
// no reason to give up.
func TestSomebodyElsesImageIsLeftAlone(t *testing.T) {
	for name, tt := range map[string]struct {
		at   string // a call: before the first of these
		do   []string
		want updater.Outcome
	}{
		"an image before the patch":  {at: "before", do: []string{"set", "image", "deployment/web", "app=THEIRS"}, want: updater.OutcomeSuperseded},
		"an image after the patch":   {at: "after", do: []string{"set", "image", "deployment/web", "app=THEIRS"}, want: updater.OutcomeSuperseded},
		"back to the old image":      {at: "after", do: []string{"set", "image", "deployment/web", "app=OLD"}, want: updater.OutcomeSuperseded},
		"scaled before the patch":    {at: "before", do: []string{"scale", "deployment/web", "--replicas=3"}, want: updater.OutcomeCommitted},
		"scaled after the patch":     {at: "after", do: []string{"scale", "deployment/web", "--replicas=3"}, want: updater.OutcomeCommitted},
		"restarted after the patch":  {at: "after", do: []string{"rollout", "restart", "deployment/web"}, want: updater.OutcomeCommitted},
		"annotated before the patch": {at: "before", do: []string{"annotate", "deployment/web", "a=b"}, want: updater.OutcomeCommitted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPasses(t)
			p.Good("web:1", "1")
			p.Good("theirs:1", "theirs")
			p.Deployment(rig.Spec{Replicas: 2})
			p.WaitDone("deployment/web")
			digest := p.Good("web:1", "2")
			args := append([]string{}, tt.do...)
			for i := range args {
				args[i] = strings.NewReplacer("THEIRS", p.Ref("theirs:1"), "OLD", p.Ref("web:1")).Replace(args[i])
			}
			done := false
			meddle := func(c rig.Call) error {
				if c.Verb == "patch" && c.Resource == "deployments" && c.Query.Get("dryRun") == "" && !done {
					done = true
					p.Kubectl(args...)
				}
				return nil
			}
			if tt.at == "before" {
				p.proxy.Hook(rig.Hooks{Before: meddle})
			} else {
				p.proxy.Hook(rig.Hooks{After: meddle})
			}
			row := p.pass()["deployment/web/app"]
			require.True(t, done)
			require.Equal(t, tt.want, row.Outcome, row.Detail)
			image := p.WaitDone("deployment/web").Image("app")
			switch {
			case strings.HasSuffix(args[len(args)-1], p.Ref("web:1")):
				require.Equal(t, p.Ref("web:1"), image)
				require.Equal(t, updater.RolledBack, p.pass()["deployment/web/app"].Reason, "it sticks")
			case tt.want == updater.OutcomeSuperseded:
				require.Equal(t, p.Ref("theirs:1"), image)
			default:
				require.Equal(t, p.Ref("web:1")+"@"+digest, image)
			}
		})
	}
}

// TestALateWriteOfAnOldLeaderRepeatsNothing of what the new leader has taken back,
// whether that had heard of it or not.
func TestALateWriteOfAnOldLeaderRepeatsNothing(t *testing.T) {
	for name, heard := range map[string]bool{"applied by the new leader as well": true, "never heard of": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPasses(t)
			late := p.cluster // one process plays both: what counts is what the API server gets
			old := p.Good("web:1", "1")
			digest := p.Good("web:2", "2")
			p.Deployment(rig.Spec{})
			before := p.WaitDone("deployment/web")
			ch := updater.Change{ID: "20260102t030405-late", Backend: rig.Backend, Unit: p.ID("deployment/web"), Phase: updater.Preparing, Parts: []updater.Part{{
				Workload: p.ID("deployment/web"), Replace: true, From: updater.Image{Ref: p.Ref("web:1"), Digest: old},
				To: updater.Image{Ref: p.Ref("web:2") + "@" + digest, Digest: digest},
			}}}
			require.NoError(t, late.Plan(t.Context(), &ch, nil))
			ch.Phase, ch.Disturbed = updater.Applying, true
			taken, back := false, false
			p.proxy.Hook(rig.Hooks{Before: func(c rig.Call) error {
				if back && !heard && c.Verb == "get" {
					return errors.New("the old leader has ended") // and decides nothing anew
				}
				if taken || c.Verb != "patch" {
					return nil
				}
				taken = true // what follows is done while the patch is on its way
				other := ch
				if heard {
					a, err := late.Apply(t.Context(), ch)
					require.NoError(t, err)
					other.Mark = a.Mark
				}
				other.Phase = updater.Restoring
				_, err := late.Restore(t.Context(), other)
				require.NoError(t, err)
				back = true
				return nil
			}})
			_, err := late.Apply(t.Context(), ch)
			require.Error(t, err)
			if heard {
				require.ErrorIs(t, err, updater.ErrSuperseded)
			}
			p.proxy.Hook(rig.Hooks{})
			after := p.WaitDone("deployment/web")
			require.Equal(t, p.Ref("web:1"), after.Image("app"))
			require.Equal(t, before.Labels, after.Labels)
		})
	}
}

// TestTheSurroundingsAreNotTheImage: a change that they fail is taken back, rejects
// nothing, and is tried again.
func TestTheSurroundingsAreNotTheImage(t *testing.T) {
	for name, tt := range map[string]struct {
		says string
		fail func(p *passes) (mend func())
	}{
		"a registry that is down": {says: "cannot be pulled", fail: func(p *passes) func() {
			p.Registry.Down()
			return p.Registry.Up
		}},
		"a quota": {says: "exceeded quota", fail: func(p *passes) func() {
			// It is in force when somebody has counted what there is.
			hard := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}
			q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "tight"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}
			quotas := p.Client.CoreV1().ResourceQuotas(p.Name)
			_, err := quotas.Create(p.t.Context(), q, metav1.CreateOptions{})
			require.NoError(p.t, err)
			stage.Eventually(p.t, rig.Patience, "the quota to count", func() bool {
				q, err := quotas.Get(p.t.Context(), "tight", metav1.GetOptions{})
				return err == nil && q.Status.Used.Pods().Value() == 2
			})
			return func() { p.Kubectl("delete", "quota", "tight") }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPasses(t)
			old := p.Good("web:1", "1")
			p.Deployment(rig.Spec{Replicas: 2, Pod: func(s *corev1.PodSpec) {
				// The node has the image of before, which it needs for the way back.
				s.NodeSelector = map[string]string{corev1.LabelHostname: "one"}
			}})
			p.WaitDone("deployment/web")
			digest := p.Good("web:1", "2")
			var mend func()
			p.proxy.Hook(rig.Hooks{Before: func(c rig.Call) error {
				if c.Verb == "patch" && c.Query.Get("dryRun") == "" && mend == nil {
					mend = tt.fail(p)
				}
				return nil
			}})
			row := p.pass()["deployment/web/app"]
			require.Equal(t, updater.OutcomeRestored, row.Outcome, row.Detail)
			require.Contains(t, row.Detail, tt.says)
			require.Empty(t, p.record("deployment/web").Rejected)
			require.Equal(t, 1, p.record("deployment/web").Retry.Attempts)
			require.Equal(t, []string{old}, p.Digests("web"))
			mend()
			require.Equal(t, updater.Surroundings, p.pass()["deployment/web/app"].Reason)
			require.NoError(t, (&backendtest.State{Disk: p.disk}).Remember(t.Context(), map[string]func(*updater.Record){
				p.ID("deployment/web"): func(m *updater.Record) { m.Retry = nil }, // an hour later
			}))
			row = p.pass()["deployment/web/app"]
			require.Equal(t, updater.OutcomeCommitted, row.Outcome, row.Detail)
			require.Equal(t, []string{digest}, p.Digests("web"))
		})
	}
}

package kube

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/updaterd/updaterd/internal/updater"
)

// testLabel is on the Jobs of tests and their pods, so that they can be told; its
// value is the id of the change.
const testLabel = domain + "/test"

// testGrace is how long after its deadline a test's end is waited for.
const testGrace = 30 * time.Second

// testName is the name of the Job that tests one part of a change: after a crash
// the same one is found.
func testName(ch updater.Change, part int) string {
	return "updaterd-test-" + strings.ToLower(ch.ID) + "-" + strconv.Itoa(part)
}

// testJob is the Job that runs the test of one part. It belongs to the workload only
// in that it goes with it; its pod has no labels that a selector of the workload or
// of a Service could mean, and no token.
func testJob(ch updater.Change, part int, o *owner, ips []string) *batchv1.Job {
	t := ch.Parts[part].Settings.Health.Test
	k, _ := kindNamed(o.kind)
	labels := map[string]string{testLabel: strings.ToLower(ch.ID)}
	never, no := int32(0), false
	deadline := max(int64((t.Timeout+time.Second-1)/time.Second), 1)
	later := int32(600)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: testName(ch, part), Namespace: o.Namespace, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: k.resource.GroupVersion.String(), Kind: k.title, Name: o.Name, UID: o.UID,
			}},
		},
		Spec: batchv1.JobSpec{
			BackoffLimit: &never, ActiveDeadlineSeconds: &deadline, TTLSecondsAfterFinished: &later,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
					Containers: []corev1.Container{{
						Name: "test", Image: t.Image, Args: t.Command, // as on a Docker host, after the image's entrypoint
						Env: []corev1.EnvVar{
							{Name: "UPDATERD_WORKLOAD", Value: ch.Parts[part].Workload},
							{Name: "UPDATERD_IMAGE", Value: ch.Parts[part].To.Ref},
							{Name: "UPDATERD_POD_IPS", Value: strings.Join(ips, ",")},
						},
						TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
					}},
				},
			},
		},
	}
}

// Test implements updater.Backend: one Job beside the rollout that is complete.
func (c *Cluster) Test(ctx context.Context, ch updater.Change, part int) (r updater.Result, err error) {
	org, m, err := records(ch)
	if err != nil {
		return r, err
	}
	limit := ch.Parts[part].Settings.Health.Test.Timeout
	ctx, cancel := context.WithTimeout(ctx, limit+2*testGrace)
	defer cancel()
	o, pods, err := c.see(ctx, ch, org)
	switch {
	case err != nil:
		return r, err
	case o == nil || o.UID != org.UID:
		return r, fmt.Errorf("%s is gone", org.address())
	}
	wrote, err := c.ours(ch, m)
	if err != nil {
		return r, err
	}
	var made batchv1.Job
	defer func() {
		if made.UID == "" {
			return // what may be there all the same goes when the change ends
		}
		// Also when ctx has ended: nothing is to be left. If the lead was lost, the Job
		// by this name may be the next leader's, so only this one goes.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeLimit)
		defer cancel()
		if gone := c.removeTest(ctx, org.Namespace, testName(ch, part), &made.UID); err == nil {
			err = gone
		}
	}()
	job := testJob(ch, part, o, addresses(pods, wrote))
	for {
		err := c.api.Create(ctx, jobResource(), org.Namespace, job, &made)
		if err == nil {
			break
		}
		if !apierrors.IsAlreadyExists(err) {
			return r, fmt.Errorf("cluster %s: making the Job %s: %w", c.name, job.Name, err)
		}
		if err := c.removeTest(ctx, org.Namespace, job.Name, nil); err != nil {
			return r, err
		}
		if err := pause(ctx); err != nil {
			return r, fmt.Errorf("cluster %s: the Job %s of before does not go: %w", c.name, job.Name, err)
		}
	}
	ran := false
	for {
		var now batchv1.Job
		if err := c.api.Get(ctx, jobResource(), org.Namespace, job.Name, &now); err != nil {
			return r, fmt.Errorf("cluster %s: reading the Job %s: %w", c.name, job.Name, err)
		}
		ran = ran || or(now.Status.Ready, 0) > 0
		for _, cond := range now.Status.Conditions {
			if cond.Status != corev1.ConditionTrue {
				continue
			}
			switch cond.Type {
			case batchv1.JobComplete:
				return r, nil
			case batchv1.JobFailed:
				return c.testResult(ctx, org.Namespace, job.Name, cond, ran)
			}
		}
		if err := pause(ctx); err != nil {
			return r, fmt.Errorf("cluster %s: the Job %s does not end: %w", c.name, job.Name, err)
		}
	}
}

// testResult says how a test failed. One whose program never ran says nothing, nor
// does one whose pod was ended by the cluster. ran: it was seen to run.
func (c *Cluster) testResult(ctx context.Context, namespace, name string, cond batchv1.JobCondition, ran bool) (updater.Result, error) {
	list := &corev1.PodList{}
	if _, err := c.list(ctx, podResource(), namespace, batchv1.JobNameLabel+"="+name, list); err != nil {
		return updater.Result{}, fmt.Errorf("cluster %s: listing the pods of the Job %s: %w", c.name, name, err)
	}
	for _, p := range list.Items {
		reduced, err := readPod(&p)
		if err != nil {
			return updater.Result{}, err
		}
		if why := reduced.evicted(); why != "" && why != string(batchv1.JobReasonDeadlineExceeded) {
			return updater.Result{}, fmt.Errorf("its pod was ended by the cluster: %s", why)
		}
		for _, s := range p.Status.ContainerStatuses {
			if t := s.State.Terminated; t != nil && t.Reason != "StartError" && t.Reason != "ContainerStatusUnknown" {
				return updater.Result{
					ExitCode: int(t.ExitCode), Output: tail(t.Message), TimedOut: cond.Reason == batchv1.JobReasonDeadlineExceeded,
				}, nil
			}
			if s.State.Running != nil && cond.Reason == batchv1.JobReasonDeadlineExceeded {
				return updater.Result{ExitCode: -1, TimedOut: true}, nil
			}
			if w := s.State.Waiting; w != nil && w.Message != "" {
				return updater.Result{}, fmt.Errorf("its container did not run: %s: %s", w.Reason, w.Message)
			}
		}
	}
	if cond.Reason == batchv1.JobReasonDeadlineExceeded && ran {
		// The pods of a Job that ran out of time are removed with it.
		return updater.Result{ExitCode: -1, TimedOut: true}, nil
	}
	return updater.Result{}, fmt.Errorf("the Job %s failed and left no trace of its program: %s", name, cond.Message)
}

// addresses are those of the pods with these images that are ready.
func addresses(pods []*pod, images map[string]string) []string {
	all := map[string]bool{}
	for _, p := range pods {
		if p.gone() || !p.readyNow() || !p.is(images) {
			continue
		}
		for _, ip := range p.status.PodIPs[:min(1, len(p.status.PodIPs))] {
			all[ip.IP] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// removeTests takes away the Jobs that tests of a change may have left.
func (c *Cluster) removeTests(ctx context.Context, ch updater.Change, org origin) error {
	for i, p := range ch.Parts {
		if p.Settings.Health.Test.Image == "" || !ch.Disturbed {
			continue
		}
		if err := c.removeTest(ctx, org.Namespace, testName(ch, i), nil); err != nil {
			return err
		}
	}
	return nil
}

// removeTest takes away the Job of a test: whichever has the name where uid is nil,
// else that one only.
func (c *Cluster) removeTest(ctx context.Context, namespace, name string, uid *types.UID) error {
	background := metav1.DeletePropagationBackground
	o := metav1.DeleteOptions{PropagationPolicy: &background}
	if uid != nil {
		o.Preconditions = &metav1.Preconditions{UID: uid}
	}
	err := c.api.Delete(ctx, jobResource(), namespace, name, o)
	if err != nil && !apierrors.IsNotFound(err) && (uid == nil || !apierrors.IsConflict(err)) {
		return fmt.Errorf("cluster %s: removing the Job %s/%s: %w", c.name, namespace, name, err)
	}
	return nil
}

// pause waits before the next look.
func pause(ctx context.Context) error {
	t := time.NewTimer(lookAgain)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

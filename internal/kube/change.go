package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// changeLimit bounds one write.
	changeLimit = 30 * time.Second
	// conflicts is how often a write is made again on a newer version: the status of
	// an object in a rollout is a version, too.
	conflicts = 10
	// freeLimit bounds the wait for a pod that was deleted to go; pods have 30 s to
	// end by default.
	freeLimit = 2 * time.Minute
	lookAgain = 200 * time.Millisecond
)

// Plan implements updater.Backend. All wished images of one pod template are one
// change; its other containers keep theirs and are no part of it.
func (c *Cluster) Plan(ctx context.Context, ch *updater.Change, _ func(string) (updater.Settings, error)) error {
	first, err := c.parse(ch.Parts[0].Workload)
	if err != nil {
		return err
	}
	o, err := c.get(ctx, first.namespace, first.kind, first.name)
	if err != nil {
		return err
	}
	if o == nil {
		return fmt.Errorf("%s has gone since it was listed: %w", first.address(), updater.ErrSuperseded)
	}
	org := origin{
		Namespace: o.Namespace, Kind: o.kind, Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion,
		Fields: map[string]string{}, Before: map[string]string{}, OrderedReady: o.kind == "statefulset" && o.orderedReady, Touched: o.touched,
	}
	for i := range ch.Parts {
		p := &ch.Parts[i]
		at, err := c.parse(p.Workload)
		if err != nil {
			return err
		}
		ct, ok := o.container(at.container)
		switch {
		case at.address() != first.address():
			return fmt.Errorf("%s and %s are not of one pod template", ch.Parts[0].Workload, p.Workload)
		case !ok || ct.image != p.From.Ref:
			return &updater.Refusal{Reason: updater.InProgress, Detail: "somebody changed it since it was looked at; the next pass decides anew"}
		}
		if err := honoured(*p, o, ct); err != nil {
			return err
		}
		if err := c.wayBack(ctx, o, ct, *p); err != nil {
			return err
		}
		org.Fields[ct.name], org.Before[ct.name] = ct.field, ct.image
		pending, waits := o.rollout()
		p.Healthy, p.Idle, p.StopTimeout = pending == "" && waits == "", false, o.grace
		if o.kind == "cronjob" {
			p.Healthy, p.Idle = true, p.Settings.CronJobGate != updater.GateNextRun
			if !p.Idle {
				if err := c.mustBeAllowed(ctx, "list", "batch", "jobs", o.Namespace, "cronjob-gate: next-run", updater.InvalidSettings); err != nil {
					return err
				}
			}
		}
		if p.Settings.Health.Test.Image != "" {
			for _, verb := range []string{"create", "get", "delete"} {
				if err := c.mustBeAllowed(ctx, verb, "batch", "jobs", o.Namespace, "health.test", updater.InvalidSettings); err != nil {
					return err
				}
			}
		}
	}
	if org.OrderedReady {
		if err := c.mustBeAllowed(ctx, "delete", "", "pods", o.Namespace, "going back with a StatefulSet that makes its pods in order (podManagementPolicy OrderedReady)", updater.Unsupported); err != nil {
			return err
		}
	}
	ch.Touches, ch.Related, ch.Alone = []string{c.name + "/" + o.address()}, nil, false
	for _, ct := range o.containers {
		if _, part := org.Before[ct.name]; !part {
			ch.Related = append(ch.Related, c.id(o, ct.name))
		}
	}
	if ch.Origin, err = json.Marshal(org); err != nil {
		return fmt.Errorf("recording the origin of change %s: %w", ch.ID, err)
	}
	return nil
}

// honoured refuses the settings that cannot be honoured in a cluster, and what would
// not come of a change.
func honoured(p updater.Part, o *owner, ct container) error {
	s := p.Settings
	not := func(key, why string) error {
		return &updater.Refusal{Reason: updater.InvalidSettings, Detail: key + " cannot be honoured in a cluster: " + why}
	}
	switch {
	case len(s.DependsOn) > 0:
		return not("depends-on", "the cluster starts pods in its own order; take it away")
	case s.Health.Probe != "":
		return not("health.probe", "give the container a readinessProbe instead")
	case len(s.PreUpdate.Command) > 0:
		return not("pre-update", "use an init container instead")
	case len(s.PostUpdate.Command) > 0:
		return not("post-update", "use health.test, or a postStart hook of the container, instead")
	case s.StopTimeout != 0:
		return not("stop-timeout", "set terminationGracePeriodSeconds of the pod instead")
	case s.StopSignal != "":
		return not("stop-signal", "set STOPSIGNAL in the image, or a preStop hook in the pod instead")
	case s.StartFirst:
		return not("start-first", "set maxSurge of the workload's strategy instead")
	case s.IncludeStopped && (p.Asked == nil || p.Asked.Back.Digest == ""): // which sets it
		return not("include-stopped", "what is scaled to 0 is updated in any case; take it away")
	case s.NoRollback:
		return not("no-rollback", "there is always a way back; take it away")
	case ct.init && !s.InitContainers:
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "it is an init container, and these keep their images unless init-containers: true is set"}
	case p.To.Ref == ct.image:
		return &updater.Refusal{Reason: updater.InvalidSettings, Detail: "write: tag would write what is written already, so no pod would be replaced; set write: digest"}
	case o.onDelete:
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "its update strategy is OnDelete; choose RollingUpdate to have it updated"}
	}
	return nil
}

// wayBack refuses a change that could not be taken back: what runs is known by a
// digest that its repository does not have. Nodes tell one of those of another
// repository that they have the same image from, and pinned to that, no new pod would
// find it.
func (c *Cluster) wayBack(ctx context.Context, o *owner, ct container, p updater.Part) error {
	if c.exists == nil || digestIn(ct.image) != "" || p.From.Digest == "" {
		return nil
	}
	pods, err := c.pods(ctx, o, false)
	if err != nil {
		return err
	}
	if served(ct, pods, p.From.Digest) {
		return nil
	}
	switch there, err := c.exists(ctx, ct.image+"@"+p.From.Digest, c.logins(o, pods)); {
	case err != nil:
		return &updater.Refusal{Reason: updater.RegistryUnavailable, Err: err,
			Detail: fmt.Sprintf("its nodes know what runs by the digest of another repository, %s, and the registry cannot be asked whether %s has it", p.From.Digest, ct.image)}
	case !there:
		return &updater.Refusal{Reason: updater.Unsupported,
			Detail: fmt.Sprintf("its nodes know what runs by the digest of another repository, %s, which %s does not have, so it could not be put back: write the digest that it is to run into its template, or restart it on nodes that have no other image of the same content", p.From.Digest, ct.image)}
	}
	return nil
}

// mustBeAllowed refuses what needs a right that updaterd does not have.
func (c *Cluster) mustBeAllowed(ctx context.Context, verb, group, resource, namespace, what string, reason updater.Reason) error {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Namespace: namespace},
	}}
	if err := c.api.Create(ctx, reviewResource(), "", review, review); err != nil {
		return fmt.Errorf("cluster %s: asking whether %s %s is allowed: %w", c.name, verb, resource, err)
	}
	if review.Status.Allowed {
		return nil
	}
	return &updater.Refusal{Reason: reason, Detail: fmt.Sprintf(
		"%s needs the right to %s %s in namespace %s, which updaterd does not have: apply the overlay %s of configs/kubernetes", what, verb, resource, namespace, overlay(verb, resource))}
}

// overlay is the directory below configs/kubernetes/overlays that grants a right.
func overlay(verb, resource string) string {
	if resource == "pods" && verb == "delete" {
		return "delete"
	}
	return "jobs"
}

// imagePatch is a strategic merge patch of image fields, on one version of one
// object. fields says among which containers each is.
func imagePatch(uid types.UID, version string, fields, images map[string]string) ([]byte, error) {
	type named struct {
		Name  string `json:"name"`
		Image string `json:"image"`
	}
	lists := map[string][]named{}
	for _, name := range slices.Sorted(maps.Keys(images)) {
		lists[fields[name]] = append(lists[fields[name]], named{name, images[name]})
	}
	return json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": uid, "resourceVersion": version},
		"spec":     map[string]any{"template": map[string]any{"spec": lists}},
	})
}

// cronPatch puts the spec of a patch where a CronJob has its template.
func cronPatch(patch []byte) ([]byte, error) {
	var p struct {
		Metadata json.RawMessage `json:"metadata"`
		Spec     json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"metadata": p.Metadata, "spec": map[string]any{"jobTemplate": map[string]any{"spec": p.Spec}}})
}

// write patches image fields from what they are expected to be to what they are to
// be, and returns the object as the API server answered. Every attempt names the
// version that it was decided on; on a newer one it only goes on if the fields are
// still as expected, and no updaterd has written since. Where they are as they are to be already, nothing is written.
func (c *Cluster) write(ctx context.Context, org origin, version string, from, to map[string]string, dry bool) (*owner, error) {
	k, ok := kindNamed(org.Kind)
	if !ok {
		return nil, fmt.Errorf("%s: there is no such kind", org.address())
	}
	for try := 1; ; try++ {
		patch, err := imagePatch(org.UID, version, org.Fields, to)
		if err == nil && org.Kind == "cronjob" {
			patch, err = cronPatch(patch)
		}
		if err != nil {
			return nil, fmt.Errorf("making the patch of %s: %w", org.address(), err)
		}
		object := k.object()
		err = c.patch(ctx, k.resource, org, patch, dry, object)
		if err == nil {
			return read(object)
		}
		if ctx.Err() != nil || !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) || try == conflicts {
			return nil, fmt.Errorf("cluster %s: patching the images of %s: %w", c.name, org.address(), err)
		}
		live, lost := c.get(ctx, org.Namespace, org.Kind, org.Name)
		switch {
		case lost != nil:
			return nil, lost
		case live == nil:
			return nil, fmt.Errorf("%s is gone: %w", org.address(), updater.ErrSuperseded)
		case live.UID != org.UID:
			return nil, fmt.Errorf("%s is another object by the same name: %w", org.address(), updater.ErrSuperseded)
		}
		now := live.images(to)
		switch {
		case maps.Equal(now, to):
			return live, nil
		case !maps.Equal(now, from):
			return nil, fmt.Errorf("the images of %s are %s: %w", org.address(), listed(now), updater.ErrSuperseded)
		case !live.touched.Equal(org.Touched):
			return nil, fmt.Errorf("another updaterd has written %s at %s: %w", org.address(), live.touched.Format(time.RFC3339), updater.ErrSuperseded)
		case apierrors.IsInvalid(err) && live.ResourceVersion == version:
			return nil, fmt.Errorf("cluster %s: patching the images of %s: %w", c.name, org.address(), err)
		}
		version = live.ResourceVersion
	}
}

func listed(images map[string]string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(images)) {
		all = append(all, name+"="+images[name])
	}
	return strings.Join(all, ", ")
}

func (c *Cluster) patch(ctx context.Context, r Resource, org origin, patch []byte, dry bool, out runtime.Object) error {
	if err := ctx.Err(); err != nil {
		return err // the lead may have been lost
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	return c.api.Patch(ctx, r, org.Namespace, org.Name, types.StrategicMergePatchType, patch, dry, out)
}

// Prepare implements updater.Backend: the API server says what it would make of the
// patch, admission and quotas included.
func (c *Cluster) Prepare(ctx context.Context, ch updater.Change, report func(updater.Progress)) error {
	org, _, err := records(ch)
	if err != nil {
		return err
	}
	to, err := c.said(ch, func(p updater.Part) string { return p.To.Ref })
	if err != nil {
		return err
	}
	report(updater.Progress{Step: "dry-run"})
	_, err = c.write(ctx, org, org.ResourceVersion, org.Before, to, true)
	switch {
	case errors.Is(err, updater.ErrSuperseded):
		return &updater.Refusal{Reason: updater.InProgress, Detail: "somebody changed it since it was decided on; the next pass decides anew", Err: err}
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err):
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "the API server would not take the new image", Err: err}
	}
	return err
}

// Apply implements updater.Backend.
func (c *Cluster) Apply(ctx context.Context, ch updater.Change) (updater.Applied, error) {
	org, _, err := records(ch)
	if err != nil {
		return updater.Applied{}, err
	}
	to, err := c.said(ch, func(p updater.Part) string { return p.To.Ref })
	if err != nil {
		return updater.Applied{}, err
	}
	o, err := c.write(ctx, org, org.ResourceVersion, org.Before, to, false)
	if errors.Is(err, updater.ErrSuperseded) {
		// Unless it is what admission made of our own patch, before a crash.
		if live, lost := c.get(ctx, org.Namespace, org.Kind, org.Name); lost == nil && live != nil && live.UID == org.UID && live.writtenByUs(org.Before) {
			o, err = live, nil
		}
	}
	if err != nil {
		return updater.Applied{}, err
	}
	c.saw(ch, o.Generation)
	at := o.touched
	if !at.After(org.Touched) {
		at = time.Now() // it was there already, or the API server does not say
	}
	raw, err := json.Marshal(mark{Generation: o.Generation, Images: o.images(to), At: at})
	if err != nil {
		return updater.Applied{}, fmt.Errorf("recording what change %s made: %w", ch.ID, err)
	}
	return updater.Applied{Mark: raw}, nil
}

// writtenByUs reports whether these containers have other images than before, and
// updaterd was the last to write them.
func (o *owner) writtenByUs(before map[string]string) bool {
	for name, image := range before {
		if c, ok := o.container(name); !ok || c.image == image || c.written != manager {
			return false
		}
	}
	return true
}

// ours are the images that a change wrote, as the API server answered them, or, when
// the answer was lost, as they were asked for.
func (c *Cluster) ours(ch updater.Change, m mark) (map[string]string, error) {
	if m.Images != nil {
		return m.Images, nil
	}
	return c.said(ch, func(p updater.Part) string { return p.To.Ref })
}

// Commit implements updater.Backend. The way back is in the journal alone.
func (c *Cluster) Commit(ctx context.Context, ch updater.Change) error {
	org, _, err := records(ch)
	if err != nil {
		return err
	}
	if err := c.removeTests(ctx, ch, org); err != nil {
		return err
	}
	c.forget(ch)
	return nil
}

// Restore implements updater.Backend: it writes back the images that are still the
// ones this change wrote, and frees a StatefulSet that waits for a pod that cannot
// become ready. The Jobs of tests go after that: one that cannot be removed must not
// keep the workload on the new image.
func (c *Cluster) Restore(ctx context.Context, ch updater.Change) (updater.Restoration, error) {
	if ch.Phase == updater.Committing || ch.Phase == updater.Committed {
		return updater.Restoration{}, nil
	}
	org, m, err := records(ch)
	if err != nil {
		return updater.Restoration{}, err
	}
	r, err := c.writeBack(ctx, ch, org, m)
	if err != nil && !errors.Is(err, updater.ErrSuperseded) {
		return r, err
	}
	if left := c.removeTests(ctx, ch, org); left != nil {
		return r, left // and all of it again later, which then finds it back already
	}
	return r, err
}

func (c *Cluster) writeBack(ctx context.Context, ch updater.Change, org origin, m mark) (updater.Restoration, error) {
	var r updater.Restoration
	wrote, err := c.ours(ch, m)
	if err != nil {
		return r, err
	}
	// Nobody heard the answer to our patch, so the API server may not have it yet.
	unheard := ch.Disturbed && !ch.Superseded && m.Images == nil
	for try := 1; ; try++ {
		live, err := c.get(ctx, org.Namespace, org.Kind, org.Name)
		switch {
		case err != nil:
			return r, err
		case live == nil:
			return r, fmt.Errorf("%s is gone: %w", org.address(), updater.ErrSuperseded)
		case live.UID != org.UID:
			return r, fmt.Errorf("%s is another object by the same name: %w", org.address(), updater.ErrSuperseded)
		}
		if _, ok := live.Labels[labelBack]; ok {
			if err := c.label(ctx, org, live.ResourceVersion, nil); err != nil && !(apierrors.IsConflict(err) && try < conflicts) {
				return r, err
			}
			continue
		}
		back, refs := c.back(ctx, ch, org, live)
		r.Refs = refs
		from, to, theirs := map[string]string{}, map[string]string{}, ""
		for name := range org.Before {
			if _, ok := live.container(name); !ok {
				theirs = "somebody removed the container " + name
				delete(r.Refs, c.id(live, name))
			}
		}
		for name, now := range live.images(org.Before) {
			ct, _ := live.container(name)
			switch {
			case now == org.Before[name]:
				delete(r.Refs, c.id(live, name))
			case now == back[name]:
			case now == c.pinned(ch, c.id(live, name)):
				// An earlier attempt knew that the tag had moved; nobody can say so now.
				r.Refs[c.id(live, name)] = now
			case now == wrote[name] || m.Images == nil && ct.written == manager:
				from[name], to[name] = now, back[name]
			default:
				theirs = name + " has the image " + now
				delete(r.Refs, c.id(live, name))
			}
		}
		if len(to) > 0 {
			now := org
			now.Touched = live.touched
			live, err = c.write(ctx, now, live.ResourceVersion, from, to, false)
			if errors.Is(err, updater.ErrSuperseded) && try < conflicts {
				continue // look again whose they are
			}
			if err != nil {
				return r, err
			}
		}
		if unheard && len(to) == 0 && theirs == "" {
			err := c.label(ctx, org, live.ResourceVersion, &ch.ID)
			if err != nil && !(apierrors.IsConflict(err) && try < conflicts) {
				return r, err
			}
			unheard = err != nil
			continue
		}
		c.saw(ch, live.Generation)
		if theirs != "" {
			return r, fmt.Errorf("%s: %w", theirs, updater.ErrSuperseded)
		}
		if org.OrderedReady && ch.Disturbed && !ch.Superseded {
			return r, c.free(ctx, org, wrote, live.Generation)
		}
		return r, nil
	}
}

// labelBack is on a workload for the moment in which a patch is made stale that may
// still be on its way: that patch names the version it was decided on, and a label is
// the one thing that makes another without an effect, since controllers do not copy
// the labels of a workload, as they do its annotations. Whoever goes on after a crash
// takes it off.
const labelBack = "updaterd-swap.going-back"

// label puts labelBack on one version of a workload, or takes it off.
func (c *Cluster) label(ctx context.Context, org origin, version string, value *string) error {
	k, ok := kindNamed(org.Kind)
	if !ok {
		return fmt.Errorf("%s: there is no such kind", org.address())
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": org.UID, "resourceVersion": version, "labels": map[string]*string{labelBack: value},
	}})
	if err == nil {
		err = c.patch(ctx, k.resource, org, patch, false, k.object())
	}
	if err != nil {
		return fmt.Errorf("cluster %s: labelling %s: %w", c.name, org.address(), err)
	}
	return nil
}

// back are the images to go back to, by container, and by workload those that are
// not what was written before: a tag that has moved is pinned to the digest that ran.
func (c *Cluster) back(ctx context.Context, ch updater.Change, org origin, live *owner) (images, refs map[string]string) {
	images, refs = maps.Clone(org.Before), map[string]string{}
	for _, p := range ch.Parts {
		at, err := c.parse(p.Workload)
		if err != nil || digestIn(p.From.Ref) != "" || p.From.Digest == "" || p.From.Digest == p.From.Config {
			continue
		}
		moved := undigested(p.To.Ref) == p.From.Ref && p.To.Digest != p.From.Digest
		if !moved && c.moved != nil {
			now, err := c.moved(ctx, p.From.Ref, c.loginsOf(ctx, live))
			moved = err == nil && now != p.From.Digest && now != p.From.Manifest
		}
		if moved {
			images[at.container] = p.From.Ref + "@" + p.From.Digest
			refs[p.Workload] = images[at.container]
		}
	}
	return images, refs
}

// pinned is what a part ran before by its digest; "" when that is unknown.
func (c *Cluster) pinned(ch updater.Change, workload string) string {
	for _, p := range ch.Parts {
		if p.Workload == workload && p.From.Digest != "" {
			return p.From.Ref + "@" + p.From.Digest
		}
	}
	return ""
}

// free deletes what a StatefulSet with ordered pods waits for in vain after its old
// template is back: its pods with the images that were taken back, which are not
// ready. One at a time, and only as they were seen. Until the controller has taken
// notice of the template that is back, by its generation, it may make a pod that was
// deleted from the bad one again.
func (c *Cluster) free(ctx context.Context, org origin, wrote map[string]string, generation int64) error {
	ctx, cancel := context.WithTimeout(ctx, freeLimit)
	defer cancel()
	for {
		o, err := c.get(ctx, org.Namespace, org.Kind, org.Name)
		if err != nil {
			return err
		}
		if o == nil || o.UID != org.UID {
			return nil // there is nothing left to free
		}
		noticed := o.observed >= generation
		pods, err := c.pods(ctx, o, true)
		if err != nil {
			return err
		}
		var stuck, leaving *pod
		for _, p := range pods {
			if !p.is(wrote) {
				continue
			}
			switch {
			case p.DeletionTimestamp != nil:
				leaving = p
			case !p.readyNow() && (stuck == nil || p.Name > stuck.Name):
				stuck = p
			}
		}
		switch {
		case leaving != nil, !noticed:
		case stuck == nil:
			return nil
		default:
			err := c.api.Delete(ctx, podResource(), org.Namespace, stuck.Name, metav1.DeleteOptions{
				Preconditions: &metav1.Preconditions{UID: &stuck.UID, ResourceVersion: &stuck.ResourceVersion},
			})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return fmt.Errorf("cluster %s: deleting pod %s/%s, which its StatefulSet waits for: %w", c.name, org.Namespace, stuck.Name, err)
			}
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("cluster %s: a pod of %s does not go: %w", c.name, org.address(), err)
		}
	}
}

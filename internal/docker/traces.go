package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/updaterd/updaterd/internal/updater"
)

// Traces implements updater.Backend: labels and names alone tell what was
// under way.
//
//	original  new one   new runs  the change is
//	gone      X         -         over
//	X         X-new     -         to be restored
//	aside     X-new     -         to be restored
//	aside     X         no        to be restored
//	aside     X         yes       to be judged again
//	gone      X-new     -         to be restored: the new one is all there is
//	aside     none      -         to be restored, if nothing is named X
//
// An original under a name that a person gave it, beside a new one named X, is
// that person's decision: nothing is under way then.
func (h *Host) Traces(ctx context.Context, known map[string]bool) ([]updater.Change, error) {
	if _, err := h.connect(ctx); err != nil {
		return nil, err
	}
	all, err := h.list(ctx)
	if err != nil {
		return nil, err
	}
	var changes []updater.Change
	for _, t := range traces(all, h.owner, known, time.Now()) {
		c, err := h.traced(ctx, t)
		if err != nil {
			return nil, err
		}
		if c != nil {
			changes = append(changes, *c)
		}
	}
	return changes, nil
}

// trace is a change that was broken off.
type trace struct {
	change   string // its id
	name     string // of the workload
	old, new string // ids; "" when it has gone
	replaces string // id of the original, there or not
	phase    updater.Phase
}

// traces finds them in a list of all containers.
func traces(all []container.Summary, owner string, known map[string]bool, now time.Time) []trace {
	byID, byName := map[string]container.Summary{}, map[string]container.Summary{}
	for _, c := range all {
		byID[c.ID], byName[nameOf(c)] = c, c
	}
	var found []trace
	taken := map[string]bool{} // originals that some new container refers to
	for _, n := range all {
		replaces := n.Labels[labelReplaces]
		if replaces == "" {
			continue
		}
		taken[replaces] = true
		name, aside := strings.CutSuffix(nameOf(n), suffixNew)
		t := trace{change: n.Labels[labelChange], name: name, new: n.ID, replaces: replaces, phase: updater.Restoring}
		o, there := byID[replaces]
		if there {
			t.old = o.ID
		}
		switch {
		case t.change == "" || known[t.change]:
			continue
		case n.Labels[labelOwner] != owner && !expired(n.Labels[labelUntil], now):
			continue
		case !aside && (!there || nameOf(o) != name+suffixOld):
			continue
		case !aside && n.State == container.StateRunning:
			t.phase = updater.Judging
		}
		found = append(found, t)
	}
	for _, o := range all {
		name, aside := strings.CutSuffix(nameOf(o), suffixOld)
		_, there := byName[name]
		if aside && name != "" && !there && !taken[o.ID] {
			id := "aside-" + o.ID[:min(12, len(o.ID))]
			if !known[id] {
				found = append(found, trace{change: id, name: name, old: o.ID, replaces: o.ID, phase: updater.Restoring})
			}
		}
	}
	slices.SortFunc(found, func(a, b trace) int { return cmp.Compare(a.name, b.name) })
	return found
}

// tracedStable is how long a new container whose record is lost must stay
// healthy: the default of health.stable, since its own is not known.
const tracedStable = 10 * time.Second

// traced makes a change of a trace from what the engine shows of it; nil when
// it has gone meanwhile. Settings and verdict are lost with the record.
func (h *Host) traced(ctx context.Context, t trace) (*updater.Change, error) {
	found, err := inParallel(ctx, []string{t.old, t.new}, h.inspect)
	if err != nil {
		return nil, err
	}
	old, new := found[0], found[1]
	o := origin{Name: t.name, ID: t.replaces}
	c := updater.Change{
		ID: t.change, Backend: h.name, Unit: h.name + "/" + t.name, Phase: t.phase,
		Why: "it was broken off, and its record is lost", Disturbed: true,
	}
	part := updater.Part{
		Workload: c.Unit, Replace: true, Healthy: true,
		Settings: updater.Settings{Enabled: true, Keep: updater.KeepAll, Health: updater.Health{Stable: tracedStable}},
	}
	if old != nil {
		o.Image, o.Policy, o.Restarts, o.StartedAt = old.Image, old.HostConfig.RestartPolicy, old.RestartCount, old.State.StartedAt
		if part.From, err = h.runs(ctx, old); err != nil {
			return nil, err
		}
		s, err := h.snapshotOf(ctx, old)
		if err != nil {
			h.log.Warn("original cannot be recorded", "workload", c.Unit, "err", err)
		} else {
			o.Snapshot = &s
		}
		c.Since = created(old)
	}
	if new != nil {
		// The new container was created with the original's policy.
		o.Policy = new.HostConfig.RestartPolicy
		if part.To, err = h.runs(ctx, new); err != nil {
			return nil, err
		}
		c.Since = created(new)
	}
	if old == nil && new == nil {
		return nil, nil
	}
	c.Parts = []updater.Part{part}
	if c.Origin, err = json.Marshal(o); err != nil {
		return nil, fmt.Errorf("recording the original of change %s: %w", c.ID, err)
	}
	return &c, nil
}

// runs is the image that a container runs.
func (h *Host) runs(ctx context.Context, b *box) (updater.Image, error) {
	img := updater.Image{Ref: b.Config.Image}
	found, err := h.imageOf(ctx, b.Image)
	if err != nil {
		return updater.Image{}, err
	}
	if d := b.ImageManifestDescriptor; d != nil {
		img.Digest, img.Manifest = b.Image, d.Digest.String()
		return img, nil
	}
	img.Config = b.Image
	if found != nil {
		if digests := digestsOf(img.Ref, found); len(digests) > 0 {
			img.Digest = digests[0]
		}
	}
	return img, nil
}

func created(b *box) time.Time {
	t, err := time.Parse(time.RFC3339Nano, b.Created)
	if err != nil {
		return time.Time{}
	}
	return t
}

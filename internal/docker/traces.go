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
// under way. For one container:
//
//	original  new one   new runs  the change is
//	gone      X         -         over
//	X         X-new     -         to be restored
//	aside     X-new     -         to be restored
//	aside     X         no        to be restored
//	aside     X         yes       to be judged again
//	gone      X-new     -         to be restored: the new one is all there is
//	aside     none      -         to be restored, if nothing is named X
//	a copy    none      -         to be restored, if it was never started
//
// An original under a name that a person gave it, beside a new one named X, is
// that person's decision: nothing is under way then. A group is over when all of
// it is, was being committed when some of it is, and is judged again only if all
// of it is to be. Where the new one was started first, names change only after
// the gate, so then "to be judged again" is being committed, too.
func (h *Host) Traces(ctx context.Context, known map[string]bool) ([]updater.Change, error) {
	if _, err := h.connect(ctx); err != nil {
		return nil, err
	}
	all, err := h.list(ctx)
	if err != nil {
		return nil, err
	}
	h.sweepHelpers(ctx, all, known)
	h.tellOfOthers(all)
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

// tellOfOthers warns once of each change that another updaterd has under way. It may
// be one that we began, and whose journal is lost: then nothing goes on with it until
// its time is over, and its containers may be down meanwhile.
func (h *Host) tellOfOthers(all []container.Summary) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, others := time.Now(), map[string]bool{}
	for _, c := range all {
		change, owner := c.Labels[labelChange], c.Labels[labelOwner]
		if change == "" || owner == h.owner || c.Labels[labelReplaces] == "" || expired(c.Labels[labelUntil], now) ||
			!slices.ContainsFunc(all, func(o container.Summary) bool { return o.ID == c.Labels[labelReplaces] }) {
			continue
		}
		if !h.others[change] && !others[change] {
			h.log.Warn("change of another updaterd is left alone until it is over",
				"workload", h.name+"/"+strings.TrimSuffix(nameOf(c), suffixNew), "change", change, "owner", owner, "until", c.Labels[labelUntil])
		}
		others[change] = true
	}
	h.others = others // none that is over is remembered
}

// trace is a change that was broken off.
type trace struct {
	change string // its id
	phase  updater.Phase
	parts  []traceOf // in start order
	// restarted are containers that are only restarted with them.
	restarted []member
}

// traceOf is what one part of a change left.
type traceOf struct {
	name     string // of the workload
	old, new string // ids; "" when it has gone
	replaces string // id of the original, there or not
	// idle is the state that the original was in, if it is not to be started.
	idle string
}

// traces finds them in a list of all containers.
func traces(all []container.Summary, owner string, known map[string]bool, now time.Time) []trace {
	byID, byName := map[string]container.Summary{}, map[string]container.Summary{}
	for _, c := range all {
		byID[c.ID], byName[nameOf(c)] = c, c
	}
	byChange := map[string][]container.Summary{} // new containers
	taken := map[string]bool{}                   // originals that some new container refers to
	for _, n := range all {
		if replaces := n.Labels[labelReplaces]; replaces != "" {
			taken[replaces] = true
			byChange[n.Labels[labelChange]] = append(byChange[n.Labels[labelChange]], n)
			for _, m := range listedIn(n.Labels[labelGroup]) {
				taken[m.id] = true
			}
		}
	}
	var found []trace
	for change, made := range byChange {
		first := made[0]
		if change == "" || known[change] || first.Labels[labelOwner] != owner && !expired(first.Labels[labelUntil], now) {
			continue
		}
		if t, open := traceIn(change, made, byID); open {
			found = append(found, t)
		}
	}
	for _, o := range all {
		if id := o.Labels[labelCopy]; id != "" && o.State == container.StateCreated && o.Labels[labelIdle] == "" && !known[id] && !taken[o.ID] {
			found = append(found, trace{change: id, phase: updater.Restoring,
				parts: []traceOf{{name: nameOf(o), old: o.ID, replaces: o.ID}}})
			continue
		}
		name, aside := strings.CutSuffix(nameOf(o), suffixOld)
		_, there := byName[name]
		if aside && name != "" && !there && !taken[o.ID] {
			id := "aside-" + o.ID[:min(12, len(o.ID))]
			if !known[id] {
				found = append(found, trace{change: id, phase: updater.Restoring,
					parts: []traceOf{{name: name, old: o.ID, replaces: o.ID}}})
			}
		}
	}
	slices.SortFunc(found, func(a, b trace) int { return cmp.Compare(a.parts[0].name, b.parts[0].name) })
	return found
}

// member is an original in the label of a group.
type member struct {
	id   string
	idle string // the state that it was in, if it is not to be started
}

func (m member) String() string {
	if m.idle == "" {
		return m.id
	}
	return m.id + ":" + m.idle
}

// listedIn reads a label of originals, which labelOf writes.
func listedIn(label string) []member {
	var all []member
	for item := range strings.SplitSeq(label, ",") {
		if id, idle, _ := strings.Cut(item, ":"); id != "" {
			all = append(all, member{id, idle})
		}
	}
	return all
}

func labelOf(all []member) string {
	var items []string
	for _, l := range all {
		items = append(items, l.String())
	}
	return strings.Join(items, ",")
}

// traceIn reads one change from the new containers that it made; false when it is
// over, or somebody else decided.
func traceIn(change string, made []container.Summary, byID map[string]container.Summary) (trace, bool) {
	t := trace{change: change, phase: updater.Judging, restarted: listedIn(made[0].Labels[labelRestarts])}
	replaced := listedIn(made[0].Labels[labelGroup])
	if len(replaced) == 0 {
		replaced = []member{{id: made[0].Labels[labelReplaces]}}
	}
	open, dropped, retired := false, false, false
	for _, m := range replaced {
		id := m.id
		p := traceOf{replaces: id, idle: m.idle}
		o, there := byID[id]
		if there {
			p.old, p.name = id, strings.TrimSuffix(nameOf(o), suffixOld)
		}
		i := slices.IndexFunc(made, func(n container.Summary) bool { return n.Labels[labelReplaces] == id })
		if i < 0 {
			if there {
				t.phase, open = updater.Restoring, true
				t.parts = append(t.parts, p)
			}
			continue
		}
		n := made[i]
		name, aside := strings.CutSuffix(nameOf(n), suffixNew)
		p.new, p.name = n.ID, name
		t.parts = append(t.parts, p)
		switch {
		case aside:
			t.phase, open = updater.Restoring, true
		case !there:
			dropped = true
		case nameOf(o) == name+suffixOld:
			open = true
			switch {
			case n.Labels[labelStartFirst] != "":
				retired = true
			case n.State != container.StateRunning && n.Labels[labelIdle] == "":
				t.phase = updater.Restoring
			}
		case len(replaced) == 1:
			return trace{}, false
		}
	}
	if t.phase != updater.Restoring && (dropped || retired) {
		t.phase = updater.Committing
	}
	return t, open && len(t.parts) > 0
}

// tracedStable is how long a new container whose record is lost must stay
// healthy: the default of health.stable, since its own is not known.
const tracedStable = 10 * time.Second

// traced makes a change of a trace from what the engine shows of it; nil when
// it has gone meanwhile. Settings and verdict are lost with the record.
func (h *Host) traced(ctx context.Context, t trace) (*updater.Change, error) {
	c := updater.Change{
		ID: t.change, Backend: h.name, Phase: t.phase,
		Why: "it was broken off, and its record is lost", Disturbed: true,
	}
	var origins []origin
	for _, of := range t.parts {
		p, o, since, err := h.tracedPart(ctx, of)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		if c.Unit == "" && p.Changes() {
			c.Unit = p.Workload
		}
		if c.Since.Before(since) {
			c.Since = since
		}
		c.Parts, origins = append(c.Parts, *p), append(origins, o)
	}
	if len(c.Parts) == 0 {
		return nil, nil
	}
	if c.Unit == "" {
		c.Unit = c.Parts[0].Workload
	}
	for _, l := range t.restarted {
		b, err := h.inspect(ctx, l.id)
		if err != nil {
			return nil, err
		}
		if b != nil {
			c.Parts = append(c.Parts, updater.Part{Workload: h.name + "/" + b.name(), Idle: l.idle != ""})
			origins = append(origins, origin{Name: b.name(), ID: l.id, Status: l.idle})
		}
	}
	var err error
	if c.Origin, err = json.Marshal(origins); err != nil {
		return nil, fmt.Errorf("recording the original of change %s: %w", c.ID, err)
	}
	all, err := pieces(c)
	if err != nil {
		return nil, err
	}
	own, _, err := h.ownIn(ctx, all)
	c.Alone = own != nil
	return &c, err
}

func (h *Host) tracedPart(ctx context.Context, t traceOf) (*updater.Part, origin, time.Time, error) {
	found, err := inParallel(ctx, []string{t.old, t.new}, h.inspect)
	if err != nil {
		return nil, origin{}, time.Time{}, err
	}
	old, new := found[0], found[1]
	if old == nil && new == nil {
		return nil, origin{}, time.Time{}, nil
	}
	o := origin{Name: t.name, ID: t.replaces, Status: t.idle}
	p := &updater.Part{
		Workload: h.name + "/" + t.name, Replace: true, Healthy: true, Idle: t.idle != "",
		Settings: updater.Settings{Enabled: true, Keep: updater.KeepAll, Health: updater.Health{Stable: tracedStable}},
	}
	var since time.Time
	if old != nil {
		o.Image, o.Policy, o.Restarts, o.StartedAt = old.Image, old.HostConfig.RestartPolicy, old.RestartCount, old.State.StartedAt
		if p.From, err = h.runs(ctx, old); err != nil {
			return nil, origin{}, time.Time{}, err
		}
		s, err := h.snapshotOf(ctx, old)
		if err != nil {
			h.log.Warn("original cannot be recorded", "workload", p.Workload, "err", err)
		} else {
			o.Snapshot = &s
		}
		p.To, since = p.From, created(old)
	}
	if new != nil {
		// The new container was created with the original's policy.
		o.Policy, o.Overlap = new.HostConfig.RestartPolicy, new.label(labelStartFirst) != ""
		if o.Status == "" {
			o.Status = new.label(labelIdle)
		}
		p.Idle = o.Status != ""
		o.Fleeting = new.HostConfig.AutoRemove && !p.Idle
		if p.To, err = h.runs(ctx, new); err != nil {
			return nil, origin{}, time.Time{}, err
		}
		since = created(new)
	}
	return p, o, since, nil
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

package docker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/updaterd/updaterd/internal/updater"
)

// mostSuspects bounds how many files of a writable layer are looked at.
const mostSuspects = 200

// Plan implements updater.Backend. What uses the namespaces, the volumes or the
// links of a container that is replaced is replaced with it, and what Compose
// restarts with it is restarted.
func (h *Host) Plan(ctx context.Context, c *updater.Change, join func(string) (updater.Settings, error)) error {
	select {
	case h.planners <- struct{}{}:
		defer func() { <-h.planners }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	all, err := h.kindred(ctx)
	if err != nil {
		return err
	}
	if err := h.widen(c, all, join); err != nil {
		return err
	}
	c.Alone = false
	origins := make([]origin, len(c.Parts))
	for i := range c.Parts {
		if origins[i], err = h.plan(ctx, c, i, all); err != nil {
			return inGroup(c, i, err)
		}
	}
	if c.Origin, err = json.Marshal(origins); err != nil {
		return fmt.Errorf("recording the original of change %s: %w", c.ID, err)
	}
	return nil
}

// widen adds to a wish what must move along, and puts all in start order.
func (h *Host) widen(c *updater.Change, all []kin, join func(string) (updater.Settings, error)) error {
	wished := map[string]bool{}
	parts := map[string]updater.Part{} // by container id
	for _, p := range c.Parts {
		name, err := h.workloadName(p.Workload)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(k kin) bool { return k.name == name })
		if i < 0 {
			return fmt.Errorf("container %s has gone since it was listed: %w", name, updater.ErrSuperseded)
		}
		wished[all[i].id] = true
		parts[all[i].id] = p
	}
	g := groupOf(wished, all)
	add := func(k kin, replace bool) error {
		if _, ok := parts[k.id]; ok {
			return nil
		}
		p := updater.Part{Workload: h.name + "/" + k.name, Replace: replace}
		if err := mayJoin(k); err != nil {
			return err
		}
		var err error
		p.Settings, err = join(p.Workload)
		parts[k.id] = p
		return err
	}
	for _, k := range g.replaced {
		if err := add(k, true); err != nil {
			return err
		}
	}
	for _, k := range g.restarted {
		if err := add(k, false); err != nil {
			return err
		}
	}

	needs := using(all)
	for id, more := range following(all, false) {
		needs[id] = append(needs[id], more...)
	}
	for id, p := range parts {
		for _, n := range p.Settings.DependsOn {
			if k, ok := resolve(strings.TrimPrefix(n, h.name+"/"), all); ok && k.id != id {
				needs[id] = append(needs[id], k.id)
			}
		}
	}
	sorted, err := inOrder(slices.Concat(g.replaced, g.restarted), needs)
	if err != nil {
		return err
	}
	c.Parts, c.Related = nil, nil
	for _, k := range sorted {
		c.Parts = append(c.Parts, parts[k.id])
	}
	for _, k := range g.related {
		c.Related = append(c.Related, h.name+"/"+k.name)
	}
	return nil
}

// mayJoin refuses what cannot move along with others.
func mayJoin(k kin) error {
	if k.oneOff() {
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("%s uses it, and is a one-off container of Compose, which is not run again: let it end, and remove it", k.name),
		}
	}
	if isSetAside(k.name) {
		return &updater.Refusal{
			Reason: updater.InProgress,
			Detail: fmt.Sprintf("%s uses it, and belongs to a change that is not over; if none is under way, one left it: remove it when it is not wanted any more", k.name),
		}
	}
	if who := manager(k.labels); who != "" {
		return &updater.Refusal{
			Reason: updater.ManagedElsewhere,
			Detail: fmt.Sprintf("%s uses it, and is managed by %s: update it there", k.name, who),
		}
	}
	return nil
}

// inGroup names the part of a group that an error is about.
func inGroup(c *updater.Change, part int, err error) error {
	r, ok := errors.AsType[*updater.Refusal](err)
	if !ok || c.Parts[part].Workload == c.Unit {
		return err
	}
	return &updater.Refusal{Reason: r.Reason, Err: r.Err, Detail: c.Parts[part].Workload + ", which must move along: " + r.Detail}
}

// plan looks at one part and records what is there.
func (h *Host) plan(ctx context.Context, c *updater.Change, part int, all []kin) (origin, error) {
	p := &c.Parts[part]
	name, err := h.workloadName(p.Workload)
	if err != nil {
		return origin{}, err
	}
	asked := p.To != (updater.Image{}) // the others go along
	old, err := h.inspect(ctx, name)
	switch {
	case err != nil:
		return origin{}, err
	case old == nil:
		return origin{}, fmt.Errorf("container %s has gone since it was listed: %w", name, updater.ErrSuperseded)
	}
	status := old.State.Status
	p.Idle = !old.running() || old.State.Paused
	switch {
	case asked && status != container.StateRunning && !p.Settings.IncludeStopped, loops(old):
		return origin{}, &updater.Refusal{Reason: updater.NotRunning, Detail: notRunning(status)}
	case !asked && old.State.Paused, status == container.StateRemoving, status == container.StateDead:
		return origin{}, &updater.Refusal{Reason: updater.NotRunning, Detail: notRunning(status)}
	}
	p.Healthy = healthy(old)
	p.StopTimeout = stopTimeout(old, 0)
	o := origin{
		Name: name, ID: old.ID, Image: old.Image, Policy: old.HostConfig.RestartPolicy,
		Settled: settled(old), Restarts: old.RestartCount, StartedAt: old.State.StartedAt,
		Fleeting: old.HostConfig.AutoRemove && !p.Idle, Overlap: p.Settings.StartFirst && !p.Idle,
	}
	if p.Idle {
		o.Status = string(status)
	}
	if !asked {
		if p.From, err = h.runs(ctx, old); err != nil {
			return origin{}, err
		}
		p.To = p.From
	}
	if err := h.permitted(ctx, *p, old); err != nil {
		return origin{}, err
	}
	if err := refuseSignal(p.Settings.StopSignal, old.Config.StopSignal, h.client().ClientVersion()); err != nil {
		return origin{}, err
	}
	if !p.Replace {
		return o, h.itself(ctx, c, old, all)
	}
	if err := clusterOnly(p.Settings); err != nil {
		return origin{}, err
	}
	if err := h.itself(ctx, c, old, all); err != nil {
		return origin{}, err
	}
	if err := h.inTheWay(ctx, old); err != nil {
		return origin{}, err
	}
	if err := h.startable(ctx, old, p.Idle, all); err != nil {
		return origin{}, err
	}
	s, err := h.snapshotOf(ctx, old)
	if err != nil {
		return origin{}, err
	}
	o.Snapshot = &s
	if err := refuse(s, p.Settings.NoRollback); err != nil {
		return origin{}, err
	}
	if o.Overlap {
		if err := refuseOverlap(s, len(c.Parts)); err != nil {
			return origin{}, err
		}
	}
	if err := h.copied(ctx, old, s); err != nil {
		return origin{}, err
	}
	if p.Changes() {
		if err := h.planImage(ctx, *p, &o); err != nil {
			return origin{}, err
		}
	}
	if probe := p.Settings.Health.Probe; probe != "" && !p.Idle {
		why, err := h.probe(ctx, old, probe)
		switch {
		case err != nil:
			return origin{}, err
		case why != "":
			return origin{}, &updater.Refusal{
				Reason: updater.Unsupported,
				Detail: fmt.Sprintf("health.probe %s does not pass on what runs, so it cannot judge what comes: %s", probe, why),
			}
		}
	}
	return o, nil
}

// startable refuses a container that could not be started again once it is
// stopped, because of what it uses.
func (h *Host) startable(ctx context.Context, b *box, idle bool, all []kin) error {
	alive := map[string]bool{}
	for _, ref := range livesIn(b.HostConfig) {
		alive[ref] = true
	}
	for _, ref := range references(b.HostConfig) {
		other, ok := resolve(ref, all)
		if !ok {
			return &updater.Refusal{
				Reason: updater.Unsupported,
				Detail: fmt.Sprintf("it uses container %s, which does not exist any more: recreate it by hand", ref),
			}
		}
		if idle || !alive[ref] {
			continue
		}
		now, err := h.inspect(ctx, other.id)
		switch {
		case err != nil:
			return err
		case now == nil || !now.State.Running || now.State.Restarting:
			return &updater.Refusal{
				Reason: updater.NotRunning,
				Detail: fmt.Sprintf("it uses container %s, which does not run, so it could not be started again: start that one", other.name),
			}
		}
	}
	return nil
}

// planImage records what the tag to be written stands for now, and whether the
// image is here.
func (h *Host) planImage(ctx context.Context, p updater.Part, o *origin) error {
	tag, err := localTag(p.To.Ref)
	if err != nil {
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "the reference to write is none", Err: err}
	}
	if tag != "" {
		img, err := h.imageOf(ctx, tag)
		if err != nil {
			return err
		}
		if o.NewTag = img == nil; img != nil {
			o.TagImage = img.ID
		}
	} else if h.isPodman() && hasTag(p.To.Ref) {
		// The container would say the digest alone, and nobody could follow the tag.
		return &updater.Refusal{
			Reason: updater.InvalidSettings,
			Detail: "Podman forgets the tag of a reference with a digest: take write: digest away",
		}
	}
	ref, err := byDigest(p.To.Ref, p.To.Digest)
	if err != nil {
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "the image decided on has no digest", Err: err}
	}
	img, err := h.imageOf(ctx, ref)
	o.NewImage = img == nil
	return err
}

// healthy: it runs, and its health check, if it has one, passes.
func healthy(b *box) bool {
	return b.State.Running && !b.State.Restarting && !b.State.Paused &&
		(engineHealth(b) == updater.HealthNone || engineHealth(b) == updater.HealthHealthy)
}

// settled is a hash of all in a HostConfig that a swap does not change. What
// says nothing is left out: an engine that was restarted shows an empty list as
// [] that it showed as null before, and nobody has changed anything.
func settled(b *box) string {
	var raw struct{ HostConfig map[string]any }
	if json.Unmarshal(b.raw, &raw) != nil {
		return ""
	}
	delete(raw.HostConfig, "RestartPolicy")
	delete(raw.HostConfig, "Links") // shows the others' present names; nobody can change it
	maps.DeleteFunc(raw.HostConfig, func(_ string, v any) bool { return empty(v) })
	text, err := json.Marshal(raw.HostConfig) // sorts the keys
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// snapshotOf records all that creating the container again needs.
func (h *Host) snapshotOf(ctx context.Context, b *box) (snapshot, error) {
	cli := h.client()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	s := snapshot{Container: b.raw, API: cli.ClientVersion(), Podman: h.isPodman(), NetworkNames: map[string]string{}}
	latest, err := h.latest(ctx, b.ID)
	if err != nil {
		return snapshot{}, err
	}
	if err := refuseUnknown(latest, nil); err != nil {
		return snapshot{}, err
	}
	if s.Image, err = h.imageRaw(ctx, b.Image); err != nil {
		return snapshot{}, err
	}
	if s.Image == nil {
		return snapshot{}, &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("its image %s has been removed from the engine, so what a person set cannot be told from what the image brought: recreate it by hand", b.Image),
		}
	}
	if s.Podman && b.Config.Healthcheck != nil {
		if s.Image, err = withHealthcheck(ctx, cli, s.Image); err != nil {
			return snapshot{}, err
		}
	}
	for _, from := range b.HostConfig.VolumesFrom {
		ref, _, _ := strings.Cut(from, ":")
		other, err := h.inspect(ctx, ref)
		if err != nil {
			return snapshot{}, err
		}
		if other == nil {
			continue // its volumes stay with those that have them
		}
		for _, m := range other.Mounts {
			if name := volumeName(m); name != "" {
				s.Theirs = append(s.Theirs, name)
			}
		}
	}
	if b.HostConfig.NetworkMode.IsHost() { // only then is its name the container's
		// An engine starts programs of its own to answer this.
		info, err := cli.Info(ctx)
		if err != nil {
			return snapshot{}, fmt.Errorf("asking the engine about itself: %w", err)
		}
		s.Daemon = info.Name
	}
	networks, err := cli.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return snapshot{}, fmt.Errorf("listing networks: %w", err)
	}
	for _, n := range networks {
		s.NetworkNames[n.ID] = n.Name
	}
	return s, nil
}

// latest is the raw inspect of a container in the latest version of the API that the
// engine speaks: in an earlier one it leaves out the fields that came later. nil
// where the client speaks that version.
func (h *Host) latest(ctx context.Context, id string) (json.RawMessage, error) {
	cli := h.client()
	h.mu.Lock()
	version := h.version
	h.mu.Unlock()
	if version == "" || versions.LessThanOrEqualTo(version, cli.ClientVersion()) {
		return nil, nil
	}
	var raw json.RawMessage
	if err := askBeyond(ctx, cli, "/v"+version+"/containers/"+id+"/json", &raw); err != nil {
		return nil, fmt.Errorf("inspecting container %s in API %s: %w", id, version, err)
	}
	return raw, nil
}

// copied refuses a container with files that Compose copied into it: they
// would vanish with its writable layer, and no inspect shows them.
func (h *Host) copied(ctx context.Context, b *box, s snapshot) error {
	if b.label(labelProject) == "" {
		return nil // a diff reads the whole layer: only where it can matter
	}
	ctx, cancel := context.WithTimeout(ctx, 2*lookLimit)
	defer cancel()
	diff, err := h.client().ContainerDiff(ctx, b.ID)
	if err != nil {
		return fmt.Errorf("reading what changed in the files of container %s: %w", b.name(), err)
	}
	paths := suspects(s, diff)
	if len(paths) > mostSuspects {
		// Compose copies a few files; a program that wrote this many hides them.
		paths = paths[:mostSuspects]
	}
	files, err := inParallel(ctx, paths, func(ctx context.Context, path string) (layerFile, error) {
		stat, err := h.client().ContainerStatPath(ctx, b.ID, path)
		switch {
		case err == nil:
		case told(err) && !cerrdefs.IsPermissionDenied(err):
			return layerFile{}, nil // gone meanwhile, or not to be read
		default:
			return layerFile{}, fmt.Errorf("looking at %s in container %s: %w", path, b.name(), err)
		}
		return layerFile{Path: path, Mode: stat.Mode, Modified: stat.Mtime}, nil
	})
	if err != nil {
		return err
	}
	if found := copiedIn(s, files); len(found) > 0 {
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("%s: Compose copied this into the container, and it would be gone from a new one: give it as a file: or update it with docker compose", strings.Join(found, ", ")),
		}
	}
	return nil
}

// inTheWay refuses a container whose change cannot begin because the names or
// the container itself belong to another one.
func (h *Host) inTheWay(ctx context.Context, b *box) error {
	found, err := inParallel(ctx, []string{b.name() + suffixNew, b.name() + suffixOld, b.label(labelReplaces)}, h.inspect)
	if err != nil {
		return err
	}
	if found[2] != nil {
		return &updater.Refusal{
			Reason: updater.InProgress,
			Detail: fmt.Sprintf("it is the new container of change %s of %s, which is not over", b.label(labelChange), b.label(labelOwner)),
		}
	}
	for _, f := range found[:2] {
		switch {
		case f == nil:
		case f.label(labelReplaces) == b.ID && h.stale(f):
			// Prepare removes it.
		case f.label(labelReplaces) == b.ID:
			return &updater.Refusal{
				Reason: updater.InProgress,
				Detail: fmt.Sprintf("container %s belongs to change %s of %s, which is not over", f.name(), f.label(labelChange), f.label(labelOwner)),
			}
		default:
			return &updater.Refusal{
				Reason: updater.Unsupported,
				Detail: fmt.Sprintf("container %s has a name that the change needs: look whether it is still wanted, and remove or rename it", f.name()),
			}
		}
	}
	return nil
}

// imageRaw is the engine's whole answer about an image; nil if it has gone.
func (h *Host) imageRaw(ctx context.Context, id string) (json.RawMessage, error) {
	defer h.looking()()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var raw bytes.Buffer
	opts := []client.ImageInspectOption{client.ImageInspectWithRawResponse(&raw)}
	if versions.GreaterThanOrEqualTo(h.client().ClientVersion(), "1.48") {
		// Where images are in containerd, Compose writes down the manifest.
		opts = append(opts, client.ImageInspectWithManifests(true))
	}
	err := steadily(ctx, func() error {
		raw.Reset()
		_, err := h.client().ImageInspect(ctx, id, opts...)
		return err
	})
	switch {
	case cerrdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspecting image %s: %w", id, err)
	}
	return raw.Bytes(), nil
}

// engineHealth is the engine's own verdict on what runs. Between an exit and the
// restart the engine calls a container unhealthy as well, though no check has
// failed: that is a crash, and the count of restarts judges it.
func engineHealth(b *box) updater.EngineHealth {
	if b.State.Health == nil || !b.State.Running || b.State.Restarting {
		return updater.HealthNone
	}
	switch b.State.Health.Status {
	case container.Starting:
		return updater.HealthStarting
	case container.Healthy:
		return updater.HealthHealthy
	case container.Unhealthy:
		return updater.HealthUnhealthy
	}
	return updater.HealthNone
}

package docker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/updaterd/updaterd/internal/updater"
)

// mostSuspects bounds how many files of a writable layer are looked at.
const mostSuspects = 200

// Plan implements updater.Backend. On a Docker host a change is one container:
// what others depend on is refused.
func (h *Host) Plan(ctx context.Context, c *updater.Change, join func(string) (updater.Settings, error)) error {
	if len(c.Parts) != 1 {
		return fmt.Errorf("change %s: a change on a docker host has one part, not %d", c.ID, len(c.Parts))
	}
	p := c.Parts[0]
	name, err := h.workloadName(p.Workload)
	if err != nil {
		return err
	}
	if err := honoured(c.Parts[0].Settings); err != nil {
		return err
	}
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	old, err := h.inspect(ctx, name)
	switch {
	case err != nil:
		return err
	case old == nil:
		return fmt.Errorf("container %s has gone since it was listed: %w", name, updater.ErrSuperseded)
	case !old.State.Running || old.State.Paused || old.State.Restarting:
		return &updater.Refusal{
			Reason: updater.NotRunning, Detail: notRunning(old.State.Status),
		}
	}
	if err := h.itself(ctx, old); err != nil {
		return err
	}
	if err := h.inTheWay(ctx, old); err != nil {
		return err
	}

	o := origin{
		Name: name, ID: old.ID, Image: old.Image, Policy: old.HostConfig.RestartPolicy,
		Settled: settled(old), Restarts: old.RestartCount, StartedAt: old.State.StartedAt,
	}
	s, err := h.snapshotOf(ctx, old)
	if err != nil {
		return err
	}
	o.Snapshot = &s
	if err := refuse(s); err != nil {
		return err
	}
	if err := h.needed(ctx, old); err != nil {
		return err
	}
	if err := h.copied(ctx, old, s); err != nil {
		return err
	}
	if tag, err := localTag(p.To.Ref); err != nil {
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "the reference to write is none", Err: err}
	} else if tag != "" {
		img, err := h.imageOf(ctx, tag)
		if err != nil {
			return err
		}
		if o.NewTag = img == nil; img != nil {
			o.TagImage = img.ID
		}
	}
	ref, err := byDigest(p.To.Ref, p.To.Digest)
	if err != nil {
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "the image decided on has no digest", Err: err}
	}
	img, err := h.imageOf(ctx, ref)
	if err != nil {
		return err
	}
	o.NewImage = img == nil

	c.Parts[0].Healthy = healthy(old)
	if c.Parts[0].Settings.Health.Probe != "" {
		why, err := h.probe(ctx, old, c.Parts[0].Settings.Health.Probe)
		switch {
		case err != nil:
			return err
		case why != "":
			return &updater.Refusal{
				Reason: updater.Unsupported,
				Detail: fmt.Sprintf("health.probe %s does not pass on what runs, so it cannot judge what comes: %s", c.Parts[0].Settings.Health.Probe, why),
			}
		}
	}
	if c.Origin, err = json.Marshal(o); err != nil {
		return fmt.Errorf("recording the original of change %s: %w", c.ID, err)
	}
	return nil
}

// honoured refuses settings that this backend does not have yet, instead of
// ignoring them.
func honoured(s updater.Settings) error {
	for _, f := range []struct {
		set bool
		key string
	}{
		{s.StartFirst, "start-first"},
		{s.IncludeStopped, "include-stopped"},
		{s.NoRollback, "no-rollback"},
	} {
		if f.set {
			return &updater.Refusal{
				Reason: updater.InvalidSettings,
				Detail: f.key + " is not supported on a docker host yet: take it away",
			}
		}
	}
	return nil
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
	s := snapshot{Container: b.raw, API: cli.ClientVersion(), NetworkNames: map[string]string{}}
	var err error
	if s.Image, err = h.imageRaw(ctx, b.Image); err != nil {
		return snapshot{}, err
	}
	if s.Image == nil {
		return snapshot{}, &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("its image %s has been removed from the engine, so what a person set cannot be told from what the image brought: recreate it by hand", b.Image),
		}
	}
	info, err := cli.Info(ctx)
	if err != nil {
		return snapshot{}, fmt.Errorf("asking the engine about itself: %w", err)
	}
	s.Daemon = info.Name
	networks, err := cli.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return snapshot{}, fmt.Errorf("listing networks: %w", err)
	}
	for _, n := range networks {
		s.NetworkNames[n.ID] = n.Name
	}
	return s, nil
}

// needed refuses a container that others could not live without: they would
// keep hold of the namespaces of one that has gone.
func (h *Host) needed(ctx context.Context, b *box) error {
	all, err := h.list(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, c := range all {
		if c.ID != b.ID {
			ids = append(ids, c.ID)
		}
	}
	others, err := inParallel(ctx, ids, h.inspect)
	if err != nil {
		return err
	}
	var raws []json.RawMessage
	for _, o := range others {
		if o != nil {
			raws = append(raws, o.raw)
		}
	}
	if names := dependents(b.ID, b.name(), raws); len(names) > 0 {
		verb := "use"
		if len(names) == 1 {
			verb = "uses"
		}
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("%s %s its namespaces, volumes or links, and containers that belong together cannot be replaced yet: update them by hand", strings.Join(names, ", "), verb),
		}
	}
	return nil
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
		if err != nil {
			return layerFile{}, nil // gone meanwhile, or not to be read
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
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var raw bytes.Buffer
	_, err := h.client().ImageInspect(ctx, id, client.ImageInspectWithRawResponse(&raw))
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

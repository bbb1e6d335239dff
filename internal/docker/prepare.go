package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"

	"github.com/updaterd/updaterd/internal/updater"
)

// Prepare implements updater.Backend: it pulls, moves the local tag and creates
// the new container under its name for the time being, with all its networks.
func (h *Host) Prepare(ctx context.Context, c updater.Change, report func(updater.Progress)) error {
	o, err := readOrigin(c)
	if err != nil {
		return err
	}
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	s, b, err := h.look(ctx, c, o)
	old := b.old
	switch {
	case err != nil:
		return err
	case s.new.place == asName:
		return nil // it has been applied already
	case old == nil || old.name() != o.Name:
		return fmt.Errorf("container %s is no longer the one that was to be updated: %w", o.Name, updater.ErrSuperseded)
	case o.Snapshot == nil:
		return fmt.Errorf("change %s: its record of the original is not whole", c.ID)
	}
	was, err := h.imageOf(ctx, o.Image)
	if err != nil {
		return err
	}
	if was == nil {
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("its image %s has been removed from the engine: recreate it by hand", o.Image),
		}
	}

	img, err := h.fetch(ctx, c.Parts[0].To, was, report)
	if err != nil {
		return err
	}
	if same(old, img, c.Parts[0].To) {
		return fmt.Errorf("image %s: %w", c.Parts[0].To.Ref, updater.ErrSame)
	}
	raw, err := h.imageRaw(ctx, img.ID)
	if err != nil {
		return err
	}
	spec, err := recreate(*o.Snapshot, raw, c.Parts[0].To.Ref)
	if err != nil {
		return err
	}
	for _, note := range spec.Notes {
		h.log.Info("new container differs harmlessly", "workload", c.Parts[0].Workload, "reason", note)
	}
	h.label(&spec, c, o, old)

	report(updater.Progress{Step: "creating"})
	created, err := h.create(ctx, c, o, spec, img)
	if err != nil {
		return err
	}
	if d := created.ImageManifestDescriptor; d != nil && old.ImageManifestDescriptor != nil &&
		d.Digest == old.ImageManifestDescriptor.Digest {
		return fmt.Errorf("image %s: %w", c.Parts[0].To.Ref, updater.ErrSame)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prepared[c.ID] = true
	return nil
}

// fetch pulls the image decided on, unless it is here, and makes sure that it
// is that one.
func (h *Host) fetch(ctx context.Context, to updater.Image, was *image.InspectResponse, report func(updater.Progress)) (*image.InspectResponse, error) {
	ref, err := byDigest(to.Ref, to.Digest)
	if err != nil {
		return nil, &updater.Refusal{Reason: updater.Unsupported, Detail: "the image decided on has no digest", Err: err}
	}
	platform := updater.Platform{OS: was.Os, Architecture: was.Architecture, Variant: was.Variant}
	img, err := h.imageOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	if img == nil {
		if err := h.pull(ctx, ref, platform, report); err != nil {
			return nil, err
		}
		if img, err = h.imageOf(ctx, ref); err != nil {
			return nil, err
		}
		if img == nil {
			return nil, fmt.Errorf("image %s has gone from the engine right after its pull: is a prune running? try again", ref)
		}
	}
	if img.ID != to.Digest && !slices.Contains(digestsOf(to.Ref, img), to.Digest) {
		return nil, fmt.Errorf("image %s: the engine pulled something else, known as %s", ref, strings.Join(img.RepoDigests, ", "))
	}
	if img.Os != was.Os || img.Architecture != was.Architecture {
		return nil, &updater.Refusal{
			Reason: updater.PlatformMissing,
			Detail: fmt.Sprintf("%s is for %s/%s, the container runs %s", ref, img.Os, img.Architecture, platform),
		}
	}
	return img, nil
}

// same: the image for this platform is what runs already. Without the
// containerd store that is the image id; with it the id is the digest of the
// index, and the manifest tells.
func same(old *box, img *image.InspectResponse, to updater.Image) bool {
	if d := old.ImageManifestDescriptor; d != nil && to.Manifest != "" {
		return d.Digest.String() == to.Manifest
	}
	return img.ID == old.Image
}

// label marks the new container as this change's.
func (h *Host) label(spec *creation, c updater.Change, o origin, old *box) {
	labels := maps.Clone(spec.Config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.DeleteFunc(labels, func(k, _ string) bool {
		return strings.HasPrefix(k, labelPrefix) && k != labelAnonymous
	})
	gate := max(c.Parts[0].Settings.Health.Timeout, ownTimeout(spec.Config.Healthcheck), ownTimeout(old.Config.Healthcheck)) +
		4*c.Parts[0].Settings.Health.Stable + c.Parts[0].Settings.PreUpdate.Timeout + c.Parts[0].Settings.PostUpdate.Timeout
	stop := stopTimeout(old, c.Parts[0].Settings.StopTimeout)
	labels[labelReplaces] = o.ID
	labels[labelChange] = c.ID
	labels[labelOwner] = h.owner
	labels[labelUntil] = time.Now().Add(2*stop + gate + 2*startLimit + time.Minute).UTC().Format(time.RFC3339)
	spec.Config.Labels = labels
}

// stale: the container was made for a change that is over or broken off before
// anything was started. The driver has one change of a workload open at a
// time, so what has our owner and is not this change's is left over.
func (h *Host) stale(b *box) bool {
	return !b.started() && (b.label(labelOwner) == h.owner || expired(b.label(labelUntil), time.Now()))
}

// expired reports whether the time in a label until has passed. What cannot be
// read has: no live change writes such.
func expired(until string, now time.Time) bool {
	t, err := time.Parse(time.RFC3339, until)
	return err != nil || now.After(t)
}

// create makes the container under the name with suffixNew, unless an earlier
// call has. The tag must stand for the new image while the engine creates it, and
// is shared by all containers on it: one change at a time.
func (h *Host) create(ctx context.Context, c updater.Change, o origin, spec creation, img *image.InspectResponse) (*box, error) {
	tag, err := localTag(c.Parts[0].To.Ref)
	if err != nil {
		return nil, err
	}
	if tag != "" {
		unlock := h.refs.lock(tag)
		defer unlock()
		if err := h.tag(ctx, img.ID, tag); err != nil {
			return nil, err
		}
	}
	name := o.Name + suffixNew
	b, err := h.inspect(ctx, name)
	if err != nil {
		return nil, err
	}
	if b != nil {
		ours := b.label(labelReplaces) == o.ID && b.label(labelChange) == c.ID
		switch {
		case ours && b.started():
			return nil, fmt.Errorf("container %s has been started already: this change was broken off, and must be taken back first", name)
		case ours && b.Image == img.ID && connected(b, spec):
			return b, h.tag(ctx, o.Image, keptTag(o.Name, c.ID))
		case ours, b.label(labelReplaces) != "" && h.stale(b):
			if err := h.remove(ctx, b); err != nil {
				return nil, err
			}
		case b.label(labelReplaces) != "":
			return nil, fmt.Errorf("container %s belongs to change %s of %s: another updaterd is at work on it", name, b.label(labelChange), b.label(labelOwner))
		default:
			return nil, &updater.Refusal{
				Reason: updater.Unsupported,
				Detail: fmt.Sprintf("container %s has a name that the change needs: remove or rename it", name),
			}
		}
	}
	id, err := h.createAs(ctx, name, spec)
	if err != nil {
		return nil, err
	}
	if b, err = h.inspect(ctx, id); err != nil {
		return nil, err
	}
	switch {
	case b == nil:
		return nil, fmt.Errorf("container %s has gone right after it was created: is a prune running? try again", name)
	case b.Image != img.ID:
		return nil, errors.Join(
			fmt.Errorf("container %s was created from image %s, not from %s: somebody moved the tag %s just now; try again", name, b.Image, img.ID, tag),
			h.remove(ctx, b))
	}
	return b, h.tag(ctx, o.Image, keptTag(o.Name, c.ID))
}

// createAs creates and connects a container.
func (h *Host) createAs(ctx context.Context, name string, spec creation) (id string, err error) {
	ctx, cancel := context.WithTimeout(ctx, createLimit)
	defer cancel()
	r, err := h.client().ContainerCreate(ctx, spec.Config, spec.Host, spec.Networking, spec.Platform, name)
	if err != nil {
		return "", fmt.Errorf("creating container %s: %w", name, err)
	}
	for _, w := range r.Warnings {
		h.log.Debug("engine warns of a new container", "workload", h.name+"/"+name, "reason", w)
	}
	for _, n := range spec.Connect {
		if err := h.client().NetworkConnect(ctx, n.Network, r.ID, n.Endpoint); err != nil {
			return "", fmt.Errorf("connecting container %s to network %s: %w", name, n.Network, err)
		}
	}
	return r.ID, nil
}

// connected: a created container is in all the networks it needs, so that the
// call that made it was not broken off.
func connected(b *box, spec creation) bool {
	for _, n := range spec.Connect {
		if b.NetworkSettings == nil || b.NetworkSettings.Networks[n.Network] == nil {
			return false
		}
	}
	return true
}

// remove removes a container, but no volume: v=1 would take anonymous ones
// that another container has by name.
func (h *Host) remove(ctx context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	err := h.client().ContainerRemove(ctx, b.ID, container.RemoveOptions{Force: true})
	if err == nil || isGone(err) {
		return nil
	}
	if strings.Contains(err.Error(), "already in progress") {
		return h.waitGone(ctx, b)
	}
	return fmt.Errorf("removing container %s: %w", b.name(), err)
}

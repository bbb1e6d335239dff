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

// Prepare implements updater.Backend: it pulls, moves the local tags and creates
// the new containers under their names for the time being, with all their
// networks, each after those that it uses.
func (h *Host) Prepare(ctx context.Context, c updater.Change, report func(updater.Progress)) error {
	all, err := pieces(c)
	if err != nil {
		return err
	}
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	scenes, b, err := h.look(ctx, all)
	if err != nil {
		return err
	}
	for i, p := range all {
		switch {
		case !p.Replace:
		case scenes[i].new.place == asName:
			return nil // it has been applied already
		case b[i].old == nil || b[i].old.name() != p.Name:
			return fmt.Errorf("container %s is no longer the one that was to be updated: %w", p.Name, updater.ErrSuperseded)
		case p.Snapshot == nil:
			return fmt.Errorf("change %s: its record of the original is not whole", c.ID)
		}
	}
	images, err := h.images(ctx, all, b, report)
	if err != nil {
		return err
	}
	for i := range all {
		if err := h.fetchTest(ctx, c, i, report); err != nil {
			return err
		}
	}

	until := h.until(all, b)
	made := make([]*box, len(all))
	for i, p := range all {
		if !p.Replace {
			continue
		}
		raw, err := h.imageRaw(ctx, images[i].ID)
		if err != nil {
			return err
		}
		ref := p.To.Ref
		if !p.Changes() {
			ref = b[i].old.Config.Image
		}
		moved, err := h.moved(ctx, all, made, b[i].old)
		if err != nil {
			return err
		}
		spec, err := recreate(*p.Snapshot, raw, ref, moved)
		if err != nil {
			return err
		}
		for _, note := range spec.Notes {
			h.log.Info("new container differs harmlessly", "workload", p.Workload, "reason", note)
		}
		h.label(&spec, p, all, until)
		report(updater.Progress{Step: "creating"})
		if made[i], err = h.create(ctx, p, ref, spec, images[i]); err != nil {
			return err
		}
	}
	if sameManifests(all, b, made) {
		return fmt.Errorf("image %s: %w", all[0].To.Ref, updater.ErrSame)
	}
	if err := h.nobodyNew(ctx, all); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prepared[c.ID] = true
	return nil
}

// nobodyNew refuses to go on when a container has come, since the change was
// planned, that must move along: a pull may take long.
func (h *Host) nobodyNew(ctx context.Context, all []piece) error {
	kindred, err := h.kindred(ctx)
	if err != nil {
		return err
	}
	replaced, known := map[string]bool{}, map[string]bool{}
	for _, p := range all {
		known[p.ID] = true
		if p.Replace {
			replaced[p.ID] = true
		}
	}
	for _, k := range groupOf(replaced, kindred).replaced {
		if !known[k.id] && !isSetAside(k.name) {
			return &updater.Refusal{
				Reason: updater.InProgress,
				Detail: fmt.Sprintf("container %s has come meanwhile, and must move along: the next pass knows it", k.name),
			}
		}
	}
	return nil
}

// images are the images that the new containers are to run. ErrSame: each is
// what its container runs already.
func (h *Host) images(ctx context.Context, all []piece, b []boxes, report func(updater.Progress)) ([]*image.InspectResponse, error) {
	images := make([]*image.InspectResponse, len(all))
	same := true
	for i, p := range all {
		if !p.Replace {
			continue
		}
		was, err := h.imageOf(ctx, p.Image)
		if err != nil {
			return nil, err
		}
		if was == nil {
			return nil, &updater.Refusal{
				Reason: updater.Unsupported,
				Detail: fmt.Sprintf("container %s: its image %s has been removed from the engine: recreate it by hand", p.Name, p.Image),
			}
		}
		images[i] = was
		if !p.Changes() {
			continue
		}
		if images[i], err = h.fetch(ctx, p.To, was, report); err != nil {
			return nil, err
		}
		same = same && sameImage(b[i].old, images[i], p.To)
	}
	if same {
		return nil, fmt.Errorf("image %s: %w", all[0].To.Ref, updater.ErrSame)
	}
	return images, nil
}

// moved says what a new container is to use instead of what the old one uses:
// new containers of the same change, and by their names those that a person
// named where the engine shows an id.
func (h *Host) moved(ctx context.Context, all []piece, made []*box, old *box) (map[string]string, error) {
	moved := map[string]string{}
	for _, ref := range references(old.HostConfig) {
		for j, other := range all {
			if made[j] != nil && other.meantBy(ref) {
				moved[ref] = made[j].ID
			}
		}
	}
	if old.label(labelVolumesFrom) == "" {
		return moved, nil
	}
	written := strings.Split(old.label(labelVolumesFrom), ",")
	for i, v := range old.HostConfig.VolumesFrom {
		ref, _, _ := strings.Cut(v, ":")
		if moved[ref] != "" || i >= len(written) {
			continue
		}
		name, _, _ := strings.Cut(written[i], ":")
		now, err := h.inspect(ctx, name)
		if err != nil {
			return nil, err
		}
		if now != nil && now.ID == ref {
			moved[ref] = name
		}
	}
	return moved, nil
}

// sameManifests: the containers created run the very images of the old ones,
// which an engine with the containerd store tells only now.
func sameManifests(all []piece, b []boxes, made []*box) bool {
	for i, p := range all {
		if !p.Changes() {
			continue
		}
		was, is := b[i].old.ImageManifestDescriptor, made[i].ImageManifestDescriptor
		if was == nil || is == nil || was.Digest != is.Digest {
			return false
		}
	}
	return true
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
		// One that was kept has lost this name where names are all that keeps images.
		if img, err = h.imageOf(ctx, to.Digest); err != nil {
			return nil, err
		}
		if img != nil && img.ID != to.Digest && !slices.Contains(digestsOf(to.Ref, img), to.Digest) {
			img = nil // Podman has it from another repository, and is to know it from this one
		}
	}
	if img != nil && !h.identityOf(ctx, img).from(ref) {
		// The engine has it from another repository, a mirror's perhaps. It is to know
		// it from this one, or it would pass for an image that no registry gave.
		img = nil
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
	// From whichever repository: what has the digest is the image decided on.
	has := func(known string) bool { return strings.HasSuffix(known, "@"+to.Digest) }
	if img.ID != to.Digest && !slices.ContainsFunc(img.RepoDigests, has) {
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

// sameImage: the image for this platform is what runs already. Without the
// containerd store that is the image id; with it the id is the digest of the
// index, and the manifest tells.
func sameImage(old *box, img *image.InspectResponse, to updater.Image) bool {
	if d := old.ImageManifestDescriptor; d != nil && to.Manifest != "" {
		return d.Digest.String() == to.Manifest
	}
	return img.ID == old.Image
}

// until is when a change is broken off by whoever finds it.
func (h *Host) until(all []piece, b []boxes) time.Time {
	var stops, gate time.Duration
	for i, p := range all {
		gate = max(gate, p.Settings.Health.Timeout)
		stops += startLimit
		if old := b[i].old; old != nil {
			stops += 2 * stopTimeout(old, p.Settings.StopTimeout)
			gate = max(gate, ownTimeout(old.Config.Healthcheck))
		}
		gate = max(gate, 4*p.Settings.Health.Stable)
		stops += p.Settings.PreUpdate.Timeout + p.Settings.PostUpdate.Timeout + p.Settings.Health.Test.Timeout
	}
	return time.Now().Add(stops + 2*gate + startLimit + time.Minute)
}

// label marks the new container as this change's.
func (h *Host) label(spec *creation, p piece, all []piece, until time.Time) {
	labels := maps.Clone(spec.Config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.DeleteFunc(labels, func(k, _ string) bool { return passing(k) })
	labels[labelReplaces] = p.ID
	labels[labelChange] = p.change
	labels[labelOwner] = h.owner
	labels[labelUntil] = until.UTC().Format(time.RFC3339)
	var replaced, restarted []member
	for _, other := range all {
		l := member{id: other.ID}
		if other.Idle {
			l.idle = other.Status
		}
		if other.Replace {
			replaced = append(replaced, l)
		} else {
			restarted = append(restarted, l)
		}
	}
	if len(all) > 1 {
		labels[labelGroup] = labelOf(replaced)
	}
	if p.Idle {
		labels[labelIdle] = p.Status
	}
	if p.Overlap {
		labels[labelStartFirst] = "true"
	}
	if len(restarted) > 0 {
		labels[labelRestarts] = labelOf(restarted)
	}
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
// is shared by all containers on it: one change at a time. Of a container that
// goes along on its own image, the tag may have moved on, and stays where it is.
func (h *Host) create(ctx context.Context, p piece, ref string, spec creation, img *image.InspectResponse) (*box, error) {
	tag := ""
	if !isImageID(ref) {
		var err error
		if tag, err = localTag(ref); err != nil {
			return nil, err
		}
	}
	// Before the tag moves: two changes that move the last names of one image at
	// once can lose it on an engine that keeps images in containerd.
	if err := h.tag(ctx, p.Image, keptTag(p.Name, p.change)); err != nil {
		return nil, err
	}
	var made *box
	create := func() (err error) {
		made, err = h.createOnce(ctx, p, tag, spec, img)
		return err
	}
	if !p.Changes() {
		err := h.lend(ctx, tag, img.ID, create)
		return made, err
	}
	if tag != "" {
		unlock := h.refs.lock(tag)
		defer unlock()
	}
	for n := 1; ; n++ {
		if tag != "" {
			if err := h.tag(ctx, img.ID, tag); err != nil {
				return nil, err
			}
		}
		// Somebody who pulls the tag just then is seldom there a second time.
		if err := create(); n == createTries || !errors.Is(err, errTagMoved) {
			return made, err
		}
	}
}

// createTries is how often a container is created whose tag moves meanwhile.
const createTries = 3

// errTagMoved: the engine made a container of another image than its tag stood for
// when it was set.
var errTagMoved = errors.New("somebody moves the tag meanwhile; try again")

func (h *Host) createOnce(ctx context.Context, p piece, tag string, spec creation, img *image.InspectResponse) (*box, error) {
	name := p.Name + suffixNew
	b, err := h.inspect(ctx, name)
	if err != nil {
		return nil, err
	}
	if b != nil {
		ours := b.label(labelReplaces) == p.ID && b.label(labelChange) == p.change
		switch {
		case ours && b.started():
			return nil, fmt.Errorf("container %s has been started already: this change was broken off, and must be taken back first", name)
		case ours && b.Image == img.ID && connected(b, spec) && slices.Equal(references(b.HostConfig), references(spec.Host)):
			return b, nil
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
	if err != nil && p.Changes() && blame(err.Error()) == updater.Bad {
		return nil, &updater.Fault{Verdict: updater.Bad, Workload: p.Workload, Err: err}
	}
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
			fmt.Errorf("container %s was created as %s from image %s, not from %s: %w", name, tag, b.Image, img.ID, errTagMoved),
			h.remove(ctx, b))
	}
	return b, nil
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

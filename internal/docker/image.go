package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/versions"

	"github.com/updaterd/updaterd/internal/updater"
)

// Repositories of our own. Their tags keep images that nothing else would: no
// registry has this name, so nobody pulls from it by accident.
const (
	// keptRepository holds the original's image while a change is under way, so
	// that a prune does not take what a copy would be made from.
	keptRepository = "updaterd.local/kept/"
	// previousRepository holds the images to go back to by hand. Its tags begin
	// with a time, so they sort by age.
	previousRepository = "updaterd.local/previous/"
)

// stamp is the time at the beginning of a previous image's tag.
const stamp = "20060102T150405Z"

func keptTag(workload, change string) string {
	return keptRepository + pathComponent(workload) + ":" + tagComponent(change)
}

func previousTag(workload string, c updater.Change) string {
	return previousRepository + pathComponent(workload) + ":" + c.Since.UTC().Format(stamp) + "-" + tagComponent(c.ID)
}

// longestComponent leaves room for the rest of a repository, which engines let have
// 255 characters. A container's name may have any number.
const longestComponent = 220

// pathComponent makes a container's name one component of a repository's path.
// Repositories are in lower case and narrower in other ways: a name that does
// not fit is told from its like by a hash.
func pathComponent(name string) string {
	if len(name) <= longestComponent && regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`).MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	plain := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(name), "-")
	hash := "-" + hex.EncodeToString(sum[:4])
	return strings.Trim(plain[:min(len(plain), longestComponent-len(hash))]+hash, "-")
}

// tagComponent makes a change's id part of a tag.
func tagComponent(id string) string {
	id = regexp.MustCompile(`[^A-Za-z0-9_.-]+`).ReplaceAllString(id, "-")
	if id == "" || id[0] == '.' || id[0] == '-' {
		id = "c" + id
	}
	return id[:min(len(id), 100)]
}

// localTag is the tag that ref stands for on the engine; "" if ref names its
// image by digest, which needs no tag.
func localTag(ref string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image %q is no reference: %w", ref, err)
	}
	if _, ok := named.(reference.Canonical); ok {
		return "", nil
	}
	return reference.TagNameOnly(named).String(), nil
}

// hasTag reports whether ref names a tag, with or without a digest.
func hasTag(ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	_, ok := named.(reference.Tagged)
	return ok
}

// byDigest is ref's repository with this digest.
func byDigest(ref, dgst string) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image %q is no reference: %w", ref, err)
	}
	s := reference.TrimNamed(named).String() + "@" + dgst
	if _, err := reference.ParseNormalizedNamed(s); err != nil {
		return "", fmt.Errorf("image %s: digest %q is none: %w", ref, dgst, err)
	}
	return s, nil
}

// imageAsPulled is imageOf with no digests but those that the image was pulled or
// pushed by. An engine that keeps images in containerd gives every image digests,
// under each of its names, also one that was built or loaded there; so does Podman,
// which calls them localhost/NAME.
func (h *Host) imageAsPulled(ctx context.Context, ref string) (*image.InspectResponse, error) {
	img, err := h.imageOf(ctx, ref)
	if err != nil || img == nil || len(img.RepoDigests) == 0 {
		return img, err
	}
	if h.isPodman() {
		img.RepoDigests = slices.DeleteFunc(img.RepoDigests, func(d string) bool { return strings.HasPrefix(d, "localhost/") })
	}
	img.RepoDigests = h.identityOf(ctx, img).given(img.RepoDigests)
	return img, nil
}

// identityOf asks the engine where an image is from; nil where it does not tell.
func (h *Host) identityOf(ctx context.Context, img *image.InspectResponse) *identified {
	if img.Descriptor == nil {
		return nil
	}
	h.mu.Lock()
	tells := versions.GreaterThanOrEqualTo(h.version, identityAPI)
	h.mu.Unlock()
	if !tells {
		return nil
	}
	defer h.looking()()
	ctx, cancel := context.WithTimeout(ctx, identityLimit)
	defer cancel()
	var is struct{ Identity *identified }
	if err := askBeyond(ctx, h.client(), "/v"+identityAPI+"/images/"+img.ID+"/json", &is); err != nil {
		// It may be verifying a signature far away. Then it is as with earlier engines.
		h.log.Debug("engine does not tell where an image is from", "image", img.ID, "err", err)
		return nil
	}
	return is.Identity
}

// identityAPI is the version from which on an engine tells where an image is from.
const identityAPI = "1.53"

// identityLimit bounds the wait for it.
const identityLimit = 10 * time.Second

// identified is where an image is from: the repositories that it was pulled from or
// pushed to, and the builds that made it.
type identified struct {
	Pull  []struct{ Repository string }
	Build []struct{ Ref string }
}

// given are those of an image's digests that a registry gave it. Of an image that
// was loaded, or taken over from another store, nothing is known: then it is all.
func (is *identified) given(digests []string) []string {
	return slices.DeleteFunc(digests, func(d string) bool { return !is.from(d) })
}

// from reports whether a registry gave the image under this reference, as far as the
// engine tells.
func (is *identified) from(ref string) bool {
	if is == nil || len(is.Pull) == 0 && len(is.Build) == 0 {
		return true
	}
	told := toldOf(ref)
	return told == "" || slices.ContainsFunc(is.Pull, func(p struct{ Repository string }) bool { return p.Repository == told })
}

// toldOf is how an engine that keeps images in containerd names the repository of a
// reference as the one that an image is from. containerd notes the registry without
// its port, and what the engine then reads may be a repository of Docker Hub
// (registry:5000/web becomes docker.io/registry/web), or none ("": it is not told).
func toldOf(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	registry := url.URL{Host: reference.Domain(named)}
	return repositoryOf(registry.Hostname() + "/" + reference.Path(named))
}

// naming is to be held while an image gets or loses a name. Podman reads all names
// of an image and writes them back with the change: of two changes at once one is
// lost, and a tag that has moved to another image comes back.
func (h *Host) naming() (done func()) {
	if !h.isPodman() {
		return func() {}
	}
	return h.refs.lock(allNames)
}

// allNames is no reference, and so no tag's key.
const allNames = "*"

func (h *Host) tag(ctx context.Context, id, ref string) error {
	defer h.naming()()
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if err := h.client().ImageTag(ctx, id, ref); err != nil {
		return fmt.Errorf("tagging image %s as %s: %w", id, ref, err)
	}
	return nil
}

// untag takes a reference away, and the image with it if that was its last.
// It is no error if the reference has gone. An image that a container uses
// stays, then cerrdefs.IsConflict.
func (h *Host) untag(ctx context.Context, ref string) error {
	defer h.naming()()
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	err := steadily(ctx, func() error {
		_, err := h.client().ImageRemove(ctx, ref, image.RemoveOptions{PruneChildren: true})
		return err
	})
	if err != nil && !cerrdefs.IsNotFound(err) {
		return fmt.Errorf("untagging image %s: %w", ref, err)
	}
	return nil
}

// drop removes the image with this id if nothing uses it any more: no container
// in any state, and no tag but those of the given repositories. Digests alone do
// not keep it; the containerd store lists one that an image was pulled by among
// its tags.
func (h *Host) drop(ctx context.Context, id string, repositories ...string) error {
	img, err := h.imageOf(ctx, id)
	if err != nil || img == nil {
		return err
	}
	// The tag of a change that is creating its container from it stays.
	tags := slices.Compact(slices.Sorted(slices.Values(img.RepoTags)))
	for _, t := range tags {
		if tag, err := localTag(t); err == nil && tag != "" {
			defer h.refs.lock(tag)()
		}
	}
	if img, err = h.imageOf(ctx, id); err != nil || img == nil {
		return err
	}
	refs := slices.Concat(img.RepoTags, img.RepoDigests)
	if !slices.Equal(tags, slices.Compact(slices.Sorted(slices.Values(img.RepoTags)))) || keptByTag(refs, repositories) {
		return nil
	}
	all, err := h.list(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.ImageID == id {
			return nil
		}
	}
	slices.Sort(refs)
	for _, ref := range slices.Compact(refs) {
		// Never by force: whoever begins to use it meanwhile keeps it.
		if err := h.untag(ctx, ref); err != nil {
			if cerrdefs.IsConflict(err) {
				return nil
			}
			return err
		}
	}
	// By its id it would go with a tag that it has got meanwhile.
	if img, err = h.imageOf(ctx, id); err != nil || img == nil || len(img.RepoTags) > 0 {
		return err
	}
	if err := h.untag(ctx, id); err != nil && !cerrdefs.IsConflict(err) {
		return err
	}
	return nil
}

// keptByTag reports whether one of an image's references is a tag of another
// repository than these.
func keptByTag(refs, repositories []string) bool {
	return slices.ContainsFunc(refs, func(ref string) bool {
		return !strings.Contains(ref, "@") && !slices.Contains(repositories, repositoryOf(ref))
	})
}

// repositoryOf is the whole name of ref's repository; "" if ref is no reference.
func repositoryOf(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	return named.Name()
}

// repositories are those of the images that a piece goes from and to.
func (p piece) repositories() []string {
	var names []string
	for _, ref := range []string{p.From.Ref, p.To.Ref} {
		if name := repositoryOf(ref); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// keepPrevious brings the previous images of a workload down to the number
// that the settings keep, oldest first. Where the policy chooses tags, each
// version has one of its own, which goes with its image; tags of repositories
// that are not the workload's keep theirs.
func (h *Host) keepPrevious(ctx context.Context, p piece) error {
	keep := p.Settings.Keep
	if keep == updater.KeepAll {
		return nil
	}
	tags, err := h.tagsOf(ctx, previousRepository+pathComponent(p.Name))
	if err != nil {
		return err
	}
	for _, t := range tags[:max(len(tags)-keep, 0)] {
		if err := h.release(ctx, t, p.repositories()); err != nil {
			return err
		}
	}
	if keep == 0 {
		return h.drop(ctx, p.Image, p.repositories()...)
	}
	return nil
}

// release takes our tag off an image, and removes the image if that was all
// that kept it.
func (h *Host) release(ctx context.Context, t imageTag, repositories []string) error {
	err := h.untag(ctx, t.name)
	if cerrdefs.IsConflict(err) {
		return nil // a container uses it by this tag alone: next time
	}
	if err != nil {
		return err
	}
	return h.drop(ctx, t.id, repositories...)
}

// imageTag is a tag and the image that it stands for.
type imageTag struct{ name, id string }

// tagsOf are the tags of a repository of our own, sorted.
func (h *Host) tagsOf(ctx context.Context, repository string) ([]imageTag, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var images []image.Summary
	err := steadily(ctx, func() (err error) {
		images, err = h.client().ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("reference", repository))})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing images %s: %w", repository, err)
	}
	var tags []imageTag
	for _, img := range images {
		for _, t := range img.RepoTags {
			if strings.HasPrefix(t, repository+":") {
				tags = append(tags, imageTag{t, img.ID})
			}
		}
	}
	slices.SortFunc(tags, func(a, b imageTag) int { return strings.Compare(a.name, b.name) })
	return slices.Compact(tags), nil
}

// returnTag undoes what Prepare did to the engine's tags: the tag that was
// moved names the original's image again, so that "docker compose up" does not
// deploy what was just rejected, and a tag that was not there goes. Unless
// somebody has moved it since, or runs the new image by it.
func (h *Host) returnTag(ctx context.Context, c updater.Change, p piece, newID, newImage string) error {
	if !p.Changes() {
		return nil
	}
	tag, err := localTag(p.To.Ref)
	if err != nil || tag == "" {
		return err
	}
	unlock := h.refs.lock(tag)
	defer unlock()
	now, err := h.imageOf(ctx, tag)
	if err != nil || now == nil || now.ID == p.Image {
		return err
	}
	if newImage == "" {
		// The new container is not there to tell.
		ref, err := byDigest(p.To.Ref, p.To.Digest)
		if err != nil {
			return err
		}
		img, err := h.imageOf(ctx, ref)
		if err != nil || img == nil {
			return err
		}
		newImage = img.ID
	}
	if now.ID != newImage || !c.Disturbed && p.TagImage == newImage {
		return nil // somebody else moved it, after or before us
	}
	all, err := h.list(ctx)
	if err != nil {
		return err
	}
	for _, other := range all {
		// One that the engine removes by itself (--rm) is listed a moment longer.
		ours := other.ID == newID || other.Labels[labelReplaces] == p.ID && other.Labels[labelChange] == p.change
		if ours || other.ImageID != newImage {
			continue
		}
		if t, err := localTag(other.Image); err == nil && t == tag {
			return nil
		}
	}
	was, err := localTag(p.From.Ref)
	switch {
	case err != nil:
		return err
	case was == tag:
		if err := h.tag(ctx, p.Image, tag); err != nil && !cerrdefs.IsNotFound(err) {
			return err // without the old image there is nothing to move it to
		}
	case p.NewTag:
		if err := h.untag(ctx, tag); err != nil && !cerrdefs.IsConflict(err) {
			return err
		}
	}
	return nil
}

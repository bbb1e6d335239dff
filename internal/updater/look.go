package updater

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/updaterd/updaterd/internal/policy"
)

// finding is what looking found for one workload: a candidate, or a refusal,
// or both when the candidate is known but cannot run here.
type finding struct {
	candidate *Image
	refusal   *Refusal
	// detail is the policy's sentence about the candidate.
	detail string
	// repository and tags are the length of the tag list that was read; tags is
	// 0 when none was.
	repository string
	tags       int
}

// look asks the registry what a workload should run. It only reads. What is
// remembered tells a pin that updaterd wrote from a person's, and a whole tag
// list from a short one.
func look(ctx context.Context, r Registry, w Workload, s Settings, m Record, now time.Time) finding {
	refuse := func(reason Reason, format string, args ...any) finding {
		return finding{refusal: &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}}
	}
	if w.Skip != nil && !adopted(w, s) && (w.Skip.Reason == Pinned || w.Skip.Reason == LocalImage || w.Skip.Reason == ManagedElsewhere) {
		return finding{refusal: w.Skip}
	}
	ref, err := parseRef(w.Image)
	if err != nil {
		return refuse(Unsupported, "the reference %q cannot be understood: %v", w.Image, err)
	}
	if ref.digest != "" && s.Pin != PinFollow && w.Image != m.Committed.Ref && !slices.Contains(m.Wrote, w.Image) {
		return refuse(Pinned, "the reference names a digest; set pin to follow, or drop the digest, to let it move")
	}
	if ref.digest != "" && ref.tag == "" {
		return refuse(Pinned, "the reference names a digest and no tag that it could follow")
	}
	rule, err := policy.Parse(s.Policy)
	if err != nil {
		return refuse(InvalidSettings, "%v", err)
	}

	r = r.As(w.Logins)
	tag := ref.tag
	if tag == "" {
		tag = "latest"
	}
	f := finding{repository: ref.name}
	if rule.NeedsTags() {
		tags, err := r.Tags(ctx, ref.name)
		if err != nil {
			f.refusal = asRefusal(err, RegistryUnavailable)
			return f
		}
		f.tags = len(tags)
		if short := m.Tags.short(ref.name, len(tags), now); short != "" {
			f.refusal = &Refusal{Reason: TagListIncomplete, Detail: short}
			return f
		}
		sel := rule.Select(tag, tags)
		f.detail = sel.Detail
		if sel.Tag == "" || sel.Reason == policy.Downgrade || sel.Reason == policy.NoCandidate {
			f.refusal = &Refusal{Reason: Reason(sel.Reason), Detail: sel.Detail}
			return f
		}
		tag = sel.Tag
	}

	candidate := Image{Ref: ref.with(tag)}
	candidate.Digest, err = r.Resolve(ctx, candidate.Ref)
	if err != nil {
		f.refusal = asRefusal(err, RegistryUnavailable)
		return f
	}
	f.candidate = &candidate
	if s.writes(w) == WriteDigest || ref.digest != "" {
		candidate.Ref += "@" + candidate.Digest
	}
	if w.Runs.Is(candidate) {
		return f
	}
	// The digest differs. Only the image for this platform says whether that
	// means anything here, and whether there is one at all.
	img, err := r.Image(ctx, ref.with(tag), candidate.Digest, w.Runs.Platform)
	if err != nil {
		f.refusal = asRefusal(err, RegistryUnavailable)
		if f.refusal.Reason == NotFound {
			f.refusal = &Refusal{Reason: RegistryUnavailable, Err: err, Detail: fmt.Sprintf(
				"the registry says that %s stands for %s and does not have that; it, or a cache before it, is not in order", ref.with(tag), candidate.Digest)}
		}
		return f
	}
	candidate.Manifest, candidate.Config = img.Manifest, img.Config
	return f
}

// adopted reports whether a person wants a workload updated although another
// controller has it.
func adopted(w Workload, s Settings) bool {
	return s.Adopt && w.Skip != nil && w.Skip.Reason == ManagedElsewhere
}

// asRefusal keeps a refusal and makes one of any other error.
func asRefusal(err error, otherwise Reason) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return &Refusal{Reason: otherwise, Detail: err.Error()}
}

// ref is a reference taken apart, its name as the workload writes it.
type ref struct {
	name, tag, digest string
}

func parseRef(s string) (ref, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return ref{}, err
	}
	r := ref{name: s}
	if d, ok := named.(reference.Digested); ok {
		r.digest = d.Digest().String()
		r.name = strings.TrimSuffix(r.name, "@"+r.digest)
	}
	if t, ok := named.(reference.Tagged); ok {
		r.tag = t.Tag()
		r.name = strings.TrimSuffix(r.name, ":"+r.tag)
	}
	return r, nil
}

// with is the reference under another tag, as the workload would write it: a
// bare "nginx" stays bare as long as it means latest.
func (r ref) with(tag string) string {
	if r.tag == "" && tag == "latest" {
		return r.name
	}
	return r.name + ":" + tag
}

// tagListPatience is how long a list that lost more than half of its tags is
// disbelieved. A registry that cleaned up stays short; one that had trouble
// (the downgrades of fluxcd/image-automation-controller issues 231 and 396)
// has recovered by then.
const tagListPatience = 24 * time.Hour

// short says why a tag list of n tags is suspiciously short; "" when it is not.
func (t *TagCount) short(repository string, n int, now time.Time) string {
	if n == 0 {
		return fmt.Sprintf("the registry lists no tags of %s at all, not even the one that runs", repository)
	}
	if t == nil || t.Repository != repository || 2*n >= t.Count {
		return ""
	}
	until := now.Add(tagListPatience)
	if !t.ShortSince.IsZero() {
		until = t.ShortSince.Add(tagListPatience)
	}
	if !now.Before(until) {
		return ""
	}
	return fmt.Sprintf("the registry lists %d tags of %s where it listed %d before; not believed until %s, in case it has trouble",
		n, repository, t.Count, until.Format(time.RFC3339))
}

// next is what to remember after a list of n tags was read at now.
func (t *TagCount) next(repository string, n int, now time.Time) *TagCount {
	if t.short(repository, n, now) == "" {
		return &TagCount{Repository: repository, Count: n}
	}
	if t == nil || t.Repository != repository {
		return t
	}
	short := *t
	if short.ShortSince.IsZero() {
		short.ShortSince = now
	}
	return &short
}

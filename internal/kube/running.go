package kube

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/updaterd/updaterd/internal/updater"
)

// imageID is what a kubelet says of the image that a container runs.
type imageID struct {
	// repo is the digest under which the image was pulled: that of an index or of a
	// manifest. Empty when only the image's own id is known, which is config.
	repo, config string
	// name is the repository that goes with repo. A node that has one image from several
	// repositories names any of them.
	name string
}

// parseImageID reads the forms that there are: containerd's and CRI-O's
// "registry/name@sha256:...", dockershim's and cri-dockerd's the same behind
// "docker-pullable://", and the bare id, with or without its algorithm, of an image
// that was never pulled, or by runtimes that tell the image's id. ok is false for
// anything else.
func parseImageID(s string) (id imageID, ok bool) {
	if _, rest, found := strings.Cut(s, "://"); found {
		s = rest
	}
	name, d, pulled := strings.Cut(s, "@")
	if !pulled {
		d = name
		if !strings.Contains(d, ":") {
			d = "sha256:" + d
		}
	}
	if digest.Digest(d).Validate() != nil {
		return imageID{}, false
	}
	if pulled {
		return imageID{repo: d, name: name}, true
	}
	return imageID{config: d}, true
}

// running says what runs in a container. A digest in the template is the truth;
// else what the kubelets say of the pods that were made from it. mixed says that
// pods which are ready run different images.
func running(o *owner, c container, all []*pod) (r updater.Running, mixed string) {
	r.Platform = updater.Platform{OS: "linux", Architecture: o.arch}
	if o.arch == "" {
		r.Platform = updater.Platform{}
	}
	if c.digest != "" {
		r.Digests = []string{c.digest}
		return r, ""
	}
	ready := runningIn(c, all, func(image string) bool { return image == c.image })
	if len(ready) == 0 {
		// An admission webhook may have put something else into all of them: a mirror's
		// name, the digest that the tag stood for.
		ready = runningIn(c, all, func(image string) bool { return alike(image, c.image) || alike(undigested(image), c.image) })
	}
	for i := range ready {
		ready[i].name = "" // the image is the same
	}
	ready = distinct(ready)
	switch len(ready) {
	case 0:
		return r, ""
	case 1:
	default:
		mixed = fmt.Sprintf("its pods run %d different images of %s: %s; restart it (kubectl rollout restart) to have them alike",
			len(ready), c.image, strings.Join(show(ready), ", "))
	}
	for _, id := range ready {
		if id.repo != "" {
			r.Digests = append(r.Digests, id.repo)
		} else {
			r.Config = id.config
		}
	}
	if len(r.Digests) == 1 {
		r.Manifest = r.Digests[0] // which it may be, too
	}
	return r, mixed
}

// served reports whether a pod says that the repository of a container's image is
// where its digest comes from.
func served(c container, all []*pod, digest string) bool {
	for _, p := range all {
		s := p.of(c.name)
		if s == nil || p.images[c.name] != c.image {
			continue
		}
		if id, ok := parseImageID(s.ImageID); ok && id.repo == digest && repository(id.name) == repository(c.image) {
			return true
		}
	}
	return false
}

// repository is that of a reference, in its long form; "" when it is none.
func repository(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	return named.Name()
}

// runningIn are the images that run in a container of the pods whose image is one that
// is: those of the ready ones, or of all where none is ready.
func runningIn(c container, all []*pod, is func(image string) bool) []imageID {
	var ready, others []imageID
	for _, p := range all {
		s := p.of(c.name)
		if s == nil || p.gone() || !is(p.images[c.name]) {
			continue
		}
		id, ok := parseImageID(s.ImageID)
		if !ok {
			continue
		}
		if p.readyNow() || c.init {
			ready = append(ready, id)
		} else {
			others = append(others, id)
		}
	}
	if len(ready) == 0 {
		return others
	}
	return ready
}

func distinct(ids []imageID) (all []imageID) {
	for _, id := range ids {
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	return all
}

func show(ids []imageID) (all []string) {
	for _, id := range ids {
		all = append(all, id.repo+id.config)
	}
	slices.Sort(all)
	return all
}

// parseImage is the digest that a reference names, "" when it names none; an error
// when it is no reference.
func parseImage(ref string) (digest string, err error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String(), nil
	}
	return "", nil
}

// digestIn is the digest that a reference names; "" when it names none, or is none.
func digestIn(ref string) string {
	d, err := parseImage(ref)
	if err != nil {
		return ""
	}
	return d
}

// alike reports whether a pod's image is that of its template, or what an admission
// webhook makes of it when it has a mirror pulled from: another registry, another
// project, but the same last name, tag and digest.
func alike(pods, templates string) bool {
	return pods == templates || pods[strings.LastIndexByte(pods, '/')+1:] == templates[strings.LastIndexByte(templates, '/')+1:]
}

// undigested is a reference without its digest.
func undigested(ref string) string {
	bare, _, _ := strings.Cut(ref, "@")
	return bare
}

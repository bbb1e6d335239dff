package registry

import (
	"context"
	"encoding/json"
	"mime"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	manifestLimit = 4 << 20 // the distribution specification's
	configLimit   = 4 << 20
	indexDepth    = 3

	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	schema1        = "application/vnd.docker.distribution.manifest.v1+json"
	schema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"

	// acceptManifests is one line on purpose: some proxies keep only the first
	// of several Accept headers. All four types must be in it, or registries
	// convert or say 404 (nicholas-fedor/watchtower issue 728).
	acceptManifests = ocispec.MediaTypeImageIndex + ", " + dockerList + ", " + ocispec.MediaTypeImageManifest + ", " + dockerManifest
)

// kind is what a manifest is.
type kind int

const (
	unknown kind = iota
	index
	image
	old // schema 1
)

func kindOfType(mediaType string) kind {
	switch mediaType {
	case ocispec.MediaTypeImageIndex, dockerList:
		return index
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return image
	case schema1, schema1Signed:
		return old
	}
	return unknown
}

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		t, _, _ = strings.Cut(h.Get("Content-Type"), ";")
	}
	return strings.ToLower(strings.TrimSpace(t))
}

func isHTML(h http.Header) bool {
	t := mediaType(h)
	return t == "text/html" || t == "application/xhtml+xml"
}

// manifest is an index or an image's manifest.
type manifest struct {
	kind      kind
	manifests []ocispec.Descriptor // of an index
	config    ocispec.Descriptor   // of an image
}

// parseManifest reads body, whose own words count for more than the
// Content-Type: static storage has only one for all files.
func parseManifest(contentType string, body []byte) (manifest, bool) {
	var doc struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
		Config        *ocispec.Descriptor  `json:"config"`
		Layers        json.RawMessage      `json:"layers"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return manifest{}, false
	}
	k := kindOfType(doc.MediaType)
	if k == unknown {
		k = kindOfType(contentType)
	}
	switch {
	case k == old || doc.SchemaVersion == 1:
		return manifest{kind: old}, true
	case doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil):
		return manifest{}, false // both at once is an attack (GHSA-77vh-xpmg-72qh)
	case doc.Manifests != nil && k != image, kindOfType(doc.MediaType) == index && doc.Config == nil:
		return manifest{kind: index, manifests: doc.Manifests}, true
	case doc.Config != nil && doc.Config.Digest.Validate() == nil && k != index:
		return manifest{kind: image, config: *doc.Config}, true
	}
	return manifest{}, false
}

// contentDigest reads Docker-Content-Digest: "" and true where there is none,
// false where there is one that is none.
func contentDigest(h http.Header) (digest.Digest, bool) {
	v := strings.TrimSpace(h.Get("Docker-Content-Digest"))
	if v == "" {
		return "", true
	}
	d, err := digest.Parse(v)
	return d, err == nil
}

// resolve finds the digest of n's tag, or that n's digest is there, with a HEAD, which
// costs nothing where pulls are counted, and with a GET where that does not do.
func (c *Client) resolve(ctx context.Context, n name, cr credential) (string, error) {
	what, ref := n.repo+":"+n.tag, n.tag
	if n.tag == "" {
		what, ref = n.repo+"@"+n.digest, n.digest
	}
	q := question{method: http.MethodHead, kind: "manifests", path: "/v2/" + n.repo + "/manifests/" + ref, accept: acceptManifests, limit: manifestLimit}
	a, who, err := c.ask(ctx, n, cr, q)
	if err != nil {
		return "", err
	}
	switch a.status {
	case http.StatusOK:
		d, ok := contentDigest(a.header)
		switch {
		case isHTML(a.header):
			return "", webPage(n, what)
		case !ok:
			return "", badDigest(n, what)
		case kindOfType(mediaType(a.header)) == old:
			return "", schemaOne(n, what)
		case d != "" && kindOfType(mediaType(a.header)) != unknown:
			return d.String(), nil
		}
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest,
		// An answer to HEAD has no body that would say what is meant.
		http.StatusForbidden, http.StatusNotImplemented, http.StatusServiceUnavailable:
	default:
		return "", refuseStatus(n, what, a, who)
	}
	if isHub(n.host) {
		// There a GET counts as a pull, and HEAD is known to work.
		if a.status == http.StatusOK {
			return "", nonsense("%s answers about %s without its digest: see whether a proxy stands between", n.host, what)
		}
		return "", refuseStatus(n, what, a, who)
	}
	q.method = http.MethodGet
	if a, who, err = c.ask(ctx, n, cr, q); err != nil {
		return "", err
	}
	_, d, err := c.read(n, what, a, who)
	return d.String(), err
}

// read checks a manifest that was got, and returns it with its digest. The
// digest is that of the bytes as they came: JSON written anew is another.
func (c *Client) read(n name, what string, a *answer, cr credential) (manifest, digest.Digest, error) {
	if a.status != http.StatusOK {
		return manifest{}, "", refuseStatus(n, what, a, cr)
	}
	if isHTML(a.header) {
		return manifest{}, "", webPage(n, what)
	}
	m, ok := parseManifest(mediaType(a.header), a.body)
	if !ok {
		return manifest{}, "", nonsense("%s answers with something that is no manifest of %s, or half of one: see whether a proxy stands between", n.host, what)
	}
	if m.kind == old {
		return manifest{}, "", schemaOne(n, what)
	}
	d, ok := contentDigest(a.header)
	if !ok {
		return manifest{}, "", badDigest(n, what)
	}
	if d == "" {
		return m, digest.FromBytes(a.body), nil
	}
	if d.Algorithm().FromBytes(a.body) != d {
		return manifest{}, "", nonsense("%s answers about %s with a manifest that does not have the digest it claims: see whether a proxy changes it", n.host, what)
	}
	return m, d, nil
}

func webPage(n name, what string) error {
	return nonsense("%s answers about %s with a web page: see whether a proxy or a login stands between", n.host, what)
}

func badDigest(n name, what string) error {
	return nonsense("%s answers about %s with a digest that is none: see whether a proxy stands between", n.host, what)
}

func schemaOne(n name, what string) error {
	return refuse(updater.Unsupported, "%s has %s only in schema 1, which engines no longer pull: it must be pushed again with a current tool", n.host, what)
}

// manifestAt gets the manifest under d and holds it to d.
func (c *Client) manifestAt(ctx context.Context, n name, cr credential, d digest.Digest) (manifest, error) {
	what := n.repo + "@" + d.String()
	a, who, err := c.ask(ctx, n, cr, question{method: http.MethodGet, kind: "manifests", path: "/v2/" + n.repo + "/manifests/" + d.String(), accept: acceptManifests, limit: manifestLimit})
	if err != nil {
		return manifest{}, err
	}
	m, _, err := c.read(n, what, a, who)
	if err != nil {
		return manifest{}, err
	}
	if d.Algorithm().FromBytes(a.body) != d {
		return manifest{}, nonsense("%s answers about %s with another manifest: see whether a proxy changes it", n.host, what)
	}
	return m, nil
}

// imageTypes are the types of configs that engines take for an image's (moby,
// distribution/registry.go). Charts and other artifacts have others.
func imageType(t string) bool {
	switch t {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json",
		"application/octet-stream", "application/json", "text/html", "":
		return true
	}
	return false
}

// image finds the manifest and config for p under d.
func (c *Client) image(ctx context.Context, n name, cr credential, d digest.Digest, p updater.Platform) (updater.Image, error) {
	m, err := c.manifestAt(ctx, n, cr, d)
	if err != nil {
		return updater.Image{}, err
	}
	found, sure := d, false
	if m.kind == index {
		if found, m, sure, err = c.choose(ctx, n, cr, d, m, p); err != nil {
			return updater.Image{}, err
		}
	}
	if !imageType(m.config.MediaType) {
		return updater.Image{}, refuse(updater.Unsupported, "%s@%s is no container image but an artifact of another kind", n.repository(), d)
	}
	if !sure {
		if err := c.checkConfig(ctx, n, cr, d, m, p); err != nil {
			return updater.Image{}, err
		}
	}
	return updater.Image{Digest: d.String(), Manifest: found.String(), Config: m.config.Digest.String()}, nil
}

// matcher is how engines choose: the very platform, else one it can run
// (containerd's rules: arm/v7 runs arm/v6, arm64 runs arm, amd64 runs 386).
func matcher(p updater.Platform) platforms.MatchComparer {
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return platforms.Only(ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
}

// choose picks the manifest for p from an index. sure is false if the index
// does not say what platform the manifest is for.
func (c *Client) choose(ctx context.Context, n name, cr credential, top digest.Digest, m manifest, p updater.Platform) (found digest.Digest, chosen manifest, sure bool, err error) {
	match := matcher(p)
	had := map[string]bool{}
	for depth := 0; ; depth++ {
		var fit, nested []ocispec.Descriptor
		for _, e := range m.manifests {
			if e.Digest.Validate() != nil || attestation(e) {
				continue
			}
			if e.Platform != nil && e.Platform.OS != "" {
				had[updater.Platform{OS: e.Platform.OS, Architecture: e.Platform.Architecture, Variant: e.Platform.Variant}.String()] = true
				if !match.Match(platforms.Normalize(*e.Platform)) {
					continue
				}
			} else {
				e.Platform = nil
			}
			if kindOfType(e.MediaType) == index {
				nested = append(nested, e)
			} else if t := kindOfType(e.MediaType); t == image || t == unknown && e.MediaType == "" {
				fit = append(fit, e)
			}
		}
		slices.SortStableFunc(fit, func(a, b ocispec.Descriptor) int {
			switch { // those that say what they are for come first, as with the engine
			case a.Platform == nil && b.Platform == nil:
				return 0
			case b.Platform == nil:
				return -1
			case a.Platform == nil:
				return 1
			case match.Less(platforms.Normalize(*a.Platform), platforms.Normalize(*b.Platform)):
				return -1
			case match.Less(platforms.Normalize(*b.Platform), platforms.Normalize(*a.Platform)):
				return 1
			}
			return 0
		})
		pickFrom := fit
		if len(fit) == 0 {
			pickFrom = nested
		}
		if len(pickFrom) == 0 || depth == indexDepth {
			return "", manifest{}, false, refuse(updater.PlatformMissing, "%s@%s has no image for %s (it has %s): nothing can be done here until it is pushed for this platform too",
				n.repository(), top, p, list(had))
		}
		e := pickFrom[0]
		if m, err = c.manifestAt(ctx, n, cr, e.Digest); err != nil {
			return "", manifest{}, false, err
		}
		if m.kind == image {
			return e.Digest, m, e.Platform != nil, nil
		}
	}
}

// attestation recognises what buildkit puts beside images: its platform is
// unknown/unknown.
func attestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && (d.Platform.OS == "unknown" || d.Platform.Architecture == "unknown")
}

func list(had map[string]bool) string {
	if len(had) == 0 {
		return "none"
	}
	var all []string
	for p := range had {
		all = append(all, p)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// checkConfig holds an image without an index to p by what its config says.
// A config that cannot be had says nothing: the engine looks again.
func (c *Client) checkConfig(ctx context.Context, n name, cr credential, top digest.Digest, m manifest, p updater.Platform) error {
	d := m.config.Digest
	a, _, err := c.ask(ctx, n, cr, question{method: http.MethodGet, kind: "blobs", path: "/v2/" + n.repo + "/blobs/" + d.String(), accept: "*/*", limit: configLimit})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || a.status != http.StatusOK {
		c.log.Debug("config of an image cannot be read", "host", n.host, "repository", n.repo, "err", err)
		return nil
	}
	if isHTML(a.header) && d.Algorithm().FromBytes(a.body) != d {
		return webPage(n, "the config of "+n.repo+"@"+top.String())
	}
	if d.Algorithm().FromBytes(a.body) != d {
		return nonsense("%s answers with another config than that of %s@%s: see whether a proxy changes it", n.host, n.repo, top)
	}
	var conf ocispec.Platform
	if json.Unmarshal(a.body, &conf) != nil || conf.OS == "" || conf.Architecture == "" {
		return nil // an artifact's, or one that does not tell
	}
	if !matcher(p).Match(platforms.Normalize(conf)) {
		has := updater.Platform{OS: conf.OS, Architecture: conf.Architecture, Variant: conf.Variant}
		return refuse(updater.PlatformMissing, "%s@%s has no image for %s (it is for %s): nothing can be done here until it is pushed for this platform too",
			n.repository(), top, p, has)
	}
	return nil
}

package registry

import (
	"net"
	"strings"

	"github.com/distribution/reference"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// hub is Docker Hub's name in references.
	hub = "docker.io"
	// hubAPI is where Docker Hub's registry answers.
	hubAPI = "registry-1.docker.io"
	// hubKey is the name under which credentials of Docker Hub are kept, for
	// historical reasons (registry.IndexServer in moby).
	hubKey = "https://index.docker.io/v1/"
)

// name is a reference taken apart, normalised as the engine does it: "nginx"
// is docker.io/library/nginx:latest.
type name struct {
	host   string // "docker.io", "ghcr.io", "localhost:5000"
	repo   string // "library/nginx"
	tag    string // "" only if there is a digest and no tag
	digest string
}

// parseName takes ref apart. It is the engine's own parser, so a name means
// here what it means there.
func parseName(ref string) (name, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return name{}, &updater.Refusal{Reason: updater.InvalidSettings, Detail: "the image reference " + quote(ref) + " cannot be read: " + err.Error()}
	}
	n := name{host: strings.ToLower(reference.Domain(named)), repo: reference.Path(named)}
	if d, ok := named.(reference.Digested); ok {
		n.digest = d.Digest().String()
	}
	if t, ok := named.(reference.Tagged); ok {
		n.tag = t.Tag()
	} else if n.digest == "" {
		n.tag = "latest"
	}
	return n, nil
}

func (n name) repository() string { return n.host + "/" + n.repo }

func (n name) String() string {
	if n.tag != "" {
		return n.repository() + ":" + n.tag
	}
	return n.repository() + "@" + n.digest
}

// hostName brings the names that people write for a registry into the form
// that references have: no scheme, no path, and docker.io for Docker Hub's.
func hostName(s string) string {
	if _, rest, ok := strings.Cut(s, "://"); ok {
		s = rest
	}
	s, _, _ = strings.Cut(s, "/")
	s = strings.ToLower(s)
	switch s {
	case "index.docker.io", hubAPI, "registry.hub.docker.com":
		return hub
	}
	return s
}

// isHub reports whether host is Docker Hub under any of its names. References
// of some of them stay as they are, but the rules are the same.
func isHub(host string) bool { return hostName(host) == hub }

// loopback reports whether host is of this machine by its very name. The
// engine, too, trusts 127.0.0.0/8 and ::1 without TLS (moby, registry/config.go).
func loopback(hostport string) bool {
	h := hostport
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		h = host
	}
	h = strings.Trim(h, "[]")
	if strings.EqualFold(h, "localhost") {
		return true
	}
	ip := net.ParseIP(h)
	return ip != nil && ip.IsLoopback()
}

// linkLocal reports whether host is a literal link-local address, such as the
// metadata service of a cloud.
func linkLocal(host string) bool {
	host, _, _ = strings.Cut(strings.Trim(host, "[]"), "%")
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast())
}

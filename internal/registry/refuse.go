package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// A Refusal's Detail is shown to people and sent to chats: it names hosts,
// repositories, files and remedies, and never a URL with its query, a header,
// or what a server wrote in free text, for any of these may hold a secret.

func refuse(r updater.Reason, format string, args ...any) error {
	return &updater.Refusal{Reason: r, Detail: fmt.Sprintf(format, args...)}
}

// nonsense is an answer that is none: of a login page, a broken proxy, a liar.
func nonsense(format string, args ...any) error {
	return refuse(updater.RegistryUnavailable, format, args...)
}

func patienceRefusal(host string, n name, until time.Time) error {
	remedy := "it is left alone until then"
	if isHub(host) {
		remedy += "; logging in raises the limit"
	}
	return refuse(updater.RateLimited, "%s asks for patience until %s before it is asked about %s again; %s",
		host, until.UTC().Format(time.RFC3339), n.repo, remedy)
}

// refuseStatus is the refusal for an answer whose status is not the one hoped
// for. what is the thing asked for, as "acme/web:1.4" or "the tags of acme/web".
func refuseStatus(n name, what string, a *answer, cr credential) error {
	said := fmt.Sprint(a.status)
	if codes := a.codes(); codes != "" {
		said += " " + codes
	}
	switch {
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden, a.has("DENIED"), a.has("UNAUTHORIZED"):
		return unauthorized(n, what, said, cr)
	case a.status == http.StatusNotFound,
		// ECR says 400 where others say 404.
		a.status == http.StatusBadRequest && (a.has("NAME_UNKNOWN") || a.has("MANIFEST_UNKNOWN") || a.has("NAME_INVALID") || a.has("TAG_INVALID")):
		missing, it := what, "it"
		if tags, ok := strings.CutPrefix(what, "the "); ok {
			missing, it = tags, "them"
		}
		return refuse(updater.NotFound, "%s has no %s, or hides %s from %s (%s): see that the name is right and that the credentials may read it",
			n.host, missing, it, cr.who(), said)
	}
	return nonsense("%s cannot answer about %s (%s): it is asked again in the next pass", n.host, what, said)
}

func unauthorized(n name, what, said string, cr credential) error {
	if cr.zero() {
		note := ""
		if cr.note != "" {
			note = " (" + cr.note + ")"
		}
		return refuse(updater.Unauthorized, "%s wants credentials for %s, or there is no such thing (%s): run \"docker login %s\" as the user that updaterd runs as, or give username and password-file for the host under registries:%s",
			n.host, what, said, n.host, note)
	}
	return refuse(updater.Unauthorized, "%s does not accept the credentials from %s for %s (%s): renew them, and see that they may read %s",
		n.host, cr.source, what, said, n.repo)
}

// unreachable is the refusal for an error of the network. The end of ctx passes
// through as it is.
func unreachable(ctx context.Context, n name, err error) error {
	if e := ctx.Err(); e != nil {
		return e
	}
	var authority x509.UnknownAuthorityError
	var odd hostError
	switch err = cause(err); {
	case errors.As(err, &odd):
		return nonsense("%s cannot be asked about %s: %v: see what answers there", n.host, n.repo, err)
	case errors.As(err, &authority):
		return nonsense("%s shows a certificate that no authority known here has signed: give the authority's file as ca: of the host under registries:, or put it in /etc/docker/certs.d/%s/ca.crt (asked about %s)", n.host, n.host, n.repo)
	case isCertificate(err):
		return nonsense("%s shows a certificate that does not hold: %v (asked about %s)", n.host, err, n.repo)
	case isPlain(err):
		return nonsense("%s speaks plain HTTP where TLS is due: give the host plain-http: true under registries: if the network between is trusted (asked about %s)", n.host, n.repo)
	case isTimeout(err):
		return nonsense("%s does not answer in time about %s: see whether it and the network, a proxy or a firewall between are up", n.host, n.repo)
	}
	return nonsense("%s cannot be asked about %s: %s: see whether it and the network between are up", n.host, n.repo, scrub(err.Error()))
}

// cause strips what net/http wraps around an error: the whole URL, whose query
// may hold a signature or a token.
func cause(err error) error {
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			return err
		}
		err = u.Err
	}
}

// scrub takes out of a text what follows a question mark, for net/http quotes a
// Location that it cannot read, and shortens it.
func scrub(s string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "?")
		b.WriteString(before)
		if !found {
			break
		}
		i := strings.IndexAny(after, " \t\"'")
		if i < 0 {
			break
		}
		s = after[i:]
	}
	if b.Len() > 300 {
		return b.String()[:300] + "..."
	}
	return b.String()
}

func isCertificate(err error) bool {
	var v *tls.CertificateVerificationError
	var h x509.HostnameError
	var a x509.UnknownAuthorityError
	var i x509.CertificateInvalidError
	return errors.As(err, &v) || errors.As(err, &h) || errors.As(err, &a) || errors.As(err, &i)
}

// isPlain recognises a server that does not speak TLS. net/http turns the
// handshake's error into text when the server answered in HTTP.
func isPlain(err error) bool {
	var rec tls.RecordHeaderError
	return errors.As(err, &rec) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

func isDial(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") || errors.As(err, &dns)
}

// quote shortens s for a message.
func quote(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return fmt.Sprintf("%q", s)
}

package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Token lets its bearer in. Only a digest of it is kept.
type Token struct {
	// Name is whose it is, for the history.
	Name string
	// Sum is the SHA-256 of the token. Tokens are long and random, so nothing
	// slower is called for.
	Sum [sha256.Size]byte
	// Write: it may say things, and read log lines.
	Write bool
}

// person is who asks.
type person struct {
	name  string
	write bool
	// root may speak for others: sudo tells who it was.
	root bool
}

type personKey struct{}

func who(r *http.Request) person {
	p, _ := r.Context().Value(personKey{}).(person)
	return p
}

type peerKey struct{}

// ConnContext notes who is at the other end of a unix socket; for http.Server.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	unix, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p := person{name: "somebody", write: true} // the socket's permissions let them in
	raw, err := unix.SyscallConn()
	if err != nil {
		return context.WithValue(ctx, peerKey{}, p)
	}
	// Who cannot be told stays somebody: that is for the history only.
	_ = raw.Control(func(fd uintptr) {
		cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		if err != nil {
			return
		}
		uid := strconv.Itoa(int(cred.Uid))
		p.name, p.root = "uid "+uid, cred.Uid == 0
		if u, err := user.LookupId(uid); err == nil {
			p.name = u.Username
		}
	})
	return context.WithValue(ctx, peerKey{}, p)
}

// guard lets in who may come in, and tells the handler who that is. It comes
// before everything, so no path leads around it.
//
// On a unix socket the file's permissions have decided already. On TCP the name in
// Host must be one of ours, or else a page that somebody looks at could reach us
// under a name of its own that leads to this address; what a page of another
// origin sends is refused; and a token is needed, but for reading on loopback where
// none is configured.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		p, unix := r.Context().Value(peerKey{}).(person)
		if !unix {
			if !s.ourName(r.Host) {
				refuse(w, http.StatusMisdirectedRequest, "host", "this server is not called "+strconv.Quote(r.Host)+"; add the name to api.hosts if it is")
				return
			}
			if !sameOrigin(r) {
				refuse(w, http.StatusForbidden, "origin", "a page of another origin sent this")
				return
			}
			var ok bool
			page, anonymous := isPage(r.URL.Path)
			if anonymous {
				next.ServeHTTP(w, r)
				return
			}
			if p, ok = s.bearer(r); !ok && r.Header.Get("Authorization") == "" {
				var one session
				one, ok = s.sessions.find(r, time.Now())
				p = one.person
				// A cookie comes by itself, so what it is sent with must say whence.
				if ok && !reads(r) && r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" {
					refuse(w, http.StatusForbidden, "origin", "what a cookie lets in must say its origin")
					return
				}
			}
			if !ok && page && reads(r) {
				http.Redirect(w, r, "/login", http.StatusSeeOther)
				return
			}
			if !ok {
				h.Set("WWW-Authenticate", `Bearer realm="updaterd"`)
				refuse(w, http.StatusUnauthorized, "token", "a token is needed: Authorization: Bearer TOKEN")
				return
			}
		}
		if !reads(r) && !p.write && r.URL.Path != "/logout" {
			refuse(w, http.StatusForbidden, "read-only", "this may read only; a token of api.write-tokens is needed")
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), personKey{}, p)))
	})
}

func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// bearer is whose token a request carries.
func (s *Server) bearer(r *http.Request) (person, bool) {
	header := r.Header.Get("Authorization")
	if len(s.options.Tokens) == 0 && header == "" {
		return person{name: "somebody"}, loopback(r)
	}
	scheme, token, _ := strings.Cut(header, " ")
	p, ok := s.holder(token)
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return person{}, false
	}
	return p, true
}

// holder is whose token it is. Which one it is like cannot be told from the time
// that it takes.
func (s *Server) holder(token string) (person, bool) {
	sum := sha256.Sum256([]byte(token))
	var found *Token
	for i, t := range s.options.Tokens { // all of them, whichever it is
		if subtle.ConstantTimeCompare(t.Sum[:], sum[:]) == 1 {
			found = &s.options.Tokens[i]
		}
	}
	if found == nil {
		return person{}, false
	}
	return person{name: found.Name, write: found.Write}, true
}

func loopback(r *http.Request) bool {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// ourName reports whether a Host header names us.
func (s *Server) ourName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	return slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, host) || slices.Contains(s.options.Hosts, host)
}

// sameOrigin refuses what a browser says another site sent. Programs that are no
// browser say nothing of the kind.
func sameOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return false
	}
	origin := r.Header.Get("Origin")
	return origin == "" || origin == "http://"+r.Host || origin == "https://"+r.Host
}

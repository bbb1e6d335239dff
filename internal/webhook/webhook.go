// Package webhook hears from registries that something was pushed, so that it need
// not be found out by asking. docs/webhooks.md is for who sets one up.
//
// What a sender says is trusted for one thing: which references are worth a look
// now. What is found there, the registry says; what is done about it, the workload's
// settings. A sender proves itself by a signature of the body, or by a token in a
// header, and only where it can do neither by a token in the path. No URL is logged.
package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Kind is what a sender is, and so how its requests look.
type Kind string

// The kinds.
const (
	DockerHub    Kind = "docker-hub"
	GHCR         Kind = "ghcr"
	Harbor       Kind = "harbor"
	Gitea        Kind = "gitea" // and Forgejo
	Distribution Kind = "distribution"
)

// Sender is a registry that tells of pushes.
type Sender struct {
	// Name is the part of the path that it posts to.
	Name string
	Kind Kind
	// Secret is what it proves itself by; never empty.
	Secret string
	// Registry is the registry's name as references have it, where the sender may
	// not know that: "" takes its word.
	Registry string
}

const (
	// maxBody is the most that is read of a request.
	maxBody = 1 << 20
	// atOnce bounds the requests whose bodies are in memory.
	atOnce = 4
	// A sender may send so many a second, and so many at once.
	perSecond, burst = 1, 30
	// So many wrong secrets a minute are looked at from one address, and so many
	// addresses are remembered.
	wrongPerMinute, addressesKept = 10, 1024
	// collectFor is how long references are collected for one look: a push of
	// several tags comes as several requests.
	collectFor = 2 * time.Second
	// mostWaiting bounds the references that wait for a look.
	mostWaiting = 1000
)

// Handler serves the senders. It implements [http.Handler].
type Handler struct {
	senders map[string]*sender
	log     *slog.Logger
	bodies  chan struct{}

	mu      sync.Mutex
	wrong   map[netip.Addr]*rate.Limiter
	waiting map[string]bool
	heard   chan struct{} // holds one while something waits
}

type sender struct {
	Sender
	parse parser
	limit *rate.Limiter
	told  *rate.Limiter // of wrong secrets, in the log
}

// New returns a Handler of these senders, whose names differ. It starts nothing.
func New(senders []Sender, log *slog.Logger) *Handler {
	h := &Handler{
		senders: map[string]*sender{}, log: log, bodies: make(chan struct{}, atOnce),
		wrong: map[netip.Addr]*rate.Limiter{}, waiting: map[string]bool{}, heard: make(chan struct{}, 1),
	}
	parsers := map[Kind]parser{DockerHub: dockerHub, GHCR: ghcr, Harbor: harbor, Gitea: gitea, Distribution: distribution}
	for _, s := range senders {
		h.senders[s.Name] = &sender{
			Sender: s, parse: parsers[s.Kind],
			limit: rate.NewLimiter(perSecond, burst), told: rate.NewLimiter(rate.Every(time.Minute), 1),
		}
	}
	return h
}

// ServeHTTP implements [http.Handler]: POST /webhooks/NAME, and for Docker Hub
// /webhooks/NAME/SECRET. It answers 202 to whoever proved himself, whether anybody
// watches what he named or not.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from := address(r)
	if !h.mayTry(from) {
		w.Header().Set("Retry-After", "60")
		http.Error(w, "too many wrong secrets", http.StatusTooManyRequests)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/webhooks/")
	name, inPath, _ := strings.Cut(rest, "/")
	s := h.senders[name]
	if !ok || s == nil {
		h.tried(from)
		http.Error(w, "there is no such webhook", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "post to it", http.StatusMethodNotAllowed)
		return
	}
	// Who must show a token is not read before he has.
	if !s.signs() && !s.shows(r, inPath) || s.signs() && inPath != "" {
		h.refuse(w, s, from)
		return
	}
	select {
	case h.bodies <- struct{}{}:
		defer func() { <-h.bodies }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if errors.As(err, new(*http.MaxBytesError)) {
			http.Error(w, "the body has more than a mebibyte", http.StatusRequestEntityTooLarge)
			return
		}
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	if s.signs() && !s.signed(r, body) {
		h.refuse(w, s, from)
		return
	}
	if !s.limit.Allow() {
		w.Header().Set("Retry-After", "30")
		http.Error(w, "too many requests; what was pushed is found by the next pass", http.StatusTooManyRequests)
		return
	}
	references, err := s.parse(body, s.Registry)
	if err != nil {
		h.log.Warn("webhook sent what its kind does not send", "sender", s.Name, "kind", s.Kind)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if len(references) > 0 {
		h.log.Debug("webhook told of a push", "sender", s.Name, "references", len(references))
		h.hear(references)
	}
	w.WriteHeader(http.StatusAccepted)
}

func (h *Handler) refuse(w http.ResponseWriter, s *sender, from netip.Addr) {
	h.tried(from)
	if s.told.Allow() {
		h.log.Warn("webhook without the right secret was refused", "sender", s.Name, "from", from)
	}
	http.Error(w, "the secret is not right", http.StatusUnauthorized)
}

// signs: it signs bodies, so it shows no token.
func (s *sender) signs() bool { return s.Kind == GHCR || s.Kind == Gitea }

// signed reports whether a body has the signature that it should have.
func (s *sender) signed(r *http.Request, body []byte) bool {
	mac := hmac.New(sha256.New, []byte(s.Secret))
	mac.Write(body)
	want := mac.Sum(nil)
	headers := []string{"X-Hub-Signature-256"}
	if s.Kind == Gitea {
		headers = append(headers, "X-Gitea-Signature", "X-Forgejo-Signature")
	}
	for _, name := range headers {
		got, err := hex.DecodeString(strings.TrimPrefix(r.Header.Get(name), "sha256="))
		if err == nil && hmac.Equal(got, want) {
			return true
		}
	}
	return false
}

// shows reports whether a request has the token that it should have: Docker Hub's
// in the path, for it can send no header, others' as Authorization.
func (s *sender) shows(r *http.Request, inPath string) bool {
	if s.Kind == DockerHub {
		return same(inPath, s.Secret)
	}
	if inPath != "" {
		return false
	}
	got := r.Header.Get("Authorization")
	bare, _ := strings.CutPrefix(got, "Bearer ")
	return same(got, s.Secret) || same(bare, s.Secret)
}

// same compares in a time that tells nothing, of the length neither.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// address is who is at the other end; of IPv6, the network of one customer.
func address(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// mayTry reports whether an address has not sent too many wrong secrets.
func (h *Handler) mayTry(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.wrong[a]
	return l == nil || l.Tokens() >= 1
}

// tried notes a wrong secret.
func (h *Handler) tried(a netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.wrong[a]
	if l == nil {
		// Those whose time is over make room. If nobody's is, a crowd is at it, and
		// each of them has to begin anew.
		if len(h.wrong) >= addressesKept {
			maps.DeleteFunc(h.wrong, func(_ netip.Addr, l *rate.Limiter) bool { return l.Tokens() >= wrongPerMinute })
		}
		if len(h.wrong) >= addressesKept {
			clear(h.wrong)
		}
		l = rate.NewLimiter(rate.Every(time.Minute/wrongPerMinute), wrongPerMinute)
		h.wrong[a] = l
	}
	l.Allow()
}

// hear keeps references for the next look.
func (h *Handler) hear(references []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range references {
		if len(h.waiting) < mostWaiting { // the next pass finds the rest
			h.waiting[r] = true
		}
	}
	select {
	case h.heard <- struct{}{}:
	default:
	}
}

// Run calls look with what was heard, a little later and all together, until ctx
// ends.
func (h *Handler) Run(ctx context.Context, look func(ctx context.Context, references []string)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.heard:
		}
		t := time.NewTimer(collectFor)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		h.mu.Lock()
		references := slices.Sorted(maps.Keys(h.waiting))
		clear(h.waiting)
		h.mu.Unlock()
		if len(references) > 0 {
			look(ctx, references)
		}
	}
}

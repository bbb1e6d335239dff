package registry

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// tokenLife is how long a token lives that does not say, and the least that
	// is believed (distribution, "Token Authentication Specification").
	tokenLife  = time.Minute
	tokenLimit = 1 << 20
	// clientID names us to token servers, which want some name.
	clientID = "updaterd"
)

// grant is what a challenge asks for.
type grant struct {
	basic   bool
	realm   string
	service string
	scope   string
}

// grantOf turns a challenge into a grant, and refuses realms that no honest
// registry names. at is what was asked when the challenge came.
func (h *host) grantOf(n name, ch challenge, at *url.URL) (grant, error) {
	if ch.scheme == "basic" {
		return grant{basic: true}, nil
	}
	realm, err := at.Parse(ch.params["realm"])
	if err != nil || realm.Host == "" {
		return grant{}, nonsense("%s sends to a token server that is no URL (asked about %s): see what answers there", h.name, n.repo)
	}
	switch {
	case linkLocal(realm.Hostname()):
		return grant{}, nonsense("%s sends to a token server at the link-local address %s, which is refused (asked about %s)", h.name, realm.Hostname(), n.repo)
	case realm.Scheme != "https" && !(realm.Scheme == "http" && (at.Scheme == "http" || loopback(realm.Host))):
		return grant{}, nonsense("%s sends to the token server %s without TLS, which is refused (asked about %s)", h.name, realm.Host, n.repo)
	}
	realm.User, realm.Fragment = nil, ""
	return grant{realm: realm.String(), service: ch.params["service"], scope: ch.params["scope"]}, nil
}

// grantFor is what a question about a repository will probably need: what the
// same question needed before, or what the host's usual challenge asks for,
// with the scope that the specification has for reading.
func (h *host) grantFor(n name, kind string) (grant, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g, ok := h.grants[n.repo+" "+kind]; ok {
		return g, true
	}
	if h.usual == nil {
		return grant{}, false
	}
	g := *h.usual
	if !g.basic {
		g.scope = pullScope(n)
	}
	return g, true
}

func pullScope(n name) string { return "repository:" + n.repo + ":pull" }

// learn keeps what the challenge to a real question asks for.
func (h *host) learn(n name, kind string, g grant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.usual == nil {
		u := g
		u.scope = ""
		h.usual = &u
	}
	derived := *h.usual
	if !derived.basic {
		derived.scope = pullScope(n)
	}
	if key := n.repo + " " + kind; derived == g {
		delete(h.grants, key)
	} else {
		h.grants[key] = g
	}
}

// question is one request to a repository.
type question struct {
	method string
	kind   string // "manifests", "tags", "blobs": servers may want other scopes for each
	path   string // after the host, with its query
	accept string
	limit  int64
}

// ask puts a question to the registry of n, as cr may, and returns the answer
// whatever its status, and what it was given to: cr, or nothing where it was sent
// on. A status of 401 means that there is nothing more to try.
func (c *Client) ask(ctx context.Context, n name, cr credential, q question) (*answer, credential, error) {
	a, cr, err := c.put(ctx, n, cr, q)
	var u *unmet
	if errors.As(err, &u) {
		err = unreachable(ctx, n, u.err)
	}
	return a, cr, err
}

func (c *Client) put(ctx context.Context, n name, cr credential, q question) (*answer, credential, error) {
	h, err := c.host(n.host)
	if err != nil {
		return nil, credential{}, err
	}
	if err := h.shut(n); err != nil {
		return nil, credential{}, err
	}
	if err := h.ready(ctx, n); err != nil {
		return nil, credential{}, err
	}
	began := c.now()
	h.mu.Lock()
	target := h.scheme + "://" + h.addr + q.path
	h.mu.Unlock()
	for try := 0; ; try++ {
		g, known := h.grantFor(n, q.kind)
		var authorization string
		var tok token
		switch {
		case !known:
		case g.basic:
			authorization = cr.basic()
		default:
			tok, err = c.token(ctx, h, n, g, cr)
			var r *updater.Refusal
			switch {
			case err == nil:
				authorization = "Bearer " + tok.value
			case try == 0 && cr.zero() && errors.As(err, &r) && r.Reason == updater.Unauthorized:
				// The challenge was a guess: the real question may need no token.
				known = false
			default:
				return nil, cr, err
			}
		}
		req, err := c.request(q.method, target, nil)
		if err != nil {
			return nil, cr, err
		}
		req.Header.Set("Accept", q.accept)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		a, err := h.send(ctx, n, req, q.limit)
		if err != nil {
			return nil, cr, err
		}
		if a.status != http.StatusUnauthorized {
			return a, cr, nil
		}
		ch, ok := pick(a.header)
		if !ok || try == 2 {
			return a, cr, nil
		}
		want, err := h.grantOf(n, ch, a.url)
		if err != nil {
			return nil, cr, err
		}
		if !want.basic && want.scope == "" {
			want.scope = pullScope(n)
		}
		if a.url.Host != h.addr {
			a, err := c.askElsewhere(ctx, h, n, q, a.url, want)
			return a, credential{}, err
		}
		switch {
		case !known || want != g:
			h.learn(n, q.kind, want)
		case !g.basic && tok.since.Before(began):
			// It lived shorter than it said, or was revoked.
			c.dropToken(h, g, cr, tok)
		default:
			return a, cr, nil // a new token of just this kind was not enough
		}
	}
}

// askElsewhere goes on where a redirect led to a host with a challenge of its
// own, without credentials: those of the registry are not for others.
func (c *Client) askElsewhere(ctx context.Context, h *host, n name, q question, at *url.URL, g grant) (*answer, error) {
	req, err := c.request(q.method, at.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", q.accept)
	if !g.basic {
		tok, err := c.token(ctx, h, n, g, credential{})
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+tok.value)
	}
	return h.send(ctx, n, req, q.limit)
}

// tokenKey is what a token is for. Docker Hub's are for one repository each,
// so the host alone would not do.
type tokenKey struct {
	host string // whose transport and trust it came over
	grant
	credential [sha256.Size]byte
}

type token struct {
	value        string
	since, until time.Time // until leaves a fifth of its life unused
}

func (t token) String() string { return "(token)" } // never in a log

// token returns a token for g, the one at hand while it holds.
func (c *Client) token(ctx context.Context, h *host, n name, g grant, cr credential) (token, error) {
	key := tokenKey{h.name, g, cr.hash()}
	good := func(t token, err error) bool { return err == nil && c.now().Before(t.until) }
	return c.tokens.do(ctx, key, good, func(ctx context.Context) (token, error) { return c.fetchToken(ctx, h, n, g, cr) })
}

// dropToken forgets t, unless another caller has already got a new one.
func (c *Client) dropToken(h *host, g grant, cr credential, t token) {
	c.tokens.drop(tokenKey{h.name, g, cr.hash()}, func(now token) bool { return now == t })
}

// fetchToken asks the token server: with an identity token by POST (OAuth2),
// else by GET, and the other way if the server does not know the one.
func (c *Client) fetchToken(ctx context.Context, h *host, n name, g grant, cr credential) (token, error) {
	ways := []func(grant, credential) (*http.Request, error){c.tokenGet, c.tokenPost}
	if cr.IdentityToken != "" {
		ways[0], ways[1] = ways[1], ways[0]
	}
	if cr.zero() {
		ways = ways[:1] // nothing to post
	}
	var a *answer
	for _, way := range ways {
		req, err := way(g, cr)
		if err != nil {
			return token{}, err
		}
		if a, err = h.send(ctx, n, req, tokenLimit); err != nil {
			return token{}, err
		}
		if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed {
			break
		}
	}
	if a.status == http.StatusBadRequest && strings.Contains(string(a.body), "invalid_grant") {
		a.status = http.StatusUnauthorized // OAuth2's way (RFC 6749, section 5.2)
	}
	switch {
	case a.status == http.StatusUnauthorized || a.status == http.StatusForbidden:
		return token{}, unauthorized(n, n.repo, "token server: "+http.StatusText(a.status), cr)
	case a.status != http.StatusOK:
		return token{}, nonsense("the token server of %s answers %d about %s: it is asked again in the next pass", h.name, a.status, n.repo)
	}
	var doc struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(a.body, &doc); err != nil {
		return token{}, nonsense("the token server of %s answers about %s with something that is no JSON: see what stands between", h.name, n.repo)
	}
	if doc.Token == "" {
		doc.Token = doc.AccessToken
	}
	if doc.Token == "" || strings.ContainsAny(doc.Token, "\r\n") {
		return token{}, nonsense("the token server of %s gives no token for %s: see what stands between", h.name, n.repo)
	}
	// issued_at is not looked at: clocks differ, and ours is the one to be asked.
	life := tokenLife
	if doc.ExpiresIn > life.Seconds() {
		life = time.Duration(min(doc.ExpiresIn, (24*time.Hour).Seconds()) * float64(time.Second))
	}
	now := c.now()
	return token{doc.Token, now, now.Add(life * 4 / 5)}, nil
}

func (c *Client) tokenGet(g grant, cr credential) (*http.Request, error) {
	u, err := url.Parse(g.realm)
	if err != nil {
		return nil, err
	}
	v := u.Query()
	if g.service != "" {
		v.Set("service", g.service)
	}
	for _, s := range strings.Fields(g.scope) {
		v.Add("scope", s)
	}
	if cr.Username != "" && cr.IdentityToken == "" {
		v.Set("account", cr.Username)
	}
	u.RawQuery = v.Encode()
	req, err := c.request(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if b := cr.basic(); b != "" {
		req.Header.Set("Authorization", b)
	} else if cr.IdentityToken != "" {
		req.SetBasicAuth(identityUser, cr.IdentityToken)
	}
	return req, nil
}

func (c *Client) tokenPost(g grant, cr credential) (*http.Request, error) {
	v := url.Values{"client_id": {clientID}}
	if g.service != "" {
		v.Set("service", g.service)
	}
	if g.scope != "" {
		v.Set("scope", g.scope)
	}
	if cr.IdentityToken != "" {
		v.Set("grant_type", "refresh_token")
		v.Set("refresh_token", cr.IdentityToken)
	} else {
		v.Set("grant_type", "password")
		v.Set("username", cr.Username)
		v.Set("password", cr.Password)
	}
	req, err := c.request(http.MethodPost, g.realm, strings.NewReader(v.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return req, nil
}

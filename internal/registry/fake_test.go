package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// fake is a registry that behaves, and whose behaviour a test can bend.
type fake struct {
	name string // under which it is asked, with port
	auth string // "": none, "basic", "bearer"
	// user and password are what it lets in; "" lets anybody have a token.
	user, password string
	// lets, when set, says instead who may read what, by basic.
	lets      func(user, password, repo string) bool
	realm     string // "" is its own /token
	expiresIn int
	// challenge replaces the WWW-Authenticate of a 401; it gets the scope.
	challenge func(scope string) []string
	// odd may answer instead; it reports whether it did.
	odd   func(w http.ResponseWriter, r *http.Request) bool
	delay time.Duration

	mu        sync.Mutex
	log       []string // "HEAD /v2/acme/web/manifests/1"
	tokens    map[string]string
	manifests map[string]stored // "acme/web:1" and "acme/web@sha256:..."
	blobs     map[string][]byte
	tags      map[string][]string
}

type stored struct {
	mediaType string
	body      []byte
}

func newFake(name string) *fake {
	return &fake{name: name, expiresIn: 300, tokens: map[string]string{}, manifests: map[string]stored{}, blobs: map[string][]byte{}, tags: map[string][]string{}}
}

func (f *fake) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, l := range f.log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

// put stores a manifest, under a tag too if there is one.
func (f *fake) put(repo, tag, mediaType string, doc any) digest.Digest {
	body, err := json.MarshalIndent(doc, "", "   ") // as nobody would encode it again
	if err != nil {
		panic(err)
	}
	if raw, ok := doc.(string); ok {
		body = []byte(raw)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(body)
	f.manifests[repo+"@"+d.String()] = stored{mediaType, body}
	if tag != "" {
		f.manifests[repo+":"+tag] = stored{mediaType, body}
		f.tags[repo] = append(f.tags[repo], tag)
	}
	return d
}

// image stores an image for one platform.
func (f *fake) image(repo, tag string, p updater.Platform, seed string) (manifest, config digest.Digest) {
	conf, _ := json.Marshal(map[string]any{"os": p.OS, "architecture": p.Architecture, "variant": p.Variant, "seed": seed})
	config = digest.FromBytes(conf)
	f.mu.Lock()
	f.blobs[config.String()] = conf
	f.mu.Unlock()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config, Size: int64(len(conf))}, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	return f.put(repo, tag, ocispec.MediaTypeImageManifest, m), config
}

func entry(d digest.Digest, p *updater.Platform) ocispec.Descriptor {
	e := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: 1}
	if p != nil {
		e.Platform = &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	}
	return e
}

func (f *fake) index(repo, tag string, entries ...ocispec.Descriptor) digest.Digest {
	ix := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
	ix.SchemaVersion = 2
	return f.put(repo, tag, ocispec.MediaTypeImageIndex, ix)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.log = append(f.log, r.Method+" "+r.URL.RequestURI())
	f.mu.Unlock()
	if f.delay > 0 {
		time.Sleep(f.delay)
	}
	if f.odd != nil && f.odd(w, r) {
		return
	}
	if r.URL.Path == "/token" {
		f.token(w, r)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	repo, kind, what := rest, "", ""
	for _, k := range []string{"/manifests/", "/blobs/", "/tags/"} {
		if i := strings.Index(rest, k); i >= 0 {
			repo, kind, what = rest[:i], k, rest[i+len(k):]
		}
	}
	if !f.allowed(r, repo) {
		f.deny(w, r, repo)
		return
	}
	switch kind {
	case "":
		fmt.Fprint(w, "{}")
	case "/manifests/":
		sep := ":"
		if strings.Contains(what, ":") {
			sep = "@"
		}
		f.mu.Lock()
		m, ok := f.manifests[repo+sep+what]
		f.mu.Unlock()
		if !ok || len(r.Header.Values("Accept")) != 1 || strings.Count(r.Header.Get("Accept"), "application/vnd.") != 4 {
			apiErr(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(m.body).String())
		w.Write(m.body)
	case "/blobs/":
		f.mu.Lock()
		b, ok := f.blobs[what]
		f.mu.Unlock()
		if !ok {
			apiErr(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(b)
	case "/tags/":
		f.mu.Lock()
		defer f.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": f.tags[repo]})
	}
}

func (f *fake) allowed(r *http.Request, repo string) bool {
	switch f.auth {
	case "basic":
		u, p, ok := r.BasicAuth()
		if f.lets != nil {
			return f.lets(u, p, repo)
		}
		return ok && u == f.user && p == f.password
	case "bearer":
		tok, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		f.mu.Lock()
		defer f.mu.Unlock()
		scope, known := f.tokens[tok]
		return ok && known && strings.HasPrefix(scope, "repository:"+repo+":pull")
	}
	return true
}

func (f *fake) deny(w http.ResponseWriter, r *http.Request, repo string) {
	scope := "repository:" + repo + ":pull"
	switch {
	case f.challenge != nil:
		for _, c := range f.challenge(scope) {
			w.Header().Add("WWW-Authenticate", c)
		}
	case f.auth == "basic":
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
	default:
		realm := f.realm
		if realm == "" {
			realm = "/token"
		}
		c := fmt.Sprintf(`Bearer realm=%q,service="fake"`, realm)
		if repo != "" {
			c += fmt.Sprintf(",scope=%q", scope)
		}
		w.Header().Set("WWW-Authenticate", c)
	}
	apiErr(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

func (f *fake) token(w http.ResponseWriter, r *http.Request) {
	u, p, _ := r.BasicAuth()
	if f.user != "" && (u != f.user || p != f.password) {
		apiErr(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	f.grant(w, r.URL.Query().Get("scope"), "token")
}

func (f *fake) grant(w http.ResponseWriter, scope, field string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tok := fmt.Sprintf("t0ken-%d", len(f.tokens))
	f.tokens[tok] = scope
	doc := map[string]any{field: tok, "issued_at": "2001-01-01T00:00:00Z"}
	if f.expiresIn > 0 {
		doc["expires_in"] = f.expiresIn
	}
	json.NewEncoder(w).Encode(doc)
}

func apiErr(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{"code": code, "message": message}}})
}

// internet reaches fakes by name, without a network: https only, unless the
// name says otherwise. What is not on it cannot be dialled.
type internet map[string]http.Handler

func (i internet) RoundTrip(r *http.Request) (*http.Response, error) {
	key := r.URL.Host
	if r.URL.Scheme == "http" {
		key = "http://" + key
	}
	h, ok := i[key]
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}
	if r.Body != nil {
		defer r.Body.Close()
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := rec.Result()
	if r.Method == http.MethodHead {
		resp.Body = http.NoBody
	}
	resp.Request = r
	return resp, nil
}

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

type setup struct {
	Options
	logins string // config.json
}

// client is a Client on the given internet, or on the real loopback if nil.
func client(t testing.TB, s setup, net internet) (*Client, *clock) {
	t.Helper()
	dir := t.TempDir()
	if s.DockerConfig == "" {
		s.DockerConfig = filepath.Join(dir, "config.json")
	}
	if s.CertsDir == "" {
		s.CertsDir = filepath.Join(dir, "certs.d")
	}
	if s.logins != "" {
		require.NoError(t, os.WriteFile(s.DockerConfig, []byte(s.logins), 0o600))
	}
	c, err := New(s.Options)
	require.NoError(t, err)
	k := &clock{t: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)}
	c.now = k.now
	if net != nil {
		c.roundTripper = net
	}
	return c, k
}

// refused holds err to a reason, and to naming what a person needs.
func refused(t testing.TB, err error, reason updater.Reason, names ...string) {
	t.Helper()
	var r *updater.Refusal
	require.ErrorAs(t, err, &r)
	require.Equal(t, reason, r.Reason, r.Detail)
	for _, n := range names {
		require.Contains(t, r.Detail, n)
	}
	for _, secret := range []string{"s3cret", "t0ken", "?", "Bearer ", base64.StdEncoding.EncodeToString([]byte("robot:s3cret"))} {
		require.NotContains(t, err.Error(), secret)
	}
}

func basicLogin(host, user, password string) string {
	b, _ := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]any{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}}})
	return string(b)
}

var amd64 = updater.Platform{OS: "linux", Architecture: "amd64"}

var bg = context.Background()

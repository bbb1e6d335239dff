package stage

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
)

// RegistryOptions say how a registry differs from a plain, open one.
type RegistryOptions struct {
	// Address is where it listens; 127.0.0.1.
	Address string
	// TLS serves over HTTPS with a certificate of the CA at Registry.CA. (A Docker
	// Engine takes any certificate on loopback.)
	TLS bool
	// Username and Password, if set, must be given for a token.
	Username, Password string
	// Bearer asks for a token, from /token, also where there is no Username.
	Bearer bool
	// TokenLife is how long a token lasts; zero means 5 minutes.
	TokenLife time.Duration
	// Delay is added to each request.
	Delay time.Duration
}

// Request is one that the registry got; Status is what it answered.
type Request struct {
	Method, Path, Query string
	UserAgent           string
	Status              int
	At                  time.Time
}

// Registry is a real registry. It counts what it is asked, and
// misbehaves on demand. What is published by its own methods is neither counted
// nor hindered.
type Registry struct {
	// Host is ADDRESS:PORT: what image references begin with.
	Host string
	// URL is where it is reached, http:// or https://.
	URL string
	// CA is the path of the CA's certificate in PEM, with TLS.
	CA string

	t       TB
	opts    RegistryOptions
	store   http.Handler
	tls     *tls.Config
	server  *http.Server
	mu      sync.Mutex
	log     []Request
	faults  []*fault
	tokens  map[string]token
	counter int
}

type token struct {
	scopes  string
	expires time.Time
}

type fault struct {
	method string
	path   *regexp.Regexp
	times  int
	how    Fault
	healed context.Context // done when heal has been called
}

// Fault is a way to misbehave: it answers a request in place of next.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// NewRegistry starts a registry; it ends with t.
func NewRegistry(t TB, opts RegistryOptions) *Registry {
	t.Helper()
	r := &Registry{
		t: t, opts: opts, tokens: map[string]token{},
		store: registry.New(registry.Logger(log.New(io.Discard, "", 0))),
	}
	if opts.TokenLife == 0 {
		r.opts.TokenLife = 5 * time.Minute
	}
	if opts.TLS {
		r.makeTLS()
	}
	r.serve(cmp.Or(opts.Address, "127.0.0.1") + ":0")
	t.Cleanup(r.Down)
	return r
}

func (r *Registry) serve(addr string) {
	r.t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(r.t, err)
	r.Host = l.Addr().String()
	r.URL = "http://" + r.Host
	if r.tls != nil {
		l = tls.NewListener(l, r.tls)
		r.URL = "https://" + r.Host
	}
	r.server = &http.Server{Handler: http.HandlerFunc(r.handle), ErrorLog: log.New(io.Discard, "", 0)}
	go r.server.Serve(l) //nolint:errcheck // Ends with Close.
}

// Down makes the registry refuse connections, and breaks those under way.
func (r *Registry) Down() { r.server.Close() }

// Up brings it back, on the same port and with what it held.
func (r *Registry) Up() {
	r.t.Helper()
	r.serve(r.Host)
}

// Ref is the reference of "acme/web:v1", "acme/web@sha256:..." on this registry.
func (r *Registry) Ref(ref string) string { return r.Host + "/" + ref }

// Push publishes what under "repository:tag" and returns its digest. A tag that
// exists is moved.
func (r *Registry) Push(ref string, what Artifact) string {
	r.t.Helper()
	digest, err := what.write(r.parse(ref), remote.WithTransport(local{r.store}))
	require.NoError(r.t, err, "publish %s", ref)
	return digest.String()
}

// PushArchive publishes the one index that an OCI archive holds under
// "repository:tag".
func (r *Registry) PushArchive(ref, file string) {
	r.t.Helper()
	dir := r.t.TempDir()
	out, err := exec.CommandContext(r.t.Context(), "tar", "-C", dir, "-xf", file).CombinedOutput()
	require.NoError(r.t, err, "%s", out)
	all, err := layout.ImageIndexFromPath(dir)
	require.NoError(r.t, err)
	manifest, err := all.IndexManifest()
	require.NoError(r.t, err)
	require.Len(r.t, manifest.Manifests, 1)
	index, err := all.ImageIndex(manifest.Manifests[0].Digest)
	require.NoError(r.t, err)
	require.NoError(r.t, remote.WriteIndex(r.parse(ref), index, remote.WithTransport(local{r.store})))
}

// Tag gives "repository:tag" or "repository@digest" another tag.
func (r *Registry) Tag(ref, tag string) {
	r.t.Helper()
	opt := remote.WithTransport(local{r.store})
	desc, err := remote.Get(r.parse(ref), opt)
	require.NoError(r.t, err)
	require.NoError(r.t, remote.Tag(r.parse(ref).Context().Tag(tag), desc, opt))
}

// Delete removes "repository:tag" or "repository@digest".
func (r *Registry) Delete(ref string) {
	r.t.Helper()
	require.NoError(r.t, remote.Delete(r.parse(ref), remote.WithTransport(local{r.store})))
}

func (r *Registry) parse(ref string) name.Reference {
	r.t.Helper()
	n, err := name.ParseReference(r.Ref(ref), name.Insecure)
	require.NoError(r.t, err)
	return n
}

// local is a transport to a handler, without a network between.
type local struct{ http.Handler }

func (l local) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil {
		req.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	l.ServeHTTP(w, req)
	resp := w.Result()
	resp.Request = req
	return resp, nil
}

// Requests returns those of the method ("" for all) whose path matches the
// pattern ("" for all), oldest first.
func (r *Registry) Requests(method, pattern string) []Request {
	re := regexp.MustCompile(pattern)
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []Request
	for _, q := range r.log {
		if (method == "" || method == q.Method) && re.MatchString(q.Path) {
			found = append(found, q)
		}
	}
	return found
}

// Count is the number of such Requests.
func (r *Registry) Count(method, pattern string) int { return len(r.Requests(method, pattern)) }

// ResetRequests forgets all requests so far.
func (r *Registry) ResetRequests() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

// Expire makes every token that was handed out invalid.
func (r *Registry) Expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.tokens)
}

// Fail answers requests of the method ("" for all) whose path matches the
// pattern by how, so many times (0: until heal is called). Of several that
// match, the newest counts. What is under way when it is healed is broken off: an
// engine that is asked again may go on with a pull that was broken off, and would wait
// for ever with it.
func (r *Registry) Fail(method, pattern string, times int, how Fault) (heal func()) {
	healed, end := context.WithCancel(context.Background())
	f := &fault{method: method, path: regexp.MustCompile(pattern), times: times, how: how, healed: healed}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		f.times = -1
		end()
	}
}

func (r *Registry) handle(w http.ResponseWriter, req *http.Request) {
	at := time.Now()
	rec := &recorder{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		r.mu.Lock()
		r.log = append(r.log, Request{req.Method, req.URL.Path, req.URL.RawQuery, req.UserAgent(), rec.status, at})
		r.mu.Unlock()
	}()
	if r.opts.Delay > 0 {
		time.Sleep(r.opts.Delay)
	}
	next := http.HandlerFunc(r.authorized)
	r.mu.Lock()
	var failing *fault
	for i := len(r.faults) - 1; i >= 0; i-- {
		f := r.faults[i]
		if f.times < 0 || (f.method != "" && f.method != req.Method) || !f.path.MatchString(req.URL.Path) {
			continue
		}
		failing = f
		if f.times > 0 {
			if f.times--; f.times == 0 {
				f.times = -1
			}
		}
		break
	}
	r.mu.Unlock()
	if failing != nil {
		failing.answer(rec, req, next)
		return
	}
	next(rec, req)
}

// answer answers in place of next until the fault is healed.
func (f *fault) answer(w http.ResponseWriter, req *http.Request, next http.Handler) {
	ctx, end := context.WithCancel(req.Context())
	defer end()
	defer context.AfterFunc(f.healed, end)()
	f.how(w, req.WithContext(ctx), next)
	if f.healed.Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

func (r *Registry) authorized(w http.ResponseWriter, req *http.Request) {
	if !r.opts.Bearer && r.opts.Username == "" {
		r.store.ServeHTTP(w, req)
		return
	}
	if req.URL.Path == "/token" {
		r.handToken(w, req)
		return
	}
	scope := scopeOf(req)
	given, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	r.mu.Lock()
	held, ok := r.tokens[given]
	r.mu.Unlock()
	if !ok || time.Now().After(held.expires) || (scope != "" && !strings.Contains(held.scopes, strings.TrimSuffix(scope, ":pull"))) {
		challenge := fmt.Sprintf(`Bearer realm="%s/token",service="%s"`, r.URL, r.Host)
		if scope != "" {
			challenge += fmt.Sprintf(`,scope="%s"`, scope)
		}
		w.Header().Set("WWW-Authenticate", challenge)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return
	}
	r.store.ServeHTTP(w, req)
}

// scopeOf is the scope that a request needs, "" for the version check.
func scopeOf(req *http.Request) string {
	repo := strings.TrimPrefix(req.URL.Path, "/v2/")
	for _, kind := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.Index(repo, kind); i > 0 {
			return "repository:" + repo[:i] + ":pull"
		}
	}
	return ""
}

func (r *Registry) handToken(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.Form.Get("username"), req.Form.Get("password")
	}
	if user != r.opts.Username || password != r.opts.Password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	r.counter++
	value := fmt.Sprintf("token-%d", r.counter)
	r.tokens[value] = token{strings.Join(req.Form["scope"], " "), time.Now().Add(r.opts.TokenLife)}
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	// As most do: both names, and the life in seconds.
	json.NewEncoder(w).Encode(map[string]any{ //nolint:errcheck // The client's loss.
		"token": value, "access_token": value,
		"expires_in": int(r.opts.TokenLife.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

func (r *Registry) makeTLS() {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(r.t, err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "updaterd test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	require.NoError(r.t, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	require.NoError(r.t, err)
	r.tls = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: key}}}
	r.CA = filepath.Join(r.t.TempDir(), "ca.pem")
	require.NoError(r.t, os.WriteFile(r.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o644))
}

// recorder remembers the status.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Status answers with the status and nothing of use.
func Status(code int) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		http.Error(w, http.StatusText(code), code)
	}
}

// TooMany answers 429; retryAfter is sent as it is, "" sends no such header.
func TooMany(retryAfter string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`)
	}
}

// Slow answers rightly, that much later.
func Slow(d time.Duration) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-time.After(d):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// Wait answers rightly when a channel is closed.
func Wait(until <-chan struct{}) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-until:
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// Hang never answers.
func Hang() Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }
}

// Drop closes the connection without an answer.
func Drop() Fault {
	return func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }
}

// Truncate sends the right header and half of the body.
func Truncate() Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := record(next, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:rec.Body.Len()/2]) //nolint:errcheck // The client's loss.
		http.NewResponseController(w).Flush()        //nolint:errcheck // The client's loss.
		panic(http.ErrAbortHandler)
	}
}

// TruncateJSON sends half of the body, and says that it is all.
func TruncateJSON() Fault {
	return Rewrite(func(h http.Header, body []byte) []byte {
		h.Del("Content-Length")
		return body[:len(body)/2]
	})
}

// LoginPage answers 200 with a page of HTML, as captive portals do.
func LoginPage() Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<!doctype html><title>Sign in</title><form>...</form>")
	}
}

// DigestHeader answers rightly but for the Docker-Content-Digest, "" for none.
func DigestHeader(digest string) Fault {
	return Rewrite(func(h http.Header, body []byte) []byte {
		h.Del("Docker-Content-Digest")
		if digest != "" {
			h.Set("Docker-Content-Digest", digest)
		}
		return body
	})
}

// Rewrite changes the right answer.
func Rewrite(how func(http.Header, []byte) []byte) Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := record(next, r)
		body := how(rec.Header(), rec.Body.Bytes())
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(body) //nolint:errcheck // The client's loss.
	}
}

func record(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

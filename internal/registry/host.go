package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	connectTimeout = 10 * time.Second
	requestTimeout = 30 * time.Second
	retries        = 2
	// perHost and perClient bound the requests under way. Twelve at 20 ms each
	// are 600 a second, and few enough for a registry in a cupboard.
	perHost   = 12
	perClient = 48
	maxHops   = 5
	// errorLimit is how much of an answer that is no success is read.
	errorLimit = 64 << 10
)

// host is one registry: its transport, how to speak to it, and what it asked
// of us. Everything a registry sends us to (its token server, a redirect) goes
// over the same transport, as with the engine, so one CA file serves them all.
type host struct {
	c    *Client
	name string // as in references
	addr string // where its API answers

	http  *http.Client          // one request
	retry *retryablehttp.Client // one request and its retries
	slots chan struct{}

	patience patience
	// first finds out once how the host wants to be spoken to.
	first memo[struct{}, struct{}]

	mu     sync.Mutex
	scheme string           // "https" or "http", once known
	usual  *grant           // what the host's own challenge asks for, once known
	grants map[string]grant // by repository and kind of question, where that differs
	heard  bool             // it answered something in this pass
	down   *unmet           // why it cannot be reached in this pass
}

func newHost(c *Client, n string) (*host, error) {
	h := &host{c: c, name: n, addr: n, slots: make(chan struct{}, perHost), grants: map[string]grant{}}
	if n == hub {
		h.addr = hubAPI
	}
	o := c.hosts[hostName(n)]
	rt := c.roundTripper
	if rt == nil {
		conf, err := tlsConfig(o.CA, filepath.Join(c.certsDir, n))
		if err != nil {
			return nil, refuse(updater.RegistryUnavailable, "%s cannot be asked: %v", n, err)
		}
		d := &net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second, Control: refuseLinkLocal}
		rt = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            d.DialContext,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    connectTimeout,
			ForceAttemptHTTP2:      true, // a TLSClientConfig of one's own turns it off otherwise
			MaxIdleConns:           perHost + 4,
			MaxIdleConnsPerHost:    perHost,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: 256 << 10,
			// Digests are of the bytes as stored: nothing may unpack them on the way.
			DisableCompression: true,
		}
	}
	if c.observer != nil {
		rt = observed{rt, h.name, c.observer}
	}
	h.http = &http.Client{Transport: rt, Timeout: requestTimeout, CheckRedirect: h.checkRedirect}
	h.retry = &retryablehttp.Client{
		HTTPClient:   h.http,
		RetryMax:     retries,
		RetryWaitMin: 250 * time.Millisecond,
		RetryWaitMax: shortWait,
		CheckRetry:   h.checkRetry,
		Backoff:      h.backoff,
		// The last answer is what the caller wants to see, whatever it is.
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
		// No Logger: it would write whole URLs, whose queries may hold secrets.
	}
	return h, nil
}

// tlsConfig trusts the system's authorities and those given: the file of our
// configuration, and what the engine reads from its certs.d for the host.
func tlsConfig(ca, dir string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	var files []string
	if ca != "" {
		files = append(files, ca)
	}
	// A pattern that holds no magic characters of ours cannot be malformed; what
	// cannot be read is not there, as for the engine.
	if entries, err := os.ReadDir(dir); err == nil {
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch filepath.Ext(e.Name()) {
			case ".crt":
				files = append(files, path)
			case ".cert":
				key := strings.TrimSuffix(path, ".cert") + ".key"
				pair, err := tls.LoadX509KeyPair(path, key)
				if err != nil {
					return nil, fmt.Errorf("reading the client certificate %s and its .key: %w", path, err)
				}
				conf.Certificates = append(conf.Certificates, pair)
			}
		}
	}
	if len(files) == 0 {
		return conf, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // an image FROM scratch has none
	}
	for _, f := range files {
		pem, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("reading the authority's certificate: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the file %s holds no PEM certificate", f)
		}
	}
	conf.RootCAs = pool
	return conf, nil
}

// refuseLinkLocal keeps a name that somebody else controls from leading to the
// metadata service of a cloud.
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	if h, _, err := net.SplitHostPort(address); err == nil && linkLocal(h) {
		return errors.New("refused: " + h + " is a link-local address")
	}
	return nil
}

// checkRedirect follows a registry to its storage, without its credentials.
func (h *host) checkRedirect(req *http.Request, via []*http.Request) error {
	from := via[0].URL
	switch {
	case len(via) > maxHops:
		return hostError(fmt.Sprintf("it redirects more than %d times", maxHops))
	case linkLocal(req.URL.Hostname()):
		return hostError("it redirects to the link-local address " + req.URL.Hostname() + ", which is refused")
	case req.URL.Scheme != "https" && req.URL.Scheme != from.Scheme:
		return hostError("it redirects from TLS to plain HTTP, which is refused")
	}
	req.Header.Del("Referer") // it would tell the query of where we come from
	for _, r := range append(via[1:], req) {
		// The port counts: net/http compares names only, and lets subdomains have
		// what their parent gets.
		if r.URL.Host != from.Host || r.URL.Scheme != from.Scheme {
			req.Header.Del("Authorization")
			if req.Method == http.MethodPost {
				return hostError("its token server redirects a request that holds a secret to another host, which is refused")
			}
		}
	}
	return nil
}

// checkRetry tells passing faults from lasting ones.
func (h *host) checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		err = cause(err)
		var refused hostError
		var dns *net.DNSError
		lasting := errors.As(err, &refused) || isCertificate(err) || isPlain(err) || isTimeout(err) ||
			errors.As(err, &dns) && dns.IsNotFound
		return !lasting, nil
	}
	wait, said := retryAfter(resp.Header, h.c.now())
	short := said && wait <= shortWait
	switch resp.StatusCode {
	case http.StatusTooManyRequests:
		return short, nil
	case http.StatusServiceUnavailable:
		if !said && resp.Request.Method == http.MethodHead && !isHub(h.name) {
			return false, nil // the GET that follows is the retry, and has a body to read
		}
		return short || !said, nil
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true, nil
	}
	return false, nil
}

func (h *host) backoff(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
	wait := min(least<<attempt, most)
	if resp != nil {
		if d, said := retryAfter(resp.Header, h.c.now()); said {
			wait = d
		}
	}
	return wait + time.Duration(rand.Int64N(int64(least)))
}

// answer is what a server said, read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	url    *url.URL // what was asked in the end, after redirects
}

func (a *answer) codes() string {
	var codes []string
	for _, e := range parseErrors(a.body) {
		if e.Code != "" && len(e.Code) < 40 && strings.Trim(e.Code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") == "" {
			codes = append(codes, e.Code)
		}
	}
	return strings.Join(codes, ", ")
}

func (a *answer) has(code string) bool {
	for _, e := range parseErrors(a.body) {
		if strings.EqualFold(e.Code, code) {
			return true
		}
	}
	return false
}

// send does one request with its retries, waits its turn for it, and reads the
// answer up to limit bytes. Whatever status comes back is an answer, except
// that the host asks for patience, which is a refusal.
func (h *host) send(ctx context.Context, n name, req *http.Request, limit int64) (*answer, error) {
	a, err := h.exchange(ctx, n, limit, func() (*http.Response, error) {
		r, err := retryablehttp.FromRequest(req.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		return h.retry.Do(r)
	})
	var u *unmet
	if errors.As(err, &u) {
		h.mu.Lock()
		defer h.mu.Unlock()
		// A host that swallows connections costs one timeout in a pass, not one for
		// each of its images.
		if isDial(u.err) || isTimeout(u.err) && !h.heard {
			h.down = u
		}
	}
	return a, err
}

// exchange is send without its judgement on the host: an *unmet error says
// that no answer came.
func (h *host) exchange(ctx context.Context, n name, limit int64, do func() (*http.Response, error)) (*answer, error) {
	for _, slots := range []chan struct{}{h.slots, h.c.slots} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	// Looked at after the wait: those ahead may have found out.
	if err := h.shut(n); err != nil {
		return nil, err
	}
	resp, err := do()
	if err != nil {
		if resp != nil {
			resp.Body.Close()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &unmet{cause(err)}
	}
	defer resp.Body.Close()
	h.mu.Lock()
	h.heard = true
	h.mu.Unlock()
	if resp.StatusCode != http.StatusOK {
		limit = errorLimit
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if int64(len(body)) > limit {
		if resp.StatusCode == http.StatusOK {
			return nil, nonsense("the answer of %s about %s is longer than %d bytes, which is more than such an answer may have", h.name, n.repo, limit)
		}
		body, err = body[:limit], nil
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &unmet{fmt.Errorf("the answer broke off: %w", cause(err))}
	}
	if limited(resp.StatusCode, resp.Header, body) {
		now := h.c.now()
		d, said := retryAfter(resp.Header, now)
		_, known := h.patience.left(now)
		until := h.patience.ask(now, d, said)
		if !known {
			h.c.log.Info("registry asks for patience", "host", h.name, "until", until)
		}
		return nil, patienceRefusal(h.name, n, until)
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: body, url: resp.Request.URL}, nil
}

// shut says why the host is not to be asked now, or nil.
func (h *host) shut(n name) error {
	if until, yes := h.patience.left(h.c.now()); yes {
		return patienceRefusal(h.name, n, until)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down != nil {
		return h.down
	}
	return nil
}

// ready finds out, once, over what scheme the host answers and what challenge
// it gives, so that a first pass does not cost a 401 for each repository. A
// host that answers nothing useful is asked the real question all the same.
func (h *host) ready(ctx context.Context, n name) error {
	_, err := h.first.do(ctx, struct{}{}, always, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, h.meet(ctx, n)
	})
	if e := h.shut(n); err != nil && e != nil {
		return e // the same in words about this repository
	}
	return err
}

func (h *host) meet(ctx context.Context, n name) error {
	if h.c.hosts[hostName(h.name)].PlainHTTP {
		return h.ping(n, "http", func(r *http.Request) (*answer, error) { return h.send(ctx, n, r, errorLimit) })
	}
	if !loopback(h.addr) {
		return h.ping(n, "https", func(r *http.Request) (*answer, error) { return h.send(ctx, n, r, errorLimit) })
	}
	// As the engine does it: TLS first, then plain, on this machine only.
	once := func(r *http.Request) (*answer, error) {
		return h.exchange(ctx, n, errorLimit, func() (*http.Response, error) { return h.http.Do(r.WithContext(ctx)) })
	}
	err := h.ping(n, "https", once)
	var tls, plain *unmet
	if !errors.As(err, &tls) || isCertificate(tls.err) {
		return err
	}
	err = h.ping(n, "http", once)
	if errors.Is(err, errSpeaksTLS) || errors.As(err, &plain) && !isPlain(tls.err) {
		return tls
	}
	return err
}

// errSpeaksTLS says that a host was spoken to in plain HTTP and wants TLS.
const errSpeaksTLS = hostError("it speaks TLS: take plain-http: away from the host under registries")

// hostError says what a host does that is not put up with.
type hostError string

func (e hostError) Error() string { return string(e) }

// unmet says that no answer came, and why. Client.ask makes a refusal of it,
// which names the repository at hand.
type unmet struct{ err error }

func (u *unmet) Error() string { return u.err.Error() }
func (u *unmet) Unwrap() error { return u.err }

func (h *host) ping(n name, scheme string, send func(*http.Request) (*answer, error)) error {
	req, err := h.c.request(http.MethodGet, scheme+"://"+h.addr+"/v2/", nil)
	if err != nil {
		return err
	}
	a, err := send(req)
	var r *updater.Refusal
	switch {
	case err == nil:
	case errors.As(err, &r) && r.Reason == updater.RegistryUnavailable && !errors.As(err, new(*unmet)):
		a = &answer{} // an odd answer; the real question decides
	default:
		return err
	}
	if scheme == "http" && a.status == http.StatusBadRequest && strings.Contains(string(a.body), "HTTPS server") {
		return &unmet{errSpeaksTLS} // as Go's servers put it
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.scheme = scheme
	if a.status == http.StatusUnauthorized && a.url.Host == h.addr {
		if ch, ok := pick(a.header); ok {
			// A realm that is refused is refused when the real question meets it.
			if g, err := h.grantOf(n, ch, a.url); err == nil {
				g.scope = "" // a scope here is not that of any repository
				h.usual = &g
			}
		}
	}
	return nil
}

// newPass lets the host be asked again.
func (h *host) newPass() {
	h.patience.newPass(h.c.now())
	h.first.forget(func(_ struct{}, err error) bool { return err != nil })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard, h.down = false, nil
}

func always[V any](V, error) bool { return true }

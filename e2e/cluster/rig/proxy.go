package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/updaterd/updaterd/e2e/stage"
)

// Call is one that a client made of the API server through a Proxy.
type Call struct {
	// N counts the calls of this proxy that change something, from 1, leaving out
	// those that only renew a Lease or tell an Event or ask for a right; 0 on others.
	N int
	// Verb is get, list, watch, create, update, patch or delete.
	Verb string
	// Resource is "deployments", "pods/status"; Namespace and Name are empty where
	// there are none.
	Resource, Namespace, Name string
	Method, Path              string
	Query                     url.Values
	// Body is what was sent.
	Body []byte
	// Status is what the API server answered, in After and in Calls.
	Status int
	At     time.Time
}

// String is "patch deployments web".
func (c Call) String() string {
	return strings.TrimSpace(c.Verb + " " + c.Resource + " " + c.Name)
}

// Dry: the API server is only to say what it would answer.
func (c Call) Dry() bool { return c.Query.Get("dryRun") != "" }

// Hooks are called on each Call. They may block, and may kill the client, whose
// call is then carried out all the same. An error is answered to the client in place
// of the API server's answer: from Before, the API server does not get the call;
// from After, it has done it.
type Hooks struct {
	Before func(Call) error
	After  func(Call) error
}

// Refusal is an error that is answered with its code, as the API server would.
type Refusal struct {
	Code int
	// RetryAfter, if set, is the header, in seconds.
	RetryAfter int
}

func (r *Refusal) Error() string { return http.StatusText(r.Code) }

// ErrDrop breaks the connection in place of an answer.
var ErrDrop = errors.New("the connection is broken")

// Proxy stands between a client and the API server.
type Proxy struct {
	// URL is where it listens, with the API server's own certificate.
	URL string

	mu    sync.Mutex
	hooks Hooks
	calls []Call
	n     int
}

// NewProxy makes a way to the API server.
func (c *Cluster) NewProxy(t stage.TB, hooks Hooks) *Proxy {
	t.Helper()
	config := c.Config()
	config.BearerToken = "" // Each client has its own.
	transport, err := rest.TransportFor(config)
	require.NoError(t, err)
	target, err := url.Parse(c.URL)
	require.NoError(t, err)
	p := &Proxy{hooks: hooks}

	type key struct{}
	reverse := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		ModifyResponse: func(resp *http.Response) error {
			call := resp.Request.Context().Value(key{}).(Call)
			call.Status = resp.StatusCode
			p.mu.Lock()
			p.calls = append(p.calls, call)
			after := p.hooks.After
			p.mu.Unlock()
			if after == nil {
				return nil
			}
			return after(call)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, err) },
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	// Not plain HTTP: clients send no token over that.
	p.URL = "https://" + l.Addr().String()
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		call := parseCall(r, body)
		ctx := r.Context()
		p.mu.Lock()
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			// Who has sent a call and died has made it. (Without a way to cancel it at
			// all, the proxy would look for the end of the client itself.)
			var done context.CancelFunc
			ctx, done = context.WithCancel(context.WithoutCancel(ctx))
			defer done()
			if !call.quiet() {
				p.n++
				call.N = p.n
			}
		}
		before := p.hooks.Before
		p.mu.Unlock()
		if before != nil {
			if err := before(call); err != nil {
				refuse(w, err)
				return
			}
		}
		reverse.ServeHTTP(w, r.WithContext(context.WithValue(ctx, key{}, call)))
	})}
	go server.ServeTLS(l, filepath.Join(c.Dir, "server.crt"), filepath.Join(c.Dir, "server.key")) //nolint:errcheck // Ends with Close.
	t.Cleanup(func() { server.Close() })
	return p
}

// quiet are those calls that change nothing that a change is about.
func (c Call) quiet() bool {
	return c.Resource == "leases" || c.Resource == "events" || strings.HasSuffix(c.Resource, "reviews")
}

func parseCall(r *http.Request, body []byte) Call {
	c := Call{Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Body: body, At: time.Now()}
	// /api/v1/... or /apis/GROUP/VERSION/...
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	parts = parts[min(skip, len(parts)):]
	if len(parts) > 2 && parts[0] == "namespaces" {
		c.Namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 0 {
		c.Resource = parts[0]
	}
	if len(parts) > 1 {
		c.Name = parts[1]
	}
	if len(parts) > 2 {
		c.Resource += "/" + parts[2]
	}
	switch r.Method {
	case http.MethodPost:
		c.Verb = "create"
	case http.MethodPut:
		c.Verb = "update"
	case http.MethodPatch:
		c.Verb = "patch"
	case http.MethodDelete:
		c.Verb = "delete"
	default:
		c.Verb = "get"
		if c.Name == "" && c.Resource != "" {
			c.Verb = "list"
		}
		if c.Query.Get("watch") == "true" || c.Query.Get("watch") == "1" {
			c.Verb = "watch"
		}
	}
	return c
}

func refuse(w http.ResponseWriter, err error) {
	if errors.Is(err, ErrDrop) {
		panic(http.ErrAbortHandler)
	}
	code := http.StatusInternalServerError
	var r *Refusal
	if errors.As(err, &r) {
		code = r.Code
		if r.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(r.RetryAfter))
		}
	}
	reason := map[int]metav1.StatusReason{
		http.StatusConflict: metav1.StatusReasonConflict, http.StatusTooManyRequests: metav1.StatusReasonTooManyRequests,
		http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusNotFound: metav1.StatusReasonNotFound,
		http.StatusInternalServerError: metav1.StatusReasonInternalError, http.StatusServiceUnavailable: metav1.StatusReasonServiceUnavailable,
		http.StatusGatewayTimeout: metav1.StatusReasonTimeout,
	}[code]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{ //nolint:errcheck // The client's loss.
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: err.Error(),
	})
}

// Hook has calls from now on met by other hooks.
func (p *Proxy) Hook(hooks Hooks) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hooks = hooks
}

// Calls returns those that the API server answered, in the order of the answers.
func (p *Proxy) Calls() []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.calls)
}

// Changes are the Calls that changed something.
func (p *Proxy) Changes() []Call {
	return slices.DeleteFunc(p.Calls(), func(c Call) bool { return c.N == 0 })
}

// Forget drops all calls so far, and counts from 1 again.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls, p.n = nil, 0
}

// Kubeconfig writes one by which somebody with this token comes through the proxy.
func (c *Cluster) kubeconfig(t stage.TB, url, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, c.WriteKubeconfig(path, url, token), "write %s", path)
	return path
}

// String says what a call was, for a test's log.
func (p *Proxy) String() string {
	var b strings.Builder
	for _, c := range p.Calls() {
		fmt.Fprintf(&b, "%3d %s %s -> %d\n", c.N, c, c.Namespace, c.Status)
	}
	return b.String()
}

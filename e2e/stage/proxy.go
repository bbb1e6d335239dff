package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Call is one that a client made of the engine through a Proxy.
type Call struct {
	// N counts the calls of this proxy that change something (all methods but GET
	// and HEAD), from 1; 0 on those that change nothing.
	N int
	// Method and Path, the latter without the version: "POST /containers/create".
	Method, Path string
	Query        url.Values
	// Status is what the engine answered, in After only.
	Status int
	// Pid is the process that made the call.
	Pid int
}

// String is "POST /containers/web/stop".
func (c Call) String() string { return c.Method + " " + c.Path }

// Hooks are called on each Call. They may block, and may kill the client. An
// error is answered to the client with status 500 in place of the engine's
// answer: from Before, the engine does not get the call; from After, it has done
// it.
type Hooks struct {
	Before func(Call) error
	After  func(Call) error
	// Play changes the engine's answer to a call that changes nothing, and Ask the path
	// that such a call asks for, without the version: more can be there than there is.
	Play func(Call, []byte) []byte
	Ask  func(path string) string
}

// Proxy stands between a client and an engine.
type Proxy struct {
	// Host is for DOCKER_HOST of the client.
	Host string

	mu    sync.Mutex
	calls []Call
	n     int
}

var version = regexp.MustCompile(`^/v[0-9.]+/`)

// Proxy makes a way to the engine on which only this test's containers are
// listed, so that an updaterd which watches all containers of a shared engine
// leaves those of others alone, and on which calls can be seen and spoilt.
func (d *Docker) Proxy(hooks Hooks) *Proxy {
	d.t.Helper()
	network, addr, _ := strings.Cut(d.front, "://")
	// t.TempDir may be too long for a socket.
	dir, err := os.MkdirTemp("", "updaterd-proxy-")
	require.NoError(d.t, err)
	socket := filepath.Join(dir, "docker.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(d.t, err)
	p := &Proxy{Host: "unix://" + socket}

	type key struct{}
	type maker struct{}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
		DisableCompression: true,
	}
	// Questions of what is allowed change nothing, and no test is about them.
	questions := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker"
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker"
			r.Out.Host = r.In.Host
			call := r.In.Context().Value(key{}).(Call)
			if call.Path == "/containers/json" || call.Path == "/events" {
				d.scope(r.Out.URL)
			}
			if hooks.Ask != nil && call.N == 0 {
				r.Out.URL.Path = strings.TrimSuffix(r.In.URL.Path, call.Path) + hooks.Ask(call.Path)
				r.Out.URL.RawPath = ""
			}
		},
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		ModifyResponse: func(resp *http.Response) error {
			call := resp.Request.Context().Value(key{}).(Call)
			call.Status = resp.StatusCode
			p.mu.Lock()
			p.calls = append(p.calls, call)
			p.mu.Unlock()
			if hooks.Play != nil && call.N == 0 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && call.Path != "/events" {
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					return err
				}
				resp.Body.Close()
				body = hooks.Play(call, body)
				resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
				resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
			}
			if hooks.After == nil {
				return nil
			}
			return hooks.After(call)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { refuse(w, err) },
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() == "updaterd-asks" {
			questions.ServeHTTP(w, r)
			return
		}
		call := Call{Method: r.Method, Path: version.ReplaceAllString(r.URL.Path, "/"), Query: r.URL.Query()}
		call.Pid, _ = r.Context().Value(maker{}).(int)
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			p.mu.Lock()
			p.n++
			call.N = p.n
			p.mu.Unlock()
		}
		if hooks.Before != nil {
			if err := hooks.Before(call); err != nil {
				refuse(w, err)
				return
			}
		}
		reverse.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), key{}, call)))
	})}
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, maker{}, pidOf(c))
	}
	go server.Serve(l) //nolint:errcheck // Ends with Close.
	d.t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
		os.RemoveAll(dir)
	})
	return p
}

// pidOf is the process at the other end of a unix socket; 0 when that cannot be
// told.
func pidOf(c net.Conn) int {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	err = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	if err != nil {
		return 0
	}
	return pid
}

// Scoped is the Host of a Proxy without hooks.
func (d *Docker) Scoped() string {
	d.t.Helper()
	return d.Proxy(Hooks{}).Host
}

func (d *Docker) scope(u *url.URL) {
	q := u.Query()
	f := map[string]any{}
	if s := q.Get("filters"); s != "" {
		// Left as it is when it is not JSON: the engine will say so.
		if json.Unmarshal([]byte(s), &f) != nil {
			return
		}
	}
	mine := Label + "=" + d.Mark
	switch labels := f["label"].(type) {
	case []any:
		f["label"] = append(labels, mine)
	case map[string]any:
		labels[mine] = true
	default:
		f["label"] = []any{mine}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return
	}
	q.Set("filters", string(b))
	u.RawQuery = q.Encode()
}

func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusInternalServerError)
	json.NewEncoder(w).Encode(map[string]string{"message": err.Error()}) //nolint:errcheck // The client's loss.
}

// Calls returns those that the engine answered and that changed something, in
// the order of the answers.
func (p *Proxy) Calls() []Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	var changing []Call
	for _, c := range p.calls {
		if c.N > 0 {
			changing = append(changing, c)
		}
	}
	return changing
}

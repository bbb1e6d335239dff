package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	imagetypes "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// TestEveryCallIsInTheTable: one that is not would be found out to be
// forbidden halfway through a change.
func TestEveryCallIsInTheTable(t *testing.T) {
	endpoint := map[string]string{
		"ContainerList":           "GET /containers/json",
		"ContainerInspectWithRaw": "GET /containers/{id}/json",
		"ContainerInspect":        "GET /containers/{id}/json",
		"ContainerCreate":         "POST /containers/create",
		"ContainerStart":          "POST /containers/{id}/start",
		"ContainerStop":           "POST /containers/{id}/stop",
		"ContainerRestart":        "POST /containers/{id}/restart",
		"ContainerRename":         "POST /containers/{id}/rename",
		"ContainerUpdate":         "POST /containers/{id}/update",
		"ContainerRemove":         "DELETE /containers/{id}",
		"ContainerWait":           "POST /containers/{id}/wait",
		"ContainerLogs":           "GET /containers/{id}/logs",
		"ContainerDiff":           "GET /containers/{id}/changes",
		"ContainerStatPath":       "HEAD /containers/{id}/archive",
		"ContainerExecCreate":     "POST /containers/{id}/exec",
		"ContainerExecAttach":     "POST /exec/{id}/start",
		"ContainerExecStart":      "POST /exec/{id}/start",
		"ContainerExecInspect":    "GET /exec/{id}/json",
		"Events":                  "GET /events",
		"ImageInspect":            "GET /images/{name}/json",
		"ImageList":               "GET /images/json",
		"ImagePull":               "POST /images/create",
		"ImageTag":                "POST /images/{name}/tag",
		"ImageRemove":             "DELETE /images/{name}",
		"Info":                    "GET /info",
		"NetworkList":             "GET /networks",
		"NetworkInspect":          "GET /networks/{id}",
		"NetworkConnect":          "POST /networks/{id}/connect",
		"NetworkDisconnect":       "POST /networks/{id}/disconnect",
		// Without these two there is no connection to ask over.
		"Ping":          "",
		"ServerVersion": "",
	}
	local := []string{"Close", "ClientVersion", "DaemonHost", "Dialer", "NegotiateAPIVersionPing"}

	table := map[string]bool{}
	for _, r := range routes() {
		table[r.String()] = true
	}
	called := map[string]bool{}
	paths, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			f, ok := n.(*ast.SelectorExpr)
			if !ok || !isClient(f.X) || slices.Contains(local, f.Sel.Name) {
				return true
			}
			e, ok := endpoint[f.Sel.Name]
			require.True(t, ok, "%s calls %s: say here which endpoint that is", path, f.Sel.Name)
			require.True(t, e == "" || table[e], "%s calls %s: %s is not in the table", path, f.Sel.Name, e)
			called[e] = true
			return true
		})
	}
	for e := range table {
		require.True(t, called[e], "nothing calls %s any more: take it from the table, and from docs/socket-proxy.md", e)
	}
}

// isClient reports whether an expression is the client of an engine, by the
// names that this package gives it.
func isClient(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.CallExpr:
		f, ok := x.Fun.(*ast.SelectorExpr)
		return ok && f.Sel.Name == "client" && len(x.Args) == 0
	case *ast.Ident:
		return x.Name == "cli" || x.Name == "fresh"
	}
	return false
}

func TestMissing(t *testing.T) {
	replaced := facts{replaced: true}
	hook := updater.Hook{Command: []string{"backup"}}
	test := updater.Settings{Health: updater.Health{Test: updater.Test{Image: "smoke"}}}
	for _, row := range []struct {
		name      string
		forbidden string
		settings  updater.Settings
		facts     facts
		refused   bool
	}{
		{name: "nothing is forbidden", facts: replaced},
		{name: "no container can be renamed", forbidden: "POST /containers/{id}/rename", facts: replaced, refused: true},
		{name: "a dependent keeps its name", forbidden: "POST /containers/{id}/rename"},
		{name: "a dependent is stopped as well", forbidden: "POST /containers/{id}/stop", refused: true},
		{name: "a dependent is restarted", forbidden: "POST /containers/{id}/restart", refused: true},
		{name: "what is replaced is not restarted", forbidden: "POST /containers/{id}/restart", facts: replaced},
		{name: "a policy that starts the kept one", forbidden: "POST /containers/{id}/update", facts: facts{replaced: true, policy: true}, refused: true},
		{name: "a policy that lets it lie", forbidden: "POST /containers/{id}/update", facts: replaced},
		{name: "a hook before", forbidden: "POST /containers/{id}/exec", facts: replaced, settings: updater.Settings{PreUpdate: hook}, refused: true},
		{name: "a hook after", forbidden: "POST /exec/{id}/start", facts: replaced, settings: updater.Settings{PostUpdate: hook}, refused: true},
		{name: "a command as a probe", forbidden: "GET /exec/{id}/json", facts: replaced, settings: updater.Settings{Health: updater.Health{Probe: "exec:ready"}}, refused: true},
		{name: "a probe that is no command", forbidden: "GET /exec/{id}/json", facts: replaced, settings: updater.Settings{Health: updater.Health{Probe: "tcp://:80"}}},
		{name: "no command is run", forbidden: "POST /containers/{id}/exec", facts: replaced},
		{name: "Compose may have copied files in, which a list would show", forbidden: "GET /containers/{id}/changes", facts: facts{replaced: true, compose: true}, refused: true},
		{name: "Compose may have copied files in, which their times would show", forbidden: "HEAD /containers/{id}/archive", facts: facts{replaced: true, compose: true}, refused: true},
		{name: "Compose did not make it", forbidden: "HEAD /containers/{id}/archive", facts: replaced},
		{name: "a tag that would have to go again", forbidden: "DELETE /images/{name}", facts: facts{replaced: true, newTag: true}, refused: true},
		{name: "a tag that moves back", forbidden: "DELETE /images/{name}", facts: replaced},
		{name: "more networks than a create takes", forbidden: "POST /networks/{id}/connect", facts: facts{replaced: true, networks: true}, refused: true},
		{name: "a test in all networks of what is only restarted", forbidden: "POST /networks/{id}/connect", facts: facts{networks: true}, settings: test, refused: true},
		{name: "what is only restarted stays in its networks", forbidden: "POST /networks/{id}/connect", facts: facts{networks: true}},
		{name: "one network", forbidden: "POST /networks/{id}/connect", facts: replaced},
		{name: "start-first takes the old one from its networks", forbidden: "POST /networks/{id}/disconnect", facts: replaced, settings: updater.Settings{StartFirst: true}, refused: true},
		{name: "stop-first leaves it there", forbidden: "POST /networks/{id}/disconnect", facts: replaced},
		{name: "a test that must pass", forbidden: "POST /containers/{id}/wait", facts: replaced, settings: test, refused: true},
		{name: "a test of what is only restarted", forbidden: "POST /containers/create", settings: test, refused: true},
		{name: "no test", forbidden: "POST /containers/{id}/wait", facts: replaced},
		{name: "an update does without the log", forbidden: "GET /containers/{id}/logs", facts: facts{true, true, true, true, true}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var forbidden []route
			for _, r := range routes() {
				if r.String() == row.forbidden {
					forbidden = append(forbidden, r)
				}
			}
			require.Equal(t, row.forbidden == "", len(forbidden) == 0, "it is in the table")
			refusal := missing(row.settings, row.facts, forbidden)
			if !row.refused {
				require.Nil(t, refusal)
				return
			}
			require.NotNil(t, refusal)
			require.Equal(t, updater.Unsupported, refusal.Reason)
			require.Contains(t, refusal.Detail, row.forbidden)
			require.Contains(t, refusal.Detail, "allow it in the socket proxy")
		})
	}
	require.Contains(t, missing(updater.Settings{}, replaced, routes()).Detail,
		"POST /containers/{id}/start, POST /containers/{id}/stop, POST /containers/{id}/rename", "all are named at once")
}

func TestFactsOf(t *testing.T) {
	b := func(policy container.RestartPolicyMode, labels map[string]string, networks ...string) *box {
		in := map[string]*network.EndpointSettings{}
		for _, n := range networks {
			in[n] = nil
		}
		return &box{InspectResponse: container.InspectResponse{
			ContainerJSONBase: &container.ContainerJSONBase{HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: policy}}},
			Config:            &container.Config{Labels: labels},
			NetworkSettings:   &container.NetworkSettings{Networks: in},
		}}
	}
	replace := updater.Part{Replace: true, From: updater.Image{Ref: "web:1"}, To: updater.Image{Ref: "web:1"}}
	all := b(container.RestartPolicyAlways, map[string]string{labelProject: "shop"}, "front", "back")

	require.Equal(t, facts{replaced: true}, factsOf(b(container.RestartPolicyUnlessStopped, nil, "front"), replace, "1.41", false))
	require.Equal(t, facts{replaced: true, policy: true, compose: true, networks: true}, factsOf(all, replace, "1.43", false))
	require.Equal(t, facts{replaced: true, policy: true, compose: true}, factsOf(all, replace, "1.44", false), "create takes all networks")
	require.Equal(t, facts{replaced: true, compose: true}, factsOf(all, replace, "1.44", true), "Podman cannot change a policy")
	require.Equal(t, facts{networks: true}, factsOf(all, updater.Part{}, "1.41", false), "it is only restarted")
	replace.To.Ref = "web:2"
	require.Equal(t, facts{replaced: true, newTag: true}, factsOf(b("", nil), replace, "1.41", false))
}

// engineStub answers as an engine that holds nothing, on whatever it is asked.
func engineStub(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	switch {
	case strings.HasSuffix(r.URL.Path, "/_ping"):
	case strings.HasSuffix(r.URL.Path, "/version"):
		fmt.Fprint(w, `{"ApiVersion":"1.41"}`)
	default:
		http.Error(w, `{"message":"nothing here"}`, http.StatusNotFound)
	}
}

// serve answers on a socket of its own, until the test ends.
func serve(t *testing.T, handler http.HandlerFunc) (host string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "updaterd-") // t.TempDir may be too long for a socket
	require.NoError(t, err)
	l, err := net.Listen("unix", filepath.Join(dir, "docker.sock"))
	require.NoError(t, err)
	server := &http.Server{Handler: handler}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-ended, http.ErrServerClosed)
		require.NoError(t, os.RemoveAll(dir))
	})
	return "unix://" + l.Addr().String()
}

func forbiddenOn(h *Host) []string {
	var names []string
	for _, r := range h.forbidden {
		names = append(names, r.String())
	}
	return names
}

func TestWhatCountsAsForbidden(t *testing.T) {
	var changing []string
	for _, r := range routes() {
		if r.method == http.MethodPost || r.method == http.MethodDelete {
			changing = append(changing, r.String())
		}
	}
	changes := func(r *http.Request) bool { return r.Method == http.MethodPost || r.Method == http.MethodDelete }
	for _, row := range []struct {
		name  string
		proxy func(w http.ResponseWriter, r *http.Request) (answered bool)
		want  []string
	}{
		{"an engine that knows nothing of the kind", func(http.ResponseWriter, *http.Request) bool { return false }, nil},
		{"haproxy says 403", func(w http.ResponseWriter, r *http.Request) bool {
			if changes(r) {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>")
			}
			return changes(r)
		}, changing},
		{"a proxy that takes no HEAD says 405", func(w http.ResponseWriter, r *http.Request) bool {
			no := r.Method == http.MethodHead
			if no {
				http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			}
			return no
		}, []string{"HEAD /containers/{id}/archive"}},
		{"the engine's authorization plugin says 403", func(w http.ResponseWriter, r *http.Request) bool {
			no := strings.Contains(r.URL.Path, "/exec/")
			if no {
				http.Error(w, `{"message":"authorization denied by plugin guard"}`, http.StatusForbidden)
			}
			return no
		}, []string{"POST /exec/{id}/start", "GET /exec/{id}/json"}},
		{"the engine itself says 403", func(w http.ResponseWriter, r *http.Request) bool {
			if changes(r) {
				w.Header().Set("Api-Version", "1.41")
				http.Error(w, `{"message":"not on this one"}`, http.StatusForbidden)
			}
			return changes(r)
		}, nil},
		{"a proxy that has lost the engine", func(w http.ResponseWriter, r *http.Request) bool {
			if changes(r) {
				w.WriteHeader(http.StatusBadGateway)
			}
			return changes(r)
		}, nil},
		{"a proxy that hangs up", func(_ http.ResponseWriter, r *http.Request) bool {
			if changes(r) {
				panic(http.ErrAbortHandler)
			}
			return false
		}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, err := New(Options{Name: "local", Endpoint: serve(t, func(w http.ResponseWriter, r *http.Request) {
				if !row.proxy(w, r) {
					engineStub(w, r)
				}
			})})
			require.NoError(t, err)
			defer h.Close()
			_, err = h.connect(t.Context())
			require.NoError(t, err)
			require.Equal(t, row.want, forbiddenOn(h))
		})
	}
}

// TestQuestionThatIsNotAnswered: it must not keep updaterd from its work.
func TestQuestionThatIsNotAnswered(t *testing.T) {
	h, err := New(Options{Name: "local", Endpoint: serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/wait") {
			<-r.Context().Done()
			return
		}
		engineStub(w, r)
	})})
	require.NoError(t, err)
	defer h.Close()
	all := routes()
	for i, a := range h.ask(t.Context(), h.client(), all) { // for askLimit
		if strings.HasSuffix(all[i].path, "/wait") {
			require.Equal(t, unknown, a)
			continue
		}
		require.Equal(t, allowed, a, all[i])
	}
}

func TestForbiddenIsToldOnceAndAskedAgainBeforeARefusal(t *testing.T) {
	var mu sync.Mutex
	forbidden, gone, asked := "/rename", false, 0
	var log bytes.Buffer
	h, err := New(Options{
		Name: "local", Log: slog.New(slog.NewTextHandler(&log, nil)),
		Endpoint: serve(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if r.UserAgent() == askAgent {
				asked++
			}
			if forbidden != "" && strings.HasSuffix(r.URL.Path, forbidden) {
				if gone {
					panic(http.ErrAbortHandler)
				}
				http.Error(w, "Forbidden", http.StatusForbidden)
				return
			}
			engineStub(w, r)
		}),
	})
	require.NoError(t, err)
	defer h.Close()
	for range 3 {
		_, err := h.connect(t.Context())
		require.NoError(t, err)
	}
	require.Equal(t, len(routes()), asked, "not at each pass")
	require.Equal(t, 1, strings.Count(log.String(), "engine endpoint is forbidden"), log.String())
	require.Contains(t, log.String(), `backend=local endpoint="POST /containers/{id}/rename" costs="no container can be updated"`)

	b := &box{InspectResponse: container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{HostConfig: &container.HostConfig{}}, Config: &container.Config{},
	}}
	replace, restart := updater.Part{Replace: true}, updater.Part{}
	require.NoError(t, h.permitted(t.Context(), restart, b))
	require.Equal(t, len(routes()), asked, "nothing is asked for what is allowed")
	var refusal *updater.Refusal
	require.ErrorAs(t, h.permitted(t.Context(), replace, b), &refusal)
	require.Contains(t, refusal.Detail, "POST /containers/{id}/rename")
	require.Equal(t, len(routes())+1, asked)

	mu.Lock()
	gone = true
	mu.Unlock()
	require.ErrorAs(t, h.permitted(t.Context(), replace, b), &refusal, "what was forbidden stays so until the proxy says otherwise")
	mu.Lock()
	forbidden = ""
	mu.Unlock()
	require.NoError(t, h.permitted(t.Context(), replace, b), "the proxy was mended")
	require.Empty(t, forbiddenOn(h))
}

func TestForbiddenToConnect(t *testing.T) {
	h, err := New(Options{Name: "local", Endpoint: serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/version") {
			http.Error(w, "Forbidden", http.StatusForbidden)
			return
		}
		engineStub(w, r)
	})})
	require.NoError(t, err)
	defer h.Close()
	_, err = h.Workloads(t.Context())
	require.ErrorContains(t, err, "GET /version is forbidden on the way to the engine")
}

// TestAskingChangesNothing on a real engine: it does none of what it is asked.
func TestAskingChangesNothing(t *testing.T) {
	r := newRigOn(t, nil)
	h := r.backend(t)
	all := func() []string {
		var names []string
		containers, err := r.cli.ContainerList(t.Context(), container.ListOptions{All: true})
		require.NoError(t, err)
		for _, c := range containers {
			names = append(names, fmt.Sprint(c.ID, c.Names, c.State))
		}
		images, err := r.cli.ImageList(t.Context(), imagetypes.ListOptions{All: true})
		require.NoError(t, err)
		for _, i := range images {
			names = append(names, fmt.Sprint(i.ID, i.RepoTags))
		}
		networks, err := r.cli.NetworkList(t.Context(), network.ListOptions{})
		require.NoError(t, err)
		for _, n := range networks {
			names = append(names, fmt.Sprint(n.ID, n.Name))
		}
		slices.Sort(names)
		return names
	}
	_, err := h.connect(t.Context())
	require.NoError(t, err)
	require.Empty(t, forbiddenOn(h), "an engine forbids nothing")

	// Others may use the engine meanwhile, and then what is there changes.
	var before, after []string
	for range 5 {
		before = all()
		for i, a := range h.ask(t.Context(), h.client(), routes()) {
			require.Equal(t, allowed, a, routes()[i])
		}
		if after = all(); slices.Equal(before, after) {
			break
		}
	}
	require.Equal(t, before, after)
	require.NotContains(t, strings.Join(after, " "), "asks")

	dial := h.client().Dialer()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	defer tr.CloseIdleConnections()
	for _, rt := range routes() {
		if rt.method == http.MethodGet {
			continue
		}
		_, err := rt.ask(t.Context(), roundTripper(func(req *http.Request) (*http.Response, error) {
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err)
			require.GreaterOrEqual(t, resp.StatusCode, 400, "%s is done for nobody", rt)
			return resp, nil
		}), h.client())
		require.NoError(t, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// rules are those of a socket proxy.
type rules func(method, path string) bool

// theirRules reads, from the page for users, what it tells them to give the two
// proxies, and answers as those do: a bare 403.
func theirRules(t *testing.T) map[string]rules {
	t.Helper()
	page, err := os.ReadFile("../../docs/socket-proxy.md")
	require.NoError(t, err)
	allow := map[string][]*regexp.Regexp{}
	for _, m := range regexp.MustCompile(`'-allow([A-Z]+)=([^']+)'`).FindAllStringSubmatch(string(page), -1) {
		allow[m[1]] = append(allow[m[1]], regexp.MustCompile("^"+m[2]+"$"))
	}
	on := map[string]bool{"EVENTS": true, "PING": true, "VERSION": true}
	for _, m := range regexp.MustCompile(`(?m)^      ([A-Z_]+): 1\b`).FindAllStringSubmatch(string(page), -1) {
		on[m[1]] = true
	}
	var sections []*regexp.Regexp
	for name := range on {
		path := map[string]string{"PING": "_ping"}[name]
		if path == "" {
			path = strings.ToLower(name)
		}
		sections = append(sections, regexp.MustCompile(`(?i)^(/v[\d.]+)?/`+path))
	}
	return map[string]rules{
		"wollomatic": func(method, path string) bool {
			return slices.ContainsFunc(allow[method], func(re *regexp.Regexp) bool { return re.MatchString(path) })
		},
		"Tecnativa": func(method, path string) bool {
			reads := method == http.MethodGet || method == http.MethodHead
			return (reads || on["POST"]) && slices.ContainsFunc(sections, func(re *regexp.Regexp) bool { return re.MatchString(path) })
		},
	}
}

// TestRulesForUsers: no more than is needed passes, where rules can be exact.
func TestRulesForUsers(t *testing.T) {
	allowed := theirRules(t)["wollomatic"]
	for _, call := range []string{
		"POST /containers/{id}/kill", "POST /containers/{id}/attach", "POST /containers/prune", "GET /containers/{id}/export",
		"GET /containers/{id}/archive", "PUT /containers/{id}/archive", "DELETE /containers", "POST /images/load", "POST /images/{name}/push",
		"POST /images/prune", "GET /images/get", "POST /networks/create", "DELETE /networks/{id}", "POST /build", "POST /commit",
		"POST /auth", "POST /session", "POST /volumes/create", "GET /volumes", "DELETE /volumes/data", "POST /swarm/init",
		"GET /secrets", "GET /configs", "POST /plugins/pull", "GET /system/df", "GET /distribution/{name}/json",
	} {
		method, path, _ := strings.Cut(call, " ")
		require.False(t, allowed(method, "/v1.41"+strings.NewReplacer("{id}", noID, "{name}", noImage).Replace(path)), call)
	}
}

// TestPageForUsers: every endpoint is on it, with what it costs to forbid it.
func TestPageForUsers(t *testing.T) {
	page, err := fs.ReadFile(os.DirFS("../../docs"), "socket-proxy.md")
	require.NoError(t, err)
	for _, r := range routes() {
		require.Contains(t, string(page), fmt.Sprintf("| `%s` | %s |", r, r.costs))
	}
	require.Contains(t, string(page), fmt.Sprintf("asks for %d endpoints", len(routes())+2))
}

// TestUpdateBehindASocketProxy runs updates on a real engine through proxies
// with the rules from the page for users.
func TestUpdateBehindASocketProxy(t *testing.T) {
	r := newRig(t)
	for who, allowed := range theirRules(t) {
		t.Run(who, func(t *testing.T) {
			var mu sync.Mutex
			var refused []string
			reverse := toEngine(t, r.host)
			h, err := New(Options{Name: "local", Owner: "me", Endpoint: serve(t, func(w http.ResponseWriter, req *http.Request) {
				if !allowed(req.Method, req.URL.Path) {
					mu.Lock()
					refused = append(refused, req.Method+" "+req.URL.Path)
					mu.Unlock()
					http.Error(w, "Forbidden", http.StatusForbidden)
					return
				}
				reverse.ServeHTTP(w, req)
			})})
			require.NoError(t, err)
			defer h.Close()

			prefix := strings.ToLower(who)
			two := prefix + "-two"
			for _, n := range []string{prefix, two} {
				_, err := r.cli.NetworkCreate(t.Context(), r.name(n), network.CreateOptions{Internal: true})
				require.NoError(t, err)
				// The containers go first, since cleanups run in reverse.
				t.Cleanup(func() { require.NoError(t, r.cli.NetworkRemove(context.Background(), r.name(n))) })
			}
			t.Cleanup(func() { r.clean(context.Background()) })
			edit := func(c *container.Config, hc *container.HostConfig) {
				hc.RestartPolicy.Name = container.RestartPolicyAlways
				hc.NetworkMode = container.NetworkMode(r.name(prefix))
				c.Labels = map[string]string{labelProject: "shop"}
			}
			good := r.begin(t, prefix+"-good", command("serve"), edit)
			require.NoError(t, r.cli.NetworkConnect(t.Context(), r.name(two), r.name(prefix+"-good"), nil))
			_, err = h.Workloads(t.Context())
			require.NoError(t, err)
			require.Empty(t, forbiddenOn(h))
			require.NoError(t, r.apply(t, h, &good))
			b, err := h.inspect(t.Context(), r.name(prefix+"-good"))
			require.NoError(t, err)
			require.Len(t, b.NetworkSettings.Networks, 2)
			if os.Getenv("UPDATERD_ENGINE") != "proxy" { // see needsExec
				result, err := h.exec(t.Context(), b, updater.Hook{Command: []string{"/app", "exit", "3"}})
				require.NoError(t, err)
				require.Equal(t, 3, result.ExitCode)
				require.Contains(t, result.Output, "exiting as told")
			}
			require.NoError(t, h.Commit(t.Context(), good))
			require.Empty(t, r.leftovers(t, prefix+"-good"))

			bad := r.begin(t, prefix+"-bad", command("exit", "1"), edit)
			before := r.look(t, prefix+"-bad")
			require.NoError(t, r.apply(t, h, &bad))
			b, err = h.inspect(t.Context(), r.name(prefix+"-bad"))
			require.NoError(t, err)
			require.Eventually(t, func() bool { return strings.Contains(h.logs(t.Context(), b), "exiting as told") }, 10*time.Second, 50*time.Millisecond)
			_, err = r.restore(t, h, bad)
			require.NoError(t, err)
			require.Equal(t, before, r.look(t, prefix+"-bad"))
			require.Empty(t, r.leftovers(t, prefix+"-bad"))
			require.Empty(t, refused)
		})
	}
}

// toEngine passes calls on, those that take the connection over as well.
func toEngine(t *testing.T, host string) *httputil.ReverseProxy {
	t.Helper()
	u, err := client.ParseHostURL(host)
	require.NoError(t, err)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, u.Scheme, u.Host)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport:     tr,
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if !errors.Is(err, context.Canceled) {
				w.WriteHeader(http.StatusBadGateway)
			}
		},
	}
}

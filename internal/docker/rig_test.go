package docker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	imagetypes "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	nothing "github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// program is what runs in the tests' containers. Its argument says how it behaves.
const program = `package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	mode := "serve"
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "exit":
		fmt.Println("exiting as told")
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "hang":
		fmt.Println("hanging as told")
		time.Sleep(time.Hour)
	case "smoke":
		fmt.Println(os.Getenv("UPDATERD_WORKLOAD"), os.Getenv("UPDATERD_IMAGE"), os.Getenv("UPDATERD_ADDRESS"))
		for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			resp, err := http.Get("http://" + net.JoinHostPort(os.Getenv("UPDATERD_ADDRESS"), os.Args[2]))
			if err == nil && resp.StatusCode == 200 {
				fmt.Println("it answers")
				os.Exit(0)
			}
			if time.Since(began) > 10*time.Second {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	case "eat":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	if mode == "web" {
		port := "8080"
		if len(os.Args) > 2 {
			port = os.Args[2]
		}
		go http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/" {
				w.WriteHeader(503)
			}
		}))
	}
	<-c
}
`

// rig is a real engine, a registry with images for it, and a way to make the
// engine's calls fail.
type rig struct {
	cli    *client.Client
	host   string // DOCKER_HOST, or a proxy before it that updaterd must do with
	prefix string // of all names of this run
	repo   string // of the images
	base   v1.Image

	mu     sync.Mutex          // tests that run side by side share a rig
	images map[string]v1.Image // by tag

	// fail decides, for every call that changes something, what becomes of it.
	fail atomic.Pointer[func(call string, done bool) error]
}

// onEngine marks a test that runs on an engine, for the table of all engines.
func onEngine(t *testing.T) {
	t.Helper()
	if about := os.Getenv("UPDATERD_ENGINE_ABOUT"); about != "" {
		t.Attr("engine", about)
	}
}

// isPodmanRun reports whether the tests run on Podman.
func isPodmanRun() bool { return os.Getenv("UPDATERD_ENGINE") == "podman" }

// isDocker29Run reports whether the tests run on a Docker with its images in
// containerd.
func isDocker29Run() bool { return os.Getenv("UPDATERD_ENGINE") == "29" }

// doesNotApply skips a test that proves nothing on this engine, and says why.
func doesNotApply(t *testing.T, why string) {
	t.Helper()
	t.Attr("does-not-apply", why)
	t.Skip(why)
}

// needsExec skips what runs a command in a container, where that cannot be.
func needsExec(t *testing.T) {
	t.Helper()
	if os.Getenv("UPDATERD_ENGINE") == "proxy" {
		doesNotApply(t, "HAProxy up to 2.8 takes apart the request that starts a command in a container")
	}
}

// newRig returns a rig on the engine at DOCKER_HOST or the default socket.
func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOn(t, baseImage(t))
}

func newRigOn(t *testing.T, base v1.Image) *rig {
	t.Helper()
	onEngine(t)
	cli, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	require.NoError(t, err)
	t.Cleanup(func() { _ = cli.Close() })
	if _, err := cli.Ping(t.Context()); err != nil {
		require.Empty(t, os.Getenv("CI"), "no Docker Engine at DOCKER_HOST or the default socket, and CI must have one: %v", err)
		t.Skipf("no Docker Engine at DOCKER_HOST or the default socket, so nothing is proved here: %v", err)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	r := &rig{
		cli: cli, host: cmp.Or(os.Getenv("UPDATERD_ENGINE_FRONT"), cli.DaemonHost()), prefix: fmt.Sprintf("swap%d", time.Now().UnixNano()%1e9),
		images: map[string]v1.Image{},
	}
	r.repo = strings.TrimPrefix(server.URL, "http://") + "/" + r.prefix
	r.base = base
	t.Cleanup(func() { r.clean(context.Background()) })
	return r
}

// clean takes away all that this run left on the engine.
func (r *rig) clean(ctx context.Context) {
	all, err := r.cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return
	}
	for _, c := range all {
		if strings.HasPrefix(nameOf(c), r.prefix) {
			_ = r.cli.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		}
	}
	images, err := r.cli.ImageList(ctx, imagetypes.ListOptions{})
	if err != nil {
		return
	}
	for _, i := range images {
		for _, ref := range append(slices.Clone(i.RepoTags), i.RepoDigests...) {
			if strings.Contains(ref, r.prefix) {
				_, _ = r.cli.ImageRemove(ctx, ref, imagetypes.RemoveOptions{})
			}
		}
	}
}

// discard takes away a workload and what a change of it left.
func (r *rig) discard(ctx context.Context, name string) {
	all, err := r.cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return // clean comes to it
	}
	for _, c := range all {
		if n := nameOf(c); n == r.name(name) || strings.HasPrefix(n, r.name(name)+".") {
			_ = r.cli.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		}
	}
}

// baseImage holds the program and nothing else.
func baseImage(t *testing.T) v1.Image {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(src, []byte(program), 0o600))
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "app"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	app, err := os.ReadFile(filepath.Join(dir, "app"))
	require.NoError(t, err)
	layer := archive(t, map[string][]byte{"app": app})
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	require.NoError(t, err)
	img, err := mutate.AppendLayers(nothing.Image, l)
	require.NoError(t, err)
	f, err := img.ConfigFile()
	require.NoError(t, err)
	f.OS, f.Architecture = "linux", runtime.GOARCH
	img, err = mutate.ConfigFile(img, f)
	require.NoError(t, err)
	return img
}

// image makes an image with this configuration and returns its digest.
func (r *rig) image(t *testing.T, tag string, edit func(*v1.Config)) string {
	t.Helper()
	f, err := r.base.ConfigFile()
	require.NoError(t, err)
	cfg := *f.Config.DeepCopy()
	cfg.Entrypoint = []string{"/app"}
	cfg.Env = []string{"TAG=" + tag, "RUN=" + r.prefix} // no other run has the same image
	edit(&cfg)
	img, err := mutate.Config(r.base, cfg)
	require.NoError(t, err)
	r.push(t, tag, img)
	d, err := img.Digest()
	require.NoError(t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[tag] = img
	return d.String()
}

// push publishes an image under a tag.
func (r *rig) push(t *testing.T, tag string, img remote.Taggable) {
	t.Helper()
	ref, err := name.ParseReference(r.repo + ":" + tag)
	require.NoError(t, err)
	switch i := img.(type) {
	case v1.Image:
		require.NoError(t, remote.Write(ref, i))
	case v1.ImageIndex:
		require.NoError(t, remote.WriteIndex(ref, i))
	default:
		t.Fatalf("cannot push a %T", img)
	}
}

// pull brings repo:tag to the engine, as a person would.
func (r *rig) pull(t *testing.T, tag string) {
	t.Helper()
	body, err := r.cli.ImagePull(t.Context(), r.repo+":"+tag, imagetypes.PullOptions{})
	require.NoError(t, err)
	defer body.Close()
	require.NoError(t, follow(body, func(updater.Progress) {}))
}

// run starts a container, as a person would.
func (r *rig) run(t *testing.T, name, ref string, edit func(*container.Config, *container.HostConfig)) string {
	t.Helper()
	id, err := r.tryRun(t, name, ref, edit)
	require.NoError(t, err)
	return id
}

// tryRun is run where the engine may refuse to create such a container.
func (r *rig) tryRun(t *testing.T, name, ref string, edit func(*container.Config, *container.HostConfig)) (string, error) {
	t.Helper()
	stop := 2
	// A program that is stopped before it has asked for SIGTERM never gets it
	// as the first process of a container, and would live on for 2 s.
	c := &container.Config{Image: ref, StopTimeout: &stop, StopSignal: "SIGKILL"}
	h := &container.HostConfig{NetworkMode: "none"}
	if edit != nil {
		edit(c, h)
	}
	created, err := r.cli.ContainerCreate(t.Context(), c, h, &network.NetworkingConfig{}, nil, r.name(name))
	if err != nil {
		return "", err
	}
	require.NoError(t, r.cli.ContainerStart(t.Context(), created.ID, container.StartOptions{}))
	return created.ID, nil
}

func (r *rig) name(name string) string { return r.prefix + "-" + name }

// backend is the engine as a newly started updaterd sees it.
func (r *rig) backend(t *testing.T) *Host {
	t.Helper()
	return r.backendOf(t, "me")
}

func (r *rig) backendOf(t *testing.T, owner string) *Host {
	t.Helper()
	h, err := New(Options{Name: "local", Endpoint: r.host, Owner: owner, wrap: func(next http.RoundTripper) http.RoundTripper {
		return &saboteur{next: next, rig: r}
	}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// wish is a change of a workload from one tag to a digest, decided but not planned.
func (r *rig) change(name, from, to, digest string) updater.Change {
	return updater.Change{
		ID: r.name(name) + "-change", Backend: "local", Unit: "local/" + r.name(name), Phase: updater.Preparing, Since: time.Now(),
		Parts: []updater.Part{{
			Workload: "local/" + r.name(name), Replace: true,
			From: updater.Image{Ref: r.repo + ":" + from}, To: updater.Image{Ref: r.repo + ":" + to, Digest: digest},
			Settings: updater.Settings{Keep: 1},
		}},
	}
}

// look is all that a person configured of a container and can see.
func (r *rig) look(t *testing.T, name string) string {
	t.Helper()
	c, err := r.cli.ContainerInspect(t.Context(), r.name(name))
	if cerrdefs.IsNotFound(err) {
		return ""
	}
	require.NoError(t, err)
	maps.DeleteFunc(c.Config.Labels, func(k, _ string) bool { return strings.HasPrefix(k, labelPrefix) })
	c.Config.Hostname = ""
	if isPodmanRun() { // in no order, and with the host name it generated
		c.Config.Env = slices.DeleteFunc(c.Config.Env, func(e string) bool { return e == "HOSTNAME="+c.ID[:12] })
		slices.Sort(c.Config.Env)
	}
	r.nameOthers(t, c.HostConfig)
	text, err := json.MarshalIndent(map[string]any{
		"image": c.Image, "running": c.State.Running || c.State.Restarting, "config": c.Config, "host": c.HostConfig,
	}, "", " ")
	require.NoError(t, err)
	return string(text)
}

// nameOthers writes the names of the containers that one uses for their ids.
func (r *rig) nameOthers(t *testing.T, h *container.HostConfig) {
	t.Helper()
	named := func(ref string) string {
		c, err := r.cli.ContainerInspect(t.Context(), ref)
		if cerrdefs.IsNotFound(err) {
			return "gone"
		}
		require.NoError(t, err)
		return strings.TrimPrefix(c.Name, "/")
	}
	mode := func(m string) string {
		if ref, ok := strings.CutPrefix(m, "container:"); ok {
			return "container:" + named(ref)
		}
		return m
	}
	h.NetworkMode = container.NetworkMode(mode(string(h.NetworkMode)))
	h.IpcMode = container.IpcMode(mode(string(h.IpcMode)))
	h.PidMode = container.PidMode(mode(string(h.PidMode)))
	for i, v := range h.VolumesFrom {
		ref, rest, _ := strings.Cut(v, ":")
		h.VolumesFrom[i] = named(ref) + ":" + rest
	}
}

// leftovers are the containers and tags that a change of a workload left.
func (r *rig) leftovers(t *testing.T, name string) []string {
	t.Helper()
	var left []string
	all, err := r.cli.ContainerList(t.Context(), container.ListOptions{All: true})
	require.NoError(t, err)
	for _, c := range all {
		if strings.HasPrefix(nameOf(c), r.name(name)+".") {
			left = append(left, nameOf(c))
		}
	}
	var images []imagetypes.Summary
	require.NoError(t, steadily(t.Context(), func() (err error) {
		images, err = r.cli.ImageList(t.Context(), imagetypes.ListOptions{})
		return err
	}))
	for _, i := range images {
		for _, tag := range i.RepoTags {
			if strings.HasPrefix(tag, keptRepository+r.name(name)+":") {
				left = append(left, tag)
			}
		}
	}
	return left
}

// containersBeside are the leftovers as the contract names them: like
// workloads.
func (r *rig) containersBeside(t *testing.T, name string) []string {
	t.Helper()
	left := r.leftovers(t, name)
	for i := range left {
		left[i] = strings.TrimPrefix(left[i], r.prefix+"-")
	}
	return left
}

// local is the id of the image that a tag stands for on the engine.
func (r *rig) local(t *testing.T, tag string) string {
	t.Helper()
	img, err := r.cli.ImageInspect(t.Context(), r.repo+":"+tag)
	if cerrdefs.IsNotFound(err) {
		return ""
	}
	require.NoError(t, err)
	return img.ID
}

// tagsOfTheImage are all that stand for the image that a tag stands for.
func (r *rig) tagsOfTheImage(t *testing.T, tag string) []string {
	t.Helper()
	img, err := r.cli.ImageInspect(t.Context(), tag)
	require.NoError(t, err)
	return img.RepoTags
}

func (r *rig) remove(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, r.cli.ContainerRemove(t.Context(), name, container.RemoveOptions{Force: true}))
}

// prune removes a container that others may live in, where the engine lets anybody
// do that.
func (r *rig) prune(t *testing.T, name string) {
	t.Helper()
	err := r.cli.ContainerRemove(t.Context(), name, container.RemoveOptions{Force: true})
	if err != nil && strings.Contains(err.Error(), "has dependent containers") {
		doesNotApply(t, "this engine does not remove a container that others live in")
	}
	require.NoError(t, err)
}

// saboteur stands between a Host and its engine.
type saboteur struct {
	next http.RoundTripper
	rig  *rig
}

var errSabotage = errors.New("made to fail")

func (s *saboteur) RoundTrip(req *http.Request) (*http.Response, error) {
	fail := s.rig.fail.Load()
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		if fail != nil {
			if err := (*fail)("", false); err != nil {
				return nil, err
			}
		}
		return s.next.RoundTrip(req)
	}
	call := req.Method + " " + req.URL.Path
	if fail != nil {
		if err := (*fail)(call, false); err != nil {
			return nil, err
		}
	}
	resp, err := s.next.RoundTrip(req)
	if err != nil || fail == nil {
		return resp, err
	}
	if err := (*fail)(call, true); err != nil {
		// It was done, but nobody heard. A stream is read to its end, since an
		// engine gives up a pull whose reader has gone.
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// failNth makes the nth call that changes something fail, once.
func (r *rig) failNth(n int, done bool) (struck func() bool) {
	if n == 0 {
		r.fail.Store(nil)
		return func() bool { return false }
	}
	var mu sync.Mutex
	calls, hit := 0, false
	f := func(call string, after bool) error {
		mu.Lock()
		defer mu.Unlock()
		if call == "" || after != done {
			return nil
		}
		if calls++; calls == n {
			hit = true
			return fmt.Errorf("%w: %s", errSabotage, call)
		}
		return nil
	}
	r.fail.Store(&f)
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		return hit
	}
}

// kinds notes what the calls that change something do.
func (r *rig) kinds() (made func() []string) {
	var mu sync.Mutex
	var kinds []string
	f := func(call string, after bool) error {
		mu.Lock()
		defer mu.Unlock()
		if call != "" && after {
			kinds = append(kinds, kindOfCall(call))
		}
		return nil
	}
	r.fail.Store(&f)
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(kinds)
	}
}

// kindOfCall is a call without what it is about: "POST containers start".
func kindOfCall(call string) string {
	method, path, _ := strings.Cut(call, " /")
	parts := strings.Split(path, "/")
	if len(parts) > 1 && strings.HasPrefix(parts[0], "v1.") {
		parts = parts[1:]
	}
	kind := method + " " + parts[0]
	if last := parts[len(parts)-1]; method == http.MethodPost {
		kind += " " + last
	}
	return kind
}

// crashAt makes the process die at the nth call that changes something: that
// call and all others fail, until a new process begins with failNth(0, false).
func (r *rig) crashAt(n int, done bool) (call func() string) {
	var mu sync.Mutex
	calls, dead := 0, ""
	f := func(call string, after bool) error {
		mu.Lock()
		defer mu.Unlock()
		if dead != "" {
			return errSabotage
		}
		if call == "" || after != done {
			return nil
		}
		if calls++; calls == n {
			dead = call
			return errSabotage
		}
		return nil
	}
	r.fail.Store(&f)
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return dead
	}
}

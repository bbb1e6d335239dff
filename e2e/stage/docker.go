package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/docker/go-connections/nat"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
)

// Label marks all that a test makes on an engine; its value is the test's own.
const Label = "updaterd-e2e"

// Docker is a Docker Engine, as one test sees it. What the test makes there
// carries its Label, and is removed when the test ends.
type Docker struct {
	*client.Client
	// Host is where the engine is, for DOCKER_HOST. An updaterd that is pointed
	// there sees all containers; see Scoped.
	Host string
	// Engine is set when the engine is the test's own, to kill and restart.
	Engine *engine.Engine
	// Mark is the value of Label on what this test makes.
	Mark string

	front string // the way to it for updaterd
	t     TB
	hosts map[string]bool // registries that images came from
	names []string        // of the containers that were made
}

// OpenDocker returns the engine that all tests share: the one that DOCKER_HOST
// or the default socket names, or else a private one.
func OpenDocker(t TB) *Docker {
	t.Helper()
	host, front, err := shared.engine.Host(context.WithoutCancel(t.Context()))
	require.NoError(t, err, "these tests need a Docker Engine: see e2e/engine.sh")
	d := newDocker(t, host, front)
	t.Cleanup(d.clean)
	return d
}

// StartDocker starts an engine for this test alone, which it may kill, freeze
// and restart. It needs root and dockerd.
func StartDocker(t TB, opts engine.Options) *Docker {
	t.Helper()
	e, err := engine.Start(t.Context(), opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the engine's last words:\n%s", e.LogTail(30))
		}
		require.NoError(t, e.Stop())
	})
	d := newDocker(t, e.Host, e.Front)
	d.Engine = e
	return d
}

func newDocker(t TB, host, front string) *Docker {
	t.Helper()
	if about := os.Getenv(engine.AboutEnv); about != "" {
		note(t, "engine", about)
	}
	d := &Docker{
		Host: host, front: front, t: t, hosts: map[string]bool{},
		Mark: fmt.Sprintf("%d-%06x", os.Getpid(), rand.N(1<<24)),
	}
	d.Client = d.At(host)
	return d
}

// note writes an attribute of the test into its log, where a table of all engines
// is made from it; a program that is no test has none.
func note(t TB, key, value string) {
	if test, ok := t.(interface{ Attr(key, value string) }); ok {
		test.Attr(key, value)
	}
}

// NotOn skips a test that proves nothing on a kind of engine, and says why.
func NotOn(t *testing.T, kind engine.Kind, why string) {
	t.Helper()
	if engine.Kind(os.Getenv(engine.KindEnv)) != kind {
		return
	}
	t.Attr("engine", os.Getenv(engine.AboutEnv))
	t.Attr("does-not-apply", why)
	t.Skip(why)
}

// At is a client of the engine by another way, such as a Proxy.
func (d *Docker) At(host string) *client.Client {
	d.t.Helper()
	c, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	require.NoError(d.t, err)
	d.t.Cleanup(func() { c.Close() })
	return c
}

// Name makes a name that no other test uses: "web" becomes "web-1a2b3c".
func (d *Docker) Name(base string) string { return fmt.Sprintf("%s-%06x", base, rand.N(1<<24)) }

// Spec is a container to create: the engine's own options, with nothing
// added but the Label.
type Spec struct {
	Name    string
	Config  container.Config
	Host    container.HostConfig
	Network network.NetworkingConfig
}

// Publish is a binding of the app's port to one of 127.0.0.1, for Spec.Host.
func Publish(port int) nat.PortMap {
	return nat.PortMap{Port: []nat.PortBinding{{HostIP: "127.0.0.1", HostPort: strconv.Itoa(port)}}}
}

// Pull fetches an image and returns its id.
func (d *Docker) Pull(ref string) string {
	d.t.Helper()
	d.came(ref)
	r, err := d.ImagePull(d.t.Context(), ref, image.PullOptions{})
	require.NoError(d.t, err)
	defer r.Close()
	dec := json.NewDecoder(r)
	for {
		var m struct{ Error string }
		if err := dec.Decode(&m); err == io.EOF {
			break
		} else {
			require.NoError(d.t, err)
		}
		require.Empty(d.t, m.Error, "pull %s", ref)
	}
	return d.Image(ref).ID
}

// Image returns what the engine knows of an image.
func (d *Docker) Image(ref string) image.InspectResponse {
	d.t.Helper()
	i, err := d.image(ref)
	require.NoError(d.t, err)
	return i
}

func (d *Docker) image(ref string) (i image.InspectResponse, err error) {
	err = steadily(func() error {
		i, err = d.ImageInspect(d.t.Context(), ref)
		return err
	})
	return i, err
}

// Images lists images as the client does, whatever other tests remove meanwhile.
func (d *Docker) Images(ctx context.Context, opts image.ListOptions) (list []image.Summary, err error) {
	err = steadily(func() error {
		list, err = d.ImageList(ctx, opts)
		return err
	})
	return list, err
}

// RemoveImage takes a reference away by force, whatever other tests remove meanwhile.
func (d *Docker) RemoveImage(ctx context.Context, ref string) error {
	return steadily(func() error {
		_, err := d.ImageRemove(ctx, ref, image.RemoveOptions{Force: true})
		return err
	})
}

// steadily asks about images until none goes or comes in the middle of it: Podman
// reads all that it has for each answer, and fails then.
func steadily(ask func() error) error {
	var err error
	for range 50 {
		if err = ask(); err == nil || errdefs.IsNotFound(err) ||
			!strings.Contains(err.Error(), "image not known") && !strings.Contains(err.Error(), "size is not known") {
			break
		}
		time.Sleep(50 * time.Millisecond) // whoever removes it is another process
	}
	return err
}

func (d *Docker) came(ref string) {
	if host, _, ok := strings.Cut(ref, "/"); ok && strings.HasPrefix(host, "127.0.0.1:") {
		d.hosts[host] = true
	}
}

// Create makes a container, pulling its image first, and returns its id.
func (d *Docker) Create(s Spec) string {
	d.t.Helper()
	if _, err := d.image(s.Config.Image); errdefs.IsNotFound(err) {
		d.Pull(s.Config.Image)
	}
	d.came(s.Config.Image)
	d.names = append(d.names, s.Name)
	labels := map[string]string{Label: d.Mark}
	for k, v := range s.Config.Labels {
		labels[k] = v
	}
	s.Config.Labels = labels
	resp, err := d.ContainerCreate(d.t.Context(), &s.Config, &s.Host, &s.Network, nil, s.Name)
	require.NoError(d.t, err)
	return resp.ID
}

// Run creates a container and starts it.
func (d *Docker) Run(s Spec) string {
	d.t.Helper()
	id := d.Create(s)
	require.NoError(d.t, d.ContainerStart(d.t.Context(), id, container.StartOptions{}))
	return id
}

// Inspect returns what the engine knows of a container, by name or id.
func (d *Docker) Inspect(name string) container.InspectResponse {
	d.t.Helper()
	c, err := d.ContainerInspect(d.t.Context(), name)
	require.NoError(d.t, err)
	return c
}

// Wait inspects the container until ok; it fails after timeout or Patience,
// whichever is longer, with what it is then. That there is no such container, or no engine, it takes for not yet.
func (d *Docker) Wait(name string, timeout time.Duration, what string, ok func(container.InspectResponse) bool) container.InspectResponse {
	d.t.Helper()
	timeout = max(timeout, Patience)
	deadline := time.Now().Add(timeout)
	for {
		c, err := d.ContainerInspect(d.t.Context(), name)
		if err == nil && ok(c) {
			return c
		}
		if d.t.Context().Err() != nil || time.Now().After(deadline) {
			d.t.Fatalf("waited %s in vain for %s to be %s; it is: %s", timeout, name, what, describe(c, err))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func describe(c container.InspectResponse, err error) string {
	if err != nil {
		return err.Error()
	}
	b, err := json.Marshal(c.State)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s of %s, restarted %d times: %s", c.Name, c.Config.Image, c.RestartCount, b)
}

// WaitHealthy waits until the container's HEALTHCHECK passes.
func (d *Docker) WaitHealthy(name string, timeout time.Duration) container.InspectResponse {
	d.t.Helper()
	return d.Wait(name, timeout, "healthy", func(c container.InspectResponse) bool {
		return c.State.Health != nil && c.State.Health.Status == container.Healthy
	})
}

// WaitRunning waits until the container runs.
func (d *Docker) WaitRunning(name string, timeout time.Duration) container.InspectResponse {
	d.t.Helper()
	return d.Wait(name, timeout, "running", func(c container.InspectResponse) bool {
		return c.State.Running && !c.State.Restarting
	})
}

// Containers lists this test's containers, stopped ones too.
func (d *Docker) Containers() []container.Summary {
	d.t.Helper()
	list, err := d.list(d.t.Context())
	require.NoError(d.t, err)
	return list
}

func (d *Docker) list(ctx context.Context) ([]container.Summary, error) {
	return d.ContainerList(ctx, container.ListOptions{All: true, Filters: d.mine()})
}

func (d *Docker) mine() filters.Args { return filters.NewArgs(filters.Arg("label", Label+"="+d.Mark)) }

// Names lists the names of this test's containers, sorted. That nothing is left
// over is seen here.
func (d *Docker) Names() []string {
	d.t.Helper()
	names := []string{}
	for _, c := range d.Containers() {
		for _, n := range c.Names {
			// Names of legacy links have a second slash.
			if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
				names = append(names, n)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Logs returns what the container wrote.
func (d *Docker) Logs(name string) string {
	d.t.Helper()
	r, err := d.ContainerLogs(d.t.Context(), name, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	require.NoError(d.t, err)
	defer r.Close()
	var b bytes.Buffer
	_, err = stdcopy.StdCopy(&b, &b, r)
	require.NoError(d.t, err)
	return b.String()
}

// Remove removes a container by force, as another person would, who tries again
// when a busy engine could not remove its files because it still wrote to them.
// By its id: another one may have the name, or updaterd may have removed it, by
// the time of the second try.
func (d *Docker) Remove(name string) {
	d.t.Helper()
	id := d.Inspect(name).ID
	var err error
	tries := 0
	require.Eventually(d.t, func() bool {
		tries++
		err = d.ContainerRemove(context.Background(), id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		if tries > 1 && errdefs.IsNotFound(err) {
			err = nil
		}
		return err == nil || !strings.Contains(err.Error(), "directory not empty")
	}, 30*time.Second, 100*time.Millisecond)
	require.NoError(d.t, err)
}

// MakeNetwork creates a network that the test's end removes.
func (d *Docker) MakeNetwork(name string, opts network.CreateOptions) string {
	d.t.Helper()
	if opts.Labels == nil {
		opts.Labels = map[string]string{}
	}
	opts.Labels[Label] = d.Mark
	resp, err := d.NetworkCreate(d.t.Context(), name, opts)
	require.NoError(d.t, err)
	return resp.ID
}

// MakeVolume creates a volume that the test's end removes.
func (d *Docker) MakeVolume(name string) {
	d.t.Helper()
	_, err := d.VolumeCreate(d.t.Context(), volume.CreateOptions{Name: name, Labels: map[string]string{Label: d.Mark}})
	require.NoError(d.t, err)
}

// removeByForce removes a container that may be in a crash loop: when its program
// ends just then, Podman cannot kill it and gives up.
func (d *Docker) removeByForce(ctx context.Context, id string) error {
	for {
		err := d.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
		if err == nil || !strings.Contains(err.Error(), "container state improper") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// clean removes all that this test made on a shared engine.
func (d *Docker) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	check := func(err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			d.t.Errorf("clean up the engine: %v", err)
		}
	}
	list, err := d.list(ctx)
	check(err)
	for _, c := range list {
		if d.t.Failed() {
			c, err := d.ContainerInspect(ctx, c.ID)
			d.t.Logf("left on the engine: %s", describe(c, err))
		}
		check(d.removeByForce(ctx, c.ID))
	}
	networks, err := d.NetworkList(ctx, network.ListOptions{Filters: d.mine()})
	check(err)
	for _, n := range networks {
		check(d.NetworkRemove(ctx, n.ID))
	}
	volumes, err := d.VolumeList(ctx, volume.ListOptions{Filters: d.mine()})
	check(err)
	for _, v := range volumes.Volumes {
		check(d.VolumeRemove(ctx, v.Name, true))
	}
	images, err := d.Images(ctx, image.ListOptions{})
	check(err)
	for _, i := range images {
		for _, ref := range slices.Concat(i.RepoTags, i.RepoDigests) {
			if d.ours(ref) {
				err := d.RemoveImage(ctx, ref)
				switch {
				case errdefs.IsConflict(err): // a container of another test runs an equal one
				case err != nil && strings.Contains(err.Error(), "tag not known"): // Podman: it went with another name
				default:
					check(err)
				}
			}
		}
	}
}

// ours says whether a reference is of this test's doing. Equal images of other
// tests are the same to the engine, so their names must stay.
func (d *Docker) ours(ref string) bool {
	host, path, _ := strings.Cut(ref, "/")
	if host != "updaterd.local" {
		return d.hosts[host] && !strings.HasSuffix(ref, "<none>")
	}
	// What updaterd keeps of a container is below that container's name.
	_, name, _ := strings.Cut(path, "/")
	name, _, _ = strings.Cut(name, ":")
	return slices.Contains(d.names, name)
}

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// The tests of this file prove the stage itself, so that a failure of another
// test is not one of the stage.

func TestStageRunsImagesOfALocalRegistry(t *testing.T) {
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	digest := reg.Push("acme/web:v1", stage.Image{Version: "v1", Healthcheck: stage.Check(50*time.Millisecond, 2)})

	name, port := d.Name("web"), stage.FreePort(t)
	d.Run(stage.Spec{
		Name:   name,
		Config: container.Config{Image: reg.Ref("acme/web:v1")},
		Host:   container.HostConfig{PortBindings: stage.Publish(port)},
	})
	d.WaitHealthy(name, 20*time.Second)

	body, err := stage.Get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/", port))
	require.NoError(t, err)
	require.Equal(t, "v1", body)
	require.Equal(t, []string{name}, d.Names())
	require.Contains(t, d.Logs(name), "app v1 starts")
	require.Equal(t, []string{reg.Ref("acme/web@" + digest)}, d.Image(reg.Ref("acme/web:v1")).RepoDigests)
	require.Positive(t, reg.Count("GET", "/v2/acme/web/manifests/"))
}

func TestStageAppMisbehavesAsTold(t *testing.T) {
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	check := stage.Check(50*time.Millisecond, 2)
	for _, tt := range []struct {
		name  string
		image stage.Image
		host  container.HostConfig
		want  func(container.InspectResponse) bool
	}{
		{
			name:  "exits at once",
			image: stage.Image{Behave: stage.Exit(7)},
			want: func(c container.InspectResponse) bool {
				return c.State.Status == container.StateExited && c.State.ExitCode == 7
			},
		},
		{
			name:  "restarts in a loop",
			image: stage.Image{Behave: stage.Exit(1)},
			host:  container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyAlways}},
			want:  func(c container.InspectResponse) bool { return c.RestartCount >= 2 },
		},
		{
			name:  "hangs in start",
			image: stage.Image{Behave: stage.Behaviour{Hang: true}, Healthcheck: check},
			want:  func(c container.InspectResponse) bool { return c.State.Health.Status == container.Unhealthy },
		},
		{
			name:  "turns unhealthy",
			image: stage.Image{Behave: stage.Behaviour{UnhealthyAfter: 500 * time.Millisecond}, Healthcheck: check},
			want:  func(c container.InspectResponse) bool { return c.State.Health.Status == container.Unhealthy },
		},
		{
			name:  "is killed for its memory",
			image: stage.Image{Behave: stage.Behaviour{EatMemory: true}},
			host:  container.HostConfig{Resources: container.Resources{Memory: 32 << 20}},
			want: func(c container.InspectResponse) bool {
				// Podman may miss it, and tells the signal alone.
				return c.State.OOMKilled || onPodman() && c.State.Status == container.StateExited && c.State.ExitCode == 128+int(syscall.SIGKILL)
			},
		},
		{
			name:  "writes to a volume",
			image: stage.Image{Behave: stage.Behaviour{Write: "/data/versions", ExitAfter: time.Millisecond, Exit: new(int)}, Volumes: []string{"/data"}},
			want: func(c container.InspectResponse) bool {
				return len(c.Mounts) == 1 && c.State.Status == container.StateExited && c.State.ExitCode == 0
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.image.Version = tt.name
			tag := "acme/app:" + strings.ReplaceAll(tt.name, " ", "-")
			reg.Push(tag, tt.image)
			id := d.Run(stage.Spec{Config: container.Config{Image: reg.Ref(tag)}, Host: tt.host})
			d.Wait(id, 20*time.Second, tt.name, tt.want)
		})
	}

	t.Run("of another architecture does not start", func(t *testing.T) {
		reg.Push("acme/app:foreign", stage.Image{Version: "foreign", Platform: stage.Foreign()})
		id := d.Create(stage.Spec{Config: container.Config{Image: reg.Ref("acme/app:foreign")}})
		err := d.ContainerStart(t.Context(), id, container.StartOptions{})
		// 20.10 says it in the log of the container only.
		if err == nil {
			d.Wait(id, 20*time.Second, "ended", func(c container.InspectResponse) bool { return !c.State.Running })
			err = errors.New(d.Logs(id))
		}
		require.ErrorContains(t, err, "exec format error")
	})
}

func TestStageIndexesHoldPlatforms(t *testing.T) {
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	for _, oci := range []bool{false, true} {
		here, foreign := stage.Image{Version: "here", OCI: oci}, stage.Image{Version: "foreign", Platform: stage.Foreign(), OCI: oci}
		both := fmt.Sprintf("acme/web:both-%t", oci)
		digest := reg.Push(both, stage.Index{Images: []stage.Image{foreign, here}, OCI: oci, Attestation: true})
		d.Pull(reg.Ref(both))
		require.Contains(t, d.Image(reg.Ref(both)).RepoDigests, reg.Ref("acme/web@"+digest))
		require.Contains(t, d.Image(reg.Ref(both)).Config.Env, "APP_VERSION=here")

		other := fmt.Sprintf("acme/web:other-%t", oci)
		reg.Push(other, stage.Index{Images: []stage.Image{foreign}, OCI: oci})
		r, err := d.ImagePull(t.Context(), reg.Ref(other), image.PullOptions{})
		if err == nil {
			// Where it is not refused at once, it is in the stream.
			err = errors.New(readAll(t, r))
			r.Close()
		}
		require.Regexp(t, "no matching manifest|no image found in (manifest list|image index)", err.Error())
	}
}

func TestStageRegistryMisbehavesAsTold(t *testing.T) {
	head := func(t *testing.T, reg *stage.Registry) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, reg.URL+"/v2/acme/web/manifests/v1", nil)
		require.NoError(t, err)
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	digest := reg.Push("acme/web:v1", stage.Image{Version: "v1"})

	heal := reg.Fail("HEAD", "/manifests/v1$", 0, stage.TooMany("17"))
	reg.Fail("", "", 1, stage.Drop())
	_, err := head(t, reg)
	require.Error(t, err, "the newest fault first, and once")
	resp, err := head(t, reg)
	require.NoError(t, err)
	require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
	require.Equal(t, "17", resp.Header.Get("Retry-After"))
	heal()
	resp, err = head(t, reg)
	require.NoError(t, err)
	require.Equal(t, digest, resp.Header.Get("Docker-Content-Digest"))
	there := make(chan struct{})
	heal = reg.Fail("GET", "/manifests/", 1, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		close(there)
		stage.Hang()(w, r, next)
	})
	hung := make(chan error, 1)
	go func() {
		resp, err := http.Get(reg.URL + "/v2/acme/web/manifests/v1")
		if err == nil {
			resp.Body.Close()
		}
		hung <- err
	}()
	<-there
	heal()
	require.ErrorIs(t, <-hung, io.EOF, "what hung is broken off")
	reg.Fail("", "", 1, stage.DigestHeader(""))
	resp, err = head(t, reg)
	require.NoError(t, err)
	require.Empty(t, resp.Header.Values("Docker-Content-Digest"))
	require.Equal(t, 4, reg.Count("HEAD", "^/v2/acme/web/manifests/"), "faults count as requests")

	reg.Down()
	_, err = head(t, reg)
	require.Error(t, err)
	reg.Up()
	_, err = head(t, reg)
	require.NoError(t, err)
}

func TestStageRegistryWithTokensAndTLS(t *testing.T) {
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{TLS: true, Bearer: true})
	reg.Push("acme/web:v1", stage.Image{Version: "v1"})
	d.Pull(reg.Ref("acme/web:v1"))
	require.Positive(t, reg.Count("", "^/token$"))
	require.FileExists(t, reg.CA)
}

func TestStageProxySeesAndSpoilsCalls(t *testing.T) {
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	reg.Push("acme/web:v1", stage.Image{Version: "v1"})
	other := d.Run(stage.Spec{Name: d.Name("other"), Config: container.Config{Image: reg.Ref("acme/web:v1"), Labels: map[string]string{stage.Label: "another test's"}}})
	defer d.Remove(other)
	id := d.Create(stage.Spec{Name: d.Name("web"), Config: container.Config{Image: reg.Ref("acme/web:v1")}})

	p := d.Proxy(stage.Hooks{
		Before: func(c stage.Call) error {
			if strings.HasSuffix(c.Path, "/kill") {
				return errors.New("not today")
			}
			return nil
		},
		After: func(c stage.Call) error {
			if strings.HasPrefix(c.Path, "/containers/") && strings.HasSuffix(c.Path, "/start") {
				return errors.New("done, but lost")
			}
			return nil
		},
	})
	through := d.At(p.Host)
	list, err := through.ContainerList(t.Context(), container.ListOptions{All: true})
	require.NoError(t, err)
	require.Len(t, list, 1, "another test's containers are not seen")
	require.ErrorContains(t, through.ContainerStart(t.Context(), id, container.StartOptions{}), "done, but lost")
	d.WaitRunning(id, 5*time.Second)
	require.ErrorContains(t, through.ContainerKill(t.Context(), id, "KILL"), "not today")
	require.True(t, d.Inspect(id).State.Running)
	calls := p.Calls()
	require.Len(t, calls, 1)
	require.Equal(t, "POST /containers/"+id+"/start", calls[0].String())

	if engine.Kind(os.Getenv(engine.KindEnv)) == engine.Proxied {
		return // noExec
	}
	// A hijacked connection goes through as well.
	exec, err := through.ContainerExecCreate(t.Context(), id, container.ExecOptions{Cmd: []string{"/app", "exit", "3"}, AttachStdout: true})
	require.NoError(t, err)
	attached, err := through.ContainerExecAttach(t.Context(), exec.ID, container.ExecAttachOptions{})
	require.NoError(t, err)
	attached.Close()
	stage.Eventually(t, 5*time.Second, "the exec to end with 3", func() bool {
		e, err := d.ContainerExecInspect(t.Context(), exec.ID)
		return err == nil && !e.Running && e.ExitCode == 3
	})
}

func TestStageEngineIsKilledAndRestarted(t *testing.T) {
	d := stage.StartDocker(t, engine.Options{})
	beside := stage.StartDocker(t, engine.Options{})
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	reg.Push("acme/web:v1", stage.Image{Version: "v1"})
	port := stage.FreePort(t)
	d.MakeNetwork("mine", network.CreateOptions{})
	spec := stage.Spec{
		Name:   "web",
		Config: container.Config{Image: reg.Ref("acme/web:v1")},
		Host: container.HostConfig{
			PortBindings:  stage.Publish(port),
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyAlways},
			NetworkMode:   "mine",
		},
	}
	d.Run(spec)
	spec.Host.PortBindings, spec.Host.NetworkMode = nil, ""
	beside.Run(spec)
	app := d.WaitRunning("web", 5*time.Second).State.Pid

	gap := stage.MeasureGap(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
	require.NoError(t, d.Engine.Kill())
	_, err := d.Ping(t.Context())
	require.Error(t, err)
	require.DirExists(t, fmt.Sprintf("/proc/%d", app), "containers outlive the engine")
	require.NoError(t, d.Engine.Up(t.Context()))
	d.WaitRunning("web", 20*time.Second)
	stage.Eventually(t, 10*time.Second, "the app to answer again", func() bool {
		body, err := stage.Get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/", port))
		return err == nil && body == "v1"
	})
	report := gap.Stop()
	t.Log(report)
	if !onPodman() { // whose ports are open as long as the container runs
		require.Positive(t, report.Failed)
	}
	require.Equal(t, []string{"v1"}, report.Bodies)

	require.NoError(t, d.Engine.Down())
	require.NoError(t, d.Engine.Up(t.Context()))
	d.WaitRunning("web", 20*time.Second)
	require.Zero(t, beside.Inspect("web").RestartCount, "the other engine noticed nothing")
	require.True(t, beside.Inspect("web").State.Running)

	dir, bridgeAddr := d.Engine.Dir, d.Engine.Subnet
	require.NoError(t, d.Engine.Stop())
	require.NoDirExists(t, dir)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), dir)
	routes, err := os.ReadFile("/proc/net/fib_trie")
	require.NoError(t, err)
	require.NotContains(t, string(routes), bridgeAddr.Addr().Next().String())
}

func TestStageEngineHasAFullDisk(t *testing.T) {
	d := stage.StartDocker(t, engine.Options{DataSize: 32 << 20})
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	reg.Push("acme/web:v1", stage.Image{Version: "v1"})
	reg.Push("acme/web:big", stage.Image{Version: "big", Ballast: 40 << 20})
	d.Pull(reg.Ref("acme/web:v1"))
	r, err := d.ImagePull(t.Context(), reg.Ref("acme/web:big"), image.PullOptions{})
	require.NoError(t, err)
	defer r.Close()
	require.Contains(t, readAll(t, r), "no space left on device")
}

func TestStageSmallDirIsSmall(t *testing.T) {
	err := os.WriteFile(filepath.Join(stage.SmallDir(t, 64<<10), "big"), make([]byte, 128<<10), 0o600)
	require.ErrorContains(t, err, "no space left on device")
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(b)
}

func TestStageRunsUpdaterd(t *testing.T) {
	d := stage.OpenDocker(t)
	u := stage.NewUpdaterd(t, d.Scoped(), "watch: labelled\n")
	r := u.Run("version")
	require.Zero(t, r.Code)
	require.NotEmpty(t, r.Stdout)
	require.Equal(t, 2, u.Run("no-such-command").Code)

	daemon := u.Start("run")
	stage.Eventually(t, 10*time.Second, "a first line of the log", func() bool { return daemon.Logs() != "" })
	require.Zero(t, daemon.Stop(10*time.Second))
	daemon = u.Start("run")
	daemon.Kill()
	require.Equal(t, -1, daemon.Wait(time.Second))
}

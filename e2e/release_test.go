package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// release pushes the image that is released, for this machine only and with the
// program at bin, and returns its reference. Another version is another image.
func release(t *testing.T, reg *stage.Registry, bin, version string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	cmd := exec.CommandContext(t.Context(), "go", "run", "-C", "image", ".", "-o", file, "-version", version, runtime.GOARCH+"="+bin)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	image := "updaterd/updaterd:" + version
	reg.PushArchive(image, file)
	return reg.Ref(image)
}

// TestContainerSaysWhetherItIsWell by the health check of the image that is
// released, run as its files and docs say.
func TestContainerSaysWhetherItIsWell(t *testing.T) {
	stage.NotOn(t, engine.Podman, "Podman takes no health check from an image in the OCI's format")
	t.Parallel()
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	image := release(t, reg, stage.NewUpdaterd(t, d.Host, "").Bin, "v0.0.1")

	var away atomic.Bool
	p := d.Proxy(stage.Hooks{Before: func(stage.Call) error {
		if away.Load() {
			return errors.New("the engine is not what it was")
		}
		return nil
	}})
	socket := strings.TrimPrefix(p.Host, "unix://")
	require.NoError(t, os.Chmod(filepath.Dir(socket), 0o755))
	require.NoError(t, os.Chmod(socket, 0o666)) // it is nobody's, and not root's
	state := d.Name("state")
	d.MakeVolume(state)
	spec := stage.Spec{Name: d.Name("updaterd"), Config: container.Config{
		Image: image, Env: []string{"UPDATERD_SCHEDULE=@every 1s", "UPDATERD_JITTER=0s"},
		// What it asks is the image's; only more often, so that nobody has to wait.
		Healthcheck: &container.HealthConfig{Interval: 300 * time.Millisecond, Timeout: 2 * time.Second, Retries: 2, StartPeriod: time.Millisecond},
	}}
	spec.Host = container.HostConfig{
		NetworkMode: "none", Binds: []string{socket + ":/var/run/docker.sock", state + ":/var/lib/updaterd"},
		ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges:true"},
	}
	d.Run(spec)
	is := func(status container.HealthStatus) {
		t.Helper()
		d.Wait(spec.Name, time.Minute, status, func(c container.InspectResponse) bool {
			return c.State.Health != nil && c.State.Health.Status == status
		})
	}

	is(container.Healthy)
	away.Store(true)
	is(container.Unhealthy)
	log := d.Inspect(spec.Name).State.Health.Log
	require.Contains(t, log[len(log)-1].Output, "does not answer; is it running", "it says why")
	away.Store(false)
	is(container.Healthy)
	pid := d.Inspect(spec.Name).State.Pid
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	is(container.Unhealthy)
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	is(container.Healthy)
}

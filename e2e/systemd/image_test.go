//go:build systemd

package systemd

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestImage runs the image as configs/compose.yaml does: no root, nothing writable but
// its volume, the socket by its group.
func TestImage(t *testing.T) {
	dists := os.Getenv("UPDATERD_DISTS")
	require.NotEmpty(t, dists, "run it with make test-systemd")
	found, err := filepath.Glob(filepath.Join(dists, "dist-new", "*-image.tar"))
	require.NoError(t, err)
	require.Len(t, found, 1)
	d := stage.StartDocker(t, engine.Options{})
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	reg.PushArchive("updaterd:v0.0.2", found[0])
	image := reg.Ref("updaterd:v0.0.2")

	web := d.Name("web")
	tag := "acme/" + web + ":latest"
	reg.Push(tag, stage.Image{Version: "v1"})
	d.Run(stage.Spec{Name: web, Config: container.Config{Image: reg.Ref(tag), Labels: map[string]string{"updaterd.enable": "true"}}})
	d.WaitRunning(web, 20*time.Second)

	socket := strings.TrimPrefix(d.Host, "unix://")
	info, err := os.Stat(socket)
	require.NoError(t, err)
	volume := d.Name("state")
	d.MakeVolume(volume)
	self := stage.Spec{Name: d.Name("updaterd"), Config: container.Config{
		Image: image, Env: []string{"UPDATERD_SCHEDULE=@every 1s", "UPDATERD_JITTER=0s", "UPDATERD_DEFAULTS_HEALTH_STABLE=500ms"},
	}}
	self.Host = container.HostConfig{
		NetworkMode:    "host", // where the registry listens
		Binds:          []string{socket + ":/var/run/docker.sock", volume + ":/var/lib/updaterd"},
		GroupAdd:       []string{strconv.FormatUint(uint64(info.Sys().(*syscall.Stat_t).Gid), 10)},
		ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges:true"},
	}
	d.Run(self)
	d.WaitRunning(self.Name, 20*time.Second)
	require.Equal(t, "65532:65532", d.Inspect(self.Name).Config.User)

	reg.Push(tag, stage.Image{Version: "v2"})
	d.Wait(web, time.Minute, "it is updated", func(c container.InspectResponse) bool {
		return c.State.Running && slices.Contains(c.Config.Env, "APP_VERSION=v2")
	})
	require.Contains(t, d.Logs(self.Name), "version=v0.0.2")
	require.Equal(t, runtime.GOARCH, d.Image(image).Architecture)
}

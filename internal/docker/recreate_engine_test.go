package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/blkiodev"
	"github.com/docker/docker/api/types/container"
	imagetypes "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/nat"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// What a person asks for, on an image and its successor that agree in nothing.
type wish struct {
	config  container.Config
	host    container.HostConfig
	network network.NetworkingConfig
	// connect are networks joined after create, with these settings.
	connect map[string]*network.EndpointSettings
	// started is whether it is started before it is looked at. What depends on
	// neither networks nor names is the same without, and a machine may lack
	// what starting needs.
	started bool
	since   string // API version; "" is every
}

// notOnPodman are the rows that cannot be had there, or not like that.
var notOnPodman = map[string]string{
	"a log driver with options": "Podman has no such log driver",
	"a seccomp profile":         "Podman takes a seccomp profile from a file only",
	"all ports published":       "Podman shows ports published with -P as if each had been asked for, so those of the old image stay, and no new ones come",
}

// A container that recreate moved to another image is the one that the same
// options make on that image, and one moved to its own image is itself.
func TestRecreateOnAnEngine(t *testing.T) {
	e := newEngine(t)
	e.images(t)
	for _, n := range []string{e.name("front"), e.name("back")} {
		e.network(t, n)
	}
	lone := e.name("lone")
	_, err := e.cli.NetworkCreate(t.Context(), lone, network.CreateOptions{Driver: "bridge", Internal: true, IPAM: &network.IPAM{
		Config: []network.IPAMConfig{{Subnet: e.subnet("lone")}},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.cli.NetworkRemove(context.Background(), lone) })
	vol := e.name("named")
	_, err = e.cli.VolumeCreate(t.Context(), volume.CreateOptions{Name: vol})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.cli.VolumeRemove(context.Background(), vol, true) })
	front, back := e.name("front"), e.name("back")
	frontID := e.networkID(t, front)
	dir := t.TempDir()

	twice := "TWICE=2"
	if isPodmanRun() {
		twice = "TWICE=3" // it shows the last alone, which must not be the image's
	}
	wishes := map[string]wish{
		"nothing": {started: true},
		"env overrides adds and removes": {config: container.Config{Env: []string{
			"ADDED=1", "SHARED=mine", "REMOVED", "TWICE=1", twice}}},
		"labels":                      {config: container.Config{Labels: map[string]string{"mine": "1", "shared": "mine"}}},
		"a command":                   {config: container.Config{Cmd: []string{"serve", "--flag"}}},
		"an entrypoint":               {config: container.Config{Entrypoint: []string{"/app", "mine"}}},
		"an entrypoint and a command": {config: container.Config{Entrypoint: []string{"/app", "mine"}, Cmd: []string{"x"}}},
		"the image's entrypoint written out, without a command": {config: container.Config{Entrypoint: []string{"/app", "image"}}},
		"an empty entrypoint":       {config: container.Config{Entrypoint: []string{""}, Cmd: []string{"/app", "x"}}},
		"user directory and signal": {config: container.Config{User: "7:7", WorkingDir: "/mine", StopSignal: "SIGUSR1"}},
		"ports": {
			config: container.Config{ExposedPorts: nat.PortSet{"7000/tcp": {}, "7001/udp": {}}},
			host:   container.HostConfig{PortBindings: nat.PortMap{"7000/tcp": {{HostIP: "127.0.0.1", HostPort: ""}}}},
		},
		"part of a health check":        {config: container.Config{Healthcheck: &container.HealthConfig{Interval: 7 * time.Second}}},
		"a whole health check":          {config: container.Config{Healthcheck: &container.HealthConfig{Test: []string{"CMD", "/app", "mine"}, Timeout: time.Second, Retries: 9}}},
		"no health check":               {config: container.Config{Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}}},
		"the start of a health check":   {since: "1.44", config: container.Config{Healthcheck: &container.HealthConfig{StartInterval: 3 * time.Second}}},
		"a host name and domain":        {config: container.Config{Hostname: "box", Domainname: "example.com"}},
		"a host name like an id":        {config: container.Config{Hostname: "0123456789ab"}},
		"a terminal":                    {config: container.Config{Tty: true, OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true}},
		"a stop timeout of zero":        {config: container.Config{StopTimeout: new(int)}},
		"a shell":                       {config: container.Config{Shell: []string{"/app", "-c"}}},
		"no network at all":             {config: container.Config{NetworkDisabled: true}},
		"host network":                  {started: true, host: container.HostConfig{NetworkMode: "host"}},
		"host network and a host name":  {config: container.Config{Hostname: "box"}, host: container.HostConfig{NetworkMode: "host"}},
		"network none":                  {host: container.HostConfig{NetworkMode: "none"}},
		"host UTS":                      {started: true, host: container.HostConfig{UTSMode: "host"}},
		"host PID and IPC":              {host: container.HostConfig{PidMode: "host", IpcMode: "host"}},
		"shareable IPC":                 {host: container.HostConfig{IpcMode: "shareable", ShmSize: 1 << 20}},
		"a MAC address":                 e.mac("bridge", "02:42:c0:ff:ee:01"),
		"a MAC address on a network":    e.mac(network.NetworkBridge, "02:42:c0:ff:ee:02"),
		"restart policy with a count":   {host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}}},
		"restart policy unless-stopped": {host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "unless-stopped"}}},
		"binds": {host: container.HostConfig{Binds: []string{
			dir + ":/host:ro", dir + ":/private:rw,private", vol + ":/named:nocopy"}}},
		"a bind without a source": {started: true, host: container.HostConfig{Binds: []string{"/anon"}}},
		"mounts": {host: container.HostConfig{Mounts: []mount.Mount{
			{Type: mount.TypeBind, Source: dir, Target: "/bind", ReadOnly: true, BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate}},
			{Type: mount.TypeVolume, Source: vol, Target: "/vol", VolumeOptions: &mount.VolumeOptions{NoCopy: true}},
			{Type: mount.TypeVolume, Target: "/anon", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"a": "b"}}},
			{Type: mount.TypeTmpfs, Target: "/tmpfs", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1777}},
		}}},
		"anonymous volumes": {config: container.Config{Volumes: map[string]struct{}{"/mine": {}}}},
		"tmpfs":             {host: container.HostConfig{Tmpfs: map[string]string{"/t": "rw,size=64k"}, ReadonlyRootfs: true}},
		"security": {host: container.HostConfig{
			CapAdd: []string{"CAP_NET_ADMIN"}, CapDrop: []string{"CAP_MKNOD"}, SecurityOpt: []string{"no-new-privileges"}, GroupAdd: []string{"99"}}},
		"seccomp off and no masked paths": {host: container.HostConfig{
			SecurityOpt: []string{"seccomp=unconfined"}, MaskedPaths: []string{}, ReadonlyPaths: []string{}}},
		"some masked paths": {host: container.HostConfig{MaskedPaths: []string{"/proc/keys"}, ReadonlyPaths: []string{"/proc/bus"}}},
		"privileged":        {host: container.HostConfig{Privileged: true}},
		"init":              {host: container.HostConfig{Init: ptr(true)}},
		"no init":           {host: container.HostConfig{Init: ptr(false)}},
		"resources": {host: container.HostConfig{
			OomScoreAdj: 100, Resources: container.Resources{
				Memory: 64 << 20, MemoryReservation: 32 << 20, NanoCPUs: 5e8, CPUShares: 512, CpusetCpus: "0",
				PidsLimit: ptr(int64(50)), Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 512, Hard: 1024}},
				BlkioWeightDevice: []*blkiodev.WeightDevice{},
			}}},
		"devices": {host: container.HostConfig{Resources: container.Resources{
			Devices:           []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nil", CgroupPermissions: "r"}},
			DeviceCgroupRules: []string{"c 1:3 r"},
		}}},
		"cpu quota":                 {host: container.HostConfig{Resources: container.Resources{CPUPeriod: 50000, CPUQuota: 25000}}},
		"names":                     {host: container.HostConfig{DNS: []string{"10.0.0.53"}, DNSSearch: []string{"example.com"}, DNSOptions: []string{"ndots:2"}, ExtraHosts: []string{"db:10.0.0.9"}}},
		"logs":                      {host: container.HostConfig{LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m"}}}},
		"sysctls":                   {host: container.HostConfig{Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}}},
		"annotations":               {since: "1.43", host: container.HostConfig{Annotations: map[string]string{"a": "b"}}},
		"a network":                 {host: container.HostConfig{NetworkMode: container.NetworkMode(front)}},
		"a network by its id":       {started: true, host: container.HostConfig{NetworkMode: container.NetworkMode(frontID)}},
		"a network by its short id": {started: true, host: container.HostConfig{NetworkMode: container.NetworkMode(frontID[:12])}},
		"a network by its short id, with an endpoint": {
			started: true,
			host:    container.HostConfig{NetworkMode: container.NetworkMode(frontID[:12])},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{frontID[:12]: {Aliases: []string{"web"}}}},
		},
		"two networks with aliases": {
			started: true,
			config:  container.Config{Hostname: "box"},
			host:    container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{front: {Aliases: []string{"web", "www"}}}},
			connect: map[string]*network.EndpointSettings{back: {Aliases: []string{"api"}, DriverOpts: map[string]string{"some.option": "1"}}},
		},
		"an address": {
			started: true,
			host:    container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{front: {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: e.address(front, 9)}}}},
			connect: map[string]*network.EndpointSettings{back: {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: e.address(back, 9)}}},
		},
		"the default network and another": {started: true, connect: map[string]*network.EndpointSettings{back: {}}},
		"links within a network": {
			started: true,
			host:    container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{front: {Links: []string{e.name("peer") + ":db"}}}},
		},
		"priority of a gateway": {
			started: true,
			since:   "1.48",
			host:    container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{front: {}, back: {GwPriority: 5}}},
		},
	}
	volumeOf := func(options map[string]string) *mount.VolumeOptions {
		return &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: "local", Options: options}}
	}
	seccomp := `seccomp={"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ptrace"],"action":"SCMP_ACT_ERRNO"}]}`
	maps.Copy(wishes, map[string]wish{
		"a variable made empty":                         {config: container.Config{Env: []string{"SHARED=", "OLD="}}},
		"an entrypoint with the image's command":        {config: container.Config{Entrypoint: []string{"/app", "mine"}, Cmd: []string{"one"}}},
		"an empty entrypoint with the image's command":  {config: container.Config{Entrypoint: []string{""}, Cmd: []string{"one"}}},
		"no health check, but an interval":              {config: container.Config{Healthcheck: &container.HealthConfig{Test: []string{"NONE"}, Interval: 7 * time.Second}}},
		"all ports published":                           {started: true, host: container.HostConfig{PublishAllPorts: true}},
		"a volume where the image declares one":         {started: true, host: container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: vol, Target: "/other"}}}},
		"a bind where the image declares a volume":      {host: container.HostConfig{Binds: []string{dir + ":/other:ro"}}},
		"a tmpfs where the image will declare a volume": {host: container.HostConfig{Tmpfs: map[string]string{"/other": "size=64k"}}},
		"a volume below one of the image's":             {config: container.Config{Volumes: map[string]struct{}{"/data/below": {}}}},
		"volumes with a driver's options": {host: container.HostConfig{Mounts: []mount.Mount{
			{Type: mount.TypeVolume, Target: "/anon", VolumeOptions: volumeOf(map[string]string{"type": "tmpfs", "device": "tmpfs"})},
			{Type: mount.TypeVolume, Source: vol, Target: "/named", ReadOnly: true, VolumeOptions: volumeOf(nil)},
		}}},
		"binds that are not recursive, and a slave": {host: container.HostConfig{Mounts: []mount.Mount{
			{Type: mount.TypeBind, Source: dir, Target: "/flat", BindOptions: &mount.BindOptions{NonRecursive: true}},
			{Type: mount.TypeBind, Source: dir, Target: "/slave", BindOptions: &mount.BindOptions{Propagation: mount.PropagationRSlave}},
		}}},
		"a bind that makes its source":    {since: "1.42", host: container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: dir + "/made", Target: "/made", BindOptions: &mount.BindOptions{CreateMountpoint: true}}}}},
		"a tmpfs without options":         {host: container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeTmpfs, Target: "/tmpfs"}}}},
		"part of a volume":                {since: "1.45", host: container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: vol, Target: "/part", VolumeOptions: &mount.VolumeOptions{Subpath: "below"}}}}},
		"an image as a mount":             {since: "1.48", host: container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeImage, Source: e.name("img:1"), Target: "/image"}}}},
		"a seccomp profile":               {host: container.HostConfig{SecurityOpt: []string{seccomp}}},
		"capabilities in another writing": {host: container.HostConfig{CapAdd: []string{"net_admin", "SYS_TIME"}, CapDrop: []string{"ALL"}}},
		"namespaces of the host":          {host: container.HostConfig{CgroupnsMode: "host", UsernsMode: "host"}},
		"swap and priority": {host: container.HostConfig{Resources: container.Resources{
			Memory: 64 << 20, MemorySwap: -1, PidsLimit: ptr(int64(-1)), CPUPeriod: 100000, CPUQuota: 20000, CpusetMems: "0"}}},
		"a log driver with options": {host: container.HostConfig{LogConfig: container.LogConfig{Type: "local", Config: map[string]string{"max-size": "1m", "max-file": "2"}}}},
		"no logs":                   {host: container.HostConfig{LogConfig: container.LogConfig{Type: "none"}}},
		"a link-local address": {
			host:    container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{front: {IPAMConfig: &network.EndpointIPAMConfig{LinkLocalIPs: []string{"169.254.7.7"}}}}},
		},
		"an alias that is its host name": {
			started: true,
			config:  container.Config{Hostname: "web"},
			host:    container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{front: {Aliases: []string{"web", "api"}}}},
		},
		"an address and a MAC address in two networks": {
			since: "1.44",
			host:  container.HostConfig{NetworkMode: container.NetworkMode(front)},
			network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
				front: {MacAddress: "02:42:c0:ff:ee:11", IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: e.address(front, 11)}},
				back:  {GwPriority: 0, Aliases: []string{"behind"}, IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: e.address(back, 11)}},
			}},
		},
		"a network without a way out": {started: true, host: container.HostConfig{NetworkMode: container.NetworkMode(lone)}},
	})
	e.peer(t, front)
	for _, name := range slices.Sorted(maps.Keys(wishes)) {
		w := wishes[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if w.since != "" && versions.LessThan(e.cli.ClientVersion(), w.since) {
				doesNotApply(t, fmt.Sprintf("engines before API %s cannot hold such a container", w.since))
			}
			if why := notOnPodman[name]; isPodmanRun() && why != "" {
				doesNotApply(t, why)
			}
			before := e.run(t, w, e.name("img:1"))
			s := e.snapshot(t, before)
			if isPodmanRun() && len(w.host.Devices) > 0 {
				requireUnsupported(t, refuse(s, false))
				doesNotApply(t, "Podman does not tell what a container may do with a device, so such a one is refused")
			}
			require.NoError(t, refuse(s, false))

			moved := e.recreate(t, s, e.name("img:2"), w)
			itself := e.recreate(t, s, e.name("img:1"), w)
			e.remove(t, before)
			direct := e.run(t, w, e.name("img:2"))

			require.Equal(t, e.shown(t, direct), e.shown(t, moved), "moved to the new image")
			require.Equal(t, e.shown(t, before), e.shown(t, itself), "made again on the old image")
			require.Contains(t, e.anonymous(before), "/data", "the image declares a volume")
			require.Equal(t, e.anonymous(before), e.anonymous(moved), "volumes")
			if w.started && len(w.connect) == 0 {
				return // an engine takes a second for each start and end
			}
			again := e.recreate(t, e.snapshot(t, moved), e.name("img:2"), w)
			require.Equal(t, e.shown(t, moved), e.shown(t, again), "moved once more, to the same image")
			require.Equal(t, e.anonymous(before), e.anonymous(again), "volumes, the second time")
		})
	}
}

func ptr[T any](v T) *T { return &v }

// engine is the Docker Engine that the tests run against.
type engine struct {
	cli    *client.Client
	number int64 // of this run
	daemon string
}

// newEngine finds the engine at DOCKER_HOST or the default socket. In CI there
// must be one.
func newEngine(t *testing.T) *engine {
	t.Helper()
	onEngine(t)
	cli, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	require.NoError(t, err)
	t.Cleanup(func() { _ = cli.Close() })
	info, err := cli.Info(t.Context())
	if err != nil {
		require.Empty(t, os.Getenv("CI"), "no Docker Engine at DOCKER_HOST or the default socket, and CI must have one: %v", err)
		t.Skipf("no Docker Engine at DOCKER_HOST or the default socket, so nothing is proved here: %v", err)
	}
	return &engine{cli: cli, number: time.Now().UnixNano() % 1e9, daemon: info.Name}
}

// name is a name of this run's own.
func (e *engine) name(s string) string { return fmt.Sprintf("recreate%d-%s", e.number, s) }

// images makes the two images, from nothing but one program.
func (e *engine) images(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(src, []byte(`package main
import ("os"; "os/signal"; "syscall")
func main() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP)
	<-c
}
`), 0o600))
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "app"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	app, err := os.ReadFile(filepath.Join(dir, "app"))
	require.NoError(t, err)

	layer := archive(t, map[string][]byte{"app": app})
	check := func(arg string) []string { return []string{"CMD", "/app", arg} }
	for tag, config := range map[string]container.Config{
		"img:1": {
			Env:        []string{"SHARED=image", "OLD=1", "REMOVED=1", "TWICE=2"},
			Labels:     map[string]string{"shared": "image", "old": "1"},
			Entrypoint: []string{"/app", "image"}, Cmd: []string{"one"},
			User: "1000", WorkingDir: "/one", StopSignal: "SIGHUP",
			ExposedPorts: nat.PortSet{"8001/tcp": {}}, Volumes: map[string]struct{}{"/data": {}},
			Healthcheck: &container.HealthConfig{Test: check("1"), Interval: time.Minute, Timeout: 5 * time.Second, Retries: 2},
			Shell:       []string{"/app", "-old"}, OnBuild: []string{"ENV X=1"},
		},
		"img:2": {
			Env:        []string{"SHARED=image2", "NEW=1", "REMOVED=2"},
			Labels:     map[string]string{"shared": "image2", "new": "1"},
			Entrypoint: []string{"/app", "image2"}, Cmd: []string{"two"},
			User: "2000", WorkingDir: "/two", StopSignal: "SIGUSR2",
			ExposedPorts: nat.PortSet{"8002/tcp": {}}, Volumes: map[string]struct{}{"/other": {}},
			Healthcheck: &container.HealthConfig{Test: check("2"), Interval: 2 * time.Minute, StartPeriod: 9 * time.Second},
		},
	} {
		e.load(t, e.name(tag), config, layer)
	}
}

// load makes an image of one layer, as "docker load" takes it.
func (e *engine) load(t *testing.T, ref string, config container.Config, layer []byte) {
	t.Helper()
	about, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	require.NoError(t, err)
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{ref}, "Layers": []string{"layer.tar"}}})
	require.NoError(t, err)
	r, err := e.cli.ImageLoad(t.Context(), bytes.NewReader(archive(t, map[string][]byte{
		"manifest.json": manifest, "config.json": about, "layer.tar": layer,
	})))
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Body.Close()) }()
	said, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.Contains(t, string(said), "Loaded image")
	t.Cleanup(func() {
		_, _ = e.cli.ImageRemove(context.Background(), ref, imagetypes.RemoveOptions{Force: true})
	})
}

func archive(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}))
		_, err := w.Write(files[name])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func (e *engine) network(t *testing.T, name string) {
	t.Helper()
	_, err := e.cli.NetworkCreate(t.Context(), name, network.CreateOptions{Driver: "bridge", IPAM: &network.IPAM{
		Config: []network.IPAMConfig{{Subnet: e.subnet(name)}},
	}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.cli.NetworkRemove(context.Background(), name) })
}

// subnet is a small one of 198.18.0.0/15, which is set aside for tests, and
// another in every run, so that runs side by side do not meet.
func (e *engine) subnet(name string) string { return e.address(name, 0) + "/28" }

func (e *engine) address(name string, host int) string {
	n := int(e.number%2048) * 64
	switch {
	case strings.HasSuffix(name, "back"):
		n += 16
	case strings.HasSuffix(name, "lone"):
		n += 32
	}
	n += host
	return fmt.Sprintf("198.%d.%d.%d", 18+n>>16, n>>8&0xff, n&0xff)
}

func (e *engine) networkID(t *testing.T, name string) string {
	t.Helper()
	n, err := e.cli.NetworkInspect(t.Context(), name, network.InspectOptions{})
	require.NoError(t, err)
	return n.ID
}

// mac is a wish for a MAC address, said where this engine's API wants it.
func (e *engine) mac(on, mac string) wish {
	if _, err := e.cli.Ping(context.Background()); err == nil && versions.LessThan(e.cli.ClientVersion(), "1.44") {
		//lint:ignore SA1019 engines before API 1.44 know no other place for it
		return wish{started: true, config: container.Config{MacAddress: mac}}
	}
	return wish{started: true, network: network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{on: {MacAddress: mac}}}}
}

// peer is a container to be linked to.
func (e *engine) peer(t *testing.T, on string) {
	t.Helper()
	w := wish{host: container.HostConfig{NetworkMode: container.NetworkMode(on)}}
	c := e.create(t, e.name("peer"), &w.config, &w.host, nil, e.name("img:1"))
	require.NoError(t, e.cli.ContainerStart(t.Context(), c, container.StartOptions{}))
}

func (e *engine) create(t *testing.T, name string, c *container.Config, h *container.HostConfig, n *network.NetworkingConfig, ref string) string {
	t.Helper()
	c.Image = ref
	made, err := e.cli.ContainerCreate(t.Context(), c, h, n, nil, name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = e.cli.ContainerRemove(context.Background(), made.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	})
	return made.ID
}

// observed is a container as it was shown while it existed.
type observed struct {
	container.InspectResponse
	raw json.RawMessage
}

// run does what a person's "docker run" does.
func (e *engine) run(t *testing.T, w wish, ref string) observed {
	t.Helper()
	w = clone(t, w)
	id := e.create(t, "", &w.config, &w.host, &w.network, ref)
	for _, n := range slices.Sorted(maps.Keys(w.connect)) {
		require.NoError(t, e.cli.NetworkConnect(t.Context(), n, id, w.connect[n]))
	}
	return e.begin(t, id, w)
}

// clone is w with nothing shared: the SDK changes what it is given.
func clone(t *testing.T, w wish) wish {
	t.Helper()
	c := wish{connect: w.connect, started: w.started}
	for from, to := range map[any]any{&w.config: &c.config, &w.host: &c.host, &w.network: &c.network} {
		raw, err := json.Marshal(from)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, to))
	}
	return c
}

func (e *engine) begin(t *testing.T, id string, w wish) observed {
	t.Helper()
	if w.started {
		require.NoError(t, e.cli.ContainerStart(t.Context(), id, container.StartOptions{}))
	}
	c, raw, err := e.cli.ContainerInspectWithRaw(t.Context(), id, false)
	require.NoError(t, err)
	if w.started {
		require.NoError(t, e.cli.ContainerKill(t.Context(), id, "KILL"))
		ok, failed := e.cli.ContainerWait(t.Context(), id, container.WaitConditionNotRunning)
		select {
		case <-ok:
		case err := <-failed:
			require.NoError(t, err)
		}
	}
	return observed{c, raw}
}

func (e *engine) remove(t *testing.T, o observed) {
	t.Helper()
	require.NoError(t, e.cli.ContainerRemove(t.Context(), o.ID, container.RemoveOptions{Force: true}))
}

func (e *engine) image(t *testing.T, ref string) json.RawMessage {
	t.Helper()
	var raw bytes.Buffer
	opts := []client.ImageInspectOption{client.ImageInspectWithRawResponse(&raw)}
	if versions.GreaterThanOrEqualTo(e.cli.ClientVersion(), "1.48") {
		opts = append(opts, client.ImageInspectWithManifests(true))
	}
	_, err := e.cli.ImageInspect(t.Context(), ref, opts...)
	require.NoError(t, err)
	if isPodmanRun() {
		whole, err := withHealthcheck(t.Context(), e.cli, raw.Bytes())
		require.NoError(t, err)
		return whole
	}
	return raw.Bytes()
}

func (e *engine) snapshot(t *testing.T, o observed) snapshot {
	t.Helper()
	return snapshot{Container: o.raw, Image: e.image(t, o.Image), API: e.cli.ClientVersion(), Podman: isPodmanRun(), Daemon: e.daemon}
}

// recreate carries out what recreate says.
func (e *engine) recreate(t *testing.T, s snapshot, ref string, w wish) observed {
	t.Helper()
	c, err := recreate(s, e.image(t, ref), ref, nil)
	require.NoError(t, err)
	made, err := e.cli.ContainerCreate(t.Context(), c.Config, c.Host, c.Networking, c.Platform, "")
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = e.cli.ContainerRemove(context.Background(), made.ID, container.RemoveOptions{Force: true})
	})
	for _, n := range c.Connect {
		require.NoError(t, e.cli.NetworkConnect(t.Context(), n.Network, made.ID, n.Endpoint))
	}
	return e.begin(t, made.ID, w)
}

// anonymous are the volumes nobody named, by where they are mounted.
func (e *engine) anonymous(o observed) map[string]string {
	found := map[string]string{}
	for _, m := range o.Mounts {
		if m.Type == mount.TypeVolume && generated(volumeName(m)) && m.Destination != "/other" { // img:2 has one more
			found[m.Destination] = volumeName(m)
		}
	}
	return found
}

// shown is what inspect shows of a container, less what differs between any
// two of them and what naming an anonymous volume adds.
func (e *engine) shown(t *testing.T, o observed) string {
	t.Helper()
	config, host := *o.Config, *o.HostConfig
	config.Labels = maps.Clone(config.Labels)
	delete(config.Labels, labelAnonymous)
	// An image's Volumes are merged; which of the paths hold a volume is in mounts.
	host.Mounts = nil
	for _, m := range o.HostConfig.Mounts {
		if m.Type == mount.TypeVolume && (m.Source == "" || generated(m.Source)) {
			continue
		}
		host.Mounts = append(host.Mounts, m)
	}
	host.Binds = nil
	for _, b := range o.HostConfig.Binds {
		// Podman shows all volumes there.
		if source, target, ok := strings.Cut(b, ":"); ok && generated(source) {
			if strings.HasPrefix(target, "/data:") {
				continue
			}
			b = target
		}
		host.Binds = append(host.Binds, b)
	}
	if isPodmanRun() {
		slices.Sort(host.Binds) // it has its own order
		// It chooses a port once, and shows it as if it had been asked for.
		host.PortBindings = nat.PortMap{}
		for port, bindings := range o.HostConfig.PortBindings {
			for _, b := range bindings {
				host.PortBindings[port] = append(host.PortBindings[port], nat.PortBinding{HostIP: b.HostIP, HostPort: "chosen"})
			}
		}
	}
	mounts := map[string]string{}
	for _, m := range o.Mounts {
		// /data is carried over from img:1, and img:2 does not declare it.
		if m.Destination == "/data" {
			continue
		}
		name := volumeName(m)
		if generated(name) {
			name, m.Source = "anonymous", ""
			m.Mode = "" // "z" for an anonymous one, the mount's own for a named one
		}
		if m.Type == mount.TypeImage { // a view of it for this container alone
			m.Source = ""
		}
		mounts[m.Destination] = fmt.Sprint(m.Type, name, m.Source, m.Driver, m.Mode, m.RW, m.Propagation)
	}
	networks := map[string]*network.EndpointSettings{}
	for _, n := range o.NetworkSettings.Networks {
		if strings.HasPrefix(n.NetworkID, string(host.NetworkMode)) {
			host.NetworkMode = container.NetworkMode(n.NetworkID) // Docker 28 completes it at some start
		}
	}
	for name, n := range o.NetworkSettings.Networks {
		if strings.HasPrefix(n.NetworkID, name) && name != n.NetworkID {
			continue // the same network under its short id, on engines of version 20.10
		}
		networks[name] = &network.EndpointSettings{
			IPAMConfig: n.IPAMConfig, Links: n.Links, Aliases: named(n.Aliases, o.ID[:12]), DriverOpts: n.DriverOpts, GwPriority: n.GwPriority,
		}
	}
	slices.Sort(config.Env)
	all, err := json.MarshalIndent(map[string]any{"Config": config, "HostConfig": host, "Mounts": mounts, "Networks": networks, "Driver": o.Driver}, "", " ")
	require.NoError(t, err)
	return strings.NewReplacer(o.ID[:12], "OWN-ID").Replace(string(all))
}

// named are aliases in no order, which engines do not keep.
func named(aliases []string, own string) []string {
	aliases = slices.Clone(aliases)
	for i, a := range aliases {
		if a == own {
			aliases[i] = "OWN-ID"
		}
	}
	slices.Sort(aliases)
	return aliases
}

// TestFieldThatOnlyALaterAPIShows: an engine hides from its clients what came after
// the version that they speak, so such a field is looked for in its own.
func TestFieldThatOnlyALaterAPIShows(t *testing.T) {
	r := newRig(t)
	c := r.begin(t, "later", command("serve"), nil)
	for _, row := range []struct {
		name, umask, refused string
	}{
		{"a field that is not set", `0`, ""},
		{"a field that is set", `23`, "HostConfig.Umask"},
	} {
		t.Run(row.name, func(t *testing.T) {
			to := toEngine(t, r.host)
			to.ModifyResponse = func(resp *http.Response) error {
				if resp.Header.Get("Api-Version") != "" {
					resp.Header.Set("Api-Version", "1.99")
				}
				return nil
			}
			asked := false
			h, err := New(Options{Name: "local", Owner: "me", Endpoint: serve(t, func(w http.ResponseWriter, req *http.Request) {
				id, ok := strings.CutPrefix(req.URL.Path, "/v1.99/containers/")
				if !ok {
					_, path, _ := strings.Cut(req.URL.Path[1:], "/")
					if strings.HasPrefix(req.URL.Path, "/v1.") {
						req.URL.Path = "/v" + r.cli.ClientVersion() + "/" + path
					}
					to.ServeHTTP(w, req)
					return
				}
				asked = true
				_, raw, err := r.cli.ContainerInspectWithRaw(req.Context(), strings.TrimSuffix(id, "/json"), false)
				if err != nil {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
				fmt.Fprint(w, strings.Replace(string(raw), `"HostConfig":{`, `"HostConfig":{"Umask":`+row.umask+`,`, 1))
			})})
			require.NoError(t, err)
			defer h.Close()
			p := c
			p.Parts = slices.Clone(c.Parts)
			err = h.Plan(t.Context(), &p, nil)
			require.True(t, asked, err)
			if row.refused == "" {
				require.NoError(t, err)
				return
			}
			refused(t, err, updater.Unsupported, row.refused)
		})
	}
}

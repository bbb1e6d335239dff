package engine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/updaterd/updaterd/e2e/program"
)

// Podman has no directory for everything, nor a daemon that all depends on: each
// of its processes reads these files, and containers outlive the service.
const (
	podmanConf       = "containers.conf"
	podmanStorage    = "storage.conf"
	podmanRegistries = "registries.conf"
	// podmanPrograms holds what stands before programs of the system.
	podmanPrograms = "programs"
)

// preparePodman writes the files that keep a Podman in the engine's directory.
func (e *Engine) preparePodman() error {
	join := func(name string) string { return filepath.Join(e.Dir, name) }
	networks := join("networks")
	if err := os.Mkdir(networks, 0o755); err != nil {
		return err
	}
	pool := part(e.Subnet, 2, 23)
	files := map[string]string{
		// Ulimits are given because runc may not raise them where the machine lacks
		// CAP_SYS_RESOURCE; locks in a file because those in shared memory are one
		// set for all Podmans of the machine.
		podmanConf: fmt.Sprintf(`[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = %q
static_dir = %q
volume_path = %q
[network]
network_backend = "cni"
network_config_dir = %q
default_subnet_pools = [{base = %q, size = 27}]
`, join("tmp"), join("data/libpod"), join("data/volumes"), networks, pool),
		podmanStorage:    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", join("data"), join("run")),
		podmanRegistries: "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n",
		// The default network as Podman writes it, on a bridge and with addresses of
		// our own.
		"networks/87-podman.conflist": fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "podman",
  "plugins": [
    {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": %q, "gateway": %q}]]}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "firewall"},
    {"type": "tuning"}
  ]
}
`, bridgeName(e.slot), join("addresses"), part(e.Subnet, 0, 23), e.Subnet.Addr().Next()),
	}
	for name, text := range files {
		if err := os.WriteFile(join(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := os.Mkdir(join(podmanPrograms), 0o755); err != nil {
		return err
	}
	// Whoever asks Podman for its version has it ask for the packages of its
	// programs, which dpkg looks up in the lists of all files: half a second each.
	return os.WriteFile(join(podmanPrograms+"/dpkg-query"), []byte("#!/bin/sh\nexit 1\n"), 0o755)
}

// podman is a command of the Podman in dir.
func podman(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program.Path("podman"), args...)
	cmd.Dir = dir // conmon leaves a file called oom there
	cmd.Env = append(os.Environ(),
		"CONTAINERS_CONF="+filepath.Join(dir, podmanConf),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(dir, podmanStorage),
		"CONTAINERS_REGISTRIES_CONF="+filepath.Join(dir, podmanRegistries),
	)
	return cmd
}

// removePodman takes away what lies outside of the engine's directory: the
// firewall's rules for each container's ports and addresses. It does nothing
// where no Podman was.
func removePodman(dir string) {
	if _, err := os.Stat(filepath.Join(dir, podmanConf)); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	// What cannot be removed thus, its processes and mounts, goes with the rest.
	_ = podman(ctx, dir, "rm", "--all", "--force", "--time", "0").Run()
	_ = podman(ctx, dir, "network", "prune", "--force").Run()
}

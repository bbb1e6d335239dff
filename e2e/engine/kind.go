package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

// Kind is a sort of engine.
type Kind string

const (
	// AtHand is the dockerd on PATH, whatever its version.
	AtHand Kind = ""
	// Docker20 is Docker 20.10, from Debian 12: the oldest API that is spoken.
	Docker20 Kind = "20.10"
	// Docker29 is a current Docker with its images in containerd, built from source.
	Docker29 Kind = "29"
	// Podman is Podman's service that speaks Docker's API, from Debian.
	Podman Kind = "podman"
	// Proxied is the dockerd on PATH behind a proxy that lets through what
	// updaterd needs, and nothing else.
	Proxied Kind = "proxy"
)

// Kinds are those that can be asked for by name.
func Kinds() []Kind { return []Kind{Docker20, Docker29, Podman, Proxied} }

const (
	// KindEnv names the kind of the engines that Start starts where Options say
	// nothing.
	KindEnv = "UPDATERD_ENGINE"
	// FrontEnv is Engine.Front of the engine that DOCKER_HOST names.
	FrontEnv = "UPDATERD_ENGINE_FRONT"
	// AboutEnv is what About says of it.
	AboutEnv = "UPDATERD_ENGINE_ABOUT"
)

// About names the engine at host for people: "Docker 20.10.24, API 1.41,
// overlay2".
func About(ctx context.Context, host string) (string, error) {
	c, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return "", err
	}
	defer c.Close()
	v, err := c.ServerVersion(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the engine for its version: %w", err)
	}
	info, err := c.Info(ctx)
	if err != nil {
		return "", fmt.Errorf("ask the engine about itself: %w", err)
	}
	name, store := "Docker", info.Driver
	for _, part := range v.Components {
		if strings.Contains(part.Name, "Podman") {
			name = "Podman"
		}
	}
	for _, s := range info.DriverStatus {
		if s[0] == "driver-type" && strings.Contains(s[1], "containerd") {
			store = "containerd image store"
		}
	}
	return fmt.Sprintf("%s %s, API %s, %s", name, v.Version, v.APIVersion, store), nil
}

// Get makes the programs of a kind ready and returns the directory to put
// before PATH for them, which may be none. Packages are installed (that needs
// root), sources are built and kept for the next time: a cold build takes some
// minutes. Sources is the directory with the modules that pin them. It writes to
// out what it does. Only one Get builds at a time.
func Get(ctx context.Context, k Kind, sources string, out io.Writer) (bin string, err error) {
	switch k {
	case AtHand:
		return "", install(ctx, "dockerd", "docker.io", out)
	case Docker20:
		return "", want(ctx, "20.10.", out)
	case Proxied:
		if err := want(ctx, "20.10.", out); err != nil {
			return "", err
		}
		return "", install(ctx, "haproxy", "haproxy", out)
	case Podman:
		// catatonit is the init of its containers.
		return "", errors.Join(install(ctx, "podman", "podman", out), install(ctx, "catatonit", "catatonit", out))
	case Docker29:
		return built(ctx, sources, out)
	}
	return "", fmt.Errorf("no engine is called %q: choose one of %v", k, Kinds())
}

// want makes sure that the dockerd on PATH is of this version.
func want(ctx context.Context, version string, out io.Writer) error {
	if err := install(ctx, "dockerd", "docker.io", out); err != nil {
		return err
	}
	said, err := exec.CommandContext(ctx, dockerd(), "--version").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", dockerd(), err)
	}
	if !bytes.Contains(said, []byte(" "+version)) {
		return fmt.Errorf("%s is %s and not %sx: have Debian 12's package docker.io before it on PATH", dockerd(), bytes.TrimSpace(said), version)
	}
	return nil
}

// module is one of the nested modules that pin sources. Its tools are programs.
type module struct {
	name string
	// cgo: runc enters namespaces in C.
	cgo   bool
	tags  string
	flags string // of the linker
	// version is the variable for the version of the module with this path.
	path, version string
}

// built has a current Docker in the cache: its containers need a newer
// containerd and runc than most systems have.
func built(ctx context.Context, sources string, out io.Writer) (string, error) {
	modules := []module{
		{name: "runc", cgo: true, tags: "netgo osusergo", flags: "-s -w -extldflags -static"},
		{name: "containerd", tags: "netgo osusergo no_btrfs no_zfs no_devmapper no_cri", flags: "-s -w"},
		{name: "moby", tags: "netgo osusergo", flags: "-s -w", path: "github.com/moby/moby/v2", version: "github.com/moby/moby/v2/dockerversion.Version"},
	}
	cache, err := Cache("engines")
	if err != nil {
		return "", err
	}
	// What was built from the same sources in the same way is the same.
	key := sha256.New()
	fmt.Fprintln(key, runtime.Version(), runtime.GOARCH)
	for _, m := range modules {
		fmt.Fprintln(key, m)
		for _, file := range []string{"go.mod", "go.sum"} {
			b, err := os.ReadFile(filepath.Join(sources, m.name, file))
			if err != nil {
				return "", fmt.Errorf("find the sources of Docker: %w", err)
			}
			key.Write(b)
		}
	}
	bin := filepath.Join(cache, fmt.Sprintf("%s-%x", Docker29, key.Sum(nil)[:8]))

	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another build: %w", err)
	}
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	fmt.Fprintln(out, "engine: building Docker, containerd and runc, some minutes, kept in", bin)
	fresh, err := os.MkdirTemp(cache, "building-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	for _, m := range modules {
		if err := m.build(ctx, filepath.Join(sources, m.name), fresh); err != nil {
			return "", fmt.Errorf("build %s (it needs the Go module proxy; runc needs gcc and libc6-dev): %w", m.name, err)
		}
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	return bin, os.Rename(fresh, bin)
}

// build puts the module's tools into a directory.
func (m module) build(ctx context.Context, source, into string) error {
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", args...)
		cgo := "CGO_ENABLED=0"
		if m.cgo {
			cgo = "CGO_ENABLED=1"
		}
		var out, problems bytes.Buffer
		cmd.Dir, cmd.Stdout, cmd.Stderr = source, &out, &problems
		cmd.Env = append(os.Environ(), cgo, "GOFLAGS=-buildvcs=false -mod=readonly", "GOWORK=off")
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("go %s: %w\n%s", args[0], err, problems.Bytes())
		}
		return strings.TrimSpace(out.String()), nil
	}
	flags := m.flags
	if m.version != "" {
		v, err := run("list", "-m", "-f", "{{.Version}}", m.path)
		if err != nil {
			return err
		}
		flags += " -X " + m.version + "=" + strings.TrimPrefix(v, "v")
	}
	_, err := run("build", "-trimpath", "-tags", m.tags, "-ldflags", flags, "-o", into+"/", "tool")
	return err
}

// Cache makes the directory of this name for large programs that are built once
// on a machine: below updaterd in $UPDATERD_CACHE, or in the user's cache.
func Cache(name string) (string, error) {
	base := os.Getenv("UPDATERD_CACHE")
	if base == "" {
		var err error
		if base, err = os.UserCacheDir(); err != nil {
			return "", fmt.Errorf("find a place for what is built: set UPDATERD_CACHE: %w", err)
		}
	}
	dir := filepath.Join(base, "updaterd", name)
	return dir, os.MkdirAll(dir, 0o755)
}

// Program is where a program is, which is got from its Debian package if it is
// missing and that can be.
func Program(ctx context.Context, name, pkg string, out io.Writer) (string, error) {
	if err := install(ctx, name, pkg, out); err != nil {
		return "", err
	}
	return program(name), nil
}

// install gets a program from its Debian package if it is missing. What is
// installed does not start a service of its own.
func install(ctx context.Context, name, pkg string, out io.Writer) error {
	if program(name) != "" {
		return nil
	}
	_, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("%s is missing and cannot be installed (that needs root and apt-get): install it, or start Docker, or set DOCKER_HOST", name)
	}
	fmt.Fprintln(out, "engine: installing the package", pkg)
	// The documented way to keep a package's services from starting.
	const policy = "/usr/sbin/policy-rc.d"
	if _, err := os.Lstat(policy); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer os.Remove(policy)
	}
	var output bytes.Buffer
	apt := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = &output, &output
		return cmd.Run()
	}
	// An update that fails may still leave lists that know the package.
	updateErr := apt("-q", "update")
	if err := apt("-qy", "--no-install-recommends", "install", pkg); err != nil {
		return fmt.Errorf("install %s: %w\n%s", pkg, errors.Join(err, updateErr), output.Bytes())
	}
	return nil
}

// kindOf is the kind to start where the options say nothing.
func kindOf(k Kind) Kind {
	if k == AtHand {
		return Kind(strings.TrimSpace(os.Getenv(KindEnv)))
	}
	return k
}

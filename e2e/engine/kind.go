package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/docker/docker/client"
	"github.com/updaterd/updaterd/e2e/program"
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
		if _, err := program.Get(ctx, "dockerd", "docker.io", out); err != nil {
			return "", fmt.Errorf("%w; or start Docker, or set DOCKER_HOST", err)
		}
		return "", nil
	case Docker20:
		return "", want(ctx, "20.10.", out)
	case Proxied:
		if err := want(ctx, "20.10.", out); err != nil {
			return "", err
		}
		_, err := program.Get(ctx, "haproxy", "haproxy", out)
		return "", err
	case Podman:
		// catatonit is the init of its containers.
		_, err := program.Get(ctx, "podman", "podman", out)
		_, initErr := program.Get(ctx, "catatonit", "catatonit", out)
		return "", errors.Join(err, initErr)
	case Docker29:
		return built(ctx, sources, out)
	}
	return "", fmt.Errorf("no engine is called %q: choose one of %v", k, Kinds())
}

// want makes sure that the dockerd on PATH is of this version.
func want(ctx context.Context, version string, out io.Writer) error {
	if _, err := program.Get(ctx, "dockerd", "docker.io", out); err != nil {
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
	// cgo: runc enters namespaces in C, and needs gcc and libc6-dev.
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
	from := program.Sources{How: fmt.Sprint(modules)}
	for _, m := range modules {
		from.Files = append(from.Files, m.in(sources).Pins()...)
	}
	return program.Built(ctx, "engines", "docker-"+string(Docker29), from, out, func(ctx context.Context, into string) error {
		for _, m := range modules {
			if err := m.build(ctx, m.in(sources), into); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
		return nil
	})
}

// in is the module below the directory with all of them.
func (m module) in(sources string) program.Module {
	return program.Module{Dir: filepath.Join(sources, m.name), Cgo: m.cgo}
}

// build puts the module's tools into a directory.
func (m module) build(ctx context.Context, from program.Module, into string) error {
	flags := m.flags
	if m.version != "" {
		v, err := from.Go(ctx, "list", "-m", "-f", "{{.Version}}", m.path)
		if err != nil {
			return err
		}
		flags += " -X " + m.version + "=" + strings.TrimPrefix(v, "v")
	}
	_, err := from.Go(ctx, "build", "-trimpath", "-tags", m.tags, "-ldflags", flags, "-o", into+"/", "tool")
	return err
}

// kindOf is the kind to start where the options say nothing.
func kindOf(k Kind) Kind {
	if k == AtHand {
		return Kind(strings.TrimSpace(os.Getenv(KindEnv)))
	}
	return k
}

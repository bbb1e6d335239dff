package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/updaterd/updaterd/e2e/program"
)

// Programs are the directory with the programs of Kubernetes.
type Programs string

// Kubernetes is the control plane; see e2e/cluster/kubernetes.
func (p Programs) Kubernetes() string { return filepath.Join(string(p), "kubernetes") }

// Kubectl is the same program under the name that makes it kubectl.
func (p Programs) Kubectl() string { return filepath.Join(string(p), "kubectl") }

// Get makes the control plane ready: it is built from source, the directory of
// the module e2e/cluster/kubernetes, which takes some 6 minutes on two cores, and
// kept for the next time below cluster in $UPDATERD_CACHE or the user's cache. It
// writes to out what it does. Only one Get builds at a time.
func Get(ctx context.Context, source string, out io.Writer) (Programs, error) {
	bin, err := get(ctx, source, "kubernetes", ".", out)
	return Programs(bin), err
}

// GetKubelet makes the kubelet of the same module ready in the same way, and returns
// where it is.
func GetKubelet(ctx context.Context, source string, out io.Writer) (string, error) {
	bin, err := get(ctx, source, "kubelet", "./kubelet", out)
	return filepath.Join(bin, "kubelet"), err
}

func get(ctx context.Context, source, name, pkg string, out io.Writer) (string, error) {
	from := program.Module{Dir: source}
	version, err := from.Go(ctx, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	pinned := program.Sources{
		Files: append(from.Pins(), filepath.Join(source, pkg, "main.go")),
		How:   fmt.Sprint(flags(version, "", pkg)),
	}
	return program.Built(ctx, "cluster", name+"-"+version, pinned, out, func(ctx context.Context, into string) error {
		if _, err := from.Go(ctx, flags(version, into, pkg)...); err != nil || name != "kubernetes" {
			return err
		}
		return os.Symlink(name, filepath.Join(into, "kubectl"))
	})
}

// Sources is the directory of the module that pins Kubernetes, as the module in
// the working directory knows it.
func Sources(ctx context.Context) (string, error) {
	dir, err := program.Module{}.Go(ctx, "list", "-m", "-f", "{{.Dir}}", "github.com/updaterd/updaterd/e2e/cluster")
	if err == nil && dir == "" {
		err = errors.New("run this in the module e2e/cluster")
	}
	return filepath.Join(dir, "kubernetes"), err
}

func flags(version, into, pkg string) []string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	const of = " -X k8s.io/component-base/version."
	return []string{"build", "-trimpath", "-tags", "grpcnotrace",
		"-ldflags", "-s -w" + of + "gitVersion=" + version + of + "gitMajor=" + major + of + "gitMinor=" + minor,
		"-o", into + "/", pkg}
}

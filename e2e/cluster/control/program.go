package control

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

	"github.com/updaterd/updaterd/e2e/engine"
	"golang.org/x/sys/unix"
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
	cache, err := engine.Cache("cluster")
	if err != nil {
		return "", err
	}
	version, key, err := fingerprint(ctx, source)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, version+"-"+key)
	if _, err := os.Stat(bin); err == nil {
		return Programs(bin), nil
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another build: %w", err)
	}
	if _, err := os.Stat(bin); err == nil {
		return Programs(bin), nil
	}
	fmt.Fprintf(out, "cluster: building Kubernetes %s, some minutes, kept in %s\n", version, bin)
	fresh, err := os.MkdirTemp(cache, "building-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := build(ctx, source, version, fresh); err != nil {
		return "", fmt.Errorf("build Kubernetes (it needs the Go module proxy): %w", err)
	}
	if err := os.Symlink("kubernetes", filepath.Join(fresh, "kubectl")); err != nil {
		return "", err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	return Programs(bin), os.Rename(fresh, bin)
}

// Sources is the directory of the module that pins Kubernetes, as the module in
// the working directory knows it.
func Sources(ctx context.Context) (string, error) {
	dir, err := run(ctx, "", "list", "-m", "-f", "{{.Dir}}", "github.com/updaterd/updaterd/e2e/cluster")
	if err == nil && dir == "" {
		err = errors.New("run this in the module e2e/cluster")
	}
	return filepath.Join(dir, "kubernetes"), err
}

// fingerprint is the version, and what was built from the same sources in the
// same way has in common.
func fingerprint(ctx context.Context, source string) (version, key string, err error) {
	version, err = run(ctx, source, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return "", "", err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH, flags(version, ""))
	for _, file := range []string{"go.mod", "go.sum", "main.go"} {
		b, err := os.ReadFile(filepath.Join(source, file))
		if err != nil {
			return "", "", err
		}
		sum.Write(b)
	}
	return version, fmt.Sprintf("%x", sum.Sum(nil)[:8]), nil
}

func flags(version, into string) []string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	const of = " -X k8s.io/component-base/version."
	return []string{"build", "-trimpath", "-tags", "grpcnotrace",
		"-ldflags", "-s -w" + of + "gitVersion=" + version + of + "gitMajor=" + major + of + "gitMinor=" + minor,
		"-o", into + "/", "."}
}

func build(ctx context.Context, source, version, into string) error {
	_, err := run(ctx, source, flags(version, into)...)
	return err
}

func run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	var out, problems bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &problems
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -mod=readonly", "GOWORK=off")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, problems.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

// Package program has the programs that tests need: found or installed, built once
// on a machine, and run so that they end with the tests.
package program

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

	"golang.org/x/sys/unix"
)

// Sbin is where dockerd and iptables are, which the PATH of a root shell that is
// no login shell may leave out.
const Sbin = "/usr/local/sbin:/usr/sbin:/sbin"

// Path is where a program is, or empty.
func Path(name string) string {
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + ":" + Sbin) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// Get is where a program is, which is installed from its Debian package if it is
// missing and that can be. What is installed does not start a service of its own.
// It writes to out what it does.
func Get(ctx context.Context, name, pkg string, out io.Writer) (string, error) {
	if path := Path(name); path != "" {
		return path, nil
	}
	_, err := exec.LookPath("apt-get")
	if err != nil || os.Geteuid() != 0 {
		return "", fmt.Errorf("%s is missing and cannot be installed (that needs root and apt-get): install it; Debian's package is %s", name, pkg)
	}
	fmt.Fprintln(out, "installing the package", pkg)
	// The documented way to keep a package's services from starting.
	const policy = "/usr/sbin/policy-rc.d"
	if _, err := os.Lstat(policy); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return "", err
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
		return "", fmt.Errorf("install %s: %w\n%s", pkg, errors.Join(err, updateErr), output.Bytes())
	}
	return Path(name), nil
}

// Cache makes the directory of this name for large things that are made once on a
// machine: below updaterd in $UPDATERD_CACHE, or in the user's cache.
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

// Built is a directory of the cache with programs that build puts into it, unless an
// earlier call has: what was built in the same way from the same files is the same.
// Only one call builds at a time, and what has its name is whole. It writes to out
// what it does.
func Built(ctx context.Context, cache, name string, from Sources, out io.Writer, build func(ctx context.Context, into string) error) (string, error) {
	cache, err := Cache(cache)
	if err != nil {
		return "", err
	}
	key, err := from.key()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(cache, name+"-"+key)
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
	fmt.Fprintf(out, "building %s, some minutes, kept in %s\n", name, bin)
	fresh, err := os.MkdirTemp(cache, "building-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	if err := build(ctx, fresh); err != nil {
		return "", fmt.Errorf("build %s (it needs the Go module proxy): %w", name, err)
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	return bin, os.Rename(fresh, bin)
}

// Sources are what is built, and how.
type Sources struct {
	Files []string
	How   string // flags, for one
}

func (s Sources) key() (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH, s.How)
	for _, file := range s.Files {
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("find what is to be built: %w", err)
		}
		sum.Write(b)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8]), nil
}

// Module is a module with sources, and Go how it is built.
type Module struct {
	Dir string
	Cgo bool
}

// Go runs the go command in the module, as its go.mod says, and returns what it
// wrote.
func (m Module) Go(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cgo := "CGO_ENABLED=0"
	if m.Cgo {
		cgo = "CGO_ENABLED=1"
	}
	var out, problems bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.Dir, &out, &problems
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS=-buildvcs=false -mod=readonly", "GOWORK=off")
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, problems.Bytes())
	}
	return strings.TrimSpace(out.String()), nil
}

// Pins are the files that pin what a module is built from.
func (m Module) Pins() []string {
	return []string{filepath.Join(m.Dir, "go.mod"), filepath.Join(m.Dir, "go.sum")}
}

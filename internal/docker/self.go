package docker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/updaterd/updaterd/internal/updater"
)

// itself refuses the container that updaterd runs in, and the one through
// which it reaches the engine: neither can be stopped by who depends on it.
func (h *Host) itself(ctx context.Context, b *box) error {
	if slices.ContainsFunc(h.self(), func(id string) bool { return strings.HasPrefix(b.ID, id) }) {
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: "updaterd runs in this container and cannot replace itself yet: update it by hand",
		}
	}
	if h.reachedThrough(ctx, b) {
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("updaterd reaches the engine through this container (%s), which it therefore cannot stop: update it by hand", h.client().DaemonHost()),
		}
	}
	return nil
}

// ownContainers are the ids, whole or short, of the container this process
// runs in; none outside of one.
func ownContainers() []string {
	var ids []string
	for path, find := range map[string]func(io.Reader) []string{
		"/proc/self/mountinfo": mountedIDs,
		"/proc/self/cgroup":    cgroupIDs,
	} {
		if f, err := os.Open(path); err == nil {
			ids = append(ids, find(f)...)
			f.Close()
		}
	}
	// A container's host name is its short id unless a person chose another.
	if name, err := os.Hostname(); err == nil && regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(name) {
		ids = append(ids, name)
	}
	return ids
}

// mountedIDs finds the container whose host name file is mounted here. On a
// host the file system of every container is in the list too, so only the
// files that an engine mounts over /etc count.
func mountedIDs(r io.Reader) []string {
	var ids []string
	in := regexp.MustCompile(`/([0-9a-f]{64})/`)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 5 || !slices.Contains([]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}, f[4]) {
			continue
		}
		for _, m := range in.FindAllStringSubmatch(f[3], -1) {
			ids = append(ids, m[1])
		}
	}
	return ids
}

// cgroupIDs finds the container whose cgroup this process is in.
func cgroupIDs(r io.Reader) []string {
	var ids []string
	in := regexp.MustCompile(`[/-]([0-9a-f]{64})(?:\.scope)?(?:/|$)`)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		for _, m := range in.FindAllStringSubmatch(lines.Text(), -1) {
			ids = append(ids, m[1])
		}
	}
	return ids
}

// reachedThrough reports whether a tcp endpoint is this container's, by its
// address, one of its names or a port that it publishes. A socket that some
// other container serves in a directory they share cannot be told.
func (h *Host) reachedThrough(ctx context.Context, b *box) bool {
	u, err := url.Parse(h.client().DaemonHost())
	if err != nil || u.Scheme != "tcp" || b.NetworkSettings == nil {
		return false
	}
	host := u.Hostname()
	addresses := []string{host}
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	if found, err := net.DefaultResolver.LookupHost(ctx, host); err == nil {
		addresses = append(addresses, found...)
	}
	for _, e := range b.NetworkSettings.Networks {
		if e == nil {
			continue
		}
		if slices.Contains(addresses, e.IPAddress) || slices.Contains(addresses, e.GlobalIPv6Address) {
			return true
		}
	}
	local := slices.ContainsFunc(addresses, func(a string) bool {
		ip := net.ParseIP(a)
		return ip != nil && ip.IsLoopback()
	})
	for _, bindings := range b.NetworkSettings.Ports {
		for _, p := range bindings {
			if p.HostPort == u.Port() && (local || slices.Contains(addresses, p.HostIP)) {
				return true
			}
		}
	}
	return false
}

package docker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/updaterd/updaterd/internal/updater"
)

// blame says whom an engine's error at a create or a start speaks against: the image
// only if its program cannot be run at all, since that is the same everywhere.
// Ports, addresses, mounts, networks, devices, drivers and cgroups are not its
// doing. runc words these errors; a mount that fails also says "no such file".
func blame(text string) updater.Verdict {
	text = strings.ToLower(text)
	if strings.Contains(text, "hook") {
		return updater.Unclear // a driver's program, run by the engine
	}
	ran := strings.Contains(text, "container process") || strings.Contains(text, "container init") ||
		strings.Contains(text, "oci runtime")
	switch {
	case strings.Contains(text, "exec format error"):
		return updater.Bad
	case ran && strings.Contains(text, `exec: "`) && (strings.Contains(text, "executable file not found") ||
		strings.Contains(text, "no such file or directory") ||
		strings.Contains(text, "permission denied") ||
		strings.Contains(text, "is a directory")):
		return updater.Bad
	case strings.Contains(text, "unable to find user"), strings.Contains(text, "unable to find group"),
		strings.Contains(text, "no matching entries in passwd file"), strings.Contains(text, "no matching entries in group file"),
		strings.Contains(text, "no command specified"),
		strings.Contains(text, "no command or entrypoint provided"): // Podman
		return updater.Bad
	}
	return updater.Unclear
}

// blameThief adds to the error of a start who holds what the container needs:
// a stopped container keeps neither its ports nor its address.
func (h *Host) blameThief(ctx context.Context, b *box, err error) error {
	thief := h.portThief(ctx, b, err.Error())
	if thief == "" && strings.Contains(strings.ToLower(err.Error()), "address already in use") {
		thief = h.addressThief(ctx, b)
	}
	if thief == "" {
		return err
	}
	return errors.Join(err, fmt.Errorf("container %s holds it: stop it, and the original comes back", thief))
}

// portThief is the container that publishes the port which the error names.
func (h *Host) portThief(ctx context.Context, b *box, text string) string {
	m := regexp.MustCompile(`:(\d+)(?:/\w+)?(?: |:|$)`).FindAllStringSubmatch(text, -1)
	if m == nil {
		return ""
	}
	all, err := h.list(ctx)
	if err != nil {
		return ""
	}
	for _, c := range all {
		if c.State != container.StateRunning && c.State != container.StatePaused {
			continue // Podman lists the ports that it would have
		}
		for _, p := range c.Ports {
			for _, named := range m {
				if c.ID != b.ID && p.PublicPort != 0 && fmt.Sprint(p.PublicPort) == named[1] {
					return nameOf(c)
				}
			}
		}
	}
	return ""
}

// addressThief is the container that has an address chosen for this one.
func (h *Host) addressThief(ctx context.Context, b *box) string {
	if b.NetworkSettings == nil {
		return ""
	}
	for name, e := range b.NetworkSettings.Networks {
		if e == nil || e.IPAMConfig == nil {
			continue
		}
		n, err := h.client().NetworkInspect(ctx, name, network.InspectOptions{})
		if err != nil {
			continue
		}
		for id, c := range n.Containers {
			v4, _, _ := strings.Cut(c.IPv4Address, "/")
			v6, _, _ := strings.Cut(c.IPv6Address, "/")
			if id != b.ID && (v4 != "" && v4 == e.IPAMConfig.IPv4Address || v6 != "" && v6 == e.IPAMConfig.IPv6Address) {
				return c.Name
			}
		}
	}
	return ""
}

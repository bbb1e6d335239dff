package docker

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/network"
)

// endpoint is a container's place in one network.
type endpoint struct {
	name     string // of the network, or its id where the engine knows no better
	id       string // of the network; "" for a container that was never started
	settings *network.EndpointSettings
}

// attach says which networks to create the container in, and which to connect
// it to afterwards.
func (r *recreation) attach() error {
	c, h := r.out.Config, r.out.Host
	r.out.Networking = &network.NetworkingConfig{}
	if h.NetworkMode.IsContainer() { // the other container's networks are its own
		return nil
	}
	endpoints := r.endpoints()
	main := r.main(endpoints)

	sent := make([]*network.EndpointSettings, len(endpoints))
	for i, e := range endpoints {
		sent[i] = r.settings(e)
		switch {
		case i == main && r.since("1.44"):
			// Up to API 1.51 a person's address shows here, a generated one does not.
			//lint:ignore SA1019 engines before API 1.44 know no other place for it
			sent[i].MacAddress = c.MacAddress
		case i != main && r.since("1.44") && universal(e.settings.MacAddress):
			sent[i].MacAddress = e.settings.MacAddress
		case i != main && e.settings.MacAddress != "" && !derived(e.settings):
			r.note("network %s: MAC address %s is not kept: the engine does not tell a chosen one from a generated one here",
				e.name, e.settings.MacAddress)
		}
	}
	if r.since("1.44") {
		//lint:ignore SA1019 engines before API 1.44 know no other place for it
		c.MacAddress = ""
	}
	if err := r.interfaceSysctls(main, sent); err != nil {
		return err
	}

	// Before API 1.44 create takes one network and attaches only that, even if it
	// is not the one of NetworkMode, which decides on eth0 and the gateway.
	all := r.since("1.44")
	first := max(main, 0)
	for i, e := range endpoints {
		if all || i == first {
			if r.out.Networking.EndpointsConfig == nil {
				r.out.Networking.EndpointsConfig = map[string]*network.EndpointSettings{}
			}
			r.out.Networking.EndpointsConfig[e.name] = sent[i]
			continue
		}
		r.out.Connect = append(r.out.Connect, connection{Network: e.name, Endpoint: sent[i]})
	}
	return nil
}

// endpoints are the container's networks by name. An engine of version 20.10
// shows a network that was given by its short id under both keys.
func (r *recreation) endpoints() []endpoint {
	var found []endpoint
	for _, key := range slices.Sorted(maps.Keys(r.was.NetworkSettings.Networks)) {
		s := r.was.NetworkSettings.Networks[key]
		if s == nil {
			s = &network.EndpointSettings{}
		}
		e := endpoint{name: key, id: s.NetworkID, settings: s}
		if name := r.networks[e.id]; e.id != "" && name != "" {
			e.name = name
		}
		i := slices.IndexFunc(found, func(f endpoint) bool {
			return f.name == e.name || f.id != "" && f.id == e.id
		})
		if i < 0 {
			found = append(found, e)
			continue
		}
		if e.id != "" && strings.HasPrefix(e.id, found[i].name) {
			found[i].name = e.name
		}
		found[i].settings = union(found[i].settings, e.settings)
	}
	slices.SortFunc(found, func(a, b endpoint) int { return cmp.Compare(a.name, b.name) })
	return found
}

// union is what two entries about one network say together.
func union(a, b *network.EndpointSettings) *network.EndpointSettings {
	u := *a
	if c := b.IPAMConfig; c != nil && (c.IPv4Address != "" || c.IPv6Address != "" || len(c.LinkLocalIPs) > 0 || u.IPAMConfig == nil) {
		u.IPAMConfig = c
	}
	u.Links = append(slices.Clone(a.Links), b.Links...)
	u.Aliases = append(slices.Clone(a.Aliases), b.Aliases...)
	if len(b.DriverOpts) > 0 {
		u.DriverOpts = maps.Clone(b.DriverOpts)
		maps.Copy(u.DriverOpts, a.DriverOpts)
	}
	u.GwPriority = cmp.Or(a.GwPriority, b.GwPriority)
	u.MacAddress = cmp.Or(a.MacAddress, b.MacAddress)
	u.IPAddress = cmp.Or(a.IPAddress, b.IPAddress)
	return &u
}

// main is the index of the network that NetworkMode names, -1 when the
// container is not (or no longer) in it.
func (r *recreation) main(endpoints []endpoint) int {
	mode := string(r.was.HostConfig.NetworkMode)
	if mode == "" || r.was.HostConfig.NetworkMode.IsDefault() {
		mode = network.NetworkBridge
	}
	if i := slices.IndexFunc(endpoints, func(e endpoint) bool { return e.name == mode }); i >= 0 {
		return i
	}
	return slices.IndexFunc(endpoints, func(e endpoint) bool { return strings.HasPrefix(e.id, mode) })
}

// settings are what a person said about an endpoint. What the engine filled in
// must not be sent back: with a foreign NetworkID the container does not start.
func (r *recreation) settings(e endpoint) *network.EndpointSettings {
	s := &network.EndpointSettings{
		IPAMConfig: e.settings.IPAMConfig,
		Links:      slices.Compact(slices.Clone(e.settings.Links)),
		DriverOpts: e.settings.DriverOpts,
		GwPriority: e.settings.GwPriority,
	}
	switch e.name {
	case network.NetworkBridge, network.NetworkHost, network.NetworkNone, network.NetworkDefault:
		return s // create refuses aliases here since Docker 25
	}
	for _, a := range e.settings.Aliases {
		// Up to API 1.44 the engine adds these two of its own (Podman but the first);
		// kept, the new container would answer to the old one's id.
		own := a == r.was.shortID() || a == r.was.Config.Hostname && !r.since("1.45") && !r.podman
		if !own && !slices.Contains(s.Aliases, a) {
			s.Aliases = append(s.Aliases, a)
		}
	}
	return s
}

// interfaceSysctls moves sysctls of eth0 to where API 1.48 and later want them.
func (r *recreation) interfaceSysctls(main int, sent []*network.EndpointSettings) error {
	h := r.out.Host
	if !r.since("1.48") || !h.NetworkMode.IsPrivate() {
		return nil
	}
	var moved []string
	for _, key := range slices.Sorted(maps.Keys(h.Sysctls)) {
		parts := strings.SplitN(key, ".", 5)
		if len(parts) != 5 || parts[0] != "net" || !strings.HasPrefix(parts[3], "eth") {
			continue
		}
		if parts[3] != "eth0" || main < 0 {
			return unsupported(fmt.Sprintf("HostConfig.Sysctls %s: engines with API 1.48 and later do not say which network %s is; "+
				"recreate the container with the driver option %s on its network", key, parts[3], optEndpointSysctls), nil)
		}
		moved = append(moved, fmt.Sprintf("net.%s.%s.IFNAME.%s=%s", parts[1], parts[2], parts[4], h.Sysctls[key]))
		delete(h.Sysctls, key)
	}
	if len(moved) == 0 {
		return nil
	}
	opts := maps.Clone(sent[main].DriverOpts)
	if opts == nil {
		opts = map[string]string{}
	}
	if own := opts[optEndpointSysctls]; own != "" {
		moved = append(moved, own) // the last one counts, as when the engine moves them itself
	}
	opts[optEndpointSysctls] = strings.Join(moved, ",")
	sent[main].DriverOpts = opts
	return nil
}

// universal reports whether a MAC address was given by a manufacturer's scheme:
// engines generate only locally administered ones.
func universal(mac string) bool {
	hw, err := net.ParseMAC(mac)
	return err == nil && hw[0]&0x02 == 0
}

// derived reports whether the engine made the MAC address from the IPv4
// address, as engines before version 28 do.
func derived(s *network.EndpointSettings) bool {
	hw, err := net.ParseMAC(s.MacAddress)
	ip := net.ParseIP(s.IPAddress).To4()
	return err == nil && ip != nil && len(hw) == 6 && hw[0] == 0x02 && hw[1] == 0x42 && slices.Equal(hw[2:], net.HardwareAddr(ip))
}

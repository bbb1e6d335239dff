package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/network"
)

// reattach connects a stopped original to its networks if it is in none. Dockers
// from 29.1 on take a container out of all its networks when a start fails for a
// port that is taken, and start it without any the next time, with success
// (moby/moby#51758): it would run, and nobody could reach it.
func (h *Host) reattach(ctx context.Context, p piece, b *box) error {
	mode := b.HostConfig.NetworkMode
	if p.Snapshot == nil || b.running() || b.NetworkSettings == nil || len(b.NetworkSettings.Networks) > 0 ||
		mode.IsNone() || mode.IsHost() || mode.IsContainer() {
		return nil
	}
	var was inspected
	if err := json.Unmarshal(p.Snapshot.Container, &was); err != nil {
		return fmt.Errorf("reading the record of container %s: %w", p.Name, err)
	}
	spec, err := recreate(*p.Snapshot, p.Snapshot.Image, was.Config.Image, nil)
	if err != nil {
		return err
	}
	all := map[string]*network.EndpointSettings{}
	maps.Copy(all, spec.Networking.EndpointsConfig)
	for _, c := range spec.Connect {
		all[c.Network] = c.Endpoint
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if err := h.client().NetworkConnect(ctx, name, b.ID, all[name]); err != nil {
			return fmt.Errorf("connecting container %s to network %s again: %w", b.name(), name, err)
		}
	}
	return nil
}

// linkedAnew is the error for an original that an engine would start with links to
// new containers. It finds by their names what a container is linked to, and only
// when the engine itself starts: one that was restarted while the new ones had the
// names leads there until it starts once more.
func linkedAnew(b *box) error {
	for _, l := range b.HostConfig.Links {
		target, _, _ := strings.Cut(l, ":")
		if strings.HasSuffix(target, suffixNew) {
			return fmt.Errorf("container %s: the engine was restarted while %s had the name of what it is linked to, and would lead it there: restart the engine once more, then it is put back",
				strings.TrimSuffix(b.name(), suffixOld), strings.TrimPrefix(target, "/"))
		}
	}
	return nil
}

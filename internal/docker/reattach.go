package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

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

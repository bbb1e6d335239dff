package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/stage"
)

const benchSwaps = 10

// swapped is a container whose updates are measured: how it runs, and where its
// clients find it.
type swapped struct {
	name     string
	settings string // further defaults
	spec     stage.Spec
	// url is where it answers. It may change with the container, but not with
	// an update.
	url func() string
}

// BenchmarkSwap measures the gap in service of an update, by updaterd's own
// clock and by a client's. The floor is a stop and a start of the container
// that is about to be replaced.
func BenchmarkSwap(b *testing.B) {
	tables := newTables(b)
	d := stage.OpenDocker(b)
	reg := stage.NewRegistry(b, stage.RegistryOptions{})
	// Both go the same way to the engine.
	host := d.Scoped()
	api := d.At(host)
	swap := func(name string, make func(b *testing.B, name string) swapped) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				s := make(b, d.Name("swap"))
				benchSwap(b, tables, d, api, host, reg, s, name)
			}
		})
	}
	swap("published port", func(b *testing.B, name string) swapped {
		port := stage.FreePort(b)
		s := swapped{name: name, url: func() string { return fmt.Sprintf("http://127.0.0.1:%d/", port) }}
		s.spec.Host.PortBindings = stage.Publish(port)
		return s
	})
	swap("container address", func(b *testing.B, name string) swapped {
		return swapped{name: name, url: func() string {
			for _, n := range d.Inspect(name).NetworkSettings.Networks {
				return "http://" + n.IPAddress + ":8080/"
			}
			return ""
		}}
	})
	for _, first := range []string{"stop", "start"} {
		for _, by := range []string{"alias", "container name"} {
			swap(fmt.Sprintf("%s, %s-first", by, first), func(b *testing.B, name string) swapped {
				net := d.Name("net")
				d.MakeNetwork(net, network.CreateOptions{})
				s := swapped{name: name}
				s.spec.Host.NetworkMode = container.NetworkMode(net)
				known := name
				if by == "alias" {
					known = "shop"
					s.spec.Network.EndpointsConfig = map[string]*network.EndpointSettings{net: {Aliases: []string{known}}}
				}
				if first == "start" {
					s.settings = "  start-first: true\n"
				}
				url := customers(b, d, reg, net, known)
				s.url = func() string { return url }
				return s
			})
		}
	}
}

func benchSwap(b *testing.B, tables *tables, d *stage.Docker, api *client.Client, host string, reg *stage.Registry, s swapped, through string) {
	u := stage.NewUpdaterd(quiet{b}, host, "watch: all\ndefaults:\n  health: {timeout: 30s, stable: 500ms}\n"+s.settings)
	ref := "acme/" + s.name + ":stable"
	version := func(i int) string { return fmt.Sprintf("v%d", i) }
	reg.Push(ref, stage.Image{Version: version(0)})
	s.spec.Name, s.spec.Config.Image = s.name, reg.Ref(ref)
	s.spec.Host.RestartPolicy.Name = container.RestartPolicyUnlessStopped
	d.Run(s.spec)
	defer d.Remove(s.name)
	answers := func(i int) {
		b.Helper()
		// The address may be another one: asked each time.
		stage.Eventually(b, 20*time.Second, version(i)+" to answer", func() bool {
			body, err := stage.Get(b.Context(), s.url())
			return err == nil && body == version(i)
		})
	}

	var ours, floor, beyond, seen, floorSeen millis
	var failed, floorFailed []int
	for i := range benchSwaps {
		answers(i)
		at := s.url()
		gap := stage.MeasureGap(quiet{b}, at)
		began := time.Now()
		require.NoError(b, api.ContainerStop(b.Context(), s.name, container.StopOptions{}))
		require.NoError(b, api.ContainerStart(b.Context(), s.name, container.StartOptions{}))
		floor = append(floor, time.Since(began))
		answers(i)
		gap.Again(b)
		time.Sleep(200 * time.Millisecond) // for requests that were under way
		require.Equal(b, at, s.url(), "a client cannot follow to another address")
		r := gap.Stop()
		floorSeen, floorFailed = append(floorSeen, r.Longest), append(floorFailed, r.Failed)

		reg.Push(ref, stage.Image{Version: version(i + 1)})
		gap = stage.MeasureGap(quiet{b}, at)
		res := u.Run("run", "--once", "-o", "json")
		require.Zero(b, res.Code, res.Stdout+res.Stderr)
		answers(i + 1)
		gap.Again(b)
		time.Sleep(200 * time.Millisecond)
		require.Equal(b, at, s.url(), "a client cannot follow to another address")
		r = gap.Stop()
		seen, failed = append(seen, r.Longest), append(failed, r.Failed)

		res = u.Run("history", "-n", "1", "-o", "json")
		var entries []struct {
			Event string  `json:"event"`
			Gap   float64 `json:"gap_seconds"`
		}
		require.NoError(b, json.Unmarshal([]byte(res.Stdout), &entries))
		require.Len(b, entries, 1)
		require.Equal(b, "updated", entries[0].Event)
		ours = append(ours, time.Duration(entries[0].Gap*float64(time.Second)))
		beyond = append(beyond, ours[i]-floor[i])
	}

	t := tables.add(fmt.Sprintf("The gap in service of a swap, client by the %s; median of %d (least to most).\n"+
		"Floor: stop and start of the container that is then replaced.", through, benchSwaps),
		"", "ours", "floor", "ours beyond the floor, pair by pair", "aim")
	if s.settings == "" {
		for _, gap := range ours {
			require.Positive(b, gap)
		}
		t.row("stop request to start response", ours.String(), floor.String(), beyond.String(), "50 ms")
	}
	var seenBeyond millis
	for i := range seen {
		seenBeyond = append(seenBeyond, seen[i]-floorSeen[i])
	}
	t.row("longest time without an answer, as a client saw it", seen.String(), floorSeen.String(), seenBeyond.String())
	t.row("requests that failed, one every 2 ms", counts(failed), counts(floorFailed))
	b.ReportMetric(0, "ns/op")
	ours.report(b, "gap-ms")
	floor.report(b, "floor-ms")
	beyond.report(b, "beyond-ms")
	seen.report(b, "client-gap-ms")
	floorSeen.report(b, "client-floor-ms")
}

package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/stage"
)

const benchSwaps = 10

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
	b.Run("published-port", func(b *testing.B) {
		for b.Loop() {
			port := stage.FreePort(b)
			benchSwap(b, tables, d, api, host, reg, container.HostConfig{PortBindings: stage.Publish(port)}, "published port",
				func(string) string { return fmt.Sprintf("http://127.0.0.1:%d/", port) })
		}
	})
	b.Run("container-address", func(b *testing.B) {
		for b.Loop() {
			benchSwap(b, tables, d, api, host, reg, container.HostConfig{}, "container address", func(name string) string {
				for _, n := range d.Inspect(name).NetworkSettings.Networks {
					return "http://" + n.IPAddress + ":8080/"
				}
				return ""
			})
		}
	})
}

func benchSwap(b *testing.B, tables *tables, d *stage.Docker, api *client.Client, host string, reg *stage.Registry, how container.HostConfig, through string, url func(string) string) {
	u := stage.NewUpdaterd(quiet{b}, host, "watch: all\ndefaults:\n  health: {timeout: 30s, stable: 500ms}\n")
	name := d.Name("swap")
	ref := "acme/" + name + ":stable"
	version := func(i int) string { return fmt.Sprintf("v%d", i) }
	reg.Push(ref, stage.Image{Version: version(0)})
	how.RestartPolicy.Name = container.RestartPolicyUnlessStopped
	d.Run(stage.Spec{Name: name, Config: container.Config{Image: reg.Ref(ref)}, Host: how})
	defer d.Remove(name)
	answers := func(i int) {
		b.Helper()
		// The address may be another one: asked each time.
		stage.Eventually(b, 20*time.Second, version(i)+" to answer", func() bool {
			body, err := stage.Get(b.Context(), url(name))
			return err == nil && body == version(i)
		})
	}

	var ours, floor, beyond, seen, floorSeen millis
	for i := range benchSwaps {
		answers(i)
		at := url(name)
		gap := stage.MeasureGap(quiet{b}, at)
		began := time.Now()
		require.NoError(b, api.ContainerStop(b.Context(), name, container.StopOptions{}))
		require.NoError(b, api.ContainerStart(b.Context(), name, container.StartOptions{}))
		floor = append(floor, time.Since(began))
		answers(i)
		time.Sleep(200 * time.Millisecond) // for requests that were under way
		require.Equal(b, at, url(name), "a client cannot follow to another address")
		floorSeen = append(floorSeen, gap.Stop().Longest)

		reg.Push(ref, stage.Image{Version: version(i + 1)})
		gap = stage.MeasureGap(quiet{b}, at)
		r := u.Run("run", "--once", "-o", "json")
		require.Zero(b, r.Code, r.Stdout+r.Stderr)
		answers(i + 1)
		require.Equal(b, at, url(name), "a client cannot follow to another address")
		seen = append(seen, gap.Stop().Longest)

		r = u.Run("history", "-n", "1", "-o", "json")
		var entries []struct {
			Event string  `json:"event"`
			Gap   float64 `json:"gap_seconds"`
		}
		require.NoError(b, json.Unmarshal([]byte(r.Stdout), &entries))
		require.Len(b, entries, 1)
		require.Equal(b, "updated", entries[0].Event)
		require.Positive(b, entries[0].Gap)
		ours = append(ours, time.Duration(entries[0].Gap*float64(time.Second)))
		beyond = append(beyond, ours[i]-floor[i])
	}

	t := tables.add(fmt.Sprintf("The gap in service of a swap, client by the %s; median of %d (least to most).\n"+
		"Floor: stop and start of the container that is then replaced.", through, benchSwaps),
		"", "ours", "floor", "ours beyond the floor, pair by pair", "aim")
	t.row("stop request to start response", ours.String(), floor.String(), beyond.String(), "50 ms")
	var seenBeyond millis
	for i := range seen {
		seenBeyond = append(seenBeyond, seen[i]-floorSeen[i])
	}
	t.row("longest time without an answer, as a client saw it", seen.String(), floorSeen.String(), seenBeyond.String())
	b.ReportMetric(0, "ns/op")
	ours.report(b, "gap-ms")
	floor.report(b, "floor-ms")
	beyond.report(b, "beyond-ms")
	seen.report(b, "client-gap-ms")
	floorSeen.report(b, "client-floor-ms")
}

package docker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

func TestContract(t *testing.T) {
	r := newRig(t)
	r.image(t, "good-1", func(c *v1.Config) { c.Cmd = []string{"serve"} })
	r.pull(t, "good-1")
	digests := map[backendtest.Behaviour]string{
		backendtest.Good:  r.image(t, "good-2", func(c *v1.Config) { c.Cmd = []string{"serve"} }),
		backendtest.Exits: r.image(t, "exits", func(c *v1.Config) { c.Cmd = []string{"exit", "1"} }),
		backendtest.Unhealthy: r.image(t, "unhealthy", func(c *v1.Config) {
			c.Cmd = []string{"serve"}
			c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/app", "exit", "1"}, Interval: 1e8, Timeout: 1e9, Retries: 1}
		}),
		backendtest.CannotStart: r.image(t, "cannotstart", func(c *v1.Config) { c.Entrypoint = []string{"/nope"} }),
	}
	// Each workload has a tag of its own, as if its image had been pushed again
	// there.
	start := func(t *testing.T, name, in string) {
		// An engine takes longer for every answer the more it has: Podman ten times
		// as long when nothing had gone by the end.
		t.Cleanup(func() { r.discard(context.WithoutCancel(t.Context()), name) })
		r.push(t, name, r.images["good-1"])
		r.pull(t, name)
		r.run(t, name, r.repo+":"+name, func(c *container.Config, h *container.HostConfig) {
			c.Labels = map[string]string{"team": "blue"}
			h.RestartPolicy.Name = container.RestartPolicyAlways
			if in != "" {
				h.NetworkMode = container.NetworkMode("container:" + r.name(in))
			}
		})
	}
	backendtest.Run(t, backendtest.Harness{
		Backend: func(t *testing.T) updater.Backend { return r.backend(t) },
		Start: func(t *testing.T, name string, to backendtest.Behaviour) updater.Change {
			start(t, name, "")
			require.Contains(t, digests, to)
			return r.change(name, name, name, digests[to])
		},
		StartGroup: func(t *testing.T, name string, to map[string]backendtest.Behaviour) updater.Change {
			start(t, name, "")
			start(t, name+"-a", name)
			start(t, name+"-b", name)
			var c updater.Change
			for _, n := range slices.Sorted(maps.Keys(to)) {
				require.Contains(t, digests, to[n])
				one := r.change(n, n, n, digests[to[n]])
				one.Parts = append(c.Parts, one.Parts...)
				c = one
			}
			return c
		},
		Stop: func(t *testing.T, name string) {
			require.NoError(t, r.cli.ContainerStop(t.Context(), r.name(name), container.StopOptions{}))
		},
		Look:      r.look,
		Leftovers: func(t *testing.T, name string) []string { return r.containersBeside(t, name) },
		Remove: func(t *testing.T, name string) {
			if strings.Contains(name, "/") {
				return // a prune leaves images that have a tag
			}
			r.prune(t, r.name(name))
		},
		Replace: func(t *testing.T, name string) {
			r.remove(t, r.name(name))
			r.run(t, name, r.repo+":good-1", nil)
		},
		Fail:  r.failNth,
		Calls: r.kinds, // TestGroupCrashes comes to each
	})
}

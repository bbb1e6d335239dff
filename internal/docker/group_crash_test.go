package docker

import (
	"fmt"
	"testing"

	"github.com/docker/docker/api/types/container"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
)

// three live in each other: app in the network of vpn, side with the processes
// of app.
var three = []string{"vpn", "app", "side"}

// TestGroupCrashes kills the process in the middle of an update of three, after
// each of its calls under "always", which has the most of them, and after a few
// without a policy; and its successor in the middle of putting things right. One
// goes by the journal, the next has lost it, and so on. vpn and side have an
// update; app goes along.
func TestGroupCrashes(t *testing.T) {
	base := baseImage(t)
	for _, row := range []struct {
		policy        container.RestartPolicyMode
		first, stride int
	}{
		{container.RestartPolicyAlways, 1, 2}, // in two halves, side by side
		{container.RestartPolicyAlways, 2, 2},
		{container.RestartPolicyDisabled, 3, 9},
	} {
		for _, good := range []bool{true, false} {
			t.Run(fmt.Sprintf("policy %s, good %v, from call %d", row.policy, good, row.first), func(t *testing.T) {
				t.Parallel()
				r := newRigOn(t, base)
				g := groupCrash{policy: row.policy, good: good, old: map[string]string{}, next: map[string]string{}}
				for _, n := range three {
					r.image(t, n, func(c *v1.Config) { c.Labels = map[string]string{"of": n} })
					r.pull(t, n)
					g.old[n] = r.local(t, n)
					if n != "app" {
						g.next[n] = r.image(t, n, func(c *v1.Config) { c.Labels = map[string]string{"of": n, "newer": "yes"} })
					}
				}
				for i := 0; ; i++ {
					g.n = row.first + i*row.stride
					g.lost, g.again = (g.n/2)%2 == 0, (g.n+len(row.policy))%11
					ended := false
					t.Run(fmt.Sprintf("journal lost %v, call %d, then %d", g.lost, g.n, g.again), func(t *testing.T) {
						ended = g.run(t, r)
					})
					if ended || t.Failed() {
						break
					}
				}
			})
		}
	}
}

type groupCrash struct {
	policy     container.RestartPolicyMode
	good, lost bool
	n, again   int
	old, next  map[string]string // image ids and digests, by name
}

// run makes one update that is killed at call n, and its recovery, which is
// killed at call again, and checks what is left. It reports whether the update
// came to its end before call n.
func (g groupCrash) run(t *testing.T, r *rig) (ended bool) {
	defer func() {
		for i := range three {
			r.reset(t, three[2-i])
		}
	}()
	for _, n := range three {
		require.NoError(t, r.cli.ImageTag(t.Context(), g.old[n], r.repo+":"+n))
		r.run(t, n, r.repo+":"+n, func(_ *container.Config, h *container.HostConfig) {
			h.RestartPolicy.Name = g.policy
			switch n {
			case "app":
				h.NetworkMode = container.NetworkMode("container:" + r.name("vpn"))
			case "side":
				h.PidMode = container.PidMode("container:" + r.name("app"))
			}
		})
	}
	before, ids := r.looks(t, three)
	c := r.wish(g.next, "vpn", "side")
	c.ID = fmt.Sprintf("%s-%v-%d", g.policy, g.good, g.n)
	first := &process{rig: r, host: r.backend(t), journal: &c}
	require.NoError(t, first.host.Plan(t.Context(), first.journal, goesAlong))
	require.Len(t, c.Parts, 3)

	died := r.crashAt(g.n, true)
	err := first.goOn(t, g.good)
	r.failNth(0, false)
	if died() == "" {
		require.NoError(t, err)
		ended = true
	}
	journal := *first.journal
	for life, n := range []int{g.again, 0} {
		next := &process{rig: r, host: r.backend(t), journal: &journal}
		died := r.crashAt(n, true)
		err := next.recover(t, crash{good: g.good, lost: g.lost})
		r.failNth(0, false)
		journal = *next.journal
		if died() == "" {
			require.NoError(t, err, "life %d", life)
			break
		}
	}

	after, now := r.looks(t, three)
	back := now[0] == ids[0]
	require.True(t, back || g.good, "the originals themselves are back")
	if back {
		require.Equal(t, ids, now, "all on one side")
		require.Equal(t, before, after)
		for _, n := range three {
			require.True(t, g.lost || g.old[n] == r.local(t, n), "the local tag is back")
		}
	}
	for i, n := range three {
		require.Equal(t, back, ids[i] == now[i], "all on one side")
		c := r.inspect(t, n)
		require.Equal(t, g.policy, c.HostConfig.RestartPolicy.Name)
		require.Equal(t, !back && n != "app", c.Config.Labels["newer"] == "yes", n)
	}
	r.allLive(t, three)
	found, err := r.backend(t).Traces(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, r.mine(found))
	return ended
}

package docker

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// process is one life of updaterd: the phases of a change as the driver takes
// them, with the journal in memory. It ends when the saboteur kills it.
type process struct {
	*rig
	host    *Host
	journal *updater.Change // as it was last saved
}

// goOn carries the change on from its phase to its end, or to the crash.
func (p *process) goOn(t *testing.T, good bool) error {
	ctx := t.Context()
	for !p.journal.Phase.Final() {
		c := *p.journal
		switch c.Phase {
		case updater.Preparing:
			if err := p.host.Prepare(ctx, c, func(updater.Progress) {}); err != nil {
				return err
			}
			c.Phase, c.Disturbed = updater.Applying, true
		case updater.Applying:
			applied, err := p.host.Apply(ctx, c)
			if err != nil {
				if p.dead() {
					return err
				}
				c.Phase = updater.Restoring
				break
			}
			c.Mark, c.Gap, c.Phase = applied.Mark, applied.Gap, updater.Judging
		case updater.Judging:
			c.Phase = updater.Committing
			for i, part := range c.Parts {
				if part.Idle {
					continue
				}
				o, err := p.host.Observe(ctx, c, i, updater.NewSide)
				switch {
				case err != nil:
					return err
				case good && o.Running && !o.Undone:
				case good && !o.Gone && !o.Undone:
					return fmt.Errorf("the new one does not run: %+v", o)
				default:
					c.Verdict, c.Phase = updater.Bad, updater.Restoring
				}
			}
		case updater.Committing:
			if err := p.host.Commit(ctx, c); err != nil {
				return err
			}
			c.Phase = updater.Committed
		case updater.Restoring:
			if _, err := p.host.Restore(ctx, c); err != nil {
				return err
			}
			c.Phase = updater.Restored
		}
		if p.dead() {
			return errSabotage // a kill leaves no time for the journal
		}
		p.journal = &c
	}
	return nil
}

func (p *process) dead() bool {
	f := p.fail.Load()
	return f != nil && (*f)("", false) != nil
}

// TestCrashes kills the process after every call that changes something, and
// often its successor in the middle of recovery, which then goes by the journal
// or, where that was lost, by what the engine shows.
//
// Under "always", where an engine itself starts containers, every step is taken
// with either witness; under the other policies each takes a third of them.
func TestCrashes(t *testing.T) {
	base := baseImage(t)
	for _, policy := range []container.RestartPolicyMode{
		container.RestartPolicyDisabled, container.RestartPolicyAlways,
		container.RestartPolicyUnlessStopped, container.RestartPolicyOnFailure,
	} {
		t.Run(fmt.Sprintf("policy %s", policy), func(t *testing.T) {
			t.Parallel()
			r := newRigOn(t, base)
			r.image(t, "app", func(c *v1.Config) { c.Cmd = []string{"one"} })
			r.pull(t, "app")
			old := r.local(t, "app")
			digest := r.image(t, "app", func(c *v1.Config) { c.Cmd = []string{"two"} })
			for _, good := range []bool{true, false} {
				for _, odd := range []int{0, 1} {
					// The policy with the most steps meets every call, with the journal
					// kept and lost. The others share the calls out among themselves.
					n, stride := 0, 1
					if policy != container.RestartPolicyAlways {
						if odd == 1 {
							break
						}
						n, stride = len(policy)%3, 3
					}
					for ; ; n += stride {
						lost := odd == n%2
						again := (n + len(policy)) % 7
						ended := false
						t.Run(fmt.Sprintf("good %v, journal lost %v, call %d, then %d", good, lost, n, again), func(t *testing.T) {
							ended = r.crash(t, crash{policy, good, lost, n, again, old, digest})
						})
						if ended || t.Failed() {
							break
						}
					}
				}
			}
		})
	}
}

type crash struct {
	policy      container.RestartPolicyMode
	good, lost  bool
	n, again    int
	old, digest string
}

// crash runs one update that is killed at call n, and its recovery, which is
// killed at call again, and checks what is left. It reports whether the update
// came to its end before call n.
func (r *rig) crash(t *testing.T, k crash) (ended bool) {
	const name = "web"
	defer r.reset(t, name)
	require.NoError(t, r.cli.ImageTag(t.Context(), k.old, r.repo+":app"))
	retries := 0
	if k.policy == container.RestartPolicyOnFailure {
		retries = 5
	}
	id := r.run(t, name, r.repo+":app", func(c *container.Config, h *container.HostConfig) {
		h.RestartPolicy = container.RestartPolicy{Name: k.policy, MaximumRetryCount: retries}
	})
	c := r.change(name, "app", "app", k.digest)
	c.ID = fmt.Sprintf("%s-%v-%v-%d", k.policy, k.good, k.lost, k.n)
	first := &process{rig: r, host: r.backend(t), journal: &c}
	require.NoError(t, first.host.Plan(t.Context(), first.journal, nil))

	died := r.crashAt(k.n, true)
	err := first.goOn(t, k.good)
	r.failNth(0, false)
	if died() == "" {
		require.NoError(t, err)
		ended = k.n > 0
	}
	journal := *first.journal
	for life, n := range []int{k.again, 0} {
		next := &process{rig: r, host: r.backend(t), journal: &journal}
		died := r.crashAt(n, true)
		err := next.recover(t, k)
		r.failNth(0, false)
		journal = *next.journal
		if died() == "" {
			require.NoError(t, err, "life %d", life)
			break
		}
	}

	web, err := r.cli.ContainerInspect(t.Context(), r.name(name))
	require.NoError(t, err)
	require.True(t, web.State.Running)
	require.Equal(t, container.RestartPolicy{Name: k.policy, MaximumRetryCount: retries}, web.HostConfig.RestartPolicy)
	require.Equal(t, web.ID == id, web.Image == k.old, "the original runs its image, the new one the new")
	left := r.leftovers(t, name)
	if k.lost {
		// The old image's tag comes before anything that would tell of the change;
		// the next change takes it away.
		left = slices.DeleteFunc(left, func(name string) bool { return strings.HasPrefix(name, keptRepository) })
	}
	require.Empty(t, left)
	if !k.good {
		require.Equal(t, id, web.ID, "the original itself is back")
	}
	if k.n == 0 && k.good {
		require.NotEqual(t, id, web.ID)
	}
	if web.ID == id && !k.lost {
		require.Equal(t, k.old, r.local(t, "app"), "the local tag is back")
	}
	found, err := r.backend(t).Traces(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, r.mine(found))
	return ended
}

// recover is what the driver does first in its next life.
func (p *process) recover(t *testing.T, k crash) error {
	if !k.lost {
		if p.journal.Phase == updater.Preparing {
			p.journal.Phase = updater.Restoring
		}
		return p.goOn(t, k.good)
	}
	found, err := p.host.Traces(t.Context(), nil)
	if err != nil {
		return err
	}
	for _, c := range p.mine(found) {
		one := &process{rig: p.rig, host: p.host, journal: &c}
		if err := one.goOn(t, k.good); err != nil {
			return err
		}
	}
	return nil
}

// mine leaves out the traces of other tests on the same engine.
func (r *rig) mine(found []updater.Change) []updater.Change {
	var mine []updater.Change
	for _, c := range found {
		if strings.HasPrefix(c.Unit, "local/"+r.name("")) {
			mine = append(mine, c)
		}
	}
	return mine
}

// reset takes away the container of one scenario.
func (r *rig) reset(t *testing.T, name string) {
	r.failNth(0, false)
	deadline := time.Now().Add(30 * time.Second)
	for _, suffix := range []string{"", suffixNew, suffixOld} {
		for time.Now().Before(deadline) {
			if err := r.cli.ContainerRemove(t.Context(), r.name(name)+suffix, container.RemoveOptions{Force: true}); err != nil {
				break
			}
		}
	}
}

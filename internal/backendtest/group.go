package backendtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// group holds a backend to what it must do for workloads that move together.
func (c contract) group(t *testing.T) {
	if c.StartGroup == nil {
		require.NotEmpty(t, c.NoGroups, "the contract has rows for groups")
		return
	}
	t.Run("a good update leaves all as they were but for the images", c.groupGood)
	t.Run("a dependent moves without what it lives in", c.groupDependent)
	t.Run("one that must not move along refuses the whole", c.groupRefused)
	t.Run("every effect may be called twice", c.groupTwice)
	t.Run("a restore from every phase brings all back, in order", c.groupFromEveryPhase)
	t.Run("a part that did not run is not started", c.groupIdle)
	t.Run("a part that cannot start is the one that is blamed, and all come back", c.groupCannotStart)
	t.Run("what others live in is blamed when its program ends", c.groupProviderExits)
	t.Run("a part that somebody replaced before the swap is left alone, and the others with it", c.groupSuperseded)
	t.Run("a new side that somebody removed before the commit brings all back", c.groupRemovedBeforeCommit)
	t.Run("the original that others live in, removed in the middle, comes back as a copy with them in it", c.groupOriginalRemoved)
	t.Run("an update whose calls fail once, done or not, ends well", c.groupFailures)
	t.Run("a restore whose calls fail once, done or not, ends well", c.groupFailingRestore)
	t.Run("a change whose record was lost is found by its traces", c.groupTraces)
}

// trio are the names of a group, in start order.
func trio(name string) []string { return []string{name, name + "-a", name + "-b"} }

// along lets everything move along.
func along(string) (updater.Settings, error) { return updater.Settings{Enabled: true}, nil }

// planGroup widens the wish to all three.
func (c contract) planGroup(t *testing.T, b updater.Backend, ch updater.Change) updater.Change {
	t.Helper()
	wished := map[string]updater.Image{}
	for _, p := range ch.Parts {
		wished[p.Workload] = p.To
	}
	require.NoError(t, b.Plan(t.Context(), &ch, along))
	require.NotEmpty(t, ch.Origin)
	require.Len(t, ch.Parts, 3)
	for i, p := range ch.Parts {
		require.True(t, p.Replace, "%s lives in what is replaced, or is it", p.Workload)
		if to, ok := wished[p.Workload]; ok {
			require.Equal(t, to, p.To)
			require.True(t, p.Changes())
		} else {
			require.NotEmpty(t, p.From.Digest+p.From.Config, "what %s runs", p.Workload)
			require.False(t, p.Changes(), "%s keeps its image", p.Workload)
			require.True(t, p.Settings.Enabled, "%s has the settings that join told", p.Workload)
		}
		if i > 0 {
			require.True(t, strings.HasPrefix(p.Workload, ch.Parts[0].Workload+"-"), "what others live in comes first: %s", p.Workload)
		}
	}
	return ch
}

func (c contract) lookAll(t *testing.T, name string) (looks []string) {
	t.Helper()
	for _, n := range trio(name) {
		looks = append(looks, c.Look(t, n))
	}
	return looks
}

// untilAll waits for a side of all parts to run, and checks that what others
// live in was started before them: it is of no use to them otherwise.
func (c contract) untilAll(t *testing.T, b updater.Backend, ch updater.Change, s updater.Side) {
	t.Helper()
	var first time.Time
	for i, p := range ch.Parts {
		if p.Idle {
			continue
		}
		o := untilPart(t, b, ch, i, s, fmt.Sprintf("the %s side of %s", s, p.Workload), running)
		if i == 0 {
			first = o.Started
		}
		require.False(t, o.Started.Before(first), "%s was started before what it lives in", p.Workload)
	}
}

func (c contract) nothingLeft(t *testing.T, name string) {
	t.Helper()
	for _, n := range trio(name) {
		require.Empty(t, c.Leftovers(t, n), "beside %s", n)
	}
}

func (c contract) allBack(t *testing.T, b updater.Backend, ch updater.Change, name string, before []string) {
	t.Helper()
	c.untilAll(t, b, ch, updater.OldSide)
	require.Equal(t, before, c.lookAll(t, name))
	c.nothingLeft(t, name)
}

// moved checks that all run, and that another image is what changed, where one
// was wished for.
func (c contract) moved(t *testing.T, ch updater.Change, name string, before []string) {
	t.Helper()
	for i, now := range c.lookAll(t, name) {
		if ch.Parts[i].Changes() {
			require.NotEqual(t, before[i], now, "the image of %s must be another", ch.Parts[i].Workload)
		} else {
			require.Equal(t, before[i], now)
		}
	}
	c.nothingLeft(t, name)
}

func (c contract) groupGood(t *testing.T) {
	for _, wish := range [][]string{{""}, {"", "-a"}, {"", "-a", "-b"}} {
		t.Run(fmt.Sprintf("%d with an update", len(wish)), func(t *testing.T) {
			name := fmt.Sprintf("ggood%d", len(wish))
			to := map[string]Behaviour{}
			for _, n := range wish {
				to[name+n] = Good
			}
			b := c.Backend(t)
			ch := c.planGroup(t, b, c.StartGroup(t, name, to))
			for _, p := range ch.Parts {
				require.True(t, p.Healthy, "%s was healthy before", p.Workload)
				require.False(t, p.Idle)
			}
			before := c.lookAll(t, name)
			ch = c.swap(t, b, ch)
			c.untilAll(t, b, ch, updater.NewSide)
			ch.Phase = updater.Committing
			require.NoError(t, b.Commit(t.Context(), ch))
			c.moved(t, ch, name, before)
			all, err := b.Workloads(t.Context())
			require.NoError(t, err)
			for _, p := range ch.Parts {
				i := slices.IndexFunc(all, func(w updater.Workload) bool { return w.ID == p.Workload })
				require.GreaterOrEqual(t, i, 0)
				require.Contains(t, all[i].Runs.Digests, p.To.Digest)
			}
		})
	}
}

func (c contract) groupDependent(t *testing.T) {
	const name = "gdependent"
	b := c.Backend(t)
	ch := c.StartGroup(t, name, map[string]Behaviour{name + "-a": Good})
	require.NoError(t, b.Plan(t.Context(), &ch, alone))
	require.Len(t, ch.Parts, 1)
	unit, _ := strings.CutSuffix(ch.Unit, "-a")
	require.ElementsMatch(t, []string{unit, unit + "-b"}, ch.Related, "the rest of its group")
	before := c.lookAll(t, name)
	ch = c.swap(t, b, ch)
	until(t, b, ch, updater.NewSide, "the new side", running)
	ch.Phase = updater.Committing
	require.NoError(t, b.Commit(t.Context(), ch))
	after := c.lookAll(t, name)
	require.NotEqual(t, before[1], after[1])
	before[1] = after[1]
	require.Equal(t, before, after, "the others are as they were")
	c.nothingLeft(t, name)
}

func (c contract) groupRefused(t *testing.T) {
	const name = "grefused"
	b := c.Backend(t)
	ch := c.StartGroup(t, name, map[string]Behaviour{name: Good})
	before := c.lookAll(t, name)
	held := &updater.Refusal{Reason: updater.Held, Detail: "it is held"}
	err := b.Plan(t.Context(), &ch, func(workload string) (updater.Settings, error) {
		if strings.HasSuffix(workload, "-b") {
			return updater.Settings{}, held
		}
		return updater.Settings{}, nil
	})
	var refusal *updater.Refusal
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, held, refusal)
	require.Equal(t, before, c.lookAll(t, name))
	c.nothingLeft(t, name)
}

func (c contract) groupTwice(t *testing.T) {
	const name = "gtwice"
	b := c.Backend(t)
	ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-a": Good}))
	before := c.lookAll(t, name)
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	ch = c.swap(t, c.Backend(t), ch)
	ch = c.swap(t, c.Backend(t), ch)
	c.untilAll(t, b, ch, updater.NewSide)
	ch.Phase = updater.Committing
	require.NoError(t, b.Commit(t.Context(), ch))
	require.NoError(t, c.Backend(t).Commit(t.Context(), ch))
	c.moved(t, ch, name, before)
	_, err := c.Backend(t).Restore(t.Context(), ch)
	require.NoError(t, err, "after the commit it leaves the new side")
	c.moved(t, ch, name, before)
}

func (c contract) groupFromEveryPhase(t *testing.T) {
	for i, phase := range []updater.Phase{"planned", updater.Preparing, updater.Applying} {
		t.Run(string(phase), func(t *testing.T) {
			name := fmt.Sprintf("gfrom%d", i)
			b := c.Backend(t)
			ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-a": Unhealthy}))
			before := c.lookAll(t, name)
			if phase != "planned" {
				require.NoError(t, b.Prepare(t.Context(), ch, quiet))
			}
			if phase == updater.Applying {
				ch = c.swap(t, b, ch)
			}
			for range 2 {
				require.False(t, c.restore(t, c.Backend(t), ch).Copy)
				c.allBack(t, b, ch, name, before)
			}
		})
	}
}

func (c contract) groupIdle(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("put back %v", back), func(t *testing.T) {
			name := fmt.Sprintf("gidle%v", back)
			b := c.Backend(t)
			wish := c.StartGroup(t, name, map[string]Behaviour{name: Good})
			c.Stop(t, name+"-b")
			ch := c.planGroup(t, b, wish)
			for _, p := range ch.Parts {
				require.Equal(t, strings.HasSuffix(p.Workload, "-b"), p.Idle, p.Workload)
				require.Equal(t, !p.Idle, p.Healthy, p.Workload)
			}
			before := c.lookAll(t, name)
			ch = c.swap(t, b, ch)
			c.untilAll(t, b, ch, updater.NewSide)
			if back {
				require.False(t, c.restore(t, b, ch).Copy)
				c.allBack(t, b, ch, name, before)
				return
			}
			ch.Phase = updater.Committing
			require.NoError(t, b.Commit(t.Context(), ch))
			c.moved(t, ch, name, before)
		})
	}
}

func (c contract) groupCannotStart(t *testing.T) {
	for _, bad := range []string{"", "-a"} {
		t.Run("the one called name"+bad, func(t *testing.T) {
			name := fmt.Sprintf("gcannotstart%d", len(bad))
			b := c.Backend(t)
			ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + bad: CannotStart}))
			before := c.lookAll(t, name)
			require.NoError(t, b.Prepare(t.Context(), ch, quiet))
			ch.Phase, ch.Disturbed = updater.Applying, true
			_, err := b.Apply(t.Context(), ch)
			var fault *updater.Fault
			require.ErrorAs(t, err, &fault)
			require.Equal(t, updater.Bad, fault.Verdict)
			require.Equal(t, ch.Parts[0].Workload+bad, fault.Workload)
			c.restore(t, b, ch)
			c.allBack(t, b, ch, name, before)
		})
	}
}

// groupProviderExits: those that live in it can then not be started, which is
// not their fault, nor the engine's.
func (c contract) groupProviderExits(t *testing.T) {
	const name = "gexits"
	b := c.Backend(t)
	ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Exits, name + "-a": Good}))
	before := c.lookAll(t, name)
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	ch.Phase, ch.Disturbed = updater.Applying, true
	applied, err := b.Apply(t.Context(), ch)
	var fault *updater.Fault
	switch {
	case err == nil: // they were all started before it ended
		ch.Mark = applied.Mark
		until(t, b, ch, updater.NewSide, "the new side", func(o updater.Observation) bool {
			return o.Restarts >= 3 || !o.Running && !o.Restarting && o.ExitCode == 1
		})
	default:
		require.ErrorAs(t, err, &fault)
		require.Equal(t, updater.Bad, fault.Verdict, err)
		require.Equal(t, ch.Parts[0].Workload, fault.Workload, err)
	}
	c.restore(t, b, ch)
	c.allBack(t, b, ch, name, before)
}

func (c contract) groupSuperseded(t *testing.T) {
	const name = "gsuperseded"
	b := c.Backend(t)
	ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good}))
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	c.Replace(t, name+"-a")
	before := c.lookAll(t, name)
	ch.Phase, ch.Disturbed = updater.Applying, true
	_, err := b.Apply(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.Equal(t, before, c.lookAll(t, name), "nothing was touched yet")
	ch.Phase, ch.Superseded = updater.Restoring, true
	_, err = b.Restore(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.Equal(t, before, c.lookAll(t, name))
	c.nothingLeft(t, name)
}

func (c contract) groupRemovedBeforeCommit(t *testing.T) {
	const name = "guncommitted"
	b := c.Backend(t)
	ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good}))
	before := c.lookAll(t, name)
	ch = c.swap(t, b, ch)
	c.untilAll(t, b, ch, updater.NewSide)
	c.Remove(t, name+"-a")
	ch.Phase = updater.Committing
	require.ErrorIs(t, b.Commit(t.Context(), ch), updater.ErrSuperseded)
	c.restore(t, b, ch)
	c.allBack(t, b, ch, name, before)
}

func (c contract) groupOriginalRemoved(t *testing.T) {
	const name = "gpruned"
	b := c.Backend(t)
	ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-a": Unhealthy}))
	before := c.lookAll(t, name)
	ch = c.swap(t, b, ch)
	for _, left := range c.Leftovers(t, name) {
		c.Remove(t, left)
	}
	ch.Phase, ch.Verdict, ch.Culprit = updater.Restoring, updater.Bad, ch.Parts[1].Workload
	r, err := b.Restore(t.Context(), ch)
	require.NoError(t, err)
	require.True(t, r.Copy)
	c.allBack(t, b, ch, name, before)
}

// failing calls try for each call that is to fail, counted from 1, until one fails
// no more. Where they are thinned, dry makes them all first; one that runs through
// comes last there too.
func (c contract) failing(t *testing.T, done bool, dry func(), try func(n int) (struck bool)) {
	if c.Calls == nil {
		for n := 1; try(n) && !t.Failed(); n++ {
		}
		return
	}
	made := c.Calls()
	dry()
	c.Fail(0, false)
	kinds := made()
	require.NotEmpty(t, kinds)
	seen := map[string]bool{}
	for i := range kinds {
		n := i + 1
		if !done {
			n = len(kinds) - i
		}
		if !seen[kinds[n-1]] {
			seen[kinds[n-1]] = true
			try(n)
		}
	}
	try(len(kinds) + 1)
}

func (c contract) groupFailures(t *testing.T) {
	for _, done := range []bool{false, true} {
		dry := func() {
			name := fmt.Sprintf("gdry%v", done)
			b := c.Backend(t)
			ch := c.swap(t, b, c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-b": Good})))
			c.untilAll(t, b, ch, updater.NewSide)
			ch.Phase = updater.Committing
			require.NoError(t, b.Commit(t.Context(), ch))
		}
		c.failing(t, done, dry, func(n int) bool {
			struck := func() bool { return false }
			t.Run(fmt.Sprintf("call %d, done %v", n, done), func(t *testing.T) {
				name := fmt.Sprintf("gfails%d%v", n, done)
				b := c.Backend(t)
				ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-b": Good}))
				before := c.lookAll(t, name)
				struck = c.Fail(n, done)
				defer func() { c.Fail(0, false) }()
				err := b.Prepare(t.Context(), ch, quiet)
				if err == nil {
					ch.Phase, ch.Disturbed = updater.Applying, true
					_, err = b.Apply(t.Context(), ch)
				}
				if err == nil {
					c.untilAll(t, b, ch, updater.NewSide)
					ch.Phase = updater.Committing
					if err := b.Commit(t.Context(), ch); err != nil {
						require.NoError(t, b.Commit(t.Context(), ch))
					}
					c.moved(t, ch, name, before)
					return
				}
				require.True(t, struck(), "nothing was made to fail, but: %v", err)
				c.restore(t, b, ch)
				c.allBack(t, b, ch, name, before)
			})
			return struck()
		})
	}
}

func (c contract) groupFailingRestore(t *testing.T) {
	for _, done := range []bool{false, true} {
		dry := func() {
			name := fmt.Sprintf("gdryrestore%v", done)
			b := c.Backend(t)
			ch := c.swap(t, b, c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-b": Unhealthy})))
			c.restore(t, b, ch)
		}
		c.failing(t, done, dry, func(n int) bool {
			struck := func() bool { return false }
			t.Run(fmt.Sprintf("call %d, done %v", n, done), func(t *testing.T) {
				name := fmt.Sprintf("gnorestore%d%v", n, done)
				b := c.Backend(t)
				ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good, name + "-b": Unhealthy}))
				before := c.lookAll(t, name)
				ch = c.swap(t, b, ch)
				ch.Phase = updater.Restoring
				struck = c.Fail(n, done)
				defer func() { c.Fail(0, false) }()
				if _, err := b.Restore(t.Context(), ch); err != nil {
					require.True(t, struck(), "nothing was made to fail, but: %v", err)
					c.restore(t, c.Backend(t), ch)
				}
				c.allBack(t, b, ch, name, before)
			})
			return struck()
		})
	}
}

// groupTraces loses the record after every call of a swap: what is found then
// is the whole group.
func (c contract) groupTraces(t *testing.T) {
	seen := map[updater.Phase]bool{}
	dry := func() {
		const name = "gdrytraces"
		b := c.Backend(t)
		c.swap(t, b, c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good})))
	}
	c.failing(t, true, dry, func(n int) bool {
		struck := func() bool { return false }
		t.Run(fmt.Sprintf("after call %d", n), func(t *testing.T) {
			name := fmt.Sprintf("gtraced%d", n)
			b := c.Backend(t)
			ch := c.planGroup(t, b, c.StartGroup(t, name, map[string]Behaviour{name: Good}))
			before := c.lookAll(t, name)
			struck = c.Fail(n, true)
			defer func() { c.Fail(0, false) }()
			err := b.Prepare(t.Context(), ch, quiet)
			if err == nil {
				ch.Phase, ch.Disturbed = updater.Applying, true
				_, err = b.Apply(t.Context(), ch)
			}
			if err != nil {
				require.True(t, struck(), "nothing was made to fail, but: %v", err)
			}
			c.Fail(0, false)

			mine := func(known map[string]bool) *updater.Change {
				found, err := c.Backend(t).Traces(t.Context(), known)
				require.NoError(t, err)
				for _, f := range found {
					for _, p := range f.Parts {
						if p.Workload == ch.Parts[0].Workload {
							return &f
						}
					}
				}
				return nil
			}
			require.Nil(t, mine(map[string]bool{ch.ID: true}), "what is known is not lost")
			lost := mine(nil)
			if lost == nil {
				// Nothing had been made yet but a name that keeps an old image, which
				// the next change of its workload takes away.
				c.untilAll(t, b, ch, updater.OldSide)
				require.Equal(t, before, c.lookAll(t, name))
				return
			}
			require.Equal(t, ch.ID, lost.ID)
			require.Len(t, lost.Parts, 3)
			for i, p := range lost.Parts {
				require.Equal(t, ch.Parts[i].Workload, p.Workload, "in start order")
				require.True(t, p.Replace)
			}
			seen[lost.Phase] = true
			if lost.Phase == updater.Judging {
				c.untilAll(t, b, *lost, updater.NewSide)
			}
			c.restore(t, b, *lost)
			c.allBack(t, b, *lost, name, before)
			require.Nil(t, mine(nil))
		})
		return struck()
	})
	require.Equal(t, map[updater.Phase]bool{updater.Restoring: true, updater.Judging: true}, seen)
}

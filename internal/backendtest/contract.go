package backendtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// Harness is what the contract needs of an implementation under test. Names
// are unique within a run of the contract.
type Harness struct {
	// Backend is the backend as a newly started updaterd sees it.
	Backend func(t *testing.T) updater.Backend
	// Start runs a workload on a good image and returns the wish to move it to
	// one that behaves as told: no Origin yet, phase preparing.
	Start func(t *testing.T, name string, to Behaviour) updater.Change
	// StartGroup runs three workloads on good images: one called name, and two
	// that live in its network namespace, called name-a and name-b. It returns
	// the wish to move those of them that are keys of to, by name, to images that
	// behave as told: no Origin yet, phase preparing.
	StartGroup func(t *testing.T, name string, to map[string]Behaviour) updater.Change
	// NoGroups says why nothing moves along with anything else on a backend without
	// StartGroup.
	NoGroups string
	// NoTraces says why changes leave no traces on a backend beside its journal; ""
	// where they do.
	NoTraces string
	// Stop stops a workload, as a person would.
	Stop func(t *testing.T, name string)
	// Look says of one workload all that a person configured and can see: what
	// it runs, whether it runs, its restart policy, its settings; what it shares
	// with others by their names. No ids, no times. "" when there is none.
	Look func(t *testing.T, name string) string
	// Leftovers names what a change of the workload has left behind.
	Leftovers func(t *testing.T, name string) []string
	// Remove takes a workload away, and Replace puts another in its place under
	// the same name, as a person would.
	Remove, Replace func(t *testing.T, name string)
	// Fail makes the nth call from now on that changes something fail, counted
	// from 1, before or after it was done, and reports whether it came to that.
	// With 0 nothing fails any more.
	Fail func(n int, done bool) (struck func() bool)
	// Calls notes the kinds of the calls that change something from now on, and
	// returns what tells them, in order. It is for a backend where each takes
	// seconds: of each kind, only the last call of a group is made to fail before it
	// was done, and the first one after. nil: every call is.
	Calls func() (made func() []string)
}

// Run holds a backend to the contract of updater.Backend.
func Run(t *testing.T, h Harness) {
	c := contract{h}
	t.Run("a good update leaves the workload as it was but for the image", c.goodUpdate)
	t.Run("every effect may be called twice", c.twice)
	t.Run("a restore from every phase leaves everything exactly as it was", c.restoreFromEveryPhase)
	t.Run("a restore after a commit leaves the new side", c.restoreAfterCommit)
	t.Run("an image that cannot start is a fault, and the way back is open", c.cannotStart)
	t.Run("a sick image is seen to be sick", c.sick)
	t.Run("a workload that vanished before the swap is not made up", c.vanished)
	t.Run("a workload that somebody replaced before the swap is left alone", c.superseded)
	t.Run("a workload that somebody replaced before the restore is left alone", c.replacedBeforeRestore)
	t.Run("a new side that somebody removed before the commit is not what remains", c.removedBeforeCommit)
	t.Run("an original that somebody removed in the middle comes back as a copy", c.originalRemoved)
	t.Run("an update whose calls fail once, done or not, ends well", c.failures)
	t.Run("a restore whose calls fail once, done or not, ends well", c.failingRestore)
	t.Run("a change whose record was lost is found by its traces", c.traces)
	t.Run("a group", c.group)
}

type contract struct{ Harness }

func (c contract) plan(t *testing.T, b updater.Backend, ch updater.Change) updater.Change {
	t.Helper()
	require.NoError(t, b.Plan(t.Context(), &ch, alone))
	require.NotEmpty(t, ch.Origin)
	require.True(t, ch.Parts[0].Healthy, "it was healthy before")
	return ch
}

func quiet(updater.Progress) {}

// alone lets nothing move along.
func alone(workload string) (updater.Settings, error) {
	return updater.Settings{}, fmt.Errorf("nobody asked for %s", workload)
}

// until looks at a side until ok says so.
func until(t *testing.T, b updater.Backend, ch updater.Change, s updater.Side, what string, ok func(updater.Observation) bool) {
	t.Helper()
	untilPart(t, b, ch, 0, s, what, ok)
}

// untilPart looks at a side of one part until ok says so, and returns what it saw.
func untilPart(t *testing.T, b updater.Backend, ch updater.Change, part int, s updater.Side, what string, ok func(updater.Observation) bool) updater.Observation {
	t.Helper()
	var o updater.Observation
	look := func() bool {
		var err error
		o, err = b.Observe(context.Background(), ch, part, s)
		return err == nil && ok(o)
	}
	if !look() {
		require.Eventually(t, look, 30*time.Second, 20*time.Millisecond, "%s: last seen %+v", what, &o)
	}
	return o
}

func running(o updater.Observation) bool {
	return o.Running && o.Pending == "" && (o.Health == updater.HealthNone || o.Health == updater.HealthHealthy)
}

func (c contract) swap(t *testing.T, b updater.Backend, ch updater.Change) updater.Change {
	t.Helper()
	ch.Phase = updater.Preparing
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	ch.Phase, ch.Disturbed = updater.Applying, true
	applied, err := b.Apply(t.Context(), ch)
	require.NoError(t, err)
	ch.Mark, ch.Phase = applied.Mark, updater.Judging
	return ch
}

func (c contract) restore(t *testing.T, b updater.Backend, ch updater.Change) updater.Restoration {
	t.Helper()
	ch.Phase = updater.Restoring
	r, err := b.Restore(t.Context(), ch)
	require.NoError(t, err)
	return r
}

func (c contract) back(t *testing.T, b updater.Backend, ch updater.Change, name, before string) {
	t.Helper()
	until(t, b, ch, updater.OldSide, "the old side", running)
	require.Equal(t, before, c.Look(t, name))
	require.Empty(t, c.Leftovers(t, name))
}

func (c contract) goodUpdate(t *testing.T) {
	const name = "good"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Good))
	before := c.Look(t, name)
	ch = c.swap(t, b, ch)
	until(t, b, ch, updater.NewSide, "the new side", running)
	ch.Phase = updater.Committing
	require.NoError(t, b.Commit(t.Context(), ch))
	require.NotEqual(t, before, c.Look(t, name), "the image must be another")
	require.Empty(t, c.Leftovers(t, name))
	all, err := b.Workloads(t.Context())
	require.NoError(t, err)
	found := 0
	for _, w := range all {
		if w.ID == ch.Unit {
			found++
			require.Contains(t, w.Runs.Digests, ch.Parts[0].To.Digest)
		}
	}
	require.Equal(t, 1, found)
}

func (c contract) twice(t *testing.T) {
	const name = "twice"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Good))
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	ch = c.swap(t, c.Backend(t), ch)
	ch = c.swap(t, c.Backend(t), ch)
	until(t, b, ch, updater.NewSide, "the new side", running)
	ch.Phase = updater.Committing
	require.NoError(t, b.Commit(t.Context(), ch))
	after := c.Look(t, name)
	require.NoError(t, c.Backend(t).Commit(t.Context(), ch))
	require.Equal(t, after, c.Look(t, name))
	require.Empty(t, c.Leftovers(t, name))
}

func (c contract) restoreFromEveryPhase(t *testing.T) {
	for i, phase := range []updater.Phase{"planned", updater.Preparing, updater.Applying} {
		t.Run(string(phase), func(t *testing.T) {
			name := fmt.Sprintf("from%d", i)
			b := c.Backend(t)
			ch := c.plan(t, b, c.Start(t, name, Good))
			before := c.Look(t, name)
			if phase != "planned" {
				require.NoError(t, b.Prepare(t.Context(), ch, quiet))
			}
			if phase == updater.Applying {
				ch = c.swap(t, b, ch)
			}
			require.False(t, c.restore(t, c.Backend(t), ch).Copy)
			c.back(t, b, ch, name, before)
			require.False(t, c.restore(t, c.Backend(t), ch).Copy)
			c.back(t, b, ch, name, before)
		})
	}
}

func (c contract) restoreAfterCommit(t *testing.T) {
	const name = "committed"
	b := c.Backend(t)
	ch := c.swap(t, b, c.plan(t, b, c.Start(t, name, Good)))
	until(t, b, ch, updater.NewSide, "the new side", running)
	ch.Phase = updater.Committing
	require.NoError(t, b.Commit(t.Context(), ch))
	after := c.Look(t, name)
	_, err := b.Restore(t.Context(), ch)
	require.NoError(t, err)
	require.Equal(t, after, c.Look(t, name))
	require.Empty(t, c.Leftovers(t, name))
}

func (c contract) cannotStart(t *testing.T) {
	const name = "cannotstart"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, CannotStart))
	before := c.Look(t, name)
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	ch.Phase, ch.Disturbed = updater.Applying, true
	applied, err := b.Apply(t.Context(), ch)
	if err == nil { // it only shows later where something else starts what was applied
		ch.Mark, ch.Phase = applied.Mark, updater.Judging
		until(t, b, ch, updater.NewSide, "the fault", func(o updater.Observation) bool { return o.Fault != "" && o.Blame == updater.Bad })
	} else {
		var fault *updater.Fault
		require.ErrorAs(t, err, &fault)
		require.Equal(t, updater.Bad, fault.Verdict)
	}
	c.restore(t, b, ch)
	c.back(t, b, ch, name, before)
}

func (c contract) sick(t *testing.T) {
	for behaviour, sick := range map[Behaviour]func(updater.Observation) bool{
		Exits: func(o updater.Observation) bool {
			return o.Blame == updater.Bad || o.Restarts >= 3 || !o.Running && !o.Restarting && o.ExitCode == 1
		},
		Unhealthy: func(o updater.Observation) bool {
			return o.Blame == updater.Bad || o.Health == updater.HealthUnhealthy
		},
	} {
		t.Run(string(behaviour), func(t *testing.T) {
			name := "sick" + string(behaviour)
			b := c.Backend(t)
			ch := c.plan(t, b, c.Start(t, name, behaviour))
			before := c.Look(t, name)
			ch = c.swap(t, b, ch)
			until(t, b, ch, updater.NewSide, "the new side", sick)
			c.restore(t, b, ch)
			c.back(t, b, ch, name, before)
		})
	}
}

func (c contract) vanished(t *testing.T) {
	const name = "vanished"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Good))
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	c.Remove(t, name)
	ch.Phase, ch.Disturbed = updater.Applying, true
	_, err := b.Apply(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	ch.Phase, ch.Superseded = updater.Restoring, true
	if _, err = b.Restore(t.Context(), ch); err != nil {
		require.ErrorIs(t, err, updater.ErrSuperseded)
	}
	require.Empty(t, c.Look(t, name))
	require.Empty(t, c.Leftovers(t, name))
}

func (c contract) superseded(t *testing.T) {
	const name = "superseded"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Good))
	require.NoError(t, b.Prepare(t.Context(), ch, quiet))
	c.Replace(t, name)
	theirs := c.Look(t, name)
	ch.Phase, ch.Disturbed = updater.Applying, true
	_, err := b.Apply(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	ch.Phase, ch.Superseded = updater.Restoring, true
	_, err = b.Restore(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.Equal(t, theirs, c.Look(t, name))
	require.Empty(t, c.Leftovers(t, name))
}

func (c contract) replacedBeforeRestore(t *testing.T) {
	const name = "replaced"
	b := c.Backend(t)
	ch := c.swap(t, b, c.plan(t, b, c.Start(t, name, Exits)))
	c.Replace(t, name)
	theirs := c.Look(t, name)
	ch.Phase = updater.Restoring
	_, err := b.Restore(t.Context(), ch)
	require.ErrorIs(t, err, updater.ErrSuperseded)
	require.Equal(t, theirs, c.Look(t, name))
}

func (c contract) removedBeforeCommit(t *testing.T) {
	const name = "uncommitted"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Good))
	before := c.Look(t, name)
	ch = c.swap(t, b, ch)
	until(t, b, ch, updater.NewSide, "the new side", running)
	if len(c.Leftovers(t, name)) == 0 {
		return // nothing is kept beside it that could come back
	}
	c.Remove(t, name)
	ch.Phase = updater.Committing
	require.ErrorIs(t, b.Commit(t.Context(), ch), updater.ErrSuperseded)
	require.ErrorIs(t, c.Backend(t).Commit(t.Context(), ch), updater.ErrSuperseded, "the second time")
	c.restore(t, b, ch)
	c.back(t, b, ch, name, before)
}

func (c contract) originalRemoved(t *testing.T) {
	const name = "pruned"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Exits))
	before := c.Look(t, name)
	ch = c.swap(t, b, ch)
	// What a prune takes is the stopped original, under its other name.
	left := c.Leftovers(t, name)
	for _, l := range left {
		c.Remove(t, l)
	}
	ch.Phase, ch.Verdict = updater.Restoring, updater.Bad
	r, err := b.Restore(t.Context(), ch)
	require.NoError(t, err)
	require.Equal(t, len(left) > 0, r.Copy, "where nothing is kept beside it, nothing can be pruned")
	c.back(t, b, ch, name, before)
}

// failures lets every call of an update fail once, before and after it was
// done. The driver's answer to a failed effect is a restore.
func (c contract) failures(t *testing.T) {
	for _, done := range []bool{false, true} {
		struck := func() bool { return true }
		for n := 1; struck() && !t.Failed(); n++ {
			t.Run(fmt.Sprintf("call %d, done %v", n, done), func(t *testing.T) {
				name := fmt.Sprintf("fails%d%v", n, done)
				b := c.Backend(t)
				ch := c.plan(t, b, c.Start(t, name, Good))
				before := c.Look(t, name)
				struck = c.Fail(n, done)
				defer func() { c.Fail(0, false) }()
				err := b.Prepare(t.Context(), ch, quiet)
				if err == nil {
					ch.Phase, ch.Disturbed = updater.Applying, true
					_, err = b.Apply(t.Context(), ch)
				}
				if err == nil {
					until(t, b, ch, updater.NewSide, "the new side", running)
					ch.Phase = updater.Committing
					if err := b.Commit(t.Context(), ch); err != nil {
						require.NoError(t, b.Commit(t.Context(), ch))
					}
					require.NotEqual(t, before, c.Look(t, name))
					require.Empty(t, c.Leftovers(t, name))
					return
				}
				require.True(t, struck(), "nothing was made to fail, but: %v", err)
				c.restore(t, b, ch)
				c.back(t, b, ch, name, before)
			})
		}
	}
}

// failingRestore lets every call of a restore fail once, before and after it
// was done; the driver repeats it.
func (c contract) failingRestore(t *testing.T) {
	for _, done := range []bool{false, true} {
		struck := func() bool { return true }
		for n := 1; struck() && !t.Failed(); n++ {
			t.Run(fmt.Sprintf("call %d, done %v", n, done), func(t *testing.T) {
				name := fmt.Sprintf("norestore%d%v", n, done)
				b := c.Backend(t)
				ch := c.plan(t, b, c.Start(t, name, Exits))
				before := c.Look(t, name)
				ch = c.swap(t, b, ch)
				ch.Phase = updater.Restoring
				struck = c.Fail(n, done)
				defer func() { c.Fail(0, false) }()
				if _, err := b.Restore(t.Context(), ch); err != nil {
					require.True(t, struck(), "nothing was made to fail, but: %v", err)
					c.restore(t, c.Backend(t), ch)
				}
				c.back(t, b, ch, name, before)
			})
		}
	}
}

func (c contract) traces(t *testing.T) {
	const name = "traced"
	b := c.Backend(t)
	ch := c.plan(t, b, c.Start(t, name, Good))
	before := c.Look(t, name)
	ch = c.swap(t, b, ch)

	mine := func(known map[string]bool) *updater.Change {
		found, err := c.Backend(t).Traces(t.Context(), known)
		require.NoError(t, err)
		for _, f := range found {
			if f.Unit == ch.Unit {
				return &f
			}
		}
		return nil
	}
	require.Nil(t, mine(map[string]bool{ch.ID: true}), "what is known is not lost")
	lost := mine(nil)
	if c.NoTraces != "" {
		require.Nil(t, lost, c.NoTraces)
		return
	}
	require.NotNil(t, lost)
	require.False(t, lost.Phase.Final())
	until(t, b, *lost, updater.NewSide, "the new side", running)
	c.restore(t, b, *lost)
	c.back(t, b, *lost, name, before)
	require.Nil(t, mine(nil))
}

package cluster

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
)

// TestSomebodyEdits: what somebody else changes at any step stays, and is a reason
// to give up only if it is the image.
func TestSomebodyEdits(t *testing.T) {
	everywhere(t, func(t *testing.T, where at, bad bool) {
		w := newWorkload(t, "deployment", rig.Spec{Replicas: 2})
		digest := w.next(bad)
		w.Good("web:theirs", "theirs")
		var edited atomic.Bool
		w.u.Way.Proxy.Hook(where.once(func(rig.Call) error {
			edited.Store(true)
			if where.n%2 == 1 {
				w.Kubectl("set", "image", "deployment/web", "app="+w.Ref("web:theirs"))
				return nil
			}
			w.Kubectl("scale", "deployment/web", "--replicas=3")
			w.Kubectl("annotate", "deployment/web", "they=were-here")
			return nil
		}))
		w.u.Run("run", "--once")
		w.u.Way.Proxy.Hook(rig.Hooks{})
		if !edited.Load() || where.n%2 == 0 {
			w.u.Run("run", "--once") // One that was broken off is taken up again.
			w.ends(bad, digest)
			if edited.Load() {
				require.Equal(t, "were-here", w.Get(w.which).Annotations["they"])
				require.Len(t, w.Pods("web"), 3)
			}
			return
		}
		now := w.WaitDone(w.which)
		require.Equal(t, w.Ref("web:theirs"), now.Image("app"), "theirs wins")
	})
}

// TestRollBackByHand: a person's way back sticks.
func TestRollBackByHand(t *testing.T) {
	t.Parallel()
	w := newWorkload(t, "deployment", rig.Spec{})
	w.Kubectl("set", "image", w.which, "app="+w.Ref("web:latest")+"@"+w.first)
	w.WaitDone(w.which)
	u := w.Updaterd(rig.Settings + "  pin: follow\n")
	digest := w.Good("web:latest", "2")
	require.Equal(t, "committed", u.Once(w.which, 0).Outcome)
	w.updated(digest)
	w.Kubectl("set", "image", w.which, "app="+w.Ref("web:latest")+"@"+w.first)
	w.WaitDone(w.which)
	for range 2 {
		require.Equal(t, "rolled-back", u.Once(w.which, 0).Reason)
		require.Equal(t, []string{w.first}, w.Digests("web"))
	}
	third := w.Good("web:latest", "3")
	require.Equal(t, "committed", u.Once(w.which, 0).Outcome, "another gets its chance")
	w.updated(third)
}

// TestOldLeader: what a leader wrote that is one no more does nothing when it
// arrives late.
func TestOldLeader(t *testing.T) {
	t.Parallel()
	w := newWorkload(t, "deployment", rig.Spec{})
	w.Crashing("web:latest", "2")
	arrived, late, answered := make(chan struct{}), make(chan struct{}), make(chan int, 1)
	w.u.Way.Proxy.Hook(rig.Hooks{
		Before: func(c rig.Call) error {
			if c.Verb == "patch" && c.Resource == "deployments" && !c.Dry() {
				close(arrived)
				<-late
			}
			return nil
		},
		After: func(c rig.Call) error {
			if c.Verb == "patch" && c.Resource == "deployments" && !c.Dry() {
				answered <- c.Status
			}
			return nil
		},
	})
	old := w.u.Start("run", "--once")
	select {
	case <-arrived:
	case <-time.After(rig.Patience):
		t.Fatal("no patch")
	}
	old.Kill()
	other := w.u.Replica()
	other.Run("run", "--once")
	w.asItWas()
	generation := w.Get(w.which).Generation
	close(late)
	select {
	case status := <-answered:
		require.Contains(t, []int{409, 422}, status)
	case <-time.After(rig.Patience):
		t.Fatal("the late patch was not answered")
	}
	require.Equal(t, generation, w.Get(w.which).Generation)
	w.asItWas()
}

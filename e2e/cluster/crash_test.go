package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// steps are enough to come to the end of an update, good or bad: the journal is
// written before each step, and twice at the end.
const steps = 10

// everywhere runs a test before each step of a good and of a bad update, and after
// it at every other of each.
func everywhere(t *testing.T, f func(t *testing.T, where at, bad bool)) {
	for n := 1; n <= steps; n++ {
		for _, after := range []bool{false, true} {
			for _, bad := range []bool{false, true} {
				if after && bad == (n%2 == 0) {
					continue
				}
				where := at{n, after}
				t.Run(fmt.Sprintf("%v of a bad update %v", where, bad), func(t *testing.T) {
					t.Parallel()
					f(t, where, bad)
				})
			}
		}
	}
}

// next publishes a good or a bad image.
func (w *workload) next(bad bool) (digest string) {
	w.t.Helper()
	if bad {
		return w.Crashing("web:latest", "2")
	}
	return w.Good("web:latest", "2")
}

// ends requires that an update to this digest has ended well, or in the way back.
func (w *workload) ends(bad bool, digest string) {
	w.t.Helper()
	if bad {
		w.asItWas()
		return
	}
	w.updated(digest)
}

// TestKilled kills updaterd at every call that changes something, and lets another
// replica, which comes by another way, take over.
func TestKilled(t *testing.T) {
	everywhere(t, func(t *testing.T, where at, bad bool) {
		w := newWorkload(t, "deployment", rig.Spec{Replicas: 2})
		digest := w.next(bad)
		victim := make(chan *stage.Daemon, 1)
		w.u.Way.Proxy.Hook(where.once(func(rig.Call) error {
			(<-victim).Kill()
			return nil
		}))
		d := w.u.Start("run", "--once")
		victim <- d
		select {
		case <-d.Done():
		case <-time.After(rig.Patience):
			t.Fatal("updaterd neither ended nor made the call")
		}
		other := w.u.Replica()
		other.Run("run", "--once")
		w.ends(bad, digest)
		verdict := "good"
		if bad {
			verdict = "bad"
		}
		require.Equal(t, verdict, other.History()[0].Verdict)
	})
}

// TestServerRestartsInARollout: an API server that goes and comes back is no
// verdict on an image.
func TestServerRestartsInARollout(t *testing.T) {
	t.Parallel()
	w := newWorkloadIn(t, rig.Own(t).NewSpace(t), "deployment", rig.Spec{Replicas: 2})
	// It takes a while on a busy machine until all components have found the API
	// server again.
	w.u = w.Updaterd(strings.Replace(rig.Settings, "timeout: 10s", "timeout: 60s", 1))
	d := w.u.Start()
	digest := w.Push("web:latest", stage.Image{Version: "2", Behave: stage.Behaviour{ListenAfter: 3 * time.Second}})
	d.WaitLog("phase=judging", rig.Patience)
	w.KillServer()
	require.NoError(t, w.StartServer(t.Context()))
	d.WaitLog("phase=committed", rig.Patience)
	w.updated(digest)
}

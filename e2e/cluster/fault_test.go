package cluster

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
)

// TestFaults: what an API server may answer at any write, although it has not done
// it, or has.
func TestFaults(t *testing.T) {
	for name, fault := range map[string]error{
		"429":                  &rig.Refusal{Code: 429, RetryAfter: 1},
		"409":                  &rig.Refusal{Code: 409},
		"500":                  &rig.Refusal{Code: 500},
		"503":                  &rig.Refusal{Code: 503},
		"no answer":            rig.ErrDrop,
		"504, and it was done": &rig.Refusal{Code: 504},
	} {
		for n := 1; n <= steps; n++ {
			for _, bad := range []bool{false, true} {
				// Each fault at half of the steps, and both with each.
				if bad == (n%2 == 0) {
					continue
				}
				t.Run(fmt.Sprintf("%s at write %d of a bad update %v", name, n, bad), func(t *testing.T) {
					t.Parallel()
					w := newWorkload(t, "deployment", rig.Spec{})
					digest := w.next(bad)
					where := at{n, name == "504, and it was done" || name == "no answer"}
					w.u.Way.Proxy.Hook(where.once(func(rig.Call) error { return fault }))
					w.u.Run("run", "--once")
					w.u.Run("run", "--once") // One that was broken off is taken up again.
					if last := w.u.History()[0]; !bad && last.Verdict == "unclear" {
						// It gave up, and comes again in an hour; the image is not to blame.
						w.asItWas()
						require.Equal(t, "surroundings", w.u.Check(w.which, 1).Reason)
						return
					}
					w.ends(bad, digest)
				})
			}
		}
	}
}

// TestReadFaults: while the API server cannot be asked, nothing is decided.
func TestReadFaults(t *testing.T) {
	t.Parallel()
	w := newWorkload(t, "deployment", rig.Spec{})
	w.Good("web:latest", "2")
	w.u.Way.Proxy.Hook(rig.Hooks{Before: func(c rig.Call) error {
		if c.Resource == "deployments" {
			return &rig.Refusal{Code: 503}
		}
		return nil
	}})
	r := w.u.Run("check")
	require.Equal(t, 1, r.Code)
	w.untouched()
}

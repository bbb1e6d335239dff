package kube

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/updaterd/updaterd/internal/updater"
)

const theLease = "leases/updaterd/updaterd-prod"

// leader leads in the background until stop, which returns what Lead did.
func leader(t *testing.T, s *State) (leading <-chan context.Context, stop func() error) {
	t.Helper()
	began, end, ended := make(chan context.Context, 1), make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- s.Lead(ctx, func(ctx context.Context, _ updater.Journal) error {
			began <- ctx
			select {
			case <-ctx.Done():
			case <-end:
			}
			return nil
		})
	}()
	return began, func() error {
		cancel()
		close(end)
		return <-ended
	}
}

func TestTheLeadGoesOverAtOnceWhenItIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		first, stop := leader(t, api.state(t, StateOptions{Wait: -1}))
		<-first
		second, stopSecond := leader(t, api.state(t, StateOptions{Wait: -1}))
		time.Sleep(time.Hour)
		require.Empty(t, second, "one leads at a time")
		require.NoError(t, stop())
		time.Sleep(3 * time.Second)
		require.Len(t, second, 1)
		require.NoError(t, stopSecond())
	})
}

func TestADeadHolderIsWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		// As a process leaves it that was killed.
		l := &lease{client: api.client(t), namespace: "updaterd", name: "updaterd-prod", who: "dead", log: discard()}
		require.NoError(t, l.acquire(t.Context(), -1))
		began := time.Now()
		require.NoError(t, api.state(t, StateOptions{Wait: time.Minute}).Lead(t.Context(), func(context.Context, updater.Journal) error { return nil }))
		require.InDelta(t, 16, time.Since(began).Seconds(), 2)
	})
}

func TestALivingHolderIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		first, stop := leader(t, api.state(t, StateOptions{Wait: -1}))
		<-first
		began := time.Now()
		err := api.state(t, StateOptions{Wait: time.Minute}).Lead(t.Context(), nil)
		require.ErrorIs(t, err, updater.ErrLed)
		require.ErrorContains(t, err, identity()[:len(identity())-9]+"_")
		require.ErrorContains(t, err, "holds the lease updaterd/updaterd-prod")
		require.InDelta(t, 60, time.Since(began).Seconds(), 3)

		began = time.Now()
		require.ErrorIs(t, api.state(t, StateOptions{Wait: 0}).Lead(t.Context(), nil), updater.ErrLed)
		require.Zero(t, time.Since(began), "--lease-wait 0 waits for nobody")
		require.NoError(t, stop())
	})
}

func TestAStandbyThatIsToldToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		first, stop := leader(t, api.state(t, StateOptions{Wait: -1}))
		<-first
		_, stopSecond := leader(t, api.state(t, StateOptions{Wait: -1}))
		time.Sleep(time.Minute)
		require.ErrorIs(t, stopSecond(), context.Canceled)
		require.NoError(t, stop())
	})
}

// TestTheLeadIsLostBeforeAnybodyElseMayTakeIt, whatever the API server does.
func TestTheLeadIsLostBeforeAnybodyElseMayTakeIt(t *testing.T) {
	for name, happen := range map[string]func(*store){
		"the API server is away":     func(api *store) { api.set(unreachable) },
		"it refuses every renewal":   func(api *store) { api.set(func(string, string) (int, error) { return 500, nil }) },
		"the right is taken away":    func(api *store) { api.set(func(string, string) (int, error) { return 403, nil }) },
		"somebody deletes the lease": func(api *store) { api.remove(theLease) },
		"somebody gives it to others": func(api *store) {
			api.change(theLease, func(o runtime.Object) { other := "other"; o.(*coordinationv1.Lease).Spec.HolderIdentity = &other })
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newStore()
				leading, stop := leader(t, api.state(t, StateOptions{Wait: -1}))
				lead := <-leading
				time.Sleep(time.Minute + time.Second)
				require.NoError(t, lead.Err())
				happen(api)
				began := time.Now()
				<-lead.Done()
				require.Less(t, time.Since(began), leaseFor)
				api.set(nil)
				require.ErrorIs(t, stop(), updater.ErrLost)
			})
		})
	}
}

func TestTheLeadOutlastsTroubleThatIsShort(t *testing.T) {
	for name, happen := range map[string]func(*store){
		"the API server is restarted": func(api *store) {
			api.set(unreachable)
			time.AfterFunc(5*time.Second, func() { api.set(nil) })
		},
		"somebody labels the lease": func(api *store) {
			api.change(theLease, func(o runtime.Object) { o.(*coordinationv1.Lease).Labels["a"] = "b" })
		},
		"every answer but one is 429": func(api *store) {
			var n atomic.Int32
			api.set(func(string, string) (int, error) {
				if n.Add(1)%2 == 0 {
					return 429, nil
				}
				return 0, nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := newStore()
				leading, stop := leader(t, api.state(t, StateOptions{Wait: -1}))
				lead := <-leading
				time.Sleep(time.Minute + time.Second)
				happen(api)
				time.Sleep(time.Minute)
				require.NoError(t, lead.Err())
				require.NoError(t, stop())
			})
		})
	}
}

// TestAnAPIServerThatIsAwayIsWaitedFor by a daemon; --once gives up and says why.
func TestAnAPIServerThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		api.set(unreachable)
		leading, stop := leader(t, api.state(t, StateOptions{Wait: -1}))
		time.Sleep(time.Hour)
		require.Empty(t, leading)
		require.ErrorContains(t, api.state(t, StateOptions{Wait: time.Minute}).Lead(t.Context(), nil), "connection refused")
		api.set(nil)
		time.Sleep(5 * time.Second)
		require.Len(t, leading, 1)
		require.NoError(t, stop())
	})
}

func TestAPersonIsToldWhichRightALeaseNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		api.set(func(string, string) (int, error) { return 403, nil })
		began := time.Now()
		err := api.state(t, StateOptions{Wait: time.Minute}).Lead(t.Context(), nil)
		require.Zero(t, time.Since(began), "waiting grants nothing")
		require.ErrorContains(t, err, "lease updaterd/updaterd-prod")
		require.ErrorContains(t, err, "configs/kubernetes has the role")
	})
}

// TestASteadyLeaderOnlyRenews: reading its journal costs no request.
func TestASteadyLeaderOnlyRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		s := api.state(t, StateOptions{Wait: -1})
		require.NoError(t, s.Journal().Note(t.Context(), updater.Entry{Workload: "prod/shop/deployment/web/app", At: time.Now()}))
		require.NoError(t, s.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			time.Sleep(5 * time.Second)
			api.asked()
			for range 10 {
				time.Sleep(15 * time.Second)
				_, err := j.Open(ctx)
				require.NoError(t, err)
				_, err = j.Recall(ctx)
				require.NoError(t, err)
				entries, err := j.History(ctx, 0)
				require.NoError(t, err)
				require.Len(t, entries, 1)
			}
			for _, request := range api.asked() {
				require.Equal(t, "PUT leases", request)
			}
			return nil
		}))
	})
}

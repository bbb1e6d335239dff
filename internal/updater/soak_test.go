package updater_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
)

// A daemon lives for months: what a pass leaves behind adds up.
func TestAThousandPassesLeaveNothingBehind(t *testing.T) {
	const warmUp, passes, containers = 100, 1000, 100
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		w.host.Remove("web")
		for i := range containers {
			ref := fmt.Sprintf("app-%d:1", i/2)
			w.host.Run(fmt.Sprintf("app-%d", i), ref, oldDigest, "always")
			w.registry.Publish(ref, oldDigest)
		}
		w.registry.Fail("app-7:1", errors.New("no answer"))
		u, _ := w.process(0)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()

		// left is what there is between two passes.
		left := func() (heap uint64, goroutines int) {
			synctest.Wait()
			var m runtime.MemStats
			runtime.GC()
			runtime.GC() // for what the first one finalized
			runtime.ReadMemStats(&m)
			return m.HeapAlloc, runtime.NumGoroutine()
		}
		time.Sleep(warmUp*time.Minute + time.Second)
		heap, goroutines := left()
		asked := w.registry.Asked()
		time.Sleep(passes * time.Minute)
		heapLater, goroutinesLater := left()
		require.Equal(t, asked/(warmUp+1)*passes, w.registry.Asked()-asked, "passes were made")
		require.Equal(t, goroutines, goroutinesLater, "goroutines after %d passes more", passes)
		// A hundred bytes a pass would be 100 kB.
		require.InDelta(t, float64(heap), float64(heapLater), 50e3, "heap after %d passes more", passes)
		t.Logf("heap %d bytes after %d passes, %+d after %d more; %d goroutines", heap, warmUp+1, int64(heapLater)-int64(heap), passes, goroutines)

		stop()
		require.NoError(t, <-ended)
	})
}

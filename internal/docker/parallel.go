package docker

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// lookers is how many reads an engine is asked to answer at a time.
const lookers = 8

// inParallel calls f for each key, a few at a time, and returns the results in
// the order of the keys. The first error stops it.
func inParallel[K, V any](ctx context.Context, keys []K, f func(context.Context, K) (V, error)) ([]V, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lookers)
	values := make([]V, len(keys))
	for i, k := range keys {
		g.Go(func() error {
			v, err := f(ctx, k)
			values[i] = v
			return err
		})
	}
	return values, g.Wait()
}

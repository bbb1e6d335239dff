package registry

import (
	"context"
	"sync"
)

// memo remembers answers by question, and lets callers who ask the same thing
// at the same time share one asking.
type memo[K comparable, V any] struct {
	max int // most answers kept; 0: no limit

	mu    sync.Mutex
	calls map[K]*call[V]
}

type call[V any] struct {
	done chan struct{} // closed once the fields below are set
	v    V
	err  error
	// gone says that the caller who asked gave up, which is no answer for the
	// others.
	gone bool
}

// do returns the remembered answer to k if good says that it still holds, and
// asks otherwise. Only one caller asks; the others wait for its answer, or for
// their own context.
func (m *memo[K, V]) do(ctx context.Context, k K, good func(V, error) bool, ask func(context.Context) (V, error)) (V, error) {
	for {
		m.mu.Lock()
		c := m.calls[k]
		if c != nil {
			select {
			case <-c.done:
				if c.gone || !good(c.v, c.err) {
					c = nil
				}
			default:
			}
		}
		if c == nil {
			c = &call[V]{done: make(chan struct{})}
			m.put(k, c)
			m.mu.Unlock()
			c.v, c.err = ask(ctx)
			c.gone = ctx.Err() != nil && c.err != nil
			close(c.done)
			return c.v, c.err
		}
		m.mu.Unlock()
		select {
		case <-c.done:
			if !c.gone {
				return c.v, c.err
			}
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
	}
}

// put stores c and keeps within max by dropping any answers that are in: what
// was dropped is only asked again.
func (m *memo[K, V]) put(k K, c *call[V]) {
	if m.calls == nil {
		m.calls = map[K]*call[V]{}
	}
	if m.max > 0 && len(m.calls) >= m.max {
		for other, o := range m.calls {
			select {
			case <-o.done:
				delete(m.calls, other)
			default:
				continue
			}
			if len(m.calls) < m.max {
				break
			}
		}
	}
	m.calls[k] = c
}

// forget drops the answers that are in and that stale says are of no more use.
// Callers who wait for one get it all the same.
func (m *memo[K, V]) forget(stale func(V, error) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, c := range m.calls {
		select {
		case <-c.done:
			if stale(c.v, c.err) {
				delete(m.calls, k)
			}
		default:
		}
	}
}

// drop forgets the answer to k if it is in and which says it is the one meant.
func (m *memo[K, V]) drop(k K, which func(V) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.calls[k]; c != nil {
		select {
		case <-c.done:
			if which(c.v) {
				delete(m.calls, k)
			}
		default:
		}
	}
}

package updater

import (
	"context"
	"sync"
)

// crowd is the changes under way in a process, in all its places. Many may be
// at once, or one that must be alone.
type crowd struct {
	mu     sync.Mutex
	inside int
	alone  bool // the one inside is to be alone
	// begun are those that must be alone, were begun by an earlier process, and
	// wait: until their end nothing new begins.
	begun int
	left  chan struct{} // closed when somebody has left; nil while nobody waits
}

// enter says that a change wants to be under way, and returns what waits for
// its turn: false when ctx ended first. What was begun before goes first. A new
// one that must be alone holds up nobody while it waits, or else a change that
// cannot be ended would hold up all.
func (c *crowd) enter(alone, resumed bool) (wait func(ctx context.Context) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admit(alone, resumed) {
		return func(context.Context) bool { return true }
	}
	if alone && resumed {
		c.begun++
	}
	return func(ctx context.Context) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if alone && resumed {
			defer func() { c.begun-- }()
		}
		for !c.admit(alone, resumed) {
			if c.left == nil {
				c.left = make(chan struct{})
			}
			left := c.left
			c.mu.Unlock()
			select {
			case <-left:
			case <-ctx.Done():
			}
			c.mu.Lock()
			if ctx.Err() != nil {
				return false
			}
		}
		return true
	}
}

func (c *crowd) admit(alone, resumed bool) bool {
	switch {
	case c.alone, alone && c.inside > 0, !alone && !resumed && c.begun > 0:
		return false
	}
	c.inside++
	c.alone = alone
	return true
}

// leave ends what enter began.
func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside--
	c.alone = false
	if c.left != nil {
		close(c.left)
		c.left = nil
	}
}

package updater

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCrowd plays who may be under way beside whom.
func TestCrowd(t *testing.T) {
	const alone, resumed = true, true
	// entering says whether a change gets in within a minute; it waits for an hour.
	entering := func(c *crowd, alone, resumed bool) func() bool {
		got := make(chan bool, 1)
		turn := c.enter(alone, resumed)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			got <- turn(ctx)
		}()
		return func() bool {
			select {
			case in := <-got:
				return in
			case <-time.After(time.Minute):
				return false
			}
		}
	}
	play := func(name string, f func(t *testing.T, c *crowd)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f(t, &crowd{})
				time.Sleep(2 * time.Hour) // whoever still waits gives up
			})
		})
	}
	play("many at once, and one alone when they have left", func(t *testing.T, c *crowd) {
		require.True(t, entering(c, false, false)())
		require.True(t, entering(c, false, resumed)())
		lonely := entering(c, alone, false)
		require.False(t, lonely())
		c.leave()
		require.False(t, lonely())
		c.leave()
		require.True(t, lonely())
		other := entering(c, false, false)
		require.False(t, other(), "not beside it")
		require.False(t, entering(c, false, resumed)(), "whoever it is")
		c.leave()
		require.True(t, other())
	})
	play("a new one that must be alone holds up nobody", func(t *testing.T, c *crowd) {
		require.True(t, entering(c, false, false)())
		require.False(t, entering(c, alone, false)())
		require.True(t, entering(c, false, false)())
	})
	play("one that was begun before holds up what is new, and nothing else", func(t *testing.T, c *crowd) {
		require.True(t, entering(c, false, resumed)())
		lonely := entering(c, alone, resumed)
		require.False(t, lonely())
		late := entering(c, false, false)
		require.False(t, late())
		require.True(t, entering(c, false, resumed)())
		c.leave()
		c.leave()
		require.True(t, lonely())
		require.False(t, late())
		c.leave()
		require.True(t, late())
	})
	play("one that gives up is in nobody's way", func(t *testing.T, c *crowd) {
		require.True(t, entering(c, false, resumed)())
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		require.False(t, c.enter(alone, resumed)(ctx))
		require.True(t, entering(c, false, false)())
	})
}

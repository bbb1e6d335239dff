package docker

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDropLeavesATagThatComesMeanwhile: an engine that is asked to remove an
// image by its id takes its only tag along, whosever that is.
func TestDropLeavesATagThatComesMeanwhile(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	r.image(t, "app", command("serve"))
	r.pull(t, "app")
	id, theirs := r.local(t, "app"), r.repo+"-theirs:1"
	r.image(t, "app", command("serve", "new"))
	r.pull(t, "app") // which takes the tag from the first
	came := false
	f := func(call string, done bool) error {
		if strings.HasPrefix(call, "DELETE ") && !done && !came {
			came = true
			require.NoError(t, r.cli.ImageTag(t.Context(), id, theirs))
		}
		return nil
	}
	r.fail.Store(&f)
	require.NoError(t, h.drop(t.Context(), id))
	r.fail.Store(nil)
	require.True(t, came)
	img, err := h.imageOf(t.Context(), theirs)
	require.NoError(t, err)
	require.NotNil(t, img, "their tag has gone")
}

package docker

import (
	"bytes"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// TestDropLeavesATagThatComesMeanwhile: an engine that is asked to remove an
// image by its id takes its only tag along, whosever that is.
func TestDropLeavesATagThatComesMeanwhile(t *testing.T) {
	r := newRig(t)
	if isDocker29Run() || isPodmanRun() {
		doesNotApply(t, "this engine removes an image with all its names, also by its digest, so one that comes in the same moment goes along")
	}
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

// TestAnImageThatNoRegistryGaveIsLocal, whatever digests the engine gives it: a
// registry may know another image by its name.
func TestAnImageThatNoRegistryGaveIsLocal(t *testing.T) {
	r := newRig(t)
	r.image(t, "pulled", command("serve"))
	r.pull(t, "pulled")
	r.image(t, "loaded", command("serve", "loaded"))
	loaded, err := name.NewTag(r.repo + ":loaded")
	require.NoError(t, err)
	var archive bytes.Buffer
	require.NoError(t, tarball.Write(loaded, r.images["loaded"], &archive))
	answer, err := r.cli.ImageLoad(t.Context(), &archive)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, answer.Body)
	require.NoError(t, errors.Join(err, answer.Body.Close()))
	other := r.repo + "-other:1"
	require.NoError(t, r.cli.ImageTag(t.Context(), r.repo+":pulled", other))
	refs := map[string]bool{r.repo + ":pulled": false, r.repo + ":loaded": true, other: true}
	if isDocker29Run() { // it tells what was pulled, pushed or built, and of any other nothing
		refs[r.repo+":loaded"] = false
	}
	if isPodmanRun() { // it only tells by the name
		own := "localhost/" + r.prefix + ":1"
		require.NoError(t, r.cli.ImageTag(t.Context(), r.repo+":loaded", own))
		refs = map[string]bool{r.repo + ":pulled": false, own: true}
	}
	for ref, local := range refs {
		r.run(t, path.Base(strings.ReplaceAll(ref, ":", "-")), ref, nil)
		all, err := r.backend(t).Workloads(t.Context())
		require.NoError(t, err)
		i := slices.IndexFunc(all, func(w updater.Workload) bool { return w.Image == ref })
		require.GreaterOrEqual(t, i, 0, ref)
		if local {
			require.NotNil(t, all[i].Skip, ref)
			require.Equal(t, updater.LocalImage, all[i].Skip.Reason, ref)
		} else {
			require.Nil(t, all[i].Skip, ref)
		}
	}
}

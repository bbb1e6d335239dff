package kube

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestWhatIsToldOfAChange(t *testing.T) {
	of := func(phase updater.Phase, edit func(*updater.Change)) updater.Change {
		c := changeOf("c-1", app, phase)
		c.Ended = time.Now()
		if edit != nil {
			edit(&c)
		}
		return c
	}
	bad := func(why string) func(*updater.Change) {
		return func(c *updater.Change) { c.Verdict, c.Why, c.Logs = updater.Bad, why, "password=hunter2" }
	}
	for name, tt := range map[string]struct {
		change updater.Change
		want   []string // reason and message
	}{
		"it begins":        {of(updater.Preparing, nil), []string{"UpdateStarted app goes from app:1@sha256:1 to app:2@sha256:2"}},
		"it is under way":  {of(updater.Judging, nil), nil},
		"it goes back":     {of(updater.Restoring, bad("it exited with code 1")), nil},
		"it is good":       {of(updater.Committed, nil), []string{"UpdateCommitted app runs app:2@sha256:2: healthy"}},
		"it was put back":  {of(updater.Restored, func(c *updater.Change) { c.Verdict, c.Why = updater.Unclear, "no node has room" }), []string{"UpdateRestored put back as it was, because no node has room"}},
		"the image is bad": {of(updater.Restored, bad("it exited with code 1")), []string{"UpdateRestored put back as it was, because it exited with code 1", "UpdateRejected app:2@sha256:2 is not tried here again, because it exited with code 1; lift that with: updaterd forget " + app}},
		"a program is quoted": {of(updater.Restored, bad("health.test failed with exit code 1: password=hunter2")), []string{"UpdateRestored put back as it was, because health.test failed with exit code 1",
			"UpdateRejected app:2@sha256:2 is not tried here again, because health.test failed with exit code 1; lift that with: updaterd forget " + app}},
		"a pod is named": {of(updater.Restored, func(c *updater.Change) {
			c.Verdict, c.Why = updater.Unclear, app+": pod web-1: it cannot be started: password=hunter2"
		}), []string{"UpdateRestored put back as it was, because pod web-1: it cannot be started"}},
		"a pod is named after what was waited for": {of(updater.Restored, func(c *updater.Change) {
			c.Verdict, c.Why = updater.Unclear, app+": 1 old pod is still there, for 20s: pod web-1: its image cannot be pulled: ErrImagePull: password=hunter2"
		}), []string{"UpdateRestored put back as it was, because 1 old pod is still there, for 20s: pod web-1: its image cannot be pulled"}},
		"a program speaks of a pod": {of(updater.Restored, func(c *updater.Change) {
			c.Verdict, c.Why = updater.Unclear, app+": health.test failed with exit code 1: pod hunter2"
		}), []string{"UpdateRestored put back as it was, because health.test failed with exit code 1"}},
		"a part is named": {of(updater.Restored, func(c *updater.Change) {
			c.Verdict, c.Why = updater.Unclear, app+": no node has room\npassword=hunter2"
		}), []string{"UpdateRestored put back as it was, because no node has room"}},
		"neither side": {of(updater.Failed, nil), []string{"UpdateFailed neither healthy on the new image nor as healthy as it was, look at it now"}},
		"it was refused": {of(updater.Refused, func(c *updater.Change) {
			c.Verdict, c.Reason, c.Why = updater.Unclear, updater.Unsupported, "the API server would not take the new image"
		}), []string{"UpdateRefused nothing was changed, because the API server would not take the new image"}},
		"it was broken off": {of(updater.Refused, func(c *updater.Change) { c.Why = "broken off before anything was stopped" }), nil},
		"it is the same":    {of(updater.Refused, func(c *updater.Change) { c.Reason = updater.UpToDate }), nil},
		"it was taken over": {of(updater.Superseded, nil), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, a := range announcements(tt.change) {
				require.NotContains(t, a.message, "hunter2")
				got = append(got, a.reason+" "+a.message)
			}
			require.Equal(t, tt.want, got)
		})
	}
}

// TestAnEventIsToldOnce, on the workload itself, and nothing depends on it.
func TestAnEventIsToldOnce(t *testing.T) {
	api := newStore()
	require.NoError(t, api.state(t, StateOptions{}).Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
		c := changeOf("c-1", app, updater.Committed)
		for range 2 {
			require.NoError(t, j.Save(ctx, c))
		}
		api.set(func(_, resource string) (int, error) {
			if resource == "events" {
				return 403, nil
			}
			return 0, nil
		})
		require.NoError(t, j.Save(ctx, changeOf("c-2", app, updater.Preparing)))
		return nil
	}))
	keys := api.keys("events")
	require.Len(t, keys, 1)
	require.True(t, strings.HasPrefix(keys[0], "events/shop/web."))
	event := api.object(keys[0]).(*corev1.Event)
	require.Equal(t, corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "shop", Name: "web", UID: "u-1"}, event.InvolvedObject)
	require.Equal(t, "UpdateCommitted", event.Reason)
}

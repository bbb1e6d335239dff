package updater_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/updater"
)

func TestAPushConcernsWhoFollowsIt(t *testing.T) {
	for _, row := range []struct {
		name, image, policy, pushed string
		concerns                    bool
	}{
		{"its own tag", "ghcr.io/acme/web:1.4", "digest", "ghcr.io/acme/web:1.4", true},
		{"another tag, where the tag stays", "ghcr.io/acme/web:1.4", "digest", "ghcr.io/acme/web:1.5", false},
		{"another tag, where it may move", "ghcr.io/acme/web:1.4", "minor", "ghcr.io/acme/web:1.5", true},
		{"another repository", "ghcr.io/acme/web:1.4", "minor", "ghcr.io/acme/api:1.5", false},
		{"another registry", "ghcr.io/acme/web:1.4", "minor", "quay.io/acme/web:1.5", false},
		{"a name as Docker shortens it", "nginx", "digest", "docker.io/library/nginx:latest", true},
		{"a digest beside the tag", "nginx:1@" + oldDigest, "digest", "docker.io/library/nginx:1", true},
		{"no tag", "nginx", "digest", "docker.io/library/nginx", false},
		{"nonsense", "nginx", "digest", "::", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, backendtest.Good)
				w.host = backendtest.NewHost()
				w.host.Image(oldDigest, backendtest.Good)
				w.host.Run("web", row.image, oldDigest, "always")
				w.settings.Policy = policy.Spec{Policy: row.policy}
				u, _ := w.process(0)
				ids, err := u.Announced(t.Context(), []string{row.pushed})
				require.NoError(t, err)
				if row.concerns {
					require.Equal(t, []string{"local/web"}, ids)
				} else {
					require.Empty(t, ids)
				}
				w.settings.Enabled = false
				ids, err = u.Announced(t.Context(), []string{row.pushed})
				require.NoError(t, err)
				require.Empty(t, ids, "nobody watches it")
			})
		})
	}
}

func TestAPushIsLookedAtAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		w.host.Run("other", "other:1", oldDigest, "always")
		w.registry.Publish("web:1", oldDigest)
		w.registry.Publish("other:1", oldDigest)
		seen := &watcher{}
		rules := w.rules()
		rules.Observer, rules.Schedule = seen, cron.Every(24*time.Hour)
		u := updater.New([]updater.Place{{
			Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: &backendtest.State{Disk: w.disk},
		}}, rules, discard())
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		time.Sleep(time.Minute)
		require.Empty(t, w.history(), "the first pass finds nothing")

		w.registry.Publish("web:1", newDigest)
		w.registry.Publish("other:1", newDigest)
		ids, err := u.Announced(ctx, []string{"docker.io/library/unknown:1"})
		require.NoError(t, err)
		require.Empty(t, ids)
		time.Sleep(time.Minute)
		require.Empty(t, w.history(), "what nobody watches is no reason to look")
		_, err = u.Announced(ctx, []string{"docker.io/library/web:1"})
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Equal(t, []updater.Event{updater.EventUpdated}, w.history(), "that one, and not the other")
		seen.mu.Lock()
		require.Len(t, seen.passes, 2)
		require.True(t, seen.passes[1].Part)
		seen.mu.Unlock()
		cancel()
		require.NoError(t, <-ended)
	})
}

// mute is a backend that cannot be asked.
type mute struct{ updater.Backend }

func (mute) Name() string { return "mute" }

func (mute) Workloads(context.Context) ([]updater.Workload, error) {
	return nil, errors.New("connection refused")
}

func TestAPushBesideABackendThatCannotBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		u := updater.New([]updater.Place{
			{Backend: mute{}, State: &backendtest.State{Disk: &backendtest.Disk{}}},
			{Backend: &backendtest.Process{Host: w.host, ID: "local"}, State: &backendtest.State{Disk: w.disk}},
		}, w.rules(), discard())
		ids, err := u.Announced(t.Context(), []string{"docker.io/library/web:1"})
		require.ErrorContains(t, err, "mute cannot be asked")
		require.Equal(t, []string{"local/web"}, ids)
	})
}

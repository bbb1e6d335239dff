package backendtest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

func TestMemoryBackend(t *testing.T) {
	host := backendtest.NewHost()
	host.Image("sha256:old", backendtest.Good)
	var step func(string, bool) error
	look := func(name string) string {
		for _, c := range host.Containers() {
			if c.Name == name {
				c.ID, c.Begun = "", 0
				return fmt.Sprintf("%+v", c)
			}
		}
		return ""
	}
	backendtest.Run(t, backendtest.Harness{
		Backend: func(*testing.T) updater.Backend {
			return &backendtest.Process{Host: host, ID: "local", Step: func(what string, done bool) error {
				if step == nil {
					return nil
				}
				return step(what, done)
			}}
		},
		Start: func(t *testing.T, name string, to backendtest.Behaviour) updater.Change {
			digest := "sha256:" + string(to)
			host.Image(digest, to)
			host.Run(name, "web:1", "sha256:old", "always")
			return updater.Change{
				ID: name + "-1", Backend: "local", Unit: "local/" + name, Phase: updater.Preparing, Since: time.Now(),
				Parts: []updater.Part{{Workload: "local/" + name, Replace: true, To: updater.Image{Ref: "web:1", Digest: digest}}},
			}
		},
		StartGroup: func(t *testing.T, name string, to map[string]backendtest.Behaviour) updater.Change {
			host.Run(name, "web:1", "sha256:old", "always")
			host.Run(name+"-a", "web:1", "sha256:old", "always", name)
			host.Run(name+"-b", "web:1", "sha256:old", "no", name)
			c := updater.Change{ID: name + "-1", Backend: "local", Phase: updater.Preparing, Since: time.Now()}
			for _, n := range slices.Sorted(maps.Keys(to)) {
				digest := "sha256:" + string(to[n])
				host.Image(digest, to[n])
				c.Parts = append(c.Parts, updater.Part{Workload: "local/" + n, Replace: true,
					From: updater.Image{Ref: "web:1", Digest: "sha256:old"}, To: updater.Image{Ref: "web:1", Digest: digest}})
			}
			c.Unit = c.Parts[0].Workload
			return c
		},
		Stop: func(t *testing.T, name string) { host.Stop(name) },
		Look: func(t *testing.T, name string) string { return look(name) },
		Leftovers: func(t *testing.T, name string) (left []string) {
			for _, c := range host.Containers() {
				if strings.HasPrefix(c.Name, name+".") {
					left = append(left, c.Name)
				}
			}
			return left
		},
		Remove: func(t *testing.T, name string) { host.Remove(name) },
		Replace: func(t *testing.T, name string) {
			host.Remove(name)
			host.Run(name, "theirs:1", "sha256:old", "no")
		},
		Fail: func(n int, done bool) func() bool {
			calls := 0
			struck := false
			step = func(what string, after bool) error {
				if after != done {
					return nil
				}
				if calls++; calls == n {
					struck = true
					return errors.New("made to fail: " + what)
				}
				return nil
			}
			return func() bool { return struck }
		},
	})
}

func TestMemoryJournal(t *testing.T) {
	backendtest.RunJournal(t, func(*testing.T) updater.Journal {
		return &backendtest.State{Disk: &backendtest.Disk{}}
	})
}

func TestMemoryStateIsLedByOne(t *testing.T) {
	disk := &backendtest.Disk{}
	first, second := &backendtest.State{Disk: disk}, &backendtest.State{Disk: disk}
	lead := func(context.Context, updater.Journal) error { return nil }
	require.NoError(t, first.Lead(t.Context(), func(ctx context.Context, _ updater.Journal) error {
		require.ErrorIs(t, second.Lead(ctx, lead), updater.ErrLed)
		return nil
	}))
	require.NoError(t, second.Lead(t.Context(), lead))
}

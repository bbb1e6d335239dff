package docker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestImagesAreAskedForUntilNoneGoesMeanwhile(t *testing.T) {
	went := fmt.Errorf(`retrieving parent of image "a": locating image with ID "b": image not known: %w`, cerrdefs.ErrInternal)
	pulled := fmt.Errorf(`locating item named "manifest" for image with ID "b": file does not exist: %w`, cerrdefs.ErrInternal)
	for name, row := range map[string]struct {
		answers []error // the last one again and again
		asked   int
		want    error
	}{
		"at once":                       {[]error{nil}, 1, nil},
		"one went":                      {[]error{went, nil}, 2, nil},
		"two went":                      {[]error{went, went, nil}, 3, nil},
		"one is being pulled":           {[]error{pulled, nil}, 2, nil},
		"they go on and on":             {[]error{went}, mostAsks, went},
		"it is the one that is not":     {[]error{cerrdefs.ErrNotFound}, 1, cerrdefs.ErrNotFound},
		"the engine has another reason": {[]error{cerrdefs.ErrInternal, nil}, 1, cerrdefs.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				err := steadily(t.Context(), func() error {
					asked++
					return row.answers[min(asked, len(row.answers))-1]
				})
				require.Equal(t, row.want, err)
				require.Equal(t, row.asked, asked)
			})
		})
	}
	t.Run("nobody waits for it any more", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		asked := 0
		require.ErrorIs(t, steadily(ctx, func() error { asked++; return went }), went)
		require.Equal(t, 1, asked)
	})
}

func TestWhatPodmanIsAboutToStartAgain(t *testing.T) {
	for name, row := range map[string]struct {
		state  container.ContainerState
		policy container.RestartPolicyMode
		want   bool
	}{
		"its end has not been dealt with":        {"stopped", "always", true},
		"it failed, and is tried a few times":    {"stopped", "on-failure", true},
		"it ended for good":                      {"exited", "always", false},
		"it ends, and nobody starts it":          {"stopped", "no", false},
		"it ends, and nobody said who starts it": {"stopped", "", false},
		"it runs":                                {"running", "always", false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, row.want, loops(&box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
				State: &container.State{Status: row.state}, HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: row.policy}},
			}}}))
		})
	}
	require.Contains(t, notRunning(podmanEnding), "it is restarting")
}

func TestACrashLoopIsEnded(t *testing.T) {
	const stopped, running, exited = "stopped", "running", "exited"
	type state struct {
		status   container.ContainerState
		restarts int
	}
	looped := []state{{stopped, 1}, {stopped, 1}, {running, 2}, {stopped, 2}, {running, 3}}
	for name, row := range map[string]struct {
		seen  []state // the last one again and again
		stops int     // besides the first
		fails bool
	}{
		"the first stop found it running":        {[]state{{exited, 1}}, 0, false},
		"it is started again a few times":        {append(looped, state{exited, 3}), 5, false},
		"nobody starts it again":                 {[]state{{stopped, 1}}, 500, false},
		"no stop finds it running for long":      {[]state{{running, 1}}, 1500, true},
		"it goes while it is asked to stop":      {[]state{{stopped, 1}, {"", 0}}, 1, false},
		"it was found running, and is gone then": {[]state{{running, 1}, {"", 0}}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), stopSlack)
				defer cancel()
				looks, stops := 0, 0
				err := endLoop(ctx, func() (*box, error) {
					looks++
					s := row.seen[min(looks, len(row.seen))-1]
					if s.status == "" {
						return nil, nil
					}
					return &box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
						State: &container.State{Status: s.status, Running: s.status == running}, RestartCount: s.restarts,
						HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}},
					}}}, nil
				}, func() error { stops++; return nil })
				if row.fails {
					require.ErrorContains(t, err, "it is started again each time")
				} else {
					require.NoError(t, err)
				}
				require.InDelta(t, row.stops, stops, 1)
			})
		})
	}
}

func TestWhatGoesInTheMiddleOfAnAnswerIsGone(t *testing.T) {
	const went = "container abc does not exist in database: no such container"
	require.True(t, wentMeanwhile(fmt.Errorf("%s: %w", went, cerrdefs.ErrInternal)))
	require.False(t, wentMeanwhile(fmt.Errorf("database is locked: %w", cerrdefs.ErrInternal)))
	require.False(t, wentMeanwhile(fmt.Errorf("%s: %w", went, cerrdefs.ErrUnavailable)))
	require.False(t, wentMeanwhile(nil))
}

// TestAnAliasThatIsTheHostName is a person's on Podman, which adds none.
func TestAnAliasThatIsTheHostName(t *testing.T) {
	for podman, want := range map[bool][]string{true: {"web", "api"}, false: {"api"}} {
		r := recreation{api: "1.41", podman: podman, was: inspected{
			ID: "0123456789abcdef", Config: &container.Config{Hostname: "web"},
		}}
		got := r.settings(endpoint{name: "front", settings: &network.EndpointSettings{Aliases: []string{"0123456789ab", "web", "api"}}})
		require.Equal(t, want, got.Aliases)
	}
}

// TestWhatPodmanRemovesWithAContainer: to it a volume is anonymous for ever, so a
// new container with --rm would take what the old one wrote with it.
func TestWhatPodmanRemovesWithAContainer(t *testing.T) {
	const generated = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	for name, row := range map[string]struct {
		volume   string
		remove   bool
		onPodman bool
		refused  bool
	}{
		"an anonymous volume with --rm":    {generated, true, true, true},
		"a named volume with --rm":         {"data", true, true, false},
		"an anonymous volume without":      {generated, false, true, false},
		"an anonymous volume, --rm Docker": {generated, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := refuse(snapshot{
				Container: fmt.Appendf(nil, `{"Id":"abc","Name":"/web","Config":{"Image":"acme/web:1","Hostname":"web"},"HostConfig":{"NetworkMode":"none","AutoRemove":%t},
					"Mounts":[{"Type":"volume","Name":%q,"Destination":"/data","RW":true}],"NetworkSettings":{"Networks":{}}}`, row.remove, row.volume),
				Image: []byte(`{"Id":"sha256:1","Os":"linux","Config":{}}`), API: "1.41", Podman: row.onPodman,
			}, true)
			if !row.refused {
				require.NoError(t, err)
				return
			}
			refusal, ok := errors.AsType[*updater.Refusal](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, updater.Unsupported, refusal.Reason)
			require.Contains(t, refusal.Detail, generated)
		})
	}
}

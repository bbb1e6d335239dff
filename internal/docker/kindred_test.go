package docker

import (
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
)

// TestPlansAmongManyContainers counts what a plan asks of containers that have
// nothing to do with it: each is looked at once, not once for each plan.
func TestPlansAmongManyContainers(t *testing.T) {
	r := newRig(t)
	r.image(t, "app", command("serve"))
	r.pull(t, "app")
	others := map[string]bool{}
	for i := range 15 {
		c, err := r.cli.ContainerCreate(t.Context(), &container.Config{Image: r.repo + ":app"},
			&container.HostConfig{NetworkMode: "none"}, nil, nil, r.name(fmt.Sprint("other", i)))
		require.NoError(t, err)
		others[c.ID] = true
	}
	inspect := regexp.MustCompile(`/containers/(.+)/json$`)
	var mu sync.Mutex
	asked := map[string]int{}
	h, err := New(Options{Name: "local", Endpoint: r.host, wrap: func(next http.RoundTripper) http.RoundTripper {
		return counter(func(req *http.Request) (*http.Response, error) {
			if m := inspect.FindStringSubmatch(req.URL.Path); m != nil && others[m[1]] {
				mu.Lock()
				asked[m[1]]++
				mu.Unlock()
			}
			return next.RoundTrip(req)
		})
	}})
	require.NoError(t, err)
	defer h.Close()
	for i := range 5 {
		c := r.begin(t, fmt.Sprint("web", i), command("serve", "new"), nil)
		require.NoError(t, h.Plan(t.Context(), &c, nil))
	}
	require.Len(t, asked, len(others))
	for id, n := range asked {
		require.Equal(t, 1, n, "%s was inspected %d times", id, n)
	}
}

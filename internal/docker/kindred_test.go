package docker

import (
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/updaterd/updaterd/internal/updater"
)

// TestPlansAmongManyContainers counts what plans ask of containers that have
// nothing to do with them: each is looked at once, not once for each plan, and a
// few at a time, however many plans there are.
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
	under, most := 0, 0
	h, err := New(Options{Name: "local", Endpoint: r.host, wrap: func(next http.RoundTripper) http.RoundTripper {
		return counter(func(req *http.Request) (*http.Response, error) {
			m := inspect.FindStringSubmatch(req.URL.Path)
			if m == nil {
				return next.RoundTrip(req)
			}
			mu.Lock()
			if others[m[1]] {
				asked[m[1]]++
			}
			under++
			most = max(most, under)
			mu.Unlock()
			resp, err := next.RoundTrip(req)
			mu.Lock()
			under--
			mu.Unlock()
			return resp, err
		})
	}})
	require.NoError(t, err)
	defer h.Close()
	var changes []updater.Change
	for i := range 5 {
		changes = append(changes, r.begin(t, fmt.Sprint("web", i), command("serve", "new"), nil))
	}
	var plans errgroup.Group // at once, as a pass makes them
	for _, c := range changes {
		plans.Go(func() error { return h.Plan(t.Context(), &c, nil) })
	}
	require.NoError(t, plans.Wait())
	for _, c := range changes {
		require.NoError(t, h.Plan(t.Context(), &c, nil))
	}
	mu.Lock()
	defer mu.Unlock()
	require.LessOrEqual(t, most, lookers, "reads at once")
	require.Len(t, asked, len(others))
	for id, n := range asked {
		require.Equal(t, 1, n, "%s was inspected %d times", id, n)
	}
}

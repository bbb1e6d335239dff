package engine

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// checkEvery is how often the health of Podman's containers is checked, whatever
// interval they ask for.
const checkEvery = 250 * time.Millisecond

// checkHealth does what systemd does for Podman, which has no daemon to run
// health checks: a timer of systemd's for each container calls "podman
// healthcheck run". Without systemd, as in most containers and build machines,
// every container would be "starting" for ever. It returns when ctx ends.
func checkHealth(ctx context.Context, host string) {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(host, "unix://"))
	}}
	defer tr.CloseIdleConnections()
	get := func(path string) []byte {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman/v4.0.0/libpod"+path, nil)
		if err != nil {
			return nil
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return nil // killed or frozen by a test: later again
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil
		}
		return b
	}
	filters := url.QueryEscape(`{"health":["starting","healthy","unhealthy"],"status":["running"]}`)
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var all []struct {
			ID string `json:"Id"`
		}
		if json.Unmarshal(get("/containers/json?filters="+filters), &all) != nil {
			continue
		}
		for _, c := range all {
			get("/containers/" + c.ID + "/healthcheck")
		}
	}
}

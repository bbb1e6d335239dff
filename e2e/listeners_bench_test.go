package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/stage"
)

// BenchmarkListeners is what two hundred clients of the event stream cost while they
// are there, and how long their memory stays with the process when they have gone: Go
// gives back what it does not need in its own time.
func BenchmarkListeners(b *testing.B) {
	const (
		clients = 200
		stay    = time.Minute
		wait    = 6 * time.Minute
	)
	tables := newTables(b)
	for b.Loop() {
		socket := filepath.Join(b.TempDir(), "s")
		u := stage.NewUpdaterd(quiet{b}, stage.OpenDocker(b).Scoped(), fmt.Sprintf("schedule: \"@every 1s\"\njitter: 0s\nwatch: all\napi: {socket: %s}\n", socket))
		p := u.Start()
		afterPass(b, p, 30) // what passes need
		own := func() int64 { return status(p.Pid, "RssAnon") }
		before := own()
		t := tables.add(fmt.Sprintf("%d clients of the event stream for %s, an event a second", clients, stay), "", "own memory (RssAnon)", "open files")
		t.row("before", mb(before), fmt.Sprint(files(b, p.Pid)))

		client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}, DisableKeepAlives: true}}
		ctx, cancel := context.WithTimeout(b.Context(), stay)
		var all sync.WaitGroup
		var heard atomic.Int64
		for range clients {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://updaterd/v1/events", nil)
			require.NoError(b, err)
			answer, err := client.Do(r)
			require.NoError(b, err)
			require.Equal(b, http.StatusOK, answer.StatusCode)
			all.Go(func() {
				defer answer.Body.Close()
				for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
					if strings.HasPrefix(lines.Text(), "data:") {
						heard.Add(1)
					}
				}
			})
		}
		most := int64(0)
		for ctx.Err() == nil {
			most = max(most, own())
			time.Sleep(time.Second)
		}
		cancel()
		all.Wait()
		require.Greater(b, heard.Load(), int64(clients*30), "or this measures something else")
		t.row("at most", mb(most))
		gone := time.Now()
		back := time.Duration(0)
		for _, after := range []time.Duration{0, time.Minute, 3 * time.Minute, wait} {
			for time.Since(gone) < after {
				if back == 0 && own() < before+2e6 {
					back = time.Since(gone)
				}
				time.Sleep(time.Second)
			}
			t.row(fmt.Sprintf("%s after they left", after), mb(own()), fmt.Sprint(files(b, p.Pid)))
		}
		require.Zero(b, p.Stop(30*time.Second))
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(most-before)/clients/1e3, "kB/client")
		b.ReportMetric(back.Seconds(), "s-until-back")
	}
}

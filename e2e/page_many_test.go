package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/stage"
)

// crowd is a daemon that sees many workloads: one real container, which the way to the
// engine shows as many. Those called many-01?7 are held.
type crowd struct {
	t       testing.TB
	daemon  *stage.Daemon
	address string
	socket  string
}

func newCrowd(t testing.TB, log stage.TB, n int) *crowd {
	t.Helper()
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	ref := reg.Ref("acme/many:1")
	reg.Push("acme/many:1", stage.Image{Version: "v1"})
	name := d.Name("many")
	id := d.Run(stage.Spec{Name: name, Config: container.Config{Image: ref}})
	reg.Push("acme/many:1", stage.Image{Version: "v2"})

	copyID := func(i int) string { return id[:56] + fmt.Sprintf("%08x", i) }
	rename := func(raw []byte, i int) []byte {
		return []byte(strings.NewReplacer(id, copyID(i), "/"+name+`"`, fmt.Sprintf(`/many-%04d"`, i)).Replace(string(raw)))
	}
	number := func(path string) (i int, ok bool) {
		one, found := strings.CutPrefix(path, "/containers/"+id[:56])
		if !found || len(one) < 8 {
			return 0, false
		}
		_, err := fmt.Sscanf(one[:8], "%08x", &i)
		return i, err == nil && i < n
	}
	p := d.Proxy(stage.Hooks{
		Ask: func(path string) string {
			if i, ok := number(path); ok {
				return strings.Replace(path, copyID(i), id, 1)
			}
			return path
		},
		Play: func(c stage.Call, raw []byte) []byte {
			if i, ok := number(c.Path); ok {
				return rename(raw, i)
			}
			var list []json.RawMessage
			if c.Path != "/containers/json" || json.Unmarshal(raw, &list) != nil || len(list) != 1 {
				return raw
			}
			var all []string
			for i := range n {
				all = append(all, string(rename(list[0], i)))
			}
			return []byte("[" + strings.Join(all, ",") + "]")
		},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &crowd{t: t, address: l.Addr().String(), socket: filepath.Join(t.TempDir(), "s")}
	require.NoError(t, l.Close())
	u := stage.NewUpdaterd(log, p.Host, fmt.Sprintf(`
schedule: "@every 1h"
jitter: 0s
watch: all
defaults: {mode: approve}
rules:
  - match: {name: "many-01?7"}
    mode: hold
api: {socket: %s, listen: %s}
`, c.socket, c.address))
	c.daemon = u.Start("run")
	c.passes(1)
	return c
}

// passes waits for the end of so many.
func (c *crowd) passes(n int) {
	c.t.Helper()
	stage.Eventually(c.t, 2*time.Minute, fmt.Sprintf("the end of pass %d", n), func() bool { return strings.Count(c.daemon.Logs(), "pass over") >= n })
}

// check has the daemon look at all of them.
func (c *crowd) check() {
	c.t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.socket)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	answer, err := client.Post("http://updaterd/v1/check", "application/json", strings.NewReader("{}"))
	require.NoError(c.t, err)
	require.NoError(c.t, answer.Body.Close())
	require.Equal(c.t, http.StatusOK, answer.StatusCode)
}

// TestPageOfThousands: what a browser has to fetch and to lay out is bounded, however
// many there are, and each of them is found.
func TestPageOfThousands(t *testing.T) {
	c := newCrowd(t, t, 2000)
	b := newBrowser(t, c.address)
	number := func(script string) (n int) {
		t.Helper()
		b.do(chromedp.Evaluate(script, &n))
		return n
	}
	bounded := func() {
		t.Helper()
		require.LessOrEqual(t, number(`document.querySelectorAll("tbody tr").length`), 200)
		require.Less(t, number(`document.querySelectorAll("*").length`), 4000)
		require.Less(t, number(`performance.getEntriesByType("navigation")[0].decodedBodySize`), 250_000)
	}
	b.open("/")
	b.sees("2000 of 2000, page 1 of 10")
	require.Equal(t, 200, number(`document.querySelectorAll("tbody tr").length`))
	bounded()
	b.click(`a[rel="next"]`)
	b.sees("page 2 of 10")
	b.sees("many-0399")
	bounded()

	// All are looked at anew while somebody types.
	b.do(chromedp.Focus("#q", chromedp.ByQuery), chromedp.SendKeys("#q", "MANY-07", chromedp.ByQuery))
	c.check()
	c.passes(2)
	b.do(chromedp.SendKeys("#q", "77", chromedp.ByQuery), chromedp.SendKeys("#q", kb.Enter, chromedp.ByQuery))
	b.sees("1 of 2000")
	b.sees("many-0777")

	b.open("/")
	b.do(chromedp.SetValue("#reason", "held", chromedp.ByQuery))
	b.click(`//button[text()="Show"]`)
	b.sees("10 of 2000")
	require.Equal(t, 10, number(`document.querySelectorAll("tbody tr").length`))
	bounded()
	b.do(chromedp.SetValue("#q", "many-019", chromedp.ByQuery), chromedp.SendKeys("#q", kb.Enter, chromedp.ByQuery))
	b.sees("1 of 2000")
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.complain)
	require.Empty(t, b.foreign)
}

// BenchmarkPage is what a person waits for: from the click until the page is there and
// laid out. The floor is the same page where all workloads fit on it.
func BenchmarkPage(b *testing.B) {
	tables := newTables(b)
	paths := []struct{ what, path string }{{"the list", "/"}, {"a search", "/?q=many-01"}, {"a filter", "/?reason=held"}}
	const runs = 15
	look := func(n int) (all [3]millis) {
		c := newCrowd(b, quiet{b}, n)
		screen := newBrowser(b, c.address)
		for range runs {
			for i, p := range paths {
				screen.open(p.path)
				var took float64
				screen.do(chromedp.Evaluate(`performance.getEntriesByType("navigation")[0].loadEventEnd`, &took))
				all[i] = append(all[i], time.Duration(took*float64(time.Millisecond)))
			}
		}
		require.Zero(b, c.daemon.Stop(30*time.Second))
		return all
	}
	for b.Loop() {
		ours, floor := look(2000), look(200)
		t := tables.add(fmt.Sprintf("The page, in Chromium, with 2,000 workloads; median of %d (least to most).\nFloor: with 200, which is as many as it shows at once.", runs),
			"", "2,000", "200")
		for i, p := range paths {
			t.row(p.what, ours[i].String(), floor[i].String())
		}
		b.ReportMetric(0, "ns/op")
		for i, p := range paths {
			unit := strings.ReplaceAll(p.what, " ", "-")
			ours[i].report(b, unit+"-ms")
			floor[i].report(b, unit+"-floor-ms")
		}
	}
}

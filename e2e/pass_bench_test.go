package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/updaterd/updaterd/e2e/stage"
)

const (
	benchContainers = 100
	benchReferences = 50
	benchDelay      = 20 * time.Millisecond
	// benchAtOnce is how many requests updaterd has under way at one registry, so
	// that the floor has as many.
	benchAtOnce = 12
	benchRuns   = 5
)

// BenchmarkPass is the everyday case: a hundred containers, nothing new.
func BenchmarkPass(b *testing.B) {
	tables := newTables(b)
	d := stage.OpenDocker(b)
	reg := stage.NewRegistry(b, stage.RegistryOptions{TLS: true, Bearer: true, TokenLife: time.Hour, Delay: benchDelay})
	refs := fillBench(b, d, reg)
	host := d.Scoped()
	config := func(schedule string) string {
		return fmt.Sprintf("schedule: %q\njitter: 0s\nwatch: all\nregistries:\n  - {host: %q, ca: %q}\n", schedule, reg.Host, reg.CA)
	}

	b.Run("nothing-new", func(b *testing.B) {
		for b.Loop() {
			benchNothingNew(b, tables, stage.NewUpdaterd(quiet{b}, host, config("@every 2s")), reg, refs)
		}
	})
	b.Run("many", func(b *testing.B) {
		for b.Loop() {
			benchMany(b, tables, stage.NewUpdaterd(quiet{b}, host, config("@every 1s")))
		}
	})
	b.Run("idle", func(b *testing.B) {
		for b.Loop() {
			benchIdle(b, tables, stage.NewUpdaterd(quiet{b}, host, config("@every 1h")))
		}
	})
}

// fillBench publishes the images and runs the containers, two of each.
func fillBench(b *testing.B, d *stage.Docker, reg *stage.Registry) (refs []string) {
	b.Helper()
	for i := range benchReferences {
		repo := fmt.Sprintf("acme/app-%02d", i)
		// They differ, so that the engine holds as many images, but share the layer.
		reg.Push(repo+":stable", stage.Image{Version: repo})
		refs = append(refs, repo)
		d.Pull(reg.Ref(repo + ":stable"))
	}
	var g errgroup.Group
	g.SetLimit(4)
	for i := range benchContainers {
		g.Go(func() error {
			c, err := d.ContainerCreate(b.Context(),
				&container.Config{Image: reg.Ref(refs[i%benchReferences] + ":stable"), Labels: map[string]string{stage.Label: d.Mark}},
				// No network: a hundred endpoints take a while to make.
				&container.HostConfig{NetworkMode: "none"}, nil, nil, d.Name("bench"))
			if err != nil {
				return err
			}
			return d.ContainerStart(b.Context(), c.ID, container.StartOptions{})
		})
	}
	require.NoError(b, g.Wait())
	return refs
}

// asked is what a pass cost the registry, by the registry's own log.
type asked struct {
	manifests, tokens, others int
	// took is from the arrival of the first request to the answer of the last.
	took time.Duration
	// whole is what the pass took all told, by updaterd's log: the engine is
	// asked as well.
	whole time.Duration
}

func (a asked) all() int { return a.manifests + a.tokens + a.others }

func askedOf(requests []stage.Request) (a asked) {
	var first, last time.Time
	for _, r := range requests {
		switch {
		case strings.Contains(r.Path, "/manifests/"):
			a.manifests++
		case r.Path == "/token":
			a.tokens++
		default:
			a.others++
		}
		if first.IsZero() || r.At.Before(first) {
			first = r.At
		}
		if r.At.After(last) {
			last = r.At
		}
	}
	if len(requests) > 0 {
		a.took = last.Add(benchDelay).Sub(first)
	}
	return a
}

var passOver = regexp.MustCompile(`pass over.* took=(\S+)`)

// afterPass waits for the end of the nth pass and returns what it took.
func afterPass(b *testing.B, p *stage.Daemon, n int) time.Duration {
	b.Helper()
	stage.Eventually(b, time.Duration(n+60)*2*time.Second, fmt.Sprintf("the end of pass %d", n), func() bool {
		return strings.Count(p.Logs(), "pass over") >= n
	})
	m := passOver.FindAllStringSubmatch(p.Logs(), -1)
	require.GreaterOrEqual(b, len(m), n)
	took, err := time.ParseDuration(m[n-1][1])
	require.NoError(b, err)
	return took
}

func benchNothingNew(b *testing.B, tables *tables, u *stage.Updaterd, reg *stage.Registry, refs []string) {
	var ours, floors [3][]asked
	var peakFirst, peakLater, peakCheck int64
	for range benchRuns {
		reg.ResetRequests()
		p := u.Start()
		for n := range ours {
			if n == 2 {
				// In practice passes lie further apart than idle connections live.
				reg.Down()
				reg.Up()
			}
			whole := afterPass(b, p, n+1)
			a := askedOf(reg.Requests("", ""))
			reg.ResetRequests()
			a.whole = whole
			ours[n] = append(ours[n], a)
			if n == 0 {
				peakFirst = max(peakFirst, status(p.Pid, "VmHWM"))
			}
		}
		afterPass(b, p, 6)
		peakLater = max(peakLater, status(p.Pid, "VmHWM"))
		require.Zero(b, p.Stop(30*time.Second))

		check := u.Start("check", "-o", "json")
		for over := false; !over; {
			peakCheck = max(peakCheck, status(check.Pid, "VmHWM"))
			select {
			case <-check.Done():
				over = true
			case <-time.After(time.Millisecond):
			}
		}
		require.Zero(b, check.Wait(time.Second))
		var rows []struct{ Reason string }
		require.NoError(b, json.NewDecoder(strings.NewReader(check.Logs())).Decode(&rows))
		require.Len(b, rows, benchContainers)
		for _, r := range rows {
			require.Equal(b, "up-to-date", r.Reason, "or this measures something else")
		}

		c := newBare(b, reg)
		for n, f := range []func(){c.first, c.later, c.reconnected} {
			reg.ResetRequests()
			if n == 2 {
				reg.Down()
				reg.Up()
			}
			began := time.Now()
			f()
			a := askedOf(reg.Requests("", ""))
			a.whole = time.Since(began)
			floors[n] = append(floors[n], a)
		}
	}

	t := tables.add(fmt.Sprintf("A pass with nothing new: %d running containers on %d references, a registry with TLS, tokens and %s a request; median of %d (least to most).\n"+
		"Floor: the same requests by a bare Go HTTP client, %d at once. Registry time: first request in to last answer out, as the registry saw it.",
		benchContainers, benchReferences, benchDelay, benchRuns, benchAtOnce),
		"", "ours", "floor", "aim", "Watchtower 1.19", "Diun 4.x")
	median := func(s []asked, of func(asked) time.Duration) millis {
		var m millis
		for _, a := range s {
			m = append(m, of(a))
		}
		return m
	}
	most := func(s []asked, of func(asked) int) string {
		n := 0
		for _, a := range s {
			n = max(n, of(a))
		}
		return fmt.Sprint(n)
	}
	took := func(a asked) time.Duration { return a.took }
	whole := func(a asked) time.Duration { return a.whole }
	manifests := func(a asked) int { return a.manifests }
	tokens := func(a asked) int { return a.tokens }
	others := func(a asked) int { return a.others }
	t.row("first pass: manifest requests", most(ours[0], manifests), most(floors[0], manifests), "50")
	t.row("first pass: token requests", most(ours[0], tokens), most(floors[0], tokens), "50")
	t.row("first pass: others (GET /v2/)", most(ours[0], others), most(floors[0], others))
	t.row("first pass: registry time", median(ours[0], took).String(), median(floors[0], took).String(), "400 ms", "9.2 s", "0.86 s")
	t.row("second pass: all requests", most(ours[1], asked.all), most(floors[1], asked.all), "50", "400", "400")
	t.row("second pass: registry time", median(ours[1], took).String(), median(floors[1], took).String(), "400 ms")
	t.row("pass on new connections: all requests", most(ours[2], asked.all), most(floors[2], asked.all), "50")
	t.row("pass on new connections: registry time", median(ours[2], took).String(), median(floors[2], took).String(), "400 ms")
	t.row("first pass: all told, with the engine", median(ours[0], whole).String())
	t.row("second pass: all told, with the engine", median(ours[1], whole).String())
	t.row("peak memory (VmHWM): after the first pass", mb(peakFirst), "", "30 MB", "27 MB", "53 MB")
	t.row("peak memory (VmHWM): after six passes", mb(peakLater), "", "30 MB")
	t.row("peak memory (VmHWM): check", mb(peakCheck), "", "30 MB")
	b.ReportMetric(0, "ns/op")
	median(ours[0], took).report(b, "first-registry-ms")
	median(floors[0], took).report(b, "first-floor-ms")
	median(ours[1], took).report(b, "second-registry-ms")
	median(floors[1], took).report(b, "second-floor-ms")
	b.ReportMetric(float64(peakLater)/1e6, "peak-MB")
}

// bare asks what a pass asks, with nothing but net/http.
type bare struct {
	b      *testing.B
	client *http.Client
	reg    *stage.Registry

	mu     sync.Mutex
	tokens map[string]string
}

func newBare(b *testing.B, reg *stage.Registry) *bare {
	b.Helper()
	pem, err := os.ReadFile(reg.CA)
	require.NoError(b, err)
	pool := x509.NewCertPool()
	require.True(b, pool.AppendCertsFromPEM(pem))
	return &bare{b: b, reg: reg, tokens: map[string]string{}, client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: benchAtOnce,
	}}}
}

func (c *bare) do(method, path, token string) (status int, body []byte) {
	req, err := http.NewRequestWithContext(c.b.Context(), method, c.reg.URL+path, nil)
	if err != nil {
		c.b.Error(err)
		return 0, nil
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		c.b.Error(err)
		return 0, nil
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		c.b.Error(err)
	}
	return resp.StatusCode, body
}

func (c *bare) each(f func(repo string)) {
	var g errgroup.Group
	g.SetLimit(benchAtOnce)
	for i := range benchReferences {
		g.Go(func() error {
			f(fmt.Sprintf("acme/app-%02d", i))
			return nil
		})
	}
	_ = g.Wait()
	if c.b.Failed() {
		c.b.FailNow()
	}
}

func (c *bare) first() {
	c.do(http.MethodGet, "/v2/", "")
	c.each(func(repo string) {
		_, body := c.do(http.MethodGet, "/token?scope=repository:"+repo+":pull", "")
		var doc struct{ Token string }
		if err := json.Unmarshal(body, &doc); err != nil {
			c.b.Error(err)
		}
		c.mu.Lock()
		c.tokens[repo] = doc.Token
		c.mu.Unlock()
		c.head(repo)
	})
}

func (c *bare) head(repo string) {
	c.mu.Lock()
	token := c.tokens[repo]
	c.mu.Unlock()
	if code, _ := c.do(http.MethodHead, "/v2/"+repo+"/manifests/stable", token); code != http.StatusOK {
		c.b.Errorf("the floor itself got %d", code)
	}
}

func (c *bare) later() { c.each(c.head) }

func (c *bare) reconnected() { c.each(c.head) }

// benchMany looks for what grows from pass to pass. (That the heap and the
// goroutines do not is a test of package updater.)
func benchMany(b *testing.B, tables *tables, u *stage.Updaterd) {
	p := u.Start()
	t := tables.add(fmt.Sprintf("Many passes over %d containers, one a second", benchContainers),
		"after pass", "resident (RssAnon)", "resident (VmRSS)", "peak (VmHWM)", "threads", "open files", "processor time per pass")
	var used time.Duration
	before := 0
	var early, late int64
	for _, n := range []int{1, *passes / 6, *passes / 3, 2 * *passes / 3, *passes} {
		afterPass(b, p, n)
		now := processor(b, p.Pid)
		late = status(p.Pid, "RssAnon")
		if early == 0 && n > 1 {
			early = late
		}
		t.row(fmt.Sprint(n), mb(late), mb(status(p.Pid, "VmRSS")), mb(status(p.Pid, "VmHWM")), fmt.Sprint(status(p.Pid, "Threads")),
			fmt.Sprint(files(b, p.Pid)), ms((now-used)/time.Duration(n-before)))
		used, before = now, n
	}
	require.Zero(b, p.Stop(30*time.Second))
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(late-early)/1e6, "growth-MB")
}

const idleFor = time.Minute

// benchIdle is what updaterd costs between passes, with its watch over the
// configuration file.
func benchIdle(b *testing.B, tables *tables, u *stage.Updaterd) {
	p := u.Start()
	afterPass(b, p, 1)
	time.Sleep(5 * time.Second) // what the pass leaves to be done, such as a collection
	began, used := time.Now(), processor(b, p.Pid)
	time.Sleep(idleFor)
	share := 100 * float64(processor(b, p.Pid)-used) / float64(time.Since(began))
	resident := status(p.Pid, "VmRSS")
	require.Zero(b, p.Stop(30*time.Second))
	t := tables.add(fmt.Sprintf("Idle for %s between passes", idleFor), "", "ours", "floor", "aim")
	t.row("share of one core", fmt.Sprintf("%.4f %%", share), "0 %", "0.1 %")
	t.row("resident memory (VmRSS)", mb(resident))
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(share, "%-of-a-core")
}

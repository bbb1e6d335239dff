package stage

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Gap measures what a client misses of a service: it makes a request on a new
// connection every 2 ms.
type Gap struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	good     []answer
	failures int
}

type answer struct {
	at   time.Time
	body string
}

// GapReport is what a Gap has seen.
type GapReport struct {
	// Longest is the longest time between two good answers that followed each
	// other.
	Longest time.Duration
	// Good and Failed count requests.
	Good, Failed int
	// Bodies are the different answers, in the order in which they came first:
	// the app's are its versions.
	Bodies []string
}

// String is one line for people.
func (r GapReport) String() string {
	return fmt.Sprintf("longest gap %s, %d good and %d failed requests", r.Longest.Round(100*time.Microsecond), r.Good, r.Failed)
}

// MeasureGap begins to ask url, and returns once it was answered.
func MeasureGap(t TB, url string) *Gap {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	g := &Gap{cancel: cancel}
	c := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true},
		// A request that reached a container as it ended may never be answered.
		Timeout: 2 * time.Second,
	}
	// So many under way at once that hanging ones do not keep others from being
	// made.
	slots := make(chan struct{}, 128)
	g.wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case slots <- struct{}{}:
				g.wg.Go(func() {
					g.ask(ctx, c, url)
					<-slots
				})
			default:
			}
		}
	})
	t.Cleanup(func() { g.Stop() })
	Eventually(t, 10*time.Second, "an answer from "+url, func() bool { return g.report().Good > 0 })
	return g
}

func (g *Gap) ask(ctx context.Context, c *http.Client, url string) {
	body, err := fetch(ctx, c, url)
	if ctx.Err() != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil {
		g.failures++
		return
	}
	g.good = append(g.good, answer{time.Now(), body})
}

func fetch(ctx context.Context, c *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return string(b), err
}

// Get returns what url answers, once.
func Get(ctx context.Context, url string) (string, error) {
	return fetch(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}, url)
}

func (g *Gap) report() GapReport {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := GapReport{Good: len(g.good), Failed: g.failures}
	for i, a := range g.good {
		if i > 0 {
			r.Longest = max(r.Longest, a.at.Sub(g.good[i-1].at))
		}
		if !slices.Contains(r.Bodies, a.body) {
			r.Bodies = append(r.Bodies, a.body)
		}
	}
	return r
}

// Again returns once there was another good answer: before, a gap that is still
// open would not be seen.
func (g *Gap) Again(t TB) {
	t.Helper()
	before := g.report().Good
	Eventually(t, 20*time.Second, "another answer", func() bool { return g.report().Good > before })
}

// Stop ends the requests and returns what was seen. It may be called twice.
func (g *Gap) Stop() GapReport {
	g.cancel()
	g.wg.Wait()
	return g.report()
}

package registry

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	tests := []struct {
		name string
		h    http.Header
		want time.Duration
		said bool
	}{
		{"seconds", http.Header{"Retry-After": {"120"}}, 2 * time.Minute, true},
		{"no seconds at all", http.Header{"Retry-After": {"0"}}, 0, true},
		{"an HTTP date", http.Header{"Retry-After": {"Mon, 04 May 2026 03:12:01 GMT"}}, 10 * time.Minute, true},
		{"a date that is over", http.Header{"Retry-After": {"Mon, 04 May 2020 03:12:01 GMT"}}, 0, true},
		{"Docker Hub's Unix time", http.Header{"X-Retry-After": {strconv.FormatInt(now.Add(time.Hour).Unix(), 10)}}, time.Hour, true},
		{"more than a day is a day", http.Header{"Retry-After": {"999999999999"}}, 24 * time.Hour, true},
		{"nonsense says nothing", http.Header{"Retry-After": {"soon"}}, 0, false},
		{"less than nothing says nothing", http.Header{"Retry-After": {"-1"}}, 0, false},
		{"nothing says nothing", http.Header{}, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, said := retryAfter(tt.h, now)
			require.Equal(t, tt.said, said)
			require.Equal(t, tt.want, got)
		})
	}
}

// limit makes f answer 429 to real questions, with the header's value if any.
func limit(f *fake, header, value string) {
	f.odd = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		if header != "" {
			w.Header().Set(header, value)
		}
		apiErr(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "t0ken You have reached your pull rate limit")
		return true
	}
}

func TestPatience(t *testing.T) {
	t.Run("a host that asks for it is left alone until then, and the others are not", func(t *testing.T) {
		f, g := newFake(example), newFake("other.example.com")
		f.image("acme/web", "1", amd64, "a")
		g.image("acme/web", "1", amd64, "a")
		limit(f, "Retry-After", "3600")
		c, clock := client(t, setup{}, internet{example: f, "other.example.com": g})
		for i := range 10 {
			_, err := c.Resolve(bg, fmt.Sprintf("%s/acme/app%d:1", example, i))
			refused(t, err, updater.RateLimited, example, fmt.Sprintf("acme/app%d", i), "2026-05-04T04:02:01Z")
		}
		_, err := c.Resolve(bg, "other.example.com/acme/web:1")
		require.NoError(t, err)
		require.Equal(t, 1, f.count("HEAD"), "the rest of the pass does not ask")

		f.odd = nil
		clock.add(59 * time.Minute)
		c.NewPass()
		_, err = c.Resolve(bg, example+"/acme/web:1")
		refused(t, err, updater.RateLimited)
		require.Equal(t, 1, f.count("HEAD"), "nor does a pass before it is over")

		clock.add(time.Minute)
		_, err = c.Resolve(bg, example+"/acme/web:1")
		refused(t, err, updater.RateLimited)
		c.NewPass()
		_, err = c.Resolve(bg, example+"/acme/web:1")
		require.NoError(t, err)
	})
	t.Run("a short wait is waited for", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(example)
			f.image("acme/web", "1", amd64, "a")
			limited := 0
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				if manifestRequest(r, "") && limited < 2 {
					limited++
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(429)
					return true
				}
				return false
			}
			c, _ := client(t, setup{}, internet{example: f})
			began := time.Now()
			_, err := c.Resolve(bg, example+"/acme/web:1")
			require.NoError(t, err)
			require.InDelta(t, 2, time.Since(began).Seconds(), 0.6)
		})
	})
	t.Run("a short wait that changes nothing ends in patience", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(example)
			limit(f, "Retry-After", "1")
			c, _ := client(t, setup{}, internet{example: f})
			_, err := c.Resolve(bg, example+"/acme/web:1")
			refused(t, err, updater.RateLimited)
			require.Equal(t, 3, f.count("HEAD"))
			_, err = c.Resolve(bg, example+"/acme/web:2")
			refused(t, err, updater.RateLimited)
			require.Equal(t, 3, f.count("HEAD"))
		})
	})
	t.Run("who does not say how long is left alone for longer each time", func(t *testing.T) {
		f := newFake(example)
		limit(f, "", "")
		c, clock := client(t, setup{}, internet{example: f})
		want := time.Minute
		for range 9 {
			_, err := c.Resolve(bg, example+"/acme/web:1")
			refused(t, err, updater.RateLimited)
			h, err := c.host(example)
			require.NoError(t, err)
			until, _ := h.patience.left(clock.now())
			got := until.Sub(clock.now())
			require.GreaterOrEqual(t, got, want*8/10)
			require.LessOrEqual(t, got, want*12/10)
			clock.add(got)
			c.NewPass()
			want = min(want*2, time.Hour)
		}
		f.odd = nil
		f.image("acme/web", "1", amd64, "a")
		_, err := c.Resolve(bg, example+"/acme/web:1")
		require.NoError(t, err)
		limit(f, "", "")
		c.NewPass()
		_, err = c.Resolve(bg, example+"/acme/web:1")
		refused(t, err, updater.RateLimited)
		h, err := c.host(example)
		require.NoError(t, err)
		until, _ := h.patience.left(clock.now())
		require.LessOrEqual(t, until.Sub(clock.now()), 2*time.Minute, "a good pass makes up for it")
	})
	t.Run("503 with Retry-After asks for patience too", func(t *testing.T) {
		f := newFake(example)
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(503)
			return r.URL.Path != "/v2/"
		}
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Tags(bg, example+"/acme/web:1")
		refused(t, err, updater.RateLimited, example, "acme/web")
	})
	t.Run("Docker Hub is known to give more to those who log in", func(t *testing.T) {
		f := newFake(hub)
		limit(f, "X-Retry-After", "1777867321")
		c, _ := client(t, setup{}, internet{hubAPI: f})
		_, err := c.Resolve(bg, "nginx")
		refused(t, err, updater.RateLimited, "docker.io", "library/nginx", "logging in", "2026-05-04T04:02:01Z")
	})
	t.Run("trouble that passes is tried again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			for _, status := range []int{500, 502, 504} {
				f := newFake(example)
				f.image("acme/web", "1", amd64, "a")
				failed := 0
				f.odd = func(w http.ResponseWriter, r *http.Request) bool {
					if manifestRequest(r, "") && failed < 2 {
						failed++
						w.WriteHeader(status)
						return true
					}
					return false
				}
				c, _ := client(t, setup{}, internet{example: f})
				_, err := c.Resolve(bg, example+"/acme/web:1")
				require.NoError(t, err)
			}
		})
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"1", "-1", "Mon, 04 May 2026 03:12:01 GMT", "9223372036854775807", "x", ""} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		d, _ := retryAfter(http.Header{"Retry-After": {a}, "X-Retry-After": {b}}, time.Now())
		if d < 0 || d > longestWait {
			t.Fatalf("%q, %q: %s", a, b, d)
		}
	})
}

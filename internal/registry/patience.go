package registry

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// shortWait is the longest Retry-After that is waited for within a pass.
	shortWait = 2 * time.Second
	// longestWait bounds what a header can ask for. Docker Hub's window is six
	// hours (docs.docker.com/docker-hub/usage).
	longestWait = 24 * time.Hour
	firstPause  = time.Minute
	lastPause   = time.Hour
)

// retryAfter reads how long a server asks to be left alone: Retry-After as
// seconds or as an HTTP date, or Docker Hub's X-Retry-After as Unix time.
func retryAfter(h http.Header, now time.Time) (time.Duration, bool) {
	var d time.Duration
	if v := strings.TrimSpace(h.Get("Retry-After")); v != "" {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			if n < 0 {
				return 0, false
			}
			d = time.Duration(min(n, int64(longestWait/time.Second))) * time.Second
			return d, true
		}
		if t, err := http.ParseTime(v); err == nil {
			return min(max(t.Sub(now), 0), longestWait), true
		}
	}
	if v := strings.TrimSpace(h.Get("X-Retry-After")); v != "" {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && n >= 0 {
			// Sub saturates, so a date beyond all reason is only a long wait.
			return min(max(time.Unix(n, 0).Sub(now), 0), longestWait), true
		}
	}
	return 0, false
}

// limited reports whether an answer asks for patience. Not all who do say 429:
// Quay answers 403 with TOOMANYREQUESTS, GHCR and GitLab 403 or 503 with a
// message about a rate.
func limited(status int, h http.Header, body []byte) bool {
	switch {
	case status == http.StatusTooManyRequests:
		return true
	case status < 400:
		return false
	case status == http.StatusServiceUnavailable && (h.Get("Retry-After") != "" || h.Get("X-Retry-After") != ""):
		return true
	}
	for _, e := range parseErrors(body) {
		text := strings.ToLower(e.Code + " " + e.Message)
		if strings.Contains(text, "toomanyrequests") || strings.Contains(text, "too many requests") || strings.Contains(text, "rate limit") {
			return true
		}
	}
	return false
}

// apiError is one error as the distribution specification has it.
type apiError struct{ Code, Message string }

// parseErrors returns the errors that body tells of, or none.
func parseErrors(body []byte) []apiError {
	var doc struct {
		Errors []struct {
			Code    any `json:"code"` // some say 404 where a word is due
			Message any `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return nil
	}
	var all []apiError
	for _, e := range doc.Errors {
		code, _ := e.Code.(string)
		message, _ := e.Message.(string)
		all = append(all, apiError{code, message})
	}
	return all
}

// patience is what one host has been promised: not to be asked for a while.
type patience struct {
	mu      sync.Mutex
	until   time.Time
	skip    bool // for the rest of this pass, whatever until says
	strikes int  // passes in a row in which the host asked for patience
}

// ask notes that the host wants to be left alone, for d if it said how long,
// and returns until when it is.
func (p *patience) ask(now time.Time, d time.Duration, said bool) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.skip {
		p.strikes++
	}
	p.skip = true
	if !said {
		d = min(firstPause<<min(p.strikes-1, 10), lastPause)
		// ±20 %, so that many installations do not come back together.
		d = time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
		// The answers to requests that were under way must not draw lots again.
		if p.until.After(now) {
			return p.until
		}
	}
	if t := now.Add(d); t.After(p.until) {
		p.until = t
	}
	return p.until
}

// left reports whether the host is to be left alone, and until when.
func (p *patience) left(now time.Time) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until, p.skip || now.Before(p.until)
}

func (p *patience) newPass(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.skip {
		p.strikes = 0
	}
	if !now.Before(p.until) {
		p.skip = false
	}
}

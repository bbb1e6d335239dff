package registry

import (
	"net/http"
	"strconv"
	"strings"
)

// Observer sees what is asked of registries, for those who count it. Its methods
// are called by many goroutines and return at once.
type Observer interface {
	// Asked: one request that a question to host took was answered with a status,
	// or with none (0). Its retries, its token server and the storage that it
	// redirects to count as host.
	Asked(host string, status int)
	// Left: the host says that so many requests may be made yet, until its own
	// clock allows more.
	Left(host string, requests int)
}

// observed is a transport that tells an Observer.
type observed struct {
	http.RoundTripper
	host string
	by   Observer
}

func (o observed) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := o.RoundTripper.RoundTrip(r)
	if err != nil {
		o.by.Asked(o.host, 0)
		return resp, err
	}
	o.by.Asked(o.host, resp.StatusCode)
	if n, said := left(resp.Header); said {
		o.by.Left(o.host, n)
	}
	return resp, nil
}

// left reads how many requests a host still allows. Docker Hub says
// "76;w=21600" (docs.docker.com/docker-hub/usage/pulls), others the number alone
// or with an X- before the name.
func left(h http.Header) (int, bool) {
	for _, name := range []string{"RateLimit-Remaining", "X-RateLimit-Remaining"} {
		text, _, _ := strings.Cut(h.Get(name), ";")
		if n, err := strconv.Atoi(strings.TrimSpace(text)); err == nil && n >= 0 {
			return n, true
		}
	}
	return 0, false
}

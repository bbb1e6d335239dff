package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"slices"
	"strings"
)

// guard is a socket proxy that understands the flags of wollomatic/socket-proxy which
// our Compose file uses: who may call it, and which paths by which method, each a
// regular expression for the whole of a path. Whatever else is called is forbidden.
func guard(flags []string) {
	listen, from := "127.0.0.1", ""
	allowed := map[string][]*regexp.Regexp{}
	for _, f := range flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(f, "-"), "=")
		method, isRule := strings.CutPrefix(name, "allow")
		switch {
		case name == "listenip":
			listen = value
		case name == "allowfrom":
			from = value
		case isRule:
			rule, err := regexp.Compile("^(?:" + value + ")$")
			check(err)
			allowed[method] = append(allowed[method], rule)
		default:
			check(fmt.Errorf("no such flag: %s", f))
		}
	}
	engine := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", "/var/run/docker.sock")
		}},
		FlushInterval: -1,
	}
	check(http.ListenAndServe(listen+":2375", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _, err := net.SplitHostPort(r.RemoteAddr)
		check(err)
		friends, err := net.DefaultResolver.LookupHost(r.Context(), from)
		fits := func(rule *regexp.Regexp) bool { return rule.MatchString(r.URL.Path) }
		if err != nil || !slices.Contains(friends, caller) || !slices.ContainsFunc(allowed[r.Method], fits) {
			fmt.Printf("forbidden: %s %s %s\n", caller, r.Method, r.URL.Path)
			http.Error(w, "forbidden by the socket proxy", http.StatusForbidden)
			return
		}
		engine.ServeHTTP(w, r)
	})))
}

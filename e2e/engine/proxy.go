package engine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/updaterd/updaterd/e2e/program"
)

// AllowedEnv names the page with the list of what the proxy of the kind Proxied
// lets through.
const AllowedEnv = "UPDATERD_PROXY_ALLOWED"

// launchProxy puts HAProxy before the engine. It lets through what the page for
// users says to allow, so that the tests prove the page.
func (e *Engine) launchProxy(ctx context.Context) error {
	page, err := os.ReadFile(os.Getenv(AllowedEnv))
	if err != nil {
		return fmt.Errorf("read what the proxy is to allow: %w", err)
	}
	socket := filepath.Join(e.Dir, "front.sock")
	config, err := proxyConfig(string(page), strings.TrimPrefix(e.Host, "unix://"), socket)
	if err != nil {
		return err
	}
	file := filepath.Join(e.Dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	e.Front = "unix://" + socket
	cmd := exec.Command(program.Path("haproxy"), "-db", "-f", file)
	cmd.Env = os.Environ()
	e.proxy, err = e.start(ctx, cmd, e.Front)
	return err
}

// proxyConfig makes HAProxy's configuration from the page's lines of the form
// '-allowGET=/v1\.[0-9]+/info', each the whole of a path that may be called.
func proxyConfig(page, engine, socket string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `defaults
    mode http
    timeout connect 10s
    timeout client 15m
    timeout server 15m
frontend updaterd
    bind "unix@%s"
    http-request deny deny_status 403 if { path_sub .. }
`, socket)
	rules := regexp.MustCompile(`'-allow([A-Z]+)=([^']+)'`).FindAllStringSubmatch(page, -1)
	if rules == nil {
		return "", fmt.Errorf("%s has no lines '-allowMETHOD=PATH'", os.Getenv(AllowedEnv))
	}
	for _, r := range rules {
		fmt.Fprintf(&b, "    http-request allow if { method %s } { path -m reg '^%s$' }\n", r[1], r[2])
	}
	fmt.Fprintf(&b, `    http-request deny deny_status 403
    default_backend engine
backend engine
    server engine "unix@%s"
`, engine)
	return b.String(), nil
}

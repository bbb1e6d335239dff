package docker

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/updaterd/updaterd/internal/updater"
)

// What stands between updaterd and an engine, a socket proxy or the engine's
// own authorization plugin, may forbid calls. A change that finds this out
// halfway has stopped a container that it may not start again. So every call of
// this package is in one table, routes, with what it is good for; each is asked
// about when an engine is connected to, and a change that needs a forbidden one
// is refused before anything is stopped.

// route is one endpoint of the engine's API that this package calls.
type route struct {
	method string
	path   string // as the API's reference writes it: /containers/{id}/rename
	query  string // sent along when it is asked about
	body   string // likewise
	// costs says what does not work without it.
	costs string
	// needs reports whether a change cannot be made, or not be taken back,
	// without it; nil: every change does without.
	needs func(updater.Settings, facts) bool
}

func (r route) String() string { return r.method + " " + r.path }

// facts decide, besides the settings, which calls the change of one container
// takes.
type facts struct {
	replaced bool // a new container takes its place; else it is only restarted
	newTag   bool // it goes to another tag, which must go again if it is bad
	policy   bool // its restart policy is taken away while it is kept
	compose  bool // Compose made it, and may have copied files into it
	networks bool // it is in more of them than a create request can name
}

// factsOf says what p's change does to the container b.
func factsOf(b *box, p updater.Part, api string, podman bool) facts {
	return facts{
		replaced: p.Replace,
		newTag:   p.Replace && p.From.Ref != p.To.Ref,
		policy:   p.Replace && !podman && risesAlone(b.HostConfig.RestartPolicy.Name),
		compose:  p.Replace && b.label(labelProject) != "",
		networks: versions.LessThan(api, "1.44") && b.NetworkSettings != nil && len(b.NetworkSettings.Networks) > 1,
	}
}

// What calls are asked about with. There is nothing of these names, so that an
// engine answers that it knows none, and does nothing. They look like what the
// real calls carry, since a proxy may go by that.
const (
	noID    = "0000000000000000000000000000000000000000000000000000000000000000"
	noImage = "updaterd.local/asks/nothing:none"
	// noName is a name that no engine gives a container or an image.
	noName = "updaterd%20asks%20nothing"
)

// routes are all that this package calls on an engine, but for HEAD /_ping and
// GET /version, without which there is no connection.
func routes() []route {
	always := func(updater.Settings, facts) bool { return true }
	replaced := func(_ updater.Settings, f facts) bool { return f.replaced }
	tests := func(s updater.Settings, _ facts) bool { return s.Health.Test.Image != "" }
	// A test has a container and an image of its own.
	creates := func(s updater.Settings, f facts) bool { return f.replaced || tests(s, f) }
	exec := func(s updater.Settings, _ facts) bool {
		return len(s.PreUpdate.Command) > 0 || len(s.PostUpdate.Command) > 0 || strings.HasPrefix(s.Health.Probe, "exec:")
	}
	compose := func(_ updater.Settings, f facts) bool { return f.compose }
	const (
		sees     = "updaterd does not see the containers, or not what they run"
		changes  = "no container can be updated"
		commands = "no workload with pre-update, post-update or an exec: probe can be updated"
		copied   = "no container made by Compose can be updated: files that it copied in could get lost"
	)
	return []route{
		{http.MethodGet, "/containers/json", "all=1&limit=1", "", sees, always},
		{http.MethodGet, "/containers/{id}/json", "", "", sees, always},
		{http.MethodGet, "/images/{name}/json", "", "", sees, always},
		{http.MethodGet, "/info", "", "", changes, always},
		{http.MethodGet, "/networks", `filters={"name":["` + noID + `"]}`, "", changes, always},

		{http.MethodPost, "/images/create", "fromImage=" + noName, "", changes, creates},
		{http.MethodPost, "/images/{name}/tag", "repo=updaterd.local/asks/nothing&tag=none", "", changes, replaced},
		// Refused twice: it has no configuration, and a name that cannot be.
		{http.MethodPost, "/containers/create", "name=" + noName, "{}", changes, creates},
		{http.MethodPost, "/containers/{id}/start", "", "", changes, always},
		{http.MethodPost, "/containers/{id}/stop", "", "", changes, always},
		{http.MethodPost, "/containers/{id}/rename", "name=updaterd-asks-nothing", "", changes, replaced},
		{http.MethodDelete, "/containers/{id}", "", "", changes, creates},

		{http.MethodPost, "/containers/{id}/update", "", "{}",
			"no container with the restart policy always or on-failure can be updated: the engine could start the kept one beside the new",
			func(_ updater.Settings, f facts) bool { return f.policy }},
		{http.MethodDelete, "/images/{name}", "", "",
			"no workload can be updated to another tag, and replaced images are never removed",
			func(_ updater.Settings, f facts) bool { return f.newTag }},
		{http.MethodGet, "/images/json", `filters={"reference":["` + noImage + `"]}`, "",
			"replaced images are never removed", nil},
		{http.MethodGet, "/containers/{id}/changes", "", "", copied, compose},
		{http.MethodHead, "/containers/{id}/archive", "path=/", "", copied, compose},
		// With no command, for an engine writes down who asks for an unknown container.
		{http.MethodPost, "/containers/{id}/exec", "", "{}", commands, exec},
		{http.MethodPost, "/exec/{id}/start", "", `{"Detach":true}`, commands, exec},
		{http.MethodGet, "/exec/{id}/json", "", "", commands, exec},
		{http.MethodPost, "/networks/{id}/connect", "", `{"Container":"` + noID + `"}`,
			"no container in several networks can be updated on an engine with an API before 1.44",
			func(s updater.Settings, f facts) bool { return f.networks && creates(s, f) }},
		{http.MethodPost, "/networks/{id}/disconnect", "", `{"Container":"` + noID + `"}`,
			"no workload with start-first can be updated",
			func(s updater.Settings, f facts) bool { return s.StartFirst && f.replaced }},
		{http.MethodPost, "/containers/{id}/restart", "", "",
			"no container can be updated whose dependents would only be restarted",
			func(_ updater.Settings, f facts) bool { return !f.replaced }},
		{http.MethodPost, "/containers/{id}/wait", "", "",
			"no workload with health.test can be updated", tests},
		{http.MethodGet, "/networks/{id}", "", "",
			"an image that is being judged may be found bad because the engine was restarted", nil},
		{http.MethodGet, "/containers/{id}/logs", "stdout=1&tail=1", "",
			"the last log lines of what was found bad are not told", nil},
		{http.MethodGet, "/events", `since=1&until=2&filters={"container":["` + noID + `"]}`, "",
			"how a container with --rm ended is not known", nil},
	}
}

// missing refuses a change that takes a forbidden call; nil if it takes none.
func missing(s updater.Settings, f facts, forbidden []route) *updater.Refusal {
	var need []string
	for _, r := range forbidden {
		if r.needs != nil && r.needs(s, f) {
			need = append(need, r.String())
		}
	}
	if len(need) == 0 {
		return nil
	}
	return &updater.Refusal{
		Reason: updater.Unsupported,
		Detail: fmt.Sprintf("%s: forbidden on the way to the engine, and the update needs it: allow it in the socket proxy", strings.Join(need, ", ")),
	}
}

// forbiddenBy asks about all calls, and says once what the forbidden ones cost.
func (h *Host) forbiddenBy(ctx context.Context, cli *client.Client) []route {
	all := routes()
	var forbidden []route
	for i, a := range h.ask(ctx, cli, all) {
		if a == denied {
			forbidden = append(forbidden, all[i])
			h.log.Warn("engine endpoint is forbidden", "endpoint", all[i].String(), "costs", all[i].costs)
		}
	}
	return forbidden
}

// permitted refuses to change the container b as p says when that takes a call
// that is forbidden on the way to the engine. It asks again first: whoever
// mends the proxy because of a refusal need not start updaterd anew for it.
func (h *Host) permitted(ctx context.Context, p updater.Part, b *box) error {
	h.mu.Lock()
	cli, podman, forbidden := h.cli, h.podman, h.forbidden
	h.mu.Unlock()
	f := factsOf(b, p, cli.ClientVersion(), podman)
	if missing(p.Settings, f, forbidden) == nil {
		return nil
	}
	var still []route
	for i, a := range h.ask(ctx, cli, forbidden) {
		if a != allowed {
			still = append(still, forbidden[i])
		}
	}
	h.mu.Lock()
	h.forbidden = still
	h.mu.Unlock()
	if r := missing(p.Settings, f, still); r != nil {
		return r
	}
	return nil
}

// answer is what is known about a call.
type answer int

const (
	unknown answer = iota
	allowed
	denied
)

const (
	// askLimit bounds one question, asksLimit all: updaterd must work, and
	// soon, where they are not answered.
	askLimit  = 2 * time.Second
	asksLimit = 5 * time.Second
	// askAgent is how the questions can be told from the real calls.
	askAgent = "updaterd-asks"
)

// ask finds out which calls are allowed by making them for what is not there.
// Nothing comes of them on the engine. The answers are in the order of the calls.
func (h *Host) ask(ctx context.Context, cli *client.Client, routes []route) []answer {
	ctx, cancel := context.WithTimeout(ctx, asksLimit)
	defer cancel()
	dial := cli.Dialer()
	tr := &http.Transport{
		// It dials the engine whatever the address, with TLS if that is set.
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: lookers,
	}
	defer tr.CloseIdleConnections()
	answers, _ := inParallel(ctx, routes, func(ctx context.Context, r route) (answer, error) {
		a, err := r.ask(ctx, tr, cli)
		if err != nil {
			h.log.Debug("engine endpoint cannot be asked about", "endpoint", r.String(), "err", err)
		}
		return a, nil
	})
	return answers
}

// ask makes the call for what is not there.
func (r route) ask(ctx context.Context, tr http.RoundTripper, cli *client.Client) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	at, err := client.ParseHostURL(cli.DaemonHost())
	if err != nil {
		return unknown, err
	}
	host := at.Host
	if at.Scheme != "tcp" {
		host, at.Path = client.DummyHost, ""
	}
	path := strings.NewReplacer("{id}", noID, "{name}", noImage).Replace(r.path)
	url := "http://" + host + at.Path + "/v" + cli.ClientVersion() + path
	req, err := http.NewRequestWithContext(ctx, r.method, url, strings.NewReader(r.body))
	if err != nil {
		return unknown, err
	}
	req.URL.RawQuery = strings.NewReplacer(`"`, "%22", "{", "%7B", "}", "%7D").Replace(r.query)
	req.Header.Set("User-Agent", askAgent)
	if r.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return unknown, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, mostRead)) // so that the connection serves again
	return judge(resp), nil
}

// judge tells a proxy's refusal from the engine's own, which names the version
// of its API. Whatever else is answered came from behind the proxy, or is no
// word on what is allowed.
func judge(resp *http.Response) answer {
	no := resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusMethodNotAllowed
	if no && resp.Header.Get("Api-Version") == "" {
		return denied
	}
	return allowed
}

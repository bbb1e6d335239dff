package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// project is a compose project with an updaterd that watches what is labelled
// in it.
type project struct {
	*stage.Compose
	t   *testing.T
	d   *stage.Docker
	reg *stage.Registry
	u   *stage.Updaterd
}

// labelled is the configuration for it.
const labelled = `
schedule: "@every 1s"
jitter: 0s
watch: labelled
defaults:
  health: {timeout: 60s, stable: 500ms}
  stop-timeout: 2s
`

func newProject(t *testing.T, file string) *project {
	t.Helper()
	d := stage.OpenDocker(t)
	reg := stage.NewRegistry(t, stage.RegistryOptions{})
	return &project{
		Compose: d.NewCompose(reg, file), t: t, d: d, reg: reg,
		u: stage.NewUpdaterd(t, d.Scoped(), labelled),
	}
}

// push publishes a version of an image as its app begins when it is well: it
// listens after a while.
func (p *project) push(repository, tag, version string, how stage.Behaviour) string {
	p.t.Helper()
	return p.reg.Push(repository+":"+tag, stage.Image{
		Version: version, Behave: how, Healthcheck: stage.Check(500*time.Millisecond, 20),
	})
}

// pass makes one pass and returns its rows by service.
func (p *project) pass(code int) map[string]row {
	p.t.Helper()
	r := p.u.Run("run", "--once", "-o", "json")
	require.Equal(p.t, code, r.Code, r.Stdout+r.Stderr)
	rows := map[string]row{}
	for _, row := range parseRows(p.t, r.Stdout) {
		service := strings.TrimPrefix(row.Workload, "local/"+p.Project+"-")
		rows[strings.TrimSuffix(service, "-1")] = row
	}
	return rows
}

// upChangesNothing requires that "docker compose up -d" leaves every container
// as it is, and running or not.
func (p *project) upChangesNothing() {
	p.t.Helper()
	type state struct{ id, started string }
	look := func() map[string]state {
		all := map[string]state{}
		for name, id := range p.Containers() {
			c := p.d.Inspect(id)
			started := c.State.StartedAt
			if c.State.Running {
				all[name] = state{id, started}
			} else {
				all[name] = state{id, "ended"} // what has run to its end is run again
			}
		}
		return all
	}
	before := look()
	p.Up()
	if onPodman() {
		return // There Compose makes every container anew at each "up", untouched ones too.
	}
	for name, s := range before {
		if s.started == "ended" {
			p.d.Wait(name, 10*time.Second, "ended", func(c container.InspectResponse) bool { return !c.State.Running })
		}
	}
	require.Equal(p.t, before, look(), "\"docker compose up -d\" changed something")
}

// fresh requires that these services run in other containers than before, and
// nothing else does.
func (p *project) fresh(before map[string]string, services ...string) {
	p.t.Helper()
	now := p.Containers()
	require.Len(p.t, now, len(before))
	for name, id := range before {
		service := strings.TrimPrefix(name[:strings.LastIndex(name, "-")], p.Project+"-")
		if slices.Contains(services, service) {
			require.NotEqual(p.t, id, now[name], name)
		} else {
			require.Equal(p.t, id, now[name], name)
		}
	}
}

// stack is web behind a reverse proxy, a database with a volume of either kind,
// and a migration that runs to its end.
const stack = `
x-all: &all
  updaterd-e2e: ${MARK}
services:
  proxy:
    image: ${REGISTRY}/acme/proxy:stable
    environment: {APP_ROUTES: "/=http://web:8080 /db/=http://db:8080"}
    ports: ["127.0.0.1:${PORT}:8080"]
    networks: [front, back]
    dns: 127.0.0.1 # nobody to ask, and to wait for, about a name that is gone
    depends_on: {web: {condition: service_healthy}}
    labels: *all
  web:
    image: ${REGISTRY}/acme/web:stable
    environment: {SHOP: acme}
    networks: {front: {aliases: [shop]}, back: {}}
    restart: unless-stopped
    healthcheck: {interval: 600ms}
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
    labels:
      <<: *all
      updaterd.enable: "true"
      updaterd.post-update: /app get http://db:8080/files/data/value
  db:
    image: ${REGISTRY}/acme/db:stable
    environment: {APP_FILES: /}
    networks: [back, default]
    restart: always
    stop_grace_period: 3s
    volumes: [data:/data, /scratch]
    labels: {<<: *all, updaterd.enable: "true", updaterd.health.probe: "http://:8080/healthz"}
  migrate:
    image: ${REGISTRY}/acme/migrate:stable
    command: exit 0
    networks: [back]
    depends_on: {db: {condition: service_healthy}}
    labels: {<<: *all, updaterd.enable: "true"}
  worker:
    image: ${REGISTRY}/acme/worker:stable
    scale: 2
    read_only: true
    tmpfs: /tmp
    depends_on: [db]
    labels: {<<: *all, updaterd.enable: "true"}
networks: {default: {}, front: {}, back: {}}
volumes: {data: {}}
`

// TestComposeStack is brought up by Compose, updated well and badly while
// customers come in, and nothing of it is new to Compose afterwards.
func TestComposeStack(t *testing.T) {
	stage.NotOn(t, engine.Podman, noNames)
	t.Parallel()
	file := stack
	if engine.Kind(os.Getenv(engine.KindEnv)) == engine.Proxied { // noExec
		file = strings.Replace(stack, "      updaterd.post-update: /app get http://db:8080/files/data/value\n", "", 1)
		require.NotEqual(t, stack, file)
	}
	p := newProject(t, file)
	port := stage.FreePort(t)
	p.Env = append(p.Env, fmt.Sprintf("PORT=%d", port))
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	slow := stage.Behaviour{ListenAfter: 300 * time.Millisecond}
	p.push("acme/proxy", "stable", "proxy", stage.Behaviour{})
	p.push("acme/migrate", "stable", "migrate", stage.Behaviour{})
	p.push("acme/db", "stable", "d1", slow)
	p.push("acme/web", "stable", "v1", slow)
	p.push("acme/worker", "stable", "w1", slow)
	p.push("acme/smoke", "stable", "smoke", stage.Behaviour{})
	p.u.WriteConfig(labelled + fmt.Sprintf(`
rules:
  - match: {name: %q}
    health.test: {image: %q, command: [get, "http://$UPDATERD_ADDRESS:8080/order"], timeout: 30s}
`, p.Container("web"), p.reg.Ref("acme/smoke:stable")))
	p.Up()
	answers := func(path, want string) {
		t.Helper()
		stage.Eventually(t, 20*time.Second, url+path+" to answer "+want, func() bool {
			body, err := stage.Get(t.Context(), url+path)
			return err == nil && body == want
		})
	}
	answers("", "v1")
	for _, dir := range []string{"data", "scratch"} {
		put(t, url+"db/files/"+dir+"/value", "kept in "+dir)
	}
	kept := func() {
		t.Helper()
		answers("db/files/data/value", "kept in data")
		answers("db/files/scratch/value", "kept in scratch")
	}
	kept()
	p.upChangesNothing() // else the rest would prove nothing
	made := p.Containers()
	require.Len(t, made, 6)
	customers := func(what string, versions ...string) func() {
		gap := stage.MeasureGap(t, url)
		return func() {
			t.Helper()
			gap.Again(t)
			report := gap.Stop()
			t.Logf("%s: %s", what, report)
			// A bad one may be gone before it has answered anybody.
			require.Subset(t, versions, report.Bodies, what)
			require.Less(t, report.Longest, time.Minute, what)
		}
	}

	seen := customers("db, web and workers updated by run --once", "v1", "v2")
	p.push("acme/db", "stable", "d2", slow)
	p.push("acme/web", "stable", "v2", slow)
	p.push("acme/worker", "stable", "w2", slow)
	rows := p.pass(0)
	for _, service := range []string{"db", "web", "worker", "worker-2"} {
		require.Equal(t, "committed", rows[service].Outcome, "%s: %+v", service, rows[service])
	}
	require.Equal(t, "not-running", rows["migrate"].Reason)
	require.NotContains(t, rows, "proxy", "it has no label")
	answers("", "v2")
	seen()
	kept()
	p.fresh(made, "db", "web", "worker")
	p.upChangesNothing()

	seen = customers("web updated by the daemon", "v2", "v3")
	before := p.Containers()
	daemon := p.u.Start("run")
	p.push("acme/web", "stable", "v3", slow)
	daemon.WaitLog("phase=committed", 2*time.Minute)
	answers("", "v3")
	seen()
	p.fresh(before, "web")
	p.upChangesNothing()

	seen = customers("web exits, and is restored by the daemon", "v3")
	before = p.Containers()
	p.push("acme/web", "stable", "v4", stage.Exit(3))
	daemon.WaitLog("phase=restored", 2*time.Minute)
	answers("", "v3")
	seen()
	require.Zero(t, daemon.Stop(20*time.Second))
	p.fresh(before)
	p.upChangesNothing()
	rows = p.pass(0)
	require.Equal(t, "rejected", rows["web"].Reason)
	require.Regexp(t, `it was restarted [3-9] times`, rows["web"].Detail) // who looks late sees more of them

	seen = customers("web is unhealthy, and is restored by run --once", "v3", "v5")
	p.reg.Push("acme/web:stable", stage.Image{
		Version: "v5", Behave: stage.Behaviour{Unhealthy: true}, Healthcheck: stage.Check(200*time.Millisecond, 2),
	})
	require.Equal(t, "restored", p.pass(1)["web"].Outcome)
	answers("", "v3")
	seen()
	p.fresh(before)
	p.upChangesNothing()

	seen = customers("web fails its smoke test, and is restored by run --once", "v3", "v6")
	p.reg.Push("acme/web:stable", stage.Image{
		Version: "v6", Env: []string{"APP_BROKEN=/order"}, Healthcheck: stage.Check(500*time.Millisecond, 20),
	})
	rows = p.pass(1)
	require.Equal(t, "restored", rows["web"].Outcome)
	require.Contains(t, rows["web"].Detail, "out of order")
	answers("", "v3")
	seen()
	p.fresh(before)
	p.upChangesNothing()
	kept()
	all, err := p.d.ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("name", p.Project))})
	require.NoError(t, err)
	require.Len(t, all, len(before), "nothing is left of a test")
}

// put writes a page of an app with APP_FILES.
func put(t *testing.T, url, content string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader(content))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", b)
}

// TestComposeAndAnotherTag: the file still names the tag that a policy has left
// behind.
func TestComposeAndAnotherTag(t *testing.T) {
	t.Parallel()
	const file = `
services:
  web:
    image: ${REGISTRY}/acme/web:${TAG}
    labels: {updaterd-e2e: "${MARK}", updaterd.enable: "true", updaterd.policy: "semver:^1"}
`
	p := newProject(t, file)
	p.push("acme/web", "1.0.0", "v1.0", stage.Behaviour{})
	p.Env = append(p.Env, "TAG=1.0.0")
	p.Up()
	p.push("acme/web", "1.1.0", "v1.1", stage.Behaviour{})
	require.Equal(t, "committed", p.pass(0)["web"].Outcome)
	web := p.Container("web")
	c := p.d.Inspect(web)
	require.Equal(t, p.reg.Ref("acme/web:1.1.0"), c.Config.Image)
	p.upChangesNothing()

	p.Env = append(p.Env, "TAG=1.1.0")
	p.Up()
	now := p.d.Inspect(web)
	require.NotEqual(t, c.ID, now.ID, "the new tag in the file has it recreated")
	env := func(c container.InspectResponse) []string {
		// Podman shows the host name that it gives a container.
		return slices.DeleteFunc(c.Config.Env, func(e string) bool { return e == "HOSTNAME="+c.ID[:12] })
	}
	require.ElementsMatch(t, env(c), env(now))
	p.upChangesNothing()

	p.push("acme/web", "1.2.0", "v1.2", stage.Behaviour{})
	require.Equal(t, "committed", p.pass(0)["web"].Outcome)
	p.push("acme/web", "1.1.0", "v1.1, built again", stage.Behaviour{})
	p.Run("pull", "--quiet")
	p.Up()
	require.Equal(t, p.reg.Ref("acme/web:1.1.0"), p.d.Inspect(web).Config.Image, "Compose goes back to what the file says")
}

// TestComposeAndASharedTag: Compose sees that the tag has moved under what was
// left alone, as after a pull.
func TestComposeAndASharedTag(t *testing.T) {
	t.Parallel()
	p := newProject(t, `
x-web: &web
  image: ${REGISTRY}/acme/web:stable
services:
  web:
    <<: *web
    labels: {updaterd-e2e: "${MARK}", updaterd.enable: "true"}
  too:
    <<: *web
    labels: {updaterd-e2e: "${MARK}", updaterd.enable: "true"}
  unwatched:
    <<: *web
    labels: {updaterd-e2e: "${MARK}"}
  ended:
    <<: *web
    command: exit 0
    labels: {updaterd-e2e: "${MARK}", updaterd.enable: "true"}
`)
	p.push("acme/web", "stable", "v1", stage.Behaviour{})
	p.Up()
	made := p.Containers()
	runsOut := func() {
		p.d.Wait(p.Container("ended"), 10*time.Second, "ended", func(c container.InspectResponse) bool { return !c.State.Running })
	}
	runsOut()
	p.push("acme/web", "stable", "v2", stage.Behaviour{})
	rows := p.pass(0)
	require.Equal(t, "committed", rows["web"].Outcome)
	require.Equal(t, "committed", rows["too"].Outcome)
	p.fresh(made, "web", "too")
	before := p.Containers()
	p.Up()
	if !onPodman() { // see upChangesNothing
		p.fresh(before, "unwatched", "ended")
	}
	runsOut()
	for name := range before {
		require.Contains(t, p.d.Inspect(name).Config.Env, "APP_VERSION=v2", name)
	}
	p.upChangesNothing()
}

// TestComposeOneOffs of "docker compose run" carry the labels of the service's
// own containers.
func TestComposeOneOffs(t *testing.T) {
	t.Parallel()
	p := newProject(t, `
services:
  web:
    image: ${REGISTRY}/acme/web:stable
    labels: {updaterd-e2e: "${MARK}", updaterd.enable: "true"}
`)
	p.push("acme/web", "stable", "v1", stage.Behaviour{})
	p.Run("run", "-T", "-d", "--quiet-pull", "web") // before there is a container of the service
	p.Up()
	p.Run("run", "-T", "-d", "web")
	p.Run("run", "-T", "--rm", "web", "exit", "0")
	p.Run("run", "-T", "web", "exit", "0")
	p.Run("create", "--no-recreate")
	before := p.Containers()
	require.Len(t, before, 4)

	p.push("acme/web", "stable", "v2", stage.Behaviour{})
	rows := p.pass(0)
	require.Len(t, rows, 1)
	require.Equal(t, "committed", rows["web"].Outcome)
	p.push("acme/web", "stable", "v3", stage.Exit(3))
	require.Equal(t, "restored", p.pass(1)["web"].Outcome)
	after := p.Containers()
	require.Len(t, after, 4)
	for name, id := range before {
		if name == p.Container("web") {
			require.Contains(t, p.d.Inspect(name).Config.Env, "APP_VERSION=v2")
			continue
		}
		require.Equal(t, id, after[name], name)
		require.Contains(t, p.d.Inspect(name).Config.Env, "APP_VERSION=v1")
	}
	p.upChangesNothing()
}

// TestComposeFiles: configs and secrets by file are mounts; the others Compose
// copies into the container, where no inspect shows them.
func TestComposeFiles(t *testing.T) {
	t.Parallel()
	p := newProject(t, `
x-all: &all {updaterd-e2e: "${MARK}", updaterd.enable: "true"}
services:
  mounted:
    image: ${REGISTRY}/acme/web:stable
    environment: {APP_FILES: /}
    configs: [{source: file, target: /etc/app.conf}]
    secrets: [file]
    labels: *all
  config:
    image: ${REGISTRY}/acme/web:stable
    configs: [{source: content, target: /etc/app.conf}]
    labels: *all
  config-env:
    image: ${REGISTRY}/acme/web:stable
    configs: [environment]
    labels: *all
  secret:
    image: ${REGISTRY}/acme/web:stable
    secrets: [environment]
    labels: *all
  secret-target:
    image: ${REGISTRY}/acme/web:stable
    secrets: [{source: environment, target: /srv/token, mode: 0400}]
    labels: *all
configs:
  file: {file: app.conf}
  content: {content: "color=${COLOR}"}
  environment: {environment: COLOR}
secrets:
  file: {file: token}
  environment: {environment: TOKEN}
`)
	p.Write("app.conf", "color=green")
	p.Write("token", "hush")
	p.Env = append(p.Env, "COLOR=blue", "TOKEN=hush")
	p.push("acme/web", "stable", "v1", stage.Behaviour{})
	p.Up()
	before := p.Containers()
	p.push("acme/web", "stable", "v2", stage.Behaviour{})
	rows := p.pass(0)
	require.Len(t, rows, 5)
	for service, file := range map[string]string{
		"config": "/etc/app.conf", "config-env": "/environment",
		"secret": "/run/secrets/environment", "secret-target": "/srv/token",
	} {
		row := rows[service]
		require.Equal(t, "unsupported", row.Reason, "%s: %+v", service, row)
		require.Contains(t, row.Detail, file, service)
		require.Equal(t, before[p.Container(service)], p.Containers()[p.Container(service)], service)
	}
	require.Equal(t, "committed", rows["mounted"].Outcome, "%+v", rows["mounted"])
	for path, content := range map[string]string{"/etc/app.conf": "color=green", "/run/secrets/file": "hush"} {
		require.Equal(t, content, p.Run("exec", "-T", "mounted", "/app", "get", "http://127.0.0.1:8080/files"+path))
	}
}

// tunnel has what lives in another's network or volumes.
const tunnel = `
x-all: &all {updaterd-e2e: "${MARK}"}
services:
  vpn:
    image: ${REGISTRY}/acme/vpn:stable
    ports: ["127.0.0.1:${PORT}:8080", "127.0.0.1:${BEHIND}:8081"]
    volumes: [/keys]
    labels: {<<: *all, updaterd.enable: "true"}
  behind:
    image: ${REGISTRY}/acme/app:stable
    environment: {APP_PORT: 8081, MINE: 1}
    network_mode: service:vpn
    depends_on: {vpn: {condition: service_healthy}}
    labels: *all
  keys:
    image: ${REGISTRY}/acme/app:stable
    volumes_from: ["vpn:ro"]
    labels: *all
  restarts:
    image: ${REGISTRY}/acme/app:stable
    depends_on: {vpn: {condition: service_started, restart: true}}
    labels: *all
  waits:
    image: ${REGISTRY}/acme/app:stable
    depends_on: {vpn: {condition: service_started}}
    labels: *all
`

// TestComposeGroup: what lives in another's network or volumes goes along with
// it, and what Compose would restart is restarted.
func TestComposeGroup(t *testing.T) {
	t.Parallel()
	p := newProject(t, tunnel)
	port, behind := stage.FreePort(t), stage.FreePort(t)
	p.Env = append(p.Env, fmt.Sprintf("PORT=%d", port), fmt.Sprintf("BEHIND=%d", behind))
	answers := func(vpn string) {
		t.Helper()
		for at, want := range map[int]string{port: vpn, behind: "app"} {
			stage.Eventually(t, 30*time.Second, want+" to answer", func() bool {
				body, err := stage.Get(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/", at))
				return err == nil && body == want
			})
		}
	}
	p.push("acme/vpn", "stable", "vpn1", stage.Behaviour{})
	p.push("acme/app", "stable", "app", stage.Behaviour{})
	p.Up()
	answers("vpn1")
	again := !onPodman() // There a second "up" fails by itself: it removes no container that others live in.
	if again {
		p.upChangesNothing()
	}
	made := p.Containers()
	started := func(service string) string { return p.d.Inspect(p.Container(service)).State.StartedAt }
	restarted, waited := started("restarts"), started("waits")
	app := p.d.Inspect(p.Container("behind")).Image

	p.push("acme/vpn", "stable", "vpn2", stage.Behaviour{})
	// A new app is none of its business: these have no label.
	p.push("acme/app", "stable", "app2", stage.Behaviour{})
	require.Equal(t, "committed", p.pass(0)["vpn"].Outcome)
	answers("vpn2")
	p.fresh(made, "vpn", "behind", "keys")
	require.NotEqual(t, restarted, started("restarts"))
	require.Equal(t, waited, started("waits"))
	require.Equal(t, app, p.d.Inspect(p.Container("behind")).Image)

	before := p.Containers()
	p.push("acme/vpn", "stable", "vpn3", stage.Exit(3))
	require.Equal(t, "restored", p.pass(1)["vpn"].Outcome)
	answers("vpn2")
	p.fresh(before)
	require.Equal(t, "rejected", p.pass(0)["vpn"].Reason)
	if !again {
		return
	}

	// Compose hashes the id of the container that another one uses into the
	// config-hash of that other, and nobody but Compose can renew it.
	p.Up()
	p.fresh(before, "behind", "keys")
	answers("vpn2")
	p.upChangesNothing()
}

// TestComposeOneOffsOfAGroup: one that has ended is never started again, and one
// that runs is not for us to run again.
func TestComposeOneOffsOfAGroup(t *testing.T) {
	t.Parallel()
	p := newProject(t, tunnel)
	p.Env = append(p.Env, fmt.Sprintf("PORT=%d", stage.FreePort(t)), fmt.Sprintf("BEHIND=%d", stage.FreePort(t)))
	p.push("acme/vpn", "stable", "vpn1", stage.Behaviour{})
	p.push("acme/app", "stable", "app", stage.Behaviour{})
	p.Up()
	// Podman would have vpn made anew for it, and does not remove the old one.
	oneOff := func(args ...string) { p.Run(slices.Concat([]string{"run", "-T", "--no-deps"}, args)...) }
	oneOff("behind", "exit", "0")
	oneOff("restarts", "exit", "0")
	oneOff("-d", "--name", p.Project+"-job", "restarts")
	job := p.d.Inspect(p.Project + "-job")
	made := p.Containers()
	require.Len(t, made, 8)

	p.push("acme/vpn", "stable", "vpn2", stage.Behaviour{})
	if onPodman() { // It would not remove the old vpn after the update, as long as the ended one is there.
		row := p.pass(0)["vpn"]
		require.Equal(t, "unsupported", row.Reason, "%+v", row)
		require.Contains(t, row.Detail, p.Project+"-behind-run-")
		p.fresh(made)
		for name := range made {
			if strings.HasPrefix(name, p.Project+"-behind-run-") {
				p.d.Remove(name)
			}
		}
		made = p.Containers()
		require.Len(t, made, 7)
	}
	rows := p.pass(0)
	require.Len(t, rows, 1)
	require.Equal(t, "committed", rows["vpn"].Outcome, "%+v", rows["vpn"])
	require.Len(t, p.Containers(), len(made))
	require.Equal(t, job.State.StartedAt, p.d.Inspect(job.ID).State.StartedAt)

	oneOff("-d", "-e", "APP_PORT=8082", "--name", p.Project+"-other", "behind")
	p.push("acme/vpn", "stable", "vpn3", stage.Behaviour{})
	before := p.Containers()
	row := p.pass(0)["vpn"]
	require.Equal(t, "unsupported", row.Reason, "%+v", row)
	require.Contains(t, row.Detail, p.Project+"-other")
	p.fresh(before)
	p.d.Remove(p.Project + "-other")
	require.Equal(t, "committed", p.pass(0)["vpn"].Outcome)
}

// TestComposeUpInTheMiddle of a change: Compose takes what the change made for
// containers of the service, one too many, and keeps the one of the image that
// the tag stands for. Whatever it does, the service must run in the end.
func TestComposeUpInTheMiddle(t *testing.T) {
	const file = `
services:
  web:
    image: ${REGISTRY}/acme/web:stable
    restart: unless-stopped
    labels: {updaterd-e2e: "${MARK}", updaterd.enable: "true"}
`
	for _, tt := range []struct {
		name string
		when func(stage.Call) bool
		next stage.Behaviour
	}{
		{"when the new container has been created", nth("create", 1), stage.Behaviour{}},
		{"when the old container has been stopped", nth("stop", 1), stage.Behaviour{}},
		{"when the new container has been started", nth("start", 1), stage.Behaviour{}},
		{"when a good one is being judged", nth("rename to name", 1), stage.Behaviour{}},
		{"when a bad one is being judged", nth("rename to name", 1), stage.Behaviour{Exit: ptr(3), ExitAfter: time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newProject(t, file)
			p.push("acme/web", "stable", "v1", stage.Behaviour{})
			p.Up()
			p.push("acme/web", "stable", "v2", tt.next)
			tr := aside(at{after: true, match: tt.when}, func() { p.Up() })
			p.u.Env[0] = "DOCKER_HOST=" + p.d.Proxy(tr.Hooks).Host
			p.u.Run("run", "--once", "-o", "json")
			within(t, time.Second, "the moment", tr.sprung)
			require.Len(t, p.Containers(), 1)
			p.d.WaitHealthy(p.Container("web"), 20*time.Second)
			p.upChangesNothing()
		})
	}
}

package e2e

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// group is what everybody has who has a VPN sidecar: vpn, and two containers that
// share its network.
type group struct {
	*rig
	members []*rig // vpn, app and tor: of each its container and its image
}

// ports are where the members listen, in the network that they share.
var ports = []string{"8080", "8081", "8082"}

// newGroup runs one. labels are those of tor.
func newGroup(t *testing.T, policy string, labels map[string]string) *group {
	t.Helper()
	d, reg := stage.OpenDocker(t), stage.NewRegistry(t, stage.RegistryOptions{})
	g := &group{}
	for i, base := range []string{"vpn", "app", "tor"} {
		r := &rig{t: t, d: d, reg: reg, name: d.Name(base)}
		g.members = append(g.members, r)
		r.ref = reg.Ref("acme/" + r.name + ":latest")
		r.first = r.push("latest", stage.Image{Version: base + "-v1"})
		spec := stage.Spec{Name: r.name, Config: container.Config{Image: r.ref, Env: []string{"APP_PORT=" + ports[i]}}}
		if base == "tor" {
			spec.Config.Labels = labels
		}
		spec.Host.RestartPolicy.Name = container.RestartPolicyMode(policy)
		if i > 0 {
			spec.Host.NetworkMode = container.NetworkMode("container:" + g.members[0].name)
		}
		t.Cleanup(r.sweep)
		d.Run(spec)
		r.before = d.WaitRunning(r.name, 20*time.Second)
	}
	g.rig = g.members[0]
	g.u = stage.NewUpdaterd(t, d.Scoped(), settings)
	return g
}

// names are those of the members, sorted.
func (g *group) names() []string {
	var names []string
	for _, m := range g.members {
		names = append(names, m.name)
	}
	slices.Sort(names)
	return names
}

// fetch asks a member for a page from within its network.
func (g *group) fetch(from *rig, url string) string {
	g.t.Helper()
	ctx := g.t.Context()
	exec, err := g.d.ContainerExecCreate(ctx, from.name, container.ExecOptions{Cmd: []string{"/app", "get", url}, AttachStdout: true, AttachStderr: true})
	require.NoError(g.t, err)
	conn, err := g.d.ContainerExecAttach(ctx, exec.ID, container.ExecAttachOptions{})
	require.NoError(g.t, err)
	defer conn.Close()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, conn.Reader)
	require.NoError(g.t, err)
	return out.String()
}

// serve requires that there are the three and nothing else, and that each
// reaches each in the network that they share; want are the versions.
func (g *group) serve(want ...string) {
	g.t.Helper()
	require.Equal(g.t, g.names(), g.d.Names(), "three containers, with the right names")
	vpn := g.d.Inspect(g.members[0].name)
	for i, m := range g.members {
		c := g.d.WaitRunning(m.name, 10*time.Second)
		require.Equal(g.t, m.before.HostConfig.RestartPolicy, c.HostConfig.RestartPolicy)
		if i > 0 {
			require.Equal(g.t, "container:"+vpn.ID, string(c.HostConfig.NetworkMode))
		}
		require.Empty(g.t, m.tags("updaterd.local/kept/"+m.name))
		for j := range g.members {
			url := "http://127.0.0.1:" + ports[j] + "/"
			stage.Eventually(g.t, 10*time.Second, fmt.Sprintf("%s to reach %s", m.name, want[j]), func() bool {
				return g.fetch(m, url) == want[j]
			})
		}
	}
}

// allAsTheyWere requires the three originals, in working order.
func (g *group) allAsTheyWere() {
	g.t.Helper()
	for _, m := range g.members {
		require.Equal(g.t, m.before.ID, g.d.Inspect(m.name).ID, "%s is not the original", m.name)
		require.Equal(g.t, m.before.Image, g.d.Image(m.ref).ID, "the local tag of %s stands for another image", m.name)
	}
	g.serve("vpn-v1", "app-v1", "tor-v1")
}

// rows are those of one command, by the members' places.
func (g *group) rows(code int, args ...string) []row {
	g.t.Helper()
	res := g.u.Run(append(args, "-o", "json")...)
	all := parseRows(g.t, res.Stdout)
	require.Len(g.t, all, len(g.members))
	require.Equal(g.t, code, res.Code, res.Stdout)
	rows := make([]row, len(g.members))
	for i, m := range g.members {
		n := slices.IndexFunc(all, func(r row) bool { return r.Workload == "local/"+m.name })
		require.GreaterOrEqual(g.t, n, 0)
		rows[i] = all[n]
	}
	return rows
}

func TestGroupWithTwoUpdatesIsOneChange(t *testing.T) {
	t.Parallel()
	g := newGroup(t, "always", nil)
	for i, version := range []string{"vpn-v2", "app-v2"} {
		g.members[i].push("latest", stage.Image{Version: version})
	}
	for _, r := range g.rows(0, "run", "--once") {
		require.Equal(t, "committed", r.Outcome, r.Detail)
	}
	g.serve("vpn-v2", "app-v2", "tor-v1")
	for _, m := range g.members {
		require.NotEqual(t, m.before.ID, g.d.Inspect(m.name).ID, "%s lives in what has gone", m.name)
	}
	events := g.history()
	told := map[string]string{}
	for _, e := range events {
		require.Equal(t, events[0].Change, e.Change)
		told[e.Workload] = e.Event
	}
	require.NotEmpty(t, events[0].Change)
	require.Equal(t, map[string]string{
		"local/" + g.members[0].name: "updated", "local/" + g.members[1].name: "updated", "local/" + g.members[2].name: "recreated",
	}, told)
	for _, r := range g.rows(0, "run", "--once") {
		require.Equal(t, "up-to-date", r.Reason, r.Detail)
	}
}

func TestGroupWithAMemberThatIsNotWatchedMovesWhole(t *testing.T) {
	t.Parallel()
	g := newGroup(t, "always", map[string]string{"updaterd.enable": "false"})
	vpn, tor := g.members[0], g.members[2]
	tor.push("latest", stage.Image{Version: "tor-v2"}) // nobody wants it
	vpn.push("latest", stage.Image{Version: "vpn-v2"})
	res := g.u.Run("run", "--once")
	require.Zero(t, res.Code)
	g.serve("vpn-v2", "app-v1", "tor-v1")
	require.NotEqual(t, tor.before.ID, g.d.Inspect(tor.name).ID)
	require.Equal(t, tor.before.Image, g.d.Inspect(tor.name).Image)
}

func TestGroupWithAMemberThatIsHeldIsLeftAlone(t *testing.T) {
	t.Parallel()
	g := newGroup(t, "always", map[string]string{"updaterd.mode": "hold"})
	g.members[0].push("latest", stage.Image{Version: "vpn-v2"})
	for _, command := range [][]string{{"check"}, {"run", "--once"}} {
		r := g.rows(0, command...)[0]
		require.Equal(t, "held", r.Reason)
		require.Contains(t, r.Detail, g.members[2].name)
	}
	for _, m := range g.members {
		require.Equal(t, m.before.State.StartedAt, g.d.Inspect(m.name).State.StartedAt, "%s was touched", m.name)
	}
	g.allAsTheyWere()
}

func TestGroupThatDependsInACircleIsRefused(t *testing.T) {
	t.Parallel()
	g := newGroup(t, "always", nil)
	vpn, app := g.members[0], g.members[1]
	vpn.push("latest", stage.Image{Version: "vpn-v2"})
	g.u.WriteConfig(settings + fmt.Sprintf("rules:\n- match: {name: %s}\n  depends-on: [%s]\n", vpn.name, app.name))
	for _, command := range [][]string{{"check"}, {"run", "--once"}} {
		r := g.rows(1, command...)[0]
		require.Equal(t, "invalid-settings", r.Reason)
		require.Contains(t, r.Detail, vpn.name)
		require.Contains(t, r.Detail, app.name)
	}
	g.allAsTheyWere()
}

// TestGroupWithABadMemberComesBackWhole: whichever is bad, all three come back,
// and only that one is not tried again.
func TestGroupWithABadMemberComesBackWhole(t *testing.T) {
	for bad, name := range []string{"what the others live in", "one that lives in it"} {
		for _, policy := range []string{"no", "always"} {
			t.Run(name+" under "+policy, func(t *testing.T) {
				t.Parallel()
				g := newGroup(t, policy, nil)
				for i, version := range []string{"vpn-v2", "app-v2"} {
					if i == bad {
						g.members[i].pushBad("latest", version)
					} else {
						g.members[i].push("latest", stage.Image{Version: version})
					}
				}
				for i, r := range g.rows(1, "run", "--once") {
					require.Equal(t, "restored", r.Outcome, r.Detail)
					if i < 2 {
						require.Contains(t, r.Detail, g.members[bad].name)
					}
				}
				g.allAsTheyWere()
				for i, r := range g.rows(0, "check") {
					switch i {
					case bad:
						require.Equal(t, "rejected", r.Reason, r.Detail)
					case 2:
						require.Equal(t, "up-to-date", r.Reason, r.Detail)
					default:
						require.Equal(t, "update", r.Reason, "it is not to blame: %s", r.Detail)
					}
				}
				// Without the bad one the other goes through.
				g.rows(0, "run", "--once")
				want := []string{"vpn-v2", "app-v2", "tor-v1"}
				want[bad] = strings.Replace(want[bad], "v2", "v1", 1)
				g.serve(want...)
			})
		}
	}
}

// TestGroupKilledAtItsCalls kills updaterd at every few calls of an update of
// three, and lets the next one put things right.
func TestGroupKilledAtItsCalls(t *testing.T) {
	for _, bad := range []bool{false, true} {
		begin := func(t *testing.T) *group {
			g := newGroup(t, "always", nil)
			if bad {
				g.members[0].pushBad("latest", "vpn-v2")
				return g
			}
			g.members[0].push("latest", stage.Image{Version: "vpn-v2"})
			g.members[2].push("latest", stage.Image{Version: "tor-v2"})
			return g
		}
		holds := func(g *group) {
			if bad {
				g.allAsTheyWere()
			} else {
				g.serve("vpn-v2", "app-v1", "tor-v2")
			}
		}
		t.Run(fmt.Sprintf("bad image %v", bad), func(t *testing.T) {
			t.Parallel()
			g := begin(t)
			p := g.through(stage.Hooks{})
			g.u.Run("run", "--once")
			holds(g)
			made := map[string]int{}
			for _, c := range p.Calls() {
				made[kind(c)]++
			}
			for _, what := range []string{"create", "stop", "start"} {
				require.GreaterOrEqual(t, made[what], len(g.members), "every member is moved: %v", made)
			}
			total := len(p.Calls())
			for n := 1; n <= total; n += 5 {
				where := at{after: n%2 == 0, match: call(n)}
				t.Run(fmt.Sprintf("%s call %d", where, n), func(t *testing.T) {
					t.Parallel()
					g := begin(t)
					require.True(t, g.runKilled(where, "run", "--once") || bad, "there was no such call")
					g.u.Run("run", "--once")
					holds(g)
					g.u.Run("run", "--once")
					holds(g)
				})
			}
		})
	}
}

// TestLinkThatTheEngineLeadsAstray: an engine finds by its name what a container is
// linked to, when it starts itself. One that was restarted while the new container
// had the name gives the link back when it is restarted once more, and then all is
// as it was.
func TestLinkThatTheEngineLeadsAstray(t *testing.T) {
	stage.NotOn(t, engine.Podman, "Podman knows no links")
	t.Parallel()
	d := stage.StartDocker(t, engine.Options{})
	r := newRig(t, start{engine: d, policy: "always", config: strings.Replace(settings, "stable: 500ms", "stable: 1m", 1)})
	shop := d.Name("shop")
	d.Run(stage.Spec{
		Name:   shop,
		Config: container.Config{Image: r.ref, Labels: map[string]string{"updaterd.enable": "false"}},
		Host:   container.HostConfig{Links: []string{r.name + ":db"}, RestartPolicy: container.RestartPolicy{Name: "always"}},
	})
	before := d.WaitRunning(shop, 20*time.Second)
	r.push("latest", stage.Image{Version: "v2", Healthcheck: stage.Check(200*time.Millisecond, 2), Behave: stage.Behaviour{UnhealthyAfter: 8 * time.Second}})
	daemon := r.u.Start("run")
	daemon.WaitLog("phase=judging", time.Minute)
	restart := func() {
		require.NoError(t, d.Engine.Kill())
		require.NoError(t, d.Engine.Up(t.Context()))
	}
	restart()
	daemon.WaitLog("restart the engine once more", time.Minute)
	restart()
	over(r, daemon, "restored")
	for _, was := range []container.InspectResponse{r.before, before} {
		is := d.WaitRunning(strings.TrimPrefix(was.Name, "/"), 20*time.Second)
		require.Equal(t, was.ID, is.ID)
		require.Equal(t, was.HostConfig.Links, is.HostConfig.Links)
		require.Equal(t, was.HostConfig.RestartPolicy, is.HostConfig.RestartPolicy)
	}
	require.Len(t, d.Names(), 2)
}

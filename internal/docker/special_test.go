package docker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// kind is a container that is updated otherwise than most.
type kind struct {
	name     string
	settings updater.Settings
	edit     func(*container.Config, *container.HostConfig)
	// ready brings what was started into the state that it is updated in.
	ready func(*testing.T, *rig, string)
}

func (k kind) idle() bool { return k.settings.IncludeStopped }

// kinds are the special ones, in networks of this name.
func kinds(net string) []kind {
	return []kind{
		{name: "start-first", settings: updater.Settings{StartFirst: true}, edit: func(_ *container.Config, h *container.HostConfig) {
			h.NetworkMode = container.NetworkMode(net)
			h.RestartPolicy.Name = container.RestartPolicyAlways
		}},
		{name: "rm", settings: updater.Settings{NoRollback: true}, edit: func(c *container.Config, h *container.HostConfig) {
			h.AutoRemove = true
			c.Volumes = map[string]struct{}{"/data": {}}
			if isPodmanRun() { // with an anonymous one it is refused
				h.Binds = []string{net + "-data:/data"}
			}
		}},
		{name: "created", settings: updater.Settings{IncludeStopped: true}},
		{name: "exited", settings: updater.Settings{IncludeStopped: true}, ready: func(t *testing.T, r *rig, name string) {
			require.NoError(t, r.cli.ContainerStop(t.Context(), name, container.StopOptions{}))
		}, edit: func(_ *container.Config, h *container.HostConfig) {
			h.RestartPolicy.Name = container.RestartPolicyAlways
		}},
		{name: "paused", settings: updater.Settings{IncludeStopped: true}, ready: func(t *testing.T, r *rig, name string) {
			require.NoError(t, r.cli.ContainerPause(t.Context(), name))
		}},
	}
}

// start makes a container of this kind.
func (k kind) start(t *testing.T, r *rig, name, ref string) container.InspectResponse {
	t.Helper()
	edit := func(c *container.Config, h *container.HostConfig) {
		if k.edit != nil {
			k.edit(c, h)
		}
	}
	if k.name == "created" {
		created, err := r.cli.ContainerCreate(t.Context(), &container.Config{Image: ref, StopSignal: "SIGKILL"},
			&container.HostConfig{NetworkMode: "none"}, nil, nil, r.name(name))
		require.NoError(t, err)
		require.NotEmpty(t, created.ID)
	} else {
		r.run(t, name, ref, edit)
	}
	if k.ready != nil {
		k.ready(t, r, r.name(name))
	}
	return r.inspect(t, name)
}

func (r *rig) inspect(t *testing.T, name string) container.InspectResponse {
	t.Helper()
	c, err := r.cli.ContainerInspect(t.Context(), r.name(name))
	require.NoError(t, err)
	return c
}

// asItWas requires the original, in the state that it was in.
func asItWas(t *testing.T, before, now container.InspectResponse) {
	t.Helper()
	require.Equal(t, before.ID, now.ID, "it is not the original")
	require.Equal(t, before.Name, now.Name)
	require.Equal(t, before.State.Status, now.State.Status)
	require.Equal(t, before.State.StartedAt, now.State.StartedAt, "it was started")
	require.Equal(t, before.HostConfig.RestartPolicy, now.HostConfig.RestartPolicy)
	require.Equal(t, networksOf(before), networksOf(now))
}

func networksOf(c container.InspectResponse) map[string]string {
	all := map[string]string{}
	for name, e := range c.NetworkSettings.Networks {
		all[name] = e.NetworkID + " " + e.IPAddress
	}
	return all
}

// TestSpecialOnes: each kind is updated as it should be, and comes back as it
// should.
func TestSpecialOnes(t *testing.T) {
	base := baseImage(t)
	r := newRigOn(t, base)
	r.freeSubnet(t, "net")
	h := r.backend(t)
	for _, k := range kinds(r.name("net")) {
		for _, good := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, good %v", k.name, good), func(t *testing.T) {
				name := strings.ReplaceAll(t.Name()[len("TestSpecialOnes/"):], ",_good_", "-")
				r.image(t, name, command("serve"))
				r.pull(t, name)
				before := k.start(t, r, name, r.repo+":"+name)
				to := command("serve", "new")
				if !good && !k.idle() {
					to = command("exit", "3")
				}
				c := r.change(name, name, name, r.image(t, name, to))
				c.Parts[0].Settings = k.settings
				c.Parts[0].Settings.Keep = 1
				err := r.apply(t, h, &c)
				var fault *updater.Fault
				switch {
				case !good && err != nil:
					require.ErrorAs(t, err, &fault)
					require.Equal(t, updater.Bad, fault.Verdict)
				default:
					require.NoError(t, err)
				}
				require.Equal(t, k.idle(), c.Parts[0].Idle)

				switch k.name {
				case "start-first":
					asItWas(t, before, r.inspect(t, name))
					require.Zero(t, c.Gap)
				case "rm":
					_, err := r.cli.ContainerInspect(t.Context(), before.ID)
					require.True(t, cerrdefs.IsNotFound(err), "the engine removes it: %v", err)
				default:
					aside, err := r.cli.ContainerInspect(t.Context(), before.ID)
					require.NoError(t, err)
					require.Equal(t, before.State.Status, aside.State.Status)
					require.Equal(t, container.StateCreated, r.inspect(t, name).State.Status, "the new one was started")
				}

				if good {
					if !k.idle() {
						o, err := h.Observe(t.Context(), c, 0, updater.NewSide)
						require.NoError(t, err)
						require.True(t, o.Running && !o.Undone, "%+v", o)
					}
					require.NoError(t, h.Commit(t.Context(), c))
					now := r.inspect(t, name)
					require.NotEqual(t, before.ID, now.ID)
					require.NotEqual(t, before.Image, now.Image)
					require.Equal(t, !k.idle(), now.State.Running)
					require.Equal(t, before.HostConfig.RestartPolicy, now.HostConfig.RestartPolicy)
					require.Equal(t, before.HostConfig.AutoRemove, now.HostConfig.AutoRemove)
					_, err = r.cli.ContainerInspect(t.Context(), before.ID)
					require.True(t, cerrdefs.IsNotFound(err), "%v", err)
				} else {
					if !k.idle() && fault == nil {
						require.Eventually(t, func() bool {
							o, err := h.Observe(t.Context(), c, 0, updater.NewSide)
							return err == nil && !o.Running && !o.Restarting && !o.Gone && o.ExitCode == 3 || o.Restarts > 0
						}, 10*time.Second, 20*time.Millisecond, "the exit code is not told")
					}
					c.Verdict = updater.Bad
					got, err := r.restore(t, h, c)
					require.NoError(t, err)
					if k.name == "rm" {
						require.True(t, got.Copy)
						require.Contains(t, got.Why, "--rm")
						now := r.inspect(t, name)
						require.True(t, now.State.Running)
						require.True(t, now.HostConfig.AutoRemove)
						require.Equal(t, before.Image, now.Image)
						require.Equal(t, before.Mounts[0].Name, now.Mounts[0].Name, "the volume that nobody named")
						o, err := h.Observe(t.Context(), c, 0, updater.OldSide)
						require.NoError(t, err)
						require.True(t, o.Running, "%+v", o)
					} else {
						require.Equal(t, updater.Restoration{}, got)
						asItWas(t, before, r.inspect(t, name))
					}
					require.Equal(t, before.Image, r.local(t, name), "the local tag")
				}
				require.Empty(t, r.leftovers(t, name))
				found, err := h.Traces(t.Context(), nil)
				require.NoError(t, err)
				require.False(t, slices.ContainsFunc(found, func(f updater.Change) bool { return f.Unit == c.Unit }))
			})
		}
	}
}

// TestSpecialOnesThatAreRefused: without its setting, or where it cannot be.
func TestSpecialOnesThatAreRefused(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	for _, k := range kinds("none") {
		r.image(t, k.name, command("serve"))
		r.pull(t, k.name)
		before := k.start(t, r, k.name, r.repo+":"+k.name)
		c := r.change(k.name, k.name, k.name, r.image(t, k.name, command("serve", "new")))
		switch {
		case k.idle():
			refused(t, h.Plan(t.Context(), &c, nil), updater.NotRunning, map[string]string{
				"created": "it is created: start it", "exited": "it is exited: start it", "paused": "docker unpause",
			}[k.name])
		case k.name == "rm":
			refused(t, h.Plan(t.Context(), &c, nil), updater.Unsupported, "updaterd.no-rollback=true")
			c.Parts[0].Settings = updater.Settings{NoRollback: true, StartFirst: true}
			refused(t, h.Plan(t.Context(), &c, nil), updater.Unsupported, "start-first: it is run with --rm")
		default:
			require.NoError(t, h.Plan(t.Context(), &c, nil))
		}
		asItWas(t, before, r.inspect(t, k.name))
		all, err := h.Workloads(t.Context())
		require.NoError(t, err)
		i := slices.IndexFunc(all, func(w updater.Workload) bool { return w.ID == c.Unit })
		require.GreaterOrEqual(t, i, 0)
		require.Equal(t, k.idle(), all[i].Skip != nil && all[i].Skip.Reason == updater.NotRunning, k.name)
	}
}

func TestWhatCannotRunBesideItsReplacement(t *testing.T) {
	const plain = `"Config":{},"HostConfig":{"NetworkMode":"mine"},"NetworkSettings":{"Networks":{"mine":{"Aliases":["web"],"MacAddress":"02:42:ac:11:00:02"}}}`
	host := func(h string) string { return strings.Replace(plain, `"NetworkMode":"mine"`, h, 1) }
	network := func(n string) string {
		return strings.Replace(plain, `"Aliases":["web"],"MacAddress":"02:42:ac:11:00:02"`, n, 1)
	}
	for name, row := range map[string]struct {
		inspect string
		parts   int
		why     string // "": it can
	}{
		"a name and an alias":          {plain, 1, ""},
		"no network":                   {host(`"NetworkMode":"none"`), 1, ""},
		"a port that the engine picks": {host(`"PortBindings":{"80/tcp":[{"HostPort":""},{"HostPort":"0"}]}`), 1, ""},
		"something read-only":          {plain + `,"Mounts":[{"Type":"bind","Destination":"/conf"}]`, 1, ""},
		"memory of its own":            {plain + `,"Mounts":[{"Type":"tmpfs","Destination":"/tmp","RW":true}]`, 1, ""},
		"a host port":                  {host(`"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]}`), 1, "port 80/tcp as 8080"},
		"a range of host ports":        {host(`"PortBindings":{"80/tcp":[{"HostPort":"8080-8090"}]}`), 1, "as 8080-8090"},
		"the host's network":           {host(`"NetworkMode":"host"`), 1, "network host"},
		"another's network":            {host(`"NetworkMode":"container:vpn"`), 1, "network container:vpn"},
		"--rm":                         {host(`"AutoRemove":true`), 1, "--rm"},
		"a fixed address":              {network(`"IPAMConfig":{"IPv4Address":"10.0.0.9"}`), 1, "fixed address in network mine"},
		"a fixed IPv6 address":         {network(`"IPAMConfig":{"IPv6Address":"fd00::9"}`), 1, "fixed address in network mine"},
		"a fixed link-local address":   {network(`"IPAMConfig":{"LinkLocalIPs":["169.254.3.4"]}`), 1, "fixed address in network mine"},
		"a MAC address":                {strings.Replace(plain, `"Config":{}`, `"Config":{"MacAddress":"52:54:00:12:34:56"}`, 1), 1, "MAC address"},
		"a maker's MAC address":        {network(`"MacAddress":"00:16:3e:11:00:02"`), 1, "MAC address of its own in network mine"},
		"a volume":                     {plain + `,"Mounts":[{"Type":"volume","Name":"data","Destination":"/data","RW":true}]`, 1, "mounted at /data"},
		"a directory of the host":      {plain + `,"Mounts":[{"Type":"bind","Source":"/srv","Destination":"/srv","RW":true}]`, 1, "mounted at /srv"},
		"others that move along":       {plain, 2, "together with other containers"},
	} {
		t.Run(name, func(t *testing.T) {
			err := refuseOverlap(snapshot{Container: []byte("{" + row.inspect + "}")}, row.parts)
			if row.why == "" {
				require.NoError(t, err)
				return
			}
			refused(t, err, updater.Unsupported, row.why)
			refused(t, err, updater.Unsupported, "start-first: ")
			refused(t, err, updater.Unsupported, "take the setting away")
		})
	}
}

// TestCrashesOfSpecialOnes kills the process after calls that change something,
// and its successor in the middle of recovery, with the journal kept and lost.
// Every call of a good start-first is met with either; the others share them out.
func TestCrashesOfSpecialOnes(t *testing.T) {
	base := baseImage(t)
	subnets := newRigOn(t, base)
	subnets.freeSubnet(t, "net")
	for _, k := range kinds(subnets.name("net")) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			r := newRigOn(t, base)
			old, bad, better := command("serve"), command("exit", "3"), command("serve", "new")
			r.image(t, "app", old)
			r.pull(t, "app")
			for _, good := range []bool{true, false} {
				if !good && k.idle() {
					continue // nothing is judged
				}
				to := better
				if !good {
					to = bad
				}
				s := specialCrash{kind: k, good: good, old: r.local(t, "app"), digest: r.image(t, "app", to)}
				for _, odd := range []int{0, 1} {
					stride := 1
					if k.name != "start-first" || !good {
						if odd == 1 {
							break
						}
						stride = 2
					}
					for s.n = 0; ; s.n += stride {
						s.lost = odd == (s.n/stride)%2
						s.again = (s.n + len(k.name)) % 5
						ended := false
						t.Run(fmt.Sprintf("good %v, journal lost %v, call %d, then %d", good, s.lost, s.n, s.again), func(t *testing.T) {
							ended = r.crashSpecial(t, s)
						})
						if ended || t.Failed() {
							break
						}
					}
				}
				r.image(t, "app", old)
			}
		})
	}
}

type specialCrash struct {
	kind
	good, lost  bool
	n, again    int
	old, digest string
}

// crashSpecial is one update that is killed at call n, and its recovery, which
// is killed at call again. It reports whether the update came to its end first.
func (r *rig) crashSpecial(t *testing.T, k specialCrash) (ended bool) {
	const name = "web"
	defer r.reset(t, name)
	require.NoError(t, r.cli.ImageTag(t.Context(), k.old, r.repo+":app"))
	before := k.start(t, r, name, r.repo+":app")
	c := r.change(name, "app", "app", k.digest)
	c.ID = fmt.Sprintf("%s-%v-%v-%d", k.name, k.good, k.lost, k.n)
	c.Parts[0].Settings = k.settings
	c.Parts[0].Settings.Keep = 1
	first := &process{rig: r, host: r.backend(t), journal: &c}
	require.NoError(t, first.host.Plan(t.Context(), first.journal, nil))

	died := r.crashAt(k.n, true)
	err := first.goOn(t, k.good)
	r.failNth(0, false)
	if died() == "" {
		require.NoError(t, err)
		ended, k.lost = k.n > 0, false
	}
	last := *first.journal
	for life, n := range []int{k.again, 0} {
		next := &process{rig: r, host: r.backend(t), journal: &last}
		died := r.crashAt(n, true)
		err := next.recover(t, crash{good: k.good, lost: k.lost})
		for range 50 {
			if err != nil && died() == "" { // as the driver insists
				time.Sleep(200 * time.Millisecond)
				err = next.recover(t, crash{good: k.good, lost: k.lost})
			}
		}
		if errors.Is(err, updater.ErrSuperseded) && k.name == "rm" && k.lost && !k.good {
			err = nil // nothing is left
		}
		r.failNth(0, false)
		last = *next.journal
		if died() == "" {
			require.NoError(t, err, "life %d", life)
			break
		}
	}

	web, err := r.cli.ContainerInspect(t.Context(), r.name(name))
	if k.name == "rm" && k.lost && !k.good && (cerrdefs.IsNotFound(err) || web.Image != before.Image) {
		// The engine removed the original, and the record went with the journal: the
		// new one is all there is, or was.
		return ended
	}
	require.NoError(t, err)
	switch {
	case web.ID == before.ID:
		asItWas(t, before, web)
	case web.Image == before.Image:
		require.Equal(t, "rm", k.name, "a copy, although the original was there")
		require.True(t, web.State.Running)
		require.Equal(t, before.Mounts[0].Name, web.Mounts[0].Name)
	case k.idle():
		require.Equal(t, container.StateCreated, web.State.Status, "it was started")
	default:
		require.True(t, web.State.Running && !web.State.Restarting, "%+v", web.State)
	}
	require.Equal(t, before.HostConfig.RestartPolicy, web.HostConfig.RestartPolicy)
	require.Equal(t, web.Image == before.Image, !k.good || web.Image == before.Image, "the bad image stays")
	if k.n == 0 && k.good {
		require.NotEqual(t, before.Image, web.Image)
	}
	if web.Image == before.Image && !k.lost {
		require.Equal(t, k.old, r.local(t, "app"), "the local tag is back")
	}
	left := r.leftovers(t, name)
	if k.lost {
		// Where no container is left to tell of the change, its tag waits for the next.
		left = slices.DeleteFunc(left, func(s string) bool { return strings.HasPrefix(s, keptRepository) })
	}
	require.Empty(t, left)
	found, err := r.backend(t).Traces(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, r.mine(found))
	return ended
}

package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	imagetypes "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/go-connections/nat"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	nothing "github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func quiet(updater.Progress) {}

// command makes an image run the program with these arguments.
func command(args ...string) func(*v1.Config) {
	return func(c *v1.Config) { c.Cmd = args }
}

// begin runs a workload from tag "app" and pushes another image under it.
func (r *rig) begin(t *testing.T, name string, to func(*v1.Config), edit func(*container.Config, *container.HostConfig)) updater.Change {
	t.Helper()
	r.image(t, name, command("serve", "old"))
	r.pull(t, name)
	r.run(t, name, r.repo+":"+name, edit)
	return r.change(name, name, name, r.image(t, name, to))
}

// apply takes a change as far as its new side being accepted.
func (r *rig) apply(t *testing.T, h *Host, c *updater.Change) error {
	t.Helper()
	require.NoError(t, h.Plan(t.Context(), c, nil))
	if err := h.Prepare(t.Context(), *c, quiet); err != nil {
		return err
	}
	c.Phase, c.Disturbed = updater.Applying, true
	a, err := h.Apply(t.Context(), *c)
	c.Mark, c.Gap = a.Mark, a.Gap
	return err
}

func (r *rig) restore(t *testing.T, h *Host, c updater.Change) (updater.Restoration, error) {
	t.Helper()
	c.Phase = updater.Restoring
	return h.Restore(t.Context(), c)
}

// TestBadDays is what happens to a swap in the wild.
func TestBadDays(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)

	t.Run("the port is taken when the original is to come back", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := nat.Port("8080/tcp")
		_, free, _ := net.SplitHostPort(l.Addr().String())
		require.NoError(t, l.Close())
		publish := func(c *container.Config, hc *container.HostConfig) {
			hc.NetworkMode = "bridge"
			c.ExposedPorts = nat.PortSet{port: {}}
			hc.PortBindings = nat.PortMap{port: {{HostIP: "127.0.0.1", HostPort: free}}}
		}
		c := r.begin(t, "port", command("exit", "1"), publish)
		before := r.look(t, "port")
		require.NoError(t, r.apply(t, h, &c))
		require.Eventually(t, func() bool { // it lets go of the port when it has exited
			now, err := r.cli.ContainerInspect(t.Context(), r.name("port"))
			return err == nil && !now.State.Running
		}, 10*time.Second, 20*time.Millisecond)
		r.run(t, "thief", r.repo+":port", func(cc *container.Config, hc *container.HostConfig) {
			cc.Cmd = []string{"serve"}
			publish(cc, hc)
		})
		_, err = r.restore(t, h, c)
		require.ErrorContains(t, err, "container "+r.name("thief")+" holds it")
		require.NotErrorIs(t, err, updater.ErrSuperseded)
		_, err = r.restore(t, h, c)
		require.Error(t, err, "it stays open")
		r.remove(t, r.name("thief"))
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "port"))
		now, err := r.cli.ContainerInspect(t.Context(), r.name("port"))
		require.NoError(t, err)
		require.Len(t, now.NetworkSettings.Ports[port], 1, "it can be reached again")
		require.Empty(t, r.leftovers(t, "port"))
	})

	t.Run("the port of the new one is taken: nobody blames the image", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		_, busy, _ := net.SplitHostPort(l.Addr().String())
		c := r.begin(t, "port2", command("serve"), nil)
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		require.NoError(t, h.Prepare(t.Context(), c, quiet))
		// The original never had the port, so only the new one meets it.
		created, err := r.cli.ContainerInspect(t.Context(), r.name("port2")+suffixNew)
		require.NoError(t, err)
		r.remove(t, created.ID)
		cc, hc := created.Config, created.HostConfig
		cc.Image = r.repo + ":port2"
		hc.NetworkMode = "bridge"
		hc.Ulimits = nil // Podman shows them as it does not take them
		cc.ExposedPorts = nat.PortSet{"80/tcp": {}}
		hc.PortBindings = nat.PortMap{"80/tcp": {{HostIP: "127.0.0.1", HostPort: busy}}}
		_, err = r.cli.ContainerCreate(t.Context(), cc, hc, &network.NetworkingConfig{}, nil, r.name("port2")+suffixNew)
		require.NoError(t, err)
		before := r.look(t, "port2")
		c.Phase, c.Disturbed = updater.Applying, true
		_, err = h.Apply(t.Context(), c)
		var fault *updater.Fault
		require.ErrorAs(t, err, &fault)
		require.Equal(t, updater.Unclear, fault.Verdict)
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "port2"))
	})

	t.Run("the address is taken when the original is to come back", func(t *testing.T) {
		subnet := r.freeSubnet(t, "net")
		ip := func(host string) *network.NetworkingConfig {
			return &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
				r.name("net"): {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: subnet + host}},
			}}
		}
		r.image(t, "address", command("serve"))
		r.pull(t, "address")
		start := func(name string) {
			stop := 1
			created, err := r.cli.ContainerCreate(t.Context(),
				&container.Config{Image: r.repo + ":address", StopTimeout: &stop, StopSignal: "SIGKILL", Cmd: []string{"serve"}},
				&container.HostConfig{NetworkMode: container.NetworkMode(r.name("net"))}, ip(".9"), nil, r.name(name))
			require.NoError(t, err)
			require.NoError(t, r.cli.ContainerStart(t.Context(), created.ID, container.StartOptions{}))
		}
		start("address")
		c := r.change("address", "address", "address", r.image(t, "address", func(c *v1.Config) { c.Env = []string{"X=2"} }))
		require.NoError(t, r.apply(t, h, &c))
		require.NoError(t, r.cli.ContainerKill(t.Context(), r.name("address"), "KILL"))
		start("squatter")
		_, err := r.restore(t, h, c)
		require.Error(t, err)
		if !isPodmanRun() { // it does not say who has an address
			require.ErrorContains(t, err, "container "+r.name("squatter")+" holds it")
		}
		r.remove(t, r.name("squatter"))
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Empty(t, r.leftovers(t, "address"))
	})

	t.Run("the name with .updaterd-old is taken: refused before anything happens", func(t *testing.T) {
		c := r.begin(t, "named", command("serve"), nil)
		r.run(t, "named"+suffixOld, r.repo+":named", nil)
		err := h.Plan(t.Context(), &c, nil)
		refused(t, err, updater.Unsupported, r.name("named")+suffixOld)
		r.remove(t, r.name("named")+suffixOld)
	})

	t.Run("somebody stops the original between prepare and apply", func(t *testing.T) {
		c := r.begin(t, "stopped", command("serve"), nil)
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		require.NoError(t, h.Prepare(t.Context(), c, quiet))
		require.NoError(t, r.cli.ContainerStop(t.Context(), r.name("stopped"), container.StopOptions{}))
		c.Phase, c.Disturbed = updater.Applying, true
		_, err := h.Apply(t.Context(), c)
		require.ErrorIs(t, err, updater.ErrSuperseded)
		c.Superseded = true
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		now, err := r.cli.ContainerInspect(t.Context(), r.name("stopped"))
		require.NoError(t, err)
		require.False(t, now.State.Running, "a person stopped it")
		require.Empty(t, r.leftovers(t, "stopped"))
	})

	t.Run("somebody changes the original between prepare and apply", func(t *testing.T) {
		if isPodmanRun() {
			doesNotApply(t, "Podman 4 cannot change a container that exists (docker update)")
		}
		for what, update := range map[string]container.UpdateConfig{
			"memory": {Resources: container.Resources{Memory: 64 << 20, MemorySwap: 128 << 20}},
			"policy": {RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyAlways}},
		} {
			c := r.begin(t, "changed"+what, command("serve"), nil)
			require.NoError(t, h.Plan(t.Context(), &c, nil))
			require.NoError(t, h.Prepare(t.Context(), c, quiet))
			_, err := r.cli.ContainerUpdate(t.Context(), r.name("changed"+what), update)
			require.NoError(t, err)
			theirs := r.look(t, "changed"+what)
			c.Phase, c.Disturbed = updater.Applying, true
			_, err = h.Apply(t.Context(), c)
			require.ErrorIs(t, err, updater.ErrSuperseded, what)
			c.Superseded = true
			_, err = r.restore(t, h, c)
			require.NoError(t, err)
			require.Equal(t, theirs, r.look(t, "changed"+what))
			require.Empty(t, r.leftovers(t, "changed"+what))
		}
	})

	t.Run("the new one is pruned before the swap", func(t *testing.T) {
		c := r.begin(t, "unprepared", command("serve"), nil)
		before := r.look(t, "unprepared")
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		require.NoError(t, h.Prepare(t.Context(), c, quiet))
		r.remove(t, r.name("unprepared")+suffixNew)
		c.Phase, c.Disturbed = updater.Applying, true
		_, err := h.Apply(t.Context(), c)
		require.ErrorContains(t, err, "prune")
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "unprepared"))
		require.Empty(t, r.leftovers(t, "unprepared"))
	})

	t.Run("the original and its image are pruned, the journal is lost: the new one stays", func(t *testing.T) {
		c := r.begin(t, "kept", command("serve"), nil)
		require.NoError(t, r.apply(t, h, &c))
		r.remove(t, r.name("kept")+suffixOld)
		_, err := r.cli.ImageRemove(t.Context(), keptTag(r.name("kept"), c.ID), imagetypes.RemoveOptions{})
		require.NoError(t, err)
		after := r.look(t, "kept")
		back, err := r.restore(t, h, c)
		require.NoError(t, err)
		require.True(t, back.Kept)
		require.Equal(t, after, r.look(t, "kept"))
	})

	t.Run("the new one is removed after the swap: the original comes back by its traces", func(t *testing.T) {
		c := r.begin(t, "orphan", command("serve"), nil)
		before := r.look(t, "orphan")
		require.NoError(t, r.apply(t, h, &c))
		r.remove(t, r.name("orphan"))
		c.Phase = updater.Committing
		require.ErrorIs(t, h.Commit(t.Context(), c), updater.ErrSuperseded)
		require.Contains(t, strings.Join(r.leftovers(t, "orphan"), " "), suffixOld, "the last one of a workload is never removed")
		found, err := r.backend(t).Traces(t.Context(), nil)
		require.NoError(t, err)
		require.Len(t, found, 1)
		_, err = r.restore(t, h, found[0])
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "orphan"))
		for _, tag := range r.leftovers(t, "orphan") {
			// The containerd store does not take the last name of an image in use.
			require.Equal(t, []string{tag}, r.tagsOfTheImage(t, tag))
		}
	})

	t.Run("another installation leaves a live change alone", func(t *testing.T) {
		c := r.begin(t, "mine", command("serve"), nil)
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		require.NoError(t, h.Prepare(t.Context(), c, quiet))
		other := r.backendOf(t, "you")
		found, err := other.Traces(t.Context(), nil)
		require.NoError(t, err)
		require.Empty(t, found)
		theirs := r.change("mine", "mine", "mine", c.Parts[0].To.Digest)
		theirs.ID += "-theirs"
		refused(t, other.Plan(t.Context(), &theirs, nil), updater.InProgress, "me")
		c.Phase, c.Disturbed = updater.Applying, true
		_, err = h.Apply(t.Context(), c)
		require.NoError(t, err)
		all, err := other.Workloads(t.Context())
		require.NoError(t, err)
		for _, w := range all {
			require.NotContains(t, w.Name, r.name("mine"))
		}
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
	})

	t.Run("the image is for another architecture", func(t *testing.T) {
		c := r.begin(t, "arch", command("serve"), nil)
		f, err := r.images["arch"].ConfigFile()
		require.NoError(t, err)
		f.Architecture = "s390x"
		img, err := mutate.ConfigFile(r.images["arch"], f)
		require.NoError(t, err)
		index := mutate.AppendManifests(nothing.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: "s390x"},
		}})
		r.push(t, "arch", index)
		d, err := index.Digest()
		require.NoError(t, err)
		c.Parts[0].To.Digest = d.String()
		before := r.look(t, "arch")
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		refused(t, h.Prepare(t.Context(), c, quiet), updater.PlatformMissing, "")
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "arch"))
	})

	t.Run("a new index around the same image is the same", func(t *testing.T) {
		c := r.begin(t, "same", command("serve", "old"), nil)
		img := r.images["same"]
		index := mutate.AppendManifests(nothing.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: "linux", Architecture: "amd64"},
		}})
		r.push(t, "same", index)
		d, err := index.Digest()
		require.NoError(t, err)
		c.Parts[0].To.Digest = d.String()
		before, tag := r.look(t, "same"), r.local(t, "same")
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		require.ErrorIs(t, h.Prepare(t.Context(), c, quiet), updater.ErrSame)
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "same"))
		require.Equal(t, tag, r.local(t, "same"))
		require.Empty(t, r.leftovers(t, "same"))
	})

	t.Run("the registry has gone", func(t *testing.T) {
		c := r.begin(t, "noregistry", command("serve"), nil)
		c.Parts[0].To.Ref = "127.0.0.1:1/" + r.prefix + ":x"
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		err := h.Prepare(t.Context(), c, quiet)
		require.ErrorContains(t, err, "127.0.0.1:1")
	})

	t.Run("a pull is broken off", func(t *testing.T) {
		c := r.begin(t, "brokenoff", command("serve"), nil)
		require.NoError(t, h.Plan(t.Context(), &c, nil))
		ctx, cancel := context.WithCancel(t.Context())
		err := h.Prepare(ctx, c, func(updater.Progress) { cancel() })
		require.ErrorIs(t, err, context.Canceled)
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Empty(t, r.leftovers(t, "brokenoff"))
	})

	t.Run("another tag is written, and taken back", func(t *testing.T) {
		c := r.begin(t, "tagged", command("serve"), nil)
		c.Parts[0].To = updater.Image{Ref: r.repo + ":tagged2", Digest: r.image(t, "tagged2", command("exit", "3"))}
		before := r.look(t, "tagged")
		require.NoError(t, r.apply(t, h, &c))
		now, err := r.cli.ContainerInspect(t.Context(), r.name("tagged"))
		require.NoError(t, err)
		require.Equal(t, r.repo+":tagged2", now.Config.Image)
		c.Verdict = updater.Bad
		_, err = r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, before, r.look(t, "tagged"))
		require.Empty(t, r.local(t, "tagged2"), "neither the tag nor the rejected image stays")
	})

	t.Run("a reference with a digest is written", func(t *testing.T) {
		c := r.begin(t, "digest", command("serve"), nil)
		c.Parts[0].To.Ref += "@" + c.Parts[0].To.Digest
		if isPodmanRun() {
			refused(t, h.Plan(t.Context(), &c, nil), updater.InvalidSettings, "Podman forgets the tag")
			t.Attr("refused", "Podman forgets the tag of a reference with a digest")
			return
		}
		tag := r.local(t, "digest")
		require.NoError(t, r.apply(t, h, &c))
		now, err := r.cli.ContainerInspect(t.Context(), r.name("digest"))
		require.NoError(t, err)
		require.Equal(t, c.Parts[0].To.Ref, now.Config.Image)
		require.Equal(t, tag, r.local(t, "digest"), "the tag is nobody's business then")
		require.NoError(t, h.Commit(t.Context(), c))
	})

	t.Run("a tag that others run is not moved back", func(t *testing.T) {
		c := r.begin(t, "shared", command("serve"), nil)
		require.NoError(t, r.apply(t, h, &c))
		moved := r.local(t, "shared")
		r.run(t, "sharer", r.repo+":shared", nil)
		_, err := r.restore(t, h, c)
		require.NoError(t, err)
		require.Equal(t, moved, r.local(t, "shared"))
	})
}

func refused(t *testing.T, err error, reason updater.Reason, detail string) {
	t.Helper()
	var refusal *updater.Refusal
	require.ErrorAs(t, err, &refusal)
	require.Equal(t, reason, refusal.Reason)
	require.Contains(t, refusal.Detail, detail)
}

// freeSubnet makes a network with a subnet of its own and returns its first
// three numbers.
func (r *rig) freeSubnet(t *testing.T, name string) string {
	t.Helper()
	for third := range 200 {
		prefix := fmt.Sprintf("10.213.%d", third)
		_, err := r.cli.NetworkCreate(t.Context(), r.name(name), network.CreateOptions{
			IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: prefix + ".0/24"}}},
		})
		if err == nil {
			t.Cleanup(func() {
				r.clean(context.Background())
				_ = r.cli.NetworkRemove(context.Background(), r.name(name))
			})
			return prefix
		}
	}
	t.Fatal("no subnet is free")
	return ""
}

func TestPreviousImages(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	r.image(t, "app", command("serve", "0"))
	r.pull(t, "app")
	r.run(t, "app", r.repo+":app", nil)
	previous := func() (tags []string) {
		found, err := h.tagsOf(t.Context(), previousRepository+r.name("app"))
		require.NoError(t, err)
		for _, f := range found {
			tags = append(tags, f.id)
		}
		return tags
	}
	ids := []string{r.local(t, "app")}
	for i, keep := range []int{1, 1, 2, updater.KeepAll, 0} {
		c := r.change("app", "app", "app", r.image(t, "app", command("serve", fmt.Sprint(i+1))))
		c.ID, c.Parts[0].Settings.Keep = fmt.Sprint("change-", i), keep
		c.Since = time.Unix(int64(1000+i), 0)
		require.NoError(t, r.apply(t, h, &c))
		require.Greater(t, c.Gap, time.Duration(0))
		require.NoError(t, h.Commit(t.Context(), c))
		ids = append(ids, r.local(t, "app"))
		first := []int{0, 1, 1, 1, 5}[i]
		require.Equal(t, ids[first:i+1], append([]string{}, previous()...), "after change %d", i)
	}
	for i, id := range ids {
		_, err := r.cli.ImageInspect(t.Context(), id)
		require.Equal(t, i < len(ids)-1, cerrdefs.IsNotFound(err), "image %d of %d: %v", i, len(ids), err)
	}
}

func TestPreviousImagesOfOtherTags(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	tags := []string{"1.1", "1.2", "1.3", "1.4", "1.5"}
	r.image(t, tags[0], command("serve", "0"))
	r.pull(t, tags[0])
	r.run(t, "app", r.repo+":"+tags[0], nil)
	ids := []string{r.local(t, tags[0])}
	for i, keep := range []int{1, 1, 1, 0} {
		c := r.change("app", tags[i], tags[i+1], r.image(t, tags[i+1], command("serve", fmt.Sprint(i+1))))
		c.ID, c.Parts[0].Settings.Keep = fmt.Sprint("change-", i), keep
		c.Since = time.Unix(int64(1000+i), 0)
		require.NoError(t, r.apply(t, h, &c))
		require.NoError(t, h.Commit(t.Context(), c))
		ids = append(ids, r.local(t, tags[i+1]))
		switch i {
		case 0: // somebody has a container of 1.1, and a name of their own for 1.2
			r.run(t, "other", r.repo+":"+tags[0], nil)
			require.NoError(t, r.cli.ImageTag(t.Context(), ids[1], r.repo+"-mine:1"))
		case 2:
			require.Equal(t, ids[2], r.local(t, tags[2]), "the one to go back to is kept")
		}
	}
	for i, id := range ids {
		_, err := r.cli.ImageInspect(t.Context(), id)
		require.Equal(t, i == 2 || i == 3, cerrdefs.IsNotFound(err), "image %s: %v", tags[i], err)
	}
	require.Equal(t, ids[0], r.local(t, tags[0]), "its tag too")
	require.Equal(t, ids[1], r.local(t, tags[1]), "its tag too")
}

func TestObserve(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	unhealthy := func(c *v1.Config) {
		c.Cmd = []string{"serve"}
		c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "/app", "exit", "7"}, Interval: time.Second / 5, Timeout: time.Second, Retries: 1, StartPeriod: time.Millisecond}
	}
	limited := func(_ *container.Config, hc *container.HostConfig) { hc.Memory, hc.MemorySwap = 16<<20, 16<<20 }
	for name, row := range map[string]struct {
		to   func(*v1.Config)
		edit func(*container.Config, *container.HostConfig)
		seen func(updater.Observation) bool
		logs string
	}{
		"it runs":           {command("serve"), nil, func(o updater.Observation) bool { return o.Running && !o.Started.IsZero() && o.Timeout == time.Minute }, ""},
		"it exits":          {command("exit", "3"), nil, func(o updater.Observation) bool { return !o.Running && o.ExitCode == 3 }, "exiting as told"},
		"it exits on a tty": {command("exit", "3"), func(c *container.Config, _ *container.HostConfig) { c.Tty = true }, func(o updater.Observation) bool { return o.ExitCode == 3 }, "exiting as told"},
		"it is unhealthy":   {unhealthy, nil, func(o updater.Observation) bool { return o.Health == updater.HealthUnhealthy && o.HealthLog != "" }, ""},
		"it eats its memory": {command("eat"), limited, func(o updater.Observation) bool {
			// An engine that hears of it only after the exit leaves the flag out.
			return !o.Running && (o.OOMKilled || o.ExitCode == 137)
		}, ""},
		"it restarts in a loop": {command("exit", "1"), func(_ *container.Config, hc *container.HostConfig) { hc.RestartPolicy.Name = "always" },
			func(o updater.Observation) bool { return o.Restarts >= 3 }, "exiting as told"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			short := strings.ReplaceAll(name, " ", "")
			c := r.begin(t, short, row.to, row.edit)
			require.NoError(t, r.apply(t, h, &c))
			var o updater.Observation
			require.Eventually(t, func() bool {
				var err error
				o, err = h.Observe(context.Background(), c, 0, updater.NewSide)
				return err == nil && row.seen(o) && strings.Contains(o.Logs, row.logs)
			}, time.Minute, 50*time.Millisecond, "%+v", &o)
			_, err := r.restore(t, h, c)
			require.NoError(t, err)
			o, err = h.Observe(t.Context(), c, 0, updater.NewSide)
			require.NoError(t, err)
			require.True(t, o.Gone)
			o, err = h.Observe(t.Context(), c, 0, updater.OldSide)
			require.NoError(t, err)
			require.True(t, o.Running)
			require.Zero(t, o.Restarts)
		})
	}
}

func TestHooksAndProbes(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	onBridge := func(c *container.Config, hc *container.HostConfig) {
		c.Cmd = []string{"web"}
		hc.NetworkMode = "bridge"
	}
	c := r.begin(t, "probed", command("web"), onBridge)
	require.Eventually(t, func() bool {
		c.Parts[0].Settings.Health.Probe = "http://:8080/"
		return h.Plan(context.Background(), &c, nil) == nil
	}, 30*time.Second, 100*time.Millisecond, "it listens a moment after its start")

	for probe, why := range map[string]string{
		"http://:8080/":            "",
		"tcp://:8080":              "",
		`exec:["/app","exit","0"]`: "",
		"http://:8080/sick":        "503",
		"tcp://:81":                "refused",
		`exec:["/app","exit","4"]`: "exit code 4",
		`exec:["/nope"]`:           "",
		"ftp://:1/":                "cannot be read",
		`exec:["/app","hang"]`:     "longer than",
	} {
		t.Run(probe, func(t *testing.T) {
			if strings.HasPrefix(probe, "exec:") {
				needsExec(t)
			}
			p := c
			p.Parts = slices.Clone(c.Parts)
			p.Parts[0].Settings.Health.Probe = probe
			err := h.Plan(t.Context(), &p, nil)
			if why == "" && probe != `exec:["/nope"]` {
				require.NoError(t, err)
				return
			}
			refused(t, err, updater.Unsupported, why)
		})
	}
	t.Run("hooks", func(t *testing.T) {
		needsExec(t)
		res, err := h.Exec(t.Context(), c, 0, updater.OldSide, updater.Hook{Command: []string{"/app", "exit", "5"}, Timeout: 10 * time.Second})
		require.NoError(t, err)
		require.Equal(t, updater.Result{ExitCode: 5, Output: "exiting as told"}, res)
		res, err = h.Exec(t.Context(), c, 0, updater.OldSide, updater.Hook{Command: []string{"/app", "hang"}, Timeout: 500 * time.Millisecond})
		require.NoError(t, err)
		require.True(t, res.TimedOut)
		require.Equal(t, "hanging as told", res.Output)
	})
	_, err := h.Exec(t.Context(), c, 0, updater.NewSide, updater.Hook{Command: []string{"/app"}})
	require.Error(t, err, "there is no new side yet")
}

func TestItselfIsRefused(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	c := r.begin(t, "settings", command("serve"), nil)
	h.self = func() identity {
		b, err := h.inspect(context.Background(), r.name("settings"))
		require.NoError(t, err)
		return identity{ids: []string{b.ID[:12]}}
	}
	refused(t, h.Plan(t.Context(), &c, nil), updater.Unsupported, "its own program")
}

// TestALookAtManyContainers counts what a look costs: one list, and one more
// question for each image, however many containers run it.
func TestALookAtManyContainers(t *testing.T) {
	r := newRig(t)
	r.image(t, "app", command("serve"))
	r.pull(t, "app")
	stop := 0
	for i := range 20 {
		_, err := r.cli.ContainerCreate(t.Context(), &container.Config{Image: r.repo + ":app", StopTimeout: &stop},
			&container.HostConfig{NetworkMode: "none"}, nil, nil, r.name(fmt.Sprint("many", i)))
		require.NoError(t, err)
	}
	var asked []string
	h, err := New(Options{Name: "local", Endpoint: r.host, wrap: func(next http.RoundTripper) http.RoundTripper {
		return counter(func(req *http.Request) (*http.Response, error) {
			if strings.Contains(req.URL.Path, r.prefix) || strings.HasSuffix(req.URL.Path, "/containers/json") ||
				strings.Contains(req.URL.Path, r.local(t, "app")) {
				asked = append(asked, req.URL.Path)
			}
			return next.RoundTrip(req)
		})
	}})
	require.NoError(t, err)
	all, err := h.Workloads(t.Context())
	require.NoError(t, err)
	mine := 0
	for _, w := range all {
		if strings.HasPrefix(w.Name, r.prefix) {
			mine++
			require.Equal(t, updater.NotRunning, w.Skip.Reason)
			require.NotEmpty(t, w.Runs.Digests)
		}
	}
	require.Equal(t, 20, mine)
	require.Len(t, asked, 2, "%v", asked)
}

type counter func(*http.Request) (*http.Response, error)

func (c counter) RoundTrip(req *http.Request) (*http.Response, error) { return c(req) }

// TestAMovedTag is the normal case of an image that was pulled meanwhile: the
// list shows an id then.
func TestAMovedTag(t *testing.T) {
	r := newRig(t)
	h := r.backend(t)
	c := r.begin(t, "moved", command("serve"), nil)
	first := r.local(t, "moved")
	r.pull(t, "moved")
	require.NotEqual(t, first, r.local(t, "moved"))
	all, err := h.Workloads(t.Context())
	require.NoError(t, err)
	found := false
	for _, w := range all {
		if w.ID == c.Unit {
			found = true
			require.Equal(t, r.repo+":moved", w.Image)
			require.Nil(t, w.Skip)
			require.NotContains(t, w.Runs.Digests, c.Parts[0].To.Digest)
		}
	}
	require.True(t, found)
	require.NoError(t, r.apply(t, h, &c), "it is swapped without a pull")
	_, err = h.Observe(t.Context(), c, 0, updater.NewSide)
	require.False(t, errors.Is(err, updater.ErrSuperseded))
	require.NoError(t, h.Commit(t.Context(), c))
}

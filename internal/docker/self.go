package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"

	"github.com/updaterd/updaterd/internal/updater"
)

// suffixFinish is what the container of a helper gets behind the name of the one
// that it finishes the update of. It is no workload.
const suffixFinish = ".updaterd-finish"

// labelFinishes is on the container of a helper: id of the change.
const labelFinishes = labelPrefix + "finishes"

// mostHelpers is how often a helper may be started for one change without taking
// over: by the engine, which restarts one that fails, or anew by this process.
const mostHelpers = 3

// Self is what a process that may run in a container of the engine says about
// itself, so that another one can go on when that container is replaced: a helper
// in a container of its own, made from the image that runs now.
type Self struct {
	// Finish is the command that takes a change to its end. The id of the change
	// is put behind it; Env is added to its environment.
	Finish []string
	Env    []string
	// State is the directory of the journal, which the helper takes over.
	State string
	// Files are what the command cannot do without, its program among them.
	Files []string
}

// itself looks whether this process runs in a container of a planned change, and
// refuses what it cannot replace: the container by which it reaches the engine,
// since who depends on that cannot stop it, nor can a helper; and its own where no
// helper could take over. all are all containers.
func (h *Host) itself(ctx context.Context, c *updater.Change, b *box, all []kin) error {
	if h.reachedThrough(ctx, b) {
		return &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("updaterd reaches the engine through this container (%s), which it therefore cannot stop: update it by hand", h.client().DaemonHost()),
		}
	}
	self, err := h.selfPart(ctx, b)
	if err != nil || !self {
		return err
	}
	c.Alone = true
	return h.refuseSelf(ctx, *c, b, all)
}

// selfPart reports whether this process runs in container b.
func (h *Host) selfPart(ctx context.Context, b *box) (bool, error) {
	candidates, err := h.own(ctx)
	switch {
	case err != nil:
		return false, err
	case !slices.ContainsFunc(candidates, func(c *box) bool { return c.ID == b.ID }):
		return false, nil
	case len(candidates) > 1:
		var names []string
		for _, c := range candidates {
			names = append(names, c.name())
		}
		return false, &updater.Refusal{
			Reason: updater.Unsupported,
			Detail: fmt.Sprintf("updaterd runs in one of %s, and cannot tell in which because they share a network: update them by hand, or give updaterd a network of its own", strings.Join(names, ", ")),
		}
	}
	return true, nil
}

// own are the containers of this engine that this process may run in: none
// outside of one, and more than one only where they share a network and nothing
// else tells.
func (h *Host) own(ctx context.Context) ([]*box, error) {
	me := h.self()
	if h.finishing || len(me.ids) == 0 {
		return nil, nil
	}
	h.mu.Lock()
	known := h.ownID
	h.mu.Unlock()
	if known != "" { // it stays the same for as long as this process lives
		b, err := h.inspect(ctx, known)
		if err != nil || b == nil {
			return nil, err
		}
		return []*box{b}, nil
	}
	mine := func(id string) bool {
		return slices.ContainsFunc(me.ids, func(known string) bool { return strings.HasPrefix(id, known) })
	}
	all, err := h.list(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(all, func(c container.Summary) bool { return mine(c.ID) }) {
		return nil, nil // it is a container of another engine
	}
	var ids []string
	for _, c := range all {
		ids = append(ids, c.ID)
	}
	found, err := inParallel(ctx, ids, h.inspect)
	if err != nil {
		return nil, err
	}
	candidates := slices.DeleteFunc(found, func(b *box) bool {
		switch {
		case b == nil || !b.running():
			return true
		case me.upper != "" && upperOf(b) != "":
			return me.upper != upperOf(b)
		}
		// A container in another's network has that one's host name files.
		other, shares := strings.CutPrefix(string(b.HostConfig.NetworkMode), "container:")
		return !mine(b.ID) && !(shares && mine(other))
	})
	if len(candidates) == 1 {
		h.mu.Lock()
		h.ownID = candidates[0].ID
		h.mu.Unlock()
	}
	return candidates, nil
}

// refuseSelf says why the container that this process runs in cannot be replaced
// with the help of another, as a *updater.Refusal; nil when it can. all are all
// containers.
func (h *Host) refuseSelf(ctx context.Context, c updater.Change, b *box, all []kin) error {
	no := func(format string, args ...any) error {
		return unsupported("updaterd runs in this container, and "+fmt.Sprintf(format, args...), nil)
	}
	if h.oneself == nil {
		return no("does not know its own program: update it by hand")
	}
	if b.HostConfig.AutoRemove {
		return no("HostConfig.AutoRemove would remove it when it is stopped: run it without --rm")
	}
	if mountOf(b, h.oneself.State) == nil {
		return no("its state directory %s lies inside of it, where no helper finds the journal: mount a volume there (-v updaterd:%[1]s)", h.oneself.State)
	}
	for _, ref := range references(b.HostConfig) {
		k, ok := resolve(ref, all)
		if ok && slices.ContainsFunc(c.Parts, func(p updater.Part) bool { return p.Workload == h.name+"/"+k.name }) {
			return no("uses the network, a namespace or the volumes of %s, which is to be replaced as well: give updaterd its own, or update them by hand", k.name)
		}
	}
	name := b.name() + suffixFinish
	helper, err := h.inspect(ctx, name)
	if err != nil {
		return err
	}
	if helper != nil && helper.label(labelFinishes) == "" {
		return no("container %s has a name that its helper needs: remove or rename it", name)
	}

	var inside []string
	for _, f := range h.oneself.Files {
		if mountOf(b, f) == nil {
			inside = append(inside, f)
		}
	}
	if len(inside) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*lookLimit)
	defer cancel()
	diff, err := h.client().ContainerDiff(ctx, b.ID)
	switch {
	case cerrdefs.IsPermissionDenied(err):
		return no("whether its program is the image's cannot be seen: allow GET /containers/{id}/changes in the socket proxy")
	case err != nil:
		return fmt.Errorf("reading what changed in the files of container %s: %w", b.name(), err)
	}
	for _, d := range diff {
		if slices.Contains(inside, d.Path) {
			return no("%s was copied into it, so neither a helper nor the new one would have it: mount it, or build it into the image", d.Path)
		}
	}
	return nil
}

// mountOf is the volume, or the directory of the host, that a path in a container
// lies on; nil when it lies in the container itself or in memory.
func mountOf(b *box, file string) *container.MountPoint {
	at := ""
	var found *container.MountPoint
	covers := func(dir string) bool {
		dir = path.Clean(dir)
		return len(dir) > len(at) && (dir == file || dir == "/" || strings.HasPrefix(file, dir+"/"))
	}
	for _, m := range b.Mounts {
		if covers(m.Destination) {
			at, found = path.Clean(m.Destination), &m
		}
	}
	for dir := range b.HostConfig.Tmpfs {
		if covers(dir) {
			at, found = path.Clean(dir), nil
		}
	}
	if found != nil && found.Type != mount.TypeBind && found.Type != mount.TypeVolume {
		return nil
	}
	return found
}

// stepAside hands a change over to a helper if an effect may end the container
// that this process runs in: the one on that side, or in a group any. Its error
// wraps updater.ErrHandedOver then. It is nil where the process can go on by
// itself, which leaves a way back from a helper that does not start.
func (h *Host) stepAside(ctx context.Context, c updater.Change, all []piece, side updater.Side) error {
	own, on, err := h.ownIn(ctx, all)
	if err != nil || own == nil || on != side && len(all) == 1 {
		return err
	}
	return h.handOver(ctx, c, own)
}

// ownIn is the container among those of a change that this process runs in, and
// which side of it that is; nil when it runs in none.
func (h *Host) ownIn(ctx context.Context, all []piece) (*box, updater.Side, error) {
	own, err := h.own(ctx)
	if err != nil {
		return nil, "", err
	}
	for _, b := range own {
		for _, p := range all {
			switch {
			case b.ID == p.ID:
				return b, updater.OldSide, nil
			case b.ID == p.made, b.label(labelReplaces) == p.ID && b.label(labelChange) == p.change:
				return b, updater.NewSide, nil
			}
		}
	}
	return nil, "", nil
}

// handOver makes sure that one helper for this change runs, and returns an error
// that wraps updater.ErrHandedOver. This process leads, so a helper that is there
// has not taken over yet; one that fails again and again never will.
func (h *Host) handOver(ctx context.Context, c updater.Change, own *box) error {
	if h.oneself == nil {
		return errors.New("updaterd runs in a container of this change and does not know its own program, so no helper can go on: update it by hand")
	}
	s, err := h.snapshotOf(ctx, own)
	if err != nil {
		return err
	}
	spec, err := helper(s, *h.oneself, c.ID, h.owner)
	if err != nil {
		return err
	}
	name := workloadOf(own) + suffixFinish
	b, err := h.inspect(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case b == nil:
	case b.label(labelFinishes) == "":
		return fmt.Errorf("container %s has a name that the helper needs: remove or rename it", name)
	case b.label(labelFinishes) != c.ID || b.Image != own.Image || !connected(b, spec):
		// Left over from another change, or from a create that was broken off.
		if err := h.remove(ctx, b); err != nil {
			return err
		}
		b = nil
	case b.RestartCount >= mostHelpers:
		return h.giveUpHelper(ctx, c, b)
	}
	if b == nil {
		if b, err = h.createHelper(ctx, c, name, spec); err != nil {
			return err
		}
	}
	if !b.running() {
		starting, cancel := context.WithTimeout(ctx, startLimit)
		defer cancel()
		// Not by h.start, which would blame the new image.
		if err := h.client().ContainerStart(starting, b.ID, container.StartOptions{}); err != nil {
			switch now, lookErr := h.inspect(ctx, b.ID); {
			case lookErr == nil && (now == nil || now.leaving()):
				// Somebody removed it in between, or is about to. createHelper bounds how often.
				if now != nil {
					if err := h.remove(ctx, now); err != nil {
						return err
					}
				}
				return h.handOver(ctx, c, own)
			case lookErr != nil || !now.running():
				return errors.Join(fmt.Errorf("starting the helper %s: %w", name, err), h.remove(ctx, b))
			}
			// It was started all the same, and nobody heard.
		}
	}
	return fmt.Errorf("container %s: %w", name, updater.ErrHandedOver)
}

// createHelper makes the container of a helper, unless those before it ended
// without taking over.
func (h *Host) createHelper(ctx context.Context, c updater.Change, name string, spec creation) (*box, error) {
	h.mu.Lock()
	enough := h.helped[c.ID] >= mostHelpers
	if enough {
		delete(h.helped, c.ID) // whoever insists may try again
	}
	h.mu.Unlock()
	if enough {
		return nil, fmt.Errorf("the helper %s, which is to go on with the update of updaterd itself, has ended %d times without doing so: does it find the journal?", name, mostHelpers)
	}
	id, err := h.createAs(ctx, name, spec)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.helped[c.ID]++
	h.mu.Unlock()
	b, err := h.inspect(ctx, id)
	if err == nil && b == nil {
		err = fmt.Errorf("container %s has gone right after it was created: is a prune running? try again", name)
	}
	return b, err
}

// giveUpHelper removes a helper that fails, and says what it said.
func (h *Host) giveUpHelper(ctx context.Context, c updater.Change, b *box) error {
	h.mu.Lock()
	delete(h.helped, c.ID)
	h.mu.Unlock()
	err := fmt.Errorf("the helper %s, which is to go on with the update of updaterd itself, fails again and again%s", b.name(), said(h.logs(ctx, b)))
	return errors.Join(err, h.remove(ctx, b))
}

// workloadOf is the name of the workload whose container this is, or was.
func workloadOf(b *box) string {
	return strings.TrimSuffix(strings.TrimSuffix(b.name(), suffixNew), suffixOld)
}

// helper says how to create the container of a helper: as the one in s, from its
// very image, so that it reaches the same engine, journal and registries; but for
// what only one can have, and for what others would know the original by.
func helper(s snapshot, self Self, change, owner string) (creation, error) {
	var was inspected
	if err := json.Unmarshal(s.Container, &was); err != nil {
		return creation{}, unsupported("the inspect of the container cannot be read; the engine may be newer than this updaterd", err)
	}
	img, err := readTemplate(s.Image)
	if err != nil {
		return creation{}, unsupported("the inspect of the image cannot be read; the engine may be newer than this updaterd", err)
	}
	spec, err := recreate(s, s.Image, was.Image, nil)
	if err != nil {
		return creation{}, err
	}
	spec.Notes = nil

	c := spec.Config
	c.Labels = map[string]string{}
	for key := range img.Config.Labels {
		// What an image brings cannot be left out, only emptied.
		if strings.HasPrefix(key, settingPrefix) || strings.HasPrefix(key, composePrefix) {
			c.Labels[key] = ""
		}
	}
	c.Labels[labelFinishes], c.Labels[labelOwner] = change, owner
	c.Entrypoint, c.Cmd = self.Finish[:1:1], append(slices.Clone(self.Finish[1:]), change)
	c.Env = append(c.Env, self.Env...)
	//lint:ignore SA1019 engines before API 1.44 know no other place for it
	c.Hostname, c.Domainname, c.MacAddress, c.ExposedPorts = "", "", "", nil
	c.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
	c.Tty, c.OpenStdin, c.StdinOnce = false, false, false

	spec.Host.PortBindings, spec.Host.PublishAllPorts, spec.Host.ContainerIDFile = nil, false, ""
	// It ends with 0 only when the change is over.
	spec.Host.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyOnFailure}

	endpoints := slices.Collect(maps.Values(spec.Networking.EndpointsConfig))
	for _, more := range spec.Connect {
		endpoints = append(endpoints, more.Endpoint)
	}
	for _, e := range endpoints {
		e.IPAMConfig, e.Aliases, e.MacAddress = nil, nil, ""
	}
	return spec, nil
}

// composePrefix is what Compose's labels begin with.
const composePrefix = "com.docker.compose."

// DismissHelper removes the container of a change's helper, when it has taken the
// change to its end. It is called by the helper itself, which ends by that; the
// engine sees the removal through.
func (h *Host) DismissHelper(ctx context.Context, change string) error {
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	look, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	found, err := h.client().ContainerList(look, container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("label", labelFinishes+"="+change)),
	})
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	for _, c := range found {
		b, err := h.inspect(ctx, c.ID)
		if err != nil {
			return err
		}
		if b != nil {
			if err := h.remove(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepHelpers removes what helpers left that have ended, unless their change is
// among known: then another one will need it. all are all containers.
func (h *Host) sweepHelpers(ctx context.Context, all []container.Summary, known map[string]bool) {
	for _, c := range all {
		change := c.Labels[labelFinishes]
		ended := c.State == container.StateExited || c.State == container.StateCreated || c.State == container.StateDead
		if change == "" || known[change] || !ended || c.Labels[labelOwner] != h.owner {
			continue
		}
		b, err := h.inspect(ctx, c.ID)
		if err == nil && b != nil && !b.running() {
			err = h.remove(ctx, b)
		}
		if err != nil {
			h.log.Warn("helper that has ended cannot be removed", "change", change, "err", err)
		}
	}
}

// identity is what a process sees of the container that it runs in.
type identity struct {
	ids   []string // whole or short
	upper string   // its writable layer, see upperOf; "" where it cannot be seen
}

// whoAmI looks at what the kernel shows to this process: the zero identity
// outside of a container.
func whoAmI() identity {
	var me identity
	if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		me.ids = mountedIDs(bytes.NewReader(text))
		me.upper = mountedUpper(bytes.NewReader(text))
	}
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		me.ids = append(me.ids, cgroupIDs(bytes.NewReader(text))...)
	}
	// A container's host name is its short id unless a person chose another.
	if name, err := os.Hostname(); err == nil && regexp.MustCompile(`^[0-9a-f]{12}$`).MatchString(name) {
		me.ids = append(me.ids, name)
	}
	return me
}

// upperOf tells the writable layer of a container from all others; "" where the
// engine does not show it, as one that keeps images in containerd.
func upperOf(b *box) string { return layerOf(b.GraphDriver.Data["UpperDir"]) }

// layerOf is the end of a layer's directory. Engines leave out the beginning when
// they mount many.
func layerOf(dir string) string {
	if dir == "" {
		return ""
	}
	return path.Base(path.Dir(dir)) + "/" + path.Base(dir)
}

// mountedUpper finds the writable layer of the root directory.
func mountedUpper(r io.Reader) string {
	upper := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		where, what, _ := strings.Cut(lines.Text(), " - ")
		at, how := strings.Fields(where), strings.Fields(what)
		if len(at) < 5 || at[4] != "/" || len(how) < 3 || how[0] != "overlay" {
			continue
		}
		for _, option := range strings.Split(how[2], ",") {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				upper = layerOf(dir)
			}
		}
	}
	return upper
}

// mountedIDs finds the container whose host name file is mounted here. On a
// host the file system of every container is in the list too, so only the
// files that an engine mounts over /etc count.
func mountedIDs(r io.Reader) []string {
	var ids []string
	in := regexp.MustCompile(`/([0-9a-f]{64})/`)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 5 || !slices.Contains([]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}, f[4]) {
			continue
		}
		for _, m := range in.FindAllStringSubmatch(f[3], -1) {
			ids = append(ids, m[1])
		}
	}
	return ids
}

// cgroupIDs finds the container whose cgroup this process is in.
func cgroupIDs(r io.Reader) []string {
	var ids []string
	in := regexp.MustCompile(`[/-]([0-9a-f]{64})(?:\.scope)?(?:/|$)`)
	for lines := bufio.NewScanner(r); lines.Scan(); {
		for _, m := range in.FindAllStringSubmatch(lines.Text(), -1) {
			ids = append(ids, m[1])
		}
	}
	return ids
}

// reachedThrough reports whether a tcp endpoint is this container's, by its
// address, one of its names or a port that it publishes. A socket that some
// other container serves in a directory they share cannot be told.
func (h *Host) reachedThrough(ctx context.Context, b *box) bool {
	u, err := url.Parse(h.client().DaemonHost())
	if err != nil || u.Scheme != "tcp" || b.NetworkSettings == nil {
		return false
	}
	host := u.Hostname()
	addresses := []string{host}
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	if found, err := net.DefaultResolver.LookupHost(ctx, host); err == nil {
		addresses = append(addresses, found...)
	}
	for _, e := range b.NetworkSettings.Networks {
		if e == nil {
			continue
		}
		if slices.Contains(addresses, e.IPAddress) || slices.Contains(addresses, e.GlobalIPv6Address) {
			return true
		}
	}
	local := slices.ContainsFunc(addresses, func(a string) bool {
		ip := net.ParseIP(a)
		return ip != nil && ip.IsLoopback()
	})
	for _, bindings := range b.NetworkSettings.Ports {
		for _, p := range bindings {
			if p.HostPort == u.Port() && (local || slices.Contains(addresses, p.HostIP)) {
				return true
			}
		}
	}
	return false
}

package docker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/go-connections/nat"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// labelAnonymous lists, separated by commas, the volumes of a container that
	// were anonymous before they had to be named in order to be kept. Without it
	// nobody could tell them from the volumes a person named.
	labelAnonymous = labelPrefix + "anonymous"
	// labelVolumesFrom is what VolumesFrom said before it had to say the id of a
	// container that had not got its name yet.
	labelVolumesFrom = labelPrefix + "volumes-from"
	// labelComposeImage is where Compose notes which image a container was made
	// from: "compose up" recreates the container when the tag stands for another.
	labelComposeImage = "com.docker.compose.image"
	// optEndpointSysctls is the driver option that replaces interface sysctls in
	// HostConfig, which the engine refuses from API 1.48 on.
	optEndpointSysctls = "com.docker.network.endpoint.sysctls"
)

// snapshot is what a container was before anything changed. It goes into the
// journal, so it is JSON.
type snapshot struct {
	// Container is the raw answer to GET /containers/{id}/json.
	Container json.RawMessage `json:"container"`
	// Image is the raw inspect of the image the container was created from
	// (.Image of Container), never of what its tag stands for now.
	Image json.RawMessage `json:"image"`
	// API is the negotiated version of the engine's API, "1.41".
	API string `json:"api"`
	// Podman: the engine is one, which does not tell all that Docker does.
	Podman bool `json:"podman,omitempty"`
	// Daemon is the engine's own host name (Name in /info), for a container in the
	// host's network.
	Daemon string `json:"daemon"`
	// NetworkNames are the engine's networks, id to name; optional.
	NetworkNames map[string]string `json:"networks,omitempty"`
	// Theirs are the volumes of the containers that VolumesFrom names.
	Theirs []string `json:"theirs,omitempty"`
	// Fresh is the raw inspect of a container created with no options on the
	// same engine; optional. It tells the defaults of fields that this program
	// does not know.
	Fresh json.RawMessage `json:"fresh,omitempty"`
}

// creation is everything that create needs.
type creation struct {
	Config     *container.Config
	Host       *container.HostConfig
	Networking *network.NetworkingConfig
	Platform   *ocispec.Platform // nil where the API or the image cannot say it
	// Connect are the networks to connect the created container to before its
	// start, in this order. Empty from API 1.44 on.
	Connect []connection
	// Notes say to people what could not be kept to the letter but is harmless.
	Notes []string
}

// connection is one network to connect a created container to.
type connection struct {
	Network  string
	Endpoint *network.EndpointSettings
}

// inspected is the part of a container's inspect that says how it was created.
type inspected struct {
	ID                      string `json:"Id"`
	Name                    string
	Image                   string
	ImageManifestDescriptor *descriptor
	Config                  *container.Config
	HostConfig              *container.HostConfig
	Mounts                  []container.MountPoint
	NetworkSettings         struct {
		Networks map[string]*network.EndpointSettings
	}
}

// template is the part of an image's inspect that containers get merged into
// their own settings, and what names the image.
type template struct {
	ID           string `json:"Id"`
	OS           string `json:"Os"`
	Architecture string
	Variant      string
	Config       *container.Config
	Descriptor   *descriptor
	// Manifests is answered from API 1.48 on, when it is asked for, by an engine
	// that keeps images in containerd.
	Manifests []struct {
		Kind       string
		Descriptor descriptor
		ImageData  *struct{ Platform ocispec.Platform }
	}
}

// descriptor points at a manifest or an index.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
}

// recreate says how to create a container that differs from the one in s in
// nothing but its image: newImage is the raw inspect of that image (from API
// 1.48 on with its manifests), ref the reference to write on the container.
//
// An engine shows a container's settings merged with its image's and with its
// own defaults. recreate takes out what came from the image s was created from,
// so that the engine puts in what the new one says; what a person set to the
// very value of the old image cannot be told from it and follows the image.
// docs/recreate.md has a line for every field.
//
// With newImage being s.Image and ref the reference the container carries, the
// result is the same container again, which is what a restore makes when
// the original has been removed.
//
// moved says what to write instead of the containers that it uses, which are
// named there as the engine shows them: the ids of their replacements.
//
// recreate does no I/O, changes no argument, and depends on nothing else.
// The error is a *updater.Refusal that names the field and the remedy. Whether
// the container may be replaced at all is for refuse to say.
func recreate(s snapshot, newImage json.RawMessage, ref string, moved map[string]string) (creation, error) {
	r := recreation{api: s.API, podman: s.Podman, daemon: s.Daemon, ref: ref, networks: s.NetworkNames, moved: moved}
	if err := r.read(s); err != nil {
		return creation{}, err
	}
	var err error
	if r.new, err = readTemplate(newImage); err != nil {
		return creation{}, unsupported("the inspect of the new image cannot be read; pull it again", err)
	}
	if err := unfaithful(s, r.was, r.old); err != nil {
		return creation{}, err
	}
	r.config()
	r.host()
	if err := r.volumes(s.Theirs); err != nil {
		return creation{}, err
	}
	if err := r.attach(); err != nil {
		return creation{}, err
	}
	return r.out, nil
}

// unsupported is the error for what cannot be replaced faithfully.
func unsupported(detail string, err error) error {
	return &updater.Refusal{Reason: updater.Unsupported, Detail: detail, Err: err}
}

// recreation is one call of recreate under way.
type recreation struct {
	api      string
	podman   bool
	daemon   string
	ref      string
	networks map[string]string // id to name
	moved    map[string]string

	was inspected // what was decoded for this call: its parts may be taken over
	old template
	new template

	out creation
}

func (r *recreation) read(s snapshot) error {
	if s.API == "" {
		return unsupported("the version of the engine's API is not known; this is a fault of updaterd, please report it", nil)
	}
	if err := json.Unmarshal(s.Container, &r.was); err != nil {
		return unsupported("the inspect of the container cannot be read; the engine may be newer than this updaterd", err)
	}
	if r.was.ID == "" || r.was.Config == nil || r.was.HostConfig == nil {
		return unsupported("the inspect of the container lacks Id, Config or HostConfig; check that the engine is a Docker Engine", nil)
	}
	var err error
	if r.old, err = readTemplate(s.Image); err != nil {
		return unsupported("the image it was created from cannot be inspected, so what came from it cannot be told; recreate the container by hand", err)
	}
	return nil
}

func readTemplate(raw json.RawMessage) (template, error) {
	var t template
	if err := json.Unmarshal(raw, &t); err != nil {
		return template{}, err
	}
	if t.ID == "" {
		return template{}, errors.New("it has no Id")
	}
	if t.Config == nil { // an image made of nothing but layers
		t.Config = &container.Config{}
	}
	return t, nil
}

// since reports whether the engine is spoken to in this version or a later one.
func (r *recreation) since(version string) bool { return versions.GreaterThanOrEqualTo(r.api, version) }

func (r *recreation) note(format string, args ...any) {
	r.out.Notes = append(r.out.Notes, fmt.Sprintf(format, args...))
}

// shortID is the name an engine gives a container where nobody else did.
func (c inspected) shortID() string { return c.ID[:min(12, len(c.ID))] }

// config is container.Config without what the image and the engine put in.
func (r *recreation) config() {
	c, was := *r.was.Config, r.old.Config
	mode := r.was.HostConfig.NetworkMode

	c.Image = r.ref
	c.Env = userEnv(c.Env, was.Env, r.was.shortID())
	c.Labels = r.labels()
	c.Entrypoint, c.Cmd = userCommand(c, was)
	c.Healthcheck = userHealthcheck(c.Healthcheck, was.Healthcheck)
	if c.User == was.User {
		c.User = ""
	}
	if c.WorkingDir == was.WorkingDir {
		c.WorkingDir = ""
	}
	if c.StopSignal == was.StopSignal || c.StopSignal == signalNumber(was.StopSignal) {
		c.StopSignal = ""
	}
	c.Volumes = without(c.Volumes, was.Volumes)
	c.ExposedPorts = without(c.ExposedPorts, was.ExposedPorts)
	for p, bindings := range r.was.HostConfig.PortBindings {
		if _, ok := was.ExposedPorts[p]; ok && bindings == nil {
			continue // Podman shows what an image exposes as if it were published
		}
		if c.ExposedPorts == nil {
			c.ExposedPorts = nat.PortSet{}
		}
		c.ExposedPorts[p] = struct{}{}
	}

	switch {
	case c.Hostname == r.was.shortID(),
		r.was.HostConfig.UTSMode.IsHost(), // create refuses any
		mode.IsHost() && c.Hostname == r.daemon:
		c.Hostname = ""
	}
	if mode.IsContainer() { // create refuses these, start copies them from the other container
		//lint:ignore SA1019 engines before API 1.44 know no other place for it
		c.Hostname, c.Domainname, c.MacAddress, c.ExposedPorts = "", "", "", nil
	}

	r.out.Config = &c
	if r.old.OS != "" && r.old.Architecture != "" && r.since("1.41") {
		r.out.Platform = &ocispec.Platform{OS: r.old.OS, Architecture: r.old.Architecture, Variant: r.old.Variant}
	}
}

// signalNumber is how Podman shows the signal that an image names; it shows
// SIGTERM where an image names none. "" for a signal that images do not name. The
// numbers are Linux's, wherever updaterd runs.
func signalNumber(name string) string {
	return map[string]string{
		"": "15", "TERM": "15", "HUP": "1", "INT": "2", "QUIT": "3", "ABRT": "6", "KILL": "9", "USR1": "10", "USR2": "12",
		"WINCH": "28", "PWR": "30", "RTMIN+3": "37",
	}[strings.TrimPrefix(name, "SIG")]
}

// without is m less the keys of other.
func without[M ~map[K]V, K comparable, V any](m, other M) M {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(k K, _ V) bool {
		_, ok := other[k]
		return ok
	})
	return m
}

// userEnv drops the variables that the image sets. One that is given more than
// once is a person's unless the image gives it so. A bare KEY removes an
// image's variable, so it stays.
func userEnv(env, imageEnv []string, shortID string) []string {
	byKey := func(env []string) map[string][]string {
		m := make(map[string][]string, len(env))
		for _, e := range env {
			key, _, _ := strings.Cut(e, "=")
			m[key] = append(m[key], e)
		}
		return m
	}
	now, was := byKey(env), byKey(imageEnv)
	podman := slices.Contains(env, "container=podman")
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		key, _, _ := strings.Cut(e, "=")
		// Podman shows the host name it generated as a variable; kept, the new
		// container would go by the old one's name.
		if slices.Equal(now[key], was[key]) || e == "HOSTNAME="+shortID {
			return true
		}
		// It shows its own defaults too; kept, they would win over a new image's.
		return podman && (e == "container=podman" || e == "TERM=xterm" || e == "HOME=/root" ||
			e == "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	})
}

// userCommand undoes how an engine merges Entrypoint and Cmd: the image's Cmd
// is taken only if neither is given, its Entrypoint unless one is given or [""].
func userCommand(c container.Config, was *container.Config) (entrypoint, cmd []string) {
	sameEntrypoint := slices.Equal(c.Entrypoint, was.Entrypoint)
	switch {
	case sameEntrypoint && slices.Equal(c.Cmd, was.Cmd):
		return nil, nil
	case sameEntrypoint && len(c.Cmd) > 0:
		return nil, c.Cmd
	case len(c.Entrypoint) == 0: // --entrypoint "": nil would bring in the image's
		return []string{""}, c.Cmd
	}
	return c.Entrypoint, c.Cmd
}

// userHealthcheck drops what the image sets, field by field as it was merged.
func userHealthcheck(c, was *container.HealthConfig) *container.HealthConfig {
	if c == nil {
		return nil
	}
	h := *c
	if was != nil {
		if slices.Equal(h.Test, was.Test) {
			h.Test = nil
		}
		unset(&h.Interval, was.Interval)
		unset(&h.Timeout, was.Timeout)
		unset(&h.StartPeriod, was.StartPeriod)
		unset(&h.StartInterval, was.StartInterval)
		unset(&h.Retries, was.Retries)
	}
	if len(h.Test) == 0 && h.Interval == 0 && h.Timeout == 0 && h.StartPeriod == 0 && h.StartInterval == 0 && h.Retries == 0 {
		return nil
	}
	return &h
}

func unset[T comparable](v *T, def T) {
	if *v == def {
		*v = *new(T)
	}
}

// labels are those that neither the image nor an earlier swap wrote.
func (r *recreation) labels() map[string]string {
	labels := maps.Clone(r.was.Config.Labels)
	maps.DeleteFunc(labels, func(k, v string) bool {
		was, ok := r.old.Config.Labels[k]
		return ok && was == v || strings.HasPrefix(k, labelPrefix)
	})
	v, ok := labels[labelComposeImage]
	if !ok {
		return labels
	}
	if r.ref != r.was.Config.Image {
		r.note("the label %s stays: Compose's file still names %s, and Compose goes back to it when it next recreates the container, until the file says %s",
			labelComposeImage, r.was.Config.Image, r.ref)
		return labels
	}
	oldManifest := r.old.manifest(r.old)
	if d := r.was.ImageManifestDescriptor; d != nil {
		oldManifest = d.Digest
	}
	switch {
	case v == r.old.ID || v == r.was.Image:
		labels[labelComposeImage] = r.new.ID
	case v == oldManifest:
		if m := r.new.manifest(r.old); m != "" {
			labels[labelComposeImage] = m
		} else {
			r.note("the label %s stays: the engine does not tell the new image's manifest; the next \"compose up\" recreates the container", labelComposeImage)
		}
	}
	return labels
}

// manifest is the digest of the image's manifest for the platform of like, ""
// when the engine does not tell.
func (t template) manifest(like template) string {
	for _, m := range t.Manifests {
		if m.Kind != "image" || m.ImageData == nil {
			continue
		}
		p := m.ImageData.Platform
		if p.OS == like.OS && p.Architecture == like.Architecture && p.Variant == like.Variant {
			return m.Descriptor.Digest
		}
	}
	if d := t.Descriptor; d != nil && strings.Contains(d.MediaType, ".manifest.v") && !strings.Contains(d.MediaType, "list") {
		return d.Digest
	}
	return ""
}

// host is container.HostConfig as it was, but for what create does not take.
func (r *recreation) host() {
	h := *r.was.HostConfig
	h.ConsoleSize = [2]uint{} // of the terminal it was started from
	if h.KernelMemory != 0 && r.since("1.42") {
		r.note("HostConfig.KernelMemory is dropped: engines ignore it since API 1.42")
		h.KernelMemory = 0
	}
	// Podman shows --cpus both ways; create refuses both at once.
	if h.NanoCPUs != 0 && h.CPUPeriod != 0 && h.CPUQuota*1e9/h.CPUPeriod == h.NanoCPUs {
		h.CPUPeriod, h.CPUQuota = 0, 0
	}
	// Podman shows the limits by the kernel's names; create takes ulimit's.
	for _, u := range h.Ulimits {
		if u == nil {
			continue
		}
		if name, ok := strings.CutPrefix(u.Name, "RLIMIT_"); ok {
			u.Name = strings.ToLower(name)
		}
	}
	h.PortBindings = maps.Clone(h.PortBindings)
	maps.DeleteFunc(h.PortBindings, func(p nat.Port, bindings []nat.PortBinding) bool {
		_, ok := r.old.Config.ExposedPorts[p]
		return ok && bindings == nil // likewise
	})
	r.others(&h)
	for i := range h.Mounts { // create refuses options of another type than the mount's
		m := &h.Mounts[i]
		if m.Type != mount.TypeBind {
			m.BindOptions = nil
		}
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
		if m.Type != mount.TypeImage {
			m.ImageOptions = nil
		}
		if m.Type != mount.TypeCluster {
			m.ClusterOptions = nil
		}
	}
	if h.NetworkMode.IsContainer() { // create refuses these
		h.PortBindings, h.PublishAllPorts, h.DNS, h.ExtraHosts, h.Links = nil, false, nil, nil, nil
	}
	r.out.Host = &h
}

// others names the containers that this one uses as they are to be named now.
func (r *recreation) others(h *container.HostConfig) {
	now := func(ref string) string { return cmp.Or(r.moved[ref], ref) }
	mode := func(m string) string {
		if ref, ok := strings.CutPrefix(m, "container:"); ok {
			return "container:" + now(ref)
		}
		return m
	}
	h.NetworkMode = container.NetworkMode(mode(string(h.NetworkMode)))
	h.IpcMode = container.IpcMode(mode(string(h.IpcMode)))
	h.PidMode = container.PidMode(mode(string(h.PidMode)))
	h.Cgroup = container.CgroupSpec(mode(string(h.Cgroup)))
	for i, l := range h.Links {
		target, rest, ok := strings.Cut(l, ":")
		if ok {
			l = now(target) + ":" + rest
		}
		h.Links[i] = link(l)
	}
	if len(h.VolumesFrom) == 0 {
		return
	}
	written := cmp.Or(r.was.Config.Labels[labelVolumesFrom], strings.Join(h.VolumesFrom, ","))
	h.VolumesFrom = slices.Clone(h.VolumesFrom)
	for i, v := range h.VolumesFrom {
		ref, mode, ok := strings.Cut(v, ":")
		if h.VolumesFrom[i] = now(ref); ok {
			h.VolumesFrom[i] += ":" + mode
		}
	}
	if strings.Join(h.VolumesFrom, ",") != written {
		if r.out.Config.Labels == nil {
			r.out.Config.Labels = map[string]string{}
		}
		r.out.Config.Labels[labelVolumesFrom] = written
	}
}

// link turns a link as inspect shows it, /target:/self/alias, into what create
// takes, target:alias.
func link(shown string) string {
	target, alias, ok := strings.Cut(shown, ":")
	if !ok {
		return shown
	}
	return strings.TrimPrefix(target, "/") + ":" + path.Base(alias)
}

// anonymousVolume is one that a container has, or had before it was named to be
// kept; "" if there is none.
func (r *recreation) anonymousVolume() string {
	for _, m := range r.was.Mounts {
		if name := volumeName(m); m.Type == mount.TypeVolume && generated(name) {
			return name
		}
	}
	return ""
}

// volumes keeps anonymous volumes by naming them, whether or not the new image
// still declares their paths: an extra mount is better than lost data. theirs are
// the volumes of those that it has volumes from.
func (r *recreation) volumes(theirs []string) error {
	h := r.out.Host
	named := map[string]bool{}
	for _, b := range h.Binds {
		source, _, _ := strings.Cut(b, ":")
		named[source] = true
	}
	for _, m := range h.Mounts {
		named[m.Source] = true
	}
	declared := map[string]bool{}
	for v := range r.was.Config.Volumes { // the image's are among them
		declared[path.Clean(v)] = true
	}
	recorded := strings.Split(r.was.Config.Labels[labelAnonymous], ",")

	var anonymous []string
	mounts := slices.SortedFunc(slices.Values(r.was.Mounts), func(a, b container.MountPoint) int {
		return cmp.Compare(a.Destination, b.Destination)
	})
	for _, m := range mounts {
		name := volumeName(m)
		inMounts, inBinds := r.written(m)
		// An image may declare a path that another container's volume is at already.
		inherited := len(h.VolumesFrom) > 0 && inMounts < 0 && inBinds < 0 &&
			(!declared[path.Clean(m.Destination)] || slices.Contains(theirs, name))
		switch {
		case m.Type != mount.TypeVolume:
			continue
		case named[name] && name != "":
			if slices.Contains(recorded, name) {
				anonymous = append(anonymous, name)
			}
			continue
		case inherited: // it is another container's, and comes with VolumesFrom
			continue
		case name == "":
			return unsupported(fmt.Sprintf("Mounts %s: the engine does not tell the volume's name, so it could not be kept; recreate the container with a named volume there", m.Destination), nil)
		case !generated(name):
			continue
		}
		switch {
		case inMounts >= 0:
			h.Mounts[inMounts].Source = name
		case inBinds >= 0:
			h.Binds[inBinds] = name + ":" + h.Binds[inBinds]
		default:
			h.Mounts = append(h.Mounts, mount.Mount{
				Type: mount.TypeVolume, Source: name, Target: m.Destination, ReadOnly: !m.RW,
			})
		}
		anonymous = append(anonymous, name)
	}
	if len(anonymous) == 0 {
		return nil
	}
	slices.Sort(anonymous)
	if r.out.Config.Labels == nil {
		r.out.Config.Labels = map[string]string{}
	}
	r.out.Config.Labels[labelAnonymous] = strings.Join(slices.Compact(anonymous), ",")
	return nil
}

// volumeName is the name of the volume mounted there, "" if it cannot be told.
// Docker 28 shows none for a bind that was written as nothing but a target.
func volumeName(m container.MountPoint) string {
	if name := path.Base(path.Dir(m.Source)); m.Name == "" && path.Base(m.Source) == "_data" && generated(name) {
		return name
	}
	return m.Name
}

// written are the mounts and binds for this place that were written without a
// volume's name, by index; -1 where there is none.
func (r *recreation) written(m container.MountPoint) (inMounts, inBinds int) {
	here := path.Clean(m.Destination)
	inMounts = slices.IndexFunc(r.out.Host.Mounts, func(w mount.Mount) bool {
		return w.Type == mount.TypeVolume && w.Source == "" && path.Clean(w.Target) == here
	})
	inBinds = slices.IndexFunc(r.out.Host.Binds, func(b string) bool {
		return !strings.Contains(b, ":") && path.Clean(b) == here
	})
	return inMounts, inBinds
}

// generated reports whether an engine made up this volume name.
func generated(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

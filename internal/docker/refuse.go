package docker

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"

	"github.com/updaterd/updaterd/internal/updater"
)

// refuse says why the container in s cannot be replaced faithfully, as a
// *updater.Refusal that names the field and the remedy; nil when it can. It
// does no I/O and is asked before anything is disturbed. What only other
// containers or the container's files tell is for groupOf and copiedIn.
// noRollback is the setting of that name.
func refuse(s snapshot, noRollback bool) error {
	r := recreation{api: s.API, podman: s.Podman, daemon: s.Daemon, networks: s.NetworkNames}
	if err := r.read(s); err != nil {
		return err
	}
	h := r.was.HostConfig
	switch {
	case h.AutoRemove && !noRollback:
		return unsupported("HostConfig.AutoRemove: the engine removes it, and its anonymous volumes, when it stops, so there would be no way back; run it without --rm, or say that it may be replaced all the same, with the label updaterd.no-rollback=true", nil)
	case r.old.OS == "windows":
		return unsupported("a Windows container; only Linux containers are supported", nil)
	case len(r.was.NetworkSettings.Networks) == 0 && h.NetworkMode.IsPrivate() && !h.NetworkMode.IsNone() && !r.was.Config.NetworkDisabled:
		return unsupported(fmt.Sprintf("NetworkSettings.Networks: it was disconnected from every network, and a new container would be in %s; connect it again, or recreate it with --network none",
			h.NetworkMode), nil)
	}
	if s.Podman {
		if name := r.anonymousVolume(); h.AutoRemove && name != "" {
			// To Podman they are anonymous for ever, whatever names them.
			return unsupported(fmt.Sprintf("HostConfig.AutoRemove: Podman would remove its anonymous volume %s when the new container ends; give the volume a name", name), nil)
		}
		for _, d := range h.Devices {
			if d.CgroupPermissions == "" {
				return unsupported(fmt.Sprintf("HostConfig.Devices: Podman does not tell what the container may do with %s, so a new one might do more or less; recreate it by hand", d.PathOnHost), nil)
			}
		}
	}
	// All else that recreate refuses does not depend on the new image.
	_, err := recreate(s, s.Image, r.was.Config.Image, nil)
	return err
}

// refuseOverlap says why the container in s cannot run beside its replacement
// for a while, as start-first wants it.
func refuseOverlap(s snapshot, parts int) error {
	var was inspected
	if err := json.Unmarshal(s.Container, &was); err != nil {
		return unsupported("the inspect of the container cannot be read; the engine may be newer than this updaterd", err)
	}
	cannot := func(format string, args ...any) error {
		return unsupported("start-first: "+fmt.Sprintf(format, args...)+", which two containers cannot have at once; take the setting away, or that", nil)
	}
	h := was.HostConfig
	switch {
	case parts > 1:
		return unsupported("start-first: it moves together with other containers; take the setting away", nil)
	case h.AutoRemove:
		return unsupported("start-first: it is run with --rm; take the setting away, or that", nil)
	case h.NetworkMode.IsHost(), h.NetworkMode.IsContainer():
		return cannot("it has the network %s", h.NetworkMode)
	}
	for port, bindings := range h.PortBindings {
		for _, b := range bindings {
			if b.HostPort != "" && b.HostPort != "0" {
				return cannot("it publishes port %s as %s", port, b.HostPort)
			}
		}
	}
	//lint:ignore SA1019 engines before API 1.44 know no other place for it
	if was.Config.MacAddress != "" {
		return cannot("it has a MAC address of its own")
	}
	for _, name := range slices.Sorted(maps.Keys(was.NetworkSettings.Networks)) {
		e := was.NetworkSettings.Networks[name]
		if e == nil {
			continue
		}
		if c := e.IPAMConfig; c != nil && (c.IPv4Address != "" || c.IPv6Address != "" || len(c.LinkLocalIPs) > 0) {
			return cannot("it has a fixed address in network %s", name)
		}
		if universal(e.MacAddress) {
			return cannot("it has a MAC address of its own in network %s", name)
		}
	}
	for _, m := range was.Mounts {
		if m.RW && m.Type != mount.TypeTmpfs {
			return unsupported(fmt.Sprintf("start-first: it can write to what is mounted at %s, and two containers must not at once; mount it read-only, or take the setting away", m.Destination), nil)
		}
	}
	return nil
}

// refuseSignal refuses a signal that the engine would not send: older ones leave
// it out without a word.
func refuseSignal(set, own, api string) error {
	bare := func(s string) string { return strings.TrimPrefix(strings.ToUpper(s), "SIG") }
	if set == "" || bare(set) == bare(own) || versions.GreaterThanOrEqualTo(api, "1.42") {
		return nil
	}
	return &updater.Refusal{
		Reason: updater.InvalidSettings,
		Detail: fmt.Sprintf("stop-signal: API %s cannot express it, 1.42 can; upgrade the engine, or run the container with --stop-signal %s and take the setting away", api, set),
	}
}

// unfaithful says what the raw inspect holds that a create request cannot: keys
// that this program does not know, and fields the negotiated API cannot express.
func unfaithful(s snapshot, was inspected, old template) error {
	if err := refuseUnknown(s.Container, s.Fresh); err != nil {
		return err
	}
	lacks := func(set bool, version, field string) error {
		if !set || versions.GreaterThanOrEqualTo(s.API, version) {
			return nil
		}
		return unsupported(fmt.Sprintf("%s: API %s cannot express it, %s can; let updaterd speak a newer API (unset DOCKER_API_VERSION, upgrade the engine), or recreate the container without it",
			field, s.API, version), nil)
	}
	h := was.HostConfig
	if err := lacks(len(h.Annotations) > 0, "1.43", "HostConfig.Annotations"); err != nil {
		return err
	}
	check := userHealthcheck(was.Config.Healthcheck, old.Config.Healthcheck)
	if err := lacks(check != nil && check.StartInterval != 0, "1.44", "Config.Healthcheck.StartInterval"); err != nil {
		return err
	}
	for i, m := range h.Mounts {
		for _, f := range []struct {
			set            bool
			version, field string
		}{
			{m.Type == mount.TypeCluster, "1.42", "Type cluster"},
			{m.Type == mount.TypeImage, "1.48", "Type image"},
			{m.BindOptions != nil && m.BindOptions.CreateMountpoint, "1.42", "BindOptions.CreateMountpoint"},
			{m.BindOptions != nil && m.BindOptions.ReadOnlyForceRecursive, "1.44", "BindOptions.ReadOnlyForceRecursive"},
			{m.VolumeOptions != nil && m.VolumeOptions.Subpath != "", "1.45", "VolumeOptions.Subpath"},
			{m.TmpfsOptions != nil && len(m.TmpfsOptions.Options) > 0, "1.46", "TmpfsOptions.Options"},
		} {
			if err := lacks(f.set, f.version, fmt.Sprintf("HostConfig.Mounts[%d].%s", i, f.field)); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(was.NetworkSettings.Networks)) {
		e := was.NetworkSettings.Networks[name]
		if err := lacks(e != nil && e.GwPriority != 0, "1.48", "NetworkSettings.Networks["+name+"].GwPriority"); err != nil {
			return err
		}
	}
	return nil
}

// settable are the parts of an inspect that a create request sends back.
type settable struct {
	Config          *container.Config
	HostConfig      *container.HostConfig
	NetworkSettings struct {
		Networks map[string]struct{ IPAMConfig *network.EndpointIPAMConfig }
	}
}

// refuseUnknown refuses a container whose raw inspect, in whichever version of the
// API, holds what this program does not know; fresh is a snapshot's Fresh.
func refuseUnknown(raw, fresh json.RawMessage) error {
	unknown := unknownFields(raw, fresh)
	if len(unknown) == 0 {
		return nil
	}
	return unsupported(fmt.Sprintf("%s: the engine is newer than this updaterd, which does not know the field; update updaterd, or recreate the container without it",
		strings.Join(unknown, ", ")), nil)
}

// unknownFields are the fields of the raw inspect, below what create takes,
// that the SDK's types lack and that hold something, unless a fresh container
// on the same engine shows the same.
func unknownFields(raw, freshRaw json.RawMessage) []string {
	decode := func(raw json.RawMessage) map[string]any {
		var m map[string]any
		if json.Unmarshal(raw, &m) != nil {
			return nil // read has told, or there is no fresh one
		}
		return m
	}
	now, fresh := decode(raw), decode(freshRaw)
	var unknown []string
	for _, key := range []string{"Config", "HostConfig"} {
		f, _ := reflect.TypeFor[settable]().FieldByName(key)
		unknown = append(unknown, unknownIn(now[key], fresh[key], f.Type, key)...)
	}
	settings, _ := now["NetworkSettings"].(map[string]any)
	networks, _ := settings["Networks"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		e, _ := networks[name].(map[string]any)
		unknown = append(unknown, unknownIn(e["IPAMConfig"], nil, reflect.TypeFor[network.EndpointIPAMConfig](),
			"NetworkSettings.Networks["+name+"].IPAMConfig")...)
	}
	return unknown
}

// unknownIn are the keys below v, a decoded JSON value at path, that t lacks.
func unknownIn(v, fresh any, t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	var unknown []string
	switch v := v.(type) {
	case map[string]any:
		defaults, _ := fresh.(map[string]any)
		known := jsonFields(t)
		for _, key := range slices.Sorted(maps.Keys(v)) {
			at := path + "." + key
			switch t.Kind() {
			case reflect.Map:
				unknown = append(unknown, unknownIn(v[key], defaults[key], t.Elem(), at)...)
			case reflect.Struct:
				if field, ok := known[strings.ToLower(key)]; ok {
					unknown = append(unknown, unknownIn(v[key], defaults[key], field, at)...)
				} else if !empty(v[key]) && !reflect.DeepEqual(v[key], defaults[key]) {
					unknown = append(unknown, at)
				}
			}
		}
	case []any:
		if t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
			for i, e := range v {
				unknown = append(unknown, unknownIn(e, nil, t.Elem(), fmt.Sprintf("%s[%d]", path, i))...)
			}
		}
	}
	return unknown
}

// jsonFields are the fields of a struct by the lower-cased name that JSON
// knows them under (it does not tell cases apart).
func jsonFields(t reflect.Type) map[string]reflect.Type {
	if t.Kind() != reflect.Struct {
		return nil
	}
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		fields[strings.ToLower(name)] = f.Type
	}
	return fields
}

// empty reports whether a decoded JSON value says nothing.
func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case float64:
		return v == 0
	case string:
		return v == ""
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !empty(e) })
	case map[string]any:
		for _, e := range v {
			if !empty(e) {
				return false
			}
		}
		return true
	}
	return false
}

// layerFile is one file in a container's writable layer, as a stat of it through
// the engine tells.
type layerFile struct {
	Path     string
	Mode     os.FileMode
	Modified time.Time
}

// suspects are the paths of a container's writable layer that Compose may have
// put there and that are worth a stat, for copiedIn: none unless the container
// is Compose's.
func suspects(s snapshot, diff []container.FilesystemChange) []string {
	var was inspected
	if json.Unmarshal(s.Container, &was) != nil || was.Config == nil || was.Config.Labels["com.docker.compose.project"] == "" {
		return nil
	}
	mounted := func(p string) bool {
		return slices.ContainsFunc(was.Mounts, func(m container.MountPoint) bool {
			return p == m.Destination || strings.HasPrefix(p, path.Clean(m.Destination)+"/")
		})
	}
	parents := map[string]bool{}
	for _, c := range diff {
		parents[path.Dir(c.Path)] = true
	}
	var paths []string
	for _, c := range diff {
		if c.Kind != container.ChangeDelete && !mounted(c.Path) && !parents[c.Path] {
			paths = append(paths, c.Path)
		}
	}
	slices.Sort(paths)
	return paths
}

// copiedIn are those of the suspects that Compose copied into the container
// before its start: configs and secrets given by content or environment. They
// are in no mount and would be gone from a new container without a trace in
// inspect (nicholas-fedor/watchtower#2378).
//
// Compose writes them from an archive, whose times are whole seconds and not
// older than the container; what a program in the container writes has a
// fraction, and what it unpacks is older.
func copiedIn(s snapshot, files []layerFile) []string {
	var was struct{ Created time.Time }
	if json.Unmarshal(s.Container, &was) != nil {
		return nil
	}
	var copied []string
	for _, f := range files {
		secret := strings.HasPrefix(f.Path, "/run/secrets/")
		written := f.Modified.Nanosecond() == 0 && !f.Modified.Before(was.Created.Add(-2*time.Second))
		if f.Mode.IsRegular() && (secret || written) {
			copied = append(copied, f.Path)
		}
	}
	slices.Sort(copied)
	return copied
}

// clusterOnly refuses the settings that mean nothing on a Docker host.
func clusterOnly(s updater.Settings) error {
	for key, set := range map[string]bool{
		"adopt": s.Adopt, "init-containers": s.InitContainers, "cronjob-gate": s.CronJobGate == updater.GateNextRun,
	} {
		if set {
			return &updater.Refusal{Reason: updater.InvalidSettings, Detail: key + " is for clusters only; take it away, or set it in a rule that matches the cluster"}
		}
	}
	return nil
}

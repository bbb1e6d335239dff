package docker

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/updaterd/updaterd/internal/updater"
)

var update = flag.Bool("update", false, "write what recreate says into the golden files")

// golden is what a row must come to. Of the SDK's types only what is not as in
// an empty request is written down.
type golden struct {
	// Refused is refuse's word. Where there is a creation as well, the refusal
	// is about other containers or the way back, not about the request.
	Refused    string            `json:"refused,omitempty"`
	Config     any               `json:"config,omitempty"`
	Host       any               `json:"host,omitempty"`
	Networking any               `json:"networking,omitempty"`
	Platform   any               `json:"platform,omitempty"`
	Connect    []goldenConnected `json:"connect,omitempty"`
	Notes      []string          `json:"notes,omitempty"`
}

type goldenConnected struct {
	Network  string `json:"network"`
	Endpoint any    `json:"endpoint"`
}

func TestRecreate(t *testing.T) {
	dirs, err := filepath.Glob("testdata/recreate/*")
	require.NoError(t, err)
	require.NotEmpty(t, dirs)
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			s, newImage, ref := readRow(t, dir)
			var got golden
			if err := refuse(s, false); err != nil {
				requireUnsupported(t, err)
				got.Refused = err.Error()
			}
			c, err := recreate(s, newImage, ref, readMoved(t, dir))
			if err != nil {
				requireUnsupported(t, err)
				require.Equal(t, got.Refused, err.Error(), "what recreate refuses must be refused before anything is disturbed")
			} else {
				got.Config = short(t, c.Config, container.Config{})
				got.Host = short(t, c.Host, container.HostConfig{})
				endpoints := map[string]any{}
				for name, e := range c.Networking.EndpointsConfig {
					endpoints[name] = short(t, e, network.EndpointSettings{})
				}
				got.Networking, got.Platform, got.Notes = endpoints, c.Platform, c.Notes
				for _, n := range c.Connect {
					got.Connect = append(got.Connect, goldenConnected{n.Network, short(t, n.Endpoint, network.EndpointSettings{})})
				}
			}
			shown, err := json.MarshalIndent(got, "", "\t")
			require.NoError(t, err)
			want := filepath.Join(dir, "want.json")
			if *update {
				require.NoError(t, os.WriteFile(want, append(shown, '\n'), 0o600))
			}
			require.JSONEq(t, string(read(t, want)), string(shown))
		})
	}
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return b
}

func readRow(t testing.TB, dir string) (s snapshot, newImage json.RawMessage, ref string) {
	t.Helper()
	var given struct {
		API, Daemon, Ref string
		Podman           bool
		Networks         map[string]string
		Theirs           []string
		Fresh            json.RawMessage
	}
	require.NoError(t, json.Unmarshal(read(t, filepath.Join(dir, "given.json")), &given))
	return snapshot{
		Container: read(t, filepath.Join(dir, "container.json")), Image: read(t, filepath.Join(dir, "old-image.json")),
		API: given.API, Podman: given.Podman, Daemon: given.Daemon, NetworkNames: given.Networks, Theirs: given.Theirs, Fresh: given.Fresh,
	}, read(t, filepath.Join(dir, "new-image.json")), given.Ref
}

// readMoved is what a row has instead of what its container uses.
func readMoved(t testing.TB, dir string) map[string]string {
	t.Helper()
	var given struct{ Moved map[string]string }
	require.NoError(t, json.Unmarshal(read(t, filepath.Join(dir, "given.json")), &given))
	return given.Moved
}

func requireUnsupported(t testing.TB, err error) {
	t.Helper()
	var r *updater.Refusal
	require.ErrorAs(t, err, &r)
	require.Equal(t, updater.Unsupported, r.Reason)
	require.NotEmpty(t, r.Detail)
}

// short is v as JSON without what empty has as well.
func short(t testing.TB, v, empty any) map[string]any {
	t.Helper()
	asMap := func(v any) (m map[string]any) {
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, &m))
		return m
	}
	m := asMap(v)
	for key, def := range asMap(empty) {
		if reflect.DeepEqual(m[key], def) {
			delete(m, key)
		}
	}
	return m
}

// An SDK that brings a new field must not have it dropped, or sent back,
// without anybody having thought about it.
func TestEveryFieldIsHandledOnPurpose(t *testing.T) {
	words := func(s string) []string { return strings.Fields(s) }
	for _, row := range []struct {
		of                   reflect.Type
		copied, written, cut []string
	}{
		{
			of:      reflect.TypeFor[container.Config](),
			copied:  words("AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce ArgsEscaped NetworkDisabled OnBuild StopTimeout Shell"),
			written: words("Hostname Domainname User ExposedPorts Env Cmd Healthcheck Image Volumes WorkingDir Entrypoint MacAddress Labels StopSignal"),
		},
		{
			of: reflect.TypeFor[container.HostConfig](),
			copied: words(`ContainerIDFile LogConfig NetworkMode RestartPolicy AutoRemove VolumeDriver VolumesFrom Annotations CapAdd CapDrop
				CgroupnsMode DNSOptions DNSSearch GroupAdd IpcMode Cgroup OomScoreAdj PidMode Privileged ReadonlyRootfs SecurityOpt StorageOpt
				Tmpfs UTSMode UsernsMode ShmSize Runtime Isolation MaskedPaths ReadonlyPaths Init
				CPUShares Memory NanoCPUs CgroupParent BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps
				BlkioDeviceWriteIOps CPURealtimePeriod CPURealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules DeviceRequests
				KernelMemoryTCP MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit Ulimits CPUCount CPUPercent
				IOMaximumIOps IOMaximumBandwidth`),
			// PortBindings, PublishAllPorts, DNS and ExtraHosts go only where the
			// network is another container's.
			written: words("Binds Mounts Links Sysctls PortBindings PublishAllPorts DNS ExtraHosts CPUPeriod CPUQuota KernelMemory"),
			cut:     words("ConsoleSize"),
		},
		{
			of:      reflect.TypeFor[network.EndpointSettings](),
			copied:  words("IPAMConfig Links GwPriority"),
			written: words("Aliases DriverOpts MacAddress"),
			cut: words(`NetworkID EndpointID Gateway IPAddress IPPrefixLen IPv6Gateway GlobalIPv6Address
				GlobalIPv6PrefixLen DNSNames`),
		},
	} {
		t.Run(row.of.String(), func(t *testing.T) {
			var has []string
			for _, f := range reflect.VisibleFields(row.of) {
				if !f.Anonymous {
					has = append(has, f.Name)
				}
			}
			require.ElementsMatch(t, has, slices.Concat(row.copied, row.written, row.cut),
				"decide what recreate does with the field, then write it into this table and docs/recreate.md")
		})
	}
}

// Every HostConfig field that is copied arrives as it was, whatever it holds.
func TestHostConfigIsCopied(t *testing.T) {
	s, newImage, ref := readRow(t, "testdata/recreate/nothing-set-151")
	rewritten := []string{"Binds", "Mounts", "Links", "Sysctls", "ConsoleSize", "KernelMemory", "NetworkMode", "CPUPeriod", "CPUQuota"}
	rapid.Check(t, func(t *rapid.T) {
		var c map[string]any
		require.NoError(t, json.Unmarshal(s.Container, &c))
		var h container.HostConfig
		fields := reflect.VisibleFields(reflect.TypeFor[container.HostConfig]())
		v := reflect.ValueOf(&h).Elem()
		for _, f := range fields {
			if f.Anonymous || slices.Contains(rewritten, f.Name) || !rapid.Bool().Draw(t, f.Name) {
				continue
			}
			fill(t, v.FieldByIndex(f.Index), f.Name)
		}
		h.NetworkMode, h.PortBindings = "bridge", nil
		raw, err := json.Marshal(h)
		require.NoError(t, err)
		c["HostConfig"] = json.RawMessage(raw)
		changed := s
		changed.Container, err = json.Marshal(c)
		require.NoError(t, err)

		got, err := recreate(changed, newImage, ref, nil)
		require.NoError(t, err)
		sent, err := json.Marshal(got.Host)
		require.NoError(t, err)
		require.JSONEq(t, string(raw), string(sent))
	})
}

// fill puts something into v.
func fill(t *rapid.T, v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(rapid.StringMatching(`[a-z]{1,8}`).Draw(t, name))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, name))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64Range(-9, 1<<40).Draw(t, name))
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(rapid.Uint64Range(0, 60000).Draw(t, name))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, name), 3))
		for i := range v.Len() {
			fill(t, v.Index(i), name)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rapid.IntRange(0, 3).Draw(t, name) {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(t, key, name)
			fill(t, value, name)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), name)
		}
	}
}

// merged is how an engine makes a container's settings of a request and an
// image (moby's daemon/commit.go), as far as strings and lists go.
func merged(user, img container.Config) container.Config {
	c := user
	for _, e := range img.Env {
		key, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(user.Env, func(u string) bool { k, _, _ := strings.Cut(u, "="); return k == key }) {
			c.Env = append(slices.Clone(c.Env), e)
		}
	}
	c.Labels = map[string]string{}
	for _, from := range []map[string]string{img.Labels, user.Labels} {
		for k, v := range from {
			c.Labels[k] = v
		}
	}
	if len(user.Entrypoint) == 0 {
		if len(user.Cmd) == 0 {
			c.Cmd = img.Cmd
		}
		if user.Entrypoint == nil {
			c.Entrypoint = img.Entrypoint
		}
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil
	}
	for _, f := range []struct{ to, from *string }{{&c.User, &img.User}, {&c.WorkingDir, &img.WorkingDir}, {&c.StopSignal, &img.StopSignal}} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	return c
}

// Whatever a person asked for on whatever image, made again on the same image it
// shows the same; and moved to another, it shows what the same wishes show
// there, except those that the old image's own values hide.
func TestRecreateIsTheIdentityOnTheSameImage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) container.Config {
			list := rapid.SliceOfN(rapid.SampledFrom([]string{"/a", "/b", "-c"}), 0, 2)
			word := rapid.SampledFrom([]string{"", "one", "two"})
			c := container.Config{
				Env:    rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"A=1", "A=2", "B=1", "B", "C=3"}), 0, 4, rapid.ID).Draw(t, name+" env"),
				Labels: rapid.MapOf(rapid.SampledFrom([]string{"x", "y"}), word).Draw(t, name+" labels"),
				Cmd:    list.Draw(t, name+" cmd"), Entrypoint: list.Draw(t, name+" entrypoint"),
				User: word.Draw(t, name+" user"), WorkingDir: word.Draw(t, name+" dir"), StopSignal: word.Draw(t, name+" signal"),
			}
			if len(c.Entrypoint) == 0 {
				c.Entrypoint = nil
			}
			return c
		}
		img, user := draw("image"), draw("user")
		if rapid.Bool().Draw(t, "empty entrypoint") {
			user.Entrypoint = []string{""}
		}
		was := merged(user, img)
		was.Image = "web:1"

		asJSON := func(v any) json.RawMessage {
			raw, err := json.Marshal(v)
			require.NoError(t, err)
			return raw
		}
		raw := asJSON(map[string]any{"Id": "sha256:1", "Os": "linux", "Architecture": "amd64", "Config": img})
		got, err := recreate(snapshot{
			Container: asJSON(map[string]any{"Id": "0123456789abcdef", "Image": "sha256:1", "Config": was, "HostConfig": container.HostConfig{}}),
			Image:     raw, API: "1.51",
		}, raw, "web:1", nil)
		require.NoError(t, err)
		again := merged(*got.Config, img)

		sorted := func(c container.Config) container.Config {
			c.Env = slices.Sorted(slices.Values(c.Env))
			if len(c.Cmd) == 0 {
				c.Cmd = nil
			}
			return c
		}
		require.Equal(t, sorted(was), sorted(again))
	})
}

func TestFilesThatComposeCopiedIn(t *testing.T) {
	created := time.Date(2026, 3, 1, 13, 14, 24, 129549073, time.UTC)
	s := snapshot{Container: json.RawMessage(`{"Created":"2026-03-01T13:14:24.129549073Z",
		"Config":{"Labels":{"com.docker.compose.project":"p"}},
		"Mounts":[{"Type":"bind","Destination":"/run/secrets/mounted"},{"Type":"volume","Destination":"/data"}]}`)}
	diff := []container.FilesystemChange{
		{Kind: container.ChangeModify, Path: "/etc"}, {Kind: container.ChangeAdd, Path: "/etc/app.conf"},
		{Kind: container.ChangeAdd, Path: "/run/secrets/mounted"}, {Kind: container.ChangeAdd, Path: "/data/x"},
		{Kind: container.ChangeDelete, Path: "/gone"},
	}
	require.Equal(t, []string{"/etc/app.conf"}, suspects(s, diff))
	require.Empty(t, suspects(snapshot{Container: json.RawMessage(`{"Config":{}}`)}, diff), "not Compose's")

	for _, row := range []struct {
		name string
		file layerFile
		want bool
	}{
		{"a config, written just before the start", layerFile{"/etc/app.conf", 0o444, created.Truncate(time.Second).Add(time.Second)}, true},
		{"a config, its time rounded down", layerFile{"/etc/app.conf", 0o444, created.Truncate(time.Second)}, true},
		{"a config copied in again at a later start", layerFile{"/etc/app.conf", 0o444, created.Truncate(time.Second).Add(time.Hour)}, true},
		{"a secret", layerFile{"/run/secrets/token", 0o444, created.Add(time.Millisecond)}, true},
		{"a file that the program wrote", layerFile{"/run/app.pid", 0o644, created.Add(time.Second + time.Millisecond)}, false},
		{"a file that the program unpacked", layerFile{"/cache/x", 0o644, created.Add(-time.Hour).Truncate(time.Second)}, false},
		{"a directory", layerFile{"/etc/x", os.ModeDir | 0o755, created.Truncate(time.Second).Add(time.Second)}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			require.Equal(t, row.want, len(copiedIn(s, []layerFile{row.file})) == 1)
		})
	}
}

// An answer with anything in any place is refused or understood: it never
// makes recreate panic, as a nil endpoint or a mount without a type might.
func TestRecreateSurvivesOddAnswers(t *testing.T) {
	for _, name := range []string{"network-two-with-aliases-141"} {
		t.Run(name, func(t *testing.T) {
			s, newImage, ref := readRow(t, filepath.Join("testdata/recreate", name))
			for _, raw := range []*json.RawMessage{&s.Container, &s.Image, &newImage} {
				whole := *raw
				var tree any
				require.NoError(t, json.Unmarshal(whole, &tree))
				everywhere(tree, func(v any) { tree = v }, func() {
					var err error
					*raw, err = json.Marshal(tree)
					require.NoError(t, err)
					require.NotPanics(t, func() {
						_ = refuse(s, false)
						_, _ = recreate(s, newImage, ref, nil)
					}, "%s", *raw)
				})
				*raw = whole
			}
		})
	}
}

// everywhere puts odd values in the place of v and of all below it, one at a
// time, and calls try after each.
func everywhere(v any, set func(any), try func()) {
	for _, odd := range []any{nil, "odd:odd", -1, []any{nil}, map[string]any{"odd": nil}} {
		set(odd)
		try()
	}
	set(v)
	switch v := v.(type) {
	case map[string]any:
		for key, below := range v {
			everywhere(below, func(b any) { v[key] = b }, try)
		}
	case []any:
		for i, below := range v {
			everywhere(below, func(b any) { v[i] = b }, try)
		}
	}
}

// FuzzRecreate: no answer of an engine makes recreate or refuse panic, and what
// is not refused beforehand is not refused later.
func FuzzRecreate(f *testing.F) {
	dirs, err := filepath.Glob("testdata/recreate/*")
	require.NoError(f, err)
	for _, dir := range dirs {
		s, newImage, ref := readRow(f, dir)
		f.Add([]byte(s.Container), []byte(s.Image), []byte(newImage), s.API, ref)
	}
	f.Fuzz(func(t *testing.T, c, old, newImage []byte, api, ref string) {
		s := snapshot{Container: c, Image: old, API: api, Daemon: "docker-host"}
		before := slices.Clone(c)
		refused := refuse(s, false)
		if refused != nil {
			requireUnsupported(t, refused)
		}
		made, err := recreate(s, newImage, ref, nil)
		require.Equal(t, before, c, "the snapshot is not touched")
		if err != nil {
			requireUnsupported(t, err)
			if _, unreadable := readTemplate(newImage); unreadable == nil {
				require.Error(t, refused, "recreate refuses what refuse does not: %v", err)
			}
			return
		}
		require.NotNil(t, made.Config)
		require.NotNil(t, made.Host)
		require.NotNil(t, made.Networking)
		_, err = json.Marshal(made.Networking)
		require.NoError(t, err)
		if versions.LessThan(api, "1.44") {
			require.LessOrEqual(t, len(made.Networking.EndpointsConfig), 1)
		} else {
			require.Empty(t, made.Connect)
		}
		// Of our own labels, only those stay that tell what a person had written.
		for label := range made.Config.Labels {
			ours := strings.HasPrefix(label, labelPrefix)
			require.True(t, !ours || label == labelAnonymous || label == labelVolumesFrom, label)
		}
	})
}

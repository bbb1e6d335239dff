package stage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Port is where the app in the images listens.
const Port = "8080/tcp"

// Behaviour is how the app of an image misbehaves; the zero value behaves.
type Behaviour struct {
	Exit           *int          // exits with this code ...
	ExitAfter      time.Duration // ... after this long, or at once
	ListenAfter    time.Duration // begins to listen only then
	Hang           bool          // never listens
	UnhealthyAfter time.Duration // /healthz fails from then on
	Unhealthy      bool          // /healthz fails from the start
	EatMemory      bool          // allocates (up to 1 GB) until killed
	IgnoreTerm     bool          // does not end on SIGTERM
	StopAfter      time.Duration // takes this long to end on SIGTERM
	Write          string        // appends its version as a line to this file
	Log            string        // prints this line when it starts
	LogLines       int           // prints that many lines when it starts
	Signals        string        // ends by SIGHUP and SIGUSR1 too, and appends which as a line to this file
}

// Exit makes a Behaviour of ending at once with the code.
func Exit(code int) Behaviour { return Behaviour{Exit: &code} }

func (b Behaviour) env() []string {
	var env []string
	set := func(key, value string) { env = append(env, "APP_"+key+"="+value) }
	if b.Exit != nil {
		set("EXIT_CODE", strconv.Itoa(*b.Exit))
	}
	if b.ExitAfter > 0 {
		set("EXIT_AFTER", b.ExitAfter.String())
	}
	if b.ListenAfter > 0 {
		set("LISTEN_AFTER", b.ListenAfter.String())
	}
	if b.Hang {
		set("LISTEN_AFTER", "never")
	}
	if b.UnhealthyAfter > 0 || b.Unhealthy {
		set("UNHEALTHY_AFTER", b.UnhealthyAfter.String())
	}
	if b.EatMemory {
		set("EAT_MEMORY", "1")
	}
	if b.IgnoreTerm {
		set("IGNORE_TERM", "1")
	}
	if b.StopAfter > 0 {
		set("STOP_AFTER", b.StopAfter.String())
	}
	if b.Write != "" {
		set("WRITE", b.Write)
	}
	if b.Log != "" {
		set("LOG", b.Log)
	}
	if b.Signals != "" {
		set("SIGNALS", b.Signals)
	}
	if b.LogLines > 0 {
		set("LOG_LINES", strconv.Itoa(b.LogLines))
	}
	return env
}

// Image describes an image FROM scratch whose /app serves its Version over HTTP
// on port 8080. Equal Images have equal digests on one registry, and others on the
// next.
type Image struct {
	Version string
	Behave  Behaviour

	// Healthcheck is the image's HEALTHCHECK; see Check.
	Healthcheck *v1.HealthConfig

	Env        []string
	Entrypoint []string // nil means ["/app"]
	Cmd        []string
	Labels     map[string]string
	Volumes    []string
	Expose     []string // nil means Port
	User       string
	WorkingDir string
	StopSignal string

	// Updaterd has the image hold the real updaterd as /updaterd, which it runs, in
	// the place of the app.
	Updaterd bool

	// Shell adds /sh, which is the app: "sh -c 'app exit 3'" will do.
	Shell bool
	// Files are further files, by path.
	Files map[string]string
	// Ballast adds a layer with so many bytes that do not compress.
	Ballast int
	// Platform is what the image says it is for, "linux/arm64/v8"; empty means
	// this machine. The app in an image for another architecture fails with "exec
	// format error".
	Platform string
	// OCI has the manifest in the OCI's media types instead of Docker's.
	OCI bool
}

// Check is a HEALTHCHECK that asks the app for its health every interval, and
// takes retries failures for unhealthy.
func Check(interval time.Duration, retries int) *v1.HealthConfig {
	return &v1.HealthConfig{
		Test:     []string{"CMD", "/app", "health"},
		Interval: interval,
		Timeout:  2 * time.Second,
		Retries:  retries,
	}
}

// Index is a multi-platform image.
type Index struct {
	Images []Image
	// Attestation adds a manifest for "unknown/unknown", as buildx does.
	Attestation bool
	// OCI has the index in the OCI's media types instead of Docker's.
	OCI bool
}

// Artifact is what a registry can hold: an Image or an Index.
type Artifact interface {
	write(ref name.Reference, opts ...remote.Option) (v1.Hash, error)
}

// Foreign is a platform whose programs this machine cannot run.
func Foreign() string {
	if runtime.GOARCH == "arm64" {
		return "linux/amd64"
	}
	return "linux/arm64"
}

// Build makes the image for a registry's host. What it is for is its author: if two
// tests shared an image, the cleaning up of one could take from their engine what
// a container of the other has just been made of.
func (i Image) Build(host string) (v1.Image, error) {
	platform, err := i.platform()
	if err != nil {
		return nil, err
	}
	app, err := programLayer(i.Updaterd, platform.Architecture != runtime.GOARCH, i.OCI)
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{app}
	files := map[string][]byte{}
	for path, content := range i.Files {
		files[path] = []byte(content)
	}
	if i.Ballast > 0 {
		b := make([]byte, i.Ballast)
		var seed [32]byte
		copy(seed[:], i.Version)
		if _, err := rand.NewChaCha8(seed).Read(b); err != nil {
			return nil, err
		}
		files["/ballast"] = b
	}
	if i.Shell {
		layer, err := linkLayer("/sh", "/app", i.OCI)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	if len(files) > 0 {
		layer, err := fileLayer(files, 0o644, i.OCI)
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	img := empty.Image
	if i.OCI {
		img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
	config.Author = host
	config.Config = v1.Config{
		Healthcheck: i.Healthcheck,
		Env:         slices.Concat([]string{"PATH=/", "APP_VERSION=" + i.Version}, i.Behave.env(), i.Env),
		Entrypoint:  i.Entrypoint,
		Cmd:         i.Cmd,
		Labels:      i.Labels,
		User:        i.User,
		WorkingDir:  i.WorkingDir,
		StopSignal:  i.StopSignal,
	}
	if i.Entrypoint == nil {
		config.Config.Entrypoint = []string{"/app"}
		if i.Updaterd {
			config.Config.Entrypoint = []string{"/updaterd"}
		}
	}
	config.Config.Volumes = set(i.Volumes)
	if i.Expose == nil {
		i.Expose = []string{Port}
	}
	config.Config.ExposedPorts = set(i.Expose)
	return mutate.ConfigFile(img, config)
}

func (i Image) platform() (*v1.Platform, error) {
	if i.Platform == "" {
		i.Platform = "linux/" + runtime.GOARCH
	}
	return v1.ParsePlatform(i.Platform)
}

func (i Image) write(ref name.Reference, opts ...remote.Option) (v1.Hash, error) {
	img, err := i.Build(ref.Context().RegistryStr())
	if err != nil {
		return v1.Hash{}, err
	}
	if err := remote.Write(ref, img, opts...); err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

// Build makes the index for a registry's host.
func (x Index) Build(host string) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	if x.OCI {
		index = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	}
	for _, i := range x.Images {
		img, err := i.Build(host)
		if err != nil {
			return nil, err
		}
		platform, err := i.platform()
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
	}
	if x.Attestation {
		var versions []string
		for _, i := range x.Images {
			versions = append(versions, i.Version)
		}
		layer, err := fileLayer(map[string][]byte{"/attestation": []byte(strings.Join(versions, ","))}, 0o644, true)
		if err != nil {
			return nil, err
		}
		img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
		}})
	}
	return index, nil
}

func (x Index) write(ref name.Reference, opts ...remote.Option) (v1.Hash, error) {
	index, err := x.Build(ref.Context().RegistryStr())
	if err != nil {
		return v1.Hash{}, err
	}
	if err := remote.WriteIndex(ref, index, opts...); err != nil {
		return v1.Hash{}, err
	}
	return index.Digest()
}

func set(keys []string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, k := range keys {
		m[k] = struct{}{}
	}
	return m
}

// layers keeps the layers with the programs, which are the same in all images.
var layers sync.Map

func programLayer(self, foreign, oci bool) (v1.Layer, error) {
	type key struct{ self, foreign, oci bool }
	build, _ := layers.LoadOrStore(key{self, foreign, oci}, sync.OnceValues(func() (v1.Layer, error) {
		name, program := "/app", shared.app
		if self {
			name, program = "/updaterd", shared.self
		}
		if program == nil {
			return nil, fmt.Errorf("call stage.Main from TestMain")
		}
		path, err := program()
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if foreign {
			// e_machine of the ELF header: the kernel refuses the program without us
			// having to build one for that architecture.
			b[18], b[19] = 0xb7, 0x00 // EM_AARCH64
			if runtime.GOARCH == "arm64" {
				b[18], b[19] = 0x3e, 0x00 // EM_X86_64
			}
		}
		return fileLayer(map[string][]byte{name: b}, 0o755, oci)
	}))
	return build.(func() (v1.Layer, error))()
}

func fileLayer(files map[string][]byte, mode int64, oci bool) (v1.Layer, error) {
	var paths []string
	for path := range files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return layer(oci, func(w *tar.Writer) error {
		for _, path := range paths {
			h := &tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: mode, Size: int64(len(files[path])), Format: tar.FormatPAX}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			if _, err := w.Write(files[path]); err != nil {
				return err
			}
		}
		return nil
	})
}

func linkLayer(path, to string, oci bool) (v1.Layer, error) {
	return layer(oci, func(w *tar.Writer) error {
		return w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(path, "/"), Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777, Format: tar.FormatPAX})
	})
}

// layer is a layer of what fill writes.
func layer(oci bool, fill func(*tar.Writer) error) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := fill(w); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	media := types.DockerLayer
	if oci {
		media = types.OCILayer
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithMediaType(media), tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
}

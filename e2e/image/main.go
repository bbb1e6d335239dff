// Image writes the container image of updaterd: FROM scratch, with the binary,
// the certificates of the public authorities, and a directory for the state, for
// every architecture that is named. It is an OCI layout in a tar, as skopeo and podman
// read it. The same binaries make the same tar.
//
//	SOURCE_DATE_EPOCH=... image -o FILE -version V -revision COMMIT ARCH=BINARY...
//
// It is a module of its own, so that what only it needs stays out of the product.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// user is nobody's on the host, as images without a root by custom have it.
const user = 65532

// maker is what all images have in common.
type maker struct {
	version, revision string
	made              time.Time
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var m maker
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("o", "", "the tar to write")
	flags.StringVar(&m.version, "version", "unknown", "the version")
	flags.StringVar(&m.revision, "revision", "unknown", "the commit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || flags.NArg() == 0 {
		return errors.New("usage: image -o FILE -version V -revision COMMIT ARCH=BINARY")
	}
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH says when the image was made, in seconds since 1970: %w", err)
	}
	m.made = time.Unix(epoch, 0).UTC()

	var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arg := range flags.Args() {
		arch, binary, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q names no ARCH=BINARY", arg)
		}
		p, err := platform(arch)
		if err != nil {
			return err
		}
		img, err := m.image(p, binary)
		if err != nil {
			return fmt.Errorf("making the image for %s: %w", arch, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	return m.write(*out, index)
}

func platform(arch string) (v1.Platform, error) {
	switch arch {
	case "amd64", "arm64":
		return v1.Platform{OS: "linux", Architecture: arch}, nil
	case "armv7":
		return v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, nil
	}
	return v1.Platform{}, fmt.Errorf("%q is none of amd64, arm64 and armv7", arch)
}

// image is the image for one platform.
func (m maker) image(p v1.Platform, binary string) (v1.Image, error) {
	layer, err := m.layer(binary)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.AppendLayers(img, layer); err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant = p.OS, p.Architecture, p.Variant
	file.Created = v1.Time{Time: m.made}
	file.History = []v1.History{{Created: v1.Time{Time: m.made}, CreatedBy: "updaterd " + m.version}}
	file.Config = v1.Config{
		Entrypoint: []string{"/usr/bin/updaterd"},
		Cmd:        []string{"run"},
		User:       fmt.Sprintf("%d:%d", user, user),
		WorkingDir: "/",
		Env: []string{
			"PATH=/usr/local/bin:/usr/bin",
			"HOME=/var/lib/updaterd",
			"STATE_DIRECTORY=/var/lib/updaterd",
			"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
		},
		// The image specification has no such field, and lets others be; engines take it
		// from here all the same, but Podman, which wants Docker's media types for it.
		Healthcheck: &v1.HealthConfig{
			Test:        []string{"CMD", "/usr/bin/updaterd", "status"},
			Interval:    15 * time.Second,
			Timeout:     15 * time.Second, // the command itself waits 10 s for an answer
			StartPeriod: 30 * time.Second,
			Retries:     3,
		},
		// Else the state would go with the container.
		Volumes: map[string]struct{}{"/var/lib/updaterd": {}},
		Labels: map[string]string{
			"org.opencontainers.image.title":       "updaterd",
			"org.opencontainers.image.description": "Keeps containers up to date, and puts them back when an update is bad",
			"org.opencontainers.image.source":      "https://github.com/updaterd/updaterd",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.version":     m.version,
			"org.opencontainers.image.revision":    m.revision,
		},
	}
	return mutate.ConfigFile(img, file)
}

// layer is the one layer of an image.
func (m maker) layer(binary string) (v1.Layer, error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var roots bytes.Buffer
	for root := range bundle.Roots() {
		if err := pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, err
		}
	}
	var content bytes.Buffer
	t := tar.NewWriter(&content)
	for _, f := range []struct {
		name    string
		mode    int64
		owner   int
		content []byte
	}{
		{"etc/", 0o755, 0, nil},
		{"etc/passwd", 0o644, 0, fmt.Appendf(nil, "root:x:0:0:root:/:/\nupdaterd:x:%d:%[1]d:updaterd:/var/lib/updaterd:/\n", user)},
		{"etc/group", 0o644, 0, fmt.Appendf(nil, "root:x:0:\nupdaterd:x:%d:\n", user)},
		{"etc/ssl/", 0o755, 0, nil},
		{"etc/ssl/certs/", 0o755, 0, nil},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, 0, roots.Bytes()},
		{"etc/updaterd/", 0o755, 0, nil},
		{"usr/", 0o755, 0, nil},
		{"usr/bin/", 0o755, 0, nil},
		{"usr/bin/updaterd", 0o755, 0, program},
		{"var/", 0o755, 0, nil},
		{"var/lib/", 0o755, 0, nil},
		// A volume that is made for it belongs to whom the directory belongs to.
		{"var/lib/updaterd/", 0o770, user, nil},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.content)), ModTime: m.made, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := t.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

// write writes an index as an OCI layout in a tar.
func (m maker) write(path string, index v1.ImageIndex) error {
	// What packages have in a version, ~ and +, no tag may have.
	tag, err := name.NewTag("updaterd:" + strings.NewReplacer("~", "-", "+", "-").Replace(m.version))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "updaterd-image-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"org.opencontainers.image.ref.name": tag.TagStr(),
		"io.containerd.image.name":          "updaterd:" + tag.TagStr(),
	})); err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	t := tar.NewWriter(file)
	// WalkDir goes by the names in their order.
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: name, Mode: 0o644, ModTime: m.made, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if d.IsDir() {
			h.Name, h.Mode, h.Typeflag = name+"/", 0o755, tar.TypeDir
			return t.WriteHeader(h)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h.Size = int64(len(content))
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err = t.Write(content)
		return err
	})
	if err := errors.Join(err, t.Close()); err != nil {
		return err
	}
	return file.Close()
}

package registry

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestImage(t *testing.T) {
	plat := func(s string) updater.Platform {
		p := strings.Split(s+"//", "/")
		return updater.Platform{OS: p[0], Architecture: p[1], Variant: p[2]}
	}
	// many stores an index over images of these platforms; "" is an entry that
	// does not say what it is for.
	many := func(f *fake, all ...string) (top digest.Digest, by map[string]digest.Digest, conf map[string]digest.Digest) {
		by, conf = map[string]digest.Digest{}, map[string]digest.Digest{}
		var entries []ocispec.Descriptor
		for _, s := range all {
			p := plat(s)
			m, c := f.image("acme/web", "", p, s)
			by[s], conf[s] = m, c
			if p.OS == "" {
				entries = append(entries, entry(m, nil))
			} else {
				entries = append(entries, entry(m, &p))
			}
		}
		return f.index("acme/web", "1", entries...), by, conf
	}
	tests := []struct {
		name    string
		has     []string
		p       string
		want    string
		missing bool
	}{
		{name: "the very platform", has: []string{"linux/arm64/v8", "linux/amd64"}, p: "linux/amd64", want: "linux/amd64"},
		{name: "arm64 with and without its only variant are one", has: []string{"linux/amd64", "linux/arm64/v8"}, p: "linux/arm64", want: "linux/arm64/v8"},
		{name: "the other way round", has: []string{"linux/arm64"}, p: "linux/arm64/v8", want: "linux/arm64"},
		{name: "arm/v7 takes v7 before v6", has: []string{"linux/arm/v6", "linux/arm/v7"}, p: "linux/arm/v7", want: "linux/arm/v7"},
		{name: "arm/v7 takes v6 where there is no v7", has: []string{"linux/arm/v5", "linux/arm/v6", "linux/arm64"}, p: "linux/arm/v7", want: "linux/arm/v6"},
		{name: "arm/v6 does not take v7", has: []string{"linux/arm/v7"}, p: "linux/arm/v6", missing: true},
		{name: "another architecture is missing", has: []string{"linux/arm64", "linux/s390x"}, p: "linux/amd64", missing: true},
		{name: "another system is missing", has: []string{"windows/amd64"}, p: "linux/amd64", missing: true},
		{name: "attestations are no images", has: []string{"unknown/unknown", "linux/amd64"}, p: "linux/amd64", want: "linux/amd64"},
		{name: "attestations alone are no images", has: []string{"unknown/unknown"}, p: "linux/amd64", missing: true},
		{name: "an entry that does not tell comes after one that does", has: []string{"", "linux/amd64"}, p: "linux/amd64", want: "linux/amd64"},
		{name: "an empty index has nothing", p: "linux/amd64", missing: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(example)
			top, by, conf := many(f, tt.has...)
			c, _ := client(t, setup{}, internet{example: f})
			got, err := c.Image(bg, example+"/acme/web:1", top.String(), plat(tt.p))
			if tt.missing {
				refused(t, err, updater.PlatformMissing, example, "acme/web", tt.p)
				return
			}
			require.NoError(t, err)
			require.Equal(t, updater.Image{Ref: example + "/acme/web:1", Digest: top.String(), Manifest: by[tt.want].String(), Config: conf[tt.want].String()}, got)
			require.Equal(t, 2, f.count("GET /v2/acme"), f.log)
		})
	}
	t.Run("an answer is kept for good, whoever asks and in whatever pass", func(t *testing.T) {
		f := newFake(example)
		top, _, _ := many(f, "linux/amd64")
		c, _ := client(t, setup{}, internet{example: f})
		for _, tag := range []string{"1", "2"} {
			got, err := c.Image(bg, example+"/acme/web:"+tag, top.String(), amd64)
			require.NoError(t, err)
			require.Equal(t, example+"/acme/web:"+tag, got.Ref)
			c.NewPass()
		}
		require.Equal(t, 2, f.count("GET /v2/acme"))
	})
	t.Run("a new index around the same image for a platform has the same manifest", func(t *testing.T) {
		f := newFake(example)
		m, _ := f.image("acme/web", "", amd64, "a")
		one := f.index("acme/web", "1", entry(m, &amd64))
		two := f.index("acme/web", "1", entry(m, &amd64), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("attestation"), Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}})
		c, _ := client(t, setup{}, internet{example: f})
		a, err := c.Image(bg, example+"/acme/web:1", one.String(), amd64)
		require.NoError(t, err)
		b, err := c.Image(bg, example+"/acme/web:1", two.String(), amd64)
		require.NoError(t, err)
		require.NotEqual(t, a.Digest, b.Digest)
		running := updater.Running{Digests: []string{a.Digest}, Manifest: a.Manifest}
		require.True(t, running.Is(b), "on the containerd store, by manifest")
		require.True(t, updater.Running{Digests: []string{a.Digest}, Config: a.Config}.Is(b), "on the other store, by config")
	})
	t.Run("an index within an index is looked into", func(t *testing.T) {
		f := newFake(example)
		m, conf := f.image("acme/web", "", amd64, "a")
		inner := f.index("acme/web", "", entry(m, &amd64))
		e := entry(inner, nil)
		e.MediaType = ocispec.MediaTypeImageIndex
		top := f.index("acme/web", "1", e)
		c, _ := client(t, setup{}, internet{example: f})
		got, err := c.Image(bg, example+"/acme/web:1", top.String(), amd64)
		require.NoError(t, err)
		require.Equal(t, m.String(), got.Manifest)
		require.Equal(t, conf.String(), got.Config)
	})
	t.Run("an index that goes down without end is left", func(t *testing.T) {
		f := newFake(example)
		d := digest.FromString("nothing")
		for range 10 {
			e := entry(d, nil)
			e.MediaType = ocispec.MediaTypeImageIndex
			d = f.index("acme/web", "", e)
		}
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Image(bg, example+"/acme/web:1", d.String(), amd64)
		refused(t, err, updater.PlatformMissing)
		require.LessOrEqual(t, f.count("GET /v2/acme"), 5)
	})
	t.Run("an image without an index is held to its config", func(t *testing.T) {
		f := newFake(example)
		arm, _ := f.image("acme/web", "1", plat("linux/arm64"), "a")
		ours, conf := f.image("acme/web", "2", amd64, "a")
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Image(bg, example+"/acme/web:1", arm.String(), amd64)
		refused(t, err, updater.PlatformMissing, "linux/arm64", "linux/amd64")
		got, err := c.Image(bg, example+"/acme/web:2", ours.String(), amd64)
		require.NoError(t, err)
		require.Equal(t, updater.Image{Ref: example + "/acme/web:2", Digest: ours.String(), Manifest: ours.String(), Config: conf.String()}, got)
	})
	t.Run("a config that cannot be had says nothing", func(t *testing.T) {
		f := newFake(example)
		m, conf := f.image("acme/web", "1", plat("linux/arm64"), "a")
		delete(f.blobs, conf.String())
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Image(bg, example+"/acme/web:1", m.String(), amd64)
		require.NoError(t, err)
	})
	t.Run("a config that is another is refused", func(t *testing.T) {
		f := newFake(example)
		m, conf := f.image("acme/web", "1", amd64, "a")
		f.blobs[conf.String()] = []byte(`{"os":"linux","architecture":"amd64"}`)
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Image(bg, example+"/acme/web:1", m.String(), amd64)
		refused(t, err, updater.RegistryUnavailable, "another config")
	})
	t.Run("a manifest that does not have the digest it was asked by is refused", func(t *testing.T) {
		f := newFake(example)
		f.image("acme/web", "1", amd64, "a")
		wrong, _ := f.image("acme/web", "2", amd64, "b")
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if !manifestRequest(r, "") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Write(f.manifests["acme/web:1"].body)
			return true
		}
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Image(bg, example+"/acme/web:2", wrong.String(), amd64)
		refused(t, err, updater.RegistryUnavailable, "another manifest")
	})
	t.Run("a chart is no image", func(t *testing.T) {
		f := newFake(example)
		d := f.put("acme/web", "1", ocispec.MediaTypeImageManifest, fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":%q,"size":1},"layers":[]}`, digest.FromString("x")))
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Image(bg, example+"/acme/web:1", d.String(), amd64)
		refused(t, err, updater.Unsupported, "no container image")
	})
	t.Run("what is remembered for good is bounded", func(t *testing.T) {
		f := newFake(example)
		c, _ := client(t, setup{}, internet{example: f})
		c.images.max = 8
		for i := range 50 {
			m, _ := f.image("acme/web", "", amd64, fmt.Sprint(i))
			_, err := c.Image(bg, example+"/acme/web:1", m.String(), amd64)
			require.NoError(t, err)
		}
		require.Len(t, c.images.calls, 8)
	})
	t.Run("a digest that is none is not asked for", func(t *testing.T) {
		c, _ := client(t, setup{}, internet{})
		_, err := c.Image(bg, example+"/acme/web:1", "sha256:../../x", amd64)
		refused(t, err, updater.InvalidSettings)
	})
}

func FuzzManifest(f *testing.F) {
	f.Add("application/json", `{"schemaVersion":2,"manifests":[]}`)
	f.Add(ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"config":{"digest":"sha256:x"}}`)
	f.Add(schema1, `{"schemaVersion":1}`)
	f.Fuzz(func(t *testing.T, contentType, body string) {
		m, ok := parseManifest(contentType, []byte(body))
		if ok && m.kind == unknown {
			t.Fatal("a manifest of no kind")
		}
		if ok && m.kind == image && m.config.Digest.Validate() != nil {
			t.Fatalf("config %q", m.config.Digest)
		}
	})
}

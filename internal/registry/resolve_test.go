package registry

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func manifestRequest(r *http.Request, method string) bool {
	return strings.Contains(r.URL.Path, "/manifests/") && (method == "" || r.Method == method)
}

func TestResolve(t *testing.T) {
	const host = "reg.example.com"
	say := func(status int, contentType, digest, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !manifestRequest(r, "") {
				return false
			}
			w.Header().Set("Content-Type", contentType)
			if digest != "" {
				w.Header().Set("Docker-Content-Digest", digest)
			}
			w.WriteHeader(status)
			fmt.Fprint(w, body)
			return true
		}
	}
	// change lets the registry answer and then changes what it said.
	change := func(f *fake, method string, do func(*answer)) {
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if !manifestRequest(r, method) {
				return false
			}
			f.mu.Lock()
			m := f.manifests["acme/web:1"]
			f.mu.Unlock()
			a := &answer{status: 200, header: http.Header{}, body: m.body}
			a.header.Set("Content-Type", m.mediaType)
			a.header.Set("Docker-Content-Digest", digest.FromBytes(m.body).String())
			do(a)
			for k, v := range a.header {
				w.Header()[k] = v
			}
			w.WriteHeader(a.status)
			w.Write(a.body)
			return true
		}
	}
	drop := func(name string) func(*answer) { return func(a *answer) { a.header.Del(name) } }
	status := func(s int) func(*answer) {
		return func(a *answer) { *a = answer{status: s, header: http.Header{}} }
	}
	other := digest.FromString("other").String()

	tests := []struct {
		name   string
		bend   func(*fake)
		reason updater.Reason // "" if the index's digest is the answer
		says   string
		head   int
		get    int
	}{
		{name: "a HEAD with all four types in one Accept line gives the digest of the index", bend: func(*fake) {}, head: 1},
		{name: "a HEAD without a digest is followed by a GET whose bytes are hashed as they came",
			bend: func(f *fake) { change(f, "", drop("Docker-Content-Digest")) }, head: 1, get: 1},
		{name: "a HEAD that says 404 though GET works is not believed", bend: func(f *fake) { change(f, "HEAD", status(404)) }, head: 1, get: 1},
		{name: "a HEAD that says 405 is followed by a GET", bend: func(f *fake) { change(f, "HEAD", status(405)) }, head: 1, get: 1},
		{name: "a HEAD that says 400 is followed by a GET", bend: func(f *fake) { change(f, "HEAD", status(400)) }, head: 1, get: 1},
		{name: "static storage with one type for all files and no digest is read by what the file says",
			bend: func(f *fake) {
				change(f, "", func(a *answer) { a.header = http.Header{"Content-Type": {"binary/octet-stream"}} })
			}, head: 1, get: 1},
		{name: "a type with parameters is that type", bend: func(f *fake) {
			change(f, "", func(a *answer) { a.header.Set("Content-Type", a.header.Get("Content-Type")+"; charset=utf-8") })
		}, head: 1},
		{name: "a digest header that disagrees with the body of a GET is refused", bend: func(f *fake) {
			change(f, "", func(a *answer) { a.header.Set("Docker-Content-Digest", other) })
			inner := f.odd
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				if manifestRequest(r, "HEAD") {
					w.WriteHeader(405)
					return true
				}
				return inner(w, r)
			}
		}, reason: updater.RegistryUnavailable, says: "does not have the digest", head: 1, get: 1},
		{name: "a digest header of the wrong form is refused", bend: func(f *fake) {
			change(f, "", func(a *answer) { a.header.Set("Docker-Content-Digest", "sha256:short") })
		}, reason: updater.RegistryUnavailable, says: "digest that is none", head: 1},
		{name: "a login page with 200 is no update", bend: func(f *fake) { f.odd = say(200, "text/html; charset=utf-8", "", "<html>log in</html>") },
			reason: updater.RegistryUnavailable, says: "web page", head: 1},
		{name: "a login page with 200 and a digest is no update", bend: func(f *fake) { f.odd = say(200, "text/html", other, "<html>log in</html>") },
			reason: updater.RegistryUnavailable, says: "web page", head: 1},
		{name: "a truncated manifest is no update", bend: func(f *fake) {
			change(f, "", func(a *answer) { a.header.Del("Docker-Content-Digest"); a.body = a.body[:len(a.body)/2] })
		}, reason: updater.RegistryUnavailable, says: "no manifest", head: 1, get: 1},
		{name: "JSON that is no manifest is no update", bend: func(f *fake) { f.odd = say(200, "application/json", "", `{"hello":"world"}`) },
			reason: updater.RegistryUnavailable, says: "no manifest", head: 1, get: 1},
		{name: "a manifest that is index and image at once is refused", bend: func(f *fake) {
			f.odd = say(200, "application/vnd.oci.image.index.v1+json", "", `{"schemaVersion":2,"manifests":[],"layers":[]}`)
		}, reason: updater.RegistryUnavailable, says: "no manifest", head: 1, get: 1},
		{name: "schema 1 on HEAD is unsupported and never an update", bend: func(f *fake) { f.odd = say(200, schema1Signed, other, "") },
			reason: updater.Unsupported, says: "schema 1", head: 1},
		{name: "schema 1 on GET is unsupported and never an update", bend: func(f *fake) {
			f.odd = say(200, "application/json", "", `{"schemaVersion":1,"fsLayers":[]}`)
		}, reason: updater.Unsupported, says: "schema 1", head: 1, get: 1},
		{name: "a tag that is not there is not found", bend: func(f *fake) { delete(f.manifests, "acme/web:1") },
			reason: updater.NotFound, says: "MANIFEST_UNKNOWN", head: 1, get: 1},
		{name: "400 with NAME_UNKNOWN, as ECR says it, is not found", bend: func(f *fake) {
			f.odd = say(400, "application/json", "", `{"errors":[{"code":"NAME_UNKNOWN","message":"no"}]}`)
		}, reason: updater.NotFound, says: "NAME_UNKNOWN", head: 1, get: 1},
		{name: "403 with DENIED is unauthorized, never a deleted image", bend: func(f *fake) {
			f.odd = say(403, "application/json", "", `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
		}, reason: updater.Unauthorized, says: "DENIED", head: 1, get: 1},
		{name: "403 with TOOMANYREQUESTS, as Quay says it, is a rate limit", bend: func(f *fake) {
			f.odd = say(403, "application/json", "", `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`)
		}, reason: updater.RateLimited, head: 1, get: 1},
		{name: "503 whose message tells of a rate, as GHCR says it, is a rate limit", bend: func(f *fake) {
			f.odd = say(503, "application/json", "", `{"errors":[{"code":"DENIED","message":"denied: API rate limit exceeded"}]}`)
		}, reason: updater.RateLimited, head: 1},
		{name: "a manifest larger than 4 MiB is not read to its end", bend: func(f *fake) {
			f.odd = say(200, "application/vnd.oci.image.index.v1+json", "", strings.Repeat(" ", manifestLimit+1))
		}, reason: updater.RegistryUnavailable, says: "longer than", head: 1, get: 1},
		{name: "500 is the registry's trouble", bend: func(f *fake) { f.odd = say(501, "text/plain", "", "no") },
			reason: updater.RegistryUnavailable, says: "501", head: 1, get: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(host)
				m, _ := f.image("acme/web", "", amd64, "a")
				want := f.index("acme/web", "1", entry(m, &amd64))
				tt.bend(f)
				c, _ := client(t, setup{}, internet{host: f})
				got, err := c.Resolve(bg, host+"/acme/web:1")
				if tt.reason != "" {
					refused(t, err, tt.reason, host, "acme/web", tt.says)
				} else {
					require.NoError(t, err)
					require.Equal(t, want.String(), got)
				}
				require.Equal(t, tt.head, f.count("HEAD /v2/acme/web/manifests/1"), f.log)
				if tt.says != "" || tt.reason == "" {
					require.Equal(t, tt.get, f.count("GET /v2/acme/web/manifests/1"), f.log)
				}
			})
		})
	}
}

func TestDockerHub(t *testing.T) {
	tests := []struct {
		ref  string
		repo string
	}{
		{"nginx", "library/nginx"},
		{"docker.io/nginx:latest", "library/nginx"},
		{"index.docker.io/library/nginx", "library/nginx"},
		{"acme/web", "acme/web"},
	}
	for _, tt := range tests {
		t.Run(tt.ref+" is asked at registry-1.docker.io with the login of the old index name", func(t *testing.T) {
			f, auth := newFake(hub), newFake("auth.docker.io")
			f.auth, f.realm = "bearer", "https://auth.docker.io/token"
			auth.user, auth.password = "robot", "s3cret"
			auth.tokens = f.tokens
			want, _ := f.image(tt.repo, "latest", amd64, "a")
			c, _ := client(t, setup{logins: basicLogin("https://index.docker.io/v1/", "robot", "s3cret")},
				internet{hubAPI: f, "auth.docker.io": auth})
			got, err := c.Resolve(bg, tt.ref)
			require.NoError(t, err)
			require.Equal(t, want.String(), got)
		})
	}
	for _, status := range []int{400, 403, 404, 405, 503} {
		t.Run(fmt.Sprintf("a GET counts as a pull, so none follows a HEAD that says %d", status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(hub)
				f.odd = func(w http.ResponseWriter, r *http.Request) bool {
					if manifestRequest(r, "") {
						w.WriteHeader(status)
					}
					return manifestRequest(r, "")
				}
				c, _ := client(t, setup{}, internet{hubAPI: f})
				_, err := c.Resolve(bg, "nginx")
				require.Error(t, err)
				require.Zero(t, f.count("GET /v2/library"))
			})
		})
	}
}

func TestNames(t *testing.T) {
	tests := []struct{ ref, host, repo, tag string }{
		{"nginx", "docker.io", "library/nginx", "latest"},
		{"user/x", "docker.io", "user/x", "latest"},
		{"docker.io/nginx", "docker.io", "library/nginx", "latest"},
		{"index.docker.io/library/nginx:1", "docker.io", "library/nginx", "1"},
		{"registry-1.docker.io/library/nginx:1", "registry-1.docker.io", "library/nginx", "1"},
		{"localhost/x", "localhost", "x", "latest"},
		{"host:5000/x", "host:5000", "x", "latest"},
		{"reg.example.com/a/b/c:v1", "reg.example.com", "a/b/c", "v1"},
		{"Host/x", "host", "x", "latest"},
		{"[::1]:5000/x:1", "[::1]:5000", "x", "1"},
		{"x@sha256:" + strings.Repeat("a", 64), "docker.io", "library/x", ""},
	}
	for _, tt := range tests {
		t.Run(tt.ref, func(t *testing.T) {
			n, err := parseName(tt.ref)
			require.NoError(t, err)
			require.Equal(t, name{host: tt.host, repo: tt.repo, tag: tt.tag, digest: n.digest}, n)
		})
	}
	t.Run("names of one thing are one question", func(t *testing.T) {
		f := newFake(hub)
		f.image("library/nginx", "latest", amd64, "a")
		c, _ := client(t, setup{}, internet{hubAPI: f})
		for _, ref := range []string{"nginx", "nginx:latest", "docker.io/library/nginx", "index.docker.io/nginx"} {
			_, err := c.Resolve(bg, ref)
			require.NoError(t, err)
		}
		require.Equal(t, 1, f.count("HEAD"))
	})
}

func TestOneRequestPerReferenceAndPass(t *testing.T) {
	f := newFake("reg.example.com")
	f.image("acme/web", "1", amd64, "a")
	c, _ := client(t, setup{}, internet{"reg.example.com": f})
	both := func() {
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				_, err := c.Resolve(bg, "reg.example.com/acme/web:1")
				require.NoError(t, err)
				_, err = c.Tags(bg, "reg.example.com/acme/web:1")
				require.NoError(t, err)
			})
		}
		wg.Wait()
	}
	both()
	require.Equal(t, 1, f.count("HEAD /v2/acme"))
	require.Equal(t, 1, f.count("GET /v2/acme/web/tags"))

	moved, _ := f.image("acme/web", "1", amd64, "b")
	c.NewPass()
	both()
	require.Equal(t, 2, f.count("HEAD /v2/acme"))
	got, err := c.Resolve(bg, "reg.example.com/acme/web:1")
	require.NoError(t, err)
	require.Equal(t, moved.String(), got, "a new pass sees the tag where it is now")

	got, err = c.Resolve(bg, "reg.example.com/acme/web:1@"+digest.FromString("pinned").String())
	require.NoError(t, err)
	require.Equal(t, moved.String(), got, "beside a tag, a digest says nothing about where the tag is")
}

func TestWhoGivesUpTakesNobodyAlong(t *testing.T) {
	f := newFake("reg.example.com")
	want, _ := f.image("acme/web", "1", amd64, "a")
	asked, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.odd = func(_ http.ResponseWriter, r *http.Request) bool {
		if manifestRequest(r, "HEAD") {
			once.Do(func() { close(asked); <-goOn })
		}
		return false
	}
	c, _ := client(t, setup{}, internet{"reg.example.com": f})
	ctx, cancel := context.WithCancel(bg)
	first := make(chan error)
	go func() { _, err := c.Resolve(ctx, "reg.example.com/acme/web:1"); first <- err }()
	<-asked
	second := make(chan string)
	go func() { d, _ := c.Resolve(bg, "reg.example.com/acme/web:1"); second <- d }()
	cancel()
	close(goOn)
	require.ErrorIs(t, <-first, context.Canceled)
	require.Equal(t, want.String(), <-second)
}

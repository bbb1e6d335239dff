package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ggcrname "github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// serve runs f on loopback, with TLS or without, and gives it its name.
func serve(t testing.TB, f *fake, withTLS bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(f)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if withTLS {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	f.name = s.Listener.Addr().String()
	return s
}

// authority writes the certificate that s is signed by.
func authority(t testing.TB, s *httptest.Server, file string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644))
	return file
}

func TestTLS(t *testing.T) {
	f := newFake("")
	s := serve(t, f, true)
	want, _ := f.image("acme/web", "1", amd64, "a")
	t.Run("an authority of the configuration is trusted", func(t *testing.T) {
		ca := authority(t, s, filepath.Join(t.TempDir(), "ca.pem"))
		c, _ := client(t, setup{Options: Options{Hosts: []Host{{Host: f.name, CA: ca}}}}, nil)
		got, err := c.Resolve(bg, f.name+"/acme/web:1")
		require.NoError(t, err)
		require.Equal(t, want.String(), got)
	})
	t.Run("the engine's authority for the host is trusted", func(t *testing.T) {
		dir := t.TempDir()
		authority(t, s, filepath.Join(dir, f.name, "ca.crt"))
		c, _ := client(t, setup{Options: Options{CertsDir: dir}}, nil)
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		require.NoError(t, err)
	})
	t.Run("another authority is not, on loopback either, and the refusal says where to put it", func(t *testing.T) {
		c, _ := client(t, setup{}, nil)
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		refused(t, err, updater.RegistryUnavailable, f.name, "acme/web", "ca:", "certs.d")
	})
	t.Run("plain-http for a host that speaks TLS is told", func(t *testing.T) {
		c, _ := client(t, setup{Options: Options{Hosts: []Host{{Host: f.name, PlainHTTP: true}}}}, nil)
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		refused(t, err, updater.RegistryUnavailable, f.name, "plain-http")
	})
	t.Run("a client certificate of certs.d is shown", func(t *testing.T) {
		shown := make(chan int, 10)
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			shown <- len(r.TLS.PeerCertificates)
			f.ServeHTTP(w, r)
		}))
		s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		s.StartTLS()
		defer s.Close()
		host, dir := s.Listener.Addr().String(), t.TempDir()
		authority(t, s, filepath.Join(dir, host, "ca.crt"))
		clientCertificate(t, filepath.Join(dir, host, "client"))
		c, _ := client(t, setup{Options: Options{CertsDir: dir}}, nil)
		_, err := c.Resolve(bg, host+"/acme/web:1")
		require.NoError(t, err)
		require.Equal(t, 1, <-shown)
	})
	t.Run("a client certificate without its key is told", func(t *testing.T) {
		dir := t.TempDir()
		clientCertificate(t, filepath.Join(dir, f.name, "client"))
		require.NoError(t, os.Remove(filepath.Join(dir, f.name, "client.key")))
		c, _ := client(t, setup{Options: Options{CertsDir: dir}}, nil)
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		refused(t, err, updater.RegistryUnavailable, f.name, "client.cert")
	})
}

func clientCertificate(t *testing.T, path string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "updaterd"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	k, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path+".cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	require.NoError(t, os.WriteFile(path+".key", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: k}), 0o600))
}

func TestPlainHTTP(t *testing.T) {
	t.Run("on loopback it is tried after TLS, and remembered", func(t *testing.T) {
		f := newFake("")
		f.auth = "bearer" // its realm is plain, too
		serve(t, f, false)
		for _, host := range []string{f.name, strings.Replace(f.name, "127.0.0.1", "localhost", 1)} {
			want, _ := f.image("acme/web", "1", amd64, "a")
			c, _ := client(t, setup{}, nil)
			for range 3 {
				got, err := c.Resolve(bg, host+"/acme/web:1")
				require.NoError(t, err)
				require.Equal(t, want.String(), got)
				c.NewPass()
			}
			h, err := c.host(host)
			require.NoError(t, err)
			require.Equal(t, "http", h.scheme)
		}
		require.Equal(t, 2, f.count("GET /v2/"), "each client met the host once")
	})
	t.Run("elsewhere it is never tried", func(t *testing.T) {
		for _, host := range []string{"reg.example.com", "10.0.0.1:5000", "192.168.1.2:5000", "reg.local", "x.localhost:5000"} {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(host)
				f.image("acme/web", "1", amd64, "a")
				c, _ := client(t, setup{logins: basicLogin(host, "robot", "s3cret")}, internet{"http://" + host: f})
				_, err := c.Resolve(bg, host+"/acme/web:1")
				refused(t, err, updater.RegistryUnavailable, host)
				require.Empty(t, f.log)
			})
		}
	})
	t.Run("elsewhere the configuration can say so", func(t *testing.T) {
		f := newFake(example)
		f.image("acme/web", "1", amd64, "a")
		c, _ := client(t, setup{Options: Options{Hosts: []Host{{Host: example, PlainHTTP: true}}}}, internet{"http://" + example: f})
		_, err := c.Resolve(bg, example+"/acme/web:1")
		require.NoError(t, err)
	})
	t.Run("a loopback host that wants patience over plain HTTP gets it", func(t *testing.T) {
		f := newFake("")
		f.odd = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(429)
			return true
		}
		serve(t, f, false)
		c, _ := client(t, setup{}, nil)
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		refused(t, err, updater.RateLimited, f.name)
	})
	for h, want := range map[string]bool{"localhost": true, "LOCALHOST:5000": true, "127.0.0.1": true, "127.8.9.1:5000": true, "[::1]:5000": true, "::1": true, "128.0.0.1": false, "localhost.example.com": false, "10.0.0.1:5000": false} {
		require.Equal(t, want, loopback(h), h)
	}
}

func TestBadDays(t *testing.T) {
	t.Run("a host that is down is told, and asked once in a pass", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		host := l.Addr().String()
		l.Close()
		c, _ := client(t, setup{}, nil)
		for _, repo := range []string{"acme/web", "acme/db"} {
			_, err = c.Resolve(bg, host+"/"+repo+":1")
			refused(t, err, updater.RegistryUnavailable, host, repo, "refused")
		}
	})
	t.Run("a host that swallows questions costs one timeout, not one for each image", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
		require.NoError(t, err)
		defer l.Close()
		host := l.Addr().String()
		c, _ := client(t, setup{Options: Options{Hosts: []Host{{Host: host, PlainHTTP: true}}}}, nil)
		h, err := c.host(host)
		require.NoError(t, err)
		h.http.Timeout = 200 * time.Millisecond
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				_, err := c.Resolve(bg, fmt.Sprintf("%s/acme/app%d:1", host, i))
				refused(t, err, updater.RegistryUnavailable, host, fmt.Sprintf("acme/app%d", i), "in time")
			})
		}
		wg.Wait()
		require.Less(t, time.Since(began), 2*time.Second)
	})
	t.Run("a question that hangs does not stop the others", func(t *testing.T) {
		f := newFake("")
		f.image("acme/web", "1", amd64, "a")
		hang := make(chan struct{})
		f.odd = func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "slow") {
				<-hang
			}
			return false
		}
		serve(t, f, false)
		defer close(hang)
		c, _ := client(t, setup{}, nil)
		ctx, cancel := context.WithCancel(bg)
		slow := make(chan error, 1)
		go func() { _, err := c.Resolve(ctx, f.name+"/acme/slow:1"); slow <- err }()
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		require.NoError(t, err)
		cancel()
		require.ErrorIs(t, <-slow, context.Canceled)
	})
	t.Run("an answer that breaks off is told", func(t *testing.T) {
		f := newFake("")
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") {
				return false
			}
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"tags":[`)
			return true
		}
		serve(t, f, false)
		c, _ := client(t, setup{}, nil)
		_, err := c.Tags(bg, f.name+"/acme/web:1")
		refused(t, err, updater.RegistryUnavailable, f.name, "acme/web", "broke off")
	})
	t.Run("a host that hangs up is asked again, then told", func(t *testing.T) {
		f := newFake("")
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if manifestRequest(r, "") {
				panic(http.ErrAbortHandler)
			}
			return false
		}
		serve(t, f, false)
		c, _ := client(t, setup{}, nil)
		_, err := c.Resolve(bg, f.name+"/acme/web:1")
		refused(t, err, updater.RegistryUnavailable, f.name, "acme/web")
		require.GreaterOrEqual(t, f.count("HEAD"), 3, "net/http may add one on a connection that it had")
	})
	t.Run("a link-local address is not dialled even behind a name", func(t *testing.T) {
		require.Error(t, refuseLinkLocal("tcp", "169.254.169.254:80", nil))
		require.Error(t, refuseLinkLocal("tcp", "[fe80::1%eth0]:80", nil))
		require.NoError(t, refuseLinkLocal("tcp", "10.0.0.1:80", nil))
	})
	t.Run("a name that cannot be read is told", func(t *testing.T) {
		c, _ := client(t, setup{}, nil)
		_, err := c.Resolve(bg, "Not A Name")
		refused(t, err, updater.InvalidSettings, "Not A Name")
	})
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	require.NoError(t, os.WriteFile(junk, []byte("junk"), 0o644))
	for name, hosts := range map[string][]Host{
		"a host must have a name":               {{}},
		"a host is listed once":                 {{Host: "docker.io"}, {Host: "index.docker.io"}},
		"plain HTTP has no authority":           {{Host: "x:5000", PlainHTTP: true, CA: junk}},
		"a file of authorities must hold some":  {{Host: "x:5000", CA: junk}},
		"a file of authorities must be there":   {{Host: "x:5000", CA: junk + "x"}},
		"there is a password or a file with it": {{Host: "x:5000", Password: "a", PasswordFile: "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(Options{Hosts: hosts})
			require.Error(t, err)
		})
	}
}

// TestProxy runs itself again, since net/http reads the environment once.
func TestProxy(t *testing.T) {
	if os.Getenv("UPDATERD_TEST_PROXIED") != "" {
		c, _ := client(t, setup{Options: Options{Hosts: []Host{{Host: "reg.invalid", PlainHTTP: true}}}}, nil)
		_, err := c.Resolve(bg, "reg.invalid/acme/web:1")
		require.NoError(t, err)
		return
	}
	f := newFake("")
	serve(t, f, false)
	f.image("acme/web", "1", amd64, "a")
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxy$")
	cmd.Env = append(os.Environ(), "UPDATERD_TEST_PROXIED=1", "HTTP_PROXY=http://"+f.name, "NO_PROXY=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, 1, f.count("HEAD http://reg.invalid/v2/acme/web/manifests/1")+f.count("HEAD /v2/acme/web/manifests/1"), f.log)
}

// TestAgainstARegistry asks one that others wrote, of what others pushed.
func TestAgainstARegistry(t *testing.T) {
	s := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	host := s.Listener.Addr().String()
	img, err := random.Image(64, 1)
	require.NoError(t, err)
	idx := mutate.AppendManifests(mutate.IndexMediaType(emptyIndex(t), "application/vnd.oci.image.index.v1+json"), mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	tag, err := ggcrname.NewTag(host + "/acme/web:1.0")
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(tag, idx))

	c, _ := client(t, setup{}, nil)
	ref := host + "/acme/web:1.0"
	want, err := idx.Digest()
	require.NoError(t, err)
	got, err := c.Resolve(bg, ref)
	require.NoError(t, err)
	require.Equal(t, want.String(), got)
	tags, err := c.Tags(bg, ref)
	require.NoError(t, err)
	require.Equal(t, []string{"1.0"}, tags)
	manifest, err := img.Digest()
	require.NoError(t, err)
	config, err := img.ConfigName()
	require.NoError(t, err)
	image, err := c.Image(bg, ref, got, amd64)
	require.NoError(t, err)
	require.Equal(t, updater.Image{Ref: ref, Digest: got, Manifest: manifest.String(), Config: config.String()}, image)
	_, err = c.Resolve(bg, host+"/acme/none:1")
	refused(t, err, updater.NotFound, host, "acme/none")
}

func emptyIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	idx, err := random.Index(1, 0, 0)
	require.NoError(t, err)
	return idx
}

// BenchmarkPass is the pass that must be quick: fifty repositories, TLS, a
// token for each, 20 ms for every answer, nothing new.
func BenchmarkPass(b *testing.B) {
	for _, h2 := range []bool{true, false} {
		for _, known := range []bool{false, true} {
			b.Run(fmt.Sprintf("http2=%v/tokens-valid=%v", h2, known), func(b *testing.B) {
				f := newFake("")
				f.auth, f.delay = "bearer", 20*time.Millisecond
				s := httptest.NewUnstartedServer(f)
				s.EnableHTTP2 = h2
				s.StartTLS()
				defer s.Close()
				f.name = s.Listener.Addr().String()
				f.realm = "https://" + f.name + "/token"
				for i := range 50 {
					f.image(fmt.Sprintf("acme/app%d", i), "1", amd64, fmt.Sprint(i))
				}
				dir := b.TempDir()
				authority(b, s, filepath.Join(dir, f.name, "ca.crt"))
				o := setup{Options: Options{CertsDir: dir}}
				c, _ := client(b, o, nil)
				pass := func() {
					var wg sync.WaitGroup
					for i := range 100 { // two containers on each reference
						wg.Go(func() {
							if _, err := c.Resolve(bg, fmt.Sprintf("%s/acme/app%d:1", f.name, i%50)); err != nil {
								b.Error(err)
							}
						})
					}
					wg.Wait()
				}
				if known {
					pass()
				}
				began := len(f.log)
				for b.Loop() {
					if !known {
						b.StopTimer()
						c, _ = client(b, o, nil)
						b.StartTimer()
					}
					c.NewPass()
					pass()
				}
				b.ReportMetric(float64(len(f.log)-began)/float64(b.N), "requests/op")
			})
		}
	}
}

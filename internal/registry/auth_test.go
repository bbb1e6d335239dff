package registry

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

const example = "reg.example.com"

func TestChallenges(t *testing.T) {
	const realm = "https://reg.example.com/token"
	tests := []struct {
		name      string
		auth      string
		challenge func(scope string) []string
		service   string // as the token server must see it
	}{
		{"a value without quotes is read", "bearer", func(s string) []string {
			return []string{`Bearer realm=` + realm + `,service=gcr.io,scope="` + s + `"`}
		}, "gcr.io"},
		{"a comma within quotes belongs to the value", "bearer", func(s string) []string {
			return []string{`Bearer realm="` + realm + `",service="a, b",scope="` + s + `,push"`}
		}, "a, b"},
		{"a missing service is left out of the question", "bearer", func(s string) []string {
			return []string{`Bearer realm="` + realm + `",scope="` + s + `"`}
		}, ""},
		{"a missing scope is made from the name", "bearer", func(string) []string {
			return []string{`Bearer realm="` + realm + `",service="quay.io"`}
		}, "quay.io"},
		{"the scheme may be written in any case", "bearer", func(s string) []string {
			return []string{`bEARER Realm="` + realm + `", SERVICE="x", scope="` + s + `"`}
		}, "x"},
		{"escaped quotes are taken out", "bearer", func(s string) []string {
			return []string{`Bearer realm="` + realm + `",service="a\"b",scope="` + s + `"`}
		}, `a"b`},
		{"Bearer is taken over a Basic before it in the same header", "bearer", func(s string) []string {
			return []string{`Basic realm="x", Bearer realm="` + realm + `",service="y",scope="` + s + `"`}
		}, "y"},
		{"Bearer is taken over a Basic in another header", "bearer", func(s string) []string {
			return []string{`Basic realm=/`, `Bearer realm="` + realm + `",service="y"`}
		}, "y"},
		{"a realm may be relative", "bearer", func(s string) []string { return []string{`Bearer realm="/token",service="y"`} }, "y"},
		{"Basic with a realm without quotes is answered", "basic", func(string) []string { return []string{`Basic realm=/`} }, ""},
		{"Basic without a realm is answered", "basic", func(string) []string { return []string{`basic`} }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(example)
			f.auth, f.challenge = tt.auth, tt.challenge
			f.user, f.password = "robot", "s3cret:with:colons"
			var services []string
			f.odd = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					services = append(services, r.URL.Query().Get("service"))
				}
				return false
			}
			want, _ := f.image("acme/web", "1", amd64, "a")
			c, _ := client(t, setup{logins: basicLogin(example, f.user, f.password)}, internet{example: f})
			got, err := c.Resolve(bg, example+"/acme/web:1")
			require.NoError(t, err, f.log)
			require.Equal(t, want.String(), got)
			if tt.auth == "bearer" {
				require.Equal(t, []string{tt.service}, services)
			}
		})
	}
}

func TestHowManyRequests(t *testing.T) {
	const n = 50
	pass := func(t *testing.T, c *Client) {
		for i := range n {
			_, err := c.Resolve(bg, fmt.Sprintf("%s/acme/app%d:1", example, i))
			require.NoError(t, err)
		}
	}
	registry := func() *fake {
		f := newFake(example)
		f.auth = "bearer"
		for i := range n {
			f.image(fmt.Sprintf("acme/app%d", i), "1", amd64, fmt.Sprint(i))
		}
		return f
	}
	t.Run("at first one HEAD and one token for each repository, then HEADs only until the tokens end", func(t *testing.T) {
		f := registry()
		c, clock := client(t, setup{}, internet{example: f})
		pass(t, c)
		require.Equal(t, n, f.count("HEAD /v2/"))
		require.Equal(t, n, f.count("GET /token"))
		require.Len(t, f.log, 2*n+1, "and one look at /v2/ to meet the host")

		c.NewPass()
		clock.add(239 * time.Second) // 80 % of 300 s are not over
		pass(t, c)
		require.Len(t, f.log, 3*n+1)

		c.NewPass()
		clock.add(2 * time.Second)
		pass(t, c)
		require.Equal(t, 2*n, f.count("GET /token"), "after 80 % of their life, tokens are got anew")
		require.Equal(t, 3*n, f.count("HEAD /v2/"))
	})
	t.Run("a token that does not say how long it lives is good for 48 s, whatever issued_at says", func(t *testing.T) {
		f := registry()
		f.expiresIn = 0
		c, clock := client(t, setup{}, internet{example: f})
		pass(t, c)
		c.NewPass()
		clock.add(47 * time.Second)
		pass(t, c)
		require.Equal(t, n, f.count("GET /token"))
		c.NewPass()
		clock.add(time.Second)
		pass(t, c)
		require.Equal(t, 2*n, f.count("GET /token"))
	})
	t.Run("a token that is no longer let in is replaced once", func(t *testing.T) {
		f := registry()
		c, clock := client(t, setup{}, internet{example: f})
		pass(t, c)
		clock.add(time.Second)
		clear(f.tokens)
		f.tokens["filler"], f.tokens["filler2"] = "", "" // so that new tokens are new
		c.NewPass()
		pass(t, c)
		require.Equal(t, 2*n, f.count("GET /token"))
		require.Equal(t, 3*n, f.count("HEAD /v2/"))
	})
	t.Run("where /v2/ is open, the challenge of the first real question serves the others", func(t *testing.T) {
		f := registry()
		f.odd = func(_ http.ResponseWriter, r *http.Request) bool { return r.URL.Path == "/v2/" }
		c, _ := client(t, setup{}, internet{example: f})
		pass(t, c)
		require.Equal(t, n+1, f.count("HEAD /v2/"))
		require.Equal(t, n, f.count("GET /token"))
	})
}

func TestAPublicRepositoryOfAClosedRegistry(t *testing.T) {
	f := newFake(example)
	f.auth, f.user = "bearer", "somebody" // no tokens for others
	want, _ := f.image("public/web", "1", amd64, "a")
	f.image("private/web", "1", amd64, "b")
	f.odd = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/public/") {
			return false
		}
		open := newFake(example)
		open.manifests = f.manifests
		open.ServeHTTP(w, r)
		return true
	}
	c, _ := client(t, setup{}, internet{example: f})
	got, err := c.Resolve(bg, example+"/public/web:1")
	require.NoError(t, err)
	require.Equal(t, want.String(), got)
	_, err = c.Resolve(bg, example+"/private/web:1")
	refused(t, err, updater.Unauthorized, example, "private/web")
}

func TestARepositoryWithAChallengeOfItsOwn(t *testing.T) {
	f := newFake(example)
	f.auth = "bearer"
	f.image("usual/web", "1", amd64, "a")
	f.image("other/web", "1", amd64, "b")
	f.challenge = func(scope string) []string {
		if strings.Contains(scope, "other") {
			return []string{`Bearer realm="/token",service="other",scope="` + scope + `,metadata"`}
		}
		return []string{`Bearer realm="/token",service="usual"`}
	}
	f.odd = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" && strings.Contains(r.URL.RawQuery, "other%2Fweb") && r.URL.Query().Get("service") != "other" {
			fmt.Fprint(w, `{"token":"t0ken-for-nothing"}`)
			return true
		}
		return false
	}
	c, _ := client(t, setup{}, internet{example: f})
	for range 2 {
		for _, repo := range []string{"usual/web", "other/web"} {
			_, err := c.Resolve(bg, example+"/"+repo+":1")
			require.NoError(t, err, f.log)
		}
		c.NewPass()
	}
	require.Equal(t, 3, f.count("HEAD /v2/other/"), "the second pass knows")
	require.Equal(t, 3, f.count("GET /token"))
}

func TestIdentityTokens(t *testing.T) {
	logins := fmt.Sprintf(`{"auths":{%q:{"auth":"","identitytoken":"s3cret"}}}`, example)
	run := func(t *testing.T, token func(w http.ResponseWriter, r *http.Request, f *fake)) *fake {
		f := newFake(example)
		f.auth = "bearer"
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/token" {
				return false
			}
			token(w, r, f)
			return true
		}
		f.image("acme/web", "1", amd64, "a")
		c, _ := client(t, setup{logins: logins}, internet{example: f})
		_, err := c.Resolve(bg, example+"/acme/web:1")
		require.NoError(t, err, f.log)
		return f
	}
	t.Run("it is posted as a refresh token", func(t *testing.T) {
		run(t, func(w http.ResponseWriter, r *http.Request, f *fake) {
			require.Equal(t, "POST", r.Method)
			require.NoError(t, r.ParseForm())
			require.Equal(t, "refresh_token", r.Form.Get("grant_type"))
			require.Equal(t, "s3cret", r.Form.Get("refresh_token"))
			require.Equal(t, "fake", r.Form.Get("service"))
			require.NotEmpty(t, r.Form.Get("client_id"))
			f.grant(w, r.Form.Get("scope"), "access_token")
		})
	})
	for _, status := range []int{404, 405} {
		t.Run(fmt.Sprintf("a token server that answers %d to POST is asked with GET", status), func(t *testing.T) {
			run(t, func(w http.ResponseWriter, r *http.Request, f *fake) {
				if r.Method == "POST" {
					w.WriteHeader(status)
					return
				}
				_, p, _ := r.BasicAuth()
				require.Equal(t, "s3cret", p)
				f.grant(w, r.URL.Query().Get("scope"), "token")
			})
		})
	}
	t.Run("a token server that does not know GET is asked for a password's token with POST", func(t *testing.T) {
		f := newFake(example)
		f.auth = "bearer"
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/token" {
				return false
			}
			if r.Method == "GET" {
				w.WriteHeader(405)
				return true
			}
			require.NoError(t, r.ParseForm())
			require.Equal(t, "password", r.Form.Get("grant_type"))
			require.Equal(t, "s3cret", r.Form.Get("password"))
			f.grant(w, r.Form.Get("scope"), "access_token")
			return true
		}
		f.image("acme/web", "1", amd64, "a")
		c, _ := client(t, setup{logins: basicLogin(example, "robot", "s3cret")}, internet{example: f})
		_, err := c.Resolve(bg, example+"/acme/web:1")
		require.NoError(t, err, f.log)
	})
}

func TestAuthRefusals(t *testing.T) {
	tests := []struct {
		name   string
		bend   func(*fake)
		logins string
		reason updater.Reason
		says   []string
	}{
		{"wrong credentials at the token server name where they came from", func(f *fake) { f.auth, f.user = "bearer", "somebody" },
			basicLogin(example, "robot", "s3cret"), updater.Unauthorized, []string{"config.json", "renew"}},
		{"wrong credentials for Basic name where they came from", func(f *fake) { f.auth, f.user = "basic", "somebody" },
			basicLogin(example, "robot", "s3cret"), updater.Unauthorized, []string{"config.json"}},
		{"no credentials for Basic say how to give some", func(f *fake) { f.auth, f.user = "basic", "somebody" },
			"", updater.Unauthorized, []string{"docker login reg.example.com"}},
		{"an anonymous token that is not enough says how to give credentials", func(f *fake) {
			f.auth = "bearer"
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					fmt.Fprint(w, `{"token":"t0ken-for-nothing"}`)
				}
				return r.URL.Path == "/token"
			}
		}, "", updater.Unauthorized, []string{"docker login"}},
		{"a 401 without a challenge is unauthorized", func(f *fake) {
			f.auth = "basic"
			f.challenge = func(string) []string { return nil }
		}, "", updater.Unauthorized, nil},
		{"a token server on a link-local address is not asked", func(f *fake) { f.auth, f.realm = "bearer", "https://169.254.169.254/token" },
			"", updater.RegistryUnavailable, []string{"169.254.169.254", "refused"}},
		{"a token server on a link-local address of IPv6 is not asked", func(f *fake) { f.auth, f.realm = "bearer", "https://[fe80::1]/token" },
			"", updater.RegistryUnavailable, []string{"fe80::1", "refused"}},
		{"a token server without TLS is not asked", func(f *fake) { f.auth, f.realm = "bearer", "http://auth.example.com/token" },
			basicLogin(example, "robot", "s3cret"), updater.RegistryUnavailable, []string{"without TLS"}},
		{"a token server that answers with a page is told as such", func(f *fake) {
			f.auth = "bearer"
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					fmt.Fprint(w, `<html>`)
				}
				return r.URL.Path == "/token"
			}
		}, "", updater.RegistryUnavailable, []string{"no JSON"}},
		{"a token server that gives none is told as such", func(f *fake) {
			f.auth = "bearer"
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					fmt.Fprint(w, `{}`)
				}
				return r.URL.Path == "/token"
			}
		}, "", updater.RegistryUnavailable, []string{"no token"}},
		{"a token server that wants patience gets it", func(f *fake) {
			f.auth = "bearer"
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					w.Header().Set("Retry-After", "600")
					w.WriteHeader(429)
				}
				return r.URL.Path == "/token"
			}
		}, "", updater.RateLimited, []string{"2026-05-04T03:12:01Z"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(example)
			f.image("acme/web", "1", amd64, "a")
			tt.bend(f)
			c, _ := client(t, setup{logins: tt.logins}, internet{example: f})
			_, err := c.Resolve(bg, example+"/acme/web:1")
			refused(t, err, tt.reason, append(tt.says, example, "acme/web")...)
		})
	}
}

func TestRedirects(t *testing.T) {
	login := basicLogin(example, "robot", "s3cret")
	to := func(where string) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if manifestRequest(r, "") {
				http.Redirect(w, r, where, http.StatusTemporaryRedirect)
			}
			return manifestRequest(r, "")
		}
	}
	t.Run("another host gets no credentials, nor does another port or subdomain", func(t *testing.T) {
		for _, other := range []string{"cdn.example.net", example + ":8443", "cdn." + example} {
			f, cdn := newFake(example), newFake(other)
			f.auth, f.user, f.password = "basic", "robot", "s3cret"
			f.odd = func(w http.ResponseWriter, r *http.Request) bool {
				return f.allowed(r, "") && to("https://"+other+r.URL.Path)(w, r)
			}
			want, _ := cdn.image("acme/web", "1", amd64, "a")
			cdn.odd = func(_ http.ResponseWriter, r *http.Request) bool {
				require.Empty(t, r.Header.Get("Authorization"))
				require.Empty(t, r.Header.Get("Referer"))
				return false
			}
			c, _ := client(t, setup{logins: login}, internet{example: f, other: cdn})
			got, err := c.Resolve(bg, example+"/acme/web:1")
			require.NoError(t, err)
			require.Equal(t, want.String(), got)
		}
	})
	t.Run("another registry's challenge is answered without credentials", func(t *testing.T) {
		f, ghcr := newFake(example), newFake("ghcr.io")
		ghcr.auth = "bearer"
		f.odd = func(w http.ResponseWriter, r *http.Request) bool { return to("https://ghcr.io"+r.URL.Path)(w, r) }
		want, _ := ghcr.image("acme/web", "1", amd64, "a")
		ghcr.odd = func(_ http.ResponseWriter, r *http.Request) bool {
			require.NotContains(t, r.Header.Get("Authorization"), "Basic")
			return false
		}
		c, _ := client(t, setup{logins: login}, internet{example: f, "ghcr.io": ghcr})
		got, err := c.Resolve(bg, example+"/acme/web:1")
		require.NoError(t, err)
		require.Equal(t, want.String(), got)
	})
	t.Run("a token server's redirect does not take an identity token along", func(t *testing.T) {
		f, other := newFake(example), newFake("other.example.net")
		f.auth = "bearer"
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, "https://other.example.net/token", http.StatusTemporaryRedirect)
			}
			return r.URL.Path == "/token"
		}
		c, _ := client(t, setup{logins: `{"auths":{"` + example + `":{"identitytoken":"s3cret"}}}`}, internet{example: f, "other.example.net": other})
		_, err := c.Resolve(bg, example+"/acme/web:1")
		refused(t, err, updater.RegistryUnavailable, example, "holds a secret")
		require.Empty(t, other.log)
	})
	for _, tt := range []struct{ name, to, says string }{
		{"a target that cannot be read is told without its query", "https://cdn.example.net/%zz?token=t0ken", "Location"},
		{"a link-local address is refused", "https://169.254.169.254/latest?token=t0ken", "link-local"},
		{"leaving TLS is refused", "http://cdn.example.net/x?token=t0ken", "from TLS"},
		{"a ring is left", "https://" + example + "/v2/acme/web/manifests/1", "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(example)
				f.odd = to(tt.to)
				c, _ := client(t, setup{}, internet{example: f})
				_, err := c.Resolve(bg, example+"/acme/web:1")
				refused(t, err, updater.RegistryUnavailable, example, tt.says)
			})
		})
	}
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://x/token",service=gcr.io,scope="repository:a/b:pull,push"`, `Basic realm=/`, `Basic`, `Negotiate abc==, Bearer realm="a\"b"`, `Bearer realm="unclosed`, "=,=,\t\"", ``} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range parseChallenges([]string{s}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Fatalf("scheme %q", c.scheme)
			}
			for k := range c.params {
				if k == "" || strings.ContainsAny(k, " \t,=") {
					t.Fatalf("parameter %q", k)
				}
			}
		}
		// What is quoted comes back as it was, whatever it is.
		q := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s)
		got := parseChallenges([]string{`Bearer realm="` + q + `", service=x`})
		if len(got) != 1 || got[0].params["realm"] != s || got[0].params["service"] != "x" {
			t.Fatalf("%q came back as %v", s, got)
		}
	})
}

package registry

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// helper puts docker-credential-<name> into PATH: a script that notes what it
// was asked and answers.
func helper(t *testing.T, dir, name, script string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\nread server || :\necho \"$1 $server\" >> "+dir+"/"+name+".log\n"+script), 0o755))
}

func TestCredentials(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("robot:s3:cret"))
	is := func(key string) string { return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, auth) }
	robot := updater.Credential{Username: "robot", Password: "s3:cret"}
	tests := []struct {
		name   string
		logins string
		ref    string
		want   updater.Credential
	}{
		{"a host", is("ghcr.io"), "ghcr.io/acme/web", robot},
		{"a host with a port", is("reg.example.com:5000"), "reg.example.com:5000/web", robot},
		{"a host in capitals", is("GHCR.io"), "ghcr.io/acme/web", robot},
		{"a URL", is("https://ghcr.io"), "ghcr.io/acme/web", robot},
		{"a URL with a slash", is("https://ghcr.io/"), "ghcr.io/acme/web", robot},
		{"a URL of version 1", is("https://ghcr.io/v1/"), "ghcr.io/acme/web", robot},
		{"a URL of version 2", is("https://ghcr.io/v2/"), "ghcr.io/acme/web", robot},
		{"a plain URL", is("http://reg.example.com:5000/v2/"), "reg.example.com:5000/web", robot},
		{"a host with version 2", is("ghcr.io/v2/"), "ghcr.io/acme/web", robot},
		{"Docker Hub's index", is("https://index.docker.io/v1/"), "nginx", robot},
		{"Docker Hub's index without a scheme", is("index.docker.io/v1/"), "nginx", robot},
		{"Docker Hub's index alone", is("index.docker.io"), "nginx", robot},
		{"Docker Hub by name", is("docker.io"), "docker.io/acme/web", robot},
		{"Docker Hub's registry", is("registry-1.docker.io"), "nginx", robot},
		{"Docker Hub's login for a reference to its registry", is("https://index.docker.io/v1/"), "registry-1.docker.io/library/nginx", robot},
		{"podman's part of a registry", is("ghcr.io/acme"), "ghcr.io/acme/web:1", robot},
		{"podman's repository", is("ghcr.io/acme/web"), "ghcr.io/acme/web:1", robot},
		{"podman's part of Docker Hub", is("docker.io/acme"), "acme/web", robot},
		{"podman's part of a registry is not for another part", is("ghcr.io/acme"), "ghcr.io/acme2/web", updater.Credential{}},
		{"another port is another registry", is("reg.example.com:5000"), "reg.example.com/web", updater.Credential{}},
		{"the longest path is taken", fmt.Sprintf(`{"auths":{"ghcr.io":{"auth":"eDp5"},"ghcr.io/acme":{"auth":%q},"ghcr.io/acme/other":{"auth":"eDp5"}}}`, auth), "ghcr.io/acme/web", robot},
		{"the exact key is taken over others", fmt.Sprintf(`{"auths":{"docker.io":{"auth":"eDp5"},"https://index.docker.io/v1/":{"auth":%q}}}`, auth), "nginx", robot},
		{"user and password in clear", `{"auths":{"ghcr.io":{"username":"robot","password":"s3:cret"}}}`, "ghcr.io/acme/web", robot},
		{"an identity token", fmt.Sprintf(`{"auths":{"ghcr.io":{"auth":%q,"identitytoken":"s3cret"}}}`, auth), "ghcr.io/acme/web", updater.Credential{Username: "robot", IdentityToken: "s3cret"}},
		{"an empty entry without a helper is none", `{"auths":{"ghcr.io":{}}}`, "ghcr.io/acme/web", updater.Credential{}},
		{"base64 that is none is none", `{"auths":{"ghcr.io":{"auth":"%%%"}}}`, "ghcr.io/acme/web", updater.Credential{}},
		{"a file that is no JSON is none", `{"auths":`, "ghcr.io/acme/web", updater.Credential{}},
		{"an empty file is none", " ", "ghcr.io/acme/web", updater.Credential{}},
		{"keys we do not know do no harm", `{"HttpHeaders":{"a":"b"},"auths":{"ghcr.io":{"auth":"` + auth + `","email":"x"}},"features":{"x":"true"}}`, "ghcr.io/acme/web", robot},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := client(t, setup{logins: tt.logins}, internet{})
			got, err := c.Credential(bg, tt.ref)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestCredentialHelpers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	says := func(user, secret string) string {
		return fmt.Sprintf(`echo '{"ServerURL":"x","Username":"%s","Secret":"%s"}'`, user, secret)
	}
	helper(t, dir, "own", says("own", "s3cret"))
	helper(t, dir, "all", says("all", "s3cret"))
	helper(t, dir, "identity", says("<token>", "s3cret"))
	helper(t, dir, "empty", "echo 'credentials not found in native keychain'; exit 1")
	helper(t, dir, "broken", "echo 's3cret spilled'; echo s3cret >&2; exit 3")
	helper(t, dir, "babble", "echo 's3cret spilled'")
	helper(t, dir, "picky", `case $server in https://old.example.com/v1/) `+says("old", "s3cret")+` ;; *) echo credentials not found in native keychain; exit 1;; esac`)
	auths := `"auths":{"ghcr.io":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("file:s3cret")) + `"}}`
	user := func(u string) updater.Credential { return updater.Credential{Username: u, Password: "s3cret"} }
	tests := []struct {
		name, logins, ref string
		want              updater.Credential
		log               string
	}{
		{"the host's own helper beats the helper for all and the file", `{` + auths + `,"credsStore":"all","credHelpers":{"ghcr.io":"own"}}`, "ghcr.io/a/b", user("own"), ""},
		{"the helper for all beats the file", `{` + auths + `,"credsStore":"all"}`, "ghcr.io/a/b", user("all"), ""},
		{"a helper of another host is not asked", `{` + auths + `,"credHelpers":{"quay.io":"own"}}`, "ghcr.io/a/b", user("file"), ""},
		{"an empty entry asks the helper", `{"auths":{"ghcr.io":{}},"credsStore":"all"}`, "ghcr.io/a/b", user("all"), ""},
		{"<token> is an identity token", `{"credsStore":"identity"}`, "ghcr.io/a/b", updater.Credential{IdentityToken: "s3cret"}, ""},
		{"a helper that knows nothing is no fault", `{` + auths + `,"credsStore":"empty"}`, "ghcr.io/a/b", user("file"), ""},
		{"a helper that is not installed is passed over and told", `{` + auths + `,"credsStore":"desktop"}`, "ghcr.io/a/b", user("file"), "not in PATH"},
		{"a helper that fails is passed over and told, without what it printed", `{"credsStore":"broken"}`, "ghcr.io/a/b", updater.Credential{}, "docker-credential-broken failed"},
		{"a helper that babbles is passed over and told, without what it printed", `{"credsStore":"babble"}`, "ghcr.io/a/b", updater.Credential{}, "no JSON"},
		{"a helper with a path for a name is not run", `{"credsStore":"../own"}`, "ghcr.io/a/b", updater.Credential{}, "no name of a credential helper"},
		{"a helper is asked under the old key, too", `{"auths":{"https://old.example.com/v1/":{}},"credsStore":"picky"}`, "old.example.com/a/b", user("old"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			c, _ := client(t, setup{Options: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, logins: tt.logins}, internet{})
			for range 3 {
				c.NewPass()
				got, err := c.Credential(bg, tt.ref)
				require.NoError(t, err)
				require.Equal(t, tt.want, got)
			}
			require.NotContains(t, log.String(), "s3cret")
			if tt.log == "" {
				require.Empty(t, log.String())
			} else {
				require.Equal(t, 1, strings.Count(log.String(), tt.log), log.String())
			}
		})
	}
	t.Run("Docker Hub is asked for by its old key", func(t *testing.T) {
		c, _ := client(t, setup{logins: `{"credHelpers":{"docker.io":"own"}}`}, internet{})
		got, err := c.Credential(bg, "nginx")
		require.NoError(t, err)
		require.Equal(t, user("own"), got)
		b, err := os.ReadFile(dir + "/own.log")
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(string(b), "get https://index.docker.io/v1/\n"), string(b))
	})
	t.Run("a helper is asked once in a pass for all repositories", func(t *testing.T) {
		require.NoError(t, os.Remove(dir+"/all.log"))
		f := newFake("ghcr.io")
		f.auth, f.user, f.password = "bearer", "all", "s3cret"
		c, _ := client(t, setup{logins: `{"credsStore":"all"}`}, internet{"ghcr.io": f})
		for i := range 5 {
			f.image(fmt.Sprintf("acme/app%d", i), "1", amd64, "a")
			_, err := c.Resolve(bg, fmt.Sprintf("ghcr.io/acme/app%d:1", i))
			require.NoError(t, err)
		}
		b, err := os.ReadFile(dir + "/all.log")
		require.NoError(t, err)
		require.Equal(t, "get ghcr.io\n", string(b))
	})
	t.Run("a helper that hangs, or leaves something that does, is not waited for", func(t *testing.T) {
		helper(t, dir, "hang", "sleep 60")
		helper(t, dir, "orphan", "sleep 60 & "+says("orphan", "s3cret"))
		for name, want := range map[string]updater.Credential{"hang": {}, "orphan": user("orphan")} {
			var log bytes.Buffer
			c, _ := client(t, setup{Options: Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, logins: `{"credsStore":"` + name + `"}`}, internet{})
			c.creds.wait = 2 * time.Second
			began := time.Now()
			got, err := c.Credential(bg, "ghcr.io/a/b")
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.Less(t, time.Since(began), 20*time.Second)
			require.Equal(t, name == "hang", strings.Contains(log.String(), "did not answer"), log.String())
		}
	})
	t.Run("without credentials, a refusal says that the helper failed", func(t *testing.T) {
		f := newFake("ghcr.io")
		f.auth, f.user = "basic", "x"
		c, _ := client(t, setup{logins: `{"credsStore":"desktop"}`}, internet{"ghcr.io": f})
		_, err := c.Resolve(bg, "ghcr.io/acme/web")
		refused(t, err, updater.Unauthorized, "ghcr.io", "docker-credential-desktop")
	})
}

func TestConfiguredCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte("one\n"), 0o600))
	c, _ := client(t, setup{
		Options: Options{Hosts: []Host{{Host: "ghcr.io", Username: "robot", PasswordFile: file}, {Host: "index.docker.io", Username: "me", Password: "s3cret"}}},
		logins:  basicLogin("ghcr.io", "somebody", "else"),
	}, internet{})
	got, err := c.Credential(bg, "ghcr.io/acme/web")
	require.NoError(t, err)
	require.Equal(t, updater.Credential{Username: "robot", Password: "one"}, got, "the configuration beats the login file")

	require.NoError(t, os.WriteFile(file, []byte("two"), 0o600))
	got, err = c.Credential(bg, "ghcr.io/acme/web")
	require.NoError(t, err)
	require.Equal(t, "two", got.Password, "a rotated password is seen")

	require.NoError(t, os.Remove(file))
	_, err = c.Credential(bg, "ghcr.io/acme/web")
	refused(t, err, updater.Unauthorized, "ghcr.io", file)

	got, err = c.Credential(bg, "nginx")
	require.NoError(t, err)
	require.Equal(t, "me", got.Username, "Docker Hub under another of its names")
}

func TestWhereLoginsAre(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, k := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(k, "")
	}
	require.Equal(t, []string{home + "/.docker/config.json", home + "/.config/containers/auth.json"}, loginFiles())
	t.Setenv("DOCKER_CONFIG", "/d")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	require.Equal(t, []string{"/d/config.json", "/run/user/1/containers/auth.json", home + "/.config/containers/auth.json"}, loginFiles())
	t.Setenv("REGISTRY_AUTH_FILE", "/a.json")
	require.Equal(t, []string{"/d/config.json", "/a.json"}, loginFiles())
}

func FuzzLogins(f *testing.F) {
	f.Add(`{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}}}`, "nginx")
	f.Add(`{"auths":{"ghcr.io/acme":{"auth":"YTpi"}},"credHelpers":{"ghcr.io":"x"},"credsStore":"y"}`, "ghcr.io/acme/web")
	f.Add(`{"auths":{"":{}," ":{},"://":{},"/":{}}}`, "a")
	f.Fuzz(func(t *testing.T, logins, ref string) {
		n, err := parseName(ref)
		if err != nil {
			return
		}
		l, err := parseLogins([]byte(logins))
		if err != nil {
			return
		}
		key, cr := l.auth(n)
		if key == "" && cr != (updater.Credential{}) {
			t.Fatal("credentials from nowhere")
		}
		if key != "" {
			// Never the credentials of another host.
			if h, _, _ := strings.Cut(keyPath(key), "/"); h != n.host {
				t.Fatalf("key %q for %s", key, n)
			}
		}
		l.helper(n)
	})
}

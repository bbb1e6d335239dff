package registry

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// ring is what a workload brings. After anew, it has others.
type ring struct {
	logins, anew []updater.Login
	why          string

	mu    sync.Mutex
	again int
}

func (r *ring) Read(_ context.Context, again bool) ([]updater.Login, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if again {
		r.again++
		if r.anew != nil {
			r.logins = r.anew
		}
	}
	return r.logins, r.why
}

// has is a ring with a login for each "user:password" at a key.
func has(key string, users ...string) *ring {
	r := &ring{}
	for i, u := range users {
		user, password, _ := strings.Cut(u, ":")
		r.logins = append(r.logins, updater.Login{Source: fmt.Sprintf("Secret shop/%d", i), Config: []byte(basicLogin(key, user, password))})
	}
	return r
}

// closed is a registry where ann may read acme/web, and bob acme/api.
func closed() *fake {
	f := newFake(example)
	f.auth = "basic"
	f.image("acme/web", "1", amd64, "web")
	f.image("acme/api", "1", amd64, "api")
	f.lets = func(user, password, repo string) bool {
		return password == "s3cret" && (repo == "" || user == "ann" && repo == "acme/web" || user == "bob" && repo == "acme/api" || user == "own")
	}
	return f
}

const web, api = example + "/acme/web:1", example + "/acme/api:1"

func TestWhatOneMayReadIsNotToldToAnother(t *testing.T) {
	c, _ := client(t, setup{}, internet{example: closed()})
	ann, bob := c.As(has(example, "ann:s3cret")), c.As(has(example, "bob:s3cret"))
	for range 2 { // the second time from what is remembered
		d, err := ann.Resolve(bg, web)
		require.NoError(t, err)
		_, err = ann.Tags(bg, web)
		require.NoError(t, err)
		_, err = ann.Image(bg, web, d, amd64)
		require.NoError(t, err)

		for _, other := range []updater.Registry{bob, c, c.As(has(example, "ann:wrong"))} {
			_, err = other.Resolve(bg, web)
			refused(t, err, updater.Unauthorized, example)
			_, err = other.Tags(bg, web)
			refused(t, err, updater.Unauthorized, example)
			_, err = other.Image(bg, web, d, amd64)
			refused(t, err, updater.Unauthorized, example)
		}
	}
}

func TestOneQuestionForEachImageAndCredential(t *testing.T) {
	f := closed()
	c, _ := client(t, setup{logins: basicLogin(example, "own", "s3cret")}, internet{example: f})
	ask := func() {
		for _, r := range []updater.Registry{
			c, c.As(nil), c.As(&ring{}), c.As(has("other.example.com", "ann:s3cret")), // by the Client's own
			c.As(has(example, "ann:s3cret")), c.As(has("https://"+example+"/v2/", "ann:s3cret")), // by ann's
			c.As(has(example, "own:s3cret")), // the same as the Client's own
		} {
			_, err := r.Resolve(bg, web)
			require.NoError(t, err)
		}
	}
	ask()
	f.mu.Lock()
	f.log = nil
	f.mu.Unlock()
	c.NewPass()
	ask()
	require.Equal(t, 2, f.count("HEAD "), "one by each: %v", f.log)
}

func TestLogins(t *testing.T) {
	garbage := updater.Login{Source: "Secret shop/garbage", Config: []byte("s3cret")}
	helper := updater.Login{Source: "Secret shop/helper", Config: []byte(`{"auths":{"` + example + `":{}},"credsStore":"trap","credHelpers":{"` + example + `":"trap"}}`)}
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	trap := filepath.Join(dir, "docker-credential-trap")
	require.NoError(t, os.WriteFile(trap, []byte("#!/bin/sh\necho > "+dir+"/sprung\n"), 0o755))
	tests := []struct {
		name   string
		own    string // user of the Client's own
		logins updater.Logins
		reason updater.Reason // "" when it can be read
		says   []string
		heads  int // when given
	}{
		{name: "the logins are asked by", logins: has(example, "ann:s3cret")},
		{name: "the next is asked by where the first is not taken", logins: has(example, "bob:s3cret", "ann:s3cret")},
		{name: "the longest path is tried first", logins: &ring{logins: append(has(example, "bob:s3cret").logins, has(example+"/acme", "ann:s3cret").logins...)}, heads: 1},
		{name: "they go before the Client's own", own: "own", logins: has(example, "bob:s3cret"), reason: updater.Unauthorized, says: []string{"Secret shop/0"}},
		{name: "the Client's own are asked by where they have none for the registry", own: "own", logins: has("other.example.com", "bob:s3cret")},
		{name: "the Client's own are asked by where none can be read", own: "own", logins: &ring{why: "Secret shop/x may not be read"}},
		{name: "what could not be read is said where that is why", logins: &ring{why: "Secret shop/x may not be read"}, reason: updater.Unauthorized, says: []string{"Secret shop/x may not be read"}},
		{name: "what cannot be understood is said without its content", logins: &ring{logins: []updater.Login{garbage}}, reason: updater.Unauthorized, says: []string{"Secret shop/garbage"}},
		{name: "what cannot be understood keeps nothing else from being used", logins: &ring{logins: append([]updater.Login{garbage}, has(example, "ann:s3cret").logins...)}},
		{name: "their helpers are not run", logins: &ring{logins: []updater.Login{helper}}, reason: updater.Unauthorized},
		{name: "a pattern is for a part of a host", logins: has("*.example.com", "ann:s3cret")},
		{name: "a pattern is not for more parts", logins: has("*.com", "ann:s3cret"), reason: updater.Unauthorized},
		{name: "a pattern with another port is for another registry", logins: has("*.example.com:5000", "ann:s3cret"), reason: updater.Unauthorized},
		{name: "a pattern may have a path", logins: has("reg.*.com/acme", "ann:s3cret")},
		{name: "what was renewed is read again", logins: &ring{logins: has(example, "ann:old").logins, anew: has(example, "ann:s3cret").logins}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			own := ""
			if tt.own != "" {
				own = basicLogin(example, tt.own, "s3cret")
			}
			f := closed()
			c, _ := client(t, setup{logins: own}, internet{example: f})
			_, err := c.As(tt.logins).Resolve(bg, web)
			if tt.reason != "" {
				refused(t, err, tt.reason, tt.says...)
			} else {
				require.NoError(t, err)
			}
			if tt.heads > 0 {
				require.Equal(t, tt.heads, f.count("HEAD "))
			}
		})
	}
	require.NoFileExists(t, filepath.Join(dir, "sprung"))
}

// What is said of the logins of one is for him alone, whoever else was refused by the
// same credentials, or by none.
func TestWhatIsSaidOfOnesLoginsIsNotSaidToAnother(t *testing.T) {
	c, _ := client(t, setup{}, internet{example: closed()})
	for _, l := range []updater.Logins{&ring{why: "Secret shop/x may not be read"}, has(example, "bob:s3cret")} {
		_, err := c.As(l).Resolve(bg, web)
		refused(t, err, updater.Unauthorized, "Secret shop/")
	}
	for _, l := range []updater.Logins{nil, &ring{}, &ring{logins: []updater.Login{{Source: "another", Config: has(example, "bob:s3cret").logins[0].Config}}}} {
		_, err := c.As(l).Resolve(bg, web)
		refused(t, err, updater.Unauthorized)
		require.NotContains(t, err.Error(), "shop")
	}
}

func TestWhetherAnImageIsThereIsAskedAnew(t *testing.T) {
	f := closed()
	c, _ := client(t, setup{}, internet{example: f})
	ann := has(example, "ann:s3cret")
	d, err := c.As(ann).Resolve(bg, web)
	require.NoError(t, err)
	for _, ref := range []string{web, web + "@" + d, example + "/acme/web@" + d} {
		there, err := c.Exists(bg, ref, ann)
		require.NoError(t, err, ref)
		require.True(t, there, ref)
		_, err = c.Exists(bg, ref, nil)
		refused(t, err, updater.Unauthorized, example)
	}
	f.mu.Lock()
	clear(f.manifests)
	f.mu.Unlock()
	for _, ref := range []string{web, web + "@" + d} {
		there, err := c.Exists(bg, ref, ann)
		require.NoError(t, err, ref)
		require.False(t, there, ref)
	}
	down, _ := client(t, setup{}, internet{})
	_, err = down.Exists(bg, web, ann)
	refused(t, err, updater.RegistryUnavailable)
}

// TestNothingIsReadAgainForNothing: only what was refused may have been renewed.
func TestNothingIsReadAgainForNothing(t *testing.T) {
	f := closed()
	c, _ := client(t, setup{}, internet{example: f})
	good, bad := has(example, "ann:s3cret"), has(example, "bob:s3cret")
	for range 3 {
		_, err := c.As(good).Resolve(bg, web)
		require.NoError(t, err)
		_, err = c.As(bad).Resolve(bg, web)
		require.Error(t, err)
	}
	require.Zero(t, good.again)
	require.Equal(t, 3, bad.again)
	require.Equal(t, 2, f.count("HEAD "), "the same is not asked again: %v", f.log)

	down, _ := client(t, setup{}, internet{})
	_, err := down.As(good).Resolve(bg, web)
	refused(t, err, updater.RegistryUnavailable)
	require.Zero(t, good.again, "a registry that is away takes nobody's")
}

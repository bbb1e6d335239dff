package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestTags(t *testing.T) {
	// pages serves a list of pages; link writes the Link header of page i.
	pages := func(link func(i int) string, pages ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") {
				return false
			}
			i := 0
			fmt.Sscanf(r.URL.Query().Get("next_page"), "opaque==%d", &i)
			if l := link(i); l != "" {
				w.Header().Set("Link", l)
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, pages[i])
			return true
		}
	}
	next := func(format string, last int) func(int) string {
		return func(i int) string {
			if i >= last {
				return ""
			}
			return fmt.Sprintf(format, i+1)
		}
	}
	three := []string{`{"name":"acme/web","tags":["3","1"]}`, `{"name":"acme/web","tags":["2"]}`, `{"name":"acme/web","tags":["10"]}`}
	answer := func(status int, contentType, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") {
				return false
			}
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
			return true
		}
	}
	tests := []struct {
		name     string
		odd      func(http.ResponseWriter, *http.Request) bool
		resolved bool
		want     []string
		reason   updater.Reason
		says     string
		requests int
	}{
		{name: "an absolute link of another host is followed on ours", odd: pages(next(`<http://inside:5000/v2/acme/web/tags/list?next_page=opaque%%3D%%3D%d&n=1000>; rel="next"`, 2), three...), want: []string{"1", "10", "2", "3"}, requests: 3},
		{name: "a relative link is followed", odd: pages(next(`</v2/acme/web/tags/list?next_page=opaque%%3D%%3D%d>; rel="next"`, 2), three...), want: []string{"1", "10", "2", "3"}, requests: 3},
		{name: "a link relative to the page is followed", odd: pages(next(`<list?next_page=opaque%%3D%%3D%d>; rel=next`, 2), three...), want: []string{"1", "10", "2", "3"}, requests: 3},
		{name: "a link among others is found", odd: pages(next(`<https://x/?a,b>; rel="prev"; title="a, b", <?next_page=opaque%%3D%%3D%d>; REL="last next"`, 2), three...), want: []string{"1", "10", "2", "3"}, requests: 3},
		{name: "a link on the last page to an empty one does no harm", odd: pages(next(`<?next_page=opaque%%3D%%3D%d>; rel="next"`, 1), three[0], `{"name":"acme/web","tags":null}`), want: []string{"1", "3"}, requests: 2},
		{name: "a link that comes round again ends the list", odd: pages(func(int) string { return `<?next_page=opaque%3D%3D1>; rel="next"` }, three[0], three[1]), want: []string{"1", "2", "3"}, requests: 2},
		{name: "tags null is an empty list", odd: answer(200, "application/json", `{"name":"acme/web","tags":null}`), want: nil, requests: 1},
		{name: "what is no tag, and what comes twice, is passed over", odd: answer(200, "application/json", `{"tags":["b","a","b","","../x","a b"]}`), want: []string{"a", "b"}, requests: 1},
		{name: "a login page is no list", odd: answer(200, "text/html", `<html>`), reason: updater.RegistryUnavailable, says: "web page", requests: 1},
		{name: "a truncated list is no list", odd: answer(200, "application/json", `{"name":"acme/web","tags":["1","2`), reason: updater.RegistryUnavailable, says: "no list", requests: 1},
		{name: "other JSON is no list", odd: answer(200, "application/json", `{"status":"ok"}`), reason: updater.RegistryUnavailable, says: "no list", requests: 1},
		{name: "a page that fails fails the list", odd: pages(next(`<?next_page=opaque%%3D%%3D%d>; rel="next"`, 2), three[0], `{"tags":[`), reason: updater.RegistryUnavailable, says: "no list", requests: 2},
		{name: "a page beyond its bytes is no list", odd: answer(200, "application/json", `{"tags":["`+strings.Repeat("x", pageLimit)+`"]}`), reason: updater.RegistryUnavailable, says: "longer than", requests: 1},
		{name: "404 for a repository that is not there is not found", odd: answer(404, "application/json", `{"errors":[{"code":"NAME_UNKNOWN"}]}`), reason: updater.NotFound, says: " has no tags of ", requests: 1},
		{name: "404 for a repository that can be pulled means that listing is not allowed", odd: answer(404, "application/json", `{"errors":[{"code":"NAME_UNKNOWN"}]}`), resolved: true, reason: updater.Unauthorized, says: "not list", requests: 1},
		{name: "403 is unauthorized", odd: answer(403, "application/json", `{"errors":[{"code":"DENIED"}]}`), reason: updater.Unauthorized, says: "DENIED", requests: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(example)
			f.image("acme/web", "1", amd64, "a")
			f.odd = tt.odd
			c, _ := client(t, setup{}, internet{example: f})
			if tt.resolved {
				_, err := c.Resolve(bg, example+"/acme/web:1")
				require.NoError(t, err)
			}
			got, err := c.Tags(bg, example+"/acme/web:1")
			if tt.reason != "" {
				refused(t, err, tt.reason, example, "acme/web", tt.says)
			} else {
				require.NoError(t, err)
				require.Equal(t, tt.want, got)
			}
			require.Equal(t, tt.requests, f.count("GET /v2/acme/web/tags"), f.log)
		})
	}
	t.Run("a list without end is left after a thousand pages", func(t *testing.T) {
		f := newFake(example)
		n := 0
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/" {
				return false
			}
			n++
			w.Header().Set("Link", fmt.Sprintf(`<?last=%d>; rel="next"`, n))
			fmt.Fprintf(w, `{"tags":["%d"]}`, n)
			return true
		}
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Tags(bg, example+"/acme/web")
		refused(t, err, updater.RegistryUnavailable, example, "acme/web", "1000 pages")
		require.Equal(t, tagPages, n)
	})
	t.Run("a list beyond its bytes is left, however small its pages", func(t *testing.T) {
		f := newFake(example)
		n, fill := 0, strings.Repeat(" ", pageLimit-100)
		f.odd = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/" {
				return false
			}
			n++
			w.Header().Set("Link", fmt.Sprintf(`<?last=%d>; rel="next"`, n))
			fmt.Fprintf(w, `{"tags":["%d"]}%s`, n, fill)
			return true
		}
		c, _ := client(t, setup{}, internet{example: f})
		_, err := c.Tags(bg, example+"/acme/web")
		refused(t, err, updater.RegistryUnavailable, example, "acme/web", "longer than")
		require.Equal(t, 5, n)
	})
	t.Run("one tag list per repository and pass, whatever the tag", func(t *testing.T) {
		f := newFake(example)
		f.image("acme/web", "1", amd64, "a")
		c, _ := client(t, setup{}, internet{example: f})
		for _, tag := range []string{"1", "2"} {
			got, err := c.Tags(bg, example+"/acme/web:"+tag)
			require.NoError(t, err)
			require.Equal(t, []string{"1"}, got)
		}
		require.Equal(t, 1, f.count("GET /v2/acme/web/tags"))
	})
}

func FuzzLink(f *testing.F) {
	for _, s := range []string{`<https://x/v2/a/tags/list?n=1&last=b>; rel="next"`, `<?x>;rel=next`, `<a>,<b>; rel="next"`, `<`, `<>;rel=next`, `<mailto:a@b>; rel=next`, `<//evil/x>; rel=next`, `; rel="`, "<\x00>; rel=next"} {
		f.Add(s)
	}
	at, _ := url.Parse("https://reg.example.com/v2/acme/web/tags/list?n=1000")
	f.Fuzz(func(t *testing.T, s string) {
		next := nextPage(http.Header{"Link": {s}}, at)
		if next == "" {
			return
		}
		u, err := url.Parse("https://reg.example.com" + next)
		if err == nil && u.Host != "reg.example.com" {
			t.Fatalf("%q leads to %s", s, u.Host)
		}
		if !strings.HasPrefix(next, "/") {
			t.Fatalf("%q gives %q", s, next)
		}
	})
}

func TestTagGrammar(t *testing.T) {
	good := []string{"1", "latest", "_x", "V1.2-3_4", strings.Repeat("a", 128)}
	require.True(t, !slices.ContainsFunc(good, func(s string) bool { return !validTag(s) }))
	bad := []string{"", "-x", ".x", "a b", "a/b", "ä", strings.Repeat("a", 129)}
	require.False(t, slices.ContainsFunc(bad, validTag))
}

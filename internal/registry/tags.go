package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	tagsLimit = 32 << 20 // bytes, over all pages
	// pageLimit holds some hundred thousand tags: not all registries have pages.
	pageLimit = 8 << 20
	tagPages  = 1000
	// tagsPerPage is a hint. Artifactory pages only when asked to, others have
	// smaller pages whatever one asks for.
	tagsPerPage = "1000"
)

// listTags follows the pages of n's tag list to its end.
func (c *Client) listTags(ctx context.Context, n name, cr credential) ([]string, error) {
	var all []string
	what := "the tags of " + n.repo
	next := "/v2/" + n.repo + "/tags/list?n=" + tagsPerPage
	seen := map[string]bool{}
	for left := int64(tagsLimit); next != "" && !seen[next]; {
		if len(seen) == tagPages {
			return nil, nonsense("%s has more than %d pages of %s, which is more than is read: use the policy digest", n.host, tagPages, what)
		}
		seen[next] = true
		a, who, err := c.ask(ctx, n, cr, question{method: http.MethodGet, kind: "tags", path: next, accept: "application/json", limit: min(left, pageLimit)})
		if err != nil {
			return nil, err
		}
		switch a.status {
		case http.StatusOK:
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
			// GitLab's deploy tokens and others may pull and not list.
			if len(seen) == 1 && c.readable.has(subject{n.repository(), cr.hash()}) {
				return nil, refuse(updater.Unauthorized, "%s lets %s read %s but not list its tags (%d): give credentials that may, or use the policy digest, which needs no list",
					n.host, who.who(), n.repo, a.status)
			}
			return nil, refuseStatus(n, what, a, who)
		default:
			return nil, refuseStatus(n, what, a, who)
		}
		left -= int64(len(a.body))
		var page struct {
			Name *string         `json:"name"`
			Tags json.RawMessage `json:"tags"`
		}
		var tags []string
		if isHTML(a.header) {
			return nil, nonsense("%s answers with a web page instead of %s: see whether a proxy or a login stands between", n.host, what)
		}
		if err := json.Unmarshal(a.body, &page); err != nil || page.Name == nil && page.Tags == nil {
			return nil, nonsense("%s answers with something that is no list instead of %s: see whether a proxy stands between", n.host, what)
		}
		if page.Tags != nil { // null and none at all are an empty list
			if err := json.Unmarshal(page.Tags, &tags); err != nil {
				return nil, nonsense("%s answers with something that is no list instead of %s: see whether a proxy stands between", n.host, what)
			}
		}
		for _, t := range tags {
			if validTag(t) { // what is no tag cannot be asked for
				all = append(all, t)
			}
		}
		next = nextPage(a.header, a.url)
	}
	// The order differs between registries, and pages may overlap.
	slices.Sort(all)
	return slices.Clip(slices.Compact(all)), nil
}

// validTag keeps to the grammar of the distribution specification.
func validTag(t string) bool {
	for i := range len(t) {
		ch := t[i]
		word := ch == '_' || '0' <= ch && ch <= '9' || 'a' <= ch && ch <= 'z' || 'A' <= ch && ch <= 'Z'
		if !word && (i == 0 || ch != '.' && ch != '-') {
			return false
		}
	}
	return t != "" && len(t) <= 128
}

// nextPage returns path and query of the page that a Link header names as the
// next, or "". The cursor in it is opaque and is kept as it is (distribution
// issue 2448); scheme and host are not taken, for behind a proxy they are
// often those of the inside.
func nextPage(h http.Header, at *url.URL) string {
	for _, header := range h.Values("Link") {
		for header != "" {
			_, rest, ok := strings.Cut(header, "<")
			if !ok {
				break
			}
			target, rest, ok := strings.Cut(rest, ">")
			if !ok {
				break
			}
			params := rest
			if i := indexUnquoted(rest, ','); i >= 0 {
				params, header = rest[:i], rest[i+1:]
			} else {
				header = ""
			}
			if !isNext(params) {
				continue
			}
			u, err := at.Parse(strings.TrimSpace(target))
			if err != nil || u.Opaque != "" {
				return ""
			}
			return u.RequestURI()
		}
	}
	return ""
}

// isNext reads the parameters of a link (RFC 8288): rel may hold several words.
func isNext(params string) bool {
	for _, p := range strings.Split(params, ";") {
		k, v, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimSpace(k), "rel") {
			continue
		}
		for _, w := range strings.Fields(strings.Trim(strings.TrimSpace(v), `"`)) {
			if strings.EqualFold(w, "next") {
				return true
			}
		}
	}
	return false
}

func indexUnquoted(s string, sep byte) int {
	quoted := false
	for i := range len(s) {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			return i
		}
	}
	return -1
}

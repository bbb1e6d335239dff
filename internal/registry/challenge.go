package registry

import (
	"net/http"
	"strings"
)

// challenge is one way in which a server wants to see credentials (RFC 9110,
// section 11).
type challenge struct {
	scheme string            // lower case
	params map[string]string // by lower-case name
}

// parseChallenges reads WWW-Authenticate headers: several challenges in one
// header or in several, values quoted or bare, commas and escapes within
// quotes. What it does not understand it passes over.
func parseChallenges(headers []string) []challenge {
	var all []challenge
	for _, s := range headers {
		p := &scanner{s: s}
		var cur *challenge
		for {
			p.skip(" \t,")
			if p.done() {
				break
			}
			word := p.until(" \t,=")
			p.skip(" \t")
			if !p.done() && p.s[p.i] == '=' {
				p.i++
				p.skip(" \t")
				value := p.value()
				// A parameter before any scheme belongs to nothing. The first one of
				// a name counts: a second cannot redirect it.
				if cur != nil && word != "" {
					word = strings.ToLower(word)
					if _, twice := cur.params[word]; !twice {
						cur.params[word] = value
					}
				}
				continue
			}
			if word != "" {
				all = append(all, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
				cur = &all[len(all)-1]
			}
		}
	}
	return all
}

type scanner struct {
	s string
	i int
}

func (p *scanner) done() bool { return p.i >= len(p.s) }

func (p *scanner) skip(set string) {
	for !p.done() && strings.IndexByte(set, p.s[p.i]) >= 0 {
		p.i++
	}
}

func (p *scanner) until(set string) string {
	from := p.i
	for !p.done() && strings.IndexByte(set, p.s[p.i]) < 0 {
		p.i++
	}
	return p.s[from:p.i]
}

// value reads a quoted string, or a bare value up to the next comma or space:
// servers put URLs there without quotes, although the RFC wants a token.
func (p *scanner) value() string {
	if p.done() || p.s[p.i] != '"' {
		return p.until(" \t,")
	}
	p.i++
	var b strings.Builder
	for !p.done() {
		ch := p.s[p.i]
		p.i++
		switch {
		case ch == '"':
			return b.String()
		case ch == '\\' && !p.done():
			b.WriteByte(p.s[p.i])
			p.i++
		default:
			b.WriteByte(ch)
		}
	}
	return b.String()
}

// pick chooses the challenge to answer: a Bearer that says where its tokens
// come from, else a Basic.
func pick(h http.Header) (challenge, bool) {
	var basic *challenge
	for _, c := range parseChallenges(h.Values("WWW-Authenticate")) {
		switch {
		case c.scheme == "bearer" && c.params["realm"] != "":
			return c, true
		case c.scheme == "basic" && basic == nil:
			basic = &c
		}
	}
	if basic != nil {
		return *basic, true
	}
	return challenge{}, false
}

package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"path/filepath"
	"strings"
)

// API says where updaterd can be looked at and spoken to.
type API struct {
	// Socket is the path of the unix socket; "" is none. Without one it does not
	// matter if it cannot be made, when Fallback is set: nobody asked for it.
	Socket   string
	Fallback bool
	// Group may open the socket, besides who runs updaterd; "" is nobody else.
	Group string
	// Listen is an address for TCP; "" is none.
	Listen string
	TLS    TLS // cert and key
	// Hosts are the names that it is called by on TCP, besides those of loopback.
	Hosts []string
	// Tokens let in on TCP.
	Tokens []Token

	readTokens, writeTokens string
}

// Token is a bearer token. Only its digest is kept.
type Token struct {
	Name  string
	Sum   [sha256.Size]byte
	Write bool
}

const (
	// longestSocket is what fits into a sockaddr_un.
	longestSocket = 107
	// shortestToken cannot be guessed within reason, if it is random.
	shortestToken = 16
	socketName    = "updaterd.sock"
)

// settle checks what the keys of api say together, and reads the files that they
// name.
func (a *API) settle(d *document, merged map[string]written, state string, vars map[string]string) {
	problem := func(key, format string, args ...any) {
		d.problems = append(d.problems, merged[key].from.problem(fmt.Errorf(format, args...)))
	}
	path := func(key string, p *string) { settlePath(d, merged, key, p) }
	switch a.Socket {
	case "auto":
		a.Fallback = true
		a.Socket = filepath.Join(state, socketName)
		if first, _, _ := strings.Cut(vars["RUNTIME_DIRECTORY"], ":"); first != "" {
			a.Socket = filepath.Join(first, socketName)
		}
		if len(a.Socket) > longestSocket {
			a.Socket = ""
		}
	case "off":
		a.Socket = ""
	default:
		path("api.socket", &a.Socket)
		if len(a.Socket) > longestSocket {
			problem("api.socket", "%s is longer than the %d bytes that the path of a socket may have; name a shorter one", a.Socket, longestSocket)
		}
	}
	if a.Group != "" {
		// The configuration is checked where it is used: files that it names are read, too.
		if _, err := user.LookupGroup(a.Group); err != nil {
			problem("api.group", "%q is no group here; make it with: groupadd --system %s, or name another", a.Group, a.Group)
		}
	}
	a.TLS.settle(d, merged, "api.tls")
	tokens := map[[sha256.Size]byte]bool{}
	for _, f := range []struct {
		key   string
		path  *string
		write bool
	}{{"api.read-tokens", &a.readTokens, false}, {"api.write-tokens", &a.writeTokens, true}} {
		path(f.key, f.path)
		if *f.path == "" {
			continue
		}
		read, err := readTokens(*f.path, f.write)
		if err != nil {
			problem(f.key, "%w", err)
			continue
		}
		for _, t := range read {
			if tokens[t.Sum] {
				problem(f.key, "%s: the token of %s is there twice; give everybody their own", *f.path, t.Name)
			}
			tokens[t.Sum] = true
		}
		a.Tokens = append(a.Tokens, read...)
	}
	for i, h := range a.Hosts {
		if h == "" || strings.ContainsAny(h, "/: *") {
			problem("api.hosts", "%q is no name of a host; write it without scheme and port", h)
		}
		a.Hosts[i] = strings.ToLower(h)
	}
	if a.Listen == "" {
		for _, key := range []string{"api.hosts", "api.tls.cert", "api.read-tokens", "api.write-tokens"} {
			if w := merged[key]; w.text != "" {
				problem(key, "means nothing without api.listen; write an address to listen on, or remove it")
			}
		}
		return
	}
	host, _, err := net.SplitHostPort(a.Listen)
	if err != nil {
		return // it was reported when it was read
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.IsLoopback() {
		return
	} else if err == nil && !ip.IsUnspecified() {
		a.Hosts = append(a.Hosts, strings.ToLower(host))
	}
	if a.readTokens == "" && a.writeTokens == "" { // else what is wrong with these has been said
		problem("api.listen", "%s is reached from elsewhere, and nobody would need a token; write api.read-tokens or api.write-tokens, or listen on 127.0.0.1", a.Listen)
	}
}

// settle checks the pair that a listener answers with, whose keys are below section.
func (t *TLS) settle(d *document, merged map[string]written, section string) {
	cert, key := section+".cert", section+".key"
	settlePath(d, merged, cert, &t.Cert)
	settlePath(d, merged, key, &t.Key)
	switch {
	case t.Cert == "" && t.Key == "":
	case t.Key == "":
		d.problems = append(d.problems, merged[cert].from.problem(fmt.Errorf("needs %s; name the key of the certificate", key)))
	case t.Cert == "":
		d.problems = append(d.problems, merged[key].from.problem(fmt.Errorf("needs %s; name the certificate of the key", cert)))
	default:
		d.checkPair(merged[cert].from, merged[key].from, *t)
	}
}

// settlePath has a path of the file begin where the file is.
func settlePath(d *document, merged map[string]written, key string, p *string) {
	if w := merged[key]; *p != "" && w.from.line > 0 {
		*p = d.beside(*p)
		w.text = *p
		merged[key] = w
	}
}

// readSocket takes the path of a socket, auto or off.
func readSocket(r raw) (string, error) {
	if s, err := r.scalar("", "!!bool"); err == nil && s == "off" {
		return s, nil // YAML's older word for false
	}
	return readPath(r)
}

// readTokens reads a file of tokens, one to a line: "NAME: TOKEN". Its errors do
// not show them.
func readTokens(path string, write bool) ([]Token, error) {
	text, err := readNamed(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	var tokens []Token
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, token, ok := strings.Cut(line, ":")
		name, token = strings.TrimSpace(name), strings.TrimSpace(token)
		switch {
		case !ok || name == "" || strings.ContainsAny(token, " \t"):
			return nil, fmt.Errorf("line %d of %s is no token; write NAME: TOKEN", n, path)
		case len(token) < shortestToken:
			return nil, fmt.Errorf("the token in line %d of %s has fewer than %d characters; make one with: openssl rand -hex 32", n, path, shortestToken)
		}
		tokens = append(tokens, Token{name, sha256.Sum256([]byte(token)), write})
	}
	if tokens == nil {
		return nil, errors.New(path + " holds no token; write one to a line, as NAME: TOKEN")
	}
	return tokens, nil
}

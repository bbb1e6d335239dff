package registry

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// identityUser is the user name by which helpers mark an identity token.
	identityUser = "<token>"
	// helperTimeout bounds a credential helper. Some ask a cloud, some wait for a
	// desktop that is not there.
	helperTimeout = 15 * time.Second
	helperLimit   = 1 << 20
	// notFoundText is what helpers print, on standard output, for a server they
	// know nothing of (docker-credential-helpers, credentials/error.go).
	notFoundText = "credentials not found in native keychain"
)

// credential is an updater.Credential and where it came from.
type credential struct {
	updater.Credential
	source string // "/root/.docker/config.json"
	note   string // why there is none, where that is not plain
	// theirs: a workload brought it.
	theirs bool
	depth  int // of what it is for: see depth
}

func (c credential) zero() bool { return c.Credential == updater.Credential{} }

// String keeps secrets out of what is printed by accident.
func (c credential) String() string { return "credentials from " + c.source }

func (c credential) who() string {
	if c.zero() {
		return "who has no credentials"
	}
	return "the credentials from " + c.source
}

// hash tells credentials apart without keeping them about.
func (c credential) hash() [sha256.Size]byte {
	if c.zero() {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256([]byte(c.Username + "\x00" + c.Password + "\x00" + c.IdentityToken))
}

// basic is the Authorization header with user and password, or "".
func (c credential) basic() string {
	if c.Password == "" || c.IdentityToken != "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// credentials finds what the configuration, the files of docker login and
// podman login, and their helpers know of a registry.
type credentials struct {
	hosts map[string]Host
	files []string      // in order; the first that knows something is believed
	wait  time.Duration // for a helper
	log   *slog.Logger

	pass memo[string, loginFile]       // files, as read in this pass
	runs memo[[2]string, helperAnswer] // what helpers said in this pass

	mu   sync.Mutex
	told map[string]bool // faults that were logged
}

// newPass forgets what may have changed: passwords are rotated, and those of
// some clouds live an hour.
func (c *credentials) newPass() {
	c.pass.forget(always)
	c.runs.forget(always)
}

// find returns the credentials for n's repository: the configuration's, or
// those of the first file that has some. None is no error.
func (c *credentials) find(ctx context.Context, n name) (credential, error) {
	if h, ok := c.hosts[hostName(n.host)]; ok && (h.Username != "" || h.Password != "" || h.PasswordFile != "") {
		cr := credential{source: "registries: of the configuration"}
		cr.Username, cr.Password = h.Username, h.Password
		if h.PasswordFile != "" {
			b, err := os.ReadFile(h.PasswordFile)
			if err != nil {
				return cr, refuse(updater.Unauthorized, "the password-file of %s cannot be read: %v", n.host, err)
			}
			cr.Password = strings.TrimRight(string(b), "\r\n")
			cr.source = h.PasswordFile
		}
		return cr, nil
	}
	var note string
	for _, path := range c.files {
		f, err := c.pass.do(ctx, path, always, func(context.Context) (loginFile, error) { return readLogins(path) })
		if err != nil {
			if ctx.Err() != nil {
				return credential{}, ctx.Err()
			}
			note = err.Error()
			c.tell("login file cannot be used", note)
			continue
		}
		cr, why, err := c.from(ctx, f, n)
		if err != nil {
			return credential{}, err
		}
		if !cr.zero() {
			if cr.source == "" {
				cr.source = path
			}
			return cr, nil
		}
		if why != "" {
			note = why
		}
	}
	return credential{note: note}, nil
}

// all are the credentials to try for n's repository, one after the other: those that
// the logins hold for it, those for the longest path first, else our own. aside says of
// the logins what a person needs to know who was refused; it is for their owner alone,
// unlike what is remembered of the credentials.
func (c *credentials) all(ctx context.Context, n name, l updater.Logins, again bool) (all []credential, aside string, err error) {
	var notes []string
	if l != nil {
		logins, why := l.Read(ctx, again)
		if why != "" {
			notes = append(notes, why)
		}
		for _, login := range logins {
			// Its helpers are not run: whoever writes it has no say in what this process does.
			f, err := parseLogins(login.Config)
			if err != nil {
				// Without err: it may quote from it.
				notes = append(notes, login.Source+" holds no JSON as docker login writes it")
				continue
			}
			had := len(all)
			for _, key := range matching(f.Auths, n) {
				if cr, ok := f.Auths[key].credential(); ok {
					all = append(all, credential{Credential: cr, source: "imagePullSecrets", theirs: true, depth: depth(key)})
				}
			}
			if len(all) > had {
				notes = append(notes, "asked by "+login.Source)
			}
		}
		slices.SortStableFunc(all, func(a, b credential) int { return b.depth - a.depth })
	}
	if len(all) == 0 {
		cr, err := c.find(ctx, n)
		if err != nil {
			return nil, "", err
		}
		all = append(all, cr)
	}
	return all, strings.Join(notes, "; "), nil
}

// from looks n up in one file: its own helper beats the helper for all, which
// beats what the file holds itself.
func (c *credentials) from(ctx context.Context, f loginFile, n name) (cr credential, note string, err error) {
	key, entry := f.auth(n)
	for _, helper := range []string{f.helper(n), f.CredsStore} {
		if helper == "" {
			continue
		}
		servers := []string{n.host}
		if isHub(n.host) {
			servers = []string{hubKey}
		}
		// An empty entry says under what name the helper keeps it.
		if key != "" && !slices.Contains(servers, key) {
			servers = append(servers, key)
		}
		for _, server := range servers {
			a, err := c.runs.do(ctx, [2]string{helper, server}, always, func(ctx context.Context) (helperAnswer, error) {
				return runHelper(ctx, c.wait, helper, server)
			})
			if ctx.Err() != nil {
				return credential{}, "", ctx.Err()
			}
			if err != nil {
				note = err.Error()
				c.tell("credential helper failed", note)
				break
			}
			if a.Secret == "" {
				continue
			}
			cr := credential{source: "docker-credential-" + helper}
			if cr.Username = a.Username; cr.Username == identityUser {
				cr.Username, cr.IdentityToken = "", a.Secret
			} else {
				cr.Password = a.Secret
			}
			return cr, "", nil
		}
	}
	return credential{Credential: entry}, note, nil
}

// tell logs a fault once, not at every pass.
func (c *credentials) tell(msg, fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told[fault] {
		return
	}
	if c.told == nil {
		c.told = map[string]bool{}
	}
	c.told[fault] = true
	c.log.Warn(msg, "err", fault)
}

// loginFile is what concerns us in docker's config.json and podman's auth.json.
type loginFile struct {
	Auths       map[string]loginEntry `json:"auths"`
	CredsStore  string                `json:"credsStore"`
	CredHelpers map[string]string     `json:"credHelpers"`
}

type loginEntry struct {
	Auth          string `json:"auth"` // base64(user:password)
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

// readLogins reads a login file. That there is none is no error.
func readLogins(path string) (loginFile, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return loginFile{}, nil
	}
	if err != nil {
		return loginFile{}, fmt.Errorf("reading the logins: %w", err)
	}
	f, err := parseLogins(b)
	if err != nil {
		return loginFile{}, fmt.Errorf("reading the logins in %s: %w", path, err)
	}
	return f, nil
}

func parseLogins(b []byte) (loginFile, error) {
	var f loginFile
	if len(bytes.TrimSpace(b)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(b, &f); err != nil {
		// The error of encoding/json may quote a letter, never a value.
		return loginFile{}, fmt.Errorf("it is no JSON as docker login writes it: %w", err)
	}
	return f, nil
}

// keyPath normalises a key of auths or credHelpers to a host, or host/path
// where podman keeps logins for a part of a registry. Docker's old keys are
// URLs, of which only the host counts (moby, ConvertToHostname).
func keyPath(key string) string {
	rest, isURL := key, false
	if _, r, ok := strings.Cut(key, "://"); ok {
		rest, isURL = r, true
	}
	host, path, _ := strings.Cut(rest, "/")
	path = strings.Trim(path, "/")
	host = hostName(host)
	if isURL || path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}

// lookup returns the key of m that fits n best.
func lookup[V any](m map[string]V, n name) (string, bool) {
	all := matching(m, n)
	if len(all) == 0 {
		return "", false
	}
	return all[0], true
}

// matching returns the keys of m that fit n, the best first: the longest path, then
// a name before a pattern, and of those that say the same the exact one, then the
// first in order.
func matching[V any](m map[string]V, n name) []string {
	exact := hostName(n.host)
	if exact == hub {
		exact = hubKey
	}
	var all []string
	for key := range m {
		if fits(keyPath(key), n) {
			all = append(all, key)
		}
	}
	rank := func(key string) (literal, same int) {
		if !isPattern(key) {
			literal = 1
		}
		if key == exact {
			same = 1
		}
		return literal, same
	}
	slices.SortFunc(all, func(a, b string) int {
		an, as := rank(a)
		bn, bs := rank(b)
		return cmp.Or(depth(b)-depth(a), bn-an, bs-as, strings.Compare(a, b))
	})
	return all
}

// depth is the length of the path that a key is for.
func depth(key string) int {
	_, path, _ := strings.Cut(keyPath(key), "/")
	return len(path)
}

// fits reports whether a normalised key is for n's repository: its host, or a part
// of its path. Kubernetes has patterns for parts of a host, such as *.example.com.
func fits(p string, n name) bool {
	host, part, _ := strings.Cut(p, "/")
	if p == "" || part != "" && part != n.repo && !strings.HasPrefix(n.repo, part+"/") {
		return false
	}
	if !isPattern(host) {
		return host == hostName(n.host)
	}
	pattern, parts := strings.Split(host, "."), strings.Split(hostName(n.host), ".")
	if len(pattern) != len(parts) {
		return false
	}
	for i := range pattern {
		// A port is no part of what a pattern may stand for.
		want, wantPort, _ := strings.Cut(pattern[i], ":")
		have, havePort, _ := strings.Cut(parts[i], ":")
		if ok, err := path.Match(want, have); err != nil || !ok || wantPort != havePort {
			return false
		}
	}
	return true
}

func isPattern(host string) bool { return strings.ContainsAny(host, "*?[") }

// auth returns the entry for n and its key, or nothing.
func (f loginFile) auth(n name) (string, updater.Credential) {
	key, ok := lookup(f.Auths, n)
	if !ok {
		return "", updater.Credential{}
	}
	cr, ok := f.Auths[key].credential()
	if !ok {
		return key, updater.Credential{}
	}
	return key, cr
}

// credential is what an entry holds, if that is anything to log in with.
func (e loginEntry) credential() (updater.Credential, bool) {
	cr := updater.Credential{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken}
	if e.Auth != "" {
		if u, p, ok := decodeAuth(e.Auth); ok {
			cr.Username, cr.Password = u, p
		}
	}
	if cr.IdentityToken != "" {
		cr.Password = "" // it stands for the password
	}
	return cr, cr.Password != "" || cr.IdentityToken != ""
}

// decodeAuth splits at the first colon: a password may hold more of them.
func decodeAuth(s string) (username, password string, ok bool) {
	s = strings.TrimSpace(s)
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		if b, err = base64.RawStdEncoding.DecodeString(s); err != nil {
			return "", "", false
		}
	}
	username, password, ok = strings.Cut(string(b), ":")
	return username, strings.Trim(password, "\x00"), ok // old clients padded
}

func (f loginFile) helper(n name) string {
	key, _ := lookup(f.CredHelpers, n)
	return f.CredHelpers[key]
}

type helperAnswer struct{ Username, Secret string }

// runHelper asks docker-credential-<helper> for a server's credentials. An
// empty answer means that it knows none.
func runHelper(ctx context.Context, wait time.Duration, helper, server string) (helperAnswer, error) {
	program := "docker-credential-" + helper
	if strings.ContainsAny(helper, `/\`) {
		return helperAnswer{}, fmt.Errorf("%s is no name of a credential helper", quote(helper))
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	var out bounded
	cmd.Stdout = &out
	// A grandchild that keeps the pipe open must not keep us.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
	case ctx.Err() != nil:
		return helperAnswer{}, fmt.Errorf("%s did not answer within %s: see what it waits for", program, wait)
	case errors.Is(err, exec.ErrNotFound):
		return helperAnswer{}, fmt.Errorf("%s, which the login file names, is not in PATH: install it where updaterd runs, or give the credentials under registries in the configuration", program)
	case strings.Contains(strings.ToLower(out.String()), notFoundText):
		return helperAnswer{}, nil
	default:
		// What it printed may hold a secret.
		return helperAnswer{}, fmt.Errorf("%s failed for %s: %w: run it by hand as the user that updaterd runs as", program, server, err)
	}
	var a helperAnswer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		return helperAnswer{}, fmt.Errorf("%s answers with something that is no JSON for %s", program, server)
	}
	return a, nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := helperLimit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// loginFiles lists where docker login and podman login leave credentials, in
// the order in which they are believed.
func loginFiles() []string {
	home, err := os.UserHomeDir() // $HOME, which a service may lack
	if err != nil {
		if u, err := user.Current(); err == nil {
			home = u.HomeDir
		}
	}
	var files []string
	if d := os.Getenv("DOCKER_CONFIG"); d != "" {
		files = append(files, filepath.Join(d, "config.json"))
	} else if home != "" {
		files = append(files, filepath.Join(home, ".docker", "config.json"))
	}
	// containers-auth.json(5).
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		return append(files, f)
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		files = append(files, filepath.Join(d, "containers", "auth.json"))
	}
	if d := os.Getenv("XDG_CONFIG_HOME"); d != "" {
		files = append(files, filepath.Join(d, "containers", "auth.json"))
	} else if home != "" {
		files = append(files, filepath.Join(home, ".config", "containers", "auth.json"))
	}
	return files
}

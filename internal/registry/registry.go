// Package registry asks registries what they hold, and asks politely: with
// HEAD where that does, once per pass and question, few at a time per host,
// and not at all for as long as a host wants to be left alone.
//
// A question goes through Client.ask, which finds out on first acquaintance
// how the host wants to be spoken to (host.ready), brings a token that still
// holds or gets one (Client.token), and answers the challenge that the real
// question meets where it differs from the usual one. Tokens and connections
// outlive a pass; what tags stand for does not.
//
// Everything that comes from the network is bounded in size and time, held to
// its digest, and never quoted in messages.
package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// imagesKept bounds the images remembered for good, at about half a kilobyte
// each.
const imagesKept = 1024

// Options say how registries are asked. The zero value will do.
type Options struct {
	// Hosts are what the configuration says of some registries.
	Hosts []Host
	// Log gets what concerns a host rather than a question; nil discards it.
	Log *slog.Logger
	// UserAgent is how we introduce ourselves; "" is "updaterd".
	UserAgent string
	// DockerConfig is the config.json to take credentials from. "" is that of
	// $DOCKER_CONFIG or ~/.docker, then podman's auth.json.
	DockerConfig string
	// CertsDir holds authorities and client certificates by host, as the engine
	// reads them; "" is /etc/docker/certs.d.
	CertsDir string
	// Observer sees every request; nil: nobody does.
	Observer Observer
}

// Host is what the configuration says of one registry.
type Host struct {
	// Host is the name that references have, with the port if they have it:
	// "ghcr.io", "registry.example.com:5000". "docker.io" is Docker Hub.
	Host string
	// PlainHTTP says to speak HTTP without TLS. Without it, that is tried on
	// loopback addresses only.
	PlainHTTP bool
	// CA is a PEM file of authorities to trust for this host, besides the
	// system's.
	CA string
	// Username and Password, or PasswordFile, are used before any login file. A
	// PasswordFile is read in each pass, so it may be rotated.
	Username, Password, PasswordFile string
}

// Client is an updater.Registry. It needs no closing: connections end after
// half a minute of idleness.
type Client struct {
	hosts     map[string]Host
	log       *slog.Logger
	userAgent string
	certsDir  string
	creds     *credentials
	slots     chan struct{}
	observer  Observer

	// Replaced by tests.
	now          func() time.Time
	roundTripper http.RoundTripper

	// What one's credentials have brought is no answer to another's.
	tokens memo[tokenKey, token]
	images memo[imageKey, updater.Image]

	// Of this pass.
	resolved memo[subject, string]
	listed   memo[subject, []string]
	readable set // repositories of which a manifest could be read

	mu    sync.Mutex
	known map[string]*host
}

// subject is what is asked about, and by whose credentials.
type subject struct {
	what string
	by   [sha256.Size]byte
}

type imageKey struct {
	repository, digest string
	platform           updater.Platform
	// by are the credentials, where a workload brought them. The Client's own are
	// all the same here: what they may read is remembered for good, and the
	// passwords of some clouds live an hour.
	by [sha256.Size]byte
}

var _ updater.Registry = (*Client)(nil)

// New checks o, reads the files it names, and returns a Client. It asks no
// registry anything.
func New(o Options) (*Client, error) {
	c := &Client{
		hosts:     map[string]Host{},
		log:       o.Log,
		userAgent: o.UserAgent,
		certsDir:  o.CertsDir,
		slots:     make(chan struct{}, perClient),
		observer:  o.Observer,
		now:       time.Now,
		known:     map[string]*host{},
	}
	c.images.max = imagesKept
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.userAgent == "" {
		c.userAgent = "updaterd"
	}
	if c.certsDir == "" {
		c.certsDir = "/etc/docker/certs.d"
	}
	for _, h := range o.Hosts {
		n := hostName(h.Host)
		switch _, twice := c.hosts[n]; {
		case n == "":
			return nil, fmt.Errorf("registry %q: give the host as image references have it, such as registry.example.com:5000", h.Host)
		case twice:
			return nil, fmt.Errorf("registry %s is listed twice: keep one of them", n)
		case h.PlainHTTP && h.CA != "":
			return nil, fmt.Errorf("registry %s has plain-http and ca: take one of them away", n)
		case h.Password != "" && h.PasswordFile != "":
			return nil, fmt.Errorf("registry %s has a password and a password-file: take one of them away", n)
		}
		if h.CA != "" {
			if _, err := tlsConfig(h.CA, ""); err != nil {
				return nil, fmt.Errorf("registry %s: %w", n, err)
			}
		}
		c.hosts[n] = h
	}
	c.creds = &credentials{hosts: c.hosts, log: c.log, wait: helperTimeout, files: []string{o.DockerConfig}}
	if o.DockerConfig == "" {
		c.creds.files = loginFiles()
	}
	return c, nil
}

// Tags lists the tags of ref's repository, sorted.
func (c *Client) Tags(ctx context.Context, ref string) ([]string, error) {
	return view{c, nil}.Tags(ctx, ref)
}

// Resolve returns the digest that ref's tag stands for now. A digest beside
// the tag is passed over; one without a tag stands for itself.
func (c *Client) Resolve(ctx context.Context, ref string) (string, error) {
	return view{c, nil}.Resolve(ctx, ref)
}

// Image returns the image for p under digest d in ref's repository. Where
// there is an index, it takes two requests, and where there is none the same
// number, to learn from the config what the image is for.
func (c *Client) Image(ctx context.Context, ref, d string, p updater.Platform) (updater.Image, error) {
	return view{c, nil}.Image(ctx, ref, d, p)
}

// Exists asks, anew each time, whether the registry has what ref says, as it shows
// itself to l (nil: to the Client's own credentials): the digest where ref has one, else
// the tag.
func (c *Client) Exists(ctx context.Context, ref string, l updater.Logins) (bool, error) {
	_, err := each(ctx, view{c, l}, ref, func(n name, cr credential) (string, error) {
		if n.digest != "" {
			n.tag = ""
		}
		return c.resolve(ctx, n, cr)
	})
	if r, ok := errors.AsType[*updater.Refusal](err); ok && r.Reason == updater.NotFound {
		return false, nil
	}
	return err == nil, err
}

// As returns what the registries hold as they show it to l: see view.
func (c *Client) As(l updater.Logins) updater.Registry { return view{c, l} }

// Credential returns what the engine needs to pull ref, found anew: passwords
// of some clouds live an hour. That there is none, or that a helper fails, is
// no error: the image may be public.
func (c *Client) Credential(ctx context.Context, ref string) (updater.Credential, error) {
	n, err := parseName(ref)
	if err != nil {
		return updater.Credential{}, err
	}
	c.creds.newPass()
	cr, err := c.creds.find(ctx, n)
	return cr.Credential, err
}

// NewPass forgets what tags stand for and which credentials there are, and
// lets hosts be asked again whose time is over.
func (c *Client) NewPass() {
	all := func(string, error) bool { return true }
	c.resolved.forget(all)
	c.listed.forget(func([]string, error) bool { return true })
	c.readable.clear()
	c.creds.newPass()
	now := c.now()
	c.tokens.forget(func(t token, err error) bool { return err != nil || !now.Before(t.until) })
	c.images.forget(func(_ updater.Image, err error) bool { return err != nil })
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.known {
		h.newPass()
	}
}

// host returns the one of that name, made at first use.
func (c *Client) host(n string) (*host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.known[n]; h != nil {
		return h, nil
	}
	h, err := newHost(c, n)
	if err != nil {
		return nil, err // not kept: the file it names may be put right
	}
	c.known[n] = h
	return h, nil
}

func (c *Client) request(method, url string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", cause(err))
	}
	req.Header.Set("User-Agent", c.userAgent)
	return req, nil
}

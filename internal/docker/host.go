package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/updaterd/updaterd/internal/updater"
)

// Time limits of engine calls. A pull has none, but see pullIdle.
const (
	connectLimit = 10 * time.Second
	lookLimit    = 30 * time.Second
	changeLimit  = 30 * time.Second // rename, update, tag
	createLimit  = 2 * time.Minute
	startLimit   = 2 * time.Minute
	removeLimit  = 2 * time.Minute
	stopSlack    = 30 * time.Second // beyond the container's own stop timeout
)

// Options say which engine a Host speaks to, and as whom.
type Options struct {
	// Name is the backend's name in the configuration.
	Name string
	// Endpoint is unix://PATH or tcp://HOST:PORT. Empty: DOCKER_HOST (with
	// DOCKER_CERT_PATH and DOCKER_TLS_VERIFY), else the default socket.
	Endpoint string
	// TLS is used with a tcp endpoint; nil: plain.
	TLS *TLS
	// Owner tells this installation from others on the same engine. Changes of
	// another owner are left alone until their time is up.
	Owner string
	// Credential is asked at each pull for what the registry of ref wants to
	// see; nil: pulls are anonymous.
	Credential func(ctx context.Context, ref string) (updater.Credential, error)
	// Self says how another process goes on when the container that this one runs
	// in is replaced; nil: that is refused.
	Self *Self
	// Finishing: this process is that other one, so no container is its own.
	Finishing bool
	// Log gets what is worth telling but stops nothing; nil: nowhere.
	Log *slog.Logger

	// wrap, when set, is put around the transport to the engine.
	wrap func(http.RoundTripper) http.RoundTripper
}

// TLS names the PEM files for an engine behind mutual TLS.
type TLS struct {
	CA, Cert, Key string
}

// Host is one Docker host as a backend.
type Host struct {
	name       string
	owner      string
	credential func(ctx context.Context, ref string) (updater.Credential, error)
	log        *slog.Logger
	dial       func() (*client.Client, error)
	oneself    *Self
	finishing  bool
	self       func() identity // what this process sees of its container

	// refs holds a lock for every reference whose local tag is being moved.
	refs keyedMutex
	// lookers bounds the reads under way, planners the plans: a pass makes one for
	// each container at once, and each begins with asking whether the engine answers.
	lookers, planners chan struct{}
	// acquaint is held while what containers use is found out, so that many plans
	// at once do not all ask of all.
	acquaint  sync.Mutex
	uses      edges     // what each container uses, by name or id; see kindred
	relatives relatives // what kindred said last

	mu       sync.Mutex
	cli      *client.Client
	version  string          // of the engine's API, as last seen
	podman   bool            // it cannot update a restart policy
	prepared map[string]bool // changes prepared by this process and not applied yet
	helped   map[string]int  // helpers that this process made, by change
	others   map[string]bool // changes of other updaterds that were told of
	ownID    string          // of the container that this process runs in, once it is known
	// forbidden are the routes that something on the way to the engine refuses.
	forbidden []route
}

var _ updater.Backend = (*Host)(nil)

// New returns a Host without speaking to the engine: one that is down now may
// be up later. It fails on an endpoint or certificates that cannot be read.
func New(o Options) (*Host, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Host{
		name: o.Name, owner: o.Owner, credential: o.Credential, log: o.Log.With("backend", o.Name),
		oneself: o.Self, finishing: o.Finishing, self: sync.OnceValue(whoAmI),
		prepared: map[string]bool{}, helped: map[string]int{},
		lookers: make(chan struct{}, lookers), planners: make(chan struct{}, lookers),
	}
	h.dial = func() (*client.Client, error) { return dial(o) }
	cli, err := h.dial()
	if err != nil {
		return nil, fmt.Errorf("docker host %s: %w", o.Name, err)
	}
	h.cli = cli
	return h, nil
}

func dial(o Options) (*client.Client, error) {
	tr := &http.Transport{
		MaxIdleConns: lookers, MaxIdleConnsPerHost: lookers, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: connectLimit,
	}
	opts := []client.Opt{
		client.WithAPIVersionNegotiation(),
		client.WithHTTPClient(&http.Client{Transport: tr, CheckRedirect: client.CheckRedirect}),
	}
	if o.Endpoint == "" {
		opts = append(opts, client.WithTLSClientConfigFromEnv(), client.WithHostFromEnv())
		if os.Getenv(client.EnvOverrideHost) == "" {
			opts = append(opts, client.WithHost(client.DefaultDockerHost))
		}
	} else {
		scheme, _, _ := strings.Cut(o.Endpoint, "://")
		if scheme != "unix" && scheme != "tcp" {
			return nil, fmt.Errorf("endpoint %q: write it as unix:///var/run/docker.sock or tcp://HOST:PORT", o.Endpoint)
		}
		if o.TLS != nil {
			opts = append(opts, client.WithTLSClientConfig(o.TLS.CA, o.TLS.Cert, o.TLS.Key))
		}
		opts = append(opts, client.WithHost(o.Endpoint))
	}
	if o.wrap != nil {
		opts = append(opts, client.WithHTTPClient(&http.Client{Transport: o.wrap(tr), CheckRedirect: client.CheckRedirect}))
	}
	return client.NewClientWithOpts(opts...)
}

// Name implements updater.Backend.
func (h *Host) Name() string { return h.name }

// Close lets go of idle connections.
func (h *Host) Close() error { return h.client().Close() }

func (h *Host) client() *client.Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cli
}

// connect makes sure that the engine answers, and that the highest version of
// its API is spoken: an engine may have been replaced by a newer one since the
// last pass, and a version that is too low hides fields of a container, which
// would be lost when it is created again.
func (h *Host) connect(ctx context.Context) (*client.Client, error) {
	soon, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	cli := h.client()
	ping, err := cli.Ping(soon)
	if err != nil {
		return nil, h.unreachable(cli, err)
	}
	h.mu.Lock()
	known := h.version == ping.APIVersion
	h.mu.Unlock()
	if known {
		return cli, nil
	}
	fresh, err := h.dial()
	if err != nil {
		return nil, fmt.Errorf("docker host %s: %w", h.name, err)
	}
	fresh.NegotiateAPIVersionPing(ping)
	// It is there. Podman counts all that it has to answer this.
	ctx, cancel = context.WithTimeout(ctx, lookLimit)
	defer cancel()
	v, err := fresh.ServerVersion(ctx)
	if err != nil {
		return nil, errors.Join(h.unreachable(cli, err), fresh.Close())
	}
	forbidden := h.forbiddenBy(ctx, fresh)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cli, h.version, h.podman, h.forbidden = fresh, ping.APIVersion, isPodman(v), forbidden
	return fresh, nil
}

func isPodman(v types.Version) bool {
	for _, c := range v.Components {
		if strings.Contains(c.Name, "Podman") {
			return true
		}
	}
	return false
}

func (h *Host) unreachable(cli *client.Client, err error) error {
	if cerrdefs.IsPermissionDenied(err) {
		return fmt.Errorf("docker host %s: HEAD /_ping or GET /version is forbidden on the way to the engine at %s; allow both in the socket proxy: %w",
			h.name, cli.DaemonHost(), err)
	}
	return fmt.Errorf("docker host %s: the engine at %s does not answer; is it running, and may updaterd use it? %w",
		h.name, cli.DaemonHost(), err)
}

// box is a container as the engine shows it now.
type box struct {
	container.InspectResponse
	raw []byte
}

func (b *box) name() string { return strings.TrimPrefix(b.Name, "/") }

func (b *box) label(key string) string {
	if b.Config == nil {
		return ""
	}
	return b.Config.Labels[key]
}

// running: a process of it runs, is paused, or is about to be started again.
func (b *box) running() bool {
	return b.State != nil && (b.State.Running || b.State.Restarting || b.State.Paused)
}

// leaving: the engine is removing it, or has tried to.
func (b *box) leaving() bool {
	return b.State != nil && (b.State.Status == container.StateRemoving || b.State.Status == container.StateDead)
}

// started: it has been started at least once. An engine writes the zero time
// for one that never was.
func (b *box) started() bool {
	return b.State != nil && b.State.StartedAt != "" && !strings.HasPrefix(b.State.StartedAt, "0001-")
}

// inspect returns the container with this id or name; nil when there is none.
// An engine also takes the beginning of an id, so that a name may hit what it
// does not mean.
func (h *Host) inspect(ctx context.Context, ref string) (*box, error) {
	if ref == "" {
		return nil, nil
	}
	defer h.looking()()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	c, raw, err := h.client().ContainerInspectWithRaw(ctx, ref, false)
	switch {
	case cerrdefs.IsNotFound(err), wentMeanwhile(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspecting container %s: %w", ref, err)
	case c.ContainerJSONBase == nil || c.State == nil || c.HostConfig == nil || c.Config == nil:
		return nil, fmt.Errorf("inspecting container %s: the engine's answer is not whole", ref)
	case c.ID != ref && c.Name != "/"+ref:
		return nil, nil
	}
	return &box{InspectResponse: c, raw: raw}, nil
}

// looking waits until the engine may be asked one more thing, and returns what is
// to be called after the answer. No read takes longer than lookLimit, and none
// waits for another while it holds a place.
func (h *Host) looking() (done func()) {
	h.lookers <- struct{}{}
	return func() { <-h.lookers }
}

// list returns all containers, whatever their state.
func (h *Host) list(ctx context.Context) ([]container.Summary, error) {
	defer h.looking()()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	l, err := h.client().ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	return l, nil
}

// imageOf returns the image with this id or reference; nil when there is none.
func (h *Host) imageOf(ctx context.Context, ref string) (*image.InspectResponse, error) {
	defer h.looking()()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var img image.InspectResponse
	err := steadily(ctx, func() (err error) {
		img, err = h.client().ImageInspect(ctx, ref)
		return err
	})
	switch {
	case cerrdefs.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspecting image %s: %w", ref, err)
	}
	return &img, nil
}

// told reports whether the engine itself answered with this error. Otherwise
// nobody knows whether the call had an effect.
func told(err error) bool {
	return err != nil && !client.IsErrConnectionFailed(err) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) &&
		(cerrdefs.IsInternal(err) || cerrdefs.IsInvalidArgument(err) || cerrdefs.IsNotFound(err) ||
			cerrdefs.IsConflict(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsNotImplemented(err) ||
			cerrdefs.IsUnauthorized(err) || cerrdefs.IsUnavailable(err) || cerrdefs.IsUnknown(err))
}

// keyedMutex is a mutex per key. The zero value is ready.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	sync.Mutex
	users int
}

// lock locks key and returns what unlocks it.
func (k *keyedMutex) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
}

// Package kube is one Kubernetes cluster as an [updater.Backend].
//
// A workload is one container of a Deployment, StatefulSet, DaemonSet or CronJob;
// a change is a pod template, for one patch moves all the image fields that get
// another image. Going back is writing the image fields that were there before,
// and waiting. What runs where is the cluster's own business: updaterd writes
// image fields, and reads what becomes of them.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"k8s.io/client-go/rest"

	"github.com/updaterd/updaterd/internal/updater"
)

// Options say which cluster a Cluster speaks to, and what it looks at there.
type Options struct {
	// Name is the backend's name in the configuration.
	Name string
	// REST is how the API server is reached, and as whom.
	REST *rest.Config
	// Namespaces are those whose workloads are looked at; one "*" is all of them.
	Namespaces []string
	// Selector is a label selector; it narrows what is fetched. Empty: everything.
	Selector string
	// Resolve says what a tag stands for now, so that going back pins what has moved.
	// nil: only a tag that the change itself followed is known to have moved.
	Resolve func(ctx context.Context, ref string, by updater.Logins) (digest string, err error)
	// Exists asks the registry of ref, anew each time, whether it has what ref says. nil:
	// what nodes do not find is taken not to exist.
	Exists func(ctx context.Context, ref string, by updater.Logins) (bool, error)
	// Log gets what is worth telling but stops nothing; nil: nowhere.
	Log *slog.Logger
}

// Cluster is one cluster as a backend.
type Cluster struct {
	name       string
	namespaces []string
	selector   string
	log        *slog.Logger
	api        *Client
	moved      func(ctx context.Context, ref string, by updater.Logins) (digest string, err error)
	exists     func(ctx context.Context, ref string, by updater.Logins) (bool, error)
	keys       *keys

	mu      sync.Mutex
	watched []*watched        // nil unless Run is under way
	seen    map[string]glance // by change: what this process has seen live
	told    map[string]bool   // what was told once
	// last is what was listed without a watch, by kind and namespace.
	last map[string][]*owner
	// asked is what registries answered about images that nodes do not find, by
	// workload and image.
	asked map[string]existence
}

var _ updater.Backend = (*Cluster)(nil)

// New returns a Cluster without speaking to the API server, which may be down now.
// It starts nothing: see [Cluster.Run].
func New(o Options) (*Cluster, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Namespaces) == 0 {
		return nil, fmt.Errorf("cluster %s: %w", o.Name, errors.New(`no namespaces are named; write those to look at, or ["*"] for all`))
	}
	api, err := NewClient(o.REST)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", o.Name, err)
	}
	c := &Cluster{
		name: o.Name, namespaces: o.Namespaces, selector: o.Selector,
		log: o.Log.With("backend", o.Name), api: api, moved: o.Resolve, exists: o.Exists,
		seen: map[string]glance{}, told: map[string]bool{}, asked: map[string]existence{}, last: map[string][]*owner{},
	}
	c.keys = &keys{c: c, secrets: map[string]*kept[updater.Login]{}, accounts: map[string]*kept[[]string]{}}
	return c, nil
}

// Name implements [updater.Backend].
func (c *Cluster) Name() string { return c.name }

// Client is how the cluster is spoken to.
func (c *Cluster) Client() *Client { return c.api }

// Close lets go of idle connections.
func (c *Cluster) Close() error {
	c.api.http.CloseIdleConnections()
	return nil
}

// Traces implements updater.Backend. There are none: the journal is in the cluster,
// too, and what is written on a workload would be copied about by its controllers.
func (c *Cluster) Traces(context.Context, map[string]bool) ([]updater.Change, error) {
	return nil, nil
}

// Exec implements updater.Backend. Plan has refused what would need it.
func (c *Cluster) Exec(_ context.Context, ch updater.Change, part int, _ updater.Side, _ updater.Hook) (updater.Result, error) {
	return updater.Result{}, fmt.Errorf("%s: nothing is run in the pods of a cluster", ch.Parts[part].Workload)
}

// once reports whether something is told for the first time.
func (c *Cluster) once(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.told[what]
	c.told[what] = true
	return first
}

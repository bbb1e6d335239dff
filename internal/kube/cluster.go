// Package kube is one Kubernetes cluster as an [updater.Backend].
//
// A workload is one container of a Deployment, StatefulSet, DaemonSet or CronJob;
// a change is a pod template, for one patch moves all the image fields that get
// another image. Going back is writing the image fields that were there before,
// and waiting. What runs where is the cluster's own business: updaterd writes
// image fields, and reads what becomes of them.
package kube

import (
	"errors"
	"fmt"
	"log/slog"

	"k8s.io/client-go/rest"
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
}

// New returns a Cluster without speaking to the API server, which may be down now.
// It starts nothing.
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
	return &Cluster{
		name: o.Name, namespaces: o.Namespaces, selector: o.Selector,
		log: o.Log.With("backend", o.Name), api: api,
	}, nil
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

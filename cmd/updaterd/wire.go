package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/docker"
	"github.com/updaterd/updaterd/internal/journal"
	"github.com/updaterd/updaterd/internal/kube"
	"github.com/updaterd/updaterd/internal/metrics"
	"github.com/updaterd/updaterd/internal/notify"
	"github.com/updaterd/updaterd/internal/registry"
	"github.com/updaterd/updaterd/internal/server"
	"github.com/updaterd/updaterd/internal/updater"
	"github.com/updaterd/updaterd/internal/webhook"
)

// wiring is the parts of updaterd put together as a configuration says.
type wiring struct {
	log      *slog.Logger
	version  string
	updater  *updater.Updater
	places   []updater.Place
	hosts    []*docker.Host
	clusters []*kube.Cluster
	registry atomic.Pointer[registry.Client] // replaced by a reload
	metrics  *metrics.Metrics                // nil where nobody asks for them
	notifier *notify.Notifier
	board    *server.Board // what goes on, for those who look
}

// role is what a command does to changes.
type role int

const (
	looks    role = iota // nothing
	acts                 // begins them, and takes them to their end
	finishes             // takes one to its end, see finishCommand
)

// wire builds everything and starts nothing. Only where changes are made does the
// installation need an id of its own.
func (p program) wire(c *config.Config, log *slog.Logger, as role) (*wiring, error) {
	w := &wiring{log: log, version: p.version, board: server.NewBoard()}
	owner := ""
	if as != looks && len(c.Docker) > 0 {
		var err error
		if owner, err = journal.Owner(c.State); err != nil {
			return nil, err
		}
	}
	if c.Metrics != "" && as == acts {
		var backends []string
		for _, d := range c.Docker {
			backends = append(backends, d.Name)
		}
		for _, k := range c.Kubernetes {
			backends = append(backends, k.Name)
		}
		w.metrics = metrics.New(p.version, backends)
	}
	for _, d := range c.Docker {
		o := docker.Options{
			Name: d.Name, Endpoint: d.Endpoint, Owner: owner, Log: log,
			Self: self(c), Finishing: as == finishes,
			// The client of the time of the pull: a reload may bring new passwords.
			Credential: func(ctx context.Context, ref string) (updater.Credential, error) {
				return w.registry.Load().Credential(ctx, ref)
			},
		}
		if d.TLS != (config.TLS{}) {
			o.TLS = &docker.TLS{CA: d.TLS.CA, Cert: d.TLS.Cert, Key: d.TLS.Key}
		}
		host, err := docker.New(o)
		if err != nil {
			return nil, err
		}
		w.hosts = append(w.hosts, host)
		file := journal.New(c.State, d.Name, log)
		file.Finishing = as == finishes
		var state updater.State = file
		if p.wrap != nil {
			state = p.wrap(state)
		}
		w.places = append(w.places, updater.Place{Backend: host, State: state})
	}
	if as != finishes { // what needs that lives on a host
		if len(c.Kubernetes) > 0 {
			// Some of what client-go has to say goes to a log of the whole process.
			klog.SetSlogLogger(log.With("component", "client-go"))
		}
		for _, k := range c.Kubernetes {
			if err := p.wireCluster(w, k); err != nil {
				return nil, err
			}
		}
	}
	w.notifier = notify.New(journal.NewOutbox(c.State, log), w.lately, log)
	rules, err := w.rules(c)
	if err != nil {
		return nil, err
	}
	w.updater = updater.New(w.places, rules, log)
	dropPages()
	return w, nil
}

// wireCluster adds one cluster, which needs no state directory.
func (p program) wireCluster(w *wiring, k config.Kubernetes) error {
	log := w.log.With("backend", k.Name)
	conn, err := kube.Connect(k.Kubeconfig, k.Context)
	if err != nil {
		return fmt.Errorf("cluster %s: %w", k.Name, err)
	}
	conn.REST.UserAgent = "updaterd/" + w.version
	cluster, err := kube.New(kube.Options{
		Name: k.Name, REST: conn.REST, Namespaces: k.Namespaces, Selector: k.Selector, Log: w.log,
		Resolve: func(ctx context.Context, ref string, by updater.Logins) (string, error) {
			return w.registry.Load().As(by).Resolve(ctx, ref)
		},
		Exists: func(ctx context.Context, ref string, by updater.Logins) (bool, error) {
			return w.registry.Load().Exists(ctx, ref, by)
		},
	})
	if err != nil {
		return err
	}
	namespace := k.StateNamespace
	if namespace == "" {
		namespace = conn.Namespace
	}
	w.clusters = append(w.clusters, cluster)
	var state updater.State = kube.NewState(kube.StateOptions{
		Backend: k.Name, Client: cluster.Client(), Namespace: namespace, Namespaces: k.Namespaces, Wait: p.leaseWait, Log: log,
	})
	if p.wrap != nil {
		state = p.wrap(state)
	}
	w.places = append(w.places, updater.Place{Backend: cluster, State: state})
	return nil
}

// follow watches the clusters until ctx ends, so that looking at them costs no
// requests.
func (w *wiring) follow(ctx context.Context) {
	for _, c := range w.clusters {
		go func() {
			if err := c.Run(ctx); err != nil && ctx.Err() == nil {
				w.log.Error("cluster is not watched, every look lists", "backend", c.Name(), "err", err)
			}
		}()
	}
}

// self says how another process, see finishCommand, goes on when the container
// that this one runs in is replaced; nil when that cannot be told. It may be
// started without what set this one's environment.
func self(c *config.Config) *docker.Self {
	binary, err := os.Executable()
	if err != nil {
		return nil
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return nil
	}
	s := &docker.Self{Finish: []string{binary, "finish"}, Env: []string{"UPDATERD_STATE=" + state}, State: state, Files: []string{binary}}
	if real, err := filepath.EvalSymlinks(state); err == nil {
		s.State = real
	}
	if c.File != "" {
		file, err := filepath.Abs(c.File)
		if err != nil {
			return nil
		}
		s.Finish = append(s.Finish, "--config", file)
		s.Files = append(s.Files, file)
	}
	s.Finish = append(s.Finish, "--")
	return s
}

// lately is what happened in all places, newest first in each: more than can have
// happened since it was last told.
func (w *wiring) lately(ctx context.Context) ([]updater.Entry, error) {
	const most = 500
	var all []updater.Entry
	for _, place := range w.places {
		entries, err := place.State.Journal().History(ctx, most)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// announced looks at what was pushed, if it is watched.
func (w *wiring) announced(ctx context.Context, references []string) {
	ids, err := w.updater.Announced(ctx, references)
	if err != nil && ctx.Err() == nil {
		w.log.Warn("what was pushed is looked at in the next pass only", "err", err)
	}
	if len(ids) > 0 {
		w.log.Info("looking at what was pushed", "workloads", ids)
	}
}

// senders are who may post webhooks.
func senders(c config.Webhooks) []webhook.Sender {
	var all []webhook.Sender
	for _, s := range c.Senders {
		all = append(all, webhook.Sender{Name: s.Name, Kind: webhook.Kind(s.Kind), Secret: s.Secret, Registry: s.Registry})
	}
	return all
}

// flush tells what is yet to be told, for a command that is about to end.
func (w *wiring) flush(ctx context.Context) {
	const most = 10 * time.Second
	w.notifier.Flush(ctx, most)
}

// close ends connections.
func (w *wiring) close() {
	for _, h := range w.hosts {
		if err := h.Close(); err != nil {
			w.log.Debug("connection not closed", "err", err)
		}
	}
	for _, c := range w.clusters {
		if err := c.Close(); err != nil {
			w.log.Debug("connection not closed", "err", err)
		}
	}
}

// rules are what a reload may replace.
func (w *wiring) rules(c *config.Config) (updater.Rules, error) {
	var counts registry.Observer // an interface that holds a nil pointer is not nil
	if w.metrics != nil {
		counts = w.metrics
	}
	r, err := newRegistry(c, w.log, w.version, counts)
	if err != nil {
		return updater.Rules{}, err
	}
	w.registry.Store(r)
	var receivers []notify.Receiver
	for _, n := range c.Notify {
		receivers = append(receivers, notify.Receiver{
			Name: n.Name, Address: n.URL, Secret: n.Secret, On: n.On, Logs: n.Logs, Batch: n.Batch, Title: n.Title, Text: n.Text,
		})
	}
	w.notifier.Tell(receivers)
	observers := updater.Observers{w.notifier, w.board}
	if w.metrics != nil {
		observers = append(observers, w.metrics)
	}
	return updater.Rules{
		Settings: c.Settings, Schedule: c.Schedule, Jitter: c.Jitter, Parallel: c.Parallel,
		Registry: r, Notifier: notifiers{w.board, w.notifier}, Observer: observers,
	}, nil
}

// notifiers are several as one.
type notifiers []updater.Notifier

// Notify implements [updater.Notifier].
func (n notifiers) Notify(ctx context.Context, e updater.Entry) {
	for _, each := range n {
		each.Notify(ctx, e)
	}
}

func newRegistry(c *config.Config, log *slog.Logger, version string, o registry.Observer) (*registry.Client, error) {
	var hosts []registry.Host
	for _, r := range c.Registries {
		hosts = append(hosts, registry.Host{
			Host: r.Host, PlainHTTP: r.PlainHTTP, CA: r.CA, Username: r.Username, PasswordFile: r.PasswordFile,
		})
	}
	return registry.New(registry.Options{Hosts: hosts, Log: log, UserAgent: "updaterd/" + version, Observer: o})
}

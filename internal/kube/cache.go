package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// lookLimit bounds one read.
const lookLimit = 30 * time.Second

// everywhere stands for all namespaces.
const everywhere = "*"

// watched is one kind of object in one namespace, kept by a watch. Only what is
// gone by is kept of each, so that thousands of them cost little.
type watched struct {
	resource  Resource
	namespace string // "" is all
	store     cache.Indexer
	run       cache.Controller
	failed    context.Context // done when it has been refused or broken off once
	forbidden error           // why it may not go on, since it last might; guarded by Cluster.mu
}

// Run watches the cluster until ctx ends, so that a look at it costs no requests.
// Without it every look lists. What cannot be watched is waited for with a growing
// pause, and listed meanwhile.
func (c *Cluster) Run(ctx context.Context) error {
	logger := logr.FromSlogHandler(c.log.Handler())
	var all []*watched
	add := func(r Resource, namespace, selector string, object runtime.Object, list func() runtime.Object, reduce cache.TransformFunc) {
		failed, fail := context.WithCancel(ctx)
		w := &watched{resource: r, namespace: namespace, failed: failed}
		noted := func(err error) error {
			c.mu.Lock()
			w.forbidden = nil
			if apierrors.IsForbidden(err) {
				w.forbidden = err
			}
			c.mu.Unlock()
			if err != nil && !apierrors.IsInvalid(err) { // an old server's answer to how new ones are asked
				fail()
			}
			return err
		}
		lw := &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				out := list()
				o.LabelSelector = selector
				return out, noted(c.api.List(ctx, r, namespace, o, out))
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.LabelSelector = selector
				w, err := c.api.Watch(ctx, r, namespace, o)
				return w, noted(err)
			},
		}
		store, run := cache.NewInformerWithOptions(cache.InformerOptions{
			Logger: &logger, ListerWatcher: lw, ObjectType: object, Handler: cache.ResourceEventHandlerFuncs{}, Transform: reduce,
			Indexers: cache.Indexers{byOwner: ownerIndex},
		})
		w.store, w.run = store.(cache.Indexer), run // which it is when it has indexers
		all = append(all, w)
	}
	for _, namespace := range c.scopes() {
		for _, k := range kinds() {
			add(k.resource, namespace, c.selector, k.object(), k.list, func(o any) (any, error) { return read(o) })
		}
		add(podResource(), namespace, "", &corev1.Pod{}, func() runtime.Object { return &corev1.PodList{} }, func(o any) (any, error) { return readPod(o) })
	}
	var running sync.WaitGroup
	for _, w := range all {
		running.Go(func() { w.run.RunWithContext(ctx) })
	}
	c.mu.Lock()
	c.watched = all
	c.mu.Unlock()
	running.Wait()
	c.mu.Lock()
	c.watched = nil
	c.mu.Unlock()
	return nil
}

// Synced reports whether looking costs no requests by now.
func (c *Cluster) Synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.watched {
		if !w.run.HasSynced() {
			return false
		}
	}
	return len(c.watched) > 0
}

// catchUp waits until each watch has caught up or has failed: what is listed while a
// watch reads the same is in memory twice.
func (c *Cluster) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	c.mu.Lock()
	all := c.watched
	c.mu.Unlock()
	for _, w := range all {
		select {
		case <-w.run.HasSyncedChecker().Done():
		case <-w.failed.Done():
		case <-ctx.Done():
			return
		}
	}
}

// scopes are the namespaces to ask for; "" is all.
func (c *Cluster) scopes() []string {
	for _, n := range c.namespaces {
		if n == everywhere {
			return []string{""}
		}
	}
	return c.namespaces
}

// kept is the watch of a resource that covers a namespace; nil when there is none
// that has caught up.
func (c *Cluster) kept(r Resource, namespace string) *watched {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.watched {
		if w.resource == r && (w.namespace == namespace || w.namespace == "") && w.run.HasSynced() {
			return w
		}
	}
	return nil
}

// owners are the objects with a pod template, from the watches where there are any.
// A kind that may not be read is said once, and is what it was when it last might.
func (c *Cluster) owners(ctx context.Context) ([]*owner, error) {
	c.catchUp(ctx)
	var all []*owner
	for _, namespace := range c.scopes() {
		for _, k := range kinds() {
			if w := c.kept(k.resource, namespace); w != nil {
				c.mu.Lock()
				delete(c.last, lastKey(k.resource, namespace)) // the watch keeps it from now on
				forbidden := w.forbidden
				c.mu.Unlock()
				for _, object := range w.store.List() {
					o := object.(*owner)
					if forbidden != nil {
						o = o.asItWas(k, forbidden)
					}
					all = append(all, o)
				}
				continue
			}
			some, err := c.ownersOf(ctx, k, namespace)
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
	}
	return all, nil
}

// asItWas is an object of a kind that may not be read any more.
func (o *owner) asItWas(k kind, err error) *owner {
	was := *o
	was.unlisted = fmt.Sprintf("%s may not be listed any more: %v", k.resource.Name, err)
	return &was
}

// lastKey is the key of what was listed of a kind in a namespace.
func lastKey(r Resource, namespace string) string { return r.Name + " " + namespace }

// ownersOf lists one kind of object. What has been there is not gone because it may
// not be listed any more: see owner.unlisted.
func (c *Cluster) ownersOf(ctx context.Context, k kind, namespace string) (all []*owner, err error) {
	key := lastKey(k.resource, namespace)
	objects, err := c.list(ctx, k.resource, namespace, c.selector, k.list())
	switch {
	case apierrors.IsForbidden(err):
		if c.once("forbidden " + key) {
			c.log.Warn("a kind of workload may not be listed, so none of it is looked at", "kind", k.name, "namespace", namespace, "err", err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, o := range c.last[key] {
			all = append(all, o.asItWas(k, err))
		}
		return all, nil
	case err != nil:
		return nil, fmt.Errorf("cluster %s: listing %s: %w", c.name, k.resource.Name, err)
	}
	for _, object := range objects {
		o, err := read(object)
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[key] = all
	delete(c.told, "forbidden "+key)
	return all, nil
}

// byOwner is the index of pods by the object that they were made from.
const byOwner = "owner"

// ownerIndex is what that index goes by. Objects with templates are in none.
func ownerIndex(object any) ([]string, error) {
	if p, ok := object.(*pod); ok && p.owner != "" {
		return []string{p.owner}, nil
	}
	return nil, nil
}

// made are the pods that a watch has of an object.
func (w *watched) made(address string) (all []*pod) {
	objects, err := w.store.ByIndex(byOwner, address)
	if err != nil {
		return nil // there is no such index: only pods are asked for
	}
	for _, o := range objects {
		all = append(all, o.(*pod))
	}
	return all
}

// pods are the pods that were made from an object's template. live: by the API
// server, whatever the watches say.
func (c *Cluster) pods(ctx context.Context, o *owner, live bool) ([]*pod, error) {
	if w := c.kept(podResource(), o.Namespace); w != nil && !live {
		return w.made(o.address()), nil
	}
	all, err := c.listPods(ctx, o.Namespace, o.selector)
	return podsOf(all, o), err
}

// podsByOwner returns what tells the pods of an object, of all that is looked at.
func (c *Cluster) podsByOwner(ctx context.Context) (func(*owner) []*pod, error) {
	var watches []*watched
	listed := map[string][]*pod{}
	for _, namespace := range c.scopes() {
		if w := c.kept(podResource(), namespace); w != nil {
			watches = append(watches, w)
			continue
		}
		all, err := c.listPods(ctx, namespace, "")
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			if p.owner != "" {
				listed[p.owner] = append(listed[p.owner], p)
			}
		}
	}
	return func(o *owner) []*pod {
		for _, w := range watches {
			if w.namespace == o.Namespace || w.namespace == "" {
				return w.made(o.address())
			}
		}
		return listed[o.address()]
	}, nil
}

// listPods asks the API server for the pods of a namespace, "" being all.
func (c *Cluster) listPods(ctx context.Context, namespace, selector string) (all []*pod, err error) {
	objects, err := c.list(ctx, podResource(), namespace, selector, &corev1.PodList{})
	if err != nil {
		return nil, fmt.Errorf("cluster %s: listing pods: %w", c.name, err)
	}
	for _, object := range objects {
		p, err := readPod(object)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// list returns what the API server lists, page by page.
func (c *Cluster) list(ctx context.Context, r Resource, namespace, selector string, into runtime.Object) ([]runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	if err := c.api.List(ctx, r, namespace, metav1.ListOptions{LabelSelector: selector}, into); err != nil {
		return nil, err
	}
	return meta.ExtractList(into)
}

// get reads one object now; nil when there is none.
func (c *Cluster) get(ctx context.Context, namespace, kindName, name string) (*owner, error) {
	k, ok := kindNamed(kindName)
	if !ok {
		return nil, fmt.Errorf("%s/%s/%s: there is no such kind", namespace, kindName, name)
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	object := k.object()
	err := c.api.Get(ctx, k.resource, namespace, name, object)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("cluster %s: reading %s/%s/%s: %w", c.name, namespace, kindName, name, err)
	}
	return read(object)
}

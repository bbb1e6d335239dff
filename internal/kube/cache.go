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
	store     cache.Store
	run       cache.Controller
}

// Run watches the cluster until ctx ends, so that a look at it costs no requests.
// Without it every look lists. What cannot be watched is waited for with a growing
// pause, and listed meanwhile.
func (c *Cluster) Run(ctx context.Context) error {
	logger := logr.FromSlogHandler(c.log.Handler())
	var all []*watched
	add := func(r Resource, namespace, selector string, object runtime.Object, list func() runtime.Object, reduce cache.TransformFunc) {
		w := &watched{resource: r, namespace: namespace}
		lw := &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				out := list()
				o.LabelSelector = selector
				return out, c.api.List(ctx, r, namespace, o, out)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.LabelSelector = selector
				return c.api.Watch(ctx, r, namespace, o)
			},
		}
		w.store, w.run = cache.NewInformerWithOptions(cache.InformerOptions{
			Logger: &logger, ListerWatcher: lw, ObjectType: object, Handler: cache.ResourceEventHandlerFuncs{}, Transform: reduce,
		})
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
	var all []*owner
	for _, namespace := range c.scopes() {
		for _, k := range kinds() {
			if w := c.kept(k.resource, namespace); w != nil {
				c.mu.Lock()
				delete(c.last, lastKey(k.resource, namespace)) // the watch keeps it from now on
				c.mu.Unlock()
				for _, o := range w.store.List() {
					all = append(all, o.(*owner))
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
			was := *o
			was.unlisted = fmt.Sprintf("%s may not be listed any more: %v", k.resource.Name, err)
			all = append(all, &was)
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

// pods are the pods of a namespace, "" being all. live: by the API server, whatever
// the watches say.
func (c *Cluster) pods(ctx context.Context, namespace string, live bool) ([]*pod, error) {
	var all []*pod
	if w := c.kept(podResource(), namespace); w != nil && !live {
		for _, o := range w.store.List() {
			if p := o.(*pod); namespace == "" || p.Namespace == namespace {
				all = append(all, p)
			}
		}
		return all, nil
	}
	objects, err := c.list(ctx, podResource(), namespace, "", &corev1.PodList{})
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

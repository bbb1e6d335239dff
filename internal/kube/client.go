package kube

import (
	"context"
	"fmt"
	"net/http"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// manager is the field manager that writes are made as.
const manager = "updaterd"

// Client speaks to an API server in the few groups of its API that updaterd
// needs. client-go's clientset knows all fifty, which costs 13 MB of program and
// 9 MB of memory before the first request.
type Client struct {
	http  *http.Client
	by    map[schema.GroupVersion]rest.Interface
	param runtime.ParameterCodec
}

// Resource is one kind of object, as the API's addresses name it.
type Resource struct {
	schema.GroupVersion
	Name string // plural
}

// The resources that are read or written besides those of [kinds].
func podResource() Resource { return Resource{corev1.SchemeGroupVersion, "pods"} }
func jobResource() Resource { return Resource{batchv1.SchemeGroupVersion, "jobs"} }
func reviewResource() Resource {
	return Resource{authorizationv1.SchemeGroupVersion, "selfsubjectaccessreviews"}
}

// NewClient returns a Client. It makes no request.
func NewClient(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	groups := map[schema.GroupVersion]func(*runtime.Scheme) error{
		appsv1.SchemeGroupVersion:          appsv1.AddToScheme,
		batchv1.SchemeGroupVersion:         batchv1.AddToScheme,
		corev1.SchemeGroupVersion:          corev1.AddToScheme,
		authorizationv1.SchemeGroupVersion: authorizationv1.AddToScheme,
		coordinationv1.SchemeGroupVersion:  coordinationv1.AddToScheme,
		eventsv1.SchemeGroupVersion:        eventsv1.AddToScheme,
	}
	for gv, add := range groups {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("learning the types of %s: %w", gv, err)
		}
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	config = rest.CopyConfig(config)
	config.QPS = -1 // the API server bounds what it takes, and says so
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.ContentType = runtime.ContentTypeJSON
	config.WarningHandler = rest.NoWarnings{}
	config.NegotiatedSerializer = codecs
	if config.UserAgent == "" {
		config.UserAgent = manager
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	c := &Client{http: client, by: map[schema.GroupVersion]rest.Interface{}, param: runtime.NewParameterCodec(scheme)}
	for gv := range groups {
		one := rest.CopyConfig(config)
		one.GroupVersion, one.APIPath = &gv, "/apis"
		if gv.Group == "" {
			one.APIPath = "/api"
		}
		c.by[gv], err = rest.RESTClientForConfigAndClient(one, client)
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// unlogged keeps client-go from logging what it returns as an error besides.
func unlogged(ctx context.Context) context.Context {
	return logr.NewContext(ctx, logr.Discard())
}

// Watch follows what becomes of the objects of a namespace.
func (c *Client) Watch(ctx context.Context, r Resource, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return c.by[r.GroupVersion].Get().NamespaceIfScoped(namespace, namespace != "").Resource(r.Name).
		VersionedParams(&o, c.param).Watch(unlogged(ctx))
}

// Get reads one object into out.
func (c *Client) Get(ctx context.Context, r Resource, namespace, name string, out runtime.Object) error {
	return c.by[r.GroupVersion].Get().Namespace(namespace).Resource(r.Name).Name(name).Do(unlogged(ctx)).Into(out)
}

// List reads all objects of a namespace ("" is every namespace) into out.
func (c *Client) List(ctx context.Context, r Resource, namespace string, o metav1.ListOptions, out runtime.Object) error {
	return c.by[r.GroupVersion].Get().NamespaceIfScoped(namespace, namespace != "").Resource(r.Name).
		VersionedParams(&o, c.param).Do(unlogged(ctx)).Into(out)
}

// Create makes an object; out may be the same.
func (c *Client) Create(ctx context.Context, r Resource, namespace string, object, out runtime.Object) error {
	o := metav1.CreateOptions{FieldManager: manager}
	return c.by[r.GroupVersion].Post().NamespaceIfScoped(namespace, namespace != "").Resource(r.Name).
		VersionedParams(&o, c.param).Body(object).Do(unlogged(ctx)).Into(out)
}

// Update replaces an object; its resourceVersion, where it has one, must be the
// current one. out may be the same.
func (c *Client) Update(ctx context.Context, r Resource, namespace, name string, object, out runtime.Object) error {
	o := metav1.UpdateOptions{FieldManager: manager}
	return c.by[r.GroupVersion].Put().Namespace(namespace).Resource(r.Name).Name(name).
		VersionedParams(&o, c.param).Body(object).Do(unlogged(ctx)).Into(out)
}

// Patch changes part of an object. dry: the API server says what it would answer,
// and does nothing.
func (c *Client) Patch(ctx context.Context, r Resource, namespace, name string, kind types.PatchType, patch []byte, dry bool, out runtime.Object) error {
	o := metav1.PatchOptions{FieldManager: manager}
	if dry {
		o.DryRun = []string{metav1.DryRunAll}
	}
	return c.by[r.GroupVersion].Patch(kind).Namespace(namespace).Resource(r.Name).Name(name).
		VersionedParams(&o, c.param).Body(patch).Do(unlogged(ctx)).Into(out)
}

// Delete removes an object, if it still is the one that the preconditions name.
func (c *Client) Delete(ctx context.Context, r Resource, namespace, name string, o metav1.DeleteOptions) error {
	return c.by[r.GroupVersion].Delete().Namespace(namespace).Resource(r.Name).Name(name).Body(&o).Do(unlogged(ctx)).Error()
}

// Package node plays the nodes of a cluster: kubelets that pull from real
// registries and run nothing, but report what the real ones would.
//
// The process in an image behaves as the image says, by the environment in its
// configuration: see stage.Behaviour, and the app of e2e that does the same for
// real. A pod gets there as on a real node: its images are pulled by the credentials
// it names, by its pull policy and for the node's architecture, the Secrets and
// ConfigMaps that it needs must exist, its containers start, fail, are started again
// with a back-off, are found ready by their probes, end when they are told to, and
// what the node sees is in the pod's status. Exec, the network, resources and
// volumes are not played.
package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"k8s.io/klog/v2"
)

// Spec says how a node differs from a plain one.
type Spec struct {
	Name string
	// Arch is this machine's, if empty.
	Arch string
	// Runtime is Containerd, if empty.
	Runtime Runtime
	// Taint, if set, keeps away the pods that do not tolerate this key.
	Taint string
	// Still: the pods on it stay as they are.
	Still bool
}

// Foreign is the taint of the node whose architecture is another than this
// machine's, so that only pods that tolerate it get there.
const Foreign = "e2e.updaterd.dev/foreign"

// Usual are the nodes that most tests want: "one", "two", and "foreign".
func Usual() []Spec {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	return []Spec{{Name: "one"}, {Name: "two"}, {Name: "foreign", Arch: other, Taint: Foreign}}
}

// Node is one that is played.
type Node struct {
	Spec
	fleet *Fleet
	away  atomic.Bool

	mu     sync.Mutex
	images map[string]*image
}

// Fleet is all nodes of a cluster.
type Fleet struct {
	client kubernetes.Interface
	nodes  map[string]*Node
	// registries is how images are pulled: from registries on loopback with any
	// certificate.
	registries http.RoundTripper
	addresses  atomic.Int32
	logs       *logServer
	cancel     context.CancelFunc
	work       sync.WaitGroup

	mu   sync.Mutex
	pods map[types.UID]*pod
}

// Start registers the nodes and plays them until Stop. It returns when pods can be
// put on them.
func Start(ctx context.Context, config *rest.Config, specs ...Spec) (*Fleet, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	rt := http.DefaultTransport.(*http.Transport).Clone()
	rt.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	f := &Fleet{client: client, nodes: map[string]*Node{}, registries: rt, pods: map[types.UID]*pod{}}
	if f.logs, err = serveLogs(f); err != nil {
		return nil, err
	}
	// client-go logs it as an error when a request is broken off, as those of a pod are
	// that goes. It would be said on the screen of a demo.
	life, cancel := context.WithCancel(klog.NewContext(context.Background(), klog.Logger{}))
	f.cancel = cancel
	for _, s := range specs {
		s.Arch = cmp.Or(s.Arch, runtime.GOARCH)
		s.Runtime = cmp.Or(s.Runtime, Containerd)
		n := &Node{Spec: s, fleet: f, images: map[string]*image{}}
		f.nodes[s.Name] = n
		if err := errors.Join(n.register(ctx), n.setReady(ctx, true), n.renew(ctx)); err != nil {
			f.Stop()
			return nil, fmt.Errorf("register node %s: %w", s.Name, err)
		}
		f.work.Go(func() { n.beat(life) })
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	_, err = factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { f.see(life, o.(*corev1.Pod)) },
		UpdateFunc: func(_, o any) { f.see(life, o.(*corev1.Pod)) },
		DeleteFunc: func(o any) {
			if p, ok := o.(*corev1.Pod); ok {
				f.forget(p.UID)
			}
		},
	})
	if err != nil {
		f.Stop()
		return nil, err
	}
	factory.Start(life.Done())
	f.work.Go(func() {
		<-life.Done()
		factory.Shutdown()
	})
	for _, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok {
			f.Stop()
			return nil, fmt.Errorf("list the pods: %w", context.Cause(ctx))
		}
	}
	return f, nil
}

// Stop ends the playing; the nodes stay registered, and pods as they are.
func (f *Fleet) Stop() {
	f.cancel()
	f.work.Wait()
	f.logs.close()
}

// Node is that of the name.
func (f *Fleet) Node(name string) *Node { return f.nodes[name] }

func (f *Fleet) see(ctx context.Context, p *corev1.Pod) {
	n := f.nodes[p.Spec.NodeName]
	if n == nil || n.Still || ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.pods[p.UID]; a != nil {
		a.tell(p)
		return
	}
	a := newPod(n, p)
	f.pods[p.UID] = a
	life, end := context.WithCancel(ctx)
	a.end = end
	f.work.Go(func() { a.run(life) })
}

// forget ends a pod that is gone: one that was deleted by force is told nothing
// else.
func (f *Fleet) forget(uid types.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.pods[uid]; a != nil {
		a.end()
		delete(f.pods, uid)
	}
}

// address is a new one for a pod. Nothing listens there.
func (f *Fleet) address() string {
	n := f.addresses.Add(1)
	return net.IPv4(10, 97, byte(n>>8), byte(n)).String()
}

// Lose cuts a node off, until Find: it says nothing more, and the cluster takes it
// for not ready.
func (n *Node) Lose(ctx context.Context) error {
	n.away.Store(true)
	return n.setReady(ctx, false)
}

// Find ends a Lose.
func (n *Node) Find(ctx context.Context) error {
	n.away.Store(false)
	return n.setReady(ctx, true)
}

func (n *Node) lost() bool { return n.away.Load() }

func (n *Node) register(ctx context.Context) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: map[string]string{
		corev1.LabelHostname: n.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: n.Arch,
	}}}
	if n.Taint != "" {
		node.Spec.Taints = []corev1.Taint{{Key: n.Taint, Effect: corev1.TaintEffectNoSchedule}}
	}
	_, err := n.fleet.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (n *Node) setReady(ctx context.Context, ready bool) error {
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("10000"), corev1.ResourceMemory: resource.MustParse("100Ti"),
		corev1.ResourcePods: resource.MustParse("100000"), corev1.ResourceEphemeralStorage: resource.MustParse("100Ti"),
	}
	return retry.RetryOnConflict(retry.DefaultRetry, func() error { // a controller writes it as well
		node, err := n.fleet.client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Capacity, node.Status.Allocatable = room, room
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
		node.Status.DaemonEndpoints.KubeletEndpoint.Port = n.fleet.logs.port
		node.Status.NodeInfo = corev1.NodeSystemInfo{
			Architecture: n.Arch, OperatingSystem: "linux", KubeletVersion: "v1.37.2", ContainerRuntimeVersion: string(n.Runtime) + "://2.0.0",
		}
		c := corev1.NodeCondition{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
		}
		if !ready {
			c.Status, c.Reason = corev1.ConditionFalse, "KubeletNotReady"
		}
		node.Status.Conditions = []corev1.NodeCondition{c}
		_, err = n.fleet.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
		return err
	})
}

// beat renews the node's Lease, without which the cluster takes it for lost after
// 40 s.
func (n *Node) beat(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !n.lost() {
			_ = n.renew(ctx) // The next is soon enough.
		}
	}
}

func (n *Node) renew(ctx context.Context) error {
	leases := n.fleet.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(40)
	l, err := leases.Get(ctx, n.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &n.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, metav1.CreateOptions{})
		if apierrors.IsNotFound(err) {
			return nil // The namespace comes with the controllers.
		}
		return err
	}
	if err != nil {
		return err
	}
	l.Spec.RenewTime = &now
	_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	return err
}

// image is one for a container: the one at hand, if its pull policy allows, or
// else pulled.
func (n *Node) image(ctx context.Context, p *pod, c *corev1.Container) (*image, error) {
	n.mu.Lock()
	have := n.images[named(c.Image)]
	n.mu.Unlock()
	switch {
	case c.ImagePullPolicy == corev1.PullNever && have == nil:
		//lint:ignore ST1005 These are the words of a kubelet.
		return nil, fmt.Errorf("Container image %q is not present with pull policy of Never", c.Image)
	case have != nil && c.ImagePullPolicy != corev1.PullAlways:
		return have, nil
	}
	keys := keychain{}
	for _, ref := range p.spec().ImagePullSecrets {
		s, err := p.secret(ctx, ref.Name)
		if err == nil {
			err = keys.add(s)
		}
		if err != nil {
			continue // A kubelet tries without it.
		}
	}
	img, err := pull(ctx, c.Image, n.Arch, keys, n.fleet.registries)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.images[named(c.Image)] = img
	if n.Runtime != Sideloaded {
		// Who has pulled a tag has what it stood for by its digest, too.
		n.images[img.repository+"@"+img.index.String()] = img
	}
	return img, nil
}

// named is a reference as runtimes keep images by it: where there is a digest, the
// tag says nothing.
func named(ref string) string {
	name, digest, ok := strings.Cut(ref, "@")
	if !ok {
		return ref
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name + "@" + digest
}

// Images are the references that the node holds an image of.
func (n *Node) Images() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var refs []string
	for ref := range n.images {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, strings.Compare)
	return refs
}

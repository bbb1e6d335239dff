// Package control runs private Kubernetes control planes: etcd, an API server, a
// controller-manager and a scheduler, without root, on ports of their own on
// loopback. They start in seconds, may be killed and restarted at will, end with
// this process at the latest, and leave nothing behind.
//
// No pod runs in one by itself: see package node.
package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/updaterd/updaterd/e2e/program"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	dirPattern = "updaterd-cluster-*"
	// It is ready in 4 s on an idle machine.
	startTimeout = 2 * time.Minute
)

// controllers are those that the tests look at, or that these need.
var controllers = []string{
	"deployment-controller", "replicaset-controller", "statefulset-controller", "daemonset-controller",
	"job-controller", "cronjob-controller", "endpointslice-controller", "disruption-controller",
	"namespace-controller", "garbage-collector-controller", "serviceaccount-controller",
	"serviceaccount-token-controller", "root-ca-certificate-publisher-controller", "pod-garbage-collector-controller",
	"ttl-after-finished-controller", "node-lifecycle-controller", "taint-eviction-controller",
	"clusterrole-aggregation-controller", "resourcequota-controller",
}

// Plane is a control plane. Its methods are not for concurrent use.
type Plane struct {
	// URL is that of the API server, which outlives its restarts.
	URL string
	// Dir holds all files of the control plane.
	Dir string
	// Kubeconfig is the path of one for the cluster's admin.
	Kubeconfig string
	// Programs are those of this Kubernetes.
	Programs Programs

	lock     *os.File
	tokens   map[string]string
	etcd     string
	peer     string
	port     string
	children map[string]*program.Child
}

// Start runs a new control plane and returns when it is of use: the API server
// answers, and the controllers have made what every namespace has. What those of
// killed processes left behind is removed first. Several may run side by side.
func Start(ctx context.Context, programs Programs) (*Plane, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("a private control plane needs Linux")
	}
	sweep()
	dir, err := os.MkdirTemp("", dirPattern)
	if err != nil {
		return nil, err
	}
	p := &Plane{Dir: dir, Kubeconfig: filepath.Join(dir, "kubeconfig"), Programs: programs, children: map[string]*program.Child{}}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := p.prepare(); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	for _, step := range []func(context.Context) error{p.startEtcd, p.StartServer, p.startScheduler, p.StartControllers} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("start a control plane: %w", err), p.Stop())
		}
	}
	return p, nil
}

func (p *Plane) prepare() error {
	var err error
	// The lock is what tells a sweep that somebody still owns the directory; it
	// gets its name only when it is held.
	if p.lock, err = os.Create(p.file("lock.new")); err != nil {
		return err
	}
	if err = unix.Flock(int(p.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if err = os.Rename(p.lock.Name(), p.file("lock")); err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	p.etcd, p.peer, p.port = "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1], ports[2]
	p.URL = "https://127.0.0.1:" + p.port
	if err = p.writeKeys(); err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	return errors.Join(
		p.WriteKubeconfig(p.Kubeconfig, p.URL, p.tokens["admin"]),
		p.WriteKubeconfig(p.file("controllers.kubeconfig"), p.URL, p.tokens["system:kube-controller-manager"]),
		p.WriteKubeconfig(p.file("scheduler.kubeconfig"), p.URL, p.tokens["system:kube-scheduler"]))
}

// freePorts are ports on loopback that nothing listens on, all different.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// Config is how the cluster's admin reaches the API server.
func (p *Plane) Config() *rest.Config {
	return &rest.Config{
		Host: p.URL, BearerToken: p.tokens["admin"], QPS: 1000, Burst: 2000,
		TLSClientConfig: rest.TLSClientConfig{CAFile: p.file("ca.crt")},
	}
}

// AdminToken is that of the cluster's admin.
func (p *Plane) AdminToken() string { return p.tokens["admin"] }

func (p *Plane) startEtcd(ctx context.Context) error {
	return p.start(ctx, "etcd", nil,
		"--name=test", "--data-dir="+p.file("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+p.etcd, "--advertise-client-urls="+p.etcd,
		"--listen-peer-urls="+p.peer, "--initial-advertise-peer-urls="+p.peer, "--initial-cluster=test="+p.peer)
}

// StartServer starts the API server, after KillServer too, and returns when it is
// ready.
func (p *Plane) StartServer(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(p.Config())
	if err != nil {
		return err
	}
	ready := func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}
	return p.start(ctx, "kube-apiserver", ready,
		"--etcd-servers="+p.etcd, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+p.port,
		"--endpoint-reconciler-type=none",
		"--tls-cert-file="+p.file("server.crt"), "--tls-private-key-file="+p.file("server.key"), "--cert-dir="+p.Dir,
		"--token-auth-file="+p.file("tokens.csv"), "--authorization-mode=RBAC",
		"--service-cluster-ip-range=10.96.0.0/24", "--allow-privileged=true",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+p.file("accounts.pub"), "--service-account-signing-key-file="+p.file("accounts.key"),
		"--kubelet-preferred-address-types=InternalIP", "--profiling=false", "--enable-priority-and-fairness=false")
}

func (p *Plane) startScheduler(ctx context.Context) error {
	return p.start(ctx, "kube-scheduler", nil,
		"--kubeconfig="+p.file("scheduler.kubeconfig"), "--secure-port=0", "--leader-elect=false", "--profiling=false",
		"--kube-api-qps=1000", "--kube-api-burst=2000")
}

// StartControllers starts the controller-manager, after KillControllers too: it begins
// by reading all that there is.
func (p *Plane) StartControllers(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(p.Config())
	if err != nil {
		return err
	}
	settled := func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			_, err = client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		}
		return err
	}
	return p.start(ctx, "kube-controller-manager", settled,
		"--kubeconfig="+p.file("controllers.kubeconfig"), "--secure-port=0", "--leader-elect=false", "--profiling=false",
		"--service-account-private-key-file="+p.file("accounts.key"), "--root-ca-file="+p.file("ca.crt"),
		"--use-service-account-credentials=false", "--kube-api-qps=1000", "--kube-api-burst=2000",
		"--concurrent-deployment-syncs=10", "--concurrent-replicaset-syncs=10",
		"--controllers="+strings.Join(controllers, ","))
}

// KillControllers ends the controller-manager as kill -9 does, and returns when it is
// gone.
func (p *Plane) KillControllers() { p.kill("kube-controller-manager") }

// KillServer ends the API server as kill -9 does, and returns when it is gone.
func (p *Plane) KillServer() { p.kill("kube-apiserver") }

func (p *Plane) kill(component string) {
	if c := p.children[component]; c != nil {
		c.End()
		delete(p.children, component)
	}
}

// LogTail returns the last lines that a component wrote.
func (p *Plane) LogTail(component string, lines int) string {
	return program.Tail(p.file(component+".log"), lines)
}

// start runs a component and waits until it is ready, when that can be asked.
func (p *Plane) start(ctx context.Context, component string, ready func(context.Context) error, args ...string) error {
	cmd := exec.Command(p.Programs.Kubernetes(), append([]string{component}, args...)...)
	cmd.Dir = p.Dir
	c, err := program.Start(cmd, p.file(component+".log"), syscall.SIGKILL)
	if err != nil {
		return err
	}
	p.children[component] = c
	if ready == nil {
		return nil
	}
	if err := c.Await(ctx, ready); err != nil {
		return fmt.Errorf("%s: %w", component, err)
	}
	return nil
}

// Stop ends everything and removes every trace. It may be called twice.
func (p *Plane) Stop() error {
	if p.Dir == "" {
		return nil
	}
	for _, component := range []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"} {
		p.kill(component)
	}
	errs := []error{os.RemoveAll(p.Dir)}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	p.Dir, p.lock = "", nil
	return errors.Join(errs...)
}

// sweep removes the files of those whose owner was killed. Their processes ended
// with it.
func sweep() {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPattern))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			// An error leaves the directory for the next sweep.
			_ = os.RemoveAll(dir)
		}
		lock.Close()
	}
}

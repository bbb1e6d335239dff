// Package kubelet runs a real node in a private control plane: containerd, runc, a
// kubelet, and a bridge for the pods, on a machine of its own (see Alone). It needs
// root. What it does not have is kube-proxy and names: the only Service that leads
// anywhere is "kubernetes".
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/updaterd/updaterd/e2e/cluster/control"
	"github.com/updaterd/updaterd/e2e/program"
)

const (
	// Address is the node's. What is to be reached from pods and from the machine by
	// the same name listens there.
	Address = "10.98.0.1"
	// Name is the node's.
	Name = "real"

	// service is the address of the Service "kubernetes".
	service = "10.96.0.1"
	subnet  = "10.99.0.0/24"
	bridge  = "cni-updaterd"
)

// Programs are where the programs of a node are.
type Programs struct {
	kubelet, cni           string // built: the program, and a directory
	containerd, runc, shim string // Debian's
}

// Get makes the programs ready: packages are installed (that needs root), sources, the
// modules kubernetes and cni in this directory, are built and kept for the next time,
// which takes some minutes. It writes to out what it does.
func Get(ctx context.Context, sources string, out io.Writer) (Programs, error) {
	var p Programs
	for _, tool := range []struct {
		path      *string
		name, pkg string
	}{
		{&p.containerd, "containerd", "containerd"}, {&p.shim, "containerd-shim-runc-v2", "containerd"}, {&p.runc, "runc", "runc"},
		{new(string), "ip", "iproute2"}, {new(string), "mount", "mount"},
	} {
		path, err := program.Get(ctx, tool.name, tool.pkg, out)
		if err != nil {
			return p, err
		}
		*tool.path = path
	}
	plugins := program.Module{Dir: filepath.Join(sources, "cni")}
	how := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o"}
	var err error
	p.cni, err = program.Built(ctx, "cluster", "cni", program.Sources{Files: plugins.Pins(), How: fmt.Sprint(how)}, out, func(ctx context.Context, into string) error {
		_, err := plugins.Go(ctx, slices.Concat(how, []string{into + "/", "tool"})...)
		return err
	})
	if err != nil {
		return p, err
	}
	kubelet, err := control.GetKubelet(ctx, filepath.Join(sources, "kubernetes"), out)
	p.kubelet = kubelet
	return p, err
}

// Node is one under way.
type Node struct {
	dir      string
	children []*program.Child
	listen   []net.Listener
}

// Start makes the machine a node of the plane, and returns when pods can be put on it.
// pause is the image that holds a pod's namespaces; registries are their addresses on
// Address, which speak plain HTTP.
func Start(ctx context.Context, plane *control.Plane, programs Programs, pause string, registries ...string) (_ *Node, err error) {
	n := &Node{dir: os.Getenv(inside)}
	if n.dir == "" {
		return nil, errors.New("call Alone from TestMain")
	}
	defer func() {
		if err != nil {
			n.Stop()
		}
	}()
	server, err := url.Parse(plane.URL)
	if err != nil {
		return nil, err
	}
	if err := n.forward(service+":443", server.Host); err != nil {
		return nil, err
	}
	if err := n.write(plane, programs, pause, registries); err != nil {
		return nil, err
	}
	if err := n.run(ctx, exec.Command(programs.containerd, "--config", n.file("containerd.toml")), func(ctx context.Context) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", n.file("containerd.sock"))
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(plane.Config())
	if err != nil {
		return nil, err
	}
	return n, n.run(ctx, exec.Command(programs.kubelet, "--config="+n.file("kubelet.yaml"), "--kubeconfig="+plane.Kubeconfig,
		"--hostname-override="+Name, "--node-ip="+Address, "--root-dir="+n.file("kubelet"), "--cert-dir="+n.file("pki")), func(ctx context.Context) error {
		node, err := client.CoreV1().Nodes().Get(ctx, Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready", Name)
	})
}

func (n *Node) file(name string) string { return filepath.Join(n.dir, name) }

func (n *Node) run(ctx context.Context, cmd *exec.Cmd, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	name := filepath.Base(cmd.Path)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(cmd.Path)+":"+os.Getenv("PATH")+":"+program.Sbin)
	c, err := program.Start(cmd, n.file(name+".log"), syscall.SIGKILL)
	if err != nil {
		return err
	}
	n.children = append(n.children, c)
	return c.Await(ctx, ready)
}

// forward has connections to one address go on to another.
func (n *Node) forward(from, to string) error {
	l, err := net.Listen("tcp", from)
	if err != nil {
		return err
	}
	n.listen = append(n.listen, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // It was closed.
			}
			go func() {
				defer c.Close()
				d, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer d.Close()
				go func() {
					io.Copy(d, c)                 //nolint:errcheck // Either end may break it.
					d.(*net.TCPConn).CloseWrite() //nolint:errcheck // So may this.
				}()
				io.Copy(c, d) //nolint:errcheck // Either end may break it.
			}()
		}
	}()
	return nil
}

// Logs are the last lines of what the kubelet and containerd wrote.
func (n *Node) Logs() string {
	return program.Tail(n.file("kubelet.log"), 30) + "\n" + program.Tail(n.file("containerd.log"), 30)
}

func (n *Node) write(plane *control.Plane, p Programs, pause string, registries []string) error {
	files := map[string]string{
		"cni/10-bridge.conflist": fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "updaterd", "plugins": [{"type": "bridge", "bridge": %q,
 "isGateway": true, "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`,
			bridge, n.file("addresses"), subnet),
		"containerd.toml": fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  stream_server_address = "127.0.0.1"
  # The kubelet asks for less than a machine in a machine may set.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = %q
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = %q
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = %q
`, n.file("root"), n.file("state"), n.file("containerd.sock"), pause, p.shim, p.runc, p.cni, n.file("cni"), n.file("registries")),
		"kubelet.yaml": fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
healthzPort: 0
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupRoot: /%s
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
volumePluginDir: %s
podLogsDir: %s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
clusterDNS: [%s] # nothing answers there
`, Address, n.file("containerd.sock"), filepath.Base(n.dir), n.file("volumeplugins"), n.file("podlogs"), Address),
	}
	for _, host := range registries {
		files["registries/"+host+"/hosts.toml"] = fmt.Sprintf("server = %[1]q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+host)
	}
	for name, content := range files {
		path := n.file(name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends the node, after which nothing becomes of its pods.
func (n *Node) Stop() {
	for _, l := range n.listen {
		l.Close()
	}
	for _, c := range slices.Backward(n.children) {
		c.End()
	}
	n.listen, n.children = nil, nil
}

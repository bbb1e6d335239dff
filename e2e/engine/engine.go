// Package engine runs private Docker Engines: started for one run, killed and
// restarted at will, and gone without a trace afterwards. It needs Linux, root
// and dockerd.
//
// A private engine never touches what a Docker that is already on the machine
// lives by: it has its own directories, bridge, address range and cgroup, adds
// no firewall rules but one for its own addresses (a second dockerd that does
// would flush those of the first), and leaves IP forwarding as it is. Published
// ports are therefore served by docker-proxy, and containers cannot reach the
// internet.
package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/updaterd/updaterd/e2e/program"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	dirPattern   = "updaterd-engine-*"
	startTimeout = 60 * time.Second
	// Idle containers stop at once; those that ignore SIGTERM get this long.
	shutdownTimeout = 5 * time.Second
)

// Options say how an engine differs from a plain one.
type Options struct {
	// DataSize, above zero, limits images, containers and volumes together to
	// that many bytes (on a tmpfs), so that a full disk can be had.
	DataSize int64
	// Kind is the sort of engine; AtHand means what $UPDATERD_ENGINE says. Its
	// programs must be ready: see Get.
	Kind Kind
}

// Engine is a private engine. Its methods are not for concurrent use.
type Engine struct {
	// Host is what DOCKER_HOST must be to reach it.
	Host string
	// Front is Host, or where a proxy stands before the engine that proxy: it is
	// for those who shall not do more than they have to.
	Front string
	// Dir holds all files of the engine.
	Dir string
	// Subnet is this engine's share of addresses, a /21. Its default bridge and
	// the networks made on it take theirs from the lower half.
	Subnet netip.Prefix
	// Spare is the upper half of Subnet, a /22: for networks that are made with a
	// subnet of their own.
	Spare netip.Prefix

	opts  Options
	slot  int
	lock  *os.File
	child *program.Child // dockerd; nil when it does not run
	proxy *program.Child
	// timers ends checkHealth; nil where the engine checks by itself.
	timers context.CancelFunc
}

// Available says what a private engine lacks on this machine; nil when nothing.
func Available() error {
	if runtime.GOOS != "linux" {
		return errors.New("a private Docker Engine needs Linux: start Docker and set DOCKER_HOST")
	}
	if os.Geteuid() != 0 {
		return errors.New("a private Docker Engine needs root: start Docker and set DOCKER_HOST, or run as root")
	}
	needs, pkg := "dockerd", "docker.io"
	if kindOf(AtHand) == Podman {
		needs, pkg = "podman", "podman"
	}
	if program.Path(needs) == "" {
		return fmt.Errorf("a private engine needs %s: install the package %s (Debian, Ubuntu), or start Docker and set DOCKER_HOST", needs, pkg)
	}
	return nil
}

// dockerd is the path of the program, or empty.
func dockerd() string { return program.Path("dockerd") }

// Find returns the host of an engine that answers: the one DOCKER_HOST names,
// or else the one at the default socket. With neither, host is empty.
func Find(ctx context.Context) (host string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, host := range []string{os.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock"} {
		if host != "" && Ping(ctx, host) == nil {
			return host
		}
	}
	return ""
}

// Ping asks the engine at host for a sign of life, once. TLS is not offered.
func Ping(ctx context.Context, host string) error {
	network, addr, ok := strings.Cut(host, "://")
	if !ok || (network != "unix" && network != "tcp") {
		return fmt.Errorf("host %q: want unix://PATH or tcp://HOST:PORT", host)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping of %s: %s", host, resp.Status)
	}
	return nil
}

// Start runs a new engine and returns when it answers. What engines of killed
// processes left behind is removed first. Several may run side by side.
func Start(ctx context.Context, opts Options) (*Engine, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	opts.Kind = kindOf(opts.Kind)
	sweep()
	dir, err := os.MkdirTemp("", dirPattern)
	if err != nil {
		return nil, err
	}
	e := &Engine{Dir: dir, Host: "unix://" + filepath.Join(dir, "docker.sock"), opts: opts, slot: -1}
	e.Front = e.Host
	if err = e.prepare(); err == nil {
		err = e.launch(ctx)
	}
	if err == nil && opts.Kind == Proxied {
		err = e.launchProxy(ctx)
	}
	if err == nil && opts.Kind == Podman {
		var timed context.Context
		timed, e.timers = context.WithCancel(context.Background())
		go checkHealth(timed, e.Host)
	}
	if err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

func (e *Engine) prepare() error {
	var err error
	// The lock is what tells a sweep that somebody still owns the directory;
	// it gets its name only when it is held.
	if e.lock, err = os.Create(filepath.Join(e.Dir, "lock.new")); err != nil {
		return err
	}
	if err = unix.Flock(int(e.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if err = os.Rename(e.lock.Name(), filepath.Join(e.Dir, "lock")); err != nil {
		return err
	}
	if err = e.addBridge(); err != nil {
		return err
	}
	if err = os.WriteFile(filepath.Join(e.Dir, "slot"), []byte(strconv.Itoa(e.slot)), 0o600); err != nil {
		return err
	}
	openFirewall(e.Subnet)
	data := filepath.Join(e.Dir, "data")
	if err = os.Mkdir(data, 0o711); err != nil {
		return err
	}
	if e.opts.DataSize > 0 {
		if err = unix.Mount("tmpfs", data, "tmpfs", 0, fmt.Sprintf("size=%d,mode=711", e.opts.DataSize)); err != nil {
			return fmt.Errorf("mount a small tmpfs for the engine's data: %w", err)
		}
	}
	if e.opts.Kind == Podman {
		return e.preparePodman()
	}
	pool := part(e.Subnet, 2, 23)
	config, err := json.Marshal(map[string]any{
		"default-address-pools": []any{map[string]any{"base": pool.String(), "size": 27}},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.Dir, "daemon.json"), config, 0o600)
}

// launch starts the engine and waits until it answers.
func (e *Engine) launch(ctx context.Context) error {
	var err error
	e.child, err = e.start(ctx, e.command(), e.Host)
	return err
}

// command is what runs the engine.
func (e *Engine) command() *exec.Cmd {
	if e.opts.Kind == Podman {
		return podman(context.Background(), e.Dir, "system", "service", "--time=0", e.Host)
	}
	join := func(name string) string { return filepath.Join(e.Dir, name) }
	args := []string{
		"--config-file", join("daemon.json"),
		"--data-root", join("data"),
		"--exec-root", join("exec"),
		"--pidfile", join("pid"),
		"--host", e.Host,
		"--bridge", bridgeName(e.slot),
		"--iptables=false", "--ip-masq=false", "--ip-forward=false",
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--cgroup-parent", "/" + bridgeName(e.slot),
		"--shutdown-timeout", strconv.Itoa(int(shutdownTimeout.Seconds())),
	}
	if e.opts.Kind == Docker29 {
		// Its runc is built without libseccomp.
		args = append(args, "--seccomp-profile", "unconfined", "--ip6tables=false")
	}
	cmd := exec.Command(dockerd(), args...)
	cmd.Env = os.Environ()
	return cmd
}

// start runs a program of the engine and waits until host answers. A program that
// does not answer in time goes on.
func (e *Engine) start(ctx context.Context, cmd *exec.Cmd, host string) (*program.Child, error) {
	path := os.Getenv("PATH") + ":" + program.Sbin
	if e.opts.Kind == Podman {
		path = filepath.Join(e.Dir, podmanPrograms) + ":" + path
	}
	cmd.Env = append(cmd.Env, "PATH="+path)
	c, err := program.Start(cmd, e.LogFile(), syscall.SIGTERM)
	if err != nil {
		return nil, fmt.Errorf("start a private engine: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err = c.Await(ctx, func(ctx context.Context) error { return Ping(ctx, host) })
	select {
	case <-c.Done:
		c = nil
	default:
	}
	if err != nil {
		return c, fmt.Errorf("start a private engine: %w", err)
	}
	return c, nil
}

// LogFile is where the engine writes what it says.
func (e *Engine) LogFile() string { return filepath.Join(e.Dir, "log") }

// LogTail returns the last lines that the engine wrote.
func (e *Engine) LogTail(lines int) string { return program.Tail(e.LogFile(), lines) }

// Pid is that of dockerd, or 0 when it does not run.
func (e *Engine) Pid() int {
	if e.child == nil {
		return 0
	}
	return e.child.Pid
}

// Kill ends dockerd and its containerd as kill -9 does, and returns when both
// are gone. Containers go on running. It does nothing when none runs.
func (e *Engine) Kill() error {
	if e.child == nil {
		return nil
	}
	containerd := e.containerdPid()
	if err := e.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-e.child.Done
	e.child = nil
	// containerd gets its SIGKILL from the kernel when dockerd ends; a new dockerd
	// that came before that was done would take it for a living one. So it would
	// where the machine's first process does not reap, as in many a container.
	if err := waitGone(containerd); err != nil {
		return err
	}
	if err := os.Remove(e.containerdPidFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Down ends the engine as an operator does: containers are stopped, but for
// those of Podman, which live by themselves. It does nothing when none runs.
func (e *Engine) Down() error {
	if e.child == nil {
		return nil
	}
	containerd := e.containerdPid()
	if err := e.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-e.child.Done:
	case <-time.After(4 * shutdownTimeout):
		return errors.Join(fmt.Errorf("dockerd did not end within %s of SIGTERM", 4*shutdownTimeout), e.Kill())
	}
	e.child = nil
	return waitGone(containerd)
}

// Up starts dockerd again after Kill or Down and returns when it answers.
func (e *Engine) Up(ctx context.Context) error {
	if e.child != nil {
		return nil
	}
	return e.launch(ctx)
}

// Freeze makes dockerd hang: connections are taken and never answered.
func (e *Engine) Freeze() error { return e.signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (e *Engine) Thaw() error { return e.signal(syscall.SIGCONT) }

func (e *Engine) signal(s syscall.Signal) error {
	if e.child == nil {
		return errors.New("dockerd does not run")
	}
	if err := e.child.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Stop ends the engine and everything on it, and removes every trace. It may
// be called twice.
func (e *Engine) Stop() error {
	if e.Dir == "" {
		return nil
	}
	var errs []error
	if e.timers != nil {
		e.timers()
	}
	if e.child != nil {
		errs = append(errs, e.Thaw(), e.Kill())
	}
	errs = append(errs, remove(e.Dir, e.slot))
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	e.Dir, e.lock = "", nil
	return errors.Join(errs...)
}

func (e *Engine) containerdPidFile() string {
	return filepath.Join(e.Dir, "exec/containerd/containerd.pid")
}

func (e *Engine) containerdPid() int {
	b, err := os.ReadFile(e.containerdPidFile())
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

func waitGone(pid int) error {
	if pid <= 0 {
		return nil
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if !alive(pid) {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return fmt.Errorf("process %d is still there after 10 s", pid)
}

// Bridges and addresses. The ranges are of 198.18.0.0/15, set aside by RFC 2544
// for tests of network devices, which no real network uses.

const slots = 64

func bridgeName(slot int) string { return "updaterd" + strconv.Itoa(slot) }

func slotSubnet(slot int) netip.Prefix {
	n := slot * 8
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18 + byte(n>>8), byte(n), 0}), 21)
}

// part is the prefix of so many bits that begins at the given /24 of p.
func part(p netip.Prefix, third byte, bits int) netip.Prefix {
	a := p.Addr().As4()
	a[2] += third
	return netip.PrefixFrom(netip.AddrFrom4(a), bits)
}

// addBridge takes the first free slot. That only one bridge can have a name is
// what makes the choice safe between processes.
func (e *Engine) addBridge() error {
	for slot := range slots {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName(slot)}}
		err := netlink.LinkAdd(link)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make the bridge %s: %w", link.Name, err)
		}
		e.slot, e.Subnet = slot, slotSubnet(slot)
		e.Spare = part(e.Subnet, 4, 22)
		addr, err := netlink.ParseAddr(netip.PrefixFrom(e.Subnet.Addr().Next(), 23).String())
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give the bridge %s the address %s: %w", link.Name, addr, err)
		}
		return netlink.LinkSetUp(link)
	}
	return fmt.Errorf("no free bridge of updaterd0 to updaterd%d: remove some with `ip link del`", slots-1)
}

// sweep removes what engines of processes that were killed left behind.
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
			slot := -1
			if b, err := os.ReadFile(filepath.Join(dir, "slot")); err == nil {
				slot, _ = strconv.Atoi(string(b))
			}
			// An error leaves the directory for the next sweep.
			_ = remove(dir, slot)
		}
		lock.Close()
	}
}

// remove ends all processes of the engine in dir, and deletes its mounts,
// bridges, cgroups and files.
func remove(dir string, slot int) error {
	var errs []error
	removePodman(dir)
	removeShimSockets(dir)
	endProcesses(dir)
	errs = append(errs, unmountUnder(dir))
	if slot >= 0 {
		closeFirewall(slotSubnet(slot))
		errs = append(errs, removeBridges(slotSubnet(slot)))
		removeCgroups(bridgeName(slot))
	}
	errs = append(errs, os.RemoveAll(dir))
	return errors.Join(errs...)
}

// removeShimSockets deletes the sockets of the containers' shims, which lie
// outside the engine's directory, and which a killed shim leaves.
func removeShimSockets(dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, "exec/containerd/daemon/*/moby/*/address"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if path, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "unix:///run/containerd/s/"); err == nil && ok {
			_ = os.Remove(filepath.Join("/run/containerd/s", filepath.Base(path)))
		}
	}
}

// endProcesses kills what works for the engine in dir, and the containers below.
func endProcesses(dir string) {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		parents := map[int]int{}
		var doomed []int
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err != nil || !alive(pid) {
				continue
			}
			parents[pid] = parent(pid)
			if works(pid, dir) {
				doomed = append(doomed, pid)
			}
		}
		if len(doomed) == 0 {
			return
		}
		for i := 0; i < len(doomed); i++ {
			for pid, p := range parents {
				if p == doomed[i] {
					doomed = append(doomed, pid)
				}
			}
		}
		// Children first: once a shim has gone, its container is nobody's.
		for i := len(doomed) - 1; i >= 0; i-- {
			_ = syscall.Kill(doomed[i], syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// works says whether the process is one of the engine's own programs in dir.
func works(pid int, dir string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(b, []byte(dir+"/")) {
		return false
	}
	program, _, _ := bytes.Cut(b, []byte{0})
	switch name := filepath.Base(string(program)); {
	case name == "dockerd", name == "containerd", name == "runc", name == "docker-proxy",
		name == "podman", name == "conmon", name == "haproxy":
		return true
	default:
		return strings.HasPrefix(name, "containerd-shim")
	}
}

// stat returns the state and the parent of a process, from /proc/PID/stat.
func stat(pid int) (state byte, ppid int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false
	}
	// The name, in brackets, may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 2 {
		return 0, 0, false
	}
	ppid, _ = strconv.Atoi(f[1])
	return f[0][0], ppid, true
}

func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != 'Z' && state != 'X'
}

func parent(pid int) int {
	_, ppid, _ := stat(pid)
	return ppid
}

func unmountUnder(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	var errs []error
	for i := len(lines) - 1; i >= 0; i-- {
		f := strings.Fields(lines[i])
		if len(f) < 5 || !strings.HasPrefix(f[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(f[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
		}
	}
	return errors.Join(errs...)
}

// removeBridges deletes every bridge with an address in the range: the one
// made by addBridge, and those of networks made on the engine.
func removeBridges(subnet netip.Prefix) error {
	links, err := netlink.LinkList()
	// Interfaces that come and go meanwhile make a list that may lack some.
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 20; try++ {
		links, err = netlink.LinkList()
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		if link.Type() != "bridge" {
			continue
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && subnet.Contains(ip) {
				errs = append(errs, netlink.LinkDel(link))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroups deletes the engine's cgroup in every hierarchy. A cgroup that
// still holds a dying process is left: it costs nothing.
func removeCgroups(name string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	roots = append(roots, "/sys/fs/cgroup/"+name)
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
	}
}

// Shared is an engine for many users: one that answers, or a private one that
// is started at the first call of Host and ended by Close.
type Shared struct {
	once    sync.Once
	host    string
	front   string
	err     error
	private *Engine
}

// Host returns where the engine is, and its Front.
func (s *Shared) Host(ctx context.Context) (host, front string, err error) {
	s.once.Do(func() {
		if s.host = Find(ctx); s.host != "" {
			s.front = cmp.Or(os.Getenv(FrontEnv), s.host)
			return
		}
		if s.private, s.err = Start(ctx, Options{}); s.err == nil {
			s.host, s.front = s.private.Host, s.private.Front
		}
	})
	return s.host, s.front, s.err
}

// Private says whether the engine was started by Host.
func (s *Shared) Private() bool { return s.private != nil }

// Close ends the engine if it is private.
func (s *Shared) Close() error {
	if s.private == nil {
		return nil
	}
	return s.private.Stop()
}

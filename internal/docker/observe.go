package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	probeLimit = 5 * time.Second
	// mostLog is how much of a container's last lines is kept.
	mostLog = 4 << 10
	// logLines bounds what the engine sends; long lines are cut to mostLog.
	logLines = "100"
	mostRead = 1 << 20
	// leastTimeout is the least time a container gets to become healthy.
	leastTimeout = 60 * time.Second
)

// Observe implements updater.Backend.
func (h *Host) Observe(ctx context.Context, c updater.Change, part int, s updater.Side) (updater.Observation, error) {
	all, err := pieces(c)
	if err != nil {
		return updater.Observation{}, err
	}
	p := all[part]
	b, err := h.at(ctx, p, s)
	if err != nil {
		return updater.Observation{}, err
	}
	fresh := s == updater.NewSide && p.Replace
	if b == nil {
		return h.vanished(ctx, p, fresh), nil
	}
	seen := observation(b)
	seen.Undone = fresh && b.name() != p.Name && !p.Overlap
	if seen.Undone && b.name() != p.Name+suffixNew {
		seen.Fault, seen.Blame = fmt.Sprintf("somebody renamed it to %s while it was being judged", b.name()), updater.Unclear
	}
	if s == updater.OldSide && b.ID == p.ID {
		seen.Restarts = restartsSince(b, p.origin)
	}
	if !seen.Running && !seen.Restarting && seen.Fault == "" && s == updater.NewSide {
		if was := readMark(c).Engine; was != "" {
			if now := h.incarnation(ctx); now != "" && now != was {
				seen.Fault, seen.Blame = "it was stopped by a restart of the engine", updater.Unclear
			}
		}
	}
	if s == updater.NewSide && seen.Fault == "" && stoppedByHand(b, h.isPodman()) {
		seen.Fault, seen.Blame = "somebody stopped it (docker stop) while it was being judged", updater.Unclear
	}
	if probe := p.Settings.Health.Probe; probe != "" && seen.Running && !seen.Paused {
		if seen.Probe, err = h.probe(ctx, b, probe); err != nil {
			return updater.Observation{}, err
		}
	}
	if !well(seen) {
		seen.Logs = h.logs(ctx, b)
	}
	return seen, nil
}

// vanished is what is known of a container that has gone. One that the engine
// removes when it ends (--rm) leaves its exit code in the engine's events.
func (h *Host) vanished(ctx context.Context, p piece, fresh bool) updater.Observation {
	gone := updater.Observation{Gone: true}
	if !p.Fleeting || !fresh {
		return gone
	}
	e, err := h.endOf(ctx, p)
	switch {
	case err != nil:
		h.log.Debug("engine does not tell how a container ended", "workload", p.Workload, "err", err)
		return gone
	case e.killed:
		return gone
	}
	return updater.Observation{ExitCode: e.code, OOMKilled: e.oom}
}

// fleetingFault is the fault of a new container that the engine removed because
// it had ended; nil if that is not what became of it.
func (h *Host) fleetingFault(ctx context.Context, p piece) error {
	if !p.Fleeting {
		return nil
	}
	e, err := h.endOf(ctx, p)
	if err != nil || e.killed {
		return nil // what nobody knows speaks against nobody
	}
	return &updater.Fault{Verdict: updater.Bad, Workload: p.Workload,
		Err: fmt.Errorf("it exited with code %d right after its start", e.code)}
}

// end is how a container ended that is not there any more.
type end struct {
	code int
	oom  bool
	// killed: somebody had the engine send it a signal, to stop or remove it.
	killed bool
}

// endLimit is how long the engine may take to tell of something that is over. It
// keeps a few hundred events, and does not say which is the last.
const endLimit = 3 * time.Second

// endOf asks the engine's events how the new container ended. They are found by
// its labels, since a crash may have come before its id was written down.
func (h *Host) endOf(ctx context.Context, p piece) (end, error) {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	names, last := []string{"kill", "oom", "die"}, events.ActionDie
	if h.isPodman() {
		names, last = []string{"kill", "stop", "cleanup", "died", "remove"}, events.ActionRemove
	}
	wanted := filters.NewArgs(filters.Arg("label", labelReplaces+"="+p.ID), filters.Arg("label", labelChange+"="+p.change))
	for _, name := range names {
		wanted.Add("event", name)
	}
	seen, failed := h.client().Events(ctx, events.ListOptions{Since: "0", Filters: wanted}) // all that it remembers
	var e end
	for {
		select {
		case m := <-seen:
			// To Podman one of several labels is enough.
			if of := m.Actor.Attributes; of[labelReplaces] != p.ID || of[labelChange] != p.change {
				continue
			}
			if err := e.hear(m, h.isPodman()); err != nil || m.Action == last {
				return e, err
			}
		case err := <-failed:
			return end{}, err
		}
	}
}

// hear takes in one of the container's events, which come in their order.
func (e *end) hear(m events.Message, podman bool) error {
	switch m.Action {
	case events.ActionKill:
		e.killed = true
	case events.ActionOOM:
		e.oom = true
	case events.ActionStop, "cleanup":
		// Podman tells of no signal when it stops a container: only afterwards that
		// it did, or that it took its things away, which else goes with its removal.
		e.killed = e.killed || podman
	case events.ActionDie:
		var err error
		if e.code, err = strconv.Atoi(m.Actor.Attributes["exitCode"]); err != nil {
			return fmt.Errorf("reading with what code a container ended: %w", err)
		}
		if podman && endsWhenStopped(e.code) {
			e.killed = true
		}
	}
	return nil
}

// at returns the container of one side; nil when it has gone.
func (h *Host) at(ctx context.Context, p piece, s updater.Side) (*box, error) {
	id := p.ID
	if s == updater.NewSide && p.Replace {
		id = p.made
	}
	if b, err := h.inspect(ctx, id); err != nil || b != nil || !p.Replace {
		return b, err
	}
	// The original may be a copy by now, and a mark may have been lost.
	b, err := h.find(ctx, p)
	if s == updater.NewSide {
		return b.new, err
	}
	return b.old, err
}

// observation is what one inspect tells.
func observation(b *box) updater.Observation {
	st := b.State
	seen := updater.Observation{
		Running: st.Running && !st.Restarting, Restarting: st.Restarting, Paused: st.Paused,
		ExitCode: st.ExitCode, OOMKilled: st.OOMKilled, Restarts: b.RestartCount,
		Health: engineHealth(b), HealthLog: healthLog(st.Health), Timeout: ownTimeout(b.Config.Healthcheck),
	}
	if t, err := time.Parse(time.RFC3339Nano, st.StartedAt); err == nil {
		seen.Started = t
	}
	if st.Error != "" && !st.Running {
		seen.Fault, seen.Blame = st.Error, blame(st.Error)
	}
	return seen
}

// stoppedByHand reports whether a person must have stopped a container: it
// ended by SIGTERM, or it stays stopped although its policy has the engine start
// it again whatever it ends with. The policy tells nothing on Podman, which
// shows a container as exited before it starts it again.
func stoppedByHand(b *box, podman bool) bool {
	if !b.started() || b.running() || b.State.Error != "" || b.State.OOMKilled {
		return false
	}
	if b.State.ExitCode == 128+int(syscall.SIGTERM) {
		return true
	}
	p := b.HostConfig.RestartPolicy
	return !podman && (p.IsAlways() || p.IsUnlessStopped())
}

// restartsSince leaves out the restarts of the original's life before. The
// engine counts from 0 again when it is asked to start a container.
func restartsSince(b *box, o origin) int {
	switch {
	case b.State.StartedAt == o.StartedAt:
		return 0
	case b.RestartCount >= o.Restarts:
		return b.RestartCount - o.Restarts
	}
	return b.RestartCount
}

func well(o updater.Observation) bool {
	return o.Running && !o.Restarting && !o.Paused && o.Fault == "" && !o.OOMKilled && o.Restarts == 0 &&
		o.Probe == "" && o.Health != updater.HealthUnhealthy && o.Health != updater.HealthStarting
}

// healthLog is what the last failed check printed.
func healthLog(hl *container.Health) string {
	if hl == nil {
		return ""
	}
	for i := len(hl.Log) - 1; i >= 0; i-- {
		if r := hl.Log[i]; r != nil && r.ExitCode != 0 {
			return tail(strings.TrimSpace(r.Output))
		}
	}
	return ""
}

// ownTimeout is how long a container with this health check may take until it
// is healthy: the start period, and then as many checks as the engine makes
// before it calls it unhealthy, and one more. Zero fields have the defaults of
// Docker's HEALTHCHECK.
func ownTimeout(check *container.HealthConfig) time.Duration {
	if check == nil || len(check.Test) == 0 || check.Test[0] == "NONE" {
		return leastTimeout
	}
	interval, timeout, retries := check.Interval, check.Timeout, check.Retries
	if interval == 0 {
		interval = 30 * time.Second
	}
	if timeout == 0 {
		timeout = 30 * time.Second
	}
	if retries == 0 {
		retries = 3
	}
	return max(leastTimeout, check.StartPeriod+time.Duration(retries+1)*(interval+timeout))
}

// logs are the last lines that a container wrote; "" when its logging driver
// cannot be read.
func (h *Host) logs(ctx context.Context, b *box) string {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	r, err := h.client().ContainerLogs(ctx, b.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: logLines})
	if err != nil {
		h.log.Debug("log cannot be read", "workload", h.name+"/"+b.name(), "err", err)
		return ""
	}
	defer r.Close()
	return lastLines(r, b.Config.Tty)
}

// lastLines reads an engine's stream of output. Without a terminal each piece
// has a header that says which of the two outputs it is from.
func lastLines(r io.Reader, tty bool) string {
	r = io.LimitReader(r, mostRead)
	var out bytes.Buffer
	if tty {
		_, _ = io.Copy(&out, r)
	} else {
		// A stream that is cut off still has its beginning.
		_, _ = stdcopy.StdCopy(&out, &out, r)
	}
	return tail(out.String())
}

// tail is the end of s, in whole characters, at most mostLog.
func tail(s string) string {
	s = strings.TrimRight(s, "\n")
	if len(s) > mostLog {
		s = s[len(s)-mostLog:]
		if _, rest, ok := strings.Cut(s, "\n"); ok && len(rest) > mostLog/2 {
			s = rest
		}
	}
	return strings.ToValidUTF8(s, "")
}

// probe asks a configured probe once: why is "" when it passes. An error means
// that the engine could not be asked.
func (h *Host) probe(ctx context.Context, b *box, spec string) (why string, err error) {
	if command, ok := strings.CutPrefix(spec, "exec:"); ok {
		argv, err := probeCommand(command)
		if err != nil {
			return err.Error(), nil
		}
		r, err := h.exec(ctx, b, updater.Hook{Command: argv, Timeout: probeLimit})
		switch {
		case err != nil && told(err):
			return err.Error(), nil // it may have ended meanwhile
		case err != nil:
			return "", err
		case r.TimedOut:
			return fmt.Sprintf("%s ran longer than %s", argv[0], probeLimit), nil
		case r.ExitCode != 0:
			return strings.TrimSpace(fmt.Sprintf("%s ended with exit code %d: %s", argv[0], r.ExitCode, r.Output)), nil
		}
		return "", nil
	}
	u, err := url.Parse(spec)
	if err != nil || u.Port() == "" {
		return fmt.Sprintf("probe %q cannot be read: write http://:8080/path, tcp://:5432 or exec:command", spec), nil
	}
	address := u.Hostname()
	if address == "" {
		if address = addressOf(b); address == "" {
			return "it has no address that updaterd could reach: use exec:", nil
		}
	}
	address = net.JoinHostPort(address, u.Port())
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	switch u.Scheme {
	case "tcp":
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err.Error(), nil
		}
		conn.Close()
		return "", nil
	case "http", "https":
		u.Host = address
		return probeHTTP(ctx, u), nil
	}
	return fmt.Sprintf("probe %q cannot be read: write http://:8080/path, tcp://:5432 or exec:command", spec), nil
}

func probeHTTP(ctx context.Context, u *url.URL) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err.Error()
	}
	// A fresh connection each time: one kept open would still reach a program
	// that takes no new ones.
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}).Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return "it answered " + resp.Status
	}
	return ""
}

// addressOf is where a container can be reached from the host.
func addressOf(b *box) string {
	if b.HostConfig.NetworkMode.IsHost() {
		return "127.0.0.1"
	}
	if b.NetworkSettings == nil {
		return ""
	}
	if e := b.NetworkSettings.Networks[string(b.HostConfig.NetworkMode)]; e != nil && e.IPAddress != "" {
		return e.IPAddress
	}
	for _, e := range b.NetworkSettings.Networks {
		if e != nil && e.IPAddress != "" {
			return e.IPAddress
		}
	}
	return ""
}

// probeCommand reads the command of an exec probe. Settings hold it as a JSON
// list however a person wrote it, so it is split in one place only.
func probeCommand(s string) ([]string, error) {
	var argv []string
	if err := json.Unmarshal([]byte(s), &argv); err != nil {
		return nil, fmt.Errorf("command %s is no JSON list of texts: %w", s, err)
	}
	if len(argv) == 0 {
		return nil, errors.New("the command is empty")
	}
	return argv, nil
}

// Exec implements updater.Backend. A command that runs longer than its timeout
// goes on running: an engine has no way to end one.
func (h *Host) Exec(ctx context.Context, c updater.Change, part int, s updater.Side, hook updater.Hook) (updater.Result, error) {
	all, err := pieces(c)
	if err != nil {
		return updater.Result{}, err
	}
	b, err := h.at(ctx, all[part], s)
	if err != nil {
		return updater.Result{}, err
	}
	if b == nil {
		return updater.Result{}, fmt.Errorf("container %s has gone: the command cannot be run in it", all[part].Name)
	}
	return h.exec(ctx, b, hook)
}

func (h *Host) exec(ctx context.Context, b *box, hook updater.Hook) (updater.Result, error) {
	cli := h.client()
	lookCtx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	created, err := cli.ContainerExecCreate(lookCtx, b.ID, container.ExecOptions{
		Cmd: hook.Command, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return updater.Result{}, fmt.Errorf("running a command in container %s: %w", b.name(), err)
	}
	runCtx := ctx
	if hook.Timeout > 0 {
		var cancel context.CancelFunc
		runCtx, cancel = context.WithTimeout(ctx, hook.Timeout)
		defer cancel()
	}
	conn, err := cli.ContainerExecAttach(runCtx, created.ID, container.ExecAttachOptions{})
	if err != nil {
		if runCtx.Err() != nil && ctx.Err() == nil {
			return updater.Result{TimedOut: true}, nil
		}
		return updater.Result{}, fmt.Errorf("running a command in container %s: %w", b.name(), err)
	}
	// The connection is a bare one, which no context ends.
	stop := context.AfterFunc(runCtx, conn.Close)
	var out lastBytes
	_, err = stdcopy.StdCopy(&out, &out, conn.Reader)
	stop()
	conn.Close()
	r := updater.Result{Output: tail(string(out))}
	switch {
	case ctx.Err() != nil:
		return updater.Result{}, fmt.Errorf("running a command in container %s: %w", b.name(), ctx.Err())
	case runCtx.Err() != nil:
		r.TimedOut = true
		return r, nil
	}
	if err != nil {
		h.log.Debug("output of a command was cut off", "workload", h.name+"/"+b.name(), "err", err)
	}
	return h.execResult(ctx, b, created.ID, r)
}

// execResult waits for the exit code, which an engine may write a moment after
// it has closed the output.
func (h *Host) execResult(ctx context.Context, b *box, id string, r updater.Result) (updater.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	for {
		ended, err := h.client().ContainerExecInspect(ctx, id)
		switch {
		case cerrdefs.IsNotFound(err):
			return updater.Result{}, fmt.Errorf("container %s was removed while a command ran in it: %w", b.name(), err)
		case err != nil:
			return updater.Result{}, fmt.Errorf("asking how a command in container %s ended: %w", b.name(), err)
		case !ended.Running:
			r.ExitCode = ended.ExitCode
			return r, nil
		}
		select {
		case <-ctx.Done():
			r.TimedOut = true
			return r, nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastBytes keeps the end of what is written to it.
type lastBytes []byte

func (l *lastBytes) Write(p []byte) (int, error) {
	*l = append(*l, p...)
	if len(*l) > 2*mostLog {
		*l = append((*l)[:0], (*l)[len(*l)-mostLog:]...)
	}
	return len(p), nil
}

// Package backendtest holds what every [updater.Backend] must do, and one
// backend, journal and registry that live in memory.
//
// The memory backend behaves like a Docker host: containers have ids and
// names, a change keeps the original stopped under another name, and every
// call that changes something can be made to fail, or the calling process to
// die, before or after the call was carried out.
package backendtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// Behaviour is what an image does when it is started.
type Behaviour string

// The behaviours.
const (
	Good        Behaviour = "good"
	Exits       Behaviour = "exits"        // with code 1, at once
	Unhealthy   Behaviour = "unhealthy"    // runs, and its health check fails
	TurnsSick   Behaviour = "turns-sick"   // healthy for 5 s, then not
	Hangs       Behaviour = "hangs"        // runs, and its health check never passes nor fails
	CannotStart Behaviour = "cannot-start" // the engine refuses to start it, and it is the image's fault
	PortTaken   Behaviour = "port-taken"   // the engine cannot start it, and it is not the image's fault
	OOM         Behaviour = "oom"          // is killed for want of memory
	CannotPull  Behaviour = "cannot-pull"
	SlowPull    Behaviour = "slow-pull"      // good, but pulling it takes an hour
	Same        Behaviour = "same"           // brings the image that runs already, as pulling it shows
	Foreign     Behaviour = "foreign"        // built for another platform, as pulling it shows
	Flaps       Behaviour = "flaps"          // healthy for 4 s, then failing its probe for 4 s, and so on
	Slow        Behaviour = "slow"           // healthy after 30 s
	Crashes     Behaviour = "crashes-at-3-s" // exits with code 1 after 3 s
)

// Host is a Docker host in memory. It survives the processes that use it:
// each gets its own Backend from Process.
type Host struct {
	mu     sync.Mutex
	boxes  map[string]*box      // by id
	images map[string]Behaviour // by digest
	next   int
	down   bool
	ran    []string // what was run in containers, as "side: command"
}

// box is one container.
type box struct {
	ID, Name, Ref, Digest string
	Config                string // stands for all that a person configured
	Running               bool
	Exit                  int
	Restart               string // restart policy
	Replaces, Change      string // labels of the new side
	CopyOf                string // label of a copy: the id of the original
	Started               time.Time
}

// NewHost returns an empty host.
func NewHost() *Host {
	return &Host{boxes: map[string]*box{}, images: map[string]Behaviour{}}
}

// Image makes an image known under a digest.
func (h *Host) Image(digest string, b Behaviour) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.images[digest] = b
}

// Run creates and starts a container as a person would.
func (h *Host) Run(name, ref, digest, restart string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.create(name, ref, digest, "config of "+name, restart)
	h.start(b)
}

// Remove takes a container away as a person would.
func (h *Host) Remove(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.named(name); b != nil {
		delete(h.boxes, b.ID)
	}
}

// Down makes the host unreachable, or reachable again.
func (h *Host) Down(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = down
}

// Container is what a person sees of one container.
type Container struct {
	ID, Name, Ref, Digest, Config, Restart string
	Running                                bool
}

// Stop stops a container as a person would.
func (h *Host) Stop(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.named(name); b != nil {
		b.Running = false
	}
}

// Kill ends the engine and every container, as a power cut would.
func (h *Host) Kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = true
	for _, b := range h.boxes {
		if b.Running {
			b.Running, b.Exit = false, 137
		}
	}
}

// Boot starts the engine again, which starts what its restart policies say.
func (h *Host) Boot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = false
	for _, b := range h.boxes {
		if b.Restart == "always" && !b.Started.IsZero() {
			_ = h.start(b)
		}
	}
}

// Ran are the commands that were run in containers, as "side: command".
func (h *Host) Ran() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ran)
}

// Containers are all there are, by name.
func (h *Host) Containers() []Container {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Container
	for _, b := range h.boxes {
		all = append(all, Container{b.ID, b.Name, b.Ref, b.Digest, b.Config, b.Restart, b.Running})
	}
	slices.SortFunc(all, func(a, b Container) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (h *Host) create(name, ref, digest, config, restart string) *box {
	h.next++
	b := &box{ID: fmt.Sprintf("id%03d", h.next), Name: name, Ref: ref, Digest: digest, Config: config, Restart: restart}
	h.boxes[b.ID] = b
	return b
}

func (h *Host) start(b *box) error {
	if b.Running {
		return nil
	}
	switch h.images[b.Digest] {
	case CannotStart:
		return &updater.Fault{Verdict: updater.Bad, Err: errors.New("no such file: entrypoint")}
	case PortTaken:
		return &updater.Fault{Verdict: updater.Unclear, Err: errors.New("port is already allocated")}
	}
	b.Started = time.Now()
	b.Running = true
	return nil
}

func (h *Host) named(name string) *box {
	for _, b := range h.boxes {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// Process is the host as one process sees it. Step, when set, is called
// before and after every call that changes something, with whether it was
// done: its error fails the call; it may also end the goroutine, as a kill
// would.
type Process struct {
	*Host
	ID   string
	Step func(what string, done bool) error
}

var _ updater.Backend = (*Process)(nil)

// origin is what the memory backend keeps in Change.Origin.
type origin struct {
	ID, Name, Config, Restart, Ref, Digest string
}

const (
	newSuffix = ".updaterd-new"
	oldSuffix = ".updaterd-old"
)

// Name is the backend's name.
func (p *Process) Name() string { return p.ID }

func (p *Process) ask() error {
	if p.down {
		return errors.New("the engine does not answer")
	}
	return nil
}

// effect makes one call that changes something. The lock is not held while
// Step runs, so a process may die there.
func (p *Process) effect(ctx context.Context, what string, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.Step != nil {
		if err := p.Step(what, false); err != nil {
			return err
		}
	}
	p.mu.Lock()
	err := p.ask()
	if err == nil {
		err = do()
	}
	p.mu.Unlock()
	if p.Step != nil {
		if stepErr := p.Step(what, true); stepErr != nil {
			return stepErr
		}
	}
	return err
}

// Workloads lists the containers but for those that belong to a change.
func (p *Process) Workloads(context.Context) ([]updater.Workload, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return nil, err
	}
	var all []updater.Workload
	for _, b := range p.boxes {
		if strings.HasSuffix(b.Name, newSuffix) || strings.HasSuffix(b.Name, oldSuffix) {
			continue
		}
		w := updater.Workload{ID: p.ID + "/" + b.Name, Backend: p.ID, Name: b.Name, Image: b.Ref,
			Runs: updater.Running{Platform: updater.Platform{OS: "linux", Architecture: "amd64"}}}
		if b.Digest != "" { // an image that was built here has none
			w.Runs.Digests = []string{b.Digest}
		}
		if !b.Running {
			w.Skip = &updater.Refusal{Reason: updater.NotRunning, Detail: "it has exited"}
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b updater.Workload) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

func (p *Process) name(c updater.Change) string { return strings.TrimPrefix(c.Unit, p.ID+"/") }

// Plan records what is there.
func (p *Process) Plan(_ context.Context, c *updater.Change, _ func(string) (updater.Settings, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return err
	}
	b := p.named(p.name(*c))
	if b == nil {
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "it has gone"}
	}
	c.Origin, _ = json.Marshal(origin{b.ID, b.Name, b.Config, b.Restart, b.Ref, b.Digest})
	c.Parts[0].Healthy = b.Running && p.images[b.Digest] != Unhealthy
	return nil
}

// situation is what the host shows of a change.
type situation struct {
	origin
	old, new, stranger *box // by what they are, whatever their names
}

func (p *Process) situation(c updater.Change) situation {
	s := situation{}
	_ = json.Unmarshal(c.Origin, &s.origin)
	s.old = p.boxes[s.ID]
	for _, b := range p.boxes {
		if b.Replaces == s.ID && b.Change == c.ID {
			s.new = b
		}
	}
	for _, b := range p.boxes {
		if s.old == nil && b.CopyOf != "" && b.CopyOf == s.ID {
			s.old = b
		}
	}
	if b := p.named(s.Name); b != s.old && b != s.new {
		s.stranger = b
	}
	return s
}

// Prepare pulls and creates.
func (p *Process) Prepare(ctx context.Context, c updater.Change, report func(updater.Progress)) error {
	to := c.Parts[0].To
	report(updater.Progress{Step: "pulling"})
	p.mu.Lock()
	slow := p.images[to.Digest] == SlowPull
	p.mu.Unlock()
	if slow {
		select {
		case <-time.After(time.Hour):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := p.effect(ctx, "pull", func() error {
		switch b, ok := p.images[to.Digest]; {
		case !ok || b == CannotPull:
			return errors.New("the image cannot be pulled")
		case b == Same:
			return updater.ErrSame
		case b == Foreign:
			return &updater.Refusal{Reason: updater.PlatformMissing, Detail: "it is not built for linux/amd64"}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.effect(ctx, "create", func() error {
		s := p.situation(c)
		if s.old == nil {
			return errors.New("it has gone")
		}
		if s.new == nil {
			b := p.create(s.Name+newSuffix, to.Ref, to.Digest, s.Config, s.Restart)
			b.Replaces, b.Change = s.ID, c.ID
		}
		return nil
	})
}

// Apply stops the old, starts the new and gives it the name.
func (p *Process) Apply(ctx context.Context, c updater.Change) (updater.Applied, error) {
	steps := []struct {
		what string
		do   func(s situation) error
	}{
		{"update restart policy", func(s situation) error {
			if s.stranger != nil {
				return fmt.Errorf("%s: %w", s.Name, updater.ErrSuperseded)
			}
			if s.old != nil {
				s.old.Restart = "no"
			}
			return nil
		}},
		{"stop", func(s situation) error {
			if s.old != nil {
				s.old.Running = false
			}
			return nil
		}},
		{"start", func(s situation) error { return p.start(s.new) }},
		{"rename old", func(s situation) error {
			if s.old != nil {
				s.old.Name = s.Name + oldSuffix
			}
			return nil
		}},
		{"rename new", func(s situation) error {
			if s.stranger != nil {
				return fmt.Errorf("%s: %w", s.Name, updater.ErrSuperseded)
			}
			s.new.Name = s.Name
			return nil
		}},
	}
	for _, step := range steps {
		err := p.effect(ctx, step.what, func() error {
			s := p.situation(c)
			switch {
			case s.old == nil && (s.new == nil || s.new.Started.IsZero()):
				return fmt.Errorf("%s: %w", s.Name, updater.ErrSuperseded)
			case s.new == nil:
				return errors.New("the new container has gone")
			}
			return step.do(s)
		})
		if err != nil {
			return updater.Applied{}, err
		}
	}
	return updater.Applied{Mark: json.RawMessage(`{}`), Gap: time.Millisecond}, nil
}

// Observe tells what the image does by now.
func (p *Process) Observe(_ context.Context, c updater.Change, _ int, side updater.Side) (updater.Observation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return updater.Observation{}, err
	}
	s := p.situation(c)
	b := s.new
	if side == updater.OldSide {
		b = s.old
	}
	if b == nil {
		return updater.Observation{Gone: true}, nil
	}
	o := updater.Observation{Running: b.Running, ExitCode: b.Exit, Started: b.Started,
		Undone: side == updater.NewSide && b.Name != s.Name}
	if !b.Running {
		return o, nil
	}
	age := time.Since(b.Started)
	switch p.images[b.Digest] {
	case Exits:
		o.Running, o.ExitCode, o.Logs = false, 1, "cannot go on"
	case Unhealthy:
		o.Health = updater.HealthUnhealthy
	case Hangs:
		o.Health = updater.HealthStarting
	case OOM:
		o.Running, o.ExitCode, o.OOMKilled = false, 137, true
	case TurnsSick:
		o.Health = updater.HealthHealthy
		if age >= 5*time.Second {
			o.Health = updater.HealthUnhealthy
		}
	case Flaps:
		if age/(4*time.Second)%2 == 1 {
			o.Probe = "connection refused"
		}
	case Slow:
		o.Health = updater.HealthStarting
		if age >= 30*time.Second {
			o.Health = updater.HealthHealthy
		}
	case Crashes:
		if age >= 3*time.Second {
			o.Running, o.ExitCode, o.Logs = false, 1, "out of luck"
		}
	}
	return o, nil
}

// Exec succeeds for every command but "false", and "sleep" takes an hour.
func (p *Process) Exec(ctx context.Context, _ updater.Change, _ int, side updater.Side, h updater.Hook) (updater.Result, error) {
	p.mu.Lock()
	err := p.ask()
	if err == nil {
		p.ran = append(p.ran, string(side)+": "+strings.Join(h.Command, " "))
	}
	p.mu.Unlock()
	if err != nil {
		return updater.Result{}, err
	}
	switch h.Command[0] {
	case "false":
		return updater.Result{ExitCode: 1, Output: "no"}, nil
	case "sleep":
		ends, timedOut := time.Hour, false
		if h.Timeout > 0 && h.Timeout < ends {
			ends, timedOut = h.Timeout, true
		}
		select {
		case <-time.After(ends):
			return updater.Result{TimedOut: timedOut}, nil
		case <-ctx.Done():
			return updater.Result{}, ctx.Err()
		}
	}
	return updater.Result{}, nil
}

// Test passes unless its command is "false".
func (p *Process) Test(ctx context.Context, c updater.Change, part int) (updater.Result, error) {
	t := c.Parts[part].Settings.Health.Test
	return p.Exec(ctx, c, part, updater.NewSide, updater.Hook{Command: append([]string{t.Image}, t.Command...), Timeout: t.Timeout})
}

// Commit removes the old.
func (p *Process) Commit(ctx context.Context, c updater.Change) error {
	return p.effect(ctx, "remove old", func() error {
		s := p.situation(c)
		if s.new != nil && s.new.Name == s.Name && s.old != nil {
			delete(p.boxes, s.old.ID)
		}
		return nil
	})
}

// Restore goes back: the new gives up the name first, so that a look after a
// crash tells a restore from a swap, and is removed last, since it is the trace.
func (p *Process) Restore(ctx context.Context, c updater.Change) (updater.Restoration, error) {
	var r updater.Restoration
	var superseded, over bool
	steps := []struct {
		what string
		do   func(s situation) error
	}{
		{"rename new back", func(s situation) error {
			// Without the old, and with the new in its place, the change was committed.
			over = s.old == nil && s.new != nil && s.new.Name == s.Name && c.Phase != updater.Restoring
			if s.new != nil && !over {
				s.new.Name = s.Name + newSuffix
			}
			return nil
		}},
		{"stop new", func(s situation) error {
			if s.new != nil && !over {
				s.new.Running = false
			}
			return nil
		}},
		{"rename old back", func(s situation) error {
			switch {
			case superseded || over:
			case s.old != nil:
				s.old.Name = s.Name
			case c.Superseded:
			case s.Config != "":
				s.old = p.create(s.Name, s.Ref, s.Digest, s.Config, s.Restart)
				s.old.CopyOf = s.ID
				s.old.Running, s.old.Started = true, time.Now()
			}
			return nil
		}},
		{"restart policy back", func(s situation) error {
			if s.old != nil && !superseded {
				s.old.Restart = s.Restart
				r.Copy = s.old.CopyOf != ""
			}
			return nil
		}},
		{"start old", func(s situation) error {
			if s.old == nil || superseded || c.Superseded {
				return nil
			}
			return p.start(s.old)
		}},
		{"remove new", func(s situation) error {
			if s.new != nil && !over {
				delete(p.boxes, s.new.ID)
			}
			return nil
		}},
	}
	for _, step := range steps {
		err := p.effect(ctx, step.what, func() error {
			s := p.situation(c)
			superseded = superseded || s.stranger != nil
			return step.do(s)
		})
		if err != nil {
			return r, err
		}
	}
	if superseded {
		return r, fmt.Errorf("%s: %w", c.Unit, updater.ErrSuperseded)
	}
	return r, nil
}

// Traces finds new sides whose change is not known.
func (p *Process) Traces(_ context.Context, known map[string]bool) ([]updater.Change, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return nil, err
	}
	var found []updater.Change
	for _, b := range p.boxes {
		old := p.boxes[b.Replaces]
		if b.Replaces == "" || old == nil || known[b.Change] {
			continue
		}
		name := strings.TrimSuffix(strings.TrimSuffix(b.Name, newSuffix), oldSuffix)
		o := origin{old.ID, name, old.Config, b.Restart, old.Ref, old.Digest}
		c := updater.Change{ID: b.Change, Backend: p.ID, Unit: p.ID + "/" + name, Phase: updater.Restoring,
			Disturbed: true, Since: time.Now(), Why: "its record was lost",
			Parts: []updater.Part{{Workload: p.ID + "/" + name, Replace: true, Healthy: true,
				From: updater.Image{Ref: old.Ref, Digest: old.Digest}, To: updater.Image{Ref: b.Ref, Digest: b.Digest}}}}
		if b.Name == name {
			c.Phase = updater.Judging
		}
		c.Origin, _ = json.Marshal(o)
		c.Parts[0].Settings.Health.Stable = 10 * time.Second
		found = append(found, c)
	}
	return found, nil
}

// State is a journal in memory that survives the processes that use it. Step
// is as in Process.
type State struct {
	Step func(what string, done bool) error
	*Disk
}

// Disk is what a State keeps. Its zero value is empty and ready.
type Disk struct {
	mu      sync.Mutex
	leader  bool
	depose  context.CancelFunc
	open    map[string][]byte
	records map[string][]byte
	history []updater.Entry
	// Full makes every write fail.
	Full bool
}

var (
	_ updater.State   = (*State)(nil)
	_ updater.Journal = (*State)(nil)
)

// Lose forgets everything, as a broken disk would.
func (d *Disk) Lose() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open, d.records, d.history = nil, nil, nil
}

// SetFull makes writes fail, or succeed again.
func (d *Disk) SetFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Full = full
}

// Depose ends the lead of whoever leads.
func (d *Disk) Depose() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.depose != nil {
		d.depose()
	}
}

// Lead lets one process at a time lead.
func (s *State) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	s.mu.Lock()
	if s.leader {
		s.mu.Unlock()
		return fmt.Errorf("%w: in this process", updater.ErrLed)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.leader, s.depose = true, cancel
	s.mu.Unlock()
	defer func() {
		cancel()
		s.mu.Lock()
		s.leader = false
		s.mu.Unlock()
	}()
	return do(ctx, s)
}

// Journal is the state itself.
func (s *State) Journal() updater.Journal { return s }

func (s *State) write(ctx context.Context, what string, do func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.Step != nil {
		if err := s.Step(what, false); err != nil {
			return err
		}
	}
	s.mu.Lock()
	full := s.Full
	if !full {
		do()
	}
	s.mu.Unlock()
	if full {
		return errors.New("no space left on device")
	}
	if s.Step != nil {
		return s.Step(what, true)
	}
	return nil
}

// Open returns the open changes, oldest first.
func (s *State) Open(context.Context) ([]updater.Change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var open []updater.Change
	for _, id := range slices.Sorted(maps.Keys(s.open)) {
		var c updater.Change
		if err := json.Unmarshal(s.open[id], &c); err != nil {
			return nil, err
		}
		open = append(open, c)
	}
	slices.SortStableFunc(open, func(a, b updater.Change) int { return a.Since.Compare(b.Since) })
	return open, nil
}

// Save keeps a change.
func (s *State) Save(ctx context.Context, c updater.Change) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.write(ctx, "save "+string(c.Phase), func() {
		if s.open == nil {
			s.open = map[string][]byte{}
		}
		if !c.Phase.Final() {
			s.open[c.ID] = data
			return
		}
		delete(s.open, c.ID)
		s.history = slices.DeleteFunc(s.history, func(e updater.Entry) bool { return e.Change == c.ID })
		s.history = append(s.history, c.Entries()...)
	})
}

// Recall returns what is remembered.
func (s *State) Recall(context.Context) (map[string]updater.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]updater.Record{}
	for id, data := range s.records {
		var m updater.Record
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, err
		}
		all[id] = m
	}
	return all, nil
}

// Remember edits what is remembered.
func (s *State) Remember(ctx context.Context, edits map[string]func(*updater.Record)) error {
	var failed error
	err := s.write(ctx, "remember", func() {
		if s.records == nil {
			s.records = map[string][]byte{}
		}
		for id, edit := range edits {
			var m updater.Record
			if data, ok := s.records[id]; ok {
				failed = errors.Join(failed, json.Unmarshal(data, &m))
			}
			edit(&m)
			data, err := json.Marshal(m)
			failed = errors.Join(failed, err)
			if s.records[id] = data; string(data) == "{}" {
				delete(s.records, id)
			}
		}
	})
	return errors.Join(err, failed)
}

// Note adds to the history.
func (s *State) Note(ctx context.Context, e updater.Entry) error {
	return s.write(ctx, "note", func() { s.history = append(s.history, e) })
}

// History returns the newest entries.
func (s *State) History(_ context.Context, limit int) ([]updater.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := slices.Clone(s.history)
	slices.Reverse(h)
	if limit > 0 && len(h) > limit {
		h = h[:limit]
	}
	return h, nil
}

// Registry is a registry in memory: what each tag stands for, by reference.
type Registry struct {
	mu        sync.Mutex
	tags      map[string]string
	err       map[string]error
	delay     map[string]time.Duration
	manifests map[string]string
	asked     int // questions for a digest, all told
}

var _ updater.Registry = (*Registry)(nil)

// Publish makes ref ("web:1") stand for digest.
func (r *Registry) Publish(ref, digest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tags == nil {
		r.tags = map[string]string{}
	}
	r.tags[ref] = digest
}

// Fail makes every question about ref fail; nil answers again.
func (r *Registry) Fail(ref string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = map[string]error{}
	}
	r.err[ref] = err
}

// Asked is how often it was asked what a tag stands for.
func (r *Registry) Asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// Unpublish takes a tag away.
func (r *Registry) Unpublish(ref string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tags, ref)
}

// Delay makes every question about what ref stands for take so long.
func (r *Registry) Delay(ref string, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.delay == nil {
		r.delay = map[string]time.Duration{}
	}
	r.delay[ref] = d
}

// Wrap makes an index of a digest: manifest is what it holds for every
// platform, "" that it holds nothing for any.
func (r *Registry) Wrap(digest, manifest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifests == nil {
		r.manifests = map[string]string{}
	}
	r.manifests[digest] = manifest
}

// Tags lists the tags of a repository.
func (r *Registry) Tags(_ context.Context, ref string) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.err[ref]; err != nil {
		return nil, err
	}
	var tags []string
	for full := range r.tags {
		if name, tag, _ := strings.Cut(full, ":"); name == ref {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// Resolve says what a tag stands for.
func (r *Registry) Resolve(ctx context.Context, ref string) (string, error) {
	r.mu.Lock()
	delay := r.delay[ref]
	r.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if err := r.err[ref]; err != nil {
		return "", err
	}
	d, ok := r.tags[ref]
	if !ok {
		return "", &updater.Refusal{Reason: updater.NotFound, Detail: ref + " is not there"}
	}
	return d, nil
}

// Image knows every digest; one that was not wrapped is its own manifest.
func (r *Registry) Image(_ context.Context, ref, digest string, p updater.Platform) (updater.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	manifest, wrapped := r.manifests[digest]
	switch {
	case !wrapped:
		manifest = digest
	case manifest == "":
		return updater.Image{}, &updater.Refusal{Reason: updater.PlatformMissing, Detail: fmt.Sprintf("%s has no image for %s", ref, p)}
	}
	return updater.Image{Ref: ref, Digest: digest, Manifest: manifest}, nil
}

// NewPass does nothing: every question is answered anew.
func (r *Registry) NewPass() {}

// Package backendtest holds what every [updater.Backend] must do, and one
// backend, journal and registry that live in memory.
//
// The memory backend behaves like a Docker host: containers have ids and
// names, may live in the namespaces of others, which they know by id, a change
// keeps the originals stopped under other names, and every call that changes
// something can be made to fail, or the calling process to die, before or after
// the call was carried out.
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
	Loops       Behaviour = "loops"          // exits every second and is started again; what lives in it ends with it, and cannot be
	Crashes     Behaviour = "crashes-at-3-s" // exits with code 1 after 3 s
)

// Host is a Docker host in memory. It survives the processes that use it:
// each gets its own Backend from Process.
type Host struct {
	mu     sync.Mutex
	boxes  map[string]*box      // by id
	images map[string]Behaviour // by digest
	next   int
	starts int
	down   bool
	ran    []string // what was run, as "side: command", or "side name: command" in a group
}

// box is one container.
type box struct {
	ID, Name, Ref, Digest string
	Config                string // stands for all that a person configured
	Running               bool
	Exit                  int
	Restart               string // restart policy
	Replaces, Change      string // labels of the new side
	Group                 string // label of the new side: the change's Origin
	CopyOf                string // label of a copy: the id of the original
	Started               time.Time
	Begun                 int      // its last start, counted over all of the host
	Uses                  []string // ids of those whose namespaces it lives in
	Follows               []string // names of those after whose start it needs a restart
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

// Run creates and starts a container as a person would, in the namespaces of
// those that it uses.
func (h *Host) Run(name, ref, digest, restart string, uses ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.create(name, ref, digest, "config of "+name, restart)
	for _, n := range uses {
		b.Uses = append(b.Uses, h.named(n).ID)
	}
	_ = h.start(b)
}

// Follow makes a container one that only needs a restart when another is
// replaced or restarted.
func (h *Host) Follow(name, other string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.named(name)
	b.Follows = append(b.Follows, other)
}

// ID is the id of the container that has a name; "" when there is none.
func (h *Host) ID(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.named(name); b != nil {
		return b.ID
	}
	return ""
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
	// Uses are the names of those whose namespaces it lives in; "gone" for one
	// that was removed.
	Uses []string
	// Cut: it runs, but something that it lives in or follows was started after
	// it, or does not run: nobody can reach it.
	Cut bool
	// Begun is its last start, counted over all of the host.
	Begun int
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
	for again := true; again; { // what is used must run first
		again = false
		for _, b := range h.boxes {
			if b.Restart == "always" && !b.Running && !b.Started.IsZero() && h.start(b) == nil {
				again = true
			}
		}
	}
}

// Ran are the commands that were run in or beside containers, as "side:
// command", and as "side name: command" where several move together.
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
		c := Container{ID: b.ID, Name: b.Name, Ref: b.Ref, Digest: b.Digest, Config: b.Config, Restart: b.Restart,
			Running: b.Running, Cut: h.cut(b), Begun: b.Begun}
		for _, id := range b.Uses {
			name := "gone"
			if used := h.boxes[id]; used != nil {
				name = used.Name
			}
			c.Uses = append(c.Uses, name)
		}
		all = append(all, c)
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
	for _, id := range b.Uses {
		switch used := h.boxes[id]; {
		case used == nil:
			return &updater.Fault{Verdict: updater.Unclear, Err: errors.New("no such container: " + id)}
		case !used.Running || h.ended(used):
			return &updater.Fault{Verdict: updater.Unclear, Err: errors.New("cannot join the namespace of a container that does not run: " + id)}
		}
	}
	switch h.images[b.Digest] {
	case CannotStart:
		return &updater.Fault{Verdict: updater.Bad, Err: errors.New("no such file: entrypoint")}
	case PortTaken:
		return &updater.Fault{Verdict: updater.Unclear, Err: errors.New("port is already allocated")}
	}
	h.starts++
	b.Started, b.Begun = time.Now(), h.starts
	b.Running = true
	return nil
}

// ended reports whether the program of a container that was started has ended
// by itself.
func (h *Host) ended(b *box) bool {
	switch h.images[b.Digest] {
	case Exits, OOM:
		return true
	case Crashes:
		return time.Since(b.Started) >= 3*time.Second
	}
	return false
}

// cut reports whether a container runs on what is no longer there.
func (h *Host) cut(b *box) bool {
	if !b.Running {
		return false
	}
	for _, id := range b.Uses {
		if used := h.boxes[id]; used == nil || !used.Running || used.Begun > b.Begun {
			return true
		}
	}
	for _, n := range b.Follows {
		if other := h.named(n); other != nil && other.Running && other.Begun > b.Begun {
			return true
		}
	}
	return false
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
// would. A call of a change of several parts is named with the container.
type Process struct {
	*Host
	ID   string
	Step func(what string, done bool) error
	// Self is the id of the container that the process runs in. It does not
	// stop that one: it hands over.
	Self string
}

var _ updater.Backend = (*Process)(nil)

// origin is what the memory backend keeps of each part in Change.Origin.
type origin struct {
	ID, Name, Config, Restart, Ref, Digest string
	Uses, Follows                          []string
	Replace, Idle                          bool
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

// Plan widens the wish by what lives in what is replaced, or follows it, and
// records what is there.
func (p *Process) Plan(_ context.Context, c *updater.Change, join func(string) (updater.Settings, error)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return err
	}
	parts := map[string]updater.Part{} // by name
	for _, part := range c.Parts {
		name := strings.TrimPrefix(part.Workload, p.ID+"/")
		if p.named(name) == nil {
			return &updater.Refusal{Reason: updater.Unsupported, Detail: "it has gone"}
		}
		parts[name] = part
	}
	for again := true; again; {
		again = false
		for _, b := range p.workloads() {
			replace := slices.ContainsFunc(p.used(b), func(n string) bool { return parts[n].Replace })
			touched := slices.ContainsFunc(slices.Concat(p.used(b), b.Follows), func(n string) bool { _, ok := parts[n]; return ok })
			part, there := parts[b.Name]
			if !touched || there && (part.Replace || !replace) {
				continue
			}
			if !there {
				s, err := join(p.ID + "/" + b.Name)
				if err != nil {
					return err
				}
				img := updater.Image{Ref: b.Ref, Digest: b.Digest}
				part = updater.Part{Workload: p.ID + "/" + b.Name, From: img, To: img, Settings: s}
			}
			part.Replace = replace
			parts[b.Name] = part
			again = true
		}
	}
	order, err := p.order(parts)
	if err != nil {
		return err
	}
	var origins []origin
	c.Parts, c.Alone = nil, false
	for _, name := range order {
		b, part := p.named(name), parts[name]
		part.Idle, part.Healthy = !b.Running, b.Running && p.images[b.Digest] != Unhealthy
		c.Parts = append(c.Parts, part)
		c.Alone = c.Alone || b.ID == p.Self
		origins = append(origins, origin{ID: b.ID, Name: b.Name, Config: b.Config, Restart: b.Restart, Ref: b.Ref, Digest: b.Digest,
			Uses: b.Uses, Follows: b.Follows, Replace: part.Replace, Idle: part.Idle})
	}
	c.Related = p.related(parts)
	c.Origin, err = json.Marshal(origins)
	return err
}

// workloads are the containers that belong to no change, by name.
func (h *Host) workloads() []*box {
	var all []*box
	for _, b := range h.boxes {
		if !strings.HasSuffix(b.Name, newSuffix) && !strings.HasSuffix(b.Name, oldSuffix) {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b *box) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// used are the names of those whose namespaces a container lives in.
func (h *Host) used(b *box) (names []string) {
	for _, id := range b.Uses {
		if other := h.boxes[id]; other != nil {
			names = append(names, other.Name)
		}
	}
	return names
}

// order sorts names: what others need comes first, and else the alphabet.
func (h *Host) order(parts map[string]updater.Part) (order []string, err error) {
	for len(order) < len(parts) {
		before := len(order)
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			b := h.named(name)
			waits := slices.ContainsFunc(slices.Concat(h.used(b), b.Follows), func(n string) bool {
				_, in := parts[n]
				return in && !slices.Contains(order, n)
			})
			if !waits && !slices.Contains(order, name) {
				order = append(order, name)
			}
		}
		if len(order) == before {
			rest := slices.DeleteFunc(slices.Sorted(maps.Keys(parts)), func(n string) bool { return slices.Contains(order, n) })
			return nil, &updater.Refusal{Reason: updater.InvalidSettings, Detail: "they need each other: " + strings.Join(rest, ", ")}
		}
	}
	return order, nil
}

// related are the ids of all that hang together with the parts and are none.
func (p *Process) related(parts map[string]updater.Part) (ids []string) {
	group := maps.Clone(parts)
	for again := true; again; {
		again = false
		for _, b := range p.workloads() {
			near := slices.Concat(p.used(b), b.Follows)
			_, in := group[b.Name]
			for _, n := range near {
				if _, other := group[n]; other != in && p.named(n) != nil {
					group[n], group[b.Name], again, in = updater.Part{}, updater.Part{}, true, true
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(group)) {
		if _, in := parts[name]; !in {
			ids = append(ids, p.ID+"/"+name)
		}
	}
	return ids
}

// situation is what the host shows of one part of a change. One that is only
// restarted has an old side only.
type situation struct {
	origin
	old, new, stranger *box // by what they are, whatever their names
}

// situations are those of all parts, in start order.
func (p *Process) situations(c updater.Change) []situation {
	var origins []origin
	_ = json.Unmarshal(c.Origin, &origins)
	var all []situation
	for _, o := range origins {
		s := situation{origin: o, old: p.boxes[o.ID]}
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
		all = append(all, s)
	}
	return all
}

// somebodyElses: somebody took it away, or put another in its place.
func (s situation) somebodyElses() bool {
	inPlace := s.new != nil && s.new.Name == s.Name
	return s.stranger != nil && !inPlace || s.old == nil && !inPlace && (s.new == nil || s.new.Started.IsZero())
}

// toward is a side of a situation, as what is restarted beside it sees it.
func (s situation) toward(side updater.Side) *box {
	if side == updater.NewSide && s.Replace {
		return s.new
	}
	return s.old
}

// dueForRestart reports whether a part that is only restarted runs on what is
// not, or will not be, what it should run on once the side given is in place.
func dueForRestart(all []situation, s situation, side updater.Side) bool {
	if s.old == nil || !s.old.Running {
		return false
	}
	for _, other := range all {
		if !slices.Contains(s.Uses, other.ID) && !slices.Contains(s.Follows, other.Name) || other.Idle {
			continue
		}
		b := other.toward(side)
		if b == nil || !b.Running || b.Begun > s.old.Begun || !other.Replace && dueForRestart(all, other, side) {
			return true
		}
	}
	return false
}

// do makes one call for one part of a change. step gets what the host shows
// of the part by then, and of all.
func (p *Process) do(ctx context.Context, c updater.Change, i int, what string, step func(s situation, all []situation) error) error {
	if len(c.Parts) > 1 {
		what += " " + strings.TrimPrefix(c.Parts[i].Workload, p.ID+"/")
	}
	return p.effect(ctx, what, func() error {
		all := p.situations(c)
		return step(all[i], all)
	})
}

// Prepare pulls and creates. What is created lives in the namespaces of what
// was created for those that its original used.
func (p *Process) Prepare(ctx context.Context, c updater.Change, report func(updater.Progress)) error {
	report(updater.Progress{Step: "pulling"})
	changed, same := 0, 0
	for i, part := range c.Parts {
		if !part.Changes() {
			continue
		}
		changed++
		p.mu.Lock()
		slow := p.images[part.To.Digest] == SlowPull
		p.mu.Unlock()
		for i := 0; slow && i < 60; i++ { // an hour, in which it moves
			select {
			case <-time.After(time.Minute):
				report(updater.Progress{Step: "pulling"})
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := p.do(ctx, c, i, "pull", func(situation, []situation) error {
			switch b, ok := p.images[part.To.Digest]; {
			case !ok || b == CannotPull:
				return errors.New("the image cannot be pulled")
			case b == Same:
				same++
			case b == Foreign:
				return &updater.Refusal{Reason: updater.PlatformMissing, Detail: "it is not built for linux/amd64"}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if same == changed {
		return updater.ErrSame
	}
	for i, part := range c.Parts {
		if !part.Replace {
			continue
		}
		err := p.do(ctx, c, i, "create", func(s situation, all []situation) error {
			if s.old == nil {
				return errors.New("it has gone")
			}
			if s.new == nil {
				b := p.create(s.Name+newSuffix, part.To.Ref, part.To.Digest, s.Config, s.Restart)
				b.Replaces, b.Change, b.Group = s.ID, c.ID, string(c.Origin)
				b.Uses, b.Follows = pointed(s.Uses, all, updater.NewSide), s.Follows
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pointed are the ids that a part is to use when the side given of all others
// is in place.
func pointed(uses []string, all []situation, side updater.Side) (ids []string) {
	for _, id := range uses {
		for _, other := range all {
			if b := other.toward(side); other.ID == id && b != nil {
				id = b.ID
				break
			}
		}
		ids = append(ids, id)
	}
	return ids
}

// Apply stops the old ones, what is used last, starts the new ones, what is
// used first, and gives them the names.
func (p *Process) Apply(ctx context.Context, c updater.Change) (updater.Applied, error) {
	p.mu.Lock()
	self := p.Self != "" && slices.ContainsFunc(p.situations(c), func(s situation) bool { return s.old != nil && s.old.ID == p.Self })
	p.mu.Unlock()
	if self {
		if err := p.effect(ctx, "hand over", func() error { return nil }); err != nil {
			return updater.Applied{}, err
		}
		return updater.Applied{}, updater.ErrHandedOver
	}

	var err error
	step := func(i int, what string, do func(s situation, all []situation) error) {
		if err != nil {
			return
		}
		err = p.do(ctx, c, i, what, func(s situation, all []situation) error {
			for _, each := range all {
				if each.somebodyElses() {
					return fmt.Errorf("%s: %w", each.Name, updater.ErrSuperseded)
				}
			}
			if s.Replace && s.new == nil {
				return errors.New("the new container has gone")
			}
			return do(s, all)
		})
	}
	for i, part := range c.Parts {
		if part.Replace {
			step(i, "update restart policy", func(s situation, _ []situation) error {
				if s.old != nil {
					s.old.Restart = "no"
				}
				return nil
			})
		}
	}
	for i, part := range slices.Backward(c.Parts) {
		step(i, "stop", func(s situation, all []situation) error {
			if s.old != nil && (part.Replace || dueForRestart(all, s, updater.NewSide)) {
				s.old.Running = false
			}
			return nil
		})
	}
	for i, part := range c.Parts {
		if !part.Idle {
			step(i, "start", func(s situation, all []situation) error {
				return p.startPart(s.toward(updater.NewSide), c, i, all)
			})
		}
	}
	for i, part := range c.Parts {
		if !part.Replace {
			continue
		}
		step(i, "rename old", func(s situation, _ []situation) error {
			if s.old != nil {
				s.old.Name = s.Name + oldSuffix
			}
			return nil
		})
		step(i, "rename new", func(s situation, _ []situation) error {
			s.new.Name = s.Name
			return nil
		})
	}
	if err != nil {
		return updater.Applied{}, err
	}
	return updater.Applied{Mark: json.RawMessage(`{}`), Gap: time.Millisecond}, nil
}

// startPart starts a part's container. The fault speaks of the part, or of the
// one that it lives in if that one's program has ended by itself.
func (p *Process) startPart(b *box, c updater.Change, i int, all []situation) error {
	err := p.start(b)
	var fault *updater.Fault
	if !errors.As(err, &fault) {
		return err
	}
	fault.Workload = c.Parts[i].Workload
	for j, other := range all {
		for _, side := range []*box{other.old, other.new} {
			if side != nil && slices.Contains(b.Uses, side.ID) && side.Running && p.ended(side) {
				fault.Verdict, fault.Workload = updater.Bad, c.Parts[j].Workload
				fault.Err = fmt.Errorf("%s: it exited: %w", fault.Workload, fault.Err)
			}
		}
	}
	return fault
}

// Observe tells what the image does by now.
func (p *Process) Observe(_ context.Context, c updater.Change, part int, side updater.Side) (updater.Observation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return updater.Observation{}, err
	}
	s := p.situations(c)[part]
	b := s.toward(side)
	if b == nil {
		return updater.Observation{Gone: true}, nil
	}
	o := updater.Observation{Running: b.Running, ExitCode: b.Exit, Started: b.Started,
		Undone: side == updater.NewSide && b.Name != s.Name}
	if !b.Running {
		return o, nil
	}
	for _, id := range b.Uses {
		if used := p.boxes[id]; used != nil && p.images[used.Digest] == Loops && time.Since(used.Started) >= time.Second {
			return updater.Observation{ExitCode: 137, Started: b.Started, Fault: "what it lives in is being restarted", Blame: updater.Unclear}, nil
		}
	}
	age := time.Since(b.Started)
	switch p.images[b.Digest] {
	case Loops:
		if o.Restarts = int(age / time.Second); o.Restarts > 0 {
			o.Running, o.Restarting, o.ExitCode = false, true, 3
		}
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

// Exec succeeds for every command but "false", "sleep" takes an hour, and
// "broken" cannot be run.
func (p *Process) Exec(ctx context.Context, c updater.Change, part int, side updater.Side, h updater.Hook) (updater.Result, error) {
	return p.run(ctx, c, part, string(side), h.Command, h.Command[0], h.Timeout)
}

// Test passes or not by the first word of its command, as Exec does.
func (p *Process) Test(ctx context.Context, c updater.Change, part int) (updater.Result, error) {
	t := c.Parts[part].Settings.Health.Test
	argv := append([]string{t.Image}, t.Command...)
	return p.run(ctx, c, part, "test", argv, argv[min(1, len(argv)-1)], t.Timeout)
}

func (p *Process) run(ctx context.Context, c updater.Change, part int, where string, argv []string, does string, timeout time.Duration) (updater.Result, error) {
	if len(c.Parts) > 1 {
		where += " " + strings.TrimPrefix(c.Parts[part].Workload, p.ID+"/")
	}
	p.mu.Lock()
	err := p.ask()
	if err == nil {
		p.ran = append(p.ran, where+": "+strings.Join(argv, " "))
	}
	p.mu.Unlock()
	if err != nil {
		return updater.Result{}, err
	}
	switch does {
	case "false":
		return updater.Result{ExitCode: 1, Output: "no"}, nil
	case "broken":
		return updater.Result{}, errors.New("the engine cannot run it")
	case "sleep":
		ends, timedOut := time.Hour, false
		if timeout > 0 && timeout < ends {
			ends, timedOut = timeout, true
		}
		select {
		case <-time.After(ends):
			return updater.Result{TimedOut: timedOut, Output: "zzz"}, nil
		case <-ctx.Done():
			return updater.Result{}, ctx.Err()
		}
	}
	return updater.Result{}, nil
}

// Commit removes the old ones, unless a new one has gone while all old ones are
// there.
func (p *Process) Commit(ctx context.Context, c updater.Change) error {
	for i, part := range slices.Backward(c.Parts) {
		if !part.Replace {
			continue
		}
		err := p.do(ctx, c, i, "remove old", func(s situation, all []situation) error {
			if overruled(all) {
				return fmt.Errorf("%s: a new one has gone: %w", c.Unit, updater.ErrSuperseded)
			}
			if s.new != nil && s.new.Name == s.Name && s.old != nil {
				delete(p.boxes, s.old.ID)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// overruled: a new one has gone while all old ones are there.
func overruled(all []situation) bool {
	gone := false
	for _, s := range all {
		if s.Replace && s.old == nil {
			return false
		}
		gone = gone || s.Replace && s.new == nil
	}
	return gone
}

// Restore goes back: the new ones give up the names first, so that a look after
// a crash tells a restore from a swap, and are removed last, since they are the
// trace. A part that somebody else decided about is left to them, and the others
// come back.
func (p *Process) Restore(ctx context.Context, c updater.Change) (updater.Restoration, error) {
	p.mu.Lock()
	first := p.situations(c)
	p.mu.Unlock()
	// Without the old ones, and with the new ones in their places, the change was
	// committed.
	over := c.Phase != updater.Restoring
	for _, s := range first {
		over = over && (!s.Replace || s.old == nil && s.new != nil && s.new.Name == s.Name)
		if s.new != nil && s.new.ID == p.Self {
			return updater.Restoration{}, updater.ErrHandedOver
		}
	}
	if over {
		return updater.Restoration{}, nil
	}

	var r updater.Restoration
	var err error
	theirs := map[string]bool{} // by name: parts that somebody else decided about
	step := func(i int, what string, do func(s situation, all []situation) error) {
		if err != nil {
			return
		}
		err = p.do(ctx, c, i, what, func(s situation, all []situation) error {
			gone := s.old == nil && (c.Superseded || !s.Replace || s.Config == "")
			for _, other := range all { // what it lives in will not be there
				gone = gone || slices.Contains(s.Uses, other.ID) && theirs[other.Name]
			}
			theirs[s.Name] = theirs[s.Name] || s.stranger != nil || gone
			return do(s, all)
		})
	}
	for i, part := range slices.Backward(c.Parts) {
		if part.Replace {
			step(i, "rename new back", func(s situation, _ []situation) error {
				if s.new != nil {
					s.new.Name = s.Name + newSuffix
				}
				return nil
			})
		}
	}
	for i, part := range slices.Backward(c.Parts) {
		if part.Replace {
			step(i, "stop new", func(s situation, _ []situation) error {
				if s.new != nil {
					s.new.Running = false
				}
				return nil
			})
		} else {
			step(i, "stop", func(s situation, all []situation) error {
				if dueForRestart(all, s, updater.OldSide) {
					s.old.Running = false
				}
				return nil
			})
		}
	}
	for i, part := range c.Parts {
		if !part.Replace {
			continue
		}
		step(i, "rename old back", func(s situation, all []situation) error {
			uses := pointed(s.Uses, all, updater.OldSide)
			switch {
			case theirs[s.Name] && (s.old == nil || s.stranger != nil):
			case s.old != nil && slices.Equal(s.old.Uses, uses):
				s.old.Name = s.Name
			default:
				// It has gone, or what it lived in has, so that it cannot start.
				if s.old != nil {
					delete(p.boxes, s.old.ID)
				}
				b := p.create(s.Name, s.Ref, s.Digest, s.Config, s.Restart)
				b.CopyOf, b.Uses, b.Follows = s.ID, uses, s.Follows
			}
			return nil
		})
		step(i, "restart policy back", func(s situation, _ []situation) error {
			if s.old != nil && s.stranger == nil {
				s.old.Restart = s.Restart
				r.Copy = r.Copy || s.old.CopyOf != ""
			}
			return nil
		})
	}
	for i, part := range c.Parts {
		step(i, "start old", func(s situation, all []situation) error {
			if s.old == nil || theirs[s.Name] || part.Idle {
				return nil
			}
			return p.startPart(s.old, c, i, all)
		})
	}
	for i, part := range slices.Backward(c.Parts) {
		if part.Replace {
			step(i, "remove new", func(s situation, _ []situation) error {
				if s.new != nil {
					delete(p.boxes, s.new.ID)
				}
				return nil
			})
		}
	}
	if err == nil && slices.Contains(slices.Collect(maps.Values(theirs)), true) {
		err = fmt.Errorf("%s: %w", c.Unit, updater.ErrSuperseded)
	}
	return r, err
}

// Traces finds new sides whose change is not known. Each of them tells of the
// whole group.
func (p *Process) Traces(_ context.Context, known map[string]bool) ([]updater.Change, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ask(); err != nil {
		return nil, err
	}
	found := map[string]updater.Change{}
	for _, b := range p.boxes {
		if b.Replaces == "" || known[b.Change] {
			continue
		}
		c := updater.Change{ID: b.Change, Backend: p.ID, Phase: updater.Judging, Origin: json.RawMessage(b.Group),
			Disturbed: true, Since: time.Now(), Why: "its record was lost"}
		under := false
		for _, s := range p.situations(c) {
			part := updater.Part{Workload: p.ID + "/" + s.Name, Replace: s.Replace, Idle: s.Idle, Healthy: !s.Idle,
				From: updater.Image{Ref: s.Ref, Digest: s.Digest}}
			part.Settings.Health.Stable = 10 * time.Second
			part.To = part.From
			if s.new != nil {
				part.To = updater.Image{Ref: s.new.Ref, Digest: s.new.Digest}
			}
			c.Parts = append(c.Parts, part)
			under = under || s.Replace && s.old != nil
			if s.Replace && (s.new == nil || s.new.Name != s.Name) {
				c.Phase = updater.Restoring
			}
		}
		if under {
			c.Unit = c.Parts[0].Workload
			found[c.ID] = c
		}
	}
	return slices.Collect(maps.Values(found)), nil
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
	depose  func()
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

// Lead lets one process at a time lead, and waits for none.
func (s *State) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	s.mu.Lock()
	if s.leader {
		s.mu.Unlock()
		return fmt.Errorf("%w: in this process", updater.ErrLed)
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s.leader, s.depose = true, func() { cancel(updater.ErrLost) }
	s.mu.Unlock()
	defer func() {
		cancel(nil)
		s.mu.Lock()
		s.leader = false
		s.mu.Unlock()
	}()
	err := do(ctx, s)
	if lost := context.Cause(ctx); lost != nil {
		err = errors.Join(lost, err)
	}
	return err
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

// As shows everybody the same.
func (r *Registry) As(updater.Logins) updater.Registry { return r }

// NewPass does nothing: every question is answered anew.
func (r *Registry) NewPass() {}

package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/updaterd/updaterd/internal/updater"
)

// What a container gets behind its name while a change is under way. No
// container named so is a workload.
const (
	suffixNew  = ".updaterd-new"
	suffixOld  = ".updaterd-old"
	suffixTest = ".updaterd-test"
)

// Labels on the new container. They cannot be taken off a container, so they
// stay on it when the change is over, and are dropped when it is replaced in
// turn: what the label replaces points to has gone by then, which is how a
// change that is over is told from one under way.
const (
	labelPrefix   = "updaterd-swap."
	labelReplaces = labelPrefix + "replaces" // id of the original
	labelChange   = labelPrefix + "change"   // id of the change
	labelOwner    = labelPrefix + "owner"    // installation that carries it out
	labelUntil    = labelPrefix + "until"    // RFC 3339: from then on it is broken off, whoever's it is
	// labelCopy is on a copy of an original that somebody removed: id of the change.
	labelCopy = labelPrefix + "copy"
)

// origin is what was there before: a change's Origin.
type origin struct {
	Name   string                  `json:"name"`
	ID     string                  `json:"id"`
	Image  string                  `json:"image"` // id
	Policy container.RestartPolicy `json:"policy"`
	// Settled is a hash of the HostConfig but for the restart policy: another
	// one tells that somebody changed the container.
	Settled string `json:"settled,omitempty"`
	// Restarts and StartedAt tell the engine's restarts before the change from
	// those after it.
	Restarts  int    `json:"restarts,omitempty"`
	StartedAt string `json:"started-at,omitempty"`
	// TagImage is what the tag to be written stood for on the engine; NewTag
	// says that it did not exist, so going back takes it away again.
	TagImage string `json:"tag-image,omitempty"`
	NewTag   bool   `json:"new-tag,omitempty"`
	// NewImage says that the new image was not there.
	NewImage bool `json:"new-image,omitempty"`
	// Snapshot is what a copy is made of if somebody removes the original.
	Snapshot *snapshot `json:"snapshot,omitempty"`
}

// mark is what Apply made: a change's Mark.
type mark struct {
	ID string `json:"id"`
	// Engine tells one run of the engine from the next.
	Engine string `json:"engine,omitempty"`
}

// workloadName is the container's name in a workload id of this host.
func (h *Host) workloadName(id string) (string, error) {
	name, ok := strings.CutPrefix(id, h.name+"/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("workload %q is not one of docker host %s", id, h.name)
	}
	return name, nil
}

func readOrigin(c updater.Change) (origin, error) {
	var o origin
	if err := json.Unmarshal(c.Origin, &o); err != nil {
		return origin{}, fmt.Errorf("change %s: its record of the original cannot be read: %w", c.ID, err)
	}
	if o.Name == "" || o.ID == "" || len(c.Parts) != 1 {
		return origin{}, fmt.Errorf("change %s: its record of the original is not whole", c.ID)
	}
	return o, nil
}

// readMark forgives everything: a mark only saves looking.
func readMark(c updater.Change) mark {
	var m mark
	if json.Unmarshal(c.Mark, &m) != nil {
		return mark{}
	}
	return m
}

// place is where a container of a change stands.
type place string

const (
	gone      place = "gone"
	asName    place = "under the workload's name"
	asNew     place = "under the name with " + suffixNew
	asOld     place = "under the name with " + suffixOld
	elsewhere place = "under a name that somebody gave it"
)

// side is one of a change's two containers, as far as the next step depends on it.
type side struct {
	place   place
	running bool // it runs, is paused, or is about to be started again
	started bool // it was started at least once
	policy  container.RestartPolicyMode
	retries int
}

func (s side) there() bool { return s.place != gone }

// scene is all that decides what comes next in a change. It is looked up on
// the engine each time, so that the live path is the recovery path.
type scene struct {
	old, new side
	other    bool // somebody else's container has the workload's name
	// copyable: the original can be made anew from its record. Known only if it
	// has gone.
	copyable bool
	// wanted is the restart policy of the original.
	wanted container.RestartPolicy
	// wary: nothing was applied yet, for certain, so an original that stands
	// still was stopped by somebody.
	wary bool
	// handsOff: going back, and nothing was ever done to the original.
	handsOff bool
}

// step is one thing to do to the engine. Each leads to another scene, from
// which the next step follows, also after a crash in the middle of it.
type step string

const (
	done       step = "done"
	superseded step = "superseded"
	kept       step = "kept" // there is no way back: the new one stays

	swap      step = "swap" // policy off, stop, start, both renames
	stopOld   step = "stop the original"
	renameOld step = "set the original aside"
	renameNew step = "give the new one its name"

	hideNew       step = "take the name from the new one"
	stopNew       step = "stop the new one"
	startNew      step = "start the new one"
	showOld       step = "give the original its name back"
	copyOld       step = "copy the original"
	restorePolicy step = "give the original its restart policy back"
	startOld      step = "start the original"
	removeNew     step = "remove the new one"

	// undone: a restore of this had begun; only a restore may go on.
	undone step = "undone"
	// unprepared: the new one has gone.
	unprepared step = "unprepared"
)

// forward is the next step towards the new container in service.
//
// The order is: the original's restart policy off (an engine starts a
// container with the policy always, stopped or not, when the engine itself
// starts), stop the original, start the new, rename both. Until the new one
// has started, the original keeps its name.
func forward(s scene) step {
	switch {
	case s.other:
		return superseded
	case s.new.place == asName:
		if s.old.running {
			return stopOld
		}
		return done
	case s.new.place == elsewhere || s.old.place == elsewhere:
		return superseded
	case !s.new.there():
		if s.old.there() || !s.wary {
			return unprepared
		}
		return superseded

	// From here on the new one still has its name for the time being.
	case !s.new.started && s.old.place == asName:
		if s.wary && !s.old.running {
			return superseded
		}
		return swap
	case !s.new.started && !s.old.there():
		if s.wary {
			// It ran when we last looked, so somebody removed it.
			return superseded
		}
		// We may have stopped it before a crash, and then a prune took it: going
		// back makes a copy. One container too many is better than none.
		return undone
	case !s.new.started, !s.new.running:
		return undone
	case s.old.running:
		return stopOld
	case s.old.place == asName:
		return renameOld
	default:
		return renameNew
	}
}

// backward is the next step towards the original in service.
//
// The first is to take the name from the new container: the decision to go
// back, which an engine or a host that is restarted shows from then on. The
// last is to remove the new one, because it marks the change and carries the
// restart policy. Nothing here starts a new container while there is an
// original, and nothing removes one before its original has been started.
func backward(s scene) step {
	switch {
	case s.other, s.old.place == elsewhere && s.old.running, s.handsOff:
		// Somebody else decided, or nothing was done to the original. Only what
		// is ours goes; an original that was set aside stays there.
		switch {
		case s.new.place == elsewhere && s.other:
			return superseded
		case s.new.place == asName:
			return hideNew
		case s.new.running:
			return stopNew
		case s.new.there():
			return removeNew
		case s.other || s.old.place != asName:
			return superseded
		}
		return done
	case !s.old.there() && s.copyable:
		switch {
		case s.new.place == asName:
			return hideNew
		case s.new.running:
			return stopNew
		}
		return copyOld
	case !s.old.there():
		switch {
		case !s.new.there():
			return superseded
		case s.new.place == asNew && !s.new.running:
			return startNew
		case s.new.place == asNew:
			return renameNew
		}
		return kept
	case s.new.place == asName:
		return hideNew
	case s.new.running:
		return stopNew
	case s.old.place != asName:
		return showOld
	case !s.hasPolicy():
		return restorePolicy
	case !s.old.running:
		return startOld
	case s.new.there():
		return removeNew
	}
	return done
}

// hasPolicy: the original has the restart policy that it came with.
func (s scene) hasPolicy() bool {
	wanted := s.wanted.Name
	if wanted == "" {
		wanted = container.RestartPolicyDisabled
	}
	return s.old.policy == wanted && s.old.retries == s.wanted.MaximumRetryCount
}

// risesAlone: an engine that starts would start a container with this policy,
// even after it was stopped.
func risesAlone(p container.RestartPolicyMode) bool {
	return p == container.RestartPolicyAlways || p == container.RestartPolicyOnFailure
}

// boxes are the containers that a scene was read from; nil where there is none.
type boxes struct {
	old, new, other *box
	// inTheWay are strangers under the names that the change needs.
	inTheWay []*box
	// copied: old is a copy that this change made.
	copied bool
}

// look reads the scene of a change.
func (h *Host) look(ctx context.Context, c updater.Change, o origin) (scene, boxes, error) {
	refs := []string{o.ID, o.Name, o.Name + suffixNew, o.Name + suffixOld, readMark(c).ID}
	found, err := inParallel(ctx, refs, h.inspect)
	if err != nil {
		return scene{}, boxes{}, err
	}
	b := cast(c, o, found)
	s := scene{
		old: b.side(b.old, o.Name), new: b.side(b.new, o.Name), other: b.other != nil, wanted: o.Policy,
	}
	if h.isPodman() && b.old != nil {
		// Its policy cannot be changed there and never was.
		s.wanted = b.old.HostConfig.RestartPolicy
	}
	if b.old == nil && o.Snapshot != nil {
		img, err := h.imageOf(ctx, keptTag(o.Name, c.ID))
		if err != nil {
			return scene{}, boxes{}, err
		}
		s.copyable = img != nil && img.ID == o.Image
	}
	return s, b, nil
}

// cast gives the containers found their roles.
func cast(c updater.Change, o origin, found []*box) boxes {
	var b boxes
	seen := map[string]bool{}
	for _, f := range found {
		if f == nil || seen[f.ID] {
			continue
		}
		seen[f.ID] = true
		ours := f.ID == readMark(c).ID || f.label(labelReplaces) == o.ID && f.label(labelChange) == c.ID
		switch {
		case f.ID == o.ID:
			b.old = f
		case ours && (b.new == nil || placeOf(b.new, o.Name) == elsewhere):
			b.new = f
		case f.label(labelCopy) == c.ID && b.old == nil && f.name() == o.Name:
			b.old, b.copied = f, true
		case f.name() == o.Name:
			b.other = f
		default:
			b.inTheWay = append(b.inTheWay, f)
		}
	}
	return b
}

func (b boxes) side(c *box, name string) side {
	if c == nil {
		return side{place: gone}
	}
	p := c.HostConfig.RestartPolicy
	if p.Name == "" {
		p.Name = container.RestartPolicyDisabled
	}
	return side{
		place: placeOf(c, name), running: c.running(), started: c.started(),
		policy: p.Name, retries: p.MaximumRetryCount,
	}
}

func placeOf(c *box, name string) place {
	switch c.name() {
	case name:
		return asName
	case name + suffixNew:
		return asNew
	case name + suffixOld:
		return asOld
	}
	return elsewhere
}

// stopTimeout is how long the engine waits for the container to end before it
// kills it. An engine's own default is 10 s.
func stopTimeout(c *box, set time.Duration) time.Duration {
	switch {
	case set > 0:
		return set
	case c.Config.StopTimeout != nil && *c.Config.StopTimeout >= 0:
		return time.Duration(*c.Config.StopTimeout) * time.Second
	}
	return 10 * time.Second
}

package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
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
	// labelGroup and labelRestarts are on the new containers of a change of
	// several: the ids of all originals that it replaces, and of those that it
	// restarts, in start order and separated by commas. One that is not to be
	// started has a colon and the state it is in behind its id.
	labelGroup    = labelPrefix + "group"
	labelRestarts = labelPrefix + "restarts"
	// labelIdle is on a new container, or a copy, that is not to be started: the
	// state that the original was in.
	labelIdle = labelPrefix + "idle"
	// labelStartFirst is on a new container that runs beside its original until
	// it has passed the gate.
	labelStartFirst = labelPrefix + "start-first"
	// labelCopy is on a copy of an original that has gone: id of the change.
	labelCopy = labelPrefix + "copy"
)

// passing reports whether a label belongs to one change: a container that is
// made from this one must not have it.
func passing(label string) bool {
	return strings.HasPrefix(label, labelPrefix) && label != labelAnonymous && label != labelVolumesFrom
}

// origin is what was there before of one part. A change's Origin is a list of
// them, as its parts are.
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
	// Status is the state that an idle part was in.
	Status string `json:"status,omitempty"`
	// Fleeting: the engine removes the original as soon as it is stopped (--rm),
	// so that the way back is a copy.
	Fleeting bool `json:"fleeting,omitempty"`
	// Overlap: the original goes on until the new one has passed the gate.
	Overlap bool `json:"overlap,omitempty"`
	// Snapshot is what a copy is made of if somebody removes the original.
	Snapshot *snapshot `json:"snapshot,omitempty"`
}

// mark is what Apply made: a change's Mark.
type mark struct {
	IDs []string `json:"ids"` // of the new containers, as the parts are; "" for one that is only restarted
	// Engine tells one run of the engine from the next.
	Engine string `json:"engine,omitempty"`
}

// piece is one part of a change, with what was there before and what was made.
type piece struct {
	updater.Part
	origin
	change string // id
	made   string // id of the new container, if the mark tells
}

// workloadName is the container's name in a workload id of this host.
func (h *Host) workloadName(id string) (string, error) {
	name, ok := strings.CutPrefix(id, h.name+"/")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("workload %q is not one of docker host %s", id, h.name)
	}
	return name, nil
}

// pieces reads a change.
func pieces(c updater.Change) ([]piece, error) {
	var origins []origin
	if err := json.Unmarshal(c.Origin, &origins); err != nil {
		return nil, fmt.Errorf("change %s: its record of the original cannot be read: %w", c.ID, err)
	}
	if len(origins) != len(c.Parts) || len(origins) == 0 {
		return nil, fmt.Errorf("change %s: its record of the original is not whole", c.ID)
	}
	m := readMark(c)
	all := make([]piece, len(origins))
	for i, o := range origins {
		if o.Name == "" || o.ID == "" {
			return nil, fmt.Errorf("change %s: its record of the original is not whole", c.ID)
		}
		all[i] = piece{Part: c.Parts[i], origin: o, change: c.ID}
		if i < len(m.IDs) {
			all[i].made = m.IDs[i]
		}
	}
	return all, nil
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
	// still: it is only restarted, so nothing here is to be changed.
	still bool

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
	// idle: the original did not run, and the new one is not to be started.
	idle bool
	// fleeting: the engine removed the original when it was stopped.
	fleeting bool
	// overlap: the original goes on until the commit.
	overlap bool
	// orphaned: the original cannot be started any more, because the one of a
	// container that it uses has gone.
	orphaned bool
	// stranded: the original cannot be started, because that of a container that
	// it uses stands behind somebody else's.
	stranded bool
	// stays: there is no way back for one of the change, so none goes back.
	stays bool
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
	awaitOld  step = "wait until the engine has removed the original"
	renameOld step = "set the original aside"
	renameNew step = "give the new one its name"

	hideNew       step = "take the name from the new one"
	stopNew       step = "stop the new one"
	startNew      step = "start the new one"
	showOld       step = "give the original its name back"
	dropOld       step = "remove the original, which cannot be started any more"
	copyOld       step = "copy the original"
	restorePolicy step = "give the original its restart policy back"
	startOld      step = "start the original"
	removeNew     step = "remove the new one"

	// undone: a restore of this had begun; only a restore may go on.
	undone step = "undone"
	// unprepared: the new one has gone.
	unprepared step = "unprepared"
)

// forward is the next step of one container towards the new one in service.
//
// The order is: the original's restart policy off (an engine starts a
// container with the policy always, stopped or not, when the engine itself
// starts), stop the original, start the new, rename both. Until the new one
// has started, the original keeps its name.
func forward(s scene) step {
	switch {
	case s.still:
		return done
	case s.other:
		return superseded
	case s.new.place == asName:
		if s.old.running && !s.idle {
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
	case s.idle && s.old.place == asName:
		return swap
	case s.idle && !s.old.there() && s.wary:
		return superseded
	case s.idle:
		return renameNew
	case s.overlap && s.old.there() && s.new.running:
		return done
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
		if s.fleeting {
			return swap // we stopped it before a crash
		}
		// We may have stopped it before a crash, and then a prune took it: going
		// back makes a copy. One container too many is better than none.
		return undone
	case !s.new.started, !s.new.running:
		return undone
	case s.old.running:
		return stopOld
	case s.old.place == asName && s.fleeting:
		return awaitOld
	case s.old.place == asName:
		return renameOld
	default:
		return renameNew
	}
}

// forwardAll is the next step of a change of several, and of which container it
// is. What stands in the way of one stands in the way of all. The swap is one
// step for all of them: none is started before all are stopped.
func forwardAll(all []scene) (int, step) {
	next := map[step]int{}
	for i, s := range slices.Backward(all) {
		st := forward(s)
		if _, ok := next[st]; ok && st == stopOld {
			continue // what uses others ends before these
		}
		next[st] = i
	}
	for _, st := range []step{superseded, undone, unprepared, swap, stopOld, awaitOld, renameOld, renameNew} {
		if i, ok := next[st]; ok {
			return i, st
		}
	}
	return 0, done
}

// backward is the next step of one container towards the original in service.
//
// The first is to take the name from the new container: the decision to go
// back, which an engine or a host that is restarted shows from then on. The
// last is to remove the new one, because it marks the change and carries the
// restart policy. Nothing here starts a new container while there is an
// original, and nothing removes one before its original has been started.
func backward(s scene) step {
	switch {
	case s.still:
		return done
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
	case s.stays && s.new.there():
		switch {
		case s.old.running:
			return stopOld
		case s.new.place == asName:
			return kept
		case s.old.place == asName:
			return renameOld
		case !s.new.running && !s.idle:
			return startNew
		}
		return renameNew
	case s.stranded && !s.old.there():
		return superseded // a copy could not be started either
	case s.orphaned && s.copyable && s.old.there():
		switch {
		case s.new.place == asName:
			return hideNew
		case s.new.running:
			return stopNew
		}
		return dropOld
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
		case s.new.place == asNew && !s.new.running && !s.idle:
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
	case s.fleeting && s.old.started && !s.old.running:
		return awaitOld
	case !s.idle && !s.hasPolicy():
		return restorePolicy
	case !s.idle && !s.old.running && !s.stranded:
		return startOld
	case s.new.there():
		return removeNew
	case !s.idle && !s.old.running:
		return superseded
	}
	return done
}

// backwards are the steps of going back in their order: each is taken with all
// containers before the next. In reverse are those that take something from a
// container which others use.
var backwards = []struct {
	step    step
	reverse bool
}{
	{hideNew, false}, {stopNew, true}, {awaitOld, false}, {showOld, false}, {dropOld, true}, {copyOld, false},
	{restorePolicy, false}, {stopOld, true}, {renameOld, false}, {startNew, false}, {renameNew, false}, {startOld, false}, {removeNew, true},
}

// backwardAll is the next step of going back with a change of several, and of
// which container it is; done when none is left. What one comes to stops no
// other.
func backwardAll(all []scene) (int, step) {
	steps := make([]step, len(all))
	for i, s := range all {
		steps[i] = backward(s)
	}
	for _, next := range backwards {
		if next.reverse {
			for i, st := range slices.Backward(steps) {
				if st == next.step {
					return i, st
				}
			}
		} else if i := slices.Index(steps, next.step); i >= 0 {
			return i, next.step
		}
	}
	return 0, done
}

// unfinished: the original is there, and the new one is not in its place.
func (s scene) unfinished() bool { return s.old.there() && s.new.place != asName }

// removed is which part of a change that is to be committed has lost its new
// container while its original is there, and none of the originals has been
// removed by a commit; -1 if it is not so. A commit gives up what a copy would be
// made from before it removes an original.
func removed(all []scene) int {
	lost := -1
	for i, s := range all {
		switch {
		case s.still:
		case !s.old.there() && !s.copyable:
			return -1
		case s.old.there() && !s.new.there():
			lost = i
		}
	}
	return lost
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

// look reads the scenes of a change, one for each piece.
func (h *Host) look(ctx context.Context, all []piece) ([]scene, []boxes, error) {
	casts, err := inParallel(ctx, all, h.find)
	if err != nil {
		return nil, nil, err
	}
	orphaned, stranded := lostOnes(all, casts)
	scenes := make([]scene, len(all))
	for i, p := range all {
		if !p.Replace {
			scenes[i] = scene{still: true}
			continue
		}
		b := casts[i]
		s := scene{
			old: b.side(b.old, p.Name), new: b.side(b.new, p.Name), other: b.other != nil, wanted: p.Policy,
			idle: p.Idle, fleeting: p.Fleeting, overlap: p.Overlap,
			orphaned: orphaned[i], stranded: stranded[i],
		}
		if h.isPodman() && b.old != nil {
			// Its policy cannot be changed there and never was.
			s.wanted = b.old.HostConfig.RestartPolicy
		}
		if (b.old == nil || s.orphaned) && p.Snapshot != nil {
			img, err := h.imageOf(ctx, keptTag(p.Name, p.change))
			if err != nil {
				return nil, nil, err
			}
			s.copyable = img != nil && img.ID == p.Image
		}
		scenes[i] = s
	}
	stay(scenes)
	return scenes, casts, nil
}

// stay marks the scenes of a change of which one cannot go back: neither its
// original nor what a copy would be made of is left. The others could only live
// beside what has gone. One that did not run keeps nobody.
func stay(all []scene) {
	stays := slices.ContainsFunc(all, func(s scene) bool {
		lost := !s.old.there() || s.orphaned
		return !s.still && !s.idle && !s.other && lost && !s.copyable && s.new.there()
	})
	for i := range all {
		all[i].stays = stays && !all[i].still
	}
}

// find looks up the containers of one piece.
func (h *Host) find(ctx context.Context, p piece) (boxes, error) {
	refs := []string{p.ID, p.Name, p.Name + suffixNew, p.Name + suffixOld, p.made}
	found, err := inParallel(ctx, refs, h.inspect)
	if err != nil {
		return boxes{}, err
	}
	return cast(p, found), nil
}

// lostOnes says of each original whether it is orphaned, and whether it is
// stranded. What lives in a stranded one is.
func lostOnes(all []piece, casts []boxes) (orphaned, stranded []bool) {
	orphaned, stranded = make([]bool, len(all)), make([]bool, len(all))
	for i, p := range all { // in start order
		refs := p.livesIn(casts[i])
		for j, other := range all[:i] {
			if !other.Replace || !slices.ContainsFunc(refs, other.meantBy) {
				continue
			}
			there := casts[j].old
			switch {
			case casts[j].other != nil:
				stranded[i] = stranded[i] || there == nil || !there.running()
			case there == nil, casts[j].copied:
				orphaned[i] = orphaned[i] || casts[i].old != nil && !casts[i].copied
			}
			stranded[i] = stranded[i] || stranded[j]
		}
		orphaned[i] = orphaned[i] && !stranded[i]
	}
	return orphaned, stranded
}

// livesIn are the containers that the original cannot be started without. An
// engine forgets a link to a container that is removed; the record does not.
func (p piece) livesIn(b boxes) []string {
	var refs []string
	if b.old != nil && !b.copied {
		refs = livesIn(b.old.HostConfig)
	}
	var was inspected
	if p.Snapshot != nil && json.Unmarshal(p.Snapshot.Container, &was) == nil && was.HostConfig != nil {
		refs = append(refs, livesIn(was.HostConfig)...)
	}
	return refs
}

// meantBy reports whether a reference to a container is to the original.
func (o origin) meantBy(ref string) bool {
	ref = strings.TrimPrefix(ref, "/")
	return ref == o.ID || ref == o.Name || ref == o.Name+suffixOld || len(ref) >= 12 && strings.HasPrefix(o.ID, ref)
}

// cast gives the containers found their roles.
func cast(p piece, found []*box) boxes {
	var b boxes
	seen := map[string]bool{}
	for _, f := range found {
		if f == nil || seen[f.ID] {
			continue
		}
		seen[f.ID] = true
		ours := f.ID == p.made || f.label(labelReplaces) == p.ID && f.label(labelChange) == p.change
		switch {
		case f.ID == p.ID:
			b.old = f
		case ours && (b.new == nil || placeOf(b.new, p.Name) == elsewhere):
			b.new = f
		case f.label(labelCopy) == p.change && b.old == nil && f.name() == p.Name:
			b.old, b.copied = f, true
		case f.name() == p.Name:
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

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/updaterd/updaterd/internal/updater"
)

// mostSteps bounds a walk through the scenes of one container. Without
// interference ten is the longest way.
const mostSteps = 20

// Apply implements updater.Backend.
func (h *Host) Apply(ctx context.Context, c updater.Change) (updater.Applied, error) {
	all, err := pieces(c)
	if err != nil {
		return updater.Applied{}, err
	}
	if _, err := h.connect(ctx); err != nil {
		return updater.Applied{}, err
	}
	if err := h.stepAside(ctx, c, all, updater.OldSide); err != nil {
		return updater.Applied{}, err
	}
	h.mu.Lock()
	wary := h.prepared[c.ID]
	delete(h.prepared, c.ID)
	h.mu.Unlock()

	var applied updater.Applied
	for range mostSteps * len(all) {
		scenes, b, err := h.look(ctx, all)
		if err != nil {
			return updater.Applied{}, err
		}
		for i := range scenes {
			scenes[i].wary = wary
		}
		i, st := forwardAll(scenes)
		p := all[i]
		h.log.Debug("applying", "workload", p.Workload, "change", c.ID, "step", string(st))
		switch st {
		case done:
			if err := h.restart(ctx, all, newOf(b)); err != nil {
				return updater.Applied{}, err
			}
			m := mark{Engine: h.incarnation(ctx), IDs: make([]string, len(all))}
			for i, box := range b {
				if box.new != nil {
					m.IDs[i] = box.new.ID
				}
			}
			if applied.Mark, err = json.Marshal(m); err != nil {
				return updater.Applied{}, fmt.Errorf("marking change %s: %w", c.ID, err)
			}
			return applied, nil
		case swap:
			applied.Gap, err = h.swap(ctx, all, b, wary)
			wary = false
		case stopOld:
			err = h.stop(ctx, b[i].old, stoppingOf(p))
		case awaitOld:
			err = h.waitGone(ctx, b[i].old)
		case renameOld:
			err = h.rename(ctx, b[i].old, p.Name+suffixOld)
		case renameNew:
			err = h.renameLively(ctx, b[i].new, p.Name, true)
		case superseded:
			return updater.Applied{}, h.overtaken(p, all, wary, "")
		case undone:
			if fault := h.fleetingFault(ctx, p); fault != nil {
				return updater.Applied{}, fault
			}
			if b[i].old == nil {
				return updater.Applied{}, fmt.Errorf("container %s has gone: somebody removed it after the change was broken off (docker container prune?)", p.Name)
			}
			if n := b[i].new; n != nil && endedByItself(n, h.isPodman()) {
				// The phase in the journal is that of going forward, so nobody
				// stopped it: it ended between its start and a crash of ours.
				return updater.Applied{}, ended(p, n)
			}
			return updater.Applied{}, fmt.Errorf("container %s: going back had already begun", p.Name)
		case unprepared:
			if fault := h.fleetingFault(ctx, p); fault != nil {
				return updater.Applied{}, fault
			}
			return updater.Applied{}, fmt.Errorf("container %s has gone: somebody removed it (docker container prune?)", p.Name+suffixNew)
		}
		if err != nil {
			return updater.Applied{}, err
		}
	}
	return updater.Applied{}, fmt.Errorf("container %s changes under our hands: is something else at work on it?", all[0].Name)
}

// mostRestarts are those after which an image is bad, as for a gate.
const mostRestarts = 3

// ended is the fault of an image whose container ended right after its start.
func ended(p piece, b *box) error {
	return &updater.Fault{Verdict: updater.Bad, Workload: p.Workload,
		Err: fmt.Errorf("it exited with code %d right after its start", b.State.ExitCode)}
}

// overtaken is the error for a container that somebody else changed. A group of
// which some may have been stopped already must be started again, so that is no
// decision of theirs about all of it.
func (h *Host) overtaken(p piece, all []piece, wary bool, why string) error {
	if why != "" {
		why = ": " + why
	}
	if len(all) > 1 && !wary {
		return fmt.Errorf("container %s%s: somebody else changed it after the change was broken off", p.Name, why)
	}
	return fmt.Errorf("container %s%s: %w", p.Name, why, updater.ErrSuperseded)
}

// swap goes from created new containers to ones in service, without a look in
// between: what is between the first stop and the last start is a gap in
// service, and a program that exits at once would look as if it had been
// stopped. What was done before a crash is not done again.
func (h *Host) swap(ctx context.Context, all []piece, b []boxes, wary bool) (gap time.Duration, err error) {
	for i, p := range all {
		old := b[i].old
		if !p.Replace || old == nil || old.name() != p.Name {
			continue
		}
		why := changed(p, old, wary)
		if why == "" {
			continue
		}
		if !wary && old.HostConfig.RestartPolicy.Name != p.Policy.Name {
			// It may have been us who took it, before a crash.
			if err := h.setPolicy(ctx, old, p.Policy); err != nil {
				return 0, err
			}
		}
		return 0, h.overtaken(p, all, wary, why)
	}
	for i, p := range all {
		old := b[i].old
		if p.stops() && old != nil && risesAlone(old.HostConfig.RestartPolicy.Name) && !h.isPodman() {
			if err := h.setPolicy(ctx, old, container.RestartPolicy{Name: container.RestartPolicyDisabled}); err != nil {
				return 0, err
			}
		}
	}
	var began time.Time
	for i, p := range slices.Backward(all) {
		if old := b[i].old; p.stops() && old != nil && old.running() {
			if began.IsZero() {
				began = time.Now()
			}
			if err := h.stop(ctx, old, stoppingOf(p)); err != nil {
				return 0, err
			}
		}
	}
	for i, p := range all {
		if !p.Replace || p.Idle || b[i].new.running() {
			continue
		}
		if err := h.startNext(ctx, all, b, i); err != nil {
			return 0, err
		}
	}
	if !began.IsZero() {
		gap = time.Since(began)
	}
	for i, p := range all {
		old := b[i].old
		switch {
		case !p.Replace || p.Overlap || old == nil || old.name() != p.Name:
		case p.Fleeting:
			if err := h.waitGone(ctx, old); err != nil {
				return 0, err
			}
		default:
			if err := h.rename(ctx, old, p.Name+suffixOld); err != nil {
				return 0, err
			}
		}
	}
	for i, p := range all {
		if p.Replace && !p.Overlap && b[i].new.name() != p.Name {
			if p.Fleeting {
				// One that the engine is about to remove must not be renamed: an
				// engine then never lets go of the name.
				now, err := h.inspect(ctx, b[i].new.ID)
				if err != nil {
					return 0, err
				}
				if now == nil || !now.running() {
					return gap, nil // the next look tells how it ended
				}
			}
			err := h.renameLively(ctx, b[i].new, p.Name, true)
			if p.Fleeting && isGone(err) {
				return gap, nil
			}
			if err != nil {
				return 0, err
			}
		}
	}
	return gap, nil
}

// stops reports whether the original is stopped before the new one starts.
func (p piece) stops() bool { return p.Replace && !p.Idle && !p.Overlap }

// crashLimit is how long a new container that is in a crash loop may take until
// it is clear whether it comes to itself.
const crashLimit = 30 * time.Second

// startNext starts the new container of one part after those before it. What it
// uses may end, or be between two restarts, at that very moment; then that is
// given as many restarts as a gate would give it.
func (h *Host) startNext(ctx context.Context, all []piece, b []boxes, next int) error {
	ctx, cancel := context.WithTimeout(ctx, crashLimit+startLimit)
	defer cancel()
	for began := time.Now(); ; {
		err := h.start(ctx, b[next].new)
		if err == nil {
			return nil
		}
		crashing := false
		for j := range next {
			if !all[j].Replace || all[j].Idle {
				continue
			}
			now, lookErr := h.inspect(ctx, b[j].new.ID)
			switch {
			case lookErr != nil || now == nil:
			case endedByItself(now, h.isPodman()):
				return &updater.Fault{Verdict: updater.Bad, Workload: all[j].Workload,
					Err: fmt.Errorf("%s: it exited with code %d right after its start: %w", all[j].Workload, now.State.ExitCode, err)}
			case now.RestartCount >= mostRestarts:
				return &updater.Fault{Verdict: updater.Bad, Workload: all[j].Workload,
					Err: fmt.Errorf("%s: it was restarted %d times right after its start: %w", all[j].Workload, now.RestartCount, err)}
			default:
				crashing = crashing || now.State.Restarting || now.RestartCount > 0
			}
		}
		if f, ok := errors.AsType[*updater.Fault](err); ok {
			f.Workload = all[next].Workload
		}
		if !crashing || time.Since(began) > crashLimit {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// restart restarts what is only restarted, once all else runs, and what lives in
// that: its namespaces are others then. serving are the containers of the parts
// that are replaced, of the side that is to run. Doing so twice, after a crash,
// does no harm. The engine sees a restart that it has begun through, whatever
// becomes of us.
func (h *Host) restart(ctx context.Context, all []piece, serving []*box) error {
	var restarted []piece
	for i, p := range all {
		b := serving[i]
		switch {
		case p.Idle:
			continue
		case !p.Replace:
			var err error
			if b, err = h.inspect(ctx, p.ID); err != nil {
				return err
			}
		case b == nil || !slices.ContainsFunc(livesIn(b.HostConfig), func(ref string) bool {
			return slices.ContainsFunc(restarted, func(r piece) bool { return r.ID == ref || r.made != "" && r.made == ref })
		}):
			continue
		}
		if b == nil {
			continue // somebody removed it: nothing is left to restart
		}
		if err := h.restartOne(ctx, b, stoppingOf(p)); err != nil {
			return err
		}
		p.made = b.ID
		restarted = append(restarted, p)
	}
	return nil
}

func newOf(all []boxes) []*box {
	serving := make([]*box, len(all))
	for i, b := range all {
		serving[i] = b.new
	}
	return serving
}

func oldOf(all []boxes) []*box {
	serving := make([]*box, len(all))
	for i, b := range all {
		serving[i] = b.old
	}
	return serving
}

// changed says how somebody changed the original since it was planned; "" when
// nobody did.
func changed(p piece, old *box, wary bool) string {
	now := old.HostConfig.RestartPolicy
	same := now.Name == p.Policy.Name && now.MaximumRetryCount == p.Policy.MaximumRetryCount
	off := !wary && (now.Name == "" || now.Name == container.RestartPolicyDisabled)
	switch {
	case p.Idle && string(old.State.Status) != p.Status:
		return fmt.Sprintf("it was %s and is %s now", p.Status, old.State.Status)
	case !p.Idle && old.State.Paused:
		return "it was paused"
	case p.Settled != "" && settled(old) != p.Settled:
		return "its settings were changed"
	case !same && !off:
		return "its restart policy was changed"
	}
	return ""
}

// Restore implements updater.Backend.
func (h *Host) Restore(ctx context.Context, c updater.Change) (updater.Restoration, error) {
	all, err := pieces(c)
	if err != nil {
		return updater.Restoration{}, err
	}
	if _, err := h.connect(ctx); err != nil {
		return updater.Restoration{}, err
	}
	if c.Disturbed { // else only what was created goes
		if err := h.stepAside(ctx, c, all, updater.NewSide); err != nil {
			return updater.Restoration{}, err
		}
	}
	h.mu.Lock()
	delete(h.prepared, c.ID)
	h.mu.Unlock()

	for _, p := range all {
		if err := h.removeTests(ctx, p.Name); err != nil {
			return updater.Restoration{}, err
		}
	}
	var handsOff, restarts bool // restarts: what is only restarted must be, once more
	for n := range mostSteps * len(all) {
		scenes, b, err := h.look(ctx, all)
		if err != nil {
			return updater.Restoration{}, err
		}
		if n == 0 {
			// The engine beats the record: what shows our hand was touched.
			touched := slices.ContainsFunc(scenes, func(s scene) bool { return s.new.started || s.old.place == asOld })
			handsOff = (c.Superseded || !c.Disturbed) && !touched
			restarts = !handsOff && slices.ContainsFunc(scenes, func(s scene) bool { return touched || !s.still && !s.idle && !s.old.running })
		}
		for i := range scenes {
			scenes[i].handsOff = handsOff
		}
		i, st := backwardAll(scenes)
		p := all[i]
		h.log.Debug("restoring", "workload", p.Workload, "change", c.ID, "step", string(st))
		if n := b[i].new; st != done && p.Fleeting && n != nil && n.started() && !n.running() {
			// The engine is about to remove it, or has failed to.
			if err := h.remove(ctx, n); err != nil {
				return updater.Restoration{}, err
			}
			continue
		}
		switch st {
		case done:
			return h.restored(ctx, c, all, scenes, b)
		case hideNew:
			err = h.renameLively(ctx, b[i].new, p.Name+suffixNew, false)
		case stopNew:
			if p.Overlap {
				err = h.detach(ctx, b[i].new) // or requests would be led to it while it ends
			}
			if err == nil {
				err = h.stop(ctx, b[i].new, stoppingOf(p))
			}
		case stopOld:
			err = h.stop(ctx, b[i].old, stoppingOf(p))
		case renameOld:
			err = h.rename(ctx, b[i].old, p.Name+suffixOld)
		case startNew:
			// At one go: one that ends at once has its name all the same.
			if err = h.start(ctx, b[i].new); err == nil {
				err = h.renameLively(ctx, b[i].new, p.Name, true)
			}
		case renameNew:
			err = h.renameLively(ctx, b[i].new, p.Name, true)
		case showOld:
			err = h.rename(ctx, b[i].old, p.Name)
		case restorePolicy:
			err = h.setPolicy(ctx, b[i].old, scenes[i].wanted)
		case startOld:
			if n := b[i].new; n != nil && loops(n) {
				// It would hold the original's ports again in no time.
				if err = h.stop(ctx, n, stoppingOf(p)); err != nil {
					break
				}
			}
			if err = h.reattach(ctx, p, b[i].old); err != nil {
				break
			}
			if err = linkedAnew(b[i].old); err != nil {
				break
			}
			if err = h.start(ctx, b[i].old); err != nil {
				err = h.blameThief(ctx, b[i].old, err)
			}
		case dropOld:
			err = h.remove(ctx, b[i].old)
		case awaitOld:
			err = h.waitGone(ctx, b[i].old)
		case copyOld:
			err = h.copyOriginal(ctx, p, all, b)
		case removeNew:
			if restarts {
				// Before the last trace goes: a crash repeats it.
				if err := h.restart(ctx, all, oldOf(b)); err != nil {
					return updater.Restoration{}, err
				}
				restarts = false
			}
			// Tags first: the new container tells which image they may be moved from.
			if err := h.returnTag(ctx, c, p, b[i].new.ID, b[i].new.Image); err != nil {
				return updater.Restoration{}, err
			}
			h.untagKept(ctx, p)
			if err = h.remove(ctx, b[i].new); err == nil {
				h.tidy(ctx, c, p, b[i].new.Image)
			}
		}
		if p.Fleeting && isGone(err) {
			continue // the engine was faster
		}
		if err != nil {
			return updater.Restoration{}, err
		}
	}
	return updater.Restoration{}, fmt.Errorf("container %s changes under our hands: is something else at work on it?", all[0].Name)
}

// restored is what a Restore says that has nothing left to do.
func (h *Host) restored(ctx context.Context, c updater.Change, all []piece, scenes []scene, b []boxes) (updater.Restoration, error) {
	var r updater.Restoration
	var errs []error
	for i, p := range all {
		if !p.Replace {
			continue
		}
		switch backward(scenes[i]) {
		case kept:
			r.Kept = true
			h.untagKept(ctx, p)
			continue
		case superseded:
			if old := b[i].old; old != nil && old.name() == p.Name+suffixOld {
				errs = append(errs, fmt.Errorf("container %s: the original is stopped as %s, remove it when it is not wanted any more: %w",
					p.Name, old.name(), updater.ErrSuperseded))
			} else {
				errs = append(errs, fmt.Errorf("container %s: %w", p.Name, updater.ErrSuperseded))
			}
		}
		r.Copy = r.Copy || b[i].copied
		if b[i].copied && p.Fleeting {
			r.Why = "the engine had removed the original when it was stopped, as one run with --rm"
		}
		h.tidy(ctx, c, p, "")
	}
	return r, errors.Join(errs...)
}

// tidy takes back what a change that was given up did to tags and images. The
// containers are as they should be by then, so it fails nothing.
func (h *Host) tidy(ctx context.Context, c updater.Change, p piece, newImage string) {
	if err := h.returnTag(ctx, c, p, "", newImage); err != nil {
		h.log.Warn("local tag cannot be moved back", "workload", p.Workload, "err", err)
	}
	h.untagKept(ctx, p)
	if newImage == "" || !p.NewImage || c.Verdict != updater.Bad {
		return
	}
	// It will not be tried again, so it only takes room.
	if err := h.drop(ctx, newImage); err != nil {
		h.log.Warn("rejected image cannot be removed", "workload", p.Workload, "err", err)
	}
}

// Commit implements updater.Backend.
func (h *Host) Commit(ctx context.Context, c updater.Change) error {
	all, err := pieces(c)
	if err != nil {
		return err
	}
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	if err := h.stepAside(ctx, c, all, updater.OldSide); err != nil {
		return err
	}
	scenes, b, err := h.look(ctx, all)
	if err != nil {
		return err
	}
	if err := overruled(all, scenes); err != nil {
		return err
	}
	for _, p := range all {
		if err := h.removeTests(ctx, p.Name); err != nil {
			return err
		}
	}
	for i, p := range slices.Backward(all) {
		if p.Overlap {
			if err := h.retire(ctx, p, &scenes[i], b[i]); err != nil {
				return err
			}
		}
		// The copy that could be made from the kept image goes first, the original
		// last: its removal is what ends the change.
		if p.Replace && !scenes[i].unfinished() {
			if p.Settings.Keep != 0 && scenes[i].new.place == asName && p.Changes() {
				h.keepImage(ctx, c, p)
			}
			h.untagKept(ctx, p)
		}
	}
	// That may have taken long.
	if scenes, b, err = h.look(ctx, all); err != nil {
		return err
	}
	if err := overruled(all, scenes); err != nil {
		return err
	}
	for i, p := range slices.Backward(all) { // what uses others goes before these
		if !p.Replace {
			continue
		}
		if err := h.commit(ctx, p, scenes[i], b[i]); err != nil {
			return err
		}
	}
	return nil
}

// overruled is the error for a new container that somebody removed while its
// original can still come back.
func overruled(all []piece, scenes []scene) error {
	if i := removed(scenes); i >= 0 {
		return fmt.Errorf("container %s was removed before its original was: %w", all[i].Name, updater.ErrSuperseded)
	}
	return nil
}

// retire takes the place of an original that went on beside the new one: first
// its name, then its networks, so that nobody is led to it while it ends.
func (h *Host) retire(ctx context.Context, p piece, s *scene, b boxes) error {
	if !s.new.there() || s.new.place == elsewhere || s.other {
		return nil // the original stays
	}
	if s.old.place == asName {
		if err := h.renameLively(ctx, b.old, p.Name+suffixOld, false); err != nil {
			return err
		}
	}
	if s.new.place == asNew {
		if err := h.renameLively(ctx, b.new, p.Name, true); err != nil {
			return err
		}
		s.new.place = asName
	}
	if b.old == nil || !b.old.running() {
		return nil
	}
	if err := h.detach(ctx, b.old); err != nil {
		return err
	}
	return h.stop(ctx, b.old, stoppingOf(p))
}

// detach takes a container off all its networks, so that their names for it lead
// nobody there. An engine takes them back only once its program has ended.
func (h *Host) detach(ctx context.Context, b *box) error {
	if b.NetworkSettings == nil || b.HostConfig.NetworkMode.IsNone() {
		return nil
	}
	for name := range b.NetworkSettings.Networks {
		err := h.disconnect(ctx, b, name)
		if told(err) {
			// Between two restarts it is in none. It is stopped next all the same.
			h.log.Debug("container cannot be taken off a network", "workload", h.name+"/"+b.name(), "err", err)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) commit(ctx context.Context, p piece, s scene, b boxes) error {
	if s.unfinished() {
		// Never the last one of a workload, and never beside a stranger.
		h.log.Warn("original is kept, the new container is not in its place", "workload", p.Workload, "reason", string(s.new.place))
		return nil
	}
	if b.old != nil {
		if err := h.remove(ctx, b.old); err != nil {
			return err
		}
		h.untagKept(ctx, p)
	}
	if !p.Changes() {
		return nil
	}
	if err := h.keepPrevious(ctx, p); err != nil {
		h.log.Warn("previous images cannot be cleaned up", "workload", p.Workload, "err", err)
	}
	return nil
}

// keepImage tags the original's image for going back by hand.
func (h *Host) keepImage(ctx context.Context, c updater.Change, p piece) {
	img, err := h.imageOf(ctx, p.Image)
	if err == nil && img != nil {
		err = h.tag(ctx, p.Image, previousTag(p.Name, c))
	}
	if err != nil {
		h.log.Warn("previous image cannot be kept", "workload", p.Workload, "err", err)
	}
}

// untagKept lets go of the images kept for changes of this workload; only one
// is under way at a time. One that cannot be let go now is at the next change.
func (h *Host) untagKept(ctx context.Context, p piece) {
	tags, err := h.tagsOf(ctx, keptRepository+pathComponent(p.Name))
	for _, t := range tags {
		if err = h.untag(ctx, t.name); err != nil && !cerrdefs.IsConflict(err) {
			break
		}
		err = nil
	}
	if err != nil {
		h.log.Warn("kept image cannot be let go", "workload", p.Workload, "err", err)
	}
}

// copyOriginal makes an original anew from its record, with what it uses as it
// is now.
func (h *Host) copyOriginal(ctx context.Context, p piece, all []piece, b []boxes) error {
	var was inspected
	if err := json.Unmarshal(p.Snapshot.Container, &was); err != nil {
		return fmt.Errorf("reading the record of container %s: %w", p.Name, err)
	}
	moved := map[string]string{}
	for _, ref := range references(was.HostConfig) {
		for j, other := range all {
			if other.meantBy(ref) && b[j].old != nil {
				moved[ref] = b[j].old.ID
			}
		}
	}
	spec, err := recreate(*p.Snapshot, p.Snapshot.Image, was.Config.Image, moved)
	if err != nil {
		return err
	}
	if spec.Config.Labels == nil {
		spec.Config.Labels = map[string]string{}
	}
	maps.DeleteFunc(spec.Config.Labels, func(k, _ string) bool { return passing(k) })
	spec.Config.Labels[labelCopy] = p.change
	if p.Idle {
		spec.Config.Labels[labelIdle] = p.Status
	}
	tag, err := localTag(was.Config.Image)
	if err != nil {
		return err
	}
	return h.lend(ctx, tag, p.Image, func() error {
		if _, err := h.createAs(ctx, p.Name, spec); err != nil {
			return fmt.Errorf("copying the original, which has gone: %w", err)
		}
		return nil
	})
}

// lend makes a tag stand for an image while something is created by it. The tag
// is somebody's own, so it stands for the same image as before afterwards; one
// that did not exist stays. "" is no tag.
func (h *Host) lend(ctx context.Context, tag, image string, create func() error) error {
	if tag == "" {
		return create()
	}
	unlock := h.refs.lock(tag)
	defer unlock()
	now, err := h.imageOf(ctx, tag)
	if err != nil {
		return err
	}
	if now == nil || now.ID != image {
		if err := h.tag(ctx, image, tag); err != nil {
			return err
		}
		if now != nil {
			defer func() {
				if err := h.tag(ctx, now.ID, tag); err != nil {
					h.log.Warn("local tag cannot be moved back", "image", tag, "err", err)
				}
			}()
		}
	}
	return create()
}

func (h *Host) isPodman() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.podman
}

func (h *Host) rename(ctx context.Context, b *box, name string) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if err := h.client().ContainerRename(ctx, b.ID, name); err != nil {
		return fmt.Errorf("renaming container %s to %s: %w", b.name(), name, err)
	}
	return nil
}

// renameLively renames a container that may be between two restarts: engines
// refuse that then ("sandbox not found"), and one in a crash loop is hardly
// ever found running. It is stopped for the rename, which ends the loop, and
// started again if it is to go on.
func (h *Host) renameLively(ctx context.Context, b *box, name string, on bool) error {
	err := h.rename(ctx, b, name)
	if err == nil || !told(err) || cerrdefs.IsConflict(err) || cerrdefs.IsNotFound(err) && !strings.Contains(err.Error(), "sandbox") {
		return err
	}
	if err := h.stop(ctx, b, stopping{}); err != nil {
		return err
	}
	if err := h.rename(ctx, b, name); err != nil || !on {
		return err
	}
	return h.start(ctx, b)
}

// setPolicy sends the count along: an update that leaves it out makes it 0.
func (h *Host) setPolicy(ctx context.Context, b *box, p container.RestartPolicy) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if p.Name == "" {
		p.Name = container.RestartPolicyDisabled
	}
	if _, err := h.client().ContainerUpdate(ctx, b.ID, container.UpdateConfig{RestartPolicy: p}); err != nil {
		return fmt.Errorf("setting the restart policy of container %s to %s: %w", b.name(), p.Name, err)
	}
	return nil
}

func (h *Host) disconnect(ctx context.Context, b *box, name string) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if err := h.client().NetworkDisconnect(ctx, name, b.ID, true); err != nil {
		return fmt.Errorf("disconnecting container %s from network %s: %w", b.name(), name, err)
	}
	return nil
}

// restartOne stops a container as stop does, and starts it again.
func (h *Host) restartOne(ctx context.Context, b *box, set stopping) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout(b, set.timeout)+stopSlack+startLimit)
	defer cancel()
	if err := h.client().ContainerRestart(ctx, b.ID, set.options()); err != nil {
		return fmt.Errorf("restarting container %s: %w", b.name(), err)
	}
	return nil
}

// stopping is how settings want a container stopped. What they leave out is as
// the container has it.
type stopping struct {
	timeout time.Duration
	signal  string
}

func stoppingOf(p piece) stopping {
	return stopping{timeout: p.Settings.StopTimeout, signal: p.Settings.StopSignal}
}

func (s stopping) options() container.StopOptions {
	opts := container.StopOptions{Signal: s.signal}
	if s.timeout > 0 {
		seconds := int(math.Ceil(s.timeout.Seconds()))
		opts.Timeout = &seconds
	}
	return opts
}

// stop stops a container with its own signal and timeout, unless one is set.
// That also cancels a restart that is pending.
func (h *Host) stop(ctx context.Context, b *box, set stopping) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout(b, set.timeout)+stopSlack)
	defer cancel()
	stop := func() error { return h.client().ContainerStop(ctx, b.ID, set.options()) }
	err := stop()
	if err == nil && h.isPodman() {
		err = endLoop(ctx, func() (*box, error) { return h.inspect(ctx, b.ID) }, stop)
	}
	if err != nil {
		return fmt.Errorf("stopping container %s: %w", b.name(), err)
	}
	return nil
}

func (h *Host) start(ctx context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	err := h.client().ContainerStart(ctx, b.ID, container.StartOptions{})
	switch {
	case err == nil:
		return nil
	case told(err) && strings.Contains(err.Error(), "already exists"):
		// Seen after a kill -9 of dockerd 20.10 in the middle of a start:
		// containerd kept the task, and only dockerd itself can take it away.
		return fmt.Errorf("starting container %s: the engine lost track of it when it was killed; restart the engine: %w", b.name(), err)
	case told(err) && !isGone(err):
		return &updater.Fault{Verdict: blame(err.Error()), Err: fmt.Errorf("starting container %s: %w", b.name(), err)}
	}
	return fmt.Errorf("starting container %s: %w", b.name(), err)
}

// isGone: the container has gone. A start also answers 404 for a missing network.
func isGone(err error) bool {
	return cerrdefs.IsNotFound(err) && strings.Contains(strings.ToLower(err.Error()), "no such container")
}

// endedByItself: it has stopped, with a code that no engine gives a container it
// stops or loses, and under a policy that lets it lie.
func endedByItself(b *box, podman bool) bool {
	return !endsWhenStopped(b.State.ExitCode) && b.started() && !b.running() && b.State.Error == "" && !stoppedByHand(b, podman)
}

// endsWhenStopped: a container may have that exit code because an engine stopped
// or lost it.
func endsWhenStopped(code int) bool {
	return code == 0 || code == 137 || code == 143 || code == 255
}

// waitGone waits until a removal that somebody else began is over.
func (h *Host) waitGone(ctx context.Context, b *box) error {
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	for {
		now, err := h.inspect(ctx, b.ID)
		if err != nil || now == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("removing container %s: a removal is under way that does not end: %w", b.name(), ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// incarnation tells one run of the engine from the next: it makes its default
// bridge anew whenever it starts. "" where there is none.
func (h *Host) incarnation(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	n, err := h.client().NetworkInspect(ctx, network.NetworkBridge, network.InspectOptions{})
	if err != nil {
		return ""
	}
	return n.ID
}

package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/updaterd/updaterd/internal/updater"
)

// mostSteps bounds a walk through the scenes of a change. Without interference
// seven is the longest way.
const mostSteps = 20

// Apply implements updater.Backend.
func (h *Host) Apply(ctx context.Context, c updater.Change) (updater.Applied, error) {
	o, err := readOrigin(c)
	if err != nil {
		return updater.Applied{}, err
	}
	if _, err := h.connect(ctx); err != nil {
		return updater.Applied{}, err
	}
	h.mu.Lock()
	wary := h.prepared[c.ID]
	delete(h.prepared, c.ID)
	h.mu.Unlock()

	var applied updater.Applied
	for range mostSteps {
		s, b, err := h.look(ctx, c, o)
		if err != nil {
			return updater.Applied{}, err
		}
		s.wary = wary
		st := forward(s)
		h.log.Debug("applying", "workload", c.Unit, "step", string(st))
		switch st {
		case done:
			if applied.Mark, err = json.Marshal(mark{ID: b.new.ID, Engine: h.incarnation(ctx)}); err != nil {
				return updater.Applied{}, fmt.Errorf("marking change %s: %w", c.ID, err)
			}
			return applied, nil
		case swap:
			applied.Gap, err = h.swap(ctx, c, o, b, wary)
			wary = false
		case stopOld:
			err = h.stop(ctx, b.old, c.Parts[0].Settings.StopTimeout)
		case renameOld:
			err = h.rename(ctx, b.old, o.Name+suffixOld)
		case renameNew:
			err = h.renameLively(ctx, b.new, o.Name, true)
		case superseded:
			return updater.Applied{}, fmt.Errorf("container %s: %w", o.Name, updater.ErrSuperseded)
		case undone:
			if b.old == nil {
				return updater.Applied{}, fmt.Errorf("container %s has gone: somebody removed it after the change was broken off (docker container prune?)", o.Name)
			}
			if n := b.new; n != nil && endedByItself(n, h.isPodman()) {
				// The phase in the journal is that of going forward, so nobody
				// stopped it: it ended between its start and a crash of ours.
				return updater.Applied{}, &updater.Fault{Verdict: updater.Bad,
					Err: fmt.Errorf("it exited with code %d right after its start", n.State.ExitCode)}
			}
			return updater.Applied{}, fmt.Errorf("container %s: going back had already begun", o.Name)
		case unprepared:
			return updater.Applied{}, fmt.Errorf("container %s has gone: somebody removed it (docker container prune?)", o.Name+suffixNew)
		}
		if err != nil {
			return updater.Applied{}, err
		}
	}
	return updater.Applied{}, fmt.Errorf("container %s changes under our hands: is something else at work on it?", o.Name)
}

// swap goes from a created new container to one in service, without a look in
// between: what is between the stop and the start is a gap in service, and a
// program that exits at once would look as if it had been stopped.
func (h *Host) swap(ctx context.Context, c updater.Change, o origin, b boxes, wary bool) (gap time.Duration, err error) {
	if why := changed(o, b.old, wary); why != "" {
		if !wary && b.old.HostConfig.RestartPolicy.Name != o.Policy.Name {
			// It may have been us who took it, before a crash.
			if err := h.setPolicy(ctx, b.old, o.Policy); err != nil {
				return 0, err
			}
		}
		return 0, fmt.Errorf("container %s: %s: %w", o.Name, why, updater.ErrSuperseded)
	}
	if risesAlone(b.old.HostConfig.RestartPolicy.Name) && !h.isPodman() {
		if err := h.setPolicy(ctx, b.old, container.RestartPolicy{Name: container.RestartPolicyDisabled}); err != nil {
			return 0, err
		}
	}
	var began time.Time
	if b.old.running() {
		began = time.Now()
		if err := h.stop(ctx, b.old, c.Parts[0].Settings.StopTimeout); err != nil {
			return 0, err
		}
	}
	if err := h.start(ctx, b.new); err != nil {
		return 0, err
	}
	if !began.IsZero() {
		gap = time.Since(began)
	}
	if err := h.rename(ctx, b.old, o.Name+suffixOld); err != nil {
		return 0, err
	}
	return gap, h.renameLively(ctx, b.new, o.Name, true)
}

// changed says how somebody changed the original since it was planned; "" when
// nobody did.
func changed(o origin, old *box, wary bool) string {
	p := old.HostConfig.RestartPolicy
	same := p.Name == o.Policy.Name && p.MaximumRetryCount == o.Policy.MaximumRetryCount
	off := !wary && (p.Name == "" || p.Name == container.RestartPolicyDisabled)
	switch {
	case old.State.Paused:
		return "it was paused"
	case o.Settled != "" && settled(old) != o.Settled:
		return "its settings were changed"
	case !same && !off:
		return "its restart policy was changed"
	}
	return ""
}

// Restore implements updater.Backend.
func (h *Host) Restore(ctx context.Context, c updater.Change) (updater.Restoration, error) {
	o, err := readOrigin(c)
	if err != nil {
		return updater.Restoration{}, err
	}
	if _, err := h.connect(ctx); err != nil {
		return updater.Restoration{}, err
	}
	h.mu.Lock()
	delete(h.prepared, c.ID)
	h.mu.Unlock()

	var handsOff bool
	for i := range mostSteps {
		s, b, err := h.look(ctx, c, o)
		if err != nil {
			return updater.Restoration{}, err
		}
		if i == 0 {
			// The engine beats the record: what shows our hand was touched.
			handsOff = (c.Superseded || !c.Disturbed) && !s.new.started && s.old.place != asOld
		}
		s.handsOff = handsOff
		st := backward(s)
		h.log.Debug("restoring", "workload", c.Unit, "step", string(st))
		switch st {
		case done:
			h.tidy(ctx, c, o, "")
			return updater.Restoration{Copy: b.copied}, nil
		case kept:
			return updater.Restoration{Kept: true}, nil
		case superseded:
			h.tidy(ctx, c, o, "")
			if b.old != nil && b.old.name() == o.Name+suffixOld {
				return updater.Restoration{}, fmt.Errorf("container %s: the original is stopped as %s, remove it when it is not wanted any more: %w",
					o.Name, b.old.name(), updater.ErrSuperseded)
			}
			return updater.Restoration{}, fmt.Errorf("container %s: %w", o.Name, updater.ErrSuperseded)
		case hideNew:
			err = h.renameLively(ctx, b.new, o.Name+suffixNew, false)
		case stopNew:
			err = h.stop(ctx, b.new, c.Parts[0].Settings.StopTimeout)
		case startNew:
			err = h.start(ctx, b.new)
		case renameNew:
			err = h.renameLively(ctx, b.new, o.Name, true)
		case showOld:
			err = h.rename(ctx, b.old, o.Name)
		case restorePolicy:
			err = h.setPolicy(ctx, b.old, s.wanted)
		case startOld:
			if err = h.start(ctx, b.old); err != nil {
				err = h.blameThief(ctx, b.old, err)
			}
		case copyOld:
			err = h.copyOriginal(ctx, c, o)
		case removeNew:
			// Tags first: the new container tells which image they may be moved from.
			if err := h.returnTag(ctx, c, o, b.new.ID, b.new.Image); err != nil {
				return updater.Restoration{}, err
			}
			h.untagKept(ctx, o)
			if err = h.remove(ctx, b.new); err == nil {
				h.tidy(ctx, c, o, b.new.Image)
			}
		}
		if err != nil {
			return updater.Restoration{}, err
		}
	}
	return updater.Restoration{}, fmt.Errorf("container %s changes under our hands: is something else at work on it?", o.Name)
}

// tidy takes back what a change that was given up did to tags and images. The
// containers are as they should be by then, so it fails nothing.
func (h *Host) tidy(ctx context.Context, c updater.Change, o origin, newImage string) {
	if err := h.returnTag(ctx, c, o, "", newImage); err != nil {
		h.log.Warn("local tag cannot be moved back", "workload", c.Unit, "err", err)
	}
	h.untagKept(ctx, o)
	if newImage == "" || !o.NewImage || c.Verdict != updater.Bad {
		return
	}
	// It will not be tried again, so it only takes room.
	if err := h.drop(ctx, newImage); err != nil {
		h.log.Warn("rejected image cannot be removed", "workload", c.Unit, "err", err)
	}
}

// Commit implements updater.Backend.
func (h *Host) Commit(ctx context.Context, c updater.Change) error {
	o, err := readOrigin(c)
	if err != nil {
		return err
	}
	if _, err := h.connect(ctx); err != nil {
		return err
	}
	s, b, err := h.look(ctx, c, o)
	if err != nil {
		return err
	}
	if s.old.there() && s.new.place != asName {
		// Never the last one of a workload, and never beside a stranger.
		h.log.Warn("original is kept, the new container is not in its place", "workload", c.Unit, "reason", string(s.new.place))
		return nil
	}
	// The copy that could be made from the kept image goes first, the original
	// last: its removal is what ends the change.
	if c.Parts[0].Settings.Keep != 0 && s.new.place == asName {
		h.keepImage(ctx, c, o)
	}
	h.untagKept(ctx, o)
	if b.old != nil {
		if err := h.remove(ctx, b.old); err != nil {
			return err
		}
		h.untagKept(ctx, o)
	}
	if err := h.keepPrevious(ctx, c, o); err != nil {
		h.log.Warn("previous images cannot be cleaned up", "workload", c.Unit, "err", err)
	}
	return nil
}

// keepImage tags the original's image for going back by hand.
func (h *Host) keepImage(ctx context.Context, c updater.Change, o origin) {
	img, err := h.imageOf(ctx, o.Image)
	if err == nil && img != nil {
		err = h.tag(ctx, o.Image, previousTag(o.Name, c))
	}
	if err != nil {
		h.log.Warn("previous image cannot be kept", "workload", c.Unit, "err", err)
	}
}

// untagKept lets go of the images kept for changes of this workload; only one
// is under way at a time. One that cannot be let go now is at the next change.
func (h *Host) untagKept(ctx context.Context, o origin) {
	tags, err := h.tagsOf(ctx, keptRepository+pathComponent(o.Name))
	for _, t := range tags {
		if err = h.untag(ctx, t.name); err != nil && !cerrdefs.IsConflict(err) {
			break
		}
		err = nil
	}
	if err != nil {
		h.log.Warn("kept image cannot be let go", "workload", h.name+"/"+o.Name, "err", err)
	}
}

// copyOriginal makes the original anew from its record. The tag must stand for
// its image while it is created.
func (h *Host) copyOriginal(ctx context.Context, c updater.Change, o origin) error {
	var was struct {
		Config struct{ Image string }
	}
	if err := json.Unmarshal(o.Snapshot.Container, &was); err != nil {
		return fmt.Errorf("reading the record of container %s: %w", o.Name, err)
	}
	spec, err := recreate(*o.Snapshot, o.Snapshot.Image, was.Config.Image)
	if err != nil {
		return err
	}
	if spec.Config.Labels == nil {
		spec.Config.Labels = map[string]string{}
	}
	for k := range spec.Config.Labels {
		if strings.HasPrefix(k, labelPrefix) && k != labelAnonymous {
			delete(spec.Config.Labels, k)
		}
	}
	spec.Config.Labels[labelCopy] = c.ID
	spec.Host.RestartPolicy = o.Policy

	tag, err := localTag(was.Config.Image)
	if err != nil {
		return err
	}
	if tag != "" {
		unlock := h.refs.lock(tag)
		defer unlock()
		now, err := h.imageOf(ctx, tag)
		if err != nil {
			return err
		}
		if now == nil || now.ID != o.Image {
			if err := h.tag(ctx, o.Image, tag); err != nil {
				return err
			}
			// The tag is somebody's own unless it names the new image, and
			// then returnTag moves it for good.
			if now != nil {
				defer func() {
					if err := h.tag(ctx, now.ID, tag); err != nil {
						h.log.Warn("local tag cannot be moved back", "workload", c.Unit, "err", err)
					}
				}()
			}
		}
	}
	if _, err := h.createAs(ctx, o.Name, spec); err != nil {
		return fmt.Errorf("copying the original, which somebody removed: %w", err)
	}
	return nil
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
	if err := h.stop(ctx, b, 0); err != nil {
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

// stop stops a container with its own signal and timeout, unless one is set.
// That also cancels a restart that is pending.
func (h *Host) stop(ctx context.Context, b *box, set time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout(b, set)+stopSlack)
	defer cancel()
	var opts container.StopOptions
	if set > 0 {
		seconds := int(math.Ceil(set.Seconds()))
		opts.Timeout = &seconds
	}
	if err := h.client().ContainerStop(ctx, b.ID, opts); err != nil {
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
	switch b.State.ExitCode {
	case 0, 137, 143, 255:
		return false
	}
	return b.started() && !b.running() && b.State.Error == "" && !stoppedByHand(b, podman)
}

// waitGone waits until a removal that somebody else began is over.
func (h *Host) waitGone(ctx context.Context, b *box) error {
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

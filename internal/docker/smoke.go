package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"

	"github.com/updaterd/updaterd/internal/updater"
)

// labelTests is on the container of a test that must pass: id of the change.
// Nothing else of a change has it, and it makes the container neither a workload
// nor a trace.
const labelTests = labelPrefix + "tests"

// clearLimit is how long a test's container may take to go. What is left then
// goes with the end of the change.
const clearLimit = 30 * time.Second

// loopback is where a test finds a container whose network it shares.
const loopback = "127.0.0.1"

// Test implements updater.Backend. Whatever failed it that is not the new
// image's doing is an error: a test container that somebody killed, an engine
// that was restarted, a workload that somebody stopped meanwhile.
//
// Of the engine's calls a swap does not make, it makes one: POST
// /containers/{id}/wait.
func (h *Host) Test(ctx context.Context, c updater.Change, part int) (updater.Result, error) {
	p := c.Parts[part]
	name, err := h.workloadName(p.Workload)
	if err != nil {
		return updater.Result{}, err
	}
	all, err := pieces(c)
	if err != nil {
		return updater.Result{}, err
	}
	if _, err := h.connect(ctx); err != nil {
		return updater.Result{}, err
	}
	b, err := h.at(ctx, all[part], updater.NewSide)
	switch {
	case err != nil:
		return updater.Result{}, err
	case b == nil || !b.State.Running || b.State.Paused:
		return updater.Result{}, fmt.Errorf("container %s has stopped, so there is nothing to test", name)
	}
	if err := h.clearTest(ctx, name); err != nil {
		return updater.Result{}, err
	}
	img, err := h.imageOf(ctx, p.Settings.Health.Test.Image)
	if err == nil && img == nil {
		// A prune has taken it since Prepare: no container used it.
		if err = h.pullTest(ctx, p.Settings.Health.Test.Image, func(updater.Progress) {}); err == nil {
			img, err = h.imageOf(ctx, p.Settings.Health.Test.Image)
		}
	}
	switch {
	case err != nil:
		return updater.Result{}, err
	case img == nil:
		return updater.Result{}, fmt.Errorf("image %s has gone from the engine right after its pull: is a prune running?", p.Settings.Health.Test.Image)
	}

	spec := beside(b, p, img.ID, h.client().ClientVersion())
	spec.Config.Labels = map[string]string{labelTests: c.ID, labelOwner: h.owner}
	was := h.incarnation(ctx)
	r, err := h.runTest(ctx, name, spec, p.Settings.Health.Test.Timeout)
	if err != nil || r.ExitCode == 0 && !r.TimedOut {
		return r, err
	}
	why, err := h.disturbed(ctx, b, was, r)
	switch {
	case err != nil:
		return updater.Result{}, err
	case why != "":
		return updater.Result{}, fmt.Errorf("%s, so its failure says nothing%s", why, said(r.Output))
	}
	return r, nil
}

// beside says how to create the container of p's test, from the image with this
// id, where it can reach b. It has no part in anything else of b's: no ports,
// aliases, volumes or limits.
func beside(b *box, p updater.Part, image, api string) creation {
	spec := creation{
		Config: &container.Config{Image: image, Cmd: p.Settings.Health.Test.Command},
		Host: &container.HostConfig{
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyDisabled},
			// Its output can be read whatever the engine's own driver is, and does
			// not fill the disk.
			LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m", "max-file": "2"}},
		},
		Networking: &network.NetworkingConfig{},
	}
	r := recreation{api: api, was: inspected{HostConfig: b.HostConfig}}
	if b.NetworkSettings != nil {
		r.was.NetworkSettings.Networks = b.NetworkSettings.Networks
	}
	endpoints := r.endpoints()
	address := ""
	if m := b.HostConfig.NetworkMode; m.IsHost() || m.IsNone() || m.IsContainer() || len(endpoints) == 0 {
		spec.Host.NetworkMode = container.NetworkMode("container:" + b.ID)
		address = loopback
	} else {
		main := max(r.main(endpoints), 0)
		spec.Host.NetworkMode = container.NetworkMode(endpoints[main].name)
		address = addressIn(slices.Concat(endpoints[main:], endpoints[:main]))
		spec.Networking.EndpointsConfig = map[string]*network.EndpointSettings{}
		for i, e := range endpoints {
			// Before API 1.44 create takes one network.
			if i == main || versions.GreaterThanOrEqualTo(api, "1.44") {
				spec.Networking.EndpointsConfig[e.name] = &network.EndpointSettings{}
			} else {
				spec.Connect = append(spec.Connect, connection{Network: e.name, Endpoint: &network.EndpointSettings{}})
			}
		}
	}
	ref := p.To.Ref
	if p.To.Digest != "" && !strings.Contains(ref, "@") {
		ref += "@" + p.To.Digest
	}
	spec.Config.Env = []string{
		"UPDATERD_WORKLOAD=" + p.Workload,
		"UPDATERD_IMAGE=" + ref,
		"UPDATERD_ADDRESS=" + address,
	}
	return spec
}

// addressIn is the address of a container in the first network that gives it
// one; "" when none does, as a driver without IPAM.
func addressIn(endpoints []endpoint) string {
	for _, e := range endpoints {
		switch {
		case e.settings.IPAddress != "":
			return e.settings.IPAddress
		case e.settings.GlobalIPv6Address != "":
			return e.settings.GlobalIPv6Address
		}
	}
	return ""
}

// runTest runs a test to its end, at most for limit, and leaves nothing of it.
func (h *Host) runTest(ctx context.Context, name string, spec creation, limit time.Duration) (updater.Result, error) {
	defer func() {
		// By name, since a create that was broken off may have had its effect.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearLimit)
		defer cancel()
		if err := h.removeTests(ctx, name); err != nil {
			h.log.Warn("test container is left until the change is over", "workload", h.name+"/"+name, "err", err)
		}
	}()
	id, err := h.createAs(ctx, name+suffixTest, spec)
	if err != nil {
		return updater.Result{}, err
	}
	b, err := h.inspect(ctx, id)
	switch {
	case err != nil:
		return updater.Result{}, err
	case b == nil:
		return updater.Result{}, fmt.Errorf("container %s has gone right after it was created: is a prune running?", name+suffixTest)
	}
	startCtx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	// Not by h.start, which would blame the new image for an error of the test's.
	if err := h.client().ContainerStart(startCtx, b.ID, container.StartOptions{}); err != nil {
		return updater.Result{}, fmt.Errorf("starting container %s: %w", b.name(), err)
	}
	waitCtx := ctx
	if limit > 0 {
		waitCtx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	var r updater.Result
	ended, failed := h.client().ContainerWait(waitCtx, b.ID, container.WaitConditionNotRunning)
	select {
	case end := <-ended:
		if end.Error != nil {
			return updater.Result{}, fmt.Errorf("waiting for container %s: %s", b.name(), end.Error.Message)
		}
		r.ExitCode = int(end.StatusCode)
	case err := <-failed: // also when waitCtx ends
		if waitCtx.Err() == nil || ctx.Err() != nil {
			return updater.Result{}, fmt.Errorf("waiting for container %s: %w", b.name(), err)
		}
		r.TimedOut = true
	}
	r.Output = h.logs(ctx, b)
	return r, nil
}

// disturbed says what may have failed a test of b although the new image is
// good; "" for nothing. was is the engine's incarnation before.
func (h *Host) disturbed(ctx context.Context, b *box, was string, r updater.Result) (string, error) {
	switch {
	case !r.TimedOut && (r.ExitCode == 128+int(syscall.SIGKILL) || r.ExitCode == 128+int(syscall.SIGTERM)):
		return fmt.Sprintf("the test was ended from outside (exit code %d)", r.ExitCode), nil
	case h.incarnation(ctx) != was:
		return "the engine was restarted while the test ran", nil
	}
	now, err := h.inspect(ctx, b.ID)
	switch {
	case err != nil:
		return "", err
	case now == nil:
		return fmt.Sprintf("somebody removed container %s while its test ran", b.name()), nil
	case now.State.Paused:
		return fmt.Sprintf("somebody paused container %s while its test ran", b.name()), nil
	case stoppedByHand(now, h.isPodman()):
		return fmt.Sprintf("somebody stopped container %s while its test ran", b.name()), nil
	}
	return "", nil
}

// said puts what a test printed behind a sentence.
func said(output string) string {
	if output = strings.TrimSpace(output); output == "" {
		return ""
	}
	return ": " + output
}

// fetchTest brings the image of a part's test, if it is to be tested, while
// nothing is disturbed yet: a test that cannot be run afterwards would cost a way back.
func (h *Host) fetchTest(ctx context.Context, c updater.Change, part int, report func(updater.Progress)) error {
	p := c.Parts[part]
	if p.Settings.Health.Test.Image == "" || p.Idle || !p.Replace {
		return nil
	}
	name, err := h.workloadName(p.Workload)
	if err != nil {
		return err
	}
	if err := h.clearTest(ctx, name); err != nil {
		return err
	}
	return h.pullTest(ctx, p.Settings.Health.Test.Image, report)
}

// pullTest pulls the image of a test, for a tag may stand for a newer one. If
// the registry fails, the one that is here must do.
func (h *Host) pullTest(ctx context.Context, ref string, report func(updater.Progress)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return &updater.Refusal{
			Reason: updater.InvalidSettings, Detail: fmt.Sprintf("health.test.image: %q is no reference", ref), Err: err,
		}
	}
	here, err := h.imageOf(ctx, ref)
	if err != nil {
		return err
	}
	if _, pinned := named.(reference.Canonical); pinned && here != nil {
		return nil
	}
	err = h.pull(ctx, ref, updater.Platform{}, report)
	switch {
	case err == nil, ctx.Err() != nil:
		return err
	case here != nil:
		h.log.Warn("image of a test cannot be pulled, the one that is here is used", "image", ref, "err", err)
		return nil
	}
	why := err.Error()
	if r, ok := errors.AsType[*updater.Refusal](err); ok {
		why = r.Detail
	}
	return &updater.Refusal{
		// Not the pull's own reason, which would speak of the workload's image.
		Reason: updater.Surroundings,
		Detail: fmt.Sprintf("health.test.image %s is not on the engine and cannot be pulled: %s", ref, why), Err: err,
	}
}

// clearTest makes way for a test of the container with this name: what an
// earlier run left goes, what is somebody else's is refused.
func (h *Host) clearTest(ctx context.Context, name string) error {
	if err := h.removeTests(ctx, name); err != nil {
		return err
	}
	b, err := h.inspect(ctx, name+suffixTest)
	if err != nil || b == nil {
		return err
	}
	return &updater.Refusal{
		Reason: updater.Unsupported,
		Detail: fmt.Sprintf("container %s has a name that the test needs: remove or rename it", b.name()),
	}
}

// removeTests takes away what a test of the container with this name left, with
// its anonymous volumes. A container of somebody else's stays.
func (h *Host) removeTests(ctx context.Context, name string) error {
	b, err := h.inspect(ctx, name+suffixTest)
	if err != nil || b == nil || b.label(labelTests) == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeLimit)
	defer cancel()
	err = h.client().ContainerRemove(ctx, b.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	switch {
	case err == nil, isGone(err):
		return nil
	case strings.Contains(err.Error(), "already in progress"):
		return h.waitGone(ctx, b)
	}
	return fmt.Errorf("removing container %s: %w", b.name(), err)
}

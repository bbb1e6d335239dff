package docker

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/opencontainers/go-digest"

	"github.com/updaterd/updaterd/internal/updater"
)

// settingPrefix is what the labels begin with that are settings of a workload.
const settingPrefix = "updaterd."

// Labels of others that decide what becomes of a container.
const (
	labelProject   = "com.docker.compose.project"
	labelService   = "com.docker.compose.service"
	labelOneOff    = "com.docker.compose.oneoff"
	labelDependsOn = "com.docker.compose.depends_on"
)

// Workloads implements updater.Backend. It costs one list, an inspect for each
// distinct image, and two more for containers whose tag has moved meanwhile.
func (h *Host) Workloads(ctx context.Context) ([]updater.Workload, error) {
	if _, err := h.connect(ctx); err != nil {
		return nil, err
	}
	all, err := h.list(ctx)
	if err != nil {
		return nil, err
	}
	found := listed(all)

	// The list shows the reference as it was written, unless its tag stands for
	// another image by now: then it shows the id of the one that runs.
	var moved []string
	for _, c := range found {
		if isImageID(c.Image) {
			moved = append(moved, c.ID)
		}
	}
	inspected, err := inParallel(ctx, moved, h.inspect)
	if err != nil {
		return nil, err
	}
	written := map[string]string{}
	for i, b := range inspected {
		if b != nil {
			written[moved[i]] = b.Config.Image
		}
	}
	for _, c := range found {
		if !isImageID(c.Image) {
			written[c.ID] = c.Image
		}
	}

	var refs []string
	for _, c := range found {
		refs = append(refs, c.ImageID)
		if isImageID(c.Image) && !isImageID(written[c.ID]) && written[c.ID] != "" {
			refs = append(refs, written[c.ID])
		}
	}
	slices.Sort(refs)
	refs = slices.Compact(refs)
	inspectedImages, err := inParallel(ctx, refs, h.imageAsPulled)
	if err != nil {
		return nil, err
	}
	images := map[string]*image.InspectResponse{}
	for i, img := range inspectedImages {
		images[refs[i]] = img
	}

	// Podman always lists the reference as it was written, and an image that has
	// lost its tag has no digests there either.
	var unknown []string
	for _, c := range found {
		if img := images[c.ImageID]; !isImageID(c.Image) && img != nil && len(digestsOf(c.Image, img)) == 0 {
			unknown = append(unknown, c.Image)
		}
	}
	slices.Sort(unknown)
	unknown = slices.Compact(unknown)
	inspectedTags, err := inParallel(ctx, unknown, h.imageAsPulled)
	if err != nil {
		return nil, err
	}
	for i, img := range inspectedTags {
		images[unknown[i]] = img
	}

	var workloads []updater.Workload
	for _, c := range found {
		ref, ok := written[c.ID]
		if !ok {
			continue // it has gone while we looked
		}
		tag := images[c.ImageID]
		if isImageID(c.Image) || slices.Contains(unknown, ref) {
			tag = images[ref]
		}
		w := workload(h.name, c, ref, images[c.ImageID], tag)
		w.DependsOn = dependsOn(h.name, c, found)
		workloads = append(workloads, w)
	}
	slices.SortFunc(workloads, func(a, b updater.Workload) int { return cmp.Compare(a.ID, b.ID) })
	return workloads, nil
}

// listed leaves out what is no workload: what changes under way made, and the
// one-off containers of compose, which carry the labels of the real ones.
func listed(all []container.Summary) []container.Summary {
	exists := map[string]bool{}
	for _, c := range all {
		exists[c.ID] = true
	}
	return slices.DeleteFunc(slices.Clone(all), func(c container.Summary) bool {
		name := nameOf(c)
		return name == "" || c.State == container.StateRemoving ||
			isSetAside(name) ||
			exists[c.Labels[labelReplaces]] ||
			strings.EqualFold(c.Labels[labelOneOff], "true")
	})
}

func isSetAside(name string) bool {
	for _, suffix := range []string{suffixNew, suffixOld, suffixTest, suffixFinish} {
		if len(name) > len(suffix) && strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// nameOf is the container's own name; the others are aliases through links,
// "/other/alias".
func nameOf(c container.Summary) string {
	for _, n := range c.Names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

// workload describes one container. img is the image it runs, tag what its
// reference stands for on this engine now; either is nil when it is not here.
func workload(backend string, c container.Summary, ref string, img, tag *image.InspectResponse) updater.Workload {
	name := nameOf(c)
	w := updater.Workload{
		ID: backend + "/" + name, Backend: backend, Name: name, Image: ref, Labels: c.Labels,
		Written: map[string]string{},
	}
	for k, v := range c.Labels {
		if key, ok := strings.CutPrefix(k, settingPrefix); ok {
			w.Written[key] = v
		}
	}
	if img != nil {
		w.Runs.Platform = updater.Platform{OS: img.Os, Architecture: img.Architecture, Variant: img.Variant}
		w.Runs.Digests = digestsOf(ref, img)
	}
	if d := c.ImageManifestDescriptor; d != nil {
		// The containerd store: the image's id is the digest of its index.
		w.Runs.Manifest = d.Digest.String()
		if !slices.Contains(w.Runs.Digests, c.ImageID) && len(w.Runs.Digests) == 0 {
			w.Runs.Digests = []string{c.ImageID}
		}
	} else {
		w.Runs.Config = c.ImageID
	}
	w.Skip = skip(c, ref, tag)
	return w
}

// digestsOf are the digests under which ref's repository is known to have
// served img. The list of an image also holds those of other repositories, and
// keeps those of earlier pulls.
func digestsOf(ref string, img *image.InspectResponse) []string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil
	}
	var digests []string
	for _, r := range img.RepoDigests {
		d, err := reference.ParseNormalizedNamed(r)
		if err != nil || d.Name() != named.Name() {
			continue
		}
		if c, ok := d.(reference.Canonical); ok {
			digests = append(digests, c.Digest().String())
		}
	}
	return digests
}

// skip is the backend's own reason to leave a container alone.
func skip(c container.Summary, ref string, tag *image.InspectResponse) *updater.Refusal {
	if who := manager(c.Labels); who != "" {
		return &updater.Refusal{
			Reason: updater.ManagedElsewhere,
			Detail: fmt.Sprintf("%s manages this container and would put it back: update it there", who),
		}
	}
	if isImageID(ref) || isShortID(ref, c.ImageID, tag) {
		return &updater.Refusal{
			Reason: updater.Pinned,
			Detail: "it was created from an image id, so no tag is known: create it from repository:tag to have it updated",
		}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return &updater.Refusal{
			Reason: updater.Unsupported, Detail: fmt.Sprintf("its image %q is no reference", ref), Err: err,
		}
	}
	if _, pinned := named.(reference.Canonical); !pinned && tag != nil && len(digestsOf(ref, tag)) == 0 {
		return &updater.Refusal{
			Reason: updater.LocalImage,
			Detail: fmt.Sprintf("%s was built or loaded here, not pulled: pull it to have it followed", reference.FamiliarString(named)),
		}
	}
	if c.State != container.StateRunning {
		return &updater.Refusal{
			Reason: updater.NotRunning,
			Detail: notRunning(c.State),
		}
	}
	return nil
}

// notRunning says what a person has to do about a container in this state.
func notRunning(state container.ContainerState) string {
	switch state {
	case container.StatePaused:
		return "it is paused: unpause it (docker unpause) to have it updated"
	case container.StateRestarting, podmanEnding:
		return "it is restarting: mend what ends it (docker logs) to have it updated"
	}
	return fmt.Sprintf("it is %s: start it to have it updated", state)
}

// manager names the controller that owns a container with these labels; ""
// when a person does.
func manager(labels map[string]string) string {
	for label, who := range map[string]string{
		"com.docker.swarm.task.id":   "Docker Swarm",
		"io.kubernetes.pod.name":     "Kubernetes",
		"com.hashicorp.nomad.task":   "Nomad",
		"com.amazonaws.ecs.task-arn": "Amazon ECS",
		"PODMAN_SYSTEMD_UNIT":        "systemd",
	} {
		if labels[label] != "" {
			return who
		}
	}
	return ""
}

// isImageID reports whether ref is a whole image id.
func isImageID(ref string) bool {
	if _, err := digest.Parse(ref); err == nil {
		return true
	}
	_, err := digest.Parse("sha256:" + ref)
	return err == nil
}

// isShortID reports whether ref is the beginning of the id of the image that
// runs, and no name of it.
func isShortID(ref, id string, tag *image.InspectResponse) bool {
	_, bare, _ := strings.Cut(id, ":")
	padded := ref
	if len(padded)%2 == 1 {
		padded += "0"
	}
	if _, err := hex.DecodeString(padded); err != nil || !strings.HasPrefix(bare, ref) {
		return false
	}
	return tag == nil || !slices.ContainsFunc(tag.RepoTags, func(t string) bool {
		return t == ref || strings.HasPrefix(t, ref+":")
	})
}

// dependsOn are the workloads that compose says c needs: containers of the
// same project, by service. The label reads "db:service_started:false,cache:...".
func dependsOn(backend string, c container.Summary, all []container.Summary) []string {
	var ids []string
	for _, item := range strings.Split(c.Labels[labelDependsOn], ",") {
		service, _, _ := strings.Cut(strings.TrimSpace(item), ":")
		if service == "" {
			continue
		}
		for _, o := range all {
			if o.ID != c.ID && o.Labels[labelService] == service &&
				o.Labels[labelProject] == c.Labels[labelProject] {
				ids = append(ids, backend+"/"+nameOf(o))
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

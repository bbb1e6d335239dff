package kube

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/updaterd/updaterd/internal/updater"
)

// domain is what the names of annotations end with, before the slash, that are
// settings.
const domain = "updaterd.dev"

// Workloads implements updater.Backend: every container of every object with a pod
// template. With [Cluster.Run] it costs no request.
func (c *Cluster) Workloads(ctx context.Context) ([]updater.Workload, error) {
	owners, err := c.owners(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := c.podsByOwner(ctx)
	if err != nil {
		return nil, err
	}
	var all []updater.Workload
	for _, o := range owners {
		made := pods(o)
		for _, ct := range o.containers {
			all = append(all, c.workload(o, ct, made))
		}
	}
	slices.SortFunc(all, func(a, b updater.Workload) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// workload is what one container of an object is to updaterd.
func (c *Cluster) workload(o *owner, ct container, pods []*pod) updater.Workload {
	w := updater.Workload{
		ID: c.id(o, ct.name), Backend: c.name, Namespace: o.Namespace, Kind: o.kind, Name: o.Name,
		Image: ct.image, Labels: o.Labels, Written: written(o, ct.name), Write: updater.WriteDigest,
	}
	if o.kind == "cronjob" {
		pods = newestRun(pods)
	}
	var mixed string
	w.Runs, mixed = running(o, ct, pods)
	w.Skip = skip(o, ct, w.Runs, mixed)
	w.Logins = c.logins(o, pods)
	return w
}

func (c *Cluster) id(o *owner, container string) string {
	return c.name + "/" + o.address() + "/" + container
}

// newestRun are the pods of the last Job of a CronJob.
func newestRun(pods []*pod) []*pod {
	if len(pods) == 0 {
		return nil
	}
	last := slices.MaxFunc(pods, func(a, b *pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return slices.DeleteFunc(slices.Clone(pods), func(p *pod) bool { return p.job != last.job })
}

// skip is the cluster's own reason to leave a container alone.
func skip(o *owner, c container, runs updater.Running, mixed string) *updater.Refusal {
	if o.unlisted != "" {
		return &updater.Refusal{Reason: updater.BackendUnavailable, Detail: o.unlisted}
	}
	if r := managedElsewhere(o, c); r != nil {
		return r
	}
	if c.malformed != nil {
		return &updater.Refusal{Reason: updater.Unsupported, Detail: fmt.Sprintf("its image %q is no reference", c.image), Err: c.malformed}
	}
	known := len(runs.Digests) > 0 || runs.Config != ""
	switch {
	case o.kind == "cronjob" && o.paused:
		return &updater.Refusal{Reason: updater.NotRunning, Detail: "it is suspended: resume it to have it updated"}
	case o.onDelete:
		return &updater.Refusal{Reason: updater.Unsupported, Detail: "its update strategy is OnDelete, so nothing would come of another image until somebody deletes its pods: choose RollingUpdate to have it updated"}
	case mixed != "":
		return &updater.Refusal{Reason: updater.Mixed, Detail: mixed}
	case !known && o.desired > 0 && o.kind != "cronjob":
		return &updater.Refusal{Reason: updater.NotRunning, Detail: "no pod of its template has its image yet, so nobody knows what it runs"}
	}
	return nil
}

// written are the settings on an object that are for one container: those for all,
// under those for the container alone. A label will do, for enable above all; an
// annotation counts more.
func written(o *owner, container string) map[string]string {
	all := map[string]string{}
	for _, prefix := range []string{domain + "/", container + "." + domain + "/"} {
		for _, from := range []map[string]string{o.Labels, o.Annotations} {
			for _, name := range slices.Sorted(maps.Keys(from)) {
				if key, ok := strings.CutPrefix(name, prefix); ok {
					all[key] = from[name]
				}
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all
}

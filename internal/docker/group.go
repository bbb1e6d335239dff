package docker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/updaterd/updaterd/internal/updater"
)

// kin is a container and what it has to do with others.
type kin struct {
	id, name string
	labels   map[string]string
	// refs are the containers whose namespaces, volumes or address it uses, by
	// name or id, as the engine shows them.
	refs []string
	// exited: it has ended, and is there to be looked at or started again. Never on
	// Podman, which does not remove what one that has ended lives in.
	exited bool
}

// kindred are all containers of an engine. What they use is part of how they
// were created, so each is inspected once, and linked ones each time: a link
// shows the other's present name. The answer is shared, and not to be changed.
//
// A pass plans many changes at once. Each would hold a list of all containers while
// it waits for the others, so one that was begun after it had asked serves it.
func (h *Host) kindred(ctx context.Context) ([]kin, error) {
	asked := time.Now()
	h.acquaint.Lock()
	defer h.acquaint.Unlock()
	if h.relatives.began.After(asked) {
		return h.relatives.all, nil
	}
	began := time.Now()
	all, err := h.list(ctx)
	if err != nil {
		return nil, err
	}
	known := h.uses
	var ids []string
	for _, c := range all {
		if _, ok := known[c.ID]; !ok {
			ids = append(ids, c.ID)
		}
	}
	found, err := inParallel(ctx, ids, h.inspect)
	if err != nil {
		return nil, err
	}
	refs := map[string][]string{}
	linked := map[string]bool{}
	for _, b := range found {
		if b != nil {
			refs[b.ID] = references(b.HostConfig)
			linked[b.ID] = len(b.HostConfig.Links) > 0
		}
	}
	var kindred []kin
	keep := map[string][]string{}
	for _, c := range all {
		r, fresh := refs[c.ID]
		if !fresh {
			var ok bool
			if r, ok = known[c.ID]; !ok {
				continue // it has gone while we looked
			}
		}
		if !linked[c.ID] {
			keep[c.ID] = r
		}
		kindred = append(kindred, kin{id: c.ID, name: nameOf(c), labels: c.Labels, refs: r, exited: c.State == container.StateExited && !h.isPodman()})
	}
	h.uses, h.relatives = keep, relatives{all: kindred, began: began}
	return kindred, nil
}

// relatives are the containers of an engine as a list showed them that was begun then.
type relatives struct {
	all   []kin
	began time.Time
}

// references are the containers, by name or id, that a container needs.
func references(h *container.HostConfig) []string {
	refs := livesIn(h)
	for _, v := range h.VolumesFrom {
		ref, _, _ := strings.Cut(v, ":")
		refs = append(refs, ref)
	}
	return refs
}

// livesIn are those of them that must run when it is started. Of the volumes of
// another, an engine only needs the names.
func livesIn(h *container.HostConfig) []string {
	refs := []string{}
	for _, mode := range []string{string(h.NetworkMode), string(h.IpcMode), string(h.PidMode), string(h.Cgroup)} {
		if ref, ok := strings.CutPrefix(mode, "container:"); ok {
			refs = append(refs, ref)
		}
	}
	for _, l := range h.Links {
		target, _, _ := strings.Cut(l, ":")
		refs = append(refs, target)
	}
	return refs
}

// resolve finds the container that a reference means, as an engine does: by its
// whole id, by its name, by the beginning of its id.
func resolve(ref string, all []kin) (kin, bool) {
	ref = strings.TrimPrefix(ref, "/")
	for _, fits := range []func(kin) bool{
		func(k kin) bool { return k.id == ref },
		func(k kin) bool { return k.name == ref },
		func(k kin) bool { return ref != "" && strings.HasPrefix(k.id, ref) },
	} {
		if i := slices.IndexFunc(all, fits); i >= 0 {
			return all[i], true
		}
	}
	return kin{}, false
}

// edges say what containers need, as ids by id.
type edges map[string][]string

// using: whose namespaces, volumes or links a container uses. It cannot live
// without those. Nobody starts a one-off of Compose again that has ended, so it
// uses nothing.
func using(all []kin) edges {
	e := edges{}
	for _, k := range all {
		if k.oneOff() && k.exited {
			continue
		}
		for _, ref := range k.refs {
			if other, ok := resolve(ref, all); ok && other.id != k.id {
				e[k.id] = append(e[k.id], other.id)
			}
		}
	}
	return e
}

// following: what Compose says a container depends on; with restarting, only
// what it is to be restarted with, which a one-off never is.
func following(all []kin, restarting bool) edges {
	e := edges{}
	for _, k := range all {
		depends := k.labels[labelDependsOn]
		if depends == "" || restarting && k.oneOff() {
			continue
		}
		for _, item := range strings.Split(depends, ",") {
			f := strings.Split(strings.TrimSpace(item), ":") // service:condition:restart
			if restarting && (len(f) < 3 || !strings.EqualFold(f[2], "true")) {
				continue
			}
			for _, other := range all {
				if other.id != k.id && other.labels[labelService] == f[0] && f[0] != "" && !other.oneOff() &&
					other.labels[labelProject] == k.labels[labelProject] {
					e[k.id] = append(e[k.id], other.id)
				}
			}
		}
	}
	return e
}

// reach adds to a set all that needs one of from, and what needs that, unless it
// is in without. With once, only the first step is taken.
func (e edges) reach(set, from, without map[string]bool, once bool) {
	for grew := true; grew; {
		grew = false
		for id, needs := range e {
			if !set[id] && !without[id] && slices.ContainsFunc(needs, func(n string) bool { return from[n] }) {
				set[id], grew = true, true
			}
		}
		if once {
			return
		}
	}
}

func (k kin) oneOff() bool { return strings.EqualFold(k.labels[labelOneOff], "true") }

// group is what must move when some containers are replaced.
type group struct {
	replaced  []kin // the wished ones, and all that use one of them
	restarted []kin // all that Compose restarts with one of those, and what uses these
	// related are in the same group, and stay as they are.
	related []kin
}

// groupOf finds it. A container that uses the namespaces or volumes of one that
// goes would hold on to what is gone, and could not even be started again.
func groupOf(wished map[string]bool, all []kin) group {
	uses, restarts := using(all), following(all, true)
	replaced, restarted := maps.Clone(wished), map[string]bool{}
	uses.reach(replaced, replaced, nil, false)
	restarts.reach(restarted, replaced, replaced, true)
	uses.reach(restarted, restarted, replaced, false)

	near := maps.Clone(replaced)
	maps.Copy(near, restarted)
	for grew := true; grew; {
		grew = false
		for _, e := range []edges{uses, restarts} {
			for id, needs := range e {
				for _, n := range needs {
					if near[id] != near[n] {
						near[id], near[n], grew = true, true, true
					}
				}
			}
		}
	}
	var g group
	for _, k := range all {
		switch {
		case replaced[k.id]:
			g.replaced = append(g.replaced, k)
		case restarted[k.id]:
			g.restarted = append(g.restarted, k)
		case near[k.id]:
			g.related = append(g.related, k)
		}
	}
	return g
}

// inOrder sorts containers so that each comes after what it needs, and else by
// name. The error is a *updater.Refusal that names the cycle.
func inOrder(all []kin, needs edges) ([]kin, error) {
	left := slices.SortedFunc(slices.Values(all), func(a, b kin) int { return cmp.Compare(a.name, b.name) })
	var sorted []kin
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(k kin) bool {
			return !slices.ContainsFunc(left, func(other kin) bool {
				return other.id != k.id && slices.Contains(needs[k.id], other.id)
			})
		})
		if i < 0 {
			return nil, &updater.Refusal{
				Reason: updater.InvalidSettings,
				Detail: fmt.Sprintf("%s depend on each other in a circle: take one of the dependencies away", namesOf(left)),
			}
		}
		sorted = append(sorted, left[i])
		left = slices.Delete(left, i, i+1)
	}
	return sorted, nil
}

func namesOf(all []kin) string {
	var names []string
	for _, k := range all {
		names = append(names, k.name)
	}
	return strings.Join(names, ", ")
}

package kube

import (
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

// writers are who wrote the image of one container.
type writers struct {
	applied, written string
}

// imageWriters reads from managedFields who wrote the image of each container, by
// field and name ("containers/web"). prefix is where the pod's spec is.
func imageWriters(fields []metav1.ManagedFieldsEntry, prefix []string) map[string]writers {
	all := map[string]writers{}
	for _, e := range fields {
		if e.FieldsV1 == nil || e.Subresource != "" {
			continue
		}
		at := map[string]json.RawMessage{}
		if json.Unmarshal(e.FieldsV1.GetRawBytes(), &at) != nil {
			continue
		}
		for _, p := range prefix {
			at = below(at, p)
		}
		for _, field := range []string{inContainers, inInitContainers} {
			for key := range below(at, "f:"+field) {
				raw, ok := strings.CutPrefix(key, "k:")
				var named struct{ Name string }
				if !ok || json.Unmarshal([]byte(raw), &named) != nil {
					continue
				}
				if _, ok := below(below(at, "f:"+field), key)["f:image"]; !ok {
					continue
				}
				w := all[field+"/"+named.Name]
				if e.Operation == metav1.ManagedFieldsOperationApply {
					w.applied = e.Manager
				} else {
					w.written = e.Manager
				}
				all[field+"/"+named.Name] = w
			}
		}
	}
	return all
}

func below(at map[string]json.RawMessage, key string) map[string]json.RawMessage {
	next := map[string]json.RawMessage{}
	_ = json.Unmarshal(at[key], &next) // what is not there has nothing below it
	return next
}

// managedElsewhere says which controller would put a container's image back at
// once, or holds the rollout; nil when none does.
func managedElsewhere(o *owner, c container) *updater.Refusal {
	who := ""
	ref := metav1.GetControllerOf(o)
	switch {
	case o.Annotations["argocd.argoproj.io/tracking-id"] != "" || strings.HasPrefix(c.applied+" "+c.written, "argocd") || c.written == "argocd-controller":
		who = "Argo CD"
	case o.Labels["kustomize.toolkit.fluxcd.io/name"] != "" && o.Annotations["kustomize.toolkit.fluxcd.io/reconcile"] != "disabled":
		who = "Flux (Kustomization " + o.Labels["kustomize.toolkit.fluxcd.io/namespace"] + "/" + o.Labels["kustomize.toolkit.fluxcd.io/name"] + ")"
	case o.Labels["helm.toolkit.fluxcd.io/name"] != "":
		who = "Flux (HelmRelease " + o.Labels["helm.toolkit.fluxcd.io/namespace"] + "/" + o.Labels["helm.toolkit.fluxcd.io/name"] + ")"
	case ref != nil:
		who = ref.Kind + " " + ref.Name
	case c.applied != "" && c.applied != manager:
		who = c.applied + ", which applied it server-side,"
	case o.paused && o.kind == "deployment":
		return &updater.Refusal{Reason: updater.ManagedElsewhere,
			Detail: "its rollout is paused: resume it (kubectl rollout resume), or set adopt: true to have the image written all the same"}
	default:
		return nil
	}
	return &updater.Refusal{Reason: updater.ManagedElsewhere,
		Detail: fmt.Sprintf("%s manages its image and would put it back: update it there, or set adopt: true", who)}
}

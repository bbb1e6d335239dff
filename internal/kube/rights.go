package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
)

// Right is one thing that updaterd may do in a namespace.
type Right struct {
	Verb, Group, Resource string
	Subresource           string
	// Name: of this one object; "" is all of them.
	Name      string
	Namespace string // "": all of them
	// ByName: it is granted for single objects, so that any of them will do here.
	ByName bool
	// Costs is what does not work without it.
	Costs string
	// Overlay is the one of configs/kubernetes/overlays that grants it; "" is what
	// the base grants.
	Overlay string
}

// String is the right as a person grants it.
func (r Right) String() string {
	what := r.Resource
	if r.Subresource != "" {
		what += "/" + r.Subresource
	}
	if r.Group != "" {
		what += "." + r.Group
	}
	if r.Name != "" {
		what += " " + r.Name
	}
	if r.Namespace == "" {
		return fmt.Sprintf("%s %s in all namespaces", r.Verb, what)
	}
	return fmt.Sprintf("%s %s in namespace %s", r.Verb, what, r.Namespace)
}

// What the right to read imagePullSecrets buys.
const (
	costsOfSecrets   = "imagePullSecrets are not read, so that private images need credentials in updaterd's own configuration"
	overlayOfSecrets = "secrets"
)

// Rights are all that updaterd makes use of, in the namespaces that it watches and
// in that of its state. What an overlay grants can do without.
func Rights(namespaces []string, state string) []Right {
	var all []Right
	add := func(namespace, group, resource, costs, overlay string, verbs ...string) {
		for _, verb := range verbs {
			all = append(all, Right{Verb: verb, Group: group, Resource: resource, Namespace: namespace, Costs: costs, Overlay: overlay})
		}
	}
	for _, namespace := range namespaces {
		if namespace == everywhere {
			namespace = ""
		}
		for _, k := range kinds() {
			add(namespace, k.resource.Group, k.resource.Name, k.title+"s are not looked at", "", "list", "watch")
			add(namespace, k.resource.Group, k.resource.Name, k.title+"s are not updated", "", "get", "patch")
		}
		add(namespace, "", "pods", "nothing is looked at, for nobody knows what runs", "", "list", "watch")
		add(namespace, "", "events", "kubectl describe does not show what updaterd did", "", "create")
		add(namespace, "", "pods", "StatefulSets that make their pods in order are left alone, since one that is stuck could not be freed", "delete", "delete")
		add(namespace, "batch", "jobs", "health.test is invalid-settings", "jobs", "create", "get", "delete")
		if namespace != "" { // by name means in a namespace
			for _, resource := range []string{"secrets", "serviceaccounts"} {
				all = append(all, Right{Verb: "get", Resource: resource, Namespace: namespace, ByName: true, Costs: costsOfSecrets, Overlay: overlayOfSecrets})
			}
		}
		add(namespace, "batch", "jobs", "cronjob-gate: next-run is invalid-settings", "jobs", "list")
	}
	add(state, "", "configmaps", "nothing is updated, for there is no journal", "", "get", "list", "watch", "create", "update")
	add(state, "coordination.k8s.io", "leases", "nothing is updated, for nobody can lead", "", "get", "create", "update")
	return all
}

const (
	// reviews is how many rights are asked about at once.
	reviews = 8
	// reviewEvery is the pause before an API server that did not answer is asked again.
	reviewEvery = 10 * time.Second
)

// Missing are those of some rights that the API server would not grant. Everybody
// may ask that about himself.
func (c *Client) Missing(ctx context.Context, rights []Right) ([]Right, error) {
	missing := make([]bool, len(rights))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(reviews)
	for i, r := range rights {
		group.Go(func() error {
			review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: r.Verb, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Namespace: r.Namespace,
				},
			}}
			if err := c.Create(ctx, reviewResource(), "", review, review); err != nil {
				return fmt.Errorf("asking whether %s is allowed: %w", r, err)
			}
			missing[i] = !review.Status.Allowed
			if missing[i] && r.ByName {
				some, err := c.allowedSome(ctx, r)
				missing[i] = !some
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var all []Right
	for i, r := range rights {
		if missing[i] {
			all = append(all, r)
		}
	}
	return all, nil
}

// allowedSome reports whether a right is granted for some object.
func (c *Client) allowedSome(ctx context.Context, r Right) (bool, error) {
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: r.Namespace}}
	rules := Resource{authorizationv1.SchemeGroupVersion, "selfsubjectrulesreviews"}
	if err := c.Create(ctx, rules, "", review, review); err != nil {
		return false, fmt.Errorf("asking for which objects %s is allowed: %w", r, err)
	}
	for _, rule := range review.Status.ResourceRules {
		has := func(all []string, one string) bool { return slices.Contains(all, one) || slices.Contains(all, "*") }
		if has(rule.Verbs, r.Verb) && has(rule.APIGroups, r.Group) && has(rule.Resources, r.Resource) {
			return true, nil
		}
	}
	return false, nil
}

// sayMissing says once which rights are missing, as soon as the API server can be
// asked.
func (s *State) sayMissing(ctx context.Context) {
	for {
		missing, err := s.o.Client.Missing(ctx, Rights(s.o.Namespaces, s.o.Namespace))
		if err == nil {
			for _, r := range missing {
				if r.Overlay == "" {
					s.o.Log.Warn("right is missing", "right", r.String(), "costs", r.Costs)
				} else {
					s.o.Log.Info("right is not granted", "right", r.String(), "costs", r.Costs, "overlay", r.Overlay)
				}
			}
			return
		}
		if !rested(ctx, reviewEvery) {
			return
		}
	}
}

package updater

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/distribution/reference"

	"github.com/updaterd/updaterd/internal/policy"
)

// announceLimit bounds the question what runs, after something was pushed.
const announceLimit = time.Minute

// Announced has a running Updater look at the watched workloads for which a push of
// these references may mean something, and at no others. Where they come from is
// not trusted for more: what there is, the registry says. It returns the ids of those
// workloads, before it has looked, and an error for the backends that could not be
// asked; those find out in their next pass.
func (u *Updater) Announced(ctx context.Context, references []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, announceLimit)
	defer cancel()
	rules, _ := u.current()
	var pushed []reference.NamedTagged
	for _, r := range references {
		if named, err := reference.ParseNormalizedNamed(r); err == nil {
			if tagged, ok := named.(reference.NamedTagged); ok {
				pushed = append(pushed, tagged)
			}
		}
	}
	var ids []string
	var unasked []error
	for _, place := range u.places {
		workloads, err := place.Backend.Workloads(ctx)
		if err != nil {
			unasked = append(unasked, fmt.Errorf("%s cannot be asked what runs: %w", place.Backend.Name(), err))
			continue
		}
		for _, w := range workloads {
			if s, err := rules.Settings(w); err == nil && s.Enabled && concerned(w, s, pushed) {
				ids = append(ids, w.ID)
			}
		}
	}
	if len(ids) > 0 { // none at all would mean everything
		u.Look(ids...)
	}
	return ids, errors.Join(unasked...)
}

// concerned reports whether a push of one of these may mean something for a
// workload: its own tag, or, where its policy picks among tags, any tag of its
// repository.
func concerned(w Workload, s Settings, pushed []reference.NamedTagged) bool {
	rule, err := policy.Parse(s.Policy)
	if err != nil {
		return false
	}
	own, err := reference.ParseNormalizedNamed(w.Image)
	if err != nil {
		return false
	}
	tag := "latest"
	if tagged, ok := own.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	for _, p := range pushed {
		if p.Name() == own.Name() && (rule.NeedsTags() || p.Tag() == tag) {
			return true
		}
	}
	return false
}

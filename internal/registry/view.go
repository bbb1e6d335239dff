package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/updaterd/updaterd/internal/updater"
)

// view is what the registries hold as they show it to somebody's logins. Views of
// one Client share what was asked by the same credentials, and nothing else.
type view struct {
	c      *Client
	logins updater.Logins // nil: the Client's own credentials alone
}

var _ updater.Registry = view{}

// As implements [updater.Registry].
func (v view) As(l updater.Logins) updater.Registry { return v.c.As(l) }

// NewPass implements [updater.Registry].
func (v view) NewPass() { v.c.NewPass() }

// Tags implements [updater.Registry].
func (v view) Tags(ctx context.Context, ref string) ([]string, error) {
	return each(ctx, v, ref, func(n name, cr credential) ([]string, error) {
		return v.c.listed.do(ctx, subject{n.repository(), cr.hash()}, always, func(ctx context.Context) ([]string, error) {
			return v.c.listTags(ctx, n, cr)
		})
	})
}

// Resolve implements [updater.Registry].
func (v view) Resolve(ctx context.Context, ref string) (string, error) {
	if n, err := parseName(ref); err == nil && n.tag == "" {
		return n.digest, nil
	}
	return each(ctx, v, ref, func(n name, cr credential) (string, error) {
		return v.c.resolved.do(ctx, subject{n.String(), cr.hash()}, always, func(ctx context.Context) (string, error) {
			d, err := v.c.resolve(ctx, n, cr)
			if err == nil {
				v.c.readable.add(subject{n.repository(), cr.hash()})
			}
			return d, err
		})
	})
}

// Image implements [updater.Registry].
func (v view) Image(ctx context.Context, ref, d string, p updater.Platform) (updater.Image, error) {
	img, err := each(ctx, v, ref, func(n name, cr credential) (updater.Image, error) {
		parsed, err := digest.Parse(d)
		if err != nil {
			return updater.Image{}, refuse(updater.InvalidSettings, "%s is no digest of %s: it must look like sha256:<64 hex digits>", quote(d), n.repository())
		}
		key := imageKey{repository: n.repository(), digest: d, platform: p}
		if cr.theirs {
			key.by = cr.hash()
		}
		good := func(_ updater.Image, err error) bool { return err == nil }
		return v.c.images.do(ctx, key, good, func(ctx context.Context) (updater.Image, error) {
			return v.c.image(ctx, n, cr, parsed, p)
		})
	})
	if err != nil {
		return updater.Image{}, err
	}
	img.Ref = ref
	return img, nil
}

// each asks about ref by one credential after the other until one is taken, as a
// kubelet pulls. Where none is, the logins are read again, for they may have been
// renewed. Our own credentials are only asked by where the logins have none.
func each[V any](ctx context.Context, v view, ref string, ask func(name, credential) (V, error)) (got V, first error) {
	n, err := parseName(ref)
	if err != nil {
		return got, err
	}
	tried := map[[sha256.Size]byte]bool{}
	for again := false; ; again = true {
		all, aside, err := v.c.creds.all(ctx, n, v.logins, again)
		if err != nil {
			return got, err
		}
		for _, cr := range all {
			if tried[cr.hash()] {
				continue
			}
			tried[cr.hash()] = true
			got, err := ask(n, cr)
			if err == nil || !hidden(err) {
				return got, err
			}
			if first == nil {
				first = err
			}
		}
		if v.logins == nil || again {
			return got, noted(first, aside)
		}
	}
}

// noted is a refusal with a note that is for who got it alone: the refusal itself
// may be remembered for others.
func noted(err error, aside string) error {
	r, ok := errors.AsType[*updater.Refusal](err)
	if !ok || aside == "" {
		return err
	}
	told := *r
	told.Detail += " (" + aside + ")"
	return &told
}

// hidden reports whether others might be shown what was asked for.
func hidden(err error) bool {
	r, ok := errors.AsType[*updater.Refusal](err)
	return ok && (r.Reason == updater.Unauthorized || r.Reason == updater.NotFound)
}

// set remembers subjects.
type set struct {
	mu sync.Mutex
	m  map[subject]bool
}

func (s *set) add(k subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[subject]bool{}
	}
	s.m[k] = true
}

func (s *set) has(k subject) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[k]
}

func (s *set) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.m)
}

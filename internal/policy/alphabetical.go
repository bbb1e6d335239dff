package policy

import "strings"

// alphabetical is the policy that orders tags by their bytes. It is the only
// one that also moves from word to word (jammy to noble).
type alphabetical struct{}

func (alphabetical) refuses(_, _ *shape) string { return "" }

func (alphabetical) compare(a, b *shape) int { return strings.Compare(a.text, b.text) }

func (alphabetical) ownsPrereleases() bool { return false }

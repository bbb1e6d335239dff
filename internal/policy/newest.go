package policy

// newest is the policy for dates, build numbers and timestamps: every number
// in a tag counts, from left to right. Which tags have the same shape as what
// runs is settled by the rules that all policies keep to.
type newest struct{}

func (newest) refuses(_, _ *shape) string { return "" }

func (newest) compare(a, b *shape) int { return compareVersions(a, b) }

func (newest) ownsPrereleases() bool { return false }

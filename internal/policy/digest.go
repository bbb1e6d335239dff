package policy

// selectDigest is the digest policy: the workload stays on its tag, and only
// what that tag points to may change.
func selectDigest(current string, tags []string) Selection {
	s := Selection{Tag: current, Reason: UpToDate, Detail: "the tag stays; only the digest behind it is followed"}
	if current == "" {
		s.Reason = NoCandidate
		s.Detail = "what runs has no tag whose digest could be followed"
	}
	for _, tag := range distinct(tags) {
		if tag == current {
			s.Tags = append([]TagVerdict{{Tag: tag, Verdict: Selected, Why: "what runs"}}, s.Tags...)
			continue
		}
		s.Tags = append(s.Tags, TagVerdict{Tag: tag, Verdict: Dropped, Why: "another tag; digest stays on its own"})
	}
	return s
}

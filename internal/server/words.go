package server

import (
	"fmt"
	"time"

	"github.com/updaterd/updaterd/internal/updater"
)

// Answer tells people what became of what one of them said, a line for each thing.
func Answer(verb updater.Verb, told []updater.Told) []string {
	switch {
	case verb == updater.SayCheck:
		return []string{"Looked at now."}
	case len(told) == 0:
		return []string{fmt.Sprintf("There is nothing to %s.", verb)}
	}
	var lines []string
	for _, t := range told {
		what := t.Workload
		if what == "" {
			what = "everything on " + t.Backend
		}
		if t.Image != nil {
			what += " (" + t.Image.Image + " " + shortDigest(t.Image.Digest) + ")"
		}
		switch {
		case verb != updater.SayForget:
			lines = append(lines, done(verb, t.Changed)+": "+what+lasting(verb, t))
		case !t.Changed:
			lines = append(lines, "There is nothing to forget of "+what+".")
		}
		if r := t.Retry; r != nil {
			lines = append(lines, fmt.Sprintf("Tried again in the next pass: %s (%s)", shortDigest(r.Digest), r.Why))
		}
		for _, r := range t.Rejected {
			lines = append(lines, fmt.Sprintf("Forgotten: %s %s (%s: %s)", r.Ref, shortDigest(r.Digest), r.Reason, r.Why))
		}
		if t.Note != "" {
			lines = append(lines, "But "+t.Note+".")
		}
	}
	return lines
}

// lasting is until when what was said holds, and what ends it.
func lasting(verb updater.Verb, t updater.Told) string {
	switch {
	case t.Until != nil:
		return ", until " + moment(*t.Until)
	case verb == updater.SayHold:
		return ", until updaterd release " + t.Workload
	case verb == updater.SayPause:
		return ", until updaterd resume"
	case verb == updater.SayApprove:
		return ", until it is in place"
	case verb == updater.SayReject:
		return ", until updaterd forget " + t.Workload
	}
	return ""
}

// PausedSince tells people of a pause.
func PausedSince(w updater.Word) string {
	text := "paused since " + moment(w.At)
	if w.Who != "" {
		text += " by " + w.Who
	}
	if w.Until.IsZero() {
		text += " until updaterd resume"
	} else {
		text += " until " + moment(w.Until)
	}
	if w.Why != "" {
		text += ": " + w.Why
	}
	return text
}

// moment is a time as people read it here.
func moment(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// done is what a verb did, or what was so already.
func done(verb updater.Verb, changed bool) string {
	words := map[updater.Verb][2]string{
		updater.SayHold:     {"Held", "Held already"},
		updater.SayRelease:  {"Released", "Not held"},
		updater.SayApprove:  {"Approved", "Approved already"},
		updater.SayReject:   {"Rejected", "Rejected already"},
		updater.SayPause:    {"Paused", "Paused already"},
		updater.SayResume:   {"Resumed", "Not paused"},
		updater.SayUpdate:   {"To be updated", "To be updated already"},
		updater.SayRollback: {"To be rolled back", "Rolled back already"},
	}[verb]
	if changed {
		return words[0]
	}
	return words[1]
}

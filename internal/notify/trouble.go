package notify

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/distribution/reference"

	"github.com/updaterd/updaterd/internal/journal"
	"github.com/updaterd/updaterd/internal/updater"
)

// troubled begins the keys of registry troubles, before what they are about; the
// time of such a key is since when. No workload's id begins so.
const troubled = "\x00registry"

// registries follows how long registries have given no answer, over restarts: what
// lasts is told once, and once more when there is an answer again.
func (n *Notifier) registries(w updater.Workload, d updater.Decision, now time.Time) {
	well, ill := condition(w, d)
	entry := updater.Entry{At: now, Backend: w.Backend, Workload: w.ID, From: updater.Image{Ref: w.Image, Digest: w.Runs.Digest()}}
	over := map[string]time.Time{} // what was told, and since when it had been
	n.mu.Lock()
	for _, subject := range well {
		if began, was := n.ill[subject]; was {
			if _, known := n.told[key(troubled, subject, "told")]; known {
				over[subject] = began
			}
			delete(n.ill, subject)
			n.settled[w.Backend] = append(n.settled[w.Backend], key(troubled, subject), key(troubled, subject, "told"))
		}
	}
	began, was := n.ill[ill]
	told := key(troubled, ill, "told")
	_, known := n.told[told]
	tell := was && !known && now.Sub(began) >= troubleAfter
	switch {
	case ill == "":
	case !was:
		n.ill[ill] = now
		n.found[w.Backend] = append(n.found[w.Backend], journal.Mail{Once: key(troubled, ill), At: now})
	case tell:
		n.told[told] = now // once in this pass, too
	}
	n.mu.Unlock()
	var letters []journal.Mail
	for subject, began := range over {
		entry.Event = updater.EventRegistryWell
		entry.Why = fmt.Sprintf("%s answers again; it had given no answer since %s", subject, began.UTC().Format(time.RFC3339))
		m := n.letter(entry)
		m.Once = key(troubled, subject, "well", began.UTC().Format(time.RFC3339Nano))
		letters = append(letters, m)
	}
	if ill != "" && tell {
		entry.Event = updater.EventRegistryTrouble
		entry.Why = fmt.Sprintf("%s has given no answer since %s: %s: %s", ill, began.UTC().Format(time.RFC3339), d.Reason, d.Detail)
		m := n.letter(entry)
		m.Once = told
		letters = append(letters, m)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.found[w.Backend] = append(n.found[w.Backend], letters...)
}

// recall takes up, once, what earlier processes told.
func (n *Notifier) recall() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.recalled {
		return
	}
	n.recalled = true
	ctx, cancel := context.WithTimeout(context.Background(), keepTimeout)
	defer cancel()
	told, err := n.store.Told(ctx)
	if err != nil {
		n.log.Warn("what was told cannot be read", "err", err)
		return
	}
	for k, at := range told {
		n.told[k] = at
		if subject, ok := strings.CutPrefix(k, troubled+"\x00"); ok && !strings.Contains(subject, "\x00") {
			n.ill[subject] = at
		}
	}
}

// condition is what a decision says about its registry and its repository there:
// which of them are well, and which one is not.
func condition(w updater.Workload, d updater.Decision) (well []string, ill string) {
	named, err := reference.ParseNormalizedNamed(w.Image)
	if err != nil {
		return nil, ""
	}
	host, repository := reference.Domain(named), named.Name()
	switch d.Reason {
	case updater.RegistryUnavailable, updater.RateLimited:
		return nil, host
	case updater.Unauthorized, updater.NotFound, updater.TagListIncomplete:
		return []string{host}, repository
	}
	if d.Candidate == nil {
		return nil, "" // it may not have been asked
	}
	return []string{host, repository}, ""
}

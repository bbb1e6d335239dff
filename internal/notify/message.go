package notify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"time"
	"unicode"

	"github.com/updaterd/updaterd/internal/updater"
)

// Message is one event of one workload, as a webhook gets it and a template sees
// it. docs/notifications.md describes it, and people's programs read it.
type Message struct {
	Event       updater.Event   `json:"event"`
	Backend     string          `json:"backend"`
	Workload    string          `json:"workload"`
	Host        string          `json:"host,omitempty"`
	At          time.Time       `json:"at"`
	Change      string          `json:"change,omitempty"`
	From        *Image          `json:"from,omitempty"`
	To          *Image          `json:"to,omitempty"`
	Verdict     updater.Verdict `json:"verdict,omitempty"`
	Why         string          `json:"why,omitempty"`
	TookSeconds float64         `json:"took_seconds,omitempty"`
	GapSeconds  float64         `json:"gap_seconds,omitempty"`
	// Logs are only there for who is to have them.
	Logs string `json:"logs,omitempty"`
}

// Image is a reference and its digest.
type Image struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
}

func imageOf(i updater.Image) *Image {
	if i.Ref == "" && i.Digest == "" {
		return nil
	}
	return &Image{Image: i.Ref, Digest: i.Digest}
}

// messageOf is an entry of the history as a message of that host.
func messageOf(e updater.Entry, host string) Message {
	return Message{
		Event: e.Event, Backend: e.Backend, Workload: e.Workload, Host: host,
		At: e.At, Change: e.Change, From: imageOf(e.From), To: imageOf(e.To),
		Verdict: e.Verdict, Why: e.Why, Logs: e.Logs,
		TookSeconds: e.Took.Seconds(), GapSeconds: e.Gap.Seconds(),
	}
}

// String is the reference with as much of its digest as people compare.
func (i *Image) String() string {
	if i == nil {
		return "an unknown image"
	}
	ref, _, _ := strings.Cut(i.Image, "@")
	digest := strings.TrimPrefix(i.Digest, "sha256:")
	if digest == "" {
		return ref
	}
	return ref + " (" + digest[:min(12, len(digest))] + ")"
}

// Text is the message as a sentence, without the log lines.
func (m Message) Text() string {
	why := m.Why
	if why != "" {
		why = ": " + why
	}
	switch m.Event {
	case updater.EventFound:
		return fmt.Sprintf("%s: found %v, it runs %v", m.Workload, m.To, m.From)
	case updater.EventAwaitingApproval:
		return fmt.Sprintf("%s: %v waits for approval, it runs %v", m.Workload, m.To, m.From)
	case updater.EventUpdated:
		return fmt.Sprintf("%s: updated to %v, and healthy; it ran %v", m.Workload, m.To, m.From)
	case updater.EventRestored:
		return fmt.Sprintf("%s: put back on %v, as %v was not good%s", m.Workload, m.From, m.To, why)
	case updater.EventFailed:
		return fmt.Sprintf("FAILED: %s is not healthy as it was before the update to %v; look at it now%s", m.Workload, m.To, why)
	case updater.EventRejected:
		return fmt.Sprintf("%s: %v is rejected and will not be tried again here%s", m.Workload, m.To, why)
	case updater.EventRefused:
		return fmt.Sprintf("%s: the update to %v was found impossible, nothing was disturbed%s", m.Workload, m.To, why)
	case updater.EventSuperseded:
		return fmt.Sprintf("%s: somebody else changed it during the update to %v, so it was left to them%s", m.Workload, m.To, why)
	case updater.EventRolledBack:
		return fmt.Sprintf("%s: somebody moved it off %v, which will not be tried again here", m.Workload, m.From)
	case updater.EventForgotten:
		return fmt.Sprintf("%s: the rejection of %v was lifted", m.Workload, m.To)
	case updater.EventRegistryTrouble:
		return fmt.Sprintf("registry trouble that lasts, about %s%s", m.Workload, why)
	case updater.EventRegistryWell:
		return fmt.Sprintf("registry trouble is over, about %s%s", m.Workload, why)
	case eventTest:
		return "this is a test of updaterd's messages; nothing has happened"
	}
	if m.Workload == "" { // a person paused it all, or no longer
		return fmt.Sprintf("everything on %s: %s%s", m.Backend, m.Event, why)
	}
	return fmt.Sprintf("%s: %s%s", m.Workload, m.Event, why)
}

// Bundle is what is told at once, and what a template is given.
type Bundle struct {
	Host     string
	Messages []Message
}

// Failed reports whether something needs a person now.
func (b Bundle) Failed() bool {
	for _, m := range b.Messages {
		if m.Event == updater.EventFailed {
			return true
		}
	}
	return false
}

// Events are the kinds of what is told, as "2 updated, 1 restored"; what failed
// comes first.
func (b Bundle) Events() string {
	order := []updater.Event{updater.EventFailed}
	count := map[updater.Event]int{}
	for _, m := range b.Messages {
		if count[m.Event] == 0 && m.Event != updater.EventFailed {
			order = append(order, m.Event)
		}
		count[m.Event]++
	}
	var parts []string
	for _, e := range order {
		if count[e] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[e], e))
		}
	}
	return strings.Join(parts, ", ")
}

// The templates of who gives none.
const (
	defaultTitle = `{{if .Failed}}FAILED: {{end}}updaterd{{with .Host}} on {{.}}{{end}}: {{.Events}}`
	defaultText  = `{{range .Messages}}{{.Text}}
{{with .Logs}}{{indent .}}
{{end}}{{end}}`
)

// ParseTemplate reads a template of a message, and tries it on one of every kind,
// so that a mistake shows before there is something to tell.
func ParseTemplate(text string) (*template.Template, error) {
	t, err := template.New("message").Option("missingkey=error").Funcs(template.FuncMap{
		"indent": indent,
		"json":   asJSON,
		"lower":  strings.ToLower,
		"upper":  strings.ToUpper,
	}).Parse(text)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "template: "))
	}
	for _, sample := range samples() {
		if _, err := render(t, sample); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// samples are bundles of every shape there is.
func samples() []Bundle {
	bare := Message{Event: updater.EventForgotten, Backend: "local", Workload: "local/web", At: time.Unix(0, 0)}
	full := bare
	full.Event, full.Host, full.Change, full.Verdict, full.Why, full.Logs = updater.EventRestored, "nas", "c1", updater.Bad, "it exited with code 1", "a line\nanother"
	full.From, full.To = &Image{"app:1", "sha256:1"}, &Image{"app:1", "sha256:2"}
	full.TookSeconds, full.GapSeconds = 12.5, 0.04
	return []Bundle{{Host: "nas", Messages: []Message{full}}, {Messages: []Message{bare, full}}}
}

// renderLimit bounds what a template makes.
const renderLimit = 64 << 10

// render carries a template out.
func render(t *template.Template, b Bundle) (string, error) {
	var out bounded
	if err := t.Execute(&out, b); err != nil {
		return "", errors.New(strings.TrimPrefix(err.Error(), "template: "))
	}
	return strings.TrimSpace(out.String()), nil
}

// bounded is a buffer that takes only so much.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > renderLimit {
		return 0, fmt.Errorf("it makes more than %d bytes", renderLimit)
	}
	return b.Buffer.Write(p)
}

// indent sets log lines off from what is said about them.
func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(plain(s)), "\n", "\n    ")
}

// plain drops what a terminal or a chat would take for more than text.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) {
			return r
		}
		return -1
	}, s)
}

func asJSON(v any) (string, error) {
	out, err := json.Marshal(v)
	return string(out), err
}

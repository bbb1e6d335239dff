package notify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"text/template"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/updaterd/updaterd/internal/updater"
)

// Receiver is a place that wants to be told.
type Receiver struct {
	// Name is for people, and under it its messages wait: of two receivers with the
	// same name, or the same address and none, each gets what waits once.
	Name string
	// Address is that of a webhook (http, https) or of a service. It is a secret:
	// whoever knows it can post there.
	Address string
	// Secret signs what a webhook gets; "": nothing is signed.
	Secret string
	// On are the events it is told of, besides failed, which all are; none means
	// all.
	On []updater.Event
	// Logs: it is told the last lines that a bad image wrote. They may hold secrets.
	Logs bool
	// Batch: a webhook gets all that there is in one post.
	Batch bool
	// Title and Text are templates; nil: the usual ones.
	Title, Text *template.Template
}

func (r Receiver) wants(e updater.Event) bool {
	return e == updater.EventFailed || len(r.On) == 0 || slices.Contains(r.On, e)
}

// key is what its messages are kept under. It tells nothing of the address.
func (r Receiver) key() string {
	if r.Name != "" {
		return "name:" + r.Name
	}
	sum := sha256.Sum256([]byte("updaterd receiver\x00" + r.Address))
	return "hash:" + hex.EncodeToString(sum[:12])
}

// shown is what may be shown of it: its name, else the part of its address that
// is no secret.
func (r Receiver) shown() string {
	if r.Name != "" {
		return r.Name
	}
	if !isWebhook(r.Address) {
		return scheme(r.Address)
	}
	u, err := url.Parse(r.Address)
	if err != nil {
		return "webhook"
	}
	return public(u)
}

// mostAtOnce and mostText bound one delivery: what chats take as one message.
const (
	mostAtOnce = 25
	mostText   = 3500
)

// sender delivers to one receiver.
type sender struct {
	Receiver
	client  *retryablehttp.Client
	service *service
}

func newSender(r Receiver) *sender {
	s := &sender{Receiver: r, client: newHTTPClient()}
	if !isWebhook(r.Address) {
		s.service = &service{address: r.Address, calls: make(chan struct{}, hanging)}
	}
	return s
}

// single: it gets one message at a time.
func (s *sender) single() bool { return s.service == nil && s.Text == nil && !s.Batch }

// deliver sends messages in one delivery, as many of them from the first on as fit
// in one, and returns how many those were. Each has an id, and the same ones
// together have the same one.
func (s *sender) deliver(ctx context.Context, host string, ids []string, messages []Message) (int, error) {
	if s.single() {
		messages = messages[:1]
	}
	limit := sendTimeout
	if s.service != nil {
		limit = serviceTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if s.service == nil && s.Text == nil {
		var body []byte
		var err error
		if s.Batch {
			body, err = json.Marshal(map[string]any{"events": messages})
		} else {
			body, err = json.Marshal(messages[0])
		}
		if err != nil {
			return len(messages), err
		}
		return len(messages), post(ctx, s.client, s.Address, s.Secret, together(ids[:len(messages)]), body)
	}
	title, text := "", ""
	for {
		b := Bundle{Host: host, Messages: messages}
		title, text = s.write(b)
		if len(text) <= mostText || len(messages) == 1 {
			break
		}
		messages = messages[:(len(messages)+1)/2]
	}
	if s.service == nil {
		return len(messages), post(ctx, s.client, s.Address, s.Secret, together(ids[:len(messages)]), []byte(text))
	}
	return len(messages), s.service.send(ctx, title, cut(text, mostText), Bundle{Messages: messages}.Failed())
}

// write makes title and text. A template that fails on what nobody thought of
// must not keep anybody from being told: then it is the usual text.
func (s *sender) write(b Bundle) (title, text string) {
	one := func(t *template.Template, usual string) string {
		if t != nil {
			if text, err := render(t, b); err == nil {
				return plain(text)
			}
		}
		return plain(must(usual, b))
	}
	return one(s.Title, defaultTitle), one(s.Text, defaultText)
}

// must renders one of our own templates, which a test has seen.
func must(text string, b Bundle) string {
	t, err := ParseTemplate(text)
	if err != nil {
		return b.Events()
	}
	out, err := render(t, b)
	if err != nil { // it was too long
		return b.Events()
	}
	return out
}

// cut shortens a text at the end of a rune.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[:most]
	for len(s) > 0 && s[len(s)-1]&0xC0 == 0x80 {
		s = s[:len(s)-1]
	}
	if len(s) > 0 && s[len(s)-1] >= 0xC0 {
		s = s[:len(s)-1]
	}
	return s + " ..."
}

// together is the id of messages that follow each other.
func together(ids []string) string {
	if len(ids) == 1 {
		return ids[0]
	}
	return ids[0] + "_" + ids[len(ids)-1]
}

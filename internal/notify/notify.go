// Package notify tells people what happened: it posts each event of the
// history as JSON to the webhooks that want it. docs/notifications.md
// describes the message.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-cleanhttp"
	"github.com/hashicorp/go-retryablehttp"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// patience bounds what one message may take, all tries together: a pass
	// waits for it.
	patience = 10 * time.Second
	// answerTimeout bounds one try.
	answerTimeout = 3 * time.Second
	tries         = 3
)

// Webhook is an address that wants to be told.
type Webhook struct {
	// URL is where the message is posted. It is a secret: whoever knows it can
	// post there.
	URL string
	// On are the events it is told of; none means all.
	On []updater.Event
}

// Notifier posts to webhooks. It implements [updater.Notifier].
type Notifier struct {
	hooks  []Webhook
	host   string
	client *retryablehttp.Client
	log    *slog.Logger
}

var _ updater.Notifier = (*Notifier)(nil)

// New returns a Notifier that tells hooks. With none, Notify does nothing.
func New(hooks []Webhook, log *slog.Logger) *Notifier {
	host, err := os.Hostname()
	if err != nil {
		host = "" // then the message goes without
	}
	client := retryablehttp.NewClient()
	client.Logger = nil // it would log URLs
	client.HTTPClient = &http.Client{
		// Messages are rare: no connection is kept for the next one.
		Transport:     cleanhttp.DefaultTransport(),
		Timeout:       answerTimeout,
		CheckRedirect: stay,
	}
	client.RetryMax = tries - 1
	client.RetryWaitMin, client.RetryWaitMax = 500*time.Millisecond, time.Second
	client.CheckRetry = worthwhile
	client.ErrorHandler = retryablehttp.PassthroughErrorHandler // the default puts the URL into the error
	return &Notifier{hooks: hooks, host: host, client: client, log: log}
}

// message is the body of a post; docs/notifications.md describes it, and
// people's programs read it.
type message struct {
	Event       updater.Event   `json:"event"`
	Backend     string          `json:"backend"`
	Workload    string          `json:"workload"`
	Host        string          `json:"host,omitempty"`
	At          time.Time       `json:"at"`
	Change      string          `json:"change,omitempty"`
	From        *image          `json:"from,omitempty"`
	To          *image          `json:"to,omitempty"`
	Verdict     updater.Verdict `json:"verdict,omitempty"`
	Why         string          `json:"why,omitempty"`
	TookSeconds float64         `json:"took_seconds,omitempty"`
	GapSeconds  float64         `json:"gap_seconds,omitempty"`
}

type image struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
}

func imageOf(i updater.Image) *image {
	if i.Ref == "" && i.Digest == "" {
		return nil
	}
	return &image{Image: i.Ref, Digest: i.Digest}
}

// Notify posts e to every webhook that wants it, to all at once, and returns
// when each has taken it or been given up, after at most 10 s. Failures are
// logged. A webhook whose answer got lost may be told twice.
func (n *Notifier) Notify(ctx context.Context, e updater.Entry) {
	body, err := json.Marshal(message{
		Event: e.Event, Backend: e.Backend, Workload: e.Workload, Host: n.host,
		At: e.At, Change: e.Change, From: imageOf(e.From), To: imageOf(e.To),
		Verdict: e.Verdict, Why: e.Why, // not Logs: they may hold secrets of the workload
		TookSeconds: e.Took.Seconds(), GapSeconds: e.Gap.Seconds(),
	})
	if err != nil {
		n.log.WarnContext(ctx, "notification cannot be written", "workload", e.Workload, "event", e.Event, "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var all sync.WaitGroup
	for _, hook := range n.hooks {
		if len(hook.On) > 0 && !slices.Contains(hook.On, e.Event) {
			continue
		}
		all.Go(func() {
			where, err := n.post(ctx, hook.URL, body)
			if err != nil {
				n.log.WarnContext(ctx, "notification was not delivered",
					"workload", e.Workload, "backend", e.Backend, "event", e.Event, "webhook", where, "err", err)
			}
		})
	}
	all.Wait()
}

// post sends body and returns the part of address that is no secret.
func (n *Notifier) post(ctx context.Context, address string, body []byte) (where string, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		// The parser's own words quote the address.
		return "", errors.New("its URL is not understood: it must begin with http:// or https:// and a host")
	}
	where = public(u)
	request, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return where, withoutURL(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "updaterd")
	response, err := n.client.Do(request)
	if response != nil {
		defer response.Body.Close()
	}
	if err != nil {
		return where, withoutURL(err)
	}
	// What it has to say is not shown: it may quote the request.
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10)
	switch code := response.StatusCode; {
	case code >= 200 && code < 300:
		return where, nil
	case code >= 300 && code < 400:
		to, err := response.Location()
		if err != nil {
			return where, fmt.Errorf("it answered %d without saying where to go", code)
		}
		return where, fmt.Errorf("it redirects to %s: redirects that leave the host or forget the message are not followed, so configure the address it leads to", public(to))
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound, code == http.StatusGone:
		return where, fmt.Errorf("it answered %d: see whether the configured address is still right", code)
	default:
		return where, fmt.Errorf("it answered %d", code)
	}
}

// public is the part of a webhook's address that may be shown: the path of
// most is the password.
func public(u *url.URL) string { return u.Scheme + "://" + u.Host }

// withoutURL takes the address out of an error of net/http.
func withoutURL(err error) error {
	var quoting *url.Error
	if errors.As(err, &quoting) {
		return quoting.Err
	}
	return err
}

// stay follows a redirect only where it repeats the message to the same host:
// another host should not learn it, and 301 to 303 turn it into a GET.
func stay(next *http.Request, via []*http.Request) error {
	first := via[0]
	if next.Method != first.Method || next.URL.Scheme != first.URL.Scheme || next.URL.Host != first.URL.Host || len(via) > 3 {
		return http.ErrUseLastResponse
	}
	return nil
}

// worthwhile tries again what retryablehttp would, unless the server asks for
// more patience than there is.
func worthwhile(ctx context.Context, response *http.Response, err error) (bool, error) {
	if response != nil && retryablehttp.DefaultBackoff(0, 0, 0, response) > patience/2 {
		return false, nil
	}
	return retryablehttp.DefaultRetryPolicy(ctx, response, err)
}

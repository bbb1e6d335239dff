package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-cleanhttp"
	"github.com/hashicorp/go-retryablehttp"
)

const (
	// answerTimeout bounds one try of a webhook, sendTimeout all tries of one
	// delivery, of whatever kind. What is not taken then is tried again later.
	answerTimeout = 3 * time.Second
	sendTimeout   = 10 * time.Second
	tries         = 3
)

// errNever marks an answer that will be the same for this message for ever.
var errNever = errors.New("it will not take this message")

func newHTTPClient() *retryablehttp.Client {
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
	return client
}

// post sends body to a webhook, signed if there is a secret.
func post(ctx context.Context, client *retryablehttp.Client, address, secret, id string, body []byte) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("its URL is not understood") // the parser's own words quote it
	}
	request, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return withoutURL(err)
	}
	request.Header.Set("Content-Type", "text/plain; charset=utf-8")
	if json.Valid(body) {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("User-Agent", "updaterd")
	if secret != "" {
		now := time.Now()
		request.Header.Set("webhook-id", id)
		request.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
		request.Header.Set("webhook-signature", sign(secret, id, now, body))
	}
	response, err := client.Do(request)
	if response != nil {
		defer response.Body.Close()
	}
	if err != nil {
		return withoutURL(err)
	}
	// What it has to say is not shown: it may quote the request.
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10)
	switch code := response.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code >= 300 && code < 400:
		to, err := response.Location()
		if err != nil {
			return fmt.Errorf("it answered %d without saying where to go", code)
		}
		return fmt.Errorf("it redirects to %s: redirects that leave the host or forget the message are not followed, so configure the address it leads to", public(to))
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound, code == http.StatusGone:
		return fmt.Errorf("it answered %d: see whether the configured address is still right", code)
	case code == http.StatusBadRequest, code == http.StatusRequestEntityTooLarge, code == http.StatusUnprocessableEntity:
		return fmt.Errorf("it answered %d: %w", code, errNever)
	default:
		return fmt.Errorf("it answered %d", code)
	}
}

// sign is the signature of Standard Webhooks (standardwebhooks.com), version 1:
// HMAC-SHA256 over id, time and body. A secret may be written as that wants it,
// whsec_ and base64; any other is taken as it is.
func sign(secret, id string, at time.Time, body []byte) string {
	key := []byte(secret)
	if encoded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		if raw, err := base64.StdEncoding.DecodeString(encoded); err == nil {
			key = raw
		}
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// public is the part of a webhook's address that may be shown: the path of
// most is the password.
func public(u *url.URL) string { return u.Scheme + "://" + u.Host }

// withoutURL takes the address out of an error of net/http.
func withoutURL(err error) error {
	var quoting *url.Error
	if errors.As(err, &quoting) {
		if quoting.Op == "parse" { // what is inside quotes a part of it
			return errors.New("its URL is not understood")
		}
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
	if response != nil && retryablehttp.DefaultBackoff(0, 0, 0, response) > sendTimeout/2 {
		return false, nil
	}
	return retryablehttp.DefaultRetryPolicy(ctx, response, err)
}

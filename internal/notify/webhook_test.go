package notify

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
)

// transport answers requests without a network, so that time can be the
// bubble's.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(r *http.Request, code int, header http.Header) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader("no: " + r.URL.String())), Request: r}
}

func TestTrouble(t *testing.T) {
	later := http.Header{"Retry-After": {"60"}}
	soon := http.Header{"Retry-After": {"2"}}
	for name, test := range map[string]struct {
		answers func(r *http.Request, try int) (*http.Response, error)
		tries   int
		atMost  time.Duration
		err     string // "" when it is delivered
	}{
		"a server that fails once is asked again": {
			answers: func(r *http.Request, try int) (*http.Response, error) {
				if try == 1 {
					return answer(r, 503, nil), nil
				}
				return answer(r, 200, nil), nil
			}, tries: 2, atMost: time.Second,
		},
		"a server that fails always is left for later": {
			answers: func(r *http.Request, _ int) (*http.Response, error) { return answer(r, 500, nil), nil },
			tries:   3, atMost: 2 * time.Second, err: "it answered 500",
		},
		"a server that cannot be reached is left for later": {
			answers: func(*http.Request, int) (*http.Response, error) { return nil, errors.New("connection refused") },
			tries:   3, atMost: 2 * time.Second, err: "connection refused",
		},
		"a server that never answers is left for later": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}, tries: 3, atMost: sendTimeout, err: "deadline exceeded",
		},
		"one that asks for a little patience gets it": {
			answers: func(r *http.Request, try int) (*http.Response, error) {
				if try == 1 {
					return answer(r, 429, soon), nil
				}
				return answer(r, 204, nil), nil
			}, tries: 2, atMost: 2 * time.Second,
		},
		"one that asks for more patience than there is gets it later": {
			answers: func(r *http.Request, _ int) (*http.Response, error) { return answer(r, 429, later), nil },
			tries:   1, err: "it answered 429",
		},
		"an address that is gone is not asked again at once": {
			answers: func(r *http.Request, _ int) (*http.Response, error) { return answer(r, 404, nil), nil },
			tries:   1, err: "see whether the configured address is still right",
		},
		"another host does not learn it": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 307, http.Header{"Location": {"https://elsewhere.example/" + secret}}), nil
			}, tries: 1, err: "it redirects to https://elsewhere.example",
		},
		"a redirect that would forget the message is not followed": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 302, http.Header{"Location": {"/login?" + secret}}), nil
			}, tries: 1, err: "it redirects to https://hooks.example",
		},
		"a redirect without TLS is not followed": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 308, http.Header{"Location": {"http://hooks.example/" + secret}}), nil
			}, tries: 1, err: "it redirects to http://hooks.example",
		},
		"a redirect on the same host is followed": {
			answers: func(r *http.Request, try int) (*http.Response, error) {
				if try == 1 {
					return answer(r, 308, http.Header{"Location": {"/new/" + secret}}), nil
				}
				return answer(r, 200, nil), nil
			}, tries: 2,
		},
		"a redirect in a circle ends": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 307, http.Header{"Location": {"/" + secret}}), nil
			}, tries: 4, err: "it redirects",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSender(Receiver{Address: "https://user:" + secret + "@hooks.example/" + secret + "?token=" + secret})
				require.Equal(t, "https://hooks.example", s.shown())
				var asked atomic.Int64
				s.client.HTTPClient.Transport = transport(func(r *http.Request) (*http.Response, error) {
					body, err := io.ReadAll(r.Body)
					require.NoError(t, err)
					require.Contains(t, string(body), `"workload":"local/web"`)
					return test.answers(r, int(asked.Add(1)))
				})
				began := time.Now()
				_, err := s.deliver(context.Background(), "nas", []string{"1"}, []Message{messageOf(entry(), "nas")})
				require.LessOrEqual(t, time.Since(began), test.atMost)
				require.EqualValues(t, test.tries, asked.Load())
				if test.err == "" {
					require.NoError(t, err)
					return
				}
				require.ErrorContains(t, err, test.err)
				require.NotContains(t, err.Error(), secret)
			})
		})
	}
}

// TestSignatures are verified by the library that receivers have.
func TestSignatures(t *testing.T) {
	for _, row := range []struct{ name, secret string }{
		{"a secret as the libraries want it", "whsec_" + base64.StdEncoding.EncodeToString([]byte("a key of some length"))},
		{"any other secret is taken as it is", "correct horse"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newWebhook(t)
			s := newSender(Receiver{Address: w.URL, Secret: row.secret, Batch: true})
			messages := []Message{messageOf(entry(), "nas"), messageOf(entry(), "nas")}
			_, err := s.deliver(t.Context(), "nas", []string{"a", "b"}, messages)
			require.NoError(t, err)
			got := w.heard()[0]
			key := row.secret
			if !strings.HasPrefix(key, "whsec_") {
				key = "whsec_" + base64.StdEncoding.EncodeToString([]byte(key))
			}
			verifier, err := standardwebhooks.NewWebhook(key)
			require.NoError(t, err)
			require.NoError(t, verifier.Verify([]byte(got.body), got.header))
			require.Error(t, verifier.Verify([]byte(got.body+" "), got.header))
			require.Equal(t, "a_b", got.header.Get("webhook-id"))
		})
	}
}

package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

const secret = "s3cr3t"

func entry() updater.Entry {
	return updater.Entry{
		At:      time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Backend: "local", Workload: "local/web", Event: updater.EventRestored, Change: "c1",
		From:    updater.Image{Ref: "app:1", Digest: "sha256:1", Manifest: "sha256:m1"},
		To:      updater.Image{Ref: "app:1", Digest: "sha256:2"},
		Verdict: updater.Bad, Why: "it exited with code 1", Logs: "password=hunter2",
		Took: 12500 * time.Millisecond, Gap: 40 * time.Millisecond,
	}
}

func logged() (*slog.Logger, *bytes.Buffer) {
	var out bytes.Buffer
	return slog.New(slog.NewTextHandler(&out, nil)), &out
}

// receiver is a webhook that remembers what it was sent.
func receiver(t *testing.T, answer http.HandlerFunc) (address string, received chan string) {
	t.Helper()
	received = make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		received <- r.Method + " " + r.URL.Path + " " + r.Header.Get("Content-Type") + " " + string(body)
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL, received
}

func taken(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

func TestTheMessageIsTheDocumentedOne(t *testing.T) {
	log, out := logged()
	address, received := receiver(t, taken)
	n := New([]Webhook{{URL: address + "/" + secret}}, log)
	n.host = "nas"
	n.Notify(t.Context(), entry())
	head, body, _ := strings.Cut(<-received, "{")
	require.Equal(t, "POST /"+secret+" application/json ", head)

	// The example in the documents is this very message.
	page, err := os.ReadFile("../../docs/notifications.md")
	require.NoError(t, err)
	_, example, found := strings.Cut(string(page), "```json\n")
	require.True(t, found)
	example, _, _ = strings.Cut(example, "```")
	require.JSONEq(t, example, "{"+body)
	require.Empty(t, out.String())
}

func TestWhatIsNotKnownIsLeftOut(t *testing.T) {
	address, received := receiver(t, taken)
	log, _ := logged()
	New([]Webhook{{URL: address}}, log).Notify(t.Context(), updater.Entry{Event: updater.EventForgotten, Workload: "local/web"})
	_, body, _ := strings.Cut(<-received, "{")
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte("{"+body), &fields))
	for _, key := range []string{"from", "to", "change", "why", "took_seconds", "gap_seconds"} {
		require.NotContains(t, fields, key)
	}
}

func TestEachIsToldWhatItWants(t *testing.T) {
	log, _ := logged()
	all, toAll := receiver(t, taken)
	some, toSome := receiver(t, taken)
	none, toNone := receiver(t, taken)
	New([]Webhook{
		{URL: all},
		{URL: some, On: []updater.Event{updater.EventFailed, updater.EventRestored}},
		{URL: none, On: []updater.Event{updater.EventUpdated}},
	}, log).Notify(t.Context(), entry())
	require.Len(t, toAll, 1)
	require.Len(t, toSome, 1)
	require.Empty(t, toNone)
}

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
		warning string // "" when it is delivered
	}{
		"a server that fails once is asked again": {
			answers: func(r *http.Request, try int) (*http.Response, error) {
				if try == 1 {
					return answer(r, 503, nil), nil
				}
				return answer(r, 200, nil), nil
			}, tries: 2, atMost: time.Second,
		},
		"a server that fails always is given up": {
			answers: func(r *http.Request, _ int) (*http.Response, error) { return answer(r, 500, nil), nil },
			tries:   3, atMost: 2 * time.Second, warning: "it answered 500",
		},
		"a server that cannot be reached is given up": {
			answers: func(*http.Request, int) (*http.Response, error) { return nil, errors.New("connection refused") },
			tries:   3, atMost: 2 * time.Second, warning: "connection refused",
		},
		"a server that never answers is given up": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}, tries: 3, atMost: patience, warning: "deadline exceeded",
		},
		"one that asks for a little patience gets it": {
			answers: func(r *http.Request, try int) (*http.Response, error) {
				if try == 1 {
					return answer(r, 429, soon), nil
				}
				return answer(r, 204, nil), nil
			}, tries: 2, atMost: 2 * time.Second,
		},
		"one that asks for more patience than there is does not get it": {
			answers: func(r *http.Request, _ int) (*http.Response, error) { return answer(r, 429, later), nil },
			tries:   1, atMost: 0, warning: "it answered 429",
		},
		"an address that is gone is not asked again": {
			answers: func(r *http.Request, _ int) (*http.Response, error) { return answer(r, 404, nil), nil },
			tries:   1, atMost: 0, warning: "see whether the configured address is still right",
		},
		"another host does not learn it": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 307, http.Header{"Location": {"https://elsewhere.example/" + secret}}), nil
			}, tries: 1, atMost: 0, warning: "it redirects to https://elsewhere.example",
		},
		"a redirect that would forget the message is not followed": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 302, http.Header{"Location": {"/login?" + secret}}), nil
			}, tries: 1, atMost: 0, warning: "it redirects to https://hooks.example",
		},
		"a redirect without TLS is not followed": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 308, http.Header{"Location": {"http://hooks.example/" + secret}}), nil
			}, tries: 1, atMost: 0, warning: "it redirects to http://hooks.example",
		},
		"a redirect on the same host is followed": {
			answers: func(r *http.Request, try int) (*http.Response, error) {
				if try == 1 {
					return answer(r, 308, http.Header{"Location": {"/new/" + secret}}), nil
				}
				return answer(r, 200, nil), nil
			}, tries: 2, atMost: 0,
		},
		"a redirect in a circle ends": {
			answers: func(r *http.Request, _ int) (*http.Response, error) {
				return answer(r, 307, http.Header{"Location": {"/" + secret}}), nil
			}, tries: 4, atMost: 0, warning: "it redirects",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, out := logged()
				n := New([]Webhook{{URL: "https://user:" + secret + "@hooks.example/" + secret + "?token=" + secret}}, log)
				var asked atomic.Int64
				n.client.HTTPClient.Transport = transport(func(r *http.Request) (*http.Response, error) {
					body, err := io.ReadAll(r.Body)
					require.NoError(t, err)
					require.Contains(t, string(body), `"workload":"local/web"`)
					return test.answers(r, int(asked.Add(1)))
				})
				began := time.Now()
				n.Notify(t.Context(), entry())
				require.LessOrEqual(t, time.Since(began), test.atMost)
				require.EqualValues(t, test.tries, asked.Load())
				require.NotContains(t, out.String(), secret)
				if test.warning == "" {
					require.Empty(t, out.String())
					return
				}
				for _, part := range []string{"level=WARN", "local/web", "restored", "webhook=https://hooks.example ", test.warning} {
					require.Contains(t, out.String(), part)
				}
				require.Equal(t, 1, strings.Count(out.String(), "\n"))
			})
		})
	}
}

func TestOneThatIsSlowDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := logged()
		n := New([]Webhook{{URL: "http://slow.example"}, {URL: "http://quick.example"}}, log)
		var told time.Duration
		began := time.Now()
		n.client.HTTPClient.Transport = transport(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "slow.example" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			told = time.Since(began)
			return answer(r, 200, nil), nil
		})
		n.Notify(t.Context(), entry())
		require.Zero(t, told)
		require.LessOrEqual(t, time.Since(began), patience)
	})
}

func TestAShutdownIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := logged()
		n := New([]Webhook{{URL: "http://slow.example"}}, log)
		n.client.HTTPClient.Transport = transport(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		n.Notify(ctx, entry())
		require.Equal(t, time.Second, time.Since(began))
		require.Contains(t, out.String(), "was not delivered")
	})
}

func TestAnAddressThatIsNoneIsNotShown(t *testing.T) {
	for _, address := range []string{
		"", secret, "ftp://hooks.example/" + secret, "https:///" + secret, "https://user:" + secret + "/x@hooks.example/",
		"https://hooks.example/%zz" + secret, "https://hooks.example/\n" + secret,
	} {
		log, out := logged()
		New([]Webhook{{URL: address}}, log).Notify(t.Context(), entry())
		require.Contains(t, out.String(), "its URL is not understood", address)
		require.NotContains(t, out.String(), secret)
	}
}

func TestARealNetworksErrorsShowNoAddress(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	lying := httptest.NewTLSServer(http.NotFoundHandler()) // with a certificate nobody knows
	lying.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	defer lying.Close()
	for _, address := range []string{closed.URL, lying.URL} {
		log, out := logged()
		New([]Webhook{{URL: address + "/" + secret}}, log).Notify(t.Context(), entry())
		require.Contains(t, out.String(), "was not delivered")
		require.NotContains(t, out.String(), secret)
	}
}

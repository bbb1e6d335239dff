package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

// said is what an ntfy server was told.
type said struct{ title, priority, text string }

func ntfy(t *testing.T, status int) (address string, told chan said) {
	t.Helper()
	told = make(chan said, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		told <- said{r.Header.Get("Title"), r.Header.Get("Priority"), string(body)}
		w.WriteHeader(status)
		fmt.Fprint(w, "{}")
	}))
	t.Cleanup(server.Close)
	return "ntfy://user:" + secret + "@" + strings.TrimPrefix(server.URL, "http://") + "/topic?scheme=http", told
}

func TestAServiceIsTold(t *testing.T) {
	address, told := ntfy(t, http.StatusOK)
	b := open(t, t.TempDir(), nil, Receiver{Address: address, Logs: true})
	e := entry()
	e.At = time.Now()
	b.Notify(t.Context(), e)
	b.Notify(t.Context(), now(updater.EventUpdated, "c2"))
	b.flush(t)
	require.Len(t, told, 1, b.log.String())
	got := <-told
	require.Equal(t, "updaterd on nas: 1 restored, 1 rejected, 1 updated", got.title)
	require.Equal(t, `local/web: put back on app:1 (1), as app:1 (2) was not good: it exited with code 1
    password=hunter2
local/web: app:1 (2) is rejected and will not be tried again here: it exited with code 1
    password=hunter2
local/web: updated to app:1 (2), and healthy; it ran app:1 (1)
    password=hunter2`, got.text)
	require.Contains(t, []string{"", "default", "Default", "3"}, got.priority)

	b.Notify(t.Context(), now(updater.EventFailed, "c3"))
	b.flush(t)
	got = <-told
	require.Equal(t, "FAILED: updaterd on nas: 1 failed", got.title)
	require.Contains(t, got.text, "FAILED: local/web is not healthy")
	require.Contains(t, []string{"max", "Max", "5"}, got.priority)
}

func TestAServiceThatRefusesIsTriedAgain(t *testing.T) {
	address, told := ntfy(t, http.StatusForbidden)
	b := open(t, t.TempDir(), nil, Receiver{Address: address})
	b.Notify(t.Context(), now(updater.EventUpdated, "c1"))
	b.flush(t)
	require.Contains(t, b.log.String(), "receiver=ntfy")
	require.Contains(t, b.log.String(), "err=\"it ")
	require.NotContains(t, b.log.String(), secret)
	b.flush(t)
	require.Len(t, told, 2)
}

func TestAServiceThatHangsIsBounded(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	s := newSender(Receiver{Address: "ntfy://" + strings.TrimPrefix(server.URL, "http://") + "/" + secret + "?scheme=http"})
	for i := range hanging + 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := s.deliver(ctx, "nas", []string{"1"}, []Message{messageOf(entry(), "nas")})
		cancel()
		want := "it did not answer in time"
		if i >= hanging {
			want = "3 calls of it hang"
		}
		require.ErrorContains(t, err, want)
		require.Len(t, s.service.calls, min(i+1, hanging))
	}
}

func TestNoErrorQuotesTheAddress(t *testing.T) {
	for _, row := range []struct {
		name string
		err  error
		want string
	}{
		{"a connection", fmt.Errorf("sending: %w", &url.Error{Op: "Post", URL: "https://x/" + secret, Err: errors.New("connection refused")}), "connection refused"},
		{"an address that is none", fmt.Errorf("sending: %w", &url.Error{Op: "parse", URL: secret, Err: url.EscapeError("%" + secret)}), "its URL is not understood"},
		{"a status", errors.New("unexpected status 429 from https://x/bot404:" + secret), "it answered 429 too many requests"},
		{"anything else", errors.New("bad token " + secret), "it did not take the message"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := discreet(row.err)
			require.ErrorContains(t, err, row.want)
			require.NotContains(t, err.Error(), secret)
		})
	}
}

func TestAddresses(t *testing.T) {
	for _, row := range []struct {
		address string
		good    bool
	}{
		{"https://example.com/hook", true},
		{"http://example.com", true},
		{"HTTPS://example.com", true},
		{"https:///hook", false},
		{"nowhere", false},
		{"", false},
		{"ftp://" + secret + "@a", false},
		{"logger://", false},
		{"ntfy://ntfy.sh/topic", true},
		{"telegram://110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw@telegram?chats=@channel", true},
		{"telegram://" + secret, false},
		{"discord://token@123", true},
		{"gotify://gotify.example.com/AzyoeNS.D4iJLVa/", true},
		{"smtp://user:password@mail.example.com:587/?from=a@example.com&to=b@example.com", true},
		{"matrix://user:password@matrix.example.com/?rooms=room", true},
		{"matrix://" + secret, false},
		{"pushover://:token@user/", true},
		{"generic://example.com/hook", true},
		{"slack://%" + secret, false},
	} {
		err := CheckAddress(row.address)
		require.Equal(t, row.good, err == nil, "%s: %v", row.address, err)
		if err != nil {
			require.NotContains(t, err.Error(), secret)
		}
	}
}

func FuzzCheckAddress(f *testing.F) {
	f.Add("telegram://token@telegram?chats=x")
	f.Add("slack://hook:a-b-c@webhook")
	f.Fuzz(func(_ *testing.T, address string) { _ = CheckAddress(address) })
}

func FuzzParseTemplate(f *testing.F) {
	f.Add(defaultTitle)
	f.Add(defaultText)
	f.Add("{{range .Messages}}{{json .}}{{end}}")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "range") && strings.ContainsAny(text, "0123456789") {
			t.Skip() // it may count to a billion, which is its author's to want
		}
		parsed, err := ParseTemplate(text)
		if err != nil {
			return
		}
		for _, b := range samples() {
			_, err := render(parsed, b)
			require.NoError(t, err)
		}
	})
}

func TestATemplateThatFailsLaterKeepsNobodyFromBeingTold(t *testing.T) {
	text, err := ParseTemplate(`{{range .Messages}}{{if eq .Workload "local/odd"}}{{index .Workload 1000}}{{end}}{{end}}x`)
	require.NoError(t, err)
	s := newSender(Receiver{Text: text})
	odd := messageOf(entry(), "nas")
	odd.Workload, odd.Logs = "local/odd", ""
	_, got := s.write(Bundle{Messages: []Message{odd}})
	require.Contains(t, got, "local/odd: put back on app:1")
}

func TestTextIsPlain(t *testing.T) {
	m := messageOf(entry(), "nas")
	m.Logs = "red: \x1b[31m\r\nnext"
	_, got := newSender(Receiver{}).write(Bundle{Host: "nas", Messages: []Message{m}})
	require.NotContains(t, got, "\x1b")
	require.NotContains(t, got, "\r")
}

package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/updaterd/updaterd/internal/updater"
)

// ErrNobody: no updaterd listens on the socket.
var ErrNobody = errors.New("no updaterd listens")

// ErrForbidden: who asks may not open the socket, or not even look whether there is one.
var ErrForbidden = errors.New("may not be opened")

// Client speaks to an updaterd over its unix socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the socket at a path. It connects when it is asked.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// do makes a request and decodes the answer into v.
func (c *Client) do(ctx context.Context, method, path string, body, v any) error {
	response, err := c.ask(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(v); err != nil {
		return fmt.Errorf("answer of %s: %w", c.socket, err)
	}
	return nil
}

func (c *Client) ask(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var sent io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		sent = bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://updaterd"+path, sent)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	switch {
	case err == nil:
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w at %s", ErrNobody, c.socket)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		// It ended in this moment. What was said may have been heard; to say it again
		// is to say it once.
		return nil, fmt.Errorf("%w at %s any more", ErrNobody, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("socket %s %w: become one of the group that the daemon runs in (or of api.group, where it has one), or root", c.socket, ErrForbidden)
	default:
		if quoting, ok := errors.AsType[*url.Error](err); ok {
			err = quoting.Err
		}
		return nil, fmt.Errorf("asking %s: %w", c.socket, err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	var p Problem
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&p); err != nil || p.Error == "" {
		return nil, fmt.Errorf("%s answered %s", c.socket, response.Status)
	}
	for _, f := range failures() {
		if f.code == p.Code {
			return nil, &toldError{p.Error, f.err}
		}
	}
	return nil, errors.New(p.Error)
}

// toldError is an error of updaterd as it was told.
type toldError struct {
	text string
	is   error
}

func (e *toldError) Error() string { return e.text }
func (e *toldError) Unwrap() error { return e.is }

// Status is what updaterd is at.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Workloads are the watched ones, or those of these names.
func (c *Client) Workloads(ctx context.Context, names ...string) (all []Workload, err error) {
	path := "/v1/workloads"
	if len(names) > 0 {
		path += "?" + url.Values{"name": names}.Encode()
	}
	return all, c.do(ctx, http.MethodGet, path, nil, &all)
}

// Changes are those under way.
func (c *Client) Changes(ctx context.Context) (all []Change, err error) {
	return all, c.do(ctx, http.MethodGet, "/v1/changes", nil, &all)
}

// History is what happened, newest first, as the query of /v1/history says.
func (c *Client) History(ctx context.Context, query url.Values) (all []Entry, err error) {
	return all, c.do(ctx, http.MethodGet, "/v1/history?"+query.Encode(), nil, &all)
}

// Say passes on what a person said. Its errors are those of updater.Updater.Say.
func (c *Client) Say(ctx context.Context, s updater.Saying) (told []updater.Told, err error) {
	words := Words{Workloads: s.Workloads, Digest: s.Digest, Why: s.Why, Who: s.Who}
	if !s.Until.IsZero() {
		words.Until = &s.Until
	}
	return told, c.do(ctx, http.MethodPost, "/v1/"+string(s.Verb), words, &told)
}

// Event is one event of the stream; Data is as its type says.
type Event struct {
	Type string
	Data json.RawMessage
}

// Events calls each with every event until it returns false, ctx ends or the
// stream does, which is an error. listening is called once events come.
func (c *Client) Events(ctx context.Context, listening func(), each func(Event) bool) error {
	response, err := c.ask(ctx, http.MethodGet, "/v1/events", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 4<<20)
	var e Event
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "": // a comment; the first one comes at once
			if listening != nil && strings.HasPrefix(lines.Text(), ":") {
				listening()
				listening = nil
			}
			if e.Type != "" && !each(e) {
				return nil
			}
			e = Event{}
		case "event":
			e.Type = value
		case "data":
			e.Data = json.RawMessage(value)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("stream of %s ended: %w", c.socket, errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}

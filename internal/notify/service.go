package notify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nicholas-fedor/shoutrrr/pkg/router"
	"github.com/nicholas-fedor/shoutrrr/pkg/types"
)

// serviceTimeout bounds one delivery to a service. The library's calls know no
// context, so one that hangs is left to itself; see service.
const serviceTimeout = 30 * time.Second

// hanging bounds the calls that are left to themselves, for each service.
const hanging = 3

// service is an account with one of the services that shoutrrr knows.
type service struct {
	address string
	calls   chan struct{} // one for each under way
}

// send delivers one text. Its error holds nothing of the address.
func (s *service) send(ctx context.Context, title, text string, urgent bool) error {
	select {
	case s.calls <- struct{}{}:
	default:
		return fmt.Errorf("%d calls of it hang: it takes the connection and does not answer", hanging)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-s.calls }()
		done <- s.call(title, text, urgent)
	}()
	select {
	case err := <-done:
		return discreet(err)
	case <-ctx.Done():
		return errors.New("it did not answer in time")
	}
}

func (s *service) call(title, text string, urgent bool) (err error) {
	defer func() {
		if recover() != nil { // what it says may quote the address
			err = errors.New("panic")
		}
	}()
	var r router.ServiceRouter
	// For some (matrix), this is where they log in.
	sender, err := r.Locate(s.address)
	if err != nil {
		return err
	}
	name := scheme(s.address)
	params := types.Params{}
	if slices.Contains(untitled, name) {
		text = title + "\n" + text
	} else {
		params.SetTitle(title)
	}
	if urgent {
		if p, ok := loudest[name]; ok {
			params["priority"] = p
		}
	}
	return sender.Send(text, &params)
}

// untitled are the services whose messages have no title of their own.
var untitled = []string{"googlechat", "hangouts", "notifiarr", "pagerduty", "rocketchat", "signal", "wecom"}

// loudest is how a service is told that it is urgent.
var loudest = map[string]string{"gotify": "10", "ntfy": "5", "pushover": "1"}

// scheme is the name of a service in its address.
func scheme(address string) string {
	name, _, _ := strings.Cut(address, ":")
	name, _, _ = strings.Cut(name, "+")
	return strings.ToLower(name)
}

// discreet keeps of a library's error what cannot hold a secret: the cause of a
// failed connection, or the status that was answered.
func discreet(err error) error {
	if err == nil {
		return nil
	}
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return withoutURL(failed)
	}
	if m := regexp.MustCompile(`\b[1-5]\d\d\b`).FindString(withoutAddresses(err.Error())); m != "" {
		code, _ := strconv.Atoi(m) // three digits
		if text := http.StatusText(code); text != "" {
			return fmt.Errorf("it answered %d %s", code, strings.ToLower(text))
		}
	}
	return errors.New("it did not take the message: see whether its address is still right; the library's words are not shown, as they may quote it")
}

// withoutAddresses is a text without what looks like a URL.
func withoutAddresses(s string) string {
	return regexp.MustCompile(`\S+://\S+`).ReplaceAllString(s, "")
}

// CheckAddress says what is wrong with the address of a receiver, without quoting
// it; nil if nothing is. It asks nobody.
func CheckAddress(address string) error {
	const services = "; write https://..., or an address as docs/notifications.md has them"
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" {
		return errors.New("is no address" + services)
	}
	if isWebhook(address) {
		if u.Hostname() == "" {
			return errors.New("is an http address without a host" + services)
		}
		return nil
	}
	name := scheme(address)
	var r router.ServiceRouter
	if _, err := r.NewService(name); err != nil || name == "logger" {
		return fmt.Errorf("begins with the name of no service that is known%s", services)
	}
	if name == "matrix" {
		// Its library would log in to see whether it is right.
		if u.Host == "" || u.User == nil {
			return errors.New("is no address of matrix as its page has it (docs/notifications.md)")
		}
		return nil
	}
	defer func() { _ = recover() }()
	if _, err := r.Locate(address); err != nil {
		return fmt.Errorf("is no address of %s as its page has it (docs/notifications.md)", name)
	}
	return nil
}

// isWebhook: a plain webhook, and no service.
func isWebhook(address string) bool {
	lower := strings.ToLower(address)
	return strings.HasPrefix(lower, "http://") || strings.HasPrefix(lower, "https://")
}

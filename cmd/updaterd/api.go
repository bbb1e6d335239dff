package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/server"
)

// api serves the API of w until the function it returns is called. Its error is
// about an address that somebody asked for; a socket that nobody did is tried again
// and again, and missing it stops nothing.
func (w *wiring) api(c config.API) (end func(), err error) {
	ctx, cancel := context.WithCancel(context.Background())
	var tokens []server.Token
	for _, t := range c.Tokens {
		tokens = append(tokens, server.Token(t))
	}
	s := &http.Server{
		Handler: server.New(server.Options{
			Version: w.version, Updater: w.updater, Board: w.board, Tokens: tokens, Hosts: c.Hosts, Log: w.log,
		}),
		ConnContext:       server.ConnContext,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(w.log.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	serve := func(l net.Listener, what string) {
		w.log.Info("listening", "for", what, "address", l.Addr().String())
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.log.Error("listener ended", "for", what, "err", err)
		}
	}
	end = func() {
		cancel() // streams end
		patient, release := context.WithTimeout(context.Background(), 2*time.Second)
		defer release()
		if s.Shutdown(patient) != nil {
			_ = s.Close() // whoever is slow goes without an answer
		}
		serving.Wait()
	}
	if c.Listen != "" {
		l, err := listenTCP("api.listen", c.Listen, c.TLS, w.log)
		if err != nil {
			cancel()
			return nil, err
		}
		serving.Go(func() { serve(l, "api.listen") })
	}
	if c.Socket == "" {
		return end, nil
	}
	listen := func() (net.Listener, error) {
		l, err := listenUnix(c.Socket, c.Group, 0o660)
		if !c.Fallback || !errors.Is(err, errGroup) {
			return l, err
		}
		// The daemon's own group may be wider than the one that was named.
		l, failed := listenUnix(c.Socket, "", 0o600)
		if failed == nil {
			w.log.Warn("socket is for the daemon's own user and root alone", "err", err)
		}
		return l, failed
	}
	l, err := listen()
	if err == nil {
		serving.Go(func() { serve(l, "api.socket") })
		return end, nil
	}
	if !c.Fallback {
		end()
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	w.log.Warn("socket for commands is not to be had yet", "err", err)
	serving.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(socketPause):
			}
			if l, err := listen(); err == nil {
				serve(l, "api.socket")
				return
			}
		}
	})
	return end, nil
}

// socketPause is the pause before a socket that another process holds, such as the
// daemon that this one is about to replace, is tried again.
const socketPause = 2 * time.Second

// errGroup: a socket cannot be given to the group that it is for.
var errGroup = errors.New("the socket cannot be given to the group")

// listenUnix makes a socket of this mode for a group; "" is the group that it has by
// itself, the daemon's own. What a process left there that was killed is
// replaced, and one that is served is not. Where the error is errGroup, none is left.
func listenUnix(path, group string, mode fs.FileMode) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket; name another path, or remove it", path)
	default:
		if c, err := net.Dial("unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("another updaterd listens on %s; stop it, or name another path", path), c.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	gid := -1
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, fmt.Errorf("api.group: %w; make the group, or name another", err)
		}
		if gid, err = strconv.Atoi(g.Gid); err != nil {
			return nil, fmt.Errorf("api.group: %s has the id %q: %w", group, g.Gid, err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Nobody else gets in between: until it has its group the file has no more rights
	// than the directory and the umask left it, and a connection is looked at only now.
	if gid >= 0 {
		if err := giveTo(path, gid); err != nil {
			err = fmt.Errorf("api.group: %w %s: %w; let the daemon be a member of %s: as a service, with Group=%s in its unit", errGroup, group, err, group, group)
			return nil, errors.Join(err, l.Close())
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// giveTo gives a file to a group. One that has it already is left alone: the unit of
// the packages may not change groups, not even to the one that it runs in.
func giveTo(path string, gid int) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if now, ok := info.Sys().(*syscall.Stat_t); ok && int(now.Gid) == gid {
		return nil
	}
	return os.Chown(path, -1, gid)
}

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
	l, err := listenUnix(c.Socket, c.Group)
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
			if l, err := listenUnix(c.Socket, c.Group); err == nil {
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

// listenUnix makes a socket that its owner and group may open. What a process left
// there that was killed is replaced, and one that is served is not.
func listenUnix(path, group string) (net.Listener, error) {
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
	// Nobody else gets in between: until here the file has no more rights than
	// the directory and the umask left it, and a connection is looked at only now.
	err = os.Chmod(path, 0o660)
	if err == nil && gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

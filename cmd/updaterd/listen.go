package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/updaterd/updaterd/internal/config"
)

// listen serves handler on a TCP address, with TLS if there is a certificate, until the
// function it returns is called, which waits a little for answers under way. Its error
// names the key of the configuration to mend.
func listen(key, address string, t config.TLS, handler http.Handler, log *slog.Logger) (end func(), err error) {
	l, err := listenTCP(key, address, t, log)
	if err != nil {
		return nil, err
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	log.Info("listening", "for", key, "address", l.Addr().String())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("listener ended", "for", key, "err", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close() // whoever is slow goes without an answer
		}
		<-ended
	}, nil
}

// listenTCP listens on an address, with TLS if there is a certificate. Its error names
// the key of the configuration to mend.
func listenTCP(key, address string, t config.TLS, log *slog.Logger) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; name an address of this machine that is free, or none", key, err)
	}
	if t.Cert == "" {
		return l, nil
	}
	p := &pair{files: t, log: log.With("for", key)}
	if _, err := p.current(nil); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: its certificate: %w", key, err), l.Close())
	}
	return tls.NewListener(l, &tls.Config{GetCertificate: p.current, NextProtos: []string{"h2", "http/1.1"}}), nil
}

// pair is a certificate with its key, as their files have them: a daemon outlives its
// certificates.
type pair struct {
	files config.TLS
	log   *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	stamps [2]stamp // of the files when they were last read
}

// stamp tells whether a file is another one than before.
type stamp struct {
	at   time.Time
	size int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

// current is the pair to answer with. While the files are being replaced, and do not
// fit each other, it is the one before.
func (p *pair) current(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := [2]stamp{stampOf(p.files.Cert), stampOf(p.files.Key)}
	if p.loaded != nil && now == p.stamps {
		return p.loaded, nil
	}
	p.stamps = now
	read, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
	switch {
	case err == nil:
		p.loaded = &read
	case p.loaded == nil:
		return nil, err
	default:
		p.log.Warn("certificate cannot be read, the one before stays", "err", err)
	}
	return p.loaded, nil
}

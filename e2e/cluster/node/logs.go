package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"time"
)

// logServer is what the API server asks for the logs of containers.
type logServer struct {
	port   int32
	server *http.Server
}

func serveLogs(f *Fleet) (*logServer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// The API server takes any certificate of a kubelet, unless told otherwise.
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", f.answerLogs)
	s := &logServer{
		port: int32(l.Addr().(*net.TCPAddr).Port),
		server: &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		}},
	}
	go s.server.ServeTLS(l, "", "") //nolint:errcheck // Ends with Close.
	return s, nil
}

func (s *logServer) close() { s.server.Close() }

func (f *Fleet) answerLogs(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	var found *pod
	for _, p := range f.pods {
		if p.namespace == r.PathValue("namespace") && p.name == r.PathValue("pod") {
			found = p
		}
	}
	f.mu.Unlock()
	if found == nil {
		http.NotFound(w, r)
		return
	}
	found.mu.Lock()
	l := found.logs[r.PathValue("container")]
	found.mu.Unlock()
	lines := l.now
	if r.URL.Query().Get("previous") == "true" {
		lines = l.last
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("tailLines")); err == nil && n >= 0 {
		lines = lines[max(0, len(lines)-n):]
	}
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
}

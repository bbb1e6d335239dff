package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
	"golang.org/x/sys/unix"
)

// certify writes a certificate of updates.example.com and its key, and returns what
// trusts that and no other.
func certify(t *testing.T, dir string, serial int64) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "updaterd e2e"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"updates.example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cert.pem"), certPEM, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(certPEM))
	return pool
}

// trusting is a client that trusts these certificates, and keeps no connection.
func trusting(pool *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true, DisableKeepAlives: true},
		// Where it would lead is looked at.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// TestListenersSpeakTLS: the API, its stream and its page, and what registries post to.
func TestListenersSpeakTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pool := certify(t, dir, 1)
	const secret = "s3cr3t-word-of-some-length"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), []byte(secret), 0o600))
	hooks := freePort(t)
	s := newSteerable(t, fmt.Sprintf(`  hosts: [updates.example.com]
  tls: {cert: %[1]s/cert.pem, key: %[1]s/key.pem}
webhooks:
  listen: %[2]s
  tls: {cert: %[1]s/cert.pem, key: %[1]s/key.pem}
  senders: [{name: hub, kind: docker-hub, secret-file: %[1]s/secret}]
`, dir, hooks))
	s.client, s.scheme = trusting(pool), "https"
	s.steer()
	web := fmt.Sprintf(`{"workloads":[%q]}`, s.name)

	plain, err := http.Get("http://" + s.address + "/v1/status")
	require.NoError(t, err)
	require.NoError(t, plain.Body.Close())
	require.Equal(t, http.StatusBadRequest, plain.StatusCode, "nothing is told without TLS")
	_, err = tls.Dial("tcp", s.address, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	require.ErrorContains(t, err, "remote error", "it is the server that refuses")

	called := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	from := func(origin string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Origin", origin) }
	}
	for name, c := range map[string]struct {
		token string
		edits []func(*http.Request)
		want  int
	}{
		"who may":                         {writeToken, nil, 200},
		"nobody":                          {"", nil, 401},
		"who may only read":               {readToken, nil, 403},
		"by its name":                     {writeToken, []func(*http.Request){called("updates.example.com")}, 200},
		"by another name":                 {writeToken, []func(*http.Request){called("evil.example.com")}, 421},
		"by a name that begins the same":  {writeToken, []func(*http.Request){called("updates.example.com.evil.example.com")}, 421},
		"from its own page":               {writeToken, []func(*http.Request){called("updates.example.com"), from("https://updates.example.com")}, 200},
		"from a page of another":          {writeToken, []func(*http.Request){from("https://evil.example.com")}, 403},
		"from a page of another port":     {writeToken, []func(*http.Request){from("https://127.0.0.1:1")}, 403},
		"from a page without any origin":  {writeToken, []func(*http.Request){from("null")}, 403},
		"from a page that begins as ours": {writeToken, []func(*http.Request){from("https://" + s.address + ".evil.example.com")}, 403},
	} {
		code, text := s.call("POST", "/v1/release", c.token, web, c.edits...)
		require.Equal(t, c.want, code, "%s: %s", name, text)
	}

	// Over HTTP/2, as browsers have it.
	stream, end := s.events(t.Context())
	s.say("hold", `{"workloads":["WEB"]}`)
	for seen := ""; !strings.Contains(seen, `"event":"held"`); {
		line, err := stream.ReadString('\n')
		require.NoError(t, err)
		seen += line
	}
	require.NoError(t, end.Close())

	r, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+s.address+"/login", strings.NewReader(url.Values{"token": {writeToken}}.Encode()))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "https://"+s.address)
	answer, err := s.client.Do(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, 2, answer.ProtoMajor)
	require.Len(t, answer.Cookies(), 1)
	cookie := answer.Cookies()[0]
	require.True(t, cookie.Secure && cookie.HttpOnly && cookie.SameSite == http.SameSiteStrictMode, "%v", cookie)

	r, err = http.NewRequestWithContext(t.Context(), "POST", "https://"+hooks+"/webhooks/hub/"+secret,
		strings.NewReader(`{"push_data":{"tag":"1"},"repository":{"repo_name":"acme/unwatched"}}`))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	answer, err = s.client.Do(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, http.StatusAccepted, answer.StatusCode)

	// A daemon outlives its certificate.
	s.client = trusting(certify(t, dir, 2))
	code, _ := s.call("GET", "/v1/status", readToken, "")
	require.Equal(t, 200, code)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key.pem"), []byte("half"), 0o600))
	code, _ = s.call("GET", "/v1/status", readToken, "")
	require.Equal(t, 200, code, "the one before stays")
	require.Zero(t, s.daemon.Stop(20*time.Second))
}

// dialAs connects to a socket as another user, who is in this group only.
func dialAs(uid, gid int, socket string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		// The package's own functions would change all threads.
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- result{err: errno}
				return
			}
		}
		conn, err := net.Dial("unix", socket)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// TestSocketIsForItsGroup, whoever they are, and for nobody else.
func TestSocketIsForItsGroup(t *testing.T) {
	t.Parallel()
	group, err := user.LookupGroup("daemon")
	require.NoError(t, err)
	gid, err := strconv.Atoi(group.Gid)
	require.NoError(t, err)
	s := newSteerable(t, "  group: daemon\n")
	// That of t is root's alone.
	dir, err := os.MkdirTemp("", "updaterd-socket-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	socket := filepath.Join(dir, "s")
	s.u.Env = append(s.u.Env, "UPDATERD_API_SOCKET="+socket)
	s.steer()

	info, err := os.Stat(socket)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	require.Equal(t, gid, int(info.Sys().(*syscall.Stat_t).Gid))
	const nobody = 65534
	_, err = dialAs(nobody, nobody, socket)
	require.ErrorIs(t, err, os.ErrPermission)
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return dialAs(nobody, gid, socket)
	}}}
	defer client.CloseIdleConnections()
	// Without a token; and who it was is what the kernel says, whatever they say.
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://updaterd/v1/hold", strings.NewReader(fmt.Sprintf(`{"workloads":[%q],"who":"ann"}`, s.name)))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	answer, err := client.Do(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, http.StatusOK, answer.StatusCode)
	who, err := user.LookupId(strconv.Itoa(nobody))
	require.NoError(t, err)
	require.Equal(t, who.Username, s.history()[0].Who)
	require.Zero(t, s.daemon.Stop(20*time.Second))
	require.NoFileExists(t, socket)
}

// TestAChangeIsSeenWhileItIsUnderWay by each route that shows it.
func TestAChangeIsSeenWhileItIsUnderWay(t *testing.T) {
	t.Parallel()
	s := newSteerable(t, "")
	release := make(chan struct{})
	open := sync.OnceFunc(func() { close(release) })
	t.Cleanup(open)
	tr := aside(at{match: func(c stage.Call) bool { return c.Method == "POST" && strings.HasSuffix(c.Path, "/stop") }}, func() {})
	before := tr.Before
	tr.Before = func(c stage.Call) error {
		if err := before(c); err != nil {
			return err
		}
		if c.Method == "POST" && strings.HasSuffix(c.Path, "/stop") {
			<-release
		}
		return nil
	}
	s.through(tr.Hooks)
	s.steer()
	second := s.push("latest", stage.Image{Version: "v2"})
	s.say("check", `{}`)
	s.reason("needs-approval")
	s.say("update", `{"workloads":["WEB"]}`)
	within(t, 30*time.Second, "the old one to be stopped", tr.sprung)

	type change struct {
		ID, Unit, Phase string
		Parts           []struct{ Workload string }
	}
	get := func(path string, v any) {
		t.Helper()
		code, text := s.call("GET", path, readToken, "")
		require.Equal(t, 200, code, text)
		require.NoError(t, json.Unmarshal([]byte(text), v), text)
	}
	var all []change
	get("/v1/changes", &all)
	require.Len(t, all, 1)
	require.Equal(t, "applying", all[0].Phase)
	require.Equal(t, "local/"+s.name, all[0].Unit)
	require.Equal(t, "local/"+s.name, all[0].Parts[0].Workload)
	var one change
	get("/v1/changes/"+all[0].ID, &one)
	require.Equal(t, all[0], one)
	var row struct{ Change string }
	get("/v1/workloads/"+s.name, &row)
	require.Equal(t, one.ID, row.Change)
	var status struct{ Backends []struct{ Changing []string } }
	get("/v1/status", &status)
	require.Equal(t, []string{"local/" + s.name}, status.Backends[0].Changing)
	require.Contains(t, s.u.Run("status").Stdout, s.name)
	code, _ := s.call("GET", "/v1/changes/"+one.ID+"x", readToken, "")
	require.Equal(t, 404, code)

	// What is said once more changes nothing, and what is said of it waits.
	s.say("update", `{"workloads":["WEB"]}`)
	s.say("hold", `{"workloads":["WEB"]}`)
	get("/v1/changes", &all)
	require.Len(t, all, 1)
	open()
	stage.Eventually(t, time.Minute, "the change to be over", func() bool {
		get("/v1/changes", &all)
		return len(all) == 0
	})
	s.updated("v2", second)
	s.push("latest", stage.Image{Version: "v3"})
	s.say("check", `{}`)
	s.reason("held")
	code, text := s.call("GET", "/v1/history?change="+one.ID, readToken, "")
	require.Equal(t, 200, code)
	require.Contains(t, text, `"updated"`)
	events := s.history()
	require.True(t, slices.ContainsFunc(events, func(e event) bool { return e.Event == "updated" && e.Change == one.ID }), "%+v", events)
	require.Zero(t, s.daemon.Stop(20*time.Second))
}

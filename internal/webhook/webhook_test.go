package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/distribution/reference"
	"github.com/stretchr/testify/require"
)

func sample(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name + ".json")
	require.NoError(t, err)
	return data
}

func TestPayloads(t *testing.T) {
	for _, row := range []struct {
		name  string
		parse parser
		body  string
		host  string
		want  []string // nil: an error
	}{
		{"Docker Hub", dockerHub, string(sample(t, "docker-hub")), "", []string{"docker.io/acme/web:1.4"}},
		{"an official image of Docker Hub", dockerHub, `{"push_data":{"tag":"1"},"repository":{"repo_name":"nginx"}}`, "", []string{"docker.io/library/nginx:1"}},
		{"GitHub's package", ghcr, string(sample(t, "ghcr")), "", []string{"ghcr.io/acme/web:1.4"}},
		{"GitHub's registry_package", ghcr, string(sample(t, "ghcr-registry-package")), "", []string{"ghcr.io/acme/web:1.4"}},
		{"GitHub's ping", ghcr, string(sample(t, "ghcr-ping")), "", []string{}},
		{"an image of one platform, which has no tag", ghcr, `{"action":"published","package":{"package_type":"CONTAINER","package_version":{"package_url":"ghcr.io/acme/web:"}}}`, "", []string{}},
		{"a package that is no container", ghcr, `{"action":"published","package":{"package_type":"NPM","name":"a","namespace":"b"}}`, "", []string{}},
		{"Harbor", harbor, string(sample(t, "harbor")), "", []string{"harbor.example.com/acme/web:1.4"}},
		{"Harbor's CloudEvents", harbor, string(sample(t, "harbor-cloudevents")), "", []string{"harbor.example.com/acme/web:1.4"}},
		{"Harbor by another name", harbor, string(sample(t, "harbor")), "reg.example.com:8443", []string{"reg.example.com:8443/acme/web:1.4"}},
		{"a scan", harbor, `{"type":"SCANNING_COMPLETED","event_data":{"resources":[]}}`, "", []string{}},
		{"Gitea", gitea, string(sample(t, "gitea")), "", []string{"gitea.example.com/acme/web:1.4"}},
		{"a package of Gitea that was removed", gitea, strings.Replace(string(sample(t, "gitea")), `"created"`, `"deleted"`, 1), "", []string{}},
		{"Gitea's manifest without a tag", gitea, strings.Replace(string(sample(t, "gitea")), `"version": "1.4"`, `"version": "sha256:4d2c7b0d"`, 1), "", []string{}},
		{"a push of Gitea to git", gitea, `{"action":"opened","number":1}`, "", []string{}},
		{"distribution", distribution, string(sample(t, "distribution")), "", []string{"registry.example.com:5000/acme/web:1.4"}},
		{"distribution by another name", distribution, string(sample(t, "distribution")), "localhost:5000", []string{"localhost:5000/acme/web:1.4"}},
		{"distribution without a request", distribution, `{"events":[{"action":"push","target":{"repository":"a/b","tag":"1","url":"http://r.example.com/v2/a/b/manifests/1"}}]}`, "", []string{"r.example.com/a/b:1"}},
		{"nothing of anything", distribution, `{"events":[]}`, "", []string{}},

		{"no JSON", dockerHub, `tag=1`, "", nil},
		{"another shape", dockerHub, `[]`, "", nil},
		{"nothing at all", dockerHub, ``, "", nil},
		{"another sender's", ghcr, string(sample(t, "docker-hub")), "", nil},
		{"another sender's", harbor, string(sample(t, "docker-hub")), "", nil},
		{"another sender's", gitea, string(sample(t, "docker-hub")), "", nil},
		{"another sender's", distribution, string(sample(t, "docker-hub")), "", nil},
		{"a tag that is none", dockerHub, `{"push_data":{"tag":"../../x"},"repository":{"repo_name":"a/b"}}`, "", []string{}},
		{"a repository with a tag in it", dockerHub, `{"push_data":{"tag":"1"},"repository":{"repo_name":"a/b:2"}}`, "", []string{}},
		{"a host that is a path", distribution, `{"events":[{"action":"push","target":{"repository":"a","tag":"1"},"request":{"host":"evil"}}]}`, "", []string{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := row.parse([]byte(row.body), row.host)
			if row.want == nil {
				require.ErrorIs(t, err, errShape)
				return
			}
			require.NoError(t, err)
			require.ElementsMatch(t, row.want, got)
		})
	}
}

const secret = "s3cr3t-word"

func signature(body []byte, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// lines is a log that many write.
type lines struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

func handler() (*Handler, *lines) {
	l := &lines{}
	var senders []Sender
	for _, k := range []Kind{DockerHub, GHCR, Harbor, Gitea, Distribution} {
		senders = append(senders, Sender{Name: string(k), Kind: k, Secret: secret})
	}
	return New(senders, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))), l
}

func (h *Handler) waits() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.waiting)
}

func TestWhoIsLetIn(t *testing.T) {
	ghcrBody := string(sample(t, "ghcr"))
	for _, row := range []struct {
		name, method, path, body string
		header                   string // "Name: value"
		status                   int
	}{
		{"Docker Hub with the secret in the path", "POST", "/webhooks/docker-hub/" + secret, string(sample(t, "docker-hub")), "", 202},
		{"Docker Hub without", "POST", "/webhooks/docker-hub", string(sample(t, "docker-hub")), "", 401},
		{"Docker Hub with another", "POST", "/webhooks/docker-hub/wrong", string(sample(t, "docker-hub")), "", 401},
		{"Docker Hub with a part of it", "POST", "/webhooks/docker-hub/" + secret[:5], string(sample(t, "docker-hub")), "", 401},
		{"GitHub with a signature", "POST", "/webhooks/ghcr", ghcrBody, "X-Hub-Signature-256: sha256=" + signature([]byte(ghcrBody), secret), 202},
		{"GitHub with another's", "POST", "/webhooks/ghcr", ghcrBody, "X-Hub-Signature-256: sha256=" + signature([]byte(ghcrBody), "wrong"), 401},
		{"GitHub with that of another body", "POST", "/webhooks/ghcr", ghcrBody + " ", "X-Hub-Signature-256: sha256=" + signature([]byte(ghcrBody), secret), 401},
		{"GitHub without", "POST", "/webhooks/ghcr", ghcrBody, "", 401},
		{"GitHub with a signature of nothing", "POST", "/webhooks/ghcr", ghcrBody, "X-Hub-Signature-256: sha256=", 401},
		{"GitHub with the secret in the path", "POST", "/webhooks/ghcr/" + secret, ghcrBody, "", 401},
		{"GitHub with the secret in a header", "POST", "/webhooks/ghcr", ghcrBody, "Authorization: " + secret, 401},
		{"Gitea with a signature", "POST", "/webhooks/gitea", string(sample(t, "gitea")), "X-Gitea-Signature: " + signature(sample(t, "gitea"), secret), 202},
		{"Harbor with the token in the header", "POST", "/webhooks/harbor", string(sample(t, "harbor")), "Authorization: " + secret, 202},
		{"Harbor without", "POST", "/webhooks/harbor", string(sample(t, "harbor")), "", 401},
		{"Harbor with the token in the path", "POST", "/webhooks/harbor/" + secret, string(sample(t, "harbor")), "", 401},
		{"distribution with a bearer token", "POST", "/webhooks/distribution", string(sample(t, "distribution")), "Authorization: Bearer " + secret, 202},
		{"distribution with another", "POST", "/webhooks/distribution", string(sample(t, "distribution")), "Authorization: Bearer wrong", 401},
		{"nobody known", "POST", "/webhooks/other/" + secret, "{}", "", 404},
		{"a path around it", "POST", "/webhooks/../webhooks/docker-hub/" + secret, "{}", "", 404},
		{"the root", "POST", "/", "{}", "", 404},
		{"a question", "GET", "/webhooks/docker-hub/" + secret, "", "", 405},
		{"what is none of its kind's", "POST", "/webhooks/docker-hub/" + secret, "{}", "", 400},
		{"too long a body", "POST", "/webhooks/docker-hub/" + secret, strings.Repeat(" ", maxBody+1), "", 413},
		{"just as long as it may be", "POST", "/webhooks/docker-hub/" + secret, string(sample(t, "docker-hub")) + strings.Repeat(" ", maxBody-len(sample(t, "docker-hub"))), "", 202},
	} {
		t.Run(row.name, func(t *testing.T) {
			h, log := handler()
			r := httptest.NewRequest(row.method, row.path, strings.NewReader(row.body))
			if name, value, ok := strings.Cut(row.header, ": "); ok {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, row.status, w.Code, w.Body)
			want := 0
			if row.status == http.StatusAccepted {
				want = 1
			}
			require.Equal(t, want, h.waits())
			require.NotContains(t, log.String(), secret)
			require.NotContains(t, log.String(), "/webhooks/")
			require.NotContains(t, w.Body.String(), secret)
		})
	}
}

func post(h *Handler, from, path, body string) int {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.RemoteAddr = from
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

func TestASenderIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := handler()
		body := string(sample(t, "docker-hub"))
		statuses := map[int]int{}
		for i := range 100 {
			statuses[post(h, fmt.Sprintf("192.0.2.%d:1", i), "/webhooks/docker-hub/"+secret, body)]++
		}
		require.Equal(t, map[int]int{202: burst, 429: 100 - burst}, statuses)
		r := httptest.NewRequest(http.MethodPost, "/webhooks/harbor", bytes.NewReader(sample(t, "harbor")))
		r.Header.Set("Authorization", secret)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, 202, w.Code, "another sender is not")
	})
}

func TestAThousandWrongSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, log := handler()
		statuses := map[int]int{}
		for i := range 1000 {
			statuses[post(h, "192.0.2.1:1", fmt.Sprintf("/webhooks/docker-hub/wrong%d", i), "{}")]++
		}
		require.Equal(t, map[int]int{401: wrongPerMinute, 429: 1000 - wrongPerMinute}, statuses)
		require.Equal(t, 429, post(h, "192.0.2.1:2", "/webhooks/docker-hub/"+secret, string(sample(t, "docker-hub"))), "it has to wait, whatever it says")
		require.Equal(t, 202, post(h, "192.0.2.2:1", "/webhooks/docker-hub/"+secret, string(sample(t, "docker-hub"))), "others need not")
		require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), "nor is the log filled")
		for i := range 5000 {
			post(h, fmt.Sprintf("[2001:db8:%x::1]:1", i), "/webhooks/docker-hub/wrong", "{}")
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		require.LessOrEqual(t, len(h.wrong), addressesKept)
	})
}

func TestSlowBodiesAreBounded(t *testing.T) {
	h, _ := handler()
	var all sync.WaitGroup
	begun := make(chan struct{}, atOnce)
	release := make(chan struct{})
	for range atOnce {
		all.Go(func() {
			r := httptest.NewRequest(http.MethodPost, "/webhooks/docker-hub/"+secret, &slow{begun: begun, release: release})
			h.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	for range atOnce {
		<-begun
	}
	require.Equal(t, 503, post(h, "192.0.2.1:1", "/webhooks/docker-hub/"+secret, "{}"))
	close(release)
	all.Wait()
	require.Equal(t, 400, post(h, "192.0.2.1:1", "/webhooks/docker-hub/"+secret, "{}"))
}

type slow struct {
	begun, release chan struct{}
	once           sync.Once
}

func (s *slow) Read([]byte) (int, error) {
	s.once.Do(func() { s.begun <- struct{}{} })
	<-s.release
	return 0, io.EOF
}

func TestWhatIsHeardTogetherIsLookedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := handler()
		ctx, cancel := context.WithCancel(t.Context())
		looks := make(chan []string, 10)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			h.Run(ctx, func(_ context.Context, references []string) { looks <- references })
		}()
		h.hear([]string{"ghcr.io/acme/web:1"})
		h.hear([]string{"ghcr.io/acme/web:2", "ghcr.io/acme/web:1"})
		require.Equal(t, []string{"ghcr.io/acme/web:1", "ghcr.io/acme/web:2"}, <-looks)
		synctest.Wait()
		require.Empty(t, looks)
		for i := range 2 * mostWaiting {
			h.hear([]string{fmt.Sprintf("ghcr.io/acme/web:%d", i)})
		}
		require.Len(t, <-looks, mostWaiting)
		cancel()
		<-ended
	})
}

// fuzz holds a parser to giving nothing but references, and not too many.
func fuzz(f *testing.F, parse parser, samples ...string) {
	for _, name := range samples {
		f.Add(sample(f, name), "")
		f.Add(sample(f, name), "registry.example.com:5000")
	}
	f.Fuzz(func(t *testing.T, body []byte, host string) {
		got, err := parse(body, host)
		if err != nil {
			require.Empty(t, got)
			return
		}
		require.LessOrEqual(t, len(got), mostReferences)
		for _, r := range got {
			named, err := reference.ParseNormalizedNamed(r)
			require.NoError(t, err)
			_, tagged := named.(reference.Tagged)
			require.True(t, tagged)
		}
	})
}

func FuzzDockerHub(f *testing.F)    { fuzz(f, dockerHub, "docker-hub") }
func FuzzGHCR(f *testing.F)         { fuzz(f, ghcr, "ghcr", "ghcr-registry-package", "ghcr-ping") }
func FuzzHarbor(f *testing.F)       { fuzz(f, harbor, "harbor", "harbor-cloudevents") }
func FuzzGitea(f *testing.F)        { fuzz(f, gitea, "gitea") }
func FuzzDistribution(f *testing.F) { fuzz(f, distribution, "distribution") }

package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

func secret(name, user string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"reg.example.com":{"username":"` + user + `","password":"s3cret"}}}`)}}
}

// pulls is a Deployment that pulls by these Secrets.
func pulls(name string, secrets ...string) *appsv1.Deployment {
	d := deployment(name, 1, "app=reg.example.com/web:1")
	for _, s := range secrets {
		d.Spec.Template.Spec.ImagePullSecrets = append(d.Spec.Template.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
	}
	return d
}

// users are who the logins are of, by what they hold.
func users(t *testing.T, all []updater.Login) (names []string) {
	t.Helper()
	for _, l := range all {
		var file struct {
			Auths map[string]struct{ Username string }
		}
		require.NoError(t, json.Unmarshal(l.Config, &file))
		names = append(names, file.Auths["reg.example.com"].Username)
	}
	return names
}

func loginsOf(t *testing.T, c *Cluster, name string) updater.Logins {
	t.Helper()
	all, err := c.Workloads(t.Context())
	require.NoError(t, err)
	for _, w := range all {
		if w.Name == name {
			return w.Logins
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

// gets counts the requests for single objects of a resource.
func (s *server) gets(resource string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if strings.HasPrefix(r, "GET ") && strings.Contains(r, "/"+resource+"/") {
			n++
		}
	}
	return n
}

func TestWhatAWorkloadPullsBy(t *testing.T) {
	old := secret("old", "ann")
	old.Type = corev1.SecretTypeDockercfg
	old.Data = map[string][]byte{corev1.DockerConfigKey: []byte(`{"reg.example.com":{"username":"ann","password":"s3cret"}}`)}
	other := secret("other", "ann")
	other.Type = corev1.SecretTypeOpaque
	account := func(names ...string) *corev1.ServiceAccount {
		a := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "default"}}
		for _, n := range names {
			a.ImagePullSecrets = append(a.ImagePullSecrets, corev1.LocalObjectReference{Name: n})
		}
		return a
	}
	tests := []struct {
		name    string
		secrets []*corev1.Secret
		account *corev1.ServiceAccount
		names   []string // in the template
		pod     []string // in its pod, as admission has put them there
		idle    bool     // it has no pods
		denied  string
		again   bool
		want    []string
		why     string
		asked   int // Secrets and ServiceAccounts
	}{
		{name: "nothing is brought and nothing asked where no Secret is named"},
		{name: "a Secret of the template", secrets: []*corev1.Secret{secret("regcred", "ann")}, names: []string{"regcred"}, want: []string{"ann"}, asked: 1},
		{name: "a Secret in the form of old", secrets: []*corev1.Secret{old}, names: []string{"old"}, want: []string{"ann"}, asked: 1},
		{name: "several, in their order", secrets: []*corev1.Secret{secret("a", "ann"), secret("b", "bob")}, names: []string{"b", "a"}, want: []string{"bob", "ann"}, asked: 2},
		{name: "one that is not there leaves the others", secrets: []*corev1.Secret{secret("a", "ann")}, names: []string{"gone", "a"}, want: []string{"ann"}, why: "there is no Secret shop/gone", asked: 2},
		{name: "a Secret of another type", secrets: []*corev1.Secret{other}, names: []string{"other"}, why: "Secret shop/other is of the type Opaque", asked: 1},
		{name: "a Secret that may not be read", secrets: []*corev1.Secret{secret("regcred", "ann")}, names: []string{"regcred"}, denied: "get secrets", why: "overlay secrets", asked: 1},
		{name: "those of the ServiceAccount, as its pods have them", secrets: []*corev1.Secret{secret("regcred", "ann")}, pod: []string{"regcred"}, want: []string{"ann"}, asked: 1},
		{name: "without pods the ServiceAccount is not asked for a public image", account: account("regcred"), idle: true},
		{name: "without pods the ServiceAccount is asked when a registry wants credentials", secrets: []*corev1.Secret{secret("regcred", "ann")}, account: account("regcred"),
			idle: true, again: true, want: []string{"ann"}, asked: 2},
		{name: "what the ServiceAccount got after its pods is asked for when a registry wants credentials", secrets: []*corev1.Secret{secret("new", "bob"), secret("regcred", "ann")},
			account: account("new"), pod: []string{"regcred"}, again: true, want: []string{"ann", "bob"}, asked: 3},
		{name: "the ServiceAccount means nothing where the template names its own", secrets: []*corev1.Secret{secret("a", "ann"), secret("b", "bob")}, account: account("b"),
			names: []string{"a"}, again: true, want: []string{"ann"}, asked: 1},
		{name: "a ServiceAccount that may not be read brings nothing", account: account("regcred"), idle: true, again: true, denied: "get serviceaccounts", asked: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(t)
			for _, one := range tt.secrets {
				s.put("secrets", one)
			}
			if tt.account != nil {
				s.put("serviceaccounts", tt.account)
			}
			d := pulls("web", tt.names...)
			if tt.idle {
				d.Spec.Replicas = new(int32)
			}
			s.podPulls = tt.pod
			s.put("deployments", d)
			s.denied[tt.denied] = true
			c := s.cluster(t)
			l := loginsOf(t, c, "web")
			got, why := l.Read(t.Context(), false)
			if tt.again {
				got, why = l.Read(t.Context(), true)
			}
			require.Equal(t, tt.want, users(t, got))
			if tt.why == "" {
				require.Empty(t, why)
			}
			require.Contains(t, why, tt.why)
			require.NotContains(t, why, "s3cret")
			for range 3 { // and in the next passes
				again, _ := loginsOf(t, c, "web").Read(t.Context(), false)
				require.Equal(t, tt.want, users(t, again))
			}
			require.Equal(t, tt.asked, s.gets("secrets")+s.gets("serviceaccounts"), s.requests)
		})
	}
}

func TestHowOftenASecretIsRead(t *testing.T) {
	read := func(user, why string, err error) func() (string, string, error) {
		return func() (string, string, error) { return user, why, err }
	}
	same := func(a, b string) bool { return a == b }
	synctest.Test(t, func(t *testing.T) {
		var k kept[string]
		reads := 0
		get := func(again bool, user, why string, err error) string {
			v, _ := k.get(true, again, same, func() (string, string, error) { reads++; return read(user, why, err)() })
			return v
		}
		for range 100 {
			get(false, "ann", "", nil)
			time.Sleep(30 * time.Second)
		}
		require.Equal(t, 1, reads, "for an hour it is believed")
		time.Sleep(time.Hour)
		get(false, "ann", "", nil)
		require.Equal(t, 2, reads, "and then read again")

		time.Sleep(time.Minute)
		require.Equal(t, "bob", get(true, "bob", "", nil), "one that was not taken is read again")
		require.Equal(t, "bob", get(true, "x", "", nil), "and not again at once")

		reads = 0
		for range 24 * 60 {
			time.Sleep(time.Minute)
			get(true, "bob", "", nil)
		}
		require.Less(t, reads, 40, "one that is never taken is read ever more rarely")
	})
	synctest.Test(t, func(t *testing.T) {
		var k kept[string]
		reads := 0
		get := func(again bool) {
			k.get(true, again, same, func() (string, string, error) { reads++; return "", "it may not be read", nil })
		}
		for range 24 * 60 {
			get(false)
			time.Sleep(time.Minute)
		}
		require.Equal(t, 1, reads, "what may not be read, and nobody needs, is asked for once")
		for range 24 * 60 {
			get(true)
			time.Sleep(time.Minute)
		}
		require.Less(t, reads, 40, "what is needed is asked for ever more rarely")
	})
	synctest.Test(t, func(t *testing.T) {
		var k kept[string]
		fails := func() (string, string, error) { return "", "", errors.New("connection refused") }
		v, why := k.get(true, false, same, fails)
		require.Empty(t, v)
		require.Equal(t, "connection refused", why)
		time.Sleep(failedEvery)
		v, why = k.get(true, false, same, read("ann", "", nil))
		require.Equal(t, "ann", v, "who could not be asked is asked again soon")
		require.Empty(t, why)
		time.Sleep(believed)
		v, why = k.get(true, false, same, fails)
		require.Equal(t, "ann", v, "and what is known is made use of meanwhile")
		require.Equal(t, "connection refused", why)
	})
}

func TestAMissingRightToASecretIsSaidOnce(t *testing.T) {
	s := newServer(t)
	s.put("secrets", secret("regcred", "ann"))
	s.put("deployments", pulls("web", "regcred"))
	s.denied["get secrets"] = true
	c := s.cluster(t)
	var log bytes.Buffer
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	for range 3 {
		loginsOf(t, c, "web").Read(t.Context(), true)
	}
	require.Equal(t, 1, strings.Count(log.String(), "get secrets regcred in namespace shop"), log.String())
	require.Contains(t, log.String(), "overlay=secrets")
}

func TestTheRightToSomeSecretsIsEnough(t *testing.T) {
	s := newServer(t)
	s.denied["get secrets"], s.denied["get serviceaccounts"] = true, true
	s.named = []string{"secrets"}
	missing, err := s.cluster(t).Client().Missing(t.Context(), Rights([]string{"shop"}, "updaterd"))
	require.NoError(t, err)
	require.Len(t, missing, 1)
	require.Equal(t, "get serviceaccounts in namespace shop", missing[0].String())
	require.Equal(t, "secrets", missing[0].Overlay)
}

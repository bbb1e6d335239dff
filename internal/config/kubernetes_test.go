package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

const kubeconfig = `
apiVersion: v1
kind: Config
current-context: prod
contexts:
  - {name: prod, context: {cluster: a, user: u}}
  - {name: test, context: {cluster: a, user: u}}
clusters: [{name: a, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: u, user: {token: hunter2}}]
`

// clusters reads a file beside which a kubeconfig called kc lies.
func clusters(t *testing.T, text string, environ ...string) (*Config, string, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kc"), []byte(kubeconfig), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bad"), []byte("users: [{token: hunter2"), 0o600))
	file := filepath.Join(dir, "updaterd.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c, err := Load(file, environ)
	return c, dir, err
}

func TestClustersAreReadWhole(t *testing.T) {
	c, dir, err := clusters(t, `
kubernetes:
  - name: prod
    kubeconfig: kc
    context: prod
    namespaces: [shop, web]
    selector: "team=web"
    state-namespace: updaterd
  - name: here
    namespaces: ["*"]
docker: [{name: host, endpoint: "unix:///run/docker.sock"}]
`)
	require.NoError(t, err)
	require.Equal(t, []Kubernetes{
		{Name: "prod", Kubeconfig: filepath.Join(dir, "kc"), Context: "prod", Namespaces: []string{"shop", "web"}, Selector: "team=web", StateNamespace: "updaterd"},
		{Name: "here", Namespaces: []string{"*"}},
	}, c.Kubernetes)
	require.Equal(t, []Docker{{Name: "host", Endpoint: "unix:///run/docker.sock"}}, c.Docker)
	require.Equal(t, filepath.Join(dir, "updaterd.yaml")+":6", shown(t, c.Show(), "kubernetes[0].namespaces").Source)
}

func TestOnlyWhatIsListedIsWatched(t *testing.T) {
	const cluster = "kubernetes: [{name: prod, namespaces: [shop]}]\n"
	const host = "docker: [{name: host}]\n"
	for name, tt := range map[string]struct {
		file            string
		hosts, clusters int
	}{
		"neither is listed": {"{}", 1, 0},
		"a cluster is":      {cluster, 0, 1},
		"a host is":         {host, 1, 0},
		"both are":          {cluster + host, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := clusters(t, tt.file, "DOCKER_HOST=tcp://engine:2375")
			require.NoError(t, err)
			require.Len(t, c.Docker, tt.hosts)
			require.Len(t, c.Kubernetes, tt.clusters)
		})
	}
}

func TestFaultsOfClusters(t *testing.T) {
	for name, tt := range map[string]struct{ entry, want string }{
		"nothing is said": {"{}", `:1: kubernetes[0]: has no name; write one, such as name: prod
FILE:1: kubernetes[0]: has no namespaces; list those to watch, or write ["*"] for all of them`},
		"a pattern": {"{name: a, namespaces: [shop, 'web-*']}",
			`:1: kubernetes[0].namespaces: "web-*" is a pattern, which the API server does not know; list the namespaces, or write ["*"] for all of them`},
		"all and one more": {"{name: a, namespaces: ['*', shop]}",
			`:1: kubernetes[0].namespaces: has "*", which is all of them, beside others; write ["*"] alone, or leave it out`},
		"none": {"{name: a, namespaces: []}",
			`:1: kubernetes[0].namespaces: names no namespace, so nothing would be watched; list some, or write ["*"] for all of them`},
		"one twice": {"{name: a, namespaces: [shop, shop]}", `:1: kubernetes[0].namespaces: has "shop" twice; keep one`},
		"no name of a namespace": {"{name: a, namespaces: [Shop]}",
			`:1: kubernetes[0].namespaces: "Shop" is no namespace; write lower case letters, digits and dashes, 63 at most`},
		"of the state": {"{name: a, namespaces: [shop], state-namespace: a.b}",
			`:1: kubernetes[0].state-namespace: "a.b" is no namespace; write lower case letters, digits and dashes, 63 at most`},
		"no selector": {"{name: a, namespaces: [shop], selector: 'team in web'}",
			`:1: kubernetes[0].selector: "team in web" is no label selector: unable to parse requirement: found 'web' expected: '('; write a selector such as "team=web,tier in (front,back)"`},
		"no kubeconfig": {"{name: a, namespaces: [shop], kubeconfig: nowhere}",
			`:1: kubernetes[0].kubeconfig: DIR/nowhere cannot be read: no such file or directory; mend the path or the permissions`},
		"a broken kubeconfig, whose secret is kept": {"{name: a, namespaces: [shop], kubeconfig: bad}",
			`:1: kubernetes[0].kubeconfig: DIR/bad is no kubeconfig; name a file that kubectl --kubeconfig takes`},
		"no such context": {"{name: a, namespaces: [shop], kubeconfig: kc, context: tets}",
			`:1: kubernetes[0].context: DIR/kc has no context "tets"; did you mean test?`},
		"a context of nothing": {"{name: a, namespaces: [shop], context: prod}",
			`:1: kubernetes[0].context: is one of a kubeconfig, and none is named; name it with kubeconfig, or remove the key for the cluster that updaterd runs in`},
		"an unknown key": {"{name: a, namespaces: [shop], namespace: shop}",
			`:1: kubernetes[0].namespace: is not a key; did you mean namespaces?`},
	} {
		t.Run(name, func(t *testing.T) {
			_, dir, err := clusters(t, "kubernetes: ["+tt.entry+"]")
			require.Error(t, err)
			file := filepath.Join(dir, "updaterd.yaml")
			want := file + strings.NewReplacer("FILE", file, "DIR", dir).Replace(tt.want)
			require.Equal(t, want, err.Error())
		})
	}
}

func TestNamesOfBackendsDiffer(t *testing.T) {
	_, dir, err := clusters(t, "docker:\n  - name: prod\nkubernetes:\n  - name: prod\n    namespaces: [shop]\n")
	file := filepath.Join(dir, "updaterd.yaml")
	require.EqualError(t, err, file+`:4: kubernetes[0].name: "prod" is listed before (`+file+`:2); keep one`)
}

func TestAVariableIsNoCluster(t *testing.T) {
	_, _, err := clusters(t, "{}", "UPDATERD_KUBERNETES=prod")
	require.EqualError(t, err, "environment: UPDATERD_KUBERNETES: would be part of a list, and lists come from the file only; write it there")
}

// TestSettingsOfAnotherKindOfBackend are never ignored.
func TestSettingsOfAnotherKindOfBackend(t *testing.T) {
	const only = "can be honoured %s only; take it away, or write it in a rule that fits nothing else"
	cluster := updater.Workload{ID: "prod/shop/deployment/web/app", Backend: "prod", Namespace: "shop", Kind: "deployment", Name: "web"}
	host := updater.Workload{ID: "local/web", Backend: "local", Name: "web"}
	for name, tt := range map[string]struct {
		file    string
		on      updater.Workload
		written map[string]string
		want    string // part of the error; "": it is fine
	}{
		"defaults as they are, in a cluster":      {"{}", cluster, nil, ""},
		"defaults as they are, on a host":         {"{}", host, nil, ""},
		"adopt in a cluster":                      {"{}", cluster, map[string]string{"adopt": "true", "init-containers": "true", "cronjob-gate": "next-run"}, ""},
		"adopt on a host":                         {"{}", host, map[string]string{"adopt": "true"}, "label updaterd.adopt: " + strings.Replace(only, "%s", "in clusters", 1)},
		"start-first in a cluster":                {"{}", cluster, map[string]string{"start-first": "true"}, "annotation updaterd.dev/start-first: " + strings.Replace(only, "%s", "on Docker hosts", 1)},
		"what holds anyway may be written":        {"{}", cluster, map[string]string{"keep": "1", "depends-on": "", "stop-timeout": "auto"}, ""},
		"a default for hosts reaches clusters":    {"defaults: {keep: 3}", cluster, nil, ":1: defaults.keep: can be honoured on Docker hosts only"},
		"unless a rule takes it away":             {"defaults: {keep: 3}\nrules: [{match: {backend: prod}, keep: 1}]", cluster, nil, ""},
		"a rule for hosts does not":               {"rules: [{match: {backend: local}, health.probe: 'tcp://:80'}]", cluster, nil, ""},
		"a default for clusters reaches hosts":    {"defaults: {cronjob-gate: next-run}", host, nil, ":1: defaults.cronjob-gate: can be honoured in clusters only"},
		"an annotation names the image of a test": {"{}", cluster, map[string]string{"health.test.image": "smoke:1"}, "annotation updaterd.dev/health.test.image: names an image to run"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := clusters(t, tt.file)
			require.NoError(t, err)
			tt.on.Written = tt.written
			_, err = c.Settings(tt.on)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.want)
		})
	}
}

package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"
)

// AllNamespaces as the one entry of Kubernetes.Namespaces stands for all of them.
const AllNamespaces = "*"

// Kubernetes is one cluster.
type Kubernetes struct {
	// Name is the first segment of the ids of its workloads.
	Name string
	// Kubeconfig is the path of the file that says how the API server is reached
	// and as whom; "" is the service account of the pod that updaterd runs in.
	Kubeconfig string
	// Context is the one of Kubeconfig; "" is its current one.
	Context string
	// Namespaces are those whose workloads are looked at. Never empty.
	Namespaces []string
	// Selector is a label selector that workloads must fit to be fetched; "" is all.
	Selector string
	// StateNamespace is where the Lease and the journal are; "" is updaterd's own.
	StateNamespace string
}

// kubernetesKeys are the keys of an entry of kubernetes.
func kubernetesKeys() []key[Kubernetes] {
	return []key[Kubernetes]{
		without("name", readName, func(k *Kubernetes) *string { return &k.Name }),
		without("kubeconfig", readPath, func(k *Kubernetes) *string { return &k.Kubeconfig }),
		without("context", readText, func(k *Kubernetes) *string { return &k.Context }),
		without("namespaces", readNamespaces, func(k *Kubernetes) *[]string { return &k.Namespaces }),
		without("selector", readSelector, func(k *Kubernetes) *string { return &k.Selector }),
		without("state-namespace", readNamespace, func(k *Kubernetes) *string { return &k.StateNamespace }),
	}
}

// readKubernetes reads the clusters. before are the names of backends that are
// taken.
func (c *Config) readKubernetes(d *document, f field, before map[string]string) {
	keys := kubernetesKeys()
	entries(d, f, "kubernetes", "clusters", namesOf(keys), func(at string, line int, fields map[string]field) {
		values := decode(d, fields, at, keys)
		if _, named := fields["name"]; !named {
			d.problem(line, at, "has no name; write one, such as name: prod")
		}
		if _, listed := fields["namespaces"]; !listed {
			d.problem(line, at, `has no namespaces; list those to watch, or write ["*"] for all of them`)
		}
		var k Kubernetes
		put(&k, keys, values)
		k.Kubeconfig = d.beside(k.Kubeconfig)
		context, chosen := values["context"]
		switch _, own := fields["kubeconfig"]; {
		case k.Kubeconfig != "":
			d.checkKubeconfig(values["kubeconfig"].from, context.from, k)
		case chosen && !own:
			d.problems = append(d.problems, context.from.problem(errors.New("is one of a kubeconfig, and none is named; name it with kubeconfig, or remove the key for the cluster that updaterd runs in")))
		}
		distinct(d, values["name"], before)
		for _, key := range keys {
			if w, ok := values[key.name]; ok {
				c.show(join(at, key.name), w, key.secret)
			}
		}
		c.Kubernetes = append(c.Kubernetes, k)
	})
	if f.value.Kind == yaml.SequenceNode && len(f.value.Content) == 0 {
		d.problem(f.key.Line, "kubernetes", "lists nothing; list a cluster, or remove the key")
	}
}

// checkKubeconfig reads what a connection will need, so that a bad path or context
// shows when the file is checked and not at night.
func (d *document) checkKubeconfig(from, contextFrom place, k Kubernetes) {
	data, err := readNamed(k.Kubeconfig)
	if err != nil {
		d.problems = append(d.problems, from.problem(unreadable(k.Kubeconfig, err)))
		return
	}
	kubeconfig, err := clientcmd.Load(data)
	if err != nil {
		// The library's error may quote what it read, and that may be a secret.
		d.problems = append(d.problems, from.problem(fmt.Errorf("%s is no kubeconfig; name a file that kubectl --kubeconfig takes", k.Kubeconfig)))
		return
	}
	name := k.Context
	if name == "" {
		name, contextFrom = kubeconfig.CurrentContext, from
	}
	switch _, ok := kubeconfig.Contexts[name]; {
	case name == "":
		d.problems = append(d.problems, from.problem(fmt.Errorf("%s has no current context; name one with context", k.Kubeconfig)))
	case !ok:
		var known []string
		for n := range kubeconfig.Contexts {
			known = append(known, n)
		}
		slices.Sort(known)
		d.problems = append(d.problems, contextFrom.problem(fmt.Errorf("%s has no context %q%s", k.Kubeconfig, name, meant(name, known))))
	}
}

// readNamespace takes the name of a namespace.
func readNamespace(r raw) (string, error) {
	s, err := r.scalar("the name of a namespace", "!!str")
	if err != nil {
		return "", err
	}
	return s, namespace(s)
}

func namespace(s string) error {
	if len(validation.IsDNS1123Label(s)) > 0 {
		return fmt.Errorf("%q is no namespace; write lower case letters, digits and dashes, 63 at most", s)
	}
	return nil
}

// readNamespaces takes a list of namespaces, or the one word that stands for all.
func readNamespaces(r raw) ([]string, error) {
	all, err := readList(r)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, errors.New(`names no namespace, so nothing would be watched; list some, or write ["*"] for all of them`)
	}
	for i, s := range all {
		if s == AllNamespaces {
			if len(all) > 1 {
				return nil, errors.New(`has "*", which is all of them, beside others; write ["*"] alone, or leave it out`)
			}
			continue
		}
		if strings.ContainsAny(s, "*?") {
			return nil, fmt.Errorf(`%q is a pattern, which the API server does not know; list the namespaces, or write ["*"] for all of them`, s)
		}
		if err := namespace(s); err != nil {
			return nil, err
		}
		if slices.Contains(all[:i], s) {
			return nil, fmt.Errorf("has %q twice; keep one", s)
		}
	}
	return all, nil
}

// readSelector takes a label selector as kubectl -l does.
func readSelector(r raw) (string, error) {
	const want = `a selector such as "team=web,tier in (front,back)"`
	s, err := r.scalar(want, "!!str")
	if err != nil {
		return "", err
	}
	if _, err := labels.Parse(s); err != nil {
		return "", fmt.Errorf("%q is no label selector: %s; write %s", s, strings.Join(strings.Fields(err.Error()), " "), want)
	}
	return s, nil
}

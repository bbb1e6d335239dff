package kube

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// namespaceFile tells a pod its own namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Connection is how an API server is reached, and as whom.
type Connection struct {
	REST *rest.Config
	// Namespace is updaterd's own there: that of its pod, or of the context.
	Namespace string
}

// Connect reads how the API server is reached: from a kubeconfig and one of its
// contexts ("" is the current one), or, where none is named, from the service
// account of the pod that this process runs in. It makes no request.
func Connect(kubeconfig, context string) (Connection, error) {
	if kubeconfig == "" {
		return inCluster()
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}, &clientcmd.ConfigOverrides{CurrentContext: context})
	config, err := loader.ClientConfig()
	if err != nil {
		return Connection{}, fmt.Errorf("reading %s: %w", kubeconfig, err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return Connection{}, fmt.Errorf("reading %s: %w", kubeconfig, err)
	}
	return Connection{quiet(config), namespace}, nil
}

func inCluster() (Connection, error) {
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return Connection{}, errors.New("no kubeconfig is named and this is no pod of a cluster: name one with kubeconfig")
	}
	if err != nil {
		return Connection{}, fmt.Errorf("reading the service account of this pod: %w", err)
	}
	namespace, err := os.ReadFile(namespaceFile)
	if err != nil {
		return Connection{}, fmt.Errorf("reading the namespace of this pod: %w; name one with state-namespace", err)
	}
	return Connection{quiet(config), strings.TrimSpace(string(namespace))}, nil
}

// quiet keeps the API server's warnings (of deprecated fields in what others wrote)
// out of our log.
func quiet(config *rest.Config) *rest.Config {
	config.WarningHandler = rest.NoWarnings{}
	return config
}

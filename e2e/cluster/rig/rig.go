// Package rig is what the tests of the built program play on in a cluster: a real
// control plane with played nodes, namespaces of their own, registries and images
// of e2e/stage, a way to the API server on which calls can be seen and spoilt, and
// the real updaterd.
//
// Functions that take a TB fail it rather than return errors, and clean up after
// themselves when it ends. A package that uses any of this calls Main from its
// TestMain.
package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/kubernetes"

	"github.com/updaterd/updaterd/e2e/cluster/control"
	"github.com/updaterd/updaterd/e2e/cluster/node"
	"github.com/updaterd/updaterd/e2e/stage"
)

// Cluster is a control plane with the usual nodes.
type Cluster struct {
	*control.Plane
	Nodes  *node.Fleet
	Client kubernetes.Interface
}

// shared is the cluster of the tests that need none of their own. It is a variable
// because tests have no other common parent than the process.
var shared struct {
	mu      sync.Mutex
	cluster *Cluster
	err     error
}

// Main runs the tests and removes what they shared. Call it from TestMain.
func Main(m *testing.M) int { return With(m.Run) }

// With calls run, and removes afterwards what was shared. It returns what run
// does, or 1 when something could not be removed.
func With(run func() int) (code int) {
	defer func() {
		if shared.cluster == nil {
			return
		}
		if err := shared.cluster.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "clean up:", err)
			code = max(code, 1)
		}
	}()
	return stage.With(run)
}

// Shared is the cluster that all tests of the process may use side by side, each
// in namespaces of its own.
func Shared(t stage.TB) *Cluster {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.cluster == nil && shared.err == nil {
		shared.cluster, shared.err = start(context.WithoutCancel(t.Context()))
	}
	require.NoError(t, shared.err)
	return shared.cluster
}

// Own is a cluster for this test alone, which may break it, with these nodes besides
// the usual ones.
func Own(t stage.TB, more ...node.Spec) *Cluster {
	t.Helper()
	c, err := start(t.Context(), more...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the API server said at last:\n%s", c.LogTail("kube-apiserver", 10))
		}
		if err := c.stop(); err != nil {
			t.Errorf("end the cluster: %v", err)
		}
	})
	return c
}

func start(ctx context.Context, more ...node.Spec) (*Cluster, error) {
	source, err := control.Sources(ctx)
	if err != nil {
		return nil, err
	}
	programs, err := control.Get(ctx, source, os.Stderr)
	if err != nil {
		return nil, err
	}
	plane, err := control.Start(ctx, programs)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Plane: plane}
	if c.Client, err = kubernetes.NewForConfig(plane.Config()); err == nil {
		c.Nodes, err = node.Start(ctx, plane.Config(), append(node.Usual(), more...)...)
	}
	if err != nil {
		return nil, errors.Join(err, plane.Stop())
	}
	return c, nil
}

func (c *Cluster) stop() error {
	c.Nodes.Stop()
	return c.Stop()
}

// Kubectl runs kubectl as a person in charge would, and returns what it printed.
func (c *Cluster) Kubectl(t stage.TB, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), c.Programs.Kubectl(), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "KUBECACHEDIR="+filepath.Join(c.Dir, "kubectl"))
	cmd.Stdin = strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	require.NoError(t, err, "kubectl %s: %s", strings.Join(args, " "), b)
	return string(b)
}

package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/stage"
)

// Through is a way to the API server, through a Proxy, for the admin or for
// somebody who may do less.
type Through struct {
	*Proxy
	// Kubeconfig is the path of the file that leads there.
	Kubeconfig string

	space *Space
}

// Through makes a way for the admin.
func (s *Space) Through(hooks Hooks) *Through {
	s.t.Helper()
	return s.ThroughAs(s.AdminToken(), hooks)
}

// ThroughAs makes a way for the one with this token.
func (s *Space) ThroughAs(token string, hooks Hooks) *Through {
	s.t.Helper()
	p := s.NewProxy(s.t, hooks)
	return &Through{Proxy: p, Kubeconfig: s.kubeconfig(s.t, p.URL, token), space: s}
}

// Kubectl runs kubectl in the namespace, that way.
func (w *Through) Kubectl(t stage.TB, args ...string) string {
	t.Helper()
	out, err := w.TryKubectl(t, args...)
	require.NoError(t, err)
	return out
}

// TryKubectl is Kubectl where it may fail. The error says what it printed.
func (w *Through) TryKubectl(t stage.TB, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), w.space.Programs.Kubectl(), append([]string{"-n", w.space.Name}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig, "KUBECACHEDIR="+filepath.Join(w.space.Dir, "kubectl"))
	b, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, b)
	}
	return string(b), err
}

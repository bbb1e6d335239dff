package kube

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"
)

func TestNewSpeaksToNobody(t *testing.T) {
	c, err := New(Options{Name: "prod", REST: &rest.Config{Host: "http://127.0.0.1:1"}, Namespaces: []string{"*"}})
	require.NoError(t, err)
	require.Equal(t, "prod", c.Name())
	require.NoError(t, c.Close())
}

func TestNamespacesAreSaidExplicitly(t *testing.T) {
	_, err := New(Options{Name: "prod", REST: &rest.Config{Host: "http://127.0.0.1:1"}})
	require.ErrorContains(t, err, `cluster prod: no namespaces are named`)
}

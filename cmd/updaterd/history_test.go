package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestAnImageInATable(t *testing.T) {
	digest, other := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	for name, tt := range map[string]struct {
		image updater.Image
		want  string
	}{
		"a tag, and what it stood for": {updater.Image{Ref: "web:1", Digest: digest}, "web:1 sha256:aaaaaaaaaaaa"},
		"one that holds its digest":    {updater.Image{Ref: "web:1@" + digest, Digest: digest}, "web:1@sha256:aaaaaaaaaaaa"},
		"one that holds another":       {updater.Image{Ref: "web:1@" + other, Digest: digest}, "web:1@" + other + " sha256:aaaaaaaaaaaa"},
		"no digest":                    {updater.Image{Ref: "web:1"}, "web:1"},
		"no reference":                 {updater.Image{Digest: digest}, "sha256:aaaaaaaaaaaa"},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tt.want, describe(tt.image)) })
	}
}

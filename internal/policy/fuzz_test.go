package policy

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParse(f *testing.F) {
	for _, s := range []Spec{
		{Policy: "digest"}, {Policy: "semver:^1.4 || >=2.0.0-rc1 <3"}, {Policy: "semver:1.2 - 3", Include: `^v(\d+)$`, Extract: "${1}.$1$$"},
		{Policy: "semver:>=99999999999999999999"}, {Policy: "minor", Include: "(", Exclude: "[", Extract: "$"},
		{Policy: "semver:~1.2.3-alpine3.20+x, *"}, {Policy: "alphabetical", Include: "(?P<a>.)", Extract: "${a"},
	} {
		f.Add(s.Policy, s.Include, s.Exclude, s.Extract)
	}
	f.Fuzz(func(t *testing.T, policy, include, exclude, extract string) {
		rule, err := Parse(Spec{Policy: policy, Include: include, Exclude: exclude, Extract: extract})
		if err == nil {
			require.Equal(t, policy, rule.String())
			rule.Select("1.2.3-rc1-alpine", []string{"1.2.3-alpine", "1.2.4-rc2-alpine", "2.0.0", "latest"})
			return
		}
		for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
			var fault *FieldError
			require.True(t, errors.As(e, &fault))
			require.NotEmpty(t, fault.Problem)
		}
	})
}

func FuzzSelect(f *testing.F) {
	specs := []Spec{
		{Policy: "digest"}, {Policy: "patch"}, {Policy: "minor"}, {Policy: "major"}, {Policy: "newest"}, {Policy: "alphabetical"},
		{Policy: "semver:^1.4"}, {Policy: "semver:*"}, {Policy: "semver:>=1-0 <4 || ^7"}, {Policy: "semver:<2 || >=3.0.0-rc.1"},
		{Policy: "minor", Include: `^(?:v)?(\d+)[._-]?(.*)$`, Extract: "$1.$2"}, {Policy: "alphabetical", Include: `([a-z]+)$`, Extract: "$1"},
	}
	f.Add(uint8(2), false, "1.2.3-alpine", "1.2.4-alpine\n1.3.0\nlatest\n1.2.3-alpine")
	f.Add(uint8(4), true, "RELEASE.2024-10-01T00-00-00Z", "RELEASE.2024-10-02T00-00-00Z\n20241001")
	f.Add(uint8(6), false, "latest-alpine", "v1.5.0rc1-alpine3.20\n1.4-alpine\nv1.4-alpine")
	f.Add(uint8(8), true, "1.0-nightly.20240101.1a2b3c4", "1.0_beta-2\n1.0.dev3-r4\n1..0\n1.0--rc")
	f.Add(uint8(5), false, "jammy", "noble\nfocal-slim\n22.04")
	f.Add(uint8(4), false, "1234567", "a1b2c3d\n2345678\n20240101\n99999999999999999999999999")
	f.Fuzz(func(t *testing.T, which uint8, allow bool, current, list string) {
		spec := specs[int(which)%len(specs)]
		spec.AllowDowngrade = allow
		rule, err := Parse(spec)
		require.NoError(t, err)
		tags := strings.Split(list, "\n")
		got := rule.Select(current, tags)

		if got.Tag != "" && got.Tag != current {
			require.Contains(t, tags, got.Tag)
		}
		reversed := slices.Clone(tags)
		slices.Reverse(reversed)
		require.Equal(t, got, rule.Select(current, reversed))
		if got.Tag != "" {
			again := rule.Select(got.Tag, tags)
			require.Equal(t, got.Tag, again.Tag, again.Detail)
		}
		wanted := distinct(tags)
		listed := make([]string, 0, len(got.Tags))
		for _, row := range got.Tags {
			listed = append(listed, row.Tag)
			require.NotEmpty(t, row.Why)
		}
		slices.Sort(listed)
		require.Equal(t, len(wanted), len(listed))
		require.True(t, slices.Equal(wanted, listed))
	})
}

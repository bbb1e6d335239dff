package policy

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseNamesEveryFaultAndItsRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		spec Spec
		want map[string]string // key: part of the problem
	}{
		"no policy":                         {Spec{}, map[string]string{"policy": "write one of digest"}},
		"unknown policy":                    {Spec{Policy: "weekly"}, map[string]string{"policy": "no such policy"}},
		"wrong case":                        {Spec{Policy: "Minor"}, map[string]string{"policy": "no such policy"}},
		"semver without a range":            {Spec{Policy: "semver"}, map[string]string{"policy": `"semver:^1.4"`}},
		"semver with an empty range":        {Spec{Policy: "semver: "}, map[string]string{"policy": "needs a range"}},
		"a range that is none":              {Spec{Policy: "semver:banana"}, map[string]string{"policy": "not a range"}},
		"a range of four numbers":           {Spec{Policy: "semver:^1.2.3.4"}, map[string]string{"policy": "one to three numbers"}},
		"a range with a huge number":        {Spec{Policy: "semver:^99999999999999999999"}, map[string]string{"policy": "not a range"}},
		"a range that names a variant":      {Spec{Policy: "semver:^16-alpine"}, map[string]string{"policy": `"alpine" reads as a pre-release`}},
		"a range that names alpine's digit": {Spec{Policy: "semver:^16-alpine3.20"}, map[string]string{"policy": "leave it out"}},
		"an argument too many":              {Spec{Policy: "minor:^1"}, map[string]string{"policy": "takes no argument"}},
		"a broken include":                  {Spec{Policy: "minor", Include: "("}, map[string]string{"include": "missing closing"}},
		"a look-around":                     {Spec{Policy: "minor", Exclude: "(?!x)"}, map[string]string{"exclude": "no look-around"}},
		"extract without include":           {Spec{Policy: "minor", Extract: "$1"}, map[string]string{"extract": "set include"}},
		"extract of a missing number":       {Spec{Policy: "minor", Include: "(a)", Extract: "$2"}, map[string]string{"extract": `no group "2"; it has $1`}},
		"extract of a missing name":         {Spec{Policy: "minor", Include: "(?P<a>.)", Extract: "${b}"}, map[string]string{"extract": `$1 (${a})`}},
		"extract that swallows a letter":    {Spec{Policy: "minor", Include: "(a)", Extract: "$1x"}, map[string]string{"extract": `"${1}x"`}},
		"extract without groups":            {Spec{Policy: "minor", Include: "a", Extract: "$1"}, map[string]string{"extract": "put brackets"}},
		"extract that is constant":          {Spec{Policy: "minor", Include: "(a)", Extract: "1.0"}, map[string]string{"extract": "all tags would be equal"}},
		"extract with a stray dollar":       {Spec{Policy: "minor", Include: "(a)", Extract: "$1-$"}, map[string]string{"extract": `"$$"`}},
		"extract never closed":              {Spec{Policy: "minor", Include: "(a)", Extract: "${1"}, map[string]string{"extract": "never closed"}},
		"three at once":                     {Spec{Policy: "x", Include: "(", Exclude: "["}, map[string]string{"policy": "", "include": "", "exclude": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(c.spec)
			require.Error(t, err)
			got := map[string]string{}
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				var fault *FieldError
				require.True(t, errors.As(e, &fault))
				require.NotEmpty(t, fault.Problem)
				require.Contains(t, fault.Error(), fault.Key)
				got[fault.Key] = fault.Problem
			}
			require.Len(t, got, len(c.want))
			for key, part := range c.want {
				require.Contains(t, got[key], part)
			}
		})
	}
}

func TestParseTakes(t *testing.T) {
	for _, spec := range []Spec{
		{Policy: "digest"}, {Policy: "patch"}, {Policy: "minor"}, {Policy: "major"}, {Policy: "newest"}, {Policy: "alphabetical"},
		{Policy: "semver:^1.4"}, {Policy: "semver: ^1.4 "}, {Policy: "semver:>=1.4 <3"}, {Policy: "semver:1.x || >=2.5, <3"},
		{Policy: "semver:*"}, {Policy: "semver:>=22.04"}, {Policy: "semver:>=1.0-0"}, {Policy: "semver:1.2 - 1.4"}, {Policy: "semver:^v1.4"},
		{Policy: "minor", Include: `^v(\d+)\.(?P<b>\d+)$`, Extract: "$1.${b}.${2}-$$"},
	} {
		rule, err := Parse(spec)
		require.NoError(t, err, spec.Policy)
		require.Equal(t, spec.Policy, rule.String())
		require.Equal(t, spec.Policy != "digest", rule.NeedsTags())
	}
	require.Equal(t, "digest", Rule{}.String())
	require.False(t, Rule{}.NeedsTags())
	require.Equal(t, "1.2", Rule{}.Select("1.2", nil).Tag)
}

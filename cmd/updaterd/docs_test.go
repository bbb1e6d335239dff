package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEveryReasonIsDocumented holds docs/troubleshooting.md against the code.
func TestEveryReasonIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	words := append(constants(t, "../../internal/updater/reason.go", "Reason"), constants(t, "../../internal/updater/updater.go", "Outcome")...)
	require.Greater(t, len(words), 30)
	for _, word := range words {
		require.Contains(t, string(page), "\n| `"+word+"` |", "docs/troubleshooting.md has no row for %s", word)
	}
}

// TestEveryEventIsDocumented, where people choose what they want to be told of.
func TestEveryEventIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/notifications.md")
	require.NoError(t, err)
	keys, err := os.ReadFile("../../docs/configuration.md")
	require.NoError(t, err)
	words := constants(t, "../../internal/updater/journal.go", "Event")
	require.Greater(t, len(words), 8)
	for _, word := range words {
		require.Contains(t, string(page), "\n| `"+word+"` |", "docs/notifications.md has no row for %s", word)
		require.Contains(t, string(keys), "`"+word+"`", "docs/configuration.md does not name %s", word)
	}
}

// constants are the values of the string constants of a type in a file.
func constants(t *testing.T, file, typ string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	require.NoError(t, err)
	var values []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typ {
			return true
		}
		for _, v := range spec.Values {
			if lit, ok := v.(*ast.BasicLit); ok {
				s, err := strconv.Unquote(lit.Value)
				require.NoError(t, err)
				values = append(values, s)
			}
		}
		return true
	})
	return values
}

// TestPackagesKnowOnlyWhatTheyMay keeps the arrows between packages as
// docs/architecture.md draws them: what a package may import of ours.
func TestPackagesKnowOnlyWhatTheyMay(t *testing.T) {
	const ours = "github.com/updaterd/updaterd/"
	may := map[string][]string{
		"internal/policy":  {},
		"internal/updater": {"internal/policy"},
		// It has addresses and templates of messages checked by who will use them.
		"internal/config":  {"internal/notify", "internal/policy", "internal/updater"},
		"internal/docker":  {"internal/policy", "internal/updater"},
		"internal/journal": {"internal/policy", "internal/updater"},
		"internal/metrics": {"internal/policy", "internal/updater"},
		// Its outbox is a database like the journal's.
		"internal/migrate":     {},
		"internal/notify":      {"internal/journal", "internal/policy", "internal/updater"},
		"internal/kube":        {"internal/policy", "internal/updater"},
		"internal/server":      {"internal/policy", "internal/updater"},
		"internal/webhook":     {},
		"internal/registry":    {"internal/policy", "internal/updater"},
		"internal/backendtest": {"internal/policy", "internal/updater"},
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, ours+"...").Output()
	require.NoError(t, err)
	seen := 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], ours)
		allowed, listed := may[pkg]
		if pkg == "cmd/updaterd" {
			continue // it wires them all
		}
		require.True(t, listed, "%s is new: say here and in docs/architecture.md what it may import", pkg)
		seen++
		for _, imported := range fields[1:] {
			if name, mine := strings.CutPrefix(imported, ours); mine {
				require.Contains(t, allowed, name, "%s must not know %s", pkg, name)
			}
		}
	}
	require.Equal(t, len(may), seen)
}

// TestEngineClientStaysInItsPackage: the SDK is frozen at its last version, so
// one day it will be replaced, in one place.
func TestEngineClientStaysInItsPackage(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "github.com/updaterd/updaterd/...").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(line, " ")
		if !strings.HasSuffix(pkg, "internal/docker") {
			require.NotContains(t, imports, "github.com/docker/docker", pkg)
		}
	}
}

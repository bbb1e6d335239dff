package policy

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTheExamplesOfTheDocumentationHold reads the table of docs/policies.md.
func TestTheExamplesOfTheDocumentationHold(t *testing.T) {
	page, err := os.ReadFile("../../docs/policies.md")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(page), "| runs | policy | among | goes to |\n|---|---|---|---|\n")
	require.True(t, found)
	table, _, _ := strings.Cut(after, "\n\n")
	rows := strings.Split(table, "\n")
	require.Greater(t, len(rows), 20)
	for _, row := range rows {
		cells := strings.Split(strings.Trim(row, "| "), " | ")
		require.Len(t, cells, 4, row)
		bare := func(s string) string { return strings.Trim(s, "`") }
		got := mustParse(t, Spec{Policy: bare(cells[1])}).Select(bare(cells[0]), strings.Fields(strings.ReplaceAll(cells[2], "`", "")))
		want, reason, none := strings.Cut(cells[3], "nothing: ")
		if none {
			require.Equal(t, bare(reason), string(got.Reason), row)
		}
		require.Equal(t, bare(want), got.Tag, row)
	}
}

func TestTheSettingsOfTheDocumentationParse(t *testing.T) {
	page, err := os.ReadFile("../../docs/policies.md")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(page), "| wanted | settings |\n|---|---|\n")
	require.True(t, found)
	table, _, _ := strings.Cut(after, "\n\n")
	for _, row := range strings.Split(table, "\n") {
		_, settings, _ := strings.Cut(strings.Trim(row, "| "), " | ")
		var s Spec
		for _, setting := range strings.Split(settings, "`, `") {
			key, value, _ := strings.Cut(strings.Trim(setting, "`"), ": ")
			value = strings.Trim(value, "'")
			switch key {
			case "policy":
				s.Policy = value
			case "include":
				s.Include = value
			case "exclude":
				s.Exclude = value
			case "extract":
				s.Extract = value
			default:
				t.Errorf("%s: unknown key %q", row, key)
			}
		}
		mustParse(t, s)
	}
}

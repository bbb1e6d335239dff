package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const old = `{"Action":"start","Package":"p"}
{"Action":"attr","Package":"p","Test":"TestSwap","Key":"engine","Value":"Docker 1"}
{"Action":"pass","Package":"p","Test":"TestSwap/good"}
{"Action":"pass","Package":"p","Test":"TestSwap/a_network"}
{"Action":"pass","Package":"p","Test":"TestSwap"}
{"Action":"pass","Package":"p","Test":"TestPure"}
{"Action":"pass","Package":"p"}
`

const odd = `{"Action":"attr","Package":"p","Test":"TestSwap/good","Key":"engine","Value":"Podman 4"}
{"Action":"pass","Package":"p","Test":"TestSwap/good"}
{"Action":"attr","Package":"p","Test":"TestSwap/a_network","Key":"does-not-apply","Value":"it has none"}
{"Action":"skip","Package":"p","Test":"TestSwap/a_network"}
{"Action":"pass","Package":"p","Test":"TestSwap"}
{"Action":"pass","Package":"p","Test":"TestPure"}
`

func TestTable(t *testing.T) {
	first, err := read(strings.NewReader(old))
	require.NoError(t, err)
	require.NoError(t, first.verdict())
	second, err := read(strings.NewReader(odd))
	require.NoError(t, err)
	require.NoError(t, second.verdict())
	require.Equal(t, `| test | Docker 1 | Podman 4 |
|---|---|---|
| swap | passed (2) | passed |
| swap: a network | passed | – (a) |

- (a) it has none
`, table([]results{first, second}), "what touches no engine has no row")
}

// TestTableOfARunThatWasBrokenOff: what began there did not end, and what had not
// begun was not run.
func TestTableOfARunThatWasBrokenOff(t *testing.T) {
	whole, err := read(strings.NewReader(old + `{"Action":"attr","Package":"p","Test":"TestLast","Key":"engine","Value":"Docker 1"}
{"Action":"pass","Package":"p","Test":"TestLast"}
`))
	require.NoError(t, err)
	broken, err := read(strings.NewReader(`{"Action":"attr","Package":"p","Test":"TestSwap/good","Key":"engine","Value":"Docker 2"}
{"Action":"pass","Package":"p","Test":"TestSwap/good"}
{"Action":"run","Package":"p","Test":"TestSwap/a_network"}
{"Action":"run","Package":"p","Test":"TestSwap"}
{"Action":"run","Package":"p","Test":"TestLast"}
`))
	require.NoError(t, err)
	require.Error(t, broken.verdict())
	require.Equal(t, `| test | Docker 1 | Docker 2 |
|---|---|---|
| last | passed | not run |
| swap | passed (2) | did not end |
`, table([]results{whole, broken}))
}

func TestWhatIsWrongWithARun(t *testing.T) {
	const engine = `{"Action":"attr","Package":"p","Test":"TestA","Key":"engine","Value":"Docker 1"}` + "\n"
	for name, row := range map[string]struct{ lines, want string }{
		"a test failed":             {engine + `{"Action":"fail","Package":"p","Test":"TestA"}`, "TestA failed"},
		"a test did not end":        {engine + `{"Action":"run","Package":"p","Test":"TestA/b"}`, "TestA/b did not end"},
		"a test was left out":       {engine + `{"Action":"skip","Package":"p","Test":"TestA"}`, "skipped without a reason"},
		"a package was not built":   {engine + `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"build-fail","ImportPath":"q"}`, "package q failed"},
		"nothing touched an engine": {`{"Action":"pass","Package":"p","Test":"TestA"}`, "no test said"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := read(strings.NewReader(row.lines))
			require.NoError(t, err)
			require.ErrorContains(t, r.verdict(), row.want)
		})
	}
	_, err := read(strings.NewReader("panic: no event"))
	require.ErrorContains(t, err, "no line of go test -json")
}

func TestTitles(t *testing.T) {
	for name, want := range map[string]string{
		"TestKilledAtEveryCall/bad_image": "killed at every call: bad image",
		"TestRowsInJSON":                  "rows in JSON",
		"TestAMovedTag":                   "a moved tag",
		"TestRecreateOnAnEngine/a_b/c":    "recreate on an engine: a b: c",
	} {
		require.Equal(t, want, title(name))
	}
}

func TestThePageKeepsItsWords(t *testing.T) {
	page := "before\n" + begin + "old\n" + end + "after\n"
	got, err := insert(page, "new\n")
	require.NoError(t, err)
	require.Equal(t, "before\n"+begin+"new\n"+end+"after\n", got)
	_, err = insert("no marks", "new")
	require.Error(t, err)
}

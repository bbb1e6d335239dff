package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/stage"
)

// Settings are the defaults of most tests: passes as often as can be, and verdicts
// as soon as can be.
const Settings = `
schedule: "@every 1s"
jitter: 0s
watch: all
defaults:
  health: {timeout: 10s, stable: 500ms}
`

// Updaterd is an installation that watches a Space: the real program, and its way
// to the API server.
type Updaterd struct {
	*stage.Updaterd
	Way *Through

	space              *Space
	settings, selector string
}

// Row is one of `check -o json` or `run --once -o json`.
type Row struct {
	Backend   string  `json:"backend"`
	Workload  string  `json:"workload"`
	Image     string  `json:"image"`
	Digest    *string `json:"digest"`
	Policy    string  `json:"policy"`
	Decision  string  `json:"decision"`
	Candidate *struct {
		Image  string `json:"image"`
		Digest string `json:"digest"`
	} `json:"candidate"`
	Reason  string `json:"reason"`
	Detail  string `json:"detail"`
	Outcome string `json:"outcome"`
}

// Event is one of `history -o json`.
type Event struct {
	Workload, Event, Change, Verdict, Why, Logs string
	From, To                                    *struct{ Image, Digest string }
}

// Updaterd makes an installation with these settings, by the cluster's admin.
func (s *Space) Updaterd(settings string) *Updaterd {
	s.t.Helper()
	return s.UpdaterdBy(s.Through(Hooks{}), settings, "")
}

// UpdaterdBy makes an installation that takes this way, and looks at what the label
// selector matches; "" is all.
func (s *Space) UpdaterdBy(way *Through, settings, selector string) *Updaterd {
	s.t.Helper()
	config := settings + fmt.Sprintf("kubernetes:\n  - name: %s\n    kubeconfig: %s\n    namespaces: [%s]\n    state-namespace: %s\n", Backend, way.Kubeconfig, s.Name, s.Name)
	if selector != "" {
		config += fmt.Sprintf("    selector: %q\n", selector)
	}
	u := &Updaterd{Updaterd: stage.NewUpdaterd(s.t, "", config), Way: way, space: s}
	u.Env = nil // It is to find no Docker.
	u.settings, u.selector = settings, selector
	return u
}

// File is what the configuration file says.
func (u *Updaterd) File() string {
	b, err := os.ReadFile(u.Config)
	require.NoError(u.space.t, err)
	return string(b)
}

// Replica is another of the same installation, which takes a way of its own.
func (u *Updaterd) Replica() *Updaterd {
	u.space.t.Helper()
	return u.space.UpdaterdBy(u.space.Through(Hooks{}), u.settings, u.selector)
}

// Once makes one pass, requires its exit code, and returns the row of a workload.
func (u *Updaterd) Once(which string, code int) Row {
	u.space.t.Helper()
	return u.row(u.Run("run", "--once", "-o", "json"), which, code)
}

// Check looks, requires the exit code, and returns the row of a workload.
func (u *Updaterd) Check(which string, code int) Row {
	u.space.t.Helper()
	return u.row(u.Run("check", "-o", "json"), which, code)
}

func (u *Updaterd) row(r stage.Result, which string, code int) Row {
	t := u.space.t
	t.Helper()
	var rows []Row
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &rows), r.Stdout+r.Stderr)
	id := which
	if strings.Count(which, "/") == 1 {
		id = u.space.ID(which)
	}
	for _, row := range rows {
		if row.Workload == id {
			require.Equal(t, code, r.Code, "%+v", row)
			return row
		}
	}
	t.Fatalf("no row for %s:\n%s", id, r.Stdout)
	return Row{}
}

// History is what happened, the newest first.
func (u *Updaterd) History() []Event {
	t := u.space.t
	t.Helper()
	r := u.Run("history", "-o", "json")
	require.Zero(t, r.Code)
	var events []Event
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &events))
	return events
}

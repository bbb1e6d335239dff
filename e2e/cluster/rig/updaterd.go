package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

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

	space *Space
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
	u := &Updaterd{Updaterd: stage.NewUpdaterd(s.t, "", settings), Way: way, space: s}
	var err error
	u.Bin, err = build()
	require.NoError(s.t, err)
	u.Env = []string{"KUBECONFIG=" + way.Kubeconfig, "NAMESPACE=" + s.Name, "SELECTOR=" + selector}
	return u
}

// File is what the configuration file says.
func (u *Updaterd) File() string {
	b, err := os.ReadFile(u.Config)
	require.NoError(u.space.t, err)
	return string(b)
}

// Replica is another of the same installation: it takes a way of its own, and shares
// the journal.
func (u *Updaterd) Replica() *Updaterd {
	u.space.t.Helper()
	other := u.space.Updaterd(u.File())
	other.State = u.State
	return other
}

// build makes the program that is run, once in a process.
var build = sync.OnceValues(func() (string, error) {
	out := filepath.Join(shared.dir, "replica")
	b, err := exec.Command("go", "build", "-o", out, "github.com/updaterd/updaterd/e2e/cluster/replica").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the replica: %w: %s", err, b)
	}
	return out, nil
})

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

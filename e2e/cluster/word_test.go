package cluster

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestAPersonsWords reach the daemon, and are kept in the cluster.
func TestAPersonsWords(t *testing.T) {
	t.Parallel()
	w := newWorkload(t, "deployment", rig.Spec{Replicas: 2})
	id := w.ID(w.which)
	// No pass but the first, and those that are asked for.
	u := w.Updaterd("schedule: \"@every 24h\"\njitter: 0s\nwatch: all\ndefaults:\n  mode: approve\n  health: {timeout: 30s, stable: 500ms}\n")
	daemon := u.Start()
	daemon.WaitLog("pass over", rig.Patience)
	row := func(code int, args ...string) rig.Row {
		t.Helper()
		r := u.Run(append(args, "-o", "json")...)
		require.Equal(t, code, r.Code, r.Stdout+r.Stderr)
		var rows []rig.Row
		require.NoError(t, json.Unmarshal([]byte(r.Stdout), &rows), r.Stdout)
		require.Len(t, rows, 1)
		return rows[0]
	}
	say := func(args ...string) {
		t.Helper()
		r := u.Run(args...)
		require.Equal(t, 0, r.Code, r.Stdout+r.Stderr)
	}
	second := w.Good("web:latest", "2")
	require.Equal(t, "needs-approval", u.Check(w.which, 0).Reason)
	w.untouched()

	// Held, whatever is approved; in the cluster, so that a restart forgets nothing.
	say("hold", id, "-m", "holidays")
	require.Equal(t, 0, daemon.Stop(time.Minute))
	daemon = u.Start()
	daemon.WaitLog("pass over", rig.Patience)
	require.Contains(t, u.Check(w.which, 0).Detail, "holidays")
	say("release", id)
	require.Equal(t, "needs-approval", u.Check(w.which, 0).Reason)
	w.untouched()

	say("approve", id)
	stage.Eventually(t, 2*time.Minute, "what was approved to be carried out", func() bool {
		h := u.History()
		return len(h) > 0 && h[0].Event == "updated"
	})
	w.updated(second)

	// Back, which sticks.
	require.Equal(t, "committed", row(0, "rollback", id).Outcome)
	now := w.WaitDone(w.which)
	require.Equal(t, []string{w.first}, w.Digests("web"))
	w.onlyTheImage(now)
	require.Equal(t, "rolled-back", u.Check(w.which, 0).Reason)
	require.Equal(t, "rolled-back", row(1, "update", id).Reason)
	require.Equal(t, 0, daemon.Stop(time.Minute))
}

package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestWordsWithoutADaemon: what a person says holds for whatever runs next.
func TestWordsWithoutADaemon(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	say := func(code int, args ...string) string {
		t.Helper()
		res := r.u.Run(args...)
		require.Equal(t, code, res.Code, res.Stderr)
		return res.Stdout
	}
	second := r.push("latest", stage.Image{Version: "v2"})

	require.Contains(t, say(0, "hold", r.name, "-m", "holidays"), "Held: local/"+r.name)
	require.Contains(t, say(0, "hold", r.name), "Held already")
	got := r.once(0)
	require.Equal(t, "held", got.Reason)
	require.Contains(t, got.Detail, "holidays")
	require.Contains(t, say(0, "release", r.name), "Released")
	require.Contains(t, say(0, "release", r.name), "Not held")

	require.Contains(t, say(0, "pause", "--for", "1h"), "Paused: everything on local")
	require.Equal(t, "paused", r.check(0).Reason)
	require.Equal(t, "paused", r.only(r.u.Run("update", r.name, "-o", "json"), 1).Reason, "it is not what was asked for")
	require.Contains(t, say(0, "resume"), "Resumed")

	require.Contains(t, say(0, "reject", r.name, "-m", "not on Fridays"), "Rejected: local/"+r.name)
	require.Equal(t, "rejected", r.check(0).Reason)
	require.Contains(t, say(0, "forget", r.name), "not on Fridays")

	r.u.Env = append(r.u.Env, "UPDATERD_DEFAULTS_MODE=approve", "UPDATERD_DEFAULTS_WINDOW=Mon 00:00-00:01 UTC; Thu 00:00-00:01 UTC")
	require.Equal(t, "needs-approval", r.check(0).Reason)
	require.Contains(t, say(0, "approve", r.name), second[:19])
	require.NotEqual(t, "needs-approval", r.check(0).Reason)
	r.untouched()

	// Now is now, whatever the window.
	require.Equal(t, "committed", r.only(r.u.Run("update", r.name, "-o", "json"), 0).Outcome)
	r.updated("v2", second)

	// And back, without the registry's help.
	r.reg.Down()
	require.Equal(t, "committed", r.only(r.u.Run("rollback", r.name, "-o", "json", "-m", "too slow"), 0).Outcome)
	r.updated("v1", r.first)
	require.Equal(t, 1, r.u.Run("rollback", r.name).Code, "it is no way forward")
	r.reg.Up()
	got = r.once(0)
	require.Equal(t, "rolled-back", got.Reason)
	require.Contains(t, got.Detail, "too slow")

	var events []string
	for _, e := range r.history() {
		events = append([]string{e.Event}, events...)
		require.NotEmpty(t, e.Who, e.Event)
	}
	require.Equal(t, []string{"held", "released", "paused", "update-asked", "resumed", "rejected", "forgotten", "approved",
		"update-asked", "updated", "rollback-asked", "rolled-back"}, events)
}

package updater_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// drawn is a host of a few containers that use, follow and depend on each other
// at random.
type drawn struct {
	*world
	names                []string
	uses, follows, needs map[string][]string
	image                map[string]backendtest.Behaviour // those with an update
}

func drawHost(r *rapid.T) *drawn {
	w := &drawn{uses: map[string][]string{}, follows: map[string][]string{}, needs: map[string][]string{}, image: map[string]backendtest.Behaviour{}}
	// The start order and the alphabet are not to agree.
	w.names = rapid.Permutation([]string{"a", "b", "c", "d", "e", "f"}).Draw(r, "names")[:rapid.IntRange(2, 6).Draw(r, "how many")]
	some := func(from []string, one int, what string) (picked []string) {
		for _, n := range from {
			if rapid.IntRange(1, one).Draw(r, what+" "+n) == one {
				picked = append(picked, n)
			}
		}
		return picked
	}
	for i, name := range w.names {
		w.uses[name] = some(w.names[:i], 4, name+" uses")
		w.follows[name] = some(w.names[:i], 5, name+" follows")
		b := rapid.SampledFrom([]backendtest.Behaviour{backendtest.Good, backendtest.Good, "", backendtest.Unhealthy, backendtest.PortTaken, backendtest.CannotPull}).Draw(r, "image of "+name)
		if b != "" {
			w.image[name] = b
		}
		others := slices.DeleteFunc(slices.Clone(w.names), func(n string) bool { return n == name })
		w.needs[name] = some(others, 8, name+" depends on") // in circles too
	}
	return w
}

// start makes the host.
func (w *drawn) start(t *testing.T) {
	w.world = newWorld(t, backendtest.Good)
	w.host.Remove("web")
	for _, name := range w.names {
		w.run(name, w.image[name], w.uses[name]...)
		for _, n := range w.follows[name] {
			w.host.Follow(name, n)
		}
	}
}

// moves are what an update of a container moves: all that uses or follows it, or
// what moves with it.
func (w *drawn) moves(name string) map[string]bool {
	all := map[string]bool{name: true}
	for range w.names {
		for _, n := range w.names {
			if slices.ContainsFunc(slices.Concat(w.uses[n], w.follows[n]), func(n string) bool { return all[n] }) {
				all[n] = true
			}
		}
	}
	return all
}

// circular reports whether a container depends on itself, which leaves it out.
func (w *drawn) circular(name string) bool {
	seen := map[string]bool{}
	next := w.needs[name]
	for len(next) > 0 {
		at := next[0]
		next = next[1:]
		if at == name {
			return true
		}
		if !seen[at] {
			seen[at] = true
			next = append(slices.Clone(next), w.needs[at]...)
		}
	}
	return false
}

// teams are the containers with updates whose updates move something in common.
func (w *drawn) teams() map[string][]string {
	team := map[string][]string{}
	for name := range w.image {
		if !w.circular(name) {
			team[name] = []string{name}
		}
	}
	for range w.names {
		for a := range team {
			for b := range team {
				for n := range w.moves(a) {
					if w.moves(b)[n] {
						both := slices.Concat(team[a], team[b])
						slices.Sort(both)
						both = slices.Compact(both)
						for _, m := range both {
							team[m] = both
						}
					}
				}
			}
		}
	}
	return team
}

// TestTeamsOfAnyShape: whatever containers use, follow and depend on, a pass ends,
// every update is carried in one change at most, those that belong together in the
// same one, in the order that is asked for, and afterwards everything stands.
func TestTeamsOfAnyShape(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := drawHost(r)
		var failure any // how rapid ends a test, which must not end the bubble
		synctest.Test(t, func(t *testing.T) {
			defer func() { failure = recover() }()
			w.start(t)
			w.checkPass(r)
		})
		if failure != nil {
			panic(failure)
		}
	})
}

func (w *drawn) checkPass(t require.TestingT) {
	own := map[string]func(*updater.Settings){}
	for name, needs := range w.needs {
		own[name] = func(s *updater.Settings) { s.DependsOn = needs }
	}
	rules := w.settingsOf(own)
	u, _ := w.process(0)
	u.Reload(rules)
	foreseen, err := u.Check(context.Background(), nil)
	require.NoError(t, err)
	rows, err := u.Once(context.Background(), nil)
	require.NoError(t, err)

	history, err := (&backendtest.State{Disk: w.disk}).History(context.Background(), 0)
	require.NoError(t, err)
	changeOf := map[string]updater.Entry{}
	parts := map[string][]string{} // of a change
	for _, e := range history {
		name := strings.TrimPrefix(e.Workload, "local/")
		parts[e.Change] = append(parts[e.Change], name)
		if w.image[name] != "" && e.From != e.To {
			require.NotContains(t, changeOf, name, "carried twice")
			changeOf[name] = e
		}
	}
	teams := w.teams()
	for i, row := range rows {
		name := strings.TrimPrefix(row.Workload, "local/")
		_, carried := changeOf[name]
		require.Equal(t, foreseen[i].Reason == updater.InvalidSettings, row.Reason == updater.InvalidSettings, "%s: check says %s, run says %s", name, foreseen[i].Reason, row.Reason)
		switch {
		case w.image[name] == "":
			require.False(t, carried, "%s has no update", name)
			require.Contains(t, []updater.Reason{updater.UpToDate, updater.InvalidSettings}, row.Reason)
			continue
		case !carried:
			require.Contains(t, []updater.Reason{updater.InvalidSettings, updater.Waiting}, row.Reason, "%s: %s", name, row.Detail)
			continue
		case foreseen[i].Reason != updater.Waiting:
			require.Equal(t, updater.Update, foreseen[i].Reason, name)
		}
		want := map[string]bool{}
		team := slices.DeleteFunc(slices.Clone(teams[name]), func(n string) bool { return changeOf[n].Change == "" })
		for _, n := range team {
			require.Equal(t, changeOf[name].Change, changeOf[n].Change, "%s and %s move together", name, n)
			maps.Copy(want, w.moves(n))
		}
		got := parts[changeOf[name].Change]
		require.ElementsMatch(t, slices.Collect(maps.Keys(want)), got, "parts of the change of %s", name)
		// What a team depends on is over before it begins.
		for _, n := range w.needs[name] {
			if need, ok := changeOf[n]; ok && need.Change != changeOf[name].Change {
				begun := changeOf[name].At.Add(-changeOf[name].Took)
				require.False(t, begun.Before(need.At), "%s began before %s, which it depends on, was over", name, n)
				require.Equal(t, updater.EventUpdated, need.Event, "%s depends on %s", name, n)
			}
		}
		good := !slices.ContainsFunc(team, func(n string) bool { return w.image[n] != backendtest.Good })
		require.Equal(t, good, changeOf[name].Event == updater.EventUpdated, "%s: %s", name, changeOf[name].Why)
	}
	all := w.host.Containers()
	require.Len(t, all, len(w.names))
	for _, c := range all {
		require.True(t, c.Running, c.Name)
		require.False(t, c.Cut, "%s lives in, or follows, what was started after it", c.Name)
		updated := changeOf[c.Name].Event == updater.EventUpdated
		require.Equal(t, updated, c.Digest != oldDigest, c.Name)
	}
}

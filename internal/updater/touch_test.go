package updater_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

// template is a backend on which all workloads are written in one thing, as the
// containers of a pod template are.
type template struct {
	*backendtest.Process
	waits atomic.Bool // no copy of anything is wanted
	moved string      // the workload that somebody moves off its new image
	pins  map[string]string
}

func (b *template) Plan(ctx context.Context, c *updater.Change, join func(string) (updater.Settings, error)) error {
	if err := b.Process.Plan(ctx, c, join); err != nil {
		return err
	}
	c.Touches, c.Related = []string{"local/template"}, nil
	for _, box := range b.Containers() {
		c.Related = append(c.Related, "local/"+box.Name)
	}
	return nil
}

func (b *template) Observe(ctx context.Context, c updater.Change, part int, s updater.Side) (updater.Observation, error) {
	o, err := b.Process.Observe(ctx, c, part, s)
	if s == updater.NewSide && b.waits.Load() {
		o.Waits = "it is scaled to 0"
	}
	if s == updater.NewSide && c.Parts[part].Workload == b.moved {
		o.MovedOff = "somebody moved it"
	}
	return o, err
}

func (b *template) Restore(ctx context.Context, c updater.Change) (updater.Restoration, error) {
	r, err := b.Process.Restore(ctx, c)
	r.Refs = b.pins
	if err == nil && b.moved != "" {
		err = updater.ErrSuperseded
	}
	return r, err
}

// inTemplate plays on containers a and b of one template.
func inTemplate(t *testing.T, a, b backendtest.Behaviour, play func(w *world, place *template, u *updater.Updater)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, backendtest.Good)
		w.host.Remove("web")
		w.run("a", a)
		w.run("b", b)
		place := &template{Process: &backendtest.Process{Host: w.host, ID: "local"}}
		rules := w.rules()
		rules.Parallel = 1
		play(w, place, updater.New([]updater.Place{{Backend: place, State: &backendtest.State{Disk: w.disk}}}, rules, discard()))
	})
}

func pass(t *testing.T, u *updater.Updater) map[string]updater.Row {
	t.Helper()
	rows, err := u.Once(context.Background(), nil)
	require.NoError(t, err)
	by := map[string]updater.Row{}
	for _, r := range rows {
		by[r.Workload] = r
	}
	return by
}

func TestImagesOfOneTemplateMoveTogether(t *testing.T) {
	inTemplate(t, backendtest.Good, backendtest.Good, func(w *world, _ *template, u *updater.Updater) {
		rows := pass(t, u)
		require.Equal(t, updater.OutcomeCommitted, rows["local/a"].Outcome)
		require.Equal(t, updater.OutcomeCommitted, rows["local/b"].Outcome)
		all, err := (&backendtest.State{Disk: w.disk}).History(context.Background(), 0)
		require.NoError(t, err)
		require.Len(t, all, 2)
		require.Equal(t, all[0].Change, all[1].Change)
	})
}

func TestImagesThatFailTogetherAreTriedAlone(t *testing.T) {
	inTemplate(t, backendtest.Good, backendtest.Exits, func(w *world, _ *template, u *updater.Updater) {
		rows := pass(t, u)
		require.Equal(t, updater.OutcomeRestored, rows["local/a"].Outcome)
		require.Equal(t, updater.OutcomeRestored, rows["local/b"].Outcome)
		for _, id := range []string{"local/a", "local/b"} {
			require.Empty(t, w.record(id).Rejected, id)
			require.NotEmpty(t, w.record(id).Apart, id)
			require.Nil(t, w.record(id).Retry, id)
		}
		for range 3 { // whichever comes first
			rows = pass(t, u)
		}
		require.Equal(t, updater.UpToDate, rows["local/a"].Reason)
		require.Equal(t, updater.Rejected, rows["local/b"].Reason)
		require.Empty(t, w.record("local/a").Rejected)
		require.Len(t, w.record("local/b").Rejected, 1)
		require.Empty(t, w.record("local/a").Apart+w.record("local/b").Apart)
	})
}

func TestAChangeThatNothingIsWantedOfHoldsNoSlot(t *testing.T) {
	inTemplate(t, backendtest.Good, "", func(w *world, place *template, u *updater.Updater) {
		place.waits.Store(true)
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- u.Run(ctx) }()
		time.Sleep(2 * time.Hour)
		_, updated := w.find("a")
		require.True(t, updated)
		open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
		require.NoError(t, err)
		require.Len(t, open, 1)
		require.Equal(t, updater.Judging, open[0].Phase)

		// The only slot is free: what is in no template of theirs would be carried out.
		rows, err := u.Check(context.Background(), nil)
		require.NoError(t, err)
		require.Equal(t, updater.InProgress, rows[0].Reason)

		place.waits.Store(false)
		time.Sleep(time.Minute)
		open, err = (&backendtest.State{Disk: w.disk}).Open(context.Background())
		require.NoError(t, err)
		require.Empty(t, open)
		require.Equal(t, newOf("a"), w.record("local/a").Committed.Digest)
		stop()
		require.NoError(t, <-ended)
	})
}

// updaterd's own change, on a host beside the cluster, is begun while another
// waits for copies: a workload may be scaled to 0 for weeks.
func TestAChangeThatNothingIsWantedOfKeepsNobodyFromBeingAlone(t *testing.T) {
	for name, begun := range map[string]bool{"in the process that began it": false, "after a restart": true} {
		t.Run(name, func(t *testing.T) {
			inTemplate(t, backendtest.Good, "", func(w *world, cluster *template, u *updater.Updater) {
				cluster.waits.Store(true)
				if begun {
					require.Equal(t, updater.OutcomeOpen, pass(t, u)["local/a"].Outcome)
				}
				aside := newWorld(t, backendtest.Good)
				aside.registry = w.registry
				aside.run("self", backendtest.Good)
				var handed atomic.Bool
				host := &backendtest.Process{Host: aside.host, ID: "host", Self: aside.host.ID("self"), Step: func(what string, done bool) error {
					if what == "hand over" && done {
						handed.Store(true)
					}
					return nil
				}}
				stop := w.background(updater.New([]updater.Place{
					{Backend: cluster, State: &backendtest.State{Disk: w.disk}},
					{Backend: host, State: &backendtest.State{Disk: aside.disk}},
				}, w.rules(), discard()))
				time.Sleep(10 * time.Minute) // the bubble's
				require.True(t, handed.Load())
				open, err := (&backendtest.State{Disk: w.disk}).Open(context.Background())
				require.NoError(t, err)
				require.Len(t, open, 1)
				require.Equal(t, updater.Judging, open[0].Phase)
				stop()
			})
		})
	}
}

func TestOncePassDoesNotWaitForWhatMayNeverCome(t *testing.T) {
	inTemplate(t, backendtest.Good, "", func(w *world, place *template, u *updater.Updater) {
		place.waits.Store(true)
		row := pass(t, u)["local/a"]
		require.Equal(t, updater.OutcomeOpen, row.Outcome)
		require.Equal(t, "it is scaled to 0", row.Detail)
		place.waits.Store(false)
		require.Equal(t, updater.OutcomeCommitted, pass(t, u)["local/a"].Outcome)
	})
}

func TestWhatGoingBackWroteIsNoPin(t *testing.T) {
	inTemplate(t, backendtest.Exits, "", func(w *world, place *template, u *updater.Updater) {
		place.pins = map[string]string{"local/a": "a:1@" + oldDigest}
		require.Equal(t, updater.OutcomeRestored, pass(t, u)["local/a"].Outcome)
		require.Equal(t, []string{"a:1@" + oldDigest}, w.record("local/a").Wrote)
	})
}

func TestAPersonsWordInTheMiddleOfAnUpdateSticks(t *testing.T) {
	inTemplate(t, backendtest.Good, backendtest.Good, func(w *world, place *template, u *updater.Updater) {
		place.moved, place.pins = "local/a", map[string]string{"local/b": "b:1@" + oldDigest}
		rows := pass(t, u)
		require.Equal(t, updater.OutcomeSuperseded, rows["local/a"].Outcome)
		require.Len(t, w.record("local/a").Rejected, 1)
		require.Equal(t, updater.RolledBack, w.record("local/a").Rejected[0].Reason)
		require.Equal(t, newOf("a"), w.record("local/a").Rejected[0].Digest)
		require.Empty(t, w.record("local/b").Rejected, "nobody said a word about it")
		require.Equal(t, []string{"b:1@" + oldDigest}, w.record("local/b").Wrote, "going back pinned it, and no person")
	})
}

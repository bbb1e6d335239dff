package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/updaterd/updaterd/internal/backendtest"
	"github.com/updaterd/updaterd/internal/updater"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

const app = "prod/shop/deployment/web/app"

func TestJournal(t *testing.T) {
	t.Run("beside the leader", func(t *testing.T) {
		backendtest.RunJournal(t, func(t *testing.T) updater.Journal { return newStore().state(t, StateOptions{}).Journal() })
	})
	t.Run("of the leader", func(t *testing.T) {
		backendtest.RunJournal(t, func(t *testing.T) updater.Journal { return leads(t, newStore().state(t, StateOptions{})) })
	})
}

// leads leads until the test ends.
func leads(t *testing.T, s *State) updater.Journal {
	t.Helper()
	leading, end, ended := make(chan updater.Journal), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Lead(context.Background(), func(_ context.Context, j updater.Journal) error {
			leading <- j
			<-end
			return nil
		})
	}()
	t.Cleanup(func() {
		close(end)
		require.NoError(t, <-ended)
	})
	return <-leading
}

func changeOf(id, workload string, phase updater.Phase) updater.Change {
	return updater.Change{
		ID: id, Backend: "prod", Unit: workload, Phase: phase, Since: time.Now(),
		Parts:  []updater.Part{{Workload: workload, Replace: true, From: updater.Image{Ref: "app:1", Digest: "sha256:1"}, To: updater.Image{Ref: "app:2", Digest: "sha256:2"}}},
		Origin: json.RawMessage(`{"Namespace":"shop","Kind":"deployment","Name":"web","UID":"u-1"}`),
	}
}

func TestOneConfigMapForEachUnit(t *testing.T) {
	api := newStore()
	j := api.state(t, StateOptions{}).Journal()
	require.NoError(t, j.Save(t.Context(), changeOf("c-1", app, updater.Applying)))
	require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){
		app:                                func(r *updater.Record) { r.Hold = &updater.Word{Who: "ann"} },
		"prod/shop/deployment/web/sidecar": func(r *updater.Record) { r.Hold = &updater.Word{Who: "ann"} },
		"prod/shop/cronjob/web/app":        func(r *updater.Record) { r.Hold = &updater.Word{Who: "ann"} },
	}))
	require.Len(t, api.keys("configmaps"), 2)
	for _, key := range api.keys("configmaps") {
		require.Regexp(t, `^configmaps/updaterd/updaterd-prod-shop-(deployment|cronjob)-web-[0-9a-f]{10}$`, key)
	}
}

// TestTwoInstallationsInOneNamespace do not see each other.
func TestTwoInstallationsInOneNamespace(t *testing.T) {
	api := newStore()
	one, two := api.state(t, StateOptions{Backend: "prod"}).Journal(), api.state(t, StateOptions{Backend: "Prod_2."}).Journal()
	require.NoError(t, one.Save(t.Context(), changeOf("c-1", app, updater.Applying)))
	require.NoError(t, two.Save(t.Context(), changeOf("c-2", "Prod_2./shop/deployment/web/app", updater.Applying)))
	for j, id := range map[updater.Journal]string{one: "c-1", two: "c-2"} {
		open, err := j.Open(t.Context())
		require.NoError(t, err)
		require.Len(t, open, 1)
		require.Equal(t, id, open[0].ID)
	}
}

func TestNamesOfObjects(t *testing.T) {
	seen := map[string]string{}
	for _, unit := range []string{"prod", "Prod", "prod.", "prod-", "a.b", "a-b", "a/b", "prod/shop/deployment/web", strings.Repeat("a", 300), strings.Repeat("a", 301)} {
		name := objectName(unit)
		require.Regexp(t, `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, name)
		require.LessOrEqual(t, len(name), 253)
		require.Empty(t, seen[name], "%s and %s share a name", unit, seen[name])
		seen[name] = unit
		require.Regexp(t, `^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`, labelsOf(unit)[backendLabel])
		require.LessOrEqual(t, len(labelsOf(unit)[backendLabel]), 63)
	}
	require.Equal(t, "updaterd-prod", objectName("prod"))
}

// TestAPersonsWordReachesTheLeader, and none of both is lost.
func TestAPersonsWordReachesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		s := api.state(t, StateOptions{})
		require.NoError(t, s.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			require.NoError(t, j.Remember(ctx, map[string]func(*updater.Record){app: func(r *updater.Record) { r.Rejected = []updater.Rejection{{Why: "bad"}} }}))
			beside := s.Journal()
			require.NoError(t, beside.Remember(ctx, map[string]func(*updater.Record){app: func(r *updater.Record) { r.Rejected = nil; r.Hold = &updater.Word{Who: "ann"} }}))
			time.Sleep(time.Second)
			records, err := j.Recall(ctx)
			require.NoError(t, err)
			require.Equal(t, map[string]updater.Record{app: {Hold: &updater.Word{Who: "ann"}}}, records)

			// Also when the watch has not told yet.
			require.NoError(t, beside.Remember(ctx, map[string]func(*updater.Record){app: func(r *updater.Record) { r.Hold.Why = "holidays" }}))
			require.NoError(t, j.Save(ctx, changeOf("c-1", app, updater.Applying)))
			records, err = s.Journal().Recall(ctx)
			require.NoError(t, err)
			require.Equal(t, "holidays", records[app].Hold.Why)
			return nil
		}))
	})
}

// TestALateWriteOfAnOldLeaderIsRefused: it was decided on a version that is past.
func TestALateWriteOfAnOldLeaderIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		old := api.state(t, StateOptions{})
		lost := make(chan struct{})
		err := old.Lead(t.Context(), func(ctx context.Context, was updater.Journal) error {
			require.NoError(t, was.Save(ctx, changeOf("c-1", app, updater.Preparing)))
			// It does not know yet that another one took over.
			next := newJournal(StateOptions{Client: api.client(t), Backend: "prod", Namespace: "updaterd", Log: discard()}, "next", func(error) { close(lost) })
			open, err := next.Open(ctx)
			require.NoError(t, err)
			require.Len(t, open, 1)
			require.NoError(t, next.Save(ctx, changeOf("c-1", app, updater.Restoring)))

			require.ErrorIs(t, was.Save(ctx, changeOf("c-1", app, updater.Applying)), updater.ErrLost)
			<-ctx.Done()
			require.ErrorIs(t, was.Save(ctx, changeOf("c-1", app, updater.Applying)), updater.ErrLost)
			open, err = old.Journal().Open(t.Context())
			require.NoError(t, err)
			require.Equal(t, updater.Restoring, open[0].Phase)
			return nil
		})
		require.ErrorIs(t, err, updater.ErrLost)
		require.Empty(t, lost)
	})
}

// TestEveryKindOfTroubleAtEveryWrite: a write is made once, or said not to be made.
func TestEveryKindOfTroubleAtEveryWrite(t *testing.T) {
	writes := func(method string) bool { return method != "GET" }
	for name, trouble := range map[string]func(api *store, n int){
		"the server is in trouble": func(api *store, n int) {
			api.set(nth(n, writes, func() (int, error) { return 500, nil }))
		},
		"it asks for patience":  func(api *store, n int) { api.set(nth(n, writes, func() (int, error) { return 429, nil })) },
		"the connection breaks": func(api *store, n int) { api.set(nth(n, writes, func() (int, error) { return 0, errDown })) },
		"the answer is lost": func(api *store, n int) {
			f := nth(n, writes, func() (int, error) { return 0, errDown })
			api.setAfter(func(m, r string) error { _, err := f(m, r); return err })
		},
		"somebody edits the ConfigMap": func(api *store, n int) {
			api.set(nth(n, writes, func() (int, error) {
				for _, key := range api.keys("configmaps") {
					api.change(key, func(o runtime.Object) { o.(*corev1.ConfigMap).Annotations["note"] = fmt.Sprint(n) })
				}
				return 0, nil
			}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; n <= 5; n++ {
				synctest.Test(t, func(t *testing.T) {
					api := newStore()
					require.NoError(t, api.state(t, StateOptions{}).Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
						trouble(api, n)
						for _, phase := range []updater.Phase{updater.Preparing, updater.Applying, updater.Judging, updater.Committing} {
							require.NoError(t, j.Save(ctx, changeOf("c-1", app, phase)))
						}
						require.NoError(t, j.Remember(ctx, map[string]func(*updater.Record){app: func(r *updater.Record) { r.Committed.Digest = "sha256:2" }}))
						end := changeOf("c-1", app, updater.Committed)
						end.Ended = time.Now()
						require.NoError(t, j.Save(ctx, end))
						return nil
					}))
					j := api.state(t, StateOptions{}).Journal()
					open, err := j.Open(t.Context())
					require.NoError(t, err)
					require.Empty(t, open)
					entries, err := j.History(t.Context(), 0)
					require.NoError(t, err)
					require.Len(t, entries, 1)
					records, err := j.Recall(t.Context())
					require.NoError(t, err)
					require.Equal(t, "sha256:2", records[app].Committed.Digest)
				})
			}
		})
	}
}

// nth lets the nth request of a kind be answered by trouble.
func nth(n int, kind func(method string) bool, trouble func() (int, error)) func(method, resource string) (int, error) {
	var seen atomic.Int32
	return func(method, resource string) (int, error) {
		if resource != "configmaps" || !kind(method) {
			return 0, nil
		}
		if int(seen.Add(1)) == n {
			return trouble()
		}
		return 0, nil
	}
}

func TestAJournalThatMayNotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		api.set(func(_, resource string) (int, error) {
			if resource == "configmaps" {
				return 403, nil
			}
			return 0, nil
		})
		led := false
		require.NoError(t, api.state(t, StateOptions{}).Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			led = true
			began := time.Now()
			err := j.Save(ctx, changeOf("c-1", app, updater.Applying))
			require.ErrorContains(t, err, "configs/kubernetes has the role")
			require.Zero(t, time.Since(began), "trying again would not help")
			_, err = j.Open(ctx)
			require.Error(t, err)

			api.set(nil)
			require.NoError(t, j.Save(ctx, changeOf("c-1", app, updater.Applying)), "without a new start")
			return nil
		}))
		require.True(t, led, "going back never waits for the journal")
	})
}

func TestGoingBackWaitsForAWriteOnlyALittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		require.NoError(t, api.state(t, StateOptions{}).Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			api.set(func(method, resource string) (int, error) {
				if resource == "configmaps" && method != "GET" {
					return 500, nil // a webhook that fails, say
				}
				return 0, nil
			})
			began := time.Now()
			require.Error(t, j.Save(ctx, changeOf("c-1", app, updater.Restoring)))
			require.Less(t, time.Since(began), time.Minute)
			api.set(nil)
			return nil
		}))
	})
}

func TestWhatSomebodySpoiltIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		s := api.state(t, StateOptions{})
		require.NoError(t, s.Journal().Save(t.Context(), changeOf("c-1", app, updater.Applying)))
		require.NoError(t, s.Journal().Save(t.Context(), changeOf("c-2", "prod/shop/deployment/db/app", updater.Applying)))
		key := api.keys("configmaps")[1]
		api.change(key, func(o runtime.Object) { o.(*corev1.ConfigMap).Data[bookKey] = "{oops" })
		require.NoError(t, s.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			open, err := j.Open(ctx)
			require.ErrorContains(t, err, "cannot be read")
			require.Len(t, open, 1, "the others can be")
			for range 2 {
				require.NoError(t, j.Save(ctx, changeOf("c-1", app, updater.Restoring)))
			}
			open, err = j.Open(ctx)
			require.NoError(t, err)
			require.Len(t, open, 2)
			return nil
		}))
		require.Equal(t, "{oops", api.object(key).(*corev1.ConfigMap).Data[damagedKey])
	})
}

func TestAJournalOfANewerVersionIsLeftAlone(t *testing.T) {
	api := newStore()
	s := api.state(t, StateOptions{})
	require.NoError(t, s.Journal().Save(t.Context(), changeOf("c-1", app, updater.Applying)))
	key := api.keys("configmaps")[0]
	api.change(key, func(o runtime.Object) { o.(*corev1.ConfigMap).Data[bookKey] = `{"schema":2,"open":"new"}` })
	require.ErrorContains(t, s.Journal().Save(t.Context(), changeOf("c-1", app, updater.Restoring)), "newer updaterd")
	_, err := s.Journal().Open(t.Context())
	require.ErrorContains(t, err, "newer updaterd")
}

// TestWhatIsKeptOfAUnitIsBounded, and what matters most goes last.
func TestWhatIsKeptOfAUnitIsBounded(t *testing.T) {
	api := newStore()
	j := api.state(t, StateOptions{}).Journal()
	size := func() int {
		return len(asText(api.object(api.keys("configmaps")[0])))
	}
	for i := range 120 {
		c := changeOf(fmt.Sprintf("c-%d", i), app, updater.Restored)
		c.Verdict, c.Why, c.Logs, c.Ended = updater.Bad, "it exited with code 1", strings.Repeat("x", 4000), time.Now().Add(time.Duration(i))
		require.NoError(t, j.Save(t.Context(), c))
		require.Less(t, size(), 64<<10)
	}
	entries, err := j.History(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, entries, bookHistory)
	require.Equal(t, "c-119", entries[0].Change)
	require.NotEmpty(t, entries[0].Logs, "the newest keep their log lines")
	require.Empty(t, entries[bookHistory-1].Logs)

	for i := range 6 {
		require.NoError(t, j.Remember(t.Context(), map[string]func(*updater.Record){app: func(r *updater.Record) {
			for k := range 100 {
				r.Rejected = append(r.Rejected, updater.Rejection{Image: updater.Image{Digest: fmt.Sprintf("sha256:%064d", 100*i+k)}, Why: "it exited with code 1"})
			}
		}}))
		require.Less(t, size(), 64<<10)
	}
	records, err := j.Recall(t.Context())
	require.NoError(t, err)
	kept := records[app].Rejected
	require.Equal(t, fmt.Sprintf("sha256:%064d", 599), kept[len(kept)-1].Digest)
	require.Greater(t, len(kept), 200)

	c := changeOf("c-x", app, updater.Applying)
	c.Origin = json.RawMessage(`"` + strings.Repeat("x", 70_000) + `"`)
	require.ErrorIs(t, j.Save(t.Context(), c), errTooLarge)
}

func TestAWatchThatIsTooOldIsBegunAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newStore()
		s := api.state(t, StateOptions{})
		require.NoError(t, s.Lead(t.Context(), func(ctx context.Context, j updater.Journal) error {
			time.Sleep(time.Second)
			api.expire()
			require.NoError(t, s.Journal().Remember(ctx, map[string]func(*updater.Record){app: func(r *updater.Record) { r.Hold = &updater.Word{} }}))
			time.Sleep(time.Minute)
			records, err := j.Recall(ctx)
			require.NoError(t, err)
			require.NotNil(t, records[app].Hold)
			return nil
		}))
	})
}

// FuzzBook: whatever stands in a ConfigMap is read or refused.
func FuzzBook(f *testing.F) {
	f.Add(`{"schema":1,"unit":"prod/shop/deployment/web","records":{"a":{"hold":{"at":"2026-01-01T00:00:00Z"}}}}`)
	f.Add(`{"schema":2}`)
	f.Add(`null`)
	f.Add(`{"records":null,"history":[{}],"open":[{"parts":[{}]}]}`)
	f.Fuzz(func(t *testing.T, content string) {
		p := newPage(&corev1.ConfigMap{Data: map[string]string{bookKey: content}})
		b, err := p.read()
		require.NotNil(t, b.Records)
		if err == nil && len(content) < bookLimit/8 {
			_, err := b.trim()
			require.NoError(t, err)
		}
	})
}

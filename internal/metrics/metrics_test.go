package metrics

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func get(t *testing.T, m *Metrics, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(glance(updater.Glance{Ready: true})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Result().Body)
	require.NoError(t, err)
	return w.Code, string(body)
}

func glance(g updater.Glance) func() updater.Glance { return func() updater.Glance { return g } }

var began = time.Unix(1_700_000_000, 0)

// busy has seen something of everything.
func busy() *Metrics {
	m := New("1.2.3", []string{"local"})
	m.Decided(updater.Workload{ID: "local/web", Backend: "local"}, updater.Decision{Reason: updater.Update, Update: true})
	m.Decided(updater.Workload{ID: "local/db", Backend: "local"}, updater.Decision{Reason: updater.UpToDate})
	m.Passed(updater.Passed{Backend: "local", Began: began, Took: 2 * time.Second, Decided: map[updater.Reason]int{updater.Update: 1, updater.UpToDate: 1}})
	c := updater.Change{ID: "c1", Backend: "local", Phase: updater.Preparing, Since: began}
	m.Moved(c)
	c.Phase, c.Ended, c.Gap = updater.Restored, began.Add(time.Minute), 300*time.Millisecond
	m.Moved(c)
	m.Moved(updater.Change{ID: "c2", Backend: "local", Phase: updater.Judging})
	m.Asked("ghcr.io", 200)
	m.Asked("ghcr.io", 0)
	m.Left("docker.io", 76)
	return m
}

func TestWhatIsSeenIsCounted(t *testing.T) {
	_, page := get(t, busy(), "/metrics")
	for _, line := range []string{
		`updaterd_build_info{version="1.2.3"} 1`,
		`updaterd_passes_total{backend="local",result="success"} 1`,
		`updaterd_passes_total{backend="local",result="backend-unavailable"} 0`,
		`updaterd_pass_duration_seconds_sum{backend="local"} 2`,
		`updaterd_last_success_timestamp_seconds{backend="local"} 1.700000002e+09`,
		`updaterd_decisions_total{backend="local",reason="update"} 1`,
		`updaterd_workloads{backend="local",reason="up-to-date"} 1`,
		`updaterd_changes_total{backend="local",outcome="restored"} 1`,
		`updaterd_changes_total{backend="local",outcome="failed"} 0`,
		`updaterd_change_duration_seconds_sum{backend="local",outcome="restored"} 60`,
		`updaterd_change_gap_seconds_sum{backend="local"} 0.3`,
		`updaterd_open_changes{backend="local"} 1`,
		`updaterd_registry_requests_total{code="200",host="ghcr.io"} 1`,
		`updaterd_registry_requests_total{code="error",host="ghcr.io"} 1`,
		`updaterd_registry_rate_limit_remaining{host="docker.io"} 76`,
	} {
		require.Contains(t, page, line+"\n")
	}
	require.NotContains(t, page, "local/web", "no workload is a label")
}

func TestAReasonThatNoWorkloadHasAnyMoreFallsToZero(t *testing.T) {
	m := busy()
	m.Passed(updater.Passed{Backend: "local", Began: began, Decided: map[updater.Reason]int{updater.UpToDate: 2}})
	_, page := get(t, m, "/metrics")
	require.Contains(t, page, `updaterd_workloads{backend="local",reason="update"} 0`+"\n")
	require.Contains(t, page, `updaterd_workloads{backend="local",reason="up-to-date"} 2`+"\n")
}

// TestAPauseIsSeenAsItIsNow: it lapses by itself, and nothing happens then.
func TestAPauseIsSeenAsItIsNow(t *testing.T) {
	now := updater.Glance{Places: []updater.Sight{{Backend: "local", Paused: &updater.Word{At: began}}, {Backend: "far"}}}
	h := New("1", []string{"local", "far"}).Handler(func() updater.Glance { return now })
	page := func() string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		require.Equal(t, http.StatusOK, w.Code)
		return w.Body.String()
	}
	require.Contains(t, page(), `updaterd_paused{backend="local"} 1`+"\n")
	require.Contains(t, page(), `updaterd_paused{backend="far"} 0`+"\n")
	now.Places = []updater.Sight{{Backend: "local"}}
	require.Contains(t, page(), `updaterd_paused{backend="local"} 0`+"\n")
	require.NotContains(t, page(), `updaterd_paused{backend="far"}`, "who does not lead there does not know")
}

func TestALookAtSomeSaysNothingOfAll(t *testing.T) {
	m := busy()
	m.Passed(updater.Passed{Backend: "local", Began: began.Add(time.Hour), Part: true, Decided: map[updater.Reason]int{updater.UpToDate: 1}})
	_, page := get(t, m, "/metrics")
	require.Contains(t, page, `updaterd_workloads{backend="local",reason="update"} 1`+"\n")
	require.Contains(t, page, `updaterd_last_success_timestamp_seconds{backend="local"} 1.700000002e+09`+"\n")
}

func TestAChangeIsCountedOnce(t *testing.T) {
	m := busy()
	over := updater.Change{ID: "c2", Backend: "local", Phase: updater.Committed, Since: began, Ended: began}
	m.Moved(over)
	m.Moved(over)
	require.Equal(t, 1.0, testutil.ToFloat64(m.changes.WithLabelValues("local", "committed")))
	require.Equal(t, 0.0, testutil.ToFloat64(m.open.WithLabelValues("local")))
}

func TestHostsAreBounded(t *testing.T) {
	m := New("1", nil)
	for i := range 1000 {
		m.Asked(fmt.Sprintf("registry%d.example.com", i), 200)
		m.Left(fmt.Sprintf("registry%d.example.com", i), i)
	}
	require.Equal(t, hostsKept+1, testutil.CollectAndCount(m.requests))
	require.Equal(t, 950.0, testutil.ToFloat64(m.requests.WithLabelValues("other", "200")))
	require.Equal(t, hostsKept, testutil.CollectAndCount(m.requestsLeft))
	m.Asked("registry1.example.com", 7777)
	require.Equal(t, 1.0, testutil.ToFloat64(m.requests.WithLabelValues("registry1.example.com", "error")))
}

func TestHealth(t *testing.T) {
	hung := updater.Step{Backend: "local", What: "apply", Workload: "local/web", Until: time.Now().Add(-time.Minute)}
	long := updater.Step{Backend: "local", What: "prepare", Until: time.Now().Add(time.Minute)}
	for _, row := range []struct {
		name, path string
		glance     updater.Glance
		code       int
	}{
		{"who has not looked everywhere is not ready", "/readyz", updater.Glance{}, 503},
		{"and alive all the same", "/livez", updater.Glance{}, 200},
		{"who has is ready", "/readyz", updater.Glance{Ready: true}, 200},
		{"a long step is fine", "/livez", updater.Glance{Steps: []updater.Step{long}}, 200},
		{"one that hangs is not", "/livez", updater.Glance{Ready: true, Steps: []updater.Step{hung}}, 503},
		{"there is nothing else", "/", updater.Glance{Ready: true}, 404},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			New("1", nil).Handler(glance(row.glance)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, row.path, nil))
			require.Equal(t, row.code, w.Code)
			require.NotContains(t, w.Body.String(), "web", "no workload is named")
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	m := New("1", []string{"local"})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			m.Moved(updater.Change{ID: fmt.Sprint(i), Backend: "local", Phase: updater.Applying})
			m.Passed(updater.Passed{Backend: "local", Decided: map[updater.Reason]int{updater.UpToDate: i}})
			m.Asked("ghcr.io", 200)
			m.Moved(updater.Change{ID: fmt.Sprint(i), Backend: "local", Phase: updater.Committed})
			m.Handler(glance(updater.Glance{})).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
		})
	}
	all.Wait()
	require.Equal(t, 20.0, testutil.ToFloat64(m.changes.WithLabelValues("local", "committed")))
}

// TestEveryMetricIsDocumented, and none is documented that is not there.
func TestEveryMetricIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	families, err := busy().gatherer(glance(updater.Glance{Places: []updater.Sight{{Backend: "local"}}})).Gather()
	require.NoError(t, err)
	have := map[string]bool{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "updaterd_") {
			continue
		}
		have[f.GetName()] = true
		labels := ""
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels += "`" + l.GetName() + "`"
		}
		require.Contains(t, string(page), "| `"+f.GetName()+"` |", "docs/metrics.md has no row")
		for _, l := range f.GetMetric()[0].GetLabel() {
			require.Regexp(t, "(?m)^\\| `"+f.GetName()+"` \\|[^\n]*`"+l.GetName()+"`", string(page), "the row of %s does not name %s", f.GetName(), labels)
		}
	}
	for _, name := range regexp.MustCompile("(?m)^\\| `(updaterd_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		require.True(t, have[name[1]], "%s is documented and does not exist", name[1])
	}
}

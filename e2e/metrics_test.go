package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/stage"
)

// freePort is a port of loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// page is what a listener answers, "" while there is none.
func page(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

// TestMetrics of a pass and an update, as Prometheus would see them.
func TestMetrics(t *testing.T) {
	t.Parallel()
	address := freePort(t)
	r := newRig(t, start{config: settings + "metrics: {listen: \"" + address + "\"}\n"})
	r.push("latest", stage.Image{Version: "v2"})
	daemon := r.u.Start("run")
	var body string
	require.Eventually(t, func() bool {
		_, body = page(t, "http://"+address+"/metrics")
		return strings.Contains(body, `updaterd_changes_total{backend="local",outcome="committed"} 1`)
	}, time.Minute, 200*time.Millisecond)
	for _, line := range []string{
		`updaterd_open_changes{backend="local"} 0`,
		`updaterd_change_gap_seconds_count{backend="local"} 1`,
		`updaterd_passes_total{backend="local",result="backend-unavailable"} 0`,
		`updaterd_decisions_total{backend="local",reason="update"} 1`,
	} {
		require.Contains(t, body, line+"\n")
	}
	require.Regexp(t, `updaterd_registry_requests_total\{code="200",host="[^"]+"\} [1-9]`, body)
	require.NotContains(t, body, r.name, "no workload is named")
	for _, path := range []string{"/livez", "/readyz"} {
		code, text := page(t, "http://"+address+path)
		require.Equal(t, http.StatusOK, code, path)
		require.Equal(t, "ok\n", text)
	}
	code, _ := page(t, "http://"+address+"/debug/pprof/")
	require.Equal(t, http.StatusNotFound, code)
	require.Zero(t, daemon.Stop(10*time.Second))
}

// TestMetricsOnATakenAddress say so, and which key is to blame.
func TestMetricsOnATakenAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	u := stage.NewUpdaterd(t, stage.OpenDocker(t).Scoped(), fmt.Sprintf("metrics: {listen: %q}\n", l.Addr()))
	res := u.Run("run")
	require.Equal(t, 1, res.Code)
	require.Contains(t, res.Stderr, "metrics.listen")
	require.Contains(t, res.Stderr, "address already in use")
}

// documented are the metrics that docs/metrics.md has; a test beside the code
// holds that page against what is served.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	names := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(updaterd_[a-z_]+)` \\| (counter|gauge|histogram)").FindAllStringSubmatch(string(text), -1) {
		names[m[1]] = true
		if m[2] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[m[1]+suffix] = true
			}
		}
	}
	require.Greater(t, len(names), 10)
	return names
}

// known parses an expression and holds the metrics it names to those there are.
func known(t *testing.T, expression string, names map[string]bool) {
	t.Helper()
	expr, err := parser.ParseExpr(expression)
	require.NoError(t, err, expression)
	selectors := 0
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if v, ok := n.(*parser.VectorSelector); ok {
			selectors++
			require.True(t, names[v.Name], "%s: there is no metric %s", expression, v.Name)
		}
		return nil
	})
	require.Positive(t, selectors, expression)
}

func TestAlertRulesAreUnderstood(t *testing.T) {
	groups, problems := rulefmt.ParseFile("../configs/grafana/alerts.yaml", false, model.UTF8Validation)
	require.Empty(t, problems)
	names := documented(t)
	rules := 0
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			rules++
			known(t, r.Expr, names)
			require.NotEmpty(t, r.Annotations["summary"], r.Alert)
		}
	}
	require.Greater(t, rules, 4)
}

func TestDashboardIsUnderstood(t *testing.T) {
	text, err := os.ReadFile("../configs/grafana/updaterd.json")
	require.NoError(t, err)
	var board struct {
		Title      string
		Templating struct {
			List []struct{ Name, Query string }
		}
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &board))
	require.NotEmpty(t, board.Title)
	names := documented(t)
	ids := map[int]bool{}
	for _, p := range board.Panels {
		require.False(t, ids[p.ID], "two panels have the id %d", p.ID)
		ids[p.ID] = true
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			// Grafana puts its variables in before Prometheus sees it.
			known(t, strings.NewReplacer("$__rate_interval", "5m", "$backend", ".*").Replace(target.Expr), names)
		}
	}
	require.Greater(t, len(ids), 8)
	for _, v := range board.Templating.List {
		if m := regexp.MustCompile(`^label_values\((\w+), \w+\)$`).FindStringSubmatch(v.Query); m != nil {
			require.True(t, names[m[1]], v.Query)
		}
	}
}

package e2e

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The benchmarks measure the built program from outside, each figure beside
// the floor of the same run: what the same thing costs without updaterd. What
// they found is also printed as tables. None of them fails for being slow.

// passes is how many passes BenchmarkPass/many makes.
var passes = flag.Int("passes", 120, "passes of the benchmark of many passes, one a second")

// tables are what the parts of one benchmark found.
type tables struct{ all []*table }

type table struct {
	title string
	rows  [][]string
}

// newTables prints what was added to it once b and all its parts have ended:
// before, it would be in the midst of their lines.
func newTables(b *testing.B) *tables {
	t := &tables{}
	b.Cleanup(func() { t.print(os.Stdout) })
	return t
}

func (t *tables) add(title string, header ...string) *table {
	one := &table{title: title, rows: [][]string{header}}
	t.all = append(t.all, one)
	return one
}

func (t *table) row(cells ...string) {
	// Filled up, or the columns after the last cell would not line up.
	for len(cells) < len(t.rows[0]) {
		cells = append(cells, "")
	}
	t.rows = append(t.rows, cells)
}

func (t *tables) print(w io.Writer) {
	for _, one := range t.all {
		fmt.Fprintf(w, "\n%s\n", one.title)
		tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, r := range one.rows {
			fmt.Fprintf(tab, "  %s\n", strings.Join(r, "\t"))
		}
		if err := tab.Flush(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	fmt.Fprintln(w)
}

// quiet keeps what updaterd logs out of the results.
type quiet struct{ *testing.B }

func (quiet) Logf(string, ...any) {}

// millis are durations in the order in which they were measured.
type millis []time.Duration

func (m millis) median() time.Duration {
	s := slices.Sorted(slices.Values(m))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// String is the median, with the smallest and the greatest.
func (m millis) String() string {
	return fmt.Sprintf("%s (%s to %s)", ms(m.median()), ms(slices.Min(m)), ms(slices.Max(m)))
}

// counts is the median of some numbers, with the smallest and the greatest.
func counts(n []int) string {
	s := slices.Sorted(slices.Values(n))
	return fmt.Sprintf("%d (%d to %d)", s[len(s)/2], s[0], s[len(s)-1])
}

func ms(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/1e6, 'f', 1, 64) + " ms"
}

func mb(bytes int64) string {
	return strconv.FormatFloat(float64(bytes)/1e6, 'f', 1, 64) + " MB"
}

// report is a metric in the form that benchstat reads.
func (m millis) report(b *testing.B, unit string) {
	b.ReportMetric(float64(m.median())/1e6, unit)
}

// status is a field of /proc/PID/status in bytes or, where it has no unit, as
// it is; 0 when the process has gone.
func status(pid int, field string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+)( kB)?$`).FindSubmatch(data)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		return 0
	}
	if len(m[2]) > 0 {
		n *= 1024
	}
	return n
}

// files is how many files the process has open.
func files(t testing.TB, pid int) int {
	t.Helper()
	n := openFiles(pid)
	require.Positive(t, n)
	return n
}

// openFiles is the same, 0 when the process has gone.
func openFiles(pid int) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0
	}
	return len(entries)
}

// processor is the processor time that a process has used, all its threads,
// also those that ended. It is the clock that clock_getcpuclockid(3) names.
func processor(t testing.TB, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(int32(^pid<<3|2), &ts))
	return time.Duration(ts.Nano())
}

package updater

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWindowOpen(t *testing.T) {
	tests := []struct {
		name   string
		window string
		now    string // RFC 3339
		open   bool
	}{
		{"no window is always open", "", "2024-03-05T12:00:00Z", true},
		{"always is always open", "always", "2024-03-05T12:00:00Z", true},
		{"the first minute belongs to it", "02:00-05:00 UTC", "2024-03-05T02:00:00Z", true},
		{"just before is shut", "02:00-05:00 UTC", "2024-03-05T01:59:59Z", false},
		{"the last moment belongs to it", "02:00-05:00 UTC", "2024-03-05T04:59:59.999Z", true},
		{"the end does not", "02:00-05:00 UTC", "2024-03-05T05:00:00Z", false},
		{"the end may be midnight", "22:00-24:00 UTC", "2024-03-05T23:59:59Z", true},
		{"and is over then", "22:00-24:00 UTC", "2024-03-06T00:00:00Z", false},
		{"00:00 is the same end", "22:00-00:00 UTC", "2024-03-05T23:59:59Z", true},
		{"a whole day is one", "Tue 00:00-24:00 UTC", "2024-03-05T00:00:00Z", true},
		{"and only that day", "Tue 00:00-24:00 UTC", "2024-03-06T00:00:00Z", false},

		{"on one of its days", "Mon-Fri 02:00-05:00 UTC", "2024-03-08T03:00:00Z", true},
		{"not on another", "Mon-Fri 02:00-05:00 UTC", "2024-03-09T03:00:00Z", false},
		{"days go round the week", "Sat-Mon 02:00-05:00 UTC", "2024-03-10T03:00:00Z", true},
		{"and not through its middle", "Sat-Mon 02:00-05:00 UTC", "2024-03-06T03:00:00Z", false},
		{"days are listed", "Mon,Wed-Thu 02:00-05:00 UTC", "2024-03-07T03:00:00Z", true},
		{"and others left out", "Mon,Wed-Thu 02:00-05:00 UTC", "2024-03-05T03:00:00Z", false},
		{"days have whole names too, in any case", "TUESDAY 02:00-05:00 UTC", "2024-03-05T03:00:00Z", true},

		{"over midnight, before it", "Fri 22:00-04:00 UTC", "2024-03-08T23:00:00Z", true},
		{"over midnight, after it, on the day that is not named", "Fri 22:00-04:00 UTC", "2024-03-09T03:59:00Z", true},
		{"over midnight, the night before", "Fri 22:00-04:00 UTC", "2024-03-08T03:00:00Z", false},

		{"in the zone it names", "02:00-05:00 Europe/Berlin", "2024-03-05T01:00:00Z", true},
		{"and not in that of the clock", "02:00-05:00 Europe/Berlin", "2024-03-05T04:30:00Z", false},
		{"its day is that of the zone", "Wed 00:00-02:00 Europe/Berlin", "2024-03-05T23:30:00Z", true},

		{"the first of several", "02:00-03:00 UTC; 12:00-13:00 UTC", "2024-03-05T02:30:00Z", true},
		{"the second of several", "02:00-03:00 UTC; 12:00-13:00 UTC", "2024-03-05T12:30:00Z", true},
		{"between several", "02:00-03:00 UTC; 12:00-13:00 UTC", "2024-03-05T08:00:00Z", false},

		// 2024-03-31: at 02:00 CET (01:00 UTC) it becomes 03:00 CEST.
		{"in spring, before the gap", "01:30-03:30 Europe/Berlin", "2024-03-31T00:59:00Z", true},
		{"in spring, after the gap", "01:30-03:30 Europe/Berlin", "2024-03-31T01:29:00Z", true},
		{"in spring, at its end", "01:30-03:30 Europe/Berlin", "2024-03-31T01:30:00Z", false},
		{"in spring, begun in the gap, it begins after it", "02:30-05:00 Europe/Berlin", "2024-03-31T01:00:00Z", true},
		{"in spring, and not before", "02:30-05:00 Europe/Berlin", "2024-03-31T00:59:59Z", false},
		{"in spring, ended in the gap, it ends with it", "01:00-02:30 Europe/Berlin", "2024-03-31T00:59:59Z", true},
		{"in spring, and no later", "01:00-02:30 Europe/Berlin", "2024-03-31T01:00:00Z", false},
		{"in spring, within the gap, there is none", "02:10-02:50 Europe/Berlin", "2024-03-31T01:20:00Z", false},
		{"in spring, within the gap, there is none before it either", "02:10-02:50 Europe/Berlin", "2024-03-31T00:20:00Z", false},

		// 2024-10-27: at 03:00 CEST (01:00 UTC) it becomes 02:00 CET.
		{"in autumn, the first of the two hours", "02:00-03:00 Europe/Berlin", "2024-10-27T00:30:00Z", true},
		{"in autumn, the second of the two hours", "02:00-03:00 Europe/Berlin", "2024-10-27T01:30:00Z", true},
		{"in autumn, after both", "02:00-03:00 Europe/Berlin", "2024-10-27T02:00:00Z", false},
		{"in autumn, begun within the hour, it begins the first time", "02:30-04:00 Europe/Berlin", "2024-10-27T00:30:00Z", true},
		{"in autumn, when the clock is past its end for the first time", "01:00-02:30 Europe/Berlin", "2024-10-27T00:45:00Z", false},
		{"in autumn, ended within the hour, it comes back with it", "01:00-02:30 Europe/Berlin", "2024-10-27T01:29:00Z", true},
		{"in autumn, and no later", "01:00-02:30 Europe/Berlin", "2024-10-27T01:30:00Z", false},
		{"in autumn, over midnight", "Sat 22:00-02:30 Europe/Berlin", "2024-10-27T00:20:00Z", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := ParseWindow(tt.window)
			require.NoError(t, err)
			now := moment(t, tt.now)
			require.Equal(t, tt.open, w.Open(now))
			// The zone in which the clock is shown is not the window's business.
			require.Equal(t, tt.open, w.Open(now.In(time.FixedZone("", -11*3600))))
		})
	}
}

func TestWindowNext(t *testing.T) {
	tests := []struct {
		name              string
		window, now, next string
	}{
		{"an open one opens now", "02:00-05:00 UTC", "2024-03-05T03:00:00Z", "2024-03-05T03:00:00Z"},
		{"later today", "02:00-05:00 UTC", "2024-03-05T01:00:00Z", "2024-03-05T02:00:00Z"},
		{"tomorrow", "02:00-05:00 UTC", "2024-03-05T05:00:00Z", "2024-03-06T02:00:00Z"},
		{"in a week", "Tue 02:00-05:00 UTC", "2024-03-05T05:00:00Z", "2024-03-12T02:00:00Z"},
		{"over the weekend", "Mon-Fri 02:00-05:00 UTC", "2024-03-08T05:00:00Z", "2024-03-11T02:00:00Z"},
		{"the nearest of several", "Tue 02:00-05:00 UTC; Wed 12:00-13:00 UTC", "2024-03-05T05:00:00Z", "2024-03-06T12:00:00Z"},
		{"in its own zone", "02:00-05:00 America/New_York", "2024-01-05T08:00:00-05:00", "2024-01-06T07:00:00Z"},
		{"over the end of a year", "Wed 02:00-05:00 UTC", "2024-12-25T05:00:00Z", "2025-01-01T02:00:00Z"},
		{"after the gap of spring", "02:30-05:00 Europe/Berlin", "2024-03-31T00:00:00Z", "2024-03-31T01:00:00Z"},
		{"a day later when the gap swallowed it", "02:10-02:50 Europe/Berlin", "2024-03-31T00:30:00Z", "2024-04-01T00:10:00Z"},
		{"a week later when the gap swallowed it", "Sun 02:10-02:50 Europe/Berlin", "2024-03-31T00:30:00Z", "2024-04-07T00:10:00Z"},
		{"two weeks later when it is swallowed after this week's", "Sun 02:10-02:50 Europe/Berlin", "2024-03-24T02:00:00Z", "2024-04-07T00:10:00Z"},
		{"the first of the two hours of autumn", "02:30-04:00 Europe/Berlin", "2024-10-27T00:00:00Z", "2024-10-27T00:30:00Z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := ParseWindow(tt.window)
			require.NoError(t, err)
			next := w.Next(moment(t, tt.now))
			require.Equal(t, tt.next, next.UTC().Format(time.RFC3339))
			require.True(t, w.Open(next))
		})
	}
}

func TestParseWindowSaysWhatIsWrong(t *testing.T) {
	tests := []struct{ name, window, problem string }{
		{"days alone", "Mon-Fri", "no times"},
		{"an unknown day", "Foo 02:00-05:00", `"Foo" is not a day`},
		{"half a range of days", "Mon- 02:00-05:00", `"Mon-" is not a day`},
		{"an empty entry among the days", "Mon,,Tue 02:00-05:00", `"" is not a day`},
		{"a time instead of a span", "02:00", `"02:00" is not a span`},
		{"an hour that is none", "25:00-26:00", `"25:00" is not a time`},
		{"a minute that is none", "02:60-03:00", `"02:60" is not a time`},
		{"no end", "02:00-", `"" is not a time`},
		{"three times", "02:00-03:00-04:00", `"03:00-04:00" is not a time`},
		{"a beginning at 24:00", "24:00-02:00", "24:00 can only be an end"},
		{"nothing between", "02:00-02:00", "begins when it ends"},
		{"an unknown zone", "02:00-05:00 Mars/Olympus", `"Mars/Olympus" is not known`},
		{"a word after the zone", "02:00-05:00 UTC please", "too many words"},
		{"spaces between days", "Mon, Tue 02:00-05:00", "too many words"},
		{"spaces around the dash", "02:00 - 05:00", "too many words"},
		{"an empty one of several", "02:00-05:00;", "no times"},
		{"always beside another", "always; 02:00-05:00", "no times"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseWindow(tt.window)
			require.ErrorContains(t, err, tt.problem)
			require.ErrorContains(t, err, "write it as")
		})
	}
}

func TestWindowSurvivesBeingWrittenDown(t *testing.T) {
	for _, s := range []string{"always", "Mon-Fri 02:00-05:00 Europe/Berlin", "22:00-04:00; Sun 12:00-24:00 UTC"} {
		w, err := ParseWindow(s)
		require.NoError(t, err)
		text, err := w.MarshalText()
		require.NoError(t, err)
		var again Window
		require.NoError(t, again.UnmarshalText(text))
		require.Equal(t, w, again)
		require.Equal(t, s, w.String())
	}
}

// FuzzParseWindow: whatever is accepted opens again within a fortnight, opens
// when it says so, and reads back as itself.
func FuzzParseWindow(f *testing.F) {
	for _, s := range []string{
		"", "always", "02:00-05:00", "Mon-Fri 02:00-05:00 Europe/Berlin", "Sat,Sun 22:00-04:00",
		"Sun 02:10-02:50 Europe/Berlin", "23:00-24:00 UTC; Tue 0:00-1:00 Australia/Lord_Howe", "Mon 24:00-02:00",
	} {
		f.Add(s, int64(1711846800))
	}
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		w, err := ParseWindow(s)
		if err != nil {
			return
		}
		// Within the times that zones are known for.
		now := time.Unix(unix%(1<<32), 0)
		next := w.Next(now)
		require.False(t, next.Before(now), "%q opens in the past", s)
		require.Less(t, next.Sub(now), 16*24*time.Hour, "%q stays shut", s)
		require.True(t, w.Open(next), "%q is shut when it opens", s)
		require.Equal(t, w.Open(now), next.Equal(now))
		again, err := ParseWindow(w.String())
		require.NoError(t, err)
		require.Equal(t, w, again)
	})
}

func moment(t *testing.T, s string) time.Time {
	t.Helper()
	m, err := time.Parse(time.RFC3339, s)
	require.NoError(t, err)
	return m
}

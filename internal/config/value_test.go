package config

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseDuration(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		name, text string
		want       time.Duration
		problem    string
	}{
		{"nothing at all", "0", 0, ""},
		{"nothing, with a unit", "0s", 0, ""},
		{"seconds", "90s", 90 * time.Second, ""},
		{"Go's own", "1h30m", 90 * time.Minute, ""},
		{"a fraction", "1.5h", 90 * time.Minute, ""},
		{"a plus", "+5m", 5 * time.Minute, ""},
		{"days", "3d", 3 * day, ""},
		{"weeks and days", "1w2d", 9 * day, ""},
		{"days and hours", "1d12h", 36 * time.Hour, ""},
		{"half a day", "0.5d", 12 * time.Hour, ""},
		{"the longest", "106751d", 106751 * day, ""},
		{"a number", "90", 0, "has no unit"},
		{"a broken number", "1.5", 0, "has no unit"},
		{"a negative one", "-90s", 0, "is negative"},
		{"a negative number", "-5", 0, "is negative"},
		{"a negative one within", "1d-5h", 0, "is no duration"},
		{"none", "", 0, "is no duration"},
		{"a unit alone", "d", 0, "is no duration"},
		{"a unit that is none", "5y", 0, "is no duration"},
		{"a number at the end", "1d5", 0, "is no duration"},
		{"spaces", "1d 5h", 0, "is no duration"},
		{"words", "a while", 0, "is no duration"},
		{"too long", "300000w", 0, "longer than 292 years"},
		{"too long when added up", "106751d24h", 0, "longer than 292 years"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := ParseDuration(tt.text)
			if tt.problem != "" {
				require.ErrorContains(t, err, tt.problem)
				require.ErrorContains(t, err, "; write")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, d)
		})
	}
}

// FuzzDuration: what is accepted is never negative and, where Go knows it too,
// what Go says.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"", "0", "90s", "1w2d", "1.5d", "-1h", "+1h", "1h1d1ns", ".5h", "1.d", "9999999999w", "1e3s", "0x1p3s", "1µs"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		theirs, theirErr := time.ParseDuration(s)
		if err != nil {
			require.Contains(t, err.Error(), "; write")
			// Everything that Go takes is taken, but what is negative, and the
			// zero that Go takes without a unit in more spellings.
			require.True(t, theirErr != nil || theirs < 0 || s[0] == '-', "%q", s)
			return
		}
		require.GreaterOrEqual(t, d, time.Duration(0))
		if theirErr == nil {
			require.Equal(t, theirs, d)
		}
	})
}

func TestTheWordsOfACommandAreTheSameEverywhere(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
		problem    string
	}{
		{"words", "/bin/check -q", []string{"/bin/check", "-q"}, ""},
		{"words with spaces around", "  /bin/check\t-q ", []string{"/bin/check", "-q"}, ""},
		{"words with quotes", `sh -c 'a && b' "c d" e\ f ''`, []string{"sh", "-c", "a && b", "c d", "e f", ""}, ""},
		{"a JSON list", `["sh", "-c", "curl -f localhost || exit 1"]`, []string{"sh", "-c", "curl -f localhost || exit 1"}, ""},
		{"a JSON list with spaces around", ` ["a b"] `, []string{"a b"}, ""},
		{"no shell", "echo $HOME *", []string{"echo", "$HOME", "*"}, ""},
		{"half a JSON list", `["a"`, nil, "is no JSON array of texts"},
		{"a JSON list of numbers", "[1]", nil, "is no JSON array of texts"},
		{"a JSON list with more behind it", `["a"] b`, nil, "is no JSON array of texts"},
		{"an open quote", "a 'b", nil, "cannot be taken apart into words"},
		{"a word for a shell", "a && b", nil, `holds "&&", but no shell runs it`},
		{"an empty program", `["", "a"]`, nil, "begins with an empty word"},
		{"an empty program in quotes", `'' a`, nil, "begins with an empty word"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			words, err := readCommand(raw{text: tt.text})
			probe, probeErr := readProbe(raw{text: "exec:" + tt.text})
			if tt.problem != "" {
				require.ErrorContains(t, err, tt.problem)
				require.EqualError(t, probeErr, err.Error())
				return
			}
			require.NoError(t, err)
			require.NoError(t, probeErr)
			require.Equal(t, tt.want, words)
			require.Equal(t, "exec:"+inline(words), probe, "as JSON, however it is written")
		})
	}
	for _, nothing := range []string{"", " ", "[]"} {
		_, err := readProbe(raw{text: "exec:" + nothing})
		require.ErrorContains(t, err, "has no command", "%q", nothing)
	}
}

// FuzzExecProbe: what is accepted is a JSON list of words with a program, which
// is what backends take apart, and says the same when it is read again.
func FuzzExecProbe(f *testing.F) {
	for _, s := range []string{"a", "a 'b c'", `["a", "|"]`, `[null]`, ` [""] `, "a\\", "\xff", "a <b", `["\u2028"]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, command string) {
		probe, err := readProbe(raw{text: "exec:" + command})
		if err != nil {
			require.Contains(t, err.Error(), "; ")
			return
		}
		list := strings.TrimPrefix(probe, "exec:")
		var words []string
		require.NoError(t, json.Unmarshal([]byte(list), &words))
		require.NotEmpty(t, words)
		require.NotEmpty(t, words[0])
		again, err := readCommand(raw{text: list})
		require.NoError(t, err)
		require.Equal(t, words, again)
	})
}

func TestParseSchedule(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	now := time.Date(2024, 3, 5, 12, 7, 30, 0, berlin)
	tests := []struct{ name, text, next string }{
		{"an interval", "@every 15m", "2024-03-05T12:22:30+01:00"},
		{"an interval of days", "@every 1d", "2024-03-06T12:07:30+01:00"},
		{"an interval with a zone, which means nothing to it", "CRON_TZ=UTC @every 15m", "2024-03-05T12:22:30+01:00"},
		{"a line of cron with a zone", "CRON_TZ=Asia/Tokyo 30 4 * * *", "2024-03-05T20:30:00+01:00"},
		{"the short name of the zone", "TZ=UTC 0 12 * * *", "2024-03-05T13:00:00+01:00"},
		{"days of the week", "CRON_TZ=Europe/Berlin 0 4 * * SAT,SUN", "2024-03-09T04:00:00+01:00"},
		{"a name", "CRON_TZ=Europe/Berlin @daily", "2024-03-06T00:00:00+01:00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseSchedule(tt.text)
			require.NoError(t, err)
			require.Equal(t, tt.text, s.String())
			require.Equal(t, tt.next, s.Next(now).In(berlin).Format(time.RFC3339))
		})
	}
}

func TestParseScheduleSaysWhatIsWrong(t *testing.T) {
	tests := []struct{ name, text, problem string }{
		{"nothing", "", "empty spec string"},
		{"six fields", "0 0 4 * * *", "expected exactly 5 fields"},
		{"an hour that is none", "0 25 * * *", "above maximum"},
		{"a name that is none", "@fortnightly", "unrecognized descriptor"},
		{"no interval", "@every", "is no duration"},
		{"an interval of nothing", "@every 0s", "less than a second"},
		{"a negative interval", "@every -5m", "is negative"},
		{"an interval without a unit", "@every 15", "has no unit"},
		{"a zone alone", "CRON_TZ=Europe/Berlin", "nothing after it"},
		{"a zone that is none", "CRON_TZ=Mars/Olympus @daily", `"Mars/Olympus" is not known`},
		{"a day that never comes", "0 0 31 2 *", "never comes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseSchedule(tt.text)
			require.ErrorContains(t, err, tt.problem)
		})
	}
}

// FuzzSchedule: nothing breaks it (cron alone panics on "TZ=0"), and what it
// accepts comes.
func FuzzSchedule(f *testing.F) {
	for _, s := range []string{"@every 15m", "TZ=0", "TZ= ", "CRON_TZ=UTC 0 4 * * *", "0 0 31 2 *", "*/5 1-3,7 ? JAN-FEB MON", "@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSchedule(text)
		if err != nil {
			return
		}
		now := time.Unix(1e9, 0)
		require.True(t, s.Next(now).After(now))
	})
}

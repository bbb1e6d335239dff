package updater

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window says when a change may begin: "Mon-Fri 02:00-05:00 Europe/Berlin".
// Days come as names and ranges ("Mon,Wed-Fri", absent: every day), times as
// HH:MM to HH:MM, of which the second is not part of the window and may lie
// on the next day ("22:00-04:00"; "24:00" is allowed as an end), the time zone
// by its IANA name (absent: the machine's). Several windows are joined by ";".
// The zero Window is always open.
type Window struct {
	spec  string
	spans []span
}

// span is one window: on these days, from one wall-clock minute to another.
type span struct {
	days     [7]bool // by time.Weekday, the day on which the span begins
	from, to int     // minutes after midnight; to may exceed a day
	loc      *time.Location
}

const minutesPerDay = 24 * 60

// ParseWindow reads a window; "" and "always" are the zero Window.
func ParseWindow(s string) (Window, error) {
	if t := strings.TrimSpace(s); t == "" || strings.EqualFold(t, "always") {
		return Window{}, nil
	}
	w := Window{spec: s}
	for part := range strings.SplitSeq(s, ";") {
		sp, err := parseSpan(strings.Fields(part))
		if err != nil {
			return Window{}, fmt.Errorf("window %q: %w; write it as \"Mon-Fri 02:00-05:00 Europe/Berlin\"", s, err)
		}
		w.spans = append(w.spans, sp)
	}
	return w, nil
}

func parseSpan(fields []string) (span, error) {
	var sp span
	i := slices.IndexFunc(fields, func(f string) bool { return strings.Contains(f, ":") })
	switch {
	case i < 0:
		return span{}, errors.New("no times")
	case i > 1 || len(fields) > i+2:
		return span{}, errors.New("too many words")
	}
	sp.loc = time.Local
	if len(fields) == i+2 {
		loc, err := time.LoadLocation(fields[i+1])
		if err != nil {
			return span{}, fmt.Errorf("time zone %q is not known", fields[i+1])
		}
		sp.loc = loc
	}
	if i == 0 {
		sp.days = [7]bool{true, true, true, true, true, true, true}
	} else if err := parseDays(fields[0], &sp.days); err != nil {
		return span{}, err
	}
	from, to, ok := strings.Cut(fields[i], "-")
	if !ok {
		return span{}, fmt.Errorf("%q is not a span of time", fields[i])
	}
	var err error
	if sp.from, err = parseClock(from); err != nil {
		return span{}, err
	}
	if sp.to, err = parseClock(to); err != nil {
		return span{}, err
	}
	switch {
	case sp.from == minutesPerDay:
		return span{}, errors.New("24:00 can only be an end")
	case sp.from == sp.to:
		return span{}, errors.New("it begins when it ends")
	case sp.to < sp.from:
		sp.to += minutesPerDay
	}
	return sp, nil
}

func parseDays(s string, days *[7]bool) error {
	for item := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		a, b := weekday(first), weekday(last)
		if a < 0 || b < 0 {
			return fmt.Errorf("%q is not a day or a range of days", item)
		}
		for d := a; ; d = (d + 1) % 7 {
			days[d] = true
			if d == b {
				break
			}
		}
	}
	return nil
}

// weekday knows a day by three letters or its whole name; -1 is no day.
func weekday(s string) int {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(s, d.String()) || strings.EqualFold(s, d.String()[:3]) {
			return int(d)
		}
	}
	return -1
}

func parseClock(s string) (int, error) {
	if s == "24:00" {
		return minutesPerDay, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a time of day", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

// String is the window as it was written; "always" for the zero Window.
func (w Window) String() string {
	if w.spec == "" {
		return "always"
	}
	return w.spec
}

// MarshalText writes the window as it was written.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText reads what ParseWindow reads.
func (w *Window) UnmarshalText(text []byte) (err error) {
	*w, err = ParseWindow(string(text))
	return err
}

// Open reports whether a change may begin at now.
func (w Window) Open(now time.Time) bool {
	if len(w.spans) == 0 {
		return true
	}
	for _, sp := range w.spans {
		// A span that began the day before may still be open.
		for _, ago := range []int{0, 1} {
			from, to := sp.on(now, -ago)
			if !from.IsZero() && !now.Before(from) && now.Before(to) {
				return true
			}
		}
	}
	return false
}

// Next is when the window opens next after now; now itself when it is open.
func (w Window) Next(now time.Time) time.Time {
	if w.Open(now) {
		return now
	}
	var next time.Time
	for _, sp := range w.spans {
		// Eight days see every weekday once more, today's span being over.
		for ahead := range 9 {
			from, _ := sp.on(now, ahead)
			if from.After(now) && (next.IsZero() || from.Before(next)) {
				next = from
			}
		}
	}
	return next
}

// on is the span that begins so many days from now; zero times when there is
// none that day. Wall-clock times that a change to summer time skips are
// moved by time.Date past the gap, so a span within the gap is empty that day.
func (sp span) on(now time.Time, days int) (from, to time.Time) {
	y, m, d := now.In(sp.loc).Date()
	day := time.Date(y, m, d+days, 12, 0, 0, 0, sp.loc) // noon exists on every day
	if !sp.days[day.Weekday()] {
		return time.Time{}, time.Time{}
	}
	y, m, d = day.Date()
	return time.Date(y, m, d, 0, sp.from, 0, 0, sp.loc), time.Date(y, m, d, 0, sp.to, 0, 0, sp.loc)
}

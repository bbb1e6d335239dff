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

// Open reports whether a change may begin at now. What a clock on the wall
// reads decides: in the night in which it is put forward, a window within the
// hour that is left out does not come; in that in which it is put back, one
// within the hour that comes twice comes twice.
func (w Window) Open(now time.Time) bool {
	return len(w.spans) == 0 || slices.ContainsFunc(w.spans, func(sp span) bool { return sp.open(now) })
}

func (sp span) open(now time.Time) bool {
	wall := now.In(sp.loc)
	minute, today := wall.Hour()*60+wall.Minute(), wall.Weekday()
	yesterday := (today + 6) % 7
	return sp.days[today] && sp.from <= minute && minute < sp.to ||
		sp.days[yesterday] && minute+minutesPerDay < sp.to
}

// Next is when the window opens next after now; now itself when it is open.
func (w Window) Next(now time.Time) time.Time {
	if w.Open(now) {
		return now
	}
	var next time.Time
	for _, sp := range w.spans {
		if t := sp.next(now); next.IsZero() || t.Before(next) {
			next = t
		}
	}
	return next
}

// next is when a span that is shut opens. That is when a clock comes to read
// its beginning, or when it is put forward or back and then reads a time within.
// Each is looked at with every offset from UTC that the zone has meanwhile.
func (sp span) next(now time.Time) time.Time {
	// A span of one day in the week comes within seven days; an hour that is
	// left out can swallow that once, and a zone that changes sides of the date
	// line a day more.
	const days = 16
	end := now.AddDate(0, 0, days)
	var opens []time.Time
	for z := now.In(sp.loc); ; {
		_, offset := z.Zone()
		y, m, d := z.Date()
		for ahead := range days + 1 {
			utc := time.Date(y, m, d+ahead, 0, sp.from, 0, 0, time.UTC)
			opens = append(opens, utc.Add(-time.Duration(offset)*time.Second).In(sp.loc))
		}
		_, change := z.ZoneBounds()
		if change.IsZero() || change.After(end) {
			break
		}
		opens = append(opens, change)
		z = change
	}
	slices.SortFunc(opens, time.Time.Compare)
	for _, t := range opens {
		if t.After(now) && sp.open(t) {
			return t
		}
	}
	return end // not reached; looking again then is right whatever was missed
}

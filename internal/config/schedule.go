package config

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule says when passes begin.
type Schedule struct {
	written string
	cron    cron.Schedule
}

// ParseSchedule reads a cron line of five fields, with "CRON_TZ=Europe/Berlin"
// before it if it is not meant in the machine's time zone, "@hourly", "@daily"
// and their like, or "@every" with what ParseDuration takes, from a second up.
func ParseSchedule(s string) (Schedule, error) {
	const remedy = "write it as \"@every 15m\", \"@daily\" or \"CRON_TZ=Europe/Berlin 0 4 * * *\""
	line := strings.TrimSpace(s)
	if strings.HasPrefix(line, "TZ=") || strings.HasPrefix(line, "CRON_TZ=") {
		// robfig/cron v3.0.1 panics on a zone with nothing after it (its issue 554).
		zone, after, found := strings.Cut(line, " ")
		after = strings.TrimSpace(after)
		if !found || after == "" {
			return Schedule{}, fmt.Errorf("%q has a time zone and nothing after it; %s", s, remedy)
		}
		_, name, _ := strings.Cut(zone, "=")
		if _, err := time.LoadLocation(name); err != nil {
			return Schedule{}, fmt.Errorf("%q: time zone %q is not known; %s", s, name, remedy)
		}
		if strings.HasPrefix(after, "@every") {
			line = after // an interval is the same in every zone
		}
	}
	if interval, ok := strings.CutPrefix(line, "@every"); ok {
		// Parsed here, since cron's own knows no days and rounds 0 up to a second.
		d, err := ParseDuration(strings.TrimSpace(interval))
		if err == nil && d < time.Second {
			err = errors.New("less than a second")
		}
		if err != nil {
			return Schedule{}, fmt.Errorf("%q: %w", s, err)
		}
		return Schedule{s, cron.Every(d)}, nil
	}
	parsed, err := cron.ParseStandard(line)
	if _, interval := ParseDuration(line); err != nil && interval == nil {
		return Schedule{}, fmt.Errorf("%q is how long, and not when; write it as \"@every %s\"", s, line)
	}
	if err != nil {
		return Schedule{}, fmt.Errorf("%q is no schedule: %w; %s", s, err, remedy)
	}
	// cron gives up after five years: the 31st of February.
	if parsed.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Schedule{}, fmt.Errorf("%q never comes; %s", s, remedy)
	}
	return Schedule{s, parsed}, nil
}

// Next is the first time after now.
func (s Schedule) Next(now time.Time) time.Time { return s.cron.Next(now) }

// String is the schedule as it was written.
func (s Schedule) String() string { return s.written }

func readSchedule(r raw) (Schedule, error) {
	s, err := r.scalar("a schedule such as \"@every 15m\"", "!!str")
	if err != nil {
		return Schedule{}, err
	}
	return ParseSchedule(s)
}

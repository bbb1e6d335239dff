package play

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Lines are made for a terminal of 80 columns; a wider one is used up to 100.
const minWidth, maxWidth = 80, 100

// Screen prints the story. Its methods may be called from several goroutines.
type Screen struct {
	out   *os.File
	width int
	color bool

	mu    sync.Mutex
	since time.Time // when the act began
	acts  int
}

func newScreen(out *os.File) *Screen {
	s := &Screen{out: out, width: minWidth, since: time.Now()}
	if size, err := unix.IoctlGetWinsize(int(out.Fd()), unix.TIOCGWINSZ); err == nil {
		s.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		s.width = min(max(int(size.Col), minWidth), maxWidth)
	}
	return s
}

// The styles, of which nothing depends.
const (
	bold  = "1"
	dim   = "2"
	green = "32"
	cyan  = "36"
)

func (s *Screen) style(code, text string) string {
	if !s.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *Screen) print(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, format, args...)
}

// Title is printed once.
func (s *Screen) Title(text string) {
	s.print("\n%s\n%s\n\n", s.style(bold, text), strings.Repeat("=", utf8.RuneCountInString(text)))
}

// Act begins a part of the story; the clock of its events begins at zero.
func (s *Screen) Act(text string) {
	s.mu.Lock()
	s.acts++
	s.since = time.Now()
	text = fmt.Sprintf("%d. %s", s.acts, text)
	s.mu.Unlock()
	s.print("\n%s\n%s\n\n", s.style(bold, text), strings.Repeat("-", utf8.RuneCountInString(text)))
}

// Clock sets the time of the events back to zero.
func (s *Screen) Clock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = time.Now()
}

// Say is a paragraph.
func (s *Screen) Say(format string, args ...any) {
	s.print("%s\n", strings.Join(wrap(fmt.Sprintf(format, args...), s.width), "\n"))
}

// Fact is a row of a list: what, and how it is.
func (s *Screen) Fact(what, format string, args ...any) {
	const column = 14
	lines := wrap(fmt.Sprintf(format, args...), s.width-column-2)
	for i, line := range lines {
		if i > 0 {
			what = ""
		}
		s.print("  %s%s\n", s.style(bold, fmt.Sprintf("%-*s", column, what)), line)
	}
}

// Command is a line as a person would type it, with what it prints below.
func (s *Screen) Command(line, output string) {
	s.print("%s %s\n", s.style(dim, "$"), s.style(cyan, line))
	s.print("%s", output)
}

// Table is a command that prints a table.
func (s *Screen) Table(line, output string) {
	output, folded := fit(output, s.width)
	if folded {
		line += "   # shown here with each column on a line"
	}
	s.Command(line, output)
}

// Point is one of a list.
func (s *Screen) Point(text string) {
	for i, line := range wrap(text, s.width-4) {
		indent := "  "
		if i > 0 {
			indent = "    "
		}
		s.print("%s%s\n", indent, line)
	}
}

// Event is a line of what happens in an act, with the time since it began.
func (s *Screen) Event(who, format string, args ...any) {
	const column = 20
	s.mu.Lock()
	at := fmt.Sprintf("%6.1f s", time.Since(s.since).Seconds())
	s.mu.Unlock()
	lines := wrap(fmt.Sprintf(format, args...), s.width-column)
	for i, line := range lines {
		if i > 0 {
			at, who = "", ""
		}
		s.print("%s  %s%s\n", s.style(dim, fmt.Sprintf("%8s", at)), s.style(bold, fmt.Sprintf("%-10s", who)), line)
	}
}

// Held is a sentence that was proven.
func (s *Screen) Held(format string, args ...any) {
	for i, line := range wrap(fmt.Sprintf(format, args...), s.width-5) {
		mark := "ok"
		if i > 0 {
			mark = "  "
		}
		s.print("  %s %s\n", s.style(green, mark), line)
	}
}

// updaterd shows a line of updaterd's log, without what is the same in all.
func (s *Screen) updaterd(line string) {
	said := parseLog(line)
	if said["msg"] == "" {
		s.Event("updaterd", "%s", line)
		return
	}
	s.mu.Lock()
	begun := s.acts > 2
	s.mu.Unlock()
	if said["msg"] == "pass over" || said["reason"] == "in-progress" || said["reason"] == "up-to-date" && begun {
		return // nothing new
	}
	text := said["msg"]
	if level := said["level"]; level != "INFO" {
		text = level + " " + text
	}
	for _, key := range []string{"schedule", "watch", "verb", "who", "phase", "verdict", "reason", "detail", "gap", "err"} {
		value := Short(said[key])
		if key == "gap" {
			if d, err := time.ParseDuration(value); err != nil || d == 0 {
				continue
			} else {
				value = d.Round(time.Millisecond).String()
			}
		}
		switch {
		case value == "":
			continue
		case strings.Contains(value, " "):
			value = strconv.Quote(value)
		}
		text += " " + key + "=" + value
	}
	s.Event("updaterd", "%s", text)
}

// parseLog takes a line of slog's text format apart.
func parseLog(line string) map[string]string {
	fields := map[string]string{}
	for line != "" {
		key, rest, ok := strings.Cut(line, "=")
		if !ok {
			break
		}
		value, tail, _ := strings.Cut(rest, " ")
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			value, _ = strconv.Unquote(quoted)
			tail = strings.TrimPrefix(rest[len(quoted):], " ")
		}
		fields[key], line = value, tail
	}
	return fields
}

var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// Short cuts digests to what people compare.
func Short(text string) string {
	return digests.ReplaceAllStringFunc(text, func(d string) string { return d[:len("sha256:")+12] })
}

// wrap breaks text into lines at spaces. A word that is longer than a line
// stays whole, to be copied.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// columns are separated by two spaces or more.
var columns = regexp.MustCompile(` {2,}`)

// fit returns a table as it is when it is no wider than width, and else each
// row of it as a list of its columns: folded.
func fit(table string, width int) (text string, folded bool) {
	lines := strings.Split(strings.TrimRight(table, "\n"), "\n")
	fits := true
	for _, line := range lines {
		fits = fits && utf8.RuneCountInString(strings.TrimRight(line, " ")) <= width
	}
	if fits || len(lines) < 2 {
		return Short(strings.Join(lines, "\n") + "\n"), false
	}
	var starts []int
	for _, at := range columns.FindAllStringIndex(lines[0], -1) {
		starts = append(starts, at[1])
	}
	starts = append([]int{0}, starts...)
	cells := func(line string) []string {
		var all []string
		for i, from := range starts {
			to := len(line)
			if i+1 < len(starts) {
				to = min(to, starts[i+1])
			}
			all = append(all, strings.TrimSpace(line[min(from, to):to]))
		}
		return all
	}
	header := cells(lines[0])
	var b strings.Builder
	for n, line := range lines[1:] {
		if n > 0 {
			b.WriteString("\n")
		}
		for i, cell := range cells(line) {
			for j, part := range wrap(Short(cell), width-14) {
				name := header[i]
				if j > 0 {
					name = ""
				}
				fmt.Fprintf(&b, "  %-12s%s\n", name, part)
			}
		}
	}
	return b.String(), true
}

// Headings are the titles and acts of what was printed: the lines that are underlined.
func Headings(text string) []string {
	var all []string
	lines := strings.Split(text, "\n")
	for i := 1; i < len(lines); i++ {
		if lines[i] != "" && strings.Trim(lines[i], "=-") == "" {
			all = append(all, lines[i-1])
		}
	}
	return all
}

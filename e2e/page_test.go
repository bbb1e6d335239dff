package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/program"
	"github.com/updaterd/updaterd/e2e/stage"
)

// browser is a Chromium with one tab.
type browser struct {
	t   testing.TB
	ctx context.Context
	at  string // what goes before a path

	mu       sync.Mutex
	complain []string // what the browser found wrong
	foreign  []string // what it asked others for
}

func newBrowser(t testing.TB, address string) *browser {
	t.Helper()
	path, err := program.Get(t.Context(), "chromium-headless-shell", "chromium-headless-shell", os.Stderr)
	if _, apt := exec.LookPath("apt-get"); err != nil && os.Getenv("CI") == "" && (apt != nil || os.Geteuid() != 0) {
		t.Skip("no chromium here, and it cannot be had:", err)
	}
	require.NoError(t, err)
	// Debian's is a script that waits for its browser, which lives on when the script
	// is killed.
	if behind, err := exec.LookPath("/usr/lib/chromium/" + filepath.Base(path)); err == nil {
		path = behind
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.WSURLReadTimeout(time.Minute))
	alloc, end := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(end)
	tab, end := chromedp.NewContext(alloc)
	t.Cleanup(end)
	ctx, end := context.WithTimeout(tab, 3*time.Minute)
	t.Cleanup(end)
	b := &browser{t: t, ctx: ctx, at: "http://" + address}
	chromedp.ListenTarget(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.complain = append(b.complain, e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			// What is refused on purpose is no complaint, nor that networks come and go
			// on this machine as containers do.
			if e.Entry.Level == log.LevelError && !strings.Contains(e.Entry.Text, "status of 4") && !strings.Contains(e.Entry.Text, "ERR_NETWORK_CHANGED") {
				b.complain = append(b.complain, e.Entry.Text)
			}
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(e.Request.URL, b.at) {
				b.foreign = append(b.foreign, e.Request.URL)
			}
		}
	})
	b.do(log.Enable(), network.Enable())
	return b
}

func (b *browser) do(actions ...chromedp.Action) {
	b.t.Helper()
	require.NoError(b.t, chromedp.Run(b.ctx, actions...))
}

func (b *browser) open(path string) { b.t.Helper(); b.do(chromedp.Navigate(b.at + path)) }

// text is what a person reads.
func (b *browser) text() (text string) {
	b.t.Helper()
	// Between two pages there is none.
	if err := chromedp.Run(b.ctx, chromedp.Evaluate(`document.body ? document.body.innerText : ""`, &text)); err != nil {
		require.NoError(b.t, b.ctx.Err())
		return ""
	}
	return text
}

// sees waits until the page says something, by itself.
func (b *browser) sees(what string) {
	b.t.Helper()
	stage.Eventually(b.t, 30*time.Second, "the page to say "+what, func() bool { return strings.Contains(b.text(), what) })
}

// press opens what a button asks, and says yes.
func (b *browser) press(label, verb string) {
	b.t.Helper()
	confirm := fmt.Sprintf(`button[name="verb"][value=%q]`, verb)
	b.click(fmt.Sprintf(`//summary[text()=%q]`, label))
	// What is pressed on a page that is about to go is lost, so the next one is
	// waited for.
	b.do(chromedp.WaitVisible(confirm, chromedp.ByQuery), chromedp.Evaluate("window.pressed = true", nil))
	b.click(confirm)
	stage.Eventually(b.t, 20*time.Second, "the page after "+label, func() bool {
		var old bool
		err := chromedp.Run(b.ctx, chromedp.Evaluate(`window.pressed === true || document.readyState !== "complete"`, &old))
		return err == nil && !old
	})
}

// click presses what is there, as a person does who looks again when the page has
// just been renewed under the hand.
func (b *browser) click(what string) {
	b.t.Helper()
	stage.Eventually(b.t, 20*time.Second, "a click on "+what, func() bool {
		ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
		defer cancel()
		return chromedp.Run(ctx, chromedp.Click(what, chromedp.BySearch)) == nil
	})
}

// shot keeps a picture where $UPDATERD_SCREENSHOTS says.
func (b *browser) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("UPDATERD_SCREENSHOTS")
	if dir == "" {
		return
	}
	var png []byte
	b.do(chromedp.CaptureScreenshot(&png))
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600))
}

// TestPage is an hour of a person at a browser.
func TestPage(t *testing.T) {
	s := newSteered(t)
	b := newBrowser(t, s.address)
	one := "/workloads/local/" + s.name
	logIn := func(token string) {
		b.do(chromedp.SetValue("#token", token, chromedp.ByQuery), chromedp.SendKeys("#token", kb.Enter, chromedp.ByQuery))
	}

	b.do(emulation.SetDeviceMetricsOverride(1200, 800, 1, false))
	b.open(one) // leads to where one logs in
	b.sees("Log in")
	logIn("wrong")
	b.sees("No such token.")
	logIn(readToken)
	b.sees("ann, reading")
	b.sees("up-to-date")
	require.NotContains(t, b.text(), "Check now")
	b.click(`//button[text()="Log out"]`)
	b.sees("Log in")
	logIn(writeToken)
	b.sees("bob")
	var cookie string
	b.do(chromedp.Evaluate("document.cookie", &cookie))
	require.Empty(t, cookie, "scripts cannot read it")

	second := s.push("latest", stage.Image{Version: "v2"})
	b.click(`button[value="check"]`)
	b.sees("needs-approval")
	b.shot("page-list")
	b.press("Pause everything", "pause")
	b.sees("paused")
	b.click(`button[value="resume"]`)
	b.sees("needs-approval")
	b.do(chromedp.SetValue("#q", "no such thing", chromedp.ByQuery), chromedp.SendKeys("#q", kb.Enter, chromedp.ByQuery))
	b.sees("Nothing fits")
	b.open("/")

	b.click(fmt.Sprintf(`//a[text()=%q]`, "local/"+s.name))
	b.sees("What happened")
	b.press("Hold", "hold")
	b.sees("held by bob")
	b.press("Release", "release")
	b.sees("released by bob")
	b.press("Reject", "reject")
	b.sees("rejected by bob")
	b.press("Forget", "forget")
	b.sees("forgotten by bob")
	b.sees("needs-approval")

	// The change is held up until the page has said that it is under way.
	said := make(chan struct{})
	s.reg.Fail("GET", "/blobs/", 0, stage.Wait(said))

	// By the keyboard alone.
	b.do(
		chromedp.Focus(`//summary[text()="Approve"]`, chromedp.BySearch),
		chromedp.SendKeys(`//summary[text()="Approve"]`, kb.Enter, chromedp.BySearch),
		chromedp.WaitVisible(`button[value="approve"]`, chromedp.ByQuery),
		chromedp.Focus(`button[value="approve"]`, chromedp.ByQuery),
		chromedp.SendKeys(`button[value="approve"]`, kb.Enter, chromedp.ByQuery),
	)
	b.sees("Under way") // and that by itself, as all that follows
	close(said)
	b.sees("updated, from")
	s.updated("v2", second)
	b.press("Roll back", "rollback")
	b.sees("rolled-back by bob")
	s.updated("v1", s.first)
	b.press("Roll back", "rollback")
	b.sees("That was not done")
	b.click(`//a[text()="Back"]`)
	b.press("Forget", "forget")
	b.sees("needs-approval")
	s.pushBad("latest", "bad")
	b.press("Check now", "check")
	b.sees("needs-approval")
	b.press("Update now", "update")
	b.sees("restored by bob")
	b.click(`//summary[text()="The last lines that it wrote"]`)
	b.do(chromedp.WaitVisible("pre", chromedp.ByQuery))
	b.shot("page-workload")

	for _, path := range []string{"/", one} {
		b.do(emulation.SetDeviceMetricsOverride(360, 640, 2, true))
		b.open(path)
		var wide int
		b.do(chromedp.Evaluate("document.documentElement.scrollWidth", &wide))
		require.LessOrEqual(t, wide, 360, "%s on a phone", path)
		var nameless int
		b.do(chromedp.Evaluate(`[...document.querySelectorAll("input:not([type=hidden]), select, button, a")].filter(e => !(e.labels?.length || e.textContent.trim())).length`, &nameless))
		require.Zero(t, nameless, "%s has what a screen reader cannot name", path)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Empty(t, b.complain)
	require.Empty(t, b.foreign)
	require.Zero(t, s.daemon.Stop(20*time.Second))
}

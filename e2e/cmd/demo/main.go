// Demo shows updaterd at work on a real Docker Engine: a container that is
// moved to a new image, and put back when the next one is bad. It proves each
// sentence that it prints, and leaves nothing on the engine or the disk.
//
// It wants DOCKER_HOST, and UPDATERD_BIN to be the program to show; `make demo`
// gives it both. It exits with 0 when all held, 1 when something did not, and
// as the signal says when it was broken off.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/updaterd/updaterd/e2e/stage"
)

// limit is what the whole demo may take.
const limit = 2 * time.Minute

func main() { os.Exit(stage.With(run)) }

func run() int {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	// All signals until the end are taken: there is always something to remove.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	caught := make(chan syscall.Signal, 1)
	go func() {
		s := (<-signals).(syscall.Signal)
		caught <- s
		cancel()
	}()

	s := newScreen(os.Stdout)
	p := &play{ctx: ctx, screen: s}
	p.perform(func() { tell(p) })

	select {
	case signal := <-caught:
		fmt.Fprintln(os.Stderr, "demo: broken off; what it had made is removed")
		return 128 + int(signal)
	default:
	}
	if why := p.Why(); why != "" {
		fmt.Fprintf(os.Stderr, "\ndemo: this did not hold: %s\n\nWhat happened behind the scenes:\n%s", why, p.Details())
		return 1
	}
	s.left()
	return 0
}

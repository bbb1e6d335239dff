// Demo shows updaterd at work on a real Docker Engine: a container that is
// moved to a new image, and put back when the next one is bad. It proves each
// sentence that it prints, and leaves nothing on the engine or the disk.
//
// With -keep it then prints the address of updaterd's page, and leaves all of it up
// until it is interrupted.
//
// It wants DOCKER_HOST, and UPDATERD_BIN to be the program to show; `make demo`
// gives it both. It exits with 0 when all held, 1 when something did not, and
// as the signal says when it was broken off.
package main

import (
	"flag"
	"os"
	"time"

	"github.com/updaterd/updaterd/e2e/play"
	"github.com/updaterd/updaterd/e2e/stage"
)

// limit is what the whole demo may take, without the time that it is kept up.
const limit = 2 * time.Minute

func main() { os.Exit(stage.With(run)) }

func run() int {
	keep := flag.Bool("keep", false, "keep all of it up at the end, with updaterd's page, until it is interrupted")
	flag.Parse()
	return play.Perform(limit, func(p *play.Play) { tell(p, *keep) }, "removed again: the container, its volume and images, the registry, and updaterd with its files")
}

// Demo shows updaterd at work in a real Kubernetes: a Deployment that is moved to a
// new image, and moved back when the next one is bad. It proves each sentence that it
// prints, and what it does is what kubectl shows.
//
// It wants KUBECONFIG to lead to a private cluster with played nodes, kubectl on PATH,
// and UPDATERD_BIN to be the program to show; `make demo-cluster` gives it all three.
// It exits with 0 when all held, 1 when something did not, and as the signal says when
// it was broken off.
package main

import (
	"os"
	"time"

	"github.com/updaterd/updaterd/e2e/play"
	"github.com/updaterd/updaterd/e2e/stage"
)

// limit is what the whole demo may take.
const limit = 2 * time.Minute

func main() { os.Exit(stage.With(run)) }

func run() int {
	return play.Perform(limit, tell, "removed again: the namespaces, the registry, and updaterd with its files")
}

package e2e

import (
	"flag"
	"os"
	"testing"

	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

func TestMain(m *testing.M) {
	// These tests mostly wait, for gates above all; go test would run no more of
	// them at once than there are cores. What the caller says comes after this.
	// Podman is a program that is started for everything, so that more at once are
	// only slower there.
	atOnce := "10"
	if onPodman() {
		atOnce = "4"
	}
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	os.Exit(stage.Main(m))
}

// onPodman says that the engine is one; see docs/engines.md for what differs there.
func onPodman() bool { return engine.Kind(os.Getenv(engine.KindEnv)) == engine.Podman }

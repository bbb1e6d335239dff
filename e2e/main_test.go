package e2e

import (
	"flag"
	"os"
	"testing"

	"github.com/updaterd/updaterd/e2e/stage"
)

func TestMain(m *testing.M) {
	// These tests mostly wait, for gates above all; go test would run no more of
	// them at once than there are cores. What the caller says comes after this.
	if err := flag.Set("test.parallel", "10"); err != nil {
		panic(err)
	}
	os.Exit(stage.Main(m))
}

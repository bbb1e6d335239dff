package cluster

import (
	"flag"
	"os"
	"testing"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
)

func TestMain(m *testing.M) {
	// These tests mostly wait; go test would run no more of them at once than there
	// are cores. What the caller says comes after this.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(rig.Main(m))
}

package e2e

import (
	"os"
	"testing"

	"github.com/updaterd/updaterd/e2e/stage"
)

func TestMain(m *testing.M) { os.Exit(stage.Main(m)) }

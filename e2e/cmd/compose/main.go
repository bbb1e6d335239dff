// Compose runs the real Docker Compose that the tests use, building it first if
// this machine has none yet: `go run ./cmd/compose version`.
package main

import (
	"fmt"
	"os"
	"syscall"

	"github.com/updaterd/updaterd/e2e/stage"
)

func main() {
	bin, err := stage.ComposeBin()
	if err == nil {
		err = syscall.Exec(bin, append([]string{"docker-compose"}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, "compose:", err)
	os.Exit(1)
}

// Package e2e holds the tests of the built program against real Docker Engines
// and registries. It is a module of its own, so that what only tests need stays
// out of the program's requirements.
//
// Run it with `make test`, or here with `./engine.sh run go test ./...`.
package e2e

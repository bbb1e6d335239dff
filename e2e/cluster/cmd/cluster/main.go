// Cluster runs a command with a private Kubernetes: `cluster run CMD...` starts a
// control plane with three played nodes, one of them of another architecture, sets
// KUBECONFIG, puts kubectl on PATH, and leaves nothing behind. `cluster get` only
// makes the programs ready, and prints where they are.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/updaterd/updaterd/e2e/cluster/control"
	"github.com/updaterd/updaterd/e2e/cluster/node"
)

func main() {
	// What was started gets Ctrl-C too, and ends by it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (code int, err error) {
	if len(args) == 0 || args[0] == "run" && len(args) == 1 || args[0] != "run" && (args[0] != "get" || len(args) > 1) {
		return 2, errors.New("usage: cluster get, or cluster run CMD [ARG...]")
	}
	// The script knows where it lies, from wherever it is called.
	programs, err := control.Get(ctx, filepath.Join(os.Getenv("UPDATERD_E2E"), "cluster/kubernetes"), os.Stderr)
	if err != nil {
		return 1, err
	}
	if args[0] == "get" {
		fmt.Println(programs)
		return 0, nil
	}
	plane, err := control.Start(ctx, programs)
	if err != nil {
		return 1, err
	}
	defer func() {
		if stopped := plane.Stop(); stopped != nil {
			code, err = max(code, 1), errors.Join(err, stopped)
			return
		}
		fmt.Fprintln(os.Stderr, "cluster: ended the private one, and removed its files")
	}()
	fleet, err := node.Start(ctx, plane.Config(), node.Usual()...)
	if err != nil {
		return 1, err
	}
	defer fleet.Stop()
	fmt.Fprintln(os.Stderr, "cluster: started a private one; KUBECONFIG="+plane.Kubeconfig)

	cmd := exec.CommandContext(ctx, args[1], args[2:]...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+plane.Kubeconfig, "PATH="+string(programs)+":"+os.Getenv("PATH"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

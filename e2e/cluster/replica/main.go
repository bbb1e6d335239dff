// Replica carries out passes in a cluster with the parts of updaterd: the backend,
// the driver, the registry client and the settings of a configuration file. Its
// journal lies in the state directory, one process at a time. It takes `run`, `run
// --once`, `check` and `history`, and prints JSON.
//
// KUBECONFIG leads to the cluster, NAMESPACE is what is looked at, SELECTOR narrows
// that.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/updaterd/updaterd/internal/config"
	"github.com/updaterd/updaterd/internal/journal"
	"github.com/updaterd/updaterd/internal/kube"
	"github.com/updaterd/updaterd/internal/registry"
	"github.com/updaterd/updaterd/internal/updater"
	"k8s.io/client-go/tools/clientcmd"
)

const backend = "prod"

var errTrouble = errors.New("not all is well")

// silent tells nobody.
type silent struct{}

func (silent) Notify(context.Context, updater.Entry) {}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "replica:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := config.Load(os.Getenv("UPDATERD_CONFIG"), os.Environ())
	if err != nil {
		return err
	}
	file := journal.New(c.State, backend, log)
	print := json.NewEncoder(os.Stdout).Encode
	if args[0] == "history" {
		entries, err := file.Journal().History(ctx, 0)
		return errors.Join(err, print(entries))
	}
	client, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	reg, err := registry.New(registry.Options{Log: log, UserAgent: "updaterd"})
	if err != nil {
		return err
	}
	cluster, err := kube.New(kube.Options{Name: backend, REST: client, Namespaces: []string{os.Getenv("NAMESPACE")}, Selector: os.Getenv("SELECTOR"), Log: log})
	if err != nil {
		return err
	}
	defer cluster.Close()
	u := updater.New([]updater.Place{{Backend: cluster, State: file}}, updater.Rules{
		Settings: c.Settings, Schedule: c.Schedule, Jitter: c.Jitter, Parallel: c.Parallel,
		Registry: reg, Notifier: silent{},
	}, log)
	var rows []updater.Row
	switch {
	case args[0] == "check":
		rows, err = u.Check(ctx, nil)
	case slices.Contains(args, "--once"):
		rows, err = u.Once(ctx, nil)
	default:
		watching, end := context.WithCancel(ctx)
		defer end()
		go func() {
			if err := cluster.Run(watching); err != nil && watching.Err() == nil {
				log.Error("watching ended", "err", err)
			}
		}()
		return u.Run(ctx)
	}
	if slices.ContainsFunc(rows, updater.Row.Trouble) {
		err = errors.Join(err, errTrouble)
	}
	return errors.Join(print(rows), err)
}

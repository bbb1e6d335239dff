package stage

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/program"
)

// Compose is a project of the real Docker Compose on an engine: a directory with
// a compose.yaml. In that file ${MARK} is the value of Label, which each service
// and one-off needs among its labels, and ${REGISTRY} what the images of the
// test's registry begin with. All of the project goes when the test ends.
type Compose struct {
	// Project is its name, with which those of its containers begin.
	Project string
	// Dir is where its files are.
	Dir string
	// Env is added to the environment.
	Env []string

	bin string
	d   *Docker
	t   TB
}

// NewCompose makes a project of this compose.yaml; nothing is started.
func (d *Docker) NewCompose(reg *Registry, file string) *Compose {
	d.t.Helper()
	require.NotNil(d.t, shared.compose, "call stage.Main from TestMain")
	bin, err := shared.compose()
	require.NoError(d.t, err)
	c := &Compose{
		Project: d.Name("stack"), Dir: d.t.TempDir(), bin: bin, d: d, t: d.t,
		Env: []string{"DOCKER_HOST=" + d.Host, "MARK=" + d.Mark, "REGISTRY=" + reg.Host},
	}
	d.hosts[reg.Host] = true
	c.Write("compose.yaml", file)
	d.t.Cleanup(c.down)
	return c
}

// Write makes or replaces a file of the project.
func (c *Compose) Write(name, content string) {
	c.t.Helper()
	require.NoError(c.t, os.WriteFile(filepath.Join(c.Dir, name), []byte(content), 0o600))
}

// Run calls docker-compose with these arguments and returns what it said. It
// fails the test when that fails.
func (c *Compose) Run(args ...string) string {
	c.t.Helper()
	out, err := c.call(c.t.Context(), args)
	c.t.Logf("docker compose %s\n%s", strings.Join(args, " "), out)
	require.NoError(c.t, err, "docker compose %s: %s", strings.Join(args, " "), out)
	return out
}

func (c *Compose) call(ctx context.Context, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, append([]string{
		"--ansi", "never", "--project-directory", c.Dir, "-f", filepath.Join(c.Dir, "compose.yaml"), "-p", c.Project,
	}, args...)...)
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(key, "DOCKER_") && !strings.HasPrefix(key, "COMPOSE_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	// Nobody's logins, contexts and plugins.
	cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+c.Dir)
	if engine.Kind(os.Getenv(engine.KindEnv)) == engine.Podman {
		// It fails to show an image that another pull is just writing.
		cmd.Env = append(cmd.Env, "COMPOSE_PARALLEL_LIMIT=1")
	}
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// Up is "docker compose up -d", with these options of compose itself.
func (c *Compose) Up(options ...string) string {
	c.t.Helper()
	defer c.noteNames()
	return c.Run(slices.Concat(options, []string{"up", "-d", "--quiet-pull"})...)
}

// Container is the name of the first container of a service.
func (c *Compose) Container(service string) string { return c.Project + "-" + service + "-1" }

// Containers are the ids of all the project's containers, stopped ones and
// one-offs too, by name.
func (c *Compose) Containers() map[string]string {
	c.t.Helper()
	list, err := c.list(c.t.Context())
	require.NoError(c.t, err)
	ids := map[string]string{}
	for _, s := range list {
		for _, name := range s.Names {
			ids[strings.TrimPrefix(name, "/")] = s.ID
		}
	}
	return ids
}

func (c *Compose) list(ctx context.Context) ([]container.Summary, error) {
	return c.d.ContainerList(ctx, container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+c.Project)),
	})
}

// noteNames has the images kept by the names of the containers removed with
// them.
func (c *Compose) noteNames() {
	c.t.Helper()
	for name := range c.Containers() {
		if !slices.Contains(c.d.names, name) {
			c.d.names = append(c.d.names, name)
		}
	}
}

// down removes the project, and volumes that were anonymous before an update.
func (c *Compose) down() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), 2*time.Minute)
	defer cancel()
	list, err := c.list(ctx)
	if err != nil {
		c.t.Errorf("clean up the project %s: %v", c.Project, err)
	}
	var volumes []string
	for _, s := range list {
		if c.t.Failed() {
			inspect, err := c.d.ContainerInspect(ctx, s.ID)
			c.t.Logf("left on the engine: %s", describe(inspect, err))
		}
		for _, m := range s.Mounts {
			if m.Type == mount.TypeVolume {
				volumes = append(volumes, m.Name)
			}
		}
	}
	if out, err := c.call(ctx, []string{"--profile", "*", "down", "-v", "--remove-orphans", "-t", "1"}); err != nil {
		c.t.Errorf("clean up the project %s: %v\n%s", c.Project, err, out)
	}
	for _, v := range volumes {
		if err := c.d.VolumeRemove(ctx, v, true); err != nil && !errdefs.IsNotFound(err) {
			c.t.Errorf("clean up the project %s: %v", c.Project, err)
		}
	}
}

// ComposeBin is the path of Docker Compose, which is built from the module
// e2e/compose unless an earlier run has left it in the cache.
func ComposeBin() (string, error) {
	dir, err := moduleDir()
	if err != nil {
		return "", err
	}
	from := program.Module{Dir: filepath.Join(dir, "compose")}
	const main = "github.com/docker/compose/v2/cmd"
	bin, err := program.Built(context.Background(), "compose", "docker-compose", program.Sources{Files: from.Pins()}, os.Stderr,
		func(ctx context.Context, into string) error {
			_, err := from.Go(ctx, "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(into, "docker-compose"), main)
			return err
		})
	return filepath.Join(bin, "docker-compose"), err
}

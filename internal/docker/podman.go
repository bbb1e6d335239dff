package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// mostAsks is how often Podman is asked about images until none goes meanwhile.
const mostAsks = 20

// imageWentMeanwhile is what Podman says when an image went, or was still being
// written by a pull, in the middle of its answer.
var imageWentMeanwhile = regexp.MustCompile(`image not known|size is not known|locating item named`)

// steadily asks something about images. For each answer Podman reads all that it
// has, and it fails when one is removed or added in the middle of that: then it is
// asked again.
func steadily(ctx context.Context, ask func() error) error {
	for n := 1; ; n++ {
		err := ask()
		if n == mostAsks || !cerrdefs.IsInternal(err) || !imageWentMeanwhile.MatchString(err.Error()) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// wentMeanwhile reports whether a container went in the middle of Podman's answer
// about it, which is then an error of Podman's own.
func wentMeanwhile(err error) bool {
	return cerrdefs.IsInternal(err) && strings.Contains(err.Error(), "does not exist in database: no such container")
}

// podmanEnding is the state of a container whose program has ended, and which Podman
// may be about to start again; it is exited if nothing follows.
const podmanEnding container.ContainerState = "stopped"

// loops reports whether Podman is about to start a container again. There is
// nothing that it stops then, and the next start follows.
func loops(b *box) bool {
	return b.State.Status == podmanEnding && !b.HostConfig.RestartPolicy.IsNone() && b.HostConfig.RestartPolicy.Name != ""
}

// loopLimit is how long Podman may take to start a container again.
const loopLimit = 10 * time.Second

// endLoop goes on stopping a container that has been asked to stop. Between two starts
// of a crash loop there is nothing that Podman stops, and it does not note that the
// container is to stay so: the loop ends when a stop finds the program running.
func endLoop(ctx context.Context, look func() (*box, error), stop func() error) error {
	last, began := -1, time.Now()
	for {
		b, err := look()
		if err != nil || b == nil || !loops(b) && !b.running() {
			return err
		}
		if b.RestartCount != last {
			last, began = b.RestartCount, time.Now()
		}
		if loops(b) && time.Since(began) > loopLimit {
			return nil // nobody starts it again
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is started again each time: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
		if err := stop(); err != nil {
			return err
		}
	}
}

// podmanAPI is the version of Podman's own API that is spoken, which Podman 4 and
// later do.
const podmanAPI = "v4.0.0"

// withHealthcheck is the inspect of an image with its health check, which Podman
// leaves out of what it answers in Docker's API, and tells in its own. Without it
// nobody could tell the check of an image from a person's.
func withHealthcheck(ctx context.Context, cli *client.Client, raw json.RawMessage) (json.RawMessage, error) {
	image, config := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &image); err != nil {
		return nil, fmt.Errorf("reading the inspect of an image: %w", err)
	}
	var id string
	if err := errors.Join(json.Unmarshal(image["Id"], &id), json.Unmarshal(image["Config"], &config)); err != nil {
		return nil, fmt.Errorf("reading the inspect of an image: %w", err)
	}
	if _, told := config["Healthcheck"]; told {
		return raw, nil
	}
	var own struct{ Healthcheck *container.HealthConfig }
	if err := askBeyond(ctx, cli, "/"+podmanAPI+"/libpod/images/"+id+"/json", &own); err != nil {
		return nil, fmt.Errorf("asking Podman for the health check of image %s: %w", id, err)
	}
	if own.Healthcheck == nil {
		return raw, nil
	}
	var err error
	if config["Healthcheck"], err = json.Marshal(own.Healthcheck); err != nil {
		return nil, err
	}
	if image["Config"], err = json.Marshal(config); err != nil {
		return nil, err
	}
	return json.Marshal(image)
}

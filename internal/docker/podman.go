package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

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

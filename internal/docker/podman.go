package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

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
	if err := askPodman(ctx, cli, "/images/"+id+"/json", &own); err != nil {
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

// askPodman reads an answer of Podman's own API, which the client of Docker's
// cannot ask for.
func askPodman(ctx context.Context, cli *client.Client, path string, answer any) error {
	path = "/" + podmanAPI + "/libpod" + path
	conn, err := cli.Dialer()(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman"+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("GET %s: %s; if there is a proxy on the way, let it through: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	return json.Unmarshal(body, answer)
}

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"

	"github.com/updaterd/updaterd/internal/updater"
)

// pullIdle is how long a pull may tell nothing new before it is given up. The
// engine reports every second while bytes come; unpacking a large layer on a
// slow disk is silent for minutes.
const pullIdle = 5 * time.Minute

var errPullIdle = errors.New("the engine has made no progress for 5 minutes")

// pull brings ref, which names a digest, for this platform.
func (h *Host) pull(ctx context.Context, ref string, platform updater.Platform, report func(updater.Progress)) error {
	opts := image.PullOptions{}
	if platform.Architecture != "" {
		opts.Platform = platform.String()
	}
	if h.credential != nil {
		cred, err := h.credential(ctx, ref)
		if err != nil {
			return fmt.Errorf("asking for the credentials to pull %s: %w", ref, err)
		}
		if opts.RegistryAuth, err = encodeCredential(ref, cred); err != nil {
			return err
		}
	}
	report(updater.Progress{Step: "pulling"})

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(pullIdle, func() { cancel(errPullIdle) })
	defer idle.Stop()
	body, err := h.client().ImagePull(ctx, ref, opts)
	if err == nil {
		defer body.Close()
		err = follow(body, func(p updater.Progress) {
			idle.Reset(pullIdle)
			report(p)
		})
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("pulling %s: %w", ref, cause)
	}
	return pullError(ref, platform, err)
}

// encodeCredential writes a credential as the engine takes it with a pull; ""
// for an anonymous one.
func encodeCredential(ref string, cred updater.Credential) (string, error) {
	if cred == (updater.Credential{}) {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("image %q is no reference: %w", ref, err)
	}
	auth, err := registry.EncodeAuthConfig(registry.AuthConfig{
		Username: cred.Username, Password: cred.Password, IdentityToken: cred.IdentityToken,
		ServerAddress: reference.Domain(named),
	})
	if err != nil {
		return "", fmt.Errorf("encoding the credentials to pull %s: %w", ref, err)
	}
	return auth, nil
}

// message is one line of the stream that answers a pull.
type message struct {
	ID       string `json:"id"`
	Status   string `json:"status"`
	Progress struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error  string `json:"error"`
	Detail struct {
		Message string `json:"message"`
	} `json:"errorDetail"`
}

// follow reads the stream of a pull to its end. The engine has answered 200 by
// then: errors are in the stream. A stream that is cut off is one too.
func follow(r io.Reader, report func(updater.Progress)) error {
	type layer struct{ done, total int64 }
	layers := map[string]layer{}
	dec := json.NewDecoder(r)
	for {
		var m message
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the engine's answer: %w", err)
		}
		switch {
		case m.Detail.Message != "":
			return errors.New(m.Detail.Message)
		case m.Error != "":
			return errors.New(m.Error)
		}
		l := layers[m.ID]
		switch m.Status {
		case "Downloading":
			l = layer{done: m.Progress.Current, total: max(m.Progress.Total, l.total)}
		case "Download complete", "Pull complete":
			l.done = l.total
		}
		if m.ID != "" {
			layers[m.ID] = l
		}
		p := updater.Progress{Step: "pulling"}
		for _, l := range layers {
			p.Done += l.done
			p.Total += l.total
		}
		report(p)
	}
}

// pullError says what an engine's error at a pull means. Registries and engines
// tell these apart in words only.
func pullError(ref string, platform updater.Platform, err error) error {
	text := strings.ToLower(err.Error())
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) {
				return true
			}
		}
		return false
	}
	refusal := func(r updater.Reason, detail string) error {
		return &updater.Refusal{Reason: r, Detail: detail, Err: err}
	}
	switch {
	case has("no matching manifest", "does not match the specified platform", "no match for platform",
		"no image found in image index for architecture", "no image found in manifest list for architecture"): // Podman
		return refusal(updater.PlatformMissing, fmt.Sprintf("%s has no image for %s", ref, platform))
	case has("toomanyrequests", "too many requests", "rate limit"):
		return refusal(updater.RateLimited, fmt.Sprintf("the registry of %s asks for patience: log in there, or try later", ref))
	case has("manifest unknown", "manifest for", "name unknown", "name_unknown"),
		has("failed to resolve reference") && has(": not found"): // containerd
		return refusal(updater.NotFound, fmt.Sprintf("the registry no longer has %s", ref))
	case cerrdefs.IsUnauthorized(err) || has("unauthorized", "authentication required", "denied", "no basic auth credentials"):
		return refusal(updater.Unauthorized, fmt.Sprintf("the registry does not let updaterd pull %s: check its credentials", ref))
	case has("no space left on device"):
		return fmt.Errorf("pulling %s: the engine's disk is full, make room there (docker system df): %w", ref, err)
	}
	return fmt.Errorf("pulling %s: %w", ref, err)
}

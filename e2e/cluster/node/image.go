package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	corev1 "k8s.io/api/core/v1"
)

// Runtime is a container runtime, which shows in the form of the imageIDs.
type Runtime string

const (
	// Containerd shows the digest that a reference led to: of the index, if it is
	// one.
	Containerd Runtime = "containerd"
	// CRIO shows that of the manifest for the node's platform.
	CRIO Runtime = "cri-o"
	// Sideloaded is containerd with images that were not pulled but loaded: it shows
	// the digest of the configuration.
	Sideloaded Runtime = "sideloaded"
)

// image is one that a node has pulled.
type image struct {
	repository              string
	index, manifest, config v1.Hash
	env                     []string
	user                    string
	args                    []string
}

// id is the imageID in the status of a container.
func (i *image) id(r Runtime) string {
	switch r {
	case CRIO:
		return i.repository + "@" + i.manifest.String()
	case Sideloaded:
		return i.config.String()
	default:
		return i.repository + "@" + i.index.String()
	}
}

// shown is the image in the status of a container: a runtime that was asked for a
// digest knows no tag.
func (i *image) shown(ref string) string {
	if strings.Contains(ref, "@") {
		return i.config.String()
	}
	return ref
}

// pull asks a registry for an image, as containerd would. The error reads like
// its own.
func pull(ctx context.Context, ref, arch string, keys authn.Keychain, rt http.RoundTripper) (*image, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	fail := func(code, why string, args ...any) error {
		return fmt.Errorf("rpc error: code = %s desc = failed to pull and unpack image %q: "+why, append([]any{code, ref}, args...)...)
	}
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return nil, fail("InvalidArgument", "%w", err)
	}
	desc, err := remote.Get(parsed, remote.WithContext(ctx), remote.WithAuthFromKeychain(keys), remote.WithTransport(rt),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithRetryStatusCodes())
	var answered *transport.Error
	switch {
	case errors.As(err, &answered) && answered.StatusCode == http.StatusNotFound:
		return nil, fail("NotFound", "failed to resolve image: %s: not found", ref)
	case errors.As(err, &answered) && (answered.StatusCode == http.StatusUnauthorized || answered.StatusCode == http.StatusForbidden):
		return nil, fail("Unknown", "failed to resolve image: pull access denied, repository does not exist or may require authorization: authorization failed: no basic auth credentials")
	case errors.As(err, &answered):
		return nil, fail("Unknown", "failed to resolve image: unexpected status from HEAD request to http://%s/v2/%s: %d %s", parsed.Context().RegistryStr(), parsed.Context().RepositoryStr(), answered.StatusCode, http.StatusText(answered.StatusCode))
	case err != nil:
		return nil, fail("Unavailable", "failed to resolve image: failed to do request: %w", err)
	}
	foreign := fail("NotFound", "no match for platform in manifest: not found")
	img, err := desc.Image()
	if err != nil {
		// Of all that an index may fail by, only this is not the network.
		if strings.Contains(err.Error(), "no child with platform") {
			return nil, foreign
		}
		return nil, fail("Unavailable", "%w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fail("Unavailable", "%w", err)
	}
	if config.Architecture != arch {
		return nil, foreign
	}
	i := &image{
		repository: strings.TrimSuffix(parsed.Context().Name(), "/"), index: desc.Digest,
		env: config.Config.Env, user: config.Config.User, args: append(config.Config.Entrypoint, config.Config.Cmd...),
	}
	if i.manifest, err = img.Digest(); err == nil {
		i.config, err = img.ConfigName()
	}
	return i, err
}

// keychain holds what the pull secrets of a pod say, by the registry's name.
type keychain map[string]authn.AuthConfig

// Resolve implements authn.Keychain.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if c, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(c), nil
	}
	return authn.Anonymous, nil
}

// add takes in a secret of the type kubernetes.io/dockerconfigjson.
func (k keychain) add(s *corev1.Secret) error {
	var file struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file); err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	for host, c := range file.Auths {
		k[host] = c
	}
	return nil
}

// app is how the process in an image behaves: see stage.Behaviour, which is
// written into the environment of the image.
type app struct {
	version        string
	exit           *int
	exitAfter      time.Duration
	listenAfter    time.Duration
	hang           bool
	unhealthyAfter *time.Duration
	eatMemory      bool
	ignoreTerm     bool
	stopAfter      time.Duration
	log            []string
}

// behaviour is what a container's process will do, given its arguments and its
// environment, the last of a key counting.
func behaviour(args, env []string) (app, error) {
	vars := map[string]string{}
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		vars[key] = value
	}
	a := app{version: vars["APP_VERSION"]}
	a.log = append(a.log, fmt.Sprintf("app %s starts", a.version))
	if line := vars["APP_LOG"]; line != "" {
		a.log = append(a.log, line)
	}
	if len(args) == 0 {
		return a, errors.New("no command specified")
	}
	if args[0] != "/app" && args[0] != "/updaterd" {
		return a, fmt.Errorf("failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "+
			"unable to start container process: error during container init: exec: %q: stat %s: no such file or directory: unknown", args[0], args[0])
	}
	var errs []error
	number := func(s string) *int {
		n, err := strconv.Atoi(s)
		errs = append(errs, err)
		return &n
	}
	duration := func(key string) time.Duration {
		d, err := time.ParseDuration(vars[key])
		errs = append(errs, err)
		return d
	}
	has := func(key string) bool { return vars[key] != "" }
	if has("APP_EXIT_CODE") {
		a.exit = number(vars["APP_EXIT_CODE"])
	}
	if has("APP_EXIT_AFTER") {
		a.exitAfter = duration("APP_EXIT_AFTER")
		if a.exit == nil {
			a.exit = new(int)
		}
	}
	if a.hang = vars["APP_LISTEN_AFTER"] == "never"; !a.hang && has("APP_LISTEN_AFTER") {
		a.listenAfter = duration("APP_LISTEN_AFTER")
	}
	if has("APP_UNHEALTHY_AFTER") {
		d := duration("APP_UNHEALTHY_AFTER")
		a.unhealthyAfter = &d
	}
	if has("APP_STOP_AFTER") {
		a.stopAfter = duration("APP_STOP_AFTER")
	}
	a.eatMemory, a.ignoreTerm = has("APP_EAT_MEMORY"), has("APP_IGNORE_TERM")
	if len(args) == 3 && args[1] == "exit" {
		a.exit, a.exitAfter = number(args[2]), 0
	}
	if len(args) == 3 && args[1] == "get" {
		a.exit, a.exitAfter = new(int), 0 // There is nothing that it could reach.
	}
	return a, errors.Join(errs...)
}

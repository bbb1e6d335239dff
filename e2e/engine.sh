#!/usr/bin/env bash
# engine.sh run [--engine=KIND] CMD [ARG...]
#
# Runs CMD with DOCKER_HOST set to a Docker Engine: the one DOCKER_HOST or the
# default socket already names, if it answers; else a private one, which is
# started for CMD (installing Debian's docker.io if there is no dockerd; that
# needs root) and leaves nothing behind.
#
# With KIND it is a private one of that kind: 20.10, 29 (built from source the
# first time, and kept in $UPDATERD_CACHE or the user's cache), podman, or proxy
# (a proxy that forbids what updaterd does not need, before the one at hand).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v go >/dev/null; then
	echo "engine.sh: Go is needed: https://go.dev/doc/install" >&2
	exit 1
fi
go build -C "$here" -o "$here/../bin/engine" ./cmd/engine
UPDATERD_E2E=$here exec "$here/../bin/engine" "$@"

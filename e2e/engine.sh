#!/usr/bin/env bash
# engine.sh run CMD [ARG...]
#
# Runs CMD with DOCKER_HOST set to a Docker Engine: the one DOCKER_HOST or the
# default socket already names, if it answers; else a private one, which is
# started for CMD (installing Debian's docker.io if there is no dockerd; that
# needs root) and leaves nothing behind.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v go >/dev/null; then
	echo "engine.sh: Go is needed: https://go.dev/doc/install" >&2
	exit 1
fi
go build -C "$here" -o "$here/../bin/engine" ./cmd/engine
exec "$here/../bin/engine" "$@"

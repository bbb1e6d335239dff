#!/usr/bin/env bash
# cluster.sh run CMD [ARG...]
#
# Runs CMD with KUBECONFIG set to a private Kubernetes, and kubectl on PATH: a
# control plane with played nodes, which needs no root and leaves nothing behind.
# Kubernetes is built from source the first time, some 6 minutes on two cores, and
# kept in $UPDATERD_CACHE or the user's cache; `cluster.sh get` only does that.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v go >/dev/null; then
	echo "cluster.sh: Go is needed: https://go.dev/doc/install" >&2
	exit 1
fi
go build -C "$here/cluster" -o "$here/../bin/cluster" ./cmd/cluster
UPDATERD_E2E=$here exec "$here/../bin/cluster" "$@"

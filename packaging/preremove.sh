#!/bin/sh
# Before a removal, or the removal of what an upgrade replaces. deb: remove or
# upgrade; rpm: 0 for a removal.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

[ -d /run/systemd/system ] || exit 0
systemctl disable --now updaterd.service

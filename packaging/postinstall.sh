#!/bin/sh
# After an installation or an upgrade. deb: configure [OLD-VERSION]; rpm: 1 for a
# first installation, more for an upgrade.
set -e

case "$1" in
configure) [ -n "$2" ] && upgrade=yes || upgrade=no ;;
1) upgrade=no ;;
[0-9]*) upgrade=yes ;;
*) exit 0 ;; # a deb that takes back what failed
esac

systemd-sysusers /usr/lib/sysusers.d/updaterd.conf

[ -d /run/systemd/system ] || exit 0 # a container, or an image that is being made
systemctl daemon-reload
if [ "$upgrade" = yes ]; then
	# What an administrator stopped or disabled stays so. The old daemon finishes
	# the effect that it is at, and the new one goes on from the journal.
	systemctl try-restart updaterd.service
elif [ "$1" = configure ]; then
	systemctl enable --now updaterd.service
else
	systemctl preset updaterd.service # the custom where there are rpms
fi

#!/bin/sh
# After a removal. Only a purge takes what updaterd remembers: what it found bad,
# and the way back of a change that is not over.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = purge ]; then
	rm -rf /var/lib/updaterd
	rmdir /etc/updaterd 2>/dev/null || true # secrets of the administrator stay
fi

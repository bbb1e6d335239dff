// Package systemd tests the packages of updaterd under a real systemd, in a
// container of systemd-nspawn, with the socket of a private engine: make
// test-systemd. It needs root and Debian's packages, so its tests are behind the tag
// systemd.
package systemd

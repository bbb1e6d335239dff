package policy

import "strings"

// isMoving reports whether a word names no version but whatever is current.
func isMoving(word string) bool {
	switch strings.ToLower(word) {
	case "latest", "stable", "oldstable", "lts", "current", "mainline", "default",
		"release", "released", "releases", "main", "master", "trunk", "head", "rolling", "live",
		"prod", "production", "staging", "newest", "edge", "next", "nightly", "daily", "weekly",
		"dev", "devel", "develop", "development", "canary", "unstable", "testing",
		"experimental", "snapshot", "insiders", "preview":
		return true
	}
	return false
}

// isReleased reports whether a word before a version only says that it is one.
func isReleased(word string) bool {
	switch strings.ToLower(word) {
	case "release", "rel", "version", "ver":
		return true
	}
	return false
}

// isFlavour reports whether a word, its version left aside (alpine3.20), names
// a variant: what an image is built on, what is in it, what it runs on.
func isFlavour(word string) bool {
	if machineName(word) == len(word) {
		return true
	}
	switch strings.TrimRight(strings.ToLower(word), "0123456789.") {
	case "alpine", "slim", "debian", "ubuntu", "fedora", "centos", "rocky", "rockylinux",
		"almalinux", "ubi", "ubi-minimal", "photon", "wolfi", "busybox", "distroless", "scratch",
		"static", "musl", "glibc", "uclibc", "windowsservercore", "nanoserver", "ltsc",
		"jessie", "stretch", "buster", "bullseye", "bookworm", "trixie", "forky", "sid",
		"xenial", "bionic", "focal", "jammy", "noble",
		"fpm", "apache", "cli", "zts", "perl", "otel", "management", "rootless", "nonroot",
		"debug", "minimal", "full", "lite", "jre", "jdk", "fips",
		"cpu", "gpu", "cuda", "rocm", "openvino", "armnn", "rknn", "tensorrt":
		return true
	}
	return false
}

// isCodename reports whether a flavour is also the name of a release of a
// distribution, which may follow another by the alphabet.
func isCodename(word string) bool {
	switch strings.ToLower(word) {
	case "jessie", "stretch", "buster", "bullseye", "bookworm", "trixie", "forky",
		"xenial", "bionic", "focal", "jammy", "noble":
		return true
	}
	return false
}

// machineName returns the length of the name of an architecture that s begins
// with, or 0. Its digits are part of the name: arm32v7 comes before arm64v8 in
// no order.
func machineName(s string) int {
	if s == "" || !strings.ContainsRune("ailmprsx", rune(s[0])|0x20) {
		return 0 // most tags, at little cost
	}
	for _, name := range [...]string{
		"amd64", "x86_64", "x86-64", "x64", "x86", "i386", "i486", "i586", "i686",
		"arm64", "arm32", "armhf", "armv5", "armv6", "armv7", "armv8", "arm", "aarch64",
		"ppc64le", "ppc64", "s390x", "riscv64", "loong64", "loongarch64",
		"mips64le", "mips64", "mipsle", "mips",
	} {
		if len(s) < len(name) || !strings.EqualFold(s[:len(name)], name) {
			continue
		}
		end := len(name)
		switch {
		case end == len(s):
			return end
		case strings.HasPrefix(name, "armv") && (s[end] == 'l' || s[end] == 'h'): // armv7l, armv7hf
			end++
			if end < len(s) && s[end] == 'f' {
				end++
			}
		default: // arm64v8, arm64-v8, amd64v3, x86-64-v3
			at := end
			if s[at] == '-' || s[at] == '_' {
				at++
			}
			if at+1 < len(s) && (s[at] == 'v' || s[at] == 'V') && isDigit(s[at+1]) &&
				(at+2 == len(s) || isSeparator(s[at+2]) && (at == end || s[at+2] != '.')) {
				end = at + 2
			}
		}
		if end == len(s) || isSeparator(s[end]) {
			return end
		}
	}
	return 0
}

// prereleaseWord returns the name under which a word counts as a pre-release,
// or "" when it does not. numbered is whether digits follow it at once; single
// letters need them, for "b" alone is any letter.
func prereleaseWord(word string, numbered bool) string {
	if numbered {
		switch word {
		case "a":
			return "alpha"
		case "b":
			return "beta"
		case "M":
			return "milestone"
		}
	}
	switch lower := strings.ToLower(word); lower {
	case "alpha", "beta", "milestone", "pre", "preview", "rc",
		"dev", "develop", "nightly", "daily", "snapshot", "canary", "unstable", "edge",
		"next", "ea", "insiders", "experimental", "testing":
		return lower
	case "prerelease":
		return "pre"
	case "cr":
		return "rc"
	}
	return ""
}

// onLadder reports whether a pre-release is a step towards its release. The
// others (nightly, dev, snapshot) are streams of their own, and whoever runs
// rc.1 did not ask for them. On the ladder the order of the alphabet is that of
// maturity: alpha, beta, milestone, pre, preview, rc.
func onLadder(pre string) bool {
	switch pre {
	case "alpha", "beta", "milestone", "pre", "preview", "rc":
		return true
	}
	return false
}

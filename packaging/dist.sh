#!/usr/bin/env bash
# dist.sh DIR [VERSION]
#
# Makes all that is released, into DIR: for every architecture a static binary (in a
# tar with the unit, completions and manual pages) and its bill of materials, a deb
# and an rpm; an image for all of them; and checksums. The same commit makes the same
# files, to the byte. ARCHES chooses among amd64, arm64 and armv7.
set -eu
cd "$(dirname "$0")/.."
dist=$1
tag=${2:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}
read -ra arches <<<"${ARCHES:-amd64 arm64 armv7}"

nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
sbom=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

# Every date in what is made is the commit's.
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export GOFLAGS="-buildvcs=false -trimpath"
umask 022

# The version as packages want it: it begins with a digit, a pre-release sorts before
# the release, and what is built between two tags after the first.
version=$(sed -E 's/^v//; s/-([0-9]+)-g([0-9a-f]+)/+\1.\2/; s/-dirty$/+dirty/; s/-/~/' <<<"$tag")
case $version in
[0-9]*.*) ;;
*) version=0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d).$version ;;
esac

rm -rf "$dist"
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

common=$work/common
mkdir -p "$common/completions"
go run -tags man ./cmd/updaterd "$common/man"
go build -o "$work/updaterd" ./cmd/updaterd
"$work/updaterd" completion bash >"$common/completions/updaterd.bash"
"$work/updaterd" completion fish >"$common/completions/updaterd.fish"
"$work/updaterd" completion zsh >"$common/completions/_updaterd"

# A tar in which nothing tells when or by whom it was made.
pack() {
	tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX \
		-C "$1" -cf - "$2" | gzip -9n
}

images=()
for arch in "${arches[@]}"; do
	export GOOS=linux GOARCH=${arch%v7} GOARM=7 CGO_ENABLED=0
	echo "dist: $arch"
	stage=$work/$arch
	cp -r "$common" "$stage"
	go build -ldflags "-s -w -X main.version=$tag" -o "$stage/updaterd" ./cmd/updaterd

	name=updaterd-$version-linux-$arch
	mkdir -p "$work/tar-$arch/$name"
	cp -r "$stage/updaterd" "$stage/man" "$stage/completions" systemd LICENSE CHANGELOG.md packaging/updaterd.yaml "$work/tar-$arch/$name"
	pack "$work/tar-$arch" "$name" >"$dist/$name.tar.gz"

	host() { env -u GOOS -u GOARCH -u GOARM "$@"; }
	# The serial number and the time would differ from run to run.
	host go run $sbom bin -json -licenses -noserial -output "$work/sbom" "$stage/updaterd" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
	sed '/^ *"timestamp":/d' "$work/sbom" >"$dist/$name.cdx.json"

	gzip -9n "$stage"/man/*.1
	for packager in deb rpm; do
		ARCH=${arch/armv7/arm7} VERSION=$version STAGE=$stage \
			host go run $nfpm package --config packaging/nfpm.yaml --packager $packager --target "$dist" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
	done
	images+=("$arch=$stage/updaterd")
done
unset GOOS GOARCH GOARM CGO_ENABLED

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
go run -C e2e/image . -o "$dist/updaterd-$version-image.tar" -version "$version" -revision "$revision" "${images[@]}"

cd "$dist"
sha256sum -- * >"$work/sums"
mv "$work/sums" SHA256SUMS
ls -l

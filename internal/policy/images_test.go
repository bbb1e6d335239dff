package policy

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSelectAmongTagsOfWellKnownImages uses tags as these repositories have
// them, cut down to what matters.
func TestSelectAmongTagsOfWellKnownImages(t *testing.T) {
	const postgres = `latest alpine bookworm 17 17.0 17.1 17.2 17.2-alpine 17.2-alpine3.20 17.2-alpine3.21 17.2-bookworm 17-alpine 17-bookworm
		16 16.4 16.5 16.6 16-alpine 16.4-alpine 16.5-alpine 16.6-alpine 16.6-alpine3.20 16.6-alpine3.21 16-bookworm 16.6-bookworm 16.10-alpine
		18beta1 18beta1-alpine 18rc1 17rc1 17rc1-alpine 17beta3 15 15.9 15.10 15.9-alpine 9.6.24 9.6.24-alpine 9.6-alpine`
	const node = `latest lts lts-alpine lts-jod current current-alpine slim alpine bookworm bookworm-slim 22 22.9 22.9.0 22.10 22.10.0 22.11.0
		22-alpine 22.11.0-alpine 22.11.0-alpine3.19 22.11.0-alpine3.20 22.11.0-slim 22.11.0-bookworm-slim 22-bookworm-slim
		20.9.0 20.10.0 20.18.0 20.18.1 20.18.0-alpine 20.18.1-alpine 20.18.1-alpine3.20 20.18.1-slim 20.18.1-bookworm-slim 20-alpine 23.1.0 23.1.0-alpine
		chakracore-10.13.0 onbuild 6.14.3-onbuild`
	const linuxserver = `latest develop nightly 4.0.9 4.0.10 4.0.9.2244 4.0.10.2544 4.0.10.2544-ls243 4.0.10.2544-ls244 4.0.10.2544-ls1000 4.0.9.2244-ls240 4.0.9.2244-ls999
		version-4.0.10.2544 version-4.0.9.2244 amd64-4.0.10.2544-ls244 arm64v8-4.0.10.2544-ls244 arm64v8-4.0.9.2244-ls240 amd64-latest arm64v8-latest
		develop-4.0.11.2680-ls12 develop-version-4.0.11.2680`
	const bitnami = `latest 16 17 16.4.0 16.5.0 17.0.0 17.1.0 16.4.0-debian-12-r9 16.4.0-debian-12-r10 16.4.0-debian-12-r24 16.4.0-debian-11-r99 16.5.0-debian-12-r2
		17.0.0-debian-12-r0 17.1.0-debian-12-r3 16.4.0-photon-5-r50
		sha256-2f5d1cbb3b0d1f2b1b0ad3d7d8c3f0f0e1e2d3c4b5a697887766554433221100.sig sha256-2f5d1cbb3b0d1f2b1b0ad3d7d8c3f0f0e1e2d3c4b5a697887766554433221100
		17.1.0-debian-12-r3-metadata`
	const ubuntu = `latest devel rolling noble jammy focal 20.04 22.04 22.10 23.04 24.04 24.10 25.04 14.04.5 noble-20241011 jammy-20240911.1 jammy-20241004 jammy-20240627.1 focal-20241011 noble-20241015`
	const alpine = `latest edge 3 3.9 3.18 3.19 3.20 3.21 3.18.9 3.19.4 3.20.3 3.21.0 3.21.0_rc1 20240923 20241224 20231219`
	const php = `latest 8 8.2 8.3 8.4 8.3.13 8.3.14 8.3-fpm 8.3.13-fpm 8.3.14-fpm 8.3.14-fpm-alpine 8.3.13-fpm-alpine 8.3.13-fpm-alpine3.20 8.3.14-fpm-alpine3.19 8.3.14-fpm-alpine3.20
		8.4.1-fpm-alpine 8.4.0RC4-fpm-alpine 8.4.0RC4 8.4-rc-fpm-alpine 8.4.0RC10-fpm-alpine 8.5.0alpha1-fpm-alpine 8.4.1-cli-alpine 8.4.1-zts-alpine 8.4.1-apache apache fpm-alpine`
	const python = `latest 3 3.12 3.12.6 3.12.7 3.13 3.13.0 3.13.0-slim 3.12.7-slim 3.12.7-slim-bookworm 3.13.0-slim-bookworm 3.12.10-slim-bookworm 3.14.0a1 3.14.0a2 3.14.0b1 3.14.0rc1-slim 3.13.0rc2 3.13.0rc3
		3.13.0rc2-slim-bookworm 3.13.0rc3-slim-bookworm 3.14-rc slim slim-bookworm 3.12-windowsservercore-ltsc2022 3.12.7-windowsservercore-ltsc2019 3.12.8-windowsservercore-ltsc2022 3.12.7-windowsservercore-ltsc2022`
	const grafana = `latest main 10.4.12 11.2.3 11.3.0 11.3.0-ubuntu 11.2.3-ubuntu 11.3.0-77339 11.4.0-80019 main-ubuntu 11.3.0-security-01 9.5.21 12.0.0-pre nightly 11.3.1 11.10.0`
	const immich = `release release-cuda release-openvino main main-cuda v1.118.2 v1.119.0 v1.119.1 v1.120.0 v1.119.1-cuda v1.120.0-cuda v1.120.0-openvino v1.120.0-armnn v1 v1-cuda pr-13871 pr-9 commit-1d4d7b6ab55c0b4e2ae8b3b7a2a30d8d7a6cd1e6`
	const nginx = `latest mainline stable alpine stable-alpine stable-alpine3.20 alpine-slim 1.26 1.26.2 1.27 1.27.2 1.27.3 1.26.2-alpine 1.27.3-alpine 1.27.3-alpine3.20 1.27.3-alpine-slim 1.27.3-perl 1.27.3-alpine-perl 1.27.3-otel 1.27.3-bookworm 1.26-alpine 1.27-alpine 1-alpine`
	const redis = `latest alpine 7 7.2 7.4 7.2.5 7.2.6 7.4.0 7.4.1 7.4.1-alpine 7.4.1-bookworm 7.4.1-alpine3.20 7.2.6-alpine 8.0-M01 8.0-M02 8.0-M02-alpine 8.0-rc1 7.4-rc2 7.4-rc2-alpine 8.0-M04 6.2.16 6.2.16-alpine`
	const mariadb = `latest lts 10 10.11 10.11.9 10.11.10 11.4 11.4.3 11.4.4 11.5 11.5.2 11.6 11.6.2 11.7-rc 11.7.1-rc 11.4.4-noble 11.4.3-noble 11.4.4-ubi9 11.4-noble 11-noble 11.6.2-noble noble`
	const traefik = `latest v2.11 v2.11.12 v2.11.13 v3 v3.0 v3.1.7 v3.2 v3.2.0 v3.2.1 v3.3.0-rc1 v3.3.0-rc2 v3.2.0-rc1 v3.0.0-beta5 v3.2.1-windowsservercore-ltsc2022 v3.2.1-nanoserver-ltsc2022 v3.2.1-nanoserver-1809 munster saintnectaire 1.7 1.7.34 1.7.34-alpine experimental-v3.2`
	const homeAssistant = `latest stable beta rc dev 2024.9.3 2024.10.0 2024.10.1 2024.10.4 2024.11.0 2024.11.0b0 2024.11.0b10 2024.11.0b9 2024.12.0b1 2024.11.0.dev20241001 2024.12.0.dev20241101 0.118.5 2024.10 2024.11`
	const gitea = `latest latest-rootless nightly nightly-rootless 1 1-rootless 1.22 1.22.2 1.22.3 1.22.10 1.22.3-rootless 1.22.2-rootless 1.21.11 1.23.0-rc0 1.23.0-rc1-rootless 1.22-rootless 1.22.3-linux-amd64 1.22.3-linux-arm64 1.23-nightly 1.22-dev`
	const minio = `latest latest-cicd edge RELEASE.2024-09-22T00-33-43Z RELEASE.2024-10-02T17-50-41Z RELEASE.2024-10-13T13-34-11Z RELEASE.2024-10-13T13-34-11Z-cpuv1 RELEASE.2024-10-13T13-34-11Z.fips RELEASE.2024-10-29T16-01-48Z RELEASE.2024-10-29T16-01-48Z.hotfix.1a2b3c4d5`
	const keycloak = `latest nightly 25.0 25.0.6 25.0.6-0 26.0 26.0.0 26.0.0-0 26.0.5 26.0.5-0 26.0.5-1 26.0.5-10 26.0.0.Beta1 legacy 19.0.3-legacy`
	const rabbitmq = `latest management alpine management-alpine 3 3.13 3.13.6 3.13.7 3.13.7-management 3.13.7-management-alpine 3.13.7-alpine 4.0 4.0.2 4.0.3 4.0.3-management 4.0.3-management-alpine 4.0.2-management-alpine 4.1.0-beta.1-management-alpine 4.0.0-rc.2-management 4.1.0-beta.4-management 4.1.0-beta.11-management 3-management`
	const golang = `latest alpine bookworm 1 1.22 1.22.8 1.23 1.23.2 1.23.3 1.23.3-alpine 1.23.3-alpine3.19 1.23.3-alpine3.20 1.23.2-alpine3.20 1.22.8-alpine3.20 1.24rc1 1.24rc1-alpine 1.24rc2-alpine3.20 1.23-alpine3.20 1.23.3-nanoserver-1809 1.23.3-windowsservercore-1809 tip-20241101 tip`
	const wordpress = `latest php8.2-apache php8.3-apache php8.3-fpm-alpine 6 6.6 6.7 6.6.2 6.7.0 6.6.2-apache 6.6.2-php8.2-apache 6.7.0-php8.1-apache 6.7.0-php8.2-apache 6.7.0-php8.3-apache 6.7.0-php8.3-fpm-alpine beta-6.7-RC1 beta-6.7-RC1-apache cli-2.11.0 cli-2.11.0-php8.3`
	const prometheus = `latest main v2.53.3 v2.54.1 v2.55.0 v2.55.1 v3.0.0 v3.0.0-rc.1 v3.0.0-beta.0 v3.0.1 v2.55.1-distroless v3.0.1-busybox sha256-aaaabbbbccccddddeeeeffff00001111aaaabbbbccccddddeeeeffff00001111.att v2.55.0-rc.0 v2.55.0-rc.1`
	const jellyfin = `latest unstable 10 10.9 10.9.11 10.10.0 10.10.1 10.10.0-rc2 10.10.0-rc3 20241007.1-unstable 2024100706-unstable 2024101405-unstable 10.10.1-amd64 10.10.1-arm64 10.10.1.20241104-003457 20241104-003457 10.10.0.20241027-003101`
	const vaultwarden = `latest latest-alpine alpine testing testing-alpine 1.31.0 1.32.0 1.32.1 1.32.3 1.32.10 1.32.3-alpine 1.32.1-alpine 1.32.10-alpine 1.32.3-debian`
	const nextcloud = `latest apache fpm fpm-alpine stable production 28 28.0.12 29 29.0.8 29.0.9 30 30.0.1 30.0.2 30.0.2-fpm 30.0.2-fpm-alpine 29.0.9-fpm-alpine 29.0.8-fpm-alpine 30.0.2-apache 29-fpm 29.0-fpm 31.0.0-beta1 31.0.0-rc1-fpm`
	const ciBuilds = `main-1a2b3c4-1730000000 main-9f8e7d6-1730500000 main-abcdef1-1731000000 main-0000aaa-1729000000 dev-1a2b3c4-1739999999 1a2b3c4 9f8e7d6 8412345 1700000000`
	const llama = `server server-cuda server-b3995 server-b4000 server-b10001 server-cuda-b4000 full-b4000 light-b4001 b4000`
	const node16 = `16-alpine 16 18-alpine 16.20-alpine 16.20.2-alpine 8412345 1a2b3c4 a1b2c3d 20241001`

	for name, c := range map[string]struct {
		tags    string
		current string
		spec    Spec
		want    string
		reason  Reason
		dropped map[string]string
	}{
		"postgres alpine stays alpine and on two segments": {postgres, "16.4-alpine", Spec{Policy: "minor"}, "16.10-alpine", Update, map[string]string{
			"17.2-alpine":     "outside 16.x",
			"16.6":            "other variant: none, you run -alpine",
			"16.6-alpine3.21": "other variant: -alpine3.21, you run -alpine",
			"16.6-bookworm":   "other variant: -bookworm, you run -alpine",
			"16-alpine":       "1 segment, you run 2",
			"9.6.24-alpine":   "3 segments, you run 2",
			"alpine":          "no version",
			"15.9-alpine":     "outside 16.x",
			"18beta1-alpine":  "1 segment, you run 2",
			"latest":          "no version",
			"17.2-alpine3.20": "other variant: -alpine3.20, you run -alpine",
			"17rc1-alpine":    "1 segment, you run 2",
			"17beta3":         "other variant: none, you run -alpine",
			"9.6-alpine":      "outside 16.x",
			"17.2-bookworm":   "other variant: -bookworm, you run -alpine",
			"16.6-alpine3.20": "other variant: -alpine3.20, you run -alpine",
			"17.2-alpine3.21": "other variant: -alpine3.21, you run -alpine",
			"16-bookworm":     "other variant: -bookworm, you run -alpine",
			"18rc1":           "other variant: none, you run -alpine",
			"bookworm":        "no version",
		}},
		"postgres of one segment goes to the next release, not to its beta": {postgres, "16", Spec{Policy: "major"}, "17", Update, map[string]string{
			"18beta1": "pre-release", "18rc1": "pre-release", "15": "lower than 16", "17.2": "2 segments, you run 1",
		}},
		"postgres range on one segment and a variant": {postgres, "16-alpine", Spec{Policy: "semver:^16"}, "16-alpine", UpToDate, map[string]string{
			"17-alpine": "outside ^16", "16.6-alpine": "2 segments, you run 1",
		}},
		"postgres beta goes to the newest release candidate": {postgres, "17beta3", Spec{Policy: "major"}, "18rc1", Update, nil},
		"postgres release candidate goes to its release in range": {postgres, "17rc1", Spec{Policy: "semver:^17"}, "17", Update, map[string]string{
			"18rc1": "outside ^17", "17beta3": "pre-release less mature than rc",
		}},
		"postgres latest in range takes the most precise":        {postgres, "latest", Spec{Policy: "semver:^16"}, "16.6", Update, nil},
		"postgres alpine without a version stays alpine":         {postgres, "alpine", Spec{Policy: "semver:<17"}, "16.10-alpine", Update, map[string]string{"16.6": "other variant: none, you run alpine"}},
		"postgres numbers of a variant come after the version":   {postgres, "16.6-alpine3.20", Spec{Policy: "patch"}, "16.6-alpine3.21", Update, nil},
		"postgres below the range has somewhere to go":           {postgres, "15.9", Spec{Policy: "semver:^16"}, "16.6", Update, nil},
		"postgres above the range stays where it is":             {postgres, "17.2", Spec{Policy: "semver:^16"}, "", Downgrade, map[string]string{"16.6": "lower than 17.2", "17.1": "outside ^16"}},
		"postgres above the range goes down when it is allowed":  {postgres, "17.2", Spec{Policy: "semver:^16", AllowDowngrade: true}, "16.6", Update, nil},
		"postgres of a deleted tag does not go down":             {postgres, "17.3", Spec{Policy: "minor"}, "17.3", UpToDate, map[string]string{"17.2": "lower than 17.3"}},
		"postgres of a deleted tag goes down when it is allowed": {postgres, "17.3", Spec{Policy: "minor", AllowDowngrade: true}, "17.2", Update, nil},

		"node patch":                              {node, "20.18.0-alpine", Spec{Policy: "patch"}, "20.18.1-alpine", Update, map[string]string{"22.11.0-alpine": "outside 20.18.x", "20.18.1-alpine3.20": "other variant: -alpine3.20, you run -alpine"}},
		"node minor, 20.9 to 20.18":               {node, "20.9.0", Spec{Policy: "minor"}, "20.18.1", Update, map[string]string{"chakracore-10.13.0": "other prefix: chakracore-, you run none", "6.14.3-onbuild": "other variant: -onbuild, you run none"}},
		"node major":                              {node, "20.18.1-alpine", Spec{Policy: "major"}, "23.1.0-alpine", Update, nil},
		"node two segments stay":                  {node, "22.9", Spec{Policy: "minor"}, "22.10", Update, map[string]string{"22.11.0": "3 segments, you run 2"}},
		"node slim is not bookworm-slim":          {node, "20.18.1-slim", Spec{Policy: "major"}, "22.11.0-slim", Update, map[string]string{"22.11.0-bookworm-slim": "other variant: -bookworm-slim, you run -slim"}},
		"node range or range":                     {node, "20.9.0", Spec{Policy: "semver:~20.10 || ~22.10"}, "22.10.0", Update, map[string]string{"22.11.0": "outside ~20.10 || ~22.10"}},
		"node lts-alpine names a variant":         {node, "lts-alpine", Spec{Policy: "semver:^20"}, "20.18.1-alpine", Update, map[string]string{"20.18.1": "other variant: none, you run lts-alpine"}},
		"node lts names nothing":                  {node, "lts", Spec{Policy: "semver:^20"}, "20.18.1", Update, nil},
		"node bookworm-slim without version":      {node, "bookworm-slim", Spec{Policy: "semver:^22"}, "22.11.0-bookworm-slim", Update, nil},
		"node excluded versions are passed over":  {node, "20.9.0", Spec{Policy: "minor", Exclude: `^20\.18\.1`}, "20.18.0", Update, map[string]string{"20.18.1": "matched by exclude"}},
		"node include cannot change the variant":  {node, "20.9.0", Spec{Policy: "major", Include: `-alpine$`}, "", NoCandidate, map[string]string{"20.18.1-alpine": "other variant: -alpine, you run none", "22.11.0": "not matched by include"}},
		"node include says which variant of many": {node, "latest", Spec{Policy: "semver:^20", Include: `^[\d.]+-slim$`}, "20.18.1-slim", Update, nil},

		"linuxserver build number":                 {linuxserver, "4.0.10.2544-ls243", Spec{Policy: "patch"}, "4.0.10.2544-ls1000", Update, map[string]string{"4.0.9.2244-ls999": "lower than 4.0.10.2544-ls243", "4.0.10.2544": "other variant: none, you run -ls243"}},
		"linuxserver version before build":         {linuxserver, "4.0.9.2244-ls999", Spec{Policy: "newest"}, "4.0.10.2544-ls1000", Update, map[string]string{"develop-4.0.11.2680-ls12": "other prefix: develop-, you run none", "arm64v8-4.0.10.2544-ls244": "other prefix: arm64v8-, you run none"}},
		"linuxserver architecture stays":           {linuxserver, "arm64v8-4.0.9.2244-ls240", Spec{Policy: "minor"}, "arm64v8-4.0.10.2544-ls244", Update, nil},
		"linuxserver architecture without version": {linuxserver, "amd64-latest", Spec{Policy: "semver:^4", Include: "ls"}, "amd64-4.0.10.2544-ls244", Update, nil},
		"linuxserver version- stays":               {linuxserver, "version-4.0.9.2244", Spec{Policy: "major"}, "version-4.0.10.2544", Update, nil},
		"linuxserver four segments in a range":     {linuxserver, "4.0.9.2244", Spec{Policy: "semver:4.0.9"}, "4.0.9.2244", UpToDate, map[string]string{"4.0.10": "3 segments, you run 4"}},
		"linuxserver develop is nobody's release":  {linuxserver, "develop-4.0.11.2680-ls12", Spec{Policy: "major"}, "develop-4.0.11.2680-ls12", UpToDate, nil},

		"bitnami revision":            {bitnami, "16.4.0-debian-12-r9", Spec{Policy: "patch"}, "16.4.0-debian-12-r24", Update, map[string]string{"16.4.0-photon-5-r50": "other variant: -photon-5-r50, you run -debian-12-r9", "16.4.0-debian-11-r99": "lower than 16.4.0-debian-12-r9", "17.1.0-debian-12-r3": "outside 16.4.x"}},
		"bitnami minor":               {bitnami, "16.4.0-debian-12-r24", Spec{Policy: "minor"}, "16.5.0-debian-12-r2", Update, nil},
		"bitnami signatures are none": {bitnami, "latest", Spec{Policy: "newest"}, "17.1.0", Update, map[string]string{"sha256-2f5d1cbb3b0d1f2b1b0ad3d7d8c3f0f0e1e2d3c4b5a697887766554433221100": "signature, attestation or bill of materials", "sha256-2f5d1cbb3b0d1f2b1b0ad3d7d8c3f0f0e1e2d3c4b5a697887766554433221100.sig": "signature, attestation or bill of materials"}},

		"ubuntu major":                             {ubuntu, "22.04", Spec{Policy: "major"}, "25.04", Update, map[string]string{"14.04.5": "3 segments, you run 2", "20.04": "lower than 22.04", "noble-20241011": "other prefix: noble-, you run none"}},
		"ubuntu minor":                             {ubuntu, "22.04", Spec{Policy: "minor"}, "22.10", Update, nil},
		"ubuntu range":                             {ubuntu, "22.04", Spec{Policy: "semver:>=22.04 <24.10"}, "24.04", Update, nil},
		"ubuntu long term support by include":      {ubuntu, "20.04", Spec{Policy: "major", Include: `^\d[02468]\.04$`}, "24.04", Update, nil},
		"ubuntu dated build of one release":        {ubuntu, "noble-20241011", Spec{Policy: "newest"}, "noble-20241015", Update, map[string]string{"jammy-20241004": "other prefix: jammy-, you run noble-"}},
		"ubuntu dated build of one segment":        {ubuntu, "jammy-20240911.1", Spec{Policy: "newest"}, "jammy-20240911.1", UpToDate, map[string]string{"jammy-20241004": "1 segment, you run 2"}},
		"ubuntu release names by the alphabet":     {ubuntu, "focal", Spec{Policy: "alphabetical"}, "noble", Update, map[string]string{"rolling": "no version", "24.04": "a version, you run a word"}},
		"ubuntu release name is no other release":  {ubuntu, "jammy", Spec{Policy: "semver:>=22 <25"}, "", NoCandidate, map[string]string{"24.04": "other variant: none, you run jammy"}},
		"ubuntu release name to its dated build":   {ubuntu, "jammy", Spec{Policy: "newest"}, "jammy-20241004", Update, nil},
		"alpine dates of edge are no versions":     {alpine, "3", Spec{Policy: "major"}, "3", UpToDate, map[string]string{"20241224": "a date, you run a version"}},
		"alpine latest takes versions, not dates":  {alpine, "latest", Spec{Policy: "semver:*"}, "3.21.0", Update, map[string]string{"20241224": "a date, and there are versions", "3.21.0_rc1": "pre-release"}},
		"alpine two segments":                      {alpine, "3.9", Spec{Policy: "minor"}, "3.21", Update, nil},
		"alpine a date follows a date":             {alpine, "20231219", Spec{Policy: "newest"}, "20241224", Update, map[string]string{"3": "a version, you run a date"}},
		"php fpm-alpine":                           {php, "8.3.13-fpm-alpine", Spec{Policy: "major"}, "8.4.1-fpm-alpine", Update, map[string]string{"8.4.1-cli-alpine": "other variant: -cli-alpine, you run -fpm-alpine", "8.4.0RC4-fpm-alpine": "pre-release"}},
		"php release candidates are numbers":       {php, "8.4.0RC4-fpm-alpine", Spec{Policy: "patch", Exclude: `^8\.4\.1`}, "8.4.0RC10-fpm-alpine", Update, nil},
		"php release candidate to release":         {php, "8.4.0RC4-fpm-alpine", Spec{Policy: "minor"}, "8.4.1-fpm-alpine", Update, map[string]string{"8.5.0alpha1-fpm-alpine": "pre-release less mature than rc", "8.4-rc-fpm-alpine": "2 segments, you run 3"}},
		"php version of alpine comes second":       {php, "8.3.13-fpm-alpine3.20", Spec{Policy: "patch"}, "8.3.14-fpm-alpine3.20", Update, nil},
		"python slim-bookworm":                     {python, "3.12.7-slim-bookworm", Spec{Policy: "patch"}, "3.12.10-slim-bookworm", Update, nil},
		"python is not offered alphas":             {python, "3.12.6", Spec{Policy: "minor"}, "3.13.0", Update, map[string]string{"3.14.0a1": "pre-release", "3.14.0b1": "pre-release", "3.13.0-slim": "other variant: -slim, you run none"}},
		"python alpha goes to beta":                {python, "3.14.0a1", Spec{Policy: "minor"}, "3.14.0b1", Update, nil},
		"python release candidate, variant kept":   {python, "3.13.0rc2-slim-bookworm", Spec{Policy: "semver:^3.13.0-rc.0"}, "3.13.0-slim-bookworm", Update, nil},
		"python range that asks for pre-releases":  {python, "3.13.0", Spec{Policy: "semver:>=3.13.0-0"}, "3.14.0b1", Update, nil},
		"python Windows build is that of the host": {python, "3.12.7-windowsservercore-ltsc2019", Spec{Policy: "patch"}, "3.12.7-windowsservercore-ltsc2019", UpToDate, map[string]string{"3.12.8-windowsservercore-ltsc2022": "other variant: -windowsservercore-ltsc2022, you run -windowsservercore-ltsc2019"}},

		"grafana minor":                      {grafana, "11.2.3", Spec{Policy: "minor"}, "11.10.0", Update, map[string]string{"11.4.0-80019": "other variant: -80019, you run none", "12.0.0-pre": "pre-release", "11.3.0-security-01": "other variant: -security-01, you run none"}},
		"grafana ubuntu":                     {grafana, "11.2.3-ubuntu", Spec{Policy: "semver:^11"}, "11.3.0-ubuntu", Update, nil},
		"immich":                             {immich, "v1.118.2", Spec{Policy: "minor"}, "v1.120.0", Update, map[string]string{"commit-1d4d7b6ab55c0b4e2ae8b3b7a2a30d8d7a6cd1e6": "commit hash", "pr-13871": "other prefix: pr-, you run v", "v1": "1 segment, you run 3"}},
		"immich cuda":                        {immich, "v1.119.1-cuda", Spec{Policy: "semver:^1.119"}, "v1.120.0-cuda", Update, nil},
		"immich release-cuda names cuda":     {immich, "release-cuda", Spec{Policy: "semver:~1.119"}, "v1.119.1-cuda", Update, nil},
		"immich release names nothing":       {immich, "release", Spec{Policy: "semver:~1.119"}, "v1.119.1", Update, nil},
		"nginx alpine-slim":                  {nginx, "alpine-slim", Spec{Policy: "semver:^1.26"}, "1.27.3-alpine-slim", Update, nil},
		"nginx stable-alpine3.20":            {nginx, "stable-alpine3.20", Spec{Policy: "semver:^1.26"}, "1.27.3-alpine3.20", Update, nil},
		"nginx minor":                        {nginx, "1.26.2-alpine", Spec{Policy: "minor"}, "1.27.3-alpine", Update, map[string]string{"1.27.3-alpine-perl": "other variant: -alpine-perl, you run -alpine"}},
		"redis is not offered milestones":    {redis, "7.2", Spec{Policy: "major"}, "7.4", Update, map[string]string{"8.0-M01": "pre-release", "8.0-rc1": "pre-release"}},
		"redis milestone to candidate":       {redis, "8.0-M02", Spec{Policy: "major"}, "8.0-rc1", Update, nil},
		"redis variant of a milestone stays": {redis, "7.4-rc2-alpine", Spec{Policy: "major"}, "7.4-rc2-alpine", UpToDate, map[string]string{"8.0-M02-alpine": "pre-release less mature than rc"}},
		"mariadb":                            {mariadb, "11.4.3", Spec{Policy: "semver:>=11.4 <12"}, "11.6.2", Update, map[string]string{"11.7.1-rc": "pre-release", "11.4.4-ubi9": "other variant: -ubi9, you run none"}},
		"mariadb noble":                      {mariadb, "11.4.3-noble", Spec{Policy: "patch"}, "11.4.4-noble", Update, nil},
		"mariadb patch, 9 to 10":             {mariadb, "10.11.9", Spec{Policy: "patch"}, "10.11.10", Update, nil},
		"traefik v stays":                    {traefik, "v2.11.12", Spec{Policy: "major"}, "v3.2.1", Update, map[string]string{"1.7.34": "other prefix: none, you run v", "v3.3.0-rc1": "pre-release", "experimental-v3.2": "other prefix: experimental-v, you run v", "munster": "no version"}},
		"traefik no v stays":                 {traefik, "1.7", Spec{Policy: "major"}, "1.7", UpToDate, nil},
		"traefik candidate to next":          {traefik, "v3.2.0-rc1", Spec{Policy: "minor"}, "v3.3.0-rc2", Update, nil},
		"traefik nanoserver build stays":     {traefik, "v3.1.7-nanoserver-1809", Spec{Policy: "minor"}, "v3.2.1-nanoserver-1809", Update, nil},

		"home assistant":                                   {homeAssistant, "2024.9.3", Spec{Policy: "major"}, "2024.11.0", Update, map[string]string{"2024.12.0b1": "pre-release", "2024.12.0.dev20241101": "pre-release", "0.118.5": "lower than 2024.9.3"}},
		"home assistant patch":                             {homeAssistant, "2024.10.0", Spec{Policy: "patch"}, "2024.10.4", Update, nil},
		"home assistant from before calver":                {homeAssistant, "0.118.5", Spec{Policy: "newest"}, "2024.11.0", Update, nil},
		"home assistant beta, 9 to 10":                     {homeAssistant, "2024.11.0b9", Spec{Policy: "semver:~2024.11.0-0", Exclude: `^2024\.11\.0$`}, "2024.11.0b10", Update, nil},
		"home assistant beta to next beta":                 {homeAssistant, "2024.11.0b0", Spec{Policy: "newest"}, "2024.12.0b1", Update, map[string]string{"2024.12.0.dev20241101": "pre-release of another kind: dev, you run beta"}},
		"home assistant dev to next dev":                   {homeAssistant, "2024.11.0.dev20241001", Spec{Policy: "newest"}, "2024.12.0.dev20241101", Update, nil},
		"gitea rootless":                                   {gitea, "1.22.2-rootless", Spec{Policy: "minor"}, "1.22.3-rootless", Update, map[string]string{"1.22.10": "other variant: none, you run -rootless", "1.23.0-rc1-rootless": "pre-release"}},
		"gitea latest-rootless":                            {gitea, "latest-rootless", Spec{Policy: "semver:^1"}, "1.22.3-rootless", Update, nil},
		"gitea architecture in the suffix":                 {gitea, "1.22.3-linux-amd64", Spec{Policy: "major"}, "1.22.3-linux-amd64", UpToDate, map[string]string{"1.22.3-linux-arm64": "other variant: -linux-arm64, you run -linux-amd64"}},
		"minio timestamps":                                 {minio, "RELEASE.2024-09-22T00-33-43Z", Spec{Policy: "newest"}, "RELEASE.2024-10-29T16-01-48Z", Update, map[string]string{"RELEASE.2024-10-13T13-34-11Z.fips": "other variant: -10-13T13-34-11Z.fips, you run -09-22T00-33-43Z"}},
		"minio variant":                                    {minio, "RELEASE.2024-10-02T17-50-41Z-cpuv1", Spec{Policy: "newest"}, "RELEASE.2024-10-13T13-34-11Z-cpuv1", Update, nil},
		"minio timestamps by the alphabet":                 {minio, "RELEASE.2024-09-22T00-33-43Z", Spec{Policy: "alphabetical"}, "RELEASE.2024-10-29T16-01-48Z", Update, nil},
		"minio latest takes the plain one of its variants": {minio, "latest", Spec{Policy: "newest"}, "RELEASE.2024-10-29T16-01-48Z", Update, nil},
		"minio latest with include":                        {minio, "latest", Spec{Policy: "newest", Include: `^RELEASE\.[^.]*Z$`}, "RELEASE.2024-10-29T16-01-48Z", Update, nil},
		"keycloak":                                         {keycloak, "25.0.6", Spec{Policy: "major"}, "26.0.5", Update, map[string]string{"26.0.5-10": "other variant: -10, you run none", "26.0.0.Beta1": "pre-release"}},
		"keycloak build":                                   {keycloak, "26.0.5-0", Spec{Policy: "patch"}, "26.0.5-10", Update, nil},
		"rabbitmq management-alpine":                       {rabbitmq, "3.13.7-management-alpine", Spec{Policy: "major"}, "4.0.3-management-alpine", Update, map[string]string{"4.1.0-beta.1-management-alpine": "pre-release"}},
		"rabbitmq management":                              {rabbitmq, "management", Spec{Policy: "semver:^3"}, "3.13.7-management", Update, nil},
		"rabbitmq beta, 4 to 11":                           {rabbitmq, "4.1.0-beta.4-management", Spec{Policy: "semver:^4"}, "4.1.0-beta.11-management", Update, nil},
		"golang":                                           {golang, "1.22.8-alpine3.20", Spec{Policy: "minor"}, "1.23.3-alpine3.20", Update, map[string]string{"1.23.3-alpine": "other variant: -alpine, you run -alpine3.20", "tip-20241101": "other prefix: tip-, you run none"}},
		"golang candidate":                                 {golang, "1.24rc1-alpine", Spec{Policy: "minor"}, "1.24rc1-alpine", UpToDate, map[string]string{"1.24rc2-alpine3.20": "other variant: -alpine3.20, you run -alpine"}},
		"wordpress numbers of the variant":                 {wordpress, "6.6.2-php8.2-apache", Spec{Policy: "minor"}, "6.7.0-php8.3-apache", Update, map[string]string{"beta-6.7-RC1-apache": "other prefix: beta-, you run none"}},
		"wordpress php held by include":                    {wordpress, "6.6.2-php8.2-apache", Spec{Policy: "minor", Include: `-php8\.2-apache$`}, "6.7.0-php8.2-apache", Update, nil},
		"wordpress without its own version":                {wordpress, "php8.2-apache", Spec{Policy: "minor"}, "php8.3-apache", Update, map[string]string{"php8.3-fpm-alpine": "other variant: -fpm-alpine, you run -apache"}},
		"prometheus in range":                              {prometheus, "v2.53.3", Spec{Policy: "semver:^2"}, "v2.55.1", Update, map[string]string{"v3.0.1": "outside ^2", "v2.55.1-distroless": "other variant: -distroless, you run none"}},
		"prometheus candidate below 3":                     {prometheus, "v2.55.0-rc.0", Spec{Policy: "semver:<3"}, "v2.55.1", Update, map[string]string{"v3.0.0-rc.1": "outside <3"}},
		"prometheus range without v covers v":              {prometheus, "latest", Spec{Policy: "semver:2.x"}, "v2.55.1", Update, nil},
		"jellyfin":                                         {jellyfin, "10.9.11", Spec{Policy: "minor"}, "10.10.1", Update, map[string]string{"10.10.0-rc3": "pre-release", "10.10.1-amd64": "other variant: -amd64, you run none"}},
		"jellyfin stamped builds":                          {jellyfin, "10.10.0.20241027-003101", Spec{Policy: "newest"}, "10.10.1.20241104-003457", Update, nil},
		"jellyfin unstable":                                {jellyfin, "2024100706-unstable", Spec{Policy: "newest"}, "2024101405-unstable", Update, nil},
		"vaultwarden alpine":                               {vaultwarden, "1.32.1-alpine", Spec{Policy: "minor"}, "1.32.10-alpine", Update, nil},
		"vaultwarden latest":                               {vaultwarden, "latest", Spec{Policy: "newest"}, "1.32.10", Update, nil},
		"nextcloud one major at a time by include":         {nextcloud, "28.0.12", Spec{Policy: "semver:^29"}, "29.0.9", Update, nil},
		"nextcloud fpm-alpine":                             {nextcloud, "29.0.8-fpm-alpine", Spec{Policy: "patch"}, "29.0.9-fpm-alpine", Update, nil},
		"builds of a branch by time, any commit":           {ciBuilds, "main-1a2b3c4-1730000000", Spec{Policy: "newest"}, "main-abcdef1-1731000000", Update, map[string]string{"dev-1a2b3c4-1739999999": "other prefix: dev-*-, you run main-*-", "1a2b3c4": "commit hash"}},
		"builds of a branch by extract":                    {ciBuilds, "main-1a2b3c4-1730000000", Spec{Policy: "alphabetical", Include: `^main-[0-9a-f]+-(?P<time>\d+)$`, Extract: "${time}"}, "main-abcdef1-1731000000", Update, nil},
		"a hash of digits alone is no version":             {node16, "16", Spec{Policy: "major"}, "16", UpToDate, map[string]string{"8412345": "commit hash (as long as the others here)", "20241001": "a date, you run a version"}},
		"16-alpine in ^16":                                 {node16, "16-alpine", Spec{Policy: "semver:^16"}, "16-alpine", UpToDate, map[string]string{"18-alpine": "outside ^16"}},
		"16-alpine in >=16":                                {node16, "16-alpine", Spec{Policy: "semver:>=16"}, "18-alpine", Update, nil},
		"llama.cpp build numbers":                          {llama, "server-b3995", Spec{Policy: "newest"}, "server-b10001", Update, map[string]string{"server-cuda-b4000": "other prefix: server-cuda-b, you run server-b"}},
	} {
		t.Run(name, func(t *testing.T) {
			rule, err := Parse(c.spec)
			require.NoError(t, err)
			tags := strings.Fields(c.tags)
			rand.Shuffle(len(tags), func(i, j int) { tags[i], tags[j] = tags[j], tags[i] })
			got := rule.Select(c.current, append(tags, tags[:len(tags)/2]...))
			require.Equal(t, c.want, got.Tag, got.Detail)
			require.Equal(t, c.reason, got.Reason, got.Detail)
			require.Len(t, got.Tags, len(tags), "every tag once")
			for tag, why := range c.dropped {
				require.Contains(t, got.Tags, TagVerdict{Tag: tag, Verdict: Dropped, Why: why})
			}
		})
	}
}

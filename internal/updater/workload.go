package updater

// Workload is one thing that runs one image, as its backend found it.
type Workload struct {
	// ID names it everywhere: backend and container name ("local/web") on a
	// Docker host; backend, namespace, kind, name and container in a cluster.
	ID      string
	Backend string
	// Namespace and Kind are empty on a Docker host.
	Namespace, Kind string
	Name            string
	// Image is the reference as the workload writes it: "nginx",
	// "ghcr.io/acme/web:1.4", "repo:tag@sha256:...".
	Image string
	// Write is how references are written here where no setting says so; the zero
	// Write is WriteTag.
	Write Write
	// Labels are what rules match on.
	Labels map[string]string
	// Written are the settings written on the workload itself, by key and
	// without their prefix: {"policy": "minor"}.
	Written map[string]string
	Runs    Running
	// Logins are what it brings to get at its image; nil brings none.
	Logins Logins
	// Skip, when set, is the backend's own reason to leave the workload alone.
	Skip *Refusal
	// DependsOn are ids of workloads of the same backend that the platform
	// (compose) says this one needs.
	DependsOn []string
}

// Running is what a backend knows of the image that runs. Any of its fields
// may be empty: engines differ in what they remember.
type Running struct {
	// Digests are all digests under which the workload's repository is known
	// to have served the image that runs. One image has several: an index that
	// was pushed again around the same platform's image is a new digest.
	Digests []string
	// Manifest is the digest of this platform's manifest.
	Manifest string
	// Config is the digest of the image's config (the image id of engines
	// without the containerd store).
	Config   string
	Platform Platform
}

// Digest is the digest to show for what runs, or "" when none is known.
func (r Running) Digest() string {
	if len(r.Digests) > 0 {
		return r.Digests[0]
	}
	return r.Manifest
}

// Is reports whether img is what runs: the same digest, or another index
// around the same image for this platform.
func (r Running) Is(img Image) bool {
	for _, d := range r.Digests {
		if d == img.Digest {
			return true
		}
	}
	return r.Manifest != "" && (r.Manifest == img.Digest || r.Manifest == img.Manifest) ||
		r.Config != "" && r.Config == img.Config
}

// Platform is what an image must be built for.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Image is one image in a registry.
type Image struct {
	// Ref is the reference as it is, or would be, written on the workload.
	Ref string `json:"image"`
	// Digest is what the tag resolves to: that of the index, where there is one.
	Digest string `json:"digest"`
	// Manifest and Config are the digests of this platform's manifest and
	// config, where they were asked for. Two indexes with the same Manifest
	// bring the same image.
	Manifest string `json:"manifest,omitempty"`
	Config   string `json:"config,omitempty"`
}

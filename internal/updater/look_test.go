package updater

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/policy"
)

// registry is a registry that holds what its tables say.
type registry struct {
	tags    map[string][]string // by repository
	digests map[string]string   // by reference
	images  map[string]Image    // by digest
	err     error               // of every question
	asked   []string
	lying   bool // it names digests that it does not have
	as      []Logins
}

func (r *registry) Tags(_ context.Context, ref string) ([]string, error) {
	r.asked = append(r.asked, "tags of "+ref)
	return r.tags[ref], r.err
}

func (r *registry) Resolve(_ context.Context, ref string) (string, error) {
	r.asked = append(r.asked, "digest of "+ref)
	d, ok := r.digests[ref]
	if !ok && r.err == nil {
		return "", &Refusal{Reason: NotFound, Detail: ref + " is not there"}
	}
	return d, r.err
}

func (r *registry) Image(_ context.Context, ref, digest string, p Platform) (Image, error) {
	r.asked = append(r.asked, "image of "+ref+"@"+digest)
	img, ok := r.images[digest]
	if r.lying {
		return Image{}, &Refusal{Reason: NotFound, Detail: digest + " is not there"}
	}
	if !ok {
		return Image{}, &Refusal{Reason: PlatformMissing, Detail: fmt.Sprintf("%s has no image for %s", ref, p)}
	}
	img.Ref, img.Digest = ref, digest
	return img, nil
}

// As notes who asks.
func (r *registry) As(l Logins) Registry {
	r.as = append(r.as, l)
	return r
}

func (r *registry) NewPass() {}

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// bundle brings nothing.
type bundle struct{}

func (bundle) Read(context.Context, bool) ([]Login, string) { return nil, "" }

func TestAWorkloadIsLookedForByItsOwnLogins(t *testing.T) {
	r := &registry{digests: map[string]string{"web:1": digestA}}
	look(t.Context(), r, Workload{Image: "web:1", Logins: bundle{}}, Settings{Policy: policy.Spec{Policy: "digest"}}, Record{}, time.Now())
	look(t.Context(), r, Workload{Image: "web:1"}, Settings{Policy: policy.Spec{Policy: "digest"}}, Record{}, time.Now())
	require.Equal(t, []Logins{bundle{}, nil}, r.as)
}

func TestLook(t *testing.T) {
	now := after(0)
	amd64 := Platform{OS: "linux", Architecture: "amd64"}
	runs := Running{Digests: []string{digestA}, Manifest: "sha256:ma", Platform: amd64}
	held := func() *registry {
		return &registry{
			tags: map[string][]string{"web": {"1.0", "1.1", "1.2-alpine", "2.0"}, "quay.io:443/a/web": {"1.0", "1.1"}, "few": {"1.0"}, "none": {}},
			digests: map[string]string{
				"web": digestB, "web:latest": digestB, "web:1.0": digestA, "web:1.1": digestB, "web:2.0": digestB,
				"quay.io:443/a/web:1.1": digestB, "few:1.0": digestB, "new:1": digestB,
			},
			images: map[string]Image{digestA: {Manifest: "sha256:ma"}, digestB: {Manifest: "sha256:mb", Config: "sha256:cb"}},
		}
	}
	tests := []struct {
		name     string
		image    string
		settings Settings
		memory   Record
		skip     Reason
		registry func(*registry)

		ref    string // of the candidate; "" for none
		digest string
		reason Reason // of the refusal
		tags   int
		asked  []string // when given
	}{
		{name: "a tag is asked for its digest, no tags are listed", image: "web:1.1", ref: "web:1.1", digest: digestB,
			asked: []string{"digest of web:1.1", "image of web:1.1@" + digestB}},
		{name: "what runs is not asked for its manifest", image: "web:1.0", ref: "web:1.0", digest: digestA, asked: []string{"digest of web:1.0"}},
		{name: "a bare name stays bare", image: "web", ref: "web", digest: digestB, asked: []string{"digest of web", "image of web@" + digestB}},
		{name: "a bare name gets a tag when the policy names one", image: "web", settings: Settings{Policy: policy.Spec{Policy: "major"}}, ref: "web:2.0", digest: digestB, tags: 4},
		{name: "minor stays within the major", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}}, ref: "web:1.1", digest: digestB, tags: 4},
		{name: "a registry with a port is no tag", image: "quay.io:443/a/web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}}, ref: "quay.io:443/a/web:1.1", digest: digestB, tags: 2},
		{name: "the tag that runs may have a new digest", image: "few:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}}, ref: "few:1.0", digest: digestB, tags: 1},

		{name: "write digest writes the digest", image: "web:1.1", settings: Settings{Write: WriteDigest}, ref: "web:1.1@" + digestB, digest: digestB},
		{name: "a digest that a person wrote is a pin", image: "web:1.1@" + digestA, reason: Pinned, asked: []string{}},
		{name: "a digest without a tag is a pin", image: "web@" + digestA, reason: Pinned, asked: []string{}},
		{name: "pin follow lets it move, and stays a digest", image: "web:1.1@" + digestA, settings: Settings{Pin: PinFollow}, ref: "web:1.1@" + digestB, digest: digestB},
		{name: "pin follow without a tag has nothing to follow", image: "web@" + digestA, settings: Settings{Pin: PinFollow}, reason: Pinned, asked: []string{}},
		{name: "a digest that updaterd wrote is no pin", image: "web:1.1@" + digestA, memory: Record{Committed: Image{Ref: "web:1.1@" + digestA, Digest: digestA}}, ref: "web:1.1@" + digestB, digest: digestB},
		{name: "another digest than updaterd wrote is a pin", image: "web:1.1@" + digestA, memory: Record{Committed: Image{Ref: "web:1.1@" + digestB, Digest: digestB}}, reason: Pinned},

		{name: "nonsense as a reference is refused", image: "Web:1", reason: Unsupported, asked: []string{}},
		{name: "a policy that cannot be read is invalid", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "semver:>>1"}}, reason: InvalidSettings, asked: []string{}},
		{name: "a local image is not asked for", image: "web:1.0", skip: LocalImage, reason: LocalImage, asked: []string{}},
		{name: "what others manage is not asked for", image: "web:1.0", skip: ManagedElsewhere, reason: ManagedElsewhere, asked: []string{}},
		{name: "what a backend calls pinned is not asked for", image: "web:1.0", skip: Pinned, reason: Pinned, asked: []string{}},
		{name: "what is not running has a candidate all the same", image: "web:1.1", skip: NotRunning, ref: "web:1.1", digest: digestB},
		{name: "what cannot be replaced has a candidate all the same", image: "web:1.1", skip: Unsupported, ref: "web:1.1", digest: digestB},

		{name: "a tag that is not there is not found", image: "web:3", reason: NotFound},
		{name: "a registry that does not have the digest it names is not in order", image: "web:1.1", registry: func(r *registry) { r.lying = true },
			ref: "web:1.1", digest: digestB, reason: RegistryUnavailable},
		{name: "a registry that cannot be asked is unavailable", image: "web:1.0", registry: func(r *registry) { r.err = errors.New("connection refused") }, reason: RegistryUnavailable},
		{name: "a tag list that cannot be had is unavailable", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}}, registry: func(r *registry) { r.err = errors.New("unexpected EOF") }, reason: RegistryUnavailable},
		{name: "a registry's refusal keeps its reason, wrapped or not", image: "web:1.0", registry: func(r *registry) {
			r.err = fmt.Errorf("asking: %w", &Refusal{Reason: Unauthorized, Detail: "wrong password"})
		}, reason: Unauthorized},
		{name: "patience that a registry asks for keeps its reason", image: "web:1.0", registry: func(r *registry) { r.err = &Refusal{Reason: RateLimited} }, reason: RateLimited},
		{name: "no image for this platform is known with its candidate", image: "web:1.1", registry: func(r *registry) { delete(r.images, digestB) }, ref: "web:1.1", digest: digestB, reason: PlatformMissing},

		{name: "no tag that fits is no candidate", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "semver:^5"}}, reason: NoCandidate, tags: 4},
		{name: "only lower tags is a downgrade", image: "web:9.0", settings: Settings{Policy: policy.Spec{Policy: "semver:^2"}}, reason: Downgrade, tags: 4},
		{name: "an empty tag list is not believed", image: "none:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}}, reason: TagListIncomplete},
		{name: "a tag list that lost more than half is not believed", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}},
			memory: Record{Tags: &TagCount{Repository: "web", Count: 9}}, reason: TagListIncomplete, tags: 4},
		{name: "a tag list that lost half is", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}},
			memory: Record{Tags: &TagCount{Repository: "web", Count: 8}}, ref: "web:1.1", digest: digestB, tags: 4},
		{name: "another repository's list says nothing", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}},
			memory: Record{Tags: &TagCount{Repository: "old.example.com/web", Count: 900}}, ref: "web:1.1", digest: digestB, tags: 4},
		{name: "a list short for almost a day is not believed", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}},
			memory: Record{Tags: &TagCount{Repository: "web", Count: 9, ShortSince: now.Add(time.Second - 24*time.Hour)}}, reason: TagListIncomplete, tags: 4},
		{name: "a list short for a day is", image: "web:1.0", settings: Settings{Policy: policy.Spec{Policy: "minor"}},
			memory: Record{Tags: &TagCount{Repository: "web", Count: 9, ShortSince: now.Add(-24 * time.Hour)}}, ref: "web:1.1", digest: digestB, tags: 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := held()
			if tt.registry != nil {
				tt.registry(r)
			}
			if tt.settings.Policy.Policy == "" {
				tt.settings.Policy.Policy = "digest"
			}
			w := Workload{ID: "local/web", Image: tt.image, Runs: runs}
			if tt.skip != "" {
				w.Skip = &Refusal{Reason: tt.skip, Detail: "because"}
			}
			f := look(t.Context(), r, w, tt.settings, tt.memory, now)
			if tt.reason == "" {
				require.Nil(t, f.refusal)
			} else {
				require.NotNil(t, f.refusal)
				require.Equal(t, tt.reason, f.refusal.Reason)
				require.NotEmpty(t, f.refusal.Detail+fmt.Sprint(f.refusal.Err))
			}
			if tt.ref == "" {
				require.Nil(t, f.candidate)
			} else {
				require.NotNil(t, f.candidate)
				require.Equal(t, tt.ref, f.candidate.Ref)
				require.Equal(t, tt.digest, f.candidate.Digest)
			}
			require.Equal(t, tt.tags, f.tags)
			if tt.asked != nil {
				require.ElementsMatch(t, tt.asked, r.asked)
			}
		})
	}
}

func TestLookLearnsThePlatformsImage(t *testing.T) {
	r := &registry{digests: map[string]string{"web:1": digestB}, images: map[string]Image{digestB: {Manifest: "sha256:mb", Config: "sha256:cb"}}}
	w := Workload{Image: "web:1", Runs: Running{Digests: []string{digestA}}}
	f := look(t.Context(), r, w, Settings{Policy: policy.Spec{Policy: "digest"}}, Record{}, after(0))
	require.Equal(t, Image{Ref: "web:1", Digest: digestB, Manifest: "sha256:mb", Config: "sha256:cb"}, *f.candidate)
}

// TestShortTagListIsBelievedAfterADay plays the passes of two days.
func TestShortTagListIsBelievedAfterADay(t *testing.T) {
	tags := func(n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("1.%d", i))
		}
		return all
	}
	r := &registry{tags: map[string][]string{"web": tags(100)}, digests: map[string]string{"web:1.99": digestB, "web:1.9": digestB, "web:1.10": digestB},
		images: map[string]Image{digestB: {}}}
	w := Workload{ID: "local/web", Image: "web:1.0", Runs: Running{Digests: []string{digestA}}}
	s := Settings{Policy: policy.Spec{Policy: "minor"}}
	var m Record
	now := after(0)
	pass := func(wait time.Duration) Reason {
		now = now.Add(wait)
		f := look(t.Context(), r, w, s, m, now)
		if edit := notice(w, f, m, now); edit != nil {
			edit(&m)
		}
		if f.refusal != nil {
			return f.refusal.Reason
		}
		return Update
	}
	require.Equal(t, Update, pass(0))
	require.Equal(t, 100, m.Tags.Count)
	r.tags["web"] = tags(10)
	require.Equal(t, TagListIncomplete, pass(time.Hour))
	r.tags["web"] = tags(11) // the day counts from the first short list
	require.Equal(t, TagListIncomplete, pass(23*time.Hour))
	require.Equal(t, Update, pass(time.Hour))
	require.Equal(t, 11, m.Tags.Count)
	require.Zero(t, m.Tags.ShortSince)

	r.tags["web"] = tags(100)
	require.Equal(t, Update, pass(time.Hour))
	r.tags["web"] = tags(10)
	require.Equal(t, TagListIncomplete, pass(time.Hour))
	r.tags["web"] = tags(100) // trouble that was over starts no clock
	require.Equal(t, Update, pass(time.Hour))
	r.tags["web"] = tags(10)
	require.Equal(t, TagListIncomplete, pass(23*time.Hour))
}

// TestAPersonsRollBackInAClusterSticks: kubectl rollout undo goes back to what updaterd
// itself wrote before, kubectl apply to what the manifest says.
func TestAPersonsRollBackInAClusterSticks(t *testing.T) {
	r := &registry{digests: map[string]string{"web:1": digestB}, tags: map[string][]string{"web": {"1.4", "1.5"}},
		images: map[string]Image{digestB: {Manifest: "sha256:mb"}}}
	r.digests["web:1.5"] = digestB
	for name, tt := range map[string]struct {
		policy    string
		committed Image
		image     string
		runs      Running
		want      Reason
	}{
		"undone to an image that updaterd wrote": {policy: "digest", committed: Image{Ref: "web:1@" + digestB, Digest: digestB},
			image: "web:1@" + digestA, runs: Running{Digests: []string{digestA}}, want: RolledBack},
		"undone to one that a person pinned": {policy: "digest", committed: Image{Ref: "web:1@" + digestB, Digest: digestB},
			image: "web:1@sha256:" + strings.Repeat("c", 64), runs: Running{Digests: []string{"sha256:" + strings.Repeat("c", 64)}}, want: Pinned},
		"the old manifest applied again": {policy: "minor", committed: Image{Ref: "web:1.5@" + digestB, Digest: digestB},
			image: "web:1.4", runs: Running{Digests: []string{digestA}}, want: RolledBack},
		"the old manifest applied again, and nothing runs": {policy: "minor", committed: Image{Ref: "web:1.5@" + digestB, Digest: digestB},
			image: "web:1.4", want: RolledBack},
		"the manifest's tag, which runs the same": {policy: "digest", committed: Image{Ref: "web:1@" + digestB, Digest: digestB},
			image: "web:1", runs: Running{Digests: []string{digestB}}, want: UpToDate},
	} {
		t.Run(name, func(t *testing.T) {
			w := Workload{ID: "prod/shop/deployment/web/app", Namespace: "shop", Image: tt.image, Runs: tt.runs, Write: WriteDigest}
			s := Settings{Mode: ModeUpdate, Policy: policy.Spec{Policy: tt.policy}, Pin: PinRespect}
			m := Record{Committed: tt.committed, Wrote: []string{"web:1@" + digestA, tt.committed.Ref}}
			for range 2 { // it sticks
				f := look(t.Context(), r, w, s, m, after(0))
				if edit := notice(w, f, m, after(0)); edit != nil {
					edit(&m)
				}
				require.Equal(t, tt.want, decide(w, s, f, m, after(0)).Reason)
			}
		})
	}
}

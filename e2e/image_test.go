package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
	"github.com/updaterd/updaterd/e2e/engine"
	"github.com/updaterd/updaterd/e2e/stage"
)

// TestBadImages: the original comes back, the digest is rejected and not tried
// again until a person says so, and a fixed image is taken.
func TestBadImages(t *testing.T) {
	check := stage.Check(200*time.Millisecond, 2)
	memory := func(s *stage.Spec) { s.Host.Memory = 32 << 20 }
	label := func(key, value string) func(*stage.Spec) {
		return func(s *stage.Spec) { s.Config.Labels = map[string]string{"updaterd." + key: value} }
	}
	for _, tt := range []struct {
		name   string
		image  stage.Image
		policy string
		change func(*stage.Spec)
		why    string
		podman string // what it may be there too: it shows a crash loop as one end after the other
		logs   string
	}{
		{
			name: "exits at once", image: stage.Image{Behave: stage.Behaviour{Exit: new(int), Log: "no such table"}},
			why: "it exited with code 0", logs: "no such table",
		},
		{
			name: "exits after a second", image: stage.Image{Behave: stage.Behaviour{Exit: ptr(4), ExitAfter: time.Second}},
			change: label("health.stable", "3s"), why: "it exited with code 4", logs: "app bad starts",
		},
		{
			name: "hangs in start", image: stage.Image{Behave: stage.Behaviour{Hang: true}, Healthcheck: stage.Check(200*time.Millisecond, 1000)},
			change: label("health.timeout", "3s"), why: "its health check has not passed yet", logs: "app bad starts",
		},
		{
			name: "hangs in start and never passes a check", image: stage.Image{Behave: stage.Behaviour{Hang: true}, Healthcheck: check},
			why: "its health check fails",
		},
		{
			name: "hangs in start, asked by a probe", image: stage.Image{Behave: stage.Behaviour{Hang: true}},
			change: func(s *stage.Spec) {
				s.Config.Labels = map[string]string{"updaterd.health.timeout": "3s", "updaterd.health.probe": "http://:8080/healthz"}
			},
			why: "its probe fails",
		},
		{
			name: "turns unhealthy after 5 s", image: stage.Image{Behave: stage.Behaviour{UnhealthyAfter: 5 * time.Second}, Healthcheck: check},
			change: label("health.stable", "9s"), why: "its health check fails: unhealthy since 5s",
		},
		{
			name: "restarts in a loop", image: stage.Image{Behave: stage.Exit(5)},
			policy: "always", why: "it was restarted ", podman: "it exited with code 5", logs: "app bad starts", // three times, or more when looked at late
		},
		{
			name: "restarts in a loop, as often as allowed", image: stage.Image{Behave: stage.Exit(6)},
			policy: "on-failure", why: "restarted", podman: "it exited with code 6",
		},
		{
			name: "restarts every second", image: stage.Image{Behave: stage.Behaviour{Exit: ptr(7), ExitAfter: time.Second}},
			policy: "unless-stopped", change: label("health.stable", "4s"), why: "restart", podman: "it exited with code 7",
		},
		{
			name: "is killed for its memory", image: stage.Image{Behave: stage.Behaviour{EatMemory: true}},
			change: memory, // an engine may tell the exit before it tells the reason
		},
		{
			name: "is killed for its memory again and again", image: stage.Image{Behave: stage.Behaviour{EatMemory: true}},
			policy: "always", change: memory,
		},
		{
			name: "has no such entrypoint", image: stage.Image{Entrypoint: []string{"/gone"}},
			policy: "always", why: "/gone",
		},
		{
			name: "has an entrypoint that is no program", image: stage.Image{Entrypoint: []string{"/readme"}, Files: map[string]string{"/readme": "hello"}},
			why: "permission denied",
		},
		{
			name: "has a user that nobody knows", image: stage.Image{User: "nobody-knows"},
			why: "nobody-knows",
		},
		{
			name: "fails its post-update hook", image: stage.Image{},
			change: label("post-update", "/app exit 9"), why: "post-update failed with exit code 9",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.why, "post-update") {
				stage.NotOn(t, engine.Proxied, noExec)
			}
			t.Parallel()
			r := newRig(t, start{policy: tt.policy, change: tt.change})
			tt.image.Version = "bad"
			digest := r.push("latest", tt.image)

			got := r.once(1)
			require.Equal(t, "restored", got.Outcome, "%+v", got)
			if onPodman() && tt.podman != "" && strings.Contains(got.Detail, tt.podman) {
				tt.why = tt.podman
			}
			require.Contains(t, got.Detail, tt.why)
			require.Equal(t, digest, got.Candidate.Digest)
			r.asItWas()

			told := r.history()
			require.Len(t, told, 1)
			require.Equal(t, "restored", told[0].Event)
			require.Equal(t, "bad", told[0].Verdict)
			require.Equal(t, r.first, told[0].From.Digest)
			require.Equal(t, digest, told[0].To.Digest)
			require.Contains(t, told[0].Why, tt.why)
			require.Contains(t, told[0].Logs, tt.logs)

			again := r.check(0)
			require.Equal(t, "rejected", again.Reason)
			require.Equal(t, "none", again.Decision)
			require.Contains(t, again.Detail, "updaterd forget local/"+r.name)
			calls := r.through(stage.Hooks{})
			back := r.d.Inspect(r.name).State.StartedAt
			require.Equal(t, "none", r.once(0).Outcome)
			require.Empty(t, calls.Calls(), "a rejected image was tried again")
			require.Equal(t, back, r.asItWas().State.StartedAt)

			require.Zero(t, r.u.Run("forget", r.name).Code)
			require.Equal(t, "update", r.check(0).Reason)

			fixed := stage.Image{Version: "fixed"}
			if tt.why == "post-update failed with exit code 9" {
				return // nothing passes that one
			}
			require.Equal(t, "committed", func() row {
				r.push("latest", fixed)
				return r.once(0)
			}().Outcome)
			r.updated("fixed", r.push("latest", fixed))
		})
	}
}

// TestRejectedImageIsTriedAgainWhenForgotten, and only then.
func TestRejectedImageIsTriedAgainWhenForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	r.pushBad("latest", "bad")
	require.Equal(t, "restored", r.once(1).Outcome)
	res := r.u.Run("forget", "local/"+r.name)
	require.Zero(t, res.Code)
	require.Contains(t, res.Stdout, "it exited with code 3")
	require.Equal(t, "restored", r.once(1).Outcome)
	r.asItWas()
	require.Equal(t, "rejected", r.check(0).Reason)
	var events []string
	for _, e := range r.history() {
		events = append(events, e.Event)
	}
	require.Equal(t, []string{"restored", "forgotten", "restored"}, events)

	// The same image pushed again under another index is the same image.
	r.push("latest", stage.Index{Images: []stage.Image{{Version: "bad", Behave: stage.Exit(3)}, {Version: "other", Platform: stage.Foreign()}}})
	require.Equal(t, "rejected", r.check(0).Reason)
}

// TestDaemonDoesNotTryARejectedImageAgain over many passes, and takes a fixed one.
func TestDaemonDoesNotTryARejectedImageAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{policy: "unless-stopped"})
	r.pushBad("latest", "bad")
	calls := r.through(stage.Hooks{})
	daemon := r.u.Start("run")
	daemon.WaitLog("phase=restored", time.Minute)
	r.asItWas()
	n := len(calls.Calls())
	asked := r.reg.Count("HEAD", "/manifests/")
	stage.Eventually(t, 20*time.Second, "three more passes", func() bool { return r.reg.Count("HEAD", "/manifests/") >= asked+3 })
	require.Len(t, calls.Calls(), n)
	r.asItWas()
	fixed := r.push("latest", stage.Image{Version: "fixed"})
	daemon.WaitLog("phase=committed", 30*time.Second)
	require.Zero(t, daemon.Stop(10*time.Second))
	r.updated("fixed", fixed)
}

// TestImagesThatAreNotForThisMachine are found out before anything is stopped.
func TestImagesThatAreNotForThisMachine(t *testing.T) {
	for _, tt := range []struct {
		name string
		push stage.Artifact
	}{
		{"an image for another architecture", stage.Image{Version: "v2", Platform: stage.Foreign()}},
		{"an OCI image for another architecture", stage.Image{Version: "v2", Platform: stage.Foreign(), OCI: true}},
		{"an index without this platform", stage.Index{Images: []stage.Image{{Version: "v2", Platform: stage.Foreign()}}, Attestation: true, OCI: true}},
		{"an empty index", stage.Index{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, start{})
			digest := r.push("latest", tt.push)
			calls := r.through(stage.Hooks{})
			got := r.check(0)
			require.Equal(t, "platform-missing", got.Reason, "%+v", got)
			require.NotNil(t, got.Candidate)
			require.Equal(t, digest, got.Candidate.Digest)
			require.Contains(t, got.Detail, "linux/")
			require.Equal(t, "none", r.once(0).Outcome)
			require.Empty(t, calls.Calls())
			r.untouched()
		})
	}
}

// TestImageThatNoContainerCanBeMadeOf is to blame, although nothing was stopped.
func TestImageThatNoContainerCanBeMadeOf(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	r.push("latest", stage.Image{Version: "v2", Entrypoint: []string{}})
	got := r.once(1)
	require.Equal(t, "none", got.Outcome, "%+v", got)
	require.Equal(t, "rejected", got.Reason, "%+v", got)
	require.Regexp(t, "(?i)no command (specified|or entrypoint provided)", got.Detail)
	r.untouched()
	require.Equal(t, "rejected", r.check(0).Reason)
}

// TestIndexAroundTheSameImageIsNoUpdate: what runs here has not changed.
func TestIndexAroundTheSameImageIsNoUpdate(t *testing.T) {
	for _, oci := range []bool{false, true} {
		t.Run(map[bool]string{false: "docker", true: "oci"}[oci], func(t *testing.T) {
			t.Parallel()
			here := stage.Image{Version: "v1", OCI: oci}
			r := newRig(t, start{image: here})
			index := func(other string) stage.Index {
				return stage.Index{Images: []stage.Image{{Version: other, Platform: stage.Foreign(), OCI: oci}, here}, OCI: oci, Attestation: true}
			}
			for _, other := range []string{"o1", "o2"} {
				r.push("latest", index(other))
				calls := r.through(stage.Hooks{})
				got := r.once(0)
				require.Equal(t, "up-to-date", got.Reason)
				require.Equal(t, "none", got.Decision)
				require.Empty(t, calls.Calls())
				r.untouched()
			}
			// And an index with a new image for this platform is one.
			here.Version = "v2"
			digest := r.push("latest", index("o2"))
			require.Equal(t, "committed", r.once(0).Outcome)
			r.updated("v2", digest)
		})
	}
}

// TestOneImageInTwoRepositories: an engine keeps it once, and may know it by the
// name alone by which it came first.
func TestOneImageInTwoRepositories(t *testing.T) {
	t.Parallel()
	for range 2 {
		r := newRig(t, start{})
		digest := r.push("latest", stage.Image{Version: "two repositories"})
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("two repositories", digest)
		require.Equal(t, "up-to-date", r.check(0).Reason)
	}
}

// TestOldContainerThatIgnoresTheStopSignal is killed after its time.
func TestOldContainerThatIgnoresTheStopSignal(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{policy: "always", image: stage.Image{Behave: stage.Behaviour{IgnoreTerm: true}}})
	began := time.Now()
	digest := r.push("latest", stage.Image{Version: "v2"})
	require.Equal(t, "committed", r.once(0).Outcome)
	require.Greater(t, time.Since(began), 2*time.Second)
	r.updated("v2", digest)
}

// TestUnhealthyBefore: a container that was unhealthy counts as restored when
// it is back, and may be healed by an update.
func TestUnhealthyBefore(t *testing.T) {
	check := stage.Check(200*time.Millisecond, 2)
	unhealthy := func(c container.InspectResponse) bool {
		return c.State.Health != nil && c.State.Health.Status == container.Unhealthy
	}
	sick := start{image: stage.Image{Behave: stage.Behaviour{Unhealthy: true}, Healthcheck: check}, waitFor: unhealthy}
	t.Run("restored", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, sick)
		r.push("latest", stage.Image{Version: "v2", Behave: stage.Behaviour{Unhealthy: true}, Healthcheck: check})
		got := r.once(1)
		require.Equal(t, "restored", got.Outcome, "%+v", got)
		r.asItWas()
		require.Equal(t, "rejected", r.check(0).Reason)
	})
	t.Run("healed", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, sick)
		digest := r.push("latest", stage.Image{Version: "v2", Healthcheck: check})
		require.Equal(t, "committed", r.once(0).Outcome)
		r.updated("v2", digest)
	})
}

func ptr[T any](v T) *T { return &v }

// TestTheOldImageIsKeptBeforeItsTagMoves: without a name in between, an engine
// that keeps images in containerd may lose it.
func TestTheOldImageIsKeptBeforeItsTagMoves(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	p := r.through(stage.Hooks{})
	digest := r.push("latest", stage.Image{Version: "v2"})
	require.Equal(t, "committed", r.once(0).Outcome)
	r.updated("v2", digest)
	var kinds []string
	for _, c := range p.Calls() {
		kinds = append(kinds, kind(c))
	}
	require.Contains(t, kinds, "tag")
	require.Contains(t, kinds, "tag kept")
	require.Less(t, slices.Index(kinds, "tag kept"), slices.Index(kinds, "tag"), "%s", kinds)
}

// TestSameImagesInTwoRepositories: a mirror's images are those of its source, which
// the engine has already when the second container is updated.
func TestSameImagesInTwoRepositories(t *testing.T) {
	t.Parallel()
	r := newRig(t, start{})
	mirror := r.d.Name("mirror")
	ref := r.reg.Ref("acme/" + mirror + ":latest")
	publish := func(version string) {
		image := stage.Image{Version: version}
		require.Equal(t, r.push("latest", image), r.reg.Push("acme/"+mirror+":latest", image))
	}
	publish("v1")
	r.d.Pull(ref)
	r.d.Run(stage.Spec{Name: mirror, Config: container.Config{Image: ref}})
	for _, version := range []string{"v2", "v3", "v4"} {
		publish(version)
		rows := parseRows(t, r.u.Run("run", "--once", "-o", "json").Stdout)
		require.Len(t, rows, 2)
		for _, row := range rows {
			require.Equal(t, "committed", row.Outcome, "%+v", row)
		}
		for _, name := range []string{r.name, mirror} {
			require.Contains(t, r.d.Inspect(name).Config.Env, "APP_VERSION="+version)
		}
	}
}

package main

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"

	"github.com/updaterd/updaterd/e2e/play"
	"github.com/updaterd/updaterd/e2e/stage"
)

// config is the file that updaterd is started with.
const config = `schedule: "@every 2s"   # the default is every 15 minutes
jitter: 0s
watch: labelled         # only containers that say updaterd.enable=true
defaults:
  policy: major         # from v1 to v2, v3, ...
  health:
    stable: 4s          # how long a new container must stay healthy
`

// page is what comes behind config where the page is to be seen.
const page = `api:
  listen: %s
  write-tokens: %s
`

const (
	repository = "web"
	// A container must have been put back, or have passed, long before.
	patience = 40 * time.Second
)

// story is what happens, with all that is on stage.
type story struct {
	*play.Play
	docker   *stage.Docker
	registry *stage.Registry
	updaterd *stage.Updaterd
	daemon   *stage.Daemon

	web  string // the container's name
	data string // the volume's
	port int    // where it serves

	config string
	page   string // the address of updaterd's page; "" when it is not to be kept
	token  string // with which one logs in there
}

// tell performs the story and fails p where something does not hold. With keep it
// ends when it is interrupted.
func tell(p *play.Play, keep bool) {
	s := &story{Play: p, config: config}
	if keep {
		s.withPage()
	}
	s.open()
	s.runV1()
	s.startUpdaterd()
	s.publishV2()
	s.leaveAlone(s.publishV3())
	s.history()
	if keep {
		s.keep()
		return
	}
	s.close()
}

// withPage has updaterd serve its page.
func (s *story) withPage() {
	s.token = strings.ToLower(rand.Text())
	file := filepath.Join(s.TempDir(), "write-tokens")
	s.must(os.WriteFile(file, []byte("you: "+s.token+"\n"), 0o600), "write a token")
	address := fmt.Sprintf("127.0.0.1:%d", stage.FreePort(s))
	s.page = "http://" + address + "/"
	s.config += fmt.Sprintf(page, address, file)
}

// keep shows the page, and leaves it and all else up until it is interrupted.
func (s *story) keep() {
	s.Screen.Act("See for yourself")
	form, err := stage.Get(s.Context(), s.page)
	s.must(err, "get the page")
	s.hold(strings.Contains(form, "Log in"), "the page asks who it is")
	s.Screen.Say("All of this stays up, and updaterd goes on, until you press Ctrl-C; then it is removed. On its page, let v3 be tried again (Forget), or roll v2 back.")
	s.Screen.Say("")
	s.Screen.Fact("log in with", "%s", s.token)
	s.Screen.Fact("the page", "%s", s.page)
	s.Stay()
	s.Screen.Say("")
}

// open sets the stage.
func (s *story) open() {
	// The first cleanup is the last to run: it sees what the others left.
	s.Cleanup(s.nothingIsLeft)
	s.docker = stage.OpenDocker(s)
	s.registry = stage.NewRegistry(s, stage.RegistryOptions{})
	// The engine may be one that others use: their containers are not even seen.
	s.updaterd = stage.NewUpdaterd(s, s.docker.Scoped(), s.config)

	s.Screen.Title("updaterd: an update that goes well, and one that does not")
	engine, err := s.docker.ServerVersion(s.Context())
	s.must(err, "ask the engine for its version")
	version := s.updaterd.Run("version")
	s.hold(version.Code == 0, "`updaterd version` exits with 0")
	s.Screen.Fact("engine", "Docker %s, at %s", engine.Version, s.docker.Host)
	s.Screen.Fact("registry", "%s, for this demo", s.registry.Host)
	s.Screen.Fact("updaterd", "%s", strings.TrimSpace(strings.TrimPrefix(version.Stdout, "updaterd ")))
}

// image is a version of the app. Each has a HEALTHCHECK, asked often, so that
// nobody has to wait for it.
func (s *story) image(version string, b stage.Behaviour) stage.Image {
	b.Write = "/data/started"
	return stage.Image{
		Version: version, Behave: b, Healthcheck: stage.Check(300*time.Millisecond, 2),
		// Also an image without a name can be found again.
		Labels: map[string]string{stage.Label: s.docker.Mark},
	}
}

func (s *story) runV1() {
	s.Screen.Act("A container runs v1")
	s.registry.Push(repository+":v1", s.image("v1", stage.Behaviour{}))
	s.web, s.data, s.port = s.free("web"), s.free("web-data"), stage.FreePort(s)
	s.docker.MakeVolume(s.data)
	ref := s.registry.Ref(repository + ":v1")
	s.docker.Run(stage.Spec{
		Name: s.web,
		Config: container.Config{
			Image: ref, Env: []string{"GREETING=hello"},
			Labels: map[string]string{"updaterd.enable": "true"},
		},
		Host: container.HostConfig{
			PortBindings:  stage.Publish(s.port),
			RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyUnlessStopped},
			Mounts:        []mount.Mount{{Type: mount.TypeVolume, Source: s.data, Target: "/data"}},
		},
	})
	s.docker.WaitHealthy(s.web, patience)
	s.Screen.Command(fmt.Sprintf("docker run -d --name %s --restart unless-stopped \\", s.web), fmt.Sprintf(`      -p 127.0.0.1:%d:8080 -v %s:/data -e GREETING=hello \
      --label updaterd.enable=true %s
`, s.port, s.data, ref))
	s.curl("v1")
	s.Screen.Say("")
	s.Screen.Say("It is FROM scratch, has a HEALTHCHECK, and appends its version to /data/started in its volume at each start.")
}

// missed ends the measuring when the service is back, and shows the gap.
func (s *story) missed(client *stage.Gap) stage.GapReport {
	stage.Eventually(s, patience, "an answer from "+s.url(), func() bool {
		_, err := stage.Get(s.Context(), s.url())
		return err == nil
	})
	gap := client.Stop()
	s.Screen.Event("client", "longest time without an answer, asking every 2 ms: %s", gap.Longest.Round(time.Millisecond))
	return gap
}

func (s *story) startUpdaterd() {
	s.Screen.Act("updaterd watches it")
	s.Screen.Command("cat updaterd.yaml", s.config)
	s.Screen.Say("")
	s.Screen.Command("updaterd run --config updaterd.yaml", "")
	s.daemon = s.updaterd.Start("run")
	s.passes(2)
	s.hold(s.serves() == "v1" && len(s.docker.Names()) == 1, "with nothing new, updaterd changes nothing")
}

func (s *story) publishV2() {
	s.Screen.Act("v2 is published: it is healthy, so it stays")
	s.Screen.Say("preparing pulls the image and creates the new container; applying stops the old one and starts the new one; judging watches its health; only committing removes the old one.")
	s.Screen.Say("")
	s.Screen.Clock()
	before := s.docker.Inspect(s.web)
	client := stage.MeasureGap(s, s.url())
	stop := s.watch()
	digest := s.publish("v2", stage.Behaviour{})
	after := s.settled("v2 to be committed", func(c container.InspectResponse) bool {
		return c.Config.Image == s.registry.Ref(repository+":v2")
	})
	stop()
	gap := s.missed(client)
	s.Screen.Say("")
	s.curl("v2")
	s.Screen.Say("")

	s.hold(slices.Equal(gap.Bodies, []string{"v1", "v2"}), "clients got v1 and then v2, nothing else; they got %q", gap.Bodies)
	s.hold(slices.Contains(s.docker.Image(after.Image).RepoDigests, s.registry.Ref(repository+"@"+digest)), "what runs is the digest that was published")
	took, why := s.swapTook(), ""
	if gap.Longest > took+200*time.Millisecond {
		// ARP: the first question was asked before the new container's interface was
		// up, and the kernel repeats it after a second. It is so with any tool.
		why = "; asked too early, the kernel looks for a new container again after 1 s"
	}
	s.Screen.Held("v2 serves; updaterd took %s from stopping v1 to having started v2, and a client got no answer for %s%s",
		took.Round(time.Millisecond), gap.Longest.Round(time.Millisecond), why)
	s.kept(before, after)
	s.Screen.Held("started so far, as the file in its volume says: %s", s.started("v1", "v2"))
}

// swapTook is the gap that updaterd itself measured, the last time.
func (s *story) swapTook() time.Duration {
	return time.Duration(s.events()[0].Gap * float64(time.Second))
}

type event struct {
	Event   string
	Verdict string
	Gap     float64 `json:"gap_seconds"`
}

// events asks `updaterd history` for what happened, the newest first.
func (s *story) events() []event {
	r := s.updaterd.Run("history", "-o", "json")
	var events []event
	s.must(json.Unmarshal([]byte(r.Stdout), &events), "read the JSON of `updaterd history`")
	s.hold(r.Code == 0 && len(events) > 0, "`updaterd history` prints what happened and exits with 0, not %d", r.Code)
	return events
}

// kept proves that the new container is as the old one was, but for the image.
func (s *story) kept(before, after container.InspectResponse) {
	s.hold(before.ID != after.ID, "the new image runs in a container of its own")
	s.hold(slices.Contains(after.Config.Env, "GREETING=hello"), "the environment variable is kept: %q", after.Config.Env)
	s.hold(after.HostConfig.RestartPolicy.Name == container.RestartPolicyUnlessStopped, "the restart policy is kept: %q", after.HostConfig.RestartPolicy.Name)
	s.hold(equal(before.HostConfig, after.HostConfig), "the host configuration is kept\nbefore: %s\nafter: %s", asJSON(before.HostConfig), asJSON(after.HostConfig))
	s.hold(equal(before.Mounts, after.Mounts), "the volume is kept\nbefore: %s\nafter: %s", asJSON(before.Mounts), asJSON(after.Mounts))
	s.Screen.Held("kept: its name, port %d, volume, environment and restart policy", s.port)
}

// publishV3 returns the digest that is bad.
func (s *story) publishV3() string {
	s.Screen.Act("v3 is published: it starts, and then fails its health check")
	before := s.docker.Inspect(s.web)
	client := stage.MeasureGap(s, s.url())
	stop := s.watch()
	digest := s.publish("v3", stage.Behaviour{UnhealthyAfter: time.Second})
	after := s.settled("v2 to be back", func(c container.InspectResponse) bool {
		return c.ID == before.ID && c.State.StartedAt != before.State.StartedAt
	})
	stop()
	gap := s.missed(client)
	s.Screen.Say("")
	s.curl("v2")
	s.Screen.Say("")

	s.hold(slices.Equal(gap.Bodies, []string{"v2", "v3"}), "clients got v2, v3, and v2 again; they got %q", gap.Bodies)
	s.hold(equal(before.HostConfig, after.HostConfig) && equal(before.Config, after.Config) && before.Name == after.Name,
		"the container is exactly as it was\nbefore: %s\nafter: %s", asJSON(before), asJSON(after))
	s.Screen.Held("v2 serves again, in the very container it had before: %.12s", after.ID)
	s.Screen.Held("started so far, as the file in its volume says: %s", s.started("v1", "v2", "v3", "v2"))
	return digest
}

func (s *story) leaveAlone(digest string) {
	s.Screen.Act("Later passes leave v3 alone")
	before := s.docker.Inspect(s.web)
	s.passes(2)
	after := s.docker.Inspect(s.web)
	s.hold(before.ID == after.ID && before.State.StartedAt == after.State.StartedAt && s.serves() == "v2", "v3 is not tried again")
	s.hold(len(s.docker.Names()) == 1, "there is one container, not %q", s.docker.Names())
	s.started("v1", "v2", "v3", "v2")
	row := s.check()
	s.hold(row.Decision == "none" && row.Reason == "rejected" && row.Candidate != nil && row.Candidate.Digest == digest, "the digest of v3 is rejected: %+v", row)
	s.Screen.Held("v3 is rejected: %s", play.Short(digest))
	s.Screen.Held("two passes later v3 has not been started again; a v4 would be, or another v3")
	check := s.updaterd.Run("check")
	s.hold(check.Code == 0, "`updaterd check` exits with 0")
	s.Screen.Say("")
	s.Screen.Table("updaterd check", check.Stdout)
}

func (s *story) history() {
	s.Screen.Act("What happened")
	events := s.events()
	s.hold(len(events) == 2 && events[0].Event == "restored" && events[0].Verdict == "bad" &&
		events[1].Event == "updated" && events[1].Verdict == "good" && events[1].Gap > 0,
		"the history has one update and one restore: %+v", events)
	s.Screen.Table("updaterd history", s.updaterd.Run("history").Stdout)
	s.Screen.Say("")
}

// close ends updaterd as an operator does. The cleanups do the rest.
func (s *story) close() {
	code := s.daemon.Stop(10 * time.Second)
	s.hold(code == 0, "updaterd ends with 0 on SIGTERM, not %d", code)
	s.hold(s.serves() == "v2", "the container goes on without updaterd")
	s.Screen.Held("updaterd has ended on SIGTERM, and the container went on")
}

// nothingIsLeft looks for what the cleanups should have removed.
func (s *story) nothingIsLeft() {
	if s.docker == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	// The stage's client is closed by now.
	engine := s.docker.At(s.docker.Host)
	mine := filters.NewArgs(filters.Arg("label", stage.Label+"="+s.docker.Mark))
	left := map[string]int{}
	containers, err1 := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: mine})
	left["containers"] = len(containers)
	images, err2 := engine.ImageList(ctx, image.ListOptions{All: true, Filters: mine})
	left["images"] = len(images)
	networks, err3 := engine.NetworkList(ctx, network.ListOptions{Filters: mine})
	left["networks"] = len(networks)
	volumes, err4 := engine.VolumeList(ctx, volume.ListOptions{Filters: mine})
	left["volumes"] = len(volumes.Volumes)
	s.must(errors.Join(err1, err2, err3, err4), "look at what is left on the engine")
	for _, what := range slices.Sorted(maps.Keys(left)) {
		if left[what] > 0 {
			s.Errorf("nothing is left behind: %d %s are", left[what], what)
		}
	}
}

// must ends the story when something could not be done.
func (s *story) must(err error, what string) {
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// hold ends the story when a sentence is not true.
func (s *story) hold(ok bool, sentence string, args ...any) {
	if !ok {
		s.Fatalf(sentence, args...)
	}
}

// free is the name, or one like it where that is taken.
func (s *story) free(name string) string {
	_, err := s.docker.ContainerInspect(s.Context(), name)
	if _, err2 := s.docker.VolumeInspect(s.Context(), name); errdefs.IsNotFound(err) && errdefs.IsNotFound(err2) {
		return name
	}
	return s.docker.Name(name)
}

func (s *story) url() string { return fmt.Sprintf("http://127.0.0.1:%d/", s.port) }

// serves is what a client gets.
func (s *story) serves() string {
	body, err := stage.Get(s.Context(), s.url())
	if err != nil {
		return err.Error()
	}
	return body
}

// curl shows what a client gets.
func (s *story) curl(want string) {
	got := s.serves()
	s.hold(got == want, "%s answers %s, not %s", s.url(), want, got)
	s.Screen.Command("curl "+s.url(), got+"\n")
}

// publish pushes a version and returns its digest.
func (s *story) publish(version string, b stage.Behaviour) string {
	digest := s.registry.Push(repository+":"+version, s.image(version, b))
	s.Screen.Event("registry", "has %s, %s", s.registry.Ref(repository+":"+version), play.Short(digest))
	return digest
}

// watch shows each time that a client gets another answer, until stop.
func (s *story) watch() (stop func()) {
	ctx, cancel := context.WithCancel(s.Context())
	last, done := s.serves(), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			body, err := stage.Get(ctx, s.url())
			if err == nil && body != last {
				s.Screen.Event("client", "gets %s now, no longer %s", body, last)
				last = body
			}
		}
	}()
	return func() { cancel(); <-done }
}

// passes waits until so many passes have begun and ended from now on: with this
// policy, each asks for the tags once.
func (s *story) passes(n int) {
	asked := func() int { return s.registry.Count("GET", "/tags/list$") }
	// One more, which begins when the last of them has ended.
	from := asked()
	stage.Eventually(s, patience, fmt.Sprintf("%d passes", n), func() bool { return asked() >= from+n+1 })
}

// settled waits until the container is ok, no other is left, and no change is
// under way.
func (s *story) settled(what string, ok func(container.InspectResponse) bool) container.InspectResponse {
	over := strings.Count(s.daemon.Logs(), "change is over")
	stage.Eventually(s, patience, what, func() bool {
		select {
		case <-s.daemon.Done():
			s.Fatalf("updaterd goes on running")
		default:
		}
		return strings.Count(s.daemon.Logs(), "change is over") > over
	})
	c := s.docker.Wait(s.web, 5*time.Second, what, ok)
	s.hold(slices.Equal(s.docker.Names(), []string{s.web}), "there is one container, not %q", s.docker.Names())
	return c
}

// started proves which versions have been started so far, in which order, as
// the volume that all of them share has it, and returns them.
func (s *story) started(want ...string) string {
	r, _, err := s.docker.CopyFromContainer(s.Context(), s.web, "/data/started")
	s.must(err, "read /data/started")
	defer r.Close()
	archive := tar.NewReader(r)
	_, err = archive.Next()
	s.must(err, "read /data/started")
	b, err := io.ReadAll(archive)
	s.must(err, "read /data/started")
	got := strings.Fields(string(b))
	s.hold(slices.Equal(got, want), "/data/started in the volume says %q, not %q", want, got)
	return strings.Join(got, ", ")
}

type row struct {
	Decision, Reason, Detail string
	Candidate                *struct{ Image, Digest string }
}

// check asks `updaterd check` for the container's row.
func (s *story) check() row {
	r := s.updaterd.Run("check", "-o", "json", "local/"+s.web)
	var rows []row
	s.must(json.Unmarshal([]byte(r.Stdout), &rows), "read the JSON of `updaterd check`")
	s.hold(r.Code == 0 && len(rows) == 1, "`updaterd check` prints one row and exits with 0, not %d with %d", len(rows), r.Code)
	return rows[0]
}

func equal(a, b any) bool { return asJSON(a) == asJSON(b) }

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

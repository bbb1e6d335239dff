package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func TestBlameOfAnEnginesStartErrors(t *testing.T) {
	const prefix = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	for name, row := range map[string]struct {
		text string
		want updater.Verdict
	}{
		"the entrypoint is not in the image":      {prefix + `exec: "/nope": stat /nope: no such file or directory: unknown`, updater.Bad},
		"the entrypoint is not on the path":       {prefix + `exec: "nope": executable file not found in $PATH: unknown`, updater.Bad},
		"the entrypoint may not be executed":      {prefix + `exec: "/app": permission denied: unknown`, updater.Bad},
		"the entrypoint is a directory":           {prefix + `error during container init: exec: "/etc": is a directory`, updater.Bad},
		"the program is for another architecture": {`standard_init_linux.go:228: exec user process caused: exec format error`, updater.Bad},
		"an older runc words it so":               {`OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "x": executable file not found in $PATH`, updater.Bad},
		"the image has no such user":              {`unable to find user app: no matching entries in passwd file`, updater.Bad},
		"the image names no program":              {`No command specified`, updater.Bad},
		"Podman words that so":                    {`container create: no command or entrypoint provided, and no CMD or ENTRYPOINT from image`, updater.Bad},
		"a port is taken":                         {`driver failed programming external connectivity on endpoint web: Bind for 0.0.0.0:80 failed: port is already allocated`, updater.Unclear},
		"an address is taken":                     {`Address already in use`, updater.Unclear},
		"a mount's source is missing":             {prefix + `error during container init: error mounting "/x" to rootfs at "/y": no such file or directory`, updater.Unclear},
		"a network is missing":                    {`network abc not found`, updater.Unclear},
		"the driver of a GPU is missing":          {`could not select device driver "" with capabilities: [[gpu]]`, updater.Unclear},
		"the hook of a driver is missing":         {prefix + `error running prestart hook #0: exec: "nvidia-container-cli": executable file not found in $PATH`, updater.Unclear},
		"the shim is missing":                     {`failed to start shim: exec: "containerd-shim-runc-v2": executable file not found in $PATH`, updater.Unclear},
		"a cgroup cannot be made":                 {prefix + `unable to apply cgroup configuration: mkdir /sys/fs/cgroup/x: no space left on device`, updater.Unclear},
		"a device is missing":                     {`error gathering device information while adding custom device "/dev/x": no such file or directory`, updater.Unclear},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, row.want, blame(row.text)) })
	}
}

func TestWhoStoppedANewContainer(t *testing.T) {
	const began = "2026-01-02T03:04:05Z"
	for name, row := range map[string]struct {
		policy container.RestartPolicyMode
		state  container.State
		podman bool
		want   bool
	}{
		"it ended though it is always restarted":          {"always", container.State{StartedAt: began}, false, true},
		"it ended badly though it is always restarted":    {"always", container.State{StartedAt: began, ExitCode: 1}, false, true},
		"it ended though it restarts unless stopped":      {"unless-stopped", container.State{StartedAt: began, ExitCode: 137}, false, true},
		"it was ended by SIGTERM, and nobody starts it":   {"no", container.State{StartedAt: began, ExitCode: 143}, false, true},
		"it was ended by SIGTERM on Podman":               {"always", container.State{StartedAt: began, ExitCode: 143}, true, true},
		"it ended, and nobody starts it":                  {"no", container.State{StartedAt: began, ExitCode: 1}, false, false},
		"it ended too often":                              {"on-failure", container.State{StartedAt: began, ExitCode: 1}, false, false},
		"it waits for its next start":                     {"always", container.State{StartedAt: began, ExitCode: 1, Running: true, Restarting: true}, false, false},
		"it runs":                                         {"always", container.State{StartedAt: began, Running: true}, false, false},
		"it could not be started":                         {"always", container.State{StartedAt: began, ExitCode: 127, Error: "no such file"}, false, false},
		"it wanted memory":                                {"always", container.State{StartedAt: began, ExitCode: 137, OOMKilled: true}, false, false},
		"it was never started":                            {"always", container.State{StartedAt: "0001-01-01T00:00:00Z"}, false, false},
		"it ended on Podman, which starts it in a moment": {"always", container.State{StartedAt: began, ExitCode: 1}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := &box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
				State: &row.state, HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: row.policy}},
			}}}
			require.Equal(t, row.want, stoppedByHand(b, row.podman))
		})
	}
}

// TestHowAContainerThatIsGoneEnded holds what engines tell of one with --rm, in the
// order in which they do, to who ended it.
func TestHowAContainerThatIsGoneEnded(t *testing.T) {
	const docker, podman = false, true
	for name, row := range map[string]struct {
		podman bool
		events string // "die" with the code
		want   end
	}{
		"it exited":                               {docker, "die 7", end{code: 7}},
		"somebody stopped it":                     {docker, "kill, die 143", end{code: 143, killed: true}},
		"it wanted memory":                        {docker, "oom, die 137", end{code: 137, oom: true}},
		"it was done":                             {docker, "die 0", end{}},
		"it exited on Podman":                     {podman, "die 7, remove", end{code: 7}},
		"somebody stopped it on Podman":           {podman, "die 2, cleanup, stop, remove", end{code: 2, killed: true}},
		"Podman says only afterwards that it did": {podman, "die 2, stop, remove", end{code: 2, killed: true}},
		"somebody killed it on Podman":            {podman, "kill, die 137, remove", end{code: 137, killed: true}},
		"somebody removed it on Podman":           {podman, "die 137, remove", end{code: 137, killed: true}},
		"it was done on Podman, or done with":     {podman, "die 0, remove", end{killed: true}},
		"it ended by SIGTERM on Podman":           {podman, "die 143, remove", end{code: 143, killed: true}},
	} {
		t.Run(name, func(t *testing.T) {
			var e end
			for _, told := range strings.Split(row.events, ", ") {
				action, code, _ := strings.Cut(told, " ")
				require.NoError(t, e.hear(events.Message{
					Action: events.Action(action), Actor: events.Actor{Attributes: map[string]string{"exitCode": code}},
				}, row.podman))
			}
			require.Equal(t, row.want, e)
		})
	}
	require.Error(t, new(end).hear(events.Message{Action: events.ActionDie}, docker), "a code that is none")
}

// TestWhatACrashAfterTheStartLeaves: a new container that stopped by itself
// before its start was known speaks against its image, any other does not.
func TestWhatACrashAfterTheStartLeaves(t *testing.T) {
	const began = "2026-01-02T03:04:05Z"
	for name, row := range map[string]struct {
		policy container.RestartPolicyMode
		state  container.State
		want   bool
	}{
		"it ended badly, and nobody starts it":    {"no", container.State{StartedAt: began, ExitCode: 1}, true},
		"it ended too often":                      {"on-failure", container.State{StartedAt: began, ExitCode: 3}, true},
		"it ended well, or an engine asked it to": {"no", container.State{StartedAt: began}, false},
		"it was killed":                           {"no", container.State{StartedAt: began, ExitCode: 137}, false},
		"it was ended by SIGTERM":                 {"no", container.State{StartedAt: began, ExitCode: 143}, false},
		"the engine lost it":                      {"no", container.State{StartedAt: began, ExitCode: 255}, false},
		"it lies though it is always restarted":   {"always", container.State{StartedAt: began, ExitCode: 1}, false},
		"the engine could not start it":           {"no", container.State{StartedAt: began, ExitCode: 127, Error: "port is already allocated"}, false},
		"it waits for its next start":             {"on-failure", container.State{StartedAt: began, ExitCode: 1, Running: true, Restarting: true}, false},
		"it was never started":                    {"no", container.State{StartedAt: "0001-01-01T00:00:00Z", ExitCode: 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := &box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
				State: &row.state, HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: row.policy}},
			}}}
			require.Equal(t, row.want, endedByItself(b, false))
		})
	}
}

func TestWhichTagsKeepAnImage(t *testing.T) {
	p := piece{Part: updater.Part{
		From: updater.Image{Ref: "web:1.1"}, To: updater.Image{Ref: "docker.io/library/web:1.2@" + id1},
	}}
	for name, row := range map[string]struct {
		refs []string
		want bool
	}{
		"no tag":                               {nil, false},
		"digests":                              {[]string{"web@" + id1, "other/web@" + id1}, false},
		"tags of the workload's repository":    {[]string{"web:1.1", "web:1", "web@" + id1}, false},
		"a tag of another repository":          {[]string{"web:1.1", "mine:1.1"}, true},
		"a tag of a repository below":          {[]string{"library/web/x:1"}, true},
		"a tag of the like on another server":  {[]string{"ghcr.io/library/web:1.1"}, true},
		"a previous image of another workload": {[]string{"web:1.1", previousRepository + "b:1"}, true},
		"what is no reference":                 {[]string{"WEB::1"}, true},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, row.want, keptByTag(row.refs, p.repositories())) })
	}
	require.True(t, keptByTag([]string{"web:1.1"}, nil), "a rejected image is kept by any tag")
}

func TestWhatToDoAboutAContainerThatDoesNotRun(t *testing.T) {
	require.Equal(t, "it is paused: unpause it (docker unpause) to have it updated", notRunning(container.StatePaused))
	require.Contains(t, notRunning(container.StateRestarting), "it is restarting: ")
	require.Equal(t, "it is exited: start it to have it updated", notRunning(container.StateExited))
	require.Equal(t, "it is created: start it to have it updated", notRunning(container.StateCreated))
}

// As Docker 29 answers, by what containerd noted.
func TestWhichDigestsARegistryGave(t *testing.T) {
	for _, tt := range []struct {
		name, identity string
		digests, want  []string
	}{
		{"from Docker Hub", `{"Pull":[{"Repository":"docker.io/library/nginx"}]}`, []string{"nginx@d"}, []string{"nginx@d"}},
		{"from another registry", `{"Pull":[{"Repository":"ghcr.io/acme/web"}]}`, []string{"ghcr.io/acme/web@d"}, []string{"ghcr.io/acme/web@d"}},
		{"its port is not told", `{"Pull":[{"Repository":"registry.example.com/acme/web"}]}`,
			[]string{"registry.example.com:5000/acme/web@d"}, []string{"registry.example.com:5000/acme/web@d"}},
		{"by its address", `{"Pull":[{"Repository":"127.0.0.1/web"}]}`, []string{"127.0.0.1:5000/web@d"}, []string{"127.0.0.1:5000/web@d"}},
		{"by a name that looks like a user's of Docker Hub", `{"Pull":[{"Repository":"docker.io/registry/web"}]}`,
			[]string{"registry:5000/web@d"}, []string{"registry:5000/web@d"}},
		{"by an address that is not told", `{"Build":[{"Ref":"x"}]}`, []string{"[::1]:5000/web@d"}, []string{"[::1]:5000/web@d"}},
		{"tagged here under another name", `{"Pull":[{"Repository":"docker.io/library/nginx"}]}`,
			[]string{"nginx@d", "ghcr.io/acme/nginx@d"}, []string{"nginx@d"}},
		{"built here", `{"Build":[{"Ref":"x"}]}`, []string{"acme/web@d"}, []string{}},
		{"built here and pushed", `{"Build":[{"Ref":"x"}],"Pull":[{"Repository":"docker.io/acme/web"}]}`, []string{"acme/web@d"}, []string{"acme/web@d"}},
		{"nothing is known", `null`, []string{"acme/web@d"}, []string{"acme/web@d"}},
		{"only who signed it", `{"Signature":[{}]}`, []string{"acme/web@d"}, []string{"acme/web@d"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var is *identified
			require.NoError(t, json.Unmarshal([]byte(tt.identity), &is))
			d := "@sha256:" + strings.Repeat("0", 64)
			whole := func(digests []string) []string {
				all := []string{}
				for _, s := range digests {
					all = append(all, strings.TrimSuffix(s, "@d")+d)
				}
				return all
			}
			require.Equal(t, whole(tt.want), is.given(whole(tt.digests)))
		})
	}
}

func TestErrorsInsideAPullStream(t *testing.T) {
	platform := updater.Platform{OS: "linux", Architecture: "amd64"}
	for name, row := range map[string]struct {
		line string
		want updater.Reason // "": no refusal
	}{
		"no image for the platform": {`{"error":"no matching manifest for linux/amd64 in the manifest list entries"}`, updater.PlatformMissing},
		"the same from Podman": {
			`{"error":"choosing an image from manifest list docker://x@sha256:1: no image found in image index for architecture amd64, variant \"\", OS linux"}`,
			updater.PlatformMissing,
		},
		"the registry wants patience":       {`{"errorDetail":{"message":"toomanyrequests: You have reached your pull rate limit"},"error":"x"}`, updater.RateLimited},
		"the digest has gone":               {`{"error":"manifest for x@sha256:1 not found: manifest unknown"}`, updater.NotFound},
		"the tag has gone, says containerd": {`{"error":"failed to resolve reference \"x:1\": x:1: not found"}`, updater.NotFound},
		"access is denied":                  {`{"error":"pull access denied for x, repository does not exist or may require 'docker login'"}`, updater.Unauthorized},
		"the disk is full":                  {`{"error":"write /var/lib/docker/tmp/GetImageBlob1: no space left on device"}`, ""},
		"the stream is cut off":             {`{"status":"Downlo`, ""},
		"it is not JSON":                    {`<html>login</html>`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := follow(strings.NewReader(`{"status":"Pulling from x"}`+"\n"+row.line), func(updater.Progress) {})
			require.Error(t, err)
			err = pullError("x@sha256:1", platform, err)
			var refusal *updater.Refusal
			if row.want == "" {
				require.NotErrorAs(t, err, &refusal)
				return
			}
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, row.want, refusal.Reason)
		})
	}
}

func TestAPullReportsItsBytes(t *testing.T) {
	var last updater.Progress
	err := follow(strings.NewReader(`
		{"status":"Pulling from app","id":"1.0"}
		{"status":"Downloading","id":"a","progressDetail":{"current":5,"total":10}}
		{"status":"Downloading","id":"b","progressDetail":{"current":1,"total":4}}
		{"status":"Download complete","id":"a"}
		{"status":"Extracting","id":"a","progressDetail":{"current":1,"total":99}}
		{"status":"Pull complete","id":"b"}`), func(p updater.Progress) { last = p })
	require.NoError(t, err)
	require.Equal(t, updater.Progress{Step: "pulling", Done: 14, Total: 14}, last)
}

func FuzzAPullStreamNeverPanics(f *testing.F) {
	f.Add([]byte(`{"status":"Downloading","id":"a","progressDetail":{"current":5,"total":10}}`))
	f.Add([]byte(`{"error":"x"}`))
	f.Fuzz(func(t *testing.T, stream []byte) {
		_ = follow(bytes.NewReader(stream), func(p updater.Progress) { require.Equal(t, "pulling", p.Step) })
	})
}

const (
	id1 = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	id2 = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

func TestWhatAContainerIs(t *testing.T) {
	running := container.Summary{ID: "c1", Names: []string{"/web"}, ImageID: id1, State: container.StateRunning}
	pulled := &image.InspectResponse{
		ID: id1, RepoTags: []string{"web:1"}, RepoDigests: []string{"other/web@" + id1, "web@" + id1, "web@" + id2},
		Os: "linux", Architecture: "arm", Variant: "v7",
	}
	local := &image.InspectResponse{ID: id1, RepoTags: []string{"web:1"}}
	with := func(edit func(*container.Summary)) container.Summary {
		c := running
		edit(&c)
		return c
	}
	for name, row := range map[string]struct {
		c        container.Summary
		ref      string
		img, tag *image.InspectResponse
		want     updater.Reason // "": not skipped
	}{
		"a running container of a pulled image":          {running, "web:1", pulled, pulled, ""},
		"its image without a tag":                        {running, "web", pulled, pulled, ""},
		"its image was built here":                       {running, "web:1", local, local, updater.LocalImage},
		"its tag was taken by a local build":             {running, "web:1", pulled, local, updater.LocalImage},
		"its image lost its digests when the tag moved":  {running, "web:1", local, pulled, ""},
		"its image was pulled under another name":        {running, "mine:1", pulled, pulled, updater.LocalImage},
		"its tag is not here any more":                   {running, "web:1", pulled, nil, ""},
		"its image is an id":                             {running, id1, pulled, pulled, updater.Pinned},
		"its image is an id without the algorithm":       {running, strings.TrimPrefix(id1, "sha256:"), pulled, nil, updater.Pinned},
		"its image is a short id":                        {running, "111111111111", pulled, nil, updater.Pinned},
		"its image is named like a short id":             {running, "1111", pulled, &image.InspectResponse{ID: id1, RepoTags: []string{"1111:latest"}, RepoDigests: []string{"1111@" + id1}}, ""},
		"its image has a tag and a digest":               {running, "web:1@" + id1, pulled, nil, ""},
		"its image is no reference":                      {running, "WEB::1", pulled, nil, updater.Unsupported},
		"it has exited":                                  {with(func(c *container.Summary) { c.State = container.StateExited }), "web:1", pulled, pulled, updater.NotRunning},
		"it is paused":                                   {with(func(c *container.Summary) { c.State = container.StatePaused }), "web:1", pulled, pulled, updater.NotRunning},
		"it is being restarted":                          {with(func(c *container.Summary) { c.State = container.StateRestarting }), "web:1", pulled, pulled, updater.NotRunning},
		"it was only created":                            {with(func(c *container.Summary) { c.State = container.StateCreated }), "web:1", pulled, pulled, updater.NotRunning},
		"it is a task of a swarm":                        {with(func(c *container.Summary) { c.Labels = map[string]string{"com.docker.swarm.task.id": "x"} }), "web:1", pulled, pulled, updater.ManagedElsewhere},
		"it is Kubernetes' own":                          {with(func(c *container.Summary) { c.Labels = map[string]string{"io.kubernetes.pod.name": "x"} }), "web:1", pulled, pulled, updater.ManagedElsewhere},
		"a local image that does not run is still local": {with(func(c *container.Summary) { c.State = container.StateExited }), "web:1", local, local, updater.LocalImage},
	} {
		t.Run(name, func(t *testing.T) {
			w := workload("local", row.c, row.ref, row.img, row.tag)
			require.Equal(t, "local/web", w.ID)
			require.Equal(t, row.ref, w.Image)
			if row.want == "" {
				require.Nil(t, w.Skip)
				return
			}
			require.NotNil(t, w.Skip)
			require.Equal(t, row.want, w.Skip.Reason)
			require.NotEmpty(t, w.Skip.Detail)
		})
	}

	w := workload("local", with(func(c *container.Summary) {
		c.Labels = map[string]string{"updaterd.policy": "minor", "updaterd-swap.change": "1", "team": "blue"}
	}), "docker.io/library/web:1", pulled, pulled)
	require.Equal(t, map[string]string{"policy": "minor"}, w.Written)
	require.Equal(t, []string{id1, id2}, w.Runs.Digests, "those of its own repository, all of them")
	require.Equal(t, id1, w.Runs.Config)
	require.Empty(t, w.Runs.Manifest)
	require.Equal(t, "linux/arm/v7", w.Runs.Platform.String())

	w = workload("local", with(func(c *container.Summary) {
		c.ImageManifestDescriptor = &ocispec.Descriptor{Digest: digest.Digest(id2)}
	}), "web:1", local, pulled)
	require.Equal(t, id2, w.Runs.Manifest)
	require.Equal(t, []string{id1}, w.Runs.Digests, "with the containerd store the image's id is the digest of its index")
	require.Empty(t, w.Runs.Config)
}

func TestWhatIsNoWorkload(t *testing.T) {
	c := func(id, name string, labels map[string]string) container.Summary {
		return container.Summary{ID: id, Names: []string{"/peer/alias", "/" + name}, State: container.StateRunning, Labels: labels}
	}
	var names []string
	for _, l := range listed([]container.Summary{
		c("1", "web", nil),
		c("2", "web.updaterd-new", nil),
		c("3", "db.updaterd-old", nil),
		c("4", "db.updaterd-test", nil),
		c("5", ".updaterd-new", nil),
		c("6", "cache", map[string]string{labelReplaces: "3"}),
		c("7", "queue", map[string]string{labelReplaces: "gone"}),
		c("8", "project-web-run-1", map[string]string{labelOneOff: "True"}),
	}) {
		names = append(names, nameOf(l))
	}
	require.Equal(t, []string{"web", ".updaterd-new", "queue"}, names)
}

func TestComposeSaysWhatAContainerNeeds(t *testing.T) {
	c := func(id, name, project, service, needs string) container.Summary {
		return container.Summary{ID: id, Names: []string{"/" + name}, Labels: map[string]string{
			labelProject: project, labelService: service, labelDependsOn: needs,
		}}
	}
	web := c("1", "p-web-1", "p", "web", "db:service_healthy:true,cache:service_started:false, gone:service_started:false")
	all := []container.Summary{
		web, c("2", "p-db-1", "p", "db", ""), c("3", "p-db-2", "p", "db", ""), c("4", "q-db-1", "q", "db", ""), c("5", "mycache", "p", "cache", ""),
	}
	require.Equal(t, []string{"local/mycache", "local/p-db-1", "local/p-db-2"}, dependsOn("local", web, all))
	require.Empty(t, dependsOn("local", all[1], all))
}

func TestTracesThatChangesLeave(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := func(id, name string, state container.ContainerState, labels map[string]string) container.Summary {
		return container.Summary{ID: id, Names: []string{"/" + name}, State: state, Labels: labels}
	}
	ours := func(edit ...string) map[string]string {
		m := map[string]string{labelReplaces: "old", labelChange: "c1", labelOwner: "me", labelUntil: now.Add(time.Hour).Format(time.RFC3339)}
		for i := 0; i+1 < len(edit); i += 2 {
			m[edit[i]] = edit[i+1]
		}
		return m
	}
	up, down := container.StateRunning, container.StateExited
	for name, row := range map[string]struct {
		all  []container.Summary
		want updater.Phase // "": none
	}{
		"a change that is over":                         {[]container.Summary{c("new", "web", up, ours())}, ""},
		"the new one only created":                      {[]container.Summary{c("old", "web", up, nil), c("new", "web.updaterd-new", container.StateCreated, ours())}, updater.Restoring},
		"the new one started, no name changed":          {[]container.Summary{c("old", "web", down, nil), c("new", "web.updaterd-new", up, ours())}, updater.Restoring},
		"the original set aside, nothing has the name":  {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web.updaterd-new", up, ours())}, updater.Restoring},
		"the new one in service":                        {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", up, ours())}, updater.Judging},
		"the new one in its place, but stopped":         {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", down, ours())}, updater.Restoring},
		"the new one is all there is":                   {[]container.Summary{c("new", "web.updaterd-new", down, ours())}, updater.Restoring},
		"the original set aside alone":                  {[]container.Summary{c("old", "web.updaterd-old", down, nil)}, updater.Restoring},
		"the original set aside, a stranger in place":   {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("x", "web", up, nil)}, ""},
		"a person gave the original a name of its own":  {[]container.Summary{c("old", "before", down, nil), c("new", "web", up, ours())}, ""},
		"a live change of another installation":         {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", up, ours(labelOwner, "you"))}, ""},
		"a dead change of another installation":         {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", up, ours(labelOwner, "you", labelUntil, now.Add(-time.Minute).Format(time.RFC3339)))}, updater.Judging},
		"a change of another whose time cannot be read": {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", up, ours(labelOwner, "you", labelUntil, "soon"))}, updater.Judging},
		"an idle one in its place":                      {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", container.StateCreated, ours(labelIdle, "exited"))}, updater.Judging},
		"an idle one, no name changed":                  {[]container.Summary{c("old", "web", container.StatePaused, nil), c("new", "web.updaterd-new", container.StateCreated, ours(labelIdle, "paused"))}, updater.Restoring},
		"started first, both serve":                     {[]container.Summary{c("old", "web", up, nil), c("new", "web.updaterd-new", up, ours(labelStartFirst, "true"))}, updater.Restoring},
		"started first, the original set aside":         {[]container.Summary{c("old", "web.updaterd-old", up, nil), c("new", "web.updaterd-new", up, ours(labelStartFirst, "true"))}, updater.Restoring},
		"started first and in its place, which is late": {[]container.Summary{c("old", "web.updaterd-old", up, nil), c("new", "web", up, ours(labelStartFirst, "true"))}, updater.Committing},
		"a copy that was not started":                   {[]container.Summary{c("old", "web", container.StateCreated, map[string]string{labelCopy: "c1"})}, updater.Restoring},
		"a copy of one that did not run":                {[]container.Summary{c("old", "web", container.StateCreated, map[string]string{labelCopy: "c1", labelIdle: "exited"})}, ""},
		"a copy that was started":                       {[]container.Summary{c("old", "web", down, map[string]string{labelCopy: "c1"})}, ""},
		"a change that the journal knows":               {[]container.Summary{c("old", "web.updaterd-old", down, nil), c("new", "web", up, ours(labelChange, "known"))}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := traces(row.all, "me", map[string]bool{"known": true}, now)
			if row.want == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			require.Equal(t, row.want, found[0].phase)
			require.Len(t, found[0].parts, 1)
			require.Equal(t, "web", found[0].parts[0].name)
			require.Equal(t, "old", found[0].parts[0].replaces)
		})
	}
}

func TestTracesThatGroupsLeave(t *testing.T) {
	const up, down, made = container.StateRunning, container.StateExited, container.StateCreated
	// vpn, and app that lives in it; job did so, and had ended.
	old := func(name, suffix string, state container.ContainerState) container.Summary {
		return container.Summary{ID: "old-" + name, Names: []string{"/" + name + suffix}, State: state}
	}
	fresh := func(name, suffix string, state container.ContainerState) container.Summary {
		c := container.Summary{ID: "new-" + name, Names: []string{"/" + name + suffix}, State: state, Labels: map[string]string{
			labelReplaces: "old-" + name, labelChange: "c1", labelOwner: "me",
			labelGroup: "old-vpn,old-app,old-job:exited", labelRestarts: "web,cron:exited",
		}}
		if name == "job" {
			c.Labels[labelIdle] = "exited"
		}
		return c
	}
	const set, aside = "", suffixNew
	all := func(c ...container.Summary) []container.Summary { return c }
	vpn, app, job := traceOf{"vpn", "old-vpn", "new-vpn", "old-vpn", ""}, traceOf{"app", "old-app", "new-app", "old-app", ""},
		traceOf{"job", "old-job", "new-job", "old-job", "exited"}
	noNew, noOld := func(p traceOf) traceOf { p.new = ""; return p }, func(p traceOf) traceOf { p.old = ""; return p }
	for name, row := range map[string]struct {
		all   []container.Summary
		want  updater.Phase // "": none
		parts []traceOf
	}{
		"partly prepared": {
			all(old("vpn", "", up), old("app", "", up), old("job", "", down), fresh("vpn", aside, made)),
			updater.Restoring, []traceOf{vpn, noNew(app), noNew(job)}},
		"prepared": {
			all(old("vpn", "", up), old("app", "", up), old("job", "", down), fresh("vpn", aside, made), fresh("app", aside, made), fresh("job", aside, made)),
			updater.Restoring, []traceOf{vpn, app, job}},
		"partly renamed": {
			all(old("vpn", suffixOld, down), old("app", suffixOld, down), old("job", suffixOld, down), fresh("vpn", set, up), fresh("app", aside, up), fresh("job", aside, made)),
			updater.Restoring, []traceOf{vpn, app, job}},
		"all in service": {
			all(old("vpn", suffixOld, down), old("app", suffixOld, down), old("job", suffixOld, down), fresh("vpn", set, up), fresh("app", set, up), fresh("job", set, made)),
			updater.Judging, []traceOf{vpn, app, job}},
		"in service, but one has stopped": {
			all(old("vpn", suffixOld, down), old("app", suffixOld, down), old("job", suffixOld, down), fresh("vpn", set, up), fresh("app", set, down), fresh("job", set, made)),
			updater.Restoring, []traceOf{vpn, app, job}},
		"one was taken away in service": {
			all(old("vpn", suffixOld, down), old("app", suffixOld, down), old("job", suffixOld, down), fresh("vpn", set, up), fresh("job", set, made)),
			updater.Restoring, []traceOf{vpn, noNew(app), job}},
		"partly committed": {
			all(old("vpn", suffixOld, down), old("app", suffixOld, down), fresh("vpn", set, up), fresh("app", set, up), fresh("job", set, made)),
			updater.Committing, []traceOf{vpn, app, noOld(job)}},
		"partly committed, and one has stopped since": {
			all(old("vpn", suffixOld, down), fresh("vpn", set, up), fresh("app", set, down), fresh("job", set, made)),
			updater.Committing, []traceOf{vpn, noOld(app), noOld(job)}},
		"committed": {
			all(fresh("vpn", set, up), fresh("app", set, up), fresh("job", set, made)), "", nil},
		"partly taken back": {
			all(old("vpn", suffixOld, down), old("app", "", down), old("job", "", down), fresh("vpn", aside, down), fresh("app", aside, down), fresh("job", aside, made)),
			updater.Restoring, []traceOf{vpn, app, job}},
		"taken back but for what is left of the first": {
			all(old("vpn", "", up), old("app", "", up), old("job", "", down), fresh("vpn", aside, down)),
			updater.Restoring, []traceOf{vpn, noNew(app), noNew(job)}},
		"the originals were pruned": {
			all(fresh("vpn", set, up), fresh("app", aside, down)),
			updater.Restoring, []traceOf{noOld(vpn), noOld(app)}},
		"one that is over, whose containers were replaced since": {
			all(old("web", "", up), container.Summary{ID: "new-vpn", Names: []string{"/vpn" + suffixOld}, State: down, Labels: fresh("vpn", set, up).Labels},
				container.Summary{ID: "next-vpn", Names: []string{"/vpn"}, State: up, Labels: map[string]string{labelReplaces: "new-vpn", labelChange: "known"}}),
			"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			found := traces(row.all, "me", map[string]bool{"known": true}, time.Now())
			if row.want == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			require.Equal(t, trace{"c1", row.want, row.parts, []member{{id: "web"}, {id: "cron", idle: "exited"}}}, found[0])
		})
	}
}

func TestTagsOfOurOwnAreReferences(t *testing.T) {
	seen := map[string]string{}
	long := strings.Repeat("web-", 100)
	for _, name := range []string{"web", "my_app", "my__app", "My_App", "my-app-1", "a..b", "x.", "MY_APP", "0", "web.1", "-x", long + "1", long + "2"} {
		c := updater.Change{ID: "2026/03 01#ü", Since: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
		for _, tag := range []string{keptTag(name, c.ID), previousTag(name, c)} {
			_, err := reference.ParseNormalizedNamed(tag)
			require.NoError(t, err, tag)
			require.Empty(t, seen[tag], "%s and %s share %s", name, seen[tag], tag)
			seen[tag] = name
		}
	}
	early := previousTag("web", updater.Change{ID: "z", Since: time.Unix(1000, 0)})
	late := previousTag("web", updater.Change{ID: "a", Since: time.Unix(2000, 0)})
	require.Less(t, early, late, "they sort by age")
}

func FuzzTagsOfOurOwnAreReferences(f *testing.F) {
	f.Add("web", "change-1")
	f.Fuzz(func(t *testing.T, name, change string) {
		if name == "" {
			t.Skip()
		}
		_, err := reference.ParseNormalizedNamed(keptTag(name, change))
		require.NoError(t, err)
	})
}

func TestTimeoutOfAHealthCheck(t *testing.T) {
	for name, row := range map[string]struct {
		check *container.HealthConfig
		want  time.Duration
	}{
		"none":              {nil, time.Minute},
		"switched off":      {&container.HealthConfig{Test: []string{"NONE"}, Interval: time.Hour}, time.Minute},
		"Docker's defaults": {&container.HealthConfig{Test: []string{"CMD", "x"}}, 4 * time.Minute},
		"its own": {&container.HealthConfig{
			Test: []string{"CMD", "x"}, Interval: 20 * time.Second, Timeout: 10 * time.Second, Retries: 1, StartPeriod: 30 * time.Second,
		}, 90 * time.Second},
		"a quick one": {&container.HealthConfig{Test: []string{"CMD", "x"}, Interval: time.Second, Timeout: time.Second, Retries: 1}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, row.want, ownTimeout(row.check)) })
	}
}

func TestHealthOfWhatDoesNotRun(t *testing.T) {
	for name, row := range map[string]struct {
		state container.State
		want  updater.EngineHealth
	}{
		"running":                   {container.State{Running: true}, updater.HealthUnhealthy},
		"exited":                    {container.State{}, updater.HealthNone},
		"about to be started again": {container.State{Running: true, Restarting: true}, updater.HealthNone},
	} {
		t.Run(name, func(t *testing.T) {
			row.state.Health = &container.Health{Status: container.Unhealthy}
			b := &box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{State: &row.state}}}
			require.Equal(t, row.want, engineHealth(b))
		})
	}
}

func TestRestartsOfTheLifeBeforeDoNotCount(t *testing.T) {
	o := origin{Restarts: 5, StartedAt: "then"}
	b := func(restarts int, started string) *box {
		return &box{InspectResponse: container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
			RestartCount: restarts, State: &container.State{StartedAt: started},
		}}}
	}
	require.Zero(t, restartsSince(b(5, "then"), o), "it was never stopped")
	require.Zero(t, restartsSince(b(0, "now"), o), "it was started by us")
	require.Equal(t, 2, restartsSince(b(2, "now"), o))
	require.Equal(t, 1, restartsSince(b(6, "now"), o), "it went on without us")
}

func TestTheLastLinesOfALog(t *testing.T) {
	var framed bytes.Buffer
	out, errOut := stdcopy.NewStdWriter(&framed, stdcopy.Stdout), stdcopy.NewStdWriter(&framed, stdcopy.Stderr)
	fmt.Fprintln(out, "hello")
	fmt.Fprintln(errOut, "world")
	require.Equal(t, "hello\nworld", lastLines(bytes.NewReader(framed.Bytes()), false))
	require.Equal(t, "hello", lastLines(bytes.NewReader(framed.Bytes()[:framed.Len()-3]), false), "what is cut off is left out")
	require.Equal(t, "hello", lastLines(strings.NewReader("hello\n"), true))
	long := strings.Repeat("äöü and so on\n", 1000)
	got := lastLines(strings.NewReader(long), true)
	require.LessOrEqual(t, len(got), mostLog)
	require.True(t, strings.HasPrefix(got, "äöü"), "whole lines")
}

func TestCommandOfAnExecProbe(t *testing.T) {
	argv, err := probeCommand(`["sh", "-c", "curl -f localhost || exit 1"]`)
	require.NoError(t, err)
	require.Equal(t, []string{"sh", "-c", "curl -f localhost || exit 1"}, argv)
	for _, s := range []string{"", "  ", "[", "[1]", "[]", "/bin/check -q"} {
		_, err := probeCommand(s)
		require.Error(t, err, "%q", s)
	}
}

func TestWhichContainerThisIs(t *testing.T) {
	id := strings.Repeat("ab", 32)
	other := strings.Repeat("cd", 32)
	require.Equal(t, []string{id}, mountedIDs(strings.NewReader(
		"700 600 8:1 /var/lib/docker/containers/"+id+"/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"+
			"701 600 0:50 / /proc rw - proc proc rw\n")))
	require.Empty(t, mountedIDs(strings.NewReader(
		"30 1 0:60 / /var/lib/docker/overlay2/"+other+"/merged rw - overlay overlay rw\n"+
			"31 1 0:61 / /var/lib/docker/containers/"+other+"/mounts/shm rw - tmpfs shm rw\n")), "a host sees its containers' mounts")
	require.Equal(t, []string{id}, cgroupIDs(strings.NewReader("12:memory:/docker/"+id+"\n")))
	require.Equal(t, []string{id}, cgroupIDs(strings.NewReader("0::/system.slice/docker-"+id+".scope\n")))
	require.Empty(t, cgroupIDs(strings.NewReader("0::/\n")))
}

func TestEndpointsThatCannotBe(t *testing.T) {
	for _, e := range []string{"ssh://host", "/var/run/docker.sock", "npipe:////./pipe/docker_engine", "tcp:host"} {
		_, err := New(Options{Name: "local", Endpoint: e})
		require.ErrorContains(t, err, "unix:///var/run/docker.sock", e)
	}
	h, err := New(Options{Name: "local", Endpoint: "unix:///nowhere/docker.sock"})
	require.NoError(t, err, "an engine that is down may come up later")
	_, err = h.Workloads(t.Context())
	var refusal *updater.Refusal
	require.Error(t, err)
	require.False(t, errors.As(err, &refusal))
	require.ErrorContains(t, err, "unix:///nowhere/docker.sock")
}

func TestAStopSignalIsRefusedWhereItWouldBeLeftOut(t *testing.T) {
	for _, c := range []struct {
		set, own, api string
		refused       bool
	}{
		{"", "", "1.41", false},
		{"SIGINT", "", "1.41", true},
		{"SIGINT", "", "1.42", false},
		{"SIGINT", "SIGINT", "1.41", false},
		{"SIGINT", "int", "1.41", false},
	} {
		err := refuseSignal(c.set, c.own, c.api)
		require.Equal(t, c.refused, err != nil, "%+v", c)
	}
}

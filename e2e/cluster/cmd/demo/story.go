package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/updaterd/updaterd/e2e/play"
	"github.com/updaterd/updaterd/e2e/stage"
)

// config is the file that updaterd is started with, but for where the cluster is.
const config = `schedule: "@every 1s"   # the default is every 15 minutes
jitter: 0s
watch: labelled         # only what is annotated updaterd.dev/enable
defaults:
  policy: major         # from v1 to v2, v3, ...
  health: {stable: 2s}  # how long a rollout must stay complete
kubernetes:
  - name: prod
    kubeconfig: %s
    namespaces: [shop]
    state-namespace: updaterd
`

// manifest is the Deployment, with an image to be filled in.
const manifest = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  annotations: {updaterd.dev/enable: "true"}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: app
          image: %s
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

const (
	namespace  = "shop"
	state      = "updaterd"
	workload   = "prod/shop/deployment/web/app"
	repository = "web"
	replicas   = 3
	// A rollout must be over long before.
	patience = 40 * time.Second
)

// story is what happens, with all that is on stage.
type story struct {
	*play.Play
	kubeconfig string
	cache      string // kubectl's
	registry   *stage.Registry
	updaterd   *stage.Updaterd
	daemon     *stage.Daemon
}

// tell performs the story and fails p where something does not hold.
func tell(p *play.Play) {
	s := &story{Play: p, kubeconfig: os.Getenv("KUBECONFIG"), cache: p.TempDir()}
	s.open()
	s.runV1()
	s.startUpdaterd()
	first := s.publishV2()
	bad := s.publishV3(first)
	s.leaveAlone(bad)
	s.close()
}

// open sets the stage.
func (s *story) open() {
	s.hold(s.kubeconfig != "", "KUBECONFIG leads to a cluster; run this by `make demo-cluster`")
	var version struct {
		ServerVersion struct{ GitVersion string }
	}
	s.must(json.Unmarshal([]byte(s.kubectl("version", "-o", "json")), &version), "read the cluster's version")
	for _, name := range []string{namespace, state} {
		s.kubectl("create", "namespace", name)
		// What is in it goes by itself, at the latest with the cluster.
		s.Cleanup(func() { s.kubectl("delete", "namespace", name, "--wait=false") })
	}
	s.until("the namespace's service account", func() bool {
		return s.kubectl("-n", namespace, "get", "serviceaccounts", "-o", "name") != ""
	})
	s.registry = stage.NewRegistry(s, stage.RegistryOptions{})
	s.updaterd = stage.NewUpdaterd(s, "", fmt.Sprintf(config, s.kubeconfig))
	s.updaterd.Env = nil // It is to find no Docker.

	s.Screen.Title("updaterd in a cluster: an update that goes well, and one that does not")
	said := s.updaterd.Run("version")
	s.hold(said.Code == 0, "`updaterd version` exits with 0")
	s.Screen.Fact("cluster", "Kubernetes %s, with nodes that are played: no pod runs a program, all else is real", version.ServerVersion.GitVersion)
	s.Screen.Fact("registry", "%s, for this demo", s.registry.Host)
	s.Screen.Fact("updaterd", "%s", strings.TrimSpace(strings.TrimPrefix(said.Stdout, "updaterd ")))
}

func (s *story) runV1() {
	s.Screen.Act("A Deployment runs v1")
	s.registry.Push(repository+":v1", stage.Image{Version: "v1"})
	file := filepath.Join(s.TempDir(), "web.yaml")
	s.must(os.WriteFile(file, fmt.Appendf(nil, manifest, s.registry.Ref(repository+":v1")), 0o600), "write the manifest")
	s.Screen.Command("kubectl -n shop apply -f web.yaml", s.kubectl("-n", namespace, "apply", "-f", file))
	s.until("v1 to be ready", func() bool { return s.deployment().done() })
	s.show()
}

func (s *story) startUpdaterd() {
	s.Screen.Act("updaterd watches it")
	s.Screen.Command("cat updaterd.yaml", fmt.Sprintf(config, s.kubeconfig))
	s.Screen.Say("")
	s.Screen.Command("updaterd run --config updaterd.yaml", "")
	generation := s.deployment().Metadata.Generation
	s.daemon = s.updaterd.Start("run")
	s.passes(2)
	s.hold(s.deployment().Metadata.Generation == generation, "with nothing new, updaterd changes nothing")
}

// publishV2 returns the digest that is good.
func (s *story) publishV2() string {
	s.Screen.Act("v2 is published: it gets ready, so it stays")
	least := s.watchReady()
	digest := s.publish("v2", stage.Behaviour{})
	s.over("committed")
	s.Screen.Say("")
	s.show()
	s.Screen.Say("")
	s.runs(digest)
	s.Screen.Held("all %d pods run the digest that was published as v2", replicas)
	s.Screen.Held("there never were fewer than %d ready pods", s.enough(least()))
	return digest
}

// publishV3 returns the digest that is bad.
func (s *story) publishV3(good string) string {
	s.Screen.Act("v3 is published: it crashes, so v2 is put back")
	before := s.deployment()
	least := s.watchReady()
	digest := s.publish("v3", stage.Exit(3))
	s.over("restored")
	s.Screen.Say("")
	s.show()
	s.Screen.Say("")
	s.runs(good)
	after := s.deployment()
	s.hold(string(before.Spec) == string(after.Spec), "the Deployment's spec is what it was\nbefore: %s\nafter: %s", before.Spec, after.Spec)
	s.Screen.Held("the Deployment's spec is what it was, to the letter, and its %d pods run v2", replicas)
	s.Screen.Held("there never were fewer than %d ready pods", s.enough(least()))
	return digest
}

func (s *story) leaveAlone(digest string) {
	s.Screen.Act("v3 is rejected, and what happened can be read")
	generation := s.deployment().Metadata.Generation
	s.passes(2)
	s.hold(s.deployment().Metadata.Generation == generation, "v3 is not tried again")
	row := s.check()
	s.hold(row.Decision == "none" && row.Reason == "rejected" && row.Candidate != nil && row.Candidate.Digest == digest, "the digest of v3 is rejected: %+v", row)
	s.Screen.Held("two passes later v3 has not been tried again; a v4 would be, or another v3")
	s.Screen.Say("")

	var lines, reasons []string
	// TYPE REASON AGE FROM MESSAGE; the age may be "3s (x2 over 5s)".
	for line := range strings.Lines(s.kubectl("-n", namespace, "describe", "deployment", "web")) {
		event, message, ok := strings.Cut(line, "  updaterd  ")
		if fields := strings.Fields(event); ok && len(fields) >= 3 {
			reasons = append(reasons, fields[1])
			lines = append(lines, fields[1]+": "+play.Short(strings.TrimSpace(message)))
		}
	}
	slices.Sort(reasons)
	s.hold(slices.Equal(reasons, []string{"UpdateCommitted", "UpdateRejected", "UpdateRestored", "UpdateStarted", "UpdateStarted"}),
		"`kubectl describe` shows what happened: %q", lines)
	s.Screen.Command("kubectl -n shop describe deployment web   # of its events, those by updaterd", "")
	for _, line := range lines {
		s.Screen.Point(line)
	}
	s.Screen.Say("")
	s.history()
}

func (s *story) history() {
	var events []struct{ Event, Verdict string }
	r := s.updaterd.Run("history", "-o", "json")
	s.must(json.Unmarshal([]byte(r.Stdout), &events), "read the JSON of `updaterd history`")
	s.hold(r.Code == 0 && len(events) == 2 && events[0].Event == "restored" && events[0].Verdict == "bad" &&
		events[1].Event == "updated" && events[1].Verdict == "good", "the history has one update and one restore: %s", r.Stdout)
	s.Screen.Table("updaterd history", s.updaterd.Run("history").Stdout)
	s.Screen.Say("")
}

// close ends updaterd as an operator does. The cleanups do the rest.
func (s *story) close() {
	code := s.daemon.Stop(10 * time.Second)
	s.hold(code == 0, "updaterd ends with 0 on SIGTERM, not %d", code)
	s.hold(s.deployment().done(), "the Deployment goes on without updaterd")
	s.Screen.Held("updaterd has ended on SIGTERM, and the Deployment went on")
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

// until waits for something that only kubectl tells.
func (s *story) until(what string, ok func() bool) { stage.Eventually(s, patience, what, ok) }

func (s *story) command(args ...string) *exec.Cmd {
	cmd := exec.Command("kubectl", args...)
	cmd.Env = append(os.Environ(), "KUBECACHEDIR="+s.cache)
	return cmd
}

// kubectl returns what it printed.
func (s *story) kubectl(args ...string) string {
	var problems strings.Builder
	cmd := s.command(args...)
	cmd.Stderr = &problems
	b, err := cmd.Output()
	if err != nil {
		s.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, &problems)
	}
	return string(b)
}

// show prints the Deployment as kubectl does.
func (s *story) show() {
	out := s.kubectl("-n", namespace, "get", "deployment", "web", "-o",
		"custom-columns=NAME:.metadata.name,READY:.status.readyReplicas,UP-TO-DATE:.status.updatedReplicas,IMAGE:.spec.template.spec.containers[0].image")
	s.Screen.Command("kubectl -n shop get deployment web -o custom-columns=...", play.Short(out))
}

// deployment is what the API server has of it.
type deployment struct {
	Metadata struct{ Generation int64 }
	Spec     json.RawMessage
	Status   struct {
		ObservedGeneration                       int64
		Replicas, ReadyReplicas, UpdatedReplicas int
	}
}

// done: kubectl rollout status would end.
func (d deployment) done() bool {
	return d.Status.ObservedGeneration == d.Metadata.Generation && d.Status.Replicas == replicas &&
		d.Status.UpdatedReplicas == replicas && d.Status.ReadyReplicas == replicas
}

func (s *story) deployment() deployment {
	var d deployment
	s.must(json.Unmarshal([]byte(s.kubectl("-n", namespace, "get", "deployment", "web", "-o", "json")), &d), "read the Deployment")
	return d
}

// runs proves what the pods run, as the nodes say.
func (s *story) runs(digest string) {
	var got []string
	s.until("the old pods to be gone", func() bool {
		got = strings.Fields(s.kubectl("-n", namespace, "get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.status.containerStatuses[0].imageID}{"\n"}{end}`))
		return s.deployment().done() && len(got) == replicas
	})
	for _, id := range got {
		s.hold(strings.HasSuffix(id, "@"+digest), "every pod runs %s: %q", digest, got)
	}
}

// watchReady follows how many pods are ready until the returned function is called,
// which says the least that there were: a watch tells every state there was.
func (s *story) watchReady() (least func() int) {
	cmd := s.command("-n", namespace, "get", "deployment", "web", "--watch", "-o", `jsonpath={.status.readyReplicas}{"\n"}`)
	out, err := cmd.StdoutPipe()
	s.must(err, "watch the Deployment")
	s.must(cmd.Start(), "watch the Deployment")
	first, done := make(chan struct{}), make(chan struct{})
	fewest := replicas
	go func() {
		defer close(done)
		opened := sync.OnceFunc(func() { close(first) })
		defer opened()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			n, err := strconv.Atoi(lines.Text())
			if err != nil {
				n = 0 // None is an empty line.
			}
			fewest = min(fewest, n)
			opened()
		}
	}()
	stop := sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait() // It was killed.
	})
	s.Cleanup(stop)
	<-first
	return func() int { stop(); return fewest }
}

func (s *story) enough(ready int) int {
	s.hold(ready == replicas, "there always are %d ready pods; there were %d", replicas, ready)
	return ready
}

// publish pushes a version and returns its digest.
func (s *story) publish(version string, b stage.Behaviour) string {
	s.Screen.Clock()
	digest := s.registry.Push(repository+":"+version, stage.Image{Version: version, Behave: b})
	s.Screen.Event("registry", "has %s, %s", s.registry.Ref(repository+":"+version), play.Short(digest))
	return digest
}

// passes waits until so many passes have begun and ended from now on: with this
// policy, each asks for the tags once.
func (s *story) passes(n int) {
	asked := func() int { return s.registry.Count("GET", "/tags/list$") }
	// One more, which begins when the last of them has ended.
	from := asked()
	s.until(fmt.Sprintf("%d passes", n), func() bool { return asked() >= from+n+1 })
}

// over waits until a change is.
func (s *story) over(phase string) {
	s.until("a change to be "+phase, func() bool {
		select {
		case <-s.daemon.Done():
			s.Fatalf("updaterd goes on running")
		default:
		}
		return strings.Contains(s.daemon.Logs(), "phase="+phase)
	})
}

type row struct {
	Decision, Reason, Detail string
	Candidate                *struct{ Image, Digest string }
}

// check asks `updaterd check` for the workload's row.
func (s *story) check() row {
	r := s.updaterd.Run("check", "-o", "json", workload)
	var rows []row
	s.must(json.Unmarshal([]byte(r.Stdout), &rows), "read the JSON of `updaterd check`")
	s.hold(r.Code == 0 && len(rows) == 1, "`updaterd check` prints one row and exits with 0, not %d with %d", len(rows), r.Code)
	return rows[0]
}

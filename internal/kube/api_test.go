package kube

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/rest"
)

// server is an API server in memory, with controllers that act at once: pods become
// what their images say, by the end of the reference's tag. It keeps to what the
// real one does with versions, generations, preconditions and dry runs.
type server struct {
	t *testing.T

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]any // by resource/namespace/name
	denied   map[string]bool           // "verb resource"
	podPulls []string                  // what admission has pods pull by, from their ServiceAccount
	from     string                    // the repository that nodes say images are from; "": their own
	named    []string                  // resources some of which may be got by name
	requests []string
	watchers map[chan event]string
	ahead    time.Duration // of its clock to ours
	fail     int           // the nth write from now on fails; 0: none
	done     bool          // after it was done
	struck   bool
	// admit, when set, is what admission makes of a patched object, as JSON.
	admit func(string) string
	// before is called before a write is made, without the lock.
	before func(method, path string)
}

type event struct {
	Type   string         `json:"type"`
	Object map[string]any `json:"object"`
}

func newServer(t *testing.T) *server {
	return &server{t: t, objects: map[string]map[string]any{}, denied: map[string]bool{}, watchers: map[chan event]string{}}
}

// cluster is a backend that speaks to the server, as a new process would have it.
func (s *server) cluster(t *testing.T) *Cluster {
	t.Helper()
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
	})
	c, err := New(Options{Name: "prod", REST: &rest.Config{Host: web.URL}, Namespaces: []string{"shop"}})
	require.NoError(t, err)
	return c
}

func toMap(v any) map[string]any {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(raw, &m); err != nil {
		panic(err)
	}
	return m
}

func as[T any](m map[string]any) *T {
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	v := new(T)
	if err := json.Unmarshal(raw, v); err != nil {
		panic(err)
	}
	return v
}

func dig(m map[string]any, path ...string) map[string]any {
	for _, p := range path {
		next, _ := m[p].(map[string]any)
		if next == nil {
			return map[string]any{}
		}
		m = next
	}
	return m
}

// put stores an object as a person's write would, and lets the controllers act.
func (s *server) put(resource string, object any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := toMap(object)
	key := resource + "/" + dig(m, "metadata")["namespace"].(string) + "/" + dig(m, "metadata")["name"].(string)
	s.store(key, m, "kubectl")
	s.control()
}

// remove takes an object away, with its pods.
func (s *server) remove(resource, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(resource + "/shop/" + name)
	for key, o := range s.objects {
		if strings.HasPrefix(key, "pods/") && as[pod1](o).of() == resource+"/"+name {
			s.drop(key)
		}
	}
}

func (s *server) store(key string, m map[string]any, manager string) {
	s.version++
	meta := dig(m, "metadata")
	was, existed := s.objects[key]
	kind := "MODIFIED"
	if !existed {
		kind = "ADDED"
		meta["uid"] = "uid-" + strconv.Itoa(s.version)
		meta["generation"] = 1
		meta["creationTimestamp"] = time.Now().Add(s.ahead).UTC().Format(time.RFC3339)
	} else {
		meta["uid"] = dig(was, "metadata")["uid"]
		meta["generation"] = dig(was, "metadata")["generation"]
		if toJSON(was["spec"]) != toJSON(m["spec"]) {
			meta["generation"] = int(number(meta["generation"])) + 1
		}
	}
	meta["resourceVersion"] = strconv.Itoa(s.version)
	if manager != "" {
		meta["managedFields"] = managedBy(m, manager, time.Now().Add(s.ahead))
	}
	m["metadata"] = meta
	s.objects[key] = m
	s.tell(key, kind, m)
}

func (s *server) drop(key string) {
	if m, ok := s.objects[key]; ok {
		delete(s.objects, key)
		s.version++
		gone := toMap(m)
		dig(gone, "metadata")["resourceVersion"] = strconv.Itoa(s.version)
		s.tell(key, "DELETED", gone)
	}
}

func (s *server) tell(key, kind string, m map[string]any) {
	for ch, prefix := range s.watchers {
		if strings.HasPrefix(key, prefix) {
			ch <- event{kind, toMap(m)}
		}
	}
}

func number(v any) float64 {
	switch n := v.(type) {
	case float64:
		return n
	case int:
		return float64(n)
	}
	return 0
}

func toJSON(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// managedBy is what managedFields say when one manager wrote all images.
func managedBy(m map[string]any, manager string, at time.Time) []any {
	list, _ := dig(m, "spec", "template", "spec")["containers"].([]any)
	fields := map[string]any{}
	for _, c := range list {
		fields[`k:{"name":"`+c.(map[string]any)["name"].(string)+`"}`] = map[string]any{"f:image": map[string]any{}}
	}
	return []any{map[string]any{"manager": manager, "operation": "Update", "fieldsType": "FieldsV1", "time": at.UTC().Format(time.RFC3339),
		"fieldsV1": map[string]any{"f:spec": map[string]any{"f:template": map[string]any{"f:spec": map[string]any{"f:containers": fields}}}}}}
}

// ServeHTTP answers as an API server does.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	segments := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if segments[0] == "api" {
		segments = segments[2:]
	} else {
		segments = segments[3:]
	}
	namespace, resource, name := "", segments[0], ""
	if resource == "namespaces" {
		namespace, resource = segments[1], segments[2]
		segments = segments[2:]
	}
	if len(segments) > 1 {
		name = segments[1]
	}
	dry := r.URL.Query().Get("dryRun") != ""
	writes := r.Method != http.MethodGet && !dry && !strings.HasPrefix(resource, "selfsubject")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	if s.before != nil && writes {
		s.before(r.Method, r.URL.Path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.RequestURI())
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			s.t.Log(err)
		}
	}
	refuse := func(code int, reason metav1.StatusReason) {
		answer(code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: string(reason)})
	}
	verb := map[string]string{"PATCH": "patch", "POST": "create", "DELETE": "delete", "GET": "get"}[r.Method]
	if s.denied[verb+" "+resource] || r.Method == http.MethodGet && name == "" && s.denied["list "+resource] {
		refuse(http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	}
	if writes && s.fail > 0 {
		if s.fail--; s.fail == 0 {
			s.struck = true
			if !s.done {
				refuse(http.StatusInternalServerError, metav1.StatusReasonInternalError)
				return
			}
			inner := answer
			answer = func(int, any) {
				inner(http.StatusInternalServerError, metav1.Status{Status: "Failure", Code: 500, Reason: metav1.StatusReasonInternalError})
			}
		}
	}
	key := resource + "/" + namespace + "/" + name
	switch {
	case resource == "selfsubjectaccessreviews":
		review := as[authorizationv1.SelfSubjectAccessReview](fromJSON(body))
		a := review.Spec.ResourceAttributes
		review.Status.Allowed = !s.denied[a.Verb+" "+a.Resource]
		answer(http.StatusCreated, review)
	case resource == "selfsubjectrulesreviews":
		review := as[authorizationv1.SelfSubjectRulesReview](fromJSON(body))
		for _, named := range s.named {
			review.Status.ResourceRules = append(review.Status.ResourceRules, authorizationv1.ResourceRule{
				Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{named}, ResourceNames: []string{"regcred"},
			})
		}
		answer(http.StatusCreated, review)
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
		s.watch(w, r, resource+"/"+namespace)
	case r.Method == http.MethodGet && name == "":
		items := []any{}
		for _, k := range slices.Sorted(maps.Keys(s.objects)) {
			if strings.HasPrefix(k, resource+"/"+namespace) && selected(s.objects[k], r.URL.Query().Get("labelSelector")) {
				items = append(items, s.objects[k])
			}
		}
		answer(http.StatusOK, map[string]any{"kind": title(resource) + "List", "apiVersion": groupOf(resource), "metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items})
	case r.Method == http.MethodPost:
		m := fromJSON(body)
		key += dig(m, "metadata")["name"].(string)
		if _, ok := s.objects[key]; ok {
			refuse(http.StatusConflict, metav1.StatusReasonAlreadyExists)
			return
		}
		dig(m, "metadata")["namespace"] = namespace
		s.store(key, m, "")
		s.control()
		answer(http.StatusCreated, s.objects[key])
	case s.objects[key] == nil:
		refuse(http.StatusNotFound, metav1.StatusReasonNotFound)
	case r.Method == http.MethodGet:
		answer(http.StatusOK, s.objects[key])
	case r.Method == http.MethodDelete:
		o := as[metav1.DeleteOptions](fromJSON(body))
		meta := dig(s.objects[key], "metadata")
		if p := o.Preconditions; p != nil && (p.UID != nil && string(*p.UID) != meta["uid"] || p.ResourceVersion != nil && *p.ResourceVersion != meta["resourceVersion"]) {
			refuse(http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		s.drop(key)
		s.control()
		answer(http.StatusOK, metav1.Status{Status: "Success"})
	case r.Method == http.MethodPatch:
		s.patch(key, resource, body, dry, answer, refuse)
	default:
		refuse(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed)
	}
}

func fromJSON(body []byte) map[string]any {
	m := map[string]any{}
	if len(body) > 0 {
		if err := json.Unmarshal(body, &m); err != nil {
			panic(err)
		}
	}
	return m
}

func title(resource string) string {
	for _, k := range kinds() {
		if k.resource.Name == resource {
			return k.title
		}
	}
	return map[string]string{"pods": "Pod", "jobs": "Job", "secrets": "Secret", "serviceaccounts": "ServiceAccount"}[resource]
}

func groupOf(resource string) string {
	switch resource {
	case "pods", "secrets", "serviceaccounts":
		return "v1"
	case "jobs", "cronjobs":
		return "batch/v1"
	}
	return "apps/v1"
}

func selected(m map[string]any, selector string) bool {
	name, value, ok := strings.Cut(selector, "=")
	return !ok || dig(m, "metadata", "labels")[name] == value
}

func (s *server) patch(key, resource string, body []byte, dry bool, answer func(int, any), refuse func(int, metav1.StatusReason)) {
	was := s.objects[key]
	asked := dig(fromJSON(body), "metadata")
	if v, ok := asked["resourceVersion"]; ok && v != dig(was, "metadata")["resourceVersion"] {
		refuse(http.StatusConflict, metav1.StatusReasonConflict)
		return
	}
	if v, ok := asked["uid"]; ok && v != dig(was, "metadata")["uid"] {
		refuse(http.StatusConflict, metav1.StatusReasonConflict)
		return
	}
	var kind any
	for _, k := range kinds() {
		if k.resource.Name == resource {
			kind = k.object()
		}
	}
	raw, err := strategicpatch.StrategicMergePatch([]byte(toJSON(was)), body, kind)
	if err != nil {
		panic(err)
	}
	if s.admit != nil {
		raw = []byte(s.admit(string(raw)))
	}
	if dry {
		answer(http.StatusOK, fromJSON(raw))
		return
	}
	s.store(key, fromJSON(raw), "updaterd")
	patched := toMap(s.objects[key])
	s.control()
	answer(http.StatusOK, patched)
}

func (s *server) watch(w http.ResponseWriter, r *http.Request, prefix string) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	events := make(chan event, 1000)
	for _, k := range slices.Sorted(maps.Keys(s.objects)) {
		v, _ := strconv.Atoi(dig(s.objects[k], "metadata")["resourceVersion"].(string))
		if strings.HasPrefix(k, prefix) && (initial || v > from) {
			events <- event{"ADDED", toMap(s.objects[k])}
		}
	}
	if initial {
		resource, _, _ := strings.Cut(prefix, "/")
		events <- event{"BOOKMARK", map[string]any{"kind": title(resource), "apiVersion": groupOf(resource), "metadata": map[string]any{
			"resourceVersion": strconv.Itoa(s.version), "annotations": map[string]any{"k8s.io/initial-events-end": "true"}}}}
	}
	s.watchers[events] = prefix
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, events)
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := func() { w.(http.Flusher).Flush() }
	flush()
	resource, _, _ := strings.Cut(prefix, "/")
	for {
		select {
		case <-r.Context().Done():
			return
		case e, more := <-events:
			if !more {
				return
			}
			e.Object["kind"], e.Object["apiVersion"] = title(resource), groupOf(resource)
			if err := json.NewEncoder(w).Encode(e); err != nil {
				return
			}
			flush()
		}
	}
}

// cut ends the watches of a resource, as an API server does every few minutes.
func (s *server) cut(resource string) {
	for events, prefix := range s.watchers {
		if strings.HasPrefix(prefix, resource+"/") {
			delete(s.watchers, events)
			close(events)
		}
	}
}

// pod1 is a pod as the server keeps it.
type pod1 corev1.Pod

// of is the resource and name of the object that a pod belongs to.
func (p *pod1) of() string { return p.Annotations["of"] }

// control lets every controller act until nothing changes any more.
func (s *server) control() {
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		resource, name, _ := strings.Cut(key, "/shop/")
		switch resource {
		case "deployments":
			d := as[appsv1.Deployment](s.objects[key])
			n := or(d.Spec.Replicas, 1)
			good := s.roll(resource, name, d.UID, d.Spec.Template, int(n), false)
			d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}
			if !good && n > 0 {
				d.Status.Replicas, d.Status.UpdatedReplicas = n+1, 1
			}
			s.status(key, d)
		case "statefulsets":
			d := as[appsv1.StatefulSet](s.objects[key])
			n := or(d.Spec.Replicas, 1)
			ordered := d.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
			good := s.roll(resource, name, d.UID, d.Spec.Template, int(n), ordered)
			rev := toJSON(d.Spec.Template.Spec)
			d.Status.ObservedGeneration, d.Status.Replicas, d.Status.UpdateRevision = d.Generation, n, rev
			d.Status.ReadyReplicas, d.Status.UpdatedReplicas = n-1, 1
			if good {
				d.Status.CurrentRevision, d.Status.ReadyReplicas, d.Status.UpdatedReplicas = rev, n, n
			}
			s.status(key, d)
		case "daemonsets":
			d := as[appsv1.DaemonSet](s.objects[key])
			good := s.roll(resource, name, d.UID, d.Spec.Template, 2, false)
			d.Status = appsv1.DaemonSetStatus{ObservedGeneration: d.Generation, DesiredNumberScheduled: 2, CurrentNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberAvailable: 2, NumberReady: 2}
			if !good {
				d.Status.UpdatedNumberScheduled, d.Status.NumberAvailable = 1, 1
			}
			s.status(key, d)
		case "jobs":
			j := as[batchv1.Job](s.objects[key])
			if len(j.Status.Conditions) > 0 {
				continue
			}
			p := s.newPod("jobs", name, j.UID, j.Spec.Template, 0)
			s.store("pods/shop/"+p.Name, toMap(p), "")
			cond := batchv1.JobCondition{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}
			if p.Status.Phase == corev1.PodFailed || !ready(p) {
				cond = batchv1.JobCondition{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: batchv1.JobReasonBackoffLimitExceeded, Message: "Job has reached the specified backoff limit"}
			}
			j.Status.Conditions = []batchv1.JobCondition{cond}
			s.status(key, j)
		}
	}
}

// status writes what a controller says, if it is new.
func (s *server) status(key string, object any) {
	m := toMap(object)
	if toJSON(m["status"]) != toJSON(s.objects[key]["status"]) {
		next := toMap(s.objects[key])
		next["status"] = m["status"]
		s.store(key, next, "")
	}
}

// roll brings the pods of an object to its template, as far as they become ready.
func (s *server) roll(resource, name string, uid types.UID, template corev1.PodTemplateSpec, n int, ordered bool) bool {
	var current, old []string
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if !strings.HasPrefix(key, "pods/") {
			continue
		}
		p := as[pod1](s.objects[key])
		if p.of() != resource+"/"+name {
			continue
		}
		if toJSON(p.Spec) == toJSON(template.Spec) {
			current = append(current, key)
		} else {
			old = append(old, key)
		}
	}
	if ordered {
		for _, key := range old {
			if q := corev1.Pod(*as[pod1](s.objects[key])); !ready(&q) {
				return false // it waits for this one, for ever
			}
		}
	}
	probe := s.newPod(resource, name, uid, template, 0)
	if !ready(probe) {
		if len(current) == 0 && n > 0 {
			if resource != "deployments" && len(old) > 0 {
				s.drop(old[len(old)-1])
			}
			p := s.newPod(resource, name, uid, template, n-1)
			s.store("pods/shop/"+p.Name, toMap(p), "")
		}
		return false
	}
	for _, key := range old {
		s.drop(key)
	}
	for i := len(current); i < n; i++ {
		p := s.newPod(resource, name, uid, template, i)
		s.store("pods/shop/"+p.Name, toMap(p), "")
	}
	return true
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// newPod is a pod as the node would have it, by the end of the tag of its images:
// crash, oom, noexec, notready, nopull, unreachable; anything else is well.
func (s *server) newPod(resource, name string, uid types.UID, template corev1.PodTemplateSpec, i int) *corev1.Pod {
	s.version++
	hash := strconv.Itoa(s.version)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: fmt.Sprintf("%s-%s-%d", name, hash, i), Namespace: "shop", Labels: map[string]string{"pod-template-hash": hash, "job-name": name, "app": name},
		Annotations: map[string]string{"of": resource + "/" + name},
	}, Spec: template.Spec}
	for k, v := range template.Labels {
		p.Labels[k] = v
	}
	if len(p.Spec.ImagePullSecrets) == 0 {
		for _, name := range s.podPulls {
			p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
		}
	}
	yes := true
	ref := metav1.OwnerReference{Kind: title(resource), Name: name, UID: uid, Controller: &yes}
	if resource == "deployments" {
		ref.Kind, ref.Name = "ReplicaSet", name+"-"+hash
	}
	p.OwnerReferences = []metav1.OwnerReference{ref}
	p.Labels[batchv1.JobNameLabel] = name
	well := corev1.ConditionTrue
	p.Status.Phase = corev1.PodRunning
	for _, c := range template.Spec.Containers {
		st := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: cmp.Or(s.from, repository(c.Image)) + "@" + digestOf(c.Image), Ready: true}
		end := corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: "it went wrong", FinishedAt: metav1.Now()}
		tag, _, _ := strings.Cut(c.Image, "@")
		_, tag, _ = strings.Cut(tag, ":")
		switch _, what, _ := strings.Cut(tag, "-"); what {
		case "crash":
			st.RestartCount = 2
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}
			st.LastTerminationState.Terminated = &end
		case "exit":
			st.State.Terminated = &end
			p.Status.Phase = corev1.PodFailed
		case "noexec":
			end.Message = "exec /app: exec format error"
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: end.Message}
		case "notready":
			st.State.Running, st.Ready = &corev1.ContainerStateRunning{}, false
		case "unreachable":
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "dial tcp: connection refused"}
			st.ImageID = ""
		case "lost":
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "failed to resolve reference " + c.Image + ": not found"}
			st.ImageID = ""
		default:
			st.State.Running = &corev1.ContainerStateRunning{}
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, st)
			continue
		}
		st.Ready = false
		well = corev1.ConditionFalse
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, st)
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0." + strconv.Itoa(i+1)}}
	for _, t := range []corev1.PodConditionType{corev1.PodReady, corev1.ContainersReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: t, Status: well})
	}
	return p
}

// digestOf is the digest that a reference names, or one made up from its tag.
func digestOf(ref string) string {
	if d := digestIn(ref); d != "" {
		return d
	}
	return fakeDigest(ref)
}

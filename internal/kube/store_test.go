package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// store is what an API server keeps of plain objects, in this process: it keeps to
// the real one's versions, conflicts and watches, and is reached without a network,
// so that a test can let time pass.
type store struct {
	mu       sync.Mutex
	version  int
	objects  map[string]runtime.Object // by resource/namespace/name
	watches  map[chan []byte]string    // by the prefix of what they are told
	requests []string                  // "METHOD resource"
	// answer, when set, is asked before a request is served; an error is what the
	// network says, a status other than 0 what the server says.
	answer func(method, resource string) (int, error)
	// after, when set, is called when a request was served and before it is answered.
	after func(method, resource string) error
}

func newStore() *store {
	return &store{objects: map[string]runtime.Object{}, watches: map[chan []byte]string{}}
}

// client is how one process speaks to the store.
func (s *store) client(t *testing.T) *Client {
	t.Helper()
	c, err := NewClient(&rest.Config{Host: "http://store", Transport: s})
	require.NoError(t, err)
	return c
}

func (s *store) decode(r *http.Request) (runtime.Object, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, coordinationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	object, _, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(body, nil, nil)
	return object, err
}

// RoundTrip answers as an API server does.
func (s *store) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	path = path[slices.Index(path, "namespaces")+1:]
	namespace, resource, name := path[0], path[1], ""
	if len(path) > 2 {
		name = path[2]
	}
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+resource)
	answer, after := s.answer, s.after
	s.mu.Unlock()
	if answer != nil {
		code, err := answer(r.Method, resource)
		if err != nil {
			return nil, err
		}
		if code != 0 {
			return reply(r, code, refusal(code, "")), nil
		}
	}
	if r.URL.Query().Get("watch") != "" {
		return s.watch(r, resource+"/"+namespace+"/")
	}
	response, err := s.serve(r, resource, namespace, name)
	if err == nil && after != nil {
		if err := after(r.Method, resource); err != nil {
			return nil, err
		}
	}
	return response, err
}

func refusal(code int, reason metav1.StatusReason) *metav1.Status {
	reasons := map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 500: metav1.StatusReasonInternalError, 404: metav1.StatusReasonNotFound, 429: metav1.StatusReasonTooManyRequests}
	if reason == "" {
		reason = reasons[code]
	}
	return &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: string(reason)}
}

func reply(r *http.Request, code int, v any) *http.Response {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return &http.Response{
		StatusCode: code, Status: http.StatusText(code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(raw)), ContentLength: int64(len(raw)),
	}
}

func (s *store) serve(r *http.Request, resource, namespace, name string) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := resource + "/" + namespace + "/" + name
	switch r.Method {
	case http.MethodPost, http.MethodPut:
		object, err := s.decode(r)
		if err != nil {
			return nil, err
		}
		m, err := meta.Accessor(object)
		if err != nil {
			return nil, err
		}
		key = resource + "/" + namespace + "/" + m.GetName()
		was := s.objects[key]
		switch {
		case r.Method == http.MethodPost && was != nil:
			return reply(r, http.StatusConflict, refusal(http.StatusConflict, metav1.StatusReasonAlreadyExists)), nil
		case r.Method == http.MethodPut && was == nil:
			return reply(r, http.StatusNotFound, refusal(http.StatusNotFound, "")), nil
		case r.Method == http.MethodPut && versionOf(was) != m.GetResourceVersion():
			return reply(r, http.StatusConflict, refusal(http.StatusConflict, metav1.StatusReasonConflict)), nil
		}
		if was != nil && asText(strip(was)) == asText(strip(object)) {
			return reply(r, http.StatusOK, was), nil // as the real one, it makes no version of nothing
		}
		s.put(key, object)
		return reply(r, http.StatusOK, object), nil
	case http.MethodGet:
		if name != "" {
			if o := s.objects[key]; o != nil {
				return reply(r, http.StatusOK, o), nil
			}
			return reply(r, http.StatusNotFound, refusal(http.StatusNotFound, "")), nil
		}
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			return nil, err
		}
		items := []any{}
		for _, k := range slices.Sorted(maps.Keys(s.objects)) {
			m, err := meta.Accessor(s.objects[k])
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(k, key) && selector.Matches(labels.Set(m.GetLabels())) {
				items = append(items, s.objects[k])
			}
		}
		return reply(r, http.StatusOK, map[string]any{
			"kind": "ConfigMapList", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items,
		}), nil
	}
	return reply(r, http.StatusMethodNotAllowed, refusal(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed)), nil
}

func strip(o runtime.Object) runtime.Object {
	o = o.DeepCopyObject()
	if m, err := meta.Accessor(o); err == nil {
		m.SetResourceVersion("")
	}
	o.GetObjectKind().SetGroupVersionKind(o.GetObjectKind().GroupVersionKind())
	return o
}

func asText(o runtime.Object) string {
	raw, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func versionOf(o runtime.Object) string {
	m, err := meta.Accessor(o)
	if err != nil {
		panic(err)
	}
	return m.GetResourceVersion()
}

// put keeps an object under a new version and tells those that watch.
func (s *store) put(key string, object runtime.Object) {
	s.version++
	m, err := meta.Accessor(object)
	if err != nil {
		panic(err)
	}
	m.SetResourceVersion(strconv.Itoa(s.version))
	kind := "MODIFIED"
	if s.objects[key] == nil {
		kind = "ADDED"
	}
	s.objects[key] = object
	s.tell(key, kind, object)
}

func (s *store) tell(key, kind string, object runtime.Object) {
	line := []byte(fmt.Sprintf(`{"type":%q,"object":%s}`+"\n", kind, asText(object)))
	for events, prefix := range s.watches {
		if strings.HasPrefix(key, prefix) {
			events <- line
		}
	}
}

// remove takes an object away, as kubectl delete does.
func (s *store) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.objects[key].DeepCopyObject()
	delete(s.objects, key)
	s.version++
	m, err := meta.Accessor(gone)
	if err != nil {
		panic(err)
	}
	m.SetResourceVersion(strconv.Itoa(s.version))
	s.tell(key, "DELETED", gone)
}

func (s *store) watch(r *http.Request, prefix string) (*http.Response, error) {
	events := make(chan []byte, 100)
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	for _, k := range slices.Sorted(maps.Keys(s.objects)) {
		if v, err := strconv.Atoi(versionOf(s.objects[k])); err == nil && strings.HasPrefix(k, prefix) && v > from {
			events <- []byte(fmt.Sprintf(`{"type":"MODIFIED","object":%s}`+"\n", asText(s.objects[k])))
		}
	}
	s.watches[events] = prefix
	s.mu.Unlock()
	body, lines := io.Pipe()
	go func() {
		for {
			select {
			case <-r.Context().Done():
				s.mu.Lock()
				delete(s.watches, events)
				s.mu.Unlock()
				lines.CloseWithError(r.Context().Err())
				return
			case line := <-events:
				if _, err := lines.Write(line); err != nil {
					return
				}
			}
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: body, ContentLength: -1}, nil
}

// asked are the requests since the last call.
func (s *store) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.requests
	s.requests = nil
	return all
}

// set changes how requests are answered.
func (s *store) set(answer func(method, resource string) (int, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// change edits an object, as kubectl edit does.
func (s *store) change(key string, edit func(runtime.Object)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[key].DeepCopyObject()
	edit(o)
	s.put(key, o)
}

func (s *store) keys(resource string) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.objects {
		if strings.HasPrefix(k, resource+"/") {
			all = append(all, k)
		}
	}
	slices.Sort(all)
	return all
}

var errDown = errors.New("connection refused")

// unreachable is an API server that nobody reaches.
func unreachable(string, string) (int, error) { return 0, errDown }

func (s *store) state(t *testing.T, o StateOptions) *State {
	t.Helper()
	o.Client, o.Namespace = s.client(t), "updaterd"
	if o.Backend == "" {
		o.Backend = "prod"
	}
	return NewState(o)
}

// setAfter changes what happens between a request and its answer.
func (s *store) setAfter(after func(method, resource string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.after = after
}

func (s *store) object(key string) runtime.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[key].DeepCopyObject()
}

// expire ends every watch as one whose versions are compacted away.
func (s *store) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for events := range s.watches {
		events <- []byte(`{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}}` + "\n")
	}
}

package registry

import (
	"errors"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

type seen struct {
	mu    sync.Mutex
	asked map[string]map[int]int
	left  map[string]int
}

func (s *seen) Asked(host string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[host] == nil {
		s.asked[host] = map[int]int{}
	}
	s.asked[host][status]++
}

func (s *seen) Left(host string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left[host] = n
}

func TestEveryRequestIsSeen(t *testing.T) {
	f := newFake(example)
	f.image("acme/web", "1", amd64, "a")
	s := &seen{asked: map[string]map[int]int{}, left: map[string]int{}}
	c, _ := client(t, setup{Options: Options{Observer: s}}, internet{example: f})
	_, err := c.Resolve(bg, example+"/acme/web:1")
	require.NoError(t, err)
	total := 0
	for _, n := range s.asked[example] {
		total += n
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Len(t, f.log, total, "as many as reached it: %v", f.log)
	require.Len(t, s.asked, 1)
	require.Empty(t, s.left)
}

type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("connection refused")
}

func TestARequestWithoutAnAnswerIsSeen(t *testing.T) {
	s := &seen{asked: map[string]map[int]int{}, left: map[string]int{}}
	r, err := http.NewRequest(http.MethodGet, "https://registry.example.com/v2/", nil)
	require.NoError(t, err)
	_, err = observed{refusing{}, "registry.example.com", s}.RoundTrip(r)
	require.Error(t, err)
	require.Equal(t, 1, s.asked["registry.example.com"][0])
}

func TestLeft(t *testing.T) {
	for _, row := range []struct {
		name, header, value string
		left                int
		said                bool
	}{
		{"Docker Hub says it with its window", "RateLimit-Remaining", "76;w=21600", 76, true},
		{"others say the number alone", "X-RateLimit-Remaining", "0", 0, true},
		{"a negative number says nothing", "RateLimit-Remaining", "-1", 0, false},
		{"nor does a word", "RateLimit-Remaining", "many", 0, false},
		{"most say nothing", "X-Other", "1", 0, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := http.Header{}
			h.Set(row.header, row.value)
			n, said := left(h)
			require.Equal(t, row.said, said)
			require.Equal(t, row.left, n)
		})
	}
}

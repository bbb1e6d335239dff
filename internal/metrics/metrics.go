// Package metrics counts what updaterd does, for Prometheus. docs/metrics.md has
// every name. Nothing here is global: a Metrics has a registry of its own.
//
// Labels are bounded: backends are those of the configuration, reasons, outcomes
// and status codes are closed sets, and registries beyond the first fifty are
// counted as one. No workload and no image is ever a label: they come and go, and
// each would leave its series behind. `updaterd history` has them.
package metrics

import (
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/updaterd/updaterd/internal/updater"
)

// hostsKept bounds the registries that have series of their own; what else is
// asked counts as otherHosts.
const (
	hostsKept  = 50
	otherHosts = "other"
)

// Metrics observes updaterd. It implements [updater.Observer], and the observer
// that internal/registry wants.
type Metrics struct {
	registry *prometheus.Registry

	passes       *prometheus.CounterVec
	passSeconds  *prometheus.HistogramVec
	lastSuccess  *prometheus.GaugeVec
	decisions    *prometheus.CounterVec
	workloads    *prometheus.GaugeVec
	changes      *prometheus.CounterVec
	changeSecs   *prometheus.HistogramVec
	gap          *prometheus.HistogramVec
	open         *prometheus.GaugeVec
	requests     *prometheus.CounterVec
	requestsLeft *prometheus.GaugeVec

	mu      sync.Mutex
	under   map[string]map[string]bool // by backend: ids of the changes that are not over
	hosts   map[string]bool
	counted map[updater.Reason]bool // reasons that have a series
}

var _ updater.Observer = (*Metrics)(nil)

// New returns the metrics of an updaterd of that version with these backends.
func New(version string, backends []string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		under:    map[string]map[string]bool{}, hosts: map[string]bool{}, counted: map[updater.Reason]bool{},
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "updaterd", Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "updaterd", Name: name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "updaterd", Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(v)
		return v
	}
	m.passes = counter("passes_total", "Passes that ended, by result: success, or backend-unavailable when the backend could not be asked.", "backend", "result")
	m.passSeconds = histogram("pass_duration_seconds", "Time from the start of a pass to its last decision.", []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}, "backend")
	m.lastSuccess = gauge("last_success_timestamp_seconds", "When the last pass ended that could ask the backend, as Unix time.", "backend")
	m.decisions = counter("decisions_total", "Decisions about workloads, one per workload and pass, by reason.", "backend", "reason")
	m.workloads = gauge("workloads", "Watched workloads by the reason of their last decision.", "backend", "reason")
	m.changes = counter("changes_total", "Changes that are over, by outcome.", "backend", "outcome")
	m.changeSecs = histogram("change_duration_seconds", "Time from the decision to the end of a change.", []float64{5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600}, "backend", "outcome")
	m.gap = histogram("change_gap_seconds", "Time out of service in a change, from the stop request to the answer to the start request.", []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}, "backend")
	m.open = gauge("open_changes", "Changes under way.", "backend")
	m.requests = counter("registry_requests_total", "Requests to registries, by registry and status code; the code is error where no answer came.", "host", "code")
	m.requestsLeft = gauge("registry_rate_limit_remaining", "Requests that a registry said it still allows, where it says so.", "host")
	build := gauge("build_info", "Always 1; the label is the version.", "version")
	build.WithLabelValues(version).Set(1)
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// What can be known is there from the start, so that a rate over the first
	// failure is no gap.
	for _, b := range backends {
		m.passes.WithLabelValues(b, "success")
		m.passes.WithLabelValues(b, string(updater.BackendUnavailable))
		m.open.WithLabelValues(b)
		for _, o := range outcomes() {
			m.changes.WithLabelValues(b, o)
		}
	}
	return m
}

// outcomes are the phases in which a change is over.
func outcomes() []string {
	return []string{string(updater.Committed), string(updater.Restored), string(updater.Failed), string(updater.Refused), string(updater.Superseded)}
}

// Decided implements [updater.Observer].
func (m *Metrics) Decided(w updater.Workload, d updater.Decision) {
	m.decisions.WithLabelValues(w.Backend, string(d.Reason)).Inc()
}

// Postponed implements [updater.Observer]. The decision was counted when it was made.
func (m *Metrics) Postponed(updater.Workload, updater.Decision) {}

// Progressed implements [updater.Observer].
func (m *Metrics) Progressed(updater.Change, updater.Progress) {}

// Passed implements [updater.Observer].
func (m *Metrics) Passed(p updater.Passed) {
	if p.Err != nil {
		m.passes.WithLabelValues(p.Backend, string(updater.BackendUnavailable)).Inc()
		return
	}
	m.passes.WithLabelValues(p.Backend, "success").Inc()
	if p.Part {
		return // it says nothing about all workloads, nor how long they take
	}
	m.passSeconds.WithLabelValues(p.Backend).Observe(p.Took.Seconds())
	m.lastSuccess.WithLabelValues(p.Backend).Set(float64(p.Began.Add(p.Took).UnixNano()) / float64(time.Second))
	m.mu.Lock()
	defer m.mu.Unlock()
	for r := range p.Decided {
		m.counted[r] = true
	}
	for r := range maps.Keys(m.counted) {
		m.workloads.WithLabelValues(p.Backend, string(r)).Set(float64(p.Decided[r]))
	}
}

// Moved implements [updater.Observer].
func (m *Metrics) Moved(c updater.Change) {
	m.mu.Lock()
	if m.under[c.Backend] == nil {
		m.under[c.Backend] = map[string]bool{}
	}
	was := m.under[c.Backend][c.ID]
	if c.Phase.Final() {
		delete(m.under[c.Backend], c.ID)
	} else {
		m.under[c.Backend][c.ID] = true
	}
	m.open.WithLabelValues(c.Backend).Set(float64(len(m.under[c.Backend])))
	m.mu.Unlock()
	if !was || !c.Phase.Final() {
		return
	}
	m.changes.WithLabelValues(c.Backend, string(c.Phase)).Inc()
	m.changeSecs.WithLabelValues(c.Backend, string(c.Phase)).Observe(c.Ended.Sub(c.Since).Seconds())
	if c.Gap > 0 {
		m.gap.WithLabelValues(c.Backend).Observe(c.Gap.Seconds())
	}
}

// Asked implements the observer of internal/registry.
func (m *Metrics) Asked(host string, status int) {
	code := "error"
	if status >= 100 && status <= 599 {
		code = strconv.Itoa(status)
	}
	m.requests.WithLabelValues(m.host(host), code).Inc()
}

// Left implements the observer of internal/registry.
func (m *Metrics) Left(host string, requests int) {
	if h := m.host(host); h != otherHosts { // of several, no number would mean anything
		m.requestsLeft.WithLabelValues(h).Set(float64(requests))
	}
}

func (m *Metrics) host(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.hosts[name] {
		if len(m.hosts) >= hostsKept {
			return otherHosts
		}
		m.hosts[name] = true
	}
	return name
}

// Handler serves /metrics, /livez and /readyz, the latter two by what glance sees.
// It asks for no token, as it tells no secret: whoever may reach it may read it.
func (m *Metrics) Handler(glance func() updater.Glance) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.gatherer(glance), promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, // each builds the whole page in memory
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if late := updater.Overdue(glance().Steps, time.Now()); len(late) > 0 {
			say(w, http.StatusServiceUnavailable, fmt.Sprintf("a step hangs on %s: %s\n", late[0].Backend, late[0].What))
			return
		}
		say(w, http.StatusOK, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !glance().Ready {
			say(w, http.StatusServiceUnavailable, "not every backend has been looked at yet\n")
			return
		}
		say(w, http.StatusOK, "ok\n")
	})
	return mux
}

// pauses collects which backends are paused, as it is at that moment: a pause lapses
// by itself.
type pauses struct{ glance func() updater.Glance }

// Describe implements [prometheus.Collector].
func (p pauses) Describe(out chan<- *prometheus.Desc) { out <- p.desc() }

// Collect implements [prometheus.Collector].
func (p pauses) Collect(out chan<- prometheus.Metric) {
	for _, place := range p.glance().Places {
		value := 0.0
		if place.Paused != nil {
			value = 1
		}
		out <- prometheus.MustNewConstMetric(p.desc(), prometheus.GaugeValue, value, place.Backend)
	}
}

func (p pauses) desc() *prometheus.Desc {
	return prometheus.NewDesc("updaterd_paused", "1 while a person's pause keeps every change from beginning, else 0.", []string{"backend"}, nil)
}

// gatherer is all of the metrics, with what glance sees.
func (m *Metrics) gatherer(glance func() updater.Glance) prometheus.Gatherer {
	seen := prometheus.NewRegistry()
	seen.MustRegister(pauses{glance})
	return prometheus.Gatherers{m.registry, seen}
}

func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // whoever asked has gone
}

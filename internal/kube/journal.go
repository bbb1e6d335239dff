package kube

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/updaterd/updaterd/internal/updater"
)

// What is on the ConfigMaps of a journal.
const (
	managedLabel = "app.kubernetes.io/managed-by"
	backendLabel = domain + "/backend"
	unitNote     = domain + "/unit" // an annotation: the id without the container

	bookKey    = "journal.json"
	damagedKey = "damaged" // what stood there when it could not be read
)

const (
	// bookSchema changes when an older updaterd could no longer understand what a
	// newer one writes. A new optional JSON field is no such change.
	bookSchema = 1
	// bookLimit bounds what is kept of one unit, as the API writes it in JSON; with
	// all around it the object stays below 64 KiB. What goes first when it is reached:
	// see trim.
	bookLimit = 62 << 10
	// rejectionSize is what a rejection takes at least.
	rejectionSize = 200
	// bookHistory bounds the history of one unit, in entries.
	bookHistory = 100

	// journalPatience is how long a write is tried again that an API server in
	// trouble did not take.
	journalPatience = 15 * time.Second
	// journalWrites is how many writes are under way at once: a first pass has
	// something to remember of every workload there is.
	journalWrites = 16
	// watchFor is how long one watch lasts at most; the next one goes on from there.
	watchFor = 8 * time.Minute
)

// book is what is remembered of one unit, an object with a pod template: the
// content of one ConfigMap.
type book struct {
	Schema int    `json:"schema"`
	Unit   string `json:"unit"`
	// Leader is who last wrote here while leading. Whoever finds another one there
	// than it expects is no longer alone.
	Leader  string                    `json:"leader,omitempty"`
	Open    []updater.Change          `json:"open,omitempty"`
	Records map[string]updater.Record `json:"records,omitempty"` // by workload
	History []updater.Entry           `json:"history,omitempty"` // in the order in which it was noted
}

// page is a book as it is kept: its text, so that nothing of it can be changed by
// who reads it, and what is asked of it often.
type page struct {
	version string // of the ConfigMap
	text    string
	unit    string
	leader  string
	damaged string
	open    bool  // it has open changes
	err     error // why it cannot be read
}

// newerError: a newer updaterd wrote it.
type newerError struct{ name string }

func (e newerError) Error() string {
	return "configmap " + e.name + " was written by a newer updaterd: run that one"
}

func newPage(c *corev1.ConfigMap) page {
	p := page{version: c.ResourceVersion, text: c.Data[bookKey], unit: c.Annotations[unitNote], damaged: c.Data[damagedKey]}
	b, err := p.read()
	p.leader, p.open, p.err = b.Leader, len(b.Open) > 0, err
	if err != nil && !errors.As(err, new(newerError)) {
		p.err = fmt.Errorf("configmap %s cannot be read, what it held is lost: %w", c.Name, err)
	}
	return p
}

func (p page) read() (book, error) {
	b := book{Schema: bookSchema, Unit: p.unit, Records: map[string]updater.Record{}}
	if p.err != nil || p.text == "" {
		return b, p.err
	}
	var kept struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal([]byte(p.text), &kept); err != nil {
		return b, err
	}
	if kept.Schema > bookSchema {
		return b, newerError{p.unit}
	}
	if err := json.Unmarshal([]byte(p.text), &b); err != nil {
		return book{Schema: bookSchema, Unit: p.unit, Records: map[string]updater.Record{}}, err
	}
	if b.Records == nil {
		b.Records = map[string]updater.Record{}
	}
	return b, nil
}

// journal implements [updater.Journal] on ConfigMaps. Beside the leader every call
// asks the API server. The leader keeps what a watch tells, so that reading costs no
// request, and writes on the version that it knows; the API server refuses what was
// decided on an older one.
type journal struct {
	client    *Client
	backend   string
	namespace string
	who       string // leads; "": beside whoever does
	lose      context.CancelCauseFunc
	log       *slog.Logger
	events    *announcer
	slots     chan struct{} // one for each write under way

	mu     sync.Mutex
	loaded bool            // pages holds all there are
	pages  map[string]page // by name of the ConfigMap
}

var _ updater.Journal = (*journal)(nil)

// newJournal returns the journal of whoever leads as who, and what ends that lead;
// "" is beside the leader.
func newJournal(o StateOptions, who string, lose context.CancelCauseFunc) *journal {
	return &journal{
		client: o.Client, backend: o.Backend, namespace: o.Namespace, who: who, lose: lose, log: o.Log,
		events: &announcer{client: o.Client, log: o.Log}, slots: make(chan struct{}, journalWrites), pages: map[string]page{},
	}
}

func configMaps() Resource { return Resource{corev1.SchemeGroupVersion, "configmaps"} }

// unitOf is what a workload's memory is kept under: its id without the container.
func unitOf(workload string) string {
	if s := strings.Split(workload, "/"); len(s) == 5 {
		return strings.Join(s[:4], "/")
	}
	return workload
}

// objectName is the name of an object that belongs to a unit: people can read it,
// and no two units share one.
func objectName(unit string) string {
	readable := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, unit), "-")
	name := manager + "-" + readable
	if readable != unit || len(name) > 200 {
		sum := sha256.Sum256([]byte(unit))
		name = strings.TrimRight(name[:min(len(name), 200)], "-") + "-" + hex.EncodeToString(sum[:5])
	}
	return name
}

// labelsOf are the labels by which the ConfigMaps of a backend are found.
func labelsOf(backend string) map[string]string {
	value := backend
	if len(validation.IsValidLabelValue(value)) > 0 {
		value = objectName(backend)
		value = value[max(0, len(value)-validation.LabelValueMaxLength):]
	}
	return map[string]string{managedLabel: manager, backendLabel: value}
}

func (j *journal) selector() string {
	all := labelsOf(j.backend)
	return managedLabel + "=" + all[managedLabel] + "," + backendLabel + "=" + all[backendLabel]
}

// list reads all pages now, from a majority of the API server's store and not from
// a cache of it.
func (j *journal) list(ctx context.Context) (pages map[string]page, version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var list corev1.ConfigMapList
	if err := j.client.List(ctx, configMaps(), j.namespace, metav1.ListOptions{LabelSelector: j.selector()}, &list); err != nil {
		return nil, "", j.asked("listing configmaps", err)
	}
	pages = map[string]page{}
	for i := range list.Items {
		pages[list.Items[i].Name] = newPage(&list.Items[i])
	}
	if j.who == "" {
		return pages, list.ResourceVersion, nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for name, p := range pages {
		if newer(j.pages[name].version, p.version) || j.foreign(name, p) {
			pages[name] = j.pages[name]
		}
	}
	for name, p := range j.pages {
		if _, listed := pages[name]; !listed && newer(p.version, list.ResourceVersion) {
			pages[name] = p // made since
		}
	}
	j.pages, j.loaded = maps.Clone(pages), true
	return pages, list.ResourceVersion, nil
}

// newer reports whether one version is later than another. They are numbers in
// every API server that there is.
func newer(a, b string) bool {
	x, err := strconv.ParseUint(a, 10, 64)
	if err != nil {
		return false
	}
	y, err := strconv.ParseUint(b, 10, 64)
	return err == nil && x > y
}

// take keeps what is known of a page, unless something newer is.
func (j *journal) take(name string, p page, gone bool) {
	if j.who == "" {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case newer(j.pages[name].version, p.version):
	case j.foreign(name, p):
	case gone:
		delete(j.pages, name)
	default:
		j.pages[name] = p
	}
}

// foreign reports whether another leader has written a page since this one was known,
// and ends the lead then: what is decided here is no longer alone. The page as it was
// known stays, so that a write on it is refused. j.mu is held.
func (j *journal) foreign(name string, p page) bool {
	if !j.loaded || p.leader == "" || p.leader == j.who || p.leader == j.pages[name].leader {
		return false
	}
	j.lose(fmt.Errorf("%w: configmap %s is written by %s", updater.ErrLost, name, p.leader))
	return true
}

// follow keeps the pages as they are on the API server until ctx ends, from the
// version on at which they were listed; "": they are to be listed first. While it
// cannot, what is known is used: the leader alone writes them, but for a person's
// word, and a write on an old version is refused.
func (j *journal) follow(ctx context.Context, version string) {
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		if version == "" {
			if _, v, err := j.list(ctx); err == nil {
				version = v
			}
		}
		if version != "" {
			version = j.watch(ctx, version)
		}
		failures++
		if time.Since(began) > time.Minute {
			failures = 0
		}
		if !rested(ctx, min(time.Second<<min(failures, 5), 30*time.Second)) {
			return
		}
	}
}

// watch takes what changes from a version on, and returns the version up to which
// it has; "" when all must be listed anew.
func (j *journal) watch(ctx context.Context, version string) string {
	seconds := int64(watchFor / time.Second)
	w, err := j.client.Watch(ctx, configMaps(), j.namespace, metav1.ListOptions{
		LabelSelector: j.selector(), ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &seconds,
	})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return ""
		}
		return version
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return version
		case e, ok := <-w.ResultChan():
			if !ok {
				return version
			}
			if e.Type == watch.Error {
				return ""
			}
			c, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				continue
			}
			version = c.ResourceVersion
			if e.Type != watch.Bookmark {
				j.take(c.Name, newPage(c), e.Type == watch.Deleted)
			}
		}
	}
}

// all are the pages to read from, each with its unit's name; an error says which
// could not be read.
func (j *journal) all(ctx context.Context) (map[string]page, error) {
	j.mu.Lock()
	pages, loaded := j.pages, j.loaded
	if loaded {
		pages = maps.Clone(pages)
	}
	j.mu.Unlock()
	if !loaded {
		var err error
		if pages, _, err = j.list(ctx); err != nil {
			return nil, err
		}
	}
	return pages, nil
}

// Open implements [updater.Journal].
func (j *journal) Open(ctx context.Context) ([]updater.Change, error) {
	pages, err := j.all(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the open changes: %w", err)
	}
	var open []updater.Change
	var unread []error
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		p := pages[name]
		if p.err == nil && !p.open {
			continue
		}
		b, err := p.read()
		if err != nil {
			unread = append(unread, err)
		}
		open = append(open, b.Open...)
	}
	slices.SortFunc(open, func(a, b updater.Change) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	return open, errors.Join(unread...)
}

// Recall implements [updater.Journal].
func (j *journal) Recall(ctx context.Context) (map[string]updater.Record, error) {
	pages, err := j.all(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading what is remembered: %w", err)
	}
	records := map[string]updater.Record{}
	var unread []error
	for _, p := range pages {
		b, err := p.read()
		if err != nil {
			unread = append(unread, err)
		}
		maps.Copy(records, b.Records)
	}
	return records, errors.Join(unread...)
}

// History implements [updater.Journal].
func (j *journal) History(ctx context.Context, limit int) ([]updater.Entry, error) {
	pages, err := j.all(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the history: %w", err)
	}
	var entries []updater.Entry
	var unread []error
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		b, err := pages[name].read()
		if err != nil {
			unread = append(unread, err)
		}
		slices.Reverse(b.History)
		entries = append(entries, b.History...)
	}
	slices.SortStableFunc(entries, func(a, b updater.Entry) int { return b.At.Compare(a.At) })
	if limit > 0 && len(entries) > limit {
		entries = entries[:limit]
	}
	return entries, errors.Join(unread...)
}

// Save implements [updater.Journal].
func (j *journal) Save(ctx context.Context, c updater.Change) error {
	if c.ID == "" {
		return errors.New("saving a change: it has no id")
	}
	err := j.edit(ctx, unitOf(c.Unit), func(b *book) bool {
		b.Open = slices.DeleteFunc(b.Open, func(o updater.Change) bool { return o.ID == c.ID })
		if !c.Phase.Final() {
			b.Open = append(b.Open, c)
			return true
		}
		// After a crash the last step is taken again.
		b.History = slices.DeleteFunc(b.History, func(e updater.Entry) bool { return e.Change == c.ID })
		b.History = append(b.History, c.Entries()...)
		return true
	})
	if err != nil {
		return fmt.Errorf("saving change %s (%s): %w", c.ID, c.Phase, err)
	}
	j.events.tell(ctx, c)
	return nil
}

// Remember implements [updater.Journal]. Workloads of one pod template are edited in
// one write.
func (j *journal) Remember(ctx context.Context, edits map[string]func(*updater.Record)) error {
	units := map[string][]string{}
	for id := range edits {
		units[unitOf(id)] = append(units[unitOf(id)], id)
	}
	for _, unit := range slices.Sorted(maps.Keys(units)) {
		err := j.edit(ctx, unit, func(b *book) bool {
			changed := false
			for _, id := range units[unit] {
				r, known := b.Records[id]
				before := text(r)
				edits[id](&r)
				after := text(r)
				switch {
				case before == after:
					continue
				case after == "{}" && known:
					delete(b.Records, id)
				default:
					b.Records[id] = r
				}
				changed = true
			}
			return changed
		})
		if err != nil {
			return fmt.Errorf("remembering %s: %w", unit, err)
		}
	}
	return nil
}

func text(r updater.Record) string {
	raw, err := json.Marshal(r)
	if err != nil {
		return err.Error() // a Record always encodes; see its fields
	}
	return string(raw)
}

// Note implements [updater.Journal].
func (j *journal) Note(ctx context.Context, e updater.Entry) error {
	err := j.edit(ctx, unitOf(e.Workload), func(b *book) bool {
		b.History = append(b.History, e)
		return true
	})
	if err != nil {
		return fmt.Errorf("noting %s of %s: %w", e.Event, e.Workload, err)
	}
	return nil
}

// edit changes the book of one unit: do may be called more than once, and returns
// whether it changed anything. The write is made on the version that was read; when
// that is old, all is done again on the new one. An API server in trouble is waited
// for, a little.
func (j *journal) edit(ctx context.Context, unit string, do func(*book) bool) error {
	name := objectName(unit)
	until := time.Now().Add(journalPatience)
	p, err := j.page(ctx, name)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		if err == nil {
			var b book
			if b, err = p.read(); err != nil {
				if errors.As(err, new(newerError)) {
					return err
				}
				// Its text is kept aside below.
				j.log.Error("journal of a workload is damaged, a new one is begun", "unit", unit, "err", err)
			}
			b.Unit = unit
			if !do(&b) {
				return nil
			}
			if err = j.put(ctx, name, p, b); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx) // the lead may have been lost
		}
		if !passing(err) || time.Now().After(until) {
			return err
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) && !rested(ctx, pause) {
			return context.Cause(ctx)
		}
		was := p
		if p, err = j.live(ctx, name); err != nil {
			continue
		}
		if j.who != "" && p.leader != j.who && p.leader != was.leader {
			// Not to be overwritten: whoever it is took this over.
			err := fmt.Errorf("%w: configmap %s is written by %s", updater.ErrLost, name, p.leader)
			j.lose(err)
			return err
		}
	}
}

// passing reports whether a write that failed may succeed in a moment.
func passing(err error) bool {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err),
		apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err), errors.Is(err, errTooLarge):
		return false
	}
	return true
}

// page is what is known of one ConfigMap; the zero page when there is none.
func (j *journal) page(ctx context.Context, name string) (page, error) {
	j.mu.Lock()
	p, loaded := j.pages[name], j.loaded
	j.mu.Unlock()
	if loaded {
		return p, nil
	}
	return j.live(ctx, name)
}

// live is one ConfigMap as it is now.
func (j *journal) live(ctx context.Context, name string) (page, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var c corev1.ConfigMap
	err := j.client.Get(ctx, configMaps(), j.namespace, name, &c)
	if apierrors.IsNotFound(err) {
		if j.who != "" {
			j.mu.Lock()
			delete(j.pages, name)
			j.mu.Unlock()
		}
		return page{}, nil
	}
	if err != nil {
		return page{}, j.asked("reading configmap "+name, err)
	}
	p := newPage(&c)
	j.take(name, p, false)
	return p, nil
}

// put writes a book on top of a page.
func (j *journal) put(ctx context.Context, name string, on page, b book) error {
	if j.who != "" {
		b.Leader = j.who
	}
	raw, err := b.trim()
	if err != nil {
		return err
	}
	c := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: j.namespace, ResourceVersion: on.version,
			Labels: labelsOf(j.backend), Annotations: map[string]string{unitNote: b.Unit},
		},
		Data: map[string]string{bookKey: string(raw)},
	}
	aside := on.damaged
	if on.err != nil {
		aside = on.text
	}
	if aside = aside[:min(len(aside), max(0, bookLimit-2*len(raw))/2)]; aside != "" {
		c.Data[damagedKey] = strings.ToValidUTF8(aside, "?")
	}
	select {
	case j.slots <- struct{}{}:
		defer func() { <-j.slots }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // the lead may have been lost
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	var written corev1.ConfigMap
	if on.version == "" {
		err = j.client.Create(ctx, configMaps(), j.namespace, c, &written)
	} else {
		err = j.client.Update(ctx, configMaps(), j.namespace, name, c, &written)
	}
	if err != nil {
		return j.asked("writing configmap "+name, err)
	}
	j.take(name, newPage(&written), false)
	return nil
}

// asked explains an error of the API server.
func (j *journal) asked(doing string, err error) error {
	err = fmt.Errorf("%s in namespace %s: %w", doing, j.namespace, err)
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("%w: grant it (configs/kubernetes has the role), or name another state-namespace", err)
	}
	return err
}

var errTooLarge = errors.New("it is too large to be kept")

// trim is the book as text, within bookLimit and bookHistory. What goes first: the
// log lines of old entries, then old entries, then log lines of open changes, then
// the oldest rejections, which a policy is least likely to name again.
func (b *book) trim() ([]byte, error) {
	b.History = slices.Clone(b.History[max(0, len(b.History)-bookHistory):])
	for {
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		quoted, err := json.Marshal(string(raw))
		if err != nil {
			return nil, err
		}
		excess := len(quoted) - bookLimit
		if excess <= 0 {
			return raw, nil
		}
		if !b.shorten(excess) {
			return nil, fmt.Errorf("%s: %d bytes, at most %d: %w", b.Unit, len(quoted), bookLimit, errTooLarge)
		}
	}
}

// shorten takes away what matters least, about excess bytes of it or less; false
// when nothing is left to take.
func (b *book) shorten(excess int) bool {
	taken := 0
	for i := range b.History {
		if taken < excess {
			taken += len(b.History[i].Logs)
			b.History[i].Logs = ""
		}
	}
	switch {
	case taken > 0:
		return true
	case len(b.History) > 0:
		b.History = b.History[(len(b.History)+7)/8:]
		return true
	}
	for i := range b.Open {
		taken += len(b.Open[i].Logs)
		b.Open[i].Logs = ""
	}
	for taken < excess && b.dropRejection() {
		taken += rejectionSize
	}
	return taken > 0
}

// dropRejection forgets the oldest rejection of the unit; false when there is none.
func (b *book) dropRejection() bool {
	oldest := ""
	for id, r := range b.Records {
		if len(r.Rejected) > 0 && (oldest == "" || r.Rejected[0].At.Before(b.Records[oldest].Rejected[0].At)) {
			oldest = id
		}
	}
	if oldest == "" {
		return false
	}
	r := b.Records[oldest]
	r.Rejected = slices.Clone(r.Rejected[1:])
	b.Records[oldest] = r
	return true
}

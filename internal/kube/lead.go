package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/updaterd/updaterd/internal/updater"
)

// The times of a Lease are those of Kubernetes' own components.
const (
	// leaseFor is how long a lead holds that is not renewed, by the clock of whoever
	// waits for it.
	leaseFor = 15 * time.Second
	// leaseLost is when a leader that could not renew takes its lead for lost: well
	// before anybody else may take it.
	leaseLost = 10 * time.Second
	// leaseEvery is the pause between renewals, and between looks of a standby.
	leaseEvery = 2 * time.Second
	// leaseRetry is the pause after a renewal that failed.
	leaseRetry = 500 * time.Millisecond
	// leaseTold is how often a standby says that the API server does not answer.
	leaseTold = time.Minute
	// releaseLimit bounds giving up the lead at the end.
	releaseLimit = 3 * time.Second
)

// StateOptions say where the state of a cluster is kept.
type StateOptions struct {
	// Backend is the backend's name in the configuration. Processes that share it
	// and the namespace are replicas of each other.
	Backend string
	Client  *Client
	// Namespace is that of the Lease and the ConfigMaps.
	Namespace string
	// Namespaces are those that are watched; which rights are missing there is said
	// when Lead is first called. None: nothing is asked.
	Namespaces []string
	// Wait is how long Lead waits while another process leads; negative: for ever.
	// A holder that has died is waited out within it, so it must not be shorter
	// than a Lease lasts, 15 s.
	Wait time.Duration
	Log  *slog.Logger
}

// State is a cluster's [updater.State]: a Lease says who leads, ConfigMaps hold the
// journal. A Lease is no fence, so all that is written under it carries the version
// of what it was decided on.
type State struct {
	o      StateOptions
	rights sync.Once
}

var _ updater.State = (*State)(nil)

// NewState returns the state of a cluster. It makes no request.
func NewState(o StateOptions) *State {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &State{o: o}
}

// Journal implements [updater.State]. Every call asks the API server.
func (s *State) Journal() updater.Journal { return newJournal(s.o, "", nil) }

// Lead implements [updater.State]. It waits for a holder that no longer renews
// until its time is over, and for one that lives as long as StateOptions.Wait says.
// An API server that does not answer is waited for as well.
func (s *State) Lead(ctx context.Context, do func(context.Context, updater.Journal) error) error {
	if len(s.o.Namespaces) > 0 {
		s.rights.Do(func() { go s.sayMissing(ctx) })
	}
	l := &lease{client: s.o.Client, namespace: s.o.Namespace, name: objectName(s.o.Backend), who: identity(), log: s.o.Log}
	if err := l.acquire(ctx, s.o.Wait); err != nil {
		return err
	}
	s.o.Log.Info("leading", "lease", l.namespace+"/"+l.name, "holder", l.who)

	lead, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	j := newJournal(s.o, l.who, lose)
	renewed, followed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(renewed)
		l.keep(lead, lose)
	}()
	// Read before the first question, so that it is what the leader before left.
	_, version, err := j.list(lead)
	if err != nil {
		s.o.Log.Error("journal cannot be read: nothing will be updated until it can", "err", err)
	}
	go func() {
		defer close(followed)
		j.follow(lead, version)
	}()
	err = do(lead, j)
	if lost := context.Cause(lead); lost != nil {
		err = errors.Join(lost, err)
	}
	lose(nil)
	<-renewed
	<-followed
	if !errors.Is(err, updater.ErrLost) {
		l.release(context.WithoutCancel(ctx))
	}
	return err
}

// lease is one process's hold on a Lease, or its wait for one.
type lease struct {
	client          *Client
	namespace, name string
	who             string
	log             *slog.Logger
	held            *coordinationv1.Lease // as last written by us
}

func leaseResource() Resource { return Resource{coordinationv1.SchemeGroupVersion, "leases"} }

// identity names this process for others: the pod, and what tells one life of it
// from the next.
func identity() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "_" + strings.ToLower(rand.Text()[:8])
}

// acquire waits for the lead: wait at most where somebody else has it, or the API
// server does not answer.
func (l *lease) acquire(ctx context.Context, wait time.Duration) error {
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if wait >= 0 {
		waiting, cancel = context.WithTimeout(ctx, wait)
	}
	defer cancel()
	var seen watching
	var told time.Time
	for {
		err := l.try(ctx, &seen)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil && !errors.Is(err, updater.ErrLed) && time.Since(told) >= leaseTold {
			told = time.Now()
			l.log.Warn("lease cannot be had, waiting", "err", err)
		}
		if wait >= 0 && apierrors.IsForbidden(err) {
			return err // somebody waits, and waiting grants nothing
		}
		if !rested(waiting, leaseEvery) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if seen.holder != "" {
				err = l.led(seen.holder)
			}
			return err
		}
	}
}

func (l *lease) led(holder string) error {
	return fmt.Errorf("%w: %s holds the lease %s/%s and renews it; stop it first, or wait longer with --lease-wait (looking, and a person's word, work beside it)",
		updater.ErrLed, holder, l.namespace, l.name)
}

// watching is what a process that waits has seen of a Lease: for how long it has
// not been renewed is measured on one clock only, its own.
type watching struct {
	holder, version string
	since           time.Time
}

// expired reports whether the Lease has not been renewed for as long as it lasts.
func (w *watching) expired(found *coordinationv1.Lease, now time.Time) bool {
	holder := ""
	if found.Spec.HolderIdentity != nil {
		holder = *found.Spec.HolderIdentity
	}
	if w.holder != holder || w.version != found.ResourceVersion {
		*w = watching{holder, found.ResourceVersion, now}
	}
	lasts := leaseFor
	if s := found.Spec.LeaseDurationSeconds; s != nil {
		lasts = time.Duration(*s) * time.Second
	}
	return holder == "" || !now.Before(w.since.Add(lasts))
}

// try takes the lead if nobody has it.
func (l *lease) try(ctx context.Context, seen *watching) error {
	ctx, cancel := context.WithTimeout(ctx, leaseLost)
	defer cancel()
	var found coordinationv1.Lease
	err := l.client.Get(ctx, leaseResource(), l.namespace, l.name, &found)
	switch {
	case apierrors.IsNotFound(err):
		found = coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: l.name, Namespace: l.namespace, Labels: map[string]string{managedLabel: manager}}}
	case err != nil:
		return l.asked(err)
	case !seen.expired(&found, time.Now()):
		return l.led(seen.holder)
	}
	now := metav1.NowMicro()
	seconds, transitions := int32(leaseFor/time.Second), int32(0)
	if found.Spec.LeaseTransitions != nil {
		transitions = *found.Spec.LeaseTransitions + 1
	}
	found.Spec = coordinationv1.LeaseSpec{
		HolderIdentity: &l.who, LeaseDurationSeconds: &seconds, AcquireTime: &now, RenewTime: &now, LeaseTransitions: &transitions,
	}
	return l.asked(l.put(ctx, &found))
}

// asked explains an error of the API server.
func (l *lease) asked(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("lease %s/%s: %w: grant it (configs/kubernetes has the role), or name another state-namespace", l.namespace, l.name, err)
	}
	return fmt.Errorf("lease %s/%s: %w", l.namespace, l.name, err)
}

// put writes the Lease; the API server refuses it if somebody was faster.
func (l *lease) put(ctx context.Context, next *coordinationv1.Lease) error {
	var written coordinationv1.Lease
	var err error
	if next.ResourceVersion == "" {
		err = l.client.Create(ctx, leaseResource(), l.namespace, next, &written)
	} else {
		err = l.client.Update(ctx, leaseResource(), l.namespace, l.name, next, &written)
	}
	if err == nil {
		l.held = &written
	}
	return err
}

// keep renews until ctx ends, or calls lose when the lead is lost.
func (l *lease) keep(ctx context.Context, lose context.CancelCauseFunc) {
	renewed := time.Now()
	pause := leaseEvery
	for rested(ctx, pause) {
		began := time.Now()
		err := l.renew(ctx, renewed.Add(leaseLost))
		switch {
		case err == nil:
			renewed, pause = began, leaseEvery
		case ctx.Err() != nil:
			return
		case errors.Is(err, errTaken), !time.Now().Before(renewed.Add(leaseLost)):
			lose(fmt.Errorf("%w: lease %s/%s: %w", updater.ErrLost, l.namespace, l.name, err))
			return
		default:
			pause = min(leaseRetry, time.Until(renewed.Add(leaseLost)))
			l.log.Warn("lease cannot be renewed, trying on", "err", err)
		}
	}
}

// errTaken: the Lease has another holder, or none.
var errTaken = errors.New("somebody else holds it")

func (l *lease) renew(ctx context.Context, until time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	next := l.held.DeepCopy()
	now := metav1.NowMicro()
	next.Spec.RenewTime = &now
	err := l.put(ctx, next)
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return err
	}
	// A label that somebody wrote is a version as well.
	var found coordinationv1.Lease
	if err := l.client.Get(ctx, leaseResource(), l.namespace, l.name, &found); err != nil {
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("it was deleted: %w", errTaken)
		}
		return err
	}
	if found.Spec.HolderIdentity == nil || *found.Spec.HolderIdentity != l.who {
		return errTaken
	}
	l.held = &found
	next = found.DeepCopy()
	next.Spec.RenewTime = &now
	return l.put(ctx, next)
}

// release lets the next one lead at once. If it fails, the next one waits until the
// Lease is over.
func (l *lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	next := l.held.DeepCopy()
	next.Spec.HolderIdentity = nil
	if err := l.put(ctx, next); err != nil {
		l.log.Warn("lease not released: the next leader waits until it is over", "err", err)
	}
}

// rested reports whether the whole pause passed.
func rested(ctx context.Context, pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

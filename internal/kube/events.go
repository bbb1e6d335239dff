package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/updaterd/updaterd/internal/updater"
)

// The reasons of Events, as kubectl describe shows them on a workload.
const (
	eventStarted   = "UpdateStarted"
	eventCommitted = "UpdateCommitted"
	eventRestored  = "UpdateRestored"
	eventFailed    = "UpdateFailed"
	eventRejected  = "UpdateRejected"
	eventRefused   = "UpdateRefused"
)

// eventLimit bounds the telling of one Event, which nothing may wait for long.
const eventLimit = 2 * time.Second

// eventMessage bounds the message of an Event: the API allows 1,024 bytes.
const eventMessage = 1000

// announcer tells of changes on the workloads themselves.
type announcer struct {
	client *Client
	log    *slog.Logger
}

// announcement is one Event to be.
type announcement struct {
	kind, reason, message string
}

// announcements are what there is to tell of a change that was just written to the
// journal. They never hold log lines or the output of a command, for whoever may
// read Events need not be allowed to read logs.
func announcements(c updater.Change) []announcement {
	normal, warning := corev1.EventTypeNormal, corev1.EventTypeWarning
	switch c.Phase {
	case updater.Preparing:
		return []announcement{{normal, eventStarted, moves(c, false)}}
	case updater.Committed:
		return []announcement{{normal, eventCommitted, moves(c, true) + ": healthy"}}
	case updater.Restored, updater.Failed:
		a := announcement{warning, eventRestored, "put back as it was" + because(c)}
		if c.Phase == updater.Failed {
			a = announcement{warning, eventFailed, "neither healthy on the new image nor as healthy as it was, look at it now" + because(c)}
		}
		all := []announcement{a}
		for _, e := range c.Entries() {
			if e.Verdict == updater.Bad {
				all = append(all, announcement{warning, eventRejected, fmt.Sprintf(
					"%s is not tried here again%s; lift that with: updaterd forget %s", refOf(e.To), because(c), e.Workload)})
			}
		}
		return all
	case updater.Refused:
		if c.Verdict == "" && (c.Reason == "" || c.Reason == updater.UpToDate) {
			return nil // broken off before anything was disturbed, or nothing to do
		}
		return []announcement{{warning, eventRefused, "nothing was changed" + because(c)}}
	}
	return nil
}

// moves says which container goes to which image.
func moves(c updater.Change, done bool) string {
	var all []string
	for _, p := range c.Parts {
		if !p.Changes() {
			continue
		}
		container := p.Workload[strings.LastIndexByte(p.Workload, '/')+1:]
		if done {
			all = append(all, container+" runs "+refOf(p.To))
		} else {
			all = append(all, container+" goes from "+refOf(p.From)+" to "+refOf(p.To))
		}
	}
	return strings.Join(all, ", ")
}

// refOf is an image with its digest, which tells a rebuilt tag from the one before.
func refOf(i updater.Image) string {
	if i.Digest == "" || strings.Contains(i.Ref, i.Digest) {
		return i.Ref
	}
	return i.Ref + "@" + i.Digest
}

// because is the sentence about a change without what follows its colon: there,
// programs are quoted.
func because(c updater.Change) string {
	why := c.Why
	for _, p := range c.Parts {
		why = strings.TrimPrefix(why, p.Workload+": ")
	}
	why, _, _ = strings.Cut(why, "\n")
	said := strings.Split(why, ": ")
	kept := 1
	if len(said) > 1 && strings.Contains(said[0], ", for ") && strings.HasPrefix(said[1], "pod ") {
		kept = 2 // the gate says what it waited for, and how long, before it says why
	}
	if len(said) > kept && strings.HasPrefix(said[kept-1], "pod ") {
		kept++ // "pod web-1: it was restarted twice" quotes nobody yet
	}
	why = strings.Join(said[:kept], ": ")
	if why = strings.TrimSpace(why); why == "" {
		return ""
	}
	return ", because " + why
}

// tell announces a change. The Event is named by what it tells, so that after a
// crash it is not told twice. A failure is its own to log.
func (a *announcer) tell(ctx context.Context, c updater.Change) {
	var on struct {
		Namespace, Kind, Name string
		UID                   types.UID
	}
	all := announcements(c)
	if len(all) == 0 || json.Unmarshal(c.Origin, &on) != nil || on.UID == "" {
		return
	}
	group, kind := apiKind(on.Kind)
	for _, e := range all {
		sum := sha256.Sum256([]byte(c.ID + " " + e.reason + " " + e.message))
		now := metav1.Now()
		event := &corev1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: on.Name[:min(len(on.Name), 200)] + ".updaterd-" + hex.EncodeToString(sum[:8]), Namespace: on.Namespace},
			InvolvedObject: corev1.ObjectReference{
				APIVersion: group, Kind: kind, Namespace: on.Namespace, Name: on.Name, UID: on.UID,
			},
			Type: e.kind, Reason: e.reason, Message: e.message[:min(len(e.message), eventMessage)],
			Source: corev1.EventSource{Component: manager}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		}
		ctx, cancel := context.WithTimeout(ctx, eventLimit)
		err := a.client.Create(ctx, Resource{corev1.SchemeGroupVersion, "events"}, on.Namespace, event, &corev1.Event{})
		cancel()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			a.log.Debug("event not made", "workload", c.Unit, "event", e.reason, "err", err)
		}
	}
}

// apiKind is a kind as the API writes it.
func apiKind(name string) (group, kind string) {
	switch name {
	case "deployment":
		return "apps/v1", "Deployment"
	case "statefulset":
		return "apps/v1", "StatefulSet"
	case "daemonset":
		return "apps/v1", "DaemonSet"
	}
	return "batch/v1", "CronJob"
}

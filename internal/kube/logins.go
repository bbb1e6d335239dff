package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/updaterd/updaterd/internal/updater"
)

const (
	// believed is how long a Secret or ServiceAccount that was read is taken to be as
	// it was. Half of what the shortest-lived logins live that are commonly kept in
	// Secrets would be six hours (those of AWS live twelve).
	believed = time.Hour
	// doubtEvery is the first pause after which one that a registry did not take is
	// read again; it doubles up to believed, for as long as nothing changes.
	doubtEvery = time.Minute
	// failedEvery is the pause after the API server could not be asked.
	failedEvery = 10 * time.Second
)

func secretResource() Resource { return Resource{corev1.SchemeGroupVersion, "secrets"} }
func accountResource() Resource {
	return Resource{corev1.SchemeGroupVersion, "serviceaccounts"}
}

// logins are what a kubelet pulls the images of a pod template by: its
// imagePullSecrets, or, where it names none, those of its ServiceAccount, which its
// pods tell. They are read by name, only when a registry is asked, and kept.
type logins struct {
	c                  *Cluster
	namespace, account string
	template, pods     []string // names of Secrets
}

var _ updater.Logins = logins{}

// logins are those of an object, some of whose pods are known.
func (c *Cluster) logins(o *owner, pods []*pod) updater.Logins {
	l := logins{c: c, namespace: o.Namespace, account: o.account, template: o.pullSecrets}
	var newest *pod
	for _, p := range pods {
		if newest == nil || newest.CreationTimestamp.Before(&p.CreationTimestamp) {
			newest = p
		}
	}
	if newest != nil {
		l.pods = newest.pullSecrets
	}
	return l
}

// loginsOf are those of an object whose pods are looked up; that they cannot be
// listed leaves the template's.
func (c *Cluster) loginsOf(ctx context.Context, o *owner) updater.Logins {
	pods, err := c.pods(ctx, o, false)
	if err != nil {
		c.log.Debug("pods cannot be listed, so only the template tells what it pulls by", "object", o.address(), "err", err)
	}
	return c.logins(o, pods)
}

// Read implements [updater.Logins]. Without the right to read them, no Secret is
// asked for again, unless a registry wants credentials, and then ever more rarely.
func (l logins) Read(ctx context.Context, again bool) (all []updater.Login, why string) {
	names := slices.Concat(l.template, l.pods)
	if len(l.template) == 0 {
		// What the pods have is what it had when they were made. Only who is refused needs
		// to know better.
		names = append(names, l.c.keys.account(ctx, l.namespace, l.account, again)...)
	}
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		login, not := l.c.keys.secret(ctx, l.namespace, name, again)
		if not != "" && why == "" {
			why = not
		}
		if login.Config != nil {
			all = append(all, login)
		}
	}
	return all, why
}

// keys are the Secrets and ServiceAccounts that were read, by namespace and name.
// What nobody has asked for in a long time is dropped.
type keys struct {
	c        *Cluster
	mu       sync.Mutex
	secrets  map[string]*kept[updater.Login]
	accounts map[string]*kept[[]string]
}

// kept is one object as it was last read.
type kept[V any] struct {
	asked time.Time // by whoever holds the map's lock

	mu    sync.Mutex
	v     V
	why   string // what is wrong with it; "" when nothing is
	at    time.Time
	pause time.Duration // before doubt has it read again; 0: it was never read
	lost  bool          // the API server could not be asked
}

// of is the entry of an object in a map, made at first use.
func of[V any](mu *sync.Mutex, all map[string]*kept[V], namespace, name string) *kept[V] {
	mu.Lock()
	defer mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(all, func(_ string, k *kept[V]) bool { return now.Sub(k.asked) > 2*believed })
	key := namespace + "/" + name
	if all[key] == nil {
		all[key] = &kept[V]{}
	}
	all[key].asked = now
	return all[key]
}

// get returns the object as it was last read, or reads it. eager: also when nobody
// is in doubt about it. read says what is wrong with the object, and an error only
// where the API server could not be asked.
func (k *kept[V]) get(eager, again bool, same func(a, b V) bool, read func() (V, string, error)) (V, string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	age := time.Since(k.at)
	switch {
	case k.pause == 0 && (eager || again):
	case k.pause == 0:
		return k.v, k.why
	case k.lost && age >= failedEvery:
	case k.why == "" && age >= believed:
	case again && age >= k.pause:
	default:
		return k.v, k.why
	}
	v, why, err := read()
	first := k.pause == 0
	k.at, k.lost = time.Now(), err != nil
	if err != nil {
		k.why, k.pause = err.Error(), max(k.pause, doubtEvery)
		return k.v, k.why // as it was, if it ever was
	}
	if first || !same(k.v, v) {
		k.pause = doubtEvery
	} else if again {
		k.pause = min(2*k.pause, believed)
	}
	k.v, k.why = v, why
	return v, why
}

// secret is what a Secret holds to log in with, or why that is nothing.
func (k *keys) secret(ctx context.Context, namespace, name string, again bool) (updater.Login, string) {
	same := func(a, b updater.Login) bool { return string(a.Config) == string(b.Config) }
	return of(&k.mu, k.secrets, namespace, name).get(true, again, same, func() (updater.Login, string, error) {
		what := "Secret " + namespace + "/" + name
		s := &corev1.Secret{}
		if why, err := k.read(ctx, secretResource(), what, namespace, name, s); why != "" || err != nil {
			return updater.Login{}, why, err
		}
		l := updater.Login{Source: what}
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			l.Config = s.Data[corev1.DockerConfigJsonKey]
		case corev1.SecretTypeDockercfg:
			l.Config = s.Data[corev1.DockerConfigKey]
			// The form of old: what newer ones have below auths.
			if whole, err := json.Marshal(map[string]json.RawMessage{"auths": l.Config}); err == nil {
				l.Config = whole
			}
		default:
			return updater.Login{}, fmt.Sprintf("%s is of the type %s, which is none of imagePullSecrets", what, s.Type), nil
		}
		return l, "", nil
	})
}

// account is the names of the Secrets of a ServiceAccount, if somebody needed to know.
func (k *keys) account(ctx context.Context, namespace, name string, again bool) []string {
	names, _ := of(&k.mu, k.accounts, namespace, name).get(false, again, slices.Equal, func() ([]string, string, error) {
		a := &corev1.ServiceAccount{}
		if why, err := k.read(ctx, accountResource(), "ServiceAccount "+namespace+"/"+name, namespace, name, a); why != "" || err != nil {
			return nil, why, err
		}
		return secretNames(a.ImagePullSecrets), "", nil
	})
	return names
}

// read reads an object, or says why there is nothing to be read.
func (k *keys) read(ctx context.Context, r Resource, what, namespace, name string, into runtime.Object) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	err = k.c.api.Get(ctx, r, namespace, name, into)
	switch {
	case err == nil:
		return "", nil
	case apierrors.IsForbidden(err):
		if k.c.once("forbidden " + what) {
			right := Right{Verb: "get", Resource: r.Name, Name: name, Namespace: namespace}
			k.c.log.Info("right is not granted", "right", right.String(), "costs", costsOfSecrets, "overlay", overlayOfSecrets)
		}
		return what + " may not be read: name it in the overlay secrets of configs/kubernetes", nil
	case apierrors.IsNotFound(err):
		return "there is no " + what, nil
	}
	return "", fmt.Errorf("%s cannot be read now: %w", what, err)
}

func secretNames(refs []corev1.LocalObjectReference) []string {
	var names []string
	for _, r := range refs {
		if r.Name != "" {
			names = append(names, r.Name)
		}
	}
	return names
}

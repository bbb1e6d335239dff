package config

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settleFor is how long nothing must happen before a change is believed:
	// an editor writes, renames and removes within it. In a directory where
	// something always happens, settleAtMost is the end of it.
	settleFor    = 250 * time.Millisecond
	settleAtMost = 2 * time.Second
	// lookEvery is how often the file is read without having been told. It
	// finds what no event tells of: a change on a network file system, a
	// directory that was replaced, or an exhausted inotify limit.
	lookEvery = 15 * time.Second
)

// Watch calls changed whenever what is in the file at path has changed, until
// ctx ends; it blocks until then. It knows the file by its content, however
// that came to be: written in place, renamed over the old one as editors do,
// or reached by another symlink as Kubernetes does. A file that has gone counts
// as changed. What happened before Watch began is not seen, so begin it before
// Load. Without the system's notifications it works too, only slower, so its
// one error is that there is no path.
func Watch(ctx context.Context, path string, changed func()) error {
	if path == "" {
		return errors.New("no configuration file to watch")
	}
	return watch(ctx, path, func() {}, changed)
}

// watch also says when it has begun, for those who must change the file then.
func watch(ctx context.Context, path string, begun, changed func()) error {
	last := content(path)
	var events chan fsnotify.Event
	var faults chan error
	notifier, err := fsnotify.NewWatcher()
	if err == nil { // else lookEvery will do
		defer notifier.Close()
		events, faults = notifier.Events, notifier.Errors
		follow(notifier, path)
	}
	begun()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var settled <-chan time.Time
	var latest time.Time // for settled
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			if settled == nil {
				latest = time.Now().Add(settleAtMost)
			}
			settled = time.After(min(settleFor, time.Until(latest)))
			continue
		case <-faults: // events were lost: look
		case <-ticker.C:
		case <-settled:
		}
		settled = nil
		if notifier != nil {
			follow(notifier, path)
		}
		if now := content(path); now != last {
			last = now
			changed()
		}
	}
}

// content tells two contents of a file apart; one that cannot be read is the
// zero content.
func content(path string) [sha256.Size]byte {
	data, err := readAtMost(path)
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(data)
}

// follow watches the directory of path, and that of every link between it and
// the file, for any of them may be turned elsewhere. Watching one again does
// nothing, and one that has gone is no longer told of, so nothing is ever taken
// off. What cannot be watched is left to lookEvery.
func follow(notifier *fsnotify.Watcher, path string) {
	// The number of links that Linux follows.
	for range 40 {
		_ = notifier.Add(filepath.Dir(path))
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
}

package journal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/updater"
)

// Outbox keeps what people are yet to be told, and what they were told, in the
// state directory, whatever the backend:
//
//	_messages.db    the letters and the keys
//	_messages.lock  locked by the process that delivers
//
// It is a database like a journal's, with the same protection, and may be written
// by several processes. No backend can have its name. A damaged one is set aside
// by whoever meets it.
type Outbox struct{ file *File }

// The buckets of an outbox, besides meta.
//
//	letters  receiver, 0, sequence -> Letter
//	told     key -> time
const (
	lettersBucket = "letters"
	toldBucket    = "told"

	// toldLimit bounds the keys: what is beyond it was told long ago. They are
	// counted only now and then.
	toldLimit, toldSlack = 10_000, 1000
)

// Letter is one message for one receiver.
type Letter struct {
	// ID is the same however often the letter is sent.
	ID   string          `json:"id"`
	At   time.Time       `json:"at"`
	Body json.RawMessage `json:"body"`

	key []byte
}

// Mail is one message for all its receivers.
type Mail struct {
	// Once is the key of what it says: of two with the same one, the second is not
	// taken. Empty: it is always taken.
	Once string
	At   time.Time
	// For are the bodies by receiver. None: the key is kept all the same.
	For map[string]json.RawMessage
}

// NewOutbox returns the outbox in dir. It touches no file.
func NewOutbox(dir string, log *slog.Logger) *Outbox {
	base := filepath.Join(dir, "_messages")
	return &Outbox{&File{
		dir: dir, path: base + ".db", lock: base + ".lock", log: log, turn: make(chan struct{}, 1),
		buckets: []string{metaBucket, lettersBucket, toldBucket}, loses: "messages that were not delivered yet, and which ones were",
		keeps: "the history has what became of changes",
	}}
}

// book is the outbox as its leader has it: damage is set aside by whoever meets it.
func (o *Outbox) book() book { return book{file: o.file, leading: true} }

// Put takes mail and drops keys, all in one transaction; it is durable on return.
// most bounds the letters that wait for one receiver: beyond it, the oldest are
// dropped. It returns how many were.
func (o *Outbox) Put(ctx context.Context, mail []Mail, drop []string, most int) (dropped int, err error) {
	err = o.book().update(ctx, "keeping messages", func(tx *bbolt.Tx) error {
		dropped = 0
		changed := false
		told, letters := tx.Bucket([]byte(toldBucket)), tx.Bucket([]byte(lettersBucket))
		for _, key := range drop {
			if told.Get([]byte(key)) == nil {
				continue
			}
			changed = true
			if err := told.Delete([]byte(key)); err != nil {
				return err
			}
		}
		for _, m := range mail {
			if m.Once != "" {
				if told.Get([]byte(m.Once)) != nil {
					continue
				}
				if err := put(tx, toldBucket, []byte(m.Once), m.At); err != nil {
					return err
				}
				if err := pruneTold(tx); err != nil {
					return err
				}
			}
			changed = true
			for _, receiver := range slices.Sorted(maps.Keys(m.For)) {
				sequence, err := letters.NextSequence()
				if err != nil {
					return err
				}
				// The time is part of it, for numbers begin anew in a new file.
				l := Letter{ID: m.At.UTC().Format("20060102T150405") + "-" + strconv.FormatUint(sequence, 10), At: m.At, Body: m.For[receiver]}
				if err := put(tx, lettersBucket, binary.BigEndian.AppendUint64(prefix(receiver), sequence), l); err != nil {
					return err
				}
				n, err := overflow(letters, prefix(receiver), most)
				if err != nil {
					return err
				}
				dropped += n
			}
		}
		if !changed {
			return errUnchanged
		}
		return nil
	})
	return dropped, err
}

// overflow drops the oldest letters of a receiver beyond the most there may be.
func overflow(letters *bbolt.Bucket, prefix []byte, most int) (int, error) {
	var keys [][]byte
	c := letters.Cursor()
	for key, _ := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, _ = c.Next() {
		keys = append(keys, key)
	}
	over := max(0, len(keys)-most)
	for _, key := range keys[:over] {
		if err := letters.Delete(bytes.Clone(key)); err != nil {
			return 0, err
		}
	}
	return over, nil
}

// pruneTold drops the oldest keys, every thousandth time it is called.
func pruneTold(tx *bbolt.Tx) error {
	told := tx.Bucket([]byte(toldBucket))
	n, err := told.NextSequence()
	if err != nil || n%toldSlack != 0 {
		return err
	}
	type old struct {
		key string
		at  time.Time
	}
	var all []old
	err = each(tx, toldBucket, func(key []byte, at time.Time) { all = append(all, old{string(key), at}) })
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b old) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.key, b.key)) })
	for _, o := range all[:max(0, len(all)-toldLimit)] {
		if err := told.Delete([]byte(o.key)); err != nil {
			return err
		}
	}
	return nil
}

func prefix(receiver string) []byte { return append([]byte(receiver), 0) }

// Told returns the keys and since when each is kept.
func (o *Outbox) Told(ctx context.Context) (map[string]time.Time, error) {
	return view(ctx, o.book(), "reading what was told", func(tx *bbolt.Tx) (map[string]time.Time, error) {
		told := map[string]time.Time{}
		err := each(tx, toldBucket, func(key []byte, at time.Time) { told[string(key)] = at })
		return told, err
	})
}

// Waiting returns the oldest letters of a receiver, at most n.
func (o *Outbox) Waiting(ctx context.Context, receiver string, n int) ([]Letter, error) {
	return view(ctx, o.book(), "reading messages", func(tx *bbolt.Tx) ([]Letter, error) {
		var letters []Letter
		c := tx.Bucket([]byte(lettersBucket)).Cursor()
		p := prefix(receiver)
		for key, sealed := c.Seek(p); bytes.HasPrefix(key, p) && len(letters) < n; key, sealed = c.Next() {
			var l Letter
			if _, err := unseal(lettersBucket, key, sealed, &l); err != nil {
				return nil, err
			}
			l.key = bytes.Clone(key)
			letters = append(letters, l)
		}
		return letters, nil
	})
}

// Done takes out letters that were delivered, or given up.
func (o *Outbox) Done(ctx context.Context, letters []Letter) error {
	if len(letters) == 0 {
		return nil
	}
	return o.book().update(ctx, "taking out messages", func(tx *bbolt.Tx) error {
		for _, l := range letters {
			if err := tx.Bucket([]byte(lettersBucket)).Delete(l.key); err != nil {
				return err
			}
		}
		return nil
	})
}

// Discard takes out the letters of all receivers but those, which nobody would
// ever deliver, and returns how many there were.
func (o *Outbox) Discard(ctx context.Context, but []string) (discarded int, err error) {
	err = o.book().update(ctx, "taking out messages", func(tx *bbolt.Tx) error {
		discarded = 0
		var keys [][]byte
		err := each(tx, lettersBucket, func(key []byte, _ json.RawMessage) {
			receiver, _, _ := bytes.Cut(key, []byte{0})
			if !slices.Contains(but, string(receiver)) {
				keys = append(keys, bytes.Clone(key))
			}
		})
		if err != nil {
			return err
		}
		for _, key := range keys {
			if err := tx.Bucket([]byte(lettersBucket)).Delete(key); err != nil {
				return err
			}
		}
		if discarded = len(keys); discarded == 0 {
			return errUnchanged
		}
		return nil
	})
	return discarded, err
}

// Stamp changes whenever the outbox does, also by another process.
func (o *Outbox) Stamp() string {
	info, err := os.Stat(o.file.path)
	if err != nil {
		return ""
	}
	return fmt.Sprint(info.ModTime().UnixNano(), info.Size())
}

// Deliver calls do while this process alone delivers; false, at once, if another
// one does.
func (o *Outbox) Deliver(ctx context.Context, do func(context.Context)) (bool, error) {
	lock, err := o.file.lead(ctx)
	if errors.Is(err, updater.ErrLed) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer release(lock)
	do(ctx)
	return true, nil
}

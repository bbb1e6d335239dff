// Package journal keeps what must survive on the host that updaterd runs on:
// open changes, what is remembered of each workload, and the history.
//
// Each backend has an embedded database (bbolt) and a lock file in the state
// directory:
//
//	local.db     the journal of the backend "local"
//	local.lock   locked, with a pid in it (and "finishing", see File), while a
//	             process changes that backend
//	owner        the id of this installation
//
// The database is opened for one transaction at a time, so that commands which
// only look, or pass on a person's word, work beside a daemon: a write takes an
// exclusive file lock, a read a shared one, and all such locks go with the
// process that held them. Before bbolt sees a file, its pages are checked by
// code of our own (see sound), and each value carries a checksum: a damaged
// file is an error, never a crash and never a half-truth. Whoever leads sets
// it aside and begins a new one, because going back must not wait for it.
package journal

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"github.com/updaterd/updaterd/internal/updater"
)

var (
	_ updater.State   = (*File)(nil)
	_ updater.Journal = book{}
)

// File is the journal of one backend in a state directory. It implements
// [updater.State].
type File struct {
	// Finishing is set before Lead by a process that does nothing but finish the
	// update of updaterd itself: the Lead of others then fails with
	// updater.ErrFinishing as well, so that they stand by instead of giving up.
	Finishing bool

	dir  string
	path string // of the database
	lock string // path of the lock file
	log  *slog.Logger
	// turn queues the transactions of this process: file locks alone would
	// have to be polled for.
	turn chan struct{}
	// buckets are those of the database, loses what is lost with it, keeps what
	// is not.
	buckets      []string
	loses, keeps string
}

// New returns the journal of backend in dir. It touches no file.
func New(dir, backend string, log *slog.Logger) *File {
	base := filepath.Join(dir, url.PathEscape(backend))
	return &File{
		dir: dir, path: base + ".db", lock: base + ".lock",
		log: log.With("backend", backend), turn: make(chan struct{}, 1),
		buckets: buckets(), loses: "rejections, holds, approvals, first-seen times and history",
		keeps: "changes under way are found again from what they left on the containers",
	}
}

// Journal returns the journal beside whoever leads. Reading makes no file: a
// state directory that does not exist reads as empty. A damaged journal is an
// error here; only [File.Lead] sets it aside.
func (f *File) Journal() updater.Journal { return book{file: f} }

// The buckets of a database, all at the top. Every value is sealed, see seal.
//
//	meta      "schema": schema; "entries": how many are in history
//	open      id of a change -> updater.Change
//	records   id of a workload -> updater.Record
//	history   time and sequence -> updater.Entry
//	finished  id of a change -> its keys in history, one after the other
const (
	metaBucket     = "meta"
	openBucket     = "open"
	recordsBucket  = "records"
	historyBucket  = "history"
	finishedBucket = "finished"

	schemaKey  = "schema"
	entriesKey = "entries"

	// schema changes when an older updaterd could no longer understand what a
	// newer one writes. A new optional JSON field is no such change.
	schema = 1

	// historyLimit bounds the history. An entry is a few hundred bytes, and
	// at most about 5 KiB with its log lines.
	historyLimit = 10_000
)

func buckets() []string {
	return []string{metaBucket, openBucket, recordsBucket, historyBucket, finishedBucket}
}

// book implements updater.Journal on a File.
type book struct {
	file *File
	// leading: damage is repaired instead of reported.
	leading bool
}

func (b book) Open(ctx context.Context) ([]updater.Change, error) {
	return view(ctx, b, "reading the open changes", func(tx *bbolt.Tx) ([]updater.Change, error) {
		var changes []updater.Change
		err := each(tx, openBucket, func(_ []byte, c updater.Change) {
			changes = append(changes, c)
		})
		slices.SortFunc(changes, func(a, c updater.Change) int {
			return cmp.Or(a.Since.Compare(c.Since), cmp.Compare(a.ID, c.ID))
		})
		return changes, err
	})
}

func (b book) Save(ctx context.Context, c updater.Change) error {
	doing := fmt.Sprintf("saving change %s (%s)", c.ID, c.Phase)
	if c.ID == "" {
		return errors.New("saving a change: it has no id")
	}
	return b.update(ctx, doing, func(tx *bbolt.Tx) error {
		if !c.Phase.Final() {
			return put(tx, openBucket, []byte(c.ID), c)
		}
		if err := tx.Bucket([]byte(openBucket)).Delete([]byte(c.ID)); err != nil {
			return err
		}
		return finish(tx, c)
	})
}

// finish puts the entries of c, which is over, in the place of those that an
// earlier call may have left: after a crash the last step is taken again.
func finish(tx *bbolt.Tx, c updater.Change) error {
	var old []byte
	if _, err := get(tx, finishedBucket, []byte(c.ID), &old); err != nil {
		return err
	}
	for key := range slices.Chunk(old, historyKeyLen) {
		if err := drop(tx, key); err != nil {
			return err
		}
	}
	var keys []byte
	for _, e := range c.Entries() {
		key, err := add(tx, e)
		if err != nil {
			return err
		}
		keys = append(keys, key...)
	}
	if len(keys) == 0 {
		return tx.Bucket([]byte(finishedBucket)).Delete([]byte(c.ID))
	}
	if err := put(tx, finishedBucket, []byte(c.ID), keys); err != nil {
		return err
	}
	return prune(tx)
}

func (b book) Recall(ctx context.Context) (map[string]updater.Record, error) {
	return view(ctx, b, "reading what is remembered", func(tx *bbolt.Tx) (map[string]updater.Record, error) {
		records := map[string]updater.Record{}
		err := each(tx, recordsBucket, func(key []byte, r updater.Record) {
			records[string(key)] = r
		})
		return records, err
	})
}

func (b book) Remember(ctx context.Context, edits map[string]func(*updater.Record)) error {
	if len(edits) == 0 {
		return nil
	}
	return b.update(ctx, "remembering", func(tx *bbolt.Tx) error {
		changed := false
		for _, id := range slices.Sorted(maps.Keys(edits)) {
			var r updater.Record
			before, err := get(tx, recordsBucket, []byte(id), &r)
			if err != nil {
				return err
			}
			callersOwn(func() { edits[id](&r) })
			after, err := json.Marshal(r)
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			empty := string(after) == "{}" // every field of a Record is left out when empty
			switch {
			case bytes.Equal(before, after), empty && before == nil:
				continue
			case empty:
				err = tx.Bucket([]byte(recordsBucket)).Delete([]byte(id))
			default:
				err = putRaw(tx, recordsBucket, []byte(id), after)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			changed = true
		}
		if !changed {
			return errUnchanged
		}
		return nil
	})
}

func (b book) Note(ctx context.Context, e updater.Entry) error {
	return b.update(ctx, fmt.Sprintf("noting %s of %s", e.Event, e.Workload), func(tx *bbolt.Tx) error {
		if _, err := add(tx, e); err != nil {
			return err
		}
		return prune(tx)
	})
}

func (b book) History(ctx context.Context, limit int) ([]updater.Entry, error) {
	return view(ctx, b, "reading the history", func(tx *bbolt.Tx) ([]updater.Entry, error) {
		var entries []updater.Entry
		cursor := tx.Bucket([]byte(historyBucket)).Cursor()
		for key, sealed := cursor.Last(); key != nil; key, sealed = cursor.Prev() {
			var e updater.Entry
			if _, err := unseal(historyBucket, key, sealed, &e); err != nil {
				return nil, err
			}
			entries = append(entries, e)
			if len(entries) == limit {
				break
			}
		}
		return entries, nil
	})
}

// historyKeyLen is the length of a key in history: seconds and nanoseconds of
// the time, then a sequence number, so that the order of keys is the order of
// events and no two are the same.
const historyKeyLen = 8 + 4 + 8

// add puts e into the history and returns its key.
func add(tx *bbolt.Tx, e updater.Entry) ([]byte, error) {
	history := tx.Bucket([]byte(historyBucket))
	// Keys come in order, so pages may be filled; half-full ones (the default)
	// would make the file twice as large.
	history.FillPercent = 0.95
	sequence, err := history.NextSequence()
	if err != nil {
		return nil, err
	}
	key := make([]byte, 0, historyKeyLen)
	// The sign bit is turned so that times before 1970 sort first.
	key = binary.BigEndian.AppendUint64(key, uint64(e.At.Unix())^1<<63)
	key = binary.BigEndian.AppendUint32(key, uint32(e.At.Nanosecond()))
	key = binary.BigEndian.AppendUint64(key, sequence)
	if err := put(tx, historyBucket, key, e); err != nil {
		return nil, err
	}
	return key, count(tx, 1)
}

// drop removes the entry under key, if it is still there.
func drop(tx *bbolt.Tx, key []byte) error {
	history := tx.Bucket([]byte(historyBucket))
	if history.Get(key) == nil {
		return nil
	}
	if err := history.Delete(key); err != nil {
		return err
	}
	return count(tx, -1)
}

// count keeps the number of entries, so that pruning need not walk them all.
func count(tx *bbolt.Tx, by int) error {
	var n int
	if _, err := get(tx, metaBucket, []byte(entriesKey), &n); err != nil {
		return err
	}
	return put(tx, metaBucket, []byte(entriesKey), n+by)
}

// prune drops the oldest entries beyond historyLimit.
func prune(tx *bbolt.Tx) error {
	var n int
	if _, err := get(tx, metaBucket, []byte(entriesKey), &n); err != nil {
		return err
	}
	for ; n > historyLimit; n-- {
		key, sealed := tx.Bucket([]byte(historyBucket)).Cursor().First()
		if key == nil {
			return put(tx, metaBucket, []byte(entriesKey), 0)
		}
		var e updater.Entry
		if _, err := unseal(historyBucket, key, sealed, &e); err != nil {
			return err
		}
		if e.Change != "" {
			if err := tx.Bucket([]byte(finishedBucket)).Delete([]byte(e.Change)); err != nil {
				return err
			}
		}
		if err := drop(tx, bytes.Clone(key)); err != nil {
			return err
		}
	}
	return nil
}

// begin makes a new database's buckets.
func (f *File) begin(tx *bbolt.Tx) error {
	for _, name := range f.buckets {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	return put(tx, metaBucket, []byte(schemaKey), schema)
}

// understand reports whether this updaterd knows what is in the database. It
// comes first in every transaction.
func (f *File) understand(tx *bbolt.Tx) error {
	if tx.Bucket([]byte(metaBucket)) == nil {
		return &damage{errors.New("it is no journal of updaterd")}
	}
	var found int
	raw, err := get(tx, metaBucket, []byte(schemaKey), &found)
	switch {
	case err != nil:
		return err
	case raw == nil:
		return &damage{errors.New("it has no schema")}
	case found > schema:
		return fmt.Errorf("a newer updaterd wrote it (schema %d, this one understands %d): "+
			"run that version, or move the file away, which loses %s", found, schema, f.loses)
	}
	for _, name := range f.buckets {
		if tx.Bucket([]byte(name)) == nil {
			return &damage{fmt.Errorf("it has no bucket %q", name)}
		}
	}
	return nil
}

// readAll reads every value, to find damage before it is in the way. It
// returns how many there are.
func (f *File) readAll(tx *bbolt.Tx) (int, error) {
	values := 0
	for _, name := range f.buckets {
		if err := each(tx, name, func([]byte, json.RawMessage) { values++ }); err != nil {
			return values, err
		}
	}
	return values, nil
}

// seal returns value with a checksum over it, its key and its bucket in front.
// bbolt's own checksums cover its two meta pages and nothing else.
func seal(bucket string, key, value []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, checksum(bucket, key, value)), value...)
}

func checksum(bucket string, key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, []byte(bucket+"/"+strconv.Itoa(len(key))+"/"))
	return crc32.Update(crc32.Update(sum, table, key), table, value)
}

// unseal decodes what seal returned into v and returns the JSON, which is only
// valid during the transaction.
func unseal(bucket string, key, sealed []byte, v any) ([]byte, error) {
	if len(sealed) < 4 || binary.BigEndian.Uint32(sealed) != checksum(bucket, key, sealed[4:]) {
		return nil, &damage{fmt.Errorf("the checksum of %s/%q is wrong", bucket, key)}
	}
	if err := json.Unmarshal(sealed[4:], v); err != nil {
		return nil, fmt.Errorf("understanding %s/%q: %w", bucket, key, err)
	}
	return sealed[4:], nil
}

// get decodes the value under key into v. It returns nil if there is none.
func get(tx *bbolt.Tx, bucket string, key []byte, v any) ([]byte, error) {
	sealed := tx.Bucket([]byte(bucket)).Get(key)
	if sealed == nil {
		return nil, nil
	}
	return unseal(bucket, key, sealed, v)
}

func put(tx *bbolt.Tx, bucket string, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return putRaw(tx, bucket, key, raw)
}

func putRaw(tx *bbolt.Tx, bucket string, key, raw []byte) error {
	return tx.Bucket([]byte(bucket)).Put(key, seal(bucket, key, raw))
}

func each[T any](tx *bbolt.Tx, bucket string, do func(key []byte, v T)) error {
	return tx.Bucket([]byte(bucket)).ForEach(func(key, sealed []byte) error {
		var v T
		if _, err := unseal(bucket, key, sealed, &v); err != nil {
			return err
		}
		do(key, v)
		return nil
	})
}

// asideName is where the damaged database at path is moved.
func asideName(path string, now time.Time) string {
	return path + ".corrupt-" + now.UTC().Format("20060102T150405.000Z")
}

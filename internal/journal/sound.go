package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// pageSize is that of all our files, whatever the machine's: a state directory
// may move between machines.
const pageSize = 4096

// The page format of bbolt, version 2; numbers are in the machine's byte order.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader    = 16 // id uint64, flags uint16, count uint16, overflow uint32
	elementHeader = 16
	bucketHeader  = 16 // root uint64, sequence uint64
	metaSum       = 56 // bytes of a meta page that its checksum covers

	branchFlag   = 0x01
	leafFlag     = 0x02
	freelistFlag = 0x10
	bucketFlag   = 0x01 // of a leaf's element
)

// sound reports whether bbolt can work on the size bytes of r without coming
// to grief. The error is a *damage if it cannot.
//
// bbolt trusts its pages: a wrong offset makes it read, through unsafe
// pointers, whatever lies there; a page that is its own child makes it recurse
// until the stack is full, which no recover catches; its own check does the
// same in a goroutine of its own. So no page reaches bbolt before all have
// been looked at here: every page in bounds and used once, every element
// inside its page, keys in order, no page both free and in use.
func sound(r io.ReaderAt, size int64) error {
	if size == 0 {
		return &damage{errors.New("it is empty")}
	}
	if size < 4*pageSize {
		return &damage{fmt.Errorf("it is cut off at %d bytes", size)}
	}
	w := walk{r: r}
	m, err := w.meta()
	if err != nil {
		return err
	}
	if m.pages < 4 || m.pages > uint64(size/pageSize) {
		return &damage{fmt.Errorf("it is cut off: it has %d bytes and should have %d pages of %d", size, m.pages, pageSize)}
	}
	w.used = make([]uint64, m.pages/64+1)
	w.pages = m.pages
	if err := w.freelist(m.freelist); err != nil {
		return err
	}
	return w.tree(m.root, nil, nil, true)
}

type meta struct {
	root, freelist, pages, txid uint64
}

type walk struct {
	r     io.ReaderAt
	pages uint64   // how many the file has in use
	used  []uint64 // one bit a page
	buf   []byte   // the page last read
}

// meta returns the meta page that bbolt will go by: the valid one of the last
// transaction. One invalid page is what a crash in mid-commit leaves.
func (w *walk) meta() (meta, error) {
	var newest meta
	found := false
	for id := range int64(2) {
		page := make([]byte, pageHeader+metaSum+8)
		if _, err := w.r.ReadAt(page, id*pageSize); err != nil {
			return meta{}, fmt.Errorf("page %d: %w", id, err)
		}
		number := binary.NativeEndian
		body := page[pageHeader:]
		hash := fnv.New64a()
		hash.Write(body[:metaSum])
		if number.Uint32(body) != boltMagic || number.Uint32(body[4:]) != boltVersion || number.Uint64(body[metaSum:]) != hash.Sum64() {
			continue
		}
		if number.Uint32(body[8:]) != pageSize {
			return meta{}, &damage{fmt.Errorf("page %d: not the page size of this journal", id)}
		}
		m := meta{
			root:     number.Uint64(body[16:]),
			freelist: number.Uint64(body[32:]),
			pages:    number.Uint64(body[40:]),
			txid:     number.Uint64(body[48:]),
		}
		if !found || m.txid > newest.txid {
			newest, found = m, true
		}
	}
	if !found {
		return meta{}, &damage{errors.New("neither of its first pages is valid")}
	}
	return newest, nil
}

// take marks count pages from id on as used.
func (w *walk) take(id, count uint64) error {
	if id < 2 || id >= w.pages || count > w.pages-id {
		return &damage{fmt.Errorf("page %d: out of bounds", id)}
	}
	for i := id; i < id+count; i++ {
		if w.used[i/64]&(1<<(i%64)) != 0 {
			return &damage{fmt.Errorf("page %d: used twice", i)}
		}
		w.used[i/64] |= 1 << (i % 64)
	}
	return nil
}

// page reads page id with what overflows from it. What it returns is valid
// until the next call.
func (w *walk) page(id uint64) (p []byte, flags uint16, count int, err error) {
	if id < 2 || id >= w.pages {
		return nil, 0, 0, &damage{fmt.Errorf("page %d: out of bounds", id)}
	}
	if len(w.buf) < pageSize {
		w.buf = make([]byte, pageSize)
	}
	offset := int64(id) * pageSize
	if _, err := w.r.ReadAt(w.buf[:pageSize], offset); err != nil {
		return nil, 0, 0, fmt.Errorf("page %d: %w", id, err)
	}
	number := binary.NativeEndian
	if number.Uint64(w.buf) != id {
		return nil, 0, 0, &damage{fmt.Errorf("page %d: it says it is another", id)}
	}
	flags, count = number.Uint16(w.buf[8:]), int(number.Uint16(w.buf[10:]))
	span := uint64(number.Uint32(w.buf[12:])) + 1
	if err := w.take(id, span); err != nil {
		return nil, 0, 0, err
	}
	length := int(span) * pageSize
	if len(w.buf) < length {
		w.buf = append(w.buf, make([]byte, length-len(w.buf))...)
	}
	if length > pageSize {
		if _, err := w.r.ReadAt(w.buf[pageSize:length], offset+pageSize); err != nil {
			return nil, 0, 0, fmt.Errorf("page %d: %w", id, err)
		}
	}
	return w.buf[:length], flags, count, nil
}

func (w *walk) freelist(id uint64) error {
	p, flags, count, err := w.page(id)
	if err != nil {
		return err
	}
	if flags != freelistFlag {
		return &damage{fmt.Errorf("page %d: not a list of free pages", id)}
	}
	number := binary.NativeEndian
	ids := p[pageHeader:]
	n := uint64(count)
	if count == 0xFFFF { // then the first number is the count
		n, ids = number.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return &damage{fmt.Errorf("page %d: more free pages than it has room for", id)}
	}
	var last uint64
	for i := range n {
		free := number.Uint64(ids[i*8:])
		if free <= last {
			return &damage{fmt.Errorf("page %d: free pages out of order", id)}
		}
		if err := w.take(free, 1); err != nil {
			return err
		}
		last = free
	}
	return nil
}

// child is a page below another, and the keys it may hold: from low on, and
// below high where there is one.
type child struct {
	page      uint64
	low, high []byte
}

// tree walks a bucket's pages from id down. It ends because take refuses a
// page that was there before.
func (w *walk) tree(id uint64, low, high []byte, root bool) error {
	p, flags, count, err := w.page(id)
	if err != nil {
		return err
	}
	var children, buckets []child
	switch flags {
	case branchFlag:
		children, err = branch(p, count, low, high)
	case leafFlag:
		if count == 0 && !root {
			err = errors.New("an empty leaf")
		} else {
			buckets, err = leaf(p, count, low, high, false)
		}
	default:
		err = fmt.Errorf("unknown kind %#x", flags)
	}
	if err != nil {
		return &damage{fmt.Errorf("page %d: %w", id, err)}
	}
	for _, c := range children {
		if err := w.tree(c.page, c.low, c.high, false); err != nil {
			return err
		}
	}
	for _, b := range buckets {
		if err := w.tree(b.page, nil, nil, true); err != nil {
			return err
		}
	}
	return nil
}

// branch returns the children that a branch page lists.
func branch(p []byte, count int, low, high []byte) ([]child, error) {
	number := binary.NativeEndian
	if count == 0 {
		return nil, errors.New("a branch without children")
	}
	var children []child
	for i := range count {
		at := pageHeader + i*elementHeader
		if at+elementHeader > len(p) {
			return nil, errors.New("more elements than it has room for")
		}
		key, _, err := element(p, at, count, number.Uint32(p[at:]), number.Uint32(p[at+4:]), 0)
		if err != nil {
			return nil, err
		}
		if err := ordered(key, low, high, i > 0); err != nil {
			return nil, err
		}
		low = bytes.Clone(key)
		if i > 0 {
			children[i-1].high = low
		}
		children = append(children, child{page: number.Uint64(p[at+8:]), low: low, high: high})
	}
	return children, nil
}

// leaf checks the elements of a leaf page, which may lie within a bucket's
// value, and returns the roots of the buckets it holds.
func leaf(p []byte, count int, low, high []byte, inline bool) ([]child, error) {
	number := binary.NativeEndian
	var buckets []child
	for i := range count {
		at := pageHeader + i*elementHeader
		if at+elementHeader > len(p) {
			return nil, errors.New("more elements than it has room for")
		}
		flags := number.Uint32(p[at:])
		key, value, err := element(p, at, count, number.Uint32(p[at+4:]), number.Uint32(p[at+8:]), number.Uint32(p[at+12:]))
		if err != nil {
			return nil, err
		}
		if err := ordered(key, low, high, i > 0); err != nil {
			return nil, err
		}
		low = key
		switch {
		case flags == 0:
		case flags != bucketFlag || inline || len(value) < bucketHeader:
			return nil, errors.New("an element of an unknown kind")
		case number.Uint64(value) != 0:
			buckets = append(buckets, child{page: number.Uint64(value)})
		default: // a small bucket lies within its value
			page := value[bucketHeader:]
			if len(page) < pageHeader || number.Uint16(page[8:]) != leafFlag || number.Uint32(page[12:]) != 0 {
				return nil, errors.New("a bucket of an unknown kind")
			}
			if _, err := leaf(page, int(number.Uint16(page[10:])), nil, nil, true); err != nil {
				return nil, err
			}
		}
	}
	return buckets, nil
}

// element returns the key and the value of the element whose header is at at;
// pos counts from there.
func element(p []byte, at, count int, pos, keyLen, valueLen uint32) (key, value []byte, err error) {
	start := uint64(at) + uint64(pos)
	middle := start + uint64(keyLen)
	end := middle + uint64(valueLen)
	if start < uint64(pageHeader+count*elementHeader) || end > uint64(len(p)) {
		return nil, nil, errors.New("an element out of bounds")
	}
	if keyLen == 0 || keyLen > 32768 {
		return nil, nil, errors.New("an impossible key")
	}
	return p[start:middle], p[middle:end], nil
}

// ordered reports whether key lies from low on (beyond it, if after) and below
// high. nil is no bound.
func ordered(key, low, high []byte, after bool) error {
	c := bytes.Compare(key, low)
	if low != nil && (c < 0 || c == 0 && after) || high != nil && bytes.Compare(key, high) >= 0 {
		return errors.New("keys out of order")
	}
	return nil
}

package bytecache

import (
	"sync"
	"sync/atomic"
)

// shard is an index of the records of some hashes: a table in which an entry lies
// at the place that its hash asks for, or at the next free one.
type shard struct {
	mu      sync.RWMutex
	entries []atomic.Uint64 // each an entry; their uses change under a shared lock
	count   int
	_       [8]byte // shards of one cache line would slow each other down
}

// entry is a part of the record's hash, how often it was used, and where it is.
// The zero value is none.
type entry uint64

const (
	shardCount = 64
	shardShift = 64 - 6 // a hash's highest bits choose the shard, its lowest the place there

	offsetBits = 32
	offsetMask = 1<<offsetBits - 1
	usesMask   = 1<<2 - 1
	tagShift   = offsetBits + 2
	tagMask    = 1<<(64-tagShift) - 1

	maxOffset = (offsetMask - 1) * alignment
)

func newEntry(tag uint64, at, uses int) entry {
	return entry(tag<<tagShift | uint64(uses)<<offsetBits | uint64(at/alignment+1)) //nolint:gosec // G115: none is negative
}

func (e entry) tag() uint64 { return uint64(e) >> tagShift }
func (e entry) uses() int   { return int(e>>offsetBits) & usesMask }
func (e entry) offset() int { return (int(e&offsetMask) - 1) * alignment }

// find returns the place of a key's entry, or -1. Like all that follows, it wants
// the shard locked.
func (s *shard) find(memory []byte, hash uint64, key string) int {
	if s.count == 0 {
		return -1
	}
	tag := hash & tagMask
	for n := s.home(tag); ; n = s.after(n) {
		e := s.at(n)
		if e == 0 {
			return -1
		}
		if e.tag() == tag && string(keyOf(memory[e.offset():])) == key {
			return n
		}
	}
}

// findAt returns the place of the entry of the record that lies there, which is
// in the table.
func (s *shard) findAt(hash uint64, offset int) int {
	n := s.home(hash & tagMask)
	for s.at(n).offset() != offset {
		if s.at(n) == 0 {
			panic("bytecache: a record has no entry") // rather than to look for it for ever
		}
		n = s.after(n)
	}
	return n
}

func (s *shard) at(n int) entry     { return entry(s.entries[n].Load()) }
func (s *shard) set(n int, e entry) { s.entries[n].Store(uint64(e)) }

// insert adds the entry of a record that has just been written.
func (s *shard) insert(hash uint64, offset int) {
	if 4*(s.count+1) > 3*len(s.entries) {
		s.grow()
	}
	s.place(newEntry(hash&tagMask, offset, 0))
	s.count++
}

func (s *shard) grow() {
	before := s.entries
	s.entries = make([]atomic.Uint64, max(16, 2*len(before)))
	for n := range before {
		if e := entry(before[n].Load()); e != 0 {
			s.place(e)
		}
	}
}

func (s *shard) place(e entry) {
	n := s.home(e.tag())
	for s.at(n) != 0 {
		n = s.after(n)
	}
	s.set(n, e)
}

// drop takes out the entry of a record whose place is given back in its turn.
func (s *shard) drop(memory []byte, n int) {
	markDropped(memory[s.at(n).offset():])
	s.remove(n)
}

// remove takes out an entry, and moves those after it that would not be found any
// more to where they are.
func (s *shard) remove(n int) {
	for next := s.after(n); s.at(next) != 0; next = s.after(next) {
		e := s.at(next)
		if s.distance(s.home(e.tag()), next) >= s.distance(n, next) {
			s.set(n, e)
			n = next
		}
	}
	s.set(n, 0)
	s.count--
}

func (s *shard) clear() { s.entries, s.count = nil, 0 }

// home returns the place that a hash asks for.
func (s *shard) home(tag uint64) int { return int(tag) & (len(s.entries) - 1) } //nolint:gosec // G115: of 30 bits

func (s *shard) after(n int) int { return (n + 1) & (len(s.entries) - 1) }

// distance returns how many places the second comes after the first.
func (s *shard) distance(from, to int) int { return (to - from) & (len(s.entries) - 1) }

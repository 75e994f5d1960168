// Package bytecache is a bounded cache of texts, in memory that Go's collector
// knows nothing of: a million of them cost it nothing, and it does not wait for
// as much again to be garbage before it collects.
package bytecache

import (
	"hash/maphash"
	"math"
	"slices"
	"sync"
)

// Cache keeps values by their keys, up to a total of bytes. It may be used from
// many goroutines. A look-up takes a shared lock of one shard, and no other.
//
// What is dropped when it is full follows S3-FIFO (Yang et al., SOSP 2023): a
// record is on probation until it was used twice, and is dropped from there first,
// so that an owner who uses each of his records once does not push out those of
// others. Nor those that they have just added and not used yet: of the records on
// probation, those of whoever has most go first; owners share lanes by a hash.
//
// The records lie one after the other in two rings, those on probation and the
// others. One that goes makes room at the end of its ring, one that stays is
// written anew at the beginning: no hole is ever left between two.
type Cache struct {
	seed   maphash.Seed
	shards [shardCount]shard

	mu        sync.Mutex // held by who adds, moves or drops records
	memory    []byte     // of both rings; replaced while all shards are locked, too
	probation ring
	proven    ring
	lanes     [laneCount]int // how many bytes of each are on probation
}

// EnoughUses is how many uses of a record count. More do not make it stay longer.
const EnoughUses = 3

// MaxSize is how many bytes a cache can have.
const MaxSize = min(maxOffset, math.MaxInt)

const (
	laneCount  = 256
	provenUses = 2 // those that end the probation
	// probationShare is the part of the memory for records on probation. They fill
	// the rest too while it has room.
	probationShare = 10 // 1/10
	// secondChances bounds how many records one addition looks at.
	secondChances = 32
	// Of a key that is longer than longKey, only the end is hashed. Such keys are
	// signed: their ends are as good as random, and nobody can choose them.
	longKey   = 128
	hashedEnd = 16
)

// New returns an empty cache that keeps nothing before it has a size.
func New() *Cache { return &Cache{seed: maphash.MakeSeed()} }

// Get returns the value of a key, and how often it was used, up to EnoughUses.
func (c *Cache) Get(key string) (value string, uses int, ok bool) {
	uses, ok = c.View(key, func(known []byte) { value = string(known) })
	return value, uses, ok
}

// View does the same, and has read look at the value instead, which it may not keep.
// The shard is locked meanwhile.
func (c *Cache) View(key string, read func(value []byte)) (uses int, ok bool) {
	hash := c.hash(key)
	s := c.shard(hash)
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.find(c.memory, hash, key)
	if n < 0 {
		return 0, false
	}
	e := s.at(n)
	read(valueOf(c.memory[e.offset():]))
	return e.uses(), true
}

// Used notes that what Get or View has returned was of use.
func (c *Cache) Used(key string) {
	hash := c.hash(key)
	s := c.shard(hash)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n := s.find(c.memory, hash, key); n >= 0 {
		if e := s.at(n); e.uses() < EnoughUses { // losing a count to another one does no harm
			s.entries[n].CompareAndSwap(uint64(e), uint64(newEntry(e.tag(), e.offset(), e.uses()+1)))
		}
	}
}

// Add keeps a value under a key that has none, and drops others until all fit. It
// reports whether it was kept: one that would take more than the share of those on
// probation is not.
func (c *Cache) Add(key, owner, value string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := c.hash(key)
	s := c.shard(hash)
	s.mu.RLock()
	known := s.find(c.memory, hash, key) >= 0
	s.mu.RUnlock()
	return !known && c.add(hash, key, owner, value)
}

// Put does the same, and replaces the value that the key has.
func (c *Cache) Put(key, owner, value string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := c.hash(key)
	return c.overwrite(hash, key, value) || c.add(hash, key, owner, value)
}

// Change has write change the value of a key in its place, while its shard is locked.
// It reports whether there is one.
func (c *Cache) Change(key string, write func(value []byte)) bool {
	hash := c.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.find(c.memory, hash, key)
	if n >= 0 {
		write(valueOf(c.memory[s.at(n).offset():]))
	}
	return n >= 0
}

// Drop forgets a key.
func (c *Cache) Drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := c.hash(key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.find(c.memory, hash, key); n >= 0 {
		s.drop(c.memory, n)
	}
}

// Resize changes how many bytes, of MaxSize at most, the records take with their
// keys; each takes some 16 besides, in Go's heap. The system gives the bytes when
// they are first used. A cache that has had another number is empty then. It
// returns an error where the system has not so many; then nothing is kept.
func (c *Cache) Resize(size int64) error {
	if size == c.Size() {
		return nil
	}
	release(c.replaceMemory(nil)) // first: there may be no room for both
	memory, err := allocate(int(size))
	if err == nil {
		release(c.replaceMemory(memory))
	}
	return err
}

// Size returns how many bytes there are.
func (c *Cache) Size() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(len(c.memory))
}

// Close gives the memory back. Nothing is kept any more.
func (c *Cache) Close() { release(c.replaceMemory(nil)) }

// Len returns how many records are kept, and the bytes that they take.
func (c *Cache) Len() (records int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.shards {
		s := &c.shards[n]
		s.mu.RLock()
		records += s.count
		s.mu.RUnlock()
	}
	return records, int64(c.probation.used() + c.proven.used())
}

// replaceMemory empties the cache, and returns the memory that nobody reads any more.
func (c *Cache) replaceMemory(memory []byte) (before []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.shards {
		c.shards[n].mu.Lock()
		defer c.shards[n].mu.Unlock()
		c.shards[n].clear()
	}
	before, c.memory = c.memory, memory
	border := len(memory) / probationShare / alignment * alignment
	c.probation, c.proven = newRing(0, border), newRing(border, len(memory))
	c.lanes = [laneCount]int{}
	return before
}

// add writes a record whose key has none. The cache is locked.
func (c *Cache) add(hash uint64, key, owner, value string) bool {
	size := recordSize(len(key), len(value))
	if size > c.probation.size() || len(key) > maxKey {
		return false
	}
	at := c.room(&c.probation, size)
	lane := uint8(maphash.String(c.seed, owner)) //nolint:gosec // G115: one of laneCount
	c.lanes[lane] += size
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	writeRecord(c.memory[at:at+size], hash, lane, key, value)
	s.insert(hash, at)
	return true
}

// overwrite replaces the value of a key by one of the same length, or else drops
// it. The cache is locked.
func (c *Cache) overwrite(hash uint64, key, value string) bool {
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.find(c.memory, hash, key)
	if n < 0 {
		return false
	}
	rec := c.memory[s.at(n).offset():]
	if len(value) == valueLength(rec) {
		copy(valueOf(rec), value)
		return true
	}
	s.drop(c.memory, n)
	return false
}

// room returns where in the ring so many bytes are free, and has records go until
// they are. The ring is larger than that.
func (c *Cache) room(r *ring, size int) int {
	longest := 0 // lane: what is dropped meanwhile hardly changes it
	for tried := 0; ; tried++ {
		at, ok := r.reserve(size)
		switch {
		case ok:
			return at
		case r == &c.proven:
			c.endProven(tried < secondChances)
		default:
			if tried == 0 {
				longest = slices.Max(c.lanes[:])
			}
			c.endProbation(longest/2, tried < secondChances)
		}
	}
}

// endProbation has the oldest record on probation leave its place. If it may stay, it
// does where its lane has not more bytes than laneMay.
func (c *Cache) endProbation(laneMay int, mayStay bool) {
	at := c.probation.first
	rec := c.memory[at:]
	size, hash, lane := sizeOf(rec), hashOf(rec), laneOf(rec)
	c.probation.free(size) // nothing is written there before it has moved
	c.lanes[lane] -= size
	if isDropped(rec) {
		return
	}
	var to int
	var kept bool
	uses := c.uses(hash, at)
	if uses >= provenUses {
		to, kept, uses = c.room(&c.proven, size), true, 0
	} else if to, kept = c.proven.reserve(size); !kept && mayStay && c.lanes[lane]+size <= laneMay {
		if to, kept = c.probation.reserve(size); kept {
			c.lanes[lane] += size
		}
	}
	c.moveOrDrop(hash, at, to, size, uses, kept)
}

// endProven has the oldest of the other records leave its place.
func (c *Cache) endProven(mayStay bool) {
	at := c.proven.first
	rec := c.memory[at:]
	size, hash := sizeOf(rec), hashOf(rec)
	c.proven.free(size)
	if isDropped(rec) {
		return
	}
	to, kept, uses := 0, false, c.uses(hash, at)
	if uses > 0 && mayStay {
		to, kept = c.proven.reserve(size) // but for the gap at the ring's end, it has just been made
	}
	c.moveOrDrop(hash, at, to, size, uses-1, kept)
}

func (c *Cache) uses(hash uint64, at int) int {
	s := c.shard(hash)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.at(s.findAt(hash, at)).uses()
}

// moveOrDrop has a record be found in its new place, or not any more.
func (c *Cache) moveOrDrop(hash uint64, from, to, size, uses int, kept bool) {
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.findAt(hash, from)
	if !kept {
		s.remove(n)
		return
	}
	copy(c.memory[to:to+size], c.memory[from:from+size])
	s.set(n, newEntry(s.at(n).tag(), to, uses))
}

func (c *Cache) hash(key string) uint64 {
	if len(key) > longKey {
		key = key[len(key)-hashedEnd:]
	}
	return maphash.String(c.seed, key)
}

func (c *Cache) shard(hash uint64) *shard { return &c.shards[hash>>shardShift] }

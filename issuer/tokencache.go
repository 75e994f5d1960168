package issuer

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

// tokenCache keeps tokens whose signature is good, whether they still count or
// not, up to a total of bytes. A look-up takes a shared lock of one shard and
// writes nothing that other look-ups read, but for the first few of a token.
//
// What is dropped when it is full follows S3-FIFO (Yang et al., SOSP 2023): a
// token stays on probation until it was used twice, and is dropped from there
// first, so that clients which fetch a token for each call do not push out
// those that are in use. Of the tokens on probation, the oldest of the client
// that has most of them goes first; clients share lanes by a hash.
type tokenCache struct {
	seed   maphash.Seed
	shards [tokenShards]tokenShard

	mu        sync.Mutex // of what follows, and of the links of the entries
	lanes     [probationLanes]tokenQueue
	proven    tokenQueue
	probation int64 // bytes in all lanes
	max       int64 // bytes
}

type tokenShard struct {
	mu      sync.RWMutex
	entries map[uint64]*cachedToken // by the hash of the end of the token
	_       [40]byte                // shards of one cache line would slow each other down
}

// cachedToken is a token in the cache.
type cachedToken struct {
	Token
	text string
	hash uint64 // set by add
	// uses counts up to enoughUses since it was last moved.
	uses atomic.Uint32
	next *cachedToken // in its queue
}

// tokenQueue is a list of entries, the oldest first.
type tokenQueue struct {
	first, last *cachedToken
	bytes       int64
}

const (
	tokenShards    = 64
	probationLanes = 256
	// probationShare is the part of the bytes that tokens on probation keep when
	// the cache is full.
	probationShare = 10 // 1/10
	provenUses     = 2  // those that end the probation
	enoughUses     = 3  // more do not make a token stay longer
	// secondChances bounds how many entries one addition looks at.
	secondChances = 64
	// cachedTokenBytes is what an entry takes beside its text: the record, the
	// claims and the places in map and queue.
	cachedTokenBytes = 500
)

func newTokenCache(maxBytes int64) *tokenCache {
	c := &tokenCache{seed: maphash.MakeSeed(), max: maxBytes}
	for n := range c.shards {
		c.shards[n].entries = make(map[uint64]*cachedToken)
	}
	return c
}

// get returns the token of that text, or nil.
func (c *tokenCache) get(text string) *cachedToken {
	hash := c.hash(text)
	shard := c.shard(hash)
	shard.mu.RLock()
	t := shard.entries[hash]
	shard.mu.RUnlock()
	if t == nil || t.text != text {
		return nil
	}
	return t
}

// add keeps a token whose signature is good, and drops others until all fit.
func (c *tokenCache) add(t *cachedToken) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.hash = c.hash(t.text)
	if t.bytes() > c.max/probationShare || !c.shard(t.hash).put(t) {
		return
	}
	c.lane(t).push(t)
	c.probation += t.bytes()
	c.shrink()
}

// resize changes how many bytes there may be.
func (c *tokenCache) resize(maxBytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.max = maxBytes
	c.shrink()
}

// used notes that the token was accepted.
func (t *cachedToken) used() {
	// Losing a count to another request does no harm.
	if n := t.uses.Load(); n < enoughUses {
		t.uses.Store(n + 1)
	}
}

// size returns the number of entries and their bytes.
func (c *tokenCache) size() (entries int, bytes int64) {
	for n := range c.shards {
		c.shards[n].mu.RLock()
		entries += len(c.shards[n].entries)
		c.shards[n].mu.RUnlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return entries, c.probation + c.proven.bytes
}

// shrink drops entries until the rest fits.
func (c *tokenCache) shrink() {
	for tried := 0; c.probation+c.proven.bytes > c.max; tried++ {
		c.makeRoom(tried >= secondChances)
	}
}

// makeRoom drops an entry, or gives one that was used a second chance, unless
// it must drop one.
func (c *tokenCache) makeRoom(must bool) {
	if c.proven.first == nil || c.probation > c.max/probationShare {
		t := c.longestLane().pop()
		c.probation -= t.bytes()
		if t.uses.Load() < provenUses {
			c.shard(t.hash).drop(t)
			return
		}
		t.uses.Store(0)
		c.proven.push(t)
		return
	}
	t := c.proven.pop()
	if uses := t.uses.Load(); uses > 0 && !must {
		t.uses.Store(uses - 1)
		c.proven.push(t)
		return
	}
	c.shard(t.hash).drop(t)
}

func (c *tokenCache) longestLane() *tokenQueue {
	longest := &c.lanes[0]
	for n := range c.lanes {
		if c.lanes[n].bytes > longest.bytes {
			longest = &c.lanes[n]
		}
	}
	return longest
}

func (c *tokenCache) lane(t *cachedToken) *tokenQueue {
	return &c.lanes[maphash.String(c.seed, t.ClientID)%probationLanes]
}

// hash is that of the end of the text: part of the signature, and as good as
// random. Only tokens with a good signature are kept, so that nobody can choose
// which end alike.
func (c *tokenCache) hash(text string) uint64 {
	return maphash.String(c.seed, text[max(0, len(text)-16):])
}

func (c *tokenCache) shard(hash uint64) *tokenShard { return &c.shards[hash%tokenShards] }

// put adds an entry, and reports false where there is one of that hash.
func (s *tokenShard) put(t *cachedToken) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.entries[t.hash]; known {
		return false
	}
	s.entries[t.hash] = t
	return true
}

func (s *tokenShard) drop(t *cachedToken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, t.hash)
}

func (q *tokenQueue) push(t *cachedToken) {
	t.next = nil
	if q.last == nil {
		q.first = t
	} else {
		q.last.next = t
	}
	q.last = t
	q.bytes += t.bytes()
}

func (q *tokenQueue) pop() *cachedToken {
	t := q.first
	if q.first = t.next; q.first == nil {
		q.last = nil
	}
	t.next = nil
	q.bytes -= t.bytes()
	return t
}

func (t *cachedToken) bytes() int64 { return int64(len(t.text) + cachedTokenBytes) }

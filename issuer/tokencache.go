package issuer

import (
	"hash/maphash"
	"slices"
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
//
// Go's collector follows each pointer in memory, again and again, and far from
// what the processor has in its caches. A token here is one: to a text, in which
// it finds no more. The places refer to each other by their numbers.
type tokenCache struct {
	seed   maphash.Seed
	shards [tokenShards]tokenShard
	places atomic.Pointer[[]*placeBlock] // which only grows

	mu        sync.Mutex // of what follows, and of the links of the places
	unused    uint32     // the first of those, or 0
	lanes     [probationLanes]tokenQueue
	proven    tokenQueue
	probation int64 // bytes in all lanes
	max       int64 // bytes
}

type tokenShard struct {
	mu     sync.RWMutex
	places map[uint64]uint32 // by the hash of the end of the token
	_      [40]byte          // shards of one cache line would slow each other down
}

// place is one of a token in the cache. Number 0 is none.
type place struct {
	token packedToken // read under either lock, of the cache or of the hash's shard; written under both
	hash  uint64
	// uses counts up to enoughUses since it was last moved.
	uses atomic.Uint32
	next uint32 // in its queue
}

type placeBlock [blockPlaces]place

// tokenQueue is a list of places, the oldest first.
type tokenQueue struct {
	first, last uint32
	bytes       int64
}

const (
	tokenShards    = 64
	blockPlaces    = 1024
	probationLanes = 256
	// probationShare is the part of the bytes that tokens on probation keep when
	// the cache is full.
	probationShare = 10 // 1/10
	provenUses     = 2  // those that end the probation
	enoughUses     = 3  // more do not make a token stay longer
	// secondChances bounds how many entries one addition looks at.
	secondChances = 64
	// placeBytes is what a token takes beside its own: the place, its number in
	// the map, and what Go rounds up.
	placeBytes = 120
)

func newTokenCache(maxBytes int64) *tokenCache {
	c := &tokenCache{seed: maphash.MakeSeed(), max: maxBytes}
	for n := range c.shards {
		c.shards[n].places = make(map[uint64]uint32)
	}
	c.places.Store(new([]*placeBlock))
	return c
}

// get returns the token of that text and its place, or an empty one.
func (c *tokenCache) get(text string) (packedToken, uint32) {
	hash := c.hash(text)
	shard := c.shard(hash)
	shard.mu.RLock()
	n := shard.places[hash]
	if n == 0 {
		shard.mu.RUnlock()
		return "", 0
	}
	p := c.place(n).token
	shard.mu.RUnlock()
	if p.text() != text {
		return "", 0
	}
	return p, n
}

// add keeps a token whose signature is good, and drops others until all fit. It
// returns its place, or 0 where it is not kept, or was before.
func (c *tokenCache) add(p packedToken) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	hash := c.hash(p.text())
	if p.bytes() > c.max/probationShare || c.shard(hash).has(hash) {
		return 0
	}
	n := c.freePlace()
	at := c.place(n)
	at.hash = hash
	at.uses.Store(0)
	c.shard(hash).put(at, n, p)
	c.push(c.lane(p), n)
	c.probation += p.bytes()
	c.shrink()
	return n
}

// replace has a token that is still in its place say something else of itself,
// in as many bytes.
func (c *tokenCache) replace(n uint32, before, after packedToken) {
	if n == 0 || len(before) != len(after) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	shard := c.shard(c.hash(before.text()))
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if at := c.place(n); shard.places[c.hash(before.text())] == n && at.token == before {
		at.token = after
	}
}

// used notes that the token in that place was accepted. Losing a count to another
// request, or giving it to the next token in that place, does no harm.
func (c *tokenCache) used(n uint32) {
	if n == 0 {
		return
	}
	if at := c.place(n); at.uses.Load() < enoughUses {
		at.uses.Add(1)
	}
}

// resize changes how many bytes there may be.
func (c *tokenCache) resize(maxBytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.max = maxBytes
	c.shrink()
}

// size returns the number of tokens and their bytes.
func (c *tokenCache) size() (tokens int, bytes int64) {
	for n := range c.shards {
		c.shards[n].mu.RLock()
		tokens += len(c.shards[n].places)
		c.shards[n].mu.RUnlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return tokens, c.probation + c.proven.bytes
}

// shrink drops tokens until the rest fits.
func (c *tokenCache) shrink() {
	for tried := 0; c.probation+c.proven.bytes > c.max; tried++ {
		c.makeRoom(tried >= secondChances)
	}
}

// makeRoom drops a token, or gives one that was used a second chance, unless it
// must drop one.
func (c *tokenCache) makeRoom(must bool) {
	if c.proven.first == 0 || c.probation > c.max/probationShare {
		n := c.pop(c.longestLane())
		at := c.place(n)
		c.probation -= at.token.bytes()
		if at.uses.Load() < provenUses {
			c.drop(n)
			return
		}
		at.uses.Store(0)
		c.push(&c.proven, n)
		return
	}
	n := c.pop(&c.proven)
	at := c.place(n)
	if uses := at.uses.Load(); uses > 0 && !must {
		at.uses.Store(uses - 1)
		c.push(&c.proven, n)
		return
	}
	c.drop(n)
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

func (c *tokenCache) lane(p packedToken) *tokenQueue {
	return &c.lanes[maphash.String(c.seed, p.clientID())%probationLanes]
}

// hash is that of the end of the text: part of the signature, and as good as
// random. Only tokens with a good signature are kept, so that nobody can choose
// which end alike.
func (c *tokenCache) hash(text string) uint64 {
	return maphash.String(c.seed, text[max(0, len(text)-16):])
}

func (c *tokenCache) shard(hash uint64) *tokenShard { return &c.shards[hash%tokenShards] }

func (c *tokenCache) place(n uint32) *place {
	return &(*c.places.Load())[n/blockPlaces][n%blockPlaces]
}

// freePlace returns the number of a place that is taken out of the unused ones.
func (c *tokenCache) freePlace() uint32 {
	if c.unused == 0 {
		blocks := *c.places.Load()
		first := uint32(len(blocks) * blockPlaces) //nolint:gosec // G115: tokens of so many bytes in all
		block := new(placeBlock)
		for n := range uint32(blockPlaces - 1) {
			block[n].next = first + n + 1
		}
		more := append(slices.Clip(blocks), block)
		c.places.Store(&more)
		c.unused = first
		if first == 0 {
			c.unused = 1
		}
	}
	n := c.unused
	c.unused = c.place(n).next
	return n
}

// drop forgets the token of a place that is in no queue.
func (c *tokenCache) drop(n uint32) {
	at := c.place(n)
	c.shard(at.hash).drop(at)
	at.next, c.unused = c.unused, n
}

func (c *tokenCache) push(q *tokenQueue, n uint32) {
	at := c.place(n)
	at.next = 0
	if q.last == 0 {
		q.first = n
	} else {
		c.place(q.last).next = n
	}
	q.last = n
	q.bytes += at.token.bytes()
}

func (c *tokenCache) pop(q *tokenQueue) uint32 {
	n := q.first
	at := c.place(n)
	if q.first = at.next; q.first == 0 {
		q.last = 0
	}
	q.bytes -= at.token.bytes()
	return n
}

func (s *tokenShard) has(hash uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.places[hash] != 0
}

func (s *tokenShard) put(at *place, n uint32, p packedToken) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at.token = p
	s.places[at.hash] = n
}

func (s *tokenShard) drop(at *place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at.token = ""
	delete(s.places, at.hash)
}

func (p packedToken) bytes() int64 { return int64(len(p) + placeBytes) }

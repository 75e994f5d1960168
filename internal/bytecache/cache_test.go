package bytecache

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
)

const (
	room   = 1000 // records
	length = 100  // of a key, and of a value
)

var size = recordSize(length, length)

func text(owner string, n int) string { return fmt.Sprintf("%s %0*d", owner, length-len(owner)-1, n) }

// newTestCache returns a cache of Go's own memory, which go test -race watches.
func newTestCache(t *testing.T, records int) *Cache {
	t.Helper()
	c := New()
	c.replaceMemory(make([]byte, records*size))
	return c
}

func (c *Cache) use(key string) {
	if _, _, ok := c.Get(key); ok {
		c.Used(key)
	}
}

func TestItStaysWithinItsBytes(t *testing.T) {
	c := newTestCache(t, room)
	for n := range 20 * room {
		key := text(fmt.Sprint("owner ", n%7), n)
		if !c.Add(key, key[:8], key) {
			t.Fatal("it does not take a record")
		}
		for range n % 4 { // some are used much, some not at all
			c.use(key)
		}
	}
	if records, bytes := c.Len(); records != room || bytes != int64(room*size) {
		t.Errorf("%d records of %d bytes are kept, want %d of %d", records, bytes, room, room*size)
	}
	if c.Add("key", "owner", strings.Repeat("x", room*size/probationShare)) {
		t.Error("a record is kept that would push out a tenth of the others")
	}
}

// Whatever is asked for and in whatever order, the cache has what was put there
// last, or nothing.
func TestItHasWhatWasPutThereLast(t *testing.T) {
	c := newTestCache(t, 100)
	random := rand.New(rand.NewPCG(1, 2))
	latest, found := make(map[string]string), 0
	for n := range 200_000 {
		key := text("owner", random.IntN(300))
		value := strings.Repeat(fmt.Sprint(n, " "), 1+random.IntN(40))
		switch random.IntN(7) {
		case 0:
			if c.Add(key, key, value) {
				latest[key] = value
			}
		case 1:
			c.Put(key, key, value)
			latest[key] = value
		case 2:
			changed := c.Change(key, func(value []byte) {
				if string(value) != latest[key] {
					t.Fatalf("it changes %q, and the last was %q", value, latest[key])
				}
				value[0] = 'x'
			})
			if changed {
				latest[key] = "x" + latest[key][1:]
			}
		case 3:
			c.use(key)
		case 4:
			c.Drop(key)
			if _, _, ok := c.Get(key); ok {
				t.Fatal("a record is there that was dropped")
			}
		default:
			if now, _, ok := c.Get(key); ok {
				found++
				if now != latest[key] {
					t.Fatalf("it has %q, and the last was %q", now, latest[key])
				}
			}
		}
	}
	if records, bytes := c.Len(); records < 10 || bytes > c.Size() || found < 1_000 {
		t.Errorf("%d records of %d bytes are kept, and %d were found", records, bytes, found)
	}
	for key := range latest { // none is there twice
		c.Put(key, key, "")
		if now, _, ok := c.Get(key); ok && now != "" {
			t.Errorf("an empty value became %q", now)
		}
	}
}

// An owner who adds a record for each use must not cost others their place:
// neither those whose records are in use, nor those who are about to use one.
func TestAnOwnerOfManyPushesOutNobodyElse(t *testing.T) {
	c := newTestCache(t, room)
	var others []string
	for n := range room / 2 {
		key := text(fmt.Sprint("busy ", n), 0)
		c.Add(key, key, key)
		c.use(key)
		c.use(key)
		others = append(others, key)
	}
	inUse := len(others)
	for n := range room / 2 { // what fills the rest
		key := text("old", n)
		c.Add(key, "old", key)
	}
	for n := range 50 {
		key := text(fmt.Sprint("new ", n), 0)
		c.Add(key, key, key)
		others = append(others, key)
	}
	for n := range 50 * room {
		key := text("greedy", n)
		c.Add(key, "greedy", key)
		c.use(key) // once
		if n%100 == 0 {
			for _, key := range others[:inUse] {
				c.use(key)
			}
		}
	}
	lost := 0
	for _, key := range others {
		if _, _, ok := c.Get(key); !ok {
			lost++
		}
	}
	if lost > 2 { // those that share a lane with the one
		t.Errorf("%d records of others were pushed out", lost)
	}
}

// A record in use stays, however many come and go that are used twice.
func TestWhatIsInUseStays(t *testing.T) {
	c := newTestCache(t, room)
	used := text("used", 0)
	c.Add(used, "used", used)
	for n := range 20 * room {
		key := text("passing", n)
		c.Add(key, key, key)
		c.use(key)
		c.use(key)
		c.use(used)
	}
	if _, uses, ok := c.Get(used); !ok || uses == 0 {
		t.Errorf("it is kept: %v, with %d uses", ok, uses)
	}
}

func TestAnotherSizeEmptiesIt(t *testing.T) {
	c := New()
	key := text("owner", 1)
	if c.Add(key, "owner", "value") {
		t.Fatal("without memory, it takes a record")
	}
	resize(t, c, 1<<20)
	if !c.Add(key, "owner", "value") || c.Add(key, "owner", "another") {
		t.Fatal("a record is not added once")
	}
	resize(t, c, 1<<20)
	if value, _, ok := c.Get(key); value != "value" || !ok {
		t.Errorf("with the size that it had, it has %q", value)
	}
	resize(t, c, 2<<20)
	if _, _, ok := c.Get(key); ok {
		t.Error("a record is in the memory that was given back")
	}
	if !c.Add(key, "owner", "value") {
		t.Error("with another size, it takes nothing")
	}
	if err := c.Resize(1 << 50); err == nil || c.Size() != 0 {
		t.Errorf("more memory than there is: %v, and it has %d bytes", err, c.Size())
	}
	if c.Add(key, "owner", "value") {
		t.Error("it takes a record into memory that it does not have")
	}
	c.Close()
	if _, _, ok := c.Get(key); ok || c.Add(key, "owner", "value") || c.Put(key, "owner", "value") {
		t.Error("it has records after its end")
	}
	if records, bytes := c.Len(); records != 0 || bytes != 0 {
		t.Errorf("after its end, %d records take %d bytes", records, bytes)
	}
}

func resize(t *testing.T, c *Cache, size int64) {
	t.Helper()
	if err := c.Resize(size); err != nil {
		t.Fatal(err)
	}
}

// go test -race tells whether a record is read while another one takes its place.
func TestRecordsAreReadWhileOthersTakeTheirPlace(t *testing.T) {
	c := newTestCache(t, 64)
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for n := range 20_000 {
				key := text("owner", random.IntN(100))
				switch random.IntN(4) {
				case 0:
					c.Put(key, key, key)
				case 1:
					c.Change(key, func(value []byte) { copy(value, bytes.ToUpper(value)) })
				case 2:
					c.Used(key)
				default:
					if value, _, ok := c.Get(key); ok && !strings.EqualFold(value, key) {
						t.Errorf("under %q is %q", key, value)
					}
				}
				if worker == 0 && n%5_000 == 0 {
					c.replaceMemory(make([]byte, (64+n%3)*size))
				}
			}
		})
	}
	all.Wait()
}

// One client asks again and again, after many others have filled the cache.
func BenchmarkAddByOneOwnerToAFullCache(b *testing.B) {
	c := New()
	if err := c.Resize(64 << 20); err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	value := strings.Repeat("v", 200)
	for n := range 200_000 {
		c.Add(fmt.Sprintf("%0400d", n), fmt.Sprint(n), value)
	}
	keys := make([]string, 100_000)
	for n := range keys {
		keys[n] = fmt.Sprintf("%0400d", 1_000_000+n)
	}
	for n := 0; b.Loop(); n++ {
		c.Add(keys[n%len(keys)], "one", value)
	}
}

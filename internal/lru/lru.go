// Package lru is a bounded cache.
package lru

import (
	"container/list"
	"sync"
)

// Cache keeps what was used last, up to a total of costs. It may be used from
// many goroutines.
type Cache[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]*list.Element
	order   *list.List // of *entry; the one used last is in front
	cost    int64
	max     int64
}

type entry[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

// New returns an empty cache for entries of so much cost in all.
func New[K comparable, V any](maxCost int64) *Cache[K, V] {
	return &Cache[K, V]{entries: make(map[K]*list.Element), order: list.New(), max: maxCost}
}

// Get returns the value of key, if it is kept.
func (c *Cache[K, V]) Get(key K) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	element, ok := c.entries[key]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(element)
	return element.Value.(*entry[K, V]).value, true
}

// Put adds or replaces an entry, and drops those not used for longest until the
// rest fits.
func (c *Cache[K, V]) Put(key K, value V, cost int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, ok := c.entries[key]; ok {
		old := element.Value.(*entry[K, V])
		c.cost += cost - old.cost
		old.value, old.cost = value, cost
		c.order.MoveToFront(element)
	} else {
		c.entries[key] = c.order.PushFront(&entry[K, V]{key, value, cost})
		c.cost += cost
	}
	c.shrink()
}

// Resize changes what the entries may cost in all.
func (c *Cache[K, V]) Resize(maxCost int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.max = maxCost
	c.shrink()
}

// Drop removes an entry.
func (c *Cache[K, V]) Drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if element, ok := c.entries[key]; ok {
		c.remove(element)
	}
}

// Len returns how many entries are kept.
func (c *Cache[K, V]) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}

func (c *Cache[K, V]) shrink() {
	for c.cost > c.max && c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
}

func (c *Cache[K, V]) remove(element *list.Element) {
	removed := c.order.Remove(element).(*entry[K, V])
	delete(c.entries, removed.key)
	c.cost -= removed.cost
}

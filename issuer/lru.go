package issuer

import (
	"container/list"
	"sync"
)

// lru keeps what was used last, up to a total of costs. It may be used from
// many goroutines.
type lru[K comparable, V any] struct {
	mu      sync.Mutex
	entries map[K]*list.Element
	order   *list.List // of *lruEntry; the one used last is in front
	cost    int64
	max     int64
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

func newLRU[K comparable, V any](maxCost int64) *lru[K, V] {
	return &lru[K, V]{entries: make(map[K]*list.Element), order: list.New(), max: maxCost}
}

func (l *lru[K, V]) get(key K) (value V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	element, ok := l.entries[key]
	if !ok {
		return value, false
	}
	l.order.MoveToFront(element)
	return element.Value.(*lruEntry[K, V]).value, true
}

// put adds or replaces an entry, and drops those not used for longest until the
// rest fits.
func (l *lru[K, V]) put(key K, value V, cost int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if element, ok := l.entries[key]; ok {
		entry := element.Value.(*lruEntry[K, V])
		l.cost += cost - entry.cost
		entry.value, entry.cost = value, cost
		l.order.MoveToFront(element)
	} else {
		l.entries[key] = l.order.PushFront(&lruEntry[K, V]{key, value, cost})
		l.cost += cost
	}
	for l.cost > l.max && l.order.Len() > 0 {
		l.remove(l.order.Back())
	}
}

func (l *lru[K, V]) drop(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if element, ok := l.entries[key]; ok {
		l.remove(element)
	}
}

func (l *lru[K, V]) remove(element *list.Element) {
	entry := l.order.Remove(element).(*lruEntry[K, V])
	delete(l.entries, entry.key)
	l.cost -= entry.cost
}

package issuer

import (
	"context"
	"sync"
	"time"
)

// Watcher is told when the right to what it does has ended, and again every 100
// ms until its watch is stopped. Its methods are called from other goroutines,
// one at a time, and should not block.
type Watcher interface {
	// Lasts is called once, when the watch has lasted for 100 to 200 ms.
	Lasts()
	// TokenExpired is called when the token or its credential has expired.
	TokenExpired()
	// TokenRevoked is called when the token or its credential was revoked.
	TokenRevoked()
}

// Watch is a place in the list of those that are told when a token ends. Its
// zero value is ready for use, once.
type Watch struct {
	access  *Access
	watcher Watcher
	list    *watchList

	// Guarded by the list:
	version    uint64 // of the credential that says what follows
	ends       int64  // when the access does by itself, in Unix milliseconds
	prev, next *Watch
	age        watchAge
	ended      bool // it was revoked
	told       bool // its watcher was told something, or is about to be

	telling sync.Mutex
	stopped bool // guarded by telling
}

const (
	tellAgain = 100 * time.Millisecond
	// watchRound bounds how long a list's timer runs when nothing is watched any
	// more. While something is, the list is looked through as often.
	watchRound = 30 * time.Second
	// watchLists is over how many lists the watches are spread, by credential, so
	// that a change looks through few of them.
	watchLists = 1024
	// watchYouth is how often it is looked whether watches last, while there are
	// young ones.
	watchYouth = 100 * time.Millisecond
)

// watchAge is what became of a watch the last times that its age was looked at.
type watchAge uint8

const (
	watchNew   watchAge = iota // it was not there
	watchYoung                 // it was there
	watchLasts                 // it was there twice, and its watcher knows
)

// Watch has the watcher told when the access ends, until Stop is called. It
// returns a *Refusal where it has ended already since it was verified, and any
// other error where it cannot tell.
func (a *Access) Watch(ctx context.Context, w *Watch, watcher Watcher) error {
	r := a.issuer.registry
	w.access, w.watcher, w.list = a, watcher, r.watchList(a.group)
	w.version, w.ends = a.version, a.until()
	w.list.add(r, w, a.at)
	r.awaitAge()
	if r.changes[a.group].Load() == a.changes && !r.keyRevoked(a.Token.keyID) {
		return nil
	}
	now := *a
	err := a.issuer.refresh(ctx, &now)
	if err == nil {
		err = a.issuer.refuse(&now)
	}
	if err != nil {
		w.Stop()
		return err
	}
	if now.version != a.version {
		w.list.update(r, w, &now)
	}
	return nil
}

// Stop ends the watch. The watcher is not told anything after it has returned.
func (w *Watch) Stop() {
	if told := w.list.remove(w); told {
		w.telling.Lock()
		defer w.telling.Unlock()
		w.stopped = true
	}
}

// until returns when the access ends by itself.
func (a *Access) until() int64 { return earlier(a.Token.expires, a.ends) }

// earlier returns the one that comes first; the second is 0 for never.
func earlier(expires, ends int64) int64 {
	if ends != 0 && ends < expires {
		return ends
	}
	return expires
}

// watchList holds watches. One timer serves them all, and runs only while there
// are some, or were lately.
type watchList struct {
	mu    sync.Mutex
	first *Watch
	timer *time.Timer // nil while it does not run
	due   int64       // when it fires, in Unix milliseconds
}

func (l *watchList) add(r *registry, w *Watch, now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.next = l.first
	if w.next != nil {
		w.next.prev = w
	}
	l.first = w
	if l.timer == nil {
		l.timer = time.AfterFunc(watchRound, func() { l.tell(r) })
		l.due = now + watchRound.Milliseconds()
	}
	if w.ends < l.due {
		l.wake(w.ends, now)
	}
}

// awaitAge has somebody look whether watches last.
func (r *registry) awaitAge() {
	if !r.aging.Load() && r.aging.CompareAndSwap(false, true) {
		time.AfterFunc(watchYouth, r.ageWatches)
	}
}

// ageWatches tells those that last, and goes on for as long as there are young ones.
func (r *registry) ageWatches() {
	r.aging.Store(false) // first: who is added from here on looks at it, or is seen
	young := false
	for n := range r.watches {
		lasting, more := r.watches[n].grow()
		young = young || more
		for _, w := range lasting {
			w.tell(w.watcher.Lasts)
		}
	}
	if young {
		r.awaitAge()
	}
}

// grow returns the watches that last since now, and whether there are young ones.
func (l *watchList) grow() (lasting []*Watch, young bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := l.first; w != nil && w.age != watchLasts; w = w.next { // the youngest comes first
		if w.age++; w.age == watchLasts {
			w.told = true
			lasting = append(lasting, w)
		} else {
			young = true
		}
	}
	return lasting, young
}

// watched reports whether there are watches.
func (l *watchList) watched() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first != nil
}

// clients returns whose tokens are watched.
func (l *watchList) clients() (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := make(map[string]bool)
	for w := l.first; w != nil; w = w.next {
		if id := w.access.Token.ClientID; !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// remove takes a watch out of the list, once. It reports whether its watcher was told
// something, or is about to be.
func (l *watchList) remove(w *Watch) (told bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case w.prev != nil:
		w.prev.next = w.next
	case l.first == w:
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
	return w.told
}

// update has a watch follow what was read of its credential since it was verified.
func (l *watchList) update(r *registry, w *Watch, now *Access) {
	l.mu.Lock()
	if now.version > w.version {
		w.version, w.ends = now.version, now.until()
	}
	l.mu.Unlock()
	l.tell(r)
}

// credentialChanged has the watches of a credential's tokens follow a change, and
// tells those that it has ended. Changes may arrive in any order.
func (l *watchList) credentialChanged(r *registry, c *Credential) {
	l.mu.Lock()
	for w := l.first; w != nil; w = w.next {
		if w.access.Token.ClientID == c.ClientID && c.Version > w.version {
			w.version = c.Version
			w.ended = w.ended || c.ended(&w.access.Token)
			w.ends = earlier(w.access.Token.expires, unixMilli(c.Expires))
		}
	}
	l.mu.Unlock()
	l.tell(r)
}

// tokenRevoked tells the watches of a token that was revoked by itself.
func (l *watchList) tokenRevoked(r *registry, clientID, id string) {
	l.mu.Lock()
	for w := l.first; w != nil; w = w.next {
		if t := &w.access.Token; t.ClientID == clientID && t.ID == id {
			w.ended = true
		}
	}
	l.mu.Unlock()
	l.tell(r)
}

// wake sets the timer. The list is locked.
func (l *watchList) wake(at, now int64) {
	l.due = min(at, now+watchRound.Milliseconds())
	l.timer.Reset(time.Duration(l.due-now) * time.Millisecond)
}

// tell tells those whose token has ended.
func (l *watchList) tell(r *registry) {
	revoked, expired := l.ended(r, time.Now().UnixMilli())
	for _, w := range revoked {
		w.tell(w.watcher.TokenRevoked)
	}
	for _, w := range expired {
		w.tell(w.watcher.TokenExpired)
	}
}

// ended returns the watches whose token has ended, and sets the timer for the
// next.
func (l *watchList) ended(r *registry, now int64) (revoked, expired []*Watch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		if l.timer != nil {
			l.timer.Stop() // it may be a change that brought us here
			l.timer = nil
		}
		return nil, nil
	}
	stale := r.stale() != nil
	next := now + watchRound.Milliseconds()
	for w := l.first; w != nil; w = w.next {
		ends := w.ends
		switch {
		case w.ended || r.keyRevoked(w.access.Token.keyID) || stale:
			w.told = true
			revoked = append(revoked, w)
			ends = now + tellAgain.Milliseconds()
		case now >= ends:
			w.told = true
			expired = append(expired, w)
			ends = now + tellAgain.Milliseconds()
		}
		next = min(next, ends)
	}
	l.wake(next, now)
	return revoked, expired
}

// tell calls the watcher, unless the watch was stopped.
func (w *Watch) tell(what func()) {
	w.telling.Lock()
	defer w.telling.Unlock()
	if !w.stopped {
		what()
	}
}

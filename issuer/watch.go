package issuer

import (
	"sync"
	"time"
)

// Watcher is told when the right to what it does has ended, and again every 100
// ms until its watch is stopped. Its methods are called from other goroutines,
// one at a time, and should not block.
type Watcher interface {
	// TokenExpired is called when the token or its credential has expired.
	TokenExpired()
	// TokenRevoked is called when the token or its credential was revoked.
	TokenRevoked()
}

// Watch is a place in the list of those that are told when a token ends. Its
// zero value is ready for use, once.
type Watch struct {
	token   *Token
	watcher Watcher

	prev, next *Watch // guarded by the list

	telling sync.Mutex
	stopped bool // guarded by telling
}

const (
	tellAgain = 100 * time.Millisecond
	// watchRound bounds how long a credential's timer runs when nothing is
	// watched any more. While something is, the list is looked through as often.
	watchRound = 30 * time.Second
)

// Watch has the watcher told when the access ends, until Stop is called. It
// returns a *Refusal where it has ended already since it was verified.
func (a Access) Watch(w *Watch, watcher Watcher) error {
	w.token, w.watcher = a.Token, watcher
	st := a.Token.state
	st.watches.add(st, w, a.ends(), a.at)
	if now := st.credential.Load(); now != a.Credential && now.ended(a.Token) || a.Token.revoked() || a.Token.keyRevoked() {
		w.Stop()
		return &Refusal{"revoked"}
	}
	return nil
}

// Stop ends the watch. The watcher is not told anything after it has returned.
func (w *Watch) Stop() {
	w.token.state.watches.remove(w)
	w.telling.Lock()
	defer w.telling.Unlock()
	w.stopped = true
}

// ends returns when the access ends by itself.
func (a Access) ends() time.Time {
	if e := a.Credential.Expires; !e.IsZero() && e.Before(a.Token.Expires) {
		return e
	}
	return a.Token.Expires
}

// watchList holds the watches of the tokens of one credential. One timer serves
// them all, and runs only while there are some, or were lately.
type watchList struct {
	mu    sync.Mutex
	first *Watch
	timer *time.Timer // nil while it does not run: few of a million clients need one
	due   time.Time   // when it fires
}

func (l *watchList) add(st *state, w *Watch, ends, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.next = l.first
	if w.next != nil {
		w.next.prev = w
	}
	l.first = w
	if l.timer == nil {
		l.timer = time.AfterFunc(watchRound, st.watchesDue)
		l.due = now.Add(watchRound)
	}
	if ends.Before(l.due) {
		l.wake(ends, now)
	}
}

// watched reports whether there are watches.
func (l *watchList) watched() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first != nil
}

// remove takes a watch out of the list, once.
func (l *watchList) remove(w *Watch) {
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
}

// wake sets the timer. The list is locked.
func (l *watchList) wake(at, now time.Time) {
	if latest := now.Add(watchRound); at.After(latest) {
		at = latest
	}
	l.due = at
	l.timer.Reset(at.Sub(now))
}

// watchesDue tells those whose token has ended.
func (s *state) watchesDue() {
	revoked, expired := s.watches.ended(s.credential.Load(), time.Now())
	for _, w := range revoked {
		w.tell(w.watcher.TokenRevoked)
	}
	for _, w := range expired {
		w.tell(w.watcher.TokenExpired)
	}
}

// ended returns the watches whose token has ended, and sets the timer for the
// next.
func (l *watchList) ended(c *Credential, now time.Time) (revoked, expired []*Watch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == nil {
		if l.timer != nil {
			l.timer.Stop() // it may be a change that brought us here
			l.timer = nil
		}
		return nil, nil
	}
	next := now.Add(watchRound)
	for w := l.first; w != nil; w = w.next {
		ends := Access{Token: w.token, Credential: c}.ends()
		switch {
		case c.ended(w.token) || w.token.revoked() || w.token.keyRevoked():
			revoked = append(revoked, w)
			ends = now.Add(tellAgain)
		case !now.Before(ends):
			expired = append(expired, w)
			ends = now.Add(tellAgain)
		}
		if ends.Before(next) {
			next = ends
		}
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

package postgres

import (
	"math"
	"slices"

	"github.com/google/uuid"
)

// position is the number of a commit and its id.
type position struct {
	n  int64
	id uuid.UUID
}

// expect notes a commit of this node that was acknowledged: the feed is to come to
// it, or else the database has lost it.
func (f *feed) expect(p position) {
	if f.until.Load() == math.MinInt64 {
		return // nobody follows yet, and remembers anything
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own = append(f.own, p)
}

func (f *feed) expected() []position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.own)
}

// expects reports whether the feed has not come to one of these yet.
func (f *feed) expects(some []position) bool {
	return slices.ContainsFunc(f.expected(), func(p position) bool { return slices.Contains(some, p) })
}

// known returns the last commit that this node knows of: by its feed, or of its own.
func (f *feed) known() position {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.reached
	for _, p := range f.own {
		if p.n > last.n {
			last = p
		}
	}
	return last
}

// comeTo has the feed come to the commits of this node soon: a poll that learned of
// one just before it was expected does not tell that it did.
func (f *feed) comeTo() {
	select {
	case f.awaited <- struct{}{}:
	default:
	}
}

// came notes where the feed is, and forgets those of the first expected commits that it
// has come to.
func (f *feed) came(first int, to position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own := slices.DeleteFunc(slices.Clone(f.own[:first]), func(p position) bool { return p.n <= to.n })
	f.own, f.reached = append(own, f.own[first:]...), to
}

// lost does the same where the database has lost commits, and the follower knows.
func (f *feed) lost(first int, to position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own, f.reached = slices.Clone(f.own[first:]), to
}

// lacks reports whether the database does not have one of the commits that were
// acknowledged after that number.
func (a answer) lacks(own []position, after int64) bool {
	for _, p := range own {
		if p.n > a.head {
			return true
		}
		if p.n > after && slices.ContainsFunc(a.changes, func(c committed) bool { return c.n == p.n && c.id != p.id }) {
			return true
		}
	}
	return false
}

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
	if p.n > f.latest.n {
		f.latest = p
	}
}

// acknowledged is what this node knows of the commits that it has made.
type acknowledged struct {
	expected []position // those that the feed has not come to yet
	latest   position   // the last one since the database has lost any, if there is one
	losses   int        // how often the feed has found that the database has lost commits
}

func (f *feed) acknowledged() acknowledged {
	f.mu.Lock()
	defer f.mu.Unlock()
	return acknowledged{slices.Clone(f.own), f.latest, f.lost}
}

// expects reports whether the feed has not come to one of these yet.
func (f *feed) expects(some []position) bool {
	return slices.ContainsFunc(f.acknowledged().expected, func(p position) bool { return slices.Contains(some, p) })
}

func (f *feed) losses() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// comeTo has the feed come to the commits of this node soon: a poll that learned of
// one just before it was expected does not tell that it did.
func (f *feed) comeTo() {
	select {
	case f.awaited <- struct{}{}:
	default:
	}
}

// came forgets those of the first expected commits that the feed has come to.
func (f *feed) came(first int, to int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own := slices.DeleteFunc(slices.Clone(f.own[:first]), func(p position) bool { return p.n <= to })
	f.own = append(own, f.own[first:]...)
}

// haveLost notes that the database has lost commits, maybe the first expected ones, and
// that the follower knows.
func (f *feed) haveLost(first int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own = slices.Clone(f.own[first:])
	if !slices.Contains(f.own, f.latest) {
		f.latest = position{}
	}
	f.lost++
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

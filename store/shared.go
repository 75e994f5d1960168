package store

import "context"

// Shared is a Store that other processes, its nodes, have open too.
type Shared interface {
	Store

	// Follow calls follower from one goroutine with all that any node commits,
	// this one included, in the order of the commits, until the store is closed.
	// It returns once all is known that was committed before the call (the first
	// complete catch-up), or with an error. It is called once, before the store
	// is used for anything whose result is remembered.
	Follow(ctx context.Context, follower Follower) error

	// Stale returns nil while this node knows all that was committed longer than
	// a lease ago; else an ErrStale that says since when it does not, and why. It
	// costs an atomic load and a reading of the clock: it is called for each
	// request.
	Stale() error

	// Await returns nil once every other node has applied all that was committed
	// before the call, by whichever node, or can't be serving by what it knew
	// before: its lease, and a margin for the clocks' rates, have run out. By then
	// this node's follower was told of what it has committed itself, or that the
	// database has lost it. An error means that this could not be told in time of
	// ctx.
	Await(ctx context.Context) error

	// Try has the database be reached as an engine of the same Identity says. It
	// returns an error, and changes nothing, where it can't be. All else that the
	// engine says does not count yet.
	Try(ctx context.Context, engine Engine) error

	// Adopt has all count from now on that an engine says which was tried, or that
	// counted before another one was. It waits for nothing, and can't fail.
	Adopt(engine Engine)

	// OpenElsewhere returns the host of each other node that follows the store; also
	// of one that was killed, until its lease and the margin have run out.
	OpenElsewhere(ctx context.Context) (hosts []string, err error)
}

// Follower is told what was committed to a Shared store. While one of its methods
// blocks, the node is not known to have come to the commit, and it serves until its
// lease runs out.
type Follower interface {
	// Changed is called with the keys that a commit has put or deleted, none where
	// its batch was quiet, and whether it was urgent.
	Changed(keys []string, urgent bool)

	// ChangedAnything is called where the changes since the last call are not
	// known one by one: the history was trimmed, or the database was replaced by
	// another copy of itself. Then lost is true: what was told before may not be
	// in the store any more.
	ChangedAnything(lost bool)
}

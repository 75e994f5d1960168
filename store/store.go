// Package store keeps small records so that they survive a crash. It knows
// nothing of what is in them.
package store

import (
	"context"
	"errors"
)

// Store is an open database of records. Its methods may be called at once from
// many goroutines. An error other than those named here, as that of a context
// which has ended, means that the store cannot tell, and nothing may be concluded
// from it.
//
// What a call returns has all in it for which a Commit had returned before the call.
type Store interface {
	// Get returns the value of key: a copy that the caller owns, and that is not
	// nil. It returns ErrNotFound where there is none, and ErrCorrupt where what is
	// there is not what was written.
	Get(ctx context.Context, key string) ([]byte, error)

	// Scan calls fn with each record whose key begins with prefix, in the
	// order of the keys' bytes, from one consistent view. The value is a copy
	// that fn owns. fn must not call the store. Scan ends with fn's first
	// error. Others commit meanwhile, however long it takes.
	Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error

	// ScanFrom does the same with those records alone whose keys do not sort before
	// from.
	ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error

	// Commit carries out the batch as one: all of it, and durably, when it
	// returns nil. Nobody ever sees a part of it. It returns ErrConflict where a
	// condition does not hold, and ErrFull where the store has no room left: with
	// these, with ErrClosed, and where ctx had ended before, nothing was done. After
	// any other error, as of a disk, a connection, or a context that ends meanwhile,
	// all was done or nothing. The batch is the caller's again.
	Commit(ctx context.Context, batch Batch) error

	// Close waits for the operations under way, which it does not disturb, and
	// closes the store. Every later call returns ErrClosed.
	Close() error
}

// Engine opens stores of one kind. It is what a Caddy module in the namespace
// client_credentials.stores implements.
type Engine interface {
	// Identity names the database that Open opens, in one spelling however it
	// was configured, so that two configurations can tell that they mean the
	// same one. Options that only tune it are no part of it.
	Identity() string

	// Shared reports whether the stores that Open returns are Shared.
	Shared() bool

	// Open opens the database, and makes it where it does not exist.
	Open(ctx context.Context) (Store, error)
}

// Mender is an Engine that can tell that a store has lost what it acknowledged.
// Open refuses such a one.
type Mender interface {
	Engine

	// AcceptLoss makes the store open again with what is left of it, once finish
	// has made of that what it should be. It returns what is lost, as far as that
	// can be told.
	AcceptLoss(ctx context.Context, finish func(Store) error) (lost []string, err error)
}

// What each engine takes. It may refuse what is beyond, though not in part, and
// keys that begin with a zero byte or '!', where it may have some of its own.
const (
	MaxKey     = 2 << 10    // bytes of a key, which has at least one
	MaxValue   = 1<<20 - 5  // bytes of a value
	MaxRecords = 4000       // puts and deletes of a batch
	MaxBytes   = 1156 << 10 // of the keys and values of a batch
)

// Batch is what Commit carries out: the puts in their order, then the deletes. An
// empty one is carried out, too, if its conditions hold.
type Batch struct {
	// Conditions are checked before anything is written.
	Conditions []Condition
	Puts       []Record
	// Deletes may name what is not there.
	Deletes []string
	// Urgent batches may take the last reserve of a store that is full for all
	// others: those that end rights, and those that only remove.
	Urgent bool
	// Quiet batches change what no node remembers: a follower is told of one as of
	// a commit of no keys, and not sooner than it would have asked. It does not count
	// where the batch is urgent.
	Quiet bool
}

// Condition holds while the record of Key is exactly Value, or, where Value is
// nil, while there is no such record.
type Condition struct {
	Key   string
	Value []byte
}

// Record is a key and its value. To put a value of nil is to put an empty one.
type Record struct {
	Key   string
	Value []byte
}

var (
	// ErrNotFound says that the store holds no record of that key.
	ErrNotFound = errors.New("no such record")
	// ErrConflict says that a condition of the batch did not hold.
	ErrConflict = errors.New("the record was changed by somebody else")
	// ErrCorrupt says that a record is not what was written.
	ErrCorrupt = errors.New("a record is damaged: its checksum does not fit")
	// ErrFull says that the store has no room for what shall be written.
	ErrFull = errors.New("the store is full")
	// ErrStale says that the store may lack what other nodes have committed.
	ErrStale = errors.New("the store may have changed without this node knowing it")
	// ErrClosed says that the store is closed.
	ErrClosed = errors.New("the store is closed")
)

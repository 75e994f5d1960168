// Package store keeps small records so that they survive a crash. It knows
// nothing of what is in them.
package store

import (
	"context"
	"errors"
)

// Store is an open database of records. Its methods may be called at once from
// many goroutines. An error other than those named here means that the store
// cannot tell, and nothing may be concluded from it.
type Store interface {
	// Get returns the value of key: a copy that the caller owns. It returns
	// ErrNotFound where there is none, and ErrCorrupt where what is there is
	// not what was written.
	Get(ctx context.Context, key string) ([]byte, error)

	// Scan calls fn with each record whose key begins with prefix, in the
	// order of the keys' bytes, from one consistent view. The value is a copy
	// that fn owns. fn must not call the store. Scan ends with fn's first
	// error.
	Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error

	// ScanFrom does the same with those records alone whose keys do not sort before
	// from.
	ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error

	// Commit carries out the batch as one: all of it, and durably, when it
	// returns nil, and none of it otherwise, but for an error of the disk
	// itself. It returns ErrConflict where a condition does not hold, and
	// ErrFull where the store has no room left.
	Commit(ctx context.Context, batch Batch) error

	// Close waits for the operations under way and closes the store. Every
	// later call returns ErrClosed.
	Close() error
}

// Engine opens stores of one kind. It is what a Caddy module in the namespace
// client_credentials.stores implements.
type Engine interface {
	// Identity names the database that Open opens, in one spelling however it
	// was configured, so that two configurations can tell that they mean the
	// same one. Options that only tune it are no part of it.
	Identity() string

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

// Batch is what Commit carries out.
type Batch struct {
	// Conditions are checked before anything is written.
	Conditions []Condition
	Puts       []Record
	Deletes    []string
	// Urgent batches may take the last reserve of a store that is full for all
	// others: those that end rights, and those that only remove.
	Urgent bool
}

// Condition holds while the record of Key is exactly Value, or, where Value is
// nil, while there is no such record.
type Condition struct {
	Key   string
	Value []byte
}

// Record is a key and its value.
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

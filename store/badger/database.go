package badger

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	badgerdb "github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// database is an open Badger database.
//
// The gate is held for reading by every operation and for writing by Close:
// Badger 4 hangs a reader for ever, and panics in an iterator, if it is closed
// under them.
type database struct {
	gate      sync.RWMutex
	closed    bool
	db        *badgerdb.DB
	guard     *guard
	head      *head
	committer *committer
}

func newDatabase(dir string, db *badgerdb.DB, h *head) *database {
	g := newGuard(dir, db)
	return &database{db: db, guard: g, head: h, committer: newCommitter(db, g, h)}
}

// Get implements store.Store.
func (d *database) Get(ctx context.Context, key string) ([]byte, error) {
	if err := d.enter(ctx); err != nil {
		return nil, err
	}
	defer d.gate.RUnlock()

	var value []byte
	err := d.view(func(txn *badgerdb.Txn) (err error) {
		value, err = read(txn, key)
		return err
	})
	return value, err
}

// Scan implements store.Store.
func (d *database) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return d.ScanFrom(ctx, prefix, prefix, fn)
}

// ScanFrom implements store.Store.
func (d *database) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()

	return d.view(func(txn *badgerdb.Txn) error {
		opts := badgerdb.DefaultIteratorOptions
		opts.Prefix = []byte(prefix)
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Seek([]byte(max(from, prefix))); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if string(it.Item().Key()) == tallyKey {
				continue
			}
			value, err := open(it.Item())
			if err != nil {
				return err
			}
			if err := fn(string(it.Item().Key()), value); err != nil {
				return err
			}
		}
		return nil
	})
}

// Commit implements store.Store.
func (d *database) Commit(ctx context.Context, batch store.Batch) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()

	return d.committer.commit(ctx, batch)
}

// Close implements store.Store.
func (d *database) Close() error {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.committer.close()
	defer d.head.close()
	if !d.guard.roomToClose() {
		// All that was acknowledged is in the logs, and will be read from there.
		return d.guard.refusal("to close the store takes", tableSize+smallFiles)
	}
	return d.db.Close()
}

// enter holds the gate where it returns nil.
func (d *database) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.gate.RLock()
	if d.closed {
		d.gate.RUnlock()
		return store.ErrClosed
	}
	return nil
}

// view reads. Where Badger could not make a log, it has none, and panics.
func (d *database) view(read func(txn *badgerdb.Txn) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			logger().Error("panic while reading", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = errors.New("the store has panicked")
		}
	}()
	return d.db.View(read)
}

func read(txn *badgerdb.Txn, key string) ([]byte, error) {
	item, err := txn.Get([]byte(key))
	if errors.Is(err, badgerdb.ErrKeyNotFound) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	return open(item)
}

func open(item *badgerdb.Item) ([]byte, error) {
	sealed, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", item.Key(), err)
	}
	return store.Unseal(item.Key(), sealed)
}

package badger

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	badgerdb "github.com/dgraph-io/badger/v4"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// committer carries out batches in one goroutine. Those that wait while it
// writes are merged into one transaction: Badger syncs each of its own, and a
// sync costs more than what is written.
type committer struct {
	db      *badgerdb.DB
	guard   *guard
	head    *head
	waiting chan *operation
	ended   chan struct{}
	failed  error // why nothing is written any more; only run's goroutine uses it
}

// operation is a batch, and what became of it.
type operation struct {
	store.Batch
	err  error
	done chan struct{} // closed when err is said
}

// maxMerged bounds how many wait for one another.
const maxMerged = 256

// lookInterval is how long it may take, while nothing is written, until it is
// seen that the volume is full, or is not any more.
const lookInterval = 2 * time.Second

func newCommitter(db *badgerdb.DB, guard *guard, head *head) *committer {
	c := &committer{db: db, guard: guard, head: head, waiting: make(chan *operation), ended: make(chan struct{})}
	go c.run()
	return c
}

// commit carries out a batch. Once its turn has come it is carried out, whether
// or not anybody still waits for it.
func (c *committer) commit(ctx context.Context, batch store.Batch) error {
	op := &operation{Batch: batch, done: make(chan struct{})}
	select {
	case c.waiting <- op:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-op.done
	return op.err
}

// close ends the committer. Nobody may be committing any more.
func (c *committer) close() {
	close(c.waiting)
	<-c.ended
}

func (c *committer) run() {
	defer close(c.ended)
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case op, ok := <-c.waiting:
			if !ok {
				return
			}
			for op != nil {
				var merged []*operation
				merged, op = c.collect(op)
				c.carryOut(merged)
			}
		case <-ticker.C:
			c.guard.countTables()
			c.guard.look()
		}
	}
}

// collect returns the first operation with all that wait, as far as they fit
// into one transaction, and the one that did not.
func (c *committer) collect(first *operation) (merged []*operation, next *operation) {
	merged = []*operation{first}
	room := c.db.MaxBatchSize()/2 - first.size() - tallyRoom
	for len(merged) < maxMerged {
		select {
		case op, ok := <-c.waiting:
			if !ok {
				return merged, nil
			}
			if room -= op.size(); room < 0 {
				return merged, op
			}
			merged = append(merged, op)
		default:
			return merged, nil
		}
	}
	return merged, nil
}

const (
	// recordRoom is the most, in bytes, that is added to a record in a log or a
	// memtable.
	recordRoom = 128
	// tallyRoom is what a transaction takes beside what its operations do.
	tallyRoom = 3 * recordRoom
)

// size is the most that the operation takes in a transaction, in bytes.
func (o *operation) size() (bytes int64) {
	for _, record := range o.Puts {
		bytes += int64(len(record.Key)+len(record.Value)) + recordRoom
	}
	for _, key := range o.Deletes {
		bytes += int64(len(key)) + recordRoom
	}
	return bytes
}

// carryOut carries out operations as one, and each by itself where one of them
// can't be written.
func (c *committer) carryOut(merged []*operation) {
	err := c.transact(merged)
	if errors.Is(err, errUnwritable) && len(merged) > 1 {
		for _, op := range merged {
			c.carryOut([]*operation{op})
		}
		return
	}
	for _, op := range merged {
		if op.err == nil {
			op.err = err
		}
		close(op.done)
	}
}

// errUnwritable says that a transaction was given up because of what one of its
// operations writes.
var errUnwritable = errors.New("the store can't write this")

// transact writes those operations whose conditions hold, after all before
// them, in one transaction. The others get their error.
func (c *committer) transact(merged []*operation) (err error) {
	defer func() {
		if p := recover(); p != nil {
			logger().Error("panic while writing", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = errors.New("the store has panicked")
		}
	}()
	if c.failed != nil {
		return c.failed
	}
	c.guard.look()
	txn := begin(c.db)
	defer txn.Discard()
	if txn.tally, err = readTally(txn.Txn); err != nil {
		return err
	}
	size := int64(tallyRoom)
	for _, op := range merged {
		if op.err = c.admit(txn, op); op.err != nil {
			continue
		}
		if err := op.write(txn); err != nil {
			return fmt.Errorf("%w: %w", errUnwritable, err)
		}
		size += op.size()
	}
	if size == tallyRoom {
		return nil // there is nothing to write
	}
	txn.tally.transactions++
	if err := txn.tally.write(txn.Txn); err != nil {
		return fmt.Errorf("%w: %w", errUnwritable, err)
	}
	defer c.guard.wrote(size)
	if err := txn.Commit(); err != nil {
		return c.fail(err)
	}
	return c.head.write(txn.tally)
}

// fail has nothing be written after a transaction that Badger could not write:
// where the disk has not taken it, the log ends there, and what came behind would
// be lost with it.
func (c *committer) fail(err error) error {
	c.failed = fmt.Errorf("the store takes no more changes, since one could not be written; stop Caddy and start it again: %w", err)
	logger().Error("writing to the store has failed: until Caddy is started again, nothing can be created or revoked", zap.Error(err))
	return c.failed
}

// admit returns an error where the operation can't be carried out.
func (c *committer) admit(txn *transaction, op *operation) error {
	if err := op.check(txn); err != nil {
		return err
	}
	return c.guard.admit(op)
}

// check returns the error of the first condition that does not hold.
func (o *operation) check(txn *transaction) error {
	for _, condition := range o.Conditions {
		if err := txn.check(condition); err != nil {
			return err
		}
	}
	return nil
}

func (o *operation) write(txn *transaction) error {
	for _, record := range o.Puts {
		if len(record.Value) > maxValue {
			return fmt.Errorf("writing %s: its value has %d bytes, and may have %d", record.Key, len(record.Value), maxValue)
		}
		if err := txn.put(record); err != nil {
			return fmt.Errorf("writing %s: %w", record.Key, err)
		}
	}
	for _, key := range o.Deletes {
		if err := txn.remove(key); err != nil {
			return fmt.Errorf("deleting %s: %w", key, err)
		}
	}
	return nil
}

package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// transaction is one of Badger's, and what the tally is after it. What a condition
// has read, and what was written, is not read again to be counted: in a large
// database, to read a record takes as long as all else that is done for it.
type transaction struct {
	*badgerdb.Txn
	tally tally
	known map[string]counted
}

// counted is what a record is to the tally: nothing, where there is none.
type counted struct {
	records uint64 // 1, or 0
	sum     uint64 // its checksum
}

// begin begins a transaction, which is to be discarded.
func begin(db *badgerdb.DB) *transaction {
	return &transaction{Txn: db.NewTransaction(true), known: make(map[string]counted)}
}

// check returns store.ErrConflict where the condition does not hold.
func (t *transaction) check(condition store.Condition) error {
	holds := condition.Value == nil
	err := t.read(condition.Key, func(value []byte) {
		holds = condition.Value != nil && bytes.Equal(value, condition.Value)
	})
	if err == nil && !holds {
		return store.ErrConflict
	}
	return err
}

// put writes a record and counts it, in place of what was there.
func (t *transaction) put(record store.Record) error {
	if err := t.discount(record.Key); err != nil {
		return err
	}
	sealed := store.Seal(record)
	now := countedAs(sealed)
	t.known[record.Key] = now
	t.tally.records += now.records
	t.tally.sum += now.sum
	return t.Set([]byte(record.Key), sealed)
}

// remove deletes a record and counts it no more.
func (t *transaction) remove(key string) error {
	if err := t.discount(key); err != nil {
		return err
	}
	t.known[key] = counted{}
	return t.Delete([]byte(key))
}

// discount has the tally be as if there were no such record.
func (t *transaction) discount(key string) error {
	if key == tallyKey {
		return errors.New("the key is the store's own")
	}
	before, known := t.known[key]
	if !known {
		if err := t.read(key, func([]byte) {}); err != nil {
			return err
		}
		before = t.known[key]
	}
	t.tally.records -= before.records
	t.tally.sum -= before.sum
	return nil
}

// read calls fn with the value of a record that is sound, if there is one; fn must
// not keep it. From then on it is known what the record counts.
func (t *transaction) read(key string, fn func(value []byte)) error {
	item, err := t.Get([]byte(key))
	if errors.Is(err, badgerdb.ErrKeyNotFound) {
		t.known[key] = counted{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	return item.Value(func(sealed []byte) error {
		value, err := store.Unseal(item.Key(), sealed)
		if err != nil {
			return err
		}
		t.known[key] = countedAs(sealed)
		fn(value)
		return nil
	})
}

func countedAs(sealed []byte) counted { return counted{1, uint64(binary.BigEndian.Uint32(sealed))} }

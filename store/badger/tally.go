package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	badgerdb "github.com/dgraph-io/badger/v4"
	"golang.org/x/sync/errgroup"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// tally says what a sound database holds. Each transaction writes a new one with
// its changes; so a database that has lost a change, or has one back that was
// undone, does not agree with its tally.
type tally struct {
	transactions uint64 // that wrote it, one after the other
	records      uint64 // beside itself
	sum          uint64 // of the records' checksums
}

const (
	tallyKey  = "\x00tally" // no record of the store may have this key
	tallySize = 24
)

func (t tally) encode() []byte {
	text := make([]byte, 0, tallySize+4) // and a checksum
	for _, n := range []uint64{t.transactions, t.records, t.sum} {
		text = binary.BigEndian.AppendUint64(text, n)
	}
	return text
}

func decodeTally(text []byte) tally {
	return tally{binary.BigEndian.Uint64(text), binary.BigEndian.Uint64(text[8:]), binary.BigEndian.Uint64(text[16:])}
}

// readTally returns the tally of the database: a zero one, where it was written
// before there were any, or never.
func readTally(txn *badgerdb.Txn) (tally, error) {
	text, err := read(txn, tallyKey)
	if errors.Is(err, store.ErrNotFound) {
		return tally{}, nil
	}
	if err != nil {
		return tally{}, err
	}
	if len(text) != tallySize {
		return tally{}, fmt.Errorf("the tally: %w", store.ErrCorrupt)
	}
	return decodeTally(text), nil
}

// write makes t the tally of the database.
func (t tally) write(txn *badgerdb.Txn) error {
	return txn.Set([]byte(tallyKey), store.Seal(store.Record{Key: tallyKey, Value: t.encode()}))
}

// count reads the whole database, on all processors, and returns how many
// records there are and the sum of their checksums. It passes what is not as it
// was written to damaged, from several goroutines, and ends with its first error.
func count(db *badgerdb.DB, damaged func(key string, err error) error) (records, sum uint64, err error) {
	var group errgroup.Group
	var mu sync.Mutex
	keys := borders(db, runtime.GOMAXPROCS(0))
	for n := range len(keys) - 1 {
		group.Go(func() error {
			r, s, err := countRange(db, keys[n], keys[n+1], damaged)
			mu.Lock()
			defer mu.Unlock()
			records, sum = records+r, sum+s
			return err
		})
	}
	err = group.Wait()
	return records, sum, err
}

// borders returns keys between which the database falls into so many parts of
// about the same size, or one: nil stands for its beginning and its end.
func borders(db *badgerdb.DB, parts int) [][]byte {
	const version = 8 // bytes, at the end of a key
	var all [][]byte
	for _, t := range db.Tables() {
		all = append(all, t.Left[:len(t.Left)-version])
	}
	slices.SortFunc(all, bytes.Compare)
	keys := [][]byte{nil}
	for n := 1; n < parts && len(all) >= parts; n++ {
		keys = append(keys, all[n*len(all)/parts])
	}
	return append(keys, nil)
}

// countRange counts the records from one key on, up to another, or to the end.
func countRange(db *badgerdb.DB, from, to []byte, damaged func(key string, err error) error) (records, sum uint64, err error) {
	err = db.View(func(txn *badgerdb.Txn) error {
		opts := badgerdb.DefaultIteratorOptions
		opts.PrefetchValues = false // they lie beside their keys
		it := txn.NewIterator(opts)
		defer it.Close()
		for it.Seek(from); it.Valid(); it.Next() {
			item := it.Item()
			if to != nil && bytes.Compare(item.Key(), to) >= 0 {
				break
			}
			if string(item.Key()) == tallyKey {
				continue
			}
			err := item.Value(func(sealed []byte) error {
				_, err := store.Unseal(item.Key(), sealed)
				if err == nil {
					records++
					sum += uint64(binary.BigEndian.Uint32(sealed))
				}
				return err
			})
			if err != nil {
				if err := damaged(string(item.Key()), err); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return records, sum, err
}

package badger

import (
	"errors"
	"fmt"
	"io/fs"

	badgerdb "github.com/dgraph-io/badger/v4"
)

const remedy = "restore a backup into an empty directory; or, to go on with what is left, run: caddy client-credentials accept-loss"

// damaged is the error of a store that is not what was acknowledged.
func damaged(dir string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the store in %s can't be read: %w", dir, err)
	}
	return fmt.Errorf("the store in %s is damaged: %w: %s", dir, err, remedy)
}

// attest returns the head of a database that holds exactly what was
// acknowledged. It reads it all.
func attest(dir string, db *badgerdb.DB) (*head, error) {
	recorded, err := recordedTally(db)
	if err != nil {
		return nil, damaged(dir, err)
	}
	present := tally{transactions: recorded.transactions}
	present.records, present.sum, err = count(db, func(_ string, err error) error { return err })
	if err != nil {
		return nil, damaged(dir, err)
	}
	last, err := readHead(dir)
	switch missing := errors.Is(err, fs.ErrNotExist); {
	case missing && recorded.transactions == 0: // new, or from before there was a head
		if err := makeHead(dir, tally{}); err != nil {
			return nil, err
		}
	case missing:
		return nil, damaged(dir, fmt.Errorf("the file %s is missing, which says what was acknowledged", headFile))
	case err != nil:
		return nil, damaged(dir, err)
	}
	first := recorded.transactions == 0 && last.transactions == 0
	if lacks := difference(last, recorded, present); lacks != "" && !first {
		return nil, damaged(dir, errors.New(lacks))
	}
	if first && present.records > 0 {
		// The head was there before this: if it is gone from now on, it is missed.
		present.transactions++
		if err := db.Update(present.write); err != nil {
			return nil, err
		}
		recorded = present
	}
	h, err := openHead(dir)
	if err != nil {
		return nil, err
	}
	if recorded == last {
		return h, nil
	}
	if err := h.write(recorded); err != nil { // a crash has come between the two
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

func recordedTally(db *badgerdb.DB) (t tally, err error) {
	err = db.View(func(txn *badgerdb.Txn) error {
		t, err = readTally(txn)
		return err
	})
	return t, err
}

// difference says what a database lacks of what was acknowledged: nothing, where
// it is whole.
func difference(last, recorded, present tally) string {
	switch {
	case recorded.transactions < last.transactions:
		return fmt.Sprintf("of the %d transactions that were acknowledged, the last %d are lost",
			last.transactions, last.transactions-recorded.transactions)
	case recorded.transactions == last.transactions && recorded != last:
		return "its last transaction is not the one that was acknowledged"
	case present != recorded:
		return fmt.Sprintf("changes that were acknowledged are lost: it holds %d records, and should hold %d, or others",
			present.records, recorded.records)
	}
	return ""
}

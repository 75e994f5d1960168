package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Contents tell apart what stores hold.
type Contents struct {
	Records int
	// Sum is the SHA-256 of the lengths of each key and value, in 8 bytes, and these
	// themselves, in the order of the keys.
	Sum [sha256.Size]byte
}

// ErrDiffers says that a copy is not what the store holds.
var ErrDiffers = errors.New("the copy differs from the store, which may have been changed meanwhile: run it again, while no server has either of them")

// Copy makes a store that has no records, or on which an earlier Copy was not
// finished, the same as another one. It writes what is missing there, and so goes on
// where the earlier one was. Then it reads both again, and returns what they hold.
// Until that is the same, and then has succeeded, which it calls last, the store is
// marked as not finished. It calls copied with the bytes of what it has dealt with.
func Copy(ctx context.Context, from, to store.Store, copied func(bytes int), then func() error) (Contents, error) {
	if err := CheckFinished(ctx, from); err != nil {
		return Contents{}, err
	}
	if err := mark(ctx, to); err != nil {
		return Contents{}, err
	}
	for at, more := "", true; more; {
		page, next, err := readPage(ctx, from, at)
		if err != nil {
			return Contents{}, err
		}
		if err := makeSame(ctx, to, at, next, page); err != nil {
			return Contents{}, err
		}
		copied(size(page))
		at, more = next, next != ""
	}
	want, err := contents(ctx, from)
	if err != nil {
		return Contents{}, err
	}
	got, err := contents(ctx, to)
	if err != nil {
		return Contents{}, err
	}
	if got != want {
		return Contents{}, ErrDiffers
	}
	if err := then(); err != nil {
		return Contents{}, err
	}
	return got, unmark(ctx, to)
}

// readPage returns the records from a key on that fit into a batch, and the key of the
// next, if there is one.
func readPage(ctx context.Context, st store.Store, from string) (page []store.Record, next string, err error) {
	bytes := 0
	err = st.ScanFrom(ctx, "", from, func(key string, value []byte) error {
		if bytes >= batchBytes || len(page) >= batchRecords {
			next = key
			return errEnough
		}
		page = append(page, store.Record{Key: key, Value: value})
		bytes += len(key) + len(value)
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return page, next, err
}

// makeSame has the records of a store from one key on, up to another or to the end,
// be those of a page.
func makeSame(ctx context.Context, st store.Store, from, until string, page []store.Record) error {
	missing := make(map[string][]byte, len(page))
	for _, record := range page {
		missing[record.Key] = record.Value
	}
	var others []string
	err := st.ScanFrom(ctx, "", from, func(key string, value []byte) error {
		want, wanted := missing[key]
		switch {
		case until != "" && key >= until:
			return errEnough
		case key == unfinishedKey:
		case !wanted:
			others = append(others, key)
		case bytes.Equal(value, want):
			delete(missing, key)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if err := remove(ctx, st, others); err != nil {
		return err
	}
	var batch store.Batch
	for _, record := range page {
		if _, is := missing[record.Key]; is {
			batch.Puts = append(batch.Puts, record)
		}
	}
	if len(batch.Puts) == 0 {
		return nil
	}
	return st.Commit(ctx, batch)
}

// contents returns what a store holds beside the mark.
func contents(ctx context.Context, st store.Store) (c Contents, err error) {
	sum := sha256.New()
	err = st.Scan(ctx, "", func(key string, value []byte) error {
		if key == unfinishedKey {
			return nil
		}
		c.Records++
		for _, text := range [][]byte{[]byte(key), value} {
			_, _ = sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(text)))) // a hash takes everything
			_, _ = sum.Write(text)
		}
		return nil
	})
	return Contents{c.Records, [sha256.Size]byte(sum.Sum(nil))}, err
}

func size(records []store.Record) (bytes int) {
	for _, record := range records {
		bytes += len(record.Key) + len(record.Value)
	}
	return bytes
}

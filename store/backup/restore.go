package backup

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// unfinishedKey is the key of a record that is there while a store is being
// filled. No backup is made of such a store.
const unfinishedKey = "restore_unfinished"

// A batch is kept well below what a store takes in one; but for the last record of
// it, which may be as large as any.
const (
	batchBytes   = 128 << 10
	batchRecords = 1000
)

// ErrUnfinished says that a store holds only a part of what was to be restored.
var ErrUnfinished = errors.New("the store holds a restore, or a copy, that was not finished: run it again")

// ErrNotEmpty says that a store can't be filled.
var ErrNotEmpty = errors.New("the store is not empty: move it away first, or name another one")

// CheckFinished returns ErrUnfinished where the store is not whole.
func CheckFinished(ctx context.Context, st store.Store) error {
	_, err := st.Get(ctx, unfinishedKey)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return ErrUnfinished
}

// Fill writes the records of a backup into a store that has none, and then calls
// then. Until that has succeeded too, the store is marked as not finished; what
// it holds in that state is removed when Fill begins again.
func Fill(ctx context.Context, st store.Store, r io.Reader, then func() error) error {
	if err := begin(ctx, st); err != nil {
		return err
	}
	var batch store.Batch
	size := 0
	_, err := Read(r, func(record store.Record) error {
		batch.Puts = append(batch.Puts, record)
		if size += len(record.Key) + len(record.Value); size < batchBytes && len(batch.Puts) < batchRecords {
			return nil
		}
		full := batch
		batch, size = store.Batch{}, 0
		return st.Commit(ctx, full)
	})
	if err != nil {
		return err
	}
	if err := st.Commit(ctx, batch); err != nil {
		return err
	}
	if err := then(); err != nil {
		return err
	}
	return unmark(ctx, st)
}

// begin marks a store as not finished, and empties it where it was so before.
func begin(ctx context.Context, st store.Store) error {
	if err := mark(ctx, st); err != nil {
		return err
	}
	for {
		keys, err := someKeys(ctx, st)
		if err != nil || len(keys) == 0 {
			return err
		}
		if err := remove(ctx, st, keys); err != nil {
			return err
		}
	}
}

// mark marks an empty store as not finished, unless it is already. It returns
// ErrNotEmpty where it is neither.
func mark(ctx context.Context, st store.Store) error {
	err := CheckFinished(ctx, st)
	if errors.Is(err, ErrUnfinished) {
		return nil
	}
	if err != nil {
		return err
	}
	keys, err := someKeys(ctx, st)
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		return ErrNotEmpty
	}
	return st.Commit(ctx, store.Batch{Puts: []store.Record{{Key: unfinishedKey}}})
}

func unmark(ctx context.Context, st store.Store) error {
	return st.Commit(ctx, store.Batch{Deletes: []string{unfinishedKey}})
}

func remove(ctx context.Context, st store.Store, keys []string) error {
	for some := range slices.Chunk(keys, batchRecords) {
		if err := st.Commit(ctx, store.Batch{Deletes: some}); err != nil {
			return err
		}
	}
	return nil
}

// someKeys returns keys of records other than the mark, if there are any.
func someKeys(ctx context.Context, st store.Store) (keys []string, err error) {
	err = st.Scan(ctx, "", func(key string, _ []byte) error {
		if key != unfinishedKey {
			keys = append(keys, key)
		}
		if len(keys) == batchRecords {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return keys, err
}

// errEnough ends a scan.
var errEnough = errors.New("enough")

package backup_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
)

// faulty is a store that loses what it should write, or refuses it after some
// commits.
type faulty struct {
	store.Store
	commits, last int    // it refuses what comes after the last
	puts          int    // that it was asked for
	loses         string // the key of a record
}

func (f *faulty) Commit(ctx context.Context, batch store.Batch) error {
	if f.commits++; f.last > 0 && f.commits > f.last {
		return errBroken
	}
	var kept []store.Record
	for _, record := range batch.Puts {
		if record.Key != f.loses {
			kept = append(kept, record)
		}
	}
	f.puts += len(batch.Puts)
	batch.Puts = kept
	return f.Store.Commit(ctx, batch)
}

func copyAll(t *testing.T, from, to store.Store) (backup.Contents, int, error) {
	t.Helper()
	copied := 0
	all, err := backup.Copy(t.Context(), from, to, func(bytes int) { copied += bytes }, func() error { return nil })
	return all, copied, err
}

// aLargeStore has more than one batch, by number and by size, the last of which one
// record fills.
func aLargeStore(t *testing.T) store.Store {
	t.Helper()
	st := open(t)
	put(t, st, "empty", "", "a", "1", "binary\x00\n\xff", "\x00\n\xff")
	for n := range 10 {
		var many []string
		for m := range 300 {
			many = append(many, fmt.Sprintf("many/%d/%d", n, m), strings.Repeat("x", 100))
		}
		put(t, st, many...)
	}
	put(t, st, "y", strings.Repeat("y", 100_000), "z", strings.Repeat("z", store.MaxValue))
	return st
}

func TestACopyIsTheSame(t *testing.T) {
	from, to := aLargeStore(t), open(t)
	all, copied, err := copyAll(t, from, to)
	if err != nil {
		t.Fatal(err)
	}
	if !same(contents(t, from), contents(t, to)) {
		t.Error("the stores differ")
	}
	bytes := 0
	for key, value := range contents(t, from) {
		bytes += len(key) + len(value)
	}
	if all.Records != 3005 || copied != bytes {
		t.Errorf("%d records, %d bytes, want 3005, %d", all.Records, copied, bytes)
	}
	put(t, from, "a", "2")
	if other, _, err := copyAll(t, from, open(t)); err != nil || other.Records != all.Records || other.Sum == all.Sum {
		t.Errorf("a store with one other value: %d records, the same sum: %v, %v", other.Records, other.Sum == all.Sum, err)
	}
}

func TestACopyGoesOnWhereItWasInterrupted(t *testing.T) {
	from, to := aLargeStore(t), open(t)
	first := &faulty{Store: to, last: 3} // the mark is one
	if _, _, err := copyAll(t, from, first); !errors.Is(err, errBroken) {
		t.Fatalf("Copy = %v", err)
	}
	if err := backup.CheckFinished(t.Context(), to); !errors.Is(err, backup.ErrUnfinished) {
		t.Errorf("CheckFinished = %v, want ErrUnfinished", err)
	}
	before := len(contents(t, to)) - 1
	// What was changed in between is copied again, and what was removed, removed.
	put(t, from, "a", "changed")
	if err := from.Commit(t.Context(), store.Batch{Deletes: []string{"empty", "many/0/0"}}); err != nil {
		t.Fatal(err)
	}
	second := &faulty{Store: to}
	all, _, err := copyAll(t, from, second)
	if err != nil {
		t.Fatal(err)
	}
	if !same(contents(t, from), contents(t, to)) {
		t.Error("the stores differ")
	}
	if want := 3005 - before + 1; before < 500 || second.puts != want || all.Records != 3003 {
		t.Errorf("after %d records it wrote %d, want %d; all are %d", before, second.puts, want, all.Records)
	}
	if err := backup.CheckFinished(t.Context(), to); err != nil {
		t.Error(err)
	}
}

func TestACopyThatIsNotTheSameStaysUnfinished(t *testing.T) {
	from, to := aLargeStore(t), open(t)
	if _, _, err := copyAll(t, from, &faulty{Store: to, loses: "many/5/7"}); !errors.Is(err, backup.ErrDiffers) {
		t.Errorf("Copy = %v, want ErrDiffers", err)
	}
	if err := backup.CheckFinished(t.Context(), to); !errors.Is(err, backup.ErrUnfinished) {
		t.Errorf("CheckFinished = %v, want ErrUnfinished", err)
	}
	if _, err := backup.Copy(t.Context(), from, to, func(int) {}, func() error { return errBroken }); !errors.Is(err, errBroken) {
		t.Errorf("Copy = %v", err)
	}
	if err := backup.CheckFinished(t.Context(), to); !errors.Is(err, backup.ErrUnfinished) {
		t.Errorf("after one whose end has failed, CheckFinished = %v, want ErrUnfinished", err)
	}
	if _, _, err := copyAll(t, from, to); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestOnlyAWholeStoreIsCopiedAndOnlyIntoAnEmptyOne(t *testing.T) {
	from, to := aLargeStore(t), open(t)
	put(t, to, "b", "2")
	if _, _, err := copyAll(t, from, to); !errors.Is(err, backup.ErrNotEmpty) {
		t.Errorf("Copy = %v, want ErrNotEmpty", err)
	}
	if got := contents(t, to); !same(got, map[string]string{"b": "2"}) {
		t.Errorf("the store now holds %v", got)
	}
	part := open(t)
	if _, _, err := copyAll(t, from, &faulty{Store: part, last: 2}); !errors.Is(err, errBroken) {
		t.Fatalf("Copy = %v", err)
	}
	empty := open(t)
	if _, _, err := copyAll(t, part, empty); !errors.Is(err, backup.ErrUnfinished) || len(contents(t, empty)) > 0 {
		t.Errorf("Copy of a part = %v, want ErrUnfinished", err)
	}
}

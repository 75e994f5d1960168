package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// seenWhole changes records together, while others read them.
func seenWhole(t *testing.T, d *database) {
	const together = 20
	st := d.open(t)
	write := func(ctx context.Context, n int) error {
		var batch store.Batch
		for i := range together {
			batch.Puts = append(batch.Puts, records(fmt.Sprintf("all/%02d", i), strconv.Itoa(n))...)
		}
		// One record is always there, under one of two keys.
		batch.Puts = append(batch.Puts, records(fmt.Sprint("one/", n%2), "")...)
		batch.Deletes = []string{fmt.Sprint("one/", (n+1)%2)}
		return st.Commit(ctx, batch)
	}
	if err := write(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	var looks atomic.Int32
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !over.Load() && !t.Failed() {
				if err := lookWhole(t, st, together); err != nil {
					t.Error(err)
				}
				looks.Add(1)
			}
		})
	}
	for n := 0; (n < 100 || looks.Load() < 100) && !t.Failed(); n++ {
		if err := write(t.Context(), n+1); err != nil {
			t.Error(err)
		}
	}
	over.Store(true)
	readers.Wait()
}

func lookWhole(t *testing.T, st store.Store, together int) error {
	before, _, err := numberOf(t.Context(), st, fmt.Sprintf("all/%02d", together-1))
	if err != nil {
		return err
	}
	values := map[string]int{}
	ones, seen := 0, 0
	err = st.Scan(t.Context(), "", func(key string, value []byte) (err error) {
		if key == "one/0" || key == "one/1" {
			ones++
			return nil
		}
		seen, err = strconv.Atoi(string(value))
		values[string(value)]++
		return err
	})
	switch {
	case err != nil:
		return err
	case len(values) != 1 || values[strconv.Itoa(seen)] != together || ones != 1:
		return fmt.Errorf("a Scan saw half of a batch: records by value: %v, and %d that should be 1", values, ones)
	case seen < before:
		return fmt.Errorf("a Scan saw batch %d, after a Get had seen batch %d", seen, before)
	}
	after, _, err := numberOf(t.Context(), st, "all/00")
	if err == nil && after < seen {
		err = fmt.Errorf("a Get saw batch %d, after a Scan had seen batch %d", after, seen)
	}
	return err
}

func increments(t *testing.T, d *database) { countUp(t, d.open(t)) }

// countUp has many increment one number, through all stores of one database.
func countUp(t *testing.T, stores ...store.Store) {
	const each = 20
	var group sync.WaitGroup
	for _, st := range stores {
		for range 8 / len(stores) {
			group.Go(func() {
				for range each {
					if err := increment(t.Context(), st); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	group.Wait()
	for _, st := range stores {
		if n, _, err := numberOf(t.Context(), st, "number"); err != nil || n != 8*each {
			t.Errorf("after %d increments the number is %d, %v", 8*each, n, err)
		}
	}
}

func increment(ctx context.Context, st store.Store) error {
	for range maxTries {
		n, value, err := numberOf(ctx, st, "number")
		if err != nil {
			return err
		}
		err = st.Commit(ctx, store.Batch{
			Conditions: []store.Condition{{Key: "number", Value: value}},
			Puts:       records("number", strconv.Itoa(n+1)),
		})
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return errors.New("an increment is in vain for ever")
}

// oneWins has commits at once of which each breaks the conditions of the others: on
// the record that it writes, and on one that it only reads.
func oneWins(t *testing.T, d *database) {
	const rivals = 8
	st := d.open(t)
	for round := range 20 {
		key := func(n int) string { return fmt.Sprintf("%d/%d", round, n) }
		commit(t, st, store.Batch{Puts: records(key(rivals), "before")})
		for name, batch := range map[string]func(n int) store.Batch{
			"of a new record": func(n int) store.Batch {
				return store.Batch{Conditions: []store.Condition{{Key: key(0)}}, Puts: records(key(0), strconv.Itoa(n))}
			},
			"of a record": func(n int) store.Batch {
				return store.Batch{Conditions: []store.Condition{{Key: key(rivals), Value: []byte("before")}}, Puts: records(key(rivals), strconv.Itoa(n))}
			},
			"of others' records": func(n int) (batch store.Batch) {
				for other := range rivals {
					if other != n {
						batch.Conditions = append(batch.Conditions, store.Condition{Key: key(other) + "/other"})
					}
				}
				batch.Puts = records(key(n)+"/other", "")
				return batch
			},
		} {
			if won := race(t, st, rivals, batch); won != 1 {
				t.Errorf("%s: %d commits won, want 1", name, won)
			}
		}
	}
}

// race has batches committed at once, and returns how many were.
func race(t *testing.T, st store.Store, rivals int, batch func(n int) store.Batch) int32 {
	t.Helper()
	var won atomic.Int32
	start := make(chan struct{})
	var all sync.WaitGroup
	for n := range rivals {
		all.Go(func() {
			<-start
			switch err := st.Commit(t.Context(), batch(n)); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, store.ErrConflict):
				t.Errorf("Commit = %v, want ErrConflict", err)
			}
		})
	}
	close(start)
	all.Wait()
	return won.Load()
}

// manyAtOnce has many do what they like, each with records of its own, and compare
// after each step.
func manyAtOnce(t *testing.T, d *database) {
	st := d.open(t)
	var mu sync.Mutex
	all := map[string]string{}
	var group sync.WaitGroup
	for w := range 16 {
		group.Go(func() {
			own, err := wander(t.Context(), st, fmt.Sprintf("%02d/", w))
			if err != nil {
				t.Errorf("%d: %v", w, err)
			}
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(all, own)
		})
	}
	group.Wait()
	if !t.Failed() {
		expect(t, st, all)
		expect(t, d.reopen(t, st), all)
	}
}

// wander changes the records of a prefix at random, and returns what should be there
// in the end.
func wander(ctx context.Context, st store.Store, prefix string) (map[string]string, error) {
	own := map[string]string{}
	for step := range 40 {
		var batch store.Batch
		for range 1 + rand.IntN(4) {
			key := prefix + strconv.Itoa(rand.IntN(30))
			if rand.IntN(3) == 0 {
				batch.Deletes = append(batch.Deletes, key)
			} else {
				batch.Puts = append(batch.Puts, records(key, strconv.Itoa(step))...)
			}
			condition := store.Condition{Key: key}
			if value, found := own[key]; found {
				condition.Value = []byte(value)
			}
			batch.Conditions = append(batch.Conditions, condition)
		}
		if err := st.Commit(ctx, batch); err != nil {
			return nil, fmt.Errorf("step %d: Commit: %w", step, err)
		}
		for _, record := range batch.Puts {
			own[record.Key] = string(record.Value)
		}
		for _, key := range batch.Deletes {
			delete(own, key)
		}
		if err := holdsExactly(ctx, st, prefix, own); err != nil {
			return nil, fmt.Errorf("step %d: %w", step, err)
		}
	}
	return own, nil
}

func holdsExactly(ctx context.Context, st store.Store, prefix string, want map[string]string) error {
	n := 0
	err := st.Scan(ctx, prefix, func(key string, value []byte) error {
		n++
		if is, found := want[key]; !found || is != string(value) {
			return fmt.Errorf("%q is %q, want %q (there: %v)", key, value, is, found)
		}
		return nil
	})
	if err == nil && n != len(want) {
		err = fmt.Errorf("there are %d records, want %d", n, len(want))
	}
	return err
}

package badger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

const writers = 64

// Each transaction is synced to the disk: to share one is to share a sync.
func TestCommitsThatWaitForTheDiskShareATransaction(t *testing.T) {
	const each = 20
	st := openIn(t, t.TempDir())
	before := st.db.MaxVersion()
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for n := range each {
				key := fmt.Sprintf("%d/%d", w, n)
				err := st.Commit(context.Background(), store.Batch{Conditions: []store.Condition{{Key: key}}, Puts: records(key, "x")})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	transactions := st.db.MaxVersion() - before
	t.Logf("%d commits in %d transactions", writers*each, transactions)
	if transactions > writers*each/8 {
		t.Errorf("%d commits took %d transactions", writers*each, transactions)
	}
	if n := len(contents(t, st, "")); n != writers*each {
		t.Errorf("%d records are there, want %d", n, writers*each)
	}
}

func operations(batches ...store.Batch) (all []*operation) {
	for _, batch := range batches {
		all = append(all, &operation{Batch: batch, done: make(chan struct{})})
	}
	return all
}

func TestMergedOperationsAreCarriedOutOneAfterTheOther(t *testing.T) {
	st := openIn(t, t.TempDir())
	put(t, st, "gone", "1")
	version := st.db.MaxVersion()
	all := operations(
		store.Batch{Conditions: []store.Condition{{Key: "a"}}, Puts: records("a", "1"), Deletes: []string{"gone"}},
		store.Batch{Conditions: []store.Condition{{Key: "a"}}, Puts: records("a", "2", "b", "2")},                          // the first is before it
		store.Batch{Conditions: []store.Condition{{Key: "a", Value: []byte("1")}, {Key: "gone"}}, Puts: records("a", "3")}, // and has done this
		store.Batch{Puts: records("c", "4")},
	)
	st.committer.carryOut(all)
	for n, want := range []error{nil, store.ErrConflict, nil, nil} {
		<-all[n].done
		if !errors.Is(all[n].err, want) {
			t.Errorf("operation %d = %v, want %v", n, all[n].err, want)
		}
	}
	expect(t, st, "a=3", "c=4")
	if n := st.db.MaxVersion() - version; n != 1 {
		t.Errorf("they took %d transactions", n)
	}
}

func TestAnOperationThatCannotBeWrittenFailsAlone(t *testing.T) {
	st := openIn(t, t.TempDir())
	all := operations(
		store.Batch{Puts: records("a", "1")},
		store.Batch{Puts: records("b", "1", strings.Repeat("k", 70_000), "1")},
		store.Batch{Conditions: []store.Condition{{Key: "a", Value: []byte("1")}, {Key: "b"}}, Puts: records("c", "1")},
	)
	st.committer.carryOut(all)
	for n, want := range []bool{false, true, false} {
		<-all[n].done
		if failed := all[n].err != nil; failed != want {
			t.Errorf("operation %d = %v", n, all[n].err)
		}
	}
	expect(t, st, "a=1", "c=1")
}

// More than fits into one transaction, all at once.
func TestLargeCommitsAreNotMergedBeyondWhatATransactionTakes(t *testing.T) {
	st := openIn(t, t.TempDir())
	value := strings.Repeat("x", int(st.db.MaxBatchSize()/4))
	var group sync.WaitGroup
	for n := range 16 {
		group.Go(func() {
			if err := st.Commit(context.Background(), store.Batch{Puts: records(fmt.Sprint(n), value)}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := len(contents(t, st, "")); n != 16 {
		t.Errorf("%d records are there, want 16", n)
	}
}

func TestACommitWhoseTurnDoesNotComeEndsWithItsContext(t *testing.T) {
	idle := &committer{waiting: make(chan *operation)}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() { result <- idle.commit(ctx, store.Batch{Puts: records("a", "1")}) }()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("commit = %v, want Canceled", err)
	}
}

func TestAPanicWhileWritingIsAnErrorToWhoWaits(t *testing.T) {
	broken := &committer{} // it has no database
	all := operations(store.Batch{Puts: records("a", "1")}, store.Batch{Puts: records("b", "1")})
	broken.carryOut(all)
	for n, op := range all {
		if <-op.done; op.err == nil {
			t.Errorf("operation %d succeeded", n)
		}
	}
}

// What a condition has read is not read again when what takes its place is counted.
func TestTheTallyAgreesHoweverOperationsMeet(t *testing.T) {
	st := openIn(t, t.TempDir())
	random := rand.New(rand.NewPCG(1, 2))
	values := make(map[string][]byte)
	conflicts := 0
	for range 60 { // in less time than the committer rests between looks at the disk
		var merged []*operation
		for range 1 + random.IntN(5) {
			op := &operation{done: make(chan struct{})}
			for range 1 + random.IntN(4) {
				key, value := fmt.Sprint(random.IntN(8)), fmt.Append([]byte{}, random.IntN(100))
				switch random.IntN(4) {
				case 0:
					op.Puts = append(op.Puts, store.Record{Key: key, Value: value})
				case 1:
					op.Deletes = append(op.Deletes, key)
				case 2:
					op.Conditions = append(op.Conditions, store.Condition{Key: key, Value: values[key]})
				default:
					op.Conditions = append(op.Conditions, store.Condition{Key: key, Value: values[key]})
					op.Puts = append(op.Puts, store.Record{Key: key, Value: value})
				}
			}
			merged = append(merged, op)
		}
		st.committer.carryOut(merged)
		for _, op := range merged {
			switch {
			case errors.Is(op.err, store.ErrConflict):
				conflicts++
				continue
			case op.err != nil:
				t.Fatal(op.err)
			}
			for _, record := range op.Puts {
				values[record.Key] = record.Value
			}
			for _, key := range op.Deletes {
				delete(values, key)
			}
		}
		recorded, err := recordedTally(st.db)
		if err != nil {
			t.Fatal(err)
		}
		records, sum, err := count(st.db, func(_ string, err error) error { return err })
		if err != nil || records != recorded.records || sum != recorded.sum || records != uint64(len(values)) {
			t.Fatalf("%v: the tally is %+v; there are %d records of sum %d, and should be %d", err, recorded, records, sum, len(values))
		}
	}
	if conflicts == 0 || conflicts > 100 {
		t.Errorf("%d operations conflicted: the test tests little", conflicts)
	}
	for key, value := range values {
		if now, err := st.Get(t.Context(), key); err != nil || !bytes.Equal(now, value) {
			t.Errorf("%s is %q, %v, want %q", key, now, err, value)
		}
	}
}

// What merging gains, on the disk that has the tests' directories.
func BenchmarkDurableCommits(b *testing.B) {
	var one sync.Mutex
	for name, commit := range map[string]func(*database, store.Batch) error{
		"merged": func(st *database, batch store.Batch) error { return st.Commit(context.Background(), batch) },
		"one transaction each": func(st *database, batch store.Batch) error {
			one.Lock()
			defer one.Unlock()
			op := &operation{Batch: batch}
			return errors.Join(st.committer.transact([]*operation{op}), op.err)
		},
		"one transaction each, of Badger's own, without a head": func(st *database, batch store.Batch) error {
			txn := begin(st.db)
			defer txn.Discard()
			if err := (&operation{Batch: batch}).write(txn); err != nil {
				return err
			}
			return txn.Commit()
		},
	} {
		b.Run(name, func(b *testing.B) {
			st := openIn(b, b.TempDir())
			before := st.db.MaxVersion()
			work := make(chan int)
			var group sync.WaitGroup
			for range writers {
				group.Go(func() {
					for n := range work {
						if err := commit(st, store.Batch{Puts: records(fmt.Sprint(n), "x")}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			n := 0
			for b.Loop() {
				work <- n
				n++
			}
			close(work)
			group.Wait()
			b.ReportMetric(float64(st.db.MaxVersion()-before)/float64(n), "transactions/op")
		})
	}
}

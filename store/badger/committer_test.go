package badger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	badgerdb "github.com/dgraph-io/badger/v4"

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
			return st.db.Update(func(txn *badgerdb.Txn) error { return (&operation{Batch: batch}).write(txn, new(tally)) })
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

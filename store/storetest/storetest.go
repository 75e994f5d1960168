// Package storetest tells whether an engine is what package store promises. Its
// tests have engines that are broken, each in one way, and the check that finds it.
//
// What it can't tell is whether that which was acknowledged outlives a machine that
// loses its power: a process that is killed leaves in the kernel's hands what it has
// written. An engine needs a test of its own for that, which counts its syncs.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Run tries an engine, each promise in a subtest. If its stores are of the kind
// store.Shared, it tries those promises, too.
//
// create makes an empty database, which is removed when its test ends, and returns
// where it is. open opens the database that is there: one after the other, or, if
// they are shared, several at once. It does so in other processes, too: these are
// the test's own program, in which t runs again up to this call. So nothing may
// be done before it that a second process can't do.
func Run(t *testing.T, create func(t *testing.T) (where string), open func(ctx context.Context, where string) (store.Store, error)) {
	if role := os.Getenv(roleVariable); role != "" {
		live(t, role, open)
		return
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { c.run(t, &database{create(t), open}) })
	}
	d := &database{create(t), open}
	if _, shared := d.open(t).(store.Shared); !shared {
		return
	}
	for _, c := range sharedChecks {
		t.Run(c.name, func(t *testing.T) { c.run(t, &database{create(t), open}) })
	}
}

type check struct {
	name string
	run  func(t *testing.T, d *database)
}

var checks = []check{
	{"GetReturnsWhatWasPut", getReturnsWhatWasPut},
	{"ValuesAreCopies", valuesAreCopies},
	{"ScanGivesAPrefixInTheOrderOfBytes", scanGivesAPrefix},
	{"ScanFromLeavesOutWhatSortsBefore", scanFromLeavesOut},
	{"ScanEndsWithItsFunctionsError", scanEndsWithError},
	{"ScanSeesOneMoment", scanSeesOneMoment},
	{"LargeBatchesAreTaken", largeBatches},
	{"WhatIsBeyondTheBoundsIsRefusedWhole", beyondTheBounds},
	{"ABatchNeedsAllItsConditions", conditions},
	{"OfChangesOfOneKeyTheLastCounts", lastCounts},
	{"EveryCommitIsCarriedOut", everyCommit},
	{"ABatchIsSeenWholeOrNotAtAll", seenWhole},
	{"ConditionsHoldAmongConcurrentCommits", increments},
	{"OfCommitsThatExcludeEachOtherOneWins", oneWins},
	{"ManyAtOnceDisturbNobody", manyAtOnce},
	{"AContextThatEndedEndsEveryCall", contexts},
	{"CloseWaitsForWhatIsUnderWay", closeWaits},
	{"AfterCloseEveryCallSaysSo", afterClose},
	{"CloseUnderLoadLosesNothing", closeUnderLoad},
	{"AKilledProcessLosesNothing", killed},
}

// patience is how long the suite waits for what should happen at once.
var patience = time.Minute

// maxTries is how often a change may be made in vain because of others, at most.
const maxTries = 10_000

// database is a database that a check has to itself.
type database struct {
	where  string
	opener func(ctx context.Context, where string) (store.Store, error)
}

// open returns a store of the database that closes with the test, at the latest.
func (d *database) open(t *testing.T) store.Store {
	t.Helper()
	st, err := d.opener(t.Context(), d.where)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// reopen closes a store and opens the database again.
func (d *database) reopen(t *testing.T, st store.Store) store.Store {
	t.Helper()
	if err := st.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return d.open(t)
}

func commit(t *testing.T, st store.Store, batch store.Batch) {
	t.Helper()
	if err := st.Commit(t.Context(), batch); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// records returns those of keys and values that follow each other.
func records(keysAndValues ...string) (all []store.Record) {
	for n := 0; n < len(keysAndValues); n += 2 {
		all = append(all, store.Record{Key: keysAndValues[n], Value: []byte(keysAndValues[n+1])})
	}
	return all
}

// expect fails unless the store holds exactly these records.
func expect(t *testing.T, st store.Store, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	err := st.Scan(t.Context(), "", func(key string, value []byte) error {
		got[key] = string(value)
		return nil
	})
	if err != nil {
		t.Fatalf("Scan: %v", err)
	}
	for key, value := range want {
		if is, found := got[key]; !found || is != value {
			t.Fatalf("of %d records, and %d that there should be, %.40q is %.40q (there: %v), want %.40q", len(got), len(want), key, is, found, value)
		}
	}
	for key := range got {
		if _, wanted := want[key]; !wanted {
			t.Fatalf("of %d records, and %d that there should be, %.40q is there, and should not be", len(got), len(want), key)
		}
	}
	asked := 0
	for key, value := range want {
		if asked++; asked > 300 { // of thousands, some
			break
		}
		if is, err := st.Get(t.Context(), key); err != nil || string(is) != value {
			t.Fatalf("Get(%.40q) = %.40q, %v, want %.40q", key, is, err, value)
		}
	}
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// numberOf returns the number that a record holds, and its value; 0 and nil where
// there is none.
func numberOf(ctx context.Context, st store.Store, key string) (n int, value []byte, err error) {
	value, err = st.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil, nil
	}
	if err == nil {
		_, err = fmt.Sscan(string(value), &n)
	}
	return n, value, err
}

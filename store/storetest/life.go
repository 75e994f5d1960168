package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// calls has each call of a store that does something.
func calls(ctx context.Context, st store.Store) map[string]func() error {
	none := func(string, []byte) error { return errors.New("it gave a record") }
	all := map[string]func() error{
		"Get":      func() error { _, err := st.Get(ctx, "a"); return err },
		"Scan":     func() error { return st.Scan(ctx, "", none) },
		"ScanFrom": func() error { return st.ScanFrom(ctx, "", "", none) },
		"Commit":   func() error { return st.Commit(ctx, store.Batch{Puts: records("a", "2")}) },
	}
	if shared, is := st.(store.Shared); is {
		all["Follow"] = func() error { return shared.Follow(ctx, newFollower()) }
		all["Await"] = func() error { return shared.Await(ctx) }
	}
	return all
}

func contexts(t *testing.T, d *database) {
	st := d.open(t)
	want := map[string]string{"a": "1", "b": "1"}
	commit(t, st, store.Batch{Puts: of(want)})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	for _, ctx := range []context.Context{cancelled, expired} {
		for name, call := range calls(ctx, st) {
			if err := call(); name != "Await" && !errors.Is(err, ctx.Err()) {
				t.Errorf("%s = %v, want %v", name, err, ctx.Err())
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	err := st.Scan(ctx, "", func(string, []byte) error { seen++; cancel(); return nil })
	if !errors.Is(err, context.Canceled) || seen != 1 {
		t.Errorf("a Scan whose context ends = %v after %d records, want Canceled after 1", err, seen)
	}
	expect(t, st, want)
	cancelWhileCommitting(t, st)
}

// cancelWhileCommitting looks for halves of batches whose context has ended.
func cancelWhileCommitting(t *testing.T, st store.Store) {
	t.Helper()
	for n := range 50 {
		left, right := fmt.Sprintf("%d/left", n), fmt.Sprintf("%d/right", n)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*50*time.Microsecond)
		err := st.Commit(ctx, store.Batch{Puts: records(left, "1", right, "1")})
		cancel()
		there := 0
		if err := st.Scan(t.Context(), fmt.Sprintf("%d/", n), func(string, []byte) error { there++; return nil }); err != nil {
			t.Fatal(err)
		}
		if there == 1 || err == nil && there != 2 {
			t.Errorf("a Commit = %v, and %d of its 2 records are there", err, there)
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a Commit whose context ends = %v", err)
		}
	}
}

// closeWaits closes a store in the middle of a scan. That Close waits can't be seen;
// that it does not, mostly can.
func closeWaits(t *testing.T, d *database) {
	st := d.open(t)
	commit(t, st, store.Batch{Puts: records("a", "1", "b", "2", "c", "3")})
	closed := make(chan error, 2)
	var ended atomic.Bool
	seen := 0
	err := st.Scan(t.Context(), "", func(string, []byte) error {
		if seen++; seen == 1 {
			for range 2 {
				go func() {
					err := st.Close()
					if !ended.Load() {
						err = errors.Join(errors.New("it returned before the Scan"), err)
					}
					closed <- err
				}()
			}
		}
		time.Sleep(20 * time.Millisecond)
		ended.Store(seen == 3)
		return nil
	})
	if err != nil || seen != 3 {
		t.Errorf("a Scan under which the store is closed = %v after %d records, want 3", err, seen)
	}
	for range 2 {
		select {
		case err := <-closed:
			if err != nil && !errors.Is(err, store.ErrClosed) {
				t.Errorf("Close = %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Close does not return")
		}
	}
	expect(t, d.open(t), map[string]string{"a": "1", "b": "2", "c": "3"})
}

func afterClose(t *testing.T, d *database) {
	st := d.open(t)
	commit(t, st, store.Batch{Puts: records("a", "1")})
	if err := st.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for range 2 {
		for name, call := range calls(t.Context(), st) {
			if err := call(); !errors.Is(err, store.ErrClosed) {
				t.Errorf("after Close, %s = %v, want ErrClosed", name, err)
			}
		}
		if err := st.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("a second Close = %v", err)
		}
	}
	expect(t, d.open(t), map[string]string{"a": "1"})
}

func closeUnderLoad(t *testing.T, d *database) {
	st := d.open(t)
	var acknowledged sync.Map
	var count atomic.Int32
	var closed atomic.Bool
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d/%d", w, n)
				late := closed.Load()
				err := st.Commit(t.Context(), store.Batch{Puts: records(key, key)})
				if err == nil {
					acknowledged.Store(key, true)
					count.Add(1)
					_, err = st.Get(t.Context(), key)
				}
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil || late {
					t.Errorf("a call while the store is closed, or after that (%v) = %v", late, err)
					return
				}
			}
		})
	}
	eventually(t, "50 commits", func() bool { return count.Load() >= 50 || t.Failed() })
	if err := st.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	closed.Store(true)
	workers.Wait()
	again := d.open(t)
	acknowledged.Range(func(key, _ any) bool {
		if value, err := again.Get(t.Context(), key.(string)); err != nil || string(value) != key {
			t.Errorf("Get(%s) = %q, %v, though its Commit had returned", key, value, err)
		}
		return true
	})
}

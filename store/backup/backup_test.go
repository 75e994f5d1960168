package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// open opens a store on disk that closes with the test.
func open(t *testing.T) store.Store {
	t.Helper()
	engine := &badger.Badger{Path: t.TempDir()}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	st, err := engine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func put(t *testing.T, st store.Store, records ...string) {
	t.Helper()
	var batch store.Batch
	for n := 0; n < len(records); n += 2 {
		batch.Puts = append(batch.Puts, store.Record{Key: records[n], Value: []byte(records[n+1])})
	}
	if err := st.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
}

// contents returns all records of a store.
func contents(t *testing.T, st store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := st.Scan(t.Context(), "", func(key string, value []byte) error {
		all[key] = string(value)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func write(t *testing.T, st store.Store) []byte {
	t.Helper()
	var file bytes.Buffer
	if err := backup.Write(t.Context(), &file, st); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func read(file []byte) error {
	_, err := backup.Read(bytes.NewReader(file), func(store.Record) error { return nil })
	return err
}

func fill(ctx context.Context, st store.Store, file []byte) error {
	return backup.Fill(ctx, st, bytes.NewReader(file), func() error { return nil })
}

func same(a, b map[string]string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

func TestAStoreIsTheSameAfterItWasWrittenAndFilled(t *testing.T) {
	from := open(t)
	put(t, from, "empty", "", "a", "1", "binary\x00\n\xff", "\x00\n\xff", strings.Repeat("k", 1000), strings.Repeat("v", 100_000))
	for n := range 20 { // more than one batch, by number and by size
		var many []string
		for m := range 200 {
			many = append(many, fmt.Sprintf("many/%d/%d", n, m), strings.Repeat("x", 100))
		}
		put(t, from, many...)
		put(t, from, fmt.Sprintf("large/%d", n), strings.Repeat("y", 50_000))
	}
	before := time.Now().Truncate(time.Millisecond)
	file := write(t, from)
	made, err := backup.Read(bytes.NewReader(file), func(store.Record) error { return nil })
	if err != nil || made.Before(before) || made.After(time.Now()) {
		t.Errorf("made %v, %v", made, err)
	}
	to := open(t)
	if err := fill(t.Context(), to, file); err != nil {
		t.Fatal(err)
	}
	if err := backup.CheckFinished(t.Context(), to); err != nil {
		t.Error(err)
	}
	if !same(contents(t, from), contents(t, to)) {
		t.Error("the stores differ")
	}
}

func TestABackupIsOneConsistentView(t *testing.T) {
	st := open(t)
	put(t, st, "a", "0", "z", "0")
	for n := range 5000 {
		put(t, st, fmt.Sprint("m", n), strings.Repeat("x", 10))
	}
	var n atomic.Int64
	var over atomic.Bool
	ended := make(chan struct{})
	go func() { // a and z always have the same value
		defer close(ended)
		for !over.Load() {
			value := []byte(fmt.Sprint(n.Add(1)))
			if err := st.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: "a", Value: value}, {Key: "z", Value: value}}}); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 20 {
		seen := map[string]string{}
		_, err := backup.Read(bytes.NewReader(write(t, st)), func(record store.Record) error {
			seen[record.Key] = string(record.Value)
			return nil
		})
		if err != nil || seen["a"] != seen["z"] || len(seen) != 5002 {
			t.Errorf("%d records, a=%s, z=%s, %v", len(seen), seen["a"], seen["z"], err)
		}
	}
	over.Store(true)
	<-ended
	if n.Load() < 20 {
		t.Errorf("only %d changes were made meanwhile", n.Load())
	}
}

func TestABackupThatWasDamagedAnywhereIsRefused(t *testing.T) {
	st := open(t)
	put(t, st, "a", "1", "b", strings.Repeat("x", 200), "c", "")
	file := write(t, st)
	if err := read(file); err != nil {
		t.Fatal(err)
	}
	for n := range file {
		if err := read(file[:n]); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("cut off after %d bytes of %d: %v", n, len(file), err)
		}
		for _, flip := range []byte{1, 0x80, 0xff} {
			broken := bytes.Clone(file)
			broken[n] ^= flip
			if err := read(broken); err == nil {
				t.Errorf("byte %d of %d turned from %q into %q: no error", n, len(file), file[n], broken[n])
			}
		}
		if err := read(append(bytes.Clone(file[:n]), file[min(n+1, len(file)):]...)); err == nil {
			t.Errorf("without byte %d: no error", n)
		}
	}
	if err := read(append(bytes.Clone(file), 0)); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("with a byte more: %v", err)
	}
	for _, other := range []string{"", "\n", "{}\n", `{"format":"another"}` + "\n", strings.Repeat("x", 1<<20)} {
		if err := read([]byte(other)); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("%.20q: %v", other, err)
		}
	}
}

// The checksum alone does not make a backup: a writer may have been wrong.
func TestAWrongNumberOfRecordsIsRefused(t *testing.T) {
	st := open(t)
	put(t, st, "a", "1", "b", "2")
	file := write(t, st)
	short := bytes.Replace(file, []byte("\x01b\x012"), nil, 1)
	short = short[:len(short)-sha256.Size]
	sum := sha256.Sum256(short)
	if err := read(append(short, sum[:]...)); !errors.Is(err, backup.ErrDamaged) || !strings.Contains(err.Error(), "number") {
		t.Errorf("Read = %v", err)
	}
}

func TestANewerFormatIsRefusedByName(t *testing.T) {
	st := open(t)
	put(t, st, "a", "1")
	newer := bytes.Replace(write(t, st), []byte(`"version":1`), []byte(`"version":2`), 1)
	err := read(newer)
	if err == nil || errors.Is(err, backup.ErrDamaged) || !strings.Contains(err.Error(), "format version 2") {
		t.Errorf("Read = %v", err)
	}
}

func TestOnlyAnEmptyStoreIsFilled(t *testing.T) {
	from, to := open(t), open(t)
	put(t, from, "a", "1")
	put(t, to, "b", "2")
	if err := fill(t.Context(), to, write(t, from)); !errors.Is(err, backup.ErrNotEmpty) {
		t.Errorf("Fill = %v, want ErrNotEmpty", err)
	}
	if got := contents(t, to); !same(got, map[string]string{"b": "2"}) {
		t.Errorf("the store now holds %v", got)
	}
}

// brokenAfter gives up after so many bytes.
func brokenAfter(n int, file []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(file[:n]), readerFunc(func([]byte) (int, error) { return 0, errBroken }))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

var errBroken = errors.New("broken")

func TestAnInterruptedFillIsNoWholeStoreAndBeginsAnew(t *testing.T) {
	from := open(t)
	for n := range 5000 {
		put(t, from, fmt.Sprint("k", n), strings.Repeat("x", 10))
	}
	file := write(t, from)
	other := open(t)
	put(t, other, "other", "1")

	to := open(t)
	nothing := func() error { return nil }
	failing := func() error { return errBroken }
	for _, attempt := range []func() error{
		func() error { return backup.Fill(t.Context(), to, brokenAfter(100, file), nothing) },
		func() error { return backup.Fill(t.Context(), to, brokenAfter(len(file)/2, file), nothing) },
		func() error { return backup.Fill(t.Context(), to, brokenAfter(len(file)-1, file), nothing) },
		func() error { return backup.Fill(t.Context(), to, bytes.NewReader(file), failing) },
	} {
		if err := attempt(); !errors.Is(err, errBroken) {
			t.Fatalf("Fill = %v", err)
		}
		if err := backup.CheckFinished(t.Context(), to); !errors.Is(err, backup.ErrUnfinished) {
			t.Errorf("CheckFinished = %v, want ErrUnfinished", err)
		}
		if err := backup.Write(t.Context(), io.Discard, to); !errors.Is(err, backup.ErrUnfinished) {
			t.Errorf("a backup of it: %v, want ErrUnfinished", err)
		}
	}
	damaged := bytes.Clone(file)
	damaged[len(damaged)-1]++
	if err := fill(t.Context(), to, damaged); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("Fill = %v, want ErrDamaged", err)
	}
	if err := backup.CheckFinished(t.Context(), to); !errors.Is(err, backup.ErrUnfinished) {
		t.Errorf("after a damaged one, CheckFinished = %v, want ErrUnfinished", err)
	}
	if err := fill(t.Context(), to, write(t, other)); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, to); !same(got, map[string]string{"other": "1"}) {
		t.Errorf("%d records are left of what was interrupted", len(got)-1)
	}
	if err := backup.CheckFinished(t.Context(), to); err != nil {
		t.Error(err)
	}
}

func TestABackupEndsWithItsContextAndItsReader(t *testing.T) {
	st := open(t)
	put(t, st, "a", "1", "b", "2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := backup.Write(ctx, io.Discard, st); !errors.Is(err, context.Canceled) {
		t.Errorf("Write = %v, want Canceled", err)
	}
	r, w := io.Pipe()
	_ = r.Close()
	if err := backup.Write(t.Context(), w, st); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write = %v, want ErrClosedPipe", err)
	}
	calls := 0
	_, err := backup.Read(bytes.NewReader(write(t, st)), func(store.Record) error { calls++; return errBroken })
	if !errors.Is(err, errBroken) || calls != 1 {
		t.Errorf("Read = %v after %d records", err, calls)
	}
}

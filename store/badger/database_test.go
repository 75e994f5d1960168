package badger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func provisioned(t testing.TB, path string) *Badger {
	t.Helper()
	engine := &Badger{Path: path}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return engine
}

func openIn(t testing.TB, path string) *database {
	t.Helper()
	st, err := provisioned(t, path).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st.(*database)
}

func put(t *testing.T, st store.Store, key, value string) {
	t.Helper()
	if err := st.Commit(t.Context(), store.Batch{Puts: records(key, value)}); err != nil {
		t.Fatal(err)
	}
}

func records(keysAndValues ...string) []store.Record {
	var all []store.Record
	for n := 0; n < len(keysAndValues); n += 2 {
		all = append(all, store.Record{Key: keysAndValues[n], Value: []byte(keysAndValues[n+1])})
	}
	return all
}

// contents returns all records of the store, each as key=value.
func contents(t *testing.T, st store.Store, prefix string) []string {
	t.Helper()
	all := []string{}
	err := st.Scan(t.Context(), prefix, func(key string, value []byte) error {
		all = append(all, key+"="+string(value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func expect(t *testing.T, st store.Store, want ...string) {
	t.Helper()
	if got := contents(t, st, ""); !slices.Equal(got, want) {
		t.Errorf("the store holds %q, want %q", got, want)
	}
}

func TestABatchThatDoesNotFitWritesNothing(t *testing.T) {
	st := openIn(t, t.TempDir())
	put(t, st, "a", "1")
	for name, batch := range map[string]store.Batch{
		"a key too long":   {Puts: records("b", "1", strings.Repeat("k", 70_000), "1"), Deletes: []string{"a"}},
		"no key":           {Puts: records("b", "1", "", "1"), Deletes: []string{"a"}},
		"the tally's key":  {Puts: records("b", "1", tallyKey, "1"), Deletes: []string{"a"}},
		"without a tally":  {Puts: records("b", "1"), Deletes: []string{"a", tallyKey}},
		"too many records": {Puts: slices.Concat(records("b", "1"), many(100_000))},
	} {
		if err := st.Commit(t.Context(), batch); err == nil {
			t.Errorf("%s: Commit returned no error", name)
		}
	}
	expect(t, st, "a=1")
}

// A tally that counts itself would not agree with the records at the next start.
func TestAStoreThatWasAskedForTheTallysKeyOpensAgain(t *testing.T) {
	dir := t.TempDir()
	st := openIn(t, dir)
	for _, batch := range []store.Batch{{Puts: records(tallyKey, "1")}, {Deletes: []string{tallyKey}}} {
		if err := st.Commit(t.Context(), batch); err == nil {
			t.Error("Commit returned no error")
		}
	}
	put(t, st, "a", "1")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, openIn(t, dir), "a=1")
}

func many(n int) []store.Record {
	all := make([]store.Record, n)
	for i := range all {
		all[i] = store.Record{Key: fmt.Sprintf("many/%06d", i)}
	}
	return all
}

// raw writes a record past the checksum.
func (d *database) raw(t *testing.T, key string, stored []byte) {
	t.Helper()
	err := d.db.Update(func(txn *badgerdb.Txn) error { return txn.Set([]byte(key), stored) })
	if err != nil {
		t.Fatal(err)
	}
}

func TestADamagedRecordIsAnErrorAndNeverAValue(t *testing.T) {
	good := store.Seal(store.Record{Key: "k", Value: []byte("value")})
	changed := func(n int) []byte {
		damaged := slices.Clone(good)
		damaged[n] ^= 1
		return damaged
	}
	for name, stored := range map[string][]byte{
		"checksum changed":      changed(0),
		"value changed":         changed(4),
		"last byte changed":     changed(len(good) - 1),
		"cut":                   good[:len(good)-1],
		"with a tail":           append(slices.Clone(good), 0),
		"no checksum":           []byte("val"),
		"nothing":               {},
		"four zeros":            make([]byte, 4),
		"moved from another":    store.Seal(store.Record{Key: "other", Value: []byte("value")}),
		"moved from one nearby": store.Seal(store.Record{Key: "kv", Value: []byte("alue")}),
	} {
		t.Run(name, func(t *testing.T) {
			st := openIn(t, t.TempDir())
			put(t, st, "j", "sound")
			st.raw(t, "k", stored)
			if got, err := st.Get(t.Context(), "k"); !errors.Is(err, store.ErrCorrupt) || got != nil {
				t.Errorf("Get = %q, %v, want ErrCorrupt", got, err)
			}
			err := st.Scan(t.Context(), "", func(key string, _ []byte) error {
				if key == "k" {
					t.Error("Scan gave the damaged record")
				}
				return nil
			})
			if !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("Scan = %v, want ErrCorrupt", err)
			}
			for _, condition := range []store.Condition{{Key: "k"}, {Key: "k", Value: []byte("value")}} {
				err := st.Commit(t.Context(), store.Batch{Conditions: []store.Condition{condition}, Puts: records("j", "new")})
				if !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("Commit = %v, want ErrCorrupt", err)
				}
			}
			if got, err := st.Get(t.Context(), "j"); err != nil || string(got) != "sound" {
				t.Errorf("the sound record is %q, %v", got, err)
			}
		})
	}
}

func TestARecordMovedToAnotherKeyIsDamaged(t *testing.T) {
	st := openIn(t, t.TempDir())
	put(t, st, "credential/1", "active")
	var stored []byte
	err := st.db.View(func(txn *badgerdb.Txn) error {
		item, err := txn.Get([]byte("credential/1"))
		if err == nil {
			stored, err = item.ValueCopy(nil)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	st.raw(t, "credential/2", stored)
	if _, err := st.Get(t.Context(), "credential/2"); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Get = %v, want ErrCorrupt", err)
	}
}

func TestCloseWaitsForAScanUnderWay(t *testing.T) {
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	put(t, st, "b", "2")

	inside, goOn := make(chan struct{}), make(chan struct{})
	scanned := make(chan error)
	var seen atomic.Int32
	go func() {
		scanned <- st.Scan(context.Background(), "", func(string, []byte) error {
			if seen.Add(1) == 1 {
				close(inside)
				<-goOn
			}
			return nil
		})
	}()
	<-inside

	closed := make(chan error, 3)
	for range 3 {
		go func() { closed <- st.Close() }()
	}
	for st.gate.TryRLock() { // until a Close stands at the gate
		st.gate.RUnlock()
		runtime.Gosched()
	}
	late := make(chan error)
	go func() {
		_, err := st.Get(context.Background(), "a")
		late <- err
	}()
	select {
	case err := <-closed:
		t.Fatalf("Close returned %v while a Scan was under way", err)
	case err := <-late:
		t.Fatalf("a Get behind Close returned %v before the Scan had ended", err)
	default:
	}

	close(goOn)
	if err := <-scanned; err != nil || seen.Load() != 2 {
		t.Errorf("Scan = %v after %d records, want 2", err, seen.Load())
	}
	for range 3 {
		if err := <-closed; err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("Close = %v", err)
		}
	}
	if err := <-late; !errors.Is(err, store.ErrClosed) {
		t.Errorf("Get behind Close = %v, want ErrClosed", err)
	}
	expect(t, openIn(t, dir), "a=1", "b=2")
}

func TestASecondOpenSaysWhoMayHoldTheStoreAndWhatToDo(t *testing.T) {
	t.Parallel() // it waits out the patience
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	second, err := provisioned(t, dir).Open(t.Context())
	if err == nil {
		_ = second.Close()
		t.Fatal("the directory was opened twice")
	}
	for _, part := range []string{dir, "held by another process", "caddy reload", "stop it"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q: %v", part, err)
		}
	}
	expect(t, st, "a=1")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, openIn(t, dir), "a=1")
}

func TestACancelledContextEndsTheWaitForTheLock(t *testing.T) {
	dir := t.TempDir()
	openIn(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := provisioned(t, dir).Open(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v, want Canceled", err)
	}
}

func TestOpenGetsTheStoreAsSoonAsItIsLetGo(t *testing.T) {
	dir := t.TempDir()
	first := openIn(t, dir)
	put(t, first, "a", "1")
	opened := make(chan error)
	engine := provisioned(t, dir)
	go func() {
		st, err := engine.Open(context.Background())
		if err == nil {
			err = st.Close()
		}
		opened <- err
	}()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestAnOpenThatCannotSucceedFailsAtOnceAndNamesTheDirectory(t *testing.T) {
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := provisioned(t, dir).Open(t.Context())
	if err == nil {
		_ = got.Close()
		t.Fatal("a broken store was opened")
	}
	if !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "another process") {
		t.Errorf("the error misleads: %v", err)
	}
}

func TestOneDirectoryHasOneIdentityHoweverItIsSpelled(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(base, "real")
	for _, dir := range []string{target, filepath.Join(target, "db"), filepath.Join(base, "elsewhere")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"link": "real", "chain": "link", "absolute": target, "elsewhere/up": "../link"} {
		if err := os.Symlink(to, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(base)
	for path, want := range map[string]string{
		"real/db":                           "real/db",
		"./real/../real/db/":                "real/db",
		"link/db":                           "real/db",
		"chain/db":                          "real/db",
		"absolute/db":                       "real/db",
		"elsewhere/up/db":                   "real/db",
		filepath.Join(base, "link", "db"):   "real/db",
		"link/new":                          "real/new",
		"link/new/deeper/still":             "real/new/deeper/still",
		"chain/../chain/new":                "real/new",
		"elsewhere/up/new/":                 "real/new",
		"{env.STORE_TEST_BASE}/link/new":    "real/new",
		filepath.Join(base, "other", "new"): "other/new",
	} {
		t.Setenv("STORE_TEST_BASE", base)
		if got := provisioned(t, path).Identity(); got != "badger:"+filepath.Join(base, want) {
			t.Errorf("the identity of %s is %s, want that of %s", path, got, want)
		}
	}
	if entries, _ := os.ReadDir(base); len(entries) != 5 {
		t.Errorf("Provision left something in %v", entries)
	}
	openIn(t, "real/new")
	if got := provisioned(t, "link/new").Identity(); got != "badger:"+filepath.Join(target, "new") {
		t.Errorf("the identity is %s once the directory is there", got)
	}
}

func TestAPathThatCanBeNoDirectoryIsRefused(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	loop := filepath.Join(base, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "db"), loop, filepath.Join(loop, "db"), "{env.STORE_TEST_UNSET}/db", "{no.such.placeholder}"} {
		err := (&Badger{Path: path}).Provision(caddy.Context{})
		if err == nil || !strings.Contains(err.Error(), "store path") {
			t.Errorf("Provision of %s = %v, want an error that names the store path", path, err)
		}
	}
}

func TestTheDirectoryIsForItsOwnerOnly(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	base := t.TempDir()
	put(t, openIn(t, filepath.Join(base, "parent", "db")), "a", "1")
	err := filepath.WalkDir(filepath.Join(base, "parent"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if entry.IsDir() && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, want 0700", path, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A copy of the files, taken while the store is open, is what a crash of the
// process leaves behind.
func TestAnAcknowledgedCommitIsInTheFilesBeforeClose(t *testing.T) {
	dir, left := t.TempDir(), t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	put(t, st, "b", "2")
	if err := st.Commit(t.Context(), store.Batch{Puts: records("a", "3"), Deletes: []string{"b"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(left, "db"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	expect(t, openIn(t, filepath.Join(left, "db")), "a=3")
}

func TestTheStoreIsOpenedDurableAndSmall(t *testing.T) {
	opts := openIn(t, t.TempDir()).db.Opts()
	if !opts.SyncWrites {
		t.Error("a reply does not wait for the disk")
	}
	if !opts.DetectConflicts {
		t.Error("conditions are not checked against other commits")
	}
	if opts.InMemory || opts.ReadOnly || opts.BypassLockGuard {
		t.Error("the store is not kept on disk by one process alone")
	}
	if opts.ChecksumVerificationMode != options.OnTableRead {
		t.Errorf("tables are checked in mode %v", opts.ChecksumVerificationMode)
	}
	if opts.Compression != options.None || opts.BlockCacheSize != 0 || opts.IndexCacheSize != 0 ||
		opts.MemTableSize != 8<<20 || opts.NumMemtables != 2 || opts.ValueLogFileSize != 16<<20 {
		t.Errorf("the sizes are not those of the design: %+v", opts)
	}
}

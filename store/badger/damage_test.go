package badger

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	badgerdb "github.com/dgraph-io/badger/v4"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// image is what the files of a store held at one moment.
type image map[string]imageFile

// imageFile is a file without the zeros at its end, and its size with them.
type imageFile struct {
	content []byte
	size    int64
}

func take(t *testing.T, dir string) image {
	t.Helper()
	files := make(image)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == ballastFile || entry.Name() == "LOCK" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = imageFile{bytes.TrimRight(content, "\x00"), int64(len(content))}
	}
	return files
}

// put writes the files into a new directory.
func (i image) put(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, file := range i {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, file.content, 0o600), os.Truncate(path, file.size)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// with returns the image with another content of one file; nil removes it.
func (i image) with(name string, content []byte) image {
	changed := maps.Clone(i)
	delete(changed, name)
	if content != nil {
		changed[name] = imageFile{content, int64(len(content))}
	}
	return changed
}

// flipped returns the image with one bit of a file flipped.
func (i image) flipped(name string, at int) image {
	file := i[name]
	content := make([]byte, max(len(file.content), at+1))
	copy(content, file.content)
	content[at] ^= 1 << (at % 8)
	changed := maps.Clone(i)
	changed[name] = imageFile{content, file.size}
	return changed
}

// cut returns the image with one file ending early.
func (i image) cut(name string, size int) image {
	content := make([]byte, size)
	copy(content, i[name].content)
	return i.with(name, content)
}

// model is what was acknowledged: the records, and every value that any key ever
// had.
type model struct {
	records []string // key=value, in order
	ever    map[string]bool
}

// worn returns the files of a store, as a crash leaves them, that has tables in
// two levels, a log with many transactions, and records that were changed and
// deleted since they were in a table.
func worn(t *testing.T) (image, model) {
	t.Helper()
	dir := t.TempDir()
	records, ever := map[string]string{}, map[string]bool{}
	change := func(st store.Store, key, value string) {
		t.Helper()
		batch := store.Batch{Deletes: []string{key}}
		delete(records, key)
		if value != "" {
			batch = store.Batch{Puts: []store.Record{{Key: key, Value: []byte(value)}}}
			records[key] = value
			ever[key+"="+value] = true
		}
		if err := st.Commit(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	for round := range level0Tables + 3 {
		st := openIn(t, dir)
		for n := range 20 {
			change(st, fmt.Sprintf("credential/%d/%d", round, n), strings.Repeat(fmt.Sprint("active", n), 20))
		}
		for n := range 10 * round {
			change(st, fmt.Sprintf("credential/%d/%d", n%round, n/round), fmt.Sprint("revoked in ", round))
		}
		change(st, fmt.Sprintf("credential/%d/19", round), "")
		if round == level0Tables {
			waitForCompaction(t, st)
		}
		if round == level0Tables+2 {
			break // its log stays
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m := model{ever: ever}
	for _, key := range slices.Sorted(maps.Keys(records)) {
		m.records = append(m.records, key+"="+records[key])
	}
	return take(t, dir), m
}

func waitForCompaction(t *testing.T, st *database) {
	t.Helper()
	for st.db.Levels()[0].NumTables > 0 {
		runtime.Gosched()
	}
}

// files returns the names of the files with a suffix.
func (i image) files(suffix string) (names []string) {
	for name := range i {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// positions are so many bytes of a file, those at its ends among them.
func positions(size, many int) []int {
	var all []int
	for n := range size {
		if n < 8 || n >= size-16 || n%max(1, size/many) == 0 {
			all = append(all, n)
		}
	}
	return all
}

// open checks that the store either refuses to open, with an error that says
// where and what to do, or holds exactly what was acknowledged. It reports
// whether it refuses.
func (m model) open(t *testing.T, name string, files image) (dir string, refused bool) {
	t.Helper()
	fmt.Println(name) // the last one, if this ends the process
	dir = files.put(t)
	st, err := provisioned(t, dir).Open(t.Context())
	if err != nil {
		for _, part := range []string{dir, "restore a backup", "caddy client-credentials accept-loss"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error lacks %q: %v", name, part, err)
			}
		}
		return dir, true
	}
	if got := contents(t, st, ""); !slices.Equal(got, m.records) {
		t.Errorf("%s: it opens with %d records, and not those that were acknowledged, %d", name, len(got), len(m.records))
	}
	if err := st.Close(); err != nil {
		t.Errorf("%s: Close: %v", name, err)
	}
	os.RemoveAll(dir)
	return dir, false
}

// inAProcessOfItsOwn runs a test so that a process that ends is a test that
// fails.
func inAProcessOfItsOwn(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	const env = "STORE_TEST_ALONE"
	if os.Getenv(env) != "" {
		test(t)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), env+"=1", "GORACE=atexit_sleep_ms=0")
	output, err := child.CombinedOutput()
	if lines := bytes.Split(output, []byte("\n")); len(lines) > 60 {
		output = bytes.Join(lines[len(lines)-60:], []byte("\n"))
	}
	if err != nil || !bytes.Contains(output, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, output)
	}
}

func TestNoDamageToAFileGoesUnseen(t *testing.T) {
	inAProcessOfItsOwn(t, func(t *testing.T) {
		whole, m := worn(t)
		tables, logs := whole.files(tableSuffix), whole.files(logSuffix)
		if len(tables) < 2 || len(logs) != 1 {
			t.Fatalf("the store is not as it should be: %q %q", tables, logs)
		}
		if _, refused := m.open(t, "undamaged", whole); refused {
			t.Fatal("it is refused as it is")
		}
		names := slices.Concat(tables, logs, whole.files(valueSuffix),
			[]string{"MANIFEST", "KEYREGISTRY", discardFile, headFile})
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				size := len(whole[name].content)
				tried, refused := 0, 0
				try := func(what string, files image) {
					tried++
					if dir, refuses := m.open(t, name+" "+what, files); refuses {
						if refused%4 == 0 {
							m.acceptLoss(t, name+" "+what, dir)
						}
						refused++
						os.RemoveAll(dir)
					}
				}
				for _, at := range positions(size, 12) {
					try(fmt.Sprint("flipped at ", at), whole.flipped(name, at))
				}
				try("flipped behind its end", whole.flipped(name, size+100))
				for _, length := range []int{0, 1, 19, 20, size / 3, size / 2, size - 30, size - 1} {
					if length >= 0 && length < size {
						try(fmt.Sprint("cut to ", length), whole.cut(name, length))
					}
				}
				try("removed", whole.with(name, nil))
				try("zeroed", whole.with(name, make([]byte, max(size, 1))))
				try("garbled", whole.with(name, bytes.Repeat([]byte{0xA5}, size)))
				t.Logf("%s of %d bytes: of %d damaged stores, %d are refused, and the others are whole", name, size, tried, refused)
			})
		}
	})
}

func wantRefused(t *testing.T, files image, parts ...string) {
	t.Helper()
	dir := files.put(t)
	_, err := provisioned(t, dir).Open(t.Context())
	if err == nil {
		t.Error("it was opened")
		return
	}
	for _, part := range append(parts, dir, "restore a backup", "accept-loss") {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error lacks %q: %v", part, err)
		}
	}
}

// left returns the files of a store with so many transactions in its log, as a
// crash leaves them.
func left(t *testing.T, transactions int) image {
	t.Helper()
	dir := t.TempDir()
	st := openIn(t, dir)
	for n := range transactions {
		put(t, st, fmt.Sprint("key/", n), fmt.Sprint("value ", n))
	}
	return take(t, dir)
}

func TestALostEndOfTheLogIsRefusedWithTheNumberOfTransactions(t *testing.T) {
	const name = "00001.mem"
	files := left(t, 10)
	log := files[name].content
	at := bytes.LastIndex(log, []byte("key/7"))
	wantRefused(t, files.flipped(name, at), "of the 10 transactions that were acknowledged, the last 3 are lost")
	wantRefused(t, files.with(name, nil), "the last 10 are lost")
}

func TestAnOlderCopyOfTheDatabaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "active")
	older := take(t, dir)
	put(t, st, "a", "revoked")
	newer := take(t, dir)
	older[headFile] = newer[headFile]
	wantRefused(t, older, "the last 1 are lost")
}

func TestACrashBeforeTheHeadIsWrittenIsNoAlarm(t *testing.T) {
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	before := take(t, dir)[headFile]
	put(t, st, "b", "2")
	files := take(t, dir)
	files[headFile] = before
	left := files.put(t)
	again := openIn(t, left)
	expect(t, again, "a=1", "b=2")
	if last, err := readHead(left); err != nil || last.transactions != 2 {
		t.Errorf("the head has not caught up: %+v, %v", last, err)
	}
	put(t, again, "c", "3")
	expect(t, again, "a=1", "b=2", "c=3")
}

func TestAFileThatACrashHasLeftEmptyIsNoObstacle(t *testing.T) {
	files := left(t, 3)
	for _, name := range []string{"00002.mem", "000002.vlog"} {
		expect(t, openIn(t, files.with(name, []byte{}).put(t)), "key/0=value 0", "key/1=value 1", "key/2=value 2")
	}
}

// A slot that is only partly written, or damaged later, leaves the other.
func TestOneSlotOfTheHeadIsEnough(t *testing.T) {
	files := left(t, 3)
	for slot := range 2 {
		for at := range slotSize {
			dir := files.flipped(headFile, slot*headSector+at).put(t)
			if last, err := readHead(dir); err != nil || last.transactions < 2 {
				t.Fatalf("byte %d of slot %d: the head says %+v, %v", at, slot, last, err)
			}
			os.RemoveAll(dir)
		}
	}
	dir := files.flipped(headFile, 0).put(t)
	expect(t, openIn(t, dir), "key/0=value 0", "key/1=value 1", "key/2=value 2")
	both := files.flipped(headFile, 0)
	wantRefused(t, both.flipped(headFile, headSector), headFile, "damaged")
}

// A disk that fails while a slot is written may leave nothing in it: the next
// transaction does not touch the other one.
func TestAHeadThatCouldNotBeWrittenLeavesASlotToTheNextTransaction(t *testing.T) {
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	put(t, st, "b", "2")
	writable := st.head.file
	closed, err := os.Open(os.DevNull)
	if err := errors.Join(err, closed.Close()); err != nil {
		t.Fatal(err)
	}
	st.head.file = closed
	if err := st.Commit(t.Context(), store.Batch{Puts: records("c", "3")}); err == nil {
		t.Fatal("it was acknowledged")
	}
	st.head.file = writable
	if _, err := writable.WriteAt(make([]byte, slotSize), 3%2*headSector); err != nil {
		t.Fatal(err)
	}
	put(t, st, "d", "4")
	files := take(t, dir)
	for slot := range 2 { // as a crash leaves it while it is written
		expect(t, openIn(t, files.flipped(headFile, slot*headSector).put(t)), "a=1", "b=2", "c=3", "d=4")
	}
}

func TestARemovedHeadIsRefused(t *testing.T) {
	files := left(t, 3)
	wantRefused(t, files.with(headFile, nil), headFile, "missing")
	wantRefused(t, image{headFile: files[headFile]}, "the last 3 are lost")
}

// What Badger itself gets wrong is seen, too: a record that is there again, or
// not any more, or has an earlier value.
func TestARecordThatIsNotAsTheLastTransactionLeftItIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(txn *badgerdb.Txn) error{
		"one too many": func(txn *badgerdb.Txn) error {
			return txn.Set([]byte("gone"), store.Seal(store.Record{Key: "gone", Value: []byte("1")}))
		},
		"one too few": func(txn *badgerdb.Txn) error { return txn.Delete([]byte("a")) },
		"an earlier value": func(txn *badgerdb.Txn) error {
			return txn.Set([]byte("a"), store.Seal(store.Record{Key: "a", Value: []byte("1")}))
		},
		"a wrong checksum": func(txn *badgerdb.Txn) error { return txn.Set([]byte("a"), []byte("nothing sealed")) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			st := openIn(t, dir)
			put(t, st, "a", "1")
			put(t, st, "a", "2")
			put(t, st, "gone", "1")
			if err := st.Commit(t.Context(), store.Batch{Deletes: []string{"gone"}}); err != nil {
				t.Fatal(err)
			}
			if err := st.db.Update(spoil); err != nil {
				t.Fatal(err)
			}
			files := take(t, dir)
			wantRefused(t, files)
			spoilt := files.put(t)
			lost, err := provisioned(t, spoilt).AcceptLoss(t.Context(), asItIs)
			if err != nil || len(lost) == 0 {
				t.Errorf("AcceptLoss says %q, %v", lost, err)
			}
			openIn(t, spoilt)
		})
	}
}

// A store that was written before there was a head and a tally gets both.
func TestAStoreFromBeforeTheHeadIsTakenOver(t *testing.T) {
	dir := t.TempDir()
	db, err := badgerdb.Open(dbOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(txn *badgerdb.Txn) error {
		return errors.Join(
			txn.Set([]byte("a"), store.Seal(store.Record{Key: "a", Value: []byte("1")})),
			txn.Set([]byte("b"), store.Seal(store.Record{Key: "b", Value: []byte("2")})))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	st := openIn(t, dir)
	expect(t, st, "a=1", "b=2")
	files := take(t, dir)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, files.with(headFile, nil), headFile, "missing")
	// The process ended between the two.
	fresh := make([]byte, 2*headSector)
	copy(fresh, slot(tally{}))
	copy(fresh[headSector:], slot(tally{}))
	again := openIn(t, files.with(headFile, fresh).put(t))
	expect(t, again, "a=1", "b=2")
}

package badger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"google.golang.org/protobuf/proto"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// lossFile is there while a loss is being accepted: a process that ends meanwhile
// leaves a store that does not open.
const lossFile = "ACCEPTING-LOSS"

// AcceptLoss implements store.Mender.
func (b *Badger) AcceptLoss(ctx context.Context, finish func(store.Store) error) (lost []string, err error) {
	err = b.retry(ctx, func() error {
		letGo, err := hold(b.dir)
		if err != nil {
			return err
		}
		if err = roomToOpen(b.dir); err == nil {
			err = replaceFile(filepath.Join(b.dir, lossFile), nil)
		}
		if err == nil {
			lost, err = mend(b.dir)
		}
		return errors.Join(err, letGo())
	})
	if err != nil {
		return nil, err
	}
	db, err := badgerdb.Open(dbOptions(b.dir))
	if err != nil {
		return lost, fmt.Errorf("opening the store in %s: %w", b.dir, err)
	}
	differences, err := accept(b.dir, db)
	lost = append(lost, differences...)
	if err != nil {
		return lost, errors.Join(err, db.Close())
	}
	h, err := openHead(b.dir)
	if err != nil {
		return lost, errors.Join(err, db.Close())
	}
	st := newDatabase(b.dir, db, h)
	if err := errors.Join(finish(st), st.Close()); err != nil {
		return lost, err
	}
	return lost, os.Remove(filepath.Join(b.dir, lossFile))
}

// accept makes what the database holds be what was acknowledged, and says what
// the difference was.
func accept(dir string, db *badgerdb.DB) (lost []string, err error) {
	recorded, err := recordedTally(db)
	if err != nil && !errors.Is(err, store.ErrCorrupt) {
		return nil, err
	}
	present := tally{transactions: recorded.transactions}
	var unreadable []string
	var mu sync.Mutex
	present.records, present.sum, err = count(db, func(key string, _ error) error {
		mu.Lock()
		defer mu.Unlock()
		unreadable = append(unreadable, key)
		return nil
	})
	if err != nil {
		return nil, err
	}
	batch := db.NewWriteBatch()
	defer batch.Cancel()
	for _, key := range unreadable {
		lost = append(lost, fmt.Sprintf("the record %s is damaged", strings.ToValidUTF8(key, "?")))
		if err := batch.Delete([]byte(key)); err != nil {
			return nil, err
		}
	}
	if err := batch.Flush(); err != nil {
		return nil, err
	}
	last, err := readHead(dir)
	switch {
	case err != nil:
		lost = append(lost, fmt.Sprintf("what was acknowledged is not known: %v", err))
	case difference(last, recorded, present) != "":
		lost = append(lost, difference(last, recorded, present))
	}
	present.transactions = max(recorded.transactions, last.transactions) + 1
	if err := db.Update(present.write); err != nil {
		return nil, err
	}
	return lost, makeHead(dir, present)
}

// mend makes Badger open what is left of the files, and says what is damaged.
// Nothing that may still hold records is removed: damaged tables get another
// name.
func mend(dir string) (lost []string, err error) {
	if !guarded {
		return nil, nil // nothing keeps another process out
	}
	manifest, err := readManifest(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		lost = append(lost, fmt.Sprintf("%s can't be read: %v", badgerdb.ManifestFilename, err))
	}
	levels := make(map[uint64]uint8) // of the tables that can be read
	next := uint64(1)
	for _, id := range append(numbered(dir, tableSuffix), slices.Collect(maps.Keys(manifest.Tables))...) {
		next = max(next, id+1)
		// In level 0 the order of the tables is of no account: records have versions.
		levels[id] = manifest.Tables[id].Level
	}
	for id := range levels {
		if err := verifyTable(dir, id); err != nil {
			lost = append(lost, err.Error())
			delete(levels, id)
			path := table.NewFilename(id, dir)
			if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	unnamed, err := filepath.Glob(filepath.Join(dir, "*"+unnamedSuffix))
	if err != nil {
		return nil, err
	}
	for _, path := range unnamed {
		if err := os.Rename(path, table.NewFilename(next, dir)); err != nil {
			return nil, err
		}
		if verifyTable(dir, next) == nil {
			levels[next] = 0
		}
		next++
	}
	if err := writeManifest(dir, levels); err != nil {
		return nil, err
	}
	for _, number := range numbered(dir, logSuffix) {
		if err := mendLog(filepath.Join(dir, fmt.Sprintf("%05d%s", number, logSuffix))); err != nil {
			return nil, err
		}
	}
	// These hold nothing, as nothing is encrypted and no value is in a value log.
	for _, number := range numbered(dir, valueSuffix) {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("%06d%s", number, valueSuffix))); err != nil {
			return nil, err
		}
	}
	return lost, errors.Join(removeIfThere(filepath.Join(dir, badgerdb.KeyRegistryFileName)), removeEmpty(dir))
}

// writeManifest replaces the manifest by one that names these tables.
func writeManifest(dir string, levels map[uint64]uint8) error {
	var set pb.ManifestChangeSet
	for id, level := range levels {
		set.Changes = append(set.Changes, &pb.ManifestChange{Id: id, Op: pb.ManifestChange_CREATE, Level: uint32(level)})
	}
	changes, err := proto.Marshal(&set)
	if err != nil {
		return err
	}
	const version = 8
	text := append([]byte("Bdgr"), 0, 0, 0, version)
	text = binary.BigEndian.AppendUint32(text, uint32(len(changes))) //nolint:gosec // G115: some bytes for each table
	text = binary.BigEndian.AppendUint32(text, store.Checksum(nil, changes))
	return replaceFile(filepath.Join(dir, badgerdb.ManifestFilename), append(text, changes...))
}

// mendLog cuts a log where it can't be read any more: Badger does so itself, but
// does not open with just any content. And it has the log name no key, as those
// of this store are not encrypted.
func mendLog(path string) error {
	const headerSize = 20 // the number of a key, and what goes with it
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	end := headerSize
	for end < len(content) {
		length := entryLength(content[end:])
		if length == 0 {
			break
		}
		end += length
	}
	if len(content) < headerSize {
		return os.Remove(path)
	}
	clear(content[:8])
	return replaceFile(path, content[:end])
}

// entryLength returns the length of the entry that the text begins with, or 0
// where there is no sound one: two bytes of flags, the lengths of key and value
// and the time of expiry as varints, key, value, and a checksum of all that.
func entryLength(text []byte) int {
	at := 2
	var numbers [3]uint64
	for n := range numbers {
		size := 0
		if at < len(text) {
			numbers[n], size = binary.Uvarint(text[at:])
		}
		if size <= 0 {
			return 0
		}
		at += size
	}
	key, value := numbers[0], numbers[1]
	if key == 0 || key > 1<<16 || value > uint64(len(text)) {
		return 0
	}
	at += int(key + value) //nolint:gosec // G115: they are bounded above
	if len(text) < at+4 || binary.BigEndian.Uint32(text[at:]) != store.Checksum(nil, text[:at]) {
		return 0
	}
	return at + 4
}

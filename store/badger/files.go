package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sync/errgroup"
)

const (
	tableSuffix = ".sst"
	valueSuffix = ".vlog"
	// discardFile is where Badger counts what its value log could give up. As no
	// value is kept there, it is of no use.
	discardFile = "DISCARD"
	// unnamedSuffix is added to the name of a table that the manifest does not
	// name, until the database has proved to be whole without it.
	unnamedSuffix = ".unnamed"
)

// inspect looks through the files of a database that nobody has open, before
// Badger does: over a damaged table it ends the process, and it removes the
// tables that a damaged manifest does not name any more.
func inspect(dir string) error {
	if !guarded {
		return nil // nothing keeps another process out
	}
	tables := numbered(dir, tableSuffix)
	manifest, err := readManifest(dir)
	if errors.Is(err, fs.ErrNotExist) && len(tables) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s can't be read: %w", badgerdb.ManifestFilename, err)
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for id := range manifest.Tables {
		group.Go(func() error { return verifyTable(dir, id) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, id := range tables {
		if _, named := manifest.Tables[id]; named {
			continue
		}
		path := table.NewFilename(id, dir)
		if err := os.Rename(path, path+unnamedSuffix); err != nil {
			return err
		}
	}
	return removeEmpty(dir)
}

// removeEmpty removes files that were made by a process that ended before it
// could write to them: Badger does not open them.
func removeEmpty(dir string) error {
	for _, suffix := range []string{logSuffix, valueSuffix} {
		paths, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if info, err := os.Stat(path); err != nil || info.Size() > 0 {
				continue
			}
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return removeIfThere(filepath.Join(dir, discardFile))
}

// removeUnnamed removes the tables that have proved not to be needed.
func removeUnnamed(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+unnamedSuffix))
	for _, path := range paths {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readManifest(dir string) (badgerdb.Manifest, error) {
	file, err := os.Open(filepath.Join(dir, badgerdb.ManifestFilename))
	if err != nil {
		return badgerdb.Manifest{}, err
	}
	defer file.Close()
	manifest, _, err := badgerdb.ReplayManifestFile(file, 0, dbOptions(dir))
	return manifest, err
}

// verifyTable checks a table whole: its lengths, its index and every block.
func verifyTable(dir string, id uint64) (err error) {
	path := table.NewFilename(id, dir)
	damage := func(what any) error { return fmt.Errorf("the table %s: %v", filepath.Base(path), what) }
	defer func() {
		if p := recover(); p != nil {
			err = damage("it can't be read")
		}
	}()
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return damage("it is missing")
	}
	if err != nil {
		return err
	}
	// Behind the blocks and the index: the index's length, its checksum, and the
	// checksum's length, each length in 4 bytes. Badger ends the process where one
	// of them points out of the file.
	rest := content
	for range 2 {
		if len(rest) < 4 {
			return damage("it is too short")
		}
		length := int64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
		if rest = rest[:len(rest)-4]; length > int64(len(rest)) {
			return damage("its end is damaged")
		}
		rest = rest[:int64(len(rest))-length]
	}
	opened, err := table.OpenInMemoryTable(content, id, &table.Options{ChkMode: options.OnTableRead})
	if err == nil {
		err = opened.VerifyChecksum()
	}
	if err != nil {
		return damage(err)
	}
	return nil
}

// replaceFile durably puts a file in place of another, as a whole.
func replaceFile(path string, content []byte) error {
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

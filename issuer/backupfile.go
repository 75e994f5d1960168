package issuer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// SaveBackup writes a backup into a new file, durably and for its owner only, once it
// was checked.
func SaveBackup(file string, backup io.Reader) (_ *BackupContents, err error) {
	dir, base := filepath.Split(file)
	if dir == "" {
		dir = "."
	}
	partial, err := os.CreateTemp(dir, base+".partial-*") // it has mode 0600
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = partial.Close()
		if err != nil {
			_ = os.Remove(partial.Name())
		}
	}()
	contents, err := ReadBackup(io.TeeReader(backup, partial))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(partial.Sync(), partial.Close(), RequireNewFile(file)); err != nil {
		return nil, err
	}
	if err := os.Rename(partial.Name(), file); err != nil {
		return nil, err
	}
	return contents, syncDirectory(dir)
}

// RequireNewFile returns an error where the file exists: it may be the last backup
// of what the store has lost since.
func RequireNewFile(file string) error {
	_, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s exists already: name a new file", file)
	}
	return err
}

// syncDirectory makes a new name durable.
func syncDirectory(dir string) error {
	if runtime.GOOS == "windows" { // has no such thing
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

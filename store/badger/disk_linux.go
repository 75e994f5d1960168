package badger

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// guarded says whether this system tells how full a volume is, and sets blocks
// aside for a file.
const guarded = true

// freeSpace returns how many bytes everybody may still write to the volume of a
// directory: none, where it hardly takes another file.
func freeSpace(dir string) (int64, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if stat.Files > 0 && stat.Ffree < minInodes { // some file systems have no bound
		return 0, nil
	}
	//nolint:gosec,unconvert // G115: no volume has 2^63 blocks; on other processors Frsize is of another type
	return int64(stat.Bavail) * int64(stat.Frsize), nil
}

// setAside gives a file its blocks before they are written. It may make the file
// longer.
func setAside(file *os.File, bytes int64) error {
	for {
		err := syscall.Fallocate(int(file.Fd()), 0, 0, bytes)
		if !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fallocate", err)
		}
	}
}

// taken returns how many bytes of the volume a file takes; 0 where there is none.
func taken(path string) int64 {
	var stat syscall.Stat_t
	if syscall.Stat(path, &stat) != nil {
		return 0
	}
	return stat.Blocks * 512
}

// syncData has the content of a file, whose length is the same, on the disk when
// it returns.
func syncData(file *os.File) error {
	for {
		err := syscall.Fdatasync(int(file.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// hold takes the lock that Badger takes on a directory, and returns what lets go
// of it. It returns errHeld where another has it.
func hold(dir string) (letGo func() error, err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errHeld
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file.Close, nil
}

// syncDir has the names of a directory on the disk when it returns.
func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

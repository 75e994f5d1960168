//go:build !linux

package badger

import (
	"errors"
	"os"
)

const guarded = false

func freeSpace(string) (int64, error) { return 0, errors.ErrUnsupported }

func setAside(*os.File, int64) error { return errors.ErrUnsupported }

func taken(string) int64 { return 0 }

func syncData(file *os.File) error { return file.Sync() }

func syncDir(string) error { return nil }

func hold(string) (letGo func() error, err error) { return func() error { return nil }, nil }

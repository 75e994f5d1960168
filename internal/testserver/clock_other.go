//go:build !(linux && amd64)

package testserver

import (
	"errors"
	"testing"
)

// SetClock skips the test: it is done on Linux, on AMD64.
func (s *Server) SetClock(t testing.TB, _ int) {
	t.Helper()
	t.Skip("a process gets a clock of its own on linux/amd64 alone")
}

func setClock(string) error { return errors.ErrUnsupported }

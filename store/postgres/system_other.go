//go:build !linux

package postgres

import (
	"syscall"
	"time"
)

var started = time.Now()

// clock returns the time since the process was started. Whether that includes
// the time that the machine slept is up to the system: on Windows it does, on
// macOS it does not.
func clock() time.Duration { return time.Since(started) }

// limitUnacknowledged leaves it to keep-alives that a connection ends.
func limitUnacknowledged(time.Duration) func(network, address string, c syscall.RawConn) error {
	return nil
}

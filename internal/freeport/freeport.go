// Package freeport finds ports for the servers of tests.
package freeport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
)

// For returns a port that nobody listens on, below those that outgoing
// connections take. It is the test's own until it ends: the tests of other
// packages run at the same time.
func For(t testing.TB) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		ports.next++
		port := 20000 + (os.Getpid()*37+ports.next)%12000
		// The sign that a port is taken is a listener on another loopback
		// address, where the system has one.
		sign, err := net.Listen("tcp", fmt.Sprintf("127.0.0.77:%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err == nil {
			t.Cleanup(func() { _ = sign.Close() })
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

var ports struct {
	sync.Mutex
	next int
}

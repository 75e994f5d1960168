// Package freeport finds ports for the servers of tests and of the benchmark.
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

// For returns a port as Take does. It is the test's own until it ends: the tests of
// other packages run at the same time.
func For(t testing.TB) int {
	t.Helper()
	port, giveUp, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(giveUp)
	return port
}

// Take returns a port that nobody listens on, below those that outgoing
// connections take. No other process takes it before giveUp is called.
func Take() (port int, giveUp func(), err error) {
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		ports.next++
		port := 20000 + (os.Getpid()*37+ports.next)%12000
		// The sign that a port is taken is a listener on another loopback
		// address, where the system has one.
		giveUp := func() {}
		sign, err := net.Listen("tcp", fmt.Sprintf("127.0.0.77:%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err == nil {
			giveUp = func() { _ = sign.Close() }
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			giveUp()
			continue
		}
		_ = l.Close()
		return port, giveUp, nil
	}
	return 0, nil, errors.New("there is no free port")
}

var ports struct {
	sync.Mutex
	next int
}

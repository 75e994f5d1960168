// Command alternate sends one request over and over to two addresses in turn, a
// moment each, and prints what CPU time each has cost: what changes on the
// machine, other than within the moment, meets both. It reads an Order from its
// standard input and writes a Result, as JSON.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Order is what to do.
type Order struct {
	Sides       [2]Side
	Connections int // to each side
	Turns       int // of each side
	Turn        time.Duration
}

// Side is where to send what.
type Side struct {
	Address string
	Request []byte
	Status  int   // of each answer
	PIDs    []int // of the processes whose time counts
}

// Result is the CPU time of each turn of the sides, in microseconds for each
// request.
type Result [2][]float64

func main() {
	var order Order
	err := json.NewDecoder(os.Stdin).Decode(&order)
	if err == nil {
		var result Result
		if result, err = order.run(); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(result)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
}

func (o *Order) run() (result Result, err error) {
	var all [2][]*connection
	for i, side := range o.Sides {
		for range o.Connections {
			c, err := connect(side)
			if err != nil {
				return result, err
			}
			all[i] = append(all[i], c)
		}
		if _, err := turn(all[i], o.Turn); err != nil { // warms up
			return result, err
		}
	}
	for n := range 2 * o.Turns {
		i := (n + n/2) % 2 // each begins every other pair of turns
		cpu, err := turn(all[i], o.Turn)
		if err != nil {
			return result, err
		}
		result[i] = append(result[i], cpu)
	}
	return result, nil
}

// turn keeps all connections of a side busy for a while. It never sleeps: to
// wake who waits for an answer costs the server more than many a handler, and
// whether it has to would depend on how fast it is.
func turn(all []*connection, d time.Duration) (cpuPerRequest float64, err error) {
	before, err := cpu(all[0].PIDs)
	if err != nil {
		return 0, err
	}
	for _, c := range all {
		if err := c.send(); err != nil {
			return 0, err
		}
	}
	answers, waiting := 0, len(all)
	for begin := time.Now(); waiting > 0; {
		over := time.Since(begin) > d
		before := answers
		for _, c := range all {
			answered, err := c.receive()
			if err != nil {
				return 0, err
			}
			if !answered {
				continue
			}
			answers++
			if over {
				waiting--
			} else if err := c.send(); err != nil {
				return 0, err
			}
		}
		if answers == before { // what is behind a proxy may need this core
			_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
	after, err := cpu(all[0].PIDs)
	return float64((after - before).Nanoseconds()) / 1000 / float64(answers), err
}

// connection sends one request at a time.
type connection struct {
	Side
	fd     int
	status []byte // of each answer, with the protocol's version before it
	answer []byte // what has come of it
	room   [16 << 10]byte
	busy   bool
}

func connect(side Side) (*connection, error) {
	address, err := netip.ParseAddrPort(side.Address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}); err != nil {
		return nil, err
	}
	return &connection{Side: side, fd: fd, status: fmt.Appendf(nil, "HTTP/1.1 %d ", side.Status)}, unix.SetNonblock(fd, true)
}

func (c *connection) send() error {
	c.answer, c.busy = c.room[:0], true
	n, err := unix.Write(c.fd, c.Request)
	if err == nil && n < len(c.Request) {
		err = errors.New("the request does not fit into the socket")
	}
	return err
}

// receive reports whether the answer is complete.
func (c *connection) receive() (complete bool, err error) {
	if !c.busy {
		return false, nil
	}
	n, err := unix.Read(c.fd, c.room[len(c.answer):])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, err
	case n == 0:
		return false, errors.New("the connection was closed, or an answer is too long")
	}
	c.answer = c.room[:len(c.answer)+n]
	head, body, found := bytes.Cut(c.answer, []byte("\r\n\r\n"))
	if !found {
		return false, nil
	}
	if !bytes.HasPrefix(head, c.status) {
		return false, fmt.Errorf("an answer is not %q, but %q", c.status, c.answer)
	}
	_, length, found := bytes.Cut(head, []byte("\r\nContent-Length: "))
	if !found {
		return false, fmt.Errorf("an answer has no length: %q", head)
	}
	length, _, _ = bytes.Cut(length, []byte("\r\n"))
	size, err := strconv.Atoi(string(length))
	c.busy = err == nil && len(body) < size
	return !c.busy, err
}

// cpu returns the time that the processes have had, user and system.
func cpu(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		const sched = 2 // CPUCLOCK_SCHED of the kernel's posix-timers.h
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil { //nolint:gosec // G115: pids fit
			return 0, fmt.Errorf("the CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

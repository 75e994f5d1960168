// Command alternate sends one request over and over to two addresses in turn, a
// moment each, and prints what CPU time each has cost: what changes on the
// machine, other than within the moment, meets both. It reads an Order from its
// standard input and writes a Result, as JSON.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
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
	var senders [2][]*sender
	for i, side := range o.Sides {
		for range o.Connections {
			conn, err := net.Dial("tcp", side.Address) //nolint:noctx // loopback
			if err != nil {
				return result, err
			}
			senders[i] = append(senders[i], &sender{side, conn, bufio.NewReader(conn)})
		}
		if _, err := turn(senders[i], o.Turn); err != nil { // warms up
			return result, err
		}
	}
	for n := range 2 * o.Turns {
		i := (n + n/2) % 2 // each begins every other pair of turns
		cpu, err := turn(senders[i], o.Turn)
		if err != nil {
			return result, err
		}
		result[i] = append(result[i], cpu)
	}
	return result, nil
}

// turn has all of a side's senders send for a while.
func turn(senders []*sender, d time.Duration) (cpuPerRequest float64, err error) {
	pids := senders[0].PIDs
	before, err := cpu(pids)
	if err != nil {
		return 0, err
	}
	var (
		over   atomic.Bool
		sent   atomic.Int64
		failed atomic.Pointer[error]
		group  sync.WaitGroup
	)
	for _, s := range senders {
		group.Go(func() {
			for !over.Load() {
				if err := s.send(); err != nil {
					failed.Store(&err)
					return
				}
				sent.Add(1)
			}
		})
	}
	time.Sleep(d)
	over.Store(true)
	group.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	after, err := cpu(pids)
	return float64((after - before).Nanoseconds()) / 1000 / float64(sent.Load()), err
}

// sender is a connection that sends one request at a time.
type sender struct {
	Side
	conn   net.Conn
	answer *bufio.Reader
}

func (s *sender) send() error {
	if _, err := s.conn.Write(s.Request); err != nil {
		return err
	}
	res, err := http.ReadResponse(s.answer, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != s.Status {
		return fmt.Errorf("status %d instead of %d", res.StatusCode, s.Status)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
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

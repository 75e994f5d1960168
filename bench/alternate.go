package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// alternates reports whether the sides can take turns of a moment: each must
// send the same request all the time.
func (c *comparison) alternates() bool {
	fixed := func(side *testCase) bool { return side.request.lines == "" && side.beside == nil }
	return c.metric.name == cpuPerRequest.name && fixed(c.a) && fixed(c.b)
}

// A moment is too short for what changes on a busy machine to change within it,
// and there is time for many.
const (
	moment         = 100 * time.Millisecond
	momentsPerPair = 20 // of measurements by wrk
)

// alternate measures the two sides in turns of a moment.
func (b *bench) alternate(ctx context.Context, c comparison, r *ratios) error {
	a := alternation{Connections: concurrency, Turns: momentsPerPair * max(c.finer, 1) * b.pairs, Turn: moment}
	for i, side := range []*testCase{c.a, c.b} {
		text, err := side.text(ctx)
		if err != nil {
			return err
		}
		a.Sides[i] = alternated{side.address, text, side.status, side.server.pids()}
	}
	input, err := json.Marshal(a)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	command := []string{program, alternating}
	if b.loadCore != "" {
		command = append([]string{"taskset", "-c", b.loadCore}, command...)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // G204: this program
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	var result [2][]float64
	if err := json.Unmarshal(output, &result); err != nil {
		return err
	}
	for n := range result[0] {
		r.add(result[0][n], result[1][n])
	}
	if !b.counts {
		return nil
	}
	var counted [2]float64
	for i, side := range []*testCase{c.a, c.b} {
		m, err := b.measure(ctx, side, slice{0, 1}, b.seconds)
		if err != nil {
			return err
		}
		counted[i] = m.Instructions
	}
	r.Instructions = []float64{counted[0] / counted[1]}
	return nil
}

// text returns the request of a case as it is sent.
func (c *testCase) text(ctx context.Context) ([]byte, error) {
	header, body := http.Header{}, ""
	if err := c.request.complete(header, &body); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, c.request.method, "http://"+c.address+c.request.path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header
	var text bytes.Buffer
	err = req.Write(&text)
	return text.Bytes(), err
}

// alternating is the argument that makes this program the client which takes
// turns: a process of its own, since it is kept on another core than the servers.
const alternating = "alternate"

// alternation is what that client does, read from its standard input.
type alternation struct {
	Sides              [2]alternated
	Connections, Turns int // of each side
	Turn               time.Duration
}

// alternated is where a side sends what.
type alternated struct {
	Address string
	Request []byte
	Status  int   // of each answer
	PIDs    []int // of the processes whose time counts
}

// takeTurns writes the CPU time of each turn of the sides, in microseconds for
// each request.
func takeTurns() error {
	var a alternation
	if err := json.NewDecoder(os.Stdin).Decode(&a); err != nil {
		return err
	}
	result, err := a.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func (a *alternation) run() (result [2][]float64, err error) {
	var sides [2]*clients
	for i, side := range a.Sides {
		if sides[i], err = newClients(side, a.Connections); err != nil {
			return result, err
		}
		if _, err := sides[i].turn(a.Turn); err != nil { // warms up
			return result, err
		}
	}
	for n := range 2 * a.Turns {
		i := (n + n/2) % 2 // each begins every other pair of turns
		cost, err := sides[i].turn(a.Turn)
		if err != nil {
			return result, err
		}
		result[i] = append(result[i], cost)
	}
	return result, nil
}

// clients are those of one side.
type clients struct {
	alternated
	connections []*connection
	poll        int // the descriptor of the epoll that waits for answers
	events      []unix.EpollEvent
}

func newClients(side alternated, count int) (*clients, error) {
	all := &clients{alternated: side, events: make([]unix.EpollEvent, count)}
	var err error
	if all.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	for i := range count {
		c, err := connect(side)
		if err != nil {
			return nil, err
		}
		all.connections = append(all.connections, c)
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)} //nolint:gosec // G115: there are a few
		if err := unix.EpollCtl(all.poll, unix.EPOLL_CTL_ADD, c.fd, &event); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// turn keeps all connections busy for a while. It sleeps until there are answers: what
// is behind a proxy needs this core too.
func (all *clients) turn(d time.Duration) (cpuPerRequest float64, err error) {
	before, err := cpuTime(all.PIDs)
	if err != nil {
		return 0, err
	}
	for _, c := range all.connections {
		if err := c.send(); err != nil {
			return 0, err
		}
	}
	answers, waiting := 0, len(all.connections)
	for begin := time.Now(); waiting > 0; {
		n, err := unix.EpollWait(all.poll, all.events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, err
		}
		over := time.Since(begin) > d
		for i := range max(n, 0) {
			c := all.connections[all.events[i].Fd]
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
	}
	after, err := cpuTime(all.PIDs)
	return float64((after - before).Nanoseconds()) / 1000 / float64(answers), err
}

// connection sends one request at a time.
type connection struct {
	alternated
	fd     int
	status []byte // of each answer, with the protocol's version before it
	answer []byte // what has come of it
	room   [16 << 10]byte
}

func connect(side alternated) (*connection, error) {
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
	return &connection{alternated: side, fd: fd, status: fmt.Appendf(nil, "HTTP/1.1 %d ", side.Status)}, unix.SetNonblock(fd, true)
}

func (c *connection) send() error {
	c.answer = c.room[:0]
	n, err := unix.Write(c.fd, c.Request)
	if err == nil && n < len(c.Request) {
		err = errors.New("the request does not fit into the socket")
	}
	return err
}

// receive reports whether the answer is complete.
func (c *connection) receive() (complete bool, err error) {
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
	return err == nil && len(body) >= size, err
}

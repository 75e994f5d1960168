package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed load.lua
var loadScript []byte

// order is how a case goes through its lines.
type order int

const (
	inTurn       order = iota // from the first one on
	fromAnywhere              // from a place that chance chooses, so that no measurement repeats another
	once                      // each measurement has lines of its own, which no other ever uses
)

// request is what a case sends.
type request struct {
	method, path string
	contentType  string
	// token and basic make the Authorization header, body the body. They are
	// asked for when the case is run, since files hold what they return.
	token, basic, body func() (string, error)

	lines  string // a file with a part of each request on a line
	as     string // where the part goes: token, body or path
	firstN int    // lines that count; 0: all
	order  order
	half   int // 1 or 2: the case shares the lines that are used once with another one; 0: it has them all
}

// testCase is one row of the table.
type testCase struct {
	group, name       string
	algorithm, secret string // of tokens and of secrets, where the row is about them
	server            *server
	address           string
	request           request
	status            int
	connections       int
	use               string    // how clients take turns, in the growth series
	credentials       int       // of the store, there
	beside            *testCase // a load that runs at the same time
	database          *database // of the server, where it has one beside it
	warmed            bool
}

// measurement is what one run of a case gave.
type measurement struct {
	Requests     int     `json:"requests"`
	CPU          float64 `json:"cpu_us"` // per request, as all of these
	Allocations  float64 `json:"allocations,omitempty"`
	Bytes        float64 `json:"bytes,omitempty"`
	Instructions float64 `json:"instructions,omitempty"`
	PerSecond    float64 `json:"per_second"`
	P50          float64 `json:"p50_ms"`
	P99          float64 `json:"p99_ms"`
	Resident     float64 `json:"rss_mib"`
	DatabaseCPU  float64 `json:"database_cpu_us,omitempty"`
	Statements   float64 `json:"statements,omitempty"` // in the database
}

// slice is which of the parts of its lines a measurement may use up.
type slice struct{ part, of int }

// rest returns the second half of it, for who may have used lines of the first.
func (s slice) rest() slice { return slice{2*s.part + 1, 2 * s.of} }

// measure runs a case once; for longer, where a busy machine lets no request be
// answered in so short a time.
func (b *bench) measure(ctx context.Context, c *testCase, s slice, seconds float64) (measurement, error) {
	const enough = 10 // seconds
	m, err := b.measureOnce(ctx, c, s, seconds)
	if errors.Is(err, errUnanswered) && seconds < enough {
		log.Printf("%s: %v in %v s: once more, for longer", c.fullName(), errUnanswered, seconds)
		return b.measure(ctx, c, s.rest(), 4*seconds)
	}
	return m, err
}

var errUnanswered = errors.New("not one request was answered")

func (b *bench) measureOnce(ctx context.Context, c *testCase, s slice, seconds float64) (m measurement, err error) {
	if c.beside != nil {
		var endFlood func() error
		if endFlood, err = b.flood(ctx, c.beside); err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, endFlood()) }()
	}
	countersBefore, err := c.database.counters(ctx)
	if err != nil {
		return m, err
	}
	before, noVars := c.server.allocations(ctx)
	counter := b.countInstructions(ctx, c.server)
	cpuBefore, err := c.server.cpu()
	if err != nil {
		return m, err
	}
	load, err := b.startLoad(ctx, c, s)
	if err != nil {
		return m, err
	}
	told, err := load.finish(time.Duration(seconds * float64(time.Second)))
	if err != nil {
		return m, errors.Join(fmt.Errorf("%s: %w", c.fullName(), err), c.server.failed("has logged"))
	}
	cpuAfter, err := c.server.cpu()
	if err != nil {
		return m, err
	}
	n := float64(told.Requests)
	m = measurement{
		Requests:  told.Requests,
		CPU:       float64((cpuAfter - cpuBefore).Nanoseconds()) / 1000 / n,
		PerSecond: n / told.Microseconds * 1e6,
		P50:       told.P50 / 1000, P99: told.P99 / 1000,
		Instructions: counter.stop() / n,
		Resident:     float64(c.server.residentKiB()) / 1024,
	}
	if noVars == nil {
		after, err := c.server.allocations(ctx)
		if err != nil {
			return m, err
		}
		m.Allocations = float64(after.Mallocs-before.Mallocs) / n
		m.Bytes = float64(after.TotalAlloc-before.TotalAlloc) / n
	}
	countersAfter, err := c.database.counters(ctx)
	used := countersAfter.since(countersBefore)
	m.DatabaseCPU = float64(used.cpu.Nanoseconds()) / 1000 / n
	m.Statements = float64(used.statements) / n
	return m, err
}

// flood runs a case until the function that it returns is called.
func (b *bench) flood(ctx context.Context, c *testCase) (end func() error, err error) {
	load, err := b.startLoad(ctx, c, slice{0, 1})
	if err != nil {
		return nil, err
	}
	time.Sleep(300 * time.Millisecond) // until it flows
	return func() error {
		_, err := load.finish(0)
		return err
	}, nil
}

// load is a wrk that is running.
type load struct {
	cmd    *exec.Cmd
	ready  chan struct{} // closed when it begins to send
	usedUp chan struct{} // closed when it has no more lines to send
	told   string        // the last line of its script; complete when it has exited
	exited chan error
}

// told is what the script in wrk prints at its end.
type told struct {
	Requests     int
	Microseconds float64
	P50, P99     float64 // in microseconds
	Wrong        int     // answered with another status than expected
	Statuses     string  // which, and how often each; empty where all are to be 200
	Broken, Late int     // not answered at all, or not in time
}

func (b *bench) startLoad(ctx context.Context, c *testCase, s slice) (*load, error) {
	env, err := c.environment(s)
	if err != nil {
		return nil, err
	}
	script := filepath.Join(b.temp, "load.lua")
	if err := os.WriteFile(script, loadScript, 0o600); err != nil {
		return nil, err
	}
	// wrk takes whole seconds only. It is told when to end by a signal.
	args := []string{"wrk", "-t1", "-c", strconv.Itoa(c.connections), "-d600s", "--timeout", "30s", "-s", script, "http://" + c.address + c.request.path}
	if b.loadCore != "" {
		args = append([]string{"taskset", "-c", b.loadCore}, args...)
	}
	l := &load{ready: make(chan struct{}), usedUp: make(chan struct{}), exited: make(chan error, 1)}
	l.cmd = exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // G204: wrk
	l.cmd.Env = append(os.Environ(), env...)
	stderr, err := l.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go l.listen(stderr)
	return l, nil
}

// listen reads what the script in wrk prints: that it begins, that its lines are
// used up, and its figures.
func (l *load) listen(stderr io.Reader) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		l.told = lines.Text()
		switch l.told {
		case "ready":
			close(l.ready)
		case "used up":
			close(l.usedUp)
		}
	}
	l.exited <- l.cmd.Wait()
}

// finish ends wrk after a while, or when its lines are used up, and returns what
// it tells.
func (l *load) finish(after time.Duration) (t told, err error) {
	select {
	case <-l.ready:
		select {
		case <-l.usedUp:
		case <-time.After(after):
		}
		err = l.interrupt()
	case err = <-l.exited:
	}
	if err == nil {
		err = json.Unmarshal([]byte(l.told), &t)
	}
	switch {
	case err != nil:
		return t, fmt.Errorf("wrk: %w: %s", err, l.told)
	case t.Wrong > 0 || t.Broken > 0 || t.Late > 0:
		return t, fmt.Errorf("of %d requests, %d were answered with another status than expected%s; besides, %d broke and %d were late",
			t.Requests, t.Wrong, t.Statuses, t.Broken, t.Late)
	case t.Requests == 0:
		return t, errUnanswered
	}
	return t, nil
}

// interrupt signals wrk until it ends: it misses a signal that comes before it
// has gone to sleep.
func (l *load) interrupt() error {
	for {
		_ = l.cmd.Process.Signal(syscall.SIGINT)
		select {
		case err := <-l.exited:
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// environment says to the script in wrk what to send.
func (c *testCase) environment(s slice) ([]string, error) {
	r := &c.request
	env := []string{"METHOD=" + r.method, "STATUS=" + strconv.Itoa(c.status)}
	for name, value := range map[string]func() (string, error){"TOKEN": r.token, "BASIC": r.basic, "BODY": r.body} {
		if value == nil {
			continue
		}
		text, err := value()
		if err != nil {
			return nil, err
		}
		env = append(env, name+"="+text)
	}
	if r.contentType != "" {
		env = append(env, "TYPE="+r.contentType)
	}
	if r.lines == "" {
		return env, nil
	}
	first, last, err := r.bytes(s)
	if err != nil {
		return nil, err
	}
	env = append(env, "LINES="+r.lines, "AS="+r.as, fmt.Sprintf("FIRST=%d", first), fmt.Sprintf("LAST=%d", last))
	if r.order == once {
		env = append(env, "ONCE=1")
	}
	return env, nil
}

// probe sends the first request of a case, and checks how it is answered.
func (c *testCase) probe(ctx context.Context) error {
	r := c.request
	path, body := r.path, ""
	header := http.Header{}
	line := ""
	if r.lines != "" {
		var err error
		if line, err = firstLine(r.lines); err != nil {
			return err
		}
	}
	switch r.as {
	case "token":
		header.Set("Authorization", "Bearer "+line)
	case "body":
		body = line
	case "path":
		return nil // whatever it names is changed by it
	}
	return errors.Join(r.complete(header, &body), c.expect(ctx, path, header, body))
}

// complete adds what is the same on each request.
func (r *request) complete(header http.Header, body *string) error {
	for prefix, value := range map[string]func() (string, error){"Bearer ": r.token, "Basic ": r.basic} {
		if value == nil {
			continue
		}
		text, err := value()
		if err != nil {
			return err
		}
		header.Set("Authorization", prefix+text)
	}
	if r.contentType != "" {
		header.Set("Content-Type", r.contentType)
	}
	if r.body == nil {
		return nil
	}
	var err error
	*body, err = r.body()
	return err
}

func (c *testCase) expect(ctx context.Context, path string, header http.Header, body string) error {
	req, err := http.NewRequestWithContext(ctx, c.request.method, "http://"+c.address+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = header
	status, answer, err := send(http.DefaultClient, req)
	if err != nil {
		return err
	}
	if status != c.status {
		return fmt.Errorf("%s: status %d instead of %d: %s", c.fullName(), status, c.status, answer)
	}
	return nil
}

// send returns the status and the body of the answer.
func send(client *http.Client, req *http.Request) (int, []byte, error) {
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

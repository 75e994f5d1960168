package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// server is a process with its children. It is started when it is first needed.
type server struct {
	name    string
	prepare func(context.Context) error // makes what it needs before it starts
	command []string
	env     []string
	listens []string // addresses
	vars    string   // the address that has Go's /debug/vars, if any
	core    string   // that it is kept on, if any

	log    string // the file that it writes to
	cmd    *exec.Cmd
	exited chan struct{}
}

// patience is how long a server may take to start: one with 10^6 credentials on
// a busy machine takes its time.
const patience = time.Minute

func (b *bench) add(s *server) *server {
	s.log = filepath.Join(b.temp, fmt.Sprintf("server-%d.log", len(b.servers)))
	b.servers = append(b.servers, s)
	return s
}

// ensure starts the server, unless it runs.
func (s *server) ensure(ctx context.Context) error {
	if s.cmd != nil {
		return nil
	}
	if s.prepare != nil {
		if err := s.prepare(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := s.start(); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	for begin := time.Now(); !s.listening(); time.Sleep(10 * time.Millisecond) {
		select {
		case <-s.exited:
			return s.failed("ended at once")
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Since(begin) > patience {
			return s.failed("doesn't listen")
		}
	}
	return nil
}

// start runs the command, in a process group of its own.
func (s *server) start() error {
	command := s.command
	if s.core != "" {
		command = append([]string{"taskset", "-c", s.core}, command...)
	}
	logFile, err := os.Create(s.log)
	if err != nil {
		return err
	}
	defer logFile.Close()
	s.cmd = exec.Command(command[0], command[1:]...) //nolint:gosec,noctx // G204: commands of this program; stop ends it
	s.cmd.Stdout, s.cmd.Stderr = logFile, logFile
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return err
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // failed tells what it wrote
		close(exited)
	}(s.cmd, s.exited)
	return nil
}

// failed returns an error with the end of what the server wrote.
func (s *server) failed(how string) error {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err
	}
	return fmt.Errorf("%s %s: %s", s.name, how, text[max(0, len(text)-2000):])
}

func (s *server) listening() bool {
	for _, address := range s.listens {
		conn, err := net.DialTimeout("tcp", address, time.Second) //nolint:noctx // has a timeout
		if err != nil {
			return false
		}
		_ = conn.Close()
	}
	return true
}

// stop ends the server and waits for its end.
func (s *server) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(15 * time.Second):
		log.Printf("%s doesn't end: killing it", s.name)
		_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
		<-s.exited
	}
	s.cmd = nil
}

// pids returns the processes of the server's group.
func (s *server) pids() []int { return processes(statGroup, s.cmd.Process.Pid) }

// Fields of /proc/<pid>/stat, from the one behind the name on.
const (
	statParent         = 1
	statGroup          = 2
	statChildrenUser   = 13 // of those that have ended, in ticks
	statChildrenSystem = 14
)

// processes returns those that have the value in a field.
func processes(field, value int) []int {
	var pids []int
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if fields := statFields(text); len(fields) > field && fields[field] == strconv.Itoa(value) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func statFields(stat []byte) []string {
	_, rest, _ := strings.Cut(string(stat), ") ") // behind the name, which may have spaces
	return strings.Fields(rest)
}

// cpu returns the time that the server has had, user and system, to the
// nanosecond: /proc tells it in hundredths of a second.
func (s *server) cpu() (time.Duration, error) {
	sum, err := cpuTime(s.pids())
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: %w", s.name, err)
	case sum == 0:
		return 0, s.failed("is gone")
	}
	return sum, nil
}

func cpuTime(pids []int) (sum time.Duration, err error) {
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

// residentKiB returns the memory that the server holds.
func (s *server) residentKiB() int {
	sum := 0
	for _, pid := range s.pids() {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
				n, _ := strconv.Atoi(fields[1])
				sum += n
			}
		}
	}
	return sum
}

// allocations is what a Go program has allocated since it began.
type allocations struct{ Mallocs, TotalAlloc uint64 }

var errNoVars = errors.New("this server doesn't tell")

func (s *server) allocations(ctx context.Context) (a allocations, err error) {
	if s.vars == "" {
		return a, errNoVars
	}
	body, err := get(ctx, "http://"+s.vars+"/debug/vars")
	if err != nil {
		return a, err
	}
	var vars struct {
		MemStats allocations `json:"memstats"`
	}
	err = json.Unmarshal(body, &vars)
	return vars.MemStats, err
}

// saveProfile writes what the CPU does in the next seconds.
func (s *server) saveProfile(ctx context.Context, path string, seconds int) error {
	body, err := get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.vars, seconds))
	if err != nil {
		return err
	}
	return os.WriteFile(path, body, 0o600)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	status, body, err := send(http.DefaultClient, req)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: status %d", url, status)
	}
	return body, err
}

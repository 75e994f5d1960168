// Package postgresserver runs PostgreSQL servers with data of their own, for tests
// and for the benchmark. It needs Debian's package postgresql.
package postgresserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a server with a data directory of its own.
type Server struct {
	// Dir is the server's directory: data, log and password.
	Dir string
	// Port is its port on 127.0.0.1.
	Port int
	// Password is that of the superuser, caddy.
	Password string

	bin  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// ErrNotInstalled says that PostgreSQL's programs are not there.
var ErrNotInstalled = errors.New("PostgreSQL is not installed: apt-get install postgresql")

// New makes a server that waits for Start. Its directory is in the given one, which
// everybody has to be able to enter; by default in that for temporary files.
// Settings are name=value, as in postgresql.conf. It returns ErrNotInstalled where
// there is no PostgreSQL.
func New(dir string, port int, settings ...string) (*Server, error) {
	return newServer(dir, port, rand.Text(), func(s *Server) error { return s.initialize(settings) })
}

// NewReplica makes a server that waits for Start as New does, and then follows the
// one at another port (streaming replication), for which it is named replica.
func NewReplica(dir string, port, primary int, password string) (*Server, error) {
	return newServer(dir, port, password, func(s *Server) error { return s.copyFrom(primary) })
}

// newServer returns a server whose directory fill has filled.
func newServer(dir string, port int, password string, fill func(*Server) error) (*Server, error) {
	bin, err := Binaries()
	if err != nil {
		return nil, err
	}
	s := &Server{Port: port, Password: password, bin: bin}
	if s.Dir, err = os.MkdirTemp(dir, "postgres"); err != nil {
		return nil, err
	}
	if err := fill(s); err != nil {
		_ = os.RemoveAll(s.Dir)
		return nil, err
	}
	return s, nil
}

// Binaries returns the directory of the programs of the latest version, or
// ErrNotInstalled.
func Binaries() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		return filepath.Dir(slices.Max(found)), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", ErrNotInstalled
}

// Start starts the server on its port, after New, Stop or Kill, and returns when it
// answers.
func (s *Server) Start() error {
	// After a kill, its children end a moment later, and keep it from starting.
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := s.launch(); err != nil {
			return err
		}
		if s.ready() {
			return nil
		}
	}
	return fmt.Errorf("PostgreSQL does not start: %s", s.Log())
}

// Stop has the server end its connections and stop.
func (s *Server) Stop() { s.end(os.Interrupt) }

// Kill ends the server at once, as a crash does.
func (s *Server) Kill() { s.end(os.Kill) }

// Remove ends the server for good.
func (s *Server) Remove() {
	s.Kill()
	// Its children may still be writing.
	for range 100 {
		if os.RemoveAll(s.Dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// PID returns the process whose children serve the connections.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// URL returns the connection string of a database, which need not exist.
func (s *Server) URL(database string) string { return s.URLThrough(s.Port, database) }

// URLThrough returns the same by way of another port of 127.0.0.1.
func (s *Server) URLThrough(port int, database string) string {
	return fmt.Sprintf("postgres://caddy:%s@127.0.0.1:%d/%s?sslmode=disable", s.Password, port, database)
}

// Log returns the end of the server's log.
func (s *Server) Log() string {
	text, _ := os.ReadFile(s.path("log"))
	return "the log of PostgreSQL ends with\n" + string(text[max(0, len(text)-4000):])
}

func (s *Server) initialize(settings []string) error {
	if err := os.WriteFile(s.path("password"), []byte(s.Password), 0o600); err != nil {
		return err
	}
	if err := giveAway(s.Dir, s.path("password")); err != nil {
		return err
	}
	initdb := s.command("initdb", "--pgdata", s.path("data"), "--username", "caddy", "--pwfile", s.path("password"),
		"--auth", "scram-sha-256", "--locale", "C", "--encoding", "UTF8", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	file, err := os.OpenFile(s.path("data/postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	settings = append([]string{
		"listen_addresses = '127.0.0.1'",
		"unix_socket_directories = ''",
		"fsync = on",
		"shared_buffers = 16MB",
	}, settings...)
	_, err = file.WriteString(strings.Join(settings, "\n") + "\n")
	return errors.Join(err, file.Close())
}

func (s *Server) copyFrom(primary int) error {
	if err := giveAway(s.Dir); err != nil {
		return err
	}
	from := fmt.Sprintf("host=127.0.0.1 port=%d user=caddy application_name=replica", primary)
	// It writes these, and the password, into the settings of the replica.
	copying := s.command("pg_basebackup", "--pgdata", s.path("data"), "--dbname", from,
		"--wal-method", "stream", "--checkpoint", "fast", "--no-sync", "--write-recovery-conf")
	copying.Env = append(copying.Env, "PGPASSWORD="+s.Password)
	if out, err := copying.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	return nil
}

func (s *Server) launch() error {
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own
	cmd := s.command("postgres", "-D", s.path("data"), "-p", fmt.Sprint(s.Port))
	cmd.Stdout, cmd.Stderr = log, log
	started, done := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // which ends no sooner than the server, see asOwner
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	s.cmd, s.done = cmd, done
	return <-started
}

// ready waits until the server answers, and returns false where it has ended.
func (s *Server) ready() bool {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		cancel()
		if err == nil {
			_ = conn.Close(context.Background())
			return true
		}
		select {
		case <-s.done:
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) end(signal os.Signal) {
	_ = s.cmd.Process.Signal(signal)
	<-s.done
}

func (s *Server) path(name string) string { return filepath.Join(s.Dir, name) }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	asOwner(cmd)
	return cmd
}

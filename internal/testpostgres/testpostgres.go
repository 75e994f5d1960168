// Package testpostgres runs real PostgreSQL servers for tests. It needs Debian's
// package postgresql.
package testpostgres

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
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
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

// Main runs the tests, and ends the server that they shared. Every TestMain of a
// package that uses Shared calls it.
func Main(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		shared.server.remove()
	}
	os.Exit(code)
}

// Shared returns a server for those tests that neither stop it nor change its
// settings: each makes a database. Where PostgreSQL is not installed, the test is
// skipped, but for CI.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		shared.server = start(t)
	}
	return shared.server
}

var shared struct {
	sync.Mutex
	server *Server
}

// Start starts a server that ends with its test. Settings are name=value, as in
// postgresql.conf.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := start(t, settings...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.log())
		}
		s.remove()
	})
	return s
}

func start(t testing.TB, settings ...string) *Server {
	t.Helper()
	s := newServer(t, rand.Text())
	if err := s.initialize(settings); err != nil {
		os.RemoveAll(s.Dir)
		t.Fatal(err)
	}
	s.Restart(t)
	return s
}

// newServer returns one that has no data yet.
func newServer(t testing.TB, password string) *Server {
	t.Helper()
	s := &Server{Port: freeport.For(t), Password: password, bin: binaries(t)}
	// Not t.TempDir, which another user can't enter.
	var err error
	if s.Dir, err = os.MkdirTemp("", "postgres"); err != nil {
		t.Fatal(err)
	}
	return s
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

// URL returns the connection string of a database, which need not exist.
func (s *Server) URL(database string) string { return s.url(s.Port, database) }

func (s *Server) url(port int, database string) string {
	return fmt.Sprintf("postgres://caddy:%s@127.0.0.1:%d/%s?sslmode=disable", s.Password, port, database)
}

// NewDatabase makes an empty database and returns its name.
func (s *Server) NewDatabase(t testing.TB) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text())
	s.Exec(t, "postgres", "CREATE DATABASE "+name)
	return name
}

// Exec runs statements in a database.
func (s *Server) Exec(t testing.TB, database string, statements ...string) {
	t.Helper()
	conn := s.Connect(t, database)
	defer func() { _ = conn.Close(context.Background()) }()
	for _, statement := range statements {
		if _, err := conn.Exec(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// Connect returns a connection, which is closed when the test ends.
func (s *Server) Connect(t testing.TB, database string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), s.URL(database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Stop has the server end its connections and stop.
func (s *Server) Stop() { s.end(os.Interrupt) }

// Kill ends the server at once, as a crash does.
func (s *Server) Kill() { s.end(os.Kill) }

func (s *Server) end(signal os.Signal) {
	_ = s.cmd.Process.Signal(signal)
	<-s.done
}

// Restart starts the server, after Stop or Kill, on its port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	// After a kill, its children end a moment later, and keep it from starting.
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err := s.launch(); err != nil {
			t.Fatal(err)
		}
		if s.ready() {
			return
		}
	}
	t.Fatalf("PostgreSQL does not start: %s", s.log())
}

func (s *Server) launch() error {
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
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

// remove ends the server for good.
func (s *Server) remove() {
	s.Kill()
	// Its children may still be writing.
	for range 100 {
		if os.RemoveAll(s.Dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// log returns the end of the server's log.
func (s *Server) log() string {
	text, _ := os.ReadFile(s.path("log"))
	return "the log of PostgreSQL ends with\n" + string(text[max(0, len(text)-4000):])
}

func (s *Server) path(name string) string { return filepath.Join(s.Dir, name) }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	asOwner(cmd)
	return cmd
}

// binaries returns the directory of the programs of the latest version.
func binaries(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		return filepath.Dir(slices.Max(found))
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path)
	}
	if os.Getenv("CI") != "" {
		t.Fatal("PostgreSQL is not installed")
	}
	t.Skip("PostgreSQL is not installed")
	return ""
}

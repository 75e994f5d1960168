// Package testpostgres runs real PostgreSQL servers for tests. It needs Debian's
// package postgresql.
package testpostgres

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/postgresserver"
)

// Server is a server with a data directory of its own, whose log a failed test
// shows.
type Server struct{ *postgresserver.Server }

// Main runs the tests, and ends the server that they shared. Every TestMain of a
// package that uses Shared calls it.
func Main(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		shared.server.Remove()
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
			t.Log(s.Log())
		}
		s.Remove()
	})
	return s
}

func start(t testing.TB, settings ...string) *Server {
	t.Helper()
	// Not in t.TempDir, which another user can't enter.
	server, err := postgresserver.New("", freeport.For(t), settings...)
	if errors.Is(err, postgresserver.ErrNotInstalled) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{server}
	s.Restart(t)
	return s
}

// Restart starts the server, after Stop or Kill, on its port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
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

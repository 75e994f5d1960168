package testpostgres

import (
	"context"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/postgresserver"
)

// Replica starts a server that follows this one (streaming replication), and ends
// with its test, and returns the network between them. Where it is synchronous,
// this one acknowledges no commit that the replica does not have on its disk.
func (s *Server) Replica(t testing.TB, synchronous bool) (*Server, *Proxy) {
	t.Helper()
	network := NewProxy(t, s)
	server, err := postgresserver.NewReplica("", freeport.For(t), network.port, s.Password)
	if err != nil {
		t.Fatal(err)
	}
	replica := &Server{server}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(replica.Log())
		}
		replica.Remove()
	})
	replica.Restart(t)
	follows := "state = 'streaming'"
	if synchronous {
		s.Exec(t, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'replica'", "SELECT pg_reload_conf()")
		follows = "sync_state = 'sync'"
	}
	s.await(t, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'replica' AND "+follows+")")
	return replica, network
}

// CatchUp returns when a replica has all that this server has now.
func (s *Server) CatchUp(t testing.TB, replica *Server) {
	t.Helper()
	var written string
	if err := s.Connect(t, "postgres").QueryRow(context.Background(), "SELECT pg_current_wal_lsn()::text").Scan(&written); err != nil {
		t.Fatal(err)
	}
	replica.await(t, "SELECT pg_last_wal_replay_lsn() >= '"+written+"'::pg_lsn")
}

// Promote has a replica follow no more, and take changes.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	s.Exec(t, "postgres", "SELECT pg_promote(false)")
	s.await(t, "SELECT NOT pg_is_in_recovery()")
}

// await returns when a query says true.
func (s *Server) await(t testing.TB, query string) {
	t.Helper()
	conn := s.Connect(t, "postgres")
	defer func() { _ = conn.Close(context.Background()) }()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var yes bool
		if err := conn.QueryRow(context.Background(), query).Scan(&yes); err != nil {
			t.Fatal(err)
		}
		if yes {
			return
		}
	}
	t.Fatalf("never true: %s", query)
}

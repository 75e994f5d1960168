package command_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// What needs a database for itself is refused while a server has it open, which is
// named, and leaves it as it is.
func TestWhatNeedsTheStoreAloneIsRefusedWhileANodeHasIt(t *testing.T) {
	postgres := testpostgres.Start(t)
	database := postgres.NewDatabase(t)
	shared := strings.Replace(testserver.Simple, "store badger {{dir}}/store",
		fmt.Sprintf("master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n\t\tstore postgres %q", postgres.URL(database)), 1)
	s := testserver.New(t)
	server := s.Start(t, shared)
	c := create(t, s)
	succeed(t, s, "backup", "file")
	token := s.Token(t, c)
	write(t, s, "lost.caddyfile", []byte(strings.Replace(s.Expand(shared), "MDEy", "MDEz", 1)))
	write(t, s, "from.caddyfile", []byte(strings.Replace(s.Expand(testserver.Simple), "store badger", "master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n\t\tstore badger", 1)))
	create(t, s, "--offline", "--config", "from.caddyfile")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	refused := [][]string{
		{"restore", "file"},
		{"copy", "--from", "from.caddyfile", "--to", "Caddyfile"},
		{"replace-lost-master-key", "--config", "lost.caddyfile"},
	}
	postgres.Exec(t, database, `DELETE FROM client_credentials_records WHERE key = 'format'`) // as one of the first release
	for _, args := range refused {
		fail(t, s, args, "a server has the store open, on "+host, "stop it first")
	}
	changed := false
	if err := postgres.Connect(t, database).QueryRow(t.Context(),
		`SELECT count(*) > 0 FROM client_credentials_records WHERE key LIKE 'format%'`).Scan(&changed); err != nil || changed {
		t.Errorf("the format of the store was changed: %t, %v", changed, err)
	}
	wantStatus(t, s, token, 200)
	wantStatus(t, s, s.Token(t, c), 200)

	stop(t, server) // by a kill, so that its lease has to run out
	for _, args := range refused[:2] {
		for deadline := time.Now().Add(30 * time.Second); strings.Contains(run(t, s, args...).stderr, "has the store open"); {
			if time.Now().After(deadline) {
				t.Fatal("a server that was killed has the store open for ever")
			}
		}
		fail(t, s, args, "the store is not empty")
	}
	say(t, succeed(t, s, refused[2]...), c.ClientID)
}

// A node can't be seen while it does not reach the database. It is seen in the end, and
// what was made by then is no whole store.
func TestANodeIsNoticedThatReachesTheDatabaseMeanwhile(t *testing.T) {
	postgres := testpostgres.Start(t)
	database := postgres.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, postgres)
	s := testserver.New(t)
	const key = "master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n\t\tstore "
	shared := func(url string) string {
		return strings.Replace(testserver.Simple, "store badger {{dir}}/store", key+fmt.Sprintf("postgres %q", url), 1)
	}
	s.Start(t, shared(proxy.URL(database)))
	create(t, s)
	succeed(t, s, "backup", "file")
	write(t, s, "to.caddyfile", []byte(s.Expand(shared(postgres.URL(database)))))
	write(t, s, "from.caddyfile", []byte(strings.Replace(s.Expand(testserver.Simple), "store ", key, 1)))
	create(t, s, "--offline", "--config", "from.caddyfile")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"restore", "--config", "to.caddyfile", "file"},
		{"copy", "--from", "from.caddyfile", "--to", "to.caddyfile"},
	} {
		proxy.Cut()
		postgres.Exec(t, database, `DROP TABLE client_credentials_nodes, client_credentials_changes,
			client_credentials_head, client_credentials_records, client_credentials_schema`)
		ended := make(chan result, 1)
		go func() { ended <- run(t, s, args...) }()
		conn := postgres.Connect(t, database)
		for begun, deadline := false, time.Now().Add(30*time.Second); !begun; time.Sleep(10 * time.Millisecond) {
			err := conn.QueryRow(t.Context(), `SELECT count(*) > 0 FROM client_credentials_records WHERE key = 'restore_unfinished'`).Scan(&begun)
			if time.Now().After(deadline) {
				t.Fatalf("it does not begin: %v", err)
			}
		}
		proxy.Heal()
		failed(t, <-ended, args, []string{"a server has the store open, on " + host, "stop it first"})
		fail(t, s, []string{"list", "--offline", "--config", "to.caddyfile"}, "was not finished")
	}
}

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
	for _, args := range refused {
		fail(t, s, args, "a server has the store open, on "+host, "stop it first")
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

package command_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func keys(t *testing.T, s *testserver.Server) (keys []issuer.Key) {
	t.Helper()
	unmarshal(t, succeed(t, s, "keys", "--json"), &keys)
	return keys
}

// published returns the ids of the keys of the key set.
func published(t *testing.T, s *testserver.Server) (ids []string) {
	t.Helper()
	var set struct{ Keys []struct{ KID string } }
	if err := json.Unmarshal([]byte(testserver.Body(t, s.Do(t, "GET", "/api/v0/oauth/jwks", ""))), &set); err != nil {
		t.Fatal(err)
	}
	for _, key := range set.Keys {
		ids = append(ids, key.KID)
	}
	return ids
}

func TestARotatedKeyIsPublishedAndListed(t *testing.T) {
	s := simple(t)
	first := keys(t, s)
	if len(first) != 1 || first[0].Phase != issuer.KeySigning || first[0].Algorithm != "ES256" {
		t.Fatalf("at first: %+v", first)
	}
	if out := succeed(t, s, "rotate-key"); !strings.HasPrefix(out, "published ") {
		t.Errorf("standard output: %q", out)
	}
	both := keys(t, s)
	if len(both) != 2 || both[0] != first[0] || both[1].Phase != issuer.KeyNext {
		t.Fatalf("after it: %+v", both)
	}
	if got := published(t, s); !slices.Equal(got, []string{both[0].ID, both[1].ID}) {
		t.Errorf("published: %v", got)
	}
	table := succeed(t, s, "keys")
	for _, want := range []string{"KID", both[0].ID, both[1].ID, "signing", "signs from"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q: %s", want, table)
		}
	}
}

func TestTheTokensOfARevokedKeyAreRefusedAtOnce(t *testing.T) {
	s := simple(t)
	c := create(t, s)
	token := s.Token(t, c)
	wantStatus(t, s, token, 200)
	revoked := keys(t, s)[0].ID
	if out := succeed(t, s, "revoke-key", revoked); out != "revoked "+revoked+"\n" {
		t.Errorf("standard output: %q", out)
	}
	wantStatus(t, s, token, 401)
	fresh := s.Token(t, c)
	wantStatus(t, s, fresh, 200)
	if got := published(t, s); len(got) != 1 || got[0] == revoked {
		t.Errorf("published: %v", got)
	}
	fail(t, s, []string{"revoke-key", revoked}, "revoked before")
	fail(t, s, []string{"revoke-key", "nosuchkey"}, "no such key")

	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Run(t, testserver.Simple)
	wantStatus(t, s, token, 401)
	wantStatus(t, s, fresh, 200)
}

func TestTheMasterKeyIsReplacedUnderARunningServer(t *testing.T) {
	s := simple(t)
	c := create(t, s)
	token := s.Token(t, c)
	file := filepath.Join(s.Dir, "storage", "keys", "client_credentials_master.key")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	succeed(t, s, "rewrap")
	after, err := os.ReadFile(file)
	if err != nil || string(after) == string(before) {
		t.Fatalf("the master key is the one before: %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the master key's file: %v, %v", info.Mode(), err)
	}
	wantStatus(t, s, token, 200)
	s.Token(t, c)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Run(t, testserver.Simple)
	wantStatus(t, s, token, 200)
	s.Token(t, c)
	fail(t, s, []string{"rewrap", "--to", file}, "leave it out")
	write(t, s, "empty", []byte("\n"))
	fail(t, s, []string{"rewrap", "--to", "empty"}, "empty", "openssl")
	if again, err := os.ReadFile(file); err != nil || string(again) != string(after) {
		t.Errorf("the master key was replaced, though another was meant: %v", err)
	}
	for _, log := range []string{string(before), string(after)} {
		text, err := os.ReadFile(filepath.Join(s.Dir, "log"))
		if err != nil || strings.Contains(string(text), strings.TrimSpace(log)) {
			t.Errorf("the log holds a master key: %v", err)
		}
	}
}

func TestALostMasterKeyIsReplacedByACommand(t *testing.T) {
	fail(t, testserver.New(t), []string{"replace-lost-master-key"}, "name the configuration by --config")
	s := simple(t)
	c := create(t, s, "--name", "robot")
	token := s.Token(t, c)
	fail(t, s, []string{"replace-lost-master-key"}, "held by another process")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	fail(t, s, []string{"replace-lost-master-key"}, "nothing is lost", "rewrap")
	if err := os.Remove(filepath.Join(s.Dir, "storage", "keys", "client_credentials_master.key")); err != nil {
		t.Fatal(err)
	}
	if out := succeed(t, s, "replace-lost-master-key"); !strings.Contains(out, c.ClientID) || !strings.Contains(out, "robot") {
		t.Errorf("standard output: %q", out)
	}
	s.Run(t, testserver.Simple)
	wantStatus(t, s, token, 200)
	if status, body := tokenAnswer(t, s, c); status != 401 {
		t.Errorf("a lost secret: %d %s", status, body)
	}
	s.Token(t, create(t, s))
}

package command_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// damageLog flips a bit in the record that the log of the store holds last of a
// credential.
func damageLog(t *testing.T, s *testserver.Server, clientID string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(s.Dir, "store", "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no log is there: %v", err)
	}
	log := logs[len(logs)-1]
	content, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(content, []byte(clientID))
	if at < 0 {
		t.Fatal("the credential is not in the log")
	}
	content[at] ^= 1
	if err := os.WriteFile(log, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// keyIDs returns the ids of the keys that the server publishes.
func keyIDs(t *testing.T, s *testserver.Server) (ids []string) {
	t.Helper()
	var set struct{ Keys []struct{ KID string } }
	unmarshal(t, testserver.Body(t, s.Do(t, "GET", "/api/v0/oauth/jwks", "")), &set)
	for _, key := range set.Keys {
		ids = append(ids, key.KID)
	}
	if len(ids) == 0 {
		t.Error("no key is published")
	}
	return ids
}

func TestALostRevocationIsNoticedAndTheLossAcceptedOnlyByCommand(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	kept, gone := create(t, s), create(t, s)
	keptToken, goneToken := s.Token(t, kept), s.Token(t, gone)
	succeed(t, s, "revoke", gone.ClientID)
	wantStatus(t, s, goneToken, 401)
	before := keyIDs(t, s)
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	damageLog(t, s, gone.ClientID)

	if err := s.Command("run", "--config", filepath.Join(s.Dir, "Caddyfile")).Run(); err == nil {
		t.Fatal("the server has started")
	}
	for _, part := range []string{"the store in " + filepath.Join(s.Dir, "store") + " is damaged", "the last 1 are lost", "restore a backup", "caddy client-credentials accept-loss"} {
		if !strings.Contains(s.Log(t), part) {
			t.Errorf("the log lacks %q", part)
		}
	}
	fail(t, s, []string{"list", "--offline"}, "the last 1 are lost")
	if out := succeed(t, s, "accept-loss"); !strings.Contains(out, "the last 1 are lost") || !strings.Contains(out, "All tokens are ended") {
		t.Errorf("standard output: %s", out)
	}

	s.Start(t, testserver.Simple)
	for _, key := range before {
		if slices.Contains(keyIDs(t, s), key) {
			t.Errorf("signing key %s is still published", key)
		}
	}
	wantStatus(t, s, goneToken, 401)
	wantStatus(t, s, keptToken, 401)
	wantStatus(t, s, s.Token(t, kept), 200)
	// This one works again, and can be revoked again.
	token := s.Token(t, gone)
	wantStatus(t, s, token, 200)
	succeed(t, s, "revoke", gone.ClientID)
	wantStatus(t, s, token, 401)
}

func TestALossIsNotAcceptedWhileAServerHoldsTheStore(t *testing.T) {
	s := testserver.New(t)
	s.Start(t, testserver.Simple)
	c := create(t, s)
	token := s.Token(t, c)
	fail(t, s, []string{"accept-loss"}, "held by another process")
	wantStatus(t, s, token, 200)
}

package command_test

import (
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

type shownSecret struct {
	ID, Secret    string
	Hint, Expires *string
}

func secrets(t *testing.T, s *testserver.Server, c testserver.Credential, mode ...string) []shownSecret {
	t.Helper()
	var list []shownSecret
	unmarshal(t, succeed(t, s, append([]string{"secrets", c.ClientID, "--json"}, mode...)...), &list)
	return list
}

func secretIDs(t *testing.T, s *testserver.Server, c testserver.Credential, mode ...string) (ids []string) {
	t.Helper()
	for _, secret := range secrets(t, s, c, mode...) {
		ids = append(ids, secret.ID)
	}
	return ids
}

func TestASecretIsReplacedWithoutAnOutage(t *testing.T) {
	s := simple(t)
	old := create(t, s)
	token := s.Token(t, old)
	var added shownSecret
	unmarshal(t, succeed(t, s, "rotate-secret", old.ClientID, "--json", "--overlap", "1h"), &added)
	next := testserver.Credential{ClientID: old.ClientID, Secret: added.Secret}
	wantStatus(t, s, s.Token(t, next), 200)
	wantStatus(t, s, s.Token(t, old), 200)
	wantStatus(t, s, token, 200)
	list := secrets(t, s, old)
	if len(list) != 2 || list[0].Expires == nil || list[1].Expires != nil || list[1].ID != added.ID || *list[1].Hint != added.Secret[20:] || list[1].Secret != "" {
		t.Errorf("listed: %+v", list)
	}
	table := succeed(t, s, "secrets", old.ClientID)
	say(t, table, "SECRET ID         HINT", added.ID, added.Secret[20:])
	if strings.Contains(table, added.Secret) {
		t.Error("the list shows a secret")
	}

	if out := succeed(t, s, "delete-secret", "--yes", old.ClientID, list[0].ID); out != "deleted "+list[0].ID+"\n" {
		t.Errorf("standard output: %q", out)
	}
	wantStatus(t, s, token, 401)
	if status, body := tokenAnswer(t, s, old); status != 401 {
		t.Errorf("with the secret that was deleted: %d %s", status, body)
	}
	s.Token(t, next)
	failWith(t, s, 4, []string{"delete-secret", "--yes", old.ClientID, added.ID}, "no other secret")
}

func TestALeakedSecretEndsAtOnce(t *testing.T) {
	s := simple(t)
	c := create(t, s)
	token := s.Token(t, c)
	out := succeed(t, s, "rotate-secret", c.ClientID, "--overlap", "0s", "--yes")
	say(t, out, "The earlier ones have ended", "shown this once")
	wantStatus(t, s, token, 401)
	if status, body := tokenAnswer(t, s, c); status != 401 {
		t.Errorf("with the secret that has leaked: %d %s", status, body)
	}
	c.Secret = strings.Fields(out)[4]
	s.Token(t, c)
}

func TestSecretsAreReplacedOffline(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	c := create(t, s, "--offline")
	var added shownSecret
	unmarshal(t, succeed(t, s, "rotate-secret", c.ClientID, "--offline", "--json"), &added)
	ids := secretIDs(t, s, c, "--offline")
	if len(ids) != 2 || ids[1] != added.ID {
		t.Fatalf("listed: %q", ids)
	}
	succeed(t, s, "delete-secret", "--offline", "--yes", c.ClientID, ids[0])
	s.Run(t, testserver.Simple)
	if status, body := tokenAnswer(t, s, c); status != 401 {
		t.Errorf("with the secret that was deleted: %d %s", status, body)
	}
	s.Token(t, testserver.Credential{ClientID: c.ClientID, Secret: added.Secret})
}

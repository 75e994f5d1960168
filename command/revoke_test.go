package command_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestAnAccountIsRevokedAtOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, s *testserver.Server, mode ...string) {
		create(t, s, append(mode, "--account", "team-7")...)
		create(t, s, append(mode, "--account", "team-7")...)
		other := create(t, s, mode...)
		if out := succeed(t, s, append(mode, "revoke", "--account", "team-7", "--yes")...); out != "revoked 2 credentials\n" {
			t.Errorf("standard output: %q", out)
		}
		if left := list(t, s, mode...); len(left) != 1 || left[0].ClientID != other.ClientID {
			t.Errorf("left are %+v", left)
		}
		if out := succeed(t, s, append(mode, "revoke", "--account", "team-7", "--yes", "--json")...); out != `{"revoked":0}`+"\n" {
			t.Errorf("once more: %q", out)
		}
	})
}

func TestWhatACredentialHasCreatedIsRevoked(t *testing.T) {
	s := simple(t)
	manager := create(t, s, "--scope", issuer.ScopeWrite)
	token := s.Token(t, manager)
	resp := s.Do(t, "POST", "/api/v0/client-credentials", `{}`, append(testserver.Bearer(token), "Content-Type", "application/json")...)
	var child testserver.Credential
	unmarshal(t, testserver.Body(t, resp), &child)
	childToken := s.Token(t, child)
	say(t, succeed(t, s, "show", child.ClientID), "created by           "+manager.ClientID)
	failWith(t, s, 4, []string{"revoke", "--created-by", manager.ClientID}, "--yes", manager.ClientID)
	wantStatus(t, s, childToken, 200)
	if out := succeed(t, s, "revoke", "--created-by", manager.ClientID, "--yes", "--json"); out != `{"revoked":1}`+"\n" {
		t.Errorf("standard output: %q", out)
	}
	wantStatus(t, s, childToken, 401)
	wantStatus(t, s, token, 200)
}

func TestWhatCannotBeUndoneIsNotDoneUnasked(t *testing.T) {
	s := simple(t)
	c := create(t, s, "--account", "team-7")
	token := s.Token(t, c)
	succeed(t, s, "rotate-secret", c.ClientID) // nothing ends for a while: it does not ask
	for _, args := range [][]string{
		{"revoke", "--account", "team-7"},
		{"revoke", "--created-by", c.ClientID},
		{"rotate-secret", c.ClientID, "--overlap", "0s"},
		{"rotate-secret", c.ClientID, "--overlap", "0"},
		{"delete-secret", c.ClientID, secretIDs(t, s, c)[0]},
	} {
		failWith(t, s, 4, args, "can't be undone", "--yes")
	}
	wantStatus(t, s, token, 200)
	if n := len(secretIDs(t, s, c)); n != 2 {
		t.Errorf("%d secrets are left", n)
	}
}

func TestTheExitCodeSaysWhy(t *testing.T) {
	eachMode(t, func(t *testing.T, s *testserver.Server, mode ...string) {
		c := create(t, s, mode...)
		secret := secretIDs(t, s, c, mode...)[0]
		missing := strings.Repeat("0", 32)
		for _, test := range []struct {
			code int
			args []string
			text string
		}{
			{2, []string{"creat"}, "creat"},
			{2, []string{"create", "ops"}, "ops"},
			{2, []string{"create", "--names", "ops"}, "--names"},
			{2, []string{"create", "--scope", "a b"}, "scopes"},
			{2, []string{"create", "--claims", "{"}, "--claims"},
			{2, []string{"create", "--claims", `{"sub":"x"}`}, "claims"},
			{2, []string{"create", "--token-lifetime", "soon"}, "tokenLifetime"},
			{2, []string{"list", "--account", "a/b"}, "account"},
			{2, []string{"show"}, "show --help"},
			{2, []string{"show", ""}, "empty"},
			{2, []string{"update", c.ClientID}, "--clear"},
			{2, []string{"update", c.ClientID, "--clear", "account"}, "--clear"},
			{2, []string{"update", c.ClientID, "--name", "x", "--clear", "name"}, "do not go together"},
			{2, []string{"update", c.ClientID, "--expires", "2001-01-01T00:00:00Z"}, "expires is in the past"},
			{2, []string{"revoke"}, "--created-by"},
			{2, []string{"revoke", c.ClientID, "--account", "a"}, "name one"},
			{2, []string{"revoke", "--account", ""}, "name one"},
			{2, []string{"revoke", "--yes", "--account", "a/b"}, "account"},
			{2, []string{"rotate-secret", c.ClientID, "--overlap", "long"}, "--overlap"},
			{2, []string{"rotate-secret", c.ClientID, "--overlap", "-1h"}, "overlap"},
			{3, []string{"show", missing}, "no such credential"},
			{3, []string{"show", "keys"}, "no such credential"},
			{3, []string{"show", ".."}, "no such credential"},
			{3, []string{"update", missing, "--name", "x"}, "no such credential"},
			{3, []string{"disable", missing}, "no such credential"},
			{3, []string{"revoke", missing}, "no such credential"},
			{3, []string{"revoke", "--yes", "--created-by", missing}, "no such credential"},
			{3, []string{"rotate-secret", missing}, "no such credential"},
			{3, []string{"secrets", missing}, "no such credential"},
			{3, []string{"delete-secret", "--yes", c.ClientID, "0011223344556677"}, ""},
			{3, []string{"revoke-key", "none"}, ""},
			{2, []string{"revoke-key", "-none"}, "revoke-key --help"},
			{4, []string{"delete-secret", c.ClientID, secret}, "--yes"},
			{4, []string{"delete-secret", "--yes", c.ClientID, secret}, "no other secret"},
		} {
			failWith(t, s, test.code, append(test.args, mode...), test.text)
		}
		failWith(t, s, 3, slices.Concat([]string{"revoke-key"}, mode, []string{"--", "-none"}), "no such key")
		if left := list(t, s, mode...); len(left) != 1 || left[0].Name != nil {
			t.Errorf("left are %+v", left)
		}
	})
	s := testserver.New(t)
	failWith(t, s, 1, []string{"list", "--address", s.Admin}, "no Caddy answers")
	failWith(t, s, 2, []string{"list", "--offline"}, "--config")
}

func TestTheShellCompletesWhatTheServerKnows(t *testing.T) {
	s := simple(t)
	c := create(t, s, "--name", "robot", "--account", "team-7")
	complete := func(args ...string) string {
		t.Helper()
		out, err := s.Command(append([]string{"__complete", "client-credentials"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	for _, command := range []string{"show", "update", "disable", "enable", "revoke", "rotate-secret", "secrets", "delete-secret"} {
		say(t, complete(command, ""), c.ClientID+"\tteam-7 robot\n", ":4\n") // 4 is for no files
	}
	say(t, complete("delete-secret", c.ClientID, ""), secretIDs(t, s, c)[0])
	say(t, complete("list", "--account", ""), "team-7\n")
	say(t, complete("create", "--account", ""), "team-7\n")
	say(t, complete("revoke", "--account", ""), "team-7\n")
	say(t, complete("revoke", "--created-by", ""), c.ClientID)
	say(t, complete("update", c.ClientID, "--clear", ""), "token-lifetime\n", "scope\n")
	if out := complete("show", "--offline", ""); strings.Contains(out, c.ClientID) {
		t.Errorf("a store is opened for a completion: %s", out)
	}
	if out := complete("show", c.ClientID, ""); strings.Contains(out, c.ClientID) {
		t.Errorf("more is completed than it takes: %s", out)
	}
}

func TestACredentialMayBeCalledLikeAPartOfThePath(t *testing.T) {
	eachMode(t, func(t *testing.T, s *testserver.Server, mode ...string) {
		write(t, s, "lines", []byte(`{"clientId":"keys","secret":"a-secret-of-the-keys"}`+"\n"+`{"clientId":"a.b~c@d","secret":"a-secret-of-another"}`+"\n"))
		succeed(t, s, append(mode, "import", "lines")...)
		for _, id := range []string{"keys", "a.b~c@d"} {
			say(t, show(t, s, id, mode...), `"account":"default"`)
			if out := succeed(t, s, append(mode, "revoke", id)...); out != "revoked "+id+"\n" {
				t.Errorf("standard output: %q", out)
			}
		}
		if n := len(list(t, s, mode...)); n != 0 {
			t.Errorf("%d credentials are left", n)
		}
	})
}

func TestACredentialOfTheCaddyfileIsShownAndNotChanged(t *testing.T) {
	s := testserver.New(t)
	_, line := hashSecret(t, s)
	load(t, s, credential(line))
	say(t, succeed(t, s, "show", "orders"), "created by           the configuration\n")
	failWith(t, s, 4, []string{"update", "orders", "--name", "x"}, "")
	failWith(t, s, 4, []string{"revoke", "orders"}, "")
}

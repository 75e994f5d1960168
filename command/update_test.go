package command_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// eachMode runs a test on a running server, and on a store that none holds.
func eachMode(t *testing.T, test func(t *testing.T, s *testserver.Server, mode ...string)) {
	t.Run("online", func(t *testing.T) { test(t, simple(t)) })
	t.Run("offline", func(t *testing.T) {
		s := testserver.New(t)
		s.WriteCaddyfile(t, testserver.Simple)
		test(t, s, "--offline")
	})
}

// show returns what the command of that name prints of a credential, but for what
// tells it from others.
func show(t *testing.T, s *testserver.Server, clientID string, mode ...string) string {
	t.Helper()
	var shown map[string]json.RawMessage
	unmarshal(t, succeed(t, s, append([]string{"show", "--json", clientID}, mode...)...), &shown)
	if string(shown["clientId"]) != `"`+clientID+`"` || string(shown["secret"]) != "null" {
		t.Errorf("shown: %s", shown)
	}
	for _, name := range []string{"clientId", "credentialId", "created", "secret"} {
		if shown[name] == nil {
			t.Errorf("%s is not shown", name)
		}
		delete(shown, name)
	}
	rest, err := json.Marshal(shown)
	if err != nil {
		t.Fatal(err)
	}
	return string(rest)
}

func TestUpdateChangesWhatIsNamedAlone(t *testing.T) {
	eachMode(t, func(t *testing.T, s *testserver.Server, mode ...string) {
		id := create(t, s, append(mode, "--name", "robot", "--scope", "a", "--scope", "b", "--audience", "urn:a", "--grantable", "c",
			"--token-lifetime", "5m", "--claims", `{"tenant":"x","tier":1}`, "--account", "team-7", "--expires", "2099-06-21T00:00:00Z")...).ClientID
		const begin = `{"account":"team-7","audiences":["urn:a"],"claims":{"tenant":"x","tier":1},"expires":"2099-06-21T00:00:00.000Z",` +
			`"grantable":["c"],"name":"robot","scopes":["a","b"],"status":"active","tokenLifetime":"5m"}`
		if got := show(t, s, id, mode...); got != begin {
			t.Fatalf("created: %s", got)
		}
		for _, step := range []struct {
			args []string
			want string
		}{
			{
				[]string{"--name", "Ключ 鍵"},
				strings.Replace(begin, "robot", "Ключ 鍵", 1),
			},
			{
				[]string{"--scope", "c", "--audience", "urn:b", "--grantable", "", "--token-lifetime", "10m", "--claims", `{"tier":null,"level":2}`, "--tokens-per-hour", "9", "--requests-per-second", "8", "--expires", "2098-06-21T00:00:00Z"},
				`{"account":"team-7","audiences":["urn:b"],"claims":{"level":2,"tenant":"x"},"expires":"2098-06-21T00:00:00.000Z",` +
					`"grantable":[],"name":"Ключ 鍵","requestsPerSecond":8,"scopes":["c"],"status":"active","tokenLifetime":"10m","tokensPerHour":9}`,
			},
			{
				[]string{"--clear", "name,expires,audience", "--clear", "grantable", "--clear", "token-lifetime", "--clear", "claims,tokens-per-hour,requests-per-second", "--clear", "scope"},
				`{"account":"team-7","expires":null,"name":null,"scopes":[],"status":"active"}`,
			},
		} {
			if out := succeed(t, s, append(append([]string{"update", id}, step.args...), mode...)...); out != "updated "+id+"\n" {
				t.Errorf("%q: standard output %q", step.args, out)
			}
			if got := show(t, s, id, mode...); got != step.want {
				t.Errorf("%q: %s\nwant %s", step.args, got, step.want)
			}
		}
		out := succeed(t, s, append([]string{"update", id, "--json", "--name", "<&>"}, mode...)...)
		if !strings.Contains(out, `"clientId":"`+id+`"`) || !strings.Contains(out, `"name":"<&>"`) {
			t.Errorf("the JSON of update: %s", out)
		}
		succeed(t, s, append([]string{"update", id, "--tokens-per-hour", "9"}, mode...)...)
		table := succeed(t, s, append([]string{"show", id}, mode...)...)
		for _, line := range []string{
			"client id " + id, "name <&>", "account team-7", "status active", "grantable -", "tokens per hour 9", "requests per second no limit", "expires -", "last used -",
		} {
			if !strings.Contains(strings.Join(strings.Fields(table), " "), line) {
				t.Errorf("no %q in %s", line, table)
			}
		}
	})
}

func TestADisabledCredentialIsRefusedUntilItIsEnabled(t *testing.T) {
	s := simple(t)
	c := create(t, s, "--scope", "a")
	token := s.Token(t, c)
	wantStatus(t, s, token, 200)
	if out := succeed(t, s, "disable", c.ClientID); out != "disabled "+c.ClientID+"\n" {
		t.Errorf("standard output: %q", out)
	}
	wantStatus(t, s, token, 401)
	if status, body := tokenAnswer(t, s, c); status != 401 {
		t.Errorf("a disabled credential: %d %s", status, body)
	}
	say(t, succeed(t, s, "list"), " disabled ")
	if out := succeed(t, s, "enable", c.ClientID); out != "enabled "+c.ClientID+"\n" {
		t.Errorf("standard output: %q", out)
	}
	wantStatus(t, s, token, 401)
	wantStatus(t, s, s.Token(t, c), 200)
	say(t, succeed(t, s, "list"), " active ")
}

func TestAGrantableScopeCanBeGivenByTheCommandLine(t *testing.T) {
	s := simple(t)
	token := s.Token(t, create(t, s, "--scope", issuer.ScopeWrite, "--grantable", "items:read"))
	for scope, want := range map[string]int{"items:read": 201, "items:write": 403} {
		resp := s.Do(t, "POST", "/api/v0/client-credentials", `{"scopes":["`+scope+`"]}`, append(testserver.Bearer(token), "Content-Type", "application/json")...)
		if resp.StatusCode != want {
			t.Errorf("one that may give items:read gives %s: %s", scope, resp.Status)
		}
	}
}

func TestTheListCanBeOfOneAccount(t *testing.T) {
	eachMode(t, func(t *testing.T, s *testserver.Server, mode ...string) {
		create(t, s, mode...)
		c := create(t, s, append(mode, "--account", "team-7")...)
		if got := list(t, s, append(mode, "--account", "team-7")...); len(got) != 1 || got[0].ClientID != c.ClientID {
			t.Errorf("listed: %+v", got)
		}
	})
}

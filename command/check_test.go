package command_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// check runs check-token with the token on standard input.
func check(t *testing.T, s *testserver.Server, token string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := s.Command(append([]string{"client-credentials", "check-token"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(token), &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if part := strings.TrimSpace(token); len(part) > 100 && strings.Contains(stdout.String()+stderr.String(), part[60:100]) {
		t.Error("the command repeats the token")
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func TestCheckTokenSaysWhetherAndWhyNot(t *testing.T) {
	s := simple(t)
	c := s.CreateWith(t, "a", "b")
	token := s.Token(t, c)
	gone := s.CreateWith(t)
	goneToken := s.Token(t, gone)
	succeed(t, s, "revoke", gone.ClientID)
	elsewhere := s.Token(t, s.Create(t, issuer.Draft{Audiences: []string{"urn:stock"}}))
	for _, test := range []struct {
		name, token string
		args        []string
		reason      string
	}{
		{"a good one", token, nil, ""},
		{"with its scheme and a line break", "Bearer " + token + "\n", nil, ""},
		{"with its scopes", token, []string{"--scope", "b", "--scope", "a"}, ""},
		{"for its audience", elsewhere, []string{"--audience", "urn:stock"}, ""},
		{"without the scope", token, []string{"--scope", "a", "--scope", "c"}, "insufficient scope"},
		{"for another audience", token, []string{"--audience", "urn:stock"}, "wrong audience"},
		{"not for the default audience", elsewhere, nil, "wrong audience"},
		{"of a revoked credential", goneToken, nil, "revoked"},
		{"tampered with", token[:len(token)-4] + "AAAA", nil, "wrong signature"},
		{"no token at all", "x.y.z", nil, "not a compact JWS"},
	} {
		r := check(t, s, test.token, test.args...)
		switch {
		case test.reason == "" && (r.code != 0 || !strings.HasPrefix(r.stdout, "accepted\n")):
			t.Errorf("%s: exit code %d, %s%s", test.name, r.code, r.stdout, r.stderr)
		case test.reason != "" && (r.code != 4 || r.stdout != "" || !strings.Contains(r.stderr, "would be refused: "+test.reason)):
			t.Errorf("%s: exit code %d, %s%s, want %q", test.name, r.code, r.stdout, r.stderr, test.reason)
		}
	}
	for _, args := range [][]string{{"--scope", "a b"}, {"--audience", "urn:a urn:b"}} {
		if r := check(t, s, token, args...); r.code != 2 || !strings.Contains(r.stderr, strings.TrimPrefix(args[0], "--")) {
			t.Errorf("%q: exit code %d, %s", args, r.code, r.stderr)
		}
	}
	if r := check(t, s, " \n"); r.code != 2 || !strings.Contains(r.stderr, "no token on standard input") {
		t.Errorf("without a token: exit code %d, %s", r.code, r.stderr)
	}
}

func TestCheckTokenAnswersInJSON(t *testing.T) {
	s := simple(t)
	c := s.CreateWith(t, "a")
	var verdict struct {
		Accepted      bool
		ClientID      string `json:"client_id"`
		Reason, Scope string
		Aud           []string
	}
	r := check(t, s, s.Token(t, c), "--json")
	unmarshal(t, r.stdout, &verdict)
	if r.code != 0 || !verdict.Accepted || verdict.ClientID != c.ClientID || verdict.Scope != "a" || len(verdict.Aud) != 1 {
		t.Errorf("exit code %d, %s", r.code, r.stdout)
	}
	r = check(t, s, "x.y.z", "--json")
	if r.code != 4 || r.stdout != `{"accepted":false,"reason":"not a compact JWS"}`+"\n" {
		t.Errorf("exit code %d, %s", r.code, r.stdout)
	}
}

func TestCheckTokenWorksOnAStoreThatNoServerHolds(t *testing.T) {
	s := testserver.New(t)
	cmd := s.Start(t, testserver.Simple)
	token := s.Token(t, create(t, s))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if r := check(t, s, token, "--offline"); r.code != 0 {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}

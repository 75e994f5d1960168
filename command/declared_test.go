package command_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// declaring returns the simple site's Caddyfile with more settings.
func declaring(settings ...string) string {
	return strings.Replace(testserver.Simple, "store badger", strings.Join(settings, "\n")+"\nstore badger", 1)
}

// hashSecret has a secret made, and the line for a Caddyfile.
func hashSecret(t *testing.T, s *testserver.Server) (secret, line string) {
	t.Helper()
	made := regexp.MustCompile(`^secret       (\S{24})\nsecret_hash  (\S+)\n$`).FindStringSubmatch(succeed(t, s, "hash-secret"))
	if made == nil {
		t.Fatal("hash-secret prints something else")
	}
	return made[1], "secret_hash " + made[2]
}

func load(t *testing.T, s *testserver.Server, settings ...string) {
	t.Helper()
	s.Run(t, declaring(settings...))
	s.WriteCaddyfile(t, declaring(settings...))
}

func credential(settings ...string) string {
	return "credential orders {\n" + strings.Join(settings, "\n") + "\n}"
}

func TestACredentialOfTheCaddyfileWorksForAsLongAsItIsThere(t *testing.T) {
	s := testserver.New(t)
	secret, line := hashSecret(t, s)
	orders := testserver.Credential{ClientID: "orders", Secret: secret}
	load(t, s, credential(line, "scopes items:read items:write", "account team-7"))
	first := s.Token(t, orders)
	wantStatus(t, s, first, 200)
	if header := s.Upstream.Take()[0].Header; header.Get("X-Client-Id") != "orders" || header.Get("X-Client-Scope") != "items:read items:write" || header.Get("X-Client-Account") != "team-7" {
		t.Errorf("the upstream sees %v", header)
	}

	load(t, s, credential(line, "scopes items:read items:write items:delete", "account team-7", `name "Orders"`))
	wantStatus(t, s, first, 200) // it has got more
	if got := list(t, s); len(got) != 1 || got[0].Name == nil || *got[0].Name != "Orders" {
		t.Errorf("the list is %+v", got)
	}
	load(t, s, credential(line, "scopes items:read", "account team-7"))
	wantStatus(t, s, first, 401) // it has got less
	second := s.Token(t, orders)
	wantStatus(t, s, second, 200)

	load(t, s)
	wantStatus(t, s, second, 401)
	if status, _ := tokenAnswer(t, s, orders); status != 401 {
		t.Errorf("when it is gone, it gets %d", status)
	}
	if got := list(t, s); len(got) != 0 {
		t.Errorf("the list is %+v", got)
	}
	load(t, s, credential(line, "scopes items:read", "account team-7"))
	wantStatus(t, s, second, 401)
	wantStatus(t, s, s.Token(t, orders), 200)
	if got := list(t, s); len(got) != 1 {
		t.Errorf("the list is %+v", got)
	}
	load(t, s, credential(line, "scopes items:read", "account team-8"))
	if got := list(t, s); len(got) != 1 || got[0].Account != "team-8" {
		t.Errorf("in another account, the list is %+v", got)
	}
}

func TestACredentialOfTheCaddyfileKeepsToItsLimits(t *testing.T) {
	s := testserver.New(t)
	secret, line := hashSecret(t, s)
	orders := testserver.Credential{ClientID: "orders", Secret: secret}
	load(t, s, credential(line))
	token := s.Token(t, orders)
	load(t, s, credential(line, "tokens_per_hour 1", "requests_per_second 1"))
	s.Token(t, orders)
	if status, body := tokenAnswer(t, s, orders); status != 429 {
		t.Errorf("the second token: %d %s", status, body)
	}
	for n := 0; ; n++ { // however slow this machine is
		resp := s.Do(t, "GET", "/x", "", testserver.Bearer(token)...)
		if resp.StatusCode == 429 && n > 0 {
			break
		}
		if resp.StatusCode != 200 || n == 20 {
			t.Fatalf("request %d: %s", n, resp.Status)
		}
	}
}

func TestASecretOfTheCaddyfileIsReplacedByASecondOne(t *testing.T) {
	s := testserver.New(t)
	secret, line := hashSecret(t, s)
	next, nextLine := hashSecret(t, s)
	load(t, s, credential(line))
	token := s.Token(t, testserver.Credential{ClientID: "orders", Secret: secret})
	load(t, s, credential(line, nextLine))
	wantStatus(t, s, token, 200)
	for _, secret := range []string{secret, next} {
		wantStatus(t, s, s.Token(t, testserver.Credential{ClientID: "orders", Secret: secret}), 200)
	}
	load(t, s, credential(nextLine))
	wantStatus(t, s, token, 401)
	if status, _ := tokenAnswer(t, s, testserver.Credential{ClientID: "orders", Secret: secret}); status != 401 {
		t.Errorf("the first secret: %d", status)
	}
	wantStatus(t, s, s.Token(t, testserver.Credential{ClientID: "orders", Secret: next}), 200)
}

func TestNobodyButTheCaddyfileChangesItsCredentials(t *testing.T) {
	s := testserver.New(t)
	secret, line := hashSecret(t, s)
	orders := testserver.Credential{ClientID: "orders", Secret: secret}
	load(t, s, credential(line))
	manager := s.CreateWith(t, "client-credentials:write")
	token := s.Token(t, manager)
	one := "/api/v0/client-credentials/orders"
	for _, c := range [][3]string{
		{"DELETE", one, ""}, {"PATCH", one, `{"name":"x"}`}, {"PATCH", one, `{"enabled":false}`}, {"POST", one + "/secrets", `{}`},
	} {
		resp := s.Do(t, c[0], c[1], c[2], append(testserver.Bearer(token), "Content-Type", "application/json")...)
		if body := testserver.Body(t, resp); resp.StatusCode != 409 || !strings.Contains(body, "declared in the server's configuration") {
			t.Errorf("%s %s %s: %s %s", c[0], c[1], c[2], resp.Status, body)
		}
	}
	fail(t, s, []string{"revoke", "orders"}, "declared in the server's configuration")
	if resp := s.Do(t, "DELETE", "/api/v0/client-credentials?account=default", "", testserver.Bearer(token)...); resp.StatusCode != 200 || testserver.Body(t, resp) != `{"revoked":0}` {
		t.Errorf("revoking the account: %s", resp.Status)
	}
	wantStatus(t, s, s.Token(t, orders), 200)
}

// A configuration that fails has changed nothing for good.
func TestAReloadThatFailsBringsTheDeclaredCredentialsBack(t *testing.T) {
	s := testserver.New(t)
	secret, line := hashSecret(t, s)
	orders := testserver.Credential{ClientID: "orders", Secret: secret}
	load(t, s, credential(line, "scopes items:read"))
	c := create(t, s)
	clash := strings.Replace(declaring(credential(line)), "credential orders", "credential "+c.ClientID, 1)
	if err := s.Load(clash); err == nil || !strings.Contains(err.Error(), c.ClientID) || !strings.Contains(err.Error(), "was created, or imported") {
		t.Errorf("a declaration of what was created: %v", err)
	}
	wantStatus(t, s, s.Token(t, orders), 200)
	for range 8 { // apps start in any order
		if err := s.Load(testserver.Simple + "http://localhost:{{port}} {\n\tbind 192.0.2.1\n\trespond hi\n}\n"); err == nil {
			t.Fatal("the reload did not fail")
		}
		wantStatus(t, s, s.Token(t, orders), 200)
	}
	if got := list(t, s); len(got) != 2 {
		t.Errorf("the list is %+v", got)
	}
}

func TestHashSecretTakesASecretThatThereIs(t *testing.T) {
	s := testserver.New(t)
	for secret, begins := range map[string]string{
		"iObGKtihdEScOmDiZxZ+6Q==":     "secret_hash  $pbkdf2-sha256$i=1,l=32$",
		"correct horse battery staple": "secret_hash  $argon2id$v=19$",
	} {
		cmd := s.Command("client-credentials", "hash-secret", "--stdin")
		cmd.Stdin = strings.NewReader(secret + "\n")
		out, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(out), begins) || strings.Contains(string(out), secret) {
			t.Errorf("%q: %v, %s", secret, err, out)
		}
		_, line, _ := strings.Cut(string(out), "  ")
		load(t, s, credential("secret_hash "+line))
		wantStatus(t, s, s.Token(t, testserver.Credential{ClientID: "orders", Secret: secret}), 200)
	}
	cmd := s.Command("client-credentials", "hash-secret", "--stdin")
	cmd.Stdin = strings.NewReader("two\nlines\n")
	if out, err := cmd.Output(); err == nil {
		t.Errorf("two lines are hashed: %s", out)
	}
}

package command_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// Made by other programs: passlib, htpasswd, and Python's hashlib in the form of
// Hydra. All are of the same secret.
const (
	foreignSecret  = "secret of another server"
	byPasslib      = "$argon2id$v=19$m=1024,t=2,p=2$ae19rzVG6P2/13oPQQhhbA$buI4yt+OJNEcZsK+UxrKxA"
	byHtpasswd     = "$2y$04$y6.4hiA/L77MJQOLJaOKxOyTOZrZN8Y1nNY.qrOwdgnAZhtEWlGfG"
	asHydraHasThem = "$pbkdf2-sha256$i=1000,l=32$MDEyMzQ1Njc4OWFiY2RlZg$oDjVA84xxF1ZeZEZ4w12Ga9xsagpguMfMF3FAAwKSns"
)

func writeLines(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clients.jsonl")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantNotKept(t *testing.T, r result, failed, all int) {
	t.Helper()
	if r.code != 1 || !strings.Contains(r.stderr, fmt.Sprintf("%d of %d lines were not kept", failed, all)) {
		t.Errorf("exit code %d, standard error %q, want that %d of %d lines were not kept", r.code, r.stderr, failed, all)
	}
}

func TestClientsOfAnotherServerGoOnWithTheSecretsThatTheyHave(t *testing.T) {
	s := simple(t)
	const uuid = "2c4b1a6e-0b1d-4a57-9a43-8d5e4a8c9a11"
	file := writeLines(t,
		`{"clientId":"orders","name":"Orders","scopes":["items:read"],"created":"2020-01-31T12:00:00Z","secrets":["`+byPasslib+`"]}`,
		``,
		`{"clientId":"`+uuid+`","account":"team-7","secrets":[{"hash":"`+asHydraHasThem+`","hint":"rver"},"`+byHtpasswd+`"]}`,
		`{"clientId":"stock","secret":"`+foreignSecret+`"}`,
		`{"clientId":"random","secret":"K7gNU3sdo-OL0wNhqoVWhr3g6s1xYv72ol_pe.Unols"}`,
		`{"clientId":"paused","secret":"`+foreignSecret+`","enabled":false}`)
	if out := succeed(t, s, "import", "--dry-run", file); out != "5 could be imported\n" {
		t.Errorf("a dry run says %q", out)
	}
	if n := len(list(t, s)); n != 0 {
		t.Fatalf("a dry run has kept %d", n)
	}
	if out := succeed(t, s, "import", file); out != "5 imported\n" {
		t.Errorf("standard output: %q", out)
	}
	for _, c := range []testserver.Credential{
		{ClientID: "orders", Secret: foreignSecret},
		{ClientID: uuid, Secret: foreignSecret},
		{ClientID: "stock", Secret: foreignSecret},
		{ClientID: "random", Secret: "K7gNU3sdo-OL0wNhqoVWhr3g6s1xYv72ol_pe.Unols"},
	} {
		wantStatus(t, s, s.Token(t, c), 200)
		if id := s.Upstream.Take()[0].Header.Get("X-Client-Id"); id != c.ClientID {
			t.Errorf("the upstream sees %q, want %q", id, c.ClientID)
		}
		if status, body := tokenAnswer(t, s, testserver.Credential{ClientID: c.ClientID, Secret: c.Secret + "x"}); status != 401 {
			t.Errorf("%s with a wrong secret: %d %s", c.ClientID, status, body)
		}
	}
	if status, body := tokenAnswer(t, s, testserver.Credential{ClientID: "paused", Secret: foreignSecret}); status != 401 {
		t.Errorf("a disabled one: %d %s", status, body)
	}
	wantNotKept(t, run(t, s, "import", file), 5, 5)
	succeed(t, s, "revoke", "orders")
	if status, _ := tokenAnswer(t, s, testserver.Credential{ClientID: "orders", Secret: foreignSecret}); status != 401 {
		t.Errorf("a revoked one: %d", status)
	}
	if log := s.Log(t); !strings.Contains(log, `"action":"credential.imported","client_id":"orders"`) || strings.Contains(log, foreignSecret) {
		t.Errorf("its log: %s", log)
	}
}

func TestTheLinesOfTheReadmeCanBeImported(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```jsonl\n")
	lines, _, _ := strings.Cut(rest, "```")
	if out := succeed(t, simple(t), "import", writeLines(t, strings.TrimSpace(lines))); out != "2 imported\n" {
		t.Errorf("standard output: %q", out)
	}
}

func TestALineThatIsWrongIsNamedAndLeavesTheOthersAlone(t *testing.T) {
	s := simple(t)
	wrong := []struct{ line, says string }{
		{`{"clientId":"a b","secret":"x"}`, "clientId takes 1 to 128"},
		{`{"secret":"x"}`, "clientId takes 1 to 128"},
		{`{"clientId":"none"}`, "secrets are missing"},
		{`{"clientId":"bad","secrets":["$2a$31$y6.4hiA/L77MJQOLJaOKxOyTOZrZN8Y1nNY.qrOwdgnAZhtEWlGfG"]}`, "bcrypt cost 31"},
		{`{"clientId":"bad","secrets":["a-secret-in-the-clear"]}`, "holds a hash that is no PHC string"},
		{`{"clientId":"bad","secrets":[{"hash":"` + byHtpasswd + `","hint":"toolong"}]}`, "hint"},
		{`{"clientId":"bad","secrets":[{"hash":"` + byHtpasswd + `","expires":"1970-01-01T00:00:00Z"}]}`, "has expired"},
		{`{"clientId":"bad","secrets":[1]}`, "neither a hash nor an object"},
		{`{"clientId":"bad","secrets":{}}`, "secrets is not an array"},
		{`{"clientId":"bad","secret":"x","expires":"2001-01-01T00:00:00Z"}`, "expires is in the past"},
		{`{"clientId":"bad","secret":"x","created":"2999-01-01T00:00:00Z"}`, "created is in the future"},
		{`{"clientId":"bad","secret":"x","scopes":["a b"]}`, "scopes holds a scope"},
		{`{"clientId":"bad","secret":"x","redirect_uris":[]}`, "has a member that is not known"},
		{`{"clientId":"bad","clientId":"worse","secret":"x"}`, "appears twice"},
		{`{"clientId":"bad","secret":"x"`, "is not one JSON object"},
		{`{"clientId":"bad","secrets":["$hmac-sha256$pepper=0000000000000000$` + strings.Repeat("A", 43) + `"]}`, "another store, use copy"},
		{`{"clientId":"good","secret":"again"}`, "there is a credential of that client id"},
	}
	lines := []string{`{"clientId":"good","secret":"secret"}`}
	for _, w := range wrong {
		lines = append(lines, w.line)
	}
	r := run(t, s, "import", writeLines(t, lines...))
	wantNotKept(t, r, len(wrong), len(lines))
	report := strings.Split(r.stdout, "\n")
	for n, w := range wrong {
		if !strings.HasPrefix(report[n], fmt.Sprintf("line %d", n+2)) || !strings.Contains(report[n], w.says) {
			t.Errorf("%s: %q, want that it says %q", w.line, report[n], w.says)
		}
		for _, sent := range []string{"y6.4hiA", "a-secret-in", "worse"} {
			if strings.Contains(report[n], sent) {
				t.Errorf("%q repeats what was sent", report[n])
			}
		}
	}
	r = run(t, s, "import", "--dry-run", writeLines(t, `{"clientId":"new","secret":"x"}`, `{"clientId":"new","secret":"y"}`, lines[0]))
	if wantNotKept(t, r, 2, 3); strings.Count(r.stdout, "there is a credential of that client id") != 2 {
		t.Errorf("a dry run: %s", r.stdout)
	}
	if got := list(t, s); len(got) != 1 || got[0].ClientID != "good" {
		t.Errorf("%+v are kept, want the good one", got)
	}
}

func TestAnExportIsWhatAnImportReads(t *testing.T) {
	s := simple(t)
	made := create(t, s, "--name", "made here", "--scope", "items:read", "--account", "team-7")
	succeed(t, s, "import", writeLines(t, `{"clientId":"orders","secrets":["`+byPasslib+`"],"scopes":["items:read"],"claims":{"tenant":"7"}}`))
	gone := create(t, s)
	succeed(t, s, "revoke", gone.ClientID)
	exported := succeed(t, s, "export")
	if strings.Contains(exported, made.Secret) || strings.Contains(exported, gone.ClientID) || strings.Count(exported, "\n") != 2 {
		t.Errorf("it exports %s", exported)
	}
	file := writeLines(t, strings.Split(strings.TrimSpace(exported), "\n")...)
	wantNotKept(t, run(t, s, "import", file), 2, 2)

	// Another store has another pepper: it takes what another server has hashed.
	other := simple(t)
	r := run(t, other, "import", "--json", file)
	var reports []map[string]any
	for line := range strings.Lines(r.stdout) {
		var report map[string]any
		unmarshal(t, line, &report)
		reports = append(reports, report)
	}
	wantNotKept(t, r, 1, 2)
	if len(reports) != 2 {
		t.Fatalf("it reports %q", r.stdout)
	}
	for _, report := range reports {
		if _, failed := report["error"]; failed != (report["clientId"] == made.ClientID) {
			t.Errorf("into another store: %v", report)
		}
	}
	if again := succeed(t, other, "export"); !strings.Contains(exported, again) {
		t.Errorf("what is exported again differs:\n%s\n%s", exported, again)
	}
	if status, body := tokenAnswer(t, other, testserver.Credential{ClientID: "orders", Secret: foreignSecret}); status != 200 {
		t.Errorf("there, it gets %d %s", status, body)
	}
}

func TestAHashOfThisServerCountsForItsClientIDAlone(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	var c testserver.Credential
	unmarshal(t, succeed(t, s, "create", "--offline", "--json"), &c)
	exported := succeed(t, s, "export", "--offline")
	var line map[string]any
	if err := json.Unmarshal([]byte(exported), &line); err != nil {
		t.Fatal(err)
	}
	line["clientId"] = strings.Repeat("0", 32) // the hash is bound to the client id
	moved, _ := json.Marshal(line)
	succeed(t, s, "import", "--offline", writeLines(t, string(moved)))
	s.Run(t, testserver.Simple)
	if status, body := tokenAnswer(t, s, c); status != 200 {
		t.Errorf("the credential: %d %s", status, body)
	}
	if status, body := tokenAnswer(t, s, testserver.Credential{ClientID: strings.Repeat("0", 32), Secret: c.Secret}); status != 401 {
		t.Errorf("its hash under another client id: %d %s", status, body)
	}
}

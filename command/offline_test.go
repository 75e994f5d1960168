package command_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestACredentialMadeOfflineWorksOnline(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	c := create(t, s, "--offline", "--name", "ops", "--account", "team-7", "--scope", "items:read")
	gone := create(t, s, "--offline")
	if out := succeed(t, s, "revoke", "--offline", gone.ClientID); out != "revoked "+gone.ClientID+"\n" {
		t.Errorf("standard output: %q", out)
	}
	fail(t, s, []string{"revoke", "--offline", gone.ClientID}, "no such credential")
	fail(t, s, []string{"revoke", "--offline", "../../load"}, "no such credential")
	offline := list(t, s, "--offline")
	if len(offline) != 1 || offline[0].ClientID != c.ClientID || offline[0].Account != "team-7" {
		t.Fatalf("listed offline: %+v", offline)
	}

	s.Run(t, testserver.Simple)
	token := s.Token(t, c)
	wantStatus(t, s, token, 200)
	header := s.Upstream.Take()[0].Header
	if header.Get("X-Client-Account") != "team-7" || header.Get("X-Client-Scope") != "items:read" {
		t.Errorf("the upstream sees %v", header)
	}
	if status, body := tokenAnswer(t, s, gone); status != 401 {
		t.Errorf("a pair that was revoked offline: %d %s", status, body)
	}
	if online := list(t, s); len(online) != 1 || online[0].ClientID != c.ClientID {
		t.Errorf("listed online: %+v", online)
	}
}

func TestACredentialRevokedOfflineStaysRevoked(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	c := create(t, s)
	token := s.Token(t, c)
	wantStatus(t, s, token, 200)
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	succeed(t, s, "revoke", "--offline", c.ClientID)
	s.Start(t, testserver.Simple)
	wantStatus(t, s, token, 401)
}

func TestOfflineLeavesAStoreAloneThatAServerHolds(t *testing.T) {
	s := testserver.New(t)
	s.Start(t, testserver.Simple)
	c := create(t, s)
	fail(t, s, []string{"create", "--offline"}, filepath.Join(s.Dir, "store"), "held by another process", "stop it first")
	wantStatus(t, s, s.Token(t, c), 200)
	if n := len(list(t, s)); n != 1 {
		t.Errorf("%d credentials", n)
	}
}

func TestOfflineSaysWhichConfigurationItNeeds(t *testing.T) {
	s := testserver.New(t)
	fail(t, s, []string{"list", "--offline"}, "--offline needs --config")
	fail(t, s, []string{"list", "--offline", "--address", s.Admin}, "--offline needs --config")
	if err := os.WriteFile(filepath.Join(s.Dir, "other.caddyfile"), []byte(":80 {\n\trespond hi\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fail(t, s, []string{"list", "--offline", "--config", "other.caddyfile"}, "other.caddyfile", "add the global option client_credentials")
	entries, err := os.ReadDir(s.Dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the commands have left %v, %v", entries, err)
	}
}

// Offline must take a file for what Caddy takes it for: it may open another
// store than the server does, else.
func TestOfflineReadsAConfigurationAsCaddyDoes(t *testing.T) {
	s := testserver.New(t)
	caddyfile := s.Expand(testserver.Simple)
	config, err := s.Adapt(testserver.Simple)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"Caddyfile": caddyfile, "caddyfile.test": caddyfile, "Caddyfile.test": caddyfile, "server.caddyfile": caddyfile,
		"server.conf": caddyfile, "server.json": string(config), "Caddyfile.json": string(config),
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	create(t, s, "--offline")
	for _, flags := range [][]string{
		{"--config", "Caddyfile"},
		{"--config", "Caddyfile.test"},
		{"--config", "caddyfile.test"},
		{"-c", "server.caddyfile"},
		{"-c", "server.conf", "-a", "caddyfile"},
		{"--config", "server.json"},
		{"--config", "Caddyfile.json"},
	} {
		if validate := s.Command(append([]string{"validate"}, flags...)...); validate.Run() != nil {
			t.Fatalf("%q: Caddy itself does not take this", flags)
		}
		r := run(t, s, append([]string{"list", "--offline", "--json"}, flags...)...)
		if r.code != 0 || strings.Count(r.stdout, "clientId") != 1 {
			t.Errorf("%q: exit code %d, %s%s", flags, r.code, r.stdout, r.stderr)
		}
	}
}

func TestWhatIsChangedOfflineIsInTheAuditLog(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	told := func(args ...string) (output string, changes []string) {
		t.Helper()
		r := run(t, s, args...)
		if r.code != 0 {
			t.Fatalf("%q: %s", args, r.stderr)
		}
		for line := range strings.Lines(r.stderr) {
			var change struct {
				Logger, Action, Account, By, From, Kid string
				ClientID                               string `json:"client_id"`
			}
			if json.Unmarshal([]byte(line), &change) == nil && change.Logger == "client_credentials.audit" && change.By == issuer.ByCommand {
				changes = append(changes, change.Action+" "+change.ClientID+change.Kid+" "+change.Account+", "+change.From)
			}
		}
		return r.stdout, changes
	}
	want := func(got []string, want string) {
		t.Helper()
		if len(got) != 1 || got[0] != want+", offline command" {
			t.Errorf("the audit log has %q, want %s", got, want)
		}
	}
	made, changes := told("create", "--offline", "--json", "--account", "team-7")
	var c testserver.Credential
	unmarshal(t, made, &c)
	want(changes, "credential.created "+c.ClientID+" team-7")
	if _, changes = told("list", "--offline"); len(changes) > 0 {
		t.Errorf("to list is no change: %q", changes)
	}
	_, changes = told("revoke", "--offline", c.ClientID)
	want(changes, "credential.revoked "+c.ClientID+" team-7")
	keys, _ := told("keys", "--offline", "--json")
	var listed []issuer.Key
	unmarshal(t, keys, &listed)
	_, changes = told("revoke-key", "--offline", listed[0].ID)
	want(changes, "key.revoked "+listed[0].ID+" ")
	_, changes = told("rewrap", "--offline")
	want(changes, "master_key.replaced  ")
}

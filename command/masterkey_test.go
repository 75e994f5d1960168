package command_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// write writes a file into the server's directory.
func write(t *testing.T, s *testserver.Server, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *testserver.Server, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// say checks that an output says all of what is wanted.
func say(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, text := range want {
		if !strings.Contains(out, text) {
			t.Errorf("the output does not say %q: %s", text, out)
		}
	}
}

func TestTheMasterKeyIsMovedByExportAndImport(t *testing.T) {
	s := testserver.New(t)
	fail(t, s, []string{"export-key"}, "--config")
	s.WriteCaddyfile(t, testserver.Simple)
	fail(t, s, []string{"export-key"}, "client_credentials_master.key", "does not exist")
	create(t, s, "--offline")
	r := run(t, s, "export-key")
	if r.code != 0 || len(r.stdout) != 45 || !strings.Contains(r.stderr, "can forge tokens") || strings.Contains(r.stderr, strings.TrimSpace(r.stdout)) {
		t.Fatalf("exit code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if out := succeed(t, s, "export-key", "key"); strings.Contains(out, strings.TrimSpace(r.stdout)) {
		t.Errorf("shown, though a file was asked for: %q", out)
	}
	if got := read(t, s, "key"); string(got) != r.stdout {
		t.Errorf("the file has %q", got)
	}
	if info, _ := os.Stat(filepath.Join(s.Dir, "key")); runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("it has mode %v", info.Mode())
	}
	fail(t, s, []string{"export-key", "key"}, "exists")

	given := strings.Replace(testserver.Simple, "issuer", "master_key {file."+filepath.Join(s.Dir, "key")+"}\n\t\tissuer", 1)
	write(t, s, "given.caddyfile", []byte(s.Expand(given)))
	if out := succeed(t, s, "export-key", "--config", "given.caddyfile"); out != r.stdout {
		t.Errorf("master_key is shown as %q", out)
	}
	fail(t, s, []string{"import-key", "key", "--config", "given.caddyfile"}, "master_key of its own")

	say(t, succeed(t, s, "import-key", "key"), "master key") // the same one
	write(t, s, "other", []byte("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"))
	fail(t, s, []string{"import-key", "other"}, "is sealed with the master key", "move the store away")
	lost := filepath.Join(s.Dir, "storage", "keys", "client_credentials_master.key")
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "AAAA", strings.Repeat("A", 2000), strings.Repeat("=", 44)} {
		write(t, s, "wrong", []byte(text))
		fail(t, s, []string{"import-key", "wrong"}, "is not 32 bytes in base64")
	}
	cmd := s.Command("client-credentials", "import-key")
	cmd.Stdin = strings.NewReader(r.stdout)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if info, err := os.Stat(lost); err != nil || runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if n := len(list(t, s, "--offline")); n != 1 {
		t.Errorf("%d credentials are listed", n)
	}
}

func TestAReplacementThatWasCutShortIsToldByExport(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	create(t, s, "--offline")
	if r := run(t, s, "export-key"); strings.Contains(r.stderr, "cut short") {
		t.Errorf("told without a reason: %s", r.stderr)
	}
	const next = "storage/keys/client_credentials_master.key.next"
	write(t, s, next, []byte("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"))
	r := run(t, s, "export-key")
	say(t, r.stderr, "cut short", "start the server")
	if r.code != 0 || strings.Contains(r.stderr, "MDEy") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
	write(t, s, next, []byte(r.stdout))
	if r := run(t, s, "export-key"); strings.Contains(r.stderr, "cut short") {
		t.Errorf("told though both are the same key: %s", r.stderr)
	}
}

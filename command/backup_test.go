package command_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// restored is the simple site with its store in another place.
var restored = strings.Replace(testserver.Simple, "{{dir}}/store", "{{dir}}/restored", 1)

// stop ends a server that runs in a process of its own.
func stop(t *testing.T, server *exec.Cmd) {
	t.Helper()
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
}

func TestABackupOfARunningServerCanBeRestored(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	kept, gone := create(t, s, "--name", "kept", "--scope", "items:read"), create(t, s)
	succeed(t, s, "revoke", gone.ClientID)
	token := s.Token(t, kept)
	const holds = "credentials   1 active, 0 expired, 1 revoked\nsigning keys  1\nmaster key    "
	out := succeed(t, s, "backup", "file")
	say(t, out, holds)
	if again := succeed(t, s, "verify", "file"); again != out {
		t.Errorf("backup says %q, and verify %q", out, again)
	}
	wantStatus(t, s, token, 200)
	key := signingKey(t, s)
	stop(t, server)
	if offline := succeed(t, s, "backup", "--offline", "offline"); !strings.Contains(offline, holds) {
		t.Errorf("offline: %q", offline)
	}
	if listed := list(t, s, "--offline"); len(listed) != 1 {
		t.Errorf("the backup has changed the store: %+v", listed)
	}

	s.WriteCaddyfile(t, restored)
	out = succeed(t, s, "restore", "file")
	say(t, out, holds, "All tokens from before are refused", "work again", "credential.revoked")
	s.Start(t, restored)
	wantStatus(t, s, token, 401)
	wantStatus(t, s, s.Token(t, kept), 200)
	if status, body := tokenAnswer(t, s, gone); status != 401 {
		t.Errorf("what was revoked before the backup: %d %s", status, body)
	}
	if listed := list(t, s); len(listed) != 1 || listed[0].ClientID != kept.ClientID || *listed[0].Name != "kept" {
		t.Errorf("listed: %+v", listed)
	}
	if now := signingKey(t, s); now == key { // it may have been revoked after the backup
		t.Errorf("the signing key is still %s", now)
	}
}

// With a key of the operator's, nothing but the epochs tells earlier tokens from
// new ones.
func TestARestoreEndsTokensThoughTheSigningKeyStays(t *testing.T) {
	s := testserver.New(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	given := func(caddyfile string) string {
		return strings.Replace(caddyfile, "issuer", "signing_key {{dir}}/key.pem\n\t\tissuer", 1)
	}
	server := s.Start(t, given(testserver.Simple))
	c := create(t, s)
	succeed(t, s, "backup", "file")
	token := s.Token(t, c)
	wantStatus(t, s, token, 200)
	stop(t, server)
	s.WriteCaddyfile(t, given(restored))
	succeed(t, s, "restore", "file")
	s.Start(t, given(restored))
	wantStatus(t, s, token, 401)
	wantStatus(t, s, s.Token(t, c), 200)
}

// signingKey returns the id of the only one that there is.
func signingKey(t *testing.T, s *testserver.Server) string {
	t.Helper()
	var keys []struct{ KID string }
	unmarshal(t, succeed(t, s, "keys", "--json"), &keys)
	if len(keys) != 1 {
		t.Fatalf("the keys are %v", keys)
	}
	return keys[0].KID
}

func TestABackupIsANewFileForItsOwnerOnly(t *testing.T) {
	s := simple(t)
	create(t, s)
	succeed(t, s, "backup", "file")
	info, err := os.Stat(filepath.Join(s.Dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("it has mode %v", info.Mode())
	}
	before := read(t, s, "file")
	create(t, s)
	fail(t, s, []string{"backup", "file"}, "file exists already", "name a new file")
	if !bytes.Equal(read(t, s, "file"), before) {
		t.Error("the earlier backup was overwritten")
	}
	fail(t, s, []string{"backup", "missing/file"}, "missing")
	if partial, _ := filepath.Glob(filepath.Join(s.Dir, "*partial*")); len(partial) > 0 {
		t.Errorf("left over: %v", partial)
	}
}

func TestABackupOfNothingIsRefused(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	fail(t, s, []string{"backup", "--offline", "file"}, "the store is empty", filepath.Join(s.Dir, "store"))
	fail(t, s, []string{"copy", "--from", "Caddyfile", "--to", "Caddyfile"}, "the same store")
}

func TestABackupShowsItsProgress(t *testing.T) {
	s := simple(t)
	create(t, s)
	succeed(t, s, "backup", "whole")
	whole := read(t, s, "whole")
	address := fakeAdmin(t, func(w http.ResponseWriter) {
		_, _ = w.Write(whole[:len(whole)/2])
		_ = http.NewResponseController(w).Flush()
		time.Sleep(1100 * time.Millisecond)
		_, _ = w.Write(whole[len(whole)/2:])
	})
	if r := run(t, s, "backup", "file", "--address", address); r.code != 0 || !strings.Contains(r.stderr, "0.0 MB\n") {
		t.Errorf("exit code %d, standard error %q", r.code, r.stderr)
	}
	if !bytes.Equal(read(t, s, "file"), whole) {
		t.Error("the file is not what was sent")
	}
}

// fakeAdmin runs an admin endpoint that answers so, and returns its address.
func fakeAdmin(t *testing.T, answer func(w http.ResponseWriter)) string {
	t.Helper()
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	t.Cleanup(admin.Close)
	return admin.Listener.Addr().String()
}

// A transfer that breaks off, and one that goes wrong, never get the name.
func TestABrokenTransferIsNoBackup(t *testing.T) {
	s := simple(t)
	create(t, s)
	succeed(t, s, "backup", "whole")
	whole := read(t, s, "whole")
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, answer := range map[string]func(w http.ResponseWriter){
		"broken off": func(w http.ResponseWriter) {
			_, _ = w.Write(whole[:len(whole)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"too short": func(w http.ResponseWriter) { _, _ = w.Write(whole[:len(whole)-1]) },
		"altered":   func(w http.ResponseWriter) { _, _ = w.Write(flipped) },
		"nothing":   func(http.ResponseWriter) {},
	} {
		fail(t, s, []string{"backup", "file", "--address", fakeAdmin(t, answer)}, "the backup is damaged")
		if left, _ := filepath.Glob(filepath.Join(s.Dir, "file*")); len(left) > 0 {
			t.Errorf("%s: left over: %v", name, left)
		}
	}
}

func TestADamagedBackupIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	create(t, s)
	succeed(t, s, "backup", "file")
	stop(t, server)
	file := read(t, s, "file")
	s.WriteCaddyfile(t, restored)
	flipped := func(n int) []byte {
		broken := bytes.Clone(file)
		broken[n] ^= 4
		return broken
	}
	for want, broken := range map[string][][]byte{
		"damaged":          {file[:0], file[:1], file[:len(file)/2], file[:len(file)-1], append(bytes.Clone(file), '\n'), flipped(2), flipped(len(file) / 3), flipped(len(file) - 1)},
		"format version 2": {bytes.Replace(file, []byte(`"version":1`), []byte(`"version":2`), 1)},
	} {
		for _, text := range broken {
			write(t, s, "broken", text)
			fail(t, s, []string{"verify", "broken"}, want, "broken")
			fail(t, s, []string{"restore", "broken"}, want)
		}
	}
	fail(t, s, []string{"verify", "missing"}, "missing")
	fail(t, s, []string{"restore", "missing"}, "missing")
	if _, err := os.Stat(filepath.Join(s.Dir, "restored")); err == nil {
		t.Error("a store was made")
	}
	succeed(t, s, "restore", "file")
	fail(t, s, []string{"restore", "file"}, "not empty", filepath.Join(s.Dir, "restored"))
	s.Start(t, restored)
	fail(t, s, []string{"restore", "file"}, "held by another process")
}

// many is how many credentials runMany creates, beside the one that it returns.
const many = 3000

// runMany runs the simple site with a store that holds 10 MB.
func runMany(t *testing.T, s *testserver.Server) testserver.Credential {
	t.Helper()
	s.Run(t, testserver.Simple)
	var scopes []string
	for n := range 12 {
		scopes = append(scopes, fmt.Sprint(n)+strings.Repeat("x", 240))
	}
	for range many {
		s.CreateWith(t, scopes...)
	}
	return s.CreateWith(t)
}

func TestARestoreThatWasKilledIsNoStoreUntilItHasRunAgain(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	c := runMany(t, s)
	succeed(t, s, "backup", "file")
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.WriteCaddyfile(t, restored)
	unfinished := false
	for n := 0; n < 100 && !unfinished; n++ {
		_ = os.RemoveAll(filepath.Join(s.Dir, "restored"))
		cmd := s.Command("client-credentials", "restore", "file")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(s.Dir, "restored", "MANIFEST")); err == nil {
				break
			}
		}
		time.Sleep(time.Duration(n) * 10 * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r := run(t, s, "list", "--offline", "--json")
		unfinished = strings.Contains(r.stderr, "was not finished")
	}
	if !unfinished {
		t.Fatal("no restore was killed in its midst")
	}
	fail(t, s, []string{"list", "--offline"}, "was not finished: run it again", filepath.Join(s.Dir, "restored"))
	fail(t, s, []string{"backup", "--offline", "second"}, "was not finished")
	if err := s.Load(restored); err == nil || !strings.Contains(err.Error(), "was not finished: run it again") {
		t.Errorf("the server starts with it: %v", err)
	}
	succeed(t, s, "restore", "file")
	s.Run(t, restored)
	wantStatus(t, s, s.Token(t, c), 200)
	if n := len(list(t, s)); n != many+1 {
		t.Errorf("%d credentials are listed", n)
	}
}

var keyID = regexp.MustCompile(`master key +([0-9a-f]{16})`)

func TestARestoreAsksForTheMasterKeyThatTheBackupNames(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	c := create(t, s)
	id := keyID.FindStringSubmatch(succeed(t, s, "backup", "file"))[1]
	key := succeed(t, s, "export-key")
	stop(t, server)

	other := testserver.New(t) // another machine
	write(t, other, "file", read(t, s, "file"))
	write(t, other, "key", []byte(key))
	other.WriteCaddyfile(t, testserver.Simple)
	fail(t, other, []string{"restore", "file"}, id, "does not exist", "import-key", "--without-master-key")
	if _, err := os.Stat(filepath.Join(other.Dir, "storage", "keys")); err == nil {
		t.Error("a master key was made")
	}
	server = other.Start(t, testserver.Simple)
	create(t, other)
	own := keyID.FindStringSubmatch(succeed(t, other, "backup", "own"))[1]
	stop(t, server)
	fail(t, other, []string{"restore", "file"}, id, own, "import-key")
	fail(t, other, []string{"import-key", "key"}, own, "move the store away")
	if err := os.Rename(filepath.Join(other.Dir, "store"), filepath.Join(other.Dir, "moved")); err != nil {
		t.Fatal(err)
	}
	say(t, succeed(t, other, "import-key", "key"), id)
	succeed(t, other, "restore", "file")
	other.Start(t, testserver.Simple)
	wantStatus(t, other, other.Token(t, c), 200)
	if kept := read(t, other, "storage/keys/client_credentials_master.key."+own); len(kept) != 45 {
		t.Errorf("the key that opens the other backup is now %q", kept)
	}
}

func TestARestoreWithoutTheMasterKeyKeepsTheRecords(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	c := create(t, s)
	succeed(t, s, "backup", "file")
	stop(t, server)
	if err := os.RemoveAll(filepath.Join(s.Dir, "storage", "keys")); err != nil {
		t.Fatal(err)
	}
	s.WriteCaddyfile(t, restored)
	fail(t, s, []string{"restore", "file"}, "--without-master-key")
	say(t, succeed(t, s, "restore", "--without-master-key", "file"), "1 active")
	fail(t, s, []string{"list", "--offline"}, "master key", "missing") // never a new one over old data
	say(t, succeed(t, s, "replace-lost-master-key"), c.ClientID)
	if n := len(list(t, s, "--offline")); n != 1 {
		t.Errorf("%d credentials are listed", n)
	}
}

func TestARestoreSaysWhatTheLostStoreKnewBetter(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	before, revoked, kept := create(t, s), create(t, s, "--name", "stolen"), create(t, s)
	succeed(t, s, "revoke", before.ClientID)
	succeed(t, s, "backup", "file")
	succeed(t, s, "revoke", revoked.ClientID)
	created := create(t, s)
	stop(t, server)

	s.WriteCaddyfile(t, restored)
	fail(t, s, []string{"restore", "--lost", "elsewhere", "file"}, "lost store", "elsewhere")
	if err := os.Mkdir(filepath.Join(s.Dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	fail(t, s, []string{"restore", "--lost", "empty", "file"}, "lost store", "empty", "MANIFEST")
	if made, err := os.ReadDir(filepath.Join(s.Dir, "empty")); err != nil || len(made) > 0 {
		t.Errorf("a store was made of a directory that has none: %v, %v", made, err)
	}
	out := succeed(t, s, "restore", "--lost", "store", "file")
	again, gone := strings.Index(out, "Revoked again"), strings.Index(out, "Created after the backup, and gone")
	if again < 0 || gone < again || !strings.Contains(out[again:gone], revoked.ClientID+"  stolen") || !strings.Contains(out[gone:], created.ClientID) {
		t.Errorf("standard output: %s", out)
	}
	for _, other := range []string{before.ClientID, kept.ClientID, "Unknown", "Changed", "work again"} {
		if strings.Contains(out, other) {
			t.Errorf("%q is told, which is as it was: %s", other, out)
		}
	}
	s.Start(t, restored)
	for _, c := range []testserver.Credential{before, revoked, created} {
		if status, body := tokenAnswer(t, s, c); status != 401 {
			t.Errorf("%d %s", status, body)
		}
	}
	wantStatus(t, s, s.Token(t, kept), 200)
	if listed := list(t, s); len(listed) != 1 || listed[0].ClientID != kept.ClientID {
		t.Errorf("listed: %+v", listed)
	}
}

// What the lost store does not know may have been removed from it, after its
// revocation.
func TestARestoreNamesWhatTheLostStoreDoesNotKnow(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	c := create(t, s, "--offline", "--name", "shop")
	succeed(t, s, "backup", "--offline", "file")
	if err := os.Rename(filepath.Join(s.Dir, "store"), filepath.Join(s.Dir, "first")); err != nil {
		t.Fatal(err)
	}
	create(t, s, "--offline")
	s.WriteCaddyfile(t, restored)
	say(t, succeed(t, s, "restore", "--lost", "store", "file"), "Unknown to the lost store", c.ClientID+"  shop")
}

func TestACopyIsTheStoreWithItsTokens(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	c, gone := create(t, s), create(t, s)
	token := s.Token(t, c)
	succeed(t, s, "revoke", gone.ClientID)
	write(t, s, "to.caddyfile", []byte(s.Expand(restored)))
	stop(t, server)
	foreign := strings.Replace(s.Expand(restored), "store badger", "master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n\t\tstore badger", 1)
	write(t, s, "foreign.caddyfile", []byte(foreign))
	fail(t, s, []string{"copy", "--from", "Caddyfile", "--to", "foreign.caddyfile"}, "master key", "set master_key")
	fail(t, s, []string{"copy", "--from", "Caddyfile"}, `"to"`)
	fail(t, s, []string{"copy", "--to", "to.caddyfile"}, `"from"`)

	say(t, succeed(t, s, "copy", "--from", "Caddyfile", "--to", "to.caddyfile"), "both hold the same: ", " records, SHA-256 ", "no server use the first store again")
	fail(t, s, []string{"copy", "--from", "Caddyfile", "--to", "to.caddyfile"}, "not empty", filepath.Join(s.Dir, "restored"))
	s.Start(t, restored)
	wantStatus(t, s, token, 200)
	wantStatus(t, s, s.Token(t, c), 200)
	if status, body := tokenAnswer(t, s, gone); status != 401 {
		t.Errorf("a revoked credential: %d %s", status, body)
	}
	if listed := list(t, s); len(listed) != 1 || listed[0].ClientID != c.ClientID {
		t.Errorf("listed: %+v", listed)
	}
}

func TestTheAdminEndpointStreamsABackup(t *testing.T) {
	s := simple(t)
	c := s.CreateWith(t)
	resp, body := askAdmin(t, s, "GET", adminPath+"/backup", "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/octet-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	write(t, s, "file", []byte(body))
	say(t, succeed(t, s, "verify", "file"), "1 active")
	if strings.Contains(body, c.Secret) {
		t.Error("it holds a secret")
	}
	for _, method := range []string{"POST", "DELETE"} {
		resp, body := askAdmin(t, s, method, adminPath+"/backup", "")
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET" {
			t.Errorf("%s: %s", method, resp.Status)
		}
		wantAdminError(t, resp, body)
	}
	if log := s.Log(t); !strings.Contains(log, `"backup made"`) {
		t.Error("the log says nothing of it")
	}
}

// Who asks for a backup, and takes it slowly or not at all, holds up nothing for
// long, and sees that it is not whole.
func TestABackupUnderWayDoesNotKeepTheServerFromStopping(t *testing.T) {
	for name, pause := range map[string]time.Duration{"slow": 50 * time.Millisecond, "stalled": time.Hour} {
		t.Run(name, func(t *testing.T) {
			s := testserver.New(t)
			runMany(t, s)
			resp, err := http.Get("http://" + s.Admin + adminPath + "/backup")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				for part := make([]byte, 16<<10); ; {
					if _, err := resp.Body.Read(part); err != nil {
						ended <- err
						return
					}
					select {
					case <-ctx.Done():
					case <-time.After(pause):
					}
				}
			}()
			time.Sleep(time.Second) // till the buffers are full
			s.CreateWith(t)         // goes on meanwhile
			if log := s.Log(t); strings.Contains(log, `"backup failed"`) || strings.Contains(log, `"backup made"`) {
				t.Fatal("the backup has ended before the server stops")
			}
			began := time.Now()
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("the server took %v to stop", took)
			}
			if !strings.Contains(s.Log(t), `"backup failed"`) {
				t.Error("the log does not say that it failed")
			}
			cancel()
			if err := <-ended; !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client sees the end of it as %v", err)
			}
		})
	}
}

package clientcredentials_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// start runs the simple site and returns a client of it with its token.
func start(t *testing.T) (*testserver.Server, testserver.Credential, string) {
	t.Helper()
	s := testserver.New(t)
	s.Run(t, testserver.Simple)
	c := s.CreateWith(t, issuer.ScopeWrite)
	return s, c, s.Token(t, c)
}

func wantStatus(t *testing.T, s *testserver.Server, token string, want int) {
	t.Helper()
	if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(token)...); resp.StatusCode != want {
		t.Fatalf("with this token: %s, want %d", resp.Status, want)
	}
}

func revoke(t *testing.T, s *testserver.Server, token, clientID string) {
	t.Helper()
	resp := s.Do(t, "DELETE", "/api/v0/client-credentials/"+clientID, "", testserver.Bearer(token)...)
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("revoking: %s", resp.Status)
	}
}

func TestAReloadKeepsStoreTokensAndRevocations(t *testing.T) {
	s, c, token := start(t)
	gone := s.CreateWith(t)
	goneToken := s.Token(t, gone)
	revoke(t, s, token, gone.ClientID)
	for _, change := range []string{
		"token_lifetime 2h", "token_lifetime 1m", "token_lifetime 1s\n\t\taudience " + s.URL(""),
	} {
		if err := s.Load(strings.Replace(testserver.Simple, "store badger", change+"\n\t\tstore badger", 1)); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, s, token, 200)
		wantStatus(t, s, goneToken, 401)
		s.Token(t, c)
	}
	revoke(t, s, token, c.ClientID)
	wantStatus(t, s, token, 401)
}

// The lease is a minute in what must not count, and a second in what must.
func TestAReloadChangesTheSettingsOfASharedStore(t *testing.T) {
	database := testpostgres.Start(t)
	proxy, name := testpostgres.NewProxy(t, database), database.NewDatabase(t)
	s := testserver.New(t)
	site := func(url, settings, more string) string {
		return strings.Replace(testserver.Simple, "store badger {{dir}}/store", fmt.Sprintf(
			"master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\nstore postgres %q {\n%s\n}", url, settings), 1) + more
	}
	load := func(settings string) {
		t.Helper()
		if err := s.Load(site(proxy.URL(name), settings, "")); err != nil {
			t.Fatal(err)
		}
	}
	s.Run(t, site(proxy.URL(name), "lease 1m", ""))
	token := s.Token(t, s.CreateWith(t))
	eventually := func(what string, happens func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !happens(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not within 30 s: %s", what)
			}
		}
	}
	answers := func(status int) func() bool {
		return func() bool { return s.Do(t, "GET", "/x", "", testserver.Bearer(token)...).StatusCode == status }
	}

	load("lease 1s")
	proxy.Cut()
	eventually("the lease runs out", answers(503))
	proxy.Heal()
	eventually("it serves again", answers(200))

	load("lease 1s\non_stale accept")
	const ranOut = "has not heard from the database for a lease"
	before := strings.Count(s.Log(t), ranOut)
	proxy.Cut()
	eventually("the lease runs out again", func() bool { return strings.Count(s.Log(t), ranOut) > before })
	wantStatus(t, s, token, 200)
	proxy.Heal()

	wrong := strings.Replace(proxy.URL(name), database.Password, "wrong-password", 1)
	if err := s.Load(site(wrong, "lease 1m", "")); err == nil || strings.Contains(err.Error(), "wrong-password") {
		t.Errorf("with a wrong password: %v", err)
	}
	database.Exec(t, name, `CREATE TABLE longer (lease_ms bigint)`, `CREATE RULE note AS ON UPDATE TO client_credentials_nodes
		WHERE NEW.lease_ms > 1000 DO ALSO INSERT INTO longer VALUES (NEW.lease_ms)`)
	for range 5 { // the app has started before some of these fail
		if s.Load(site(proxy.URL(name), "lease 1m", fmt.Sprintf("http://127.0.0.1:%d {\n}\n", database.Port))) == nil {
			t.Fatal("a configuration runs that takes the database's port")
		}
	}
	read := func(query string) (n int) {
		t.Helper()
		if err := database.Connect(t, name).QueryRow(t.Context(), query).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	const polls = `SELECT max(polls) FROM client_credentials_nodes`
	before = read(polls)
	eventually("it polls", func() bool { return read(polls) > before+1 })
	if n := read(`SELECT count(*) FROM longer`); n > 0 {
		t.Errorf("%d polls were by the lease of a configuration that was refused", n)
	}
	wantStatus(t, s, token, 200)
}

func TestARestartKeepsRevocationsThoughTheTokenLifetimeWasLowered(t *testing.T) {
	s, c, token := start(t)
	gone := s.CreateWith(t)
	goneToken := s.Token(t, gone)
	if err := s.Load(strings.Replace(testserver.Simple, "store badger", "token_lifetime 1s\n\t\tstore badger", 1)); err != nil {
		t.Fatal(err)
	}
	revoke(t, s, token, gone.ClientID)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // longer than the new lifetime
	s.Run(t, testserver.Simple)
	wantStatus(t, s, token, 200)
	wantStatus(t, s, goneToken, 401)
	s.Token(t, c)
}

func TestAFailedReloadLeavesTheRunningStoreAlone(t *testing.T) {
	s, c, token := start(t)
	for name, broken := range map[string]string{
		"Provision of another app": strings.Replace(testserver.Simple, "reverse_proxy {{upstream}}", "reverse_proxy {{upstream}} {\n\t\ttransport http {\n\t\t\ttls_client_auth /nowhere.crt /nowhere.key\n\t\t}\n\t}", 1),
		"Provision of the app":     strings.Replace(testserver.Simple, "store badger", "signing_key {{dir}}/missing.pem\n\t\tstore badger", 1),
		"Start of another app":     testserver.Simple + fmt.Sprintf("http://localhost:%s {\n\tbind 192.0.2.1\n\trespond hi\n}\n", "{{port}}"),
		"Start of the app":         strings.Replace(testserver.Simple, "store badger", "master_key AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\t\tstore badger", 1),
	} {
		if err := s.Load(broken); err == nil {
			t.Errorf("%s: the reload did not fail", name)
		} else if name == "Start of the app" && !strings.Contains(err.Error(), "master_key") {
			t.Errorf("%s: the error does not say what to do: %v", name, err)
		}
		wantStatus(t, s, token, 200)
		s.Token(t, c)                     // reads the store
		fresh := s.CreateWith(t, "fresh") // and writes it
		cmd := s.Command("client-credentials", "revoke", fresh.ClientID, "--address", s.Admin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: the admin endpoint does not work any more: %v %s", name, err, out)
		}
	}
}

// A connection that a reload closes before its request was read is none of a
// plugin's: net/http does so, and the kernel resets what waits for a listener
// that goes. What reached the handlers must be answered, and answered with 200.
func TestAReloadUnderLoadFailsNoRequest(t *testing.T) {
	s, c, _ := start(t)
	s.Upstream.Take()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.ClientID}, "client_secret": {c.Secret}}.Encode()
	var stop atomic.Bool
	var rounds, calls, closed atomic.Int64
	send := func(method, path, body string, header http.Header) (string, error) {
		for {
			req, err := http.NewRequest(method, s.URL(path), strings.NewReader(body))
			if err != nil {
				return "", err
			}
			req.Header = header
			resp, err := client.Do(req)
			if err != nil && closed.Add(1) < 1000 {
				continue
			}
			if err != nil {
				return "", err
			}
			text, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
			}
			return string(text), err
		}
	}
	round := func() error {
		body, err := send("POST", "/api/v0/oauth/token", form, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
		var answer struct {
			Token string `json:"access_token"`
		}
		if err := errors.Join(err, json.Unmarshal([]byte(body), &answer)); err != nil {
			return err
		}
		for range 3 {
			if _, err := send("GET", "/x", "", http.Header{"Authorization": {"Bearer " + answer.Token}}); err != nil {
				return err
			}
			calls.Add(1)
		}
		rounds.Add(1)
		return nil
	}

	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for !stop.Load() {
				if err := round(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 15 {
		before := rounds.Load()
		if err := s.Load(strings.Replace(testserver.Simple, "store badger", fmt.Sprintf("token_lifetime %dm\n\t\tstore badger", n+1), 1)); err != nil {
			t.Error(err)
		}
		for rounds.Load() < before+4 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
	}
	stop.Store(true)
	workers.Wait()
	if reached := int64(len(s.Upstream.Take())); reached != calls.Load() {
		t.Errorf("%d requests reached the upstream, %d were answered", reached, calls.Load())
	}
	t.Logf("%d calls during 15 reloads; %d connections closed before their request was read", calls.Load(), closed.Load())
}

func TestAChangedStorePathOpensTheOtherStoreAndClosesTheFirst(t *testing.T) {
	s, _, token := start(t)
	other := strings.ReplaceAll(testserver.Simple, "{{dir}}/store", "{{dir}}/other")
	if err := s.Load(other); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s, token, 401) // the other store knows neither client nor key
	offline := s.Command("client-credentials", "list", "--offline", "--config", s.WriteCaddyfile(t, testserver.Simple))
	if out, err := offline.CombinedOutput(); err != nil {
		t.Fatalf("the first store is still held: %v %s", err, out)
	}
	if err := s.Load(testserver.Simple); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s, token, 200)
}

func TestASymbolicLinkToTheStoreIsTheSameStore(t *testing.T) {
	s, _, token := start(t)
	if err := os.Symlink(filepath.Join(s.Dir, "store"), filepath.Join(s.Dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := s.Load(strings.ReplaceAll(testserver.Simple, "{{dir}}/store", "{{dir}}/./link")); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s, token, 200)
}

func TestTwoSitesShareTheApp(t *testing.T) {
	s := testserver.New(t)
	api := freeport.For(t)
	s.Run(t, testserver.Simple+fmt.Sprintf("http://localhost:%d {\n\tbearer_auth\n\treverse_proxy {{upstream}}\n}\n", api))
	c := s.CreateWith(t, issuer.ScopeWrite)
	token := s.Token(t, c)
	get := func() int {
		req, _ := http.NewRequest("GET", fmt.Sprintf("http://localhost:%d/x", api), nil)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(); got != 200 {
		t.Fatalf("a token of one site is refused on the other: %d", got)
	}
	revoke(t, s, token, c.ClientID)
	if got := get(); got != 401 {
		t.Fatalf("a token that was revoked on one site is accepted on the other: %d", got)
	}
}

func TestASecondProcessIsToldWhatToDo(t *testing.T) {
	s, _, _ := start(t)
	second := &testserver.Server{Dir: s.Dir, Port: freeport.For(t), Admin: fmt.Sprintf("127.0.0.1:%d", freeport.For(t)), Upstream: s.Upstream}
	out, err := second.Command("run", "--config", second.WriteCaddyfile(t, testserver.Simple)).CombinedOutput()
	said := string(out) + s.Log(t)
	if err == nil || !strings.Contains(said, "held by another process") || !strings.Contains(said, "caddy reload") {
		t.Errorf("a second process on the store: %v %s", err, said)
	}
}

func TestValidatingLeavesNoTrace(t *testing.T) {
	s := testserver.New(t)
	path := s.WriteCaddyfile(t, testserver.Simple)
	if out, err := s.Command("validate", "--config", path).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for _, name := range []string{"store", "storage/client_credentials"} {
		if _, err := os.Stat(filepath.Join(s.Dir, name)); !os.IsNotExist(err) {
			t.Errorf("validating made %s", name)
		}
	}
	s.Start(t, testserver.Simple)
	if out, err := s.Command("validate", "--config", path).CombinedOutput(); err != nil {
		t.Fatalf("beside a running server: %v %s", err, out)
	}
}

func TestAMissingMasterKeyIsNeverReplacedOverOldData(t *testing.T) {
	s, _, token := start(t)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Dir, "storage", "keys", "client_credentials_master.key")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the master key's file: %v %v", info, err)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	err = s.Load(testserver.Simple)
	if err == nil || !strings.Contains(err.Error(), "master.key is missing") {
		t.Fatalf("without its master key: %v", err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatal("a new master key was made over old data")
	}
	t.Setenv("TEST_MASTER_KEY", strings.TrimSpace(string(key)))
	s.Run(t, strings.Replace(testserver.Simple, "store badger", "master_key {env.TEST_MASTER_KEY}\n\t\tstore badger", 1))
	wantStatus(t, s, token, 200)
}

func TestAReplacedSigningKeyLeavesOldTokensValid(t *testing.T) {
	s, c, token := start(t)
	_, edKey, err1 := ed25519.GenerateKey(rand.Reader)
	rsaKey, err2 := rsa.GenerateKey(rand.Reader, 2048)
	ecKey, err3 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ecDER, err4 := x509.MarshalECPrivateKey(ecKey)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	for _, block := range []pem.Block{
		{Type: "PRIVATE KEY", Bytes: pkcs8(t, edKey)},
		{Type: "PRIVATE KEY", Bytes: pkcs8(t, rsaKey)},
		{Type: "EC PRIVATE KEY", Bytes: ecDER},
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, "key.pem"), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Load(strings.Replace(testserver.Simple, "store badger", "signing_key {{dir}}/key.pem\n\t\tstore badger", 1)); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, s, token, 200)
		next := s.Token(t, c)
		if strings.SplitN(next, ".", 2)[0] == strings.SplitN(token, ".", 2)[0] {
			t.Error("the new key does not sign")
		}
		token = next
		wantStatus(t, s, token, 200)
		// The next load sees another key: Caddy reloads only what has changed.
		if err := s.Load(testserver.Simple); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, s, token, 200)
	}
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

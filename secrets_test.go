package clientcredentials_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	caddyserver "github.com/caddyserver/caddy/v2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// hidden is what no file may hold, by what it is.
type hidden map[string][]byte

// add adds bytes in every form in which something might write them.
func (h hidden) add(what string, raw []byte) {
	h[what+", raw"] = raw
	h[what+", in base64"] = []byte(base64.RawStdEncoding.EncodeToString(raw)) // with padding, it begins so
	h[what+", in base64url"] = []byte(base64.RawURLEncoding.EncodeToString(raw))
	h[what+", in hexadecimal"] = []byte(hex.EncodeToString(raw))
	h[what+", in upper case hexadecimal"] = bytes.ToUpper([]byte(hex.EncodeToString(raw)))
}

func (h hidden) addSecret(t *testing.T, c testserver.Credential) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(c.Secret)
	if err != nil || len(raw) != 16 {
		t.Fatalf("%q is no secret", c.Secret)
	}
	h.add("secret "+c.Secret, raw)
	h["secret "+c.Secret+", for HTTP Basic"] = []byte(base64.RawStdEncoding.EncodeToString([]byte(c.ClientID + ":" + c.Secret)))
}

func (h hidden) addToken(t *testing.T, token string) {
	t.Helper()
	parts := strings.Split(token, ".")
	signature, err := base64.RawURLEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(parts) != 3 || len(signature) != 64 {
		t.Fatalf("%q is no token", token)
	}
	h[token] = []byte(token)
	h["claims of "+token] = []byte(parts[1])
	h.add("signature of "+token, signature)
}

// in returns which of it the files hold.
func (h hidden) in(files map[string][]byte) (found []string) {
	for name, content := range files {
		for what, text := range h {
			if bytes.Contains(content, text) {
				found = append(found, name+" holds "+what)
			}
		}
	}
	return found
}

// filesIn reads all files below a directory. Most of them are zeros that Badger
// has reserved.
func filesIn(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = bytes.TrimRight(content, "\x00")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// addKeys adds the master key of the server, and what it opens in the store.
func (h hidden) addKeys(t *testing.T, s *testserver.Server) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "storage", "keys", "client_credentials_master.key"))
	if err != nil {
		t.Fatal(err)
	}
	master, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	h.add("master key", master)
	aead, err := chacha20poly1305.NewX(master)
	if err != nil {
		t.Fatal(err)
	}
	engine := &badger.Badger{Path: filepath.Join(s.Dir, "store")}
	if err := engine.Provision(caddyserver.Context{}); err != nil {
		t.Fatal(err)
	}
	st, err := engine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	type box struct{ Nonce, Box []byte }
	kinds := map[string]int{}
	err = st.Scan(t.Context(), "", func(key string, value []byte) error {
		kind, _, _ := strings.Cut(key, "/")
		var record struct {
			box
			Private box
		}
		if kind != "pepper" && kind != "key" {
			return nil
		}
		kinds[kind]++
		if err := json.Unmarshal(value, &record); err != nil {
			return err
		}
		if kind == "pepper" {
			pepper, err := aead.Open(nil, record.Nonce, record.Box, []byte(key))
			h.add(key, pepper)
			return err
		}
		der, err := aead.Open(nil, record.Private.Nonce, record.Private.Box, []byte(key))
		if err != nil {
			return err
		}
		h.add(key+" as PKCS#8", der)
		parsed, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return err
		}
		d, err := parsed.(*ecdsa.PrivateKey).Bytes()
		h.add(key, d)
		return err
	})
	if err != nil || kinds["pepper"] == 0 || kinds["key"] == 0 {
		t.Fatalf("the store holds %v, %v", kinds, err)
	}
}

// A run with all that has to do with a secret, and then a search of the bytes of
// each file that it has left.
func TestNoFileOfTheStoreAndNoBackupHoldsASecretInTheClear(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	secrets := hidden{}
	admin := manager(t, s)
	secrets.addToken(t, admin)
	const planted = "a name that the search has to find"
	for n := range 20 {
		var c testserver.Credential
		if n%2 == 0 {
			body, err := request(s, "POST", "/api/v0/client-credentials", `{"name":"`+planted+`"}`, http.StatusCreated, "application/json", admin)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(body), &c); err != nil {
				t.Fatal(err)
			}
		} else if err := json.Unmarshal([]byte(command(t, s, "create", "--json")), &c); err != nil {
			t.Fatal(err)
		}
		secrets.addSecret(t, c)
		wrong := make([]byte, 16)
		_, _ = rand.Read(wrong)
		guess := testserver.Credential{ClientID: c.ClientID, Secret: base64.StdEncoding.EncodeToString(wrong)}
		secrets.addSecret(t, guess)
		form := "grant_type=client_credentials&client_id=" + guess.ClientID + "&client_secret=" + escape(guess.Secret)
		if resp := s.Do(t, "POST", "/api/v0/oauth/token", form, "Content-Type", "application/x-www-form-urlencoded"); resp.StatusCode != http.StatusUnauthorized {
			t.Fatalf("a wrong secret: %s", resp.Status)
		}
		token, kept := s.Token(t, c), s.Token(t, c)
		secrets.addToken(t, token)
		secrets.addToken(t, kept)
		wantStatus(t, s, token, http.StatusOK)
		basic := base64.StdEncoding.EncodeToString([]byte(c.ClientID + ":" + c.Secret))
		header := []string{"Content-Type", "application/x-www-form-urlencoded", "Authorization", "Basic " + basic}
		for _, path := range []string{"/api/v0/oauth/introspect", "/api/v0/oauth/revoke"} {
			if resp := s.Do(t, "POST", path, "token="+token, header...); resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %s", path, resp.Status)
			}
		}
		wantStatus(t, s, token, http.StatusUnauthorized)
		if n%3 == 0 {
			command(t, s, "revoke", c.ClientID)
			wantStatus(t, s, kept, http.StatusUnauthorized)
		}
	}

	dumps := map[string]map[string][]byte{}
	dump := func(when, dir string) { dumps[when] = filesIn(t, filepath.Join(s.Dir, dir)) }
	backups := filepath.Join(s.Dir, "backups")
	if err := os.Mkdir(backups, 0o700); err != nil {
		t.Fatal(err)
	}
	dump("the running server", "store")
	command(t, s, "backup", "backups/online")
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	dump("the stopped server", "store")
	command(t, s, "backup", "--offline", "backups/offline")
	dump("backups", "backups")
	s.WriteCaddyfile(t, restored)
	command(t, s, "restore", "backups/online")
	dump("the restored store", "restored")
	secrets.addKeys(t, s)

	for when, files := range dumps {
		if len(hidden{"the planted name": []byte(planted)}.in(files)) == 0 {
			t.Errorf("%s: the search finds nothing in %d files", when, len(files))
		}
		for _, found := range secrets.in(files) {
			t.Errorf("%s: %s", when, found)
		}
	}
	t.Logf("searched for %d texts", len(secrets))
}

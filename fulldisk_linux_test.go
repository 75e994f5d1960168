package clientcredentials_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// volume mounts a volume of 96 MiB for the store of a server.
func volume(t *testing.T, s *testserver.Server) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("only root can mount a volume")
		}
		t.Skip("only root can mount a volume")
	}
	dir = filepath.Join(s.Dir, "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=96m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill has a file take all that its volume has left.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for block := make([]byte, size); err == nil; _, err = file.Write(block) {
		}
		err = nil
	}
}

func TestAServerOnAFullDiskGoesOnServing(t *testing.T) {
	s := testserver.New(t)
	dir := volume(t, s)
	server := s.Start(t, testserver.Simple)
	token := manager(t, s)
	var made []testserver.Credential
	for range 5 {
		_, body := createOne(t, s, token)
		var c testserver.Credential
		if err := json.Unmarshal([]byte(body), &c); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		made = append(made, c)
	}
	itsToken := s.Token(t, made[0])
	foreign := filepath.Join(dir, "foreign")
	fill(t, foreign)

	serves := func() {
		t.Helper()
		resp, body := createOne(t, s, token)
		if resp.StatusCode != http.StatusInsufficientStorage || resp.Header.Get("Content-Type") != "application/problem+json" ||
			!strings.Contains(body, `"status":507`) || !strings.Contains(body, "disk is full") || strings.Contains(body, dir) {
			t.Errorf("a creation is answered %s %s", resp.Status, body)
		}
		out, err := s.Command("client-credentials", "create", "--address", s.Admin).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "the store is full") || !strings.Contains(string(out), dir) || !strings.Contains(string(out), "make room") {
			t.Errorf("the command says %v %s", err, out)
		}
		wantStatus(t, s, s.Token(t, made[1]), http.StatusOK)
		for _, change := range []struct {
			patch  string
			status int
		}{
			{`{"name":"x"}`, http.StatusInsufficientStorage},
			{`{"enabled":false}`, http.StatusOK}, // it takes away
			{`{"enabled":true}`, http.StatusInsufficientStorage},
		} {
			resp := s.Do(t, "PATCH", "/api/v0/client-credentials/"+made[4].ClientID, change.patch, append(testserver.Bearer(token), "Content-Type", "application/json")...)
			if resp.StatusCode != change.status {
				t.Errorf("a change by %s is answered %s", change.patch, resp.Status)
			}
		}
		for body, want := range map[string]int{`{}`: http.StatusInsufficientStorage, `{"overlap":"0s"}`: http.StatusCreated} {
			resp := s.Do(t, "POST", "/api/v0/client-credentials/"+made[4].ClientID+"/secrets", body, append(testserver.Bearer(token), "Content-Type", "application/json")...)
			if resp.StatusCode != want {
				t.Errorf("a rotation by %s is answered %s", body, resp.Status)
			}
		}
	}
	revoke := func(c testserver.Credential) {
		t.Helper()
		old := s.Token(t, c)
		if resp := s.Do(t, "DELETE", "/api/v0/client-credentials/"+c.ClientID, "", testserver.Bearer(token)...); resp.StatusCode != http.StatusNoContent {
			t.Errorf("a revocation is answered %s", resp.Status)
		}
		wantStatus(t, s, old, http.StatusUnauthorized)
	}
	serves()
	wantStatus(t, s, itsToken, http.StatusOK)
	revoke(made[2])
	form := url.Values{"token": {itsToken}, "client_id": {made[0].ClientID}, "client_secret": {made[0].Secret}}
	if resp := s.Do(t, "POST", "/api/v0/oauth/revoke", form.Encode(), "Content-Type", "application/x-www-form-urlencoded"); resp.StatusCode != http.StatusOK {
		t.Errorf("the revocation of a token is answered %s", resp.Status)
	}
	wantStatus(t, s, itsToken, http.StatusUnauthorized)

	// The disk is still full after a crash.
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	s.Start(t, testserver.Simple)
	serves()
	wantStatus(t, s, itsToken, http.StatusUnauthorized)
	revoke(made[3])
	metrics := testserver.Body(t, admin(t, s, "/metrics"))
	if !strings.Contains(metrics, "caddy_client_credentials_store_full 1") {
		t.Error("no metric says that the store is full")
	}
	if n := strings.Count(s.Log(t), "the store is full: credentials can be revoked"); n != 2 {
		t.Errorf("it was logged %d times that the store is full, want once for each start", n)
	}

	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		resp, body := createOne(t, s, token)
		if resp.StatusCode == http.StatusCreated {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("10 s after room has returned, a creation is answered %s %s", resp.Status, body)
		}
	}
	if n := strings.Count(s.Log(t), "the store has room again"); n != 1 {
		t.Errorf("it was logged %d times that the store has room again", n)
	}
}

func TestAServerDoesNotStartOnADiskThatWasFullBefore(t *testing.T) {
	s := testserver.New(t)
	dir := volume(t, s)
	fill(t, filepath.Join(dir, "foreign"))
	path := s.WriteCaddyfile(t, testserver.Simple)
	out, err := s.Command("run", "--config", path).CombinedOutput()
	if log := s.Log(t); err == nil || err.Error() != "exit status 1" || !strings.Contains(log, "the store is full: the volume of "+dir+" has 0 MiB free") {
		t.Errorf("the server ended with %v: %s %s", err, out, log)
	}
}

func createOne(t *testing.T, s *testserver.Server, token string) (*http.Response, string) {
	t.Helper()
	resp := s.Do(t, "POST", "/api/v0/client-credentials", `{"scopes":[]}`,
		append(testserver.Bearer(token), "Content-Type", "application/json")...)
	return resp, testserver.Body(t, resp)
}

func admin(t *testing.T, s *testserver.Server, path string) *http.Response {
	t.Helper()
	resp, err := http.Get("http://" + s.Admin + path)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

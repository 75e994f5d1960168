package clientcredentials_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// manager makes a credential on the command line, and a token of it that
// manages others, on a server in a process of its own.
func manager(t *testing.T, s *testserver.Server) string {
	t.Helper()
	out, err := s.Command("client-credentials", "create", "--json", "--scope", issuer.ScopeWrite, "--address", s.Admin).Output()
	var c testserver.Credential
	if err := errors.Join(err, json.Unmarshal(out, &c)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return s.Token(t, c)
}

// acknowledged is what a server that was killed had said it has done.
type acknowledged struct {
	ended   atomic.Bool // no more is to be asked for
	mu      sync.Mutex
	created map[testserver.Credential]string // the token that was obtained for it, or nothing
	revoked map[testserver.Credential]string
	unknown map[testserver.Credential]bool // the answer to its revocation never came
}

func newAcknowledged() *acknowledged {
	return &acknowledged{
		created: map[testserver.Credential]string{},
		revoked: map[testserver.Credential]string{},
		unknown: map[testserver.Credential]bool{},
	}
}

// work creates credentials, and revokes every other one, until the server is
// gone, or it is told to end. It notes each change when its acknowledgement has come.
func (a *acknowledged) work(s *testserver.Server, token string) {
	for n := 0; !a.ended.Load(); n++ {
		body, err := request(s, "POST", "/api/v0/client-credentials", "{}", http.StatusCreated, "application/json", token)
		var c testserver.Credential
		if err != nil || json.Unmarshal([]byte(body), &c) != nil {
			return
		}
		a.note(a.created, c, "")
		form := url.Values{"GrantType": {"client_credentials"}, "ClientId": {c.ClientID}, "ClientSecret": {c.Secret}}
		body, err = request(s, "POST", "/api/v0/oauth/token", form.Encode(), http.StatusOK, "application/x-www-form-urlencoded", "")
		var answer struct{ AccessToken string }
		if err != nil || json.Unmarshal([]byte(body), &answer) != nil {
			return
		}
		a.note(a.created, c, answer.AccessToken)
		if n%2 == rand.IntN(2) {
			continue
		}
		a.mu.Lock()
		a.unknown[c] = true
		a.mu.Unlock()
		if _, err := request(s, "DELETE", "/api/v0/client-credentials/"+c.ClientID, "", http.StatusNoContent, "", token); err != nil {
			return
		}
		a.note(a.revoked, c, answer.AccessToken)
	}
}

func (a *acknowledged) note(changes map[testserver.Credential]string, c testserver.Credential, token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	changes[c] = token
}

// check finds every acknowledged change on the server that was started anew.
func (a *acknowledged) check(t *testing.T, s *testserver.Server, token string) {
	t.Helper()
	listed := list(t, s, token)
	for c, token := range a.created {
		_, revoked := a.revoked[c]
		if a.unknown[c] && !revoked {
			continue
		}
		want := http.StatusOK
		if revoked {
			want = http.StatusUnauthorized
		}
		if listed[c.ClientID] == revoked {
			t.Errorf("credential %s: listed %v, revoked %v", c.ClientID, listed[c.ClientID], revoked)
		}
		if token != "" {
			wantStatus(t, s, token, want)
		}
		form := url.Values{"GrantType": {"client_credentials"}, "ClientId": {c.ClientID}, "ClientSecret": {c.Secret}}
		if resp := s.Do(t, "POST", "/api/v0/oauth/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded"); resp.StatusCode != want {
			t.Errorf("credential %s, revoked %v: a token request is answered %s", c.ClientID, revoked, resp.Status)
		}
	}
}

func request(s *testserver.Server, method, path, body string, want int, contentType, token string) (string, error) {
	req, err := http.NewRequest(method, s.URL(path), strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", contentType)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
	}
	return string(text), err
}

func TestAKilledServerHasLostNothingThatItAcknowledged(t *testing.T) {
	s := testserver.New(t)
	cmd := s.Start(t, testserver.Simple)
	token := manager(t, s)
	all := newAcknowledged()
	for range 3 {
		var clients sync.WaitGroup
		for range 16 {
			clients.Go(func() { all.work(s, token) })
		}
		before := all.count()
		for all.count() < before+100 {
			time.Sleep(time.Millisecond)
		}
		if err := cmd.Process.Kill(); err != nil { // SIGKILL
			t.Fatal(err)
		}
		_ = cmd.Wait()
		clients.Wait()
		cmd = s.Start(t, testserver.Simple)
		all.check(t, s, token)
	}
	t.Logf("%d credentials created and %d of them revoked over 3 kills", len(all.created), len(all.revoked))
}

func (a *acknowledged) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.revoked)
}

// That a killed process loses nothing does not show that a machine that loses
// its power loses nothing: what was written is then in the kernel's hands.
func TestEveryAcknowledgedChangeWasSynced(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("strace is missing")
		}
		t.Skip("strace is missing")
	}
	s := testserver.New(t)
	trace := filepath.Join(s.Dir, "trace")
	s.Start(t, testserver.Simple, "strace", "-D", "-f", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,msync,sync_file_range", "-e", "signal=none")
	token := manager(t, s)
	calls := func(name string) int {
		text, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), name) // a call that was suspended is counted where it began
	}
	syncs := func() int { return calls("sync(") }
	const each = 20
	var created []string
	before := syncs()
	for range each {
		body, err := request(s, "POST", "/api/v0/client-credentials", "{}", http.StatusCreated, "application/json", token)
		var c testserver.Credential
		if err := errors.Join(err, json.Unmarshal([]byte(body), &c)); err != nil {
			t.Fatal(err)
		}
		created = append(created, c.ClientID)
	}
	afterCreates := syncs()
	for _, id := range created {
		if _, err := request(s, "DELETE", "/api/v0/client-credentials/"+id, "", http.StatusNoContent, "", token); err != nil {
			t.Fatal(err)
		}
	}
	afterRevokes := syncs()
	for range each {
		wantStatus(t, s, token, http.StatusOK)
	}
	t.Logf("%d creates: %d syncs; %d revocations: %d syncs; %d calls: %d syncs",
		each, afterCreates-before, each, afterRevokes-afterCreates, each, syncs()-afterRevokes)
	if afterCreates-before < each || afterRevokes-afterCreates < each {
		t.Error("a change was acknowledged before it was synced")
	}
	if n := calls("fdatasync("); n < 2*each {
		t.Errorf("the head of the store was synced %d times for %d changes", n, 2*each)
	}
	if syncs() != afterRevokes {
		t.Error("a call of the API writes to the store")
	}
	const clients = 64
	var creating sync.WaitGroup
	for range clients {
		creating.Go(func() {
			for range each {
				if _, err := request(s, "POST", "/api/v0/client-credentials", "{}", http.StatusCreated, "application/json", token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	creating.Wait()
	shared := syncs() - afterRevokes
	t.Logf("%d creates by %d clients at once: %d syncs", clients*each, clients, shared)
	if shared > clients*each/4 {
		t.Error("changes that wait for the disk do not share its syncs")
	}
}

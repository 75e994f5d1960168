package clientcredentials_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// restored is the simple site with its store in another place.
var restored = strings.Replace(testserver.Simple, "{{dir}}/store", "{{dir}}/restored", 1)

// command runs a command that must succeed, and returns what it says.
func command(t *testing.T, s *testserver.Server, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := s.Command(append([]string{"client-credentials"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v %s", args, err, stderr.String())
	}
	return stdout.String()
}

func (a *acknowledged) snapshot() *acknowledged {
	a.mu.Lock()
	defer a.mu.Unlock()
	return &acknowledged{created: maps.Clone(a.created), revoked: maps.Clone(a.revoked)}
}

func TestABackupUnderLoadHoldsAllThatWasAcknowledgedBefore(t *testing.T) {
	s := testserver.New(t)
	server := s.Start(t, testserver.Simple)
	token := manager(t, s)
	all := newAcknowledged()
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() { all.work(s, token) })
	}
	for all.count() < 200 {
		time.Sleep(time.Millisecond)
	}
	before := all.snapshot()
	holds := command(t, s, "backup", "file")
	after := all.snapshot()
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	clients.Wait()
	t.Logf("acknowledged before the backup: %d created, %d revoked; meanwhile: %d, %d",
		len(before.created), len(before.revoked), len(after.created)-len(before.created), len(after.revoked)-len(before.revoked))
	if len(after.created) == len(before.created) || len(after.revoked) == len(before.revoked) {
		t.Error("nothing was changed while the backup was made")
	}

	s.WriteCaddyfile(t, restored)
	if out := command(t, s, "restore", "file"); !strings.HasPrefix(out, holds) {
		t.Errorf("backup says %q, and restore %q", holds, out)
	}
	s.Start(t, restored)
	listed := list(t, s, manager(t, s))
	var active int
	if _, err := fmt.Sscanf(holds[strings.Index(holds, "credentials"):], "credentials %d active", &active); err != nil || active != len(listed)-1 {
		t.Errorf("%d credentials are listed, and the manager; the backup holds %d (%v)", len(listed)-1, active, err)
	}
	for c, token := range all.created {
		if token != "" {
			wantStatus(t, s, token, http.StatusUnauthorized)
		}
		_, created := before.created[c]
		_, revoked := before.revoked[c]
		want := http.StatusOK
		switch {
		case revoked:
			want = http.StatusUnauthorized
		case !created || all.unknown[c]: // after the backup had begun, if ever
			continue
		}
		if listed[c.ClientID] == revoked {
			t.Errorf("credential %s: listed %v, revoked %v", c.ClientID, listed[c.ClientID], revoked)
		}
		body := "grant_type=client_credentials&client_id=" + c.ClientID + "&client_secret=" + escape(c.Secret)
		if resp := s.Do(t, "POST", "/api/v0/oauth/token", body, "Content-Type", "application/x-www-form-urlencoded"); resp.StatusCode != want {
			t.Errorf("credential %s, revoked %v: a token request is answered %s", c.ClientID, revoked, resp.Status)
		}
	}
}

var escape = strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace

// list returns the client ids of the active credentials.
func list(t *testing.T, s *testserver.Server, token string) map[string]bool {
	t.Helper()
	var credentials []testserver.Credential
	if err := json.Unmarshal([]byte(testserver.Body(t, s.Do(t, "GET", "/api/v0/client-credentials", "", testserver.Bearer(token)...))), &credentials); err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, c := range credentials {
		listed[c.ClientID] = true
	}
	return listed
}

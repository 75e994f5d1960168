package handler_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// auditFile has Caddy keep the audit log in a file of its own.
const auditFile = "log audit {\ninclude client_credentials.audit\noutput file {{dir}}/audit\n}\n"

// audited returns what the audit log says, a line for each change: the action,
// and what is known of it.
func audited(t *testing.T, s *testserver.Server) (changes []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		if fields["msg"] != "change" || fields["level"] != "info" || fields["logger"] != "client_credentials.audit" {
			t.Errorf("a line of another kind: %s", line)
		}
		change := fmt.Sprint(fields["action"])
		for _, name := range []string{"client_id", "account", "scope", "members", "secret_id", "jti", "kid", "by", "from"} {
			if value, ok := fields[name]; ok {
				change += fmt.Sprintf(" %s=%v", name, value)
			}
		}
		changes = append(changes, change)
	}
	return changes
}

func TestEveryChangeIsInTheAuditLogOnce(t *testing.T) {
	s := run(t, site("", auditFile, "client_credentials"))
	writer := s.Create(t, issuer.Draft{Account: "team-7", Scopes: []string{issuer.ScopeWrite, "a", "b"}})
	management := testserver.Bearer(s.Token(t, writer))
	admin := func(method, path, body string) map[string]any {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Admin+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var answer map[string]any
		_ = json.Unmarshal([]byte(testserver.Body(t, resp)), &answer) // not all have one
		if resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
		return answer
	}

	body := testserver.Body(t, s.Do(t, "POST", credentialsPath, "{}", append(management, "Content-Type", jsonType)...))
	var made struct{ ClientID, Secret string }
	if err := json.Unmarshal([]byte(body), &made); err != nil {
		t.Fatal(err)
	}
	token := s.Token(t, testserver.Credential(made))
	for range 2 { // the second time there is nothing to change
		wantRevoked(t, ask(t, s, revokePath, testserver.Credential(made), token))
	}
	one := credentialsPath + "/" + made.ClientID
	s.Do(t, "PATCH", one, `{"name":"x","enabled":true}`, append(management, "Content-Type", jsonType)...)
	var secret struct{ ID string }
	if err := json.Unmarshal([]byte(testserver.Body(t, s.Do(t, "POST", one+"/secrets", "", management...))), &secret); err != nil {
		t.Fatal(err)
	}
	s.Do(t, "DELETE", one+"/secrets/"+secret.ID, "", management...)
	for range 2 {
		s.Do(t, "DELETE", credentialsPath+"/"+made.ClientID, "", management...)
	}
	other := fmt.Sprint(admin("POST", "/client-credentials/credentials", `{"account":"other","scopes":["x"]}`)["clientId"])
	admin("DELETE", "/client-credentials/credentials/"+other, "")
	next := fmt.Sprint(admin("POST", "/client-credentials/keys", "")["kid"])
	admin("POST", "/client-credentials/keys", "") // the same
	first := fmt.Sprint(decode(t, token, 0)["kid"])
	admin("DELETE", "/client-credentials/keys/"+first, "")
	admin("POST", "/client-credentials/master-key", "{}")
	writeKey(t, filepath.Join(s.Dir, "key.pem"), newKey(t, "ES256"))
	declared := "credential orders {\nsecret_hash " + issuer.HashSecret(made.Secret) + "\n%s}"
	s.Run(t, site(ownKey+"\n"+fmt.Sprintf(declared, ""), auditFile, "client_credentials"))
	s.Run(t, site(ownKey+"\n"+fmt.Sprintf(declared, "scopes y\n"), auditFile, "client_credentials"))
	s.Run(t, site(ownKey, auditFile, "client_credentials"))
	given := fmt.Sprint(decode(t, s.Token(t, writer), 0)["kid"])

	const adminEnd = " by=command line from=admin endpoint"
	want := []string{
		"key.created kid=" + first + " by=server",
		"credential.created client_id=" + made.ClientID + " account=team-7 scope=a b by=" + writer.ClientID + " from=127.0.0.1",
		"credential.changed client_id=" + made.ClientID + " account=team-7 members=enabled name by=" + writer.ClientID + " from=127.0.0.1",
		"secret.rotated client_id=" + made.ClientID + " account=team-7 secret_id=" + secret.ID + " by=" + writer.ClientID + " from=127.0.0.1",
		"secret.deleted client_id=" + made.ClientID + " account=team-7 secret_id=" + secret.ID + " by=" + writer.ClientID + " from=127.0.0.1",
		"token.revoked client_id=" + made.ClientID + " account=team-7 jti=" + decode(t, token, 1)["jti"].(string) + " by=" + made.ClientID + " from=127.0.0.1",
		"credential.revoked client_id=" + made.ClientID + " account=team-7 by=" + writer.ClientID + " from=127.0.0.1",
		"credential.created client_id=" + other + " account=other scope=x" + adminEnd,
		"credential.revoked client_id=" + other + " account=other" + adminEnd,
		"key.created kid=" + next + adminEnd,
		"key.revoked kid=" + first + adminEnd,
		"key.rotated kid=" + next + " by=server",
		"master_key.replaced" + adminEnd,
		"credential.created client_id=orders account=default by=configuration",
		"credential.changed client_id=orders account=default scope=y by=configuration",
		"credential.revoked client_id=orders account=default scope=y by=configuration",
		"key.created kid=" + given + " by=configuration",
		"key.rotated kid=" + given + " by=configuration",
	}
	got := audited(t, s)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the audit log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if log := s.Log(t); strings.Contains(log, made.Secret) || strings.Contains(log, token) {
		t.Error("a secret or a token was logged")
	}
}

package handler_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

type secret struct {
	ID, Secret, Hint, Created string
	Expires, LastUsed         *string
}

func secretsPath(clientID string) string { return credentialsPath + "/" + clientID + "/secrets" }

func askForSecret(t testing.TB, s *testserver.Server, token, clientID, body string) *http.Response {
	t.Helper()
	return s.Do(t, "POST", secretsPath(clientID), body, "Content-Type", jsonType, "Authorization", "Bearer "+token)
}

func addSecret(t testing.TB, s *testserver.Server, token, clientID, body string) (added secret) {
	t.Helper()
	resp := askForSecret(t, s, token, clientID, body)
	text := testserver.Body(t, resp)
	wantMatch(t, "the answer", text, `^\{"id":"[0-9a-f]{16}","secret":"[A-Za-z0-9+/]{22}==","created":"\d{4}[^"]+Z","expires":null\}$`)
	if err := json.Unmarshal([]byte(text), &added); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s", resp.Status, text)
	}
	wantHeader(t, resp, "Location", secretsPath(clientID)+"/"+added.ID)
	wantHeader(t, resp, "Cache-Control", "no-store")
	return added
}

func secrets(t testing.TB, s *testserver.Server, token, clientID string) (all []secret) {
	t.Helper()
	resp := s.Do(t, "GET", secretsPath(clientID), "", testserver.Bearer(token)...)
	wantStatus(t, resp, http.StatusOK)
	body := testserver.Body(t, resp)
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return all
}

func deleteSecret(t testing.TB, s *testserver.Server, token, clientID, id string) *http.Response {
	t.Helper()
	return s.Do(t, "DELETE", secretsPath(clientID)+"/"+id, "", testserver.Bearer(token)...)
}

// wantWorks checks which secrets obtain a token.
func wantWorks(t testing.TB, s *testserver.Server, clientID string, works map[string]bool) {
	t.Helper()
	for secret, want := range works {
		resp := s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(clientID, secret))
		if got := resp.StatusCode == http.StatusOK; got != want {
			t.Errorf("a secret is answered %s, though it should work: %v", resp.Status, want)
		}
	}
}

func TestASecretIsReplacedWithoutAFailure(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	first := *c.Secret
	token := s.Token(t, c.pair())
	before := secrets(t, s, manager, c.ClientID)
	if len(before) != 1 || before[0].Hint != first[20:] || before[0].Created != c.Created || before[0].Expires != nil || before[0].LastUsed == nil {
		t.Errorf("the first secret is shown as %+v", before)
	}
	second := addSecret(t, s, manager, c.ClientID, ``)
	third := addSecret(t, s, manager, c.ClientID, `{"overlap":"300ms"}`)
	shown := secrets(t, s, manager, c.ClientID)
	if len(shown) != 3 || shown[0].ID != before[0].ID || shown[1].ID != second.ID || shown[2].ID != third.ID || shown[2].Hint != third.Secret[20:] ||
		shown[2].Created != third.Created || shown[2].Expires != nil || shown[0].Expires == nil || *shown[0].Expires != *shown[1].Expires {
		t.Errorf("the secrets are shown as %+v", shown)
	}
	wantWorks(t, s, c.ClientID, map[string]bool{first: true, second.Secret: true, third.Secret: true, "x": false})
	time.Sleep(350 * time.Millisecond)
	wantWorks(t, s, c.ClientID, map[string]bool{first: false, second.Secret: false, third.Secret: true})
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK) // no token ends by a rotation
	if shown := secrets(t, s, manager, c.ClientID); len(shown) != 1 || shown[0].ID != third.ID {
		t.Errorf("those that have ended are shown: %+v", shown)
	}

	day := addSecret(t, s, manager, c.ClientID, `{"overlap":null}`)
	ends, err := time.Parse(time.RFC3339, *secrets(t, s, manager, c.ClientID)[0].Expires)
	created, _ := time.Parse(time.RFC3339, day.Created)
	if overlap := ends.Sub(created); err != nil || overlap < 24*time.Hour || overlap > 24*time.Hour+time.Second {
		t.Errorf("without an overlap it is %v, %v", overlap, err)
	}
	longer := addSecret(t, s, manager, c.ClientID, `{"overlap":"48h"}`) // prolongs nothing
	if again, _ := time.Parse(time.RFC3339, *secrets(t, s, manager, c.ClientID)[0].Expires); !again.Equal(ends) {
		t.Errorf("a rotation moved the end of a secret from %v to %v", ends, again)
	}
	body := testserver.Body(t, get(t, s, manager, c.ClientID))
	wantMatch(t, "the credential", body, `"created":"[^"]+"\}$`) // the contract's object, to the letter
	for _, text := range []string{first, second.Secret, third.Secret, longer.Secret} {
		if strings.Contains(s.Log(t), text[:22]) || strings.Contains(body, text[:22]) {
			t.Error("a secret is told again")
		}
	}
}

func TestALeakedSecretIsReplacedAtOnceAndItsTokensEnd(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	other := addSecret(t, s, manager, c.ClientID, `{}`)
	token := s.Token(t, c.pair())
	added := addSecret(t, s, manager, c.ClientID, `{"overlap":"0s"}`)
	wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), invalidToken)
	wantWorks(t, s, c.ClientID, map[string]bool{*c.Secret: false, other.Secret: false, added.Secret: true})
	if shown := secrets(t, s, manager, c.ClientID); len(shown) != 1 {
		t.Errorf("the secrets are %+v", shown)
	}
}

func TestASecretIsDeletedWithItsTokensButNotTheLast(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	first := secrets(t, s, manager, c.ClientID)[0]
	wantProblem(t, deleteSecret(t, s, manager, c.ClientID, first.ID), http.StatusConflict, "no other secret and no keys")
	second := addSecret(t, s, manager, c.ClientID, `{}`)
	token := s.Token(t, c.pair())
	for _, id := range []string{"", "0123456789abcdef", strings.ToUpper(first.ID) + "A", first.ID + "/", second.Secret} {
		wantProblem(t, deleteSecret(t, s, manager, c.ClientID, id), http.StatusNotFound, "no such")
	}
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
	s.Upstream.Take()
	wantStatus(t, deleteSecret(t, s, manager, c.ClientID, first.ID), http.StatusNoContent)
	wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), invalidToken)
	wantWorks(t, s, c.ClientID, map[string]bool{*c.Secret: false, second.Secret: true})
	wantStatus(t, deleteSecret(t, s, manager, c.ClientID, first.ID), http.StatusNotFound)
	wantProblem(t, deleteSecret(t, s, manager, c.ClientID, second.ID), http.StatusConflict, "no other secret and no keys")

	keyed, _ := createGranted(t, s, manager, `{"jwks":{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}}`)
	wantStatus(t, deleteSecret(t, s, manager, keyed.ClientID, secrets(t, s, manager, keyed.ClientID)[0].ID), http.StatusNoContent)
	wantWorks(t, s, keyed.ClientID, map[string]bool{keyed.Secret: false})
	if left := secrets(t, s, manager, keyed.ClientID); len(left) != 0 {
		t.Errorf("the secrets are %+v", left)
	}
	wantWorks(t, s, keyed.ClientID, map[string]bool{addSecret(t, s, manager, keyed.ClientID, `{}`).Secret: true})
}

func TestTheSecretsOfACredentialAnswerWithTheRightStatus(t *testing.T) {
	s := run(t, testserver.Simple)
	token := manage(t, s)
	reader := s.Token(t, s.CreateWith(t, issuer.ScopeRead))
	weak := s.Token(t, s.CreateWith(t, "x"))
	c, _ := create(t, s, token, `{}`)
	foreign := s.Create(t, issuer.Draft{Account: "other"})
	all, theirs := secretsPath(c.ClientID), secretsPath(foreign.ClientID)
	one := all + "/" + secrets(t, s, token, c.ClientID)[0].ID
	for _, test := range []struct {
		method, path, body, contentType, token string
		status                                 int
		header, value                          string
	}{
		{"GET", all, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"POST", all, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"DELETE", one, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"GET", all, ``, "", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"DELETE", one, ``, "", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"GET", all, ``, "", weak, 403, "Www-Authenticate", `scope="client-credentials:read"`},
		{"POST", all, ``, "", reader, 403, "Www-Authenticate", `scope="client-credentials:write"`},
		{"DELETE", one, ``, "", reader, 403, "Www-Authenticate", `scope="client-credentials:write"`},
		{"GET", all, ``, "", reader, 200, "Content-Type", "application/json"},
		{"HEAD", all, ``, "", reader, 200, "Content-Type", "application/json"},
		{"GET", theirs, ``, "", token, 404, "", ""},
		{"POST", theirs, ``, "", token, 404, "", ""},
		{"DELETE", theirs + "/0123456789abcdef", ``, "", token, 404, "", ""},
		{"GET", all + "/", ``, "", token, 405, "Allow", "DELETE"},
		{"PUT", all, `{}`, jsonType, token, 405, "Allow", "GET, HEAD, POST"},
		{"PUT", one, `{}`, jsonType, token, 405, "Allow", "DELETE"},
		{"POST", all, `{}`, "text/plain", token, 415, "Accept", "application/json"},
		{"POST", all, `{}`, "", token, 415, "Accept", "application/json"},
		{"POST", all, `{}` + strings.Repeat(" ", 64<<10), jsonType, token, 413, "", ""},
	} {
		header := []string{"Content-Type", test.contentType}
		if test.contentType == "" {
			header = nil
		}
		if test.token != "" {
			header = append(header, "Authorization", "Bearer "+test.token)
		}
		resp := s.Do(t, test.method, test.path, test.body, header...)
		if resp.StatusCode != test.status || !strings.Contains(resp.Header.Get(test.header), test.value) {
			t.Errorf("%s %s: %d with %s %q, want %d with %q", test.method, test.path, resp.StatusCode, test.header, resp.Header.Get(test.header), test.status, test.value)
		}
	}
	for body, field := range map[string]string{
		`[]`: "the body", `{"overlap":"1h","overlap":"0s"}`: "the body", `{"overlapp":"0s"}`: "the body", `{"Overlap":"0s"}`: "the body",
		`{"overlap":0}`: "overlap", `{"overlap":""}`: "overlap", `{"overlap":"soon"}`: "overlap", `{"overlap":"-1s"}`: "overlap", `{"overlap":"9000h"}`: "overlap",
	} {
		wantProblem(t, askForSecret(t, s, token, c.ClientID, body), http.StatusBadRequest, "^"+field+" ")
	}
	for range 4 {
		wantStatus(t, s.Do(t, "POST", all, "", testserver.Bearer(token)...), http.StatusCreated) // no body, no type
	}
	wantProblem(t, askForSecret(t, s, token, c.ClientID, `{"overlap":"1h"}`), http.StatusConflict, "has 5 secrets")
	if n := len(secrets(t, s, token, c.ClientID)); n != 5 {
		t.Errorf("it has %d secrets", n)
	}
	wantStatus(t, deleteSecret(t, s, token, c.ClientID, secrets(t, s, token, c.ClientID)[0].ID), http.StatusNoContent)
	wantStatus(t, askForSecret(t, s, token, c.ClientID, `{"overlap":"1h"}`), http.StatusCreated)
	wantStatus(t, askForSecret(t, s, token, c.ClientID, `{"overlap":"0s"}`), http.StatusCreated) // also where there are five
}

// Who sets the secret of a credential can act as it.
func TestNobodySetsTheSecretOfACredentialThatHasMore(t *testing.T) {
	s := run(t, testserver.Simple)
	boss := s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeWrite, "read"}, TokenLifetime: time.Minute, Claims: json.RawMessage(`{"tenant":"a"}`)})
	token := s.Token(t, boss)
	short := issuer.Draft{Scopes: []string{"read"}, TokenLifetime: time.Minute, Claims: json.RawMessage(`{"tenant":"a","tier":1}`)}
	for what, change := range map[string]func(*issuer.Draft){
		"another scope":       func(d *issuer.Draft) { d.Scopes = []string{"read", "write"} },
		"a right to manage":   func(d *issuer.Draft) { d.Scopes = []string{issuer.ScopeWrite} },
		"something to give":   func(d *issuer.Draft) { d.Grantable = []string{"write"} },
		"another audience":    func(d *issuer.Draft) { d.Audiences = []string{"https://stock.example"} },
		"longer tokens":       func(d *issuer.Draft) { d.TokenLifetime = 0 },
		"another tenant":      func(d *issuer.Draft) { d.Claims = json.RawMessage(`{"tenant":"b"}`) },
		"no tenant":           func(d *issuer.Draft) { d.Claims = nil },
		"nothing that is not": func(*issuer.Draft) {},
	} {
		draft := short
		change(&draft)
		c := s.Create(t, draft)
		resp := askForSecret(t, s, token, c.ClientID, `{}`)
		if what == "nothing that is not" {
			wantStatus(t, resp, http.StatusCreated)
			continue
		}
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("a credential with %s: %s", what, resp.Status)
		}
		wantProblem(t, resp, http.StatusForbidden, "^the credential has what the caller may not grant")
	}
	own := addSecret(t, s, token, boss.ClientID, `{}`)
	wantWorks(t, s, boss.ClientID, map[string]bool{own.Secret: true, boss.Secret: true})
}

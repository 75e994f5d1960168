package handler_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const grants = `{
	{{global}}
	client_credentials {
		issuer {{url}}
		store badger {{dir}}/store
	}
}
{{url}} {
	bearer_auth /any read admin {
		any
	}
	bearer_auth /stock {
		audience https://stock.example
	}
	bearer_auth /orders {
		audience urn:orders
	}
	client_credentials /own
	reverse_proxy {{upstream}}
}
`

// createGranted creates a credential with more than the contract knows of.
func createGranted(t testing.TB, s *testserver.Server, manager, body string) (c testserver.Credential, answer string) {
	t.Helper()
	resp := s.Do(t, "POST", credentialsPath, body, "Content-Type", jsonType, "Authorization", "Bearer "+manager)
	answer = testserver.Body(t, resp)
	if err := json.Unmarshal([]byte(answer), &c); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("creating: %s %s", resp.Status, answer)
	}
	return c, answer
}

func TestACredentialHasTheScopesThatItWasGivenAndShowsThem(t *testing.T) {
	s := run(t, grants)
	manager := manage(t, s, "read", "write", issuer.ScopeIntrospect)
	for _, test := range []struct{ scopes, shown, scope string }{
		{`["write","read","write"]`, `["read","write"]`, "read write"},
		{`["read"]`, `["read"]`, "read"},
		{`[]`, `[]`, ""},
	} {
		c, body := createGranted(t, s, manager, `{"scopes":`+test.scopes+`}`)
		wantMatch(t, "the answer", body, `,"created":"[^"]+","scopes":`+strings.NewReplacer("[", `\[`, "]", `\]`).Replace(test.shown)+`\}$`)
		if scope, _ := decode(t, s.Token(t, c), 1)["scope"].(string); scope != test.scope {
			t.Errorf("with %s the token has the scope %q", test.scopes, scope)
		}
		list := testserver.Body(t, s.Do(t, "GET", credentialsPath, "", testserver.Bearer(manager)...))
		if !strings.Contains(list, `"scopes":`+test.shown) {
			t.Errorf("the list does not show %s: %s", test.shown, list)
		}
	}
	create(t, s, manager, `{"scopes":null,"audiences":null}`) // the contract's object, to the letter
}

func TestNobodyGrantsMoreThanItHas(t *testing.T) {
	s := run(t, grants)
	manager := manage(t, s, "read", issuer.ScopeIntrospect)
	for _, test := range []struct {
		body, field string
		status      int
	}{
		{`{"scopes":["write"]}`, "scopes", http.StatusForbidden},
		{`{"scopes":["read","write"]}`, "scopes", http.StatusForbidden},
		{`{"scopes":["client-credentials:write"]}`, "scopes", http.StatusForbidden}, // its own, but not to be handed on
		{`{"scopes":["tokens:introspect"]}`, "scopes", http.StatusForbidden},
		{`{"audiences":["https://stock.example"]}`, "audiences", http.StatusForbidden},
		{`{"scopes":"read"}`, "scopes", http.StatusBadRequest},
		{`{"scopes":["read",1]}`, "scopes", http.StatusBadRequest},
		{`{"scopes":{"read":true}}`, "scopes", http.StatusBadRequest},
		{`{"scopes":["ECHO x"]}`, "scopes", http.StatusBadRequest},
		{`{"scopes":[""]}`, "scopes", http.StatusBadRequest},
		{`{"audiences":[]}`, "audiences", http.StatusBadRequest},
		{`{"audiences":[""]}`, "audiences", http.StatusBadRequest},
		{`{"audiences":"https://stock.example"}`, "audiences", http.StatusBadRequest},
		{`{"audiences":["https://stock.example/#ECHO"]}`, "audiences", http.StatusBadRequest},
	} {
		resp := s.Do(t, "POST", credentialsPath, test.body, "Content-Type", jsonType, "Authorization", "Bearer "+manager)
		wantProblem(t, resp, test.status, "^"+test.field+" [^E]+$")
	}
	if list := testserver.Body(t, s.Do(t, "GET", credentialsPath, "", testserver.Bearer(manager)...)); strings.Count(list, "clientId") != 1 {
		t.Errorf("something was created: %s", list)
	}
}

func TestATokenIsForTheAudiencesOfItsCredential(t *testing.T) {
	s := run(t, grants)
	manager := s.Token(t, s.Create(t, issuer.Draft{
		Scopes: []string{issuer.ScopeWrite}, Audiences: []string{s.URL(""), "https://stock.example", "urn:orders"},
	}))
	c, _ := createGranted(t, s, manager, `{"audiences":["https://stock.example","urn:orders"]}`)
	both := s.Token(t, c)
	stock := s.Token(t, c, "resource", "https://stock.example")
	again := s.Token(t, c, "resource", "urn:orders", "resource", "https://stock.example", "resource", "urn:orders")
	plain := s.Token(t, s.CreateWith(t))
	for _, test := range []struct {
		token              string
		audience           any
		stock, orders, own int
	}{
		{both, []any{"https://stock.example", "urn:orders"}, 200, 200, 401},
		{again, []any{"https://stock.example", "urn:orders"}, 200, 200, 401},
		{stock, "https://stock.example", 200, 401, 401},
		{plain, s.URL(""), 401, 401, 200},
	} {
		if got := decode(t, test.token, 1)["aud"]; !reflect.DeepEqual(got, test.audience) {
			t.Errorf("the token is for %v, want %v", got, test.audience)
		}
		for path, want := range map[string]int{"/stock": test.stock, "/orders": test.orders, "/own": test.own} {
			if resp := s.Do(t, "GET", path, "", testserver.Bearer(test.token)...); resp.StatusCode != want {
				t.Errorf("a token for %v at %s: %s, want %d", test.audience, path, resp.Status, want)
			}
		}
	}
	for _, resource := range []string{s.URL(""), "https://other.example", "https://stock.example/", "https://stock.example#x", "stock"} {
		form := url.Values{"grant_type": {"client_credentials"}, "resource": {"https://stock.example", resource}}
		resp := s.Do(t, "POST", tokenPath, form.Encode(), "Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret))
		wantTokenError(t, resp, http.StatusBadRequest, "invalid_target")
	}
}

// Who verifies tokens for one audience learns nothing of those for another.
func TestIntrospectionIsForTheCallersAudiences(t *testing.T) {
	s := run(t, grants)
	token := s.Token(t, s.Create(t, issuer.Draft{Audiences: []string{"https://stock.example"}}))
	for audience, want := range map[string]string{"https://stock.example": "true", "urn:orders": "false"} {
		caller := s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeIntrospect}, Audiences: []string{audience, "urn:other"}})
		wantMatch(t, "the answer", testserver.Body(t, ask(t, s, introspectPath, caller, token)), `^\{"active":`+want)
	}
}

func TestAGuardCanAskForAnyOfItsScopes(t *testing.T) {
	s := run(t, grants)
	for _, scopes := range [][]string{{"read"}, {"admin", "x"}, {"admin", "read"}} {
		token := s.Token(t, s.CreateWith(t, scopes...))
		wantStatus(t, s.Do(t, "GET", "/any", "", testserver.Bearer(token)...), http.StatusOK)
	}
	s.Upstream.Take()
	for _, scopes := range [][]string{nil, {"rea", "READ", "read:all", "readadmin"}} {
		token := s.Token(t, s.CreateWith(t, scopes...))
		wantRefused(t, s, s.Do(t, "GET", "/any", "", testserver.Bearer(token)...), strings.Replace(insufficientScope, "%s", "read admin", 1))
	}
}

// A token of all that a credential may have must not be longer than the guard
// reads.
func TestTheLargestTokenIsAccepted(t *testing.T) {
	s := run(t, site("", "", "client_credentials\nreverse_proxy {{upstream}}"))
	var scopes []string
	for n := range 18 {
		scopes = append(scopes, strings.Repeat("s", 160)+string(rune('a'+n)))
	}
	audiences := []string{s.URL(""), "https://" + strings.Repeat("a", 940) + ".example"}
	token := s.Token(t, s.Create(t, issuer.Draft{Scopes: scopes, Audiences: audiences}))
	if len(token) < 5000 {
		t.Errorf("the token has only %d bytes: the test tests nothing", len(token))
	}
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
}

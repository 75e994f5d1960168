package handler_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const (
	introspectPath = "/api/v0/oauth/introspect"
	revokePath     = "/api/v0/oauth/revoke"
)

// ask sends a request about a token, from a caller that authenticates by HTTP
// Basic.
func ask(t testing.TB, s *testserver.Server, path string, caller testserver.Credential, token string) *http.Response {
	t.Helper()
	return s.Do(t, "POST", path, url.Values{"token": {token}}.Encode(),
		"Content-Type", formType, "Authorization", basic(caller.ClientID, caller.Secret))
}

func wantInactive(t testing.TB, resp *http.Response) {
	t.Helper()
	wantStatus(t, resp, http.StatusOK)
	wantHeader(t, resp, "Cache-Control", "no-store")
	if body := testserver.Body(t, resp); body != `{"active":false}` {
		t.Errorf("of a token that is none of the caller's business: %s", body)
	}
}

func TestIntrospectionTellsTheOwnerAllOfItsToken(t *testing.T) {
	s := run(t, site("", h2c, "client_credentials\nreverse_proxy {{upstream}}"))
	c := s.CreateWith(t, "b", "a")
	token := s.Token(t, c)
	claims := decode(t, token, 1)
	bothVersions(t, s, func(t *testing.T) {
		form := url.Values{"token": {token}, "token_type_hint": {"refresh_token"}}
		inBody := url.Values{"token": {token}, "client_id": {c.ClientID}, "client_secret": {c.Secret}}
		for name, resp := range map[string]*http.Response{
			"basic":  s.Do(t, "POST", introspectPath, form.Encode(), "Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret)),
			"body":   s.Do(t, "POST", introspectPath, inBody.Encode(), "Content-Type", formType),
			"bearer": s.Do(t, "POST", introspectPath, form.Encode(), "Content-Type", formType, "Authorization", "Bearer "+token),
		} {
			wantStatus(t, resp, http.StatusOK)
			wantHeader(t, resp, "Content-Type", jsonType)
			wantHeader(t, resp, "Cache-Control", "no-store")
			var got map[string]any
			if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &got); err != nil {
				t.Fatal(name, err)
			}
			for member, want := range map[string]any{
				"active": true, "token_type": "Bearer", "scope": "a b", "client_id": c.ClientID, "sub": c.ClientID,
				"iss": s.URL(""), "aud": s.URL(""), "exp": claims["exp"], "iat": claims["iat"], "jti": claims["jti"],
			} {
				if got[member] != want {
					t.Errorf("%s: %s is %v, want %v", name, member, got[member], want)
				}
			}
			if len(got) != 10 {
				t.Errorf("%s: %v", name, got)
			}
		}
	})
}

func TestIntrospectionTellsOthersOnlyWithTheScope(t *testing.T) {
	s := run(t, testserver.Simple)
	token := s.Token(t, s.CreateWith(t, "a"))
	wantInactive(t, ask(t, s, introspectPath, s.CreateWith(t, "a", issuer.ScopeWrite), token))
	resourceServer := s.Create(t, issuer.Draft{Account: "other", Scopes: []string{"a", issuer.ScopeIntrospect}})
	wantMatch(t, "the answer", testserver.Body(t, ask(t, s, introspectPath, resourceServer, token)), `^\{"active":true,`)

	// A token asks with its own scopes, which may be fewer than the client's.
	form := url.Values{"token": {token}}.Encode()
	narrow := s.Token(t, resourceServer, "scope", "a")
	wantInactive(t, s.Do(t, "POST", introspectPath, form, "Content-Type", formType, "Authorization", "Bearer "+narrow))
	wide := s.Token(t, resourceServer)
	resp := s.Do(t, "POST", introspectPath, form, "Content-Type", formType, "Authorization", "Bearer "+wide)
	wantMatch(t, "the answer", testserver.Body(t, resp), `^\{"active":true,`)
}

func TestATokenThatDoesNotCountIsInactive(t *testing.T) {
	k := runKeyed(t, "ES256", attacked)
	caller := k.CreateWith(t, issuer.ScopeIntrospect)
	k.present = func(t *testing.T, token, want string) {
		t.Helper()
		resp := ask(t, k.Server, introspectPath, caller, token)
		if want == admitted || want == lacksWrite {
			wantMatch(t, "the answer", testserver.Body(t, resp), `^\{"active":true,`)
		} else {
			wantInactive(t, resp)
		}
	}
	tryAll(t, k, tokenAttacks, claimAttacks, byteAttacks, ecdsaAttacks)
	dying := k.Create(t, issuer.Draft{Expires: time.Now().Add(1500 * time.Millisecond)})
	token := k.Token(t, dying)
	wantMatch(t, "the answer", testserver.Body(t, ask(t, k.Server, introspectPath, caller, token)), `^\{"active":true,`)
	time.Sleep(1600 * time.Millisecond)
	wantInactive(t, ask(t, k.Server, introspectPath, caller, token))
}

func TestRequestsAboutTokensAreRefusedInTheProtocolsForm(t *testing.T) {
	s := run(t, testserver.Simple)
	c := s.CreateWith(t)
	token := s.Token(t, c)
	auth := basic(c.ClientID, c.Secret)
	for _, path := range []string{introspectPath, revokePath} {
		for _, test := range []struct {
			name, method, body string
			header             []string
			status             int
			code               string
		}{
			{"nobody", "POST", "token=" + token, []string{"Content-Type", formType}, 401, "invalid_client"},
			{"wrong secret", "POST", "token=" + token, []string{"Content-Type", formType, "Authorization", basic(c.ClientID, "ECHO")}, 401, "invalid_client"},
			{"unknown client", "POST", "token=" + token + "&client_id=ECHO&client_secret=x", []string{"Content-Type", formType}, 401, "invalid_client"},
			{"malformed Basic", "POST", "token=" + token, []string{"Content-Type", formType, "Authorization", "Basic ECHO!"}, 401, "invalid_client"},
			{"two mechanisms", "POST", "token=" + token + "&client_id=" + c.ClientID + "&client_secret=x", []string{"Content-Type", formType, "Authorization", auth}, 400, "invalid_request"},
			{"two headers", "POST", "token=" + token, []string{"Content-Type", formType, "Authorization", auth, "Authorization", auth}, 400, "invalid_request"},
			{"no token", "POST", "x=ECHO", []string{"Content-Type", formType, "Authorization", auth}, 400, "invalid_request"},
			{"empty token", "POST", "token=", []string{"Content-Type", formType, "Authorization", auth}, 400, "invalid_request"},
			{"two tokens", "POST", "token=ECHO&token=b", []string{"Content-Type", formType, "Authorization", auth}, 400, "invalid_request"},
			{"token in the query", "POST", "", []string{"Content-Type", formType, "Authorization", auth}, 400, "invalid_request"},
			{"JSON", "POST", `{"token":"ECHO"}`, []string{"Content-Type", jsonType, "Authorization", auth}, 400, "invalid_request"},
			{"no type", "POST", "token=ECHO", []string{"Authorization", auth}, 400, "invalid_request"},
			{"too large", "POST", "token=" + strings.Repeat("a", 64<<10), []string{"Content-Type", formType, "Authorization", auth}, 413, "invalid_request"},
			{"GET", "GET", "", []string{"Authorization", auth}, 405, "invalid_request"},
		} {
			t.Run(path+" "+test.name, func(t *testing.T) {
				wantTokenError(t, s.Do(t, test.method, path+"?token="+token, test.body, test.header...), test.status, test.code)
			})
		}
		for name, authorization := range map[string]string{
			"garbage": "Bearer x.y.z", "a secret beside it": "Bearer " + token,
		} {
			body := "token=" + token
			if name != "garbage" {
				body += "&client_id=" + c.ClientID + "&client_secret=x"
			}
			resp := s.Do(t, "POST", path, body, "Content-Type", formType, "Authorization", authorization)
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s, a bearer token, %s: %s", path, name, resp.Status)
			}
		}
	}
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK) // nothing was revoked
}

func TestABearerTokenAsksFromBehindAGuardToo(t *testing.T) {
	s := run(t, site("", "", "route {\nbearer_auth /api/v0/oauth/introspect\nclient_credentials\nreverse_proxy {{upstream}}\n}"))
	token := s.Token(t, s.CreateWith(t))
	resp := s.Do(t, "POST", introspectPath, "token="+token, "Content-Type", formType, "Authorization", "Bearer "+token)
	wantMatch(t, "the answer", testserver.Body(t, resp), `^\{"active":true,`)
}

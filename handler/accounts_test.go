package handler_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// listed returns the client ids that a caller sees.
func listed(t testing.TB, s *testserver.Server, token, query string) (ids []string) {
	t.Helper()
	resp := s.Do(t, "GET", credentialsPath+query, "", testserver.Bearer(token)...)
	wantStatus(t, resp, http.StatusOK)
	var list []credential
	if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &list); err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		ids = append(ids, c.ClientID)
	}
	return ids
}

func wantListed(t testing.TB, s *testserver.Server, token, query string, want ...testserver.Credential) {
	t.Helper()
	got := listed(t, s, token, query)
	for _, c := range want {
		if !slices.Contains(got, c.ClientID) {
			t.Errorf("%q: %s is not listed", query, c.ClientID)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%q: %d are listed, want %d", query, len(got), len(want))
	}
}

func post(t testing.TB, s *testserver.Server, token, body string) *http.Response {
	t.Helper()
	return s.Do(t, "POST", credentialsPath, body, "Content-Type", jsonType, "Authorization", "Bearer "+token)
}

func TestAnAdminReachesEveryAccountAndAManagerItsOwn(t *testing.T) {
	s := run(t, testserver.Simple)
	admin := s.CreateWith(t, issuer.ScopeAdmin, "read")
	manager := s.Create(t, issuer.Draft{Account: "shop", Scopes: []string{issuer.ScopeWrite, "read"}})
	adminToken, managerToken := s.Token(t, admin), s.Token(t, manager)

	made, answer := createGranted(t, s, adminToken, `{"account":"shop"}`)
	wantMatch(t, "the answer", answer, `,"created":"[^"]+","account":"shop"\}$`)
	other, _ := createGranted(t, s, adminToken, `{"account":"bank"}`)
	own, _ := createGranted(t, s, managerToken, `{"account":"shop"}`)
	create(t, s, managerToken, `{"account":null}`) // the contract's object, to the letter
	unnamed := listed(t, s, managerToken, "")[3]

	wantListed(t, s, managerToken, "", manager, made, own, testserver.Credential{ClientID: unnamed})
	wantListed(t, s, managerToken, "?account=shop", manager, made, own, testserver.Credential{ClientID: unnamed})
	wantListed(t, s, adminToken, "?account=bank", other)
	wantListed(t, s, adminToken, "?account=nobody")
	wantListed(t, s, adminToken, "", admin, manager, made, other, own, testserver.Credential{ClientID: unnamed})
	s.Upstream.Take()
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(s.Token(t, made))...), http.StatusOK)
	wantHeader(t, &http.Response{Header: wantUpstream(t, s).Header}, "X-Client-Account", "shop")

	for body, status := range map[string]int{
		`{"account":"bank"}`: http.StatusForbidden, `{"account":"default"}`: http.StatusForbidden,
		`{"account":1}`: http.StatusBadRequest, `{"account":"a/b"}`: http.StatusBadRequest,
	} {
		wantProblem(t, post(t, s, managerToken, body), status, "^account ")
	}
	wantProblem(t, post(t, s, adminToken, `{"account":"shop","scopes":["write"]}`), http.StatusForbidden, "^scopes ")
	wantRefused(t, s, s.Do(t, "GET", credentialsPath+"?account=bank", "", testserver.Bearer(managerToken)...),
		strings.Replace(insufficientScope, "%s", issuer.ScopeAdmin, 1))
	wantProblem(t, s.Do(t, "GET", credentialsPath+"?account=shop/1", "", testserver.Bearer(adminToken)...), http.StatusBadRequest, "^account ")
	wantProblem(t, s.Do(t, "GET", credentialsPath+"?account=shop&account=bank", "", testserver.Bearer(adminToken)...), http.StatusBadRequest, "^account ")

	narrow := s.Token(t, s.CreateWith(t, issuer.ScopeAdmin, issuer.ScopeWrite), "scope", issuer.ScopeWrite)
	for _, token := range []string{managerToken, narrow} {
		wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+other.ClientID, "", testserver.Bearer(token)...), http.StatusNotFound)
	}
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+other.ClientID, "", testserver.Bearer(adminToken)...), http.StatusNoContent)
}

func TestACredentialGrantsWhatIsInItsList(t *testing.T) {
	s := run(t, testserver.Simple)
	giver := s.Token(t, s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeWrite}, Grantable: []string{"items:read", "items:write"}}))
	both, _ := createGranted(t, s, giver, `{}`)
	if scope := decode(t, s.Token(t, both), 1)["scope"]; scope != "items:read items:write" {
		t.Errorf("without a list of scopes it has %v", scope)
	}
	_, answer := createGranted(t, s, giver, `{"scopes":["items:read"],"grantable":["items:write"]}`)
	wantMatch(t, "the answer", answer, `"scopes":\["items:read"\],"grantable":\["items:write"\]\}$`)
	for body, field := range map[string]string{
		`{"scopes":["` + issuer.ScopeWrite + `"]}`:                            "scopes", // its own, but not in the list
		`{"scopes":["items:delete"]}`:                                         "scopes",
		`{"scopes":["items:read"],"grantable":["items:delete"]}`:              "grantable",
		`{"scopes":["items:read"],"grantable":["client-credentials:x"]}`:      "grantable",
		`{"scopes":["items:read"],"grantable":["` + issuer.ScopeAdmin + `"]}`: "grantable",
	} {
		wantProblem(t, post(t, s, giver, body), http.StatusForbidden, "^"+field+" ")
	}
	for _, body := range []string{`{"grantable":"items:read"}`, `{"grantable":[1]}`, `{"grantable":["a b"]}`} {
		wantProblem(t, post(t, s, giver, body), http.StatusBadRequest, "^grantable ")
	}

	// One whose list has a right to manage makes managers, and each no more than itself.
	chief := s.Token(t, s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeWrite}, Grantable: []string{issuer.ScopeWrite, "items:read"}}))
	plain, _ := createGranted(t, s, chief, `{}`)
	if scope := decode(t, s.Token(t, plain), 1)["scope"]; scope != "items:read" {
		t.Errorf("without a list of scopes it has %v", scope)
	}
	deputy, _ := createGranted(t, s, chief, `{"scopes":["`+issuer.ScopeWrite+`"],"grantable":["items:read"]}`)
	deputyToken := s.Token(t, deputy)
	wantStatus(t, post(t, s, deputyToken, `{"scopes":["items:read"]}`), http.StatusCreated)
	wantProblem(t, post(t, s, deputyToken, `{"scopes":["`+issuer.ScopeWrite+`"]}`), http.StatusForbidden, "^scopes ")

	// An empty list grants nothing, whatever the scopes are.
	none := s.Token(t, s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeWrite, "read"}, Grantable: []string{}}))
	wantProblem(t, post(t, s, none, `{"scopes":["read"]}`), http.StatusForbidden, "^scopes ")
	empty, _ := createGranted(t, s, none, `{}`)
	if scope := decode(t, s.Token(t, empty), 1)["scope"]; scope != nil {
		t.Errorf("what grants nothing gave %v", scope)
	}
}

func revokeAll(t testing.TB, s *testserver.Server, token, query string) *http.Response {
	t.Helper()
	return s.Do(t, "DELETE", credentialsPath+query, "", testserver.Bearer(token)...)
}

func wantAllRevoked(t testing.TB, s *testserver.Server, resp *http.Response, answer string, gone, alive []testserver.Credential) {
	t.Helper()
	wantStatus(t, resp, http.StatusOK)
	if body := testserver.Body(t, resp); body != answer {
		t.Errorf("the answer is %s, want %s", body, answer)
	}
	for status, all := range map[int][]testserver.Credential{http.StatusUnauthorized: gone, http.StatusOK: alive} {
		for n, c := range all {
			resp := s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret))
			if resp.StatusCode != status {
				t.Errorf("credential %d gets a token with %d, want %d", n, resp.StatusCode, status)
			}
		}
	}
}

func TestAllOfAnAccountIsRevokedInOneCallButTheCaller(t *testing.T) {
	s := run(t, site("", "", "client_credentials {\nauth_failures off\n}\nreverse_proxy {{upstream}}"))
	var shop []testserver.Credential
	for range 600 { // more than one batch
		shop = append(shop, s.Create(t, issuer.Draft{Account: "shop"}))
	}
	expired := s.Create(t, issuer.Draft{Account: "shop", Expires: time.Now().Add(50 * time.Millisecond)})
	manager := s.Create(t, issuer.Draft{Account: "shop", Scopes: []string{issuer.ScopeWrite}})
	bank := s.Create(t, issuer.Draft{Account: "bank"})
	token, itsToken := s.Token(t, manager), s.Token(t, shop[0])
	s.Revoke(t, shop[1])
	time.Sleep(60 * time.Millisecond)

	for _, query := range []string{
		"", "?", "?account=", "?createdBy=", "?account=shop&createdBy=" + manager.ClientID, "?account=shop&account=shop",
		"?account=shop&limit=1", "?Account=shop", "?account=shop;x", "?account=%zz", "?createdBy=..", "?createdBy=a%2Fb", "?createdBy=" + strings.Repeat("A", 129),
	} {
		wantProblem(t, revokeAll(t, s, token, query), http.StatusBadRequest, "^(the query|createdBy) ")
	}
	wantRefused(t, s, revokeAll(t, s, token, "?account=bank"), strings.Replace(insufficientScope, "%s", issuer.ScopeAdmin, 1))
	wantListed(t, s, token, "", append(shop[2:], shop[0], manager)...)

	wantAllRevoked(t, s, revokeAll(t, s, token, "?account=shop"), `{"revoked":600}`, append(shop, expired), []testserver.Credential{manager, bank})
	wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(itsToken)...), invalidToken)
	wantAllRevoked(t, s, revokeAll(t, s, token, "?account=shop"), `{"revoked":0}`, nil, []testserver.Credential{manager})
	admin := s.Token(t, s.CreateWith(t, issuer.ScopeAdmin))
	wantAllRevoked(t, s, revokeAll(t, s, admin, "?account=shop"), `{"revoked":1}`, []testserver.Credential{manager}, []testserver.Credential{bank})
	told := 0
	for _, line := range logLines(t, s) {
		if line["action"] == string(issuer.CredentialRevoked) && line["account"] == "shop" && line["by"] == manager.ClientID {
			told++
		}
	}
	if told != 600 {
		t.Errorf("the audit log has %d revocations by the manager", told)
	}
}

func TestAllThatACredentialHasCreatedIsRevokedInOneCall(t *testing.T) {
	s := run(t, testserver.Simple)
	chief := s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeAdmin}, Grantable: []string{issuer.ScopeWrite, issuer.ScopeAdmin}})
	caller := s.CreateWith(t, issuer.ScopeWrite)
	unrelated := s.CreateWith(t)
	made := func(by testserver.Credential, body string) testserver.Credential {
		c, _ := createGranted(t, s, s.Token(t, by), body)
		return c
	}
	deputyBody := `{"scopes":["` + issuer.ScopeWrite + `"],"grantable":["` + issuer.ScopeWrite + `"]}`
	deputy := made(chief, deputyBody)
	second := made(deputy, deputyBody)
	leaf, sibling := made(second, `{}`), made(deputy, `{}`)
	elsewhere := made(chief, `{"account":"shop","scopes":["`+issuer.ScopeWrite+`"]}`)
	s.Revoke(t, second) // and what it has created is found all the same

	token := s.Token(t, caller)
	wantProblem(t, revokeAll(t, s, token, "?createdBy="+strings.Repeat("0", 32)), http.StatusNotFound, "no such credential")
	wantProblem(t, revokeAll(t, s, token, "?createdBy="+s.Create(t, issuer.Draft{Account: "shop"}).ClientID), http.StatusNotFound, "no such credential")
	wantAllRevoked(t, s, revokeAll(t, s, token, "?createdBy="+unrelated.ClientID), `{"revoked":0}`, nil, []testserver.Credential{deputy, leaf})

	// A member of the family that asks stays, and so does what is of another account.
	wantAllRevoked(t, s, revokeAll(t, s, s.Token(t, deputy), "?createdBy="+chief.ClientID), `{"revoked":2}`,
		[]testserver.Credential{leaf, sibling}, []testserver.Credential{chief, deputy, elsewhere, unrelated})
	wantAllRevoked(t, s, revokeAll(t, s, s.Token(t, chief), "?createdBy="+chief.ClientID), `{"revoked":2}`,
		[]testserver.Credential{deputy, elsewhere}, []testserver.Credential{chief, caller, unrelated})
}

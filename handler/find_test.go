package handler_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

type found struct {
	ClientID, Status string
	Name, LastUsed   *string
}

// findPage returns a page, and the path of the next one.
func findPage(t testing.TB, s *testserver.Server, token, path string) (page []found, next string) {
	t.Helper()
	resp := s.Do(t, "GET", path, "", testserver.Bearer(token)...)
	body := testserver.Body(t, resp)
	if err := json.Unmarshal([]byte(body), &page); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s", path, resp.Status, body)
	}
	if link := resp.Header.Get("Link"); link != "" {
		wantMatch(t, "the link", link, `^</api/v0/client-credentials\?[^>]+>; rel="next"$`)
		next = link[1:strings.Index(link, ">")]
	}
	return page, next
}

func TestCredentialsAreFoundPageByPage(t *testing.T) {
	s := run(t, testserver.Simple)
	boss := s.Create(t, issuer.Draft{Account: "shop", Scopes: []string{issuer.ScopeWrite}, Grantable: []string{"sell"}})
	manager := s.Token(t, boss)
	reader := s.Token(t, s.Create(t, issuer.Draft{Account: "shop", Scopes: []string{issuer.ScopeRead}}))
	admin := s.Token(t, s.CreateWith(t, issuer.ScopeAdmin))
	s.Create(t, issuer.Draft{Account: "bank", Scopes: []string{"sell"}})
	var made []credential
	for n := range 7 {
		c, _ := create(t, s, manager, fmt.Sprintf(`{"name":"Till %d & co"}`, n))
		made = append(made, c)
	}
	soon := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	wantStatus(t, patch(t, s, manager, made[0].ClientID, `{"enabled":false}`), http.StatusOK)
	wantStatus(t, patch(t, s, manager, made[1].ClientID, `{"expires":"`+soon+`"}`), http.StatusOK)
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+made[2].ClientID, "", testserver.Bearer(manager)...), http.StatusNoContent)
	s.Token(t, made[3].pair())

	later := url.QueryEscape(time.Now().Add(2 * time.Hour).Format(time.RFC3339))
	status := map[string]string{made[0].ClientID: "disabled", made[2].ClientID: "revoked"}
	for query, want := range map[string][]int{
		"name=till+&limit=2": {0, 1, 3, 4, 5, 6}, "name=TILL+4%20%26": {4}, "name=co": nil,
		"scope=sell&account=shop&limit=4": {0, 1, 3, 4, 5, 6}, "scope=sel": nil,
		"status=disabled": {0}, "status=revoked": {2}, "status=expired": nil, "status=active&name=t": {1, 3, 4, 5, 6},
		"expiresBefore=" + later: {1}, "expiresBefore=2020-01-01T00:00:00Z": nil,
		"unusedSince=" + later + "&name=till&limit=3": {0, 1, 3, 4, 5, 6}, "unusedSince=2020-01-01T00:00:00Z": nil,
	} {
		for _, token := range []string{manager, reader} {
			got, pages := "", 0
			for path := credentialsPath + "?" + query; path != ""; pages++ {
				var page []found
				if page, path = findPage(t, s, token, path); pages > len(made) {
					t.Fatal("the pages do not end")
				}
				for _, one := range page {
					got += one.ClientID + " "
					if want := status[one.ClientID]; want != "" && one.Status != want || want == "" && one.Status != "active" {
						t.Errorf("%s: %s is %s", query, one.ClientID, one.Status)
					}
					if used := one.ClientID == made[3].ClientID; used != (one.LastUsed != nil) {
						t.Errorf("%s: the last use of %v is %v", query, *one.Name, one.LastUsed)
					}
				}
			}
			wanted := ""
			for _, n := range want {
				wanted += made[n].ClientID + " "
			}
			if got != wanted {
				t.Errorf("%s: found %s, want %s", query, got, wanted)
			}
		}
	}

	plain := testserver.Body(t, s.Do(t, "GET", credentialsPath, "", testserver.Bearer(manager)...))
	if strings.Contains(plain, "lastUsed") || strings.Contains(plain, "status") || strings.Count(plain, "clientId") != 8 { // with both that manage
		t.Errorf("without parameters, the list is %s", plain)
	}
	if all, _ := findPage(t, s, admin, credentialsPath+"?scope=sell"); len(all) != 7 { // with that of the bank
		t.Errorf("an admin finds %d", len(all))
	}

	_, theirs := findPage(t, s, admin, credentialsPath+"?limit=1")
	wantProblem(t, s.Do(t, "GET", theirs, "", testserver.Bearer(manager)...), http.StatusBadRequest, "^cursor ")
	wantStatus(t, s.Do(t, "GET", credentialsPath+"?account=bank&limit=1", "", testserver.Bearer(manager)...), http.StatusForbidden)
	for query, field := range map[string]string{
		"limit=0": "limit", "limit=1001": "limit", "limit=-1": "limit", "limit=x": "limit", "limit=": "limit", "limit=1&limit=2": "limit",
		"cursor=*": "cursor", "cursor=": "cursor", "cursor=YWJj": "cursor", "name=": "name", "name=%00": "name", "name=%FF": "name",
		"name=" + strings.Repeat("x", 201): "name", "scope=a+b": "scope", "scope=%22": "scope", "status=Active": "status", "status=on": "status",
		"unusedSince=yesterday": "unusedSince", "expiresBefore=2030-01-31": "expiresBefore", "unusedSince=": "unusedSince",
		"Limit=1": "the query", "page=2": "the query", "name=%zz": "the query", "name=a;b": "the query",
	} {
		wantProblem(t, s.Do(t, "GET", credentialsPath+"?"+query, "", testserver.Bearer(manager)...), http.StatusBadRequest, "^"+field+" ")
	}
}

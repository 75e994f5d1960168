package handler_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// tooMany sends requests, and returns the first that is answered 429, or nil.
func tooMany(t testing.TB, s *testserver.Server, token string) *http.Response {
	t.Helper()
	for range 30 {
		resp := s.Do(t, "GET", "/x", "", testserver.Bearer(token)...)
		if resp.StatusCode == http.StatusTooManyRequests {
			return resp
		}
		wantStatus(t, resp, http.StatusOK)
	}
	return nil
}

func TestTokensAreLimitedAlsoThroughAReload(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, answer := createGranted(t, s, manager, `{"tokensPerHour":2}`)
	wantMatch(t, "the answer", answer, `,"created":"[^"]+","tokensPerHour":2\}$`)
	free, _ := create(t, s, manager, `{}`)
	ask := func() *http.Response {
		return s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret))
	}
	wantStatus(t, s.Do(t, "POST", tokenPath, "grant_type=client_credentials&scope=x", "Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret)), http.StatusBadRequest)
	for range 2 { // what was refused has not counted
		wantStatus(t, ask(), http.StatusOK)
	}
	refused := func(when string) {
		resp := ask()
		if resp.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s: %s", when, resp.Status)
		}
		wantMatch(t, "Retry-After", resp.Header.Get("Retry-After"), `^\d{4}$`)
		wantHeader(t, resp, "RateLimit-Policy", `"tokens";q=2;w=3600`)
		wantHeader(t, resp, "RateLimit", `"tokens";r=0;t=`+resp.Header.Get("Retry-After"))
		wantMatch(t, "the error", testserver.Body(t, resp), `^\{"error":"temporarily_unavailable","error_description":"[^"]+"\}$`)
	}
	refused("the third")
	for range 5 {
		s.Token(t, free.pair())
	}
	if err := s.Load(testserver.Simple); err != nil {
		t.Fatal(err)
	}
	refused("after a reload")
	wantStatus(t, patch(t, s, manager, c.ClientID, `{"tokensPerHour":3}`), http.StatusOK)
	wantStatus(t, ask(), http.StatusOK)
	resp := patch(t, s, manager, c.ClientID, `{"tokensPerHour":null}`)
	wantMatch(t, "the answer", testserver.Body(t, resp), `"created":"[^"]+"\}$`)
	for range 5 {
		wantStatus(t, ask(), http.StatusOK)
	}
}

func TestRequestsAreLimited(t *testing.T) {
	s := run(t, site("", "", "client_credentials\nbearer_auth /x\nreverse_proxy {{upstream}}"))
	manager := manage(t, s)
	limited, _ := createGranted(t, s, manager, `{"requestsPerSecond":1}`)
	free, _ := create(t, s, manager, `{}`)
	token, other := s.Token(t, limited), s.Token(t, free.pair())
	resp := tooMany(t, s, token)
	if resp == nil {
		t.Fatal("no request is refused")
	}
	wantHeader(t, resp, "Retry-After", "1")
	wantHeader(t, resp, "RateLimit-Policy", `"requests";q=1;w=1`)
	wantHeader(t, resp, "RateLimit", `"requests";r=0;t=1`)
	wantHeader(t, resp, "WWW-Authenticate", "")
	wantHeader(t, resp, "Cache-Control", "no-store")
	if tooMany(t, s, other) != nil {
		t.Error("a credential without a limit is limited")
	}
	// A change counts for a token that is remembered.
	wantStatus(t, patch(t, s, manager, limited.ClientID, `{"requestsPerSecond":null}`), http.StatusOK)
	if tooMany(t, s, token) != nil {
		t.Error("a limit that was taken away limits")
	}
	wantStatus(t, patch(t, s, manager, limited.ClientID, `{"requestsPerSecond":20}`), http.StatusOK)
	s.Upstream.Take()
	for n := range 20 { // there are two guards in their way
		if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(token)...); resp.StatusCode != http.StatusOK {
			t.Errorf("request %d of 20 a second: %s", n+1, resp.Status)
		}
	}
	if n := len(s.Upstream.Take()); n != 20 {
		t.Errorf("%d requests reach the upstream", n)
	}
}

func TestNobodyGivesMoreThanItsOwnLimits(t *testing.T) {
	s := run(t, testserver.Simple)
	limits := issuer.Limits{TokensPerHour: 100, RequestsPerSecond: 1000}
	boss := s.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeWrite}, Limits: limits})
	token := s.Token(t, boss)
	heir, answer := createGranted(t, s, token, `{}`) // it names none
	wantMatch(t, "the answer", answer, `"created":"[^"]+"\}$`)
	for _, name := range []string{"tokensPerHour", "requestsPerSecond"} {
		wantProblem(t, post(t, s, token, `{"`+name+`":1001}`), http.StatusForbidden, "^"+name+" ")
		wantStatus(t, post(t, s, token, `{"`+name+`":100}`), http.StatusCreated)
		for _, value := range []string{"1001", "null"} {
			wantProblem(t, patch(t, s, token, heir.ClientID, `{"`+name+`":`+value+`}`), http.StatusForbidden, "^"+name+" ")
			wantProblem(t, patch(t, s, token, boss.ClientID, `{"`+name+`":`+value+`}`), http.StatusForbidden, "^"+name+" ")
		}
		wantStatus(t, patch(t, s, token, heir.ClientID, `{"`+name+`":99}`), http.StatusOK)
		for _, value := range []string{"0", "-1", "1.5", `"5"`, "1000001", "true", "[]", "1e30"} {
			body := fmt.Sprintf(`{%q:%s}`, name, value)
			wantProblem(t, post(t, s, token, body), http.StatusBadRequest, "^"+name+" ")
			wantProblem(t, patch(t, s, token, heir.ClientID, body), http.StatusBadRequest, "^"+name+" ")
		}
	}
	wantStatus(t, patch(t, s, token, boss.ClientID, `{"tokensPerHour":50}`), http.StatusOK) // less, for oneself
	wantProblem(t, patch(t, s, token, boss.ClientID, `{"tokensPerHour":100}`), http.StatusForbidden, "^tokensPerHour ")
	free := s.CreateWith(t)
	wantProblem(t, askForSecret(t, s, token, free.ClientID, `{}`), http.StatusForbidden, "^the credential has what")
	wantStatus(t, patch(t, s, token, free.ClientID, `{"name":"x"}`), http.StatusOK) // what it had may stay
}

func TestLimitsAreExportedAndImported(t *testing.T) {
	s := run(t, testserver.Simple)
	c := s.Create(t, issuer.Draft{Limits: issuer.Limits{TokensPerHour: 1, RequestsPerSecond: 1}})
	resp, err := http.Get(fmt.Sprintf("http://%s%s", s.Admin, handler.AdminExportPath))
	if err != nil {
		t.Fatal(err)
	}
	line := testserver.Body(t, resp)
	wantMatch(t, "the export", line, `"tokensPerHour":1,"requestsPerSecond":1,`)
	other := strings.Replace(line, `"clientId":"`+c.ClientID, `"clientId":"other`, 1)
	// The hash of a secret is bound to its client id: it comes in the clear here.
	other = regexp.MustCompile(`"secrets":\[.*\]`).ReplaceAllString(other, `"secret":"iObGKtihdEScOmDiZxZ+6Q=="`)
	if resp, err = http.Post(fmt.Sprintf("http://%s%s", s.Admin, handler.AdminImportPath), "application/jsonl", strings.NewReader(other)); err != nil {
		t.Fatal(err)
	}
	t.Log(testserver.Body(t, resp))
	token := s.Token(t, testserver.Credential{ClientID: "other", Secret: "iObGKtihdEScOmDiZxZ+6Q=="})
	if tooMany(t, s, token) == nil {
		t.Error("the imported credential has no limit of requests")
	}
	wantStatus(t, s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType,
		"Authorization", basic("other", "iObGKtihdEScOmDiZxZ+6Q==")), http.StatusTooManyRequests)
}

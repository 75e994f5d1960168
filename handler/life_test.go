package handler_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const mergePatch = "application/merge-patch+json"

// patch changes a credential.
func patch(t testing.TB, s *testserver.Server, token, clientID, body string, header ...string) *http.Response {
	t.Helper()
	header = append(header, "Content-Type", mergePatch, "Authorization", "Bearer "+token)
	return s.Do(t, "PATCH", credentialsPath+"/"+clientID, body, header...)
}

func get(t testing.TB, s *testserver.Server, token, clientID string) *http.Response {
	t.Helper()
	return s.Do(t, "GET", credentialsPath+"/"+clientID, "", testserver.Bearer(token)...)
}

func TestACredentialIsChangedByAMergePatch(t *testing.T) {
	s := run(t, site("token_lifetime 1h", "", "client_credentials\nreverse_proxy {{upstream}}"))
	manager := manage(t, s, "read", "write")
	c, _ := create(t, s, manager, `{"name":"a","expires":"2099-01-01T00:00:00Z"}`)
	head := fmt.Sprintf(`{"credentialId":%q,"clientId":%q,"name":`, c.CredentialID, c.ClientID)
	created := fmt.Sprintf(`,"created":%q`, c.Created)
	tags := map[string]bool{}
	for _, step := range []struct{ patch, shown string }{
		{`{"name":"b"}`, `"b","secret":null,"expires":"2099-01-01T00:00:00.000Z"` + created + `}`},
		{`{"name":null,"expires":null}`, `null,"secret":null,"expires":null` + created + `}`},
		{`{"name":"c","expires":"2098-06-21T02:30:00.5+02:30"}`, `"c","secret":null,"expires":"2098-06-21T00:00:00.500Z"` + created + `}`},
		{`{"scopes":["read"]}`, `"c","secret":null,"expires":"2098-06-21T00:00:00.500Z"` + created + `,"scopes":["read"]}`},
		{`{"name":null,"expires":null,"scopes":[]}`, `null,"secret":null,"expires":null` + created + `,"scopes":[]}`},
		{`{"grantable":["write","read"],"audiences":["{{url}}"]}`, `null,"secret":null,"expires":null` + created + `,"scopes":[],"audiences":["{{url}}"],"grantable":["read","write"]}`},
		{`{"tokenLifetime":"30m","grantable":null,"audiences":null}`, `null,"secret":null,"expires":null` + created + `,"scopes":[],"tokenLifetime":"30m"}`},
		{`{"claims":{"tier":2,"a":{"b":1,"c":[1e3]}}}`, `null,"secret":null,"expires":null` + created + `,"scopes":[],"tokenLifetime":"30m","claims":{"a":{"b":1,"c":[1e3]},"tier":2}}`},
		{`{"claims":{"tier":null,"a":{"b":"<é>"}},"tokenLifetime":null}`, `null,"secret":null,"expires":null` + created + `,"scopes":[],"claims":{"a":{"b":"\u003cé\u003e","c":[1e3]}}}`},
		{`{"enabled":false,"claims":null}`, `null,"secret":null,"expires":null` + created + `,"scopes":[],"enabled":false}`},
		{`{"enabled":true}`, `null,"secret":null,"expires":null` + created + `,"scopes":[],"enabled":true}`},
	} {
		resp := patch(t, s, manager, c.ClientID, s.Expand(step.patch))
		body := testserver.Body(t, resp)
		if want := head + s.Expand(step.shown); resp.StatusCode != http.StatusOK || body != want {
			t.Errorf("%s is answered %s\n%s, want\n%s", step.patch, resp.Status, body, want)
		}
		tag := resp.Header.Get("ETag")
		if tags[tag] {
			t.Errorf("%s: the tag %s was there before", step.patch, tag)
		}
		tags[tag] = true
		again := patch(t, s, manager, c.ClientID, s.Expand(step.patch)) // which changes nothing
		wantHeader(t, again, "ETag", tag)
		shown := get(t, s, manager, c.ClientID)
		wantHeader(t, shown, "ETag", tag)
		if got := testserver.Body(t, shown); got != body {
			t.Errorf("GET shows %s, want %s", got, body)
		}
		if list := testserver.Body(t, s.Do(t, "GET", credentialsPath, "", testserver.Bearer(manager)...)); !strings.Contains(list, body) {
			t.Errorf("the list does not show %s: %s", body, list)
		}
	}
	if log := s.Log(t); !strings.Contains(log, `"action":"credential.changed","client_id":"`+c.ClientID+`","account":"default","members":"enabled"`) {
		t.Error("it is not in the log")
	}
	for _, mediaType := range []string{"application/json", "text/json; charset=utf-8"} {
		resp := s.Do(t, "PATCH", credentialsPath+"/"+c.ClientID, `{}`, append(testserver.Bearer(manager), "Content-Type", mediaType)...)
		wantStatus(t, resp, http.StatusOK)
	}
}

func TestABadPatchNamesItsMember(t *testing.T) {
	s := run(t, site("token_lifetime 1h", "", "client_credentials\nreverse_proxy {{upstream}}"))
	manager := manage(t, s, "read")
	c, _ := create(t, s, manager, `{}`)
	tag := get(t, s, manager, c.ClientID).Header.Get("ETag")
	for body, field := range map[string]string{
		``: "the body", `[]`: "the body", `null`: "the body", `{"name":"a","name":"b"}`: "the body", `{"secret":"ECHO"}`: "the body", `{"Enabled":false}`: "the body",
		`{"name":1}`: "name", `{"name":"a\tb"}`: "name", `{"name":"` + strings.Repeat("é", 201) + `"}`: "name",
		`{"expires":1}`: "expires", `{"expires":"2001-01-01T00:00:00Z"}`: "expires", `{"expires":"9999-12-31T23:59:59-01:00"}`: "expires",
		`{"scopes":null}`: "scopes", `{"scopes":"read"}`: "scopes", `{"scopes":["a b"]}`: "scopes",
		`{"audiences":[]}`: "audiences", `{"audiences":["a#ECHO"]}`: "audiences",
		`{"grantable":{}}`: "grantable", `{"grantable":["\""]}`: "grantable",
		`{"tokenLifetime":60}`: "tokenLifetime", `{"tokenLifetime":"soon"}`: "tokenLifetime", `{"tokenLifetime":"0s"}`: "tokenLifetime",
		`{"tokenLifetime":"-1m"}`: "tokenLifetime", `{"tokenLifetime":"1500ms"}`: "tokenLifetime", `{"tokenLifetime":"61m"}`: "tokenLifetime",
		`{"claims":[]}`: "claims", `{"claims":"ECHO"}`: "claims", `{"claims":{"a":1,"a":2}}`: "claims", `{"claims":{"sub":"ECHO"}}`: "claims",
		`{"claims":{"Scope":"admin"}}`: "claims", `{"claims":{"\u017fub":"x"}}`: "claims", `{"claims":{"epoch":9}}`: "claims", `{"claims":{"client_ID":9}}`: "claims",
		`{"claims":{"a":"` + strings.Repeat("a", 1<<10) + `"}}`: "claims",
		`{"enabled":null}`: "enabled", `{"enabled":"false"}`: "enabled", `{"enabled":0}`: "enabled",
	} {
		wantProblem(t, patch(t, s, manager, c.ClientID, body), http.StatusBadRequest, "^"+field+" [^E]+$")
		if strings.HasPrefix(field, "the") || field == "scopes" || field == "enabled" {
			continue
		}
		wantProblem(t, post(t, s, manager, body), http.StatusBadRequest, "^"+field+" [^E]+$")
	}
	wantHeader(t, get(t, s, manager, c.ClientID), "ETag", tag)
}

func TestAChangeIsMadeToWhatItIsMeantForAlone(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	first := get(t, s, manager, c.ClientID).Header.Get("ETag")
	resp := patch(t, s, manager, c.ClientID, `{"name":"a"}`, "If-Match", first)
	wantStatus(t, resp, http.StatusOK)
	second := resp.Header.Get("ETag")
	for _, bad := range [][]string{{first}, {`"x"`}, {""}, {"W/" + second}, {strings.Trim(second, `"`)}, {first, `"x"`}} {
		var header []string
		for _, value := range bad {
			header = append(header, "If-Match", value)
		}
		wantProblem(t, patch(t, s, manager, c.ClientID, `{"name":"lost"}`, header...), http.StatusPreconditionFailed, "If-Match")
	}
	for _, good := range []string{second, first + ", " + second, "*"} {
		wantStatus(t, patch(t, s, manager, c.ClientID, `{"name":"a"}`, "If-Match", good), http.StatusOK)
	}
	s.Revoke(t, c.pair())
	wantProblem(t, patch(t, s, manager, c.ClientID, `{"name":"b"}`, "If-Match", second), http.StatusNotFound, "no such credential")
}

func TestWhichChangesEndTheTokensFromBefore(t *testing.T) {
	s := run(t, site("", "", "client_credentials\nreverse_proxy {{upstream}}"))
	manager := s.Token(t, s.Create(t, issuer.Draft{
		Scopes: []string{issuer.ScopeWrite}, Grantable: []string{"read", "write"}, Audiences: []string{s.URL(""), "https://stock.example"},
	}))
	for change, status := range map[string]int{
		`{"name":"b"}`: 200, `{"expires":"2099-01-01T00:00:00Z"}`: 200, `{"grantable":[]}`: 200, `{"tokenLifetime":"1s"}`: 200, `{"claims":{"a":1}}`: 200,
		`{"scopes":["read","write"]}`: 200, `{"enabled":true}`: 200, `{"audiences":["{{url}}","https://stock.example"]}`: 200,
		`{"scopes":[]}`: 401, `{"scopes":["write"]}`: 401, `{"audiences":["https://stock.example"]}`: 401, `{"enabled":false}`: 401,
	} {
		c, _ := createGranted(t, s, manager, `{"scopes":["read"],"audiences":["`+s.URL("")+`"]}`)
		token := s.Token(t, c)
		wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
		wantStatus(t, patch(t, s, manager, c.ClientID, s.Expand(change)), http.StatusOK)
		if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(token)...); resp.StatusCode != status {
			t.Errorf("after %s, a token from before: %s, want %d", change, resp.Status, status)
		}
	}
}

func TestADisabledCredentialsTokensStayDeadWhenItIsEnabledAgain(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	old := s.Token(t, c.pair())
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(old)...), http.StatusOK)
	s.Upstream.Take()
	for range 2 { // the second time changes nothing
		wantStatus(t, patch(t, s, manager, c.ClientID, `{"enabled":false}`), http.StatusOK)
		wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(old)...), invalidToken)
		resp := s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(c.ClientID, *c.Secret))
		wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
	}
	if ids := listed(t, s, manager, ""); len(ids) != 2 {
		t.Errorf("%d are listed, want the disabled one, too", len(ids))
	}
	if !strings.Contains(s.Log(t), `"reason":"disabled"`) {
		t.Error("the log does not say why it gets no token")
	}
	wantStatus(t, patch(t, s, manager, c.ClientID, `{"enabled":true}`), http.StatusOK)
	wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(old)...), invalidToken)
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(s.Token(t, c.pair()))...), http.StatusOK)

	// And so it is for others who only know the store: the next process.
	wantStatus(t, patch(t, s, manager, c.ClientID, `{"enabled":false}`), http.StatusOK)
	s.Run(t, testserver.Simple)
	resp := s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(c.ClientID, *c.Secret))
	wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", testserver.Bearer(manager)...), http.StatusNoContent)
}

func TestAnExpiryThatIsMovedCountsAtOnce(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	token := s.Token(t, c.pair())
	expire := func(in time.Duration) {
		t.Helper()
		wantStatus(t, patch(t, s, manager, c.ClientID, fmt.Sprintf(`{"expires":%q}`, time.Now().Add(in).Format(time.RFC3339Nano))), http.StatusOK)
	}
	expire(300 * time.Millisecond)
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
	s.Upstream.Take()
	time.Sleep(350 * time.Millisecond)
	wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), invalidToken)
	if ids := listed(t, s, manager, ""); len(ids) != 1 {
		t.Errorf("%d are listed, want one that has expired not to be", len(ids))
	}
	wantStatus(t, patch(t, s, manager, c.ClientID, `{"name":"it can still be changed"}`), http.StatusOK)
	expire(time.Hour)
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(s.Token(t, c.pair()))...), http.StatusOK)
	if ids := listed(t, s, manager, ""); len(ids) != 2 {
		t.Errorf("%d are listed, want the one that works again, too", len(ids))
	}
	// A token lives no longer than its credential, wherever that was moved.
	if exp := decode(t, s.Token(t, c.pair()), 1)["exp"].(float64); exp > float64(time.Now().Add(time.Hour).Unix()) {
		t.Errorf("a token outlives its credential: it expires at %v", exp)
	}
}

func TestTokensLiveAndSayWhatTheirCredentialHas(t *testing.T) {
	s := run(t, site("token_lifetime 1h", "", "client_credentials\nreverse_proxy {{upstream}}"))
	manager := s.Token(t, s.Create(t, issuer.Draft{
		Scopes: []string{issuer.ScopeWrite}, TokenLifetime: 20 * time.Minute, Claims: json.RawMessage(`{"tenant":"acme"}`),
	}))
	says := func(c testserver.Credential, lifetime float64, claims string) {
		t.Helper()
		token := s.Token(t, c)
		payload := decode(t, token, 1)
		if got := payload["exp"].(float64) - payload["iat"].(float64); got != lifetime {
			t.Errorf("a token lives %v seconds, want %v", got, lifetime)
		}
		got, _ := json.Marshal(map[string]any{"tenant": payload["tenant"], "tier": payload["tier"]})
		if string(got) != claims {
			t.Errorf("a token says %s, want %s", got, claims)
		}
		wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
		s.Load(site("token_lifetime 1h", "", "client_credentials\nreverse_proxy {{upstream}}")) // its signature is checked, too
		wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
	}
	c, _ := create(t, s, manager, `{}`) // the contract's object, though it has what its creator has
	says(c.pair(), 20*60, `{"tenant":"acme","tier":null}`)
	with, answer := createGranted(t, s, manager, `{"tokenLifetime":"90s","claims":{"tier":[2],"tenant":"acme"}}`)
	wantMatch(t, "the answer", answer, `,"tokenLifetime":"1m30s","claims":\{"tenant":"acme","tier":\[2\]\}\}$`)
	says(with, 90, `{"tenant":"acme","tier":[2]}`)
	for body, field := range map[string]string{
		`{"tokenLifetime":"21m"}`: "tokenLifetime", `{"claims":{}}`: "claims", `{"claims":{"tenant":"other"}}`: "claims",
	} {
		wantProblem(t, post(t, s, manager, body), http.StatusForbidden, "^"+field+" ")
	}
	for body, status := range map[string]int{
		`{"tokenLifetime":"21m"}`: 403, `{"tokenLifetime":null}`: 403, `{"claims":{"tenant":"other"}}`: 403, `{"claims":{"tenant":null}}`: 403, `{"claims":null}`: 403,
		`{"tokenLifetime":"20m"}`: 200, `{"claims":{"tier":3}}`: 200,
	} {
		resp := patch(t, s, manager, with.ClientID, body)
		if resp.StatusCode != status {
			t.Errorf("%s: %s, want %d", body, resp.Status, status)
		}
	}
	says(with, 20*60, `{"tenant":"acme","tier":3}`)

	// What the configuration gives is the most, whatever the credential has.
	if err := s.Load(site("token_lifetime 1m", "", "client_credentials\nreverse_proxy {{upstream}}")); err != nil {
		t.Fatal(err)
	}
	payload := decode(t, s.Token(t, with), 1)
	if got := payload["exp"].(float64) - payload["iat"].(float64); got != 60 {
		t.Errorf("a token lives %v seconds where the configuration gives 60", got)
	}
	create(t, s, manager, `{}`)
}

func TestNobodyChangesACredentialToHaveMoreThanItMayGive(t *testing.T) {
	s := run(t, testserver.Simple)
	boss := s.Create(t, issuer.Draft{
		Scopes: []string{issuer.ScopeWrite, "read"}, Grantable: []string{"read", "write"}, Expires: time.Now().Add(time.Hour), TokenLifetime: 10 * time.Minute,
	})
	manager := s.Token(t, boss)
	strong := s.Create(t, issuer.Draft{Scopes: []string{"all", "read"}, Grantable: []string{"all"}, Audiences: []string{"https://stock.example"}, TokenLifetime: time.Hour})
	foreign := s.Create(t, issuer.Draft{Account: "other"})
	url := s.URL("")
	for _, test := range []struct {
		clientID, patch, field string
		status                 int
	}{
		{strong.ClientID, `{"scopes":["all","other","read"]}`, "scopes", 403},
		{strong.ClientID, `{"scopes":["all","client-credentials:write"]}`, "scopes", 403},
		{strong.ClientID, `{"audiences":["https://stock.example","https://orders.example"]}`, "audiences", 403},
		{strong.ClientID, `{"grantable":["all","other"]}`, "grantable", 403},
		{strong.ClientID, `{"scopes":["all","read","write"]}`, "", 200}, // what it has may stay
		{strong.ClientID, `{"audiences":["https://stock.example","` + url + `"]}`, "", 200},
		{strong.ClientID, `{"grantable":["all","write"]}`, "", 200},
		{strong.ClientID, `{"tokenLifetime":"50m"}`, "", 200},
		{strong.ClientID, `{"tokenLifetime":"51m"}`, "tokenLifetime", 403},
		{strong.ClientID, `{"expires":null,"enabled":false}`, "", 200},
		{strong.ClientID, `{"scopes":[],"grantable":null}`, "", 200},
		{strong.ClientID, `{"scopes":["all"]}`, "scopes", 403}, // what it had is gone
		{boss.ClientID, `{"scopes":["client-credentials:write","read","write"]}`, "scopes", 403},
		{boss.ClientID, `{"grantable":["read","write","other"]}`, "grantable", 403},
		{boss.ClientID, `{"audiences":["` + url + `","https://orders.example"]}`, "audiences", 403},
		{boss.ClientID, `{"tokenLifetime":null}`, "tokenLifetime", 403},
		{boss.ClientID, `{"expires":null}`, "expires", 403},
		{boss.ClientID, `{"expires":"2099-01-01T00:00:00Z"}`, "expires", 403},
		{boss.ClientID, `{"claims":{"tier":3}}`, "claims", 403},
		{boss.ClientID, `{"name":"own","grantable":["read"],"tokenLifetime":"5m","expires":"` + time.Now().Add(time.Minute).Format(time.RFC3339) + `"}`, "", 200},
		{foreign.ClientID, `{"name":"x"}`, "there is no such credential", 404},
		{strings.Repeat("0", 32), `{"name":"x"}`, "there is no such credential", 404},
		{"x", `{"name":"x"}`, "there is no such credential", 404},
	} {
		resp := patch(t, s, manager, test.clientID, test.patch)
		if test.status == 200 {
			wantStatus(t, resp, test.status)
			continue
		}
		wantProblem(t, resp, test.status, "^"+test.field)
	}
	wantStatus(t, get(t, s, manager, foreign.ClientID), http.StatusNotFound)
	admin := s.Token(t, s.CreateWith(t, issuer.ScopeAdmin))
	wantStatus(t, get(t, s, admin, foreign.ClientID), http.StatusOK)
	wantStatus(t, patch(t, s, admin, foreign.ClientID, `{"name":"x"}`), http.StatusOK)
	wantProblem(t, patch(t, s, admin, foreign.ClientID, `{"scopes":["x"]}`), http.StatusForbidden, "^scopes ")
}

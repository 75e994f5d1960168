package handler_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

var createdForm = regexp.MustCompile(`^\{"credentialId":"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",` +
	`"clientId":"[0-9a-f]{32}","name":("[^"]*"|null),"secret":"[A-Za-z0-9+/]{22}==",` +
	`"expires":("\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"|null),"created":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"\}$`)

type credential struct {
	CredentialID, ClientID string
	Name, Secret, Expires  *string
	Created                string
}

func (c credential) pair() testserver.Credential {
	return testserver.Credential{ClientID: c.ClientID, Secret: *c.Secret}
}

// create creates a credential over HTTP.
func create(t *testing.T, s *testserver.Server, token, body string) (credential, *http.Response) {
	t.Helper()
	resp := s.Do(t, "POST", credentialsPath, body, "Content-Type", jsonType, "Authorization", "Bearer "+token)
	text := testserver.Body(t, resp)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("creating: %d %s", resp.StatusCode, text)
	}
	if !createdForm.MatchString(text) {
		t.Fatalf("a created credential has another form than the contract's: %s", text)
	}
	var c credential
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c, resp
}

func TestACredentialIsCreatedAsTheContractSays(t *testing.T) {
	s := run(t, testserver.Simple)
	token := manage(t, s, "items:read")
	for _, body := range []string{`{}`, `{"name":null,"expires":null}`, ` {"unknown":{"a":[1]}} `, `{"Name":1}`} {
		c, resp := create(t, s, token, body)
		if c.Name != nil || c.Expires != nil {
			t.Errorf("%s: name %v, expires %v", body, c.Name, c.Expires)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache",
			"Location": credentialsPath + "/" + c.ClientID,
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
	for _, name := range []string{"", "My New Credentials", "Ключ 鍵 🔑 <&>", strings.Repeat("é", 200)} {
		body, _ := json.Marshal(map[string]string{"name": name})
		if c, _ := create(t, s, token, string(body)); c.Name == nil || *c.Name != name {
			t.Errorf("name %q came back as %v", name, c.Name)
		}
	}
	for sent, want := range map[string]string{
		"2099-06-21T00:00:00Z":           "2099-06-21T00:00:00.000Z",
		"2099-06-21t00:00:00z":           "2099-06-21T00:00:00.000Z",
		"2099-06-21T02:30:00+02:30":      "2099-06-21T00:00:00.000Z",
		"2099-06-20T23:00:00.5-01:00":    "2099-06-21T00:00:00.500Z",
		"2099-06-21T00:00:00.123999999Z": "2099-06-21T00:00:00.123Z",
		"2099-06-30T23:59:60Z":           "2099-07-01T00:00:00.000Z",
	} {
		if c, _ := create(t, s, token, fmt.Sprintf(`{"expires":%q}`, sent)); c.Expires == nil || *c.Expires != want {
			t.Errorf("expires %s came back as %v", sent, *c.Expires)
		}
	}
	for _, mediaType := range []string{"text/json", "application/merge-patch+json", "Application/JSON; Charset=\"UTF-8\""} {
		resp := s.Do(t, "POST", credentialsPath, `{}`, "Content-Type", mediaType, "Authorization", "Bearer "+token)
		if resp.StatusCode != http.StatusCreated {
			t.Errorf("%s: %d", mediaType, resp.StatusCode)
		}
	}
}

func TestABadRequestForACredentialNamesItsField(t *testing.T) {
	s := run(t, testserver.Simple)
	token := manage(t, s, "items:read")
	for body, field := range map[string]string{
		``: "body", `null`: "body", `[]`: "body", `{"name":"a"`: "body", `{} {}`: "body", "{\"name\":\"\xff\"}": "body",
		`{"name":"a","name":"b"}`: "body", `{"name":"\ud800"}`: "body",
		`{"name":1}`: "name", `{"name":{}}`: "name", `{"name":"a\u0000"}`: "name", `{"name":"a\tb"}`: "name",
		`{"name":"a\u007f"}`: "name", `{"name":"a\u0085"}`: "name", `{"name":"` + strings.Repeat("é", 201) + `"}`: "name",
		`{"expires":1}`: "expires", `{"expires":""}`: "expires", `{"expires":"tomorrow"}`: "expires",
		`{"expires":"2001-01-01T00:00:00Z"}`: "expires", `{"expires":"2099-01-01"}`: "expires",
		`{"expires":"2099-01-01T00:00:00"}`: "expires", `{"expires":"2099-13-01T00:00:00Z"}`: "expires",
		`{"expires":"2099-01-01 00:00:00Z"}`: "expires", `{"expires":"9999-12-31T23:59:59-01:00"}`: "expires",
		`{"expires":"0001-01-01T00:00:00Z"}`: "expires", `{"expires":"0001-01-01T01:00:00+01:00"}`: "expires", // Go's zero, which is no time
	} {
		resp := s.Do(t, "POST", credentialsPath, body, "Content-Type", "application/json", "Authorization", "Bearer "+token)
		wantProblem(t, resp, http.StatusBadRequest, field)
	}
}

func TestTheCredentialEndpointsAnswerWithTheRightStatus(t *testing.T) {
	s := run(t, testserver.Simple)
	token := manage(t, s, "items:read")
	weak := s.Token(t, s.CreateWith(t, "items:read"))
	reader := s.Token(t, s.CreateWith(t, issuer.ScopeRead))
	foreign := s.Create(t, issuer.Draft{Account: "other"})
	expired := s.Create(t, issuer.Draft{Expires: time.Now().Add(50 * time.Millisecond)})
	time.Sleep(100 * time.Millisecond)
	one := credentialsPath + "/" + foreign.ClientID
	big := `{"name":null` + strings.Repeat(" ", 64<<10) + `}`
	for _, c := range []struct {
		method, path, body, contentType, token string
		status                                 int
		header, value                          string
	}{
		{"POST", credentialsPath, `{}`, "application/json", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"GET", credentialsPath, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"DELETE", one, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"POST", credentialsPath, `{}`, "application/json", "nonsense", 401, "Www-Authenticate", `error="invalid_token"`},
		{"POST", credentialsPath, `{}`, "application/json", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"GET", credentialsPath, ``, "", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"DELETE", one, ``, "", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"POST", credentialsPath, `{}`, "application/json", weak, 403, "Www-Authenticate", `scope="client-credentials:write"`},
		{"GET", credentialsPath, ``, "", weak, 403, "Www-Authenticate", `scope="client-credentials:read"`},
		{"DELETE", one, ``, "", weak, 403, "Www-Authenticate", `error="insufficient_scope"`},
		{"POST", credentialsPath, `{}`, "application/json", reader, 403, "Www-Authenticate", `error="insufficient_scope"`},
		{"DELETE", one, ``, "", reader, 403, "Www-Authenticate", `error="insufficient_scope"`},
		{"GET", credentialsPath, ``, "", reader, 200, "Content-Type", "application/json"},
		{"HEAD", credentialsPath, ``, "", reader, 200, "Content-Type", "application/json"},
		{"GET", credentialsPath, ``, "", token, 200, "Content-Type", "application/json"},
		{"POST", credentialsPath, `{}`, "", token, 415, "Content-Type", "application/problem+json"},
		{"POST", credentialsPath, `{}`, "text/plain", token, 415, "", ""},
		{"POST", credentialsPath, `{}`, "application/json; charset=iso-8859-1", token, 415, "", ""},
		{"POST", credentialsPath, big, "application/json", token, 413, "Content-Type", "application/problem+json"},
		{"PUT", credentialsPath, `{}`, "application/json", token, 405, "Allow", "POST"},
		{"DELETE", credentialsPath, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"DELETE", credentialsPath, ``, "", reader, 403, "Www-Authenticate", `scope="client-credentials:write"`},
		{"PUT", one, `{}`, "application/json", token, 405, "Allow", "DELETE, GET, HEAD, PATCH"},
		{"PATCH", one, `{}`, "application/json", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"PATCH", one, `{}`, "application/json", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"PATCH", one, `{}`, "application/json", reader, 403, "Www-Authenticate", `scope="client-credentials:write"`},
		{"PATCH", one, `{}`, "application/json", token, 404, "", ""},
		{"PATCH", one, `{}`, "application/json-patch+json", token, 415, "Accept-Patch", "application/merge-patch+json"},
		{"PATCH", one, big, "application/json", token, 413, "", ""},
		{"GET", one, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"GET", one, ``, "", "two words", 400, "Www-Authenticate", `error="invalid_request"`},
		{"GET", one, ``, "", weak, 403, "Www-Authenticate", `scope="client-credentials:read"`},
		{"GET", one, ``, "", reader, 404, "Content-Type", "application/problem+json"},
		{"GET", credentialsPath + "/" + expired.ClientID, ``, "", reader, 200, "Etag", `"1.1"`},
		{"HEAD", credentialsPath + "/" + expired.ClientID, ``, "", reader, 200, "Etag", `"1.1"`},
		{"DELETE", one, ``, "", token, 404, "Content-Type", "application/problem+json"}, // another account's
		{"DELETE", credentialsPath + "/" + expired.ClientID, ``, "", token, 204, "", ""},
		{"DELETE", credentialsPath + "/" + expired.ClientID, ``, "", token, 404, "", ""},
		{"DELETE", credentialsPath + "/" + strings.Repeat("0", 32), ``, "", token, 404, "", ""},
		{"DELETE", credentialsPath + "/" + strings.ToUpper(foreign.ClientID), ``, "", token, 404, "", ""},
		{"DELETE", credentialsPath + "/", ``, "", token, 404, "", ""},
		{"DELETE", one + "/", ``, "", token, 404, "", ""},
		{"DELETE", credentialsPath + "/..%2F..%2Fx", ``, "", token, 404, "", ""},
		{"GET", credentialsPath + "/" + expired.ClientID, ``, "", token, 404, "", ""}, // it is revoked now
		{"GET", one + "/no/such/path", ``, "", "", 401, "", ""},
		{"GET", one + "/no/such/path", ``, "", token, 404, "", ""},
	} {
		var header []string
		if c.contentType != "" {
			header = append(header, "Content-Type", c.contentType)
		}
		if c.token != "" {
			header = append(header, "Authorization", "Bearer "+c.token)
		}
		resp := s.Do(t, c.method, c.path, c.body, header...)
		if resp.StatusCode != c.status || !strings.Contains(resp.Header.Get(c.header), c.value) {
			t.Errorf("%s %s %.20s: %d with %s %q, want %d with %q",
				c.method, c.path, c.contentType, resp.StatusCode, c.header, resp.Header.Get(c.header), c.status, c.value)
		}
		if resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: an answer may be kept", c.method, c.path)
		}
	}
	if n := len(s.Upstream.Take()); n != 0 {
		t.Errorf("%d requests for the endpoints reached the upstream", n)
	}
}

func TestCredentialsAreListedOldestFirstAndOnlyThoseOfTheAccount(t *testing.T) {
	s := run(t, testserver.Simple)
	token := manage(t, s, "items:read")
	s.Create(t, issuer.Draft{Account: "other"})
	s.Create(t, issuer.Draft{Expires: time.Now().Add(time.Millisecond)})
	var want []string
	for n := range 1200 {
		name := fmt.Sprint(n)
		want = append(want, s.Create(t, issuer.Draft{Name: &name}).ClientID)
	}
	resp := s.Do(t, "GET", credentialsPath, "", testserver.Bearer(token)...)
	var list []credential
	if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != len(want)+1 { // and the one that lists
		t.Fatalf("%d credentials listed, want %d", len(list), len(want)+1)
	}
	for n, c := range list[1:] {
		if c.ClientID != want[n] || c.Secret != nil || *c.Name != fmt.Sprint(n) {
			t.Fatalf("credential %d is %+v", n, c)
		}
	}
}

func TestACreatedCredentialHasItsCreatorsScopesLessTheManagementOnes(t *testing.T) {
	s := run(t, testserver.Simple)
	c, _ := create(t, s, manage(t, s, "items:read"), `{}`)
	child := s.Token(t, c.pair())
	if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(child)...); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if got := s.Upstream.Take()[0].Header.Get("X-Client-Scope"); got != "items:read" {
		t.Errorf("scope %q", got)
	}
	if resp := s.Do(t, "GET", credentialsPath, "", testserver.Bearer(child)...); resp.StatusCode != 403 {
		t.Errorf("a credential manages others, though its creator's right to do so is not inherited: %s", resp.Status)
	}
}

func TestARevokedCredentialsTokensAreRefusedOnTheNextRequest(t *testing.T) {
	s := run(t, testserver.Simple)
	token := manage(t, s, "items:read")
	for range 20 {
		c, _ := create(t, s, token, `{}`)
		pair := c.pair()
		used, unused := s.Token(t, pair), s.Token(t, pair)
		if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(used)...); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		resp := s.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", testserver.Bearer(token)...)
		if body := testserver.Body(t, resp); resp.StatusCode != 204 || body != "" {
			t.Fatalf("%s %s", resp.Status, body)
		}
		s.Upstream.Take()
		for _, bad := range []string{used, unused} {
			resp := s.Do(t, "GET", "/x", "", testserver.Bearer(bad)...)
			if resp.StatusCode != 401 || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`) {
				t.Fatalf("a revoked token: %s", resp.Status)
			}
		}
		if n := len(s.Upstream.Take()); n != 0 {
			t.Fatal("a revoked token reached the upstream")
		}
		resp = s.Do(t, "POST", tokenPath, "grant_type=client_credentials",
			"Content-Type", formType, "Authorization", basic(pair.ClientID, pair.Secret))
		if body := testserver.Body(t, resp); resp.StatusCode != 401 || !strings.Contains(body, "invalid_client") {
			t.Fatalf("a revoked pair: %s %s", resp.Status, body)
		}
		if resp := s.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", testserver.Bearer(token)...); resp.StatusCode != 404 {
			t.Fatalf("revoking again: %s", resp.Status)
		}
	}
}

package blackbox_test

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

const collection = "/api/v0/client-credentials"

var createdForm = regexp.MustCompile(`^\{"credentialId":"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",` +
	`"clientId":"[0-9a-f]{32}","name":("[^"]*"|null),"secret":"[A-Za-z0-9+/]{22}==",` +
	`"expires":("\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"|null),"created":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"\}$`)

type credential struct {
	CredentialID, ClientID string
	Name, Secret, Expires  *string
	Created                string
}

func create(t *testing.T, s *testserver.Server, token, body string) (credential, *http.Response) {
	t.Helper()
	resp := s.Do(t, "POST", collection, body, "Content-Type", "application/json", "Authorization", "Bearer "+token)
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
	s := simple(t)
	token := admin(t, s)
	for _, body := range []string{`{}`, `{"name":null,"expires":null}`, ` {"unknown":{"a":[1]}} `, `{"Name":1}`} {
		c, resp := create(t, s, token, body)
		if c.Name != nil || c.Expires != nil {
			t.Errorf("%s: name %v, expires %v", body, c.Name, c.Expires)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", "Cache-Control": "no-store", "Pragma": "no-cache",
			"Location": collection + "/" + c.ClientID,
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
		resp := s.Do(t, "POST", collection, `{}`, "Content-Type", mediaType, "Authorization", "Bearer "+token)
		if resp.StatusCode != http.StatusCreated {
			t.Errorf("%s: %d", mediaType, resp.StatusCode)
		}
	}
}

func TestABadRequestForACredentialNamesItsField(t *testing.T) {
	s := simple(t)
	token := admin(t, s)
	for body, field := range map[string]string{
		``: "body", `null`: "body", `[]`: "body", `{"name":"a"`: "body", `{} {}`: "body", "{\"name\":\"\xff\"}": "body",
		`{"name":"a","name":"b"}`: "body", `{"name":"\ud800"}`: "body",
		`{"name":1}`: "name", `{"name":{}}`: "name", `{"name":"a\u0000"}`: "name", `{"name":"a\tb"}`: "name",
		`{"name":"a\u007f"}`: "name", `{"name":"a\u0085"}`: "name", `{"name":"` + strings.Repeat("é", 201) + `"}`: "name",
		`{"expires":1}`: "expires", `{"expires":""}`: "expires", `{"expires":"tomorrow"}`: "expires",
		`{"expires":"2001-01-01T00:00:00Z"}`: "expires", `{"expires":"2099-01-01"}`: "expires",
		`{"expires":"2099-01-01T00:00:00"}`: "expires", `{"expires":"2099-13-01T00:00:00Z"}`: "expires",
		`{"expires":"2099-01-01 00:00:00Z"}`: "expires", `{"expires":"9999-12-31T23:59:59-01:00"}`: "expires",
	} {
		resp := s.Do(t, "POST", collection, body, "Content-Type", "application/json", "Authorization", "Bearer "+token)
		text := testserver.Body(t, resp)
		var p struct {
			Type, Title, Detail string
			Status              int
		}
		if err := json.Unmarshal([]byte(text), &p); err != nil || resp.StatusCode != 400 || p.Status != 400 || p.Title != "Bad Request" ||
			p.Type != "about:blank" || resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(p.Detail, field) {
			t.Errorf("%.60s: %d %s, want a problem that names %s", body, resp.StatusCode, text, field)
		}
	}
}

func TestTheCredentialEndpointsAnswerWithTheRightStatus(t *testing.T) {
	s := simple(t)
	token := admin(t, s)
	weak := s.Token(t, s.CreateWith(t, "items:read"))
	reader := s.Token(t, s.CreateWith(t, issuer.ScopeRead))
	foreign := s.Create(t, issuer.Draft{Account: "other"})
	one := collection + "/" + foreign.ClientID
	big := `{"name":null` + strings.Repeat(" ", 64<<10) + `}`
	for _, c := range []struct {
		method, path, body, contentType, token string
		status                                 int
		header, value                          string
	}{
		{"POST", collection, `{}`, "application/json", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"GET", collection, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"DELETE", one, ``, "", "", 401, "Www-Authenticate", `Bearer realm="`},
		{"POST", collection, `{}`, "application/json", "nonsense", 401, "Www-Authenticate", `error="invalid_token"`},
		{"POST", collection, `{}`, "application/json", weak, 403, "Www-Authenticate", `scope="client-credentials:write"`},
		{"GET", collection, ``, "", weak, 403, "Www-Authenticate", `scope="client-credentials:read"`},
		{"DELETE", one, ``, "", weak, 403, "Www-Authenticate", `error="insufficient_scope"`},
		{"POST", collection, `{}`, "application/json", reader, 403, "Www-Authenticate", `error="insufficient_scope"`},
		{"DELETE", one, ``, "", reader, 403, "Www-Authenticate", `error="insufficient_scope"`},
		{"GET", collection, ``, "", reader, 200, "Content-Type", "application/json"},
		{"HEAD", collection, ``, "", reader, 200, "Content-Type", "application/json"},
		{"GET", collection, ``, "", token, 200, "Content-Type", "application/json"},
		{"POST", collection, `{}`, "", token, 415, "Content-Type", "application/problem+json"},
		{"POST", collection, `{}`, "text/plain", token, 415, "", ""},
		{"POST", collection, `{}`, "application/json; charset=iso-8859-1", token, 415, "", ""},
		{"POST", collection, big, "application/json", token, 413, "Content-Type", "application/problem+json"},
		{"PUT", collection, `{}`, "application/json", token, 405, "Allow", "POST"},
		{"PATCH", one, `{}`, "application/json", token, 405, "Allow", "DELETE"},
		{"GET", one, ``, "", token, 405, "Allow", "DELETE"},
		{"DELETE", one, ``, "", token, 404, "Content-Type", "application/problem+json"}, // another account's
		{"DELETE", collection + "/" + strings.Repeat("0", 32), ``, "", token, 404, "", ""},
		{"DELETE", collection + "/" + strings.ToUpper(foreign.ClientID), ``, "", token, 404, "", ""},
		{"DELETE", collection + "/", ``, "", token, 404, "", ""},
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
	s := simple(t)
	token := admin(t, s)
	s.Create(t, issuer.Draft{Account: "other"})
	s.Create(t, issuer.Draft{Expires: time.Now().Add(time.Millisecond)})
	var want []string
	for n := range 1200 {
		name := fmt.Sprint(n)
		want = append(want, s.Create(t, issuer.Draft{Name: &name}).ClientID)
	}
	resp := s.Do(t, "GET", collection, "", testserver.Bearer(token)...)
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
	s := simple(t)
	c, _ := create(t, s, admin(t, s), `{}`)
	child := s.Token(t, testserver.Credential{ClientID: c.ClientID, Secret: *c.Secret})
	if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(child)...); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if got := s.Upstream.Take()[0].Header.Get("X-Client-Scope"); got != "items:read" {
		t.Errorf("scope %q", got)
	}
	if resp := s.Do(t, "GET", collection, "", testserver.Bearer(child)...); resp.StatusCode != 403 {
		t.Errorf("a credential manages others, though its creator's right to do so is not inherited: %s", resp.Status)
	}
}

func TestARevokedCredentialsTokensAreRefusedOnTheNextRequest(t *testing.T) {
	s := simple(t)
	token := admin(t, s)
	for range 20 {
		c, _ := create(t, s, token, `{}`)
		pair := testserver.Credential{ClientID: c.ClientID, Secret: *c.Secret}
		used, unused := s.Token(t, pair), s.Token(t, pair)
		if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(used)...); resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		resp := s.Do(t, "DELETE", collection+"/"+c.ClientID, "", testserver.Bearer(token)...)
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
		resp = s.Do(t, "POST", "/api/v0/oauth/token", "grant_type=client_credentials",
			"Content-Type", "application/x-www-form-urlencoded", "Authorization", basic(pair.ClientID+":"+pair.Secret))
		if body := testserver.Body(t, resp); resp.StatusCode != 401 || !strings.Contains(body, "invalid_client") {
			t.Fatalf("a revoked pair: %s %s", resp.Status, body)
		}
		if resp := s.Do(t, "DELETE", collection+"/"+c.ClientID, "", testserver.Bearer(token)...); resp.StatusCode != 404 {
			t.Fatalf("revoking again: %s", resp.Status)
		}
	}
}

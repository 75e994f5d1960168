package command_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const (
	adminPath       = "/client-credentials"
	credentialsPath = adminPath + "/credentials"
)

// askAdmin sends a request to the admin endpoint and returns the answer with
// its body.
func askAdmin(t *testing.T, s *testserver.Server, method, path, body string) (*http.Response, string) {
	t.Helper()
	return ask(t, method, "http://"+s.Admin+path, body)
}

func ask(t *testing.T, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirects
	if err != nil {
		t.Fatal(err)
	}
	return resp, testserver.Body(t, resp)
}

func TestTheAdminEndpointCreatesListsAndRevokes(t *testing.T) {
	s := testserver.New(t)
	s.Run(t, testserver.Simple)
	resp, body := askAdmin(t, s, "POST", credentialsPath, `{"name":"ops","account":"team-7","scopes":["b","a"],"expires":"2099-06-21T02:30:00+02:30"}`)
	if resp.StatusCode != http.StatusCreated || resp.Header.Get("Content-Type") != "application/json" || !createdForm.MatchString(body+"\n") {
		t.Fatalf("%s %v %s", resp.Status, resp.Header, body)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("an answer with a secret may be kept: %q", got)
	}
	var c testserver.Credential
	unmarshal(t, body, &c)
	token := s.Token(t, c)
	wantStatus(t, s, token, 200)

	resp, body = askAdmin(t, s, "GET", credentialsPath, "")
	want := fmt.Sprintf(`"clientId":%q,"name":"ops","secret":null,"expires":"2099-06-21T00:00:00.000Z"`, c.ClientID)
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) || !strings.Contains(body, `"account":"team-7","scopes":["a","b"],"status":"active","lastUsed":"2`) {
		t.Errorf("%s %s", resp.Status, body)
	}
	if resp, body := askAdmin(t, s, "DELETE", credentialsPath+"/"+c.ClientID, ""); resp.StatusCode != http.StatusNoContent || body != "" {
		t.Errorf("%s %s", resp.Status, body)
	}
	wantStatus(t, s, token, 401)
	_, body = askAdmin(t, s, "POST", credentialsPath, `{"scopes":["client-credentials:write"],"grantable":["a"]}`)
	unmarshal(t, body, &c)
	giver := append(testserver.Bearer(s.Token(t, c)), "Content-Type", "application/json")
	for scope, want := range map[string]int{"a": http.StatusCreated, "b": http.StatusForbidden} {
		if resp := s.Do(t, "POST", "/api/v0/client-credentials", `{"scopes":["`+scope+`"]}`, giver...); resp.StatusCode != want {
			t.Errorf("one that may give a gives %s: %s", scope, resp.Status)
		}
	}
	for _, body := range []string{`{}`, `{"name":null,"expires":null,"account":null,"scopes":null}`, `{"account":"","scopes":[]}`} {
		if resp, text := askAdmin(t, s, "POST", credentialsPath, body); resp.StatusCode != http.StatusCreated {
			t.Errorf("%s: %s %s", body, resp.Status, text)
		}
	}
}

func TestTheAdminEndpointAnswersWithTheRightStatus(t *testing.T) {
	s := testserver.New(t)
	s.Run(t, testserver.Simple)
	c := s.CreateWith(t)
	one := credentialsPath + "/" + c.ClientID
	for _, ask := range []struct {
		method, path, body string
		status             int
		allow              string
	}{
		{"GET", credentialsPath, "", 200, ""},
		{"PUT", credentialsPath, "{}", 405, "DELETE, GET, POST"},
		{"PATCH", credentialsPath, "{}", 405, "DELETE, GET, POST"},
		{"DELETE", credentialsPath, "", 400, ""},
		{"DELETE", credentialsPath + "?account=a&createdBy=b", "", 400, ""},
		{"GET", adminPath + "/check-token", "", 405, "POST"},
		{"POST", adminPath + "/check-token", "{}", 400, ""},
		{"POST", adminPath + "/check-token", "x", 400, ""},
		{"POST", adminPath + "/check-token", `{"token":"x"}`, 200, ""},
		{"GET", one, "", 200, ""},
		{"PATCH", one, "{}", 200, ""},
		{"PATCH", one, `{"account":"b"}`, 400, ""},
		{"POST", one, "{}", 405, "DELETE, GET, PATCH"},
		{"PUT", one, "{}", 405, "DELETE, GET, PATCH"},
		{"GET", one + "/secrets", "", 200, ""},
		{"DELETE", one + "/secrets", "", 405, "GET, POST"},
		{"POST", one + "/secrets", `{"overlaps":"0s"}`, 400, ""},
		{"DELETE", one + "/secrets/0011223344556677", "", 404, ""},
		{"GET", one + "/secrets/0011223344556677", "", 405, "DELETE"},
		{"DELETE", credentialsPath + "/" + strings.Repeat("0", 32), "", 404, ""},
		{"DELETE", credentialsPath + "/" + strings.ToUpper(c.ClientID), "", 404, ""},
		{"DELETE", one + "%2F", "", 404, ""},
		{"DELETE", one + "%2Fsecrets", "", 404, ""},
		{"DELETE", credentialsPath + "/..%2F..%2Fload", "", 404, ""},
		{"DELETE", credentialsPath + "/%00", "", 404, ""},
		{"POST", credentialsPath, `{"name":"` + strings.Repeat("a", 64<<10) + `"}`, 413, ""},
		{"POST", credentialsPath, `{}` + strings.Repeat(" ", 64<<10-2), 201, ""},
		{"POST", credentialsPath, `{}` + strings.Repeat(" ", 64<<10-1), 413, ""},
	} {
		resp, body := askAdmin(t, s, ask.method, ask.path, ask.body)
		if resp.StatusCode != ask.status || resp.Header.Get("Allow") != ask.allow {
			t.Errorf("%s %s: %s with Allow %q, want %d with %q", ask.method, ask.path, resp.Status, resp.Header.Get("Allow"), ask.status, ask.allow)
		}
		if ask.status >= 400 {
			wantAdminError(t, resp, body)
		}
	}
	if status, body := tokenAnswer(t, s, c); status != 200 {
		t.Errorf("the credential is gone: %d %s", status, body)
	}
}

// wantAdminError checks that an answer has the form of Caddy's own.
func wantAdminError(t *testing.T, resp *http.Response, body string) string {
	t.Helper()
	var answer struct{ Error string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Error == "" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: %s", resp.Status, body)
	}
	return answer.Error
}

func TestTheAdminEndpointNamesWhatIsWrongAndRepeatsNothing(t *testing.T) {
	s := testserver.New(t)
	s.Run(t, testserver.Simple)
	const mark = "a-text-that-was-sent"
	for body, field := range map[string]string{
		``:                          "body",
		`null`:                      "body",
		`["` + mark + `"]`:          "body",
		`"` + mark + `"`:            "body",
		`{"name":"` + mark:          "body",
		`{} {"` + mark + `"`:        "body",
		`{"` + mark + `":1}`:        "body",
		`{"Name":"` + mark + `"}`:   "body",
		`{"scope":"` + mark + `"}`:  "body",
		`{"secret":"` + mark + `"}`: "body",
		`{"name":"` + mark + `","name":"` + mark + `"}`:                "body",
		`{"scopes":[],"scopes":["` + mark + `"]}`:                      "body",
		`{"na\u006de":"` + mark + `","name":"` + mark + `"}`:           "body",
		"{\"name\":\"" + mark + "\xff\"}":                              "body",
		`{"name":"` + mark + `\ud800"}`:                                "body",
		`{"name":["` + mark + `"]}`:                                    "name",
		`{"name":"` + mark + `\u0000"}`:                                "name",
		`{"name":"` + mark + strings.Repeat("é", 200) + `"}`:           "name",
		`{"expires":4102444800}`:                                       "expires",
		`{"expires":"` + mark + `"}`:                                   "expires",
		`{"expires":"2001-01-01T00:00:00Z"}`:                           "expires",
		`{"expires":"9999-12-31T23:59:59-01:00"}`:                      "expires",
		`{"account":["` + mark + `"]}`:                                 "account",
		`{"account":1}`:                                                "account",
		`{"account":"` + mark + `/x"}`:                                 "account",
		`{"account":"` + mark + `\r\nX: y"}`:                           "account",
		`{"account":"` + mark + strings.Repeat("a", 64) + `"}`:         "account",
		`{"scopes":"` + mark + `"}`:                                    "scopes",
		`{"scopes":{"` + mark + `":true}}`:                             "scopes",
		`{"scopes":[1]}`:                                               "scopes",
		`{"scopes":[["` + mark + `"]]}`:                                "scopes",
		`{"scopes":[null]}`:                                            "scopes",
		`{"scopes":[""]}`:                                              "scopes",
		`{"scopes":["` + mark + ` b"]}`:                                "scopes",
		`{"scopes":["` + mark + `\""]}`:                                "scopes",
		`{"scopes":["é` + mark + `"]}`:                                 "scopes",
		`{"scopes":["` + mark + strings.Repeat("a", 256) + `"]}`:       "scopes",
		`{"name":"` + mark + `","expires":"` + mark + `","scopes":[]}`: "expires",
	} {
		resp, answer := askAdmin(t, s, "POST", credentialsPath, body)
		if message := wantAdminError(t, resp, answer); resp.StatusCode != http.StatusBadRequest || !strings.Contains(message, field) {
			t.Errorf("%.60s: %s %q, want 400 and %s", body, resp.Status, message, field)
		}
		if strings.Contains(answer, mark) {
			t.Errorf("%.60s: the answer repeats it: %s", body, answer)
		}
	}
	if strings.Contains(s.Log(t), mark) {
		t.Error("the log repeats what was sent")
	}
	if _, body := askAdmin(t, s, "GET", credentialsPath, ""); body != "[]" {
		t.Errorf("created: %s", body)
	}
}

// The peers are made up: tests reach no other host, and none reaches them.
func TestTheAdminEndpointAnswersItsOwnHostOnly(t *testing.T) {
	s := simple(t)
	s.Run(t, testserver.Simple)
	c := s.CreateWith(t)
	for peer, refused := range map[string]bool{
		"127.0.0.1:1": false, "127.9.9.9:1": false, "[::1]:1": false, "[::ffff:127.0.0.1]:1": false, "@": false, "": false,
		"192.0.2.1:1": true, "10.0.0.1:1": true, "[2001:db8::1]:1": true, "[fe80::1%eth0]:1": true, "0.0.0.0:1": true, "localhost:1": true,
	} {
		for _, route := range new(handler.AdminAPI).Routes() {
			for _, method := range []string{"GET", "POST", "DELETE"} {
				if !refused && method != "GET" {
					continue
				}
				r := httptest.NewRequestWithContext(t.Context(), method, credentialsPath+"/"+c.ClientID, strings.NewReader("{}"))
				r.RemoteAddr = peer
				err := route.Handler.ServeHTTP(httptest.NewRecorder(), r)
				var answer caddy.APIError
				if forbidden := errors.As(err, &answer) && answer.HTTPStatus == http.StatusForbidden; forbidden != refused {
					t.Errorf("%s from %q: %v", method, peer, err)
				}
			}
		}
	}
	if status, body := tokenAnswer(t, s, c); status != 200 {
		t.Errorf("the credential is gone: %d %s", status, body)
	}
}

// The whole of what operators do, with everything logged.
func TestNoSecretAndNoTokenIsLogged(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	var said strings.Builder
	var sent []string
	do := func(args ...string) testserver.Credential {
		r := run(t, s, append(args, "--json")...)
		if r.code != 0 {
			t.Fatalf("%q: %s", args, r.stderr)
		}
		said.WriteString(r.stderr)
		var c testserver.Credential
		if args[0] == "create" {
			unmarshal(t, r.stdout, &c)
			sent = append(sent, c.Secret, url.QueryEscape(c.Secret))
		}
		return c
	}
	old := do("create", "--offline", "--scope", issuer.ScopeWrite)
	do("list", "--offline")
	server := s.Start(t, testserver.Simple)
	for _, c := range []testserver.Credential{old, do("create", "--scope", issuer.ScopeWrite, "--name", "ops"), do("create", "--address", s.Admin)} {
		token := s.Token(t, c)
		sent = append(sent, token, strings.Split(token, ".")[2])
		wantStatus(t, s, token, 200)
		s.Do(t, "POST", "/api/v0/client-credentials", `{}`, append(testserver.Bearer(token), "Content-Type", "application/json")...)
		do("list")
		said.WriteString(run(t, s, "revoke", c.ClientID).stderr)
		wantStatus(t, s, token, 401)
		_, answer := tokenAnswer(t, s, c)
		said.WriteString(answer)
		said.WriteString(run(t, s, "revoke", c.ClientID).stderr)
	}
	_ = server.Process.Kill()
	_ = server.Wait() // before this its output is still being written
	log := s.Log(t)
	said.WriteString(log)
	said.WriteString(server.Stdout.(fmt.Stringer).String())
	if !strings.Contains(log, old.ClientID) || len(sent) != 12 {
		t.Fatalf("the log does not name the credential, or %d texts are too few, for the test to mean anything", len(sent))
	}
	for _, text := range sent {
		if strings.Contains(said.String(), text) {
			t.Errorf("logged: %s", text)
		}
	}
}

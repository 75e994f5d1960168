package handler_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// guarded is a site whose routes ask for different things.
const guarded = `{
	{{global}}
	client_credentials {
		issuer {{url}}
		store badger {{dir}}/store
	}
}
{{url}} {
	client_credentials /all/*
	bearer_auth /r/* read
	bearer_auth /rw/* read write
	bearer_auth /opt/* {
		optional
	}
	bearer_auth /fwd/* {
		forward_token
	}
	bearer_auth /aud/* {
		audience https://other.test
	}
	bearer_auth /twice/* {
		forward_token
	}
	bearer_auth /twice/* write
	bearer_auth /again/*
	bearer_auth /again/* {
		forward_token
	}
	respond /who "{http.auth.user.id}"
	handle /all/who* {
		respond "{http.auth.user.id} {http.auth.user.scope} {http.auth.user.account} {http.auth.user.name} {http.auth.user.jti}"
	}
	handle {
		reverse_proxy {{upstream}}
	}
	handle_errors {
		reverse_proxy {{upstream}} {
			header_up X-Error "{err.status_code} {http.auth.bearer.error}"
		}
	}
}
`

func TestAGuardAnswersAsRFC6750Says(t *testing.T) {
	s := newServer(t)
	s.Run(t, strings.ReplaceAll(guarded, "handle_errors", "handle_errors 599"))
	read := s.Token(t, s.CreateWith(t, "read", "readwrite"))
	both := s.Token(t, s.CreateWith(t, "read", "write"))
	none := s.Token(t, s.CreateWith(t))
	for name, c := range map[string]struct {
		path          string
		authorization []string
		status        int
		code          string
	}{
		"no token":              {"/r/x", nil, 401, ""},
		"Basic":                 {"/r/x", []string{"Basic YTpi"}, 401, ""},
		"other scheme first":    {"/r/x", []string{"Basic YTpi, Bearer " + both}, 401, ""},
		"empty":                 {"/r/x", []string{""}, 401, ""},
		"glued":                 {"/r/x", []string{"Bearer" + both}, 401, ""},
		"right":                 {"/r/x", []string{"Bearer " + both}, 200, ""},
		"case":                  {"/r/x", []string{"bEaReR " + both}, 200, ""},
		"two spaces":            {"/r/x", []string{"Bearer  " + both}, 200, ""},
		"tab":                   {"/r/x", []string{"Bearer\t" + both}, 400, "invalid_request"},
		"scheme alone":          {"/r/x", []string{"Bearer"}, 400, "invalid_request"},
		"two tokens":            {"/r/x", []string{"Bearer " + both + " " + both}, 400, "invalid_request"},
		"a list":                {"/r/x", []string{"Bearer " + both + ", Bearer " + both}, 400, "invalid_request"},
		"two fields":            {"/r/x", []string{"Bearer " + both, "Bearer " + both}, 400, "invalid_request"},
		"good and bad":          {"/r/x", []string{"Bearer " + both, "Bearer x"}, 400, "invalid_request"},
		"not ASCII":             {"/r/x", []string{"Bearer é"}, 400, "invalid_request"},
		"garbage":               {"/r/x", []string{"Bearer x"}, 401, "invalid_token"},
		"padded":                {"/r/x", []string{"Bearer " + both + "="}, 401, "invalid_token"},
		"changed":               {"/r/x", []string{"Bearer " + both[:len(both)-9] + flip(both[len(both)-9:])}, 401, "invalid_token"},
		"huge":                  {"/r/x", []string{"Bearer " + strings.Repeat("a", 9000)}, 401, "invalid_token"},
		"dots":                  {"/r/x", []string{"Bearer " + strings.Repeat(".", 8000)}, 401, "invalid_token"},
		"scope":                 {"/rw/x", []string{"Bearer " + both}, 200, ""},
		"scope lacks":           {"/rw/x", []string{"Bearer " + read}, 403, "insufficient_scope"},
		"no scope":              {"/r/x", []string{"Bearer " + none}, 403, "insufficient_scope"},
		"no scope needed":       {"/fwd/x", []string{"Bearer " + none}, 200, ""},
		"optional without":      {"/opt/x", nil, 200, ""},
		"optional with":         {"/opt/x", []string{"Bearer " + none}, 200, ""},
		"optional with a bad":   {"/opt/x", []string{"Bearer x"}, 401, "invalid_token"},
		"optional with two":     {"/opt/x", []string{"Bearer " + none, "Bearer " + none}, 400, "invalid_request"},
		"other audience":        {"/aud/x", []string{"Bearer " + both}, 401, "invalid_token"},
		"token in the query":    {"/r/x?access_token=" + both, nil, 401, ""},
		"both guards":           {"/twice/x", []string{"Bearer " + both}, 200, ""},
		"the second guard asks": {"/twice/x", []string{"Bearer " + read}, 403, "insufficient_scope"},
	} {
		s.Upstream.Take()
		header := []string{}
		for _, value := range c.authorization {
			header = append(header, "Authorization", value)
		}
		resp := s.Do(t, "GET", c.path, "", header...)
		challenge := resp.Header.Get("WWW-Authenticate")
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s %s, want %d", name, resp.Status, challenge, c.status)
			continue
		}
		passed := len(s.Upstream.Take())
		if (c.status == 200) != (passed == 1) {
			t.Errorf("%s: %d requests reached the upstream", name, passed)
		}
		if c.status == 200 {
			continue
		}
		if !strings.HasPrefix(challenge, `Bearer realm="`+s.URL("")+`"`) || resp.Header.Get("Cache-Control") != "no-store" ||
			len(resp.Header.Values("WWW-Authenticate")) != 1 {
			t.Errorf("%s: header %v", name, resp.Header)
		}
		if c.code == "" && strings.Contains(challenge, "error") || !strings.Contains(challenge, c.code) {
			t.Errorf("%s: challenge %s", name, challenge)
		}
		if body := testserver.Body(t, resp); strings.Contains(body, "ey") {
			t.Errorf("%s: body %s", name, body)
		}
	}
	resp := s.Do(t, "GET", "/rw/x", "", testserver.Bearer(read)...)
	if challenge := resp.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `scope="read write"`) {
		t.Errorf("the scopes that are needed are not named: %s", challenge)
	}
	resp = s.Do(t, "POST", "/r/x", "access_token="+both, "Content-Type", formType)
	if resp.StatusCode != 401 {
		t.Errorf("a token in the body: %s", resp.Status)
	}
}

func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

var spoofed = []string{
	"X-Client-Id", "spoof", "x-client-scope", "spoof", "X-CLIENT-ACCOUNT", "spoof",
}

func TestTheUpstreamSeesOnlyTheTrueIdentity(t *testing.T) {
	s := run(t, guarded)
	name := "ops"
	c := s.Create(t, issuer.Draft{Name: &name, Scopes: []string{"read", "write"}, Account: "acme"})
	token := s.Token(t, c)
	scopeless := s.CreateWith(t)
	for _, test := range []struct {
		path, token, id, scope, account, authorization string
	}{
		{"/r/x", token, c.ClientID, "read write", "acme", ""},
		{"/all/x", token, c.ClientID, "read write", "acme", ""},
		{"/fwd/x", token, c.ClientID, "read write", "acme", "Bearer " + token},
		{"/fwd/x", s.Token(t, scopeless), scopeless.ClientID, "", "default", "x"},
		{"/again/x", token, c.ClientID, "read write", "acme", "Bearer " + token}, // the last guard decides
		{"/twice/x", token, c.ClientID, "read write", "acme", ""},
		{"/opt/x", token, c.ClientID, "read write", "acme", ""},
		{"/opt/x", "", "", "", "", ""},
		{"/public", "", "", "", "", ""}, // no guard looks at it
		{"/r/x", "", "", "", "", ""},    // refused, and answered by handle_errors
		{"/rw/x", s.Token(t, scopeless), "", "", "", "x"},
	} {
		for _, connection := range []string{"", "X-Client-Id, x-client-scope ,X_Client_Account, Authorization", "close, x-client-id"} {
			s.Upstream.Take()
			header := append([]string{}, spoofed...)
			if test.token != "" {
				header = append(header, testserver.Bearer(test.token)...)
			}
			if connection != "" {
				header = append(header, "Connection", connection)
			}
			testserver.Body(t, s.Do(t, "GET", test.path, "", header...))
			got := s.Upstream.Take()
			if len(got) != 1 {
				t.Fatalf("%s: %d requests reached the upstream", test.path, len(got))
			}
			want := map[string]string{"X-Client-Id": test.id, "X-Client-Scope": test.scope, "X-Client-Account": test.account}
			if test.authorization != "x" {
				want["Authorization"] = test.authorization
			}
			for name, value := range want {
				if values := got[0].Header.Values(name); strings.Join(values, "|") != value {
					t.Errorf("%s, Connection %q: %s is %q, want %q", test.path, connection, name, values, value)
				}
			}
		}
	}
	resp := s.Do(t, "GET", "/all/who", "", testserver.Bearer(token)...)
	if body, want := testserver.Body(t, resp), fmt.Sprintf("%s read write acme ops %s", c.ClientID, decode(t, token, 1)["jti"]); body != want {
		t.Errorf("placeholders say %q, want %q", body, want)
	}
}

func TestAMatcherNarrowsTheGuardAndNothingElse(t *testing.T) {
	s := run(t, guarded)
	c := s.CreateWith(t, issuer.ScopeRead)
	if resp := s.Do(t, "GET", credentialsPath, "", testserver.Bearer(s.Token(t, c))...); resp.StatusCode != 200 {
		t.Errorf("the endpoints are not served outside of the matcher: %s", resp.Status)
	}
	if resp := s.Do(t, "GET", "/all/x", ""); resp.StatusCode != 200 || s.Upstream.Take()[0].Header.Get("X-Error") != "401 no token" {
		t.Errorf("the guard does not guard what it matches: %s", resp.Status)
	}
}

// What a matcher can't tell whether it is to be guarded does not pass.
func TestARequestThatAMatcherFailsOnIsRefused(t *testing.T) {
	s := run(t, site("", "", "client_credentials /guarded/*\n@numbered expression `int({header.X-Number}) > 1`\nbearer_auth @numbered\nreverse_proxy {{upstream}}"))
	token := testserver.Bearer(s.Token(t, s.CreateWith(t, "read")))
	for _, test := range []struct {
		number string
		header []string
		status int
	}{
		{"1", nil, http.StatusOK},
		{"2", nil, http.StatusUnauthorized},
		{"2", token, http.StatusOK},
		{"none", nil, http.StatusInternalServerError},
		{"none", token, http.StatusInternalServerError},
	} {
		resp := s.Do(t, "GET", "/x", "", append(test.header, "X-Number", test.number)...)
		if reached := len(s.Upstream.Take()) > 0; resp.StatusCode != test.status || reached != (test.status == http.StatusOK) {
			t.Errorf("X-Number %s: status %d, want %d; the upstream was reached: %t", test.number, resp.StatusCode, test.status, reached)
		}
	}
}

// Trailers arrive after the header, and an upstream may merge them into it.
func TestIdentityTrailersDoNotReachTheUpstream(t *testing.T) {
	s := run(t, guarded)
	for _, announced := range []string{"X-Other", "X-Other, X-Client-Id", "x-client-id"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL(""), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /public HTTP/1.1\r\nHost: localhost:%d\r\nTransfer-Encoding: chunked\r\nTrailer: %s\r\n\r\n"+
			"2\r\nhi\r\n0\r\nX-Other: kept\r\nX-Client-Id: spoof\r\nx-client-scope: spoof\r\n\r\n", s.Port, announced)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = conn.Close()
		got := s.Upstream.Take()
		if len(got) != 1 || got[0].Body != "hi" {
			t.Fatalf("the upstream saw %+v", got)
		}
		for _, header := range []http.Header{got[0].Header, got[0].Trailer} {
			if header.Get("X-Client-Id") != "" || header.Get("X-Client-Scope") != "" {
				t.Errorf("Trailer: %s: an identity trailer reached the upstream: %v", announced, header)
			}
		}
		if strings.Contains(announced, "X-Other") && got[0].Trailer.Get("X-Other") != "kept" {
			t.Errorf("Trailer: %s: another trailer was lost: %v", announced, got[0].Trailer)
		}
	}
}

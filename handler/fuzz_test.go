package handler

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/internal/forgetful"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// fuzzed is the endpoints as they are in a server, without its listener and
// its disk, which would make each try slow.
type fuzzed struct {
	*ClientCredentials
	issuer            *issuer.Issuer
	id, secret, token string // of a manager
}

const fuzzedConfig = `{
	"admin": {"disabled": true, "config": {"persist": false}},
	"logging": {"logs": {"default": {"writer": {"output": "discard"}}}},
	"apps": {"client_credentials": {
		"issuer": "https://issuer.example",
		"token_lifetime": "1000h",
		"master_key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
		"store": {"module": "forgetful"}
	}}
}`

func runFuzzed(f *testing.F) *fuzzed {
	f.Helper()
	must := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	must(caddy.Load([]byte(fuzzedConfig), true))
	f.Cleanup(func() { _ = caddy.Stop() })
	c := &ClientCredentials{AuthFailures: &FailureLimit{Off: true}}
	must(c.Provision(caddy.ActiveContext()))
	f.Cleanup(func() { _ = c.Cleanup() })
	iss, err := c.app.Open()
	must(err)
	z := &fuzzed{ClientCredentials: c, issuer: iss}
	for z.secret == "" || strings.Contains(z.secret, "+") { // which a form reads as a space
		made, secret, err := iss.Create(f.Context(), issuer.Draft{Scopes: []string{issuer.ScopeWrite, "read"}})
		must(err)
		z.id, z.secret = made.ClientID, secret
	}
	issued, err := iss.Issue(f.Context(), issuer.TokenRequest{
		GrantType:            "client_credentials",
		ClientAuthentication: issuer.ClientAuthentication{ClientID: z.id, Secrets: []string{z.secret}},
	})
	must(err)
	z.token = issued.Token
	forgetful.Fill()
	return z
}

// expand writes this process's own values into an input: the corpus is shared
// by processes that have others.
func (z *fuzzed) expand(text string) string {
	return strings.NewReplacer("{id}", z.id, "{secret}", z.secret, "{token}", z.token,
		"{basic}", base64.StdEncoding.EncodeToString([]byte(z.id+":"+z.secret)),
		"{encoded}", base64.StdEncoding.EncodeToString([]byte(z.id+":"+url.QueryEscape(z.secret)))).Replace(text)
}

func (z *fuzzed) serve(t *testing.T, method, path, body string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, DefaultBasePath+path, strings.NewReader(body))
	r.Header = header
	w := httptest.NewRecorder()
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
	err := z.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		return errors.New("the request went on to the next handler")
	}))
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(w.Body.Bytes()) || w.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("status %d, %v: %s", w.Code, w.Header(), w.Body)
	}
	return w
}

// oauthError is RFC 6749 section 5.2, with the code of RFC 8707.
var oauthError = regexp.MustCompile(`^\{"error":"(invalid_request|invalid_client|invalid_grant|unauthorized_client|` +
	`unsupported_grant_type|invalid_scope|invalid_target)","error_description":"[\x20\x21\x23-\x5B\x5D-\x7E]+"\}$`)

func wantOAuthError(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	found := oauthError.FindStringSubmatch(w.Body.String())
	if found == nil {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	switch challenge := w.Header().Get("WWW-Authenticate"); {
	case w.Code == http.StatusUnauthorized && found[1] == "invalid_client" && strings.HasPrefix(challenge, `Basic realm="`):
	case w.Code == http.StatusBadRequest && found[1] != "invalid_client" && challenge == "":
	case w.Code == http.StatusRequestEntityTooLarge && found[1] == "invalid_request" && challenge == "":
	default:
		t.Fatalf("status %d with the challenge %q: %s", w.Code, challenge, w.Body)
	}
}

// wantIssued checks an answer with a token, and that it comes in the dialect.
func (z *fuzzed) wantIssued(t *testing.T, w *httptest.ResponseRecorder, original bool) {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &members); err != nil {
		t.Fatal(err)
	}
	token, standard := members["access_token"].(string)
	if original {
		token, _ = members["accessToken"].(string)
	}
	access, err := z.issuer.Verify(t.Context(), token)
	if err != nil || access.Token.ClientID != z.id {
		t.Fatalf("a token for %v, %v: %s", access.Token, err, w.Body)
	}
	if c, err := access.Credential(t.Context()); err != nil || !issuer.HasAll(c.Scopes, access.Token.Scopes()) {
		t.Fatalf("a token with %q for %+v, %v", access.Token.Scope, c, err)
	}
	if standard == original {
		t.Fatalf("the other dialect: %s", w.Body)
	}
}

func FuzzTokenRequest(f *testing.F) {
	z := runFuzzed(f)
	const (
		form   = "application/x-www-form-urlencoded"
		parts  = "multipart/form-data; boundary=b"
		object = `{"GrantType":"client_credentials","ClientId":"{id}","ClientSecret":"{secret}"}`
	)
	part := func(name, value string) string {
		return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n"
	}
	whole := part("GrantType", "client_credentials") + part("ClientId", "{id}") + part("ClientSecret", "{secret}")
	for _, seed := range [][2]string{
		{form, "grant_type=client_credentials&client_id={id}&client_secret={secret}"},
		{form + ";charset=UTF-8", "grant_type=client_credentials&client_id={id}&client_secret={secret}&scope=read&resource=https%3A%2F%2Fissuer.example"},
		{form, "GrantType=client_credentials&clientid={id}&CLIENTSECRET={secret}"},
		{form, "GrantType=client_credentials&ClientId={id}&Client%C5%BFecret={secret}"},
		{form, "grant_type=client_credentials&client_id={id}&client_secret={secret}&ClientId={id}"},
		{form, "grant_type=client_credentials&client_id={id}&client_secret={secret}&client_secret="},
		{form, "grant_type=password&client_id={id}&client_secret={secret}&scope=%22;"},
		{form, "grant_type=client_credentials&client_id={id}&client_secret=x&scope=a++b&resource=x&resource=y"},
		{form, "grant_type=client_credentials&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer&client_assertion=e30.e30.AA"},
		{form, "grant_type=client_credentials&client_id={id}&client_secret={secret}&client_assertion_type=x"},
		{"application/json", object},
		{"text/json; charset=utf-8", `{"x":[1],"grantType":"client_credentials","clientId":"{id}","clientSecret":"{secret}"}`},
		{"application/a+json", `{"GrantType":"client_credentials","ClientId":"{id}","Client\u0053ecret":"{secret}","clientsecret":null}`},
		{"application/json", object + object},
		{"application/json", `{"grant_type":"client_credentials","client_id":"\ud800"}`},
		{parts, whole + "--b--\r\n"},
		{parts, whole + part("scope", "read") + "--b--"},
		{parts, whole + part("ClientSecret", "") + "--b--"},
		{parts, whole + "--b\r\nContent-Disposition: form-data\r\n\r\n--b--"},
		{"", ""},
		{"text/plain", "x"},
		{form, "%"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, contentType, body string) {
		if strings.ContainsAny(contentType, "\r\n\x00") {
			return // no header field can have it
		}
		sent := z.expand(body)
		w := z.serve(t, "POST", tokenPath, sent, http.Header{"Content-Type": {contentType}})
		if w.Code != http.StatusOK {
			wantOAuthError(t, w)
			return
		}
		given := readAgain(t, contentType, sent)
		for name, want := range map[string]string{"grant_type": "client_credentials", "client_id": z.id, "client_secret": z.secret} {
			if values := given[name]; len(values) != 1 || values[0] != want {
				t.Fatalf("a token for %q, in which another reader finds the %s %q", sent, name, values)
			}
		}
		z.wantIssued(t, w, given.Has("original"))
	})
}

// readAgain reads the parameters of a token request as the standard library
// does, under their names by RFC 6749, and "original" where one was named as
// in the other dialect.
func readAgain(t *testing.T, contentType, body string) url.Values {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	values := url.Values{}
	var err error
	switch kind, _, _ := mime.ParseMediaType(contentType); kind {
	case "application/x-www-form-urlencoded":
		err = r.ParseForm()
		values = r.PostForm
	case "multipart/form-data":
		values, err = readParts(r)
	default:
		var members map[string]any
		err = json.Unmarshal([]byte(body), &members)
		for name, value := range members {
			values.Set(name, fmt.Sprint(value))
		}
	}
	if err != nil {
		t.Fatalf("another reader refuses %q: %v", body, err)
	}
	named := url.Values{}
	for name, all := range values {
		if known, ok := map[string]string{"granttype": "grant_type", "clientid": "client_id", "clientsecret": "client_secret"}[lowerASCII(name)]; ok {
			named.Set("original", "")
			name = known
		}
		named[name] = append(named[name], all...)
	}
	return named
}

func readParts(r *http.Request) (url.Values, error) {
	values := url.Values{}
	parts, err := r.MultipartReader()
	for err == nil {
		part, next := parts.NextRawPart()
		if errors.Is(next, io.EOF) {
			return values, nil
		}
		if next != nil {
			return nil, next
		}
		var value []byte
		value, err = io.ReadAll(part)
		values.Add(part.FormName(), string(value))
	}
	return nil, err
}

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

var (
	bearerForm  = regexp.MustCompile(`^(?i:bearer) +([A-Za-z0-9._~+/-]+=*)$`)
	basicForm   = regexp.MustCompile(`(?s)^(?i:basic) +(.*)$`)
	bearerBegun = regexp.MustCompile(`^(?i:bearer)([ \t,]|$)`)
	basicBegun  = regexp.MustCompile(`^(?i:basic)([ \t,]|$)`)
)

func FuzzAuthorization(f *testing.F) {
	z := runFuzzed(f)
	for _, seed := range []string{
		"", " ", "Bearer", "Bearer {token}", "bearer  {token}", "BEARER {token},", "Bearer {token} {token}", "Bearer\t{token}", "Bearer a=b", "Bearer ==",
		"Bearer{token}", "Bearer, {token}", "Basic {basic}", "basic   {encoded}", "Basic", "Basic !", "Basic Og==", "Basic {basic}, Bearer {token}",
		"Basic eA==", "Basic JTp4", "Basic JXp6OiU=", "Basic AAo6AA==", "DPoP {token}", "{token}", "\u212aearer x", "Ba\u017fic {basic}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsAny(value, "\r\n\x00") {
			return // no header field can have it
		}
		sent := z.expand(value)
		token := wantOneBearerReading(t, sent)
		basic := wantOneBasicReading(t, sent)
		if token != "" && basic != nil {
			t.Fatalf("%q is both", sent)
		}

		w := z.serve(t, "POST", tokenPath, "grant_type=client_credentials",
			http.Header{"Authorization": {sent}, "Content-Type": {"application/x-www-form-urlencoded"}})
		switch right := basic != nil && basic.ClientID == z.id && slices.Contains(basic.Secrets, z.secret); {
		case right != (w.Code == http.StatusOK):
			t.Fatalf("status %d for %q", w.Code, sent)
		case right:
			z.wantIssued(t, w, false)
		default:
			wantOAuthError(t, w)
		}
		w = z.serve(t, "GET", credentialsPath, "", http.Header{"Authorization": {sent}})
		switch {
		case (w.Code == http.StatusOK) != (token == z.token):
			t.Fatalf("status %d for %q", w.Code, sent)
		case w.Code != http.StatusOK && w.Code != http.StatusUnauthorized && (w.Code != http.StatusBadRequest || token != ""):
			t.Fatalf("status %d for %q: %s", w.Code, sent, w.Body)
		}
	})
}

// wantOneBearerReading holds the reading of a bearer token against the grammar
// of RFC 6750 section 2.1.
func wantOneBearerReading(t *testing.T, value string) string {
	t.Helper()
	_, token, err := bearerToken(http.Header{"Authorization": {value}})
	want, wantErr := "", error(nil)
	if found := bearerForm.FindStringSubmatch(value); found != nil {
		want = found[1]
	} else if bearerBegun.MatchString(value) {
		wantErr = errMalformedBearer
	}
	if err == nil && token != "" && !token68(token) { // as the guard does
		token, err = "", errMalformedBearer
	}
	if token != want || !errors.Is(err, wantErr) {
		t.Fatalf("%q has the token %q, %v, want %q, %v", value, token, err, want, wantErr)
	}
	return token
}

// wantOneBasicReading holds the reading of HTTP Basic against that of net/http,
// which takes one space alone.
func wantOneBasicReading(t *testing.T, value string) *issuer.ClientAuthentication {
	t.Helper()
	got, used, err := basicAuthorization(http.Header{"Authorization": {value}})
	other := &http.Request{Header: http.Header{}}
	if found := basicForm.FindStringSubmatch(value); found != nil {
		other.Header.Set("Authorization", "Basic "+found[1])
	}
	user, password, ok := other.BasicAuth()
	if !ok {
		if used || basicBegun.MatchString(value) != errors.Is(err, errMalformedBasic) {
			t.Fatalf("%q is read as %+v, %v", value, got, err)
		}
		return nil
	}
	if unescaped, err := url.QueryUnescape(user); err == nil {
		user = unescaped
	}
	secrets := []string{password}
	if unescaped, err := url.QueryUnescape(password); err == nil && unescaped != password {
		secrets = append(secrets, unescaped)
	}
	if err != nil || !used || got.ClientID != user || !slices.Equal(got.Secrets, secrets) {
		t.Fatalf("%q is read as %+v, %v, want %q and %q", value, got, err, user, secrets)
	}
	return &got
}

func FuzzCredentialDraft(f *testing.F) {
	z := runFuzzed(f)
	for _, seed := range []string{
		`{}`, `null`, `{"name":"shop","expires":"2099-06-21T02:30:00+02:30"}`, `{"name":null,"expires":null,"scopes":null,"audiences":null,"x":1e400}`,
		`{"name":"a\u0000b"}`, `{"name":"\u0085\ud83d\ude00"}`, `{"name":"\ud800"}`, "{\"name\":\"\xff\"}", `{"name":1}`, `{"name":"a","name":"b"}`,
		`{"name":"` + strings.Repeat("é", 200) + `"}`, `{"name":"` + strings.Repeat("é", 201) + `"}`,
		`{"expires":"2099-06-30t23:59:60.999z"}`, `{"expires":"2000-01-01T00:00:00Z"}`, `{"expires":"9999-12-31T23:59:59-01:00"}`, `{"expires":"2099-02-30T00:00:00Z"}`,
		`{"scopes":["read","read"],"audiences":["https://issuer.example"]}`, `{"scopes":[]}`, `{"audiences":[]}`, `{"scopes":["client-credentials:write"]}`,
		`{"scopes":["a b"]}`, `{"audiences":["x#"]}`, `{"scopes":[null]}`, `{}{}`,
		`{"jwks":{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}}`, `{"jwks":{"keys":[{"kty":"oct","k":"AA"}]}}`,
		`{"jwksUri":"https://client.example/keys"}`, `{"jwksUri":"http://127.0.0.1/keys"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		start := time.Now()
		w := z.serve(t, "POST", credentialsPath, body, http.Header{"Authorization": {"Bearer " + z.token}, "Content-Type": {"application/json"}})
		switch w.Code {
		case http.StatusCreated:
			wantAsSent(t, w, body, start)
		case http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge:
			var p problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || p.Detail == "" ||
				w.Header().Get("Content-Type") != "application/problem+json" || strings.ContainsFunc(p.Detail, notASCII) {
				t.Fatalf("status %d, %v: %s", w.Code, w.Header(), w.Body)
			}
		default:
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
	})
}

func notASCII(r rune) bool { return r < 0x20 || r > 0x7E }

// wantAsSent holds a new credential against what another reader finds in the
// request.
func wantAsSent(t *testing.T, w *httptest.ResponseRecorder, body string, start time.Time) {
	t.Helper()
	sent, got := readMembers(t, []byte(body)), readMembers(t, w.Body.Bytes())
	if sent.KeysURL != got.KeysURL || got.KeysURL != "" && !strings.HasPrefix(strings.ToLower(got.KeysURL), "https://") {
		t.Fatalf("%q has its keys at %q", body, got.KeysURL)
	}
	if (sent.Name == nil) != (got.Name == nil) || sent.Name != nil && *sent.Name != *got.Name {
		t.Fatalf("%q is named %s", body, w.Body)
	}
	if name := got.Name; name != nil && (utf8.RuneCountInString(*name) > 200 || strings.ContainsFunc(*name, unicode.IsControl)) {
		t.Fatalf("the name %q was taken", *name)
	}
	for _, lists := range [][3][]string{{sent.Scopes, got.Scopes, {"read"}}, {sent.Audiences, got.Audiences, {"https://issuer.example"}}} {
		if !issuer.HasAll(lists[2], lists[1]) || !issuer.HasAll(lists[0], lists[1]) || !issuer.HasAll(lists[1], lists[0]) {
			t.Fatalf("%q got %q", body, lists[1])
		}
	}
	if (sent.Expires == nil) != (got.Expires == nil) {
		t.Fatalf("%q expires as %s", body, w.Body)
	}
	if got.Expires != nil {
		wantTime(t, *got.Expires, *sent.Expires, start)
	}
}

type drafted struct {
	Name, Expires     *string
	Scopes, Audiences []string
	KeysURL           string
}

// readMembers reads members of exactly these names.
func readMembers(t *testing.T, object []byte) (d drafted) {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		t.Fatalf("another reader refuses %q: %v", object, err)
	}
	for name, target := range map[string]any{
		"name": &d.Name, "expires": &d.Expires, "scopes": &d.Scopes, "audiences": &d.Audiences, "jwksUri": &d.KeysURL,
	} {
		if raw, ok := members[name]; ok {
			if err := json.Unmarshal(raw, target); err != nil {
				t.Fatalf("another reader refuses the %s of %q: %v", name, object, err)
			}
		}
	}
	return d
}

// wantTime holds an expiry against another reading of it. That one knows no
// leap seconds.
func wantTime(t *testing.T, got, sent string, start time.Time) {
	t.Helper()
	expires, err := time.Parse("2006-01-02T15:04:05.000Z", got)
	if err != nil || !expires.After(start.Truncate(time.Millisecond)) {
		t.Fatalf("%q was taken as %s, %v", sent, got, err)
	}
	other, err := time.Parse(time.RFC3339Nano, strings.ToUpper(sent))
	if leap := err != nil && sent[17:19] == "60"; !leap && (err != nil || !other.Truncate(time.Millisecond).Equal(expires)) {
		t.Fatalf("%q was taken as %s, want %s, %v", sent, got, other, err)
	}
}

package handler_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const (
	standardAnswer = `^\{"access_token":"[\w-]+\.[\w-]+\.[\w-]+","token_type":"Bearer","expires_in":3600,"scope":"%s"\}$`
	originalAnswer = `^\{"accessToken":"[\w-]+\.[\w-]+\.[\w-]+","tokenType":"bearer","expiresIn":3600\}$`
)

var accessToken = regexp.MustCompile(`"access_?[tT]oken":"([^"]+)"`)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// awkward returns a credential whose secret reads differently when it is
// form-decoded.
func awkward(t testing.TB, s *testserver.Server, scopes ...string) testserver.Credential {
	t.Helper()
	for {
		if c := s.CreateWith(t, scopes...); strings.Contains(c.Secret, "+") && strings.Contains(c.Secret, "/") {
			return c
		}
	}
}

func form(params ...string) string {
	var parts []string
	for i := 0; i < len(params); i += 2 {
		parts = append(parts, url.QueryEscape(params[i])+"="+url.QueryEscape(params[i+1]))
	}
	return strings.Join(parts, "&")
}

const multipartType = `multipart/form-data; boundary="b o"`

func multipart(params ...string) string {
	var text strings.Builder
	for i := 0; i < len(params); i += 2 {
		fmt.Fprintf(&text, "--b o\r\nContent-Disposition: form-data; name=%q\r\n\r\n%s\r\n", params[i], params[i+1])
	}
	return text.String() + "--b o--\r\n"
}

func TestTokenIsIssuedInTheDialectOfTheRequest(t *testing.T) {
	s := run(t, site("", h2c, "client_credentials\nreverse_proxy {{upstream}}"))
	c := awkward(t, s, "items:write", "items:read")
	id, secret := c.ClientID, c.Secret
	escaped := url.QueryEscape(secret)
	all, read := fmt.Sprintf(standardAnswer, "items:read items:write"), fmt.Sprintf(standardAnswer, "items:read")
	std := form("grant_type", "client_credentials", "client_id", id, "client_secret", secret)
	orig := []string{"GrantType", "client_credentials", "ClientId", id, "ClientSecret", secret}
	tests := []struct{ name, contentType, auth, body, answer string }{
		{"form", formType, "", std, all},
		{"form with charset", formType + "; charset=UTF-8", "", std, all},
		{"content type in capitals", "Application/X-WWW-Form-URLEncoded;Charset=utf-8", "", std, all},
		{"unknown parameters are ignored", formType, "", std + "&audience=x&foo=", all},
		{"parameter without value counts as omitted", formType, "", std + "&scope=&resource=", all},
		{"narrowed scope", formType, "", std + "&scope=items%3Aread", read},
		{"scope repeated inside of the parameter", formType, "", std + "&scope=items:read+items:read", read},
		{"own resource", formType, "", std + "&resource=" + url.QueryEscape(s.URL("")), all},
		{"own resource twice", formType, "", std + strings.Repeat("&resource="+url.QueryEscape(s.URL("")), 2), all},
		{"basic, raw", formType, basic(id, secret), "grant_type=client_credentials", all},
		{"basic, form-encoded", formType, basic(id, escaped), "grant_type=client_credentials", all},
		{"basic, scheme in lower case", formType, "basic" + basic(id, secret)[5:], "grant_type=client_credentials", all},
		{"basic, scheme in capitals and two spaces", formType, "BASIC " + basic(id, secret)[5:], "grant_type=client_credentials", all},
		{"basic with the same client_id in the body", formType, basic(id, secret), "grant_type=client_credentials&client_id=" + id, all},
		{"basic with an empty client_secret", formType, basic(id, secret), "grant_type=client_credentials&client_secret=", all},
		{"another scheme is no client authentication", formType, "Bearer x", std, all},
		{"multipart", multipartType, "", multipart(orig...), originalAnswer},
		{"multipart, camel case", multipartType, "", multipart("grantType", "client_credentials", "clientId", id, "clientSecret", secret), originalAnswer},
		{"multipart, capitals", multipartType, "", multipart("GRANTTYPE", "client_credentials", "clientid", id, "CLIENTsecret", secret), originalAnswer},
		{"original as form", formType, "", form(orig...), originalAnswer},
		{"original as json", jsonType, "", fmt.Sprintf(`{"GrantType":"client_credentials","ClientId":%q,"ClientSecret":%q}`, id, secret), originalAnswer},
		{"original as text/json with charset", "text/json; charset=utf-8", "", fmt.Sprintf(`{"clientSecret":%q,"grantType":"client_credentials","clientId":%q,"other":[1]}`, secret, id), originalAnswer},
		{"original as +json", "application/vnd.x+json", "", fmt.Sprintf(`{"GRANTTYPE":"client_credentials","clientid":%q,"clientsecret":%q}`, id, secret), originalAnswer},
		{"multipart with basic", multipartType, basic(id, secret), multipart("GrantType", "client_credentials"), originalAnswer},
	}
	bothVersions(t, s, func(t *testing.T) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				header := []string{"Content-Type", tt.contentType}
				if tt.auth != "" {
					header = append(header, "Authorization", tt.auth)
				}
				resp := s.Do(t, "POST", tokenPath, tt.body, header...)
				body := testserver.Body(t, resp)
				wantStatus(t, resp, http.StatusOK)
				wantMatch(t, "the answer", body, tt.answer)
				wantHeader(t, resp, "Content-Type", jsonType)
				wantHeader(t, resp, "Cache-Control", "no-store")
				wantHeader(t, resp, "Pragma", "no-cache")
				if found := accessToken.FindStringSubmatch(body); found != nil {
					wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(found[1])...), http.StatusOK)
					wantUpstream(t, s)
				}
			})
		}
	})
}

func TestTokenIsAnRFC9068AccessToken(t *testing.T) {
	s := run(t, site("audience https://api.example.com\ntoken_lifetime 90s", "", "client_credentials\nreverse_proxy {{upstream}}"))
	c := s.CreateWith(t, "b", "a")
	token := s.Token(t, c)
	header, claims := decode(t, token, 0), decode(t, token, 1)
	if header["typ"] != "at+jwt" || header["alg"] != "ES256" || len(header["kid"].(string)) != 43 || len(header) != 3 {
		t.Errorf("header %v", header)
	}
	for name, want := range map[string]any{
		"iss": s.URL(""), "aud": "https://api.example.com", "sub": c.ClientID, "client_id": c.ClientID, "scope": "a b",
		"exp": claims["iat"].(float64) + 90, "epoch": 1.0,
	} {
		if claims[name] != want {
			t.Errorf("claim %s is %v, want %v", name, claims[name], want)
		}
	}
	if age := time.Now().Unix() - int64(claims["iat"].(float64)); age < 0 || age > 10 {
		t.Errorf("issued %d seconds ago", age)
	}
	// RFC 6749 section 10.10: at least 128 random bits.
	if id := claims["jti"].(string); len(id) < 22 || id == decode(t, s.Token(t, c), 1)["jti"] {
		t.Errorf("jti %q", id)
	}
	if none := decode(t, s.Token(t, s.CreateWith(t)), 1); none["scope"] != nil {
		t.Errorf("a token without scope has the claim %v", none["scope"])
	}
}

// errorText is the alphabet of RFC 6749 section 5.2.
var errorText = regexp.MustCompile(`^\{"error":"([a-z_]+)","error_description":"[\x20\x21\x23-\x5B\x5D-\x7E]+"\}$`)

func wantTokenError(t testing.TB, resp *http.Response, status int, code string) {
	t.Helper()
	body := testserver.Body(t, resp)
	wantStatus(t, resp, status)
	if found := errorText.FindStringSubmatch(body); found == nil || found[1] != code {
		t.Errorf("answer %s, want %s", body, code)
	}
	wantHeader(t, resp, "Content-Type", jsonType)
	wantHeader(t, resp, "Cache-Control", "no-store")
	wantHeader(t, resp, "Pragma", "no-cache")
	if challenge := resp.Header.Get("WWW-Authenticate"); status == http.StatusUnauthorized {
		wantMatch(t, "the challenge", challenge, `^Basic realm="[^"]+"$`)
	} else if challenge != "" {
		t.Errorf("a challenge with status %d: %s", status, challenge)
	}
	if strings.Contains(body, "ECHO") {
		t.Errorf("the answer repeats what was sent: %s", body)
	}
}

func TestTokenErrors(t *testing.T) {
	s := run(t, site("", h2c, "client_credentials\nreverse_proxy {{upstream}}"))
	c := awkward(t, s, "read", "write")
	other := s.CreateWith(t, "admin")
	id, secret := c.ClientID, c.Secret
	grant := "grant_type=client_credentials"
	pair := form("client_id", id, "client_secret", secret)
	std := grant + "&" + pair
	orig := []string{"GrantType", "client_credentials", "ClientId", id, "ClientSecret", secret}
	origJSON := fmt.Sprintf(`"GrantType":"client_credentials","ClientId":%q,"ClientSecret":%q`, id, secret)
	const badRequest, badClient = "400 invalid_request", "401 invalid_client"

	tests := []struct{ name, contentType, auth, body, want string }{
		// RFC 6749 section 3.2: not more than once.
		{"grant_type twice", formType, "", std + "&" + grant, badRequest},
		{"client_id twice", formType, "", std + "&client_id=" + id, badRequest},
		{"client_secret twice", formType, "", std + "&client_secret=" + url.QueryEscape(secret), badRequest},
		{"client_secret twice, once empty", formType, "", std + "&client_secret=", badRequest},
		{"scope twice", formType, "", std + "&scope=read&scope=write", badRequest},
		{"an unknown parameter twice", formType, "", std + "&foo=1&foo=2", badRequest},
		{"twice in another letter case", formType, "", form(orig...) + "&clientid=" + id, badRequest},
		{"twice in multipart", multipartType, "", multipart(append(orig, "ClientSecret", secret)...), badRequest},
		{"twice in json", jsonType, "", `{` + origJSON + `,"ClientId":"x"}`, badRequest},
		{"twice in json, once escaped", jsonType, "", `{` + origJSON + `,"Client\u0049d":"x"}`, badRequest},
		{"twice in json in another letter case", jsonType, "", `{` + origJSON + `,"clientid":"x"}`, badRequest},
		// The spelling decides the dialect.
		{"both spellings", formType, "", std + "&ClientId=" + id, badRequest},
		{"both spellings, grant type", formType, "", "GrantType=client_credentials&" + pair, badRequest},
		{"both spellings in json", jsonType, "", `{` + origJSON + `,"client_id":"x"}`, badRequest},
		{"both spellings, scope", formType, "", form(orig...) + "&scope=read", badRequest},
		// A letter that only folds to one of ASCII is another letter.
		{"folded letter", formType, "", form("GrantType", "client_credentials", "ClientId", id, "Client\u017fecret", secret), badClient},
		{"standard spelling as json", jsonType, "", fmt.Sprintf(`{"grant_type":"client_credentials","client_id":%q,"client_secret":%q}`, id, secret), badRequest},
		{"standard spelling as multipart", multipartType, "", multipart("grant_type", "client_credentials", "client_id", id, "client_secret", secret), badRequest},
		// The body.
		{"no content type", "", "", std, badRequest},
		{"text/plain", "text/plain", "", std, badRequest},
		{"latin-1", formType + "; charset=iso-8859-1", "", std, badRequest},
		{"malformed content type", formType + "; =", "", std, badRequest},
		{"empty body", formType, "", "", badRequest},
		{"broken escape", formType, "", std + "&x=%zz", badRequest},
		{"semicolon", formType, "", std + ";x=1", badRequest},
		{"multipart without boundary", "multipart/form-data", "", multipart(orig...), badRequest},
		{"multipart cut in a part", multipartType, "", multipart(orig...)[:200], badRequest},
		{"multipart without its last boundary", multipartType, "", strings.TrimSuffix(multipart(orig...), "--b o--\r\n"), badRequest},
		{"multipart without an end", multipartType, "", strings.TrimSuffix(multipart(orig...), "--\r\n") + "\r\n", badRequest},
		{"multipart part without name", multipartType, "", "--b o\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + multipart(orig...), badRequest},
		{"json array", jsonType, "", `[{` + origJSON + `}]`, badRequest},
		{"json null", jsonType, "", `null`, badRequest},
		{"json with something behind", jsonType, "", `{` + origJSON + `}{}`, badRequest},
		{"json number", jsonType, "", `{"GrantType":"client_credentials","ClientId":1}`, badRequest},
		{"json array as value", jsonType, "", fmt.Sprintf(`{"GrantType":"client_credentials","ClientId":[%q],"ClientSecret":%q}`, id, secret), badRequest},
		{"json with half a surrogate pair", jsonType, "", `{` + origJSON + `,"x":"\ud800"}`, badRequest},
		{"json that is not UTF-8", jsonType, "", `{` + origJSON + `,"x":"` + "\xff" + `"}`, badRequest},
		{"malformed json", jsonType, "", `{` + origJSON, badRequest},
		{"too large", formType, "", std + "&x=" + strings.Repeat("a", 64<<10), "413 invalid_request"},
		{"too large as multipart", multipartType, "", multipart(append(orig, "x", strings.Repeat("a", 64<<10))...), "413 invalid_request"},
		{"too large as json", jsonType, "", `{` + origJSON + `}` + strings.Repeat(" ", 64<<10), "413 invalid_request"},
		// Authentication: one method, RFC 6749 section 2.3.
		{"basic and client_secret", formType, basic(id, secret), std, badRequest},
		{"basic and another client_id", formType, basic(id, secret), grant + "&client_id=" + other.ClientID, badRequest},
		{"basic and ClientSecret", multipartType, basic(id, secret), multipart(orig...), badRequest},
		{"wrong secret", formType, "", grant + form("", "", "client_id", id, "client_secret", "ECHO"), badClient},
		{"secret of another", formType, "", grant + "&" + form("client_id", other.ClientID, "client_secret", secret), badClient},
		{"unknown client", formType, "", grant + "&" + form("client_id", strings.Repeat("0", 32), "client_secret", secret), badClient},
		{"client id in capitals", formType, "", grant + "&" + form("client_id", strings.ToUpper(id), "client_secret", secret), badClient},
		{"client id that is none", formType, "", grant + "&" + form("client_id", "../ECHO\x00", "client_secret", secret), badClient},
		{"client id and no secret", formType, "", grant + "&client_id=" + id, badClient},
		{"no client", formType, "", grant, badClient},
		{"an empty secret", formType, "", grant + "&client_id=" + id + "&client_secret=", badClient},
		{"wrong secret, original", multipartType, "", multipart("GrantType", "client_credentials", "ClientId", id, "ClientSecret", "ECHO"), badClient},
		{"wrong secret, original json", jsonType, "", fmt.Sprintf(`{"GrantType":"client_credentials","ClientId":%q,"ClientSecret":null}`, id), badClient},
		{"basic with a wrong secret", formType, basic(id, "ECHO"), grant, badClient},
		{"basic, doubly encoded", formType, basic(id, url.QueryEscape(url.QueryEscape(secret))), grant, badClient},
		{"basic without a colon", formType, "Basic " + base64.StdEncoding.EncodeToString([]byte(id)), grant, badClient},
		{"basic not in base64", formType, "Basic !", grant, badClient},
		{"basic alone", formType, "Basic", grant, badClient},
		// The order that tells least: the client first, then what it asks for.
		{"wrong secret and unknown grant", formType, "", "grant_type=password&" + form("client_id", id, "client_secret", "x"), badClient},
		{"wrong secret and unknown scope", formType, "", grant + "&scope=nope&" + form("client_id", id, "client_secret", "x"), badClient},
		{"wrong secret and no grant", formType, "", form("client_id", id, "client_secret", "x"), badClient},
		{"no grant type", formType, "", pair, badRequest},
		{"empty grant type", formType, "", pair + "&grant_type=", badRequest},
		{"no grant type, original", multipartType, "", multipart(orig[2:]...), badRequest},
		{"no grant type with basic", formType, basic(id, secret), "foo=1", badRequest},
		{"unknown grant type", formType, "", "grant_type=password&" + pair, "400 unsupported_grant_type"},
		{"grant type in capitals", formType, "", "grant_type=CLIENT_CREDENTIALS&" + pair, "400 unsupported_grant_type"},
		{"unknown grant type, original", multipartType, "", multipart("GrantType", "ECHO", "ClientId", id, "ClientSecret", secret), "400 unsupported_grant_type"},
		{"scope of another", formType, "", std + "&scope=admin", "400 invalid_scope"},
		{"one scope of two", formType, "", std + "&scope=read+ECHO", "400 invalid_scope"},
		{"scope in capitals", formType, "", std + "&scope=READ", "400 invalid_scope"},
		{"scope with two spaces", formType, "", std + "&scope=read++write", "400 invalid_scope"},
		{"scope with a space before", formType, "", std + "&scope=+read", "400 invalid_scope"},
		{"scope with a tab", formType, "", std + "&scope=read%09write", "400 invalid_scope"},
		{"scope with a quote", formType, "", std + "&scope=%22", "400 invalid_scope"},
		{"scope not in ascii", formType, "", std + "&scope=%c3%a9", "400 invalid_scope"},
		{"foreign resource", formType, "", std + "&resource=https%3A%2F%2FECHO.example", "400 invalid_target"},
		{"own and foreign resource", formType, "", std + "&" + form("resource", s.URL(""), "resource", "https://x.example"), "400 invalid_target"},
		{"own resource with a slash", formType, "", std + "&" + form("resource", s.URL("/")), "400 invalid_target"},
	}
	bothVersions(t, s, func(t *testing.T) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				var header []string
				if tt.contentType != "" {
					header = append(header, "Content-Type", tt.contentType)
				}
				if tt.auth != "" {
					header = append(header, "Authorization", tt.auth)
				}
				var status int
				var code string
				_, _ = fmt.Sscan(tt.want, &status, &code)
				wantTokenError(t, s.Do(t, "POST", tokenPath, tt.body, header...), status, code)
			})
		}
		t.Run("two Authorization fields", func(t *testing.T) {
			resp := s.Do(t, "POST", tokenPath, grant, "Content-Type", formType,
				"Authorization", basic(id, secret), "Authorization", basic(id, secret))
			wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
		})
		t.Run("two content types", func(t *testing.T) {
			resp := s.Do(t, "POST", tokenPath, std, "Content-Type", formType, "Content-Type", jsonType)
			wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
		})
		t.Run("content coding", func(t *testing.T) {
			resp := s.Do(t, "POST", tokenPath, std, "Content-Type", formType, "Content-Encoding", "gzip")
			wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
		})
		t.Run("secret in the query", func(t *testing.T) { // RFC 6749 section 2.3.1
			resp := s.Do(t, "POST", tokenPath+"?"+std, "", "Content-Type", formType)
			wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
			resp = s.Do(t, "POST", tokenPath+"?"+pair, grant, "Content-Type", formType)
			wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
		})
		for _, method := range []string{"GET", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"} {
			t.Run(method, func(t *testing.T) {
				resp := s.Do(t, method, tokenPath, std, "Content-Type", formType)
				wantTokenError(t, resp, http.StatusMethodNotAllowed, "invalid_request")
				wantHeader(t, resp, "Allow", "POST")
			})
		}
	})
	wantNoUpstream(t, s)
}

func TestTokenRefusalsDoNotTellWhetherTheClientExists(t *testing.T) {
	s := run(t, testserver.Simple)
	known, revoked := s.CreateWith(t, "a"), s.CreateWith(t, "a")
	expired := s.Create(t, issuer.Draft{Expires: time.Now().Add(900 * time.Millisecond)})
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+revoked.ClientID, "", testserver.Bearer(manage(t, s))...), http.StatusNoContent)
	var answers []string
	for _, c := range []testserver.Credential{
		{ClientID: known.ClientID, Secret: revoked.Secret}, {ClientID: strings.Repeat("a", 32), Secret: known.Secret}, revoked, expired, {},
	} {
		resp := s.Do(t, "POST", tokenPath, form("grant_type", "client_credentials", "client_id", c.ClientID, "client_secret", c.Secret), "Content-Type", formType)
		answers = append(answers, fmt.Sprint(resp.StatusCode, resp.Header["Www-Authenticate"], resp.Header["Content-Length"], testserver.Body(t, resp)))
	}
	if all := slices.Compact(answers); len(all) != 1 || !strings.HasPrefix(all[0], "401") {
		t.Errorf("the answers differ: %q", all)
	}
}

func TestTokenNeverOutlivesItsCredential(t *testing.T) {
	s := run(t, testserver.Simple)
	expires := time.Now().Add(90*time.Second + 500*time.Millisecond)
	c := s.Create(t, issuer.Draft{Expires: expires})
	resp := s.Do(t, "POST", tokenPath, form("GrantType", "client_credentials", "ClientId", c.ClientID, "ClientSecret", c.Secret), "Content-Type", formType)
	wantMatch(t, "the answer", testserver.Body(t, resp), `"expiresIn":(9[01]|8\d)\}$`)
	claims := decode(t, s.Token(t, c), 1)
	if exp := int64(claims["exp"].(float64)); exp > expires.Unix() || exp < expires.Unix()-1 {
		t.Errorf("the token expires at %d, its credential at %d", exp, expires.Unix())
	}

	dying := s.Create(t, issuer.Draft{Expires: time.Now().Add(900 * time.Millisecond)})
	resp = s.Do(t, "POST", tokenPath, form("grant_type", "client_credentials", "client_id", dying.ClientID, "client_secret", dying.Secret), "Content-Type", formType)
	wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
}

func TestAnswersComeInTheJSONTypeThatTheClientPrefers(t *testing.T) {
	s := run(t, testserver.Simple)
	c := s.CreateWith(t, issuer.ScopeWrite)
	auth := "Bearer " + s.Token(t, c)
	for _, tt := range []struct{ accept, want string }{
		{"", jsonType},
		{"*/*", jsonType},
		{"text/json", "text/json"},
		{"TEXT/JSON", "text/json"},
		{"text/plain", "text/plain"},
		{"text/plain; charset=utf-8", "text/plain"},
		{"text/*", "text/json"},
		{"application/json, text/plain, */*", jsonType},
		{"text/plain, application/json", jsonType},
		{"text/plain, text/json", "text/json"},
		{"text/plain, application/json;q=0.9", "text/plain"},
		{"text/plain;q=0.1, text/json;q=0.2", "text/json"},
		{"application/json;q=0, */*", "text/json"},
		{"application/json;q=0.3, */*;q=0.5, text/json;q=0.4", "text/plain"},
		{"text/html, application/xml;q=0.9", jsonType},
		{"text/html, */*;q=0.1", jsonType},
		{"application/json;q=2, text/plain;q=0.1", "text/plain"},
		{";;;, text/json", "text/json"},
	} {
		t.Run(tt.accept, func(t *testing.T) {
			header := []string{"Authorization", auth, "Content-Type", jsonType, "Accept", tt.accept}
			var bodies []string
			for _, resp := range []*http.Response{
				s.Do(t, "POST", credentialsPath, `{"name":"né😀"}`, header...),
				s.Do(t, "GET", credentialsPath, "", header...),
				s.Do(t, "POST", tokenPath, `{"GrantType":"client_credentials"}`, header[2:]...),
				s.Do(t, "POST", tokenPath, form("grant_type", "client_credentials", "client_id", c.ClientID, "client_secret", c.Secret), "Content-Type", formType, "Accept", tt.accept),
			} {
				wantHeader(t, resp, "Content-Type", tt.want)
				bodies = append(bodies, testserver.Body(t, resp))
			}
			for i, name := range []string{`"name":"(né😀|n\\u00e9\\ud83d\\ude00)"`, `"name":"(né😀|n\\u00e9\\ud83d\\ude00)"`, `"invalid_client"`, `"access_token"`} {
				wantMatch(t, "the body", bodies[i], name)
			}
		})
	}
	resp := s.Do(t, "GET", credentialsPath, "", "Authorization", auth, "Accept", "text/html", "Accept", "text/plain")
	wantHeader(t, resp, "Content-Type", "text/plain")
}

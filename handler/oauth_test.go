package handler_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// requirement is what the RFCs ask of a server of this kind. Its name begins
// with its number: 01 to 30 are about the token endpoint, 31 to 36 client
// assertions, 37 to 41 tokens, 42 to 51 the guard, 56 to 59 revocation, 60 to
// 63 introspection, 64 to 69 what is published, 70 to 72 the management of
// clients. 52 to 55 would be DPoP and mutual TLS.
type requirement struct {
	name string
	hold func(t *testing.T, k *keyed)
}

var requirements = slices.Concat(
	requestRequirements, answerRequirements, errorRequirements, assertionRequirements, tokenRequirements,
	guardRequirements, questionRequirements, publicRequirements, managementRequirements,
)

func requirementNumbers() (all []string) {
	for n := 1; n <= 72; n++ {
		if n < 52 || n > 55 {
			all = append(all, fmt.Sprintf("%02d", n))
		}
	}
	return all
}

// notRequired says which requirements have nothing to begin with here, and why.
var notRequired = map[string]string{
	"36": "A client's keys are its own: the tokens of a platform that it runs on (SPIFFE, Kubernetes) are not taken.",
	"63": "Introspection answers in JSON alone: answers as JWT (RFC 9701) are an option, and nothing says that this server has it.",
	"70": "Clients are registered by the API of the contract, or on the command line: RFC 7591 is not offered.",
}

func TestEveryNumberedRequirementIsTriedOrDoesNotApply(t *testing.T) {
	tried := map[string]bool{}
	for _, r := range slices.Concat(requirements, ownServerRequirements) {
		tried[r.name[:2]] = true
	}
	for _, number := range requirementNumbers() {
		if _, not := notRequired[number]; tried[number] == not {
			t.Errorf("%s: tried is %v, and said not to apply is %v", number, tried[number], not)
		}
		delete(tried, number)
	}
	if len(tried) > 0 {
		t.Errorf("no such numbers: %v", tried)
	}
	for number := range notRequired {
		if !slices.Contains(requirementNumbers(), number) {
			t.Errorf("no such number: %s", number)
		}
	}
}

func TestTheServerDoesWhatTheRFCsRequire(t *testing.T) {
	k := runKeyed(t, "ES256", attacked)
	for _, r := range requirements {
		t.Run(r.name, func(t *testing.T) { r.hold(t, k) })
		k.Upstream.Take()
	}
}

// These need a configuration of their own.
func TestServersOfOtherConfigurationsDoWhatTheRFCsRequire(t *testing.T) {
	for _, r := range ownServerRequirements {
		t.Run(r.name, func(t *testing.T) { r.hold(t, nil) })
	}
}

const byGrant = "grant_type=client_credentials"

// pair is the client's own, in a form.
func (k *keyed) pair() string {
	return form("client_id", k.client.ClientID, "client_secret", k.client.Secret)
}

// ask sends a form to the token endpoint.
func (k *keyed) ask(t *testing.T, body string, header ...string) *http.Response {
	t.Helper()
	return k.Do(t, "POST", tokenPath, body, append(header, "Content-Type", formType)...)
}

// wantIssued returns the members of an answer with a token.
func wantIssued(t *testing.T, resp *http.Response) map[string]any {
	t.Helper()
	wantStatus(t, resp, http.StatusOK)
	return members(t, resp)
}

func members(t *testing.T, resp *http.Response) (all map[string]any) {
	t.Helper()
	body := testserver.Body(t, resp)
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return all
}

func wantMember(t *testing.T, all map[string]any, name string, want any) {
	t.Helper()
	if got := fmt.Sprint(all[name]); got != fmt.Sprint(want) {
		t.Errorf("%s is %s, want %v", name, got, want)
	}
}

// refuses checks a refusal of the token endpoint for a form.
func refuses(status int, code string, body func(k *keyed) string) func(*testing.T, *keyed) {
	return func(t *testing.T, k *keyed) {
		t.Helper()
		wantTokenError(t, k.ask(t, body(k)), status, code)
	}
}

var requestRequirements = []requirement{
	{"01 the token endpoint's URL has no fragment", func(t *testing.T, k *keyed) {
		endpoint, _ := document(t, k.Server, "/.well-known/oauth-authorization-server")["token_endpoint"].(string)
		if u, err := url.Parse(endpoint); err != nil || !u.IsAbs() || strings.Contains(endpoint, "#") {
			t.Errorf("the token endpoint is %q", endpoint)
		}
	}},
	{"02 POST alone", func(t *testing.T, k *keyed) {
		resp := k.Do(t, "GET", tokenPath+"?"+byGrant+"&"+k.pair(), "")
		wantTokenError(t, resp, http.StatusMethodNotAllowed, "invalid_request")
		wantHeader(t, resp, "Allow", "POST")
	}},
	{"03 a form in UTF-8, whether it says so or not", func(t *testing.T, k *keyed) {
		resp := k.Do(t, "POST", tokenPath, byGrant+"&"+k.pair(), "Content-Type", formType+";charset=UTF-8")
		wantIssued(t, resp)
		resp = k.Do(t, "POST", tokenPath, byGrant+"&"+k.pair(), "Content-Type", formType+";charset=UTF-16")
		wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
	}},
	{"03 no other type for the parameters of the RFC", func(t *testing.T, k *keyed) { // those of the other dialect have more
		object := fmt.Sprintf(`{"grant_type":"client_credentials","client_id":%q,"client_secret":%q}`, k.client.ClientID, k.client.Secret)
		resp := k.Do(t, "POST", tokenPath, object, "Content-Type", jsonType)
		wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
	}},
	{"04 a secret in the query is none", func(t *testing.T, k *keyed) {
		resp := k.Do(t, "POST", tokenPath+"?"+k.pair(), byGrant, "Content-Type", formType)
		wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
	}},
	{"05 a parameter without a value counts as omitted", func(t *testing.T, k *keyed) {
		wantMember(t, wantIssued(t, k.ask(t, byGrant+"&scope=&"+k.pair())), "scope", "read")
	}},
	{"06 unknown parameters are ignored", func(t *testing.T, k *keyed) {
		wantIssued(t, k.ask(t, byGrant+"&nobody_knows=this&"+k.pair()))
	}},
	{"07 a repeated parameter", refuses(400, "invalid_request", func(k *keyed) string { return byGrant + "&scope=read&scope=read&" + k.pair() })},
	{"07 resource may be repeated", func(t *testing.T, k *keyed) {
		resource := form("resource", k.URL(""))
		wantIssued(t, k.ask(t, byGrant+"&"+resource+"&"+resource+"&"+k.pair()))
	}},
	{"08 a missing grant_type", refuses(400, "invalid_request", (*keyed).pair)},
	{"08 an unknown grant_type", refuses(400, "unsupported_grant_type", func(k *keyed) string { return "grant_type=authorization_code&" + k.pair() })},
	{"09 a client without a secret gets nothing", refuses(401, "invalid_client", func(k *keyed) string { return byGrant + "&client_id=" + k.client.ClientID })},
	{"10 two ways of authentication in one request", func(t *testing.T, k *keyed) {
		auth := basic(k.client.ClientID, k.client.Secret)
		wantTokenError(t, k.ask(t, byGrant+"&"+k.pair(), "Authorization", auth), http.StatusBadRequest, "invalid_request")
		wantTokenError(t, k.ask(t, byGrant+"&client_id=x", "Authorization", auth), http.StatusBadRequest, "invalid_request")
		wantIssued(t, k.ask(t, byGrant+"&client_id="+k.client.ClientID, "Authorization", auth)) // the same again is no second way
	}},
	{"11 every client may use Basic or the body", func(t *testing.T, k *keyed) {
		wantIssued(t, k.ask(t, byGrant, "Authorization", basic(k.client.ClientID, k.client.Secret)))
		wantIssued(t, k.ask(t, byGrant+"&"+k.pair()))
	}},
	{"12 Basic is form-decoded, both parts of it", func(t *testing.T, k *keyed) {
		var id strings.Builder
		for _, c := range k.client.ClientID {
			fmt.Fprintf(&id, "%%%02x", c)
		}
		wantIssued(t, k.ask(t, byGrant, "Authorization", basic(id.String(), url.QueryEscape(k.client.Secret))))
	}},
	{"13 the scheme in any letter case", func(t *testing.T, k *keyed) {
		wantIssued(t, k.ask(t, byGrant, "Authorization", "bASIC"+strings.TrimPrefix(basic(k.client.ClientID, k.client.Secret), "Basic")))
	}},
	{"15 scopes are a set, separated by single spaces, in their own letter case", func(t *testing.T, k *keyed) {
		c := k.CreateWith(t, "a", "b")
		ask := func(scope string) *http.Response {
			return k.ask(t, form("grant_type", "client_credentials", "client_id", c.ClientID, "client_secret", c.Secret, "scope", scope))
		}
		wantMember(t, wantIssued(t, ask("b a b")), "scope", "a b")
		for _, scope := range []string{"a  b", "a\tb", "A", `a"`, `a\`, "ä"} {
			wantTokenError(t, ask(scope), http.StatusBadRequest, "invalid_scope")
		}
	}},
	{"16 a scope that the client may not have", refuses(400, "invalid_scope", func(k *keyed) string { return byGrant + "&scope=read+admin&" + k.pair() })},
	{"17 the answer names the scope that was granted, asked for or not", func(t *testing.T, k *keyed) {
		c := k.CreateWith(t, "a", "b")
		auth := basic(c.ClientID, c.Secret)
		wantMember(t, wantIssued(t, k.ask(t, byGrant, "Authorization", auth)), "scope", "a b")
		wantMember(t, wantIssued(t, k.ask(t, byGrant+"&scope=b", "Authorization", auth)), "scope", "b")
	}},
	{"18 a resource that is not the client's, or no URL without a fragment", func(t *testing.T, k *keyed) {
		for _, resource := range []string{"https://other.example", k.URL("#x"), "/relative"} {
			resp := k.ask(t, byGrant+"&"+form("resource", resource)+"&"+k.pair())
			wantTokenError(t, resp, http.StatusBadRequest, "invalid_target")
		}
	}},
	{"19 ids and secrets are printable ASCII", func(t *testing.T, k *keyed) {
		c, _ := create(t, k.Server, manage(t, k.Server, "read"), `{"name":"né"}`)
		wantMatch(t, "the pair", c.ClientID+" "+*c.Secret, `^[\x20-\x7E]+$`)
	}},
}

var answerRequirements = []requirement{
	{"20 an answer of JSON with the token, its type and its seconds as a number", func(t *testing.T, k *keyed) {
		resp := k.ask(t, byGrant+"&"+k.pair())
		wantHeader(t, resp, "Content-Type", jsonType)
		answer := wantIssued(t, resp)
		if seconds, ok := answer["expires_in"].(float64); !ok || seconds != 3600 || answer["access_token"] == nil {
			t.Errorf("the answer is %v", answer)
		}
	}},
	{"21 no cache keeps a token or a secret", func(t *testing.T, k *keyed) {
		_, created := create(t, k.Server, manage(t, k.Server), `{}`)
		for _, resp := range []*http.Response{k.ask(t, byGrant+"&"+k.pair()), created} {
			wantHeader(t, resp, "Cache-Control", "no-store")
			wantHeader(t, resp, "Pragma", "no-cache")
		}
	}},
	{"22 no refresh token", func(t *testing.T, k *keyed) {
		if answer := wantIssued(t, k.ask(t, byGrant+"&"+k.pair())); len(answer) != 4 {
			t.Errorf("the answer has more than the token, its type, its seconds and its scope: %v", answer)
		}
	}},
	{"23 the type is Bearer", func(t *testing.T, k *keyed) {
		wantMember(t, wantIssued(t, k.ask(t, byGrant+"&"+k.pair())), "token_type", "Bearer")
	}},
	{"24 nobody guesses a token or a secret", func(t *testing.T, k *keyed) {
		first, second := decode(t, k.Token(t, k.client), 1)["jti"].(string), decode(t, k.Token(t, k.client), 1)["jti"].(string)
		id, err := base64.RawURLEncoding.DecodeString(first)
		secret, err2 := base64.StdEncoding.DecodeString(k.client.Secret)
		if err != nil || err2 != nil || len(id) < 16 || len(secret) < 16 || first == second {
			t.Errorf("ids %q and %q; a secret of %d bytes", first, second, len(secret))
		}
	}},
}

var errorRequirements = []requirement{
	{"25 an error is 400, in JSON, and not for caches", refuses(400, "invalid_scope", func(k *keyed) string { return byGrant + "&scope=x&" + k.pair() })},
	{"26 who failed with Basic is challenged for Basic", func(t *testing.T, k *keyed) {
		resp := k.ask(t, byGrant, "Authorization", basic(k.client.ClientID, "wrong"))
		wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
		wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"), `^Basic realm="[^"\\]+"$`)
	}},
	{"27 an error says nothing that was sent", func(t *testing.T, k *keyed) {
		for name, code := range map[string]string{"grant_type": "unsupported_grant_type", "scope": "invalid_scope", "resource": "invalid_target"} {
			sent := map[string]string{"grant_type": "client_credentials", name: "ECHO\"\\\r\n\té"}
			resp := k.ask(t, form("grant_type", sent["grant_type"], "scope", sent["scope"], "resource", sent["resource"])+"&"+k.pair())
			wantTokenError(t, resp, http.StatusBadRequest, code)
		}
	}},
	{"28 the same answer for every client that fails", func(t *testing.T, k *keyed) {
		gone := k.CreateWith(t)
		wantStatus(t, k.Do(t, "DELETE", credentialsPath+"/"+gone.ClientID, "", testserver.Bearer(manage(t, k.Server))...), http.StatusNoContent)
		expired := k.Create(t, issuer.Draft{Expires: time.Now().Add(50 * time.Millisecond)})
		time.Sleep(60 * time.Millisecond)
		var answers []string
		for _, c := range []testserver.Credential{{ClientID: k.client.ClientID, Secret: "x"}, {ClientID: strings.Repeat("0", 32), Secret: "x"}, gone, expired} {
			resp := k.ask(t, byGrant, "Authorization", basic(c.ClientID, c.Secret))
			wantStatus(t, resp, http.StatusUnauthorized)
			answers = append(answers, fmt.Sprint(resp.Header["Www-Authenticate"], testserver.Body(t, resp)))
		}
		if len(slices.Compact(answers)) != 1 {
			t.Errorf("the answers differ: %q", answers)
		}
	}},
	{"29 the client is looked at before what it asks for", refuses(401, "invalid_client", func(k *keyed) string {
		return "grant_type=unknown&scope=unknown&resource=unknown&client_secret=x&client_id=" + k.client.ClientID
	})},
	{"29 the form is looked at before the client", refuses(400, "invalid_request", func(k *keyed) string {
		return byGrant + "&scope=a&scope=b&client_secret=x&client_id=" + k.client.ClientID
	})},
}

// wantAssertions checks a client's assertions: those that count, and those that
// do not.
func (h *keyHolder) wantAssertions(t *testing.T, good, bad []string) {
	t.Helper()
	for _, assertion := range good {
		wantIssued(t, h.ask(t, assertion))
	}
	for _, assertion := range bad {
		wantTokenError(t, h.ask(t, assertion), http.StatusUnauthorized, "invalid_client")
	}
}

// with makes an assertion that is right but for one claim.
func (h *keyHolder) with(t *testing.T, claim string, value any) string {
	t.Helper()
	return h.sign(t, h.claims(map[string]any{claim: value}), nil)
}

var assertionRequirements = []requirement{
	{"31 one assertion, of the type for JWT", func(t *testing.T, k *keyed) {
		h := newKeyHolder(t, k.Server, jose.ES256)
		wantIssued(t, h.ask(t, h.sign(t, h.claims(nil), nil)))
		resp := h.ask(t, h.sign(t, h.claims(nil), nil), "client_assertion_type", strings.ToUpper(jwtBearer))
		wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
		one := form("client_assertion", h.sign(t, h.claims(nil), nil))
		resp = k.ask(t, byGrant+"&"+form("client_assertion_type", jwtBearer)+"&"+one+"&"+one)
		wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")
	}},
	{"32 an assertion about the client, by the client, signed with its key, and in its time", func(t *testing.T, k *keyed) {
		h := newKeyHolder(t, k.Server, jose.ES256)
		stranger := *h
		stranger.key = newKey(t, "ES256")
		h.wantAssertions(t, nil, []string{
			h.with(t, "iss", "https://other.example"), h.with(t, "sub", k.client.ClientID), h.with(t, "exp", nil),
			h.with(t, "exp", time.Now().Unix()-1), h.with(t, "nbf", time.Now().Unix()+300), stranger.sign(t, h.claims(nil), nil), h.hmac(t),
			b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(object(nil, []string{"iss", quote(h.ClientID), "sub", quote(h.ClientID)}))) + ".",
		})
	}},
	{"33 an assertion for the issuer alone, as a string", func(t *testing.T, k *keyed) {
		h := newKeyHolder(t, k.Server, jose.ES256)
		h.wantAssertions(t, []string{h.with(t, "aud", k.URL(""))}, []string{h.with(t, "aud", []string{k.URL("")}), h.with(t, "aud", k.URL(tokenPath))})
	}},
	{"34 an assertion counts once, and may be of a clock that is a little ahead", func(t *testing.T, k *keyed) {
		h := newKeyHolder(t, k.Server, jose.ES256)
		once := h.with(t, "iat", time.Now().Unix()+8)
		h.wantAssertions(t, []string{once}, []string{once, h.with(t, "iat", time.Now().Unix()+62)})
	}},
	{"35 a client_id beside an assertion is the same client's", func(t *testing.T, k *keyed) {
		h := newKeyHolder(t, k.Server, jose.ES256)
		wantIssued(t, h.ask(t, h.sign(t, h.claims(nil), nil), "client_id", h.ClientID))
		resp := h.ask(t, h.sign(t, h.claims(nil), nil), "client_id", k.client.ClientID)
		wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
	}},
}

var tokenRequirements = []requirement{
	{"37 a signed token that says it is an access token", func(t *testing.T, k *keyed) {
		header := decode(t, k.Token(t, k.client), 0)
		wantMember(t, header, "typ", "at+jwt")
		wantMember(t, header, "alg", "ES256")
	}},
	{"38 all claims of RFC 9068, and the client as its own subject", func(t *testing.T, k *keyed) {
		claims := decode(t, k.Token(t, k.client), 1)
		for name, want := range map[string]any{"iss": k.URL(""), "sub": k.client.ClientID, "client_id": k.client.ClientID, "scope": "read"} {
			wantMember(t, claims, name, want)
		}
		for _, name := range []string{"exp", "iat", "jti", "aud"} {
			if claims[name] == nil {
				t.Errorf("no claim %s in %v", name, claims)
			}
		}
	}},
	{"39 the audience is the resource, or else the default", func(t *testing.T, k *keyed) {
		c := k.Create(t, issuer.Draft{Audiences: []string{k.URL(""), "https://stock.example"}})
		wantMember(t, decode(t, k.Token(t, c, "resource", "https://stock.example"), 1), "aud", "https://stock.example")
		wantMember(t, decode(t, k.Token(t, k.client), 1), "aud", k.URL(""))
	}},
	{"40 nobody chooses its own client id", func(t *testing.T, k *keyed) {
		c, _ := create(t, k.Server, manage(t, k.Server), `{"clientId":"admin","client_id":"admin","name":"admin"}`)
		wantMatch(t, "the client id", c.ClientID, `^[0-9a-f]{32}$`)
	}},
	{"41 times in whole seconds, and the key's id", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		wantMember(t, decode(t, token, 0), "kid", k.kid)
		claims := raws(t, token, 1)
		wantMatch(t, "iat and exp", claims["iat"]+" "+claims["exp"], `^\d{10} \d{10}$`)
	}},
}

// The tokens are written into requests as attacks_test.go has it.
var guardRequirements = []requirement{
	{"42 a token in the Authorization header field", asks(admitted, "GET /r/x\nAuthorization: Bearer {T}", "GET /r/x\nAuthorization: bEARER  {T}")},
	{"43 a token in the query or in a form is not seen", asks(
		noToken, "GET /r/x?access_token={M}", "POST /r/x\nContent-Type: "+formType+"\n\naccess_token={M}",
	)},
	{"43 two tokens", asks(invalidRequest, "GET /r/x\nAuthorization: Bearer {T}\nAuthorization: Bearer {U}")},
	{"44 no token: a challenge with a realm, and no error", asks(noToken, "GET /r/x", "GET /r/x\nAuthorization: Basic {basic}")},
	{"45 a bad token", asks(invalidToken, "GET /r/x\nAuthorization: Bearer x.y.z")},
	{"45 a malformed request", asks(invalidRequest, "GET /r/x\nAuthorization: Bearer {T} {T}")},
	{"45 a good token without the scope, which is named", asks(lacksWrite, "GET /rw/x\nAuthorization: Bearer {T}")},
	{"46 an access token by its type", tokens(invalidToken, headers("typ", "", `"JWT"`, `"client-authentication+jwt"`))},
	{"46 an access token by its longer type", tokens(admitted, headers("typ", `"application/at+jwt"`))},
	{"46 signed, by the algorithm of the key", tokens(invalidToken, headers("alg", `"none"`, `"HS256"`, `"RS256"`))},
	{"46 of this issuer, and in its time", tokens(
		invalidToken, claims("iss", `"https://other.example"`), claims("exp", ""), at("exp", -time.Minute), at("nbf", time.Hour),
	)},
	{"47 an unknown crit, a key that the token brings or names, an unknown kid", tokens(
		invalidToken, headers("crit", `["x"]`), headers("jku", `"https://keys.example"`), headers("x5u", `"https://keys.example"`),
		headers("jwk", `{"kty":"EC"}`), headers("x5c", `["AA=="]`), headers("kid", `"unknown"`),
	)},
	{"48 another audience", tokens(invalidToken, claims("aud", `"https://other.example"`))},
	{"49 the upstream sees the true identity alone, in whatever spelling another comes, and no token", sees(
		trueIdentity, "GET /r/x\nAuthorization: Bearer {T}\nX-Client-Id: spoof\nx_client_id: spoof\nX-CLIENT-SCOPE: spoof\nX-Client-Account: spoof",
	)},
	{"49 the upstream sees no identity where there is none", sees(noIdentity, "GET /opt/x\nX-Client-Id: spoof\nx_client_scope: spoof")},
	{"50 a token that is bound to a key or a certificate", tokens(
		invalidToken, claims("cnf", `{"jkt":"x"}`, `{"x5t#S256":"x"}`),
	)},
	{"51 no cache keeps what was answered to a token", func(t *testing.T, k *keyed) {
		token := manage(t, k.Server)
		wantHeader(t, k.Do(t, "GET", credentialsPath, "", testserver.Bearer(token)...), "Cache-Control", "no-store")
		wantHeader(t, k.Do(t, "GET", "/rw/x", "", testserver.Bearer(token)...), "Cache-Control", "no-store")
	}},
}

var questionRequirements = []requirement{
	{"56 a revocation is a POST with a token, and its hint is ignored", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		auth := []string{"Authorization", basic(k.client.ClientID, k.client.Secret), "Content-Type", formType}
		wantTokenError(t, k.Do(t, "GET", revokePath+"?token="+token, "", auth[:2]...), http.StatusMethodNotAllowed, "invalid_request")
		wantTokenError(t, k.Do(t, "POST", revokePath, "", auth...), http.StatusBadRequest, "invalid_request")
		wantRevoked(t, k.Do(t, "POST", revokePath, "token="+token+"&token_type_hint=no_such_type", auth...))
		k.presentToGuard(t, token, invalidToken)
	}},
	{"57 a client revokes its own tokens alone", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		wantTokenError(t, ask(t, k.Server, revokePath, k.CreateWith(t, "read"), token), http.StatusBadRequest, "invalid_grant")
		k.presentToGuard(t, token, admitted)
	}},
	{"58 what is no token is revoked already, but not for everybody", func(t *testing.T, k *keyed) {
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, "no.such.token"))
		stranger := testserver.Credential{ClientID: k.client.ClientID, Secret: "wrong"}
		wantTokenError(t, ask(t, k.Server, revokePath, stranger, "no.such.token"), http.StatusUnauthorized, "invalid_client")
	}},
	{"59 a revoked token is refused from then on", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		k.presentToGuard(t, token, admitted)
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
		k.presentToGuard(t, token, invalidToken)
	}},
	{"60 only who proves who it is asks about tokens", func(t *testing.T, k *keyed) {
		body := "token=" + k.Token(t, k.client)
		wantTokenError(t, k.Do(t, "POST", introspectPath, body, "Content-Type", formType), http.StatusUnauthorized, "invalid_client")
		resp := k.Do(t, "POST", introspectPath, body, "Content-Type", formType, "Authorization", "Bearer x")
		wantStatus(t, resp, http.StatusUnauthorized)
		wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"), `^Bearer .*error="invalid_token"`)
	}},
	{"61 of a token that is not the caller's to know, nothing but that it is inactive", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		if answer := members(t, ask(t, k.Server, introspectPath, k.client, token)); answer["active"] != true {
			t.Errorf("of the caller's own: %v", answer)
		}
		wantInactive(t, ask(t, k.Server, introspectPath, k.CreateWith(t, "read"), token))
		wantInactive(t, ask(t, k.Server, introspectPath, k.client, "unknown"))
	}},
	{"62 a token that is forged, expired, early, revoked or for others is inactive", func(t *testing.T, k *keyed) {
		revoked := k.Token(t, k.client)
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, revoked))
		server := k.Create(t, issuer.Draft{Scopes: []string{issuer.ScopeIntrospect}})
		for _, token := range []string{
			k.stranger(t).withClaims(t), k.withClaims(t, "exp", fromNow(-time.Minute, "")), k.withClaims(t, "nbf", fromNow(time.Hour, "")),
			revoked, k.withClaims(t, "aud", `"https://other.example"`),
		} {
			wantInactive(t, ask(t, k.Server, introspectPath, server, token))
		}
	}},
}

var publicRequirements = []requirement{
	{"64 the metadata names the issuer as the tokens do", func(t *testing.T, k *keyed) {
		wantMember(t, document(t, k.Server, "/.well-known/oauth-authorization-server"), "issuer", decode(t, k.Token(t, k.client), 1)["iss"])
	}},
	{"65 grants and ways of authentication are published, for each endpoint", func(t *testing.T, k *keyed) {
		metadata := document(t, k.Server, "/.well-known/oauth-authorization-server")
		wantMember(t, metadata, "grant_types_supported", []string{"client_credentials"})
		for _, endpoint := range []string{"token", "revocation", "introspection"} {
			wantMatch(t, endpoint, fmt.Sprint(metadata[endpoint+"_endpoint"]), "^"+k.URL("/"))
			wantMember(t, metadata, endpoint+"_endpoint_auth_methods_supported", []string{"client_secret_basic", "client_secret_post", "private_key_jwt"})
			algorithms, _ := metadata[endpoint+"_endpoint_auth_signing_alg_values_supported"].([]any)
			if len(algorithms) == 0 || slices.Contains(algorithms, "none") {
				t.Errorf("the algorithms of %s are %v", endpoint, algorithms)
			}
		}
	}},
	{"66 no response types where there is nothing to respond to", func(t *testing.T, k *keyed) {
		metadata := document(t, k.Server, "/.well-known/oauth-authorization-server")
		for name, value := range metadata {
			if list, ok := value.([]any); name == "response_types_supported" || ok && len(list) == 0 {
				t.Errorf("%s is published as %v", name, value)
			}
		}
	}},
	{"67 public keys alone, each with an id, a use and an algorithm", func(t *testing.T, k *keyed) {
		keys := document(t, k.Server, keySetPathOf(t, k))["keys"].([]any)
		if len(keys) != 1 {
			t.Fatalf("%d keys", len(keys))
		}
		key := keys[0].(map[string]any)
		for name, want := range map[string]string{"kty": "EC", "kid": k.kid, "use": "sig", "alg": "ES256"} {
			wantMember(t, key, name, want)
		}
		for _, private := range []string{"d", "p", "q", "k"} {
			if key[private] != nil {
				t.Errorf("the key shows %s", private)
			}
		}
	}},
	{"68 a challenge leads to what describes the resource", func(t *testing.T, k *keyed) {
		challenge := k.Do(t, "GET", "/r/x", "").Header.Get("WWW-Authenticate")
		_, address, _ := strings.Cut(challenge, `resource_metadata="`)
		path := strings.TrimPrefix(strings.TrimSuffix(address, `"`), k.URL(""))
		metadata := document(t, k.Server, path)
		wantMember(t, metadata, "resource", k.URL(""))
		wantMember(t, metadata, "authorization_servers", []string{k.URL("")})
		wantMember(t, metadata, "bearer_methods_supported", []string{"header"})
	}},
	{"69 pages of other origins may read what is public, and nothing else", func(t *testing.T, k *keyed) {
		for _, path := range []string{"/.well-known/oauth-authorization-server", keySetPathOf(t, k)} {
			wantHeader(t, k.Do(t, "GET", path, "", "Origin", "https://page.example"), "Access-Control-Allow-Origin", "*")
		}
		wantHeader(t, k.ask(t, byGrant+"&"+k.pair(), "Origin", "https://page.example"), "Access-Control-Allow-Origin", "")
	}},
}

// keySetPathOf finds the keys as a client does.
func keySetPathOf(t *testing.T, k *keyed) string {
	t.Helper()
	address, _ := document(t, k.Server, "/.well-known/oauth-authorization-server")["jwks_uri"].(string)
	return strings.TrimPrefix(address, k.URL(""))
}

var managementRequirements = []requirement{
	{"71 a deleted client's tokens die with it", func(t *testing.T, k *keyed) {
		manager := testserver.Bearer(manage(t, k.Server, "read"))
		c := k.CreateWith(t, "read")
		token := k.Token(t, c)
		wantStatus(t, k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...), http.StatusOK)
		k.Upstream.Take()
		wantStatus(t, k.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", manager...), http.StatusNoContent)
		k.presentToGuard(t, token, invalidToken)
		wantProblem(t, k.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", manager...), http.StatusNotFound, "")
	}},
	{"72 errors are problem documents, but for those of OAuth", func(t *testing.T, k *keyed) {
		wantProblem(t, k.Do(t, "GET", credentialsPath, ""), http.StatusUnauthorized, ".")
		for _, path := range []string{tokenPath, introspectPath, revokePath} {
			wantTokenError(t, k.Do(t, "POST", path, "{}", "Content-Type", "application/xml"), http.StatusBadRequest, "invalid_request")
		}
	}},
}

// ownServerRequirements get no server: each runs its own.
var ownServerRequirements = []requirement{
	{"01 only loopback addresses do without TLS", func(t *testing.T, _ *keyed) {
		s := testserver.New(t)
		err := s.Load(strings.Replace(testserver.Simple, "issuer {{url}}", "issuer http://api.example.com", 1))
		if err == nil || !strings.Contains(err.Error(), "https") {
			t.Errorf("an issuer without TLS: %v", err)
		}
	}},
	{"14 who guesses secrets is slowed down", holdsBackGuessers},
	{"30 who is told to wait is told for how long", func(t *testing.T, _ *keyed) {
		wantOutOfOrder(t, func(s *testserver.Server, unread testserver.Credential) *http.Response {
			return s.Do(t, "POST", tokenPath, byGrant, "Content-Type", formType, "Authorization", basic(unread.ClientID, unread.Secret))
		})
	}},
	{"33 older clients can be allowed to name the token endpoint", func(t *testing.T, _ *keyed) {
		s := run(t, site("", "", "client_credentials {\nlenient_assertion_audience\n}"))
		h := newKeyHolder(t, s, jose.ES256)
		h.wantAssertions(t, []string{h.with(t, "aud", s.URL(tokenPath))}, []string{h.with(t, "aud", "https://other.example")})
	}},
	{"37 RS256 is among the algorithms", func(t *testing.T, _ *keyed) {
		k := runKeyed(t, "RS256", attacked)
		token := k.Token(t, k.client)
		wantMember(t, decode(t, token, 0), "alg", "RS256")
		k.presentToGuard(t, token, admitted)
	}},
	{"59 a revocation that can't be kept is not answered as one", func(t *testing.T, _ *keyed) {
		var token string
		wantOutOfOrder(t, func(s *testserver.Server, unread testserver.Credential) *http.Response {
			if token == "" {
				outOfOrder.Store(false)
				token = s.Token(t, unread)
				outOfOrder.Store(true)
			}
			return ask(t, s, revokePath, unread, token)
		})
	}},
	{"64 the well-known path stands before the issuer's own", func(t *testing.T, _ *keyed) {
		s := run(t, strings.Replace(testserver.Simple, "issuer {{url}}", "issuer {{url}}/tenants/a", 1))
		wantMember(t, document(t, s, "/.well-known/oauth-authorization-server/tenants/a"), "issuer", s.URL("/tenants/a"))
	}},
	{"66 clients that insist on response types can have an empty list", func(t *testing.T, _ *keyed) {
		s := run(t, site("", "", "client_credentials {\nmcp_compat\n}"))
		metadata := document(t, s, "/.well-known/oauth-authorization-server")
		wantMember(t, metadata, "response_types_supported", []string{})
		wantMember(t, metadata, "authorization_endpoint", s.URL("/api/v0/oauth/authorize"))
	}},
	{"67 a replaced key is shown while its tokens live", func(t *testing.T, _ *keyed) {
		k := runKeyed(t, "ES256", attacked)
		token := k.Token(t, k.client)
		s := k.Server
		s.Run(t, site("", "", attacked)) // a key of the store's own
		kids := fmt.Sprint(document(t, s, keySetPathOf(t, k))["keys"])
		if !strings.Contains(kids, k.kid) || strings.Count(kids, "kid:") != 2 {
			t.Errorf("the keys are %s", kids)
		}
		k.presentToGuard(t, token, admitted)
	}},
}

func holdsBackGuessers(t *testing.T, _ *keyed) {
	s := run(t, limitedSite("auth_failures 3 300"))
	c := s.CreateWith(t)
	const from = "198.51.100.14" // nobody else's
	if n := failuresUntilLimited(t, s, one(c.ClientID), from); n > 10 {
		t.Errorf("%d guesses before a limit of 3", n)
	}
	right := s.Do(t, "POST", tokenPath, byGrant, "Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret), "X-Forwarded-For", from)
	wantStatus(t, right, http.StatusOK) // nobody locks a client out
}

// wantOutOfOrder asks a server whose disk fails, for a credential that is not
// in memory, and once more when the disk is well.
func wantOutOfOrder(t *testing.T, ask func(s *testserver.Server, unread testserver.Credential) *http.Response) {
	t.Helper()
	s := run(t, strings.Replace(testserver.Simple, "store badger", "store moody", 1))
	unread := s.CreateWith(t)
	outOfOrder.Store(true)
	defer outOfOrder.Store(false)
	resp := ask(s, unread)
	wantTokenError(t, resp, http.StatusServiceUnavailable, "temporarily_unavailable")
	wantMatch(t, "Retry-After", resp.Header.Get("Retry-After"), `^\d+$`)
	outOfOrder.Store(false)
	wantStatus(t, ask(s, unread), http.StatusOK)
}

// moody is a store on a disk that fails while outOfOrder says so.
type moody struct{ badger.Badger }

var outOfOrder atomic.Bool

func init() { caddy.RegisterModule(new(moody)) }

func (*moody) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "client_credentials.stores.moody", New: func() caddy.Module { return new(moody) }}
}

func (m *moody) Identity() string { return "moody " + m.Badger.Identity() }

func (m *moody) Open(ctx context.Context) (store.Store, error) {
	opened, err := m.Badger.Open(ctx)
	return moodyStore{opened}, err
}

type moodyStore struct{ store.Store }

var errOutOfOrder = errors.New("the disk is out of order")

func (m moodyStore) Get(ctx context.Context, key string) ([]byte, error) {
	if outOfOrder.Load() {
		return nil, errOutOfOrder
	}
	return m.Store.Get(ctx, key)
}

func (m moodyStore) Commit(ctx context.Context, batch store.Batch) error {
	if outOfOrder.Load() {
		return errOutOfOrder
	}
	return m.Store.Commit(ctx, batch)
}

package handler_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const jwtBearer = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// keyHolder is a client that authenticates by a key.
type keyHolder struct {
	testserver.Credential
	server *testserver.Server
	key    crypto.Signer
	alg    jose.SignatureAlgorithm
}

// jwks is the set of one public key, with members changed: name and JSON text,
// where the empty text leaves the member out.
func jwks(t testing.TB, key crypto.Signer, alg jose.SignatureAlgorithm, changes ...string) string {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: key.Public(), KeyID: "k", Algorithm: string(alg), Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for name, value := range members {
		pairs = append(pairs, name, string(value))
	}
	return `{"keys":[` + object(pairs, changes) + `]}`
}

func newKeyHolder(t testing.TB, s *testserver.Server, alg jose.SignatureAlgorithm) *keyHolder {
	t.Helper()
	kind := map[jose.SignatureAlgorithm]string{jose.ES256: "ES256", jose.EdDSA: "EdDSA", jose.RS256: "RS256", jose.PS256: "RS256"}[alg]
	h := &keyHolder{server: s, key: newKey(t, kind), alg: alg}
	h.Credential, _ = createGranted(t, s, manage(t, s), `{"jwks":`+jwks(t, h.key, alg)+`}`)
	return h
}

// claims are the right ones, with changes; nil leaves one out.
func (h *keyHolder) claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	all := map[string]any{
		"iss": h.ClientID, "sub": h.ClientID, "aud": h.server.URL(""), "iat": now, "exp": now + 60,
		"jti": fmt.Sprint("j", time.Now().UnixNano()),
	}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

func (h *keyHolder) sign(t testing.TB, claims map[string]any, header map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithHeader("kid", "k")
	for name, value := range header {
		options = options.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: h.alg, Key: h.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// ask asks for a token by an assertion, with further parameters.
func (h *keyHolder) ask(t testing.TB, assertion string, params ...string) *http.Response {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {jwtBearer}, "client_assertion": {assertion}}
	for n := 0; n < len(params); n += 2 {
		form.Set(params[n], params[n+1])
	}
	return h.server.Do(t, "POST", tokenPath, form.Encode(), "Content-Type", formType)
}

func TestAClientAuthenticatesByItsKeyOnce(t *testing.T) {
	s := run(t, site("", h2c, "client_credentials\nreverse_proxy {{upstream}}"))
	for _, alg := range []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256, jose.PS256} {
		h := newKeyHolder(t, s, alg)
		bothVersions(t, s, func(t *testing.T) {
			for name, header := range map[string]map[string]any{
				"no typ": nil, "JWT": {"typ": "JWT"}, "typed": {"typ": "client-authentication+jwt"}, "with a thumbprint": {"x5t": "AA"},
			} {
				assertion := h.sign(t, h.claims(nil), header)
				resp := h.ask(t, assertion)
				wantStatus(t, resp, http.StatusOK)
				if t.Failed() {
					t.Fatalf("%s, %s: %s", alg, name, testserver.Body(t, resp))
				}
				wantTokenError(t, h.ask(t, assertion), http.StatusUnauthorized, "invalid_client")
			}
		})
		// Without jti, it counts once all the same; with the client id beside it, too.
		assertion := h.sign(t, h.claims(map[string]any{"jti": nil}), nil)
		wantStatus(t, h.ask(t, assertion, "client_id", h.ClientID), http.StatusOK)
		wantTokenError(t, h.ask(t, assertion), http.StatusUnauthorized, "invalid_client")
		s.Token(t, h.Credential) // its secret works as well
	}
}

// The second form of an ECDSA signature makes another text of the assertion.
func TestAReplayedAssertionIsRefusedInEveryForm(t *testing.T) {
	s := run(t, testserver.Simple)
	h := newKeyHolder(t, s, jose.ES256)
	for _, jti := range []any{"one", nil} {
		assertion := h.sign(t, h.claims(map[string]any{"jti": jti}), nil)
		wantStatus(t, h.ask(t, secondForm(assertion)), http.StatusOK)
		wantTokenError(t, h.ask(t, assertion), http.StatusUnauthorized, "invalid_client")
		s.Run(t, testserver.Simple)
		wantTokenError(t, h.ask(t, assertion), http.StatusUnauthorized, "invalid_client")
	}
	used := h.sign(t, h.claims(nil), nil)
	wantStatus(t, h.ask(t, used), http.StatusOK)
	time.Sleep(1100 * time.Millisecond) // assertions are dated to the second
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Run(t, testserver.Simple)
	wantTokenError(t, h.ask(t, used), http.StatusUnauthorized, "invalid_client")
	wantStatus(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusOK)
}

func TestAnAssertionThatIsNotTheClientsIsRefused(t *testing.T) {
	s := run(t, testserver.Simple)
	h, other := newKeyHolder(t, s, jose.ES256), newKeyHolder(t, s, jose.ES256)
	now := time.Now().Unix()
	with := func(name string, value any) string { return h.sign(t, h.claims(map[string]any{name: value}), nil) }
	stolen := *h
	stolen.key = other.key
	keyless := *h
	keyless.Credential = s.CreateWith(t)
	good := strings.Split(h.sign(t, h.claims(nil), nil), ".")
	hmac := h.hmac(t)
	for name, assertion := range map[string]string{
		"signed by another":          stolen.sign(t, h.claims(nil), nil),
		"of a client without keys":   keyless.sign(t, keyless.claims(nil), nil),
		"of an unknown client":       h.sign(t, h.claims(map[string]any{"iss": strings.Repeat("0", 32), "sub": strings.Repeat("0", 32)}), nil),
		"of another client":          h.sign(t, h.claims(map[string]any{"iss": other.ClientID, "sub": other.ClientID}), nil),
		"issued by another":          with("iss", other.ClientID),
		"about another":              with("sub", other.ClientID),
		"tampered with":              good[0] + "." + b64([]byte(`{"iss":"x"}`)) + "." + good[2],
		"unsigned":                   b64([]byte(`{"alg":"none"}`)) + "." + good[1] + ".",
		"under a MAC":                hmac,
		"another kid":                h.sign(t, h.claims(nil), map[string]any{"kid": "x"}),
		"crit":                       h.sign(t, h.claims(nil), map[string]any{"crit": []string{"x"}, "x": 1}),
		"an access token's typ":      h.sign(t, h.claims(nil), map[string]any{"typ": "at+jwt"}),
		"an access token":            s.Token(t, h.Credential),
		"for the token endpoint":     with("aud", s.URL(tokenPath)),
		"for the issuer, in a list":  with("aud", []string{s.URL("")}),
		"for another server":         with("aud", "https://other.example"),
		"for the issuer and a slash": with("aud", s.URL("/")),
		"for nobody":                 with("aud", nil),
		"expired":                    with("exp", now-1),
		"without end":                with("exp", nil),
		"for a day":                  with("exp", now+86400),
		"from the future":            with("iat", now+65),
		"not yet":                    with("nbf", now+65),
		"without a date":             with("iat", nil),
		"older than the server":      with("iat", now-3600),
		"exp as text":                with("exp", fmt.Sprint(now+60)),
		"jti as a number":            with("jti", 1),
		"no JWT":                     "x.y.z",
		"too long":                   with("x", strings.Repeat("x", 9000)),
	} {
		t.Run(name, func(t *testing.T) {
			wantTokenError(t, h.ask(t, assertion), http.StatusUnauthorized, "invalid_client")
		})
	}
	wantStatus(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusOK)

	manager := manage(t, s)
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+h.ClientID, "", testserver.Bearer(manager)...), http.StatusNoContent)
	wantTokenError(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusUnauthorized, "invalid_client")
}

// hmac is the assertion under a MAC, of which the public key is the secret.
func (h *keyHolder) hmac(t testing.TB) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(jwks(t, h.key, h.alg))}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(h.claims(nil)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// RFC 7518 section 3.5: the salt is as long as the hash.
func TestPSSWithAnotherSaltIsRefused(t *testing.T) {
	s := run(t, testserver.Simple)
	h := newKeyHolder(t, s, jose.PS256)
	for salt, want := range map[int]int{32: http.StatusOK, 20: http.StatusUnauthorized, 0: http.StatusUnauthorized} {
		text, err := json.Marshal(h.claims(nil))
		if err != nil {
			t.Fatal(err)
		}
		signed := b64([]byte(`{"alg":"PS256","kid":"k"}`)) + "." + b64(text)
		digest := sha256.Sum256([]byte(signed))
		options := &rsa.PSSOptions{SaltLength: salt}
		if salt == 0 {
			options.SaltLength = 64
		}
		signature, err := rsa.SignPSS(rand.Reader, h.key.(*rsa.PrivateKey), crypto.SHA256, digest[:], options)
		if err != nil {
			t.Fatal(err)
		}
		wantStatus(t, h.ask(t, signed+"."+b64(signature)), want)
	}
}

func TestOlderAudiencesAreAcceptedWhereThatIsSet(t *testing.T) {
	s := run(t, site("", "", "client_credentials {\nlenient_assertion_audience\n}\nreverse_proxy {{upstream}}"))
	h := newKeyHolder(t, s, jose.ES256)
	for _, audience := range []any{s.URL(""), s.URL(tokenPath), s.URL(introspectPath), []string{"https://x.example", s.URL(tokenPath)}, []string{s.URL("")}} {
		wantStatus(t, h.ask(t, h.sign(t, h.claims(map[string]any{"aud": audience}), nil)), http.StatusOK)
	}
	for _, audience := range []any{"https://x.example", s.URL("/"), []string{}, []any{s.URL(""), 1}} {
		resp := h.ask(t, h.sign(t, h.claims(map[string]any{"aud": audience}), nil))
		wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
	}
}

func TestAnAssertionStandsAlone(t *testing.T) {
	s := run(t, testserver.Simple)
	h := newKeyHolder(t, s, jose.ES256)
	for _, params := range [][]string{
		{"client_secret", h.Secret},
		{"client_id", h.ClientID, "client_secret", h.Secret},
		{"client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"},
		{"client_assertion_type", ""},
		{"client_assertion", ""},
		{"GrantType", "client_credentials"},
	} {
		wantTokenError(t, h.ask(t, h.sign(t, h.claims(nil), nil), params...), http.StatusBadRequest, "invalid_request")
	}
	wantTokenError(t, h.ask(t, h.sign(t, h.claims(nil), nil), "client_id", strings.Repeat("0", 32)), http.StatusUnauthorized, "invalid_client")
	form := url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {jwtBearer}, "client_assertion": {h.sign(t, h.claims(nil), nil)}}
	resp := s.Do(t, "POST", tokenPath, form.Encode(), "Content-Type", formType, "Authorization", basic(h.ClientID, h.Secret))
	wantTokenError(t, resp, http.StatusBadRequest, "invalid_request")

	// It works at the other endpoints as well.
	token := s.Token(t, h.Credential)
	form = url.Values{"token": {token}, "client_assertion_type": {jwtBearer}, "client_assertion": {h.sign(t, h.claims(nil), nil)}}
	resp = s.Do(t, "POST", introspectPath, form.Encode(), "Content-Type", formType)
	wantMatch(t, "the answer", testserver.Body(t, resp), `^\{"active":true,`)
}

func TestKeysThatCouldNotBeUsedAreRefusedWhenTheyAreRegistered(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	key, rsaKey := newKey(t, "ES256"), newKey(t, "RS256")
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key, KeyID: "k"}}})
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	one := strings.TrimSuffix(strings.TrimPrefix(jwks(t, key, jose.ES256), `{"keys":[`), `]}`)
	for name, set := range map[string]string{
		"text": `"x"`, "a list": `[]`, "nothing": `{}`, "no keys": `{"keys":[]}`, "a key that is text": `{"keys":["x"]}`,
		"private":          string(private),
		"symmetric":        `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
		"for encryption":   jwks(t, key, jose.ES256, "use", `"enc"`),
		"for wrapping":     jwks(t, key, jose.ES256, "key_ops", `["wrapKey"]`),
		"no point":         jwks(t, key, jose.ES256, "x", `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`),
		"another curve":    jwks(t, key, jose.ES256, "crv", `"P-384"`),
		"wrong algorithm":  jwks(t, key, jose.ES256, "alg", `"RS256"`),
		"HS256":            jwks(t, rsaKey, jose.RS256, "alg", `"HS256"`),
		"RSA of 1024 bits": jwks(t, small, jose.RS256),
		"exponent 1":       jwks(t, rsaKey, jose.RS256, "e", `"AQ"`),
		"even exponent":    jwks(t, rsaKey, jose.RS256, "e", `"AQAC"`),
		"kid a number":     jwks(t, key, jose.ES256, "kid", "1"),
		"one kid twice":    `{"keys":[` + one + "," + one + `]}`,
		"too many":         `{"keys":[` + strings.Repeat(one+",", 8) + one + `]}`,
	} {
		resp := s.Do(t, "POST", credentialsPath, `{"jwks":`+set+`}`, "Content-Type", jsonType, "Authorization", "Bearer "+manager)
		t.Run(name, func(t *testing.T) { wantProblem(t, resp, http.StatusBadRequest, "^jwks ") })
	}
	// What is shown is what was registered.
	_, answer := createGranted(t, s, manager, `{"jwks":`+jwks(t, key, jose.ES256, "x5c", `["AA"]`)+`}`)
	wantMatch(t, "the answer", answer, `,"jwks":\{"keys":\[\{"kty":"EC","kid":"k","use":"sig","alg":"ES256","crv":"P-256","x":"[\w-]{43}","y":"[\w-]{43}"\}\]\}\}$`)
	if _, err := issuer.ParseClientKeys([]byte(jwks(t, key, jose.ES256, "alg", "", "kid", "", "use", ""))); err != nil {
		t.Errorf("a key of nothing but itself is refused: %v", err)
	}
}

func TestAClientMayPublishItsKeysAtAURL(t *testing.T) {
	h := &keyHolder{key: newKey(t, "ES256"), alg: jose.ES256}
	var broken atomic.Bool
	var fetched atomic.Int32
	published := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fetched.Add(1)
		if broken.Load() {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, jwks(t, h.key, h.alg))
	}))
	t.Cleanup(published.Close)
	s := run(t, site("client_jwks_uri any", "", "client_credentials\nreverse_proxy {{upstream}}"))
	h.server = s
	manager := manage(t, s)
	var answer string
	h.Credential, answer = createGranted(t, s, manager, `{"jwksUri":"`+published.URL+`/keys"}`)
	wantMatch(t, "the answer", answer, `,"jwksUri":"`+published.URL+`/keys"\}$`)
	for range 2 {
		wantStatus(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusOK)
	}
	stranger := *h
	stranger.key = newKey(t, "ES256")
	wantTokenError(t, h.ask(t, stranger.sign(t, h.claims(nil), nil)), http.StatusUnauthorized, "invalid_client")

	broken.Store(true)
	wantStatus(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusOK) // the last good ones count
	s.Run(t, site("client_jwks_uri any", "", "client_credentials\nreverse_proxy {{upstream}}"))
	resp := h.ask(t, h.sign(t, h.claims(nil), nil)) // nobody can tell now
	wantTokenError(t, resp, http.StatusServiceUnavailable, "temporarily_unavailable")
	if resp.Header.Get("Retry-After") == "" {
		t.Error("the client is not told when to try again")
	}

	// For a client that is no more, nothing is fetched.
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+h.ClientID, "", testserver.Bearer(manager)...), http.StatusNoContent)
	s.Run(t, site("client_jwks_uri any", "", "client_credentials\nreverse_proxy {{upstream}}"))
	before := fetched.Load()
	wantTokenError(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusUnauthorized, "invalid_client")
	if fetched.Load() != before {
		t.Error("the keys of a revoked client are fetched")
	}
}

func TestKeysAreFetchedFromWhereTheOperatorAllows(t *testing.T) {
	var connections atomic.Int32
	inside := httptest.NewUnstartedServer(http.NotFoundHandler())
	inside.Config.ConnState = func(net.Conn, http.ConnState) { connections.Add(1) }
	inside.StartTLS()
	t.Cleanup(inside.Close)
	for setting, uris := range map[string]map[string]int{
		"": {
			inside.URL:                   http.StatusCreated, // refused when it is fetched
			"http://client.example/jwks": http.StatusBadRequest, "http://localhost/jwks": http.StatusBadRequest, "file:///etc/passwd": http.StatusBadRequest,
		},
		"client_jwks_uri any": {"http://127.0.0.1:1/jwks": http.StatusCreated, "http://client.example/jwks": http.StatusBadRequest},
		"client_jwks_uri off": {"https://client.example/jwks": http.StatusBadRequest},
	} {
		s := run(t, site(setting, "", "client_credentials\nreverse_proxy {{upstream}}"))
		manager := manage(t, s)
		for uri, want := range uris {
			body := `{"jwksUri":"` + uri + `"}`
			resp := s.Do(t, "POST", credentialsPath, body, "Content-Type", jsonType, "Authorization", "Bearer "+manager)
			if resp.StatusCode != want {
				t.Errorf("%q, %s: %s, want %d", setting, uri, resp.Status, want)
			}
			if want != http.StatusCreated {
				wantProblem(t, resp, want, "^jwksUri ")
				continue
			}
			h := &keyHolder{server: s, key: newKey(t, "ES256"), alg: jose.ES256}
			if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &h.Credential); err != nil {
				t.Fatal(err)
			}
			wantTokenError(t, h.ask(t, h.sign(t, h.claims(nil), nil)), http.StatusServiceUnavailable, "temporarily_unavailable")
		}
		for _, body := range []string{`{"jwksUri":1}`, `{"jwksUri":""}`, `{"jwksUri":"https://c.example/","jwks":` + jwks(t, newKey(t, "ES256"), jose.ES256) + `}`} {
			resp := s.Do(t, "POST", credentialsPath, body, "Content-Type", jsonType, "Authorization", "Bearer "+manager)
			wantProblem(t, resp, http.StatusBadRequest, "^jwksUri ")
		}
	}
	if n := connections.Load(); n != 0 {
		t.Errorf("%d connections were made to this host", n)
	}
}

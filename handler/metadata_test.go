package handler_test

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// document fetches what everybody may know and keep.
func document(t testing.TB, s *testserver.Server, path string) map[string]any {
	t.Helper()
	resp := s.Do(t, "GET", path, "", "Origin", "https://elsewhere.example")
	wantStatus(t, resp, http.StatusOK)
	wantHeader(t, resp, "Content-Type", jsonType)
	wantHeader(t, resp, "Cache-Control", "public, max-age=300")
	wantHeader(t, resp, "Access-Control-Allow-Origin", "*")
	var members map[string]any
	if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &members); err != nil {
		t.Fatal(err)
	}
	wantNoUpstream(t, s)
	return members
}

func wantDocument(t testing.TB, got map[string]any, want string) {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal([]byte(want), &members); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, members) {
		t.Errorf("the document is %v, want %v", got, members)
	}
}

func TestTheServerDescribesItself(t *testing.T) {
	s := run(t, site("", h2c, "client_credentials\nreverse_proxy {{upstream}}"))
	bothVersions(t, s, func(t *testing.T) {
		wantDocument(t, document(t, s, "/.well-known/oauth-authorization-server"), s.Expand(`{
			"issuer": "{{url}}",
			"token_endpoint": "{{url}}/api/v0/oauth/token",
			"jwks_uri": "{{url}}/api/v0/oauth/jwks",
			"grant_types_supported": ["client_credentials"],
			"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
			"token_endpoint_auth_signing_alg_values_supported": ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"],
			"introspection_endpoint": "{{url}}/api/v0/oauth/introspect",
			"introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
			"introspection_endpoint_auth_signing_alg_values_supported": ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"],
			"revocation_endpoint": "{{url}}/api/v0/oauth/revoke",
			"revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
			"revocation_endpoint_auth_signing_alg_values_supported": ["ES256", "EdDSA", "Ed25519", "RS256", "PS256"]
		}`))
	})
	wantRefused(t, s, s.Do(t, "GET", "/.well-known/oauth-authorization-server/other", ""), noToken)
	wantRefused(t, s, s.Do(t, "GET", "/.well-known/openid-configuration", ""), noToken)
}

func TestPublicDocumentsCanBeReadAndNothingElse(t *testing.T) {
	s := run(t, resources)
	stock := *s
	stock.Host = "stock.localhost"
	for path, s := range map[string]*testserver.Server{
		"/.well-known/oauth-authorization-server":     s,
		"/.well-known/oauth-protected-resource":       s,
		"/.well-known/oauth-protected-resource/items": &stock,
		"/api/v0/oauth/jwks":                          s,
		"/api/v0/openapi.json":                        s,
	} {
		t.Run(path, func(t *testing.T) {
			for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
				resp := s.Do(t, method, path, "{}")
				wantProblem(t, resp, http.StatusMethodNotAllowed, "GET, HEAD")
				wantHeader(t, resp, "Allow", "GET, HEAD")
			}
			length := s.Do(t, "GET", path, "").Header.Get("Content-Length")
			resp := s.Do(t, "HEAD", path, "")
			wantStatus(t, resp, http.StatusOK)
			wantHeader(t, resp, "Content-Length", length)
			wantHeader(t, s.Do(t, "GET", path, "", "Accept", "text/json"), "Content-Type", "text/json")
		})
	}
	wantNoUpstream(t, s)
}

// RFC 8414 section 3.1: the well-known path stands between the issuer's host
// and its path.
func TestTheMetadataRespectsTheIssuersPath(t *testing.T) {
	s := run(t, strings.Replace(site("", "", "client_credentials {\nbase_path /machines\n}\nreverse_proxy {{upstream}}"),
		"issuer {{url}}", "issuer {{url}}/tenants/a", 1))
	metadata := document(t, s, "/.well-known/oauth-authorization-server/tenants/a")
	if metadata["issuer"] != s.URL("/tenants/a") || metadata["token_endpoint"] != s.URL("/machines/oauth/token") {
		t.Errorf("the metadata is %v", metadata)
	}
	for _, path := range []string{"", "/", "/tenants", "/tenants/b", "/tenants/a/b"} {
		wantRefused(t, s, s.Do(t, "GET", "/.well-known/oauth-authorization-server"+path, ""), noToken)
	}
	wantRefused(t, s, s.Do(t, "GET", "/tenants/a/.well-known/oauth-authorization-server", ""), noToken)
}

func TestMCPClientsGetWhatTheyInsistOn(t *testing.T) {
	s := run(t, site("", "", "client_credentials {\nmcp_compat\n}\nreverse_proxy {{upstream}}"))
	metadata := document(t, s, "/.well-known/oauth-authorization-server")
	for name, want := range map[string]any{
		"authorization_endpoint":           s.URL("/api/v0/oauth/authorize"),
		"response_types_supported":         []any{},
		"code_challenge_methods_supported": []any{"S256"},
	} {
		if !reflect.DeepEqual(metadata[name], want) {
			t.Errorf("%s is %v, want %v", name, metadata[name], want)
		}
	}
	resp := s.Do(t, "GET", "/api/v0/oauth/authorize?response_type=code&client_id=x&redirect_uri=https://evil.example", "")
	wantTokenError(t, resp, http.StatusBadRequest, "unsupported_response_type")
	wantHeader(t, resp, "Location", "")

	s = run(t, testserver.Simple)
	wantRefused(t, s, s.Do(t, "GET", "/api/v0/oauth/authorize", ""), noToken)
}

// verifyByKeySet verifies a token as another server would: by the JWKS alone.
func verifyByKeySet(t testing.TB, s *testserver.Server, token string) error {
	t.Helper()
	var set jose.JSONWebKeySet
	text, err := json.Marshal(document(t, s, "/api/v0/oauth/jwks"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &set); err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA, jose.RS256})
	if err != nil {
		t.Fatal(err)
	}
	keys := set.Key(parsed.Headers[0].KeyID)
	if len(keys) != 1 {
		t.Fatalf("%d keys of the token's kid", len(keys))
	}
	if keys[0].Use != "sig" || keys[0].Algorithm != parsed.Headers[0].Algorithm || !keys[0].IsPublic() || !keys[0].Valid() {
		t.Errorf("the key is %+v", keys[0])
	}
	var claims jwt.Claims
	if err := parsed.Claims(keys[0], &claims); err != nil {
		return err
	}
	return claims.Validate(jwt.Expected{Issuer: s.URL(""), AnyAudience: jwt.Audience{s.URL("")}, Time: time.Now()})
}

func TestOthersCanVerifyTokensByTheKeySetAlone(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA", "RS256"} {
		t.Run(alg, func(t *testing.T) {
			k := runKeyed(t, alg, "client_credentials\nreverse_proxy {{upstream}}")
			token := k.Token(t, k.client)
			if err := verifyByKeySet(t, k.Server, token); err != nil {
				t.Errorf("the token is refused: %v", err)
			}
			parts := strings.Split(token, ".")
			forged := parts[0] + "." + b64([]byte(k.claims("scope", `"admin"`))) + "." + parts[2]
			if err := verifyByKeySet(t, k.Server, forged); err == nil {
				t.Error("a tampered token is accepted")
			}
		})
	}
}

func TestTheKeySetHasNothingPrivate(t *testing.T) {
	s := run(t, testserver.Simple)
	for _, key := range document(t, s, "/api/v0/oauth/jwks")["keys"].([]any) {
		for name := range key.(map[string]any) {
			if !slices.Contains([]string{"kty", "kid", "use", "alg", "crv", "x", "y"}, name) {
				t.Errorf("the key shows %s", name)
			}
		}
	}
}

func TestTheKeySetKeepsAReplacedKeyWhileItsTokensLive(t *testing.T) {
	k := runKeyed(t, "ES256", "client_credentials\nreverse_proxy {{upstream}}")
	old := k.Token(t, k.client)
	writeKey(t, filepath.Join(k.Dir, "other.pem"), newKey(t, "EdDSA"))
	k.Run(t, site("signing_key {{dir}}/other.pem", "", "client_credentials\nreverse_proxy {{upstream}}"))
	for _, token := range []string{old, k.Token(t, k.client)} {
		if err := verifyByKeySet(t, k.Server, token); err != nil {
			t.Error(err)
		}
	}
	keys := document(t, k.Server, "/api/v0/oauth/jwks")["keys"].([]any)
	if len(keys) != 2 || keys[0].(map[string]any)["alg"] != "EdDSA" { // the one that signs comes first
		t.Errorf("the keys are %v", keys)
	}
}

package blackbox_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// simple runs one site with the endpoints, the guard and an upstream.
func simple(t *testing.T) *testserver.Server {
	t.Helper()
	s := testserver.New(t)
	s.Run(t, testserver.Simple)
	return s
}

// admin returns a token that manages credentials.
func admin(t *testing.T, s *testserver.Server) string {
	t.Helper()
	return s.Token(t, s.CreateWith(t, issuer.ScopeWrite, "items:read"))
}

func basic(pair string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) }

const formType = "application/x-www-form-urlencoded"

// decode reads a token without verifying it.
func decode(t *testing.T, token string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	for n, target := range []*map[string]any{&header, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(parts[n])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, target); err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

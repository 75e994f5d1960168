package handler_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/golang-jwt/jwt/v5"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// tokenAsker asks the token endpoint without a network, and makes nothing anew
// for it: what is allocated is the endpoint's own.
type tokenAsker struct {
	endpoint caddyhttp.MiddlewareHandler
	request  *http.Request
	body     *strings.Reader
	header   http.Header
	status   int
}

func (a *tokenAsker) Header() http.Header              { return a.header }
func (a *tokenAsker) WriteHeader(status int)           { a.status = status }
func (a *tokenAsker) Write(answer []byte) (int, error) { return len(answer), nil }
func (a *tokenAsker) Read(p []byte) (int, error)       { return a.body.Read(p) }
func (a *tokenAsker) Close() error                     { return nil }
func noNext(http.ResponseWriter, *http.Request) error  { return errors.New("not the endpoint's") }

func newTokenAsker(t testing.TB, endpoint caddyhttp.MiddlewareHandler, contentType, authorization, body string) *tokenAsker {
	t.Helper()
	a := &tokenAsker{endpoint: endpoint, body: strings.NewReader(body), header: http.Header{}}
	a.request = httptest.NewRequestWithContext(t.Context(), "POST", tokenPath, a)
	a.request.TLS = new(tls.ConnectionState)
	a.request.Header.Set("Content-Type", contentType)
	a.request.Header.Set("Accept", "*/*")
	if authorization != "" {
		a.request.Header.Set("Authorization", authorization)
	}
	return a
}

func (a *tokenAsker) ask(t testing.TB) {
	t.Helper()
	if _, err := a.body.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	clear(a.header)
	err := a.endpoint.ServeHTTP(a, a.request, caddyhttp.HandlerFunc(noNext))
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("status %d, %v", a.status, err)
	}
}

// tokenAskers are the usual ways to ask a server on Badger for a token: by the
// dialect of RFC 6749, and by the original one.
func tokenAskers(t testing.TB) (byBasic, inBody, original *tokenAsker) {
	t.Helper()
	s := run(t, strings.Replace(testserver.Simple, "store badger", "store counted", 1))
	c := s.CreateWith(t, "items:read", "items:write")
	for strings.Contains(c.Secret, "+") { // which HTTP Basic has two readings of
		c = s.CreateWith(t, "items:read", "items:write")
	}
	endpoint := new(handler.ClientCredentials)
	if err := endpoint.Provision(caddy.ActiveContext()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = endpoint.Cleanup() })
	return newTokenAsker(t, endpoint, formType, basic(c.ClientID, c.Secret), byGrant),
		newTokenAsker(t, endpoint, formType, "", byGrant+"&"+form("client_id", c.ClientID, "client_secret", c.Secret)),
		newTokenAsker(t, endpoint, jsonType, "", fmt.Sprintf(`{"GrantType":"client_credentials","ClientId":%q,"ClientSecret":%q}`, c.ClientID, c.Secret))
}

func BenchmarkTokenEndpoint(b *testing.B) {
	byBasic, inBody, original := tokenAskers(b)
	for _, way := range []struct {
		name string
		*tokenAsker
	}{
		{"Basic", byBasic},
		{"body", inBody},
		{"original", original},
		{"least", newTokenAsker(b, newLeast(b), formType, basic("client", "secret"), byGrant)},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				way.ask(b)
			}
		})
	}
}

// The store would bound how many tokens there can be: a commit syncs a disk.
func TestATokenRequestWritesNothingAndReadsOnceFromTheStore(t *testing.T) {
	byBasic, inBody, original := tokenAskers(t)
	before, read := commits.Load(), readings.Load()
	for range 10 {
		for _, asker := range []*tokenAsker{byBasic, inBody, original} {
			asker.ask(t)
		}
	}
	if n := commits.Load() - before; n != 0 {
		t.Errorf("%d commits for 30 tokens", n)
	}
	if n := readings.Load() - read; n != 1 {
		t.Errorf("%d readings of the store for 30 tokens of one credential, want 1", n)
	}
}

// Caddy edits header values in place.
func TestNoHeaderValueOfATokenGrowsIntoAnother(t *testing.T) {
	asker, _, _ := tokenAskers(t)
	asker.ask(t)
	for name, values := range asker.header {
		if len(values) != 1 || cap(values) != 1 || name != http.CanonicalHeaderKey(name) {
			t.Errorf("%s: %q, with room for %d", name, values, cap(values))
		}
	}
	if len(asker.header) < 5 {
		t.Errorf("the header is %v", asker.header)
	}
}

// least is what a token must cost, for comparison: one HMAC, one signature and
// the JSON, as one writes it at first.
type least struct{ key *ecdsa.PrivateKey }

func newLeast(t testing.TB) *least { return &least{newKey(t, "ES256").(*ecdsa.PrivateKey)} }

func (l *least) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	user, password, _ := r.BasicAuth()
	if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != "client_credentials" {
		return caddyhttp.Error(http.StatusBadRequest, err)
	}
	r.Form, r.PostForm = nil, nil
	mac := hmac.New(sha256.New, []byte("0123456789abcdef0123456789abcdef"))
	mac.Write([]byte(user + password))
	if hmac.Equal(mac.Sum(nil), []byte(user)) {
		return caddyhttp.Error(http.StatusUnauthorized, nil)
	}
	now := jwt.NewNumericDate(time.Now())
	signed, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.RegisteredClaims{
		Issuer: "https://issuer.example", Subject: user, Audience: jwt.ClaimStrings{"https://api.example"},
		IssuedAt: now, ExpiresAt: now, ID: "0123456789abcdef012345",
	}).SignedString(l.key)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	return json.NewEncoder(w).Encode(map[string]any{"access_token": signed, "token_type": "Bearer", "expires_in": 3600})
}

// counted is Badger, and counts what is asked of it.
type counted struct{ badger.Badger }

var readings, commits atomic.Int64

func init() { caddy.RegisterModule(new(counted)) }

func (*counted) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "client_credentials.stores.counted", New: func() caddy.Module { return new(counted) }}
}

func (c *counted) Identity() string { return "counted " + c.Badger.Identity() }

func (c *counted) Open(ctx context.Context) (store.Store, error) {
	opened, err := c.Badger.Open(ctx)
	return countedStore{opened}, err
}

type countedStore struct{ store.Store }

func (c countedStore) Get(ctx context.Context, key string) ([]byte, error) {
	readings.Add(1)
	return c.Store.Get(ctx, key)
}

func (c countedStore) Commit(ctx context.Context, batch store.Batch) error {
	commits.Add(1)
	return c.Store.Commit(ctx, batch)
}

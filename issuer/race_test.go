package issuer

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/golang-jwt/jwt/v5"

	"github.com/clientcredentials/caddy-client-credentials/internal/bytecache"
	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// openTestStore opens a store on disk that closes with the test.
func openTestStore(t testing.TB, dir string) store.Store {
	t.Helper()
	engine := &badger.Badger{Path: dir}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	st, err := engine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// newTestIssuer returns an issuer that keeps so many credentials in memory.
func newTestIssuer(t testing.TB, st store.Store, lifetime time.Duration, recent int) *Issuer {
	t.Helper()
	reg, err := openRegistry(t.Context(), st, nil)
	if err != nil {
		t.Fatal(err)
	}
	reg.resizeCaches(DefaultTokenCache)
	resize(t, reg.credentials.packed, int64(recent)<<10)
	reg.credentials.decoded = reg.credentials.decoded[:2]
	t.Cleanup(reg.close)
	policy := Policy{Issuer: "https://issuer.test", Audience: "https://api.test", TokenLifetime: lifetime}
	iss, err := openIssuer(t.Context(), policy, reg, testKeyPolicy(t), fetch.New(true))
	if err != nil {
		t.Fatal(err)
	}
	return iss
}

func testKeyPolicy(t testing.TB) keyPolicy {
	return keyPolicy{master: testMaster(t), algorithm: "ES256"}
}

func testMaster(t testing.TB) masterKey {
	t.Helper()
	key, err := parseMasterKey("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// clientWithToken creates a credential, and has a token issued for it.
func clientWithToken(t *testing.T, iss *Issuer) (c *Credential, secret, token string) {
	t.Helper()
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatal(err)
	}
	return c, secret, issued.Token
}

func tokenRequest(clientID, secret string) TokenRequest {
	return TokenRequest{GrantType: grantType, ClientAuthentication: ClientAuthentication{ClientID: clientID, Secrets: []string{secret}}}
}

// hookedStore lets a test do something between a reading of the store and its
// use.
type hookedStore struct {
	store.Store
	afterGet    func(key string)
	afterCommit func() error
}

func (h *hookedStore) Commit(ctx context.Context, batch store.Batch) error {
	err := h.Store.Commit(ctx, batch)
	if err == nil && h.afterCommit != nil {
		err = h.afterCommit()
	}
	return err
}

func (h *hookedStore) Get(ctx context.Context, key string) ([]byte, error) {
	value, err := h.Store.Get(ctx, key)
	if h.afterGet != nil {
		h.afterGet(key)
	}
	return value, err
}

func TestARevocationDuringALoadIsNotLost(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	c, secret, token := clientWithToken(t, iss)
	forget(iss, c.ClientID)

	// The credential is read as active, then revoked, and only then does the
	// reader go on with what it read.
	var done atomic.Bool
	hooked.afterGet = func(key string) {
		if strings.HasPrefix(key, credentialPrefix) && done.CompareAndSwap(false, true) {
			if err := iss.Revoke(context.Background(), "", c.ClientID); err != nil {
				t.Error(err)
			}
		}
	}
	_, err := iss.Verify(t.Context(), token)
	var refused *Refusal
	if !errors.As(err, &refused) || refused.Reason != "revoked" {
		t.Fatalf("Verify = %v, want a refusal", err)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
		t.Fatal("a revoked credential got a token")
	}
}

func resize(t testing.TB, c *bytecache.Cache, size int64) {
	t.Helper()
	if err := c.Resize(size); err != nil {
		t.Fatal(err)
	}
}

// empty has a cache forget all.
func empty(c *bytecache.Cache) {
	size := c.Size()
	c.Close()
	_ = c.Resize(size) // which it had before
}

// forget drops a credential.
func (c *credentialCache) forget(clientID string) {
	for n := range c.decoded {
		if known := c.decoded[n].Load(); known != nil && known.ClientID == clientID {
			c.decoded[n].Store(nil)
		}
	}
	c.packed.Drop(clientID)
}

// forget makes the registry drop what it remembers of a credential.
func forget(iss *Issuer, clientID string) {
	iss.registry.credentials.forget(clientID)
	empty(iss.registry.verified)
}

func TestAMintThatARevocationOvertakesIssuesNothing(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	// A signature takes as long as it takes: a key that revokes while it signs
	// stands for the slowest one.
	signer := &meddlingSigner{t: t, meddle: func() error { return iss.Revoke(context.Background(), "", c.ClientID) }}
	iss.keys().signing.method = signer
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
		t.Fatal("a token left for a credential that was revoked while it was signed")
	}
	if !signer.signed {
		t.Fatal("nothing was signed: the test tests nothing")
	}
}

func TestACachedTokenSeesARevocationWhoeverElseForgotTheCredential(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 1)
	c, _, token := clientWithToken(t, iss)
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	iss.registry.credentials.forget(c.ClientID)
	if err := iss.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Verify(t.Context(), token); err == nil {
		t.Fatal("a cached token outlived its credential")
	}
}

// 32 clients, 8 places in memory, and everything at once: loads, mints, cache
// fills, evictions and revocations. Whoever has seen a
// revocation return must never see a token of that client accepted.
func TestNoTokenIsAcceptedAfterItsCredentialWasRevoked(t *testing.T) {
	const clients, workers, rounds = 32, 8, 6
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir()), afterGet: func(string) {
		if rand.IntN(4) == 0 {
			time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
		}
	}}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	resize(t, iss.registry.verified, 16<<10)
	var accepted, refusedTokens, minted atomic.Int64
	for range rounds {
		type client struct {
			id, secret string
			revoked    atomic.Bool
			tokens     sync.Map
			n          atomic.Int64
		}
		all := make([]*client, clients)
		for n := range all {
			c, secret, err := iss.Create(t.Context(), Draft{})
			if err != nil {
				t.Fatal(err)
			}
			all[n] = &client{id: c.ClientID, secret: secret}
		}
		var left atomic.Int64
		left.Store(clients)
		var work, revokers sync.WaitGroup
		for range workers {
			work.Go(func() {
				for left.Load() > 0 {
					c := all[rand.IntN(clients)]
					gone := c.revoked.Load()
					if rand.IntN(3) == 0 || c.n.Load() == 0 {
						issued, err := iss.Issue(context.Background(), tokenRequest(c.id, c.secret))
						if err == nil {
							if gone {
								t.Error("a revoked credential got a token")
							}
							c.tokens.Store(c.n.Add(1)-1, issued.Token)
							minted.Add(1)
						}
						continue
					}
					token, ok := c.tokens.Load(rand.Int64N(c.n.Load()))
					if !ok {
						continue
					}
					if _, err := iss.Verify(context.Background(), token.(string)); err != nil {
						refusedTokens.Add(1)
						continue
					}
					accepted.Add(1)
					if gone {
						t.Error("a token was accepted after its credential was revoked")
					}
				}
			})
		}
		for _, c := range all {
			revokers.Go(func() {
				time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
				if err := iss.Revoke(context.Background(), "", c.id); err != nil {
					t.Error(err)
				}
				c.revoked.Store(true)
				// From here on, nobody may get through, by any path.
				for range 20 {
					if n := c.n.Load(); n > 0 {
						if token, ok := c.tokens.Load(rand.Int64N(n)); ok {
							if _, err := iss.Verify(context.Background(), token.(string)); err == nil {
								t.Error("a token was accepted after its credential was revoked")
							}
						}
					}
				}
				left.Add(-1)
			})
		}
		revokers.Wait()
		work.Wait()
	}
	t.Logf("%d tokens minted, %d uses accepted before and %d refused after", minted.Load(), accepted.Load(), refusedTokens.Load())
	if accepted.Load() < 100 || refusedTokens.Load() < 100 {
		t.Error("too little happened for the test to mean anything")
	}
}

// meddlingSigner signs as ES256 does, and does something else before it returns.
type meddlingSigner struct {
	t      *testing.T
	meddle func() error
	signed bool
}

func (m *meddlingSigner) Alg() string { return jwt.SigningMethodES256.Alg() }

func (m *meddlingSigner) Verify(signed string, signature []byte, key any) error {
	return jwt.SigningMethodES256.Verify(signed, signature, key)
}

func (m *meddlingSigner) Sign(signed string, key any) ([]byte, error) {
	signature, err := jwt.SigningMethodES256.Sign(signed, key)
	if err := m.meddle(); err != nil {
		m.t.Error(err)
	}
	m.signed = true
	return signature, err
}

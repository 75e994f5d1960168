package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Revocations come in bursts, such as after a leak: one sweep must take all
// that are due, however many.
func TestASweepRemovesAllRevocationsOfTokensThatHaveExpired(t *testing.T) {
	const due = sweepBatch + 1
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	now := time.Now()
	var batch store.Batch
	for n := range due + 1 {
		key, until := revokedTokenKey(newClientID(), fmt.Sprint(n)), now.Add(-time.Second)
		if n == due {
			until = now.Add(time.Second)
		}
		batch.Puts = append(batch.Puts, store.Record{Key: key, Value: []byte(`{}`)}, store.Record{Key: revokedUntilKey(key, until)})
	}
	if err := st.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if err := iss.registry.sweep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if left := keys(t, st, "revoked_"); !slices.Equal(left, []string{batch.Puts[2*due].Key, batch.Puts[2*due+1].Key}) {
		t.Errorf("%d records are left, want the two of the token that is not due", len(left))
	}
}

// keys returns those in the store that begin so.
func keys(t testing.TB, st store.Store, prefix string) (found []string) {
	t.Helper()
	err := st.Scan(t.Context(), prefix, func(key string, _ []byte) error {
		found = append(found, key)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestARevokedCredentialStaysRevokedThoughMemoryForgetsIt(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	c, secret, token := clientWithToken(t, iss)
	if err := iss.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	forget(iss, c.ClientID)
	if _, err := iss.Verify(t.Context(), token); !isRefusal(err) {
		t.Errorf("its token: %v, want a refusal", err)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
		t.Error("it gets a token")
	}
}

// A disk that fails behind a write leaves a revocation that nobody was told of.
func TestARevocationThatOnlyTheStoreKnowsCountsWhenItIsTriedAgain(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	c, _, token := clientWithToken(t, iss)
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	if err := newTestIssuer(t, st, time.Hour, 100).Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	if err := iss.Revoke(t.Context(), "", c.ClientID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Revoke = %v, want ErrNotFound", err)
	}
	if _, err := iss.Verify(t.Context(), token); !isRefusal(err) {
		t.Errorf("Verify = %v, want a refusal", err)
	}
}

// The same for many at once, and for one that the configuration declares no more:
// whoever tries again finds nothing to revoke.
func TestRevocationsThatTheDiskHasTakenBeforeItFailedCount(t *testing.T) {
	const declaredSecret = "iObGKtihdEScOmDiZxZ+6Q=="
	declared := []DeclaredCredential{{ClientID: "orders", SecretHashes: []string{HashSecret(declaredSecret)}}}
	for name, revoke := range map[string]func(iss *Issuer, c *Credential) error{
		"one": func(iss *Issuer, c *Credential) error { return iss.Revoke(context.Background(), "", c.ClientID) },
		"of an account": func(iss *Issuer, c *Credential) error {
			_, err := iss.RevokeAll(context.Background(), "", Selection{Account: c.Account}, "", ignore)
			return err
		},
		"declared": func(iss *Issuer, _ *Credential) error { return iss.declare(context.Background(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
			iss := newTestIssuer(t, hooked, time.Hour, 100)
			c, secret, err := iss.Create(t.Context(), Draft{Account: "shop"})
			if err != nil {
				t.Fatal(err)
			}
			clientID := c.ClientID
			if name == "declared" {
				clientID, secret = declared[0].ClientID, declaredSecret
				if err := iss.declare(t.Context(), declared); err != nil {
					t.Fatal(err)
				}
			}
			issued, err := iss.Issue(t.Context(), tokenRequest(clientID, secret))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := iss.Verify(t.Context(), issued.Token); err != nil {
				t.Fatal(err)
			}
			broken := errors.New("the disk is broken")
			hooked.afterCommit = func() error { return broken }
			if err := revoke(iss, c); !errors.Is(err, broken) {
				t.Fatalf("revoking = %v, want %v", err, broken)
			}
			if _, err := iss.Verify(t.Context(), issued.Token); !isRefusal(err) {
				t.Errorf("Verify = %v, want a refusal", err)
			}
		})
	}
}

func ignore(context.Context, *Credential) {}

func TestARevokedTokenIsForgottenOnlyWhenItHasExpired(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	c, _, token := clientWithToken(t, iss)
	for range 2 {
		if _, err := iss.RevokeToken(t.Context(), Caller{Credential: c}, token); err != nil {
			t.Fatal(err)
		}
	}
	forget(iss, c.ClientID)
	// The clock has been ahead meanwhile, and was set back.
	if err := iss.registry.sweep(t.Context(), time.Now().Add(time.Hour+clockSetBack-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Verify(t.Context(), token); !isRefusal(err) || len(keys(t, st, "revoked_")) != 2 {
		t.Errorf("a revoked token: %v, want a refusal; its records: %q", err, keys(t, st, "revoked_"))
	}
	if err := iss.registry.sweep(t.Context(), time.Now().Add(time.Hour+clockSetBack+time.Minute)); err != nil {
		t.Fatal(err)
	}
	if left := keys(t, st, "revoked_"); len(left) > 0 {
		t.Errorf("%q are kept though the token has expired", left)
	}
}

// What the server can't read it can't rule out.
func TestATokenIsNotAcceptedWhileItsRevocationCannotBeReadOrRuledOut(t *testing.T) {
	failing := &failingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, failing, time.Hour, 100)
	_, _, token := clientWithToken(t, iss)
	kept, _, _ := iss.registry.verified.Get(token)
	for name, forgets := range map[string]func(a *Access){
		"not remembered":         func(*Access) { empty(iss.registry.verified) },
		"remembered and changed": func(a *Access) { iss.registry.changes[a.group].Add(1) },
	} {
		var a Access
		packedToken(kept).unpack(iss, &a)
		forgets(&a)
		for _, prefix := range []string{revokedTokenPrefix, credentialPrefix} {
			iss.registry.credentials.forget(a.Token.ClientID)
			failing.prefix = prefix
			if _, err := iss.Verify(t.Context(), token); err == nil || isRefusal(err) {
				t.Errorf("%s: Verify = %v while %s can't be read, want that it can't tell", name, err, prefix)
			}
		}
		failing.prefix = ""
		if _, err := iss.Verify(t.Context(), token); err != nil {
			t.Errorf("%s: Verify = %v once it can be read", name, err)
		}
	}
}

// failingStore does not read what is kept under a prefix.
type failingStore struct {
	store.Store
	prefix string
}

func (f *failingStore) Get(ctx context.Context, key string) ([]byte, error) {
	if f.prefix != "" && strings.HasPrefix(key, f.prefix) {
		return nil, errors.New("the disk fails")
	}
	return f.Store.Get(ctx, key)
}

// A change is for one credential; another one of its group, whose tokens are
// looked at anew, stays as good as it was.
func TestAChangeOfOneCredentialLeavesItsGroupAlone(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	c, secret, token := clientWithToken(t, iss)
	a, err := iss.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	iss.registry.apply(&Credential{ClientID: c.ClientID})
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Errorf("its token: %v", err)
	}
	if kept, _, _ := iss.registry.verified.Get(token); packedToken(kept).number(packedChanges) != a.changes+1 {
		t.Error("what was read then is not remembered: it is read each time")
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err != nil {
		t.Errorf("a token for it: %v", err)
	}
}

// Otherwise the metrics and the log would show a failure of the store.
func TestAClientThatGoesAwayIsNoFailureOfTheStore(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	_, _, token := clientWithToken(t, iss)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := iss.Verify(gone, token); err != nil {
		t.Errorf("Verify = %v of a token that was issued here", err)
	}
}

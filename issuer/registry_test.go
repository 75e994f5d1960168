package issuer

import (
	"fmt"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Revocations come in bursts, such as after a leak: one sweep must take all
// that are due, however many.
func TestASweepForgetsAllRevokedTokensThatHaveExpired(t *testing.T) {
	const due = 2*sweepBatch + 1
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	now := time.Now()
	var batch store.Batch
	for n := range due + 1 {
		key := revokedTokenKey(newClientID(), fmt.Sprint(n))
		until := now.Add(-time.Minute)
		if n == due {
			until = now.Add(time.Minute)
		}
		iss.registry.revokedTokens.add(key, until)
		batch.Puts = append(batch.Puts, store.Record{Key: key, Value: []byte(`{}`)})
	}
	if err := st.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if err := iss.registry.sweep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	var left []string
	err := st.Scan(t.Context(), revokedTokenPrefix, func(key string, _ []byte) error {
		left = append(left, key)
		return nil
	})
	if err != nil || len(left) != 1 || left[0] != batch.Puts[due].Key || len(iss.registry.revokedTokens.byID) != 1 {
		t.Errorf("%d are left in the store and %d in memory, %v, want the one that is not due",
			len(left), len(iss.registry.revokedTokens.byID), err)
	}
}

func TestARevokedCredentialStaysRevokedThoughMemoryForgetsIt(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatal(err)
	}
	if err := iss.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	forget(t, iss, c.ClientID)
	if _, err := iss.Verify(t.Context(), issued.Token); !isRefusal(err) {
		t.Errorf("its token: %v, want a refusal", err)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
		t.Error("it gets a token")
	}
}

func TestARevokedTokenIsForgottenOnlyWhenItHasExpired(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := iss.RevokeToken(t.Context(), Caller{Credential: c}, issued.Token); err != nil {
			t.Fatal(err)
		}
	}
	marks := func() (n int) {
		if err := st.Scan(t.Context(), revokedTokenPrefix, func(string, []byte) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	forget(t, iss, c.ClientID)
	if err := iss.registry.sweep(t.Context(), time.Now().Add(time.Hour+clockMargin/2)); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Verify(t.Context(), issued.Token); !isRefusal(err) || marks() != 1 {
		t.Errorf("a revoked token: %v, with %d marks in the store, want a refusal and one", err, marks())
	}
	if err := iss.registry.sweep(t.Context(), time.Now().Add(time.Hour+2*clockMargin)); err != nil {
		t.Fatal(err)
	}
	if left := len(iss.registry.revokedTokens.byID); left != 0 || marks() != 0 || iss.registry.revokedTokens.of(c.ClientID) {
		t.Errorf("%d tokens in memory and %d in the store are remembered though they have expired", left, marks())
	}
}

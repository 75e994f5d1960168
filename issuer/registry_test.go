package issuer

import (
	"fmt"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Revocations come in bursts, such as after a leak: one sweep must take all
// that are due, however many.
func TestRevocationsAreForgottenWhenNoTokenNeedsThemAndStayInTheStore(t *testing.T) {
	const due = 2*sweepBatch + 1
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	kept, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	if err := iss.Revoke(t.Context(), "", kept.ClientID); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	var batch store.Batch
	for n := range due {
		clientID := fmt.Sprintf("%032x", n)
		iss.registry.remember(clientID, now.Add(-time.Second))
		batch.Puts = append(batch.Puts, store.Record{Key: revocationKey(clientID), Value: []byte(`{}`)})
	}
	if err := st.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if err := iss.registry.sweep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	var left []string
	err = st.Scan(t.Context(), revokedPrefix, func(key string, _ []byte) error {
		left = append(left, key)
		return nil
	})
	if err != nil || len(left) != 1 || left[0] != revocationKey(kept.ClientID) || len(iss.registry.revoked) != 1 {
		t.Errorf("%d marks are left in the store and %d in memory, %v, want the one that is not due",
			len(left), len(iss.registry.revoked), err)
	}

	if err := iss.registry.sweep(t.Context(), now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if len(iss.registry.revoked) != 0 {
		t.Error("a revocation is remembered though its last token has expired")
	}
	forget(t, iss, kept.ClientID)
	if _, err := iss.Issue(t.Context(), tokenRequest(kept.ClientID, secret)); err == nil {
		t.Error("a credential came back when its revocation was forgotten in memory")
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

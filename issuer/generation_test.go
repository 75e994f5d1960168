package issuer

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestANewGenerationEndsTheTokensOfAllCredentialsAndNothingElse(t *testing.T) {
	const clients = 500 // more than one batch
	dir := t.TempDir()
	st := openTestStore(t, dir)
	iss := newTestIssuer(t, st, time.Hour, 10)
	ids, secrets, tokens := make([]string, clients), make([]string, clients), make([]string, clients)
	for n := range clients {
		c, secret, token := clientWithToken(t, iss)
		ids[n], secrets[n], tokens[n] = c.ClientID, secret, token
	}
	if err := iss.Revoke(t.Context(), "", ids[0]); err != nil {
		t.Fatal(err)
	}
	if ended, err := iss.endAllTokens(t.Context()); err != nil || ended != clients {
		t.Fatalf("endAllTokens = %d, %v, want %d", ended, err, clients)
	}
	check := func(iss *Issuer) {
		t.Helper()
		for n := range clients {
			if _, err := iss.Verify(t.Context(), tokens[n]); !isRefusal(err) {
				t.Errorf("an earlier token: %v, want a refusal", err)
			}
			issued, err := iss.Issue(t.Context(), tokenRequest(ids[n], secrets[n]))
			if revoked := n == 0; revoked != (err != nil) {
				t.Fatalf("a token request of credential %d: %v", n, err)
			}
			if n == 0 {
				continue
			}
			if _, err := iss.Verify(t.Context(), issued.Token); err != nil {
				t.Errorf("a new token: %v", err)
			}
		}
	}
	check(iss)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	check(newTestIssuer(t, openTestStore(t, dir), time.Hour, 10))
}

// The history that a restore has given up has issued tokens, too: under the
// epochs that follow the one of the backup.
func TestAGenerationReachesNoEpochOfAnotherHistory(t *testing.T) {
	now := time.Now()
	c := &Credential{Epoch: 7, Version: 9}
	c.endTokens(now)
	if c.Epoch < 7+1e6 || c.Epoch >= 1<<53 || c.Version != 10 {
		t.Errorf("epoch %d, version %d", c.Epoch, c.Version)
	}
	later := &Credential{Epoch: c.Epoch + 1000} // of the same history, a thousand revocations later
	restored := &Credential{Epoch: 7}           // from the same backup, a second later
	restored.endTokens(now.Add(time.Second))
	if restored.Epoch <= later.Epoch {
		t.Errorf("epoch %d was reached before", restored.Epoch)
	}
	back := &Credential{Epoch: c.Epoch}
	back.endTokens(now.Add(-time.Hour)) // the clock was set back
	if back.Epoch <= c.Epoch {
		t.Errorf("epoch %d after %d", back.Epoch, c.Epoch)
	}
}

func TestAGenerationAndRevocationsAtOnceLoseNeither(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	c, secret, token := clientWithToken(t, iss)
	_, _, other := clientWithToken(t, iss)

	// It is revoked after the generation has read its record.
	var revoked atomic.Bool
	hooked.afterGet = func(key string) {
		if strings.HasSuffix(key, c.ClientID) && revoked.CompareAndSwap(false, true) {
			if err := iss.Revoke(context.Background(), "", c.ClientID); err != nil {
				t.Error(err)
			}
		}
	}
	if ended, err := iss.endAllTokens(t.Context()); err != nil || ended != 2 || !revoked.Load() {
		t.Fatalf("endAllTokens = %d, %v", ended, err)
	}
	for _, token := range []string{token, other} {
		if _, err := iss.Verify(t.Context(), token); !isRefusal(err) {
			t.Errorf("an earlier token: %v, want a refusal", err)
		}
	}
	again := newTestIssuer(t, hooked, time.Hour, 100) // memory may know what the store does not
	for _, iss := range []*Issuer{iss, again} {
		if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
			t.Error("the revocation was lost")
		}
	}
}

package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func wantLive(t *testing.T, iss *Issuer, c *Credential, secrets map[string]bool) {
	t.Helper()
	for secret, want := range secrets {
		_, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
		refused, _ := errors.AsType[*TokenError](err)
		if err != nil && (refused == nil || refused.Reason != "wrong secret") || want != (err == nil) {
			t.Errorf("a secret that should work, %v: %v", want, err)
		}
	}
}

// A record as the first releases wrote it.
func TestASecretOfAnEarlierReleaseIsOneOfMany(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 8)
	const clientID, secret = "ac9ab00ff44745d199981506313cfa72", "iObGKtihdEScOmDiZxZ+6Q=="
	hash, _ := iss.keys().hash(clientID, secret).Hash.MarshalText()
	record := fmt.Sprintf(`{"id":"4eb40c8b-76d9-4ad3-9580-d327bbd99d15","client_id":%q,"account":"default",`+
		`"created":"2024-06-21T15:19:05.319Z","epoch":1,"version":1,"secrets":[{"pepper":1,"hash":%q}]}`, clientID, hash)
	if err := st.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: credentialKey(clientID), Value: []byte(record)}}}); err != nil {
		t.Fatal(err)
	}
	c, err := iss.Get(t.Context(), "", clientID)
	if err != nil {
		t.Fatal(err)
	}
	old := c.Secrets(time.Now())
	if len(old) != 1 || len(old[0].ID) != 16 || old[0].Hint != "" || !old[0].Created.Equal(c.Created) || !old[0].Expires.IsZero() {
		t.Fatalf("it is shown as %+v", old)
	}
	_, second, err := iss.AddSecret(t.Context(), "", clientID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	wantLive(t, iss, c, map[string]bool{secret: true, second: true})
	if c = stored(t, iss, clientID); c.Secrets(time.Now())[0].ID != old[0].ID || !c.Secrets(time.Now())[0].Created.Equal(c.Created) {
		t.Errorf("after a rotation it is shown as %+v", c.Secrets(time.Now())[0])
	}
	if err := iss.DeleteSecret(t.Context(), "", clientID, old[0].ID); err != nil {
		t.Fatal(err)
	}
	wantLive(t, iss, c, map[string]bool{secret: false, second: true})
}

func TestSecretsThatAreAddedAtOnceAllWorkUpToTheirNumber(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, first, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	works := map[string]bool{first: true}
	for range 20 {
		all.Go(func() {
			_, secret, err := iss.AddSecret(context.Background(), "", c.ClientID, time.Hour)
			switch {
			case err == nil:
				mu.Lock()
				works[secret] = true
				mu.Unlock()
			case !errors.Is(err, ErrTooManySecrets):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(works) != maxSecrets {
		t.Errorf("%d secrets were given out", len(works))
	}
	wantLive(t, iss, c, works)
	endless := 0
	for _, s := range stored(t, iss, c.ClientID).Secrets(time.Now()) {
		if s.Expires.IsZero() {
			endless++
		}
	}
	if endless != 1 {
		t.Errorf("%d secrets never end, want the last one to", endless)
	}

	// Of rotations that end all others, the last one counts.
	clear(works)
	for range 20 {
		all.Go(func() {
			_, secret, err := iss.AddSecret(context.Background(), "", c.ClientID, 0)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			works[secret] = false
			mu.Unlock()
		})
	}
	all.Wait()
	good := 0
	for secret := range works {
		if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
			good++
		}
	}
	if good != 1 || len(stored(t, iss, c.ClientID).Hashes) != 1 {
		t.Errorf("%d of them work", good)
	}
}

// Two that delete the last two secrets at once must not leave none.
func TestDeletionsAtOnceLeaveASecret(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, _, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, _, err := iss.AddSecret(t.Context(), "", c.ClientID, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	var refused atomic.Int64
	for _, s := range stored(t, iss, c.ClientID).Secrets(time.Now()) {
		all.Go(func() {
			if err := iss.DeleteSecret(context.Background(), "", c.ClientID, s.ID); errors.Is(err, ErrLastSecret) {
				refused.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if left := stored(t, iss, c.ClientID).Secrets(time.Now()); len(left) != 1 || refused.Load() != 1 {
		t.Errorf("%d are left, and %d were refused to be deleted", len(left), refused.Load())
	}
}

func TestARotationUndoesNoRevocation(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	c, _, _ := clientWithToken(t, iss)
	var revoked atomic.Bool
	hooked.afterGet = func(key string) { // the rotation has read it
		if strings.HasPrefix(key, credentialPrefix) && revoked.CompareAndSwap(false, true) {
			if err := iss.Revoke(context.Background(), "", c.ClientID); err != nil {
				t.Error(err)
			}
		}
	}
	if _, secret, err := iss.AddSecret(t.Context(), "", c.ClientID, 0); !errors.Is(err, ErrNotFound) || secret != "" {
		t.Errorf("AddSecret = %v, want %v", err, ErrNotFound)
	}
	if !revoked.Load() || stored(t, iss, c.ClientID).Revoked.IsZero() {
		t.Error("the revocation was lost")
	}
}

// A token that was asked for with a secret which is deleted before it is signed
// must not leave.
func TestAMintThatADeletionOvertakesIssuesNothing(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, first, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	id := c.Secrets(time.Now())[0].ID
	_, second, err := iss.AddSecret(t.Context(), "", c.ClientID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	signer := &meddlingSigner{t: t, meddle: func() error { return iss.DeleteSecret(context.Background(), "", c.ClientID, id) }}
	before := iss.keys().signing.method
	iss.keys().signing.method = signer
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, first)); err == nil || !signer.signed {
		t.Error("a token left by a secret that was deleted while it was signed")
	}
	iss.keys().signing.method = before
	wantLive(t, iss, c, map[string]bool{first: false, second: true})
}

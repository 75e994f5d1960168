package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/clientcredentials/caddy-client-credentials/internal/phc"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// withSlowHash makes a credential whose secret another server has hashed.
func withSlowHash(t *testing.T, iss *Issuer, clientID, secret string) (slow string) {
	t.Helper()
	slow = phc.New(secret)
	record, err := json.Marshal(newCredential(Draft{Account: DefaultAccount}, time.Now(), hashedSecret{Slow: slow}, clientID))
	if err != nil {
		t.Fatal(err)
	}
	if err := iss.store.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: credentialKey(clientID), Value: record}}}); err != nil {
		t.Fatal(err)
	}
	return slow
}

func TestASecretOfAnotherServerWorksAndIsRehashedIfNobodyCanGuessIt(t *testing.T) {
	for _, c := range []struct {
		clientID, secret string
		rehashed         bool
	}{
		{"orders-service", "correct horse battery staple", false},
		{"2c4b1a6e-0b1d-4a57-9a43-8d5e4a8c9a11", "K7gNU3sdo-OL0wNhqoVWhr3g6s1xYv72ol_pe.Unols", true},
	} {
		iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
		slow := withSlowHash(t, iss, c.clientID, c.secret)
		if _, err := iss.Issue(t.Context(), tokenRequest(c.clientID, c.secret+"x")); err == nil {
			t.Error("a wrong secret got a token")
		}
		first, err := iss.Issue(t.Context(), tokenRequest(c.clientID, c.secret))
		if err != nil {
			t.Fatalf("%s: %v", c.clientID, err)
		}
		// From now on, nothing slow is needed, whatever waits for a place.
		iss.registry.foreign.places = nil
		if _, err := iss.Issue(t.Context(), tokenRequest(c.clientID, c.secret)); err != nil {
			t.Errorf("%s: the second time: %v", c.clientID, err)
		}
		if _, err := iss.Verify(t.Context(), first.Token); err != nil {
			t.Errorf("%s: the first token: %v", c.clientID, err)
		}
		record, err := iss.store.Get(t.Context(), credentialKey(c.clientID))
		if err != nil {
			t.Fatal(err)
		}
		if kept := strings.Contains(string(record), slow); kept == c.rehashed {
			t.Errorf("%s: the slow hash is kept: %v", c.clientID, kept)
		}
		iss.registry.foreign = newForeignSecrets(1) // as after a restart
		if _, err := iss.Issue(t.Context(), tokenRequest(c.clientID, c.secret)); err != nil {
			t.Errorf("%s: after a restart: %v", c.clientID, err)
		}
	}
}

// Slow hashes are an attacker's way to use up the processors.
func TestComparisonsOfSlowHashesAreFew(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	withSlowHash(t, iss, "client", "secret")
	suspect := tokenRequest("client", "wrong")
	suspect.Suspect = func() bool { return true }
	busy := newForeignSecrets(1)
	busy.places <- struct{}{}
	iss.registry.foreign = busy
	if _, err := iss.Issue(t.Context(), suspect); err == nil || busy.waiting.Load() > 0 {
		t.Errorf("one that has failed too often: %v, and %d wait", err, busy.waiting.Load())
	}
	var waiting sync.WaitGroup
	for range maxWaiting {
		waiting.Go(func() { _, _ = iss.Issue(t.Context(), tokenRequest("client", "wrong")) })
	}
	eventually(t, "as many wait as may", func() bool { return busy.waiting.Load() == maxWaiting })
	_, err := iss.Issue(t.Context(), tokenRequest("client", "secret"))
	if _, refused := err.(*TokenError); err == nil || refused { //nolint:errorlint // it is not wrapped
		t.Errorf("one more: %v, want that it can't tell", err)
	}
	<-busy.places
	waiting.Wait()
	if _, err := iss.Issue(t.Context(), tokenRequest("client", "secret")); err != nil {
		t.Errorf("after them: %v", err)
	}
	suspect.Secrets = []string{"secret"}
	if _, err := iss.Issue(t.Context(), suspect); err != nil {
		t.Errorf("a secret that was right before, from where others fail: %v", err)
	}
}

// A client that has moved on to a secret of this server's own must not wait for
// the comparison of the one that it had before; nor one that has two of another
// server's, both of which were right before.
func TestASlowHashIsComparedOnlyWhereNothingElseFits(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	withSlowHash(t, iss, "client", "first")
	_, added, err := iss.AddSecret(t.Context(), "", "client", time.Hour)
	if err == nil {
		_, err = iss.change(t.Context(), nil, "", "client", func(c, _ *Credential) error {
			c.Hashes = append(c.Hashes, hashedSecret{Slow: phc.New("second")})
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"first", "second"} {
		if _, err := iss.Issue(t.Context(), tokenRequest("client", secret)); err != nil {
			t.Fatalf("%s: %v", secret, err)
		}
	}
	iss.registry.foreign.waiting.Store(maxWaiting) // nothing slow can be compared now
	for _, secret := range []string{"first", "second", added} {
		if _, err := iss.Issue(t.Context(), tokenRequest("client", secret)); err != nil {
			t.Errorf("a secret that was right before, or has a fast hash: %v", err)
		}
	}
}

// An import has hundreds of secrets at a time; 256 slow hashes at once took 4.8 GB.
func TestTheSecretsOfAnImportAreHashedFewAtATime(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	iss.registry.foreign = newForeignSecrets(1)
	iss.registry.foreign.places <- struct{}{}
	if err := iss.Import(t.Context(), Import{ClientID: "strong", Secret: "iObGKtihdEScOmDiZxZ+6Q=="}, true); err != nil {
		t.Errorf("a secret that needs no slow hash: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	hooked.afterGet = func(string) { t.Error("a weak one is hashed while another one is compared") }
	if err := iss.Import(ctx, Import{ClientID: "weak", Secret: "secret"}, true); !errors.Is(err, context.Canceled) {
		t.Errorf("Import = %v, want %v", err, context.Canceled)
	}
}

// bcrypt looks at 72 bytes: what fits it beyond those need not be the secret.
func TestASecretThatBcryptHasSeenTheBeginningOfIsNotRehashed(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	secret := strings.Repeat("iObGKtihdEScOmDiZxZ6Q", 4)
	hash, err := bcrypt.GenerateFromPassword([]byte(secret[:bcryptLength]), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := iss.Import(t.Context(), Import{ClientID: "orders", Hashes: []SecretHash{{Hash: string(hash)}}}, false); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{secret[:80] + "wrong", secret} {
		if _, err := iss.Issue(t.Context(), tokenRequest("orders", secret)); err != nil {
			t.Errorf("%s: %v", secret, err)
		}
	}
}

// What the configuration declares is not for a client to change; and one that goes
// on with a credential that was revoked must not fill the log.
func TestTheSecretOfADeclaredCredentialIsNotRehashed(t *testing.T) {
	const clientID, secret = "orders", "iObGKtihdEScOmDiZxZ+6Q=="
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	if err := iss.declare(t.Context(), []DeclaredCredential{{ClientID: clientID, SecretHashes: []string{HashSecret(secret)}}}); err != nil {
		t.Fatal(err)
	}
	for _, declared := range []bool{true, false} {
		if !declared {
			if err := iss.declare(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		read := 0
		hooked.afterGet = func(string) { read++ }
		for range 10 {
			if _, err := iss.Issue(t.Context(), tokenRequest(clientID, secret)); declared != (err == nil) {
				t.Fatal(err)
			}
		}
		if hooked.afterGet = nil; read > 1 {
			t.Errorf("declared, %v: 10 requests have read the store %d times", declared, read)
		}
	}
}

func TestWhatLooksLikeDrawnByLotIsStrong(t *testing.T) {
	for secret, strong := range map[string]bool{
		"iObGKtihdEScOmDiZxZ+6Q==":                     true, // 128 bits in base64
		"5f4dcc3b5aa765d61d8327deb882cf99":             true, // 128 bits in hexadecimal
		"K7gNU3sdo-OL0wNhqoVWhr3g6s1xYv72ol_pe.Unols":  true,
		"2c4b1a6e-0b1d-4a57-9a43-8d5e4a8c9a11":         true, // a UUID
		"":                                             false,
		"secret":                                       false,
		"Tr0ub4dor&3":                                  false,
		"correct horse battery staple":                 false,
		"correct-horse-battery-staple":                 false,
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1":      false,
		"MyVerySecretServiceAccountPassword":           false,
		"12345678901234567890123456789012345678901234": false,
	} {
		if strongSecret(secret) != strong {
			t.Errorf("%q is strong: %v, want %v", secret, !strong, strong)
		}
	}
}

func TestAClientIDNobodyKnowsIsNotLogged(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	withSlowHash(t, iss, "client", "secret")
	for clientID, logged := range map[string]string{
		"client": "client", "a.secret.in.the.wrong.place": "", newClientID(): "made here",
	} {
		_, err := iss.Issue(t.Context(), tokenRequest(clientID, "wrong"))
		refused, ok := err.(*TokenError) //nolint:errorlint // it is not wrapped
		if logged == "made here" {
			logged = clientID
		}
		if !ok || refused.ClientID != logged {
			t.Errorf("%q: %v, with the client id %q", clientID, err, refused.ClientID)
		}
	}
}

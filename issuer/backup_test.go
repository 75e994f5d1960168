package issuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
)

func TestABackupThatThisVersionCannotReadIsRefusedByName(t *testing.T) {
	for want, record := range map[string]store.Record{
		"format 99":                         {Key: formatKey, Value: []byte(`{"version":99}`)},
		"format can't be read":              {Key: formatKey, Value: []byte(`{}`)},
		"credential's record can't be read": {Key: credentialKey(newClientID()), Value: []byte(`x`)},
		"pepper/1 can't be read":            {Key: pepperPrefix + "1", Value: []byte(`x`)},
	} {
		st := openTestStore(t, t.TempDir())
		iss := newTestIssuer(t, st, time.Hour, 10)
		if err := st.Commit(t.Context(), store.Batch{Puts: []store.Record{record}}); err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		if err := iss.WriteBackup(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBackup(&file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadBackup = %v, want what says %q", err, want)
		}
	}
}

// What only ends tokens, as an earlier restore does, is no change of what a
// credential says.
// The configuration says what becomes of what it has declared, when the server starts.
func TestADeclaredCredentialThatWasRevokedStopsNoRestore(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 10)
	declared := DeclaredCredential{ClientID: "orders", SecretHashes: []string{HashSecret("iObGKtihdEScOmDiZxZ+6Q==")}}
	if err := iss.declare(t.Context(), []DeclaredCredential{declared}); err != nil {
		t.Fatal(err)
	}
	created, _, _ := clientWithToken(t, iss)
	lost := map[string]lostCredential{"orders": {revoked: true}, created.ClientID: {revoked: true}}
	restored, err := beginAnew(t.Context(), st, lost)
	if err != nil || len(restored.RevokedAgain) != 2 {
		t.Fatalf("%+v, %v", restored, err)
	}
	iss = newTestIssuer(t, st, time.Hour, 10) // which has nothing in memory
	if _, err := iss.Get(t.Context(), "", created.ClientID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the other one is not revoked: %v", err)
	}
	if err := iss.declare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Get(t.Context(), "", "orders"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the declared one is not revoked: %v", err)
	}
}

func TestOnlyWhatACredentialSaysIsAChangeOfIt(t *testing.T) {
	backedUp, lost := openTestStore(t, t.TempDir()), openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, backedUp, time.Hour, 10)
	same, _, _ := clientWithToken(t, iss)
	changed, _, _ := clientWithToken(t, iss)
	var file bytes.Buffer
	if err := iss.WriteBackup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	if err := backup.Fill(t.Context(), lost, &file, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := newTestIssuer(t, lost, time.Hour, 10).endAllTokens(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := *changed
	c.Scopes = []string{"more"}
	value, err := json.Marshal(&c)
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: credentialKey(c.ClientID), Value: value}}}); err != nil {
		t.Fatal(err)
	}
	known, err := lostCredentials(t.Context(), lost)
	if err != nil {
		t.Fatal(err)
	}
	found, err := compare(t.Context(), backedUp, known)
	if err != nil || len(found.Changed) != 1 || found.Changed[0].ClientID != changed.ClientID || len(found.Missing)+len(found.Gone)+len(found.RevokedAgain) > 0 {
		t.Errorf("compare = %+v, %v, want %s alone as changed, and not %s", found, err, changed.ClientID, same.ClientID)
	}
}

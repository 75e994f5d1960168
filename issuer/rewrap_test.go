package issuer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// openTestApp opens an app whose store and whose Caddy storage are in dir.
func openTestApp(t *testing.T, dir, masterKey string) (*App, error) {
	t.Helper()
	a := newTestApp(t, dir, masterKey)
	_, err := a.Open()
	t.Cleanup(func() { _ = a.Cleanup() })
	return a, err
}

func newTestApp(t *testing.T, dir, masterKey string) *App {
	t.Helper()
	engine := &badger.Badger{Path: filepath.Join(dir, "store")}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	a := &App{
		Issuer: "https://issuer.test", MasterKey: masterKey, TokenCache: DefaultTokenCache, engine: engine,
		storage: &certmagic.FileStorage{Path: filepath.Join(dir, "storage")},
		fetcher: fetch.New(true), audit: zap.NewNop(),
	}
	if err := errors.Join(a.provisionPolicy(), a.provisionKeys()); err != nil {
		t.Fatal(err)
	}
	return a
}

// works checks that a secret and a token of a client are good.
func works(t *testing.T, a *App, clientID, secret, token string) {
	t.Helper()
	iss, err := a.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Errorf("its token: %v", err)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(clientID, secret)); err != nil {
		t.Errorf("its secret: %v", err)
	}
}

func TestAMasterKeyIsReplacedWhileTheServerRuns(t *testing.T) {
	const oldKey, newKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	for name, keys := range map[string]struct{ before, to, after string }{
		"of Caddy's storage":   {},
		"of the configuration": {oldKey, newKey, newKey},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a, err := openTestApp(t, dir, keys.before)
			if err != nil {
				t.Fatal(err)
			}
			c, secret, token := clientWithToken(t, a.issuer.Load())
			before := a.issuer.Load().keyPolicy.master.id
			if err := a.Rewrap(t.Context(), keys.to); err != nil {
				t.Fatal(err)
			}
			if id, err := sealedBy(t.Context(), a.issuer.Load().store); err != nil || id == before {
				t.Errorf("the store is sealed with %s, as it was: %v", id, err)
			}
			works(t, a, c.ClientID, secret, token)
			_ = a.Cleanup()
			if keys.before != "" {
				if _, err := openTestApp(t, dir, keys.before); err == nil || !strings.Contains(err.Error(), "master_key") {
					t.Errorf("with the old master key: %v", err)
				}
			}
			a, err = openTestApp(t, dir, keys.after)
			if err != nil {
				t.Fatal(err)
			}
			works(t, a, c.ClientID, secret, token)
			left, _ := filepath.Glob(filepath.Join(dir, "storage", "keys", "*.next"))
			if len(left) > 0 {
				t.Errorf("%q is left", left)
			}
		})
	}
}

func TestAMasterKeyThatDoesNotFitTheConfigurationIsRefused(t *testing.T) {
	stored, err := openTestApp(t, t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	const key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	given, err := openTestApp(t, t.TempDir(), key)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"one that the server makes":    stored.Rewrap(t.Context(), key),
		"none":                         given.Rewrap(t.Context(), ""),
		"one that is not base64":       given.Rewrap(t.Context(), "not a key"),
		"one that is too short to use": given.Rewrap(t.Context(), "MDEyMzQ1Njc4OQ=="),
	} {
		var input *InputError
		if !errors.As(err, &input) || strings.Contains(err.Error(), "not a key") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// One may have started when the other, which still ran, was told to.
func TestAMasterKeyIsReplacedInAllConfigurations(t *testing.T) {
	dir := t.TempDir()
	running, err := openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	c, secret, token := clientWithToken(t, running.issuer.Load())
	next, err := openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := running.Rewrap(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	_ = running.Cleanup()
	if _, _, err := next.issuer.Load().RotateKey(t.Context()); err != nil {
		t.Error(err)
	}
	if err := next.Rewrap(t.Context(), ""); err != nil {
		t.Error(err)
	}
	_ = next.Cleanup()
	again, err := openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	settleAt(t, again.issuer.Load(), at(time.Now(), keyLead+time.Minute))
	works(t, again, c.ClientID, secret, token)
}

// Who is told of a failure keeps the former key, and throws the new one away.
func TestAReplacementOfTheMasterKeyThatIsDoneIsNoFailure(t *testing.T) {
	a, err := openTestApp(t, t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	iss := a.issuer.Load()
	iss.keyPolicy.algorithm = "EdDSA" // whose key is to be made
	full := &fullStore{iss.registry.store, true}
	iss.registry.store = full // that of the issuer takes what is sealed anew
	if err := a.Rewrap(t.Context(), ""); err != nil {
		t.Error(err)
	}
	full.full = false
	settleAt(t, iss, at(time.Now(), 0))
}

// A store takes only so much in one transaction.
func TestAMasterKeyIsReplacedThoughManyKeysHaveSigned(t *testing.T) {
	a, err := openTestApp(t, t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	iss := a.issuer.Load()
	begin := time.Now()
	before := make(map[string][]byte)
	for n := range 30 * 24 { // as many as are kept of those that have signed for an hour each
		id := fmt.Sprint("key", n)
		box := iss.keyPolicy.master.seal(keyPrefix+id, make([]byte, 1800)) // as an RSA key
		retired := keyRecords{id: {Private: &box, Algorithm: "RS256", Retired: begin}}
		if before[keyRevision], err = iss.store.Get(t.Context(), keyRevisionKey); err != nil {
			t.Fatal(err)
		}
		if err := retired.commit(t.Context(), iss.store, before); err != nil {
			t.Fatal(err)
		}
	}
	settleAt(t, iss, at(begin, time.Second))
	if err := a.Rewrap(t.Context(), ""); err != nil {
		t.Error(err)
	}
}

// breakingStorage fails at a step, as a machine does that goes down there.
type breakingStorage struct {
	certmagic.Storage
	steps int // that are left
}

var errDown = errors.New("the machine is down")

func (b *breakingStorage) Store(ctx context.Context, key string, value []byte) error {
	if b.steps--; b.steps < 0 {
		return errDown
	}
	return b.Storage.Store(ctx, key, value)
}

func (b *breakingStorage) Delete(ctx context.Context, key string) error {
	if b.steps--; b.steps < 0 {
		return errDown
	}
	return b.Storage.Delete(ctx, key)
}

func TestAReplacementOfTheMasterKeyThatIsCutShortLosesNothing(t *testing.T) {
	for steps := range 3 {
		dir := t.TempDir()
		a, err := openTestApp(t, dir, "")
		if err != nil {
			t.Fatal(err)
		}
		c, secret, token := clientWithToken(t, a.issuer.Load())
		a.storage = &breakingStorage{a.storage, steps}
		if err := a.Rewrap(t.Context(), ""); !errors.Is(err, errDown) {
			t.Fatalf("step %d: %v", steps, err)
		}
		_ = a.Cleanup()
		for range 2 {
			if a, err = openTestApp(t, dir, ""); err != nil {
				t.Fatalf("step %d: %v", steps, err)
			}
			works(t, a, c.ClientID, secret, token)
			_ = a.Cleanup()
		}
	}
}

// fullStore takes nothing while its disk is full.
type fullStore struct {
	store.Store
	full bool
}

var errFull = errors.New("the disk is full")

func (f *fullStore) Commit(ctx context.Context, batch store.Batch) error {
	if f.full {
		return errFull
	}
	return f.Store.Commit(ctx, batch)
}

func TestAReplacementOfTheMasterKeyAfterOneThatWasCutShortLosesNothing(t *testing.T) {
	dir := t.TempDir()
	a, err := openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	iss := a.issuer.Load()
	c, secret, token := clientWithToken(t, iss)
	storage := a.storage
	a.storage = &breakingStorage{storage, 1}
	if err := a.Rewrap(t.Context(), ""); !errors.Is(err, errDown) {
		t.Fatal(err)
	}
	a.storage, iss.store = storage, &fullStore{iss.store, true}
	if err := a.Rewrap(t.Context(), ""); !errors.Is(err, errFull) {
		t.Fatal(err)
	}
	_ = a.Cleanup()
	if a, err = openTestApp(t, dir, ""); err != nil {
		t.Fatal(err)
	}
	works(t, a, c.ClientID, secret, token)
}

func TestAMasterKeyIsNotLostWhereItsReplacementWasCutShort(t *testing.T) {
	dir := t.TempDir()
	a, err := openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	c, secret, token := clientWithToken(t, a.issuer.Load())
	a.storage = &breakingStorage{a.storage, 1}
	if err := a.Rewrap(t.Context(), ""); !errors.Is(err, errDown) {
		t.Fatal(err)
	}
	_ = a.Cleanup()
	if _, err := newTestApp(t, dir, "").ReplaceLostMasterKey(t.Context()); !errors.Is(err, ErrMasterKeyGood) {
		t.Errorf("it was given up: %v", err)
	}
	if a, err = openTestApp(t, dir, ""); err != nil {
		t.Fatal(err)
	}
	works(t, a, c.ClientID, secret, token)
}

func TestALostMasterKeyTakesNothingWithItButWhatItSealed(t *testing.T) {
	dir := t.TempDir()
	a, err := openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	iss := a.issuer.Load()
	c, secret, token := clientWithToken(t, iss)
	gone, _, goneToken := clientWithToken(t, iss)
	byKey, _, err := iss.Create(t.Context(), Draft{KeysURL: "https://client.example/jwks"})
	if err != nil {
		t.Fatal(err)
	}
	if err := iss.Import(t.Context(), Import{ClientID: "weak", Secret: "secret"}, false); err != nil {
		t.Fatal(err)
	}
	if err := iss.Revoke(t.Context(), "", gone.ClientID); err != nil {
		t.Fatal(err)
	}
	_ = a.Cleanup()
	if _, err := newTestApp(t, dir, "").ReplaceLostMasterKey(t.Context()); !errors.Is(err, ErrMasterKeyGood) {
		t.Fatalf("the key is not lost: %v", err)
	}
	file := filepath.Join(dir, "storage", filepath.FromSlash(masterKeyFile))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := openTestApp(t, dir, ""); err == nil || !strings.Contains(err.Error(), masterKeyFile) {
		t.Fatalf("without the master key the server starts: %v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a new master key was made over old data: %v", err)
	}

	lost, err := newTestApp(t, dir, "").ReplaceLostMasterKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(lost) != 1 || lost[0].ClientID != c.ClientID {
		t.Errorf("these need a new secret: %v, want %s alone", lost, c.ClientID)
	}
	a, err = openTestApp(t, dir, "")
	if err != nil {
		t.Fatal(err)
	}
	iss = a.issuer.Load()
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Errorf("a token from before: %v", err)
	}
	if reason := refused(t, iss, goneToken); reason != "revoked" {
		t.Errorf("a revoked token is refused as %q", reason)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
		t.Error("a secret from before works")
	}
	if _, err := iss.Issue(t.Context(), tokenRequest("weak", "secret")); err != nil {
		t.Errorf("a secret that needs no pepper: %v", err)
	}
	if all, err := iss.List(t.Context(), ""); err != nil || len(all) != 3 {
		t.Errorf("%d credentials, %v", len(all), err)
	}
	exported := 0
	err = iss.Export(t.Context(), func(c *Credential, hashes []SecretHash) error {
		exported++
		if len(hashes) != 0 && c.ClientID != "weak" {
			t.Error("the hash of a secret that can't work is exported")
		}
		return nil
	})
	if err != nil || exported != 3 {
		t.Errorf("%d credentials are exported, %v", exported, err)
	}
	if err := iss.Revoke(t.Context(), "", byKey.ClientID); err != nil {
		t.Error(err)
	}
	fresh, freshSecret, freshToken := clientWithToken(t, iss)
	works(t, a, fresh.ClientID, freshSecret, freshToken)
	if keys, err := iss.Keys(t.Context()); err != nil || len(keys) != 2 || keys[1].Phase != KeyRetired || keys[1].Changes.Before(time.Now().Add(time.Hour)) {
		t.Errorf("keys: %+v, %v", keys, err)
	}
}

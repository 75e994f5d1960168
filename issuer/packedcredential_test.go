package issuer

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// A field that the packed form does not have would be lost for all who find the
// credential in memory.
func TestAPackedCredentialHasAllOfIt(t *testing.T) {
	var full Credential
	fill(t, reflect.ValueOf(&full).Elem(), new(int64))
	name := ""
	for what, c := range map[string]*Credential{
		"all":           &full,
		"nothing":       {},
		"empty lists":   {Scopes: []string{}, Audiences: []string{}, Grantable: []string{}, Named: []string{}, Hashes: []hashedSecret{}},
		"empty name":    {Name: &name, Keys: &KeySet{}},
		"negative time": {Created: time.Unix(-1, 999_999_999).UTC(), TokenLifetime: -time.Second},
	} {
		t.Run(what, func(t *testing.T) {
			unpacked, ok := unpackCredential(packCredential(c))
			if !ok || !reflect.DeepEqual(unpacked, c) {
				t.Errorf("%v: packed and unpacked, it is\n%+v, and it was\n%+v", ok, unpacked, c)
			}
		})
	}
}

// fill sets all parts of a value to something that is not zero, each to another one.
func fill(t *testing.T, v reflect.Value, n *int64) {
	t.Helper()
	*n++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+*n, *n).UTC()))
		return
	case json.RawMessage:
		v.SetBytes(fmt.Appendf(nil, `{"claim":%d}`, *n))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("text ", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(*n)
	case reflect.Uint64, reflect.Uint8:
		v.SetUint(uint64(*n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i), n)
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field, n)
		}
	default:
		t.Fatalf("nothing is known of %v", v.Type())
	}
}

// What is damaged is another credential at worst, or none; it ends nothing.
func TestWhatIsDamagedIsNoPackedCredential(t *testing.T) {
	var full Credential
	fill(t, reflect.ValueOf(&full).Elem(), new(int64))
	packed := packCredential(&full)
	for end := range len(packed) {
		if _, ok := unpackCredential(packed[:end]); ok {
			t.Fatalf("the first %d of %d bytes are a credential", end, len(packed))
		}
	}
	if _, ok := unpackCredential(packed + "x"); ok {
		t.Error("with more behind it, it is a credential")
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		damaged := []byte(packed)
		for range 1 + random.IntN(4) {
			damaged[random.IntN(len(damaged))] = byte(random.Uint32())
		}
		unpackCredential(string(damaged))
	}
}

// The condition of a commit is the store's text, which is not remembered.
func TestAUseIsWrittenWithTheTextOfTheStore(t *testing.T) {
	counting := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, counting, time.Hour, 100)
	c, secret, err := iss.Create(t.Context(), Draft{Scopes: []string{"items:read"}})
	if err != nil {
		t.Fatal(err)
	}
	byThisRelease, err := counting.Get(t.Context(), credentialKey(c.ClientID))
	if err != nil {
		t.Fatal(err)
	}
	byAnother := append([]byte(`{"unknown":true,`), byThisRelease[1:]...)
	for _, one := range []struct {
		text  []byte
		reads int64
	}{
		{byThisRelease, 1}, // of the last use
		{byAnother, 2},
	} {
		put := store.Batch{Puts: []store.Record{{Key: credentialKey(c.ClientID), Value: one.text}}}
		if err := counting.Store.Commit(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		iss.registry.credentials.forget(c.ClientID)
		useSecret(t, iss, c.ClientID, secret)
		counting.commits.Store(0)
		counting.reads.Store(0)
		if err := iss.registry.flushUses(t.Context()); err != nil {
			t.Fatal(err)
		}
		if commits, reads := counting.commits.Load(), counting.reads.Load(); commits != 1 || reads != one.reads {
			t.Errorf("%d commits and %d readings, want 1 and %d", commits, reads, one.reads)
		}
	}
}

func TestADamagedPackedCredentialIsReadAnew(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	c, secret, _ := clientWithToken(t, iss)
	cache, changes := iss.registry.credentials, iss.registry.changes[iss.registry.group(c.ClientID)].Load()
	cache.forget(c.ClientID)
	damaged := newStoredHead(changes, nil) + "\x00\x00\x00"
	cache.packed.Put(c.ClientID, c.ClientID, damaged)
	if known, ok := cache.find(c.ClientID, changes); !ok || known != damaged {
		t.Fatal("the damaged one is not what would be unpacked")
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err != nil {
		t.Errorf("a token: %v", err)
	}
	if read, ok := cache.unpack(c.ClientID, changes); !ok || read.ClientID != c.ClientID {
		t.Error("what was read anew is not remembered")
	}
}

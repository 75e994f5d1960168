package issuer

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// Go's collector looks at each object in memory, and at each pointer in it: a
// million remembered tokens of as many clients must be few.
func TestWhatIsRememberedIsFewObjects(t *testing.T) {
	const clients = 20_000
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 1)
	before := heap()
	for n := range clients {
		name, clientID, secret := fmt.Sprint("client ", n), fmt.Sprintf("%032x", n), newSecret()
		draft := Draft{Name: &name, Account: DefaultAccount, Scopes: []string{"read", "write"}}
		c := newCredential(draft, time.Now(), iss.keys().hash(clientID, secret), clientID)
		iss.registry.recent.Put(clientID, remembered{Credential: c}, 1)
		if _, err := iss.Issue(t.Context(), tokenRequest(clientID, secret)); err != nil {
			t.Fatal(err)
		}
	}
	if err := iss.registry.flushUses(t.Context()); err != nil { // which are remembered for a minute
		t.Fatal(err)
	}
	after := heap()
	objects := float64(after.HeapObjects-before.HeapObjects) / clients
	bytes := float64(after.HeapAlloc-before.HeapAlloc) / clients
	t.Logf("a token and its client are %.2f objects of %.0f bytes", objects, bytes)
	if objects > 1.1 { // its text, and now and then a part of a map or a block of places
		t.Error("that is too many objects")
	}
	n, accounted := iss.registry.verified.size()
	if n != clients {
		t.Fatalf("%d tokens are remembered", n)
	}
	if counted := float64(accounted) / clients; counted < bytes*0.95 || counted > bytes*1.15 {
		t.Errorf("each is accounted for with %.0f bytes", counted)
	}
}

func TestACredentialInMemoryTakesWhatIsSetAsideForIt(t *testing.T) {
	const clients = 10_000
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, clients)
	before := heap()
	for n := range clients {
		name, clientID := fmt.Sprint("client ", n), fmt.Sprintf("%032x", n)
		draft := Draft{Name: &name, Account: DefaultAccount, Scopes: []string{"items:read", "items:write"}}
		value, err := json.Marshal(newCredential(draft, time.Now(), iss.keys().hash(clientID, newSecret()), clientID))
		if err != nil {
			t.Fatal(err)
		}
		c, err := decodeCredential(value)
		if err != nil {
			t.Fatal(err)
		}
		iss.registry.recent.Put(clientID, remembered{Credential: c}, 1)
	}
	after := heap()
	bytes := (after.HeapAlloc - before.HeapAlloc) / clients
	t.Logf("a credential takes %d bytes", bytes)
	if bytes > credentialBytes || bytes < credentialBytes/2 {
		t.Errorf("a credential takes %d bytes, and %d are set aside for it", bytes, credentialBytes)
	}
	small := &App{TokenCache: 1 << 20}
	iss.registry.hold(small)
	if n := iss.registry.recent.Len(); n != 1<<20/credentialBytes {
		t.Errorf("with a token_cache of 1 MiB, %d credentials are kept", n)
	}
	runtime.KeepAlive(iss)
}

func heap() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}

// What a token costs that is remembered, by how many there are. The rest of the
// machine's memory is read in between, as the rest of a request does.
func BenchmarkVerify(b *testing.B) {
	for _, clients := range []int{100, 10_000, 1_000_000} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			iss := newTestIssuer(b, openTestStore(b, b.TempDir()), time.Hour, 1)
			iss.registry.verified = newTokenCache(4 << 30)
			tokens := make([]string, clients)
			for n := range tokens {
				tokens[n] = rememberedToken(iss, n)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := iss.Verify(b.Context(), tokens[rand.IntN(clients)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// rememberedToken has a token in memory that was never signed.
func rememberedToken(iss *Issuer, n int) string {
	now := time.Now()
	clientID := fmt.Sprintf("%032x", n)
	a := Access{Token: Token{
		ID: newTokenID(), ClientID: clientID, Scope: "items:read items:write", IssuedAt: now, Expires: now.Add(time.Hour),
		audience: iss.policy.Audience, issuer: iss.policy.Issuer, keyID: iss.keys().signing.id,
	}, Account: DefaultAccount, group: iss.registry.group(clientID)}
	text := fmt.Sprintf("%0450d%s%s", n, newTokenID(), newTokenID())
	iss.registry.verified.add(a.pack(text))
	return text
}

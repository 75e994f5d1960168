package issuer

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// Go's collector looks at each object in memory, and at each pointer in it: tokens
// and credentials that are remembered are none.
func TestWhatIsRememberedIsNothingToTheCollector(t *testing.T) {
	const clients = 20_000
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, clients)
	before := heap()
	for n := range clients {
		name, clientID, secret := fmt.Sprint("client ", n), fmt.Sprintf("%032x", n), newSecret()
		draft := Draft{Name: &name, Account: DefaultAccount, Scopes: []string{"items:read", "items:write"}}
		c := newCredential(draft, time.Now(), iss.keys().hash(clientID, secret), clientID)
		iss.registry.credentials.putPacked(clientID, 0, c, nil)
		if _, err := iss.Issue(t.Context(), tokenRequest(clientID, secret)); err != nil {
			t.Fatal(err)
		}
	}
	credentials, credentialBytes := iss.registry.credentials.packed.Len()
	if err := iss.registry.flushUses(t.Context()); err != nil { // which are remembered for a minute
		t.Fatal(err)
	}
	after := heap()
	objects := float64(after.HeapObjects-before.HeapObjects) / clients
	bytes := float64(after.HeapAlloc-before.HeapAlloc) / clients
	tokens, tokenBytes := iss.registry.verified.Len()
	t.Logf("a token and its client are %.3f objects of %.0f bytes, and beside Go's heap %d and %d bytes",
		objects, bytes, tokenBytes/clients, credentialBytes/clients)
	if tokens != clients || credentials != clients {
		t.Fatalf("%d tokens and %d credentials are remembered", tokens, credentials)
	}
	if objects > 0.1 || bytes > 100 {
		t.Error("that is too much")
	}
}

func heap() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}

// What a token costs that is remembered, by how many there are.
func BenchmarkVerify(b *testing.B) {
	for _, clients := range []int{100, 10_000, 1_000_000} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			iss := newTestIssuer(b, openTestStore(b, b.TempDir()), time.Hour, 1)
			resize(b, iss.registry.verified, 2<<30)
			token := make([]byte, 500) // one that has just been received
			for n := range clients {
				remember(iss, token, n)
			}
			b.ReportAllocs()
			for b.Loop() {
				putNumber(token, rand.IntN(clients))
				if _, err := iss.Verify(b.Context(), string(token)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What a credential costs that is remembered, by how many there are.
func BenchmarkCredential(b *testing.B) {
	for _, clients := range []int{100, 1_000_000} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			iss := newTestIssuer(b, openTestStore(b, b.TempDir()), time.Hour, 1)
			resize(b, iss.registry.credentials.packed, 2<<30)
			for n := range clients {
				name, clientID := fmt.Sprint("client ", n), fmt.Sprintf("%032x", n)
				draft := Draft{Name: &name, Account: DefaultAccount, Scopes: []string{"items:read", "items:write"}}
				c := newCredential(draft, time.Now(), iss.keys().hash(clientID, "secret"), clientID)
				iss.registry.credentials.putPacked(clientID, 0, c, nil)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := iss.registry.credential(b.Context(), fmt.Sprintf("%032x", rand.IntN(clients))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// remember has a token in memory that was never signed.
func remember(iss *Issuer, token []byte, n int) {
	now := time.Now()
	clientID := fmt.Sprintf("%032x", n)
	a := Access{Token: Token{
		ID: newTokenID(), ClientID: clientID, Scope: "items:read items:write",
		issuedAt: now.UnixMilli(), expires: now.Add(time.Hour).UnixMilli(), audience: iss.policy.Audience, keyID: iss.keys().signing.id,
	}, Account: DefaultAccount, group: iss.registry.group(clientID)}
	putNumber(token, n)
	iss.keepToken(string(token), &a)
}

// putNumber has a token end in a number.
func putNumber(token []byte, n int) {
	binary.LittleEndian.PutUint64(token[len(token)-8:], uint64(n))
}

package issuer

import (
	"context"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// One token that comes with many requests at once is checked once, and no more
// checks run at a time than the server has places for.
func TestSignatureChecksAreSharedAndBounded(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	f.iss.registry.signatureChecks = make(chan struct{}, 2)
	counter := &countingMethod{SigningMethod: jwt.SigningMethodES256}
	for id, key := range f.iss.keys().verify {
		key.method = counter
		f.iss.keys().verify[id] = key
	}
	shared := f.good()
	var distinct []string
	for range 20 {
		distinct = append(distinct, f.good())
	}

	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := f.iss.Verify(context.Background(), shared); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := counter.checks.Load(); n != 1 {
		t.Errorf("a token that 50 requests brought at once was checked %d times", n)
	}
	for _, token := range distinct {
		all.Go(func() {
			if _, err := f.iss.Verify(context.Background(), token); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := counter.checks.Load(); n != 21 {
		t.Errorf("21 tokens were checked %d times", n)
	}
	if n := counter.most.Load(); n > 2 {
		t.Errorf("%d signatures were checked at once, want 2 at most", n)
	}
}

// Who sends wrong signatures is answered at once, and then leaves the processor to
// others for a while.
func TestAWrongSignatureKeepsItsPlaceForAWhile(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	f.iss.registry.signatureChecks = make(chan struct{}, 1)
	methodOf(f.iss, &countingMethod{SigningMethod: jwt.SigningMethodES256})
	good := f.good()
	if reason := refused(t, f.iss, tampered(good)); reason != "wrong signature" {
		t.Fatalf("refused as %q", reason)
	}
	if len(f.iss.registry.signatureChecks) != 1 {
		t.Error("its place is free as soon as it is answered")
	}
	if _, err := f.iss.Verify(t.Context(), good); err != nil {
		t.Errorf("a good one after it: %v", err)
	}
	if len(f.iss.registry.signatureChecks) != 0 {
		t.Error("a good one keeps its place")
	}
}

// tampered returns the token with the signature of another one.
func tampered(token string) string {
	signature := token[len(token)-es256Segment:]
	return token[:len(token)-es256Segment] + signature[1:len(signature)-1] + "AA"
}

// countingMethod counts the checks, and is slow so that they meet.
type countingMethod struct {
	jwt.SigningMethod
	checks, running, most atomic.Int64
}

func (c *countingMethod) Verify(signed string, signature []byte, key any) error {
	c.checks.Add(1)
	if now := c.running.Add(1); now > c.most.Load() {
		c.most.Store(now)
	}
	defer c.running.Add(-1)
	time.Sleep(20 * time.Millisecond)
	return c.SigningMethod.Verify(signed, signature, key)
}

// What is kept of a token when it is signed is what its check would have read.
func TestATokenIsKeptAsItIsSigned(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	counter := &countingMethod{SigningMethod: jwt.SigningMethodES256}
	for id, key := range f.iss.keys().verify {
		key.method = counter
		f.iss.keys().verify[id] = key
	}
	for _, req := range []TokenRequest{{}, {Scope: "write"}, {Resources: []string{f.iss.policy.Audience}}} {
		req.GrantType, req.ClientAuthentication = grantType, tokenRequest(f.client.ClientID, f.secret).ClientAuthentication
		issued, err := f.iss.Issue(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := f.iss.Verify(t.Context(), issued.Token)
		if err != nil {
			t.Fatal(err)
		}
		if n := counter.checks.Load(); n != 0 {
			t.Fatalf("a token was checked %d times after it had been signed here", n)
		}
		empty(f.iss.registry.verified)
		checked, err := f.iss.Verify(t.Context(), issued.Token)
		if err != nil {
			t.Fatal(err)
		}
		if n := counter.checks.Swap(0); n != 1 {
			t.Fatalf("a token that is not kept was checked %d times", n)
		}
		if !reflect.DeepEqual(signed.Token, checked.Token) {
			t.Errorf("kept: %#v\nread: %#v", signed.Token, checked.Token)
		}
	}
}

func TestATokenIsUnpackedAsItWasPacked(t *testing.T) {
	i := &Issuer{policy: Policy{Issuer: "issuer", Audience: "audience"}}
	i.ring.Store(&keyring{verify: map[string]verifyKey{"key": {id: "key"}}})
	full := Access{
		Token: Token{
			ID: "id", ClientID: "client", Scope: "a b", audience: "c d", keyID: "key",
			issuedAt: 1, expires: 2, notBefore: 3, epoch: 1<<63 + 4, reissued: true,
		},
		Account: "account", ends: 5, version: 1<<63 + 7, changes: 1<<63 + 8, group: 0xA0B0, requestsPerSecond: 1<<31 + 9, ended: true,
	}
	unpack := func(p packedToken) (a Access) {
		p.unpack(i, &a)
		return a
	}
	usual := full
	usual.Token.audience = "audience"
	for _, a := range []Access{{}, full, usual} {
		if got := unpack(a.pack("issuer")); !reflect.DeepEqual(got, a) {
			t.Errorf("%#v became %#v", a, got)
		}
	}
	elsewhere, ofOldKey := full, full
	elsewhere.Token.foreign = true
	if got := unpack(full.pack("elsewhere")); !reflect.DeepEqual(got, elsewhere) {
		t.Errorf("of another issuer: %#v", got)
	}
	ofOldKey.Token.keyID = "old"
	if got := unpack(ofOldKey.pack("issuer")); got.Token.keyID != "" {
		t.Errorf("of a key that is gone: %#v", got)
	}
	tooLong := Access{Token: Token{Scope: strings.Repeat("x", 1<<16)}}
	if packed := tooLong.pack("issuer"); packed != nil {
		t.Error("a text was packed whose length can't be written")
	}

	// What was read of the credential since.
	packed, later, earlier, moved := full.pack("issuer"), full, full, full
	earlier.Token.reissued = false // which it was never again
	later.ended, later.ends, later.version, later.requestsPerSecond = false, 50, 70, 90
	later.changes++
	packed.update(&later)
	packed.update(&earlier)
	later.Token.reissued = false
	moved.Account, moved.changes = "another", later.changes+1
	packed.update(&moved)
	if got := unpack(packed); !reflect.DeepEqual(got, later) {
		t.Errorf("updated: %#v, want %#v", got, later)
	}
	later.Token.reissued = true
	if packed.update(&later); unpack(packed).Token.reissued {
		t.Error("a token became reissued that was not")
	}
}

// The cache outlives a configuration: what it holds counts under another one
// only with the same issuer, and while the key is one of its own.
func TestAKeptTokenCountsForItsIssuerAndKeyAlone(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	issued, err := f.iss.Issue(t.Context(), tokenRequest(f.client.ClientID, f.secret))
	if err != nil {
		t.Fatal(err)
	}
	next := func(change func(i *Issuer)) *Issuer {
		i := &Issuer{policy: f.iss.policy, store: f.iss.store, registry: f.iss.registry}
		i.ring.Store(f.iss.keys())
		change(i)
		return i
	}
	if _, err := next(func(*Issuer) {}).Verify(t.Context(), issued.Token); err != nil {
		t.Errorf("after a reload: %v", err)
	}
	elsewhere := next(func(i *Issuer) { i.policy.Issuer = "https://elsewhere.test" })
	if reason := refused(t, elsewhere, issued.Token); reason != "wrong issuer" {
		t.Errorf("with another issuer it is refused as %q", reason)
	}
	rotated := next(func(i *Issuer) { i.ring.Store(&keyring{verify: map[string]verifyKey{}}) })
	if reason := refused(t, rotated, issued.Token); reason != "unknown key" {
		t.Errorf("without its key it is refused as %q", reason)
	}
}

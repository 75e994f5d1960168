package issuer

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// cached makes a token of a client, of 100 bytes of text.
func cached(client, n int) packedToken {
	text := fmt.Sprintf("%084d%08d%08d", 0, client, n) // no two end alike, as signatures
	a := Access{Token: Token{ID: "id", ClientID: fmt.Sprintf("client %8d", client)}}
	return a.pack(text)
}

const cachedSize = packedHead + 100 + 2 + 15 + placeBytes

func (c *tokenCache) use(p packedToken) {
	_, place := c.get(p.text())
	c.used(place)
}

func TestTheTokenCacheStaysWithinItsBytes(t *testing.T) {
	const room = 1000
	c := newTokenCache(room * cachedSize)
	for n := range 20 * room {
		entry := cached(n%7, n)
		c.add(entry)
		for range n % 4 { // some are used much, some not at all
			c.use(entry)
		}
	}
	entries, bytes := c.size()
	if entries != room || bytes != room*cachedSize {
		t.Errorf("%d entries of %d bytes are kept, want %d of %d", entries, bytes, room, room*cachedSize)
	}
	c.resize(room * cachedSize / 2)
	if entries, bytes = c.size(); entries != room/2 || bytes != room*cachedSize/2 {
		t.Errorf("half as large, it has %d entries of %d bytes, want %d of %d", entries, bytes, room/2, room*cachedSize/2)
	}
	huge := new(Access).pack(strings.Repeat("x", room*cachedSize/2/probationShare))
	if place := c.add(huge); place != 0 {
		t.Error("a token that would push out a tenth of the others is kept")
	}
}

// A client that fetches a token for each of its calls must not cost others
// their place: neither those whose token is in use, nor those that have fetched
// one and are about to use it.
func TestAClientWithATokenForEachCallPushesOutNobodyElse(t *testing.T) {
	const room = 1000
	c := newTokenCache(room * cachedSize)
	var inUse, fetched []packedToken
	for n := range room / 2 {
		entry := cached(1000+n, 0)
		c.add(entry)
		c.use(entry)
		c.use(entry)
		inUse = append(inUse, entry)
	}
	for n := range 50 {
		entry := cached(2000+n, 0)
		c.add(entry)
		fetched = append(fetched, entry)
	}
	for n := range 50 * room {
		entry := cached(1, n)
		c.add(entry)
		c.use(entry) // once: it is the token of one call
		if n%100 == 0 {
			for _, other := range inUse {
				c.use(other)
			}
		}
	}
	lost := 0
	for _, entry := range append(inUse, fetched...) {
		if kept, _ := c.get(entry.text()); kept != entry {
			lost++
		}
	}
	if lost > 2 { // those that share a lane with the client
		t.Errorf("%d tokens of other clients were pushed out", lost)
	}
}

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
		f.iss.registry.verified = newTokenCache(DefaultTokenCache)
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

// A place that was given back is not taken twice, and what asks for it late
// changes nothing of what is there now.
func TestPlacesOfTheTokenCacheAreUsedAgain(t *testing.T) {
	const room = 100
	c := newTokenCache(room * cachedSize)
	first := cached(1, 0)
	place := c.add(first)
	for n := range 20 * blockPlaces {
		c.add(cached(n%7, n+1))
	}
	if blocks := len(*c.places.Load()); blocks != 1 {
		t.Errorf("%d tokens at a time take %d blocks", room, blocks)
	}
	now := c.place(place).token
	if now == first {
		t.Fatal("the first token is there still")
	}
	c.replace(place, first, "x"+first[1:])
	if c.place(place).token != now {
		t.Error("a token was replaced by what another one says now")
	}
	longer := cached(1, 30*blockPlaces)
	place = c.add(longer)
	c.replace(place, longer, longer+"x")
	if c.place(place).token != longer {
		t.Error("a token was replaced by a longer one, which is not accounted for")
	}
	c.replace(place, longer, "x"+longer[1:])
	if c.place(place).token != "x"+longer[1:] {
		t.Error("it was not replaced by what it says now")
	}
}

func TestATokenIsUnpackedAsItWasPacked(t *testing.T) {
	for _, a := range []Access{
		{},
		{
			Token: Token{
				ID: "id", ClientID: "client", Scope: "a b", IssuedAt: time.Unix(1, 0), Expires: time.Unix(2, 0),
				audience: "c d", notBefore: time.Unix(3, 0), issuer: "issuer", keyID: "key", epoch: 1<<63 + 4, reissued: true,
			},
			Account: "account", ends: time.UnixMilli(5_006), ended: true, version: 1<<63 + 7, changes: 1<<63 + 8, group: 0xA0B0,
		},
	} {
		packed := a.pack("text")
		var got Access
		packed.unpack(&got)
		if packed.text() != "text" || packed.clientID() != a.Token.ClientID || !reflect.DeepEqual(got, a) {
			t.Errorf("%#v of %q became %#v of %q", a, "text", got, packed.text())
		}
	}
	tooLong := Access{Token: Token{Scope: strings.Repeat("x", 1<<16)}}
	if packed := tooLong.pack("text"); packed != "" {
		t.Error("a text was packed whose length can't be written")
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

// go test -race tells whether what is known of a token can change while others push
// it out.
func TestATokenIsReplacedWhileOthersPushItOut(t *testing.T) {
	const room, tokens = 100, 20_000
	c := newTokenCache(room * cachedSize)
	var added atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		for n := range tokens {
			c.add(cached(0, n))
			added.Store(int64(n))
		}
	})
	all.Go(func() {
		for n := added.Load(); n < tokens-1; n = added.Load() {
			before, place := c.get(cached(0, int(max(0, n-room+1))).text()) // the next to go
			if place == 0 {
				continue
			}
			var a Access
			before.unpack(&a)
			a.version++
			c.replace(place, before, a.pack(before.text()))
		}
	})
	all.Wait()
	if entries, bytes := c.size(); entries != room || bytes != room*cachedSize {
		t.Errorf("%d entries of %d bytes are kept, want %d of %d", entries, bytes, room, room*cachedSize)
	}
}

//go:build !race

// The race detector has pools forget at random, and with them allocations to
// count.

package handler_test

import (
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

func TestATokenAllocatesNoMoreThanItNeeds(t *testing.T) {
	byBasic, inBody, _ := tokenAskers(t)
	key, signed := newKey(t, "ES256"), strings.Repeat("a", 500)
	signature := testing.AllocsPerRun(1000, func() {
		if _, err := jwt.SigningMethodES256.Sign(signed, key); err != nil {
			t.Fatal(err)
		}
	})
	// Of the request: what bounds the body, the body as bytes and as text, the
	// parameters, HTTP Basic as bytes and as text, the list of its secrets, the
	// question whether it is suspect, the HMAC. Of the token: audiences, scope, id, claims, their JSON, the segment,
	// the whole, the record of it, its place in the cache. Of the answer: the document, the encoder's
	// buffer and what is in it, the length, the header values.
	const own = 9 + 9 + 5
	for name, asker := range map[string]*tokenAsker{"Basic": byBasic, "body": inBody} {
		allocations := testing.AllocsPerRun(1000, func() { asker.ask(t) })
		t.Logf("%s: %v allocations, %v of them for the signature", name, allocations, signature)
		if allocations-signature > own {
			t.Errorf("%s: %v allocations beside those of the signature, want %d", name, allocations-signature, own)
		}
	}
}

package issuer

import "testing"

// One thumbprint in 64 does: this misses a mistake once in seven million runs.
func TestNoNewKeyHasAnIDThatBeginsWithADash(t *testing.T) {
	for range 1000 {
		k, err := generateSigningKey("EdDSA")
		if err != nil {
			t.Fatal(err)
		}
		if k.id[0] == '-' {
			t.Fatalf("made %s", k.id)
		}
	}
}

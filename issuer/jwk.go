package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// KeySet is a JWK Set, RFC 7517 section 5, of public keys.
type KeySet struct {
	Keys []jwk `json:"keys"`
}

// jwk is a public key as RFC 7517 has it, with the members of RFC 7518 section
// 6 and RFC 8037.
type jwk struct {
	Type      string `json:"kty"`
	ID        string `json:"kid,omitempty"`
	Use       string `json:"use,omitempty"`
	Algorithm string `json:"alg,omitempty"`
	Curve     string `json:"crv,omitempty"`
	X         string `json:"x,omitempty"`
	Y         string `json:"y,omitempty"`
	N         string `json:"n,omitempty"`
	E         string `json:"e,omitempty"`
}

// KeySet returns the keys that verify the tokens of this server: the one that
// signs, the one that will, and those whose last token has not expired yet.
func (i *Issuer) KeySet() KeySet {
	ring := i.keys()
	keys := make([]jwk, 0, len(ring.verify))
	for _, key := range ring.verify {
		if !i.registry.keyRevoked(key.id) {
			keys = append(keys, key.jwk)
		}
	}
	slices.SortFunc(keys, func(a, b jwk) int {
		switch signing := ring.signing.id; signing {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	return KeySet{keys}
}

func newJWK(public crypto.PublicKey) (jwk, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 0x04, x and y, each of the field's size
		if err != nil {
			return jwk{}, err
		}
		size := (len(point) - 1) / 2
		return jwk{Type: "EC", Curve: public.Curve.Params().Name, X: b64(point[1 : 1+size]), Y: b64(point[1+size:])}, nil
	case ed25519.PublicKey:
		return jwk{Type: "OKP", Curve: "Ed25519", X: b64(public)}, nil
	case *rsa.PublicKey:
		return jwk{Type: "RSA", N: b64(public.N.Bytes()), E: b64(big.NewInt(int64(public.E)).Bytes())}, nil
	}
	return jwk{}, fmt.Errorf("no JWK for %T", public)
}

// verifyKey returns the key with its algorithm: the one that it names, else the
// one that its kind goes with.
func (k jwk) verifyKey() (verifyKey, error) {
	public, err := k.public()
	if err != nil {
		return verifyKey{}, err
	}
	key, err := newVerifyKey(public, k.Algorithm)
	if err != nil {
		return verifyKey{}, err
	}
	if k.Algorithm != "" && !key.goesWith(k.Algorithm) {
		return verifyKey{}, errors.New("is for an algorithm that does not go with it, or is not supported")
	}
	key.id = k.ID
	return key, nil
}

// goesWith reports whether the name is one of the key's algorithm. RFC 9864 has
// given EdDSA with that curve a name of its own.
func (k verifyKey) goesWith(algorithm string) bool {
	return algorithm == k.method.Alg() || algorithm == "Ed25519" && k.method == jwt.SigningMethodEdDSA
}

// maxRSABits bounds what a signature of a client's key costs to verify.
const maxRSABits = 4096

func (k jwk) public() (crypto.PublicKey, error) {
	number := func(text string) []byte {
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil
		}
		return decoded
	}
	switch {
	case k.Type == "EC" && k.Curve == "P-256":
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, number(k.X), number(k.Y)))
		if err != nil {
			return nil, errors.New("is no point of its curve")
		}
		return public, nil
	case k.Type == "OKP" && k.Curve == "Ed25519":
		if public := number(k.X); len(public) == ed25519.PublicKeySize {
			return ed25519.PublicKey(public), nil
		}
		return nil, errors.New("is not of the size of its curve")
	case k.Type == "RSA":
		n, e := new(big.Int).SetBytes(number(k.N)), new(big.Int).SetBytes(number(k.E))
		// A small exponent makes forgeries easy where padding is checked badly, a
		// large one verification slow.
		if n.BitLen() > maxRSABits || n.Bit(0) == 0 || !e.IsInt64() || e.Int64() < 65537 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
			return nil, errors.New("has a modulus or an exponent that is not supported")
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
	}
	return nil, errors.New("is of a kind that is not supported: use EC with P-256, OKP with Ed25519, or RSA")
}

// thumbprint returns the RFC 7638 thumbprint: the SHA-256 of the key's required
// members, in lexicographic order and without white space.
func (k jwk) thumbprint() string {
	var required string
	switch k.Type {
	case "EC":
		required = fmt.Sprintf(`{"crv":%q,"kty":"EC","x":%q,"y":%q}`, k.Curve, k.X, k.Y)
	case "OKP":
		required = fmt.Sprintf(`{"crv":%q,"kty":"OKP","x":%q}`, k.Curve, k.X)
	case "RSA":
		required = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, k.E, k.N)
	}
	sum := sha256.Sum256([]byte(required))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

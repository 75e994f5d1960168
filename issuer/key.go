package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// verifyKey is the public half of a key that signs, or has signed, tokens. The
// key decides the algorithm; a token's header never does (RFC 8725 section 3.1).
type verifyKey struct {
	id     string // RFC 7638 thumbprint
	method jwt.SigningMethod
	public crypto.PublicKey
	jwk    jwk
}

// signingKey is a key that signs tokens.
type signingKey struct {
	verifyKey
	private crypto.Signer
	header  string // of its tokens, encoded, with the dot behind it
}

// methodPS256 takes salts of 32 bytes alone, as RFC 7518 section 3.5 has it;
// golang-jwt's own takes any.
var methodPS256 = &jwt.SigningMethodRSAPSS{
	SigningMethodRSA: jwt.SigningMethodPS256.SigningMethodRSA,
	Options:          jwt.SigningMethodPS256.Options,
	VerifyOptions:    &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash},
}

const minRSABits = 2048 // RFC 7518 section 3.3

// The algorithms of the keys that the server makes, RFC 7518 section 3.1 and
// RFC 8037 section 3.1. Ed25519 goes by its older name, which more clients know.
var signingAlgorithms = map[string]func() (crypto.Signer, error){
	"ES256": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"EdDSA": func() (crypto.Signer, error) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	},
	"RS256": generateRSA,
	"PS256": generateRSA,
}

func generateRSA() (crypto.Signer, error) {
	const bits = 3072 // as strong as P-256, NIST SP 800-57 part 1, table 2
	return rsa.GenerateKey(rand.Reader, bits)
}

// generateSigningKey returns a new key, with an id that no command line takes for a
// flag: one in 64 thumbprints begins with a dash.
func generateSigningKey(algorithm string) (signingKey, error) {
	for {
		private, err := signingAlgorithms[algorithm]()
		if err != nil {
			return signingKey{}, err
		}
		if k, err := newSigningKey(private, algorithm); err != nil || k.id[0] != '-' {
			return k, err
		}
	}
}

// parseSigningKey reads a private key as PEM, in PKCS#8 or SEC 1. Its errors
// repeat nothing of the text.
func parseSigningKey(text []byte) (signingKey, error) {
	block, rest := pem.Decode(text)
	if block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam writes it first
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return signingKey{}, errors.New("holds no PEM block")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return signingKey{}, errors.New("holds more than one PEM block; leave only the private key")
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return signingKey{}, errors.New("is in PKCS#1; convert it with: openssl pkcs8 -topk8 -nocrypt -in key.pem")
	case "ENCRYPTED PRIVATE KEY":
		return signingKey{}, errors.New("is encrypted; decrypt it with: openssl pkcs8 -in key.pem")
	default:
		return signingKey{}, errors.New("holds no private key in PKCS#8 or SEC 1")
	}
	if err != nil {
		return signingKey{}, errors.New("holds a private key that can't be read")
	}
	private, ok := parsed.(crypto.Signer)
	if !ok {
		return signingKey{}, errors.New("holds a key that can't sign")
	}
	return newSigningKey(private, "")
}

// newSigningKey settles the algorithm as newVerifyKey does.
func newSigningKey(private crypto.Signer, algorithm string) (signingKey, error) {
	public, err := newVerifyKey(private.Public(), algorithm)
	if err != nil {
		return signingKey{}, err
	}
	header := fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":%q}`, public.method.Alg(), public.id, tokenType)
	encoded := base64.RawURLEncoding.EncodeToString([]byte(header)) + "."
	return signingKey{verifyKey: public, private: private, header: encoded}, nil
}

// newVerifyKey settles the algorithm that goes with a key, and its id. PS256 has
// to be asked for, since RSA keys go with RS256 too; the other kinds have one.
func newVerifyKey(public crypto.PublicKey, algorithm string) (verifyKey, error) {
	k := verifyKey{public: public}
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256():
			k.method = jwt.SigningMethodES256
		case elliptic.P384():
			k.method = jwt.SigningMethodES384
		case elliptic.P521():
			k.method = jwt.SigningMethodES512
		default:
			return verifyKey{}, errors.New("is on a curve that JWS has no algorithm for; use P-256")
		}
	case ed25519.PublicKey:
		k.method = jwt.SigningMethodEdDSA
	case *rsa.PublicKey:
		if public.N.BitLen() < minRSABits {
			return verifyKey{}, fmt.Errorf("is an RSA key of fewer than %d bits", minRSABits)
		}
		k.method = jwt.SigningMethodRS256
		if algorithm == methodPS256.Alg() {
			k.method = methodPS256
		}
	default:
		return verifyKey{}, errors.New("is of a kind that can't sign tokens; use EC P-256, Ed25519 or RSA")
	}
	var err error
	if k.jwk, err = newJWK(public); err != nil {
		return verifyKey{}, err
	}
	k.id = k.jwk.thumbprint()
	k.jwk.ID, k.jwk.Use, k.jwk.Algorithm = k.id, "sig", k.method.Alg()
	return k, nil
}

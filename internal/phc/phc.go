// Package phc compares secrets with hashes of them that other servers have made:
// PHC strings and their kin, as bcrypt, argon2id, scrypt and PBKDF2 have them.
package phc

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // G505: as part of PBKDF2, where nothing is known against it
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
)

// Hash is a hash of a secret. Its zero value fits none.
type Hash struct {
	fits func(secret string) bool
}

// The most that one comparison may cost. Each takes up to about a second of a
// processor.
const (
	maxBcryptCost       = 14
	maxMemory           = 128 << 20       // bytes, of argon2id and scrypt
	maxMemoryPasses     = 1 << 30         // bytes times passes over them
	maxPBKDF2Iterations = 2_000_000       // of SHA-1 or SHA-2
	maxLength           = 1 << 10         // bytes of the text
	minDigest           = 16              // bytes: less of it is guessed
	maxDigest           = sha512.Size * 2 // bytes
)

// Parse reads a hash. Its error tells what is wrong, and nothing of the hash.
func Parse(text string) (Hash, error) {
	if len(text) > maxLength {
		return Hash{}, fmt.Errorf("is longer than %d bytes", maxLength)
	}
	parts := strings.Split(text, "$")
	if len(parts) < 4 || parts[0] != "" {
		return Hash{}, errors.New("is no PHC string: $bcrypt…, $argon2id$…, $scrypt$… or $pbkdf2-sha256$…")
	}
	name, _, _ := strings.Cut(parts[1], "-")
	var fits func(string) bool
	var err error
	switch name {
	case "2a", "2b", "2x", "2y":
		fits, err = parseBcrypt(text, parts)
	case "argon2id":
		fits, err = parseArgon2id(parts)
	case "scrypt":
		fits, err = parseScrypt(parts)
	case "pbkdf2":
		fits, err = parsePBKDF2(parts)
	default:
		return Hash{}, errors.New("is of an algorithm that is not known: bcrypt, argon2id, scrypt and PBKDF2 are")
	}
	return Hash{fits}, err
}

// New returns a hash of a secret: argon2id, at the least cost that OWASP
// recommends, which takes some 20 ms and 19 MiB.
func New(secret string) string {
	const memory, passes, threads = 19 << 10, 2, 1
	salt := newSalt()
	digest := argon2.IDKey([]byte(secret), salt, passes, memory, threads, 32)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, memory, passes, threads, encode(salt), encode(digest))
}

// NewFast returns a hash of a secret that was drawn by lot from 2^112 or more, which
// needs no slow one (NIST SP 800-63B section 5.1.2.2): a single HMAC-SHA-256.
func NewFast(secret string) string {
	salt := newSalt()
	digest, err := pbkdf2.Key(sha256.New, secret, salt, 1, sha256.Size)
	if err != nil { // only where FIPS 140 is enforced, and the salt too short
		panic(err)
	}
	return fmt.Sprintf("$pbkdf2-sha256$i=1,l=%d$%s$%s", len(digest), encode(salt), encode(digest))
}

// Fits reports whether it is the hash of the secret.
func (h Hash) Fits(secret string) bool { return h.fits != nil && h.fits(secret) }

var errForm = errors.New("is not of the form that its algorithm has")

func parseBcrypt(text string, parts []string) (func(string) bool, error) {
	if parts[1] == "2x" {
		return nil, errors.New("is of the faulty bcrypt 2x, which can't be compared")
	}
	cost, err := bcrypt.Cost([]byte(text))
	if err != nil || len(parts) != 4 {
		return nil, errForm
	}
	if cost > maxBcryptCost {
		return nil, fmt.Errorf("has the bcrypt cost %d; the most is %d", cost, maxBcryptCost)
	}
	return func(secret string) bool {
		return bcrypt.CompareHashAndPassword([]byte(text), []byte(secret)) == nil
	}, nil
}

// parseArgon2id reads $argon2id$v=19$m=65536,t=3,p=4$salt$digest.
func parseArgon2id(parts []string) (func(string) bool, error) {
	if len(parts) != 6 || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return nil, errForm
	}
	n, ok := parameters(parts[3], "m", "t", "p")
	salt, digest, good := saltAndDigest(parts[4:])
	memory, passes, threads := n[0], n[1], n[2]
	switch {
	case !ok || !good || threads > 255 || memory < 8*threads:
		return nil, errForm
	case memory<<10 > maxMemory || memory<<10*passes > maxMemoryPasses:
		return nil, fmt.Errorf("takes %d MiB of memory %d times; the most are %d MiB, and %d in all", memory>>10, passes, maxMemory>>20, maxMemoryPasses>>20)
	}
	return func(secret string) bool {
		return same(digest, argon2.IDKey([]byte(secret), salt, uint32(passes), uint32(memory), uint8(threads), uint32(len(digest)))) //nolint:gosec // G115: bounded above
	}, nil
}

// parseScrypt reads $scrypt$ln=16,r=8,p=1$salt$digest.
func parseScrypt(parts []string) (func(string) bool, error) {
	if len(parts) != 5 {
		return nil, errForm
	}
	n, ok := parameters(parts[2], "ln", "r", "p")
	salt, digest, good := saltAndDigest(parts[3:])
	ln, r, p := n[0], n[1], n[2]
	if !ok || !good {
		return nil, errForm
	}
	if ln > 24 || r > 1<<10 || p > 1<<10 || 128*r<<ln > maxMemory || 128*r*p<<ln > maxMemoryPasses {
		return nil, fmt.Errorf("takes more memory than %d MiB, or too much time", maxMemory>>20)
	}
	return func(secret string) bool {
		key, err := scrypt.Key([]byte(secret), salt, 1<<ln, r, p, len(digest))
		return err == nil && same(digest, key)
	}, nil
}

// parsePBKDF2 reads $pbkdf2-sha256$i=100000,l=32$salt$digest, and the same with
// the number of iterations alone, as passlib has it.
func parsePBKDF2(parts []string) (func(string) bool, error) {
	functions := map[string]func() hash.Hash{
		"pbkdf2": sha1.New, "pbkdf2-sha1": sha1.New, "pbkdf2-sha224": sha256.New224,
		"pbkdf2-sha256": sha256.New, "pbkdf2-sha384": sha512.New384, "pbkdf2-sha512": sha512.New,
	}
	function, known := functions[parts[1]]
	if !known || len(parts) != 5 {
		return nil, errForm
	}
	salt, digest, good := saltAndDigest(parts[3:])
	iterations, ok := number(parts[2])
	if !ok {
		var n [3]int
		n, ok = parameters(parts[2], "i", "l")
		iterations, good = n[0], good && n[1] == len(digest)
	}
	switch {
	case !ok || !good:
		return nil, errForm
	case iterations > maxPBKDF2Iterations:
		return nil, fmt.Errorf("has %d iterations of PBKDF2; the most are %d", iterations, maxPBKDF2Iterations)
	}
	return func(secret string) bool {
		key, err := pbkdf2.Key(function, secret, salt, iterations, len(digest))
		return err == nil && same(digest, key)
	}, nil
}

// parameters reads positive numbers: "m=65536,t=3,p=4" for the names m, t and p.
func parameters(text string, names ...string) (numbers [3]int, ok bool) {
	values := strings.Split(text, ",")
	if len(values) != len(names) {
		return numbers, false
	}
	for at, name := range names {
		value, found := strings.CutPrefix(values[at], name+"=")
		if numbers[at], ok = number(value); !found || !ok {
			return numbers, false
		}
	}
	return numbers, true
}

func number(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 31)
	return int(n), err == nil && n > 0
}

func saltAndDigest(parts []string) (salt, digest []byte, ok bool) {
	salt, right := decode(parts[0])
	digest, good := decode(parts[1])
	return salt, digest, right && good && len(digest) >= minDigest && len(digest) <= maxDigest
}

// decode reads base64 as PHC strings have it: without padding, which some add,
// and in the alphabet of passlib too.
func decode(text string) ([]byte, bool) {
	text = strings.ReplaceAll(strings.TrimRight(text, "="), ".", "+")
	decoded, err := base64.RawStdEncoding.Strict().DecodeString(text)
	return decoded, err == nil && len(decoded) > 0
}

func encode(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

func newSalt() []byte {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails: it ends the process instead
	return salt
}

func same(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

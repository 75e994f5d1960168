package issuer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/lru"
	"github.com/clientcredentials/caddy-client-credentials/internal/phc"
)

// foreignSecrets compares the secrets that came from other servers with their
// hashes, which are slow on purpose: few at a time, and each once.
type foreignSecrets struct {
	places  chan struct{}
	waiting atomic.Int64
	// proven are the right ones of late, by their slow hashes, as this server
	// hashes its own.
	proven *lru.Cache[string, hashedSecret]
}

const (
	provenSecrets = 10_000
	// maxWaiting bounds how many requests wait for a comparison. Each takes up to
	// a second.
	maxWaiting = 32
	// bcryptLength is how many bytes of a secret bcrypt looks at.
	bcryptLength = 72
)

func newForeignSecrets(places int) *foreignSecrets {
	return &foreignSecrets{places: make(chan struct{}, places), proven: lru.New[string, hashedSecret](provenSecrets)}
}

var errTooManyComparisons = errors.New("too many requests wait for the comparison of a slow hash")

// fit reports whether it is the secret of the slow hash. It returns an error where
// it cannot tell.
func (f *foreignSecrets) fit(ctx context.Context, keys *keyring, slow, clientID, secret string) (bool, error) {
	hash, err := phc.Parse(slow)
	if err != nil {
		return false, errors.New("the hash of a secret can't be read: it " + err.Error())
	}
	defer f.waiting.Add(-1)
	if f.waiting.Add(1) > maxWaiting {
		return false, errTooManyComparisons
	}
	if err := f.enter(ctx); err != nil {
		return false, err
	}
	defer f.leave()
	if !hash.Fits(secret) {
		return false, nil
	}
	f.proven.Put(slow, keys.hash(clientID, secret), 1)
	return true, nil
}

// hash returns a slow hash of a secret. It returns the error of ctx where it waits
// for a place in vain.
func (f *foreignSecrets) hash(ctx context.Context, secret string) (string, error) {
	if err := f.enter(ctx); err != nil {
		return "", err
	}
	defer f.leave()
	return phc.New(secret), nil
}

// enter waits for a place: each takes a processor, and up to 128 MiB of memory.
func (f *foreignSecrets) enter(ctx context.Context) error {
	select {
	case f.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *foreignSecrets) leave() { <-f.places }

// compareSlow compares what the client sent with slow hashes, one after the other.
// It returns the secret, and the hash that it fits, and an error where it cannot
// tell.
func (i *Issuer) compareSlow(ctx context.Context, hashes []hashedSecret, auth ClientAuthentication, now time.Time) (right string, by hashedSecret, found bool, err error) {
	for _, hash := range hashes {
		if hash.Slow == "" || !hash.live(now) {
			continue
		}
		if auth.Suspect != nil && auth.Suspect() {
			return "", by, false, nil
		}
		for _, secret := range auth.Secrets {
			fits, err := i.registry.foreign.fit(ctx, i.keys(), hash.Slow, auth.ClientID, secret)
			if fits || err != nil {
				return secret, hash, fits, err
			}
		}
	}
	return "", by, false, nil
}

// rehash durably replaces the slow hash of a secret that was right by one of this
// server's own, if nobody could guess the secret from that. Where it fails, the
// next use tries again.
func (i *Issuer) rehash(ctx context.Context, clientID, slow, secret string) {
	// Of a longer secret, bcrypt has seen the beginning alone: this may be another one.
	if !strongSecret(secret) || strings.HasPrefix(slow, "$2") && len(secret) > bcryptLength {
		return
	}
	fast := i.keys().hash(clientID, secret)
	_, err := i.change(context.WithoutCancel(ctx), nil, "", clientID, func(c, _ *Credential) error {
		c.Hashes = slices.Clone(c.Hashes)
		for n := range c.Hashes {
			if h := &c.Hashes[n]; h.Slow == slow {
				h.Pepper, h.Hash, h.Hint, h.Slow = fast.Pepper, fast.Hash, fast.Hint, ""
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrFull) {
		caddy.Log().Named("client_credentials").Warn("keeping the fast hash of a secret", zap.Error(err))
	}
}

// strongSecret reports whether a secret looks as if it had been drawn by lot from
// 2^112 or more, for which NIST SP 800-63B asks for no slow hash. What has the
// form of words, or repeats itself, does not.
func strongSecret(secret string) bool {
	const (
		fewest = 12  // different characters
		enough = 112 // bits
	)
	different := make(map[rune]bool)
	digits, letters, others := 0, 0, 0
	for _, c := range secret {
		different[c] = true
		switch {
		case c == ' ':
			return false
		case '0' <= c && c <= '9':
			digits++
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			letters++
		default:
			others++
		}
	}
	bits := 5.9 // of letters of both cases, digits and the like
	if strings.ToLower(secret) == secret || strings.ToUpper(secret) == secret {
		bits = 4 // as hexadecimal has them
	}
	return len(different) >= fewest && digits > 0 && letters > 0 && bits*float64(digits+letters+others) >= enough
}

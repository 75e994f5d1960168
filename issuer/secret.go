package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// hashedSecret is what is kept of a secret: HMAC-SHA-256 under the pepper of that
// number, and what tells people which one it is.
type hashedSecret struct {
	Pepper int        `json:"pepper"`
	Hash   secretHash `json:"hash,omitzero"`
	// Slow is a PHC string instead, of a secret that another server has hashed.
	Slow string `json:"slow,omitempty"`
	// Hint is the end of the secret; empty where an earlier release has made it.
	Hint secretHint `json:"hint,omitzero"`
	// Created and Expires are in milliseconds since 1970. Zero is for the time at
	// which the credential was created, and for never.
	Created int64 `json:"created,omitempty"`
	Expires int64 `json:"expires,omitempty"`
}

type (
	secretHash [sha256.Size]byte
	secretHint [4]byte
)

// MarshalText returns the hash in base64.
func (h secretHash) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, h[:]), nil
}

// UnmarshalText reads a hash in base64.
func (h *secretHash) UnmarshalText(text []byte) error {
	decoded, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || len(decoded) != len(h) {
		return errors.New("no hash of a secret")
	}
	*h = secretHash(decoded)
	return nil
}

// MarshalText returns the hint as it is.
func (h secretHint) MarshalText() ([]byte, error) { return h[:], nil }

// UnmarshalText reads a hint.
func (h *secretHint) UnmarshalText(text []byte) error {
	if len(text) != len(h) {
		return errors.New("no hint of a secret")
	}
	*h = secretHint(text)
	return nil
}

// hintOf returns the end of a secret, if that leaves enough of it to guess.
func hintOf(secret string) (h secretHint) {
	const enough = 16 // characters
	if len(secret) < enough {
		return h
	}
	end := secret[len(secret)-len(h):]
	for i := range len(end) {
		if end[i] <= 0x20 || end[i] >= 0x7F {
			return h
		}
	}
	copy(h[:], end)
	return h
}

func (h hashedSecret) live(now time.Time) bool {
	return h.Expires == 0 || now.UnixMilli() < h.Expires
}

// id names the secret. It follows from the hash, so that secrets have one that
// were made before there were names, and tells nothing of it.
func (h hashedSecret) id() string {
	hash := h.Hash[:]
	if h.Slow != "" {
		hash = []byte(h.Slow)
	}
	sum := sha256.Sum256(append([]byte("client_credentials secret\x00"), hash...))
	return hex.EncodeToString(sum[:8])
}

// Secret is what is known of a secret.
type Secret struct {
	ID string
	// Hint is the last four characters; empty where they are not known.
	Hint    string
	Created time.Time
	// Expires is when it ends; zero for never.
	Expires time.Time
}

const (
	// DefaultOverlap is how long the earlier secrets of a credential work beside a
	// new one.
	DefaultOverlap = 24 * time.Hour

	maxOverlap = 365 * 24 * time.Hour
	// maxSecrets bounds what a wrong secret costs: each live one is compared.
	maxSecrets = 5
)

var (
	// ErrTooManySecrets says that a credential has as many live secrets as it can.
	ErrTooManySecrets = fmt.Errorf("the credential has %d secrets that work: delete one, or wait until one has ended", maxSecrets)
	// ErrLastSecret says that without that secret the client could not
	// authenticate any more.
	ErrLastSecret = errors.New("the credential has no other secret and no keys: add a secret first, or revoke the credential")
)

// Secrets returns the secrets that work, in the order in which they were made.
func (c *Credential) Secrets(now time.Time) []Secret {
	live := []Secret{}
	for _, h := range c.liveSecrets(now) {
		live = append(live, c.describe(h))
	}
	return live
}

func (c *Credential) describe(h hashedSecret) Secret {
	s := Secret{ID: h.id(), Created: c.Created}
	if h.Hint != (secretHint{}) {
		s.Hint = string(h.Hint[:])
	}
	if h.Created != 0 {
		s.Created = time.UnixMilli(h.Created)
	}
	if h.Expires != 0 {
		s.Expires = time.UnixMilli(h.Expires)
	}
	return s
}

// liveSecrets returns a list of its own.
func (c *Credential) liveSecrets(now time.Time) []hashedSecret {
	return slices.DeleteFunc(slices.Clone(c.Hashes), func(h hashedSecret) bool { return !h.live(now) })
}

// AddSecret durably adds a secret to a credential of the account; of any, where it
// is empty. It returns what is known of it, and the secret itself, which can't be
// read again. The earlier ones end after overlap; where that is zero, at once, and
// with them all tokens. It returns ErrNotFound where there is no such credential
// in the account, ErrTooManySecrets, and an *InputError where the overlap is wrong.
func (i *Issuer) AddSecret(ctx context.Context, account, clientID string, overlap time.Duration) (Secret, string, error) {
	return i.addSecret(ctx, nil, account, clientID, overlap)
}

// AddSecretFor does the same on behalf of another credential, within its reach.
// Who knows the secret of a credential can act as that: so it returns a
// *GrantError where that has more than the caller may grant, unless it is the
// caller itself. It returns ErrCallerEnded where the caller was revoked since it
// was admitted.
func (i *Issuer) AddSecretFor(ctx context.Context, caller Caller, clientID string, overlap time.Duration) (Secret, string, error) {
	return i.addSecret(ctx, &caller, caller.Reach(), clientID, overlap)
}

func (i *Issuer) addSecret(ctx context.Context, caller *Caller, account, clientID string, overlap time.Duration) (Secret, string, error) {
	if overlap < 0 || overlap > maxOverlap {
		return Secret{}, "", &InputError{"overlap", fmt.Sprintf("takes 0s to %v", maxOverlap)}
	}
	secret := newSecret()
	c, err := i.change(ctx, caller, account, clientID, func(c, by *Credential) error {
		if by != nil && by.ClientID != c.ClientID && !i.mayActAs(by, c) {
			return &GrantError{"the credential", "has what the caller may not grant, and who sets its secret can act as it"}
		}
		return c.rotate(i.keys().hash(clientID, secret), overlap, time.Now())
	})
	if err != nil {
		return Secret{}, "", err
	}
	return c.describe(c.Hashes[len(c.Hashes)-1]), secret, nil
}

// mayActAs reports whether a credential could create such a one as another is.
func (i *Issuer) mayActAs(by, c *Credential) bool {
	grantable := by.MayGrant()
	return HasAll(grantable, c.Scopes) && HasAll(grantable, c.MayGrant()) && HasAll(i.Audiences(by), i.Audiences(c)) &&
		i.lifetime(c) <= i.lifetime(by) && c.beyond(by.Limits) == "" && keepsClaims(by.Claims, by.Claims, c.Claims)
}

// rotate adds a secret, and has the others end after overlap.
func (c *Credential) rotate(added hashedSecret, overlap time.Duration, now time.Time) error {
	var hashes []hashedSecret
	if overlap == 0 {
		c.Epoch++
	} else if hashes = c.liveSecrets(now); len(hashes) >= maxSecrets {
		return ErrTooManySecrets
	}
	for n := range hashes {
		if end := now.Add(overlap).UnixMilli(); hashes[n].Expires == 0 || hashes[n].Expires > end {
			hashes[n].Expires = end
		}
	}
	added.Created = now.UnixMilli()
	c.Hashes = append(hashes, added)
	return nil
}

// DeleteSecret durably ends a secret of a credential of the account, or of any,
// and with it all tokens that the credential has obtained. It returns ErrNotFound
// where there is no such credential in the account, or that has no such secret,
// and ErrLastSecret.
func (i *Issuer) DeleteSecret(ctx context.Context, account, clientID, id string) error {
	_, err := i.change(ctx, nil, account, clientID, func(c, _ *Credential) error {
		live := c.liveSecrets(time.Now())
		left := slices.DeleteFunc(slices.Clone(live), func(h hashedSecret) bool { return h.id() == id })
		switch {
		case len(left) == len(live):
			return ErrNotFound
		case len(left) == 0 && c.Keys == nil && c.KeysURL == "":
			return ErrLastSecret
		}
		c.Hashes = left
		c.Epoch++
		return nil
	})
	return err
}

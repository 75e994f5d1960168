package issuer

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/phc"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Import is a credential that another server has made, or this one earlier.
type Import struct {
	Draft
	ClientID string
	// Created is the time of the import where it is zero.
	Created  time.Time
	Disabled bool
	// Secret is a secret in the clear, or empty.
	Secret string
	// Hashes are those of its secrets.
	Hashes []SecretHash
}

// SecretHash is the hash of a secret: a PHC string of bcrypt, argon2id, scrypt or
// PBKDF2, or what Export has written.
type SecretHash struct {
	Hash string
	// Hint is the last four characters of the secret, or empty.
	Hint string
	// Created is the time at which its credential was created where it is zero.
	Created time.Time
	// Expires is when the secret ends; zero for never.
	Expires time.Time
}

// ErrExists says that there is such a credential, or has been.
var ErrExists = errors.New("there is a credential of that client id, or was one that is revoked")

// Import durably keeps a credential that was made elsewhere; try only looks
// whether it could. It returns ErrExists, and an *InputError where it is wrong.
func (i *Issuer) Import(ctx context.Context, m Import, try bool) error {
	if m.Account == "" {
		m.Account = DefaultAccount
	}
	now := time.Now()
	if err := i.validateImport(&m, now); err != nil {
		return err
	}
	hashes, err := i.importedHashes(ctx, &m, now)
	if err != nil {
		return err
	}
	if m.Created.IsZero() {
		m.Created = now
	}
	c := newCredential(m.Draft, shown(m.Created), hashedSecret{}, m.ClientID)
	c.Hashes, c.Disabled = hashes, m.Disabled
	if try {
		switch _, err := i.store.Get(ctx, credentialKey(c.ClientID)); {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return fmt.Errorf("importing a credential: %w", err)
		}
		return ErrExists
	}
	err = i.keep(ctx, c, &store.Batch{})
	if errors.Is(err, store.ErrConflict) {
		return ErrExists
	}
	i.registry.apply(c) // one of that client id may be remembered that was removed long ago
	return err
}

func (i *Issuer) validateImport(m *Import, now time.Time) error {
	switch {
	case !validClientID(m.ClientID):
		return &InputError{"clientId", "takes 1 to 128 letters, digits and the characters . _ - ~ @"}
	case m.Created.After(now):
		return &InputError{"created", "is in the future"}
	case len(m.Hashes) > maxSecrets, len(m.Hashes) == maxSecrets && m.Secret != "":
		return &InputError{"secrets", fmt.Sprintf("are more than %d", maxSecrets)}
	case len(m.Hashes) == 0 && m.Secret == "" && m.Keys == nil && m.KeysURL == "":
		return &InputError{"secrets", "are missing: give one, as secret or by its hash, or jwks or jwksUri"}
	}
	return i.validateDraft(&m.Draft, now)
}

func (i *Issuer) importedHashes(ctx context.Context, m *Import, now time.Time) (hashes []hashedSecret, err error) {
	for _, secret := range m.Hashes {
		if !secret.Expires.IsZero() && !secret.Expires.After(now) { // the year 1970 would be never
			return nil, &InputError{"secrets", "holds one that has expired"}
		}
		h := hashedSecret{}
		if strings.HasPrefix(secret.Hash, ownHashPrefix) {
			h.Pepper, h.Hash, err = i.keys().parseOwnHash(secret.Hash)
		} else {
			_, err = phc.Parse(secret.Hash)
			h.Slow = secret.Hash
		}
		if err != nil {
			return nil, &InputError{"secrets", "holds a hash that " + err.Error()}
		}
		if secret.Hint != "" && h.Hint.UnmarshalText([]byte(secret.Hint)) != nil {
			return nil, &InputError{"secrets", "holds a hint that is not the last four characters of a secret"}
		}
		h.Created, h.Expires = unixMilli(secret.Created), unixMilli(secret.Expires)
		hashes = append(hashes, h)
	}
	switch {
	case m.Secret == "":
	case strongSecret(m.Secret):
		hashes = append(hashes, i.keys().hash(m.ClientID, m.Secret))
	default: // whoever gets hold of the store and its pepper must not guess it
		slow, err := i.registry.foreign.hash(ctx, m.Secret)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, hashedSecret{Slow: slow})
	}
	return hashes, nil
}

// unixMilli returns what stands for a time in a hashedSecret.
func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Export calls fn with each credential that is not revoked, and the hashes of its
// live secrets, in the form that Import takes. Only a server with the same pepper
// can use the hashes of secrets that this one has made.
func (i *Issuer) Export(ctx context.Context, fn func(*Credential, []SecretHash) error) error {
	now := time.Now()
	var failed error
	err := i.eachListed(ctx, "", func(c *Credential) {
		if failed != nil || c.Ended(now) {
			return
		}
		var hashes []SecretHash
		for _, h := range c.liveSecrets(now) {
			text, works := i.keys().exportHash(h)
			if !works {
				continue
			}
			secret := c.describe(h)
			hashes = append(hashes, SecretHash{Hash: text, Hint: secret.Hint, Created: secret.Created, Expires: secret.Expires})
		}
		failed = fn(c, hashes)
	})
	return errors.Join(err, failed)
}

// ownHashPrefix begins the text of a hash of this server's own: the prefix, the
// fingerprint of the pepper in hexadecimal, and the hash in base64, with $ between.
const ownHashPrefix = "$hmac-sha256$pepper="

var (
	errOwnHash      = errors.New("is not of the form that export writes")
	errOtherPepper  = errors.New("was made with a pepper that this store does not have: to move to another store, use copy, or backup and restore")
	fingerprintSize = 8 // bytes
)

// exportHash returns the text of a hash, unless its pepper was lost with a master
// key: no secret fits it then.
func (r *keyring) exportHash(h hashedSecret) (text string, works bool) {
	if h.Slow != "" {
		return h.Slow, true
	}
	p, known := r.peppers[h.Pepper]
	if !known {
		return "", false
	}
	return ownHashPrefix + p.fingerprint() + "$" + base64.RawStdEncoding.EncodeToString(h.Hash[:]), true
}

func (r *keyring) parseOwnHash(text string) (pepper int, hash secretHash, err error) {
	fingerprint, encoded, _ := strings.Cut(strings.TrimPrefix(text, ownHashPrefix), "$")
	decoded, err := base64.RawStdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(decoded) != len(hash) {
		return 0, hash, errOwnHash
	}
	for number, p := range r.peppers {
		if p.fingerprint() == fingerprint {
			return number, secretHash(decoded), nil
		}
	}
	return 0, hash, errOtherPepper
}

// fingerprint tells one pepper from another, and nothing of it.
func (p *pepper) fingerprint() string {
	sum := p.mac("the fingerprint of the pepper", "") // no client id holds a space
	return hex.EncodeToString(sum[:fingerprintSize])
}

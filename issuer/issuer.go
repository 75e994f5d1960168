// Package issuer is the domain: credentials and their secrets, the tokens
// issued for them and the keys that sign those, and revocation. It knows no
// HTTP.
package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Policy is what the configuration says of the tokens.
type Policy struct {
	Issuer        string
	Audience      string
	TokenLifetime time.Duration
}

// Issuer creates credentials, issues tokens for them, and says what a token is
// worth. Its methods may be called from many goroutines.
type Issuer struct {
	policy   Policy
	audience []string // the policy's
	store    store.Store
	registry *registry
	remote   *remoteKeys

	keyPolicy keyPolicy
	ring      atomic.Pointer[keyring]

	verifying flights
}

// ErrNotFound says that there is no such credential, or none that the caller
// may see.
var ErrNotFound = errors.New("no such credential")

// ErrFull says that the store has no room for what shall be kept.
var ErrFull = store.ErrFull

// openIssuer opens the keys of the store, or makes them.
func openIssuer(ctx context.Context, policy Policy, reg *registry, keys keyPolicy, fetcher *fetch.Fetcher) (*Issuer, error) {
	mark, err := reg.raiseMark(ctx, policy.TokenLifetime)
	if err != nil {
		return nil, fmt.Errorf("noting the token lifetime: %w", err)
	}
	reg.settling.Lock()
	defer reg.settling.Unlock()
	ring, err := openKeyring(ctx, reg, keys, mark+clockMargin, reg.now())
	if err != nil {
		return nil, err
	}
	reg.master = keys.master
	i := &Issuer{
		policy:    policy,
		audience:  []string{policy.Audience},
		store:     reg.store,
		registry:  reg,
		remote:    newRemoteKeys(fetcher),
		keyPolicy: keys,
	}
	i.ring.Store(ring)
	return i, nil
}

// keys returns those that count now.
func (i *Issuer) keys() *keyring { return i.ring.Load() }

// Create durably creates a credential and returns it with its secret, which
// can't be read again. It returns an *InputError where the draft is wrong, and a
// *RepeatedError where the same request was carried out before.
func (i *Issuer) Create(ctx context.Context, d Draft) (*Credential, string, error) {
	for {
		c, secret, err := i.create(ctx, d)
		if !errors.Is(err, store.ErrConflict) { // the same request, at the same time
			return c, secret, err
		}
	}
}

// create is Create under further conditions. It returns store.ErrConflict where
// one does not hold.
func (i *Issuer) create(ctx context.Context, d Draft, conditions ...store.Condition) (*Credential, string, error) {
	if d.Account == "" {
		d.Account = DefaultAccount
	}
	now := time.Now()
	if err := d.validate(now); err != nil {
		return nil, "", err
	}
	if d.KeysURL != "" {
		if err := i.remote.check(d.KeysURL); err != nil {
			return nil, "", err
		}
	}
	secret, clientID := newSecret(), newClientID()
	c := newCredential(d, now, i.keys().hash(clientID, secret), clientID)
	value, err := json.Marshal(c)
	if err != nil {
		return nil, "", err
	}
	batch := store.Batch{
		Conditions: append(conditions, store.Condition{Key: credentialKey(clientID)}),
		Puts:       []store.Record{{Key: credentialKey(clientID), Value: value}, {Key: listedKey(c)}},
	}
	if !c.Expires.IsZero() {
		batch.Puts = append(batch.Puts, store.Record{Key: endedKey(c.Expires, clientID)})
	}
	if d.IdempotencyKey != "" {
		if err := i.createOnce(ctx, &d, clientID, now, &batch); err != nil {
			return nil, "", err
		}
	}
	if err := i.store.Commit(ctx, batch); err != nil {
		return nil, "", fmt.Errorf("keeping a new credential: %w", err)
	}
	return c, secret, nil
}

// List returns the active credentials of an account, oldest first; those of
// all accounts, one account after the other, where it is empty.
func (i *Issuer) List(ctx context.Context, account string) ([]*Credential, error) {
	if account != "" && !validAccount(account) {
		return nil, errAccount
	}
	now := time.Now()
	active := []*Credential{}
	err := i.eachListed(ctx, account, func(c *Credential) {
		if c.Active(now) {
			active = append(active, c)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing credentials: %w", err)
	}
	return active, nil
}

// eachListed calls fn with all credentials of an account that are not revoked,
// in the order of List.
func (i *Issuer) eachListed(ctx context.Context, account string, fn func(*Credential)) error {
	prefix := listedPrefix
	if account != "" {
		prefix += account + "/"
	}
	var listed []string
	err := i.store.Scan(ctx, prefix, func(key string, _ []byte) error {
		listed = append(listed, key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range listed {
		c, err := i.registry.read(ctx, key[len(key)-32:])
		if errors.Is(err, store.ErrNotFound) {
			if _, err := i.store.Get(ctx, key); errors.Is(err, store.ErrNotFound) {
				continue // it was removed meanwhile
			}
		}
		if err != nil {
			return err
		}
		if c.Revoked.IsZero() { // since the scan
			fn(c)
		}
	}
	return nil
}

// Revoke revokes a credential of the account; of any, where it is empty. Once
// it has returned nil, the credential gets no token, and none that it has got
// is accepted, also after a crash. It returns ErrNotFound where there is no
// such credential in the account, or it is revoked already.
func (i *Issuer) Revoke(ctx context.Context, account, clientID string) error {
	if !validClientID(clientID) {
		return ErrNotFound
	}
	for {
		err := i.revokeOnce(ctx, account, clientID)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func (i *Issuer) revokeOnce(ctx context.Context, account, clientID string) error {
	before, err := i.store.Get(ctx, credentialKey(clientID))
	if errors.Is(err, store.ErrNotFound) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("revoking a credential: %w", err)
	}
	c, err := decodeCredential(before)
	if err != nil {
		return err
	}
	if account != "" && c.Account != account {
		return ErrNotFound
	}
	if !c.Revoked.IsZero() {
		i.registry.apply(c) // the disk may have taken it, and failed after that
		return ErrNotFound
	}
	var batch store.Batch
	if err := c.revoke(&batch, before, time.Now()); err != nil {
		return err
	}
	// Once begun, it is not given up because the caller went away.
	if err := i.store.Commit(context.WithoutCancel(ctx), batch); err != nil {
		return fmt.Errorf("revoking a credential: %w", err)
	}
	i.registry.apply(c)
	return nil
}

// revoke revokes a credential that was read, and adds what that changes in the
// store to a batch.
func (c *Credential) revoke(batch *store.Batch, before []byte, now time.Time) error {
	c.Revoked = now.UTC()
	c.Epoch++
	c.Version++
	after, err := json.Marshal(c)
	if err != nil {
		return err
	}
	key := credentialKey(c.ClientID)
	batch.Conditions = append(batch.Conditions, store.Condition{Key: key, Value: before})
	batch.Puts = append(batch.Puts, store.Record{Key: key, Value: after}, store.Record{Key: endedKey(c.Revoked, c.ClientID)})
	batch.Deletes = append(batch.Deletes, listedKey(c))
	batch.Urgent = true
	return nil
}

// Audiences returns those that the tokens of a credential can be for.
func (i *Issuer) Audiences(c *Credential) []string {
	if len(c.Audiences) > 0 {
		return c.Audiences
	}
	return i.audience
}

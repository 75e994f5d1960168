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

// ErrStale says that this node has not heard from the store that it shares with
// others for so long that it cannot tell what a token is worth.
var ErrStale = store.ErrStale

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
	if err := i.validateDraft(&d, now); err != nil {
		return nil, "", err
	}
	secret, clientID := newSecret(), newClientID()
	c := newCredential(d, now, i.keys().hash(clientID, secret), clientID)
	batch := store.Batch{Conditions: conditions}
	if d.IdempotencyKey != "" {
		if err := i.createOnce(ctx, &d, clientID, now, &batch); err != nil {
			return nil, "", err
		}
	}
	if err := i.keep(ctx, c, &batch); err != nil {
		return nil, "", err
	}
	return c, secret, nil
}

func (i *Issuer) validateDraft(d *Draft, now time.Time) error {
	if err := d.validate(now); err != nil {
		return err
	}
	if err := i.validateLifetime(d.TokenLifetime); err != nil {
		return err
	}
	if d.KeysURL != "" {
		return i.remote.check(d.KeysURL)
	}
	return nil
}

// keep durably keeps a new credential, with what else is in the batch. It returns
// store.ErrConflict where there is one of that client id.
func (i *Issuer) keep(ctx context.Context, c *Credential, batch *store.Batch) error {
	value, err := json.Marshal(c)
	if err != nil {
		return err
	}
	key := credentialKey(c.ClientID)
	batch.Conditions = append(batch.Conditions, store.Condition{Key: key})
	batch.Puts = append(batch.Puts, store.Record{Key: key, Value: value})
	reindex(batch, nil, append(c.entries(), c.entryByUse(useRecord{})))
	if err := i.store.Commit(ctx, *batch); err != nil {
		return fmt.Errorf("keeping a new credential: %w", err)
	}
	return nil
}

// Get returns a credential of the account; of any, where it is empty. It returns
// ErrNotFound where there is no such credential in the account, or it is revoked.
func (i *Issuer) Get(ctx context.Context, account, clientID string) (*Credential, error) {
	if !validClientID(clientID) {
		return nil, ErrNotFound
	}
	c, err := i.registry.read(ctx, clientID)
	if errors.Is(err, store.ErrNotFound) || err == nil && !c.managedIn(account) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading a credential: %w", err)
	}
	return c, nil
}

// managedIn reports whether who manages the account, or all where it is empty, can
// do anything with the credential.
func (c *Credential) managedIn(account string) bool {
	return c.Revoked.IsZero() && (account == "" || c.Account == account)
}

// List returns the credentials of an account that have not ended, oldest first;
// those of all accounts, one account after the other, where it is empty.
func (i *Issuer) List(ctx context.Context, account string) ([]*Credential, error) {
	if account != "" && !validAccount(account) {
		return nil, errAccount
	}
	now := time.Now()
	all := []*Credential{}
	err := i.eachListed(ctx, account, func(c *Credential) {
		if !c.Ended(now) {
			all = append(all, c)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing credentials: %w", err)
	}
	return all, nil
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
		c, err := i.readEntry(ctx, key)
		if err != nil {
			return err
		}
		if c != nil && c.Revoked.IsZero() { // since the scan
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
	_, err := i.change(ctx, nil, account, clientID, func(c, _ *Credential) error {
		c.revoke(time.Now())
		return nil
	})
	return err
}

// lifetime returns how long a token of the credential lives, if that does not end
// before.
func (i *Issuer) lifetime(c *Credential) time.Duration {
	if c.TokenLifetime > 0 {
		return min(c.TokenLifetime, i.policy.TokenLifetime)
	}
	return i.policy.TokenLifetime
}

// validateLifetime keeps a credential from asking for what the configuration does
// not give; zero asks for nothing.
func (i *Issuer) validateLifetime(lifetime time.Duration) error {
	switch {
	case lifetime < 0 || lifetime%time.Second != 0:
		return &InputError{"tokenLifetime", "takes whole seconds, one at least"}
	case lifetime > i.policy.TokenLifetime:
		return &InputError{"tokenLifetime", fmt.Sprintf("is longer than the configured one, %v", i.policy.TokenLifetime)}
	}
	return nil
}

// Audiences returns those that the tokens of a credential can be for.
func (i *Issuer) Audiences(c *Credential) []string {
	if len(c.Audiences) > 0 {
		return c.Audiences
	}
	return i.audience
}

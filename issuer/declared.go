package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/phc"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// DeclaredCredential is a credential of the configuration, for those who keep
// everything in one place. The API shows it and changes nothing of it. When it is
// not in the configuration any more, it is revoked, and its tokens with it.
type DeclaredCredential struct {
	// The client id: 1 to 128 letters, digits and the characters `. _ - ~ @`.
	// Required.
	ClientID string `json:"client_id,omitempty"`

	// The hashes of its secrets, one to five: what `caddy client-credentials
	// hash-secret` prints, or a PHC string of bcrypt, argon2id, scrypt or PBKDF2.
	// Placeholders are replaced. Required.
	SecretHashes []string `json:"secret_hashes,omitempty"`

	// A label for people. Default: none
	Name string `json:"name,omitempty"`

	// The account that it belongs to. Default: `default`
	Account string `json:"account,omitempty"`

	// The scopes that its tokens may carry. Default: none
	Scopes []string `json:"scopes,omitempty"`

	// What its tokens may be for. Default: the audience of the app.
	Audiences []string `json:"audiences,omitempty"`

	// The scopes that it may give to credentials that it creates. Default: its
	// own, less those for management.
	Grantable []string `json:"grantable,omitempty"`

	// How long its tokens live, in whole seconds; at most the app's
	// `token_lifetime`, which is the default.
	TokenLifetime caddy.Duration `json:"token_lifetime,omitempty"`

	// How many tokens it gets in an hour. Default: no limit
	TokensPerHour int `json:"tokens_per_hour,omitempty"`

	// How many of its requests guards let pass in a second. Default: no limit
	RequestsPerSecond int `json:"requests_per_second,omitempty"`
}

// ErrDeclared says that only the configuration can change the credential.
var ErrDeclared = errors.New("the credential is declared in the server's configuration: change it there")

// ValidateDeclared returns an error where it is no credential that could be kept.
func ValidateDeclared(d DeclaredCredential) error {
	if !validClientID(d.ClientID) {
		return errors.New("a client id takes 1 to 128 letters, digits and the characters . _ - ~ @")
	}
	if n := len(d.SecretHashes); n == 0 || n > maxSecrets {
		return fmt.Errorf("credential %s needs 1 to %d secret_hash: caddy client-credentials hash-secret makes one", d.ClientID, maxSecrets)
	}
	for _, hash := range d.SecretHashes {
		if _, err := phc.Parse(hash); err != nil {
			return fmt.Errorf("credential %s has a secret_hash that %w: caddy client-credentials hash-secret makes one", d.ClientID, err)
		}
	}
	if d.TokenLifetime != 0 {
		if err := ValidateTokenLifetime(time.Duration(d.TokenLifetime)); err != nil {
			return fmt.Errorf("credential %s: %w", d.ClientID, err)
		}
	}
	draft := d.draft()
	if err := draft.validate(time.Now()); err != nil {
		return fmt.Errorf("credential %s: %w", d.ClientID, err)
	}
	return nil
}

// HashSecret returns a hash of a secret for a declaration: a fast one, where the
// secret can't be guessed, and else a slow one.
func HashSecret(secret string) string {
	if strongSecret(secret) {
		return phc.NewFast(secret)
	}
	return phc.New(secret)
}

// NewSecret returns a new secret, as those that the server makes.
func NewSecret() string { return newSecret() }

const declaredPrefix = "declared/" // declared/<client id>, while it is

func (d *DeclaredCredential) draft() Draft {
	draft := Draft{
		Account: d.Account, Scopes: d.Scopes, Audiences: d.Audiences, Grantable: d.Grantable, TokenLifetime: time.Duration(d.TokenLifetime),
		Limits: Limits{d.TokensPerHour, d.RequestsPerSecond},
	}
	if draft.Account == "" {
		draft.Account = DefaultAccount
	}
	if d.Name != "" {
		draft.Name = &d.Name
	}
	return draft
}

// provisionDeclared replaces placeholders in the declared credentials, and
// validates them.
func (a *App) provisionDeclared() error {
	repl := caddy.NewReplacer()
	seen := make(map[string]bool)
	for _, d := range a.Credentials {
		d.SecretHashes = slices.Clone(d.SecretHashes)
		for n, hash := range d.SecretHashes {
			replaced, err := repl.ReplaceOrErr(hash, true, true)
			if err != nil {
				return fmt.Errorf("credential %s: secret_hash: %w", d.ClientID, err)
			}
			d.SecretHashes[n] = replaced
		}
		if err := ValidateDeclared(d); err != nil {
			return err
		}
		if lifetime := time.Duration(d.TokenLifetime); lifetime > a.policy.TokenLifetime {
			return fmt.Errorf("credential %s: token_lifetime is longer than that of the app", d.ClientID)
		}
		if seen[d.ClientID] {
			return fmt.Errorf("credential %s is declared twice", d.ClientID)
		}
		seen[d.ClientID] = true
		a.declared = append(a.declared, d)
	}
	return nil
}

// declare durably has the store hold the credentials that the configuration
// declares, and revokes those that an earlier one has declared.
func (i *Issuer) declare(ctx context.Context, declared []DeclaredCredential) error {
	dropped := make(map[string]bool)
	err := i.store.Scan(ctx, declaredPrefix, func(key string, _ []byte) error {
		dropped[key[len(declaredPrefix):]] = true
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading which credentials were declared: %w", err)
	}
	for _, d := range declared {
		delete(dropped, d.ClientID)
		if err := i.declareOne(ctx, d.ClientID, &d); err != nil {
			return fmt.Errorf("credential %s: %w", d.ClientID, err)
		}
	}
	for clientID := range dropped {
		if err := i.declareOne(ctx, clientID, nil); err != nil {
			return fmt.Errorf("credential %s: %w", clientID, err)
		}
	}
	return nil
}

// declareOne has a credential be as it is declared; revoked, where d is nil.
func (i *Issuer) declareOne(ctx context.Context, clientID string, d *DeclaredCredential) error {
	for {
		err := i.declareOnce(ctx, clientID, d)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func (i *Issuer) declareOnce(ctx context.Context, clientID string, d *DeclaredCredential) error {
	key := declaredPrefix + clientID
	value, err := i.store.Get(ctx, credentialKey(clientID))
	switch {
	case errors.Is(err, store.ErrNotFound) && d == nil: // retention has removed it
		return i.store.Commit(ctx, store.Batch{Deletes: []string{key}})
	case errors.Is(err, store.ErrNotFound):
		c := newCredential(d.draft(), time.Now(), hashedSecret{}, clientID)
		c.Declared, c.Hashes = true, d.hashes(nil)
		err := i.keep(ctx, c, &store.Batch{Puts: []store.Record{{Key: key}}})
		i.registry.apply(c)
		if err == nil {
			i.recordDeclared(ctx, CredentialCreated, c)
		}
		return err
	case err != nil:
		return err
	}
	c, err := decodeCredential(value)
	if err != nil {
		return err
	}
	if !c.Declared {
		return errors.New("there is one of that client id that was created, or imported, and not declared")
	}
	before := *c
	batch := store.Batch{Puts: []store.Record{{Key: key}}}
	if d == nil {
		c.revoke(time.Now())
		batch = store.Batch{Deletes: []string{key}, Urgent: true}
	} else {
		i.redeclare(c, d)
	}
	if c.Account != before.Account {
		used, record, err := readUse(ctx, i.store, clientID)
		if err != nil {
			return err
		}
		batch.Conditions = append(batch.Conditions, store.Condition{Key: usedKey(clientID), Value: used})
		reindex(&batch, []string{before.entryByUse(record)}, []string{c.entryByUse(record)})
	}
	after, err := putChange(&batch, value, &before, c)
	if err != nil || after.Version == before.Version {
		return err
	}
	if err := i.registry.commit(ctx, batch, after); err != nil {
		return err
	}
	if d == nil {
		i.recordDeclared(ctx, CredentialRevoked, after)
	} else {
		i.recordDeclared(ctx, CredentialChanged, after)
	}
	return nil
}

func (i *Issuer) recordDeclared(ctx context.Context, action Action, c *Credential) {
	i.Record(ctx, Change{
		Action: action, ClientID: c.ClientID, Account: c.Account, Scope: strings.Join(c.Scopes, " "), By: ByConfiguration,
	})
}

// redeclare makes the change from what was declared before.
func (i *Issuer) redeclare(c *Credential, d *DeclaredCredential) {
	before, draft := *c, d.draft()
	c.Name, c.Account, c.TokenLifetime = draft.Name, draft.Account, draft.TokenLifetime
	c.Scopes, c.Audiences, c.Grantable = sorted(draft.Scopes), sorted(draft.Audiences), sorted(draft.Grantable)
	c.Limits, c.Revoked = draft.Limits, time.Time{}
	c.Hashes = d.hashes(before.Hashes)
	lost := func(h hashedSecret) bool { return !slices.Contains(d.SecretHashes, h.Slow) }
	if !HasAll(c.Scopes, before.Scopes) || !HasAll(i.Audiences(c), i.Audiences(&before)) || slices.ContainsFunc(before.Hashes, lost) || c.Account != before.Account {
		c.Epoch++ // what tokens say that were issued before is not so any more
	}
}

// hashes returns those of the declaration; what is known of earlier ones stays.
func (d *DeclaredCredential) hashes(earlier []hashedSecret) (hashes []hashedSecret) {
	for _, slow := range d.SecretHashes {
		h := hashedSecret{Slow: slow, Created: time.Now().UnixMilli()}
		if n := slices.IndexFunc(earlier, func(h hashedSecret) bool { return h.Slow == slow }); n >= 0 {
			h = earlier[n]
		}
		hashes = append(hashes, h)
	}
	return hashes
}

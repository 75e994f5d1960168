package issuer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Patch is what a caller says of a credential that it wants changed. What it does
// not name stays as it is.
type Patch struct {
	Name Field[*string]
	// Expires is when it shall stop working; zero for never.
	Expires Field[time.Time]
	Scopes  Field[[]string]
	// Audiences are nil for the configured one.
	Audiences Field[[]string]
	// Grantable is nil for the scopes, less those for management.
	Grantable Field[[]string]
	// TokenLifetime is zero for the configured one.
	TokenLifetime Field[time.Duration]
	// TokensPerHour and RequestsPerSecond are zero for no limit.
	TokensPerHour, RequestsPerSecond Field[int]
	// Claims are a merge patch of the claims; nil to have none.
	Claims  Field[json.RawMessage]
	Enabled Field[bool]

	// Revisions are those of which one must be the credential's Revision; nil for
	// any.
	Revisions []string
}

// Field is a part of a Patch.
type Field[T any] struct {
	Named bool
	Value T
}

// ErrChanged says that a credential is not as the one who wants it changed takes
// it to be.
var ErrChanged = errors.New("the credential was changed meanwhile")

// Change durably changes a credential of the account; of any, where it is empty.
// When it returns, the change counts, for tokens that were issued before too. It
// returns ErrNotFound where there is no such credential in the account, or it is
// revoked, an *InputError where the patch is wrong, and ErrChanged where the
// credential is of another revision.
func (i *Issuer) Change(ctx context.Context, account, clientID string, p Patch) (*Credential, error) {
	return i.change(ctx, nil, account, clientID, func(c, _ *Credential) error {
		return i.patch(c, p)
	})
}

// ChangeFor changes a credential as Change does, on behalf of another one: where
// that reaches, and never so that it has more than the caller may grant, unless it
// had that before. It returns a *GrantError where the patch asks for more, and
// ErrCallerEnded where the caller was revoked since it was admitted.
func (i *Issuer) ChangeFor(ctx context.Context, caller Caller, clientID string, p Patch) (*Credential, error) {
	return i.change(ctx, &caller, caller.Reach(), clientID, func(c, by *Credential) error {
		before := *c
		if err := i.patch(c, p); err != nil {
			return err
		}
		return i.refuseMore(by, &before, c)
	})
}

// change has edit make a change, and carries it out. Where somebody else changes
// the credential or the caller at the same time, it begins anew with what that has
// made of them. Without a caller, edit gets none.
func (i *Issuer) change(ctx context.Context, caller *Caller, account, clientID string, edit func(c, by *Credential) error) (*Credential, error) {
	if !validClientID(clientID) {
		return nil, ErrNotFound
	}
	for {
		c, err := i.changeOnce(ctx, caller, account, clientID, edit)
		if !errors.Is(err, store.ErrConflict) {
			return c, err
		}
	}
}

func (i *Issuer) changeOnce(ctx context.Context, caller *Caller, account, clientID string, edit func(c, by *Credential) error) (*Credential, error) {
	var batch store.Batch
	var by *Credential
	if caller != nil {
		present, unchanged, err := i.present(ctx, *caller)
		if err != nil {
			return nil, err
		}
		by, batch.Conditions = present, append(batch.Conditions, unchanged)
	}
	value, err := i.store.Get(ctx, credentialKey(clientID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("changing a credential: %w", err)
	}
	c, err := decodeCredential(value)
	if err != nil {
		return nil, err
	}
	switch {
	case account != "" && c.Account != account:
		return nil, ErrNotFound
	case !c.Revoked.IsZero():
		return nil, cmp.Or(i.registry.found(ctx, c), ErrNotFound)
	}
	if c.Declared {
		return nil, ErrDeclared
	}
	before := *c
	if err := edit(c, by); err != nil {
		return nil, err
	}
	if c, err = putChange(&batch, value, &before, c); err != nil {
		return nil, err
	}
	if len(batch.Puts) == 0 {
		return c, i.registry.found(ctx, c)
	}
	// Once begun, it is not given up because the caller went away.
	if err := i.registry.commit(context.WithoutCancel(ctx), batch, c); err != nil {
		return nil, fmt.Errorf("changing a credential: %w", err)
	}
	return c, nil
}

// putChange has the batch make a credential that was read what it is after a
// change; nothing, where that changed nothing. It returns what the store will hold.
func putChange(batch *store.Batch, value []byte, before, after *Credential) (*Credential, error) {
	was, err := json.Marshal(before)
	if err != nil {
		return nil, err
	}
	is, err := json.Marshal(after)
	if err != nil || bytes.Equal(was, is) {
		return before, err
	}
	after.Version++
	if is, err = json.Marshal(after); err != nil {
		return nil, err
	}
	key := credentialKey(after.ClientID)
	batch.Conditions = append(batch.Conditions, store.Condition{Key: key, Value: value})
	batch.Puts = append(batch.Puts, store.Record{Key: key, Value: is})
	reindex(batch, before.entries(), after.entries())
	// On a full disk, what ends rights must still be possible.
	batch.Urgent = batch.Urgent || after.Epoch != before.Epoch || outlives(before, after)
	return decodeCredential(is)
}

// revoke ends the credential for good.
func (c *Credential) revoke(now time.Time) {
	c.Revoked = now.UTC()
	c.Epoch++
}

// outlives reports whether a credential expires later than another one.
func outlives(c, other *Credential) bool {
	return !other.Expires.IsZero() && (c.Expires.IsZero() || c.Expires.After(other.Expires))
}

// patch makes the change. The credential's lists are shared, and stay as they are.
func (i *Issuer) patch(c *Credential, p Patch) error {
	if p.Revisions != nil && !slices.Contains(p.Revisions, c.Revision()) {
		return ErrChanged
	}
	if err := i.validatePatch(c, &p); err != nil {
		return err
	}
	claims, err := mergeClaims(c.Claims, p.Claims.Value)
	if err != nil {
		return err
	}
	before := *c
	if p.Name.Named {
		c.Name = p.Name.Value
	}
	if p.Expires.Named {
		c.Expires = shown(p.Expires.Value)
	}
	if p.Scopes.Named {
		c.Scopes = sorted(p.Scopes.Value)
		c.show("scopes", true)
	}
	if p.Audiences.Named {
		c.Audiences = sorted(p.Audiences.Value)
		c.show("audiences", p.Audiences.Value != nil)
	}
	if p.Grantable.Named {
		c.Grantable = sorted(p.Grantable.Value)
		c.show("grantable", p.Grantable.Value != nil)
	}
	if p.TokenLifetime.Named {
		c.TokenLifetime = p.TokenLifetime.Value
		c.show("tokenLifetime", p.TokenLifetime.Value != 0)
	}
	if p.TokensPerHour.Named {
		c.TokensPerHour = p.TokensPerHour.Value
		c.show("tokensPerHour", c.TokensPerHour != 0)
	}
	if p.RequestsPerSecond.Named {
		c.RequestsPerSecond = p.RequestsPerSecond.Value
		c.show("requestsPerSecond", c.RequestsPerSecond != 0)
	}
	if p.Claims.Named {
		c.Claims = claims
		c.show("claims", claims != nil)
	}
	if p.Enabled.Named {
		c.Disabled = !p.Enabled.Value
		c.show("enabled", true)
	}
	if c.Disabled && !before.Disabled || !HasAll(c.Scopes, before.Scopes) || !HasAll(i.Audiences(c), i.Audiences(&before)) {
		c.Epoch++ // what tokens say that were issued before is not so any more
	}
	return nil
}

func (i *Issuer) validatePatch(c *Credential, p *Patch) error {
	switch {
	case p.Scopes.Named && p.Scopes.Value == nil:
		return &InputError{"scopes", "is null: name those that the credential shall have, [] for none"}
	case p.Audiences.Value != nil && len(p.Audiences.Value) == 0:
		return errNoAudience
	}
	if p.Name.Value != nil {
		if err := validateName(*p.Name.Value); err != nil {
			return err
		}
	}
	if !shown(p.Expires.Value).Equal(c.Expires) {
		if err := validateExpires(p.Expires.Value, time.Now()); err != nil {
			return err
		}
	}
	if p.TokenLifetime.Value != c.TokenLifetime {
		if err := i.validateLifetime(p.TokenLifetime.Value); err != nil {
			return err
		}
	}
	return errors.Join(validateScopes("scopes", p.Scopes.Value), validateScopes("grantable", p.Grantable.Value),
		validateAudiences(p.Audiences.Value), Limits{p.TokensPerHour.Value, p.RequestsPerSecond.Value}.validate())
}

// show has the answers of the API show a member beyond the contract, or not.
func (c *Credential) show(member string, shown bool) {
	named := slices.DeleteFunc(slices.Clone(c.Named), func(name string) bool { return name == member })
	if shown {
		named = append(named, member)
	}
	slices.Sort(named)
	c.Named = named
}

// refuseMore returns a *GrantError where a change gives a credential more than the
// one that asks for it may grant. To itself, nobody may grant anything.
func (i *Issuer) refuseMore(by, before, after *Credential) error {
	scopes, audiences := by.MayGrant(), i.Audiences(by)
	problems := [...]string{beyondScopes, beyondAudiences, beyondClaims}
	limits := []Limits{before.Limits, by.Limits}
	oneself := by.ClientID == after.ClientID
	if oneself {
		limits = limits[:1]
		scopes, audiences = nil, nil
		problems = [...]string{beyondOneself, beyondOneself, beyondOneself}
	}
	switch {
	case !HasAll(scopes, without(after.Scopes, before.Scopes)):
		return &GrantError{"scopes", problems[0]}
	case !HasAll(audiences, without(i.Audiences(after), i.Audiences(before))):
		return &GrantError{"audiences", problems[1]}
	case !HasAll(scopes, without(after.MayGrant(), before.MayGrant())):
		return &GrantError{"grantable", problems[0]}
	case i.lifetime(after) > max(i.lifetime(before), i.lifetime(by)):
		return &GrantError{"tokenLifetime", beyondLifetime}
	case after.beyond(limits...) != "":
		return &GrantError{after.beyond(limits...), beyondLimit}
	case oneself && outlives(after, before):
		return &GrantError{"expires", beyondOneself}
	case oneself && !bytes.Equal(after.Claims, before.Claims), !keepsClaims(by.Claims, before.Claims, after.Claims):
		return &GrantError{"claims", problems[2]}
	}
	return nil
}

// without returns what is in a list and not in another.
func without(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(one string) bool { return slices.Contains(other, one) })
}

package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// GrantError says which field of a request asks for more than the caller may
// hand on. It is fit for the caller.
type GrantError struct{ Field, Problem string }

func (e *GrantError) Error() string { return e.Field + " " + e.Problem }

const (
	beyondScopes    = "holds what the caller may not grant: without a list of its own, that is what it has itself, less the rights to manage credentials and tokens"
	beyondAudiences = "holds what the caller may not grant: it has to be among its own"
	beyondLifetime  = "is longer than the caller's own"
	beyondLimit     = "is more than the caller's own"
	beyondClaims    = "has to hold those of the caller's own credential, as they are"
	beyondOneself   = "would give the caller more than it has: nobody can do that for itself"
)

// ErrCallerEnded says that what the caller is known by has ended since it was
// admitted.
var ErrCallerEnded = errors.New("the caller's right to ask has ended meanwhile")

// CreateFor creates a credential as Create does, on behalf of another one: in
// its account, or in any where the caller reaches all, and never with more than
// the caller may grant. Where the draft names no scopes or audiences, the new one
// gets all that may be granted, less the scopes for management. It returns a
// *GrantError where the draft asks for more, and ErrCallerEnded where the caller
// was revoked since it was admitted.
func (i *Issuer) CreateFor(ctx context.Context, caller Caller, d Draft) (*Credential, string, error) {
	d.CreatedBy = caller.Credential.ClientID
	i.registry.creating.RLock()
	defer i.registry.creating.RUnlock()
	for {
		creator, unchanged, err := i.present(ctx, caller)
		if err != nil {
			return nil, "", err
		}
		granted, err := i.granted(creator, caller.Reach(), d)
		if err != nil {
			return nil, "", err
		}
		c, secret, err := i.create(ctx, granted, unchanged)
		if !errors.Is(err, store.ErrConflict) { // of the creator, or of the same request
			return c, secret, err
		}
	}
}

// present returns the caller as the store has it now, and the condition under
// which that is so: nobody grants what was taken from it at the same time, and
// who was revoked has created all that it ever will.
func (i *Issuer) present(ctx context.Context, caller Caller) (*Credential, store.Condition, error) {
	key := credentialKey(caller.Credential.ClientID)
	value, err := i.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, store.Condition{}, ErrCallerEnded
	}
	if err != nil {
		return nil, store.Condition{}, fmt.Errorf("reading the caller's credential: %w", err)
	}
	c, err := decodeCredential(value)
	if err != nil {
		return nil, store.Condition{}, err
	}
	if c.Epoch != caller.epoch || !c.Active(time.Now()) {
		return nil, store.Condition{}, ErrCallerEnded
	}
	return c, store.Condition{Key: key, Value: value}, nil
}

// granted returns the draft with what it leaves to its creator.
func (i *Issuer) granted(creator *Credential, reach string, d Draft) (Draft, error) {
	if d.Account == "" {
		d.Account = creator.Account
	}
	grantable := creator.MayGrant()
	if d.Scopes == nil {
		d.Scopes = withoutManagement(grantable)
	}
	if d.Audiences == nil {
		d.Audiences = creator.Audiences
	} else if len(d.Audiences) == 0 {
		return d, errNoAudience
	}
	if d.TokenLifetime == 0 && creator.TokenLifetime != 0 {
		d.TokenLifetime = i.lifetime(creator)
	}
	d.Limits = d.inherit(creator.Limits)
	if d.Claims == nil {
		d.Claims = creator.Claims
	}
	if err := d.validate(time.Now()); err != nil {
		return d, err
	}
	switch {
	case reach != "" && d.Account != reach:
		return d, &GrantError{"account", "is not the caller's own: to name another needs the scope " + ScopeAdmin}
	case !HasAll(grantable, d.Scopes):
		return d, &GrantError{"scopes", beyondScopes}
	case !HasAll(i.Audiences(creator), d.Audiences):
		return d, &GrantError{"audiences", beyondAudiences}
	case !HasAll(grantable, d.Grantable):
		return d, &GrantError{"grantable", beyondScopes}
	case d.TokenLifetime > i.lifetime(creator) && d.TokenLifetime <= i.policy.TokenLifetime:
		return d, &GrantError{"tokenLifetime", beyondLifetime}
	case d.beyond(creator.Limits) != "":
		return d, &GrantError{d.beyond(creator.Limits), beyondLimit}
	case !keepsClaims(creator.Claims, creator.Claims, d.Claims):
		return d, &GrantError{"claims", beyondClaims}
	}
	return d, nil
}

var errNoAudience = &InputError{"audiences", "is empty: a token must be for somebody"}

// MayGrant returns the scopes that the credential may give to those that it
// creates.
func (c *Credential) MayGrant() []string {
	if c.Grantable != nil {
		return c.Grantable
	}
	return withoutManagement(c.Scopes)
}

func withoutManagement(scopes []string) []string {
	return slices.DeleteFunc(slices.Clone(scopes), isManagement)
}

package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// ErrForeignToken says that the token is another client's, and that the caller
// may not revoke it.
var ErrForeignToken = errors.New("the token was issued to another client")

// Introspect returns the token if it counts now and the caller may know of it
// (RFC 7662 section 4): the client that it was issued to, and who has the scope
// ScopeIntrospect and shares an audience with it. It returns nil for every
// other token, and an error only where it cannot tell.
func (i *Issuer) Introspect(ctx context.Context, caller Caller, token string) (*Token, error) {
	access, err := i.Verify(ctx, token)
	if isRefusal(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t := &access.Token
	if t.ClientID == caller.Credential.ClientID ||
		caller.Has(ScopeIntrospect) && slices.ContainsFunc(i.Audiences(caller.Credential), t.For) {
		return t, nil
	}
	return nil, nil
}

// RevokeToken revokes a single token of the caller, or one of its account where
// it has the scope ScopeRevoke. Once it has returned nil, the token is not
// accepted any more, also after a crash. It returns the token, or nil where it
// did not count anyway (RFC 7009 section 2.2), and ErrForeignToken where it is
// not the caller's to revoke.
func (i *Issuer) RevokeToken(ctx context.Context, caller Caller, token string) (revoked *Token, err error) {
	access, err := i.Verify(ctx, token)
	if refused, ok := errors.AsType[*Refusal](err); ok {
		switch refused.Reason {
		case reasonRevoked: // maybe a moment ago
			return nil, i.registry.await(ctx)
		case reasonCredentialExpired: // which may be given a later expiry
			access, err = i.verify(ctx, token)
		default:
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	t := &access.Token
	if t.ClientID != caller.Credential.ClientID &&
		(!caller.Has(ScopeRevoke) || access.Account != caller.Credential.Account) {
		return nil, ErrForeignToken
	}
	until := t.Expires().Add(clockSetBack).UTC()
	value, err := json.Marshal(revocation{KeepUntil: until})
	if err != nil {
		return nil, err
	}
	key := revokedTokenKey(t.ClientID, t.ID)
	// Once begun, it is not given up because the caller went away.
	ctx = context.WithoutCancel(ctx)
	err = i.store.Commit(ctx, store.Batch{
		Puts:   []store.Record{{Key: key, Value: value}, {Key: revokedUntilKey(key, until)}},
		Urgent: true,
	})
	if err != nil {
		return nil, fmt.Errorf("revoking a token: %w", err)
	}
	i.registry.revokeToken(t)
	i.registry.nodes.rememberToken(t.ClientID+"/"+t.ID, revocation{KeepUntil: until})
	return t, i.registry.await(ctx)
}

// Check returns what a guard that asks for the audience, the default one where
// it is empty, and for all of the scopes would accept the token as. It returns
// a *Refusal where the guard would refuse it, and any other error where it
// cannot tell.
func (i *Issuer) Check(ctx context.Context, token, audience string, scopes []string) (*Token, error) {
	if audience == "" {
		audience = i.policy.Audience
	}
	access, err := i.Verify(ctx, token)
	switch {
	case err != nil:
		return nil, err
	case !access.Token.For(audience):
		return nil, &Refusal{"wrong audience"}
	case slices.ContainsFunc(scopes, func(scope string) bool { return !access.Token.HasScope(scope) }):
		return nil, &Refusal{"insufficient scope"}
	}
	return &access.Token, nil
}

func isRefusal(err error) bool {
	_, refused := errors.AsType[*Refusal](err)
	return refused
}

// revocation is the record of the revocation of a single token.
type revocation struct {
	KeepUntil time.Time `json:"keep_until"`
}

package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Token is an access token that this server has signed, as it was verified. It
// is never changed. Whether it still counts is for Verify to say, each time.
type Token struct {
	ID       string // the jti claim
	ClientID string
	// Scope is the scope claim, and Scopes its parts.
	Scope    string
	Scopes   []string
	Audience []string
	IssuedAt time.Time
	Expires  time.Time

	notBefore time.Time
	epoch     uint64
	state     *state
}

// Access is a token that counts now, and the credential that it was issued for
// as it is now.
type Access struct {
	Token      *Token
	Credential *Credential
}

// Refusal says why a token does not count. The reason is for the operator, from
// a small set, and never tells what was sent.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "token refused: " + r.Reason }

// Verify returns what a token gives access to. It returns a *Refusal where the
// token does not count, and any other error where it cannot tell. Audience and
// scope are for the caller to check.
func (i *Issuer) Verify(ctx context.Context, token string) (Access, error) {
	t, known := i.verified.Get(token)
	if !known {
		var err error
		if t, err = i.verify(ctx, token); err != nil {
			return Access{}, err
		}
	}
	now := time.Now()
	c := t.state.credential.Load()
	switch {
	case !now.Before(t.Expires):
		i.verified.Drop(token)
		return Access{}, &Refusal{"expired"}
	case now.Before(t.notBefore):
		return Access{}, &Refusal{"not valid yet"}
	case !c.Revoked.IsZero() || c.Epoch != t.epoch || t.state.hasRevoked(t.ID):
		i.verified.Drop(token)
		return Access{}, &Refusal{"revoked"}
	case !c.Active(now):
		return Access{}, &Refusal{"credential expired"}
	}
	if !known {
		i.verified.Put(token, t, tokenCost(token))
	}
	return Access{Token: t, Credential: c}, nil
}

// verify checks all of a token that does not change with time.
func (i *Issuer) verify(ctx context.Context, token string) (*Token, error) {
	jws, err := parseCompact(token)
	if err != nil {
		return nil, &Refusal{err.Error()}
	}
	key, known := i.keys.verify[jws.keyID]
	if !known {
		return nil, &Refusal{"unknown key"}
	}
	if jws.algorithm != key.method.Alg() {
		return nil, &Refusal{"wrong algorithm"}
	}
	if err := key.method.Verify(jws.signed, jws.signature, key.public); err != nil {
		return nil, &Refusal{"wrong signature"}
	}
	claims, err := parseClaims(jws.payload)
	if err != nil {
		return nil, &Refusal{err.Error()}
	}
	scopes, ok := SplitScope(claims.scope)
	switch {
	case !ok:
		return nil, &Refusal{"missing or malformed claim scope"}
	case claims.issuer != i.policy.Issuer:
		return nil, &Refusal{"wrong issuer"}
	case claims.subject != claims.clientID:
		return nil, &Refusal{"subject is not the client"}
	case claims.issuedAt.After(time.Now().Add(clockMargin)):
		return nil, &Refusal{"issued in the future"}
	case claims.expires.Sub(claims.issuedAt) > i.registry.longestLifetime():
		// This server never issued it: somebody else has its signing key.
		return nil, &Refusal{"lives too long"}
	}
	st, err := i.registry.state(ctx, claims.clientID)
	if errors.Is(err, store.ErrNotFound) {
		return nil, &Refusal{"unknown client"}
	}
	if err != nil {
		return nil, fmt.Errorf("reading a credential: %w", err)
	}
	return &Token{
		ID:        claims.id,
		ClientID:  claims.clientID,
		Scope:     claims.scope,
		Scopes:    scopes,
		Audience:  claims.audience,
		IssuedAt:  claims.issuedAt,
		Expires:   claims.expires,
		notBefore: claims.notBefore,
		epoch:     claims.epoch,
		state:     st,
	}, nil
}

// For reports whether the token was issued for the audience.
func (t *Token) For(audience string) bool {
	return slices.Contains(t.Audience, audience)
}

// String keeps a token that ends up in a log or a template from telling more
// than which one it is.
func (t *Token) String() string { return "token " + t.ID }

// tokenCost estimates the bytes that a cached token takes: its text and claims,
// and the records that hold them.
func tokenCost(token string) int64 { return int64(2*len(token) + 700) }

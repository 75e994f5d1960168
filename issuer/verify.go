package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Token is an access token that this server has signed, as it was verified.
// Whether it still counts is for Verify to say, each time.
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
	issuer    string
	keyID     string
	epoch     uint64
	state     *state
	// cleared is the version of the revoked tokens of its client that it was
	// last found to be none of.
	cleared atomic.Uint32
	// reissued says that the clock was set back before it was issued, to where
	// tokens of its expiry had been refused as expired, and that it was none of them.
	reissued atomic.Bool
}

// Access is a token that counts now, and the credential that it was issued for
// as it is now.
type Access struct {
	Token      *Token
	Credential *Credential

	at time.Time // when it was found to count
}

// Refusal says why a token does not count. The reason is for the operator, from
// a small set, and never tells what was sent.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "token refused: " + r.Reason }

// Verify returns what a token gives access to. It returns a *Refusal where the
// token does not count, and any other error where it cannot tell. Audience and
// scope are for the caller to check.
func (i *Issuer) Verify(ctx context.Context, token string) (Access, error) {
	t := i.registry.verified.get(token)
	if t == nil {
		var err error
		if t, err = i.verify(ctx, token); err != nil {
			return Access{}, err
		}
	}
	if err := t.state.readRevokedTokens(ctx); err != nil {
		return Access{}, err
	}
	access := t.access()
	if err := i.refuse(access); err != nil {
		return Access{}, err
	}
	t.used()
	return access, nil
}

// access returns what the token gives access to, if it counts.
func (t *cachedToken) access() Access {
	return Access{Token: &t.Token, Credential: t.state.credential.Load(), at: time.Now()}
}

// refuse returns why a token of a good signature does not count now, or nil.
// The cache outlives configurations: whether its tokens are of this issuer, and
// of a key that still counts, is asked each time too.
func (i *Issuer) refuse(a Access) error {
	t, c := a.Token, a.Credential
	_, trusted := i.keys().verify[t.keyID]
	switch {
	case !trusted || t.keyRevoked():
		return &Refusal{"unknown key"}
	case t.issuer != i.policy.Issuer:
		return &Refusal{"wrong issuer"}
	case !a.at.Before(t.Expires):
		t.state.registry.refuseExpiry(t.Expires)
		t.reissued.Store(false)
		return &Refusal{"expired"}
	case t.state.registry.expiryRefused(t.Expires) && !t.reissued.Load():
		return &Refusal{"expired"} // the clock was set back
	case a.at.Before(t.notBefore):
		return &Refusal{"not valid yet"}
	case c.ended(t) || t.revoked():
		return &Refusal{"revoked"}
	case !c.Active(a.at):
		return &Refusal{"credential expired"}
	}
	return nil
}

// refuseExpiry notes the expiry of a token that was refused as expired.
func (r *registry) refuseExpiry(expires time.Time) {
	for {
		before := r.refusedExpiry.Load()
		if expires.Unix() <= before || r.refusedExpiry.CompareAndSwap(before, expires.Unix()) {
			return
		}
	}
}

// expiryRefused reports whether tokens of that expiry were refused as expired.
func (r *registry) expiryRefused(expires time.Time) bool {
	return expires.Unix() <= r.refusedExpiry.Load()
}

// verify checks all of a token that does not change with time. What costs
// little comes first: the checks of signatures are bounded in number, so that
// a flood of garbage leaves the rest of the server its share of the processors,
// and one token that many requests bring at once is checked once.
func (i *Issuer) verify(ctx context.Context, token string) (*cachedToken, error) {
	jws, err := parseCompact(token)
	if err != nil {
		return nil, &Refusal{err.Error()}
	}
	key, known := i.keys().verify[jws.keyID]
	if !known {
		return nil, &Refusal{"unknown key"}
	}
	if jws.algorithm != key.method.Alg() {
		return nil, &Refusal{"wrong algorithm"}
	}
	return i.verifying.check(ctx, token, func(ctx context.Context) (*cachedToken, error) {
		if t := i.registry.verified.get(token); t != nil { // from a request just before
			return t, nil
		}
		t, err := i.verifySigned(ctx, token, jws, key)
		if err == nil && i.refuse(t.access()) == nil {
			i.registry.verified.add(t)
		}
		return t, err
	})
}

func (i *Issuer) verifySigned(ctx context.Context, token string, jws *compact, key verifyKey) (*cachedToken, error) {
	if err := i.registry.checkSignature(ctx, jws, key); err != nil {
		return nil, err
	}
	claims, err := parseClaims(jws.payload)
	if err != nil {
		return nil, &Refusal{err.Error()}
	}
	inOnePiece(&token, &claims.id, &claims.clientID, &claims.scope)
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
	if err := st.readRevokedTokens(ctx); err != nil {
		return nil, err
	}
	c := st.credential.Load()
	return &cachedToken{text: token, Token: Token{
		ID:        claims.id,
		ClientID:  claims.clientID,
		Scope:     claims.scope,
		Scopes:    shared(scopes, c.Scopes),
		Audience:  shared(claims.audience, i.Audiences(c)),
		IssuedAt:  claims.issuedAt,
		Expires:   claims.expires,
		notBefore: claims.notBefore,
		issuer:    i.policy.Issuer,
		keyID:     key.id,
		epoch:     claims.epoch,
		state:     st,
	}}, nil
}

// shared returns known where it says the same, so that the cache has what many
// tokens say once.
func shared(list, known []string) []string {
	if slices.Equal(list, known) {
		return known
	}
	return list
}

// SignatureChecks counts them for the whole process. Those of good signatures
// are of tokens that were not in the cache.
var SignatureChecks = prometheus.NewCounterVec(prometheus.CounterOpts{
	Namespace: "caddy", Subsystem: "client_credentials", Name: "signature_checks_total",
	Help: "Checks of a token's signature: good or wrong. A token that is remembered needs none.",
}, []string{"result"})

var (
	goodSignatures  = SignatureChecks.WithLabelValues("good")
	wrongSignatures = SignatureChecks.WithLabelValues("wrong")
)

// checkSignature waits until it may use a processor for it. It returns a *Refusal
// where the signature is wrong, and the error of ctx where it waits in vain.
func (r *registry) checkSignature(ctx context.Context, jws *compact, key verifyKey) error {
	select {
	case r.signatureChecks <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-r.signatureChecks }()
	if err := key.method.Verify(jws.signed, jws.signature, key.public); err != nil {
		wrongSignatures.Inc()
		return &Refusal{"wrong signature"}
	}
	goodSignatures.Inc()
	return nil
}

// ended reports whether the credential, as it is now, has ended what it has
// allowed before.
func (c *Credential) ended(t *Token) bool {
	return !c.Revoked.IsZero() || c.Epoch != t.epoch
}

// revoked reports whether the token was revoked by itself.
func (t *Token) revoked() bool { return t.state.revokedTokens.has(t) }

// keyRevoked reports whether the key was that has signed the token, though the
// keys of a configuration may not show it yet.
func (t *Token) keyRevoked() bool { return t.state.registry.keyRevoked(t.keyID) }

// For reports whether the token was issued for the audience.
func (t *Token) For(audience string) bool {
	return slices.Contains(t.Audience, audience)
}

// String keeps a token that ends up in a log or a template from telling more
// than which one it is.
func (t *Token) String() string { return "token " + t.ID }

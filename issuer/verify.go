package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/bytecache"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Token is an access token that this server has signed, as it was verified.
// Whether it still counts is for Verify to say, each time.
type Token struct {
	ID       string // the jti claim
	ClientID string
	Scope    string // the scope claim
	IssuedAt time.Time
	Expires  time.Time

	audience  string // the values of the aud claim, a space between each two
	notBefore time.Time
	issuer    string
	keyID     string
	epoch     uint64
	// reissued says that the clock was set back before it was issued, to where
	// tokens of its expiry had been refused as expired, and that it was none of them.
	reissued bool
}

// Access is a token that counts now, and what is known of the credential that
// it was issued for.
type Access struct {
	Token   Token
	Account string // the credential's

	issuer  *Issuer
	at      time.Time // when it was found to count
	ends    time.Time // when the credential expires; zero for never
	ended   bool      // what the token was issued under was revoked, or it was itself
	version uint64    // of the credential
	// changes is how many of its group's were applied before all of this was read.
	changes uint64
	group   uint16
	// requestsPerSecond is the credential's limit; 0 for none.
	requestsPerSecond uint32

	// What the cache has of the token, and how often it was used there; nothing
	// where it does not have it.
	packed packedToken
	text   string
	uses   int
}

// Refusal says why a token does not count. The reason is for the operator, from
// a small set, and never tells what was sent.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "token refused: " + r.Reason }

// Verify returns what a token gives access to. It returns a *Refusal where the
// token does not count, and any other error where it cannot tell. Audience and
// scope are for the caller to check.
func (i *Issuer) Verify(ctx context.Context, token string) (a Access, err error) {
	if a.recall(i.registry.verified, token) {
		rememberedTokens.Inc()
	} else {
		otherTokens.Inc()
		if a, err = i.verify(ctx, token); err != nil {
			return Access{}, err
		}
	}
	a.issuer, a.at = i, time.Now()
	if err = i.registry.stale(); err == nil {
		err = i.refresh(ctx, &a)
	}
	if err == nil {
		err = i.refuse(&a)
	}
	if err != nil {
		return Access{}, err
	}
	if a.packed != "" && a.uses < bytecache.EnoughUses {
		i.registry.verified.Used(a.text)
	}
	return a, nil
}

// Credential returns the credential that the token was issued for, as it is now.
func (a *Access) Credential(ctx context.Context) (*Credential, error) {
	c, err := a.issuer.registry.credential(ctx, a.Token.ClientID)
	return c.Credential, err
}

// Caller returns who asks for something with the token.
func (a *Access) Caller(ctx context.Context) (Caller, error) {
	c, err := a.Credential(ctx)
	return Caller{c, a.Token.Scopes(), a.Token.epoch}, err
}

// recall takes over what the cache has of a token, if it has it.
func (a *Access) recall(c *bytecache.Cache, token string) bool {
	packed, uses, ok := c.Get(token)
	if !ok {
		return false
	}
	a.packed, a.text, a.uses = packedToken(packed), token, uses
	a.packed.unpack(a)
	return true
}

// keep has the cache have the token.
func (a *Access) keep(c *bytecache.Cache, token string) {
	if packed := a.pack(); packed != "" && c.Add(token, a.Token.ClientID, string(packed)) {
		a.packed, a.text = packed, token
	}
}

// refresh reads what is known of the credential again, unless no change has been
// applied since it was read.
func (i *Issuer) refresh(ctx context.Context, a *Access) error {
	if i.registry.changes[a.group].Load() == a.changes {
		return nil
	}
	// A client that goes away must not look like a store that can't be read.
	if err := i.registry.judge(context.WithoutCancel(ctx), a); err != nil {
		return err
	}
	i.registry.remember(a)
	return nil
}

// judge reads what is known of the token's credential. It returns a *Refusal where
// there is none.
func (r *registry) judge(ctx context.Context, a *Access) error {
	c, err := r.credential(ctx, a.Token.ClientID)
	if errors.Is(err, store.ErrNotFound) {
		return &Refusal{"unknown client"}
	}
	if err != nil {
		return fmt.Errorf("reading a credential: %w", err)
	}
	revoked, err := r.tokenRevoked(ctx, &a.Token)
	if err != nil {
		return fmt.Errorf("reading whether a token was revoked: %w", err)
	}
	a.follow(c)
	a.ended = a.ended || revoked
	return nil
}

// follow takes over what counts of the credential.
func (a *Access) follow(c remembered) {
	a.Account = c.Account
	a.ends = c.Expires
	a.ended = c.ended(&a.Token)
	a.version, a.changes = c.Version, c.changes
	a.requestsPerSecond = uint32(c.RequestsPerSecond) //nolint:gosec // G115: at most maxQuota
}

// refuse returns why a token of a good signature does not count now, or nil.
// The cache outlives configurations: whether its tokens are of this issuer, and
// of a key that still counts, is asked each time too.
func (i *Issuer) refuse(a *Access) error {
	t := &a.Token
	_, trusted := i.keys().verify[t.keyID]
	switch {
	case !trusted || i.registry.keyRevoked(t.keyID):
		return &Refusal{"unknown key"}
	case t.issuer != i.policy.Issuer:
		return &Refusal{"wrong issuer"}
	case !a.at.Before(t.Expires):
		i.registry.refuseExpiry(t.Expires)
		i.registry.forgetReissue(a)
		return &Refusal{"expired"}
	case i.registry.expiryRefused(t.Expires) && !t.reissued:
		return &Refusal{"expired"} // the clock was set back
	case a.at.Before(t.notBefore):
		return &Refusal{"not valid yet"}
	case a.ended:
		return &Refusal{"revoked"}
	case !a.ends.IsZero() && !a.at.Before(a.ends):
		return &Refusal{"credential expired"}
	}
	return nil
}

// forgetReissue has a token that has expired be one of those of its expiry that
// were refused.
func (r *registry) forgetReissue(a *Access) {
	if a.Token.reissued {
		a.Token.reissued = false
		r.remember(a)
	}
}

// remember has the cache say of a token what is known now.
func (r *registry) remember(a *Access) {
	if before := a.packed; before != "" {
		a.packed = a.pack()
		r.verified.Replace(a.text, string(before), string(a.packed))
	}
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
func (i *Issuer) verify(ctx context.Context, token string) (a Access, err error) {
	jws, err := parseCompact(token)
	if err != nil {
		return a, &Refusal{err.Error()}
	}
	key, known, err := i.keyOf(ctx, jws.keyID)
	if err != nil {
		return a, err
	}
	if !known {
		return a, &Refusal{"unknown key"}
	}
	if jws.algorithm != key.method.Alg() {
		return a, &Refusal{"wrong algorithm"}
	}
	return i.verifying.check(ctx, token, func(ctx context.Context) (a Access, err error) {
		if a.recall(i.registry.verified, token) { // from a request just before
			return a, nil
		}
		if a, err = i.verifySigned(ctx, jws, key); err != nil {
			return a, err
		}
		a.at = time.Now()
		if i.refuse(&a) == nil {
			a.keep(i.registry.verified, token)
		}
		return a, nil
	})
}

func (i *Issuer) verifySigned(ctx context.Context, jws *compact, key verifyKey) (a Access, err error) {
	if err := i.registry.checkSignature(ctx, jws, key); err != nil {
		return a, err
	}
	claims, err := parseClaims(jws.payload)
	if err != nil {
		return a, &Refusal{err.Error()}
	}
	tooLong, err := i.registry.livesTooLong(ctx, claims.expires.Sub(claims.issuedAt))
	if err != nil {
		return a, fmt.Errorf("reading how long tokens live: %w", err)
	}
	_, ok := SplitScope(claims.scope)
	switch {
	case !ok:
		return a, &Refusal{"missing or malformed claim scope"}
	case claims.issuer != i.policy.Issuer:
		return a, &Refusal{"wrong issuer"}
	case claims.subject != claims.clientID:
		return a, &Refusal{"subject is not the client"}
	case claims.issuedAt.After(time.Now().Add(clockMargin)):
		return a, &Refusal{"issued in the future"}
	case tooLong:
		// This server never issued it: somebody else has its signing key.
		return a, &Refusal{"lives too long"}
	}
	a.Token = Token{
		ID:        claims.id,
		ClientID:  claims.clientID,
		Scope:     claims.scope,
		IssuedAt:  claims.issuedAt,
		Expires:   claims.expires,
		audience:  joinAudience(claims.audience),
		notBefore: claims.notBefore,
		issuer:    i.policy.Issuer,
		keyID:     key.id,
		epoch:     claims.epoch,
	}
	a.group = i.registry.group(claims.clientID)
	return a, i.registry.judge(ctx, &a)
}

// checkSignature waits until it may use a processor for it. It returns a *Refusal
// where the signature is wrong, and the error of ctx where it waits in vain.
func (r *registry) checkSignature(ctx context.Context, jws *compact, key verifyKey) error {
	asked := time.Now()
	select {
	case r.signatureChecks <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	giveBack := func() { <-r.signatureChecks }
	began, good := time.Now(), false
	defer func() {
		if good {
			giveBack()
			return
		}
		time.AfterFunc(min(wrongSignatureRest*time.Since(began), longestRest), giveBack)
	}()
	err := key.method.Verify(jws.signed, jws.signature, key.public)
	signatureCheckSeconds.Observe(time.Since(asked).Seconds())
	if err != nil {
		wrongSignatures.Inc()
		return &Refusal{"wrong signature"}
	}
	good = true
	goodSignatures.Inc()
	return nil
}

// A wrong signature keeps its place for some times as long as its check took,
// though it is answered: who floods the server with them gets a fifth of a place's
// time, and the rest of the processor is for those whose tokens need no check.
const (
	wrongSignatureRest = 4
	// longestRest is for a check that was interrupted while it ran.
	longestRest = 100 * time.Millisecond
)

// ended reports whether the credential, as it is now, has ended what it has
// allowed before.
func (c *Credential) ended(t *Token) bool {
	return !c.Revoked.IsZero() || c.Epoch != t.epoch
}

// Scopes returns the parts of the scope claim.
func (t *Token) Scopes() []string { return strings.Fields(t.Scope) }

// HasScope reports whether the scope is among those of the token.
func (t *Token) HasScope(scope string) bool { return hasWord(t.Scope, scope) }

// Audience returns the values of the aud claim.
func (t *Token) Audience() []string { return strings.Fields(t.audience) }

// For reports whether the token was issued for the audience.
func (t *Token) For(audience string) bool { return hasWord(t.audience, audience) }

// hasWord reports whether a word is among those of a text, between which is a
// space each.
func hasWord(text, word string) bool {
	for known := range strings.SplitSeq(text, " ") {
		if known == word {
			return word != ""
		}
	}
	return false
}

// String keeps a token that ends up in a log or a template from telling more
// than which one it is.
func (t Token) String() string { return "token " + t.ID }

// String does the same.
func (a Access) String() string { return a.Token.String() }

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

	audience string // the values of the aud claim, a space between each two
	keyID    string // of a key that it may be signed with; empty where there is none any more
	// In Unix milliseconds; 0 for none.
	issuedAt, expires, notBefore int64
	epoch                        uint64
	foreign                      bool // it is of another issuer than the configuration's
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
	at      int64  // when it was found to count, in Unix milliseconds
	ends    int64  // when the credential expires, in the same; 0 for never
	version uint64 // of the credential
	// changes is how many of its group's were applied before all of this was read.
	changes uint64
	// requestsPerSecond is the credential's limit; 0 for none.
	requestsPerSecond uint32
	group             uint16
	ended             bool // what the token was issued under was revoked, or it was itself
}

// Refusal says why a token does not count. The reason is for the operator, from
// a small set, and never tells what was sent.
type Refusal struct{ Reason string }

func (r *Refusal) Error() string { return "token refused: " + r.Reason }

// Verify returns what a token gives access to. It returns a *Refusal where the
// token does not count, and any other error where it cannot tell. Audience and
// scope are for the caller to check.
func (i *Issuer) Verify(ctx context.Context, token string) (a Access, err error) {
	uses, known := i.recall(token, &a)
	if known {
		rememberedTokens.Inc()
	} else {
		otherTokens.Inc()
		if a, err = i.verify(ctx, token); err != nil {
			return Access{}, err
		}
	}
	a.issuer, a.at = i, time.Now().UnixMilli()
	if err = i.registry.stale(); err == nil {
		err = i.settle(ctx, token, &a)
	}
	if err != nil {
		return Access{}, err
	}
	if uses < bytecache.EnoughUses {
		i.registry.verified.Used(token)
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
func (i *Issuer) recall(token string, a *Access) (uses int, ok bool) {
	return i.registry.verified.View(token, func(packed []byte) { packedToken(packed).unpack(i, a) })
}

// keepToken has the cache have the token.
func (i *Issuer) keepToken(token string, a *Access) {
	if packed := a.pack(i.policy.Issuer); packed != nil {
		i.registry.verified.Add(token, a.Token.ClientID, string(packed))
	}
}

// settle returns why a token of a good signature does not count now, or nil, and
// has the cache have what was read for that.
func (i *Issuer) settle(ctx context.Context, token string, a *Access) error {
	changes, reissued := a.changes, a.Token.reissued
	err := i.refresh(ctx, a)
	if err == nil {
		err = i.refuse(a)
	}
	if a.changes != changes || a.Token.reissued != reissued {
		i.registry.verified.Change(token, func(packed []byte) { packedToken(packed).update(a) })
	}
	return err
}

// refresh reads what is known of the credential again, unless no change has been
// applied since it was read.
func (i *Issuer) refresh(ctx context.Context, a *Access) error {
	if i.registry.changes[a.group].Load() == a.changes {
		return nil
	}
	// A client that goes away must not look like a store that can't be read.
	return i.registry.judge(context.WithoutCancel(ctx), a)
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
	a.ends = unixMilli(c.Expires)
	a.ended = c.ended(&a.Token)
	a.version, a.changes = c.Version, c.changes
	a.requestsPerSecond = uint32(c.RequestsPerSecond) //nolint:gosec // G115: at most maxQuota
}

const (
	// reasonRevoked is that of a refusal where the token, or its credential, was revoked.
	reasonRevoked = "revoked"
	// reasonCredentialExpired is that where the token would count if its credential's
	// expiry were moved.
	reasonCredentialExpired = "credential expired"
)

// refuse returns why a token of a good signature does not count now, or nil.
// The cache outlives configurations: whether its tokens are of this issuer, and
// of a key that still counts, is asked each time too.
func (i *Issuer) refuse(a *Access) error {
	t := &a.Token
	switch {
	case t.keyID == "" || i.registry.keyRevoked(t.keyID):
		return &Refusal{"unknown key"}
	case t.foreign:
		return &Refusal{"wrong issuer"}
	case a.at >= t.expires:
		i.registry.refuseExpiry(t.expires)
		t.reissued = false // it is one of those of its expiry that were refused
		return &Refusal{"expired"}
	case i.registry.expiryRefused(t.expires) && !t.reissued:
		return &Refusal{"expired"} // the clock was set back
	case a.at < t.notBefore:
		return &Refusal{"not valid yet"}
	case a.ended:
		return &Refusal{reasonRevoked}
	case a.ends != 0 && a.at >= a.ends:
		return &Refusal{reasonCredentialExpired}
	}
	return nil
}

// refuseExpiry notes the expiry of a token that was refused as expired, in Unix
// milliseconds.
func (r *registry) refuseExpiry(expires int64) {
	for {
		before := r.refusedExpiry.Load()
		if expires <= before || r.refusedExpiry.CompareAndSwap(before, expires) {
			return
		}
	}
}

// expiryRefused reports whether tokens of that expiry were refused as expired.
func (r *registry) expiryRefused(expires int64) bool { return expires <= r.refusedExpiry.Load() }

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
		if _, known := i.recall(token, &a); known { // from a request just before
			return a, nil
		}
		if a, err = i.verifySigned(ctx, jws, key); err != nil {
			return a, err
		}
		a.at = time.Now().UnixMilli()
		if i.refuse(&a) == nil {
			i.keepToken(token, &a)
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
		audience:  joinAudience(claims.audience),
		keyID:     key.id,
		issuedAt:  unixMilli(claims.issuedAt),
		expires:   unixMilli(claims.expires),
		notBefore: unixMilli(claims.notBefore),
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

// IssuedAt returns the iat claim.
func (t *Token) IssuedAt() time.Time { return time.UnixMilli(t.issuedAt) }

// Expires returns the exp claim.
func (t *Token) Expires() time.Time { return time.UnixMilli(t.expires) }

// Scopes returns the parts of the scope claim.
func (t *Token) Scopes() []string { return strings.Fields(t.Scope) }

// HasScope reports whether the scope is among those of the token.
func (t *Token) HasScope(scope string) bool { return hasWord(t.Scope, scope) }

// Audience returns the values of the aud claim.
func (t *Token) Audience() []string { return strings.Fields(t.audience) }

// For reports whether the token was issued for the audience.
func (t *Token) For(audience string) bool { return hasWord(t.audience, audience) }

// hasWord reports whether a word, in which is no space, is among those of a text,
// between which is a space each.
func hasWord(text, word string) bool {
	if text == word {
		return word != ""
	}
	for text != "" {
		var first string
		if first, text, _ = strings.Cut(text, " "); first == word {
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

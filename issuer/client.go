package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// ClientAuthentication is what a client shows to prove which one it is, RFC
// 6749 section 2.3.
type ClientAuthentication struct {
	ClientID string
	// Secrets are the readings of what the client sent as its secret: one, or
	// two where it can be read in two ways. Any of them may be the right one.
	Secrets []string
	// Assertion is what it shows instead of a secret; or nil.
	Assertion *Assertion
	// Suspect reports whether too many of its kind have failed lately: no slow hash
	// is compared for it then. It may be nil.
	Suspect func() bool
}

// Caller is who asks for something: a credential, and the scopes that it asks
// with.
type Caller struct {
	Credential *Credential
	Scopes     []string

	epoch uint64 // of the credential when it was given them
}

// TokenError is a refusal of the token endpoint. Code is one of RFC 6749
// section 5.2, or invalid_target of RFC 8707. Description is fit for the
// client. Reason says to the operator what the client is not told. ClientID is
// the one that it claims to be, where it has the form of one.
type TokenError struct{ Code, Description, Reason, ClientID string }

func (e *TokenError) Error() string { return e.Code + ": " + e.Reason }

// refuseClient is the one answer to every client that can't be authenticated:
// who sends it must not learn whether there is such a client.
func refuseClient(clientID, reason string) error {
	return &TokenError{"invalid_client", "client authentication failed", reason, clientID}
}

// refuseUnknown is the same for what may be no client id at all: a secret in the
// wrong place must not come into the log.
func refuseUnknown(clientID, reason string) error {
	if !madeHere(clientID) {
		clientID = ""
	}
	return refuseClient(clientID, reason)
}

// Authenticate returns the client, with all the scopes of its credential. It
// returns a *TokenError where it refuses, and any other error where it cannot
// tell.
func (i *Issuer) Authenticate(ctx context.Context, auth ClientAuthentication) (Caller, error) {
	c, err := i.authenticate(ctx, auth, time.Now())
	if err != nil {
		return Caller{}, err
	}
	return Caller{c.Credential, c.Scopes, c.Epoch}, nil
}

// authenticate finds the client, and refuses it where it does not work now.
func (i *Issuer) authenticate(ctx context.Context, auth ClientAuthentication, now time.Time) (remembered, error) {
	if err := i.registry.stale(); err != nil {
		return remembered{}, err
	}
	var c remembered
	var by hashedSecret // none where it has used a key
	var err error
	if auth.Assertion != nil {
		c, err = i.verifyAssertion(ctx, auth, now)
	} else {
		c, by, err = i.compareSecret(ctx, auth, now)
	}
	if err == nil {
		err = refuseInactive(c.Credential, now)
	}
	if err != nil {
		return remembered{}, err
	}
	i.registry.uses.note(c.ClientID, by, now)
	return c, nil
}

func refuseInactive(c *Credential, now time.Time) error {
	switch {
	case !c.Revoked.IsZero():
		return refuseClient(c.ClientID, "revoked")
	case c.Disabled:
		return refuseClient(c.ClientID, "disabled")
	case !c.Active(now):
		return refuseClient(c.ClientID, "expired")
	}
	return nil
}

// compareSecret finds the client, and compares its secrets: it returns the one that
// fits. The work is the same whether there is such a client or not, but for the
// slow hash of another server.
func (i *Issuer) compareSecret(ctx context.Context, auth ClientAuthentication, now time.Time) (c remembered, by hashedSecret, err error) {
	c, err = i.registry.credential(ctx, auth.ClientID)
	known := err == nil
	var hashes []hashedSecret
	switch {
	case known:
		hashes = c.Hashes
	case !errors.Is(err, store.ErrNotFound):
		return c, by, fmt.Errorf("reading a credential: %w", err)
	}
	secret, by, right := i.compareFast(hashes, auth, now)
	if !right {
		if secret, by, right, err = i.compareSlow(ctx, hashes, auth, now); err != nil {
			return c, by, fmt.Errorf("comparing a secret: %w", err)
		}
	}
	switch {
	case !known:
		return c, by, refuseUnknown(auth.ClientID, "unknown client")
	case !right:
		return c, by, refuseClient(auth.ClientID, "wrong secret")
	}
	if by.Slow != "" && !c.Declared && c.Active(now) {
		i.rehash(ctx, auth.ClientID, by.Slow, secret)
	}
	return c, by, nil
}

// compareFast compares what the client sent with all but the slow hashes of which
// the secret is not known from before. It returns the secret, and the hash that it
// fits.
func (i *Issuer) compareFast(hashes []hashedSecret, auth ClientAuthentication, now time.Time) (right string, by hashedSecret, found bool) {
	compared := false
	for _, hash := range hashes {
		fast, known := hash, true
		if hash.Slow != "" {
			fast, known = i.registry.foreign.proven.Get(hash.Slow)
		}
		if !known || !hash.live(now) {
			continue
		}
		for _, secret := range auth.Secrets {
			if i.keys().matches(fast, auth.ClientID, secret) {
				right, by, found = secret, hash, true
			}
		}
		compared = true
	}
	if !compared { // an empty one fits nothing
		for _, secret := range auth.Secrets {
			i.keys().matches(hashedSecret{Pepper: i.keys().pepper}, auth.ClientID, secret)
		}
	}
	return right, by, found
}

// Has reports whether the caller asks with the scope.
func (c Caller) Has(scope string) bool { return slices.Contains(c.Scopes, scope) }

// Reach returns the account within which the caller manages credentials, and
// nothing where that is every account.
func (c Caller) Reach() string {
	if c.Has(ScopeAdmin) {
		return ""
	}
	return c.Credential.Account
}

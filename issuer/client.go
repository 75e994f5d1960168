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
	if !validClientID(clientID) {
		clientID = "" // it may be anything, a secret in the wrong place included
	}
	return &TokenError{"invalid_client", "client authentication failed", reason, clientID}
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
	prove := i.compareSecret
	if auth.Assertion != nil {
		prove = i.verifyAssertion
	}
	c, err := prove(ctx, auth, now)
	if err == nil {
		err = refuseInactive(c.Credential, now)
	}
	if err != nil {
		return remembered{}, err
	}
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

// compareSecret finds the client and compares the secret. The work is the same
// whether there is such a client or not.
func (i *Issuer) compareSecret(ctx context.Context, auth ClientAuthentication, now time.Time) (remembered, error) {
	c, err := i.registry.credential(ctx, auth.ClientID)
	var hashes []hashedSecret
	switch {
	case err == nil:
		hashes = c.Hashes
	case !errors.Is(err, store.ErrNotFound):
		return c, fmt.Errorf("reading a credential: %w", err)
	}
	right, compared := false, false
	for _, hash := range hashes {
		if hash.live(now) {
			right = i.fits(hash, auth) || right
			compared = true
		}
	}
	if !compared {
		i.fits(hashedSecret{Pepper: i.keys().pepper}, auth) // an empty one fits nothing
	}
	switch {
	case err != nil:
		return c, refuseClient(auth.ClientID, "unknown client")
	case !right:
		return c, refuseClient(auth.ClientID, "wrong secret")
	}
	return c, nil
}

// fits reports whether a secret is one of the readings of what the client sent.
func (i *Issuer) fits(hash hashedSecret, auth ClientAuthentication) (right bool) {
	for _, secret := range auth.Secrets {
		right = i.keys().matches(hash, auth.ClientID, secret) || right
	}
	return right
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

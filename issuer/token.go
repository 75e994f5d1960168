package issuer

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// TokenRequest is a client's request for a token, RFC 6749 section 4.4.2.
type TokenRequest struct {
	GrantType string
	ClientID  string
	// Secrets are the readings of what the client sent as its secret: one, or
	// two where it can be read in two ways. Any of them may be the right one.
	Secrets []string
	// Scope narrows the token; all that the credential has where it is empty.
	Scope string
	// Resources are the audiences asked for, RFC 8707; the default one where it
	// is empty.
	Resources []string
}

// IssuedToken is the answer to a TokenRequest.
type IssuedToken struct {
	Token     string
	ExpiresIn time.Duration // in whole seconds
	Scopes    []string
}

// TokenError is a refusal of the token endpoint. Code is one of RFC 6749
// section 5.2, or invalid_target of RFC 8707. Description is fit for the
// client. Reason says to the operator what the client is not told.
type TokenError struct{ Code, Description, Reason string }

func (e *TokenError) Error() string { return e.Code + ": " + e.Reason }

// refuseClient is the one answer to every client that can't be authenticated:
// who sends it must not learn whether there is such a client.
func refuseClient(reason string) error {
	return &TokenError{"invalid_client", "client authentication failed", reason}
}

// Issue authenticates the client and signs a token for it. It returns a
// *TokenError where it refuses, and any other error where it cannot tell.
func (i *Issuer) Issue(ctx context.Context, req TokenRequest) (*IssuedToken, error) {
	st, err := i.authenticate(ctx, req.ClientID, req.Secrets)
	if err != nil {
		return nil, err
	}
	c := st.credential.Load()
	now := time.Now()
	switch {
	case !c.Revoked.IsZero():
		return nil, refuseClient("revoked")
	case !c.Expires.IsZero() && c.Expires.Sub(now) < time.Second:
		return nil, refuseClient("expired")
	case req.GrantType == "":
		return nil, &TokenError{"invalid_request", "grant_type is missing", "grant type missing"}
	case req.GrantType != grantType:
		return nil, &TokenError{"unsupported_grant_type", "only client_credentials is supported", "grant type not supported"}
	case slices.ContainsFunc(req.Resources, func(r string) bool { return r != i.policy.Audience }):
		return nil, &TokenError{"invalid_target", "the client may not have a token for the requested resource", "resource not allowed"}
	}
	scopes, ok := SplitScope(req.Scope)
	switch {
	case !ok || !HasScopes(c.Scopes, scopes):
		return nil, &TokenError{"invalid_scope", "the client may not have all of the requested scopes", "scope not allowed"}
	case len(scopes) == 0:
		scopes = c.Scopes
	}

	issuedAt := now.Truncate(time.Second)
	expires := issuedAt.Add(i.policy.TokenLifetime)
	if !c.Expires.IsZero() && c.Expires.Before(expires) {
		expires = c.Expires.Truncate(time.Second)
	}
	token, err := i.sign(c, scopes, issuedAt, expires)
	if err != nil {
		return nil, err
	}
	// What was revoked while the token was signed must not leave as if it were
	// not.
	if st.credential.Load().Epoch != c.Epoch {
		return nil, refuseClient("revoked")
	}
	return &IssuedToken{Token: token, ExpiresIn: expires.Sub(issuedAt), Scopes: scopes}, nil
}

// authenticate finds the client and compares the secret. The work is the same
// whether there is such a client or not.
func (i *Issuer) authenticate(ctx context.Context, clientID string, secrets []string) (*state, error) {
	st, err := i.registry.state(ctx, clientID)
	hashes := []hashedSecret{{Pepper: i.keys.pepper}} // an empty hash fits nothing
	switch {
	case err == nil:
		hashes = st.credential.Load().Secrets
	case !errors.Is(err, store.ErrNotFound):
		return nil, fmt.Errorf("reading a credential: %w", err)
	}
	right := false
	for _, hash := range hashes {
		for _, secret := range secrets {
			right = i.keys.matches(hash, clientID, secret) || right
		}
	}
	switch {
	case st == nil:
		return nil, refuseClient("unknown client")
	case !right:
		return nil, refuseClient("wrong secret")
	}
	return st, nil
}

// sign makes an RFC 9068 access token.
func (i *Issuer) sign(c *Credential, scopes []string, issuedAt, expires time.Time) (string, error) {
	claims := jwt.MapClaims{
		"iss":       i.policy.Issuer,
		"sub":       c.ClientID, // RFC 9068 section 2.2: the client itself
		"client_id": c.ClientID,
		"aud":       i.policy.Audience,
		"iat":       issuedAt.Unix(),
		"exp":       expires.Unix(),
		"jti":       base64.RawURLEncoding.EncodeToString(randomBytes(16)),
		epochClaim:  c.Epoch,
	}
	if len(scopes) > 0 {
		claims["scope"] = strings.Join(scopes, " ")
	}
	key := i.keys.signing
	token := jwt.NewWithClaims(key.method, claims)
	token.Header["typ"] = tokenType
	token.Header["kid"] = key.id
	signed, err := token.SignedString(key.private)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	return signed, nil
}

const (
	grantType = "client_credentials"
	tokenType = "at+jwt"
	// epochClaim carries the credential's epoch at the time of issue. It means
	// nothing to anybody but this server.
	epochClaim = "epoch"
)

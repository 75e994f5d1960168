package issuer

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TokenRequest is a client's request for a token, RFC 6749 section 4.4.2.
type TokenRequest struct {
	ClientAuthentication
	GrantType string
	// Scope narrows the token; all that the credential has where it is empty.
	Scope string
	// Resources are the audiences asked for, RFC 8707; all that the credential
	// has where it is empty.
	Resources []string
}

// IssuedToken is the answer to a TokenRequest.
type IssuedToken struct {
	Token     string
	ExpiresIn time.Duration // in whole seconds
	Scopes    []string
}

// Issue authenticates the client and signs a token for it. It returns a
// *TokenError where it refuses, and any other error where it cannot tell.
func (i *Issuer) Issue(ctx context.Context, req TokenRequest) (*IssuedToken, error) {
	now := time.Now()
	st, c, err := i.authenticate(ctx, req.ClientAuthentication, now)
	if err != nil {
		return nil, err
	}
	switch {
	case !c.Expires.IsZero() && c.Expires.Sub(now) < time.Second:
		return nil, refuseClient(c.ClientID, "expired")
	case req.GrantType == "":
		return nil, &TokenError{"invalid_request", "grant_type is missing", "grant type missing", c.ClientID}
	case req.GrantType != grantType:
		return nil, &TokenError{"unsupported_grant_type", "only client_credentials is supported", "grant type not supported", c.ClientID}
	}
	audiences := i.Audiences(c)
	if len(req.Resources) > 0 {
		if slices.ContainsFunc(req.Resources, func(r string) bool { return !slices.Contains(audiences, r) }) {
			return nil, &TokenError{"invalid_target", "the client may not have a token for the requested resource", "resource not allowed", c.ClientID}
		}
		audiences = sorted(req.Resources)
	}
	scopes, ok := SplitScope(req.Scope)
	switch {
	case !ok || !HasAll(c.Scopes, scopes):
		return nil, &TokenError{"invalid_scope", "the client may not have all of the requested scopes", "scope not allowed", c.ClientID}
	case len(scopes) == 0:
		scopes = c.Scopes
	}

	issuedAt := now.Truncate(time.Second)
	expires := issuedAt.Add(i.policy.TokenLifetime)
	if !c.Expires.IsZero() && c.Expires.Before(expires) {
		expires = c.Expires.Truncate(time.Second)
	}
	token, err := i.sign(c, scopes, audiences, issuedAt, expires)
	if err != nil {
		return nil, err
	}
	// What was revoked while the token was signed must not leave as if it were
	// not.
	if st.credential.Load().Epoch != c.Epoch {
		return nil, refuseClient(c.ClientID, "revoked")
	}
	return &IssuedToken{Token: token, ExpiresIn: expires.Sub(issuedAt), Scopes: scopes}, nil
}

// sign makes an RFC 9068 access token.
func (i *Issuer) sign(c *Credential, scopes, audiences []string, issuedAt, expires time.Time) (string, error) {
	claims := jwt.MapClaims{
		"iss":       i.policy.Issuer,
		"sub":       c.ClientID, // RFC 9068 section 2.2: the client itself
		"client_id": c.ClientID,
		"aud":       audiences,
		"iat":       issuedAt.Unix(),
		"exp":       expires.Unix(),
		"jti":       base64.RawURLEncoding.EncodeToString(randomBytes(16)),
		epochClaim:  c.Epoch,
	}
	if len(audiences) == 1 {
		claims["aud"] = audiences[0] // as most verifiers expect it
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

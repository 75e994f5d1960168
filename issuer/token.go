package issuer

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
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
	ClientID  string
	ExpiresIn time.Duration // in whole seconds
	Scope     string        // the scope claim
}

// Issue authenticates the client and signs a token for it. It returns a
// *TokenError where it refuses, a *LimitError where the client has to wait, and any
// other error where it cannot tell.
func (i *Issuer) Issue(ctx context.Context, req TokenRequest) (*IssuedToken, error) {
	now := time.Now()
	c, err := i.authenticate(ctx, req.ClientAuthentication, now)
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
	audiences := i.Audiences(c.Credential)
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
	if err := i.limitToken(c.Credential); err != nil {
		return nil, err
	}

	issuedAt := now.Truncate(time.Second)
	expires := issuedAt.Add(i.lifetime(c.Credential))
	if !c.Expires.IsZero() && c.Expires.Before(expires) {
		expires = c.Expires.Truncate(time.Second)
	}
	key := &i.keys().signing
	a := Access{Token: Token{
		ID:       newTokenID(),
		ClientID: c.ClientID,
		Scope:    strings.Join(scopes, " "),
		audience: joinAudience(audiences),
		keyID:    key.id,
		issuedAt: issuedAt.UnixMilli(),
		expires:  expires.UnixMilli(),
		epoch:    c.Epoch,
		reissued: i.registry.expiryRefused(expires.UnixMilli()),
	}, group: i.registry.group(c.ClientID)}
	text, err := key.sign(&a.Token, i.policy.Issuer, audiences, c.Claims)
	if err != nil {
		return nil, err
	}
	// What was revoked while the token was signed must not leave as if it were
	// not.
	if i.registry.changes[a.group].Load() != c.changes {
		if c, err = i.registry.credential(ctx, c.ClientID); err != nil {
			return nil, err
		}
	}
	if a.follow(c); a.ended {
		return nil, refuseClient(c.ClientID, "revoked")
	}
	if i.registry.keyRevoked(key.id) {
		return nil, errors.New("the signing key was revoked, and no other signs yet")
	}
	i.keepToken(text, &a) // so that its first use needs no check of what was signed just now
	return &IssuedToken{Token: text, ClientID: c.ClientID, ExpiresIn: expires.Sub(issuedAt), Scope: a.Token.Scope}, nil
}

// accessClaims are the claims of an RFC 9068 access token.
type accessClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"` // RFC 9068 section 2.2: the client itself
	ClientID string `json:"client_id"`
	Audience any    `json:"aud"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
	Scope    string `json:"scope,omitempty"`
	Epoch    uint64 `json:"epoch"` // epochClaim
}

// sign makes an RFC 9068 access token, with further claims from ParseClaims.
func (k *signingKey) sign(t *Token, issuer string, audiences []string, further json.RawMessage) (string, error) {
	claims := accessClaims{
		Issuer:   issuer,
		Subject:  t.ClientID,
		ClientID: t.ClientID,
		Audience: &audiences[0], // a string alone, as most verifiers expect it
		IssuedAt: t.issuedAt / 1000,
		Expires:  t.expires / 1000,
		ID:       t.ID,
		Scope:    t.Scope,
		Epoch:    t.epoch,
	}
	if len(audiences) > 1 {
		claims.Audience = audiences
	}
	payload, err := json.Marshal(&claims)
	if err != nil {
		return "", fmt.Errorf("encoding the claims of a token: %w", err)
	}
	if len(further) > len("{}") {
		payload[len(payload)-1] = ','
		payload = append(payload, further[1:]...)
	}
	encoding := base64.RawURLEncoding
	segment := encoding.AppendEncode(nil, payload)
	var token strings.Builder
	token.Grow(len(k.header) + len(segment) + 1 + es256Segment)
	token.WriteString(k.header)
	token.Write(segment)
	signature, err := k.method.Sign(token.String(), k.private)
	if err != nil {
		return "", fmt.Errorf("signing a token: %w", err)
	}
	token.WriteByte('.')
	token.Write(encoding.AppendEncode(segment[:0], signature))
	return token.String(), nil
}

// joinAudience returns audiences as a Token has them. No space is in them: see
// ValidAudience, and parseClaims.
func joinAudience(audiences []string) string { return strings.Join(audiences, " ") }

// newTokenID returns 16 random bytes as text.
func newTokenID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: it ends the process instead
	var text [22]byte
	base64.RawURLEncoding.Encode(text[:], id[:])
	return string(text[:])
}

const (
	grantType = "client_credentials"
	tokenType = "at+jwt"
	// epochClaim carries the credential's epoch at the time of issue. It means
	// nothing to anybody but this server.
	epochClaim = "epoch"
	// es256Segment is the length of an encoded signature of ES256 or EdDSA.
	es256Segment = 86
)

package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Assertion is a JWT by which a client authenticates, RFC 7523 section 2.2.
type Assertion struct {
	JWT string
	// Audiences are accepted beside the issuer. Without any, the assertion must
	// name the issuer alone, as text: a client that signs for several servers
	// can be used by one of them against another.
	Audiences []string
}

const (
	// maxAssertionLifetime is how long an assertion may live, and so how long it
	// has to be remembered as used.
	maxAssertionLifetime = time.Hour
	// assertionSkew is by how much a client's clock may be ahead.
	assertionSkew = 10 * time.Second
	assertionType = "client-authentication+jwt"
)

// assertion is one that was taken apart, but not verified.
type assertion struct {
	jws              *compact
	clientID         string
	id               string // what it is remembered by
	forIssuer, forUs bool

	issued, notBefore, expires time.Time
}

// parseAssertion reads the claims, RFC 7523 section 3. What is missing or
// malformed is the reason of its error.
func (i *Issuer) parseAssertion(a Assertion) (*assertion, error) {
	jws, header, err := splitCompact(a.JWT)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"crit", "b64"} { // RFC 7515 section 4.1.11: nothing of it is known
		if _, there := header[name]; there {
			return nil, errors.New("unknown header parameter")
		}
	}
	if jws.typ != "" && !strings.EqualFold(jws.typ, "JWT") &&
		!strings.EqualFold(jws.typ, assertionType) && !strings.EqualFold(jws.typ, "application/"+assertionType) {
		return nil, errors.New("not a client assertion")
	}
	members, err := strictjson.Object(jws.payload)
	if err != nil {
		return nil, errors.New("malformed claims")
	}
	parsed := &assertion{jws: jws}
	var issuer string
	var audience []string
	err = readClaims(members, []claimRule{
		{"iss", true, into(&issuer, text)},
		{"sub", true, into(&parsed.clientID, text)},
		{"aud", true, into(&audience, texts)},
		{"exp", true, into(&parsed.expires, numericDate)},
		{"iat", true, into(&parsed.issued, numericDate)},
		{"nbf", false, into(&parsed.notBefore, numericDate)},
		{"jti", false, into(&parsed.id, text)},
	})
	if err != nil {
		return nil, err
	}
	_, single := strictjson.String(members["aud"])
	parsed.forIssuer = single && audience[0] == i.policy.Issuer
	parsed.forUs = len(a.Audiences) > 0 &&
		slices.ContainsFunc(audience, func(aud string) bool { return aud == i.policy.Issuer || slices.Contains(a.Audiences, aud) })
	if parsed.id == "" {
		parsed.id = jws.signed // not the signature, which has two forms
	}
	if issuer != parsed.clientID {
		return nil, errors.New("issuer is not the subject")
	}
	return parsed, nil
}

// verifyAssertion returns the client whose assertion it is. An assertion counts
// once.
func (i *Issuer) verifyAssertion(ctx context.Context, auth ClientAuthentication, now time.Time) (c remembered, err error) {
	a, err := i.parseAssertion(*auth.Assertion)
	if err != nil {
		return c, refuseUnknown(auth.ClientID, "assertion: "+err.Error())
	}
	if auth.ClientID != "" && auth.ClientID != a.clientID { // RFC 7521 section 4.2
		return c, refuseUnknown(auth.ClientID, "assertion: of another client")
	}
	c, err = i.registry.credential(ctx, a.clientID)
	if errors.Is(err, store.ErrNotFound) {
		return c, refuseUnknown(a.clientID, "unknown client")
	}
	if err != nil {
		return c, err
	}
	if err := refuseInactive(c.Credential, now); err != nil { // before anything is fetched for it
		return c, err
	}
	keys := c.Keys
	if c.KeysURL != "" {
		if keys, err = i.remote.get(ctx, c.KeysURL, a.jws.keyID, now); err != nil {
			return c, fmt.Errorf("client %s: %w", a.clientID, err)
		}
	}
	reason := ""
	switch {
	case !keys.verifies(a.jws):
		reason = "assertion: wrong signature"
	case !a.forIssuer && !a.forUs:
		reason = "assertion: wrong audience"
	case !now.Before(a.expires):
		reason = "assertion: expired"
	case a.issued.After(now.Add(assertionSkew)) || a.notBefore.After(now.Add(assertionSkew)):
		reason = "assertion: not valid yet"
	case a.expires.Sub(now) > maxAssertionLifetime:
		reason = "assertion: lives too long"
	case i.registry.nodes == nil && a.issued.Before(i.registry.opened):
		// It may have been used before, and what was is not remembered.
		reason = "assertion: older than this process"
	}
	if reason != "" {
		return c, refuseClient(a.clientID, reason)
	}
	first, err := i.registry.useOnce(ctx, a.clientID, a.id, a.expires, now)
	if err != nil {
		return c, fmt.Errorf("noting that an assertion was used: %w", err)
	}
	if !first {
		return c, refuseClient(a.clientID, "assertion: used before")
	}
	return c, nil
}

// verifies reports whether one of the keys has signed it. A kid chooses the
// key; without one, all are tried that there are.
func (s *KeySet) verifies(jws *compact) bool {
	if s == nil {
		return false
	}
	for _, k := range s.Keys {
		if jws.keyID != "" && k.ID != jws.keyID {
			continue
		}
		key, err := k.verifyKey()
		if err == nil && key.goesWith(jws.algorithm) && key.method.Verify(jws.signed, jws.signature, key.public) == nil {
			return true
		}
	}
	return false
}

// useOnce notes that an assertion was used, and reports whether it is the first
// time. Only what a client has rightly signed comes here.
func (r *registry) useOnce(ctx context.Context, clientID, id string, expires, now time.Time) (first bool, err error) {
	sum := sha256.Sum256([]byte(clientID + "\x00" + id))
	key := base64.RawURLEncoding.EncodeToString(sum[:])
	if r.nodes != nil {
		return r.nodes.useOnce(ctx, key, expires)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, used := r.used[key]; used {
		return false, nil
	}
	r.used[key] = now.Add(expires.Sub(now) + clockSetBack) // by the clock that can't be set
	return true, nil
}

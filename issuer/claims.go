package issuer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
)

// maxClaimsLength is in bytes: a token with all that its credential may have must
// stay below maxTokenBytes.
const maxClaimsLength = 1 << 10

// reservedClaims are those by which somebody decides whose a token is, for whom,
// until when and for what, or that this server may have a use for: RFC 7519
// section 4.1, RFC 9068 section 2.2, RFC 8693 section 4, RFC 7800 section 3, RFC
// 7662 section 2.2 and OpenID Connect Core section 2.
var reservedClaims = []string{
	"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "scp", epochClaim,
	"cnf", "act", "may_act", "active", "token_type", "azp", "auth_time", "acr", "amr", "nonce", "sid", "at_hash", "c_hash",
	"authorization_details", "events", "vct",
}

// ParseClaims reads the claims that the tokens of a credential shall carry beside
// their own: a JSON object. It returns it as it is kept, and an *InputError where
// it is none, or names a claim that means something already.
func ParseClaims(raw []byte) (json.RawMessage, error) {
	members, err := strictjson.Object(raw)
	if err != nil {
		return nil, errClaims
	}
	for name := range members {
		// Some who read tokens take names for the same that differ in letter case.
		if slices.ContainsFunc(reservedClaims, func(reserved string) bool { return strings.EqualFold(reserved, name) }) {
			return nil, &InputError{"claims", "holds a claim that this server sets itself, or that others decide by: such as " + strings.Join(reservedClaims[:9], ", ")}
		}
	}
	// Written anew, everybody reads the same of it, whatever they make of members
	// that are given twice.
	claims, err := json.Marshal(decodeJSON(raw))
	if err != nil {
		return nil, err
	}
	if len(claims) > maxClaimsLength {
		return nil, &InputError{"claims", fmt.Sprintf("is longer than %d bytes in a token", maxClaimsLength)}
	}
	return claims, nil
}

// mergeClaims changes claims by a merge patch, RFC 7396; no patch takes all away.
func mergeClaims(claims, patch json.RawMessage) (json.RawMessage, error) {
	if patch == nil {
		return nil, nil
	}
	if _, err := strictjson.Object(patch); err != nil {
		return nil, errClaims
	}
	merged, err := json.Marshal(mergePatch(decodeJSON(claims), decodeJSON(patch)))
	if err != nil {
		return nil, err
	}
	return ParseClaims(merged)
}

// mergePatch is the function of RFC 7396 section 2.
func mergePatch(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	members, ok := target.(map[string]any)
	if !ok {
		members = make(map[string]any)
	}
	for name, value := range changes {
		if value == nil {
			delete(members, name)
		} else {
			members[name] = mergePatch(members[name], value)
		}
	}
	return members
}

// decodeJSON reads a text that is JSON, or nothing, with its numbers as they are
// written.
func decodeJSON(text json.RawMessage) (value any) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	_ = decoder.Decode(&value)
	return value
}

var errClaims = &InputError{"claims", "is no JSON object, or has a member twice"}

// keepsClaims reports whether a change leaves the claims alone that the caller's
// own credential has: what binds a manager, such as the name of a tenant, binds
// what it makes.
func keepsClaims(own, before, after json.RawMessage) bool {
	owned, was, is := claimTexts(own), claimTexts(before), claimTexts(after)
	for name, value := range owned {
		if is[name] != value && is[name] != was[name] {
			return false
		}
	}
	return true
}

// claimTexts splits what ParseClaims has returned.
func claimTexts(claims json.RawMessage) map[string]string {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(claims, &members) // nothing has no members
	texts := make(map[string]string, len(members))
	for name, value := range members {
		texts[name] = string(value)
	}
	return texts
}

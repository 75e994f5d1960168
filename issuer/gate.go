package issuer

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
)

// The gate stands in front of golang-jwt, which takes more than may be taken:
// an unknown "crit", unencoded payloads, line breaks inside of base64, members
// given twice or in another letter case, a payload of null, a missing "exp".

// maxTokenBytes is the length from which on a token is refused unread.
const maxTokenBytes = 8 << 10

// compact is a JWS in compact serialization, RFC 7515 section 7.1, taken apart
// but not verified.
type compact struct {
	keyID     string
	algorithm string
	typ       string
	signed    string // header and payload, as they were signed
	payload   []byte
	signature []byte
}

// parseCompact takes an access token apart. Everything in its header must be
// known: what is not might change what the rest means (RFC 7515 section 4.1.11).
func parseCompact(token string) (*compact, error) {
	c, header, err := splitCompact(token)
	if err != nil {
		return nil, err
	}
	for name := range header {
		if name != "alg" && name != "kid" && name != "typ" {
			return nil, errors.New("unknown header parameter")
		}
	}
	// RFC 9068 section 4; a media type's case does not matter.
	if !strings.EqualFold(c.typ, tokenType) && !strings.EqualFold(c.typ, "application/"+tokenType) {
		return nil, errors.New("not an access token")
	}
	return c, nil
}

// splitCompact takes any JWS apart, and returns its header too.
func splitCompact(token string) (*compact, map[string]json.RawMessage, error) {
	if len(token) > maxTokenBytes {
		return nil, nil, errors.New("too long")
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, _ := strings.Cut(rest, ".") // a third dot is not of the alphabet
	parts := [3][]byte{}
	for n, segment := range [3]string{header, payload, signature} {
		var ok bool
		if parts[n], ok = decodeSegment(segment); !ok {
			return nil, nil, errors.New("not a compact JWS")
		}
	}
	c := &compact{
		signed:    token[:len(header)+1+len(payload)],
		payload:   parts[1],
		signature: parts[2],
	}
	members, err := strictjson.Object(parts[0])
	if err != nil {
		return nil, nil, errors.New("malformed header")
	}
	for name, target := range map[string]*string{"alg": &c.algorithm, "kid": &c.keyID, "typ": &c.typ} {
		if raw, present := members[name]; present {
			var ok bool
			if *target, ok = strictjson.String(raw); !ok {
				return nil, nil, errors.New("malformed header")
			}
		}
	}
	return c, members, nil
}

// decodeSegment decodes base64url without padding, in the one spelling that
// encoding would give: with any other, one signature would fit many texts.
func decodeSegment(segment string) ([]byte, bool) {
	if segment == "" {
		return nil, false
	}
	for n := range len(segment) { // encoding/base64 would skip CR and LF
		switch c := segment[n]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return nil, false
		}
	}
	decoded, err := base64.RawURLEncoding.Strict().DecodeString(segment)
	return decoded, err == nil
}

// claims are the claims of an access token that decide something.
type claims struct {
	issuer, subject, clientID, id, scope string
	audience                             []string
	expires, issuedAt, notBefore         time.Time
	epoch                                uint64
}

// parseClaims reads the claims under their exact names. Those that RFC 9068
// section 2.2 requires must be there.
func parseClaims(payload []byte) (*claims, error) {
	members, err := strictjson.Object(payload)
	if err != nil {
		return nil, errors.New("malformed claims")
	}
	c := new(claims)
	err = readClaims(members, []claimRule{
		{"iss", true, into(&c.issuer, text)},
		{"sub", true, into(&c.subject, text)},
		{"client_id", true, into(&c.clientID, text)},
		{"jti", true, into(&c.id, visible)},
		{"aud", true, into(&c.audience, audiences)},
		{"exp", true, into(&c.expires, numericDate)},
		{"iat", true, into(&c.issuedAt, numericDate)},
		{"nbf", false, into(&c.notBefore, numericDate)},
		{"scope", false, into(&c.scope, text)},
		{epochClaim, true, into(&c.epoch, counter)},
	})
	if err != nil {
		return nil, err
	}
	// RFC 9449 section 7.2, RFC 8705 section 3: a token that is bound to a key
	// is worth nothing without a proof of that key.
	if _, bound := members["cnf"]; bound {
		return nil, errors.New("bound to a key")
	}
	return c, nil
}

// claimRule is how to read a claim.
type claimRule struct {
	name     string
	required bool
	read     func(json.RawMessage) bool
}

func readClaims(members map[string]json.RawMessage, rules []claimRule) error {
	for _, rule := range rules {
		raw, present := members[rule.name]
		if !present && !rule.required {
			continue
		}
		if !present || !rule.read(raw) {
			return errors.New("missing or malformed claim " + rule.name)
		}
	}
	return nil
}

func into[T any](target *T, read func(json.RawMessage) (T, bool)) func(json.RawMessage) bool {
	return func(raw json.RawMessage) (ok bool) {
		*target, ok = read(raw)
		return ok
	}
}

func text(raw json.RawMessage) (string, bool) {
	s, ok := strictjson.String(raw)
	return s, ok && s != ""
}

// visible reads text that is safe in logs, keys and header fields: visible
// ASCII, without spaces.
func visible(raw json.RawMessage) (string, bool) {
	s, ok := text(raw)
	for i := range len(s) {
		ok = ok && s[i] > 0x20 && s[i] < 0x7F
	}
	return s, ok
}

// texts reads a string or an array of strings, RFC 7519 section 4.1.3.
func texts(raw json.RawMessage) ([]string, bool) {
	if s, ok := text(raw); ok {
		return []string{s}, true
	}
	all, ok := strictjson.Strings(raw)
	return all, ok && len(all) > 0 && !slices.Contains(all, "")
}

// audiences reads those of an access token. None of this server's holds a space.
func audiences(raw json.RawMessage) ([]string, bool) {
	all, ok := texts(raw)
	return all, ok && !slices.ContainsFunc(all, func(one string) bool { return strings.Contains(one, " ") })
}

// numericDate reads seconds since 1970, RFC 7519 section 2. Fractions are
// dropped; what no clock will show is refused.
func numericDate(raw json.RawMessage) (time.Time, bool) {
	seconds, err := strconv.ParseFloat(string(raw), 64)
	const year9999 = 253402300799
	if err != nil || !(seconds > 0 && seconds <= year9999) {
		return time.Time{}, false
	}
	return time.Unix(int64(math.Floor(seconds)), 0), true
}

func counter(raw json.RawMessage) (uint64, bool) {
	n, err := strconv.ParseUint(string(raw), 10, 64)
	return n, err == nil
}

package issuer

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
)

const (
	maxClientKeys    = 8
	maxClientKeyText = 16 << 10 // bytes
)

// ParseClientKeys reads the JWK Set of public keys that a client may
// authenticate by (RFC 7591 section 2). It returns an *InputError where one of
// them could not be used: a key that is left out silently would be missed only
// when it is needed.
func ParseClientKeys(raw []byte) (*KeySet, error) {
	wrong := func(problem string) (*KeySet, error) { return nil, &InputError{"jwks", problem} }
	if len(raw) > maxClientKeyText {
		return wrong(fmt.Sprintf("is longer than %d bytes", maxClientKeyText))
	}
	members, err := strictjson.Object(raw)
	if err != nil {
		return wrong("is no JWK Set: an object with keys")
	}
	var keys []json.RawMessage
	if json.Unmarshal(members["keys"], &keys) != nil || len(keys) == 0 || len(keys) > maxClientKeys {
		return wrong(fmt.Sprintf("is no JWK Set of 1 to %d keys", maxClientKeys))
	}
	set := &KeySet{}
	for n, raw := range keys {
		key, err := parseClientKey(raw)
		if err == nil && slices.ContainsFunc(set.Keys, func(other jwk) bool { return other.ID == key.ID }) {
			err = fmt.Errorf("has the same kid as another")
		}
		if err != nil {
			return wrong(fmt.Sprintf("key %d %v", n, err))
		}
		set.Keys = append(set.Keys, key)
	}
	return set, nil
}

func parseClientKey(raw json.RawMessage) (key jwk, err error) {
	members, err := strictjson.Object(raw)
	if err != nil {
		return key, fmt.Errorf("is no JSON object, or has a member twice")
	}
	for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if _, there := members[private]; there {
			return key, fmt.Errorf("is not a public key: never send a private one")
		}
	}
	for name, target := range map[string]*string{
		"kty": &key.Type, "kid": &key.ID, "use": &key.Use, "alg": &key.Algorithm,
		"crv": &key.Curve, "x": &key.X, "y": &key.Y, "n": &key.N, "e": &key.E,
	} {
		if raw, there := members[name]; there {
			var ok bool
			if *target, ok = strictjson.String(raw); !ok {
				return key, fmt.Errorf("has a member that is no string")
			}
		}
	}
	if key.Use != "" && key.Use != "sig" {
		return key, fmt.Errorf("is not for signatures")
	}
	if raw, there := members["key_ops"]; there {
		if ops, ok := strictjson.Strings(raw); !ok || !slices.Contains(ops, "verify") {
			return key, fmt.Errorf("is not for signatures")
		}
	}
	_, err = key.verifyKey()
	return key, err
}

package handler

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// parseDraft reads the body that asks for a credential. Members that it does
// not know are left alone, as the API's clients expect.
func parseDraft(body []byte) (issuer.Draft, error) {
	members, err := strictjson.Object(body)
	if err != nil {
		return issuer.Draft{}, &issuer.InputError{Field: "the body", Problem: "is not one JSON object: " + err.Error()}
	}
	var draft issuer.Draft
	if draft.Name, err = parseName(members["name"]); err != nil {
		return draft, err
	}
	if draft.Expires, err = parseExpires(members["expires"]); err != nil {
		return draft, err
	}
	if raw := members["account"]; !strictjson.Null(raw) {
		var ok bool
		if draft.Account, ok = strictjson.String(raw); !ok {
			return draft, &issuer.InputError{Field: "account", Problem: "is neither a string nor null"}
		}
		draft.Named = append(draft.Named, "account")
	}
	for _, list := range []struct {
		name   string
		target *[]string
	}{{"scopes", &draft.Scopes}, {"audiences", &draft.Audiences}, {"grantable", &draft.Grantable}} {
		if *list.target, err = parseList(list.name, members[list.name]); err != nil {
			return draft, err
		}
		if *list.target != nil {
			draft.Named = append(draft.Named, list.name)
		}
	}
	if draft.TokenLifetime, err = parseDuration("tokenLifetime", members["tokenLifetime"]); err != nil {
		return draft, err
	}
	if draft.TokenLifetime != 0 {
		draft.Named = append(draft.Named, "tokenLifetime")
	}
	for _, limit := range []struct {
		name   string
		target *int
	}{{"tokensPerHour", &draft.TokensPerHour}, {"requestsPerSecond", &draft.RequestsPerSecond}} {
		if *limit.target, err = parseLimit(limit.name, members[limit.name]); err != nil {
			return draft, err
		}
		if *limit.target != 0 {
			draft.Named = append(draft.Named, limit.name)
		}
	}
	if draft.Claims, err = parseClaims(members["claims"]); err != nil {
		return draft, err
	}
	if draft.Claims != nil {
		draft.Named = append(draft.Named, "claims")
	}
	if raw := members["jwks"]; !strictjson.Null(raw) {
		if draft.Keys, err = issuer.ParseClientKeys(raw); err != nil {
			return draft, err
		}
		draft.Named = append(draft.Named, "jwks")
	}
	if raw := members["jwksUri"]; !strictjson.Null(raw) {
		var ok bool
		if draft.KeysURL, ok = strictjson.String(raw); !ok || draft.KeysURL == "" {
			return draft, &issuer.InputError{Field: "jwksUri", Problem: "is neither a URL nor null"}
		}
		draft.Named = append(draft.Named, "jwksUri")
	}
	return draft, nil
}

func parseName(raw json.RawMessage) (*string, error) {
	if strictjson.Null(raw) {
		return nil, nil
	}
	name, ok := strictjson.String(raw)
	if !ok {
		return nil, &issuer.InputError{Field: "name", Problem: "is neither a string nor null"}
	}
	return &name, nil
}

// parseExpires returns zero for null.
func parseExpires(raw json.RawMessage) (time.Time, error) {
	if strictjson.Null(raw) {
		return time.Time{}, nil
	}
	text, ok := strictjson.String(raw)
	if !ok {
		return time.Time{}, &issuer.InputError{Field: "expires", Problem: "is neither a string nor null"}
	}
	expires, err := ParseTime(text)
	if err != nil {
		return time.Time{}, &issuer.InputError{Field: "expires", Problem: err.Error()}
	}
	return expires, nil
}

// parseList returns nil for null, and for nothing else.
func parseList(name string, raw json.RawMessage) ([]string, error) {
	if strictjson.Null(raw) {
		return nil, nil
	}
	list, ok := strictjson.Strings(raw)
	if !ok {
		return nil, &issuer.InputError{Field: name, Problem: "is neither an array of strings nor null"}
	}
	return list, nil
}

// parseDuration reads what Caddy takes as one. It returns zero for null, and for
// nothing else.
func parseDuration(name string, raw json.RawMessage) (time.Duration, error) {
	if strictjson.Null(raw) {
		return 0, nil
	}
	text, _ := strictjson.String(raw)
	d, err := caddy.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, &issuer.InputError{Field: name, Problem: `is neither a duration, such as "15m", nor null`}
	}
	return d, nil
}

// parseLimit returns zero for null, and for nothing else.
func parseLimit(name string, raw json.RawMessage) (limit int, err error) {
	if strictjson.Null(raw) {
		return 0, nil
	}
	if err := json.Unmarshal(raw, &limit); err != nil || limit < 1 {
		return 0, &issuer.InputError{Field: name, Problem: "is neither a positive whole number nor null"}
	}
	return limit, nil
}

// duration writes a duration without the parts that are zero at its end.
func duration(d time.Duration) string {
	text := d.String()
	text = strings.TrimSuffix(text, "m0s")
	if text != d.String() {
		text += "m"
	}
	if hours, whole := strings.CutSuffix(text, "h0m"); whole {
		text = hours + "h"
	}
	return text
}

// parseClaims returns nil for null, and for nothing else.
func parseClaims(raw json.RawMessage) (json.RawMessage, error) {
	if strictjson.Null(raw) {
		return nil, nil
	}
	return issuer.ParseClaims(raw)
}

// ParseTime reads an RFC 3339 date-time with any offset. Letters may be in
// lower case, and a leap second counts as the second after it, which is what
// most clocks make of it.
func ParseTime(text string) (time.Time, error) {
	upper := strings.ToUpper(text)
	leap := len(upper) > 19 && upper[17:19] == "60"
	if leap {
		upper = upper[:17] + "59" + upper[19:]
	}
	var t time.Time
	if err := t.UnmarshalText([]byte(upper)); err != nil { // stricter than time.Parse
		return time.Time{}, errors.New("is not an RFC 3339 date-time, such as 2030-01-31T12:00:00Z")
	}
	if leap {
		t = t.Add(time.Second)
	}
	if t.IsZero() { // which means that there is none
		return time.Time{}, errors.New("is the beginning of all time: leave it out, or say null")
	}
	return t, nil
}

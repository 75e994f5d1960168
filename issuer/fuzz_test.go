package issuer

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Whatever this server's own key has signed is taken for no more than another
// reader finds in it.
func FuzzSignedToken(f *testing.F) {
	forge := newForge(f, makeKey(f, "EdDSA"))
	header := members{{"alg", `"EdDSA"`}, {"typ", `"at+jwt"`}, {"kid", `"{kid}"`}}
	claims := members{
		{"iss", `"https://issuer.test"`},
		{"sub", `"{client}"`},
		{"client_id", `"{client}"`},
		{"aud", `"https://api.test"`},
		{"iat", "{now}"},
		{"exp", "{later}"},
		{"jti", `"j"`},
		{"epoch", "1"},
		{"scope", `"read write"`},
	}
	for _, seed := range [][2]members{
		{header, claims},
		{header.with("typ", `"Application/AT+JWT"`), claims.with("aud", `["https://api.test","x"]`).without("scope").with("nbf", "1.5")},
		{header.with("alg", `"none"`), claims},
		{header.without("typ"), claims},
		{header.with("typ", `"JWT"`), claims},
		{header.with("crit", `["x"]`), claims},
		{header.with("jwk", `{}`), claims},
		{header.with("kid", "null"), claims},
		{header, claims.with("exp", "{later}.5e1")},
		{header, claims.with("exp", "1")},
		{header, claims.with("iat", "{later}")},
		{header, claims.with("iss", `"https://issuer.test/"`)},
		{header, claims.with("sub", `"x"`)},
		{header, claims.with("cnf", `{"jkt":"x"}`)},
		{header, claims.behind("iss", `"x"`)},
		{header, claims.with("Iss", `"x"`)},
		{header, claims.with("aud", `[]`)},
		{header, claims.with("scope", `"a  b"`)},
		{header, claims.with("scope", `"write read"`)},
		{header, claims.with("epoch", "1.0")},
		{header, claims.with("jti", `"\n"`)},
	} {
		f.Add(seed[0].String(), seed[1].String())
	}
	f.Fuzz(func(t *testing.T, header, claims string) {
		header, claims = forge.expand(header), forge.expand(claims)
		token := forge.token(header, claims)
		access, err := forge.iss.Verify(t.Context(), token)
		if err != nil {
			wantKnownReason(t, err)
			return
		}
		wantOwnHeader(t, forge, header)
		wantOwnClaims(t, forge, claims, &access.Token)
		if _, err := jwt.Parse(token, func(*jwt.Token) (any, error) { return forge.key.public, nil }, jwt.WithValidMethods([]string{"EdDSA"})); err != nil {
			t.Fatalf("another verifier refuses %s %s: %v", header, claims, err)
		}
	})
}

func wantKnownReason(t *testing.T, err error) {
	t.Helper()
	refusal, ok := errors.AsType[*Refusal](err)
	if !ok || !slices.Contains(reasons, refusal.Reason) {
		t.Fatalf("Verify = %v, want one of the refusals", err)
	}
}

func rawMembers(t *testing.T, text string) map[string]json.RawMessage {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &members); err != nil {
		t.Fatalf("another reader refuses %s: %v", text, err)
	}
	return members
}

func wantOwnHeader(t *testing.T, f *forge, header string) {
	t.Helper()
	values := map[string]string{}
	for name, raw := range rawMembers(t, header) {
		var value string
		if err := json.Unmarshal(raw, &value); err != nil || string(raw) == "null" {
			t.Fatalf("the header %s was taken", header)
		}
		values[name] = value
	}
	values["typ"] = strings.TrimPrefix(strings.ToLower(values["typ"]), "application/")
	if want := map[string]string{"alg": "EdDSA", "typ": "at+jwt", "kid": f.key.id}; !maps.Equal(values, want) {
		t.Fatalf("the header %s was taken", header)
	}
}

func wantOwnClaims(t *testing.T, f *forge, claims string, got *Token) {
	t.Helper()
	members := rawMembers(t, claims)
	read := func(name string) (value any) {
		if err := json.Unmarshal(members[name], &value); err != nil {
			t.Fatalf("the %s of %s was taken", name, claims)
		}
		return value
	}
	for name, want := range map[string]any{
		"iss": "https://issuer.test", "sub": f.client.ClientID, "client_id": f.client.ClientID, "jti": got.ID, "epoch": 1.0,
	} {
		if value := read(name); value != want {
			t.Fatalf("%s was taken, though %s is %v, not %v", claims, name, value, want)
		}
	}
	audience, ok := read("aud").([]any)
	if !ok {
		audience = []any{read("aud")}
	}
	if len(audience) == 0 || fmt.Sprint(audience) != fmt.Sprint(got.Audience()) {
		t.Fatalf("the audience of %s was taken for %q", claims, got.Audience())
	}
	scope := ""
	if members["scope"] != nil {
		scope, _ = read("scope").(string)
	}
	if scope != got.Scope || !slices.Equal(strings.Fields(scope), got.Scopes()) || (members["scope"] != nil) != (scope != "") {
		t.Fatalf("the scope %s was taken for %q, %q", members["scope"], got.Scope, got.Scopes())
	}
	if _, bound := members["cnf"]; bound || strings.ContainsFunc(got.ID, func(r rune) bool { return r <= ' ' || r > '~' }) {
		t.Fatalf("%s was taken", claims)
	}
	wantOwnTimes(t, members, got)
}

func wholeSeconds(t *testing.T, members map[string]json.RawMessage, name string) int64 {
	t.Helper()
	value, err := strconv.ParseFloat(string(members[name]), 64)
	if err != nil {
		t.Fatalf("the %s %s was taken", name, members[name])
	}
	return int64(math.Floor(value))
}

func wantOwnTimes(t *testing.T, members map[string]json.RawMessage, got *Token) {
	t.Helper()
	now := time.Now().Unix()
	exp, iat := wholeSeconds(t, members, "exp"), wholeSeconds(t, members, "iat")
	if exp != got.Expires().Unix() || iat != got.IssuedAt().Unix() || exp < now || exp-iat > 3600 || iat > now+int64(clockMargin/time.Second)+1 {
		t.Fatalf("exp %s and iat %s were taken for %v and %v", members["exp"], members["iat"], got.Expires(), got.IssuedAt())
	}
	if members["nbf"] != nil && wholeSeconds(t, members, "nbf") > now {
		t.Fatalf("nbf %s was taken", members["nbf"])
	}
}

// A token is good as it was signed, to the last byte.
func FuzzTamperedToken(f *testing.F) {
	forge := newForge(f, makeKey(f, "EdDSA"))
	f.Add(uint16(0), uint16(0), "")
	f.Add(uint16(0), uint16(0), " ")
	f.Add(uint16(1000), uint16(0), "=")
	f.Add(uint16(20), uint16(1), "A")
	f.Add(uint16(120), uint16(4), "e30\n")
	f.Add(uint16(0), uint16(60), "eyJhbGciOiJub25lIn0")
	f.Add(uint16(450), uint16(1000), "")
	f.Fuzz(func(t *testing.T, at, drop uint16, insert string) {
		good := forge.good()
		begin := min(int(at), len(good))
		end := min(begin+int(drop), len(good))
		tampered := good[:begin] + insert + good[end:]
		_, err := forge.iss.Verify(t.Context(), tampered)
		switch {
		case tampered == good && err != nil:
			t.Fatalf("a good token is refused: %v", err)
		case tampered == good:
		case err == nil:
			t.Fatalf("%s was taken, though %s was signed", tampered, good)
		default:
			wantKnownReason(t, err)
		}
	})
}

// A client's signature proves who it is only on what was meant for that.
func FuzzClientAssertion(f *testing.F) {
	forge := newForge(f, makeKey(f, "EdDSA"))
	forge.key = makeKey(f, "EdDSA")
	var err error
	if forge.client, _, err = forge.iss.Create(f.Context(), Draft{Keys: &KeySet{Keys: []jwk{forge.key.jwk}}}); err != nil {
		f.Fatal(err)
	}
	header := members{{"alg", `"EdDSA"`}, {"kid", `"{kid}"`}}
	claims := members{
		{"iss", `"{client}"`}, {"sub", `"{client}"`}, {"aud", `"https://issuer.test"`}, {"iat", "{now}"}, {"exp", "{later}"}, {"jti", `"{once}"`},
	}
	for _, seed := range [][2]members{
		{header, claims},
		{header.with("typ", `"JWT"`), claims.without("jti")},
		{header.with("typ", `"at+jwt"`), claims},
		{header.with("alg", `"Ed25519"`).without("kid"), claims},
		{header.with("crit", `["x"]`), claims},
		{header.with("b64", "false"), claims},
		{header.with("x5t", `"x"`), claims},
		{header.with("alg", `"none"`), claims},
		{header, claims.with("aud", `["https://issuer.test"]`)},
		{header, claims.with("iss", `"x"`)},
		{header, claims.with("exp", "1")},
		{header, claims.with("exp", "99999999999")},
		{header, claims.with("iat", "{later}")},
		{header, claims.with("nbf", "{later}")},
		{header, claims.behind("aud", `"x"`)},
	} {
		f.Add(seed[0].String(), seed[1].String())
	}
	f.Fuzz(func(t *testing.T, header, claims string) {
		header, claims = forge.expand(header), forge.expand(claims)
		caller, err := forge.iss.Authenticate(t.Context(), ClientAuthentication{Assertion: &Assertion{JWT: forge.token(header, claims)}})
		if err == nil {
			wantOwnAssertion(t, forge, header, claims, caller.Credential)
			return
		}
		refusal, ok := errors.AsType[*TokenError](err)
		if !ok || refusal.Code != "invalid_client" || refusal.Description != "client authentication failed" ||
			refusal.ClientID != "" && !madeHere(refusal.ClientID) {
			t.Fatalf("Authenticate = %v, want a refusal of the client", err)
		}
	})
}

// expand writes this process's own values into an input: the corpus is shared
// by processes that have others.
func (f *forge) expand(text string) string {
	now := time.Now().Unix()
	return strings.NewReplacer(
		"{kid}", f.key.id, "{client}", f.client.ClientID, "{now}", fmt.Sprint(now), "{later}", fmt.Sprint(now+600), "{once}", rand.Text(),
	).Replace(text)
}

func wantOwnAssertion(t *testing.T, f *forge, header, claims string, got *Credential) {
	t.Helper()
	var says struct{ Iss, Sub, Aud, Alg, Typ string }
	for text, targets := range map[string]map[string]*string{
		header: {"alg": &says.Alg, "typ": &says.Typ}, claims: {"iss": &says.Iss, "sub": &says.Sub, "aud": &says.Aud},
	} {
		members := rawMembers(t, text)
		for name, target := range targets {
			if raw, given := members[name]; given && json.Unmarshal(raw, target) != nil {
				t.Fatalf("%s was taken", text)
			}
		}
	}
	if unknown := rawMembers(t, header); unknown["crit"] != nil || unknown["b64"] != nil {
		t.Fatalf("the header %s was taken", header)
	}
	if typ := strings.TrimPrefix(strings.ToLower(says.Typ), "application/"); !slices.Contains([]string{"", "jwt", assertionType}, typ) {
		t.Fatalf("the type %s was taken", says.Typ)
	}
	if says.Iss != f.client.ClientID || says.Sub != says.Iss || says.Aud != "https://issuer.test" || got.ClientID != says.Iss ||
		says.Alg != "EdDSA" && says.Alg != "Ed25519" {
		t.Fatalf("%s %s was taken as of %s", header, claims, got.ClientID)
	}
	members := rawMembers(t, claims)
	now := time.Now().Unix()
	exp, iat := wholeSeconds(t, members, "exp"), wholeSeconds(t, members, "iat")
	if exp < now || exp > now+3600 || iat > now+10 || iat < f.iss.registry.opened.Unix() || members["nbf"] != nil && wholeSeconds(t, members, "nbf") > now+10 {
		t.Fatalf("%s was taken at %d", claims, now)
	}
}

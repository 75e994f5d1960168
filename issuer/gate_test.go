package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// forge makes tokens with the server's own key, good ones and others.
type forge struct {
	iss    *Issuer
	key    signingKey
	client *Credential
	secret string
}

func newForge(t testing.TB, key signingKey) *forge {
	t.Helper()
	st := openTestStore(t, t.TempDir())
	iss := issuerWith(t, st, &key, time.Now())
	c, secret, err := iss.Create(t.Context(), Draft{Scopes: []string{"read", "write"}})
	if err != nil {
		t.Fatal(err)
	}
	return &forge{iss: iss, key: key, client: c, secret: secret}
}

// issuerWith opens the issuer of a configuration that gives a signing key, or
// none where it is nil.
func issuerWith(t testing.TB, st store.Store, key *signingKey, now time.Time) *Issuer {
	t.Helper()
	iss := newTestIssuer(t, st, time.Hour, 100)
	iss.keyPolicy.given = key
	ring, err := openKeyring(t.Context(), iss.registry, iss.keyPolicy, time.Hour, moment{wall: now})
	if err != nil {
		t.Fatal(err)
	}
	iss.ring.Store(ring)
	return iss
}

func makeKey(t testing.TB, kind string) signingKey {
	t.Helper()
	var private crypto.Signer
	var err error
	switch kind {
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "RS256":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := newSigningKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	if key.method.Alg() != kind {
		t.Fatalf("the key is for %s, want %s", key.method.Alg(), kind)
	}
	return key
}

// members are those of a JSON object, in order, each value as it is sent.
type members [][2]string

// with replaces a member, or adds it.
func (m members) with(name, raw string) members {
	m = slices.Clone(m)
	for n := range m {
		if m[n][0] == name {
			m[n][1] = raw
			return m
		}
	}
	return append(m, [2]string{name, raw})
}

func (m members) without(name string) members {
	return slices.DeleteFunc(slices.Clone(m), func(member [2]string) bool { return member[0] == name })
}

// before and behind add a member, whatever is there.
func (m members) before(name, raw string) members { return append(members{{name, raw}}, m...) }

func (m members) behind(name, raw string) members {
	return append(slices.Clone(m), [2]string{name, raw})
}

func (m members) String() string {
	parts := make([]string, len(m))
	for n, member := range m {
		parts[n] = `"` + member[0] + `":` + member[1]
	}
	return "{" + strings.Join(parts, ",") + "}"
}

func (f *forge) header() members {
	return members{{"alg", quote(f.key.method.Alg())}, {"typ", `"at+jwt"`}, {"kid", quote(f.key.id)}}
}

func (f *forge) claims() members {
	now := time.Now().Unix()
	return members{
		{"iss", quote(f.iss.policy.Issuer)},
		{"sub", quote(f.client.ClientID)},
		{"client_id", quote(f.client.ClientID)},
		{"aud", quote(f.iss.policy.Audience)},
		{"iat", fmt.Sprint(now)},
		{"exp", fmt.Sprint(now + 600)},
		{"jti", `"an-id"`},
		{"epoch", "1"},
		{"scope", `"read write"`},
	}
}

// token signs a header and claims, whatever they are.
func (f *forge) token(header, claims string) string {
	return f.signed(segment(header), segment(claims))
}

// signed signs two segments as they stand.
func (f *forge) signed(header, claims string) string {
	text := header + "." + claims
	signature, err := f.key.method.Sign(text, f.key.private)
	if err != nil {
		panic(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func (f *forge) good() string { return f.token(f.header().String(), f.claims().String()) }

func segment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func quote(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(quoted)
}

// reasons are all that a refusal may say.
var reasons = []string{
	"too long", "not a compact JWS", "malformed header", "unknown header parameter", "not an access token",
	"unknown key", "wrong algorithm", "wrong signature", "malformed claims", "bound to a key", "wrong issuer",
	"subject is not the client", "issued in the future", "unknown client", "expired", "not valid yet", "revoked",
	"credential expired", "lives too long",
	malformed("iss"), malformed("sub"), malformed("client_id"), malformed("jti"), malformed("aud"),
	malformed("exp"), malformed("iat"), malformed("nbf"), malformed("scope"), malformed("epoch"),
}

func malformed(claim string) string { return "missing or malformed claim " + claim }

// refused returns the reason, and checks that the error says nothing else.
func refused(t *testing.T, iss *Issuer, token string) string {
	t.Helper()
	cached, _ := iss.registry.verified.Len()
	access, err := iss.Verify(t.Context(), token)
	if err == nil {
		t.Fatal("the token was accepted")
	}
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("Verify = %v, want a refusal", err)
	}
	if !slices.Contains(reasons, refusal.Reason) || err.Error() != "token refused: "+refusal.Reason {
		t.Errorf("the refusal says %q", err)
	}
	if access != (Access{}) {
		t.Error("a refusal gives access")
	}
	if now, _ := iss.registry.verified.Len(); now > cached {
		t.Error("a refused token is kept in memory")
	}
	return refusal.Reason
}

// forgery is a token and why it is refused.
type forgery struct{ name, token, reason string }

func TestTheGateRefusesEveryForgeryForItsOwnReason(t *testing.T) {
	for _, kind := range []string{"ES256", "EdDSA", "RS256"} {
		t.Run(kind, func(t *testing.T) {
			f := newForge(t, makeKey(t, kind))
			forgeries := slices.Concat(
				f.brokenShapes(), f.brokenHeaders(), f.foreignAlgorithms(t), f.brokenPayloads(), f.brokenClaims(t), f.brokenSignatures(t),
			)
			for _, forged := range forgeries {
				t.Run(forged.name, func(t *testing.T) {
					if forged.token == "" && forged.name != "nothing" {
						t.Fatal("no token was forged")
					}
					if got := refused(t, f.iss, forged.token); got != forged.reason {
						t.Errorf("the reason is %q, want %q", got, forged.reason)
					}
				})
			}
			if _, err := f.iss.Verify(t.Context(), f.good()); err != nil {
				t.Errorf("the good token is refused as well: %v", err)
			}
		})
	}
}

func (f *forge) brokenShapes() []forgery {
	const reason = "not a compact JWS"
	good := f.good()
	parts := strings.Split(good, ".")
	header, payload, signature := parts[0], parts[1], parts[2]
	all := []forgery{
		{"nothing", "", reason},
		{"one dot", ".", reason},
		{"two dots", "..", reason},
		{"8 KiB of dots", strings.Repeat(".", 8<<10), reason},
		{"1 MiB of dots", strings.Repeat(".", 1<<20), "too long"},
		{"1 MiB of letters", strings.Repeat("A", 1<<20), "too long"},
		{"one segment", header, reason},
		{"two segments", header + "." + payload, reason},
		{"four segments", good + ".x", reason},
		{"five segments", good + ".x.y", reason},
		{"dot in front", "." + good, reason},
		{"dot behind", good + ".", reason},
		{"empty header", "." + payload + "." + signature, reason},
		{"empty payload", header + ".." + signature, reason},
		{"empty signature", header + "." + payload + ".", reason},
		{"empty segment in the middle", header + ".." + payload + "." + signature, reason},
		{"with its scheme", "Bearer " + good, reason},
		{"two tokens", good + " " + good, reason},
		{"two tokens with a comma", good + "," + good, reason},
		{"quoted", `"` + good + `"`, reason},
		{"JSON serialization, flattened", `{"protected":"` + header + `","payload":"` + payload + `","signature":"` + signature + `"}`, reason},
		{"JSON serialization, general", `{"payload":"` + payload + `","signatures":[{"protected":"` + header + `","signature":"` + signature + `"}]}`, reason},
		{"JSON that splits at dots", `{"` + header + "." + payload + "." + signature + `":0}`, reason},
		{"segment of one letter", "A." + payload + "." + signature, reason},
		{"signature of one letter more", good + "A", reasonOf(signature+"A", reason, "wrong signature")},
	}
	for name, text := range map[string]string{
		"space": " ", "tab": "\t", "CR": "\r", "LF": "\n", "CRLF": "\r\n", "NUL": "\x00", "question mark": "?", "hash": "#",
		"percent": "%2E", "no-break space": "\u00a0", "padding": "=", "two paddings": "==", "plus": "+", "slash": "/",
		"fullwidth letter": "\uff21", "not UTF-8": "\xff", "zero-width space": "\u200b",
	} {
		in := func(s string, at int) string { return s[:at] + text + s[at:] }
		for place, at := range map[string]func(string) int{
			"before": func(string) int { return 0 },
			"in":     func(s string) int { return len(s) / 2 },
			"behind": func(s string) int { return len(s) },
		} {
			// What is signed is the text as it stands, so that nothing but the
			// alphabet can be the reason.
			all = append(all,
				forgery{name + " " + place + " the header", f.signed(in(header, at(header)), payload), reason},
				forgery{name + " " + place + " the payload", f.signed(header, in(payload, at(payload))), reason},
				forgery{name + " " + place + " the signature", header + "." + payload + "." + in(signature, at(signature)), reason},
			)
		}
	}
	// The same bytes in another spelling: bits of the last letter that are part
	// of no byte.
	for _, spaces := range []string{" ", "  ", "   "} { // two of the three leave bits over
		h, p := segment(f.header().String()+spaces), segment(f.claims().String()+spaces)
		for _, other := range otherSpellings(h) {
			all = append(all, forgery{"unused bits of the header " + other[len(other)-1:], f.signed(other, p), reason})
		}
		for _, other := range otherSpellings(p) {
			all = append(all, forgery{"unused bits of the payload " + other[len(other)-1:], f.signed(h, other), reason})
		}
	}
	for _, other := range otherSpellings(signature) {
		all = append(all, forgery{"unused bits of the signature " + other[len(other)-1:], header + "." + payload + "." + other, reason})
	}
	return all
}

// reasonOf returns the first reason where the text is no base64url, else the
// second.
func reasonOf(text, broken, sound string) string {
	if _, err := base64.RawURLEncoding.Strict().DecodeString(text); err != nil {
		return broken
	}
	return sound
}

// otherSpellings returns the texts that a lenient decoder takes for the same
// bytes.
func otherSpellings(segment string) []string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	want, _ := base64.RawURLEncoding.DecodeString(segment)
	var all []string
	for _, letter := range alphabet {
		other := segment[:len(segment)-1] + string(letter)
		if got, err := base64.RawURLEncoding.DecodeString(other); err == nil && other != segment && string(got) == string(want) {
			all = append(all, other)
		}
	}
	return all
}

func (f *forge) brokenHeaders() []forgery {
	var all []forgery
	claims := f.claims().String()
	add := func(name, reason, header string) {
		all = append(all, forgery{"header " + name, f.token(header, claims), reason})
	}
	h := f.header()
	for _, name := range []string{"alg", "kid", "typ"} {
		value := h[slices.IndexFunc(h, func(m [2]string) bool { return m[0] == name })][1]
		for _, raw := range []string{"null", "1", "true", "[]", "{}", "[" + value + "]", `{"x":` + value + `}`} {
			add(name+" "+raw, "malformed header", h.with(name, raw).String())
		}
		upper, title := strings.ToUpper(name), strings.ToUpper(name[:1])+name[1:]
		add(name+" twice, alike", "malformed header", h.behind(name, value).String())
		add(name+" twice, first other", "malformed header", h.before(name, `"none"`).String())
		add(name+" twice, last other", "malformed header", h.behind(name, `"none"`).String())
		escaped := fmt.Sprintf(`\u%04x`, name[0]) + name[1:]
		add(name+" twice, one escaped", "malformed header", h.behind(escaped, value).String())
		add(name+" and "+upper, "unknown header parameter", h.behind(upper, value).String())
		add(name+" and "+title, "unknown header parameter", h.before(title, value).String())
		add(upper+" alone", "unknown header parameter", h.without(name).with(upper, value).String())
		add(name+" with a space", "unknown header parameter", h.without(name).with(name+" ", value).String())
	}
	add("kid with a Kelvin sign", "unknown header parameter", h.without("kid").with("\u212aid", quote(f.key.id)).String())

	for _, kid := range []string{
		"", "x", f.key.id + " ", " " + f.key.id, f.key.id + "\x00", f.key.id + "\n", f.key.id[1:], f.key.id + "A", strings.ToUpper(f.key.id),
		"../../../../dev/null", "/proc/self/environ", "key/" + f.key.id, "..", "%00", "x' UNION SELECT 'x'--", "' OR '1'='1", "x)(uid=*)", "|id", "$(id)",
		"http://169.254.169.254/", strings.Repeat("k", 3000),
	} {
		name := kid[:min(len(kid), 60)]
		add("kid "+quote(name), "unknown key", h.with("kid", quote(kid)).String())
	}
	add("without kid", "unknown key", h.without("kid").String())
	all = append(all, forgery{"header kid of 64 KiB", f.token(h.with("kid", quote(strings.Repeat("k", 64<<10))).String(), claims), "too long"})

	add("without typ", "not an access token", h.without("typ").String())
	for _, typ := range []string{
		"", "JWT", "jwt", "JOSE", "at", "at+", "at+jwt ", " at+jwt", "at+jwt;x=1", "at jwt", "at-jwt", "at+jwt\x00", "+jwt", "xat+jwt", "at+jwtx", "at+sd-jwt",
		"application/jwt", "application/", "application/at+jwt;x=1", "application/application/at+jwt", "applicat\u0131on/at+jwt", "text/at+jwt", "/at+jwt",
		"id+jwt", "dpop+jwt", "logout+jwt", "secevent+jwt", "token-introspection+jwt", "oauth-authz-req+jwt", "client-authentication+jwt",
	} {
		add("typ "+quote(typ), "not an access token", h.with("typ", quote(typ)).String())
	}

	for name, values := range map[string][]string{
		"crit": {`["exp"]`, `["alg"]`, `["x"]`, `[]`, `[1]`, `["exp","exp"]`, `["b64"]`, `null`, `{}`, `false`},
		"b64":  {`false`, `true`, `0`, `null`},
		"x5c":  {`["AA=="]`, `[]`},
		"jwk":  {`{"kty":"oct","k":"AA"}`, `null`},
		"epk":  {`{}`},
		"p2c":  {`1000000000`},
		"x":    {`1`, `null`, strings.Repeat("[", 2000) + strings.Repeat("]", 2000)},
	} {
		for _, raw := range values {
			add(name+" "+raw[:min(len(raw), 40)], "unknown header parameter", h.with(name, raw).String())
		}
	}
	add("crit with what it names", "unknown header parameter", h.with("crit", `["x"]`).with("x", "1").String())
	add("crit of b64 with b64", "unknown header parameter", h.with("crit", `["b64"]`).with("b64", "false").String())
	for name, value := range map[string]string{
		"crit": "exp", "b64": "false", "jku": "http://169.254.169.254/jwks", "x5u": "file:///etc/passwd", "x5c": "AA==", "x5t": "AAAA", "x5t#S256": "AAAA",
		"jwk": "{}", "zip": "DEF", "enc": "A256GCM", "cty": "JWT", "nonce": "x", "url": "x", "iss": "x", "": "x", "ppt": "x", "kid\x00": "x",
	} {
		escaped := strings.Trim(quote(name), `"`)
		add(quote(name)+" as text", "unknown header parameter", h.behind(escaped, quote(value)).String())
	}

	sound := h.String()
	for name, header := range map[string]string{
		"null": "null", "an array": "[" + sound + "]", "text": quote(sound), "a number": "1", "blank": " ", "not JSON": "alg=none",
		"with a tail": sound + " x", "with another": sound + sound, "with NUL": sound + "\x00", "after a mark": "\xef\xbb\xbf" + sound,
		"not UTF-8": h.with("kid", "\"\xff\"").String(), "half a pair": h.with("kid", `"\ud800"`).String(), "not closed": sound[:len(sound)-1],
		"with a comma": sound[:len(sound)-1] + ",}", "with a comment": sound + "/**/", "with a line break in a text": h.with("kid", "\"a\nb\"").String(),
	} {
		add(name, "malformed header", header)
	}
	add("of no members", "not an access token", "{}")
	return all
}

// foreignAlgorithms are tokens whose header asks for another algorithm than
// that of the key.
func (f *forge) foreignAlgorithms(t *testing.T) []forgery {
	var all []forgery
	own := f.key.method.Alg()
	for _, alg := range []string{
		"", "none", "None", "NONE", "nOnE", "none ", " none", "none\x00", "non\u0435", strings.ToLower(own), own + " ", own + "\x00",
		"HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "ES256K", "EdDSA", "Ed25519", "Ed448",
		"RSA-OAEP", "dir", "A256GCMKW", "*", "any",
	} {
		if alg != own {
			all = append(all, forgery{"alg " + quote(alg), f.token(f.header().with("alg", quote(alg)).String(), f.claims().String()), "wrong algorithm"})
		}
	}
	all = append(all, forgery{"without alg", f.token(f.header().without("alg").String(), f.claims().String()), "wrong algorithm"})
	none := segment(f.header().with("alg", `"none"`).String()) + "." + segment(f.claims().String()) + "."
	all = append(all, forgery{"alg none without signature", none, "not a compact JWS"})

	der, err := x509.MarshalPKIXPublicKey(f.key.public)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	secrets := map[string][]byte{
		"DER": der, "PEM": text, "PEM without line end": text[:len(text)-1], "PEM after a space": append([]byte(" "), text...),
		"nothing": {}, "its id": []byte(f.key.id),
	}
	switch public := f.key.public.(type) {
	case *ecdsa.PublicKey:
		point, _ := public.Bytes()
		secrets["point"], secrets["coordinates"] = point, point[1:]
		secrets["point, compressed"] = elliptic.MarshalCompressed(public.Curve, new(big.Int).SetBytes(point[1:33]), new(big.Int).SetBytes(point[33:]))
	case ed25519.PublicKey:
		secrets["raw"] = public
	case *rsa.PublicKey:
		secrets["modulus"] = public.N.Bytes()
		secrets["PKCS#1"] = x509.MarshalPKCS1PublicKey(public)
		secrets["PKCS#1 as PEM"] = pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: secrets["PKCS#1"]})
	}
	for name, secret := range secrets {
		for _, alg := range []string{"HS256", own} { // also under the name of the right one
			signed := segment(f.header().with("alg", quote(alg)).String()) + "." + segment(f.claims().String())
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte(signed))
			reason := "wrong algorithm"
			if alg == own {
				reason = "wrong signature"
			}
			all = append(all, forgery{
				"a MAC under the public key as " + name + ", called " + alg,
				signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), reason,
			})
		}
	}
	if private, ok := f.key.private.(*rsa.PrivateKey); ok {
		for _, method := range []jwt.SigningMethod{jwt.SigningMethodPS256, jwt.SigningMethodRS384, jwt.SigningMethodRS512} {
			for _, alg := range []string{method.Alg(), own} {
				signed := segment(f.header().with("alg", quote(alg)).String()) + "." + segment(f.claims().String())
				signature, err := method.Sign(signed, private)
				if err != nil {
					t.Fatal(err)
				}
				reason := "wrong algorithm"
				if alg == own {
					reason = "wrong signature"
				}
				all = append(all, forgery{
					"rightly signed with " + method.Alg() + ", called " + alg,
					signed + "." + base64.RawURLEncoding.EncodeToString(signature), reason,
				})
			}
		}
	}
	return all
}

func (f *forge) brokenPayloads() []forgery {
	var all []forgery
	sound := f.claims().String()
	for name, payload := range map[string]string{
		"null": "null", "an array": "[]", "an array around": "[" + sound + "]", "text": quote(sound), "a number": "1", "true": "true", "blank": " ",
		"with a tail": sound + "x", "with another": sound + "{}", "with NUL": sound + "\x00", "after a mark": "\xef\xbb\xbf" + sound,
		"in UTF-16": "\xff\xfe{\x00}\x00", "not UTF-8": f.claims().with("x", "\"\xff\"").String(), "half a pair": f.claims().with("x", `"\ud800"`).String(),
		"half a pair deep": f.claims().with("x", `[{"\udc00":1}]`).String(), "not closed": sound[:len(sound)-1], "with a comma": sound[:len(sound)-1] + ",}",
		"a token itself": f.good()[:50], "exp NaN": f.claims().with("exp", "NaN").String(), "exp Infinity": f.claims().with("exp", "Infinity").String(),
		"exp in hexadecimal": f.claims().with("exp", "0x7fffffff").String(), "exp with a plus": f.claims().with("exp", "+99999999999").String(),
		"exp with zeros in front": f.claims().with("exp", "0099999999999").String(), "epoch with a plus": f.claims().with("epoch", "+1").String(),
		"not closed, deep": f.claims().with("x", strings.Repeat("[", 2000)).String(),
	} {
		all = append(all, forgery{"payload " + name, f.token(f.header().String(), payload), "malformed claims"})
	}
	for _, member := range f.claims() {
		name, value := member[0], member[1]
		escaped := fmt.Sprintf(`\u%04X`, name[0]) + name[1:]
		for how, payload := range map[string]members{
			"alike":        f.claims().behind(name, value),
			"null first":   f.claims().before(name, "null"),
			"null last":    f.claims().behind(name, "null"),
			"escaped":      f.claims().before(escaped, value),
			"escaped last": f.claims().behind(escaped, value),
		} {
			all = append(all, forgery{"claim " + name + " twice, " + how, f.token(f.header().String(), payload.String()), "malformed claims"})
		}
	}
	return append(all, forgery{"payload of no members", f.token(f.header().String(), "{}"), malformed("iss")})
}

func (f *forge) brokenClaims(t *testing.T) []forgery {
	var all []forgery
	now := time.Now().Unix()
	add := func(name, raw, reason string) {
		shown := raw[:min(len(raw), 40)]
		all = append(all, forgery{"claim " + name + " " + shown, f.token(f.header().String(), f.claims().with(name, raw).String()), reason})
	}
	values := map[string]string{}
	for _, member := range f.claims() {
		values[member[0]] = member[1]
		if member[0] != "scope" { // the one that need not be there
			upper := f.claims().without(member[0]).with(strings.ToUpper(member[0]), member[1])
			all = append(all,
				forgery{"without claim " + member[0], f.token(f.header().String(), f.claims().without(member[0]).String()), malformed(member[0])},
				forgery{"claim " + member[0] + " in capitals alone", f.token(f.header().String(), upper.String()), malformed(member[0])})
		}
		for _, raw := range []string{"null", "true", "{}", `{"x":` + member[1] + `}`, "[]", `""`, "[null]", `[""]`, strings.Repeat("[", 2000) + strings.Repeat("]", 2000)} {
			add(member[0], raw, malformed(member[0]))
		}
	}
	for _, name := range []string{"iss", "sub", "client_id", "jti", "scope"} {
		for _, raw := range []string{"1", "0", "-1", "1.5", "[" + values[name] + "]"} {
			add(name, raw, malformed(name))
		}
	}
	for _, name := range []string{"exp", "iat", "nbf"} {
		for _, raw := range []string{
			quote(fmt.Sprint(now + 600)), `"2099-01-01T00:00:00Z"`, "0", "-0", "0.0", "-1", "-1e9", "1e18", "1e19", "1e308", "1e400", "-1e400", "1e-400",
			"9223372036854775807", "9223372036854775808", "18446744073709551616", "253402300800", "[" + fmt.Sprint(now+600) + "]",
			strings.Repeat("9", 2000), "1" + strings.Repeat("0", 2000) + "e-2000e",
		} {
			reason := malformed(name)
			if strings.HasSuffix(raw, "e") {
				reason = "malformed claims"
			}
			add(name, raw, reason)
		}
	}
	for _, raw := range []string{fmt.Sprint(now - 1), fmt.Sprint(now), fmt.Sprint(now-1) + ".999", "1", "0.5", "1e9", fmt.Sprint(now - 86400)} {
		add("exp", raw, "expired")
	}
	for _, raw := range []string{"9.9999999999e10", "253402300799"} {
		add("exp", raw, "lives too long")
	}
	for _, raw := range []string{"1", "0.5"} {
		add("iat", raw, "lives too long")
	}
	all = append(all, forgery{
		"a second more than a lifetime",
		f.token(f.header().String(), f.claims().with("iat", fmt.Sprint(now)).with("exp", fmt.Sprint(now+3601)).String()), "lives too long",
	})
	all = append(all, forgery{
		"claim exp past, and EXP ahead",
		f.token(f.header().String(), f.claims().with("exp", fmt.Sprint(now-1)).behind("EXP", "99999999999").behind("Exp", "99999999999").String()), "expired",
	})
	for _, ahead := range []int64{120, 3600, 86400 * 365} {
		add("iat", fmt.Sprint(now+ahead), "issued in the future")
		add("nbf", fmt.Sprint(now+ahead), "not valid yet")
	}
	add("nbf", "253402300799", "not valid yet")
	add("nbf", fmt.Sprint(now+120)+".5", "not valid yet")

	iss := f.iss.policy.Issuer
	for _, other := range []string{
		iss + "/", strings.ToUpper(iss), iss[:len(iss)-1], iss + ".evil.example", "https://evil.example", iss + "@evil.example", "http" + iss[5:],
		iss + ":443", iss + "?", iss + "#", " " + iss, iss + " ", iss + "\x00", "https://issuer.t\u0435st", "https://\u0456ssuer.test",
	} {
		add("iss", quote(other), "wrong issuer")
	}
	add("aud", `["`+f.iss.policy.Audience+`",1]`, malformed("aud"))
	add("aud", `"x `+f.iss.policy.Audience+`"`, malformed("aud"))
	add("aud", `["`+f.iss.policy.Audience+`",null]`, malformed("aud"))
	add("aud", `["`+f.iss.policy.Audience+`",""]`, malformed("aud"))
	add("aud", `[["`+f.iss.policy.Audience+`"]]`, malformed("aud"))
	add("aud", `{"0":"`+f.iss.policy.Audience+`"}`, malformed("aud"))
	add("aud", `1`, malformed("aud"))

	for _, scope := range []string{
		" ", " read", "read ", "read  write", "read\twrite", "read\nwrite", "read\r\nX-Admin: 1", `read"`, `re\ad`, "read\u00a0write", "l\u00e9", "\x00", "\x7f",
		"read\u2028write", strings.Repeat("s", 257), strings.Repeat(" ", 2000),
	} {
		add("scope", quote(scope), malformed("scope"))
	}
	add("scope", `["read","write"]`, malformed("scope"))
	for _, raw := range []string{"-1", "-0", "1.0", "1.5", "1e0", `"1"`, "18446744073709551616", "[1]"} {
		add("epoch", raw, malformed("epoch"))
	}
	for _, raw := range []string{"0", "2", "18446744073709551615"} {
		add("epoch", raw, "revoked")
	}
	for _, raw := range []string{`{"jkt":"x"}`, `{"x5t#S256":"x"}`, `{}`, `null`, `"x"`, `[]`} {
		add("cnf", raw, "bound to a key")
	}

	other, _, err := f.iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	gone, _, err := f.iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.iss.Revoke(t.Context(), "", gone.ClientID); err != nil {
		t.Fatal(err)
	}
	own := f.client.ClientID
	for _, pair := range [][2]string{{own, other.ClientID}, {other.ClientID, own}, {own, strings.ToUpper(own)}, {own + " ", own}, {"x", own}, {own, f.client.ID}} {
		claims := f.claims().with("sub", quote(pair[0])).with("client_id", quote(pair[1]))
		all = append(all, forgery{"subject " + pair[0] + " of client " + pair[1], f.token(f.header().String(), claims.String()), "subject is not the client"})
	}
	for id, reason := range map[string]string{
		strings.Repeat("0", 32): "unknown client", strings.ToUpper(own): "unknown client", own + " ": "unknown client", own[:31]: "unknown client",
		own + "0": "unknown client", f.client.ID: "unknown client", "../" + own[3:]: "unknown client", "' OR '1'='1": "unknown client", "*": "unknown client",
		own + "\x00": "unknown client", credentialPrefix + own: "unknown client", gone.ClientID: "revoked",
	} {
		claims := f.claims().with("sub", quote(id)).with("client_id", quote(id))
		all = append(all, forgery{"client " + quote(id), f.token(f.header().String(), claims.String()), reason})
	}
	return all
}

func (f *forge) brokenSignatures(t *testing.T) []forgery {
	good := f.good()
	cut := strings.LastIndexByte(good, '.')
	signed := good[:cut]
	signature, err := base64.RawURLEncoding.DecodeString(good[cut+1:])
	if err != nil {
		t.Fatal(err)
	}
	var all []forgery
	add := func(name string, forged []byte) {
		all = append(all, forgery{"signature " + name, signed + "." + base64.RawURLEncoding.EncodeToString(forged), "wrong signature"})
	}
	flipped := func(at int, bit byte) []byte {
		forged := slices.Clone(signature)
		forged[at] ^= bit
		return forged
	}
	size := len(signature)
	add("of zeros", make([]byte, size))
	add("of one byte", []byte{0})
	add("of ones", slices.Repeat([]byte{0xff}, size))
	add("cut by one byte", signature[:size-1])
	add("cut in half", signature[:size/2])
	add("without its first byte", signature[1:])
	add("with a zero behind", append(slices.Clone(signature), 0))
	add("with a zero in front", append([]byte{0}, signature...))
	add("twice", slices.Repeat(signature, 2))
	add("reversed", reversed(signature))
	add("with its first bit changed", flipped(0, 0x80))
	add("with its last bit changed", flipped(size-1, 1))
	add("with a bit in the middle changed", flipped(size/2, 4))

	parts := strings.Split(good, ".")
	stronger := segment(f.claims().with("scope", `"admin"`).String())
	all = append(all,
		forgery{"signature of another payload", parts[0] + "." + stronger + "." + parts[2], "wrong signature"},
		forgery{"signature of another header", segment(f.header().String()+" ") + "." + parts[1] + "." + parts[2], "wrong signature"})
	foreign := &forge{iss: f.iss, key: makeKey(t, f.key.method.Alg()), client: f.client}
	all = append(all,
		forgery{"signature of a foreign key", foreign.token(f.header().String(), f.claims().String()), "wrong signature"},
		forgery{"signature of a foreign key, by its own name", foreign.good(), "unknown key"})

	switch key := f.key.private.(type) {
	case *ecdsa.PrivateKey:
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if err != nil {
			t.Fatal(err)
		}
		add("in DER", der)
		add("in DER, cut to size", der[:64])
		add("with r and s changed over", slices.Concat(signature[32:], signature[:32]))
		n, p := key.Params().N, key.Params().P
		one := big.NewInt(1)
		odd := map[string]*big.Int{
			"0": big.NewInt(0), "1": one, "n-1": new(big.Int).Sub(n, one), "n": n, "n+1": new(big.Int).Add(n, one), "p": p,
			"2^256-1": new(big.Int).Sub(new(big.Int).Lsh(one, 256), one),
		}
		for name, value := range odd {
			add("with r "+name, slices.Concat(value.FillBytes(make([]byte, 32)), signature[32:]))
			add("with s "+name, slices.Concat(signature[:32], value.FillBytes(make([]byte, 32))))
			for other, s := range odd {
				add("with r "+name+" and s "+other, slices.Concat(value.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))))
			}
		}
		wide := slices.Concat(make([]byte, 16), signature[:32], make([]byte, 16), signature[32:])
		add("of ES384's size", wide)
	case ed25519.PrivateKey:
		order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
		s := new(big.Int).SetBytes(reversed(signature[32:])) // little-endian
		add("with the order of the group added", slices.Concat(signature[:32], reversed(new(big.Int).Add(s, order).FillBytes(make([]byte, 32)))))
		add("of the identity", append([]byte{1}, make([]byte, 63)...))
	case *rsa.PrivateKey:
		s := new(big.Int).SetBytes(signature)
		add("with the modulus added", new(big.Int).Add(s, key.N).Bytes())
		add("negated", new(big.Int).Sub(key.N, s).FillBytes(make([]byte, size)))
		digest, long := sha256.Sum256([]byte(signed)), sha512.Sum384([]byte(signed))
		bare, err := rsa.SignPKCS1v15(rand.Reader, key, 0, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		add("of the bare digest", bare)
		other, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA384, long[:])
		if err != nil {
			t.Fatal(err)
		}
		add("of another digest", other)
		pss, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], nil)
		if err != nil {
			t.Fatal(err)
		}
		add("in PSS", pss)
	}
	return all
}

func reversed(b []byte) []byte {
	b = slices.Clone(b)
	slices.Reverse(b)
	return b
}

func TestTheGateLetsEveryGoodTokenThrough(t *testing.T) {
	for _, kind := range []string{"ES256", "EdDSA", "RS256"} {
		t.Run(kind, func(t *testing.T) {
			f := newForge(t, makeKey(t, kind))
			now := time.Now().Unix()
			h, c := f.header(), f.claims()
			issued, err := f.iss.Issue(t.Context(), tokenRequest(f.client.ClientID, f.secret))
			if err != nil {
				t.Fatal(err)
			}
			for name, token := range map[string]string{
				"as it is issued":              issued.Token,
				"as it is forged":              f.good(),
				"typ in capitals":              f.token(h.with("typ", `"AT+JWT"`).String(), c.String()),
				"typ in mixed case":            f.token(h.with("typ", `"At+Jwt"`).String(), c.String()),
				"typ in full":                  f.token(h.with("typ", `"application/at+jwt"`).String(), c.String()),
				"typ in full, in capitals":     f.token(h.with("typ", `"APPLICATION/AT+JWT"`).String(), c.String()),
				"members escaped":              f.token(`{"\u0061lg":`+quote(kind)+`,"t\u0079p":"at\u002bjwt","kid":`+quote(f.key.id)+`}`, c.String()),
				"white space":                  f.token(" \t\r\n"+h.String()+"\n", "\n"+c.String()+" "),
				"exp ahead by a fraction":      f.token(h.String(), c.with("exp", fmt.Sprintf("%d.75", now+600)).String()),
				"exp with an exponent":         f.token(h.String(), c.with("exp", fmt.Sprintf("%d.%09de9", (now+600)/1e9, (now+600)%1e9)).String()),
				"exp a full lifetime ahead":    f.token(h.String(), c.with("iat", fmt.Sprint(now)).with("exp", fmt.Sprint(now+3600)).String()),
				"iat within the margin":        f.token(h.String(), c.with("iat", fmt.Sprint(now+30)).String()),
				"iat nearly a lifetime ago":    f.token(h.String(), c.with("iat", fmt.Sprint(now-2900)).with("exp", fmt.Sprint(now+600)).String()),
				"nbf now":                      f.token(h.String(), c.with("nbf", fmt.Sprint(now)).String()),
				"nbf long ago":                 f.token(h.String(), c.with("nbf", "0.5").String()),
				"aud in an array":              f.token(h.String(), c.with("aud", `["x",`+quote(f.iss.policy.Audience)+`]`).String()),
				"unknown claims":               f.token(h.String(), c.with("x", `{"exp":1,"exp":1,"cnf":1}`).with("y", "1e400").with("z", `"😀\ud83d\ude00"`).String()),
				"claims in other letter cases": f.token(h.String(), c.with("EXP", "1").with("Scope", `"admin"`).with("\u017fcope", `"admin"`).with("ISS", "1").with("Cnf", "1").String()),
			} {
				t.Run(name, func(t *testing.T) {
					for range 2 { // read, and from memory
						access, err := f.iss.Verify(t.Context(), token)
						if err != nil {
							t.Fatal(err)
						}
						if access.Token.ClientID != f.client.ClientID {
							t.Errorf("it gives access to %s", access.Token.ClientID)
						}
						if got := &access.Token; got.Scope != "read write" || !slices.Equal(got.Scopes(), []string{"read", "write"}) {
							t.Errorf("it has the scope %q, %q", got.Scope, got.Scopes())
						}
						if !access.Token.For(f.iss.policy.Audience) || access.Token.For(f.iss.policy.Audience+"/") || access.Token.For("") {
							t.Errorf("it is for %q", access.Token.Audience())
						}
						if access.Token.ID == "" || !access.Token.Expires().After(time.Now()) {
							t.Errorf("it has the id %q and expires %v", access.Token.ID, access.Token.Expires())
						}
						if shown := fmt.Sprintf("%v %s", &access.Token, &access.Token); strings.Contains(shown, f.client.ClientID) || strings.Contains(shown, "read") {
							t.Errorf("it shows more than its id: %s", shown)
						}
					}
				})
			}
		})
	}
}

func TestATokenWithoutScopeHasNone(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	access, err := f.iss.Verify(t.Context(), f.token(f.header().String(), f.claims().without("scope").String()))
	if err != nil || access.Token.Scope != "" || len(access.Token.Scopes()) != 0 {
		t.Errorf("Verify = %+v, %v", access.Token, err)
	}
}

func TestATokenOfExactlyTheLargestSizeIsRead(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	sized := func(size int) string {
		for spaces := range 3 { // base64 has no text of 4n+1 letters
			for pad := 5000; pad < 6144; pad++ {
				h := f.header().String() + strings.Repeat(" ", spaces)
				c := f.claims().with("x", quote(strings.Repeat("p", pad))).String()
				if base64.RawURLEncoding.EncodedLen(len(h))+base64.RawURLEncoding.EncodedLen(len(c))+2+86 == size {
					return f.token(h, c)
				}
			}
		}
		t.Fatalf("no token has %d bytes", size)
		return ""
	}
	for _, size := range []int{8191, 8192} {
		if _, err := f.iss.Verify(t.Context(), sized(size)); err != nil {
			t.Errorf("a token of %d bytes: %v", size, err)
		}
	}
	for _, size := range []int{8193, 8194} {
		if reason := refused(t, f.iss, sized(size)); reason != "too long" {
			t.Errorf("a token of %d bytes is refused as %s", size, reason)
		}
	}
}

func TestClaimsNestedTooDeepAreMalformed(t *testing.T) {
	deep := strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000)
	if _, err := parseClaims([]byte(`{"x":` + deep + `}`)); err == nil || err.Error() != "malformed claims" {
		t.Errorf("parseClaims = %v", err)
	}
}

func TestEachKeyVerifiesByItsOwnAlgorithmOnly(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	old, current := makeKey(t, "RS256"), makeKey(t, "ES256")
	issuerWith(t, st, &old, time.Now())
	f := &forge{iss: issuerWith(t, st, &current, time.Now()), key: current}
	c, _, err := f.iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	f.client = c
	before := &forge{iss: f.iss, key: old, client: c}
	for _, token := range []string{f.good(), before.good()} {
		if _, err := f.iss.Verify(t.Context(), token); err != nil {
			t.Fatalf("both keys count: %v", err)
		}
	}
	claims := f.claims().String()
	for name, forged := range map[string]forgery{
		"the other's id":                   {token: f.token(f.header().with("kid", quote(old.id)).String(), claims), reason: "wrong algorithm"},
		"the other's id and algorithm":     {token: f.token(before.header().String(), claims), reason: "wrong signature"},
		"the other's algorithm":            {token: f.token(f.header().with("alg", `"RS256"`).String(), claims), reason: "wrong algorithm"},
		"the old one, with the new one's":  {token: before.token(f.header().String(), claims), reason: "wrong signature"},
		"the old one, by the new one's id": {token: before.token(before.header().with("kid", quote(current.id)).String(), claims), reason: "wrong algorithm"},
	} {
		if reason := refused(t, f.iss, forged.token); reason != forged.reason {
			t.Errorf("%s: refused as %q, want %q", name, reason, forged.reason)
		}
	}
}

// Whoever sees an ES256 signature (r, s) can make (r, n-s), which is as good: a
// revocation must know the credential, not the text.
func TestARevocationReachesBothFormsOfAnECDSASignature(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	good := f.good()
	cut := strings.LastIndexByte(good, '.')
	signature, err := base64.RawURLEncoding.DecodeString(good[cut+1:])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(signature[32:]))
	mirrored := good[:cut+1] + base64.RawURLEncoding.EncodeToString(slices.Concat(signature[:32], s.FillBytes(make([]byte, 32))))
	if mirrored == good {
		t.Fatal("the second form is the first")
	}
	for name, token := range map[string]string{"first": good, "second": mirrored} {
		if _, err := f.iss.Verify(t.Context(), token); err != nil {
			t.Errorf("the %s form: %v", name, err)
		}
	}
	if err := f.iss.Revoke(t.Context(), "", f.client.ClientID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for name, token := range map[string]string{"first": good, "second": mirrored} {
			if reason := refused(t, f.iss, token); reason != "revoked" {
				t.Errorf("the %s form is refused as %q", name, reason)
			}
		}
	}
}

func TestATokenIsRefusedFromTheSecondOfItsExpiry(t *testing.T) {
	t.Parallel()
	f := newForge(t, makeKey(t, "ES256"))
	exp := time.Now().Add(2 * time.Second).Unix()
	token := f.token(f.header().String(), f.claims().with("exp", fmt.Sprint(exp)).String())
	for {
		before := time.Now()
		_, err := f.iss.Verify(t.Context(), token)
		after := time.Now()
		switch {
		case err != nil && after.Unix() < exp:
			t.Fatalf("refused before its time: %v", err)
		case err == nil && before.Unix() >= exp:
			t.Fatal("accepted after its time")
		case err != nil:
			if reason := refused(t, f.iss, token); reason != "expired" {
				t.Errorf("refused as %q", reason)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestATokenIsRefusedFromTheExpiryOfItsCredential(t *testing.T) {
	t.Parallel()
	f := newForge(t, makeKey(t, "ES256"))
	end := time.Now().Add(1500 * time.Millisecond).Truncate(time.Millisecond)
	c, _, err := f.iss.Create(t.Context(), Draft{Expires: end})
	if err != nil {
		t.Fatal(err)
	}
	f.client = c
	token := f.good() // of ten minutes
	for {
		before := time.Now()
		_, err := f.iss.Verify(t.Context(), token)
		after := time.Now()
		switch {
		case err != nil && after.Before(end):
			t.Fatalf("refused before its credential's time: %v", err)
		case err == nil && !before.Before(end):
			t.Fatal("accepted after its credential's time")
		case err != nil:
			if reason := refused(t, f.iss, token); reason != reasonCredentialExpired {
				t.Errorf("refused as %q", reason)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// "No" and "cannot tell" are answered in different ways.
func TestAStoreThatCannotTellRefusesNothing(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	cannotTell := func(what string, err error) {
		t.Helper()
		var refusal *Refusal
		var tokenError *TokenError
		if err == nil || errors.As(err, &refusal) || errors.As(err, &tokenError) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s = %v, want an error that decides nothing", what, err)
		}
	}
	ask := func(ctx context.Context) {
		t.Helper()
		_, err := f.iss.Verify(ctx, f.good())
		cannotTell("Verify", err)
		_, err = f.iss.Issue(ctx, tokenRequest(f.client.ClientID, f.secret))
		cannotTell("Issue", err)
		_, err = f.iss.List(ctx, "")
		cannotTell("List", err)
		cannotTell("Revoke", f.iss.Revoke(ctx, "", f.client.ClientID))
		_, _, err = f.iss.Create(ctx, Draft{})
		cannotTell("Create", err)
	}
	ask(cancelled)
	if err := f.iss.store.Close(); err != nil {
		t.Fatal(err)
	}
	ask(t.Context())
}

func TestADamagedCredentialRefusesNothing(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	err := f.iss.store.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: credentialKey(f.client.ClientID), Value: []byte("{")}}})
	if err != nil {
		t.Fatal(err)
	}
	var refusal *Refusal
	if _, err := f.iss.Verify(t.Context(), f.good()); err == nil || errors.As(err, &refusal) {
		t.Errorf("Verify = %v, want an error that decides nothing", err)
	}
	var tokenError *TokenError
	if _, err := f.iss.Issue(t.Context(), tokenRequest(f.client.ClientID, f.secret)); err == nil || errors.As(err, &tokenError) {
		t.Errorf("Issue = %v, want an error that decides nothing", err)
	}
	if err := f.iss.Revoke(t.Context(), "", f.client.ClientID); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Revoke = %v, want an error that decides nothing", err)
	}
}

// What the gate takes has one spelling, and what it refuses it refuses in its
// own words.
func FuzzParseCompact(f *testing.F) {
	header := `{"alg":"ES256","kid":"k","typ":"at+jwt"}`
	for _, seed := range []string{
		"", ".", "..", segment(header) + "." + segment("{}") + ".AA", segment(header) + "." + segment("{}") + ".AB",
		segment(header+" ") + "." + segment("null") + ".AAA", segment(`{"crit":[]}`) + "." + segment("{}") + ".AA", "a.b.c.d", "A\n.B.C",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		jws, err := parseCompact(token)
		if err != nil {
			if !slices.Contains(reasons, err.Error()) {
				t.Fatalf("parseCompact(%q) = %v", token, err)
			}
			return
		}
		again := jws.signed + "." + base64.RawURLEncoding.EncodeToString(jws.signature)
		if again != token || !strings.HasSuffix(jws.signed, "."+segment(string(jws.payload))) || len(token) > 8<<10 {
			t.Fatalf("parseCompact took %q", token)
		}
	})
}

func FuzzParseClaims(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"iss":"i","sub":"s","client_id":"s","jti":"j","aud":["a"],"exp":1,"iat":1,"nbf":1.5,"scope":"a b","epoch":1}`,
		`{"iss":"i","sub":"s","client_id":"s","jti":"j","aud":"a","exp":1e400,"iat":1,"epoch":1}`, `{"cnf":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := parseClaims(payload)
		if err != nil {
			if !slices.Contains(reasons, err.Error()) {
				t.Fatalf("parseClaims(%q) = %v", payload, err)
			}
			return
		}
		if c.issuer == "" || c.subject == "" || c.clientID == "" || c.id == "" || len(c.audience) == 0 || slices.Contains(c.audience, "") ||
			c.expires.Unix() < 0 || c.issuedAt.Unix() < 0 || c.expires.UTC().Year() > 9999 {
			t.Fatalf("parseClaims took %q as %+v", payload, c)
		}
	})
}

package handler_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// Everything is rightly signed with the server's own key where the table does
// not say otherwise, so that nothing else can be what is refused.
var tokenAttacks = []attack{
	{"A-01 alg none", tokens(invalidToken, headers("alg", `"none"`), unsigned(`"none"`))},
	{"A-02 alg none in other letters", tokens(
		invalidToken,
		headers("alg", `"None"`, `"NONE"`, `"nOnE"`, `"none "`, `"none\u0000"`),
		unsigned(`"None"`, `"NONE"`, `"nOnE"`, `"none "`, `"none\u0000"`),
	)},
	{"A-03 alg missing or no string", tokens(invalidToken, headers("alg", "", "null", "1", `["ES256"]`, "{}", `""`), func(t testing.TB, k *keyed) []variant {
		return []variant{
			{"the right one in an array", k.withHeader(t, "alg", "["+quote(k.alg)+"]")},
			{"in lower case", k.withHeader(t, "alg", quote(strings.ToLower(k.alg)))},
		}
	})},
	{"A-04 HS256 under the public key as PEM", tokens(invalidToken, symmetric(pemForms))},
	{"A-05 HS256 under the public key as DER, JWK or modulus", tokens(invalidToken, symmetric(derForms))},
	{"A-06 HS256 under the point of the public key", tokens(invalidToken, symmetric(pointForms))},
	{"A-10 alg by its name of RFC 9864", tokens(invalidToken, headers("alg", `"Ed25519"`, `"Ed448"`))},
	{"A-11 jwk with the attacker's key", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		stranger := k.stranger(t)
		key := jwk(t, stranger.key.Public())
		return []variant{
			{"own kid", stranger.withHeader(t, "jwk", key)},
			{"no kid", stranger.withHeader(t, "jwk", key, "kid", "")},
			{"another kid", stranger.withHeader(t, "jwk", key, "kid", `"x"`)},
			{"symmetric", k.withHeader(t, "jwk", `{"kty":"oct","k":"AA"}`)},
			{"the right key", k.withHeader(t, "jwk", jwk(t, k.key.Public()))},
		}
	})},
	{"A-12 jku and x5u", tokens(invalidToken, func(t testing.TB, k *keyed) (all []variant) {
		address, stranger := untouched(t), k.stranger(t)
		for _, name := range []string{"jku", "x5u"} {
			for _, url := range []string{"http://" + address + "/k", "https://" + address + "/k", "file:///etc/passwd", "http://169.254.169.254/"} {
				all = append(all, variant{name + " " + url, stranger.withHeader(t, name, quote(url), "kid", `"x"`)},
					variant{name + " and the own kid " + url, k.withHeader(t, name, quote(url))})
			}
		}
		return all
	})},
	{"A-13 x5c and x5t of the attacker", tokens(invalidToken, func(t testing.TB, k *keyed) (all []variant) {
		stranger := k.stranger(t)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)},
			&x509.Certificate{SerialNumber: big.NewInt(1)}, stranger.key.Public(), stranger.key)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(der)
		for name, value := range map[string]string{
			"x5c": `["` + base64.StdEncoding.EncodeToString(der) + `"]`, "x5t": quote(b64(sum[:20])), "x5t#S256": quote(b64(sum[:])),
		} {
			all = append(all, variant{name + ", kept kid", stranger.withHeader(t, name, value)},
				variant{name + ", no kid", stranger.withHeader(t, name, value, "kid", "")},
				variant{name + ", signed rightly", k.withHeader(t, name, value)})
		}
		return all
	})},
	{"A-14 kid that names something else", tokens(
		invalidToken,
		headers("kid", `"../../../../dev/null"`, `"/proc/self/environ"`, `"k1' UNION SELECT 'x'--"`, `"k1)(uid=*)"`, `"|id"`, `""`, "1", "{}", "[]", "null", `"x"`),
		headers("kid", quote(strings.Repeat("k", 5000)), quote(strings.Repeat("k", 9000))),
		func(t testing.TB, k *keyed) (all []variant) {
			for _, kid := range []string{k.kid + "\x00", k.kid + " ", " " + k.kid, strings.ToUpper(k.kid), k.kid[:42], k.kid + "A"} {
				all = append(all, variant{"kid " + kid, k.withHeader(t, "kid", quote(kid))})
			}
			return append(all, variant{"the right one in an array", k.withHeader(t, "kid", "["+quote(k.kid)+"]")})
		},
	)},
	{"A-15 no kid", tokens(invalidToken, headers("kid", ""))},
	{"A-21 HS256 under a key that is short or empty", tokens(invalidToken, symmetric(func(testing.TB, crypto.PublicKey) map[string][]byte {
		return map[string][]byte{"nothing": {}, "one byte": {0}, "31 bytes": make([]byte, 31)}
	}))},
	{"A-26 a key or issuer of another server", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{
			{"another key under the same kid", k.stranger(t).withHeader(t)},
			{"another issuer under the own key", k.withClaims(t, "iss", `"https://other.example"`)},
		}
	})},

	{"C-01 alg twice", tokens(invalidToken, wholeHeaders(func(header string) []string {
		return []string{`{"alg":"none",` + header[1:], header[:len(header)-1] + `,"alg":"none"}`, `{"\u0061lg":"none",` + header[1:]}
	}))},
	{"C-02 a claim twice", tokens(invalidToken, payloads(func(claims string) (all []string) {
		for _, twice := range []string{`"exp":99999999999`, `"aud":"https://x.example"`, `"scope":"admin"`, `"client_id":"x"`, `"e\u0078p":99999999999`, `"x":1,"x":2`} {
			all = append(all, "{"+twice+","+claims[1:], claims[:len(claims)-1]+","+twice+"}")
		}
		return all
	}))},
	{"C-03 names in another letter case decide nothing", tokens(
		invalidToken,
		func(t testing.TB, k *keyed) (all []variant) {
			good := k.withHeader(t)
			for _, name := range []string{"alg", "typ", "kid"} {
				all = append(all, variant{name, k.withHeader(t, name, "", strings.ToUpper(name), raws(t, good, 0)[name])})
			}
			for _, name := range []string{"iss", "sub", "client_id", "aud", "exp", "iat", "jti", "epoch"} {
				all = append(all, variant{name, k.withClaims(t, name, "", strings.ToUpper(name), raws(t, good, 1)[name])})
			}
			return append(all, variant{"exp past, EXP ahead", k.withClaims(t, "exp", fromNow(-time.Minute, ""), "EXP", fromNow(time.Minute, ""))})
		},
	)},
	{"C-03 scopes under another name are none", tokens(lacksWrite, func(t testing.TB, k *keyed) []variant {
		return []variant{{"beside", k.withClaims(t, "Scope", `"read write"`)}, {"alone", k.withClaims(t, "scope", "", "SCOPE", `"read write"`)}}
	})},
	{"C-04 letters that only fold to others", tokens(lacksWrite, func(t testing.TB, k *keyed) []variant {
		return []variant{{"beside", k.withClaims(t, "\u017fcope", `"read write"`)}, {"alone", k.withClaims(t, "scope", "", "\u017fcope", `"read write"`)}}
	})},
	{"C-04 letters that only fold to others, in a header", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{{"beside", k.withHeader(t, "\u212aid", quote(k.kid))}, {"alone", k.withHeader(t, "kid", "", "\u212aid", quote(k.kid))}}
	})},
	{"C-05 payload that is no object, or empty", tokens(invalidToken, payloads(func(claims string) []string {
		return []string{"null", "[]", "[" + claims + "]", `"x"`, quote(claims), "1", "true", "", " ", "{}"}
	}), wholeHeaders(func(header string) []string { return []string{"null", "[" + header + "]", quote(header), "{}", ""} }))},
	{"C-06 something behind the object", tokens(invalidToken, payloads(func(claims string) []string {
		return []string{claims + "{}", claims + claims, claims + " x", claims + "\x00", claims + "}", "{}" + claims}
	}), wholeHeaders(func(header string) []string { return []string{header + "{}", header + " x", header + "\x00"} }))},
	{"C-07 text that is not Unicode", tokens(invalidToken, payloads(func(claims string) []string {
		in := func(text string) string { return claims[:len(claims)-1] + `,"x":"` + text + `"}` }
		return []string{"\ufeff" + claims, utf16(claims), in("\xff"), in("\xc0\xaf"), in("\xed\xa0\x80"), in(`\ud800`), in(`\udc00\ud800`), in("\x00")}
	}), wholeHeaders(func(header string) []string { return []string{"\ufeff" + header, utf16(header)} }))},
	{"C-07 NUL in what names somebody", tokens(invalidToken, claims("client_id", `"\u0000"`), claims("sub", `"\u0000"`), claims("scope", `"read\u0000"`), claims("jti", `"\u0000"`))},
	{"C-08 too deep, too many, too long", tokens(invalidToken, payloads(func(claims string) []string {
		in := func(value string) string { return claims[:len(claims)-1] + `,"x":` + value + `}` }
		return []string{
			in(strings.Repeat("[", 5000)), in(strings.Repeat("[", 4000) + strings.Repeat("]", 4000)), strings.Repeat(`{"a":`, 1000),
			in("{" + strings.Repeat(`"a":1,`, 1200) + `"a":1}`), in(strings.Repeat("1", 8000)),
		}
	}), claims("exp", strings.Repeat("1", 4000)), claims("epoch", strings.Repeat("1", 4000)))},
	{"C-08 as deep and as many as 8 KiB can hold, where nothing looks", tokens(admitted, claims(
		"x", strings.Repeat("[", 2500)+strings.Repeat("]", 2500), "{"+strings.Repeat(`"a":1,`, 800)+`"a":1}`,
	))},
	{"C-09 line breaks in what becomes a header field", tokens(
		invalidToken,
		claims("scope", `"read\r\nX-Admin: 1"`, `"read\nX-Admin: 1"`, `"read\r"`), claims("client_id", `"a\r\nX-Admin: 1"`), claims("jti", `"a\r\nX-Admin: 1"`), whose("%s\r\nX-Admin: 1"),
	)},
	{"C-10 what becomes a header field, not in ASCII", tokens(invalidToken, claims("scope", `"Özdemir"`, `"read \u00d6"`), claims("jti", `"Özdemir"`, `"a b"`), whose("Özdemir"), whose("%s\u00a0"))},
	{"C-11 what becomes a header field, and is no string", tokens(
		invalidToken,
		claims("scope", `{"read":1}`, `["read"]`, "1", "true", "1e400", "9007199254740993", "null"),
		claims("client_id", "{}", `["x"]`, "1", "true", "1e400", "9007199254740993", "null"),
	)},
	{"C-12 client_id, jti or sub that are no strings", tokens(
		invalidToken, claims("client_id", "1"), claims("jti", "1", "null", "{}", "[]", "false"), claims("sub", "1", "null", "{}", "[]", "false"),
	)},
	{"C-14 scopes that are not set apart by one space", tokens(invalidToken, claims(
		"scope", `"read\u00a0write"`, `"read\twrite"`, `"read  write"`, `" read"`, `"read "`, `"read\n"`, quote(strings.Repeat("read ", 1800)+"read"),
	))},
	{"C-14 a thousand scopes", tokens(admitted, func(t testing.TB, k *keyed) []variant {
		var text strings.Builder
		for n := range 1000 {
			fmt.Fprintf(&text, "a%d ", n)
		}
		return []variant{{"", k.withClaims(t, "scope", quote(text.String()+"read"))}}
	})},
}

var claimAttacks = []attack{
	{"D-01 no exp", tokens(invalidToken, claims("exp", ""))},
	{"D-02 exp that is no time", tokens(invalidToken, claims("exp", "0", "-1", "null", `"1999999999"`, "[1999999999]", "{}", "true", "-0"))},
	{"D-03 exp reached", tokens(invalidToken, at("exp", -time.Hour, -61*time.Second, -time.Second, 0))},
	{"D-03 exp not reached", tokens(admitted, at("exp", 10*time.Second))},
	{"D-04 exp beyond all that is issued", tokens(invalidToken, claims("exp", "1900000000.9", "1e18", "1e308", "9223372036854775808", "1e400", "253402300800", "1e30"))},
	{"D-04 exp of a fraction counts as its second", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{{"", k.withClaims(t, "exp", fromNow(0, ".9"))}}
	})},
	{"D-04 exp may have a fraction", tokens(admitted, func(t testing.TB, k *keyed) []variant {
		return []variant{{"", k.withClaims(t, "exp", fromNow(time.Minute, ".9"))}}
	})},
	{"D-05 nbf ahead, or no time", tokens(invalidToken, at("nbf", 10*time.Second, time.Hour), claims("nbf", "1e19", "1e308", "1e400", `"1"`, "null", "-1", "{}"))},
	{"D-06 nbf now", tokens(admitted, at("nbf", 0))},
	{"D-07 iat ahead", tokens(invalidToken, at("iat", 90*time.Second, time.Hour), claims("iat", "1e19"))},
	{"D-07 iat within the margin of clocks", tokens(admitted, at("iat", 20*time.Second))},
	{"D-08 iat or epoch missing or wrong", tokens(
		invalidToken,
		claims("iat", "", "null", "{}", "false", `"1"`, "-1"), claims("epoch", "", "null", "{}", "false", `"1"`, "0", "2", "1.5", "-1", "1e0"),
	)},
	{"D-09 issued longer ago than a token lives", tokens(invalidToken, at("iat", -2*time.Hour, -100*24*time.Hour), claims("iat", "1"))},
	{"D-10 iss that only looks like this issuer", tokens(invalidToken, func(t testing.TB, k *keyed) (all []variant) {
		url := k.URL("")
		for _, iss := range []string{
			quote(url + "/"), quote(strings.ToUpper(url)), quote(url + "@evil"), quote(url + ".evil.example"), quote(url[:len(url)-1]), quote("x" + url), quote(" " + url),
			quote(strings.Replace(url, "o", "\u043e", 1)), `["https://evil.example",` + quote(url) + "]", "[" + quote(url) + "]", "null", "{}", "false", `""`,
		} {
			all = append(all, variant{"iss " + iss, k.withClaims(t, "iss", iss)})
		}
		return all
	})},
	{"D-11 no iss", tokens(invalidToken, claims("iss", ""))},
	{"D-12 aud of this server", tokens(admitted, audiences(`%s`, `[%s]`, `["https://other.example",%s]`))},
	{"D-12 aud of another", tokens(
		invalidToken,
		claims("aud", "", "[]", `""`, "{}", "null", "false", "1", `["https://other.example"]`, `"https://other.example"`),
		audiences(`[%s,1]`, `[%s,""]`, `[[%s]]`, `{"a":%s}`),
		func(t testing.TB, k *keyed) (all []variant) {
			for _, aud := range []string{strings.ToUpper(k.URL("")), k.URL("/"), k.URL("") + ".evil.example", k.URL("")[:12]} {
				all = append(all, variant{"aud " + aud, k.withClaims(t, "aud", quote(aud))})
			}
			return all
		},
	)},
	{"D-13 client_id and sub differ", tokens(invalidToken, claims("sub", `"x"`, `"admin"`), func(t testing.TB, k *keyed) []variant {
		other := quote(k.CreateWith(t, "read", "write").ClientID)
		return []variant{{"client_id of another", k.withClaims(t, "client_id", other)}, {"sub of another", k.withClaims(t, "sub", other)}}
	})},
	{"D-14 typ of an access token", tokens(admitted, headers("typ", `"at+jwt"`, `"AT+JWT"`, `"application/at+jwt"`, `"Application/At+Jwt"`))},
	{"D-14 typ of something else", tokens(invalidToken, headers(
		"typ", "", `"JWT"`, `"dpop+jwt"`, `"logout+jwt"`, `"secevent+jwt"`, `"token-introspection+jwt"`, `"at+jwt;x=1"`, `"text/at+jwt"`, `"at+jwt "`, "null", `["at+jwt"]`,
	))},
	{"D-15 an ID token", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{
			{"typ JWT", k.token(t, k.header("typ", `"JWT"`), k.claims("nonce", `"n"`, "aud", quote(k.client.ClientID)))},
			{"for this audience", k.token(t, k.header("typ", `"JWT"`), k.claims("nonce", `"n"`))},
			{"for the client", k.withClaims(t, "nonce", `"n"`, "aud", quote(k.client.ClientID))},
		}
	})},
	{"D-16 an assertion by which a client authenticates", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		id, endpoint := quote(k.client.ClientID), quote(k.URL(tokenPath))
		claims := k.claims("iss", id, "aud", endpoint, "client_id", "", "epoch", "", "scope", "")
		return []variant{
			{"under the client's key", k.stranger(t).token(t, k.header("typ", `"JWT"`, "kid", `"c"`), claims)},
			{"under the server's", k.token(t, k.header("typ", `"JWT"`), claims)},
			{"with the right type", k.withClaims(t, "iss", id)},
		}
	})},
	{"D-17 other documents that the server may sign", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{
			{"introspection", k.token(t, k.header("typ", `"token-introspection+jwt"`), k.claims("token_introspection", `{"active":true}`))},
			{"authorization response", k.token(t, k.header("typ", `"JWT"`), k.claims("code", `"c"`, "state", `"s"`))},
			{"logout", k.token(t, k.header("typ", `"logout+jwt"`), k.claims("events", `{"http://schemas.openid.net/event/backchannel-logout":{}}`))},
		}
	})},
	{"D-19 sub, client_id or jti empty", tokens(invalidToken, claims("client_id", `""`, ""), claims("sub", `""`, ""), claims("jti", `""`, ""), whose(""))},
	{"D-20 bound to a key that nobody proves", tokens(invalidToken, claims("cnf", `{"jkt":"x"}`, `{"x5t#S256":"x"}`, "{}", "null", `"x"`))},
	{"D-21 bound to a DPoP key, sent as Bearer", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{{"", k.withClaims(t, "cnf", `{"jkt":"`+k.kid+`"}`, "token_type", `"DPoP"`)}}
	})},
	{"D-22 a client that is none", tokens(invalidToken, whose(strings.Repeat("0", 32)), whose("../x"), whose("%s "), func(t testing.TB, k *keyed) []variant {
		upper := quote(strings.ToUpper(k.client.ClientID))
		return []variant{{"in capitals", k.withClaims(t, "sub", upper, "client_id", upper)}}
	})},
}

// What the attacks differ in must be all that is wrong with them.
func TestATokenSignedWithTheServersKeyIsLetThrough(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA", "RS256"} {
		k := runKeyed(t, alg, "client_credentials\nreverse_proxy {{upstream}}")
		for name, token := range map[string]string{
			"as issued":      k.Token(t, k.client),
			"signed by hand": k.withHeader(t),
			"no scope":       k.withClaims(t, "scope", ""),
			"further claims": k.withClaims(t, "x", `{"y":[1,2]}`),
			"white space":    k.token(t, " "+k.header()+" ", "\n"+k.claims()+"\n"),
		} {
			if resp := k.Do(t, "GET", "/x", "", testserver.Bearer(token)...); resp.StatusCode != http.StatusOK {
				t.Errorf("%s, %s: %s %s", alg, name, resp.Status, resp.Header.Get("WWW-Authenticate"))
			}
		}
	}
}

// at are tokens with a time claim that long from now.
func at(name string, distances ...time.Duration) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, d := range distances {
			all = append(all, variant{fmt.Sprint(name, " ", d), k.withClaims(t, name, fromNow(d, ""))})
		}
		return all
	}
}

// audiences are tokens whose aud has that form around the right one.
func audiences(forms ...string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, form := range forms {
			all = append(all, variant{"aud " + form, k.withClaims(t, "aud", fmt.Sprintf(form, quote(k.URL(""))))})
		}
		return all
	}
}

// whose is a token of a client whose id has that form around the right one.
func whose(form string) forge {
	return func(t testing.TB, k *keyed) []variant {
		id := quote(strings.ReplaceAll(form, "%s", k.client.ClientID))
		return []variant{{"client " + form, k.withClaims(t, "sub", id, "client_id", id)}}
	}
}

// raws returns the members of a segment as JSON texts.
func raws(t testing.TB, token string, segment int) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for name, value := range decode(t, token, segment) {
		switch value := value.(type) {
		case string:
			texts[name] = quote(value)
		case float64:
			texts[name] = fmt.Sprintf("%.0f", value)
		}
	}
	return texts
}

func utf16(text string) string {
	var wide strings.Builder
	wide.WriteString("\xff\xfe")
	for _, c := range []byte(text) {
		wide.Write([]byte{c, 0})
	}
	return wide.String()
}

// unsigned are tokens that name the algorithm and have no signature, or none
// that means anything.
func unsigned(algs ...string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, alg := range algs {
			text := b64([]byte(k.header("alg", alg))) + "." + b64([]byte(k.claims()))
			bare := b64([]byte(`{"alg":`+alg+`}`)) + "." + b64([]byte(k.claims()))
			all = append(all, variant{alg + " and no signature", text + "."}, variant{alg + " alone", bare + "."},
				variant{alg + " and no third segment", text}, variant{alg + " and a signature of one byte", text + ".AA"})
		}
		return all
	}
}

// untouched is an address that the server must not connect to.
func untouched(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var touched atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			touched.Add(1)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		if n := touched.Load(); n != 0 {
			t.Errorf("the server made %d connections that the token asked for", n)
		}
	})
	return l.Addr().String()
}

// symmetric are tokens with an HMAC under what the public key may look like to
// who takes it for a secret.
func symmetric(forms func(testing.TB, crypto.PublicKey) map[string][]byte) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for form, secret := range forms(t, k.key.Public()) {
			text := b64([]byte(k.header("alg", `"HS256"`))) + "." + b64([]byte(k.claims()))
			mac := hmac.New(sha256.New, secret)
			mac.Write([]byte(text))
			all = append(all, variant{form, text + "." + b64(mac.Sum(nil))})
		}
		return all
	}
}

func pkix(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemForms(t testing.TB, public crypto.PublicKey) map[string][]byte {
	t.Helper()
	forms := map[string][]byte{}
	add := func(name, kind string, der []byte) {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		forms[name] = text
		forms[name+" without its last line break"] = bytes.TrimSuffix(text, []byte("\n"))
		forms[name+" behind a space"] = append([]byte(" "), text...)
		forms[name+" with CRLF"] = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
	}
	add("PKIX", "PUBLIC KEY", pkix(t, public))
	if public, ok := public.(*rsa.PublicKey); ok {
		add("PKCS1", "RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(public))
	}
	return forms
}

func derForms(t testing.TB, public crypto.PublicKey) map[string][]byte {
	t.Helper()
	forms := map[string][]byte{"PKIX": pkix(t, public), "JWK": []byte(jwk(t, public))}
	if public, ok := public.(*rsa.PublicKey); ok {
		forms["PKCS1"], forms["modulus"] = x509.MarshalPKCS1PublicKey(public), public.N.Bytes()
		forms["modulus as in a JWK"] = []byte(b64(public.N.Bytes()))
	}
	return forms
}

func pointForms(t testing.TB, public crypto.PublicKey) map[string][]byte {
	t.Helper()
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{
			"x and y": point[1:], "uncompressed": point, "x": point[1:33],
			"compressed": append([]byte{2 + point[64]&1}, point[1:33]...),
		}
	case ed25519.PublicKey:
		return map[string][]byte{"the key": public, "as in a JWK": []byte(b64(public))}
	}
	var key struct { // the bit string of a SubjectPublicKeyInfo
		Algorithm asn1.RawValue
		Bits      asn1.BitString
	}
	if _, err := asn1.Unmarshal(pkix(t, public), &key); err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"the bit string": key.Bits.Bytes}
}

func jwk(t testing.TB, public crypto.PublicKey) string {
	t.Helper()
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, b64(point[1:33]), b64(point[33:]))
	case ed25519.PublicKey:
		return fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":%q}`, b64(public))
	case *rsa.PublicKey:
		return fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`, b64(big.NewInt(int64(public.E)).Bytes()), b64(public.N.Bytes()))
	}
	t.Fatalf("no JWK for %T", public)
	return ""
}

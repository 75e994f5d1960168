package handler_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// forgeries are tokens that look like the server's own, each by its name.
func forgeries(t *testing.T, k *keyed) map[string]string {
	now := time.Now().Unix()
	good := k.token(t, k.header(), k.claims())
	parts := strings.Split(good, ".")
	all := map[string]string{
		"header alone":            parts[0],
		"two segments":            parts[0] + "." + parts[1],
		"no signature":            parts[0] + "." + parts[1] + ".",
		"four segments":           good + ".x",
		"five segments":           good + ".x.y",
		"empty header":            "." + parts[1] + "." + parts[2],
		"padded signature":        good + "==",
		"standard alphabet":       strings.NewReplacer("-", "+", "_", "/").Replace(good) + "+",
		"other signature":         parts[0] + "." + parts[1] + "." + b64(k.sign(t, "x.y")),
		"signature of zeros":      parts[0] + "." + parts[1] + "." + b64(make([]byte, len(parts[2])*3/4)),
		"signature with a tail":   good + "AAAA",
		"signature cut":           good[:len(good)-4],
		"payload of another":      parts[0] + "." + b64([]byte(k.claims("scope", `"admin"`))) + "." + parts[2],
		"over 8 KiB":              k.token(t, k.header(), k.claims("x", quote(strings.Repeat("a", 6000)))),
		"payload null":            k.token(t, k.header(), "null"),
		"payload an array":        k.token(t, k.header(), "[]"),
		"payload a string":        k.token(t, k.header(), `"x"`),
		"payload with a tail":     k.token(t, k.header(), k.claims()+"{}"),
		"payload not UTF-8":       k.token(t, k.header(), strings.Replace(k.claims(), `"a"`, "\"\xff\"", 1)),
		"header with a tail":      k.token(t, k.header()+" x", k.claims()),
		"header an array":         k.token(t, "["+k.header()+"]", k.claims()),
		"alg twice":               k.token(t, `{"alg":"none",`+k.header()[1:], k.claims()),
		"exp twice":               k.token(t, k.header(), `{"exp":99999999999,`+k.claims()[1:]),
		"exp once escaped":        k.token(t, k.header(), `{"e\u0078p":99999999999,`+k.claims()[1:]),
		"ID token of this issuer": k.token(t, k.header("typ", `"JWT"`), k.claims()),
	}
	header := func(name string, changes ...string) {
		all["header: "+name] = k.token(t, k.header(changes...), k.claims())
	}
	for _, alg := range []string{"none", "None", "NONE", "nOnE", "", "HS256", "ES384", "PS256", strings.ToLower(k.alg)} {
		header("alg "+alg, "alg", quote(alg))
	}
	header("no alg", "alg", "")
	header("alg in capitals", "alg", "", "ALG", quote(k.alg))
	header("alg an array", "alg", `["`+k.alg+`"]`)
	header("no typ", "typ", "")
	header("typ null", "typ", "null")
	header("typ with parameter", "typ", `"at+jwt;x=1"`)
	header("no kid", "kid", "")
	header("kid in capitals", "KID", quote(k.kid), "kid", "")
	for _, kid := range []string{"", "x", "../../../dev/null", "' OR 1=1--", k.kid + "\x00", k.kid + " ", strings.ToUpper(k.kid)} {
		header("kid "+kid, "kid", quote(kid))
	}
	header("kid a number", "kid", "1")
	header("crit", "crit", `["exp"]`)
	header("crit empty", "crit", `[]`)
	header("crit unknown", "crit", `["x"]`, "x", "1")
	header("b64 false", "crit", `["b64"]`, "b64", "false")
	header("zip", "zip", `"DEF"`)
	header("cty", "cty", `"JWT"`)
	header("jku", "jku", `"http://127.0.0.1:1/jwks"`)
	header("x5u", "x5u", `"http://127.0.0.1:1/x"`)
	header("x5c", "x5c", `["AA"]`)
	header("jwk", "jwk", `{"kty":"oct","k":"AA"}`)

	claim := func(name string, changes ...string) {
		all["claim: "+name] = k.token(t, k.header(), k.claims(changes...))
	}
	for _, name := range []string{"iss", "sub", "client_id", "aud", "exp", "iat", "jti", "epoch"} {
		claim("no "+name, name, "")
		claim(name+" null", name, "null")
		claim(name+" an object", name, "{}")
		claim(name+" false", name, "false")
		claim(name+" in capitals", name, "", strings.ToUpper(name), decodeRaw(t, good, name))
	}
	for name, value := range map[string]string{
		"past": fmt.Sprint(now - 1), "now": fmt.Sprint(now), "zero": "0", "negative": "-1", "text": `"99999999999"`, "huge": "1e30", "infinite": "1e999",
	} {
		claim("exp "+name, "exp", value)
	}
	claim("nbf ahead", "nbf", fmt.Sprint(now+300))
	claim("nbf text", "nbf", `"x"`)
	claim("iat ahead", "iat", fmt.Sprint(now+300))
	claim("iss of another", "iss", `"https://evil.example"`)
	claim("iss with a slash", "iss", quote(k.URL("/")))
	claim("iss an array", "iss", `[`+quote(k.URL(""))+`]`)
	claim("aud of another", "aud", `"https://evil.example"`)
	claim("aud with a slash", "aud", quote(k.URL("/")))
	claim("aud a prefix", "aud", quote(k.URL("")+".evil.example"))
	claim("aud empty", "aud", `[]`)
	claim("aud with a number", "aud", `[`+quote(k.URL(""))+`,1]`)
	claim("sub of another", "sub", `"x"`)
	claim("client_id of another", "client_id", quote(strings.Repeat("0", 32)))
	claim("client unknown", "sub", quote(strings.Repeat("0", 32)), "client_id", quote(strings.Repeat("0", 32)))
	claim("client a path", "sub", `"../x"`, "client_id", `"../x"`)
	claim("jti empty", "jti", `""`)
	claim("epoch old", "epoch", "0")
	claim("epoch ahead", "epoch", "2")
	claim("epoch broken", "epoch", "1.5")
	claim("scope with two spaces", "scope", `"read  write"`)
	claim("scope an array", "scope", `["read"]`)
	claim("bound to a key", "cnf", `{"jkt":"x"}`)

	public, err := x509.MarshalPKIXPublicKey(k.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{
		"DER": public, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), "nothing": {},
	} {
		signed := b64([]byte(k.header("alg", `"HS256"`))) + "." + parts[1]
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		all["HS256 under the public key as "+name] = signed + "." + b64(mac.Sum(nil))
	}
	foreign := &keyed{Server: k.Server, key: newKey(t, k.alg), alg: k.alg, kid: k.kid, client: k.client}
	all["signed with another key"] = foreign.token(t, k.header(), k.claims())
	if key, ok := k.key.(*ecdsa.PrivateKey); ok {
		signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		der, _ := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		all["DER signature"] = parts[0] + "." + parts[1] + "." + b64(der)
		n := key.Params().N
		all["signature of order n"] = parts[0] + "." + parts[1] + "." + b64(append(n.Bytes(), n.Bytes()...))
		last := parts[2][len(parts[2])-1] // 2 of its bits are part of no byte
		all["unused bits set"] = good[:len(good)-1] + string(nextOf(last))
	}
	return all
}

// nextOf returns the next letter of the base64url alphabet.
func nextOf(letter byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, letter)+1]
}

// decodeRaw returns a claim of a token as JSON text.
func decodeRaw(t *testing.T, token, name string) string {
	t.Helper()
	switch value := decode(t, token, 1)[name].(type) {
	case string:
		return quote(value)
	case float64:
		return fmt.Sprintf("%.0f", value)
	}
	t.Fatalf("no claim %s", name)
	return ""
}

func TestNoForgedTokenIsLetThrough(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA", "RS256"} {
		t.Run(alg, func(t *testing.T) {
			k := runKeyed(t, alg, "client_credentials\nreverse_proxy {{upstream}}")
			all := forgeries(t, k)
			bothVersions(t, k.Server, func(t *testing.T) {
				for name, token := range all {
					t.Run(name, func(t *testing.T) {
						wantRefused(t, k.Server, k.Do(t, "GET", "/x", "", testserver.Bearer(token)...), invalidToken)
					})
				}
			})
		})
	}
}

// What the forgeries differ in must be all that is wrong with them.
func TestATokenSignedWithTheServersKeyIsLetThrough(t *testing.T) {
	for _, alg := range []string{"ES256", "EdDSA", "RS256"} {
		k := runKeyed(t, alg, "client_credentials\nreverse_proxy {{upstream}}")
		now := time.Now().Unix()
		for name, token := range map[string]string{
			"as issued":                     k.Token(t, k.client),
			"signed by hand":                k.token(t, k.header(), k.claims()),
			"typ as a whole media type":     k.token(t, k.header("typ", `"application/at+jwt"`), k.claims()),
			"typ in capitals":               k.token(t, k.header("typ", `"AT+JWT"`), k.claims()),
			"several audiences":             k.token(t, k.header(), k.claims("aud", `["https://a.example",`+quote(k.URL(""))+`]`)),
			"no scope":                      k.token(t, k.header(), k.claims("scope", "")),
			"further claims":                k.token(t, k.header(), k.claims("x", `{"y":[1,2]}`)),
			"nbf now":                       k.token(t, k.header(), k.claims("nbf", fmt.Sprint(now))),
			"iat within the clock's margin": k.token(t, k.header(), k.claims("iat", fmt.Sprint(now+20))),
			"exp with a fraction":           k.token(t, k.header(), k.claims("exp", fmt.Sprint(now+60)+".5")),
		} {
			if resp := k.Do(t, "GET", "/x", "", testserver.Bearer(token)...); resp.StatusCode != http.StatusOK {
				t.Errorf("%s, %s: %s %s", alg, name, resp.Status, resp.Header.Get("WWW-Authenticate"))
			}
		}
	}
}

// Every ECDSA signature (r, s) has a second form (r, n-s), so that a list of
// revoked texts would miss half of them.
func TestTheSecondFormOfASignatureIsRevokedWithTheFirst(t *testing.T) {
	k := runKeyed(t, "ES256", "client_credentials\nreverse_proxy {{upstream}}")
	token := k.Token(t, k.client)
	second := otherForm(t, token)
	wantStatus(t, k.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
	wantUpstream(t, k.Server)
	manager := manage(t, k.Server)
	wantStatus(t, k.Do(t, "DELETE", credentialsPath+"/"+k.client.ClientID, "", testserver.Bearer(manager)...), http.StatusNoContent)
	for _, form := range []string{token, second} {
		wantRefused(t, k.Server, k.Do(t, "GET", "/x", "", testserver.Bearer(form)...), invalidToken)
	}
}

// otherForm returns a token of ES256 with the other form of its signature.
func otherForm(t testing.TB, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(elliptic.P256().Params().N, s).FillBytes(signature[32:])
	return parts[0] + "." + parts[1] + "." + b64(signature)
}

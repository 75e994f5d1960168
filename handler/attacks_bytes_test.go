package handler_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// byteAttacks are about the bytes of a token, under whatever key.
var byteAttacks = []attack{
	{"B-06 unused bits of the signature", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		text, signature := split(k.withHeader(t))
		return spelledOtherwise(signature, func(other string) string { return text + "." + other })
	})},
	{"B-07 unused bits of the payload or header, behind the signature", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		header, payload := unaligned(k.header()), unaligned(k.claims())
		_, signature := split(k.signed(t, header, payload))
		return append(spelledOtherwise(payload, func(other string) string { return header + "." + other + "." + signature }),
			spelledOtherwise(header, func(other string) string { return other + "." + payload + "." + signature })...)
	})},
	{"B-08 unused bits of the payload or header, signed as they stand", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		header, payload := unaligned(k.header()), unaligned(k.claims())
		return append(spelledOtherwise(payload, func(other string) string { return k.signed(t, header, other) }),
			spelledOtherwise(header, func(other string) string { return k.signed(t, other, payload) })...)
	})},
	{"B-09 padding at the end", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		good := k.withHeader(t)
		return []variant{{"=", good + "="}, {"==", good + "=="}, {"===", good + "==="}}
	})},
	// RFC 9110 section 11.2 has it at the end alone: this is no token68.
	{"B-09 padding within", tokens(invalidRequest, func(t testing.TB, k *keyed) []variant {
		header, payload := b64([]byte(k.header())), b64([]byte(k.claims()))
		return []variant{{"header", k.signed(t, header+"=", payload)}, {"payload", k.signed(t, header, payload+"==")}}
	})},
	{"B-09 the standard alphabet", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		standard := strings.NewReplacer("-", "+", "_", "/")
		header, payload := b64([]byte(k.header())), b64([]byte(k.claims("x", `"????>>>>????>>>>"`)))
		text, signature := split(k.signed(t, header, payload))
		for !strings.ContainsAny(signature, "-_") {
			text, signature = split(k.withClaims(t, "x", quote(signature)))
		}
		return []variant{{"payload", k.signed(t, header, standard.Replace(payload))}, {"signature", text + "." + standard.Replace(signature)}}
	})},
	{"B-10 other characters within a segment", tokens(invalidRequest, func(t testing.TB, k *keyed) (all []variant) {
		for _, c := range []string{" ", "\t", "?", "#", "\u00a0", "\u200b", "\xff", "%2E", ":", "\\", `"`} {
			all = append(all, inserted(t, k, c)...)
		}
		return all
	})},
	{"B-10 characters of the other alphabet within a segment", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return append(inserted(t, k, "+"), append(inserted(t, k, "/"), inserted(t, k, "~")...)...)
	})},
	{"B-11 more or fewer segments than three", tokens(invalidToken, func(t testing.TB, k *keyed) (all []variant) {
		parts := strings.Split(k.withHeader(t), ".")
		h, p, s := parts[0], parts[1], parts[2]
		for _, token := range []string{
			h, h + "." + p, h + "." + p + ".", "." + p + "." + s, h + ".." + s, "..", ".", "..." + h, h + "." + p + "." + s + ".x", h + "." + p + "." + s + ".x.y",
			"." + h + "." + p + "." + s, h + "." + p + "." + s + ".", h + ".." + p + ".." + s, h + "." + p + ".." + s, h + "." + s, "A." + p + "." + s,
		} {
			all = append(all, variant{strings.NewReplacer(h, "h", p, "p", s, "s").Replace(token), token})
		}
		return all
	})},
	// Its signs are none of the alphabet of RFC 9110 section 11.2.
	{"B-12 JSON serialization", tokens(invalidRequest, func(t testing.TB, k *keyed) []variant {
		parts := strings.Split(k.withHeader(t), ".")
		flat := fmt.Sprintf(`"protected":%q,"signature":%q`, parts[0], parts[2])
		return []variant{
			{"flattened", fmt.Sprintf(`{"payload":%q,%s}`, parts[1], flat)},
			{"general", fmt.Sprintf(`{"payload":%q,"signatures":[{%s}]}`, parts[1], flat)},
			{"that splits at dots", `{"` + strings.Join(parts, ".") + `":0}`},
			{"that splits at dots into a flattened one", `{"a":".` + parts[1] + `.",` + flat + "}"},
		}
	})},
	{"B-13 nothing but dots", tokens(invalidToken, func(testing.TB, *keyed) []variant {
		return []variant{{"one", "."}, {"8 KiB", strings.Repeat(".", 8<<10)}, {"more", strings.Repeat(".", 12<<10)}}
	})},
	{"B-13 dots from many clients at once", func(t *testing.T, k *keyed) {
		for range 100 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				wantRefused(t, k.Server, k.Do(t, "GET", "/r/x", "", testserver.Bearer(".")...), invalidToken)
			})
		}
	}},
	{"B-14 longer than 8 KiB", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{
			{"signed rightly", k.withClaims(t, "x", quote(strings.Repeat("a", 6000)))},
			{"letters", strings.Repeat("a", 8<<10+1)},
			{"12 KiB", k.withHeader(t) + strings.Repeat("A", 12000)},
		}
	})},
	{"B-15 encrypted", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		parts := strings.Split(k.withHeader(t), ".")
		jwe := func(header string) string {
			return b64([]byte(header)) + "." + parts[1] + "." + parts[2] + "." + parts[2] + ".AAAA"
		}
		return []variant{
			{"PBES2", jwe(`{"alg":"PBES2-HS256+A128KW","p2c":1000000000,"p2s":"AAAA","enc":"A128GCM","zip":"DEF"}`)},
			{"dir", jwe(`{"alg":"dir","enc":"A128GCM","zip":"DEF"}`)},
			{"signed", k.signed(t, b64([]byte(k.header("enc", `"A128GCM"`, "p2c", "1000000000"))), parts[1])},
		}
	})},
	{"B-19 an unencoded payload, announced", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		header := k.header("crit", `["b64"]`, "b64", "false")
		return []variant{{"that looks encoded", k.token(t, header, k.claims())}, {"that is not", k.signed(t, b64([]byte(header)), "claims")}}
	})},
	{"B-19 an unencoded payload, announced, as it is", tokens(invalidRequest, func(t testing.TB, k *keyed) []variant {
		return []variant{{"", k.signed(t, b64([]byte(k.header("crit", `["b64"]`, "b64", "false"))), k.claims())}}
	})},
	{"B-20 an unencoded payload, not announced", tokens(invalidToken, headers("b64", "false", "true", "null"))},
	{"B-21 crit", tokens(invalidToken, headers("crit", `["exp"]`, `["x"]`, "[]", `"x"`, "[1]", `["x","x"]`, "null", "{}", `["alg"]`, `""`), func(t testing.TB, k *keyed) []variant {
		return []variant{{"of what is there", k.withHeader(t, "crit", `["x"]`, "x", "1")}}
	})},
	{"B-22 compressed, encrypted or nested", tokens(
		invalidToken,
		headers("zip", `"DEF"`, `"none"`), headers("enc", `"A128GCM"`), headers("cty", `"JWT"`, `"jwt"`, `"at+jwt"`),
		func(t testing.TB, k *keyed) []variant {
			good := k.withHeader(t)
			return []variant{{"nested", k.token(t, k.header(), good)}, {"nested and said so", k.token(t, k.header("cty", `"JWT"`), good)}}
		},
	)},
}

// ecdsaAttacks need an ES256 key.
var ecdsaAttacks = []attack{
	{"A-08 another algorithm of ECDSA", tokens(invalidToken, otherAlgorithms("ES384", "ES512", "ES256K"))},
	{"B-01 r and s at the ends of their range", tokens(invalidToken, func(t testing.TB, k *keyed) (all []variant) {
		n := elliptic.P256().Params().N
		ends := []*big.Int{big.NewInt(0), big.NewInt(1), new(big.Int).Sub(n, big.NewInt(1)), n}
		for i, r := range ends {
			for j, s := range ends {
				all = append(all, variant{fmt.Sprint(i, " ", j), resigned(k.withHeader(t), joined(r, s))})
			}
		}
		return all
	})},
	{"B-02 a signature in another encoding", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		good := k.withHeader(t)
		signature := signatureOf(good)
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		der, _ := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		wide := append(r.FillBytes(make([]byte, 33)), s.FillBytes(make([]byte, 33))...)
		return []variant{
			{"DER", resigned(good, der)},
			{"63 bytes", resigned(good, signature[:63])},
			{"65 bytes", resigned(good, append([]byte{0}, signature...))},
			{"66 bytes", resigned(good, wide)},
			{"a zero behind", resigned(good, append(slices.Clone(signature), 0))},
			{"zeros behind", resigned(good, append(slices.Clone(signature), make([]byte, 32)...))},
			{"of other text", resigned(good, k.sign(t, "x.y"))},
		}
	})},
	{"B-03 the second form of a signature", tokens(admitted, func(t testing.TB, k *keyed) []variant {
		return []variant{{"", secondForm(k.withHeader(t))}}
	})},
	// A list of revoked texts would miss half of them.
	{"B-04 the second form of a revoked token's signature", func(t *testing.T, k *keyed) {
		c := k.CreateWith(t, "read")
		token := k.Token(t, c)
		wantStatus(t, k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...), http.StatusOK)
		wantUpstream(t, k.Server)
		wantStatus(t, k.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", testserver.Bearer(manage(t, k.Server))...), http.StatusNoContent)
		for _, form := range []string{token, secondForm(token)} {
			wantRefused(t, k.Server, k.Do(t, "GET", "/r/x", "", testserver.Bearer(form)...), invalidToken)
		}
	}},
}

// ed25519Attacks need an Ed25519 key.
var ed25519Attacks = []attack{
	{"B-05 s beyond its range", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		good := k.withHeader(t)
		signature := signatureOf(good)
		order, _ := new(big.Int).SetString("27742317777372353535851937790883648493", 10)
		order.Add(order, new(big.Int).Lsh(big.NewInt(1), 252))
		s := slices.Clone(signature[32:])
		slices.Reverse(s) // it is little-endian
		s = new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
		slices.Reverse(s)
		return []variant{
			{"s and the order", resigned(good, append(slices.Clone(signature[:32]), s...))},
			{"zeros", resigned(good, make([]byte, 64))},
			{"cut", resigned(good, signature[:63])},
			{"a zero behind", resigned(good, append(slices.Clone(signature), 0))},
		}
	})},
}

// rsaAttacks need an RS256 key.
var rsaAttacks = []attack{
	{"A-07 another algorithm of RSA", tokens(invalidToken, otherAlgorithms("PS256", "PS384", "PS512", "RS384", "RS512"))},
	{"B-16 padding that only looks right", tokens(invalidToken, misPadded)},
	{"B-17 PS256 with a salt of another length", tokens(invalidToken, func(t testing.TB, k *keyed) (all []variant) {
		for _, alg := range []string{"PS256", "RS256"} {
			text := b64([]byte(k.header("alg", quote(alg)))) + "." + b64([]byte(k.claims()))
			digest := sha256.Sum256([]byte(text))
			for _, salt := range []int{1, 20, 31, 33, 64} {
				signature, err := k.key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: salt, Hash: crypto.SHA256})
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, variant{fmt.Sprint(salt, " bytes as ", alg), text + "." + b64(signature)})
			}
		}
		return all
	})},
	{"B-18 a signature of another length or beyond the modulus", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		good := k.withHeader(t)
		signature, n := signatureOf(good), k.key.(*rsa.PrivateKey).N
		short, small := good, new(big.Int).Add(new(big.Int).SetBytes(signature), n)
		for i := 0; signatureOf(short)[0] != 0; i++ {
			short = k.withClaims(t, "jti", quote(fmt.Sprint(i)))
			if s := new(big.Int).Add(new(big.Int).SetBytes(signatureOf(short)), n); s.BitLen() <= 2048 {
				good, small = short, s
			}
		}
		return []variant{
			{"a zero in front", resigned(good, append([]byte{0}, signatureOf(good)...))},
			{"its zero removed", resigned(short, signatureOf(short)[1:])},
			{"and the modulus", resigned(good, small.Bytes())},
			{"zeros", resigned(good, make([]byte, 256))},
			{"the modulus", resigned(good, n.Bytes())},
		}
	})},
}

// split cuts a token between what is signed and the signature.
func split(token string) (text, signature string) {
	at := strings.LastIndexByte(token, '.')
	return token[:at], token[at+1:]
}

func signatureOf(token string) []byte {
	_, signature := split(token)
	decoded, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		panic(err)
	}
	return decoded
}

func resigned(token string, signature []byte) string {
	text, _ := split(token)
	return text + "." + b64(signature)
}

func joined(r, s *big.Int) []byte {
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// secondForm is (r, n-s), which fits whatever (r, s) does.
func secondForm(token string) string {
	signature := signatureOf(token)
	s := new(big.Int).SetBytes(signature[32:])
	return resigned(token, joined(new(big.Int).SetBytes(signature[:32]), s.Sub(elliptic.P256().Params().N, s)))
}

// unaligned encodes a JSON text so that bits of the last letter are part of no
// byte.
func unaligned(text string) string {
	for len(text)%3 == 0 {
		text += " "
	}
	return b64([]byte(text))
}

// spelledOtherwise are tokens with the texts that a lenient decoder takes for
// the same bytes.
func spelledOtherwise(segment string, token func(other string) string) (all []variant) {
	want, _ := base64.RawURLEncoding.DecodeString(segment)
	for _, letter := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		other := segment[:len(segment)-1] + string(letter)
		if got, err := base64.RawURLEncoding.DecodeString(other); err == nil && other != segment && bytes.Equal(got, want) {
			all = append(all, variant{string(letter), token(other)})
		}
	}
	if len(all) == 0 {
		panic("no letter has unused bits")
	}
	return all
}

// inserted are tokens with a text in the midst of each segment, put there
// before and after it was signed.
func inserted(t testing.TB, k *keyed, text string) []variant {
	t.Helper()
	parts := strings.Split(k.withHeader(t), ".")
	in := func(s string) string { return s[:len(s)/2] + text + s[len(s)/2:] }
	return []variant{
		{text + " in the header", in(parts[0]) + "." + parts[1] + "." + parts[2]},
		{text + " in the payload", parts[0] + "." + in(parts[1]) + "." + parts[2]},
		{text + " in the signature", parts[0] + "." + parts[1] + "." + in(parts[2])},
		{text + " in the header, signed", k.signed(t, in(parts[0]), parts[1])},
		{text + " in the payload, signed", k.signed(t, parts[0], in(parts[1]))},
	}
}

// otherAlgorithms are tokens that are rightly signed, with the server's key,
// by an algorithm that the key is not for.
func otherAlgorithms(algs ...string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, alg := range algs {
			text := b64([]byte(k.header("alg", quote(alg)))) + "." + b64([]byte(k.claims()))
			hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:5]]
			digest := hash.New()
			digest.Write([]byte(text))
			var options crypto.SignerOpts = hash
			if alg[0] == 'P' {
				options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
			}
			signature, err := k.key.Sign(rand.Reader, digest.Sum(nil), options)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := k.key.(*ecdsa.PrivateKey); ok {
				var pair struct{ R, S *big.Int }
				if _, err := asn1.Unmarshal(signature, &pair); err != nil {
					t.Fatal(err)
				}
				signature = joined(pair.R, pair.S)
			}
			all = append(all, variant{alg, text + "." + b64(signature)})
		}
		return all
	}
}

// misPadded are tokens whose signature is not of what RFC 8017 section 9.2
// prescribes, but of something near.
func misPadded(t testing.TB, k *keyed) (all []variant) {
	key := k.key.(*rsa.PrivateKey)
	text, _ := split(k.withHeader(t))
	digest := sha256.Sum256([]byte(text))
	add := func(name string, padded []byte) {
		signature := new(big.Int).Exp(new(big.Int).SetBytes(padded), key.D, key.N)
		all = append(all, variant{name, text + "." + b64(signature.FillBytes(make([]byte, 256)))})
	}
	// whole puts the padding in front of what is signed, up to the right length.
	whole := func(kind, fill byte, info string) []byte {
		signed := append([]byte(info), digest[:]...)
		return slices.Concat([]byte{0, kind}, bytes.Repeat([]byte{fill}, 256-3-len(signed)), []byte{0}, signed)
	}
	const info = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"
	right := whole(1, 0xff, info)
	if padded := new(big.Int).Exp(new(big.Int).SetBytes(k.sign(t, text)), big.NewInt(int64(key.E)), key.N); padded.Cmp(new(big.Int).SetBytes(right)) != 0 {
		t.Fatal("the right padding is another")
	}
	for i := range right { // every byte of the structure, and some of what repeats
		if i < 2 || i%16 == 0 || i >= 204 && i < 226 {
			changed := slices.Clone(right)
			changed[i] ^= 1
			add(fmt.Sprint("byte ", i), changed)
		}
	}
	add("type 2", whole(2, 0xff, info))
	add("type 0", whole(0, 0, info))
	add("padded with other bytes", whole(1, 0xfe, info))
	add("no algorithm", whole(1, 0xff, ""))
	add("no NULL", whole(1, 0xff, "\x30\x2f\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x04\x20"))
	add("lengths in long form", whole(1, 0xff, "\x30\x81\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"))
	add("another hash's name", whole(1, 0xff, "\x30\x2d\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x20"))
	add("something behind", slices.Concat([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 8), []byte{0}, []byte(info), digest[:], make([]byte, 256-11-51)))
	add("less padding", slices.Concat(make([]byte, 4), right[:2], right[6:]))
	add("the digest alone", digest[:])
	return all
}

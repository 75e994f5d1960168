package caddyfile_test

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const minimalApp = `{"issuer": "https://api.example.com"}`

// withApp is a configuration with the app alone.
func withApp(app string) string {
	return fmt.Sprintf(`{"apps": {"client_credentials": %s}}`, app)
}

// withHandler is a configuration of the app and one handler.
func withHandler(handler string) string {
	return fmt.Sprintf(`{"apps": {"client_credentials": %s, "http": %s}}`, minimalApp, serverWith(handler))
}

func serverWith(handler string) string {
	return fmt.Sprintf(`{"servers": {"srv0": {"listen": ["127.0.0.1:0"], "routes": [{"handle": [%s]}]}}}`, handler)
}

func provider(bearer string) string {
	return fmt.Sprintf(`{"handler": "authentication", "providers": {"bearer": %s}}`, bearer)
}

func TestEverySettingIsTakenAsJSON(t *testing.T) {
	prepareEnvironment(t)
	for name, config := range map[string]string{
		"the app":             withApp(minimalApp),
		"the app, all of it":  withApp(`{"issuer": "https://api.example.com", "audience": "https://stock.example.com", "token_lifetime": "1h", "token_cache": 1048576, "client_jwks_uri": "off", "signing_key": "key.pem", "master_key": "{env.TEST_MASTER_KEY}", "store": {"module": "badger", "path": "credentials"}}`),
		"the app's own keys":  withApp(`{"issuer": "https://api.example.com", "signing_algorithm": "PS256", "rotate": "90d"}`),
		"the endpoints":       withHandler(`{"handler": "client_credentials"}`),
		"endpoints elsewhere": withHandler(`{"handler": "client_credentials", "base_path": "/machines/v1/", "mcp_compat": true, "lenient_assertion_audience": true, "auth_failures": {"per_client": 20, "per_address": 200, "off": false}}`),
		"the guard":           withHandler(`{"handler": "bearer_auth"}`),
		"the guard, all":      withHandler(`{"handler": "bearer_auth", "scopes": ["items:read"], "any": true, "audience": "{env.TEST_AUDIENCE}", "realm": "Stock", "optional": true, "forward_token": true, "keep_streams": true, "report_only": true}`),
		"the guard, narrowed": withHandler(`{"handler": "bearer_auth", "match": [{"path": ["/items/*"], "method": ["GET"]}, {"not": [{"path": ["/public/*"]}]}]}`),
		"the resources":       withHandler(`{"handler": "oauth_protected_resource"}`),
		"the header removal":  withHandler(`{"handler": "strip_identity_headers"}`),
		"the provider":        withHandler(provider(`{}`)),
		"the provider, all":   withHandler(provider(`{"scopes": ["items:read"], "audience": "https://stock.example.com", "realm": "Stock"}`)),
		"with basic_auth": withHandler(`{"handler": "authentication", "providers": {"bearer": {}, "http_basic": {"accounts": [` +
			`{"username": "alice", "password": "$2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG"}]}}}`),
	} {
		t.Run(name, func(t *testing.T) { wantNoTrace(t, config) })
	}
}

func TestAnUnknownMemberIsRefused(t *testing.T) {
	prepareEnvironment(t)
	for module, config := range map[string]string{
		"client_credentials":                    withApp(`{"issuer": "https://api.example.com", "tokenlifetime": "1h"}`),
		"client_credentials.stores.badger":      withApp(`{"issuer": "https://api.example.com", "store": {"module": "badger", "paths": "credentials"}}`),
		"http.handlers.client_credentials":      withHandler(`{"handler": "client_credentials", "base": "/api"}`),
		"http.handlers.bearer_auth":             withHandler(`{"handler": "bearer_auth", "scope": "items:read"}`),
		"http.matchers.path_regexp":             withHandler(`{"handler": "bearer_auth", "match": [{"path_regexp": {"regexp": "^/items/"}}]}`),
		"http.handlers.strip_identity_headers":  withHandler(`{"handler": "strip_identity_headers", "names": ["X-Client-Id"]}`),
		"http.authentication.providers.bearer":  withHandler(provider(`{"optional": true}`)),
		"http.authentication.providers.bearer ": withHandler(provider(`{"forward_token": true}`)),
	} {
		err := validate(t, config)
		if err == nil || !strings.Contains(err.Error(), "unknown field") || !strings.Contains(err.Error(), strings.TrimSpace(module)) {
			t.Errorf("%s: %v", module, err)
		}
	}
}

func TestAWrongConfigurationIsRefusedWithTheMend(t *testing.T) {
	prepareEnvironment(t)
	writeFile(t, "file", "")
	store := func(path string) string {
		return withApp(`{"issuer": "https://api.example.com", "store": {"module": "badger", "path": "` + path + `"}}`)
	}
	for _, c := range []struct{ name, config, want string }{
		{"endpoints without the app", `{"apps": {"http": ` + serverWith(`{"handler": "client_credentials"}`) + `}}`, "add the global option 'client_credentials"},
		{"guard without the app", `{"apps": {"http": ` + serverWith(`{"handler": "bearer_auth"}`) + `}}`, "add the global option 'client_credentials"},
		{"guard with an unknown matcher", withHandler(`{"handler": "bearer_auth", "match": [{"paths": ["/items/*"]}]}`), "unknown module: http.matchers.paths"},
		{"provider without the app", `{"apps": {"http": ` + serverWith(provider(`{}`)) + `}}`, "add the global option 'client_credentials"},

		{"no issuer", withApp(`{}`), "issuer is required"},
		{"empty issuer", withApp(`{"issuer": ""}`), "issuer is required"},
		{"issuer by http", withApp(`{"issuer": "http://api.example.com"}`), "issuer must be an https URL"},
		{"issuer by http, of a private network", withApp(`{"issuer": "http://10.0.0.1"}`), "issuer must be an https URL"},
		{"issuer with a query", withApp(`{"issuer": "https://api.example.com?"}`), "no query and no fragment"},
		{"issuer with a fragment", withApp(`{"issuer": "https://api.example.com#"}`), "no query and no fragment"},
		{"issuer from no variable", withApp(`{"issuer": "{env.TEST_UNSET}"}`), "issuer: "},
		{"issuer from a bad variable", withApp(`{"issuer": "http://{env.TEST_STORE}"}`), "issuer must be an https URL"},
		{"audience from no variable", withApp(`{"issuer": "https://api.example.com", "audience": "{env.TEST_UNSET}"}`), "audience: "},

		{"lifetime of half a second", withApp(`{"issuer": "https://api.example.com", "token_lifetime": "500ms"}`), "whole number of seconds"},
		{"lifetime of one and a half", withApp(`{"issuer": "https://api.example.com", "token_lifetime": 1500000000}`), "whole number of seconds"},
		{"negative lifetime", withApp(`{"issuer": "https://api.example.com", "token_lifetime": "-1h"}`), "at least 1s"},
		{"token cache too small", withApp(`{"issuer": "https://api.example.com", "token_cache": 1048575}`), "at least 1MiB"},
		{"negative token cache", withApp(`{"issuer": "https://api.example.com", "token_cache": -1}`), "at least 1MiB"},
		{"lifetime in words", withApp(`{"issuer": "https://api.example.com", "token_lifetime": "soon"}`), "duration"},

		{"lifetime of half a second of a credential", withApp(`{"issuer": "https://api.example.com", "credentials": [{"client_id": "orders", "token_lifetime": "500ms",
			"secret_hashes": ["$pbkdf2-sha256$i=1000,l=32$MDEyMzQ1Njc4OWFiY2RlZg$oDjVA84xxF1ZeZEZ4w12Ga9xsagpguMfMF3FAAwKSns"]}]}`), "credential orders: token_lifetime must be a whole number of seconds"},

		{"unknown signing algorithm", withApp(`{"issuer": "https://api.example.com", "signing_algorithm": "HS256"}`), "is ES256, EdDSA, RS256 or PS256"},
		{"rotation too often", withApp(`{"issuer": "https://api.example.com", "rotate": "59m"}`), "at least 1h"},
		{"negative rotation", withApp(`{"issuer": "https://api.example.com", "rotate": "-1h"}`), "at least 1h"},
		{"rotation of a key of the operator", withApp(`{"issuer": "https://api.example.com", "signing_key": "key.pem", "rotate": "90d"}`), "leave them out, or signing_key"},
		{"algorithm of a key of the operator", withApp(`{"issuer": "https://api.example.com", "signing_key": "key.pem", "signing_algorithm": "ES256"}`), "leave them out, or signing_key"},

		{"unknown hosts of key sets", withApp(`{"issuer": "https://api.example.com", "client_jwks_uri": "private"}`), "is public, any or off"},
		{"unknown store", withApp(`{"issuer": "https://api.example.com", "store": {"module": "redis"}}`), "client_credentials.stores.redis"},
		{"store that is a file", store("file"), "is a file; name a directory"},
		{"store below a file", store("file/credentials"), "store path"},
		{"store from no variable", store("{env.TEST_UNSET}"), "store path: "},

		{"relative base path", withHandler(`{"handler": "client_credentials", "base_path": "api"}`), "is not a plain absolute path"},
		{"base path with a placeholder", withHandler(`{"handler": "client_credentials", "base_path": "/{env.TEST_STORE}"}`), "is not a plain absolute path"},
		{"negative limit of failures", withHandler(`{"handler": "client_credentials", "auth_failures": {"per_client": -1}}`), "auth_failures takes"},
		{"any of no scopes", withHandler(`{"handler": "bearer_auth", "any": true}`), "any needs scopes"},
		{"two scopes in one", withHandler(`{"handler": "bearer_auth", "scopes": ["items:read items:write"]}`), "is no scope"},
		{"empty scope", withHandler(`{"handler": "bearer_auth", "scopes": [""]}`), "is no scope"},
		{"two scopes in one, of the provider", withHandler(provider(`{"scopes": ["items:read items:write"]}`)), "is no scope"},
		{"realm with a quote", withHandler(`{"handler": "bearer_auth", "realm": "the \"stock\""}`), "realm takes"},
		{"realm with a line break", withHandler(provider(`{"realm": "stock\r\nX: y"}`)), "realm takes"},
		{"audience of a guard from no variable", withHandler(`{"handler": "bearer_auth", "audience": "{env.TEST_UNSET}"}`), "audience: "},
		{"two audiences of a guard in one", withHandler(`{"handler": "bearer_auth", "audience": "https://a.test https://b.test"}`), "audience takes visible ASCII"},
	} {
		if err := validate(t, c.config); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestASigningKeyIsTakenInTheFormsThatAreDocumented(t *testing.T) {
	prepareEnvironment(t)
	ec := newECKey(t)
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"P-256 in PKCS#8":              pemOf("PRIVATE KEY", pkcs8(t, ec)),
		"P-256 in SEC 1":               pemOf("EC PRIVATE KEY", sec1),
		"with openssl's EC PARAMETERS": pemOf("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}) + pemOf("EC PRIVATE KEY", sec1),
		"P-384":                        pemOf("PRIVATE KEY", pkcs8(t, newECKeyOn(t, elliptic.P384()))),
		"P-521":                        pemOf("PRIVATE KEY", pkcs8(t, newECKeyOn(t, elliptic.P521()))),
		"Ed25519":                      pemOf("PRIVATE KEY", pkcs8(t, newEd25519Key(t))),
		"RSA of 2048 bits":             pemOf("PRIVATE KEY", pkcs8(t, newRSAKey(t, 2048))),
		"with text around":             "my key\n" + pemOf("PRIVATE KEY", pkcs8(t, ec)) + "\nend\n",
		"with Windows line ends":       strings.ReplaceAll(pemOf("PRIVATE KEY", pkcs8(t, ec)), "\n", "\r\n"),
	} {
		if err := validateSigningKey(t, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABadSigningKeyIsRefusedWithoutRepeatingIt(t *testing.T) {
	// Keys of 1024 bits are what this is about; Go makes none any more.
	t.Setenv("GODEBUG", "rsa1024min=0")
	prepareEnvironment(t)
	ec := newECKey(t)
	private := pemOf("PRIVATE KEY", pkcs8(t, ec))
	public, err := x509.MarshalPKIXPublicKey(ec.Public())
	if err != nil {
		t.Fatal(err)
	}
	exchange, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	damaged := pkcs8(t, ec)
	damaged[len(damaged)/2] ^= 0xFF
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "holds no PEM block"},
		{"no PEM", base64.StdEncoding.EncodeToString(pkcs8(t, ec)), "holds no PEM block"},
		{"cut off", private[:len(private)/2], "holds no PEM block"},
		{"PKCS#1", pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(newRSAKey(t, 2048))), "openssl pkcs8 -topk8"},
		{"encrypted", pemOf("ENCRYPTED PRIVATE KEY", randomBytes(200)), "decrypt it with"},
		{"encrypted as openssl once did", encryptedSEC1(), "holds a private key that can't be read"},
		{"public", pemOf("PUBLIC KEY", public), "holds no private key"},
		{"certificate", pemOf("CERTIFICATE", randomBytes(200)), "holds no private key"},
		{"garbage inside", pemOf("PRIVATE KEY", randomBytes(120)), "can't be read"},
		{"damaged", pemOf("PRIVATE KEY", damaged[:len(damaged)-9]), "can't be read"},
		{"wrong label", pemOf("EC PRIVATE KEY", pkcs8(t, ec)), "can't be read"},
		{"two keys", private + pemOf("PRIVATE KEY", pkcs8(t, newECKey(t))), "more than one PEM block"},
		{"key and certificate", private + pemOf("CERTIFICATE", randomBytes(200)), "more than one PEM block"},
		{"RSA of 1024 bits", pemOf("PRIVATE KEY", pkcs8(t, newRSAKey(t, 1024))), "fewer than 2048 bits"},
		{"P-224", pemOf("PRIVATE KEY", pkcs8(t, newECKeyOn(t, elliptic.P224()))), "use P-256"},
		{"X25519", pemOf("PRIVATE KEY", pkcs8(t, exchange)), "can't sign"},
	} {
		err := validateSigningKey(t, c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "signing_key") {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
			continue
		}
		wantNothingRepeated(t, err, c.text)
	}
}

func TestASigningKeyFileThatCannotBeReadIsNamed(t *testing.T) {
	prepareEnvironment(t)
	if err := os.Mkdir("directory", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"missing.pem", "directory", "{env.TEST_UNSET}"} {
		err := validate(t, withApp(`{"issuer": "https://api.example.com", "signing_key": "`+path+`"}`))
		if err == nil || !strings.Contains(err.Error(), "signing_key") || !strings.Contains(err.Error(), strings.Trim(path, "{}")) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestABadMasterKeyIsRefusedWithoutRepeatingIt(t *testing.T) {
	prepareEnvironment(t)
	encode := base64.StdEncoding.EncodeToString
	for name, text := range map[string]string{
		"16 bytes":         encode(randomBytes(16)),
		"31 bytes":         encode(randomBytes(31)),
		"33 bytes":         encode(randomBytes(33)),
		"64 bytes":         encode(randomBytes(64)),
		"no padding":       strings.TrimRight(encode(randomBytes(32)), "="),
		"base64url":        base64.URLEncoding.EncodeToString(append([]byte{0xFB, 0xFF}, randomBytes(30)...)),
		"hexadecimal":      fmt.Sprintf("%x", randomBytes(32)),
		"a passphrase":     "correct horse battery staple, not",
		"two keys":         encode(randomBytes(32)) + " " + encode(randomBytes(32)),
		"text after a key": encode(randomBytes(32)) + "x",
	} {
		writeFile(t, "bad.key", text)
		t.Setenv("TEST_BAD_KEY", text)
		for _, given := range []string{text, "{env.TEST_BAD_KEY}", "{file.bad.key}"} {
			err := validate(t, withApp(`{"issuer": "https://api.example.com", "master_key": "`+given+`"}`))
			if err == nil || !strings.Contains(err.Error(), "master_key") || !strings.Contains(err.Error(), "openssl rand -base64 32") {
				t.Errorf("%s, as %s: %v", name, given, err)
				continue
			}
			wantNothingRepeated(t, err, text)
		}
	}
	for _, unset := range []string{"{env.TEST_UNSET}", "{file.missing.key}"} {
		err := validate(t, withApp(`{"issuer": "https://api.example.com", "master_key": "`+unset+`"}`))
		if err == nil || !strings.Contains(err.Error(), "master_key") {
			t.Errorf("%s: %v", unset, err)
		}
	}
}

func TestAJSONConfigurationAndItsCaddyfileAreTheSame(t *testing.T) {
	prepareEnvironment(t)
	fromCaddyfile, err := adapt(t, `{
	client_credentials {
		issuer https://api.example.com
		store badger credentials
		audience https://stock.example.com
		token_lifetime 1h30m
		token_cache 1GiB
		signing_key key.pem
		master_key {env.TEST_MASTER_KEY}
	}
}

http://api.example.com {
	client_credentials /items/* {
		base_path /machines
	}
}

http://stock.example.com {
	bearer_auth /items/* items:read items:write {
		audience https://stock.example.com
		realm Stock
		optional
		forward_token
		keep_streams
	}
}
`)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Apps struct {
			App issuer.App `json:"client_credentials"`
		}
	}
	var twin issuer.App
	unmarshal(t, fromCaddyfile, &config)
	unmarshal(t, `{"issuer": "https://api.example.com", "audience": "https://stock.example.com",
		"token_lifetime": "1h30m", "token_cache": 1073741824, "signing_key": "key.pem", "master_key": "{env.TEST_MASTER_KEY}",
		"store": {"module": "badger", "path": "credentials"}}`, &twin)
	if got, want := string(caddyconfig.JSON(&config.Apps.App, nil)), string(caddyconfig.JSON(&twin, nil)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for name, twin := range map[string]string{
		"client_credentials": `{"handler": "client_credentials", "base_path": "/machines"}`,
		"bearer_auth": `{"handler": "bearer_auth", "match": [{"path": ["/items/*"]}], "scopes": ["items:read", "items:write"],
			"audience": "https://stock.example.com", "realm": "Stock", "optional": true, "forward_token": true, "keep_streams": true}`,
	} {
		var whole, want any
		unmarshal(t, fromCaddyfile, &whole)
		unmarshal(t, twin, &want)
		if got := findHandler(whole, name); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func unmarshal(t *testing.T, text string, target any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), target); err != nil {
		t.Fatal(err)
	}
}

// findHandler finds the handler with the most settings, wherever it stands.
func findHandler(value any, name string) (found map[string]any) {
	better := func(candidate map[string]any) {
		if len(candidate) > len(found) {
			found = candidate
		}
	}
	switch value := value.(type) {
	case map[string]any:
		if value["handler"] == name {
			better(value)
		}
		for _, member := range value {
			better(findHandler(member, name))
		}
	case []any:
		for _, element := range value {
			better(findHandler(element, name))
		}
	}
	return found
}

// validateSigningKey validates a configuration with this key in a file.
func validateSigningKey(t *testing.T, text string) error {
	t.Helper()
	writeFile(t, "tried.pem", text)
	return validate(t, withApp(`{"issuer": "https://api.example.com", "signing_key": "tried.pem"}`))
}

// wantNothingRepeated looks in an error for any part of a key's text.
func wantNothingRepeated(t *testing.T, err error, text string) {
	t.Helper()
	const part = 8
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for i := 0; i+part <= len(line) && !strings.HasPrefix(line, "-----"); i++ {
			if strings.Contains(err.Error(), line[i:i+part]) {
				t.Errorf("the error repeats %q of the key: %v", line[i:i+part], err)
				return
			}
		}
	}
}

func newECKeyOn(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEd25519Key(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// encryptedSEC1 is what openssl wrote before PKCS#8: a cipher named in headers
// of the PEM block.
func encryptedSEC1() string {
	return string(pem.EncodeToMemory(&pem.Block{
		Type:    "EC PRIVATE KEY",
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00112233445566778899AABBCCDDEEFF"},
		Bytes:   randomBytes(128),
	}))
}

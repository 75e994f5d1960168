package handler_test

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestMain(m *testing.M) { testserver.Main(m, allDescribedIsSeen) }

const (
	tokenPath       = "/api/v0/oauth/token"
	credentialsPath = "/api/v0/client-credentials"
	formType        = "application/x-www-form-urlencoded"
	jsonType        = "application/json"
)

// newServer prepares a server whose answers must be as the OpenAPI document has
// them.
func newServer(t testing.TB) *testserver.Server {
	t.Helper()
	s := testserver.New(t)
	s.Check = described(t).check
	return s
}

func run(t testing.TB, caddyfile string) *testserver.Server {
	t.Helper()
	s := newServer(t)
	s.Run(t, caddyfile)
	return s
}

// site is a Caddyfile with further options of the app and the server, and the
// directives of its one site.
func site(app, servers, directives string) string {
	return "{\n{{global}}\n" + servers + "\nclient_credentials {\nissuer {{url}}\nstore badger {{dir}}/store\n" + app +
		"\n}\n}\n{{url}} {\n" + directives + "\n}\n"
}

const h2c = "servers {\nprotocols h1 h2c\n}"

// bothVersions runs a test over HTTP/1.1 and over HTTP/2.
func bothVersions(t *testing.T, s *testserver.Server, test func(t *testing.T)) {
	overVersions(t, s, test, 1, 2)
}

func overVersions(t *testing.T, s *testserver.Server, test func(t *testing.T), versions ...int) {
	for _, s.HTTP = range versions {
		if !t.Run(fmt.Sprint("HTTP ", s.HTTP), test) {
			break // what it has left behind is not to be taken for the next one's
		}
	}
	s.HTTP = 0
}

// raw sends what no client would.
func raw(t testing.TB, s *testserver.Server, text string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = conn.Write([]byte(text)) // a server that refuses may close before the end
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	body := testserver.Body(t, resp) // read while the connection is open
	resp.Body = io.NopCloser(strings.NewReader(body))
	return resp
}

// crlf writes a request with the line ends of HTTP.
func crlf(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") }

func wantStatus(t testing.TB, resp *http.Response, want int) {
	t.Helper()
	if resp.StatusCode != want {
		t.Errorf("status %d, want %d", resp.StatusCode, want)
	}
}

func wantHeader(t testing.TB, resp *http.Response, name, want string) {
	t.Helper()
	if got := strings.Join(resp.Header.Values(name), " | "); got != want {
		t.Errorf("%s: %q, want %q", name, got, want)
	}
}

func wantMatch(t testing.TB, what, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(text) {
		t.Errorf("%s is %q, want %s", what, text, pattern)
	}
}

// wantUpstream returns the one request that reached the upstream.
func wantUpstream(t testing.TB, s *testserver.Server) testserver.Request {
	t.Helper()
	reached := s.Upstream.Take()
	if len(reached) != 1 {
		t.Fatalf("%d requests reached the upstream, want 1: %v", len(reached), reached)
	}
	return reached[0]
}

func wantNoUpstream(t testing.TB, s *testserver.Server) {
	t.Helper()
	if reached := s.Upstream.Take(); len(reached) != 0 {
		t.Errorf("the upstream was reached: %v", reached)
	}
}

// The refusals of the guard, RFC 6750 section 3.1.
const (
	noToken           = `401 Bearer realm="[^"]+"` + metadataParam
	invalidRequest    = `400 Bearer realm="[^"]+", error="invalid_request", error_description="[^"\\]+"` + metadataParam
	invalidToken      = `401 Bearer realm="[^"]+", error="invalid_token", error_description="[^"\\]+"` + metadataParam
	insufficientScope = `403 Bearer realm="[^"]+", error="insufficient_scope", error_description="[^"\\]+", scope="%s"` + metadataParam

	metadataParam = `(, resource_metadata="[^"]+")?` // where the audience is the site itself
)

// wantRefused checks a refusal of the guard: status and challenge, nothing that
// was sent in the body, nothing for caches, and nothing at the upstream.
func wantRefused(t testing.TB, s *testserver.Server, resp *http.Response, want string) {
	t.Helper()
	got := fmt.Sprint(resp.StatusCode, " ", strings.Join(resp.Header.Values("WWW-Authenticate"), " | "))
	wantMatch(t, "the refusal", got, "^"+want+"$")
	wantHeader(t, resp, "Cache-Control", "no-store")
	wantNoUpstream(t, s)
	body := testserver.Body(t, resp)
	if body != "" && resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("the refusal has the body %s", body)
	}
	if resp.Request == nil {
		return
	}
	for _, part := range strings.FieldsFunc(resp.Request.Header.Get("Authorization"), func(r rune) bool { return strings.ContainsRune(" ,.", r) }) {
		if answer := fmt.Sprint(resp.Header, body); len(part) >= 16 && strings.Contains(answer, part) {
			t.Errorf("the refusal repeats what was sent: %s", answer)
		}
	}
}

// wantProblem checks an error document of the credential endpoints.
func wantProblem(t testing.TB, resp *http.Response, status int, detail string) {
	t.Helper()
	wantStatus(t, resp, status)
	wantHeader(t, resp, "Content-Type", "application/problem+json")
	wantHeader(t, resp, "Cache-Control", "no-store")
	body := testserver.Body(t, resp)
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || p.Type != "about:blank" ||
		p.Title != http.StatusText(status) || p.Status != status {
		t.Errorf("problem document %s", body)
	}
	wantMatch(t, "the detail", p.Detail, detail)
}

// manage creates a credential that may manage others, and returns its token.
func manage(t testing.TB, s *testserver.Server, scopes ...string) string {
	t.Helper()
	return s.Token(t, s.CreateWith(t, append(scopes, issuer.ScopeWrite)...))
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// decode reads one segment of a token.
func decode(t testing.TB, token string, segment int) map[string]any {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[segment])
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	return members
}

// keyed is a server that signs with a key of the test.
type keyed struct {
	*testserver.Server
	key    crypto.Signer
	alg    string
	kid    string
	client testserver.Credential

	own     *ownMinded                             // an upstream
	present func(t *testing.T, token, want string) // a token, if not to the guard
	sent    []string                               // what the log must not have
	// misplaced are tokens that were sent where no token belongs. This project
	// logs none of them; Caddy logs the request as it came.
	misplaced []string
}

const ownKey = "signing_key {{dir}}/key.pem"

func newKey(t testing.TB, alg string) (key crypto.Signer) {
	t.Helper()
	var err error
	switch alg {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "RS256":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeKey(t testing.TB, path string, key crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func runKeyed(t testing.TB, alg, directives string) *keyed {
	t.Helper()
	k := &keyed{Server: newServer(t), key: newKey(t, alg), alg: alg}
	writeKey(t, filepath.Join(k.Dir, "key.pem"), k.key)
	k.Run(t, site(ownKey, "", directives))
	k.client = k.CreateWith(t, "read")
	k.kid, _ = decode(t, k.Token(t, k.client), 0)["kid"].(string)
	return k
}

// sign signs any two segments with the server's own key.
func (k *keyed) sign(t testing.TB, signed string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(signed))
	switch key := k.key.(type) {
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		return ed25519.Sign(key, []byte(signed))
	case *rsa.PrivateKey:
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	t.Fatal("no such key")
	return nil
}

// token signs a header and claims that are given as JSON texts.
func (k *keyed) token(t testing.TB, header, claims string) string {
	t.Helper()
	return k.signed(t, b64([]byte(header)), b64([]byte(claims)))
}

// signed signs two segments as they stand.
func (k *keyed) signed(t testing.TB, header, payload string) string {
	t.Helper()
	text := header + "." + payload
	return text + "." + b64(k.sign(t, text))
}

// withHeader returns a token that is right but for changes of its header.
func (k *keyed) withHeader(t testing.TB, changes ...string) string {
	t.Helper()
	return k.token(t, k.header(changes...), k.claims())
}

// withClaims returns a token that is right but for changes of its claims.
func (k *keyed) withClaims(t testing.TB, changes ...string) string {
	t.Helper()
	return k.token(t, k.header(), k.claims(changes...))
}

// stranger is somebody who has another key, and knows the rest.
func (k *keyed) stranger(t testing.TB) *keyed {
	t.Helper()
	return &keyed{Server: k.Server, key: newKey(t, k.alg), alg: k.alg, kid: k.kid, client: k.client}
}

// header is the right one, with changes: name and JSON text, where the empty
// text leaves the member out.
func (k *keyed) header(changes ...string) string {
	return object([]string{"alg", quote(k.alg), "typ", `"at+jwt"`, "kid", quote(k.kid)}, changes)
}

// claims are the right ones, with changes.
func (k *keyed) claims(changes ...string) string {
	now, url := time.Now().Unix(), quote(k.URL(""))
	return object([]string{
		"iss", url, "sub", quote(k.client.ClientID), "client_id", quote(k.client.ClientID), "aud", url,
		"iat", fmt.Sprint(now), "exp", fmt.Sprint(now + 600), "jti", `"a"`, "epoch", "1", "scope", `"read"`,
	}, changes)
}

func quote(s string) string {
	text, _ := json.Marshal(s)
	return string(text)
}

func object(members, changes []string) string {
	members = append([]string{}, members...)
	for i := 0; i < len(changes); i += 2 {
		found := false
		for j := 0; j < len(members); j += 2 {
			if members[j] == changes[i] {
				members[j+1], found = changes[i+1], true
			}
		}
		if !found {
			members = append(members, changes[i], changes[i+1])
		}
	}
	var parts []string
	for i := 0; i < len(members); i += 2 {
		if members[i+1] != "" {
			parts = append(parts, quote(members[i])+":"+members[i+1])
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

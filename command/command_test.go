package command_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// result is what a command has done.
type result struct {
	stdout, stderr string
	code           int
}

// run runs `caddy client-credentials` in a process of its own, in the server's
// directory.
func run(t *testing.T, s *testserver.Server, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := s.Command(append([]string{"client-credentials"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// succeed runs a command that must succeed, and returns its standard output.
func succeed(t *testing.T, s *testserver.Server, args ...string) string {
	t.Helper()
	r := run(t, s, args...)
	if r.code != 0 {
		t.Fatalf("%q: exit code %d, %s", args, r.code, r.stderr)
	}
	return r.stdout
}

// fail runs a command that must fail, and say all of what is wanted.
func fail(t *testing.T, s *testserver.Server, args []string, want ...string) {
	t.Helper()
	failed(t, run(t, s, args...), args, want)
}

// failWith is fail with that exit code.
func failWith(t *testing.T, s *testserver.Server, code int, args []string, want ...string) {
	t.Helper()
	r := run(t, s, args...)
	if r.code != code {
		t.Errorf("%q: exit code %d, want %d", args, r.code, code)
	}
	failed(t, r, args, want)
}

func failed(t *testing.T, r result, args, want []string) {
	t.Helper()
	if r.code == 0 || r.stdout != "" {
		t.Errorf("%q: exit code %d, standard output %q", args, r.code, r.stdout)
	}
	for _, text := range want {
		if !strings.Contains(r.stderr, text) {
			t.Errorf("%q: the error does not say %q: %s", args, text, r.stderr)
		}
	}
}

// createdForm is the object of the wire contract, its six members in order.
var createdForm = regexp.MustCompile(`^\{"credentialId":"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",` +
	`"clientId":"[0-9a-f]{32}","name":("[^"]*"|null),"secret":"[A-Za-z0-9+/]{22}==",` +
	`"expires":("\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"|null),"created":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"\}\n$`)

// create creates a credential with --json.
func create(t *testing.T, s *testserver.Server, args ...string) testserver.Credential {
	t.Helper()
	out := succeed(t, s, append([]string{"create", "--json"}, args...)...)
	if !createdForm.MatchString(out) {
		t.Fatalf("standard output is not exactly the contract's object: %q", out)
	}
	var c testserver.Credential
	unmarshal(t, out, &c)
	return c
}

type listed struct {
	ClientID, Account string
	Name, Expires     *string
	Scopes            []string
}

// list lists the credentials with --json.
func list(t *testing.T, s *testserver.Server, args ...string) []listed {
	t.Helper()
	var credentials []listed
	unmarshal(t, succeed(t, s, append([]string{"list", "--json"}, args...)...), &credentials)
	return credentials
}

func unmarshal(t *testing.T, text string, target any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), target); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// simple runs the simple site in this process, where a command without flags
// finds it: its Caddyfile is in the directory.
func simple(t *testing.T) *testserver.Server {
	t.Helper()
	s := testserver.New(t)
	s.Run(t, testserver.Simple)
	s.WriteCaddyfile(t, testserver.Simple)
	return s
}

// tokenAnswer asks for a token and returns the status and the body.
func tokenAnswer(t *testing.T, s *testserver.Server, c testserver.Credential) (int, string) {
	t.Helper()
	resp := s.Do(t, "POST", "/api/v0/oauth/token", "GrantType=client_credentials&ClientId="+c.ClientID+
		"&ClientSecret="+strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(c.Secret),
		"Content-Type", "application/x-www-form-urlencoded")
	return resp.StatusCode, testserver.Body(t, resp)
}

func wantStatus(t *testing.T, s *testserver.Server, token string, want int) {
	t.Helper()
	if resp := s.Do(t, "GET", "/x", "", testserver.Bearer(token)...); resp.StatusCode != want {
		t.Errorf("with this token: %s, want %d", resp.Status, want)
	}
}

func TestCreateShowsAPairThatGetsAToken(t *testing.T) {
	s := simple(t)
	out := succeed(t, s, "create", "--name", "ops", "--scope", "items:write", "--scope", "items:read")
	shown := regexp.MustCompile(`^client id  ([0-9a-f]{32})\nsecret     ([A-Za-z0-9+/]{22}==)\n\nThe secret is shown this once`).FindStringSubmatch(out)
	if shown == nil {
		t.Fatalf("standard output: %q", out)
	}
	token := s.Token(t, testserver.Credential{ClientID: shown[1], Secret: shown[2]})
	wantStatus(t, s, token, 200)
	header := s.Upstream.Take()[0].Header
	if id, scope := header.Get("X-Client-Id"), header.Get("X-Client-Scope"); id != shown[1] || scope != "items:read items:write" {
		t.Errorf("the upstream sees %s with %q", id, scope)
	}
}

func TestCreateWithJSONPrintsTheContractsObjectAlone(t *testing.T) {
	s := simple(t)
	for _, args := range [][]string{
		{},
		{"--name", ""},
		{"--name", "My New Credentials"},
		{"--name", "Ключ 鍵 🔑 <&>"},
		{"--expires", "2099-06-21T02:30:00+02:30"},
		{"--account", "team-7", "--scope", "items:read"},
	} {
		create(t, s, args...)
		r := run(t, s, append([]string{"create", "--json", "--config", "Caddyfile"}, args...)...)
		var c testserver.Credential
		unmarshal(t, r.stdout, &c)
		if r.stderr == "" || strings.Contains(r.stderr, c.Secret) || strings.Contains(r.stderr, c.ClientID) {
			t.Errorf("standard error: %q", r.stderr) // Caddy says there which file it reads
		}
	}
}

func TestACreatedManagerManagesOverHTTP(t *testing.T) {
	s := simple(t)
	token := s.Token(t, create(t, s, "--scope", issuer.ScopeWrite, "--scope", "items:read"))
	resp := s.Do(t, "POST", "/api/v0/client-credentials", `{"name":"child"}`, append(testserver.Bearer(token), "Content-Type", "application/json")...)
	var child testserver.Credential
	unmarshal(t, testserver.Body(t, resp), &child)
	if resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status)
	}
	wantStatus(t, s, s.Token(t, child), 200)
	if resp := s.Do(t, "DELETE", "/api/v0/client-credentials/"+child.ClientID, "", testserver.Bearer(token)...); resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp.Status)
	}

	reader := s.Token(t, create(t, s, "--scope", issuer.ScopeRead))
	if resp := s.Do(t, "GET", "/api/v0/client-credentials", "", testserver.Bearer(reader)...); resp.StatusCode != http.StatusOK {
		t.Errorf("a reader: %s", resp.Status)
	}
	if resp := s.Do(t, "GET", "/api/v0/client-credentials", "", testserver.Bearer(s.Token(t, create(t, s)))...); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a credential that was given no scope lists others: %s", resp.Status)
	}
}

func TestWhatCreateIsToldIsKept(t *testing.T) {
	s := simple(t)
	c := create(t, s, "--name", "ops, of team 7", "--account", "team-7", "--expires", "2099-06-21T02:30:00+02:30",
		"--scope", "b", "--scope", "a", "--scope", "b")
	plain := create(t, s)
	for _, got := range list(t, s) {
		switch got.ClientID {
		case c.ClientID:
			if got.Account != "team-7" || *got.Name != "ops, of team 7" || *got.Expires != "2099-06-21T00:00:00.000Z" || strings.Join(got.Scopes, " ") != "a b" {
				t.Errorf("%+v", got)
			}
		case plain.ClientID:
			if got.Account != "default" || got.Name != nil || got.Expires != nil || len(got.Scopes) != 0 {
				t.Errorf("%+v", got)
			}
		default:
			t.Errorf("listed, but never created: %+v", got)
		}
	}
	wantStatus(t, s, s.Token(t, c), 200)
	if got := s.Upstream.Take()[0].Header.Get("X-Client-Account"); got != "team-7" {
		t.Errorf("account %q", got)
	}
}

func TestAnAccountSeesOnlyItsOwnOverHTTP(t *testing.T) {
	s := simple(t)
	token := s.Token(t, create(t, s, "--account", "team-7", "--scope", issuer.ScopeWrite))
	other := create(t, s)
	resp := s.Do(t, "GET", "/api/v0/client-credentials", "", testserver.Bearer(token)...)
	if body := testserver.Body(t, resp); resp.StatusCode != http.StatusOK || strings.Contains(body, other.ClientID) {
		t.Errorf("%s %s", resp.Status, body)
	}
	if n := len(list(t, s)); n != 2 {
		t.Errorf("the command line lists %d credentials, want those of all accounts", n)
	}
}

func TestABadValueIsNamedAndNothingIsCreated(t *testing.T) {
	s := testserver.New(t)
	s.WriteCaddyfile(t, testserver.Simple)
	bad := []struct{ flag, value, field string }{
		{"--expires", "", "expires"},
		{"--expires", "tomorrow", "expires"},
		{"--expires", "2099-01-01", "expires"},
		{"--expires", "2099-01-01 00:00:00Z", "expires"},
		{"--expires", "2001-01-01T00:00:00Z", "expires is in the past"},
		{"--name", "tab\there", "name"},
		{"--name", strings.Repeat("é", 201), "name"},
		{"--account", "team 7", "account"},
		{"--account", "team/7", "account"},
		{"--account", strings.Repeat("a", 65), "account"},
		{"--scope", "", "scope"},
		{"--scope", "items:read items:write", "scope"},
		{"--scope", `items:"read"`, "scope"},
	}
	for _, b := range bad {
		fail(t, s, []string{"create", "--json", "--offline", "--account", "default", b.flag, b.value}, b.field)
	}
	if n := len(list(t, s, "--offline")); n != 0 {
		t.Errorf("%d credentials were created offline", n)
	}
	s.Run(t, testserver.Simple)
	for _, b := range bad {
		fail(t, s, []string{"create", "--json", "--account", "default", b.flag, b.value}, b.field)
	}
	if n := len(list(t, s)); n != 0 {
		t.Errorf("%d credentials were created", n)
	}
}

func TestWrongUsageFails(t *testing.T) {
	s := simple(t)
	for _, args := range [][]string{
		{"create", "ops"},
		{"create", "--names", "ops"},
		{"create", "--name"},
		{"list", "all"},
		{"list", "--accounts", "a"},
		{"revoke"},
		{"revoke", strings.Repeat("0", 32), strings.Repeat("1", 32)},
		{"revoke", "--all"},
		{"creat"},
	} {
		if r := run(t, s, args...); r.code == 0 {
			t.Errorf("%q succeeds: %s", args, r.stdout)
		}
	}
	if n := len(list(t, s)); n != 0 {
		t.Errorf("%d credentials were created", n)
	}
}

func TestListShowsATable(t *testing.T) {
	s := simple(t)
	named := create(t, s, "--name", "ops", "--account", "team-7", "--expires", "2099-06-21T00:00:00Z", "--scope", "a", "--scope", "b")
	plain := create(t, s)
	out := succeed(t, s, "list")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "CLIENT ID NAME ACCOUNT STATUS SCOPES CREATED EXPIRES LAST USED" {
		t.Fatalf("standard output: %q", out)
	}
	const created = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`
	for id, row := range map[string]string{
		named.ClientID: `ops +team-7 +active +a b +` + created + ` +2099-06-21T00:00:00\.000Z +-`,
		plain.ClientID: `- +default +active +` + created + ` +- +-`,
	} {
		if !regexp.MustCompile(`(?m)^` + id + ` +` + row + `$`).MatchString(out) {
			t.Errorf("no row %s in %q", row, out)
		}
	}
	if strings.Contains(out, named.Secret) || strings.Contains(out, plain.Secret) {
		t.Error("the list shows a secret")
	}
}

func TestListFindsWhatItsFlagsSay(t *testing.T) {
	s := simple(t)
	used := create(t, s, "--name", "Orders", "--scope", "items:read")
	expiring := create(t, s, "--name", "Stock", "--expires", "2099-06-21T00:00:00Z")
	gone := create(t, s, "--account", "team-7")
	succeed(t, s, "revoke", gone.ClientID)
	s.Token(t, used)
	for _, mode := range [][]string{nil, {"--offline"}} {
		if mode != nil {
			if err := caddy.Stop(); err != nil { // which has the store
				t.Fatal(err)
			}
		}
		for want, args := range map[string][]string{
			used.ClientID:     {"--name", "ord", "--scope", "items:read"},
			expiring.ClientID: {"--expires-before", "2099-06-22T00:00:00Z"},
			gone.ClientID:     {"--status", "revoked", "--account", "team-7"},
			"":                {"--scope", "items:write"},
		} {
			got := list(t, s, append(args, mode...)...)
			if want == "" && len(got) == 0 {
				continue
			}
			if len(got) != 1 || got[0].ClientID != want {
				t.Errorf("%q: %+v, want %s alone", args, got, want)
			}
		}
		if got := list(t, s, append(mode, "--unused-since", time.Now().Add(time.Hour).Format(time.RFC3339))...); len(got) != 2 {
			t.Errorf("unused since then: %+v", got)
		}
	}
	if r := run(t, s, "list", "--offline", "--status", "gone"); r.code != 2 || !strings.Contains(r.stderr, "status") {
		t.Errorf("an unknown status: exit code %d, %s", r.code, r.stderr)
	}
}

func TestListWithJSONIsAnArrayWithoutSecrets(t *testing.T) {
	s := simple(t)
	if out := succeed(t, s, "list", "--json"); out != "[]\n" {
		t.Errorf("of no credentials: %q", out)
	}
	create(t, s, "--name", "ops", "--scope", "a")
	form := regexp.MustCompile(`^\[\{"credentialId":"[0-9a-f-]{36}","clientId":"[0-9a-f]{32}","name":"ops","secret":null,` +
		`"expires":null,"created":"[^"]{24}","account":"default","scopes":\["a"\],"status":"active"\}\]\n$`)
	if out := succeed(t, s, "list", "--json"); !form.MatchString(out) {
		t.Errorf("of one: %q", out)
	}
}

func TestARevokedCredentialIsOver(t *testing.T) {
	s := simple(t)
	c, other := create(t, s), create(t, s)
	token, otherToken := s.Token(t, c), s.Token(t, other)
	wantStatus(t, s, token, 200)
	if out := succeed(t, s, "revoke", c.ClientID); out != "revoked "+c.ClientID+"\n" {
		t.Errorf("standard output: %q", out)
	}
	wantStatus(t, s, token, 401)
	if status, body := tokenAnswer(t, s, c); status != 401 {
		t.Errorf("the pair of a revoked credential: %d %s", status, body)
	}
	wantStatus(t, s, otherToken, 200)
	if left := list(t, s); len(left) != 1 || left[0].ClientID != other.ClientID {
		t.Errorf("left are %+v", left)
	}
	fail(t, s, []string{"revoke", c.ClientID}, "no such credential")
}

func TestRevokingWhatIsNoCredentialDoesNothingElse(t *testing.T) {
	s := simple(t)
	c := create(t, s)
	token := s.Token(t, c)
	for _, id := range []string{
		strings.Repeat("0", 32), strings.ToUpper(c.ClientID), c.ClientID[:31], c.ClientID + "0", "", ".", "..", "/",
		"../../load", "../stop", "../config/", "../config", "..%2fconfig%2f", "a/../../config/", "../config/apps/client_credentials",
		c.ClientID + "/", c.ClientID + "/x", "../client-credentials/" + c.ClientID, c.ClientID + "?x=1", c.ClientID + "#x",
		" " + c.ClientID, c.ClientID + "\n", "x\r\nHost: elsewhere", c.ClientID + "/secrets", c.ClientID + "/secrets/" + secretIDs(t, s, c)[0],
	} {
		fail(t, s, []string{"revoke", "--", id})
	}
	wantStatus(t, s, token, 200)
	if n := len(list(t, s)); n != 1 {
		t.Errorf("%d credentials are left", n)
	}
}

func TestTheServerIsFoundByEachFlag(t *testing.T) {
	s := simple(t)
	config, err := s.Adapt(testserver.Simple)
	if err != nil {
		t.Fatal(err)
	}
	caddyfile := s.Expand(testserver.Simple)
	elsewhere := strings.Replace(caddyfile, s.Admin, "127.0.0.1:1", 1)
	for name, text := range map[string]string{
		"server.conf": caddyfile, "server.caddyfile": caddyfile, "Caddyfile.local": caddyfile,
		"server.json": string(config), "elsewhere.caddyfile": elsewhere,
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, flags := range [][]string{
		{}, // the Caddyfile of this directory
		{"--address", s.Admin},
		{"--config", "Caddyfile"},
		{"-c", "server.caddyfile"},
		{"--config", filepath.Join(s.Dir, "Caddyfile.local")},
		{"--config", "server.conf", "--adapter", "caddyfile"},
		{"-c", "server.conf", "-a", "caddyfile"},
		{"--config", "server.json"},
		{"--config", "elsewhere.caddyfile", "--address", s.Admin},
	} {
		c := create(t, s, flags...)
		succeed(t, s, append(flags, "revoke", c.ClientID)...) // persistent flags stand anywhere
		if n := len(list(t, s, flags...)); n != 0 {
			t.Errorf("%q: %d credentials are left", flags, n)
		}
	}
	if err := os.Rename(filepath.Join(s.Dir, "elsewhere.caddyfile"), filepath.Join(s.Dir, "Caddyfile")); err != nil {
		t.Fatal(err)
	}
	create(t, s, "--address", s.Admin) // goes before the Caddyfile of this directory
}

func TestTheServerIsFoundOnAUnixSocket(t *testing.T) {
	s := testserver.New(t)
	s.Admin = "unix/" + filepath.Join(s.Dir, "admin.sock")
	s.Run(t, testserver.Simple)
	s.WriteCaddyfile(t, testserver.Simple)
	for _, flags := range [][]string{{}, {"--address", s.Admin}, {"--config", "Caddyfile"}} {
		c := create(t, s, flags...)
		token := s.Token(t, c)
		wantStatus(t, s, token, 200)
		succeed(t, s, append([]string{"revoke", c.ClientID}, flags...)...)
		wantStatus(t, s, token, 401)
		if n := len(list(t, s, flags...)); n != 0 {
			t.Errorf("%q: %d credentials are left", flags, n)
		}
	}
}

func TestWithoutAServerTheErrorSaysWhatToDo(t *testing.T) {
	s := testserver.New(t)
	for _, args := range [][]string{{"create"}, {"list"}, {"revoke", strings.Repeat("0", 32)}} {
		fail(t, s, append(args, "--address", s.Admin), s.Admin, "--address", "--offline")
	}
	s.Admin = "unix/" + filepath.Join(s.Dir, "admin.sock")
	fail(t, s, []string{"list", "--address", s.Admin}, "admin.sock", "--address", "--offline")
}

func TestAServerWithoutTheAppIsToldFromOneThatDoesNotRun(t *testing.T) {
	s := testserver.New(t)
	s.Run(t, "{\n\t{{global}}\n}\n{{url}} {\n\trespond hi\n}\n")
	for _, args := range [][]string{{"create"}, {"list"}, {"revoke", strings.Repeat("0", 32)}} {
		fail(t, s, append(args, "--address", s.Admin), "add the global option client_credentials")
	}
}

func TestAConfigurationThatCannotBeReadIsNamed(t *testing.T) {
	s := simple(t)
	for name, text := range map[string]string{"broken.caddyfile": "{\n\tclient_credentials {\n\t\tissuers a\n\t}\n}\n", "broken.json": "{"} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range [][]string{{"list"}, {"list", "--offline"}} {
		fail(t, s, append(mode, "--config", "missing.caddyfile"), "missing.caddyfile")
		fail(t, s, append(mode, "--config", "broken.caddyfile"), "broken.caddyfile:3", "issuers")
		fail(t, s, append(mode, "--config", "broken.json"))
		fail(t, s, append(mode, "--config", "Caddyfile", "--adapter", "nginx"), "nginx")
	}
}

func TestHelpMentionsEveryFlag(t *testing.T) {
	s := testserver.New(t)
	common := []string{"--address", "--config", "-c,", "--adapter", "-a,", "--offline"}
	for command, flags := range map[string][]string{
		"":              {"create", "list", "revoke", "first", "--scope client-credentials:write"},
		"create":        {"--name", "--scope", "--audience", "--grantable", "--token-lifetime", "--claims", "--jwks", "--jwks-uri", "--account", "--expires", "--json", "once"},
		"list":          {"--json", "--account", "all accounts"},
		"show":          {"client id", "--json"},
		"update":        {"client id", "--name", "--scope", "--audience", "--grantable", "--token-lifetime", "--claims", "--expires", "--clear", "--json"},
		"disable":       {"client id", "until it is enabled"},
		"enable":        {"client id"},
		"revoke":        {"client id", "every token", "--account", "--created-by", "--yes", "--json"},
		"rotate-secret": {"client id", "--overlap", "--yes", "--json", "24h"},
		"secrets":       {"client id", "--json"},
		"delete-secret": {"client id", "secret id", "--yes"},
	} {
		out := succeed(t, s, append(strings.Fields(command), "--help")...)
		for _, text := range append(flags, common...) {
			if !strings.Contains(out, text) {
				t.Errorf("the help of %q does not mention %s:\n%s", command, text, out)
			}
		}
	}
}

func TestCreateTakesAKeySetFromAFile(t *testing.T) {
	s := simple(t)
	file := filepath.Join(s.Dir, "jwks.json")
	for text, want := range map[string]string{
		`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`: "",
		`{"keys":[{"kty":"oct","k":"AAAA"}]}`:                                                        "jwks key 0 is not a public key",
		`-----BEGIN PUBLIC KEY-----`:                                                                 "holds no JSON",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if want == "" {
			create(t, s, "--jwks", file)
		} else {
			fail(t, s, []string{"create", "--jwks", file}, want)
		}
	}
	fail(t, s, []string{"create", "--jwks", filepath.Join(s.Dir, "missing")}, "missing")
}

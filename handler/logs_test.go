package handler_test

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// spellings are the texts by which something secret could stand in a log.
func spellings(secret string) []string {
	all := []string{secret, url.QueryEscape(secret), strings.ReplaceAll(secret, "/", `\/`)}
	if raw, err := base64.StdEncoding.DecodeString(secret); err == nil {
		all = append(all, hex.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw))
	}
	return all
}

func logLines(t *testing.T, s *testserver.Server) []map[string]any {
	t.Helper()
	var lines []map[string]any
	scanner := bufio.NewScanner(strings.NewReader(s.Log(t)))
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var line map[string]any
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			t.Fatalf("not a structured log line: %s", scanner.Text())
		}
		lines = append(lines, line)
	}
	return lines
}

func TestTheLogOfAFullRunHoldsNoSecretAndNoToken(t *testing.T) {
	s := run(t, site("", "", "log\nclient_credentials\nroute /vars {\nrespond {http.vars.client_credentials.admission}\n}\nreverse_proxy {{upstream}}"))
	c := s.CreateWith(t, issuer.ScopeWrite, "read")
	token := s.Token(t, c)
	created, _ := create(t, s, token, `{"name":"a"}`)
	pair := created.pair()
	other := s.Token(t, pair)
	secrets := []string{c.Secret, pair.Secret, token, other}
	for _, signed := range []string{token, other} {
		secrets = append(secrets, strings.Split(signed, ".")[2], strings.Split(signed, ".")[1])
	}

	forged := token[:len(token)-6] + "AAAAAA"
	secrets = append(secrets, forged)
	bad := []string{"Content-Type", formType}
	if body := testserver.Body(t, s.Do(t, "GET", "/vars", "", testserver.Bearer(token)...)); strings.Contains(body, ".") {
		t.Errorf("what a guard leaves in the request's variables prints the token: %s", body)
	}
	for _, resp := range []*http.Response{
		s.Do(t, "GET", "/x?access_token=query", "", testserver.Bearer(token)...),
		s.Do(t, "GET", "/x", "", testserver.Bearer(forged)...),
		s.Do(t, "GET", "/x", "", "Authorization", "Bearer "+token+" "+other),
		s.Do(t, "GET", "/x", "", "Authorization", "Bearer "+token, "Authorization", "Bearer "+other),
		s.Do(t, "GET", "/x", "", "Authorization", basic(c.ClientID, c.Secret)),
		s.Do(t, "GET", credentialsPath, "", testserver.Bearer(token)...),
		s.Do(t, "GET", credentialsPath, "", testserver.Bearer(other)...),
		s.Do(t, "POST", credentialsPath, `{"name":"`+c.Secret+`","expires":"`+c.Secret+`"}`, "Content-Type", jsonType, "Authorization", "Bearer "+token),
		s.Do(t, "POST", credentialsPath, `{"`+c.Secret+`"`, "Content-Type", jsonType, "Authorization", "Bearer "+token),
		s.Do(t, "POST", tokenPath, form("grant_type", c.Secret, "client_id", c.ClientID, "client_secret", c.Secret), bad...),
		s.Do(t, "POST", tokenPath, form("grant_type", "client_credentials", "client_id", pair.Secret, "client_secret", c.Secret), bad...),
		s.Do(t, "POST", tokenPath, form("grant_type", "client_credentials", "client_id", c.ClientID, "client_secret", c.Secret, "scope", c.Secret), bad...),
		s.Do(t, "POST", tokenPath, `{"ClientSecret":"`+c.Secret, "Content-Type", jsonType),
		s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(c.ClientID, pair.Secret)),
		s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", "Basic "+c.Secret),
		s.Do(t, "DELETE", credentialsPath+"/"+pair.ClientID, "", testserver.Bearer(token)...),
		s.Do(t, "GET", "/x", "", testserver.Bearer(other)...),
	} {
		body := testserver.Body(t, resp)
		for _, secret := range secrets {
			if strings.Contains(body, secret) {
				t.Errorf("an answer repeats what was sent: %s", body)
			}
		}
	}
	s.Run(t, strings.Replace(testserver.Simple, "store badger", "token_lifetime 5m\nstore badger", 1)) // a reload logs, too

	log := s.Log(t)
	for _, secret := range secrets {
		for _, spelling := range spellings(secret) {
			if at := strings.Index(log, spelling); at >= 0 {
				t.Errorf("the log holds a secret or a token: …%s…", log[max(0, at-200):at])
			}
		}
	}
	key, err := os.ReadFile(s.Dir + "/storage/keys/client_credentials_master.key")
	if err != nil || strings.Contains(log, strings.TrimSpace(string(key))) {
		t.Errorf("the log holds the master key, or there is none: %v", err)
	}
}

func TestRefusalsAreLoggedWithTheirReason(t *testing.T) {
	s := run(t, strings.Replace(testserver.Simple, "\tclient_credentials\n", "\tlog\n\tclient_credentials\n", 1))
	c, gone := s.CreateWith(t, issuer.ScopeWrite), s.CreateWith(t)
	token, goneToken := s.Token(t, c), s.Token(t, gone)
	s.Do(t, "DELETE", credentialsPath+"/"+gone.ClientID, "", testserver.Bearer(token)...)
	s.Do(t, "GET", "/x", "", testserver.Bearer(goneToken)...)
	s.Do(t, "GET", "/x", "")
	s.Do(t, "GET", "/x", "", testserver.Bearer(token)...)
	s.Do(t, "GET", "/x", "", testserver.Bearer("x")...)
	s.Do(t, "GET", "/x", "", "Authorization", "Bearer")
	for _, pair := range []testserver.Credential{gone, {ClientID: c.ClientID, Secret: "x"}, {ClientID: strings.Repeat("0", 32), Secret: "x"}} {
		s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(pair.ClientID, pair.Secret))
	}
	s.Do(t, "GET", credentialsPath, "", testserver.Bearer(token)...)
	found := map[string]map[string]any{}
	for _, line := range logLines(t, s) {
		what, _ := line["msg"].(string)
		if reason, ok := line["reason"].(string); ok {
			what += ": " + reason
		}
		found[what] = line
	}
	for what, level := range map[string]string{
		"request refused: revoked":           "info",
		"request refused: no token":          "debug",
		"request refused: not a compact JWS": "info",
		"request refused: the Authorization header field is not the word Bearer, a space, and one token": "info",
		"request admitted":              "debug",
		"token refused: revoked":        "info",
		"token refused: wrong secret":   "info",
		"token refused: unknown client": "info",
	} {
		line := found[what]
		if line == nil || line["level"] != level {
			t.Errorf("no log line %q at level %s: %v", what, level, line)
		}
	}
	if line := found["handled request"]; line["user_id"] != c.ClientID {
		t.Errorf("the access log does not say who has managed credentials: %v", line)
	}
	if line := found["request refused: revoked"]; line["remote_ip"] != "127.0.0.1" || line["path"] != "/x" || line["method"] != "GET" || line["status"] != 401.0 {
		t.Errorf("a refusal does not say who was refused what: %v", line)
	}
}

func TestAStoreThatOthersCanReadIsToldOf(t *testing.T) {
	for _, test := range []struct {
		mode   fs.FileMode
		told   int
		logged string
	}{{0o755, 1, "-rwxr-xr-x"}, {0o750, 0, ""}} {
		s := newServer(t)
		dir := filepath.Join(s.Dir, "store")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, test.mode)); err != nil { // whatever the umask
			t.Fatal(err)
		}
		s.Run(t, site("", "", "client_credentials"))
		told := 0
		for _, line := range logLines(t, s) {
			if line["level"] == "warn" && line["path"] == dir && line["mode"] == test.logged {
				told++
			}
		}
		if runtime.GOOS == "windows" { // which has no such modes
			test.told = 0
		}
		if told != test.told {
			t.Errorf("of the mode %v, %d warnings tell", test.mode, told)
		}
	}
}

// Package interop runs OAuth clients of other people's making against the real
// server: what their authors read into the RFCs is not what ours did.
package interop

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const (
	tokenPath = "/api/v0/oauth/token"
	apiPath   = "/items/1"
)

// site guards its API with a scope; options are those of client_credentials,
// and further directives come before the upstream.
func site(options, directives string) string {
	return `{
	{{global}}
	client_credentials {
		issuer {{url}}
		store badger {{dir}}/store
	}
}
{{url}} {
	client_credentials {
		` + options + `
	}
	bearer_auth /items/* items:read
	` + directives + `
	reverse_proxy {{upstream}}
}
`
}

func run(t *testing.T, caddyfile string) *testserver.Server {
	t.Helper()
	s := testserver.New(t)
	s.Run(t, caddyfile)
	return s
}

// awkward returns a credential whose secret has all that clients encode in
// different ways.
func awkward(t *testing.T, s *testserver.Server) testserver.Credential {
	t.Helper()
	for {
		if c := s.CreateWith(t, "items:read", "items:write"); strings.Contains(c.Secret, "+") && strings.Contains(c.Secret, "/") {
			return c
		}
	}
}

// missing skips the test on a developer's machine that lacks something. CI has
// everything.
func missing(t *testing.T, what, install string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %s", what, install)
	}
	t.Skipf("%s: %s", what, install)
}

// succeeds runs a client, which ends with an error where it was answered
// otherwise than it expects, and returns what it printed.
func succeeds(t *testing.T, s *testserver.Server, c testserver.Credential, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(),
		"ISSUER="+s.URL(""), "TOKEN_URL="+s.URL(tokenPath), "API="+s.URL(apiPath),
		"CLIENT_ID="+c.ClientID, "CLIENT_SECRET="+c.Secret,
		"NO_PROXY=localhost,127.0.0.1", "no_proxy=localhost,127.0.0.1")
	cmd.Env = append(cmd.Env, env...)
	var failure strings.Builder
	cmd.Stderr = &failure
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, output, failure.String())
	}
	return string(output)
}

// node runs a script with Node.js.
func node(t *testing.T, s *testserver.Server, c testserver.Credential, script string, env ...string) {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		missing(t, "Node.js is missing", "install version 20 or later")
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(string(version), "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < 20 {
		missing(t, "Node.js is of version "+major, "install version 20 or later")
	}
	if _, err := os.Stat("node_modules/.package-lock.json"); err != nil {
		missing(t, "the npm packages are missing", "run 'npm ci --ignore-scripts' in internal/interop")
	}
	observeScripts(t)
	succeeds(t, s, c, env, path, script)
}

// python runs a script with a Python that has the modules.
func python(t *testing.T, s *testserver.Server, c testserver.Credential, script, modules string) {
	t.Helper()
	observeScripts(t)
	// Debian's own comes first: it is the one that sees Debian's packages.
	for _, path := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(path, "-c", "import "+modules).Run() == nil {
			// Both libraries refuse plain http, unless told that it is a test.
			succeeds(t, s, c, []string{"PYTHONDONTWRITEBYTECODE=1", "AUTHLIB_INSECURE_TRANSPORT=1", "OAUTHLIB_INSECURE_TRANSPORT=1"}, path, script)
			return
		}
	}
	missing(t, "no Python has "+modules, "run 'apt-get install python3-authlib python3-requests-oauthlib python3-requests'")
}

// observeScripts has go test run again after a script has changed: it takes
// note of what this process opens, but not of what others do.
func observeScripts(t *testing.T) {
	t.Helper()
	dir, err := os.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	_ = dir.Close()
}

func TestClientsOfOthersGetAndUseTokens(t *testing.T) {
	s := run(t, site("", ""))
	c := awkward(t, s)
	for name, style := range map[string]oauth2.AuthStyle{
		"in the header": oauth2.AuthStyleInHeader, "in the body": oauth2.AuthStyleInParams, "detected": oauth2.AuthStyleAutoDetect,
	} {
		t.Run("Go's oauth2, the secret "+name, func(t *testing.T) { goClient(t, s, c, style) })
	}
	t.Run("curl", func(t *testing.T) { curl(t, s, c) })
	for _, script := range []string{"oauth4webapi.mjs", "openid-client.mjs", "simple-oauth2.mjs", "badgateway.mjs"} {
		t.Run(script, func(t *testing.T) { node(t, s, c, script) })
	}
	t.Run("with_authlib.py", func(t *testing.T) { python(t, s, c, "with_authlib.py", "authlib, requests") })
	t.Run("with_requests_oauthlib.py", func(t *testing.T) {
		python(t, s, c, "with_requests_oauthlib.py", "requests_oauthlib, oauthlib")
	})
}

func goClient(t *testing.T, s *testserver.Server, c testserver.Credential, style oauth2.AuthStyle) {
	config := clientcredentials.Config{
		ClientID: c.ClientID, ClientSecret: c.Secret, TokenURL: s.URL(tokenPath), AuthStyle: style, Scopes: []string{"items:read"},
	}
	token, err := config.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if token.Type() != "Bearer" || token.Extra("scope") != "items:read" || time.Until(token.Expiry) < 59*time.Minute {
		t.Errorf("the token is a %s until %s, with the scope %v", token.Type(), token.Expiry, token.Extra("scope"))
	}
	resp, err := config.Client(t.Context()).Get(s.URL(apiPath))
	if err != nil {
		t.Fatal(err)
	}
	if body := testserver.Body(t, resp); resp.StatusCode != http.StatusOK || body != "hello "+c.ClientID {
		t.Errorf("the API answers %s %q", resp.Status, body)
	}
	config.ClientSecret = "wrong"
	var refused *oauth2.RetrieveError
	if _, err := config.Token(t.Context()); !errors.As(err, &refused) || refused.ErrorCode != "invalid_client" {
		t.Errorf("a wrong secret gives %v", err)
	}
}

func curl(t *testing.T, s *testserver.Server, c testserver.Credential) {
	if _, err := exec.LookPath("curl"); err != nil {
		missing(t, "curl is missing", "install it")
	}
	url := s.URL(tokenPath)
	for name, test := range map[string]struct {
		args        []string
		member, end string
	}{
		"basic": {[]string{"-u", c.ClientID + ":" + c.Secret, "-d", "grant_type=client_credentials", url}, "access_token", `,"scope":"items:read items:write"}`},
		"body": {[]string{
			"-d", "grant_type=client_credentials", "--data-urlencode", "client_id=" + c.ClientID,
			"--data-urlencode", "client_secret=" + c.Secret, "-d", "scope=items:read", url,
		}, "access_token", `,"scope":"items:read"}`},
		"multipart": {[]string{
			"-F", "GrantType=client_credentials", "-F", "ClientId=" + c.ClientID, "-F", "ClientSecret=" + c.Secret, url,
		}, "accessToken", `,"tokenType":"bearer","expiresIn":3600}`},
	} {
		t.Run(name, func(t *testing.T) {
			answer := succeeds(t, s, c, nil, "curl", append([]string{"-fsS"}, test.args...)...)
			_, rest, found := strings.Cut(answer, `{"`+test.member+`":"`)
			token, rest, _ := strings.Cut(rest, `"`)
			if !found || !strings.HasSuffix(rest, test.end) {
				t.Fatalf("the answer is %s", answer)
			}
			if body := succeeds(t, s, c, nil, "curl", "-fsS", "--oauth2-bearer", token, s.URL(apiPath)); body != "hello "+c.ClientID {
				t.Errorf("the API answers %q", body)
			}
		})
	}
}

func TestAnMCPClientFindsItsWayFromTheURLOfTheAPI(t *testing.T) {
	port := fmt.Sprint(freeport.For(t))
	s := run(t, site("mcp_compat", "reverse_proxy /mcp 127.0.0.1:"+port))
	node(t, s, awkward(t, s), "mcp.mjs", "MCP_PORT="+port)
}

func TestClientsOfOthersAuthenticateByAKey(t *testing.T) {
	s := run(t, site("", ""))
	manager := s.Token(t, s.CreateWith(t, "items:read", issuer.ScopeWrite))
	node(t, s, awkward(t, s), "private-key-jwt.mjs", "MANAGER="+manager)
}

func TestOthersVerifyTokensByDiscoveryAlone(t *testing.T) {
	s := run(t, site("", ""))
	dying := s.Create(t, issuer.Draft{Scopes: []string{"items:read"}, Expires: time.Now().Add(2 * time.Second)})
	expiring := s.Token(t, dying)
	c := awkward(t, s)
	tokens := []string{"TOKEN=" + s.Token(t, c), "EXPIRING_TOKEN=" + expiring}
	t.Run("jose", func(t *testing.T) { node(t, s, c, "jose.mjs", tokens...) })
	t.Run("express-oauth2-jwt-bearer", func(t *testing.T) { node(t, s, c, "resource-server.mjs", tokens...) })
}

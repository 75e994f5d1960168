package handler_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func TestOtherHeadersReachTheUpstreamUnchanged(t *testing.T) {
	s := run(t, guarded)
	s.Do(t, "GET", "/public", "", "X-Client-Ip", "kept", "X-Client", "kept", "Client-Id", "kept", "X-Clients-Id", "kept", "Xaclient-Id", "kept")
	got := wantUpstream(t, s).Header
	for _, name := range []string{"X-Client-Ip", "X-Client", "Client-Id", "X-Clients-Id", "Xaclient-Id"} {
		if got.Get(name) != "kept" {
			t.Errorf("%s was lost", name)
		}
	}
}

// Whatever has removed the client's own headers: what the operator sets then is not
// the client's.
func TestIdentityHeadersAreRemovedOnceForARequest(t *testing.T) {
	for first, want := range map[string]string{
		`{"handler": "strip_identity_headers"}`:                       "the site's",
		`{"handler": "bearer_auth", "match": [{"path": ["/other"]}]}`: "the site's",
		`{"handler": "bearer_auth", "optional": true}`:                "the site's",
		`{"handler": "bearer_auth", "report_only": true}`:             "the site's",
		`{"handler": "headers"}`:                                      "", // then the guard behind it takes it for the client's
	} {
		s := newServer(t)
		runJSON(t, s, fmt.Sprintf(withHandlers, first, s.Upstream.Address()))
		wantStatus(t, s.Do(t, "GET", "/x", "", "X-Client-Id", "spoof", "X-Client-Scope", "spoof"), http.StatusOK)
		if got := wantUpstream(t, s).Header; got.Get("X-Client-Id") != want || got.Get("X-Client-Scope") != "" {
			t.Errorf("behind %s the upstream saw %v", first, got)
		}
	}
}

// withHandlers are the routes of a site that sets an identity header itself, behind a
// first handler and in front of a guard.
const withHandlers = `{"handle": [
	%s,
	{"handler": "headers", "request": {"set": {"X-Client-Id": ["the site's"]}}},
	{"handler": "bearer_auth", "optional": true},
	{"handler": "reverse_proxy", "upstreams": [{"dial": %q}]}
]}`

// runJSON starts a server with a site of these routes.
func runJSON(t *testing.T, s *testserver.Server, routes string) {
	t.Helper()
	s.RunJSON(t, fmt.Sprintf(`{
	"admin": {"disabled": true},
	"logging": {"logs": {"default": {"writer": {"output": "file", "filename": %q}}}},
	"storage": {"module": "file_system", "root": %q},
	"apps": {
		"client_credentials": {"issuer": %q, "store": {"module": "badger", "path": %q}},
		"http": {"grace_period": "1s", "servers": {"test": {
			"listen": ["127.0.0.1:%d"],
			"automatic_https": {"disable": true},
			"routes": [%s]
		}}}
	}
}`, s.Dir+"/log", s.Dir+"/storage", s.URL(""), s.Dir+"/store", s.Port, routes))
}

// The address that the PROXY protocol tells stands for one from another host.
func TestPlaintextFromAnotherHostIsWarnedOfOnce(t *testing.T) {
	s := run(t, site("", "servers {\nlistener_wrappers {\nproxy_protocol {\nallow 127.0.0.0/8\n}\n}\ntrusted_proxies static 192.0.2.9\n}",
		"client_credentials\nreverse_proxy {{upstream}}"))
	send := func(from, header string) {
		resp := raw(t, s, crlf(fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 4711 80\nPOST %s HTTP/1.1\nHost: localhost:%d\n%sConnection: close\n\n", from, tokenPath, s.Port, header)))
		wantStatus(t, resp, http.StatusBadRequest)
	}
	warnings := func() int { return strings.Count(s.Log(t), "without TLS") }
	send("127.0.0.1", "")
	send("192.0.2.9", "X-Forwarded-Proto: https\n") // a trusted proxy has seen TLS
	if n := warnings(); n != 0 {
		t.Fatalf("%d warnings about what crosses no network in the clear", n)
	}
	send("192.0.2.1", "X-Forwarded-Proto: https\n") // not a trusted one
	send("192.0.2.1", "")
	send("192.0.2.2", "")
	if n := warnings(); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

const withProvider = `
	{"handle": [{"handler": "strip_identity_headers"}, {"handler": "client_credentials"}]},
	{"handle": [{"handler": "authentication", "providers": {
		"bearer": {"scopes": ["read"], "realm": "api"},
		"http_basic": {"accounts": [{"username": "ann", "password": "$2a$04$5JMR/erygorPUAo2Q28Ndeb0n44fM3WQue87xnSFomCVHiotHKwv."}]}
	}}]},
	{"handle": [{"handler": "reverse_proxy", "headers": {"request": {"set": {
		"X-User": ["{http.auth.user.id} {http.auth.user.scope} {http.auth.user.account} {http.auth.user.jti}"]}}},
		"upstreams": [{"dial": %q}]}]}`

func TestTheAuthenticationProviderStandsBesideHTTPBasic(t *testing.T) {
	s := newServer(t)
	runJSON(t, s, fmt.Sprintf(withProvider, s.Upstream.Address()))
	c, weak := s.CreateWith(t, "read"), s.CreateWith(t, "write")
	token := s.Token(t, c)

	wantStatus(t, s.Do(t, "GET", "/x", "", "Authorization", "Bearer "+token, "X-Client-Id", "spoof"), http.StatusOK)
	got := wantUpstream(t, s).Header
	if want := fmt.Sprintf("%s read default %s", c.ClientID, decode(t, token, 1)["jti"]); got.Get("X-User") != want ||
		strings.Join(got.Values("X-Client-Id"), "|") != c.ClientID || got.Get("Authorization") != "" {
		t.Errorf("the upstream saw %v, want the user %s", got, want)
	}
	wantStatus(t, s.Do(t, "GET", "/x", "", "Authorization", basic("ann", "secret"), "X-Client-Id", "spoof"), http.StatusOK)
	if got := wantUpstream(t, s).Header; got.Get("X-Client-Id") != "" || !strings.HasPrefix(got.Get("X-User"), "ann ") {
		t.Errorf("with HTTP Basic the upstream saw %v", got)
	}
	for name, authorization := range map[string]string{
		"none": "", "garbage": "Bearer x", "lacking scope": "Bearer " + s.Token(t, weak), "wrong password": basic("ann", "x"),
	} {
		resp := s.Do(t, "GET", "/x", "", "Authorization", authorization)
		wantStatus(t, resp, http.StatusUnauthorized)
		if !strings.Contains(strings.Join(resp.Header.Values("WWW-Authenticate"), "|"), "B") {
			t.Errorf("%s: no challenge", name)
		}
	}
	wantNoUpstream(t, s)
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", testserver.Bearer(manage(t, s))...), http.StatusNoContent)
	wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusUnauthorized)
}
